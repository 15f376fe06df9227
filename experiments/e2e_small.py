"""The paper's comparison of methods (Table 3) on a real decoder and two cores: SmolLM2-135M (smollm.py) on the real E2E.

    python -m experiments.e2e_small search --data-dir DIR        the learning rate of every method, by validation loss
    python -m experiments.e2e_small train                        with these rates: LoRA and full with three seeds, others one
    python -m experiments.e2e_small table                        what has ended, into results/e2e-small/
    python -m experiments.e2e_small step                         a step of LoRA beside transformers + PEFT, with two threads

The first two run in portions: what is stopped goes on, what has ended is found (and its saved state deleted, 1.6 GB of a full
one). Every method sees the same 4,000 training samples, drawn once, and is chosen by its loss on the first 200 records of the
validation set, a reference each. The search trains 150 steps at each of five rates, a factor of 3 apart, around the middle of
the method's; it never sees the test set, whose 630 records are decoded at the end as the paper does. Frozen weights are in bf16
where the processor has it, which every run's config.json says. Left out: BitFit, for this model has no biases; a task head,
for its output head is its embedding.
"""
import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from pathlib import Path

import data
import train
from experiments.bench_train import WARM_UP, Worker, draw_batches
from experiments.kept_runs import from_folders, keep_lines, runs_of
from experiments.smollm import NAME, model_folder
from experiments.sweep import command_of, folder_of, machine, options_of, run_all
from experiments.tables import cost_table, text_table
from files import cli
from training.run_state import STATES

COMMON = "--task e2e --batch-size 8 --weight-decay 0.01 --label-smoothing 0.1 --dropout 0.1 --save-every 100"
# label -> options, and the middle of its rates: 1e-3 for what is added, 1e-4 for what the base has. What is added has about the
# 230,400 numbers of LoRA on q v with r = 4; q v with r = 16 and all seven with r = 3 have four times as many.
METHODS = {
    "LoRA": ("--method lora --targets q v --rank 4 --alpha 32", 1e-3),
    "full": ("--method full", 1e-4),
    "LoRA, q v, r = 16": ("--method lora --targets q v --rank 16 --alpha 128", 1e-3),
    "LoRA, all seven, r = 3": ("--method lora --targets q k v o gate up down --rank 3 --alpha 24", 1e-3),
    "last two layers": ("--method last-layers", 1e-4),
    "adapter-h": ("--method adapter-h --rank 3", 1e-3),
    "adapter-l": ("--method adapter-l --rank 5", 1e-3),
    "prefix": ("--method prefix --rank 13", 1e-2),
}
THREE_SEEDS = ("LoRA", "full")
N_RATES, SEARCH_STEPS, EPOCHS, TRAINING_SAMPLES, VALIDATION_RECORDS = 5, 150, 2, 4000, 200


def write_data(data_dir: Path, out: Path) -> None:
    """Two data folders below `out`: "train", with the samples above and the test set, and "search", without the test set."""
    samples = random.Random(0).sample(data.read_e2e("train", data_dir), TRAINING_SAMPLES)
    first = {}
    for mr, reference in data.read_e2e("valid", data_dir):
        first.setdefault(mr, reference)
    valid = list(first.items())[:VALIDATION_RECORDS]
    for name, test in (("search", valid[:1]), ("train", data.read_e2e("test", data_dir))):
        folder = out / "data" / name / "e2e"
        folder.mkdir(parents=True, exist_ok=True)
        for split, pairs in (("train", samples), ("valid", valid), ("test", test)):
            text = "".join(f"{mr}||{reference}\n" for mr, reference in pairs)
            (folder / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")


def make_plan(part: str, rows: dict[str, str], seeds: list[int], out: Path) -> dict:
    """As sweep.make_plan, of rows of our own: label -> options."""
    common = f"--model {NAME} {COMMON} --data-dir {out / 'data' / part}"
    options = {label: options_of(common, row) for label, row in rows.items()}
    return {"experiment": f"e2e-small, {part}", "setting": f"seeds {' '.join(map(str, seeds))}", "seeds": seeds,
            "rows": [{"label": label, "command": command_of(row), "folder": folder_of(row)} for label, row in options.items()],
            "made": machine()}


def search_plan(out: Path) -> dict:
    rows = {f"{label}, lr {rate:g}": f"{options} --lr {rate:g} --max-steps {SEARCH_STEPS}"
            for label, (options, middle) in METHODS.items() for rate in rates_around(middle)}
    return make_plan("search", rows, [1], out)


def rates_around(middle: float) -> list[float]:
    """N_RATES rates, a factor of 3 apart."""
    return [float(f"{middle * 3.0 ** (step - N_RATES // 2):.1g}") for step in range(N_RATES)]


def best_rates(out: Path) -> dict[str, float]:
    """Method -> the rate of the lowest validation loss, of those that ended; none where none has. A line on stderr where it is
    the last of the rates at one end."""
    plan, best = search_plan(out), {}
    runs = runs_of(plan, from_folders([plan], out))
    for label, (_, middle) in METHODS.items():
        losses = {rate: found[0]["scores"]["loss"] if (found := runs[f"{label}, lr {rate:g}"]) else math.inf
                  for rate in rates_around(middle)}
        rate = min(losses, key=losses.get)
        if losses[rate] < math.inf:
            best[label] = rate
            print(f"{label}: lr {rate:g}; " + ", ".join(f"{rate:g} {loss:.3f}" for rate, loss in losses.items()))
            if rate in (min(losses), max(losses)):
                print(f"{label}: the best rate is the last at its end", file=sys.stderr)
    return best


def train_plans(out: Path) -> list[dict]:
    """The base and the methods of one seed, and those of three."""
    rates = best_rates(out)
    rows = {label: f"{METHODS[label][0]} --lr {rate:g} --epochs {EPOCHS}" for label, rate in rates.items()}
    three = {label: row for label, row in rows.items() if label in THREE_SEEDS}
    one = {label: row for label, row in rows.items() if label not in THREE_SEEDS}
    return [make_plan("train", three, [1, 2, 3], out), make_plan("train", {"frozen base": "--eval-only"} | one, [1], out)]


def write_table(out: Path, results: Path) -> None:
    """Keep the runs that have ended, and write their tables."""
    plans = train_plans(out)
    kept = keep_lines(from_folders([*plans, search_plan(out)], out), results / "runs.jsonl")
    runs = {label: found for plan in plans for label, found in runs_of(plan, kept).items()}
    commands = [f"    python train.py {row['command']}" for plan in plans for row in plan["rows"]]
    lines = ["# SmolLM2-135M on E2E: the methods beside one another", "", plans[0]["made"], "", *text_table(runs), "",
             *cost_table(runs), "", "The commands:", "", *commands, ""]
    (results / "README.md").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    print("\n".join(lines[:-len(commands) - 3]))


def measure_step(data_dir: Path, rounds: int = 20) -> list[str]:
    """A table: the median time of a LoRA step on 8 real samples, and the peak memory; ours and transformers + PEFT in turn."""
    folder, lines = str(model_folder()), ["| | precision | a step | peak memory |", "|---|---|---|---|"]
    arguments = ["--model", folder, "--task", "e2e", "--data-dir", str(data_dir), "--limit-train", "2000", "--limit-eval", "1"]
    _, task, _, _ = train.prepare(train.parse_arguments(arguments), seed=0)
    batches = draw_batches(task.train_lengths, 8, rounds + WARM_UP)
    with tempfile.TemporaryDirectory() as scratch:
        samples = Path(scratch) / "samples.json"
        samples.write_text(json.dumps([[task.train[index] for index in batch] for batch in batches]), encoding="utf-8")
        job = {"folder": folder, "task": "e2e", "data_dir": str(data_dir), "batch": 8, "rounds": rounds, "threads": 2,
               "samples": str(samples), "scratch": scratch, "modules": ["q_proj", "v_proj"]}
        for precision in ("fp32", "bf16"):
            options = ["--precision", precision, "--limit-train", "2000", "--limit-eval", "1"]
            workers = {way: Worker(job | {"way": way, "precision": precision, "options": options}) for way in ("ours", "peer")}
            for number in range(len(batches)):
                for worker in workers.values():
                    worker.step(number)
            for way, worker in workers.items():
                worker.end()
                lines.append(f"| {'ours' if way == 'ours' else 'transformers + PEFT'} | {precision} | "
                             f"{statistics.median(worker.times()):.2f} s | {worker.rounds[-1]['peak_mib']:,.0f} MiB |")
    return [*lines, "", machine()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.e2e_small", description="Every method on SmolLM2-135M and real E2E.")
    parser.add_argument("part", choices=["search", "train", "table", "step"])
    parser.add_argument("--data-dir", help="folder with e2e/ (default: $LORA_DATA, else downloaded into a cache folder)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each (default 2)")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/e2e-small"))
    parser.add_argument("--results", type=Path, default=Path("results/e2e-small"))
    options = parser.parse_args(arguments)
    if options.part == "table":
        write_table(options.out_dir, options.results)
        return 0
    data_dir = data.fetch_task("e2e", options.data_dir)
    if options.part == "step":
        print("\n".join(measure_step(data_dir)))
        return 0
    model_folder()                                                           # made once, before the processes that load it
    write_data(data_dir, options.out_dir)
    failed, whole = 0, search_plan(options.out_dir)
    of_methods = [whole | {"rows": whole["rows"][start:start + N_RATES]} for start in range(0, len(whole["rows"]), N_RATES)]
    for plan in of_methods if options.part == "search" else train_plans(options.out_dir):
        failed += run_all([plan], options.out_dir, options.jobs)
        for path in options.out_dir.rglob("metrics.json"):
            for state in STATES:
                (path.parent / state).unlink(missing_ok=True)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
