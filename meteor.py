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

The reading order is that of the computation: `normalize`, `Matcher`, `align`, `statistics_of`, `score_of`, `meteor`.
Quirks of the original that change numbers are kept, and said where they happen. Left out: other languages, tasks and
parameters. Word lists and paraphrases are in meteor_resources.py, the stemmer in stemmer.py.
"""
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from meteor_resources import LONGEST_PHRASE, load_lexicon, paraphrases_near, select_paraphrases
from stemmer import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # in the score; the search for an alignment halves all but exact matches
BEAM = 40
# Paths are ranked by words matched, then chunks, then distance: one number, whose unit is the distance
RANK_OF_CHUNK, RANK_OF_WORD = 1 << 32, -1 << 48

# ------------------------------------------------------------------------------------------------------ 1. normalise

LETTERS = ("A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527"  # Latin, Cyrillic, phonetic extensions
           "\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697")
SPACES = " \t\n\x0b\f\r"
WIDE_SPACES = frozenset("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")
SUBSTITUTIONS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (rf"([^{LETTERS}0-9{SPACES}.'`,\-‘’])", r" \1 "),   # a symbol is a token
    (r"(\.\.+)", r" \1 "),                               # so are two and more periods
    (r"([^0-9]),([^0-9])", r"\1 , \2"),                  # and a comma, unless between digits
    (r"([0-9]),([^0-9])", r"\1 , \2"),
    (r"([^0-9]),([0-9])", r"\1 , \2"),
    (r"[`‘’]", "'"),
    (r"''|[“”]", ' " '),
    (r"–|--", "-"),
    (rf"([{LETTERS}0-9.])-([{LETTERS}0-9])", r"\1 \2"),  # family-friendly -> family friendly
    (rf"([^{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),     # an apostrophe is a token
    (rf"([^{LETTERS}0-9])'([{LETTERS}])", r"\1 ' \2"),
    (rf"([{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),
    (rf"([{LETTERS}])'([{LETTERS}])", r"\1 '\2"),        # unless it begins a clitic: it's -> it 's
    (r"([0-9])'s", r"\1 's"),
)]
PLAIN = re.compile(f"[a-z0-9{SPACES}]*")
LETTER = re.compile(f"[{LETTERS}]")
ASCII_CONTROL_AND_SPACE = "".join(map(chr, range(33)))


def normalize(text: str) -> list[str]:
    """The words METEOR compares: "It's near p.m. family-friendly" -> it 's near pm family friendly."""
    text = text.strip(ASCII_CONTROL_AND_SPACE)
    if not PLAIN.fullmatch(text):
        text = f" {text} "
        for pattern, replacement in SUBSTITUTIONS:
            text = pattern.sub(replacement, text)
    words = [word for word in re.split(f"[{SPACES}]+", text) if word]
    if "." in text:
        words = [part for word, following in zip(words, [*words[1:], ""], strict=True)
                 for part in _split_period(word, following)]
    return [word.lower() for word in words if word not in WIDE_SPACES]


def _split_period(word: str, following: str) -> list[str]:
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


# ------------------------------------------------------------------------------------------------- 2. possible matches

class Match(NamedTuple):
    """Words ref_start..ref_end of the reference and hyp_start..hyp_end of the hypothesis, which `module` matches."""
    ref_start: int
    ref_end: int
    hyp_start: int
    hyp_end: int
    module: int


class Word(NamedTuple):
    """What the first three modules compare. Words are compared by hash, as the original does."""
    hash: int
    stem_hash: int
    synsets: frozenset[str]


@lru_cache(maxsize=1 << 16)
def describe(word: str) -> Word:
    return Word(java_hash(word), java_hash(stem(word)), load_lexicon().synsets(word))


def java_hash(text: str) -> int:
    """Java's String.hashCode: Σ unit · 31^(units to its right) over UTF-16 units, in 32 bits."""
    value = 0
    units = text.encode("utf-16-le", "surrogatepass")
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + low + 256 * high) & 0xFFFFFFFF
    return value


class Paraphrases:
    """The kept pairs of the table, found by either phrase; `order` is the place in the table."""

    def __init__(self, pairs: list[tuple[str, str]]):
        self.from_first: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.from_second: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for order, (first, second) in enumerate(pairs):
            self.from_first[first].append((order, second))
            self.from_second[second].append((order, first))


class Matcher:
    """One hypothesis, prepared to be matched with its references."""

    def __init__(self, words: list[str], paraphrases: Paraphrases):
        self.words = words
        self.hashes = [describe(word).hash for word in words]
        self.by_hash, self.by_stem, self.by_synset = defaultdict(list), defaultdict(list), defaultdict(list)
        for i, word in enumerate(map(describe, words)):
            self.by_hash[word.hash].append(i)
            self.by_stem[word.stem_hash].append(i)
            for synset in word.synsets:
                self.by_synset[synset].append(i)
        self._single_words: dict[str, list[tuple[int, int]]] = {}
        # phrase to look for in a reference -> where its paraphrases stand here: (sort key, start, end)
        self.second_here: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # it is a pair's first phrase
        self.first_here: dict[str, list[tuple[int, int, int]]] = defaultdict(list)   # it is a pair's second phrase
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST_PHRASE, len(words)) + 1):
                phrase = " ".join(words[start:end])
                for order, first in paraphrases.from_second.get(phrase, ()):
                    self.second_here[first].append((order, start, end))
                for order, second in paraphrases.from_first.get(phrase, ()):
                    self.first_here[second].append((order, start, end))

    def matches(self, reference: list[str]) -> list[list[Match]]:
        """For every word of the reference the matches that begin there, in the order of the modules."""
        if self.hashes == [describe(word).hash for word in reference]:
            return [[Match(j, j + 1, i, i + 1, EXACT) for i in self.by_hash[self.hashes[j]]]
                    for j in range(len(reference))]
        starting_at = [[Match(j, j + 1, i, i + 1, module) for i, module in self._match_word(word)]
                       for j, word in enumerate(reference)]
        for match in self._match_phrases(reference):
            starting_at[match.ref_start].append(match)
        return starting_at

    def _match_word(self, word: str) -> list[tuple[int, int]]:
        """(position in the hypothesis, module) of every match of a single word; stem and synonym may both match."""
        if word not in self._single_words:
            this = describe(word)
            different = [hashed != this.hash for hashed in self.hashes]
            synonyms = {i for synset in this.synsets for i in self.by_synset.get(synset, ())}
            self._single_words[word] = [
                *((i, EXACT) for i in self.by_hash.get(this.hash, ())),
                *((i, STEM) for i in self.by_stem.get(this.stem_hash, ()) if different[i]),
                *((i, SYNONYM) for i in sorted(synonyms) if different[i]),
            ]
        return self._single_words[word]

    def _match_phrases(self, reference: list[str]) -> list[Match]:
        """First the pairs whose first phrase is in the reference, then those whose second is.

        A pair that the table holds in both directions therefore matches twice.
        """
        text = f" {' '.join(reference)} "
        forward, backward = [], []
        for found, here, key in (
                (forward, self.second_here, lambda j, length, order, i, size: (j, length, order, i)),
                (backward, self.first_here, lambda j, length, order, i, size: (i, size, order, j))):
            for phrase, places in here.items():
                if f" {phrase} " in text:
                    length = phrase.count(" ") + 1
                    for j in _positions(text, phrase):
                        for order, start, end in places:
                            match = Match(j, j + length, start, end, PARAPHRASE)
                            found.append((key(j, length, order, start, end - start), match))
        return [match for found in (forward, backward) for _, match in sorted(found)]


def _positions(text: str, phrase: str) -> list[int]:
    """The word positions at which a phrase begins in a text with a space before and after every word."""
    positions, place = [], text.find(f" {phrase} ")
    while place >= 0:
        positions.append(text.count(" ", 0, place))
        place = text.find(f" {phrase} ", place + 1)
    return positions


# ------------------------------------------------------------------------------------------------------------ 3. align

def align(starting_at: list[list[Match]], hypothesis_length: int) -> list[Match]:
    """The best alignment: every word in at most one match; most words, then fewest chunks, then least distance.

    A beam search from left to right over the words of the reference. `starting_at` lists for every word of the
    reference the matches that begin there. Matches without any competitor are fixed: every path takes them. The
    original has two quirks that matter. Words count as matched in whole numbers after weighing, so that a stem,
    synonym or paraphrase match of a single word counts nothing; and the distance of a match that a path branches off
    to is charged not to that branch but to the later ones.
    """
    fixed = _fixed_matches(starting_at, hypothesis_length)
    # A path is a plain tuple, as the search makes a great many: its rank (see RANK_OF_WORD; the least is the best), next
    # word of the reference, end of the last match in the hypothesis (-1 after a gap), bits of the words taken there, and
    # the last match with the path to which it was added
    paths = [(0, 0, -1, 0, None, None)]
    covered = 0  # reference words up to here can be inside a match that began earlier
    for j, matches in enumerate(starting_at):
        if j and not matches and not starting_at[j - 1] and covered < j:
            continue  # another word without a match in a gap that every path has already entered
        paths.sort(key=itemgetter(0))
        del paths[BEAM:]
        branches = [_branch(match) for match in matches]
        forced = j in fixed
        covered = max([covered, *(match.ref_end for match in matches)])
        extended = []
        for path in paths:
            rank, next_word, last_end, taken, last_match, before = path
            if j < next_word:  # inside a match of several words
                extended.append(path)
                continue
            chunk = RANK_OF_CHUNK if last_end != -1 else 0
            for gain, jump, start, end, ref_end, words, match in branches:
                if not taken & words:
                    extended.append((rank + gain + (chunk if start != last_end else 0) + (jump if forced else 0),
                                     ref_end, end, taken | words, match, path))
                    rank += jump
            if not forced:
                extended.append((rank + chunk, j + 1, -1, taken, last_match, before))
        paths = extended
    paths.sort(key=itemgetter(0))
    best = min(paths[:BEAM], key=lambda path: path[0] + (RANK_OF_CHUNK if path[2] != -1 else 0))
    alignment = []
    while best[4]:
        alignment.append(best[4])
        best = best[5]
    return alignment[::-1]


def _branch(match: Match) -> tuple[int, int, int, int, int, int, Match]:
    """What taking a match does to a path: words matched, distance, where it stands, bits of its hypothesis words."""
    ref_start, ref_end, start, end, module = match
    ref_length, length = ref_end - ref_start, end - start
    gain = ref_length + length if module == EXACT else ref_length // 2 + length // 2
    return gain * RANK_OF_WORD, abs(ref_start - start), start, end, ref_end, (1 << end) - (1 << start), match


def _fixed_matches(starting_at: list[list[Match]], hypothesis_length: int) -> set[int]:
    """Reference positions of the matches that are alone there and whose words no other match covers on either side."""
    hyp_covered, ref_covered = [0] * hypothesis_length, [0] * len(starting_at)
    for matches in starting_at:
        for ref_start, ref_end, hyp_start, hyp_end, _ in matches:
            for i in range(hyp_start, hyp_end):
                hyp_covered[i] += 1
            for j in range(ref_start, ref_end):
                ref_covered[j] += 1
    return {
        m[0].ref_start for m in starting_at if len(m) == 1
        and all(count == 1 for count in hyp_covered[m[0].hyp_start:m[0].hyp_end])
        and all(count == 1 for count in ref_covered[m[0].ref_start:m[0].ref_end])
    }


# ------------------------------------------------------------------------------------------------------------ 4. score

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
    precision = _weighted_matches(statistics[4:20:4], statistics[6:20:4]) / _weighted_length(hyp_length, hyp_function)
    recall = _weighted_matches(statistics[5:20:4], statistics[7:20:4]) / _weighted_length(ref_length, ref_function)
    f_mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    fragmentation = 0.0 if _is_perfect(statistics) else chunks / ((hyp_matched + ref_matched) / 2)
    return max(f_mean * (1 - GAMMA * fragmentation ** BETA), 0.0)


def _weighted_matches(content: list[int], function: list[int]) -> float:
    return (sum(count * weight * DELTA for count, weight in zip(content, MODULE_WEIGHTS, strict=True))
            + sum(count * weight * (1 - DELTA) for count, weight in zip(function, MODULE_WEIGHTS, strict=True)))


def _weighted_length(words: int, function_words: int) -> float:
    return DELTA * (words - function_words) + (1 - DELTA) * function_words


def _is_perfect(statistics: list[int]) -> bool:
    """Everything matches in one piece: there is no fragmentation, though it counts as one chunk."""
    hyp_length, ref_length = statistics[:2]
    return statistics[20:] == [1, hyp_length, ref_length]


@dataclass(frozen=True)
class MeteorScores:
    """The score of the set and of every segment, and the 23 statistics behind each segment's score."""
    system: float
    segments: list[float]
    statistics: list[list[int]]


def meteor(references: list[list[str]], hypotheses: list[str], cache: bool = True) -> MeteorScores:
    """METEOR of texts that the PTB tokenizer has been over; references[i] are those of hypotheses[i].

    `cache` allows the paraphrases that concern the references to be kept on disk (`paraphrases_near`). Raises
    FileNotFoundError if METEOR's word lists are not installed.
    """
    words = normalize_set(references, hypotheses)
    return score_words(*words, find_paraphrases(*words, cache))


def normalize_set(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[list[str]]], list[list[str]]]:
    """The words of every reference of every instance, and those of every hypothesis."""
    return ([[normalize(text) for text in texts] for texts in references],
            [normalize(text.replace("|||", "").replace("  ", " ")) for text in hypotheses])


def find_paraphrases(references: list[list[list[str]]], hypotheses: list[list[str]],
                     cache: bool = True) -> Paraphrases:
    """The pairs of the paraphrase table that can occur between these references and hypotheses."""
    reference_texts = [" ".join(words) for texts in references for words in texts]
    hypothesis_texts = [" ".join(words) for words in hypotheses]
    near = paraphrases_near(reference_texts, cache)
    return Paraphrases(select_paraphrases(near, reference_texts, hypothesis_texts))


def score_words(references: list[list[list[str]]], hypotheses: list[list[str]],
                paraphrases: Paraphrases) -> MeteorScores:
    """METEOR of normalised words. Of a segment's references the first with the best score counts.

    The chunks of a perfect match are not summed, so that sums of perfect matches stay perfect.
    """
    sums, segments, all_statistics = [0] * 23, [], []
    for reference_words, words in zip(references, hypotheses, strict=True):
        matcher = Matcher(words, paraphrases)
        candidates = [statistics_of(words, reference, align(matcher.matches(reference), len(words)))
                      for reference in reference_words]
        statistics = max(candidates, key=score_of)
        segments.append(score_of(statistics))
        all_statistics.append(statistics)
        sums = [total + count for total, count in zip(sums, statistics, strict=True)]
        if _is_perfect(statistics):
            sums[20] -= statistics[20]
    return MeteorScores(score_of(sums), segments, all_statistics)
