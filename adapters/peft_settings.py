"""PEFT's adapter_config.json, checked: which settings this project computes, and whether the file holds what they name.

A setting that is not known here is refused unless it is empty: it may be a variant that computes otherwise. Left out: rank and
alpha of each layer, and the tensors themselves (peft.py).
"""
import re
from pathlib import Path

from torch import Tensor

from adapters.adapter import family_of, layers_of
from adapters.folder import check_dropout_and_bias, is_number
from lora import base_names

# Settings of PEFT's LoraConfig: those that change the computation, with the values under which it is ours ...
EXACT = {"peft_type": ("LORA",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica")}
READ = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "modules_to_save", "enable_lora", "target_modules", "exclude_modules", "base_model_name_or_path")
# ... and those that do not. Any other must be empty: it may be a variant that this project does not compute.
HARMLESS = ("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "fan_in_fan_out", "layers_pattern",
            "megatron_core", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying", "merge_weights")
MERGED_BY_PEFT = ("use_dora", "lora_bias", "init_lora_weights")              # into weights that load here


def check_peft(peft: dict, source: Path) -> None:
    """Refuse what PEFT would compute otherwise than h = W x + scale B A x. source: the adapter_config.json."""
    for key, value in peft.items():
        exact = value in EXACT[key] if key in EXACT and value is not None else key in READ or key in HARMLESS or not value
        if not exact:
            advice = "merge it with PEFT and load the merged model" if key in MERGED_BY_PEFT else "train it without"
            raise ValueError(f"{source}: {key} is {value!r}, which this project does not compute; expected "
                             f"{' or '.join(map(repr, EXACT.get(key, ('none',))))}: {advice}")
    if "peft_type" not in peft or not all(is_above_0(peft.get(key)) for key in ("r", "lora_alpha")):
        raise ValueError(f"{source}: no peft_type, or r or lora_alpha is no number above 0: not a LoRA adapter of PEFT's "
                         "format")
    for key, kind in (("modules_to_save", list), ("enable_lora", list), ("base_model_name_or_path", str)):
        if not isinstance(peft.get(key) or kind(), kind):
            raise ValueError(f"{source}: {key} is {str(peft[key])[:60]!r}, expected a {kind.__name__} or none")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = peft.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(is_above_0, pattern.values())):
            raise ValueError(f"{source}: {key} is {str(pattern)[:60]}, expected numbers above 0 by name")
        for name in pattern:                                                 # an expression must not take for ever
            if len(name) > 200 or not re.fullmatch(r"[\w.\\^$|()[\]?:*+-]*", name) or re.search(r"\)[*+?]", name) or sum(
                    map(name.replace("(?:", "(").count, "*+?")) > 3:
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


def check_named(peft: dict, stacked: dict, others: dict[str, Tensor], config, directory: Path) -> None:
    """What adapter_config.json names has to be in the file, or it is a part of an adapter, or of a smaller base. PEFT compares
    the ends of names; where a regular expression chose, which is a string, the file alone tells what it took."""
    targets, excluded, blocks = (peft.get(key) for key in ("target_modules", "exclude_modules", "layers_to_transform"))
    saved = peft.get("modules_to_save") or []

    def is_among(layer: str, names: list) -> bool:
        return any(f".{layer}".endswith(f".{name}") for name in names)

    for name in saved:
        of_base = [known for known in base_names(family_of(config), config) if f".{name}." in f".{known}"]
        if of_base and not any(known in others for known in of_base):
            raise ValueError(f"{directory}: modules_to_save of adapter_config.json names '{name}', which the file does not "
                             "hold: fetch the adapter again")
    if not isinstance(targets, list) or isinstance(excluded, str):
        return
    wanted = (None if blocks is None or blocks == [] else [blocks] if isinstance(blocks, int) else blocks)
    for layer in layers_of(config):
        index = int(layer.removeprefix(f"{config.blocks}.").partition(".")[0])
        if (is_among(layer, targets) and not is_among(layer, excluded or []) and layer not in stacked
                and (wanted is None or index in wanted or layer in targets)
                and not any(f".{name}." in f".{layer}." for name in saved)):
            raise ValueError(f"{directory}: target_modules of adapter_config.json names '{layer}', for which the file has no "
                             "update: load the base that it was trained on, or fetch the adapter again")
