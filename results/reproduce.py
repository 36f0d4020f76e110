"""Run the rows of runs.csv again, or those of a table of your own, as many at a time as fit.

    python results/reproduce.py --dry-run                                 # list every command
    python results/reproduce.py "acer_continuous_*" --seeds 1-5           # on this machine
    python results/reproduce.py --runs sweep.csv --address 10.0.0.1:6379  # on a Ray cluster

A row needs a name, a script, its flags with --num-workers among them, and a seed. The script is
looked for beside the table, then beside the README. All modules beside the table travel to where
the runs are, so an environment `module:Id` of your own belongs there, or is installed there.

A run asks Ray for a processor a worker. Its folder is where the node that it got keeps temporary
files. When its process or its node is lost it is tried again, and goes on from its checkpoint if
that is still there. So does the same command after Ctrl-C. After training, 100 games are played
with sampled actions and 100 with the most probable ones.

Beside the table, a finished run writes its games into curves/ (if its name is FOLDER/NAME into
FOLDER), what evaluation needs of its checkpoint into weights/, rows into evaluation.csv, and where
and how long it ran into the table. Its other files are deleted, TensorBoard's too.
"""

import argparse
import contextlib
import csv
import fcntl
import fnmatch
import getpass
import hashlib
import io
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ["name", "script", "flags", "seed"]
RUNS = [*GIVEN, "commit", "machine", "torch", "steps", "seconds", "remark"]
EVALUATION = ["name", "script", "env", "seed", "steps", "seconds", "actions"]
EVALUATION += ["episodes", "mean", "sd", "median", "min", "max"]
SUMMARY = r"(\d+) games\b.*: mean (\S+), sd (\S+), median (\S+), min (\S+), max (\S+)"
OURS = {"--seed", "--run-dir", "--resume", "--evaluate", "--render"}  # not for a row's flags
GAMES = 100  # in an evaluation
TRIES = 5  # of a run whose process or node is lost


class Run(NamedTuple):
    """What is to be run."""

    name: str
    script: Path
    flags: tuple[str, ...]
    seed: int

    @property
    def title(self) -> str:
        """Return the name of its files."""
        return f"{self.name}_seed{self.seed}"

    @property
    def workers(self) -> int:
        """Return how many processors it asks for."""
        return int(re.search(r"--num-workers[= ](\d+)", " ".join(self.flags))[1])

    @property
    def command(self) -> list[str]:
        """Return the command that trains, but for the folder."""
        return [self.script.name, *self.flags, "--seed", str(self.seed)]

    @property
    def environment(self) -> list[str]:
        """Return the flag that names its environment, if it has one."""
        ids = re.findall(r"--env-id[= ](\S+)", " ".join(self.flags))
        return ["--env-id", ids[-1]] if ids else []

    @property
    def curve(self) -> Path:
        """Return where its games are kept, beside the table."""
        return Path("" if "/" in self.name else "curves", f"{self.title}.csv")


# The table ========================================================================================


def fail(message: str):
    """End with one line on standard error and exit code 2."""
    print(f"reproduce.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def read_run(row: dict, folder: Path) -> Run:
    """Check a row; raise a ValueError that says what is wrong with it."""
    name, script, flags, seed = (row[column] or "" for column in GIVEN)
    if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        raise ValueError(f"the name {name!r} is not of letters, digits, '.', '-' and one '/'")
    found = [place / script for place in (folder, ROOT) if (place / script).is_file()]
    if not found or Path(script).name != script:
        raise ValueError(f"there is no script {script!r} in {folder} or {ROOT}")
    words = shlex.split(flags)
    if wrong := OURS & {word.partition("=")[0] for word in words}:
        raise ValueError(f"leave {', '.join(sorted(wrong))} out of the flags")
    if not re.search(r"--num-workers[= ][1-9]\d*( |$)", " ".join(words)):
        raise ValueError("the flags lack --num-workers N: a run asks for as many processors")
    if not re.fullmatch(r"0|[1-9][0-9]*", seed):
        raise ValueError(f"the seed {seed!r} is not a whole number from 0 up")
    return Run(name, found[0], tuple(words), int(seed))


def read_runs(table: Path) -> list[Run]:
    """Read and check the whole table; end with one line if anything is wrong."""
    runs: dict[str, Run] = {}
    try:
        with open(table, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in GIVEN if name not in (reader.fieldnames or [])]:
                fail(f"{table} lacks the columns {', '.join(lacking)}")
            for row in reader:
                try:
                    run = read_run(row, table.resolve().parent)
                    if run.title in runs:
                        raise ValueError(f"{run.name} with seed {run.seed} is there twice")
                except ValueError as error:
                    fail(f"{table}, line {reader.line_num}: {error}")
                runs[run.title] = run
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fail(f"{table} cannot be read: {error}")
    return list(runs.values())


def choose(runs: list[Run], pattern: str, seeds: range | None) -> list[Run]:
    """Take the runs whose name, with or without its seed, matches; give them the seeds, if any."""
    found = [run for run in runs if fnmatch.filter([run.name, run.title], pattern)]
    if seeds:
        found = [run._replace(seed=seed) for run in found for seed in seeds]
    first = {run.title: run for run in reversed(found)}  # of rows that differ in the seed alone
    return [*first.values()][::-1]


@contextlib.contextmanager
def locked(path: Path):
    """Open a table that several processes may want to change, one at a time."""
    while True:
        with open(path, "a+", newline="", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # else it was just replaced
                file.seek(0)
                yield file
                return


def replace(path: Path, contents: bytes) -> None:
    """Write a file beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(contents)
    os.replace(temporary, path)


def update(path: Path, columns: list[str], keys: list[str], new: list[dict]) -> None:
    """Change a table's rows that have the same keys as new ones, and add the others."""
    with locked(path) as file:
        reader = csv.DictReader(file)
        rows = {tuple(row.get(key) for key in keys): row for row in reader}
        for row in new:
            key = tuple(row[key] for key in keys)
            rows[key] = rows.get(key, {}) | row
        text = io.StringIO()
        header = list(dict.fromkeys([*(reader.fieldnames or []), *columns]))
        writer = csv.DictWriter(text, header, "", "ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        replace(path, text.getvalue().encode())


def commit_of(script: Path) -> str:
    """Return the commit that a script is of, and whether it was changed since; "" outside Git."""
    git = ["git", "-C", str(script.parent)]
    commands = ["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", script.name]
    try:
        said = [subprocess.run([*git, *words], capture_output=True) for words in commands]
    except FileNotFoundError:
        return ""
    return said[0].stdout.decode().strip() + (" with changes" if said[1].stdout else "")


def keep(run: Run, result: dict, table: Path) -> None:
    """Write what a finished run brought."""
    replace(table.parent / run.curve, result["curve"])
    replace(table.parent / "weights" / f"{run.title}.pt", result["weights"])
    row = result["row"] | {"name": run.name, "seed": str(run.seed)}
    games = [row | {"script": run.script.stem} | figures for figures in result["games"]]
    update(table.parent / "evaluation.csv", EVALUATION, [*EVALUATION[:4], "actions"], games)
    row |= {"script": run.script.name, "flags": shlex.join(run.flags)}
    update(table, RUNS, ["name", "seed"], [row])


# On the node that a run is given ==================================================================


@contextlib.contextmanager
def started(argv: list[str], lock: io.TextIOBase):
    """Start a script that ends with this process, however this one ends.

    Its guard, a shell, waits for the end of a pipe, which comes even after a kill -9, then lets the
    script save what it has, for a minute at most. The script holds the folder's lock, too, so that
    a second try waits until it is gone.
    """
    apart = {"start_new_session": True}  # or Ray ends the guard with a lost worker
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    command = [sys.executable, *argv]
    process = subprocess.Popen(
        command, pass_fds=[lock.fileno()], errors="replace", **output, **apart
    )
    group = f"-- -{process.pid}"
    left = f"i=0; while kill -s 0 {group} && [ $((i += 1)) -le 60 ]; do sleep 1; done"
    guard = ["sh", "-c", f"cat; kill -s TERM {group}; {left}; kill -s KILL {group}"]
    guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **apart)
    try:
        yield process
        process.wait()
        guard.kill()
    finally:
        guard.stdin.close()
        process.wait()  # first, since the guard sees a process until somebody has waited for it
        guard.wait()


def progress(line: str) -> list[str]:
    """Return the cells of the progress table that a script's line fills, if any."""
    fields = [" ".join(field.split()) for field in line.split("|")]
    if re.match(r"[\d,]+ steps", fields[0]):
        return fields[:4]
    game = re.match(r"game (\d+): (return \S+)", line)
    return [f"game {game[1]} of {GAMES}", game[2].rstrip(",")] if game else []


def processor() -> str:
    """Name this machine's processor."""
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def collect(run: Run, folder: Path, summaries: list[tuple]) -> dict:
    """Gather what is kept of a finished run."""
    import torch

    contents = torch.load(folder / "checkpoint.pt", weights_only=True)
    for name in ("run_dir", "resume"):  # of no use elsewhere
        contents["args"].pop(name, None)
    names = [name for name in contents if name in ("script", "args", "steps", "model", "observed")]
    weights = io.BytesIO()
    torch.save({name: contents[name] for name in names}, weights)
    row = {
        "env": contents["args"]["env_id"],
        "steps": contents["steps"],
        "seconds": round(contents["seconds"]),
        "machine": f"{run.workers} of {os.cpu_count()} processors, {processor()}",
        "torch": torch.__version__,
    }
    greedy = "mean" if "observed" in names else "greedy"  # in control that is the most probable
    games = [
        dict(zip(EVALUATION[6:], [actions, *summary], strict=True))
        for actions, summary in zip([greedy, "sampled"], summaries, strict=True)
    ]
    curve = (folder / "episodes.csv").read_bytes()
    return {"curve": curve, "weights": weights.getvalue(), "row": row, "games": games}


def perform(run: Run, key: str):
    """Train and evaluate a run; yield what happens, as a kind and what there is to say."""
    import ray  # here, because a dry run needs neither
    import torch

    folder = Path(tempfile.gettempdir(), f"reproduce-{getpass.getuser()}", key)
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The environment is named again: a checkpoint alone makes no script import a module.
        evaluation = [run.script.name, "--evaluate", str(folder), *run.environment]
        evaluation += ["--eval-episodes", str(GAMES)]
        stages = {"greedy games": [*evaluation, "--greedy"], "sampled games": evaluation}
        steps = None
        if (folder / "checkpoint.pt").is_file():
            checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
            steps = checkpoint["steps"]
            if steps < checkpoint["args"]["total_timesteps"]:
                resume = [run.script.name, "--resume", str(folder), *run.environment]
                stages = {"training": resume} | stages
        else:  # new, or lost before its first checkpoint
            shutil.rmtree(folder, ignore_errors=True)
            stages = {"training": [*run.command, "--run-dir", str(folder)]} | stages
        yield "begins", (steps, socket.gethostname(), ray.get_runtime_context().get_node_id())
        summaries = []
        for stage, argv in stages.items():
            yield "progress", [stage]
            last = deque(maxlen=15)
            with started(argv, lock) as process:
                for line in process.stdout:
                    last.append(line.rstrip())
                    if cells := progress(line):
                        yield "progress", [stage, *cells]
            summaries += re.findall(SUMMARY, "\n".join(last))
            if process.returncode < 0:
                yield "lost", [f"its process was ended by signal {-process.returncode}"]
                return
            if process.returncode:
                yield "failed", last
                return
        yield "finished", collect(run, folder, summaries)
        shutil.rmtree(folder)


# All runs =========================================================================================


class Board:
    """What all runs are doing: lines about what happened, and a table."""

    def __init__(self, runs: list[Run], out):
        self.out, self.terminal, self.lines, self.due = out, out.isatty(), 0, 0.0
        self.states = {run: ["waiting"] for run in runs}

    def note(self, run: Run, state: list[str], text: str = "") -> None:
        """Take note of a run's state; print a line that stays, if there is one."""
        self.states[run] = state
        if text:
            self.clear()
            print(time.strftime("%H:%M:%S"), f"{run.title}: {text}", file=self.out, flush=True)

    def clear(self) -> None:
        """Take the table off the terminal."""
        if self.lines:
            print(f"\x1b[{self.lines}A\x1b[J", end="", file=self.out)
            self.lines, self.due = 0, 0.0

    def draw(self, last: bool = False) -> None:
        """Print the table: every 2 seconds on a terminal, every minute elsewhere."""
        if time.monotonic() < self.due and not last:
            return
        self.clear()
        self.due = time.monotonic() + (2 if self.terminal else 60)
        live = self.terminal and not last
        width, height = shutil.get_terminal_size() if live else (1000, 1000)
        idle = {"waiting": 1, "finished": 2}  # below the others, should there be no room for all
        order = sorted(self.states.items(), key=lambda item: idle.get(item[1][0], 0))
        rows = [[run.title, *state] for run, state in order[: height - 2]]
        widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
        lines = ["  ".join(map(str.ljust, row, widths))[: width - 1].rstrip() for row in rows]
        counts = Counter(state[0] for state in self.states.values())
        lines.append(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
        print(*lines, sep="\n", file=self.out, flush=True)
        self.lines = len(lines) * live


def pack(scripts: set[Path], beside: Path, folder: Path) -> str:
    """Copy what must travel into a folder: the scripts, and all modules beside the table.

    Returns:
        Their digest: a checkpoint goes on only with the code that began it.
    """
    for path in beside.iterdir():
        if (path / "__init__.py").is_file():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.suffix == ".py":
            shutil.copy(path, folder)
    for script in scripts:
        shutil.copy(script, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    code = hashlib.sha256()
    for path in files:
        code.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return code.hexdigest()


def too_large(runs: list[Run], processors: int) -> list[str]:
    """Say which runs ask for more processors than the largest node has."""
    return [
        f"{run.title} asks for {run.workers} processors, the largest node has {processors}"
        for run in runs
        if run.workers > processors
    ]


def connect(address: str | None, runs: list[Run], code: str) -> None:
    """Join a cluster, or start Ray on this machine; end with one line if that fails."""
    import ray

    where = {"address": address}
    if not address:
        affinity = getattr(os, "sched_getaffinity", None)  # macOS cannot tell
        processors = len(affinity(0)) if affinity else os.cpu_count()
        if complaints := too_large(runs, processors):
            fail(complaints[0])
        where = {"address": "local", "num_cpus": processors, "include_dashboard": False}
        where["object_store_memory"] = 2**28
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # or one lands in the home
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**where, **quiet, runtime_env={"working_dir": code})
    except (ConnectionError, RuntimeError, ValueError) as error:
        fail(f"Ray: {str(error).splitlines()[0]}")
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    for complaint in too_large(runs, int(max(nodes))):
        print(f"{complaint}: it waits for a larger one")


def run_all(runs: list[Run], digest: str, table: Path, board: Board, signals: list) -> None:
    """Run all until a signal comes; keep what is finished, and try again what is lost."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def start(run: Run):
        """Submit a run, where it was before if it was anywhere."""
        key = hashlib.sha256(f"{digest} {run.command}".encode()).hexdigest()[:12]
        options = {"num_cpus": run.workers, "max_retries": 0, "num_returns": "streaming"}
        if node := nodes.get(run):
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        return remote.options(**options).remote(run, f"{run.title.replace('/', '-')}-{key}")

    def react(run: Run, kind: str, what) -> None:
        """Take note of what a run says."""
        if kind == "begins":
            steps, host, nodes[run] = what
            text = "starts again from step 0" if lost[run] else "starts"
            if steps is not None:
                text = f"goes on from its checkpoint at step {steps:,}"
                resumed[run].append(f"gone on from step {steps:,}")
            board.note(run, ["at work"], f"{text}, on {host}")
        elif kind == "progress":
            board.note(run, what)
        elif kind == "finished":
            what["row"] |= {"commit": commits[run.script], "remark": "; ".join(resumed[run])}
            keep(run, what, table)
            board.note(run, [kind], f"finished: {run.curve}")
        elif kind == "lost" and lost[run] < TRIES - 1:
            lost[run] += 1
            board.note(run, ["waiting"], f"lost, and tried again: {what[0]}")
            tasks[start(run)] = run
        else:
            board.note(run, ["failed"], "\n    ".join(["failed:", *what]))

    remote = ray.remote(perform)
    commits = {run.script: commit_of(run.script) for run in runs}
    lost, nodes, resumed = Counter(), {}, defaultdict(list)
    tasks = {start(run): run for run in runs}
    while tasks and not signals:
        board.draw()
        for task in ray.wait(list(tasks), timeout=1)[0]:
            try:
                message = ray.get(next(task))
            except StopIteration:
                del tasks[task]
                continue
            except RayTaskError as error:
                message = "failed", [repr(error.cause)]
            except RayError as error:
                message = "lost", [str(error).partition(". ")[0]]
            react(tasks[task], *message)


def seed_range(text: str) -> range:
    """Read 3 or 1-5."""
    first, _, last = text.partition("-")
    if not re.fullmatch(r"\d+(-\d+)?", text) or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text} will not do: give a seed, or a range such as 1-5")
    return range(int(first), int(last or first) + 1)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = fail
    table = Path(__file__).with_name("runs.csv")
    add = parser.add_argument
    add("pattern", nargs="?", default="*", help="of names, such as '*pong*'; all if not given")
    add("--runs", type=Path, default=table, metavar="FILE", help="table of runs; runs.csv")
    add("--address", help="of a Ray cluster; if not given, Ray is started on this machine")
    add("--seeds", type=seed_range, help="run each of the names with these, such as 1-5")
    add("--dry-run", action="store_true", help="list the commands, and what they would replace")
    return parser.parse_args()


def main() -> None:
    """List the commands, or run them."""
    args = parse_args()
    table = args.runs.resolve()
    runs = choose(read_runs(args.runs), args.pattern, args.seeds)
    if not runs:
        fail(f"no name in {args.runs} matches {args.pattern!r}")
    if args.dry_run:
        for run in runs:
            replaced = f", replaces {run.curve}" if (table.parent / run.curve).exists() else ""
            print(f"python {shlex.join(run.command)}  # {run.title}{replaced}")
        return
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray

    board = Board(runs, sys.stdout)
    with tempfile.TemporaryDirectory() as code:
        digest = pack({run.script for run in runs}, table.parent, Path(code))
        connect(args.address, runs, code)
    signals: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):  # noted, so that no writing is cut in two
        signal.signal(signum, lambda signum, frame: signals.append(signum))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Ray's own words about what is lost
            run_all(runs, digest, table, board, signals)
    finally:
        ray.shutdown()
    board.draw(last=True)
    if signals:
        print("stopped: what is finished is kept; the same command goes on with the rest")
        sys.exit(128 + signals[0])
    sys.exit(["failed"] in board.states.values())


if __name__ == "__main__":
    main()
