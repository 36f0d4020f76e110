"""Continuous A3C's loss against torch.distributions and sums written out."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import a3c_continuous as script
from a3c_continuous import (
    ActorCritic,
    Segment,
    a3c_loss,
    gaussian_log_density,
    generalised_advantages,
)


@pytest.mark.parametrize("size", [1, 6])
def test_the_log_density_is_joint_over_the_dimensions(size):
    mean, std, actions = torch.randn(4, size), torch.rand(4, size) + 0.1, torch.randn(4, size)
    wanted = Independent(Normal(mean, std), 1).log_prob(actions)
    torch.testing.assert_close(gaussian_log_density(actions, mean, std), wanted)
    wanted = Independent(Normal(mean, torch.full_like(mean, 0.3)), 1).log_prob(actions)
    torch.testing.assert_close(gaussian_log_density(actions, mean, 0.3), wanted)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("length", [1, 7])
def test_generalised_advantages_are_a_mean_over_all_numbers_of_steps(length, gae_lambda):
    """(1 − λ) Σ_n λ^{n−1} A^(n), where A^(n) looks n steps ahead; beyond the end all are equal."""
    rng, gamma, v_end = np.random.default_rng(length), 0.9, 1.7
    rewards, values = torch.from_numpy(rng.normal(size=(2, length)))
    v = [*values.tolist(), v_end]

    def of_n_steps(t: int, n: int) -> float:
        n = min(n, length - t)
        return sum(gamma**i * float(rewards[t + i]) for i in range(n)) + gamma**n * v[t + n] - v[t]

    advantages = generalised_advantages(rewards, values, v_end, gamma, gae_lambda)
    for t in range(length):
        many = range(1, 200)
        weights = [(1 - gae_lambda) * gae_lambda ** (n - 1) for n in many]
        weights[-1] += gae_lambda ** many[-1]
        wanted = sum(w * of_n_steps(t, n) for w, n in zip(weights, many, strict=True))
        assert float(advantages[t]) == pytest.approx(wanted)


class Linear(nn.Module):
    """Linear mean, log σ and value, in double precision."""

    def __init__(self, action_size: int):
        super().__init__()
        rng = np.random.default_rng(1)
        self.mean = nn.Parameter(torch.from_numpy(rng.normal(size=(4, action_size))))
        self.log_std = nn.Parameter(torch.from_numpy(rng.normal(size=(4, action_size))) * 0.2)
        self.v = nn.Parameter(torch.from_numpy(rng.normal(size=4)))

    def policy(self, x):
        return x @ self.mean, (x @ self.log_std).exp()

    def value(self, x):
        return x @ self.v


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize(("length", "terminated"), [(1, True), (7, False), (20, True)])
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
def test_the_loss_has_the_gradient_of_the_papers_equations(
    size, length, terminated, ent_coef, gae_lambda
):
    """With λ = 1; with a smaller one, of generalised advantages in the place of R − V."""
    rng = np.random.default_rng(length)
    shapes = (length + 1, 4), (length, size), (length,)
    x, actions, rewards = (torch.from_numpy(rng.normal(size=shape)) for shape in shapes)
    args = Namespace(gamma=0.9, num_steps=20, vf_coef=0.7, ent_coef=ent_coef)
    args.gae_lambda, args.bound_coef = gae_lambda, 0.2
    model = Linear(size)
    loss, statistics = a3c_loss(model, Segment(x, actions, rewards, terminated), args)
    loss.backward()
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    pi = Independent(Normal(*model.policy(x[:-1])), 1)
    torch.testing.assert_close(statistics["entropy"], pi.entropy().detach())
    torch.testing.assert_close(statistics["prediction"], model.value(x[:-1]).detach())
    torch.testing.assert_close(statistics["policy_std"], pi.stddev.detach())
    v_fixed = model.value(x).tolist()
    v_fixed[-1] *= not terminated
    for t in range(length):
        r = v_fixed[t] + sum(
            (args.gamma * gae_lambda) ** (s - t)
            * (float(rewards[s]) + args.gamma * v_fixed[s + 1] - v_fixed[s])
            for s in range(t, length)
        )
        assert float(statistics["target"][t]) == pytest.approx(r)
        policy, v = Independent(Normal(*model.policy(x[t])), 1), model.value(x[t])
        one = -policy.log_prob(actions[t]) * (r - float(v.detach())) + args.vf_coef * (r - v) ** 2
        one = one - ent_coef * policy.entropy()
        one = one + args.bound_coef * sum(max(0, abs(m) - 1) ** 2 for m in policy.mean)
        for into, gradient in zip(
            wanted, torch.autograd.grad(one, model.parameters()), strict=True
        ):
            into += gradient / args.num_steps
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_sigma_is_a_parameter_of_each_dimension_and_policy_and_value_share_nothing():
    torch.manual_seed(0)
    model = ActorCritic(5, 3)
    with torch.no_grad():
        assert torch.equal(model.log_std, torch.full((3,), script.INITIAL_LOG_STD))
        model.log_std.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    x = torch.randn(10, 5)
    mean, std = model.policy(x)
    torch.testing.assert_close(mean, model.policy_net(x))
    torch.testing.assert_close(std, torch.tensor([-1.0, 0.0, 1.0]).exp().expand(10, 3))
    for of_one, of_many in zip(model.policy(x[0]), (mean[0], std[0]), strict=True):
        torch.testing.assert_close(of_one, of_many)
    (mean.sum() + std.sum()).backward()
    assert torch.equal(model.log_std.grad, 10 * model.log_std.exp())
    assert all(p.grad is None for p in model.value_net.parameters())


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_policys_units_are_those_of_the_flag(activation):
    args = script.parse_args(["--env-id", "InvertedPendulum-v5", "--activation", activation])
    with script.make_env(args.env_id, 0) as env:
        model = script.Shared(args, env).model
    x = torch.randn(10, 4)
    hidden = x
    for layer in (0, 2):
        hidden = getattr(torch, activation)(model.policy_net[layer](hidden))
    torch.testing.assert_close(model.policy(x)[0], model.policy_net[4](hidden))


def test_a_policy_that_is_sure_has_finite_gradients():
    model = ActorCritic(5, 3)
    with torch.no_grad():
        model.log_std.fill_(-15.0)
    segment = Segment(torch.randn(4, 5), torch.randn(3, 3), torch.ones(3), True)
    loss, _ = a3c_loss(model, segment, script.parse_args([]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
