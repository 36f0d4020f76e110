#!/usr/bin/env bash
# Building a torch.optim optimizer imports PyTorch's compiler.
#
# Versions: torch 2.13.0, numpy 2.4.6, Python 3.11.
# The guess: an eager program that never calls torch.compile never loads the compiler; if some step
#   needs it, it comes with "import torch". Building plain SGD on one number costs nothing.
# What happens: "import torch", a network, a loss and its backward pass leave torch._dynamo and
#   sympy out. The constructor of torch.optim.SGD brings both, hundreds of further modules and
#   tens of megabytes, once in each process.
# Why it matters: asynchronous methods run many small processes. When each builds an optimizer, each
#   pays seconds of start and the memory, unless the parent of a fork server has paid before. The
#   functions below the classes (torch._fused_adam_, torch.optim.adam.adam) import nothing.
set -euo pipefail

expected='after import torch: torch._dynamo False, sympy False
after forward and backward: torch._dynamo False, sympy False
after torch._fused_adam_: torch._dynamo False, sympy False
after torch.optim.SGD(...): torch._dynamo True, sympy True
More than 500 further modules: True
More than 30 MB of further memory: True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import os
import sys

import torch


def resident_megabytes():
    """Return the memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def show(moment):
    """Say whether the compiler is there."""
    there = [name in sys.modules for name in ("torch._dynamo", "sympy")]
    print(f"after {moment}: torch._dynamo {there[0]}, sympy {there[1]}")
    return len(sys.modules), resident_megabytes()


show("import torch")
network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
network(torch.ones(2, 4)).pow(2).mean().backward()
show("forward and backward")
weight, gradient, *moments = (torch.ones(3), torch.ones(3), torch.zeros(3), torch.zeros(3))
lists = [[tensor] for tensor in (weight, gradient, *moments)]
numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
torch._fused_adam_(*lists, [], [torch.zeros(())], **numbers, amsgrad=False, maximize=False)
modules, memory = show("torch._fused_adam_")
torch.optim.SGD(network.parameters(), lr=0.1)
more_modules, more_memory = show("torch.optim.SGD(...)")
counted = f"{more_modules - modules} modules, {more_memory - memory:.0f} MB"
print(f"Building the optimizer brought {counted}.", file=sys.stderr)
print(f"More than 500 further modules: {more_modules - modules > 500}")
print(f"More than 30 MB of further memory: {more_memory - memory > 30}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
