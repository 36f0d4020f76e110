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
    """Observations that are not flat, of which one number counts the time."""

    observation_space = gym.spaces.Box(0, 1, (2, 2), np.float64)

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return observation.reshape(2, 2), info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation.reshape(2, 2), *rest


class Unbounded(Box):
    """Actions without bounds."""

    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Matrix(gym.Env):
    """Actions that are not flat, and whole numbers; keeps what it received."""

    action_space = gym.spaces.Box(-3, np.array([[5, 100], [5, -3]]), (2, 2), np.int64)
    observation_space = gym.spaces.Dict(
        {"place": gym.spaces.Discrete(3), "speed": gym.spaces.Box(-9, 9, (2,), np.float32)}
    )

    def __init__(self, render_mode: str | None = None):
        self.render_mode, self.received = render_mode, []

    def observation(self) -> dict:
        return {"place": len(self.received) % 3, "speed": np.ones(2, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.received = []
        return self.observation(), {}

    def step(self, action):
        self.received.append(action)
        return self.observation(), 1.0, False, len(self.received) == 9, {}


gym.register("Asymmetric-v0", Box)
gym.register("Grid-v0", Grid)
gym.register("Unbounded-v0", Unbounded)
gym.register("Matrix-v0", Matrix)
