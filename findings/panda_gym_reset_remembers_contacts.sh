#!/usr/bin/env bash
# A seeded reset of panda-gym does not repeat an episode: the game before leaves its contacts.
#
# Versions: panda-gym 3.0.7, pybullet 3.2.7, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: reset(seed=7) and the same actions give the same episode, whatever was played before,
#   as they do in MuJoCo's, Box2D's and Atari's environments and, on PyBullet too, in PyFlyt's.
# What happens: the first observation is the same bit by bit, the episode is not. reset() puts
#   robot and objects back but keeps Bullet's world, whose contact solver starts from the forces of
#   the last contacts. Only in two environments that were just made is the episode the same.
#   PandaReach-v3, where nothing is touched but for the table under it, is not concerned.
# Why it matters: after 50 random steps the cube lay up to 5 mm off, turned differently. A policy
#   that holds it makes more of that: returns of fixed seeds depend on the order in which they are
#   played, and recorded actions need not succeed again in the environment that they came from.
set -euo pipefail

expected='PandaReach-v3: two new environments alike True; after a game: start alike True, episode alike True
PandaPush-v3: two new environments alike True; after a game: start alike True, episode alike False
PandaPickAndPlace-v3: two new environments alike True; after a game: start alike True, episode alike False
PandaPickAndPlace-v3: the cube is more than a millimetre off True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet panda-gym==3.0.7 pybullet==3.2.7 gymnasium==1.4.0 \
    numpy==2.4.6

seen=$(venv/bin/python - <<'PY' | grep -v '^argv'
import gymnasium as gym
import numpy as np
import panda_gym  # noqa: F401


def play(env, seed, actions):
    """Return what is seen of the robot and the objects in the 50 steps of an episode."""
    env.action_space.seed(actions)
    seen = [env.reset(seed=seed)[0]["observation"]]
    for _ in range(50):
        seen.append(env.step(env.action_space.sample())[0]["observation"])
    return np.array(seen)


for name in ("PandaReach-v3", "PandaPush-v3", "PandaPickAndPlace-v3"):
    first, second = (play(gym.make(name), 7, 57) for _ in range(2))
    env = gym.make(name)
    for seed in (100, 101, 102):
        play(env, seed, 27)
    after = play(env, 7, 57)
    print(
        f"{name}: two new environments alike {np.array_equal(first, second)}; after a game: "
        f"start alike {np.array_equal(first[0], after[0])}, "
        f"episode alike {np.array_equal(first, after)}"
    )
difference = np.abs(first[:, 7:10] - after[:, 7:10]).max()  # of the cube's position, in metres
print(f"{name}: the cube is more than a millimetre off {difference > 0.001}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
