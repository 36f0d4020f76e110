"""Draw the learning curves in this folder from the runs' episodes.csv.

    python results/plot.py

A run's curve is the mean of its last 100 games on Atari, and wherever a run has thousands of them,
of its last 20 elsewhere; it begins when a fifth of them have been played. Of two seeds the second
is dashed; of three or more, each is a thin line, and the thick one is their mean. Needs matplotlib.
"""

import csv
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
LABELS = {
    "acer_atari": "ACER",
    "a3c_recurrent_atari": "A3C, LSTM",
    "acer_continuous": "ACER",
    "a3c_continuous": "A3C",
}
PARTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
GREY = dict.fromkeys(PARTS, "#797979")  # reads on light and on dark pages
COLOURS = {"acer": "#1f77b4", "a3c": "#ff7f0e"}
AXES = {"step": (1e6, "million agent steps"), "seconds": (3600, "hours")}  # divisor, label
OVERVIEW = ["pong", "breakout", "HalfCheetah-v5"]
ABLATION_STEPS = 800_000
REPLAY = {  # a setting: its colour, and the files of its seeds
    "4 replays a segment": ("#1f77b4", "curves/acer_atari_pong_seed[12].csv"),
    "4, no trust region": ("#9467bd", "ablation/no_trust_region_seed*.csv"),
    "1 replay": ("#2ca02c", "ablation/replay_ratio_1_seed*.csv"),
    "no replay": ("#d62728", "ablation/replay_ratio_0_seed*.csv"),
    "A3C, LSTM": ("#ff7f0e", "ablation/a3c_beta2_of_0.999_seed*.csv"),
}
BRIGHTNESS = {
    "median subtracted": ("#1f77b4", "curves/acer_atari_pong_seed[12].csv"),
    "mean subtracted": ("#17becf", "ablation/mean_subtracted_seed*.csv"),
    "kept": ("#8c564b", "ablation/brightness_kept_seed*.csv"),
}
RACE = {  # one after the other on one machine
    "ACER": ("#1f77b4", "curves/acer_atari_pong_seed3.csv"),
    "PPO, Stable-Baselines3": ("#2ca02c", "race/sb3_ppo_pong_seed3.csv"),
    "A2C, Stable-Baselines3": ("#d62728", "race/sb3_a2c_pong_seed3.csv"),
}
ABLATION = [  # a panel's title, its axis, its settings
    ("Pong: replay and trust region", "step", REPLAY),
    ("the same by the clock", "seconds", REPLAY),
    ("Pong: brightness of the ground", "step", BRIGHTNESS),
]


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a run's games, in the order of their steps."""
    with open(path) as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["step"]))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def running_mean(values: np.ndarray, games: int) -> np.ndarray:
    """Average each value with those before it, `games` in all."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - games)
    return (sums[last] - sums[first]) / (last - first)


class Panel(NamedTuple):
    """One diagram of a picture."""

    title: str
    settings: dict[str, tuple]  # a name in the legend: the colour, and the runs of its seeds
    games: int  # in a curve's running mean
    x: str  # columns of episodes.csv
    y: str


def draw_runs(axes, curves: list[tuple], name: str, colour: str) -> None:
    """Draw the curves of one setting's seeds; of three or more thin, and their mean."""
    name = f"{name}, {len(curves)} seed{'s' * (len(curves) > 1)}"
    few = len(curves) < 3
    for i, (at, mean) in enumerate(curves):
        width, alpha = (1.8, 1.0) if few else (0.8, 0.7)
        label = name if few and i == 0 else None
        dashes = "--" if few and i == 1 else "-"
        axes.plot(at, mean, dashes, color=colour, lw=width, alpha=alpha, label=label)
    if not few:
        first, last = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
        grid = np.linspace(first, last, 500)
        mean = np.mean([np.interp(grid, at, curve) for at, curve in curves], axis=0)
        axes.plot(grid, mean, color=colour, lw=2.2, label=name)


def draw(path: Path, panels: list[Panel], columns: int) -> None:
    """Draw a picture on a transparent ground."""
    rows = math.ceil(len(panels) / columns)
    many = any(len(panel.settings) > 3 for panel in panels)  # their legend would cover curves
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)} if many else {}
    width, height = 12 if columns == 3 else 10, 4.4 if many else 3.3
    size = (7, 3.6) if len(panels) == 1 else (width, height * rows)
    with mpl.rc_context(GREY):
        figure, grid = plt.subplots(rows, columns, figsize=size, dpi=130, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            (divisor, label), games = AXES[panel.x], panel.games
            for name, (colour, runs) in panel.settings.items():
                begin = games // 5
                curves = [
                    (run[panel.x][begin:] / divisor, running_mean(run[panel.y], games)[begin:])
                    for run in runs
                ]
                draw_runs(axes, curves, name, colour)
            axes.set_title(panel.title, fontsize=10)
            axes.set_xlabel(label)
            axes.set_ylabel(f"{panel.y}, mean of {games} games")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=9, **below)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.tight_layout()
        figure.savefig(path, transparent=True)
        plt.close(figure)


def games_panel(game: str, runs: dict[str, list], y: str = "return") -> Panel:
    """Show both scripts on a game, by the step."""
    scripts = sorted(runs, reverse=True)  # ACER first
    settings = {LABELS[s]: (COLOURS[s.partition("_")[0]], runs[s]) for s in scripts}
    atari = any("atari" in script for script in runs)
    title = game.replace("_", " ").title() if atari else game
    many = max(len(run["step"]) for seeds in runs.values() for run in seeds) > 3_000
    return Panel(title, settings, 100 if atari or many else 20, "step", y)


def race_panel() -> Panel:
    """Show ACER beside other libraries by the clock."""
    runs = {name: (colour, [read(HERE / file)]) for name, (colour, file) in RACE.items()}
    return Panel("Pong on two cores, by the clock", runs, 100, "seconds", "return")


def draw_games() -> None:
    """Draw every game's curves, and some of them side by side."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(HERE.glob("curves/*.csv")):
        script, game = re.fullmatch(
            r"(a\w+?_(?:atari|continuous))_(.+)_seed\d+", path.stem
        ).groups()
        found[game][script].append(read(path))
    for game, runs in found.items():
        panels = [games_panel(game, runs)] + [race_panel()] * (game == "pong")
        draw(HERE / f"{game}_return.png", panels, len(panels))
        if any(np.ptp(run["length"]) for seeds in runs.values() for run in seeds):
            draw(HERE / f"{game}_length.png", [games_panel(game, runs, "length")], 1)
    overview = [games_panel(game, found[game]) for game in OVERVIEW]
    draw(HERE / "overview.png", overview, len(overview))


def draw_ablation() -> None:
    """Draw what replay, the trust region and the brightness do on Pong."""
    panels = []
    for title, x, files in ABLATION:
        settings = {}
        for name, (colour, pattern) in files.items():
            runs = [read(path) for path in sorted(HERE.glob(pattern))]
            runs = [{k: v[run["step"] <= ABLATION_STEPS] for k, v in run.items()} for run in runs]
            settings[name] = colour, runs
        panels.append(Panel(title, settings, 100, x, "return"))
    draw(HERE / "ablation.png", panels, len(panels))


if __name__ == "__main__":
    draw_games()
    draw_ablation()
