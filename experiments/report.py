"""From what was run to results/README.md and its plots.

    python -m experiments.report              keep the runs of runs/sweep under results/, then write the report of all kept
    python -m experiments.report --kept       only write it anew, from results/ alone; equal numbers give equal bytes

results/plans/*.json are the experiments as they were run, results/runs/<command>/seed<k>/ holds metrics.json, config.json and
log.jsonl of every run, results/subspace/*.json the analysis of section 7; results/*.md and *.png are written from these and
from published.py. Runs of other data, bases or reference texts in one table end the report with an error (tables.py), and no
difference to the paper is computed where base or test data are not the paper's. Left out: choosing what to believe.
"""
import argparse
import json
import shutil
import statistics
from pathlib import Path

import cli
from adapter_files import read_adapter
from baselines import SIZES, formula_counts
from experiments import claims, latency, plots, published, subspace
from experiments.tables import (
    finished,
    is_single,
    markdown,
    plan_tables,
    primary_score,
    runs_of,
    shown_factor,
    spread,
    trained_count,
    values_of,
)
from model import load_pretrained
from weight_files import read_json, write_json

HEAD = """# What was run

Written by `python -m experiments.report` from the files beside it; `make report` writes it anew. Every number is a mean ±
standard deviation over the seeds that a table names, with the exact command below the table. "Best epoch" and "last epoch"
are said in the header of a column; E2E text is decoded for the epoch of the lowest validation loss. Scores are in percent but
for NIST, CIDEr and losses. Several runs shared the machine's cores, so seconds and tokens/s compare roughly at best;
parameters, bytes and memory do not depend on that.

**The bases are not the paper's.** `toy/` is the made-up world of this repository with models of 0.9 million parameters,
`runs/mini/` are bases of 12 to 16 million parameters that `make pretrain-mini` makes. What they show is how the methods stand
beside each other, not how the paper's models score.
"""
KEPT = ("metrics.json", "config.json", "log.jsonl")
MEBIBYTE = 2 ** 20


# ---------------------------------------------------------------- keeping what was run

def collect(runs_dir: Path, results: Path) -> None:
    """Copy the plans, the small files of every finished run, and the subspace analysis of what is there."""
    for path in sorted((runs_dir / "plans").glob("*.json")):
        plan = read_json(path)
        (results / "plans").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, results / "plans" / path.name)
        for row in plan["rows"]:
            for seed in plan["seeds"]:
                found = finished(runs_dir, row, seed)
                if found is not None:
                    folder = results / "runs" / row["folder"] / ("base" if is_single(row) else f"seed{seed}")
                    folder.mkdir(parents=True, exist_ok=True)
                    for name in KEPT:
                        if (found.parent / name).exists():
                            shutil.copyfile(found.parent / name, folder / name)
    for path in sorted((runs_dir / "plans").glob("rank_*.json")):
        keep_subspaces(read_json(path), runs_dir, results / "subspace")


def keep_subspaces(plan: dict, runs_dir: Path, folder: Path) -> None:
    """Section 7 on the runs of a rank experiment: r = 8 against r = 64 (Figure 3), two seeds of r = 64 (Figure 4), and the
    amplification at r = 4 and r = 64 (Table 7). What has not been run is left out."""
    rows = {row["label"]: row for row in plan["rows"]}
    adapters = {}
    for label, seed in (("r = 4", 0), ("r = 8", 0), ("r = 64", 0), ("r = 64", 1)):
        found = finished(runs_dir, rows[label], plan["seeds"][seed]) if label in rows and seed < len(plan["seeds"]) else None
        if found is not None and (found.parent / "adapter").is_dir():
            config = subspace.config_of(read_json(found)["model"])
            adapters[label, seed] = read_adapter(found.parent / "adapter", config)
            adapters[label, seed].source = f"{label}, seed {plan['seeds'][seed]}"
            model_name, labels = read_json(found)["model"], adapters[label, seed].num_labels
    if len(adapters) < 4:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(subspace.compare(adapters["r = 8", 0], adapters["r = 64", 0]), folder / f"{plan['setting']}_ranks.json")
    write_json(subspace.compare(adapters["r = 64", 0], adapters["r = 64", 1]), folder / f"{plan['setting']}_seeds.json")
    model = load_pretrained(model_name, num_labels=labels)
    write_json({label: subspace.amplify(adapters[label, 0], model) for label in ("r = 4", "r = 64")},
               folder / f"{plan['setting']}_amplification.json")


# ---------------------------------------------------------------- beside the paper

def real_data(metrics: dict) -> bool:
    return metrics["data_fingerprints"]["evaluated"] == published.REAL_DATA.get(metrics["task"])


def why_not_compared(metrics: dict) -> str | None:
    """Why a run does not compare with the paper's numbers, or None where base and test data are the paper's."""
    task = metrics["task"]
    wanted = published.PAPER_MODELS.get(task, "roberta-base")
    size = formula_counts(SIZES[subspace.NAMES[wanted]], "full")["trainable"]
    if Path(metrics["model"]).name != wanted or metrics["total_parameters"] < size:
        return f"the base is {metrics['model']}, the paper's is {wanted}"
    if not real_data(metrics):
        return "the test data are not known to be the paper's"
    return None


def as_pair(value) -> tuple[float | None, float]:
    return (value, 0.0) if isinstance(value, (int, float)) else value


def paper_value(task: str, label: str) -> tuple[float, float] | None:
    """The paper's score and ± of a method: BLEU (Table 3) or the task's score (Table 2)."""
    if task == "e2e":
        return as_pair(published.TABLE_3[label][0]) if label in published.TABLE_3 else None
    if label not in published.TABLE_2 or task not in published.GLUE_TASKS_OF_TABLE_2:
        return None
    return as_pair(published.TABLE_2[label][published.GLUE_TASKS_OF_TABLE_2.index(task)])


def ranking_score(found: list[dict]) -> tuple[str, list[float], str]:
    """The score that methods are ranked by, its values and how they were chosen; the paper's way: of GLUE the best epoch."""
    name, _ = primary_score(found[0])
    if found[0]["task"] == "e2e":
        return name, values_of(found, name), "mean"
    return name, values_of(found, name, "best"), "median, best epoch"


def beside_the_paper(runs: dict[str, list[dict]]) -> list[str]:
    """Ours, the paper's, the difference and whether it lies within the spread, and other people's reproductions of LoRA."""
    found = next((row for row in runs.values() if row and "total_parameters" in row[0]), None)
    if found is None:
        return []
    task, reason = found[0]["task"], why_not_compared(found[0])
    if not real_data(found[0]) and reason.startswith("the base"):
        return ["", f"The paper's numbers do not stand here: {reason}, and the data are others."]
    name, _, way = ranking_score(found)
    rows = []
    for label, metrics in runs.items():
        paper = paper_value(task, label)
        if paper is None or not metrics:
            continue
        values = ranking_score(metrics)[1]
        ours = statistics.mean(values) if task == "e2e" else statistics.median(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        difference = ours - paper[0]
        rows.append([label, f"{ours:.1f} ± {deviation:.1f}", f"{paper[0]:.1f}" + (f" ± {paper[1]:.1f}" if paper[1] else ""),
                     "not compared" if reason else f"{difference:+.1f}",
                     "–" if reason else "yes" if abs(difference) <= deviation + paper[1] else "no"])
    others = ", ".join(f"{who} {as_pair(value)[0]}" + (f" ± {as_pair(value)[1]}" if as_pair(value)[1] else "")
                       for who, value in published.OTHERS.get(task, ()))
    model = published.PAPER_MODELS.get(task, "roberta-base")
    return ["", f"Beside the paper ({model}; {name}, ours: {way}):", "",
            *markdown(["", "ours", "paper", "difference", "within the spread"], rows),
            *(["", f"LoRA by others on the paper's base: {others}."] if others else []),
            *(["", f"No difference is computed: {reason}."] if reason else [])]


# ---------------------------------------------------------------- efficiency

def efficiency_table(runs: dict[str, list[dict]]) -> list[str]:
    """Parameters, bytes, memory and speed, each also as a share of full fine-tuning's under the same settings."""
    full = runs.get("full") or []
    header = ["", "trained", "adapter", "weights", "gradients", "optimizer", "activations", "these four, of full's",
              "peak of the process", "training", "tokens/s", "tokens/s, of full's"]

    def mean(found: list[dict], value) -> float:
        return statistics.mean(value(metrics) for metrics in found)

    def parts(metrics: dict) -> int:
        return sum(metrics["memory_parts_bytes"].values())

    rows = []
    for label, found in runs.items():
        if not found or "memory_parts_bytes" not in found[0]:
            continue
        cells = [f"{mean(found, lambda m, part=part: m['memory_parts_bytes'][part]) / MEBIBYTE:.2f} MiB"
                 for part in ("weights", "gradients", "optimizer", "activations")]
        of_full = [f"{mean(found, value) / mean(full, value):.0%}" if full else "–"
                   for value in (parts, lambda metrics: metrics["tokens_per_second"])]
        rows.append([label, trained_count(found), f"{mean(found, lambda m: m['adapter_bytes']) / 1024:,.0f} KiB", *cells,
                     of_full[0], f"{mean(found, lambda m: m['peak_memory_bytes']) / MEBIBYTE:,.0f} MiB",
                     f"{spread([m['seconds'] for m in found])} s", f"{spread([m['tokens_per_second'] for m in found], 0)}",
                     of_full[1]])
    return ["", "What it costs (seconds of training steps alone; the peak holds Python, torch and the scorer too):", "",
            *markdown(header, rows)] if rows else []


# ---------------------------------------------------------------- plots

def score_name(found: list[dict]) -> str:
    name, _, way = ranking_score(found)
    unit = " (%)" if shown_factor(name) == 100 else ""
    return f"{name}{unit}" + (", best epoch" if "best" in way else ", test")


def draw_plan(plan: dict, runs: dict[str, list[dict]], results: Path) -> list[str]:
    """The pictures of an experiment; returns the lines that show them."""
    runs = {label: found for label, found in runs.items() if found}
    trained = {label: found for label, found in runs.items() if "total_parameters" in found[0]}
    if len(trained) < 2:
        return []
    first, stem = next(iter(trained.values())), f"{plan['experiment']}_{plan['setting']}"
    title = f"{plan['experiment']} on {plan['setting']}, {len(plan['seeds'])} seed{'s' * (len(plan['seeds']) > 1)}"
    scores, shown = {label: ranking_score(found)[1] for label, found in trained.items()}, []

    def add(name: str, caption: str) -> Path:
        shown.append(f"\n![{caption}]({name})")
        return results / name

    if plan["experiment"] in ("methods", "mini"):
        lines = {label: statistics.mean(ranking_score(found)[1]) for label, found in runs.items() if label.startswith("frozen")}
        paper = paper_value(first[0]["task"], "LoRA")
        if paper and real_data(first[0]):
            lines["LoRA, paper" + (" (other base)" if why_not_compared(first[0]) else "")] = paper[0]
        counts = {label: (found[0]["trainable_parameters"], scores[label]) for label, found in trained.items()
                  if found[0]["trainable_parameters"]}
        plots.score_against_parameters(counts, score_name(first), lines, title, add(f"{stem}.png", "score against parameters"))
        curves = {label: [read_log(metrics["path"].parent / "log.jsonl") for metrics in found]
                  for label, found in trained.items()}
        loss = "squared error" if first[0]["task"] == "stsb" else "nats"
        plots.learning_curves(curves, loss, title, add(f"{stem}_curves.png", "learning curves"))
    elif plan["experiment"] in ("rank", "lr", "alpha", "dropout", "targets", "base-quality"):
        numbers = plan["experiment"] in ("rank", "lr", "alpha")
        xs = [float(label.split("= ")[1]) for label in scores] if numbers else None
        lines = {}
        if plan["experiment"] == "rank" and first[0]["task"] == "e2e":
            lines["the paper's r = 4 (GPT-2 medium, real E2E)"] = published.TABLE_18[4][1]
        path, base = add(f"{stem}.png", f"score against {plan['experiment']}"), 10 if plan["experiment"] == "lr" else 2
        plots.score_against(scores, xs, score_name(first), X_LABELS[plan["experiment"]], lines, title, path, base)
    return shown


X_LABELS = {"rank": "rank r (no unit)", "lr": "learning rate (no unit)", "alpha": "alpha (no unit)",
            "dropout": "dropout on the input of A", "targets": "adapted matrices", "base-quality": "pretraining of the base"}


def read_log(path: Path) -> list[tuple[int, float]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


# ---------------------------------------------------------------- the pages

def experiment_section(plan: dict, results: Path) -> list[str]:
    runs = runs_of(plan, results / "runs")
    title, *table = plan_tables(plan, results / "runs")                      # refuses what does not compare
    base = next((found[0]["model"] for found in runs.values() if found), "not run")
    lines = [f"### {plan['experiment']}, {plan['setting']}", "", f"Base: {base}. {plan.get('made', '')}".strip(), *table]
    lines += beside_the_paper(runs)
    if plan["experiment"] in ("methods", "mini"):
        lines += efficiency_table(runs)
    lines += draw_plan(plan, runs, results)
    seeds = " ".join(map(str, plan["seeds"]))
    commands = [f"{row['label']}: python train.py {row['command']}" + ("" if is_single(row) else f" --seed {seeds}")
                for row in plan["rows"]]
    return [*lines, "", "<details><summary>Commands</summary>", "", *(f"    {command}" for command in commands), "",
            "</details>", ""]


def subspace_section(results: Path) -> list[str]:
    lines = []
    for path in sorted((results / "subspace").glob("*.json")):
        found = read_json(path)
        lines += [f"### {path.stem}", ""]
        if path.stem.endswith("_amplification"):
            blocks = len(next(iter(next(iter(found.values())).values())))
            lines += [f"Block {blocks // 2} of 0 to {blocks - 1}, in the shape of the paper's Table 7.", "",
                      *subspace.amplification_table(found, blocks // 2), ""]
        else:
            plots.heat_maps(found["phi"] | {"random": found["random"]}, found["ranks"], results / f"subspace_{path.stem}.png")
            lines += [f"    {line}" for line in subspace.similarity_lines(found)]
            lines += ["", f"![similarity of subspaces](subspace_{path.stem}.png)", ""]
    return ["## The subspaces of the updates (section 7)", "", *lines] if lines else []


def build(results: Path) -> None:
    """Write README.md and the plots from what is kept."""
    plans = [read_json(path) for path in sorted((results / "plans").glob("*.json"))]
    if not plans:
        raise FileNotFoundError(f"{results / 'plans'}: no experiment is kept; run one first: make baselines")
    lines = [HEAD, "## What the paper claims", "", *claims.claims_table(plans, results), ""]
    for plan in plans:
        lines += experiment_section(plan, results) if plan is not plans[0] else [
            "## Experiments", "", *experiment_section(plan, results)]
    lines += subspace_section(results)
    if (results / "latency.json").exists():
        found = read_json(results / "latency.json")
        lines += ["## What a method costs at inference (Table 1)", "", f"Forward pass of {found['model']} with random weights, "
                  f"{found['threads']} threads, median of {found['rounds']} rounds. {found['made']}", "",
                  *latency.latency_table(found), ""]
    lines += ["Where the paper and the authors' code disagree: [docs/paper-and-code.md](../docs/paper-and-code.md)."]
    (results / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {results / 'README.md'}: {len(plans)} experiments")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.report", description="Write the report of what was run.")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), help="what experiments.sweep has run")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--kept", action="store_true", help="keep nothing new: write the report from --results alone")
    options = parser.parse_args(arguments)
    if not options.kept:
        collect(options.runs, options.results)
    build(options.results)
    return 0


if __name__ == "__main__":
    cli.run(main)
