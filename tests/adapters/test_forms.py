"""Adapters as people have them: wrapped names, raw state dicts, older PEFT, blocks without an update, tensors of the base saved
along, names and coarser formats of the base. Each is compared with PEFT or with the update written out."""
import json

import pytest
import torch
from test_adapter_files import assert_same_logits, peft_model
from test_lora import EVERY, GPT2, as_theirs, fill_B, make_adapted, make_base, theirs, tokens
from torch.nn import functional as F

import lora as L
import methods
import model as M
from adapters import AdapterBank, load_adapter, save_adapter
from files.pretrained import file_name
from files.text import read_json, write_json
from files.weights import read_safetensors, write_safetensors
from training.precision import hold_frozen_in

peft = pytest.importorskip("peft")
TARGETS = {"gpt2": ["c_attn", "mlp.c_proj"], "roberta": ["query", "value"], "bert": ["query", "value"]}


def saved(folder, kind, **settings):
    """A PEFT model and its folder; the tensors can be written anew."""
    other = peft_model(kind, **{"target_modules": TARGETS[kind]} | settings)
    other.save_pretrained(folder)
    return other, {name: tensor.clone() for name, tensor in read_safetensors(folder / "adapter_model.safetensors").items()}


def write_tensors(folder, tensors):
    write_safetensors(tensors, folder / "adapter_model.safetensors")


# ---------------------------------------------------------------- names

@EVERY
@pytest.mark.parametrize("old, new", [
    ("base_model.model.", "base_model.model._orig_mod."), ("base_model.model.", "module.base_model.model."),
    ("base_model.model.", "_orig_mod.base_model.model.module."), ("base_model.model.", "base_model.model.model."),
    ("base_model.model.", ""), (".attn.", ".attn._orig_mod."), (".self.", ".module.self."), (".lora_A.", ".lora_A.default."),
    (".mlp.", "._fsdp_wrapped_module.mlp.")])
def test_an_adapter_of_a_wrapped_model(tmp_path, kind, old, new):
    other, tensors = saved(tmp_path, kind)
    write_tensors(tmp_path, {name.replace(old, new): tensor for name, tensor in tensors.items()})
    assert_same_logits(load_adapter(make_base(kind), tmp_path), other, kind)


@EVERY
@pytest.mark.parametrize("which", ["lora and head", "all"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
def test_a_raw_state_dict_of_a_peft_model(tmp_path, kind, which, wrapper):
    """Names with the adapter's own, and the base's own tensors beside it; no alpha."""
    other = peft_model(kind, target_modules=TARGETS[kind])
    other.add_adapter("second", peft.LoraConfig(r=2, target_modules=TARGETS[kind]))
    tensors = {wrapper + name: tensor for name, tensor in other.state_dict().items() if ".second" not in name and (
        which == "all" or "lora_" in name or "classifier" in name)}
    torch.save(tensors, tmp_path / "raw.pt")
    assert_same_logits(load_adapter(make_base(kind), tmp_path / "raw.pt", alpha=7), other, kind)
    write_json({"peft_type": "LORA", "r": 3, "lora_alpha": 7}, tmp_path / "adapter_config.json")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert_same_logits(load_adapter(make_base(kind), tmp_path), other, kind)
    torch.save({name: tensor for name, tensor in other.state_dict().items() if "lora_" in name}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="holds the adapters default, second, expected one; save each alone"):
        load_adapter(make_base(kind), tmp_path / "two.pt", alpha=7)


# ---------------------------------------------------------------- blocks without an update

@EVERY
@pytest.mark.parametrize("settings", [
    {"target_modules": {"gpt2": ["transformer.h.1.attn.c_attn"], "roberta": ["roberta.encoder.layer.1.output.dense"],
                        "bert": ["bert.encoder.layer.1.output.dense"]}},
    {"target_modules": {"gpt2": r".*h\.[1]\.mlp\.c_(fc|proj)", "roberta": r".*layer\.0\.attention\.self\.(query|value)",
                        "bert": r".*layer\.[01]\.intermediate\.dense"}},
    {"target_modules": TARGETS, "exclude_modules": r".*\.1\..*"}, {"target_modules": TARGETS, "layers_to_transform": [1]},
    {"target_modules": TARGETS, "exclude_modules": ["0.attn.c_attn", "0.attention.self.value"]},
    {"target_modules": TARGETS, "layers_to_transform": 0, "layers_pattern": ["h", "layer"]}], ids=str)
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_an_update_that_a_block_lacks_is_zero(tmp_path, kind, settings, bias):
    settings = {name: value.get(kind) if isinstance(value, dict) else value for name, value in settings.items()}
    other, _ = saved(tmp_path, kind, bias=bias, **settings)
    ours = load_adapter(make_base(kind), tmp_path)
    assert_same_logits(ours, other, kind)
    save_adapter(ours, tmp_path / "back")
    assert_same_logits(load_adapter(make_base(kind), tmp_path / "back"), other, kind)
    if bias == "none":
        bank = AdapterBank(make_base(kind))
        bank.add("some", tmp_path)
        x = tokens(kind)
        with torch.inference_mode():
            torch.testing.assert_close(torch.stack(list(bank.logits(["some"] * 3, x))), ours(x), atol=1e-5, rtol=1e-5)


@EVERY
def test_a_part_of_an_adapter_is_not_taken_for_one_that_leaves_blocks_out(tmp_path, kind):
    """Its target_modules are a list, which names what the file lacks: a smaller base's adapter, or a file that is not whole."""
    _, tensors = saved(tmp_path, kind)
    write_tensors(tmp_path, {name: tensor for name, tensor in tensors.items() if ".1." not in name})
    with pytest.raises(ValueError, match=r"target_modules of adapter_config.json names '.*\.1\..*', for which the file has no"):
        load_adapter(make_base(kind), tmp_path)


# ---------------------------------------------------------------- PEFT until 0.2

@pytest.mark.parametrize("enabled, groups", [([True, False, True], 2), ([True, True, True], 3), ([False, True, True], 1),
                                             ([True, False, False], 2), ([True, True, True], 2)])
def test_merged_linear_of_peft_until_0_2(tmp_path, enabled, groups):
    """B is the weight of a convolution of width 1 in groups: (rows of the enabled thirds, r n / groups, 1)."""
    r, alpha, n, d = 4, 6, sum(enabled), GPT2["n_embd"]
    generator = torch.Generator().manual_seed(4)
    rows = torch.tensor(enabled).repeat_interleave(d)
    tensors, base, x = {}, make_base("gpt2"), tokens("gpt2")
    for index, block in enumerate(base.transformer.h):
        A = torch.empty(n * r, d).normal_(0, 0.3, generator=generator)
        B = torch.empty(n * d, n * r // groups, 1).normal_(0, 0.3, generator=generator)
        name = f"base_model.model.transformer.h.{index}.attn.c_attn.lora_"
        tensors |= {f"{name}A.weight": A, f"{name}B.weight": B}

        def add_update(layer, inputs, h, A=A, B=B):
            h[..., rows] += alpha / r * F.conv1d((inputs[0] @ A.T).mT, B, groups=groups).mT
        block.attn.c_attn.register_forward_hook(add_update)
    write_json({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "enable_lora": enabled,
                "lora_dropout": 0.1, "merge_weights": True, "fan_in_fan_out": True, "bias": "none", "modules_to_save": None,
                "target_modules": ["c_attn"], "inference_mode": True, "base_model_name_or_path": "gpt2"},
               tmp_path / "adapter_config.json")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with torch.inference_mode():
        expected = base(x)
        assert (expected - make_base("gpt2")(x)).abs().max() > 1e-2
        torch.testing.assert_close(load_adapter(make_base("gpt2"), tmp_path)(x), expected, atol=1e-5, rtol=1e-5)
    config = read_json(tmp_path / "adapter_config.json")
    write_json(config | {"enable_lora": [not value for value in enabled]}, tmp_path / "adapter_config.json")
    with pytest.raises(ValueError, match="which do not fit enable_lora"):
        load_adapter(make_base("gpt2"), tmp_path)


# ---------------------------------------------------------------- the base's own tensors, saved along

SAVED_ALONG = {"gpt2": ["transformer.wte.weight", "lm_head.weight", "transformer.wte.base_layer.weight",
                        "transformer.wte.modules_to_save.weight", "transformer.ln_f.weight"],
               "roberta": ["roberta.embeddings.word_embeddings.weight", "roberta.embeddings.LayerNorm.weight",
                           "roberta.embeddings.word_embeddings.modules_to_save.default.weight"],
               "bert": ["bert.embeddings.token_type_embeddings.weight"]}


def of_base(kind, name):
    plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    return make_base(kind).state_dict()[plain.replace("lm_head.", "transformer.wte.")]


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in SAVED_ALONG.items() for name in names])
def test_tensors_of_the_base_saved_along(tmp_path, kind, name):
    other, tensors = saved(tmp_path, kind)
    for equal in (of_base(kind, name), of_base(kind, name).bfloat16()):
        write_tensors(tmp_path, tensors | {f"base_model.model.{name}": equal})
        assert_same_logits(load_adapter(make_base(kind), tmp_path), other, kind)
    write_tensors(tmp_path, tensors | {f"base_model.model.{name}": of_base(kind, name) * 1.01})
    with pytest.raises(ValueError, match=r"and not as the base has it: it was trained along \(modules_to_save in PEFT\)"):
        load_adapter(make_base(kind), tmp_path)
    bank = AdapterBank(make_base(kind))
    with pytest.raises(ValueError, match="and not as the base has it"):
        bank.add("other", tmp_path)


def test_a_resized_vocabulary_is_named_and_the_merged_model_loads(tmp_path):
    """The advice, followed: PEFT merges onto the resized base what is refused here."""
    larger = theirs("gpt2")
    torch.manual_seed(3)
    larger.resize_token_embeddings(GPT2["vocab_size"] + 2, mean_resizing=False)
    larger.save_pretrained(tmp_path / "resized")
    other = peft.get_peft_model(larger, peft.LoraConfig(r=3, target_modules=["c_attn"], init_lora_weights=False)).eval()
    other.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(ValueError, match=r"of shape \[63, 24\], the base's has \[61, 24\]: the vocabulary was resized .* merge "
                                         "it with PEFT on the resized base"):
        load_adapter(make_base("gpt2"), tmp_path / "adapter")
    x = tokens("gpt2")
    with torch.inference_mode():
        expected = other(input_ids=x).logits
        ours = load_adapter(M.load_pretrained(tmp_path / "resized"), tmp_path / "adapter")       # the resized base as it was
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        other.merge_and_unload().save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(M.load_pretrained(tmp_path / "merged")(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, settings", [
    *((kind, settings) for kind in TARGETS for settings in ({"use_dora": True}, {"lora_bias": True},
                                                            {"init_lora_weights": "pissa"})),
    ("roberta", {"init_lora_weights": "olora"})])                            # PEFT has none for GPT-2's transposed layers
def test_what_is_to_be_merged_with_peft_loads_when_it_is(tmp_path, kind, settings):
    other, _ = saved(tmp_path / "adapter", kind, **settings)
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*: merge it with PEFT and load the merged model"):
        load_adapter(make_base(kind), tmp_path / "adapter")
    with torch.inference_mode():
        expected = other(**as_theirs(kind, tokens(kind))).logits
        other.merge_and_unload().save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(M.load_pretrained(tmp_path / "merged")(tokens(kind)), expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- which base

def write_base(folder, kind, *dtypes, seed=0, **config):
    """A model folder of random numbers, rounded to one format after the other and stored in the last."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_base(kind, seed)
    write_json({"model_type": kind, **vars(model.config), **config}, folder / "config.json")
    tensors = {file_name(name, type(model)): parameter.detach() for name, parameter in model.named_parameters()}
    for dtype in dtypes:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write_safetensors(tensors, folder / "model.safetensors")
    return folder


@EVERY
@pytest.mark.parametrize("method", ["lora", "bitfit"])
@pytest.mark.parametrize("trained_on, loaded_onto", [
    ([], [torch.bfloat16]), ([torch.bfloat16], []), ([], [torch.float16]), ([torch.float16], []),
    ([torch.float16], [torch.float16, torch.bfloat16])], ids=str)
def test_an_adapter_knows_its_base_in_a_coarser_format(tmp_path, kind, method, trained_on, loaded_onto):
    """Also after its biases were trained, and while the frozen weights are held in bf16."""
    model = M.load_pretrained(write_base(tmp_path / "base", kind, *trained_on))
    methods.apply_method(model, method, 3, alpha=7, bias="all")
    for parameter in methods.apply.trained_parameters(model).values():
        parameter.data.add_(0.1)
    hold_frozen_in(model, "bf16")
    methods.save_trained(model, tmp_path / "adapter", "base", "")
    methods.load_trained(M.load_pretrained(write_base(tmp_path / "again", kind, *loaded_onto)), tmp_path / "adapter")
    other = M.load_pretrained(write_base(tmp_path / "other", kind, *loaded_onto, seed=1))
    with pytest.raises(ValueError, match="the adapter was trained on base .*: load the weights that it was trained on"):
        methods.load_trained(other, tmp_path / "adapter")


def test_a_file_without_hashes_of_coarser_formats(tmp_path, capsys):
    """As this project wrote them once: on a base in bf16 nothing can be compared, which is said; in fp32 it is."""
    base = M.load_pretrained(write_base(tmp_path / "base", "gpt2", torch.float32))
    save_adapter(fill_B(L.add_lora(base, 3, 7)), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    header = file.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(file).items()}
    own = json.loads(json.loads(header[8:8 + int.from_bytes(header[:8], "little")])["__metadata__"]["lora_from_scratch"])
    del own["base_rounded"]
    write_safetensors(tensors, file, {"format": "pt", "lora_from_scratch": json.dumps(own)})
    load_adapter(make_base("gpt2"), tmp_path / "adapter")
    assert "not compared" not in capsys.readouterr().err
    load_adapter(M.load_pretrained(write_base(tmp_path / "bf16", "gpt2", torch.bfloat16)), tmp_path / "adapter")
    assert "has no hash of its base in bf16, in which this base is: not compared" in capsys.readouterr().err
    with pytest.raises(ValueError, match="was trained on base"):
        load_adapter(make_base("gpt2", seed=1), tmp_path / "adapter")


@pytest.mark.parametrize("named, folder, config, is_said", [
    ("openai-community/gpt2", "gpt2", {}, False), ("/home/a/gpt2/", "GPT2", {}, False), ("gpt2-medium", "gpt2", {}, True),
    ("gpt2", "mine", {"_name_or_path": "openai-community/gpt2"}, False), ("gpt2", "mine", {}, True), ("", "mine", {}, False),
    (None, "mine", {}, False), ("gpt2", "models--openai-community--gpt2/snapshots/0123", {}, False),
    ("/x/hub/models--a--my-base/snapshots/89ab", "my-base", {}, False)])
def test_the_bases_name_is_compared_and_a_line_says_where_it_differs(tmp_path, capsys, named, folder, config, is_said):
    other, _ = saved(tmp_path / "adapter", "gpt2")
    peft_config = read_json(tmp_path / "adapter" / "adapter_config.json")
    write_json(peft_config | {"base_model_name_or_path": named}, tmp_path / "adapter" / "adapter_config.json")
    model = M.load_pretrained(write_base(tmp_path / folder, "gpt2", torch.float32, **config))
    assert_same_logits(load_adapter(model, tmp_path / "adapter"), other, "gpt2")
    said = capsys.readouterr().err
    assert (f"was trained on a base named '{named}', this one is" in said) == is_said, said


def test_our_own_adapter_says_nothing_of_its_bases_name(tmp_path, capsys):
    """Its hash is of the numbers."""
    save_adapter(make_adapted("gpt2"), tmp_path / "adapter", base_name="something-else")
    load_adapter(M.load_pretrained(write_base(tmp_path / "base", "gpt2", torch.float32)), tmp_path / "adapter")
    assert "named" not in capsys.readouterr().err
