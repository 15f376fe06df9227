"""All methods side by side, in the shape of the paper's Tables 2 and 3, over several seeds.

    python -m experiments.methods --seeds 0 1 2          (what `make baselines` runs)

On the toy tasks: MNLI and MRPC in small on the toy RoBERTa, E2E in small on the toy GPT-2. Each row is a train.py run per
seed, whose command stands below the table; a run that is finished is not repeated, an interrupted one goes on. The table
has mean and standard deviation over the seeds; the frozen base is RoBERTa with a trained head, and GPT-2 as it is. The
last column of the second table is this project's own: the share of a record's values that stand in the greedily decoded
text, which says more than BLEU about such a small world.
"""
import argparse
import re
import shlex
import statistics
import sys
from pathlib import Path

import torch

import cli
import data
import train
from baselines import load_trained
from decode import generate
from model import load_pretrained, read_json, write_json
from tasks import decode_and_score
from toy import world

TOY = Path("toy")
DATA = TOY / "data"
PAIRS = {                                                                    # row -> options
    "frozen base, head": "--method head --lr 3e-3",
    "full": "--method full --lr 3e-4",
    "last two layers": "--method last-layers --lr 3e-4",
    "BitFit": "--method bitfit --lr 3e-3",
    "adapter-h": "--method adapter-h --rank 8 --lr 2e-3",
    "adapter-l": "--method adapter-l --rank 8 --lr 2e-3",
    "prefix": "--method prefix --rank 16 --lr 1e-2",
    "LoRA": "--method lora --rank 4 --alpha 32 --lora-init kaiming --lr 2e-3",
}
TEXT = {
    "full": "--method full --lr 1e-3",
    "last two layers": "--method last-layers --lr 1e-3",
    "BitFit": "--method bitfit --lr 1e-2",
    "adapter-h": "--method adapter-h --rank 8 --lr 5e-3",
    "adapter-l": "--method adapter-l --rank 8 --lr 5e-3",
    "prefix": "--method prefix --rank 16 --lr 5e-2",
    "LoRA": "--method lora --rank 4 --alpha 32 --lr 5e-3",
}
TASKS = {"mrpc": ("toy/roberta", "--epochs 3", PAIRS), "mnli": ("toy/roberta", "--epochs 3", PAIRS),
         "e2e": ("toy/gpt2", "--epochs 2", TEXT)}
METHODS = dict.fromkeys([*PAIRS, *TEXT])                                     # the rows, in order
TEXT_SCORES = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")


def command(task: str, row: str) -> str:
    model, epochs, rows = TASKS[task]
    return f"--model {model} --task {task} {rows[row]} {epochs} --data-dir {DATA.as_posix()}"


def run_once(task: str, row: str, seed: int, out_dir: Path, extra: list[str]) -> dict:
    """The metrics of a run, which is made, finished, or found. Text also gets its share of values."""
    folder = out_dir / task / re.sub(r"[^\w.-]+", "_", " ".join([row, command(task, row), *extra]))
    if not list(folder.rglob(f"seed{seed}/metrics.json")):
        print(f"\n$ python train.py {command(task, row)} --seed {seed} {' '.join(extra)}", flush=True)
        train.main([*shlex.split(command(task, row)), "--seed", str(seed), "--out-dir", str(folder), "--resume", *extra])
    (path,) = folder.rglob(f"seed{seed}/metrics.json")
    metrics = read_json(path)
    if task == "e2e" and "share" not in metrics:
        model = load_pretrained(TOY / "gpt2")
        load_trained(model, path.parent / "adapter")
        metrics["share"] = value_share(model)
        write_json(metrics, path)
    return metrics


@torch.inference_mode()
def value_share(model) -> float:
    """Mean share of the test records' values that stand in the greedy text."""
    tokenizer = data.load_tokenizer(TOY / "gpt2")
    records = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", DATA)))
    prompts = [tokenizer.encode(mr) + [tokenizer.eos_id] for mr in records]
    texts = generate(model, prompts, search="greedy", no_repeat_ngram_size=0, max_new_tokens=80, eos_ids=(tokenizer.eos_id,))
    return statistics.mean(world.value_share(mr, tokenizer.decode(ids)) for mr, ids in zip(records, texts, strict=True))


def frozen_text(out_dir: Path) -> dict:
    """The scores of the toy GPT-2 before any training."""
    folder = out_dir / "e2e" / "frozen-base"
    if not (folder / "metrics.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        model, settings = load_pretrained(TOY / "gpt2"), {"beam_size": 10, "length_penalty": 0.9, "text": "pretokenised",
                                                          "limit_eval": None}
        scores = decode_and_score(model, data.load_tokenizer(TOY / "gpt2"), data.read_e2e("test", DATA), settings, folder)
        write_json({"scores": scores, "share": value_share(model), "trainable_parameters": 0}, folder / "metrics.json")
    return read_json(folder / "metrics.json")


def spread(values: list[float], digits: int = 1) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def count(runs: list[dict]) -> str:
    trained = runs[0]["trainable_parameters"]
    return f"{trained:,} ({trained / runs[0]['total_parameters']:.2%})" if trained else "0"


def pairs_table(runs: dict[str, dict[str, list[dict]]]) -> list[str]:
    """In the shape of Table 2: accuracy in percent, of MNLI on the matched part."""
    lines = [f"| method | trained, head apart | {' | '.join(map(str.upper, runs))} | average |", "|---" * (len(runs) + 3) + "|"]
    for row in next(iter(runs.values())):
        accuracy = [[100 * metrics["scores"]["accuracy"] for metrics in rows[row]] for rows in runs.values()]
        mean = [statistics.mean(scores) for scores in zip(*accuracy, strict=True)]
        trained = count(next(iter(runs.values()))[row])
        lines.append(f"| {row} | {trained} | " + " | ".join(spread(values) for values in (*accuracy, mean)) + " |")
    return lines


def text_table(runs: dict[str, list[dict]]) -> list[str]:
    """In the shape of Table 3: BLEU, METEOR, ROUGE-L in percent, NIST and CIDEr as they are; then the share of values."""
    lines = ["| method | trained | BLEU | NIST | MET | ROUGE-L | CIDEr | values in the text |", "|" + "---|" * 8]
    for row, found in runs.items():
        cells = [spread([(1 if name in ("NIST", "CIDEr") else 100) * metrics["scores"][name] for metrics in found],
                        2 if name in ("NIST", "CIDEr") else 1) for name in TEXT_SCORES]
        cells.append(spread([100 * metrics["share"] for metrics in found]))
        lines.append(f"| {row} | {count(found)} | " + " | ".join(cells) + " |")
    return lines


def below_the_base(runs: dict[str, dict[str, list[dict]]]) -> list[str]:
    """Rows that do not come out above the frozen base."""
    below = []
    for task, rows in runs.items():
        base, score = ("frozen base", "BLEU") if task == "e2e" else ("frozen base, head", "accuracy")
        means = {row: statistics.mean(metrics["scores"][score] for metrics in found) for row, found in rows.items()}
        below += [f"{task}: {row}" for row in rows if row != base and base in means and means[row] <= means[base]]
    return below


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.methods", description="Every method on the toy tasks.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/methods"))
    options, extra = parser.parse_known_args(arguments)                      # the rest goes to train.py: --max-steps 20
    world.write_tasks(DATA)
    chosen = {task: [row for row in TASKS[task][2] if row in options.methods] for task in options.tasks}
    runs = {task: {row: [run_once(task, row, seed, options.out_dir, extra) for seed in options.seeds] for row in rows}
            for task, rows in chosen.items()}
    seeds, lines = " ".join(map(str, options.seeds)), []
    if pairs := {task: rows for task, rows in runs.items() if task != "e2e"}:
        lines += [f"Toy RoBERTa, accuracy in percent on the development pairs, mean ± standard deviation of seeds {seeds}:\n",
                  *pairs_table(pairs), ""]
    if "e2e" in runs:
        runs["e2e"] = {"frozen base": [frozen_text(options.out_dir)]} | runs["e2e"]
        lines += [f"Toy GPT-2, beam 10, seeds {seeds}:\n", *text_table(runs["e2e"]), ""]
    lines += ["The rows' commands:\n"]
    lines += [f"    {task}, {row}: python train.py {command(task, row)} --seed {seeds} {' '.join(extra)}".rstrip()
              for task, rows in chosen.items() for row in rows]
    (options.out_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print("\n" + "\n".join(lines) + f"\n\nwrote {options.out_dir / 'table.md'}")
    for row in below_the_base(runs):
        print(f"warning: not above the frozen base: {row}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
