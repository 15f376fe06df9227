"""Text in, batches out: readers for GLUE and E2E, batches, and where models and data are found.

LoRA paper, section 5.2 (RoBERTa on GLUE) and 5.4 (GPT-2 on the E2E challenge). Files are read as their publishers made
them, and a row that does not fit is an error with file and line: nothing is skipped or repaired.

Left out: how text becomes ids (tokenizer.py), sliding windows over long documents, streaming (the largest task, MNLI, fits
in memory), GLUE's diagnostic set.
Shapes: B batch, T tokens.
"""
import argparse
import csv
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import cli
import download
from kept import cache_dir
from names import TASKS
from tokenizer import Tokenizer, load_tokenizer, read_lines, shorten  # noqa: F401, load_tokenizer is found here, too
from weight_files import find_model

# ---------------------------------------------------------------- reading files


def require_file(path: Path, task: str) -> Path:
    """The path. Raises FileNotFoundError if there is no file, with what to do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the file there" + (
            ", from the challenge's release, which is not downloaded" if path.suffix == ".csv" else
            f", or move away what there is of {path.parent} and fetch it whole with `python data.py {task}`"))
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
    """The directory of a model: a directory as given, one found locally (weight_files.find_model), or a fresh download.

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


def fetch_task(task: str, data_dir: str | Path | None = None, text: str | None = None) -> Path:
    """The data directory that holds a task's training and dev files, downloaded where its folder does not exist.

    data_dir defaults to $LORA_DATA, then the user's cache. text: E2E's form, see read_e2e; the official one is not downloaded.
    A folder that exists is left as it is: a file missing there is an error, because published files beside somebody's own
    would be mixed up unnoticed.
    """
    if task not in TASKS:
        raise ValueError(f"found task '{task}', expected one of {', '.join(TASKS)}")
    data_dir = Path(data_dir or os.environ.get("LORA_DATA") or cache_dir() / "data")
    official = task == "e2e" and text == "official"
    if official:
        folder, files = data_dir / "e2e" / "official", list(E2E_FILES.values())
    elif task == "e2e":
        folder, files = data_dir / "e2e", [f"{split}.txt" for split in E2E_FILES]
    else:
        glue = GLUE_TASKS[task]
        folder, files = data_dir / "glue" / glue.folder, [f"{split}.tsv" for split in glue.splits]
    if not folder.is_dir() and not official:
        download.fetch_task_folder(folder, files)
    for file in files:
        if not file.startswith("test") or task == "e2e":                      # nothing is scored on GLUE's hidden labels
            require_file(folder / file, task)
    return data_dir


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch models and tasks, and print where they are.")
    parser.add_argument("names", nargs="+", metavar="NAME",
                        help=f"models: {', '.join(download.MODELS)}; tasks: {', '.join(TASKS)}")
    parser.add_argument("--data-dir", help="default: $LORA_DATA, else the user's cache")
    parser.add_argument("--weights-dir", help="default: $LORA_WEIGHTS, else the user's cache")
    options = parser.parse_args()
    for name in options.names:
        print(name, fetch_task(name, options.data_dir) if name in TASKS else fetch_model(name, options.weights_dir), sep="\t")


if __name__ == "__main__":
    cli.run(main)
