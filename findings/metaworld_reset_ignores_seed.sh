#!/usr/bin/env bash
# Meta-World's reset(seed) decides nothing: the goals are drawn when the environment is made.
#
# Versions: metaworld 3.0.0, mujoco 3.10.0, gymnasium 1.4.0, numpy 2.4.6, Python 3.11.
# The guess: gym.make("Meta-World/MT1", env_name=...) follows Gymnasium: reset(seed=7) fixes the
#   goal, and what all resets after it draw.
# What happens: three resets with one seed give three goals, and another environment gives three
#   others. Only the argument seed= of gym.make decides: with it all environments draw the same
#   goals in the same order, whatever reset is told, from the first reset on.
# Why it matters: a script that seeds as Gymnasium says cannot be repeated. And with the argument,
#   eight workers that are made with the same arguments practise the same goals in step, where
#   eight different sequences were wanted.
set -euo pipefail

expected='reset(seed=7) three times: 3 goals
another environment, the same seed: alike False
made with seed=1, resets with 7 and with 8: alike True
made with seed=1, and with seed=2: alike False'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet metaworld==3.0.0 mujoco==3.10.0 \
    'gymnasium[mujoco]==1.4.0' numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import gymnasium as gym
import metaworld  # noqa: F401


def goals(reset_seed, **options):
    """Return the goals of three games, each with a reset of the same seed."""
    env, found = gym.make("Meta-World/MT1", env_name="reach-v3", **options), []
    for _ in range(3):
        observation, _ = env.reset(seed=reset_seed)
        found.append(tuple(env.unwrapped._target_pos))
    return found


first = goals(7)
print(f"reset(seed=7) three times: {len(set(first))} goals")
print(f"another environment, the same seed: alike {goals(7) == first}")
print(f"made with seed=1, resets with 7 and with 8: alike {goals(7, seed=1) == goals(8, seed=1)}")
print(f"made with seed=1, and with seed=2: alike {goals(7, seed=1) == goals(7, seed=2)}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
