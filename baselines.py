"""The methods that LoRA is compared with (Hu et al. 2021, section 5.1), each as the choice of what trains.

    lora         the low-rank updates (lora.py)
    full         every weight
    last-layers  the last two blocks ("FT-Top2")
    bitfit       every bias, and nothing else (Ben Zaken et al. 2021)
    head         the task head on the frozen base

RoBERTa's task head is new and trains with every method; GPT-2's output head is its token embedding and has none.
Left out: adapters and prefix tuning, which add modules.
"""
import re
from pathlib import Path

from torch import nn

import lora
from adapter_files import read_adapter, read_folder, write_folder
from model import GPT2, RobertaClassifier

METHODS = ("lora", "full", "last-layers", "bitfit", "head")
LAST_LAYERS = 2


def apply_method(model: GPT2 | RobertaClassifier, method: str, rank: int = 8, alpha: float = 8.0,
                 targets: tuple[str, ...] = ("q", "v"), dropout: float = 0.0, lora_init: str = "kaiming",
                 seed: int = 0) -> None:
    """Mark what `method` trains and freeze the rest; "lora" also puts its updates in (the options are LoRA's).

    Raises ValueError for an unknown method, or one that trains nothing on this model.
    """
    if method == "lora":
        lora.add_lora(model, rank, alpha, targets, dropout=dropout, init=lora_init, seed=seed)
        return
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; expected one of {' '.join(METHODS)}")
    model.fingerprint = lora.base_fingerprint(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(lora.HEAD) or trains(model, method, name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"method '{method}' trains nothing on {type(model).__name__}, which has no task head; choose "
                         f"one of {' '.join(name for name in METHODS if name != method)}")


def trains(model: nn.Module, method: str, name: str) -> bool:
    """Whether `method` trains the base parameter of this name."""
    if method == "full":
        return True
    if method == "bitfit":
        return name.endswith(".bias")
    if method == "last-layers":
        layers = lora.LAYERS[type(model.config)]
        block = re.match(re.escape(layers) + r"\.(\d+)\.", name)
        return block is not None and int(block[1]) >= len(model.get_submodule(layers)) - LAST_LAYERS
    return False


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: "trainable" without the head, "head", and "total" of everything, updates included."""
    counts = {"trainable": 0, "head": 0, "total": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["head" if name.startswith(lora.HEAD) else "trainable"] += parameter.numel()
    return counts


def save_trained(model: nn.Module, method: str, directory: str | Path, base_name: str, task: str) -> None:
    """Save what `method` trained, as adapter_model.safetensors + adapter_config.json; LoRA in PEFT's format."""
    if method == "lora":
        lora.save_adapter(model, directory, base_name, task)
        return
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {"method": method, "task": task, "base_fingerprint": model.fingerprint,
           "num_labels": getattr(model.config, "num_labels", None)}
    write_folder(directory, trained, {"base_model_name_or_path": str(base_name), "method": method}, own)


def reload_trained(model: nn.Module, method: str, directory: str | Path) -> None:
    """Put what save_trained wrote back into the model that it was saved from, in place of its present numbers."""
    if method == "lora":
        lora.copy_adapter(model, read_adapter(directory, model.config))
        return
    tensors, _, _ = read_folder(directory)
    lora.copy_tensors({name: p for name, p in model.named_parameters() if p.requires_grad}, tensors, directory)
