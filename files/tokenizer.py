"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), by which GPT-2 and RoBERTa cut text; only their ids differ.
Left out: training a BPE, and control tokens inside running text ("</s>" in a sentence is five ordinary characters).
"""
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from files.text import read_json, read_lines, shorten

# No pair is merged across these borders: clitics, words, numbers and punctuation, each with the space before it.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CONTROL_TOKEN = re.compile(r"<.+>|madeupword\d{4}")                          # fairseq filled RoBERTa's vocabulary up


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in vocab.json and merges.txt.
    Printable Latin-1 stands for itself; the other 68 bytes, space and line break among them, are U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class Tokenizer:
    """Byte-level BPE with GPT-2's or RoBERTa's framing; made by load_tokenizer.

    tiktoken counts pieces by rank (bytes first, then merges in the order they were learned); the model's files number
    them as they like. Two tables lead from rank to id and from id to bytes.

    truncated: how many inputs encode has shortened to max_length so far. fingerprint: a hash of its files.
    """

    def __init__(self, vocab: dict[str, int], ranks: dict[bytes, int], names: list[str], fingerprint: str = ""):
        """vocab: token -> id. ranks: bytes of a token -> rank. names: token of each rank, as vocab spells it."""
        self.ranks, self.fingerprint = ranks, fingerprint
        self.id_of_rank = [vocab[name] for name in names]
        self.bytes_of_id = dict(zip(self.id_of_rank, ranks, strict=True))    # control tokens have none
        self.vocab_size = len(vocab)
        self.bos_id = vocab.get("<s>")
        self.mask_id = vocab.get("<mask>")
        self.eos_id = vocab["<|endoftext|>" if self.bos_id is None else "</s>"]
        self.pad_id = 0 if self.bos_id is None else vocab["<pad>"]           # GPT-2 has none; the authors pad with 0
        self.truncated = 0

    @functools.cached_property
    def bpe(self):
        """Made at the first text: not needed where all data is found tokenised (cache.py)."""
        return tiktoken.Encoding("byte-level BPE", pat_str=WORDS, mergeable_ranks=self.ranks, special_tokens={})

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, without framing. Empty text has none."""
        text.encode("utf-8")                                                 # tiktoken would replace lone surrogates
        return [self.id_of_rank[rank] for rank in self.bpe.encode_ordinary(text)]

    def encode(self, text: str, pair: str | None = None, max_length: int | None = None) -> list[int]:
        """GPT-2: the ids of text and pair in a row. RoBERTa: <s> text </s>, or <s> text </s></s> pair </s>.
        max_length: longest result, framing included. What is too long loses tokens at the end of the longer text
        first; the texts are never cut inside a token. Raises ValueError where not even the framing fits."""
        first, second = self.pieces(text), [] if pair is None else self.pieces(pair)
        framing = 0 if self.bos_id is None else 2 if pair is None else 4
        if max_length is not None and len(first) + len(second) + framing > max_length:
            if max_length < framing:
                raise ValueError(f"max_length is {max_length}, expected at least the {framing} tokens of <s> and </s>")
            keep_first, keep_second = longest_first(len(first), len(second), max_length - framing)
            first, second = first[:keep_first], second[:keep_second]
            self.truncated += 1
        if self.bos_id is None:
            return first + second
        ids = [self.bos_id, *first, self.eos_id]
        return ids if pair is None else [*ids, self.eos_id, *second, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is none of this tokenizer's ids 0 to {self.vocab_size - 1}: "
                                 "model and tokenizer belong to different directories")
        return b"".join(self.bytes_of_id.get(token_id, b"") for token_id in ids).decode("utf-8", errors="replace")


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """How much of two texts to keep so that `budget` tokens are left: the longer one is cut until they are even.
    >>> longest_first(10, 2, 6), longest_first(10, 8, 7)
    ((4, 2), (4, 3))"""
    shorter = min(first, second, budget // 2)
    return (budget - shorter, shorter) if first > second else (shorter, budget - shorter)


def merge_problem(line: str, ranks: dict[str, bytes]) -> str:
    """What is wrong with a line of merges.txt that load_tokenizer cannot use."""
    pair = line.split(" ")
    if len(pair) != 2:
        return f"found {shorten(line)}, expected two tokens with one space between"
    for part in pair:
        if part not in ranks:
            return f"'{part}' is neither a byte nor formed by a line above; fetch the file again"
    problem = "is formed a second time" if "".join(pair) in ranks else "is missing in vocab.json"
    return f"'{''.join(pair)}' {problem}; use vocab.json and merges.txt of one model"


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory, from vocab.json (token -> id) and merges.txt (pairs by rank).
    A vocabulary that holds <s> is RoBERTa's kind, any other GPT-2's. merges.txt has to be as BPE training leaves it:
    each pair made of bytes and earlier pairs, no token formed twice. Raises ValueError with file and line."""
    vocab_path, merges_path = Path(directory) / "vocab.json", Path(directory) / "merges.txt"
    for path in (vocab_path, merges_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: put the tokenizer's vocab.json and merges.txt there")
    vocab = read_json(vocab_path)
    ids = {token_id for token_id in vocab.values() if type(token_id) is int}
    if not vocab or ids != set(range(len(vocab))):
        odd = next((f"'{token}': {number!r}" for token, number in vocab.items() if number not in range(len(vocab))),
                   "an id twice")
        raise ValueError(f"{vocab_path}: found {odd}, expected the ids 0 to {len(vocab) - 1}, each for one token")

    ranks = {char: bytes([byte]) for char, byte in byte_alphabet().items()}  # token -> its bytes, in the order of ranks
    for char in ranks:
        if char not in vocab:
            raise ValueError(f"{vocab_path}: '{char}' is missing, expected all 256 bytes of a byte-level BPE")
    for number, line in read_lines(merges_path):
        if number == 1 and line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        token = first + second
        if first not in ranks or second not in ranks or token in ranks or token not in vocab:
            raise ValueError(f"{merges_path}, line {number}: {merge_problem(line, ranks)}")
        ranks[token] = ranks[first] + ranks[second]
    for token in vocab.keys() - ranks.keys():
        if not CONTROL_TOKEN.fullmatch(token):
            raise ValueError(f"{vocab_path}: no line of {merges_path.name} forms '{token}'; is that file cut short?")
    for token in ("<pad>", "</s>") if "<s>" in vocab else ("<|endoftext|>",):
        if token not in vocab:
            raise ValueError(f"{vocab_path}: no {token}, expected GPT-2's <|endoftext|> or RoBERTa's <s>, <pad> and </s>")
    fingerprint = hashlib.sha256(vocab_path.read_bytes() + merges_path.read_bytes()).hexdigest()
    return Tokenizer(vocab, {piece: rank for rank, piece in enumerate(ranks.values())}, list(ranks), fingerprint)
