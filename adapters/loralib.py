"""loralib's state dicts, in which the authors publish their adapters: one file, without alpha and names of targets.

A layer's A and B stand under the layer's name. loralib's MergedLinear, for GPT-2's fused c_attn, has the A of the enabled
thirds below one another, and the B, too; which thirds they are the file does not tell. Left out: loralib's convolutions and
embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
import sys
from pathlib import Path

import torch
from torch import Tensor

from adapters.adapter import HEAD, Adapter, check_complete, check_rows, height, layers_of, sort_tensors, split_others
from files.weights import read_pickle, read_safetensors
from lora import TARGETS


def read_loralib(path: Path, config, targets: tuple[str, ...] | None) -> Adapter:
    """A state dict of loralib's Linear and MergedLinear layers, as `lora_state_dict` gives it and the authors publish it.
    targets: what the updates of a fused layer belong to; default q and v for two, as in the authors' code."""
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    stacked, others = sort_tensors(tensors, config, str(path))
    updates, layers = {}, layers_of(config)
    for layer, (A, B) in stacked.items():
        rank = B.shape[1]
        if A.shape[0] % rank:
            raise ValueError(f"{path}: '{layer}' has A {list(A.shape)} and B {list(B.shape)}, which share no rank")
        names = [name for name, target in config.targets.items() if target.path == layers[layer].path]
        if len(names) > 1:
            names = fused_targets(layer, A.shape[0] // rank, B, layers[layer].shape[0], targets, path)
        heights = [height(config.targets[name]) for name in names]
        check_rows(layer, B, sum(heights), str(path))
        updates[layer] = {name: (A[i * rank:(i + 1) * rank], part)
                          for i, (name, part) in enumerate(zip(names, B.split(heights), strict=True))}
    ranks = {A.shape[0] for found in updates.values() for A, _ in found.values()}
    if len(ranks) > 1:
        raise ValueError(f"{path}: has updates of ranks {', '.join(map(str, sorted(ranks)))}, expected one rank")
    found = tuple(target for target in config.targets if any(target in layer for layer in updates.values()))
    check_complete(updates, found, config, str(path))
    is_fused = config.targets["q"].path == config.targets["v"].path
    if is_fused and targets is None and {"q", "v"} <= set(found) and "k" not in found:
        print(f"{path}: took the two updates of c_attn as those of q and v, as the authors' code has them", file=sys.stderr)
    biased = {name.removesuffix(".bias") for name in others if name.endswith(".bias") and not name.startswith(HEAD)}
    bias = "none" if not biased else "lora-only" if biased == updates.keys() else "all"
    trained, saved_along = split_others(others, config, bias, updates)
    return Adapter(str(path), updates, trained, ranks.pop(), alpha=None, targets=found, bias=bias, saved_along=saved_along)


def fused_targets(layer: str, count: int, B: Tensor, d_out: int, targets: tuple[str, ...] | None, path: Path) -> list[str]:
    """Which thirds of c_attn the `count` updates of a MergedLinear belong to."""
    if targets is not None:
        wanted = [target for target in targets if target in ("q", "k", "v")]
        if len(wanted) == count:
            return wanted
        raise ValueError(f"{path}: '{layer}' has {count} updates, but {' '.join(targets)} were given")
    if count == 1 and B.shape[0] == d_out:
        return ["qkv"]                                                       # loralib's plain Linear
    if count == 1:
        raise ValueError(f"{path}: '{layer}' has one update, of q, k or v, and the file does not tell which: "
                         "load it in Python, load_adapter(model, path, alpha, targets=...), and save it again")
    return ["q", "v"] if count == 2 else ["q", "k", "v"]


def loralib_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The state dict of loralib's layers. Give them lora_alpha = adapter.alpha, which it does not hold."""
    tensors = {}
    for layer, updates in adapter.updates.items():
        in_order = [updates[target] for target in sorted(updates, key=(*TARGETS, *updates).index)]
        tensors[f"{layer}.lora_A"] = torch.cat([A for A, _ in in_order])
        tensors[f"{layer}.lora_B"] = torch.cat([B for _, B in in_order])
    return tensors | adapter.others
