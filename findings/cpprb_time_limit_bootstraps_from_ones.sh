#!/usr/bin/env bash
# cpprb's n-step replay ends a game that ran out of time on an observation of ones.
#
# Versions: cpprb 11.0.0, numpy 2.4.6, Python 3.11.
# The guess: with an Nstep of 3, a game of four steps that on_episode_end() ends without done leaves
#   four entries, and the last three all have the game's last observation as next_obs.
# What happens: only one has it. In the two after it, which have fewer than three steps left, the
#   rewards are right and done is 0, but next_obs holds ones, which no environment gave: the same in
#   every game and every dimension.
# Why it matters: done = 0 tells the learner to bootstrap there, so that n - 1 targets of each game
#   that a time limit ends rest on the value of an observation of ones. No error is raised. Where done
#   ends a game nobody looks at next_obs, and all is well.
set -euo pipefail

expected='observation 100: next 103 103, reward 1.75, done 0
observation 101: next 104 104, reward 1.75, done 0
observation 102: next 1 1, reward 1.50, done 0
observation 103: next 1 1, reward 1.00, done 0
observation 200: next 203 203, reward 1.75, done 0
observation 201: next 204 204, reward 1.75, done 0
observation 202: next 1 1, reward 1.50, done 0
observation 203: next 1 1, reward 1.00, done 0'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet cpprb==11.0.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import numpy as np
from cpprb import ReplayBuffer

fields = {"obs": {"shape": 2}, "next_obs": {"shape": 2}, "rew": {}, "done": {}}
nstep = {"size": 3, "gamma": 0.5, "rew": "rew", "next": "next_obs"}
replay = ReplayBuffer(100, fields, Nstep=nstep)
for game in (100, 200):
    for step in range(4):
        observation = np.full(2, game + step)
        replay.add(obs=observation, next_obs=observation + 1, rew=1.0, done=0.0)
    replay.on_episode_end()

parts = replay.get_all_transitions()
for obs, following, reward, done in zip(*(parts[name] for name in fields), strict=True):
    following = " ".join(f"{x:g}" for x in following)
    print(f"observation {obs[0]:g}: next {following}, reward {reward[0]:.2f}, done {done[0]:g}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
