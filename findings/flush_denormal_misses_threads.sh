#!/usr/bin/env bash
# torch.set_flush_denormal spares threads that PyTorch has started before.
#
# Versions: torch 2.13.0, numpy 2.4.6, Python 3.11, x86-64 with at least two processors.
# The guess: set_flush_denormal(True) is a switch of the process, so its place in a program does not
#   matter: from then on denormal results are zero in every operation.
# What happens: it sets a register of the calling thread. Threads that exist already keep theirs,
#   threads started later inherit the new one. Called after one parallel operation, it reaches the
#   half of a tensor that the main thread works on, and the other half stays denormal. Called
#   first, it reaches all of it. Both calls return True.
# Why it matters: the moments of Adam decay into denormal numbers where gradients stay zero, which
#   slows its step, and this switch is the known cure. Placed after the network has run once, it
#   heals half of each tensor, and results depend on how work is split over threads.
set -euo pipefail

expected='switched on before the first operation (returned True): 100% of the results flushed
switched on after the first operation (returned True): 50% of the results flushed
never switched on: 0% of the results flushed'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import subprocess
import sys

PROGRAM = """
import sys
import torch

torch.set_num_threads(2)
if sys.argv[1] == "before":
    print(torch.set_flush_denormal(True))
numbers = torch.full((1 << 20,), 0x000FFFFF, dtype=torch.int32)  # denormal as float32
moments = numbers.view(torch.float32)
torch.ones(1 << 22).mul(2)  # starts the second thread at the latest
if sys.argv[1] == "after":
    print(torch.set_flush_denormal(True))
bits = (moments * 1.0).view(torch.int32)  # compared as integers: the register spoils == as well
print(f"{(bits == 0).double().mean():.0%}")
"""
for moment in ("before", "after", "never"):
    command = [sys.executable, "-c", PROGRAM, moment]
    *returned, share = subprocess.check_output(command, text=True).split()
    first = f"switched on {moment} the first operation (returned {returned})"
    label = first.replace("['", "").replace("']", "") if returned else "never switched on"
    print(f"{label}: {share} of the results flushed")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
