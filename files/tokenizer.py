"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), by which GPT-2 and RoBERTa cut text; only their ids differ.
Left out: training a BPE, and control tokens inside running text ("</s>" in a sentence is five ordinary characters).
"""
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import tiktoken

from files.framing import Tokenizer
from files.special_tokens import SpecialTokens, find_special_tokens, read_settings
from files.vocabulary import CONTROL_TOKEN, Vocabulary, read_vocabulary
from files.wordpiece import is_wordpiece, read_wordpiece

# No pair is merged across these borders: clitics, words, numbers and punctuation, each with the space before it.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Or every digit is a word of its own, without the space before it.
WORDS_AND_DIGITS = WORDS.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")


class ByteLevelBPE(Tokenizer):
    """The tokenizer of GPT-2 and RoBERTa; made by load_tokenizer.

    tiktoken counts pieces by rank (bytes first, then merges in the order they were learned); the model's files number
    them as they like. Two tables lead from rank to id and from id to bytes.
    """

    def __init__(self, vocabulary: Vocabulary, special: SpecialTokens):
        ids, own = vocabulary.ids, special.ids
        self.ranks = {piece: rank for rank, piece in enumerate(vocabulary.ranks.values())}
        self.id_of_rank = [ids.get(token) for token in vocabulary.ranks]
        self.words = WORDS_AND_DIGITS if vocabulary.whole and vocabulary.whole.digits_apart else WORDS
        self.bytes_of_id = {ids[token]: text for token in ids if (text := vocabulary.bytes_of(token))}
        # what was added is found in texts, but for the model's own control tokens
        self.added = {token: ids[token] for token in vocabulary.added if ids[token] not in own.values()}
        self.vocab_size, self.prefix_space = len(ids), special.prefix_space
        self.bos_id, self.eos_id = (own["cls"], own["sep"]) if special.kind == "roberta" else (None, own["eos"])
        if special.kind == "roberta":
            self.start, self.between, self.end = (self.bos_id,), (self.eos_id, self.eos_id), (self.eos_id,)
        self.eos_ids, self.mask_id = special.ends, own.get("mask")
        self.pad_id = own.get("pad", 0)                                      # GPT-2 has none; the authors pad with 0
        self.fingerprint = hashlib.sha256(repr((ids, *vocabulary.ranks, self.added, special, self.words)).encode()).hexdigest()

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

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        self.check_ids(ids)
        return b"".join(self.bytes_of_id.get(token_id, b"") for token_id in ids).decode("utf-8", errors="replace")

    def ids_without_text(self, rows: int) -> list[int]:
        """Of the ids 0 to rows - 1 of a model, whose vocabulary may be larger, those that spell nothing and end no text."""
        return sorted(set(range(rows)) - self.bytes_of_id.keys() - set(self.eos_ids))


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory: its tokens (vocabulary.py), and what they are for (special_tokens.py); a
    BERT's is in wordpiece.py. Raises ValueError, with the file, for what is damaged, contradictory or of another kind."""
    directory = Path(directory)
    settings = read_settings(directory)
    if is_wordpiece(directory, settings["config.json"].get("model_type")):
        tokenizer = read_wordpiece(directory, settings)
        check_rows(directory, settings["config.json"], tokenizer.vocab_size)
        return tokenizer
    vocabulary = read_vocabulary(directory, settings["tokenizer_config.json"])
    special = find_special_tokens(directory, settings, vocabulary)
    for token, token_id in vocabulary.ids.items():
        if not (token in vocabulary.ranks or token in vocabulary.added or token_id in special.ids.values()
                or CONTROL_TOKEN.fullmatch(token)):
            raise ValueError(f"{vocabulary.source}: no merge forms '{token}'; are the merges cut short?")
    check_rows(directory, settings["config.json"], len(vocabulary.ids))
    tokenizer = ByteLevelBPE(vocabulary, special)
    for token in tokenizer.added.keys() & vocabulary.rules.keys():
        raise ValueError(f"{directory}: the added token '{token}' has {vocabulary.rules[token]} true, which is not supported")
    return tokenizer


def check_rows(directory: Path, config: dict, tokens: int) -> None:
    """Raises ValueError for a tokenizer with more tokens than the model of this config.json has rows for."""
    rows = config.get("vocab_size", tokens)
    if type(rows) is int and rows < tokens:
        raise ValueError(f"{directory}: the tokenizer has {tokens} tokens, config.json says vocab_size {rows}: "
                         "use the tokenizer of this model, or resize the model's embedding to it")
