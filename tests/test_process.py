"""What a worker's process is like: memory that stays, one thread, and no harm to what it starts."""

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import ROOT, SCRIPTS, TINY, module, toy

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asked of glibc only")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc")
STOPPING = sum(1 << (signum - 1) for signum in (1, 2, 15))  # SIGHUP, SIGINT, SIGTERM as bits


@pytest.fixture(scope="module", params=SCRIPTS)
def inside(request, tmp_path_factory) -> dict:
    """What a real worker finds out about its process."""
    script, folder = module(request.param), tmp_path_factory.mktemp("inside")
    path = folder / "inspected.json"
    flags = f"--run-dir {folder / 'run'} --num-workers 1 --total-timesteps 150"
    argv = [*TINY[request.param].split(), *flags.split()]
    argv += ["--env-id", toy(request.param, "Inspector", "trouble")]
    script.train(script.parse_args([*argv, "--env-kwargs", json.dumps({"path": str(path)})]))
    return json.loads(path.read_text())


@GLIBC
def test_freed_memory_is_used_again_without_asking_the_system(inside):
    """Ten times 32 MB are 81,920 pages; the heap may still grow by a piece or two."""
    assert inside["faults"] < 8_000


GIVES_BACK = """
import trouble
trouble.page_faults(3)
print(trouble.page_faults(10))
"""


@GLIBC
def test_faults_are_counted_where_memory_is_given_back():
    """Or the test above would show nothing.

    With glibc's own settings something small above the freed pieces keeps them in one start of
    three; with the threshold fixed at its first value each piece is given back at once.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-c", GIVES_BACK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert int(done.stdout) > 16_000, done.stderr  # fewer than 81,920 where pages are huge


def test_a_worker_has_one_thread_and_no_denormal_numbers(inside):
    assert inside["threads"] == [1, 1]
    assert inside["denormal"] == 0


def test_a_worker_does_not_load_the_compiler_that_torchs_own_optimizers_load(inside):
    assert not inside["compiler"]


@LINUX
def test_what_an_environment_starts_hears_all_signals(inside):
    """A game's own server must end with Ctrl-C; a daemonic worker could not start one."""
    assert not inside["daemon"]
    assert inside["handlers"] == [True, True, True]
    assert inside["masks"]["SigBlk"] == 0
    assert inside["masks"]["SigIgn"] & STOPPING == 0


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("quota", "processors"),
    [("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 64)],
)
def test_a_containers_quota_counts_as_processors(name, quota, processors, monkeypatch):
    """Docker's --cpus leaves all processors visible, and eight workers would share one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: f"{quota}\n")
    assert module(name).usable_processors() == processors


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_control_groups_the_affinity_counts(name, monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    monkeypatch.setattr(Path, "read_text", missing)
    assert module(name).usable_processors() == 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_environments_draw_from_libraries_differs_between_workers_and_repeats(name, tmp_path):
    """NumPy's and torch's own generators would be copies of one in all workers."""
    script, starts, small = module(name), [], " ".join(TINY[name].split()[2:])
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        argv = f"{small} --num-workers 2 --total-timesteps 60 --run-dir {folder / 'run'}".split()
        argv += ["--env-id", toy(name, "Drawing", "trouble")]
        argv += ["--env-kwargs", json.dumps({"folder": str(folder)})]
        script.train(script.parse_args(argv))
        starts.append({path.read_text().split("\n")[0] for path in folder.glob("worker-*")})
    assert starts[0] == starts[1]

    (main,), played = folder.glob("main-*"), []
    for _ in range(2):
        main.unlink()
        argv = f"--evaluate {folder / 'run'} --env-id {toy(name, 'Drawing', 'trouble')} --seed 3"
        script.evaluate(script.parse_args(argv.split()))
        played.append(main.read_text())
    assert played[0] == played[1]
    made, _, again, *_ = played[0].split("\n")  # between them a step to try it out
    assert made == again
    draws = [x for line in [*starts[0], made] for x in line.split()]
    assert len(set(draws)) == len(draws) == 9


def test_a_thread_beside_the_main_one_can_train(tmp_path):
    """As in a notebook's server or a job of a larger program."""
    script, caught = module("a3c_continuous"), []
    argv = [*TINY["a3c_continuous"].split(), "--run-dir", str(tmp_path / "run")]
    args = script.parse_args([*argv, "--num-workers", "1", "--total-timesteps", "60"])

    def train() -> None:
        try:
            script.train(args)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert caught == []
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "how", [["-OO"], ["-m", "cProfile", "-o", "profile"]], ids=["without docstrings", "profiled"]
)
def test_python_itself_may_be_told_to_do_more_or_less(how, tmp_path):
    """Without docstrings there is no text for the help; a profiler is `__main__` in our place."""
    flags = "--run-dir run --num-workers 1 --total-timesteps 60"
    script = str(ROOT / "a3c_continuous.py")
    command = [sys.executable, *how, script, *TINY["a3c_continuous"].split(), *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished" in done.stdout
