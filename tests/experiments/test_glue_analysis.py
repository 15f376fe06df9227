"""experiments/glue_analysis.py and the bases of glue_questions.py: what is computed from weights, and what the page says of it.
The weights are random or those of toy/, the lines made up."""
import argparse
import math

import pytest
import torch

import train
from data import GLUE_TASKS
from experiments import glue_analysis, glue_answers, glue_questions, plots
from experiments.kept_runs import ANALYSES, keep_lines, read_lines
from experiments.search import make_plan, make_row
from experiments.sweep import write_plans
from model import load_pretrained

# ---------------------------------------------------------------- what the weights say

def test_spectra_compare_the_same_matrices_of_all_seeds_with_a_random_change(tmp_path, monkeypatch):
    def line(held, intruders):
        return {"held": [held] * 9, "random_held": [0.1] * 9, "size": 0.02, "intruders": intruders, "random_intruders": 0.5}
    kept = {f"{task}/{method}/seed{seed}": {"targets": {target: line(share + more + 0.01 * seed, seed) for target in targets}}
            for task, more in (("mrpc", 0.01), ("rte", -0.01)) for seed in (1, 2, 3)
            for method, share, targets in (("LoRA", 0.9, "qv"), ("full", 0.3, ("q", "k", "v", "o", "fc", "proj")))}
    keep_lines({place: {"place": place} | of for place, of in kept.items()}, tmp_path / "spectra.jsonl")
    drawn = []
    monkeypatch.setattr(plots, "lines_over", lambda settings, path, looks: drawn.append((settings, looks)))
    page = "\n".join(glue_answers.spectra_answer(tmp_path))
    for row in ("| q, LoRA | 92.0 ± 1.4 | 10.0 ± 0.0 | 2.0 ± 0.0 | 2.0 ± 0.0 | 0.5 ± 0.0 |", "| q, full | 32.0 ± 1.4 | 10.0",
                "| v, LoRA | 92.0", "| k, full |"):
        assert row in page, row
    flat = " ".join(page.split())
    assert "| k, LoRA" not in page and "decoupled weight decay" in flat and "the seeds (3 to 3), ± over 2 tasks" in flat
    (((mrpc, _, last), looks),) = drawn
    assert mrpc["lines"].keys() == {"LoRA, q", "LoRA, v", "full, q", "full, v", "a random change"} == looks.keys()
    assert mrpc["lines"]["full, v"][3] == pytest.approx([32, 33, 34]) and mrpc["lines"]["a random change"][3] == [10]
    assert last["lines"]["LoRA, v"] == [[1, 2, 3]] * 2 and last["ticks"] == ["mrpc", "rte"]
    colours = [{looks[f"{method}, {target}"][0] for target in "qv"} for method in ("LoRA", "full")]
    assert colours == [{plots.LORA}, {plots.METHODS["full"][0]}] and len({look[1:] for look in looks.values()}) == 5


def test_forgetting_leaves_out_what_had_nothing_to_lose(tmp_path, monkeypatch):
    """RTE's head stands at its floor; MRPC's loses 5 points and CoLA's 10, and what was learnt gained 20."""
    before, floor = {"mrpc": 0.75, "rte": 0.535, "cola": 0.2}, {"mrpc": 0.7, "rte": 0.53, "cola": 0.0}
    after = {"mrpc": 0.7, "rte": 0.6, "cola": 0.1}
    kept, plans = {}, []
    for learnt in before:
        for other in before.keys() - {learnt}:
            for seed in (1, 2):
                place = f"{learnt}/LoRA/seed{seed}/{other}"
                kept[place] = {"place": place, "floor": floor[other], "before": before[other], "after": after[other]}
    keep_lines(kept, tmp_path / "forgetting.jsonl")
    compared = {task: {method: [{"task": task, "seed": seed, "chosen_by": "the last epoch", "epochs": [],
                                 "scores": {GLUE_TASKS[task].metrics[0]: before[task] + more}} for seed in (1, 2)]
                       for method, more in (("LoRA", 0.2), ("frozen base, head", 0.0))} for task in before}
    monkeypatch.setattr(glue_answers, "runs_by_task", lambda *of: compared)
    page = "\n".join(glue_answers.forgetting_answer(plans, {}, tmp_path))
    assert "left out of this mean: rte." in " ".join(page.split()) and (tmp_path / "forgetting.png").exists()
    for row in ("|  | mrpc | rte | cola |", "| floor | 70.0 | 53.0 | 0.0 |",
                "| before | 75.0 ± 0.0 | 53.5 ± 0.0 | 20.0 ± 0.0 |",
                "| LoRA: gain on the task it learnt | 20.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 0.0 |",
                "| LoRA: change of the others | -10.0 | -7.5 ± 3.5 | -5.0 |"):
        assert row in page, row


# ---------------------------------------------------------------- bases and weights

def test_a_base_is_drawn_anew_from_a_layer_on(repository, tmp_path):
    """toy/roberta has 4 layers: below its upper three nothing changes, and all of it loads."""
    models = {"": load_pretrained(repository / "toy" / "roberta")}
    for what in glue_questions.BASES:
        glue_questions.redraw(str(repository / "toy" / "roberta"), what, tmp_path / what)
        models[what] = load_pretrained(tmp_path / what)
    changed = {what: {name.rpartition("layer.")[2].partition(".")[0] if "layer." in name else name.split(".")[1]
                      for (name, one), other in zip(models[""].named_parameters(), model.parameters(), strict=True)
                      if not name.startswith("classifier") and not torch.equal(one, other)} for what, model in models.items()}
    assert changed == {"": set(), "upper three layers anew": {*"123"}, "all layers anew": set("0123"),
                       "everything anew": {*"0123", "embeddings"}}
    layer = models["all layers anew"].roberta.encoder.layer[0]
    assert abs(layer.intermediate.dense.weight.std().item() - 0.02) < 1e-3
    assert layer.output.LayerNorm.weight.eq(1).all() and layer.output.dense.bias.eq(0).all()


def test_what_rank_holds_of_a_change_and_what_intrudes():
    """A change of rank 2 with singular values 3 and 1: rank 1 holds 9 of 10. Large new directions intrude, small ones not."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for n in (40, 24))
    W = U[:, :24] @ torch.diag(torch.linspace(20, 10, 24)) @ V.T
    change = U[:, 30:32] @ torch.diag(torch.tensor([3.0, 1.0])) @ V[:, :2].T
    small, large = glue_analysis.spectrum(W, W + change), glue_analysis.spectrum(W, W + 40 * change)
    assert small["held"][:3] == pytest.approx([0.9, 1.0, 1.0]) and large["held"] == pytest.approx(small["held"])
    assert small["size"] == pytest.approx(10 ** 0.5 / torch.linalg.norm(W).item())
    assert (small["intruders"], large["intruders"]) == (0, 2)
    assert large["random_held"] == pytest.approx(small["random_held"]) and small["random_intruders"] == 0
    assert small["random_held"][0] < 0.3 and small["random_held"][5] == pytest.approx(1)           # r = 1; r = 32, all of 24


def test_an_encoder_moves_under_a_head_that_stays(repository):
    first, second = (load_pretrained(repository / "toy" / "roberta", seed=seed) for seed in (0, 1))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    head = {name: parameter.clone() for name, parameter in second.named_parameters() if name.startswith("classifier")}
    glue_analysis.put_encoder(first, second)
    for (name, one), other in zip(second.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(one, head.get(name, other)), name
    assert not torch.equal(head["classifier.dense.weight"], first.classifier.dense.weight)


# ---------------------------------------------------------------- of finished runs

@pytest.fixture(scope="module")
def finished_runs(repository, toy_data, tmp_path_factory):
    """Two steps of LoRA and full on one toy task and of the head on another, and their plans."""
    out_dir = tmp_path_factory.mktemp("runs")
    wanted = {"mrpc": {"LoRA": "--method lora --rank 3 --alpha 7 --targets q v", "full": "--method full"},
              "mnli": {"frozen base, head": "--method head"}}
    for task, methods in wanted.items():
        rows = [make_row(method, f"--model {repository / 'toy' / 'roberta'} --task {task} --data-dir {toy_data} --max-steps 2 "
                         f"--limit-eval 40 --lr 1e-2 {options}") for method, options in methods.items()]
        write_plans([make_plan("glue-small", f"toy-{task}", [1], rows)], out_dir)
        for row in rows:
            train.main([*row["command"].split(), "--seed", "1", "--out-dir", str(out_dir / row["folder"])])
    return out_dir


def test_what_finished_runs_say_is_kept_by_several_processes(finished_runs, capsys):
    late = argparse.Namespace(out_dir=finished_runs, jobs=2, until=0.0)
    assert glue_analysis.spectra(late) == glue_analysis.forgetting(late) == 0 and "of" not in capsys.readouterr().out
    in_time = argparse.Namespace(out_dir=finished_runs, jobs=2, until=math.inf)
    assert glue_analysis.spectra(in_time) == glue_analysis.forgetting(in_time) == 0
    spectra, forgotten = (read_lines(finished_runs / f"{name}.jsonl") for name in ANALYSES)
    assert {place: set(line["targets"]) for place, line in spectra.items()} == {
        "mrpc/LoRA/seed1": {"q", "v"}, "mrpc/full/seed1": {"q", "k", "v", "o", "fc", "proj"}}
    lora = spectra["mrpc/LoRA/seed1"]["targets"]["q"]
    assert lora["held"][2] > 0.9999 > lora["held"][0] and lora["size"] > 0                 # rank 3: r = 4 holds all
    assert forgotten.keys() == {"mrpc/LoRA/seed1/mnli", "mrpc/full/seed1/mnli"}
    for line in forgotten.values():
        assert 0 < line["floor"] < 1 and 0 <= line["after"] <= 1
    printed = capsys.readouterr().out
    assert printed.count("spectra of mrpc/") == printed.count("forgetting of mrpc/") == 2
    assert glue_analysis.spectra(in_time) == 0 and "spectra of" not in capsys.readouterr().out     # nothing is done twice
