"""model.py against transformers: the same files, the same logits; and what it says of files that do not fit."""
import json
import re
import shutil

import pytest
import torch

import model as M
from files import weights as W
from files.pretrained import file_name
from files.published import find_model

transformers = pytest.importorskip("transformers")


def shake(reference, seed=0):
    """Make every bias and LayerNorm weight matter: transformers starts them at 0 and 1."""
    drawn = torch.empty(1_000_003).normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))       # a prime: over
    with torch.no_grad():                                                    # and over again, it makes no two rows alike
        for number, parameter in enumerate(reference.parameters()):
            shifted = drawn.roll(number)
            for part in parameter.view(-1).split(len(drawn)):
                part.add_(shifted[:len(part)])
    return reference.eval()


def gpt2_reference(**overrides):
    torch.manual_seed(1)
    return shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(**overrides)))


def roberta_reference(labels=3, **overrides):
    torch.manual_seed(1)
    settings = {"vocab_size": 50265, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, "type_vocab_size": 1,
                "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": labels} | overrides
    return shake(transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**settings)))


def bert_reference(labels=3, kind="BertForSequenceClassification", **overrides):
    torch.manual_seed(1)
    return shake(getattr(transformers, kind)(transformers.BertConfig(**ODD_BERT | {"num_labels": labels} | overrides)))


ODD_GPT2 = {"vocab_size": 97, "n_positions": 40, "n_embd": 36, "n_layer": 3, "n_head": 3, "n_inner": 50}
ODD_ROBERTA = {"vocab_size": 101, "max_position_embeddings": 44, "hidden_size": 48, "num_hidden_layers": 3,
               "num_attention_heads": 4, "intermediate_size": 70}
ODD_BERT = {"vocab_size": 101, "max_position_embeddings": 40, "hidden_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "intermediate_size": 70, "sep_token_id": 7}
MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}


def padded_batch(vocab_size, lengths, pad_id, seed=0):
    """(B, T) tokens padded on the right and the mask; the padding id does not occur inside."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.full((len(lengths), max(lengths)), pad_id)
    mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(5, vocab_size, (length,), generator=generator)
        mask[row, :length] = 1
    return input_ids, mask


@pytest.mark.parametrize("overrides", [{}, MEDIUM, ODD_GPT2, ODD_GPT2 | {"n_head": 6, "n_inner": None}],
                         ids=["gpt2", "gpt2-medium", "odd", "odd-6-heads"])
def test_gpt2_logits_equal_transformers(tmp_path, overrides):
    reference = gpt2_reference(**overrides)
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path)
    input_ids, mask = padded_batch(reference.config.vocab_size, (19, 7, 13), pad_id=0)
    with torch.inference_mode():
        expected = reference(input_ids, attention_mask=mask).logits
        padded, alone = ours(input_ids, attention_mask=mask), ours(input_ids[1:2, :7])
    assert (padded - expected)[mask.bool()].abs().max() < 1e-4
    assert (alone - expected[1:2, :7]).abs().max() < 1e-4
    assert expected[mask.bool()].std() > 0.1                                # the comparison is not between zeros


@pytest.mark.parametrize("overrides", [{}, ODD_ROBERTA, ODD_ROBERTA | {"pad_token_id": 4, "num_attention_heads": 6}],
                         ids=["roberta-base", "odd", "odd-padding-id"])
def test_roberta_logits_equal_transformers(tmp_path, overrides):
    reference = roberta_reference(**overrides)
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path)
    input_ids, mask = padded_batch(reference.config.vocab_size, (11, 23, 5), pad_id=reference.config.pad_token_id)
    with torch.inference_mode():
        expected = reference(input_ids, attention_mask=mask).logits
        assert (ours(input_ids, attention_mask=mask) - expected).abs().max() < 1e-4
        assert (ours(input_ids[2:, :5]) - expected[2:]).abs().max() < 1e-4
        hidden = reference.roberta(input_ids, attention_mask=mask).last_hidden_state
        assert (ours.hidden_states(input_ids, M.Padded(input_ids, mask)) - hidden)[mask.bool()].abs().max() < 1e-4
    assert ours.config.num_labels == 3 and expected.std(dim=0).min() > 1e-3


def paired_batch(pad_id):
    """Two pairs, the first with a third [SEP], and a text alone: ids, mask, and the types that the tokenizer would give."""
    input_ids, mask = padded_batch(101, (11, 23, 5), pad_id)
    input_ids[input_ids == 7] = 8
    input_ids[0, 4] = input_ids[0, 7] = input_ids[0, 10] = input_ids[1, 9] = input_ids[1, 22] = input_ids[2, 4] = 7
    types = torch.zeros_like(input_ids)
    types[0, 5:11], types[1, 10:23] = 1, 1
    return input_ids, mask, types


@pytest.mark.parametrize("overrides", [{}, {"pad_token_id": 4, "num_attention_heads": 6}, {"type_vocab_size": 1}],
                         ids=["odd", "odd-padding-id", "one-type"])
def test_bert_logits_equal_transformers(tmp_path, overrides):
    """Padding, pairs and a text alone; the types are given to transformers, and found by ours."""
    reference = bert_reference(**overrides)
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path)
    input_ids, mask, types = paired_batch(reference.config.pad_token_id)
    types = types * (reference.config.type_vocab_size - 1)
    with torch.inference_mode():
        expected = reference(input_ids, attention_mask=mask, token_type_ids=types).logits
        assert (ours(input_ids, attention_mask=mask) - expected).abs().max() < 1e-4
        assert (ours(input_ids[:1, :11]) - expected[:1]).abs().max() < 1e-4
        hidden = reference.bert(input_ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        assert (ours.hidden_states(input_ids, M.Padded(input_ids, mask)) - hidden)[mask.bool()].abs().max() < 1e-4
        untyped = reference(input_ids, attention_mask=mask).logits
    assert expected.std(dim=0).min() > 1e-3 and (untyped - expected).abs().max() > (1e-2 if types.any() else -1)


def test_berts_gradients_equal_transformers(tmp_path):
    """Every parameter's, the pooler and the types of tokens among them."""
    reference = bert_reference(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path).train()
    input_ids, mask, types = paired_batch(0)
    reference(input_ids, attention_mask=mask, token_type_ids=types).logits.square().mean().backward()
    ours(input_ids, mask).square().mean().backward()
    found = {file_name(name, M.BertClassifier): parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found.pop(name), parameter.grad, atol=1e-5, rtol=1e-4)
    assert not found


@pytest.mark.parametrize("kind, prefix, options, said", [
    ("BertModel", "bert.", {}, "the file's pooler, and a fresh layer behind it for 2 labels, seed 5"),
    ("BertModel", "", {}, "the file's pooler, and a fresh layer behind it for 2 labels, seed 5"),
    ("BertModel", "", {"add_pooling_layer": False}, "fresh head for 2 labels, seed 5"),
    ("BertForPreTraining", "", {}, "the file's pooler, and a fresh layer behind it for 2 labels, seed 5"),
    ("BertForMaskedLM", "", {}, "fresh head for 2 labels, seed 5"),
    ("BertForSequenceClassification", "", {}, "has 3 labels, expected 2, dropped: the file's pooler, and a fresh layer")],
    ids=["prefixed", "bare", "without-pooler", "pretraining", "masked", "another-head"])
def test_a_bert_file_of_every_kind_loads(tmp_path, capsys, kind, prefix, options, said):
    """With position_ids, what is for pretraining, gamma and beta; and the first BERTs' config.json, without model_type."""
    torch.manual_seed(1)
    reference = shake(getattr(transformers, kind)(transformers.BertConfig(**ODD_BERT, num_labels=3), **options))
    state = {prefix + re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("LayerNorm.bias$", "LayerNorm.beta", name)): tensor
             for name, tensor in reference.state_dict().items()}
    state[f"{prefix or ('' if kind == 'BertModel' else 'bert.')}embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(ODD_BERT | {
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "type_vocab_size": 2, "initializer_range": 0.02}))
    ours, err = M.load_pretrained(tmp_path, num_labels=2, seed=5), capsys.readouterr().err
    assert said in err and "no model_type; taken for a bert" in err
    assert ours.config.layer_norm_eps == 1e-12 and ours.config.pad_token_id == 0
    input_ids, mask, types = paired_batch(0)
    body = getattr(reference, "bert", reference)
    with torch.inference_mode():
        expected = body(input_ids, attention_mask=mask, token_type_ids=types)
        found = ours.hidden_states(input_ids, M.Padded(input_ids, mask))
        assert (found - expected.last_hidden_state)[mask.bool()].abs().max() < 1e-4
        if "pooler" in said:
            assert torch.equal(ours.classifier.dense.weight, body.pooler.dense.weight)
    assert ours.classifier.out_proj.weight.shape == (2, 48) and ours.classifier.out_proj.weight.std() < 0.05


def test_the_token_between_the_texts_is_the_tokenizers(tmp_path, capsys):
    """config.json's, else [SEP]'s line in vocab.txt, else 102, where there are so many tokens, with a line that says so."""
    bert_reference(sep_token_id=None).save_pretrained(tmp_path)
    assert M.load_pretrained(tmp_path).config.sep_token_id == 102 and "is taken for the [SEP]" not in capsys.readouterr().err
    tokens = ["[PAD]", "[UNK]", "[CLS]", "a", "b", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    assert M.load_pretrained(tmp_path).config.sep_token_id == 5
    bert_reference(sep_token_id=None, vocab_size=200).save_pretrained(tmp_path / "more")
    assert M.load_pretrained(tmp_path / "more").config.sep_token_id == 102
    assert "no tokenizer; the token 102 is taken for the [SEP] that ends the first text" in capsys.readouterr().err


@pytest.mark.parametrize("key, value", [("hidden_act", "gelu_new"), ("hidden_act", "relu"), ("is_decoder", True),
                                        ("position_embedding_type", "relative_key"), ("classifier_dropout", 0.2)])
def test_a_bert_that_computes_otherwise_is_refused_by_name(tmp_path, key, value):
    bert_reference().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{key} is {value!r}, this model computes"):
        M.load_pretrained(tmp_path)


def test_training_mode_gradients_equal_transformers(tmp_path):
    """With dropout off, the backward pass too: every parameter's gradient."""
    reference = gpt2_reference(**ODD_GPT2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path).train()
    input_ids, _ = padded_batch(97, (12, 12), pad_id=0)
    reference(input_ids).logits.square().mean().backward()
    ours(input_ids).square().mean().backward()
    for name, parameter in reference.named_parameters():
        if name != "lm_head.weight":
            torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_dropout_comes_from_the_config_and_can_be_switched_off(tmp_path):
    gpt2_reference(**ODD_GPT2, embd_pdrop=0.3).save_pretrained(tmp_path)
    input_ids, _ = padded_batch(97, (9, 9), pad_id=0)
    as_configured, without = M.load_pretrained(tmp_path).train(), M.load_pretrained(tmp_path, dropout=0.0).train()
    assert as_configured.config.embd_pdrop == 0.3 and as_configured.config.attn_pdrop == 0.1
    assert not torch.equal(as_configured(input_ids), as_configured(input_ids))
    assert torch.equal(without(input_ids), without(input_ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_as_fp32(tmp_path, dtype):
    reference = gpt2_reference(**ODD_GPT2).to(dtype)
    reference.save_pretrained(tmp_path)
    ours = M.load_pretrained(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    assert ours.get_parameter(name).dtype == torch.float32
    assert torch.equal(ours.get_parameter(name), reference.get_parameter(name).float())


def test_every_file_form_loads_the_same(tmp_path):
    """One safetensors file, shards, a zipped and an old pickle; with the prefix and without, with extra buffers."""
    reference = roberta_reference(**ODD_ROBERTA)
    reference.save_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    bare = {name.removeprefix("roberta."): tensor for name, tensor in reference.state_dict().items()}
    bare["embeddings.position_ids"] = torch.arange(44)[None]
    bare["pooler.dense.weight"], bare["lm_head.bias"] = torch.ones(48, 48), torch.ones(101)
    for form, zipped in (("zip", True), ("legacy", False)):
        (tmp_path / form).mkdir()
        shutil.copy(tmp_path / "whole" / "config.json", tmp_path / form)
        torch.save(bare, tmp_path / form / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    whole = M.load_pretrained(tmp_path / "whole").state_dict()
    for form in ("shards", "zip", "legacy"):
        other = M.load_pretrained(tmp_path / form).state_dict()
        assert whole.keys() == other.keys() and all(torch.equal(whole[name], other[name]) for name in whole)


def test_old_gpt2_files_with_buffers_and_head_load(tmp_path):
    reference = gpt2_reference(**ODD_GPT2)
    reference.save_pretrained(tmp_path)
    state = {name.removeprefix("transformer."): tensor.clone() for name, tensor in reference.state_dict().items()}
    for layer in range(3):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool)
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    W.write_safetensors(state, tmp_path / "model.safetensors")
    ours = M.load_pretrained(tmp_path)
    assert torch.equal(ours.transformer.wte.weight, reference.transformer.wte.weight)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    W.write_safetensors(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="only tied heads load"):
        M.load_pretrained(tmp_path)


def test_our_safetensors_are_read_by_the_library_and_back(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "scalar": torch.tensor(4), "none": torch.empty(0, 3)}
    W.write_safetensors(tensors, tmp_path / "ours.safetensors", metadata={"task": "e2e"})
    library.save_file(tensors, tmp_path / "theirs.safetensors")
    for read in (library.load_file(tmp_path / "ours.safetensors"), W.read_safetensors(tmp_path / "ours.safetensors"),
                 W.read_safetensors(tmp_path / "theirs.safetensors")):
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)


def test_loaded_weights_are_mapped_and_writing_to_them_leaves_the_file_alone(tmp_path):
    gpt2_reference(**ODD_GPT2).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    ours = M.load_pretrained(tmp_path)
    with torch.no_grad():
        ours.transformer.wte.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_directory_without_classifier_gets_a_seeded_head_and_says_so(tmp_path, capsys):
    reference = roberta_reference(**ODD_ROBERTA)
    transformers.RobertaForMaskedLM(reference.config).save_pretrained(tmp_path)
    first, again, other = (M.load_pretrained(tmp_path, num_labels=5, seed=seed) for seed in (3, 3, 4))
    assert "fresh head for 5 labels, seed 3" in capsys.readouterr().err
    assert first.classifier.out_proj.weight.shape == (5, 48)
    assert torch.equal(first.classifier.dense.weight, again.classifier.dense.weight)
    assert not torch.equal(first.classifier.dense.weight, other.classifier.dense.weight)
    assert 0.015 < first.classifier.dense.weight.std() < 0.025


def test_a_name_is_found_in_the_weights_folder_and_in_the_hugging_face_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(FileNotFoundError, match="no model 'gpt2'.*fetch it with"):
        M.load_pretrained("gpt2")
    snapshot = tmp_path / "hf" / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc"
    gpt2_reference(**ODD_GPT2).save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc\n")
    assert find_model("gpt2") == snapshot
    shutil.copytree(snapshot, tmp_path / "weights" / "gpt2")
    assert find_model("gpt2") == tmp_path / "weights" / "gpt2"
    assert M.load_pretrained("gpt2").config.n_embd == 36


def rewrite(path, change):
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(path).items()}
    change(tensors)
    W.write_safetensors(tensors, path)


WRONG_TENSORS = {
    "missing": (lambda t: t.pop("transformer.h.1.ln_2.bias"), r"1 tensors missing \(first: 'transformer.h.1.ln_2.bias'\)"),
    "unexpected": (lambda t: t.update(extra=torch.ones(2)), r"1 unexpected \(first: 'extra'\)"),
    "shape": (lambda t: t.update({"transformer.wpe.weight": torch.ones(39, 36)}), r"shape \[39, 36\].*\[40, 36\]"),
    "dtype": (lambda t: t.update({"transformer.wpe.weight": torch.ones(40, 36).int()}), "torch.int32"),
}


@pytest.mark.parametrize("fault", WRONG_TENSORS)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, fault):
    gpt2_reference(**ODD_GPT2).save_pretrained(tmp_path)
    change, message = WRONG_TENSORS[fault]
    rewrite(tmp_path / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        M.load_pretrained(tmp_path)


def with_header(header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


F32_2 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": b"",
    "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
    "not json": with_header(b"[}", b""),
    "a list": with_header([1], b""),
    "unknown dtype": with_header({"a": F32_2 | {"dtype": "F7"}}, bytes(8)),
    "too short": with_header({"a": F32_2}, bytes(7)),
    "too long": with_header({"a": F32_2}, bytes(9)),
    "overlap": with_header({"a": F32_2, "b": F32_2 | {"data_offsets": [4, 12]}}, bytes(12)),
    "gap": with_header({"a": F32_2, "b": F32_2 | {"data_offsets": [12, 20]}}, bytes(20)),
    "shape": with_header({"a": F32_2 | {"shape": [3]}}, bytes(8)),
    "negative shape": with_header({"a": F32_2 | {"shape": [-1, -2]}}, bytes(8)),
    "string offsets": with_header({"a": F32_2 | {"data_offsets": ["0", "8"]}}, bytes(8)),
    "twice": with_header(b'{"a": %b, "a": %b}' % ((json.dumps(F32_2).encode(),) * 2), bytes(8)),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_safetensors_file_is_refused_in_one_line(tmp_path, fault):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[fault])
    with pytest.raises(ValueError, match="model.safetensors: ") as refusal:
        W.read_safetensors(path)
    assert "\n" not in str(refusal.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Dangerous:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))
    gpt2_reference(**ODD_GPT2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"wte.weight": Dangerous()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors, which could run code"):
        M.load_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_shard_index_cannot_point_outside_its_folder(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(ValueError, match="files of this folder"):
        W.read_weights(tmp_path)


@pytest.mark.parametrize("change, message", [({"model_type": "mamba"}, "model_type is 'mamba'"),
                                             ({"activation_function": "relu"}, "activation_function is 'relu'"),
                                             ({"tie_word_embeddings": False}, "tie_word_embeddings is False")])
def test_a_config_that_would_compute_something_else_is_refused(tmp_path, change, message):
    gpt2_reference(**ODD_GPT2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        M.load_pretrained(tmp_path)


def test_too_long_inputs_and_left_padding_are_refused(tmp_path):
    gpt2, roberta = M.GPT2(M.GPT2Config(**ODD_GPT2)), M.RobertaClassifier(M.RobertaConfig(**ODD_ROBERTA))
    with pytest.raises(ValueError, match="41 tokens, but the model takes 40"):
        gpt2(torch.ones(2, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="43 tokens, but the model takes 42"):
        roberta(torch.full((2, 43), 7))
    with pytest.raises(ValueError, match="padding on the right only"):
        gpt2(torch.ones(2, 3, dtype=torch.long), attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
