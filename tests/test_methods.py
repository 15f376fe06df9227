"""experiments/methods.py: every row is a valid command, runs are not repeated, and the tables are what the runs say."""
import json
import re

import pytest

import train
from baselines import METHODS
from experiments import methods as E


@pytest.mark.parametrize("task", E.TASKS)
def test_every_row_is_a_command_and_every_method_a_row(task):
    parsed = {train.parse_arguments(E.command(task, row).split()).method for row in E.TASKS[task][2]}
    assert parsed == set(METHODS) - ({"head"} if task == "e2e" else set())


def fake_metrics(task, row, seed):
    accuracy = 0.6 + 0.1 * (row == "LoRA") + 0.02 * seed
    return {"trainable_parameters": 50, "total_parameters": 1000, "share": accuracy, "scores": {
        "accuracy": accuracy, "BLEU": accuracy, "NIST": 5.0, "METEOR": 0.4, "ROUGE_L": 0.5, "CIDEr": 1.5}}


def test_runs_are_kept_and_the_table_is_theirs(tmp_path, monkeypatch, capsys):
    calls = []

    def fake_train(arguments):
        options = train.parse_arguments(arguments)
        calls.append((options.task, options.method, options.seed))
        row = next(row for row in E.TASKS[options.task][2] if f"--method {options.method} " in E.command(options.task, row))
        folder = tmp_path / options.out_dir / f"seed{options.seed[0]}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(fake_metrics(options.task, row, options.seed[0])))
    monkeypatch.setattr(E.train, "main", fake_train)
    monkeypatch.setattr(E.world, "write_tasks", lambda folder: None)
    monkeypatch.setattr(E, "frozen_text", lambda out_dir: fake_metrics("e2e", "", 0) | {"trainable_parameters": 0})
    assert E.main(["--seeds", "0", "1", "--out-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(calls) == len(set(map(str, calls))) == 2 * (8 + 8 + 7)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| LoRA | 50 (5.00%) | 71.0 ± 1.4 | 71.0 ± 1.4 | 71.0 ± 1.4 |" in table
    assert "| frozen base | 0 | 60.0 | 5.00 | 40.0 | 50.0 | 1.50 | 60.0 |" in table
    assert len(re.findall(r"python train.py --model", table)) == 8 + 8 + 7
    assert "not above the frozen base: mnli: BitFit" in captured.err and "LoRA" not in captured.err
    assert E.main(["--seeds", "0", "1", "--out-dir", str(tmp_path)]) == 0
    assert len(calls) == 2 * (8 + 8 + 7)
    assert E.main(["--seeds", "0", "--out-dir", str(tmp_path), "--max-steps", "3"]) == 0    # other runs than the full ones
    assert len(calls) == 3 * (8 + 8 + 7)
