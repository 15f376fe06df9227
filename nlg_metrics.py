"""Four scores for generated text, side by side: BLEU, NIST, ROUGE-L and CIDEr (the fifth, METEOR, fills meteor.py).

All of them ask how much of a hypothesis (what the system wrote) is found in one or more references (what people
wrote for the same input). They differ in what they count and how they weigh it:

    BLEU     n-grams, all alike; precision of orders 1-4, punished when too short
    NIST     n-grams, rare ones weigh more; precision of orders 1-5, punished when too short
    ROUGE-L  the longest common subsequence; precision and recall
    CIDEr    n-grams as a TF-IDF vector; cosine with each reference's vector, orders 1-4
    METEOR   an alignment of words by form, stem, synonym and paraphrase; precision, recall and order

The LoRA paper (section 5.4, table 3) reports these five as the E2E NLG Challenge computes them. Names can mislead:
the programs of that scorer deviate in details from the papers they cite. What is implemented here is what the scorer
computes, and each deviation is named where it happens, so that a number from here stands beside a published one.

BLEU and NIST exist there twice and both are here: `python` is the scorer's option -p, which the LoRA paper used;
`perl` is NIST's mteval-v13a, which the challenge published.

Left out: other tokenisations, n-gram orders and smoothings. Use sacrebleu for BLEU scores of machine translation.
"""
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from typing import NamedTuple

import numpy as np

VARIANTS = ("python", "perl")
BLEU_ORDER, NIST_ORDER, CIDER_ORDER = 4, 5, 4


@dataclass(frozen=True)
class Scores:
    """`system` scores the whole set, `segments` every instance alone; `details` holds what belongs beside the score."""
    system: float
    segments: list[float]
    details: dict[str, float]


class Ngrams(NamedTuple):
    """The n-grams of one order in many texts, counted: row i says that text[i] has ngram[i] count[i] times.

    Words and n-grams are known by numbers, from 0 within each order, so that numpy can sort and count them. The rows
    are sorted by text, then by n-gram. prefix[g] is the number of the first n-1 words of n-gram g.
    """
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


# ---------------------------------------------------------------- what BLEU and NIST share: tokens and clipped counts

ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
SUBSTITUTIONS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"([!-&(-+/:-@\[-`{-~])", r" \1 "),                                     # ASCII punctuation except ' , - .
    (r"([^0-9])([.,])", r"\1 \2 "),                                          # period and comma, unless a digit is before ...
    (r"([.,])([^0-9])", r" \1 \2"),                                          # ... and after
    (r"([0-9])(-)", r"\1 \2 "),                                              # hyphen after a digit
)]
ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def mteval_tokenize(text: str, variant: str = "python") -> list[str]:
    """Tokenise and lower-case as mteval-v13a does: "Price: £20-25." -> price : £20 - 25 .

    The four substitutions run one after the other, each from left to right without overlaps. The empty text is ONE
    empty token for `python` and none for `perl`, and `perl` lower-cases ASCII only.
    """
    if variant == "perl":
        text = re.sub(r"\s+", " ", text)
    text = text.replace("<skipped>", "").replace("-\n", "")
    tokens = [token for chunk in text.split() for token in split_chunk(chunk, variant)]
    return tokens or ([""] if variant == "python" else [])


@lru_cache(maxsize=1 << 16)
def split_chunk(chunk: str, variant: str) -> tuple[str, ...]:
    """The tokens of a piece of text without white space; no substitution needs to see beyond it."""
    for entity, character in ENTITIES:
        chunk = chunk.replace(entity, character)
    chunk = f" {chunk} "
    for pattern, replacement in SUBSTITUTIONS:
        chunk = pattern.sub(replacement, chunk)
    lower = (lambda token: token.translate(ASCII_LOWER)) if variant == "perl" else str.lower
    return tuple(map(lower, chunk.split()))


@dataclass(frozen=True)
class Overlap:
    """What one hypothesis shares with its references; lists have an entry for each order n = 1..5.

    matched           n-grams by their clipped counts: min(count in hypothesis, largest count in one reference)
    information       the same, each weighted by NIST's info, which counts in the references of the whole set
    own_information   the same, with info from the references of this instance alone
    length            tokens of the hypothesis
    ref_lengths       tokens of each reference
    """
    matched: list[float]
    information: list[float]
    own_information: list[float]
    length: int
    ref_lengths: list[int]


def overlaps(references: list[list[str]], hypotheses: list[str], variant: str) -> list[Overlap]:
    """The clipped n-gram matches of every instance and what they tell; BLEU and NIST share them."""
    hypothesis_tokens = [mteval_tokenize(text, variant) for text in hypotheses]
    reference_tokens = [[mteval_tokenize(text, variant) for text in texts] for texts in references]
    lengths = [[len(tokens) for tokens in per_reference] for per_reference in reference_tokens]
    instances = len(hypotheses)
    instance_of = np.repeat(np.arange(instances), [len(texts) for texts in references])  # (references,)
    words_of_instance = np.array([sum(per_reference) for per_reference in lengths])
    # For each order: matched, information, own information of every instance; and of the order before the n-grams of the
    # hypotheses, with their counts in references
    sums, shorter = [], None
    for n, ngrams in enumerate(count_ngrams([*hypothesis_tokens, *chain(*reference_tokens)], NIST_ORDER), start=1):
        hypothesis, reference = ngrams.split_at(instances)
        rows, found = hypothesis.places_of(instance_of[reference.text], reference.ngram)
        rows, times = rows[found], reference.count[found]
        largest = np.zeros(len(hypothesis.ngram), dtype=np.int64)
        np.maximum.at(largest, rows, times)
        matched = np.minimum(hypothesis.count, largest)
        own = np.bincount(rows, times, len(matched))                         # in the references of the instance together
        everywhere = np.bincount(reference.ngram, reference.count, len(ngrams.prefix))[hypothesis.ngram]
        own_before, before = words_of_instance[hypothesis.text], words_of_instance.sum()         # C() is the number of words
        if n > 1:
            prefix = ngrams.prefix[hypothesis.ngram]
            rows, _ = shorter[0].places_of(hypothesis.text, prefix)
            no_prefix = (prefix == 0) & (variant == "perl" and n == 2)       # to Perl, the word 0 is false
            own_before = np.where(no_prefix, own_before, shorter[1][rows])
            before = np.where(no_prefix, before, shorter[2][rows])
        sums.append([np.bincount(hypothesis.text, values, instances) for values in (
            matched, information_of(matched, before, everywhere), information_of(matched, own_before, own))])
        shorter = hypothesis, own, everywhere
    matched, information, own_information = np.array(sums).transpose(1, 2, 0).tolist()   # (instances, orders) each
    return list(map(Overlap, matched, information, own_information, map(len, hypothesis_tokens), lengths))


def information_of(matched: np.ndarray, before: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """matched · log2(before / counts), 0 where nothing matched."""
    return matched * np.log2(np.where(matched > 0, before / np.maximum(counts, 1), 1))


def ngram_slots(overlap: Overlap, n: int, variant: str) -> int:
    """How many n-grams of order n the hypothesis has room for: length - n + 1.

    `python` does not stop at zero: a hypothesis of one token adds 1, 0, -1, -2 for n = 1..4.
    """
    slots = overlap.length - n + 1
    return max(slots, 0) if variant == "perl" else slots


# ---------------------------------------------------------------- BLEU

def bleu(shared: list[Overlap], variant: str) -> Scores:
    """BLEU-4 over the whole set (Papineni et al. 2002), from its overlaps in the same variant.

        BLEU = BP · exp( 1/4 Σ_n ln p_n )     p_n = Σ matched n-grams / Σ n-grams of the hypotheses,  n = 1..4
        BP   = 1 if c > r else exp(1 - r/c)   c = tokens of all hypotheses, r = Σ length of the closest reference

    Of two equally close references the shorter counts. A segment's score is the formula on that instance alone.
    Returns details "length_ratio" c/r and "brevity_penalty" BP.
    """
    system, details = pooled_bleu(shared, variant)
    return Scores(system, [pooled_bleu([overlap], variant)[0] for overlap in shared], details)


def pooled_bleu(shared: list[Overlap], variant: str) -> tuple[float, dict[str, float]]:
    """BLEU of the added counts of some instances, and its details."""
    hypothesis_length = sum(overlap.length for overlap in shared)
    reference_length = sum(closest_length(overlap, variant) for overlap in shared)
    matched = [sum(overlap.matched[n] for overlap in shared) for n in range(BLEU_ORDER)]
    slots = [sum(ngram_slots(overlap, n, variant) for overlap in shared) for n in range(1, BLEU_ORDER + 1)]
    if hypothesis_length > reference_length:
        brevity_penalty = 1.0
    elif hypothesis_length == 0:
        brevity_penalty = 0.0 if variant == "perl" else 1e-5
    else:
        brevity_penalty = math.exp(1 - reference_length / hypothesis_length)
    precision_logs = log_precisions_perl(matched, slots) if variant == "perl" else log_precisions(matched, slots)
    score = brevity_penalty * math.exp(sum(precision_logs) / BLEU_ORDER)
    ratio = hypothesis_length / reference_length if reference_length else math.inf
    return score, {"length_ratio": ratio, "brevity_penalty": brevity_penalty}


def log_precisions(matched: list[float], slots: list[int]) -> list[float]:
    """ln p_n, where tiny floors stand in for no match and for no room."""
    return [math.log(max(m, 1e-15) / max(s, 1e-9)) for m, s in zip(matched, slots, strict=True)]


def log_precisions_perl(matched: list[float], slots: list[int]) -> list[float]:
    """ln p_n, where the k-th order without a match gets p_n = 1 / (2^k · slots), and one without room ln p_n = 0."""
    logs, smoothing = [], 1
    for m, s in zip(matched, slots, strict=True):
        if s == 0:
            logs.append(0.0)
        elif m == 0:
            smoothing *= 2
            logs.append(-math.log(smoothing * s))
        else:
            logs.append(math.log(m / s))
    return logs


def closest_length(overlap: Overlap, variant: str) -> int:
    """Length of the reference nearest to the hypothesis' length, the shorter on a tie; `perl` passes over empty ones."""
    lengths = [length for length in overlap.ref_lengths if length or variant == "python"]
    return min(lengths, key=lambda length: (abs(length - overlap.length), length), default=0)


def sentence_bleu(overlap: Overlap) -> float:
    """The scorer's smoothed "sentBLEU" of one instance: one is added to every count of matches and of n-grams."""
    matched = [overlap.matched[n] + 1.0 for n in range(BLEU_ORDER)]
    slots = [ngram_slots(overlap, n, "python") + 1.0 for n in range(1, BLEU_ORDER + 1)]
    brevity_penalty = pooled_bleu([overlap], "python")[1]["brevity_penalty"]
    return brevity_penalty * math.exp(sum(log_precisions(matched, slots)) / BLEU_ORDER)


# ---------------------------------------------------------------- NIST

def nist(shared: list[Overlap], variant: str) -> Scores:
    """NIST-5 over the whole set (Doddington 2002), from its overlaps in the same variant: n-grams weighted by how much
    they tell.

        info(w1..wn) = log2( C(w1..wn-1) / C(w1..wn) )    C counts over all references; C() = number of their tokens
        NIST = LP · Σ_n [ Σ matched n-grams · info / Σ n-grams of the hypotheses ],   n = 1..5
        LP   = exp( -β ln(ratio)² ) if ratio < 1 else 1,  with β such that LP = 1/2 at ratio 2/3
        ratio = tokens of all hypotheses / Σ mean length of an instance's references

    A segment takes `info` from its own references alone in the `python` variant, from the whole set in `perl`. An
    order for which no n-gram has room (the original divides by zero there) contributes nothing.
    """
    segments = [pooled_nist([overlap], [overlap.own_information if variant == "python" else overlap.information], variant)
                for overlap in shared]
    return Scores(pooled_nist(shared, [overlap.information for overlap in shared], variant), segments, {})


def pooled_nist(shared: list[Overlap], information: list[list[float]], variant: str) -> float:
    """NIST of the added counts of some instances; `information` has a list for each, with an entry for each order."""
    score = 0.0
    for n, informations in enumerate(zip(*information, strict=True), start=1):
        slots = sum(ngram_slots(overlap, n, variant) for overlap in shared)
        if slots:
            score += sum(informations) / slots
    return score * nist_length_penalty(nist_length_ratio(shared, variant))


def nist_length_ratio(shared: list[Overlap], variant: str) -> float:
    """Tokens of the hypotheses per token of a mean reference.

    `python` takes the mean per instance and sums; `perl` divides all reference tokens by the mean number of (not
    empty) references, which differs as soon as instances have different numbers of references.
    """
    hypothesis_length = sum(overlap.length for overlap in shared)
    if variant == "python":
        reference_length = sum(sum(overlap.ref_lengths) / len(overlap.ref_lengths) for overlap in shared)
    else:
        mean_references = sum(sum(length > 0 for length in overlap.ref_lengths) for overlap in shared) / len(shared)
        all_tokens = sum(sum(overlap.ref_lengths) for overlap in shared)
        reference_length = all_tokens / mean_references if mean_references else 0.0
    return hypothesis_length / reference_length if reference_length else math.inf


def nist_length_penalty(ratio: float) -> float:
    """1 from the references' mean length on, 1/2 at two thirds of it, towards 0 below."""
    if ratio >= 1:
        return 1.0
    if ratio <= 0:
        return 0.0
    beta = math.log(2) / math.log(1.5) ** 2
    return math.exp(-beta * math.log(ratio) ** 2)


def orders_without_room(shared: list[Overlap], variant: str) -> list[int]:
    """Orders for which the hypotheses have no n-grams in sum: there the original divides by zero."""
    return [n for n in range(1, NIST_ORDER + 1) if not sum(ngram_slots(overlap, n, variant) for overlap in shared)]


# ---------------------------------------------------------------- ROUGE-L

def rouge_l(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """ROUGE-L (Lin 2004), mean over the instances; takes texts that the PTB tokenizer has been over.

        P = max over references of LCS / words of the hypothesis,   R = max over references of LCS / words of it
        F = (1 + β²) P R / (R + β² P),   β = 1.2

    LCS is the length of the longest common subsequence: words in the same order, gaps allowed. P and R may come from
    different references; the paper takes the reference with the best F. The empty text is one empty word.
    """
    segments = []
    for reference_texts, hypothesis_text in zip(references, hypotheses, strict=True):
        hypothesis = hypothesis_text.split(" ")
        precision = recall = 0.0
        for text in reference_texts:
            reference = text.split(" ")
            common = longest_common_subsequence(hypothesis, reference)
            precision = max(precision, common / len(hypothesis))
            recall = max(recall, common / len(reference))
        if precision and recall:
            segments.append((1 + 1.2 ** 2) * precision * recall / (recall + 1.2 ** 2 * precision))
        else:
            segments.append(0.0)
    return Scores(sum(segments) / len(segments), segments, {})


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of the usual table at a time (Hyyrö 2004).

    From one column of a row to the next the table grows by 0 or 1. `row` keeps these steps as bits, inverted: bit i
    is 0 where the LCS grows at first[i]. The addition carries each match to the next growth it can replace.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << i
    every_bit = (1 << len(first)) - 1
    row = every_bit
    for word in second:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & every_bit
    return (every_bit ^ row).bit_count()


# ---------------------------------------------------------------- CIDEr

def cider(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """CIDEr (Vedantam et al. 2015) in its form CIDEr-D, without stemming; takes texts the PTB tokenizer has been over.

        weight(g) = count(g) · ( ln N - ln max(1, df(g)) )    N instances, df: instances with g in a reference
        sim_n  = Σ_g min(h_g, r_g) r_g / (|h| |r|) · exp( -δ² / (2·6²) )    h, r: weights of the n-grams of order n
        CIDEr  = 10 · mean over n = 1..4 and over the references of sim_n;  the system's score is the segments' mean

    The document frequencies come from the references that are being scored, hence one instance alone scores 0. δ, in
    the paper the difference in words, is the difference in BIGRAMS: the scorer's length counts those.
    """
    instances = len(hypotheses)
    texts = [text.split() for text in (*hypotheses, *chain.from_iterable(references))]
    instance_of = np.repeat(np.arange(instances), [len(group) for group in references])  # (references,)
    lengths = np.array([max(len(words) - 1, 0) for words in texts])
    closeness = np.exp(-(lengths[:instances][instance_of] - lengths[instances:]) ** 2 / (2 * 6.0 ** 2))
    total = np.zeros(len(instance_of))
    for ngrams in count_ngrams(texts, CIDER_ORDER):
        hypothesis, reference = ngrams.split_at(instances)
        different = len(ngrams.prefix) + 1
        in_instance = instance_of[reference.text] * different + reference.ngram
        in_instance, _ = np.unique(in_instance, return_counts=True)          # numpy is several times slower when asked for less
        frequency = np.bincount(in_instance % different, minlength=len(ngrams.prefix))
        rarity = math.log(instances) - np.log(np.maximum(frequency, 1))
        h, r = hypothesis.count * rarity[hypothesis.ngram], reference.count * rarity[reference.ngram]
        places, found = hypothesis.places_of(instance_of[reference.text], reference.ngram)
        r_found = r[found]
        product = np.bincount(reference.text[found], np.minimum(h[places[found]], r_found) * r_found, len(instance_of))
        h_square = np.bincount(hypothesis.text, h * h, instances)[instance_of]
        norms = np.sqrt(h_square) * np.sqrt(np.bincount(reference.text, r * r, len(instance_of)))
        total += closeness * product / np.where(norms > 0, norms, 1)
    segments = 10 * np.bincount(instance_of, total) / CIDER_ORDER / np.bincount(instance_of)
    return Scores(float(segments.mean()), segments.tolist(), {})
