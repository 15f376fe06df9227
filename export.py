"""Take a trained adapter elsewhere: a merged model for transformers, an adapter for PEFT, a state dict for loralib.

    python export.py --model M --adapter A --out DIR                     a Hugging Face folder with the update in its weights
    python export.py --model M --adapter A --out DIR --format peft
    python export.py --model M --adapter A --out FILE.pt --format loralib

A: whatever adapters/ reads; so this also turns the authors' files into PEFT's and the other way round. Methods
that change the base's weights alone (full, last-layers, bitfit) export as a merged model like LoRA; adapters and prefixes
are modules that transformers does not have. A merged model is in fp32, whatever its base was stored in: in bf16 most of a
small update is rounded away. Left out: half precision, and PEFT folders for the methods that are not LoRA.
"""
import shutil
from pathlib import Path

import torch
from torch import nn

from adapters import save_adapter
from adapters.loralib import loralib_tensors
from adapters.saving import adapter_of
from data import GLUE_TASKS
from files import cli
from files.pretrained import file_name, read_config
from files.published import fetch_model
from files.text import read_json, write_json
from files.weights import write_safetensors
from files.writing import written_whole
from lora import is_base, lora_layers, lora_settings, merge, unmerge
from methods import load_trained, read_trained
from methods.apply import is_of_head
from model import FAMILIES, load_pretrained

COPIED = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json", "generation_config.json")
WRITTEN = ("model.safetensors", "config.json", "adapter_model.safetensors", "adapter_config.json", *COPIED)


def export_merged(model: nn.Module, directory: str | Path, source_directory: str | Path, task: str | None = None,
                  form: dict | None = None) -> None:
    """Write the model as a Hugging Face folder: model.safetensors, config.json, and what is copied from the base.
    LoRA is merged for it and unmerged again, also after an error. source_directory: the base's folder.
    task, form: whose classes the head has, as in Adapter. Raises ValueError for a model with adapters or a prefix, which have
    no place in transformers' models, and for one whose weights are held in bf16."""
    directory, source_directory = Path(directory), Path(source_directory)
    check_mergeable(model)
    if directory.resolve() == source_directory.resolve():
        raise ValueError(f"{directory} is the base's own folder: give another one")
    updates = lora_layers(model)
    to_merge = updates and not any(layer.merged for layer in updates.values())
    directory.mkdir(parents=True, exist_ok=True)
    if to_merge:
        merge(model)
    try:
        write_safetensors({file_name(name, type(model)): parameter.detach() for name, parameter in model.named_parameters()
                           if ".lora_" not in name}, directory / "model.safetensors", metadata={"format": "pt"})
    finally:
        if to_merge:
            unmerge(model)
    for name in COPIED:
        if (source_directory / name).is_file():
            shutil.copyfile(source_directory / name, directory / name)
    write_json(merged_config(model, source_directory, task, form), directory / "config.json")


def check_mergeable(model: nn.Module) -> None:
    """Raises ValueError like export_merged, for what the model is."""
    added = [name for name, _ in model.named_parameters()
             if not is_base(model, name) and not is_of_head(model, name) and ".lora_" not in name]
    if added:
        raise ValueError(f"the model has '{added[0]}', which no transformers model has: only LoRA and methods that change "
                         "the base's own weights can be merged")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ValueError("the model's weights are held in bf16, in which merging rounds the update: load the base again, which "
                         "gives fp32, and put the adapter onto it")


def merged_config(model: nn.Module, source_directory: Path, task: str | None, form: dict | None) -> dict:
    """The base's config.json, for what is written: fp32 weights, and a head with the classes of the task. Where the task is not
    known, the names of the classes are the base's if it has as many, else numbers."""
    content = read_json(source_directory / "config.json")
    content |= {"dtype": "float32", "torch_dtype": "float32", "model_type": model.config.family}     # dtype: from 4.56 on
    if model.head is None:
        return content | {"architectures": [getattr(model, "architecture", f"{type(model).__name__}LMHeadModel")]}
    numbers, names = [str(index) for index in range(model.config.num_labels)], content.get("id2label")
    if form or task in GLUE_TASKS:
        labels = form["labels"] if form else GLUE_TASKS[task].labels
        names = {str(index): name for index, name in enumerate(labels or ("score",))}
        content["problem_type"] = "single_label_classification" if labels else "regression"
    if not isinstance(names, dict) or sorted(names) != sorted(numbers):
        names = {number: f"LABEL_{number}" for number in numbers}            # what transformers calls them
    return content | {"architectures": [type(model).__name__.replace("Classifier", "ForSequenceClassification")],
                      "num_labels": len(numbers), "id2label": {number: names[number] for number in numbers},
                      "label2id": {names[number]: int(number) for number in numbers}}


def export_loralib(model: nn.Module, file: str | Path) -> None:
    """Write the LoRA matrices and the head under loralib's names: FILE.safetensors, or else by torch.save, which is what
    loralib's users load. The file holds no alpha: it is the lora_alpha of loralib's layers."""
    tensors = {file_name(name, type(model)): tensor for name, tensor in loralib_tensors(adapter_of(model)).items()}
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        write_safetensors(tensors, file)
    else:
        with written_whole(file) as target:
            torch.save({name: tensor.clone() for name, tensor in tensors.items()}, target)


def make_room(out: Path, overwrite: bool, is_file: bool, sources: list[Path]) -> None:
    """Refuse a place where something stands already, or take away the earlier export that is to be replaced.
    Raises ValueError for what is no export, and for the folders that base and adapter come from."""
    places = [source.resolve() for source in sources]
    if out.resolve().parent in places or any(out.resolve() in (place, place.parent) for place in places):
        raise ValueError(f"{out} is where the base or the adapter comes from: give another --out")
    if not out.exists() or (out.is_dir() and not is_file and not any(out.iterdir())):
        return
    if out.is_dir() == is_file:
        raise ValueError(f"{out} is a {'folder' if is_file else 'file'}, this format is written to a "
                         f"{'file' if is_file else 'folder'}: give another --out")
    if not overwrite:
        raise ValueError(f"{out} exists already: give --overwrite to replace it, or another --out")
    strange = [] if is_file else sorted(path.name for path in out.iterdir() if path.name not in WRITTEN)
    if strange:
        raise ValueError(f"{out} holds '{strange[0]}', which no export writes, and is not replaced: give another --out")
    for path in [] if is_file else out.iterdir():                            # what one format writes, another would leave
        path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser("export.py", "--model M --adapter A --out OUT [options]", "Write a base with its adapter for other "
                        "programs.")
    taken = parser.add_argument_group("what is taken")
    taken.add_argument("--model", required=True, metavar="M", help="the base: gpt2, roberta-base, ... or a model folder")
    taken.add_argument("--adapter", required=True, metavar="A", help="our folder or PEFT's, the authors' file or loralib's")
    taken.add_argument("--alpha", type=float, metavar="X", help="for a file that holds none")
    taken.add_argument("--weights-dir", metavar="DIR", help="has model folders (default: $LORA_WEIGHTS, else a cache)")
    written = parser.add_argument_group("what is written")
    written.add_argument("--format", default="merged", choices=["merged", "peft", "loralib"])
    written.add_argument("--out", required=True, type=Path, metavar="OUT", help="a folder; loralib: a .pt, .bin or "
                         ".safetensors file")
    written.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options = parser.parse_args(arguments)
    directory = fetch_model(options.model, options.weights_dir)
    _, config = read_config(directory, FAMILIES)
    adapter, _ = read_trained(options.adapter, config)
    model = load_pretrained(directory, num_labels=adapter.num_labels)
    method = load_trained(model, options.adapter, options.alpha)
    if options.format != "merged" and method != "lora":
        raise ValueError(f"{options.adapter}: is of method '{method}'; {options.format} has a format for LoRA alone")
    if options.format == "merged":
        check_mergeable(model)
    make_room(options.out, options.overwrite, options.format == "loralib", [directory, Path(options.adapter)])
    if options.format == "merged":
        export_merged(model, options.out, directory, adapter.task, adapter.form)
    elif options.format == "peft":
        save_adapter(model, options.out, options.model, adapter.task or "", adapter.form)
    else:
        export_loralib(model, options.out)
    if method == "lora":
        settings = lora_settings(model)
        method += f", rank {settings.rank}, alpha {settings.alpha:g}"
    print(f"wrote {options.out}: {method}, format {options.format}, fp32")
    return 0


if __name__ == "__main__":
    cli.run(main)
