"""What both continuous scripts have: environments, actions, observation statistics."""

import json
import sys

import boxes
import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from harness import SCRIPTS, is_continuous, module

CONTINUOUS = [name for name in SCRIPTS if is_continuous(name)]
TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "Reacher-v5"]


@pytest.fixture(params=CONTINUOUS)
def script(request):
    return module(request.param)


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
        assert observation.dtype == np.float32


def test_returns_are_of_rewards_as_they_are_while_the_learner_sees_them_scaled(script):
    env = script.make_env("boxes:Asymmetric-v0", 0, reward_scale=0.1)
    env.reset()
    rewards, info = [], {}
    while "episode" not in info:
        _, reward, terminated, truncated, info = env.step(np.zeros(3, np.float32))
        rewards.append(reward)
    assert rewards == [pytest.approx(-0.7)] * 5
    assert (terminated, truncated) == (False, True)
    assert float(info["episode"]["r"]) == -35


def test_the_seed_decides_the_episode(script):
    first, again, other = (script.make_env("Hopper-v5", seed).reset()[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_time_limit_bootstraps_and_an_end_does_not(script):
    """Pendulum ends by its time limit alone; the inverted pendulum falls within a few steps."""
    for env_id, wanted in (("Pendulum-v1", False), ("InvertedPendulum-v5", True)):
        env = script.make_env(env_id, 0)
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
        model = script.ActorCritic(*sizes)
        normalizer = script.ObservationStatistics(1, sizes[0], True).normalizer()
        arguments = [0.9] if script.SCRIPT == "acer_continuous.py" else []
        generator = torch.Generator().manual_seed(0)
        observation, _ = env.reset()
        segment, episode = script.collect_segment(
            env, model, normalizer, observation, 1000, *arguments, generator
        )
        assert episode is not None
        assert segment.terminated is wanted
        assert len(segment.observations) == len(segment.rewards) + 1 == int(episode["l"]) + 1


def test_the_learner_keeps_actions_as_sampled_where_the_environment_clips(script, monkeypatch):
    """The density of an action is that of what was drawn, not of what the bounds left of it."""
    env = script.make_env("boxes:Asymmetric-v0", 0)
    model = script.ActorCritic(4, 3)
    acer = script.SCRIPT == "acer_continuous.py"
    mean = torch.full((3,), 3.0)
    if acer:
        monkeypatch.setattr(model.policy, "forward", lambda x: mean)
    else:
        monkeypatch.setattr(model, "policy", lambda x: (mean, torch.ones(3)))
    normalizer = script.ObservationStatistics(1, 4, False).normalizer()
    generator = torch.Generator().manual_seed(0)
    observation, _ = env.reset()
    segment, _ = script.collect_segment(
        env, model, normalizer, observation, 4, *([1.0] if acer else []), generator
    )
    drawn = 3 + torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert (drawn > 1).float().mean() > 0.9
    torch.testing.assert_close(segment.actions, drawn)
    bounds = torch.tensor([[-2.0, 0, 10], [0, 4, 11]])  # the environment shows what it was given
    received = bounds[0] + (drawn.clamp(-1, 1) + 1) / 2 * (bounds[1] - bounds[0])
    torch.testing.assert_close(segment.observations[1:, :3], received)


@pytest.mark.parametrize("env_id", TASKS)
def test_real_physics_trains_and_leaves_no_file_behind(
    script, env_id, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    flags = f"--env-id {env_id} --num-workers 1 --total-timesteps 200 --run-dir run"
    if script.SCRIPT == "acer_continuous.py":
        flags += " --replay-start 60 --replay-ratio 2"
    args = script.parse_args(flags.split())
    with script.make_env(env_id, 1) as env:
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
    shared = script.make_shared(args, *sizes, None)
    before = [p.detach().clone() for p in shared.model.parameters()]
    script.worker(0, args, shared, Silent())
    after = list(shared.model.parameters())
    assert shared.steps() == 200
    assert all(p.isfinite().all() for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert list(tmp_path.iterdir()) == []
    assert "WARNING" not in "".join(capfd.readouterr())


class Silent:
    def send(self, message):
        pass


# Observation statistics ===========================================================================


def test_statistics_of_two_workers_are_those_of_all_their_observations(script):
    rng = np.random.default_rng(0)
    data = rng.normal([5, -300, 0], [0.1, 40, 1e-3], size=(5000, 3)).astype(np.float32)
    observed = script.ObservationStatistics(2, 3, True)
    for number, part in enumerate(np.array_split(data, 60)):
        observed.add(number % 2, torch.from_numpy(part))
    normalizer = observed.normalizer()
    np.testing.assert_allclose(normalizer.mean, data.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(normalizer.std, data.std(0), rtol=1e-2)
    normal = normalizer(torch.from_numpy(data))
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-2)
    assert normalizer(torch.full((3,), 1e6)).tolist() == [10, 10, 10]


def test_without_statistics_and_when_switched_off_observations_stay_as_they_are(script):
    x = torch.tensor([[3.0, -4000.0]])
    assert torch.equal(script.ObservationStatistics(2, 2, True).normalizer()(x), x)
    observed = script.ObservationStatistics(2, 2, False)
    observed.add(0, torch.randn(10, 2))
    assert torch.equal(observed.normalizer()(x), x)


def test_a_dimension_that_never_changes_gives_finite_numbers(script):
    observed = script.ObservationStatistics(1, 2, True)
    observed.add(0, torch.tensor([[1.5, 0.0], [1.5, 1.0]]))
    assert observed.normalizer()(torch.tensor([1.5, 1.0])).isfinite().all()


def test_evaluation_uses_the_statistics_of_the_training(script, tmp_path, monkeypatch):
    args = script.parse_args(["--env-id", "boxes:Asymmetric-v0", "--num-workers", "2"])
    shared = script.make_shared(args, 4, 3, None)
    shared.observed.add(0, torch.full((4, 4), 3.0))
    shared.observed.add(1, torch.full((4, 4), 5.0))
    contents = {"script": script.SCRIPT, "args": vars(args), "model": shared.model.state_dict()}
    contents["observed"] = shared.observed.sums.sum(0)
    torch.save(contents, tmp_path / "weights.pt")
    seen, forward = [], script.nn.Sequential.forward

    def record(self, x):
        seen.append(x.clone())
        return forward(self, x)

    monkeypatch.setattr(script.nn.Sequential, "forward", record)
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--eval-episodes", "1", "--greedy"]
    script.evaluate(script.parse_args(argv))
    env = gym.make("Asymmetric-v0", disable_env_checker=True)
    assert env.observation_space.shape == (4,)
    # Mean 4, standard deviation 1; the fifth observation's time is 4.
    assert seen[-1][-1] == pytest.approx(0, abs=1e-3)
    assert json.dumps(contents["args"])


def test_without_normalisation_evaluation_sees_observations_as_they_are(
    script, tmp_path, monkeypatch
):
    args = script.parse_args(["--env-id", "boxes:Asymmetric-v0", "--no-normalize-obs"])
    shared = script.make_shared(args, 4, 3, None)
    shared.observed.add(0, torch.full((4, 4), 3.0))  # counted all the same
    contents = {"script": script.SCRIPT, "args": vars(args), "model": shared.model.state_dict()}
    contents["observed"] = shared.observed.sums.sum(0)
    torch.save(contents, tmp_path / "weights.pt")
    times, forward = [], script.nn.Sequential.forward

    def record(self, x):
        times.append(float(x[-1]))
        return forward(self, x)

    monkeypatch.setattr(script.nn.Sequential, "forward", record)
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--eval-episodes", "1"]
    script.evaluate(script.parse_args(argv))
    assert times == [0, 1, 2, 3, 4]


def test_evaluation_draws_with_the_policys_deviation(script, tmp_path, monkeypatch):
    """σ = 0.15 around 0, over 500 actions of three dimensions: within five standard errors."""
    argv = ["--env-id", "boxes:Asymmetric-v0"]
    acer = script.SCRIPT == "acer_continuous.py"
    args = script.parse_args([*argv, *(["--policy-std", "0.15"] if acer else [])])
    shared = script.make_shared(args, 4, 3, None)
    net = shared.model.policy if acer else shared.model.policy_net
    with torch.no_grad():
        net[-1].weight.zero_()
        if not acer:  # σ² is a softplus of this, and the least variance
            wanted = torch.tensor(0.15**2 - script.MIN_VARIANCE)
            net[-1].bias[3:] = wanted.expm1().log()
    contents = {"script": script.SCRIPT, "args": vars(args), "model": shared.model.state_dict()}
    contents["observed"] = shared.observed.sums.sum(0)
    torch.save(contents, tmp_path / "weights.pt")
    actions, step = [], boxes.Box.step

    def record(self, action):
        actions.append(action)
        return step(self, action)

    monkeypatch.setattr(boxes.Box, "step", record)
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--eval-episodes", "100"]
    script.evaluate(script.parse_args(argv))
    low, high = boxes.Box.action_space.low, boxes.Box.action_space.high
    drawn = 2 * (np.array(actions) - low) / (high - low) - 1
    assert drawn.shape == (500, 3)
    assert abs(drawn.mean()) < 5 * 0.15 / 1500**0.5
    assert abs(drawn.std() - 0.15) < 5 * 0.15 / 3000**0.5


def test_sampled_and_mean_actions_differ_and_mean_actions_repeat(script, tmp_path):
    args = script.parse_args(["--env-id", "Pendulum-v1"])
    shared = script.make_shared(args, 3, 1, None)
    contents = {"script": script.SCRIPT, "args": vars(args), "model": shared.model.state_dict()}
    contents["observed"] = shared.observed.sums.sum(0)
    torch.save(contents, tmp_path / "weights.pt")
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--eval-episodes", "2"]
    greedy, again = (script.evaluate(script.parse_args([*argv, "--greedy"])) for _ in range(2))
    sampled = script.evaluate(script.parse_args(argv))
    assert greedy == again != sampled


def test_pictures_follow_the_robot(script, monkeypatch):
    """Gymnasium's own choice is a camera that stands still."""
    monkeypatch.setenv("MUJOCO_GL", "off")  # nothing is drawn: a test machine may be unable to
    with script.make_env("HalfCheetah-v5", 0, render_mode="rgb_array") as env:
        camera = env.unwrapped.mujoco_renderer.camera_id
        assert camera >= 0
        assert env.unwrapped.model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo draws with what there is")
def test_pictures_without_a_library_to_draw_them_end_with_one_line(script, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what the script sets is undone
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    args = script.parse_args(["--env-id", "Hopper-v5"])
    with pytest.raises(SystemExit, match=r"--env-id Hopper-v5: .* EGL; install it") as ended:
        script.open_env(args, 0, "rgb_array")
    assert "\n" not in str(ended.value)
    script.open_env(args, 0).close()  # training draws nothing
