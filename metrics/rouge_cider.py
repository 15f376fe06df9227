"""ROUGE-L and CIDEr as the E2E scorer computes them, of texts that ptb_tokenizer.py has been over. Left out: ROUGE's other
forms and CIDEr's stemming."""
import math
import warnings
from collections.abc import Sequence
from itertools import chain

import numpy as np

from metrics import Scores
from metrics.ngrams import count_ngrams

CIDER_ORDER = 4

def rouge_l(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """ROUGE-L (Lin 2004), mean over the instances.

        P = max over references of LCS / words of the hypothesis,   R = max over references of LCS / words of it
        F = (1 + β²) P R / (R + β² P),   β = 1.2

    LCS is the length of the longest common subsequence: words in the same order, gaps allowed. P and R may come from
    different references; the paper takes the reference with the best F. The empty text is one empty word.
    """
    segments = []
    for reference_texts, hypothesis_text in zip(references, hypotheses, strict=True):
        hypothesis, texts = hypothesis_text.split(" "), [text.split(" ") for text in reference_texts]
        common = [longest_common_subsequence(hypothesis, reference) for reference in texts]
        precision = max(common) / len(hypothesis)
        recall = max(words / len(reference) for words, reference in zip(common, texts, strict=True))
        f_measure = (1 + 1.2 ** 2) * precision * recall / (recall + 1.2 ** 2 * precision) if precision else 0.0
        segments.append(f_measure)
    return Scores(sum(segments) / len(segments), segments)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of the usual table at a time (Hyyrö 2004).
    From one column of a row to the next the table grows by 0 or 1. `row` keeps these steps as bits, inverted: bit i
    is 0 where the LCS grows at first[i]. The addition carries each match to the next growth it can replace."""
    positions: dict[str, int] = {}
    for i, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << i
    every_bit = (1 << len(first)) - 1
    row = every_bit
    for word in second:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & every_bit
    return (every_bit ^ row).bit_count()


def cider(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """CIDEr (Vedantam et al. 2015) in its form CIDEr-D.

        weight(g) = count(g) · ( ln N - ln max(1, df(g)) )    N instances, df: instances with g in a reference
        sim_n  = Σ_g min(h_g, r_g) r_g / (|h| |r|) · exp( -δ² / (2·6²) )    h, r: weights of the n-grams of order n
        CIDEr  = 10 · mean over n = 1..4 and over the references of sim_n;  the system's score is the segments' mean

    The document frequencies come from the references that are being scored, hence one instance alone scores 0. δ, in
    the paper the difference in words, is the difference in BIGRAMS: the scorer's length counts those.
    """
    instances = len(hypotheses)
    if instances == 1:
        warnings.warn("CIDEr of a single instance is 0: its weights compare the instances of a set", stacklevel=3)
    texts = [text.split() for text in (*hypotheses, *chain.from_iterable(references))]
    instance_of = np.repeat(np.arange(instances), [len(group) for group in references])  # (references,)
    lengths = np.array([max(len(words) - 1, 0) for words in texts])
    closeness = np.exp(-(lengths[:instances][instance_of] - lengths[instances:]) ** 2 / (2 * 6.0 ** 2))
    total, weighty = np.zeros(len(instance_of)), False
    for ngrams in count_ngrams(texts, CIDER_ORDER):
        hypothesis, reference = ngrams.split_at(instances)
        different = len(ngrams.prefix) + 1
        # numpy is several times slower when asked for less
        in_instance, _ = np.unique(instance_of[reference.text] * different + reference.ngram, return_counts=True)
        frequency = np.bincount(in_instance % different, minlength=len(ngrams.prefix))
        rarity = math.log(instances) - np.log(np.maximum(frequency, 1))
        h, r = hypothesis.count * rarity[hypothesis.ngram], reference.count * rarity[reference.ngram]
        weighty = weighty or bool(r.any())
        places, found = hypothesis.places_of(instance_of[reference.text], reference.ngram)
        r_found = r[found]
        product = np.bincount(reference.text[found], np.minimum(h[places[found]], r_found) * r_found, len(instance_of))
        h_square = np.bincount(hypothesis.text, h * h, instances)[instance_of]
        norms = np.sqrt(h_square) * np.sqrt(np.bincount(reference.text, r * r, len(instance_of)))
        total += closeness * product / np.where(norms > 0, norms, 1)
    if not weighty and instances > 1:
        warnings.warn("CIDEr is 0 whatever the hypotheses say: no n-gram of the references has a weight, because each is in "
                      "those of every instance, or there is none", stacklevel=3)
    segments = 10 * np.bincount(instance_of, total) / CIDER_ORDER / np.bincount(instance_of)
    return Scores(float(segments.mean()), segments.tolist())
