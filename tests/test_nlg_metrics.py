"""BLEU, NIST, ROUGE-L and CIDEr against textbook formulas on small cases; the official scores are in test_eval_metrics."""
import functools
import math
import random

import pytest

import nlg_metrics as N


@pytest.mark.parametrize("text, python, perl", [
    ("Price: £20-25.", "price : £20 - 25 .", "price : £20 - 25 ."),
    ("don't, high-end (ok)", "don't , high-end ( ok )", "don't , high-end ( ok )"),
    ("1,000.50 a.5 ...", "1,000.50 a . 5 . . .", "1,000.50 a . 5 . . ."),
    ("&quot;A&amp;lt;B&quot;", '" a < b "', '" a < b "'),
    ("CAFÉ Été", "café été", "cafÉ Été"),                                    # Perl lower-cases ASCII only
    ("<skipped>x", "x", "x"), ("5-star 5.a .5", "5 - star 5 . a . 5", "5 - star 5 . a . 5")])
def test_mteval_tokens(text, python, perl):
    assert N.mteval_tokenize(text) == python.split(" ")
    assert N.mteval_tokenize(text, "perl") == perl.split(" ")


def test_the_empty_text_is_one_token_or_none():
    assert N.mteval_tokenize("") == [""]
    assert N.mteval_tokenize("", "perl") == []


def bleu(references: list[list[str]], hypotheses: list[str], variant: str = "python") -> N.Scores:
    return N.bleu(N.overlaps(references, hypotheses, variant), variant)


def nist(references: list[list[str]], hypotheses: list[str], variant: str = "python") -> N.Scores:
    return N.nist(N.overlaps(references, hypotheses, variant), variant)


def test_bleu_by_hand():
    """4 of 5 words, 3 of 4 bigrams, 2 of 3, 1 of 2; the nearest reference has 6 words."""
    scores = bleu([["the owl is near the mill", "an owl sits on the old mill today"]], ["the owl is near it"])
    precisions = 4 / 5 * 3 / 4 * 2 / 3 * 1 / 2
    assert scores.system == pytest.approx(math.exp(1 - 6 / 5) * precisions ** 0.25, abs=1e-12)
    assert scores.details == pytest.approx({"length_ratio": 5 / 6, "brevity_penalty": math.exp(-0.2)})
    assert scores.segments == [scores.system]


def test_of_two_equally_close_references_the_shorter_counts():
    scores = bleu([["a b c d e f", "a b c d", "a b c d e f g h"]], ["a b c d e"])
    assert scores.details["brevity_penalty"] == 1 and scores.details["length_ratio"] == 5 / 4


def test_bleu_of_a_set_is_not_the_mean_of_its_segments():
    references, hypotheses = [["a b c d e"], ["f g h i j k"]], ["a b c d e", "f g h i x y"]
    scores = bleu(references, hypotheses)
    assert scores.segments[0] == 1
    assert scores.system == pytest.approx((9 / 11 * 7 / 9 * 5 / 7 * 3 / 5) ** 0.25, abs=1e-12)


def test_an_order_without_a_match_is_floored_or_smoothed():
    references, hypotheses = [["a x b y c"]], ["a b c d e"]
    assert bleu(references, hypotheses).system == pytest.approx((3 / 5 * 1e-15 / 4 * 1e-15 / 3 * 1e-15 / 2) ** 0.25)
    assert bleu(references, hypotheses, "perl").system == pytest.approx((3 / 5 / (2 * 4) / (4 * 3) / (8 * 2)) ** 0.25)


def test_nist_by_hand():
    """Information from the references: log2(5/2) for a, log2(5/1) for b and c; a b and b c tell log2(2/1) and log2(1/1)."""
    references, hypotheses = [["a b c"], ["a d"]], ["a b c", "a e"]
    unigrams = (2 * math.log2(5 / 2) + 2 * math.log2(5 / 1)) / 5
    bigrams = (math.log2(2 / 1) + math.log2(1 / 1)) / 3
    trigrams = 0 / 1                                                         # log2(1/1); the fourth and fifth have no match
    assert nist(references, hypotheses).system == pytest.approx(unigrams + bigrams + trigrams, abs=1e-12)


def test_nist_halves_at_two_thirds_of_the_length():
    assert N.nist_length_penalty(2 / 3) == pytest.approx(0.5)
    assert [N.nist_length_penalty(ratio) for ratio in (0, 1, 1.7)] == [0, 1, 1]
    assert 0 < N.nist_length_penalty(0.3) < N.nist_length_penalty(0.6) < 0.5


def test_the_two_variants_of_nist_differ_where_the_number_of_references_varies():
    references, hypotheses = [["a b c d e f g", "b a c d e f h"], ["k l m n o p q"]], ["a b c d", "k l m n"]
    python, perl = (nist(references, hypotheses, variant).system for variant in N.VARIANTS)
    overlaps = N.overlaps(references, hypotheses, "python")
    assert N.nist_length_ratio(overlaps, "python") == 8 / 14
    assert N.nist_length_ratio(overlaps, "perl") == pytest.approx(8 / (21 / 1.5))
    references[0].pop()
    assert python == pytest.approx(perl)                                     # equal lengths hide it
    references[0].append("b a c d e f h i j k")
    python, perl = (nist(references, hypotheses, variant).system for variant in N.VARIANTS)
    assert python != pytest.approx(perl)


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
        assert N.longest_common_subsequence(first, second) == slow_lcs(first, second)


def test_rouge_takes_precision_and_recall_from_different_references():
    scores = N.rouge_l([["a b c d e f", "a"]], ["a b c x"])                  # P 3/4 from the first, R 1 from the second
    assert scores.system == pytest.approx((1 + 1.44) * 0.75 / (1 + 1.44 * 0.75))
    assert N.rouge_l([[""], ["x"]], ["", ""]).segments == [1, 0]             # the empty text is one empty word


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
    scores = N.cider(references, hypotheses)
    assert scores.segments == pytest.approx(slow_cider(references, hypotheses), abs=1e-12)
    assert scores.system == pytest.approx(sum(scores.segments) / 12)


def test_cider_of_one_instance_is_zero():
    assert N.cider([["the owl is here"]], ["the owl is here"]).system == 0


def test_values_published_for_these_sentences():
    """From the issues of nlg-eval, which does not tokenise: "the cat was sat on the mat" against "the cat sat on the mat"."""
    assert N.rouge_l([["the cat sat on the mat"]], ["the cat was sat on the mat"]).system == pytest.approx(0.936061, abs=5e-7)
    score = bleu([["the cat sat on the mat"]], ["the cat was sat on the mat"]).system
    assert score == pytest.approx((6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25) == pytest.approx(0.488923, abs=5e-7)
    french = N.rouge_l([["Test en français.", "Le test en français."]], ["Le test est en français."])
    assert french.system == pytest.approx(0.907063, abs=5e-7)
