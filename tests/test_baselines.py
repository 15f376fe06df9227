"""baselines.py: exactly what each method trains, by count and by name, and that everything else stays as it was."""
import copy

import pytest
import torch
from test_lora import make_base, tokens

import baselines as B
import lora as L
import model as M
from adapter_files import read_folder

GPT2_MEDIUM = M.GPT2Config(n_embd=1024, n_layer=24, n_head=16)


def meta(build, config):
    with torch.device("meta"):
        return build(config)


@pytest.mark.parametrize("build, config, method, trained, head", [
    (M.GPT2, GPT2_MEDIUM, "lora", 393_216, 0),
    (M.RobertaClassifier, M.RobertaConfig(), "lora", 294_912, 592_130),
    (M.GPT2, M.GPT2Config(), "full", 124_439_808, 0),
    (M.GPT2, GPT2_MEDIUM, "full", 354_823_168, 0),
    (M.GPT2, GPT2_MEDIUM, "last-layers", 25_192_448, 0),
    (M.RobertaClassifier, M.RobertaConfig(), "bitfit", 102_144, 592_130),
    (M.RobertaClassifier, M.RobertaConfig(), "head", 0, 592_130)])
def test_counts_of_the_paper(build, config, method, trained, head):
    model = meta(build, config)
    B.apply_method(model, method, rank=4 if build is M.GPT2 else 8, alpha=16)
    counts = B.parameter_counts(model)
    assert (counts["trainable"], counts["head"]) == (trained, head)
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@pytest.mark.parametrize("method", B.METHODS)
def test_what_a_method_trains_changes_and_the_rest_stays_bit_identical(kind, method):
    model = make_base(kind, n_layer=3) if kind == "gpt2" else make_base(kind, num_hidden_layers=3)
    if (kind, method) == ("gpt2", "head"):
        with pytest.raises(ValueError, match="no task head; choose one of lora full last-layers bitfit"):
            B.apply_method(model, method)
        return
    B.apply_method(model, method, rank=2, alpha=5)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for step in range(2):                                                    # LoRA's A moves only once B is not zero
        optimizer.zero_grad()
        model.train()(tokens(kind, seed=step)).square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    expected = {
        "lora": lambda name: ".lora_" in name,
        "full": lambda name: True,
        "last-layers": lambda name: ".h.1." in name or ".h.2." in name or ".layer.1." in name or ".layer.2." in name,
        "bitfit": lambda name: name.endswith("bias"),
        "head": lambda name: False,
    }[method]
    wanted = {name for name in before if expected(name) or name.startswith("classifier.")}
    assert changed <= wanted
    assert wanted - changed <= {f"roberta.encoder.layer.{i}.attention.self.key.bias" for i in range(3)}  # softmax ignores it


@pytest.mark.parametrize("method", B.METHODS)
def test_what_was_saved_comes_back(tmp_path, method):
    model = make_base("roberta")
    B.apply_method(model, method, rank=2, alpha=5)
    fingerprint = L.base_fingerprint(make_base("roberta"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    B.save_trained(model, method, tmp_path, "base", "mrpc")
    saved = copy.deepcopy(dict(model.named_parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    B.reload_trained(model, method, tmp_path)
    assert all(torch.equal(parameter, saved[name]) for name, parameter in model.named_parameters())
    _, _, own = read_folder(tmp_path)
    assert (own["method"], own["base_fingerprint"], own["task"]) == (method, fingerprint, "mrpc")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'magic'; expected one of lora full"):
        B.apply_method(make_base("gpt2"), "magic")
