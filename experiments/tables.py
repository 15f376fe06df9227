"""From the runs of an experiment to a table: mean ± standard deviation and median over the seeds, of the last epoch and of
the best one, and the checks that refuse to put side by side what does not compare.

A plan (experiments/sweep.py) names the rows of an experiment, each with the folder of its runs and its seeds. Scores are in
percent but for NIST, CIDEr and losses. "Best" is the epoch of the highest score on the development set (for E2E: of the
lowest loss on the validation set), "last" the last one; both are read from the scores that every run keeps per epoch. E2E
text is decoded once, after training, for the epoch that the run chose.
"""
import statistics
from pathlib import Path

from data import GLUE_TASKS
from files.text import read_json

TEXT_SCORES = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
AS_IT_IS = ("NIST", "CIDEr", "loss")                                         # all other scores are shown in percent
# what an experiment varies on purpose; everything else must be the same in all of its rows
VARIES = {"base-quality": ("base",), "low-data": ("training data",)}


# ---------------------------------------------------------------- reading runs

def is_single(row: dict) -> bool:
    """Whether a row has one run and no seeds: an evaluation of the base."""
    return "--eval-only" in row["command"]


def finished(folder: Path, row: dict, seed: int) -> Path | None:
    """The metrics.json of a row's run, if it is there."""
    found = sorted((folder / row["folder"]).rglob("metrics.json" if is_single(row) else f"seed{seed}/metrics.json"))
    return found[0] if found else None


def runs_of(plan: dict, runs_dir: Path) -> dict[str, list[dict]]:
    """Label -> the metrics of its finished runs, in the order of the seeds, each with the path it was read from."""
    runs = {}
    for row in plan["rows"]:
        paths = [finished(runs_dir, row, seed) for seed in (plan["seeds"][:1] if is_single(row) else plan["seeds"])]
        runs[row["label"]] = [read_json(path) | {"path": path} for path in paths if path]
    return runs


def identity(metrics: dict) -> dict[str, str]:
    """What has to be the same for two runs to compare; empty where a run does not have it."""
    config_path = metrics["path"].parent / "config.json"
    config = read_json(config_path) if config_path.exists() else {}          # an evaluation of the base has none
    beams = f"beam {config['beam_size']}, length penalty {config['length_penalty']}" if "beam_size" in config else ""
    data = metrics["data_fingerprints"]
    return {"task": metrics["task"], "base": metrics["base_fingerprint"], "test data": data["evaluated"],
            "training data": data["train"],
            "reference text": metrics["scores"].get("reference_text", ""), "decoding": beams}


def check_comparable(plan: dict, runs: dict[str, list[dict]]) -> None:
    """Raises ValueError where two runs of a table differ in data, base, test text or decoding. What the experiment varies
    on purpose may differ from row to row, but not within a row."""
    varied = VARIES.get(plan["experiment"], ())
    seen = {}                                                                # (what, row or all rows) -> value and its run
    for label, found in runs.items():
        for metrics in found:
            for name, value in identity(metrics).items():
                first, path = seen.setdefault((name, label if name in varied else None), (value, metrics["path"]))
                if not first:
                    seen[name, label if name in varied else None] = value, metrics["path"]
                elif value and value != first:
                    raise ValueError(f"{metrics['path']}: its {name} is {value}, but {first} in {path}: runs that do not "
                                     f"compare stand in row '{label}' of {plan['experiment']} on {plan['setting']}; make one "
                                     "of them anew, or take it out")


# ---------------------------------------------------------------- numbers

def main_metric(task: str) -> str:
    return "loss" if task == "e2e" else GLUE_TASKS[task].metrics[0]


def primary_score(metrics: dict) -> tuple[str, float]:
    """The score by which runs of this task are ranked: BLEU, or the paper's GLUE score."""
    name = "BLEU" if metrics["task"] == "e2e" else main_metric(metrics["task"])
    return name, metrics["scores"][name]


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
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def median(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else "–"


def trained_count(found: list[dict]) -> str:
    """The trained parameters and their share; one count for all seeds, or each of those that differ."""
    counts = dict.fromkeys((metrics.get("trainable_parameters", 0), metrics.get("total_parameters", 0)) for metrics in found)
    return " / ".join(f"{trained:,} ({trained / total:.2%})" if trained else "0" for trained, total in counts) or "–"


# ---------------------------------------------------------------- tables

def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def text_table(runs: dict[str, list[dict]]) -> list[str]:
    """In the shape of Table 3, with BLEU's median; then the loss on the validation set at the last and the best epoch, and
    the share of a toy record's values that stand in its text, where that was measured."""
    with_share = any("value_share" in metrics for found in runs.values() for metrics in found)
    header = ["", "trained", "BLEU", "median", "NIST", "MET", "ROUGE-L", "CIDEr", "loss, last epoch", "loss, best epoch",
              "seeds"]
    rows = []
    for label, found in runs.items():
        cells = [spread(values_of(found, name), digits_of(name)) for name in TEXT_SCORES]
        cells.insert(1, median(values_of(found, "BLEU")))
        cells += [spread(values_of(found, "loss", epoch), 3) for epoch in ("last", "best")]
        cells.append(str(len(found)))
        if with_share:
            cells.append(spread([100 * metrics["value_share"] for metrics in found if "value_share" in metrics]))
        rows.append([label, trained_count(found), *cells])
    return markdown(header + ["values in the text"] * with_share, rows)


def pairs_table(runs: dict[str, list[dict]], task: str) -> list[str]:
    """The task's scores, of the last epoch and of the best: mean ± standard deviation, and the median."""
    names = [name for name in GLUE_TASKS[task].metrics] + ["accuracy_mismatched"] * (task == "mnli")
    header = ["", "trained, head apart"]
    for name in names:
        header += [f"{name}, best epoch", "median", f"{name}, last epoch", "median"]
    rows = []
    for label, found in runs.items():
        cells = [shown for name in names for epoch in ("best", "last") for shown in (
            spread(values_of(found, name, epoch)), median(values_of(found, name, epoch)))]
        rows.append([label, trained_count(found), *cells, str(len(found))])
    return markdown([*header, "seeds"], rows)


def not_above_the_base(runs: dict[str, list[dict]]) -> list[str]:
    """Rows that do not come out above the frozen base, where the table has one."""
    means = {label: statistics.mean(primary_score(metrics)[1] for metrics in found) for label, found in runs.items() if found}
    base = next((label for label in means if label.startswith("frozen base")), None)
    return [label for label in means if base and label != base and means[label] <= means[base]]


def plan_tables(plan: dict, runs_dir: Path) -> list[str]:
    """The table of an experiment on a setting, with warnings; raises ValueError for runs that do not compare."""
    runs = runs_of(plan, runs_dir)
    check_comparable(plan, runs)
    found = [metrics for row in runs.values() for metrics in row]
    lines = [f"**{plan['experiment']}**, {plan['setting']}, seeds {' '.join(map(str, plan['seeds']))}", ""]
    if not found:
        return [*lines, "no run of this experiment has ended"]
    task = found[0]["task"]
    lines += text_table(runs) if task == "e2e" else pairs_table(runs, task)
    for row in plan["rows"]:
        wanted = 1 if is_single(row) else len(plan["seeds"])
        if len(runs[row["label"]]) < wanted:
            lines.append(f"\nfailed or not run: {row['label']}, {wanted - len(runs[row['label']])} of {wanted} seeds")
    return lines + [f"\nwarning: not above the frozen base: {label}" for label in not_above_the_base(runs)]
