"""The scripts under test, with flags for small runs, and runs as a terminal starts them."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

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
ATARI = [name for name in SCRIPTS if name.endswith("atari")]
CONTINUOUS = [name for name in SCRIPTS if name.endswith("continuous")]


def module(name: str):
    """Import a script."""
    return importlib.import_module(name)


def is_continuous(name: str) -> bool:
    """Tell whether a script takes continuous actions."""
    return name.endswith("continuous")


def toy(name: str, environment: str = "DelayedCue", family: str = "toys") -> str:
    """Return the id of a small environment in the form that a script takes."""
    return f"{family}:{environment}{'Box' if is_continuous(name) else ''}-v0"


def sizes(name: str) -> tuple[int, ...]:
    """Return what a script's networks are made of for the toys: actions, or both dimensions."""
    return (3, 2) if is_continuous(name) else (2,)


def tiny(name: str, run_dir: Path, flags: str = "") -> list[str]:
    """Return the arguments of a small run; later flags win."""
    return [*TINY[name].split(), "--run-dir", str(run_dir), *flags.split()]


def settings(name: str, flags: str = "") -> Namespace:
    """Return the settings of one worker's small run; later flags win."""
    return module(name).parse_args(f"{TINY[name]} --num-workers 1 {flags}".split())


def make_shared(name: str, args: Namespace, checkpoint: dict | None = None):
    """Make what a run's processes share, for the environment that its settings name."""
    with module(name).make_env(args.env_id, 0, env_kwargs=args.env_kwargs) as env:
        return module(name).Shared(args, env, checkpoint)


def weights_file(name: str, args: Namespace, shared) -> dict:
    """Return what evaluation needs of a checkpoint, and no more."""
    acting = {part: x for part, x in shared.state().items() if part in ("model", "observed")}
    return {"script": module(name).SCRIPT, "args": vars(args), **acting}


def untrained(name: str, env_id: str | None = None) -> dict:
    """Return what evaluation needs of a checkpoint, of an untrained network for the toys."""
    args = module(name).parse_args(["--env-id", env_id or toy(name)])
    return weights_file(name, args, make_shared(name, args))


def children(pid: int) -> list[int]:
    """List a process's children, as Linux knows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """List the processes that descend from one."""
    found = [pid]
    for parent in found:
        found += children(parent)
    return found[1:]


def command(pid: int) -> str:
    """Return a process's command line; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def forkservers_of(pid: int) -> list[int]:
    """List the processes whose copies a run's workers are: on Linux one, once it has started."""
    return [child for child in children(pid) if "multiprocessing.forkserver" in command(child)]


def workers_of(pid: int) -> list[int]:
    """List a run's worker processes: children of its fork server, with its command line."""
    return sorted(worker for server in forkservers_of(pid) for worker in children(server))


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
