#!/usr/bin/env bash
# ALE's own vector environment starts a new game at every lost life if it is told episodic_life.
#
# Versions: ale-py 0.12.1, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: episodic_life ends an episode where a life is lost and goes on with the next life, as
#   OpenAI baselines' and Stable-Baselines3's EpisodicLifeEnv do; a reset of the game follows the
#   last life alone.
# What happens: the step after a lost life shows the game's very first screen, pixel by pixel, and
#   all five lives. In 2,000 random steps of Breakout 52 lives are lost, each the first of its game.
#   With life_loss_info instead, the same actions lose a game's lives one after the other.
# Why it matters: an agent that is trained so has never seen a wall half broken down by an earlier
#   life, and is then judged by games of five lives; returns of an episode are those of one life.
set -euo pipefail

expected='episodic_life: 52 lives lost, lives left then {4: 52}, first screen again after 52 of 52
life_loss_info: 51 lives lost, lives left then {0: 10, 1: 10, 2: 10, 3: 10, 4: 11}, first screen again after 10 of 51'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
from collections import Counter

import numpy as np
from ale_py.vector_env import AtariVectorEnv

for option in ("episodic_life", "life_loss_info"):
    envs = AtariVectorEnv("breakout", 1, noop_max=0, use_fire_reset=False, **{option: True})
    first, _ = envs.reset(seed=1)
    left, again, ended = [], 0, False
    for action in np.random.default_rng(0).integers(4, size=2000):
        screen, _, terminated, _, info = envs.step(np.array([action]))
        again += ended and np.array_equal(screen[0, -1], first[0, -1])
        if ended := bool(terminated[0]):
            left.append(int(info["lives"][0]))
    counts = dict(sorted(Counter(left).items()))
    print(
        f"{option}: {len(left)} lives lost, lives left then {counts}, "
        f"first screen again after {again} of {len(left)}"
    )
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
