"""experiments/report.py, kept_runs.py, claims.py, figures.py: the report is what is kept and nothing else, byte by byte."""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import experiments
from experiments import bench_growth, bench_mixed, claims, figures, kept_runs, plots, published, report, sweep
from experiments.counts import SIZES, formula_counts
from files.text import read_json, write_json
from files.tokenizer import load_tokenizer
from model import GPT2Config, RobertaConfig
from training.sources import make_source
from training.tasks import make_task


def fake_run(folder, task, label, command, seed, model="toy/gpt2", data="made up", total=1000):
    """The files of a run with numbers that follow from its label and seed."""
    number = sum(map(ord, label)) % 7
    options = sweep.options_of(command)
    score = (0.30 if label.startswith("frozen") else 0.60) + 0.01 * number + 0.004 * seed
    scores = {"accuracy": score, "f1": score, "loss": 1.0} if task == "mrpc" else {
        "loss": 1.5 - score, "BLEU": score, "NIST": 5.0, "METEOR": 0.4, "ROUGE_L": 0.5, "CIDEr": 1.5,
        "reference_text": "pretokenised"}
    trained = {"full": total}.get(label, 8 * int(options.get("rank", 1)))
    metrics = {"task": task, "model": model, "method": options.get("method"), "seed": seed, "scores": scores,
               "base_fingerprint": model, "data_fingerprints": {"train": "same", "evaluated": data}}
    if "eval-only" not in options:
        metrics |= {
            "trainable_parameters": trained, "total_parameters": total, "adapter_bytes": 4 * trained,
            "peak_memory_bytes": 5 * 2**20, "seconds": 3.0 + seed, "tokens_per_second": 1000.0, "epochs": [
                {"epoch": epoch} | scores for epoch in range(3)], "memory_parts_bytes": {
                "weights": 4 * total, "gradients": 4 * trained, "optimizer": 8 * trained, "activations": 3000}}
    folder.mkdir(parents=True)
    write_json(metrics, folder / "metrics.json")
    if "eval-only" not in options:
        write_json({"batch_size": 8} | ({"beam_size": 4, "length_penalty": 0.9} if task == "e2e" else {}),
                   folder / "config.json")
        lines = [json.dumps({"step": step, "loss": 2.0 - 0.01 * step + 0.1 * seed}) for step in (10, 20, 30)]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def fake_experiments(runs_dir, plans, **options):
    for name, setting in plans:
        plan = sweep.make_plan(name, setting, sweep.SETTINGS[setting], [0, 1], "")
        (runs_dir / "plans").mkdir(parents=True, exist_ok=True)
        write_json(plan | {"made": "Made up."}, runs_dir / "plans" / f"{name}_{setting}.json")
        for row in plan["rows"]:
            for seed in [0] if kept_runs.is_single(row) else plan["seeds"]:
                folder = runs_dir / row["folder"] / "e2e" / ("eval" if kept_runs.is_single(row) else f"seed{seed}")
                if not folder.exists():
                    fake_run(folder, setting.partition("-")[2], row["label"], row["command"], seed, **options)


PLANS = (("methods", "toy-e2e"), ("rank", "toy-e2e"), ("targets", "toy-e2e"))


SOURCES = ("plans.jsonl", "runs.jsonl", "subspaces.jsonl", "latency.json", "costs.json", "bench", "faults")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A results folder and the bytes of every page and plot in it."""
    folder = tmp_path_factory.mktemp("report")
    fake_experiments(folder / "runs", PLANS)
    assert report.main(["--runs", str(folder / "runs"), "--results", str(folder / "results")]) == 0
    return folder / "results", written(folder / "results")


def written(results):
    return {path.name: path.read_bytes() for path in results.iterdir() if path.is_file() and path.name not in SOURCES}


def test_rebuilt_from_what_is_kept_it_is_the_same_bytes(kept):
    results, before = kept
    for name in before:
        (results / name).unlink()
    assert report.main(["--kept", "--results", str(results)]) == 0
    assert written(results) == before
    assert before.keys() == {"README.md", "ablations.md", "methods.png", "curves.png", "rank.png", "targets.png"}
    assert all(b"Software" not in data[:400] and b"tIME" not in data for name, data in before.items() if name.endswith(".png"))


def test_the_repositorys_own_report_is_rebuilt_from_what_it_keeps(repository, tmp_path):
    for name in SOURCES:
        copy = shutil.copytree if (repository / "results" / name).is_dir() else shutil.copyfile
        copy(repository / "results" / name, tmp_path / name)
    for path in (repository / "results" / "glue-small").glob("*.jsonl"):
        (tmp_path / "glue-small").mkdir(exist_ok=True)
        shutil.copyfile(path, tmp_path / "glue-small" / path.name)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert report.main(["--kept", "--results", str(tmp_path)]) == 0
    for page in ("README.md", "ablations.md"):
        assert (tmp_path / page).read_bytes() == (repository / "results" / page).read_bytes()
    pictures = [{path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
                for folder in (tmp_path, repository / "results")]
    assert pictures[0] == pictures[1]


def test_results_stay_few_and_can_be_read_in_one_go(repository):
    files = [path for path in (repository / "results").rglob("*") if path.is_file()]
    assert len(files) <= 70 and sum(path.suffix in (".png", ".svg") for path in files) <= 26           # a figure a question
    for page in (repository / "results").rglob("*.md"):
        assert len(page.read_text("utf-8").splitlines()) <= 240, page
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_a_line_is_what_the_run_left(kept):
    """Its files as they are; of its log the losses, a list per column."""
    results, _ = kept
    folder = results.parent / "runs"
    path = next(path for path in sorted(folder.rglob("seed1/metrics.json")) if "rank64" in str(path))
    line = kept_runs.read_lines(results / "runs.jsonl")[f"{path.parts[-4]}/seed1"]
    assert line["metrics"] == json.loads(path.read_text()) and line["config"] == {
        "batch_size": 8, "beam_size": 4, "length_penalty": 0.9}
    assert line["log"] == {"step": [10, 20, 30], "loss": [2.0, 1.9, 1.8]}
    lines = (results / "runs.jsonl").read_text().splitlines()
    places = [json.loads(line)["place"] for line in lines]
    assert places == sorted(places) and len(set(places)) == len(places) == 7 * 2 + 1 + 5 * 2 + 7 * 2


def test_kept_runs_go_back_into_folders_which_others_go_on_from(kept, tmp_path):
    """And what is there is left as it is."""
    results, _ = kept
    lines, plans = (kept_runs.read_lines(results / f"{name}.jsonl") for name in ("runs", "plans"))
    there = next(place for place in lines if place.endswith("seed1"))
    (tmp_path / there).mkdir(parents=True)
    write_json({"seconds": 77.0}, tmp_path / there / "metrics.json")
    kept_runs.to_folders(lines, tmp_path)
    found = kept_runs.from_folders(list(plans.values()), tmp_path)
    assert found.pop(there)["metrics"] == {"seconds": 77.0}
    assert found == {place: line for place, line in lines.items() if place != there}


def test_new_runs_replace_their_own_lines_and_no_other(kept, tmp_path):
    results, runs = tmp_path / "results", tmp_path / "runs"
    shutil.copytree(kept[0], results)
    before = (results / "runs.jsonl").read_text().splitlines()
    fake_experiments(runs, PLANS)
    path = next(path for path in sorted(runs.rglob("seed1/metrics.json")) if "rank64" in str(path))
    write_json(json.loads(path.read_text()) | {"seconds": 77.0}, path)
    report.collect(runs, results)
    after = (results / "runs.jsonl").read_text().splitlines()
    changed = [index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert len(changed) == 1 and "rank64" in before[changed[0]] and '"seconds": 77.0' in after[changed[0]]
    assert (results / "plans.jsonl").read_bytes() == (kept[0] / "plans.jsonl").read_bytes()
    report.collect(tmp_path / "nothing", results)
    assert (results / "runs.jsonl").read_text().splitlines() == after


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    for text in ("{}", "[1]", '{"place": "a"'):
        path.write_text(f'{{"place": "x"}}\n{text}\n')
        with pytest.raises(ValueError, match=r"runs.jsonl, line 2: expected a JSON object with its place, found"):
            kept_runs.read_lines(path)


def test_without_an_experiment_there_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="no experiment is kept; run one first: make baselines"):
        report.main(["--kept", "--results", str(tmp_path)])


@contextmanager
def changed_line(results, change):
    """LoRA's run of seed 1 with another line, in this block alone."""
    path = results / "runs.jsonl"
    original = path.read_bytes()
    lines = kept_runs.read_lines(path)
    line = next(line for place, line in lines.items()
                if place.endswith("lora_rank4_alpha32_targetsq-v_dropout0.1_lr5e-3/seed1"))
    change(line)
    kept_runs.keep_lines(lines, path)
    yield
    path.write_bytes(original)


def test_every_number_of_a_run_reaches_the_report(kept, monkeypatch):
    """A changed score, count, size or time changes the page; a changed score its plots, a changed loss the curves."""
    results, before = kept

    def other_score_and_loss(line):
        line["metrics"]["scores"]["BLEU"] = 0.9
        line["log"]["loss"][1] = 1.1

    with changed_line(results, other_score_and_loss):
        report.build(results)
    after = written(results)
    assert {name for name in before if after[name] != before[name]} == {
        "README.md", "ablations.md", "rank.png", "targets.png", "methods.png", "curves.png"}
    with changed_line(results, lambda line: line["log"]["loss"].reverse()):
        report.build(results)
    after = written(results)
    assert {name for name in before if after[name] != before[name]} == {"curves.png"}

    monkeypatch.setattr(figures, "draw_methods", lambda *rest: [])           # the page alone, it is quicker
    monkeypatch.setattr(figures, "draw_ablation", lambda *rest: [])
    report.build(results)
    page = (results / "README.md").read_text()
    metrics = kept_runs.read_lines(results / "runs.jsonl").popitem()[1]["metrics"]
    for change in ({"scores": metrics["scores"] | {"CIDEr": 1.9}}, {"seconds": 40.0}, {"tokens_per_second": 10.0},
                   {"adapter_bytes": 9999}, {"peak_memory_bytes": 9 * 2**20}, {"trainable_parameters": 31},
                   {"memory_parts_bytes": metrics["memory_parts_bytes"] | {"optimizer": 2**22}}):
        with changed_line(results, lambda line, change=change: line["metrics"].update(change)):
            report.build(results)
        assert (results / "README.md").read_text() != page, change
    monkeypatch.undo()
    report.build(results)
    assert written(results) == before


# ---------------------------------------------------------------- figures

def test_a_method_has_one_colour_and_no_two_share_one():
    colours = {name: colour for name, (colour, _) in plots.METHODS.items()}
    assert len(set(colours.values())) == len(colours)
    for label in ("LoRA", "LoRA, r = 16", "r = 64", "q v", "lr = 5e-3"):
        assert plots.look_of(label)[0] == colours["LoRA"], label
    for setting in sweep.SETTINGS:
        for label in sweep.method_rows(setting):
            name = label.partition(",")[0]
            assert plots.look_of(label)[0] == colours[name], label


def drawn_by(monkeypatch, draw) -> dict:
    """Name -> figure, of what `draw` would save."""
    drawn = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    draw()
    return drawn


def test_a_title_says_the_seeds_that_are_there_and_no_two_curves_look_alike(monkeypatch):
    """LoRA with three seeds, others with two, one row without a run; all at the frozen base's score, and drawn all the same."""
    def run(label, seed, score=0.7):
        return {"place": f"{label}/seed{seed}", "config": {"batch_size": 8}, "log": {"step": [1, 2], "loss": [1.0, 0.5]},
                "metrics": {"task": "mrpc", "model": "m", "seed": seed, "scores": {"accuracy": score}, "epochs": [],
                            "trainable_parameters": 5, "total_parameters": 9}}
    labels = ("LoRA", "LoRA, all six", "full", "frozen base, head", "prefix")
    plan = {"experiment": "glue-small", "setting": "m-mrpc", "seeds": [1, 2, 3, 4, 5], "rows": [
        {"label": label, "command": "", "folder": label} for label in labels]}
    kept = {line["place"]: line for label in labels[:4] for seed in (1, 2, 3)[:3 if label == "LoRA" else 2]
            for line in (run(label, seed),)}
    found = drawn_by(monkeypatch, lambda: figures.draw_methods([plan], kept, Path("x")))
    assert [axis.get_title() for figure in found.values() for axis in figure.axes] == ["m, mrpc, 2 to 3 seeds"] * 2
    looks = [(line.get_color(), line.get_linestyle()) for line in found["curves"].axes[0].get_lines()]
    assert len(set(looks)) == len(looks) == 4


def test_lines_over_draws_no_bar_at_a_single_value_and_leaves_fulls_colour_to_full(monkeypatch):
    setting = {"title": "t", "x": "x", "y": "y", "ticks": [1, 2], "log": 2, "log_y": True, "levels": {"ten": 10.0},
               "lines": {"scale 1": [[1.0], [2.0]], "scale 2": [[1.0, 2.0], [3.0, 5.0]], "scale 3": [[4.0], []]}}
    other = setting | {"lines": {"scale 1": [[100.0], [700.0]]}}
    (figure,) = drawn_by(monkeypatch, lambda: plots.lines_over([setting, other], Path("x"), one_y=True)).values()
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] > 700
    lines = {container.get_label(): container for container in first.containers}
    colours = {label: container[0].get_color() for label, container in lines.items()}
    assert len(set(colours.values())) == 3 and plots.METHODS["full"][0] not in colours.values()
    bars = {label: sum(len(segment) > 0 for bars in container[2] for segment in bars.get_segments())
            for label, container in lines.items()}
    assert bars == {"scale 1": 0, "scale 2": 2, "scale 3": 0}
    assert [list(line.get_ydata()) for line in first.get_lines() if line.get_label() == "ten"] == [[10.0, 10.0]]
    given = {"LoRA, v": (plots.LORA, "^", "--")}
    assert plots.looks_of(["LoRA, v", "full", "r = 1"], given)["LoRA, v"] == given["LoRA, v"]
    assert plots.looks_of(["LoRA, v", "full", "r = 1"], given)["r = 1"][0] not in (plots.LORA, plots.METHODS["full"][0])


def test_growth_is_drawn_on_logarithmic_axes_and_a_measurement_once(repository, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.update({path.name: figure}))
    bench = repository / "results" / "bench"
    bench_growth.plot(read_json(bench / "growth.json"), Path("growth"))
    bench_mixed.plot(read_json(bench / "mixed-grid.json"), Path("mixed"))
    for figure in drawn.values():
        assert all((axis.get_xscale(), axis.get_yscale()) == ("log", "log") for axis in figure.axes)
    labels = [label for label, *_ in plots.WAYS.values()]
    for axis in drawn["mixed"].axes:
        ours = next(line for line in axis.get_lines() if line.get_label() == plots.WAYS["mixed"][0])
        assert ours.get_color() == plots.LORA and len(set(ours.get_ydata())) == len(ours.get_ydata()) == 16
        assert sorted(line.get_label() for line in axis.get_lines()) == sorted(labels)


def test_no_published_number_is_drawn(kept, monkeypatch, tmp_path):
    """What reaches the plots is measured: with other published numbers the figures stay the same."""
    results, before = kept
    shutil.copytree(results, tmp_path / "copy")
    monkeypatch.setattr(published, "TABLE_18", {4: (0.1, 1.0)})
    monkeypatch.setattr(published, "TABLE_3", {label: (1.0,) for label in published.TABLE_3})
    report.build(tmp_path / "copy")
    assert {name: data for name, data in written(tmp_path / "copy").items() if name.endswith(".png")} == {
        name: data for name, data in before.items() if name.endswith(".png")}


# ---------------------------------------------------------------- pages

def test_runs_of_other_data_end_the_report(kept):
    results, _ = kept
    with changed_line(results, lambda line: line["metrics"].update(
            data_fingerprints={"train": "same", "evaluated": "half of it"})):
        with pytest.raises(ValueError, match="its test data is half of it, but made up"):
            report.build(results)


def test_the_page_says_what_was_run(kept):
    page = kept[1]["README.md"].decode() + kept[1]["ablations.md"].decode()
    values = [100 * (0.60 + 0.01 * (sum(map(ord, "LoRA")) % 7) + 0.004 * seed) for seed in (0, 1)]
    assert f"| LoRA | 32 (3.20%) | {statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} | 5.00 ± 0.00 |" in page
    assert "`python -m experiments.sweep rank --seeds 0 1 --task e2e`" in page and "Made up." in page
    assert "difference" not in page                                          # the base is toy/gpt2
    assert page.count("cannot be tested here") == 3                          # subspaces, latency, all six matrices
    assert "| full | 1,000 (100.00%) | 4 KiB |" in page
    plans = kept_runs.read_lines(kept[0] / "plans.jsonl")
    assert plans["rank_toy-e2e"]["rows"][-1]["command"].startswith("--model toy/gpt2 --task e2e")


def test_what_is_highest_and_level_with_it():
    runs = {label: [metrics | {"total_parameters": 9} for metrics in run_with(scores)] for label, scores in (
        ("low", [50, 51]), ("near", [69, 71]), ("best", [70, 72]))}
    assert report.highest("here", runs) == "Highest on here: best, 71.0 ± 1.4 (level: near)."
    assert report.highest("here", {label: found[:1] for label, found in runs.items()}) == ""


def test_the_command_of_a_model_of_the_users_names_it():
    plans = [{"experiment": "rank", "setting": f"gpt2-medium-{task}", "seeds": [0, 1], "rows": [
        {"command": f"--model w/gpt2-medium --task {task} --rank 1"}]} for task in ("e2e", "rte")]
    command = "python -m experiments.sweep rank --model w/gpt2-medium --seeds 0 1 --task e2e"
    assert report.commands_of(plans) == f"`{command}` (and rte)"


def test_only_the_papers_base_and_data_are_compared_with_it(tmp_path):
    """LoRA on the real base and test set: difference and spread by hand; on another base neither, and no number of theirs."""
    total = formula_counts(SIZES["GPT-2 M"], "full")["trainable"]
    for folder, options in (("real", {"model": "w/gpt2-medium", "data": published.REAL_DATA["e2e"], "total": total}),
                            ("small", {"model": "w/gpt2-medium", "data": published.REAL_DATA["e2e"], "total": 999}),
                            ("mini", {"model": "runs/mini/gpt2", "data": published.REAL_DATA["e2e"], "total": 999}),
                            ("other data", {"model": "w/gpt2-medium", "data": "made up", "total": total})):
        fake_experiments(tmp_path / folder, [("mini", "mini-e2e")], **options)
        plan = json.loads((tmp_path / folder / "plans" / "mini_mini-e2e.json").read_text())
        runs = kept_runs.runs_of(plan, kept_runs.from_folders([plan], tmp_path / folder))
        lines = report.beside_the_paper(runs)
        ours = statistics.mean(100 * metrics["scores"]["BLEU"] for metrics in runs["LoRA"])
        if folder == "real":
            (line,) = [line for line in lines if line.startswith("| LoRA |")]
            assert line == f"| LoRA | {ours:.1f} ± 0.3 | 70.4 ± 0.1 | {ours - 70.4:+.1f} | no |"
            assert "issue 165" in "\n".join(lines)
        else:
            assert lines == [], folder


def run_with(scores, trained=10, activations=50):
    return [{"task": "e2e", "scores": {"BLEU": score / 100}, "trainable_parameters": trained, "total_parameters": 1000,
             "memory_parts_bytes": {"weights": 4000, "gradients": 4 * trained, "optimizer": 8 * trained,
                                    "activations": activations}} for score in scores]


def test_a_claim_on_single_seeds_is_not_judged(tmp_path):
    plan = sweep.make_plan("rank", "toy-e2e", sweep.SETTINGS["toy-e2e"], [0], "")
    for row in plan["rows"]:
        fake_run(tmp_path / "runs" / row["folder"] / "seed0", "e2e", row["label"], row["command"], 0)
    lines = kept_runs.from_folders([plan], tmp_path / "runs")
    assert len(lines) == len(plan["rows"])
    table = claims.claims_table([plan], lines, tmp_path)
    assert sum("cannot be tested here" in line for line in table) == len(table) - 2
    kept_runs.keep_lines({"x/ranks": {"place": "x/ranks", "layer": 2, "phi": {"q": [[0.7, 0.9], [0.8, 0.6]],
                          "v": [[0.4, 0.5], [0.5, 0.3]]}, "random": [[0.01, 0.1], [0.02, 0.03]]}},
                         tmp_path / "subspaces.jsonl")
    table = "\n".join(claims.claims_table([plan], lines, tmp_path))
    assert ("| x | no verdict: one pair of runs | block 3: φ(1, 1) of q 0.70, φ(1, 1) of v 0.40; random 0.01; φ(2, 2) of q "
            "0.60, φ(2, 2) of v 0.30; random 0.03 |") in table


def test_the_real_data_have_these_fingerprints(shared):
    data = shared / "data"
    for task in ("e2e", "rte"):
        settings = SimpleNamespace(task=task, text="pretokenised", max_length=512, limit_train=1, limit_eval=None, beam_size=4)
        kind, config = ("gpt2", GPT2Config()) if task == "e2e" else ("roberta-base", RobertaConfig())
        made = make_task(settings, load_tokenizer(data / "hub" / kind), config, make_source(settings, Path(data)))
        assert made.fingerprints["evaluated"] == published.REAL_DATA[task], task


# ---------------------------------------------------------------- without the libraries

def test_an_experiment_whose_library_is_missing_says_so_in_a_line(repository, tmp_path, capsys):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')\n")
    done = subprocess.run([sys.executable, "-m", "experiments.report", "--kept"], cwd=repository, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr == (
        "error: the library matplotlib is missing, which this experiment needs: run make dev, or pip install -r "
        "requirements-dev.txt\n")
    for error in (ModuleNotFoundError("no", name="experiments.no_such"), KeyError("a bug")):
        experiments.say_what_is_missing(type(error), error, None)            # not a library: Python says it
        assert "run make dev" not in capsys.readouterr().err
