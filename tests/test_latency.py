"""The comparison of forward passes: what is timed is what the names say, and the table says what was found."""
import json

import torch

from experiments import latency
from lora import lora_layers
from model import GPT2Config, Padded


def small(monkeypatch):
    monkeypatch.setitem(latency.SIZES, "GPT-2 S", GPT2Config(vocab_size=1100, n_positions=600, n_embd=32, n_layer=2, n_head=4))


def test_merged_and_apart_are_the_same_function_in_different_forms(monkeypatch):
    small(monkeypatch)
    models = {name: latency.make_model(name, "GPT-2 S") for name in latency.METHODS}
    x = torch.randint(1000, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = {name: model.hidden_states(x, Padded(x, causal=True)) for name, model in models.items()}
    assert torch.equal(out["base"], out["base again"])
    torch.testing.assert_close(out["LoRA, merged"], out["LoRA, apart"], atol=1e-5, rtol=1e-5)
    assert (out["LoRA, merged"] - out["base"]).abs().max() > 1e-2            # B is not zero
    assert all(layer.merged for layer in lora_layers(models["LoRA, merged"]).values())
    assert not any(layer.merged for layer in lora_layers(models["LoRA, apart"]).values())
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts["adapter-h"] > counts["adapter-l"] > counts["base"]


def test_the_command_writes_its_figures_and_the_noise_beside_them(monkeypatch, tmp_path, capsys):
    small(monkeypatch)
    monkeypatch.setattr(latency, "CASES", ((1, 5), (3, 4)))
    assert latency.main(["--rounds", "3", "--out", str(tmp_path / "latency.json")]) == 0
    found = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert [(case["batch"], case["tokens"]) for case in found["cases"]] == [(1, 5), (3, 4)]
    assert all(case[name] > 0 for case in found["cases"] for name in latency.METHODS)
    assert found["noise"] == max(abs(case["base again"] / case["base"] - 1) for case in found["cases"])
    table = capsys.readouterr().out
    assert "| 1 x 5 |" in table and table.count(" ms (") == 2 * len(latency.METHODS) and "(+0.0%)" in table


def test_the_table_shows_differences_to_the_base():
    case = dict.fromkeys(latency.METHODS, 0.010) | {"LoRA, apart": 0.0125, "batch": 4, "tokens": 128}
    row = latency.latency_table({"cases": [case]})[-1]
    assert "| 4 x 128 | 10.0 ms (+0.0%) |" in row and "12.5 ms (+25.0%)" in row
