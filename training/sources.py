"""Where the rows of a task stand: the files of GLUE and E2E, or the user's own with columns of any names.

A source names the file of each split and reads its rows; `settings` is what else the rows depend on. A source of pairs has a
form, which says what its texts and labels are, one of text pairs an input with its output. Rows that do not fit are errors with
file and line. Left out: how files are read (files/), and what becomes of the rows (tasks.py).
"""
import math
from contextlib import suppress
from pathlib import Path

import data
from data import GLUE_TASKS, GlueTask, PairExample
from files.glue_forms import read_columns
from files.text import shorten
from training.options import Settings


class Glue:
    """A task of GLUE."""
    note, saved_form = "", None

    def __init__(self, settings: Settings, data_dir: Path):
        self.task, self.data_dir, self.form, self.settings = settings.task, data_dir, GLUE_TASKS[settings.task], ()

    def file(self, split: str) -> Path:
        return data.split_file(self.task, split, self.data_dir)

    def rows(self, split: str) -> list[PairExample]:
        return data.read_glue(self.task, split, self.data_dir)


class OwnPairs:
    """One text or two and a label, in two files of the user's. Labels are classes by any names, sorted, or numbers: where
    all of the training file's are numbers and one is not whole, if --labels does not say. `note` tells what was found."""

    def __init__(self, settings: Settings):
        self.files = {"train": Path(settings.train_file), "dev": Path(settings.dev_file)}
        self.columns = (*settings.text_columns, settings.label_column)
        cells = [cells[-1] for _, cells in read_columns(self.files["train"], self.columns)]
        numbers = [as_number(cell) for cell in cells]
        are_numbers = None not in numbers and any(number % 1 for number in numbers)
        classes = None if settings.labels == "numbers" or (settings.labels is None and are_numbers) else sorted({*cells})
        if classes is None:
            found = sorted(number for number in numbers if number is not None)
            self.note = "" if not found else (f"labels are numbers, {found[0]:g} to {found[-1]:g} (else: --labels classes)")
        else:
            shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            self.note = f"labels are {len(classes)} classes: {shown}" + (" (else: --labels numbers)" * (None not in numbers))
        if classes is not None and len(classes) < 2:
            raise ValueError(f"{self.files['train']}: every label is {shorten(classes[0])}, expected two classes or more: give "
                             "another --label-column")
        self.form = GlueTask("", tuple(settings.text_columns), settings.label_column, classes and tuple(classes),
                             ("accuracy", "macro_f1") if classes else ("pearson", "spearman"), splits=("train", "dev"))
        self.saved_form = {"texts": len(settings.text_columns), "labels": classes}
        self.settings = (self.columns, classes)

    def file(self, split: str) -> Path:
        return self.files[split]

    def rows(self, split: str) -> list[PairExample]:
        found = []
        for number, (text, *pair, cell) in read_columns(self.files[split], self.columns):
            found.append(PairExample(text, pair[0] if pair else None, self.label(cell, f"{self.files[split]}, line {number}")))
        return found

    def label(self, cell: str, where: str) -> int | float:
        """The class id or number of a cell. Raises ValueError for no number, and a class that the training file lacks."""
        if self.form.labels is None:
            number = as_number(cell)
            if number is None:
                raise ValueError(f"{where}: found the label {shorten(cell)}, expected a number: mend the line, or give "
                                 "--labels classes")
            return number
        if cell not in self.form.labels or not cell:
            raise ValueError(f"{where}: found the label {shorten(cell)}, expected one of the training file's, "
                             f"{shorten(', '.join(filter(None, self.form.labels)))}: mend the line")
        return self.form.labels.index(cell)


class E2E:
    """The E2E NLG Challenge in one of its forms."""

    def __init__(self, settings: Settings, data_dir: Path):
        self.data_dir, self.text, self.settings = data_dir, settings.text, (settings.text,)
        self.note = f"{settings.text} text"

    def file(self, split: str) -> Path:
        return data.split_file("e2e", split, self.data_dir, self.text)

    def rows(self, split: str) -> list[tuple[str, str]]:
        return data.read_e2e(split, self.data_dir, self.text)


class OwnText:
    """An input and an output in two files of the user's; the development file is decoded, too. White space in an output becomes
    single spaces, as a text of the scorer is a line."""
    text = "own"

    def __init__(self, settings: Settings):
        self.files = {"train": Path(settings.train_file), "valid": Path(settings.dev_file), "test": Path(settings.dev_file)}
        self.columns = self.settings = tuple(settings.text_columns)
        self.note = f"{self.columns[1]} from {self.columns[0]}"

    def file(self, split: str) -> Path:
        return self.files[split]

    def rows(self, split: str) -> list[tuple[str, str]]:
        found = []
        for number, (source, target) in read_columns(self.files[split], self.columns):
            if not source.strip() or not target.strip():
                name = self.columns[1] if source.strip() else self.columns[0]
                raise ValueError(f"{self.files[split]}, line {number}: '{name}' is empty, expected a text: mend the line")
            found.append((source, " ".join(target.split())))
        return found


def as_number(cell: str) -> float | None:
    """The finite number that a cell holds, if it does."""
    with suppress(ValueError):
        if math.isfinite(float(cell)):
            return float(cell)
    return None


def make_source(settings: Settings, data_dir: Path | None):
    """The source of a run's task; reads the labels of the user's own pairs."""
    if settings.task in ("pairs", "text"):
        return OwnPairs(settings) if settings.task == "pairs" else OwnText(settings)
    return (E2E if settings.task == "e2e" else Glue)(settings, data_dir)
