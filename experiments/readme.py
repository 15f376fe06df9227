"""Keep README.md true to the code: where its links into files point, and how many minutes a file takes to read.

    python -m experiments.readme          rewrites both in place; a test says when it is time to

A link [`name`](file.py#L12) points to where the file defines `name` (a function, Class.method, a constant), or, if it
defines no such thing, to the one line that holds this text. A row that begins | [`file.py`](file.py) | 15 | has the minutes
of a calm reader, twenty lines to the minute.

Left out: everything else in README.md; tests/test_readme.py checks what can be checked of it.
"""
import argparse
import ast
import re
from pathlib import Path

import cli

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[`([^`]+)`\]\(([\w/]+\.py)#L\d+\)")
ROW = re.compile(r"^\| \[`([\w/]+\.py)`\]\(\1\) \| \d+ \|", re.MULTILINE)
LINES_PER_MINUTE, STEP = 20, 5


def definitions(source: str) -> dict[str, int]:
    """name or Class.name -> line, of every function, class and constant of a file."""
    found = {}

    def look(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                found[prefix + child.name] = child.lineno
                look(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name):
                found[prefix + child.targets[0].id] = child.lineno
    look(ast.parse(source), "")
    return found


def line_of(name: str, file: str) -> int:
    """The line of `file` that a link with this text means. Raises ValueError where there is none, or more than one."""
    source = (ROOT / file).read_text(encoding="utf-8")
    found = definitions(source).get(name)
    lines = [found] if found else [number for number, line in enumerate(source.splitlines(), 1) if name in line]
    if len(lines) != 1:
        raise ValueError(f"README.md links to `{name}` in {file}, which has it {len(lines)} times; expected a function or "
                         "text that is there once")
    return lines[0]


def minutes(file: str) -> int:
    length = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    return max(STEP, STEP * round(length / LINES_PER_MINUTE / STEP))


def refreshed(text: str) -> str:
    """README.md with the lines and minutes as they are now."""
    text = LINK.sub(lambda link: f"[`{link[1]}`]({link[2]}#L{line_of(link[1], link[2])})", text)
    return ROW.sub(lambda row: f"| [`{row[1]}`]({row[1]}) | {minutes(row[1])} |", text)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="experiments.readme", description="Bring README.md's links into the code and its reading "
                            "times up to date.").parse_args(arguments)
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = refreshed(old)
    path.write_text(new, encoding="utf-8", newline="\n")
    print("README.md was up to date" if new == old else "README.md rewritten")
    return 0


if __name__ == "__main__":
    cli.run(main)
