"""The commands as they are typed: help that can be read, a wrong option in one line, and a run made again from its folder."""
import json
import shutil

import pytest

import data
import decode
import eval_metrics
import export
import predict
import train
from adapters.folder import read_folder
from files.text import read_json, write_json
from training.command_line import options_of_run

COMMANDS = {"train": train.main, "decode": decode.main, "predict": predict.main, "export": export.main,
            "eval_metrics": eval_metrics.main}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_two_screens_and_is_grouped(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        COMMANDS[name](["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) <= 100 and max(map(len, lines)) <= 80
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(groups) >= 2 and lines[0].startswith(f"usage: python {name}.py ") and lines[1] == ""


@pytest.mark.parametrize("name", [*COMMANDS, "data"])
def test_a_wrong_option_is_one_line_with_a_hint(name, monkeypatch, capsys):
    needed = {"train": ["--model", "M", "--task", "mrpc"], "decode": ["--model", "M", "--out", "F"],
              "predict": ["--model", "M", "-"], "export": ["--model", "M", "--adapter", "A", "--out", "F"],
              "eval_metrics": ["R", "H"], "data": ["gpt2"]}[name]
    wrong, meant = {"eval_metrics": ("--metrcs", "--metrics"), "data": ("--data-dri", "--data-dir")}.get(
        name, ("--modle", "--model"))
    monkeypatch.setattr("sys.argv", [f"{name}.py", *needed, wrong, "3"])
    with pytest.raises(SystemExit) as end:
        (data.main if name == "data" else lambda: COMMANDS[name](None))()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith(f"error: unrecognized arguments: {wrong}")
    assert f"did you mean {meant}? (all options: python {name}.py --help)" in said


@pytest.fixture(scope="module")
def earlier(repository, toy_data, tmp_path_factory):
    """The folder of a run with several settings of its own."""
    out = tmp_path_factory.mktemp("earlier")
    train.main(["--model", str(repository / "toy/roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir",
                str(out), "--limit-train", "30", "--limit-eval", "8", "--batch-size", "8", "--lr", "0.003", "--rank", "3",
                "--targets", "q", "o", "--max-steps", "3", "--seed", "4", "--precision", "fp32", "--recipe", "repo",
                "--eval-every", "2"])
    return next(out.rglob("metrics.json")).parent


def test_a_run_is_made_again_from_its_folder(earlier, tmp_path):
    """The same settings, the same tensors; what is given beside it is changed."""
    train.main(["--from", str(earlier / "config.json"), "--out-dir", str(tmp_path / "again")])
    again = next((tmp_path / "again").rglob("metrics.json")).parent
    assert again.relative_to(tmp_path / "again") == earlier.relative_to(earlier.parents[3])
    assert read_json(again / "config.json") == read_json(earlier / "config.json")
    ours, theirs = (read_folder(folder / "adapter")[0] for folder in (again, earlier))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
    train.main(["--from", str(earlier), "--max-steps", "2", "--alpha", "5", "--out-dir", str(tmp_path / "other")])
    changed = read_json(next((tmp_path / "other").rglob("config.json")))
    expected = read_json(earlier / "config.json")
    assert {name for name, value in changed.items() if value != expected[name]} == {"max_steps", "alpha"}


def test_a_line_names_what_is_another_under_the_same_name(earlier, toy_data, tmp_path, capsys):
    """The data have one label changed; then the run is said to have been on another base, too."""
    def said():
        train.main(["--from", str(earlier), "--max-steps", "1", "--overwrite", "--out-dir", str(tmp_path / "out")])
        return [line for line in capsys.readouterr().err.splitlines() if "scores may differ" in line]

    assert said() == []
    path = earlier / "config.json"
    config, copy = read_json(path), shutil.copytree(toy_data, tmp_path / "data")
    train_file = copy / "glue" / "MRPC" / "train.tsv"
    lines = train_file.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1] = str(1 - int(lines[1][0])) + lines[1][1:]
    train_file.write_text("".join(lines), encoding="utf-8", newline="")
    earlier = shutil.copytree(earlier, tmp_path / "earlier")
    write_json(config | {"data_dir": str(copy)}, earlier / "config.json")
    assert said() == [f"{earlier / 'config.json'}: its data were others than this run's: scores may differ for that alone"]
    write_json(config | {"data_dir": str(copy), "base": "0" * 16}, earlier / "config.json")
    assert "its base and data were others" in said()[0]


def test_a_run_of_before_there_was_the_option_began_at_a_rate_of_0(earlier, tmp_path):
    old = {name: value for name, value in read_json(earlier / "config.json").items() if name != "warmup_from"}
    write_json(old | {"recipe": "paper", "model": "-odd name"}, tmp_path / "config.json")
    options = train.parse_arguments(["--from", str(tmp_path / "config.json")])
    assert options.warmup_from == 0 and options.model == "-odd name" and options.targets == ["q", "o"]
    assert "--device=cpu" not in options_of_run(tmp_path / "config.json")


def test_a_value_that_is_none_is_wrong_usage(earlier, tmp_path, capsys):
    write_json(json.loads((earlier / "config.json").read_text()) | {"epochs": "many"}, tmp_path / "config.json")
    with pytest.raises(SystemExit):
        train.parse_arguments(["--from", str(tmp_path / "config.json")])
    assert "argument --epochs: invalid int value: 'many'" in capsys.readouterr().err


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        train.parse_arguments(list(arguments))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ")
    return said


def test_from_without_its_file_and_what_is_nearly_from_are_wrong_usage(capsys):
    assert "argument --from: expected one argument" in fails(capsys, "--model", "M", "--task", "mrpc", "--from")
    assert "did you mean --from?" in fails(capsys, "--model", "M", "--task", "mrpc", "--fromm", "x")


def test_from_takes_no_second_recipe_and_leaves_out_what_another_method_has_not(earlier, capsys):
    assert "--recipe would name others" in fails(capsys, "--from", str(earlier), "--recipe", "paper")
    options = train.parse_arguments(["--from", str(earlier), "--method", "bitfit", "--rank", "5"])
    assert (options.method, options.alpha, options.targets, options.rank, options.lr) == ("bitfit", None, None, 5, 0.003)


def test_a_start_is_not_scored(capsys):
    said = fails(capsys, "--model", "M", "--task", "mrpc", "--eval-only", "--init-adapter", "D")
    assert "to score it with --eval-only, give --adapter DIR" in said


def test_two_bases_are_scored_into_two_folders(repository, toy_data, tmp_path):
    shutil.copytree(repository / "toy/roberta", tmp_path / "other")
    for model in (repository / "toy/roberta", tmp_path / "other"):
        train.main(["--model", str(model), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir", str(tmp_path / "runs"),
                    "--limit-train", "4", "--limit-eval", "4", "--eval-only"])
    assert {read_json(path)["model"] for path in (tmp_path / "runs").rglob("metrics.json")} == {
        str(repository / "toy/roberta"), str(tmp_path / "other")}
