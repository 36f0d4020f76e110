#!/usr/bin/env bash
# torch.nn.init.orthogonal_ draws other weights with another number of threads.
#
# Versions: torch 2.13.0, numpy 2.4.6, Python 3.11, x86-64 with at least two processors.
# The guess: initial weights depend on the seed alone. The generator of a CPU is sequential, so
#   torch.manual_seed fixes them on any machine of the same kind.
# What happens: the normal numbers are the same, but the QR decomposition behind orthogonal_ sums
#   in an order that depends on the number of threads. One thread and two give different bits in
#   all usual shapes. Kaiming's and Xavier's initialisation do not depend on it.
# Why it matters: orthogonal weights are the custom in reinforcement learning, and a run that starts
#   a few units in the last place apart need not stay the same run. "Same
#   seed, same result" then fails between a laptop and a server, or under taskset, unless initial
#   weights are drawn on one thread.
set -euo pipefail

expected='orthogonal_ [512, 3136]: one thread twice equal True, one and two threads equal False
orthogonal_ [512, 512]: one thread twice equal True, one and two threads equal False
orthogonal_ [64, 512]: one thread twice equal True, one and two threads equal False
xavier_uniform_ [512, 3136]: one thread twice equal True, one and two threads equal True
kaiming_normal_ [512, 3136]: one thread twice equal True, one and two threads equal True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import torch


def draw(initialise, shape, threads):
    """Return the weights that seed 0 gives with a number of threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return initialise(torch.empty(shape))


cases = [("orthogonal_", shape) for shape in ([512, 3136], [512, 512], [64, 512])]
cases += [("xavier_uniform_", [512, 3136]), ("kaiming_normal_", [512, 3136])]
for name, shape in cases:
    one, again, two = (draw(getattr(torch.nn.init, name), shape, n) for n in (1, 1, 2))
    twice = f"one thread twice equal {torch.equal(one, again)}"
    print(f"{name} {shape}: {twice}, one and two threads equal {torch.equal(one, two)}")
    assert torch.allclose(one, two, atol=1e-4)
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
