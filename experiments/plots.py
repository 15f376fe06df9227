"""How every plot of this project looks: large enough letters for a phone, colours that print apart, and the same bytes from
the same numbers (no date, no version, no font from outside in the file)."""
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")   # Okabe and Ito 2008
MARKERS = "osD^vPX*<hp"
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


# ---------------------------------------------------------------- the figures of the report

def series(axis, xs: list, values: list[list[float]], label: str, index: int, line: str = "-") -> None:
    """Mean and standard deviation over the seeds at every x."""
    means = [statistics.mean(found) for found in values]
    errors = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in values]
    axis.errorbar(xs, means, errors, label=label, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                  linestyle=line)


def score_against_parameters(rows: dict[str, tuple[int, list[float]]], score: str, lines: dict[str, float], title: str,
                             path: Path) -> None:
    """rows: method -> trained parameters and its scores; lines: name -> a score drawn across."""
    figure, (axis,) = new_figure(height=5.4)
    axis.set_title(title)
    for index, (label, (count, values)) in enumerate(rows.items()):
        series(axis, [count], [values], label, index, line="none")
    level_lines(axis, lines)
    axis.set_xscale("log")
    axis.set_xlabel("trained parameters (number, task head apart)")
    axis.set_ylabel(score)
    figure.legend(loc="outside lower center", ncols=3)
    save_figure(figure, path)


def level_lines(axis, lines: dict[str, float]) -> None:
    for index, (label, value) in enumerate(lines.items()):
        axis.axhline(value, label=label, color="#555555", linestyle=("--", ":", "-.")[index % 3], linewidth=1.5)


def score_against(values: dict[str, list[float]], xs: list[float] | None, score: str, x_label: str, lines: dict[str, float],
                  title: str, path: Path, base: int = 10) -> None:
    """One point per row: over a logarithmic axis if xs are numbers, else over the rows' names."""
    figure, (axis,) = new_figure(width=max(6.4, 0.75 * len(values)), height=4.8)
    axis.set_title(title)
    series(axis, xs or list(range(len(values))), list(values.values()), "mean ± standard deviation over the seeds", 0,
           "-" if xs else "none")
    level_lines(axis, lines)
    if xs:
        axis.set_xscale("log", base=base)
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.minorticks_off()
    else:
        axis.set_xticks(range(len(values)), list(values))
        axis.margins(x=0.1)
    axis.set_xlabel(x_label)
    axis.set_ylabel(score)
    figure.legend(loc="outside lower center")
    save_figure(figure, path)


def learning_curves(curves: dict[str, list[list[tuple[int, float]]]], loss: str, title: str, path: Path) -> None:
    """Method -> (step, training loss) of every seed's log: the mean over the seeds, smoothed over five logged steps."""
    figure, (axis,) = new_figure(height=5.4)
    axis.set_title(title)
    for index, (label, runs) in enumerate(curves.items()):
        by_step = zip(*runs, strict=False)                                   # equal steps; a shorter log ends the curve
        points = [(entries[0][0], statistics.mean(value for _, value in entries)) for entries in by_step]
        smooth = [statistics.mean(value for _, value in points[max(0, at - 4):at + 1]) for at in range(len(points))]
        axis.plot([step for step, _ in points], smooth, label=label, color=COLOURS[index % len(COLOURS)],
                  linestyle=("-", "--", ":", "-.")[index % 2 + 2 * (index >= len(COLOURS))])
    axis.set_xlabel("training step (updates)")
    axis.set_ylabel(f"loss ({loss}), mean of the seeds")
    figure.legend(loc="outside lower center", ncols=3)
    save_figure(figure, path)


def heat_maps(phi: dict[str, list[list[float]]], ranks: list[int], path: Path) -> None:
    """Similarity of subspaces (subspace.py), one map per target and one of random matrices; ranks count from 1."""
    figure, axes = new_figure(columns=len(phi), width=3.1 * len(phi), height=3.6)
    for axis, (name, values) in zip(axes, phi.items(), strict=True):
        rows, columns = len(values), len(values[0])
        image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto",
                            extent=(0.5, columns + 0.5, 0.5, rows + 0.5))
        axis.grid(False)
        axis.set_title("random matrices" if name == "random" else f"target {name}")
        axis.set_xlabel(f"top j directions, r = {ranks[1]}")
    axes[0].set_ylabel(f"top i directions, r = {ranks[0]}")
    figure.colorbar(image, ax=axes, label="similarity φ (no unit)")
    save_figure(figure, path)
