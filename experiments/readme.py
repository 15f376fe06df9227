"""Keep README.md and docs/ true to the code and to results/: where their links into files point, how many minutes a file takes
to read, what a make target takes.

    python -m experiments.readme          rewrites them in place; a test says when it is time to

A link [`name`](file.py#L12) points to where the file defines `name` (a function, Class.method, a constant), or, if it
defines no such thing, to the one line that holds this text. A line of the tree, `file.py   15 min  what it holds`, has the
minutes of a calm reader, twenty lines to the minute. A row that begins | `make target` | has what results/costs.json holds of
it; for the paper's runs, which need the pretrained weights, it is computed from a measured step of results/bench/train.json,
and on a GPU from those of results/bench/gpu.json.

Left out: everything else in these pages; tests/test_readme.py checks what can be checked of it.
"""
import argparse
import ast
import json
import math
import re
from pathlib import Path

from experiments.bench_train import MODELS
from experiments.counts import formula_counts
from files import cli
from training.recipes import recipe_for

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\[`([^`]+)`\]\(((?:\.\./)?)([\w/]+\.py)#L\d+\)")        # name, the way to the root, file
BRANCH = re.compile(r"^    (\w+\.py) +\d+ min  ", re.MULTILINE)
LINES_PER_MINUTE, STEP = 20, 5
COST = re.compile(r"^\| `make ([\w-]+)` \| (.+?) \| .+ \|$", re.MULTILINE)
PAPER_RUNS = {"mrpc-lora": ("roberta-base", "mrpc", 3668), "mnli-lora": ("roberta-base", "mnli", 392_702),
              "e2e-lora": ("gpt2-medium", "e2e", 42_061), "e2e-lora-small": ("gpt2", "e2e", 42_061)}     # training samples


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
        raise ValueError(f"README.md or docs/ link to `{name}` in {file}, which has it {len(lines)} times; expected a function "
                         "or text that is there once")
    return lines[0]


def minutes(file: str) -> int:
    length = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    return max(STEP, STEP * round(length / LINES_PER_MINUTE / STEP))


def duration(seconds: float) -> str:
    """In days, hours, minutes or seconds, whichever needs no more than two or three digits."""
    if seconds < 120:
        return f"{seconds:.{1 if seconds < 1 else 0}f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def size(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:,.0f} MiB" if mib >= 1 else "under 1 MiB"


def results(name: str) -> dict:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def paper_run_cells(target: str, model: str, task: str, samples: int) -> list[str]:
    """As cost_cells, for a run with the pretrained weights: the recipe's steps, each as long as the measured one; on a GPU in
    the format that --precision auto takes there."""
    config, _, batch = MODELS[model]
    recipe = recipe_for(config, task, "lora", "paper")
    if batch != recipe.batch_size:
        raise ValueError(f"the step of {model} was measured at batch {batch}, expected the recipe's {recipe.batch_size}")
    steps = math.ceil(samples / recipe.batch_size) * recipe.epochs
    (step,) = (point for point in results("bench/train.json")["points"] if (point["model"], point["way"]) == (model, "ours"))
    seconds = step["milliseconds"] / 1e3
    (on_gpu,) = (row["minutes, computed"] for row in results("bench/gpu.json")["recipes"]
                 if (row["target"], row["precision"]) == (target, "bf16"))
    weights = formula_counts(config, "full")["trainable"] * 4 / 2**20        # fp32
    return [f"{steps:,} steps of {seconds:.1f} s, {duration(steps * seconds)} (computed)", f"{step['peak_mib']:,.0f} MiB",
            f"{size(weights)} of weights (computed)", f"{duration(60 * on_gpu)} (computed)"]


def cost_cells(target: str) -> list[str]:
    """Time, peak memory, disk, and time on a GPU of a make target. Raises ValueError for one that was not measured."""
    if target in PAPER_RUNS:
        return paper_run_cells(target, *PAPER_RUNS[target])
    found = results("costs.json").get(target)
    if found is None:
        raise ValueError(f"results/costs.json has no {target}: run python -m experiments.costs {target}")
    time = duration(found["seconds"]) + " (computed)" * found.get("computed", False)
    if target == "pretrain-toy":                                             # measured over its first steps only
        printed = (ROOT / "results" / "output" / "pretrain-toy.txt").read_text(encoding="utf-8")
        time = f"{duration(whole_seconds(printed))} (computed)"
    return [time, f"{found['peak_mib']:,.0f} MiB", size(found["disk_mib"]), "–"]


def whole_seconds(printed: str) -> float:
    """What both models' steps of toy/pretrain.py would take, from what it printed of the first of them."""
    runs = re.findall(r"(\d+) of (\d+) steps\n(?:.*\n)*?step \1/\1 loss \S+ (\d+) s", printed.replace(",", ""))
    if len(runs) != 2:
        raise ValueError(f"found {len(runs)} finished runs in results/output/pretrain-toy.txt, expected those of both models")
    return sum(int(seconds) * int(steps) / int(done) for done, steps, seconds in runs)


def refreshed(page: str) -> str:
    """The text of README.md or of a page of docs/ with lines, minutes and costs as they are now."""
    page = COST.sub(lambda row: f"| {' | '.join([f'`make {row[1]}`', row[2], *cost_cells(row[1])])} |", page)
    page = LINK.sub(lambda link: f"[`{link[1]}`]({link[2]}{link[3]}#L{line_of(link[1], link[3])})", page)
    return BRANCH.sub(lambda branch: f"    {branch[1]:18} {minutes(branch[1]):2} min  ", page)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="experiments.readme", description="Bring the links into the code, the reading times and the "
                            "costs of README.md and docs/ up to date.").parse_args(arguments)
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = refreshed(old)
        path.write_text(new, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)} {'was up to date' if new == old else 'rewritten'}")
    return 0


if __name__ == "__main__":
    cli.run(main)
