#!/usr/bin/env bash
# NormalizeReward carries rewards into the next episode, and scales BipedalWalker's to a fifth.
#
# Versions: gymnasium 1.4.0, stable-baselines3 2.9.2, numpy 2.4.6, Python 3.11.
# The guess: Gymnasium's wrappers and the VecNormalize of Stable-Baselines3 divide rewards by the
#   standard deviation of the discounted return that was collected in an episode so far
#   (γ = 0.99), so that both give about the same numbers.
# What happens: Gymnasium's wrapper for one environment forgets what was collected at the step that
#   terminates, when the last reward is about to be added, and not afterwards: the last reward alone
#   is carried into the next episode, and after a time limit all of it is. A fall costs 100 in
#   BipedalWalker, so that most episodes of random actions begin at -99. Its wrapper for vectors
#   does the same with the autoreset of the next step, the default; with that of the same step it
#   agrees with Stable-Baselines3.
# Why it matters: rewards are what step sizes and coefficients are tuned for. The same settings meet
#   rewards 5.1 times as large in BipedalWalker, and 2.7 times in FrozenLake, where the other
#   library's wrapper, or the other autoreset, takes the place of Gymnasium's.
set -euo pipefail

expected='FrozenLake-v1, deviation beside stable-baselines3: gymnasium 2.7, vector NEXT_STEP 2.7, vector SAME_STEP 1.0
BipedalWalker-v3, deviation beside stable-baselines3: gymnasium 5.1, vector NEXT_STEP 5.1, vector SAME_STEP 1.0'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "gymnasium[box2d,toy-text]==1.4.0" stable-baselines3==2.9.2 \
    torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.vector import NormalizeReward as NormalizeRewards
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize


def record(name):
    """Play 20,000 random steps; return what each gave."""
    env = gym.make(name)
    env.action_space.seed(0)
    env.reset(seed=0)
    steps = []
    for _ in range(20_000):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        steps.append((float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            env.reset()
    return steps


class Recorded(gym.Env):
    """Give the rewards and ends of recorded steps again, so that every wrapper sees the same."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, steps):
        self.steps = iter(steps)

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), *next(self.steps), {}


def play(step, reset=lambda: None):
    """Step until the record ends; `reset` after each episode."""
    try:
        while True:
            if np.any(step()[2:4]):
                reset()
    except StopIteration:
        pass


for name in ("FrozenLake-v1", "BipedalWalker-v3"):
    steps, found = record(name), {}
    sb3 = VecNormalize(DummyVecEnv([lambda: Recorded(steps)]), norm_obs=False, gamma=0.99)
    sb3.reset()
    play(lambda: sb3.step(np.zeros(1, np.int64))[:2] + (False, False))
    env = NormalizeReward(Recorded(steps), gamma=0.99)
    env.reset()
    play(lambda: env.step(0), env.reset)
    found["gymnasium"] = env.return_rms.var
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        envs = NormalizeRewards(SyncVectorEnv([lambda: Recorded(steps)], autoreset_mode=mode), 0.99)
        envs.reset()
        play(lambda: envs.step(np.zeros(1, np.int64)))
        found[f"vector {mode.name}"] = envs.return_rms.var
    ratios = [f"{how} {np.sqrt(var / sb3.ret_rms.var):.1f}" for how, var in found.items()]
    print(f"{name}, deviation beside stable-baselines3: {', '.join(ratios)}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
