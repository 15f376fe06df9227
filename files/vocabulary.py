"""The tokens of a byte-level BPE, its merges, and the tokens that were added to it later.

    vocab.json, merges.txt    token -> id; the pairs in the order in which they were learned
    tokenizer.json            both in one (tokenizer_json.py); where all three are there, they have to agree
    added_tokens.json         token -> id; newer folders have them in tokenizer_config.json or tokenizer.json instead

Left out: what the special tokens are for (special_tokens.py).
"""
import re
from dataclasses import dataclass
from pathlib import Path

from files.text import read_json, read_lines, shorten
from files.tokenizer_json import TokenizerJson, read_tokenizer_json

# The form of a token that is no text, where no file says what it is; fairseq filled RoBERTa's vocabulary up with madeupwords.
CONTROL_TOKEN = re.compile(r"<.+>|\[.+\]|madeupword\d{4}")
# What a vocabulary may leave out: control characters, and bytes of no character that there is.
RARE_BYTES = {*range(9), 11, 12, *range(14, 32), 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
RULES = ("single_word", "lstrip", "rstrip")                                  # by which added tokens may be looked for in texts
LISTS_OF_SPECIAL = ("additional_special_tokens", "extra_special_tokens")     # in tokenizer_config.json, by transformers 4 and 5


@dataclass
class Vocabulary:
    """source: the file of the tokens. ids: token -> id, from 0 to their number - 1. ranks: token -> its bytes, in the order of
    ranks, bytes first, then merges. added: token -> whether it is special; None: no file says it. rules: token -> by what else
    than its letters it is looked for in texts. whole: tokenizer.json."""
    source: Path
    ids: dict[str, int]
    ranks: dict[str, bytes]
    added: dict[str, bool | None]
    rules: dict[str, str]
    whole: TokenizerJson | None

    def bytes_of(self, token: str) -> bytes:
        """The text of a token: of the BPE's, and of a word that was added; a control token has none."""
        special = self.added.get(token, True)
        is_control = CONTROL_TOKEN.fullmatch(token) if special is None else special
        return self.ranks.get(token, b"" if is_control else token.encode("utf-8"))


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in the files.
    Printable Latin-1 stands for itself; the other 68 bytes, space and line break among them, are U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def read_vocabulary(directory: Path, settings: dict) -> Vocabulary:
    """The vocabulary of a model folder. settings: its tokenizer_config.json. Merges have to be as BPE training leaves them:
    each pair made of bytes and earlier pairs, no token formed twice. Raises ValueError with file and place."""
    vocab_path, merges_path, whole_path = (directory / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    whole = read_tokenizer_json(whole_path) if whole_path.is_file() else None
    if vocab_path.is_file() and merges_path.is_file():
        source, place, ids, merges = vocab_path, f"{merges_path}, line", read_json(vocab_path), dict(read_lines(merges_path))
        if merges[1].startswith("#version"):
            del merges[1]
        if whole and (list(merges.values()) != whole.merges or any(whole.ids.get(token, number) != number
                                                                   for token, number in ids.items())):
            raise ValueError(f"{directory}: vocab.json and merges.txt hold one tokenizer, tokenizer.json another: delete what "
                             "is not this model's")
    elif whole:
        source, place, ids, merges = whole_path, f"{whole_path}, merge", whole.ids, dict(enumerate(whole.merges, 1))
    else:
        missing = merges_path if vocab_path.is_file() else vocab_path
        raise FileNotFoundError(f"{missing} is missing: put the tokenizer's vocab.json and merges.txt there, or its "
                                "tokenizer.json")
    found = added_tokens(directory, settings, whole.added if whole else [])
    ids = add_ids(directory, source, ids, found)
    check_ids(ids, source)
    added, rules = {}, {}
    for _, token, _, entry in found:
        if token in ids:
            added[token] = entry.get("special", added.get(token))
            if rule := next(filter(entry.get, RULES), None):
                rules[token] = rule
    return Vocabulary(source, ids, rank_tokens(ids, merges, source, place), added, rules, whole)


# ---------------------------------------------------------------- ids and ranks

def check_ids(ids: dict[str, int], source: Path) -> None:
    """Raises ValueError unless each of the ids from 0 on is one token's."""
    if not ids or {number for number in ids.values() if type(number) is int} != set(range(len(ids))):
        odd = next((f"'{token}': {number!r}" for token, number in ids.items() if number not in range(len(ids))), "an id twice")
        raise ValueError(f"{source}: found {odd}, expected the ids 0 to {len(ids) - 1}, each for one token")


def rank_tokens(ids: dict[str, int], merges: dict[int, str], source: Path, place: str) -> dict[str, bytes]:
    """Token -> its bytes, in the order of ranks. merges: by their numbers at `place`. Raises ValueError for a merge that
    training could not have made."""
    ranks = {char: bytes([byte]) for char, byte in byte_alphabet().items()}
    for char in ranks:
        if char not in ids and ranks[char][0] not in RARE_BYTES:
            raise ValueError(f"{source}: '{char}' is missing, expected all 256 bytes of a byte-level BPE")
    for number, line in merges.items():
        first, _, second = line.partition(" ")
        token = first + second
        if first not in ranks or second not in ranks or token in ranks or token not in ids:
            raise ValueError(f"{place} {number}: {merge_problem(line, ranks, source)}")
        ranks[token] = ranks[first] + ranks[second]
    return ranks


def merge_problem(line: str, ranks: dict[str, bytes], source: Path) -> str:
    """What is wrong with a merge that rank_tokens cannot use."""
    pair = line.split(" ")
    if len(pair) != 2:
        return f"found {shorten(line)}, expected two tokens with one space between"
    for part in pair:
        if part not in ranks:
            return f"'{part}' is neither a byte nor formed by a line above; fetch the file again"
    problem = "is formed a second time" if "".join(pair) in ranks else f"is missing in {source.name}"
    return f"'{''.join(pair)}' {problem}; use vocab.json and merges.txt of one model"


# ---------------------------------------------------------------- added tokens

def added_tokens(directory: Path, settings: dict, in_whole: list[dict]) -> list[tuple[str, str, int | None, dict]]:
    """(file, token, id, its entry there) of all files that name added tokens; no id: one that is in the vocabulary already.
    Raises ValueError for a file that names them in no known way."""
    path, file = directory / "added_tokens.json", "added_tokens.json"
    try:
        found = [(file, token, number, {}) for token, number in (read_json(path) if path.is_file() else {}).items()]
        file = "tokenizer_config.json"
        found += [(file, entry["content"], int(number), entry)
                  for number, entry in (settings.get("added_tokens_decoder") or {}).items()]
        found += [(file, token_of(token), None, {"special": True}) for key in LISTS_OF_SPECIAL
                  if isinstance(settings.get(key), list) for token in settings[key]]
        file = "tokenizer.json"
        found += [(file, entry["content"], entry["id"], entry) for entry in in_whole]
        if not all(isinstance(token, str) and token and type(number) in (int, type(None)) for _, token, number, _ in found):
            raise ValueError("a token without text or id")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{directory / file}: names its added tokens in no known way ({error}); fetch the file "
                         "again") from None
    return found


def add_ids(directory: Path, source: Path, ids: dict[str, int], found: list[tuple[str, str, int | None, dict]]
            ) -> dict[str, int]:
    """The ids with those of the added tokens. Raises ValueError for a token with two ids."""
    ids, said_in = dict(ids), {}
    for file, token, number, _ in found:
        if number is not None and ids.setdefault(token, number) != number:
            raise ValueError(f"{directory}: {said_in.get(token, source.name)} gives '{token}' the id {ids[token]!r}, {file} "
                             f"{number}: use the files of one tokenizer")
        said_in.setdefault(token, file)
    return ids


def token_of(value: object) -> object:
    """A token as JSON files have it: its text, or {"content": its text, ...}."""
    return value.get("content") if isinstance(value, dict) else value
