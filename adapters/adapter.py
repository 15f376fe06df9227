"""What every file of an adapter is read into: the matrices A and B of each layer and target, and what else was trained.

    peft.py       a folder with adapter_model.safetensors (or .bin) and adapter_config.json: PEFT's and ours
    loralib.py    one state dict, .safetensors, .bin or .pt: loralib's and the authors'; alpha is not in it

Works on tensors and model configurations alone; saving.py takes an adapter off a model and puts one on.
Left out: updates of embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
import re
from dataclasses import dataclass

from torch import Tensor

from files.weights import check_finite
from model import FAMILIES, Target

HEAD = "classifier."                                                         # the task head's name in all of the formats
PEFT_PREFIX = "base_model.model."


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


def layer_name(config, index: int, target: str) -> str:
    return f"{config.blocks}.{index}.{config.targets[target].path}"


def layers_of(config) -> dict[str, Target]:
    """Every linear layer that LoRA can adapt, by its name in the model; path and shape are those of all its targets."""
    return {layer_name(config, index, name): target for index in range(config.num_layers)
            for name, target in config.targets.items()}


def height(target: Target) -> int:
    """Rows of the layer's output that are the target's own."""
    return len(range(target.shape[0])[target.rows])


def model_name(name: str, config) -> str:
    """The name in our model of a tensor of any of the formats."""
    name = name.removeprefix("module.").removeprefix(PEFT_PREFIX)
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    name = re.sub(r"\.(lora_[AB])\.weight$", r".\1", name)
    prefixes = tuple(family.prefix for family in FAMILIES.values())          # a model without a head has none
    return name if name.startswith((*prefixes, HEAD)) else f"{config.blocks.partition('.')[0]}.{name}"


def stacked_updates(tensors: dict[str, Tensor], config, source: str
                    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Sort a file's tensors: A and B of every layer as they are stored, and the others.
    Raises ValueError for a layer that this model lacks, an A without its B, or an input size that does not fit."""
    renamed = {}
    for name in sorted(tensors, key=lambda name: ".modules_to_save." in name):           # PEFT saves untrained copies too
        new = model_name(name, config)
        if new in renamed and ".modules_to_save." not in name:
            raise ValueError(f"{source}: holds '{new}' twice, under two spellings of its name; save it again")
        if ".original_module." not in name:
            renamed[new] = tensors[name]
    check_finite(renamed, source, "save the adapter again, from a run that did not diverge")
    others = {name: tensor for name, tensor in renamed.items() if not name.endswith((".lora_A", ".lora_B"))}
    layers, stacked = layers_of(config), {}
    for name in renamed.keys() - others.keys():
        layer, _, letter = name.rpartition(".")
        if layer not in layers:
            raise ValueError(f"{source}: holds '{name}', which is no linear layer of the {config.num_layers} blocks of this "
                             "base; it was trained on base weights of another kind or size: load those")
        if f"{layer}.lora_A" not in renamed or f"{layer}.lora_B" not in renamed:
            raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: '{name}' "
                             "stands without its other half; save it again")
        tensor, d_in = renamed[name], layers[layer].shape[1]
        if tensor.dim() != 2 or not tensor.numel() or (letter == "lora_A" and tensor.shape[1] != d_in):
            raise ValueError(f"{source}: '{name}' has shape {list(tensor.shape)}, this base needs "
                             f"{f'[rank, {d_in}]' if letter == 'lora_A' else 'two dimensions, none of them 0'}")
        stacked[layer] = (renamed[f"{layer}.lora_A"].float(), renamed[f"{layer}.lora_B"].float())
    if not stacked:
        raise ValueError(f"{source}: holds no LoRA matrices (names ending in lora_A and lora_B), but {len(tensors)} tensors "
                         f"such as {', '.join(map(repr, sorted(tensors)[:3])) or 'none'}")
    return dict(sorted(stacked.items())), others


def check_rows(layer: str, B: Tensor, rows: int, source: str) -> None:
    if B.shape[0] != rows:
        raise ValueError(f"{source}: '{layer}.lora_B' has shape {list(B.shape)}, this base needs {rows} rows")


def check_complete(updates: dict, targets: tuple[str, ...], config, source: str) -> None:
    """Every block must have every target, or the file is a part of an adapter."""
    for index in range(config.num_layers):
        for target in targets:
            layer = layer_name(config, index, target)
            if target not in updates.get(layer, {}):
                raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: "
                                 f"'{layer}' has no update; save it again")
