"""experiments/sweep.py and tables.py: rows are valid commands, runs are shared, kept and gone on with, a failed one is shown,
tables are what the runs say, and what does not compare is refused."""
import json
import re
from pathlib import Path

import pytest

import train
from experiments import sweep, tables
from files.text import write_json
from methods import METHODS
from model import GPT2Config
from training.options import resolve
from training.recipes import recipe_for

PLANS = [(name, setting) for name, experiment in sweep.EXPERIMENTS.items() for setting in experiment.settings]


def plan_of(name, setting):
    return sweep.make_plan(name, setting, sweep.SETTINGS[setting], None, "")


# ---------------------------------------------------------------- rows

@pytest.mark.parametrize("name, setting", PLANS)
def test_every_row_is_a_command_that_train_reads_to_the_end(name, setting):
    plan = plan_of(name, setting)
    for row in plan["rows"]:
        parsed = train.parse_arguments(row["command"].split())
        assert parsed.task == setting.partition("-")[2]
        assert all(getattr(parsed, option) is None for option in train.without_meaning(parsed))
    assert len({row["folder"] for row in plan["rows"]}) == len(plan["rows"])


@pytest.mark.parametrize("setting, missing", [("toy-mrpc", set()), ("toy-mnli", set()), ("toy-e2e", {"head"})])
def test_every_method_is_a_row(setting, missing):
    commands = [row["command"] for row in plan_of("methods", setting)["rows"] if "--eval-only" not in row["command"]]
    assert {train.parse_arguments(command.split()).method for command in commands} == set(METHODS) - missing


def test_a_folder_belongs_to_one_command_and_experiments_share_runs():
    rows = [row for name, setting in PLANS for row in plan_of(name, setting)["rows"]]
    assert len({row["folder"] for row in rows}) == len({row["command"] for row in rows}) < len(rows)
    lora = {row["label"]: row["folder"] for row in plan_of("methods", "toy-e2e")["rows"]}["LoRA"]
    for name, label in (("rank", "r = 4"), ("targets", "q v"), ("lr", "lr = 5e-3"), ("alpha", "alpha = 32"),
                        ("dropout", "dropout = 0.1"), ("seeds", "LoRA"), ("low-data", "LoRA, all samples"),
                        ("base-quality", "the shipped base")):
        assert {row["label"]: row["folder"] for row in plan_of(name, "toy-e2e")["rows"]}[label] == lora, name


def test_target_rows_spend_the_same_parameters():
    """Counted from the shapes of a GPT-2's matrices, 2 d r for q, k, v and o; the MLP's own budget is 20 d instead of 16 d."""
    config = GPT2Config(n_embd=48)
    for row in plan_of("targets", "toy-e2e")["rows"]:
        options = train.parse_arguments(row["command"].split())
        sizes = [2 * 48 if target in "qkv" else sum(config.targets[target].shape) for target in options.targets]
        assert options.rank * sum(sizes) == (20 if "fc" in row["label"] else 16) * 48, row


def test_later_options_replace_earlier_ones_in_their_place():
    assert list(sweep.options_of("--rank 4 --targets q v --lr 1e-3", "--targets o", "--seed 1").items()) == [
        ("rank", "4"), ("targets", "o"), ("lr", "1e-3"), ("seed", "1")]
    assert sweep.command_of(sweep.options_of("--eval-only --beam-size 4")) == "--eval-only --beam-size 4"


def listed(capsys, *arguments):
    assert sweep.main([*arguments, "--list"]) == 0
    return re.findall(r"^python train.py (.*)$", capsys.readouterr().out, re.M)


def test_a_model_of_the_users_takes_the_recipe(capsys):
    commands = listed(capsys, "rank", "--model", "gpt2-medium", "--task", "e2e", "--data-dir", "D")
    assert commands[2] == "--model gpt2-medium --task e2e --data-dir D --method lora --targets q v --rank 4"
    options = train.parse_arguments(commands[2].split())
    assert resolve(options, recipe_for(GPT2Config(), "e2e", "lora", "paper")).lr == 2e-4
    assert len(listed(capsys, "methods", "--model", "roberta-base", "--task", "rte")) == 7
    with pytest.raises(ValueError, match="give --task"):
        sweep.main(["rank", "--model", "gpt2", "--list"])


def test_task_chooses_among_the_toy_tasks_and_train_options_go_through(capsys):
    commands = listed(capsys, "rank", "--task", "mrpc", "--max-steps", "7")
    assert len(commands) == 6 and all("toy/roberta --task mrpc" in c and c.endswith("--max-steps 7") for c in commands)
    with pytest.raises(ValueError, match="no task 'qqp'"):
        sweep.main(["rank", "--task", "qqp", "--list"])


# ---------------------------------------------------------------- running

def test_a_failed_run_is_shown_and_the_others_go_on(tmp_path, monkeypatch, capsys, repository):
    """Two real processes: one that train.py refuses, one that runs."""
    monkeypatch.chdir(repository)
    rows = {"too large": "--rank 999", "right": "--rank 3"}
    monkeypatch.setitem(sweep.EXPERIMENTS, "rank", sweep.Experiment(("toy-mrpc",), rows, seeds=(5,)))
    small = ["rank", "--max-steps", "2", "--limit-train", "8", "--limit-eval", "4", "--out-dir", str(tmp_path)]
    assert sweep.main(small) == 1
    out = capsys.readouterr().out
    assert re.search(r"\[\d/2\] toy-mrpc, too large, seed 5: FAILED, exit status 1: error: LoRA rank 999 exceeds", out)
    assert re.search(r"\[\d/2\] toy-mrpc, right, seed 5: accuracy \d\.\d{4}, \d+ s", out)
    assert "failed or not run: too large, 1 of 1 seeds" in out
    (metrics,) = tmp_path.rglob("metrics.json")
    tried = []
    monkeypatch.setattr(sweep, "run_process", lambda command, log: tried.append(command) or 1)
    assert sweep.main(small) == 1                                            # the failed one alone is tried again
    assert ["--rank 999" in " ".join(command) for command in tried] == [True] and metrics.exists()
    assert re.search(r"right, seed 5: accuracy \d\.\d{4}, found", capsys.readouterr().out)


def fake_metrics(command, seed):
    options = train.parse_arguments(command)
    score = 0.6 + 0.1 * (options.method == "lora") * (not options.eval_only) + 0.02 * seed
    scores = {"accuracy": score, "f1": 0.5, "loss": 1.0} if options.task == "mrpc" else {
        "loss": 1.5, "BLEU": score, "NIST": 5.0, "METEOR": 0.4, "ROUGE_L": 0.5, "CIDEr": 1.5, "reference_text": "pretokenised"}
    epochs = [scores, scores | {"accuracy": score + 0.01, "loss": 1.2}, scores]
    trained = {} if options.eval_only else {"trainable_parameters": 50, "total_parameters": 1000, "epochs": [
        {"epoch": index, "step": index} | entry for index, entry in enumerate(epochs)]}
    return {"task": options.task, "method": options.method, "scores": scores, "base_fingerprint": options.model,
            "data_fingerprints": {"train": str(options.limit_train), "evaluated": str(options.limit_eval)}} | trained


@pytest.fixture
def fake_runs(tmp_path, monkeypatch, repository):
    """train.py replaced by a function that writes metrics at once; returns the list of its calls."""
    calls = []

    def fake_process(command, log):
        calls.append(command)
        if command[0] != "train.py":
            return 0
        options = train.parse_arguments(command[1:])
        folder = Path(options.out_dir) / ("eval" if options.eval_only else f"seed{options.seed[0]}")
        folder.mkdir(parents=True)
        write_json(fake_metrics(command[1:], options.seed[0]), folder / "metrics.json")
        write_json({"beam_size": 4, "length_penalty": 0.9} if options.task == "e2e" else {}, folder / "config.json")
        return 0
    monkeypatch.chdir(repository)
    monkeypatch.setattr(sweep, "run_process", fake_process)
    monkeypatch.setattr(sweep, "fingerprint_of", lambda model: model)
    monkeypatch.setattr(sweep, "value_share", lambda folder: 0.25)
    monkeypatch.setattr(sweep.world, "write_tasks", lambda folder: None)
    return calls


def test_tables_are_what_the_runs_say_and_runs_are_made_once(tmp_path, fake_runs, capsys):
    arguments = ["methods", "rank", "--seeds", "0", "1", "--out-dir", str(tmp_path)]
    assert sweep.main(arguments) == 0
    out = capsys.readouterr().out
    assert len(fake_runs) == 8 * 2 + 7 * 2 + 1 + 5 * 2                       # of six ranks one is LoRA's row of methods
    assert "| LoRA | 50 (5.00%) | 72.0 ± 1.4 | 72.0 | 71.0 ± 1.4 | 71.0 | 50.0 ± 0.0 | 50.0 | 50.0 ± 0.0 | 50.0 | 2 |" in out
    assert ("| frozen base | 0 | 60.0 | 60.0 | 5.00 | 40.0 | 50.0 | 1.50 | 1.500 | 1.500 | 1 | 25.0 |") in out
    assert "| r = 64 | 50 (5.00%) | 71.0 ± 1.4 | 71.0 | 5.00 ± 0.00 " in out and "| 1.500 ± 0.000 | 1.200 ± 0.000 | 2 |" in out
    assert "not above the frozen base: BitFit" in out and "base: LoRA" not in out
    assert sweep.main(arguments) == 0 and len(fake_runs) == 41
    assert sweep.main(["methods", "--seeds", "0", "--max-steps", "3", "--out-dir", str(tmp_path)]) == 0      # other runs
    assert len(fake_runs) == 41 + 8 + 8


def test_runs_on_a_base_that_was_made_anew_since_are_not_taken_for_its_own(tmp_path, fake_runs, monkeypatch):
    arguments = ["methods", "--task", "mrpc", "--seeds", "0", "--out-dir", str(tmp_path)]
    sweep.main(arguments)
    made = len(fake_runs)
    monkeypatch.setattr(sweep, "fingerprint_of", lambda model: "0123")
    with pytest.raises(ValueError, match="made on base toy/roberta, and toy/roberta is now base 0123; remove the runs"):
        sweep.main(arguments)
    assert len(fake_runs) == made and len(list(tmp_path.rglob("metrics.json"))) == made


def test_poorer_bases_are_pretrained_first(tmp_path, fake_runs):
    assert sweep.main(["base-quality", "--task", "e2e", "--seeds", "0", "--out-dir", str(tmp_path)]) == 0
    commands = [" ".join(command) for command in fake_runs]
    made = [command for command in commands if "toy.pretrain" in command]
    assert made and commands[:len(made)] == made
    assert "-m toy.pretrain --model gpt2 --max-steps 300 --out runs/bases/300 --threads 1" in made


@pytest.mark.parametrize("change, named", [
    ({"base_fingerprint": "another"}, "its base is another"),
    ({"data_fingerprints": {"train": "None", "evaluated": "half"}}, "its test data is half"),
    ({"data_fingerprints": {"train": "less", "evaluated": "100"}}, "its training data is less"),
    ({"scores": {"BLEU": 0.5, "reference_text": "official"}}, "its reference text is official")])
def test_what_does_not_compare_is_refused(tmp_path, fake_runs, monkeypatch, change, named):
    monkeypatch.setattr(sweep, "fingerprint_of", lambda model: None)         # a model that is fetched by name
    arguments = ["rank", "--seeds", "0", "1", "--out-dir", str(tmp_path)]
    assert sweep.main(arguments) == 0
    path = next(path for path in sorted(tmp_path.rglob("seed1/metrics.json")) if "rank64" in str(path))
    write_json(json.loads(path.read_text()) | change, path)
    with pytest.raises(ValueError, match=f"{named}, but .* row 'r = 64'"):
        sweep.main(arguments)


def test_runs_of_before_and_after_the_first_rate_was_above_0_do_not_compare(tmp_path, fake_runs):
    arguments = ["rank", "--seeds", "0", "1", "--out-dir", str(tmp_path)]
    assert sweep.main(arguments) == 0                                        # as before: their configs do not name it
    path = next(path for path in sorted(tmp_path.rglob("seed1/config.json")) if "rank64" in str(path))
    write_json(json.loads(path.read_text()) | {"warmup_from": 1}, path)
    with pytest.raises(ValueError, match="its first learning rate is 1 parts of the warm-up, but 0 parts"):
        sweep.main(arguments)


def test_what_an_experiment_varies_may_differ_between_rows_but_not_within_one(tmp_path, fake_runs):
    arguments = ["low-data", "--task", "e2e", "--seeds", "0", "1", "--out-dir", str(tmp_path)]
    assert sweep.main(arguments) == 0
    path = next(path for path in tmp_path.rglob("seed1/metrics.json") if "limit-train100/" in path.as_posix() )
    write_json(json.loads(path.read_text()) | {"data_fingerprints": {"train": "other", "evaluated": "100"}}, path)
    with pytest.raises(ValueError, match="its training data is other"):
        sweep.main(arguments)


def test_last_and_best_epoch():
    """By hand: three epochs of two runs; the best by accuracy, or by the lowest loss, the earlier of equals."""
    pairs = [{"task": "mrpc", "scores": {}, "epochs": [{"epoch": n, "accuracy": a, "f1": f} for n, (a, f) in enumerate(run)]}
             for run in ([(0.9, 0.1), (0.7, 0.2), (0.8, 0.3), (0.8, 0.4)], [(0.1, 0.1), (0.6, 0.5), (0.5, 0.6), (0.4, 0.7)])]
    assert tables.values_of(pairs, "accuracy", "best") == [80, 60] and tables.values_of(pairs, "accuracy", "last") == [80, 40]
    assert tables.values_of(pairs, "f1", "best") == [30, 50]
    text = [{"task": "e2e", "scores": {"loss": 2.0}, "epochs": [{"epoch": n, "loss": x} for n, x in enumerate((9, 2.0, 3.0))]}]
    assert tables.values_of(text, "loss", "best") == [2.0] and tables.values_of(text, "loss", "last") == [3.0]
    assert tables.spread([1.0, 2.0, 4.0]) == "2.3 ± 1.5" and tables.median([1.0, 2.0, 4.0]) == "2.0"
