"""The page results/glue-small/README.md: the comparison of glue_small.py whole, and what its base answered to the questions of
glue_questions.py and glue_analysis.py, a table and a figure each. What was not run has neither.
"""
import math
import statistics
import textwrap
from pathlib import Path

from data import GLUE_TASKS
from experiments import figures, plots
from experiments.claims import differences_of
from experiments.glue_analysis import LEADING, RANKS, SIMILAR, TUNED
from experiments.glue_questions import (
    AMOUNTS,
    BASE_TASKS,
    BASES,
    BY_TARGETS,
    DATA_RANKS,
    RATE_RANKS,
    SCALES,
    TARGETS,
    base_arms,
    rate_arms,
)
from experiments.glue_report import (
    ABOUT,
    ORIENTATION,
    about_the_head,
    cell,
    glue_search_table,
    how_many,
    named,
    runs_by_task,
    score_table,
    second_table,
    task_of,
)
from experiments.glue_small import COMMON, METHODS, TASKS
from experiments.kept_runs import read_lines, runs_of
from experiments.search import Search, grids_of, scores_of
from experiments.tables import check_comparable, cost_table, markdown, ranking, spread, wrapped


def comparison(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    tasks = runs_by_task(named(plans, "glue-small"), kept)
    fastest = {method: [min(found, key=lambda run: run["seconds"])] for method, found in tasks.get("mrpc", {}).items() if found}
    costs = cost_table(fastest) if fastest.get("full") else []
    return [*wrapped(about_the_head(tasks)), "", *score_table(tasks), "",
            "Medians, the other scores, and how long each row's fastest seed trained:", "", *second_table(tasks),
            *figures.draw_methods(named(plans, "glue-small"), kept, folder),
            "", *wrapped("What training costs in memory and speed, on MRPC, of each row's fastest seed, for "
                         "runs shared the machine and some waited for others. The peak is the GPU's where there is one, else "
                         "the process's."), "", *costs]


# ---------------------------------------------------------------- the best learning rate of LoRA over that of full

def best_rate(scores: dict[str, list[float]], best: str) -> float:
    """The rate of the highest score between the rates that were run: the peak of the parabola through the best and its two
    neighbours, over the rate's logarithm; the best itself where a neighbour diverged."""
    rates = sorted(scores, key=float)
    at = rates.index(best)
    points = [(math.log10(float(rate)), scores[rate][0]) for rate in rates[at - 1:at + 2]]
    if any(math.isinf(score) for _, score in points):
        return float(best)
    (x_0, y_0), (x_1, y_1), (x_2, y_2) = points
    left, right = (y_1 - y_0) / (x_1 - x_0), (y_2 - y_1) / (x_2 - x_1)
    return 10 ** ((x_0 + x_1) / 2 + left * (x_2 - x_0) / 2 / (left - right)) if left > right else float(best)


def rates_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    settings, rows = [], []
    for plan in named(plans, "glue-small-rates"):
        search = Search("", {}, rate_arms(), lambda metrics: -metrics["scores"]["loss"])
        scores, grids = scores_of(search, [plan], kept), grids_of(search, [plan], kept)
        found = {arm: best_rate(scores[arm], best) for arm, (_, best) in grids.items() if best}
        if "full" in found:
            lines = {rule: [[found[arm] / found["full"] for arm in (f"LoRA, r = {rank}{f', {rule}' * (rank != 8)}",)
                             if arm in found] for rank in RATE_RANKS] for rule in SCALES}
            head = [[found["head alone"] / found["full"]] if "head alone" in found else []]
            levels = {"10 times": 10.0, "15 times": 15.0} | ({"head alone": head[0][0]} if head[0] else {})
            settings.append({"title": plan["setting"], "x": "rank r", "y": "best rate of LoRA / of full", "log": 2,
                             "log_y": True, "ticks": list(RATE_RANKS), "levels": levels,
                             "lines": {f"scale {rule}": of for rule, of in lines.items()}})
            rows.append([plan["setting"], f"{found['full']:.1e}", *(f"{of[0]:.1f}" if of else "" for line in (
                head, *lines.values()) for of in line)])
    if not rows:
        return []
    plots.lines_over(settings, folder / "rates.png", one_y=True)
    columns = [f"{rule}, r = {rank}" for rule in SCALES for rank in RATE_RANKS]
    return [*wrapped("Full's best rate, and the head's alone and LoRA's (q and v) as multiples of it: the rate of the lowest "
                     "held-out loss, by a parabola through the best rate of a grid and its neighbours; one seed each. The "
                     "update is scaled by 1 (constant), 8 / r or sqrt(8 / r), which are one at r = 8. Others report about 10 "
                     "times full's rate, 15 in short runs, and that it hardly depends on the rank under alpha / r. Here the "
                     "fresh head learns at the rate of the rest: its own best pulls LoRA's and full's towards each other."),
            "", *markdown(["", "full", "head alone", *columns], rows), "", "![best rate of LoRA over full's](rates.png)"]


# ---------------------------------------------------------------- which matrices, which rank, which base

def panel(plan: dict, runs: dict[str, list[dict]], lines: dict[str, list[str]], ticks: list, x: str, log: int | None) -> dict:
    """What plots.lines_over draws: line -> the rows of the plan at every tick."""
    return {"title": plan["setting"], "x": x, "y": f"{GLUE_TASKS[task_of(plan)].metrics[0]} (%), last epoch", "ticks": ticks,
            "log": log, "lines": {line: [ranking(runs[row])[1] if runs.get(row) else [] for row in rows]
                                  for line, rows in lines.items()}}


SHORT = {"LoRA": "q v", "LoRA, attention": "attention", "LoRA, MLP": "MLP", "LoRA, all six": "all six"}


def targets_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    compared = runs_by_task(named(plans, "glue-small"), kept)
    tasks = {task: {arm: (compared.get(task, {}) | runs).get(arm, []) for arm in BY_TARGETS}
             for task, runs in runs_by_task(named(plans, "glue-small-targets"), kept).items()}
    settings = []
    for task, runs in tasks.items():
        full = compared.get(task, {}).get("full")
        settings.append({"title": task, "x": "matrices", "y": f"{GLUE_TASKS[task].metrics[0]} (%), last epoch",
                         "ticks": [SHORT[arm] for arm in BY_TARGETS],
                         "lines": {"LoRA": [ranking(found)[1] if found else [] for found in runs.values()]},
                         "levels": {"full, mean": statistics.mean(ranking(full)[1])} if full else {}})
    plots.lines_over(settings, folder / "targets.png")
    return [*wrapped("Equal parameters as far as whole ranks allow; the table counts them. Each had its own search. "
                     "LoRA on q v and on all six are the comparison's runs, of the machine named there, as is full's mean in "
                     "the figure."), "",
            *score_table(tasks), "", *glue_search_table(named(plans, "glue-small-targets-search"), kept, TARGETS), "",
            "![attention, MLP, all](targets.png)"]


def cola_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    (plan,) = named(plans, "glue-small-cola")
    runs = runs_of(plan, kept)
    check_comparable(plan, runs)
    rates = sorted({row["label"].rpartition(", ")[2] for row in plan["rows"]}, key=float)
    rows = [[arm, *(seeds_of(runs[f"{arm}, {rate}"]) for rate in rates)] for arm in BY_TARGETS]
    return [*wrapped("Matthews' correlation in percent, of every seed and as mean ± standard deviation, at each rate that the "
                     "search of one of these took; 0 is the larger class for every sentence. Asked after the comparison had "
                     "such seeds: its arms differ in the rate as well as in the matrices. Runs of the rate that an arm's own "
                     "search took are those above."), "", *markdown(["", *rates], rows)]


def seeds_of(runs: list[dict]) -> str:
    values = ranking(runs)[1] if runs else []
    return f"{', '.join(f'{value:.1f}' for value in values)}: {spread(values)}" if values else ""


def data_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    (plan,) = named(plans, "glue-small-data")
    runs = runs_of(plan, kept)
    check_comparable(plan, runs)
    lines = {arm: [f"{arm}, {amount:,} rows" for amount in AMOUNTS] for arm in ("full", *(f"r = {r}" for r in DATA_RANKS))}
    plots.lines_over([panel(plan, runs, lines, list(AMOUNTS), "rows of SST-2 trained on", 10)], folder / "data.png")
    rows = [[arm, *(cell(runs[row], "accuracy") for row in of)] for arm, of in lines.items()]
    return [*wrapped("LoRA on q and v with alpha 8 at every rank, so that the update is scaled by 8 / r and its first steps "
                     "are about as large as those of r = 8, for which the rate was searched; at LoRA's and full's rates of the "
                     "comparison. 100 rows are seen 30 times, 1,000 6 times, 10,000 3 times. Every seed has the same rows, the "
                     "first of the file: ± is that of heads, updates and order, and not of which rows were drawn. Full and "
                     "r = 8 on 10,000 rows are the comparison's runs, of the machine named there."), "",
            *markdown(["", *(f"{amount:,} rows" for amount in AMOUNTS)], rows), "",
            "![rank and amount of data](data.png)"]


def bases_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    settings, rows = [], []
    for plan in named(plans, "glue-small-bases"):
        runs = runs_of(plan, kept)
        check_comparable(plan, runs)
        names = ("whole", *BASE_TASKS[task_of(plan)])
        lines = {arm: [f"{arm}, {base}" for base in names] for arm in base_arms(task_of(plan))}
        settings.append(panel(plan, runs, lines, [textwrap.fill(name, 12) for name in names], "base", None))
        rows += [[f"{plan['setting']}, {arm}", *(cell(runs[row], GLUE_TASKS[task_of(plan)].metrics[0]) for row in of),
                  *[""] * (len(BASES) + 1 - len(of))] for arm, of in lines.items()]
    plots.lines_over(settings, folder / "bases.png")
    return [*wrapped("The base with tensors drawn anew, which what trains has to make up for; at the whole base's rates, "
                     "r = 64 with alpha 8 at LoRA's. Each base was drawn once, with one seed: ± is that of training on it, "
                     "not of other draws. Full, LoRA and the head alone on the whole base are the comparison's runs, of the "
                     "machine named there."), "",
            *markdown(["", "whole", *BASES], rows), "", "![how much the base knows](bases.png)"]


# ---------------------------------------------------------------- what the trained weights say

COMMON_TARGETS = ("q", "v")                                                  # what LoRA and full both change
SPECTRA = {                                                                  # how the lines of spectra.png look
    "LoRA, q": (plots.LORA, "o", "-"), "LoRA, v": (plots.LORA, "^", "--"), "full, q": (plots.METHODS["full"][0], "s", "-"),
    "full, v": (plots.METHODS["full"][0], "D", "--"), "a random change": (plots.BASE, "", ":")}
AT_THE_FLOOR = 1.0                                                           # points above it that a head must have to lose any


def spectra_answer(folder: Path) -> list[str]:
    """A row per matrix and method, so that the same matrices stand beside each other, and the figure, which has the tasks."""
    found: dict[tuple[str, str], dict[str, list[dict]]] = {}                 # (target, method) -> task -> a seed's each
    for place, line in read_lines(folder / "spectra.jsonl").items():
        task, method, _ = place.split("/")
        for target, of in line["targets"].items():
            found.setdefault((target, method), {}).setdefault(task, []).append(of)
    tasks = [task for task in TASKS if any(task in of for of in found.values())]
    draw_spectra(found, tasks, folder / "spectra.png")

    eight, counts = RANKS.index(8), sorted({len(of) for by_task in found.values() for of in by_task.values()})
    columns = {"held by rank 8 (%)": lambda of: 100 * of["held"][eight],
               "random, held": lambda of: 100 * of["random_held"][eight],
               "size of the change (%)": lambda of: 100 * of["size"], f"intruders of {LEADING}": lambda of: of["intruders"],
               "random, intruders": lambda of: of["random_intruders"]}
    rows = [[f"{target}, {method}", *(spread([statistics.mean(map(value, of)) for of in found[target, method].values()])
                                      for value in columns.values())]
            for target in ("q", "v", "k", "o", "fc", "proj") for method in TUNED if (target, method) in found]
    return [*wrapped(f"Means over the blocks and the seeds ({counts[0]} to {counts[-1]}), ± over {len(tasks)} tasks. Held: of "
                     "the squared singular values of the change, the share of the first 8 (LoRA's has no more, all six's 2). "
                     f"Intruders: of the {LEADING} leading left singular vectors of the tuned weight, those whose cosine with "
                     f"every one of the base's is below {SIMILAR}. Random: the same of a Gaussian change, as large. "
                     "All three methods change q and v, and there they compare. Full's change has a part that is no learning: "
                     "decoupled weight decay takes a share of every weight in each step, which is the weight itself, of full "
                     "rank and without new directions; under LoRA it works on A and B."), "", *markdown(["", *columns], rows),
            "", "![what rank r holds of an update, and new leading directions](spectra.png)"]


def draw_spectra(found: dict[tuple[str, str], dict[str, list[dict]]], tasks: list[str], path: Path) -> None:
    """A panel per task with what rank r holds, and one with the intruders of all, of the matrices that both change."""
    pairs = {f"{method}, {target}": found.get((target, method), {}) for method in ("LoRA", "full") for target in COMMON_TARGETS}
    settings = []
    for task in tasks:
        random = [of for by_task in pairs.values() for of in by_task.get(task, [])]
        shown = {label: [[100 * of["held"][at] for of in by_task.get(task, [])] for at in range(len(RANKS))]
                 for label, by_task in pairs.items()}
        shown["a random change"] = [[100 * statistics.mean(of["random_held"][at] for of in random)] if random else []
                                    for at in range(len(RANKS))]
        settings.append({"title": task, "x": "rank r", "y": "held of the change (%)", "ticks": list(RANKS), "log": 2,
                         "lines": shown})
    settings.append({"title": "new leading directions", "x": "task", "y": f"intruders of {LEADING}", "ticks": tasks, "lines": {
        label: [[of["intruders"] for of in by_task.get(task, [])] for task in tasks] for label, by_task in pairs.items()}})
    plots.lines_over(settings, path, SPECTRA)


def forgetting_answer(plans: list[dict], kept: dict[str, dict], folder: Path) -> list[str]:
    """Rows by the scored task, its floor and its score before; then by the learnt task, its gain and the others' loss."""
    lines, compared = read_lines(folder / "forgetting.jsonl"), runs_by_task(named(plans, "glue-small"), kept)
    changes: dict[str, dict[tuple[str, str], list[float]]] = {}
    floors, before = {}, {}
    for place, line in lines.items():
        learnt, method, seed, other = place.split("/")
        changes.setdefault(method, {}).setdefault((learnt, other), []).append(100 * (line["after"] - line["before"]))
        floors[other], before.setdefault(other, {})[seed] = 100 * line["floor"], 100 * line["before"]
    names = [task for task in TASKS if any(task in pair for of in changes.values() for pair in of)]
    floored = [task for task in names if task in floors
               and statistics.mean(before[task].values()) - floors[task] < AT_THE_FLOOR]
    mean = {method: {pair: statistics.mean(of) for pair, of in found.items()} for method, found in changes.items()}
    plots.change_maps(mean, names, [f"{task}\n(floor)" if task in floored else task for task in names],
                      folder / "forgetting.png", "change (points)")
    rows = [["floor", *(f"{floors[task]:.1f}" if task in floors else "" for task in names)],
            ["before", *(spread(list(before[task].values())) if task in before else "" for task in names)]]
    for method, found in mean.items():
        rows.append([f"{method}: gain on the task it learnt", *(gain(compared.get(task, {}), method) for task in names)])
        lost = {task: [value for (learnt, other), value in found.items() if learnt == task and other not in floored]
                for task in names}
        rows.append([f"{method}: change of the others", *(spread(of) if of else "" for of in lost.values())])
    return [*wrapped("The other tasks' heads, trained on the frozen base, on the encoder that learnt a task. Floor: the larger "
                     "class of the dev set, or 0 for a correlation; before: the head on the base; gain: the learnt task's "
                     "score less that of its own head on the base, ± over the seeds; change of the others: in points, ± over "
                     f"these tasks, of means over the seeds. Less than {AT_THE_FLOOR:g} point above the floor, with nothing to "
                     f"lose and so left out of this mean: {', '.join(floored) or 'none'}."), "",
            *markdown(["", *names], rows), "", "![what is forgotten](forgetting.png)"]


def gain(runs: dict[str, list[dict]], method: str) -> str:
    """Of a task's runs: a method's score less that of the head on the frozen base, over the seeds that both have."""
    pair = runs.get(method), runs.get("frozen base, head")
    return spread(differences_of(*pair)) if all(pair) else ""


# ---------------------------------------------------------------- the page

PARTS = (                                                                    # title, experiment, its command, what it says
    ("Scores and costs", "glue-small", "glue_small runs", comparison),
    ("The searches", "glue-small-search", "glue_small search",
     lambda plans, kept, folder: glue_search_table(named(plans, "glue-small-search"), kept, METHODS)),
    ("The best learning rate of LoRA over that of full fine-tuning", "glue-small-rates", "glue_questions rates", rates_answer),
    ("Attention alone, MLP alone, all", "glue-small-targets", "glue_questions targets", targets_answer),
    ("The same on CoLA, at each other's rates", "glue-small-cola", "glue_questions cola", cola_answer),
    ("Rank times amount of data", "glue-small-data", "glue_questions data", data_answer),
    ("How much must the base know?", "glue-small-bases", "glue_questions bases", bases_answer),
)


def write_page(plans: list[dict], kept: dict[str, dict], folder: Path) -> None:
    """Write folder/README.md and its figures; nothing where no run is in."""
    lines = ["# A fair comparison on a real encoder", "", *wrapped(f"{' '.join(ABOUT.split())} {ORIENTATION}"), "",
             *wrapped(f"The same for all, fixed beforehand: `{COMMON}`, gradients clipped at 1; every command stands in "
                      "../plans.jsonl. ([All results](../README.md))"), ""]
    before = len(lines)
    for title, experiment, command, answer in PARTS:
        of = named(plans, experiment)
        if any(found for plan in of for found in runs_of(plan, kept).values()):
            folder.mkdir(parents=True, exist_ok=True)
            lines += [f"## {title}", "", *wrapped(f"{how_many(of, kept)} `python -m experiments.{command} --data-dir D`"), "",
                      *answer(plans, kept, folder), ""]
    for title, name, answer in (("What is in an update?", "spectra", lambda *found: spectra_answer(found[-1])),
                                ("What is forgotten?", "forgetting", forgetting_answer)):
        if (folder / f"{name}.jsonl").exists():
            lines += [f"## {title}", "", f"`python -m experiments.glue_analysis {name} --data-dir D`", "",
                      *answer(plans, kept, folder), ""]
    if len(lines) > before:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
