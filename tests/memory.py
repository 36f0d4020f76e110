"""A task that cannot be solved without memory, used as `--env-id memory:Remember-v0`."""

import gymnasium as gym
import numpy as np


class Remember(gym.Env):
    """Show a cue on the first screen, then nothing for `delay` screens, then ask for it.

    The cue is white on the left or the right half. The last screen is grey: the action taken on it
    pays +1 if it names the cue (0 left, 1 right) and −1 if not, and the game ends. All other
    actions do nothing. With a delay of 10 the cue left the stack of four frames seven steps ago.

    Chance, and all that a policy without memory can reach: a mean return of 0.
    """

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, delay: int = 10, render_mode: str | None = None):
        self.delay = delay
        self.render_mode = render_mode

    def screen(self) -> np.ndarray:
        screen = np.zeros((84, 84), np.uint8)
        if self.time == 0:
            screen[:, 42 * self.cue : 42 * (self.cue + 1)] = 255
        elif self.time > self.delay:
            screen[:] = 128
        return screen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(2)), 0
        return self.screen(), {}

    def step(self, action):
        asked = self.time > self.delay
        reward = (1.0 if int(action) == self.cue else -1.0) if asked else 0.0
        self.time += 1
        return self.screen(), reward, asked, False, {}


gym.register("Remember-v0", Remember)
