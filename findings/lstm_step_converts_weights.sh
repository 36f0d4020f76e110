#!/usr/bin/env bash
# torch.nn.LSTM rearranges all of its weights in memory at every call on the CPU.
#
# Versions: torch 2.13.0, numpy 2.4.6, Python 3.11, x86-64 (oneDNN runs the LSTM there; seen with
#   AVX-512, AVX2 and SSE4.1 alike).
# The guess: the weights are packed once, or not at all, so a call costs as much as its arithmetic
#   and a hundred calls of one step do the same work as one call of a hundred steps.
# What happens: oneDNN wants another memory order, and PyTorch converts both weight matrices anew
#   at each call, also in inference mode with unchanged weights. The log of oneDNN counts it: two
#   conversions a call, whatever the number of steps. torch.lstm_cell converts nothing.
# Why it matters: an acting policy calls its LSTM with one step at a time. With 256 units
#   each step converts half a million weights that have not changed, and that took most of the
#   call's time here; torch.lstm_cell with the same parameters avoids it.
set -euo pipefail

expected='nn.LSTM, 100 calls of 1 step: 200 conversions of weights
nn.LSTM, 1 call of 100 steps: 2 conversions of weights
torch.lstm_cell, 100 calls of 1 step: 0 conversions of weights
Largest difference of the outputs below 1e-6: True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import os
import subprocess
import sys

STEPS = """
import sys
import torch

torch.manual_seed(0)
lstm = torch.nn.LSTM(256, 256)
weights = lstm.all_weights[0]
x = torch.randn(100, 1, 256)
zeros = torch.zeros(1, 1, 256)


def many_calls():
    state, outputs = (zeros, zeros), []
    for t in range(100):
        output, state = lstm(x[t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs)


def cells():
    state, outputs = (zeros[0], zeros[0]), []
    for t in range(100):
        state = torch.lstm_cell(x[t], state, *weights)
        outputs.append(state[0])
    return torch.stack(outputs)


ways = {"many": many_calls, "one": lambda: lstm(x, (zeros, zeros))[0], "cell": cells}
with torch.inference_mode():
    output = ways[sys.argv[1]]()
torch.save(output, sys.argv[1] + ".pt")
"""
LABELS = {
    "many": "nn.LSTM, 100 calls of 1 step",
    "one": "nn.LSTM, 1 call of 100 steps",
    "cell": "torch.lstm_cell, 100 calls of 1 step",
}
for way, label in LABELS.items():
    command = [sys.executable, "-c", STEPS, way]
    logging = {**os.environ, "ONEDNN_VERBOSE": "1"}
    log = subprocess.run(command, env=logging, capture_output=True, text=True, check=True).stdout
    # A weight matrix has the shape layers x directions x inputs x gates x units.
    count = sum(",reorder," in line and "1x1x256x4x256" in line for line in log.splitlines())
    print(f"{label}: {count} conversions of weights")

import torch  # noqa: E402

many, one, cell = (torch.load(f"{way}.pt", weights_only=True) for way in LABELS)
close = max((many - one).abs().max(), (many - cell).abs().max()) < 1e-6
print(f"Largest difference of the outputs below 1e-6: {bool(close)}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
