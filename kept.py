"""Results kept on disk: what takes seconds to compute from texts that are used again, such as a test set's references.

A result is found by its content: the file's name is a hash of everything the result depends on. So it never changes
what is returned, only when it is computed: a damaged file is replaced, and without a writable folder nothing is kept.

Left out: deleting what is old.
"""
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path


def folder() -> Path:
    """Where results are kept: under $XDG_CACHE_HOME, by default ~/.cache. It may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora" / "scores"


def kept(depends_on: Iterable[bytes], compute: Callable[[], bytes]) -> bytes:
    """compute(), or what it returned before for the same `depends_on`."""
    key = hashlib.sha256()
    for part in depends_on:
        key.update(b"%d\n" % len(part) + part)
    path = folder() / f"{key.hexdigest()[:32]}.z"
    try:
        return zlib.decompress(path.read_bytes())
    except (OSError, zlib.error):
        result = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(zlib.compress(result, level=1))
                file.close()
                os.replace(file.name, path)  # other processes see the whole file or none
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        pass
    return result


def kept_lines(texts: list[str], depends_on: Iterable[bytes], compute: Callable[[list[str]], list[str]]) -> list[str]:
    """compute(texts), which makes one line of each text; `depends_on` says what else the lines depend on."""
    lines = kept([*depends_on, b"%d texts" % len(texts), *(text.encode("utf-8", "surrogatepass") for text in texts)],
                 lambda: "\n".join(compute(texts)).encode("utf-8", "surrogatepass"))
    return lines.decode("utf-8", "surrogatepass").split("\n")
