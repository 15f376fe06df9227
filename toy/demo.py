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
from model import load_pretrained
from toy import world
from training.tasks import decode_and_score

TOY = Path("toy")                                                            # run from the repository's root
RUNS = Path("runs/demo")
PAIRS = ["--model", "toy/roberta", "--task", "mrpc"]
TEXT = ["--model", "toy/gpt2", "--task", "e2e"]
COMMON = ["--data-dir", "toy/data", "--overwrite"]
LORA = ["--rank", "4", "--alpha", "32"]


def run(name: str, arguments: list[str]) -> dict:
    """One training run through the command line's own entrance; its metrics."""
    print(f"\n=== {name}\n$ python train.py {' '.join(arguments)}", flush=True)
    out_dir = RUNS / name.replace(" ", "-").lower()
    train.main([*arguments, *COMMON, "--out-dir", str(out_dir)])
    (metrics_file,) = out_dir.rglob("metrics.json")
    return read_json(metrics_file) | {"folder": metrics_file.parent}


def frozen_base_text() -> dict:
    """The scores of the toy GPT-2 before any training, on the same prompts."""
    print("\n=== frozen GPT-2 base", flush=True)
    model, tokenizer = load_pretrained(TOY / "gpt2"), data.load_tokenizer(TOY / "gpt2")
    folder = RUNS / "frozen-gpt2-base"
    folder.mkdir(parents=True, exist_ok=True)
    pairs = data.read_e2e("test", TOY / "data")
    settings = {"beam_size": 10, "length_penalty": 0.9, "text": "pretokenised", "limit_eval": None}
    return {"scores": decode_and_score(model, tokenizer, pairs, settings, folder), "folder": folder}


def describe(metrics: dict) -> str:
    share = metrics["trainable_parameters"] / metrics["total_parameters"]
    return (f"{metrics['trainable_parameters']:>7,} ({share:.2%})  {metrics['seconds']:>4.0f} s  "
            f"{metrics['peak_memory_bytes'] / 2**20:>4.0f} MiB")


def show_pairs(before: dict, after: dict) -> None:
    print("\nPairs: do two sentences say the same? (toy RoBERTa)")
    print(f"  {'':22s}accuracy     F1   trained (head apart)  time  peak memory")
    for name, metrics in (("frozen base + head", before), ("LoRA + head", after)):
        print(f"  {name:22s}{metrics['scores']['accuracy']:8.3f} {metrics['scores']['f1']:6.3f}   {describe(metrics)}")
    examples = data.read_glue("mrpc", "dev", TOY / "data")
    lines = (after["folder"] / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    for example, line in list(zip(examples, lines, strict=True))[:3]:
        _, prediction, label = line.split("\t")
        print(f"    {example.text}\n    {example.pair}\n      -> {prediction} (is {label})")


def show_text(before: dict, after: dict) -> None:
    names = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
    print("\nText: a sentence from a record (toy GPT-2, beam 10)")
    print(f"  {'':14s}" + "".join(f"{name:>9s}" for name in names) + "   trained  time  peak memory")
    for name, metrics in (("frozen base", before), ("LoRA", after)):
        scores = "".join(f"{metrics['scores'][metric]:9.4f}" for metric in names)
        print(f"  {name:14s}{scores}   {describe(metrics) if 'seconds' in metrics else '0'}")
    prompts = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", TOY / "data")))
    texts = [(run["folder"] / "predictions.txt").read_text(encoding="utf-8").splitlines() for run in (before, after)]
    for index in range(3):
        print(f"    {prompts[index]}\n      before: {texts[0][index]}\n      after:  {texts[1][index]}")


def main() -> int:
    started = time.perf_counter()
    world.write_tasks(TOY / "data")
    head = run("Frozen RoBERTa base", [*PAIRS, "--method", "head", "--lr", "3e-3", "--epochs", "3"])
    pairs = run("LoRA on RoBERTa", [*PAIRS, *LORA, "--lora-init", "kaiming", "--lr", "2e-3", "--epochs", "3"])
    base = frozen_base_text()
    text = run("LoRA on GPT-2", [*TEXT, *LORA, "--lr", "5e-3", "--epochs", "2"])
    show_pairs(head, pairs)
    show_text(base, text)
    print(f"\ndemo finished in {time.perf_counter() - started:.0f} s; everything it wrote is in {RUNS}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
