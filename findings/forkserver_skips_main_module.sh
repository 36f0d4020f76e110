#!/usr/bin/env bash
# The fork server of Python 3.11 does not preload the main module although it is asked to.
#
# Versions: CPython 3.11.7 (the script asks for 3.11, where this was seen), torch 2.13.0,
#   numpy 2.4.6, Linux.
# The guess: set_forkserver_preload(["__main__"]), which is the default, imports the main module
#   and all that it imports once, in the server; workers are then forked with all of it there.
# What happens: the server is given the module's path under another name than it looks for, and
#   goes on without a word. Every worker imports the main module, and with it torch, by itself.
#   Only modules named one by one are there when the worker starts.
# Why it matters: workers of an asynchronous method share the memory of torch and start in
#   milliseconds with a fork server that has it, and take more than a second each with one that
#   has not. Nothing says which of the two happened.
set -euo pipefail

expected='preload the default: torch was imported in the worker
preload ["__main__"]: torch was imported in the worker
preload ["torch"]: torch was there when the worker started'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

# The main module must be a file that workers can import.
cat >train.py <<'PY'
import multiprocessing
import sys
from multiprocessing import forkserver

INHERITED = "torch" in sys.modules

import torch  # noqa: E402


def tell(pipe):
    """Send whether torch was there before this module's own import, and its version."""
    pipe.send((INHERITED, torch.__version__))


def main():
    """Start one worker for each way to preload."""
    context = multiprocessing.get_context("forkserver")
    for preload in (None, ["__main__"], ["torch"]):
        if preload is not None:
            context.set_forkserver_preload(preload)
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(target=tell, args=(sending,))
        worker.start()
        inherited, _ = receiving.recv()
        worker.join()
        label = "the default" if preload is None else str(preload).replace("'", '"')
        where = "there when the worker started" if inherited else "imported in the worker"
        print(f"preload {label}: torch was {where}", flush=True)
        forkserver._forkserver._stop()


if __name__ == "__main__":
    main()
PY

seen=$(venv/bin/python train.py)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
