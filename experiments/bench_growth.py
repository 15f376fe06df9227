"""How a LoRA step of gpt2 grows with the work, and that a long run's memory does not grow.

    python -m experiments.bench growth --data-dir DIR --tokenizers DIR --json results/bench/growth.json   # and growth.png
    python -m experiments.bench flat --data-dir toy/data                         # 1,000 steps of both toy models, both formats

Growth: gpt2 with random weights, fp32, the models' own dropout; every sample is `length` tokens, the second half of them
targets. Each point is a fresh process: the median of its steps, and the most memory it ever had. One of batch size, length
and rank varies, the others stay at 8, 64 and 4.
"""
import argparse
import multiprocessing
import statistics
import tempfile
from pathlib import Path

import torch

from experiments.bench_train import MODELS, Ours, Worker, machine, write_model

BASE = {"batch": 8, "length": 64, "rank": 4}
VARIED = {"batch": (1, 2, 4, 8, 16, 32), "length": (32, 64, 128, 256, 512), "rank": (1, 2, 4, 8, 16, 32, 64)}


def point(job: dict, shape: dict, steps: int) -> dict:
    worker = Worker(job | shape | {"rounds": steps, "options": ["--precision", "fp32", "--rank", str(shape["rank"])]})
    for number in range(steps + 1):
        worker.step(number)
    worker.end()
    return shape | {"milliseconds": 1e3 * statistics.median(entry["seconds"] for entry in worker.rounds[1:]),
                    "peak_mib": worker.rounds[-1]["peak_mib"]}


def bench_growth(options: argparse.Namespace) -> dict:
    figures = {"machine": machine(options.threads), "points": {}}
    with tempfile.TemporaryDirectory() as scratch:
        write_model("gpt2", options.tokenizers, Path(scratch) / "gpt2")
        job = {"way": "ours", "precision": "fp32", "folder": f"{scratch}/gpt2", "task": MODELS["gpt2"][1], "scratch": scratch,
               "data_dir": str(options.data_dir), "threads": options.threads}
        for name in options.vary:
            for value in VARIED[name]:
                made = point(job, BASE | {name: value}, options.steps)
                figures["points"].setdefault(name, []).append(made)
                print(", ".join(f"{key} {number:,.0f}" for key, number in made.items()), flush=True)
    return figures


def plot(figures: dict, path: Path) -> None:
    """Time and memory over batch size, length and rank, all axes logarithmic: a straight line is a power of the work."""
    from experiments import plots  # matplotlib: only where a picture is asked for
    names = list(figures["points"])
    figure, axes = plots.new_figure(len(names), 2, 3.6, 3.2, sharex="col", sharey="row")
    for row, (key, label) in enumerate((("milliseconds", "step (ms)"), ("peak_mib", "peak memory (MiB)"))):
        for axis, name in zip(axes[row * len(names):], names, strict=False):
            points = figures["points"][name]
            axis.plot([made[name] for made in points], [made[key] for made in points], marker="o", color=plots.LORA)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            plots.plain_ticks(axis.xaxis, [made[name] for made in points])
            plots.growth_ticks(axis.yaxis)
            if row == 0:
                others = ", ".join(f"{other} {value}" for other, value in BASE.items() if other != name)
                axis.set_title(f"{name} varies\n({others})")
            else:
                axis.set_xlabel({"length": "length (tokens)", "batch": "batch (samples)"}.get(name, "rank r"))
        axes[row * len(names)].set_ylabel(label)
    about = figures["machine"]
    figure.suptitle(f"A LoRA step of gpt2 (random weights), fp32, {about['threads']} threads, {about['device']}", fontsize=13)
    plots.save_figure(figure, path)
    print(f"wrote {path}")


def resident_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def memory_of_a_run(kind: str, precision: str, data_dir: Path, steps: int, threads: int) -> dict[int, float]:
    """Resident MiB of this process after the 100th step and every tenth part of `steps` on batches of the toy tasks."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        ours = Ours({"folder": f"toy/{kind}", "task": {"gpt2": "e2e", "roberta": "mrpc"}[kind], "data_dir": str(data_dir),
                     "batch": 8, "scratch": scratch, "options": ["--precision", precision], "rounds": steps})
        memory = {}
        for step in range(1, steps + 1):
            ours.step(step)
            if step % (steps // 10) == 0:
                memory[step] = resident_mib()
    return memory


def bench_flat(options: argparse.Namespace) -> dict:
    """Both toy models in both formats, each in a fresh process."""
    figures = {"machine": machine(options.threads), "resident_mib": {}, "growth": {}}
    for kind in ("gpt2", "roberta"):
        for precision in ("fp32", "bf16"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory = pool.apply(memory_of_a_run, (kind, precision, options.data_dir, options.steps, options.threads))
            first, *later = memory.values()
            figures["resident_mib"][f"{kind}, {precision}"] = memory
            figures["growth"][f"{kind}, {precision}"] = max(later) / first - 1
            print(f"{kind}, {precision}: {first:.0f} MiB after step {min(memory)}, at most {max(later):.0f} later "
                  f"({max(later) / first - 1:+.1%})", flush=True)
    return figures


def add_options(growth: argparse.ArgumentParser, flat: argparse.ArgumentParser) -> None:
    growth.add_argument("--tokenizers", required=True, type=Path, help="folder with gpt2/ tokenizer files")
    growth.add_argument("--vary", nargs="+", default=list(VARIED), choices=list(VARIED))
    for parser, steps in ((growth, 3), (flat, 1000)):
        parser.add_argument("--data-dir", required=True, type=Path, help="folder with e2e/; for flat, the toy task's")
        parser.add_argument("--steps", type=int, default=steps)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--json", type=Path, help="write the figures to this file; growth draws them beside it as .png")
