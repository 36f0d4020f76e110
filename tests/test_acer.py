"""ACER's equations against explicit sums, enumeration, autograd and brute force."""

import copy
import itertools
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import toys
from gymnasium.spaces import Discrete
from harness import ATARI, SCRIPTS, make_shared, module, weights_file
from torch import nn
from torch.distributions import Categorical, kl_divergence

import acer_atari as script
from acer_atari import (
    ActorCritic,
    Segment,
    acer_loss,
    apply_gradients,
    categorical_policy_gradient,
    retrace,
    trust_region_step,
)


def random_policies(rng, count: int, num_actions: int, spread: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(rng.normal(scale=spread, size=(count, num_actions))).softmax(1)


# Retrace ==========================================================================================


@pytest.mark.parametrize("length", [1, 2, 5, 20])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("terminated", [True, False])
def test_retrace_is_the_papers_sum_of_temporal_differences(length, gamma, terminated):
    """Munos et al. (2016), equation 3: Q + Σ_s γ^(s−t) (Π c) [r_s + γ V(x_{s+1}) − Q(x_s, a_s)]."""
    rng = np.random.default_rng(length)
    rewards, q, values = rng.normal(size=(3, length))
    coef = rng.uniform(0, 1, size=length)
    bootstrap_value = 0.0 if terminated else float(rng.normal())
    next_values = [*values[1:], bootstrap_value]
    wanted = []
    for t in range(length):
        total = q[t]
        for s in range(t, length):
            traces = np.prod(coef[t + 1 : s + 1])
            total += gamma ** (s - t) * traces * (rewards[s] + gamma * next_values[s] - q[s])
        wanted.append(total)
    arguments = [torch.from_numpy(x) for x in (rewards, q, values, coef)]
    arguments[1].requires_grad_()
    q_ret = retrace(*arguments, bootstrap_value, gamma)
    np.testing.assert_allclose(q_ret.numpy(), wanted, rtol=1e-10, atol=1e-10)
    assert not q_ret.requires_grad


def test_the_first_trace_coefficient_is_never_used():
    rng = np.random.default_rng(0)
    rewards, q, values, coef = (torch.from_numpy(rng.uniform(size=5)) for _ in range(4))
    other = coef.clone()
    other[0] = 100.0
    one, two = (retrace(rewards, q, values, c, 0.3, 0.9) for c in (coef, other))
    assert torch.equal(one, two)


def test_retraces_fixed_point_is_the_value_of_the_policy():
    """In a random decision process, with every trajectory of μ enumerated and weighed.

    With Q = Q^π, what Retrace expects under μ is Q^π again, whatever μ is.
    """
    rng, gamma, horizon = np.random.default_rng(0), 0.8, 3
    states, actions = 2, 2
    pi, mu = (random_policies(rng, states, actions, 1.5).numpy() for _ in range(2))
    transition = rng.dirichlet(np.ones(states), size=(states, actions))
    reward = rng.normal(size=(states, actions))
    # Q^π = r + γ P Σ π Q^π, solved as a linear system over (state, action).
    matrix = np.einsum("sau,ub->saub", transition, pi).reshape(4, 4)
    q = np.linalg.solve(np.eye(4) - gamma * matrix, reward.reshape(4)).reshape(states, actions)
    v = (pi * q).sum(1)
    rho_bar = np.minimum(1, pi / mu)
    for first in itertools.product(range(states), range(actions)):
        expected = 0.0
        moves = list(itertools.product(range(states), range(actions)))
        for path in itertools.product(moves, repeat=horizon - 1):
            for last in range(states):
                steps = [first, *path]
                probability = 1.0
                for (s, a), (following, b) in itertools.pairwise(steps):
                    probability *= transition[s, a, following] * mu[following, b]
                probability *= transition[(*steps[-1], last)]
                at = tuple(np.array(steps).T)
                tensors = [torch.from_numpy(x) for x in (reward[at], q[at], v[at[0]], rho_bar[at])]
                expected += probability * float(retrace(*tensors, v[last], gamma)[0])
        assert expected == pytest.approx(q[first], abs=1e-12)


# Policy gradient ==================================================================================


def through_softmax(pi: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Turn a gradient in probabilities into one in logits."""
    return pi * (g - (pi * g).sum(-1, keepdim=True))


@pytest.mark.parametrize("rho_clip", [0.1, 1.0, 2.0, 10.0, 1000.0])
def test_truncation_with_correction_is_unbiased_for_every_c(rho_clip):
    """Every action enumerated, weighed by μ, against autograd's ∇ Σ_a π(a) Q(a)."""
    rng, num_actions = np.random.default_rng(1), 5
    logits = torch.from_numpy(rng.normal(scale=2, size=(1, num_actions))).requires_grad_()
    q = torch.from_numpy(rng.normal(size=(1, num_actions)))
    mu = random_policies(rng, 1, num_actions, 2)
    pi = logits.softmax(1)
    (wanted,) = torch.autograd.grad((pi * q).sum(), logits)
    pi = pi.detach()
    values, expected, without = (pi * q).sum(1), 0.0, 0.0
    for a in range(num_actions):
        arguments = pi, mu, torch.tensor([a]), q, values, q[:, a], rho_clip, 0.0
        g = categorical_policy_gradient(*arguments)
        expected += mu[0, a] * through_softmax(pi, g)
        g = categorical_policy_gradient(*arguments, bias_correction=False)
        without += mu[0, a] * through_softmax(pi, g)
    torch.testing.assert_close(expected, wanted, rtol=1e-10, atol=1e-12)
    biased = not torch.allclose(without, wanted, rtol=1e-3)
    assert biased == bool(((pi / mu) > rho_clip).any())


def test_the_weight_of_a_taken_action_is_cut_at_c():
    pi, mu = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.01, 0.99]])
    q, values = torch.zeros(1, 2), torch.zeros(1)
    arguments = pi, mu, torch.tensor([0]), q, values, torch.ones(1), 10.0, 0.0, False
    g = categorical_policy_gradient(*arguments)
    torch.testing.assert_close(g, torch.tensor([[10 / 0.9, 0.0]]))


def test_the_entropy_term_is_the_gradient_of_the_entropy():
    pi = random_policies(np.random.default_rng(2), 4, 3).requires_grad_()
    entropy = -(pi * pi.log()).sum()  # of free probabilities: torch.distributions would normalise
    (wanted,) = torch.autograd.grad(entropy, pi)
    zeros = torch.zeros(4, dtype=torch.float64)
    arguments = pi, pi.detach(), torch.zeros(4, dtype=torch.int64), pi.detach() * 0, zeros, zeros
    g = categorical_policy_gradient(*arguments, 10.0, 0.3)
    torch.testing.assert_close(g, 0.3 * wanted)
    assert not g.requires_grad


def test_a_policy_that_is_sure_gives_finite_gradients():
    pi = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    mu = torch.tensor([[0.0, 1.0, 0.0], [1e-30, 1.0, 0.0]])
    q = torch.randn(2, 3)
    g = categorical_policy_gradient(
        pi, mu, torch.tensor([1, 0]), q, torch.zeros(2), torch.ones(2), 10.0, 0.01
    )
    k = -torch.tensor([[0.2, 0.3, 0.5]] * 2) / pi.clamp_min(script.MIN_PROBABILITY)
    assert g.isfinite().all()
    assert trust_region_step(g, k, 1.0).isfinite().all()


# Trust region =====================================================================================


def test_a_step_inside_the_trust_region_is_left_exactly_as_it_is():
    g = torch.randn(6, 4)
    k = torch.randn(6, 4)
    bound = float((k * g).sum(1).max()) + 1
    assert torch.equal(trust_region_step(g, k, bound), g)


def test_an_active_step_lies_on_the_boundary_and_is_the_nearest():
    """Nearest by brute force: no random feasible point is closer to g."""
    rng, delta = np.random.default_rng(0), 0.5
    k = rng.normal(size=(20, 3))
    g = 2 * k / np.linalg.norm(k, axis=1, keepdims=True) + rng.normal(scale=0.3, size=(20, 3))
    assert ((k * g).sum(1) > delta).sum() > 10
    z = trust_region_step(torch.from_numpy(g), torch.from_numpy(k), delta).numpy()
    for one_g, one_k, one_z in zip(g, k, z, strict=True):
        if one_k @ one_g <= delta:
            assert np.array_equal(one_z, one_g)
            continue
        assert one_k @ one_z == pytest.approx(delta)
        points = one_z + rng.normal(size=(20_000, 3)) * rng.choice([1e-3, 0.1, 1], (20_000, 1))
        feasible = points[points @ one_k <= delta]
        distances = np.linalg.norm(feasible - one_g, axis=1)
        assert distances.min() >= np.linalg.norm(one_z - one_g) - 1e-9


def test_each_state_has_its_own_trust_region():
    g, k = torch.tensor([[3.0, 0.0], [-9.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # The mean over both states holds the constraint; the first state alone does not.
    torch.testing.assert_close(trust_region_step(g, k, 1.0), torch.tensor([[1.0, 0], [-9, 0]]))


def test_a_zero_k_leaves_g_alone():
    g = torch.randn(3, 4)
    assert torch.equal(trust_region_step(g, torch.zeros(3, 4), 1.0), g)


# The whole loss ===================================================================================


class Linear(nn.Module):
    """A stand-in for the network, of float features, in double precision."""

    def __init__(self, seed: int, num_features: int = 5, num_actions: int = 3):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.policy = nn.Parameter(torch.from_numpy(rng.normal(size=(num_features, num_actions))))
        self.q = nn.Parameter(torch.from_numpy(rng.normal(size=(num_features, num_actions))))

    def forward(self, observations):
        return (observations @ self.policy).softmax(1), observations @ self.q


def settings(**changes) -> Namespace:
    values = {
        "gamma": 0.9,
        "num_steps": 20,
        "q_coef": 0.7,
        "ent_coef": 0.3,
        "rho_clip": 1.5,
        "bias_correction": True,
        "trust_region": True,
        "trust_region_delta": 0.5,
    }
    return Namespace(**(values | changes))


def linear_segment(length: int, terminated: bool, seed: int = 0) -> Segment:
    rng = np.random.default_rng(seed)
    return Segment(
        torch.from_numpy(rng.normal(size=(length + 1, 5))),
        torch.from_numpy(rng.integers(3, size=length)),
        torch.from_numpy(rng.normal(size=length)),
        random_policies(rng, length, 3, 1.5),
        terminated,
    )


def gradient_by_hand(model, average_model, segment, args):
    """Algorithm 2 with loops over t and a; also which states the trust region changes."""
    x, actions, rewards = (tensor.numpy() for tensor in segment[:3])
    mu, length = segment.mu.numpy(), len(rewards)
    policy, weight = model.policy.detach().numpy(), model.q.detach().numpy()

    def probabilities(logits):
        return np.exp(logits) / np.exp(logits).sum()

    pi = np.array([probabilities(row @ policy) for row in x])
    pi_a = np.array([probabilities(row @ average_model.policy.detach().numpy()) for row in x])
    q, v = x @ weight, [p @ (row @ weight) for p, row in zip(pi, x, strict=True)]
    q_ret, following = [0.0] * length, 0.0 if segment.terminated else v[length]
    for t in range(length - 1, -1, -1):
        q_ret[t] = rewards[t] + args.gamma * following
        rho = pi[t, actions[t]] / mu[t, actions[t]]
        following = min(1, rho) * (q_ret[t] - q[t, actions[t]]) + v[t]
    to_policy, to_q, active = np.zeros_like(policy), np.zeros_like(weight), []
    for t in range(length):
        g, k = np.zeros(3), np.zeros(3)
        for a in range(3):
            rho = pi[t, a] / mu[t, a]
            if a == actions[t]:
                g[a] += min(args.rho_clip, rho) * (q_ret[t] - v[t]) / pi[t, a]
            if args.bias_correction:
                g[a] += max(0, 1 - args.rho_clip / rho) * (q[t, a] - v[t])
            g[a] -= args.ent_coef * (np.log(pi[t, a]) + 1)
            k[a] = -pi_a[t, a] / pi[t, a]
        active.append(args.trust_region and k @ g > args.trust_region_delta)
        z = g - (k @ g - args.trust_region_delta) / (k @ k) * k if active[-1] else g
        for a, b in itertools.product(range(3), range(3)):
            # ∂ π(b) / ∂ logit a, and the loss is −zᵀπ
            to_policy[:, a] += -z[b] * pi[t, b] * ((a == b) - pi[t, a]) * x[t] / args.num_steps
        error = q_ret[t] - q[t, actions[t]]
        to_q[:, actions[t]] += args.q_coef * 2 * error * -x[t] / args.num_steps
    return to_policy, to_q, active


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"trust_region": False}, {"bias_correction": False}, {"ent_coef": 0.0}, {"q_coef": 0.1}],
)
def test_the_loss_has_the_gradient_of_algorithm_2(length, terminated, changes):
    model, average_model, args = Linear(1), Linear(2), settings(**changes)
    segment = linear_segment(length, terminated)
    loss, statistics = acer_loss(model, average_model, segment, args)
    loss.backward()
    to_policy, to_q, active = gradient_by_hand(model, average_model, segment, args)
    np.testing.assert_allclose(model.policy.grad.numpy(), to_policy, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model.q.grad.numpy(), to_q, rtol=1e-8, atol=1e-10)
    assert average_model.policy.grad is None
    assert average_model.q.grad is None
    assert statistics["trust_region_active"].tolist() == active
    if length == 20 and args.trust_region:
        assert 0.1 < np.mean(active) < 0.9, "some states inside, some outside"


def test_the_trust_regions_k_is_the_gradient_of_the_kl_divergence(monkeypatch):
    """torch.distributions normalises: both are compared along the simplex, and k itself in full."""
    model, average_model, segment = Linear(1), Linear(2), linear_segment(9, False)
    seen = {}

    def record(g, k, delta):
        seen.update(g=g, k=k)
        return trust_region_step(g, k, delta)

    monkeypatch.setattr(script, "trust_region_step", record)
    acer_loss(model, average_model, segment, settings())
    pi = model(segment.observations[:-1])[0].detach().requires_grad_()
    pi_a = average_model(segment.observations[:-1])[0].detach()
    (free,) = torch.autograd.grad((pi_a * (pi_a.log() - pi.log())).sum(), pi)
    torch.testing.assert_close(seen["k"], free)
    divergence = kl_divergence(Categorical(pi_a), Categorical(pi)).sum()
    (normalised,) = torch.autograd.grad(divergence, pi)
    k = seen["k"] - seen["k"].mean(1, keepdim=True)
    torch.testing.assert_close(k, normalised - normalised.mean(1, keepdim=True))


def test_the_trust_region_keeps_the_policy_nearer_to_the_average():
    """The signs of g and k together: a step along z ends nearer to the average than one along g.

    With both networks equal k would be the same for all actions, which no softmax notices.
    """
    segment, divergences = linear_segment(20, False), {}
    for trust_region in (True, False):
        model, average_model = Linear(1), Linear(2)
        args = settings(trust_region=trust_region, trust_region_delta=0.01, q_coef=0.0)
        acer_loss(model, average_model, segment, args)[0].backward()
        with torch.no_grad():
            model.policy -= 0.1 * model.policy.grad
            pi, pi_a = (net(segment.observations[:-1])[0] for net in (model, average_model))
        divergences[trust_region] = kl_divergence(Categorical(pi_a), Categorical(pi)).mean()
    assert divergences[True] < divergences[False] - 1e-3


def test_what_the_trust_region_changes_is_a_pull_of_the_logits_towards_the_average():
    """Through the softmax z − g = −λk is λ (π_a − π): nothing where π = π_a, however large λ is."""
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(size=(50, 5))).requires_grad_()
    pi, pi_a = logits.softmax(1), random_policies(rng, 50, 5)
    pi_a[::2] = pi.detach()[::2]
    g, k = torch.from_numpy(rng.normal(size=(50, 5), scale=3)), -pi_a / pi.detach()
    z = trust_region_step(g, k, 0.5)
    (change,) = torch.autograd.grad(((z - g) * pi).sum(), logits)
    multiplier = ((k * g).sum(1) - 0.5).clamp_min(0) / (k * k).sum(1)
    assert (multiplier > 0.1).sum() > 15
    torch.testing.assert_close(change, multiplier[:, None] * (pi_a - pi.detach()))


def test_retrace_is_cut_at_1_and_not_at_c():
    segment = linear_segment(20, False)
    _, low = acer_loss(Linear(1), Linear(2), segment, settings(rho_clip=1.0))
    _, high = acer_loss(Linear(1), Linear(2), segment, settings(rho_clip=50.0))
    assert torch.equal(low["target"], high["target"])


def test_the_statistics_are_what_they_say():
    model, average_model, segment = Linear(1), Linear(2), linear_segment(20, False)
    _, statistics = acer_loss(model, average_model, segment, settings())
    pi, q = model(segment.observations[:-1])
    pi_a, _ = average_model(segment.observations[:-1])
    at = range(20), segment.actions
    rho = (pi / segment.mu)[at]
    error = statistics["target"] - q[at]
    wanted = {
        "entropy": Categorical(pi).entropy(),
        "rho": rho,
        "truncated_weights": rho > 1.5,
        "average_policy_kl": kl_divergence(Categorical(pi_a), Categorical(pi)),
        "prediction": q[at],
    }
    assert 0 < wanted["truncated_weights"].sum() < 20
    for name, value in wanted.items():
        torch.testing.assert_close(statistics[name], value.detach())
    torch.testing.assert_close(statistics["q_loss"].mean(), error.square().mean().detach())
    assert not any(value.requires_grad for value in statistics.values())


def test_a_policy_that_is_sure_has_a_finite_loss_and_statistics():
    """π = (1, 0, 0) in floating point, also where another action was taken long ago."""
    model, average_model = Linear(1), Linear(2)
    with torch.no_grad():
        model.policy.copy_(torch.tensor([[900.0, 0, 0]] * 5))
    segment = linear_segment(20, False)
    segment = segment._replace(observations=segment.observations.abs() + 1)
    assert model(segment.observations)[0].min() == 0
    loss, statistics = acer_loss(model, average_model, segment, settings())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in statistics.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_summary_weighs_every_state_alike_and_every_update_alike(name):
    rng = np.random.default_rng(0)
    updates, states = [], []
    for length in (3, 20, 1):
        states.append(rng.normal(size=(length, 3)).astype(np.float32))
        target, prediction, other = torch.from_numpy(states[-1]).unbind(1)
        updates.append({"target": target, "prediction": prediction, "entropy": other})
        updates[-1] |= {"q_loss": torch.tensor(float(length)), "active": other > 0}
        updates[-1]["policy_std"] = torch.from_numpy(states[-1])
    summary = module(name).summarise(updates)
    target, prediction, other = np.concatenate(states).astype(np.float64).T
    wanted = {
        "target": target.mean(),
        "prediction": prediction.mean(),
        "entropy": other.mean(),
        "q_loss": 8,
        "active": (other > 0).mean(),
        "policy_std": np.mean([target, prediction, other]),
        "explained_variance": 1 - np.var(target - prediction) / np.var(target),
    }
    assert summary == {key: pytest.approx(value, rel=1e-6) for key, value in wanted.items()}
    assert module(name).summarise([]) == {}


# Network and one update ===========================================================================


def pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 4, 84, 84), generator=generator, dtype=torch.uint8)


def test_the_network_gives_a_nearly_uniform_policy_and_one_value_for_each_action():
    torch.manual_seed(0)
    model = ActorCritic(6)
    with torch.no_grad():
        pi, q = model(pixels(21))
        singly = [model(observation[None]) for observation in pixels(21)]
    assert pi.shape == q.shape == (21, 6)
    torch.testing.assert_close(pi.sum(1), torch.ones(21))
    assert (pi - 1 / 6).abs().max() < 0.05
    torch.testing.assert_close(torch.cat([one for one, _ in singly]), pi, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([one for _, one in singly]), q, rtol=1e-4, atol=1e-5)


def test_the_forward_is_that_of_its_layers_on_frames_less_their_ground():
    """In double precision; a stack's ground is the median of every eighth pixel each way."""
    torch.manual_seed(0)
    model, f = ActorCritic(6), nn.functional
    p = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    x = pixels(3).numpy() / 255
    ground = [np.sort(stack[:, ::8, ::8], None)[(4 * 11 * 11 - 1) // 2] for stack in x]
    x = torch.from_numpy(x - np.array(ground)[:, None, None, None])
    for name, stride in [("conv1", 4), ("conv2", 2), ("conv3", 1)]:
        x = f.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride).clamp_min(0)
    x = (x.flatten(1) @ p["dense.weight"].T + p["dense.bias"]).clamp_min(0)
    with torch.no_grad():
        pi, q = model(pixels(3))
    wanted = (x @ p["policy.weight"].T + p["policy.bias"]).softmax(1)
    torch.testing.assert_close(pi.double(), wanted, rtol=1e-4, atol=1e-5)
    wanted = x @ p["q.weight"].T + p["q.bias"]
    torch.testing.assert_close(q.double(), wanted, rtol=1e-4, atol=1e-5)


def screens(ground: int, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Return stacks of frames with one small sprite in each, at random."""
    stacks = np.full((count, 4, 84, 84), ground, np.uint8)
    for screen in stacks.reshape(-1, 84, 84):
        row, column = rng.integers(80, size=2)
        screen[row : row + 4, column : column + 2] = ground + 149
    return torch.from_numpy(stacks)


def test_a_brighter_ground_changes_nothing_and_a_black_one_stays_black():
    """Each stack by itself: a bright one among others has no effect on them."""
    model = ActorCritic(4)
    black = screens(0, 3, np.random.default_rng(0))
    brighter = black.clone()
    brighter[1] += 100
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(model(brighter), model(black), rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[1], black.float() * (1 / 255))


def test_a_grey_ground_leaves_no_unit_dead():
    """On Pong's grey, after a hundred updates in which the values learn that the game is lost.

    Without the ground subtracted, 14 of the first layer's 32 units would never respond again.
    """
    torch.manual_seed(0)
    model, rng = ActorCritic(6), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (model(screens(87, 8, rng))[1] + 2).square().mean().backward()
        optimizer.step()
    seen = []
    model.conv1.register_forward_hook(lambda *call: seen.append(call[-1] > 0))
    with torch.no_grad():
        model(screens(87, 50, rng))
    assert seen[0].transpose(0, 1).flatten(1).any(1).all()


def near(share: torch.Tensor, wanted: float, count: int) -> bool:
    return abs(float(share) - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / count)


class Fixed:
    """A network that gives every observation the same policy, in the form of either script."""

    def __init__(self, name: str, pi: list[float]):
        self.recurrent, self.pi = name == "a3c_recurrent_atari", torch.tensor([pi])

    def initial_state(self):
        return torch.zeros(1, 256), torch.zeros(1, 256)

    def __call__(self, observations, state=None):
        return (self.pi.log(), None, state) if self.recurrent else (self.pi, None)


@pytest.mark.parametrize("name", ATARI)
def test_every_step_of_every_segment_draws_its_own_action_from_the_policy(name, monkeypatch):
    """With probability Σ π² an action is that of another step or segment, each of them drawn anew.

    All shares are within 4 standard errors; an action of probability 0 never comes.
    """
    script, pi = module(name), [0.05, 0.25, 0.0, 0.7]
    env = script.make_env("toys:DelayedCue-v0", 1)
    monkeypatch.setattr(env.unwrapped, "delay", 10**6)
    monkeypatch.setattr(type(env), "action_space", Discrete(4))
    generator, stop = torch.Generator().manual_seed(1), torch.zeros(1, dtype=torch.bool)
    actor = script.Actor(None, env, None, Fixed(name, pi), generator)
    actions = torch.stack([actor.act(20, stop)[0].actions for _ in range(200)])
    for action, wanted in enumerate(pi):
        assert near((actions == action).float().mean(), wanted, actions.numel())
    same = float(torch.tensor(pi).square().sum())
    for one, other in [(actions[:, 1:], actions[:, :-1]), (actions[1:], actions[:-1])]:
        assert near((one == other).float().mean(), same, one.numel())


@pytest.mark.parametrize("name", ATARI)
def test_evaluation_draws_from_the_policy_or_takes_its_most_probable_action(
    name, tmp_path, monkeypatch
):
    script = module(name)
    args = script.parse_args(["--env-id", "toys:DelayedCue-v0"])
    shared = make_shared(name, args)
    with torch.no_grad():
        shared.model.policy.weight.zero_()
        shared.model.policy.bias.copy_(torch.tensor([0.3, 0.7]).log())
    torch.save(weights_file(name, args, shared), tmp_path / "weights.pt")
    actions, step = [], toys.DelayedCue.step

    def record(self, action):
        actions.append(float(action))
        return step(self, action)

    monkeypatch.setattr(toys.DelayedCue, "step", record)
    argv = f"--evaluate {tmp_path}/weights.pt --eval-episodes 100 --env-id {args.env_id}".split()
    script.evaluate(script.parse_args(argv))
    assert near(np.mean(actions[1:]), 0.7, 700)  # the first one tries the environment
    actions.clear()
    script.evaluate(script.parse_args([*argv, "--greedy"]))
    assert len(actions) == 701
    assert set(actions[1:]) == {1.0}


def everything(shared: script.Shared) -> list[torch.Tensor]:
    moments = [tensor for state in shared.optimizer.state.values() for tensor in state.values()]
    weights = [*shared.model.weights, *shared.average_model.weights]
    return [tensor.detach().clone() for tensor in [*weights, *moments]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_never_reaches_the_shared_weights(reward):
    args = script.parse_args(["--env-id", "toys:DelayedCue-v0"])
    shared = make_shared("acer_atari", args)
    model = copy.deepcopy(shared.model)

    def learn(reward: float) -> None:
        uniform, actions = torch.full((5, 2), 0.5), torch.tensor([0, 1, 0, 1, 1])
        segment = Segment(pixels(6), actions, torch.full((5,), reward), uniform, True)
        loss, _ = acer_loss(model, shared.average_model, segment, args)
        apply_gradients(loss, model, shared, args.max_grad_norm)

    untouched = everything(shared)
    learn(1.0)
    before = everything(shared)
    assert not any(torch.equal(a, b) for a, b in zip(untouched[:6], before[:6], strict=True))
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        learn(reward)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(shared), strict=True))
