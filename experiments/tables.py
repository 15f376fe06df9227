"""From the runs of an experiment to a table: mean ± standard deviation and median over the seeds, of the last epoch and of
the best one, and the checks that refuse to put side by side what does not compare.

A plan (experiments/sweep.py) names the rows of an experiment, each with the folder of its runs and its seeds; kept_runs.py
reads them. Scores are in percent but for NIST, CIDEr and losses. "Best" is the epoch of the highest score on the development
set (for E2E: of the lowest loss on the validation set), "last" the last one; both are read from the scores that every run
keeps per epoch. E2E text is decoded once, after training, for the epoch that the run chose. A brief table, for a page, leaves
out what the terminal shows: medians and the last epoch.
"""
import re
import statistics
import textwrap

from data import GLUE_TASKS
from experiments.kept_runs import places, runs_of

TEXT_SCORES = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
AVERAGE = "mean"                                                            # the task and the score of glue_report.averaged
MEBIBYTE = 2 ** 20
AS_IT_IS = ("NIST", "CIDEr", "loss")                                         # all other scores are shown in percent
# what an experiment varies on purpose; everything else must be the same in all of its rows
VARIES = {"base-quality": ("base",), "low-data": ("training data",), "glue-small-bases": ("base",),
          "glue-small-data": ("training data",), "e2e-small": ("frozen weights",)}


# ---------------------------------------------------------------- what compares

def identity(metrics: dict) -> dict[str, str]:
    """What has to be the same for two runs to compare; empty where a run does not have it."""
    config = metrics["config"]                                               # an evaluation of the base has an empty one
    beams = f"beam {config['beam_size']}, length penalty {config['length_penalty']}" if "beam_size" in config else ""
    data = metrics["data_fingerprints"]
    first_rate = f"{config.get('warmup_from', 0)} parts of the warm-up" if config else ""            # 0 before it was a setting
    return {"task": metrics["task"], "base": metrics["base_fingerprint"], "test data": data["evaluated"],
            "training data": data["train"], "reference text": metrics["scores"].get("reference_text", ""), "decoding": beams,
            "first learning rate": first_rate, "frozen weights": metrics.get("frozen_in", "")}


def check_comparable(plan: dict, runs: dict[str, list[dict]]) -> None:
    """Raises ValueError where two runs of a table differ in data, base, format of the frozen weights, test text or decoding.
    What the experiment varies on purpose may differ from row to row, but not within a row."""
    varied = VARIES.get(plan["experiment"], ())
    seen = {}                                                                # (what, row or all rows) -> value and its run
    for label, found in runs.items():
        for metrics in found:
            for name, value in identity(metrics).items():
                first, place = seen.setdefault((name, label if name in varied else None), (value, metrics["place"]))
                if not first:
                    seen[name, label if name in varied else None] = value, metrics["place"]
                elif value and value != first:
                    raise ValueError(f"{metrics['place']}: its {name} is {value}, but {first} in {place}: runs that do not "
                                     f"compare stand in row '{label}' of {plan['experiment']} on {plan['setting']}; make one "
                                     "of them anew, or take it out")


# ---------------------------------------------------------------- numbers

def main_metric(task: str) -> str:
    return {"e2e": "loss", AVERAGE: AVERAGE}.get(task) or GLUE_TASKS[task].metrics[0]


def primary_score(metrics: dict) -> tuple[str, float]:
    """The score by which runs of this task are ranked: BLEU, or the paper's GLUE score."""
    name = "BLEU" if metrics["task"] == "e2e" else main_metric(metrics["task"])
    return name, metrics["scores"][name]


def ranking(found: list[dict]) -> tuple[str, list[float]]:
    """The score that rows are ranked by and its value for every seed: BLEU, or the task's score at the best epoch, or at the
    last one of runs that were to be scored there."""
    name, _ = primary_score(found[0])
    chosen = found[0]["task"] == "e2e" or found[0].get("chosen_by") == "the last epoch"
    return name, values_of(found, name, "chosen" if chosen else "best")


def deviation(values: list[float]) -> float:
    """The standard deviation of a sample; one value has none, which counts as 0."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def level_with(one: list[float], other: list[float]) -> bool:
    """Whether the first mean is not below the second by more than both standard deviations together."""
    return statistics.mean(one) >= statistics.mean(other) - (deviation(one) + deviation(other))


def shown_factor(name: str) -> int:
    return 1 if name in AS_IT_IS else 100


def digits_of(name: str) -> int:
    return 1 if shown_factor(name) == 100 else 3 if name == "loss" else 2


def values_of(found: list[dict], name: str, epoch: str = "chosen") -> list[float]:
    """A score of every run, as it is shown; epoch: "chosen" by the run, "last", or "best" by the task's main metric."""
    factor, values = shown_factor(name), []
    for metrics in found:
        trained, by = metrics.get("epochs", [])[1:], main_metric(metrics["task"])
        if epoch == "chosen" or not trained:
            values.append(factor * metrics["scores"][name])
        elif epoch == "last":
            values.append(factor * trained[-1][name])
        else:
            best = min(trained, key=lambda entry: (entry[by] if by == "loss" else -entry[by], entry["epoch"]))
            values.append(factor * best[name])
    return values


def spread(values: list[float], digits: int = 1) -> str:
    """"mean ± standard deviation", the latter of a sample; a dash for no value."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {deviation(values):.{digits}f}" if len(values) > 1 else "")


def median(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "–"


def trained_count(found: list[dict]) -> str:
    """The trained parameters and their share; one count for all seeds, or each of those that differ."""
    counts = dict.fromkeys((metrics.get("trainable_parameters", 0), metrics.get("total_parameters", 0)) for metrics in found)
    return " / ".join(f"{trained:,} ({trained / total:.2%})" if trained else "0" for trained, total in counts) or "–"


# ---------------------------------------------------------------- tables

def wrapped(text: str) -> list[str]:
    """Lines of at most 126 characters; a command in backticks stays on one."""
    whole = re.sub(r"`[^`]+`", lambda command: command[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in textwrap.wrap(whole, 126, break_long_words=False, break_on_hyphens=False)]


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def text_table(runs: dict[str, list[dict]], brief: str = "") -> list[str]:
    """In the shape of Table 3, with BLEU's median; then the loss on the validation set at the last and the best epoch, and
    the share of a toy record's values that stand in its text, where that was measured. A brief table has the name `brief`."""
    with_share = any("value_share" in metrics for found in runs.values() for metrics in found)
    epochs = ("best",) if brief else ("last", "best")
    header = [brief, "trained", "BLEU", *["median"] * (not brief), "NIST", "MET", "ROUGE-L", "CIDEr",
              *(f"loss, {epoch} epoch" for epoch in epochs), "seeds"]
    rows = []
    for label, found in runs.items():
        cells = [spread(values_of(found, name), digits_of(name)) for name in TEXT_SCORES]
        if not brief:
            cells.insert(1, median(values_of(found, "BLEU")))
        cells += [spread(values_of(found, "loss", epoch), 3) for epoch in epochs]
        cells.append(str(len(found)))
        if with_share:
            cells.append(spread([100 * metrics["value_share"] for metrics in found if "value_share" in metrics]))
        rows.append([label, trained_count(found), *cells])
    return markdown(header + ["values in the text"] * with_share, rows)


def pair_scores(task: str) -> list[str]:
    return [*GLUE_TASKS[task].metrics] + ["accuracy_mismatched"] * (task == "mnli")


def pairs_table(runs: dict[str, list[dict]], task: str) -> list[str]:
    """The task's scores, of the last epoch and of the best: mean ± standard deviation, and the median."""
    names = pair_scores(task)
    header = ["", "trained, head apart"]
    for name in names:
        header += [f"{name}, best epoch", "median", f"{name}, last epoch", "median"]
    rows = []
    for label, found in runs.items():
        cells = [shown for name in names for epoch in ("best", "last") for shown in (
            spread(values_of(found, name, epoch)), median(values_of(found, name, epoch)))]
        rows.append([label, trained_count(found), *cells, str(len(found))])
    return markdown([*header, "seeds"], rows)


def pairs_side_by_side(settings: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Setting -> its runs, one after the other in one table, at the best epoch; a row per method."""
    header, rows = [""], {label: [label] for runs in settings.values() for label in runs}
    for setting, runs in settings.items():
        task = next(found[0]["task"] for found in runs.values() if found)
        header += [f"{setting}: trained, head apart", *pair_scores(task), "seeds"]
        for label, row in rows.items():
            found = runs.get(label, [])
            row += [trained_count(found), *(spread(values_of(found, name, "best")) for name in pair_scores(task)),
                    str(len(found))]
    return markdown(header, list(rows.values()))


def single_seeds(settings: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Setting -> runs of one seed each: a row per setting and a column per method, with the ranking score alone."""
    labels = list(dict.fromkeys(label for runs in settings.values() for label in runs))
    rows = []
    for setting, runs in settings.items():
        name, _ = ranking(next(found for found in runs.values() if found))
        rows.append([f"{setting}, {name}", *(spread(ranking(runs[label])[1] if runs.get(label) else []) for label in labels)])
    return markdown(["one seed each", *labels], rows)


def cost_table(runs: dict[str, list[dict]]) -> list[str]:
    """Parameters, bytes, memory and speed of training, each also as a share of full fine-tuning's in the same settings."""
    full = runs.get("full") or []
    parts = ("weights", "gradients", "optimizer", "activations")

    def mean(found: list[dict], value) -> float:
        return statistics.mean(value(metrics) for metrics in found)

    def of_full(found: list[dict], value) -> str:
        return f"{mean(found, value) / mean(full, value):.0%}" if full else "–"

    rows = []
    for label, found in runs.items():
        if found and "memory_parts_bytes" in found[0]:
            sizes = [f"{mean(found, lambda m, part=part: m['memory_parts_bytes'][part]) / MEBIBYTE:.2f}" for part in parts]
            rows.append([label, trained_count(found), f"{mean(found, lambda m: m['adapter_bytes']) / 1024:,.0f} KiB", *sizes,
                         of_full(found, lambda m: sum(m["memory_parts_bytes"].values())),
                         f"{mean(found, lambda m: m['peak_memory_bytes']) / MEBIBYTE:,.0f}",
                         f"{spread([m['seconds'] for m in found])} s", spread([m["tokens_per_second"] for m in found], 0),
                         of_full(found, lambda m: m["tokens_per_second"])])
    return markdown(["", "trained", "adapter", *(f"{part}, MiB" for part in parts), "these four, of full's",
                     "peak, MiB", "training", "tokens/s", "of full's"], rows)


# ---------------------------------------------------------------- what a table does not say by itself

def not_above_the_base(runs: dict[str, list[dict]]) -> list[str]:
    """Rows that do not come out above the frozen base, where the table has one."""
    means = {label: statistics.mean(primary_score(metrics)[1] for metrics in found) for label, found in runs.items() if found}
    base = next((label for label in means if label.startswith("frozen base")), None)
    return [label for label in means if base and label != base and means[label] <= means[base]]


def missing(plan: dict, runs: dict[str, list[dict]]) -> list[str]:
    """A line for every row whose seeds have not all ended."""
    wanted = {row["label"]: len(places(plan, row)) for row in plan["rows"]}
    return [f"failed or not run: {label}, {count - len(runs[label])} of {count} seeds" for label, count in wanted.items()
            if len(runs[label]) < count]


def plan_tables(plan: dict, kept: dict[str, dict]) -> list[str]:
    """The table of an experiment on a setting, with warnings; raises ValueError for runs that do not compare."""
    runs = runs_of(plan, kept)
    check_comparable(plan, runs)
    found = [metrics for row in runs.values() for metrics in row]
    lines = [f"**{plan['experiment']}**, {plan['setting']}, seeds {' '.join(map(str, plan['seeds']))}", ""]
    if not found:
        return [*lines, "no run of this experiment has ended"]
    task = found[0]["task"]
    lines += text_table(runs) if task == "e2e" else pairs_table(runs, task)
    lines += [f"\n{line}" for line in missing(plan, runs)]
    return lines + [f"\nwarning: not above the frozen base: {label}" for label in not_above_the_base(runs)]
