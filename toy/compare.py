"""LoRA beside full fine-tuning and the frozen base on the toy tasks, over several seeds.

    python -m toy.compare --seeds 0 1 2          (what `make toy-compare` runs)

Each row is a set of train.py runs; the table shows mean and standard deviation over the seeds. Pair task: accuracy on
the development pairs. Record-to-text: the share of a record's values that stand in the greedily decoded text, and BLEU
with the beam of the paper.
"""
import argparse
import json
import shlex
import statistics
from pathlib import Path

import torch

import cli
import data
import lora
import train
from baselines import apply_method, reload_trained
from decode import generate
from model import load_pretrained
from toy import world

TOY = Path("toy")
DATA = Path("toy/data")
PAIRS = "--model toy/roberta --task mrpc"
TEXT = "--model toy/gpt2 --task e2e"
LORA = "--method lora --rank 4 --alpha 32"
RUNS = {                                                                     # row of the table -> command line
    "pairs": {"frozen base, trained head": f"{PAIRS} --method head --lr 3e-3 --epochs 3",
              "LoRA": f"{PAIRS} {LORA} --lr 3e-3 --epochs 3",
              "full fine-tuning": f"{PAIRS} --method full --lr 1e-3 --epochs 3"},
    "text": {"LoRA": f"{TEXT} {LORA} --lr 5e-3 --epochs 2",
             "full fine-tuning": f"{TEXT} --method full --lr 1e-3 --epochs 2"},
}


def value_share(model, tokenizer) -> float:
    """Mean share of the test records' values that stand in the greedy text."""
    records = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", DATA)))
    prompts = [tokenizer.encode(mr) + [tokenizer.eos_id] for mr in records]
    outputs = generate(model, prompts, search="greedy", no_repeat_ngram_size=0, max_new_tokens=80,
                       eos_ids=(tokenizer.eos_id,))
    return statistics.mean(world.value_share(mr, tokenizer.decode(ids)) for mr, ids in zip(records, outputs, strict=True))


def trained_model(folder: Path, config: dict):
    """The model of a finished run."""
    model = load_pretrained(TOY / "gpt2")
    if config["method"] == "lora":
        return lora.load_adapter(model, folder / "adapter")
    apply_method(model, config["method"])
    reload_trained(model, config["method"], folder / "adapter")
    return model


def run_once(task: str, row: str, seed: int, out_dir: Path) -> dict:
    """One run (or what an earlier one left): its metrics and, for text, the share of values."""
    command = f"{RUNS[task][row]} --data-dir {DATA} --seed {seed}"
    out_dir = out_dir / task / row.replace(" ", "-").replace(",", "")
    finished = list(out_dir.rglob(f"seed{seed}/metrics.json"))
    if not finished:
        print(f"\n$ python train.py {command}", flush=True)
        train.main([*shlex.split(command), "--out-dir", str(out_dir), "--overwrite"])
        finished = list(out_dir.rglob(f"seed{seed}/metrics.json"))
    metrics = json.loads(finished[0].read_text(encoding="utf-8"))
    if task == "text":
        metrics["share"] = value_share(trained_model(finished[0].parent, metrics), data.load_tokenizer(TOY / "gpt2"))
    return metrics


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="LoRA, full fine-tuning and the frozen base on the toy tasks.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out-dir", type=Path, default=Path("runs/toy-compare"))
    options = parser.parse_args()
    world.write_tasks(DATA)
    lines = []
    for task in RUNS:
        means = {}
        for row in RUNS[task]:
            runs = [run_once(task, row, seed, options.out_dir) for seed in options.seeds]
            scores = [metrics["scores"]["accuracy"] if task == "pairs" else metrics["share"] for metrics in runs]
            means[row] = statistics.mean(scores)
            trained = runs[0]["trainable_parameters"]
            line = f"| {task} | {row} | {trained:,} ({trained / runs[0]['total_parameters']:.2%}) | {spread(scores)} "
            line += "| – |" if task == "pairs" else f"| {spread([metrics['scores']['BLEU'] for metrics in runs])} |"
            lines.append(line + f" {statistics.mean(metrics['seconds'] for metrics in runs):.0f} s |")
        if task == "text":
            with torch.inference_mode():
                share = value_share(load_pretrained(TOY / "gpt2"), data.load_tokenizer(TOY / "gpt2"))
            lines.append(f"| text | frozen base | 0 | {share:.3f} | – | – |")
        lines.append(f"| {task} | LoRA / full | | {means['LoRA'] / means['full fine-tuning']:.3f} | | |")
    print(f"\nseeds {options.seeds}: accuracy (pairs) or share of values in the greedy text (text), mean ± std\n")
    print("| task | method | trained, head apart | accuracy or share | BLEU | training |\n|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    cli.run(main)
