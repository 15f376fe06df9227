"""METEOR 1.5 for English, equal to the Java program with which the E2E NLG Challenge scores, in plain Python.

METEOR (Denkowski and Lavie 2014) aligns the words of a hypothesis with those of a reference, by four kinds of match

    exact        the same word                          pub - pub
    stem         the same Snowball stem                 serves - serving
    synonym      a WordNet synonym set in common        cheap - inexpensive
    paraphrase   a pair of the paraphrase table         close to - near

and scores how many words the alignment covers and how much it jumps:

    P, R   weighted share of matched words in hypothesis and reference; function words count less than content words
    F    = 1 / ( (1-α)/P + α/R )
    frag = chunks / matched words        a chunk: consecutive in both texts
    score = F · ( 1 - γ · frag^β )

Of several references the one with the best score counts. The system's score is not the mean of the segments': it is
the formula applied to the summed statistics of all segments.

The reading order is that of the computation: `normalize`, then `Matcher` and `align` in meteor_alignment.py, then here
`statistics_of`, `score_of`, `best_statistics`; `begin` puts the steps together.
Quirks of the original that change numbers are kept, and said where they happen. Left out: other languages, tasks and
parameters. Word lists and paraphrases are in meteor_resources.py, the stemmer in stemmer.py.
"""
import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path

from files.cache import kept_lines
from meteor_alignment import (
    EXACT,
    MODULE_WEIGHTS,
    PARAPHRASE,
    STEM,
    SYNONYM,
    Match,
    Matcher,
    Paraphrases,
    Reach,
    Vocabulary,
    align,
)
from meteor_resources import load_lexicon, paraphrases_near, select_paraphrases

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75

# ---------------------------------------------------------------- 1. normalise

LETTERS = ("A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527"      # Latin, Cyrillic, phonetic extensions
           "\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697")
SPACES = " \t\n\x0b\f\r"
WIDE_SPACES = frozenset("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")
SUBSTITUTIONS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (rf"([^{LETTERS}0-9{SPACES}.'`,\-‘’])", r" \1 "),                        # a symbol is a token
    (r"(\.\.+)", r" \1 "),                                                   # so are two and more periods
    (r"([^0-9]),([^0-9])", r"\1 , \2"),                                      # and a comma, unless between digits
    (r"([0-9]),([^0-9])", r"\1 , \2"),
    (r"([^0-9]),([0-9])", r"\1 , \2"),
    (r"[`‘’]", "'"),
    (r"''|[“”]", ' " '),
    (r"–|--", "-"),
    (rf"([{LETTERS}0-9.])-([{LETTERS}0-9])", r"\1 \2"),                      # family-friendly -> family friendly
    (rf"([^{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),                         # an apostrophe is a token
    (rf"([^{LETTERS}0-9])'([{LETTERS}])", r"\1 ' \2"),
    (rf"([{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),
    (rf"([{LETTERS}])'([{LETTERS}])", r"\1 '\2"),                            # unless it begins a clitic: it's -> it 's
    (r"([0-9])'s", r"\1 's"),
)]
PLAIN = re.compile("[a-z0-9]*")
# Marks of which only one would be split off, since matches do not overlap
GLUED_MARKS = re.compile(rf"[,'`‘’][{SPACES}]+[,'`‘’]")
LETTER = re.compile(f"[{LETTERS}]")
ASCII_CONTROL_AND_SPACE = "".join(map(chr, range(33)))


def normalize(text: str) -> list[str]:
    """The words METEOR compares: "It's near p.m. family-friendly" -> it 's near pm family friendly."""
    text = text.strip(ASCII_CONTROL_AND_SPACE)
    if GLUED_MARKS.search(text):
        words = list(split_symbols(text))
    else:
        words = [part for word in split_at_spaces(text) for part in split_symbols(word)]
    if "." in text:
        words = [part for word, following in zip(words, [*words[1:], ""], strict=True)
                 for part in split_period(word, following)]
    return [word.lower() for word in words if word not in WIDE_SPACES]


def split_at_spaces(text: str) -> list[str]:
    return [word for word in re.split(f"[{SPACES}]+", text) if word]


@lru_cache(maxsize=1 << 16)
def split_symbols(text: str) -> tuple[str, ...]:
    """The parts into which the substitutions break a text. They see no further than the spaces around a word, so that a
    word may come alone."""
    if PLAIN.fullmatch(text):
        return (text,) if text else ()
    text = f" {text} "
    for pattern, replacement in SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return tuple(split_at_spaces(text))


def split_period(word: str, following: str) -> list[str]:
    """Decide whether the period at the end of a word is part of it: p.m. -> pm, "e.g." stays, "centre." is split."""
    rest = word[:-1]
    if not word.endswith(".") or not word.strip("."):
        return [word]
    if "." in rest and LETTER.search(rest):
        return [word.replace(".", "")]
    numeric_only = load_lexicon().prefixes.get(rest)
    if numeric_only is False or re.match("[a-z]", following) or numeric_only and re.match("[0-9]", following):
        return [word]
    return [rest, "."]


# ---------------------------------------------------------------- 2. score

def statistics_of(hypothesis: list[str], reference: list[str], alignment: list[Match]) -> list[int]:
    """The 23 numbers METEOR keeps of a pair; they can be summed over segments.

        0-3     words of the hypothesis, of the reference, function words of either
        4-19    for each module: content words matched in hypothesis and in reference, function words likewise
        20-22   chunks, words matched in the hypothesis, in the reference
    """
    function_words = load_lexicon().function_words
    hyp_function = [word in function_words for word in hypothesis]
    ref_function = [word in function_words for word in reference]
    statistics = [len(hypothesis), len(reference), sum(hyp_function), sum(ref_function)] + [0] * 19
    last_ref_end = last_hyp_end = -1
    for ref_start, ref_end, hyp_start, hyp_end, module in alignment:
        hyp_matched, ref_matched = hyp_end - hyp_start, ref_end - ref_start
        hyp_matched_function = sum(hyp_function[hyp_start:hyp_end])
        ref_matched_function = sum(ref_function[ref_start:ref_end])
        statistics[4 + 4 * module] += hyp_matched - hyp_matched_function
        statistics[5 + 4 * module] += ref_matched - ref_matched_function
        statistics[6 + 4 * module] += hyp_matched_function
        statistics[7 + 4 * module] += ref_matched_function
        statistics[20] += ref_start != last_ref_end or hyp_start != last_hyp_end
        statistics[21] += hyp_matched
        statistics[22] += ref_matched
        last_ref_end, last_hyp_end = ref_end, hyp_end
    return statistics


def score_of(statistics: list[int]) -> float:
    """The score of a segment's statistics, or of a whole set's sums; 0 where nothing matches."""
    hyp_length, ref_length, hyp_function, ref_function = statistics[:4]
    chunks, hyp_matched, ref_matched = statistics[20:]
    if not hyp_matched or not ref_matched:
        return 0.0
    precision = weighted_matches(statistics[4:20:4], statistics[6:20:4]) / weighted_length(hyp_length, hyp_function)
    recall = weighted_matches(statistics[5:20:4], statistics[7:20:4]) / weighted_length(ref_length, ref_function)
    return formula(precision, recall, 0.0 if is_perfect(statistics) else chunks / ((hyp_matched + ref_matched) / 2))


def formula(precision: float, recall: float, fragmentation: float) -> float:
    f_mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return max(f_mean * (1 - GAMMA * fragmentation ** BETA), 0.0)


def weighted_matches(content: list[int], function: list[int]) -> float:
    return (sum(count * weight * DELTA for count, weight in zip(content, MODULE_WEIGHTS, strict=True))
            + sum(count * weight * (1 - DELTA) for count, weight in zip(function, MODULE_WEIGHTS, strict=True)))


def weighted_length(words: int, function_words: int) -> float:
    return DELTA * (words - function_words) + (1 - DELTA) * function_words


def is_perfect(statistics: list[int]) -> bool:
    """Everything matches in one piece: there is no fragmentation, though it counts as one chunk."""
    hyp_length, ref_length = statistics[:2]
    return statistics[20:] == [1, hyp_length, ref_length]


# ---------------------------------------------------------------- 3. best reference

def best_statistics(matcher: Matcher, references: list[list[str]]) -> list[int]:
    """The statistics of a hypothesis with the reference that scores best; of equally good ones the first.

    The references are taken in the order of what they could score at most, and the search ends where not even that
    reaches the best score so far. It spares two references in three their alignment and never changes the result.
    """
    ceiling = Ceiling(matcher.words)
    at_most = [ceiling.of(reference, matcher.reach(reference)) for reference in references]
    best_score, best_index, best = -1.0, -1, []
    for index in sorted(range(len(references)), key=at_most.__getitem__, reverse=True):
        if at_most[index] + 1e-9 < best_score:                               # the margin is for rounding
            break
        alignment = align(matcher.matches(references[index]))
        statistics = statistics_of(matcher.words, references[index], alignment)
        score = score_of(statistics)
        if score > best_score or score == best_score and index < best_index:
            best_score, best_index, best = score, index, statistics
    return best


class Ceiling:
    """A limit that no alignment of one hypothesis exceeds, from what each word could match alone.

    A word may continue a chunk if a match covers it and the word before, or begins with it where another ends; a word
    that is matched otherwise must begin one. An alignment of y chunks matches, on each side, at most y of the words that
    must begin a chunk; words that may continue one are all counted. The limit is the best score over all y.
    """

    def __init__(self, hypothesis: list[str]):
        weights = word_weights(hypothesis)
        self.length = len(hypothesis)
        self.weighted_length = sum(weights)
        self.content_words = sum(1 << i for i, weight in enumerate(weights) if weight == DELTA)

    def of(self, reference: list[str], reach: Reach) -> float:
        ref_weights = word_weights(reference)
        ref_length = sum(ref_weights)
        hyp_continuing, hyp_beginning = self.hypothesis_weights(reach)
        ref_continuing, ref_beginning = [], []
        for weight, module_weight, continues in zip(ref_weights, reach.ref_weights, reach.ref_continues, strict=True):
            if module_weight:
                (ref_continuing if continues else ref_beginning).append(weight * module_weight)
        all_match = (len(hyp_continuing) + len(hyp_beginning) == self.length
                     and len(ref_continuing) + len(ref_beginning) == len(reference))
        precise, recalled, matched = sum(hyp_continuing), sum(ref_continuing), len(hyp_continuing) + len(ref_continuing)
        hyp_beginning.sort(reverse=True)
        ref_beginning.sort(reverse=True)
        limit = 0.0
        for chunks, (hyp_weight, ref_weight) in enumerate(
                zip_longest([0.0, *hyp_beginning], [0.0, *ref_beginning], fillvalue=0.0)):
            precise += hyp_weight
            recalled += ref_weight
            matched += (hyp_weight > 0) + (ref_weight > 0)
            if precise and recalled:
                fragmentation = 0.0 if all_match and chunks <= 1 else max(chunks, 1) / (matched / 2)
                limit = max(limit, formula(precise / self.weighted_length, recalled / ref_length, fragmentation))
        return limit

    def hypothesis_weights(self, reach: Reach) -> tuple[list[float], list[float]]:
        """What each matchable word of the hypothesis adds to precision: of words that can continue a chunk, and of others."""
        continuing, beginning, matched = [], [], 0
        for module in (EXACT, SYNONYM, STEM, PARAPHRASE):                    # the largest weight first
            words = reach.hyp_words[module] & ~matched
            matched |= words
            for part, weights in ((words & reach.hyp_continues, continuing), (words & ~reach.hyp_continues, beginning)):
                content = (part & self.content_words).bit_count()
                weights += [MODULE_WEIGHTS[module] * DELTA] * content
                weights += [MODULE_WEIGHTS[module] * (1 - DELTA)] * (part.bit_count() - content)
        return continuing, beginning


def word_weights(words: list[str]) -> list[float]:
    function_words = load_lexicon().function_words
    return [1 - DELTA if word in function_words else DELTA for word in words]


# ---------------------------------------------------------------- 4. whole sets

@dataclass(frozen=True)
class MeteorScores:
    """The score of the set and of every segment, and the 23 statistics behind each segment's score."""
    system: float
    segments: list[float]
    statistics: list[list[int]]


def begin(references: list[list[str]], hypotheses: list[str], background: Executor) -> Callable[[], MeteorScores]:
    """METEOR of texts that the PTB tokenizer has been over; references[i] are those of hypotheses[i].

    Returns as soon as `background` has the paraphrase table to read, so that other scores can be computed meanwhile. The
    function that is returned does the rest and gives the scores. What concerns the references alone is kept on disk
    (files/cache.py). Raises FileNotFoundError if METEOR's word lists are not installed, ValueError if the table is damaged.
    """
    reference_words, hypothesis_words = normalize_set(references, hypotheses)
    paraphrases = background.submit(find_paraphrases, reference_words, hypothesis_words)

    def finish() -> MeteorScores:
        matchers = prepare(reference_words, hypothesis_words)                # while the table is still being read
        return score_words(reference_words, matchers, paraphrases.result())
    return finish


def normalize_set(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[list[str]]], list[list[str]]]:
    """The words of every reference of every instance, and those of every hypothesis."""
    def normalized(texts: list[str]) -> list[str]:
        return [" ".join(normalize(text)) for text in texts]

    texts = [text for texts_of_instance in references for text in texts_of_instance]
    depends_on = [Path(__file__).read_bytes(), repr(load_lexicon().prefixes).encode("utf-8")]
    lines = iter(kept_lines(texts, depends_on, normalized))
    return ([[words_of(next(lines)) for _ in texts_of_instance] for texts_of_instance in references],
            [normalize(text.replace("|||", "").replace("  ", " ")) for text in hypotheses])


def words_of(line: str) -> list[str]:
    return line.split(" ") if line else []


def find_paraphrases(references: list[list[list[str]]], hypotheses: list[list[str]]) -> Paraphrases:
    """The pairs of the paraphrase table that can occur between these references and hypotheses."""
    reference_texts = [" ".join(words) for texts in references for words in texts]
    hypothesis_texts = [" ".join(words) for words in hypotheses]
    near = paraphrases_near(reference_texts)
    return Paraphrases(select_paraphrases(near, reference_texts, hypothesis_texts))


def prepare(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[Matcher]:
    """Every hypothesis with what its words match: all that can be found without the paraphrases."""
    vocabulary = Vocabulary(chain.from_iterable(chain.from_iterable(references)))
    return [Matcher(words, texts, vocabulary) for texts, words in zip(references, hypotheses, strict=True)]


def score_words(references: list[list[list[str]]], matchers: list[Matcher], paraphrases: Paraphrases) -> MeteorScores:
    """METEOR of normalised words. Of a segment's references the first with the best score counts.

    The chunks of a perfect match are not summed, so that sums of perfect matches stay perfect.
    """
    sums, segments, all_statistics = [0] * 23, [], []
    for texts, matcher in zip(references, matchers, strict=True):
        matcher.find_phrases(paraphrases)
        statistics = best_statistics(matcher, texts)
        segments.append(score_of(statistics))
        all_statistics.append(statistics)
        sums = [total + count for total, count in zip(sums, statistics, strict=True)]
        if is_perfect(statistics):
            sums[20] -= statistics[20]
    return MeteorScores(score_of(sums), segments, all_statistics)
