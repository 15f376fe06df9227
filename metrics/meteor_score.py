"""METEOR's score of an alignment, and the choice of the reference that counts. The formulas stand in meteor.py.
Left out: parameters for other languages and for tasks such as tuning."""
from collections.abc import Iterable
from itertools import chain, zip_longest

from metrics.meteor_alignment import EXACT, MODULE_WEIGHTS, PARAPHRASE, STEM, SYNONYM, Match, Matcher, align, occurrences
from metrics.meteor_resources import load_lexicon

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75


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
        hyp_functions, ref_functions = sum(hyp_function[hyp_start:hyp_end]), sum(ref_function[ref_start:ref_end])
        statistics[4 + 4 * module] += hyp_matched - hyp_functions
        statistics[5 + 4 * module] += ref_matched - ref_functions
        statistics[6 + 4 * module] += hyp_functions
        statistics[7 + 4 * module] += ref_functions
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
    return statistics[20:] == [1, *statistics[:2]]


def best_statistics(matcher: Matcher, references: list[list[str]]) -> list[int]:
    """The statistics of a hypothesis with the reference that scores best; of equally good ones the first.
    The references are taken in the order of what they could score at most, and the search ends where not even that
    reaches the best score so far. It spares two references in three their alignment and never changes the result."""
    at_most = list(map(Ceiling(matcher).of, references))
    best_score, best_index, best = -1.0, -1, []
    for index in sorted(range(len(references)), key=at_most.__getitem__, reverse=True):
        if at_most[index] + 1e-9 < best_score:                               # the margin is for rounding
            break
        statistics = statistics_of(matcher.words, references[index], align(matcher.matches(references[index])))
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

    def __init__(self, matcher: Matcher):
        self.matcher = matcher
        self.content_words, self.weighted_length = weigh_words(matcher.words)
        self.phrase_reach = {phrase: reach_of_phrase(phrase, chain(*sides)) for phrase, sides in matcher.phrases.items()}

    def of(self, reference: list[str]) -> float:
        """The limit for this reference."""
        n = len(reference)
        hyp, ref = [0] * 4, [0] * 4                                          # bits of the words that each module can match
        hyp_continues = ref_continues = 0                                    # bits of those that may continue a chunk
        begin, end = [0] * (n + 1), [0] * (n + 1)                            # where matches begin and end in the hypothesis
        for j, word in enumerate(reference):
            for module, i in self.matcher.word_matches.get(word, ()):
                hyp[module] |= 1 << i
                ref[module] |= 1 << j
                begin[j] |= 1 << i
            end[j + 1] = begin[j] << 1
        for phrase, j in occurrences(reference, self.matcher.phrases, self.matcher.beginnings):
            length, begins, ends, words, following = self.phrase_reach[phrase]
            hyp[PARAPHRASE] |= words
            ref[PARAPHRASE] |= (1 << j + length) - (1 << j)
            hyp_continues |= following
            ref_continues |= (1 << j + length) - (2 << j)
            begin[j] |= begins
            end[j + length] |= ends
        for j in range(n):
            if continuing := begin[j] & end[j]:
                hyp_continues |= continuing
                ref_continues |= 1 << j
        ref_content_words, ref_length = weigh_words(reference)
        precise, hyp_sure, hyp_beginning = matchable(hyp, hyp_continues, self.content_words)
        recalled, ref_sure, ref_beginning = matchable(ref, ref_continues, ref_content_words)
        all_match = hyp_sure + len(hyp_beginning) == len(self.matcher.words) and ref_sure + len(ref_beginning) == n
        limit, matched = 0.0, hyp_sure + ref_sure
        for chunks, (hyp_weight, ref_weight) in enumerate(
                zip_longest([0.0, *hyp_beginning], [0.0, *ref_beginning], fillvalue=0.0)):
            precise += hyp_weight
            recalled += ref_weight
            matched += (hyp_weight > 0) + (ref_weight > 0)
            if precise and recalled:
                fragmentation = 0.0 if all_match and chunks <= 1 else max(chunks, 1) / (matched / 2)
                limit = max(limit, formula(precise / self.weighted_length, recalled / ref_length, fragmentation))
        return limit


def weigh_words(words: list[str]) -> tuple[int, float]:
    """Bits of the content words, and the weighted length."""
    function_words = load_lexicon().function_words
    content_words = sum(1 << i for i, word in enumerate(words) if word not in function_words)
    return content_words, weighted_length(len(words), len(words) - content_words.bit_count())


def reach_of_phrase(phrase: str, matches: Iterable[tuple[int, int, int]]) -> tuple[int, int, int, int, int]:
    """The phrase's length, and bits of its paraphrases: where they begin and end, their words, all but their first words."""
    begins = ends = words = following = 0
    for _, start, end in matches:
        begins |= 1 << start
        ends |= 1 << end
        words |= (1 << end) - (1 << start)
        following |= (1 << end) - (2 << start)
    return phrase.count(" ") + 1, begins, ends, words, following


def matchable(by_module: list[int], continues: int, content_words: int) -> tuple[float, int, list[float]]:
    """Of the words that may continue a chunk the weights' sum and number; of the others the weights, the largest first."""
    total, number, beginning, matched = 0.0, 0, [], 0
    for module in (EXACT, SYNONYM, STEM, PARAPHRASE):                        # the largest weight first
        words = by_module[module] & ~matched
        matched |= words
        for part, weight in ((words & content_words, DELTA), (words & ~content_words, 1 - DELTA)):
            sure = (part & continues).bit_count()
            number += sure
            total += sure * weight * MODULE_WEIGHTS[module]
            beginning += [weight * MODULE_WEIGHTS[module]] * (part.bit_count() - sure)
    return total, number, sorted(beginning, reverse=True)
