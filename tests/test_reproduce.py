"""results/reproduce.py runs a table's rows on Ray: what is lost goes on, what fails is said."""

import contextlib
import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = "--env-id toys:DelayedCueBox-v0 --num-steps 5 --log-interval 1000 --checkpoint-interval 0.5"
COLUMNS = ["name", "script", "flags", "seed", "commit", "remark"]


def write_table(folder: Path, *rows: tuple) -> Path:
    """Write a table of (name, further flags), and beside it the environments that it names."""
    shutil.copy(ROOT / "tests" / "toys.py", folder)
    table = folder / "sweep.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, flags in rows:
            writer.writerow([name, "a3c_continuous.py", f"{TINY} {flags}", 1, "0000000", "old"])
    return table


def read_table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def reproduce(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "results" / "reproduce.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def command_lines() -> dict[int, str]:
    """Return the command line of every process that runs; a zombie has none."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode()
    return found


def wait_for(condition, seconds: float = 30):
    """Poll until the condition holds; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


class Session:
    """reproduce.py in a process group of its own, as a terminal starts it, on two processors."""

    def __init__(self, table: Path, runs: Path, *arguments: str):
        """Start it; `runs` is where temporary files go, and so the runs' folders."""
        self.table, self.folder, self.runs = table, table.parent, runs
        self.ray = tempfile.mkdtemp(prefix="ray")  # sockets need a short path
        self.output = self.folder / f"output{len(list(self.folder.glob('output*')))}.txt"
        environment = os.environ | {"TMPDIR": str(runs), "RAY_TMPDIR": self.ray}
        del environment["PYTHONPATH"]  # the toys must travel
        two = sorted(os.sched_getaffinity(0))[:2]
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "results" / "reproduce.py", "--runs", table, *arguments],
                stdout=output,
                stderr=output,
                env=environment,
                cwd=table.parent,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, two),
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: not self.left())
        shutil.rmtree(self.ray)

    def until(self, condition) -> None:
        """Wait for something that must come before it ends."""
        wait_for(lambda: condition() or self.process.poll() is not None, 300)
        assert condition(), self.output.read_text()

    def said(self, pattern: str) -> re.Match | None:
        """Search in what it printed."""
        return re.search(pattern, self.output.read_text(), flags=re.MULTILINE)

    def training(self, name: str) -> int | None:
        """Return the id of the process that trains a run."""
        folder = rf"(--run-dir|--resume) {self.runs}\S*/{name}_"
        found = [pid for pid, line in command_lines().items() if re.search(folder, line)]
        return found[0] if found else None

    def steps(self, name: str) -> int:
        """Return the steps in a run's checkpoint."""
        found = list(self.runs.glob(f"*/{name}_*/checkpoint.pt"))
        return torch.load(found[0], weights_only=True)["steps"] if found else 0

    def left(self) -> list[str]:
        """Return the command lines of all processes that belong to it."""
        lines = command_lines().values()
        return [line for line in lines if str(self.runs) in line or self.ray in line]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Start two rows, and press Ctrl-C when the first is finished and the second has begun."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = [
        ("others/wide", "--num-workers 2 --total-timesteps 300"),
        ("lost", "--num-workers 2 --total-timesteps 10000"),
        ("failing", "--num-workers=1 --env-id toys:MeetingAndFailingBox-v0"),
        ("brief", "--num-workers 1 --env-id toys:MeetingBox-v0 --total-timesteps 300"),
    ]
    table = write_table(folder, *rows)
    (folder / "runs").mkdir()
    with Session(table, folder / "runs", "[ol]*") as session:
        session.until(lambda: session.said("wide_seed1: finished") and session.steps("lost"))
        os.killpg(session.process.pid, signal.SIGINT)  # as a terminal sends it, to all
        session.code = session.process.wait(60)
        wait_for(lambda: not session.left())
        session.kept = session.steps("lost")
        session.rows = read_table(table)
        yield session


@pytest.fixture(scope="module")
def finished(stopped):
    """Go on with the others: one loses first its Ray worker, then its own process."""
    with Session(stopped.table, stopped.runs, "[!o]*") as session:
        session.until(lambda: session.steps("lost") > stopped.kept)
        orphan = session.training("lost")
        os.kill(parent_of(orphan), signal.SIGKILL)
        wait_for(lambda: orphan not in command_lines(), 15)  # it prints nothing that would end it
        session.kept = session.steps("lost")
        session.until(lambda: session.steps("lost") > session.kept)
        os.kill(session.training("lost"), signal.SIGKILL)
        session.code = session.process.wait(300)
        wait_for(lambda: not session.left())
        session.rows = read_table(session.table)
        yield session


def test_a_run_has_a_processor_for_each_worker(stopped, finished):
    events = re.findall(r"(\w+)_seed1: (starts|finished)", stopped.output.read_text())
    assert events == [("wide", "starts"), ("wide", "finished"), ("lost", "starts")]
    # The other two, of one worker each, wait for each other: one after the other would not do.
    assert finished.said("brief_seed1: finished")
    assert finished.said("a3c_continuous.py: error: .*the joystick broke")


def test_ctrl_c_ends_all_and_keeps_what_is_finished(stopped):
    assert stopped.code == 130
    assert stopped.said("^stopped: .*goes on")
    assert [bool(row["steps"]) for row in stopped.rows] == [True, False, False, False]
    assert [row["remark"] for row in stopped.rows] == ["", "old", "old", "old"]
    assert (stopped.folder / "others" / "wide_seed1.csv").is_file()


def test_a_run_that_is_ended_saves_its_steps_first(tmp_path, monkeypatch):
    """Its only checkpoint until then is the one of its start."""
    monkeypatch.syspath_prepend(ROOT / "results")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    flags = "--num-workers 1 --log-interval 0.2 --checkpoint-interval 1000000 --run-dir"
    argv = [ROOT / "a3c_continuous.py", *TINY.split(), *flags.split(), tmp_path / "run"]
    started, ended = importlib.import_module("reproduce").started, KeyboardInterrupt
    with (
        open(tmp_path / "lock", "w") as lock,
        contextlib.suppress(ended),
        started(argv, lock) as process,
    ):
        for line in process.stdout:
            if found := re.match(r" *([1-9][\d,]*) steps", line):
                raise ended
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["steps"] >= int(found[1].replace(",", ""))


def test_a_lost_run_goes_on_from_its_checkpoint_and_is_finished(stopped, finished):
    said = re.findall(r"lost_seed1: goes on from .+ step ([\d,]+), on", finished.output.read_text())
    steps = [int(text.replace(",", "")) for text in said]
    assert steps == sorted(steps)
    assert len(steps) == 3  # after Ctrl-C, without its Ray worker, without its own process
    assert 0 < stopped.kept == steps[0] < finished.kept == steps[1] < steps[2]
    assert not finished.said("lost_seed1: starts")
    row = finished.rows[1]
    assert row["remark"] == "; ".join(f"gone on from step {text}" for text in said)
    assert int(row["steps"]) >= 4_000
    curve = read_table(finished.folder / "curves" / "lost_seed1.csv")
    games = [int(game["step"]) for game in curve]
    assert games[0] <= steps[0]
    assert games[-1] > 3_900


def test_a_failing_run_is_reported_and_the_others_go_on(finished):
    assert finished.code == 1
    assert finished.said("failing_seed1: failed:")
    assert finished.said("a3c_continuous.py: error: .*the joystick broke")
    assert finished.said("^1 failed, 2 finished$")
    assert [bool(row["steps"]) for row in finished.rows] == [True, True, False, True]
    assert finished.rows[2]["remark"] == "old"
    assert list(finished.runs.glob("*/failing_*/episodes.csv"))  # to look at
    assert not list(finished.runs.glob("*/lost_*/*"))


def test_weights_and_evaluations_are_kept(finished):
    weights = finished.folder / "weights" / "others" / "wide_seed1.pt"
    contents = torch.load(weights, weights_only=True)
    assert set(contents) == {"script", "args", "steps", "model", "observed"}
    assert not {"run_dir", "resume"} & set(contents["args"])
    script = [sys.executable, ROOT / "a3c_continuous.py", "--evaluate", weights]
    result = subprocess.run(
        [*script, *TINY.split()[:2], "--eval-episodes", "3"], capture_output=True, text=True
    )
    assert "\n3 games" in result.stdout, result.stderr
    rows = read_table(finished.folder / "evaluation.csv")
    names = ("brief", "lost", "others/wide")
    assert sorted((row["name"], row["actions"]) for row in rows) == [
        (name, actions) for name in names for actions in ("mean", "sampled")
    ]
    assert {row["episodes"] for row in rows} == {"100"}
    assert {row["env"] for row in rows} == {"toys:DelayedCueBox-v0", "toys:MeetingBox-v0"}
    assert all(-1 <= float(row["mean"]) <= 1 for row in rows)
    row = finished.rows[0]
    assert row["seconds"].isdigit()
    assert row["machine"].startswith("2 of ")
    assert row["torch"] == torch.__version__
    assert row["commit"] != "0000000"
    assert finished.rows[0]["flags"].endswith("--num-workers 2 --total-timesteps 300")


def test_a_dry_run_lists_the_commands_and_what_they_would_replace(tmp_path):
    table = write_table(tmp_path, ("one", "--num-workers 1"), ("two", "--num-workers 2"))
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "one_seed2.csv").touch()
    start = f"python a3c_continuous.py {TINY} --num-workers"
    result = reproduce("--runs", table, "--dry-run", "o*", "--seeds", "2-3")
    assert result.stdout.splitlines() == [
        f"{start} 1 --seed 2  # one_seed2, replaces curves/one_seed2.csv",
        f"{start} 1 --seed 3  # one_seed3",
    ]
    result = reproduce("--runs", table, "--dry-run")
    assert [line.partition("  # ")[2] for line in result.stdout.splitlines()] == [
        "one_seed1",
        "two_seed1",
    ]
    assert reproduce("--runs", table, "--dry-run", "two_seed1").stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (["a/b/c", "a3c_continuous.py", "--num-workers 1", "1"], "name 'a/b/c'"),
        (["..", "a3c_continuous.py", "--num-workers 1", "1"], "name '..'"),
        (["a", "sarsa.py", "--num-workers 1", "1"], "no script 'sarsa.py'"),
        (["a", "a3c_continuous.py", "--gamma 1", "1"], "--num-workers"),
        (["a", "a3c_continuous.py", "--num-workers 0", "1"], "--num-workers"),
        (["a", "a3c_continuous.py", "--num-workers 1 --seed 3", "1"], "leave --seed out"),
        (["a", "a3c_continuous.py", "--num-workers 1 '", "1"], "No closing quotation"),
        (["a", "a3c_continuous.py", "--num-workers 1", "one"], "seed 'one'"),
        (["a"], "no script ''"),
        (["first", "a3c_continuous.py", "--num-workers 1", "1"], "twice"),
    ],
)
def test_a_bad_row_is_one_clear_line(tmp_path, row, wanted):
    table = write_table(tmp_path, ("first", "--num-workers 1"))
    with open(table, "a", newline="") as file:
        csv.writer(file).writerow(row)
    result = reproduce("--runs", table)
    assert result.returncode == 2
    assert re.fullmatch(r"reproduce\.py: error: .*sweep\.csv, line 3: .+\n", result.stderr)
    assert wanted in result.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--seeds", "5-1"], "5-1"),
        (["--seeds", "x"], "x"),
        (["nothing*"], "no name"),
        (["--runs", "missing.csv"], "missing.csv"),
        (["--runs", ROOT / "results" / "evaluation.csv"], "lacks the columns"),
    ],
)
def test_a_bad_argument_is_one_clear_line(arguments, wanted):
    result = reproduce(*arguments)
    assert result.returncode == 2
    assert re.fullmatch(r"reproduce\.py: error: .+\n", result.stderr)
    assert wanted in result.stderr


def test_a_run_that_needs_more_processors_than_there_are_is_refused(tmp_path):
    result = reproduce("--runs", write_table(tmp_path, ("wide", "--num-workers 5000")))
    assert result.returncode == 2
    assert "wide_seed1 asks for 5000 processors, the largest node has" in result.stderr


def test_every_published_curve_has_a_row_whose_command_parses():
    rows = read_table(ROOT / "results" / "runs.csv")
    titles = {f"{row['name']}_seed{row['seed']}" for row in rows}
    assert len(titles) == len(rows)
    curves = {path.stem for path in (ROOT / "results" / "curves").glob("*.csv")}
    curves |= {f"ablation/{path.stem}" for path in (ROOT / "results" / "ablation").glob("*.csv")}
    assert curves == titles
    commands = reproduce("--dry-run").stdout.splitlines()
    assert len(commands) == len(rows)
    for command in commands:
        _, script, *flags = command.partition("  # ")[0].split()
        importlib.import_module(Path(script).stem).parse_args(flags)
