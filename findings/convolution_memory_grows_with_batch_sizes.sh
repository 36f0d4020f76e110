#!/usr/bin/env bash
# Batches smaller than the largest seen so far more than double a process's memory.
#
# Versions: torch 2.13.0 (CPU), Python 3.11, glibc 2.36, x86-64.
# The guess: training a convolutional network takes the memory of its largest batch. Once that has
#   been seen, smaller ones add nothing; at worst some fragmentation in the first pass over them.
# What happens: oneDNN prepares a convolution for each batch size, forward and backward, and keeps
#   the last 1,024 of them. With glibc's malloc what they hold also pins the freed memory around
#   it. After the largest batch, 64, the sizes 1 to 63 take a process of three small convolutions
#   from 280 to 450 MB in the first pass, and to 630 MB by the fourth. With
#   ONEDNN_PRIMITIVE_CACHE_CAPACITY=1 it stays below 300 MB.
# Why it matters: segments that end with an episode, a last batch, inference servers: wherever sizes
#   vary, memory seems to leak, and it does so in every worker process. Larger thresholds for
#   glibc's malloc, or one size for all batches, help as well.
# Seen: after 64 alone 282 MB; after each of six passes 456 584 615 615 615 615
#   with ONEDNN_PRIMITIVE_CACHE_CAPACITY=1: 275; 294 294 294 294 294 294
set -euo pipefail

expected='default: grew by more than half
cache of one: grew by less than a fifth'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

cat >passes.py <<'PY'
import os

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Sequential(
    torch.nn.Conv2d(4, 32, 8, 4),
    torch.nn.ReLU(),
    torch.nn.Conv2d(32, 64, 4, 2),
    torch.nn.ReLU(),
    torch.nn.Conv2d(64, 64, 3, 1),
)


def train(batch):
    net.zero_grad(set_to_none=False)
    net(torch.ones(batch, 4, 84, 84)).square().mean().backward()


def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


for _ in range(10):
    train(64)
sizes = [megabytes()]
for _ in range(6):
    for batch in range(1, 64):
        train(batch)
    sizes.append(megabytes())
print(*sizes)
PY

judge() { # a name, and the sizes in MB
    venv/bin/python - "$@" <<'PY'
import sys

name, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
growth = max(sizes) / sizes[0] - 1
size = "more than half" if growth > 0.5 else "less than a fifth" if growth < 0.2 else f"{growth:.0%}"
print(f"{name}: grew by {size}")
PY
}

unset ONEDNN_PRIMITIVE_CACHE_CAPACITY MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_
default=$(venv/bin/python passes.py)
of_one=$(ONEDNN_PRIMITIVE_CACHE_CAPACITY=1 venv/bin/python passes.py)
echo "MB, default: $default; cache of one: $of_one"
seen=$(judge default $default; judge "cache of one" $of_one)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
