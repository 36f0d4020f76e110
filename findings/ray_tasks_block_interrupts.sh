#!/usr/bin/env bash
# What a Ray task starts never hears SIGINT: it is blocked in the worker, and that is inherited.
#
# Versions: ray 2.60.0, Python 3.11.
# The guess: a program that a task starts is stopped by send_signal(SIGINT) as anywhere else.
# What happens: Ray's workers, of tasks and actors, run with SIGINT blocked. Python's subprocess
#   resets ignored signals but no mask, so the program and all that it starts have SIGINT blocked,
#   too: it stays pending for as long as they live. SIGTERM arrives.
# Why it matters: SIGINT is how training programs are asked to save and stop, Python turns it into
#   KeyboardInterrupt without any code for it. In a Ray task that wish is lost without a word, and
#   the kill that follows takes with it what was not saved. A program that wants to be stopped so
#   unblocks it (signal.pthread_sigmask) when it installs its handler.
set -euo pipefail

expected='outside Ray: SIGINT blocked False, the program was interrupted
in a task: SIGINT blocked True, the program slept on
in a task, unblocked for its start: SIGINT blocked True, the program was interrupted
in an actor: SIGINT blocked True, the program slept on'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet ray==2.60.0
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0

seen=$(venv/bin/python - 2>/dev/null <<'PY'
import signal
import subprocess
import sys

import ray

PROGRAM = """
import time
try:
    print("ready", flush=True)
    time.sleep(5)
    print("slept on")
except KeyboardInterrupt:
    print("was interrupted")
"""


def interrupt_program(unblock=False):
    """Start a program, send it SIGINT, and return what it says."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT} if unblock else set())
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    program.stdout.readline()
    program.send_signal(signal.SIGINT)
    said = program.communicate()[0].strip()
    return f"SIGINT blocked {signal.SIGINT in before}, the program {said}"


class Trainer:
    def run(self):
        return interrupt_program()


print("outside Ray:", interrupt_program())
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
task = ray.remote(interrupt_program)
print("in a task:", ray.get(task.remote()))
print("in a task, unblocked for its start:", ray.get(task.remote(unblock=True)))
print("in an actor:", ray.get(ray.remote(Trainer).remote().run.remote()))
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
