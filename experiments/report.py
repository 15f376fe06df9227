"""From what was run to results/README.md and its figures.

    python -m experiments.report              keep the runs of runs/sweep in results/, then write the report of all kept
    python -m experiments.report --kept       only write it anew, from results/ alone; equal numbers give equal bytes

Kept are a line per run in runs.jsonl, a line per experiment in plans.jsonl and the analysis of section 7 in subspaces.jsonl
(kept_runs.py); README.md, ablations.md and the figures are written from these, from the benchmarks' files and from
published.py. Runs of other data, bases or reference texts in one table end the report with an error (tables.py), and no
difference to the paper is computed where base or test data are not the paper's. Left out: choosing what to believe.
"""
import argparse
import re
import statistics
from pathlib import Path

from adapters.saving import read_adapter
from experiments import (
    bench_growth,
    bench_mixed,
    claims,
    e2e_report,
    figures,
    glue_answers,
    glue_report,
    latency,
    plots,
    published,
    subspace,
)
from experiments.counts import SIZES, formula_counts
from experiments.kept_runs import (
    ANALYSES,
    finished,
    from_folders,
    keep_lines,
    places,
    read_lines,
    runs_of,
    with_earlier_rows,
)
from experiments.measured import measured_table
from experiments.sweep import options_of
from experiments.tables import (
    check_comparable,
    cost_table,
    deviation,
    level_with,
    markdown,
    missing,
    not_above_the_base,
    pairs_side_by_side,
    ranking,
    single_seeds,
    spread,
    text_table,
    wrapped,
)
from files import cli
from files.text import read_json
from model import load_pretrained

HEAD = """# What was run

Written by `make report` from the files beside it: a run is a line of runs.jsonl, its command stands in plans.jsonl. A number
is a mean ± standard deviation over seeds, in percent but for NIST, CIDEr and losses; pairs at the best epoch, on minilm at
the last one, texts at the lowest validation loss. "Level" with the highest: apart by no more than both standard deviations
together. **The bases are not the paper's**: `toy/` are models of 1 million parameters in a made-up world, `runs/mini/` is a
small GPT-2 on real data, minilm and SmolLM2 are a small encoder and a small decoder that others pretrained. They show how
methods stand beside each other, not how the paper's models score. In the runs of toy/ and runs/mini/ the learning rate of the
first step was 0; by default it no longer is, and `--warmup-from 0` behind a command makes the run as it was. Ranks, targets,
rates, fewer samples and worse bases: [ablations](ablations.md). Where the paper and the authors' code disagree:
[paper and code](../docs/paper-and-code.md).
"""
LORA_ROW = "LoRA's row of [all results](README.md#the-methods-beside-each-other-tables-2-and-3)"
# experiment -> its heading, and what to know before reading its table
SECTIONS = {
    "methods": ("The methods beside each other (Tables 2 and 3)", "Learning rates were chosen by hand for each method, not "
                "searched."),
    "mini": ("The same on real data, on a small base", "One epoch with the toy task's learning rates, not tuned."),
    "rank": ("Which rank? (Tables 6 and 18)", f"Everything but r, alpha = 32 too, as in {LORA_ROW}."),
    "targets": ("Which matrices? (Table 5)", "As many trained parameters in every row; for the MLP, which the paper leaves "
                "out, a quarter more."),
    "lr": ("Which learning rate?", f"Everything but the learning rate as in {LORA_ROW}."),
    "alpha": ("Which alpha?", f"Everything but alpha as in {LORA_ROW}; the update is scaled by alpha / r."),
    "dropout": ("Dropout in front of A", f"Everything but the dropout as in {LORA_ROW}."),
    "low-data": ("Few samples (Table 16)", "Fewer samples are seen more often; rates by hand. Every "
                 "seed has the same samples, the first ones: ± does not say what others would give."),
    "base-quality": ("A worse base", "The same LoRA on bases that were pretrained for less."),
    "seeds": ("How large is the spread?", "One setting, many seeds."),
}


# ---------------------------------------------------------------- keeping what was run

def plan_place(plan: dict) -> str:
    return f"{plan['experiment']}_{plan['setting']}"


def collect(runs_dir: Path, results: Path) -> None:
    """Keep the plans, every finished run of theirs, and the analysis of its adapters' subspaces."""
    plans = [read_json(path) for path in sorted((runs_dir / "plans").glob("*.json"))]
    if plans:
        kept, before = (read_lines(results / f"{name}.jsonl") for name in ("plans", "runs"))
        new = {place: line for place, line in from_folders(plans, runs_dir).items() if line != before.get(place)}
        for plan in plans:
            of_plan = {place for row in plan["rows"] for place in places(plan, row).values()}
            place = plan_place(plan)
            kept[place] = {"place": place} | with_earlier_rows(plan, kept.get(place), bool(of_plan & new.keys()))
        keep_lines(kept, results / "plans.jsonl")
        keep_lines(new, results / "runs.jsonl")
    for name in ANALYSES:
        if found := read_lines(runs_dir / f"{name}.jsonl"):
            keep_lines(found, results / "glue-small" / f"{name}.jsonl")
    for plan in plans:
        found = subspaces_of(plan, runs_dir) if plan["experiment"] == "rank" else {}
        if found:
            keep_lines({place: {"place": place} | line for place, line in found.items()}, results / "subspaces.jsonl")


def subspaces_of(plan: dict, runs_dir: Path) -> dict[str, dict]:
    """Section 7 on the runs of a rank experiment: r = 8 against r = 64 (Figure 3), two seeds of r = 64 (Figure 4), and the
    amplification at r = 4 and r = 64 (Table 7). Empty where one of these has not been run."""
    rows = {row["label"]: row for row in plan["rows"]}
    adapters = {}
    for label, seed in (("r = 4", 0), ("r = 8", 0), ("r = 64", 0), ("r = 64", 1)):
        found = finished(runs_dir, rows[label], plan["seeds"][seed]) if label in rows and seed < len(plan["seeds"]) else None
        if found is None or not (found.parent / "adapter").is_dir():
            return {}
        model_name = read_json(found)["model"]
        adapters[label, seed] = read_adapter(found.parent / "adapter", subspace.config_of(model_name))
        adapters[label, seed].source = f"{label}, seed {plan['seeds'][seed]}"
    model = load_pretrained(model_name, num_labels=adapters["r = 4", 0].num_labels)
    return {f"{plan['setting']}/ranks": subspace.compare(adapters["r = 8", 0], adapters["r = 64", 0]),
            f"{plan['setting']}/seeds": subspace.compare(adapters["r = 64", 0], adapters["r = 64", 1]),
            f"{plan['setting']}/amplification": {"blocks": {label: subspace.amplify(adapters[label, 0], model)
                                                            for label in ("r = 4", "r = 64")}}}


# ---------------------------------------------------------------- beside the paper

def why_not_compared(metrics: dict) -> str | None:
    """Why a run does not compare with the paper's numbers, or None where base and test data are the paper's."""
    task = metrics["task"]
    wanted = published.PAPER_MODELS.get(task, "roberta-base")
    size = formula_counts(SIZES[subspace.NAMES[wanted]], "full")["trainable"]
    if Path(metrics["model"]).name != wanted or metrics["total_parameters"] < size:
        return f"the base is {metrics['model']}, the paper's is {wanted}"
    if metrics["data_fingerprints"]["evaluated"] != published.REAL_DATA.get(task):
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


def beside_the_paper(runs: dict[str, list[dict]]) -> list[str]:
    """Ours, the paper's, the difference and whether it lies within the spread, and other people's reproductions of LoRA;
    nothing where base or test data are not the paper's."""
    found = next((row for row in runs.values() if row and "total_parameters" in row[0]), None)
    if found is None or why_not_compared(found[0]):
        return []
    task, (name, _) = found[0]["task"], ranking(found)
    rows = []
    for label, metrics in runs.items():
        paper = paper_value(task, label)
        if paper is None or not metrics:
            continue
        values = ranking(metrics)[1]
        ours = statistics.mean(values) if task == "e2e" else statistics.median(values)
        difference = ours - paper[0]
        rows.append([label, f"{ours:.1f} ± {deviation(values):.1f}", f"{paper[0]:.1f}" + f" ± {paper[1]:.1f}" * bool(paper[1]),
                     f"{difference:+.1f}", "yes" if abs(difference) <= deviation(values) + paper[1] else "no"])
    others = ", ".join(f"{who} {as_pair(value)[0]}" + (f" ± {as_pair(value)[1]}" if as_pair(value)[1] else "")
                       for who, value in published.OTHERS.get(task, ()))
    way = "mean" if task == "e2e" else "median, best epoch"
    return ["", f"Beside the paper ({published.PAPER_MODELS.get(task, 'roberta-base')}; {name}, ours: {way}):", "",
            *markdown(["", "ours", "paper", "difference", "within the spread"], rows),
            *(["", f"LoRA by others on the paper's base: {others}."] if others else [])]


# ---------------------------------------------------------------- the page

def highest(setting: str, runs: dict[str, list[dict]]) -> str:
    """The row with the highest mean, and those that are level with it; nothing for single seeds, which have no spread."""
    found = {label: ranking(of)[1] for label, of in figures.trained_rows(runs).items() if len(of) > 1}
    if not found:
        return ""
    best = max(found, key=lambda label: statistics.mean(found[label]))
    level = [label for label in found if label != best and level_with(found[label], found[best])]
    return f"Highest on {setting}: {best}, {spread(found[best])}" + (f" (level: {'; '.join(level)})." if level else ".")


def commands_of(plans: list[dict]) -> str:
    """The commands that run these plans, one for all that differ in their task alone, and those tasks."""
    tasks = {}
    for plan in plans:
        options = options_of(plan["rows"][0]["command"])
        model = "" if plan["setting"].startswith(("toy-", "mini-")) else f" --model {options['model']}"
        command = f"python -m experiments.sweep {plan['experiment']}{model} --seeds {' '.join(map(str, plan['seeds']))}"
        tasks.setdefault(command, []).append(options["task"])
    return ", ".join(f"`{command} --task {first}`" + (f" (and {', '.join(others)})" if others else "")
                     for command, (first, *others) in tasks.items())


def experiment_section(name: str, plans: list[dict], kept: dict[str, dict]) -> list[str]:
    """What is highest, how it was run, and tables: one per text setting, one for all pairs, one for all single seeds."""
    runs = {plan["setting"]: runs_of(plan, kept) for plan in plans}
    for plan in plans:
        check_comparable(plan, runs[plan["setting"]])
    title, about = SECTIONS[name]
    best = " ".join(filter(None, (highest(setting, of) for setting, of in runs.items())))
    made = " / ".join(dict.fromkeys(plan.get("made", "") for plan in plans))
    lines = [f"## {title}", "", *wrapped(f"{about} {best} {made} {commands_of(plans)}"), ""]
    singles, several, notes, papers = {}, {}, [], []
    for plan in plans:
        setting, of = plan["setting"], runs[plan["setting"]]
        first = next((found[0] for found in of.values() if found), None)
        if first and first["task"] == "e2e":
            lines += [*text_table(of, brief=setting), ""]
        elif first:
            (singles if len(plan["seeds"]) == 1 else several)[setting] = of
        notes += [f"On {setting} {line}." for line in missing(plan, of)]
        low = not_above_the_base(of)
        none_above = len(low) == sum(bool(found) for found in of.values()) - 1
        notes += [f"Not above the base on {setting}: {'all' if none_above else '; '.join(low)}."] if low else []
        papers += beside_the_paper(of)
    lines += [*pairs_side_by_side(several), ""] if several else []
    lines += [*single_seeds(singles), ""] if singles else []
    return [*lines, *wrapped(" ".join(notes)), *papers]


def cost_section(plans: list[dict], kept: dict[str, dict]) -> list[str]:
    """What training costs, on the largest base that has more than one seed; the others' costs stand in runs.jsonl."""
    found = [(max(row[0]["total_parameters"] for row in trained.values()), plan["setting"], trained)
             for plan in plans if len(plan["seeds"]) > 1 and (trained := figures.trained_rows(runs_of(plan, kept)))]
    if not found:
        return []
    _, setting, runs = max(found, key=lambda entry: entry[0])
    runs = {label: of for label, of in runs.items() if label not in plots.VARIANTS}
    return ["## What training costs (section 4.2)", "", *wrapped(
        f"On {setting}; seconds are those of training steps, with other runs on the same cores; the peak holds torch too."), "",
        *cost_table(runs), ""]


def subspace_section(found: dict[str, dict], results: Path) -> list[str]:
    if not found:
        return []
    about = ("φ(i, j) is 1 where the top i directions of one A lie in the top j of the other, 0 where they are orthogonal. The "
             "factor (Table 7, middle block): how much stronger an update is than its weight in the same directions.")
    tables, comparisons = [], {}
    for place, line in found.items():
        setting, _, kind = place.rpartition("/")
        if kind == "amplification":
            middle = len(next(iter(next(iter(line["blocks"].values())).values()))) // 2
            tables += [*subspace.amplification_table(line["blocks"], middle), ""]
        else:
            comparisons.setdefault(setting, []).append(line)
            about += f" {setting}, {' and '.join(line['adapters'])}: φ(1, 1) block by block is " + ", ".join(
                f"{' '.join(f'{value:.2f}' for value in values)} for {target}"
                for target, values in line["top_direction"].items()) + "."
    lines = ["## What is in an update? (section 7)", "", *wrapped(f"{about} `make ablation-rank report`"), "", *tables]
    for setting, lines_of in comparisons.items():
        plots.heat_maps(lines_of, results / f"subspaces_{setting}.png", setting)
        lines += [f"![similarity of subspaces](subspaces_{setting}.png)", ""]
    return lines


def latency_section(path: Path) -> list[str]:
    if not path.exists():
        return []
    found = read_json(path)
    return ["## What a method costs at inference (Table 1)", "", *wrapped(
        f"Forward pass of {found['model']}, random weights, {found['threads']} threads, {found['rounds']} rounds' median. "
        f"{found['made']} `python -m experiments.latency`"), "", *latency.latency_table(found), ""]


def measured_section(results: Path) -> list[str]:
    """The benchmarks' headlines, and their two figures drawn from their numbers."""
    lines, bench = [*measured_table(results), ""], results / "bench"
    for file, plot, caption in (("growth", bench_growth.plot, "time and memory of a LoRA step"),
                                ("mixed-grid", bench_mixed.plot, "time of a batch over the adapters in bank and batch")):
        if (bench / f"{file}.json").exists():
            plot(read_json(bench / f"{file}.json"), bench / f"{file}.png")
            lines += [f"![{caption}](bench/{file}.png)"]
    return ["## Measured beside the runs", "", *lines] if any(lines) else []


def build(results: Path) -> None:
    """Write the pages and the figures from what is kept."""
    plans, kept = list(read_lines(results / "plans.jsonl").values()), read_lines(results / "runs.jsonl")
    if not plans:
        raise FileNotFoundError(f"{results / 'plans.jsonl'}: no experiment is kept; run one first: make baselines")
    by_name = {name: [plan for plan in plans if plan["experiment"] == name] for name in SECTIONS}
    compared = by_name["methods"] + by_name["mini"]
    lines = [HEAD, "## What the paper claims", "", *claims.claims_table(plans, kept, results), ""]
    for name in ("methods", "mini"):
        lines += [*experiment_section(name, by_name[name], kept), ""] if by_name[name] else []
    lines += [*figures.draw_methods(compared, kept, results), "", *cost_section(compared, kept)]
    lines += glue_report.section(plans, kept) + e2e_report.section(plans, kept)
    lines += latency_section(results / "latency.json") + measured_section(results)
    write_page(lines, results / "README.md")
    lines = ["# One thing varied at a time", "", "What is not varied is as in LoRA's row of [all results](README.md).", ""]
    for name, of_name in by_name.items():
        if of_name and name not in ("methods", "mini"):
            lines += [*experiment_section(name, of_name, kept), *figures.draw_ablation(name, of_name, kept, results), ""]
    write_page(lines + subspace_section(read_lines(results / "subspaces.jsonl"), results), results / "ablations.md")
    glue_answers.write_page(plans, kept, results / "glue-small")
    e2e_report.write_page(plans, kept, results / "e2e-small")
    print(f"wrote {results / 'README.md'}: {len(plans)} experiments, {len(kept)} runs")


def write_page(lines: list[str], path: Path) -> None:
    page = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"
    path.write_text(page, encoding="utf-8", newline="\n")


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
