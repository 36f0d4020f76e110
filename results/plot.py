"""Draw the learning curves in this folder from the runs' episodes.csv.

    python results/plot.py

A run's curve is the mean return of its last 100 games on Atari, of its last 20 episodes in control.
Thin lines are single seeds; with several of them, the thick one is their mean. Needs matplotlib.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path

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
GREY = dict.fromkeys(PARTS, "#808080")  # reads on light and on dark pages
COLOURS = {"acer": "#1f77b4", "a3c": "#ff7f0e"}


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


def draw(title: str, runs: dict[str, list], games: int, x: str, y: str, path: Path) -> None:
    """Draw all runs of a game, on a transparent ground."""
    divisor, label = {"step": (1e6, "million agent steps"), "seconds": (3600, "hours")}[x]
    with mpl.rc_context(GREY):
        figure, axes = plt.subplots(figsize=(7, 3.6), dpi=130)
        for script, seeds in runs.items():
            colour = COLOURS[script.partition("_")[0]]
            curves = [(run[x] / divisor, running_mean(run[y], games)) for run in seeds]
            count = f"{len(curves)} seed{'s' * (len(curves) > 1)}"
            name = f"{LABELS[script]}, {count}"
            for at, mean in curves:
                alone = len(curves) == 1
                width, alpha = (1.8, 1.0) if alone else (0.7, 0.5)
                axes.plot(at, mean, color=colour, lw=width, alpha=alpha, label=name * alone or None)
            if len(curves) > 1:
                first, last = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
                grid = np.linspace(first, last, 500)
                mean = np.mean([np.interp(grid, at, curve) for at, curve in curves], axis=0)
                axes.plot(grid, mean, color=colour, lw=2, label=name)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{y}, mean of {games} games")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path, transparent=True)
        plt.close(figure)


def main() -> None:
    """Draw every game's curves."""
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(HERE.glob("curves/*.csv")):
        script, game = re.fullmatch(
            r"(a\w+?_(?:atari|continuous))_(.+)_seed\d+", path.stem
        ).groups()
        found[game][script].append(read(path))
    for game, runs in found.items():
        atari = any("atari" in script for script in runs)
        title, games = (f"{game.capitalize()}, 2 workers", 100) if atari else (game, 20)
        draw(title, runs, games, "step", "return", HERE / f"{game}_return.png")
        if atari:
            draw(title, runs, games, "step", "length", HERE / f"{game}_length.png")
            draw(title, runs, games, "seconds", "return", HERE / f"{game}_hours.png")


if __name__ == "__main__":
    main()
