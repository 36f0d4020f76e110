"""Each script, through `train` with two spawned workers, learns a task well above chance."""

import csv

import numpy as np

import acer_atari


def last_returns(run_dir, count: int) -> list[float]:
    with open(run_dir / "episodes.csv") as file:
        return [float(row["return"]) for row in csv.DictReader(file)][-count:]


def test_acer_atari_learns_a_reward_that_comes_later_than_a_segment_is_long(tmp_path):
    """The decision is paid for six steps later, segments are five steps long.

    So the reward reaches the decision through the bootstrap value alone. Chance is a mean of 0;
    with 80 games its standard error is 0.11, and 0.6 lies five of them above it.
    """
    argv = (
        "--env-id toys:DelayedCue-v0 --seed 1 --num-workers 2 --total-timesteps 1600 --num-steps 5 "
        "--learning-rate 3e-4 --replay-start 100 --replay-size 1600 --log-interval 60"
    )
    args = acer_atari.parse_args([*argv.split(), "--run-dir", str(tmp_path / "run")])
    run_dir = acer_atari.train(args)
    assert np.mean(last_returns(run_dir, 80)) > 0.6
