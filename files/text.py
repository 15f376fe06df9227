"""Text files line by line, tables with tabs or commas, and JSON: nothing is skipped, repaired or read past in silence.

Every error is one line that names the file, the line where it has one, what was found and what was expected.
Left out: other encodings than UTF-8, JSON too large for memory.
"""
import codecs
import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from files.writing import written_whole


def shorten(text: str) -> str:
    """The text in quotes, at most 60 characters of it, odd characters escaped: for error messages."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def check_encoding(start: bytes, source: str | Path) -> None:
    """Raises ValueError for text in UTF-16 or UTF-32, by its first four bytes: a byte-order mark, or zeros beside letters."""
    zeros = [byte == 0 for byte in start[:4]]
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or sum(zeros) == 3:
        raise ValueError(f"{source} is UTF-32; save it as UTF-8")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros in ([False, True] * 2, [True, False] * 2):
        raise ValueError(f"{source} is UTF-16; save it as UTF-8")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Number (from 1) and text of each line of a UTF-8 file, its \n or \r\n and a leading byte-order mark taken off.
    Lines end at \n only: the real files hold characters that str.splitlines would also split at. Raises ValueError for
    what is not UTF-8, a NUL character and an empty file."""
    number = 0
    with path.open("rb") as file:
        check_encoding(file.read(4), path)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: byte {line[error.start]:#04x} at column {error.start + 1} is "
                                 "not UTF-8; save the file as UTF-8 or put the original in its place") from None
            if "\0" in text:
                raise ValueError(f"{path}, line {number}: holds a NUL character, expected text; put the original in its place")
            yield number, text.removesuffix("\n").removesuffix("\r")
    if number == 0:
        raise ValueError(f"{path}: the file is empty; put the original in its place")


def no_rows(path: Path) -> ValueError:
    return ValueError(f"{path}: found a header and no rows; put the whole file in its place")


def read_tsv(path: Path, columns: Sequence[str] = ()) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and line number and cells of each row, between tabs; a quotation mark is a character.
    columns: the names for a file without a header line. Raises ValueError, while the rows are read, for one with other
    than as many cells as there are columns, and where there are no rows."""
    lines = read_lines(path)
    columns = list(columns) or next(lines)[1].split("\t")

    def rows() -> Iterator[tuple[int, list[str]]]:
        number = 0
        for number, line in lines:
            cells = line.split("\t")
            if len(cells) != len(columns):
                raise ValueError(f"{path}, line {number}: found {len(cells)} fields in {shorten(line)}, expected "
                                 f"{len(columns)} between tabs ({', '.join(columns)}); mend the line")
            yield number, cells
        if number == 0:
            raise no_rows(path)
    return columns, rows()


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Last line and fields of each record below the header, which has to name `columns`; fields may hold line breaks.
    Raises ValueError for another header, for what is no CSV and where there are no rows."""
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    try:
        header = next(reader)
        if header != list(columns):
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(header))}, expected {', '.join(columns)}")
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}, expected CSV; mend the line") from None
    if reader.line_num == 1:
        raise no_rows(path)


def unique_keys(pairs: list[tuple]) -> dict:
    """json.loads keeps the last of two equal keys; in a table of tensors that would hide one of them."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name '{twice}' stands twice")
    return content


def read_json(path: Path) -> dict:
    """The object in a JSON file, a byte-order mark before it dropped. Raises ValueError for anything else, and for a key that
    stands twice."""
    text = path.read_bytes()
    check_encoding(text, path)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty, expected a JSON object; put the original in its place")
    try:
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend it or put the original in its place") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, expected an object; put the original in its place")
    return content


def finite(content):
    """JSON's content with null for numbers that JSON has not: NaN and infinite ones."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file in one step (writing.written_whole), as `finite` has it."""
    with written_whole(path) as file:
        file.write((json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))
