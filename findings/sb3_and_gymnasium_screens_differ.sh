#!/usr/bin/env bash
# Stable-Baselines3 and Gymnasium prepare different pictures of the same Atari frames.
#
# Versions: stable-baselines3 2.9.2, gymnasium 1.4.0, ale-py 0.12.1, opencv-python 5.0.0.93,
#   torch 2.13.0, numpy 2.4.6, Python 3.11.
# The guess: AtariWrapper and AtariPreprocessing are the same recipe (maximum of two frames, grey,
#   84x84 with the same interpolation), so the same actions give the same observations, at worst
#   with another rounding.
# What happens: Stable-Baselines3 takes the maximum of each colour and then makes it grey, Gymnasium
#   the maximum of the grey levels. Where two differently coloured objects follow each other
#   within two frames, the maximum of red, green and blue is a third colour that was never on the
#   screen. In Ms. Pac-Man nine observations in ten differ, by up to 37 grey levels, although the
#   grey of each single frame is the same to the last bit.
# Why it matters: weights trained with one library see other inputs in the other, and a published
#   score need not be met when they are carried over. "DeepMind preprocessing" is not one thing.
set -euo pipefail

expected='emulator frames equal at every step: True
grey of single frames: largest difference 0
observations that differ: 180 of 200, largest difference 37'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet stable-baselines3==2.9.2 gymnasium==1.4.0 ale-py==0.12.1 \
    opencv-python==5.0.0.93 torch==2.13.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import ale_py
import cv2
import gymnasium as gym
import numpy as np
from stable_baselines3.common.atari_wrappers import AtariWrapper

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
GAME = "MsPacmanNoFrameskip-v4"  # it needs no FIRE, which only one of the wrappers presses

plain = gym.wrappers.AtariPreprocessing(gym.make(GAME), noop_max=0)
baseline = AtariWrapper(gym.make(GAME), noop_max=0, terminal_on_life_loss=False)
plain.reset(seed=0)
baseline.reset(seed=0)
rng = np.random.default_rng(0)
same_frames, grey, differences = True, 0, []
for _ in range(200):
    action = int(rng.integers(plain.action_space.n))
    one, _, over, _, _ = plain.step(action)
    other, _, also_over, _, _ = baseline.step(action)
    assert not over
    assert not also_over
    emulators = plain.unwrapped.ale, baseline.unwrapped.ale
    screens = [emulator.getScreenRGB() for emulator in emulators]
    same_frames = same_frames and np.array_equal(*screens)
    converted = cv2.cvtColor(screens[0], cv2.COLOR_RGB2GRAY).astype(int)
    grey = max(grey, np.abs(converted - emulators[0].getScreenGrayscale()).max())
    differences.append(np.abs(one.astype(int) - other[..., 0]).max())
print(f"emulator frames equal at every step: {same_frames}")
print(f"grey of single frames: largest difference {grey}")
differing = np.count_nonzero(differences)
print(f"observations that differ: {differing} of 200, largest difference {max(differences)}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
