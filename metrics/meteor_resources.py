"""What METEOR knows about English: function words, prefixes, WordNet synonyms and a paraphrase table.

The lists come from the PyPI package pycocoevalcap, which carries METEOR 1.5 as a jar (a zip file) and its paraphrase
table as a gz file. Both are read as data: nothing of that package is imported and no Java is started.
The table holds 5.3 million pairs in 272 MB of text, of which a test set can use a few thousand. It is read once, as a
stream, and pairs whose phrases do not occur in the texts are dropped. Phrases are compared by fingerprints, a block at a
time in numpy, so that no Python object is made for a pair that is dropped. Left out: the lists for other languages.
"""
import importlib.util
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from files.cache import kept

PACKAGE = "pycocoevalcap==1.2"
LONGEST_PHRASE = 7                                                           # words, in the paraphrase table

# Suffix and ending that replaces it, in WordNet's order: nouns, verbs, adjectives
WORDNET_SUFFIXES = [pair.split(":") for pair in """s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y es:e es: ed:e ed: ing:e
    ing: er: est: er:e est:e""".split()]


def resource_paths() -> tuple[Path, Path]:
    """The jar and the paraphrase table inside pycocoevalcap.
    Raises FileNotFoundError, with the command that installs the package, if they are not there."""
    package = importlib.util.find_spec("pycocoevalcap")
    for folder in package.submodule_search_locations or () if package else ():
        jar = Path(folder) / "meteor" / "meteor-1.5.jar"
        table = Path(folder) / "meteor" / "data" / "paraphrase-en.gz"
        if jar.is_file() and table.is_file():
            return jar, table
    raise FileNotFoundError(
        f"METEOR needs the word lists of {PACKAGE}, which is not installed: run  pip install --no-deps {PACKAGE}")


class Lexicon:
    """The word lists of METEOR's jar: function words, words whose period is no full stop, and synonym sets."""

    def __init__(self, jar: Path):
        with zipfile.ZipFile(jar) as archive:
            def lines(name: str) -> list[str]:
                return archive.read(name).decode("utf-8").removesuffix("\n").split("\n")

            self.function_words = frozenset(lines("function/english.words"))
            # word whose period is no full stop -> whether only before numbers
            self.prefixes = {word: bool(mark) for word, *mark in (
                line.split() for line in lines("nonbreaking/english.prefixes") if line and not line.startswith("#"))}
            synsets = lines("synonym/english.synsets")
            exceptions = lines("synonym/english.exceptions")
        self.words, self.ids = synsets[::2], synsets[1::2]                   # sorted words, and "id id ..." for each
        self.base_forms: dict[str, list[str]] = {}
        for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
            for form in forms.split():
                self.base_forms.setdefault(form, []).append(base)

    @lru_cache(maxsize=1 << 16)  # noqa: B019 - one lexicon lives as long as the program
    def synsets(self, word: str) -> frozenset[str]:
        """The WordNet synonym sets of a word and of its base forms."""
        bases = self.base_forms[word] if word in self.base_forms else [self.base_form(word)]
        return frozenset(synset for form in (word, *bases) for synset in self.ids_of(form).split())

    def ids_of(self, form: str) -> str:
        """The numbers of a word's synonym sets, "" for a word without. The list is searched as it stands in the file: a dict
        would take longer to make than all searches for a test set."""
        place = bisect_left(self.words, form)
        return self.ids[place] if place < len(self.words) and self.words[place] == form else ""

    def base_form(self, word: str) -> str:
        """The first form in WordNet that a suffix rule makes of the word: "dishes" -> "dish"; "" if there is none."""
        if word.endswith("ss") or len(word) <= 2:
            return word
        forms = (word.removesuffix(suffix) + ending for suffix, ending in WORDNET_SUFFIXES if word.endswith(suffix))
        return next((form for form in forms if self.ids_of(form)), "")


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """The word lists, read once."""
    return Lexicon(resource_paths()[0])


# ---------------------------------------------------------------- paraphrase table

BLOCK_BYTES = 1 << 21                                                        # of compressed table; about 9 MB of text
FINGERPRINT_BITS = 24
IN_REFERENCES, IN_HYPOTHESES = np.uint8(1), np.uint8(2)
LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)  # masks for the first n bytes
MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)     # odd, random bits


def paraphrases_near(references: list[str]) -> bytes:
    """All pairs of the paraphrase table with a phrase in the references, as lines: phrase, paraphrase, phrase, ...
    The references are normalised texts. A few pairs more may be among them (two phrases can share a fingerprint);
    none is missing. They are kept on disk (files/cache.py). Raises ValueError if the table is damaged."""
    table = resource_paths()[1]
    with table.open("rb") as file:
        file.seek(max(table.stat().st_size - 8, 0))
        checksum_and_size = file.read()                                      # the gzip trailer
    depends_on = [Path(__file__).read_bytes(), checksum_and_size, "\n".join(references).encode("utf-8")]
    return kept(depends_on, lambda: scan_table(table, references))


def select_paraphrases(pairs: bytes, references: list[str], hypotheses: list[str]) -> list[tuple[str, str]]:
    """Of `paraphrases_near(references)` those that match a phrase of a reference with one of a hypothesis, in order."""
    seen = seen_in(references, IN_REFERENCES) | seen_in(hypotheses, IN_HYPOTHESES)
    selected, _ = select_pairs(pairs, 2, seen, lambda a, b: (a & b >> 1 | b & a >> 1) & IN_REFERENCES)
    lines = selected.decode("utf-8").split("\n")
    return list(zip(lines[:-1:2], lines[1::2], strict=True))


def scan_table(table: Path, references: list[str]) -> bytes:
    """Read the whole table; one thread decompresses the next block while this one is looked through.
    Raises ValueError if the table ends too early or is not what was compressed: with fewer pairs METEOR would be lower."""
    seen = seen_in(references, IN_REFERENCES)
    found, rest = [], b""
    mend = f"expected a whole gzip file: run  pip install --force-reinstall --no-deps {PACKAGE}"
    with table.open("rb") as file, ThreadPoolExecutor(1) as ahead:
        decompressor = zlib.decompressobj(wbits=31)

        def next_block() -> bytes:
            try:
                return decompressor.decompress(file.read(BLOCK_BYTES))
            except zlib.error as error:
                raise ValueError(f"{table}: {error}, {mend}") from None

        pending = ahead.submit(next_block)
        while block := pending.result():
            pending = ahead.submit(next_block)
            pairs, rest = select_pairs(rest + block, 3, seen, np.bitwise_or)
            found.append(pairs)
    if not decompressor.eof:
        raise ValueError(f"{table}: the file is cut off, {mend}")
    return b"".join(found)


def select_pairs(text: bytes, lines_per_pair: int, seen: np.ndarray, condition: Callable) -> tuple[bytes, bytes]:
    """The pairs of `text` that fulfil condition(seen of phrase a, seen of phrase b), and the incomplete rest of text.
    A pair is two lines, or three where its probability stands first; it comes back as two lines."""
    line_ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
    line_ends = line_ends[:len(line_ends) // lines_per_pair * lines_per_pair]
    ends = line_ends.reshape(-1, lines_per_pair)                             # (pairs, lines)
    starts = np.concatenate([[0], line_ends[:-1] + 1])[:len(line_ends)].reshape(ends.shape)
    a, b = (seen[fingerprints(text, starts[:, i], ends[:, i])] for i in (-2, -1))
    chosen = np.flatnonzero(condition(a, b))
    spans = zip(starts[chosen, -2].tolist(), (ends[chosen, -1] + 1).tolist(), strict=True)
    complete = int(line_ends[-1]) + 1 if len(line_ends) else 0
    return b"".join(text[start:end] for start, end in spans), text[complete:]


def seen_in(texts: list[str], flag: np.uint8) -> np.ndarray:
    """A table of 2^FINGERPRINT_BITS bytes that holds `flag` for the fingerprint of every phrase in the texts."""
    text = "\n".join(texts).encode("utf-8")
    characters = np.frombuffer(text, dtype=np.uint8)
    separators = np.flatnonzero((characters == ord(" ")) | (characters == ord("\n")))
    starts = np.concatenate([[0], separators + 1])                           # (words,)
    ends = np.concatenate([separators, [len(text)]])
    lines = np.concatenate([[0], np.cumsum(characters[separators] == ord("\n"))])
    seen = np.zeros(1 << FINGERPRINT_BITS, dtype=np.uint8)
    for words in range(1, LONGEST_PHRASE + 1):
        first, last = slice(None, max(len(lines) - words + 1, 0)), slice(words - 1, None)
        inside = lines[first] == lines[last]
        seen[fingerprints(text, starts[first][inside], ends[last][inside])] = flag
    return seen


def fingerprints(text: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """FINGERPRINT_BITS bits for each slice of text, mixed from its first 8 bytes, its last 8 bytes and its length."""
    padded = text + bytes(8)
    eight_bytes_from = np.ndarray((len(text) + 1,), dtype="<u8", buffer=padded, strides=(1,))    # overlapping windows
    lengths = ends - starts
    low_bytes = LOW_BYTES[np.minimum(lengths, 8)]
    mixed = (eight_bytes_from[starts] & low_bytes) * MIXERS[0]
    mixed ^= (eight_bytes_from[np.maximum(ends - 8, starts)] & low_bytes) * MIXERS[1]
    mixed ^= lengths.astype(np.uint64) * MIXERS[2]
    mixed ^= mixed >> np.uint64(29)
    return mixed * MIXERS[0] >> np.uint64(64 - FINGERPRINT_BITS)
