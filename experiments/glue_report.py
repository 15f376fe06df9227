"""The report of glue_small.py: a section of results/README.md, and of the page of its own the scores, costs and searches.

A cell whose runs have not ended is empty, and every table says how many runs are in. Scores are those of the last epoch, in
percent, as mean ± standard deviation over the seeds, whose number stands in brackets. Left out: the claims, which stand with
the others (claims.py), and the questions (glue_answers.py).
"""
import math
import statistics
from collections.abc import Callable

from data import GLUE_TASKS
from experiments import published
from experiments.glue_small import TASKS
from experiments.kept_runs import places, runs_of
from experiments.search import GRID, LADDER, Search, grids_of, scores_of
from experiments.sweep import options_of
from experiments.tables import (
    AVERAGE,
    check_comparable,
    main_metric,
    markdown,
    median,
    primary_score,
    spread,
    trained_count,
    values_of,
    wrapped,
)

ABOUT = """The base is all-MiniLM-L6-v2, a BERT of 6 layers, 384 wide, that others pretrained. It was trained to bring sentences
that belong together near each other, on pairs that include MNLI, SNLI and QQP: these tasks are not in the table, and MRPC and
STS-B, which ask the same, may gain from it. Of SST-2 the first 10,000 rows are trained on. Every method had the same search of
its learning rate, on a tenth of the training sets of MRPC and CoLA, held out; then three epochs, the last of which is scored on
the official dev set, in percent: Matthews' correlation for CoLA, Pearson's for STS-B, else accuracy; in brackets the number of
seeds."""
ORIENTATION = ("For orientation, another checkpoint, MiniLM-L6-H384, fully fine-tuned by its authors, has on the same dev sets "
               "(microsoft/unilm, minilm/README.md) " +
               ", ".join(f"{task} {score}" for task, score in published.MINILM.items()) + ".")


# ---------------------------------------------------------------- what is there

def task_of(plan: dict) -> str:
    return options_of(plan["rows"][0]["command"])["task"]


def named(plans: list[dict], experiment: str) -> list[dict]:
    """The plans of an experiment, in the order of TASKS."""
    return sorted((plan for plan in plans if plan["experiment"] == experiment and plan["rows"]),
                  key=lambda plan: (list(TASKS).index(task_of(plan)), len(plan["setting"]), plan["setting"]))


def how_many(plans: list[dict], kept: dict[str, dict]) -> str:
    """How many of the plans' runs are in, and where they were run."""
    wanted = {place for plan in plans for row in plan["rows"] if not row.get("diverged")
              for place in places(plan, row).values()}
    made = " / ".join(dict.fromkeys(plan["made"] for plan in plans))
    return f"{len(wanted & kept.keys()):,} of {len(wanted):,} runs are in. {made}"


def runs_by_task(plans: list[dict], kept: dict[str, dict]) -> dict[str, dict[str, list[dict]]]:
    """Task -> row -> its runs. Raises ValueError for runs that do not compare."""
    found = {}
    for plan in plans:
        found[task_of(plan)] = runs = runs_of(plan, kept)
        check_comparable(plan, runs)
    return found


def averaged(tasks: dict[str, dict[str, list[dict]]]) -> dict[str, list[dict]]:
    """Row -> a run for each seed that all of TASKS have, whose one score is the mean of theirs (the paper's Avg., of these
    tasks); all else of it is the first task's. Empty where a task has no run."""
    found = {}
    for row in dict.fromkeys(row for runs in tasks.values() for row in runs):
        by_task = [{run["seed"]: run for run in tasks.get(task, {}).get(row, [])} for task in TASKS]
        seeds = sorted(set.intersection(*(set(of) for of in by_task)))
        if seeds:
            found[row] = [by_task[0][seed] | {"task": AVERAGE, "epochs": [], "scores": {
                AVERAGE: statistics.mean(primary_score(of[seed])[1] for of in by_task)}} for seed in seeds]
    return found


def about_the_head(tasks: dict[str, dict[str, list[dict]]]) -> str:
    """How many numbers the head has, which every row trains besides what its table counts."""
    counts = sorted({run["head_parameters"] for runs in tasks.values() for found in runs.values() for run in found})
    return f"Every row also trains the head, its dense layer and its output: {' or '.join(f'{n:,}' for n in counts)} numbers."


def cell(found: list[dict], name: str) -> str:
    return f"{spread(values_of(found, name))} ({len(found)})" if found else ""


# ---------------------------------------------------------------- tables

def method_table(tasks: dict[str, dict[str, list[dict]]], columns: dict[str, tuple[str, Callable[[list[dict]], str]]],
                 front: bool = False) -> list[str]:
    """A row per method that has a run; columns: title -> task and what its runs come to. front: what trains, and the rates."""
    rows = []
    for method in dict.fromkeys(method for runs in tasks.values() for method in runs):
        found = [run for runs in tasks.values() for run in runs.get(method, [])]
        if found:
            rates = " ".join(dict.fromkeys(f"{run['config']['lr']:g}" for run in found))
            rows.append([method, *([trained_count(found[:1]), rates] if front else []), *(
                content(tasks[task][method]) if tasks[task].get(method) else "" for task, content in columns.values())])
    return markdown(["", *(["trained, head apart", "rate"] if front else []), *columns], rows)


def score_table(tasks: dict[str, dict[str, list[dict]]]) -> list[str]:
    """A column per task, and the mean of the five where some row has them all."""
    means = averaged(tasks)
    shown = tasks | ({AVERAGE: means} if means else {})
    return method_table(shown, {f"{task} of the {len(TASKS)}" if task == AVERAGE else task: (
        task, lambda found: cell(found, main_metric(found[0]["task"]))) for task in shown}, front=True)


def second_table(tasks: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Medians, the second scores of the tasks that have one, and the seconds that the fastest seed trained for."""
    columns = {}
    for task in tasks:
        first, *others = GLUE_TASKS[task].metrics
        columns[f"{task}, median"] = task, lambda found, name=first: median(values_of(found, name))
        columns |= {f"{task}, {other}": (task, lambda found, name=other: cell(found, name)) for other in others}
    columns |= {f"{task}, seconds": (task, lambda found: f"{min(run['seconds'] for run in found):.0f}") for task in tasks}
    return method_table(tasks, columns)


def search_table(plans: list[dict], kept: dict[str, dict], search: Search, about: str,
                 shown: Callable[[float], str] = lambda score: f"{100 * score:.1f}") -> list[str]:
    """A row per arm, a column per rate: the scores on the settings, one after the other; the choice in bold. about: what they
    are; shown: how a score is written."""
    scores, grids = scores_of(search, plans, kept), grids_of(search, plans, kept)
    rates = [rate for rate in LADDER if any(rate in of for of in scores.values())]

    def entry(arm: str, rate: str) -> str:
        text = " / ".join("diverged" if math.isinf(score) else shown(score) for score in scores[arm].get(rate, []))
        return f"**{text}**" if rate == grids[arm][1] else text

    wider = "; ".join(f"{arm} to {len(of)} rates" for arm, (of, _) in grids.items() if len(of) > GRID)
    return [*wrapped(f"{about}, seed 0; in bold the choice. Widened, because the best lay at an end: {wider or 'none'}."),
            "", *markdown(["", *rates], [[arm, *(entry(arm, rate) for rate in rates)] for arm in search.arms])]


def glue_search_table(plans: list[dict], kept: dict[str, dict], arms: dict[str, tuple[str, str]]) -> list[str]:
    return search_table(plans, kept, Search("", {}, arms), f"Held-out scores on {' / '.join(map(task_of, plans))} after two "
                        "epochs, of which the best mean rank is chosen")


def section(plans: list[dict], kept: dict[str, dict]) -> list[str]:
    """The section of results/README.md; nothing where no run of the comparison is in."""
    compared = named(plans, "glue-small")
    tasks = runs_by_task(compared, kept)
    if not any(found for runs in tasks.values() for found in runs.values()):
        return []
    return ["## The methods on a real encoder", "", *wrapped(
        f"{' '.join(ABOUT.split())} {about_the_head(tasks)} {ORIENTATION} {how_many(compared, kept)} "
        "`make glue-small DATA=D`. Searches, medians, costs and what else was asked of this base: "
        "[glue-small](glue-small/README.md)."), "", *score_table(tasks), ""]
