"""Adapters written for others: PEFT's format, which is ours too, and loralib's state dict.

How q, k and v of GPT-2's fused c_attn become one update of PEFT's is said in adapter_files.py, which reads all of it back.
Left out: formats that nobody asked for. Shapes: r rank, d_in and d_out of a layer.
"""
from pathlib import Path

import torch
from torch import Tensor

from adapter_files import (
    LAYERS,
    MODULES,
    PEFT_PREFIX,
    TARGETS,
    Adapter,
    layer_shape,
    n_layers,
    path_of,
    target_slice,
    write_folder,
)
from model import GPT2Config, RobertaConfig


def write_peft(adapter: Adapter, directory: str | Path, config: GPT2Config | RobertaConfig, base_name: str = "") -> None:
    """adapter_model.safetensors + adapter_config.json in PEFT's format, with the head and our own section."""
    tensors = {}
    for layer, updates in adapter.updates.items():
        d_out = layer_shape(config, path_of(layer, config))[0]
        B = torch.zeros(d_out, len(updates) * adapter.rank)
        for index, (target, (_, part)) in enumerate(updates.items()):
            B[target_slice(config, target), index * adapter.rank:(index + 1) * adapter.rank] = part
        tensors[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = torch.cat([A for A, _ in updates.values()])
        tensors[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = B
    for name, tensor in adapter.others.items():
        layer = name.rpartition(".")[0]
        tensors[PEFT_PREFIX + (f"{layer}.base_layer.bias" if layer in adapter.updates else name)] = tensor
    write_folder(directory, tensors, peft_config(adapter, config, base_name), adapter.own_section())


def peft_config(adapter: Adapter, config: GPT2Config | RobertaConfig, base_name: str) -> dict:
    """The keys that PEFT's LoraConfig reads."""
    modules, rank, alpha = MODULES[type(config)], adapter.rank, adapter.alpha
    updates = {path: sum(modules[target] == path for target in adapter.targets)
               for path in dict.fromkeys(modules[target] for target in adapter.targets)}
    first, *others = updates.items()
    differing = {path: count for path, count in others if count != first[1]}
    names = list(updates)
    if "output.dense" in updates:                                            # else PEFT matches attention.output.dense too
        names = [f"{LAYERS[type(config)]}.{index}.{path}" for path in updates for index in range(n_layers(config))]
    classifier = isinstance(config, RobertaConfig)
    return {"peft_type": "LORA", "task_type": "SEQ_CLS" if classifier else "CAUSAL_LM",
            "base_model_name_or_path": base_name, "r": first[1] * rank, "lora_alpha": first[1] * alpha,
            "rank_pattern": {path: count * rank for path, count in differing.items()},
            "alpha_pattern": {path: count * alpha for path, count in differing.items()},
            "target_modules": names, "modules_to_save": ["classifier"] if classifier else None,
            "lora_dropout": adapter.dropout, "fan_in_fan_out": not classifier, "bias": adapter.bias.replace("-", "_"),
            "inference_mode": True}


def loralib_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The state dict of loralib's layers: an update's A and B under the layer's name, those of c_attn's thirds below one
    another. loralib keeps alpha outside: give its layers lora_alpha = adapter.alpha."""
    tensors = {}
    for layer, updates in adapter.updates.items():
        in_order = [updates[target] for target in TARGETS if target in updates]
        tensors[f"{layer}.lora_A"] = torch.cat([A for A, _ in in_order])
        tensors[f"{layer}.lora_B"] = torch.cat([B for _, B in in_order])
    return tensors | adapter.others
