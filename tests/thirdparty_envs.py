"""Other packages' environments that need a line of code first, used as `thirdparty_envs:Id`.

Those that wrap one of several are told which in `--env-kwargs`, and hand the rest of them on:

    --env-id thirdparty_envs:Vizdoom-v0 --env-kwargs '{"name": "VizdoomTakeCover-v1"}'
"""

import gymnasium as gym
import numpy as np


def minigrid(name: str, **options) -> gym.Env:
    """Give what the agent sees as an RGB picture, and neither its direction nor its mission."""
    from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

    return ImgObsWrapper(RGBImgPartialObsWrapper(gym.make(name, **options)))


def vizdoom(name: str, **options) -> gym.Env:
    """Give the screen alone, and none of the game's variables."""
    env = gym.make(f"vizdoom.gymnasium_wrapper:{name}", **options)
    space = env.observation_space["screen"]
    return gym.wrappers.TransformObservation(env, lambda seen: seen["screen"], space)


def weighted_sum(name: str, weights: list[float], **options) -> gym.Env:
    """Add several rewards up, each times its weight."""
    from mo_gymnasium.wrappers import LinearReward

    env = gym.make(name, disable_env_checker=True, **options)  # which wants a single reward
    return LinearReward(env, weight=np.array(weights))


def flappy_bird(**options) -> gym.Env:
    """Give the picture that the game draws in place of its numbers."""
    options["render_mode"] = "rgb_array"
    env = gym.make("flappy_bird_gymnasium:FlappyBird-v0", **options)
    return gym.wrappers.AddRenderObservation(env, render_only=True)


def tetris(**options) -> gym.Env:
    """Give the board and what comes next as an RGB picture."""
    from tetris_gymnasium.envs import tetris  # noqa: F401
    from tetris_gymnasium.wrappers.observation import RgbObservation

    return RgbObservation(gym.make("tetris_gymnasium/Tetris", **options))


def retro(game: str, **options) -> gym.Env:
    """Give a console's game a number for each useful combination of its buttons."""
    import stable_retro

    buttons = stable_retro.Actions.DISCRETE
    return stable_retro.make(game, use_restricted_actions=buttons, **options)


class HackAtari(gym.Wrapper):
    """Say of an end what Gymnasium says, since OCAtari returns truncated before terminated."""

    def __init__(self, name: str, **options):
        from hackatari import HackAtari

        super().__init__(HackAtari(name, obs_mode="ori", dopamine_pooling=True, **options))

    def step(self, action):
        observation, reward, truncated, terminated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info


gym.register("HackAtari-v0", HackAtari)
gym.register("MiniGrid-v0", minigrid)
gym.register("Tetris-v0", tetris)
gym.register("Retro-v0", retro)
gym.register("Vizdoom-v0", vizdoom)
gym.register("Sum-v0", weighted_sum)
gym.register("FlappyBird-v0", flappy_bird)
