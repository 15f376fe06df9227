"""The number format of the frozen weights and of products with them: bf16 where that is fast, fp32 elsewhere.

LoRA's base is never updated, so it can be held once in bf16 (8 bits of precision, the range of fp32): half the memory, and
with the matrix units of recent processors and GPUs several times the speed. Activations are bf16 then, too. What trains,
its gradients, the optimizer, the task head and the loss stay in fp32, because a bf16 number would swallow most small
updates. A method that trains weights of the base itself has nothing to gain here and keeps all of it in fp32.
"""
import torch
from torch import nn

from lora import is_base


def choose_precision(asked: str, model: nn.Module, device: str) -> tuple[torch.dtype, str]:
    """What the frozen weights of a model with its method applied are to be held in, and why.

    asked: auto, fp32 or bf16. Raises ValueError for bf16 where weights of the base train.
    """
    trained_base = next((name for name, parameter in model.named_parameters() if parameter.requires_grad and is_base(name)), "")
    if asked == "fp32":
        return torch.float32, "asked for"
    if trained_base:
        if asked == "bf16":
            raise ValueError(f"--precision bf16, but this method trains '{trained_base}' of the base, whose small updates "
                             "bf16 would lose: choose --precision fp32, or a method that leaves the base frozen")
        return torch.float32, "weights of the base train"
    fast, why = multiplies_bf16_fast(device)
    return (torch.bfloat16, "asked for") if asked == "bf16" else (torch.bfloat16 if fast else torch.float32, why)


def multiplies_bf16_fast(device: str) -> tuple[bool, str]:
    if device == "cuda":
        name = torch.cuda.get_device_name()
        fast = torch.cuda.get_device_capability() >= (8, 0)                  # Ampere and later
        return fast, f"{name} {'multiplies' if fast else 'does not multiply'} bf16 in its tensor cores"
    found = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    return bool(found), f"this processor has {found[0]}" if found else "this processor has neither AMX nor AVX512-BF16"


@torch.no_grad()
def hold_frozen_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the frozen weights of the base to `dtype`, one by one, so that both forms of the whole never coexist."""
    for name, parameter in model.named_parameters():
        if is_base(name) and not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
