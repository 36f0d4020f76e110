#!/usr/bin/env bash
# MuJoCo's mj_fullM takes other arguments from one minor release to the next.
#
# Versions: mujoco 3.9.0, 3.10.0 and 4.0.0, numpy 2.4.6, Python 3.11.
# The guess: a function that has been there since MuJoCo 2 keeps its arguments within 3.x; what
#   breaks, breaks at 4.0.
# What happens: up to 3.9 the mass matrix comes from mj_fullM(model, matrix, data.qM), from 3.10 on
#   from mj_fullM(model, data, matrix). Neither release takes the other's order. In 3.10 data.qM is
#   still there, in 4.0 it is not.
# Why it matters: operational space control needs this matrix, as in robosuite 1.5.1, which asks
#   for mujoco 3.2.3 or newer: pip is content with 3.10, and the first step of an arm raises a
#   TypeError. Code for both needs a look at the version.
set -euo pipefail

expected='3.9.0: (model, matrix, data.qM) right, (model, data, matrix) TypeError
3.10.0: (model, matrix, data.qM) TypeError, (model, data, matrix) right, data.qM is there True
4.0.0: (model, data, matrix) right, data.qM is there False'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >matrix.py <<'PY'
import mujoco
import numpy as np

model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><body><joint/><geom size='1' mass='5'/></body></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)


def outcome(arguments, matrix):
    """Ask for the matrix of one hinge; its one number is the ball's inertia, 2/5 m r²."""
    try:
        mujoco.mj_fullM(*arguments)
    except TypeError:
        return "TypeError"
    return "right" if np.allclose(matrix, 2) else "wrong"


results, there = [], hasattr(data, "qM")
if there:
    matrix = np.zeros((1, 1))
    results.append(f"(model, matrix, data.qM) {outcome((model, matrix, data.qM), matrix)}")
matrix = np.zeros((1, 1))
results.append(f"(model, data, matrix) {outcome((model, data, matrix), matrix)}")
if mujoco.__version__ != "3.9.0":
    results.append(f"data.qM is there {there}")
print(f"{mujoco.__version__}: {', '.join(results)}")
PY

seen=$(
    for release in 3.9.0 3.10.0 4.0.0; do
        python3 -m venv "$release"
        "$release"/bin/python -m pip install --quiet "mujoco==$release" numpy==2.4.6
        "$release"/bin/python matrix.py
    done
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
