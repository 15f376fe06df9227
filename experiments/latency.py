"""What a method costs at inference (Table 1): a forward pass of the base, of merged LoRA, of LoRA kept apart, and of both
adapters, in turn and many times over, on random weights of a real size.

    python -m experiments.latency --out results/latency.json

The base is measured twice under two names; how far the two are apart is the noise below which a difference says nothing.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch

from experiments.counts import SIZES
from experiments.sweep import machine
from experiments.tables import markdown
from files import cli
from files.text import write_json
from lora import lora_layers, merge
from methods import apply_method
from model import GPT2
from speed.packed import pack
from toy.fresh import init_weights

METHODS = {"base": None, "base again": None, "LoRA, merged": ("lora", 4), "LoRA, apart": ("lora", 4),
           "adapter-l": ("adapter-l", 64), "adapter-h": ("adapter-h", 64)}
CASES = ((1, 128), (4, 128), (1, 512))                                       # batch, tokens


def make_model(name: str, size: str) -> GPT2:
    model = GPT2(SIZES[size])
    init_weights(model, 0)
    if METHODS[name]:
        apply_method(model, METHODS[name][0], METHODS[name][1], alpha=32)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        for B in layer.lora_B.values():
            torch.nn.init.normal_(B, std=0.02, generator=generator)
    return (merge(model) if name == "LoRA, merged" else model).eval()


@torch.inference_mode()
def measure(models: dict[str, GPT2], batch: int, tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of a forward pass up to the last hidden states; the models take turns, so that all see the same load."""
    input_ids = torch.randint(1000, (batch, tokens), generator=torch.Generator().manual_seed(0))
    ids, attend = pack(input_ids.tolist(), causal=True)                      # (batch x tokens,)
    seconds = {name: [] for name in models}
    for turn in range(rounds + 1):                                           # the first is not counted
        for name, model in models.items():
            started = time.perf_counter()
            model.hidden_states(ids, attend)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.latency", description="Time a forward pass with every method.")
    parser.add_argument("--size", choices=[name for name in SIZES if name.startswith("GPT")], default="GPT-2 S")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    models = {name: make_model(name, options.size) for name in METHODS}
    cases = [{"batch": batch, "tokens": tokens} | measure(models, batch, tokens, options.rounds) for batch, tokens in CASES]
    noise = max(abs(case["base again"] / case["base"] - 1) for case in cases)
    found = {"model": options.size, "made": machine(), "threads": torch.get_num_threads(), "rounds": options.rounds,
             "noise": noise, "cases": cases}
    print("\n".join(latency_table(found)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(found, options.out)
    return 0


def latency_table(found: dict) -> list[str]:
    """In the shape of Table 1: milliseconds, and the difference to the base."""
    header = ["batch x tokens", *METHODS]
    rows = [[f"{case['batch']} x {case['tokens']}", *(f"{1000 * case[name]:.1f} ms ({case[name] / case['base'] - 1:+.1%})"
                                                     for name in METHODS)] for case in found["cases"]]
    return markdown(header, rows)


if __name__ == "__main__":
    cli.run(main)
