"""Train for a long time, kill everything again and again, and look for what was lost; no test.

    python tests/benchmarks/soak.py --minutes 45 --kills 10

`acer_atari.py` trains on Pong with workers whose games run at changing speeds, and writes a
checkpoint every five seconds. At random moments the whole process group is ended with kill -9, and
the run goes on with --resume. Meanwhile a reader loads every checkpoint and notes the memory of
every process. In the end, after a SIGTERM,

- every checkpoint must have been whole, and no number of steps may have fallen within a session;
- each session must have recorded what its emulators finished, but for a last game of each worker
  that a kill caught on its way;
- episodes.csv must be what the sessions recorded up to the checkpoint from which the next went on,
  and TensorBoard's own reader must see the same games;
- in the longest session, no process may hold more than 3 % more memory in the last third than in
  the one before. (In the first, workers still meet segments of new lengths, for each of which
  oneDNN keeps prepared convolutions.)

It needs Linux, prints what it found, and exits with 1 if anything was wrong.
"""

import argparse
import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
GAME = '''
"""Pong at changing speeds, that writes down the return of each game that ends."""
import multiprocessing
import os
import random
import time

import gymnasium as gym


class Slow(gym.Wrapper):
    def reset(self, **kwargs):
        self.total, self.delay = 0.0, random.choice([0, 0, 0, 0.001, 0.01])
        return self.env.reset(**kwargs)

    def step(self, action):
        time.sleep(self.delay)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += reward
        if terminated or truncated:
            worker = multiprocessing.current_process().name.split()[-1]
            with open(os.environ["SOAK_GAMES"], "a") as file:
                file.write(f"{worker},{self.total:g}\\n")
        return observation, reward, terminated, truncated, info


slow = gym.envs.registration.WrapperSpec("Slow", "slow_pong:Slow", {})
gym.register(
    "SlowPong-v0",
    entry_point="ale_py.env:AtariEnv",
    kwargs={"game": "pong", "repeat_action_probability": 0.0, "full_action_space": False},
    additional_wrappers=(slow,),
)
'''


def games(path: Path) -> list[tuple[int, str, float]]:
    """Read the step, worker and return of each game in episodes.csv, whole rows alone."""
    with contextlib.suppress(FileNotFoundError), open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["length"]]
        return [(int(row["step"]), row["worker"], float(row["return"])) for row in rows]
    return []


def memory_of_group(group: int) -> dict[int, int]:
    """Return the memory of each process of a group, what is shared in equal parts, in KB."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                rollup = (folder / "smaps_rollup").read_text()
                found[int(folder.name)] = int(rollup.partition("\nPss:")[2].split()[0])
    return found


class Session:
    """One start of the run, until it is ended."""

    def __init__(self, number: int, folder: Path, workers: int):
        self.truth, self.run = folder / f"games-{number}.csv", folder / "run"
        first = ["--run-dir", str(self.run), "--num-workers", str(workers)]
        first += ["--checkpoint-interval", "5", "--replay-size", "4000", "--replay-start", "500"]
        flags = ["--resume", str(self.run)] if number else first
        self.output = open(folder / f"output-{number}.txt", "w")  # noqa: SIM115 (closed in end)
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "acer_atari.py", "--env-id", "slow_pong:SlowPong-v0", *flags],
            env=os.environ | {"PYTHONPATH": str(folder), "SOAK_GAMES": str(self.truth)},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.began = time.monotonic()
        self.seen, self.steps, self.checkpoints, self.wrong = None, [], 0, []
        self.memory: dict[int, list[tuple[float, int]]] = defaultdict(list)

    def watch(self, seconds: float) -> None:
        """Load each new checkpoint and note the memory, until the time is up."""
        end, next_look = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            if self.process.poll() is not None:
                self.wrong.append(f"it ended by itself with {self.process.returncode}")
                return
            self.read_checkpoint()
            if now >= next_look:
                for pid, size in memory_of_group(self.process.pid).items():
                    self.memory[pid].append((now - self.began, size))
                next_look = now + random.uniform(2, 5)  # not in step with the checkpoints
            time.sleep(0.05)

    def read_checkpoint(self) -> None:
        """Load the checkpoint if it is a new one, and check it."""
        path = self.run / "checkpoint.pt"
        with contextlib.suppress(FileNotFoundError):
            if (mark := path.stat().st_mtime_ns) == self.seen:
                return
            self.seen, self.checkpoints = mark, self.checkpoints + 1
            try:
                contents = torch.load(path, weights_only=True)
                if not all(x.isfinite().all() for x in contents["model"].values()):
                    raise ValueError("weights that are not finite")
                if self.steps and contents["steps"] < self.steps[-1]:
                    raise ValueError(f"{contents['steps']} steps after {self.steps[-1]}")
                self.steps.append(contents["steps"])
            except Exception as error:
                self.wrong.append(f"a bad checkpoint: {type(error).__name__}: {error}")

    def end(self, signum: int) -> None:
        """End all its processes."""
        if signum == signal.SIGKILL:
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)
        code = self.process.wait(60)
        if code != (-signum if signum == signal.SIGKILL else 128 + signum):
            self.wrong.append(f"exit code {code}")
        time.sleep(1)  # for the processes of the group that are not our children
        self.output.close()
        self.steps.append(torch.load(self.run / "checkpoint.pt", weights_only=True)["steps"])

    def recorded(self, start: int) -> list[tuple[int, str, float]]:
        """Return its games in episodes.csv after a step, and compare them with the emulators'."""
        mine = [game for game in games(self.run / "episodes.csv") if game[0] > start]
        truth = self.truth.read_text().splitlines() if self.truth.exists() else []
        for worker in {row.split(",")[0] for row in truth}:
            ours = [value for _, rank, value in mine if rank == worker]
            theirs = [float(row.split(",")[1]) for row in truth if row.split(",")[0] == worker]
            if ours != theirs[: len(ours)] or len(theirs) - len(ours) > 1:
                self.wrong.append(f"worker {worker} finished {theirs}, recorded are {ours}")
        return mine

    def growth(self) -> float:
        """Return by which share a process grew at most, from the second third to the last."""
        shares = [0.0]
        end = time.monotonic() - self.began
        for sizes in self.memory.values():
            middle = [size for seconds, size in sizes if end / 3 < seconds < 2 * end / 3]
            late = [size for seconds, size in sizes if seconds > 2 * end / 3]
            if middle and late:  # the least: a checkpoint in the making takes 60 MB for a moment
                shares.append(min(late) / min(middle) - 1)
        return max(shares)


def main() -> None:
    """Run the sessions and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--num-workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which it is killed")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    moments = sorted(rng.uniform(0, 60 * args.minutes) for _ in range(args.kills))
    lengths = [b - a for a, b in zip([0, *moments], [*moments, 60 * args.minutes], strict=True)]
    kept, start, wrong, checkpoints, growths = [], 0, [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "slow_pong.py").write_text(GAME)
        for number, seconds in enumerate(lengths):
            session = Session(number, folder, args.num_workers)
            # Before its first checkpoint there is nothing to go on with.
            while not (session.run / "checkpoint.pt").exists():
                session.watch(0.1)
            session.watch(seconds)
            session.end(signal.SIGTERM if number == args.kills else signal.SIGKILL)
            mine = session.recorded(start)
            start = session.steps[-1]
            kept += [game for game in mine if game[0] <= start]
            checkpoints += session.checkpoints
            growths.append(session.growth())
            wrong += [f"session {number}: {text}" for text in session.wrong]
            print(
                f"session {number}: {seconds:.0f} s, to step {start:,}, {session.checkpoints} "
                f"checkpoints, {len(mine)} games, memory {growths[-1]:+.1%}",
                flush=True,
            )
        if games(session.run / "episodes.csv") != kept:
            wrong.append("episodes.csv is not what the sessions recorded")
        events = EventAccumulator(str(session.run), size_guidance={"scalars": 0})
        events.Reload()
        shown = [(x.step, x.value) for x in events.Scalars("charts/episodic_return")]
        if shown != [(step, value) for step, _, value in kept]:
            wrong.append("TensorBoard shows other games than episodes.csv")
    growth = growths[lengths.index(max(lengths))]
    if growth > 0.03:
        wrong.append(f"a process grew by {growth:.1%}")
    print(
        f"{args.kills} kills, {checkpoints} checkpoints loaded, {len(kept)} games kept, "
        f"memory at most {growth:+.1%} within {max(lengths):.0f} s"
    )
    print("\n".join(wrong) or "nothing was lost")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
