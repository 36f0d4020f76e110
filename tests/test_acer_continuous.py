"""Continuous ACER's equations against explicit sums, torch.distributions, autograd, expectation."""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness import make_shared
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import acer_continuous as script
from acer_continuous import (
    ActorCritic,
    Segment,
    acer_loss,
    gaussian_log_ratio,
    gaussian_policy_gradient,
    stochastic_dueling,
)


def gaussian(mean: torch.Tensor, std: float) -> Independent:
    return Independent(Normal(mean, torch.full_like(mean, std)), 1)


@pytest.mark.parametrize("size", [1, 6])
def test_the_log_ratio_is_that_of_the_joint_densities(size):
    actions, mean, mu_mean = torch.randn(3, 4, size, dtype=torch.float64)
    mean.requires_grad_()
    ratio = gaussian_log_ratio(actions, mean, mu_mean, 0.3)
    wanted = gaussian(mean, 0.3).log_prob(actions) - gaussian(mu_mean, 0.3).log_prob(actions)
    torch.testing.assert_close(ratio, wanted)
    one, two = (torch.autograd.grad(x.sum(), mean)[0] for x in (ratio, wanted))
    torch.testing.assert_close(one, two)


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
        "retrace_lambda": 0.8,
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
        active.insert(0, bool(args.trust_region and k @ g > args.trust_region_delta))
        z = g - (k @ g - args.trust_region_delta) / (k @ k) * k if active[0] else g
        # The critic: half the squares in the paper, here weighed by the settings.
        v_target = min(1, rho) * (q_ret - q.item()) + v.item()
        loss = -(z @ model.policy(x[t])) + args.q_coef * (q_ret - q) ** 2
        loss = loss + args.vf_coef * (v_target - v) ** 2
        for into, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            into += gradient / args.num_steps
        q_ret = args.retrace_lambda * min(1, rho ** (1 / size)) * (q_ret - q.item()) + v.item()
        q_opc = args.retrace_lambda * (q_opc - q.item()) + v.item()
    return total, active, returns


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize(("length", "terminated"), [(1, True), (1, False), (7, True), (20, False)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"trust_region": False}, {"bias_correction": False}, {"retrace_lambda": 1.0}],
)
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
    torch.testing.assert_close(statistics["target"], torch.tensor(returns).double())
    assert statistics["trust_region_active"].tolist() == active
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
    torch.testing.assert_close(statistics["rho"], rho.detach())
    assert torch.equal(statistics["truncated_weights"], rho > 1.3)
    assert 0 < (rho > 1.3).sum() < 20
    torch.testing.assert_close(statistics["average_policy_kl"], kl_divergence(pi_a, pi).detach())
    error = statistics["target"] - statistics["prediction"]
    torch.testing.assert_close(statistics["q_loss"].mean(), error.square().mean())
    towards_v = (rho.clamp_max(1) * error).square().mean()  # V^target − V
    torch.testing.assert_close(statistics["value_loss"].mean(), towards_v.detach())
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


@pytest.mark.parametrize("shape", [(50, 6), (7, 50, 6)])
def test_the_advantage_is_that_of_observations_and_actions_side_by_side(shape):
    torch.manual_seed(0)
    model, observations, actions = ActorCritic(17, 6), torch.randn(50, 17), torch.randn(shape)
    for p in model.advantage_net.parameters():
        nn.init.normal_(p, std=0.3)  # biases start at 0
    together = torch.cat([observations.expand(*shape[:-1], 17), actions], -1)
    first, *others = model.advantage_net
    x = together.double() @ first.weight.double().T + first.bias.double()
    for layer in others:
        linear = isinstance(layer, nn.Linear)
        x = x @ layer.weight.double().T + layer.bias.double() if linear else x.clamp_min(0)
    found = model.advantage(observations, actions)
    torch.testing.assert_close(found.double(), x.squeeze(-1), rtol=1e-4, atol=1e-4)


# Worker ===========================================================================================


def test_the_learner_replays_normalised_observations_and_actions_as_sampled(monkeypatch, tmp_path):
    """With σ = 2 most actions are clipped by the environment; replay keeps them unclipped."""
    flags = (
        "--env-id boxes:Asymmetric-v0 --num-steps 5 --replay-size 600 --replay-start 50 "
        f"--num-workers 1 --policy-std 2 --total-timesteps 200 --run-dir {tmp_path}"
    )
    args = script.parse_args(flags.split())
    shared = make_shared("acer_continuous", args)
    seen, collected = [], []
    act, loss = script.Actor.act, script.acer_loss

    def recording_act(*arguments):
        segment, episode = act(*arguments)
        collected.append(segment)
        return segment, episode

    def recording_loss(model, average_model, segment, *rest):
        seen.append(segment)
        return loss(model, average_model, segment, *rest)

    monkeypatch.setattr(script.Actor, "act", recording_act)
    monkeypatch.setattr(script, "acer_loss", recording_loss)
    script.worker(0, args, shared, SimpleNamespace(send=lambda message: None))
    raw = torch.cat([segment.observations[:-1] for segment in collected])
    normalizer = shared.observed.normalizer()
    torch.testing.assert_close(normalizer.mean, raw.mean(0))
    torch.testing.assert_close(normalizer.std, raw.std(0, correction=0))
    actions = torch.cat([segment.actions for segment in seen])
    stored = torch.cat([segment.actions for segment in collected])
    assert (actions.abs() > 1).float().mean() > 0.3
    assert torch.isin(actions, stored).all()
    assert torch.cat([s.observations for s in seen]).abs().max() <= 10
    assert all(float(r) == pytest.approx(-0.7) for segment in seen for r in segment.rewards)
    # A time limit is no terminal state.
    assert not any(segment.terminated for segment in seen)
