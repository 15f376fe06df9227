"""The paper's comparison of methods (Table 3) on a real decoder and two cores: SmolLM2-135M (smollm.py) on the real E2E.

    python -m experiments.e2e_small search --data-dir D        the learning rate of every method, by validation loss
    python -m experiments.e2e_small runs --data-dir D          with these: LoRA and full with three seeds, others with one
    python -m experiments.e2e_small texts                      LoRA's texts, for a person to read (e2e_texts.py)
    python -m experiments.e2e_small report                     keeps what is finished in results/ and writes its tables
    python -m experiments.e2e_small all --data-dir D           search, runs and report
    python -m experiments.e2e_small step --data-dir D          a step of LoRA beside transformers + PEFT, with two threads

A portion: `--budget-minutes N` begins no run after N minutes; the same command goes on where it was left, also from the kept
runs alone. Every method sees the same 4,000 training samples, drawn once, and is chosen by its loss on the first 200 records of
the validation set, a reference each. The search (search.py) trains 150 steps at every rate and never sees the test set, whose
630 records are decoded at the end as the paper does. Frozen weights are in bf16 where the processor has it, which every run's
config.json says. Left out: BitFit, for this model has no biases; a task head, for its output head is its embedding.
"""
import argparse
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

import data
import train
from experiments.bench_train import WARM_UP, Worker, draw_batches
from experiments.e2e_texts import write_texts
from experiments.kept_runs import restore
from experiments.search import HELD_OUT, Search, make_plan, make_row, plans_of, run_all_parts, run_plans, run_search
from experiments.smollm import NAME, model_folder
from experiments.sweep import machine
from files import cli

COMMON = (f"--model {NAME} --task e2e --batch-size 8 --weight-decay 0.01 --label-smoothing 0.1 --dropout 0.1 --save-every 100")
# label -> options, and the lowest of its rates. What is added has about the 230,400 numbers of LoRA on q v with r = 4; q v with
# r = 16 and all seven with r = 3 have four times as many.
METHODS = {
    "LoRA": ("--method lora --targets q v --rank 4 --alpha 32", "1e-4"),
    "full": ("--method full", "1e-5"),
    "LoRA, q v, r = 16": ("--method lora --targets q v --rank 16 --alpha 128", "1e-4"),
    "LoRA, all seven, r = 3": ("--method lora --targets q k v o gate up down --rank 3 --alpha 24", "1e-4"),
    "last two layers": ("--method last-layers", "1e-5"),
    "adapter-h": ("--method adapter-h --rank 3", "1e-4"),
    "adapter-l": ("--method adapter-l --rank 5", "1e-4"),
    "prefix": ("--method prefix --rank 13", "1e-3"),
}
SEEDS = {"LoRA": (1, 2, 3), "full": (1, 2, 3)}                               # the others: 1
TRAINING_SAMPLES, VALIDATION_RECORDS = 4000, 200
SEARCH = Search("e2e-small-search", {NAME: f"{COMMON} --max-steps 150"}, METHODS, lambda metrics: -metrics["scores"]["loss"])


def write_data(data_dir: Path, out: Path) -> None:
    """Two data folders in `out`: "data", with the samples above and the test set, and HELD_OUT, without the test set."""
    samples = random.Random(0).sample(data.read_e2e("train", data_dir), TRAINING_SAMPLES)
    first = {}
    for mr, reference in data.read_e2e("valid", data_dir):
        first.setdefault(mr, reference)
    valid = list(first.items())[:VALIDATION_RECORDS]
    for name, test in ((HELD_OUT, valid[:1]), ("data", data.read_e2e("test", data_dir))):
        folder = out / name / "e2e"
        folder.mkdir(parents=True, exist_ok=True)
        for split, pairs in (("train", samples), ("valid", valid), ("test", test)):
            text = "".join(f"{mr}||{reference}\n" for mr, reference in pairs)
            (folder / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")


def search(options: argparse.Namespace) -> int:
    return run_search(SEARCH, options.out_dir, options.jobs, options.until)


def comparison(out: Path) -> dict:
    """The plan of the base and of the methods whose rate is found. Raises ValueError where none is."""
    _, rates = plans_of(SEARCH, out)
    if not rates:
        raise ValueError(f"{out}: no search of a learning rate has ended here; run `python -m experiments.e2e_small search` "
                         "first")
    common = f"{COMMON} --data-dir {(out / 'data').as_posix()}"
    rows = [make_row(method, common, METHODS[method][0], f"--lr {rates[method]} --epochs 2", seeds=SEEDS.get(method, (1,)))
            for method in METHODS if method in rates]
    return make_plan("e2e-small", NAME, [1, 2, 3], [make_row("frozen base", common, "--eval-only"), *rows])


def runs(options: argparse.Namespace) -> int:
    return run_plans([comparison(options.out_dir)], options.out_dir, options.jobs, options.until, lambda run: run[0][1])


def texts(options: argparse.Namespace) -> int:
    records = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", options.out_dir / "data")))
    write_texts(comparison(options.out_dir), records, options.out_dir, Path("results/e2e-small/texts.json"))
    return 0


def report(options: argparse.Namespace) -> int:
    from experiments import report  # matplotlib: only here
    return report.main(["--runs", str(options.out_dir)])


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


PARTS = {"search": search, "runs": runs, "texts": texts, "report": report,
         "all": lambda options: run_all_parts(PARTS, options)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.e2e_small", description="Every method on SmolLM2-135M and real E2E.")
    parser.add_argument("part", choices=[*PARTS, "step"])
    parser.add_argument("--data-dir", help="folder with e2e/ (default: $LORA_DATA, else downloaded into a cache folder)")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/e2e-small"))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each (default 2)")
    parser.add_argument("--budget-minutes", type=float, default=math.inf, metavar="N", help="begin no run after N minutes")
    options = parser.parse_args(arguments)
    if options.part == "step":
        print("\n".join(measure_step(data.fetch_task("e2e", options.data_dir))))
        return 0
    restore("e2e-small", options.out_dir)
    options.until = time.time() + 60 * options.budget_minutes
    if options.part in ("search", "runs", "all"):
        model_folder()                                                       # made once, before the processes that load it
        write_data(data.fetch_task("e2e", options.data_dir), options.out_dir)
    return 1 if PARTS[options.part](options) else 0


if __name__ == "__main__":
    cli.run(main)
