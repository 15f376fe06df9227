"""The folder of a pretrained model, checked: what its config.json says, and tensors that fit the model built from it.

model.py builds the model; here stands what can be wrong with the files. A family of models says of itself, in attributes of
its class, what this needs to know: config_class, prefix (of its tensors' names), head (the prefix of the task head's, or
None), of_task (of what of the head no pretrained file has), renamed (the names of layers in files -> in the model), tied (the
layer whose weight may stand for the token embedding, the first of its tensors), ignored (names that nothing is computed with)
and required (settings under which it computes what the files mean).
Left out: reading the bytes (weights.py), and names that must be downloaded (download.py).
"""
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from files.bases import MORE_MODELS
from files.head import fit_head
from files.model_config import BertFields
from files.published import find_model
from files.special_tokens import read_settings
from files.text import read_json
from files.weights import FLOATS, check_finite, read_weights
from files.wordpiece import read_wordpiece

OLDEST = "bert"                                                             # its first config.json had no model_type
LIMITS = {"n_layer": 1000, "num_hidden_layers": 1000, "num_labels": 100_000}  # before anything is built from a file's word


def find_folder(name_or_directory: str | Path) -> Path:
    """The folder of a model that is found locally. Raises FileNotFoundError with what to do."""
    directory = find_model(name_or_directory)
    if directory is None:
        raise FileNotFoundError(f"no model '{name_or_directory}': neither a folder with config.json nor a model in the "
                                f"cache; fetch it with `python data.py {name_or_directory}` or give its folder "
                                "(`make demo` needs no download)")
    return directory


# ---------------------------------------------------------------- config.json

def read_config(directory: Path, families: dict[str, type], num_labels: int | None = None, dropout: float | None = None):
    """(model_type, configuration) of a folder, with num_labels and dropout in place of its own where they are given.
    families: the models that there are, by model_type. Raises ValueError for another, or one that computes otherwise."""
    content = read_json(directory / "config.json")
    kind = content.get("model_type")
    if "model_type" not in content and "type_vocab_size" in content and OLDEST in families:
        print(f"{directory / 'config.json'}: no model_type; taken for a {OLDEST}, as there was no other yet", file=sys.stderr)
        kind = OLDEST
    if isinstance(kind, str) and kind in MORE_MODELS:                        # a file of our own, which adds its family
        importlib.import_module(f"more_models.{kind}")
    if not isinstance(kind, str) or kind not in families:
        raise ValueError(f"{directory / 'config.json'}: model_type is {kind!r}, expected one of {', '.join(families)}")
    content = getattr(families[kind], "plain_settings", dict)(content)
    for key, value in families[kind].required.items():
        if content.get(key, value) != value:
            raise ValueError(f"{directory / 'config.json'}: {key} is {content[key]!r}, this model computes {value!r} only")
    if families[kind].head is not None:
        names = content.get("id2label")
        content["num_labels"] = num_labels or (len(names) if isinstance(names, dict) else 0) or content.get("num_labels", 2)
    if dropout is not None:
        content.update(embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
                       hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config_class = families[kind].config_class
    if "sep_token_id" in {field.name for field in fields(config_class)}:
        content["sep_token_id"] = separator_of(directory, content)
    config = config_class(**{f.name: content[f.name] for f in fields(config_class) if f.name in content})
    check_config(config, directory / "config.json")
    return kind, config


def separator_of(directory: Path, content: dict) -> int:
    """The id that ends the first text of a pair: config.json's, else the tokenizer's, else the field's default, which a line on
    stderr says where the vocabulary is so large that it matters."""
    settings, usual = read_settings(directory) | {"config.json": content}, BertFields.sep_token_id
    if content.get("sep_token_id") is not None:
        return content["sep_token_id"]
    if any((directory / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return read_wordpiece(directory, settings).eos_id
    if content.get("vocab_size", BertFields.vocab_size) > usual:
        print(f"{directory}: no tokenizer; the token {usual} is taken for the [SEP] that ends the first text of a pair",
              file=sys.stderr)
    return usual


def check_config(config, source: Path) -> None:
    """Raises ValueError for a setting that no model can have, before any memory is taken for it."""
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if name.endswith(("_pdrop", "_prob", "_epsilon", "_eps", "_range")):
            fits, expected = type(value) in (int, float) and 0 <= value < 1, "a number from 0 to below 1"
        elif value is None and name == "n_inner" or type(value) is field.type is bool:
            continue
        else:
            least, most = 0 if name.endswith("_token_id") else 1, LIMITS.get(name, 10_000_000)
            fits, expected = type(value) is int and least <= value <= most, f"a whole number from {least} to {most:,}"
        if not fits:
            raise ValueError(f"{source}: {name} is {str(value)[:60]!r}, expected {expected}")
    for problem in getattr(config, "problems", ()):
        raise ValueError(f"{source}: {problem}")
    if config.hidden_size % config.num_heads:
        raise ValueError(f"{source}: {config.num_heads} heads cannot share {config.hidden_size} numbers evenly")
    if not getattr(config, "pad_token_id", 0) < config.vocab_size or config.longest_input < 1:
        raise ValueError(f"{source}: pad_token_id is {config.pad_token_id}, expected a token and a position before the last")


# ---------------------------------------------------------------- tensors

# What programs put between the parts of a name: DDP, torch.compile, FSDP, PEFT, and a module that holds the model.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_model", "base_layer", "model"}
FORMER_NAMES = {"gamma": "weight", "beta": "bias"}                           # LayerNorm's, as in TensorFlow


def plain_name(name: str, family: type) -> str:
    """A tensor's name in our model, by its name in any file: without wrappers, wherever they stand, and with the prefix that a
    file of the bare model leaves out."""
    *parents, last = name.split(".")
    name = ".".join([*(part for part in parents if part not in WRAPPERS), FORMER_NAMES.get(last, last)])
    if not name.startswith((family.prefix, family.head or family.prefix, "lm_head.")):
        name = family.prefix + name
    layer, _, last = name.rpartition(".")
    return f"{family.renamed.get(layer, layer)}.{last}"


def file_name(name: str, family: type) -> str:
    """The way back: a tensor's name in the family's files, by its name in our model."""
    layer, _, last = name.rpartition(".")
    return f"{ {ours: its for its, ours in family.renamed.items()}.get(layer, layer)}.{last}"


def names_in_file(stored: dict[str, Tensor], family: type, source: Path) -> dict[str, str]:
    """Our name of each tensor of a file -> the file's. Raises ValueError for LoRA matrices, and two tensors of one name."""
    names: dict[str, str] = {}
    for name in stored:
        ours = plain_name(name, family)
        if ".lora_" in name:
            raise ValueError(f"{source}: holds '{name}', an update that is not merged: merge it with PEFT (merge_and_unload) "
                             "and save the model again")
        if ours in names:
            raise ValueError(f"{source}: '{names[ours]}' and '{name}' are both '{ours}' of this model, expected it once; save "
                             "the state dict of one model")
        names[ours] = name
    return names


def short_name(path: str) -> str:
    """gpt2: of openai-community/gpt2, of a folder's path, and of the hub cache's models--openai-community--gpt2/..."""
    in_cache = re.search(r"models--([^/\\]+)", path)
    return re.split(r"--" if in_cache else r"[/\\]", in_cache[1] if in_cache else path.rstrip("/\\"))[-1].lower()


def tie(names: dict[str, str], stored: dict[str, Tensor], model: nn.Module, source: Path) -> None:
    """Let the output layer's weight stand for a token embedding that the file lacks: in `names`, our name -> the file's.
    Raises ValueError where a file has both and a language model's two differ."""
    embedding, output = next(iter(model.state_dict())), f"{model.tied}.weight"
    if embedding not in names and output in names:
        names[embedding] = names.pop(output)
    elif model.head is None and output in names and not torch.equal(stored[names[output]], stored[names[embedding]]):
        raise ValueError(f"{source}: '{names[output]}' differs from the token embedding; only tied heads load")


def read_base(directory: Path, model: nn.Module, seed: int, classes: int | Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a folder's weight file as fp32, under the names of `model`; a line on stderr says what was read. A head
    that the file lacks, or that has not these classes (head.py), starts fresh from `seed`; model.fresh is the prefix of what
    did. model.known_as becomes the folder's name, and config.json's where it has one. Raises ValueError for what does not fit
    the model exactly."""
    stored, file = read_weights(directory)
    source = directory / file
    names = names_in_file(stored, type(model), source)
    tie(names, stored, model, source)
    names = {ours: name for ours, name in names.items() if not model.ignored.fullmatch(ours)}
    tensors = {ours: stored[name] for ours, name in names.items()}
    of_head = fit_head(tensors, model.head, model.of_task, classes, directory) if model.head else ""
    fresh = next((part for part in (model.head, model.of_task) if part and not any(name.startswith(part) for name in tensors)),
                 None)                                                       # the prefix of what the file lacks
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not (fresh and name.startswith(fresh))}
    check_names(tensors, wanted, names, source)
    check_finite(tensors, source)
    stored_as = "/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    if fresh:
        tensors |= fresh_head(model, fresh, seed)
    count = sum(tensor.numel() for tensor in tensors.values())
    report = f"loaded {source}: {len(names)} tensors ({stored_as}), {len(stored) - len(names)} ignored, {count:,} parameters"
    if fresh:
        what = "fresh head" if fresh == model.head else "the file's pooler, and a fresh layer behind it"
        report += f"{of_head or '; no classifier in the file'}: {what} for {model.config.num_labels} labels, seed {seed}"
    else:
        report += of_head
    print(report, file=sys.stderr)
    own_name = str(read_json(directory / "config.json").get("_name_or_path") or "")
    model.fresh = fresh
    model.known_as = (short_name(str(directory.absolute())), *([short_name(own_name)] if own_name else []))
    return {name: tensor.float() for name, tensor in tensors.items()}


def check_names(tensors: dict[str, Tensor], wanted: dict[str, Tensor], names: dict[str, str], source: Path) -> None:
    """Raises ValueError that names the first tensor that is missing, unexpected, misshapen or no number; names: in the file."""
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        found = [f"{len(those)} {word} (first: '{those[0]}')" for word, those in
                 (("tensors missing", missing), ("unexpected", sorted(map(names.get, extra)))) if those]
        raise ValueError(f"{source}: {' and '.join(found)}; expected the {len(wanted)} tensors of the model that "
                         f"config.json describes{depth_advice(missing + extra, wanted)}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{source}: tensor '{names[name]}' has shape {list(tensor.shape)}, config.json asks for "
                             f"{list(wanted[name].shape)}: use the weights and the config of one model")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{source}: tensor '{names[name]}' is {tensor.dtype}, expected fp32, fp16 or bf16 weights")


def depth_advice(names: list[str], wanted: dict[str, Tensor]) -> str:
    """What to do about tensors of these names, too few or too many: if only the number of blocks differs, the config is another
    model's."""
    of_blocks = {re.sub(r"\d+", "0", name) for name in wanted if re.search(r"\.\d+\.", name)}
    return (": use the weights and the config of one model" if {re.sub(r"\d+", "0", name) for name in names} <= of_blocks else
            ": these are weights of another kind of model, or a part of them; put this model's whole file there")


def fresh_head(model: nn.Module, prefix: str, seed: int) -> dict[str, Tensor]:
    """An untrained task head, or what of it has this prefix, for a model on any device: weights N(0, initializer_range), biases
    0."""
    generator, std = torch.Generator().manual_seed(seed), model.config.initializer_range
    return {name: torch.empty(parameter.shape).normal_(0.0, std, generator=generator) if name.endswith("weight") else
            torch.zeros(parameter.shape) for name, parameter in model.named_parameters() if name.startswith(prefix)}
