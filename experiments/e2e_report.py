"""The report of e2e_small.py: a section of results/README.md, and a page of its own with all scores, costs and the search.

A row whose runs have not ended is missing, and the text says how many runs are in. Left out: the claims (claims.py).
"""
from pathlib import Path

from experiments.e2e_small import SEARCH
from experiments.e2e_texts import texts_section
from experiments.glue_report import how_many, search_table
from experiments.kept_runs import runs_of
from experiments.tables import check_comparable, cost_table, text_table, wrapped

ABOUT = """The base is SmolLM2-135M-Instruct, a Llama of 30 layers, 576 wide, that others pretrained; it is read from a file of
4 and 8 bits. It is trained on 4,000 samples of the real E2E, two epochs, at the learning rate with the lowest validation
loss in a search that was the same for every method, alpha / r at 8; then all 630 test records, beam 10. In
percent but for NIST and CIDEr."""


def named(plans: list[dict], experiment: str) -> list[dict]:
    return [plan for plan in plans if plan["experiment"] == experiment]


def runs_in(plans: list[dict], kept: dict[str, dict]) -> dict[str, list[dict]]:
    """Row -> its runs, of those that are in. Raises ValueError for runs that do not compare."""
    found = {}
    for plan in named(plans, "e2e-small"):
        runs = runs_of(plan, kept)
        check_comparable(plan, runs)
        found |= {label: of for label, of in runs.items() if of}
    return found


def section(plans: list[dict], kept: dict[str, dict]) -> list[str]:
    """The section of results/README.md; nothing where no run of the comparison is in."""
    runs = runs_in(plans, kept)
    if not runs:
        return []
    return ["## The methods on a real decoder", "", *wrapped(
        f"{' '.join(ABOUT.split())} {how_many(named(plans, 'e2e-small'), kept)} `make e2e-small DATA=D`. The search, costs "
        "and commands: [e2e-small](e2e-small/README.md)."), "", *text_table(runs, brief="SmolLM2, E2E"), ""]


def write_page(plans: list[dict], kept: dict[str, dict], folder: Path) -> None:
    """Write folder/README.md; nothing where no run is in."""
    searches, compared, runs = named(plans, SEARCH.name), named(plans, "e2e-small"), runs_in(plans, kept)
    if not any(found for plan in searches for found in runs_of(plan, kept).values()):
        return
    lines = ["# The methods on a real decoder", "", *wrapped(f"{' '.join(ABOUT.split())} ([All results](../README.md))"), ""]
    if runs:
        in_bf16 = "; ".join(label for label, of in runs.items() if of[0].get("frozen_in") == "bf16")
        lines += ["## Scores and costs", "", *wrapped(f"{how_many(compared, kept)} `python -m experiments.e2e_small runs "
                  "--data-dir D`"), "", *text_table(runs), "", *wrapped("With two processes at a time, of one thread each. "
                  f"Frozen weights in bf16: {in_bf16 or 'none'}; all else in fp32."), "", *cost_table(runs), ""]
    lines += texts_section(folder / "texts.json")
    lines += ["## The search", "", *wrapped(f"{how_many(searches, kept)} `python -m experiments.e2e_small search "
                                            "--data-dir D`"), "",
              *search_table(searches, kept, SEARCH, "Nats per token of the first 200 validation records after 150 steps",
                            lambda score: f"{-score:.3f}")]
    commands = [f"    python train.py {row['command']}" for plan in compared for row in plan["rows"]]
    lines += ["", "## The commands", "", "Seeds are given by `--seed`; those of the search stand in ../plans.jsonl.", "",
              *commands] * bool(commands)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
