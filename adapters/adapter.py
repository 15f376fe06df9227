"""What every file of an adapter is read into: the matrices A and B of each layer and target, and what else was trained.

    peft.py       a folder with adapter_model.safetensors (or .bin) and adapter_config.json: PEFT's and ours
    loralib.py    one state dict, .safetensors, .bin or .pt: loralib's and the authors'; alpha is not in it

Works on tensors and model configurations alone; saving.py takes an adapter off a model and puts one on.
Left out: updates of embeddings. Shapes: r rank, d_in and d_out of a layer.
"""
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from files.pretrained import plain_name
from files.weights import check_finite
from lora import base_names
from model import FAMILIES, Target

HEAD = "classifier."                                                         # the task head's name in all of the formats
PEFT_PREFIX = "base_model.model."                                            # as PEFT writes names


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
    form: dict | None = None                                                 # of own pairs: texts, how many, and labels
    base_fingerprint: str | None = None
    base_rounded: dict[str, str] = field(default_factory=dict)               # the same of the base in coarser formats
    base_name: str | None = None
    saved_along: dict[str, Tensor] = field(default_factory=dict)             # of the base, the model's names
    lacking: frozenset[str] = frozenset()                                    # layers whose B is 0, as the file has none

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


def family_of(config) -> type:
    return next(family for family in FAMILIES.values() if family.config_class is type(config))


def model_name(name: str, family: type, adapter: str) -> str:
    """The name in our model of a tensor of any of the formats. adapter: what PEFT calls it inside of a model's state dict."""
    name = re.sub(rf"\.(lora_[AB]|modules_to_save)\.{adapter}(?=\.|$)", r".\1", name)
    return plain_name(re.sub(r"\.(lora_[AB])\.weight$", r".\1", name.replace(".modules_to_save.", ".")), family)


def sort_tensors(tensors: dict[str, Tensor], config, source: str
                 ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A file's tensors under our names: A and B of every layer as they are stored, and the others, of head and base.
    Raises ValueError for a layer that this model lacks, an A without its B, or an input size that does not fit."""
    family = family_of(config)
    in_model = sorted(set(re.findall(r"\.lora_[AB]\.(\w+)\.weight$", "\n".join(tensors), re.MULTILINE)))
    if len(in_model) > 1:
        raise ValueError(f"{source}: holds the adapters {', '.join(in_model)}, expected one; save each alone")
    adapter, renamed, stored = (in_model or ["default"])[0], {}, {}
    for name in sorted(tensors, key=lambda name: ".modules_to_save." in name):           # PEFT saves untrained copies too
        new = model_name(name, family, adapter)
        if new in renamed and ".modules_to_save." not in name:
            raise ValueError(f"{source}: holds '{new}' twice, under two spellings of its name; save it again")
        if ".original_module." not in name:
            renamed[new], stored[new] = tensors[name], name
    check_finite(renamed, source, "save the adapter again, from a run that did not diverge")
    known, tied = base_names(family, config), f"{family.tied}.weight"
    others = {name: tensor for name, tensor in renamed.items() if not name.endswith((".lora_A", ".lora_B"))
              and (name in known or name == tied or not family.ignored.fullmatch(name))}
    for name in others:
        if name not in known and name != tied and not (family.head and name.startswith(family.head)):
            raise ValueError(f"{source}: holds '{stored[name]}', which no LoRA on the linear layers of this base has: "
                             "train without the target_modules or modules_to_save that it comes from")
    layers, stacked = layers_of(config), {}
    for name in sorted(name for name in renamed if name.endswith((".lora_A", ".lora_B"))):
        layer, _, letter = name.rpartition(".")
        if layer not in layers:
            raise ValueError(f"{source}: holds '{stored[name]}', which is no linear layer of the {config.num_layers} blocks of "
                             f"this base; {other_layer(layer, known, family)}")
        if f"{layer}.lora_A" not in renamed or f"{layer}.lora_B" not in renamed:
            raise ValueError(f"{source}: the adapter's tensors do not fit its configuration; first difference: '{name}' "
                             "stands without its other half; save it again")
        tensor, d_in = renamed[name], layers[layer].shape[1]
        if tensor.dim() == 3 and tensor.shape[2] == 1:                       # B as PEFT had it until 0.2, of a convolution
            tensor = renamed[name] = tensor[:, :, 0]
        if tensor.dim() != 2 or not tensor.numel() or (letter == "lora_A" and tensor.shape[1] != d_in):
            raise ValueError(f"{source}: '{name}' has shape {list(tensor.shape)}, this base needs "
                             f"{f'[rank, {d_in}]' if letter == 'lora_A' else 'two dimensions, none of them 0'}")
    for layer in layers:
        if f"{layer}.lora_A" in renamed:
            stacked[layer] = (renamed[f"{layer}.lora_A"].float(), renamed[f"{layer}.lora_B"].float())
    if not stacked:
        raise ValueError(f"{source}: holds no LoRA matrices (names ending in lora_A and lora_B), but {len(tensors)} tensors "
                         f"such as {', '.join(map(repr, sorted(tensors)[:3])) or 'none'}")
    return dict(sorted(stacked.items())), others


def other_layer(layer: str, known: Collection[str], family: type) -> str:
    """What to do about an update of a layer that is none of the blocks'."""
    if f"{layer}.weight" in known or layer == family.tied or family.head and layer.startswith(family.head):
        return "target_modules named it: train without it"
    return "it was trained on base weights of another kind or size: load those"


def split_others(others: dict[str, Tensor], config, bias: str, updates: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained beside the updates, head and biases (lora.add_lora's `bias`), and what of the base was saved along."""
    family = family_of(config)
    trained = {name: tensor for name, tensor in others.items()
               if family.head and name.startswith(family.head) or name.endswith(".bias")
               and (bias == "all" or bias == "lora-only" and name.removesuffix(".bias") in updates)}
    return trained, {name: tensor for name, tensor in others.items() if name not in trained}


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
                                 f"'{layer}' has no update: load the base that it was trained on, or the whole file")
