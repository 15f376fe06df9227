"""How every plot of this project looks: large enough letters for a phone, colours that print apart, and the same bytes from
the same numbers (no date, no version, no font from outside in the file)."""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")   # Okabe and Ito 2008
MARKERS = "osD^vPX*"
STYLE = {"font.family": "DejaVu Sans", "font.size": 12, "axes.titlesize": 13, "axes.labelsize": 12, "legend.fontsize": 11,
         "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "lines.markersize": 8, "errorbar.capsize": 4,
         "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "plots"}


def new_figure(columns: int = 1, width: float = 6.4, height: float = 4.4) -> tuple[Figure, list]:
    """A figure with `columns` plots side by side, sizes in inches; returns it and the list of its axes."""
    pyplot.rcdefaults()
    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG of 120 dots per inch that depends on the figure alone."""
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
