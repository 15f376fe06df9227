"""tokenizer.json, the file of the tokenizers library, if it is a byte-level BPE; any other kind is refused by its name.

It holds tokens and merges, and what is done before and after them: normalizer, pre_tokenizer, post_processor. Left out: its
truncation and padding, which transformers does not use either unless asked to, and its decoder.
"""
from dataclasses import dataclass
from pathlib import Path

from files.text import read_json

DIGITS_APART = {"type": "Digits", "individual_digits": True}


@dataclass
class TokenizerJson:
    """ids: token -> id. merges: "a b" each. added: entries with id, content, special and rules. prefix_space: whether a text
    gets a space before it. frame: the first and the last token of RoBERTa's frame, or (). digits_apart: each is a piece."""
    ids: dict[str, int]
    merges: list[str]
    added: list[dict]
    prefix_space: bool
    frame: tuple[str, ...]
    digits_apart: bool


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """What the file says. Raises ValueError for one that does more or other than GPT-2's and RoBERTa's byte-level BPE."""
    content = read_json(path)
    try:
        before = check_byte_level_bpe(content, path)
        return TokenizerJson({**content["model"]["vocab"]}, joined(content["model"]["merges"]),
                             content.get("added_tokens") or [], before.get("add_prefix_space", True),
                             frame_of(content.get("post_processor") or {}, path), before["digits_apart"])
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"{path}: not as the tokenizers library writes it ({type(error).__name__}: {error}); fetch the file "
                         "again") from None


def joined(merges: list) -> list[str]:
    """Merges are "a b" or, since tokenizers 0.20, ["a", "b"]."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def check_byte_level_bpe(content: dict, path: Path) -> dict:
    """The pre_tokenizer. Raises ValueError, by its name, for what is no byte-level BPE alone."""
    model, normalizer, before = (content.get(key) or {} for key in ("model", "normalizer", "pre_tokenizer"))
    kind = model.get("type", "BPE" if "merges" in model else "tokenizer of an unnamed kind")
    if kind != "BPE":
        raise ValueError(f"{path}: holds a {kind}, expected a byte-level BPE, which GPT-2 and RoBERTa have")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(key):
            raise ValueError(f"{path}: its BPE has {key} {model[key]!r}, which is not supported")
    if normalizer and normalizer.get("normalizers") != []:
        raise ValueError(f"{path}: its normalizer {kind_of(normalizer)} may change texts, which is not supported: GPT-2 and "
                         "RoBERTa have none")
    *others, last = before.get("pretokenizers") or [before]
    digits_apart = others == [DIGITS_APART] and not last.get("add_prefix_space", True)
    if last.get("type") != "ByteLevel" or not last.get("use_regex", True) or (others and not digits_apart):
        raise ValueError(f"{path}: its pre_tokenizer is {kind_of(before)}, expected ByteLevel alone, which cuts texts "
                         "as GPT-2 does, or after Digits, each apart")
    return last | {"digits_apart": digits_apart}


def kind_of(part: dict) -> str:
    """The name of a part of the file, with the names of what it consists of."""
    inner = [piece["type"] for key in ("normalizers", "pretokenizers", "processors") for piece in part.get(key, ())]
    return part.get("type", "missing") + (f" of {', '.join(inner)}" if inner else "")


def frame_of(processor: dict, path: Path) -> tuple[str, ...]:
    """What a post_processor puts around texts: nothing, (), or RoBERTa's first and last token. Raises ValueError for others."""
    parts = [part for part in processor.get("processors", [processor]) if part.get("type", "ByteLevel") != "ByteLevel"]
    if not parts:
        return ()
    if len(parts) == 1 and parts[0]["type"] == "RobertaProcessing":
        return str(parts[0]["cls"][0]), str(parts[0]["sep"][0])
    if len(parts) == 1 and parts[0]["type"] == "TemplateProcessing":
        single, pair = ([next(iter(piece.values()))["id"] for piece in parts[0][form]] for form in ("single", "pair"))
        if (single, pair) == (["A"], ["A", "B"]):
            return ()
        if len(single) == 3 and pair == [single[0], "A", single[2], single[2], "B", single[2]]:
            return str(single[0]), str(single[2])
    raise ValueError(f"{path}: its post_processor {kind_of(processor)} frames texts neither as GPT-2's nor as RoBERTa's does")
