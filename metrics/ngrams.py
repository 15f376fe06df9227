"""The n-grams of many texts, counted with numpy: what BLEU, NIST and CIDEr weigh, each in its way. Left out:
n-grams with gaps."""
from collections import defaultdict
from itertools import chain, count
from typing import NamedTuple

import numpy as np


class Ngrams(NamedTuple):
    """The n-grams of one order in many texts, counted: row i says that text[i] has ngram[i] count[i] times.
    Words and n-grams are known by numbers, from 0 within each order, so that numpy can sort and count them. The rows
    are sorted by text, then by n-gram. prefix[g] is the number of the first n-1 words of n-gram g."""
    text: np.ndarray
    ngram: np.ndarray
    count: np.ndarray
    prefix: np.ndarray

    def places_of(self, text: np.ndarray, ngram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of each (text, n-gram), and whether there is one."""
        different = len(self.prefix) + 1
        keys, wanted = self.text * different + self.ngram, text * different + ngram
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return places, keys[places] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)

    def split_at(self, texts: int) -> tuple["Ngrams", "Ngrams"]:
        """The n-grams of the first so many texts, and those of the rest, whose texts are counted from 0 again."""
        rows = np.searchsorted(self.text, texts)
        return (Ngrams(self.text[:rows], self.ngram[:rows], self.count[:rows], self.prefix),
                Ngrams(self.text[rows:] - texts, self.ngram[rows:], self.count[rows:], self.prefix))


def count_ngrams(texts: list[list[str]], highest: int) -> list[Ngrams]:
    """The n-grams of all texts for n = 1..highest. The word 0 has the number 0, if it occurs or not."""
    number_of_word = defaultdict(count(1).__next__, {"0": 0})                # a new word gets the next number
    words = np.array([number_of_word[word] for word in chain.from_iterable(texts)], dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), [len(words_of_text) for words_of_text in texts])
    starts, ngrams, prefix = np.arange(len(words)), words, np.zeros(len(number_of_word), dtype=np.int64)
    result = []
    for n in range(1, highest + 1):
        if n > 1:                                                            # the pair of its first n-1 words and its last
            inside = starts + n - 1 < len(words)
            inside[inside] = text[starts[inside]] == text[starts[inside] + n - 1]
            starts = starts[inside]
            pairs = ngrams[inside] * len(number_of_word) + words[starts + n - 1]
            pairs, ngrams = np.unique(pairs, return_inverse=True)
            prefix = pairs // len(number_of_word)
        different = len(prefix) + 1
        rows, counts = np.unique(text[starts] * different + ngrams, return_counts=True)
        result.append(Ngrams(*np.divmod(rows, different), counts, prefix))
    return result
