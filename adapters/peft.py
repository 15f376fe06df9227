"""PEFT's format of LoRA adapters, in which ours are written too.

PEFT knows no slices of a layer: the n updates on GPT-2's fused c_attn become one of rank n r and alpha n alpha, whose A
holds the updates' A below one another and whose B (3 d, n r) holds each B in its rows and columns and zeros elsewhere. The
product is the same, and the way back takes it apart. An update of PEFT's on the whole of c_attn is the target "qkv" here.
Left out: DoRA and PEFT's other variants, updates of embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.adapter import PEFT_PREFIX, Adapter, check_complete, check_rows, layer_name, layers_of, sort_tensors, split_others
from adapters.folder import check_own, read_folder, write_folder
from adapters.peft_settings import check_named, check_peft, pattern_value
from files.pretrained import file_name

# ---------------------------------------------------------------- reading

def read_peft(directory: Path, config) -> Adapter:
    """An adapter folder of PEFT or of this project. Raises ValueError for what cannot be computed exactly here."""
    tensors, peft, own = read_folder(directory)
    if own.get("method", "lora") != "lora":
        raise ValueError(f"{directory}: is an adapter of method '{own['method']}', expected LoRA")
    check_peft(peft, directory / "adapter_config.json")
    stacked, others = sort_tensors(tensors, config, str(directory))
    check_own(own, directory)
    if not own:
        check_named(peft, stacked, others, config, directory)
    if peft.get("enable_lora"):
        peft, stacked = spread_groups(peft, stacked, config, directory)
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
    if own:
        targets, lacking = known, frozenset()
        check_complete(updates, targets, config, str(directory))
    else:
        targets = tuple(target for target in known if any(target in found for found in updates.values()))
        lacking = add_empty_updates(updates, sizes, targets, config)
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
    trained, saved_along = split_others(others, config, settings["bias"], updates)
    return Adapter(str(directory), updates, trained, rank, targets=targets, **settings, saved_along=saved_along,
                   lacking=lacking, form=own.get("form"), base_rounded=own.get("base_rounded", {}),
                   base_name=peft.get("base_model_name_or_path"))


def spread_groups(peft: dict, stacked: dict, config, directory: Path) -> tuple[dict, dict]:
    """A MergedLinear of PEFT until 0.2 as an update of the whole layer, with the settings that fit it. enable_lora says which
    parts of the layer's rows are updated. B (rows, R / g) is the weight of a convolution in g groups: each takes its share of
    A's R rows, and gives its share of the updated rows."""
    enabled, found = peft["enable_lora"], {}
    for layer, (A, B) in stacked.items():
        d_out, n_groups = layers_of(config)[layer].shape[0], A.shape[0] // B.shape[1]
        part = d_out // len(enabled)
        if (not all(type(value) is bool for value in enabled) or d_out % len(enabled) or A.shape[0] % B.shape[1]
                or B.shape[0] != part * sum(enabled) or B.shape[0] % n_groups):
            raise ValueError(f"{directory}: '{layer}' has A {list(A.shape)} and B {list(B.shape)}, which do not fit "
                             f"enable_lora {str(enabled)[:60]}: fetch the adapter again")
        whole = torch.zeros(d_out, A.shape[0])
        whole[torch.tensor(enabled).repeat_interleave(part)] = torch.block_diag(*B.chunk(n_groups))
        found[layer] = A, whole
    n_enabled = sum(enabled)
    return peft | {"r": n_enabled * peft["r"], "lora_alpha": n_enabled * peft["lora_alpha"]}, found


def alpha_of_layer(layer: str, rank: int, peft: dict, directory: Path) -> float:
    """The alpha with which alpha / rank is PEFT's scale of this layer."""
    expected = pattern_value(peft.get("rank_pattern"), layer, peft["r"])
    if rank != expected:
        raise ValueError(f"{directory}: '{layer}.lora_A' has rank {rank}, expected rank {expected} by r and "
                         "rank_pattern of adapter_config.json: use the two files of one adapter, no layer with two patterns")
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


def add_empty_updates(updates: dict, sizes: dict, targets: tuple[str, ...], config) -> frozenset[str]:
    """An update that a block lacks is B = 0, however PEFT was told to leave it out. Returns the layers that lack one."""
    lacking = {}
    for target in targets:
        d_out, d_in = config.targets[target].shape
        for index in range(config.num_layers):
            if (layer := layer_name(config, index, target)) not in updates:
                lacking[layer], sizes[layer] = {target: (torch.zeros(1, d_in), torch.zeros(d_out, 1))}, (1, 1.0)
    updates |= lacking
    return frozenset(lacking)


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
        name = f"{layer}.base_layer.bias" if layer in adapter.updates else file_name(name, type(model))
        tensors[PEFT_PREFIX + name] = tensor
    own = {key: getattr(adapter, key) for key in ("rank", "alpha", "dropout", "init", "bias", "task", "form",
                                                  "base_fingerprint", "base_rounded", "num_labels")}
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
            "target_modules": names if ambiguous else list(updates), "modules_to_save": head_modules(adapter, model),
            "lora_dropout": adapter.dropout, "fan_in_fan_out": transposed, "bias": adapter.bias.replace("-", "_"),
            "inference_mode": True}


def head_modules(adapter: Adapter, model: nn.Module) -> list[str] | None:
    """The modules of the task head by their names in transformers: "classifier" and, of a BERT, "pooler"."""
    of_head = [file_name(name, type(model)) for name in adapter.others if model.head and name.startswith(model.head)]
    return sorted({name.removeprefix(model.prefix).partition(".")[0] for name in of_head}) or None
