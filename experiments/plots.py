"""How every plot of this project looks: one colour per method in all of them, letters that can be read on a phone, and the
same bytes from the same numbers (no date, no version, no font from outside in the file). A plot shows what was measured and
nothing else; where several settings are shown, each has a panel of its own and all share one legend.
"""
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

# Okabe and Ito 2008, which are told apart by the colour-blind too, and one wine red
LORA, BASE = "#0072b2", "#555555"
METHODS = {                                                                  # a row's colour and marker in every figure
    "LoRA": (LORA, "o"), "full": ("#d55e00", "s"), "last two layers": ("#e69f00", "D"), "BitFit": ("#009e73", "^"),
    "adapter-h": ("#cc79a7", "v"), "adapter-l": ("#882255", "P"), "prefix": ("#56b4e9", "X"), "frozen base": (BASE, "_"),
}
VARIANTS = {"LoRA, r = 1": "<", "LoRA, r = 16": ">", "LoRA, all six": "*"}   # markers; the colour is the method's
CURVES = {"LoRA, r = 1": ":", "LoRA, r = 16": "-.", "LoRA, all six": "--"}   # lines, where there are no markers
# ways to serve a batch (bench_mixed.py): ours is LoRA's colour
WAYS = {"merged": ("merged weights, one task", BASE, "_"), "single": ("one adapter, not merged", "#e69f00", "D"),
        "mixed": ("mixed, ours", LORA, "o"), "peft": ("mixed, PEFT", "#d55e00", "s"),
        "per task": ("one batch per task", "#009e73", "^")}
STYLE = {"font.family": "DejaVu Sans", "font.size": 12, "axes.titlesize": 12.5, "axes.labelsize": 12, "legend.fontsize": 12,
         "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "lines.markersize": 8, "errorbar.capsize": 4,
         "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "plots"}


def look_of(label: str) -> tuple[str, str]:
    """Colour and marker of a table's row: those of its method; a row that names none is a variant of LoRA."""
    colour, marker = next((look for name, look in METHODS.items() if label.startswith(name)), METHODS["LoRA"])
    return colour, VARIANTS.get(label, marker)


def new_figure(columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 4.4, **shared) -> tuple[Figure, list]:
    """A figure with rows x columns plots, each `width` x `height` inches; returns it and the list of its axes."""
    pyplot.rcdefaults()
    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), layout="constrained",
                                   squeeze=False, **shared)
    return figure, list(axes.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG of 120 dots per inch that depends on the figure alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def panels(count: int, width: float = 5.2, height: float = 3.9, **shared) -> tuple[Figure, list]:
    """A figure with `count` plots, two or three in a row."""
    columns = min(count, 2 if count <= 4 else 3)
    figure, axes = new_figure(columns, -(-count // columns), width, height, **shared)
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def one_legend(figure: Figure, axes: list, columns: int, order: Sequence[str] = ()) -> None:
    """Below all plots, every label once, in the order of METHODS or in that given."""
    handles = {label: handle for axis in reversed(axes)                      # as in the first plot that has it
               for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = list(METHODS)
    place = {label: next((names.index(name) for name in names if label.startswith(name)), 0) for label in handles}
    labels = [label for label in order if label in handles] or sorted(handles, key=lambda label: (place[label], label))
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def plain_ticks(axis, values: list[float], shown=str) -> None:
    """A mark at every value and at no other."""
    axis.set_ticks(values, [shown(value) for value in values])
    axis.set_ticks([], minor=True)


def growth_ticks(axis) -> None:
    """A logarithmic axis with numbers written out, more of them to a power of ten where there is only about one."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 6, 8)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_ticks([], minor=True)


# ---------------------------------------------------------------- the figures of the report

def deviations(values: list[list[float]]) -> list[float] | None:
    """The standard deviation at every x; not a number, which draws no bar, for a single value; None where all are single."""
    found = [statistics.stdev(of) if len(of) > 1 else math.nan for of in values]
    return None if all(map(math.isnan, found)) else found


def points(axis, xs: list, values: list[list[float]], label: str, line: str = "none") -> None:
    """Mean and standard deviation over the seeds at every x, in the colour of the row's method."""
    colour, marker = look_of(label)
    axis.errorbar(xs, [statistics.mean(found) for found in values], deviations(values), label=label, color=colour,
                  marker=marker, linestyle=line, zorder=3 if colour == LORA else 2)


def score_against_parameters(settings: list[dict], path: Path) -> None:
    """A panel per setting: {"title", "score", "rows": row -> trained parameters and scores, "base": the frozen base's}."""
    figure, axes = panels(len(settings))
    for axis, setting in zip(axes, settings, strict=True):
        axis.set_title(setting["title"])
        for label, (count, values) in setting["rows"].items():
            points(axis, [count], [values], label)
        if setting["base"] is not None:
            axis.axhline(setting["base"], label="frozen base", color=BASE, linestyle="--", linewidth=1.5)
        axis.set_xscale("log")
        axis.set_xlabel("trained parameters (number, head apart)")
        axis.set_ylabel(setting["score"])
    one_legend(figure, axes, 3 if len(axes) == 1 else 5)
    save_figure(figure, path)


def learning_curves(settings: list[dict], path: Path) -> None:
    """A panel per setting: {"title", "loss": its unit, "rows": row -> (samples seen, loss) of every seed's log}. The mean
    over the seeds, smoothed over five logged steps."""
    figure, axes = panels(len(settings))
    for axis, setting in zip(axes, settings, strict=True):
        axis.set_title(setting["title"])
        for label, runs in setting["rows"].items():
            by_step = zip(*runs, strict=False)                               # equal steps; a shorter log ends the curve
            mean = [(entries[0][0], statistics.mean(loss for _, loss in entries)) for entries in by_step]
            smooth = [statistics.mean(loss for _, loss in mean[max(0, at - 4):at + 1]) for at in range(len(mean))]
            axis.plot([samples for samples, _ in mean], smooth, color=look_of(label)[0], label=label,
                      linestyle=CURVES.get(label, "-"), zorder=3 if label == "LoRA" else 2)
        axis.set_xlabel("training samples seen (number)")
        axis.set_ylabel(f"training loss ({setting['loss']})")
    one_legend(figure, axes, 3 if len(axes) == 1 else 5)
    save_figure(figure, path)


def score_and_loss(settings: list[dict], path: Path) -> None:
    """A row of panels per setting, its score and its validation loss: {"title", "score", "loss": its unit, "x": the label
    below, "base" of a logarithmic axis or None, "rows": what varies -> scores, losses of every seed}. One method, LoRA."""
    figure, axes = new_figure(2, len(settings), 5.2, 3.9)
    for index, setting in enumerate(settings):
        names, base = list(setting["rows"]), setting["base"]
        xs = [float(name) for name in names] if base else list(range(len(names)))
        for axis, at, label in zip(axes[2 * index:], (0, 1), (setting["score"], f"validation loss ({setting['loss']})"),
                                   strict=False):
            axis.set_title(setting["title"])
            values = [found[at] for found in setting["rows"].values()]
            points(axis, xs, values, "LoRA, mean ± standard deviation", "-" if base else "none")
            if base:
                axis.set_xscale("log", base=base)
            axis.set_xticks([], minor=True)
            axis.set_xticks(xs, names, fontsize=12 if base else 10)
            if at and max(map(max, values)) > 5 * min(map(min, values)) > 0:
                axis.set_yscale("log")
                growth_ticks(axis.yaxis)
            axis.set_xlabel(setting["x"])
            axis.set_ylabel(label)
    one_legend(figure, axes, 1)
    save_figure(figure, path)


def looks_of(labels: list[str], given: dict[str, tuple[str, str, str]]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of every label: those given, its method's, or one that is left; full's and the base's are theirs
    alone."""
    looks = given | {label: (*look_of(label), "-") for label in labels if label not in given and (
        label.partition(",")[0] == "frozen base" or label in METHODS)}
    left = [(*look, "-") for name, look in METHODS.items() if name not in ("full", "frozen base")
            and look[0] not in {colour for colour, *_ in looks.values()}]
    return looks | dict(zip((label for label in labels if label not in looks), left, strict=False))


def lines_over(settings: list[dict], path: Path, given: dict[str, tuple[str, str, str]] | None = None,
               one_y: bool = False) -> None:
    """A panel per setting: {"title", "x" and "y": labels, "ticks": what is varied, numbers with "log": the base of their axis,
    or names; "log_y", if the other axis is one, too; "lines": label -> the values of every seed at each tick, none where
    nothing was run; "levels", if there are: label -> a height, a line across}. A line looks the same in every panel: as given,
    or as looks_of says. one_y: all panels have the same heights."""
    figure, axes = panels(len(settings), sharey=one_y)
    labels = list(dict.fromkeys(label for setting in settings for label in setting["lines"]))
    looks = looks_of(labels, given or {})
    for axis, setting in zip(axes, settings, strict=True):
        log, ticks = setting.get("log"), setting["ticks"]
        for label, values in setting["lines"].items():
            shift = 0.0 if log else 0.06 * (labels.index(label) - (len(labels) - 1) / 2)         # names: side by side
            shown = [(tick if log else at + shift, of) for at, (tick, of) in enumerate(zip(ticks, values, strict=True)) if of]
            if shown:
                xs, found = zip(*shown, strict=True)
                axis.errorbar(xs, [statistics.mean(of) for of in found], deviations(found), label=label, color=looks[label][0],
                              marker=looks[label][1], linestyle=looks[label][2] if log else "none")
        for (label, height), line in zip(setting.get("levels", {}).items(), (":", "--", "-."), strict=False):
            axis.axhline(height, label=label, color=BASE, linestyle=line, linewidth=1.5)
        if log:
            axis.set_xscale("log", base=log)
        plain_ticks(axis.xaxis, ticks if log else list(range(len(ticks))),
                    (lambda value: f"{value:,}") if log else (lambda at, names=ticks: names[at]))
        if not log:
            axis.set_xlim(-0.5, len(ticks) - 0.5)
        axis.set_title(setting["title"])
        axis.set_xlabel(setting["x"])
        if not one_y or axis.get_subplotspec().is_first_col():
            axis.set_ylabel(setting["y"])
    for axis, setting in zip(axes, settings, strict=True):                   # the heights of all are known
        if setting.get("log_y"):
            axis.set_yscale("log")
            growth_ticks(axis.yaxis)
    levels = dict.fromkeys(label for setting in settings for label in setting.get("levels", {}))
    one_legend(figure, axes, 3 if len(axes) > 1 else 2, [*labels, *levels])
    save_figure(figure, path)


def change_maps(maps: dict[str, dict], names: list[str], shown: list[str], path: Path, label: str) -> None:
    """A map per title: (row, column) -> a change, written into its field; a field without one stays empty. Rows and columns
    have the same names; shown: what stands below the columns."""
    figure, axes = new_figure(len(maps), 1, 4.6, 3.9)
    largest = max(abs(value) for of in maps.values() for value in of.values())
    for axis, (title, of) in zip(axes, maps.items(), strict=True):
        values = [[of.get((row, column), float("nan")) for column in names] for row in names]
        image = axis.imshow(values, vmin=-largest, vmax=largest, cmap="RdBu", aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:                                           # not nan
                    colour = "white" if abs(value) > largest / 2 else "black"
                    axis.text(x, y, f"{value:+.0f}", ha="center", va="center", color=colour)
        axis.grid(False)
        axis.set_title(title)
        axis.set_xticks(range(len(names)), shown)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("scored with its frozen head")
        axis.set_ylabel("learnt")
    figure.colorbar(image, ax=axes, label=label)
    save_figure(figure, path)


def heat_maps(comparisons: list[dict], path: Path, title: str = "") -> None:
    """Similarity of subspaces (subspace.compare): a row per comparison, a map per target and one of random matrices; the
    directions count from 1."""
    columns = max(len(found["phi"]) for found in comparisons) + 1
    figure, axes = new_figure(columns, len(comparisons), 3.3, 3.5)
    for row, found in enumerate(comparisons):
        maps = found["phi"] | {"random": found["random"]}
        for axis, (name, values) in zip(axes[row * columns:], maps.items(), strict=False):
            image = axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto",
                                extent=(0.5, len(values[0]) + 0.5, 0.5, len(values) + 0.5))
            axis.grid(False)
            axis.set_title("random matrices" if name == "random" else f"target {name}, block {found['layer']}")
            axis.set_xlabel(f"top j directions of\n{Path(found['adapters'][1]).name}")
        axes[row * columns].set_ylabel(f"top i directions of\n{Path(found['adapters'][0]).name}")
    figure.colorbar(image, ax=axes, label="similarity φ(i, j)")
    figure.suptitle(title, fontsize=13)
    save_figure(figure, path)
