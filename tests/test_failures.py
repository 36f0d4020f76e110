"""What happens to real programs: signals, kills, broken environments, numbers that are none."""

import os
import signal
import time
from multiprocessing.context import SpawnProcess

import pytest
import torch
from harness import (
    ROOT,
    SCRIPTS,
    Run,
    alive,
    is_continuous,
    module,
    tiny,
    toy,
    wait_for,
    workers_of,
)

LONG = "--total-timesteps 1000000 --num-workers 2 --log-interval 0.2"

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads Linux's processes")


@pytest.fixture
def start(tmp_path):
    """Start scripts, and leave no process behind, whatever happens."""
    runs, seen = [], []

    def start_one(name: str, flags: str) -> Run:
        runs.append(Run(name, tiny(name, tmp_path / "run", flags), tmp_path))
        return runs[-1]

    yield start_one
    for run in runs:
        seen += workers_of(run.pid)
        run.kill_group()
    assert not any(alive(pid) for pid in seen)


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


def test_a_second_signal_that_comes_later_ends_the_run_at_once(start, tmp_path):
    run = start("acer_atari", f"{LONG} --env-id {toy('acer_atari', 'Stuck')}")
    wait_for(lambda: list(tmp_path.glob("stuck-*")))
    os.kill(run.pid, signal.SIGINT)
    time.sleep(1.5)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == -signal.SIGINT


def test_a_signal_while_the_workers_still_start_is_obeyed(start, tmp_path):
    run = start("acer_atari", LONG)
    wait_for(lambda: len(workers_of(run.pid)) == 2)
    time.sleep(0.3)  # they import now
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert run.errors.read_text() == ""
    assert steps_kept(tmp_path) >= 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_worker_ends_the_run_with_its_name_and_a_checkpoint(name, start, tmp_path):
    run = start(name, LONG)
    workers = learning(run)
    os.kill(workers[1], signal.SIGKILL)
    assert run.wait() == 1
    assert "worker 1 died: exit code -9" in run.errors.read_text()
    assert f"--resume {tmp_path / 'run'}" in run.errors.read_text()
    assert not any(alive(pid) for pid in workers)
    assert steps_kept(tmp_path) > 100


@pytest.mark.parametrize("name", SCRIPTS)
def test_workers_end_when_the_main_process_is_killed_and_the_checkpoint_is_good(
    name, start, tmp_path
):
    """With a checkpoint every tenth of a second the kill often falls into the writing of one.

    The environment is slow and its episodes endless: a worker has nothing to report for a long
    time, so that no broken pipe tells it.
    """
    run = start(name, f"{LONG} --checkpoint-interval 0.1 --env-id {toy(name, 'Endless')}")
    workers = wait_for(lambda: steps_printed(run) > 20 and workers_of(run.pid))
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=10)
    assert steps_kept(tmp_path) > 0


def test_a_worker_that_does_not_stop_is_killed(tmp_path):
    """An environment that blocks for ever ends with the run, which says so."""
    source = (ROOT / "acer_atari.py").read_text()
    hasty = source.replace("SECONDS_TO_STOP = 30", "SECONDS_TO_STOP = 1")
    assert hasty != source
    (tmp_path / "stuck.py").write_text(hasty)
    flags = f"--num-workers 2 --log-interval 0.2 --env-id {toy('acer_atari', 'Stuck')}"
    run = Run(str(tmp_path / "stuck"), tiny("acer_atari", tmp_path / "run", flags), tmp_path)
    try:
        wait_for(lambda: list(tmp_path.glob("stuck-*")))
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait() == 1
    finally:
        run.kill_group()
    assert "did not stop in 1 s" in run.errors.read_text()
    assert steps_kept(tmp_path) > 15  # 20, less a segment of 5 that was not finished


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("environment", "words"),
    [("Failing", "ValueError"), ("NotANumber", "FloatingPointError")],
)
def test_an_error_in_a_worker_ends_the_run_and_says_what_and_where(
    name, environment, words, start, tmp_path
):
    run = start(name, f"{LONG} --env-id {toy(name, environment)}")
    assert run.wait() == 1
    errors = run.errors.read_text()
    message = next(line for line in errors.splitlines() if line.startswith(f"{name}.py: error: "))
    assert "worker" in message
    assert f"{words} at step" in message
    reason = {"ValueError": "the joystick broke", "FloatingPointError": "not finite"}[words]
    assert reason in message
    assert "Traceback" in errors
    assert steps_kept(tmp_path) > 0  # and all weights are finite


@pytest.mark.parametrize("name", [name for name in SCRIPTS if is_continuous(name)])
def test_an_observation_that_is_not_finite_stays_out_of_the_statistics(name, tmp_path):
    script = module(name)
    flags = f"--env-id {toy(name, 'Blind')} --num-workers 2 --total-timesteps 1000"
    with pytest.raises(SystemExit, match="observation is not finite"):
        script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
    contents = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert contents["observed"].isfinite().all()
    assert contents["observed"][0] > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_worker_that_cannot_start_ends_the_run_which_can_go_on(name, tmp_path, monkeypatch):
    """The same checkpoint serves a run that is killed in its first minutes."""
    script, started = module(name), []
    start = SpawnProcess.start

    def refuse_the_second(process):
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        assert (tmp_path / "run" / "checkpoint.pt").exists(), "from the very beginning"
        started.append(process)
        start(process)

    with monkeypatch.context() as patch:
        patch.setattr(SpawnProcess, "start", refuse_the_second)
        flags = "--num-workers 2 --total-timesteps 1000000"
        with pytest.raises(SystemExit) as stop:  # it holds the pipes: a worker sees no broken one
            script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
    assert "worker 1 cannot start" in stop.value.code
    wait_for(lambda: not started[0].is_alive(), seconds=5)
    assert steps_kept(tmp_path) == 0
    argv = ["--resume", str(tmp_path / "run"), "--total-timesteps", "60"]
    script.train(script.parse_args(argv))
    assert steps_kept(tmp_path) >= 60


def test_a_signal_before_any_worker_starts_is_obeyed(tmp_path, monkeypatch):
    script = module("acer_atari")
    start_workers = script.start_workers

    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        start_workers(*arguments)

    monkeypatch.setattr(script, "start_workers", interrupt)
    with pytest.raises(SystemExit) as stop:
        script.train(script.parse_args(tiny("acer_atari", tmp_path / "run")))
    assert stop.value.code == 130
    assert steps_kept(tmp_path) == 0


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
