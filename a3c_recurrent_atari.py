# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.11,<3.15"
# dependencies = ["torch==2.13.0", "gymnasium[classic-control,mujoco]==1.4.0", "mujoco==3.10.0",
#     "ale-py==0.12.1", "numpy==2.4.6", "opencv-python==5.0.0.93", "tensorboard==2.21.0"]
# ///
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
 7. Adam's β₂ is 0.99, not 0.999: v soon knows the gradients of rewards that follow a quiet time.
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

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

SCRIPT = Path(__file__).name
STACK = 4  # frames in an observation
SCREEN = 84  # pixels, height and width of a frame
STATISTICS_EVERY = 1_000  # a worker's own steps between two reports of its losses
RECENT_GAMES = 100  # in the progress line's means
SECONDS_TO_STOP = 30  # for workers that are told to, before they are killed
GIF_RATE, GIF_FRAMES = 10, 200  # pictures a second and in all, at most
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that stop a run, which then goes on
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # of the workers
EPISODE = "acer-a3c/episode"  # ours in an environment's info
LIFE_LOST = "acer-a3c/life_lost"
LEARNING_RATES = {"adam": 3e-4, "rmsprop": 7e-4}

# Settings =========================================================================================

COUNT, SHARE, ANY, POSITIVE = (1, 10**12), (0.0, 1.0), (0.0, 1e9), (1e-9, 1e9)  # from, to
TEXT, FLAG = ("",), (True, False)
ONE_CALL = {"resume", "resume_if_exists", "run_dir", "evaluate", "eval_episodes", "eval_max_steps"}
ONE_CALL |= {"greedy", "capture_video", "render"}  # these a run does not hand on

SETTINGS = {  # group: flag, default, what is allowed, help; symbols in brackets are the papers'
    "run": [
        ("--env-id", "PongNoFrameskip-v4", TEXT, "Gymnasium id, or module:Id for your own"),
        ("--env-kwargs", "{}", TEXT, "JSON of arguments for the environment"),
        ("--seed", 1, (0, 2**32 - 1), "seed of all that is drawn"),
        ("--total-timesteps", 10_000_000, COUNT, "agent steps over all workers"),
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
        ("--anneal-lr", False, FLAG, "lower it linearly to 0 over the run"),
        ("--max-grad-norm", 40.0, POSITIVE, "longer gradients are scaled to this"),
    ],
    "actor-critic": [
        ("--gamma", 0.99, SHARE, "discount per agent step [γ]"),
        ("--num-steps", 20, (1, 10**5), "agent steps in a segment, at most [t_max]"),
        ("--ent-coef", 0.01, ANY, "entropy bonus [β]"),
        ("--vf-coef", 0.5, ANY, "weight of the value's squared error"),
        ("--reward-clip", True, FLAG, "learn from the sign of the reward"),
    ],
}


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
        The loss, with its gradient, and what is worth logging, of the update or of each state [T].
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
        "entropy": entropy.detach(),
        "target": returns,
        "prediction": values.detach(),
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

    @property
    def weights(self) -> list[Tensor]:
        """List all parameters."""
        return list(self.parameters())

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
        # Less the brightness of the background: a grey one drives units to 0 for good.
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


class Shared:
    """What all processes share; every tensor lies in shared memory."""

    def __init__(self, args: Namespace, env: gym.Env, checkpoint: dict | None = None):
        torch.set_num_threads(1)  # on more, the orthogonal weights have other last bits
        torch.manual_seed(args.seed)
        self.model = ActorCritic(int(env.action_space.n)).share_memory()  # θ
        # With β₂ = 0.999 rewards after a quiet time make steps of up to 7 lr. Some in a row drove
        # the LSTM's gates into saturation: it then answers alike to every screen. Here, 2.4 lr.
        kinds = {"adam": partial(SharedAdam, betas=(0.9, 0.99)), "rmsprop": SharedRMSprop}
        self.optimizer = kinds[args.optimizer](self.model.weights, args.learning_rate)
        # Agent steps since this start; each worker writes its own slot, so no lock.
        self.steps_taken = torch.zeros(args.num_workers, dtype=torch.int64).share_memory_()
        self.stop = torch.zeros(1, dtype=torch.bool).share_memory_()  # set by the main process
        self.start = 0  # steps of the run before this start
        if args.resume:
            restore(self.state(), checkpoint, args.resume)
            self.start = checkpoint["steps"]

    def steps(self) -> int:
        """Count the agent steps of the whole run."""
        return self.start + int(self.steps_taken.sum())

    def state(self) -> dict:
        """Gather its part of a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


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
        self.env, self.model, self.generator, self.greedy = env, model, generator, greedy
        self.observation: np.ndarray | None = None  # of a game that goes on
        self.state = model.initial_state()  # the LSTM's h and c

    def act(self, num_steps: int, stop: Tensor) -> tuple[Segment, dict | None]:
        """Act for at most `num_steps` steps, no further than the end of the life or game.

        Returns:
            The segment, and the finished game's unclipped return "r" and length "l" if it is over.
        """
        if self.observation is None:
            self.observation, _ = self.env.reset()
            self.state = self.model.initial_state()
        observations, actions, rewards, first_state = [self.observation], [], [], self.state
        # The first of A arrivals at rates π is an action drawn from π, in a third of
        # torch.multinomial's time: a = argmax_i π_i / e_i,  e ~ Exp(1).
        arrivals = torch.ones(num_steps, int(self.env.action_space.n))
        if not self.greedy:
            arrivals.exponential_(generator=self.generator)
        for e in arrivals:
            with torch.inference_mode():
                log_pi, _, state = self.model(as_batch(observations[-1:]), self.state)
            self.state = state[0].clone(), state[1].clone()
            actions.append(int((log_pi.exp() / e).argmax()))
            observation, reward, terminated, _, info = self.env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            terminated = bool(terminated or info.get(LIFE_LOST, False))
            episode = info.get(EPISODE)  # there when the game has terminated or was truncated
            if terminated or episode or stop:
                break
        self.observation = None if episode else observation
        rewards = torch.tensor(rewards, dtype=torch.float32)
        stacks, actions = as_batch(observations), torch.tensor(actions)
        return Segment(stacks, actions, rewards, terminated, first_state), episode


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy all parameters, in place. Buffers, as batch normalisation has them, are not shared."""
    torch._foreach_copy_(target.weights, source.weights)


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
    """Act, learn from what was just seen, and forget it (Algorithm S3).

    Numbers are the algorithm's lines, `repeat` being the first. Ends at `total_timesteps`, or when
    told to stop.
    """
    seeds = np.random.SeedSequence([args.seed, rank, shared.start])
    env_seed, action_seed = (int(word) for word in seeds.generate_state(2))
    seed_libraries(env_seed)
    generator = torch.Generator().manual_seed(action_seed)
    model = copy.deepcopy(shared.model)
    updates, next_report = [], STATISTICS_EVERY
    options = {"reward_clip": args.reward_clip, "env_kwargs": args.env_kwargs}
    with make_env(args.env_id, env_seed % 2**31, **options) as env:
        actor = Actor(args, env, shared, model, generator)
        while (step := shared.steps()) < args.total_timesteps and not shared.stop:  # 1, 19
            if args.anneal_lr:
                remaining = 1 - step / args.total_timesteps
                shared.optimizer.param_groups[0]["lr"] = args.learning_rate * remaining
            copy_weights(model, shared.model)  # 3
            num_steps = min(args.num_steps, args.total_timesteps - step)
            segment, episode = actor.act(num_steps, shared.stop)  # 4 to 11
            shared.steps_taken[rank] += len(segment.rewards)
            loss, statistics = a3c_loss(model, segment, args)  # 12 to 17
            norm = apply_gradients(loss, model, shared, args.max_grad_norm)  # 2, 18
            updates.append(statistics | norm)

            if episode:
                report = float(episode["r"]), int(episode["l"])
                connection.send(("episode", shared.steps(), rank, *report))
            if shared.steps_taken[rank] >= next_report:
                connection.send(("statistics", shared.steps(), rank, summarise(updates), {}))
                updates, next_report = [], next_report + STATISTICS_EVERY


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


class AtariGame(gym.Wrapper):
    """Report lost lives, press FIRE where a game waits for it, and show a game's last screen."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()
        self.fire = meanings.index("FIRE") if "FIRE" in meanings else None
        self.lives = 0
        self.metadata = env.metadata | {"render_fps": 15}  # agent steps of 4 frames, at 60 Hz

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

        Returns what Gymnasium says; info[LIFE_LOST] tells whether a life was lost.
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
        return observation, reward, terminated, truncated, info | {LIFE_LOST: life_lost}


def as_screens(env: gym.Env) -> gym.Env:
    """Make pictures of any size, grey or RGB, grey ones of 84×84."""
    space = env.observation_space
    shape = space.shape[:-1] if space.shape and space.shape[-1] in (1, 3) else space.shape
    if space.dtype != np.uint8 or len(shape or ()) != 2:
        raise ValueError(
            "the *_atari.py scripts see uint8 pictures of 0 to 255, [height, width] or "
            "[height, width, 3]. TransformObservation can take one out of a Dict, and multiply "
            "floats of 0 to 1 (DtypeObservation alone would make nearly all of them 0). "
            f"These are {space}"
        )
    rgb, top = space.shape == (*shape, 3), int(space.high.max())
    shown = gym.spaces.Box(0, 255, space.shape if rgb else shape, np.uint8)
    # One that draws on the same array at every step would change older frames: hence a copy.
    copied = np.array if top == 255 else lambda x: np.uint8(x * (255 / top))
    env = gym.wrappers.TransformObservation(env, lambda x: copied(x).reshape(shown.shape), shown)
    if rgb:
        env = gym.wrappers.GrayscaleObservation(env)
    if shape != (SCREEN, SCREEN):
        env = gym.wrappers.ResizeObservation(env, (SCREEN, SCREEN))
    return env


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
    reward_clip: bool = False,
    render_mode: str | None = None,
    env_kwargs: str = "{}",
) -> gym.Env:
    """Make an environment of stacked 84×84 frames, seeded.

    An Atari game is preprocessed; `frameskip` 1 leaves the skipping to the preprocessing, and grey
    screens save an RGB picture each of the four frames. An environment without an emulator gives
    uint8 pictures, grey or RGB, of any size.

    Raises:
        ValueError: its actions or observations are not what this script can use.
        Exception: what the environment's maker raises.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    gym.register_envs(ale_py)
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    options = {"disable_env_checker": True} | ({"render_mode": render_mode} if render_mode else {})
    options |= json.loads(env_kwargs)
    if name not in gym.registry:  # one without a version means the latest
        name = gym.make(name, **options).spec.id
    if is_atari := gym.spec(name).entry_point == "ale_py.env:AtariEnv":
        options = {"frameskip": 1, "obs_type": "grayscale"} | options
    env = gym.make(name, **options)
    actions = env.action_space
    if not isinstance(actions, gym.spaces.Discrete):
        kind = f"{type(actions).__name__} actions; this script needs Discrete ones"
        raise ValueError(f"{kind} (the *_continuous.py scripts take Box)")
    first = int(actions.start)
    env = gym.wrappers.TransformAction(
        env, lambda action: first + action, gym.spaces.Discrete(actions.n)
    )
    if is_atari:
        noops = 30 if env.unwrapped.get_action_meanings()[0] == "NOOP" else 0
        env = gym.wrappers.AtariPreprocessing(env, noops, frame_skip=4, screen_size=SCREEN)
    else:
        env = as_screens(env)
    env = gym.wrappers.TransformReward(env, as_number)
    env = gym.wrappers.RecordEpisodeStatistics(env, stats_key=EPISODE)  # whole games, raw rewards
    if is_atari:
        env = AtariGame(env)
    if reward_clip:
        env = gym.wrappers.TransformReward(env, np.sign)
    # A game's first frame stands in for those before it.
    env = gym.wrappers.FrameStackObservation(env, STACK, padding_type="reset")
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
