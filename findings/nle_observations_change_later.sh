#!/usr/bin/env bash
# All observations of a NetHack environment are the same memory, and reset(seed) does not seed.
#
# Versions: nle 1.3.0, gymnasium 1.2.0 (the newest that it allows), numpy 2.4.6, Python 3.11.
# The guess: what step() returned stays as it was, as Gymnasium's own environments have it, and
#   reset(seed=11) begins the same game twice.
# What happens: step() returns a new dictionary each time, with the same arrays in it. After fifty
#   steps all fifty-one observations are equal to the last one, the first one too, and a reset
#   changes them once more. reset(seed=11) draws seeds of its own, other ones each time; only
#   env.unwrapped.seed(core, disp) seeds. Neither raises an error or a warning.
# Why it matters: a list, a segment or a replay buffer of observations that are not copied holds
#   one picture many times, so that a value learns from the state after the action. A new dictionary
#   hides it from a look at "is". And no run repeats from its seed.
set -euo pipefail

expected='51 observations, the same dictionary False, the same memory True
chars: 1 different among them, the first one is what it was False
blstats: 1 different among them, the first one is what it was False
copied when they came: more than five different chars True
reset(seed=11) twice: the same game False; seed(11, 11) and reset twice: the same game True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet nle==1.3.0 gymnasium==1.2.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import gymnasium as gym
import nle  # noqa: F401
import numpy as np

env = gym.make("NetHackScore-v0")
env.unwrapped.seed(1, 1)
env.action_space.seed(0)
kept = [env.reset()[0]]
copies = [{name: array.copy() for name, array in kept[0].items()}]
for _ in range(50):
    observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert not (terminated or truncated)
    kept.append(observation)
    copies.append({name: array.copy() for name, array in observation.items()})

shared = np.shares_memory(kept[0]["chars"], kept[-1]["chars"])
print(
    f"{len(kept)} observations, the same dictionary {kept[0] is kept[-1]}, "
    f"the same memory {shared}"
)
for name in ("chars", "blstats"):
    different = len({observation[name].tobytes() for observation in kept})
    same = np.array_equal(kept[0][name], copies[0][name])
    print(f"{name}: {different} different among them, the first one is what it was {same}")
different = len({observation["chars"].tobytes() for observation in copies})
print(f"copied when they came: more than five different chars {different > 5}")


def game(seeds=None, reset_seed=None):
    """Begin a game; return its map and numbers."""
    if seeds:
        env.unwrapped.seed(*seeds)
    observation, _ = env.reset(seed=reset_seed)
    return observation["chars"].tobytes() + observation["blstats"].tobytes()


print(
    f"reset(seed=11) twice: the same game {game(reset_seed=11) == game(reset_seed=11)}; "
    f"seed(11, 11) and reset twice: the same game {game((11, 11)) == game((11, 11))}"
)
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
