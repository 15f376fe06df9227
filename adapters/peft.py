"""PEFT's format of LoRA adapters, in which ours are written too.

PEFT knows no slices of a layer: the n updates on GPT-2's fused c_attn become one of rank n r and alpha n alpha, whose A
holds the updates' A below one another and whose B (3 d, n r) holds each B in its rows and columns and zeros elsewhere. The
product is the same, and the way back takes it apart. An update of PEFT's on the whole of c_attn is the target "qkv" here.
Left out: DoRA and PEFT's other variants, updates of embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.adapter import PEFT_PREFIX, Adapter, check_complete, check_rows, layer_name, layers_of, stacked_updates
from adapters.folder import check_dropout_and_bias, check_own, is_number, read_folder, write_folder

# Settings of PEFT's LoraConfig: those that change the computation, with the values under which it is ours ...
EXACT = {"peft_type": ("LORA",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
         "modules_to_save": (["classifier"], ["score", "classifier"], ["classifier", "score"])}
READ = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform")
# ... and those that do not. Any other must be empty: it may be a variant that this project does not compute.
HARMLESS = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
            "target_modules", "exclude_modules", "fan_in_fan_out", "layers_pattern", "megatron_core", "eva_config",
            "qalora_group_size", "runtime_config", "ensure_weight_tying")


# ---------------------------------------------------------------- reading

def read_peft(directory: Path, config) -> Adapter:
    """An adapter folder of PEFT or of this project. Raises ValueError for what cannot be computed exactly here."""
    tensors, peft, own = read_folder(directory)
    if own.get("method", "lora") != "lora":
        raise ValueError(f"{directory}: is an adapter of method '{own['method']}', expected LoRA")
    check_peft(peft, directory / "adapter_config.json")
    stacked, others = stacked_updates(tensors, config, str(directory))
    check_own(own, directory)
    whole = [name for name, target in config.targets.items() if target.rows == slice(None)]      # all that PEFT knows
    known = tuple(map(str, own.get("targets", whole)))
    if any(target not in config.targets for target in known):
        raise ValueError(f"{directory}: unknown LoRA target '{next(t for t in known if t not in config.targets)}'; expected "
                         f"any of {' '.join(config.targets)}")
    updates, sizes, layers = {}, {}, layers_of(config)
    for layer, (A, B) in stacked.items():
        on_layer = [target for target in known if config.targets[target].path == layers[layer].path]
        check_rows(layer, B, layers[layer].shape[0], str(directory))
        updates[layer] = take_apart(layer, A, B, on_layer, config, own.get("rank"), str(directory))
        sizes[layer] = A.shape[0] // len(on_layer), alpha_of_layer(layer, A.shape[0], peft, directory) / len(on_layer)
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


def check_peft(peft: dict, source: Path) -> None:
    """Refuse what PEFT would compute otherwise than h = W x + scale B A x. source: the adapter_config.json."""
    for key, value in peft.items():
        exact = value in EXACT[key] if key in EXACT and value is not None else key in READ or key in HARMLESS or not value
        if not exact:
            raise ValueError(f"{source}: {key} is {value!r}, which this project does not compute; expected "
                             f"{' or '.join(map(repr, EXACT.get(key, ('none',))))}: merge it with PEFT and load the merged "
                             "model")
    if "peft_type" not in peft or not all(is_above_0(peft.get(key)) for key in ("r", "lora_alpha")):
        raise ValueError(f"{source}: no peft_type, or r or lora_alpha is no number above 0: not a LoRA adapter of PEFT's "
                         "format")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = peft.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(is_above_0, pattern.values())):
            raise ValueError(f"{source}: {key} is {str(pattern)[:60]}, expected numbers above 0 by name")
        for name in pattern:                                                 # an expression must not take for ever
            if len(name) > 200 or not re.fullmatch(r"[\w.\\^|()*+-]*", name) or re.search(r"\)[*+]", name) or sum(
                    map(name.count, "*+")) > 2:
                raise ValueError(f"{source}: '{name[:60]}' in {key} is too intricate, expected the end of a layer's name")
    check_dropout_and_bias(peft.get("lora_dropout", 0.0), peft.get("bias", "none"), source)


def is_above_0(value: object) -> bool:
    return is_number(value) and value > 0


def pattern_value(pattern: dict | None, layer: str, default: float) -> float:
    """PEFT's rule: the first key that matches the end of the layer's name, as a regular expression."""
    try:
        return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", layer)), default)
    except re.error as error:
        raise ValueError(f"adapter_config.json: '{error.pattern}' in a pattern is no regular expression ({error})") from None


def alpha_of_layer(layer: str, rank: int, peft: dict, directory: Path) -> float:
    """The alpha with which alpha / rank is PEFT's scale of this layer."""
    expected = pattern_value(peft.get("rank_pattern"), layer, peft["r"])
    if rank != expected:
        raise ValueError(f"{directory}: '{layer}.lora_A' has rank {rank}, expected rank {expected} by adapter_config.json")
    alpha = pattern_value(peft.get("alpha_pattern"), layer, peft["lora_alpha"])
    return alpha * rank ** 0.5 if peft.get("use_rslora") else alpha          # rsLoRA scales by alpha / sqrt(r)


def take_apart(layer: str, A: Tensor, B: Tensor, targets: list[str], config, rank: int | None, source: str
               ) -> dict[str, tuple[Tensor, Tensor]]:
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
        rows, block = config.targets[target].rows, slice(index * each, (index + 1) * each)
        found[target] = A[block], B[rows, block]
        rest[rows, block] = 0
    if rest.any():
        raise ValueError(f"{source}: '{layer}.lora_B' has numbers outside the blocks of its targets {' '.join(targets)}; "
                         "save the adapter again")
    return found


def add_empty_updates(updates: dict, sizes: dict, targets: tuple[str, ...], config) -> None:
    """PEFT's layers_to_transform leaves blocks out: there B = 0 says the same."""
    for index in range(config.num_layers):
        for target in targets:
            layer, (d_out, d_in) = layer_name(config, index, target), config.targets[target].shape
            if layer not in updates:
                updates[layer] = {target: (torch.zeros(1, d_in), torch.zeros(d_out, 1))}
                sizes[layer] = 1, 1.0


def equalise(updates: dict, sizes: dict[str, tuple[int, float]]) -> tuple[int, float]:
    """One rank and alpha for all layers: smaller ranks are filled up with zeros, and where a layer's scale differs, the
    difference moves into its B. Neither changes the product. Returns rank and alpha."""
    rank, alpha = max(sizes.values())
    for layer, (own_rank, own_alpha) in sizes.items():
        factor, missing = (own_alpha / own_rank) / (alpha / rank), rank - own_rank
        for target, (A, B) in updates[layer].items():
            if missing:
                A, B = pad(A, (0, 0, 0, missing)), pad(B, (0, missing))
            updates[layer][target] = (A, B if factor == 1 else B * factor)
    return rank, alpha


# ---------------------------------------------------------------- writing

def write_peft(adapter: Adapter, directory: str | Path, model: nn.Module, base_name: str = "") -> None:
    """adapter_model.safetensors + adapter_config.json in PEFT's format, with the head and our own section. model: the one
    that the adapter is of."""
    tensors, layers = {}, layers_of(model.config)
    for layer, updates in adapter.updates.items():
        B = torch.zeros(layers[layer].shape[0], len(updates) * adapter.rank)
        for index, (target, (_, part)) in enumerate(updates.items()):
            B[model.config.targets[target].rows, index * adapter.rank:(index + 1) * adapter.rank] = part
        tensors[f"{PEFT_PREFIX}{layer}.lora_A.weight"] = torch.cat([A for A, _ in updates.values()])
        tensors[f"{PEFT_PREFIX}{layer}.lora_B.weight"] = B
    for name, tensor in adapter.others.items():
        layer = name.rpartition(".")[0]
        tensors[PEFT_PREFIX + (f"{layer}.base_layer.bias" if layer in adapter.updates else name)] = tensor
    own = {key: getattr(adapter, key) for key in ("rank", "alpha", "dropout", "init", "bias", "task", "base_fingerprint",
                                                  "num_labels")}
    write_folder(directory, tensors, peft_config(adapter, model, base_name),
                 own | {"method": "lora", "targets": list(adapter.targets)})


def peft_config(adapter: Adapter, model: nn.Module, base_name: str) -> dict:
    """The keys that PEFT's LoraConfig reads."""
    config, rank, alpha = model.config, adapter.rank, adapter.alpha
    paths = [config.targets[target].path for target in adapter.targets]
    updates = {path: paths.count(path) for path in dict.fromkeys(paths)}
    first = updates[paths[0]]
    differing = {path: count for path, count in updates.items() if count != first}
    # PEFT compares the ends of names, and one layer's path may be the end of another's: output.dense, attention.output.dense
    ambiguous = any(target.path.endswith(f".{path}") for path in updates for target in config.targets.values())
    names = [f"{config.blocks}.{index}.{path}" for path in updates for index in range(config.num_layers)]
    transposed = getattr(model.get_submodule(next(iter(adapter.updates))), "stored_transposed", False)
    return {"peft_type": "LORA", "task_type": "SEQ_CLS" if model.head else "CAUSAL_LM",
            "base_model_name_or_path": base_name, "r": first * rank, "lora_alpha": first * alpha,
            "rank_pattern": {path: count * rank for path, count in differing.items()},
            "alpha_pattern": {path: count * alpha for path, count in differing.items()},
            "target_modules": names if ambiguous else list(updates), "modules_to_save": ["classifier"] if model.head else None,
            "lora_dropout": adapter.dropout, "fan_in_fan_out": transposed, "bias": adapter.bias.replace("-", "_"),
            "inference_mode": True}
