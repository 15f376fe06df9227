"""The same tensors under other names or cuts: wrapped models, tied weights stored once, shards, LayerNorm's former names."""
import json

import pytest
import torch
from test_lora import CONFIGS, EVERY, as_theirs, make_base, tokens

import model as M
from files.pretrained import file_name
from files.weights import write_safetensors

EMBEDDING = {"gpt2": "transformer.wte.weight", "roberta": "roberta.embeddings.word_embeddings.weight",
             "bert": "bert.embeddings.word_embeddings.weight"}
OUTPUT = {"gpt2": "lm_head.weight", "roberta": "lm_head.decoder.weight", "bert": "cls.predictions.decoder.weight"}
INNER = {"gpt2": ("attn.c_attn", "transformer.h"), "roberta": ("attention.self", "roberta.encoder"),
         "bert": ("pooler", "bert.encoder")}


def write_base(folder, kind, rename=lambda name: name, change=lambda tensors: tensors):
    """A model folder whose tensors have other names; returns what it has to compute."""
    folder.mkdir(exist_ok=True)
    model = make_base(kind)
    own = {file_name(name, type(model)): tensor.detach() for name, tensor in model.named_parameters()}
    tensors = {rename(name): tensor for name, tensor in change(own).items()}
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | CONFIGS[kind]))
    write_safetensors(tensors, folder / "model.safetensors")
    with torch.inference_mode():
        return tensors, model(tokens(kind))


def assert_loads(folder, kind, expected):
    with torch.inference_mode():
        assert torch.equal(M.load_pretrained(folder)(tokens(kind)), expected)


@EVERY
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "base_model.model.", "module._orig_mod.",
                                    "base_model.model.model.", "_orig_mod.module.base_model.model."])
def test_what_wraps_a_model_is_no_part_of_its_names(tmp_path, kind, prefix):
    assert_loads(tmp_path, kind, write_base(tmp_path, kind, lambda name: prefix + name)[1])
    bare = M.FAMILIES[kind].prefix                                           # and before a file of the bare model
    assert_loads(tmp_path, kind, write_base(tmp_path, kind, lambda name: prefix + name.removeprefix(bare))[1])


@EVERY
@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer",
                                     "_orig_mod._checkpoint_wrapped_module"])
def test_what_wraps_a_part_of_a_model_is_no_part_of_its_names(tmp_path, kind, wrapper):
    for part in INNER[kind]:
        assert_loads(tmp_path, kind, write_base(tmp_path, kind, lambda name, part=part: name.replace(
            f"{part}.", f"{part}.{wrapper}."))[1])


@EVERY
def test_layer_norm_under_its_former_names(tmp_path, kind):
    def former(name):
        last = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
        return f"{name.rpartition('.')[0]}.{last}" if "ln_" in name or "LayerNorm" in name else name
    assert_loads(tmp_path, kind, write_base(tmp_path, kind, former)[1])


@EVERY
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tied_weight_under_either_name(tmp_path, kind, prefix):
    other = OUTPUT[kind]
    assert_loads(tmp_path, kind, write_base(tmp_path, kind, lambda name: prefix + name.replace(EMBEDDING[kind], other))[1])
    assert_loads(tmp_path, kind, write_base(tmp_path, kind, change=lambda tensors: tensors | {
        other: tensors[EMBEDDING[kind]].clone()})[1])


def test_an_output_layer_of_its_own_is_refused(tmp_path):
    write_base(tmp_path, "gpt2", change=lambda tensors: tensors | {"module.lm_head.weight": tensors[EMBEDDING["gpt2"]] + 1})
    with pytest.raises(ValueError, match="'module.lm_head.weight' differs from the token embedding; only tied heads load"):
        M.load_pretrained(tmp_path)


def test_two_tensors_of_one_name_and_unmerged_updates_are_refused(tmp_path):
    write_base(tmp_path, "gpt2", change=lambda tensors: tensors | {"module.wpe.weight": tensors["transformer.wpe.weight"] + 1})
    with pytest.raises(ValueError, match="'transformer.wpe.weight' and 'module.wpe.weight' are both 'transformer.wpe.weight'"):
        M.load_pretrained(tmp_path)
    write_base(tmp_path, "gpt2", change=lambda tensors: tensors | {
        "transformer.h.0.attn.c_attn.lora_A.default.weight": torch.ones(3, 24)})
    with pytest.raises(ValueError, match=r"an update that is not merged: merge it with PEFT \(merge_and_unload\)"):
        M.load_pretrained(tmp_path)


def write_shards(folder, tensors, kind, n_shards=3):
    """The folder's tensors in shards of either kind, as transformers cuts them, and no whole file."""
    form, write = ("model-{}.safetensors", write_safetensors) if kind == "safetensors" else ("pytorch_model-{}.bin", torch.save)
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for shard in range(n_shards):
        file = form.format(f"{shard + 1:05}-of-{n_shards:05}")
        weight_map |= dict.fromkeys(names[shard::n_shards], file)
        write({name: tensors[name].clone() for name in names[shard::n_shards]}, folder / file)
    index = folder / f"{form.replace('-{}', '')}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, weight_map


@EVERY
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_are_one_model(tmp_path, kind, form, capsys):
    tensors, expected = write_base(tmp_path, kind, lambda name: "module." + name)
    index, weight_map = write_shards(tmp_path, tensors, form)
    assert_loads(tmp_path, kind, expected)
    assert f"loaded {tmp_path / f'3 {form} shards'}: {len(tensors)} tensors" in capsys.readouterr().err
    name, shard = next(iter(weight_map.items()))
    index.write_text(json.dumps({"weight_map": weight_map | {"module.extra": shard}}))
    with pytest.raises(ValueError, match=f"puts 'module.extra' into {shard}, which does not hold it"):
        M.load_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {name: f"../{shard}"}}))
    with pytest.raises(ValueError, match=rf"expected a weight_map from tensor names to \.{form} files of this folder"):
        M.load_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / shard).unlink()
    with pytest.raises(FileNotFoundError, match=f"names {shard}, which is missing; put it there"):
        M.load_pretrained(tmp_path)


@EVERY
@pytest.mark.parametrize("more", [-1, 1])
def test_another_depth_is_seen_under_wrapped_names(tmp_path, kind, more):
    write_base(tmp_path, kind, lambda name: "module." + name)
    config = json.loads((tmp_path / "config.json").read_text())
    config["n_layer" if kind == "gpt2" else "num_hidden_layers"] += more
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = r"tensors missing \(first: '(?!module)" if more > 0 else r"unexpected \(first: 'module\."
    with pytest.raises(ValueError, match=found + ".*: use the weights and the config of one model"):
        M.load_pretrained(tmp_path)


def test_a_folder_of_sharded_bin_is_complete():
    from files.published import WEIGHT_FILES
    assert "pytorch_model.bin.index.json" in WEIGHT_FILES


@EVERY
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_models_merged_by_peft_load(tmp_path, kind, form, request):
    """merge_and_unload, save_pretrained; also a raw state dict of the wrapped model, and in shards."""
    pytest.importorskip("peft")
    request.getfixturevalue("monkeypatch").syspath_prepend(str(request.config.rootpath / "tests" / "adapters"))
    from test_adapter_files import peft_model
    merged = peft_model(kind, target_modules=["c_attn", "c_fc"] if kind == "gpt2" else ["query", "dense"]).merge_and_unload()
    with torch.inference_mode():
        expected = merged(**as_theirs(kind, tokens(kind))).logits
        assert (expected - make_base(kind)(tokens(kind))).abs().max() > 1e-2
    merged.save_pretrained(tmp_path, max_shard_size="20KB" if form == "safetensors" else "5GB")
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save({f"_orig_mod.{name}": tensor for name, tensor in merged.state_dict().items()},
                   tmp_path / "pytorch_model.bin")
    with torch.inference_mode():
        torch.testing.assert_close(M.load_pretrained(tmp_path)(tokens(kind)), expected, atol=1e-5, rtol=1e-5)
