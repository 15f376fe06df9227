"""adapters/saving.py: what is saved comes back the same, and files that are damaged or of another base are refused."""
import pytest
import torch
from test_lora import EVERY, TARGET_SETS, make_adapted, make_base, tokens
from torch import nn

import lora as L
from adapters import saving as S
from adapters.folder import read_folder, write_folder
from files import weights as W


@EVERY
@pytest.mark.parametrize("targets", TARGET_SETS, ids="-".join)
def test_saved_and_loaded_adapter_is_the_same(tmp_path, kind, targets):
    model = make_adapted(kind, targets)
    if kind != "gpt2":
        nn.init.normal_(model.classifier.out_proj.weight)
    S.save_adapter(model, tmp_path, base_name="base", task="mrpc")
    loaded = S.load_adapter(make_base(kind), tmp_path, task="mrpc")
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())
    assert L.lora_settings(loaded) == L.lora_settings(model)
    x = tokens(kind)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
        doubled = S.load_adapter(make_base(kind), tmp_path, alpha=14)
        assert (doubled(x) - model(x)).abs().max() > 1e-3


def test_an_adapter_holds_the_adapter_alone(tmp_path):
    S.save_adapter(make_adapted("gpt2"), tmp_path)
    stored = W.read_safetensors(tmp_path / "adapter_model.safetensors")
    assert all("lora_" in name for name in stored)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * 2 * (6 * 24 + 72 * 6) + 2000


def test_a_merged_model_or_one_without_lora_is_not_saved(tmp_path):
    with pytest.raises(RuntimeError, match="merged model is not saved"):
        S.save_adapter(L.merge(make_adapted("gpt2")), tmp_path)
    with pytest.raises(RuntimeError, match="no LoRA to save"):
        S.save_adapter(make_base("gpt2"), tmp_path)
    assert not list(tmp_path.iterdir())


@EVERY
def test_another_base_task_or_head_is_refused(tmp_path, kind):
    S.save_adapter(make_adapted(kind), tmp_path, task="mrpc")
    with pytest.raises(ValueError, match="trained on base"):
        S.load_adapter(make_base(kind, seed=1), tmp_path)
    with pytest.raises(ValueError, match="trained for task 'mrpc', expected 'rte'"):
        S.load_adapter(make_base(kind), tmp_path, task="rte")
    if kind != "gpt2":
        with pytest.raises(ValueError, match="head has 3 labels, this model's 2"):
            S.load_adapter(make_base(kind, num_labels=2), tmp_path)


def damage(directory, change):
    """Change tensors and our own section of an adapter file, or what PEFT reads of adapter_config.json."""
    tensors, config, own = read_folder(directory)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change({"tensors": tensors, "config": config, "own": own})
    write_folder(directory, tensors, config, own)


FIRST_B = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
DAMAGE = {
    "no file": (lambda d: (d / "adapter_model.safetensors").unlink(), FileNotFoundError, "no adapter_model.safetensors"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), FileNotFoundError, "no adapter_config.json"),
    "not json": (lambda d: (d / "adapter_config.json").write_text("{"), ValueError, "not valid JSON"),
    "foreign": (lambda d: (d / "adapter_config.json").write_text("{}"), ValueError, "no peft_type, or r or lora_alpha is no"),
    "alpha 0": (lambda d: damage(d, lambda f: f["config"].update(lora_alpha=0)), ValueError, "lora_alpha is no number above 0"),
    "alpha 0 of a layer": (lambda d: damage(d, lambda f: f["config"].update(alpha_pattern={"attn": 0})), ValueError,
                           "expected numbers above 0 by name"),
    "no init": (lambda d: damage(d, lambda f: f["own"].pop("init")), ValueError, "no LoRA adapter of this project: 'init'"),
    "rank": (lambda d: damage(d, lambda f: f["own"].update(rank=2)), ValueError, "expected rank 4"),
    "alpha": (lambda d: damage(d, lambda f: f["config"].update(lora_alpha=8)), ValueError, "alpha is 7 in its metadata"),
    "target": (lambda d: damage(d, lambda f: f["own"].update(targets=["q", "x"])), ValueError, "unknown LoRA target 'x'"),
    "other target": (lambda d: damage(d, lambda f: f["own"].update(targets=["q", "k"])), ValueError, "outside the blocks"),
    "missing": (lambda d: damage(d, lambda f: f["tensors"].pop(FIRST_B)), ValueError, "first difference"),
    "shape": (lambda d: damage(d, lambda f: f["tensors"].update({FIRST_B: f["tensors"][FIRST_B][:-1].clone()})), ValueError,
              "has shape"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_line(tmp_path, fault):
    S.save_adapter(make_adapted("gpt2"), tmp_path)
    spoil, kind, message = DAMAGE[fault]
    spoil(tmp_path)
    with pytest.raises(kind, match=message) as refusal:
        S.load_adapter(make_base("gpt2"), tmp_path)
    assert "\n" not in str(refusal.value)
