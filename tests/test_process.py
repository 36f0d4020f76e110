"""What a worker asks of the system: memory that stays, long time slices. All scripts alike."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SCRIPTS, module, tiny, toy

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asked of Linux only")
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asked of glibc only")
RELEASE = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
ATTRIBUTES = {"x86_64": 315, "aarch64": 275}.get(platform.machine())  # of sched_getattr


def run(code: str, **variables) -> list[str]:
    """Run Python code in a new process; return the words it prints."""
    environment = os.environ | variables
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


PAGE_FAULTS = """
import resource, sys, acer_atari, torch
if "{call}":
    acer_atari.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**20)
before = faults()
for _ in range(50):
    torch.ones(2**20)
print(faults() - before)
"""


@GLIBC
def test_freed_memory_is_used_again_without_asking_the_system():
    """4 MB are 1,024 pages; glibc is told to give back what is freed, as it may do by itself."""
    gives_back = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    without, kept = (int(run(PAGE_FAULTS.format(call=c), **gives_back)[0]) for c in ("", "call"))
    assert without >= 50 * 1024 * 0.9
    assert kept < 100


SLICES = """
import ctypes, os, struct, acer_atari
nice = os.nice(5)
if {policy}:
    os.sched_setscheduler(0, {policy}, os.sched_param(0))
acer_atari.take_longer_slices()
attributes = ctypes.create_string_buffer(48)
ctypes.CDLL(None).syscall({number}, 0, attributes, 48, 0)
print(os.nice(0) - nice, os.sched_getscheduler(0), struct.unpack("IIQiIQQQ", attributes)[5])
"""


@LINUX
@pytest.mark.skipif(RELEASE < (6, 12) or not ATTRIBUTES, reason="the kernel sets no time slices")
def test_time_slices_are_longer_and_niceness_is_left_alone():
    assert run(SLICES.format(policy=0, number=ATTRIBUTES)) == ["0", "0", "100000000"]


@LINUX
@pytest.mark.skipif(not ATTRIBUTES, reason="a processor whose system calls are not known")
def test_a_scheduler_that_the_user_chose_is_left_alone():
    batch = os.SCHED_BATCH if sys.platform == "linux" else 0
    change, policy, time_slice = run(SLICES.format(policy=batch, number=ATTRIBUTES))
    assert (change, policy) == ("0", str(batch))
    assert time_slice != "100000000"


WORKER = """
import acer_atari, cv2, torch
def worker(rank, args, shared, connection):
    print(torch.get_num_threads(), cv2.getNumThreads(), float(torch.tensor([1e-38]).mul(1e-3)))
acer_atari.worker = worker
acer_atari.run_worker(0, acer_atari.parse_args([]), None, None)
"""


def test_a_worker_has_one_thread_and_no_denormal_numbers():
    assert run(WORKER, OMP_NUM_THREADS="2") == ["1", "1", "0.0"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_worker_does_not_load_the_compiler_that_torchs_own_optimizers_load(name, tmp_path):
    script = module(name)
    flags = f"--env-id {toy(name, 'Light')} --num-workers 1 --total-timesteps 150"
    script.train(script.parse_args(tiny(name, tmp_path / "run", flags)))
