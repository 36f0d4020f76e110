"""Each script, through `train` with two spawned workers, learns a task well above chance.

The decision is paid for six steps later, segments are five steps long: so the reward reaches the
decision through the bootstrap value alone. Chance is a mean of 0; with 80 games its standard error
is 0.11, and 0.6 lies five of them above it.
"""

import csv

import numpy as np
import pytest
from harness import module, toy

FLAGS = {
    # Replays from step 100 on, at an entropy of 0.01: 2 of 20 runs froze on one action.
    "acer_atari": "--total-timesteps 1600 --learning-rate 3e-4 --replay-start 400 "
    "--replay-size 1600 --ent-coef 0.03",
    "a3c_recurrent_atari": "--total-timesteps 4000 --learning-rate 1e-3",
    "acer_continuous": "--total-timesteps 2000 --learning-rate 1e-3 --replay-start 100 "
    "--replay-size 2000 --reward-scale 1",
    "a3c_continuous": "--total-timesteps 6000 --learning-rate 1e-3 --reward-scale 1",
}


def last_returns(run_dir, count: int) -> list[float]:
    with open(run_dir / "episodes.csv") as file:
        return [float(row["return"]) for row in csv.DictReader(file)][-count:]


@pytest.mark.parametrize("name", FLAGS)
def test_a_reward_that_comes_later_than_a_segment_is_long_is_learned(name, tmp_path):
    script = module(name)
    flags = f"--env-id {toy(name)} --seed 1 --num-workers 2 --num-steps 5 --log-interval 5"
    argv = [*flags.split(), *FLAGS[name].split(), "--run-dir", str(tmp_path / "run")]
    run_dir = script.train(script.parse_args(argv))
    assert np.mean(last_returns(run_dir, 80)) > 0.6
