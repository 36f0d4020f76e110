"""Draw the learning curves in this folder from the runs' episodes.csv.

    python results/plot.py

A run's curve is the mean return of its last 100 games. Needs matplotlib.
"""

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
GAMES = 100
LABELS = {"acer_atari": "ACER", "a3c_recurrent_atari": "A3C, LSTM"}
PARTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
GREY = dict.fromkeys(PARTS, "#808080")  # reads on light and on dark pages
COLOURS = {"acer_atari": "#1f77b4", "a3c_recurrent_atari": "#ff7f0e"}


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a run's games, in the order of their steps."""
    with open(path) as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["step"]))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def running_mean(values: np.ndarray) -> np.ndarray:
    """Average each value with up to 99 before it."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - GAMES)
    return (sums[last] - sums[first]) / (last - first)


def draw(game: str, x: str, divisor: float, x_label: str, y: str, path: Path) -> None:
    """Draw all runs of a game, on a transparent ground."""
    with mpl.rc_context(GREY):
        figure, axes = plt.subplots(figsize=(7, 3.6), dpi=130)
        labelled = set()
        for source in sorted((HERE / "curves").glob(f"*_{game}_seed*.csv")):
            script, seed = source.stem.split(f"_{game}_seed")
            games = read(source)
            label = None if script in labelled else LABELS[script]
            labelled.add(script)
            mean = running_mean(games[y])
            axes.plot(games[x] / divisor, mean, color=COLOURS[script], label=label, lw=1.8)
            axes.annotate(f"seed {seed}", (games[x][-1] / divisor, mean[-1]), fontsize=7)
        axes.set_xlabel(x_label)
        axes.set_ylabel(f"{y}, mean of {GAMES} games")
        axes.set_title(f"{game.capitalize()}, 2 workers on 2 processors", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path, transparent=True)
        plt.close(figure)


def main() -> None:
    """Draw every game's curves."""
    games = {path.stem.rsplit("_seed")[0].rsplit("_")[-1] for path in HERE.glob("curves/*.csv")}
    for game in sorted(games):
        draw(game, "step", 1e6, "million agent steps", "return", HERE / f"{game}_return.png")
        draw(game, "step", 1e6, "million agent steps", "length", HERE / f"{game}_length.png")
        draw(game, "seconds", 3600, "hours", "return", HERE / f"{game}_hours.png")


if __name__ == "__main__":
    main()
