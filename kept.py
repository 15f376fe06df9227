"""Results kept on disk: what takes seconds to compute from texts that are used again, such as a test set's references.

A result is found by its content: the file's name is a hash of everything the result depends on, which is what was read,
the code that makes it, and the version of Python, whose Unicode tables say what a letter is. So it never changes what is
returned, only when it is computed: a damaged file is replaced, and without a writable folder nothing is kept.

Left out: deleting what is old.
"""
import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def cache_dir() -> Path:
    """The user's folder for what is downloaded or kept, under $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora"


def folder() -> Path:
    """Where results are kept. It may be deleted at any time."""
    return cache_dir() / "scores"


@contextmanager
def file_to_keep(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which appears under its name only when it is complete; processes that make the same one each write
    their own. Raises OSError where none can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def kept(depends_on: Iterable[bytes], compute: Callable[[], bytes]) -> bytes:
    """compute(), or what it returned before for the same `depends_on`: what it reads, and the source of what it calls."""
    key = hashlib.sha256()
    for part in (Path(__file__).read_bytes(), sys.version.encode("utf-8"), *depends_on):
        key.update(b"%d\n" % len(part) + part)
    path = folder() / f"{key.hexdigest()[:32]}.z"
    try:
        return zlib.decompress(path.read_bytes())
    except (OSError, zlib.error):
        result = compute()
    with suppress(OSError), file_to_keep(path) as file:
        file.write(zlib.compress(result, level=1))
    return result


def kept_lines(texts: list[str], depends_on: Iterable[bytes], compute: Callable[[list[str]], list[str]]) -> list[str]:
    """compute(texts), which makes one line of each text; `depends_on` says what else the lines depend on."""
    lines = kept([*depends_on, b"%d texts" % len(texts), *(text.encode("utf-8", "surrogatepass") for text in texts)],
                 lambda: "\n".join(compute(texts)).encode("utf-8", "surrogatepass"))
    return lines.decode("utf-8", "surrogatepass").split("\n")
