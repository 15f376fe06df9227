"""Advice on models beside the paper's: GGUF files, and texts that their tokenizers have no token for. (test_advice.py says what
a case is.)"""
import shutil
import struct

import data
from more_models.gguf import convert, read_header
from tests.advice import advises


def small(world, **formats):
    """A small GGUF file; the gguf package writes it."""
    from tests.more_models.test_gguf import write_gguf
    return write_gguf(world.folder / "a.gguf", **formats)


def converted(world):
    convert(small(world), world.folder / "out")
    return world.folder / "out"


@advises("more_models/gguf.py", "truncated or damaged; fetch the file again")
def _(world):
    path = small(world)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    return lambda: read_header(path), lambda: path.write_bytes(whole) and None


@advises("more_models/gguf.py", "expected 2 or 3, little-endian; convert the model anew")
def _(world):
    path = small(world)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + path.read_bytes()[8:])
    return lambda: read_header(path), lambda: small(world) and None


@advises("more_models/gguf.py", ": take a file of these, such as Q8_0")
def _(world):
    path = small(world, attn_q="BF16")
    return lambda: read_header(path), lambda: small(world, attn_q="Q8_0") and None


@advises("more_models/gguf.py", "holds a model already: give another folder, or delete this one")
def _(world):
    out = converted(world)
    return lambda: convert(world.folder / "a.gguf", out), lambda: shutil.rmtree(out)


@advises("files/tokenizer.py", "which this tokenizer has no token for: take it out")
def _(world):
    tokenizer = data.load_tokenizer(converted(world))
    return lambda: tokenizer.encode("a\x04b"), lambda: lambda: tokenizer.encode("ab")
