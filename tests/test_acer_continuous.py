"""Continuous ACER's equations against explicit sums, torch.distributions, autograd, expectation."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from harness import assert_average_follows
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import acer_continuous as script
from acer_continuous import (
    ActorCritic,
    Segment,
    acer_loss,
    gaussian_log_density,
    gaussian_policy_gradient,
    stochastic_dueling,
)


def gaussian(mean: torch.Tensor, std: float) -> Independent:
    return Independent(Normal(mean, torch.full_like(mean, std)), 1)


@pytest.mark.parametrize("size", [1, 6])
def test_the_log_density_is_joint_over_the_dimensions(size):
    mean, std, actions = torch.randn(4, size), torch.rand(4, size) + 0.1, torch.randn(4, size)
    wanted = Independent(Normal(mean, std), 1).log_prob(actions)
    torch.testing.assert_close(gaussian_log_density(actions, mean, std), wanted)
    wanted = gaussian(mean, 0.3).log_prob(actions)
    torch.testing.assert_close(gaussian_log_density(actions, mean, 0.3), wanted)


# Stochastic dueling ===============================================================================


def test_the_mean_of_q_over_the_policy_is_v():
    """Over 20,000 draws of a and of five u_i each, for a curved A; within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean, std, count = torch.tensor([0.4, -0.2, 0.1]), 0.3, 20_000

    def advantage(actions):
        return 3 * actions.square().sum(-1) + actions.prod(-1) + 1.7

    actions = mean + std * torch.randn(count, 3, generator=generator)
    drawn = mean + std * torch.randn(5, count, 3, generator=generator)
    values = torch.full((count,), 2.5)
    q = stochastic_dueling(values, advantage(actions), advantage(drawn))
    error = q.std() / count**0.5
    assert error < 0.01
    assert abs(q.mean() - 2.5) < 4 * error


def test_with_every_action_as_a_draw_the_mean_of_q_is_v_exactly():
    """The limit: the policy is uniform over a few actions, all of which are the draws."""
    advantages, values = torch.randn(7, 4).double(), torch.randn(4).double()
    q = stochastic_dueling(values, advantages, advantages)
    torch.testing.assert_close(q.mean(0), values)
    torch.testing.assert_close(q - values, advantages - advantages.mean(0))


# Policy gradient ==================================================================================


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("rho_clip", [0.5, 2.0])
def test_truncation_with_correction_is_unbiased(size, rho_clip):
    """Against ∇_φ E_π[f] = −2 (φ − target) for f(a) = −‖a − target‖², within 4.5 standard errors.

    Without the correction the bias is many times that.
    """
    generator = torch.Generator().manual_seed(size)
    count, std = 400_000, 0.3
    mean, mu_mean = torch.full((size,), 0.1), torch.full((size,), 0.1 - 0.5 / size**0.5)
    target = torch.linspace(-0.5, 0.8, size)
    actions = mu_mean + std * torch.randn(count, size, generator=generator)
    drawn = mean + std * torch.randn(count, size, generator=generator)
    rho, drawn_rho = (
        (gaussian(mean, std).log_prob(a) - gaussian(mu_mean, std).log_prob(a)).exp()
        for a in (actions, drawn)
    )
    q, drawn_q = (-(a - target).square().sum(1) for a in (actions, drawn))
    values = torch.full((count,), -0.6)  # any baseline
    means = mean.expand(count, size)
    wanted = -2 * (mean - target)
    off = {}
    for correction in (True, False):
        g = gaussian_policy_gradient(
            means, std, actions, rho, q, values, drawn, drawn_rho, drawn_q, rho_clip, correction
        )
        error = g.std(0) / count**0.5
        off[correction] = ((g.mean(0) - wanted).abs() / error).max()
    assert off[True] < 4.5
    assert off[False] > 15
    assert not g.requires_grad


# The whole loss ===================================================================================


class Linear(nn.Module):
    """Linear policy, value and advantage, in double precision; A is curved by a fixed square."""

    def __init__(self, seed: int, obs_size: int = 4, action_size: int = 2):
        super().__init__()
        rng = np.random.default_rng(seed)
        draw = lambda *shape: nn.Parameter(torch.from_numpy(rng.normal(size=shape)) * 0.3)  # noqa: E731
        self.phi, self.v = draw(obs_size, action_size), draw(obs_size)
        self.a_x, self.a_u = draw(obs_size), draw(action_size)

    def policy(self, observations):
        return observations @ self.phi

    def value(self, observations):
        return observations @ self.v

    def advantage(self, observations, actions):
        return (observations @ self.a_x) * (actions @ self.a_u) + actions.square() @ self.a_u


def settings(**changes) -> Namespace:
    values = {
        "gamma": 0.9,
        "num_steps": 20,
        "q_coef": 0.7,
        "vf_coef": 0.4,
        "rho_clip": 1.3,
        "bias_correction": True,
        "trust_region": True,
        "trust_region_delta": 0.05,
        "policy_std": 0.5,
        "dueling_samples": 3,
    }
    return Namespace(**(values | changes))


def linear_segment(length: int, terminated: bool, action_size: int = 2) -> Segment:
    rng = np.random.default_rng(length)
    mu_mean = rng.normal(scale=0.3, size=(length, action_size))
    actions = mu_mean + 0.5 * rng.normal(size=(length, action_size))
    parts = rng.normal(size=(length + 1, 4)), actions, rng.normal(size=length), mu_mean
    return Segment(*(torch.from_numpy(part) for part in parts), terminated)


def double_randn(monkeypatch):
    """Let the loss draw its noise in double precision."""
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kw: randn(*size, dtype=torch.double, **kw))


def gradient_by_hand(model, average_model, segment, args, noise):
    """Algorithm 3 state by state, from the last; gradients by autograd of single scalars."""
    x, actions, rewards, mu_mean, terminated = segment
    length, size, std = len(rewards), actions.shape[1], args.policy_std
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    q_ret = q_opc = 0.0 if terminated else model.value(x[length]).item()
    active, returns = [], []
    for t in reversed(range(length)):
        q_ret, q_opc = (float(rewards[t]) + args.gamma * q for q in (q_ret, q_opc))
        returns.insert(0, q_ret)
        phi = model.policy(x[t]).detach().requires_grad_()
        pi, mu = gaussian(phi, std), gaussian(mu_mean[t], std)
        drawn = [(phi + std * noise[i, t]).detach() for i in range(args.dueling_samples + 1)]
        rho, drawn_rho = (
            (pi.log_prob(a) - mu.log_prob(a)).exp().item() for a in (actions[t], drawn[0])
        )
        baseline = sum(model.advantage(x[t], u) for u in drawn[1:]) / args.dueling_samples
        v = model.value(x[t])
        q = v + model.advantage(x[t], actions[t]) - baseline
        drawn_q = (v + model.advantage(x[t], drawn[0]) - baseline).item()
        # The policy: g and k by autograd of torch.distributions.
        (score,) = torch.autograd.grad(pi.log_prob(actions[t]), phi, retain_graph=True)
        (drawn_score,) = torch.autograd.grad(pi.log_prob(drawn[0]), phi, retain_graph=True)
        g = min(args.rho_clip, rho) * (q_opc - v.item()) * score
        if args.bias_correction:
            g = g + max(0, 1 - args.rho_clip / drawn_rho) * (drawn_q - v.item()) * drawn_score
        average = gaussian(average_model.policy(x[t]).detach(), std)
        (k,) = torch.autograd.grad(kl_divergence(average, pi), phi)
        active.append(bool(args.trust_region and k @ g > args.trust_region_delta))
        z = g - (k @ g - args.trust_region_delta) / (k @ k) * k if active[-1] else g
        # The critic: half the squares in the paper, here weighed by the settings.
        v_target = min(1, rho) * (q_ret - q.item()) + v.item()
        loss = -(z @ model.policy(x[t])) + args.q_coef * (q_ret - q) ** 2
        loss = loss + args.vf_coef * (v_target - v) ** 2
        for into, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            into += gradient / args.num_steps
        q_ret = min(1, rho ** (1 / size)) * (q_ret - q.item()) + v.item()
        q_opc = q_opc - q.item() + v.item()
    return total, active, returns


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize(("length", "terminated"), [(1, True), (1, False), (7, True), (20, False)])
@pytest.mark.parametrize("changes", [{}, {"trust_region": False}, {"bias_correction": False}])
def test_the_loss_has_the_gradient_of_algorithm_3(size, length, terminated, changes, monkeypatch):
    double_randn(monkeypatch)
    model, average_model = Linear(1, action_size=size), Linear(2, action_size=size)
    args, segment = settings(**changes), linear_segment(length, terminated, size)
    noise = torch.randn(
        args.dueling_samples + 1, length, size, generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    loss, statistics = acer_loss(model, average_model, segment, args, generator)
    loss.backward()
    wanted, active, returns = gradient_by_hand(model, average_model, segment, args, noise)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)
    assert all(p.grad is None for p in average_model.parameters())
    torch.testing.assert_close(statistics["q_ret"].double(), torch.tensor(returns).double())
    assert float(statistics["trust_region_active"]) == pytest.approx(np.mean(active))
    if length == 20 and args.trust_region:
        assert 0 < np.mean(active) < 1, "some states inside, some outside"


def test_the_statistics_are_what_they_say():
    model, average_model = Linear(1).float(), Linear(2).float()
    segment = linear_segment(20, False)
    segment = Segment(*(part.float() for part in segment[:4]), False)
    _, statistics = acer_loss(model, average_model, segment, settings(), torch.Generator())
    pi = gaussian(model.policy(segment.observations[:-1]), 0.5)
    pi_a = gaussian(average_model.policy(segment.observations[:-1]), 0.5)
    mu = gaussian(segment.mu_mean, 0.5)
    rho = (pi.log_prob(segment.actions) - mu.log_prob(segment.actions)).exp()
    torch.testing.assert_close(statistics["rho"], rho.mean())
    torch.testing.assert_close(statistics["truncated_weights"], (rho > 1.3).float().mean())
    torch.testing.assert_close(statistics["average_policy_kl"], kl_divergence(pi_a, pi).mean())
    error = statistics["q_ret"] - statistics["q"]
    torch.testing.assert_close(statistics["q_loss"], error.square().mean())
    towards_v = (rho.clamp_max(1) * error).square().mean()  # V^target − V
    torch.testing.assert_close(statistics["value_loss"], towards_v)
    assert not any(value.requires_grad for value in statistics.values())


def test_weights_far_from_the_policy_stay_finite():
    """An old action 100 standard deviations away: ρ is 0 or beyond every float."""
    torch.manual_seed(0)
    model = ActorCritic(4, 2)
    segment = Segment(
        torch.randn(3, 4),
        torch.tensor([[30.0, 0], [0, 0]]),
        torch.ones(2),
        torch.zeros(2, 2),
        False,
    )
    for mu_mean in (segment.actions, -segment.actions):
        args = script.parse_args([])
        loss, statistics = acer_loss(
            model, model, segment._replace(mu_mean=mu_mean), args, torch.Generator()
        )
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert all(value.isfinite().all() for value in statistics.values())


def test_the_policy_starts_near_zero_and_the_networks_share_nothing():
    torch.manual_seed(0)
    model = ActorCritic(17, 6)
    observations = torch.randn(50, 17)
    assert model.policy(observations).abs().max() < 0.2
    model.value(observations).sum().backward()
    assert all(p.grad is None for p in model.policy.parameters())
    assert all(p.grad is None for p in model.advantage_net.parameters())
    assert model.advantage(observations.expand(7, 50, 17), torch.zeros(7, 50, 6)).shape == (7, 50)


# Replay ===========================================================================================


def numbered_segments(rng, count: int):
    """Segments whose every entry names the step it belongs to."""
    step = 0
    for _ in range(count):
        length = int(rng.integers(1, 8))
        steps = torch.arange(step, step + length + 1).float()
        yield Segment(
            steps[:, None] + torch.tensor([0.0, 0.25]),
            steps[:-1, None] + torch.tensor([0.5]),
            steps[:-1],
            -steps[:-1, None],
            bool(rng.integers(2)),
        )
        step += length + 1


@pytest.mark.parametrize("capacity", [8, 31, 100])
def test_drawn_segments_are_what_was_stored_also_after_many_rounds(capacity):
    rng = np.random.default_rng(0)
    replay, stored = script.ReplayBuffer(capacity, 2, 1), {}
    for segment in numbered_segments(rng, 300):
        replay.add(segment)
        stored[float(segment.rewards[0])] = segment
        newest = list(stored.values())
        total = np.cumsum([len(s.rewards) + 1 for s in reversed(newest)])
        kept = {float(s.rewards[0]) for s in newest[len(newest) - int((total <= capacity).sum()) :]}
        drawn = {}
        for _ in range(4):
            one = replay.sample(rng)
            drawn[float(one.rewards[0])] = one
        assert set(drawn) <= kept
        for first, one in drawn.items():
            assert all(torch.equal(a, b) for a, b in zip(one[:4], stored[first][:4], strict=True))
            assert one.terminated == stored[first].terminated
        assert len(replay) <= capacity
        assert len(replay.segments) == len(kept)


def test_a_drawn_segment_is_a_copy():
    replay = script.ReplayBuffer(20, 2, 1)
    replay.add(next(numbered_segments(np.random.default_rng(0), 1)))
    first, second = (replay.sample(np.random.default_rng(0)) for _ in range(2))
    first.observations.fill_(-1)
    assert (second.observations >= 0).all()


def test_replays_memory_is_what_is_announced():
    replay = script.ReplayBuffer(1000, 17, 6)
    tensors = [x for x in vars(replay).values() if isinstance(x, torch.Tensor)]
    assert sum(x.nbytes for x in tensors) == 1000 * script.ReplayBuffer.bytes_per_step(17, 6)


# Worker ===========================================================================================


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_update_moves_the_shared_weights_and_then_their_average(decay):
    args = script.parse_args(["--average-decay", str(decay)])
    shared = script.make_shared(args, 4, 2, None)
    model = script.copy.deepcopy(shared.model)
    segment = Segment(*(part.float() for part in linear_segment(7, True)[:4]), True)
    script.learn(segment, model, shared, args, torch.Generator())
    assert_average_follows(shared.average_model, model, shared.model, decay)


class Silent:
    def send(self, message):
        pass


def test_the_learner_replays_normalised_observations_and_actions_as_sampled(monkeypatch):
    """With σ = 2 most actions are clipped by the environment; replay keeps them unclipped."""
    flags = (
        "--env-id boxes:Asymmetric-v0 --num-steps 5 --replay-size 600 --replay-start 50 "
        "--num-workers 1 --policy-std 2"
    )
    args = script.parse_args(flags.split())
    args.total_timesteps = 200
    shared = script.make_shared(args, 4, 3, None)
    seen, collected = [], []
    collect_segment = script.collect_segment

    def record(*arguments):
        collected.append((arguments[2], collect_segment(*arguments)))
        return collected[-1][1]

    monkeypatch.setattr(script, "collect_segment", record)
    monkeypatch.setattr(script, "learn", lambda segment, *_: seen.append(segment) or {})
    monkeypatch.setattr(script, "STATISTICS_EVERY", 10_000)
    script.worker(0, args, shared, Silent())
    raw = torch.cat([segment.observations[:-1] for _, (segment, _) in collected])
    normalizer = shared.observed.normalizer()
    torch.testing.assert_close(normalizer.mean, raw.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.std, raw.std(0, correction=0), rtol=1e-3, atol=1e-4)
    actions = torch.cat([segment.actions for segment in seen])
    assert (actions.abs() > 1).float().mean() > 0.3
    assert torch.cat([s.observations for s in seen]).abs().max() <= 10
    assert all(float(r) == pytest.approx(-0.7) for segment in seen for r in segment.rewards)
    # A time limit is no terminal state.
    assert not any(segment.terminated for segment in seen)
