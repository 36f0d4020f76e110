"""The wrappers on a scripted game, and the real games through `make_env`."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import a3c_recurrent_atari
import acer_atari
from acer_atari import EPISODE, LIFE_LOST, AtariGame, make_env


class ScriptedGame(gym.Env):
    """An emulator that plays a script of (reward, lives, terminated, truncated), a step each."""

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, script, meanings=("NOOP", "FIRE", "RIGHT")):
        self.script, self.meanings = script, list(meanings)
        self.ale = self
        self.actions, self.resets = [], 0

    def get_action_meanings(self):
        return self.meanings

    def getScreenGrayscale(self):
        return np.full((210, 160), 200, np.uint8)

    def screen(self):
        return np.full((84, 84), len(self.actions), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        return self.screen(), {"lives": 3}

    def step(self, action):
        self.actions.append(int(action))
        reward, lives, terminated, truncated = self.script[len(self.actions) - 1]
        return self.screen(), reward, terminated, truncated, {"lives": lives}


class Redrawn(ScriptedGame):
    """An emulator with one screen in memory, drawn over at every step."""

    memory = np.zeros((84, 84), np.uint8)

    def screen(self):
        self.memory[:] = len(self.actions)
        return self.memory


gym.register("Redrawn-v0", lambda: Redrawn([(0, 3, False, False)] * 6))
gym.register("Scripted-v0", lambda: ScriptedGame([(0, 3, False, False)] * 6))


def play(env, actions):
    """Take actions; return rewards, ends, lost lives and the first pixel of each observation."""
    steps = [env.step(action) for action in actions]
    return (
        [step[1] for step in steps],
        [(step[2], step[3]) for step in steps],
        [step[4][LIFE_LOST] for step in steps],
        [int(step[0].flat[0]) for step in steps],
    )


def test_fire_is_pressed_after_a_reset_and_after_a_lost_life_which_does_not_reset_the_game():
    game = ScriptedGame(
        [(0, 3, False, False)] * 2  # FIRE after the reset, a step
        + [(1, 2, False, False), (5, 2, False, False)]  # a life lost, then FIRE
        + [(0, 2, False, False), (0, 0, True, False)]  # a step, the game's end
    )
    env = AtariGame(game)
    first, _ = env.reset()
    assert game.actions == [1]
    assert first.flat[0] == 1, "the observation after FIRE, not the one before"
    rewards, ends, lost, pixels = play(env, [2, 2, 2, 2])
    assert game.actions == [1, 2, 2, 1, 2, 2]
    assert rewards == [0, 6, 0, 0], "the reward of the step with FIRE is not lost"
    assert ends == [(False, False)] * 3 + [(True, False)]
    assert lost == [False, True, False, True]
    assert pixels[:3] == [2, 4, 5], "after a lost life: the observation after FIRE"
    assert game.resets == 1


def test_a_game_that_ends_while_fire_is_pressed_is_over():
    game = ScriptedGame([(0, 3, False, False), (0, 1, False, False), (0, 0, True, False)])
    env = AtariGame(game)
    env.reset()
    _, _, terminated, truncated, info = env.step(2)
    assert (terminated, truncated, info[LIFE_LOST]) == (True, False, True)


def test_a_game_that_ends_during_the_fire_of_its_reset_is_reset_again():
    game = ScriptedGame([(0, 0, True, False), (0, 3, False, False), (0, 3, False, False)])
    env = AtariGame(game)
    env.reset()
    assert game.resets == 2
    assert env.step(0)[4][LIFE_LOST] is False


def test_a_game_without_fire_is_left_alone():
    game = ScriptedGame([(0, 2, False, False), (0, 2, False, False)], ("NOOP", "RIGHT", "LEFT"))
    env = AtariGame(game)
    env.reset()
    _, _, lost, _ = play(env, [1, 2])
    assert game.actions == [1, 2]
    assert lost == [True, False]


def test_more_lives_are_no_lost_life():
    env = AtariGame(
        ScriptedGame([(0, 3, False, False), (0, 4, False, False), (0, 3, False, False)])
    )
    env.reset()
    assert env.step(2)[4][LIFE_LOST] is False


@pytest.mark.parametrize("end", [(True, False), (False, True)])
def test_the_last_observation_of_a_game_is_its_last_screen(end):
    """The preprocessing stops skipping at a game's end and shows what it saw before."""
    env = AtariGame(ScriptedGame([(0, 3, False, False), (0, 3, *end)]))
    env.reset()
    observation, *_ = env.step(0)
    assert observation.shape == (84, 84)
    assert np.all(observation == 200)


@pytest.mark.parametrize("script", [acer_atari, a3c_recurrent_atari])
def test_a_stack_holds_the_last_four_frames_and_begins_with_copies_of_the_first(script):
    env = script.make_env("Scripted-v0", seed=0)
    observation, _ = env.reset()
    seen = [observation] + [env.step(0)[0] for _ in range(5)]
    firsts = [observation[:, 0, 0].tolist() for observation in seen]
    assert firsts[:4] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3]]
    assert firsts[-1] == [2, 3, 4, 5]
    again, _ = env.reset()
    assert again[:, 0, 0].tolist() == [5] * 4
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("script", [acer_atari, a3c_recurrent_atari])
def test_a_stack_is_right_when_the_environment_draws_on_the_same_array_every_time(script):
    env = script.make_env("Redrawn-v0", seed=0)
    env.reset()
    seen = [env.step(0)[0][:, 0, 0].tolist() for _ in range(4)]
    assert seen == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/Pong-v5"])
def test_both_kinds_of_ids_skip_four_frames_and_keep_their_stickiness(env_id):
    env = make_env(env_id, seed=0)
    env.reset()
    before = env.unwrapped.ale.getEpisodeFrameNumber()
    observation, *_ = env.step(0)
    assert env.unwrapped.ale.getEpisodeFrameNumber() - before == 4
    assert observation.shape == (4, 84, 84)
    assert observation.dtype == np.uint8
    sticky = env.unwrapped.ale.getFloat("repeat_action_probability")
    assert sticky == (0.25 if env_id.startswith("ALE/") else 0.0)


def test_the_emulator_is_asked_for_grey_screens():
    """An RGB screen for each of four frames would be rendered to be thrown away."""
    env = make_env("PongNoFrameskip-v4", seed=0)
    assert env.unwrapped._obs_type == "grayscale"
    assert env.unwrapped.observation_space.shape == (210, 160)


def test_frames_are_the_maximum_of_two_screens_resized():
    """Against the emulator itself, stepped beside the wrappers."""
    import cv2

    env = make_env("SpaceInvadersNoFrameskip-v4", seed=3)
    env.reset()
    other = gym.make("SpaceInvadersNoFrameskip-v4", frameskip=1, obs_type="grayscale").unwrapped
    other.reset()
    for action in [2, 3, 1, 0, 4] * 4:
        other.restore_state(env.unwrapped.clone_state())
        screens = [other.step(action)[0] for _ in range(4)]
        observation, *_ = env.step(action)
        wanted = cv2.resize(np.maximum(*screens[2:]), (84, 84), interpolation=cv2.INTER_AREA)
        assert np.array_equal(observation[-1], wanted)


def test_breakout_does_not_stand_still_after_a_lost_life():
    """Without FIRE after a lost life, a policy that never fires itself waits for ever."""
    env = make_env("BreakoutNoFrameskip-v4", seed=0)
    env.reset()
    lost, steps, episode = 0, 0, None
    while episode is None:
        _, _, _, _, info = env.step(0)
        lost, steps, episode = lost + info[LIFE_LOST], steps + 1, info.get(EPISODE)
        assert steps < 1_000
    assert lost == 5
    assert episode["l"] == steps + 5, "FIRE after the reset and after four lost lives are steps too"


def test_returns_are_of_whole_games_and_unclipped_while_the_learner_sees_signs():
    env = make_env("SpaceInvadersNoFrameskip-v4", seed=1, reward_clip=True)
    rng, episode, seen, lost = np.random.default_rng(0), None, [], 0
    env.reset()
    while episode is None:
        _, reward, _, _, info = env.step(int(rng.integers(env.action_space.n)))
        seen.append(float(reward))
        lost, episode = lost + info[LIFE_LOST], info.get(EPISODE)
    assert lost == 3
    assert set(seen) == {0.0, 1.0}
    assert episode["r"] > 5 * sum(seen) > 0, "an alien is worth 5 to 30"


@pytest.mark.parametrize("script", [acer_atari, a3c_recurrent_atari], ids=lambda s: s.__name__)
@pytest.mark.parametrize(("env_id", "terminated"), [("Counting", False), ("DelayedCue", True)])
def test_a_time_limit_bootstraps_and_an_end_does_not(script, env_id, terminated):
    """Counting runs out of time after ten steps, DelayedCue ends after seven."""
    env, generator = script.make_env(f"toys:{env_id}-v0", 0), torch.Generator().manual_seed(0)
    actor = script.Actor(None, env, None, script.ActorCritic(2), generator)
    segment, episode = actor.act(20, torch.zeros(1, dtype=torch.bool))
    assert segment.terminated is terminated
    assert segment.rewards.sum() == episode["r"]  # the last one, too
    assert len(segment.rewards) == episode["l"] == (7 if terminated else 10)
    assert len(segment.observations) == episode["l"] + 1


def test_rewards_are_as_they_are_without_clipping():
    env = make_env("SpaceInvadersNoFrameskip-v4", seed=1)
    rng, total, episode = np.random.default_rng(0), 0.0, None
    env.reset()
    while episode is None:
        _, reward, _, _, info = env.step(int(rng.integers(env.action_space.n)))
        total, episode = total + float(reward), info.get(EPISODE)
    # The rewards of FIRE at the reset belong to the return, and there are none that early.
    assert total == episode["r"] > 0


def noops_of(seed: int) -> list[int]:
    """Return the frames that each of ten games has seen when it begins."""
    env = make_env("BreakoutNoFrameskip-v4", seed=seed)
    frames = []
    for _ in range(10):
        env.reset()
        frames.append(env.unwrapped.ale.getEpisodeFrameNumber())
    return frames


def test_the_seed_decides_the_games_and_games_differ():
    """The number of no-ops at the start is all that is random in a game without sticky actions."""
    assert noops_of(1) == noops_of(1) != noops_of(2)
    assert len(set(noops_of(1))) > 3


def test_the_seed_decides_which_actions_stick():
    screens = {1: [], 2: []}
    for seed in (1, 1, 2):
        env = make_env("ALE/Pong-v5", seed=seed)
        env.reset()
        game = [env.step(action)[0] for action in [0, 2, 3, 3, 2, 1] * 40]
        screens[seed].append(np.stack(game))
    assert np.array_equal(*screens[1])
    assert not np.array_equal(screens[1][0], screens[2][0])


def test_an_environment_of_the_users_own_needs_no_emulator():
    """It keeps its names in an info to itself; ours are not of Gymnasium's making."""
    env = make_env("toys:DelayedCue-v0", seed=0)
    observation, _ = env.reset()
    assert observation.shape == (4, 84, 84)
    assert not any(isinstance(layer, AtariGame) for layer in layers(env))
    *_, info = env.step(0)
    assert info["episode"] is True
    assert not {EPISODE, LIFE_LOST} & set(info)


@pytest.mark.parametrize("script", [acer_atari, a3c_recurrent_atari])
def test_actions_that_are_counted_from_1_are_taken(script):
    env = script.make_env("toys:FromOne-v0", seed=0)
    assert env.action_space == gym.spaces.Discrete(2)
    for action in (0, 1):
        env.reset()
        env.step(action)
        assert env.unwrapped.right == (action == env.unwrapped.cue)


class Painting(gym.Env):
    """Show a picture of its own making."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, picture: np.ndarray, high: int = 255):
        self.picture = picture
        self.observation_space = gym.spaces.Box(0, high, picture.shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture, {}


def half(shape: tuple[int, ...], bright: int) -> np.ndarray:
    """Draw a picture whose right half is bright."""
    picture = np.zeros(shape, np.uint8)
    picture[:, shape[1] // 2 :] = bright
    return picture


@pytest.mark.parametrize("script", [acer_atari, a3c_recurrent_atari])
@pytest.mark.parametrize(
    ("shape", "bright", "high"),
    [
        ((84, 84), 200, 255),
        ((84, 84, 1), 200, 255),
        ((84, 84, 3), 200, 255),
        ((210, 160, 3), 200, 255),
        ((10, 12), 200, 255),
        ((20, 20, 3), 1, 1),  # 0 and 1: the same as black and white
    ],
)
def test_pictures_of_any_size_become_grey_ones_of_84_by_84(
    script, shape, bright, high, monkeypatch
):
    painting = half(shape, bright)
    monkeypatch.setitem(
        gym.registry, "Painted-v0", gym.envs.registration.EnvSpec("Painted-v0", Painting)
    )
    gym.spec("Painted-v0").kwargs.update(picture=painting, high=high)
    observation, _ = script.make_env("Painted-v0", seed=0).reset()
    assert (observation.shape, observation.dtype) == ((4, 84, 84), np.uint8)
    assert (observation[:, :, :36] == 0).all()
    assert (abs(observation[:, :, 48:].astype(int) - bright * (255 // high)) <= 1).all()


def layers(env):
    while env is not env.unwrapped:
        yield env
        env = env.env


@pytest.mark.parametrize(
    ("env_id", "error", "words"),
    [
        ("Pendulum-v1", ValueError, "Discrete"),
        ("CartPole-v1", ValueError, "uint8"),
        ("toys:WrongScreen-v0", ValueError, r"\[height, width, 3\]"),
        ("PangNoFrameskip-v4", gym.error.NameNotFound, "Pong"),
        ("no_such_module:Id-v0", ImportError, "no_such_module"),
    ],
)
def test_an_environment_that_will_not_do_is_refused_with_the_reason(env_id, error, words):
    with pytest.raises(error, match=words):
        make_env(env_id, seed=0)


def test_the_emulator_prints_no_banner():
    code = "import acer_atari; acer_atari.make_env('PongNoFrameskip-v4', 0).reset()"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout + process.stderr == ""
