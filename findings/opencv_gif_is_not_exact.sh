#!/usr/bin/env bash
# OpenCV 5 writes no picture of four colours exactly into a GIF.
#
# Versions: opencv-python 5.0.0.93, pillow 13.0.0, numpy 2.4.6, Python 3.11.
# The guess: a GIF holds up to 256 colours of one's choice, so a video of an Atari game with a
#   handful of colours comes back exactly and, since most pixels stand still, is small.
# What happens: cv2.imwriteanimation has a palette of its own and dithers towards it. Four colours
#   come back as 26, no pixel of the video is right, some are off by 78 of 255 levels. The speckles
#   spoil the compression, too: the file is over thirty times as large as Pillow's, which is
#   exact. Quality 8, the highest, leaves the same error and doubles the file.
# Why it matters: the obvious way to show a trained policy without a further dependency gives a
#   speckled, large file, and pictures taken back from it (for a data set, for a test) are wrong.
set -euo pipefail

expected='drawn: 4 colours
cv2.imwriteanimation: 26 colours, 100.0% of the pixels wrong, largest error 78
cv2.imwriteanimation, quality 8: 27 colours, 100.0% of the pixels wrong, largest error 78
Pillow: 4 colours, 0.0% of the pixels wrong, largest error 0
File of OpenCV more than 30 times that of Pillow: True'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet opencv-python==5.0.0.93 pillow==13.0.0 numpy==2.4.6

seen=$(venv/bin/python - <<'PY'
import os

import cv2
import numpy as np
from PIL import Image

GROUND, WHITE, ORANGE, GREEN = (144, 72, 17), (236, 236, 236), (213, 130, 74), (92, 186, 92)


def draw(t):
    """Return a screen like Pong's at time t."""
    screen = np.full((210, 160, 3), GROUND, np.uint8)
    screen[24:34] = screen[194:] = WHITE
    screen[60 + t : 76 + t, 16:20] = ORANGE
    screen[90:106, 140:144] = GREEN
    screen[100 + t : 104 + t, 40 + 2 * t : 42 + 2 * t] = WHITE
    return screen


def colours(video):
    """Return the number of distinct colours."""
    return len(np.unique(video.reshape(-1, 3), axis=0))


def report(name, path):
    """Compare a file with what was drawn."""
    with Image.open(path) as file:
        frames = []
        for index in range(file.n_frames):
            file.seek(index)
            frames.append(np.asarray(file.convert("RGB")))
    error = np.abs(np.stack(frames).astype(int) - video)
    wrong = f"{100 * error.any(axis=-1).mean():.1f}% of the pixels wrong"
    print(f"{name}: {colours(np.stack(frames))} colours, {wrong}, largest error {error.max()}")


video = np.stack([draw(t) for t in range(30)])
print(f"drawn: {colours(video)} colours")
animation = cv2.Animation()
animation.frames = [cv2.cvtColor(screen, cv2.COLOR_RGB2BGR) for screen in video]
animation.durations = np.full(len(video), 30, np.int32)
cv2.imwriteanimation("opencv.gif", animation)
report("cv2.imwriteanimation", "opencv.gif")
cv2.imwriteanimation("best.gif", animation, [cv2.IMWRITE_GIF_QUALITY, 8])
report("cv2.imwriteanimation, quality 8", "best.gif")
first, *others = [Image.fromarray(screen) for screen in video]
first.save("pillow.gif", save_all=True, append_images=others, duration=30, loop=0)
report("Pillow", "pillow.gif")
ratio = os.path.getsize("opencv.gif") / os.path.getsize("pillow.gif")
print(f"File of OpenCV more than 30 times that of Pillow: {ratio > 30}")
PY
)

echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "This differs from what was expected:" >&2
    echo "$expected" >&2
    exit 1
fi
