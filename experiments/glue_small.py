"""A fair comparison on a real pretrained encoder: every method on five GLUE tasks, with a learning rate searched alike for all.

    python -m experiments.glue_small search --data-dir D       the rates, on a tenth of the training sets, held out
    python -m experiments.glue_small runs --data-dir D         three epochs with these, the last one scored on the dev sets
    python -m experiments.glue_small report                    keeps what is finished in results/ and writes its tables
    python -m experiments.glue_small all --data-dir D          these three

A portion: `--budget-minutes N` begins no run after N minutes; the same command goes on where it was left. The base is
all-MiniLM-L6-v2 (6 layers, 384 wide). It was trained to bring sentences that belong together near each other, on pairs that
include MNLI, SNLI and QQP: these tasks are not asked here, and MRPC and STS-B, which ask the same, may gain from it.
The rate that is best for MRPC and CoLA serves all tasks (search.py). Everything else was fixed beforehand and is alike for all:
COMMON, and of the recipe gradients clipped at 1. The ranks make the added parameters as nearly as many as LoRA's on q and v as
whole numbers allow. Questions that the paper leaves open, on the same base: glue_questions.py.
"""
import argparse
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from data import fetch_task
from experiments.kept_runs import restore
from experiments.search import HELD_OUT, Search, hold_out, make_plan, make_row, plans_of, run_all_parts, run_plans, run_search
from files import cli

COMMON = ("--precision fp32 --batch-size 16 --warmup 0.06 --weight-decay 0.1 --max-length 256 --select last")
SEARCHED_ON = {"mrpc": "--epochs 2", "cola": "--epochs 2"}
TASKS = {"mrpc": "", "rte": "", "cola": "", "stsb": "", "sst2": "--limit-train 10000"}           # the shorter runs first
EPOCHS = "--epochs 3"

LORA = "--method lora --lora-init kaiming --dropout 0"
METHODS = {                                                                  # row -> options, and the lowest of its rates
    "LoRA": (f"{LORA} --targets q v --rank 8 --alpha 8", "3e-4"),            # 73,728 parameters
    "full": ("--method full", "1e-5"),
    "frozen base, head": ("--method head", "3e-4"),
    "BitFit": ("--method bitfit", "3e-4"),
    "adapter-h": ("--method adapter-h --rank 7", "3e-4"),                    # 69,204
    "adapter-l": ("--method adapter-l --rank 14", "3e-4"),                   # 71,508
    "prefix": ("--method prefix --rank 32", "1e-3"),                         # 73,728
    "last two layers": ("--method last-layers", "3e-5"),
    "LoRA, all six": (f"{LORA} --targets q k v o fc proj --rank 2 --alpha 2", "3e-4"),           # 82,944; r = 1 has half
}
SEEDS = {"LoRA": range(1, 6), "full": range(1, 6)}                           # the others: 1 to 3
OTHER_SEEDS = range(1, 4)


def setting_of(options: argparse.Namespace, *names: str) -> str:
    return "-".join((Path(options.model).name, *names))


def common_of(options: argparse.Namespace, task: str, *more: str) -> str:
    return " ".join((f"--model {options.model} --task {task}", COMMON, *more, options.extra))


def search_of(name: str, methods: dict[str, tuple[str, str]], options: argparse.Namespace) -> Search:
    settings = {setting_of(options, task): common_of(options, task, more) for task, more in SEARCHED_ON.items()}
    return Search(f"{name}-search", settings, methods)


def search(name: str, methods: dict[str, tuple[str, str]], options: argparse.Namespace) -> int:
    for task in SEARCHED_ON:
        hold_out(task, options.data_dir, options.out_dir / HELD_OUT)
    return run_search(search_of(name, methods, options), options.out_dir, options.jobs, options.until)


def rates_of(name: str, methods: dict[str, tuple[str, str]], options: argparse.Namespace, command: str,
             needed: Collection[str] = ()) -> dict[str, str]:
    """Method -> its rate, of those whose search has ended. Raises ValueError, which tells `command`, where one of those that
    are needed has not, or none has."""
    _, rates = plans_of(search_of(name, methods, options), options.out_dir)
    waiting = [method for method in methods if method not in rates]
    if not rates or not rates.keys() >= set(needed):
        raise ValueError(f"{options.out_dir}: the search of a learning rate has not ended for "
                         f"{'; '.join(method for method in waiting if method in (needed or methods))}: run `python -m "
                         f"experiments.{command} --data-dir D` until it has")
    if waiting and not needed:
        print(f"left for another time, their search goes on: {'; '.join(waiting)}")
    return rates


def compare(name: str, methods: dict[str, tuple[str, str]], options: argparse.Namespace, command: str) -> int:
    """The runs of the methods whose rate is found: seed after seed, in each all tasks, in each all methods. command: what ends
    their search."""
    rates, plans = rates_of(name, methods, options, command), []
    for task, more in TASKS.items():
        rows = [make_row(method, common_of(options, task, more, EPOCHS), methods[method][0], f"--lr {rates[method]}",
                         seeds=SEEDS.get(method, OTHER_SEEDS)) for method in methods if method in rates]
        plans.append(make_plan(name, setting_of(options, task), sorted({seed for row in rows for seed in row["seeds"]}), rows))
    return run_plans(plans, options.out_dir, options.jobs, options.until, seed_first)


def seed_first(run: tuple[tuple[str, int], object]) -> int:
    return run[0][1]


def runs(options: argparse.Namespace) -> int:
    """The comparison, and what its weights say: seconds a run, done here and now, for nothing else keeps them."""
    from experiments import glue_analysis  # which stands on this file
    failed = compare("glue-small", METHODS, options, "glue_small search")
    options.until = math.inf
    glue_analysis.spectra(options)
    glue_analysis.forgetting(options)
    return failed


def report(options: argparse.Namespace) -> int:
    from experiments import report  # matplotlib: only here
    return report.main(["--runs", str(options.out_dir)])


def run_part(prog: str, parts: dict[str, Callable[[argparse.Namespace], int]], arguments: list[str] | None) -> int:
    """The command of this file and of glue_questions.py: one of `parts`, for as long as there is time."""
    parser = argparse.ArgumentParser(prog=prog, description="Runs on a small real encoder, in portions. Options that are not "
                                     "listed here are train.py's and go to every run: --max-steps 20")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--model", default="minilm", help="in place of minilm, for whose size the ranks are")
    parser.add_argument("--data-dir", help="folder with glue/ (default: $LORA_DATA, else a cache folder)")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/small"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each (default 1)")
    parser.add_argument("--budget-minutes", type=float, default=math.inf, metavar="N", help="begin no run after N minutes")
    options, extra = parser.parse_known_args(arguments)
    restore("glue-small", options.out_dir)
    options.until, options.extra = time.time() + 60 * options.budget_minutes, " ".join(extra)
    if options.part != "report":
        for task in TASKS:
            options.data_dir = fetch_task(task, options.data_dir)
        os.environ["LORA_DATA"] = str(options.data_dir)                      # for the runs: no command holds a machine's path
    return 1 if parts[options.part](options) else 0


PARTS = {"search": lambda options: search("glue-small", METHODS, options), "runs": runs, "report": report,
         "all": lambda options: run_all_parts(PARTS, options)}


def main(arguments: list[str] | None = None) -> int:
    return run_part("experiments.glue_small", PARTS, arguments)


if __name__ == "__main__":
    cli.run(main)
