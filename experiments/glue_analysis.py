"""Two questions to the weights that the comparison of glue_small.py has trained: what changed, and what is forgotten.

    python -m experiments.glue_analysis spectra --data-dir D       the rank of an update, and new leading directions
    python -m experiments.glue_analysis forgetting --data-dir D    the other tasks' scores after a task was learnt

Both are done at the end of every portion of `glue_small runs`, for the weights stay where they were trained: results/ keeps
none, and without them there is nothing to analyse.

Spectra. Delta W is the difference of a tuned weight to the base's. How much of it rank r could hold is the share of its squared
singular values that the first r have. An intruder (Shuttleworth et al. 2024) is a left singular vector among the LEADING first
of the tuned weight whose cosine with every one of the base's lies below SIMILAR. Both constants were fixed beforehand. Beside
both stand those of a random change, Gaussian, of the same shape and size.

Forgetting. The head of another task was trained on the frozen base; it is put, unchanged, onto the encoder after LoRA or full
fine-tuning learnt a task, and scored on its own task's dev set. What it loses is what the encoder no longer says. The floor, a
score that needs no encoder, is the share of the larger class, or 0 for a correlation.

Each run's numbers are a line of spectra.jsonl or forgetting.jsonl in the runs' folder, which the report of glue_small.py keeps.
Left out: what a method adds as modules, which has no weight of the base to compare with.
"""
import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
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
    """(task, method, seed) -> the folder and the command, of the finished runs of glue_small.py, with their weights or not."""
    found = {}
    for path in sorted((out_dir / "plans").glob("glue-small_*.json")):
        for row in (plan := read_json(path))["rows"]:
            for seed in row.get("seeds", plan["seeds"]):
                metrics = finished(out_dir, row, seed)
                if metrics is not None:
                    found[plan["setting"].rpartition("-")[2], row["label"], seed] = metrics.parent, row["command"]
    return found


def has_weights(folder: Path) -> bool:
    return (folder / "adapter").is_dir()


def say_missing(name: str, missing: int) -> int:
    """Say how many lines wait for weights; returns it."""
    if missing:
        print(f"{name}: {missing} not analysed, for their runs have no trained weights here, which results/ does not keep: run "
              "this where they were trained", flush=True)
    return missing


def analyse(lines_of: Callable[..., dict[str, dict]], todo: list[tuple], options: argparse.Namespace, path: Path) -> None:
    """Keep the lines of lines_of(*arguments) for each of todo, options.jobs processes of one thread at a time, as each ends;
    none is begun when the time is over."""
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(in_time, options.until, lines_of, arguments) for arguments in todo]):
            keep_lines(lines := future.result(), path)
            print("".join(f"{path.stem} of {place}\n" for place in lines), end="", flush=True)


def in_time(until: float, lines_of: Callable[..., dict[str, dict]], arguments: tuple) -> dict[str, dict]:
    return lines_of(*arguments) if time.time() < until else {}


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
    change over the weight's, and the number of intruders among the LEADING first directions; and the first and the last of a
    random change."""
    W, tuned = W.double(), tuned.double()
    noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise *= torch.linalg.norm(tuned - W) / torch.linalg.norm(noise)
    old = torch.linalg.svd(W, full_matrices=False).U
    found = {"size": (torch.linalg.norm(tuned - W) / torch.linalg.norm(W)).item()}
    for name, change in (("", tuned - W), ("random_", noise)):
        squares = torch.linalg.svdvals(change) ** 2
        held = (squares.cumsum(0) / squares.sum()).tolist()
        new = torch.linalg.svd(W + change, full_matrices=False).U[:, :LEADING]
        nearest = (old.T @ new).abs().amax(dim=0)                            # (r, d_out) x (d_out, 10) -> (10,)
        found |= {f"{name}held": [held[min(rank, len(held)) - 1] for rank in RANKS],
                  f"{name}intruders": (nearest < SIMILAR).sum().item()}
    return found


def spectra_of(base, tuned, targets: tuple[str, ...]) -> dict[str, dict]:
    """Target -> the means of `spectrum` over the blocks."""
    found = {}
    for target in targets:
        blocks = [spectrum(*(base_weight(model, block, target) for model in (base, tuned)))
                  for block in range(base.config.num_layers)]
        columns = {name: [of[name] for of in blocks] for name in blocks[0]}
        found[target] = {name: means(zip(*values, strict=True)) if "held" in name else means([values])[0]
                         for name, values in columns.items()}
    return found


def means(of_blocks: Iterable[Sequence[float]]) -> list[float]:
    return [round(statistics.mean(values), 6) for values in of_blocks]


def spectra_of_run(place: str, folder: Path) -> dict[str, dict]:
    """place -> the line of a run's trained weights."""
    base, tuned = load_pretrained(fetch_model(read_json(folder / "config.json")["model"])), tuned_model(folder)
    targets = tuple(name for name in ("q", "k", "v", "o", "fc", "proj")
                    if not torch.equal(base_weight(base, 0, name), base_weight(tuned, 0, name)))
    return {place: {"place": place, "targets": spectra_of(base, tuned, targets)}}


def spectra(options: argparse.Namespace) -> int:
    """A line per run of the methods that change weights. Returns how many have none, and no weights."""
    path = options.out_dir / "spectra.jsonl"
    there = read_lines(path)
    tuned = {f"{task}/{method}/seed{seed}": folder for (task, method, seed), (folder, _) in
             runs_of_comparison(options.out_dir).items() if method in TUNED}
    new = {place: folder for place, folder in tuned.items() if place not in there}
    todo = [(place, folder) for place, folder in new.items() if has_weights(folder)]
    analyse(spectra_of_run, todo, options, path)
    return say_missing("spectra", len(new) - len(todo))


# ---------------------------------------------------------------- what is forgotten

@torch.no_grad()
def put_encoder(source, model) -> None:
    """Copy the base's tensors of one model into another; the head stays."""
    own = dict(model.named_parameters())
    for name, parameter in source.named_parameters():
        if is_base(model, name):
            own[name].copy_(parameter)


def floor_of(task) -> float:
    """The score of no knowledge of the text: of always the dev set's larger class, or of no correlation."""
    labels = Counter(label for split in task.dev_splits for _, label in task.dev[split])
    return max(labels.values()) / labels.total() if task.main_metric == "accuracy" else 0.0


def forgotten_of_head(head: Path, command: str, seed: int, learnt: dict[str, Path]) -> dict[str, dict]:
    """place -> the line of an encoder that learnt another task, under this head. learnt: place -> the encoder's run."""
    model, task, *_ = prepare(parse_arguments(command.split()), seed)
    load_trained(model, head / "adapter")
    before, lines = read_json(head / "metrics.json")["scores"][task.main_metric], {}
    for place, folder in learnt.items():
        put_encoder(tuned_model(folder), model)
        after = task.evaluate(model.eval())[task.main_metric]
        lines[place] = {"place": place, "floor": floor_of(task), "before": before, "after": after}
    return lines


def forgetting(options: argparse.Namespace) -> int:
    """A line per run of LoRA or full and other task whose head was trained on the base with the same seed. Returns how many
    have none, and no weights of one of both."""
    path, runs, missing, heads = options.out_dir / "forgetting.jsonl", runs_of_comparison(options.out_dir), 0, []
    there = read_lines(path)
    for (other, method, seed), (head, command) in runs.items():
        if method != "frozen base, head" or seed not in OTHER_SEEDS:
            continue
        learnt = {f"{task}/{way}/seed{seed}/{other}": folder for (task, way, of), (folder, _) in runs.items()
                  if of == seed and way in TUNED[:2] and task != other}
        new = {place: folder for place, folder in learnt.items() if place not in there}
        todo = {place: folder for place, folder in new.items() if has_weights(head) and has_weights(folder)}
        missing += len(new) - len(todo)
        if todo:
            heads.append((head, command, seed, todo))
    analyse(forgotten_of_head, heads, options, path)
    return say_missing("forgetting", missing)


PARTS = {"spectra": spectra, "forgetting": forgetting}


def main(arguments: list[str] | None = None) -> int:
    return run_part("experiments.glue_analysis", PARTS, arguments)


if __name__ == "__main__":
    cli.run(main)
