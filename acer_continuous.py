# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = ["torch==2.13.0", "gymnasium[classic-control,mujoco]==1.4.0", "mujoco==3.10.0",
#     "ale-py==0.12.1", "numpy==2.4.6", "opencv-python==5.0.0.93", "tensorboard==2.21.0"]
# ///
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
checkpoint.pt, the replay when it stops, args.json and video/.

Differences from the paper
 1. Adam is the default optimizer, one worker stepping at a time; `--optimizer rmsprop` is the
    A3C paper's, lock-free.
 2. Three separate networks for the policy's mean, V and A, of two hidden layers of 128 ReLU units
    each; the paper's share a body.
 3. Observations are normalised by the running mean and variance of all workers' observations, and
    cut at ±10; rewards are scaled by `reward_scale`, 0.1. Gradients are cut at a norm of 40.
 4. A new segment is only stored, not learned from at once. Replay is of 50,000 steps over all
    workers (paper: 5,000 a worker), with 12 replays a segment (paper: 4), and learning starts after
    `replay_start` steps of all workers; the learning rate falls to 0 over the run.
 5. Losses are divided by `num_steps`, whatever a segment's length, so that every state weighs the
    same. A segment ends with its episode, and has a bootstrap value at a time limit.
 6. Orthogonal initial weights.
 7. Retrace and Q^opc with λ = 0.95, as Retrace's own paper allows; the paper's are λ = 1.
"""

import argparse
import contextlib
import copy
import fcntl
import gc
import importlib
import io
import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
import zipfile
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import cv2
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

SCRIPT = Path(__file__).name
HIDDEN = 128  # units in each of a network's two hidden layers
STATISTICS_EVERY = 1_000  # a worker's own steps between two reports of its losses
RECENT_GAMES = 100  # in the progress line's means
SECONDS_TO_STOP = 30  # for workers that are told to, before they are killed
GIF_RATE, GIF_FRAMES = 10, 200  # pictures a second and in all, at most
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that stop a run, which then goes on
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # of the workers
EPISODE = "acer-a3c/episode"  # ours in an environment's info
LEARNING_RATES = {"adam": 3e-4, "rmsprop": 7e-4}

# Settings =========================================================================================

COUNT, SHARE, ANY, POSITIVE = (1, 10**12), (0.0, 1.0), (0.0, 1e9), (1e-9, 1e9)  # from, to
TEXT, FLAG = ("",), (True, False)
ONE_CALL = {"resume", "resume_if_exists", "run_dir", "evaluate", "eval_episodes", "eval_max_steps"}
ONE_CALL |= {"greedy", "capture_video", "render"}  # these a run does not hand on

SETTINGS = {  # group: flag, default, what is allowed, help; symbols in brackets are the papers'
    "run": [
        ("--env-id", "Pendulum-v1", TEXT, "Gymnasium id, or module:Id for your own"),
        ("--env-kwargs", "{}", TEXT, "JSON of arguments for the environment"),
        ("--seed", 1, (0, 2**32 - 1), "seed of all that is drawn"),
        ("--total-timesteps", 1_000_000, COUNT, "agent steps over all workers"),
        ("--num-workers", None, COUNT, "worker processes; as many as processors may be used"),
        ("--exp-name", Path(SCRIPT).stem, TEXT, "name of the experiment, part of the folder"),
        ("--run-dir", None, TEXT, "folder of this run; runs/{env}__{exp}__{seed}__{time}"),
        ("--log-interval", 10.0, POSITIVE, "seconds between progress lines"),
        ("--checkpoint-interval", 300.0, POSITIVE, "seconds between checkpoints"),
        ("--resume", None, TEXT, "go on with a stopped run (its folder or checkpoint)"),
        ("--resume-if-exists", False, FLAG, "go on if --run-dir holds a run, else begin one there"),
    ],
    "evaluation": [
        ("--evaluate", None, TEXT, "play with the policy of a run (folder or checkpoint)"),
        ("--eval-episodes", 10, COUNT, "games to play"),
        ("--eval-max-steps", 27_000, COUNT, "agent steps of a game, at most"),
        ("--greedy", False, FLAG, "the most probable action instead of a sampled one"),
        ("--capture-video", False, FLAG, "write the first game as an animated GIF"),
        ("--render", False, FLAG, "show the games in a window"),
    ],
    "optimizer": [
        ("--optimizer", "adam", ("adam", "rmsprop"), "shared by all workers"),
        ("--learning-rate", None, (1e-9, 1.0), f"step size; by optimizer {LEARNING_RATES}"),
        ("--anneal-lr", True, FLAG, "lower it linearly to 0 over the run"),
        ("--max-grad-norm", 40.0, POSITIVE, "longer gradients are scaled to this"),
    ],
    "actor-critic": [
        ("--gamma", 0.99, SHARE, "discount per agent step [γ]"),
        ("--num-steps", 50, (1, 10**5), "agent steps in a segment, at most [t_max]"),
        ("--q-coef", 0.5, ANY, "weight of (Q^ret - Q)²"),
        ("--vf-coef", 0.5, ANY, "weight of the value's squared error"),
        ("--normalize-obs", True, FLAG, "running mean 0, variance 1"),
        ("--reward-scale", 0.1, POSITIVE, "factor on rewards, for learning only"),
    ],
    "ACER": [
        ("--retrace-lambda", 0.95, SHARE, "traces: 0 of one step, 1 as long as they go [λ]"),
        ("--replay-size", 50_000, COUNT, "steps kept, over all workers"),
        ("--replay-ratio", 12.0, (1e-9, 1e6), "replays per segment, mean [r]"),
        ("--replay-start", 1_000, COUNT, "steps before the first replay"),
        ("--rho-clip", 5.0, POSITIVE, "truncation of importance weights [c]"),
        ("--bias-correction", True, FLAG, "correct what that truncation omits"),
        ("--trust-region", True, FLAG, "bound the change of the policy"),
        ("--trust-region-delta", 0.2, POSITIVE, "bound per state [δ]"),
        ("--average-decay", 0.995, SHARE, "average network, kept per update [α]"),
        ("--policy-std", 0.3, POSITIVE, "of actions in [-1, 1], fixed [σ]"),
        ("--dueling-samples", 5, (1, 10**5), "actions in Q's baseline [n]"),
    ],
}


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

    With c = λ it would be TD(λ), which is right on-policy alone; with c = ρ importance sampling,
    unbiased and of unbounded variance; V-trace estimates V in this way, Retrace Q. The coefficient
    is truncated by the caller, at 1, which is not the c of `--rho-clip`. The first one is never
    used: the return of a_0 is wanted given a_0.

    Source: Wang et al. (2017), equation 5 and Algorithm 2; R. Munos et al. (2016), "Safe and
    Efficient Off-Policy Reinforcement Learning", https://arxiv.org/abs/1606.02647.

    Args:
        rewards: [T], r_t, received after a_t.
        q_taken: [T], Q(x_t, a_t).
        values: [T], V(x_t).
        trace_coef: [T], c_t: min(1, ρ_t) in ACER; λ min(1, ρ_t^{1/d}) or λ in its continuous form.
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


def gaussian_log_ratio(actions: Tensor, mean: Tensor, mu_mean: Tensor, std: float) -> Tensor:
    """Compute the logarithm of the joint density ratio of two Gaussians of the same σ.

        log π(a) − log μ(a) = Σ_i (φ_i − φ^μ_i) (2 a_i − φ_i − φ^μ_i) / 2σ²

    Args:
        actions: [..., d], as sampled, before the environment clips them.
        mean: [..., d], φ, the current policy's mean.
        mu_mean: [..., d], φ^μ, the mean when acting.
        std: σ > 0.

    Returns:
        [...], log ρ, with the gradients of its arguments.
    """
    return ((mean - mu_mean) * (2 * actions - mean - mu_mean)).sum(-1) / (2 * std**2)


def stochastic_dueling(values: Tensor, advantages: Tensor, u_advantages: Tensor) -> Tensor:
    """Join V and A to an action value whose mean under the policy is V.

        Q̃(x, a) = V(x) + A(x, a) − (1/n) Σ_i A(x, u_i),   u_i ~ π(·|x)

    Source: Wang et al. (2017), section 5.1, https://arxiv.org/abs/1611.01224.

    Args:
        values: [T], V(x_t).
        advantages: [..., T], A(x_t, a) of any actions.
        u_advantages: [n, T], A(x_t, u_i).

    Returns:
        [..., T], Q̃(x_t, a), with the gradients of its arguments.
    """
    return values + advantages - u_advantages.mean(0)


def gaussian_policy_gradient(
    mean: Tensor,
    std: float,
    actions: Tensor,
    rho: Tensor,
    q_opc: Tensor,
    values: Tensor,
    a_prime: Tensor,
    rho_prime: Tensor,
    q_prime: Tensor,
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
        a_prime: [T, d], a'_t ~ π(·|x_t).
        rho_prime: [T], ρ'_t = π(a'_t) / μ(a'_t).
        q_prime: [T], Q̃(x_t, a'_t).
        rho_clip: c > 0.
        bias_correction: whether the second term is there.

    Returns:
        [T, d], g. No gradient attached.
    """
    mean = mean.detach()
    weight = rho.clamp_max(rho_clip) * (q_opc - values) / std**2
    g = weight[:, None] * (actions - mean)
    if bias_correction:
        weight = (1 - rho_clip / rho_prime).clamp_min(0) * (q_prime - values) / std**2
        g += weight[:, None] * (a_prime - mean)
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

    observations: Tensor  # float64 [T + 1, D] as seen; float32 once normalised
    actions: Tensor  # float32 [T, d], as sampled; the environment clips them to [−1, 1]
    rewards: Tensor  # float32 [T]; times reward_scale when they are learned from
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

    Q^ret is Retrace with c_t = λ min(1, ρ_t^{1/d}), Q^opc with c_t = λ. With λ = 1, the paper's,
    Q^opc sums all rewards up to the segment's end; a smaller λ has less variance and more bias.
    z*, Q^ret and V^target are held fixed; the draws u_i carry no gradient, A(x, u_i) does.

    Source: Wang et al. (2017), section 5 and Algorithm 3, https://arxiv.org/abs/1611.01224.

    Args:
        model: the networks to be differentiated, θ': policy [N, D] → φ [N, d], value [N, D] → [N],
            advantage [T, D], [..., T, d] → [..., T].
        average_model: the policy at the centre of the trust region, θ_a.
        segment: T steps, 1 ≤ T ≤ num_steps, its observations normalised.
        args: gamma, num_steps, q_coef, vf_coef, retrace_lambda, rho_clip, bias_correction,
            trust_region, trust_region_delta, policy_std, dueling_samples.
        generator: of the draws a' and u_i.

    Returns:
        The loss, with its gradient, and what is worth logging, of the update or of each state [T].
    """
    x, actions, mu_mean, std = segment.observations[:-1], *segment[1:4:2], args.policy_std
    phi = model.policy(x)  # [T, d]
    values = model.value(segment.observations)  # [T + 1]
    bootstrap_value = 0.0 if segment.terminated else values[-1].detach()
    values = values[:-1]

    noise = torch.randn(1 + args.dueling_samples, *phi.shape, generator=generator)
    drawn = torch.add(phi.detach(), noise, alpha=std)  # a'_t and u_1 to u_n
    candidates = torch.cat([actions[None], drawn])
    taken, a_prime = candidates[:2], drawn[0]  # a_t and a'_t
    advantages = model.advantage(x, candidates)  # [2 + n, T]
    q_tilde, q_prime = stochastic_dueling(values, *advantages.split([2, args.dueling_samples]))

    with torch.no_grad():
        log_rho = gaussian_log_ratio(taken, phi, mu_mean, std)
        rho, rho_prime = log_rho.clamp_max(20).exp()  # e^20: far above c, and finite
        trace_coef = rho.pow(1 / actions.shape[1]).clamp_max(1)
        q_ret, q_opc = (
            retrace(segment.rewards, q_tilde, values, trace, bootstrap_value, args.gamma)
            for trace in args.retrace_lambda * torch.stack([trace_coef, torch.ones_like(rho)])
        )
        g = gaussian_policy_gradient(
            phi,
            std,
            actions,
            rho,
            q_opc,
            values,
            a_prime,
            rho_prime,
            q_prime,
            args.rho_clip,
            args.bias_correction,
        )
        mean_shift = phi - average_model.policy(x)
        k = mean_shift / std**2  # ∇_φ KL[π_a ‖ π]
        z = trust_region_step(g, k, args.trust_region_delta) if args.trust_region else g
        v_target = rho.clamp_max(1) * (q_ret - q_tilde) + values

    policy_loss = -(z * phi).sum(1)
    q_loss, value_loss = (q_ret - q_tilde).square(), (v_target - values).square()
    loss = (policy_loss + args.q_coef * q_loss + args.vf_coef * value_loss).sum() / args.num_steps
    statistics = {
        "policy_loss": policy_loss.detach(),
        "q_loss": q_loss.detach(),
        "value_loss": value_loss.detach(),
        "rho": rho,
        "truncated_weights": rho > args.rho_clip,
        "average_policy_kl": 0.5 * (mean_shift * k).sum(1),
        "trust_region_active": (z != g).any(1),
        "target": q_ret,
        "prediction": q_tilde.detach(),
    }
    return loss, statistics


# Network ==========================================================================================


def initialise(layer: nn.Module, gain: float) -> nn.Module:
    """Draw orthogonal weights of the given gain; set the biases to 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Mlp(nn.Sequential):
    """A network of two hidden layers; `gain` is the last layer's."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module], gain: float):
        super().__init__(
            initialise(nn.Linear(inputs, HIDDEN), 1.0),
            activation(),
            initialise(nn.Linear(HIDDEN, HIDDEN), 1.0),
            activation(),
            initialise(nn.Linear(HIDDEN, outputs), gain),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        if x.dim() > 1:
            return super().forward(x)
        for layer in self:  # acting: for one observation this takes half of nn.Linear's time
            linear = isinstance(layer, nn.Linear)
            x = torch.addmv(layer.bias, layer.weight, x) if linear else layer.forward(x)
        return x


def flatten(model: nn.Module) -> nn.Module:
    """Make all weights views of one vector, and their gradients of another; return the network.

    Copying, averaging, cutting and Adam's step are then a call each, a quarter of the time of an
    update of networks as small as these.
    """
    parameters = list(model.parameters())
    vector = nn.utils.parameters_to_vector(parameters).detach()
    vector.grad = torch.zeros_like(vector)
    nn.utils.vector_to_parameters(vector, parameters)
    gradients = vector.grad.split([p.numel() for p in parameters])
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.view_as(p)
    model.weights = [vector]
    return model


class ActorCritic(nn.Module):
    """The policy's mean φ(x), and the stochastic dueling network's V(x) and A(x, a)."""

    def __init__(self, obs_size: int, action_size: int):
        super().__init__()
        self.sizes = obs_size, action_size
        self.policy = Mlp(obs_size, action_size, nn.ReLU, 0.01)  # [N, D] → [N, d]; starts near 0
        self.value_net = Mlp(obs_size, 1, nn.ReLU, 1.0)
        self.advantage_net = Mlp(obs_size + action_size, 1, nn.ReLU, 1.0)

    def value(self, observations: Tensor) -> Tensor:
        """Map [N, D] to V [N]."""
        return self.value_net(observations).squeeze(-1)

    def advantage(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Map [T, D] and [..., T, d] to A [..., T]."""
        # W [x, a] = W_x x + W_a a, and the first part is the same for all actions.
        first, *others = self.advantage_net
        of_x, of_a = first.weight.split(self.sizes, 1)
        linear = nn.functional.linear
        hidden = linear(observations, of_x, first.bias) + linear(actions, of_a)
        for layer in others:
            hidden = layer(hidden)
        return hidden.squeeze(-1)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to 0; they stay views of one vector."""
        self.weights[0].grad.zero_()


class Normalizer(NamedTuple):
    """The map from raw to normalised observations: (x − mean) / std, within ±limit."""

    mean: Tensor  # float64 [D]
    std: Tensor  # float64 [D]
    limit: float

    def __call__(self, observations: Tensor) -> Tensor:
        """Normalise float64 [..., D], where a change may be small beside a constant, to float32."""
        return ((observations - self.mean) / self.std).clamp_(-self.limit, self.limit).float()


class ObservationStatistics:
    """Mean and variance of all observations of all workers, since the run's beginning.

    Every worker adds to a row of its own, so that no lock is needed; the last row holds what a
    resumed run saw before. A row is [3, D]: the count n, the mean, and M = Σ (x − mean)².
    """

    def __init__(self, num_workers: int, obs_size: int, enabled: bool):
        self.enabled = enabled
        self.rows = torch.zeros(num_workers + 1, 3, obs_size, dtype=torch.float64)
        self.rows.share_memory_()

    def add(self, rank: int, observations: Tensor) -> None:
        """Count raw observations, float64 [N, D]."""
        mean = observations.mean(0)
        count = torch.full_like(mean, len(observations))
        row = torch.stack([count, mean, (observations - mean).square().sum(0)])
        self.rows[rank] = pool(torch.stack([self.rows[rank], row]))

    def total(self) -> Tensor:
        """Pool all rows; until a worker has added one, it is the last itself, for `restore`."""
        return pool(self.rows) if self.rows[:-1].any() else self.rows[-1]

    def normalizer(self) -> Normalizer:
        """Return the map that fits what has been seen; without statistics, the identity."""
        count, mean, squares = self.total()
        if not self.enabled or not count[0]:
            return Normalizer(torch.zeros_like(mean), torch.ones_like(mean), math.inf)
        std = (squares / count).sqrt()
        # What never changes has a deviation of 0, or of the mean's rounding.
        return Normalizer(mean.clone(), std.where(std > 1e-12 * mean.abs(), 1.0), 10.0)


def pool(rows: Tensor) -> Tensor:
    """Join counts, means and sums of squared deviations, [R, 3, D], to those of all, [3, D].

        n = Σ_r n_r;   mean = Σ_r n_r mean_r / n;   M = Σ_r [M_r + n_r (mean_r − mean)²]

    Source: T. Chan, G. Golub, R. LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", equation 2.1. Sums of squares would lose what is small beside 10⁹.
    """
    counts, means, squares = rows.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp_min(1)
    return torch.stack([count, mean, (squares + counts * (means - mean).square()).sum(0)])


# Replay ===========================================================================================


def pack(segment: Segment) -> bytes:
    """Put a segment's numbers together."""
    return b"".join(x.numpy().tobytes() for x in segment[:4]) + bytes([segment.terminated])


def unpack(packed: bytes, obs_size: int, action_size: int) -> Segment:
    """Return what `pack` was given, bit by bit; a ValueError if that cannot be."""
    per_step = 8 * obs_size + 4 * (2 * action_size + 1)  # bytes
    length, rest = divmod(len(packed) - 8 * obs_size - 1, per_step)
    if length < 1 or rest:
        raise ValueError(f"a segment of {len(packed)} bytes")
    raw, seen, acted = bytearray(packed), 8 * obs_size * (length + 1), 4 * action_size * length
    observations = torch.frombuffer(raw, dtype=torch.float64, count=seen // 8)
    numbers = torch.frombuffer(
        raw, dtype=torch.float32, offset=seen, count=(2 * acted) // 4 + length
    )
    actions, rewards, mu_mean = numbers.split([acted // 4, length, acted // 4])
    observations, actions = observations.view(-1, obs_size), actions.view(-1, action_size)
    return Segment(observations, actions, rewards, mu_mean.view(-1, action_size), bool(raw[-1]))


class ReplayBuffer:
    """A worker's latest segments, packed."""

    def __init__(self, capacity: int, *sizes: int):
        self.capacity = capacity  # in steps
        self.sizes = sizes  # that unpacking needs
        self.segments: deque[tuple[int, bytes]] = deque()  # steps, and what is packed
        self.steps = self.bytes = 0

    def add(self, steps: int, packed: bytes) -> None:
        """Store a packed segment, and forget the oldest beyond the capacity."""
        self.segments.append((steps, packed))
        self.steps, self.bytes = self.steps + steps, self.bytes + len(packed)
        while self.steps > self.capacity and len(self.segments) > 1:
            steps, packed = self.segments.popleft()
            self.steps, self.bytes = self.steps - steps, self.bytes - len(packed)

    def sample(self, rng: np.random.Generator) -> Segment:
        """Draw one stored segment, each with the same probability."""
        return unpack(self.segments[rng.integers(len(self.segments))][1], *self.sizes)

    def save(self, path: Path, session: int) -> None:
        """Write all segments, and the number of the session that leaves them."""
        packed = [part for _, part in self.segments]
        if not packed:  # torch makes no tensor of nothing
            return
        sizes = torch.tensor([len(part) for part in packed])
        data = torch.frombuffer(bytearray().join(packed), dtype=torch.uint8)
        save_tensors(path, {"session": session, "sizes": sizes, "data": data})

    def load(self, path: Path, rank: int = 0, num_workers: int = 1) -> None:
        """Add a worker's share of a file's segments; end with one line if the file is damaged."""
        try:
            contents = load_tensors(path)
            sizes, data = contents["sizes"].tolist(), contents["data"].numpy()
            if data.dtype != np.uint8 or min(sizes) < 1 or sum(sizes) != len(data):
                raise ValueError("parts that do not fit")
            data, ends = data.tobytes(), np.cumsum(sizes).tolist()
            for size, end in list(zip(sizes, ends, strict=True))[rank::num_workers]:
                packed = data[end - size : end]
                segment = unpack(packed, *self.sizes)
                if not all(x.isfinite().all() for x in segment[:-1]):
                    raise ValueError("a number that is none")
                self.add(len(segment.rewards), packed)
        except Exception as error:  # zlib's, numpy's, torch's
            fail(f"the replay {path} is damaged ({type(error).__name__})")


# Worker ===========================================================================================


class Shared:
    """What all processes share; every tensor lies in shared memory."""

    def __init__(self, args: Namespace, env: gym.Env, checkpoint: dict | None = None):
        torch.set_num_threads(1)  # on more, the orthogonal weights have other last bits
        torch.manual_seed(args.seed)
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
        self.model = flatten(ActorCritic(*sizes)).share_memory()  # θ
        self.average_model = flatten(copy.deepcopy(self.model)).share_memory()  # θ_a
        kind = {"adam": SharedAdam, "rmsprop": SharedRMSprop}[args.optimizer]
        self.optimizer = kind(self.model.weights, args.learning_rate)
        self.observed = ObservationStatistics(args.num_workers, sizes[0], args.normalize_obs)
        # Agent steps since this start; each worker writes its own slot, so no lock.
        self.steps_taken = torch.zeros(args.num_workers, dtype=torch.int64).share_memory_()
        self.stop = torch.zeros(1, dtype=torch.bool).share_memory_()  # set by the main process
        self.start = self.replay_since = 0  # steps of the run before this start, and before replay
        self.session = time.time_ns()  # of the replay files that this start will leave
        self.replay_files: list[Path] = []  # that it goes on with
        if args.resume:
            restore(self.state(), checkpoint, args.resume)
            self.start = self.replay_since = checkpoint["steps"]
            self.find_replay(Path(args.resume), checkpoint)

    def find_replay(self, run: Path, checkpoint: dict) -> None:
        """Find and check the replay files that were left with the checkpoint."""
        session, since = checkpoint.get("session"), checkpoint.get("replay_since")
        buffer = ReplayBuffer(1, *self.model.sizes)
        for path in sorted((run if run.is_dir() else run.parent).glob("replay-*.pt")):
            left = load_tensors(path).get("session")
            if type(left) is type(session) is type(since) is int and left == session:
                buffer.load(path)
                self.replay_files.append(path.absolute())
                self.replay_since = since
        if not self.replay_files:
            print("the replay starts empty: the run was killed, or its replay files are gone")

    def steps(self) -> int:
        """Count the agent steps of the whole run."""
        return self.start + int(self.steps_taken.sum())

    def state(self) -> dict:
        """Gather its part of a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "average_model": self.average_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "observed": {"total": self.observed.total()},
            "session": self.session,
            "replay_since": self.replay_since,
        }


class Actor:
    """Acts in an environment, one segment after the other."""

    def __init__(
        self,
        args: Namespace,
        env: gym.Env,
        shared: Shared,
        model: nn.Module,
        generator: torch.Generator,
        greedy: bool = False,
    ):
        self.env, self.model, self.generator, self.observed = env, model, generator, shared.observed
        self.policy_std = 0.0 if greedy else args.policy_std
        self.observation: np.ndarray | None = None  # of an episode that goes on

    def act(self, num_steps: int, stop: Tensor) -> tuple[Segment, dict | None]:
        """Act for at most `num_steps` steps, no further than the end of the episode.

        Returns:
            The segment, and the episode's unscaled return "r" and length "l" if it is over.
        """
        if self.observation is None:
            self.observation, _ = self.env.reset()
        self.normalizer = self.observed.normalizer()  # held fixed for a segment and its replays
        observations, actions, rewards, mu_mean = [self.observation], [], [], []
        noise = torch.randn(num_steps, *self.env.action_space.shape, generator=self.generator)
        for e in self.policy_std * noise:
            with torch.inference_mode():
                mean = self.model.policy(self.normalizer(torch.from_numpy(observations[-1])))
            mu_mean.append(mean)
            actions.append(mean + e)
            observation, reward, terminated, _, info = self.env.step(actions[-1].numpy())
            observations.append(observation)
            rewards.append(reward)
            episode = info.get(EPISODE)  # there when it has terminated or was truncated
            if episode or stop:
                break
        self.observation = None if episode else observation
        rewards = torch.tensor(rewards, dtype=torch.float32)
        observations = torch.from_numpy(np.stack(observations))
        actions, mu_mean = torch.stack(actions), torch.stack(mu_mean)
        return Segment(observations, actions, rewards, mu_mean, bool(terminated)), episode


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy all parameters, in place. Buffers, as batch normalisation has them, are not shared."""
    torch._foreach_copy_(target.weights, source.weights)


@torch.no_grad()
def update_average(average_model: nn.Module, shared_model: nn.Module, decay: float) -> None:
    """Move the average network towards the shared one, in place: θ_a ← α θ_a + (1 − α) θ."""
    torch._foreach_lerp_(average_model.weights, shared_model.weights, 1 - decay)


def apply_gradients(
    loss: Tensor, model: nn.Module, shared: Shared, max_norm: float
) -> dict[str, Tensor]:
    """Step the shared weights along the loss's gradient, forget it, and return its norm by name.

    Every parameter must have a gradient.

    Raises:
        FloatingPointError: the gradient is not finite; the shared weights are left as they are.
        RuntimeError: a gradient's strides are not its parameter's. The fused optimizer walks raw
            memory and would corrupt the weights without a word.
    """
    loss.backward()
    gradients = [p.grad for p in model.weights]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if not norm.isfinite():
        bad = [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
        where = ", ".join(bad) or "its norm"
        raise FloatingPointError(f"the gradient is not finite ({where}), the loss {loss.item():g}")
    if norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / norm)
    for gradient, weights in zip(gradients, shared.model.weights, strict=True):
        if gradient.stride() != weights.stride():
            raise RuntimeError(f"gradient strides {gradient.stride()}, not {weights.stride()}")
        weights.grad = gradient
    shared.optimizer.step()
    for weights in shared.model.weights:
        weights.grad = None
    model.zero_grad()
    return {"grad_norm": norm}


def summarise(updates: list[dict[str, Tensor]]) -> dict[str, float]:
    """Average what was noted of each update or state; add the critic's explained variance.

    explained_variance = 1 − Var(target − prediction) / Var(target)
    """
    names = updates[0] if updates else {}
    pooled = {name: torch.cat([u[name].reshape(-1) for u in updates]).double() for name in names}
    means = {name: float(values.mean()) for name, values in pooled.items()}
    if updates:
        target, error = pooled["target"], pooled["target"] - pooled["prediction"]
        unexplained = error.var(correction=0) / target.var(correction=0).clamp_min(1e-8)
        means["explained_variance"] = float(1 - unexplained)
    return means


def worker(rank: int, args: Namespace, shared: Shared, connection: Connection) -> None:
    """Act and store, then learn from what was seen before (Algorithm 1, without its second line).

    Numbers are the algorithm's lines, `repeat` being the first. Ends at `total_timesteps`, or when
    told to stop.
    """
    seeds = np.random.SeedSequence([args.seed, rank, shared.start])
    env_seed, action_seed = (int(word) for word in seeds.generate_state(2))
    seed_libraries(env_seed)
    rng = np.random.default_rng(seeds)
    generator = torch.Generator().manual_seed(action_seed)
    model = flatten(copy.deepcopy(shared.model))
    replay = ReplayBuffer(args.replay_size // args.num_workers, *model.sizes)
    for path in shared.replay_files:
        replay.load(path, rank, args.num_workers)
    updates, next_report = [], STATISTICS_EVERY

    def learn(segment: Segment) -> None:
        observations = actor.normalizer(segment.observations)
        rewards = args.reward_scale * segment.rewards
        segment = segment._replace(observations=observations, rewards=rewards)
        loss, statistics = acer_loss(model, shared.average_model, segment, args, generator)
        updates.append(statistics | apply_gradients(loss, model, shared, args.max_grad_norm))
        update_average(shared.average_model, shared.model, args.average_decay)

    with make_env(args.env_id, env_seed % 2**31, env_kwargs=args.env_kwargs) as env:
        actor = Actor(args, env, shared, model, generator)
        while (step := shared.steps()) < args.total_timesteps and not shared.stop:  # 1, 7
            if args.anneal_lr:
                remaining = 1 - step / args.total_timesteps
                shared.optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
            copy_weights(model, shared.model)
            num_steps = min(args.num_steps, args.total_timesteps - step)
            segment, episode = actor.act(num_steps, shared.stop)
            shared.steps_taken[rank] += len(segment.rewards)
            shared.observed.add(rank, segment.observations[:-1])
            replay.add(len(segment.rewards), pack(segment))
            if shared.steps() - shared.replay_since >= args.replay_start:
                for _ in range(rng.poisson(args.replay_ratio)):  # 3, 4
                    if shared.stop:
                        break
                    copy_weights(model, shared.model)
                    learn(replay.sample(rng))  # 5: with fresh weights

            if episode:
                report = float(episode["r"]), int(episode["l"])
                connection.send(("episode", shared.steps(), rank, *report))
            if shared.steps_taken[rank] >= next_report:
                charts = {"replay_steps": replay.steps, "replay_MB": replay.bytes / 1e6}
                connection.send(("statistics", shared.steps(), rank, summarise(updates), charts))
                updates, next_report = [], next_report + STATISTICS_EVERY
    with contextlib.suppress(OSError):  # without it, a resumed run says that its replay is empty
        replay.save(Path(args.run_dir) / f"replay-{rank}.pt", shared.session)


def run_worker(rank: int, args: Namespace, shared: Shared, connection: Connection) -> None:
    """Prepare a new process, run `worker` in it, and report the error that ends it."""
    gc.freeze()  # looking through what was imported would copy all of it into every worker
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # Without this, Adam's decaying moments become denormal numbers and its step 2.4 times slower.
    torch.set_flush_denormal(True)
    # The main process alone reacts to signals. What an environment starts does, too: unlike ignored
    # signals, handlers are not inherited by new programs.
    for signum in SIGNALS:
        signal.signal(signum, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: [signal.signal(s, signal.SIG_DFL) for s in SIGNALS])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=stop_with_parent, args=(shared.stop,), daemon=True).start()
    try:
        worker(rank, args, shared, connection)
    except BrokenPipeError:  # the main process is gone: nobody left to report to
        sys.exit(1)
    except Exception as error:
        trace = "" if isinstance(error, FloatingPointError) else traceback.format_exc()
        text = f"{type(error).__name__} at step {shared.steps():,}: {error}"
        connection.send(("error", text, trace))
        sys.exit(1)


def stop_with_parent(stop: Tensor) -> None:
    """Wait until the main process is gone, however it ended, and let this one end, too."""
    multiprocessing.parent_process().join()
    stop.fill_(True)
    time.sleep(SECONDS_TO_STOP)  # for an environment that is slow
    os._exit(1)


# Shared optimizer =================================================================================


class SharedAdam:
    """Adam whose moments and step counts all processes share.

        m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   θ ← θ − lr · m̂ / (√v̂ + ε)

    Source: D. Kingma, J. Ba (2015), Algorithm 1, https://arxiv.org/abs/1412.6980.

    The state exists before any worker starts, or each would make its own. One worker steps at a
    time: m of one worker beside v of another, where v is small, makes a step of any size (measured:
    weights of 600 after 3,000 steps of at most 0.002). The fused kernel does all in one pass over
    memory, four times as fast; it needs gradients with their parameters' strides. Optimizers of
    torch.optim load a compiler when they are made: 70 MB and more than a second.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps: float = 1e-8):
        self.param_groups = [{"params": list(params), "lr": lr, "betas": betas, "eps": eps}]
        self.lock = multiprocessing.get_context("spawn").Lock()
        self.state = {
            p: {
                "step": torch.zeros(()).share_memory_(),  # a float, as torch's own
                "exp_avg": torch.zeros_like(p).share_memory_(),
                "exp_avg_sq": torch.zeros_like(p).share_memory_(),
            }
            for p in self.param_groups[0]["params"]
        }

    def state_dict(self) -> dict:
        """Return the state by each parameter's number, as torch's own do."""
        return {"state": dict(enumerate(self.state.values()))}

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        group = self.param_groups[0]
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in params]
        m, v, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        constants = {"lr": group["lr"], "eps": group["eps"], "weight_decay": 0}
        constants |= {"amsgrad": False, "maximize": False, "fused": True}
        beta1, beta2 = group["betas"]
        # A worker that is killed in its step never gives the lock back: hence 10 s, not for ever.
        acquired = self.lock.acquire(timeout=10)
        try:
            gradients = [p.grad for p in params]
            adam(params, gradients, m, v, [], steps, beta1=beta1, beta2=beta2, **constants)
        finally:
            if acquired:
                self.lock.release()


class SharedRMSprop:
    """RMSProp as in the A3C paper, whose mean square all processes share.

        s ← α s + (1 − α) g²;   θ ← θ − lr · g / √(s + ε)

    ε stands inside the root, unlike in torch.optim.RMSprop. It bounds every step, whatever two
    workers write at the same time, so that no lock is needed (Hogwild).

    Source: Mnih et al. (2016), equations S2 and S3, https://arxiv.org/abs/1602.01783.
    """

    def __init__(self, params, lr: float, alpha: float = 0.99, eps: float = 0.1):
        self.param_groups = [{"params": list(params), "lr": lr, "alpha": alpha, "eps": eps}]
        made = ((p, torch.zeros_like(p).share_memory_()) for p in self.param_groups[0]["params"])
        self.state = {p: {"square_avg": square_avg} for p, square_avg in made}

    def state_dict(self) -> dict:
        """Return the state by each parameter's number, as torch's own do."""
        return {"state": dict(enumerate(self.state.values()))}

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is not None:
                square_avg = self.state[p]["square_avg"]
                square_avg.mul_(group["alpha"]).addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                p.addcdiv_(p.grad, (square_avg + group["eps"]).sqrt_(), value=-group["lr"])


# Environment and wrappers =========================================================================


class Control(gym.Wrapper):
    """Take actions of [−1, 1] to the environment's own bounds, shape and type; check what it gives.

    In float64, whatever the type; whole numbers are rounded; what lies beyond is clipped, last, so
    that no rounding leaves the environment's bounds.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.own = env.action_space
        self.low, self.high = (x.astype(np.float64).ravel() for x in (self.own.low, self.own.high))
        self.action_space = gym.spaces.Box(-1, 1, self.low.shape, np.float32)
        shape = env.observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float64)

    def reset(self, **kwargs):
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        return as_floats(observation), info

    def step(self, action):
        """Take a step."""
        half = 0.5 * np.minimum(np.maximum(action.astype(np.float64), -1), 1)
        action = self.low * (0.5 - half) + self.high * (0.5 + half)
        action = np.rint(action) if self.own.dtype.kind in "iu" else action
        action = np.minimum(np.maximum(action, self.low), self.high)
        action = action.astype(self.own.dtype).reshape(self.own.shape)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return as_floats(observation), as_number(reward), terminated, truncated, info


def as_floats(observation) -> np.ndarray:
    """Read an observation: finite numbers, in float64."""
    numbers = np.asarray(observation, np.float64)
    if not np.isfinite(numbers).all():
        raise FloatingPointError(f"the environment's observation is not finite: {numbers}")
    return numbers


def as_number(reward) -> float:
    """Read a reward: a finite number of whatever library, or an array of one."""
    if not isinstance(reward, float):
        if np.size(reward) != 1:
            raise ValueError(f"a reward of {np.size(reward)} numbers: a wrapper must make them one")
        reward = float(np.asarray(reward).item())
    if not math.isfinite(reward):
        raise FloatingPointError(f"the environment's reward is not finite: {reward}")
    return reward


def make_env(
    env_id: str,
    seed: int,
    render_mode: str | None = None,
    env_kwargs: str = "{}",
) -> gym.Env:
    """Make an environment of flat float64 observations and of actions in [−1, 1], seeded.

    Raises:
        ValueError: its actions or observations are not what this script can use.
        Exception: what the environment's maker raises.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    options = {"disable_env_checker": True} | ({"render_mode": render_mode} if render_mode else {})
    if render_mode and "gymnasium.envs.mujoco" in str(gym.registry.get(name)):
        options["camera_name"] = "track"  # or the robot walks out of the picture
    env = gym.make(name, **(options | json.loads(env_kwargs)))
    if mujoco := sys.modules.get("mujoco"):  # or it writes MUJOCO_LOG.TXT right here
        mujoco.set_mju_user_warning(lambda text: None)
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box):
        kind = type(actions).__name__
        raise ValueError(f"{kind} actions; the *_continuous.py scripts give Box ones")
    limit = 2**53 if actions.dtype.kind in "iu" else np.inf  # what float64 tells apart
    if not all((np.abs(x.astype(np.float64)) < limit).all() for x in (actions.low, actions.high)):
        raise ValueError(f"unbounded actions, {actions}: wrap it in one that gives them bounds")
    if any(kind in str(observations) for kind in ("Text(", "Sequence(", "Graph(")):
        raise ValueError(f"observations that cannot be flattened to numbers, {observations}")
    pictures = observations.dtype == np.uint8 and len(observations.shape) > 1
    if pictures or gym.spaces.flatdim(observations) > 20_000:  # a layer of 5 M weights
        raise ValueError(
            "the *_continuous.py scripts see numbers, at most 20,000, and no pictures, which "
            f"FilterObservation can leave out of a Dict. These are {observations}"
        )
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    env = gym.wrappers.RecordEpisodeStatistics(Control(env), stats_key=EPISODE)
    env.reset(seed=seed)
    return env


# Checkpoint, logging, evaluation ==================================================================


def seed_libraries(seed: int) -> None:
    """Seed the generators that environments may draw from beside their own.

    Workers are copies of one process, and would all draw the same from NumPy's and torch's.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the generator that is meant)
    torch.manual_seed(seed)


def open_env(args: Namespace, seed: int, render_mode: str | None = None) -> gym.Env:
    """Make an environment and try what will be asked of it; end with one line if that fails."""
    if render_mode == "rgb_array" and sys.platform == "linux":  # for libraries that are yet to come
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
    seed_libraries(seed)
    try:
        env = make_env(args.env_id, seed, render_mode=render_mode, env_kwargs=args.env_kwargs)
        env.step(env.action_space.sample())
        if render_mode == "rgb_array":
            picture(env)
        seed_libraries(seed)  # once more: the step may have drawn
        env.reset(seed=seed)
        return env
    except Exception as error:
        old = re.search(r"'seed'|'options'|values to unpack", str(error))
        hint = " (Gymnasium: reset(seed, options) gives 2 values, step(action) 5)" if old else ""
        text = re.sub(r"(.{600}).+", r"\1 ...", str(error), flags=re.DOTALL)  # arrays and all
        fail(f"--env-id {args.env_id}: {type(error).__name__}: {text}{hint}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write beside a file and move it there: a kill leaves the old one or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, contents: dict) -> None:
    """Write tensors and plain values, whole or not at all."""
    buffer = io.BytesIO()  # torch turns the error of a full disk into another one
    torch.save(contents, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def snapshot(value):
    """Copy all tensors in dicts and lists: others write to those in shared memory meanwhile."""
    if isinstance(value, dict):
        return {name: snapshot(part) for name, part in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def load_tensors(path: Path) -> dict:
    """Read a file of tensors and plain values; no code in it can run. Ends with one line if bad."""
    try:
        if bad := zipfile.ZipFile(path).testzip():  # torch looks at no checksum
            raise ValueError(bad)
        # Mapped, so that nothing is unpacked into memory.
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except FileNotFoundError:
        fail(f"there is no checkpoint at {path}")
    except Exception as error:  # torch.load raises many kinds
        fail(f"{path} is damaged, or no checkpoint ({type(error).__name__})")


def load_checkpoint(source: str) -> dict:
    """Read a run's checkpoint, given its folder or the file; end with one line if that fails."""
    path = Path(source, "checkpoint.pt") if Path(source).is_dir() else Path(source)
    contents = {"steps": 0, "seconds": 0.0} | load_tensors(path)  # weights alone have neither
    if contents.get("script") != SCRIPT:
        fail(f"the checkpoint {path} was written by {contents.get('script', 'another program')}")
    for name, kind in {"args": dict, "steps": int, "seconds": float}.items():
        if type(contents.get(name)) is not kind or (kind is not dict and not contents[name] >= 0):
            fail(f"the checkpoint {path} is damaged: its {name} is {contents.get(name)!r}")
    return contents


@torch.no_grad()
def restore(target: dict, saved: dict, source: str) -> None:
    """Copy saved tensors in place, so that shared memory stays shared; end with one line if bad."""
    for name, value in target.items():
        kept = saved.get(name) if isinstance(saved, dict) else None
        if isinstance(value, dict):
            restore(value, kept, source)
        elif isinstance(value, Tensor):
            kinds = [
                (x.shape, x.dtype, x.layout, x.device)
                for x in (value, kept)
                if hasattr(x, "layout")
            ]
            if len(kinds) < 2 or kinds[0] != kinds[1]:
                fail(f"the checkpoint {source} lacks {name}, or does not fit this network in it")
            if not kept.isfinite().all():
                fail(f"the checkpoint {source} is of no use: its {name} is not finite")
            value.copy_(kept)


class RunLog:
    """TensorBoard events, episodes.csv and the progress line of one run."""

    def __init__(self, run_dir: Path, args: Namespace, start: int, seconds: float):
        # Imported here, because workers import this file too: they need none of it.
        from torch.utils.tensorboard import SummaryWriter

        self.total_timesteps = args.total_timesteps
        self.began = time.monotonic() - seconds  # as if the run had never stopped
        self.last = time.monotonic(), start
        self.charts: dict[str, dict[int, float]] = {}  # name: worker: its latest value
        path = run_dir / "episodes.csv"
        games = read_games(path, start) if start else []  # what came after is forgotten
        self.recent = deque([(float(game[3]), int(game[4])) for game in games], RECENT_GAMES)
        with replacing(path) as file:
            rows = ["step,seconds,worker,return,length", *map(",".join, games), ""]
            file.write("\n".join(rows).encode())
        self.csv = open(path, "a", buffering=1)  # noqa: SIM115 (closed in close)
        # From 0 on for a new run, or TensorBoard shows what a killed one played and lost.
        self.writer = SummaryWriter(str(run_dir), purge_step=start + 1 if start else 0)
        # Its own thread dies of a full disk, with a traceback; the run and episodes.csv go on.
        threading.excepthook = lambda died: print(f"{SCRIPT}: {died.exc_value}", file=sys.stderr)

    def seconds(self) -> float:
        """Return the run's wall-clock time, stops left out."""
        return time.monotonic() - self.began

    def scalar(self, name: str, value: float, step: int) -> None:
        """Give a number to TensorBoard, unless its writer has died."""
        with contextlib.suppress(OSError):
            self.writer.add_scalar(name, value, step)

    def episode(self, step: int, rank: int, episode_return: float, length: int) -> None:
        """Record a finished game."""
        self.recent.append((episode_return, length))
        self.csv.write(f"{step},{self.seconds():.1f},{rank},{episode_return:.8g},{length}\n")
        self.scalar("charts/episodic_return", episode_return, step)
        self.scalar("charts/episodic_length", length, step)

    def statistics(self, step: int, rank: int, losses: dict, charts: dict) -> None:
        """Record a worker's means over its latest updates, and what is summed over the workers."""
        for name, value in losses.items():
            self.scalar(f"losses/{name}", value, step)
        for name, value in charts.items():
            self.charts.setdefault(name, {})[rank] = value
            self.scalar(f"charts/{name}", sum(self.charts[name].values()), step)

    def progress(self, step: int) -> None:
        """Print a line, and log the speed since the one before."""
        (before, last_step), self.last = self.last, (time.monotonic(), step)
        speed = (step - last_step) / max(self.last[0] - before, 1e-6)
        self.scalar("charts/SPS", speed, step)
        seconds = max(0, self.total_timesteps - step) // max(speed, 1e-3)
        left = timedelta(seconds=seconds) if speed else "unknown time"
        games = "no game over yet"
        if count := len(self.recent):
            mean_return, mean_length = np.mean(self.recent, axis=0)
            games = f"return {mean_return:.2f}, length {mean_length:.0f} (last {count} games)"
        charts = [f" | {name} {sum(parts.values()):,.0f}" for name, parts in self.charts.items()]
        print(
            f"{step:>11,} steps {step / self.total_timesteps:6.1%} | {speed:5.0f} steps/s | "
            f"{left} left | {games}{''.join(charts).replace('_', ' ')}",
            flush=True,
        )

    def close(self) -> None:
        """Write out what is still held."""
        with contextlib.suppress(OSError):
            self.writer.close()
            self.csv.close()


def read_games(path: Path, last_step: int) -> list[list[str]]:
    """Read the rows of episodes.csv up to a step, without those that a kill or a hand tore."""
    games = []
    for row in path.read_text(errors="replace").splitlines()[1:] if path.exists() else []:
        with contextlib.suppress(ValueError):
            step, seconds, rank, episode_return, length = row.split(",")
            if int(step) <= last_step and math.isfinite(float(episode_return)) and int(length) > 0:
                games.append([step, seconds, rank, episode_return, length])
    return games


def picture(env: gym.Env) -> np.ndarray:
    """Draw what there is to see, in its own proportions and at most 320 pixels wide."""
    frame = env.render()
    if getattr(frame, "dtype", None) != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4):
        raise ValueError(f"render() gives no uint8 RGB picture but {type(frame).__name__}")
    scale = min(1.0, 320 / frame.shape[1])
    frame = np.ascontiguousarray(frame[..., :3])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def write_gif(path: Path, frames: list[np.ndarray], milliseconds: int) -> None:
    """Write RGB pictures as an animated GIF."""
    from PIL import Image  # here, since workers need none of it

    first, *others = map(Image.fromarray, frames)
    with replacing(path) as file:
        how = {"append_images": others, "duration": milliseconds, "loop": 0}
        first.save(file, "GIF", save_all=True, **how)
    print(f"wrote {path}")


def evaluate(args: Namespace) -> list[float]:
    """Play whole games with a trained policy, rewards as they are; print and return the returns."""
    source = Path(args.evaluate).absolute()
    video = source / "video" if source.is_dir() else source.parent / "video" / source.stem
    if args.capture_video:  # what cannot be written afterwards is said now
        video.mkdir(parents=True, exist_ok=True)
    # The spawn key sets these streams apart from every worker's.
    seeds = np.random.SeedSequence(args.seed, spawn_key=(0,)).generate_state(2)
    generator = torch.Generator().manual_seed(int(seeds[1]))
    render_mode = "human" if args.render else "rgb_array" if args.capture_video else None
    env = open_env(args, int(seeds[0]) % 2**31, render_mode)
    shared = Shared(args, env)
    acting = {name: part for name, part in shared.state().items() if name in ("model", "observed")}
    restore(acting, load_checkpoint(args.evaluate), args.evaluate)
    actor = Actor(args, env, shared, shared.model, generator, args.greedy)
    rate = env.metadata.get("render_fps") or GIF_RATE
    every = math.ceil(rate / GIF_RATE)  # so many steps from one picture to the next
    returns, frames, different = [], [], set()
    with stop_on_signals(shared.stop) as signals:
        while len(returns) < args.eval_episodes and not signals:
            game, actions, total, episode = len(returns) + 1, [], 0.0, None
            while episode is None and len(actions) < args.eval_max_steps and not signals:
                if args.capture_video and game == 1 and len(frames) < GIF_FRAMES:
                    frames.append(picture(env))
                segment, episode = actor.act(every, shared.stop)
                actions += segment.actions.tolist()
                total += float(segment.rewards.sum())
                if len(actions) % 10_000 < every:
                    print(f"game {game}: {len(actions):,} steps, return {total:.8g} so far")
            if not signals:
                actor.observation = None  # a game that was cut at its longest does not go on
                different.add(str(actions))
                returns.append(float(episode["r"]) if episode else total)
                length = episode["l"] if episode else len(actions)
                print(f"game {game}: return {returns[-1]:.8g}, length {length}", flush=True)
    env.close()
    if returns:
        print(
            f"{len(returns)} games, {len(different)} different: mean {np.mean(returns):.2f}, "
            f"sd {np.std(returns):.2f}, median {np.median(returns):.8g}, min {min(returns):.8g}, "
            f"max {max(returns):.8g}"
        )
    if frames:
        write_gif(video / f"seed-{args.seed}.gif", frames, round(1000 * every / rate))
    if signals:
        sys.exit(128 + signals[0])
    return returns


# Training =========================================================================================


def make_run_dir(args: Namespace) -> IO[str]:
    """Make the run's folder, or find a resumed one's; return the file that locks it while open.

    Ends with one line if another run is there, or another process trains in it.
    """
    # The process number tells runs apart that begin in the same second.
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    name = re.sub(r"[^\w.-]", "-", f"{args.env_id}__{args.exp_name}__{args.seed}__{stamp}")
    run_dir = Path(args.resume or args.run_dir or f"runs/{name}").absolute()
    if run_dir.is_file():
        if run_dir.name != "checkpoint.pt":
            fail(f"{run_dir} is no run: give a folder, or the checkpoint.pt in it")
        run_dir = run_dir.parent
    args.run_dir = str(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if links := [path.name for path in run_dir.iterdir() if path.is_symlink()]:
        fail(f"{run_dir} holds links, and a run writes through none: {', '.join(links)}")
    file = open(run_dir / "args.json", "a+")  # noqa: SIM115 (the lock lasts while it is open)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another process trains in {run_dir}")
    begun = (run_dir / "checkpoint.pt").exists() or read_games(run_dir / "episodes.csv", 10**15)
    if begun and not args.resume:
        another = f"give another --run-dir, or --resume {shlex.quote(args.run_dir)}"
        fail(f"{run_dir} holds a run already: {another}")
    file.truncate(0)
    json.dump(vars(args), file, indent=2, sort_keys=True)
    file.flush()
    return file


@contextlib.contextmanager
def stop_on_signals(stop: Tensor) -> Iterator[list[int]]:
    """Set `stop` at Ctrl-C, SIGTERM or a closed terminal, and yield the signals that came.

    One that comes a second later or more ends the process at once: `timeout` sends it twice.
    """
    came: list[int] = []
    times: list[float] = []

    def request_stop(signum, frame) -> None:
        came.append(signum)
        times.append(time.monotonic())
        stop.fill_(True)
        if times[-1] > times[0] + 1:
            os._exit(128 + signum)

    # Ignored ones stay so, as under `nohup`; a thread beside the main one cannot handle any.
    alone = threading.current_thread() is threading.main_thread()
    heard = [s for s in SIGNALS if alone and signal.getsignal(s) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, request_stop) for signum in heard}
    # What a Ray task starts inherits that SIGINT is blocked, and would never hear it.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
    try:
        yield came
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def signals_waiting() -> Iterator[None]:
    """Let signals wait while processes start, which inherit that until they can handle them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    resource_tracker.ensure_running()  # it unblocks two of them when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server() -> None:
    """Start, on Linux, the process whose copies the workers will be, to import what they need."""
    # glibc keeps what is freed for the next update, up to its most, 32 MB a piece, instead of
    # giving it back to the system: recurrent A3C had 60,000 page faults a second.
    os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
    if START_METHOD == "forkserver":
        emulator = "ale_py" if "ale_py" in sys.modules else "mujoco"
        heavy = ["torch", "torch.optim.adam", "cv2", "gymnasium.wrappers", emulator]
        multiprocessing.get_context(START_METHOD).set_forkserver_preload(heavy)
        with signals_waiting():
            multiprocessing.forkserver.ensure_running()


def start_workers(args: Namespace, shared: Shared, workers: dict) -> None:
    """Start the worker processes; enter each under the connection on which it reports."""
    context = multiprocessing.get_context(START_METHOD)
    for rank in range(args.num_workers):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_worker, args=(rank, args, shared, sender))
        process.name = f"worker {rank}"
        try:
            process.start()
        except OSError as error:
            fail(f"{process.name} cannot start ({error}): try a smaller --num-workers")
        sender.close()  # the worker's own is the only one left: the pipe ends when it dies
        workers[receiver] = process


def supervise(args: Namespace, shared: Shared, log: RunLog, save, workers: dict) -> str:
    """Log, print and save until all workers have ended; return what went wrong, if anything."""
    failure, unsaved, kill_at, now = "", False, math.inf, time.monotonic()
    next_line, next_save = now + args.log_interval, now + args.checkpoint_interval
    while workers:
        sentinels = [process.sentinel for process in workers.values()]
        # A signal sets `stop` without waking this: hence at most a second.
        wait([*(c for c in workers if not c.closed), *sentinels], max(0, min(1, next_line - now)))
        now, tasks = time.monotonic(), []
        for connection, process in list(workers.items()):
            ended = not process.is_alive()  # asked first: nothing comes after what is read below
            try:
                while connection.poll():
                    kind, *report = connection.recv()
                    if kind == "error":
                        failure = failure or f"{process.name} died: {report[0]}"
                        print(report[1], end="", file=sys.stderr)
                    else:
                        tasks.append(partial(getattr(log, kind), *report))
            except (EOFError, OSError):  # the worker has ended, perhaps within a message
                connection.close()
            if ended:
                del workers[connection]
                if process.exitcode or not (shared.stop or shared.steps() >= args.total_timesteps):
                    # Below 0 it is a signal; 0 before the end comes from somebody's sys.exit().
                    failure = failure or f"{process.name} died: exit code {process.exitcode}"
                # Died, or the budget is met: the others end after their step, or are killed.
                shared.stop.fill_(True)

        if now >= next_line or not workers:
            tasks.append(partial(log.progress, shared.steps()))
            next_line = now + args.log_interval
        if now >= next_save:
            tasks.append(save)
            next_save = now + args.checkpoint_interval
        for task in tasks:
            try:
                task()
                unsaved = unsaved and task is not save
            except BrokenPipeError:
                raise
            except OSError as error:  # a full disk may be emptied before the next checkpoint
                if task is save and unsaved:
                    failure = failure or f"no checkpoint can be written: {error}"
                elif not unsaved:
                    print(f"{SCRIPT}: {error}; it goes on without", file=sys.stderr)
                unsaved = True
            except FloatingPointError as error:
                failure = failure or str(error)
        if failure:
            shared.stop.fill_(True)
        kill_at = min(kill_at, now + SECONDS_TO_STOP) if shared.stop else kill_at
        for process in workers.values() if now >= kill_at else ():
            failure = failure or f"{process.name} was killed: no stop within {SECONDS_TO_STOP} s"
            process.kill()
    return failure


def save_run(args: Namespace, shared: Shared, log: RunLog) -> None:
    """Write the checkpoint: enough to go on, and to play.

    Raises:
        FloatingPointError: the weights are not finite any more; the last checkpoint stays.
        OSError: it cannot be written; the last checkpoint stays.
    """
    settings = {name: value for name, value in vars(args).items() if name != "run_dir"}
    counts = {"steps": shared.steps(), "seconds": log.seconds()}
    contents = {"script": SCRIPT, "args": settings, **counts, **snapshot(shared.state())}
    if not all(weights.isfinite().all() for weights in contents["model"].values()):
        raise FloatingPointError("the weights are not finite any more: try a lower --learning-rate")
    save_tensors(Path(args.run_dir) / "checkpoint.pt", contents)
    with contextlib.suppress(OSError):
        log.writer.flush()


def train(args: Namespace) -> Path:
    """Train to `total_timesteps`; return the run's folder.

    Raises:
        SystemExit: with 128 + the signal's number after Ctrl-C, SIGTERM or a closed terminal; with
            a message if a worker died or did not stop, or the settings cannot be run. What was
            learned is in the checkpoint.
        OSError: the run's folder cannot be written.
    """
    files = 100 + 4 * args.num_workers  # for shared tensors, and what leads to each worker
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < files:
        fail(f"{args.num_workers} workers open {files} files: raise ulimit -n, or use fewer")
    start_fork_server()
    if args.capture_video or args.render:  # what cannot be drawn in the end is said now
        open_env(args, 0, "human" if args.render else "rgb_array").close()
    checkpoint = load_checkpoint(args.resume) if args.resume else {"steps": 0, "seconds": 0.0}
    if checkpoint["steps"] >= args.total_timesteps:
        fail(f"{args.resume} has {checkpoint['steps']:,} steps: give a larger --total-timesteps")
    with open_env(args, args.seed % 2**31) as env, signals_waiting():
        try:
            shared = Shared(args, env, checkpoint)
        except RuntimeError as error:
            fail(f"no shared memory: {error}; enlarge /dev/shm")
        raw, seen = env.unwrapped.observation_space, env.observation_space
    workers: dict[Connection, multiprocessing.Process] = {}
    with make_run_dir(args), stop_on_signals(shared.stop) as signals:
        log = RunLog(Path(args.run_dir), args, shared.start, checkpoint["seconds"])
        save = partial(save_run, args, shared, log)
        save()  # whatever happens from here on, the run can go on
        print(
            f"{SCRIPT}: {args.env_id}, seed {args.seed}, {args.num_workers} workers, steps "
            f"{shared.start:,} to {args.total_timesteps:,}, {args.optimizer} at "
            f"{args.learning_rate:g}\nobservations {type(raw).__name__}{list(raw.shape or ())} as "
            f"{list(seen.shape)}, actions {env.action_space}\nwriting to {args.run_dir}",
            flush=True,
        )
        try:
            with signals_waiting():
                start_workers(args, shared, workers)
            failure = supervise(args, shared, log, save, workers)
        finally:
            for process in workers.values():
                process.kill()
                process.join(1)
            try:
                save()
            except (OSError, FloatingPointError) as error:
                print(f"{SCRIPT}: the checkpoint before is kept: {error}", file=sys.stderr)
            log.close()
    run = shlex.quote(args.run_dir) + f" --env-id {shlex.quote(args.env_id)}" * (":" in args.env_id)
    if signals:
        print(f"stopped at step {shared.steps():,}; go on with: python {SCRIPT} --resume {run}")
        sys.exit(128 + signals[0])
    if failure:
        fail(f"{failure}; what was learned is kept; go on with: python {SCRIPT} --resume {run}")
    print(f"finished; play with: python {SCRIPT} --evaluate {run}", flush=True)
    return Path(args.run_dir)


# Command line =====================================================================================


def usable_processors() -> int:
    """Count the processors this process may use, by its affinity and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):  # there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return count


def build_parser() -> argparse.ArgumentParser:
    """Make the command line of SETTINGS; its errors are one line."""
    parser = argparse.ArgumentParser(SCRIPT, argparse.SUPPRESS, allow_abbrev=False)
    parser.description = (__doc__ or "").partition("\n")[0]
    for title, rows in SETTINGS.items():
        group = parser.add_argument_group(title)
        for flag, default, (first, *_), text in rows:
            kind = {"action": argparse.BooleanOptionalAction} if first is True else {}
            kind = kind or {"type": type(first)}
            shown = "" if default in (None, False) else f" (default: {default})"
            name = group.add_argument(flag, help=text + shown, **kind).dest
            parser.set_defaults(**{name: default})
    return parser


def check(args: Namespace, parser: argparse.ArgumentParser) -> None:
    """End with one line and exit code 2 if a setting, given or of a file, is not allowed."""
    for flag, default, allowed, _ in (row for rows in SETTINGS.values() for row in rows):
        value, kind = getattr(args, flag[2:].replace("-", "_")), type(allowed[0])
        if kind is str:
            wanted = " or ".join(allowed) or "a text"
            good = isinstance(value, str) and value and (value in allowed or allowed == TEXT)
        elif kind is bool:
            wanted, good = "nothing", isinstance(value, bool)
        else:
            wanted = f"a number from {allowed[0]:,} to {allowed[1]:,}"
            good = type(value) in (int, kind) and allowed[0] <= value <= allowed[1]
        if not good and (value is not None or default is not None):
            shown = " ".join(repr(value).split())
            parser.error(f"{flag} {shown} will not do: give {wanted}")


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Read and check the command line; `--resume` and `--evaluate` take a run's own settings."""
    parser = build_parser()
    given = args = parser.parse_args(argv)
    check(args, parser)
    if args.resume_if_exists and args.run_dir and Path(args.run_dir, "checkpoint.pt").exists():
        args.resume, args.run_dir = args.run_dir, None
    for one, other in (("resume", "evaluate"), ("resume", "run_dir"), ("render", "capture_video")):
        if getattr(args, one) and getattr(args, other):
            parser.error(f"give --{one} or --{other.replace('_', '-')}, not both")
    if run := args.resume or args.evaluate:
        saved = load_checkpoint(run)["args"]
        inherited = set(saved) & set(vars(args)) - ONE_CALL
        parser.set_defaults(**{name: saved[name] for name in inherited})
        args = parser.parse_args(argv)
        args.resume, args.run_dir = given.resume, given.run_dir
        check(args, parser)
        resumed = {"optimizer"} if args.resume else ()
        for name in {"env_id", "env_kwargs", "activation", *resumed} & inherited:
            if getattr(args, name) != saved[name]:
                flag = "--" + name.replace("_", "-")
                parser.error(f"{run} was trained with {flag} {saved[name]}: leave {flag} out")
        if ":" in args.env_id and args.env_id != given.env_id:
            parser.error(f"it imports code, which no file may ask for: give --env-id {args.env_id}")
    args.learning_rate = args.learning_rate or LEARNING_RATES[args.optimizer]
    args.num_workers = args.num_workers or usable_processors()
    return args


def fail(message: str):
    """End with one line on standard error, whatever its parts hold, and exit code 1."""
    sys.exit(f"{SCRIPT}: error: {''.join(c if c.isprintable() else ' ' for c in message)}")


def main(argv: list[str] | None = None) -> None:
    """Train or evaluate, as the command line says."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that knows no Greek
    try:
        args = parse_args(argv)
        if not args.evaluate:
            args.evaluate = str(train(args))
            if not (args.capture_video or args.render):
                return
        evaluate(args)
    except KeyboardInterrupt:  # before there is anything to save
        sys.exit(130)
    except BrokenPipeError:  # as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail("nobody reads its output any more")
    except (OSError, FloatingPointError) as error:  # a folder or a number that will not do
        fail(str(error))


if __name__ == "__main__":
    # Under a profiler or debugger another module is `__main__`: workers find this one by its name.
    ours = vars(sys.modules["__main__"]) is globals()
    (main if ours else importlib.import_module(Path(__file__).stem).main)()
