"""train.py and tasks.py on the toy models: the loss by hand, the schedule, the run folder, resuming, and bad input."""
import json
import re
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import data
import lora
import model as M
import train
from adapters import load_adapter
from files import cli
from files import weights as W
from tests import plain
from training import run_log, run_state, setup, sources, tasks
from training.options import resolve
from training.recipes import recipe_for


@pytest.fixture()
def run(repository, toy_data, tmp_path):
    """Run train.py in this process on a toy model; returns the run's folder."""
    def run(task, *options, out="runs", model=None):
        kind = "gpt2" if task == "e2e" else "roberta"
        arguments = ["--model", str(model or repository / "toy" / kind), "--task", task, "--data-dir", str(toy_data),
                     "--out-dir", str(tmp_path / out), "--limit-train", "60", "--limit-eval", "12", "--batch-size", "8",
                     "--lr", "0.003"]
        if "--method" not in options:
            arguments += ["--rank", "3", "--alpha", "7", "--dropout", "0.1"]
        arguments += options
        if task == "e2e":
            arguments += ["--beam-size", "2"]
        train.main(arguments)
        return max((tmp_path / out).rglob("config.json"), key=lambda path: path.stat().st_mtime, default=tmp_path).parent
    return run


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def adapter(folder):
    return {name: tensor.clone() for name, tensor in W.read_safetensors(folder / "adapter/adapter_model.safetensors").items()}


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def e2e_task(repository, toy_data, label_smoothing):
    settings = SimpleNamespace(task="e2e", text="pretokenised", limit_train=20, limit_eval=9, beam_size=2,
                               label_smoothing=label_smoothing)
    model = M.load_pretrained(repository / "toy" / "gpt2")
    source, tokenizer = sources.make_source(settings, toy_data), data.load_tokenizer(repository / "toy" / "gpt2")
    return tasks.make_task(settings, tokenizer, model.config, source), model


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_e2e_loss_is_that_of_the_reference_and_its_end_token(repository, toy_data, epsilon):
    """One sample at a time, with full logits: (1 - eps) NLL + eps times the mean of -log p over the vocabulary."""
    task, model = e2e_task(repository, toy_data, epsilon)
    indices, total, count = [3, 0, 11, 17], 0.0, 0
    for index in indices:
        mr, reference = data.read_e2e("train", toy_data)[index]
        tokenizer = task.tokenizer
        context, end = tokenizer.encode(mr) + [tokenizer.eos_id], tokenizer.encode(" " + reference) + [tokenizer.eos_id]
        log_p = model(torch.tensor([context + end]))[0].log_softmax(-1)      # (T, V)
        for offset, token in enumerate(end):
            row = log_p[len(context) + offset - 1]                           # what the model says before it sees the token
            total += -(1 - epsilon) * row[token] - epsilon * row.mean()
            count += 1
    torch.testing.assert_close(task.loss(model, indices), total, atol=1e-4, rtol=1e-5)
    assert task.terms(indices) == count


def test_validation_loss_is_unsmoothed_and_over_all_tokens(repository, toy_data):
    task, model = e2e_task(repository, toy_data, 0.1)
    with torch.inference_mode():
        losses = [F.cross_entropy(model(torch.tensor([ids]))[0, context - 1:-1], torch.tensor(ids[context:]), reduction="sum")
                  for ids, context in task.valid]
    count = sum(len(ids) - context for ids, context in task.valid)
    assert task.evaluate(model)["loss"] == pytest.approx(sum(losses).item() / count, rel=1e-5)


def test_stsb_is_regression_and_mnli_scores_both_parts(repository, toy_data):
    tokenizer = data.load_tokenizer(repository / "toy" / "roberta")
    settings = SimpleNamespace(task="mnli", limit_train=8, limit_eval=30, max_length=512)
    model = M.load_pretrained(repository / "toy" / "roberta", num_labels=3)
    scores = tasks.make_task(settings, tokenizer, model.config, sources.make_source(settings, toy_data)).evaluate(model)
    assert scores.keys() == {"accuracy", "accuracy_mismatched", "loss", "loss_mismatched"}
    assert scores["loss"] != scores["loss_mismatched"]
    regression = tasks.PairTask.__new__(tasks.PairTask)
    regression.glue = data.GLUE_TASKS["stsb"]
    logits, scores = torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 4.5])
    assert regression.loss_of(logits, scores).item() == pytest.approx((1.0 + 0.25) / 2)


def test_cut_pairs_are_counted(repository, toy_data):
    tokenizer = data.load_tokenizer(repository / "toy" / "roberta")
    config = M.load_pretrained(repository / "toy" / "roberta").config
    settings = SimpleNamespace(task="mrpc", limit_train=50, limit_eval=10, max_length=30)
    task = tasks.make_task(settings, tokenizer, config, sources.make_source(settings, toy_data))
    examples = data.read_glue("mrpc", "train", toy_data)[:50] + data.read_glue("mrpc", "dev", toy_data)[:10]
    too_long = sum(len(tokenizer.encode(example.text, example.pair)) > 30 for example in examples)
    assert 0 < too_long == task.cut and f"{too_long} longer than 30 tokens, cut there" in task.summary
    assert max(task.train_lengths) == 30


@pytest.mark.parametrize("steps, warmup, expected", [(100, 0.06, 6), (100, 8, 8)])
def test_the_schedule_is_that_of_transformers(steps, warmup, expected):
    transformers = pytest.importorskip("transformers")
    """From a rate of 0, as --recipe repo has it; the default begins with the first part of the warm-up."""
    settings = SimpleNamespace(epochs=10, max_steps=None, lr=0.3, warmup=warmup, warmup_from=0)
    schedule = train.Schedule(settings, steps_per_epoch=steps // 10)
    settings.warmup_from = 1
    ours = train.Schedule(settings, steps_per_epoch=steps // 10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = transformers.get_linear_schedule_with_warmup(optimizer, expected, steps)
    for step in range(steps):
        rate = optimizer.param_groups[0]["lr"]
        assert schedule(step) == pytest.approx(rate, abs=1e-12)
        assert ours(step) == pytest.approx(rate + 0.3 / expected if step < expected else rate, abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("max_steps, warmup", [(None, 500), (4000, 400), (100, 10)])
def test_a_run_too_short_for_its_warm_up_takes_a_tenth(max_steps, warmup):
    schedule = train.Schedule(SimpleNamespace(epochs=6, max_steps=max_steps, lr=1.0, warmup=500, warmup_from=1), 1000)
    assert (schedule.steps, schedule.warmup) == (max_steps or 6000, warmup)


def test_a_run_leaves_what_it_promises(run, tmp_path):
    folder = run("mrpc", "--epochs", "2", "--seed", "4")
    assert folder.relative_to(tmp_path / "runs/mrpc" / folder.parts[-3]).as_posix() == (
        "lora_r3_alpha7_qv_lr0.003_epochs2_batch8_dropout0.1_train60_eval12/seed4")
    metrics, lines = read_metrics(folder), log(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl", "adapter", "last.pt", "predictions.tsv",
                                                        "metrics.json"}
    assert [entry["epoch"] for entry in metrics["epochs"]] == [0, 1, 2]
    best = max(metrics["epochs"][1:], key=lambda entry: (entry["accuracy"], -entry["epoch"]))
    assert metrics["chosen_epoch"] == best["epoch"] and metrics["scores"]["accuracy"] == best["accuracy"]
    assert metrics["trainable_parameters"] == 4 * 2 * (128 + 128) * 3 and metrics["head_parameters"] == 128 * 128 + 128 * 3 + 2
    assert metrics["steps"] == 16 and lines[-1]["step"] == 16
    assert lines[-1].keys() == {"step", "loss", "lr", "examples_per_second", "tokens_per_second"}
    assert min(metrics["memory_parts_bytes"].values()) > 0
    assert metrics["memory_parts_bytes"]["gradients"] == 4 * (metrics["trainable_parameters"] + metrics["head_parameters"])
    predictions = (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    right = [line.split("\t")[1] == line.split("\t")[2] for line in predictions[1:]]
    assert len(right) == 12 and sum(right) / 12 == pytest.approx(metrics["scores"]["accuracy"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["seed"] == 4 and config["weight_decay"] == 0.1 and config["source"].startswith("LoRA paper, Table 9")


def test_the_saved_adapter_is_the_chosen_epoch_and_loads_onto_the_base(run, repository, toy_data):
    folder = run("e2e", "--epochs", "2", "--precision", "fp32")
    metrics = read_metrics(folder)
    model = M.load_pretrained(repository / "toy" / "gpt2")
    load_adapter(model, folder / "adapter", task="e2e")
    settings = SimpleNamespace(task="e2e", text="pretokenised", limit_train=1, limit_eval=12, beam_size=2,
                               label_smoothing=0.0)
    source, tokenizer = sources.make_source(settings, toy_data), data.load_tokenizer(repository / "toy" / "gpt2")
    task = tasks.make_task(settings, tokenizer, model.config, source)
    assert task.evaluate(model)["loss"] == pytest.approx(metrics["scores"]["loss"], rel=1e-5)
    assert metrics["scores"]["loss"] == min(entry["loss"] for entry in metrics["epochs"][1:])
    assert metrics["scores"].keys() >= {"BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"}
    assert len((folder / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize("task", ["e2e", "mrpc"])
def test_the_base_alone_is_scored_in_the_precision_asked_for(run, task, monkeypatch):
    held, hold = [], setup.hold_frozen_in
    monkeypatch.setattr(setup, "hold_frozen_in", lambda model, dtype: held.append(dtype) or hold(model, dtype))
    run(task, "--eval-only", "--precision", "bf16")
    assert held == ["bf16"]


def test_eval_only_gives_the_scores_of_the_run(run, tmp_path, repository, toy_data):
    metrics = read_metrics(run("e2e", "--max-steps", "4"))
    adapter_folder = next(tmp_path.rglob("adapter"))
    run("e2e", "--eval-only", "--adapter", str(adapter_folder), out="again")
    (again,) = (tmp_path / "again").rglob("metrics.json")
    scores = json.loads(again.read_text(encoding="utf-8"))["scores"]
    assert scores.keys() == metrics["scores"].keys() and scores["BLEU"] == metrics["scores"]["BLEU"]
    with pytest.raises(ValueError, match="trained for task 'e2e', expected 'mrpc'|trained on base"):
        run("mrpc", "--eval-only", "--adapter", str(adapter_folder), out="wrong")


@pytest.mark.parametrize("task, options, message", [
    ("e2e", ("--max-length", "100"), "--max-length means nothing for task e2e: it is not used"),
    ("mrpc", ("--length-penalty", "0.8"), "--length-penalty means nothing for task mrpc"),
    ("mrpc", ("--text", "official"), "--text means nothing for task mrpc"),
    ("mrpc", ("--method", "bitfit", "--rank", "3"), "--rank means nothing for method bitfit"),
    ("mrpc", ("--method", "adapter-h", "--targets", "q", "v"), "--targets means nothing for method adapter-h")])
def test_an_option_that_does_nothing_is_named(run, capsys, task, options, message):
    folder = run(task, *options, "--max-steps", "1")
    assert message in capsys.readouterr().err
    name = re.match("--([a-z-]+)", message)[1].replace("-", "_")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))[name] is None


@pytest.mark.parametrize("options, message", [
    (("--lr", "-1"), "--lr is -1.0; expected a number from 0"), (("--lr", "nan"), "--lr is nan"),
    (("--alpha", "-1"), "--alpha is -1.0; expected a number above 0"), (("--rank", "0"), "--rank is 0; expected a number from"),
    (("--warmup", "-3"), "--warmup is -3.0; expected a number from 0"),
    (("--label-smoothing", "1"), "--label-smoothing is 1.0; expected a number from 0 to below 1"),
    (("--resume", "--overwrite"), "argument --overwrite: not allowed with argument --resume")])
def test_numbers_out_of_range_are_wrong_usage(run, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        run("e2e", *options)
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("method, learning_rate", [("full", "0.001"), ("head", "0.003"), ("bitfit", "0.003")])
def test_other_methods_run_too(run, method, learning_rate):
    metrics = read_metrics(run("mrpc", "--epochs", "1", "--method", method, "--lr", learning_rate))
    assert metrics["method"] == method and metrics["epochs"][0]["loss"] != metrics["epochs"][1]["loss"]


def test_same_seed_same_result_and_another_seed_another(run):
    first, again = (run("mrpc", "--max-steps", "5", out=out) for out in ("a", "b"))
    other = run("mrpc", "--max-steps", "5", "--seed", "1", out="c")
    assert all(torch.equal(tensor, adapter(again)[name]) for name, tensor in adapter(first).items())
    assert read_metrics(first)["epochs"] == read_metrics(again)["epochs"] != read_metrics(other)["epochs"]


@pytest.mark.parametrize("task", ["mrpc", "e2e"])
def test_resuming_equals_never_having_stopped(run, monkeypatch, task):
    options = ("--epochs", "2", "--save-every", "3")
    whole = run(task, *options, out="whole")
    original, calls = train.Trainer.train_step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 12:                                                 # in the second epoch, two steps after a save
            raise KeyboardInterrupt
        original(self, *arguments)
    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(task, *options, out="parts")
    monkeypatch.undo()
    torch.rand(5)                                                            # the random state must come from the file
    parts = run(task, *options, "--resume", out="parts")
    assert all(torch.equal(tensor, adapter(parts)[name]) for name, tensor in adapter(whole).items())
    for key in ("epochs", "chosen_epoch", "scores", "steps"):
        assert read_metrics(whole)[key] == read_metrics(parts)[key]
    timeless = [[(line["step"], line["loss"], line["lr"]) for line in log(folder)] for folder in (whole, parts)]
    assert timeless[0] == timeless[1]


def test_a_second_command_with_other_settings_has_a_folder_of_its_own(run, capsys):
    """The same again is a line; the folder of the recipe's settings has the shortest name."""
    folder = run("mrpc", "--max-steps", "2")
    before = (folder / "metrics.json").read_bytes()
    for options in (("--max-steps", "3"), ("--max-steps", "2", "--batch-size", "4"), ("--max-steps", "2", "--recipe", "repo"),
                    ("--max-steps", "2", "--weight-decay", "0.5"), ("--max-steps", "2", "--eval-every", "1"),
                    ("--max-steps", "2", "--limit-train", "32")):
        other = run("mrpc", *options)
        assert other != folder and read_metrics(other)["steps"] == int(options[1])
    assert len(list(folder.parents[1].iterdir())) == 7 and (folder / "metrics.json").read_bytes() == before
    capsys.readouterr()
    run("mrpc", "--max-steps", "2", "--grad-accumulation", "2")              # the same update, the same folder
    assert f"{folder} is finished" in capsys.readouterr().out and (folder / "metrics.json").read_bytes() == before
    run("mrpc", "--max-steps", "2", "--overwrite")
    assert (folder / "metrics.json").read_bytes() != before                  # its seconds
    recipe = recipe_for(M.RobertaConfig(), "mrpc", "lora", "paper")
    settings = resolve(train.parse_arguments(["--model", "roberta-base", "--task", "mrpc"]), recipe)
    assert run_state.run_folder(settings, recipe, "runs", 0).as_posix() == (
        "runs/mrpc/roberta-base/lora_r8_alpha8_qv_lr0.0004/seed0")


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_unasked(run):
    folder = run("mrpc", "--max-steps", "2")
    (folder / "metrics.json").unlink()
    before = (folder / "last.pt").read_bytes()
    with pytest.raises(ValueError, match="holds an unfinished run: give --resume to go on"):
        run("mrpc", "--max-steps", "2")
    assert (folder / "last.pt").read_bytes() == before
    run("mrpc", "--max-steps", "2", "--resume")
    assert read_metrics(folder)["steps"] == 2


@pytest.mark.parametrize("task, method", [("mrpc", "lora"), ("e2e", "bitfit")])
def test_where_resuming_is_refused_the_adapter_is_trained_on_as_the_line_says(run, toy_data, tmp_path, capsys, task, method):
    """The new run starts with the score that the old one ended with, and can be trained on in turn."""
    shutil.copytree(toy_data, tmp_path / "moved")

    def losses(folder):
        return [epoch["loss"] for epoch in read_metrics(folder)["epochs"]]
    first = run(task, "--method", method, "--max-steps", "4", out="first")
    with pytest.raises(ValueError, match="was started with data_dir = ") as refusal:
        run(task, "--method", method, "--max-steps", "4", "--data-dir", str(tmp_path / "moved"), "--resume", out="first")
    started = re.search("give (--init-adapter) (.+) and another --out-dir, without --resume$", str(refusal.value)).groups()
    second = run(task, "--method", method, "--max-steps", "4", *started, out="second")
    best = [entry["step"] for entry in read_metrics(first)["epochs"]].index(read_metrics(first)["chosen_step"])
    assert losses(second)[0] == pytest.approx(losses(first)[best], rel=1e-5) and losses(second)[0] != losses(first)[0]
    capsys.readouterr()
    run(task, "--method", method, "--max-steps", "5", "--resume", out="first")           # other settings: nothing to go on from
    said = re.search("the run starts at its beginning; .* give (--init-adapter) (.+)", capsys.readouterr().err).groups()
    assert said[1] == str(first / "adapter")


def test_scores_every_few_steps_are_among_those_to_choose_from(run, monkeypatch):
    """And a run that is interrupted while it scores, or before, makes up for it."""
    options = ("--epochs", "2", "--eval-every", "3", "--save-every", "3", "--log-every", "2")        # 8 steps an epoch
    whole = run("mrpc", *options, out="whole")
    metrics = read_metrics(whole)
    assert [(entry["epoch"], entry["step"]) for entry in metrics["epochs"]] == [
        (0, 0), (0.375, 3), (0.75, 6), (1, 8), (1.125, 9), (1.5, 12), (1.875, 15), (2, 16)]
    best = max(metrics["epochs"][1:], key=lambda entry: (entry["accuracy"], -entry["step"]))
    assert metrics["chosen_step"] == best["step"] and metrics["scores"]["accuracy"] == best["accuracy"]
    assert [line["step"] for line in log(whole)] == list(range(2, 17, 2))
    for place, name, number in ((tasks.PairTask, "evaluate", 3), (tasks.PairTask, "evaluate", 6),    # steps 6, 12: are saved
                                (train.Trainer, "train_step", 7)):           # after the scores of step 6, which are saved, too
        original, calls = getattr(place, name), []

        def interrupted(self, *arguments, original=original, calls=calls, number=number):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return original(self, *arguments)
        monkeypatch.setattr(place, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("mrpc", *options, out=str(number))
        monkeypatch.undo()
        parts = run("mrpc", *options, "--resume", out=str(number))
        assert read_metrics(parts)["epochs"] == metrics["epochs"] and len(log(parts)) == 8
        assert all(torch.equal(tensor, adapter(parts)[name]) for name, tensor in adapter(whole).items())


@pytest.mark.parametrize("task", ["e2e", "mrpc"])
def test_a_batch_in_parts_gives_the_update_of_the_whole(run, task):
    """Parts of 3, 3 and 2 rows with other numbers of tokens; without dropout, which draws for each part."""
    options = ("--max-steps", "6", "--dropout", "0", "--model-dropout", "0", "--log-every", "1", "--precision", "fp32")
    whole, parts = (run(task, *options, "--grad-accumulation", n, out=n) for n in ("1", "3"))
    losses = [[line["loss"] for line in log(folder)] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0] != losses[1]
    for name, tensor in adapter(whole).items():
        torch.testing.assert_close(adapter(parts)[name], tensor, atol=1e-4, rtol=1e-3)
    kept = [read_metrics(folder)["memory_parts_bytes"]["activations"] for folder in (whole, parts)]
    assert kept[1] < 0.6 * kept[0]


def test_off_a_terminal_a_line_is_printed_every_so_often(run, monkeypatch, capsys):
    run("mrpc", "--max-steps", "7", "--log-every", "3")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 3 of 7", "step 6 of 7", "step 7 of 7"]
    assert all(re.search(r": loss \d\.\d{4}, learning rate [\de.-]+, [\d,.]+ examples/s, \d+ s left$", line) for line in lines)
    monkeypatch.setattr(run_log, "SAY_EVERY", 0)                             # as if a minute had passed after every step
    run("mrpc", "--max-steps", "21", "--overwrite")
    assert len(re.findall(r"^step (?:10|20|21) of 21: ", capsys.readouterr().err, re.MULTILINE)) == 3
    assert [run_log.duration(seconds) for seconds in (7.4, 99, 185, 61 * 60, 7300)] == ["7 s", "99 s", "3 min", "1 h 1 min",
                                                                                       "2 h 2 min"]


def test_a_run_begins_above_a_rate_of_0_and_says_so_where_none_is(run, capsys):
    folder = run("mrpc", "--max-steps", "1")
    assert log(folder)[0]["lr"] == 0.003 and "no step of this run" not in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["warmup_from"] == 1
    nothing = run("mrpc", "--max-steps", "1", "--recipe", "repo")
    assert log(nothing)[0]["lr"] == 0
    assert "warning: no step of this run has a learning rate above 0, so it trains nothing" in capsys.readouterr().err
    assert json.loads((nothing / "config.json").read_text(encoding="utf-8"))["warmup_from"] == 0


def test_the_start_of_a_run_is_four_lines_that_can_be_checked(run, capsys):
    run("mrpc", "--max-steps", "1")
    lines = capsys.readouterr().out.splitlines()[:4]
    assert [line.split()[0] for line in lines] == ["model", "method", "schedule", "data"]
    assert {line[:11].rstrip() for line in lines} == {"model", "method", "schedule", "data"}         # aligned
    assert all(len(line.replace(line.split()[1], "")) < 200 for line in lines)


def test_curves_are_drawn_where_tensorboard_is_installed(run, monkeypatch, tmp_path):
    drawn = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            drawn.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            drawn.append((name, step))

        def close(self):
            drawn.append("closed")
    with pytest.raises(ValueError, match="run pip install tensorboard, or leave the option out"):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        run("mrpc", "--max-steps", "2", "--tensorboard", str(tmp_path / "curves"))
    assert not list(tmp_path.rglob("config.json"))                           # refused before anything was made
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    folder = run("mrpc", "--max-steps", "2", "--tensorboard", str(tmp_path / "curves"))
    assert drawn[0] == (str(tmp_path.joinpath("curves", *folder.parts[-4:])), 1) and drawn[-1] == "closed"
    assert ("train/loss", 2) in drawn and ("dev/accuracy", 0) in drawn and ("dev/accuracy", 2) in drawn


def test_the_last_epoch_is_kept_when_asked_for(run, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.6, 0.6])                                  # the last: scored once more, with the predictions
    monkeypatch.setattr(tasks.PairTask, "evaluate", lambda self, model: {"accuracy": next(accuracies), "loss": 1.0})
    metrics = read_metrics(run("mrpc", "--epochs", "2", "--select", "last"))
    assert (metrics["chosen_epoch"], metrics["chosen_by"]) == (2, "the last epoch")
    accuracies = iter([0.95, 0.9, 0.6, 0.9])                                  # the untrained start is never chosen
    assert read_metrics(run("mrpc", "--epochs", "2", "--overwrite"))["chosen_epoch"] == 1


def test_a_loss_that_is_not_finite_stops_the_run(run):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+.*lower --lr"):
        run("mrpc", "--epochs", "3", "--lr", "1e30", "--warmup", "0")


# ---------------------------------------------------------------- bad input, through the command line

@pytest.fixture()
def command(repository, monkeypatch, capsys):
    """Runs `python train.py ARGUMENTS` in this process; returns its exit status and stderr without the loader's reports."""
    def command(*arguments, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(repository)
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(train.main)
        return ended.value.code, [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loaded ")]
    return command


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def truncated_weights(repository, toy_data, tmp_path):
    shutil.copytree(repository / "toy" / "roberta", tmp_path / "model")
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(whole[:-1000])
    return ["--model", tmp_path / "model", "--task", "mrpc", "--data-dir", toy_data], ["truncated", "fetch it again"]


def wrong_weights(repository, toy_data, tmp_path):
    shutil.copytree(repository / "toy" / "roberta", tmp_path / "model")
    shutil.copy(repository / "toy" / "gpt2" / "model.safetensors", tmp_path / "model")
    return ["--model", tmp_path / "model", "--task", "mrpc", "--data-dir", toy_data], ["missing", "unexpected", "another kind"]


def with_line_replaced(toy_data, tmp_path, line):
    shutil.copytree(toy_data, tmp_path / "data")
    path = tmp_path / "data/glue/MRPC/train.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[6] = line
    path.write_text("\n".join(lines), encoding="utf-8")
    return ["--model", "toy/roberta", "--task", "mrpc", "--data-dir", tmp_path / "data"]


def malformed_row(repository, toy_data, tmp_path):
    return with_line_replaced(toy_data, tmp_path, "1\tonly\tthree"), ["train.tsv", "7", "3", "5"]


def wrong_label(repository, toy_data, tmp_path):
    return with_line_replaced(toy_data, tmp_path, "maybe\t1\t2\tone\ttwo"), ["train.tsv", "7", "maybe", "0", "1"]


def unknown_target(repository, toy_data, tmp_path):
    return ["--model", "toy/roberta", "--task", "mrpc", "--data-dir", toy_data, "--targets", "q", "w", "--out-dir", tmp_path], [
        "unknown LoRA target 'w'", "q k v o fc proj"]


def missing_data(repository, toy_data, tmp_path):
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    return ["--model", "toy/roberta", "--task", "rte", "--data-dir", tmp_path], ["train.tsv", "RTE"]


def missing_model(repository, toy_data, tmp_path):
    return ["--model", "gpt2", "--task", "e2e", "--data-dir", toy_data, "--weights-dir", tmp_path], ["gpt2", "make demo"]


@pytest.mark.parametrize("fault", [truncated_weights, wrong_weights, malformed_row, wrong_label, unknown_target, missing_data,
                                   missing_model], ids=lambda fault: fault.__name__)
def test_bad_input_is_one_clear_line_and_status_1(command, repository, toy_data, tmp_path, fault):
    arguments, words = fault(repository, toy_data, tmp_path)
    home = tmp_path / "home"
    status, lines = command(*arguments, "--out-dir", tmp_path / "out", HF_HOME=str(home), XDG_CACHE_HOME=str(home),
                            HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    assert status == 1
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in lines[0]
    assert all(word in lines[0] for word in words), lines[0]


def test_wrong_usage_is_status_2(command, repository):
    assert command("--model", "toy/roberta", "--task", "mrpc", "--epochs", "0")[0] == 2
    done = subprocess.run([sys.executable, "train.py", "--model", "toy/roberta", "--task", "nonsense"], cwd=repository,
                          capture_output=True)                               # the file is the command
    assert done.returncode == 2 and not done.stdout


# ---------------------------------------------------------------- the step as a whole

@pytest.mark.parametrize("task", ["e2e", "mrpc"])
def test_fifty_steps_have_the_losses_of_the_plain_implementation(repository, toy_data, task):
    """Without padding, with few logits and the cheaper operations: the same curve as padded and written out."""
    arguments = ["--model", str(repository / "toy" / ("gpt2" if task == "e2e" else "roberta")), "--task", task, "--data-dir",
                 str(toy_data), "--limit-train", "400", "--limit-eval", "1", "--batch-size", "7", "--lr", "0.002", "--rank",
                 "3", "--alpha", "7", "--warmup", "0.1"]
    ours, theirs = (plain.losses(arguments, 50, is_plain, None) for is_plain in (False, True))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert ours[-1] < ours[0] - 0.01 or task == "mrpc"
    assert len(set(ours)) == 50


def test_the_gradients_of_a_batch_do_not_depend_on_the_order_of_its_samples(repository, toy_data):
    task, model = e2e_task(repository, toy_data, 0.1)
    lora.add_lora(model, 3, 7)
    losses = [task.loss(model, order) for order in ([3, 0, 11], [11, 3, 0])]
    torch.testing.assert_close(losses[0], losses[1])
