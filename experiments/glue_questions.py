"""What the reader of the paper cannot find in it, asked of the base of glue_small.py, after its search has ended.

    python -m experiments.glue_questions rates --data-dir D        the best rate of LoRA over full's: scale, rank, steps, task
    python -m experiments.glue_questions targets --data-dir D      attention alone, MLP alone, beside q v and all six
    python -m experiments.glue_questions cola --data-dir D         these four on CoLA, each at the rates of all
    python -m experiments.glue_questions data --data-dir D         rank times amount of data
    python -m experiments.glue_questions bases --data-dir D        how much the base must know

Portions, folders and the report are glue_small.py's. Two more questions need no run of their own, only the trained weights of
the comparison: glue_analysis.py. Each experiment asks with the rates that the comparison's search has found (rates apart), at
another rank, amount of data or base too: where that needs another rate, it is unfair to it.
"""
import argparse
import math
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from experiments.glue_small import (
    EPOCHS,
    LORA,
    METHODS,
    OTHER_SEEDS,
    TASKS,
    common_of,
    compare,
    rates_of,
    run_part,
    search,
    seed_first,
    setting_of,
)
from experiments.search import HELD_OUT, Search, hold_out, make_plan, make_row, run_plans, run_search
from files import cli
from files.pretrained import read_config
from files.published import fetch_model
from files.weights import read_weights, write_safetensors
from model import FAMILIES

# ---------------------------------------------------------------- the best learning rate of LoRA over that of full

STEPS = (60, 240)
RATE_TASKS = ("mrpc", "cola")
SCALES = {                                                                   # of B A x; all are 1 at r = 8
    "constant": lambda rank: 1.0, "alpha / r": lambda rank: 8 / rank, "alpha / sqrt(r)": lambda rank: math.sqrt(8 / rank)}
RATE_RANKS = (2, 8, 32)


def rate_arms() -> dict[str, tuple[str, str]]:
    """Arm -> options and lowest rate: full; the head alone, which learns at the same rate in all and pulls their best rates
    towards its own; and LoRA on q v by rule and rank; at r = 8 the rules are one."""
    arms = {"full": METHODS["full"], "head alone": METHODS["frozen base, head"], "LoRA, r = 8": METHODS["LoRA"]}
    for rule, scale in SCALES.items():
        for rank in RATE_RANKS:
            if rank != 8:
                arms[f"LoRA, r = {rank}, {rule}"] = (
                    f"{LORA} --targets q v --rank {rank} --alpha {rank * scale(rank):g}", "3e-4")
    return arms


def rate_searches(options: argparse.Namespace) -> list[Search]:
    """One for each task and number of steps; scored by the loss on what is held out, which is smoother than accuracy."""
    return [Search("glue-small-rates", {setting_of(options, task, f"{steps}-steps"): common_of(
                options, task, f"--max-steps {steps}")}, rate_arms(), lambda metrics: -metrics["scores"]["loss"])
            for steps in STEPS for task in RATE_TASKS]


def rates(options: argparse.Namespace) -> int:
    for task in RATE_TASKS:
        hold_out(task, options.data_dir, options.out_dir / HELD_OUT)
    return sum([run_search(each, options.out_dir, options.jobs, options.until) for each in rate_searches(options)])


# ---------------------------------------------------------------- attention, MLP

TARGETS = {                                                                  # beside LoRA's 73,728 and all six's 82,944
    "LoRA, attention": (f"{LORA} --targets q k v o --rank 4 --alpha 4", "3e-4"),                 # 73,728
    "LoRA, MLP": (f"{LORA} --targets fc proj --rank 3 --alpha 3", "3e-4"),                       # 69,120
}


def targets(options: argparse.Namespace) -> int:
    name = "glue-small-targets"
    return search(name, TARGETS, options) + compare(name, TARGETS, options, "glue_questions targets")


# ---------------------------------------------------------------- the rate on CoLA

BY_TARGETS = {"LoRA": METHODS["LoRA"], **TARGETS, "LoRA, all six": METHODS["LoRA, all six"]}


def cola(options: argparse.Namespace) -> int:
    """Not planned beforehand: the comparison had seeds that end at 0 there, and its arms differ in their rates as well as in
    their matrices. Here each has every rate that the search of one of them took."""
    rates = (rates_of("glue-small", METHODS, options, "glue_small search", ("LoRA", "LoRA, all six"))
             | rates_of("glue-small-targets", TARGETS, options, "glue_questions targets", TARGETS))
    taken = sorted({rates[arm] for arm in BY_TARGETS}, key=float)
    rows = [make_row(f"{arm}, {rate}", common_of(options, "cola", TASKS["cola"], EPOCHS), of_arm, f"--lr {rate}")
            for arm, (of_arm, _) in BY_TARGETS.items() for rate in taken]
    plan = make_plan("glue-small-cola", setting_of(options, "cola"), OTHER_SEEDS, rows)
    return run_plans([plan], options.out_dir, options.jobs, options.until, seed_first)


# ---------------------------------------------------------------- rank and amount of data

AMOUNTS = {100: "--epochs 30", 1000: "--epochs 6", 10000: EPOCHS}            # fewer rows are seen more often
DATA_RANKS = (1, 4, 8, 16, 64)


def of_rank(rank: int) -> str:
    """LoRA on q v with alpha 8 at every rank: scaled by alpha / r, its first steps change a weight about as much as those of
    r = 8, whose rate was searched, do. With alpha = r they would grow with r, and the figure peak at r = 8 by construction."""
    return f"{LORA} --targets q v --rank {rank} --alpha 8"


def data(options: argparse.Namespace) -> int:
    rate, rows = rates_of("glue-small", METHODS, options, "glue_small search", ("LoRA", "full")), []
    for amount, epochs in AMOUNTS.items():
        arms = {"full": f"--method full --lr {rate['full']}"} | {
            f"r = {rank}": f"{of_rank(rank)} --lr {rate['LoRA']}" for rank in DATA_RANKS}
        rows += [make_row(f"{arm}, {amount:,} rows", common_of(options, "sst2", f"--limit-train {amount}", epochs), of_arm)
                 for arm, of_arm in arms.items()]
    plan = make_plan("glue-small-data", setting_of(options, "sst2"), OTHER_SEEDS, rows)
    return run_plans([plan], options.out_dir, options.jobs, options.until, seed_first)


# ---------------------------------------------------------------- what the base knows

BASES = ("upper three layers anew", "all layers anew", "everything anew")
BASE_TASKS = {"sst2": BASES, "mrpc": BASES[:1]}                              # poorer ones: MRPC's larger class, in all arms
BASE_METHODS = ("full", "LoRA", "frozen base, head")


def base_arms(task: str) -> dict[str, tuple[str, str]]:
    """Arm -> its options, and the method whose rate it has. On SST-2 also whether more rank makes up for a poor base."""
    arms = {method: (METHODS[method][0], method) for method in BASE_METHODS}
    return arms | ({"LoRA, r = 64": (of_rank(64), "LoRA")} if task == "sst2" else {})


def bases(options: argparse.Namespace) -> int:
    rate = rates_of("glue-small", METHODS, options, "glue_small search", BASE_METHODS)
    models = {"whole": options.model}
    for base in BASES:
        models[base] = (options.out_dir / "bases" / base.replace(" ", "-")).as_posix()
        redraw(options.model, base, Path(models[base]))
    plans = []
    for task, redrawn in BASE_TASKS.items():
        common = common_of(options, task, TASKS[task], EPOCHS)
        rows = [make_row(f"{arm}, {base}", common, of_arm, f"--lr {rate[method]}", f"--model {models[base]}")
                for base in ("whole", *redrawn) for arm, (of_arm, method) in base_arms(task).items()]
        plans.append(make_plan("glue-small-bases", setting_of(options, task), OTHER_SEEDS, rows))
    return run_plans(plans, options.out_dir, options.jobs, options.until, seed_first)


def redraw(model: str, what: str, folder: Path) -> None:
    """Write a copy of a model's folder, one of BASES: with tensors of some layers drawn anew. What stands above the last layer
    is drawn with them; embeddings stay but in the last of BASES."""
    source = fetch_model(model)
    _, config = read_config(source, FAMILIES)
    first = {"upper three layers anew": config.num_layers - 3, "all layers anew": 0, "everything anew": -1}[what]
    generator = torch.Generator().manual_seed(0)
    tensors, file = read_weights(source)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors({name: drawn_anew(name, tensor, generator) if layer_of(name, config.num_layers) >= first else tensor
                       for name, tensor in tensors.items()}, folder / "model.safetensors")
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.is_file() and not path.name.startswith(("model.", "pytorch_model.")):
            shutil.copyfile(path, folder / path.name)


def layer_of(name: str, layers: int) -> int:
    """The layer that a tensor belongs to; -1 for the embeddings', and the number of layers for what stands above them."""
    layer = re.search(r"\.layer\.(\d+)\.", f".{name}")
    return int(layer[1]) if layer else -1 if "embeddings." in name else layers


def drawn_anew(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """As BERT's start: matrices normal with deviation 0.02, LayerNorms 1, biases 0. Whole numbers, positions, stay."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.dim() > 1:
        return torch.empty(tensor.shape).normal_(0, 0.02, generator=generator)
    return torch.full(tensor.shape, float(name.endswith((".weight", ".gamma"))))


PARTS = {"rates": rates, "targets": targets, "cola": cola, "data": data, "bases": bases}


def main(arguments: list[str] | None = None) -> int:
    return run_part("experiments.glue_questions", PARTS, arguments)


if __name__ == "__main__":
    cli.run(main)
