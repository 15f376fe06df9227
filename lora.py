"""LoRA: low-rank updates of frozen linear layers (Hu et al. 2021, section 4).

    h = W x + (alpha / r) B A x          W (d_out, d_in) frozen, A (r, d_in), B (d_out, r), r << d

A layer keeps its weight under its old name, so the base still loads and compares as before; A and B stand beside it.
An update belongs to a slice of the layer's output: q, k and v of GPT-2's fused c_attn are three slices, RoBERTa's
separate projections are one whole slice each. B starts at zero, so training starts from the base model exactly.

merge() adds the update to W, for inference at no extra cost (section 4.1); unmerge() puts the old numbers back.
An adapter is saved alone, with the task head, in the format of the PEFT library plus what identifies its base.

Left out: updates of embeddings and biases. Shapes: d_in, d_out of a layer, r rank, B batch, T tokens.
"""
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model import GPT2, Conv1D, RobertaClassifier, linear, read_json, read_safetensors, write_json, write_safetensors

TARGETS = ("q", "k", "v", "o", "fc", "proj")
LAYERS = {GPT2: "transformer.h", RobertaClassifier: "roberta.encoder.layer"}
MODULES = {                                                                  # target -> its linear layer inside a block
    GPT2: {"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj",
           "fc": "mlp.c_fc", "proj": "mlp.c_proj"},
    RobertaClassifier: {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
                        "o": "attention.output.dense", "fc": "intermediate.dense", "proj": "output.dense"},
}
FUSED = {"q": 0, "k": 1, "v": 2}                                             # the thirds of GPT-2's c_attn output
HEAD = "classifier."
GAUSSIAN_STD = 0.02                                                          # the authors' first release; the paper gives none


@dataclass(frozen=True)
class LoRASettings:
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float
    init: str

    def __post_init__(self):
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            found = f"unknown LoRA target '{unknown[0]}'" if unknown else "no LoRA target was given"
            raise ValueError(f"{found}; expected any of {' '.join(TARGETS)}")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"LoRA targets {' '.join(self.targets)} name one twice; give each once")
        if self.rank < 1 or self.rank != int(self.rank):
            raise ValueError(f"LoRA rank is {self.rank}; expected a whole number from 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"LoRA alpha is {self.alpha}; expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA dropout is {self.dropout}; expected 0 <= dropout < 1")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"start of A is '{self.init}'; expected kaiming (the authors' code) or gaussian (the paper)")


# ---------------------------------------------------------------- the layer

class LoRALinear(nn.Module):
    """A frozen linear layer (nn.Linear or Conv1D) with low-rank updates on slices of its output."""

    def __init__(self, base: nn.Linear | Conv1D, slices: dict[str, slice], settings: LoRASettings,
                 generator: torch.Generator):
        super().__init__()
        self.weight, self.bias = base.weight, base.bias                      # the same tensors, under the same names
        self.stored_transposed = getattr(base, "stored_transposed", False)
        d_out, d_in = self.weight_out_in().shape
        self.slices, self.scale, self.merged = slices, settings.alpha / settings.rank, False
        self.dropout = nn.Dropout(settings.dropout)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for target, rows in slices.items():
            n_rows = len(range(*rows.indices(d_out)))
            if settings.rank > min(d_in, n_rows):
                raise ValueError(f"LoRA rank {settings.rank} exceeds the {n_rows} x {d_in} matrix of target '{target}'; "
                                 f"expected at most {min(d_in, n_rows)}")
            A = torch.empty(settings.rank, d_in)
            if settings.init == "kaiming":                                   # U(-1/sqrt(d_in), 1/sqrt(d_in))
                A.uniform_(-d_in ** -0.5, d_in ** -0.5, generator=generator)
            else:
                A.normal_(0.0, GAUSSIAN_STD, generator=generator)
            self.lora_A[target] = nn.Parameter(A.to(self.weight.device))
            self.lora_B[target] = nn.Parameter(torch.zeros(n_rows, settings.rank, device=self.weight.device))

    def weight_out_in(self) -> Tensor:
        return self.weight.T if self.stored_transposed else self.weight      # (d_out, d_in), a view

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out). Two thin products per slice: the d_out x d_in update is never built."""
        if self.merged and self.training:
            raise RuntimeError("the model is merged and in training mode: call unmerge(model) before training")
        h = linear(x, self.weight_out_in(), self.bias)
        if not self.merged:
            x = self.dropout(x)
            for target, rows in self.slices.items():
                h[..., rows].add_(self.scale * (x @ self.lora_A[target].T) @ self.lora_B[target].T)
        return h

    @torch.no_grad()
    def merge(self) -> None:
        weight = self.weight_out_in()
        self.before_merge = {target: weight[rows].clone() for target, rows in self.slices.items()}
        for target, rows in self.slices.items():
            weight[rows] += self.scale * self.lora_B[target] @ self.lora_A[target]
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        weight = self.weight_out_in()
        for target, rows in self.slices.items():
            weight[rows] = self.before_merge[target]
        del self.before_merge
        self.merged = False


# ---------------------------------------------------------------- the model

def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def is_base(name: str) -> bool:
    """Whether a parameter name belongs to the pretrained base: neither LoRA's nor the task head's."""
    return ".lora_" not in name and not name.startswith(HEAD)


def add_lora(model: GPT2 | RobertaClassifier, rank: int, alpha: float, targets: tuple[str, ...] = ("q", "v"),
             dropout: float = 0.0, init: str = "kaiming", seed: int = 0) -> GPT2 | RobertaClassifier:
    """Put an update of rank `rank` on every target of every block; freeze all but the updates and the task head.

    targets: any of q k v o (attention) fc proj (MLP). alpha: the update is scaled by alpha / rank. dropout: on the
    input of A only. init: start of A, "kaiming" as in the authors' code or "gaussian" as in the paper; drawn anew for
    each layer from `seed`. Returns the model, changed in place.
    Raises ValueError for settings that make no sense, RuntimeError if the model has LoRA already.
    """
    settings = LoRASettings(rank, alpha, tuple(targets), dropout, init)
    if hasattr(model, "lora_settings"):
        raise RuntimeError("the model has LoRA already: load the base again to start another adapter")
    generator = torch.Generator().manual_seed(seed)
    modules, model.fingerprint = MODULES[type(model)], base_fingerprint(model)
    for block in model.get_submodule(LAYERS[type(model)]):
        by_path: dict[str, dict[str, slice]] = {}
        for target in sorted(settings.targets, key=TARGETS.index):
            by_path.setdefault(modules[target], {})[target] = slice_of(model, target)
        for path, slices in by_path.items():
            parent, _, child = path.rpartition(".")
            holder = block.get_submodule(parent)
            layer = LoRALinear(block.get_submodule(path), slices, settings, generator)
            holder.add_module(child, layer.train(model.training))
    model.lora_settings = settings
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_base(name))                          # this line freezes the base
    return model


def slice_of(model: nn.Module, target: str) -> slice:
    """The rows of the layer's output that belong to a target: a third of c_attn for GPT-2's q, k, v; else all."""
    if isinstance(model, GPT2) and target in FUSED:
        width = model.config.n_embd
        return slice(FUSED[target] * width, (FUSED[target] + 1) * width)
    return slice(None)


def merge(model: nn.Module) -> nn.Module:
    """Add every update to its weight. Raises RuntimeError if that has been done, or if there is no LoRA."""
    set_merged(model, True)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Put the weights back as they were before merge(), bit for bit. Raises RuntimeError if the model is not merged."""
    set_merged(model, False)
    return model


def set_merged(model: nn.Module, wanted: bool) -> None:
    layers = lora_layers(model).values()
    if not layers:
        raise RuntimeError("the model has no LoRA to merge or unmerge: call add_lora or load_adapter first")
    if any(layer.merged == wanted for layer in layers):
        raise RuntimeError("the model is merged already: call unmerge(model) first" if wanted else
                           "the model is not merged: call merge(model) first")
    for layer in layers:
        layer.merge() if wanted else layer.unmerge()


def base_fingerprint(model: nn.Module) -> str:
    """A hash that tells one base from another: names and shapes of its tensors and a sample of their numbers."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if is_base(name):
            numbers = parameter.detach().flatten()
            sample = numbers[::max(1, numbers.numel() // 256)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- adapter files

PEFT_PREFIX = "base_model.model."
OWN_SECTION = "lora_from_scratch"                                            # our part of adapter_config.json; PEFT skips it


def save_adapter(model: GPT2 | RobertaClassifier, directory: str | Path, base_name: str = "", task: str = "") -> None:
    """Write the LoRA matrices and the task head as adapter_model.safetensors + adapter_config.json, in PEFT's format.

    PEFT knows no slices: the n updates on GPT-2's c_attn become one of rank n r and alpha n alpha, whose A holds the
    updates' A below one another and whose B (3 d, n r) holds each B in its rows and columns and zeros elsewhere. The
    product is the same, and load_adapter takes it apart again.
    Raises RuntimeError for a model without LoRA, or a merged one: its weights hold the update already.
    """
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("the model has no LoRA to save: call add_lora first")
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError("a merged model is not saved, its adapter would be added twice: call unmerge(model) first")
    settings, tensors = model.lora_settings, {}
    for name, layer in layers.items():
        d_out, n_updates = layer.weight_out_in().shape[0], len(layer.slices)
        B = torch.zeros(d_out, n_updates * settings.rank)
        for index, (target, rows) in enumerate(layer.slices.items()):
            B[rows, index * settings.rank:(index + 1) * settings.rank] = layer.lora_B[target].detach().cpu()
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = torch.cat([A.detach().cpu() for A in layer.lora_A.values()])
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = B
    tensors |= {PEFT_PREFIX + name: parameter for name, parameter in model.named_parameters() if name.startswith(HEAD)}
    write_adapter(directory, tensors, peft_config(model, base_name) | {OWN_SECTION: own_section(model, task) | {
        "method": "lora", "rank": settings.rank, "alpha": settings.alpha, "targets": list(settings.targets),
        "dropout": settings.dropout, "init": settings.init}})


def write_adapter(directory: str | Path, tensors: dict[str, Tensor], config: dict) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(config, directory / "adapter_config.json")


def own_section(model: nn.Module, task: str) -> dict:
    """What identifies the base, as it was before training, and the task of an adapter of any method."""
    return {"base_fingerprint": model.fingerprint, "task": task,
            "num_labels": getattr(model.config, "num_labels", None)}


def peft_config(model: nn.Module, base_name: str) -> dict:
    """The keys that PEFT's LoraConfig reads."""
    settings, modules = model.lora_settings, MODULES[type(model)]
    updates = {path: sum(modules[target] == path for target in settings.targets)
               for path in dict.fromkeys(modules[target] for target in settings.targets)}
    first, *others = updates.items()
    differing = {path: count for path, count in others if count != first[1]}
    if "output.dense" in updates:                                            # else PEFT matches attention.output.dense too
        names = [f"{LAYERS[type(model)]}.{index}.{path}" for path in updates
                 for index in range(model.config.num_hidden_layers)]
    else:
        names = list(updates)
    classifier = isinstance(model, RobertaClassifier)
    return {"peft_type": "LORA", "task_type": "SEQ_CLS" if classifier else "CAUSAL_LM",
            "base_model_name_or_path": base_name, "r": first[1] * settings.rank, "lora_alpha": first[1] * settings.alpha,
            "rank_pattern": {path: count * settings.rank for path, count in differing.items()},
            "alpha_pattern": {path: count * settings.alpha for path, count in differing.items()},
            "target_modules": names, "modules_to_save": ["classifier"] if classifier else None,
            "lora_dropout": settings.dropout, "fan_in_fan_out": not classifier, "bias": "none", "inference_mode": True}


def read_adapter(directory: str | Path) -> tuple[dict[str, Tensor], dict]:
    directory = Path(directory)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: no {name}; expected the folder that save_adapter or train.py wrote")
    config = read_json(directory / "adapter_config.json")
    if not isinstance(config.get(OWN_SECTION), dict):
        raise ValueError(f"{directory / 'adapter_config.json'}: no section '{OWN_SECTION}'; expected an adapter that this "
                         "project saved")
    return read_safetensors(directory / "adapter_model.safetensors"), config[OWN_SECTION]


def check_adapter(model: nn.Module, own: dict, directory: str | Path, task: str | None) -> None:
    """Refuse an adapter of another base, another task or another number of labels."""
    fingerprint, labels = base_fingerprint(model), getattr(model.config, "num_labels", None)
    if own.get("base_fingerprint") != fingerprint:
        raise ValueError(f"{directory}: the adapter was trained on base {own.get('base_fingerprint')}, this model is "
                         f"{fingerprint}: load the weights that it was trained on")
    if task is not None and own.get("task") != task:
        raise ValueError(f"{directory}: the adapter was trained for task '{own.get('task')}', expected '{task}': choose "
                         "an adapter of this task")
    if own.get("num_labels") != labels:
        raise ValueError(f"{directory}: the adapter's head has {own.get('num_labels')} labels, this model's {labels}: "
                         f"load the base with num_labels={own.get('num_labels')}")


def load_adapter(model: GPT2 | RobertaClassifier, directory: str | Path, alpha: float | None = None,
                 task: str | None = None) -> GPT2 | RobertaClassifier:
    """Put a saved adapter and its head onto the base it was trained on; the model is changed in place and returned.

    alpha: in place of the stored one. task: refuse an adapter of another task.
    Raises FileNotFoundError, or ValueError for another base, task or head and for tensors that do not fit.
    """
    tensors, own = read_adapter(directory)
    check_adapter(model, own, directory, task)
    try:
        settings = {key: own[key] for key in ("rank", "targets", "dropout", "init")}
        add_lora(model, alpha=own["alpha"] if alpha is None else alpha, **settings)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory}: adapter_config.json is no LoRA adapter of this project ({error!r})") from None
    copy_adapter(model, tensors, directory)
    return model


def copy_adapter(model: nn.Module, tensors: dict[str, Tensor], directory: str | Path) -> None:
    """Copy the tensors of an adapter file into a model that has LoRA with the same settings."""
    wanted = {name: parameter for name, parameter in model.named_parameters() if name.startswith(HEAD)}
    for name, layer in lora_layers(model).items():
        wanted |= {f"{name}.lora_A": layer.lora_A, f"{name}.lora_B": layer.lora_B}
    found = {name.removeprefix(PEFT_PREFIX).removesuffix(".weight") if ".lora_" in name else
             name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    if wanted.keys() != found.keys():
        raise ValueError(f"{directory}: the adapter's tensors do not fit its configuration; first difference: "
                         f"'{min(wanted.keys() ^ found.keys())}'; save it again")
    with torch.no_grad():
        for name, tensor in found.items():
            if isinstance(wanted[name], nn.ParameterDict):
                copy_blocks(model.get_submodule(name.rpartition(".")[0]), name, tensor, directory)
            else:
                copy_exactly(wanted[name], tensor, name, directory)


def copy_blocks(layer: LoRALinear, name: str, tensor: Tensor, directory: str | Path) -> None:
    """Take PEFT's one update of rank n r on a layer apart into the layer's n slices."""
    n_updates, rank = len(layer.slices), layer.lora_A[next(iter(layer.slices))].shape[0]
    stored_rank = tensor.shape[0 if name.endswith("lora_A") else -1] if tensor.dim() == 2 else None
    if stored_rank != n_updates * rank:
        raise ValueError(f"{directory}: '{name}' has shape {list(tensor.shape)}, expected rank {n_updates * rank}")
    for index, (target, rows) in enumerate(layer.slices.items()):
        block = slice(index * rank, (index + 1) * rank)
        if name.endswith("lora_A"):
            copy_exactly(layer.lora_A[target], tensor[block], name, directory)
        else:
            copy_exactly(layer.lora_B[target], tensor[rows, block], name, directory)


def copy_exactly(parameter: Tensor, tensor: Tensor, name: str, directory: str | Path) -> None:
    if parameter.shape != tensor.shape:
        raise ValueError(f"{directory}: '{name}' has shape {list(tensor.shape)}, this base needs {list(parameter.shape)}")
    parameter.copy_(tensor)
