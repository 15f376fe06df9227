"""precision.py: what bf16 holds and what it does not, for every method; and training in it on the toy models."""
import json

import pytest
import torch

import methods as baselines
import model as M
import train
from training import precision

FROZEN_BASE = ("lora", "adapter-h", "adapter-l", "prefix", "head")


def with_method(repository, kind, method, **options):
    model = M.load_pretrained(repository / "toy" / kind, num_labels=3 if kind == "roberta" else None)
    baselines.apply_method(model, method, rank=3, alpha=7, **options)
    return model


@pytest.mark.parametrize("method", FROZEN_BASE)
def test_the_frozen_base_turns_bf16_and_the_rest_stays_fp32(repository, method):
    model = with_method(repository, "roberta", method)
    precision.hold_frozen_in(model, "bf16")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 11, 12, 13, 2]])
    logits = model.train()(ids)
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", FROZEN_BASE[:-1])
def test_bf16_is_near_fp32(repository, method):
    ids = torch.randint(5, 400, (3, 12))
    logits, states = [], {}
    for dtype in ("fp32", "bf16"):
        model = with_method(repository, "gpt2", method)
        if states:
            model.load_state_dict(states)
        else:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".lora_B" in name or ".up." in name:
                        parameter.normal_(0, 0.05)
            states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        precision.hold_frozen_in(model, dtype)
        with torch.inference_mode():
            logits.append(model(ids).float())
    spread, difference = logits[0].std(dim=-1).mean(), (logits[0] - logits[1]).abs().mean()
    assert 1e-4 < difference / spread < 0.03                                 # one rounding to bf16 is up to 0.004


@pytest.mark.parametrize("method, options", [("full", {}), ("last-layers", {}), ("bitfit", {}), ("lora", {"bias": "all"})])
def test_bf16_is_refused_where_the_base_trains_and_auto_takes_fp32(repository, method, options):
    model = with_method(repository, "gpt2", method, **options)
    with pytest.raises(ValueError, match="--precision bf16, but this method trains .* of the base"):
        precision.choose_precision("bf16", model, "cpu")
    assert precision.choose_precision("auto", model, "cpu") == ("fp32", "weights of the base train")


def wide_gpt2():
    model = M.GPT2(M.GPT2Config(vocab_size=50, n_positions=8, n_embd=precision.LEAST_WIDTH, n_layer=1, n_head=4))
    baselines.apply_method(model, "lora", rank=3, alpha=7)
    return model


@pytest.mark.parametrize("found, expected, why", [({"amx_bf16": True}, "bf16", "amx_bf16"),
                                                  ({"avx512_bf16": True}, "bf16", "avx512_bf16"),
                                                  ({"avx2": True, "amx_bf16": False}, "fp32", "neither AMX nor AVX512")])
def test_auto_follows_the_processor(monkeypatch, found, expected, why):
    monkeypatch.delenv("LORA_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    chosen, reason = precision.choose_precision("auto", wide_gpt2(), "cpu")
    assert chosen == expected and why in reason
    assert precision.choose_precision("fp32", wide_gpt2(), "cpu") == ("fp32", "asked for")
    asked, reason = precision.choose_precision("bf16", wide_gpt2(), "cpu")
    assert asked == "bf16" and ("only emulates it" in reason) == (expected == "fp32")


def test_auto_leaves_a_narrow_model_in_fp32_on_every_processor(repository, monkeypatch):
    monkeypatch.delenv("LORA_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    chosen, reason = precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")
    assert chosen == "fp32" and f"below a hidden size of {precision.LEAST_WIDTH}, this model has 128" in reason


def test_the_environment_may_name_the_format_of_auto(repository, monkeypatch):
    monkeypatch.setenv("LORA_PRECISION", "bf16")
    assert precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")[0] == "bf16"
    assert precision.choose_precision("fp32", with_method(repository, "gpt2", "lora"), "cpu")[0] == "fp32"
    assert precision.choose_precision("auto", with_method(repository, "gpt2", "full"), "cpu")[0] == "fp32"
    monkeypatch.setenv("LORA_PRECISION", "fp8")
    with pytest.raises(ValueError, match=r"\$LORA_PRECISION is 'fp8', expected fp32 or bf16"):
        precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")


@pytest.mark.parametrize("task, kind", [("mrpc", "roberta"), ("e2e", "gpt2")])
def test_a_run_in_bf16_says_so_follows_fp32_and_is_scored(repository, toy_data, tmp_path, capsys, task, kind):
    losses = {}
    for asked in ("fp32", "bf16"):
        train.main(["--model", str(repository / "toy" / kind), "--task", task, "--data-dir", str(toy_data), "--out-dir",
                    str(tmp_path / asked), "--limit-train", "80", "--limit-eval", "4", "--batch-size", "8", "--max-steps",
                    "20", "--lr", "0.005", "--rank", "3", "--dropout", "0", "--model-dropout", "0", "--precision", asked,
                    *(["--beam-size", "2"] if task == "e2e" else [])])
        assert f"precision: frozen weights in {asked} (asked for), what trains in fp32" in capsys.readouterr().out
        (metrics,) = (tmp_path / asked).rglob("metrics.json")
        losses[asked] = [entry["loss"] for entry in json.loads(metrics.read_text(encoding="utf-8"))["epochs"]]
        assert json.loads(metrics.read_text(encoding="utf-8"))["scores"].keys() >= {"accuracy" if task == "mrpc" else "BLEU"}
    assert losses["fp32"][-1] < losses["fp32"][0] or task == "mrpc"
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03) and losses["bf16"] != losses["fp32"]
