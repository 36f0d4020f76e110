#!/usr/bin/env bash
# Gymnasium's set_state(qpos, qvel) does not put a MuJoCo task back: the same steps end elsewhere.
#
# Versions: gymnasium 1.4.0, mujoco 3.10.0, numpy 2.4.6, Python 3.11.
# The guess: positions and velocities are the state of a robot (these have no activations), so that
#   set_state to the same ones and the same actions give the same steps, as often as one likes. In
#   HalfCheetah, Hopper, Swimmer, Reacher and Pusher they do, bit by bit.
# What happens: the solver of contacts starts from the accelerations that it found last, and
#   set_state, which runs it once with the actuators as they were left, overwrites those instead of
#   restoring them. What comes next hangs on what was played before: last bits at first (Humanoid,
#   0.00002 of a position or velocity after one step), which contacts multiply: 200 steps of Ant gave
#   returns of -80, -125 and -111. mjSTATE_FULLPHYSICS leaves the same out; mj_copyData does not.
# Why it matters: planners and tree searches that set a state, try actions and set it again compare
#   them with different luck; a "same start" for two policies is none; stored states do not replay.
set -euo pipefail

expected='HalfCheetah-v5: one return of the same 200 actions, with set_state True, with mj_copyData True
Ant-v5: one return of the same 200 actions, with set_state False, with mj_copyData True
Ant-v5: those with set_state are more than 1 apart True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet "gymnasium[mujoco]==1.4.0" mujoco==3.10.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import copy

import gymnasium as gym
import mujoco
import numpy as np

for name in ("HalfCheetah-v5", "Ant-v5"):
    env = gym.make(name).unwrapped
    env.action_space.seed(3)
    env.reset(seed=1)
    for _ in range(40):
        env.step(env.action_space.sample())
    actions = [env.action_space.sample() for _ in range(200)]
    positions, velocities, kept = env.data.qpos.copy(), env.data.qvel.copy(), copy.copy(env.data)
    ends = {"set_state": [], "mj_copyData": []}
    for _ in range(3):
        env.set_state(positions, velocities)
        ends["set_state"].append(sum(float(env.step(action)[1]) for action in actions))
        mujoco.mj_copyData(env.data, env.model, kept)
        ends["mj_copyData"].append(sum(float(env.step(action)[1]) for action in actions))
    alike = ", ".join(f"with {how} {len(set(returns)) == 1}" for how, returns in ends.items())
    print(f"{name}: one return of the same 200 actions, {alike}")
print(f"{name}: those with set_state are more than 1 apart {np.ptp(ends['set_state']) > 1}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
