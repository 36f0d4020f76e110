"""Small environments of the tests' own, used as `--env-id toys:Id`."""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

OTHERS = {"life_lost": True, "episode": True}  # in an info, names that mean nothing to the scripts


class DelayedCue(gym.Env):
    """Show a cue, ask for an action, and pay for it much later, when the game ends.

    The first screen is white on its left or on its right half. The first action is the decision:
    0 for left, 1 for right. Then `delay` screens count the time, whatever is done, each with the
    decision on it; the last step pays +1 if it was right, −1 if it was wrong. With a delay above
    `num_steps` the reward reaches the decision through the bootstrap value alone.

    Chance: a mean return of 0.
    """

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, delay: int = 6, render_mode: str | None = None):
        self.delay = delay
        self.render_mode = render_mode

    def screen(self) -> np.ndarray:
        screen = np.zeros((84, 84), np.uint8)
        if self.time == 0:
            screen[:, :42] = 255 * (self.cue == 0)
            screen[:, 42:] = 255 * (self.cue == 1)
        else:
            top = 42 * (self.right is False)
            screen[top : top + 42, : 84 * self.time // self.delay] = 255
        return screen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.time, self.right = int(self.np_random.integers(2)), 0, None
        return self.screen(), {}

    def step(self, action):
        if self.time == 0:
            self.right = int(action) == self.cue
        self.time += 1
        terminated = self.time > self.delay
        reward = (1.0 if self.right else -1.0) if terminated else 0.0
        return self.screen(), reward, terminated, False, dict(OTHERS)

    def render(self):
        return np.repeat(self.screen()[:, :, None], 3, axis=2)


class Failing(DelayedCue):
    """Break after 50 steps."""

    steps = 0

    def step(self, action):
        Failing.steps += 1
        if Failing.steps > 50:
            raise ValueError("the joystick broke")
        return super().step(action)


class Meeting(DelayedCue):
    """Begin no game before two runs of reproduce.py have begun, `brief` and `failing`."""

    def reset(self, *, seed=None, options=None):
        deadline = time.monotonic() + 60
        here = Path(tempfile.gettempdir())
        while not all([*here.glob(f"*/{name}_*.lock")] for name in ("brief", "failing")):
            if time.monotonic() > deadline:
                raise TimeoutError("nobody else came")
            time.sleep(0.1)
        return super().reset(seed=seed, options=options)


class MeetingAndFailing(Meeting, Failing):
    """Do both."""


class NotANumber(DelayedCue):
    """Pay a reward that is not a number after 50 steps."""

    steps = 0

    def step(self, action):
        NotANumber.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if NotANumber.steps > 50:
            reward = float("nan")
        return observation, reward, terminated, truncated, info


class WrongScreen(DelayedCue):
    """Give observations of a shape that no script takes: pictures of four colours."""

    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)


class Counting(DelayedCue):
    """Pay three times the action taken, and run out of time after ten steps."""

    def step(self, action):
        self.time += 1
        return self.screen(), 3.0 * int(action), False, self.time == 10, dict(OTHERS)


class Endless(DelayedCue):
    """Never end, and take 20 milliseconds a step: nothing is reported for 20 seconds."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(1_000_000, render_mode)

    def step(self, action):
        time.sleep(0.02)
        return super().step(action)


class Stuck(DelayedCue):
    """Block for ever after 20 steps, and leave a file that says so."""

    steps = 0

    def step(self, action):
        Stuck.steps += 1
        while Stuck.steps > 20:
            Path(f"stuck-{os.getpid()}").touch()
            time.sleep(1)
        return super().step(action)


class OneStuck(Stuck):
    """Block for ever after 20 steps in one worker alone."""

    def step(self, action):
        stuck = multiprocessing.current_process().name == "worker 0"
        return super().step(action) if stuck else DelayedCue.step(self, action)


class Light(DelayedCue):
    """Refuse a new game to a worker that has loaded torch's compiler."""

    def reset(self, *, seed=None, options=None):
        if multiprocessing.parent_process() and "torch._dynamo" in sys.modules:
            raise MemoryError("70 MB for nothing")
        return super().reset(seed=seed, options=options)


class FromOne(DelayedCue):
    """Count the actions from 1."""

    action_space = gym.spaces.Discrete(2, start=1)

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action - 1)


class Lives(gym.Env):
    """Games of 11 steps that lose a life at every fourth; every screen is brighter by 20."""

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros((84, 84), np.uint8), {}

    def step(self, action):
        self.time += 1
        screen = np.full((84, 84), 20 * self.time, np.uint8)
        lost = {"acer-a3c/life_lost": self.time % 4 == 0}
        return screen, 1.0, self.time == 11, False, OTHERS | lost


class InABox(gym.Wrapper):
    """The same environment for the scripts of continuous actions.

    Two dimensions with bounds of their own; the first alone decides: right if above its middle.
    """

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float64)
    action_space = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([0, 4], np.float32))

    def features(self) -> np.ndarray:
        env = self.unwrapped
        decision = 0 if env.right is None else 1 if env.right else -1
        cue = 2 * env.cue - 1 if env.time == 0 else 0
        return np.array([cue, decision, env.time / 8])

    def reset(self, **kwargs):
        _, info = self.env.reset(**kwargs)
        return self.features(), info

    def step(self, action):
        assert self.action_space.contains(action), action
        _, *rest = self.env.step(int(action[0] > -1))
        return self.features(), *rest


class Blind(InABox):
    """See nothing for one step, after 50."""

    steps = 0

    def features(self) -> np.ndarray:
        Blind.steps += 1
        return super().features() * (np.inf if Blind.steps == 50 else 1.0)


gym.register("Lives-v0", Lives)
gym.register("FromOne-v0", FromOne)
gym.register("BlindBox-v0", lambda **kwargs: Blind(DelayedCue(**kwargs)))
ENVIRONMENTS = [
    DelayedCue,
    Failing,
    Meeting,
    MeetingAndFailing,
    NotANumber,
    WrongScreen,
    Counting,
    Endless,
    Stuck,
    OneStuck,
    Light,
]
for environment in ENVIRONMENTS:
    name = environment.__name__
    gym.register(f"{name}-v0", environment)
    gym.register(f"{name}Box-v0", lambda cls=environment, **kwargs: InABox(cls(**kwargs)))
