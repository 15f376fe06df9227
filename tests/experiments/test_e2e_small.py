"""experiments/e2e_small.py: every method is searched alike, the search sees no test record, and the best rate is taken."""
import data
import train
from experiments import e2e_small as E
from experiments.sweep import options_of
from files.text import write_json


def test_every_method_is_searched_at_as_many_rates_and_the_commands_are_train_pys(tmp_path):
    rows = E.search_plan(tmp_path)["rows"]
    assert len(rows) == 5 * len(E.METHODS) == len({row["folder"] for row in rows})
    for row in rows:
        options = train.parse_arguments(row["command"].split())
        assert options.max_steps == E.SEARCH_STEPS and options.data_dir == str(tmp_path / "data" / "search")
    assert E.rates_around(1e-3) == [1e-4, 3e-4, 1e-3, 3e-3, 9e-3]


def test_the_search_sees_no_test_record(tmp_path, toy_data, monkeypatch):
    monkeypatch.setattr(E, "TRAINING_SAMPLES", 50)
    E.write_data(toy_data, tmp_path)
    found = {(part, split): data.read_e2e(split, tmp_path / "data" / part) for part in ("search", "train")
             for split in ("train", "valid", "test")}
    assert found["train", "test"] == data.read_e2e("test", toy_data)
    assert found["search", "train"] == found["train", "train"] and len(set(found["train", "train"])) > 40
    records, all_records = [mr for mr, _ in found["search", "valid"]], {mr for mr, _ in data.read_e2e("valid", toy_data)}
    assert len(records) == len(set(records)) == min(E.VALIDATION_RECORDS, len(all_records))
    assert not {mr for pairs in (found["search", "valid"], found["search", "test"]) for mr, _ in pairs} & {
        mr for mr, _ in found["train", "test"]}


def test_the_rate_of_the_lowest_loss_is_trained(tmp_path, capsys):
    for row in E.search_plan(tmp_path)["rows"]:
        label, rate = row["label"].rsplit(", lr ", 1)
        if label in ("LoRA", "full"):                                        # the others have not ended
            loss = abs(float(rate) - 3e-4) if label == "LoRA" else float(rate)
            (folder := tmp_path / row["folder"] / "seed1").mkdir(parents=True)
            write_json({"task": "e2e", "scores": {"loss": loss}}, folder / "metrics.json")
    three, one = E.train_plans(tmp_path)
    assert {row["label"]: options_of(row["command"])["lr"] for row in three["rows"]} == {"LoRA": "0.0003", "full": "1e-05"}
    assert three["seeds"] == [1, 2, 3] and [row["label"] for row in one["rows"]] == ["frozen base"]
    assert "full: the best rate is the last at its end" in capsys.readouterr().err
