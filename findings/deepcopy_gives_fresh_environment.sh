#!/usr/bin/env bash
# copy.deepcopy of a Gymnasium environment may give a fresh one instead of a copy.
#
# Versions: gymnasium 1.4.0, mujoco 4.0.0, ale-py 0.12.1, numpy 2.4.6, Python 3.11.
# The guess: a deep copy has the state of the original, as it does for CartPole-v1, or raises an
#   error where native code cannot be copied.
# What happens: MuJoCo's and Atari's environments copy by calling their constructor again with the
#   same arguments. The copy of a robot that has walked twenty steps stands in the model's rest
#   position, that of an Atari game at frame 0, neither was reset, the generator is another, and
#   step() works. The wrappers around it are true copies and know the old step count.
# Why it matters: a tree search, a look-ahead or an evaluation "from here" that copies the
#   environment searches from the wrong state and reports plausible returns.
set -euo pipefail

expected='CartPole-v1: copy has the state of the original True
HalfCheetah-v5: copy has the state of the original False, the rest position True
HalfCheetah-v5: time limit of the copy has counted 20 steps, step() works True
ALE/Pong-v5: frame of the original 80, frame of the copy 0'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet 'gymnasium[mujoco]==1.4.0' mujoco==4.0.0 \
    ale-py==0.12.1 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import copy

import ale_py
import gymnasium as gym
import numpy as np

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def play(name):
    """Return an environment after twenty random steps, and its deep copy."""
    env = gym.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(20):
        _, _, terminated, _, _ = env.step(env.action_space.sample())
        if terminated:
            break
    return env, copy.deepcopy(env)


env, twin = play("CartPole-v1")
same = np.array_equal(env.unwrapped.state, twin.unwrapped.state)
print(f"CartPole-v1: copy has the state of the original {same}")
env, twin = play("HalfCheetah-v5")
here, there = env.unwrapped.data.qpos, twin.unwrapped.data.qpos
same, rest = np.array_equal(here, there), np.array_equal(there, twin.unwrapped.init_qpos)
label = "HalfCheetah-v5: copy has the state of the original"
print(f"{label} {same}, the rest position {rest}")
counted = twin.get_wrapper_attr("_elapsed_steps")
reward = twin.step(np.ones(6, np.float32))[1]
label = f"HalfCheetah-v5: time limit of the copy has counted {counted} steps"
print(f"{label}, step() works {bool(np.isfinite(reward))}")
env, twin = play("ALE/Pong-v5")
frames = [each.unwrapped.ale.getEpisodeFrameNumber() for each in (env, twin)]
print(f"ALE/Pong-v5: frame of the original {frames[0]}, frame of the copy {frames[1]}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
