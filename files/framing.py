"""What every tokenizer does with the pieces of a text: it puts them into the model's frame and cuts what is too long.

    GPT-2      text, or text pair
    RoBERTa    <s> text </s>, or <s> text </s></s> pair </s>
    BERT       [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]

Left out: how a text becomes pieces (tokenizer.py, wordpiece.py), and padding.
"""
from collections.abc import Sequence


class Tokenizer:
    """What the kinds of tokenizers that load_tokenizer makes have in common. Each adds `pieces`, the ids of a text alone, and
    `decode`, the way back.

    start, between, end: the ids of the frame around a text and between two. eos_id ends a sample, any of eos_ids a text that
    is generated. truncated: how many inputs encode has shortened to max_length so far. fingerprint: a hash of all that it
    depends on."""
    start: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    truncated = 0

    def encode(self, text: str, pair: str | None = None, max_length: int | None = None) -> list[int]:
        """The text or both in the model's frame. max_length: longest result, framing included. What is too long loses tokens at
        the end of the longer text first; the texts are never cut inside a token. Raises ValueError where not even the framing
        fits."""
        first, second = self.pieces(text), [] if pair is None else self.pieces(pair)
        between = () if pair is None else self.between
        framing = len(self.start) + len(between) + len(self.end)
        if max_length is not None and len(first) + len(second) + framing > max_length:
            if max_length < framing:
                raise ValueError(f"max_length is {max_length}, expected at least the {framing} tokens around the texts")
            keep_first, keep_second = longest_first(len(first), len(second), max_length - framing)
            first, second = first[:keep_first], second[:keep_second]
            self.truncated += 1
        return [*self.start, *first, *between, *second, *self.end]

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ValueError for an id that this tokenizer does not have."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is none of this tokenizer's ids 0 to {self.vocab_size - 1}: "
                                 "model and tokenizer belong to different directories")


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """How much of two texts to keep so that `budget` tokens are left: the longer one is cut until they are even.
    >>> longest_first(10, 2, 6), longest_first(10, 8, 7)
    ((4, 2), (4, 3))"""
    shorter = min(first, second, budget // 2)
    return (budget - shorter, shorter) if first > second else (shorter, budget - shorter)
