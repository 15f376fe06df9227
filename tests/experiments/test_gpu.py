"""experiments/gpu.py: what fails is said in the page and the rest go on; what the page says is what was measured."""
import json

from experiments import gpu
from files.text import write_json


def test_a_section_that_fails_is_named_and_the_others_are_there(tmp_path, capsys):
    """Without tokenizers there is no model to measure."""
    status = gpu.main(["--data-dir", str(tmp_path), "--tokenizers", str(tmp_path), "--out", str(tmp_path / "out"), "--quick",
                       "--device", "cpu", "--minutes", "2", "--only", "machine", "mixed"])
    page, figures = ((tmp_path / "out" / name).read_text() for name in ("gpu.md", "gpu.json"))
    found = json.loads(figures)
    assert status == 1 and "mixed: 0 points" in capsys.readouterr().out
    assert "| product of bf16, TFLOP/s |" in page and "**Not finished**: error: " in page and "vocab.json" in page
    assert not found["machine"]["error"] and found["mixed"]["points"] == []


def test_a_section_that_hangs_is_stopped_and_keeps_its_points(tmp_path, monkeypatch):
    def started(command, **options):
        write_json([{"a": 1}], tmp_path / "machine.json")
        return real(["sleep", "60"], start_new_session=True)
    real = gpu.subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", started)
    options = gpu.argparse.Namespace(out=tmp_path, data_dir=tmp_path, tokenizers=tmp_path, device="cpu", quick=True)
    section = gpu.run_section("machine", options, 0.3)
    assert section["points"] == [{"a": 1}] and section["error"] == "stopped after 0 s" and section["seconds"] < 20


def test_the_recipes_time_is_steps_and_texts_by_what_one_takes():
    step = {"model": "gpt2", "way": "ours", "precision": "bf16", "milliseconds": 20.0}
    figures = {"training": {"points": [step, step | {"way": "peer"}, {"memory of": "gpt2, bf16"}]},
               "search": {"points": [{"model": "gpt2", "way": "ours, 8 at a time", "seconds_per_text": 2.0},
                                     {"model": "gpt2", "way": "transformers, 8 at a time", "seconds_per_text": 1.0}]}}
    (row,) = gpu.recipe_times(figures)
    assert row["target"] == "e2e-lora-small" and row["minutes, computed"] == (26_290 * 0.02 + 630 * 2.0) / 60


def test_points_of_other_columns_begin_another_table():
    lines = gpu.table([{"a": 1, "b": 0.123456}, {"c": None}, {"a": 2, "b": 12345.6}])
    assert [line for line in lines if not line.startswith("|-")] == ["| a | b |", "| 1 | 0.123 |", "| 2 | 12,346 |", "",
                                                                     "| c |", "| – |", ""]
