"""Tokenised data, kept by content: reading a task again costs as little as reading its numbers.

A file under the user's cache folder holds the samples of one split. Its name is a hash of everything they follow from:
the data file's bytes, the tokenizer's files, the settings, and the code that reads and tokenises. So nothing is ever out
of date, and nobody has to clear anything; deleting the folder is harmless. A file that is damaged is made again.

Left out: data that does not fit in memory.
"""
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kept import cache_dir, file_to_keep
from tokenizer import Tokenizer
from weight_files import collector_paused

CODE = ("data.py", "tasks.py", "tokenizer.py", "token_cache.py")             # what reads and tokenises
Sample = tuple[list[int], float]                                             # token ids; context length, class or score


def cached_samples(build: Callable[[], tuple[list[Sample], int]], path: Path, tokenizer: Tokenizer,
                   settings: Sequence) -> tuple[list[Sample], int]:
    """What build() returns, samples and a count, from the cache if it was built before.

    path: the data file that it reads. settings: everything else that its result depends on. A cache that cannot be
    written is no error.
    """
    digest = hashlib.sha256(repr((tokenizer.fingerprint, list(settings), np.__version__, version("tiktoken"))).encode())
    for source in (Path(path), *(Path(__file__).with_name(name) for name in CODE)):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    file = cache_dir() / "tokens" / f"{digest.hexdigest()}.npz"
    try:
        with collector_paused():
            return read_samples(file)
    except Exception:                                                        # not there, or damaged: zip has many ways
        samples, count = build()
        with contextlib.suppress(OSError), file_to_keep(file) as new:
            write_samples(new, samples, count)
        return samples, count


def read_samples(file: Path) -> tuple[list[Sample], int]:
    with np.load(file, allow_pickle=False) as arrays:                        # zip checks what it reads against its CRC
        ids, ends = memoryview(arrays["ids"]), [0, *arrays["ends"].tolist()]
        seconds, count = arrays["seconds"].tolist(), int(arrays["count"])
    if len(ends) != len(seconds) + 1 or ends[-1] != len(ids):
        raise ValueError(f"{file}: {len(ids)} ids, but its samples end at {ends[-1]}")
    return [(ids[start:end].tolist(), second) for (start, end), second in zip(pairwise(ends), seconds, strict=True)], count


def write_samples(file: BinaryIO, samples: list[Sample], count: int) -> None:
    np.savez(file, ids=np.array([token for ids, _ in samples for token in ids], dtype=np.int32),
             ends=np.cumsum([len(ids) for ids, _ in samples]), seconds=np.array([second for _, second in samples]), count=count)
