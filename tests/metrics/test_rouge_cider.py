"""ROUGE-L and CIDEr against textbook formulas on small cases; the official scores are in test_eval_metrics."""
import functools
import math
import random

import pytest

from metrics.rouge_cider import cider, longest_common_subsequence, rouge_l


def slow_lcs(first, second):
    @functools.cache
    def length(i, j):
        if i == len(first) or j == len(second):
            return 0
        return 1 + length(i + 1, j + 1) if first[i] == second[j] else max(length(i + 1, j), length(i, j + 1))
    return length(0, 0)


def test_longest_common_subsequence_equals_the_textbook():
    generator = random.Random(3)
    for _ in range(300):
        first, second = ([generator.choice("abcde") for _ in range(generator.randrange(0, 40))] for _ in range(2))
        assert longest_common_subsequence(first, second) == slow_lcs(first, second)


def test_rouge_takes_precision_and_recall_from_different_references():
    scores = rouge_l([["a b c d e f", "a"]], ["a b c x"])                  # P 3/4 from the first, R 1 from the second
    assert scores.system == pytest.approx((1 + 1.44) * 0.75 / (1 + 1.44 * 0.75))
    assert rouge_l([[""], ["x"]], ["", ""]).segments == [1, 0]             # the empty text is one empty word


def slow_cider(references, hypotheses):
    """The definition of CIDEr-D over plain lists, with the scorer's length in bigrams."""
    def grams(text, n):
        words = text.split()
        return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]

    def weights(text, n):
        found = grams(text, n)
        return {g: found.count(g) * math.log(len(references) / max(1, sum(any(g in grams(t, n) for t in texts)
                                                                              for texts in references))) for g in found}

    def norm(vector):
        return math.sqrt(sum(w * w for w in vector.values()))

    segments = []
    for texts, hypothesis in zip(references, hypotheses, strict=True):
        total = 0
        for text in texts:
            delta = len(grams(hypothesis, 2)) - len(grams(text, 2))
            for n in range(1, 5):
                h, r = weights(hypothesis, n), weights(text, n)
                product = sum(min(h[g], r[g]) * r[g] for g in h if g in r)
                total += product / (norm(h) * norm(r) or 1) * math.exp(-delta ** 2 / 72) / 4
        segments.append(10 * total / len(texts))
    return segments


def test_cider_equals_its_definition():
    generator = random.Random(5)
    def sentence():
        return " ".join(generator.choice("the owl is near a mill and pub".split()) for _ in range(generator.randrange(1, 12)))
    references = [[sentence() for _ in range(generator.randrange(1, 4))] for _ in range(12)]
    hypotheses = [sentence() for _ in references]
    scores = cider(references, hypotheses)
    assert scores.segments == pytest.approx(slow_cider(references, hypotheses), abs=1e-12)
    assert scores.system == pytest.approx(sum(scores.segments) / 12)


def test_cider_of_one_instance_is_zero():
    with pytest.warns(UserWarning, match="CIDEr of a single instance is 0"):
        assert cider([["the owl is here"]], ["the owl is here"]).system == 0


def test_values_published_for_these_sentences():
    """From the issues of nlg-eval, which does not tokenise."""
    assert rouge_l([["the cat sat on the mat"]], ["the cat was sat on the mat"]).system == pytest.approx(0.936061, abs=5e-7)
    french = rouge_l([["Test en français.", "Le test en français."]], ["Le test est en français."])
    assert french.system == pytest.approx(0.907063, abs=5e-7)
