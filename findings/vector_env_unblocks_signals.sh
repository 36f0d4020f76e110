#!/usr/bin/env bash
# Building a Gymnasium AsyncVectorEnv lifts the block that its caller put on SIGINT and SIGTERM.
#
# Versions: gymnasium 1.4.0, numpy 2.4.6, CPython 3.11.7, Linux.
# The guess: a program that blocks signals with signal.pthread_sigmask has them blocked until it
#   unblocks them itself. A constructor does not touch the signal mask of its caller.
# What happens: with the start method "spawn" the first lock or shared array starts Python's
#   resource tracker. To protect that process, multiprocessing blocks SIGINT and SIGTERM
#   and then unblocks them, instead of restoring the mask it found. SIGUSR1 stays blocked.
# Why it matters: blocking signals while workers start, or while a checkpoint is written, is how a
#   training program keeps a Ctrl-C from hitting it halfway. The block is gone after the first
#   shared object, only in the first call of the process, so a test in a warm process passes.
set -euo pipefail

expected='blocked before: SIGINT SIGTERM SIGUSR1
blocked after the first AsyncVectorEnv: SIGUSR1
blocked again: SIGINT SIGTERM SIGUSR1
blocked after the second AsyncVectorEnv: SIGINT SIGTERM SIGUSR1'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet gymnasium==1.4.0 numpy==2.4.6

# The main module must be a file that workers can import.
cat >build.py <<'PY'
import signal

import gymnasium as gym

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def show(moment):
    """Print which of the three signals are blocked now."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print(f"{moment}: {' '.join(sorted(each.name for each in SIGNALS & blocked))}", flush=True)


def build():
    """Make two environments in processes of their own and close them again."""
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, context="spawn")
    envs.close()


def main():
    """Block the signals and build, twice."""
    for before, after in (("blocked before", "first"), ("blocked again", "second")):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        show(before)
        build()
        show(f"blocked after the {after} AsyncVectorEnv")


if __name__ == "__main__":
    main()
PY

seen=$(venv/bin/python build.py)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
