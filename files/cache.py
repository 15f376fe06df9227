"""Results kept on disk: what takes seconds to compute from texts that are used again, such as training data.

A result is found by its content: the file's name is a hash of everything the result depends on, which is what was read,
the code that makes it, and the version of Python, whose Unicode tables say what a letter is. So it never changes what is
returned, only when it is computed: a damaged file is replaced, and without a writable folder nothing is kept.
Left out: deleting what is old; data that does not fit in memory.
"""
import gc
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from files.writing import written_whole

Result = TypeVar("Result")
Sample = tuple[list[int], float]                                             # token ids; context length, class or score


def cache_dir() -> Path:
    """The user's folder for what is downloaded or kept, under $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora"


def folder() -> Path:
    """Where results are kept. It may be deleted at any time."""
    return cache_dir() / "kept"


def store(content: bytes, path: Path) -> None:
    """Write a file in one step; processes that make the same one each write their own. Raises OSError where none can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}")
    with written_whole(own) as file:
        file.write(content)
    os.replace(own, path)


def kept(depends_on: Iterable[bytes], compute: Callable[[], bytes], read: Callable[[bytes], Result] = bytes,
         level: int = 1) -> Result:
    """read(compute()), or read() of what compute() returned before for the same `depends_on`: what it reads, and the source of
    what it calls. level: of zlib's compression, 0 for what had better be read fast."""
    key = hashlib.sha256()
    for part in (Path(__file__).read_bytes(), sys.version.encode("utf-8"), *depends_on):
        key.update(b"%d\n" % len(part) + part)
    path = folder() / f"{key.hexdigest()[:32]}.z"
    try:
        return read(zlib.decompress(path.read_bytes()))                      # zlib compares its checksum
    except Exception:                                                        # not there, or damaged, which each read() says
        result = compute()                                                   # in its own way
    with suppress(OSError):
        store(zlib.compress(result, level), path)
    return read(result)


def kept_lines(texts: list[str], depends_on: Iterable[bytes], compute: Callable[[list[str]], list[str]]) -> list[str]:
    """compute(texts), which makes one line of each text; `depends_on` says what else the lines depend on."""
    return kept([*depends_on, b"%d texts" % len(texts), *(text.encode("utf-8", "surrogatepass") for text in texts)],
                lambda: "\n".join(compute(texts)).encode("utf-8", "surrogatepass"),
                lambda lines: lines.decode("utf-8", "surrogatepass").split("\n"))


def kept_samples(build: Callable[[], tuple[list[Sample], int]], sources: Sequence[str | Path], fingerprint: str,
                 settings: Sequence) -> tuple[list[Sample], int]:
    """build(): tokenised samples and a count. sources: the data file and the code that calls this folder's. fingerprint: the
    tokenizer's. settings: all else that matters."""
    ours = [Path(__file__).with_name(name) for name in ("text.py", "glue_forms.py", "tokenizer_json.py", "vocabulary.py",
                                                        "special_tokens.py", "framing.py", "wordpiece.py", "tokenizer.py")]
    depends_on = [repr((fingerprint, *settings, version("tiktoken"))).encode("utf-8"),
                  *(Path(source).read_bytes() for source in (*ours, *sources))]
    return kept(depends_on, lambda: pack_samples(*build()), unpack_samples, level=0)


def pack_samples(samples: list[Sample], count: int) -> bytes:
    """The samples as arrays: all ids, where each sample's end, what stands beside them; and the count."""
    file = io.BytesIO()
    np.savez(file, ids=np.array([token for ids, _ in samples for token in ids], dtype=np.int32),
             ends=np.cumsum([len(ids) for ids, _ in samples]), seconds=np.array([second for _, second in samples]), count=count)
    return file.getvalue()


def unpack_samples(content: bytes) -> tuple[list[Sample], int]:
    """What pack_samples was given. Raises ValueError for parts that do not fit."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        ids, ends = memoryview(arrays["ids"]), [0, *arrays["ends"].tolist()]
        seconds, count = arrays["seconds"].tolist(), int(arrays["count"])
    if len(ends) != len(seconds) + 1 or ends[-1] != len(ids):
        raise ValueError(f"{len(ids)} ids, but the samples end at {ends[-1]}")
    was_enabled = gc.isenabled()
    gc.disable()                                             # E2E is read in 0.12 s of processor time, with it in 0.26
    try:
        return [(ids[start:end].tolist(), second) for (start, end), second in zip(pairwise(ends), seconds, strict=True)], count
    finally:
        if was_enabled:
            gc.enable()
