"""Whether bf16 costs quality: the toy tasks trained in fp32 and in bf16, several seeds of each, scores side by side.

    python -m experiments.bench bf16 --json results/bench/bf16.json        # an hour or more on a CPU that only emulates bf16

The runs are those of train.py with the frozen weights in one or the other; everything else is equal, so that a seed's two
runs see the same batches. Accuracy for the pairs; for the text the loss on the validation set, in nats per token, and BLEU of
the first test records, decoded with beam 4.
"""
import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

import train
from experiments.bench_train import machine
from toy.world import write_tasks

TASKS = {"mrpc": ("toy/roberta", ["--lr", "0.004", "--rank", "4", "--alpha", "8"], ("accuracy",)),
         "e2e": ("toy/gpt2", ["--lr", "0.004", "--rank", "4", "--beam-size", "4"], ("loss", "BLEU"))}


def bench_bf16(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    scores: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(Path(scratch) / "data")
        for task, (model, settings, names) in TASKS.items():
            for seed in options.seeds:
                for precision in ("fp32", "bf16"):
                    out = Path(scratch) / f"{task}-{seed}-{precision}"
                    train.main(["--model", model, "--task", task, "--data-dir", f"{scratch}/data", "--out-dir", str(out),
                                "--seed", str(seed), "--precision", precision, "--max-steps", str(options.steps),
                                "--limit-eval", str(options.limit_eval), *settings])
                    (metrics,) = out.rglob("metrics.json")
                    found = json.loads(metrics.read_text(encoding="utf-8"))["scores"]
                    for name in names:
                        scores.setdefault(f"{task}, {name}", {}).setdefault(precision, []).append(found[name])
    figures = {"machine": machine(options.threads), "seeds": options.seeds, "steps": options.steps,
               "limit_eval": options.limit_eval, "scores": scores}
    print(table(figures))
    return figures


def table(figures: dict) -> str:
    lines = ["| | fp32 | bf16 | difference, seed by seed |", "|---|---|---|---|"]
    for name, found in figures["scores"].items():
        differences = [b - a for a, b in zip(found["fp32"], found["bf16"], strict=True)]
        lines.append(f"| {name} | " + " | ".join(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" for values in
                                                (found["fp32"], found["bf16"], differences)) + " |")
    return "\n".join([*lines, "", f"{figures['steps']} steps, seeds {' '.join(map(str, figures['seeds']))}, the first "
                      f"{figures['limit_eval']} development samples and test records; mean ± standard deviation."]) + "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit-eval", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")
