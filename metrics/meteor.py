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

The reading order is that of the computation: `normalize`, then `Matcher` and `align` in meteor_alignment.py, then
`statistics_of`, `score_of`, `best_statistics` in meteor_score.py; `meteor` puts the steps together.
Quirks of the original that change numbers are kept, and said where they happen. Left out: other languages, tasks and
parameters. Word lists and paraphrases are in meteor_resources.py, the stemmer in stemmer.py.
"""
import re
from functools import lru_cache
from itertools import chain
from pathlib import Path

from metrics import Scores
from metrics.meteor_alignment import Matcher, Paraphrases, Vocabulary
from metrics.meteor_resources import load_lexicon, paraphrases_near, select_paraphrases
from metrics.meteor_score import best_statistics, is_perfect, score_of
from metrics.texts import kept_groups

# ---------------------------------------------------------------- normalise

LETTERS = ("A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527"      # Latin, Cyrillic, phonetic extensions
           "\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697")
SPACES = " \t\n\x0b\f\r"
WORD = re.compile(f"[^{SPACES}]+")
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
    pieces = [text] if GLUED_MARKS.search(text) else WORD.findall(text)
    words = [word for piece in pieces for word in split_symbols(piece)]
    if "." in text:
        words = [part for word, following in zip(words, [*words[1:], ""], strict=True)
                 for part in split_period(word, following)]
    return [word.lower() for word in words if word not in WIDE_SPACES]


@lru_cache(maxsize=1 << 16)
def split_symbols(text: str) -> tuple[str, ...]:
    """The parts into which the substitutions break a text. They see no further than the spaces around a word, so that a
    word may come alone."""
    if PLAIN.fullmatch(text):
        return (text,) if text else ()
    text = f" {text} "
    for pattern, replacement in SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return tuple(WORD.findall(text))


def split_period(word: str, following: str) -> list[str]:
    """Decide whether the period at the end of a word is part of it: p.m. -> pm, "e.g." stays, "centre." is split."""
    rest = word[:-1]
    if not word.endswith(".") or not word.strip("."):
        return [word]
    if "." in rest and LETTER.search(rest):
        return [word.replace(".", "")]
    numeric_only = load_lexicon().prefixes.get(rest)
    whole = numeric_only is False or re.match("[a-z]", following) or numeric_only and re.match("[0-9]", following)
    return [word] if whole else [rest, "."]


# ---------------------------------------------------------------- whole sets

def meteor(references: list[list[str]], hypotheses: list[str]) -> Scores:
    """METEOR of texts that the PTB tokenizer has been over; references[i] are those of hypotheses[i].
    The column "meteor_stats" holds the statistics behind each segment's score. What concerns the references alone is kept
    on disk (files/cache.py). Raises FileNotFoundError if METEOR's word lists are not installed, ValueError if the paraphrase
    table is damaged."""
    reference_words, hypothesis_words = normalize_set(references, hypotheses)
    statistics = [best_statistics(matcher, texts)
                  for matcher, texts in zip(matchers_of(reference_words, hypothesis_words), reference_words, strict=True)]
    sums = [sum(counts) for counts in zip(*statistics, strict=True)]
    sums[20] -= sum(map(is_perfect, statistics))                             # so that sums of perfect matches stay perfect
    return Scores(score_of(sums), list(map(score_of, statistics)), columns={"meteor_stats": statistics})


def normalize_set(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[list[str]]], list[list[str]]]:
    """The words of every reference of every instance, and those of every hypothesis."""
    depends_on = [Path(__file__).read_bytes(), repr(load_lexicon().prefixes).encode("utf-8")]
    groups = kept_groups(references, depends_on, lambda texts: [" ".join(normalize(text)) for text in texts])
    return ([[line.split(" ") if line else [] for line in group] for group in groups],
            [normalize(text.replace("|||", "").replace("  ", " ")) for text in hypotheses])


def paraphrases_between(references: list[list[list[str]]], hypotheses: list[list[str]]) -> Paraphrases:
    """The pairs of the paraphrase table that can occur between these references and hypotheses."""
    reference_texts = [" ".join(words) for texts in references for words in texts]
    near = paraphrases_near(reference_texts)
    return Paraphrases(select_paraphrases(near, reference_texts, [" ".join(words) for words in hypotheses]))


def matchers_of(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[Matcher]:
    """Every hypothesis with what its words and phrases match in the references."""
    paraphrases = paraphrases_between(references, hypotheses)
    vocabulary = Vocabulary(chain.from_iterable(chain.from_iterable(references)))
    return [Matcher(words, texts, vocabulary, paraphrases) for texts, words in zip(references, hypotheses, strict=True)]
