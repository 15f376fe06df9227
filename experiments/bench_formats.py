"""From which hidden size on bf16 is faster than fp32: a LoRA step of a GPT-2 of 6 layers, over widths, in both formats.

    python -m experiments.bench formats --json results/bench/formats.json
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m experiments.bench formats     # as on a processor with AVX512-BF16, no AMX

Random weights; batches of 8 sequences of 31 to 90 tokens, the second half of each targets, 1,024 words, so that the blocks are
what is timed. The two formats take turns, so that both see the same load; a ratio is the median of rounds. Behind the rule in
training/precision.py.
"""
import argparse
import os
import random
import statistics
import time
from pathlib import Path

import torch

from experiments.bench_train import machine
from experiments.tables import markdown
from lora import add_lora
from model import GPT2, GPT2Config
from speed.loss import target_loss
from speed.packed import TOKENS_AT_A_TIME, pack, round_up
from toy.fresh import init_weights
from training.precision import hold_frozen_in

WIDTHS = (128, 256, 384, 512, 768, 1024)
WARM_UP = 3


class Stepper:
    """A model in one format, and its LoRA step on a batch of token lists."""

    def __init__(self, width: int, precision: str):
        self.model = GPT2(GPT2Config(vocab_size=1024, n_embd=width, n_layer=6, n_head=width // 64))
        init_weights(self.model, seed=0)
        add_lora(self.model, rank=4, alpha=32, dropout=0.1)
        hold_frozen_in(self.model.train(), precision)
        self.multiple = TOKENS_AT_A_TIME if precision == "bf16" else 1
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(self, sequences: list[list[int]]) -> float:
        """Seconds of an update."""
        started = time.perf_counter()
        ids, attend = pack(sequences, causal=True, multiple=self.multiple)
        ends = torch.tensor([len(sequence) for sequence in sequences]).cumsum(0).tolist()
        wanted = torch.cat([torch.arange(end - len(sequence) // 2, end) for end, sequence in zip(ends, sequences, strict=True)])
        self.optimizer.zero_grad()
        hidden = self.model.hidden_states(ids, attend, round_up(wanted, self.multiple))
        (target_loss(hidden, self.model.transformer.wte.weight, ids[wanted]) / len(wanted)).backward()
        self.optimizer.step()
        return time.perf_counter() - started


def bench_formats(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    draw = random.Random(0)
    batches = [sorted(([draw.randrange(1024) for _ in range(draw.randint(31, 90))] for _ in range(8)), key=len)
               for _ in range(options.rounds + WARM_UP)]
    points = []
    for width in options.widths:
        steppers = {precision: Stepper(width, precision) for precision in ("fp32", "bf16")}
        pairs = [(steppers["fp32"].step(batch), steppers["bf16"].step(batch)) for batch in batches][WARM_UP:]
        points.append({"hidden_size": width, "fp32_ms": 1e3 * statistics.median(a for a, _ in pairs),
                       "bf16_ms": 1e3 * statistics.median(b for _, b in pairs),
                       "fp32_by_bf16": statistics.median(a / b for a, b in pairs)})
        print(points[-1], flush=True)
    figures = {"machine": machine(options.threads), "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "as found"),
               "rounds": options.rounds, "points": points}
    print(table(figures))
    return figures


def table(figures: dict) -> str:
    """The points in Markdown."""
    rows = [[str(point["hidden_size"]), f"{point['fp32_ms']:.1f}", f"{point['bf16_ms']:.1f}", f"{point['fp32_by_bf16']:.2f}"]
            for point in figures["points"]]
    about = figures["machine"]
    return "\n".join([*markdown(["hidden size", "fp32, ms a step", "bf16, ms", "times as fast"], rows), "",
                      f"Products by {figures['onednn_max_cpu_isa']}; {about['device']}, {about['threads']} threads, torch "
                      f"{about['torch']}, {about['date']}, medians of {figures['rounds']} rounds."]) + "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")
