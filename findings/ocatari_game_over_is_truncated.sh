#!/usr/bin/env bash
# In OCAtari and HackAtari a game that is over comes as truncated, not terminated.
#
# Versions: ocatari 2.2.1, hackatari 0.0.6, gymnasium 1.4.0, ale-py 0.12.1, numpy 1.26.4, Python 3.11.
# The guess: both are gymnasium environments around ALE's, so step() returns observation, reward,
#   terminated, truncated, info, and a lost game is terminated as it is in ALE.
# What happens: step() returns the two the other way round, as its docstring says in passing: a game
#   that is over comes as terminated=False, truncated=True, and a time limit as terminated. A wrapper
#   that exchanges them is right again.
# Why it matters: a learner that bootstraps at a time limit adds the value of a lost screen to every
#   lost game, so that losing looks like going on, and learns from a time limit that all ends there.
#   Whoever asks `terminated or truncated` alone sees nothing, so that curves merely are worse.
set -euo pipefail

expected='ALE         Breakout: over, with 0 lives: terminated True, truncated False
OCAtari     Breakout: over, with 0 lives: terminated False, truncated True
HackAtari   Breakout: over, with 0 lives: terminated False, truncated True
ALE         Breakout: stopped by a time limit, with 4 lives: terminated False, truncated True
OCAtari     Breakout: stopped by a time limit, with 4 lives: terminated True, truncated False
HackAtari   Breakout: stopped by a time limit, with 5 lives: terminated True, truncated False'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet ocatari==2.2.1 hackatari==0.0.6 gymnasium==1.4.0 \
    ale-py==0.12.1 numpy==1.26.4 opencv-python==4.11.0.86

seen=$(venv/bin/python - 2>errors.txt <<'PY'
import ale_py
import gymnasium as gym
import numpy as np
from hackatari import HackAtari
from ocatari.core import OCAtari

gym.register_envs(ale_py)
NAME = "BreakoutNoFrameskip-v4"
makers = {
    "ALE": gym.make,
    "OCAtari": lambda name, **options: OCAtari(name, obs_mode="ori", **options),
    "HackAtari": lambda name, **options: HackAtari(name, obs_mode="ori", **options),
}


def end(make, **options):
    """Play at random until step() says that it is over; return what it says then."""
    env, rng, over = make(NAME, **options), np.random.default_rng(0), False
    env.reset(seed=1)
    while not over:
        _, _, fourth, fifth, info = env.step(int(rng.integers(env.action_space.n)))
        over = fourth or fifth
    return f"with {info['lives']} lives: terminated {fourth}, truncated {fifth}"


for name, make in makers.items():
    print(f"{name:12}Breakout: over, {end(make)}")
for name, make in makers.items():
    print(f"{name:12}Breakout: stopped by a time limit, {end(make, max_num_frames_per_episode=100)}")
PY
) || { cat errors.txt >&2; exit 1; }
seen=$(echo "$seen" | grep Breakout)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
