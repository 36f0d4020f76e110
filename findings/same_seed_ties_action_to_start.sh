#!/usr/bin/env bash
# One seed for a Gymnasium environment and its action space ties its first random action to its
# start.
#
# Versions: gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: env.reset(seed=s) and env.action_space.seed(s) seed two generators, so random actions
#   do not depend on the start of the episode. Many training scripts have exactly these lines.
# What happens: both make the same generator from the same seed. In Pendulum-v1 the first angle and
#   the first action are then the same uniform number on two scales: over a thousand seeds their
#   correlation is 1. The second number of the start is the second action in the same way. With
#   another seed for the action space the correlation is that of chance.
# Why it matters: exploration before learning starts, a baseline of a random policy and a test with
#   random actions all see only actions that fit the start. An average over seeds does not help,
#   since the tie is the same for each of them.
set -euo pipefail

expected='same seed: correlation of angle and first action 1.000, velocity and second 1.000
seed + 1000: below 0.1 in size True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet gymnasium==1.4.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import gymnasium as gym
import numpy as np


def correlations(shift):
    """Return the correlation of each number of the start with the action of the same place."""
    env = gym.make("Pendulum-v1")
    starts, actions = [], []
    for seed in range(1000):
        env.reset(seed=seed)
        env.action_space.seed(seed + shift)
        starts.append(env.unwrapped.state.copy())
        actions.append([env.action_space.sample()[0] for _ in range(2)])
    starts, actions = np.array(starts), np.array(actions)
    return [np.corrcoef(starts[:, i], actions[:, i])[0, 1] for i in range(2)]


first, second = correlations(0)
label = f"same seed: correlation of angle and first action {first:.3f}"
print(f"{label}, velocity and second {second:.3f}")
print(f"seed + 1000: below 0.1 in size {max(map(abs, correlations(1000))) < 0.1}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
