"""What a method trained, as a folder and back: adapter_model.safetensors and adapter_config.json, for every method.

LoRA's own files are PEFT's (adapters/); those of the others hold the trained tensors under the model's names. Left out: what
training needs to resume (training/run_state.py).
"""
from pathlib import Path

from torch import nn

from adapters.adapter import Adapter
from adapters.base import check_base, own_base
from adapters.folder import check_own, read_folder, write_folder
from adapters.saving import check_adapter, complete_head, copy_adapter, copy_tensors, put_adapter, read_adapter, save_adapter
from files.weights import check_finite
from lora import lora_settings
from methods.apply import METHODS, WITH_RANK, apply_method, is_of_head, rank_of, trained_parameters


def save_trained(model: nn.Module, directory: str | Path, base_name: str, task: str, form: dict | None = None) -> None:
    """Save what the model's method trained, as adapter_model.safetensors + adapter_config.json; LoRA in PEFT's format.
    form: as for adapters.save_adapter."""
    if model.method == "lora":
        save_adapter(model, directory, base_name, task, form)
        return
    own = {"method": model.method, "rank": rank_of(model), "task": task, "form": form, **own_base(model),
           "num_labels": getattr(model.config, "num_labels", None)}
    write_folder(directory, trained_parameters(model), {"base_model_name_or_path": str(base_name), "method": model.method},
                 own)


def load_trained(model: nn.Module, path: str | Path, alpha: float | None = None, task: str | None = None) -> str:
    """Put a trained adapter of any method of this project, or a LoRA adapter of another program, onto its base.
    alpha, task: as for adapters.load_adapter. Returns the method; raises like load_adapter."""
    adapter, method = read_trained(path, model.config)
    if None not in (alpha, adapter.alpha) and alpha != adapter.alpha:
        raise ValueError(f"{path}: holds alpha {adapter.alpha:g}, {alpha:g} was given, which is for a file that holds none: "
                         "leave it out")
    if method == "lora":
        put_adapter(model, adapter, alpha, task)
        return method
    check_adapter(model, adapter, task)
    apply_method(model, method, adapter.rank)
    copy_tensors(trained_parameters(model), adapter.others, path)
    return method


def read_trained(path: str | Path, config) -> tuple[Adapter, str]:
    """The content of an adapter file of any method, for a base of this configuration, and the method; only LoRA's has
    updates. Raises like load_adapter."""
    own = {}
    if Path(path).is_dir():
        tensors, _, own = read_folder(path)
    method = own.get("method", "lora")
    if method == "lora":
        return read_adapter(path, config), method
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if method not in METHODS or (method in WITH_RANK and (type(own.get("rank")) is not int
                                                          or not 1 <= own["rank"] <= largest)):
        raise ValueError(f"{path}: was saved by method {str(method)[:60]!r} of rank {str(own.get('rank'))[:60]}; expected one "
                         f"of {' '.join(METHODS)}, and a rank that its tensors have")
    check_own(own, path)
    check_finite(tensors, path, "save the adapter again, from a run that did not diverge")
    return Adapter(str(path), {}, tensors, own.get("rank") or 1, None, (), task=own.get("task"), form=own.get("form"),
                   base_fingerprint=own.get("base_fingerprint"), base_rounded=own.get("base_rounded", {})), method


def start_from(model: nn.Module, path: str | Path) -> str:
    """Start training from an adapter of the same method (the paper starts MRPC, RTE and STS-B from MNLI's, appendix D.1).

    model: the base with its method applied; for a file that holds no alpha this run's stays. A head for another number of
    labels is left out. Returns a line that says what was taken.
    Raises ValueError for an adapter of another base, method, rank, alpha, targets or bias.
    """
    adapter, method = read_trained(path, model.config)
    if method != model.method:
        raise ValueError(f"{path}: is an adapter of method '{method}', this run trains '{model.method}'; start it from one of "
                         "its own")
    check_base(adapter, model)
    ours = {"rank": rank_of(model)} if method != "lora" else {
        name: getattr(lora_settings(model), name) for name in ("rank", "alpha", "targets", "bias")}
    for name, value in ours.items():
        its = shown(getattr(adapter, name))
        if value is not None and its not in (shown(value), "None"):
            raise ValueError(f"{path}: the adapter has {name} {its}, this run {shown(value)}: give --{name} {its}")
    labels, line = getattr(model.config, "num_labels", None), f"started from {path}"
    if method == "lora" and adapter.alpha is None:
        line += f", which holds no alpha: this run's {lora_settings(model).alpha:g} is used"
    if labels is not None and adapter.num_labels != labels:
        line += f"; its head has {adapter.num_labels or 'no'} labels, this task {labels}: dropped, a fresh head starts"
        adapter.others = {name: tensor for name, tensor in adapter.others.items() if not is_of_head(model, name)} | {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if is_of_head(model, name)}
    complete_head(adapter, model)
    copy_trained(model, adapter)
    return line


def copy_trained(model: nn.Module, adapter: Adapter) -> None:
    """Copy an adapter into a model that has the same method. Raises ValueError where names or shapes differ."""
    if model.method == "lora":
        copy_adapter(model, adapter)
    else:
        copy_tensors(trained_parameters(model), adapter.others, adapter.source)


def shown(value: float | str | tuple[str, ...] | None) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(sorted(value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def reload_trained(model: nn.Module, directory: str | Path) -> None:
    """Put what save_trained wrote back into the model that it was saved from, in place of its present numbers."""
    copy_trained(model, read_trained(directory, model.config)[0])
