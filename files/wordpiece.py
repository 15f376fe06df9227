"""WordPiece (Wu et al. 2016), by which BERT cuts text: words first, then each by the longest pieces that the vocabulary has.

    vocab.txt                a token a line, its number the id; ## in front: goes on with a word
    tokenizer.json           the same and more, where there is no vocab.txt; where there are both, they have to agree
    tokenizer_config.json    do_lower_case, strip_accents, tokenize_chinese_chars, names of special tokens

As transformers' BertTokenizerFast has it: control characters go, case and accents where the model knows none, every Chinese
character and every punctuation mark is a word. [SEP] in a text is the token, as is every special one. Unicode's tables are
Python's, the library's those of 2015: marks and punctuation of scripts that came later differ. Left out: learning a vocabulary;
added tokens that are looked for with rules.
"""
import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from files.framing import Tokenizer
from files.text import read_json, read_lines, shorten
from files.vocabulary import RULES, add_ids, added_tokens, check_ids, token_of

SPECIAL = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
SETTINGS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}    # accents: None is as lower case
IN_TOKENIZER_JSON = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars":
                     "handle_chinese_chars"}
CLASSES = ("BertTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
LONGEST_WORD = 100                                                           # characters; a longer one is unknown
CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
           (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))                             # 0x2B920 as the library has it, for 0x2B820


class CharacterTable(dict):
    """For str.translate: what a function makes of a character, asked once for each."""

    def __init__(self, replace):
        super().__init__()
        self.replace = replace

    def __missing__(self, code: int) -> str:
        self[code] = self.replace(chr(code))
        return self[code]


def cleaned(char: str, chinese: bool) -> str:
    """Nothing for a control character, a space for white space, spaces around a Chinese one."""
    if char in "\t\n\r":
        return " "
    if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Co"):
        return ""
    if char.isspace():
        return " "
    return f" {char} " if chinese and any(first <= ord(char) <= last for first, last in CHINESE) else char


def is_punctuation(char: str) -> bool:
    """All of ASCII that is neither letter, digit nor space counts, too, such as $ and ^."""
    return char.isascii() and char.isprintable() and not char.isalnum() and char != " " or unicodedata.category(char)[0] == "P"


class WordPiece(Tokenizer):
    """BERT's tokenizer; made by load_tokenizer."""

    def __init__(self, ids: dict[str, int], special: dict[str, int], added: dict[str, int], settings: dict):
        """ids: of all tokens. special: by their roles. added: found in texts as they stand. settings: as SETTINGS."""
        self.ids, self.added, self.vocab_size = ids, added, len(ids)
        self.tokens = {number: token for token, number in ids.items()}
        self.bos_id, self.eos_id, self.pad_id, self.mask_id = (special[role] for role in ("cls", "sep", "pad", "mask"))
        self.unk_id, self.eos_ids, self.special = special["unk"], (special["sep"],), {*special.values()}
        self.start, self.between, self.end = (self.bos_id,), (self.eos_id,), (self.eos_id,)
        lower, strip = settings["do_lower_case"], settings["strip_accents"]
        self.strip = lower if strip is None else strip
        self.clean = CharacterTable(functools.partial(cleaned, chinese=settings["tokenize_chinese_chars"]))
        self.simplify = CharacterTable(lambda char: "" if self.strip and unicodedata.category(char) == "Mn" else
                                       char.lower() if lower else char)
        self.set_apart = CharacterTable(lambda char: f" {char} " if is_punctuation(char) else char)
        self.at_added = re.compile("(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")")
        self.fingerprint = hashlib.sha256(repr((ids, special, added, settings)).encode("utf-8")).hexdigest()
        self.pieces_of_word = functools.lru_cache(1 << 17)(self.cut)

    def words(self, text: str) -> list[str]:
        """The words of a text without added tokens, as the vocabulary spells them."""
        text = text.translate(self.clean)
        if self.strip:
            text = unicodedata.normalize("NFD", text)
        return text.translate(self.simplify).translate(self.set_apart).split()

    def cut(self, word: str) -> list[int]:
        """The longest token that the word begins with, then the longest that goes on there, and so on to its end. A word that
        cannot be cut so, or is too long, is one unknown token."""
        ids, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            prefix = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in self.ids), None)
            if end is None:
                return [self.unk_id]
            ids.append(self.ids[prefix + word[start:end]])
            start = end
        return ids or [self.unk_id]

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, without framing. Empty text has none."""
        text.encode("utf-8")                                                 # no half of a surrogate pair
        ids = []
        for part in self.at_added.split(text):
            ids += [self.added[part]] if part in self.added else [
                number for word in self.words(part) for number in self.pieces_of_word(word)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of the ids as the vocabulary spells them, single spaces between, but none before . ? ! and a comma; special
        tokens are left out."""
        self.check_ids(ids)
        words = " ".join(self.tokens[number] for number in ids if number not in self.special).replace(" ##", "")
        return re.sub(" ([.?!,])", r"\1", words)


# ---------------------------------------------------------------- files

def is_wordpiece(directory: Path, model_type: object) -> bool:
    """Whether a folder's tokenizer is WordPiece: a BERT's, or, where config.json does not say, by the vocabulary's files."""
    if model_type is not None:
        return model_type == "bert"
    if any((directory / name).is_file() for name in ("vocab.txt", "vocab.json")):
        return not (directory / "vocab.json").is_file()
    whole = directory / "tokenizer.json"
    model = read_json(whole).get("model") if whole.is_file() else None
    return isinstance(model, dict) and model.get("type") == "WordPiece"


def read_wordpiece(directory: Path, settings: dict[str, dict]) -> WordPiece:
    """The tokenizer of a folder. settings: the content of its JSON files (special_tokens.read_settings). Raises ValueError for
    files that contradict each other or mean something else, FileNotFoundError where there is no vocabulary."""
    config, path, whole_path = settings["tokenizer_config.json"], directory / "vocab.txt", directory / "tokenizer.json"
    name = config.get("tokenizer_class")
    if name is not None and str(name).removesuffix("Fast") not in CLASSES:
        raise ValueError(f"{directory / 'tokenizer_config.json'}: tokenizer_class is {name!r}, expected BertTokenizer")
    whole = read_json(whole_path) if whole_path.is_file() else None
    vocab, normalizer, added = ({}, {}, []) if whole is None else parts_of(whole, whole_path)
    ids = read_vocab(path) if path.is_file() else dict(vocab)
    if not ids:
        raise FileNotFoundError(f"{path} is missing: put the tokenizer's vocab.txt there, or its tokenizer.json")
    if whole is not None and any(vocab.get(token) != number for token, number in ids.items()):
        raise ValueError(f"{directory}: vocab.txt holds one tokenizer, tokenizer.json another: delete what is not this model's")
    chosen = {}
    for key, usual in SETTINGS.items():
        said = [part[name] for part, name in ((config, key), (normalizer, IN_TOKENIZER_JSON[key])) if name in part]
        chosen[key] = said[0] if said else usual
        if len(said) == 2 and said[0] != said[1]:
            raise ValueError(f"{directory}: tokenizer_config.json says {key} {said[0]!r}, tokenizer.json {said[1]!r}: make the "
                             "two agree")
        if not (chosen[key] in (True, False) or chosen[key] is usual is None):
            raise ValueError(f"{directory}: {key} is {chosen[key]!r}, expected true or false")
    return WordPiece(*special_of(directory, settings, ids, added), chosen)


def read_vocab(path: Path) -> dict[str, int]:
    """Token -> the number of its line, from 0. Raises ValueError, with the line, for an empty one and a token twice."""
    ids: dict[str, int] = {}
    for number, token in read_lines(path):
        if not token or token in ids:
            raise ValueError(f"{path}, line {number}: found {shorten(token)}, expected a token that stands on no other line; "
                             "fetch the file again")
        ids[token] = number - 1
    return ids


def parts_of(content: dict, path: Path) -> tuple[dict[str, int], dict, list[dict]]:
    """tokenizer.json's vocabulary, normalizer and added tokens. Raises ValueError for one that does other than BERT's."""
    try:
        model, normalizer = content["model"], content.get("normalizer") or {}
        for part, key, expected in ((model, "type", "WordPiece"), (normalizer, "type", "BertNormalizer"),
                                    (content.get("pre_tokenizer") or {}, "type", "BertPreTokenizer"),
                                    (normalizer, "clean_text", True), (model, "continuing_subword_prefix", "##"),
                                    (model, "max_input_chars_per_word", LONGEST_WORD)):
            if part.get(key) != expected:
                raise ValueError(f"{path}: found {key} {part.get(key)!r}, expected {expected!r}, as a BERT's tokenizer has it")
        return {**model["vocab"]}, normalizer, list(content.get("added_tokens") or [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not as the tokenizers library writes it ({type(error).__name__}: {error}); fetch the file "
                         "again") from None


def special_of(directory: Path, settings: dict[str, dict], ids: dict[str, int], in_whole: list[dict]
               ) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """All ids, those of the special tokens by their roles, and those of all tokens that are found in texts as they stand."""
    source = directory / "vocab.txt"
    found = added_tokens(directory, settings["tokenizer_config.json"], in_whole)
    ids = add_ids(directory, source, ids, found)
    check_ids(ids, source)
    special = {}
    for role, usual in SPECIAL.items():
        files = [name for name in ("tokenizer_config.json", "special_tokens_map.json") if settings[name].get(f"{role}_token")]
        token = token_of(settings[files[0]][f"{role}_token"]) if files else usual
        if token not in ids:
            raise ValueError(f"{directory}: {role}_token is {token!r}{f' in {files[0]}' if files else ''}, which {source.name} "
                             "does not hold: use the tokenizer's files of one model")
        special[role] = ids[token]
    added = {token: number for token, number in ids.items() if number in special.values()}
    for file, token, _, entry in found:
        rule = next(filter(entry.get, RULES), None) or ("normalized" if entry.get("normalized") else None)
        if rule:
            raise ValueError(f"{directory / file}: the added token '{token}' has {rule} true, which is not supported")
        added[token] = ids[token]
    return ids, special, added
