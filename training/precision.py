"""The number format of the frozen weights and of products with them: bf16 where that is faster, fp32 elsewhere.

LoRA's base is never updated, so it can be held once in bf16 (8 bits of precision, the range of fp32): half the memory, and
with the matrix units of recent processors and GPUs several times the speed. Activations are bf16 then, too. What trains,
its gradients, the optimizer, the task head and the loss stay in fp32, because a bf16 number would swallow most small
updates. A method that trains weights of the base itself has nothing to gain here and keeps all of it in fp32.

The rule of "auto" looks at the model and the kind of processor alone, never at a clock: the same every time. A narrow model
spends its time between the products, so with AMX bf16 pays from a hidden size of LEAST_WIDTH on; AVX512-BF16 without AMX was
slower than fp32 at every size (`python -m experiments.bench formats`, results/bench/formats.md).

On a GPU since Ampere, products of fp32 numbers are taken in TF32, with 11 bits of precision, where bf16 has 8 and fp32 24;
NVIDIA_TF32_OVERRIDE=0 in the environment leaves them exact. Left out: fp16.
"""
import argparse
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from files.text import read_json
from lora import base_fingerprints, is_base

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_WIDTH = 256


def named_precision(name: str) -> str:
    """What a --precision names. argparse makes a line of the error."""
    if name == "fp16":
        raise argparse.ArgumentTypeError("fp16 is not trained here: its range loses small gradients unless they are scaled, "
                                         "which no test has shown to work; choose bf16, which needs no scaling, or fp32")
    if name not in ("auto", *FORMATS):
        raise argparse.ArgumentTypeError(f"found {name!r}, expected auto, fp32 or bf16")
    return name


def choose_precision(asked: str, model: nn.Module, device: str, of_the_run: str | None = None) -> tuple[str, str]:
    """What the frozen weights of a model with its method applied are to be held in, "fp32" or "bf16", and why; on a GPU that
    has TF32, also switches that on, and says so.

    asked: auto, fp32 or bf16. auto: of_the_run, where a run is resumed or its adapter scored; else what $LORA_PRECISION names;
    else the rule above. Raises ValueError for bf16 where weights of the base train, and on a GPU that only emulates it.
    """
    frozen_in, why = by_rule(asked, model, device, of_the_run)
    if not device.startswith("cuda") or not multiplies_bf16_fast(device)[0]:
        return frozen_in, why
    torch.set_float32_matmul_precision("high")
    return frozen_in, f"{why}; products of fp32 numbers as TF32"


def by_rule(asked: str, model: nn.Module, device: str, of_the_run: str | None) -> tuple[str, str]:
    """choose_precision, for every device alike."""
    trained_base = next((name for name, parameter in model.named_parameters()
                         if parameter.requires_grad and is_base(model, name)), "")
    if asked == "bf16" and trained_base:
        raise ValueError(f"--precision bf16, but this method trains '{trained_base}' of the base, whose small updates "
                         "bf16 would lose: choose --precision fp32, or a method that leaves the base frozen")
    fast, why = multiplies_bf16_fast(device)
    if asked == "bf16" and device.startswith("cuda") and not fast:
        raise ValueError(f"--precision bf16, but {why} and only emulates it, slower than fp32: choose --precision fp32")
    if asked != "auto":
        return asked, "asked for" if asked == "fp32" or fast else f"asked for; {why}, so fp32 would be faster"
    if trained_base:
        return "fp32", "weights of the base train"
    if of_the_run is not None:
        return of_the_run, "as the run that trained it"
    if forced := os.environ.get("LORA_PRECISION"):
        if forced not in FORMATS:
            raise ValueError(f"$LORA_PRECISION is '{forced}', expected fp32 or bf16, or unset it")
        return forced, "$LORA_PRECISION says so"
    width = model.config.hidden_size
    if fast and width < LEAST_WIDTH:
        return "fp32", f"{why}, but bf16 gains nothing below a hidden size of {LEAST_WIDTH}, this model has {width}"
    return ("bf16" if fast else "fp32"), why


def format_of_run(adapter: str | Path) -> str | None:
    """The format in which the run behind an adapter held its frozen weights, by the config.json beside the adapter's folder;
    None for an adapter that no run folder holds."""
    path = Path(adapter).resolve()
    config = (path if path.is_dir() else path.parent).parent / "config.json"
    with suppress(OSError, ValueError):                                      # another program's, or none
        if (found := read_json(config).get("frozen_in")) in FORMATS:
            return found
    return None


def multiplies_bf16_fast(device: str) -> tuple[bool, str]:
    """Whether a device ("cpu", "cuda", "cuda:1", "mps") has units for products in bf16, and a sentence that says so."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        fast = torch.cuda.get_device_capability(device) >= (8, 0)            # Ampere and later
        return fast, f"{name} {'multiplies' if fast else 'does not multiply'} bf16 in its tensor cores"
    if device != "cpu":
        return False, f"bf16 has not been measured on {device}"
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return True, "this processor has AMX"
    return False, "this processor has no AMX"


@torch.no_grad()
def hold_frozen_in(model: nn.Module, precision: str) -> None:
    """Convert the frozen weights of the base to "fp32" or "bf16", one by one, so that both forms of the whole never coexist.

    What was loaded is a view of the mapped file, which stays in memory as long as one view lives: what stays fp32 is copied.
    """
    model.fingerprints = base_fingerprints(model)                            # of the numbers before they are rounded
    for name, parameter in model.named_parameters():
        if is_base(model, name) and not parameter.requires_grad:
            parameter.data = parameter.data.to(FORMATS[precision])
        elif precision != "fp32":
            parameter.data = parameter.data.clone()
