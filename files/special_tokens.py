"""Which kind of tokenizer a model folder has, and which of its tokens begin, end and fill up texts: what its JSON files say.

    config.json               model_type, bos_token_id, eos_token_id, pad_token_id
    generation_config.json    eos_token_id, every token that ends a text
    tokenizer_config.json     tokenizer_class, bos_token, eos_token, ...
    special_tokens_map.json   the same tokens
    tokenizer.json            the frame around texts (tokenizer_json.py)

Two files that contradict each other are refused, with what each of them says; what no file says is as GPT-2 or RoBERTa has it.
Left out: the tokens of other models, and where these tokens come in a text (tokenizer.py).
"""
import sys
from dataclasses import dataclass
from pathlib import Path

from files.bases import MORE_MODELS
from files.text import read_json
from files.vocabulary import Vocabulary, token_of

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
USUAL = {"gpt2": {"eos": "<|endoftext|>"},
         "roberta": {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}}
CLASSES = {"GPT2Tokenizer": "gpt2", "RobertaTokenizer": "roberta"}           # transformers' own of these kinds
OF_ANY_KIND = ("PreTrainedTokenizer", "TokenizersBackend")                   # classes that say nothing of it
ROLES = ("bos", "eos", "pad", "cls", "sep", "unk", "mask")
USED = {"gpt2": ("eos",), "roberta": ("bos", "eos", "pad", "cls", "sep")}    # of the others, files may say what they like


@dataclass(frozen=True)
class SpecialTokens:
    """kind: "gpt2" or "roberta". ids: of the tokens by their roles, where the folder has one. ends: all that end a text.
    prefix_space: whether a text gets a space before it."""
    kind: str
    ids: dict[str, int]
    ends: tuple[int, ...]
    prefix_space: bool


@dataclass(frozen=True)
class Said:
    """What a file says of a role: {key: value}, which means one of `ids`."""
    file: str
    key: str
    value: object
    ids: list[int]

    def words(self, vocabulary: Vocabulary) -> str:
        tokens = [repr(token) for token, number in vocabulary.ids.items() if number in self.ids]
        ids = f", id {self.ids[0]}" if isinstance(self.value, str) else f" ({', '.join(tokens) or 'no token'})"
        return f"{self.file} says {self.key} {self.value!r}{ids}"


def read_settings(directory: Path) -> dict[str, dict]:
    """The content of each of FILES, {} where there is none."""
    return {name: read_json(directory / name) if (directory / name).is_file() else {} for name in FILES}


def find_special_tokens(directory: Path, settings: dict[str, dict], vocabulary: Vocabulary) -> SpecialTokens:
    """What the files say. Raises ValueError for a contradiction, another kind, and a token that there is not."""
    kind, said_by = kind_of_tokenizer(directory, settings)
    if kind is None:                                                         # a folder of tokens and merges alone
        kind, said_by = ("roberta" if "<s>" in vocabulary.ids else "gpt2"), vocabulary.source.name
    ids, ends = {}, []
    for role in ROLES:
        used, usual = role in USED[kind], USUAL[kind].get(role)
        said = all_said(role, used, directory, settings, vocabulary)
        agreed = agreement(directory, said, vocabulary) if used else [number for entry in said for number in entry.ids]
        if agreed:
            ids[role] = agreed[0]
        elif usual in vocabulary.ids:
            ids[role] = vocabulary.ids[usual]
        elif usual and used:
            raise ValueError(f"{vocabulary.source}: no {usual}, and no file says which token is {role}_token: expected GPT-2's "
                             "<|endoftext|> or RoBERTa's <s>, <pad> and </s>, or another in tokenizer_config.json")
        if role == "eos":                                                    # generation_config.json decides, if it says
            ends = {entry.file: entry.ids for entry in said if "config.json" in entry.file}
            ends = ends.get("generation_config.json") or ends.get("config.json") or []
    if kind == "roberta":
        ids = {"cls": ids["bos"], "sep": ids["eos"]} | ids
    settled = tuple(dict.fromkeys([ids["eos"], *ends]))
    return SpecialTokens(kind, ids, settled, prefix_space_of(directory, kind, said_by, settings, vocabulary, ids))


def kind_of_tokenizer(directory: Path, settings: dict[str, dict]) -> tuple[str | None, str]:
    """"gpt2", "roberta" or None, and what says so. Raises ValueError for another kind, and where two files differ."""
    model_type, said = settings["config.json"].get("model_type"), []
    if model_type is not None:
        if not isinstance(model_type, str) or model_type not in (*USUAL, *MORE_MODELS):
            raise ValueError(f"{directory / 'config.json'}: model_type is {model_type!r}, expected one of {', '.join(USUAL)}")
        said += [(model_type, f"config.json says model_type {model_type!r}")] if model_type in USUAL else []
    for file in ("config.json", "tokenizer_config.json"):
        name = settings[file].get("tokenizer_class")
        plain = str(name or OF_ANY_KIND[0]).removesuffix("Fast")
        if plain not in (*CLASSES, *OF_ANY_KIND):
            raise ValueError(f"{directory / file}: tokenizer_class is {name!r}, expected one of {', '.join(CLASSES)}")
        if plain in CLASSES:
            said.append((CLASSES[plain], f"{file} says tokenizer_class {name!r}"))
    for kind, words in said[1:]:
        if kind != said[0][0]:
            raise ValueError(f"{directory}: {said[0][1]}, {words}: use the files of one model")
    return said[0] if said else (None, "")


def all_said(role: str, used: bool, directory: Path, settings: dict[str, dict], vocabulary: Vocabulary) -> list[Said]:
    """What every file says of a role, if it does. An id beyond the vocabulary, such as GPT-2's 50256 that transformers writes
    into the config.json of any GPT-2, says nothing, which a line on stderr says if the role is used. Raises ValueError for a
    token that the tokenizer lacks, and for what is neither an id nor a token."""
    said, rows = [], settings["config.json"].get("vocab_size")
    rows = max(rows, len(vocabulary.ids)) if type(rows) is int else len(vocabulary.ids)
    for file, content in settings.items():
        by_id = file in ("config.json", "generation_config.json")
        key = f"{role}_token_id" if by_id else f"{role}_token"
        value = content.get(key) if by_id else token_of(content.get(key))
        if value in (None, []) or (file == "generation_config.json" and role != "eos"):
            continue
        listed = value if isinstance(value, list) else [value]
        known = range(rows) if by_id else vocabulary.ids
        if all(type(token) is (int if by_id else str) and token in known for token in listed):
            said.append(Said(file, key, value, listed if by_id else [vocabulary.ids[token] for token in listed]))
        elif by_id and all(type(token) is int for token in listed):
            if used:
                print(f"{directory / file}: {key} {value!r} is no id of the {rows:,} there are: not used", file=sys.stderr)
        elif by_id or used:
            raise ValueError(f"{directory}: {file} says {key} {value!r}, but {vocabulary.source.name} has no such token, "
                             f"its ids are 0 to {len(vocabulary.ids) - 1}: put what this tokenizer has into {file}")
    return said


def agreement(directory: Path, said: list[Said], vocabulary: Vocabulary) -> list[int]:
    """The ids that all files give. Raises ValueError, with what two of them say, where there is none."""
    common = said[0].ids if said else []
    for entry in said[1:]:
        common = [number for number in common if number in entry.ids]
        if not common:
            first = next(other for other in said if not set(other.ids) & set(entry.ids))
            raise ValueError(f"{directory}: {first.words(vocabulary)}, {entry.words(vocabulary)}: make the two agree")
    return common


def prefix_space_of(directory: Path, kind: str, said_by: str, settings: dict[str, dict], vocabulary: Vocabulary,
                    ids: dict[str, int]) -> bool:
    """Whether a text gets a space before it. Raises ValueError where tokenizer.json says something else or frames texts
    otherwise, and for a GPT-2 whose texts get a frame."""
    content, whole = settings["tokenizer_config.json"], vocabulary.whole
    for key in ("add_bos_token", "add_eos_token"):
        if kind == "gpt2" and content.get(key):
            raise ValueError(f"{directory / 'tokenizer_config.json'}: {key} is true, which is not supported: "
                             "a GPT-2's texts have no frame here")
    given = bool(content.get("add_prefix_space"))
    if whole is None:
        return given
    if [vocabulary.ids.get(token) for token in whole.frame] != ([ids["cls"], ids["sep"]] if kind == "roberta" else []):
        raise ValueError(f"{directory}: by {said_by} it is of the kind {kind}, but tokenizer.json frames texts with "
                         f"{' and '.join(whole.frame) or 'nothing'}: use the files of one model")
    any_kind = str(content.get("tokenizer_class")).removesuffix("Fast") in OF_ANY_KIND       # takes tokenizer.json as it is
    if given != whole.prefix_space and ("add_prefix_space" in content or not any_kind):
        raise ValueError(f"{directory}: tokenizer.json says add_prefix_space {whole.prefix_space}, tokenizer_config.json "
                         f"{given if 'add_prefix_space' in content else 'nothing'}: make the two agree")
    return whole.prefix_space
