"""more_models/llama.py against transformers and PEFT, and in every place where the paper's two families work."""
import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import export
import lora as L
import model as M
from adapters import AdapterBank, load_adapter, save_adapter
from data import load_tokenizer
from experiments import faults
from generation import generate
from generation.cache import BeamCache, RowCache
from methods import METHODS, apply_method, load_trained, parameter_counts, save_trained, trained_parameters
from speed.loss import target_loss
from speed.packed import pack

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 3, "max_position_embeddings": 64,
         "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {"grouped, tied": {"rope_theta": 100000.0},
         "heads of their own": {"num_key_value_heads": 6, "tie_word_embeddings": False},
         "one shared, wide": {"num_key_value_heads": 1, "head_dim": 10, "rms_norm_eps": 1e-3}}
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def reference(**changes):
    """transformers' model, none of whose norms is 1, and whose tokens differ enough to be told apart."""
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | {"initializer_range": 0.2} | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.3))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    reference().save_pretrained(path)
    return path


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def rows(lengths=(19, 7, 13), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths)).long()
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = torch.randint(5, 97, (length,), generator=generator), 1
    return ids, mask


def adapted(model, targets=ALL, seed=3, **options):
    """With LoRA whose B is not zero."""
    L.add_lora(model, 3, 7, targets, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
    return model


# ---------------------------------------------------------------- the model

@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_transformers(tmp_path, kind):
    other = reference(**KINDS[kind])
    other.save_pretrained(tmp_path)
    ours, (ids, mask) = M.load_pretrained(tmp_path), rows()
    expected, found = other(ids, attention_mask=mask).logits, ours(ids, mask)
    assert (found - expected)[mask.bool()].abs().max() < 1e-4 and expected[mask.bool()].std() > 0.5
    assert (ours(ids[1:2, :7]) - expected[1:2, :7]).abs().max() < 1e-4
    for logits in (expected, found):
        F.cross_entropy(logits[:, :-1][mask[:, 1:].bool()], ids[:, 1:][mask[:, 1:].bool()]).backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in other.named_parameters()}


def test_packed_and_cached_tokens_are_at_their_own_positions(folder):
    ours, (ids, mask) = M.load_pretrained(folder), rows((13, 7, 5))
    with torch.inference_mode():
        expected = ours.hidden_states(ids, M.Padded(ids, mask, causal=True))
        sequences = [row[:length].tolist() for row, length in zip(ids, (13, 7, 5), strict=True)]
        packed = ours.hidden_states(*pack(sequences, causal=True))
        torch.testing.assert_close(packed, expected[mask.bool()], atol=1e-5, rtol=1e-4)
        for cache, shape in ((RowCache(torch.tensor([5, 5, 3])), (3, 1)), (BeamCache(torch.tensor([5, 5, 3]), 9), (3, 1))):
            ours.hidden_states(ids[:, :5], cache)
            cache.go_on(torch.arange(3) if isinstance(cache, RowCache) else torch.zeros(shape, dtype=torch.long))
            token = torch.tensor([[ids[0, 5]], [ids[1, 5]], [ids[2, 3]]])
            hidden = ours.hidden_states(token, cache)[:, 0]
            torch.testing.assert_close(hidden, torch.stack([expected[0, 5], expected[1, 5], expected[2, 3]]), atol=1e-5,
                                       rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_equal_transformers(folder, beams):
    ours, other = M.load_pretrained(folder), theirs(folder)
    prompts = [row[:length].tolist() for row, length in zip(rows()[0], (19, 7, 13), strict=True)]
    found = generate(ours, prompts, beams, length_penalty=1.0, no_repeat_ngram_size=0, max_new_tokens=12, eos_ids=(2,),
                     search="hf")
    for prompt, text in zip(prompts, found, strict=True):
        expected = other.generate(torch.tensor([prompt]), num_beams=beams, max_new_tokens=12, do_sample=False,
                                  pad_token_id=0)[0, len(prompt):].tolist()
        assert text == [token for token in expected if token != 2]


def test_dropout_falls_on_attention(tmp_path):
    reference(attention_dropout=0.5).save_pretrained(tmp_path)
    ids, _ = rows()
    ours, without = M.load_pretrained(tmp_path).train(), M.load_pretrained(tmp_path, dropout=0.0).train()
    assert not torch.equal(ours(ids), ours(ids)) and torch.equal(without(ids), without(ids))


# ---------------------------------------------------------------- config.json

def test_both_forms_of_config_json_are_read(folder, tmp_path):
    """transformers 4 has rope_theta beside a rope_scaling, and says nothing of a head_dim that is as usual."""
    expected, content = M.load_pretrained(folder).config, json.loads((folder / "config.json").read_text())
    assert expected.rope_theta == 10000 and "rope_parameters" in content
    shutil.copy(folder / "model.safetensors", tmp_path)
    for key in ("rope_parameters", "head_dim", "attention_dropout"):
        del content[key]
    for rope in (None, {"type": "default"}):
        (tmp_path / "config.json").write_text(json.dumps(content | {"rope_theta": 10000.0, "rope_scaling": rope}))
        assert M.load_pretrained(tmp_path).config == expected


@pytest.mark.parametrize("changes, message", [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is {'type': 'linear'.*computes None only"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters is {'rope_type': 'llama3'"),
    ({"rope_parameters": {"rope_type": ["default"]}}, "rope_parameters is "),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"rope_theta": 0.5, "rope_parameters": None}, "rope_theta is '0.5', expected a whole number"),
    ({"num_key_value_heads": 4}, "4 key-value heads cannot serve 6 heads evenly"),
    ({"head_dim": 7}, "head_dim is 7, expected an"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
    ({"num_attention_heads": None}, "num_attention_heads is 'None'"),
    ({"model_type": "../llama"}, "model_type is '../llama', expected one of gpt2"),
    ({"model_type": "gguf"}, "model_type is 'gguf', expected one of gpt2")])      # a module of the folder, but no family
def test_a_config_that_would_compute_something_else_is_refused(folder, tmp_path, changes, message):
    content = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=message) as refusal:
        M.load_pretrained(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


# ---------------------------------------------------------------- LoRA, PEFT, export, the bank

def test_lora_gradients_equal_pefts_and_its_files_go_there_and_back(folder, tmp_path):
    """All seven matrices: PEFT reads our file, its gradients are ours, and what it saves loads again."""
    ours, (ids, _) = adapted(M.load_pretrained(folder)), rows((9, 9))
    save_adapter(ours, tmp_path / "ours")
    other = peft.PeftModel.from_pretrained(theirs(folder), tmp_path / "ours", is_trainable=True)
    names = dict(other.named_parameters())
    sequences, targets = ids.tolist(), ids[:, 1:].flatten()
    hidden = ours.hidden_states(*pack([row[:-1] for row in sequences], causal=True))
    (target_loss(hidden, next(ours.parameters()), targets) / len(targets)).backward()
    F.cross_entropy(other(ids).logits[:, :-1].flatten(0, 1), targets).backward()
    compared = 0
    for name, parameter in trained_parameters(ours).items():
        path, letter = name.rpartition(".lora_")[::2]
        expected = names[f"base_model.model.{path}.lora_{letter.partition('.')[0]}.default.weight"].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4)
        compared += expected.abs().max() > 1e-4
    assert compared == 3 * 7 * 2
    other.save_pretrained(tmp_path / "theirs")
    again = load_adapter(M.load_pretrained(folder), tmp_path / "theirs")
    with torch.inference_mode():
        assert torch.equal(again(ids), ours(ids))
        assert (ours(ids) - M.load_pretrained(folder)(ids)).abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_is_a_folder_of_transformers(tmp_path, tied):
    reference(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    ours, (ids, _) = adapted(M.load_pretrained(tmp_path / "base"), ("q", "v", "down")), rows((9, 9))
    save_adapter(ours, tmp_path / "adapter")
    assert export.main(["--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--out",
                        str(tmp_path / "out")]) == 0
    other, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(other).__name__ == "LlamaForCausalLM" and not loading["missing_keys"] and not loading["unexpected_keys"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    with torch.inference_mode():
        assert (other.eval()(ids).logits - ours(ids)).abs().max() < 1e-4


def test_loralibs_file_holds_every_matrix(folder, tmp_path):
    ours = adapted(M.load_pretrained(folder))
    export.export_loralib(ours, tmp_path / "lora.pt")
    again = load_adapter(M.load_pretrained(folder), tmp_path / "lora.pt", alpha=7)
    with torch.inference_mode():
        assert torch.equal(again(rows()[0]), ours(rows()[0]))


def test_a_bank_gives_each_row_its_adapter(folder, tmp_path):
    for name, seed in (("a", 3), ("b", 4)):
        save_adapter(adapted(M.load_pretrained(folder), ("q", "k", "gate"), seed), tmp_path / name)
    bank = AdapterBank(M.load_pretrained(folder))
    for name in ("a", "b"):
        bank.add(name, tmp_path / name)
    ids, mask = rows()
    found, texts = bank.logits(["b", "base", "a"], ids, mask), bank.generate(["b", "a"], ids[:2, :7].tolist(), eos_ids=(2,),
                                                                            beam_size=2, max_new_tokens=6)
    for row, name in enumerate(("b", None, "a")):
        alone, length = M.load_pretrained(folder), int(mask[row].sum())
        if name:
            load_adapter(alone, tmp_path / name)
        with torch.inference_mode():
            torch.testing.assert_close(found[row, :length], alone(ids[row:row + 1, :length])[0], atol=1e-4, rtol=1e-4)
    alone = load_adapter(M.load_pretrained(folder), tmp_path / "b")
    assert texts[0] == generate(alone, ids[:1, :7].tolist(), 2, max_new_tokens=6, eos_ids=(2,))[0]


def test_a_target_of_another_family_is_refused(folder):
    with pytest.raises(ValueError, match="unknown LoRA target 'fc'; expected any of q k v o gate up down"):
        L.add_lora(M.load_pretrained(folder), 2, 4, ("q", "fc"))


# ---------------------------------------------------------------- the methods it is compared with

PER_LAYER = 2 * 48 * 48 + 2 * 16 * 48 + 3 * 48 * 70 + 2 * 48
COUNTS = {"lora": 3 * 3 * (48 + 48 + 16 + 48), "full": 3 * PER_LAYER + 48 * 97 + 48, "last-layers": 2 * PER_LAYER,
          "adapter-h": 3 * 2 * (2 * 48 * 3 + 48 + 3), "adapter-l": 3 * (2 * 48 * 3 + 48 + 3 + 2 * 48), "prefix": 3 * 3 * 48}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_what_it_says_and_is_saved(folder, tmp_path, method):
    ours, (ids, mask) = M.load_pretrained(folder), rows()
    if method not in COUNTS:
        with pytest.raises(ValueError, match=rf"'{method}' trains nothing on Llama, which has no (biases|task head); choose "
                                             "one of lora full last-layers adapter-h adapter-l prefix$"):
            apply_method(ours, method, rank=3)
        return
    apply_method(ours, method, rank=3, alpha=7)
    assert parameter_counts(ours)["trainable"] == COUNTS[method]
    with torch.no_grad():
        for parameter in trained_parameters(ours).values():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.05))
    save_trained(ours, tmp_path, "base", "e2e")
    again = M.load_pretrained(folder)
    load_trained(again, tmp_path)
    with torch.inference_mode():
        assert torch.equal(again(ids, mask), ours(ids, mask))
        assert (ours(ids) - M.load_pretrained(folder)(ids)).abs().max() > 1e-2
        prompts = ids[:2, :7].tolist()                                       # cached beams see what whole sequences see
        text = generate(ours, prompts, 1, no_repeat_ngram_size=0, max_new_tokens=6, eos_ids=())[1]
        for end in range(6):
            whole = torch.tensor([prompts[1] + text[:end]])
            assert ours(whole)[0, -1].argmax() == text[end]


def test_a_prefix_is_keys_and_values_at_the_first_position(folder):
    """Of its activations, not turned, in front of all others: written out for one layer."""
    ours, (ids, _) = M.load_pretrained(folder), rows((9, 9))
    apply_method(ours, "prefix", rank=4)
    layer, x = ours.model.layers[1].self_attn, torch.randn(2, 9, 48)
    attend = M.Padded(ids, causal=True)
    ours.hidden_states(ids, attend)                                          # gives `attend` its angles
    found, angles = layer(x, attend), torch.arange(9)[:, None] / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    q, k, v = ((x @ part.weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)
               for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    turned = [torch.view_as_real(torch.view_as_complex(torch.stack(part.chunk(2, -1), -1).contiguous()) * torch.polar(
        torch.ones(9, 4), angles)).transpose(-1, -2).flatten(-2) for part in (q, k)]
    prefix = [(layer.prefix.activations @ part.weight.T).unflatten(-1, (-1, 8)).transpose(0, 1).expand(2, -1, -1, -1)
              for part in (layer.k_proj, layer.v_proj)]
    key, value = (torch.cat(both, dim=2).repeat_interleave(3, dim=1) for both in zip(prefix, (turned[1], v), strict=True))
    seen = torch.cat([torch.ones(9, 4), torch.ones(9, 9).tril()], dim=1).bool()
    scores = (turned[0] @ key.transpose(-1, -2) / 8 ** 0.5).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2) @ layer.o_proj.weight.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- runs

@pytest.fixture
def with_tokenizer(tmp_path, repository):
    """A small llama with the toy GPT-2's tokenizer."""
    path = tmp_path / "base"
    reference(vocab_size=1025, max_position_embeddings=512, bos_token_id=1024, eos_token_id=1024).save_pretrained(path)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(repository / "toy" / "gpt2" / name, path)
    assert load_tokenizer(path).eos_ids == (1024,)
    return path


def test_a_killed_run_resumes_to_the_same_bits(with_tokenizer, toy_data, tmp_path):
    def start(arguments):
        return faults.ForkedRun([*arguments, "--model", str(with_tokenizer), "--targets", "q", "v", "gate", "down", "--epochs",
                                 "1", "--limit-eval", "2"])
    for kill in faults.kill_and_compare("e2e", "lora", toy_data, [0.6], 3, tmp_path / "runs", start):
        assert not kill.differences, kill


def test_a_refused_rank_leaves_the_model_as_it_was(folder):
    """It fits q, which comes first, and not v."""
    model, ids = M.load_pretrained(folder), rows()[0]
    before = model(ids)
    with pytest.raises(ValueError, match="LoRA rank 20 exceeds the 16 x 48 matrix of target 'v'"):
        L.add_lora(model, 20, 7)
    assert model.method is None and not L.lora_layers(model) and torch.equal(model(ids), before)
    L.add_lora(model, 3, 7)
