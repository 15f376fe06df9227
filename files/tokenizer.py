"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), by which GPT-2 and RoBERTa cut text; only their ids differ.
Left out: training a BPE, and control tokens inside running text ("</s>" in a sentence is five ordinary characters).
"""
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from files.special_tokens import SpecialTokens, find_special_tokens, read_settings
from files.vocabulary import CONTROL_TOKEN, Vocabulary, read_vocabulary

# No pair is merged across these borders: clitics, words, numbers and punctuation, each with the space before it.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Or every digit is a word of its own, without the space before it.
WORDS_AND_DIGITS = WORDS.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")


class Tokenizer:
    """Byte-level BPE with GPT-2's or RoBERTa's framing; made by load_tokenizer.

    tiktoken counts pieces by rank (bytes first, then merges in the order they were learned); the model's files number
    them as they like. Two tables lead from rank to id and from id to bytes.

    eos_id ends a sample, any of eos_ids a text that is generated. truncated: how many inputs encode has shortened to max_length
    so far. fingerprint: a hash of all that it depends on.
    """

    def __init__(self, vocabulary: Vocabulary, special: SpecialTokens):
        ids, own = vocabulary.ids, special.ids
        self.ranks = {piece: rank for rank, piece in enumerate(vocabulary.ranks.values())}
        self.id_of_rank = [ids.get(token) for token in vocabulary.ranks]
        self.words = WORDS_AND_DIGITS if vocabulary.whole and vocabulary.whole.digits_apart else WORDS
        self.bytes_of_id = {ids[token]: text for token in ids if (text := vocabulary.bytes_of(token))}
        # what was added is found in texts, but for the model's own control tokens
        self.added = {token: ids[token] for token in vocabulary.added if ids[token] not in own.values()}
        self.vocab_size, self.prefix_space, self.framed = len(ids), special.prefix_space, special.kind == "roberta"
        self.bos_id, self.eos_id = (own["cls"], own["sep"]) if self.framed else (None, own["eos"])
        self.eos_ids, self.mask_id = special.ends, own.get("mask")
        self.pad_id = own.get("pad", 0)                                      # GPT-2 has none; the authors pad with 0
        self.fingerprint = hashlib.sha256(repr((ids, *vocabulary.ranks, self.added, special, self.words)).encode()).hexdigest()
        self.truncated = 0

    @functools.cached_property
    def bpe(self):
        """Made at the first text: not needed where all data is found tokenised (cache.py)."""
        return tiktoken.Encoding("byte-level BPE", pat_str=self.words, mergeable_ranks=self.ranks, special_tokens={})

    @functools.cached_property
    def at_added(self) -> re.Pattern:
        """Where texts are cut, at the added tokens, the longest first."""
        return re.compile("(" + "|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) + ")")

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, without framing. Empty text has none."""
        text.encode("utf-8")                                                 # tiktoken would replace lone surrogates
        ids = []
        for part in self.at_added.split(text) if self.added else (text,):
            if part in self.added:
                ids.append(self.added[part])
                continue
            space = " " if self.prefix_space and part and not part.startswith(" ") else ""
            ids += [self.id_of_rank[rank] for rank in self.bpe.encode_ordinary(space + part)]
        if None in ids:                                                      # one of RARE_BYTES
            odd = next(char for char in text if None in [self.id_of_rank[rank] for rank in self.bpe.encode_ordinary(char)])
            raise ValueError(f"text {text[:60]!r} holds {odd!r}, which this tokenizer has no token for: take it out")
        return ids

    def encode(self, text: str, pair: str | None = None, max_length: int | None = None) -> list[int]:
        """GPT-2: the ids of text and pair in a row. RoBERTa: <s> text </s>, or <s> text </s></s> pair </s>.
        max_length: longest result, framing included. What is too long loses tokens at the end of the longer text
        first; the texts are never cut inside a token. Raises ValueError where not even the framing fits."""
        first, second = self.pieces(text), [] if pair is None else self.pieces(pair)
        framing = 0 if not self.framed else 2 if pair is None else 4
        if max_length is not None and len(first) + len(second) + framing > max_length:
            if max_length < framing:
                raise ValueError(f"max_length is {max_length}, expected at least the {framing} tokens of <s> and </s>")
            keep_first, keep_second = longest_first(len(first), len(second), max_length - framing)
            first, second = first[:keep_first], second[:keep_second]
            self.truncated += 1
        if not self.framed:
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

    def ids_without_text(self, rows: int) -> list[int]:
        """Of the ids 0 to rows - 1 of a model, whose vocabulary may be larger, those that spell nothing and end no text."""
        return sorted(set(range(rows)) - self.bytes_of_id.keys() - set(self.eos_ids))


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """How much of two texts to keep so that `budget` tokens are left: the longer one is cut until they are even.
    >>> longest_first(10, 2, 6), longest_first(10, 8, 7)
    ((4, 2), (4, 3))"""
    shorter = min(first, second, budget // 2)
    return (budget - shorter, shorter) if first > second else (shorter, budget - shorter)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory: its tokens (vocabulary.py), and what they are for (special_tokens.py).
    Raises ValueError, with the file, for what is damaged, contradictory or of another kind."""
    directory = Path(directory)
    settings = read_settings(directory)
    vocabulary = read_vocabulary(directory, settings["tokenizer_config.json"])
    special = find_special_tokens(directory, settings, vocabulary)
    for token, token_id in vocabulary.ids.items():
        if not (token in vocabulary.ranks or token in vocabulary.added or token_id in special.ids.values()
                or CONTROL_TOKEN.fullmatch(token)):
            raise ValueError(f"{vocabulary.source}: no merge forms '{token}'; are the merges cut short?")
    rows = settings["config.json"].get("vocab_size", len(vocabulary.ids))
    if type(rows) is int and rows < len(vocabulary.ids):
        raise ValueError(f"{directory}: the tokenizer has {len(vocabulary.ids)} tokens, config.json says vocab_size {rows}: "
                         "use the tokenizer of this model, or resize the model's embedding to it")
    tokenizer = Tokenizer(vocabulary, special)
    for token in tokenizer.added.keys() & vocabulary.rules.keys():
        raise ValueError(f"{directory}: the added token '{token}' has {vocabulary.rules[token]} true, which is not supported")
    return tokenizer
