"""Weights, from anywhere: checked before a number of them is used, written whole or not at all.

    model.safetensors          mapped into memory: an fp32 file costs no copy, and processes share its pages
    pytorch_model.bin, .pt     pickles, opened with weights_only=True: nothing in them is run
    ...index.json              either in several files, none of them outside the folder

A file that is cut off, claims more than it holds, has overlaps or gaps, or holds NaN is an error that names file and tensor.
Left out: where a model's folder is (published.py), what the tensors mean (model.py).
"""
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from files.text import read_json, unique_keys
from files.writing import written_whole

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped (private: writing to them leaves the file alone).
    Layout: 8 bytes little-endian header length, JSON {name: {dtype, shape, data_offsets}}, then the bytes, without
    gaps. Every offset is checked against the file before it is used. Raises ValueError for a file that is not so."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        header_size = int.from_bytes(start, "little")
        if len(start) < 8 or header_size > min(size - 8, 100_000_000):
            refuse_pointer(path)
            raise ValueError(f"{path}: {size} bytes, but the header claims {header_size}: not a safetensors file, or a "
                             "truncated one; fetch it again")
        try:
            header = json.loads(file.read(header_size).decode("utf-8"), object_pairs_hook=unique_keys)
            header.pop("__metadata__", None)
            entries = sorted((tuple(entry["data_offsets"]), name, entry["dtype"], tuple(entry["shape"]))
                             for name, entry in header.items())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: the header is not a table of tensors ({error}); fetch the file again") from None
    data_size, position = size - 8 - header_size, 0
    for offsets, name, dtype, shape in entries:
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{path}: tensor '{name}' is stored as {dtype}; this reader knows {', '.join(DTYPES)}")
        if len(offsets) != 2 or len(shape) > 8 or not all(type(number) is int and 0 <= number < 1 << 62
                                                          for number in offsets + shape):
            raise ValueError(f"{path}: tensor '{name}' has offsets {offsets} and shape {shape}: expected two offsets and "
                             "at most eight whole numbers from 0; fetch the file again")
        begin, end = offsets
        if begin != position or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{path}: tensor '{name}' of {dtype} {list(shape)} stands at bytes {begin} to {end}, expected "
                             f"to begin at {position} and to fill its shape; the file is damaged, fetch it again")
        position = end
    if position != data_size:
        raise ValueError(f"{path}: {data_size} bytes of tensors, but its header describes {position}: truncated or "
                         "damaged; fetch it again")
    if not data_size:
        return {name: torch.empty(shape, dtype=DTYPES[dtype]) for _, name, dtype, shape in entries}
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + header_size:]
    tensors = {}
    for (begin, end), name, dtype, shape in entries:
        raw = data[begin:end]
        aligned = raw.storage_offset() % DTYPES[dtype].itemsize == 0
        tensors[name] = (raw if aligned else raw.clone()).view(DTYPES[dtype]).view(shape)
    return tensors


def write_safetensors(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to `path` in one step: the file appears under its name only when it is complete."""
    path, names = Path(path), {dtype: name for name, dtype in DTYPES.items()}
    header, position = ({"__metadata__": metadata} if metadata else {}), 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)                                    # keeps the tensors aligned for mapping
    with written_whole(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def check_finite(tensors: dict[str, Tensor], source: str | Path,
                 advice: str = "fetch the file again or, if it is published so, take another") -> None:
    """Raises ValueError with the name of the first tensor that holds NaN or infinite numbers."""
    for name, tensor in tensors.items():
        # The sum is finite only if all are: one pass, no copy. One that is not may have overflowed, so all are looked at then.
        # In fp32, because Apple's GPUs know no float64.
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{source}: tensor '{name}' holds {int((~tensor.isfinite()).sum())} NaN or infinite numbers of "
                             f"{tensor.numel()}, expected finite ones; {advice}")


def compare_checksums(path: Path) -> None:
    """Raises ValueError for a file of torch.save in which a checksum does not match: torch.load alone would take changed
    bytes for numbers."""
    with zipfile.ZipFile(path) as records:
        damaged = records.testzip()
    if damaged:
        raise ValueError(f"checksum of {damaged}")


def refuse_pointer(path: Path) -> None:
    """Raises ValueError for what Git LFS leaves in the place of a large file: a few lines that say where it is."""
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(f"{path}: is Git LFS's pointer to the file, not the file; get it with `git lfs pull`")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A `.bin` state dict; only tensors and plain containers are unpickled (`weights_only`), so no code can run.
    Raises ValueError for what is no such file, for one whose checksums do not match, and for tensors that are more than the
    file holds."""
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            compare_checksums(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:                                               # torch raises a different one for each fault
        refuse_pointer(path)
        if "Unsupported global" in str(error):
            raise ValueError(f"{path}: holds more than tensors, which could run code; save the state dict alone, with "
                             "torch.save(model.state_dict(), FILE)") from None
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"{path}: not a readable PyTorch state dict ({reason}); fetch it again, or use its .safetensors form"
                         ) from None
    if isinstance(tensors, dict) and isinstance(tensors.get("model_state_dict"), dict):      # the LoRA authors' checkpoints
        tensors = tensors["model_state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor)
                                                for name, tensor in tensors.items()):
        keys = f"a dict with the keys {', '.join(map(repr, [*tensors][:5]))}" if isinstance(tensors, dict) else "a " + type(
            tensors).__name__
        raise ValueError(f"{path}: holds {keys}, expected tensors by name; save the state dict alone, with "
                         "torch.save(model.state_dict(), FILE)")
    for name, tensor in tensors.items():
        # one number may stand for a thousand (stride 0), which the first copy would then fill
        if (tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized
                or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()):
            raise ValueError(f"{path}: '{name}' is no plain tensor with all its numbers in the file; save it dense, on the "
                             "CPU, and contiguous")
    return tensors


def read_weights(directory: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a model directory and the name of the file they came from, or the number of its shards.
    Raises FileNotFoundError where there are none, ValueError for files that are not what they should be."""
    for file, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickle)):
        if (directory / file).exists():
            return read(directory / file), file
        index = directory / f"{file}.index.json"
        if index.exists():
            suffix = Path(file).suffix
            shards = shard_names(index, suffix)
            return read_shards(index, shards, read), f"{len(set(shards.values()))} {suffix[1:]} shards"
    raise FileNotFoundError(f"{directory}: no model.safetensors or pytorch_model.bin, nor an index of their shards "
                            "(...index.json); put the weights of the Hugging Face model there")


def shard_names(index: Path, suffix: str) -> dict[str, str]:
    """The shard of each tensor by an index. Raises ValueError for one that leads out of the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and file == Path(file).name and file.endswith(suffix)
                                                   for file in weight_map.values()):
        raise ValueError(f"{index}: expected a weight_map from tensor names to {suffix} files of this folder")
    return weight_map


def read_shards(index: Path, weight_map: dict[str, str], read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all shards together. Raises FileNotFoundError for a shard that is missing, ValueError for one without a
    tensor that the index puts there."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index}: names {shard}, which is missing; put it there")
        tensors |= {name: tensor for name, tensor in read(index.parent / shard).items() if weight_map.get(name, shard) == shard}
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{index}: puts '{name}' into {shard}, which does not hold it; fetch both again")
    return tensors
