"""The folder that an adapter is saved in: adapter_model.safetensors and adapter_config.json, as PEFT names them.

What only this project needs, our own section, stands in the metadata of the safetensors file: it travels with the tensors
and is lost when another program writes them anew. Adapters of all methods are kept so. What the tensors mean is left out:
peft.py says it for LoRA, methods/ for the others.
"""
import json
import math
from pathlib import Path

from torch import Tensor

from files.text import read_json, write_json
from files.weights import read_pickle, read_safetensors, write_safetensors

OWN_SECTION = "lora_from_scratch"                                            # our key in the file's metadata
OWN_KINDS = {"targets": list, "rank": (int, type(None)), "alpha": (int, float), "init": str, "task": (str, type(None)),
             "form": (dict, type(None)),
             "base_fingerprint": (str, type(None)), "base_rounded": dict}


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
    """The way back of read_folder; each file is written whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, directory / "adapter_model.safetensors",
                      metadata={"format": "pt", OWN_SECTION: json.dumps(own)})
    write_json(config, directory / "adapter_config.json")


def check_own(own: dict, source: str | Path) -> None:
    """Raises ValueError for a value of our own section that is of a wrong kind."""
    for key, kind in OWN_KINDS.items():
        if key in own and (not isinstance(own[key], kind) or isinstance(own[key], bool)):
            raise ValueError(f"{source}: {key} is {str(own[key])[:60]!r} in its metadata, which is never written so: save the "
                             "adapter again")
    form = own.get("form")
    if form and (form.get("texts") not in (1, 2) or not isinstance(labels := form.get("labels"), (list, type(None)))
                 or not all(isinstance(label, str) for label in labels or ())):
        raise ValueError(f"{source}: its form is {str(form)[:60]}, expected one text or two and the labels' names: save the "
                         "adapter again")
    check_dropout_and_bias(own.get("dropout", 0.0), own.get("bias", "none"), source)


def check_dropout_and_bias(dropout: object, bias: object, source: str | Path) -> None:
    """Raises ValueError for LoRA settings that no file should hold, ours or PEFT's."""
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"{source}: the dropout is {str(dropout)[:60]!r}, expected a number from 0 to below 1")
    if not isinstance(bias, str) or bias.replace("_", "-") not in ("none", "lora-only", "all"):
        raise ValueError(f"{source}: bias is {str(bias)[:60]!r}, expected none, lora_only or all")


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
