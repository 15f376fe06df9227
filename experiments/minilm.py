"""LoRA on a real pretrained encoder and real data, beside the frozen base and the larger class: what `make minilm` runs.

    python -m experiments.minilm --data-dir DIR --seed 0 1 2          # without --data-dir, MRPC is downloaded on first use

The base is minilm, a BERT of 22.6 million parameters (files/bases.py), found in the installed package or downloaded; the task
is MRPC: do two sentences say the same? Hyperparameters are training/recipes.py's. Further options go to train.py. The base was
trained by its authors to bring sentences of like meaning together, so that MRPC may gain from more than language.
Left out: a comparison between methods that is fair, for which each needs a search of its own.
"""
import argparse
import sys
from collections import Counter
from pathlib import Path

import data
import train
from eval_metrics import glue_scores
from experiments.tables import spread
from files import cli
from files.published import place
from files.text import read_json

MODEL, TASK, RUNS = "minilm", "mrpc", Path("runs/minilm")
METHODS = {"head": "frozen base + head", "lora": "LoRA + head"}


def run(method: str, seeds: list[int], options: list[str]) -> list[dict]:
    """The metrics of a method's runs through the command line's own entrance, seed by seed."""
    arguments = ["--model", MODEL, "--task", TASK, "--method", method, *options]
    print(f"\n=== {METHODS[method]}\n$ python train.py {' '.join(arguments)} --seed {' '.join(map(str, seeds))}", flush=True)
    train.main([*arguments, "--overwrite", "--out-dir", str(RUNS / method), "--seed", *map(str, seeds)])
    return [read_json(next((RUNS / method).rglob(f"seed{seed}/metrics.json"))) for seed in seeds]


def larger_class(data_dir: str | None, limit: int | None) -> dict[str, float]:
    """The scores of saying the same of every pair of the development set, what most of them are."""
    labels = [example.label for example in data.read_glue(TASK, "dev", place(data_dir, "data"))][:limit]
    (most, _), = Counter(labels).most_common(1)
    return glue_scores(TASK, [most] * len(labels), labels)


def line(name: str, scores: list[dict[str, float]], rest: str) -> str:
    cells = [spread([100 * found[metric] for found in scores]) for metric in ("accuracy", "f1")]
    return f"  {name:20}{cells[0]:>12}{cells[1]:>12}   {rest}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.minilm", description="LoRA on minilm and MRPC; further options are "
                                     "train.py's.")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run per seed and method")
    parser.add_argument("--data-dir", help="folder with glue/ (default: $LORA_DATA, else a cache folder)")
    parser.add_argument("--limit-eval", type=int, metavar="N", help="the first N development samples only")
    options, further = parser.parse_known_args(arguments)
    for name in ("data_dir", "limit_eval"):
        if (value := getattr(options, name)) is not None:
            further += [f"--{name.replace('_', '-')}", str(value)]
    found = {method: run(method, options.seed, further) for method in METHODS}
    print(f"\nMRPC's development set, {MODEL}, seed {' '.join(map(str, options.seed))}; in percent\n"
          f"  {'':20}{'accuracy':>12}{'F1':>12}   trained (head apart)  time  peak memory")
    print(line("the larger class", [larger_class(options.data_dir, options.limit_eval)], f"{0:>7,}"))
    for method, metrics in found.items():
        first = metrics[0]
        print(line(METHODS[method], [one["scores"] for one in metrics],
                   f"{first['trainable_parameters']:>7,} ({first['trainable_parameters'] / first['total_parameters']:.2%})  "
                   f"{spread([one['seconds'] for one in metrics], 0)} s  "
                   f"{max(one['peak_memory_bytes'] for one in metrics) / 2**20:,.0f} MiB"))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
