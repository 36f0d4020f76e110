"""Train, resume, evaluate and film in environments of other packages; a table of what works.

    python tests/thirdparty.py                      # every row
    python tests/thirdparty.py 'dm_control|panda'   # the rows that match a pattern
    python tests/thirdparty.py --list               # print the commands, do nothing
    python tests/thirdparty.py --folder third       # keep the virtual environment and the runs

Not one of the tests: it downloads a gigabyte. Without a screen it needs EGL (Debian: libegl1).
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
# What pip installs; after a `;` what it installs with --no-deps, because it asks for an older NumPy
# or OpenCV than it needs, or for pygame, which would overwrite pygame-ce.
PACKAGES = {
    "Box2D": "gymnasium[box2d]==1.4.0",
    "dm_control": "shimmy[dm-control]==2.0.1 dm-control==1.0.43",  # newer ones want a newer mujoco
    "flappy-bird": "matplotlib==3.11.2; flappy-bird-gymnasium==0.4.0",
    "gym-pusht": "pymunk==6.11.1 shapely==2.2.0; gym-pusht==0.1.8",
    "hackatari": "keyboard pandas pyfiglet pygame-ce scikit-image scikit-learn seaborn termcolor "
    "tqdm; ocatari==2.2.1 hackatari==0.0.6",
    "highway-env": "highway-env==1.12.1",
    "memory-gym": "pygame-ce; memory-gym==1.0.2",
    "metaworld": "metaworld==3.0.0",  # 3.1.1 wants mujoco 3.3.0
    "minigrid": "minigrid==3.2.0",
    "miniworld": "miniworld==2.1.0",
    "mo-gymnasium": "scipy==1.17.1; mo-gymnasium==1.3.2",
    "myosuite": "colorednoise flatten-dict h5py imageio[ffmpeg] joblib ml-collections scikit-learn "
    "termcolor; myo-sim==0.2.4 myosuite==3.0.0",
    "panda-gym": "panda-gym==3.0.7 pybullet==3.2.7",
    "pybullet-envs": "pybullet-envs-gymnasium==0.6.0 pybullet==3.2.7",
    "PyFlyt": "numba==0.68.1 pettingzoo==1.27.0 pybullet==3.2.7 pyyaml scipy; PyFlyt==0.29.0",
    "robotics": "gymnasium-robotics==1.4.2",
    "stable-retro": "stable-retro==1.0.1",
    "tetris": "chex==0.1.92; tetris-gymnasium==0.3.1",
    "vizdoom": "vizdoom==1.3.2",
}
# Package, script, --env-id, --env-kwargs.
TABLE = """
Box2D         acer_continuous LunarLanderContinuous-v3
Box2D         a3c_continuous BipedalWalker-v3
Box2D         acer_atari CarRacing-v3 {"continuous":false}
dm_control    acer_continuous shimmy:dm_control/cheetah-run-v0
dm_control    acer_continuous shimmy:dm_control/quadruped-run-v0
dm_control    a3c_continuous shimmy:dm_control/walker-walk-v0
flappy-bird   acer_atari thirdparty_envs:FlappyBird-v0
gym-pusht     acer_continuous gym_pusht:gym_pusht/PushT-v0
hackatari     acer_atari thirdparty_envs:HackAtari-v0 {"name":"ALE/Pong-v5","modifs":["lazy_enemy"]}
highway-env   acer_continuous highway_env:parking-v0
highway-env   a3c_continuous highway_env:racetrack-v1
memory-gym    a3c_recurrent_atari memory_gym:MortarMayhem-Grid-v0
metaworld     acer_continuous metaworld:Meta-World/MT1 {"env_name":"reach-v3"}
metaworld     a3c_continuous metaworld:Meta-World/MT1 {"env_name":"drawer-open-v3","seed":1}
minigrid      acer_atari thirdparty_envs:MiniGrid-v0 {"name":"MiniGrid-DoorKey-5x5-v0"}
minigrid      a3c_recurrent_atari thirdparty_envs:MiniGrid-v0 {"name":"MiniGrid-Empty-5x5-v0"}
miniworld     a3c_recurrent_atari miniworld:MiniWorld-Hallway-v0
mo-gymnasium  acer_continuous thirdparty_envs:Sum-v0 {"name":"mo-hopper-v5","weights":[1,1,1]}
mo-gymnasium  a3c_continuous thirdparty_envs:Sum-v0 {"name":"mo-halfcheetah-v5","weights":[1,0.1]}
myosuite      acer_continuous myosuite:myoElbowPose1D6MRandom-v0
panda-gym     acer_continuous panda_gym:PandaReachDense-v3
panda-gym     a3c_continuous panda_gym:PandaPushDense-v3
pybullet-envs acer_continuous pybullet_envs_gymnasium:HopperBulletEnv-v0
pybullet-envs a3c_continuous pybullet_envs_gymnasium:HalfCheetahBulletEnv-v0
PyFlyt        acer_continuous PyFlyt.gym_envs:PyFlyt/QuadX-Hover-v4
PyFlyt        a3c_continuous PyFlyt.gym_envs:PyFlyt/Rocket-Landing-v4
robotics      acer_continuous gymnasium_robotics:FetchReachDense-v4
robotics      acer_continuous gymnasium_robotics:HandReachDense-v3
robotics      acer_continuous gymnasium_robotics:PointMaze_UMazeDense-v3
robotics      a3c_continuous gymnasium_robotics:FetchPushDense-v4
stable-retro  acer_atari thirdparty_envs:Retro-v0 {"game":"Airstriker-Genesis-v0"}
tetris        acer_atari thirdparty_envs:Tetris-v0
vizdoom       acer_atari thirdparty_envs:Vizdoom-v0 {"name":"VizdoomBasic-v1"}
vizdoom       a3c_recurrent_atari thirdparty_envs:Vizdoom-v0 {"name":"VizdoomTakeCover-v1"}
"""
SMALL = "--num-workers 2 --total-timesteps 2000"
REPLAY = " --replay-size 2000 --replay-start 200 --replay-ratio 1"


class Row(NamedTuple):
    """One line of the table."""

    package: str
    script: str
    env_id: str
    kwargs: str = "{}"

    def __str__(self) -> str:
        kwargs = () if self.kwargs == "{}" else ("--env-kwargs", self.kwargs)
        return shlex.join([f"{self.script}.py", "--env-id", self.env_id, *kwargs])


class Failure(Exception):
    """A step of a row that did not end well."""


def install(folder: Path, rows: list[Row]) -> Path:
    """Make a virtual environment, or use the one there, with all that these rows need."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen = [PACKAGES[name].partition(";") for name in dict.fromkeys(row.package for row in rows)]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    needed = " ".join(first for first, _, _ in chosen).split()
    subprocess.run([*pip, "-r", ROOT / "requirements.txt", *needed], check=True)
    if alone := " ".join(last for _, _, last in chosen).split():
        subprocess.run([*pip, "--no-deps", *alone], check=True)
    return python


def run(command: list, cwd: Path, seconds: float = 900) -> str:
    """Return what a command printed; fail if it fails, hangs, or leaves processes behind."""
    output, errors = cwd / "output.txt", cwd / "errors.txt"
    # Without a screen miniworld wants to be told so; the scripts tell the other packages.
    added = {"PYGLET_HEADLESS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    with open(output, "w") as out, open(errors, "w") as err:
        options = {"stdout": out, "stderr": err, "cwd": cwd, "env": os.environ | added}
        process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        code = process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(600):  # a minute, since a busy machine takes its time
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            raise Failure("left processes behind")
    except subprocess.TimeoutExpired:
        raise Failure(f"not done after {seconds} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if code:
        said = [line for line in errors.read_text().splitlines() if line.strip()]
        own = [line for line in said if ".py: error: " in line]
        raise Failure(f"{(own or said or ['no word'])[-1]} (exit code {code})")
    return output.read_text()


def look_at(gif: Path) -> int:
    """Return the number of pictures in a GIF; fail if it shows nothing, or nothing moves."""
    _, animation = cv2.imreadanimation(str(gif))
    frames = np.stack(animation.frames)[..., :3]
    if frames[0].std() < 1 or (frames == frames[0]).all():
        raise Failure("the pictures are of one colour, or nothing moves")
    return len(frames)


def try_out(row: Row, python: Path, folder: Path) -> str:
    """Train, resume, evaluate and film; return what came of it, or fail."""
    script = [python, ROOT / f"{row.script}.py", "--env-id", row.env_id, "--env-kwargs", row.kwargs]
    game = ["--evaluate", "run", "--eval-episodes", "1", "--eval-max-steps"]
    steps = {
        "train": ["--run-dir", "run", *f"{SMALL}{REPLAY if 'acer' in row.script else ''}".split()],
        "resume": ["--resume", "run", "--total-timesteps", "3000"],
        "evaluate": [*game, "500"],
        "film": [*game, "100", "--capture-video"],
    }
    began, said = time.monotonic(), ""
    for name, flags in steps.items():
        try:
            said = run([*script, *flags], folder)
            pictures = look_at(folder / "run/video/seed-1.gif") if name == "film" else 0
        except Exception as failure:
            raise Failure(f"{name}: {failure}") from None
    mean = re.search(r"mean (\S+),", said)
    return f"return {mean[1]}, {pictures} pictures, {time.monotonic() - began:.0f} s"


def main() -> None:
    """Try the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="", help="try only rows that hold it")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    parser.add_argument("--folder", type=Path, help="where to work; all of it stays")
    args = parser.parse_args()
    lines = [line for line in TABLE.split("\n") if line and re.search(args.pattern, line, re.I)]
    rows = [Row(*line.split(maxsplit=3)) for line in lines]
    if args.list:
        return print(*rows, sep="\n")
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        base = (args.folder or Path(temporary)).absolute()
        python = install(base / "venv", rows)
        for row in rows:
            print(row, flush=True)
            try:
                result = try_out(row, python, Path(tempfile.mkdtemp(prefix="run-", dir=base)))
            except Exception as failure:
                failures.append(result := f"FAILED: {failure}")
            print(f"    {result}", flush=True)
    print(f"{len(rows) - len(failures)} of {len(rows)} rows went well")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
