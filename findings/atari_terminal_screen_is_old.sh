#!/usr/bin/env bash
# Gymnasium's AtariPreprocessing shows an old screen at the end of a game.
#
# Versions: gymnasium 1.4.0, ale-py 0.12.1, opencv-python 5.0.0.93, numpy 2.4.6, Python 3.11.
# The guess: the observation of every step is the maximum of the last two emulator frames, so the
#   last observation of a game shows how the game ended.
# What happens: the wrapper reads the screen only after the third and the fourth of its four
#   frames. A game that ends earlier leaves the loop first, and one that ends in the fourth frame
#   leaves before that frame is read. The last observation is then the one before, or its maximum
#   with one newer frame. All earlier observations of these games are exact.
# Why it matters: the final observation is what a value function is asked about after a cut, what a
#   replay stores last and what a video ends with. The reward that ended the game belongs to a
#   picture that nobody has seen. A repetition of the game on the raw emulator does not match it.
set -euo pipefail

expected='Pong: 902 steps, over in frame 3 of the last; wrong pixels earlier 0, at the end 15
Freeway: 2048 steps, over in frame 4 of the last; wrong pixels earlier 0, at the end 210
Boxing: 1786 steps, over in frame 1 of the last; wrong pixels earlier 0, at the end 92'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet gymnasium==1.4.0 ale-py==0.12.1 numpy==2.4.6 \
    opencv-python==5.0.0.93

seen=$(venv/bin/python - <<'PY'
import ale_py
import cv2
import gymnasium as gym
import numpy as np

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def picture(frames):
    """Return the maximum of raw screens, scaled as the wrapper does it."""
    screen = np.maximum.reduce(frames)
    return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)


def compare(game):
    """Play one game without and with the wrapper and compare the pictures of every step."""
    raw = gym.make(f"{game}NoFrameskip-v4", obs_type="grayscale")
    wrapped = gym.wrappers.AtariPreprocessing(gym.make(f"{game}NoFrameskip-v4"), noop_max=0)
    frame, _ = raw.reset(seed=0)
    wrapped.reset(seed=0)
    frames, wrong, over, played = [frame], [], False, 0
    rng = np.random.default_rng(0)
    while not over:
        action = rng.integers(raw.action_space.n)
        observation, _, over, _, _ = wrapped.step(action)
        played, raw_over = 0, False
        while played < 4 and not raw_over:
            frame, _, raw_over, _, _ = raw.step(action)
            frames = [frames[-1], frame]
            played += 1
        assert raw_over == over
        wrong.append(np.count_nonzero(observation != picture(frames)))
    print(
        f"{game}: {len(wrong)} steps, over in frame {played} of the last; "
        f"wrong pixels earlier {sum(wrong[:-1])}, at the end {wrong[-1]}"
    )


for name in ("Pong", "Freeway", "Boxing"):
    compare(name)
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
