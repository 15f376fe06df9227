"""What a method adds to a model, and what it trains: `trains` says it of every parameter.

A task head is new and trains with every method; a GPT-2, whose output head is its token embedding, has none. What is added
leaves the base's tensors and their names as they are. Left out: how the added modules compute (bottleneck.py, prefix.py).
"""
import re

import torch
from torch import nn

import lora
from methods.bottleneck import BottleneckAdapter, add_adapter_h, add_adapter_l
from methods.prefix import Prefix, add_prefix

METHODS = ("lora", "full", "last-layers", "bitfit", "adapter-h", "adapter-l", "prefix", "head")
WITH_RANK = ("lora", "adapter-h", "adapter-l", "prefix")                     # rank: also a bottleneck's or prefix's size
ADDERS = {"adapter-h": add_adapter_h, "adapter-l": add_adapter_l, "prefix": add_prefix}
NEEDS = {"head": "task head", "bitfit": "biases"}                           # which a model may lack
LAST_LAYERS = 2


def apply_method(model: nn.Module, method: str, rank: int = 8, alpha: float = 8.0, targets: tuple[str, ...] = ("q", "v"),
                 dropout: float = 0.0, lora_init: str = "kaiming", bias: str = "none", seed: int = 0) -> None:
    """Add what `method` adds, mark what it trains, and freeze the rest.
    rank: of LoRA's update, of an adapter's bottleneck, or the number of prefix tokens. The options after it are LoRA's.
    Raises ValueError for an unknown method or rank, or a method that trains nothing on this model; RuntimeError for a
    model that has a method already."""
    if method == "lora":
        lora.add_lora(model, rank, alpha, targets, dropout, lora_init, seed, bias)
        return
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; expected one of {' '.join(METHODS)}")
    if method in WITH_RANK and (rank < 1 or rank != int(rank)):
        raise ValueError(f"rank is {rank}; expected a whole number from 1")
    if model.method is not None:
        raise RuntimeError("the model has a method already: load the base again to start another")
    model.fingerprints = lora.base_fingerprints(model)
    if method in ADDERS:
        ADDERS[method](model, rank, torch.Generator().manual_seed(seed))
    model.method = method
    if not any(trains(model, name) for name, _ in model.named_parameters()):
        model.method = None
        raise ValueError(f"method '{method}' trains nothing on {type(model).__name__}, which has no {NEEDS[method]}; choose "
                         f"one of {' '.join(name for name in METHODS if name not in NEEDS)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(model, name))


def trains(model: nn.Module, name: str) -> bool:
    """Whether the model's method, one of those that are not LoRA, trains the parameter of this name."""
    if model.method == "full" or not lora.is_base(model, name):                    # the head, and what the method added
        return True
    if model.method == "bitfit":
        return name.endswith(".bias")
    if model.method == "last-layers":
        block = re.match(re.escape(model.config.blocks) + r"\.(\d+)\.", name)
        return block is not None and int(block[1]) >= model.config.num_layers - LAST_LAYERS
    return False


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def rank_of(model: nn.Module) -> int | None:
    """The rank that the model's method was given; None for a method that has none."""
    if model.method == "lora":
        return lora.lora_settings(model).rank
    return next((module.rank for module in model.modules() if isinstance(module, BottleneckAdapter | Prefix)), None)


def is_of_head(model: nn.Module, name: str) -> bool:
    return model.head is not None and name.startswith(model.head)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: "trainable" without the head, "head", and "total" of everything, updates included."""
    counts = {"trainable": 0, "head": 0, "total": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["head" if is_of_head(model, name) else "trainable"] += parameter.numel()
    return counts
