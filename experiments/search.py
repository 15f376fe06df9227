"""A search for the learning rate that is the same for every arm: a grid, widened where its best is at an end, and the choice.

    grid       GRID rates of LADDER, a factor of about 3 apart, from the arm's own lowest on
    scored     on a tenth of the training set, held out with a seed; no development set is seen
    choice     the rate of the best mean rank over the search's settings (chosen_rate)
    widening   where the choice is the first or the last of a grid, one more rate is added there, until it is not

A rate at which a run diverges counts as the worst. How far a search is follows from the finished runs alone, so it goes on
wherever it was left. Left out: other hyperparameters than the learning rate, which are the same for all.
"""
import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import GLUE_TASKS, split_file
from eval_metrics import ranks
from experiments.kept_runs import finished, from_folders, has_diverged, runs_of
from experiments.sweep import all_runs, command_of, folder_of, machine, options_of, run_all, write_plans
from experiments.tables import primary_score
from files.glue_forms import read_table
from files.text import read_lines
from files.writing import written_whole

LADDER = (*(f"{digit}e-{power}" for power in range(7, 0, -1) for digit in (1, 3)), "1", "3")
GRID = 5
HELD_OUT = "held-out"                                                        # the folder of the data, and of the runs on them
RATE = ", lr = "                                                             # in a row's label, between the arm and its rate


@dataclass(frozen=True)
class Search:
    name: str                                                                # the experiment of its plans
    settings: dict[str, str]                                                 # setting -> the options that all its rows share
    arms: dict[str, tuple[str, str]]                                         # arm -> its options, and its lowest rate
    score: Callable[[dict], float] = lambda metrics: primary_score(metrics)[1]           # of a run; higher is better


# ---------------------------------------------------------------- what is held out

def hold_out(task: str, data_dir: str | Path, folder: Path) -> None:
    """Write folder/glue/TASK/{train,dev}: the lines of data_dir's training file, a tenth of its rows, drawn with a seed, as
    dev. Raises ValueError for CSV, whose rows may have several lines."""
    source = split_file(task, "train", data_dir)
    if source.suffix == ".csv":
        raise ValueError(f"{source}: expected lines that are rows; make .tsv or .jsonl of it")
    glue, lines = GLUE_TASKS[task], [line for _, line in read_lines(source)]
    numbers = [number for number, _ in read_table(source, glue.texts, glue.label, glue.bare_columns)[1]]
    drawn = set(random.Random(f"{task}, held out").sample(numbers, len(numbers) // 10))
    header = lines[:numbers[0] - 1]
    for split, rows in (("train", [n for n in numbers if n not in drawn]), ("dev", sorted(drawn))):
        path = folder / "glue" / glue.folder / f"{split}{source.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write("".join(f"{line}\n" for line in [*header, *(lines[n - 1] for n in rows)]).encode("utf-8"))


# ---------------------------------------------------------------- grid and choice

def chosen_rate(scores: dict[str, Sequence[float]]) -> str:
    """Rate -> its score in every setting; returns the one of the best mean rank. Of equals, which have the mean of their ranks:
    the one with the higher mean score, then the one nearest to the middle."""
    by_setting = [ranks([-score for score in of_setting]) for of_setting in zip(*scores.values(), strict=True)]
    rates, middle = list(scores), (len(scores) - 1) / 2
    return min(rates, key=lambda rate: (statistics.mean(of[rates.index(rate)] for of in by_setting),
                                        -statistics.mean(scores[rate]), abs(rates.index(rate) - middle)))


def grid_of(lowest: str, scores: dict[str, Sequence[float]]) -> tuple[list[str], str | None]:
    """The rates to run, and the choice, which lies inside of them; None while runs of these are missing. scores: of the rates
    that have one in every setting. Raises ValueError where LADDER ends."""
    first = LADDER.index(lowest)
    rates = list(LADDER[first:first + GRID])
    while scores.keys() >= set(rates):
        best = chosen_rate({rate: scores[rate] for rate in rates})
        if best not in (rates[0], rates[-1]):
            return rates, best
        if best in (LADDER[0], LADDER[-1]):
            raise ValueError(f"the best learning rate is {best}, at the end of all that are tried, {LADDER[0]} to {LADDER[-1]}")
        at = LADDER.index(best)
        rates = [LADDER[at - 1], *rates] if best == rates[0] else [*rates, LADDER[at + 1]]
    return rates, None


# ---------------------------------------------------------------- plans

def make_row(label: str, *options: str, seeds: Sequence[int] = (), held_out: Path | None = None) -> dict:
    """A row of a plan; held_out: the folder that hold_out has written; runs on it have folders of their own."""
    found = options_of(*options, f"--data-dir {held_out.as_posix()}" if held_out else "")
    row = {"label": label, "command": command_of(found), "folder": f"{HELD_OUT}/" * bool(held_out) + folder_of(found)}
    return row | ({"seeds": list(seeds)} if seeds else {})


def make_plan(experiment: str, setting: str, seeds: Sequence[int], rows: list[dict]) -> dict:
    return {"experiment": experiment, "setting": setting, "seeds": list(seeds), "rows": rows, "made": machine()}


def scores_of(search: Search, plans: list[dict], lines: dict[str, dict]) -> dict[str, dict[str, list[float]]]:
    """Arm -> rate -> its score in every setting, of the rates that were run in all; lines: of kept_runs."""
    found: dict[str, dict[str, list[float]]] = {arm: {} for arm in search.arms}
    for plan in plans:
        runs = runs_of(plan, lines)
        for row in plan["rows"]:
            arm, _, rate = row["label"].rpartition(RATE)
            score = [-float("inf")] if row.get("diverged") else [search.score(metrics) for metrics in runs[row["label"]]]
            found.setdefault(arm, {}).setdefault(rate, []).extend(score)         # a kept row's arm may be searched no longer
    return {arm: {rate: scores for rate, scores in of.items() if len(scores) == len(plans)} for arm, of in found.items()}


def grids_of(search: Search, plans: list[dict], lines: dict[str, dict]) -> dict[str, tuple[list[str], str | None]]:
    """Arm -> the rates to run, and the choice or None (grid_of)."""
    scores = scores_of(search, plans, lines)
    return {arm: grid_of(lowest, scores[arm]) for arm, (_, lowest) in search.arms.items()}


def plans_of(search: Search, out_dir: Path) -> tuple[list[dict], dict[str, str]]:
    """The search's plans, a setting each, widened as far as the finished runs say; and arm -> its rate where one is chosen."""
    grids = {arm: grid_of(lowest, {}) for arm, (_, lowest) in search.arms.items()}
    while True:
        plans = []
        for setting, common in search.settings.items():
            rows = [make_row(f"{arm}{RATE}{rate}", common, search.arms[arm][0], f"--lr {rate}", held_out=out_dir / HELD_OUT)
                    for arm, (rates, _) in grids.items() for rate in rates]
            plans.append(make_plan(search.name, setting, [0], [
                row | ({"diverged": True} if has_diverged(row, out_dir) else {}) for row in rows]))
        before, grids = grids, grids_of(search, plans, from_folders(plans, out_dir))
        if [rates for rates, _ in before.values()] == [rates for rates, _ in grids.values()]:
            return plans, {arm: best for arm, (_, best) in grids.items() if best}


# ---------------------------------------------------------------- in portions

def run_plans(plans: list[dict], out_dir: Path, jobs: int, until: float, order: Callable[[tuple], object]) -> int:
    """Write the plans and run what of them is not finished, sorted by `order` of ((folder, seed), (name, row)); say what
    remains. Returns how many failed."""
    write_plans(plans, out_dir)
    todo = {(folder, seed): run for (folder, seed), run in sorted(all_runs(plans).items(), key=order)
            if not finished(out_dir, run[1], seed) and not run[1].get("diverged")}
    failed = run_all(todo, out_dir, jobs, until) if todo else 0
    for plan in plans:
        print(remaining(plan, out_dir), flush=True)
    return failed


def remaining(plan: dict, out_dir: Path) -> str:
    """How many runs of a plan there are and remain, and their training time by the mean of those that are there."""
    wanted = [row for (_, _), (_, row) in all_runs([plan]).items() if not row.get("diverged")]
    seconds = [line["metrics"]["seconds"] for line in from_folders([plan], out_dir).values()]
    left = len(wanted) - len(seconds)
    time = f", {left} remain" + (f": {left * statistics.mean(seconds) / 60:.0f} min of training" if seconds else "")
    return f"{plan['experiment']}, {plan['setting']}: {len(seconds)} of {len(wanted)} runs are there" + time * bool(left)


def run_all_parts(parts: dict[str, Callable[[argparse.Namespace], int]], options: argparse.Namespace) -> int:
    """The parts search, runs and report, one after the other; the report is written where a run has failed, too. Returns how
    many have."""
    try:
        return parts["search"](options) + parts["runs"](options)
    finally:
        parts["report"](options)


def run_search(search: Search, out_dir: Path, jobs: int, until: float) -> int:
    """Run a search, arm after arm, and what it is widened by, to its end or for as long as there is time."""
    arms, failed, plans = list(search.arms), 0, None
    while plans != (now := plans_of(search, out_dir)[0]):                    # the same again: finished, failed or out of time
        plans = now
        failed = run_plans(plans, out_dir, jobs, until, lambda run: arms.index(run[1][1]["label"].rpartition(RATE)[0]))
    for arm, rate in plans_of(search, out_dir)[1].items():
        print(f"{search.name}: {arm} takes {rate}")
    return failed
