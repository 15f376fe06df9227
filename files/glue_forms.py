"""The forms in which people have GLUE: tables of its publisher, and what the Hugging Face hub makes of them.

               GLUE's own                    the Hub's
    file       train.tsv, dev.tsv            train.jsonl, validation.jsonl; .tsv and .csv, too
    columns    of each task's own names      sentence1, sentence2 (MNLI: premise, hypothesis), label, idx
    label      a name or a number, by task   a number or a name; -1 where it is hidden

Rows come out under GLUE's names. Left out: Parquet, for which a message says how to convert it; what the cells mean (data.py).
"""
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from files.text import read_csv, read_lines, read_tsv, shorten, unique_keys

HUB_COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2", "sentence1": "premise", "sentence2": "hypothesis"}
HIDDEN = ("", "-1", "-1.0")                                                  # for a label in a test split
SUFFIXES = (".tsv", ".jsonl", ".csv")


def find_form(path: Path) -> Path | None:
    """The file of a split, GLUE's `path` or the same under one of the Hub's names. None: there is none. Raises ValueError for
    two, and for one that has to be converted, with how."""
    stems = tuple(dict.fromkeys((path.stem, path.stem.replace("dev", "validation"))))
    there = [path.with_name(stem + suffix) for stem in stems for suffix in SUFFIXES if path.with_name(stem + suffix).is_file()]
    if len(there) > 1:
        raise ValueError(f"{path.parent} holds {there[0].name} and {there[1].name}, which are the same split: move one away")
    if there:
        return there[0]
    parquet = sorted(file for stem in stems for file in path.parent.glob(f"{stem}*.parquet"))
    if parquet:
        raise ValueError(f"{parquet[0]}: Parquet is not read here; make JSON lines of it, with pandas: pandas.read_parquet("
                         f"'{parquet[0].name}').to_json('{stems[-1]}.jsonl', orient='records', lines=True)")
    return None


def read_table(path: Path, texts: Sequence[str], label: str, bare_columns: Sequence[str]
               ) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a split's file, and line number and cells of each row. texts, label: GLUE's names of the columns that
    matter, which stand in the result in place of the Hub's. bare_columns: GLUE's, where its own file has no line of names.
    Raises ValueError with file and line for what is no such table."""
    if path.suffix == ".jsonl":
        columns, rows = read_json_lines(path)
    elif path.suffix == ".csv":
        columns, rows = read_any_csv(path)
    else:
        header = next(read_lines(path))[1].split("\t")
        columns, rows = read_tsv(path, () if {*texts, "label"} <= set(header) else bare_columns)
    own = {HUB_COLUMNS.get(name, name): name for name in texts if name not in columns} | (
        {} if label in columns else {"label": label})
    renamed = [own.get(column, column) for column in columns]
    return renamed if {*texts} <= {*renamed} else columns, rows              # else a message would show what is not there


def read_any_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a CSV file, by its first line, and last line and cells of each record."""
    columns = next(csv.reader([next(read_lines(path))[1]]))

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, cells in read_csv(path, columns):
            if len(cells) != len(columns):
                raise ValueError(f"{path}, line {number}: found {len(cells)} fields, expected {len(columns)} between commas "
                                 f"({', '.join(columns)}); mend the line")
            yield number, cells
    return columns, rows()


def read_json_lines(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The keys of the first line's object, and line number and values of each in their order: numbers as they are written,
    null as the empty text. Raises ValueError for a line that is no object with these keys and plain values."""
    def row(number: int, line: str) -> dict[str, str]:
        try:
            content = json.loads(line, object_pairs_hook=unique_keys, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}), expected an object on every line; mend the line"
                             ) from None
        if not isinstance(content, dict) or not all(value is None or isinstance(value, str) for value in content.values()):
            raise ValueError(f"{path}, line {number}: found {shorten(line)}, expected an object of texts and numbers; mend the "
                             "line")
        return {name: value or "" for name, value in content.items()}

    columns = list(row(*next(read_lines(path))))

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, line in read_lines(path):
            content = row(number, line)
            if content.keys() != set(columns):
                raise ValueError(f"{path}, line {number}: found the keys {shorten(', '.join(content))}, expected "
                                 f"{', '.join(columns)} as in line 1; mend the line")
            yield number, [content[name] for name in columns]
    return columns, rows()


# ---------------------------------------------------------------- files of the user's own

def read_columns(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the cells of the wanted columns of each row of a .tsv, .csv or .jsonl file, whose first line names the
    columns. Raises FileNotFoundError, and ValueError with file and line for a malformed row or a column that is not there."""
    readers = {".tsv": read_tsv, ".csv": read_any_csv, ".jsonl": read_json_lines}
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put it there, or give another file")
    if path.suffix not in readers:
        raise ValueError(f"{path}: found a name that ends in {path.suffix or 'nothing'!r}, expected .tsv, .csv or .jsonl, "
                         "which says how its columns stand: give the file such a name")
    columns, rows = readers[path.suffix](path)
    for name in wanted:
        if columns.count(name) != 1:
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(columns))}, expected '{name}' once among "
                             "them: give the names of this file's columns")
    for number, cells in rows:
        yield number, [cells[columns.index(name)] for name in wanted]
