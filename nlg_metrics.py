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
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count

VARIANTS = ("python", "perl")
BLEU_ORDER, NIST_ORDER, CIDER_ORDER = 4, 5, 4


@dataclass(frozen=True)
class Scores:
    """`system` scores the whole set, `segments` every instance alone; `details` holds what belongs beside the score."""
    system: float
    segments: list[float]
    details: dict[str, float]


class NgramNumbers:
    """Gives every n-gram a number, since whole numbers are counted several times faster than tuples of words.

    An n-gram is known by two numbers, that of its first n-1 words and that of its last word.
    """
    ZERO = 0  # the number of the word 0

    def __init__(self):
        self._number = defaultdict(count().__next__)  # a new key gets the next number
        self._number["0"]  # comes first

    def __len__(self) -> int:
        return len(self._number)

    def of(self, words: Sequence[str], highest: int) -> list[list[int]]:
        """For n = 1..highest the numbers of all n-grams of a text in their order, with repetitions."""
        unigrams = [self._number[word] for word in words]
        by_order = [unigrams]
        for n in range(2, highest + 1):
            by_order.append([self._number[pair] for pair in zip(by_order[-1], unigrams[n - 1:], strict=False)])
        return by_order


# ---------------------------------------------------------------- what BLEU and NIST share: tokens and clipped counts

ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
SUBSTITUTIONS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"([!-&(-+/:-@\[-`{-~])", r" \1 "),   # ASCII punctuation except ' , - .
    (r"([^0-9])([.,])", r"\1 \2 "),        # period and comma, unless a digit stands before ...
    (r"([.,])([^0-9])", r" \1 \2"),        # ... and after
    (r"([0-9])(-)", r"\1 \2 "),            # hyphen after a digit
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
    tokens = [token for chunk in text.split() for token in _split_chunk(chunk, variant)]
    return tokens or ([""] if variant == "python" else [])


@lru_cache(maxsize=1 << 16)
def _split_chunk(chunk: str, variant: str) -> tuple[str, ...]:
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
    """What one hypothesis shares with its references.

    matched[n]      n-grams of order n with their clipped counts min(count in hypothesis, largest count in a reference);
                    an n-gram is the pair of numbers (its first n-1 words, itself)
    length          tokens of the hypothesis
    ref_lengths     tokens of each reference
    ref_counts      how often each n-gram occurs in all references of the instance together
    """
    matched: dict[int, dict[tuple[int | None, int], int]]
    length: int
    ref_lengths: list[int]
    ref_counts: Counter[int]


def overlaps(references: list[list[str]], hypotheses: list[str], variant: str) -> list[Overlap]:
    """The clipped n-gram matches of every instance; orders 1-5, so BLEU and NIST can share them."""
    numbers = NgramNumbers()
    result = []
    for reference_texts, hypothesis_text in zip(references, hypotheses, strict=True):
        hypothesis = numbers.of(mteval_tokenize(hypothesis_text, variant), NIST_ORDER)
        reference_ngrams = [numbers.of(mteval_tokenize(text, variant), NIST_ORDER) for text in reference_texts]
        per_reference = [Counter(chain.from_iterable(by_order)) for by_order in reference_ngrams]
        total = Counter(chain.from_iterable(chain.from_iterable(reference_ngrams)))
        matched = {}
        for n, found in enumerate(hypothesis, start=1):
            prefixes = dict(zip(found, hypothesis[n - 2], strict=False)) if n > 1 else {}
            matched[n] = {(prefixes.get(ngram), ngram): min(times, max(counts.get(ngram, 0) for counts in per_reference))
                          for ngram, times in Counter(found).items() if ngram in total}
        result.append(Overlap(matched, len(hypothesis[0]), [len(by_order[0]) for by_order in reference_ngrams], total))
    return result


def ngram_slots(overlap: Overlap, n: int, variant: str) -> int:
    """How many n-grams of order n the hypothesis has room for: length - n + 1.

    `python` does not stop at zero: a hypothesis of one token adds 1, 0, -1, -2 for n = 1..4.
    """
    slots = overlap.length - n + 1
    return max(slots, 0) if variant == "perl" else slots


# ------------------------------------------------------------------------------------------------------------- BLEU

def bleu(references: list[list[str]], hypotheses: list[str], variant: str = "python",
         shared: list[Overlap] | None = None) -> Scores:
    """BLEU-4 over the whole set (Papineni et al. 2002).

        BLEU = BP · exp( 1/4 Σ_n ln p_n )     p_n = Σ matched n-grams / Σ n-grams of the hypotheses,  n = 1..4
        BP   = 1 if c > r else exp(1 - r/c)   c = tokens of all hypotheses, r = Σ length of the closest reference

    Of two equally close references the shorter counts. A segment's score is the formula on that instance alone.
    Returns details "length_ratio" c/r and "brevity_penalty" BP.
    """
    shared = overlaps(references, hypotheses, variant) if shared is None else shared
    system, details = _bleu(shared, variant)
    return Scores(system, [_bleu([overlap], variant)[0] for overlap in shared], details)


def _bleu(shared: list[Overlap], variant: str) -> tuple[float, dict[str, float]]:
    hypothesis_length = sum(overlap.length for overlap in shared)
    reference_length = sum(closest_length(overlap, variant) for overlap in shared)
    matched = [sum(sum(overlap.matched[n].values()) for overlap in shared) for n in range(1, BLEU_ORDER + 1)]
    slots = [sum(ngram_slots(overlap, n, variant) for overlap in shared) for n in range(1, BLEU_ORDER + 1)]
    if hypothesis_length > reference_length:
        brevity_penalty = 1.0
    elif hypothesis_length == 0:
        brevity_penalty = 0.0 if variant == "perl" else 1e-5
    else:
        brevity_penalty = math.exp(1 - reference_length / hypothesis_length)
    precision_logs = _log_precisions_perl(matched, slots) if variant == "perl" else _log_precisions(matched, slots)
    score = brevity_penalty * math.exp(sum(precision_logs) / BLEU_ORDER)
    ratio = hypothesis_length / reference_length if reference_length else math.inf
    return score, {"length_ratio": ratio, "brevity_penalty": brevity_penalty}


def _log_precisions(matched: list[int], slots: list[int]) -> list[float]:
    """ln p_n, where tiny floors stand in for no match and for no room."""
    return [math.log(max(m, 1e-15) / max(s, 1e-9)) for m, s in zip(matched, slots, strict=True)]


def _log_precisions_perl(matched: list[int], slots: list[int]) -> list[float]:
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
    matched = [sum(overlap.matched[n].values()) + 1.0 for n in range(1, BLEU_ORDER + 1)]
    slots = [ngram_slots(overlap, n, "python") + 1.0 for n in range(1, BLEU_ORDER + 1)]
    brevity_penalty = _bleu([overlap], "python")[1]["brevity_penalty"]
    return brevity_penalty * math.exp(sum(_log_precisions(matched, slots)) / BLEU_ORDER)


# ------------------------------------------------------------------------------------------------------------- NIST

def nist(references: list[list[str]], hypotheses: list[str], variant: str = "python",
         shared: list[Overlap] | None = None) -> Scores:
    """NIST-5 over the whole set (Doddington 2002): n-grams weighted by how much they tell.

        info(w1..wn) = log2( C(w1..wn-1) / C(w1..wn) )    C counts over all references; C() = number of their tokens
        NIST = LP · Σ_n [ Σ matched n-grams · info / Σ n-grams of the hypotheses ],   n = 1..5
        LP   = exp( -β ln(ratio)² ) if ratio < 1 else 1,  with β such that LP = 1/2 at ratio 2/3
        ratio = tokens of all hypotheses / Σ mean length of an instance's references

    A segment takes `info` from its own references alone in the `python` variant, from the whole set in `perl`. An
    order for which no n-gram has room (the original divides by zero there) contributes nothing.
    """
    shared = overlaps(references, hypotheses, variant) if shared is None else shared
    counts = Counter()
    for overlap in shared:
        counts.update(overlap.ref_counts)
    words = sum(sum(overlap.ref_lengths) for overlap in shared)
    segments = []
    for overlap in shared:
        if variant == "perl":
            segments.append(_nist([overlap], counts, words, variant))
        else:
            segments.append(_nist([overlap], overlap.ref_counts, sum(overlap.ref_lengths), variant))
    return Scores(_nist(shared, counts, words, variant), segments, {})


def _nist(shared: list[Overlap], counts: Counter, words: int, variant: str) -> float:
    score = 0.0
    for n in range(1, NIST_ORDER + 1):
        information = 0.0
        for overlap in shared:
            for (prefix, ngram), times in overlap.matched[n].items():
                no_prefix = n == 1 or variant == "perl" and prefix == NgramNumbers.ZERO  # to Perl, the word 0 is false
                prefix_count = words if no_prefix else counts[prefix]
                information += times * math.log2(prefix_count / counts[ngram])
        slots = sum(ngram_slots(overlap, n, variant) for overlap in shared)
        if slots:
            score += information / slots
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


# ---------------------------------------------------------------------------------------------------------- ROUGE-L

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


# ------------------------------------------------------------------------------------------------------------ CIDEr

def cider(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """CIDEr (Vedantam et al. 2015) in its form CIDEr-D, without stemming; takes texts the PTB tokenizer has been over.

        weight(g) = count(g) · ( ln N - ln max(1, df(g)) )    N instances, df: instances with g in a reference
        sim_n  = Σ_g min(h_g, r_g) r_g / (|h| |r|) · exp( -δ² / (2·6²) )    h, r: weights of the n-grams of order n
        CIDEr  = 10 · mean over n = 1..4 and over the references of sim_n;  the system's score is the segments' mean

    The document frequencies come from the references that are being scored, hence one instance alone scores 0. δ, in
    the paper the difference in words, is the difference in BIGRAMS: the scorer's length counts those.
    """
    numbers = NgramNumbers()

    def counts_by_order(text: str) -> list[Counter[int]]:
        return [Counter(found) for found in numbers.of(text.split(), CIDER_ORDER)]

    reference_counts = [[counts_by_order(text) for text in texts] for texts in references]
    all_hypothesis_counts = [counts_by_order(text) for text in hypotheses]
    document_frequency = Counter()
    for per_reference in reference_counts:
        document_frequency.update(set(chain.from_iterable(chain.from_iterable(per_reference))))
    rarity = [math.log(len(references)) - math.log(max(1, document_frequency[ngram])) for ngram in range(len(numbers))]

    def weigh(counts: Counter[int]) -> tuple[dict[int, float], float]:
        weights = {ngram: times * rarity[ngram] for ngram, times in counts.items()}
        return weights, math.hypot(*weights.values())

    segments = []
    for per_reference, hypothesis_counts in zip(reference_counts, all_hypothesis_counts, strict=True):
        hypothesis = [weigh(counts) for counts in hypothesis_counts]
        total = 0.0
        for counts_of_reference in per_reference:
            delta = hypothesis_counts[1].total() - counts_of_reference[1].total()
            closeness = math.exp(-delta ** 2 / (2 * 6.0 ** 2))
            for h, counts in zip(hypothesis, counts_of_reference, strict=True):
                total += closeness * _clipped_cosine(h, weigh(counts))
        segments.append(10.0 * total / CIDER_ORDER / len(per_reference))
    return Scores(sum(segments) / len(segments), segments, {})


def _clipped_cosine(hypothesis: tuple[dict[int, float], float], reference: tuple[dict[int, float], float]) -> float:
    (h, h_norm), (r, r_norm) = hypothesis, reference
    product = sum(min(h[ngram], r[ngram]) * r[ngram] for ngram in h if ngram in r)
    return product / (h_norm * r_norm) if h_norm and r_norm else product
