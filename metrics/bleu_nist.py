"""BLEU and NIST as the E2E scorer computes them: both count the n-grams that a hypothesis shares with its references.

Both exist there twice and both forms are here: `python` is the scorer's option -p, which the LoRA paper used; `perl` is
NIST's mteval-v13a, which the challenge published.
Left out: other tokenisations, n-gram orders and smoothings. Use sacrebleu for BLEU scores of machine translation.
"""
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from metrics import Scores
from metrics.ngrams import count_ngrams

VARIANTS = ("python", "perl")
BLEU_ORDER, NIST_ORDER = 4, 5

# ---------------------------------------------------------------- what they share: tokens and clipped counts

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
    empty token for `python` and none for `perl`, and `perl` lower-cases ASCII only."""
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
    slots             how many n-grams the hypothesis has room for: length - n + 1; `python` does not stop at zero
    length            tokens of the hypothesis
    ref_lengths       tokens of each reference
    """
    matched: list[float]
    information: list[float]
    own_information: list[float]
    slots: list[int]
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
    least = 0 if variant == "perl" else -math.inf
    slots = [[max(len(tokens) - n, least) for n in range(NIST_ORDER)] for tokens in hypothesis_tokens]
    return list(map(Overlap, matched, information, own_information, slots, map(len, hypothesis_tokens), lengths))


def information_of(matched: np.ndarray, before: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """matched · log2(before / counts), 0 where nothing matched."""
    return matched * np.log2(np.where(matched > 0, before / np.maximum(counts, 1), 1))


def added(lists: Iterable[list[float]]) -> list[float]:
    """For each order the sum over instances."""
    return [sum(values) for values in zip(*lists, strict=True)]


# ---------------------------------------------------------------- BLEU

def bleu(shared: list[Overlap], variant: str) -> Scores:
    """BLEU-4 over the whole set (Papineni et al. 2002), from its overlaps in the same variant.

        BLEU = BP · exp( 1/4 Σ_n ln p_n )     p_n = Σ matched n-grams / Σ n-grams of the hypotheses,  n = 1..4
        BP   = 1 if c > r else exp(1 - r/c)   c = tokens of all hypotheses, r = Σ length of the closest reference

    Of two equally close references the shorter counts. A segment's score is the formula on that instance alone.
    Returns details "length_ratio" c/r and "brevity_penalty" BP, and with `python` a column of the scorer's "sentBLEU"; warns
    where that is above 1.
    """
    system, details = pooled_bleu(shared, variant)
    columns = {"sentBLEU": list(map(sentence_bleu, shared))} if variant == "python" else {}
    above = [number for number, value in enumerate(columns.get("sentBLEU", ()), start=1) if value > 1 + 1e-9]
    if above:
        warnings.warn(f"sentBLEU of {len(above)} of {len(shared)} hypotheses is above 1, the first is number {above[0]}: the "
                      "original counts fewer than no n-grams in a text of one or two tokens", stacklevel=3)
    return Scores(system, [pooled_bleu([overlap], variant)[0] for overlap in shared], details, columns)


def pooled_bleu(shared: list[Overlap], variant: str) -> tuple[float, dict[str, float]]:
    """BLEU of the added counts of some instances, and its details."""
    hypothesis_length = sum(overlap.length for overlap in shared)
    reference_length = sum(closest_length(overlap, variant) for overlap in shared)
    matched = added(overlap.matched[:BLEU_ORDER] for overlap in shared)
    slots = added(overlap.slots[:BLEU_ORDER] for overlap in shared)
    if hypothesis_length > reference_length:
        brevity_penalty = 1.0
    elif hypothesis_length == 0:
        brevity_penalty = 0.0 if variant == "perl" else 1e-5
    else:
        brevity_penalty = math.exp(1 - reference_length / hypothesis_length)
    logs = log_precisions_perl(matched, slots) if variant == "perl" else log_precisions(matched, slots)
    score = brevity_penalty * math.exp(sum(logs) / BLEU_ORDER)
    length_ratio = hypothesis_length / reference_length if reference_length else math.inf
    return score, {"length_ratio": length_ratio, "brevity_penalty": brevity_penalty}


def log_precisions(matched: list[float], slots: list[int]) -> list[float]:
    """ln p_n, where tiny floors stand in for no match and for no room."""
    return [math.log(max(m, 1e-15) / max(s, 1e-9)) for m, s in zip(matched, slots, strict=True)]


def log_precisions_perl(matched: list[float], slots: list[int]) -> list[float]:
    """ln p_n, where the k-th order without a match gets p_n = 1 / (2^k · slots), and one without room ln p_n = 0."""
    logs, smoothing = [], 1
    for m, s in zip(matched, slots, strict=True):
        smoothing *= 2 if s and not m else 1
        logs.append(math.log(m / s) if m else -math.log(smoothing * s) if s else 0.0)
    return logs


def closest_length(overlap: Overlap, variant: str) -> int:
    """Length of the reference nearest to the hypothesis' length, the shorter on a tie; `perl` passes over empty ones."""
    lengths = [length for length in overlap.ref_lengths if length or variant == "python"]
    return min(lengths, key=lambda length: (abs(length - overlap.length), length), default=0)


def sentence_bleu(overlap: Overlap) -> float:
    """BLEU of one instance, smoothed: one is added to every count of matches and of n-grams."""
    matched, slots = ([n + 1.0 for n in counts[:BLEU_ORDER]] for counts in (overlap.matched, overlap.slots))
    brevity_penalty = pooled_bleu([overlap], "python")[1]["brevity_penalty"]
    return brevity_penalty * math.exp(sum(log_precisions(matched, slots)) / BLEU_ORDER)


# ---------------------------------------------------------------- NIST

def nist(shared: list[Overlap], variant: str) -> Scores:
    """NIST-5 over the whole set (Doddington 2002), from its overlaps in the same variant; n-grams weigh what they tell.

        info(w1..wn) = log2( C(w1..wn-1) / C(w1..wn) )    C counts over all references; C() = number of their tokens
        NIST = LP · Σ_n [ Σ matched n-grams · info / Σ n-grams of the hypotheses ],   n = 1..5
        LP   = exp( -β ln(ratio)² ) if ratio < 1 else 1,  with β such that LP = 1/2 at ratio 2/3
        ratio = tokens of all hypotheses / Σ mean length of an instance's references

    A segment takes `info` from its own references alone in the `python` variant, from the whole set in `perl`. Warns of
    an order for which no n-gram has room.
    """
    no_room = [f"{n}-grams" for n, slots in enumerate(added(overlap.slots for overlap in shared), start=1) if not slots]
    if no_room:
        warnings.warn(f"NIST: the hypotheses have no room for {' and '.join(no_room)}, which add nothing to the score; the "
                      "original divides by zero here", stacklevel=3)
    segments = [pooled_nist([overlap], variant, own_information=variant == "python") for overlap in shared]
    return Scores(pooled_nist(shared, variant), segments)


def pooled_nist(shared: list[Overlap], variant: str, own_information: bool = False) -> float:
    """NIST of the added counts of some instances."""
    information = added(overlap.own_information if own_information else overlap.information for overlap in shared)
    by_order = zip(information, added(overlap.slots for overlap in shared), strict=True)
    return sum(told / slots for told, slots in by_order if slots) * nist_length_penalty(nist_length_ratio(shared, variant))


def nist_length_ratio(shared: list[Overlap], variant: str) -> float:
    """Tokens of the hypotheses per token of a mean reference.
    `python` takes the mean per instance and sums; `perl` divides all reference tokens by the mean number of (not
    empty) references, which differs as soon as instances have different numbers of references."""
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
    beta = math.log(2) / math.log(1.5) ** 2
    return math.exp(-beta * math.log(min(ratio, 1)) ** 2) if ratio > 0 else 0.0
