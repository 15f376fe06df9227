"""BLEU and NIST against textbook formulas on small cases; the official scores are in test_eval_metrics."""
import math

import pytest

import metrics.bleu_nist as N
from metrics import Scores


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


def bleu(references: list[list[str]], hypotheses: list[str], variant: str = "python") -> Scores:
    return N.bleu(N.overlaps(references, hypotheses, variant), variant)


def nist(references: list[list[str]], hypotheses: list[str], variant: str = "python") -> Scores:
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


def test_value_published_for_this_sentence():
    """From the issues of nlg-eval, which does not tokenise."""
    score = bleu([["the cat sat on the mat"]], ["the cat was sat on the mat"]).system
    assert score == pytest.approx((6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25) == pytest.approx(0.488923, abs=5e-7)
