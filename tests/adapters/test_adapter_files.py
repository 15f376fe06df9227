"""adapters/ and export.py: files exchanged with PEFT, loralib, transformers and the authors' released files."""
import json
import re
import warnings

import pytest
import torch
from test_lora import BERT, EVERY, as_theirs, fill_B, make_adapted, make_base, theirs, tokens

import export
import lora as L
import model as M
from adapters import saving as S
from adapters.loralib import loralib_tensors
from files import weights as W
from files.text import read_json, write_json
from training.recipes import alpha_for_file

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def peft_model(kind, **settings):
    """transformers' model with a PEFT adapter whose B, biases and head are not as they started."""
    options = {"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM" if kind == "gpt2" else "SEQ_CLS",
               "fan_in_fan_out": kind == "gpt2"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                      # bias: PEFT warns that the base changes
        model = peft.get_peft_model(theirs(kind), peft.LoraConfig(**options | settings))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    return model.eval()


def assert_same_logits(ours, other, kind):
    x = tokens(kind)
    with torch.inference_mode():
        expected = other(**as_theirs(kind, x)).logits
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        assert (expected - make_base(kind)(x)).abs().max() > 1e-2            # the adapter does something


# ---------------------------------------------------------------- PEFT

@pytest.mark.parametrize("kind, targets, bias", [
    ("roberta", ("q", "v"), "none"), ("roberta", ("q", "o", "proj"), "lora-only"), ("roberta", ("q", "k", "fc"), "all"),
    ("gpt2", ("q", "v"), "none"), ("gpt2", ("qkv", "fc"), "none"), ("gpt2", ("q", "v", "o"), "lora-only"),
    ("gpt2", ("k", "proj"), "all"), ("bert", ("q", "v"), "none"), ("bert", ("q", "o", "proj"), "lora-only"),
    ("bert", ("q", "k", "fc"), "all")])
def test_peft_reads_ours_without_a_warning(tmp_path, kind, targets, bias):
    ours = make_adapted(kind, targets, bias=bias)
    with torch.no_grad():
        for name in S.adapter_of(ours).others:
            ours.get_parameter(name).add_(0.1)
    S.save_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        other = peft.PeftModel.from_pretrained(theirs(kind), tmp_path).eval()
    assert_same_logits(ours, other, kind)
    again = S.load_adapter(make_base(kind), tmp_path)
    assert L.lora_settings(again) == L.lora_settings(ours)
    with torch.inference_mode():
        assert torch.equal(again(tokens(kind)), ours(tokens(kind)))


@pytest.mark.parametrize("kind, settings, targets", [
    ("roberta", {"target_modules": ["query", "value"]}, ("q", "v")),
    ("roberta", {"target_modules": ["query", "dense"], "exclude_modules": ["classifier.dense"]}, ("q", "o", "fc", "proj")),
    ("roberta", {"target_modules": ["key"], "bias": "lora_only"}, ("k",)),
    ("roberta", {"target_modules": ["key"], "bias": "all"}, ("k",)),
    ("roberta", {"target_modules": ["query", "value"], "use_rslora": True, "lora_dropout": 0.25}, ("q", "v")),
    ("roberta", {"target_modules": ["query", "value"], "rank_pattern": {"value": 5}, "alpha_pattern": {"layer.1.*value": 4}},
     ("q", "v")),
    ("roberta", {"target_modules": ["query", "value"], "layers_to_transform": [1]}, ("q", "v")),
    ("bert", {"target_modules": ["query", "value"]}, ("q", "v")),
    ("bert", {"target_modules": ["query", "value"], "modules_to_save": ["pooler", "classifier"]}, ("q", "v")),
    ("bert", {"target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]}, ("q", "o", "fc", "proj")),
    ("bert", {"target_modules": ["key"], "bias": "all"}, ("k",)),
    ("gpt2", {"target_modules": ["c_attn"]}, ("qkv",)),
    ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "alpha_pattern": {"c_attn": 2}}, ("proj", "qkv")),
    ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "init_lora_weights": "gaussian"}, ("qkv",))])
def test_ours_reads_peft(tmp_path, kind, settings, targets):
    other = peft_model(kind, **settings)
    other.save_pretrained(tmp_path)
    ours = S.load_adapter(make_base(kind), tmp_path)
    assert sorted(L.lora_settings(ours).targets) == sorted(targets)
    assert L.lora_settings(ours).dropout == settings.get("lora_dropout", 0.0)
    assert_same_logits(ours, other, kind)
    S.save_adapter(ours, tmp_path / "back")                                  # and back once more
    assert_same_logits(ours, peft.PeftModel.from_pretrained(theirs(kind), tmp_path / "back").eval(), kind)


def test_gpt2s_q_and_v_are_one_update_of_twice_the_rank(tmp_path):
    S.save_adapter(make_adapted("gpt2"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (6, 14, ["attn.c_attn"])
    B = W.read_safetensors(tmp_path / "adapter_model.safetensors")["base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"]
    assert B.shape == (72, 6) and not B[24:48].any() and not B[:24, 3:].any() and not B[48:, :3].any()


@pytest.mark.parametrize("settings, message", [
    ({"use_dora": True}, "use_dora is True, which this project does not compute"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"), ({"lora_bias": True}, "lora_bias is True"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"), ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"modules_to_save": ["embeddings"]}, "modules_to_save of adapter_config.json names 'embeddings', which the file"),
    ({"a_new_variant": True}, "a_new_variant is True"),
    ({"r": 4}, "expected rank 4 by r and rank_pattern of adapter_config.json")])
def test_what_peft_computes_otherwise_is_refused(tmp_path, settings, message):
    peft_model("roberta", target_modules=["query", "value"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message) as refusal:
        S.load_adapter(make_base("roberta"), tmp_path)
    assert "\n" not in str(refusal.value)


def test_an_adapter_without_a_head_or_with_more_than_lora_is_refused(tmp_path):
    other = peft.get_peft_model(theirs("roberta"), peft.LoraConfig(r=3, lora_alpha=7, target_modules=["query"]))
    other.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="holds no task head"):
        S.load_adapter(make_base("roberta"), tmp_path / "headless")
    peft_model("gpt2", target_modules=["wte"]).save_pretrained(tmp_path / "embedding")
    with pytest.raises(ValueError, match="holds 'base_model.model.transformer.wte.lora_embedding_A', which no LoRA"):
        S.load_adapter(make_base("gpt2"), tmp_path / "embedding")


# ---------------------------------------------------------------- loralib

def loralib_model(kind, targets, rank=3, alpha=7):
    """Our base with loralib's layers for the targets, at random; GPT-2: one MergedLinear for those of q, k, v."""
    loralib = pytest.importorskip("loralib")
    model, generator = make_base(kind).requires_grad_(False), torch.Generator().manual_seed(3)
    for block in model.get_submodule(model.config.blocks):
        for path, (d_out, d_in), _ in {target.path: target for target in map(model.config.targets.get, targets)}.values():
            holder, _, child = path.rpartition(".")
            old = block.get_submodule(path)
            options = {"r": rank, "lora_alpha": alpha, "fan_in_fan_out": kind == "gpt2", "merge_weights": False}
            if path == "attn.c_attn" and "qkv" not in targets:
                layer = loralib.MergedLinear(d_in, d_out, enable_lora=[part in targets for part in "qkv"], **options)
            else:
                layer = loralib.Linear(d_in, d_out, **options)
            with torch.no_grad():
                layer.weight.copy_(old.weight)
                layer.bias.copy_(old.bias)
                layer.lora_B.normal_(0, 0.3, generator=generator)
            setattr(block.get_submodule(holder), child, layer)
    return model.eval()


LORALIB = pytest.mark.parametrize("kind, targets", [
    ("roberta", ("q", "v")), ("roberta", ("k", "o", "proj")), ("gpt2", ("q", "v")), ("gpt2", ("q", "k", "v", "fc")),
    ("gpt2", ("qkv", "o")), ("gpt2", ("k",)), ("gpt2", ("k", "v"))])


@LORALIB
def test_ours_reads_loralib(tmp_path, kind, targets, capsys):
    import loralib
    other, file = loralib_model(kind, targets), tmp_path / "lora.pt"
    head = {name: tensor for name, tensor in other.state_dict().items() if name.startswith("classifier.")}
    torch.save({"module." + name: tensor for name, tensor in (loralib.lora_state_dict(other) | head).items()}, file)
    with pytest.raises(ValueError, match="holds no alpha" if targets != ("k",) or kind == "roberta" else "does not tell which"):
        S.load_adapter(make_base(kind), file)
    ours = S.load_adapter(make_base(kind), file, alpha=7, targets=targets if targets in (("k",), ("k", "v")) else None)
    if targets == ("q", "v") and kind == "gpt2":
        assert "as those of q and v" in capsys.readouterr().err
    x = tokens(kind)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), other(x), atol=1e-5, rtol=1e-5)
        assert (other(x) - make_base(kind)(x)).abs().max() > 1e-2


@LORALIB
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loralib_reads_ours(tmp_path, kind, targets, suffix):
    ours, other = make_adapted(kind, targets), loralib_model(kind, targets)
    export.export_loralib(ours, tmp_path / f"lora{suffix}")
    stored = (W.read_pickle if suffix == ".pt" else W.read_safetensors)(tmp_path / f"lora{suffix}")
    missing, unexpected = other.load_state_dict(stored, strict=False)
    assert not unexpected and not any("lora_" in name for name in missing)
    x = tokens(kind)
    with torch.inference_mode():
        torch.testing.assert_close(other(x), ours(x), atol=1e-5, rtol=1e-5)


def test_biases_of_loralib(tmp_path):
    import loralib
    for bias, ours in (("lora_only", "lora-only"), ("all", "all")):
        other = loralib_model("gpt2", ("q", "v"))
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if name.endswith("c_attn.bias") or bias == "all" and name.endswith(".bias"):
                    parameter.add_(0.3)
        torch.save({"model_state_dict": loralib.lora_state_dict(other, bias=bias)}, tmp_path / "lora.pt")
        loaded = S.load_adapter(make_base("gpt2"), tmp_path / "lora.pt", alpha=7)
        assert L.lora_settings(loaded).bias == ours
        with torch.inference_mode():
            torch.testing.assert_close(loaded(tokens("gpt2")), other(tokens("gpt2")), atol=1e-5, rtol=1e-5)


def test_a_damaged_state_dict_is_refused(tmp_path):
    whole, file = loralib_tensors(S.adapter_of(make_adapted("gpt2"))), tmp_path / "lora.pt"
    first = "transformer.h.0.attn.c_attn.lora_"
    for change, message in (
            (lambda t: t.pop(first + "A"), "stands without its other half"),
            (lambda t: (t.pop(first + "A"), t.pop(first + "B")), "h.0.attn.c_attn' has no update"),
            (lambda t: t.update({first + "A": t[first + "A"][:, :-1]}), r"has shape \[6, 23\], this base needs \[rank, 24\]"),
            (lambda t: t.update({first + "B": t[first + "B"][:-1]}), r"has shape \[47, 3\], this base needs 48 rows"),
            (lambda t: t.update({first + "A": t[first + "A"][:5]}), "share no rank"),
            (lambda t: t.update({"transformer.wte.weight": torch.zeros(2)}),
             r"wte.weight' of shape \[2\], the base's has \[61, 24\]"),
            (lambda t: t.clear(), "no LoRA matrices")):
        tensors = dict(whole)
        change(tensors)
        torch.save(tensors, file)
        with pytest.raises(ValueError, match=message) as refusal:
            S.load_adapter(make_base("gpt2"), file, alpha=7)
        assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError, match="no such adapter"):
        S.load_adapter(make_base("gpt2"), tmp_path / "nothing", alpha=7)


# ---------------------------------------------------------------- the authors' files

RELEASED = {"gpt2_md_lora_e2e.pt": (4, 32, None), "roberta_base_lora_mnli.bin": (8, 16, 3),
            "roberta_base_lora_mrpc.bin": (8, 16, 2), "roberta_base_lora_cola.bin": (8, 16, 2)}


def random_base(config):
    """A base of real width and depth; the blocks are copies of one, and the vocabulary, which no adapter touches, is small."""
    with torch.device("meta"):
        model = M.GPT2(config) if isinstance(config, M.GPT2Config) else M.RobertaClassifier(config)
    generator, first, tensors = torch.Generator().manual_seed(0), {}, {}
    for name, parameter in model.named_parameters():
        kind = re.sub(r"\.\d+\.", ".0.", name)
        if kind not in first:
            mean = 1.0 if "ln_" in name or "LayerNorm" in name else 0.0
            first[kind] = torch.empty(parameter.shape).normal_(mean, 0.02, generator=generator)
        tensors[name] = first[kind].clone()
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", RELEASED)
def test_released_adapters_load_merge_and_unmerge_exactly(shared, name):
    file, (rank, alpha, labels) = shared / "data" / "checkpoints" / name, RELEASED[name]
    model = random_base(M.RobertaConfig(vocab_size=50, num_labels=labels) if labels else
                        M.GPT2Config(vocab_size=50, n_embd=1024, n_layer=24, n_head=16))
    x = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = model(x)
    with pytest.raises(ValueError, match="holds no alpha"):
        S.load_adapter(model, file)
    S.load_adapter(model, file, alpha=alpha)
    assert (L.lora_settings(model).rank, L.lora_settings(model).targets) == (rank, ("q", "v"))
    stored = torch.load(file, map_location="cpu", weights_only=True)
    first = next(name for name in stored if "lora_B" in name)
    layer = model.get_submodule(first.removeprefix("module.").removesuffix(".lora_B"))
    assert torch.equal(torch.cat(list(layer.lora_B.values())), stored[first])
    if labels:
        assert torch.equal(model.classifier.out_proj.weight, stored["classifier.out_proj.weight"])
    before = {name: layer.weight.clone() for name, layer in L.lora_layers(model).items()}
    with torch.inference_mode():
        adapted = model(x)
        assert (adapted - plain).abs().max() > 1e-2
        torch.testing.assert_close(L.merge(model)(x), adapted, atol=1e-4, rtol=1e-4)
        L.unmerge(model)
        assert all(torch.equal(layer.weight, before[name]) for name, layer in L.lora_layers(model).items())
        assert torch.equal(model(x), adapted)


@pytest.mark.parametrize("name, base, message", [
    ("gpt2_md_lora_e2e.pt", M.GPT2Config(), "which is no linear layer of the 12 blocks|needs \\[rank, 768\\]"),
    ("gpt2_md_lora_e2e.pt", M.RobertaConfig(), "which is no linear layer of the 12 blocks"),
    ("roberta_base_lora_mnli.bin", M.RobertaConfig(num_labels=2), "head has 3 labels, this model's 2"),
    ("roberta_base_lora_mrpc.bin", M.RobertaConfig(num_hidden_layers=24), "layer.12.attention.self.query' has no update"),
    ("roberta_base_lora_cola.bin", M.RobertaConfig(hidden_size=1024, num_attention_heads=16), "needs \\[rank, 1024\\]")])
def test_released_adapters_refuse_a_wrong_base(shared, name, base, message):
    with torch.device("meta"):
        model = M.GPT2(base) if isinstance(base, M.GPT2Config) else M.RobertaClassifier(base)
    with pytest.raises(ValueError, match=message) as refusal:
        S.load_adapter(model, shared / "data" / "checkpoints" / name, alpha=16)
    assert "\n" not in str(refusal.value)


def test_the_alpha_of_a_released_file_is_never_guessed(shared, tmp_path, capsys):
    """GPT-2: paper and scripts agree, which is said. RoBERTa: they do not, so it must be given."""
    folder = shared / "data" / "checkpoints"
    assert alpha_for_file(folder / "gpt2_md_lora_e2e.pt", M.GPT2Config(), "e2e") == 32
    assert "32 is taken from the recipe 'paper' (LoRA paper, Table 11)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the paper has 8, the authors' scripts 16: give --alpha"):
        alpha_for_file(folder / "roberta_base_lora_mnli.bin", M.RobertaConfig(), "mnli")
    assert alpha_for_file(folder / "roberta_base_lora_mnli.bin", M.RobertaConfig(), "mnli", "repo") == 16
    assert alpha_for_file(tmp_path, M.RobertaConfig(), "mnli") is None


# ---------------------------------------------------------------- export

def bert_folder(folder):
    """A random BERT's, with a tokenizer; without model_type, as the first had none."""
    folder.mkdir()
    write_json(BERT, folder / "config.json")
    W.write_safetensors(dict(theirs("bert").bert.state_dict()), folder / "model.safetensors")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", *(f"##{number}" for number in range(63))]
    tokens[BERT["sep_token_id"]] = "[SEP]"
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


@EVERY
def test_a_merged_export_is_a_model_of_transformers(repository, tmp_path, kind):
    """The toy bases, from their folder to a merged folder, with three labels where the base's config.json has two."""
    source = bert_folder(tmp_path / "bert") if kind == "bert" else repository / "toy" / kind
    tmp_path = tmp_path / "merged"
    model = M.load_pretrained(source, num_labels=None if kind == "gpt2" else 3)
    fill_B(L.add_lora(model, 3, 7, ("q", "v", "o", "proj")))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    export.export_merged(model, tmp_path, source)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    build = transformers.AutoModelForCausalLM if kind == "gpt2" else transformers.AutoModelForSequenceClassification
    other, report = build.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    x = tokens(kind, (3, 20))
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(other.eval()(**as_theirs(kind, x)).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(M.load_pretrained(tmp_path)(x), expected, atol=1e-4, rtol=1e-4)
    ours, tokenizer = M.load_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size <= ours.config.vocab_size


def test_an_export_that_fails_leaves_the_model_unmerged(repository, tmp_path, monkeypatch):
    model = fill_B(L.add_lora(make_base("gpt2"), 3, 7))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def full_disk(*_, **options):
        raise OSError("no space left on device")
    monkeypatch.setattr(export, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export.export_merged(model, tmp_path, repository / "toy" / "gpt2")
    assert not any(layer.merged for layer in L.lora_layers(model).values())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_the_export_command_writes_every_format(repository, tmp_path, capsys):
    source = repository / "toy" / "gpt2"
    model = fill_B(L.add_lora(M.load_pretrained(source), 3, 7))
    S.save_adapter(model, tmp_path / "ours", task="e2e")
    common = ["--model", str(source), "--adapter"]
    assert export.main([*common, str(tmp_path / "ours"), "--out", str(tmp_path / "lora.pt"), "--format", "loralib"]) == 0
    assert export.main([*common, str(tmp_path / "lora.pt"), "--alpha", "7", "--out", str(tmp_path / "peft"), "--format",
                        "peft"]) == 0
    assert export.main([*common, str(tmp_path / "peft"), "--out", str(tmp_path / "merged")]) == 0
    assert "rank 3, alpha 7" in capsys.readouterr().out
    x = tokens("gpt2", (3, 20))
    with torch.inference_mode():
        torch.testing.assert_close(M.load_pretrained(tmp_path / "merged")(x), model(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="is the base's own folder"):
        export.export_merged(model, source, source)


@pytest.mark.parametrize("kind, key", [("gpt2", "dtype"), ("roberta", "torch_dtype")])
def test_an_export_from_a_base_in_bf16_is_fp32_and_says_so(tmp_path, kind, key):
    """A base as transformers 5 and 4 write it in bf16: what its config.json says of the numbers is not true of the merged ones,
    and transformers would round them to it."""
    theirs(kind).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dtype"', f'"{key}"'), encoding="utf-8")
    (tmp_path / "base" / "generation_config.json").write_text('{"max_new_tokens": 7}', encoding="utf-8")
    model = fill_B(L.add_lora(M.load_pretrained(tmp_path / "base"), 3, 7))
    S.save_adapter(model, tmp_path / "adapter")
    assert export.main(["--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--out",
                        str(tmp_path / "out")]) == 0
    said = read_json(tmp_path / "out" / "config.json")
    assert said["dtype"] == said["torch_dtype"] == "float32" and "bfloat16" not in str(said)
    assert said["model_type"] == kind and read_json(tmp_path / "out" / "generation_config.json") == {"max_new_tokens": 7}
    build = transformers.AutoModelForCausalLM if kind == "gpt2" else transformers.AutoModelForSequenceClassification
    other = build.from_pretrained(tmp_path / "out").eval()
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    x = tokens(kind, (3, 20))
    with torch.inference_mode():
        torch.testing.assert_close(other(input_ids=x).logits, model(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(M.load_pretrained(tmp_path / "out")(x), L.merge(model)(x))


def test_weights_held_in_bf16_are_not_merged_into_an_export(tmp_path):
    model = fill_B(L.add_lora(make_base("gpt2"), 3, 7))
    model.transformer.wte.to(torch.bfloat16)
    with pytest.raises(ValueError, match="held in bf16, in which merging rounds the update: load the base again"):
        export.export_merged(model, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("task, names, problem", [
    ("mnli", ["entailment", "neutral", "contradiction"], "single_label_classification"), ("stsb", ["score"], "regression"),
    ("", ["yes", "no", "perhaps"], None), ("", ["LABEL_0", "LABEL_1"], None)])
def test_an_export_names_its_classes(tmp_path, task, names, problem):
    """By the task; where the adapter knows none, as the base does if it has as many; transformers takes them over."""
    theirs("roberta").save_pretrained(tmp_path / "base")
    content = read_json(tmp_path / "base" / "config.json") | {
        "id2label": {"2": "perhaps", "1": "no", "0": "yes"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}, "num_labels": 3}
    write_json(content, tmp_path / "base" / "config.json")
    model = fill_B(L.add_lora(make_base("roberta", num_labels=len(names)), 3, 7))
    export.export_merged(model, tmp_path / "out", tmp_path / "base", task)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert other.config.id2label == dict(enumerate(names)) and other.config.num_labels == len(names)
    assert other.config.label2id == {name: number for number, name in enumerate(names)}
    assert other.config.problem_type == problem and read_json(tmp_path / "out" / "config.json")["num_labels"] == len(names)
    x = tokens("roberta", (3, 20))
    with torch.inference_mode():
        torch.testing.assert_close(other(input_ids=x).logits, model(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(M.load_pretrained(tmp_path / "out")(x), model(x), atol=1e-5, rtol=1e-5)


def test_an_export_replaces_nothing_unasked(repository, tmp_path, monkeypatch):
    model = fill_B(L.add_lora(M.load_pretrained(repository / "toy" / "gpt2"), 3, 7))
    S.save_adapter(model, tmp_path / "adapter")
    out, source = tmp_path / "out", ["--model", str(repository / "toy" / "gpt2"), "--adapter", str(tmp_path / "adapter")]

    def run(*options, place=out):
        return export.main([*source, "--out", str(place), *options])
    out.mkdir()                                                              # an empty folder is no export
    assert run("--format", "peft") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=f"^{re.escape(str(out))} exists already: give --overwrite to replace it, or another"):
        run()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run("--overwrite") == 0 and not (out / "adapter_config.json").exists()            # PEFT would add it once more
    for place, options, message in [
            (out, ["--format", "loralib"], "is a folder, this format is written to a file"),
            (tmp_path / "adapter", [], "is where the base or the adapter comes from"),
            (tmp_path, [], "is where the base or the adapter comes from"),
            (tmp_path / "adapter" / "adapter_model.safetensors", ["--format", "loralib"], "is where the base or the adapter"),
            (tmp_path / "adapter" / "lora.pt", ["--format", "loralib"], "is where the base or the adapter comes from")]:
        with pytest.raises(ValueError, match=message):
            run("--overwrite", *options, place=place)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds 'notes.txt', which no export writes"):
        run("--overwrite")
    assert (out / "model.safetensors").exists() and (tmp_path / "adapter" / "adapter_config.json").exists()
    assert run("--format", "loralib", place=tmp_path / "lora.pt") == 0
    with pytest.raises(ValueError, match="lora.pt exists already: give --overwrite"):
        run("--format", "loralib", place=tmp_path / "lora.pt")
    assert run("--format", "loralib", "--overwrite", place=tmp_path / "lora.pt") == 0


def test_modules_that_transformers_lacks_are_not_exported(tmp_path):
    from methods import apply_method
    model = make_base("gpt2")
    apply_method(model, "adapter-h", rank=2)
    with pytest.raises(ValueError, match="which no transformers model has"):
        export.export_merged(model, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
