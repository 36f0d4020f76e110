# SPDX-License-Identifier: MIT
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0",
#     "ale-py==0.12.1", "numpy==2.4.6", "opencv-python==5.0.0.93"]
# ///
"""Train another library's algorithm on an Atari game, for a race by the clock.

    python results/peers.py ppo --minutes 36 --seed 3 --output results/race/sb3_ppo_pong_seed3.csv

PPO and A2C of Stable-Baselines3 with the settings of its zoo for Atari, for 10 M steps; see
https://github.com/DLR-RM/rl-baselines3-zoo/tree/master/hyperparams. Every finished game becomes a
line: step, seconds since the program's start, return, length. It needs what its first lines name,
not this project.
"""

import time

BEGAN = time.monotonic()  # before what takes seconds to import: a user waits for it, too

import argparse  # noqa: E402
from pathlib import Path  # noqa: E402

import ale_py  # noqa: E402
import gymnasium as gym  # noqa: E402
from stable_baselines3 import A2C, PPO  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.env_util import make_atari_env  # noqa: E402
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike  # noqa: E402
from stable_baselines3.common.vec_env import VecFrameStack  # noqa: E402

STEPS = 10_000_000  # that the zoo's linear schedules are made for
ENVIRONMENTS = {"ppo": 8, "a2c": 16}


def make_model(algorithm: str, env: VecFrameStack, seed: int) -> PPO | A2C:
    """Make the algorithm with the zoo's settings for Atari."""
    if algorithm == "ppo":
        schedules = {
            "learning_rate": lambda remaining: 2.5e-4 * remaining,
            "clip_range": lambda remaining: 0.1 * remaining,
        }
        sizes = {"n_steps": 128, "n_epochs": 4, "batch_size": 256}
        return PPO(
            "CnnPolicy",
            env,
            vf_coef=0.5,
            ent_coef=0.01,
            seed=seed,
            device="cpu",
            **schedules,
            **sizes,
        )
    optimizer = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    return A2C(
        "CnnPolicy",
        env,
        vf_coef=0.25,
        ent_coef=0.01,
        policy_kwargs=optimizer,
        seed=seed,
        device="cpu",
    )


class Games(BaseCallback):
    """Write a line for each finished game, and end the training in time."""

    def __init__(self, path: Path, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.csv = open(path, "w", buffering=1)  # noqa: SIM115 (open as long as the program)
        self.csv.write("step,seconds,return,length\n")

    def _on_step(self) -> bool:
        seconds = time.monotonic() - BEGAN
        for game in (info["episode"] for info in self.locals["infos"] if "episode" in info):
            self.csv.write(f"{self.num_timesteps},{seconds:.1f},{game['r']:g},{game['l']}\n")
        return seconds < self.seconds


def main() -> None:
    """Train for the time given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("algorithm", choices=ENVIRONMENTS)
    parser.add_argument("--env-id", default="PongNoFrameskip-v4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    gym.register_envs(ale_py)
    # All in one process, as in the zoo: on two cores a process each was slower (165 steps a second
    # instead of 215 with PPO, 196 instead of 414 with A2C).
    env = VecFrameStack(make_atari_env(args.env_id, ENVIRONMENTS[args.algorithm], args.seed), 4)
    model = make_model(args.algorithm, env, args.seed)
    model.learn(STEPS, Games(args.output, 60 * args.minutes))
    steps, seconds = model.num_timesteps, time.monotonic() - BEGAN
    print(f"{steps:,} steps in {seconds:.0f} s: {steps / seconds:.0f} steps/s")
    env.close()


if __name__ == "__main__":
    main()
