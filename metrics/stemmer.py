"""The Snowball English stemmer (Porter2): METEOR counts two words with the same stem as a match.

Porter, "The English (Porter2) stemming algorithm", snowballstem.org, in the version METEOR 1.5 contains. A suffix is
taken off only inside a region of the word:

    R1  what follows the first consonant after a vowel        beautiful -> iful
    R2  the same once more inside R1                          beautiful -> ul

Left out: later amendments of the algorithm, which change some stems. NLTK's English stemmer is not a replacement: it
differs on words such as "communization".
"""
import re
from collections.abc import Iterable
from functools import lru_cache

VOWELS = "aeiouy"
EXCEPTIONS = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie",
    "idly": "idl", "gently": "gentl", "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl",
    **{word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")},
}
FINISHED_AFTER_PLURAL = {"inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"}

VOWEL = re.compile(f"[{VOWELS}]")
R1_PREFIX = re.compile("gener|commun|arsen")
REGION = re.compile(f".*?[{VOWELS}][^{VOWELS}]")
SHORT_SYLLABLE_END = re.compile(f"(?:[^{VOWELS}][{VOWELS}][^{VOWELS}wxY]|^[{VOWELS}][^{VOWELS}])$")
DOUBLE_END = re.compile("(?:bb|dd|ff|gg|mm|nn|pp|rr|tt)$")

# suffix -> replacement, inside R1: relational -> relate, friendli -> friend
STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "ogi": "og",
    "fulli": "ful", "lessli": "less", "li": "",
}
# the same, but "ative" inside R2: formalize -> formal, goodness -> good
STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}
# taken off inside R2: adjustment -> adjust, adoption -> adopt
STEP_4 = dict.fromkeys("al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion".split(), "")
ONLY_AFTER = {"ogi": "l", "li": tuple("cdeghkmnrt"), "ion": ("s", "t")}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word: "restaurants" -> "restaur", "families" -> "famili"."""
    if word in EXCEPTIONS:
        return EXCEPTIONS[word]
    if len(word) <= 2:
        return word
    word = re.sub("^y", "Y", word.removeprefix("'"))                         # Y is a y that is a consonant
    word = re.sub(f"([{VOWELS}])y", r"\1Y", word)
    r1, r2 = regions(word)
    word = strip_plural(re.sub("(?:'s'|'s|')$", "", word))
    if word in FINISHED_AFTER_PLURAL:
        return word
    word = strip_past_and_participle(word, r1)
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in VOWELS:
        word = word[:-1] + "i"
    word = replace_suffix(word, STEP_2, r1)
    word = replace_suffix(word, STEP_3, r2 if word.endswith("ative") else r1)
    word = replace_suffix(word, STEP_4, r2)
    return strip_final_e_or_l(word, r1, r2).replace("Y", "y")


def regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin."""
    first = R1_PREFIX.match(word) or REGION.match(word)
    r1 = first.end() if first else len(word)
    second = REGION.match(word, r1)
    return r1, second.end() if second else len(word)


def longest_suffix(word: str, suffixes: Iterable[str]) -> str:
    return max((suffix for suffix in suffixes if word.endswith(suffix)), key=len, default="")


def strip_plural(word: str) -> str:
    """Step 1a: sses -> ss, ties -> tie, cries -> cri, gaps -> gap."""
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and VOWEL.search(word[:-2]):
        return word[:-1]
    return word


def strip_past_and_participle(word: str, r1: int) -> str:
    """Step 1b: agreed -> agree, hopping -> hop, hoping -> hope, rated -> rate."""
    suffix = longest_suffix(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    rest = word.removesuffix(suffix)
    if suffix.startswith("ee"):
        return rest + "ee" if len(rest) >= r1 else word
    if not suffix or not VOWEL.search(rest):
        return word
    if DOUBLE_END.search(rest):
        return rest[:-1]
    short = len(rest) == r1 and SHORT_SYLLABLE_END.search(rest)
    return rest + "e" if short or rest.endswith(("at", "bl", "iz")) else rest


def replace_suffix(word: str, replacements: dict[str, str], region: int) -> str:
    """Replace the longest of some suffixes, if it begins in the region and after a letter that it may follow."""
    suffix = longest_suffix(word, replacements)
    rest = word.removesuffix(suffix)
    replaces = suffix and len(rest) >= region and (suffix not in ONLY_AFTER or rest.endswith(ONLY_AFTER[suffix]))
    return rest + replacements[suffix] if replaces else word


def strip_final_e_or_l(word: str, r1: int, r2: int) -> str:
    """Step 5: probate -> probat, but rate -> rate; controll -> control."""
    rest = word[:-1]
    in_r2 = word.endswith(("e", "ll")) and len(rest) >= r2
    return rest if in_r2 or word.endswith("e") and len(rest) >= r1 and not SHORT_SYLLABLE_END.search(rest) else word
