"""The methods that LoRA is compared with (Hu et al. 2021, section 5.1).

    lora         the low-rank updates (lora.py)
    full         every weight
    last-layers  the last two blocks ("FT-Top2")
    bitfit       every bias, and nothing else (Ben Zaken et al. 2021)
    adapter-h    bottleneck layers after attention and after the MLP, before the residual (Houlsby et al. 2019)
    adapter-l    one per block, after the MLP and its residual, with a LayerNorm of its own (Lin et al. 2020)
    prefix       trained activations of `rank` extra tokens, which every layer's attention sees ("PreLayer")
    head         the task head on the frozen base

`trains` below says what each of them trains. RoBERTa's task head is new and trains with every method; GPT-2's output
head is its token embedding and has none. What is added leaves the base's tensors and their names as they are.

    python baselines.py          prints the paper's parameter counts beside the formulas' and the built models'

Left out: AdapterP and AdapterD (variants of the two adapters), prefixes of the embedding layer alone, and the network
that Li and Liang 2021 train in place of the prefix. Shapes: B batch, T tokens, C hidden size, P prefix tokens, r rank.
"""
import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lora
from adapter_files import (
    HEAD,
    LAYERS,
    MODULES,
    TARGETS,
    Adapter,
    check_own,
    layer_shape,
    n_layers,
    read_adapter,
    read_folder,
    target_slice,
    write_folder,
)
from files import cli
from files.weights import check_finite
from model import GPT2, GPT2Config, RobertaClassifier, RobertaConfig, split_heads

METHODS = ("lora", "full", "last-layers", "bitfit", "adapter-h", "adapter-l", "prefix", "head")
WITH_RANK = ("lora", "adapter-h", "adapter-l", "prefix")                     # rank: also a bottleneck's or prefix's size
LAST_LAYERS = 2


def apply_method(model: GPT2 | RobertaClassifier, method: str, rank: int = 8, alpha: float = 8.0,
                 targets: tuple[str, ...] = ("q", "v"), dropout: float = 0.0, lora_init: str = "kaiming",
                 bias: str = "none", seed: int = 0) -> None:
    """Add what `method` adds, mark what it trains, and freeze the rest.

    rank: of LoRA's update, of an adapter's bottleneck, or the number of prefix tokens. The options after it are LoRA's.
    Raises ValueError for an unknown method or rank, or a method that trains nothing on this model; RuntimeError for a
    model that has a method already.
    """
    if method == "lora":
        lora.add_lora(model, rank, alpha, targets, dropout, lora_init, seed, bias)
        return
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; expected one of {' '.join(METHODS)}")
    if method in WITH_RANK and (rank < 1 or rank != int(rank)):
        raise ValueError(f"rank is {rank}; expected a whole number from 1")
    if hasattr(model, "fingerprint"):
        raise RuntimeError("the model has a method already: load the base again to start another")
    model.fingerprint, model.rank = lora.base_fingerprint(model), rank if method in WITH_RANK else None
    if method in ADDERS:
        ADDERS[method](model, rank, torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(model, method, name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"method '{method}' trains nothing on {type(model).__name__}, which has no task head; choose "
                         f"one of {' '.join(name for name in METHODS if name != method)}")


def trains(model: nn.Module, method: str, name: str) -> bool:
    """Whether `method` trains the parameter of this name."""
    if method == "lora":
        return lora.trains(model, name)
    if method == "full" or not lora.is_base(name):                           # the head, and what the method added
        return True
    if method == "bitfit":
        return name.endswith(".bias")
    if method == "last-layers":
        block = re.match(re.escape(LAYERS[type(model.config)]) + r"\.(\d+)\.", name)
        return block is not None and int(block[1]) >= n_layers(model.config) - LAST_LAYERS
    return False


# ---------------------------------------------------------------- adapters

class BottleneckAdapter(nn.Module):
    """x + W_up f(W_down x), both with biases. W_up starts at zero, so training starts from the base exactly."""

    def __init__(self, width: int, rank: int, norm: nn.Module, activation: Callable[[Tensor], Tensor],
                 generator: torch.Generator):
        super().__init__()
        self.norm, self.activation = norm, activation
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        with torch.no_grad():
            self.down.weight.uniform_(-width ** -0.5, width ** -0.5, generator=generator)
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        low = self.activation(self.down(self.norm(x.to(self.down.weight.dtype))))        # (B, T, C) -> (B, T, r)
        return x + self.up(low).to(x.dtype)                                  # (B, T, r) -> (B, T, C)


def through_adapter(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: what a module returns goes through the adapter that it carries."""
    return module.adapter(output)


def put_after(module: nn.Module, adapter: BottleneckAdapter, model: nn.Module) -> None:
    module.adapter = adapter.to(next(model.parameters()).device)
    module.register_forward_hook(through_adapter)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.get_submodule(LAYERS[type(model.config)])


def width_of(config: GPT2Config | RobertaConfig) -> int:
    return config.n_embd if isinstance(config, GPT2Config) else config.hidden_size


def add_adapter_h(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Two adapters per block, on what attention and MLP return; GELU, as in Houlsby et al.'s code."""
    ends = ("attn", "mlp") if isinstance(model, GPT2) else ("attention.output.dropout", "output.dropout")
    for block in blocks_of(model):
        for end in ends:                                                     # a residual and RoBERTa's LayerNorm follow
            put_after(block.get_submodule(end), BottleneckAdapter(width_of(model.config), rank, nn.Identity(), F.gelu,
                                                                  generator), model)


def add_adapter_l(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """One adapter per block, on what the block returns, after a LayerNorm that trains too; ReLU."""
    for block in blocks_of(model):
        norm = nn.LayerNorm(width_of(model.config), eps=1e-5)
        put_after(block, BottleneckAdapter(width_of(model.config), rank, norm, F.relu, generator), model)


# ---------------------------------------------------------------- prefix

class Prefix(nn.Module):
    """Trained inputs of P extra tokens to one attention layer; frozen, the layer makes its keys and values of them.

    As the paper describes PreLayer (section 5.1), activations are trained, L d P numbers, not keys and values, which
    would be twice as many. They stand where the attention reads, in GPT-2 after ln_1. The input's own positions do not
    move, so a prefix takes nothing from the model's length.

    No prefix leaves the base's output as it is: the softmax gives P more tokens a share of the attention, whatever they
    are. The start here is a base that reads: the activations that P random tokens of the vocabulary have in it. So the
    method starts, exactly, at what the base says with these tokens in front (which see one another, not the input).
    """

    def __init__(self, activations: Tensor):
        super().__init__()
        self.activations = nn.Parameter(activations.clone())                 # (P, C)

    def forward(self, attention: nn.Module, key: Tensor, value: Tensor, mask: Tensor | None
                ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, H, S, D) with the prefix in front, (B, H, P + S, D), and the mask for them."""
        prefix = self.activations[None].to(key.dtype)                        # (1, P, C)
        if hasattr(attention, "c_attn"):                                     # GPT-2
            _, own_key, own_value = attention.c_attn(prefix).chunk(3, dim=-1)
            if mask is None:                                                 # causal among the S = T tokens
                mask = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        else:
            own_key, own_value = attention.key(prefix), attention.value(prefix)
        own_key, own_value = (split_heads(own, attention.n_head).expand(key.shape[0], -1, -1, -1)
                              for own in (own_key, own_value))
        if mask is not None:
            mask = F.pad(mask, (prefix.shape[1], 0), value=True)             # (.., S) -> (.., P + S): all see the prefix
        return torch.cat([own_key, key], dim=2), torch.cat([own_value, value], dim=2), mask


def attentions_of(model: nn.Module) -> list[nn.Module]:
    path = "attn" if isinstance(model, GPT2) else "attention.self"
    return [block.get_submodule(path) for block in blocks_of(model)]


@torch.no_grad()
def add_prefix(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """`rank` prefix tokens in every layer, started at the activations of as many random tokens."""
    limit = model.config.n_positions if isinstance(model, GPT2) else model.roberta.embeddings.max_length
    if rank > limit:
        raise ValueError(f"a prefix of {rank} tokens, but the model has {limit} positions; expected at most as many")
    tokens = torch.randint(5, model.config.vocab_size, (1, rank), generator=generator)   # RoBERTa's first are special
    seen, was_training = [], model.training
    hooks = [attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
             for attention in attentions_of(model)]
    model.eval().hidden_states(tokens.to(next(model.parameters()).device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    for attention, activations in zip(attentions_of(model), seen, strict=True):
        attention.prefix = Prefix(activations)


ADDERS = {"adapter-h": add_adapter_h, "adapter-l": add_adapter_l, "prefix": add_prefix}


# ---------------------------------------------------------------- saving and loading

def save_trained(model: nn.Module, method: str, directory: str | Path, base_name: str, task: str) -> None:
    """Save what `method` trained, as adapter_model.safetensors + adapter_config.json; LoRA in PEFT's format."""
    if method == "lora":
        lora.save_adapter(model, directory, base_name, task)
        return
    own = {"method": method, "rank": model.rank, "task": task, "base_fingerprint": model.fingerprint,
           "num_labels": getattr(model.config, "num_labels", None)}
    write_folder(directory, trained_parameters(model), {"base_model_name_or_path": str(base_name), "method": method}, own)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: nn.Module, path: str | Path, alpha: float | None = None, task: str | None = None) -> str:
    """Put a trained adapter of any method of this project, or a LoRA adapter of another program, onto its base.

    alpha, task: as for lora.load_adapter. Returns the method; raises like lora.load_adapter.
    """
    adapter, method = read_trained(path, model.config)
    if method == "lora":
        lora.load_adapter(model, path, alpha, task)
        return method
    lora.check_adapter(model, adapter, task)
    apply_method(model, method, adapter.rank)
    lora.copy_tensors(trained_parameters(model), adapter.others, path)
    return method


def read_trained(path: str | Path, config: GPT2Config | RobertaConfig) -> tuple[Adapter, str]:
    """The content of an adapter file of any method, and the method; only LoRA's has updates."""
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
    return Adapter(str(path), {}, tensors, own.get("rank") or 1, None, (), task=own.get("task"),
                   base_fingerprint=own.get("base_fingerprint")), method


def start_from(model: nn.Module, method: str, path: str | Path) -> str:
    """Start training from an adapter of the same method (the paper starts MRPC, RTE and STS-B from MNLI's, appendix D.1).

    model: the base with `method` applied; for a file that holds no alpha this run's stays. A head for another number of
    labels is left out. Returns a line that says what was taken.
    Raises ValueError for an adapter of another base, method, rank, alpha, targets or bias.
    """
    adapter, its_method = read_trained(path, model.config)
    if its_method != method:
        raise ValueError(f"{path}: is an adapter of method '{its_method}', this run trains '{method}'; start it from one of "
                         "its own")
    lora.check_base(adapter, model.fingerprint)
    ours = {"rank": model.rank} if method != "lora" else {
        name: getattr(model.lora_settings, name) for name in ("rank", "alpha", "targets", "bias")}
    for name, value in ours.items():
        its = shown(getattr(adapter, name))
        if value is not None and its not in (shown(value), "None"):
            raise ValueError(f"{path}: the adapter has {name} {its}, this run {shown(value)}: give --{name} {its}")
    labels, line = getattr(model.config, "num_labels", None), f"started from {path}"
    if method == "lora" and adapter.alpha is None:
        line += f", which holds no alpha: this run's {model.lora_settings.alpha:g} is used"
    fresh_head = {name: p for name, p in model.named_parameters() if name.startswith(HEAD)}
    if labels is not None and adapter.num_labels != labels:
        line += f"; its head has {adapter.num_labels or 'no'} labels, this task {labels}: dropped, a fresh head starts"
        adapter.others = {name: tensor for name, tensor in adapter.others.items() if not name.startswith(HEAD)} | {
            name: parameter.detach().clone() for name, parameter in fresh_head.items()}
    copy_trained(model, method, adapter)
    return line


def copy_trained(model: nn.Module, method: str, adapter: Adapter) -> None:
    """Copy an adapter into a model that has the same method. Raises ValueError where names or shapes differ."""
    if method == "lora":
        lora.copy_adapter(model, adapter)
    else:
        lora.copy_tensors(trained_parameters(model), adapter.others, adapter.source)


def shown(value: float | str | tuple[str, ...] | None) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(sorted(value, key=TARGETS.index))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def reload_trained(model: nn.Module, method: str, directory: str | Path) -> None:
    """Put what save_trained wrote back into the model that it was saved from, in place of its present numbers."""
    copy_trained(model, method, read_trained(directory, model.config)[0])


# ---------------------------------------------------------------- parameter counts

def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: "trainable" without the head, "head", and "total" of everything, updates included."""
    counts = {"trainable": 0, "head": 0, "total": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["head" if name.startswith(HEAD) else "trainable"] += parameter.numel()
    return counts


def formula_counts(config: GPT2Config | RobertaConfig, method: str, rank: int = 0,
                   targets: tuple[str, ...] = ("q", "v")) -> dict[str, int]:
    """The same "trainable" and "head" from the configuration alone; |Theta| of section 5.1 for the methods that have one.

    LoRA 2 L_LoRA d r for square matrices; adapters L_Adpt (2 d r + r + d) + 2 L_LN d; prefix L d P.
    """
    d, L, gpt2 = width_of(config), n_layers(config), isinstance(config, GPT2Config)
    inner = layer_shape(config, "mlp.c_fc" if gpt2 else "intermediate.dense")[0]
    rows = config.vocab_size + (config.n_positions if gpt2 else config.max_position_embeddings + config.type_vocab_size)
    block = 4 * d * d + 2 * d * inner + inner + 9 * d                        # matrices, their biases, two LayerNorms
    trainable = {
        "full": rows * d + L * block + 2 * d,                                # one more LayerNorm: GPT-2's last, RoBERTa's first
        "last-layers": LAST_LAYERS * block,
        "bitfit": L * (inner + 7 * d) + d,
        "adapter-h": 2 * L * (2 * d * rank + rank + d),
        "adapter-l": L * (2 * d * rank + rank + d) + 2 * L * d,
        "prefix": L * d * rank,
        "head": 0,
    }
    if method == "lora":
        trainable["lora"] = 0
        for target in targets:
            d_out, d_in = layer_shape(config, MODULES[type(config)][target])
            trainable["lora"] += L * rank * (d_in + len(range(d_out)[target_slice(config, target)]))
    return {"trainable": trainable[method], "head": 0 if gpt2 else d * d + d + (d + 1) * config.num_labels}


SIZES = {"GPT-2 S": GPT2Config(), "GPT-2 M": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
         "GPT-2 L": GPT2Config(n_embd=1280, n_layer=36, n_head=20), "RoBERTa base": RobertaConfig(),
         "RoBERTa large": RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                                        intermediate_size=4096)}
PRINTED = [                                                                  # model, method, rank, what Tables 2 and 3 print
    ("GPT-2 S", "full", 0, "–"), ("GPT-2 S", "lora", 4, "–"),
    ("GPT-2 M", "full", 0, "354.92M"), ("GPT-2 M", "last-layers", 0, "25.19M"), ("GPT-2 M", "adapter-l", 6, "0.37M"),
    ("GPT-2 M", "adapter-l", 224, "11.09M"), ("GPT-2 M", "adapter-h", 112, "11.09M"), ("GPT-2 M", "prefix", 5, "0.35M"),
    ("GPT-2 M", "lora", 4, "0.35M"), ("GPT-2 L", "full", 0, "774.03M"), ("GPT-2 L", "adapter-l", 8, "0.88M"),
    ("GPT-2 L", "adapter-l", 248, "23.00M"), ("GPT-2 L", "prefix", 5, "0.77M"), ("GPT-2 L", "lora", 4, "0.77M"),
    ("RoBERTa base", "full", 0, "125.0M"), ("RoBERTa base", "bitfit", 0, "0.1M"), ("RoBERTa base", "lora", 8, "0.3M"),
    ("RoBERTa large", "full", 0, "355.0M"), ("RoBERTa large", "lora", 8, "0.8M")]


def counts_table() -> str:
    """The paper's counts beside the formulas' and those of the built models, in Markdown.

    What the paper prints for LoRA and PreLayer on GPT-2 is 0.1 % of the model, a label that Li and Liang 2021 gave their
    prefix of 5 tokens, not a count.
    """
    lines = ["| model | method | paper | formula | built | with the head |", "|---|---|---|---|---|---|"]
    for name, method, rank, printed in PRINTED:
        config = SIZES[name]
        with torch.device("meta"):                                           # shapes without memory
            model = GPT2(config) if isinstance(config, GPT2Config) else RobertaClassifier(config)
        apply_method(model, method, rank, alpha=1.0)
        formula, built = formula_counts(config, method, rank), parameter_counts(model)
        lines.append(f"| {name} | {method}{f' {rank}' if rank else ''} | {printed} | {formula['trainable']:,} | "
                     f"{built['trainable']:,} | {built['trainable'] + built['head']:,} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="baselines.py", description="Print how many parameters each method trains: as the paper "
                            "prints it, by formula, and in the built model.").parse_args(arguments)
    print(counts_table())
    return 0


if __name__ == "__main__":
    cli.run(main)
