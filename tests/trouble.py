"""Environments that look at their process, end it, or spoil the weights, as `trouble:Id`."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import torch
from toys import DelayedCue, InABox


def in_a_worker() -> bool:
    return multiprocessing.parent_process() is not None


def page_faults(rounds: int) -> int:
    """Count the pages that the system hands out while eight pieces of 4 MB come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        pieces = [torch.ones(2**20) for _ in range(8)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def handlers_of_a_copy() -> list[bool]:
    """Tell which signals have their default action in a process that this one forks."""
    receiver, sender = os.pipe()
    if not (pid := os.fork()):
        signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        defaults = [signal.getsignal(s) == signal.SIG_DFL for s in signals]
        os.write(sender, json.dumps(defaults).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(sender)
    with open(receiver) as file:
        return json.load(file)


def masks_of_a_program() -> dict[str, int]:
    """Return the signals that a program started from here does not hear, as bits."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    return {name: int(lines[name], 16) for name in ("SigBlk", "SigIgn")}


class Inspector(DelayedCue):
    """Write down what the worker's process is like, at its first step."""

    def __init__(self, path: str = "inspected.json", render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.path = Path(path)

    def step(self, action):
        if in_a_worker() and not self.path.exists():
            page_faults(3)
            found = {
                "threads": [torch.get_num_threads(), cv2.getNumThreads()],
                "denormal": float(torch.tensor([1e-38]).mul(1e-3)),
                "compiler": "torch._dynamo" in sys.modules,
                "faults": page_faults(10),
                "daemon": multiprocessing.current_process().daemon,
                "handlers": handlers_of_a_copy(),
                "masks": masks_of_a_program(),
            }
            self.path.write_text(json.dumps(found))
        return super().step(action)


class Drawing(DelayedCue):
    """Draw from the libraries' own generators at every reset and step, and write it down."""

    def __init__(self, folder: str = ".", render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.path = Path(folder, f"{'worker' if in_a_worker() else 'main'}-{os.getpid()}")

    def draw(self):
        with open(self.path, "a") as file:
            numpys = np.random.random()  # noqa: NPY002 (the one that all of a process share)
            print(random.random(), numpys, float(torch.rand(())), file=file)

    def reset(self, *, seed=None, options=None):
        self.draw()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.draw()
        return super().step(action)


class Closing(DelayedCue):
    """Leave a file when it is closed by a worker."""

    def close(self):
        if in_a_worker():
            Path(f"closed-{os.getpid()}").touch()


class Quitting(Closing):
    """End the process without an error after 50 steps, as a game's own quit button does."""

    steps = 0

    def step(self, action):
        Quitting.steps += 1
        if Quitting.steps > 50 and in_a_worker():
            sys.exit(0)
        return super().step(action)


class Breaking(Closing):
    """Raise an error after 50 steps."""

    steps = 0

    def step(self, action):
        Breaking.steps += 1
        if Breaking.steps > 50 and in_a_worker():
            raise ValueError("the joystick broke")
        return super().step(action)


class Slow(Closing):
    """Take a twentieth of a second a step, in games that do not end."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(1_000_000, render_mode)

    def step(self, action):
        if in_a_worker():
            Path(f"slow-{os.getpid()}").touch()
        time.sleep(0.05)
        return super().step(action)


class Small(DelayedCue):
    """Show what no script can make a picture of: numbers without a shape of height and width."""

    observation_space = gym.spaces.Box(0, 255, (10,), np.uint8)


for environment in (Inspector, Drawing, Closing, Quitting, Breaking, Slow, Small):
    name = environment.__name__
    gym.register(f"{name}-v0", environment)
    gym.register(f"{name}Box-v0", lambda cls=environment, **kwargs: InABox(cls(**kwargs)))
