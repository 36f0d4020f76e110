"""What happens to real programs: signals, kills, broken environments, numbers that are none."""

import contextlib
import errno
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import (
    ROOT,
    SCRIPTS,
    Run,
    alive,
    descendants,
    forkservers_of,
    is_continuous,
    make_shared,
    module,
    settings,
    tiny,
    toy,
    untrained,
    wait_for,
    workers_of,
)

LONG = "--total-timesteps 1000000 --num-workers 2 --log-interval 0.2"

TWO = ["acer_atari", "a3c_continuous"]  # what supervises the workers has one text in all scripts

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads Linux's processes")


@pytest.fixture
def start(tmp_path):
    """Start scripts, and leave no process behind, whatever happens."""
    runs, seen = [], []

    def start_one(name: str, flags: str, folder: Path = tmp_path) -> Run:
        runs.append(Run(name, tiny(name, folder / "run", flags), folder))
        return runs[-1]

    yield start_one
    for run in runs:
        seen += descendants(run.pid)
        run.kill_group()
    wait_for(lambda: not any(alive(pid) for pid in seen), seconds=5)


def steps_printed(run: Run) -> int:
    """Return the step of the last progress line."""
    lines = [line for line in run.output.read_text().splitlines() if " steps/s " in line]
    return int(lines[-1].split()[0].replace(",", "")) if lines else 0


def learning(run: Run) -> list[int]:
    """Wait until both workers play and learn; return their processes."""
    wait_for(lambda: steps_printed(run) > 100)
    return workers_of(run.pid)


def steps_kept(tmp_path) -> int:
    contents = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in contents["model"].values())
    return contents["steps"]


@pytest.mark.parametrize(
    ("name", "signum"), list(zip(SCRIPTS, [signal.SIGINT, signal.SIGTERM] * 2, strict=True))
)
def test_a_signal_to_the_whole_group_stops_all_and_keeps_what_was_learned(
    name, signum, start, tmp_path
):
    """A terminal's Ctrl-C and a cluster's SIGTERM reach the workers, too."""
    run = start(name, LONG)
    workers = learning(run)
    assert len(workers) == 2
    os.killpg(run.pid, signum)
    assert run.wait() == 128 + signum
    assert not any(alive(pid) for pid in workers)
    last = run.output.read_text().splitlines()[-1]
    assert f"python {name}.py --resume {tmp_path / 'run'}" in last
    assert run.errors.read_text() == ""
    assert steps_kept(tmp_path) > 100
    assert list((tmp_path / "run").glob("*.tmp")) == []


def test_one_signal_that_comes_twice_stops_as_one_does(start, tmp_path):
    """The command `timeout` signals the process and then its group, within milliseconds."""
    run = start("acer_atari", LONG)
    learning(run)
    os.kill(run.pid, signal.SIGINT)
    time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert run.errors.read_text() == ""
    assert steps_kept(tmp_path) > 100


def test_ctrl_c_is_heard_by_a_run_that_was_started_with_it_blocked(start, tmp_path):
    """As what a Ray task starts is: a mask is inherited, unlike a handler."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        run = start("a3c_continuous", LONG)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    learning(run)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert run.errors.read_text() == ""
    assert steps_kept(tmp_path) > 100


def test_a_second_signal_that_comes_later_ends_the_run_at_once(start, tmp_path):
    run = start("acer_atari", f"{LONG} --env-id {toy('acer_atari', 'Stuck')}")
    wait_for(lambda: list(tmp_path.glob("stuck-*")))
    os.kill(run.pid, signal.SIGINT)
    time.sleep(1.5)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT


MOMENTS = {  # of a run's start, and who hears the signal then
    "nothing is there": (lambda run: True, os.kill),
    "the fork server starts": (lambda run: forkservers_of(run.pid), os.killpg),
    "all are there": (lambda run: len(workers_of(run.pid)) == 8, os.killpg),
    "all play": (lambda run: steps_printed(run) > 0, os.kill),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_while_eight_workers_start_is_obeyed(moment, start, tmp_path):
    """However far they are: no traceback, no process that stays, and a run that can go on."""
    run = start("acer_continuous", LONG.replace("workers 2", "workers 8"))
    wait_for(lambda: "writing to" in run.output.read_text())
    reached, send = MOMENTS[moment]
    wait_for(lambda: reached(run))
    seen = descendants(run.pid)
    send(run.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert run.errors.read_text() == ""
    assert "go on with" in run.output.read_text()
    assert steps_kept(tmp_path) >= 0
    wait_for(lambda: not any(alive(pid) for pid in seen), seconds=5)


def test_a_closed_terminal_stops_a_run_as_a_cluster_does(start, tmp_path):
    """And under `nohup` it does not: a signal that is ignored stays so."""
    (tmp_path / "nohup").mkdir()
    run, background = start("a3c_continuous", LONG), None
    hear = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` starts what it is given
    try:
        background = start("a3c_continuous", LONG, tmp_path / "nohup")
    finally:
        signal.signal(signal.SIGHUP, hear)
    for one in (run, background):
        workers = learning(one)
        os.killpg(one.pid, signal.SIGHUP)
    assert run.wait() == 128 + signal.SIGHUP
    assert run.errors.read_text() == ""
    assert f"--resume {tmp_path / 'run'}" in run.output.read_text().splitlines()[-1]
    assert steps_kept(tmp_path) > 100
    before = steps_printed(background)
    wait_for(lambda: steps_printed(background) > before)
    assert all(alive(pid) for pid in workers)
    os.kill(background.pid, signal.SIGTERM)
    assert background.wait() == 128 + signal.SIGTERM


@pytest.fixture
def ending(tmp_path, monkeypatch, capsys):
    """Run a script here, in a folder of its own; return why it ended and what it said of errors."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, flags: str) -> tuple[int | str | None, str]:
        code = None
        try:
            module(name).main(tiny(name, tmp_path / "run", f"{LONG} {flags}"))
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_worker_that_quits_ends_the_run(name, ending, tmp_path):
    """Exit code 0 is no success before the budget is met: the game has a button for it."""
    code, errors = ending(name, f"--env-id {toy(name, 'Quitting', 'trouble')}")
    assert re.fullmatch(rf"{name}\.py: error: worker \d died: exit code 0; .+", code)
    assert errors == ""
    assert steps_kept(tmp_path) > 0
    assert len(list(tmp_path.glob("closed-*"))) == 2


@pytest.mark.parametrize(
    ("environment", "how"),
    [("Closing", "budget"), ("Slow", "signal"), ("Breaking", "error")],
)
def test_every_environment_is_closed(environment, how, ending, tmp_path):
    """It may hold a window, a server, a file; a stop does not wait for the segment's end."""
    name, budget = "a3c_continuous", 100 if how == "budget" else 1_000_000
    flags = f"--num-steps 1000 --total-timesteps {budget}"
    began = []

    def stop_later() -> None:
        wait_for(lambda: list(tmp_path.glob("slow-*")))
        began.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    if how == "signal":
        threading.Thread(target=stop_later).start()
    code, _ = ending(name, f"{flags} --env-id {toy(name, environment, 'trouble')}")
    if how == "error":
        assert "the joystick broke" in code
    else:
        assert code == {"budget": None, "signal": 128 + signal.SIGTERM}[how]
    assert all(time.monotonic() - start < 10 for start in began), "a segment takes 50 seconds"
    assert len(list(tmp_path.glob("closed-*"))) == 2


@pytest.mark.parametrize("name", TWO)
def test_a_killed_worker_ends_the_run_with_its_name_and_a_checkpoint(name, start, tmp_path):
    run = start(name, LONG)
    workers = learning(run)
    os.kill(workers[1], signal.SIGKILL)
    assert run.wait() == 1
    assert "worker 1 died: exit code -9" in run.errors.read_text()
    assert f"--resume {tmp_path / 'run'}" in run.errors.read_text()
    assert not any(alive(pid) for pid in workers)
    assert steps_kept(tmp_path) > 100


@pytest.mark.parametrize("name", TWO)
def test_workers_end_when_the_main_process_is_killed_and_the_checkpoint_is_good(
    name, start, tmp_path
):
    """With a checkpoint every tenth of a second the kill often falls into the writing of one.

    The environment is slow and its episodes endless: a worker has nothing to report for a long
    time, so that no broken pipe tells it.
    """
    run = start(name, f"{LONG} --checkpoint-interval 0.1 --env-id {toy(name, 'Endless')}")
    wait_for(lambda: steps_printed(run) > 20 and steps_kept(tmp_path) > 0)
    workers = workers_of(run.pid)
    assert workers
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=10)
    assert steps_kept(tmp_path) > 0


@pytest.fixture
def hasty(tmp_path):
    """Start a copy of a script that waits a second, instead of thirty, for workers to stop."""
    runs = []

    def run(name: str, flags: str) -> Run:
        source = (ROOT / f"{name}.py").read_text()
        copy = source.replace("SECONDS_TO_STOP = 30", "SECONDS_TO_STOP = 1")
        assert copy != source
        (tmp_path / "hasty.py").write_text(copy)
        flags = f"--num-workers 2 --log-interval 0.2 {flags}"
        runs.append(Run(str(tmp_path / "hasty"), tiny(name, tmp_path / "run", flags), tmp_path))
        return runs[-1]

    yield run
    for started in runs:
        started.kill_group()


def test_a_worker_that_does_not_stop_is_killed(hasty, tmp_path):
    """An environment that blocks for ever ends with the run, as asked."""
    run = hasty("acer_atari", f"--env-id {toy('acer_atari', 'Stuck')}")
    wait_for(lambda: list(tmp_path.glob("stuck-*")))
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT
    assert steps_kept(tmp_path) > 15  # 20, less a segment of 5 that was not finished


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_worker_that_blocks_does_not_keep_a_run_whose_budget_is_met(name, hasty, tmp_path):
    run = hasty(name, f"--total-timesteps 400 --env-id {toy(name, 'OneStuck')}")
    assert run.wait() == 1
    assert "worker 0 was killed: no stop within" in run.errors.read_text()
    assert 400 <= steps_kept(tmp_path) < 420


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("environment", "words"),
    [("Failing", "ValueError"), ("NotANumber", "FloatingPointError")],
)
def test_an_error_in_a_worker_ends_the_run_and_says_what_and_where(
    name, environment, words, ending, tmp_path
):
    message, errors = ending(name, f"--env-id {toy(name, environment)}")
    assert re.match(rf"{name}\.py: error: worker \d died: ", message)
    assert "\n" not in message
    assert f"{words} at step" in message
    reason = {"ValueError": "the joystick broke", "FloatingPointError": "not finite"}[words]
    assert reason in message
    if words == "ValueError":
        assert errors.startswith("Traceback")
        assert "in step" in errors
    else:
        assert errors == "", "the line says it all"
    assert steps_kept(tmp_path) > 0  # and all weights are finite


@pytest.mark.parametrize("name", [name for name in SCRIPTS if is_continuous(name)])
def test_an_observation_that_is_not_finite_stays_out_of_the_statistics(name, tmp_path):
    script = module(name)
    flags = f"--env-id {toy(name, 'Blind')} --num-workers 2 --total-timesteps 1000"
    with pytest.raises(SystemExit, match="observation is not finite"):
        script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
    contents = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    count, *moments = contents["observed"]["total"]
    assert (count > 0).all()
    assert all(moment.isfinite().all() for moment in moments)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_worker_that_cannot_start_ends_the_run_which_can_go_on(name, tmp_path, monkeypatch):
    """The same checkpoint serves a run that is killed in its first minutes."""
    script, started = module(name), []
    kind = get_context("forkserver" if sys.platform == "linux" else "spawn").Process
    start = kind.start

    def refuse_the_second(process):
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        assert (tmp_path / "run" / "checkpoint.pt").exists(), "from the very beginning"
        started.append(process)
        start(process)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "start", refuse_the_second)
        flags = "--num-workers 2 --total-timesteps 1000000"
        with pytest.raises(SystemExit) as stop:  # it holds the pipes: a worker sees no broken one
            script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
    assert "worker 1 cannot start" in stop.value.code
    wait_for(lambda: not started[0].is_alive(), seconds=5)
    assert steps_kept(tmp_path) == 0
    argv = ["--resume", str(tmp_path / "run"), "--total-timesteps", "60"]
    script.train(script.parse_args([*argv, "--env-id", toy(name)]))
    assert steps_kept(tmp_path) >= 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_too_few_open_files_are_said_before_anything_starts(name, tmp_path):
    argv = [sys.executable, str(ROOT / f"{name}.py"), *tiny(name, tmp_path / "run")]
    command = f"ulimit -n 180; exec {shlex.join(argv)} --num-workers"
    done = subprocess.run(["bash", "-c", f"{command} 24"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"{name}\.py: error: 24 workers open \d+ files: .*ulimit -n.*\n", done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_so_many_open_files_are_enough(tmp_path):
    argv = tiny("acer_atari", tmp_path / "run", "--total-timesteps 50")
    command = shlex.join([sys.executable, str(ROOT / "acer_atari.py"), *argv, "--num-workers", "8"])
    command = f"ulimit -n 132; exec {command}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_before_any_worker_starts_is_obeyed(tmp_path, monkeypatch):
    script = module("acer_atari")
    start_workers = script.start_workers

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        start_workers(*arguments)

    monkeypatch.setattr(script, "start_workers", interrupt)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # as in a Ray task
    try:
        with pytest.raises(SystemExit) as stop:
            script.train(script.parse_args(tiny("acer_atari", tmp_path / "run")))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGINT}  # as it was
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert stop.value.code == 130
    assert steps_kept(tmp_path) == 0


class Disk:
    """A disk that is full for some of a run's checkpoints; those of step 0 are not counted.

    Before the checkpoint `end` a SIGTERM comes.
    """

    def __init__(self, script, monkeypatch, full: set[int], end: int = 10**9):
        self.count, self.stops = 0, []
        replacing, save_run = script.replacing, script.save_run

        def save(args, shared, log):
            self.count += shared.steps() > 0
            self.stops += [bool(shared.stop)] * (self.count in full)
            if self.count == end:
                signal.raise_signal(signal.SIGTERM)
            save_run(args, shared, log)

        @contextlib.contextmanager
        def replace(path):
            with replacing(path) as file:
                yield file
                file.flush()
                if path.name == "checkpoint.pt" and self.count in full:
                    file.truncate(100)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(script, "save_run", save)
        monkeypatch.setattr(script, "replacing", replace)


OFTEN = "--num-workers 1 --total-timesteps 100000000 --checkpoint-interval 0.2 --log-interval 0.2"


def test_a_disk_that_is_full_for_a_while_ends_nothing(tmp_path, monkeypatch, capsys):
    script = module("a3c_continuous")
    disk = Disk(script, monkeypatch, {1, 3}, end=5)
    with pytest.raises(SystemExit) as stop:
        script.main(tiny("a3c_continuous", tmp_path / "run", OFTEN))
    assert stop.value.code == 128 + signal.SIGTERM
    assert disk.stops == [False, False]
    line = r"a3c_continuous\.py: .*No space left on device; it goes on without\n"
    assert re.fullmatch(line + line, capsys.readouterr().err)
    assert list((tmp_path / "run").glob("*.tmp")) == []
    assert steps_kept(tmp_path) > 0


def test_a_disk_that_stays_full_ends_the_run_at_the_second_checkpoint(
    tmp_path, monkeypatch, capsys
):
    script = module("a3c_continuous")
    disk = Disk(script, monkeypatch, set(range(1, 999)), end=40)
    with pytest.raises(SystemExit) as stop:
        script.main(tiny("a3c_continuous", tmp_path / "run", OFTEN))
    assert re.match(r"a3c_continuous\.py: error: no checkpoint can be written: ", stop.value.code)
    assert "No space left on device" in stop.value.code
    assert f"--resume {tmp_path / 'run'}" in stop.value.code
    assert "\n" not in stop.value.code
    assert disk.stops[:2] == [False, False]
    assert all(disk.stops[2:]), "at the second it stops"
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("a3c_continuous.py: ") for line in lines)
    assert list((tmp_path / "run").glob("*.tmp")) == []
    assert steps_kept(tmp_path) == 0, "what was there before is whole"


def test_a_start_that_fails_leaves_a_folder_that_can_be_used_again(tmp_path, monkeypatch):
    script = module("a3c_continuous")
    argv = tiny("a3c_continuous", tmp_path / "run", "--num-workers 1 --total-timesteps 60")
    with monkeypatch.context() as patch:
        Disk(script, patch, {0})
        with pytest.raises(SystemExit, match="No space left on device"):
            script.main(argv)
    assert list((tmp_path / "run").glob("*.tmp")) == []
    script.main(argv)
    assert steps_kept(tmp_path) == 60


def test_a_real_limit_on_files_is_a_full_disk(start, tmp_path):
    """TensorBoard writes in a thread of its own, and torch in C++: they fail in their own ways."""
    run = start("a3c_continuous", f"{LONG} --checkpoint-interval 0.5")
    learning(run)
    unlimited = resource.prlimit(run.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    wait_for(lambda: "goes on without" in run.errors.read_text())
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, unlimited)
    before = steps_kept(tmp_path)
    wait_for(lambda: steps_kept(tmp_path) > before + 1000)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    assert run.wait() == 1
    errors = run.errors.read_text()
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("a3c_continuous.py: error: no checkpoint can be")
    assert list((tmp_path / "run").glob("*.tmp")) == []
    assert steps_kept(tmp_path) > before


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_run_that_diverged_keeps_its_good_checkpoint(name, number, tmp_path, monkeypatch):
    """Weights that are no numbers any more are of no use to go on, nor to play."""
    script, kept = module(name), []
    save_run, path = script.save_run, tmp_path / "run" / "checkpoint.pt"

    def spoil(args, shared, log):
        if kept:
            with torch.no_grad():
                list(shared.model.parameters())[-1].fill_(number)
        try:
            save_run(args, shared, log)
        finally:
            kept.append(path.read_bytes())

    monkeypatch.setattr(script, "save_run", spoil)
    with pytest.raises(SystemExit, match="finite"):
        script.main(tiny(name, tmp_path / "run", OFTEN))
    assert len(kept) > 1
    assert len(set(kept)) == 1
    assert path.read_bytes() == kept[0]
    assert steps_kept(tmp_path) == 0
    assert list((tmp_path / "run").glob("*.tmp")) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_checkpoint_is_good_whatever_the_workers_write_meanwhile(name, tmp_path, monkeypatch):
    """What is read twice, as x == x in isfinite or a checksum before its data, may differ."""
    script, args = module(name), settings(name, f"--run-dir {tmp_path}")
    shared, read, going = make_shared(name, args), [], [True]
    log = SimpleNamespace(seconds=lambda: 1.0, writer=SimpleNamespace(flush=lambda: None))
    isfinite = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda x: read.append(x) or isfinite(x))

    def learn() -> None:
        while going:
            torch._foreach_add_([weights.detach() for weights in shared.model.weights], 1e-3)

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        for _ in range(5):
            script.save_run(args, shared, log)
            script.load_checkpoint(str(tmp_path))
    finally:
        going.clear()
        thread.join()
    assert read
    assert not any(x.is_shared() for x in read)


def test_one_run_cannot_go_on_twice_at_once(start, tmp_path, monkeypatch):
    """Two would write over each other's checkpoint; a killed one's lock goes with it."""
    name, run_dir = "a3c_continuous", tmp_path / "run"
    run = start(name, f"{LONG} --checkpoint-interval 0.2")
    learning(run)
    again = ["--resume", str(run_dir), "--env-id", toy(name)]
    with monkeypatch.context() as patch:
        patch.delattr(module(name), "start_workers")
        for argv in (again, [*again, "--num-workers", "1"], tiny(name, run_dir)):
            with pytest.raises(SystemExit) as stop:
                module(name).main(argv)
            assert stop.value.code == f"{name}.py: error: another process trains in {run_dir}"
    assert json.loads((run_dir / "args.json").read_text())["num_workers"] == 2
    os.kill(run.pid, signal.SIGKILL)
    run.process.wait()
    steps = steps_kept(tmp_path)
    module(name).main([*again, "--total-timesteps", str(steps + 50)])
    assert steps_kept(tmp_path) >= steps + 50


def test_behind_head_there_is_one_line_and_no_traceback(tmp_path):
    argv = tiny("a3c_continuous", tmp_path / "run", OFTEN)
    command = shlex.join([sys.executable, str(ROOT / "a3c_continuous.py"), *argv])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=90
    )
    assert done.stdout.startswith("a3c_continuous.py: ")
    assert done.stdout.count("\n") == 1
    assert done.stderr == "a3c_continuous.py: error: nobody reads its output any more\n"
    assert steps_kept(tmp_path) >= 0


def test_an_evaluation_that_is_stopped_says_what_it_has_seen(tmp_path, monkeypatch, capsys):
    script, name = module("a3c_continuous"), "a3c_continuous"
    torch.save(untrained(name), tmp_path / "weights.pt")
    act, steps = script.Actor.act, []

    def play(actor, *arguments):
        steps.append(1)
        if len(steps) == 7 * 3 + 2:  # in the fourth game
            signal.raise_signal(signal.SIGINT)
        return act(actor, *arguments)

    monkeypatch.setattr(script.Actor, "act", play)
    argv = ["--evaluate", str(tmp_path / "weights.pt"), "--env-id", toy(name)]
    with pytest.raises(SystemExit) as stop:
        script.main([*argv, "--eval-episodes", "1000000"])
    assert stop.value.code == 130
    output, errors = capsys.readouterr()
    assert errors == ""
    assert [line.split(":")[0] for line in output.splitlines()[:-1]] == [
        "game 1",
        "game 2",
        "game 3",
    ]
    assert re.match(r"3 games, \d different: mean -?[01]\.\d\d, sd ", output.splitlines()[-1])


def test_a_closed_output_ends_the_run_and_keeps_what_was_learned(tmp_path, monkeypatch):
    """As behind `| head`."""
    script = module("acer_atari")

    def broken(log, step):
        if step:
            raise BrokenPipeError

    monkeypatch.setattr(script.RunLog, "progress", broken)
    flags = "--num-workers 1 --total-timesteps 1000000 --log-interval 0.2"
    with pytest.raises(BrokenPipeError):
        script.train(script.parse_args(tiny("acer_atari", tmp_path / "run", flags)))
    assert steps_kept(tmp_path) > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_more_workers_than_processors_and_a_budget_that_is_kept(name, tmp_path):
    """Each worker may pass the budget by less than a segment."""
    script = module(name)
    count = script.usable_processors() + 1
    flags = f"--num-workers {count} --total-timesteps 200"
    script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
    assert 200 <= steps_kept(tmp_path) < 200 + 5 * count
