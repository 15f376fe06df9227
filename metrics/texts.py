"""The texts to score: what they may be, and the challenge's files, read and written.

HYPS holds one hypothesis a line; an empty line is an empty hypothesis. REFS holds the references of each hypothesis on
consecutive lines and an empty line after each such group; a file without any empty line holds one reference per
hypothesis. Left out: the challenge's .tsv and .csv files.
"""
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from files.cache import kept_lines
from files.text import check_encoding

LINE_END = re.compile("\r\n|\n|\r")
LINE_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")           # whatever str.splitlines breaks at


def checked_texts(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[str]], list[str]]:
    """The texts without white space at their ends, as the files are read; ValueError if they cannot be scored."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses but references for {len(references)}: give one list of "
                         "references per hypothesis")
    if not hypotheses:
        raise ValueError("no hypotheses: there is nothing to score")
    for i, (texts, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not texts or isinstance(texts, str):
            raise ValueError(f"references[{i}] is {texts!r}: expected a list of at least one reference")
        for text in (hypothesis, *texts):
            if LINE_BREAK.search(text.strip()):
                raise ValueError(f"instance {i}: a line break inside {text!r}: give every text as one line")
    empty = [i for i, text in enumerate(hypotheses, start=1) if not text.strip()]
    if empty:
        warnings.warn(f"{len(empty)} of {len(hypotheses)} hypotheses are empty, the first is number {empty[0]}: "
                      "they are scored as such", stacklevel=3)
    return [[text.strip() for text in texts] for texts in references], [text.strip() for text in hypotheses]


def kept_groups(groups: list[list[str]], depends_on: Iterable[bytes],
                compute: Callable[[list[str]], list[str]]) -> list[list[str]]:
    """compute(all texts), which makes one line of each, in their groups again; kept on disk (files/cache.py), since one
    test set's references score many systems."""
    lines = iter(kept_lines([text for texts in groups for text in texts], depends_on, compute))
    return [[next(lines) for _ in texts] for texts in groups]


def read_pair(references_path: str | Path, hypotheses_path: str | Path) -> tuple[list[list[str]], list[str]]:
    """References and hypotheses that belong together, without white space at their ends.
    Raises OSError, or ValueError that names file and line, such as the line on which one file lacks what the other has."""
    hypotheses = read_texts(Path(hypotheses_path))
    groups = read_groups(Path(references_path), len(hypotheses))
    if len(groups) > len(hypotheses):
        raise ValueError(f"{references_path}, line {groups[len(hypotheses)][0]}: here begin the references of instance "
                         f"{len(hypotheses) + 1} of {len(groups)}, but {hypotheses_path} has {len(hypotheses)} lines")
    if len(hypotheses) > len(groups):
        raise ValueError(f"{hypotheses_path}, line {len(groups) + 1}: no references for this hypothesis, {references_path} "
                         f"has {len(groups)} groups for {len(hypotheses)} lines")
    return [texts for _, texts in groups], hypotheses


def read_texts(path: Path) -> list[str]:
    """Every line without white space at its ends; a line break within one, as Python sees it, is an error."""
    data = path.read_bytes()
    check_encoding(data, path)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[:error.start].decode("utf-8"))) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8") from None
    if not text:
        raise ValueError(f"{path}, line 1: the file is empty, expected one text per line")
    lines = LINE_END.split(text)
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if strange := LINE_BREAK.search(line):
            raise ValueError(f"{path}, line {number}: contains U+{ord(strange[0]):04X}, which the official scorer takes "
                             "for a line end: replace it by a space")
    return [line.strip() for line in lines]


def read_groups(path: Path, instances: int) -> list[tuple[int, list[str]]]:
    """(line number of the first reference, references) of every instance.
    A file of one group has one reference per instance, unless there is one instance only. A second empty line in a row
    would be an instance without references: an error."""
    lines = read_texts(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path}, line 1: the file holds empty lines only, expected references")
    groups: list[tuple[int, list[str]]] = [(1, [])]
    for number, line in enumerate(lines, start=1):
        if line:
            groups[-1][1].append(line)
        elif groups[-1][1]:
            groups.append((number + 1, []))
        else:
            raise ValueError(f"{path}, line {number}: an instance without references, expected at least one reference "
                             "before the empty line that ends a group")
    if len(groups) == 1 and instances != 1:
        return [(number, [line]) for number, line in enumerate(lines, start=1)]
    return groups


def write_references(groups: list[list[str]], path: str | Path) -> None:
    """Write references in the scorer's format, an empty line after each group; ValueError for texts it cannot hold."""
    for i, texts in enumerate(groups):
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"instance {i + 1} has no reference or an empty one: an empty line ends a group")
    write_hypotheses([line for texts in groups for line in (*texts, "")], path)


def write_hypotheses(lines: list[str], path: str | Path) -> None:
    """Write one text a line; ValueError for a text that contains a line break."""
    for line in lines:
        if LINE_BREAK.search(line):
            raise ValueError(f"a line break inside {line!r}: the scorer's format holds one text per line")
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
