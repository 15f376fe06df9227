"""How METEOR aligns a hypothesis with a reference: `Matcher` finds all matches of words and phrases, `align` the
best of them, from left to right, by a beam search whose quirks are the original's. Left out: the score (meteor_score.py).
"""
from collections import defaultdict
from collections.abc import Container, Iterable
from functools import cache, lru_cache
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

from metrics.meteor_resources import LONGEST_PHRASE, load_lexicon
from metrics.stemmer import stem

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)                                        # in the score; `align` halves all but the first
BEAM = 40
# Paths are ranked by words matched, then chunks, then distance: one number, whose unit is the distance
RANK_OF_CHUNK, RANK_OF_WORD = 1 << 32, -1 << 48

# ---------------------------------------------------------------- matches

class Match(NamedTuple):
    """Words ref_start..ref_end of the reference and hyp_start..hyp_end of the hypothesis, which `module` matches."""
    ref_start: int
    ref_end: int
    hyp_start: int
    hyp_end: int
    module: int


class Word(NamedTuple):
    """What the first three modules compare; words are compared by hash, as the original does."""
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


class Vocabulary:
    """The words of all references, found by what the first three modules compare."""

    def __init__(self, words: Iterable[str]):
        self.by_hash, self.by_stem, self.by_synset = defaultdict(set), defaultdict(set), defaultdict(set)
        for word in set(words):
            this = describe(word)
            self.by_hash[this.hash].add(word)
            self.by_stem[this.stem_hash].add(word)
            for synset in this.synsets:
                self.by_synset[synset].add(word)

    @cache  # noqa: B019 - lives as long as the set that is scored
    def matching(self, word: str) -> list[set[str]]:
        """The words that match this one exactly, by stem and as synonyms; what matches exactly is in none of the others."""
        this = describe(word)
        exact = self.by_hash.get(this.hash, set())
        synonyms = set().union(*(self.by_synset.get(synset, ()) for synset in this.synsets))
        return [exact, self.by_stem.get(this.stem_hash, set()) - exact, synonyms - exact]


class Paraphrases:
    """The kept pairs of the table, found by either phrase; with each stands its place in the table."""

    def __init__(self, pairs: list[tuple[str, str]]):
        self.by_first: dict[str, dict[str, int]] = defaultdict(dict)         # first phrase -> {second phrase: place}
        self.by_second: dict[str, dict[str, int]] = defaultdict(dict)
        for place, (first, second) in enumerate(pairs):
            self.by_first[first][second] = place
            self.by_second[second][first] = place
        self.phrases = self.by_first.keys() | self.by_second.keys()
        self.beginnings = set(chain.from_iterable(map(beginnings_of, self.phrases)))

    @cache  # noqa: B019 - lives as long as the set that is scored
    def partners_by_word(self, phrase: str) -> dict[str, list[tuple[str, list[str], int, int]]]:
        """The partners of a phrase by their first word: (partner, words after the first, 0 for first of a pair, place)."""
        partners = defaultdict(list)
        for side, pairs in enumerate((self.by_second, self.by_first)):
            for partner, place in pairs.get(phrase, {}).items():
                first_word, *following_words = partner.split(" ")
                partners[first_word].append((partner, following_words, side, place))
        return partners


@lru_cache(maxsize=1 << 16)
def beginnings_of(phrase: str) -> list[str]:
    """The first word of a phrase, its first two words and so on, without the phrase itself."""
    words = phrase.split(" ")
    return [" ".join(words[:n]) for n in range(1, len(words))]


def occurrences(words: list[str], phrases: Container[str], beginnings: Container[str]) -> list[tuple[str, int]]:
    """Which of some phrases stand in a text and the positions of their first words."""
    found = []
    for start, phrase in enumerate(words):
        if phrase in phrases:
            found.append((phrase, start))
        if phrase in beginnings:
            for following in words[start + 1:start + LONGEST_PHRASE]:
                phrase = f"{phrase} {following}"
                if phrase in phrases:
                    found.append((phrase, start))
                if phrase not in beginnings:
                    break
    return found


class Matcher:
    """One hypothesis, prepared to be matched with its references by words and by phrases."""

    def __init__(self, words: list[str], references: list[list[str]], vocabulary: Vocabulary, paraphrases: Paraphrases):
        self.words = words
        self.hashes = [describe(word).hash for word in words]
        # Word of the vocabulary -> (module, position in the hypothesis) of every match; stem and synonym may both match
        self.word_matches = defaultdict(list)
        for i, word in enumerate(words):
            for module, others in enumerate(vocabulary.matching(word)):
                for other in others:
                    self.word_matches[other].append((module, i))
        reference_words = set(chain.from_iterable(references))
        # Phrase that may be in a reference -> (place in the table, start, end) of its paraphrases in the hypothesis, first
        # by the pairs that have that phrase first, then by those that have it second
        self.phrases = defaultdict(lambda: ([], []))
        for phrase, start in occurrences(words, paraphrases.phrases, paraphrases.beginnings):
            end = start + phrase.count(" ") + 1
            partners = paraphrases.partners_by_word(phrase)
            for first_word in partners.keys() & reference_words:
                for partner, following_words, side, place in partners[first_word]:
                    if reference_words.issuperset(following_words):
                        self.phrases[partner][side].append((place, start, end))
        self.beginnings = set(chain.from_iterable(map(beginnings_of, self.phrases)))

    def matches(self, reference: list[str]) -> list[list[Match]]:
        """For every word of the reference the matches that begin there, in the order of the modules.
        Of phrases first the pairs whose first phrase is in the reference, then those whose second is. A pair that the table
        holds in both directions therefore matches twice."""
        if len(reference) == len(self.words) and self.hashes == [describe(word).hash for word in reference]:
            return [[Match(j, j + 1, i, i + 1, EXACT) for i, other in enumerate(self.hashes) if other == this]
                    for j, this in enumerate(self.hashes)]
        starting_at = [[Match(j, j + 1, i, i + 1, module) for module, i in sorted(self.word_matches.get(word, ()))]
                       for j, word in enumerate(reference)]
        forward, backward = [], []
        for phrase, j in occurrences(reference, self.phrases, self.beginnings):
            length = phrase.count(" ") + 1
            for place, start, end in self.phrases[phrase][0]:
                forward.append(((j, length, place, start), Match(j, j + length, start, end, PARAPHRASE)))
            for place, start, end in self.phrases[phrase][1]:
                backward.append(((start, end - start, place, j), Match(j, j + length, start, end, PARAPHRASE)))
        for _, match in chain(sorted(forward), sorted(backward)):
            starting_at[match.ref_start].append(match)
        return starting_at


# ---------------------------------------------------------------- the search

def align(starting_at: list[list[Match]]) -> list[Match]:
    """The best alignment: every word in at most one match; most words, then fewest chunks, then least distance.

    A beam search from left to right over the words of the reference. `starting_at` lists for every word of the
    reference the matches that begin there. Matches without any competitor are fixed: every path takes them. The
    original has two quirks that matter. Words count as matched in whole numbers after weighing, so that a stem,
    synonym or paraphrase match of a single word counts nothing; and the distance of a match that a path branches off
    to is charged not to that branch but to the later ones.
    """
    fixed = fixed_matches(starting_at)
    # A path is a plain tuple, as the search makes a great many: its rank (see RANK_OF_WORD; the least is the best), next
    # word of the reference, end of the last match in the hypothesis (-1 after a gap), bits of the words taken there, and
    # the last match with the path to which it was added. The rank leaves out fixed matches, which all paths have.
    paths = [(0, 0, -1, 0, None, None)]
    for j, matches in enumerate(starting_at):
        paths.sort(key=itemgetter(0))
        del paths[BEAM:]
        if j in fixed:
            _, ref_end, start, end, _ = matches[0]
            paths = [(rank if last_end == start or last_end == -1 else rank + RANK_OF_CHUNK,
                      ref_end, end, taken, last_match, before) for rank, _, last_end, taken, last_match, before in paths]
            continue
        branches = [branch_of(match) for match in matches]
        extended = []
        for path in paths:
            rank, next_word, last_end, taken, last_match, before = path
            if j < next_word:                                                # inside a match of several words
                extended.append(path)
                continue
            chunk = rank + RANK_OF_CHUNK if last_end != -1 else rank
            for gain, jump, start, end, ref_end, words, match in branches:
                if not taken & words:
                    extended.append(((rank if start == last_end else chunk) + gain, ref_end, end, taken | words, match, path))
                    rank += jump
                    chunk += jump
            extended.append((chunk, j + 1, -1, taken, last_match, before))
        paths = extended
    paths.sort(key=itemgetter(0))
    best = min(paths[:BEAM], key=lambda path: path[0] + (RANK_OF_CHUNK if path[2] != -1 else 0))
    alignment = [starting_at[j][0] for j in fixed]
    while best[4]:
        alignment.append(best[4])
        best = best[5]
    return sorted(alignment)


def branch_of(match: Match) -> tuple[int, int, int, int, int, int, Match]:
    """What taking a match does to a path: words matched, distance, where it stands, bits of its hypothesis words."""
    ref_start, ref_end, start, end, module = match
    ref_length, length = ref_end - ref_start, end - start
    gain = ref_length + length if module == EXACT else ref_length // 2 + length // 2
    return gain * RANK_OF_WORD, abs(ref_start - start), start, end, ref_end, (1 << end) - (1 << start), match


def fixed_matches(starting_at: list[list[Match]]) -> set[int]:
    """Reference positions of the matches that are alone there and whose words no other match covers on either side."""
    hyp_once = hyp_twice = ref_once = ref_twice = 0                          # bits of words that one match covers, or two
    alone = []
    for matches in starting_at:
        for ref_start, ref_end, hyp_start, hyp_end, _ in matches:
            hyp_words, ref_words = (1 << hyp_end) - (1 << hyp_start), (1 << ref_end) - (1 << ref_start)
            hyp_twice |= hyp_once & hyp_words
            ref_twice |= ref_once & ref_words
            hyp_once |= hyp_words
            ref_once |= ref_words
        if len(matches) == 1:
            alone.append((ref_start, hyp_words, ref_words))
    return {start for start, hyp_words, ref_words in alone if not hyp_words & hyp_twice and not ref_words & ref_twice}
