"""What both continuous scripts have: environments, actions, observation statistics."""

import math
import os
import sys
from fractions import Fraction
from types import SimpleNamespace

import boxes
import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
import toys
from gymnasium.envs.mujoco import mujoco_rendering
from harness import CONTINUOUS, make_shared, module, weights_file

TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "Reacher-v5"]


@pytest.fixture(params=CONTINUOUS)
def script(request):
    return module(request.param)


def name_of(script) -> str:
    return script.__name__


def actor_in(script, env_id: str, flags: str = ""):
    """Return an actor of an untrained network in an environment, and what is shared."""
    args = script.parse_args(["--env-id", env_id, *flags.split()])
    shared = make_shared(name_of(script), args)
    env, generator = script.make_env(env_id, 0), torch.Generator().manual_seed(0)
    return script.Actor(args, env, shared, shared.model, generator), shared


def test_actions_are_clipped_and_rescaled_to_the_bounds_of_their_dimension(script):
    env = script.make_env("boxes:Asymmetric-v0", 0)
    env.reset()
    for action, wanted in [
        ([-1, -1, -1], [-2, 0, 10]),
        ([1, 1, 1], [0, 4, 11]),
        ([0, 0.5, -0.5], [-1, 3, 10.25]),
        ([-7, 7, 0], [-2, 4, 10.5]),
    ]:
        observation, *_ = env.step(np.array(action, np.float32))
        np.testing.assert_allclose(observation[:3], wanted, atol=1e-6)
        assert observation.dtype == np.float64


def test_returns_are_of_rewards_as_they_are(script):
    env = script.make_env("boxes:Asymmetric-v0", 0)
    env.reset()
    rewards, info = [], {}
    while script.EPISODE not in info:
        _, reward, terminated, truncated, info = env.step(np.zeros(3, np.float32))
        rewards.append(reward)
    assert rewards == [-7] * 5
    assert (terminated, truncated) == (False, True)
    assert float(info[script.EPISODE]["r"]) == -35


def test_the_seed_decides_the_episode(script):
    first, again, other = (script.make_env("Hopper-v5", seed).reset()[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_time_limit_bootstraps_and_an_end_does_not(script):
    """Pendulum ends by its time limit alone; the inverted pendulum falls within a few steps."""
    for env_id, wanted in (("Pendulum-v1", False), ("InvertedPendulum-v5", True)):
        actor, shared = actor_in(script, env_id)
        segment, episode = actor.act(1000, shared.stop)
        assert episode is not None
        assert segment.terminated is wanted
        assert len(segment.observations) == len(segment.rewards) + 1 == int(episode["l"]) + 1


def set_policy(script, model, mean: float, std: float) -> None:
    """Let the policy give one mean and, where it is learned, one deviation."""
    acer = name_of(script) == "acer_continuous"
    last = (model.policy if acer else model.policy_net)[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(mean)
        if not acer:
            model.log_std.fill_(math.log(std))


def std_flag(script, std: float) -> str:
    return f"--policy-std {std}" if name_of(script) == "acer_continuous" else ""


def test_the_learner_keeps_actions_as_sampled_where_the_environment_clips(script):
    """The density of an action is that of what was drawn, not of what the bounds left of it."""
    actor, shared = actor_in(script, "boxes:Asymmetric-v0", std_flag(script, 1.0))
    set_policy(script, shared.model, 3.0, 1.0)
    segment, _ = actor.act(4, shared.stop)
    drawn = 3 + torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert (drawn > 1).float().mean() > 0.9
    torch.testing.assert_close(segment.actions, drawn)
    bounds = torch.tensor([[-2.0, 0, 10], [0, 4, 11]])  # the environment shows what it was given
    received = bounds[0] + (drawn.clamp(-1, 1) + 1) / 2 * (bounds[1] - bounds[0])
    torch.testing.assert_close(segment.observations[1:, :3].float(), received)


class Received(gym.Env):
    """Keep the last action received."""

    observation_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, action_space):
        self.action_space = action_space

    def step(self, action):
        self.action = action
        return np.zeros(1, np.float32), 0.0, False, False, {}


LIMITS = [-1, 1, 0, -1.5, 1.5, 3e38, -3e38, np.inf, -np.inf, 1 - 2**-24, -1 + 2**-24]


def bounds_of(kind, shape, rng):
    """Draw lower and upper bounds that a type can hold; some are equal, some as far as it goes."""
    if np.dtype(kind).kind in "iu":
        least, most = (0, 255) if kind == np.uint8 else (-(2**53) + 1, 2**53 - 1)
        scale = int(rng.choice([3, 255, most]))
        ends = [rng.integers(max(least, -scale), min(most, scale) + 1, shape) for _ in range(2)]
    else:
        limit = np.log10(float(np.finfo(kind).max))
        ends = [rng.normal(size=shape) * 10 ** rng.uniform(-4, min(limit, 300) - 1.5)]
        ends.append(rng.choice([0.0, 1.0, -1.0, 1e-3]) * ends[0] + rng.normal(size=shape))
    low, high = (np.asarray(x).astype(kind) for x in (np.minimum(*ends), np.maximum(*ends)))
    if rng.random() < 0.1 and np.dtype(kind).kind == "f":
        low, high = (np.full(shape, sign * np.finfo(kind).max, kind) for sign in (-1, 1))
    return low, np.where(rng.random(shape) < 0.1, low, high).astype(kind)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float16, np.float32, np.float64])
def test_what_reaches_an_environment_is_an_action_of_its_own_whatever_its_bounds(
    script, kind, shape
):
    """Exactly the bounds at ±1 and beyond; between them what fractions without rounding say."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        low, high = bounds_of(kind, shape, rng)
        space = gym.spaces.Box(low, high, shape, kind)
        env = Received(space)
        wrapped = script.Control(env)
        size = math.prod(shape)
        assert wrapped.action_space == gym.spaces.Box(-1, 1, (size,), np.float32)
        for given in [*rng.uniform(-1.1, 1.1, (5, size)), *(x * np.ones(size) for x in LIMITS)]:
            given = given.astype(np.float32)
            wrapped.step(given)
            assert space.contains(env.action), (low, high, given, env.action)
            for one, a, b, x in zip(
                given, low.flat, high.flat, np.asarray(env.action).flat, strict=True
            ):
                a, b, x = Fraction(a.item()), Fraction(b.item()), Fraction(x.item())
                share = (Fraction(float(np.clip(one, -1, 1))) + 1) / 2
                wanted = a + share * (b - a)
                if share in (0, 1):
                    assert x == wanted
                else:
                    rounding = Fraction(2) ** -50 * max(abs(a), abs(b))
                    assert abs(x - wanted) <= rounding + step_of(kind, wanted)


def step_of(kind, wanted: Fraction) -> Fraction:
    """Return half the distance between numbers of a type beside one, and a little."""
    if np.dtype(kind).kind in "iu":
        return Fraction(51, 100)
    info = np.finfo(kind)
    distance = Fraction(float(info.eps)) * abs(wanted) + Fraction(float(info.smallest_subnormal))
    return distance * Fraction(51, 100)


def test_actions_of_any_shape_and_observations_of_several_parts(script):
    """Whole numbers in a matrix, one of which is fixed; a Dict becomes a row of numbers."""
    actor, shared = actor_in(script, "boxes:Matrix-v0")
    segment, episode = actor.act(20, shared.stop)
    assert segment.actions.shape == (9, 4)
    assert (float(episode["r"]), episode["l"]) == (9, 9)
    received = np.array(actor.env.unwrapped.received)
    assert received.dtype == np.int64
    assert (received[:, 1, 1] == -3).all()
    assert len(np.unique(received[:, 0, 1])) > 5
    one_hot = torch.eye(3, dtype=torch.float64)[torch.arange(10) % 3]
    assert torch.equal(segment.observations[:, :3], one_hot)
    assert torch.equal(segment.observations[:, 3:], torch.ones(10, 2, dtype=torch.float64))


def test_observations_in_rows_and_columns_are_taken_row_by_row(script):
    actor, shared = actor_in(script, "boxes:Grid-v0")
    segment, _ = actor.act(3, shared.stop)
    assert segment.observations[:, 3].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("env_id", TASKS)
def test_real_physics_trains_and_leaves_no_file_behind(
    script, env_id, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    flags = f"--env-id {env_id} --num-workers 1 --total-timesteps 200 --run-dir run"
    if name_of(script) == "acer_continuous":
        flags += " --replay-start 60 --replay-ratio 2"
    args = script.parse_args(flags.split())
    shared = make_shared(name_of(script), args)
    before = [p.detach().clone() for p in shared.model.parameters()]
    script.worker(0, args, shared, SimpleNamespace(send=lambda message: None))
    after = list(shared.model.parameters())
    assert shared.steps() == 200
    assert all(p.isfinite().all() for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert list(tmp_path.iterdir()) == []
    assert "WARNING" not in "".join(capfd.readouterr())


# Observation statistics ===========================================================================


def observe(script, data: np.ndarray, parts: int = 60, num_workers: int = 2):
    """Let workers see an equal number of parts of the data, [N, D], in turns."""
    observed = script.ObservationStatistics(num_workers, data.shape[1], True)
    for number, part in enumerate(np.array_split(data, parts)):
        observed.add(number % num_workers, torch.from_numpy(part))
    return observed


def test_statistics_of_several_workers_are_those_of_all_their_observations(script):
    """Also of those that a resumed run saw before, which the last row holds."""
    data = np.random.default_rng(0).normal([5, -300, 0], [0.1, 40, 1e-3], size=(5000, 3))
    observed = observe(script, data[:4000])
    observed.rows[-1] = observe(script, data[4000:], 7, 1).total()
    wanted = np.stack([np.full(3, 5000.0), data.mean(0), 5000 * data.var(0)])
    np.testing.assert_allclose(observed.total(), wanted, rtol=1e-10, atol=1e-12)
    normalizer = observed.normalizer()
    normal = np.clip((data - data.mean(0)) / data.std(0), -10, 10)
    np.testing.assert_allclose(normalizer(torch.from_numpy(data)), normal, rtol=1e-5, atol=1e-6)
    assert normalizer(torch.full((3,), 1e6).double()).tolist() == [10, 10, 10]
    assert normalizer(torch.full((3,), -1e6).double()).tolist() == [-10, -10, -10]


def test_pooling_is_the_direct_computation_on_all_parts_together(script):
    rng = np.random.default_rng(1)
    parts = [rng.normal(rng.normal(), 2, size=(n, 4)) for n in (1, 2, 50, 7)]
    rows = [np.stack([np.full(4, len(x)), x.mean(0), len(x) * x.var(0)]) for x in parts]
    rows.insert(2, np.zeros((3, 4)))  # a worker that has seen nothing yet
    together = np.concatenate(parts)
    wanted = np.stack([np.full(4, 60), together.mean(0), 60 * together.var(0)])
    pooled = script.pool(torch.from_numpy(np.stack(rows)))
    np.testing.assert_allclose(pooled, wanted, rtol=1e-12)
    assert not script.pool(torch.zeros(3, 3, 4)).any()


def test_what_is_small_beside_a_constant_keeps_its_variance(script):
    """1e9 + x, of which float64 holds seven digits behind the point."""
    x = np.random.default_rng(0).normal(size=(5000, 1))
    observed = observe(script, 1e9 + x)
    deviation = float((observed.total()[2] / 5000).sqrt())
    assert deviation == pytest.approx(x.std(), rel=1e-6)
    normal = observed.normalizer()(torch.from_numpy(1e9 + x))
    np.testing.assert_allclose(normal, (x - x.mean()) / x.std(), atol=1e-6)


def test_units_make_no_difference(script):
    x = np.random.default_rng(0).normal(size=(3000, 2))
    seen = []
    for y in (x, x * 1e-6, x * 1e6, x + 1e6, x * 1e-150):
        seen.append(observe(script, y).normalizer()(torch.from_numpy(y)))
    for normal in seen[1:]:
        torch.testing.assert_close(normal, seen[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9 / 3, 1e-300])
def test_a_dimension_that_never_changes_is_0_and_not_its_rounding(script, constant):
    data = np.full((5000, 2), constant)
    data[:, 1] = np.random.default_rng(0).normal(size=5000)
    normalizer = observe(script, data, 701, 3).normalizer()
    normal = normalizer(torch.from_numpy(data))
    assert normal[:, 0].abs().max() < 1e-6
    assert float(normal[:, 1].std()) == pytest.approx(1, abs=1e-3)
    assert normalizer(torch.tensor([constant + 1, 0.0]).double()).isfinite().all()


def test_without_statistics_and_when_switched_off_observations_stay_as_they_are(script):
    x = torch.tensor([[3.0, -4000.0]], dtype=torch.float64)
    assert torch.equal(script.ObservationStatistics(2, 2, True).normalizer()(x), x.float())
    observed = script.ObservationStatistics(2, 2, False)
    observed.add(0, torch.randn(10, 2).double())
    assert torch.equal(observed.normalizer()(x), x.float())


# Evaluation =======================================================================================


def evaluation(script, tmp_path, flags: str, change) -> list[str]:
    """Write weights that `change` has been at; return the arguments that evaluate them."""
    args = script.parse_args(f"--env-id boxes:Asymmetric-v0 --num-workers 2 {flags}".split())
    shared = make_shared(name_of(script), args)
    change(shared)
    torch.save(weights_file(name_of(script), args, shared), tmp_path / "weights.pt")
    return f"--evaluate {tmp_path}/weights.pt --env-id boxes:Asymmetric-v0".split()


def observations_of_networks(script, monkeypatch) -> list[torch.Tensor]:
    """Record what the networks are given from now on."""
    seen, forward = [], script.Mlp.forward

    def record(self, x):
        seen.append(x.clone())
        return forward(self, x)

    monkeypatch.setattr(script.Mlp, "forward", record)
    return seen


@pytest.mark.parametrize("normalised", [True, False])
def test_evaluation_uses_the_statistics_of_the_training_if_the_training_did(
    script, normalised, tmp_path, monkeypatch
):
    """Two workers have seen mean 4 and standard deviation 1; times run from 0 to 4."""

    def change(shared):
        shared.observed.add(0, torch.full((4, 4), 3.0).double())
        shared.observed.add(1, torch.full((4, 4), 5.0).double())

    flag = "--normalize-obs" if normalised else "--no-normalize-obs"
    argv = evaluation(script, tmp_path, flag, change)
    seen = observations_of_networks(script, monkeypatch)
    script.evaluate(script.parse_args([*argv, "--eval-episodes", "1"]))
    times = [float(x[-1]) for x in seen]
    assert times == ([-4, -3, -2, -1, 0] if normalised else [0, 1, 2, 3, 4])


def actions_received(monkeypatch) -> list[np.ndarray]:
    """Record what the environment receives from now on, in [−1, 1]."""
    actions, step = [], boxes.Box.step

    def record(self, action):
        low, high = self.action_space.low, self.action_space.high
        actions.append(2 * (action - low) / (high - low) - 1)
        return step(self, action)

    monkeypatch.setattr(boxes.Box, "step", record)
    return actions


def test_evaluation_draws_with_the_policys_deviation(script, tmp_path, monkeypatch):
    """σ = 0.15 around 0, over 500 actions of three dimensions: within five standard errors."""
    flags = std_flag(script, 0.15)
    argv = evaluation(script, tmp_path, flags, lambda x: set_policy(script, x.model, 0.0, 0.15))
    actions = actions_received(monkeypatch)
    script.evaluate(script.parse_args([*argv, "--eval-episodes", "100"]))
    drawn = np.array(actions[1:])  # the first one tries the environment
    assert drawn.shape == (500, 3)
    assert abs(drawn.mean()) < 5 * 0.15 / 1500**0.5
    assert abs(drawn.std() - 0.15) < 5 * 0.15 / 3000**0.5


def test_greedy_evaluation_takes_the_policys_mean(script, tmp_path, monkeypatch):
    """The same in every step and game; sampled actions are never that."""
    argv = evaluation(script, tmp_path, "", lambda x: set_policy(script, x.model, 0.4, 0.3))
    actions = actions_received(monkeypatch)
    script.evaluate(script.parse_args([*argv, "--eval-episodes", "2", "--greedy"]))
    np.testing.assert_allclose(actions[1:], np.full((10, 3), 0.4), atol=1e-6)
    actions.clear()
    script.evaluate(script.parse_args([*argv, "--eval-episodes", "2"]))
    assert (np.abs(np.array(actions[1:]) - 0.4).max(1) > 1e-3).all()


def test_evaluation_repeats_with_its_seed_and_differs_with_another(script, tmp_path, monkeypatch):
    argv = evaluation(script, tmp_path, "", lambda shared: None)
    actions, games = actions_received(monkeypatch), []
    for seed in (3, 3, 4):
        script.evaluate(script.parse_args([*argv, "--eval-episodes", "2", "--seed", str(seed)]))
        games.append(np.array(actions[1:]))
        actions.clear()
    assert np.array_equal(games[0], games[1])
    assert not np.array_equal(games[0], games[2])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gym.spaces.Box(0, 255, (9, 9), np.uint8), "no pictures"),
        (gym.spaces.Dict({"top": gym.spaces.Box(0, 255, (240, 320, 3), np.uint8)}), "Filter"),
        (gym.spaces.Tuple([gym.spaces.Box(-1, 1, (7, 3_000)), gym.spaces.Discrete(3)]), "20,000"),
        (gym.spaces.Dict({"word": gym.spaces.Text(3)}), "flattened"),
    ],
)
def test_observations_that_are_pictures_or_no_numbers_are_refused(
    script, space, words, monkeypatch
):
    """A network for a camera's picture of 480×640 took 20 GB before its first step."""
    monkeypatch.setattr(toys.InABox, "observation_space", space)
    with pytest.raises(ValueError, match=words):
        script.make_env("toys:DelayedCueBox-v0", 0)


def test_a_long_error_of_an_environment_is_cut(script, monkeypatch):
    """MuJoCo's bindings print all of their arguments' arrays."""

    def fail(self, **options):
        raise TypeError("incompatible arguments: " + "\n0.1 0.2" * 1_000)

    monkeypatch.setattr(toys.DelayedCue, "reset", fail)
    args = script.parse_args(["--env-id", "toys:DelayedCueBox-v0"])
    with pytest.raises(SystemExit, match="TypeError: incompatible arguments") as ended:
        script.open_env(args, 0)
    assert len(str(ended.value)) < 800


def test_pictures_follow_the_robot(script, monkeypatch):
    """Gymnasium's own choice is a camera that stands still."""
    monkeypatch.setenv("MUJOCO_GL", "off")  # nothing is drawn: a test machine may be unable to
    with script.make_env("HalfCheetah-v5", 0, render_mode="rgb_array") as env:
        camera = env.unwrapped.mujoco_renderer.camera_id
        assert camera >= 0
        assert env.unwrapped.model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM


def test_pictures_that_cannot_be_drawn_end_with_one_line(script, monkeypatch):
    """As without EGL, which is asked for where there may be no screen."""
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what the script sets is undone
    monkeypatch.delenv("MUJOCO_GL")

    def fail(self, *arguments, **options):
        raise ImportError("Cannot initialize a EGL device display.\nInstall it.")

    monkeypatch.setattr(mujoco_rendering.MujocoRenderer, "render", fail)
    args = script.parse_args(["--env-id", "Hopper-v5"])
    with pytest.raises(SystemExit, match=r"--env-id Hopper-v5: ImportError: .* EGL") as ended:
        script.open_env(args, 0, "rgb_array")
    assert "\n" not in str(ended.value)
    assert os.environ.get("MUJOCO_GL") == ("egl" if sys.platform == "linux" else None)
    script.open_env(args, 0).close()  # training draws nothing
