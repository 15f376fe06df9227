"""How long a user waits: the help text, the first training step, the training data read and tokenised, five scores.

    python -m experiments.bench start --data-dir DIR --tokenizers DIR --score REFS HYPS

Every figure is the median over fresh processes. The first step is that of the toy GPT-2, from the start of the process to
the first line of its log, evaluation of the untrained model included. Reading is E2E's training set, once without and then
with the cache that the first time leaves; it is timed inside the process, after the imports, the tokenizer's files included.
Scoring is the whole command, first without and then with what it keeps of the references; its peak memory stands beside it.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.bench_train import machine
from experiments.tables import markdown
from toy.world import write_tasks

READING = """
import sys, time
import data, tasks
started = time.perf_counter()
task = tasks.GenerationTask.__new__(tasks.GenerationTask)
task.tokenizer, task.config = data.load_tokenizer(sys.argv[2]), tasks.GPT2Config()
samples = task.encode("train", sys.argv[1], "pretokenised", None)
print(len(samples), time.perf_counter() - started)
"""


def run(arguments: list[str], **environment: str) -> tuple[float, str]:
    """Seconds and stdout of a python process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True,
                          env=os.environ | environment)
    return time.perf_counter() - started, done.stdout


def first_step(data_dir: Path, out_dir: Path) -> float:
    """Seconds until the first step stands in the log; the rest of the run is not waited for."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "train.py", "--model", "toy/gpt2", "--task", "e2e", "--data-dir", str(data_dir),
                                "--out-dir", str(out_dir), "--max-steps", "1"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(log.stat().st_size for log in out_dir.rglob("log.jsonl")):
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds


def peak_of(arguments: list[str], **environment: str) -> float:
    """The peak MiB of a python process, which is started by a small one: a process inherits the peak of its parent."""
    starter = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); " \
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    return int(run(["-c", starter, sys.executable, *arguments], **environment)[1]) / 1024


def bench_start(options: argparse.Namespace) -> dict:
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}

    def note(what: str, seconds: float) -> None:
        times.setdefault(what, []).append(seconds)
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(Path(scratch) / "data")
        for number in range(options.rounds):
            note("import torch", run(["-c", "import torch"])[0])
            note("import transformers, peft, with what training needs of them",
                 run(["-c", "import peft, transformers; transformers.GPT2LMHeadModel; peft.get_peft_model"])[0])
            note("python train.py --help", run(["train.py", "--help"])[0])
            note("first step on the toy GPT-2", first_step(Path(scratch) / "data", Path(scratch) / f"run{number}"))
            for state in ("cold", "cached"):
                samples, seconds = run(["-c", READING, str(options.data_dir), str(options.tokenizers / "gpt2")],
                                       XDG_CACHE_HOME=f"{scratch}/cache{number}")[1].split()
                note(f"read and tokenise {int(samples):,} E2E samples, {state}", float(seconds))
            if options.score:
                scoring, cache = ["eval_metrics.py", *map(str, options.score)], {"XDG_CACHE_HOME": f"{scratch}/scores{number}"}
                for state in ("cold", "cached"):
                    note(f"five scores, {state}", run(scoring, **cache)[0])
        if options.score:
            for state in ("cold", "cached"):
                peaks[f"five scores, {state}"] = peak_of(scoring, XDG_CACHE_HOME=f"{scratch}/peak")
    medians = {what: statistics.median(values) for what, values in times.items()}
    figures = {"machine": machine(os.cpu_count()), "seconds": medians, "all": times, "peak_mib": peaks}
    print(table(figures))
    return figures


def table(figures: dict) -> str:
    rows = [[what, f"{seconds:.2f}", f"{figures['peak_mib'][what]:.0f}" if what in figures["peak_mib"] else "–"]
            for what, seconds in figures["seconds"].items()]
    return "\n".join(markdown(["", "seconds", "peak MiB"], rows)) + "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True, type=Path, help="folder with e2e/")
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder with gpt2/ tokenizer files")
    parser.add_argument("--score", nargs=2, type=Path, metavar=("REFS", "HYPS"), help="files for eval_metrics.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")
