"""Two questions to the weights that the comparison of glue_small.py has trained: what changed, and what is forgotten.

    python -m experiments.glue_analysis spectra --data-dir D       the rank of an update, and new leading directions
    python -m experiments.glue_analysis forgetting --data-dir D    the other tasks' scores after a task was learnt

Spectra. Delta W is the difference of a tuned weight to the base's. How much of it rank r could hold is the share of its squared
singular values that the first r have. An intruder (Shuttleworth et al. 2024) is a left singular vector among the LEADING first
of the tuned weight whose cosine with every one of the base's lies below SIMILAR. Both constants were fixed beforehand.

Forgetting. The head of another task was trained on the frozen base; it is put, unchanged, onto the encoder after LoRA or full
fine-tuning learnt a task, and scored on its own task's dev set. What it loses is what the encoder no longer says.

Each run's numbers are a line of spectra.jsonl or forgetting.jsonl in the runs' folder, which the report of glue_small.py keeps.
Left out: what a method adds as modules, which has no weight of the base to compare with.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from data import GLUE_TASKS
from experiments.glue_small import OTHER_SEEDS, run_part
from experiments.kept_runs import finished, keep_lines, read_lines
from experiments.subspace import base_weight
from files import cli
from files.published import fetch_model
from files.text import read_json
from lora import is_base, lora_layers, merge
from methods import load_trained
from model import load_pretrained
from training.command_line import parse_arguments
from training.setup import prepare

TUNED = ("LoRA", "full", "LoRA, all six")                                    # methods that change weights of the base
LEADING, SIMILAR = 10, 0.6
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


# ---------------------------------------------------------------- the runs

def runs_of_comparison(out_dir: Path) -> dict[tuple[str, str, int], tuple[Path, str]]:
    """(task, method, seed) -> the folder and the command, of the finished runs of glue_small.py."""
    found = {}
    for path in sorted((out_dir / "plans").glob("glue-small_*.json")):
        for row in (plan := read_json(path))["rows"]:
            for seed in row.get("seeds", plan["seeds"]):
                metrics = finished(out_dir, row, seed)
                if metrics is not None and (metrics.parent / "adapter").is_dir():
                    found[plan["setting"].rpartition("-")[2], row["label"], seed] = metrics.parent, row["command"]
    return found


def tuned_model(folder: Path):
    """The model of a run as it was in the epoch that the run chose, updates merged."""
    config = read_json(folder / "config.json")
    model = load_pretrained(fetch_model(config["model"]), None if (classes := GLUE_TASKS[config["task"]].labels) else 1,
                            classes=classes)
    load_trained(model, folder / "adapter")
    return merge(model) if lora_layers(model) else model


# ---------------------------------------------------------------- what changed

def spectrum(W: Tensor, tuned: Tensor) -> dict:
    """Of one weight (d_out, d_in) before and after: the share of the change that each of RANKS could hold, the size of the
    change over the weight's, and the number of intruders among the LEADING first directions."""
    squares = torch.linalg.svdvals((tuned - W).double()) ** 2
    held = (squares.cumsum(0) / squares.sum()).tolist()
    old, new = (torch.linalg.svd(matrix.double(), full_matrices=False).U for matrix in (W, tuned))
    nearest = (old.T @ new[:, :LEADING]).abs().amax(dim=0)                   # (r, d_out) x (d_out, 10) -> (10,)
    return {"held": [held[min(rank, len(held)) - 1] for rank in RANKS],
            "size": (torch.linalg.norm(tuned - W) / torch.linalg.norm(W)).item(), "intruders": (nearest < SIMILAR).sum().item()}


def spectra_of(base, tuned, targets: tuple[str, ...]) -> dict[str, dict]:
    """Target -> the means of `spectrum` over the blocks."""
    found = {}
    for target in targets:
        blocks = [spectrum(*(base_weight(model, block, target) for model in (base, tuned)))
                  for block in range(base.config.num_layers)]
        columns = {name: [of[name] for of in blocks] for name in blocks[0]}
        held = [round(statistics.mean(of_rank), 6) for of_rank in zip(*columns.pop("held"), strict=True)]
        found[target] = {"held": held} | {name: round(statistics.mean(values), 6) for name, values in columns.items()}
    return found


def spectra(options: argparse.Namespace) -> int:
    """A line per run of seed 1 of the methods that change weights."""
    path = options.out_dir / "spectra.jsonl"
    for (task, method, seed), (folder, _) in runs_of_comparison(options.out_dir).items():
        place = f"{task}/{method}/seed{seed}"
        if method not in TUNED or seed != 1 or place in read_lines(path) or time.time() > options.until:
            continue
        base, tuned = load_pretrained(fetch_model(read_json(folder / "config.json")["model"])), tuned_model(folder)
        targets = tuple(name for name in ("q", "k", "v", "o", "fc", "proj")
                        if not torch.equal(base_weight(base, 0, name), base_weight(tuned, 0, name)))
        keep_lines({place: {"place": place, "targets": spectra_of(base, tuned, targets)}}, path)
        print(f"spectra of {place}", flush=True)
    return 0


# ---------------------------------------------------------------- what is forgotten

@torch.no_grad()
def put_encoder(source, model) -> None:
    """Copy the base's tensors of one model into another; the head stays."""
    own = dict(model.named_parameters())
    for name, parameter in source.named_parameters():
        if is_base(model, name):
            own[name].copy_(parameter)


def forgetting(options: argparse.Namespace) -> int:
    """A line per run of LoRA or full and other task whose head was trained on the base with the same seed."""
    path, runs = options.out_dir / "forgetting.jsonl", runs_of_comparison(options.out_dir)
    for (other, method, seed), (head, command) in runs.items():
        learnt = [(task, way) for task, way, of in runs if of == seed and way in TUNED[:2] and task != other]
        todo = [pair for pair in learnt if f"{'/'.join(pair)}/seed{seed}/{other}" not in read_lines(path)]
        if method != "frozen base, head" or seed not in OTHER_SEEDS or not todo or time.time() > options.until:
            continue
        model, task, *_ = prepare(parse_arguments(command.split()), seed)
        load_trained(model, head / "adapter")
        for learnt_task, way in todo:
            put_encoder(tuned_model(runs[learnt_task, way, seed][0]), model)
            place = f"{learnt_task}/{way}/seed{seed}/{other}"
            after = task.evaluate(model.eval())[task.main_metric]
            before = read_json(head / "metrics.json")["scores"][task.main_metric]
            keep_lines({place: {"place": place, "before": before, "after": after}}, path)
            print(f"{place}: {before:.4f} before, {after:.4f} after", flush=True)
    return 0


PARTS = {"spectra": spectra, "forgetting": forgetting}


def main(arguments: list[str] | None = None) -> int:
    return run_part("experiments.glue_analysis", PARTS, arguments)


if __name__ == "__main__":
    cli.run(main)
