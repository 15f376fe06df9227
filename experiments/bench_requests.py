"""A long file of requests for many adapters of the toy RoBERTa: predict.py in one process, against one per adapter.

    python -m experiments.bench requests --adapters 100 --requests 10000

What it checks, or stops with an error: every request is answered in its place, the resident memory of the one process
does not grow while it answers, and a process of its own for each adapter gives the same answers. Adapters have different
ranks, targets, tasks and heads, drawn at random as if trained; the texts are those of the toy tasks.
"""
import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from adapters import save_adapter
from data import read_glue
from lora import add_lora
from model import load_pretrained
from toy.world import write_tasks

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "toy" / "roberta"
LABELS = {"mrpc": 2, "mnli": 3, "stsb": 1}
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def write_adapters(folder: Path, count: int) -> dict[str, str]:
    """`count` adapter folders with random numbers; the task of each."""
    tasks, bases = {}, {task: load_pretrained(MODEL, num_labels=labels) for task, labels in LABELS.items()}
    for index in range(count):
        draw = random.Random(index)
        task, rank = list(LABELS)[index % 3], draw.choice((1, 2, 4, 8, 16))
        targets = draw.choice((("q", "v"), ("v",), ("q", "k", "v", "o"), ("fc", "proj")))
        model = add_lora(copy.deepcopy(bases[task]), rank, 2 * rank + 1, targets, seed=index)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name or name.startswith("classifier."):
                    parameter.normal_(0, 0.1, generator=generator)
        name = f"{task}-{index}"
        save_adapter(model, folder / name, task=task)
        tasks[name] = task
    return tasks


def command(adapters: Path, names: list[str], requests: Path, answers: Path) -> list[str]:
    chosen = [part for name in names for part in ("--adapter", f"{name}={adapters / name}")]
    return [sys.executable, str(ROOT / "predict.py"), "--model", str(MODEL), *chosen, str(requests), "--out", str(answers)]


def watch(arguments: list[str], out: Path) -> tuple[float, list[tuple[int, float]]]:
    """Run predict.py; its seconds, and (answers written, resident MiB) every fifth of a second (Linux only)."""
    started, seen = time.perf_counter(), []
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    temporary = out.with_name(out.name + ".tmp")
    while process.poll() is None:
        time.sleep(0.2)
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE / 2**20
            seen.append((temporary.read_bytes().count(b"\n"), resident))
        except (OSError, IndexError):                                        # not begun, or over
            continue
    if process.returncode:
        raise ValueError(f"predict.py ended with status {process.returncode}: {process.stderr.read().decode()[-300:]}")
    return time.perf_counter() - started, seen


def read_answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def differing(one: dict, other: dict) -> bool:
    """Numbers are rounded to four digits, and batches round differently: one unit of the last is no difference."""
    return one.keys() != other.keys() or any(
        abs(one[key] - other[key]) > 2e-4 if isinstance(one[key], float) else one[key] != other[key] for key in one)


def bench_requests(options: argparse.Namespace) -> dict:
    """Write adapters and requests, answer them in one process and in one per adapter, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder / "data")
        tasks = write_adapters(folder, options.adapters)
        texts = {"mrpc": read_glue("mrpc", "train", folder / "data"), "mnli": read_glue("mnli", "train", folder / "data")}
        draw, names, requests = random.Random(0), list(tasks), []
        for index in range(options.requests):
            adapter = draw.choice(names)
            example = draw.choice(texts["mnli" if tasks[adapter] == "mnli" else "mrpc"])
            requests.append({"id": index, "adapter": adapter, "text": [example.text, example.pair]})

        def ask(name: str, chosen: list[str], wanted: list[dict]) -> tuple[list[dict], float, list]:
            path, out = folder / f"{name}.jsonl", folder / f"{name}.answers"
            path.write_text("".join(json.dumps(request) + "\n" for request in wanted), encoding="utf-8")
            seconds, seen = watch(command(folder, chosen, path, out), out)
            return read_answers(out), seconds, seen

        answers, seconds, seen = ask("mixed", names, requests)
        if [answer["id"] for answer in answers] != list(range(options.requests)):
            raise ValueError("the answers do not stand in the order of the requests")
        different, apart = 0, 0.0
        for adapter in names:
            wanted = [request for request in requests if request["adapter"] == adapter]
            alone, took, _ = ask(adapter, [adapter], wanted)
            apart += took
            different += sum(differing(answers[answer["id"]], answer) for answer in alone) + len(wanted) - len(alone)
    resident = [memory for count, memory in seen if count]
    figures = {"adapters": options.adapters, "requests": options.requests, "seconds": seconds, "seconds_apart": apart,
               "different_answers": different, "memory": seen, "labels": len({a.get("label") for a in answers})}
    print(f"{options.requests:,} requests for {options.adapters} adapters in order: {seconds:.1f} s in one process, "
          f"{apart:.1f} s in {options.adapters}; {different} answers differ")
    if len(resident) >= 8:                                                   # too short a run says nothing
        quarter = len(resident) // 4
        early, late = figures["resident_mib"] = [max(resident[:quarter]), max(resident[-quarter:])]
        print(f"resident memory: at most {early:.1f} MiB in the first quarter of the answers, {late:.1f} MiB in the last")
        if late > 1.05 * early:
            raise ValueError(f"the memory grew from {early:.1f} to {late:.1f} MiB while requests were answered")
    if different:
        raise ValueError(f"{different} answers differ from those of one process per adapter")
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
