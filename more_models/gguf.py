"""GGUF, llama.cpp's file of a model with its tokenizer, read once into a Hugging Face folder:

    python -m more_models.gguf FILE.gguf DIR        then DIR is a model as any other: --model DIR

A file is a header of counts, metadata by key, a table of tensors, and their bytes, each tensor's aligned; all little-endian
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Every count, length, type and offset is compared with the file
before it is used. Blocks of 32 numbers x are stored as

    Q8_0    d, 32 of 8 bits q            x = d q
    Q4_1    d, m, 32 of 4 bits q         x = d q + m          the first 16 are the low halves of the 16 bytes

and become fp32. Left out: other formats of numbers, files in parts, architectures other than llama, tokenizers other than
byte-level BPE, chat templates. Shapes: as PyTorch has them; a file names the last dimension first.
"""
import math
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from files import cli
from files.pretrained import check_config
from files.text import shorten, write_json
from files.tokenizer_json import DIGITS_APART
from files.vocabulary import rank_tokens
from files.weights import check_finite, refuse_pointer, write_safetensors
from more_models.llama import Llama, LlamaConfig

NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9                                                         # the other types of a value in the metadata
FORMATS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}     # a block's numbers and bytes
OTHER_FORMATS = {2: "Q4_0", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
                 15: "Q8_K", 30: "BF16"}
DAMAGED = "truncated or damaged; fetch the file again"


@dataclass(frozen=True)
class Stored:
    """A tensor as it stands in the file: format by FORMATS, its bytes from `begin` to `end`."""
    format: int
    shape: tuple[int, ...]
    begin: int
    end: int


# ---------------------------------------------------------------- the header

class Reader:
    """Takes values off the front of a file, each checked against what is left of it."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0
        with open(path, "rb") as file:
            self.size = path.stat().st_size
            if self.size < 24 or file.read(4) != b"GGUF":
                refuse_pointer(path)
                raise ValueError(f"{path}: {self.size} bytes, not a GGUF file: expected one that begins with GGUF")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, size: int, what: str) -> bytes:
        if size > self.size - self.position:
            raise ValueError(f"{self.path}: {what} needs {size} bytes from {self.position} on, the file has {self.size}: "
                             f"{DAMAGED}")
        self.position += size
        return self.data[self.position - size:self.position]

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        values = np.frombuffer(self.take(count * np.dtype(NUMBERS[kind]).itemsize, what), dtype=NUMBERS[kind])
        if kind == 7 and (values.view("u1") > 1).any():
            raise ValueError(f"{self.path}: {what} is neither true nor false: {DAMAGED}")
        return values

    def number(self, kind: int, what: str) -> int | float | bool:
        return self.numbers(kind, 1, what)[0].item()

    def string(self, what: str) -> str:
        content = self.take(self.number(10, f"the length of {what}"), what)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is {content[:40]!r}, expected UTF-8: {DAMAGED}") from None

    def value(self, what: str) -> object:
        """A number, a string, an array of numbers or a list of strings."""
        kind = self.number(4, f"the type of {what}")
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            self.check_kind(kind, what)
            return self.number(kind, what)
        kind, count = self.number(4, f"the type of {what}"), self.number(10, f"the count of {what}")
        if kind != STRING:
            self.check_kind(kind, what)
            return self.numbers(kind, count, what)
        if count > (self.size - self.position) // 8:                         # the least that a string takes
            raise ValueError(f"{self.path}: {what} has {count} strings, more than the file: {DAMAGED}")
        return [self.string(what) for _ in range(count)]

    def check_kind(self, kind: int, what: str) -> None:
        if kind not in NUMBERS:
            raise ValueError(f"{self.path}: {what} is of type {kind}, expected a number, a string or a list of them: {DAMAGED}")


def read_header(path: Path) -> tuple[dict[str, object], dict[str, Stored], mmap.mmap]:
    """Metadata by key, tensors by name, and the file's bytes. Raises ValueError for what is no whole GGUF file."""
    reader = Reader(path)
    reader.take(4, "the first word")
    version = reader.number(4, "the version")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}, expected 2 or 3, little-endian; convert the model anew")
    n_tensors, n_values = reader.number(10, "the count of tensors"), reader.number(10, "the count of metadata")
    if 24 * n_tensors + 13 * n_values > reader.size:                         # the least that they take
        raise ValueError(f"{path}: {reader.size} bytes, but {n_tensors} tensors and {n_values} values in its header: {DAMAGED}")
    metadata: dict[str, object] = {}
    for _ in range(n_values):
        key = reader.string("a key of the metadata")
        if key in metadata:
            raise ValueError(f"{path}: the key {shorten(key)} stands twice: {DAMAGED}")
        metadata[key] = reader.value(shorten(key))
    entries = [read_entry(reader) for _ in range(n_tensors)]
    alignment = setting(metadata, "general.alignment", int, path, 32)
    if not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise ValueError(f"{path}: general.alignment is {alignment}, expected a multiple of 8: {DAMAGED}")
    return metadata, place_tensors(entries, alignment, reader), reader.data


def read_entry(reader: Reader) -> tuple[int, str, int, tuple[int, ...]]:
    """Offset, name, format and shape of a tensor. Raises ValueError for a format that is not known here, by its name."""
    name = reader.string("a tensor's name")
    n_dims = reader.number(4, f"the dimensions of {shorten(name)}")
    if not 1 <= n_dims <= 4:
        raise ValueError(f"{reader.path}: tensor {shorten(name)} has {n_dims} dimensions, expected 1 to 4: {DAMAGED}")
    shape = tuple(reader.number(10, f"the shape of {shorten(name)}") for _ in range(n_dims))[::-1]
    kind, offset = (reader.number(code, f"the place of {shorten(name)}") for code in (4, 10))
    if kind not in FORMATS:
        known = ", ".join(format_name for format_name, _, _ in FORMATS.values())
        raise ValueError(f"{reader.path}: tensor {shorten(name)} is stored as {OTHER_FORMATS.get(kind, f'type {kind}')}, this "
                         f"reader knows {known}: take a file of these, such as Q8_0")
    if not all(1 <= size < 1 << 32 for size in shape) or shape[-1] % FORMATS[kind][1]:
        raise ValueError(f"{reader.path}: tensor {shorten(name)} has shape {list(shape)}, expected sizes from 1, the last a "
                         f"multiple of {FORMATS[kind][1]} for {FORMATS[kind][0]}: {DAMAGED}")
    return offset, name, kind, shape


def place_tensors(entries: list[tuple[int, str, int, tuple[int, ...]]], alignment: int, reader: Reader) -> dict[str, Stored]:
    """The tensors with their places in the file, in which they stand end to end, each aligned. Raises ValueError for an
    overlap, a gap, a name twice, and a file that ends too early or too late."""
    def align(position: int) -> int:
        return -(-position // alignment) * alignment
    start, position, tensors = align(reader.position), 0, {}
    for offset, name, kind, shape in sorted(entries):
        _, numbers, size = FORMATS[kind]
        if offset != align(position) or name in tensors:
            raise ValueError(f"{reader.path}: tensor {shorten(name)} stands at {offset} of the data, expected each name once, "
                             f"this at {align(position)}: {DAMAGED}")
        position = offset + math.prod(shape) // numbers * size
        tensors[name] = Stored(kind, shape, start + offset, start + position)
    if not start + position <= reader.size <= start + align(position):
        raise ValueError(f"{reader.path}: {reader.size} bytes, but its header describes {start + position}: {DAMAGED}")
    return tensors


def setting(metadata: dict[str, object], key: str, kind: type, path: Path, default: object = None):
    """A value of the metadata. Raises ValueError for one that is missing, unless there is a default, or of another type."""
    value = metadata.get(key, default)
    if type(value) is not kind:
        found = "is missing" if value is None else f"is {str(value)[:60]!r}"
        raise ValueError(f"{path}: {key} {found}, expected a value of type {kind.__name__}")
    return value


# ---------------------------------------------------------------- tensors

def dequantise(stored: Stored, data: mmap.mmap) -> Tensor:
    """The numbers of a tensor in fp32."""
    def fp32(numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers.astype(np.float32))

    def scales(start: int) -> Tensor:                                        # d or m, (blocks, 1)
        return fp32(blocks[:, start:start + 2].copy().view("<f2"))
    name, _, size = FORMATS[stored.format]
    raw = np.frombuffer(data, dtype=np.uint8, count=stored.end - stored.begin, offset=stored.begin)
    blocks = raw.reshape(-1, size)
    if name == "Q8_0":
        numbers = scales(0) * fp32(blocks[:, 2:].view(np.int8))
    elif name == "Q4_1":
        numbers = scales(0) * fp32(np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)) + scales(2)
    else:
        numbers = fp32(raw.view("<f4" if name == "F32" else "<f2"))
    return numbers.view(stored.shape)


NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
NAMES_IN_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
                  "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
                  "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hugging_face_name(name: str, path: Path) -> str:
    """Our name of a tensor. Raises ValueError where we have none."""
    found = re.fullmatch(r"(?:blk\.(0|[1-9]\d*)\.)?(\w+)\.weight", name, re.ASCII)
    block, part = found.groups() if found else (None, None)
    names = NAMES if block is None else NAMES_IN_BLOCK
    if part not in names:
        raise ValueError(f"{path}: tensor {shorten(name)} is none of a llama's, or changes what it computes")
    return f"{names[part]}.weight" if block is None else f"model.layers.{block}.{names[part]}.weight"


def halves_apart(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbouring rows of q and k by rotary positions, where the Hugging Face files have a head's first half
    and its second: (heads D, C) with its rows put back."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


# ---------------------------------------------------------------- config.json and the tokenizer

def read_settings(metadata: dict[str, object], tied: bool, path: Path) -> LlamaConfig:
    """The configuration that the metadata describe. Raises ValueError for a model that is not computed here."""
    architecture = setting(metadata, "general.architecture", str, path)
    if architecture != "llama":
        raise ValueError(f"{path}: general.architecture is {shorten(architecture)}, expected 'llama'")
    if (scaling := setting(metadata, "llama.rope.scaling.type", str, path, "none")) != "none":
        raise ValueError(f"{path}: llama.rope.scaling.type is {shorten(scaling)}, this model computes none only")

    def number(key: str, kind: type = int, default: float | None = None):
        return setting(metadata, f"llama.{key}", kind, path, default)
    hidden, heads, theta = number("embedding_length"), number("attention.head_count"), number("rope.freq_base", float, 10_000.0)
    config = LlamaConfig(
        vocab_size=len(setting(metadata, "tokenizer.ggml.tokens", list, path)), hidden_size=hidden,
        max_position_embeddings=number("context_length"), intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"), num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", default=heads),
        head_dim=number("attention.key_length", default=hidden // max(1, heads)), tie_word_embeddings=tied,
        rope_theta=int(theta) if theta.is_integer() else theta,
        rms_norm_eps=number("attention.layer_norm_rms_epsilon", float))
    check_config(config, path)
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, default=config.head_dim) != config.head_dim:
            raise ValueError(f"{path}: llama.{key} is {number(key)}, expected {config.head_dim}, as keys have it")
    return config


def tokenizer_files(metadata: dict[str, object], path: Path) -> tuple[dict, dict, dict[str, int]]:
    """tokenizer.json, tokenizer_config.json, and the ids of special tokens for config.json. Raises ValueError for another
    tokenizer than byte-level BPE as GPT-2 has it, or with digits apart as SmolLM has."""
    kind, cut = (setting(metadata, f"tokenizer.ggml.{key}", str, path) for key in ("model", "pre"))
    if kind != "gpt2" or cut not in ("gpt-2", "smollm"):
        raise ValueError(f"{path}: its tokenizer is {shorten(kind)}, cutting texts as {shorten(cut)}; expected the byte-level "
                         "BPE 'gpt2', as 'gpt-2' or 'smollm'")
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if setting(metadata, f"tokenizer.ggml.{key}", bool, path, False):
            raise ValueError(f"{path}: tokenizer.ggml.{key} is true, which is not supported")
    tokens, merges = (setting(metadata, f"tokenizer.ggml.{key}", list, path) for key in ("tokens", "merges"))
    types = setting(metadata, "tokenizer.ggml.token_type", np.ndarray, path).tolist()
    if len(set(tokens)) < len(tokens) or len(types) != len(tokens) or not set(types) <= {1, 3, 4, 5}:
        raise ValueError(f"{path}: {len(tokens)} tokens, {len(set(tokens))} of them different, of {len(types)} types; expected "
                         f"each once and of a type, 1 normal, 3 control, 4 user-defined, 5 unused: {DAMAGED}")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    rank_tokens(vocabulary, dict(enumerate(merges, 1)), path, f"{path}, merge")          # or a refusal
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    before = {"type": "Sequence", "pretokenizers": [DIGITS_APART, byte_level]} if cut == "smollm" else byte_level
    added = [{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": types[number] != 4} for number, token in enumerate(tokens) if types[number] != 1]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
             "pre_tokenizer": before, "post_processor": None, "decoder": byte_level,
             "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                       "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                       "vocab": vocabulary, "merges": merges}}
    ids = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        if (number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            if type(number) is not int or not 0 <= number < len(tokens):
                raise ValueError(f"{path}: tokenizer.ggml.{key}_token_id is {str(number)[:60]!r}, expected an id below "
                                 f"{len(tokens)}: {DAMAGED}")
            ids[role] = number
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
                **{f"{role}_token": tokens[number] for role, number in ids.items()}}
    return whole, settings, {f"{role}_token_id": number for role, number in ids.items() if role != "unk"}


# ---------------------------------------------------------------- from file to folder

def convert(path: Path, directory: Path) -> str:
    """Write the model of a GGUF file as a Hugging Face folder; returns what was written, in a line. config.json comes last, so
    that a folder with one is complete. Raises ValueError for a file that is not as it should be, and for a folder that has a
    config.json already."""
    if (directory / "config.json").exists():
        raise ValueError(f"{directory} holds a model already: give another folder, or delete this one")
    metadata, stored, data = read_header(path)
    names = {hugging_face_name(name, path): name for name in stored}
    config = read_settings(metadata, "lm_head.weight" not in names, path)
    whole, settings, ids = tokenizer_files(metadata, path)
    with torch.device("meta"):
        wanted = {name: tuple(parameter.shape) for name, parameter in Llama(config).named_parameters()}
    for name in sorted(wanted.keys() | names.keys()):
        found = stored[names[name]].shape if name in names else None
        if found != wanted.get(name):
            raise ValueError(f"{path}: tensor {shorten(names.get(name, name))} has shape {found}, the metadata ask for "
                             f"{wanted.get(name)}: {DAMAGED}")
    tensors = {}
    for name, in_file in names.items():
        tensors[name] = dequantise(stored[in_file], data)
        for part, heads in (("q_proj", config.num_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensors[name] = halves_apart(tensors[name], heads).contiguous()
    check_finite(tensors, path)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, directory / "model.safetensors", {"format": "pt"})
    write_json(whole, directory / "tokenizer.json")
    write_json(settings, directory / "tokenizer_config.json")
    sizes = {field: getattr(config, field) for field in (
        "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")}
    write_json({"architectures": [Llama.architecture], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
                "rope_theta": float(config.rope_theta), "rope_scaling": None, **sizes, **ids}, directory / "config.json")
    formats = ", ".join(sorted({FORMATS[tensor.format][0] for tensor in stored.values()}))
    return (f"wrote {directory}: {len(tensors)} tensors ({formats}) as fp32, "
            f"{sum(tensor.numel() for tensor in tensors.values()):,} parameters, {config.vocab_size:,} tokens")


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser("-m more_models.gguf", "FILE DIR", "Read a GGUF file into a Hugging Face folder.")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("directory", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    print(convert(options.file, options.directory))
    return 0


if __name__ == "__main__":
    cli.run(main)
