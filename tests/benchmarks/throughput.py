"""Measure agent steps per second against what the processor could do; no test, decides nothing.

    python tests/benchmarks/throughput.py acer_atari --num-workers 2 --repetitions 5

Each repetition measures, with as many processes as workers and one thread each,

- the limit: the speed of a large square float32 matrix product, and the emulator's own time for an
  agent step, both while the other processes do the same;
- the script itself: agent steps per second after warm-up, with replay going on, and in which part
  of the work the workers spent their time.

A step's floating-point operations are counted by torch.utils.flop_counter on the script's own
worker, at the expected number of updates a segment. The limit is then

    steps/s of a worker = 1 / (operations per step / matrix speed + emulator time per step)

Close other programs first: both figures are of the machine as it is.
"""

import argparse
import importlib
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

MATRIX = 2048
PARTS = {  # part of the work: the script's functions in it, less what is timed inside them
    "acting": ["Actor.act"],
    "replay": ["pack", "unpack"],
    "forward": ["acer_loss", "a3c_loss"],
    "backward": ["torch.Tensor.backward"],
    "optimizer": ["apply_gradients", "update_average"],
    "weights": ["copy_weights"],
}
ENV_IDS = {"atari": "PongNoFrameskip-v4", "continuous": "HalfCheetah-v5"}


def find(script, name: str):
    """Return the owner of a function and its name there, or None if the script has none such."""
    owner = script
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    return (owner, last) if hasattr(owner, last) else None


class Clock:
    """Time spent in each part, nested parts taken out of the outer one."""

    def __init__(self):
        self.seconds = dict.fromkeys([*PARTS, "emulator"], 0.0)
        self.inner = [0.0]
        self.updates = self.segments = 0

    def wrap(self, part: str, function):
        """Return the function, timed as a part of the work."""

        def timed(*args, **kwargs):
            start = time.perf_counter()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self.inner.pop()
                self.inner[-1] += spent
                self.updates += part == "backward"
                self.segments += part == "acting"

        return timed


def run_worker(script_name, rank, args, shared, connection, measuring, results):
    """Run the script's worker with a clock in each part; report once `measuring` ends."""
    script, clock = importlib.import_module(script_name), Clock()
    for part, names in PARTS.items():
        for owner, name in filter(None, (find(script, name) for name in names)):
            setattr(owner, name, clock.wrap(part, getattr(owner, name)))
    make_env = script.make_env

    def make_timed_env(*args, **kwargs):
        env = make_env(*args, **kwargs)
        env.step, env.reset = clock.wrap("emulator", env.step), clock.wrap("emulator", env.reset)
        return env

    script.make_env = make_timed_env

    def report():
        measuring.wait()
        before, start = dict(clock.seconds), time.perf_counter()
        counts = clock.updates, clock.segments
        while measuring.is_set():
            time.sleep(0.05)
        wall = time.perf_counter() - start
        spent = {part: clock.seconds[part] - before[part] for part in before}
        spent["other"] = wall - sum(spent.values())
        shares = {part: seconds / wall for part, seconds in spent.items()}
        results.put((shares, clock.updates - counts[0], clock.segments - counts[1]))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    script.run_worker(rank, args, shared, connection)
    thread.join(5)  # for ever, if the main process was killed before it measured


def make_shared(script, args):
    """Make what the script's workers share."""
    with script.make_env(args.env_id, 0) as env:
        return script.Shared(args, env)


def measure_script(script, args, seconds: float):
    """Return agent steps per second, mean shares of time, and updates per segment."""
    context = multiprocessing.get_context("spawn")
    shared = make_shared(script, args)
    measuring, results = context.Event(), context.Queue()
    processes, receivers = [], []
    for rank in range(args.num_workers):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (script.__name__, rank, args, shared, sender, measuring, results)
        processes.append(context.Process(target=run_worker, args=arguments, daemon=True))
        processes[-1].start()
        receivers.append(receiver)
    warm = getattr(args, "replay_start", 0) + 500 * args.num_workers
    while shared.steps() < warm or shared.steps_taken.min() < 200:  # all have started
        time.sleep(0.1)
    start, first = time.perf_counter(), shared.steps()
    measuring.set()
    time.sleep(seconds)
    speed = (shared.steps() - first) / (time.perf_counter() - start)
    measuring.clear()
    reports = [results.get() for _ in processes]
    shared.stop.fill_(True)
    for process in processes:
        process.join()
    shares = {part: statistics.mean(r[0][part] for r in reports) for part in reports[0][0]}
    return speed, shares, sum(r[1] for r in reports) / sum(r[2] for r in reports)


def time_limit(script_name: str, env_id: str, barrier, results):
    """Report this process's matrix speed and emulator time while the others measure theirs."""
    script = importlib.import_module(script_name)
    torch.set_num_threads(1)
    script.cv2.setNumThreads(1)
    a = torch.randn(MATRIX, MATRIX)
    a @ a
    barrier.wait()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        a @ a
        products += 1
    speed = products * 2 * MATRIX**3 / (time.perf_counter() - start)
    env, rng = script.make_env(env_id, 0), np.random.default_rng(0)
    env.reset()
    space = env.action_space
    if hasattr(space, "n"):
        actions = rng.integers(space.n, size=10_000)
    else:
        actions = rng.uniform(-1, 1, size=(10_000, *space.shape)).astype(np.float32)
    barrier.wait()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
        if env.step(actions[steps % len(actions)])[4].get(script.EPISODE):
            env.reset()
        steps += 1
    results.put((speed, (time.perf_counter() - start) / steps))


def measure_limit(script_name: str, env_id: str, num_workers: int) -> tuple[float, float]:
    """Return floating-point operations per second and emulator seconds per step of a worker."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(num_workers), context.Queue()
    arguments = (script_name, env_id, barrier, results)
    processes = [context.Process(target=time_limit, args=arguments) for _ in range(num_workers)]
    for process in processes:
        process.start()
    speeds, seconds = zip(*[results.get() for _ in processes], strict=True)
    for process in processes:
        process.join()
    return statistics.mean(speeds), statistics.mean(seconds)


class Silent:
    """A connection that forgets what it is told."""

    def send(self, message):
        """Forget it."""


def count_operations(script, args) -> float:
    """Count the floating-point operations of an agent step: acting, and its share of updates.

    Counted while a worker runs for some segments; the number of updates, which is drawn, is then
    replaced by its expectation.
    """
    args = argparse.Namespace(**vars(args) | {"num_workers": 1, "total_timesteps": 400})
    args.replay_start = 1
    shared = make_shared(script, args)
    counts = {"acting": 0, "segments": 0, "updates": 0}
    act, apply_gradients = script.Actor.act, script.apply_gradients
    with FlopCounterMode(display=False) as counter:

        def count_acting(*arguments):
            before = counter.get_total_flops()
            result = act(*arguments)
            counts["acting"] += counter.get_total_flops() - before
            counts["segments"] += 1
            return result

        def count_updates(*arguments):
            counts["updates"] += 1
            return apply_gradients(*arguments)

        script.Actor.act, script.apply_gradients = count_acting, count_updates
        script.worker(0, args, shared, Silent())
        script.Actor.act, script.apply_gradients = act, apply_gradients
    an_update = (counter.get_total_flops() - counts["acting"]) / counts["updates"]
    when_new = 0 if script.__name__ == "acer_continuous" else 1
    updates = counts["segments"] * (when_new + getattr(args, "replay_ratio", 0))
    return (counts["acting"] + updates * an_update) / shared.steps()


def spread(values) -> str:
    """Format minimum, median, maximum."""
    return f"{min(values):8.3g} {statistics.median(values):8.3g} {max(values):8.3g}"


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", nargs="?", default="acer_atari")
    parser.add_argument("--env-id")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="measured, per repetition")
    options = parser.parse_args()
    script = importlib.import_module(options.script)
    env_id = options.env_id or ENV_IDS[options.script.rpartition("_")[2]]
    argv = ["--env-id", env_id, "--num-workers", str(options.num_workers)]
    if options.script.startswith("acer"):
        argv += ["--replay-size", "20000", "--replay-start", "1000"]
    args = script.parse_args(argv)
    folder = tempfile.TemporaryDirectory()  # for the replay that workers leave
    args.run_dir = folder.name
    operations = count_operations(script, args)
    speeds, limits, ratios, matrix, emulator = [], [], [], [], []
    for repetition in range(options.repetitions):
        flops, step_seconds = measure_limit(options.script, env_id, options.num_workers)
        speed, shares, updates = measure_script(script, args, options.seconds)
        speeds.append(speed)
        limits.append(options.num_workers / (operations / flops + step_seconds))
        ratios.append(speed / limits[-1])
        matrix.append(flops / 1e9)
        emulator.append(1e3 * step_seconds)
        parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        print(
            f"{repetition + 1}: {speed:.0f} steps/s, {updates:.2f} updates a segment; {parts}",
            flush=True,
        )
    print(f"\n{script.SCRIPT}, {env_id}, {options.num_workers} workers")
    print(f"{operations / 1e6:.1f} million floating-point operations an agent step\n")
    print(f"{'':32}{'min':>8} {'median':>8} {'max':>8}")
    print(f"{'agent steps/s in all':32}{spread(speeds)}")
    print(f"{'agent steps/s per worker':32}{spread([s / options.num_workers for s in speeds])}")
    print(f"{'matrix product, GFLOP/s a worker':32}{spread(matrix)}")
    print(f"{'emulator, ms a step':32}{spread(emulator)}")
    print(f"{'limit, agent steps/s in all':32}{spread(limits)}")
    print(f"{'share of the limit':32}{spread(ratios)}")


if __name__ == "__main__":
    main()
