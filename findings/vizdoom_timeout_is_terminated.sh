#!/usr/bin/env bash
# A ViZDoom episode that runs out of time ends as terminated.
#
# Versions: vizdoom 1.3.2, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: when a scenario's time is over, step() returns terminated=False, truncated=True, as
#   Gymnasium's TimeLimit does. The environment's setting treat_episode_timeout_as_truncation=True,
#   which is the default, says so.
# What happens: the time-out returns both as True, since "terminated" means that Doom's episode is
#   over for any reason. The last screen is black as well, in every kind of ending.
# Why it matters: code that bootstraps from the last observation unless terminated is True takes
#   the value of the end to be 0 at each time limit. Code that asks truncated first bootstraps from
#   the value of a black picture that no policy has ever acted on. Neither raises an error.
set -euo pipefail

expected='VizdoomBasic-v1, out of time after 300 steps: terminated True, truncated True, brightest 0
VizdoomMyWayHome-v1, out of time after 2100 steps: terminated True, truncated True, brightest 0
VizdoomBasic-v1, goal reached before time: terminated True, truncated False, brightest 0'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet vizdoom==1.3.2 gymnasium==1.4.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import gymnasium as gym
import numpy as np
import vizdoom.gymnasium_wrapper  # noqa: F401


def play(env, seed, choose):
    """Play one episode; return its number of steps and how it ended."""
    env.reset(seed=seed)
    steps, over = 0, False
    while not over:
        observation, _, terminated, truncated, _ = env.step(choose())
        steps += 1
        over = terminated or truncated
    ending = f"terminated {terminated}, truncated {truncated}"
    return steps, f"{ending}, brightest {observation['screen'].max()}"


for name in ("VizdoomBasic-v1", "VizdoomMyWayHome-v1"):
    env = gym.make(name)
    steps, ending = play(env, 0, lambda: 0)
    assert steps == env.unwrapped.game.get_episode_timeout()
    print(f"{name}, out of time after {steps} steps: {ending}")
env, rng, steps, seed = gym.make("VizdoomBasic-v1"), np.random.default_rng(0), 300, 0
while steps == 300:
    seed += 1
    steps, ending = play(env, seed, lambda: int(rng.integers(env.action_space.n)))
print(f"VizdoomBasic-v1, goal reached before time: {ending}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
