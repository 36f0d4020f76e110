# SPDX-License-Identifier: MIT
"""A3C on Atari with a recurrent policy (LSTM), in one file.

V. Mnih, A. Puigdomènech Badia, M. Mirza, A. Graves, T. Lillicrap, T. Harley, D. Silver,
K. Kavukcuoglu (2016): "Asynchronous Methods for Deep Reinforcement Learning",
https://arxiv.org/abs/1602.01783, Algorithm S3 and section 5.1.

    python a3c_recurrent_atari.py --env-id PongNoFrameskip-v4             # train
    python a3c_recurrent_atari.py --resume runs/NAME                      # go on after a stop
    python a3c_recurrent_atari.py --evaluate runs/NAME --capture-video    # play, write a GIF

Every worker process owns an environment and a copy of the network. It acts for at most
`num_steps` steps, learns once from that segment, and steps the one shared set of weights.

A run writes into its own folder: TensorBoard events, episodes.csv (a line a game),
checkpoint.pt, args.json and video/.

Differences from the paper
 1. Adam is the default optimizer, one worker stepping at a time; `--optimizer rmsprop` is the
    paper's shared RMSProp, lock-free.
 2. The LSTM sees a stack of the last four frames, as the feed-forward network does.
 3. A lost life ends a segment with value 0, as if the game had ended, but the game and the LSTM's
    state go on; FIRE is pressed after a reset and after a lost life.
 4. Losses are divided by `num_steps`, whatever a segment's length, so that every state weighs the
    same.
 5. Orthogonal initial weights, forget gates with a bias of 1; the network sees a stack of frames
    less its median brightness.
 6. Segments of 20 steps (paper: 5), and a learning rate that stays, unless `--anneal-lr` is given.
"""

import argparse
import contextlib
import copy
import ctypes
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

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).name
STACK = 4  # frames in an observation
SCREEN = 84  # pixels, height and width of a frame
STATISTICS_EVERY = 1_000  # a worker's own steps between two reports of its losses
RECENT_GAMES = 100  # in the progress line's means
SECONDS_TO_STOP = 30  # for workers that are told to, before they are killed
GIF_EVERY, GIF_FRAMES = 2, 600  # every second agent step, so many at most: under 3 MB
STEP_MILLISECONDS = 1000 * 4 // 60  # an agent step is 4 frames of a game at 60 Hz

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
    add("--env-id", default="PongNoFrameskip-v4", help="Gymnasium id, or module:Id for your own")
    add(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=1,
        help="seed of weights, games, actions, replay",
    )
    add("--total-timesteps", type=count, default=10_000_000, help="agent steps over all workers")
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
    add("--anneal-lr", action=flag, default=False, help="lower it linearly to 0 over the run")
    add("--max-grad-norm", type=positive, default=40.0, help="longer gradients are scaled to this")

    group = parser.add_argument_group("actor-critic")
    add = group.add_argument
    add("--gamma", type=share, default=0.99, help="discount per agent step [γ]")
    add("--num-steps", type=count, default=20, help="agent steps in a segment, at most [k]")
    add("--ent-coef", type=number(float, 0), default=0.01, help="entropy bonus [β]")
    add("--vf-coef", type=number(float, 0), default=0.5, help="weight of the value's squared error")
    add("--reward-clip", action=flag, default=True, help="learn from the sign of the reward")
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
    return args


def fail(message: str):
    """End with one line on standard error and exit code 1."""
    sys.exit(f"{SCRIPT}: error: {message}")


# Algorithm ========================================================================================


def n_step_returns(rewards: Tensor, bootstrap_value: Tensor | float, gamma: float) -> Tensor:
    """Sum the discounted rewards of a segment from each of its steps on.

        R_t = r_t + γ R_{t+1},   R_T = bootstrap_value

    Source: Mnih et al. (2016), Algorithm S3, https://arxiv.org/abs/1602.01783.

    Args:
        rewards: [T], r_t, received after a_t.
        bootstrap_value: V of the observation after the last step; 0 if that step terminated.
        gamma: discount per step, in [0, 1].

    Returns:
        [T], R. No gradient attached.
    """
    returns, following = [], float(bootstrap_value)
    for reward in reversed(rewards.tolist()):
        following = reward + gamma * following
        returns.append(following)
    return torch.tensor(returns[::-1], dtype=rewards.dtype)


class Segment(NamedTuple):
    """T steps of experience within one life, and the observation after the last of them."""

    observations: Tensor  # uint8 [T + 1, 4, 84, 84]
    actions: Tensor  # int64 [T]
    rewards: Tensor  # float32 [T]
    terminated: bool  # whether the last step ended the life or game: its bootstrap value is 0
    state: tuple[Tensor, Tensor]  # the LSTM's h and c before the first observation


def a3c_loss(
    model: nn.Module, segment: Segment, args: Namespace
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute A3C's loss on one segment.

        loss = (1 / num_steps) Σ_t [−log π(a_t|x_t) (R_t − V_t)  −  β H(π(·|x_t))
                                    +  vf_coef · (R_t − V_t)²]

    No gradient flows through R, nor through V in the first term. Through the LSTM it flows back
    from every step to the first; the state before that is a constant.

    Source: Mnih et al. (2016), sections 4 and 5.1, https://arxiv.org/abs/1602.01783.

    Args:
        model: the network to be differentiated, θ'.
        segment: T steps, 1 ≤ T ≤ num_steps.
        args: gamma, num_steps, vf_coef, ent_coef.

    Returns:
        The loss, with its gradient, and what is worth logging: scalars, and R and V [T].
    """
    log_pi, values, _ = model(segment.observations, segment.state)
    bootstrap_value = 0.0 if segment.terminated else values[-1].detach()
    log_pi, values = log_pi[:-1], values[:-1]  # [T, A], [T]
    returns = n_step_returns(segment.rewards, bootstrap_value, args.gamma)
    advantages = returns - values

    log_pi_taken = log_pi.gather(1, segment.actions[:, None]).squeeze(1)
    policy_loss = -(log_pi_taken * advantages.detach()).sum() / args.num_steps
    entropy = -(log_pi.exp() * log_pi).sum(1)
    value_loss = advantages.square().sum() / args.num_steps
    statistics = {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": entropy.detach().mean(),
        "returns": returns,
        "values": values.detach(),
    }
    entropy_bonus = args.ent_coef * entropy.sum() / args.num_steps
    return policy_loss - entropy_bonus + args.vf_coef * value_loss, statistics


# Network ==========================================================================================


def initialise(layer: nn.Module, gain: float) -> nn.Module:
    """Draw orthogonal weights of the given gain; set the biases to 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class ActorCritic(nn.Module):
    """Policy π(·|x) and value V(x) on a convolutional body and an LSTM."""

    def __init__(self, num_actions: int):
        super().__init__()
        relu = math.sqrt(2)
        self.conv1 = initialise(nn.Conv2d(STACK, 16, 8, 4), relu)
        self.conv2 = initialise(nn.Conv2d(16, 32, 4, 2), relu)
        self.dense = initialise(nn.Linear(32 * 9 * 9, 256), relu)
        self.lstm = nn.LSTM(256, 256)
        for name, parameter in self.lstm.named_parameters():
            (nn.init.zeros_ if "bias" in name else nn.init.orthogonal_)(parameter)
        # Forget gates that start open: at 0 they would halve at every step what the cell holds.
        nn.init.ones_(self.lstm.bias_ih_l0[256:512])
        self.policy = initialise(nn.Linear(256, num_actions), 0.01)
        self.value = initialise(nn.Linear(256, 1), 1.0)
        self.to(memory_format=torch.channels_last)  # convolutions are a quarter faster

    def initial_state(self) -> tuple[Tensor, Tensor]:
        """Return the LSTM's h and c at the start of a game, both [1, 256]."""
        return torch.zeros(1, 256), torch.zeros(1, 256)

    def forward(
        self, observations: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Map T successive observations, uint8 [T, 4, 84, 84], and the state before them.

        Returns:
            log π [T, A], V [T], and the state after the last observation.
        """
        x = observations.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
        # Less the brightness of the ground: a grey one drives units to 0 for good.
        x -= x[..., ::8, ::8].flatten(1).median(1).values.view(-1, 1, 1, 1)
        x = self.conv1(x).relu_()
        x = self.conv2(x).relu_()
        features = self.dense(x.flatten(1)).relu_()
        if len(features) == 1:  # acting: nn.LSTM packs its weights at every call, 0.2 ms of 0.25
            state = torch.lstm_cell(features, state, *self.lstm.all_weights[0])
            features = state[0]
        else:
            features, state = self.lstm(features, state)
        return self.policy(features).log_softmax(1), self.value(features).squeeze(1), state


def as_batch(observations: list[np.ndarray] | np.ndarray) -> Tensor:
    """Make [N, 4, 84, 84], in memory [N, 84, 84, 4], of N observations, each [4, 84, 84].

    The network wants channels last, and OpenCV interleaves frames ten times as fast as torch.
    """
    return torch.from_numpy(np.stack([cv2.merge(x) for x in observations])).permute(0, 3, 1, 2)


# Worker ===========================================================================================


class Shared(NamedTuple):
    """What all processes share; every tensor lies in shared memory."""

    model: nn.Module  # θ
    optimizer: torch.optim.Optimizer  # of the model's parameters
    steps_taken: Tensor  # int64 [num_workers]; each worker writes its own slot, so no lock
    start: int  # agent steps before this start, above 0 after a resume
    stop: Tensor  # bool [1], set by the main process

    def steps(self) -> int:
        """Count the agent steps of the whole run."""
        return self.start + int(self.steps_taken.sum())


def select_action(pi: Tensor, noise: Tensor) -> int:
    """Draw an action from π [1, A].

        a = argmax_i π_i / e_i,   e ~ Exp(1): the first of A arrivals at rates π

    `torch.multinomial` does the same in three times the time.

    Args:
        pi: [1, A].
        noise: [A], e.
    """
    return int((pi / noise).argmax())


@torch.no_grad()
def collect_segment(
    env: gym.Env,
    model: nn.Module,
    observation: np.ndarray,
    state: tuple[Tensor, Tensor],
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Segment, tuple[Tensor, Tensor], dict | None]:
    """Act for at most `num_steps` steps, no further than the end of the life or game.

    Returns:
        The segment; the LSTM's state after its last step; and the finished game's unclipped return
        "r" and length "l" if it is over.
    """
    observations, actions, rewards, first_state = [observation], [], [], state
    noise = torch.empty(num_steps, int(env.action_space.n)).exponential_(generator=generator)
    terminated, episode = False, None
    while len(actions) < num_steps and not terminated and episode is None:
        log_pi, _, state = model(as_batch(observations[-1:]), state)
        actions.append(select_action(log_pi.exp(), noise[len(actions)]))
        observation, reward, terminated, _, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        terminated = terminated or info.get("life_lost", False)
        episode = info.get("episode")  # there when the game has terminated or was truncated
    rewards = torch.tensor(rewards, dtype=torch.float32)
    stacks = as_batch(observations)
    segment = Segment(stacks, torch.tensor(actions), rewards, bool(terminated), first_state)
    return segment, state, episode


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy all parameters, in place. Buffers, as batch normalisation has them, are not shared."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


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


def learn(segment: Segment, model: nn.Module, shared: Shared, args: Namespace) -> dict[str, Tensor]:
    """Update the shared weights from one segment; return the statistics."""
    loss, statistics = a3c_loss(model, segment, args)
    if not loss.isfinite():
        terms = ", ".join(f"{name} {float(x)}" for name, x in statistics.items() if x.dim() == 0)
        raise FloatingPointError(f"the loss is not finite ({terms})")
    loss.backward()
    statistics["grad_norm"] = apply_gradients(
        model, shared.model, shared.optimizer, args.max_grad_norm
    )
    return statistics


def summarise(updates: list[dict[str, Tensor]]) -> dict[str, float]:
    """Average the updates' scalars, and pool their states for the critic's explained variance.

    explained_variance = 1 − Var(R − V) / Var(R)
    """
    returns, values = (
        torch.cat([update.pop(name) for update in updates]) for name in ("returns", "values")
    )
    means = {name: float(sum(update[name] for update in updates)) for name in updates[0]}
    means = {name: total / len(updates) for name, total in means.items()}
    unexplained = (returns - values).var(correction=0) / returns.var(correction=0).clamp_min(1e-8)
    return means | {"explained_variance": float(1 - unexplained), "value": float(values.mean())}


def worker(rank: int, args: Namespace, shared: Shared, connection: Connection) -> None:
    """Act, learn from what was just seen, and forget it (Algorithm S3).

    Ends at `total_timesteps`, when told to stop, or when the main process is gone.
    """
    seeds = np.random.SeedSequence([args.seed, rank, shared.start])
    env_seed, action_seed = (int(word) for word in seeds.generate_state(2))
    generator = torch.Generator().manual_seed(action_seed)
    env = make_env(args.env_id, env_seed, reward_clip=args.reward_clip)
    model = copy.deepcopy(shared.model)
    updates, next_report = [], STATISTICS_EVERY
    observation, _ = env.reset()
    state = model.initial_state()

    while (step := shared.steps()) < args.total_timesteps and not shared.stop and parent_lives():
        if args.anneal_lr:
            remaining = 1 - step / args.total_timesteps
            shared.optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
        copy_weights(model, shared.model)
        num_steps = min(args.num_steps, args.total_timesteps - step)
        segment, state, episode = collect_segment(
            env, model, observation, state, num_steps, generator
        )
        shared.steps_taken[rank] += len(segment.rewards)
        updates.append(learn(segment, model, shared, args))

        if episode is None:  # a lost life is no new game: the state goes on
            observation = segment.observations[-1].contiguous().numpy()
        else:
            report = float(episode["r"]), int(episode["l"])
            connection.send(("episode", shared.steps(), rank, *report))
            observation, _ = env.reset()
            state = model.initial_state()
        if shared.steps_taken[rank] >= next_report:
            connection.send(("statistics", shared.steps(), summarise(updates)))
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


class AtariGame(gym.Wrapper):
    """Report lost lives, press FIRE where a game waits for it, and show a game's last screen."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()
        self.fire = meanings.index("FIRE") if "FIRE" in meanings else None
        self.lives = 0

    def reset(self, **kwargs):
        """Start a game and, where there is such a button, press FIRE."""
        observation, info = self.env.reset(**kwargs)
        if self.fire is not None:
            observation, _, terminated, truncated, info = self.env.step(self.fire)
            if terminated or truncated:
                observation, info = self.env.reset()
        self.lives = info["lives"]
        return observation, info

    def step(self, action):
        """Take a step, and one more with FIRE if it cost a life but not the game.

        Returns what Gymnasium says; info["life_lost"] tells whether a life was lost.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        life_lost = info["lives"] < self.lives
        if life_lost and self.fire is not None and not (terminated or truncated):
            observation, more, terminated, truncated, info = self.env.step(self.fire)
            reward += more
        self.lives = info["lives"]
        if terminated or truncated:
            # AtariPreprocessing keeps an older screen when a game ends within the skipped frames.
            screen = self.unwrapped.ale.getScreenGrayscale()
            observation = cv2.resize(screen, (SCREEN, SCREEN), interpolation=cv2.INTER_AREA)
        return observation, reward, terminated, truncated, info | {"life_lost": life_lost}


def make_env(
    env_id: str, seed: int, reward_clip: bool = False, render_mode: str | None = None
) -> gym.Env:
    """Make an environment of stacked 84×84 frames, seeded.

    An Atari game is preprocessed; `frameskip` 1 leaves the skipping to the preprocessing, and grey
    screens save an RGB picture each of the four frames. An environment without an emulator must
    give uint8 [84, 84] frames itself.

    Raises:
        gym.error.Error, ImportError: there is no such environment.
        ValueError: its actions or observations are not what this script can use.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    gym.register_envs(ale_py)
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    options = {"disable_env_checker": True} | ({"render_mode": render_mode} if render_mode else {})
    is_atari = gym.spec(name).entry_point == "ale_py.env:AtariEnv"
    if is_atari:
        options |= {"frameskip": 1, "obs_type": "grayscale"}
    env = gym.make(name, **options)
    if not isinstance(env.action_space, gym.spaces.Discrete):
        kind = type(env.action_space).__name__
        raise ValueError(
            f"{kind} actions; this script needs discrete ones (*_continuous.py take Box)"
        )
    if env.action_space.start != 0:
        raise ValueError(f"actions from {env.action_space.start} on; this script counts from 0")
    if is_atari:
        env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=SCREEN)
    space = env.observation_space
    if space.shape != (SCREEN, SCREEN) or space.dtype != np.uint8:
        wanted = f"this script needs uint8 of shape ({SCREEN}, {SCREEN})"
        raise ValueError(f"{space.dtype} observations of shape {space.shape}; {wanted}")
    if not is_atari:  # one that draws on the same array at every step would change older frames
        env = gym.wrappers.TransformObservation(env, np.copy, space)
    env = gym.wrappers.RecordEpisodeStatistics(env)  # whole games, rewards as they are
    if is_atari:
        env = AtariGame(env)
    if reward_clip:
        env = gym.wrappers.TransformReward(env, np.sign)
    # A game's first frame stands in for those before it.
    env = gym.wrappers.FrameStackObservation(env, STACK, padding_type="reset")
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

    def __init__(self, run_dir: Path, args: Namespace, start: int, seconds: float):
        # Imported here, because workers import this file too: they need none of it.
        from torch.utils.tensorboard import SummaryWriter

        self.total_timesteps = args.total_timesteps
        self.began = time.monotonic() - seconds  # as if the run had never stopped
        self.last = time.monotonic(), start
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

    def statistics(self, step: int, means: dict[str, float]) -> None:
        """Record the means of a worker's latest updates."""
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
        print(
            f"{step:>11,} steps {step / self.total_timesteps:6.1%} | {speed:5.0f} steps/s | "
            f"{left} left | {games}",
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
    """Play whole games with a trained policy, rewards as they are; print and return the returns."""
    torch.set_num_threads(1)  # for batches of one, more threads only wait for each other
    checkpoint = load_checkpoint(args.evaluate)
    # The spawn key sets these streams apart from every worker's.
    seeds = np.random.SeedSequence(args.seed, spawn_key=(0,)).generate_state(2)
    generator = torch.Generator().manual_seed(int(seeds[1]))
    render_mode = "human" if args.render else "rgb_array" if args.capture_video else None
    env = open_env(args, int(seeds[0]), render_mode)
    model = ActorCritic(int(env.action_space.n))
    load_weights(model, checkpoint["model"], args.evaluate)
    noise = torch.ones(int(env.action_space.n))  # equal for all: the most probable action wins
    returns, frames = [], []
    for game in range(1, args.eval_episodes + 1):
        observation, _ = env.reset()
        state, episode, step = model.initial_state(), None, 0
        while episode is None:
            wanted = args.capture_video and game == 1 and len(frames) < GIF_FRAMES
            if wanted and step % GIF_EVERY == 0:
                frames.append(env.render())
            log_pi, _, state = model(as_batch([observation]), state)
            if not args.greedy:
                noise.exponential_(generator=generator)
            observation, _, _, _, info = env.step(select_action(log_pi.exp(), noise))
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
        write_gif(path, frames, GIF_EVERY * STEP_MILLISECONDS)
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


def make_shared(args: Namespace, num_actions: int, checkpoint: dict | None) -> Shared:
    """Make the network, optimizer and counters in shared memory, as at the checkpoint if any."""
    torch.manual_seed(args.seed)
    model = ActorCritic(num_actions).share_memory()
    kind = {"adam": SharedAdam, "rmsprop": SharedRMSprop}[args.optimizer]
    optimizer = kind(model.parameters(), args.learning_rate)
    if checkpoint:
        load_weights(model, checkpoint["model"], args.resume)
        load_optimizer_state(optimizer, checkpoint["optimizer"])
    steps_taken = torch.zeros(args.num_workers, dtype=torch.int64).share_memory_()
    stop = torch.zeros(1, dtype=torch.bool).share_memory_()
    start = checkpoint["steps"] if checkpoint else 0
    return Shared(model, optimizer, steps_taken, start, stop)


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
        "optimizer": shared.optimizer.state_dict(),
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
        num_actions = int(env.action_space.n)
    needed = "steps", "seconds", "optimizer"
    checkpoint = load_checkpoint(args.resume, *needed) if args.resume else None
    if checkpoint and checkpoint["steps"] >= args.total_timesteps:
        fail(f"{args.resume} has {checkpoint['steps']:,} steps: give a larger --total-timesteps")
    shared = make_shared(args, num_actions, checkpoint)
    run_dir = make_run_dir(args)
    seconds = checkpoint["seconds"] if checkpoint else 0.0
    workers: dict[Connection, multiprocessing.Process] = {}
    with stop_on_signals(shared.stop) as signals:
        log = RunLog(run_dir, args, shared.start, seconds)

        def save() -> None:
            save_checkpoint(run_dir / "checkpoint.pt", state_of_run(args, shared, log))
            log.writer.flush()

        try:
            save()  # whatever happens from here on, the run can go on
            print(
                f"{SCRIPT}: {args.env_id}, seed {args.seed}, {args.num_workers} workers, "
                f"steps {shared.start:,} to {args.total_timesteps:,}\n"
                f"{args.optimizer}, learning rate {args.learning_rate:g}, "
                f"entropy {args.ent_coef:g}, segments of {args.num_steps}\n"
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
