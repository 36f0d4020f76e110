"""The scripts under test, with flags for small runs, and runs as a terminal starts them."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TINY = {
    "acer_atari": "--env-id toys:DelayedCue-v0 --num-steps 5 --replay-size 600 --replay-start 50 "
    "--replay-ratio 1",
    "a3c_recurrent_atari": "--env-id toys:DelayedCue-v0 --num-steps 5",
    "acer_continuous": "--env-id toys:DelayedCueBox-v0 --num-steps 5 --replay-size 600 "
    "--replay-start 50 --replay-ratio 4",
    "a3c_continuous": "--env-id toys:DelayedCueBox-v0 --num-steps 5",
}
SCRIPTS = list(TINY)
ACER = [name for name in SCRIPTS if name.startswith("acer")]


def module(name: str):
    """Import a script."""
    return importlib.import_module(name)


def is_continuous(name: str) -> bool:
    """Tell whether a script takes continuous actions."""
    return name.endswith("continuous")


def toy(name: str, environment: str = "DelayedCue") -> str:
    """Return the id of a toy environment in the form that a script takes."""
    return f"toys:{environment}{'Box' if is_continuous(name) else ''}-v0"


def sizes(name: str) -> tuple[int, ...]:
    """Return what a script's networks are made of for the toys: actions, or both dimensions."""
    return (3, 2) if is_continuous(name) else (2,)


def tiny(name: str, run_dir: Path, flags: str = "") -> list[str]:
    """Return the arguments of a small run; later flags win."""
    return [*TINY[name].split(), "--run-dir", str(run_dir), *flags.split()]


def untrained(name: str, env_id: str | None = None) -> dict:
    """Return what evaluation needs of a checkpoint, of an untrained network for the toys."""
    script = module(name)
    args = script.parse_args(["--env-id", env_id or toy(name)])
    shared = script.make_shared(args, *sizes(name), None)
    contents = {"script": script.SCRIPT, "args": vars(args), "model": shared.model.state_dict()}
    if is_continuous(name):
        contents["observed"] = shared.observed.sums.sum(0)
    return contents


def assert_average_follows(average_model, before, after, decay: float) -> None:
    """Check θ_a = α θ + (1 − α) θ' after one update from θ to θ', where θ_a began as θ."""
    networks = (network.parameters() for network in (average_model, before, after))
    for average, old, new in zip(*networks, strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(average, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-8)
        assert old.grad is None
        assert new.grad is None


def descendants(pid: int) -> list[int]:
    """List the processes that descend from one, as Linux knows them."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def workers_of(pid: int) -> list[int]:
    """List a run's worker processes."""
    workers = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                workers.append(child)
    return sorted(workers)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 60):
    """Poll until the condition holds; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


class Run:
    """A script in a process group of its own, as a terminal starts it."""

    def __init__(self, name: str, argv: list[str], cwd: Path):
        self.output, self.errors = cwd / "output.txt", cwd / "errors.txt"
        with open(self.output, "w") as output, open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / f"{name}.py"), *argv],
                stdout=output,
                stderr=errors,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def wait(self, seconds: float = 90) -> int:
        """Return the exit code."""
        return self.process.wait(seconds)

    def kill_group(self) -> None:
        """End what may still run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
