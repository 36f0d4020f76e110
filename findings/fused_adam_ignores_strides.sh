#!/usr/bin/env bash
# PyTorch's fused optimizers on the CPU pair weights and gradients by their place in memory.
#
# Versions: torch 2.13.0, numpy 2.4.6, Python 3.11, x86-64.
# The guess: an optimizer's step is elementwise, so the memory layout of a gradient cannot matter;
#   at worst two layouts are slower, or refused with an error.
# What happens: with a channels_last gradient on a contiguous parameter, fused=True walks both in
#   the order of their memory. 128 of these 288 weights move uphill, without a word, while the
#   loop implementation of the same class is right. Adam and SGD both do it. The step equals, bit
#   for bit, the right step for the gradient as it lies in memory.
# Why it matters: asynchronous methods bind gradients of a local copy to shared parameters by hand
#   (shared.grad = local.grad). A local copy in channels_last beside a contiguous shared model then
#   learns nonsense. A test with vectors or matrices cannot see it: only 4-D weights have layouts.
set -euo pipefail

expected='Adam fused=False contiguous gradient: 0 of 288 weights moved uphill
Adam fused=False channels_last gradient: 0 of 288 weights moved uphill
Adam fused=True contiguous gradient: 0 of 288 weights moved uphill
Adam fused=True channels_last gradient: 128 of 288 weights moved uphill
SGD fused=False channels_last gradient: 0 of 288 weights moved uphill
SGD fused=True channels_last gradient: 128 of 288 weights moved uphill
The fused step equals a walk through raw memory: True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import torch

SHAPE = (8, 4, 3, 3)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# The sign of the gradient alternates from one input channel to the next.
gradient = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1, 1).expand(SHAPE).contiguous()


def move(optimizer, layout, fused):
    """Return how far one step moves each weight."""
    weight = torch.nn.Parameter(torch.zeros(SHAPE))
    weight.grad = gradient.to(memory_format=LAYOUTS[layout])
    assert torch.equal(weight.grad, gradient)
    optimizer([weight], lr=0.1, fused=fused).step()
    return weight.detach()


cases = [("Adam", "contiguous", False), ("Adam", "channels_last", False)]
cases += [("Adam", "contiguous", True), ("Adam", "channels_last", True)]
cases += [("SGD", "channels_last", False), ("SGD", "channels_last", True)]
for name, layout, fused in cases:
    uphill = (move(getattr(torch.optim, name), layout, fused) * gradient > 0).sum().item()
    label = f"{name} fused={fused} {layout} gradient"
    print(f"{label}: {uphill} of {gradient.numel()} weights moved uphill")

in_memory = gradient.permute(0, 2, 3, 1).reshape(SHAPE)
walk = torch.equal(move(torch.optim.SGD, "channels_last", True), -0.1 * in_memory)
print(f"The fused step equals a walk through raw memory: {walk}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
