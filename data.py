"""Text in, batches out: what a sample is, where it has a loss, which samples go together; and the readers of GLUE and E2E.

    E2E on GPT-2 (Hu et al. 2021, 5.4)    MR <|endoftext|> reference <|endoftext|>, a loss on the reference and its end
    GLUE on RoBERTa (5.2)                 <s> text </s>, or <s> text </s></s> pair </s>, and a label

Files are read as their publishers made them, and a row that does not fit is an error with file and line: nothing is
skipped or repaired. `python data.py NAMES` fetches models and tasks (files/published.py). Left out: how text becomes ids
(files/tokenizer.py), sliding windows over long documents, streaming (MNLI fits in memory), GLUE's diagnostic set.
"""
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from files import cli
from files.glue_forms import HIDDEN, read_table
from files.published import fetch_command, fetch_data, require_file
from files.text import read_csv, read_lines, shorten
from files.tokenizer import Tokenizer, load_tokenizer  # noqa: F401, load_tokenizer is found here, too


def encode_e2e(tokenizer: Tokenizer, mr: str, reference: str) -> tuple[list[int], int]:
    """The authors' sample: BPE(mr) <|endoftext|> BPE(" " + reference) <|endoftext|>, and the length of its context, which ends
    with the first <|endoftext|>: from there the first token of the reference is predicted."""
    context = [*tokenizer.pieces(mr), tokenizer.eos_id]
    return [*context, *tokenizer.pieces(" " + reference), tokenizer.eos_id], len(context)


def targets_of(ids: list[int], context_length: int) -> Tensor:
    """The target at each input ids[:-1]: the token after it, or -100 where that is context. Only here ids are shifted."""
    return torch.tensor([-100] * (context_length - 1) + ids[context_length:])


def length_grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of one epoch in batches of like lengths: every index once, the same for the same seed and epoch.
    Shuffle, sort by length within pools of 64 batches, cut into batches, shuffle these: little padding, and a batch
    still is close to a random draw. Only one batch may be smaller than batch_size."""
    if batch_size < 1:
        raise ValueError(f"found batch size {batch_size}, expected at least 1")
    shuffler = random.Random(f"seed {seed}, epoch {epoch}")
    order, batches = list(range(len(lengths))), []
    shuffler.shuffle(order)
    for start in range(0, len(order), 64 * batch_size):
        indices = sorted(order[start:start + 64 * batch_size], key=lengths.__getitem__)
        batches += [indices[first:first + batch_size] for first in range(0, len(indices), batch_size)]
    shuffler.shuffle(batches)
    return batches


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


PAIR = ("sentence1", "sentence2")
# The order of the labels is that of the Hugging Face `glue` data set, with which the authors trained: class 0 of their
# MNLI adapter is entailment. fairseq's and Facebook's own MNLI models count contradiction, neutral, entailment.
GLUE_TASKS = {
    "cola": GlueTask("CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), ("matthews",),
                     bare_columns=("source", "label", "mark", "sentence")),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": GlueTask("STS-B", PAIR, "score", None, ("pearson", "spearman")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",), True,
                     ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment"), ("accuracy",), True),
    "rte": GlueTask("RTE", PAIR, "label", ("entailment", "not_entailment"), ("accuracy",), True),
    "wnli": GlueTask("WNLI", PAIR, "label", ("not_entailment", "entailment"), ("accuracy",)),
}
E2E_FILES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}           # in the official form
TASKS = ("e2e", *GLUE_TASKS)


def task_files(task: str, text: str | None = None) -> dict[str, Path]:
    """Split -> file, below the data folder. text: E2E's form (read_e2e), by default "pretokenised"."""
    if task not in TASKS:
        raise ValueError(f"found task '{task}', expected one of {', '.join(TASKS)}")
    if task != "e2e":
        glue = GLUE_TASKS[task]
        return {split: Path("glue", glue.folder, f"{split}.tsv") for split in glue.splits}
    if text == "official":
        return {split: Path("e2e", "official", file) for split, file in E2E_FILES.items()}
    return {split: Path("e2e", f"{split}.txt") for split in E2E_FILES}


def split_file(task: str, split: str, data_dir: str | Path, text: str | None = None) -> Path:
    """The file of a split. Raises ValueError for an unknown split, FileNotFoundError, which says what to do, for no file."""
    files = task_files(task, text)
    if split not in files:
        raise ValueError(f"found split '{split}' for {task}, expected one of {', '.join(files)}")
    return require_file(Path(data_dir) / files[split], task)


def fetch_task(task: str, data_dir: str | Path | None = None, text: str | None = None) -> Path:
    """The data folder that holds the task's files, fetched if its folder does not exist (published.fetch_data)."""
    return fetch_data(task, list(task_files(task, text).values()), data_dir)


@dataclass(frozen=True)
class PairExample:
    """One or two texts and their label: a class id, a score (STS-B), or None in an unlabelled test split."""
    text: str
    pair: str | None
    label: int | float | None


def glue_label(glue: GlueTask, cell: str, where: str, numbered: bool) -> int | float:
    """The class id or score that a cell of the label column stands for; a class by its name or, if `numbered`, its id."""
    if glue.labels is None:
        with suppress(ValueError):
            if 0 <= float(cell) <= 5:                                        # false for NaN, too
                return float(cell)
        raise ValueError(f"{where}: found score {shorten(cell)}, expected a number from 0 to 5")
    cells = tuple(map(str, range(len(glue.labels)))) if numbered else glue.labels
    if cell not in (*cells, *glue.labels):
        meaning = f" ({', '.join(glue.labels)})" if numbered else ""
        raise ValueError(f"{where}: found label {shorten(cell)}, expected one of {', '.join(cells)}{meaning}")
    return (cells if cell in cells else glue.labels).index(cell)


def read_glue(task: str, split: str, data_dir: str | Path) -> list[PairExample]:
    """Every row of data_dir/glue/FOLDER/SPLIT.tsv, as GLUE publishes it, or as the Hub has it (files/glue_forms.py). Raises
    ValueError with file and line. Columns are found by their names, so that files with more of them are read alike. Text is
    kept as it stands, quotation marks and all. A test split may have no labels, empty cells or -1 there: its label is None."""
    if task not in GLUE_TASKS:
        raise ValueError(f"found task '{task}', expected one of {', '.join(GLUE_TASKS)}")
    glue, path, is_test = GLUE_TASKS[task], split_file(task, split, data_dir), split.startswith("test")
    columns, rows = read_table(path, glue.texts, glue.label, () if is_test else glue.bare_columns)
    for name in (*glue.texts, glue.label):
        if columns.count(name) != 1 and not (name == glue.label and is_test and name not in columns):
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(columns))}, expected one "
                             f"'{name}' among them; is this GLUE's {glue.folder}/{split}.tsv?")
    examples, numbered = [], not (glue.spelled_out and "index" in columns)   # GLUE's own files do not number these
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        text, *pair = [row[name] for name in glue.texts]
        cell = row.get(glue.label, "")
        label = None if is_test and cell in HIDDEN else glue_label(glue, cell, f"{path}, line {number}", numbered)
        examples.append(PairExample(text, pair[0] if pair else None, label))
    return examples


def read_e2e(split: str, data_dir: str | Path, text: str = "pretokenised") -> list[tuple[str, str]]:
    """(meaning representation, reference) of every row, in the order of the file; an MR comes once per reference.

    text "pretokenised" is what the authors trained and scored on: data_dir/e2e/SPLIT.txt, `MR||reference` lines, outer white
    space dropped as they do. "official" is the challenge's release, data_dir/e2e/official/*.csv, its MRs as in `name[Aromi]`;
    white space in a reference becomes single spaces, for two hold a line break. Raises ValueError with file and line.
    """
    if text not in ("pretokenised", "official"):
        raise ValueError(f"found text '{text}', expected 'pretokenised' or 'official'")
    path, official = split_file("e2e", split, data_dir, text), text == "official"
    samples = []
    for number, fields in (read_csv(path, ["mr", "ref"]) if official else
                           ((number, line.strip().split("||")) for number, line in read_lines(path))):
        if len(fields) != 2 or not all(field.strip() for field in fields) or not official and len(fields[1].splitlines()) > 1:
            raise ValueError(f"{path}, line {number}: found {shorten(' / '.join(fields))}, expected two texts, MR and "
                             f"reference, with {'a comma' if official else '||'} between and no line break inside")
        samples.append((fields[0], " ".join(fields[1].split()) if official else fields[1]))
    return samples


def main() -> None:
    fetch_command(TASKS, fetch_task)


if __name__ == "__main__":
    cli.run(main)
