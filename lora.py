"""LoRA: low-rank updates of frozen linear layers (Hu et al. 2021, section 4).

    h = W x + (alpha / r) B A x          W (d_out, d_in) frozen, A (r, d_in), B (d_out, r), r << d

A layer keeps its weight under its old name, so the base still loads and compares as before; A and B stand beside it. An update
belongs to rows of the layer's output: q, k and v of GPT-2's fused c_attn are a third each; the model's configuration says where
they are (model.py, `targets`). B starts at zero, so training starts from the base exactly. merge() adds the update to W, for
inference at no extra cost (section 4.1). Left out: updates of embeddings; files (adapters/).
Shapes: d_in, d_out of a layer, r rank, N tokens of a batch, ... any dimensions in front.
"""
import hashlib
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from model import Dropout
from speed.update import add_to

TARGETS = ("q", "k", "v", "o", "fc", "proj", "qkv")                          # the paper's models'; Table 5 names q k v o


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
        given = self.targets
        for is_wrong, message in (
                (not given, f"no LoRA target was given; expected any of {' '.join(TARGETS)}"),
                (len(set(given)) < len(given), f"LoRA targets {' '.join(given)} name one twice; give each once"),
                ("qkv" in given and {"q", "k", "v"} & set(given), "LoRA target qkv is q, k and v together; give it or them"),
                (self.rank < 1 or self.rank != int(self.rank), f"LoRA rank is {self.rank}; expected a whole number from 1"),
                (not 0 < self.alpha < math.inf, f"LoRA alpha is {self.alpha}; expected a number above 0"),
                (not 0 <= self.dropout < 1, f"LoRA dropout is {self.dropout}; expected 0 <= dropout < 1"),
                (self.init not in ("kaiming", "gaussian"),
                 f"start of A is '{self.init}'; expected kaiming (the authors' code) or gaussian (the paper)"),
                (self.bias not in ("none", "lora-only", "all"),
                 f"LoRA's bias is '{self.bias}'; expected none, lora-only or all")):
            if is_wrong:
                raise ValueError(message)


class LoRALinear(nn.Module):
    """A linear layer (nn.Linear or Conv1D) with low-rank updates on rows of its output, {target: rows}."""

    def __init__(self, linear: nn.Module, targets: dict[str, slice], settings: LoRASettings, generator: torch.Generator):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias                  # the same tensors, under the same names
        self.linear_class, self.stored_transposed = type(linear), getattr(linear, "stored_transposed", False)
        self.targets, self.settings, self.scale, self.merged = targets, settings, settings.alpha / settings.rank, False
        self.dropout = Dropout(settings.dropout)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for target in targets:
            n_rows, d_in = self.rows_of_weight(target).shape
            if settings.rank > min(d_in, n_rows):
                raise ValueError(f"LoRA rank {settings.rank} exceeds the {n_rows} x {d_in} matrix of target '{target}'; "
                                 f"expected at most {min(d_in, n_rows)}")
            A = torch.empty(settings.rank, d_in)
            if settings.init == "kaiming":                                   # U(-1/sqrt(d_in), 1/sqrt(d_in))
                A.uniform_(-d_in ** -0.5, d_in ** -0.5, generator=generator)
            else:
                A.normal_(0.0, 0.02, generator=generator)                    # the authors' first release; the paper is silent
            self.lora_A[target] = nn.Parameter(A.to(self.weight.device))
            self.lora_B[target] = nn.Parameter(torch.zeros(n_rows, settings.rank, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out). Two thin products for each target: the d_out x d_in update B A is never built."""
        if self.merged and self.training:
            raise RuntimeError("the model is merged and in training mode: call unmerge(model) before training")
        shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])                  # (..., d_in) -> (N, d_in)
        h = self.linear_class.forward(self, x)                               # W x + b, as the layer's own class computes it
        if not self.merged:
            x = self.dropout(x)
            for target, rows in self.targets.items():
                A, B = self.lora_A[target].to(x.dtype), self.lora_B[target].to(x.dtype)
                h = add_to(h, rows, (x @ A.T) @ B.T, self.scale)             # h[:, rows] += (alpha / r) B A x
        return h.view(*shape, -1)                                            # (N, d_out) -> (..., d_out)

    def rows_of_weight(self, target: str) -> Tensor:
        """The target's part of W, (rows, d_in): a view."""
        return (self.weight.T if self.stored_transposed else self.weight)[self.targets[target]]

    @torch.no_grad()
    def merge(self) -> None:
        self.before_merge = {target: self.rows_of_weight(target).clone() for target in self.targets}
        for target in self.targets:
            W = self.rows_of_weight(target)
            W += (self.scale * self.lora_B[target] @ self.lora_A[target]).to(W.dtype)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        for target, before in self.before_merge.items():
            self.rows_of_weight(target).copy_(before)
        self.before_merge, self.merged = {}, False


# ---------------------------------------------------------------- the model

def add_lora(model: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] = ("q", "v"), dropout: float = 0.0,
             init: str = "kaiming", seed: int = 0, bias: str = "none") -> nn.Module:
    """Put an update of rank `rank` on every target of every block; freeze all but the updates and the task head.

    targets: of the model's own, q k v o (attention) fc proj (MLP); qkv is one update for the whole of GPT-2's c_attn. alpha:
    the update is scaled by alpha / rank. dropout: on the input of A only. init: start of A, "kaiming" as in the authors'
    code or "gaussian" as in the paper; drawn anew for each layer from `seed`. bias: which biases of the base train too:
    none, those of the layers with an update ("lora-only"), or all. Returns the model, changed in place.
    Raises ValueError for settings that make no sense, RuntimeError if the model has LoRA or another method already.
    """
    settings = LoRASettings(rank, alpha, tuple(targets), dropout, init, bias)
    if model.method is not None:
        raise RuntimeError(f"the model has {'LoRA' if model.method == 'lora' else 'another method'} already: load the base "
                           "again to start another adapter")
    known = model.config.targets
    if unknown := [target for target in settings.targets if target not in known]:
        raise ValueError(f"unknown LoRA target '{unknown[0]}'; expected any of {' '.join(known)}")
    generator = torch.Generator().manual_seed(seed)
    model.fingerprints, layers = base_fingerprints(model), []
    for block in model.get_submodule(model.config.blocks):
        by_path: dict[str, dict[str, slice]] = {}
        for target in sorted(settings.targets, key=list(known).index):
            by_path.setdefault(known[target].path, {})[target] = known[target].rows
        for path, rows in by_path.items():
            layers.append((block, path, LoRALinear(block.get_submodule(path), rows, settings, generator)))
    for block, path, layer in layers:                                        # all fit: only now the model changes
        parent, _, child = path.rpartition(".")
        block.get_submodule(parent).add_module(child, layer.train(model.training))
    model.method = "lora"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(model, name))                        # this line freezes the base
    return model


def trains(model: nn.Module, name: str) -> bool:
    """Whether LoRA trains the parameter of this name: updates, head, and the biases that the setting `bias` names."""
    bias = lora_settings(model).bias
    return not is_base(model, name) or name.endswith(".bias") and (
        bias == "all" or bias == "lora-only" and isinstance(model.get_submodule(name.removesuffix(".bias")), LoRALinear))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_settings(model: nn.Module) -> LoRASettings:
    """What add_lora was given. The model has to have LoRA."""
    return next(iter(lora_layers(model).values())).settings


def merge(model: nn.Module) -> nn.Module:
    """Add every update to its weight. Raises RuntimeError if that has been done, or if there is no LoRA."""
    for layer in layers_that_are(model, merged=False):
        layer.merge()
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Put the weights back as they were before merge(), bit for bit. Raises RuntimeError if the model is not merged."""
    for layer in layers_that_are(model, merged=True):
        layer.unmerge()
    return model


def layers_that_are(model: nn.Module, merged: bool) -> list[LoRALinear]:
    """All layers with LoRA. Raises RuntimeError, before any change, if there is none, or one in the other state."""
    layers = list(lora_layers(model).values())
    if not layers:
        raise RuntimeError("the model has no LoRA to merge or unmerge: call add_lora or load_adapter first")
    if any(layer.merged != merged for layer in layers):
        raise RuntimeError("the model is not merged: call merge(model) first" if merged else
                           "the model is merged already: call unmerge(model) first")
    return layers


# ---------------------------------------------------------------- what belongs to the base

@cache
def base_names(family: type, config) -> frozenset[str]:
    """The names of the pretrained tensors of a model: those of a bare one, without its task head's."""
    with torch.device("meta"):
        return frozenset(name for name, _ in family(config).named_parameters() if not name.startswith(family.head or "-"))


def is_base(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to the pretrained base: neither the task head's nor what a method added."""
    return name in base_names(type(model), model.config)


def base_fingerprints(model: nn.Module) -> dict[str, str]:
    """A hash that tells one base from another, of names and shapes of its tensors and a sample of their numbers, as they were
    before a method or a coarser format changed them; and the hashes of the same base rounded to coarser formats."""
    if model.fingerprints is not None:
        return model.fingerprints
    digests = {dtype: hashlib.sha256() for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    for name, parameter in sorted(pair for pair in model.named_parameters() if is_base(model, pair[0])):
        numbers = [] if parameter.is_meta else [parameter.detach().flatten()[::max(1, parameter.numel() // 256)].float().cpu()]
        for dtype, digest in digests.items():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(b"".join(part.to(dtype).float().contiguous().numpy().tobytes() for part in numbers))
    return {str(dtype).removeprefix("torch."): digest.hexdigest()[:16] for dtype, digest in digests.items()}
