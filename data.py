"""Text in, batches out: tokenizers, readers for GLUE and E2E, batches, and where models and data are found.

LoRA paper, section 5.2 (RoBERTa on GLUE) and 5.4 (GPT-2 on the E2E challenge). Both models cut text by the same
byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) and differ only in their ids. Files are read as their
publishers made them, and a row that does not fit is an error with file and line: nothing is skipped or repaired.

Left out: training a BPE, control tokens inside running text ("</s>" in a sentence is five ordinary characters),
sliding windows over long documents, streaming (the largest task, MNLI, fits in memory), GLUE's diagnostic set.
Shapes: B batch, T tokens.
"""
import argparse
import csv
import functools
import hashlib
import itertools
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import cli
import download
from model import cache_dir, find_model, read_json

# ---------------------------------------------------------------- byte-level BPE

# No pair is merged across these borders: clitics, words, numbers and punctuation, each with the space before it.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CONTROL_TOKEN = re.compile(r"<.+>|madeupword\d{4}")                          # fairseq filled RoBERTa's vocabulary up


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in vocab.json and merges.txt.

    Printable Latin-1 stands for itself; the other 68 bytes, space and line break among them, are U+0100 onwards.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class Tokenizer:
    """Byte-level BPE with GPT-2's or RoBERTa's framing; made by load_tokenizer.

    tiktoken counts pieces by rank (bytes first, then merges in the order they were learned); the model's files number
    them as they like. Two tables lead from rank to id and from id to bytes.

    truncated: how many inputs encode has shortened to max_length so far. fingerprint: a hash of its files.
    """

    def __init__(self, vocab: dict[str, int], ranks: dict[bytes, int], names: list[str], fingerprint: str = ""):
        """vocab: token -> id. ranks: bytes of a token -> rank. names: token of each rank, as vocab spells it."""
        self.ranks, self.fingerprint = ranks, fingerprint
        self.id_of_rank = [vocab[name] for name in names]
        self.bytes_of_id = dict(zip(self.id_of_rank, ranks, strict=True))    # control tokens have none
        self.vocab_size = len(vocab)
        self.bos_id = vocab.get("<s>")
        self.mask_id = vocab.get("<mask>")
        self.eos_id = vocab["<|endoftext|>" if self.bos_id is None else "</s>"]
        self.pad_id = 0 if self.bos_id is None else vocab["<pad>"]           # GPT-2 has none; the authors pad with 0
        self.truncated = 0

    @functools.cached_property
    def bpe(self):
        """Made at the first text: who finds all data tokenised (token_cache.py) needs none."""
        import tiktoken
        return tiktoken.Encoding("byte-level BPE", pat_str=WORDS, mergeable_ranks=self.ranks, special_tokens={})

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, without framing. Empty text has none."""
        text.encode("utf-8")                                                 # tiktoken would replace lone surrogates
        return [self.id_of_rank[rank] for rank in self.bpe.encode_ordinary(text)]

    def encode(self, text: str, pair: str | None = None, max_length: int | None = None) -> list[int]:
        """GPT-2: the ids of text and pair in a row. RoBERTa: <s> text </s>, or <s> text </s></s> pair </s>.

        max_length: longest result, framing included. What is too long loses tokens at the end of the longer text
        first; the texts are never cut inside a token. Raises ValueError where not even the framing fits.
        """
        first, second = self.pieces(text), [] if pair is None else self.pieces(pair)
        framing = 0 if self.bos_id is None else 2 if pair is None else 4
        if max_length is not None and len(first) + len(second) + framing > max_length:
            if max_length < framing:
                raise ValueError(f"max_length is {max_length}, expected at least the {framing} tokens of <s> and </s>")
            keep_first, keep_second = longest_first(len(first), len(second), max_length - framing)
            first, second = first[:keep_first], second[:keep_second]
            self.truncated += 1
        if self.bos_id is None:
            return first + second
        ids = [self.bos_id, *first, self.eos_id]
        return ids if pair is None else [*ids, self.eos_id, *second, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out; bytes that are no UTF-8 (a cut character) become U+FFFD."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"token id {token_id} is none of this tokenizer's ids 0 to {self.vocab_size - 1}: "
                                 "model and tokenizer belong to different directories")
        return b"".join(self.bytes_of_id.get(token_id, b"") for token_id in ids).decode("utf-8", errors="replace")


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """How much of two texts to keep so that `budget` tokens are left: the longer one is cut until they are even.

    >>> longest_first(10, 2, 6), longest_first(10, 8, 7)
    ((4, 2), (4, 3))
    """
    shorter = min(first, second, budget // 2)
    return (budget - shorter, shorter) if first > second else (shorter, budget - shorter)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory, from vocab.json (token -> id) and merges.txt (pairs by rank).

    A vocabulary that holds <s> is RoBERTa's kind, any other GPT-2's. merges.txt has to be as BPE training leaves it:
    each pair made of bytes and earlier pairs, no token formed twice. Raises ValueError with file and line.
    """
    vocab_path, merges_path = Path(directory) / "vocab.json", Path(directory) / "merges.txt"
    for path in (vocab_path, merges_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: put the tokenizer's vocab.json and merges.txt there")
    vocab = read_json(vocab_path)
    ids = {token_id for token_id in vocab.values() if type(token_id) is int}
    if not vocab or ids != set(range(len(vocab))):
        odd = next((f"'{token}': {number!r}" for token, number in vocab.items() if number not in range(len(vocab))),
                   "an id twice")
        raise ValueError(f"{vocab_path}: found {odd}, expected the ids 0 to {len(vocab) - 1}, each for one token")

    ranks = {char: bytes([byte]) for char, byte in byte_alphabet().items()}  # token -> its bytes, in the order of ranks
    for char in ranks:
        if char not in vocab:
            raise ValueError(f"{vocab_path}: '{char}' is missing, expected all 256 bytes of a byte-level BPE")
    for number, line in read_lines(merges_path):
        if number == 1 and line.startswith("#version"):
            continue
        where, pair, token = f"{merges_path}, line {number}", line.split(" "), line.replace(" ", "")
        if len(pair) != 2:
            raise ValueError(f"{where}: found {shorten(line)}, expected two tokens with one space between")
        for part in pair:
            if part not in ranks:
                raise ValueError(f"{where}: '{part}' is neither a byte nor formed by a line above; fetch the file again")
        if token in ranks or token not in vocab:
            problem = "is formed a second time" if token in ranks else f"is missing in {vocab_path.name}"
            raise ValueError(f"{where}: '{token}' {problem}; use vocab.json and merges.txt of one model")
        ranks[token] = ranks[pair[0]] + ranks[pair[1]]
    for token in vocab.keys() - ranks.keys():
        if not CONTROL_TOKEN.fullmatch(token):
            raise ValueError(f"{vocab_path}: no line of {merges_path.name} forms '{token}'; is that file cut short?")
    for token in ("<pad>", "</s>") if "<s>" in vocab else ("<|endoftext|>",):
        if token not in vocab:
            raise ValueError(f"{vocab_path}: no {token}, expected GPT-2's <|endoftext|> or RoBERTa's <s>, <pad> and </s>")
    fingerprint = hashlib.sha256(vocab_path.read_bytes() + merges_path.read_bytes()).hexdigest()
    return Tokenizer(vocab, {piece: rank for rank, piece in enumerate(ranks.values())}, list(ranks), fingerprint)


# ---------------------------------------------------------------- reading files

def shorten(text: str) -> str:
    """The text in quotes, at most 60 characters of it, odd characters escaped: for error messages."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Number (from 1) and text of each line of a UTF-8 file, its \n or \r\n and a leading byte-order mark taken off.

    Lines end at \n only: the real files hold characters that str.splitlines would also split at.
    """
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: byte {line[error.start]:#04x} at column {error.start + 1} is "
                                 "not UTF-8; convert the file to UTF-8 or fetch it again") from None
            if "\0" in text:
                raise ValueError(f"{path}, line {number}: holds a NUL character, expected text; fetch the file again")
            yield number, text.removesuffix("\n").removesuffix("\r")
    if number == 0:
        raise ValueError(f"{path}: the file is empty; fetch it again")


def require_file(path: Path, task: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the file there, or move away what there is of {path.parent} and "
                                f"fetch it whole with `python data.py {task}`")
    return path


# ---------------------------------------------------------------- GLUE

@dataclass(frozen=True)
class GlueTask:
    """How one GLUE task stands in its files, and what is scored."""
    folder: str
    texts: tuple[str, ...]               # names of the column or two columns with text
    label: str                           # name of the label column
    labels: tuple[str, ...] | None       # class names in the order of their ids; None: a score from 0 to 5
    metrics: tuple[str, ...]             # names that eval_metrics.glue_scores gives; the first is the paper's
    spelled_out: bool = False            # files hold class names instead of ids
    splits: tuple[str, ...] = ("train", "dev", "test")
    bare_columns: tuple[str, ...] = ()   # columns of train and dev where these have no header line


SENTENCES = ("sentence1", "sentence2")
# The order of the labels is that of the Hugging Face `glue` data set, with which the authors trained: class 0 of their
# MNLI adapter is entailment. fairseq's and Facebook's own MNLI models count contradiction, neutral, entailment.
GLUE_TASKS = {
    "cola": GlueTask("CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), ("matthews",),
                     bare_columns=("source", "label", "mark", "sentence")),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"),
                     ("accuracy", "f1")),
    "stsb": GlueTask("STS-B", SENTENCES, "score", None, ("pearson", "spearman")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"),
                    ("accuracy", "f1")),
    "mnli": GlueTask("MNLI", SENTENCES, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
                     True, ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment"), ("accuracy",), True),
    "rte": GlueTask("RTE", SENTENCES, "label", ("entailment", "not_entailment"), ("accuracy",), True),
    "wnli": GlueTask("WNLI", SENTENCES, "label", ("not_entailment", "entailment"), ("accuracy",)),
}


@dataclass(frozen=True)
class PairExample:
    """One or two texts and their label: a class id, a score (STS-B), or None in an unlabelled test split."""
    text: str
    pair: str | None
    label: int | float | None


def glue_label(glue: GlueTask, cell: str, where: str) -> int | float:
    """The class id or score that a cell of the label column stands for."""
    if glue.labels is None:
        try:
            score = float(cell)
        except ValueError:
            score = float("nan")
        if not 0 <= score <= 5:                                              # false for NaN, too
            raise ValueError(f"{where}: found score {shorten(cell)}, expected a number from 0 to 5")
        return score
    cells = glue.labels if glue.spelled_out else tuple(map(str, range(len(glue.labels))))
    if cell not in cells:
        meaning = "" if glue.spelled_out else f" ({', '.join(glue.labels)})"
        raise ValueError(f"{where}: found label {shorten(cell)}, expected one of {', '.join(cells)}{meaning}")
    return cells.index(cell)


def glue_path(task: str, split: str, data_dir: str | Path) -> Path:
    return Path(data_dir) / "glue" / GLUE_TASKS[task].folder / f"{split}.tsv"


def read_glue(task: str, split: str, data_dir: str | Path) -> list[PairExample]:
    """Every row of data_dir/glue/FOLDER/SPLIT.tsv, as GLUE publishes it.

    Columns are found by their names, so that files with more of them are read alike. A quotation mark is a character
    like any other, text is kept as it stands, empty text is text. A test split may have no label column or empty
    cells there: its label is None. Raises ValueError with file and line for a row, label or header that does not fit.
    """
    if task not in GLUE_TASKS:
        raise ValueError(f"found task '{task}', expected one of {', '.join(GLUE_TASKS)}")
    glue = GLUE_TASKS[task]
    if split not in glue.splits:
        raise ValueError(f"found split '{split}' for {task}, expected one of {', '.join(glue.splits)}")
    path = require_file(glue_path(task, split, data_dir), task)
    is_test = split.startswith("test")
    lines = read_lines(path)
    columns = list(glue.bare_columns) if glue.bare_columns and not is_test else next(lines)[1].split("\t")
    for name in (*glue.texts, glue.label):
        if columns.count(name) != 1 and not (name == glue.label and is_test and name not in columns):
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(columns))}, expected one "
                             f"'{name}' among them; is this GLUE's {glue.folder}/{split}.tsv?")
    text_columns = [columns.index(name) for name in glue.texts]
    label_column = columns.index(glue.label) if glue.label in columns else None

    examples = []
    for number, line in lines:
        cells, where = line.split("\t"), f"{path}, line {number}"
        if len(cells) != len(columns):
            raise ValueError(f"{where}: found {len(cells)} fields in {shorten(line)}, expected {len(columns)} between "
                             f"tabs ({', '.join(columns)}); mend the line or fetch the file again")
        unlabelled = label_column is None or (is_test and not cells[label_column])
        text, pair = [*(cells[column] for column in text_columns), None][:2]
        examples.append(PairExample(text, pair, None if unlabelled else glue_label(glue, cells[label_column], where)))
    if not examples:
        raise ValueError(f"{path}: found a header and no rows; fetch the file again")
    return examples


# ---------------------------------------------------------------- E2E

E2E_FILES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}


def e2e_path(split: str, data_dir: str | Path, text: str) -> Path:
    return Path(data_dir) / "e2e" / (f"{split}.txt" if text == "pretokenised" else f"official/{E2E_FILES[split]}")


def read_e2e(split: str, data_dir: str | Path, text: str = "pretokenised") -> list[tuple[str, str]]:
    """(meaning representation, reference) of every row, in the order of the file; an MR comes once per reference.

    text "pretokenised" is what the authors trained and scored on: data_dir/e2e/SPLIT.txt with `MR||reference` lines,
    outer white space dropped as they do. "official" is the challenge's release, data_dir/e2e/official/*.csv, its MRs
    in the form `name[Aromi], area[riverside]`; the white space inside a reference becomes single spaces, because two
    references of the training set hold a line break. Raises ValueError with file and line.
    """
    if split not in E2E_FILES:
        raise ValueError(f"found split '{split}' for e2e, expected one of {', '.join(E2E_FILES)}")
    if text not in ("pretokenised", "official"):
        raise ValueError(f"found text '{text}', expected 'pretokenised' or 'official'")
    path = require_file(e2e_path(split, data_dir, text), "e2e")
    samples = []
    for number, fields in (read_csv(path) if text == "official" else
                           ((number, line.strip().split("||")) for number, line in read_lines(path))):
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise ValueError(f"{path}, line {number}: found {shorten(' / '.join(fields))}, expected two texts, MR and "
                             f"reference, with {'||' if text == 'pretokenised' else 'a comma'} between")
        mr, reference = fields
        samples.append((mr, " ".join(reference.split()) if text == "official" else reference))
    return samples


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(last line, fields) of each record of the challenge's CSV below its header `mr,ref`."""
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    try:
        header = next(reader)
        if header != ["mr", "ref"]:
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(header))}, expected mr, ref")
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}, expected CSV; mend the line") from None
    if reader.line_num == 1:
        raise ValueError(f"{path}: found a header and no rows; fetch the file again")


def encode_e2e(tokenizer: Tokenizer, mr: str, reference: str) -> tuple[list[int], int]:
    """The authors' sample: BPE(mr) <|endoftext|> BPE(" " + reference) <|endoftext|>, and the length of its context.

    The context ends with the first <|endoftext|>, from which the first token of the reference is predicted.
    """
    context = [*tokenizer.pieces(mr), tokenizer.eos_id]
    return [*context, *tokenizer.pieces(" " + reference), tokenizer.eos_id], len(context)


# ---------------------------------------------------------------- batches

def pack(sequences: Sequence[list[int]]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Sequences in the order of their lengths -> their ids end to end, (N,), and how many there are of each length, (n, t)."""
    groups = itertools.groupby(map(len, sequences))
    return torch.tensor(sum(sequences, [])), tuple((len(list(run)), length) for length, run in groups)


def targets_of(ids: list[int], context_length: int) -> Tensor:
    """The target at each input ids[:-1]: the token after it, or -100 where that is context. Only here ids are shifted."""
    return torch.tensor([-100] * (context_length - 1) + ids[context_length:])


def collate_pairs(ids_list: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Encoded texts -> input_ids (B, T) padded on the right and attention_mask (B, T), 1 on tokens, 0 on padding."""
    length = max(map(len, ids_list))
    input_ids = torch.full((len(ids_list), length), pad_id)                   # (B, T)
    attention_mask = torch.zeros(len(ids_list), length, dtype=torch.long)     # (B, T)
    for row, ids in enumerate(ids_list):
        input_ids[row, :len(ids)] = torch.tensor(ids)
        attention_mask[row, :len(ids)] = 1
    return input_ids, attention_mask


def length_grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of one epoch in batches of like lengths: every index once, the same for the same seed and epoch.

    Shuffle, sort by length within pools of 64 batches, cut into batches, shuffle these: little padding, and a batch
    still is close to a random draw. Only one batch may be smaller than batch_size.
    """
    if batch_size < 1:
        raise ValueError(f"found batch size {batch_size}, expected at least 1")
    shuffler = random.Random(f"seed {seed}, epoch {epoch}")
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    pool = 64 * batch_size
    batches = []
    for start in range(0, len(order), pool):
        indices = sorted(order[start:start + pool], key=lengths.__getitem__)
        batches += [indices[first:first + batch_size] for first in range(0, len(indices), batch_size)]
    shuffler.shuffle(batches)
    return batches


# ---------------------------------------------------------------- where models and data are

def fetch_model(name: str, weights_dir: str | Path | None = None) -> Path:
    """The directory of a model: a directory as given, one found locally (model.find_model), or a fresh download.

    Downloads go to weights_dir, default $LORA_WEIGHTS, default the user's cache, and add only what is missing.
    """
    found = find_model(name, weights_dir)
    if found and (found == Path(name) or not download.missing_model_files(found)):
        return found
    if name not in download.MODELS:
        raise FileNotFoundError(f"{name} is no directory with a config.json and no model to download; expected a Hugging "
                                f"Face model directory or one of {', '.join(download.MODELS)}")
    directory = Path(weights_dir or os.environ.get("LORA_WEIGHTS") or cache_dir() / "weights") / name
    download.fetch_model(name, directory)
    return directory


def fetch_task(task: str, data_dir: str | Path | None = None) -> Path:
    """The data directory that holds a task's training and dev files, downloaded where its folder does not exist.

    data_dir defaults to $LORA_DATA, then the user's cache. A folder that exists is left as it is: a file missing
    there is an error, because published files beside somebody's own would be mixed up unnoticed.
    """
    if task != "e2e" and task not in GLUE_TASKS:
        raise ValueError(f"found task '{task}', expected e2e or one of {', '.join(GLUE_TASKS)}")
    data_dir = Path(data_dir or os.environ.get("LORA_DATA") or cache_dir() / "data")
    if task == "e2e":
        folder, files = data_dir / "e2e", ["train.txt", "valid.txt", "test.txt"]
    else:
        glue = GLUE_TASKS[task]
        folder, files = data_dir / "glue" / glue.folder, [f"{split}.tsv" for split in glue.splits]
    if not folder.is_dir():
        download.fetch_task_folder(folder, files)
    for file in files:
        if not file.startswith("test") or task == "e2e":                      # nothing is scored on GLUE's hidden labels
            require_file(folder / file, task)
    return data_dir


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch models and tasks, and print where they are.")
    parser.add_argument("names", nargs="+", metavar="NAME",
                        help=f"models: {', '.join(download.MODELS)}; tasks: e2e, {', '.join(GLUE_TASKS)}")
    parser.add_argument("--data-dir", help="default: $LORA_DATA, else the user's cache")
    parser.add_argument("--weights-dir", help="default: $LORA_WEIGHTS, else the user's cache")
    options = parser.parse_args()
    for name in options.names:
        is_task = name == "e2e" or name in GLUE_TASKS
        print(name, fetch_task(name, options.data_dir) if is_task else fetch_model(name, options.weights_dir), sep="\t")


if __name__ == "__main__":
    cli.run(main)
