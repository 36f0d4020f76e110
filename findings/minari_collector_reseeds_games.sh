#!/usr/bin/env bash
# Under Minari's DataCollector a seeded program is no longer repeatable.
#
# Versions: minari 0.5.4, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: DataCollector only watches. A program that seeds its environment once, with
#   reset(seed=7), and then calls reset() plays the same games whenever it is run, with the collector
#   as without it.
# What happens: the collector hands every reset() without a seed a fresh one of 64 bits from the
#   operating system's entropy. The first games are equal, all later ones differ from run to run.
#   reset(options={"minari_autoseed": False}) leaves it. The number is stored with the game, so that
#   a single game can be started again, but not the data set made again by its program.
# Why it matters: two data sets "of seed 7" are different data, and an algorithm that is compared
#   with and without recording plays other games. There is no warning.
set -euo pipefail

expected='bare environment: game 1 starts alike, game 2 starts alike, game 3 starts alike
DataCollector: game 1 starts alike, game 2 starts differently, game 3 starts differently
DataCollector, minari_autoseed off: game 1 starts alike, game 2 starts alike, game 3 starts alike
a stored seed starts its game again: True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "minari[create,hdf5]==0.5.4" pillow==13.0.0 \
    gymnasium==1.4.0 numpy==2.4.6

seen=$(MINARI_DATASETS_PATH="$folder" venv/bin/python -W ignore - <<'PY'
import gymnasium as gym
import minari
import numpy as np

IDLE = np.zeros(1, np.float32)


def starts(wrap, options=None):
    """Play three short games, the first one seeded; return the environment and how they began."""
    env = wrap(gym.make("Pendulum-v1"))
    seen = []
    for game in range(3):
        seed = {"seed": 7} if game == 0 else {}
        observation, _ = env.reset(options=options, **seed)
        seen.append(observation)
        for _ in range(5):
            env.step(IDLE)
    return env, seen


off = {"minari_autoseed": False}
cases = {
    "bare environment": (lambda env: env,),
    "DataCollector": (minari.DataCollector,),
    "DataCollector, minari_autoseed off": (minari.DataCollector, off),
}
for name, case in cases.items():
    runs = [starts(*case)[1] for _ in range(2)]  # as if the program had been run twice
    same = [np.array_equal(*pair) for pair in zip(*runs, strict=True)]
    words = ["differently", "alike"]
    print(f"{name}: " + ", ".join(f"game {i + 1} starts {words[x]}" for i, x in enumerate(same)))

env, seen = starts(minari.DataCollector)
kept = env.create_dataset("pendulum/short-v0").storage.get_episode_metadata([0, 1, 2])
seeds = [int(part["seed"]) for part in kept]
bare = gym.make("Pendulum-v1")
again = [bare.reset(seed=seed)[0] for seed in seeds]
print("a stored seed starts its game again:", all(map(np.array_equal, seen, again)))
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
