"""LoRA: low-rank updates of frozen linear layers (Hu et al. 2021, section 4).

    h = W x + (alpha / r) B A x          W (d_out, d_in) frozen, A (r, d_in), B (d_out, r), r << d

A layer keeps its weight under its old name, so the base still loads and compares as before; A and B stand beside it.
An update belongs to a slice of the layer's output: q, k and v of GPT-2's fused c_attn are three slices, RoBERTa's
separate projections are one whole slice each. B starts at zero, so training starts from the base model exactly.

merge() adds the update to W, for inference at no extra cost (section 4.1); unmerge() puts the old numbers back.
An adapter is saved alone, with the task head, in the format of the PEFT library plus what identifies its base; others'
files load too (adapter_files.py).

Left out: updates of embeddings. Shapes: d_in, d_out of a layer, r rank, B batch, T tokens.
"""
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adapter_files import HEAD, LAYERS, MODULES, TARGETS, Adapter, read_adapter, target_slice
from adapter_writing import write_peft
from fused import Dropout, linear
from model import GPT2, Conv1D, RobertaClassifier

GAUSSIAN_STD = 0.02                                                          # the authors' first release; the paper gives none


@dataclass(frozen=True)
class LoRASettings:
    """What add_lora was given, as it says there. Raises ValueError for settings that make no sense."""
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float
    init: str
    bias: str

    def __post_init__(self):
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            found = f"unknown LoRA target '{unknown[0]}'" if unknown else "no LoRA target was given"
            raise ValueError(f"{found}; expected any of {' '.join(TARGETS)}")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"LoRA targets {' '.join(self.targets)} name one twice; give each once")
        if "qkv" in self.targets and {"q", "k", "v"} & set(self.targets):
            raise ValueError("LoRA target qkv is one update for q, k and v together; give it or them")
        if self.rank < 1 or self.rank != int(self.rank):
            raise ValueError(f"LoRA rank is {self.rank}; expected a whole number from 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"LoRA alpha is {self.alpha}; expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA dropout is {self.dropout}; expected 0 <= dropout < 1")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"start of A is '{self.init}'; expected kaiming (the authors' code) or gaussian (the paper)")
        if self.bias not in ("none", "lora-only", "all"):
            raise ValueError(f"LoRA's bias is '{self.bias}'; expected none, lora-only or all")


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
        self.dropout = Dropout(settings.dropout)
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
        """(..., d_in) -> (..., d_out). Two thin products: the d_out x d_in update is never built."""
        if self.merged and self.training:
            raise RuntimeError("the model is merged and in training mode: call unmerge(model) before training")
        if self.merged:
            return linear(x, self.weight_out_in(), self.bias)
        shape, x = x.shape[:-1], x.flatten(0, -2)                            # (..., d_in) -> (N, d_in)
        h = linear(x, self.weight_out_in(), self.bias)
        A, B = self.update(x.dtype)
        return h.addmm_(self.dropout(x) @ A.T, B.T).unflatten(0, shape)      # h + B A x, (N, d_out)

    def update(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (R, d_in) and B (d_out, R) of all slices together, the scale in B: the A stand one below the other, the B are
        blocks, each with the rows of its slice and the columns of its A, zeros elsewhere."""
        A, start = torch.cat(list(self.lora_A.values())).to(dtype), 0
        B = A.new_zeros(len(self.weight_out_in()), len(A))
        for target, rows in self.slices.items():
            rank = len(self.lora_A[target])
            B[rows, start:start + rank] = self.scale * self.lora_B[target]
            start += rank
        return A, B

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
    """Whether a parameter name belongs to the pretrained base: neither the task head's nor what a method added."""
    return not name.startswith(HEAD) and not any(part in name for part in (".lora_", ".adapter.", ".prefix."))


def add_lora(model: GPT2 | RobertaClassifier, rank: int, alpha: float, targets: tuple[str, ...] = ("q", "v"),
             dropout: float = 0.0, init: str = "kaiming", seed: int = 0, bias: str = "none") -> GPT2 | RobertaClassifier:
    """Put an update of rank `rank` on every target of every block; freeze all but the updates and the task head.

    targets: any of q k v o (attention) fc proj (MLP); qkv is one update for the whole of GPT-2's c_attn. alpha: the
    update is scaled by alpha / rank. dropout: on the input of A only. init: start of A, "kaiming" as in the authors'
    code or "gaussian" as in the paper; drawn anew for each layer from `seed`. bias: which biases of the base train too:
    none, those of the layers with an update ("lora-only"), or all. Returns the model, changed in place.
    Raises ValueError for settings that make no sense, RuntimeError if the model has LoRA or another method already.
    """
    settings = LoRASettings(rank, alpha, tuple(targets), dropout, init, bias)
    if hasattr(model, "fingerprint"):
        raise RuntimeError(f"the model has {'LoRA' if hasattr(model, 'lora_settings') else 'another method'} already: load the "
                           "base again to start another adapter")
    generator = torch.Generator().manual_seed(seed)
    modules = MODULES[type(model.config)]
    if not modules.keys() >= set(settings.targets):
        raise ValueError(f"LoRA target qkv is GPT-2's c_attn; on a RoBERTa expected any of {' '.join(modules)}")
    model.fingerprint = base_fingerprint(model)
    for block in model.get_submodule(LAYERS[type(model.config)]):
        by_path: dict[str, dict[str, slice]] = {}
        for target in sorted(settings.targets, key=TARGETS.index):
            by_path.setdefault(modules[target], {})[target] = target_slice(model.config, target)
        for path, slices in by_path.items():
            parent, _, child = path.rpartition(".")
            holder = block.get_submodule(parent)
            layer = LoRALinear(block.get_submodule(path), slices, settings, generator)
            holder.add_module(child, layer.train(model.training))
    model.lora_settings = settings
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(model, name))                        # this line freezes the base
    return model


def trains(model: nn.Module, name: str) -> bool:
    """Whether LoRA trains the parameter of this name: updates, head, and the biases that the setting `bias` names."""
    bias = model.lora_settings.bias
    return not is_base(name) or name.endswith(".bias") and (
        bias == "all" or bias == "lora-only" and isinstance(model.get_submodule(name.removesuffix(".bias")), LoRALinear))


def merge(model: nn.Module) -> nn.Module:
    """Add every update to its weight. Raises RuntimeError if that has been done, or if there is no LoRA."""
    set_merged(model, True)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Put the weights back as they were before merge(), bit for bit. Raises RuntimeError if the model is not merged."""
    set_merged(model, False)
    return model


def set_merged(model: nn.Module, wanted: bool) -> None:
    """All layers or none: raises RuntimeError, before any change, if a layer is in that state already."""
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
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            if not parameter.is_meta:                                        # a meta tensor has no numbers
                numbers = parameter.detach().flatten()
                digest.update(numbers[::max(1, numbers.numel() // 256)].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- saving and loading

def save_adapter(model: GPT2 | RobertaClassifier, directory: str | Path, base_name: str = "", task: str = "") -> None:
    """Write the LoRA matrices and the task head as adapter_model.safetensors + adapter_config.json, in PEFT's format.

    Raises RuntimeError for a model without LoRA, or a merged one: its weights hold the update already.
    """
    write_peft(adapter_of(model, task), directory, model.config, base_name)


def adapter_of(model: GPT2 | RobertaClassifier, task: str = "") -> Adapter:
    """The model's adapter as a file would hold it. Raises RuntimeError like save_adapter."""
    layers = lora_layers(model)
    if not layers:
        raise RuntimeError("the model has no LoRA to save: call add_lora first")
    if any(layer.merged for layer in layers.values()):
        raise RuntimeError("a merged model is not saved, its adapter would be added twice: call unmerge(model) first")
    updates = {name: {target: (layer.lora_A[target].detach().cpu(), layer.lora_B[target].detach().cpu())
                      for target in layer.slices} for name, layer in layers.items()}
    others = {name: parameter.detach().cpu() for name, parameter in trained_others(model).items()}
    settings = model.lora_settings
    return Adapter("the model", updates, others, settings.rank, settings.alpha, settings.targets, settings.dropout,
                   settings.init, settings.bias, task, model.fingerprint)


def trained_others(model: nn.Module) -> dict[str, nn.Parameter]:
    """What LoRA trains beside its matrices: the task head, and biases where the setting says so."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" not in name and trains(model, name)}


def load_adapter(model: GPT2 | RobertaClassifier, directory: str | Path, alpha: float | None = None,
                 task: str | None = None, targets: tuple[str, ...] | None = None) -> GPT2 | RobertaClassifier:
    """Put a saved adapter and its head onto the base it was trained on; the model is changed in place and returned.

    directory: a folder of ours or PEFT's, or a state dict of loralib or the authors. alpha: in place of the stored one;
    the latter two store none. task: refuse an adapter of ours for another task. targets: see read_adapter.
    Raises FileNotFoundError, or ValueError for a file without alpha, another base, task or head, and tensors that do not
    fit; after the last the model has LoRA with B = 0, and has to be loaded again.
    """
    adapter = read_adapter(directory, model.config, targets)
    check_adapter(model, adapter, task)
    alpha = adapter.alpha if alpha is None else alpha
    if alpha is None:
        raise ValueError(f"{directory}: the file holds no alpha, and the update is scaled by alpha / rank (rank "
                         f"{adapter.rank}): give the alpha that it was trained with")
    add_lora(model, adapter.rank, alpha, adapter.targets, adapter.dropout, adapter.init, bias=adapter.bias)
    copy_adapter(model, adapter)
    return model


def check_adapter(model: nn.Module, adapter: Adapter, task: str | None) -> None:
    """Refuse an adapter of another base, another task or another number of labels, as far as the file tells."""
    labels = getattr(model.config, "num_labels", None)
    check_base(adapter, base_fingerprint(model))
    if task is not None and adapter.task not in (None, "", task):
        raise ValueError(f"{adapter.source}: the adapter was trained for task '{adapter.task}', expected '{task}': choose "
                         "an adapter of this task")
    if labels is not None and adapter.num_labels is None:
        raise ValueError(f"{adapter.source}: holds no task head ({HEAD}out_proj.weight), and a fresh one would answer at "
                         "random: save the adapter together with its head")
    if adapter.num_labels != labels:
        raise ValueError(f"{adapter.source}: the adapter's head has {adapter.num_labels} labels, this model's {labels}: "
                         f"load the base with num_labels={adapter.num_labels}")


def check_base(adapter: Adapter, fingerprint: str) -> None:
    """Raises ValueError if the adapter names another base; files of other programs name none."""
    if adapter.base_fingerprint not in (None, fingerprint):
        raise ValueError(f"{adapter.source}: the adapter was trained on base {adapter.base_fingerprint}, this model is "
                         f"{fingerprint}: load the weights that it was trained on")


@torch.no_grad()
def copy_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Copy an adapter into a model that has LoRA with the same targets, rank and trained biases."""
    wanted, found = dict(trained_others(model)), dict(adapter.others)
    for name, layer in lora_layers(model).items():
        for target in layer.slices:
            wanted |= {f"{name}.lora_A.{target}": layer.lora_A[target], f"{name}.lora_B.{target}": layer.lora_B[target]}
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
