"""experiments/report.py, claims.py, plots.py: the report is what is kept and nothing else, byte by byte."""
import json
import shutil
import statistics
from pathlib import Path

import pytest

from baselines import SIZES, formula_counts
from experiments import claims, published, report, sweep, tables
from model import GPT2Config, RobertaConfig
from tasks import make_task
from tokenizer import load_tokenizer
from weight_files import write_json


def fake_run(folder, task, label, command, seed, model="toy/gpt2", data="made up", total=1000):
    """The files of a run with numbers that follow from its label and seed."""
    number = sum(map(ord, label)) % 7
    options = sweep.options_of(command)
    score = 0.60 + 0.01 * number + 0.004 * seed
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
        write_json({"beam_size": 4, "length_penalty": 0.9} if task == "e2e" else {}, folder / "config.json")
        lines = [json.dumps({"step": step, "loss": 2.0 - 0.01 * step + 0.1 * seed}) for step in (10, 20, 30)]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def fake_experiments(runs_dir, plans, **options):
    for name, setting in plans:
        plan = sweep.make_plan(name, setting, sweep.SETTINGS[setting], [0, 1], "")
        (runs_dir / "plans").mkdir(parents=True, exist_ok=True)
        write_json(plan | {"made": "Made up."}, runs_dir / "plans" / f"{name}_{setting}.json")
        for row in plan["rows"]:
            for seed in [0] if tables.is_single(row) else plan["seeds"]:
                folder = runs_dir / row["folder"] / "e2e" / ("eval" if tables.is_single(row) else f"seed{seed}")
                if not folder.exists():
                    fake_run(folder, setting.partition("-")[2], row["label"], row["command"], seed, **options)


PLANS = (("methods", "toy-e2e"), ("rank", "toy-e2e"), ("targets", "toy-e2e"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A results folder and the bytes of every page and plot in it."""
    folder = tmp_path_factory.mktemp("report")
    fake_experiments(folder / "runs", PLANS)
    assert report.main(["--runs", str(folder / "runs"), "--results", str(folder / "results")]) == 0
    return folder / "results", written(folder / "results")


def written(results):
    return {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()}


def test_rebuilt_from_what_is_kept_it_is_the_same_bytes(kept):
    results, before = kept
    for name in before:
        (results / name).unlink()
    assert report.main(["--kept", "--results", str(results)]) == 0
    assert written(results) == before
    assert {"README.md", "methods_toy-e2e.png", "methods_toy-e2e_curves.png", "rank_toy-e2e.png",
            "targets_toy-e2e.png"} <= before.keys()
    assert all(b"Software" not in data[:400] and b"tIME" not in data for name, data in before.items() if name.endswith(".png"))


def test_the_repositorys_own_report_is_rebuilt_from_what_it_keeps(repository, tmp_path):
    for name in ("plans", "runs", "subspace"):
        shutil.copytree(repository / "results" / name, tmp_path / name)
    shutil.copyfile(repository / "results" / "latency.json", tmp_path / "latency.json")
    assert report.main(["--kept", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_bytes() == (repository / "results" / "README.md").read_bytes()
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in (repository / "results").glob("*.png")}


def test_every_number_of_a_run_reaches_the_report(kept, monkeypatch):
    """A changed score, count, size or time changes the page; a changed score its plot, a changed loss the curves."""
    results, before = kept
    run = next(path.parent for path in results.rglob("seed1/metrics.json")
               if path.parts[-3].endswith("lora_rank4_alpha32_targetsq-v_dropout0.1_lr5e-3"))
    original, log = json.loads((run / "metrics.json").read_text()), (run / "log.jsonl").read_text()
    write_json(original | {"scores": original["scores"] | {"BLEU": 0.9}}, run / "metrics.json")
    (run / "log.jsonl").write_text(log.replace('"step": 20, "loss": 1.9', '"step": 20, "loss": 1.1'))
    report.build(results)
    after = written(results)
    assert {name for name in before if after[name] != before[name]} == {
        "README.md", "rank_toy-e2e.png", "targets_toy-e2e.png", "methods_toy-e2e.png", "methods_toy-e2e_curves.png"}
    write_json(original, run / "metrics.json")
    (run / "log.jsonl").write_text(log)

    monkeypatch.setattr(report, "draw_plan", lambda *rest: [])               # the page alone, it is quicker
    report.build(results)
    page = (results / "README.md").read_text()
    for change in ({"scores": original["scores"] | {"CIDEr": 1.9}}, {"seconds": 40.0}, {"tokens_per_second": 10.0},
                   {"adapter_bytes": 9999}, {"peak_memory_bytes": 9 * 2**20}, {"trainable_parameters": 31},
                   {"memory_parts_bytes": original["memory_parts_bytes"] | {"optimizer": 2**22}}):
        write_json(original | change, run / "metrics.json")
        report.build(results)
        assert (results / "README.md").read_text() != page, change
    write_json(original, run / "metrics.json")
    monkeypatch.undo()
    report.build(results)
    assert written(results) == before


def test_runs_of_other_data_end_the_report(kept):
    results, _ = kept
    path = next(path for path in sorted(results.rglob("seed1/metrics.json")) if "rank64" in str(path))
    original = path.read_text()
    write_json(json.loads(original) | {"data_fingerprints": {"train": "same", "evaluated": "half of it"}}, path)
    with pytest.raises(ValueError, match="its test data is half of it, but made up"):
        report.build(results)
    path.write_text(original)


def test_the_page_says_what_was_run(kept):
    page = kept[1]["README.md"].decode()
    values = [100 * (0.60 + 0.01 * (sum(map(ord, "LoRA")) % 7) + 0.004 * seed) for seed in (0, 1)]
    mean, deviation, median = (f"{of(values):.1f}" for of in (statistics.mean, statistics.stdev, statistics.median))
    assert f"| LoRA | 32 (3.20%) | {mean} ± {deviation} | {median} | 5.00 ± 0.00 |" in page
    assert "    r = 64: python train.py --model toy/gpt2 --task e2e" in page and "--seed 0 1" in page
    assert "The paper's numbers do not stand here: the base is toy/gpt2" in page
    assert page.count("cannot be tested here") == 2                          # subspaces and latency were not made
    assert "| full | 1,000 (100.00%) | 4 KiB |" in page


def test_only_the_papers_base_and_data_are_compared_with_it(tmp_path):
    """LoRA on the real base and test set: difference and spread by hand; on another base neither."""
    total = formula_counts(SIZES["GPT-2 M"], "full")["trainable"]
    for folder, options, expected in (
            ("real", {"model": "w/gpt2-medium", "data": published.REAL_DATA["e2e"], "total": total}, "| {:+.1f} | no |"),
            ("small", {"model": "w/gpt2-medium", "data": published.REAL_DATA["e2e"], "total": 999}, "| not compared | – |"),
            ("mini", {"model": "runs/mini/gpt2", "data": published.REAL_DATA["e2e"], "total": 999}, "| not compared | – |")):
        fake_experiments(tmp_path / folder, [("mini", "mini-e2e")], **options)
        plan = json.loads((tmp_path / folder / "plans" / "mini_mini-e2e.json").read_text())
        runs = tables.runs_of(plan, tmp_path / folder)
        lines = report.beside_the_paper(runs)
        ours = statistics.mean(100 * metrics["scores"]["BLEU"] for metrics in runs["LoRA"])
        (line,) = [line for line in lines if line.startswith("| LoRA |")]
        assert line.startswith(f"| LoRA | {ours:.1f} ± 0.3 | 70.4 ± 0.1 ") and line.endswith(expected.format(ours - 70.4))
        assert "issue 165" in "\n".join(lines)


def run_with(scores, trained=10, activations=50):
    return [{"task": "e2e", "scores": {"BLEU": score / 100}, "trainable_parameters": trained, "total_parameters": 1000,
             "memory_parts_bytes": {"weights": 4000, "gradients": 4 * trained, "optimizer": 8 * trained,
                                    "activations": activations}} for score in scores]


def test_claims_by_hand():
    """Equal within the sum of the standard deviations: 70 ± 1 against 71.5 ± 1 is not below, against 73 ± 0.5 it is."""
    lora, near, above = run_with([69, 70, 71]), run_with([70.5, 71.5, 72.5], 1000), run_with([72.5, 73, 73.5], 1000)
    assert claims.against_full({"LoRA": lora, "full": near})[0] == "seen"
    assert claims.against_full({"LoRA": lora, "full": above}) == ("not seen", "LoRA 70.0 ± 1.0, full 73.0 ± 0.5")
    assert claims.few_parameters({"LoRA": lora, "full": near})[0] == "seen"
    assert claims.few_parameters({"LoRA": run_with([70, 71], 11), "full": near})[0] == "not seen"
    seen, figure = claims.less_memory({"LoRA": lora, "full": near})
    assert seen == "seen" and "26% of full's" in figure and "with activations 26%" in figure         # 4120 of 16000
    ranks = {"r = 1": run_with([60, 61]), "r = 4": lora, "r = 64": near}
    assert claims.saturates(ranks)[0] == "seen" and claims.saturates(ranks | {"r = 64": above})[0] == "not seen"
    targets = {"q": run_with([50, 51]), "q v": lora, "fc proj": above}
    assert claims.q_and_v(targets)[0] == "seen" and claims.q_and_v(targets | {"o": above})[0] == "not seen"


def test_a_claim_on_single_seeds_is_not_judged(tmp_path):
    plan = sweep.make_plan("rank", "toy-e2e", sweep.SETTINGS["toy-e2e"], [0], "")
    for row in plan["rows"]:
        fake_run(tmp_path / "runs" / row["folder"] / "seed0", "e2e", row["label"], row["command"], 0)
    table = claims.claims_table([plan], tmp_path)
    assert sum("cannot be tested here" in line for line in table) == len(table) - 2
    (tmp_path / "subspace").mkdir()
    write_json({"phi": {"q": [[0.7]], "v": [[0.4]]}, "random": [[0.01]]}, tmp_path / "subspace" / "x_ranks.json")
    table = "\n".join(claims.claims_table([plan], tmp_path))
    assert "| not seen | φ(1, 1) of q 0.70, φ(1, 1) of v 0.40; random 0.01 |" in table


def test_the_real_data_have_these_fingerprints(shared):
    data = shared / "data"
    for task in ("e2e", "rte"):
        settings = {"task": task, "text": "pretokenised", "max_length": 512, "limit_train": 1, "limit_eval": None}
        kind, config = ("gpt2", GPT2Config()) if task == "e2e" else ("roberta-base", RobertaConfig())
        made = make_task(settings, load_tokenizer(data / "hub" / kind), config, Path(data))
        assert made.fingerprints["evaluated"] == published.REAL_DATA[task], task
