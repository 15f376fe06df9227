"""experiments/e2e_small.py: every method is searched alike, the search sees no test record, the best rate is taken, and the
report holds what was run. Runs are made up."""
import argparse
import math
import statistics

import pytest

import data
import train
from experiments import e2e_small as E
from experiments import e2e_texts, report
from experiments.kept_runs import read_lines, restore
from experiments.search import GRID, HELD_OUT, RATE, plans_of
from experiments.sweep import options_of, write_plans
from experiments.tables import TEXT_SCORES
from files.text import read_json, write_json
from metrics.texts import write_hypotheses, write_references


def fake(out, row, seed, loss):
    folder = out / row["folder"] / ("base" if "--eval-only" in row["command"] else f"seed{seed}")
    folder.mkdir(parents=True)
    write_json({"task": "e2e", "model": E.NAME, "seed": seed, "data_fingerprints": {"evaluated": "a", "train": "c"},
                "base_fingerprint": "b", "frozen_in": "bf16",
                "scores": dict.fromkeys(TEXT_SCORES, 0.5) | {"loss": loss}}, folder / "metrics.json")


def test_every_method_is_searched_at_as_many_rates_and_the_commands_are_train_pys(tmp_path):
    ((plan,), rates) = plans_of(E.SEARCH, tmp_path)
    rows = plan["rows"]
    assert not rates and len(rows) == GRID * len(E.METHODS) == len({row["folder"] for row in rows}) and GRID >= 5
    for row in rows:
        options = train.parse_arguments(row["command"].split())
        assert options.max_steps == 150 and options.data_dir == (tmp_path / HELD_OUT).as_posix()


def test_the_search_sees_no_test_record(tmp_path, toy_data, monkeypatch):
    monkeypatch.setattr(E, "TRAINING_SAMPLES", 50)
    E.write_data(toy_data, tmp_path)
    found = {(part, split): data.read_e2e(split, tmp_path / part) for part in (HELD_OUT, "data")
             for split in ("train", "valid", "test")}
    assert found["data", "test"] == data.read_e2e("test", toy_data)
    assert found[HELD_OUT, "train"] == found["data", "train"] and len(set(found["data", "train"])) > 40
    records, all_records = [mr for mr, _ in found[HELD_OUT, "valid"]], {mr for mr, _ in data.read_e2e("valid", toy_data)}
    assert len(records) == len(set(records)) == min(E.VALIDATION_RECORDS, len(all_records))
    assert not {mr for pairs in (found[HELD_OUT, "valid"], found[HELD_OUT, "test"]) for mr, _ in pairs} & {
        mr for mr, _ in found["data", "test"]}


def test_the_rate_of_the_lowest_loss_inside_of_the_grid_is_run(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no search of a learning rate has ended"):
        E.comparison(tmp_path)

    def run(plans, out, *more):
        for row in plans[0]["rows"]:
            method, _, rate = row["label"].rpartition(RATE)
            if method in ("LoRA", "full") and not (tmp_path / row["folder"]).exists():       # the others have not ended
                fake(tmp_path, row, 0, abs(math.log10(float(rate)) - (-3.5 if method == "LoRA" else -5.6)))
        return 0

    monkeypatch.setattr("experiments.search.run_plans", run)
    assert E.search(argparse.Namespace(out_dir=tmp_path, jobs=1, until=math.inf)) == 0
    plan = E.comparison(tmp_path)
    rates = {row["label"]: options_of(row["command"]).get("lr") for row in plan["rows"]}
    assert rates == {"frozen base": None, "LoRA": "3e-4", "full": "3e-6"}                # full's grid was widened twice
    assert {row["label"]: row.get("seeds") for row in plan["rows"]} == {
        "frozen base": None, "LoRA": [1, 2, 3], "full": [1, 2, 3]}
    for row in plan["rows"]:
        assert train.parse_arguments([*row["command"].split(), "--seed", "1"]).data_dir == (tmp_path / "data").as_posix()


def test_the_report_holds_what_was_run_and_nothing_else(tmp_path):
    """Of the search LoRA's has ended, full's has one run; then base and LoRA are run, with two of its three seeds."""
    out, results = tmp_path / "runs", tmp_path / "results"
    (plan,), _ = plans_of(E.SEARCH, out)
    write_plans([plan], out)
    losses = dict(zip(("1e-4", "3e-4", "1e-3", "3e-3", "1e-2"), (1.9, 1.5, 1.25, 1.375, 2.0), strict=True))
    for row in plan["rows"]:
        method, _, rate = row["label"].rpartition(RATE)
        if method == "LoRA" or (method, rate) == ("full", "1e-4"):
            fake(out, row, 0, losses[rate])
    assert report.main(["--runs", str(out), "--results", str(results)]) == 0
    page = (results / "e2e-small" / "README.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["", *losses] and rows[2] == ["LoRA", "1.900", "1.500", "**1.250**", "1.375", "2.000"]
    assert rows[3] == ["full", "1.900", "", "", "", ""]
    assert "6 of 40 runs are in" in page and "## Scores" not in page
    assert "real decoder" not in (results / "README.md").read_text("utf-8")
    write_plans([plan := E.comparison(out)], out)
    for row in plan["rows"]:
        for seed, loss in ((1, 1.0), (2, 1.5)) if "--eval-only" not in row["command"] else ((1, 4.0),):
            fake(out, row, seed, loss)
    assert report.main(["--runs", str(out), "--results", str(results)]) == 0
    page, front = ((results / name / "README.md").read_text("utf-8") for name in ("e2e-small", "."))
    for text in (page, front):
        row = next(line for line in text.splitlines() if line.startswith("| LoRA |")).split(" | ")
        assert row[2] == "50.0 ± 0.0" and "1.250 ± 0.354" in row and row[-1] == "2 |" and "3 of 4 runs are in" in text
        assert "| frozen base |" in text and "| full | –" not in text
    assert page.count("python train.py") == 2 and "--lr 1e-3 --epochs 2" in page
    path = next(path for path in out.rglob("seed2/metrics.json") if HELD_OUT not in path.parts)
    write_json(read_json(path) | {"frozen_in": "fp32"}, path)                # on another processor, say
    with pytest.raises(ValueError, match="its frozen weights is fp32, but bf16 .* row 'LoRA' of e2e-small"):
        report.main(["--runs", str(out), "--results", str(results)])


def test_another_machine_goes_on_from_what_this_repository_keeps(repository, tmp_path):
    results = repository / "results"
    restore("e2e-small", tmp_path, results)
    wanted = {place for place, line in read_lines(results / "runs.jsonl").items() if line["metrics"]["model"] == E.NAME}
    found = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("metrics.json")}
    assert found == wanted and len(wanted) >= 18


def test_texts_are_written_for_a_person_whose_judgements_are_kept(tmp_path):
    """Three records, whose texts have 2, 4 and 6 words; the references nearest to them have 3, 4 and 5."""
    records, texts = ["name : A | area : b", "name : C", "name : D"], ["a b", "a b c d", "a b c d e f"]
    row = E.make_row("LoRA", "--model m --task e2e", "--method lora")
    plan, path = E.make_plan("e2e-small", "m", [1], [row]), tmp_path / "results" / "texts.json"
    with pytest.raises(FileNotFoundError, match="LoRA, seed 1, has not ended"):
        e2e_texts.write_texts(plan, records, tmp_path, path)
    folder = tmp_path / row["folder"] / "seed1"
    fake(tmp_path, row, 1, 1.0)
    write_references([["a b c", "a b c d e f g"], ["a b c d"], ["a b c d e"]], folder / "references.txt")
    write_hypotheses(texts, folder / "predictions.txt")
    e2e_texts.write_texts(plan, records, tmp_path, path)
    found = read_json(path)
    assert found["length_ratio"] == pytest.approx(12 / 12) and [entry["wrong"] for entry in found["texts"]] == [None] * 3
    found["texts"][0] |= {"wrong": "", "missing": "area"}
    found["texts"][1] |= {"wrong": "d", "missing": ""}
    write_json(found, path)
    write_hypotheses([texts[0], "a b c", texts[2]], folder / "predictions.txt")
    e2e_texts.write_texts(plan, records, tmp_path, path)
    page = " ".join(e2e_texts.texts_section(path))
    assert "Of 3 texts, evenly spread over the test set, 1 were judged by hand, by one reader: 0 say" in page
    assert "1 leave something out" in page
    assert "All 3 texts together have 0.917 times" in page and "| 1 | a b |  | area |" in page
    with pytest.raises(ValueError):
        e2e_texts.write_texts(plan, records[:2], tmp_path, path)


def test_the_first_test_records_are_the_easier_ones(shared):
    """As README says of the 100 that `make smollm` decodes."""
    attributes = [record.count("|") + 1 for record in dict.fromkeys(mr for mr, _ in data.read_e2e("test", shared / "data"))]
    of_all, of_first = statistics.mean(attributes), statistics.mean(attributes[:100])
    assert (len(attributes), f"{of_first:.1f}", f"{of_all:.1f}") == (630, "4.8", "6.9")
