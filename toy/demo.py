"""The offline demonstration: both toy models before and after LoRA, on the toy world's tasks, in about two minutes.

    python -m toy.demo          (what `make demo` runs)

It generates the toy data, lets train.py do what it does for the real models and tasks, and prints what changed. The
frozen base is shown at its best: RoBERTa with a trained head, GPT-2 decoding the same prompts.
"""
import sys
import time
from pathlib import Path

import data
import train
from files import cli
from files.text import read_json
from toy import world

DATA, RUNS = Path("toy/data"), Path("runs/demo")                             # run from the repository's root
PAIRS = ["--model", "toy/roberta", "--task", "mrpc"]
TEXT = ["--model", "toy/gpt2", "--task", "e2e"]
LORA = ["--rank", "4", "--alpha", "32"]


def run(name: str, arguments: list[str]) -> dict:
    """One training run through the command line's own entrance; its metrics."""
    print(f"\n=== {name}\n$ python train.py {' '.join(arguments)}", flush=True)
    out_dir = RUNS / name.replace(" ", "-").lower()
    train.main([*arguments, "--data-dir", str(DATA), "--overwrite", "--out-dir", str(out_dir)])
    metrics_file = max(out_dir.rglob("metrics.json"), key=lambda path: path.stat().st_mtime)
    return read_json(metrics_file) | {"folder": metrics_file.parent}


def describe(metrics: dict) -> str:
    share = metrics["trainable_parameters"] / metrics["total_parameters"]
    return (f"{metrics['trainable_parameters']:>7,} ({share:.2%})  {metrics['seconds']:>4.0f} s  "
            f"{metrics['peak_memory_bytes'] / 2**20:>4.0f} MiB")


def show_pairs(before: dict, after: dict) -> None:
    print("\nPairs: do two sentences say the same? (toy RoBERTa)")
    print(f"  {'':22s}accuracy     F1   trained (head apart)  time  peak memory")
    for name, metrics in (("frozen base + head", before), ("LoRA + head", after)):
        print(f"  {name:22s}{metrics['scores']['accuracy']:8.3f} {metrics['scores']['f1']:6.3f}   {describe(metrics)}")
    examples = data.read_glue("mrpc", "dev", DATA)
    lines = (after["folder"] / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    for example, line in zip(examples[:3], lines[:3], strict=True):
        _, prediction, label = line.split("\t")
        print(f"    {example.text}\n    {example.pair}\n      -> {prediction} (is {label})")


def show_text(before: dict, after: dict) -> None:
    names = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
    print("\nText: a sentence from a record (toy GPT-2, beam 10)")
    print(f"  {'':14s}" + "".join(f"{name:>9s}" for name in names) + "   trained  time  peak memory")
    for name, metrics in (("frozen base", before), ("LoRA", after)):
        scores = "".join(f"{metrics['scores'][metric]:9.4f}" for metric in names)
        print(f"  {name:14s}{scores}   {describe(metrics) if 'seconds' in metrics else '0'}")
    prompts = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", DATA)))
    texts = [(run["folder"] / "predictions.txt").read_text(encoding="utf-8").splitlines() for run in (before, after)]
    for index in range(3):
        print(f"    {prompts[index]}\n      before: {texts[0][index]}\n      after:  {texts[1][index]}")


def main() -> int:
    started = time.perf_counter()
    world.write_tasks(DATA)
    head = run("Frozen RoBERTa base", [*PAIRS, "--method", "head", "--lr", "3e-3", "--epochs", "3"])
    pairs = run("LoRA on RoBERTa", [*PAIRS, *LORA, "--lora-init", "kaiming", "--lr", "2e-3", "--epochs", "3"])
    base = run("Frozen GPT-2 base", [*TEXT, "--eval-only"])
    text = run("LoRA on GPT-2", [*TEXT, *LORA, "--lr", "5e-3", "--epochs", "2"])
    show_pairs(head, pairs)
    show_text(base, text)
    print(f"\ndemo finished in {time.perf_counter() - started:.0f} s; everything it wrote is in {RUNS}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
