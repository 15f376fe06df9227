"""save_adapter and load_adapter: an adapter taken off a model with LoRA, and one put onto the base it was trained on.

What is refused, is refused before the model changes, but for tensors that do not fit. Left out: other methods' adapters
(methods/).
"""
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.adapter import HEAD, Adapter
from adapters.base import check_base, own_base
from adapters.loralib import read_loralib
from adapters.peft import read_peft, write_peft
from lora import add_lora, lora_layers, lora_settings, trains


def save_adapter(model: nn.Module, directory: str | Path, base_name: str = "", task: str = "", form: dict | None = None
                 ) -> None:
    """Write the LoRA matrices and the task head as adapter_model.safetensors + adapter_config.json, in PEFT's format.
    form: of a task of the user's own, {"texts": how many, "labels": their names, or None for a number}.
    Raises RuntimeError for a model without LoRA, or a merged one: its weights hold the update already."""
    write_peft(adapter_of(model, task, form), directory, model, base_name)


def adapter_of(model: nn.Module, task: str = "", form: dict | None = None) -> Adapter:
    """The model's adapter as a file would hold it. Raises RuntimeError like save_adapter."""
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("the model has no LoRA to save: call add_lora first")
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError("a merged model is not saved, its adapter would be added twice: call unmerge(model) first")
    updates = {name: {target: (layer.lora_A[target].detach().cpu(), layer.lora_B[target].detach().cpu())
                      for target in layer.targets} for name, layer in layers.items()}
    others = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()
              if ".lora_" not in name and trains(model, name)}               # the head; biases where the setting says so
    settings = lora_settings(model)
    return Adapter("the model", updates, others, settings.rank, settings.alpha, settings.targets, settings.dropout,
                   settings.init, settings.bias, task, form, **own_base(model))


def load_adapter(model: nn.Module, directory: str | Path, alpha: float | None = None, task: str | None = None,
                 targets: tuple[str, ...] | None = None) -> nn.Module:
    """Put a saved adapter and its head onto the base it was trained on; the model is changed in place and returned.

    directory: a folder of ours or PEFT's, or a state dict of loralib or the authors. alpha: in place of the stored one;
    the latter two store none. task: refuse an adapter of ours for another task. targets: see read_adapter.
    Raises FileNotFoundError, or ValueError for a file without alpha, another base, task or head, and tensors that do not
    fit; after the last the model has LoRA with B = 0, and has to be loaded again.
    """
    return put_adapter(model, read_adapter(directory, model.config, targets), alpha, task)


def read_adapter(path: str | Path, config, targets: tuple[str, ...] | None = None) -> Adapter:
    """The adapter in a folder (ours, PEFT's) or a file (loralib's, the authors') for a base with this configuration.
    targets: what a loralib file's updates of c_attn belong to, where it does not tell; default q and v for two.
    Raises FileNotFoundError, or ValueError for a file that does not fit the base or computes something else than LoRA."""
    path = Path(path)
    if path.name.startswith("adapter_model.") and (path.parent / "adapter_config.json").is_file():
        path = path.parent
    if path.is_dir():
        return read_peft(path, config)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such adapter; expected a folder with adapter_config.json or a state dict")
    return read_loralib(path, config, targets)


def put_adapter(model: nn.Module, adapter: Adapter, alpha: float | None = None, task: str | None = None) -> nn.Module:
    """load_adapter for an adapter that has been read."""
    check_adapter(model, adapter, task)
    complete_head(adapter, model)
    add_lora(model, adapter.rank, alpha_for(adapter, alpha), adapter.targets, adapter.dropout, adapter.init,
             bias=adapter.bias)
    copy_adapter(model, adapter)
    return model


def complete_head(adapter: Adapter, model: nn.Module) -> None:
    """Give an adapter of a BERT whose file has the classifier alone, as PEFT's do, the pooler of its base. model: the base, its
    head untrained. Raises ValueError for a base whose file has no pooler: its own is random."""
    lacking = {name: parameter.detach() for name, parameter in model.named_parameters() if model.head
               and name.startswith(model.head) and not name.startswith(model.of_task) and name not in adapter.others}
    if adapter.num_labels is not None and lacking:
        if model.fresh == model.head:
            raise ValueError(f"{adapter.source}: holds no pooler, nor does the base's file, and a fresh one would answer at "
                             "random: save the adapter together with it (in PEFT: modules_to_save=['pooler', 'classifier'])")
        adapter.others |= lacking


def alpha_for(adapter: Adapter, given: float | None) -> float:
    """The alpha that was given or else is stored. Raises ValueError where neither is."""
    alpha = adapter.alpha if given is None else given
    if alpha is None:
        raise ValueError(f"{adapter.source}: the file holds no alpha, and the update is scaled by alpha / rank (rank "
                         f"{adapter.rank}): give the alpha that it was trained with")
    return alpha


def check_adapter(model: nn.Module, adapter: Adapter, task: str | None) -> None:
    """Refuse an adapter of another base, another task or another number of labels, as far as the file tells."""
    labels = getattr(model.config, "num_labels", None)
    check_base(adapter, model)
    if task is not None and adapter.task not in (None, "", task):
        raise ValueError(f"{adapter.source}: the adapter was trained for task '{adapter.task}', expected '{task}': choose "
                         "an adapter of this task")
    if labels is not None and adapter.num_labels is None:
        raise ValueError(f"{adapter.source}: holds no task head ({HEAD}out_proj.weight), and a fresh one would answer at "
                         "random: save the adapter together with its head (in PEFT: modules_to_save)")
    if adapter.num_labels != labels:
        raise ValueError(f"{adapter.source}: the adapter's head has {adapter.num_labels} labels, this model's {labels}: "
                         f"use it for a task with {adapter.num_labels}; in Python, load the base with num_labels="
                         f"{adapter.num_labels}")


def copy_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Copy an adapter into a model that has LoRA with the same targets, rank and trained biases."""
    kept = {f"{layer}.bias" for layer in adapter.lacking} if adapter.bias == "lora-only" else set()      # as the base has them
    wanted = {name: tensor for name, tensor in model.named_parameters() if trains(model, name) and name not in kept}
    found = dict(adapter.others)
    for name, updates in adapter.updates.items():
        for target, (A, B) in updates.items():
            found |= {f"{name}.lora_A.{target}": A, f"{name}.lora_B.{target}": B}
    copy_tensors(wanted, found, adapter.source)


@torch.no_grad()
def copy_tensors(wanted: dict[str, Tensor], found: dict[str, Tensor], source: str | Path) -> None:
    """Copy `found` over `wanted`, name by name. Raises ValueError, before any change, where names or shapes differ."""
    if wanted.keys() != found.keys():
        raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: "
                         f"'{min(wanted.keys() ^ found.keys())}'; save it again")
    for name, tensor in found.items():
        if wanted[name].shape != tensor.shape:
            raise ValueError(f"{source}: '{name}' has shape {list(tensor.shape)}, this base needs "
                             f"{list(wanted[name].shape)}")
    for name, tensor in found.items():
        wanted[name].copy_(tensor)
