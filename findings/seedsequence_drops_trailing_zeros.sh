#!/usr/bin/env bash
# numpy's seed sequences of [7] and [7, 0] are one and the same.
#
# Versions: numpy 2.4.6, Python 3.11.
# The guess: SeedSequence hashes its whole input, so [seed] and [seed, rank] give different streams
#   for every rank. That is what the class is for.
# What happens: up to four 32-bit words are filled up with zeros before they are hashed, so trailing
#   zeros vanish. Seed 7 alone, [7, 0] and [7, 0, 0] give the same numbers, and 2**32 + 7 is [7, 1].
#   Only a fifth word counts even if it is zero. Children of spawn() are safe.
# Why it matters: [seed, rank] is a common way to seed parallel workers. Worker 0 then repeats the
#   stream of a main process that was seeded with the seed alone, so that, say, evaluation and
#   training, or two parts of a program, draw the same numbers. [rank, seed] is safe.
set -euo pipefail

expected='[7] and [7, 0]: same stream True
[7] and [7, 0, 0, 0]: same stream True
[7] and [7, 0, 0, 0, 0]: same stream False
[7] and [7, 1]: same stream False
[7] and [0, 7]: same stream False
[4294967303] and [7, 1]: same stream True
[7] and the first child of spawn(): same stream False'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import numpy as np


def compare(label, one, other):
    """Say whether two seeds give the same thousand numbers."""
    streams = [np.random.default_rng(seed).random(1000) for seed in (one, other)]
    print(f"{label}: same stream {np.array_equal(*streams)}")


pairs = [([7], [7, 0]), ([7], [7, 0, 0, 0]), ([7], [7, 0, 0, 0, 0]), ([7], [7, 1]), ([7], [0, 7])]
for one, other in [*pairs, ([2**32 + 7], [7, 1])]:
    compare(f"{one} and {other}", one, other)
compare("[7] and the first child of spawn()", [7], np.random.SeedSequence(7).spawn(1)[0])
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
