"""Adapter files of other programs and our own, all read into one form: per layer and target the matrices A and B.

    ours, PEFT         a folder with adapter_model.safetensors (or .bin) and adapter_config.json
    loralib, authors   one state dict: .safetensors, .bin or .pt; alpha is not in it

What we write is PEFT's format. PEFT knows no slices of a layer: the n updates on GPT-2's fused c_attn become one of rank
n r and alpha n alpha, whose A holds the updates' A below one another and whose B (3 d, n r) holds each B in its rows and
columns and zeros elsewhere. The product is the same, and the way back takes it apart. An update of PEFT's on the whole
of c_attn is the target "qkv" here. What only this project needs stands in the metadata of the safetensors file, which
travels with the tensors and is lost when another program writes them anew.

Works on tensors and model configurations alone; lora.py puts the result onto a model.
Left out: DoRA and PEFT's other variants, updates of embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from files.text import read_json, write_json
from files.weights import check_finite, read_pickle, read_safetensors, write_safetensors
from model import GPT2Config, RobertaConfig

LAYERS = {GPT2Config: "transformer.h", RobertaConfig: "roberta.encoder.layer"}
MODULES = {                                                                  # target -> its linear layer inside a block
    GPT2Config: {"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj",
                 "fc": "mlp.c_fc", "proj": "mlp.c_proj", "qkv": "attn.c_attn"},     # qkv: one update for all of c_attn
    RobertaConfig: {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
                    "o": "attention.output.dense", "fc": "intermediate.dense", "proj": "output.dense"},
}
FUSED = {"q": 0, "k": 1, "v": 2}                                             # the thirds of GPT-2's c_attn output
TARGETS = ("q", "k", "v", "o", "fc", "proj", "qkv")                          # Table 5 names q k v o
HEAD = "classifier."
PEFT_PREFIX = "base_model.model."
OWN_SECTION = "lora_from_scratch"                                            # our key in the file's metadata

# Settings of PEFT's LoraConfig: those that change the computation, with the values under which it is ours ...
PEFT_EXACT = {"peft_type": ("LORA",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
              "modules_to_save": (["classifier"], ["score", "classifier"], ["classifier", "score"])}
PEFT_READ = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform")
# ... and those that do not. Any other must be empty: it may be a variant that this project does not compute.
PEFT_HARMLESS = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
                 "target_modules", "exclude_modules", "fan_in_fan_out", "layers_pattern", "megatron_core", "eva_config",
                 "qalora_group_size", "runtime_config", "ensure_weight_tying")


@dataclass
class Adapter:
    """What an adapter file holds. None: the file does not say."""
    source: str                                                              # the file, for messages
    updates: dict[str, dict[str, tuple[Tensor, Tensor]]]                     # layer -> target -> A (r, d_in), B (rows, r)
    others: dict[str, Tensor]                                                # head and trained biases, the model's names
    rank: int
    alpha: float | None
    targets: tuple[str, ...]
    dropout: float = 0.0
    init: str = "kaiming"
    bias: str = "none"
    task: str | None = None
    base_fingerprint: str | None = None

    @property
    def num_labels(self) -> int | None:
        head = self.others.get(f"{HEAD}out_proj.weight")
        return None if head is None else head.shape[0]

    def own_section(self) -> dict:
        """All but the tensors, for the metadata of our own files."""
        return {"method": "lora", "rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "dropout":
                self.dropout, "init": self.init, "bias": self.bias, "task": self.task, "base_fingerprint":
                self.base_fingerprint, "num_labels": self.num_labels}


# ---------------------------------------------------------------- names and shapes

def target_slice(config: GPT2Config | RobertaConfig, target: str) -> slice:
    """The rows of the layer's output that belong to a target: a third of c_attn for GPT-2's q, k, v; else all."""
    if isinstance(config, GPT2Config) and target in FUSED:
        return slice(FUSED[target] * config.n_embd, (FUSED[target] + 1) * config.n_embd)
    return slice(None)


def n_layers(config: GPT2Config | RobertaConfig) -> int:
    return config.n_layer if isinstance(config, GPT2Config) else config.num_hidden_layers


def layer_shape(config: GPT2Config | RobertaConfig, path: str) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer inside a block."""
    if isinstance(config, GPT2Config):
        width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
        return {"attn.c_attn": (3 * width, width), "mlp.c_fc": (inner, width), "mlp.c_proj": (width, inner)}.get(
            path, (width, width))
    width, inner = config.hidden_size, config.intermediate_size
    return {"intermediate.dense": (inner, width), "output.dense": (width, inner)}.get(path, (width, width))


def model_name(name: str, config: GPT2Config | RobertaConfig) -> str:
    """The name in our model of a tensor of any of the formats."""
    name = name.removeprefix("module.").removeprefix(PEFT_PREFIX)
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    name = re.sub(r"\.(lora_[AB])\.weight$", r".\1", name)
    base = LAYERS[type(config)].partition(".")[0] + "."                      # a model without a head has no prefix
    return name if name.startswith(("transformer.", "roberta.", HEAD)) else base + name


def stacked_updates(tensors: dict[str, Tensor], config: GPT2Config | RobertaConfig, source: str
                    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Sort a file's tensors: A and B of every layer as they are stored, and the others.

    Raises ValueError for a layer that this model lacks, an A without its B, or an input size that does not fit.
    """
    renamed = {}
    for name in sorted(tensors, key=lambda name: ".modules_to_save." in name):           # PEFT saves untrained copies too
        new = model_name(name, config)
        if new in renamed and ".modules_to_save." not in name:
            raise ValueError(f"{source}: holds '{new}' twice, under two spellings of its name; save it again")
        if ".original_module." not in name:
            renamed[new] = tensors[name]
    check_finite(renamed, source, "save the adapter again, from a run that did not diverge")
    others = {name: tensor for name, tensor in renamed.items() if not name.endswith((".lora_A", ".lora_B"))}
    layers = {f"{LAYERS[type(config)]}.{index}.{path}": path for index in range(n_layers(config))
              for path in dict.fromkeys(MODULES[type(config)].values())}
    stacked = {}
    for name in renamed.keys() - others.keys():
        layer, _, letter = name.rpartition(".")
        if layer not in layers:
            raise ValueError(f"{source}: holds '{name}', which is no linear layer of the {n_layers(config)} blocks of this "
                             "base; it was trained on base weights of another kind or size: load those")
        if f"{layer}.lora_A" not in renamed or f"{layer}.lora_B" not in renamed:
            raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: '{name}' "
                             "stands without its other half; save it again")
        tensor, d_in = renamed[name], layer_shape(config, layers[layer])[1]
        if tensor.dim() != 2 or not tensor.numel() or (letter == "lora_A" and tensor.shape[1] != d_in):
            raise ValueError(f"{source}: '{name}' has shape {list(tensor.shape)}, this base needs "
                             f"{f'[rank, {d_in}]' if letter == 'lora_A' else 'two dimensions, none of them 0'}")
        stacked[layer] = (renamed[f"{layer}.lora_A"].float(), renamed[f"{layer}.lora_B"].float())
    if not stacked:
        raise ValueError(f"{source}: holds no LoRA matrices (names ending in lora_A and lora_B)")
    return dict(sorted(stacked.items())), others


def path_of(layer: str, config: GPT2Config | RobertaConfig) -> str:
    return layer.removeprefix(LAYERS[type(config)] + ".").partition(".")[2]  # transformer.h.3.mlp.c_fc -> mlp.c_fc


def check_rows(layer: str, B: Tensor, rows: int, source: str) -> None:
    if B.shape[0] != rows:
        raise ValueError(f"{source}: '{layer}.lora_B' has shape {list(B.shape)}, this base needs {rows} rows")


def check_complete(updates: dict, targets: tuple[str, ...], config: GPT2Config | RobertaConfig, source: str) -> None:
    """Every block must have every target, or the file is a part of an adapter."""
    for index in range(n_layers(config)):
        for target in targets:
            layer = f"{LAYERS[type(config)]}.{index}.{MODULES[type(config)][target]}"
            if target not in updates.get(layer, {}):
                raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: "
                                 f"'{layer}' has no update; save it again")


# ---------------------------------------------------------------- our own section

def read_folder(directory: str | Path) -> tuple[dict[str, Tensor], dict, dict]:
    """Tensors, adapter_config.json and our own section (empty where another program wrote the folder)."""
    directory = Path(directory)
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file() and (directory / "adapter_model.bin").is_file():
        weights = directory / "adapter_model.bin"
    for file in (directory / "adapter_config.json", weights):
        if not file.is_file():
            raise FileNotFoundError(f"{directory}: no {file.name}; expected the folder that train.py or PEFT wrote")
    config = read_json(directory / "adapter_config.json")
    if weights.suffix == ".bin":
        return read_pickle(weights), config, {}
    tensors = read_safetensors(weights)                                      # also checks the header
    with open(weights, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    try:
        own = json.loads((header.get("__metadata__") or {}).get(OWN_SECTION, "{}"))
    except (ValueError, AttributeError, TypeError, RecursionError):
        own = None
    if not isinstance(own, dict):
        raise ValueError(f"{weights}: the metadata '{OWN_SECTION}' is not a JSON object; save the adapter again")
    return tensors, config, own


def write_folder(directory: str | Path, tensors: dict[str, Tensor], config: dict, own: dict) -> None:
    """adapter_model.safetensors, with what only this project needs in its metadata, and adapter_config.json."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, directory / "adapter_model.safetensors",
                      metadata={"format": "pt", OWN_SECTION: json.dumps(own)})
    write_json(config, directory / "adapter_config.json")


# ---------------------------------------------------------------- reading

def read_adapter(path: str | Path, config: GPT2Config | RobertaConfig, targets: tuple[str, ...] | None = None) -> Adapter:
    """The adapter in a folder (ours, PEFT's) or a file (loralib's, the authors') for a base with this configuration.

    targets: what a loralib file's updates of c_attn belong to, where it does not tell; default q and v for two.
    Raises FileNotFoundError, or ValueError for a file that does not fit the base or computes something else than LoRA.
    """
    path = Path(path)
    if path.name.startswith("adapter_model.") and (path.parent / "adapter_config.json").is_file():
        path = path.parent
    if path.is_dir():
        return read_peft(path, config)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such adapter; expected a folder with adapter_config.json or a state dict")
    return read_loralib(path, config, targets)


def read_peft(directory: Path, config: GPT2Config | RobertaConfig) -> Adapter:
    """An adapter folder of PEFT or of this project. Raises ValueError for what cannot be computed exactly here."""
    tensors, peft, own = read_folder(directory)
    if own.get("method", "lora") != "lora":
        raise ValueError(f"{directory}: is an adapter of method '{own['method']}', expected LoRA")
    check_peft(peft, directory)
    stacked, others = stacked_updates(tensors, config, str(directory))
    modules = MODULES[type(config)]
    check_own(own, directory)
    known = tuple(map(str, own.get("targets", [name for name in modules if name == "qkv" or modules[name] != "attn.c_attn"])))
    if any(target not in modules for target in known):
        raise ValueError(f"{directory}: unknown LoRA target '{next(t for t in known if t not in modules)}'; expected any of "
                         f"{' '.join(modules)}")
    updates, sizes = {}, {}
    for layer, (A, B) in stacked.items():
        path = path_of(layer, config)
        on_layer = [target for target in known if modules[target] == path]
        check_rows(layer, B, layer_shape(config, path)[0], str(directory))
        updates[layer] = take_apart(layer, A, B, on_layer, config, own.get("rank"), str(directory))
        sizes[layer] = A.shape[0] // len(on_layer), alpha_of(layer, A.shape[0], peft, directory) / len(on_layer)
    targets = tuple(target for target in known if any(target in found for found in updates.values()))
    if peft.get("layers_to_transform") is not None:
        add_empty_updates(updates, sizes, targets, config)
    check_complete(updates, targets if not own else known, config, str(directory))
    rank, alpha = equalise(updates, sizes)
    try:
        settings = {key: own[key] for key in ("alpha", "dropout", "init", "bias", "task", "base_fingerprint")} if own else {
            "alpha": alpha, "dropout": peft.get("lora_dropout", 0.0), "bias": peft.get("bias", "none").replace("_", "-")}
    except KeyError as error:
        raise ValueError(f"{directory}: no LoRA adapter of this project: {error} is missing in its metadata; save it again"
                         ) from None
    if not abs(settings["alpha"] - alpha) <= 1e-6 * abs(alpha):
        raise ValueError(f"{directory}: alpha is {settings['alpha']} in its metadata, adapter_config.json comes to {alpha:g}: "
                         "save the adapter again")
    return Adapter(str(directory), updates, others, rank, targets=targets, **settings)


def check_peft(peft: dict, directory: Path) -> None:
    """Refuse what PEFT would compute otherwise than h = W x + scale B A x."""
    for key, value in peft.items():
        exact = value in PEFT_EXACT[key] if key in PEFT_EXACT and value is not None else (
            key in PEFT_READ or key in PEFT_HARMLESS or not value)
        if not exact:
            raise ValueError(f"{directory / 'adapter_config.json'}: {key} is {value!r}, which this project does not compute; "
                             f"expected {' or '.join(map(repr, PEFT_EXACT.get(key, ('none',))))}: merge it with PEFT and "
                             "load the merged model")
    if "peft_type" not in peft or not all(is_above_0(peft.get(key)) for key in ("r", "lora_alpha")):
        raise ValueError(f"{directory / 'adapter_config.json'}: no peft_type, or r or lora_alpha is no number above 0: not "
                         "a LoRA adapter of PEFT's format")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = peft.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(is_above_0, pattern.values())):
            raise ValueError(f"{directory / 'adapter_config.json'}: {key} is {str(pattern)[:60]}, expected numbers above 0 by "
                             "name")
        for name in pattern:                                                 # an expression must not take for ever
            if len(name) > 200 or not re.fullmatch(r"[\w.\\^|()*+-]*", name) or re.search(r"\)[*+]", name) or sum(
                    map(name.count, "*+")) > 2:
                raise ValueError(f"{directory / 'adapter_config.json'}: '{name[:60]}' in {key} is too intricate, expected the "
                                 "end of a layer's name")
    check_dropout_and_bias(peft.get("lora_dropout", 0.0), peft.get("bias", "none"), directory / "adapter_config.json")


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_above_0(value: object) -> bool:
    return is_number(value) and value > 0


def check_dropout_and_bias(dropout: object, bias: object, source: Path) -> None:
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"{source}: the dropout is {str(dropout)[:60]!r}, expected a number from 0 to below 1")
    if not isinstance(bias, str) or bias.replace("_", "-") not in ("none", "lora-only", "all"):
        raise ValueError(f"{source}: bias is {str(bias)[:60]!r}, expected none, lora_only or all")


OWN_KINDS = {"targets": list, "rank": (int, type(None)), "alpha": (int, float), "init": str, "task": (str, type(None)),
             "base_fingerprint": (str, type(None))}


def check_own(own: dict, source: Path) -> None:
    """Raises ValueError for a value of our own section that is of a wrong kind."""
    for key, kind in OWN_KINDS.items():
        if key in own and (not isinstance(own[key], kind) or isinstance(own[key], bool)):
            raise ValueError(f"{source}: {key} is {str(own[key])[:60]!r} in its metadata, which is never written so: save the "
                             "adapter again")
    check_dropout_and_bias(own.get("dropout", 0.0), own.get("bias", "none"), source)


def pattern_value(pattern: dict | None, layer: str, default: float) -> float:
    """PEFT's rule: the first key that matches the end of the layer's name, as a regular expression."""
    try:
        return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), default)
    except re.error as error:
        raise ValueError(f"adapter_config.json: '{error.pattern}' in a pattern is no regular expression ({error})") from None


def alpha_of(layer: str, rank: int, peft: dict, directory: Path) -> float:
    """The alpha with which alpha / rank is PEFT's scale of this layer."""
    expected = pattern_value(peft.get("rank_pattern"), layer, peft["r"])
    if rank != expected:
        raise ValueError(f"{directory}: '{layer}.lora_A' has rank {rank}, expected rank {expected} by adapter_config.json")
    alpha = pattern_value(peft.get("alpha_pattern"), layer, peft["lora_alpha"])
    return alpha * rank ** 0.5 if peft.get("use_rslora") else alpha          # rsLoRA scales by alpha / sqrt(r)


def take_apart(layer: str, A: Tensor, B: Tensor, targets: list[str], config: GPT2Config | RobertaConfig,
               rank: int | None, source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """PEFT's one update on a layer, A (n r, d_in) and B (d_out, n r), as the updates of its n targets."""
    if not targets:
        raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: '{layer}', which "
                         "is none of its targets; save it again")
    each = A.shape[0] // len(targets)
    if A.shape[0] % len(targets) or B.shape[1] != A.shape[0] or each != (rank or each):
        raise ValueError(f"{source}: '{layer}' has A {list(A.shape)} and B {list(B.shape)}, expected rank "
                         f"{len(targets) * (rank or each)} in both")
    rest, found = B.clone(), {}
    for index, target in enumerate(targets):
        rows, block = target_slice(config, target), slice(index * each, (index + 1) * each)
        found[target] = A[block], B[rows, block]
        rest[rows, block] = 0
    if rest.any():
        raise ValueError(f"{source}: '{layer}.lora_B' has numbers outside the blocks of its targets {' '.join(targets)}; "
                         "save the adapter again")
    return found


def add_empty_updates(updates: dict, sizes: dict, targets: tuple[str, ...], config: GPT2Config | RobertaConfig) -> None:
    """PEFT's layers_to_transform leaves blocks out: there B = 0 says the same."""
    for index in range(n_layers(config)):
        for target in targets:
            path = MODULES[type(config)][target]
            layer, (d_out, d_in) = f"{LAYERS[type(config)]}.{index}.{path}", layer_shape(config, path)
            if layer not in updates:
                updates[layer] = {target: (torch.zeros(1, d_in), torch.zeros(d_out, 1))}
                sizes[layer] = 1, 1.0


def equalise(updates: dict, sizes: dict[str, tuple[int, float]]) -> tuple[int, float]:
    """One rank and alpha for all layers: smaller ranks are filled up with zeros, and where a layer's scale differs, the
    difference moves into its B. Neither changes the product. Returns rank and alpha."""
    rank, alpha = max(sizes.values())
    for layer, (own_rank, own_alpha) in sizes.items():
        factor = (own_alpha / own_rank) / (alpha / rank)
        for target, (A, B) in updates[layer].items():
            if own_rank < rank:
                A, B = (torch.nn.functional.pad(A, (0, 0, 0, rank - own_rank)),
                        torch.nn.functional.pad(B, (0, rank - own_rank)))
            updates[layer][target] = (A, B if factor == 1 else B * factor)
    return rank, alpha


def read_loralib(path: Path, config: GPT2Config | RobertaConfig, targets: tuple[str, ...] | None) -> Adapter:
    """A state dict of loralib's Linear and MergedLinear layers, as `lora_state_dict` gives it and the authors publish it."""
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    stacked, others = stacked_updates(tensors, config, str(path))
    biases = [name for name in others if name.endswith(".bias") and not name.startswith(HEAD)]
    strange = sorted(name for name in others.keys() - set(biases) if not name.startswith(HEAD))
    if strange:
        raise ValueError(f"{path}: holds '{strange[0]}' beside LoRA matrices, biases and head: not an adapter alone, but a "
                         "whole model; save loralib's lora_state_dict(model)")
    updates = {}
    for layer, (A, B) in stacked.items():
        module = path_of(layer, config)
        if A.shape[0] % B.shape[1]:
            raise ValueError(f"{path}: '{layer}' has A {list(A.shape)} and B {list(B.shape)}, which share no rank")
        rank, rows = B.shape[1], layer_shape(config, module)[0]
        if module == "attn.c_attn":
            names = fused_targets(layer, A.shape[0] // rank, B, config, targets, path)
            rows = rows if names == ["qkv"] else len(names) * config.n_embd
        else:
            names = [target for target, at in MODULES[type(config)].items() if at == module]
        check_rows(layer, B, rows, str(path))
        each = rows // len(names)
        updates[layer] = {target: (A[i * rank:(i + 1) * rank], B[i * each:(i + 1) * each]) for i, target in enumerate(names)}
    ranks = {A.shape[0] for found in updates.values() for A, _ in found.values()}
    if len(ranks) > 1:
        raise ValueError(f"{path}: has updates of ranks {', '.join(map(str, sorted(ranks)))}, expected one rank")
    found = tuple(target for target in TARGETS if any(target in layer for layer in updates.values()))
    check_complete(updates, found, config, str(path))
    if isinstance(config, GPT2Config) and targets is None and {"q", "v"} <= set(found) and "k" not in found:
        print(f"{path}: took the two updates of c_attn as those of q and v, as the authors' code has them", file=sys.stderr)
    bias = "none" if not biases else "lora-only" if {name.rpartition(".")[0] for name in biases} == updates.keys() else "all"
    return Adapter(str(path), updates, others, ranks.pop(), alpha=None, targets=found, bias=bias)


def fused_targets(layer: str, count: int, B: Tensor, config: GPT2Config, targets: tuple[str, ...] | None,
                  path: Path) -> list[str]:
    """Which thirds of c_attn the `count` updates of a MergedLinear belong to; the file does not tell."""
    if targets is not None:
        wanted = [target for target in targets if target in FUSED]
        if len(wanted) == count:
            return wanted
        raise ValueError(f"{path}: '{layer}' has {count} updates, but {' '.join(targets)} were given")
    if count == 1 and B.shape[0] == 3 * config.n_embd:
        return ["qkv"]                                                       # loralib's plain Linear
    if count == 1:
        raise ValueError(f"{path}: '{layer}' has one update, of q, k or v, and the file does not tell which: "
                         "load it in Python, load_adapter(model, path, alpha, targets=...), and save it again")
    return ["q", "v"] if count == 2 else ["q", "k", "v"]
