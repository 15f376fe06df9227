"""Which figures the report has, and what stands in each: a panel for every setting (plots.py draws).

The published numbers stand in tables beside ours where they compare; no figure has them. Left out: experiments whose table
says it all (few samples, many seeds).
"""
import statistics
from pathlib import Path

from experiments import plots
from experiments.kept_runs import runs_of
from experiments.tables import ranking, shown_factor, values_of

X_LABELS = {"rank": "rank r", "lr": "learning rate", "alpha": "alpha", "dropout": "dropout on the input of A",
            "targets": "adapted matrices", "base-quality": "pretraining of the base"}
LOG_BASE = {"rank": 2, "alpha": 2, "lr": 10}                                 # whose rows are numbers on an axis


def title_of(plan: dict, rows: dict[str, list[dict]]) -> str:
    """What was run, and how many seeds of it are shown: of the row with the fewest to that with the most."""
    first, counts = next(iter(rows.values())), sorted({len(found) for found in rows.values()})
    what = plan["setting"] if plan["experiment"] == "base-quality" else f"{first[0]['model']}, {first[0]['task']}"
    return f"{what}, {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seed{'s' * (counts[-1] > 1)}"


def loss_unit(task: str) -> str:
    return "squared error" if task == "stsb" else "nats"


def score_label(found: list[dict]) -> str:
    name, _ = ranking(found)
    epoch = "last epoch" if found[0].get("chosen_by") == "the last epoch" else "best epoch"
    return f"{name}{' (%)' if shown_factor(name) == 100 else ''}, {'test' if found[0]['task'] == 'e2e' else epoch}"


def trained_rows(runs: dict[str, list[dict]]) -> dict[str, list[dict]]:
    return {label: found for label, found in runs.items() if found and "total_parameters" in found[0]}


def draw_methods(plans: list[dict], kept: dict[str, dict], results: Path) -> list[str]:
    """Score against parameters, and learning curves, a panel for every setting in which two rows or more were trained."""
    scores, curves = [], []
    for plan in plans:
        runs = runs_of(plan, kept)
        trained = trained_rows(runs)
        if len(trained) < 2:
            continue
        first, title = next(iter(trained.values())), title_of(plan, trained)
        base = next((found for label, found in runs.items() if label.startswith("frozen base") and found), None)
        scores.append({"title": title, "score": score_label(first),
                       "base": base and statistics.mean(ranking(base)[1]),
                       "rows": {label: (found[0]["trainable_parameters"], ranking(found)[1]) for label, found in trained.items()
                                if found[0]["trainable_parameters"]}})
        curves.append({"title": title, "loss": loss_unit(first[0]["task"]), "rows": {
            label.removesuffix(", head"): [curve(metrics) for metrics in found] for label, found in trained.items()}})
    if not scores:
        return []
    plots.score_against_parameters(scores, results / "methods.png")
    plots.learning_curves(curves, results / "curves.png")
    return ["", "![score against trained parameters](methods.png)",
            "![training loss, mean of the seeds, smoothed over five logged steps](curves.png)"]


def curve(metrics: dict) -> list[tuple[int, float]]:
    """(training samples seen, loss) at every logged step."""
    return [(step * metrics["config"]["batch_size"], loss) for step, loss in zip(*metrics["log"].values(), strict=True)]


def draw_ablation(name: str, plans: list[dict], kept: dict[str, dict], results: Path) -> list[str]:
    """Score and validation loss over what the experiment varies, a row of panels per setting."""
    settings = []
    for plan in plans if name in X_LABELS else []:
        rows = trained_rows(runs_of(plan, kept))
        if len(rows) > 1:
            first = next(iter(rows.values()))
            settings.append({
                "title": title_of(plan, rows), "score": score_label(first), "loss": loss_unit(first[0]["task"]),
                "x": X_LABELS[name], "base": LOG_BASE.get(name), "rows": {
                    label.rpartition("= ")[2]: (ranking(found)[1], values_of(found, "loss", "best"))
                    for label, found in rows.items()}})
    if not settings:
        return []
    plots.score_and_loss(settings, results / f"{name}.png")
    return ["", f"![score and validation loss over the {X_LABELS[name]}]({name}.png)"]
