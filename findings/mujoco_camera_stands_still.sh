#!/usr/bin/env bash
# The default camera of Gymnasium's MuJoCo environments stands still.
#
# Versions: gymnasium 1.4.0, mujoco 4.0.0, numpy 2.4.6, Python 3.11; needs EGL (no screen).
# The guess: pictures follow the robot. Every one of these models has a camera called "track", the
#   renderer asks for that name when no camera is given, and the default settings of Hopper-v5,
#   Walker2d-v5 and Humanoid-v5 name a body to track (trackbodyid).
# What happens: the renderer finds "track", then falls back to the free camera so that the default
#   settings apply, and a free camera ignores trackbodyid. When the robot is ten metres on, the
#   default picture holds none of it. With camera_name="track" it is in the middle.
# Why it matters: the better a policy runs, the sooner it has left its video. Pictures of a trained
#   robot, or a policy that learns from pictures, then show an empty floor.
set -euo pipefail

expected='Hopper-v5, default camera, trackbodyid 2: camera moved 0.0 m, robot seen True, then False
Hopper-v5, camera_name="track": camera moved 10.0 m, robot seen True, then True
HalfCheetah-v5, default camera, trackbodyid -1: camera moved 0.0 m, robot seen True, then False
HalfCheetah-v5, camera_name="track": camera moved 10.0 m, robot seen True, then True
Humanoid-v5, default camera, trackbodyid 1: camera moved 0.0 m, robot seen True, then False
Humanoid-v5, camera_name="track": camera moved 10.0 m, robot seen True, then True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet 'gymnasium[mujoco]==1.4.0' mujoco==4.0.0 numpy==2.4.6

seen=$(MUJOCO_GL=egl venv/bin/python - <<'PY'
import gymnasium as gym
import numpy as np


def look(env, distance):
    """Put the robot at a distance; return the camera's x and whether the picture shows it."""
    position = env.init_qpos.copy()
    position[0] = distance
    env.set_state(position, env.init_qvel.copy())
    picture = env.render().copy()
    eyes = env.mujoco_renderer._get_viewer("rgb_array").scn.camera
    camera_x = sum(float(eye.pos[0]) for eye in eyes) / len(eyes)
    # Whatever changes when the robot becomes transparent was the robot (geom 0 is the floor).
    colours = env.model.geom_rgba.copy()
    env.model.geom_rgba[1:, 3] = 0.0
    empty = env.render()
    env.model.geom_rgba[:] = colours
    return camera_x, bool(np.any(picture != empty))


for name in ("Hopper-v5", "HalfCheetah-v5", "Humanoid-v5"):
    for choice in ({}, {"camera_name": "track"}):
        env = gym.make(name, render_mode="rgb_array", **choice).unwrapped
        assert env.model.geom(0).name == "floor"
        env.reset(seed=0)
        (start, before), (end, after) = look(env, 0.0), look(env, 10.0)
        body = env.mujoco_renderer._get_viewer("rgb_array").cam.trackbodyid
        label = 'camera_name="track"' if choice else f"default camera, trackbodyid {body}"
        moved = f"camera moved {end - start:.1f} m"
        print(f"{name}, {label}: {moved}, robot seen {before}, then {after}")
        env.close()
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
