"""Files from anywhere: thousands of seeded mutations, and pickles that would run code. See fuzz.py for what is judged."""
import io
import json
import pickle
import re
import struct
import zipfile

import pytest
import torch

import adapters
import data
import lora
import methods as baselines
import model as M
from files import weights as W
from files.published import find_model
from files.text import read_json, write_json
from tests.fuzz import KINDS, fuzz_kind, write_model

QUICK = {"safetensors": 500, "GLUE TSV": 250, "E2E text and CSV": 250, "tokenizer": 200, "scorer's text files": 150,
         "zip archive": 150, "pickle before torch 1.6": 150, "shard index": 100, "token cache": 100}
MUTATIONS = {name: QUICK.get(name, 50) for name in KINDS}                    # the others build a model each time


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_load_as_they_say(kind, record_property):
    report = fuzz_kind(kind, MUTATIONS[kind], seed=20)
    assert not report.findings, "\n".join(report.findings[:5])
    assert report.refused > MUTATIONS[kind] / 10 or kind == "token cache"    # the damage is not all in vain
    for name, value in {"kind": kind, "times": MUTATIONS[kind], "refused": report.refused, "loaded": report.loaded}.items():
        record_property(name, value)


def test_the_fuzzer_makes_at_least_two_thousand_mutations():
    assert sum(MUTATIONS.values()) >= 2000


# ---------------------------------------------------------------- pickles

class Runs:
    """Unpickling this calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def in_zip(content: bytes) -> bytes:
    """A file of torch.save whose pickle is `content`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as records:
        records.writestr("archive/data.pkl", content)
        records.writestr("archive/version", "3\n")
    return buffer.getvalue()


def dangerous(trap) -> dict[str, bytes]:
    import os
    system = f"touch {trap}"
    by_hand = b"\x80\x02cos\nsystem\n(X" + struct.pack("<I", len(system)) + system.encode() + b"tR."
    nested = io.BytesIO()
    torch.save({"a.lora_A": torch.ones(2, 2), "extra": Runs(os.system, system)}, nested)
    old = io.BytesIO()
    torch.save({"a": Runs(open, str(trap), "w")}, old, _use_new_zipfile_serialization=False)
    return {"plain": pickle.dumps(Runs(os.system, system), 2), "in a zip": in_zip(pickle.dumps(Runs(os.system, system), 2)),
            "by hand": in_zip(by_hand), "eval": in_zip(pickle.dumps(Runs(eval, f"open({str(trap)!r}, 'w')"), 2)),
            "beside tensors": nested.getvalue(), "before torch 1.6": old.getvalue()}


@pytest.mark.parametrize("name", dangerous("x"))
@pytest.mark.parametrize("place", ["pytorch_model.bin", "adapter_model.bin", "lora.pt"])
def test_a_pickle_that_would_run_code_does_not_run_it(tmp_path, name, place, repository):
    trap = tmp_path / "ran"
    content = dangerous(trap)[name]
    write_model(tmp_path, "gpt2")
    model = M.load_pretrained(tmp_path)
    (tmp_path / place).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{place}: (not a readable PyTorch state dict|holds more than tensors)") as refusal:
        if place == "pytorch_model.bin":
            (tmp_path / "model.safetensors").unlink()
            M.load_pretrained(tmp_path)
        elif place == "adapter_model.bin":
            write_json({"peft_type": "LORA", "r": 2, "lora_alpha": 4}, tmp_path / "adapter_config.json")
            baselines.load_trained(model, tmp_path)
        else:
            adapters.load_adapter(model, tmp_path / place, alpha=4)
    assert not trap.exists() and "\n" not in str(refusal.value)


def test_a_pickle_cannot_claim_more_numbers_than_it_holds(tmp_path):
    """One number with stride 0 stands for 10^18; the first copy would fill the memory."""
    torch.save({"a": torch.ones(1).expand(10**9, 10**9)}, tmp_path / "big.bin")
    torch.save({"a": torch.ones(3, 3).to_sparse()}, tmp_path / "sparse.bin")
    for file in ("big.bin", "sparse.bin"):
        with pytest.raises(ValueError, match=f"{file}: '?(a|not a readable)"):
            W.read_pickle(tmp_path / file)


def test_changed_numbers_in_a_pickle_are_noticed(tmp_path):
    """torch.load takes them as they are; the file's checksum tells."""
    torch.save({"a": torch.full((50,), 1.5)}, tmp_path / "a.bin")
    content = (tmp_path / "a.bin").read_bytes()
    at = content.index(struct.pack("<f", 1.5) * 50)
    (tmp_path / "a.bin").write_bytes(content[:at] + b"\1" + content[at + 1:])
    assert torch.load(tmp_path / "a.bin", weights_only=True)["a"][0] != 1.5
    with pytest.raises(ValueError, match="a.bin: not a readable PyTorch state dict"):
        W.read_pickle(tmp_path / "a.bin")


# ---------------------------------------------------------------- claims that cost memory or time

CLAIMS = {"n_layer": 10**9, "n_embd": 10**12, "vocab_size": 2**70, "n_head": 3, "n_positions": 0, "layer_norm_epsilon": "1e-5",
          "resid_pdrop": 1.0, "n_inner": -4, "attn_pdrop": None, "embd_pdrop": True}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_config_that_no_model_can_have_is_refused(tmp_path, name):
    write_model(tmp_path, "gpt2")
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {name: CLAIMS[name]}))
    with pytest.raises(ValueError, match="config.json: (n_|vocab|layer|resid|attn|embd|3 heads)"):
        M.load_pretrained(tmp_path)


def test_a_head_is_not_built_on_a_claim(tmp_path):
    """A file without a head gets a fresh one, as large as the configuration says: the sizes are compared before."""
    write_model(tmp_path, "roberta")
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(tmp_path / "model.safetensors").items()
               if not name.startswith("classifier.")}
    W.write_safetensors(tensors, tmp_path / "model.safetensors")
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 10**6}))
    with pytest.raises(ValueError, match=r"has shape \[.*\], config.json asks for"):
        M.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_labels": 10**9}))
    with pytest.raises(ValueError, match="num_labels is '1000000000'"):
        M.load_pretrained(tmp_path)


def test_a_rank_is_not_built_on_a_claim(tmp_path):
    write_model(tmp_path / "base", "gpt2")
    model = M.load_pretrained(tmp_path / "base")
    baselines.apply_method(model, "adapter-h", 2, seed=0)
    baselines.save_trained(model, tmp_path, "base", "e2e")
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes().replace(rb'\"rank\": 2,', rb'\"rank\": 9,'))
    with pytest.raises(ValueError, match="of rank 9; expected"):
        baselines.load_trained(M.load_pretrained(tmp_path / "base"), tmp_path)


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*x", "(a|aa){50}", "x" * 300, "(a*)*b"])
def test_a_pattern_that_takes_for_ever_is_refused(tmp_path, pattern):
    write_model(tmp_path, "gpt2")
    model = M.load_pretrained(tmp_path)
    lora.add_lora(model, 2, 5.0, ("q", "v"))
    adapters.save_adapter(model, tmp_path / "adapter")
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    write_json(config | {"rank_pattern": {pattern: 4}}, tmp_path / "adapter" / "adapter_config.json")
    with pytest.raises(ValueError, match=f"'{re.escape(pattern[:60])}' in rank_pattern is too intricate"):
        adapters.load_adapter(M.load_pretrained(tmp_path), tmp_path / "adapter")


def test_many_equal_keys_are_found_quickly(tmp_path):
    (tmp_path / "vocab.json").write_text("{" + ", ".join(f'"{n}": {n}' for n in range(200_000)) + ', "199999": 0}')
    with pytest.raises(ValueError, match="vocab.json: not valid JSON .*'199999' stands twice"):
        read_json(tmp_path / "vocab.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deep.json: not valid JSON"):
        read_json(tmp_path / "deep.json")


# ---------------------------------------------------------------- numbers that are none, and names that lead elsewhere

@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, value, dtype):
    model = write_model(tmp_path, "gpt2")
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    tensors["transformer.h.1.mlp.c_fc.weight"][2, 3:5] = value
    W.write_safetensors(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: tensor 'transformer.h.1.mlp.c_fc.weight' holds 2 NaN or infinite "
                                         "numbers of 64"):
        M.load_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["lora", "adapter-h", "bitfit"])
def test_an_adapter_that_is_not_finite_is_named(tmp_path, method):
    write_model(tmp_path, "gpt2")
    model = M.load_pretrained(tmp_path)
    baselines.apply_method(model, method, 2, seed=0, **({} if method != "lora" else {
        "alpha": 5.0, "targets": ("q", "v"), "dropout": 0.0, "lora_init": "gaussian", "bias": "none"}))
    name, parameter = next(iter(baselines.trained_parameters(model).items()))
    parameter.data.flatten()[0] = float("nan")
    baselines.save_trained(model, tmp_path / "adapter", "base", "e2e")
    with pytest.raises(ValueError, match=r"adapter: tensor '.*' holds 1 NaN or infinite numbers of \d+"):
        baselines.load_trained(M.load_pretrained(tmp_path), tmp_path / "adapter")


def test_large_finite_weights_are_not_taken_for_infinite():
    W.check_finite({"a": torch.full((1000,), 3e38), "b": torch.full((9,), 65504.0).half(), "c": torch.arange(3)}, "file")


@pytest.mark.parametrize("reference", ["../../../elsewhere", "/etc", "a/b", "..", ""])
def test_a_cache_reference_cannot_point_outside_its_snapshots(tmp_path, monkeypatch, reference):
    for name in ("LORA_WEIGHTS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--openai-community--gpt2"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots" / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", repository / "snapshots" / "a" / "b", repository, repository / "snapshots"):
        (folder / "config.json").write_text("{}")
    (repository / "refs" / "main").write_text(reference)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert find_model("gpt2") is None


def test_a_tensor_under_two_spellings_is_refused(tmp_path):
    write_model(tmp_path, "gpt2")
    model = M.load_pretrained(tmp_path)
    lora.add_lora(model, 2, 5.0, ("q", "v"))
    adapters.save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(file).items()}
    name = next(iter(tensors))
    tensors[name.removeprefix("base_model.model.")] = tensors[name] + 1
    W.write_safetensors(tensors, file)
    with pytest.raises(ValueError, match="twice, under two spellings"):
        adapters.load_adapter(M.load_pretrained(tmp_path), tmp_path / "adapter")


def test_stray_quotes_of_mrpc_are_text(tmp_path):
    path = tmp_path / "glue" / "MRPC" / "train.tsv"
    path.parent.mkdir(parents=True)
    path.write_text('Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\t"He said\t\'so " "\n0\t3\t4\t"\t""\n')
    assert [(e.text, e.pair) for e in data.read_glue("mrpc", "train", tmp_path)] == [('"He said', '\'so " "'), ('"', '""')]
