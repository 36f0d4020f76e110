"""Environments with spaces that the continuous scripts must take or refuse, as `boxes:Id`."""

import gymnasium as gym
import numpy as np


class Box(gym.Env):
    """Give what was asked of it back: the observation is the action received, and the time."""

    action_space = gym.spaces.Box(
        np.array([-2, 0, 10], np.float32), np.array([0, 4, 11], np.float32)
    )
    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def __init__(self, limit: int = 5, render_mode: str | None = None):
        self.limit, self.render_mode, self.time = limit, render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.array([*self.np_random.normal(size=3), 0.0]), {}

    def step(self, action):
        self.time += 1
        return np.array([*action, self.time]), -7.0, False, self.time == self.limit, {}


class Grid(Box):
    """Observations that are not flat."""

    observation_space = gym.spaces.Box(0, 1, (4, 4), np.float64)


class Unbounded(Box):
    """Actions without bounds."""

    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Matrix(Box):
    """Actions that are not flat."""

    action_space = gym.spaces.Box(-1, 1, (2, 2), np.float32)


gym.register("Asymmetric-v0", Box)
gym.register("Grid-v0", Grid)
gym.register("Unbounded-v0", Unbounded)
gym.register("Matrix-v0", Matrix)
