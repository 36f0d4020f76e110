"""The recurrent A3C: returns, loss, back-propagation through time, the state's life, and memory."""

import copy
import csv
import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import make_shared, untrained
from torch import nn

import a3c_recurrent_atari as script
from a3c_recurrent_atari import ActorCritic, Segment, a3c_loss, n_step_returns


@pytest.mark.parametrize("length", [1, 2, 20])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_n_step_returns_are_the_explicit_discounted_sums(length, gamma):
    rng = np.random.default_rng(length)
    rewards, bootstrap_value = rng.normal(size=length), float(rng.normal())
    wanted = [
        sum(gamma ** (i - t) * rewards[i] for i in range(t, length))
        + gamma ** (length - t) * bootstrap_value
        for t in range(length)
    ]
    returns = n_step_returns(torch.from_numpy(rewards), bootstrap_value, gamma)
    np.testing.assert_allclose(returns.numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert not returns.requires_grad


class Linear(nn.Module):
    """A stand-in for the network, of float features, in double precision."""

    def __init__(self, num_features: int = 5, num_actions: int = 3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = num_features, num_actions + 1
        self.weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, observations, state):
        outputs = observations @ self.weight
        return outputs[:, :-1].log_softmax(1), outputs[:, -1], state


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_the_loss_has_the_gradient_of_the_papers_equations(terminated, length, ent_coef):
    """Against loops over t with the softmax's derivatives written out."""
    args = Namespace(gamma=0.9, num_steps=20, vf_coef=0.7, ent_coef=ent_coef)
    rng, model = np.random.default_rng(length), Linear()
    x = rng.normal(size=(length + 1, 5))
    actions, rewards = rng.integers(3, size=length), rng.normal(size=length)
    segment = Segment(
        torch.from_numpy(x), torch.from_numpy(actions), torch.from_numpy(rewards), terminated, None
    )
    loss, statistics = a3c_loss(model, segment, args)
    loss.backward()

    weight, wanted = model.weight.detach().numpy(), np.zeros((5, 4))
    entropies = []
    for t in range(length):
        end = 0.0 if terminated else x[-1] @ weight[:, -1]
        ret = sum(0.9 ** (i - t) * rewards[i] for i in range(t, length)) + 0.9 ** (length - t) * end
        pi = np.exp(x[t] @ weight[:, :-1])
        pi /= pi.sum()
        entropy = -sum(pi * np.log(pi))
        advantage = ret - x[t] @ weight[:, -1]
        for a in range(3):
            score = (actions[t] == a) - pi[a]  # ∂ log π(a_t) / ∂ logit a
            slope = -pi[a] * (np.log(pi[a]) + entropy)  # ∂ H / ∂ logit a
            wanted[:, a] += x[t] * (-score * advantage - ent_coef * slope) / 20
        wanted[:, -1] += x[t] * 0.7 * 2 * -advantage / 20
        entropies.append(entropy)
    np.testing.assert_allclose(model.weight.grad.numpy(), wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics["entropy"].numpy(), entropies)
    np.testing.assert_allclose(statistics["prediction"].numpy(), x[:-1] @ weight[:, -1])


def random_segment(length: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = length + 1, 4, 84, 84
    observations = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    state = torch.randn(1, 256, generator=generator), torch.randn(1, 256, generator=generator)
    actions = torch.randint(0, 4, (length,), generator=generator)
    return Segment(observations, actions, torch.randn(length, generator=generator), False, state)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ActorCritic(4)


def test_the_network_starts_as_described(model):
    """A nearly uniform policy; forget gates of bias 1, the second of four, and none besides."""
    segment = random_segment(20)
    with torch.no_grad():
        log_pi, _, _ = model(segment.observations, segment.state)
    assert (log_pi.exp() - 1 / 4).abs().max() < 0.05
    biases = model.lstm.bias_ih_l0.detach() + model.lstm.bias_hh_l0.detach()
    assert torch.equal(biases.view(4, 256), torch.tensor([[0.0], [1], [0], [0]]).expand(4, 256))


def test_the_forward_is_that_of_its_layers_on_frames_less_their_ground(model):
    """In double precision; a stack's ground is the median of every eighth pixel each way.

    The LSTM as its equations.
    """
    segment, f = random_segment(3), nn.functional
    p = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    x = segment.observations.numpy() / 255
    ground = [np.sort(stack[:, ::8, ::8], None)[(4 * 11 * 11 - 1) // 2] for stack in x]
    x = torch.from_numpy(x - np.array(ground)[:, None, None, None])
    x = f.conv2d(x, p["conv1.weight"], p["conv1.bias"], 4).clamp_min(0)
    x = f.conv2d(x, p["conv2.weight"], p["conv2.bias"], 2).clamp_min(0)
    x = (x.flatten(1) @ p["dense.weight"].T + p["dense.bias"]).clamp_min(0)
    h, c = (part[0].double() for part in segment.state)
    log_pi, values = [], []
    for one in x:
        gates = p["lstm.weight_ih_l0"] @ one + p["lstm.bias_ih_l0"]
        gates = gates + p["lstm.weight_hh_l0"] @ h + p["lstm.bias_hh_l0"]
        i, forget, g, o = gates.view(4, 256)
        c = forget.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        log_pi.append((p["policy.weight"] @ h + p["policy.bias"]).log_softmax(0))
        values.append(p["value.weight"][0] @ h + p["value.bias"][0])
    with torch.no_grad():
        found_log_pi, found_values, state = model(segment.observations, segment.state)
    for found, wanted in [
        (found_log_pi, torch.stack(log_pi)),
        (found_values, torch.stack(values)),
        (state[0][0], h),
        (state[1][0], c),
    ]:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", range(1, 21))
def test_the_batch_forward_of_a_segment_equals_the_steps_that_acted(model, length):
    segment = random_segment(length)
    with torch.no_grad():
        log_pi, values, (h, c) = model(segment.observations, segment.state)
        state = segment.state
        for t, observation in enumerate(segment.observations):
            step_log_pi, step_value, state = model(observation[None], state)
            torch.testing.assert_close(step_log_pi[0], log_pi[t], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(step_value[0], values[t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, (h, c), rtol=1e-4, atol=1e-5)
    loss, _ = a3c_loss(model, segment, script.parse_args([]))
    assert loss.isfinite()


def test_the_gradient_flows_from_the_last_step_to_the_first_observation(model):
    segment, features = random_segment(20), []

    def keep(module, inputs):
        inputs[0].retain_grad()
        features.append(inputs[0])

    handle = model.lstm.register_forward_pre_hook(keep)
    log_pi, _, _ = model(segment.observations, segment.state)
    handle.remove()
    log_pi[-1, 0].backward()
    gradient = features[0].grad.abs().sum(1)
    assert gradient.shape == (21,)
    assert (gradient > 0).all()
    model.zero_grad()


def test_a_brighter_ground_changes_nothing_and_a_black_one_stays_black(model):
    """Each stack by itself: a bright one among others has no effect on them."""
    observations = torch.randint(100, (3, 4, 84, 84), dtype=torch.uint8)
    observations[:, :, 20:] = 0
    brighter = observations.clone()
    brighter[1] += 100
    for wanted, got in zip(
        model(observations, model.initial_state()),
        model(brighter, model.initial_state()),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    seen = []
    hook = model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(observations, model.initial_state())
    hook.remove()
    assert torch.equal(seen[0], observations.float() * (1 / 255))


def test_the_weights_gradient_is_that_of_the_whole_segment(model):
    """A central difference along one direction sees every path, also those through the state."""
    model, segment = copy.deepcopy(model), random_segment(6)
    weight = model.lstm.weight_hh_l0
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    def last_value() -> torch.Tensor:
        return model(segment.observations, segment.state)[1][-1]

    last_value().backward()
    slope = float((weight.grad * direction).sum())
    step = 2e-3
    with torch.no_grad():
        weight.add_(direction, alpha=step)
        above = float(last_value())
        weight.add_(direction, alpha=-2 * step)
        below = float(last_value())
    assert slope == pytest.approx((above - below) / (2 * step), rel=5e-3)


def test_the_state_before_a_segment_is_a_constant():
    """Carried over from the steps of the segment before."""
    env, net = script.make_env("memory:Remember-v0", 0), ActorCritic(2)
    generator, stop = torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.bool)
    actor = script.Actor(None, env, None, net, generator)
    segment, following = (actor.act(5, stop)[0] for _ in range(2))
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in following.state)
    with torch.no_grad():
        _, _, wanted = net(segment.observations[:-1], segment.state)
    torch.testing.assert_close(following.state, wanted, rtol=1e-4, atol=1e-5)
    assert following.state[0].any()


def test_the_state_is_reset_at_a_new_game_and_only_there_in_training(monkeypatch):
    flags = "--env-id toys:Lives-v0 --num-workers 1 --num-steps 6 --total-timesteps 60"
    args = script.parse_args(flags.split())
    act, seen = script.Actor.act, []

    def record(actor, *arguments):
        segment, episode = act(actor, *arguments)
        first = int(segment.observations[0, -1].max()) // 20  # the game's step at which it begins
        seen.append((first, len(segment.rewards), segment))
        return segment, episode

    monkeypatch.setattr(script.Actor, "act", record)
    shared = make_shared("a3c_recurrent_atari", args)
    script.worker(0, args, shared, SimpleNamespace(send=lambda message: None))
    for first, _, segment in seen:
        assert any(part.any() for part in segment.state) == (first != 0)
    # A lost life ends a segment, with value 0, and no game.
    assert [(first, length) for first, length, _ in seen[:4]] == [(0, 4), (4, 4), (8, 3), (0, 4)]
    assert all(segment.terminated for _, _, segment in seen[:4])


def test_the_state_is_reset_at_a_new_game_and_only_there_in_evaluation(monkeypatch, tmp_path):
    torch.save(untrained("a3c_recurrent_atari", "toys:Lives-v0"), tmp_path / "checkpoint.pt")
    forward, states = ActorCritic.forward, []

    def record(self, observations, state):
        outputs = forward(self, observations, state)
        states.append([[part.clone() for part in one] for one in (state, outputs[2])])
        return outputs

    monkeypatch.setattr(ActorCritic, "forward", record)
    argv = f"--evaluate {tmp_path} --env-id toys:Lives-v0 --eval-episodes 3"
    script.evaluate(script.parse_args(argv.split()))
    assert len(states) == 33
    for number, (before, _) in enumerate(states):
        if number % 11 == 0:
            assert not any(tensor.any() for tensor in before)
        else:
            after = states[number - 1][1]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def last_returns(run_dir: Path, count: int) -> np.ndarray:
    with open(run_dir / "episodes.csv") as file:
        return np.array([float(row["return"]) for row in csv.DictReader(file)][-count:])


def test_it_learns_what_cannot_be_done_without_memory_and_evaluation_remembers_too(tmp_path):
    """Chance is 0 with a standard error of 0.1 over 100 games.

    Eight runs learned it after 10,000 to 25,000 steps: so a run goes on until it has. With a step
    size of 1e-3 one never did: all units of the second convolution had died at the start.
    """
    run_dir = tmp_path / "run"
    argv = "--env-id memory:Remember-v0 --seed 1 --num-workers 2 --log-interval 60"
    start = [*argv.split(), "--run-dir", str(run_dir)]
    for budget in range(15_000, 90_000, 15_000):
        script.train(script.parse_args([*start, "--total-timesteps", str(budget)]))
        if last_returns(run_dir, 100).mean() > 0.8:
            break
        start = ["--resume", str(run_dir), "--env-id", "memory:Remember-v0"]
    assert last_returns(run_dir, 100).mean() > 0.8
    argv = f"--evaluate {run_dir} --env-id memory:Remember-v0 --eval-episodes 20 --greedy"
    assert np.mean(script.evaluate(script.parse_args(argv.split()))) > 0.8


def test_without_memory_that_task_cannot_be_done():
    """The question looks the same whatever the cue was, and only the answer to it is paid."""
    questions, paid = {}, set()
    for seed in range(10):
        with script.make_env("memory:Remember-v0", seed) as env:
            observation, _ = env.reset(seed=seed)
            done = False
            while not done:
                last = observation
                observation, reward, done, _, _ = env.step(0)
                paid.add((bool(reward), done))
            questions.setdefault(env.unwrapped.cue, []).append(last)
    assert set(questions) == {0, 1}
    assert all(np.array_equal(last, q) for asked in questions.values() for q in asked)
    assert paid == {(False, False), (True, True)}


@pytest.mark.parametrize("quiet", [50, 500, 5_000])
def test_rewards_after_a_quiet_time_make_no_long_steps(quiet):
    """Long steps in a row saturated the LSTM, which then answered alike to every screen."""
    lr, betas = 1e-3, (0.9, 0.99)
    args = script.parse_args(["--learning-rate", str(lr), "--num-workers", "1"])
    shared = make_shared("a3c_recurrent_atari", args)
    bias, longest = shared.model.value.bias, 0.0
    for size in quiet * [1e-4] + 20 * [1.0]:
        before = bias.item()
        bias.grad = torch.full_like(bias, size)
        shared.optimizer.step()
        longest = max(longest, abs(bias.item() - before))
    # By Cauchy and Schwarz, whatever the gradients.
    bound = (1 - betas[0]) / math.sqrt((1 - betas[1]) * (1 - betas[0] ** 2 / betas[1]))
    assert longest <= bound * lr * 1.001
