"""Take a trained adapter elsewhere: a merged model for transformers, an adapter for PEFT, a state dict for loralib.

    python export.py --model M --adapter A --out DIR                     a Hugging Face folder with the update in its weights
    python export.py --model M --adapter A --out DIR --format peft
    python export.py --model M --adapter A --out FILE.pt --format loralib

A: whatever adapters/ reads; so this also turns the authors' files into PEFT's and the other way round. Methods
that change the base's weights alone (full, last-layers, bitfit) export as a merged model like LoRA; adapters and prefixes
are modules that transformers does not have. Left out: half precision, and PEFT folders for the methods that are not LoRA.
"""
import argparse
import shutil
from pathlib import Path

import torch
from torch import nn

from adapters import save_adapter
from adapters.loralib import loralib_tensors
from adapters.saving import adapter_of
from files import cli
from files.pretrained import read_config
from files.published import fetch_model
from files.text import read_json, write_json
from files.weights import write_safetensors
from files.writing import written_whole
from lora import is_base, lora_layers, lora_settings, merge, unmerge
from methods import load_trained, read_trained
from methods.apply import is_of_head
from model import FAMILIES, load_pretrained

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export_merged(model: nn.Module, directory: str | Path, source_directory: str | Path) -> None:
    """Write the model as a Hugging Face folder: model.safetensors, config.json, and the tokenizer's files.
    LoRA is merged for it and unmerged again, also after an error. source_directory: the base's folder, of which the others
    come. Raises ValueError for a model with adapters or a prefix, which have no place in transformers' models."""
    directory, source_directory = Path(directory), Path(source_directory)
    updates = lora_layers(model)
    added = [name for name, _ in model.named_parameters()
             if not is_base(model, name) and not is_of_head(model, name) and ".lora_" not in name]
    if added:
        raise ValueError(f"the model has '{added[0]}', which no transformers model has: only LoRA and methods that change "
                         "the base's own weights can be merged")
    if directory.resolve() == source_directory.resolve():
        raise ValueError(f"{directory} is the base's own folder: give another one")
    to_merge = updates and not any(layer.merged for layer in updates.values())
    directory.mkdir(parents=True, exist_ok=True)
    if to_merge:
        merge(model)
    try:
        write_safetensors({name: parameter.detach() for name, parameter in model.named_parameters() if ".lora_" not in name},
                          directory / "model.safetensors", metadata={"format": "pt"})
    finally:
        if to_merge:
            unmerge(model)
    for name in TOKENIZER_FILES:
        if (source_directory / name).is_file():
            shutil.copyfile(source_directory / name, directory / name)
    write_json(merged_config(model, source_directory), directory / "config.json")


def merged_config(model: nn.Module, source_directory: Path) -> dict:
    """The base's config.json, for a model with a head and fp32 weights."""
    content = read_json(source_directory / "config.json") | {"torch_dtype": "float32"}
    if model.head is None:
        return content | {"architectures": [f"{type(model).__name__}LMHeadModel"]}       # transformers' names
    labels = model.config.num_labels
    content |= {"architectures": [type(model).__name__.replace("Classifier", "ForSequenceClassification")]}
    if len(content.get("id2label") or ()) != labels:                         # transformers counts the labels by their names
        names = [f"LABEL_{index}" for index in range(labels)]
        content |= {"id2label": {str(index): name for index, name in enumerate(names)},
                    "label2id": {name: index for index, name in enumerate(names)}}
    return content


def export_loralib(model: nn.Module, file: str | Path) -> None:
    """Write the LoRA matrices and the head under loralib's names: FILE.safetensors, or else by torch.save, which is what
    loralib's users load. The file holds no alpha: it is the lora_alpha of loralib's layers."""
    tensors, file = loralib_tensors(adapter_of(model)), Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        write_safetensors(tensors, file)
    else:
        with written_whole(file) as target:
            torch.save({name: tensor.clone() for name, tensor in tensors.items()}, target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.py", description="Write a base with its adapter for other programs.")
    parser.add_argument("--model", required=True, help="the base: gpt2, roberta-base, ... or a model folder")
    parser.add_argument("--adapter", required=True, help="our folder or PEFT's, the authors' file or loralib's")
    parser.add_argument("--alpha", type=float, help="for a file that holds none")
    parser.add_argument("--format", default="merged", choices=["merged", "peft", "loralib"])
    parser.add_argument("--out", required=True, type=Path, help="a folder; for loralib a .pt, .bin or .safetensors file")
    parser.add_argument("--weights-dir", help="folder of model folders (default: $LORA_WEIGHTS, else a cache folder)")
    options = parser.parse_args(arguments)
    directory = fetch_model(options.model, options.weights_dir)
    _, config = read_config(directory, FAMILIES)
    adapter, _ = read_trained(options.adapter, config)
    model = load_pretrained(directory, num_labels=adapter.num_labels)
    method = load_trained(model, options.adapter, options.alpha)
    if options.format != "merged" and method != "lora":
        raise ValueError(f"{options.adapter}: is of method '{method}'; {options.format} has a format for LoRA alone")
    if options.format == "merged":
        export_merged(model, options.out, directory)
    elif options.format == "peft":
        save_adapter(model, options.out, options.model, adapter.task or "")
    else:
        export_loralib(model, options.out)
    if method == "lora":
        settings = lora_settings(model)
        method += f", rank {settings.rank}, alpha {settings.alpha:g}"
    print(f"wrote {options.out}: {method}, format {options.format}")
    return 0


if __name__ == "__main__":
    cli.run(main)
