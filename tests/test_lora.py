"""lora.py: the update against PEFT and loralib, what trains, and merging."""
import copy

import pytest
import torch

import lora as L
import model as M
from adapters import save_adapter
from files.pretrained import file_name
from toy.fresh import init_weights

GPT2 = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
ROBERTA = {"vocab_size": 67, "max_position_embeddings": 34, "hidden_size": 28, "num_hidden_layers": 2,
           "num_attention_heads": 2, "intermediate_size": 44, "num_labels": 3,
           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = ROBERTA | {"max_position_embeddings": 32, "type_vocab_size": 2, "pad_token_id": 1, "layer_norm_eps": 1e-5,
                  "sep_token_id": 17}
ALL_TARGETS = ("q", "k", "v", "o", "fc", "proj")
TARGET_SETS = [("q", "v"), ("k",), ("q", "k", "v"), ("v", "o"), ("fc", "proj"), ("o", "proj"), ALL_TARGETS]


CONFIGS = {"gpt2": GPT2, "roberta": ROBERTA, "bert": BERT}


def make_base(kind, seed=0, **overrides):
    family = M.FAMILIES[kind]
    model = family(family.config_class(**CONFIGS[kind] | overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name or "LayerNorm" in name else 0.0, 0.2, generator=generator)
    return model.eval()


def fill_B(model, seed=5):
    """A trained adapter's B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in L.lora_layers(model).values():
            for B in layer.lora_B.values():
                B.normal_(0, 0.3, generator=generator)
    return model


def make_adapted(kind, targets=("q", "v"), rank=3, alpha=7, **options):
    return fill_B(L.add_lora(make_base(kind), rank, alpha, targets, **options))


def tokens(kind, shape=(3, 9), seed=2):
    """Random ids; a BERT's rows are pairs, but the last."""
    ids = torch.randint(5, 60, shape, generator=torch.Generator().manual_seed(seed))
    if kind == "bert":
        ids[:-1, 3] = BERT["sep_token_id"]
    return ids


def as_theirs(kind, ids):
    """What transformers' model of the kind takes: a BERT is told the types of its tokens, row by row, token by token."""
    if kind != "bert":
        return {"input_ids": ids}
    types = [[int(BERT["sep_token_id"] in row[:place]) for place in range(len(row))] for row in ids.tolist()]
    return {"input_ids": ids, "token_type_ids": torch.tensor(types)}


def theirs(kind, base=None):
    """transformers' model with the weights of our base."""
    transformers = pytest.importorskip("transformers")
    base = base or make_base(kind)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))
        model.load_state_dict(base.state_dict() | {"lm_head.weight": base.transformer.wte.weight}, strict=True)
        return model.eval()
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)) if kind == "bert" else (
        transformers.RobertaForSequenceClassification(transformers.RobertaConfig(
            **ROBERTA, layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)))
    model.load_state_dict({file_name(name, type(base)): tensor for name, tensor in base.state_dict().items()}, strict=True)
    return model.eval()


BOTH = pytest.mark.parametrize("kind", ["gpt2", "roberta"])                  # of which there are toy bases
EVERY = pytest.mark.parametrize("kind", list(CONFIGS))
ENCODERS = pytest.mark.parametrize("kind", ["roberta", "bert"])


@EVERY
@pytest.mark.parametrize("targets", TARGET_SETS, ids="-".join)
def test_forward_equals_the_dense_update_and_merge_equals_forward(kind, targets):
    """W + (alpha / r) B A written out on a copy of the base; then merge, then unmerge bit for bit."""
    base, adapted = make_base(kind), make_adapted(kind, targets)
    with torch.no_grad():
        for name, layer in L.lora_layers(adapted).items():
            weight = base.get_submodule(name).weight
            for target in layer.targets:
                delta = 7 / 3 * layer.lora_B[target] @ layer.lora_A[target]             # (d_out, d_in)
                if kind == "gpt2" and target in "qkv":
                    start = "qkv".index(target) * 24
                    weight[:, start:start + 24] += delta.T
                else:
                    weight += delta.T if kind == "gpt2" else delta
    x = tokens(kind)
    with torch.inference_mode():
        unmerged = adapted(x)
        torch.testing.assert_close(unmerged, base(x), atol=1e-5, rtol=1e-5)
        assert (unmerged - make_base(kind)(x)).abs().max() > 1e-2            # the update does something
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    with torch.inference_mode():
        torch.testing.assert_close(L.merge(adapted)(x), unmerged, atol=1e-5, rtol=1e-5)
    L.unmerge(adapted)
    assert all(torch.equal(parameter, before[name]) for name, parameter in adapted.named_parameters())
    with torch.inference_mode():
        assert torch.equal(adapted(x), unmerged)


def gradients(model, x, loss=lambda logits: logits.square().mean()):
    loss(model(x)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@ENCODERS
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), ALL_TARGETS], ids="-".join)
def test_encoder_outputs_and_gradients_equal_peft(tmp_path, kind, targets):
    peft = pytest.importorskip("peft")
    ours = make_adapted(kind, targets)
    save_adapter(ours, tmp_path)
    other = peft.PeftModel.from_pretrained(theirs(kind), tmp_path, is_trainable=True).eval()
    x = tokens(kind)
    torch.testing.assert_close(ours(x), other(**as_theirs(kind, x)).logits, atol=1e-5, rtol=1e-5)
    our_gradients = gradients(ours, x)
    other(**as_theirs(kind, x)).logits.square().mean().backward()
    compared = 0
    for name, layer in L.lora_layers(ours).items():
        for letter in "AB":
            theirs_gradient = other.get_parameter(f"base_model.model.{name}.lora_{letter}.default.weight").grad
            (target,) = layer.targets
            torch.testing.assert_close(our_gradients[f"{name}.lora_{letter}.{target}"], theirs_gradient, atol=1e-6, rtol=1e-4)
            compared += theirs_gradient.abs().max() > 1e-6
    assert compared == 2 * 2 * len(targets)


def test_gpt2_outputs_and_gradients_equal_loralib():
    """The authors' MergedLinear on c_attn, with q and v enabled, inside our model."""
    loralib = pytest.importorskip("loralib")
    ours = make_adapted("gpt2", ("q", "v"))
    theirs = make_base("gpt2").requires_grad_(False)
    for index, block in enumerate(theirs.transformer.h):
        source, layer = ours.transformer.h[index].attn.c_attn, loralib.MergedLinear(
            24, 72, r=3, lora_alpha=7, enable_lora=[True, False, True], fan_in_fan_out=True, merge_weights=False)
        with torch.no_grad():
            layer.weight.copy_(source.weight)
            layer.bias.copy_(source.bias)
            layer.lora_A.copy_(torch.cat([source.lora_A["q"], source.lora_A["v"]]))
            layer.lora_B.copy_(torch.cat([source.lora_B["q"], source.lora_B["v"]]))
        block.attn.c_attn = layer
    x = tokens("gpt2")
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    our_gradients = gradients(ours, x)
    theirs(x).square().mean().backward()
    for index in range(2):
        layer, prefix = theirs.transformer.h[index].attn.c_attn, f"transformer.h.{index}.attn.c_attn.lora_"
        for letter, gradient in (("A", layer.lora_A.grad), ("B", layer.lora_B.grad)):
            ours_stacked = torch.cat([our_gradients[f"{prefix}{letter}.q"], our_gradients[f"{prefix}{letter}.v"]])
            torch.testing.assert_close(ours_stacked, gradient, atol=1e-6, rtol=1e-4)
            assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "v", "o", "proj"), ALL_TARGETS], ids="-".join)
def test_peft_reads_our_gpt2_adapter(tmp_path, targets):
    """Several slices of c_attn become one PEFT update of rank n r: the same logits."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    ours = make_adapted("gpt2", targets)
    save_adapter(ours, tmp_path)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    reference.load_state_dict(make_base("gpt2").state_dict(), strict=False)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path).eval()
    x = tokens("gpt2")
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(input_ids=x).logits, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_the_update_only_and_in_training_only():
    model = make_adapted("gpt2", dropout=0.5)
    x = tokens("gpt2")
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    with torch.no_grad():
        for layer in L.lora_layers(model).values():
            for B in layer.lora_B.values():
                B.zero_()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("init, bound, std", [("kaiming", 768 ** -0.5, 768 ** -0.5 / 3 ** 0.5), ("gaussian", 0.2, 0.02)])
def test_A_starts_independently_in_every_layer_and_B_at_zero(init, bound, std):
    model = M.RobertaClassifier(M.RobertaConfig(vocab_size=20, num_hidden_layers=2))
    init_weights(model, seed=0)
    L.add_lora(model, rank=8, alpha=16, targets=("q", "k"), init=init, seed=3)
    starts = [A for layer in L.lora_layers(model).values() for A in layer.lora_A.values()]
    assert len(starts) == 4
    for index, A in enumerate(starts):
        assert A.abs().max() <= bound and 0.95 * std < A.std() < 1.05 * std
        assert not any(torch.allclose(A, other) for other in starts[:index])
    assert all(not B.any() for layer in L.lora_layers(model).values() for B in layer.lora_B.values())


@EVERY
def test_starts_at_the_base_model_exactly(kind):
    x = tokens(kind)
    with torch.inference_mode():
        assert torch.equal(L.add_lora(make_base(kind), 2, 5)(x), make_base(kind)(x))


@EVERY
def test_only_lora_and_the_head_train_and_the_rest_stays_bit_identical(kind):
    base = make_base(kind)
    model = L.add_lora(copy.deepcopy(base), 2, 5, ("q", "v", "proj")).train()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith("classifier.")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(tokens(kind, seed=step)).square().mean().backward()
        optimizer.step()
    changed = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, changed[name]) != name.startswith("classifier."), name
    assert all(B.any() for layer in L.lora_layers(model).values() for B in layer.lora_B.values())


@EVERY
def test_merging_twice_or_without_lora_is_refused(kind):
    model = make_adapted(kind)
    with pytest.raises(RuntimeError, match="not merged"):
        L.unmerge(model)
    L.merge(model)
    with pytest.raises(RuntimeError, match="merged already"):
        L.merge(model)
    with pytest.raises(RuntimeError, match="call unmerge"):
        model.train()(tokens(kind))
    with pytest.raises(RuntimeError, match="no LoRA"):
        L.merge(make_base(kind))
    with pytest.raises(RuntimeError, match="has LoRA already"):
        L.add_lora(L.unmerge(model), 2, 3)


@pytest.mark.parametrize("settings, message", [
    ({"targets": ("q", "w")}, "unknown LoRA target 'w'; expected any of q k v o fc proj qkv"),
    ({"targets": ()}, "no LoRA target"), ({"targets": ("q", "q")}, "name one twice"),
    ({"rank": 0}, "rank is 0"), ({"rank": 25}, "exceeds the 24 x 24"), ({"alpha": 0}, "alpha is 0"),
    ({"alpha": float("nan")}, "alpha is nan"), ({"dropout": 1.0}, "dropout is 1.0"),
    ({"init": "zero"}, "start of A is 'zero'")])
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        L.add_lora(make_base("gpt2"), **{"rank": 2, "alpha": 5} | settings)
