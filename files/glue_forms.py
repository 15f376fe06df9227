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
    else:
        header = next(read_lines(path))[1]
        if path.suffix == ".csv":
            columns, rows = read_any_csv(path, next(csv.reader([header])))
        else:
            columns, rows = read_tsv(path, () if {*texts, "label"} <= set(header.split("\t")) else bare_columns)
    own = {HUB_COLUMNS.get(name, name): name for name in texts if name not in columns} | (
        {} if label in columns else {"label": label})
    renamed = [own.get(column, column) for column in columns]
    return renamed if {*texts} <= {*renamed} else columns, rows              # else a message would show what is not there


def read_any_csv(path: Path, columns: list[str]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A CSV file with these columns in its first line."""
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
