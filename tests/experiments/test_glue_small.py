"""experiments/search.py, glue_small.py and what asks and reports on it: what is held out, which rate is chosen, what is run in
which order, and a report that holds what was run and nothing else. Runs are made up; their weights and the data are tiny."""
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

import train
from data import GLUE_TASKS, read_glue
from experiments import glue_analysis, glue_answers, glue_questions, glue_small, plots, report, search, sweep
from experiments.counts import formula_counts
from experiments.kept_runs import read_lines, restore
from experiments.search import chosen_rate, grid_of, hold_out, run_all_parts
from files.text import read_json, write_json
from methods import apply_method, save_trained, trained_parameters
from model import RobertaConfig, load_pretrained
from training.options import without_meaning

MINILM = RobertaConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """GLUE's folders with small training files, and dev files whose rows no other file may hold."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"MRPC": ["Quality\t#1 String\t#2 String"] + [f"{n % 2}\tone {n}\t\"other {n}" for n in range(40)],
            "CoLA": [f"s\t{n % 2}\t\tsentence {n}" for n in range(31)], "RTE": ["x"], "STS-B": ["x"], "SST-2": ["x"]}
    for name, lines in rows.items():
        (folder / "glue" / name).mkdir(parents=True)
        for split, text in (("train", "\n".join(lines)), ("dev", re.sub("one|sentence", "DEV", "\n".join(lines)))):
            (folder / "glue" / name / f"{split}.tsv").write_text(text + "\n")
    return folder


# ---------------------------------------------------------------- held out

@pytest.mark.parametrize("task, rows, tenth", [("mrpc", 40, 4), ("cola", 31, 3)])
def test_a_tenth_of_the_training_rows_is_held_out_and_no_other_row(glue, tmp_path, task, rows, tenth):
    for folder in ("a", "b"):
        hold_out(task, glue, tmp_path / folder)
    kept, dev = (read_glue(task, split, tmp_path / "a") for split in ("train", "dev"))
    everything = read_glue(task, "train", glue)
    assert (len(kept), len(dev)) == (rows - tenth, tenth) and sorted([*kept, *dev], key=everything.index) == everything
    assert dev not in (everything[:tenth], everything[-tenth:])              # drawn, and by the seed alone
    files = [[path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.tsv"))] for folder in "ab"]
    assert files[0] == files[1] and len(files[0]) == 2


# ---------------------------------------------------------------- the rate

def test_the_rate_is_that_of_the_best_mean_rank():
    """By hand. Ranks a: 3 and 1, b: 1.5 and 2, c: 1.5 and 3; by the mean score it would be a."""
    assert chosen_rate({"a": (0.7, 0.90), "b": (0.8, 0.3), "c": (0.8, 0.2)}) == "b"
    assert chosen_rate({"a": (0.8, 0.2), "b": (0.7, 0.4)}) == "b"            # equal ranks: the higher mean
    assert chosen_rate({"a": (0.5,), "b": (0.5,), "c": (0.5,)}) == "b"       # all equal: the middle
    assert chosen_rate({"a": (-math.inf, 0.9), "b": (0.1, 0.8), "c": (0.2, 0.1)}) == "b"


def test_a_grid_is_widened_while_its_best_is_at_an_end():
    five = ["3e-4", "1e-3", "3e-3", "1e-2", "3e-2"]
    scores = dict(zip(five, ([0.1], [0.2], [0.5], [0.2], [0.1]), strict=True))
    assert grid_of("3e-4", scores) == (five, "3e-3")
    assert grid_of("3e-4", {rate: of for rate, of in scores.items() if rate != "1e-2"}) == (five, None)
    scores["3e-4"] = [0.9]
    assert grid_of("3e-4", scores) == (["1e-4", *five], None)
    assert grid_of("3e-4", scores | {"1e-4": [0.95]}) == (["3e-5", "1e-4", *five], None)
    assert grid_of("3e-4", scores | {"1e-4": [0.8]}) == (["1e-4", *five], "3e-4")
    scores["3e-2"] = [0.99]
    assert grid_of("3e-4", scores) == ([*five, "1e-1"], None)
    with pytest.raises(ValueError, match="the best learning rate is 3, at the end of all"):
        grid_of("3e-2", dict(zip(("3e-2", "1e-1", "3e-1", "1", "3"), ([n] for n in range(5)), strict=True)))


def test_the_best_rate_between_the_rates_is_the_peak_of_the_parabola():
    def loss(log_rate):                                                      # its peak lies at 10 ** -2.7
        return [1.0 - (log_rate + 2.7) ** 2]
    rates = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
    scores = {rate: loss(math.log10(float(rate))) for rate in rates}
    assert glue_answers.best_rate(scores, "3e-3") == pytest.approx(10 ** -2.7)
    assert glue_answers.best_rate(scores | {"1e-2": [-math.inf]}, "3e-3") == 3e-3


# ---------------------------------------------------------------- the rows

def test_ranks_are_those_of_the_most_equal_number_of_parameters():
    """On minilm's size LoRA on q and v trains 73,728 numbers; one rank more or less is further from it, or as far."""
    wanted = formula_counts(MINILM, "lora", 8)["trainable"]
    assert wanted == 73_728
    for name, (text, _) in (glue_small.METHODS | glue_questions.TARGETS).items():
        options = sweep.options_of(text)
        if "rank" in options:
            counts = [formula_counts(MINILM, options["method"], int(options["rank"]) + more,
                                     tuple(options.get("targets", "").split()))["trainable"] for more in (-1, 0, 1)]
            assert abs(counts[1] - wanted) == min(abs(count - wanted) for count in counts), name
            assert "lora" not in text or options["alpha"] == options["rank"], name         # the update is scaled by 1
    scales = {arm: float(of["alpha"]) / int(of["rank"]) for arm, (text, _) in glue_questions.rate_arms().items()
              if "alpha" in (of := sweep.options_of(text))}
    assert scales["LoRA, r = 8"] == scales["LoRA, r = 32, constant"] == 1 and scales["LoRA, r = 2, alpha / r"] == 4
    assert scales["LoRA, r = 32, alpha / sqrt(r)"] == 0.5 and len(scales) == 7


def test_the_data_part_asks_every_rank_at_the_scale_whose_first_steps_are_those_of_the_searched_rank():
    options = {rank: sweep.options_of(glue_questions.of_rank(rank)) for rank in glue_questions.DATA_RANKS}
    assert {rank: (of["rank"], of["alpha"]) for rank, of in options.items()} == {
        rank: (str(rank), "8") for rank in (1, 4, 8, 16, 64)}
    assert options[8] == sweep.options_of(glue_small.METHODS["LoRA"][0])


# ---------------------------------------------------------------- made-up runs

PEAKS = {"full": 3e-6, "head": 3e-3, "prefix": 1e-2}                         # full's lies below its grid


@pytest.fixture
def world(tmp_path, monkeypatch, repository, glue):
    """train.py replaced by a function that writes a run's files at once. Returns (command, the calls, the folder of runs)."""
    calls, out = [], tmp_path / "runs"

    def fake_process(command, log):
        calls.append(command[1:])
        options = train.parse_arguments(command[1:])
        assert not without_meaning(options).keys() & {name for name, value in vars(options).items() if value is not None}
        if options.method == "bitfit" and options.lr == 3e-2 and options.epochs == 2:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("error: the loss is nan at step 3: lower --lr\n")
            return 1
        peak = PEAKS.get("six" if len(options.targets or ()) == 6 else options.method, 3e-3)
        score = 0.9 - 0.1 * abs(math.log10(options.lr / peak)) + 0.01 * options.seed[0]
        scores = {"loss": 1 - score} | dict.fromkeys(GLUE_TASKS[options.task].metrics, score)
        rank = options.rank or {"full": 500}.get(options.method, 0)
        folder = Path(options.out_dir) / f"seed{options.seed[0]}"
        folder.mkdir(parents=True)
        write_json({"task": options.task, "model": options.model, "method": options.method, "seed": options.seed[0],
                    "scores": scores, "epochs": [{"epoch": n} | scores for n in range(3)], "chosen_by": "the last epoch",
                    "base_fingerprint": "same", "data_fingerprints": {"train": "", "evaluated": options.task},
                    "trainable_parameters": rank, "head_parameters": 77 + (options.task == "stsb"), "total_parameters": 1000,
                    "adapter_bytes": 4000, "peak_memory_bytes": 2**20,
                    "memory_parts_bytes": dict.fromkeys(("weights", "gradients", "optimizer", "activations"), 1000),
                    "seconds": 10.0, "tokens_per_second": 99.0}, folder / "metrics.json")
        write_json({"lr": options.lr, "batch_size": 16, "task": options.task}, folder / "config.json")
        (folder / "log.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
        return 0

    def command(part, *more, module=glue_small):
        return module.main([part, "--model", "toy/roberta", "--data-dir", str(glue), "--out-dir", str(out), *more])
    monkeypatch.chdir(repository)
    monkeypatch.setenv("LORA_DATA", "")                                      # the command sets it; taken back afterwards
    monkeypatch.setattr(sweep, "run_process", fake_process)
    monkeypatch.setattr(glue_small, "restore", lambda family, folder: restore(family, folder, tmp_path / "results"))
    return command, calls, out


def test_from_the_search_to_the_report(world, tmp_path, capsys):
    """The whole way, in portions: widened grids, a diverged run, rates for the runs, seeds in their order, cells and counts."""
    command, calls, out = world
    with pytest.raises(ValueError, match="has not ended for LoRA; full; .*: run `python -m experiments.glue_small search"):
        command("runs")
    assert command("search", "--budget-minutes", "0") == 0 and not calls
    assert "90 left for another time" in capsys.readouterr().out
    assert command("search") == 0
    said = capsys.readouterr().out
    assert len(calls) == 2 * (9 * 5 + 3)                                     # full: 3e-6 is best and no longer an end at 1e-6
    assert "full takes 3e-6" in said and "LoRA takes 3e-3" in said and "BitFit takes 3e-3" in said
    assert all(f"--data-dir {out / 'held-out'}" in " ".join(call) for call in calls)
    command("search")
    assert len(calls) == 96                                                  # nothing is repeated, not even what diverged

    calls.clear()
    assert command("runs", "--budget-minutes", "0") == 0
    assert "glue-small, roberta-mrpc: 0 of 31 runs are there, 31 remain" in capsys.readouterr().out
    assert command("runs") == 0
    runs = [train.parse_arguments(call) for call in calls]
    assert len(runs) == 5 * (2 * 5 + 7 * 3) and not any(run.data_dir for run in runs)
    assert [run.seed[0] for run in runs] == sorted(run.seed[0] for run in runs)
    assert [run.task for run in runs[:18]] == ["mrpc"] * 9 + ["rte"] * 9
    assert {(run.epochs, run.select, run.precision, run.batch_size) for run in runs} == {(3, "last", "fp32", 16)}
    assert {run.lr for run in runs if run.method == "full"} == {3e-6}

    absent = next(path for path in sorted(out.rglob("seed2/metrics.json")) if "prefix" in str(path) and "cola" in str(path))
    for path in (absent, *(path for path in out.rglob("metrics.json") if "rte" in str(path) and "bitfit" in str(path))):
        path.unlink()
    results = tmp_path / "results"
    assert report.main(["--runs", str(out), "--results", str(results)]) == 0
    page, section = ((results / name).read_text() for name in ("glue-small/README.md", "README.md"))
    flat = " ".join(page.split())                                            # without the ends of lines
    assert "151 of 155 runs are in." in flat and "151 of 155 runs are in." in " ".join(section.split())
    rows = {cells[0]: cells for line in section.splitlines() if len(cells := line.strip("| ").split(" | ")) == 9}
    assert rows["LoRA"][1:] == ["8 (0.80%)", "0.003", *["93.0 ± 1.6 (5)"] * 6]
    assert "| sst2 | mean of the 5 |" in section and rows["prefix"][8] == "92.0 ± 1.4 (2)"
    assert "| BitFit | 0 | 0.003 | 92.0 ± 1.0 (3) |  | 92.0 ± 1.0 (3) | 92.0 ± 1.0 (3) | 92.0 ± 1.0 (3) |  |" in section
    assert rows["prefix"][5] == "92.0 ± 1.4 (2)"
    assert "LoRA is not below full fine-tuning (Tables 2, 3) | roberta, mean of 5 tasks | " in section
    for text in (flat, " ".join(section.split())):
        assert "trains the head, its dense layer and its output: 77 or 78 numbers." in text
        assert "has on the same dev sets (microsoft/unilm, minilm/README.md) cola 47.5, sst2 91.5, rte 68.8, mrpc 88.9." in text
    assert "pairs at the best epoch, on minilm at the last one" in " ".join(section.split())
    assert "lay at an end: full to 7 rates; last two layers to 6 rates." in flat and "diverged / diverged" in page
    assert re.search(r"\| LoRA \|.*\*\*90.0 / 90.0\*\*", page)
    assert "LoRA is not below full fine-tuning (Tables 2, 3) | roberta-mrpc | " in section
    assert not list((results / "glue-small").glob("rates.png")) and "rates" not in "".join(re.findall(r"!\[.*", page))
    assert read_lines(results / "plans.jsonl").keys() > {"glue-small-search_roberta-cola", "glue-small_roberta-sst2"}


def test_a_machine_is_named_where_it_has_made_a_run(world, tmp_path, monkeypatch):
    """Not where it only found what another had made; and both are, where both have."""
    command, calls, out = world
    command("search")
    command("runs")
    results = tmp_path / "results"
    report.collect(out, results)
    first = {place: plan["made"] for place, plan in read_lines(results / "plans.jsonl").items()}
    monkeypatch.setattr(search, "machine", lambda: "Run on another one.")
    command("runs")
    report.collect(out, results)
    assert {place: plan["made"] for place, plan in read_lines(results / "plans.jsonl").items()} == first
    (path,) = (path for path in out.rglob("seed2/metrics.json") if "_rte_" in str(path) and "_full_" in str(path))
    write_json(read_json(path) | {"seconds": 77.0}, path)
    for _ in range(2):                                                       # the second time nothing is new
        report.collect(out, results)
    both = f"{first['glue-small_roberta-rte']} / Run on another one."
    assert {place: plan["made"] for place, plan in read_lines(results / "plans.jsonl").items()} == first | {
        "glue-small_roberta-rte": both}


def test_another_machine_goes_on_from_what_is_kept(world, tmp_path):
    """Also the runs on bases drawn anew, and those that diverged, which left no metrics; and no kept row is dropped."""
    command, calls, out = world
    command("search")
    command("runs")
    command("bases", module=glue_questions)
    results = tmp_path / "results"
    report.collect(out, results)
    before = (results / "plans.jsonl").read_bytes()
    shutil.rmtree(out)
    calls.clear()
    for part, module in (("search", glue_small), ("runs", glue_small), ("bases", glue_questions)):
        assert command(part, module=module) == 0
    assert not calls
    report.collect(out, results)
    assert (results / "plans.jsonl").read_bytes() == before
    for name in ("glue-small_roberta-mrpc", "glue-small-search_roberta-mrpc"):           # a machine that knows of less
        plan = read_json(out / "plans" / f"{name}.json")
        rows = [{key: row[key] for key in row if key != "diverged"} for row in plan["rows"] if "prefix" not in row["label"]]
        write_json(plan | {"rows": rows}, out / "plans" / f"{name}.json")
    report.collect(out, results)
    for name, plan in read_lines(results / "plans.jsonl").items():
        earlier = next(line for line in map(json.loads, before.splitlines()) if line["place"] == name)
        assert sorted(plan["rows"], key=str) == sorted(earlier["rows"], key=str), name


def test_a_search_that_has_not_ended_is_told_with_its_command(world, tmp_path):
    command, calls, out = world
    command("search")
    for path in (path for path in out.rglob("metrics.json") if "_full_" in str(path)):
        path.unlink()
    told = "has not ended for full: run `python -m experiments.glue_small search --data-dir D` until it has"
    for part in ("data", "bases"):
        with pytest.raises(ValueError, match=told):
            command(part, module=glue_questions)
    calls.clear()
    with pytest.raises(ValueError, match="for LoRA, attention; LoRA, MLP: run `python -m experiments.glue_questions targets"):
        command("targets", "--budget-minutes", "0", module=glue_questions)
    assert not calls


def give_weights(out, *methods):
    """The finished runs on MRPC and CoLA of these methods and seed 1 get weights that are a little off the base's."""
    for path in out.rglob("seed1/metrics.json"):
        metrics = read_json(path)
        if metrics["task"] in ("mrpc", "cola") and metrics["method"] in methods and "held-out" not in path.parts:
            model = load_pretrained("toy/roberta", classes=GLUE_TASKS[metrics["task"]].labels)
            apply_method(model, metrics["method"], rank=2)
            with torch.no_grad():
                for number, parameter in enumerate(trained_parameters(model).values()):
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.05)
            save_trained(model, path.parent / "adapter", "toy/roberta", metrics["task"])
            write_json(read_json(path.parent / "config.json") | {"model": "toy/roberta"}, path.parent / "config.json")


def test_weights_are_analysed_at_the_end_of_a_portion_and_elsewhere_their_lines_are_kept(world, tmp_path, capsys):
    command, calls, out = world
    command("search")
    command("runs")                                                          # made up: 65 change weights, and none is there
    assert "spectra: 65 not analysed, for their runs have no trained weights here" in capsys.readouterr().out
    assert command("spectra", module=glue_analysis) == 1
    give_weights(out, "lora", "full", "head")
    assert command("runs", "--budget-minutes", "0") == 0
    said = capsys.readouterr().out
    spectra = read_lines(out / "spectra.jsonl")
    assert spectra.keys() == {f"{task}/{method}/seed1" for task in ("mrpc", "cola") for method in glue_analysis.TUNED}
    assert set(spectra["mrpc/full/seed1"]["targets"]) == {"q", "k", "v", "o", "fc", "proj"}
    assert set(spectra["mrpc/LoRA/seed1"]["targets"]) == {"q", "v"} and "spectra: 59 not analysed" in said
    forgotten = read_lines(out / "forgetting.jsonl")
    assert forgotten.keys() == {f"{one}/{method}/seed1/{other}" for one, other in (("mrpc", "cola"), ("cola", "mrpc"))
                                for method in ("LoRA", "full")}
    assert forgotten["cola/full/seed1/mrpc"]["floor"] == 0.5 and forgotten["mrpc/full/seed1/cola"]["floor"] == 0
    report.collect(out, tmp_path / "results")
    shutil.rmtree(out)
    command("runs")
    assert "spectra of" not in capsys.readouterr().out and read_lines(out / "spectra.jsonl") == spectra
    assert read_lines(out / "forgetting.jsonl") == forgotten


def test_the_questions_are_run_and_answered(world, tmp_path, monkeypatch):
    command, calls, out = world
    drawn, draw = {}, plots.lines_over
    monkeypatch.setattr(plots, "lines_over", lambda settings, path, *more, **named: draw(
        drawn.setdefault(path.stem, settings), path, *more, **named))
    command("search")
    command("runs")
    calls.clear()
    assert command("data", module=glue_questions) == 0
    assert len(calls) == 3 * (3 * 6 - 2)                                     # full and r = 8 on 10,000 rows: the comparison's
    for part in ("rates", "targets", "bases"):
        assert command(part, module=glue_questions) == 0
    results = tmp_path / "results"
    report.main(["--runs", str(out), "--results", str(results)])
    page = (results / "glue-small/README.md").read_text()
    pictures = {path.stem for path in (results / "glue-small").glob("*.png")}
    assert pictures == {"rates", "targets", "data", "bases", "methods", "curves"}
    ratio = next(line for line in page.splitlines() if line.startswith("| roberta-cola-240-steps")).split(" | ")
    assert ratio[1] == "3.1e-06" and len(ratio) == 12
    assert set(ratio[2:]) <= {"1000.0", "1000.0 |"}                          # the head, nine of LoRA; the peaks are made up
    assert [setting["levels"] for setting in drawn["rates"]] == [pytest.approx(
        {"10 times": 10, "15 times": 15, "head alone": 1000}, rel=0.05)] * 4
    assert [(setting["title"], setting["ticks"], setting["levels"]) for setting in drawn["targets"]] == [
        (task, ["q v", "attention", "MLP", "all six"], {"full, mean": pytest.approx(93)}) for task in glue_small.TASKS]
    assert [list(setting["ticks"]) for setting in drawn["bases"]] == [
        ["whole", "upper three\nlayers anew"], ["whole", "upper three\nlayers anew", "all layers\nanew", "everything\nanew"]]
    assert "| r = 64 | 92.0 ± 1.0 (3) | 92.0 ± 1.0 (3) | 92.0 ± 1.0 (3) |" in page and "| r = 8 | 92.0" in page
    flat = " ".join(page.split())
    assert "scaled by 8 / r" in flat and "Every seed has the same rows, the first of the file" in flat
    assert f"| roberta-mrpc, full |{' 92.0 ± 1.0 (3) |' * 2}  |  |" in page and "| LoRA, MLP | 3 (0.30%) | 0.003 |" in page
    assert f"| roberta-sst2, LoRA, r = 64 |{' 92.0 ± 1.0 (3) |' * 4}" in page and "drawn once, with one seed" in flat


def test_on_cola_each_of_loras_arms_gets_the_rates_of_all(world, tmp_path, monkeypatch):
    command, calls, out = world
    monkeypatch.setitem(PEAKS, "six", 1e-3)
    command("search")
    command("runs")
    with pytest.raises(ValueError, match="for LoRA, attention; LoRA, MLP: run `python -m experiments.glue_questions targets"):
        command("cola", module=glue_questions)
    command("targets", module=glue_questions)
    calls.clear()
    assert command("cola", module=glue_questions) == 0
    asked = [train.parse_arguments(call) for call in calls]                  # the other rate of each; its own is there
    assert sorted((" ".join(run.targets), run.lr, run.seed[0], run.task) for run in asked) == sorted(
        (targets, rate, seed, "cola") for seed in (1, 2, 3) for targets, rate in
        (("q v", 1e-3), ("q k v o", 1e-3), ("fc proj", 1e-3), ("q k v o fc proj", 3e-3)))
    report.main(["--runs", str(out), "--results", str(tmp_path / "results")])
    page = (tmp_path / "results/glue-small/README.md").read_text()
    low, high = "86.2, 87.2, 88.2: 87.2 ± 1.0", "91.0, 92.0, 93.0: 92.0 ± 1.0"
    assert f"| LoRA, MLP | {low} | {high} |" in page and f"| LoRA, all six | {high} | {low} |" in page


@pytest.mark.parametrize("failing", ["search", "runs", "report", "none"])
def test_the_report_is_written_although_a_run_failed(failing):
    done = []
    parts = {name: lambda options, name=name: done.append(name) or int(name == failing)
             for name in ("search", "runs", "report")}
    assert run_all_parts(parts, None) == int(failing in ("search", "runs")) and done == [*parts]


def test_the_report_is_written_although_no_search_has_ended():
    done = []

    def runs(options):
        raise ValueError("no search of a learning rate has ended here")
    with pytest.raises(ValueError, match="has ended"):
        run_all_parts({"search": lambda options: 0, "runs": runs, "report": done.append}, None)
    assert len(done) == 1
