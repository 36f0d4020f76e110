# SPDX-License-Identifier: MIT
"""ACER on continuous control: stochastic dueling networks, in one file.

Z. Wang, V. Bapst, N. Heess, V. Mnih, R. Munos, K. Kavukcuoglu, N. de Freitas (2017):
"Sample Efficient Actor-Critic with Experience Replay", https://arxiv.org/abs/1611.01224,
section 5 and Algorithm 3. Asynchronous workers as in A3C: V. Mnih et al. (2016),
https://arxiv.org/abs/1602.01783.

    python acer_continuous.py --env-id HalfCheetah-v5                     # train
    python acer_continuous.py --resume runs/NAME                          # go on after a stop
    python acer_continuous.py --evaluate runs/NAME --greedy               # play, mean actions

Every worker process owns an environment, a replay buffer and a copy of the networks. It acts for
at most `num_steps` steps, stores that segment, then learns from about `replay_ratio` segments of
its replay, and steps the one shared set of weights after each.

A run writes into its own folder: TensorBoard events, episodes.csv (a line an episode),
checkpoint.pt, args.json and video/.

Differences from the paper
 1. Adam is the default optimizer, one worker stepping at a time; `--optimizer rmsprop` is the
    A3C paper's, lock-free.
 2. Three separate networks for the policy's mean, V and A, of two hidden layers of 128 ReLU units
    each; the paper's share a body.
 3. Observations are normalised by the running mean and variance of all workers' observations;
    rewards are scaled by `reward_scale`, 0.1.
 4. A new segment is only stored, not learned from at once. Replay is of 50,000 steps over all
    workers (paper: 5,000 a worker), with 12 replays a segment (paper: 4), and learning starts when
    it holds `replay_start` steps; the learning rate falls to 0 over the run.
 5. Losses are divided by `num_steps`, whatever a segment's length, so that every state weighs the
    same.
 6. Orthogonal initial weights.
"""

import argparse
import contextlib
import copy
import ctypes.util
import importlib
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import struct
import sys
import time
import traceback
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import cv2
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).name
HIDDEN = 128  # units in each of a network's two hidden layers
STATISTICS_EVERY = 1_000  # a worker's own steps between two reports of its losses
RECENT_GAMES = 100  # in the progress line's means
SECONDS_TO_STOP = 30  # for workers that are told to, before they are killed
GIF_SECONDS, GIF_SIZE = 10, 200  # of the first episode, and pixels: under 3 MB
GIF_RATE = 20  # pictures a second, at most

# Settings =========================================================================================


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the defaults, except those that say nothing."""

    def _get_help_string(self, action):
        silent = action.default in (None, False)
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type, low: float, high: float = math.inf, *, above: bool = False):
    """Make an argparse type: a finite `kind` from `low` (or just above it) up to `high`."""
    wanted = f"{'above' if above else 'from'} {low:,}" + (
        f" to {high:,}" if high < math.inf else ""
    )
    wanted = f"{'a whole number' if kind is int else 'a number'} {wanted}"

    def parse(text: str):
        try:
            value = kind(text)
            usable = math.isfinite(value) and low <= value <= high and not (above and value == low)
        except (ValueError, OverflowError):
            usable = False
        if not usable:
            raise argparse.ArgumentTypeError(f"{text} will not do: give {wanted}")
        return value

    return parse


def usable_processors() -> int:
    """Count the processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows cannot tell
        return os.cpu_count() or 1


def build_parser() -> Parser:
    """Declare the command line; symbols in brackets are the papers'."""
    parser = Parser(
        prog=SCRIPT,
        description=__doc__.splitlines()[0],
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    flag = argparse.BooleanOptionalAction
    share = number(float, 0, 1)
    positive = number(float, 0, above=True)
    count = number(int, 1)

    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--env-id", default="Pendulum-v1", help="Gymnasium id, or module:Id for your own")
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=1,
        help="seed of weights, games, actions, replay",
    )
    add("--total-timesteps", type=count, default=1_000_000, help="agent steps over all workers")
    add("--num-workers", type=count, default=usable_processors(), help="worker processes")
    add("--exp-name", default=Path(SCRIPT).stem, help="name of the experiment, part of the folder")
    add("--run-dir", help="folder of this run; runs/{env}__{exp}__{seed}__{time} if not given")
    add("--log-interval", type=positive, default=10, help="seconds between progress lines")
    add("--checkpoint-interval", type=positive, default=300, help="seconds between checkpoints")
    add("--resume", metavar="RUN", help="go on with a stopped run (its folder or checkpoint)")

    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add("--evaluate", metavar="RUN", help="play with the policy of a run (folder or checkpoint)")
    add("--eval-episodes", type=count, default=10, help="games to play")
    add("--greedy", action="store_true", help="the most probable action instead of a sampled one")
    add("--capture-video", action="store_true", help="write the first game as an animated GIF")
    add("--render", action="store_true", help="show the games in a window")

    group = parser.add_argument_group("optimizer")
    add = group.add_argument
    add("--optimizer", choices=["adam", "rmsprop"], default="adam", help="shared by all workers")
    add("--learning-rate", type=positive, help="step size; 3e-4 for adam, 7e-4 for rmsprop")
    add("--anneal-lr", action=flag, default=True, help="lower it linearly to 0 over the run")
    add("--max-grad-norm", type=positive, default=40.0, help="longer gradients are scaled to this")

    group = parser.add_argument_group("actor-critic")
    add = group.add_argument
    add("--gamma", type=share, default=0.99, help="discount per agent step [γ]")
    add("--num-steps", type=count, default=50, help="agent steps in a segment, at most [k]")
    add("--q-coef", type=number(float, 0), default=0.5, help="weight of (Q^ret - Q)²")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value's squared error")
    add("--normalize-obs", action=flag, default=True, help="running mean 0, variance 1")
    add("--reward-scale", type=positive, default=0.1, help="factor on rewards, for learning only")

    group = parser.add_argument_group("ACER")
    add = group.add_argument
    add("--replay-size", type=count, default=50_000, help="steps kept, over all workers")
    add("--replay-ratio", type=positive, default=12.0, help="replays per segment, mean [r]")
    add("--replay-start", type=count, default=1_000, help="steps before the first replay")
    add("--rho-clip", type=positive, default=5.0, help="truncation of importance weights [c]")
    add("--bias-correction", action=flag, default=True, help="correct what that truncation omits")
    add("--trust-region", action=flag, default=True, help="bound the change of the policy")
    add("--trust-region-delta", type=positive, default=0.2, help="bound per state [δ]")
    add("--average-decay", type=share, default=0.995, help="average network, kept per update [α]")
    add("--policy-std", type=positive, default=0.3, help="of actions in [-1, 1], fixed [σ]")
    add("--dueling-samples", type=count, default=5, help="actions in Q's baseline [n]")
    return parser


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Read and check the command line; `--resume` and `--evaluate` take a run's own settings."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.resume and args.evaluate:
        parser.error("--resume trains and --evaluate plays: give one of them")
    if args.resume and args.run_dir:
        parser.error("--resume goes on in the run's own folder: leave --run-dir out")
    if args.render and args.capture_video:
        parser.error("--render shows the games and --capture-video writes one: give one of them")
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if args.render and sys.platform == "linux" and not display:
        parser.error("--render opens a window and there is no display: use --capture-video")
    source = args.resume or args.evaluate
    if source:
        saved = load_checkpoint(source)["args"]
        own = {"resume", "run_dir", "eval_episodes", "greedy", "capture_video", "render"}
        inherited = set(saved) & set(vars(args)) - own
        parser.set_defaults(**{name: saved[name] for name in inherited})
        args = parser.parse_args(argv)
        for name in ("env_id", "optimizer") if args.resume else ("env_id",):
            if getattr(args, name) != saved[name]:
                flag = "--" + name.replace("_", "-")
                parser.error(f"{source} was trained with {flag} {saved[name]}: leave {flag} out")
    if args.learning_rate is None:
        args.learning_rate = {"adam": 3e-4, "rmsprop": 7e-4}[args.optimizer]
    if args.replay_start > args.replay_size:
        parser.error(
            f"--replay-start {args.replay_start} is above --replay-size {args.replay_size}"
        )
    needed = args.num_workers * (args.num_steps + 1)
    if args.replay_size < needed:
        parser.error(f"--replay-size {args.replay_size} holds no segment: give at least {needed}")
    return args


def fail(message: str):
    """End with one line on standard error and exit code 1."""
    sys.exit(f"{SCRIPT}: error: {message}")


# Algorithm ========================================================================================


def retrace(
    rewards: Tensor,
    q_taken: Tensor,
    values: Tensor,
    trace_coef: Tensor,
    bootstrap_value: Tensor | float,
    gamma: float,
) -> Tensor:
    """Estimate Q^π along a segment with Retrace.

        Q^ret_t = r_t + γ [c_{t+1} (Q^ret_{t+1} − Q(x_{t+1}, a_{t+1})) + V(x_{t+1})]
        Q^ret_{T−1} = r_{T−1} + γ · bootstrap_value

    The trace coefficient c is truncated by the caller, at 1, which is not the c of `--rho-clip`.
    The first one is never used: the return of a_0 is wanted given a_0.

    Source: Wang et al. (2017), equation 5 and Algorithm 2; R. Munos et al. (2016), "Safe and
    Efficient Off-Policy Reinforcement Learning", https://arxiv.org/abs/1606.02647.

    Args:
        rewards: [T], r_t, received after a_t.
        q_taken: [T], Q(x_t, a_t).
        values: [T], V(x_t).
        trace_coef: [T], min(1, ρ_t); min(1, ρ_t^{1/d}) for d-dimensional actions; ones for Q^opc.
        bootstrap_value: V of the observation after the last step; 0 if that step terminated.
        gamma: discount per step, in [0, 1].

    Returns:
        [T], Q^ret. No gradient attached.
    """
    # Python floats: the same loop over tensor elements takes 20 times as long.
    r, q, v, c = rewards.tolist(), q_taken.tolist(), values.tolist(), trace_coef.tolist()
    q_ret, following = [0.0] * len(r), float(bootstrap_value)
    for t in reversed(range(len(r))):
        q_ret[t] = r[t] + gamma * following
        following = c[t] * (q_ret[t] - q[t]) + v[t]
    return torch.tensor(q_ret, dtype=rewards.dtype)


def gaussian_log_density(actions: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """Compute the joint log-density of actions under a diagonal Gaussian.

        log π(a) = Σ_i [−½ ((a_i − φ_i) / σ_i)² − log σ_i − ½ log 2π]

    Args:
        actions: [..., d], as sampled, before the environment clips them.
        mean: [..., d], φ.
        std: [..., d] or a number, σ > 0.

    Returns:
        [...], log π(a), with the gradients of its arguments.
    """
    std = torch.as_tensor(std)
    return (-0.5 * ((actions - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(
        -1
    )


def stochastic_dueling(values: Tensor, advantages: Tensor, drawn_advantages: Tensor) -> Tensor:
    """Join V and A to an action value whose mean under the policy is V.

        Q̃(x, a) = V(x) + A(x, a) − (1/n) Σ_i A(x, u_i),   u_i ~ π(·|x)

    Source: Wang et al. (2017), section 5.1, https://arxiv.org/abs/1611.01224.

    Args:
        values: [T], V(x_t).
        advantages: [..., T], A(x_t, a) of any actions.
        drawn_advantages: [n, T], A(x_t, u_i).

    Returns:
        [..., T], Q̃(x_t, a), with the gradients of its arguments.
    """
    return values + advantages - drawn_advantages.mean(0)


def gaussian_policy_gradient(
    mean: Tensor,
    std: float,
    actions: Tensor,
    rho: Tensor,
    q_opc: Tensor,
    values: Tensor,
    drawn_actions: Tensor,
    drawn_rho: Tensor,
    drawn_q: Tensor,
    rho_clip: float,
    bias_correction: bool = True,
) -> Tensor:
    """Compute ACER's policy gradient with respect to a Gaussian's mean.

        g_t = min(c, ρ_t) (Q^opc_t − V_t) ∇_φ log π(a_t)
              + [1 − c / ρ'_t]₊ (Q̃(x_t, a'_t) − V_t) ∇_φ log π(a'_t),   ∇_φ log π(a) = (a − φ) / σ²

    Uphill on the return, before the trust region. ρ' is the weight of a'_t, drawn from π.

    Source: Wang et al. (2017), section 5.2 and Algorithm 3, https://arxiv.org/abs/1611.01224.

    Args:
        mean: [T, d], φ(x_t), the current policy's mean.
        std: σ > 0.
        actions: [T, d], a_t, as sampled from μ.
        rho: [T], ρ_t = π(a_t) / μ(a_t).
        q_opc: [T], Q^opc_t.
        values: [T], V(x_t).
        drawn_actions: [T, d], a'_t ~ π(·|x_t).
        drawn_rho: [T], ρ'_t = π(a'_t) / μ(a'_t).
        drawn_q: [T], Q̃(x_t, a'_t).
        rho_clip: c > 0.
        bias_correction: whether the second term is there.

    Returns:
        [T, d], g. No gradient attached.
    """
    mean = mean.detach()
    weight = rho.clamp_max(rho_clip) * (q_opc - values)
    g = weight[:, None] * (actions - mean) / std**2
    if bias_correction:
        weight = (1 - rho_clip / drawn_rho).clamp_min(0) * (drawn_q - values)
        g += weight[:, None] * (drawn_actions - mean) / std**2
    return g.detach()


def trust_region_step(g: Tensor, k: Tensor, delta: float) -> Tensor:
    """Project the policy gradient onto the linearised KL constraint, state by state.

        z* = argmin_z ½‖g − z‖²  subject to  kᵀz ≤ δ   =   g − max(0, (kᵀg − δ) / ‖k‖²) k

    Taken in the policy's statistics (probabilities, or a Gaussian's mean), not in the weights.
    Both signs follow the paper: g uphill on the objective, k uphill on KL[average ‖ current].

    Source: Wang et al. (2017), section 3.3, equation 12, https://arxiv.org/abs/1611.01224.

    Args:
        g: [N, S], policy gradient at N states. Not averaged over N: δ is a budget per state.
        k: [N, S], gradient of the KL divergence at the same states.
        delta: δ > 0, bound on kᵀz.

    Returns:
        [N, S], equal to g wherever the constraint already holds. No gradient attached.
    """
    excess = ((k * g).sum(1, keepdim=True) - delta).clamp_min(0)
    return g - excess / (k * k).sum(1, keepdim=True).clamp_min(1e-30) * k


class Segment(NamedTuple):
    """T steps of experience within one episode, and the observation after the last of them."""

    observations: Tensor  # float32 [T + 1, D]
    actions: Tensor  # float32 [T, d], as sampled; the environment clips them to [−1, 1]
    rewards: Tensor  # float32 [T], scaled
    mu_mean: Tensor  # float32 [T, d], mean of the policy when acting
    terminated: bool  # whether the last step ended the episode: its bootstrap value is 0


def acer_loss(
    model: nn.Module,
    average_model: nn.Module,
    segment: Segment,
    args: Namespace,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute continuous ACER's loss on one segment.

        loss = (1 / num_steps) Σ_t [−z*_tᵀ φ(x_t)  +  q_coef · (Q^ret_t − Q̃(x_t, a_t))²
                                    +  vf_coef · (V^target_t − V(x_t))²]
        V^target_t = min(1, ρ_t) (Q^ret_t − Q̃(x_t, a_t)) + V(x_t)

    z*, Q^ret and V^target are held fixed; the draws u_i carry no gradient, A(x, u_i) does.

    Source: Wang et al. (2017), section 5 and Algorithm 3, https://arxiv.org/abs/1611.01224.

    Args:
        model: the networks to be differentiated, θ': policy [N, D] → φ [N, d], value [N, D] → [N],
            advantage [..., D], [..., d] → [...].
        average_model: the policy at the centre of the trust region, θ_a.
        segment: T steps, 1 ≤ T ≤ num_steps, its observations normalised.
        args: gamma, num_steps, q_coef, vf_coef, rho_clip, bias_correction, trust_region,
            trust_region_delta, policy_std, dueling_samples.
        generator: of the draws a' and u_i.

    Returns:
        The loss, with its gradient, and what is worth logging: scalars, and Q^ret and Q̃ [T].
    """
    x, actions, std = segment.observations[:-1], segment.actions, args.policy_std
    phi = model.policy(x)  # [T, d]
    values = model.value(segment.observations)  # [T + 1]
    bootstrap_value = 0.0 if segment.terminated else values[-1].detach()
    values = values[:-1]

    noise = torch.randn(args.dueling_samples + 1, *phi.shape, generator=generator)
    drawn = phi.detach() + std * noise  # a' and u_1 to u_n
    candidates = torch.cat([actions[None], drawn])  # [n + 2, T, d]
    advantages = model.advantage(x.expand(len(candidates), *x.shape), candidates)  # [n + 2, T]
    q_tilde, drawn_q = stochastic_dueling(values, advantages[:2], advantages[2:])  # of a_t and a'_t

    with torch.no_grad():
        log_rho = gaussian_log_density(candidates[:2], phi, std)
        log_rho -= gaussian_log_density(candidates[:2], segment.mu_mean, std)
        rho, drawn_rho = log_rho.clamp_max(20).exp()  # e^20: far above c, and finite
        trace_coef = rho.pow(1 / actions.shape[1]).clamp_max(1)
        ones = torch.ones_like(rho)
        q_ret, q_opc = (
            retrace(segment.rewards, q_tilde, values, trace, bootstrap_value, args.gamma)
            for trace in (trace_coef, ones)
        )
        g = gaussian_policy_gradient(
            phi,
            std,
            actions,
            rho,
            q_opc,
            values,
            drawn[0],
            drawn_rho,
            drawn_q,
            args.rho_clip,
            args.bias_correction,
        )
        mean_shift = phi - average_model.policy(x)
        k = mean_shift / std**2  # ∇_φ KL[π_a ‖ π]
        z = trust_region_step(g, k, args.trust_region_delta) if args.trust_region else g
        v_target = rho.clamp_max(1) * (q_ret - q_tilde) + values

    policy_loss = -(z * phi).sum() / args.num_steps
    q_loss = (q_ret - q_tilde).square().sum() / args.num_steps
    value_loss = (v_target - values).square().sum() / args.num_steps
    statistics = {
        "policy_loss": policy_loss.detach(),
        "q_loss": q_loss.detach(),
        "value_loss": value_loss.detach(),
        "rho": rho.mean(),
        "truncated_weights": (rho > args.rho_clip).float().mean(),
        "average_policy_kl": 0.5 * (mean_shift / std).square().sum(1).mean(),
        "trust_region_active": (z != g).any(1).float().mean(),
        "q_ret": q_ret,
        "q": q_tilde.detach(),
    }
    return policy_loss + args.q_coef * q_loss + args.vf_coef * value_loss, statistics


# Network ==========================================================================================


def initialise(layer: nn.Module, gain: float) -> nn.Module:
    """Draw orthogonal weights of the given gain; set the biases to 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    inputs: int, outputs: int, gain: float, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Make a network of two hidden layers; `gain` is the last layer's."""
    return nn.Sequential(
        initialise(nn.Linear(inputs, HIDDEN), 1.0),
        activation(),
        initialise(nn.Linear(HIDDEN, HIDDEN), 1.0),
        activation(),
        initialise(nn.Linear(HIDDEN, outputs), gain),
    )


class ActorCritic(nn.Module):
    """The policy's mean φ(x), and the stochastic dueling network's V(x) and A(x, a)."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.policy = mlp(obs_size, action_size, 0.01)  # [N, D] → [N, d]; starts near 0
        self.value_net = mlp(obs_size, 1, 1.0)
        self.advantage_net = mlp(obs_size + action_size, 1, 1.0)

    def value(self, observations: Tensor) -> Tensor:
        """Map [N, D] to V [N]."""
        return self.value_net(observations).squeeze(-1)

    def advantage(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Map [..., D] and [..., d] to A [...]."""
        return self.advantage_net(torch.cat([observations, actions], -1)).squeeze(-1)


class Normalizer(NamedTuple):
    """The map from raw to normalised observations: (x − mean) / std, within ±limit."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    limit: float

    def __call__(self, observations: Tensor) -> Tensor:
        """Normalise [..., D]."""
        return ((observations - self.mean) / self.std).clamp(-self.limit, self.limit)


class ObservationStatistics:
    """Mean and variance of all observations of all workers, since the run's beginning.

    Every worker adds to a row of its own, so that no lock is needed; the last row holds what a
    resumed run saw before.
    """

    def __init__(self, num_workers: int, obs_size: int, enabled: bool):
        self.enabled = enabled
        # n, Σx, Σx²; in float64, since they grow for ever.
        self.sums = torch.zeros(num_workers + 1, 1 + 2 * obs_size, dtype=torch.float64)
        self.sums.share_memory_()

    def add(self, rank: int, observations: Tensor) -> None:
        """Count raw observations, [N, D]."""
        x = observations.double()
        count = torch.tensor([float(len(x))], dtype=torch.float64)
        self.sums[rank] += torch.cat([count, x.sum(0), x.square().sum(0)])

    def normalizer(self) -> Normalizer:
        """Return the map that fits what has been seen; without statistics, the identity."""
        count, *moments = self.sums.sum(0).split([1, *[self.sums.shape[1] // 2] * 2])
        if not self.enabled or not count:
            return Normalizer(torch.zeros(len(moments[0])), torch.ones(len(moments[0])), math.inf)
        mean, mean_square = (moment / count for moment in moments)
        std = (mean_square - mean.square()).clamp_min(0).add(1e-8).sqrt()
        return Normalizer(mean.float(), std.float(), 10.0)


# Replay ===========================================================================================


class ReplayBuffer:
    """A ring of steps, and where segments lie in it.

    A segment of T steps takes T + 1 places, the last one for its final observation. Positions
    count up for ever; a position's place in the ring is its remainder by the capacity.
    """

    def __init__(self, capacity: int, obs_size: int, action_size: int):
        self.capacity = capacity
        self.observations = torch.zeros(capacity, obs_size)
        self.actions = torch.zeros(capacity, action_size)
        self.rewards = torch.zeros(capacity)
        self.mu_mean = torch.zeros(capacity, action_size)
        self.segments: deque[tuple[int, int, bool]] = deque()  # first position, T, terminated
        self.end = 0  # position after the last one in use

    @staticmethod
    def bytes_per_step(obs_size: int, action_size: int) -> int:
        """Memory that a stored step takes."""
        return 4 * (obs_size + 2 * action_size + 1)

    def __len__(self) -> int:
        """Count the positions in use."""
        return min(self.end, self.capacity)

    def add(self, segment: Segment) -> None:
        """Store a segment of T steps, T + 1 ≤ capacity."""
        first, length = self.end, len(segment.rewards)
        place = torch.arange(first, first + length + 1) % self.capacity
        self.observations[place] = segment.observations
        self.actions[place[:-1]] = segment.actions
        self.rewards[place[:-1]] = segment.rewards
        self.mu_mean[place[:-1]] = segment.mu_mean
        self.segments.append((first, length, segment.terminated))
        self.end = first + length + 1
        while self.segments[0][0] < self.end - self.capacity:  # its first step is overwritten
            self.segments.popleft()

    def sample(self, rng: np.random.Generator) -> Segment:
        """Draw one stored segment, each with the same probability."""
        first, length, terminated = self.segments[rng.integers(len(self.segments))]
        place = torch.arange(first, first + length + 1) % self.capacity
        return Segment(
            self.observations[place],
            self.actions[place[:-1]],
            self.rewards[place[:-1]],
            self.mu_mean[place[:-1]],
            terminated,
        )


# Worker ===========================================================================================


class Shared(NamedTuple):
    """What all processes share; every tensor lies in shared memory."""

    model: nn.Module  # θ
    average_model: nn.Module  # θ_a
    optimizer: torch.optim.Optimizer  # of the model's parameters
    observed: ObservationStatistics
    steps_taken: Tensor  # int64 [num_workers]; each worker writes its own slot, so no lock
    start: int  # agent steps before this start, above 0 after a resume
    stop: Tensor  # bool [1], set by the main process

    def steps(self) -> int:
        """Count the agent steps of the whole run."""
        return self.start + int(self.steps_taken.sum())


@torch.no_grad()
def collect_segment(
    env: gym.Env,
    model: nn.Module,
    normalizer: Normalizer,
    observation: np.ndarray,
    num_steps: int,
    policy_std: float,
    generator: torch.Generator,
) -> tuple[Segment, dict | None]:
    """Act for at most `num_steps` steps, no further than the end of the episode.

    Returns:
        The segment, and the finished episode's unscaled return "r" and length "l" if it is over.
    """
    observations, actions, rewards, mu_mean = [torch.from_numpy(observation)], [], [], []
    noise = policy_std * torch.randn(num_steps, *env.action_space.shape, generator=generator)
    terminated, episode = False, None
    while len(actions) < num_steps and episode is None:
        mu_mean.append(model.policy(normalizer(observations[-1])))
        actions.append(mu_mean[-1] + noise[len(actions)])
        observation, reward, terminated, _, info = env.step(actions[-1].numpy())
        observations.append(torch.from_numpy(observation))
        rewards.append(reward)
        episode = info.get("episode")  # there when the episode has terminated or was truncated
    rewards = torch.tensor(rewards, dtype=torch.float32)
    parts = (torch.stack(part) for part in (observations, actions, mu_mean))
    observations, actions, mu_mean = parts
    if not observations.isfinite().all():  # it would stay in the statistics
        raise FloatingPointError("the environment's observation is not finite")
    return Segment(observations, actions, rewards, mu_mean, bool(terminated)), episode


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy all parameters, in place. Buffers, as batch normalisation has them, are not shared."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


@torch.no_grad()
def update_average(average_model: nn.Module, shared_model: nn.Module, decay: float) -> None:
    """Move the average network towards the shared one, in place: θ_a ← α θ_a + (1 − α) θ."""
    average, shared = list(average_model.parameters()), list(shared_model.parameters())
    torch._foreach_lerp_(average, shared, 1 - decay)


def apply_gradients(
    model: nn.Module, shared_model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
) -> Tensor:
    """Step the shared weights along the local gradient, forget it, and return its norm.

    Every parameter must have a gradient.

    Raises:
        FloatingPointError: the gradient is not finite; the shared weights are left as they are.
        RuntimeError: a gradient's strides are not its parameter's. The fused optimizer walks raw
            memory and would corrupt the weights without a word.
    """
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = nn.utils.get_total_norm(gradients.values())
    if not norm.isfinite():
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        raise FloatingPointError(f"the gradient is not finite ({', '.join(bad) or 'its norm'})")
    if norm > max_norm:
        torch._foreach_mul_(list(gradients.values()), max_norm / norm)
    for (name, gradient), shared in zip(gradients.items(), shared_model.parameters(), strict=True):
        if gradient.stride() != shared.stride():
            raise RuntimeError(f"{name}: gradient strides {gradient.stride()}, {shared.stride()}")
        shared.grad = gradient
    optimizer.step()
    shared_model.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    return norm


def learn(
    segment: Segment,
    model: nn.Module,
    shared: Shared,
    args: Namespace,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Update the shared weights and their average from one segment; return the statistics."""
    loss, statistics = acer_loss(model, shared.average_model, segment, args, generator)
    if not loss.isfinite():
        terms = ", ".join(f"{name} {float(x)}" for name, x in statistics.items() if x.dim() == 0)
        raise FloatingPointError(f"the loss is not finite ({terms})")
    loss.backward()
    statistics["grad_norm"] = apply_gradients(
        model, shared.model, shared.optimizer, args.max_grad_norm
    )
    update_average(shared.average_model, shared.model, args.average_decay)
    return statistics


def summarise(updates: list[dict[str, Tensor]]) -> dict[str, float]:
    """Average the updates' scalars, and pool their states for the critic's explained variance.

    explained_variance = 1 − Var(Q^ret − Q) / Var(Q^ret)
    """
    q_ret, q = (torch.cat([update.pop(name) for update in updates]) for name in ("q_ret", "q"))
    means = {name: float(sum(update[name] for update in updates)) for name in updates[0]}
    means = {name: total / len(updates) for name, total in means.items()}
    unexplained = (q_ret - q).var(correction=0) / q_ret.var(correction=0).clamp_min(1e-8)
    return means | {"explained_variance": float(1 - unexplained), "q": float(q.mean())}


def worker(rank: int, args: Namespace, shared: Shared, connection: Connection) -> None:
    """Act and store, then learn from what was seen before (Algorithm 1, without its first update).

    Ends at `total_timesteps`, when told to stop, or when the main process is gone.
    """
    seeds = np.random.SeedSequence([args.seed, rank, shared.start])
    env_seed, action_seed = (int(word) for word in seeds.generate_state(2))
    rng = np.random.default_rng(seeds)
    generator = torch.Generator().manual_seed(action_seed)
    env = make_env(args.env_id, env_seed, reward_scale=args.reward_scale)
    model = copy.deepcopy(shared.model)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    replay = ReplayBuffer(args.replay_size // args.num_workers, *sizes)
    updates, next_report = [], STATISTICS_EVERY
    observation, _ = env.reset()

    while (step := shared.steps()) < args.total_timesteps and not shared.stop and parent_lives():
        if args.anneal_lr:
            remaining = 1 - step / args.total_timesteps
            shared.optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
        copy_weights(model, shared.model)
        normalizer = shared.observed.normalizer()  # held fixed for this segment and its replays
        num_steps = min(args.num_steps, args.total_timesteps - step)
        segment, episode = collect_segment(
            env, model, normalizer, observation, num_steps, args.policy_std, generator
        )
        shared.steps_taken[rank] += len(segment.rewards)
        shared.observed.add(rank, segment.observations[:-1])
        replay.add(segment)
        if shared.steps() - shared.start >= args.replay_start:
            for _ in range(rng.poisson(args.replay_ratio)):
                if shared.stop:
                    break
                copy_weights(model, shared.model)
                old = replay.sample(rng)
                old = old._replace(observations=normalizer(old.observations))
                updates.append(learn(old, model, shared, args, generator))

        if episode is not None:
            report = float(episode["r"]), int(episode["l"])
            connection.send(("episode", shared.steps(), rank, *report))
            observation, _ = env.reset()
        else:
            observation = segment.observations[-1].numpy()
        if shared.steps_taken[rank] >= next_report:
            fill = len(replay) / replay.capacity
            means = summarise(updates) if updates else {}  # none until replay_start
            connection.send(("statistics", shared.steps(), rank, fill, means))
            updates, next_report = [], next_report + STATISTICS_EVERY


def keep_freed_memory() -> None:
    """Keep what is freed for the next update, where glibc would give it back to the system.

    Recurrent A3C on Pong is 15 % faster for it: it had 60,000 page faults a second.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**28)  # M_TRIM_THRESHOLD: more than a worker ever frees at once
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the most that glibc allows


def take_longer_slices() -> None:
    """Ask Linux for time slices of 100 ms, not 3: after each the weights are gone from the cache.

    Eight workers of ACER on two processors are 15 % faster for it. Kernels before 6.12 ignore it.
    """
    sched_setattr = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if sys.platform == "linux" and sched_setattr and os.sched_getscheduler(0) == os.SCHED_OTHER:
        attributes = struct.pack("IIQiIQQQ", 48, 0, 0, os.nice(0), 0, 100_000_000, 0, 0)
        ctypes.CDLL(None).syscall(sched_setattr, 0, attributes, 0)


def run_worker(rank: int, args: Namespace, shared: Shared, connection: Connection) -> None:
    """Prepare a new process, run `worker` in it, and report the error that ends it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    if args.num_workers > usable_processors():
        take_longer_slices()
    # Without this, Adam's decaying moments become denormal numbers and its step 2.4 times slower.
    torch.set_flush_denormal(True)
    try:
        worker(rank, args, shared, connection)
    except BrokenPipeError:  # the main process is gone: nobody left to report to
        sys.exit(1)
    except Exception as error:
        text = f"{type(error).__name__} at step {shared.steps():,}: {error}"
        connection.send(("error", text, traceback.format_exc()))
        sys.exit(1)


def parent_lives() -> bool:
    """Tell whether the process that started this one is still there."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


# Shared optimizer =================================================================================


class SharedAdam(torch.optim.Optimizer):
    """Adam whose moments and step counts all processes share.

        m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   θ ← θ − lr · m̂ / (√v̂ + ε)

    Source: D. Kingma, J. Ba (2015), Algorithm 1, https://arxiv.org/abs/1412.6980.

    The state exists before any worker starts, or each would make its own. One worker steps at a
    time: m of one worker beside v of another, where v is small, makes a step of any size (measured:
    weights of 600 after 3,000 steps of at most 0.002). The fused kernel does all in one pass over
    memory, four times as fast; it needs gradients with their parameters' strides.
    `torch.optim.Adam` has it too, but loads a compiler to step: 70 MB in each worker.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.lock = multiprocessing.get_context("spawn").Lock()
        for p in self.param_groups[0]["params"]:
            self.state[p] = {
                "step": torch.zeros(()).share_memory_(),  # a float, as torch's own
                "exp_avg": torch.zeros_like(p).share_memory_(),
                "exp_avg_sq": torch.zeros_like(p).share_memory_(),
            }

    def __getstate__(self) -> dict:
        """Take the lock along to a new process."""
        return super().__getstate__() | {"lock": self.lock}

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        group = self.param_groups[0]
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in params]
        m, v, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        acquired = self.lock.acquire(timeout=10)  # not for ever: a killed worker keeps it
        try:
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                params,
                [p.grad for p in params],
                m,
                v,
                [],  # no maximum of v: this is not AMSGrad
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        finally:
            if acquired:
                self.lock.release()


class SharedRMSprop(torch.optim.Optimizer):
    """RMSProp as in the A3C paper, whose mean square all processes share.

        s ← α s + (1 − α) g²;   θ ← θ − lr · g / √(s + ε)

    ε stands inside the root, unlike in torch.optim.RMSprop. It bounds every step, whatever two
    workers write at the same time, so that no lock is needed (Hogwild).

    Source: Mnih et al. (2016), equations S2 and S3, https://arxiv.org/abs/1602.01783.
    """

    def __init__(self, params, lr: float, alpha: float = 0.99, eps: float = 0.1):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"square_avg": torch.zeros_like(p).share_memory_()}

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is not None:
                square_avg = self.state[p]["square_avg"]
                square_avg.mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                p.addcdiv_(p.grad, (square_avg + group["eps"]).sqrt_(), value=-group["lr"])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state_dict: dict) -> None:
    """Copy a saved state in place: `load_state_dict` would put unshared tensors there."""
    for state, saved in zip(optimizer.state.values(), state_dict["state"].values(), strict=True):
        for name, tensor in state.items():
            tensor.copy_(saved[name])


# Environment and wrappers =========================================================================


def make_env(
    env_id: str, seed: int, reward_scale: float = 1.0, render_mode: str | None = None
) -> gym.Env:
    """Make an environment whose actions lie in [−1, 1], seeded.

    Actions beyond are clipped, and all are rescaled to the environment's own bounds.

    Raises:
        gym.error.Error, ImportError: there is no such environment, or nothing to draw it with.
        ValueError: its actions or observations are not what this script can use.
    """
    options = {"disable_env_checker": True} | ({"render_mode": render_mode} if render_mode else {})
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    screenless = render_mode == "rgb_array" and sys.platform == "linux"
    if screenless:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if str(gym.spec(name).entry_point).startswith("gymnasium.envs.mujoco"):
        backend = os.environ.setdefault("MUJOCO_GL", "egl") if screenless else None
        if backend == "egl" and not ctypes.util.find_library("EGL"):
            raise ImportError("MuJoCo draws its pictures with EGL; install it (Debian: libegl1)")
        import mujoco  # here, since only these environments need it

        mujoco.set_mju_user_warning(lambda text: None)  # or it writes MUJOCO_LOG.TXT right here
        if render_mode:
            options["camera_name"] = "track"  # or the robot walks out of the picture
    env = gym.make(name, **options)
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box):
        kind = type(actions).__name__
        raise ValueError(f"{kind} actions; this script needs Box ones (*_atari.py take Discrete)")
    if len(actions.shape) != 1 or not actions.is_bounded():
        raise ValueError(f"actions {actions}; this script needs a flat Box with finite bounds")
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise ValueError(f"observations {observations}; this script needs a flat Box")
    env = gym.wrappers.RecordEpisodeStatistics(env)  # rewards as they are
    env = gym.wrappers.TransformReward(env, lambda reward: reward_scale * float(reward))
    space = gym.spaces.Box(-np.inf, np.inf, observations.shape, np.float32)
    env = gym.wrappers.TransformObservation(env, lambda x: x.astype(np.float32), space)
    env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    env = gym.wrappers.ClipAction(env)
    env.reset(seed=seed)
    return env


# Checkpoint, logging, evaluation ==================================================================


def open_env(args: Namespace, seed: int, render_mode: str | None = None) -> gym.Env:
    """Make the environment as the main process needs it; end with one line if that fails."""
    try:
        return make_env(args.env_id, seed, render_mode=render_mode)
    except (gym.error.Error, ImportError, ValueError) as error:
        fail(f"--env-id {args.env_id}: {error}")


def save_checkpoint(path: Path, contents: dict) -> None:
    """Write a checkpoint beside its place and move it there: a kill leaves the old or the new."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(source: str, *names: str) -> dict:
    """Read a run's checkpoint, given its folder or the file; end with one line if that fails.

    `names` are those of its parts that will be needed, beside what every checkpoint holds.
    """
    path = Path(source) / "checkpoint.pt" if Path(source).is_dir() else Path(source)
    if not path.is_file():
        fail(f"there is no checkpoint at {path}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        script, _, _ = contents["script"], contents["args"]["env_id"], contents["model"]
    except Exception as error:  # torch.load raises many kinds
        fail(f"{path} is damaged, or no checkpoint ({type(error).__name__})")
    if script != SCRIPT:
        fail(f"{path} was written by {script}")
    if lacking := [name for name in names if name not in contents]:
        fail(f"the checkpoint {path} lacks {', '.join(lacking)}")
    return contents


def load_weights(model: nn.Module, state_dict: dict, source: str) -> None:
    """Copy weights into a network; end with one line if they do not fit."""
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, TypeError) as error:
        fail(f"the weights in {source} do not fit this network: {' '.join(str(error).split())}")


class RunLog:
    """TensorBoard events, episodes.csv and the progress line of one run."""

    def __init__(self, run_dir: Path, args: Namespace, start: int, seconds: float, memory: int):
        # Imported here, because workers import this file too: they need none of it.
        from torch.utils.tensorboard import SummaryWriter

        self.total_timesteps, self.memory = args.total_timesteps, memory
        self.began = time.monotonic() - seconds  # as if the run had never stopped
        self.last = time.monotonic(), start
        self.replay_fill = [0.0] * args.num_workers
        path = run_dir / "episodes.csv"
        rows = ["step,seconds,worker,return,length"]
        if path.exists():  # a resumed run: forget what came after the checkpoint
            old = path.read_text().splitlines()[1:]
            whole = [row for row in old if re.fullmatch(r"\d+,[\d.]+,\d+,[-+.\w]+,\d+", row)]
            rows += [row for row in whole if int(row.split(",")[0]) <= start]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("\n".join(rows) + "\n")
        os.replace(temporary, path)
        self.episodes = len(rows) - 1
        recent = [row.split(",") for row in rows[1:][-RECENT_GAMES:]]
        self.recent = deque([(float(row[3]), int(row[4])) for row in recent], RECENT_GAMES)
        self.csv = open(path, "a", buffering=1)  # noqa: SIM115 (closed in close)
        self.writer = SummaryWriter(str(run_dir), purge_step=start + 1 if args.resume else None)
        settings = "".join(f"\n|{name}|{value}|" for name, value in sorted(vars(args).items()))
        self.writer.add_text("hyperparameters", f"|setting|value|\n|-|-|{settings}", start)

    def seconds(self) -> float:
        """Return the run's wall-clock time, stops left out."""
        return time.monotonic() - self.began

    def episode(self, step: int, rank: int, episode_return: float, length: int) -> None:
        """Record a finished game."""
        self.episodes += 1
        self.recent.append((episode_return, length))
        self.csv.write(f"{step},{self.seconds():.1f},{rank},{episode_return:.8g},{length}\n")
        self.writer.add_scalar("charts/episodic_return", episode_return, step)
        self.writer.add_scalar("charts/episodic_length", length, step)

    def statistics(self, step: int, rank: int, fill: float, means: dict[str, float]) -> None:
        """Record the means of a worker's latest updates."""
        self.replay_fill[rank] = fill
        self.writer.add_scalar("charts/replay_fill", np.mean(self.replay_fill), step)
        for name, value in means.items():
            self.writer.add_scalar(f"losses/{name}", value, step)

    def progress(self, step: int) -> None:
        """Print a line, and log the speed since the one before."""
        now = time.monotonic()
        speed = (step - self.last[1]) / max(now - self.last[0], 1e-6)
        self.last = now, step
        self.writer.add_scalar("charts/SPS", speed, step)
        left = "unknown time"
        if speed:  # the bound, 30 years, is for budgets beyond what timedelta can hold
            seconds = max(0, self.total_timesteps - step) // speed
            left = timedelta(seconds=min(seconds, 1e9))
        games = "no game over yet"
        if self.recent:
            mean_return, mean_length = np.mean(self.recent, axis=0)
            count = len(self.recent)
            games = f"return {mean_return:.2f}, length {mean_length:.0f} (last {count} games)"
        fill = np.mean(self.replay_fill)
        print(
            f"{step:>11,} steps {step / self.total_timesteps:6.1%} | {speed:5.0f} steps/s | "
            f"{left} left | {games} | replay {fill:.1%}, {fill * self.memory / 1e6:,.0f} MB",
            flush=True,
        )

    def close(self) -> None:
        """Write out what is still held."""
        self.writer.close()
        self.csv.close()


def write_gif(path: Path, frames: list[np.ndarray], milliseconds: int) -> None:
    """Write RGB pictures as an animated GIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    animation.durations = [milliseconds] * len(frames)
    if not cv2.imwriteanimation(str(path), animation):
        fail(f"OpenCV could not write {path}")
    print(f"wrote {path}")


@torch.no_grad()
def evaluate(args: Namespace) -> list[float]:
    """Play whole episodes with a trained policy, raw rewards; print and return the returns."""
    torch.set_num_threads(1)  # for batches of one, more threads only wait for each other
    checkpoint = load_checkpoint(args.evaluate, "observed")
    # The spawn key sets these streams apart from every worker's.
    seeds = np.random.SeedSequence(args.seed, spawn_key=(0,)).generate_state(2)
    generator = torch.Generator().manual_seed(int(seeds[1]))
    render_mode = "human" if args.render else "rgb_array" if args.capture_video else None
    env = open_env(args, int(seeds[0]), render_mode)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    model = ActorCritic(*sizes)
    load_weights(model, checkpoint["model"], args.evaluate)
    observed = ObservationStatistics(0, sizes[0], args.normalize_obs)
    observed.sums.copy_(checkpoint["observed"])
    normalizer = observed.normalizer()
    rate = env.metadata.get("render_fps", GIF_RATE)
    every = math.ceil(rate / GIF_RATE)  # so many steps from one picture to the next
    returns, frames = [], []
    for game in range(1, args.eval_episodes + 1):
        observation, _ = env.reset()
        episode, step = None, 0
        while episode is None:
            wanted = args.capture_video and game == 1 and len(frames) < GIF_SECONDS * GIF_RATE
            if wanted and step % every == 0:
                frames.append(cv2.resize(env.render(), (GIF_SIZE, GIF_SIZE)))
            action = model.policy(normalizer(torch.from_numpy(observation)))
            if not args.greedy:
                action += args.policy_std * torch.randn(sizes[1], generator=generator)
            observation, _, _, _, info = env.step(action.numpy())
            episode, step = info.get("episode"), step + 1
        returns.append(float(episode["r"]))
        print(f"game {game}: return {episode['r']:.8g}, length {episode['l']}", flush=True)
    env.close()
    print(
        f"{len(returns)} games: mean {np.mean(returns):.2f}, sd {np.std(returns):.2f}, "
        f"median {np.median(returns):.8g}, min {min(returns):.8g}, max {max(returns):.8g}"
    )
    if args.capture_video:
        source = Path(args.evaluate)
        path = source / "video" if source.is_dir() else source.parent / "video" / source.stem
        path = path / f"seed-{args.seed}.gif"
        write_gif(path, frames, round(1000 * every / rate))
    return returns


# Training =========================================================================================


def make_run_dir(args: Namespace) -> Path:
    """Make the run's folder, or find a resumed one's; one that holds another run is refused."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(args.run_dir or Path("runs") / re.sub(r"[^\w.-]", "-", name))
    if args.resume:
        run_dir = Path(args.resume) if Path(args.resume).is_dir() else Path(args.resume).parent
        if not Path(args.resume).is_dir() and Path(args.resume).name != "checkpoint.pt":
            fail(f"{args.resume} is no run: give a folder, or the checkpoint.pt in it")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        files = run_dir / "episodes.csv", run_dir / "checkpoint.pt"
        if not args.resume and any(path.exists() for path in files):
            raise FileExistsError
        with open(run_dir / "args.json", "w" if args.resume else "x") as file:
            json.dump(vars(args), file, indent=2, sort_keys=True)
    except FileExistsError:
        fail(f"{run_dir} holds a run already: give another --run-dir, or --resume {run_dir}")
    except OSError as error:
        fail(f"cannot write to {run_dir}: {error.strerror}")
    return run_dir


def make_shared(
    args: Namespace, obs_size: int, action_size: int, checkpoint: dict | None
) -> Shared:
    """Make all that is shared, in shared memory, as at the checkpoint if there is one."""
    torch.manual_seed(args.seed)
    model = ActorCritic(obs_size, action_size).share_memory()
    average_model = copy.deepcopy(model).requires_grad_(False).share_memory()
    kind = {"adam": SharedAdam, "rmsprop": SharedRMSprop}[args.optimizer]
    optimizer = kind(model.parameters(), args.learning_rate)
    observed = ObservationStatistics(args.num_workers, obs_size, args.normalize_obs)
    if checkpoint:
        load_weights(model, checkpoint["model"], args.resume)
        load_weights(average_model, checkpoint["average_model"], args.resume)
        load_optimizer_state(optimizer, checkpoint["optimizer"])
        observed.sums[-1] = checkpoint["observed"]
    steps_taken = torch.zeros(args.num_workers, dtype=torch.int64).share_memory_()
    stop = torch.zeros(1, dtype=torch.bool).share_memory_()
    start = checkpoint["steps"] if checkpoint else 0
    return Shared(model, average_model, optimizer, observed, steps_taken, start, stop)


def start_workers(args: Namespace, shared: Shared, workers: dict) -> None:
    """Start the worker processes; enter each under the connection on which it reports."""
    context = multiprocessing.get_context("spawn")
    for rank in range(args.num_workers):
        if shared.stop:
            return
        # Ignored while it starts, for it inherits that: only the main process is to react. One that
        # comes in these milliseconds is lost.
        before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            receiver, sender = context.Pipe(duplex=False)
            arguments = rank, args, shared, sender
            process = context.Process(target=run_worker, args=arguments, daemon=True)
            process.name = f"worker {rank}"
            process.start()
        except OSError as error:
            fail(f"worker {rank} cannot start ({error}): try a smaller --num-workers")
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        sender.close()  # the worker's own is the only one left: the pipe ends when it dies
        workers[receiver] = process


def supervise(workers: dict, shared: Shared, log: RunLog, save, args: Namespace) -> str | None:
    """Log, print and save until all workers have ended; return what went wrong, if anything."""
    reporting, running = dict(workers), {process.sentinel: process for process in workers.values()}
    failures: dict[str, str] = {}  # worker: what ended it
    now = time.monotonic()
    next_line, next_save = now + args.log_interval, now + args.checkpoint_interval
    kill_at = math.inf  # for workers that do not stop when told to
    while running or reporting:
        # A signal sets `stop` without waking this: hence at most a second.
        ready = wait([*reporting, *running], min(1.0, max(0.0, next_line - now)))
        for source in ready:
            if source in running:
                process = running.pop(source)
                process.join()
                if process.exitcode:  # below 0: a signal. What the worker itself says goes first
                    failures.setdefault(process.name, f"exit code {process.exitcode}")
                continue
            try:
                kind, *report = source.recv()
            except (EOFError, OSError):  # the worker has ended, perhaps within a message
                del reporting[source]
                continue
            if kind == "error":
                failures[reporting[source].name], trace = report
                print(trace, file=sys.stderr)
            else:
                getattr(log, kind)(*report)

        now = time.monotonic()
        if now >= next_line:
            log.progress(shared.steps())
            next_line = now + args.log_interval
        if now >= next_save:
            save()
            next_save = now + args.checkpoint_interval
        if failures:
            shared.stop.fill_(True)
        if shared.stop and kill_at == math.inf:
            kill_at = now + SECONDS_TO_STOP
        if now >= kill_at:
            for process in running.values():
                text = f"killed, since it did not stop in {SECONDS_TO_STOP} s"
                failures.setdefault(process.name, text)
                process.kill()
    return next((f"{name} died: {text}" for name, text in failures.items()), None)


def state_of_run(args: Namespace, shared: Shared, log: RunLog) -> dict:
    """Gather what a checkpoint holds: enough to go on, and to play."""
    return {
        "script": SCRIPT,
        "args": vars(args),
        "steps": shared.steps(),
        "episodes": log.episodes,
        "seconds": log.seconds(),
        "model": shared.model.state_dict(),
        "average_model": shared.average_model.state_dict(),
        "optimizer": shared.optimizer.state_dict(),
        "observed": shared.observed.sums.sum(0),
    }


@contextlib.contextmanager
def stop_on_signals(stop: Tensor) -> Iterator[list[int]]:
    """Set `stop` at Ctrl-C or SIGTERM, instead of being ended by them; yield those that came.

    A later one ends the process at once. Within a second it is taken for the same one: `timeout`
    and other wrappers send it twice.
    """
    received: list[int] = []
    first = math.inf  # when it came

    def request_stop(signum, frame) -> None:
        nonlocal first
        received.append(signum)
        first = min(first, time.monotonic())
        stop.fill_(True)
        if time.monotonic() > first + 1:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    before = {s: signal.signal(s, request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def train(args: Namespace) -> Path:
    """Train to `total_timesteps`; return the run's folder.

    Raises:
        SystemExit: with 128 + the signal's number after Ctrl-C or SIGTERM; with a message if a
            worker died or did not stop, or the settings cannot be run. What was learned is in the
            checkpoint.
    """
    with open_env(args, args.seed) as env:
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
    needed = "steps", "seconds", "average_model", "optimizer", "observed"
    checkpoint = load_checkpoint(args.resume, *needed) if args.resume else None
    if checkpoint and checkpoint["steps"] >= args.total_timesteps:
        fail(f"{args.resume} has {checkpoint['steps']:,} steps: give a larger --total-timesteps")
    shared = make_shared(args, *sizes, checkpoint)
    run_dir = make_run_dir(args)
    memory = args.replay_size * ReplayBuffer.bytes_per_step(*sizes)
    seconds = checkpoint["seconds"] if checkpoint else 0.0
    workers: dict[Connection, multiprocessing.Process] = {}
    with stop_on_signals(shared.stop) as signals:
        log = RunLog(run_dir, args, shared.start, seconds, memory)

        def save() -> None:
            save_checkpoint(run_dir / "checkpoint.pt", state_of_run(args, shared, log))
            log.writer.flush()

        try:
            save()  # whatever happens from here on, the run can go on
            print(
                f"{SCRIPT}: {args.env_id}, seed {args.seed}, {args.num_workers} workers, "
                f"steps {shared.start:,} to {args.total_timesteps:,}\n"
                f"{args.optimizer}, learning rate {args.learning_rate:g}, σ {args.policy_std:g}, "
                f"segments of {args.num_steps}, {args.replay_ratio:g} replays each\n"
                f"replay of {args.replay_size:,} steps, {memory / 1e6:.1f} MB when full, "
                f"used from step {shared.start + args.replay_start:,} on\n"
                f"writing to {run_dir}",
                flush=True,
            )
            start_workers(args, shared, workers)
            failure = supervise(workers, shared, log, save, args)
            log.progress(shared.steps())
        finally:
            for process in workers.values():
                process.kill()
                process.join(1)
            try:
                save()
            finally:
                log.close()
    resume = f"go on with: python {SCRIPT} --resume {run_dir}"
    if failure:
        fail(f"{failure}\nwhat was learned until step {shared.steps():,} is kept; {resume}")
    if signals:
        print(f"stopped at step {shared.steps():,}; {resume}", flush=True)
        sys.exit(128 + signals[0])
    print(f"finished; play with: python {SCRIPT} --evaluate {run_dir}", flush=True)
    return run_dir


def main(argv: list[str] | None = None) -> None:
    """Train or evaluate, as the command line says."""
    args = parse_args(argv)
    if not args.evaluate:
        args.evaluate = str(train(args))
        if not (args.capture_video or args.render):
            return
    evaluate(args)


if __name__ == "__main__":
    main()
