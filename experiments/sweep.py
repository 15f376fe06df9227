"""The paper's experiments as plain data, and what runs them: every row is an exact train.py command, for several seeds.

    python -m experiments.sweep rank targets lr              on the toy text task (what the make targets ablation-* run)
    python -m experiments.sweep rank --task mrpc             on the toy pairs
    python -m experiments.sweep rank --model roberta-base --task mrpc        on a real model, with the paper's recipe
    python -m experiments.sweep methods --list               prints the commands and runs nothing

    methods        every method beside the others (Tables 2 and 3), and the frozen base
    rank           r = 1 to 64 (Tables 6 and 18)
    targets        which weight matrices, at equal parameters (Table 5), and the MLP, which the paper leaves out
    lr, alpha, dropout      one hyperparameter at a time
    low-data       few training samples: LoRA, prefix and full fine-tuning (Table 16)
    base-quality   the same LoRA on bases that were pretrained for less and less
    seeds          LoRA with ten seeds: how large the spread is
    mini           every method on real E2E, on the small GPT-2 of `make pretrain-mini`; LORA_DATA says where the data are

Runs are separate processes, `--jobs` at a time with one thread each, which for small models gets about twice as much done
as one process with two threads. A run that several experiments share is made once, a finished one is not repeated, an
interrupted one goes on, and one that fails is shown as failed and does not stop the others. What the rows of an experiment
have in common, the learning rate above all, was chosen at its middle row and is not tuned anew for each: where a row would
gain from another one, the experiment is unfair to it (see `lr`). A real encoder, with the rate of every method searched:
glue_small.py.
"""
import argparse
import math
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch

import data
from experiments.kept_runs import finished, from_folders, is_single, places
from experiments.tables import plan_tables, primary_score
from files import cli
from files.text import read_json, write_json
from lora import base_fingerprints
from model import load_pretrained
from toy import world

TOY_DATA = Path("toy/data")
LEFT = "left for another time"
LONGEST_NAME = 240                                                           # of a folder, in bytes

# ---------------------------------------------------------------- settings: what all rows on a base and task share

SETTINGS = {
    "toy-mrpc": "--model toy/roberta --task mrpc --data-dir toy/data --epochs 2",
    "toy-mnli": "--model toy/roberta --task mnli --data-dir toy/data --epochs 3",
    "toy-e2e": "--model toy/gpt2 --task e2e --data-dir toy/data --epochs 1 --limit-eval 100 --beam-size 4",
    "mini-e2e": "--model runs/mini/gpt2 --task e2e --epochs 1 --limit-train 4000 --limit-eval 100 --beam-size 4",
}

# ---------------------------------------------------------------- methods: the rows of Tables 2 and 3

PAIRS = {
    "frozen base, head": "--method head --lr 3e-3",
    "full": "--method full --lr 3e-4",
    "last two layers": "--method last-layers --lr 3e-4",
    "BitFit": "--method bitfit --lr 3e-3",
    "adapter-h": "--method adapter-h --rank 8 --lr 2e-3",
    "adapter-l": "--method adapter-l --rank 8 --lr 2e-3",
    "prefix": "--method prefix --rank 16 --lr 1e-2",
    "LoRA": "--method lora --rank 4 --alpha 32 --targets q v --dropout 0 --lora-init kaiming --lr 2e-3",
}
TEXT = {
    "frozen base": "--eval-only",
    "full": "--method full --lr 1e-3",
    "last two layers": "--method last-layers --lr 1e-3",
    "BitFit": "--method bitfit --lr 1e-2",
    "adapter-h": "--method adapter-h --rank 8 --lr 5e-3",
    "adapter-l": "--method adapter-l --rank 8 --lr 5e-3",
    "prefix": "--method prefix --rank 16 --lr 5e-2",
    "LoRA": "--method lora --rank 4 --alpha 32 --targets q v --dropout 0.1 --lr 5e-3",
}
RECIPE = {                                                                   # a model of the user's: all from recipes.py
    "full": "--method full",
    "last two layers": "--method last-layers",
    "BitFit": "--method bitfit",
    "adapter-h": "--method adapter-h",
    "adapter-l": "--method adapter-l",
    "prefix": "--method prefix",
    "LoRA": "--method lora --targets q v",
}
LORA_RANKS = {"LoRA, r = 1": "--rank 1", "LoRA, r = 16": "--rank 16"}        # the mini base's table has these two as well

# ---------------------------------------------------------------- experiments: what their rows change in LoRA's row


@dataclass(frozen=True)
class Experiment:
    settings: tuple[str, ...]
    rows: dict[str, str] | None = None                                       # label -> options; None: the methods
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ("LoRA",)                                     # of which every row has a variant


TEXT_ONLY, TOY = ("toy-e2e",), ("toy-mrpc", "toy-e2e")
EXPERIMENTS = {
    "methods": Experiment(TOY),
    "rank": Experiment(TEXT_ONLY, {f"r = {rank}": f"--rank {rank}" for rank in (1, 2, 4, 8, 16, 64)}),
    # An update of q, k, v or o has 2 d r numbers: 16 d per block in all rows. One of fc or proj has 5 d r: 20 d together.
    "targets": Experiment(TEXT_ONLY, {
        "q": "--targets q --rank 8", "k": "--targets k --rank 8", "v": "--targets v --rank 8", "o": "--targets o --rank 8",
        "q k": "--targets q k --rank 4", "q v": "--targets q v --rank 4", "q k v o": "--targets q k v o --rank 2",
        "fc proj": "--targets fc proj --rank 2"}),
    "lr": Experiment(TEXT_ONLY, {f"lr = {lr}": f"--lr {lr}" for lr in ("5e-5", "2e-4", "1e-3", "5e-3", "2e-2", "1e-1")}),
    "alpha": Experiment(TEXT_ONLY, {f"alpha = {alpha}": f"--alpha {alpha}" for alpha in (4, 8, 16, 32, 64, 128)}),
    "dropout": Experiment(TEXT_ONLY, {f"dropout = {share}": f"--dropout {share}" for share in ("0", "0.1", "0.3")}),
    "low-data": Experiment(TOY, {
        "100 samples": "--limit-train 100 --epochs 30", "1,000 samples": "--limit-train 1000 --epochs 6", "all samples": ""},
        methods=("full", "prefix", "LoRA")),
    "base-quality": Experiment(TOY, {"100 steps": "runs/bases/100", "300 steps": "runs/bases/300",
                                     "1,000 steps": "runs/bases/1000", "the shipped base": "toy"}),
    "seeds": Experiment(TOY, {"LoRA": ""}, seeds=tuple(range(10))),
    "mini": Experiment(("mini-e2e",)),
}


# ---------------------------------------------------------------- from rows to commands

def options_of(*parts: str) -> dict[str, str]:
    """Options as name -> value; what stands later replaces what stands earlier, in its place."""
    merged = {}
    for part in parts:
        for option in re.split(r"(?:^|\s+)--(?=[a-z])", part)[1:]:
            name, _, value = option.strip().partition(" ")
            merged[name] = value.strip()
    return merged


def command_of(options: dict[str, str]) -> str:
    return " ".join(f"--{name} {value}".rstrip() for name, value in options.items())


def folder_of(options: dict[str, str]) -> str:
    """A folder name of its own for every command, no longer than file systems take it."""
    shown = [f"{'' if name in ('task', 'method', 'model') else name}{value.replace(' ', '-')}"
             for name, value in options.items() if name != "data-dir"]
    name = re.sub(r"[^\w.=-]+", "-", "_".join(shown))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME - 9]}-{crc32(name.encode()):08x}"


def method_rows(setting: str) -> dict[str, str]:
    if setting == "mini-e2e":
        return TEXT | {label: f"{TEXT['LoRA']} {change}" for label, change in LORA_RANKS.items()}
    return {"toy-mrpc": PAIRS, "toy-mnli": PAIRS, "toy-e2e": TEXT}.get(setting, RECIPE)


def rows_of(name: str, setting: str, common: str, extra: str = "") -> dict[str, dict[str, str]]:
    """Label -> options of every row of an experiment on a setting; common: the setting's own options."""
    experiment, methods = EXPERIMENTS[name], method_rows(setting)
    if experiment.rows is None:
        return {label: options_of(common, row, extra) for label, row in methods.items()}
    rows = {}
    for method in experiment.methods:
        for label, change in experiment.rows.items():
            if name == "base-quality":
                change = f"--model {change}/{'gpt2' if 'e2e' in setting else 'roberta'}"
            rows[label if len(experiment.methods) == 1 else f"{method}, {label}"] = options_of(
                common, methods[method], change, extra)
    return rows


def make_plan(name: str, setting: str, common: str, seeds: list[int] | None, extra: str) -> dict:
    """An experiment on a setting as it is written beside the runs: rows with label, command and folder, and the seeds."""
    rows = [{"label": label, "command": command_of(options), "folder": folder_of(options)}
            for label, options in rows_of(name, setting, common, extra).items()]
    return {"experiment": name, "setting": setting, "seeds": list(seeds or EXPERIMENTS[name].seeds), "rows": rows,
            "made": machine()}


def write_plans(plans: list[dict], out_dir: Path) -> None:
    (out_dir / "plans").mkdir(parents=True, exist_ok=True)
    for plan in plans:
        write_json(plan, out_dir / "plans" / f"{plan['experiment']}_{plan['setting']}.json")


def processor() -> str:
    """How many cores of what."""
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpu_info.read_text(), re.M) if cpu_info.exists() else []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def machine() -> str:
    """Where and when something was run, as the report says it."""
    gpu = f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"Run on {processor()}{gpu}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}."


def chosen_settings(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Experiment -> setting -> common options, for the model, task and data that the user named, if any."""
    data_dir = f"--data-dir {options.data_dir}" if options.data_dir else ""
    if options.model:
        if not options.task:
            raise ValueError(f"--model {options.model} without a task: give --task as well (make: TASK=)")
        name = f"{Path(options.model).name}-{options.task}"
        common = command_of(options_of(f"--model {options.model} --task {options.task}", data_dir))
        return {experiment: {name: common} for experiment in options.experiments}
    chosen = {}
    for experiment in options.experiments:
        settings = EXPERIMENTS[experiment].settings
        if options.task:
            world_of = settings[0].partition("-")[0]                         # toy or mini
            settings = [setting for setting in SETTINGS if setting == f"{world_of}-{options.task}"]
        if not settings:
            raise ValueError(f"experiment {experiment} has no task '{options.task}' of its own: give --model as well")
        chosen[experiment] = {setting: command_of(options_of(SETTINGS[setting], data_dir)) for setting in settings}
    return chosen


# ---------------------------------------------------------------- running them

def run_process(command: list[str], log: Path) -> int:
    """The exit status of a process of one thread that writes into `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=os.environ | one_thread
                              ).returncode


def run_once(row: dict, seed: int, out_dir: Path) -> tuple[dict | None, str]:
    """Make, finish or find a run; its metrics and how long it took, or None and what went wrong."""
    folder, command, started = out_dir / row["folder"], row["command"], time.perf_counter()
    if path := finished(out_dir, row, seed):
        return read_json(path), "found"
    log, of_a_seed = folder / f"seed{seed}.txt", [] if is_single(row) else ["--seed", str(seed), "--resume"]
    status = run_process(["train.py", *command.split(), "--out-dir", str(folder), *of_a_seed], log)
    path = finished(out_dir, row, seed)
    if status or path is None:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
        return None, f"exit status {status}: {last[0]} (all of it in {log})"
    (path.parent / "last.pt").unlink(missing_ok=True)                        # of a large model, the most of a run's folder
    metrics = read_json(path)
    if metrics["task"] == "e2e" and options_of(command).get("data-dir") == TOY_DATA.as_posix():
        metrics["value_share"] = value_share(path.parent)
        write_json(metrics, path)
    return metrics, f"{time.perf_counter() - started:.0f} s"


def value_share(folder: Path) -> float:
    """Mean share of a toy record's values that stand in its decoded text."""
    texts = (folder / "predictions.txt").read_text(encoding="utf-8").splitlines()
    records = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", TOY_DATA)))[:len(texts)]
    return sum(world.value_share(mr, text) for mr, text in zip(records, texts, strict=True)) / len(texts)


def make_bases(plans: list[dict], out: str = "runs/bases") -> None:
    """Pretrain the poorer bases that a plan names and that are not there yet."""
    models = {options_of(row["command"])["model"] for plan in plans for row in plan["rows"]}
    for model in sorted(name for name in models if name.startswith(f"{out}/")):
        steps, kind = model.split("/")[-2:]
        if not (Path(model) / "model.safetensors").exists():
            command = ["-m", "toy.pretrain", "--model", kind, "--max-steps", steps, "--out", f"{out}/{steps}"]
            print(f"$ python {' '.join(command)}", flush=True)
            if run_process([*command, "--threads", "1"], Path(f"{model}.txt")):
                raise ValueError(f"{model} could not be pretrained: see {model}.txt")


def fingerprint_of(model: str) -> str | None:
    """Of a model folder on this machine; None for a model that is fetched by name, which stays what it is."""
    return base_fingerprints(load_pretrained(model))["float32"] if Path(model).is_dir() else None


def refuse_runs_on_another_base(plans: list[dict], out_dir: Path) -> None:
    """A model folder may have been made anew under its old name: runs on what it was say nothing about what it is."""
    now = {}
    for (_, seed), (_, row) in all_runs(plans).items():
        model, path = options_of(row["command"])["model"], finished(out_dir, row, seed)
        if path:
            now.setdefault(model, fingerprint_of(model))
            then = read_json(path)["base_fingerprint"]
            if now[model] not in (None, then):
                raise ValueError(f"{path}: this run was made on base {then}, and {model} is now base {now[model]}; "
                                 "remove the runs on the old one, or give another --out-dir")


def all_runs(plans: list[dict]) -> dict[tuple[str, int], tuple[str, dict]]:
    """(folder, seed) -> a name to print and the row, of every run of the plans, each once."""
    runs = {}
    for plan in plans:
        for seed in plan["seeds"]:
            for row in plan["rows"]:
                if seed in places(plan, row):
                    runs.setdefault((row["folder"], seed), (f"{plan['setting']}, {row['label']}, seed {seed}", row))
    return runs


def run_all(runs: dict[tuple[str, int], tuple[str, dict]], out_dir: Path, jobs: int, until: float = math.inf) -> int:
    """Runs of all_runs, in their order, `jobs` at a time; a line for each that ends. Returns how many failed.
    until: a time.time() from which on none is begun any more."""
    def run_in_time(row: dict, seed: int) -> tuple[dict | None, str]:
        return run_once(row, seed, out_dir) if time.time() < until else (None, LEFT)

    failed, done, left, started = 0, 0, 0, time.perf_counter()
    pool = ThreadPoolExecutor(jobs)
    futures = {pool.submit(run_in_time, row, seed): label for (_, seed), (label, row) in runs.items()}
    try:
        for future in as_completed(futures):
            metrics, message = future.result()
            if message == LEFT:
                left += 1
                continue
            done, failed = done + 1, failed + (metrics is None)
            score = "FAILED" if metrics is None else "{} {:.4f}".format(*primary_score(metrics))
            print(f"[{done}/{len(runs)}] {futures[future]}: {score}, {message}", flush=True)
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)                                   # the running processes end by the same Ctrl-C
        raise
    print(f"{len(runs)} runs, {failed} failed, {f'{left} {LEFT}, ' if left else ''}{time.perf_counter() - started:.0f} s")
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.sweep", description="Run experiments of the paper. Options that are not "
                                     "listed here are train.py's and go to every run: --max-steps 20")
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS, metavar="EXPERIMENT", help=" ".join(EXPERIMENTS))
    parser.add_argument("--model", help="in place of the toy models; what is not varied then comes from recipes.py")
    parser.add_argument("--task", help="the task, or of the toy tasks only this one")
    parser.add_argument("--data-dir", help="folder with e2e/ and glue/")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the experiment's, 0 1 2 for most")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each (default 2)")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--list", action="store_true", help="print the commands only")
    options, extra = parser.parse_known_args(arguments)
    plans = [make_plan(experiment, setting, common, options.seeds, " ".join(extra))
             for experiment, settings in chosen_settings(options).items() for setting, common in settings.items()]
    if options.list:
        for plan in plans:
            print(f"# {plan['experiment']} on {plan['setting']}, seeds {' '.join(map(str, plan['seeds']))}")
            print("\n".join(f"python train.py {row['command']}" for row in plan["rows"]))
        return 0
    if any("toy/data" in row["command"] for plan in plans for row in plan["rows"]):
        world.write_tasks(TOY_DATA)
    make_bases(plans)
    refuse_runs_on_another_base(plans, options.out_dir)
    write_plans(plans, options.out_dir)
    failed = run_all(all_runs(plans), options.out_dir, options.jobs)
    for plan in plans:
        print("\n" + "\n".join(plan_tables(plan, from_folders([plan], options.out_dir))))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
