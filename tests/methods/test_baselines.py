"""methods/: each method against a forward pass written out here, what it trains, its counts, and its files."""
import copy
import json
import re

import pytest
import torch

import data
import decode
import lora as L
import methods as B
import model as M
import train
from adapters.folder import read_folder, write_folder
from adapters.loralib import loralib_tensors
from adapters.saving import adapter_of, load_adapter
from experiments import counts
from generation import Settings, n_best
from generation.e2e import decode_e2e
from methods import METHODS, WITH_RANK
from tests.generation.test_decode import slow_authors
from tests.test_lora import BERT, CONFIGS, ENCODERS, EVERY, make_base, tokens

ADDING = ("adapter-h", "adapter-l", "prefix")
RANK = 3


def make_trained(kind, method, seed=11, **overrides):
    """A model with `method`, and what it trains (the start is zero in part) moved at random."""
    model = make_base(kind, **overrides)
    B.apply_method(model, method, rank=RANK, alpha=7, seed=4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in B.trained_parameters(model).values():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return model


def methods_of(kind):
    return [method for method in METHODS if (kind, method) != ("gpt2", "head")]


KINDS_AND_METHODS = pytest.mark.parametrize("kind, method", [(k, m) for k in CONFIGS for m in methods_of(k)])


# ---------------------------------------------------------------- a plain reference

def norm(x, P, name):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * P[f"{name}.weight"] + P[f"{name}.bias"]


def bottleneck(x, P, name, activation, own_norm):
    """The adapter called `name`, or x itself where the model has none."""
    if f"{name}.adapter.down.weight" not in P:
        return x
    inner = norm(x, P, f"{name}.adapter.norm") if own_norm else x
    inner = activation(inner @ P[f"{name}.adapter.down.weight"].T + P[f"{name}.adapter.down.bias"])
    return x + inner @ P[f"{name}.adapter.up.weight"].T + P[f"{name}.adapter.up.bias"]


def exact_gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2 ** 0.5))


def attend(query, key, value, prefix, n_head, allowed):
    """Softmax attention one head at a time; prefix: keys and values (P, C) that every query of every row may see."""
    width, out = query.shape[-1] // n_head, []
    for head in range(n_head):
        part = slice(head * width, (head + 1) * width)
        scores = (query[..., part] @ key[..., part].transpose(1, 2)).masked_fill(~allowed, -torch.inf)
        values = value[..., part]
        if prefix is not None:
            extra = prefix[0][:, part].expand(len(query), -1, -1)
            scores = torch.cat([scores, query[..., part] @ extra.transpose(1, 2)], dim=-1)
            values = torch.cat([values, prefix[1][:, part].expand(len(query), -1, -1)], dim=1)
        out.append(torch.softmax(scores / width ** 0.5, dim=-1) @ values)
    return torch.cat(out, dim=-1)


def reference_gpt2(P, x):
    P, T = dict(P), x.shape[1]
    h = P["transformer.wte.weight"][x] + P["transformer.wpe.weight"][:T]
    for i in range(2):
        name = f"transformer.h.{i}"
        W, b = P[f"{name}.attn.c_attn.weight"], P[f"{name}.attn.c_attn.bias"]
        q, k, v = (norm(h, P, f"{name}.ln_1") @ W + b).chunk(3, dim=-1)
        prefix = None
        if f"{name}.attn.prefix.activations" in P:
            a = P[f"{name}.attn.prefix.activations"]
            prefix = a @ W[:, 24:48] + b[24:48], a @ W[:, 48:] + b[48:]
        out = attend(q, k, v, prefix, 3, torch.ones(T, T, dtype=torch.bool).tril())
        out = out @ P[f"{name}.attn.c_proj.weight"] + P[f"{name}.attn.c_proj.bias"]
        h = h + bottleneck(out, P, f"{name}.attn", exact_gelu, False)
        out = norm(h, P, f"{name}.ln_2") @ P[f"{name}.mlp.c_fc.weight"] + P[f"{name}.mlp.c_fc.bias"]
        out = 0.5 * out * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (out + 0.044715 * out ** 3)))
        out = out @ P[f"{name}.mlp.c_proj.weight"] + P[f"{name}.mlp.c_proj.bias"]
        h = bottleneck(h + bottleneck(out, P, f"{name}.mlp", exact_gelu, False), P, name, torch.relu, True)
    return norm(h, P, "transformer.ln_f") @ P["transformer.wte.weight"].T


def linear(x, P, name):
    return x @ P[f"{name}.weight"].T + P[f"{name}.bias"]


def encoder_states(kind, P, x, mask, states=None):
    """The hidden states after the last layer; those that enter each layer are appended to `states`."""
    position, types = (x != 1).cumsum(-1) * (x != 1) + 1, torch.zeros_like(x)
    if kind == "bert":
        position = torch.arange(x.shape[1]).expand_as(x)
        for row, ids in enumerate(x.tolist()):
            if BERT["sep_token_id"] in ids:
                types[row, ids.index(BERT["sep_token_id"]) + 1:] = 1
    h = sum(P[f"{kind}.embeddings.{part}_embeddings.weight"][ids] for part, ids in (
        ("word", x), ("position", position), ("token_type", types)))
    h = norm(h, P, f"{kind}.embeddings.LayerNorm")
    for i in range(2):
        name = f"{kind}.encoder.layer.{i}"
        if states is not None:
            states.append(h[0])
        q, k, v = (linear(h, P, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        prefix = None
        if f"{name}.attention.self.prefix.activations" in P:
            prefix = [linear(P[f"{name}.attention.self.prefix.activations"], P, f"{name}.attention.self.{part}")
                      for part in ("key", "value")]
        out = linear(attend(q, k, v, prefix, 2, mask.bool()[:, None]), P, f"{name}.attention.output.dense")
        out = bottleneck(out, P, f"{name}.attention.output.dropout", exact_gelu, False)
        h = norm(h + out, P, f"{name}.attention.output.LayerNorm")
        out = linear(exact_gelu(linear(h, P, f"{name}.intermediate.dense")), P, f"{name}.output.dense")
        out = bottleneck(out, P, f"{name}.output.dropout", exact_gelu, False)
        h = bottleneck(norm(h + out, P, f"{name}.output.LayerNorm"), P, name, torch.relu, True)
    return h


def reference(kind, P, x, mask):
    if kind == "gpt2":
        return reference_gpt2(P, x)
    h = encoder_states(kind, P, x, mask)[:, 0]
    return linear(torch.tanh(linear(h, P, "classifier.dense")), P, "classifier.out_proj")


def ragged(kind):
    """A batch whose rows have different lengths; padding is token 1."""
    x = tokens(kind, (3, 9))
    mask = torch.ones_like(x)
    if kind != "gpt2":
        mask[1, 6:] = mask[2, 4:] = 0
        x[mask == 0] = 1
    return x, mask


@EVERY
@pytest.mark.parametrize("method", ["full", "bitfit", *ADDING])
def test_outputs_equal_the_plain_reference(kind, method):
    model, (x, mask) = make_trained(kind, method), ragged(kind)
    with torch.inference_mode():
        expected = reference(kind, dict(model.named_parameters()), x, mask)
        torch.testing.assert_close(model(x, mask), expected, atol=2e-5, rtol=1e-4)
        assert (expected - make_base(kind)(x, mask)).abs().max() > 0.05      # the method does something


@KINDS_AND_METHODS
def test_the_start_is_the_base(kind, method):
    """Exactly; but a prefix starts at the base that has the prefix's tokens in front (the next two tests)."""
    if method == "prefix":
        return
    model, (x, mask) = make_base(kind), ragged(kind)
    B.apply_method(model, method, rank=RANK, alpha=7)
    with torch.inference_mode():
        assert torch.equal(model(x, mask), make_base(kind)(x, mask))


def start_tokens(vocab_size, seed):
    return torch.randint(5, vocab_size, (1, RANK), generator=torch.Generator().manual_seed(seed))


def test_a_prefix_of_gpt2_starts_as_its_tokens_in_front_of_the_input():
    model, base, x = make_base("gpt2"), make_base("gpt2"), tokens("gpt2")
    B.apply_method(model, "prefix", rank=RANK, seed=8)
    in_front = torch.cat([start_tokens(61, 8).expand(3, -1), x], dim=1)
    attend = M.Padded(in_front, causal=True)
    attend.positions = torch.cat([torch.arange(RANK), torch.arange(9)])      # the input keeps its own
    with torch.inference_mode():
        expected = base.logits(base.hidden_states(in_front, attend))[:, RANK:]
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        assert (expected - base(x)).abs().max() > 0.05


@ENCODERS
def test_a_prefix_of_an_encoder_starts_at_its_tokens_activations(kind):
    model, states = make_base(kind), []
    B.apply_method(model.train(), "prefix", rank=RANK, seed=8)
    assert model.training
    ids = start_tokens(67, 8)
    encoder_states(kind, dict(make_base(kind).named_parameters()), ids, torch.ones_like(ids), states)
    for layer, expected in zip(model.get_submodule(model.config.blocks), states, strict=True):
        torch.testing.assert_close(layer.attention.self.prefix.activations.data, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["bitfit", *ADDING])
def test_beam_search_with_the_cache_equals_a_slow_search_without(method):
    """Ragged prompts in one batch; n-gram ban, end tokens and beams that leave are decode.py's own business."""
    model = make_trained("gpt2", method)
    prompts = [[5, 9, 13], [30, 7, 8, 21, 40, 11], [17]]
    with torch.inference_mode():
        for prompt, found in zip(prompts, n_best(model, prompts, Settings(4, (0.9,), 3, 12, (7, 33))), strict=True):
            total, expected = max(slow_authors(model, prompt, 4, 3, 12, (7, 33)), key=lambda b: b[0] / len(b[1]) ** 0.9)
            assert found[0].tokens == [token for token in expected if token not in (7, 33)]
            assert found[0].log_probability == pytest.approx(total, rel=1e-5)


# ---------------------------------------------------------------- what trains

EXPECTED = {
    "lora": lambda name: ".lora_" in name,
    "full": lambda name: True,
    "last-layers": lambda name: ".h.1." in name or ".h.2." in name or ".layer.1." in name or ".layer.2." in name,
    "bitfit": lambda name: name.endswith("bias"),
    "adapter-h": lambda name: ".adapter." in name,
    "adapter-l": lambda name: ".adapter." in name,
    "prefix": lambda name: name.endswith(".prefix.activations"),
    "head": lambda name: False,
}


@KINDS_AND_METHODS
def test_what_a_method_trains_changes_and_the_rest_stays_bit_identical(kind, method):
    base = make_base(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 3})
    model = copy.deepcopy(base)
    torch.manual_seed(0)                                                     # of the dropout
    B.apply_method(model, method, rank=9, alpha=5)                           # so many that some unit of a ReLU is not 0
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for step in range(3):                                                    # what is behind a zero start moves one later
        optimizer.zero_grad()
        model.train()(tokens(kind, seed=step)).square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    wanted = {name for name in before if EXPECTED[method](name) or name.startswith("classifier.")}
    assert changed <= wanted
    assert wanted - changed <= {f"{kind}.encoder.layer.{i}.attention.self.key.bias" for i in range(3)}  # softmax ignores it
    for name, parameter in base.named_parameters():                          # the base's names are what they were
        assert torch.equal(parameter, model.get_parameter(name)) or name in wanted


@EVERY
@pytest.mark.parametrize("bias, expected", [
    ("lora-only", lambda name: name.endswith(("c_attn.bias", "query.bias", "value.bias"))),
    ("all", lambda name: name.endswith(".bias"))])
def test_lora_can_train_biases_too(kind, bias, expected):
    model = make_base(kind)
    B.apply_method(model, "lora", rank=2, alpha=5, bias=bias)
    found = set(B.trained_parameters(model))
    assert found == {name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith("classifier.")
                     or expected(name)}
    assert any(name.endswith(".bias") and not name.startswith("classifier.") for name in found)


@pytest.mark.parametrize("method", ADDING)
def test_a_copy_of_the_model_is_a_model_of_its_own(method):
    """The adapters' hooks must not lead from the copy back into the original."""
    model, x = make_trained("gpt2", method), tokens("gpt2")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = twin(x)
        for parameter in B.trained_parameters(model).values():
            parameter.add_(1.0)
        assert torch.equal(twin(x), before) and not torch.equal(model(x), before)


# ---------------------------------------------------------------- counts

@pytest.mark.parametrize("model, method, rank, trained, with_head", [                   # computed by hand from section 5.1
    ("GPT-2 S", "full", 0, 124_439_808, 124_439_808), ("GPT-2 M", "full", 0, 354_823_168, 354_823_168),
    ("GPT-2 L", "full", 0, 774_030_080, 774_030_080), ("GPT-2 M", "last-layers", 0, 25_192_448, 25_192_448),
    ("GPT-2 S", "lora", 4, 147_456, 147_456), ("GPT-2 M", "lora", 4, 393_216, 393_216),
    ("GPT-2 L", "lora", 4, 737_280, 737_280), ("GPT-2 M", "adapter-l", 6, 368_784, 368_784),
    ("GPT-2 M", "adapter-l", 224, 11_089_152, 11_089_152), ("GPT-2 L", "adapter-l", 8, 875_808, 875_808),
    ("GPT-2 L", "adapter-l", 248, 23_002_848, 23_002_848), ("GPT-2 M", "adapter-h", 112, 11_064_576, 11_064_576),
    ("GPT-2 M", "prefix", 5, 24 * 1024 * 5, 24 * 1024 * 5), ("RoBERTa base", "lora", 8, 294_912, 887_042),
    ("RoBERTa base", "bitfit", 0, 102_144, 694_274), ("RoBERTa base", "head", 0, 0, 592_130),
    ("RoBERTa large", "lora", 8, 786_432, 1_838_082)])
def test_counts_of_the_paper(model, method, rank, trained, with_head):
    config = counts.SIZES[model]
    with torch.device("meta"):
        built = M.GPT2(config) if isinstance(config, M.GPT2Config) else M.RobertaClassifier(config)
    B.apply_method(built, method, rank=rank, alpha=16)
    built_counts, formula = B.parameter_counts(built), counts.formula_counts(config, method, rank)
    for found in (built_counts, formula):
        assert (found["trainable"], found["trainable"] + found["head"]) == (trained, with_head)
    assert built_counts["total"] == sum(parameter.numel() for parameter in built.parameters())


@KINDS_AND_METHODS
def test_the_formula_counts_what_was_built(kind, method):
    """With an inner size that is not four times the width, and every target."""
    model = make_base(kind)
    targets = ("k", "o", "fc", "proj")
    B.apply_method(model, method, rank=RANK, alpha=7, targets=targets)
    formula, built = counts.formula_counts(model.config, method, RANK, targets), B.parameter_counts(model)
    assert formula == {name: built[name] for name in ("trainable", "head")}


def test_the_command_prints_the_counts(monkeypatch, capsys):
    rows = [row for row in counts.PRINTED if row[0] in ("GPT-2 S", "RoBERTa base")]
    monkeypatch.setattr(counts, "PRINTED", rows)
    assert counts.main([]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(rows)
    assert "| RoBERTa base | lora 8 | 0.3M | 294,912 | 294,912 | 887,042 |" in table


# ---------------------------------------------------------------- files

@KINDS_AND_METHODS
def test_what_was_saved_loads_onto_the_base_and_comes_back(tmp_path, kind, method):
    model, (x, mask) = make_trained(kind, method), ragged(kind)
    B.save_trained(model, tmp_path, "base", "mrpc")
    loaded = make_base(kind)
    assert B.load_trained(loaded, tmp_path, task="mrpc") == method
    assert set(B.trained_parameters(loaded)) == set(B.trained_parameters(model))
    with torch.inference_mode():
        assert torch.equal(loaded(x, mask), model(x, mask))
        for parameter in B.trained_parameters(model).values():
            parameter.zero_()
        B.reload_trained(model, tmp_path)
        assert torch.equal(loaded(x, mask), model(x, mask))
    _, _, own = read_folder(tmp_path)
    assert (own["method"], own["task"]) == (method, "mrpc")
    assert own["base_fingerprint"] == L.base_fingerprints(make_base(kind))["float32"]
    with pytest.raises(ValueError, match="trained for task 'mrpc', expected 'rte'"):
        B.load_trained(make_base(kind), tmp_path, task="rte")
    with pytest.raises(ValueError, match="trained on base"):
        B.load_trained(make_base(kind, seed=1), tmp_path)


def test_a_file_of_another_shape_or_method_is_refused(tmp_path):
    B.save_trained(make_trained("gpt2", "adapter-h"), tmp_path, "base", "e2e")
    tensors, config, own = read_folder(tmp_path)
    for changes, message in (({"rank": 4}, "has shape"), ({"method": "adapter-l"}, "first difference"),
                             ({"method": "magic"}, "saved by method 'magic'")):
        (tmp_path / "other").mkdir(exist_ok=True)
        write_folder(tmp_path / "other", tensors, config, own | changes)
        with pytest.raises(ValueError, match=message):
            B.load_trained(make_base("gpt2"), tmp_path / "other")
    with pytest.raises(ValueError, match="is an adapter of method 'adapter-h', expected LoRA"):
        load_adapter(make_base("gpt2"), tmp_path)


@pytest.mark.parametrize("method", ["lora", "adapter-h", "full"])
def test_starting_from_an_adapter_of_another_task_drops_its_head(tmp_path, method):
    trained = make_trained("roberta", method)                                # three labels
    B.save_trained(trained, tmp_path, "base", "mnli")
    model = make_base("roberta", num_labels=1)
    with torch.no_grad():                                                    # the same base, whatever its head
        for name, parameter in make_base("roberta").named_parameters():
            if not name.startswith("classifier."):
                model.get_parameter(name).copy_(parameter)
    B.apply_method(model, method, rank=RANK, alpha=7)
    head = copy.deepcopy(model.classifier.state_dict())
    line = B.start_from(model, tmp_path)
    assert "its head has 3 labels, this task 1: dropped" in line and "\n" not in line
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.classifier.state_dict().items())
    for name, parameter in B.trained_parameters(model).items():
        assert name.startswith("classifier.") or torch.equal(parameter, trained.get_parameter(name))
    same = make_base("roberta")
    B.apply_method(same, method, rank=RANK, alpha=7)
    assert "dropped" not in B.start_from(same, tmp_path)
    assert torch.equal(same.classifier.out_proj.weight, trained.classifier.out_proj.weight)


def test_starting_from_a_file_without_alpha_takes_the_runs_and_says_so(tmp_path):
    """As the authors' own MNLI checkpoint is one."""
    trained = make_trained("roberta", "lora")
    torch.save(loralib_tensors(adapter_of(trained)), tmp_path / "mnli.bin")
    model = make_base("roberta")
    B.apply_method(model, "lora", rank=RANK, alpha=5, targets=("v", "q"))
    assert "which holds no alpha: this run's 5 is used" in B.start_from(model, tmp_path / "mnli.bin")
    assert all(torch.equal(parameter, trained.get_parameter(name)) for name, parameter in model.named_parameters())


def test_starting_from_what_does_not_fit_is_refused(tmp_path):
    B.save_trained(make_trained("roberta", "lora"), tmp_path, "base", "mnli")
    for options, message in (({"rank": 2, "alpha": 7}, "has rank 3, this run 2: give --rank 3"),
                             ({"rank": 3, "alpha": 8}, "has alpha 7, this run 8: give --alpha 7"),
                             ({"rank": 3, "alpha": 7, "targets": ("k",)}, "has targets q v, this run k: give --targets q v")):
        model = make_base("roberta")
        B.apply_method(model, "lora", **options)
        with pytest.raises(ValueError, match=message):
            B.start_from(model, tmp_path)
    model = make_base("roberta")
    B.apply_method(model, "bitfit")
    with pytest.raises(ValueError, match="adapter of method 'lora', this run trains 'bitfit'"):
        B.start_from(model, tmp_path)
    model = make_base("roberta", seed=1)
    B.apply_method(model, "lora", rank=3, alpha=7)
    with pytest.raises(ValueError, match="trained on base"):
        B.start_from(model, tmp_path)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="unknown method 'magic'; expected one of lora full"):
        B.apply_method(make_base("gpt2"), "magic")
    with pytest.raises(ValueError, match="no task head; choose one of lora full last-layers adapter-h"):
        B.apply_method(make_base("gpt2"), "head")
    with pytest.raises(ValueError, match="rank is 0"):
        B.apply_method(make_base("gpt2"), "adapter-h", rank=0)
    with pytest.raises(ValueError, match="a prefix of 33 tokens, but the model has 32 positions"):
        B.apply_method(make_base("gpt2"), "prefix", rank=33)
    with pytest.raises(RuntimeError, match="has a method already"):
        B.apply_method(make_trained("gpt2", "adapter-h"), "prefix", rank=2)
    with pytest.raises(RuntimeError, match="has another method already: load the base again"):
        B.apply_method(make_trained("gpt2", "adapter-h"), "lora", rank=2, alpha=3)


# ---------------------------------------------------------------- the commands

def test_decode_reads_an_adapter_of_any_method(repository, toy_data, tmp_path, capsys):
    """A prefix from its folder, and a LoRA state dict, whose alpha is the recipe's and said to be."""
    source, texts = repository / "toy" / "gpt2", {}
    for method, options in (("prefix", {"rank": 3}), ("lora", {"rank": 3, "alpha": 32})):
        model = M.load_pretrained(source)
        B.apply_method(model, method, **options)
        with torch.no_grad():
            for name, parameter in B.trained_parameters(model).items():
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name))))
        adapter = tmp_path / method
        if method == "lora":
            adapter = tmp_path / "lora.pt"
            torch.save(loralib_tensors(adapter_of(model)), adapter)
        else:
            B.save_trained(model, adapter, "toy", "e2e")
        assert decode.main(["--model", str(source), "--adapter", str(adapter), "--data-dir", str(toy_data), "--out",
                            str(tmp_path / "out.txt"), "--limit", "3", "--beam-size", "2", "--max-new-tokens", "9",
                            "--precision", "fp32"]) == 0
        texts[method] = (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()
        _, expected = decode_e2e(model, data.load_tokenizer(source), data.read_e2e("test", toy_data), limit=3,
                                        beam_size=2, max_new_tokens=9)
        assert texts[method] == expected[0.9] and len(texts[method]) == 3
    assert texts["prefix"] != texts["lora"]
    assert "the file holds no alpha; 32 is taken from the recipe 'paper'" in capsys.readouterr().err


@pytest.fixture()
def run(repository, toy_data, tmp_path):
    """Run train.py in this process on a toy model; returns the folder of the run."""
    def run(task, method, *options, out="runs"):
        kind = "gpt2" if task == "e2e" else "roberta"
        arguments = ["--model", str(repository / "toy" / kind), "--task", task, "--data-dir", str(toy_data), "--method", method,
                     "--out-dir", str(tmp_path / out), "--limit-train", "24", "--limit-eval", "6", "--batch-size", "8",
                     "--lr", "0.003", *options, *(["--beam-size", "2"] if task == "e2e" else []),
                     *(["--rank", "3"] if method in WITH_RANK else []), *(["--alpha", "7"] if method == "lora" else [])]
        train.main(arguments)
        (metrics,) = (tmp_path / out).rglob("metrics.json")
        return metrics.parent
    return run


def scores(folder):
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["scores"]
    return {name: value for name, value in content.items() if isinstance(value, float)}


@pytest.mark.parametrize("task, method", [("mrpc", "bitfit"), ("mrpc", "adapter-l"), ("e2e", "prefix")])
def test_a_run_resumes_and_is_evaluated_like_loras(run, tmp_path, monkeypatch, task, method):
    options = (task, method, "--epochs", "2", "--save-every", "2")           # three steps per epoch
    whole = run(*options, out="whole")
    original, calls = train.Trainer.train_step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 6:                                                  # in the second epoch, two steps after a save
            raise KeyboardInterrupt
        original(self, *arguments)
    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*options, out="parts")
    monkeypatch.undo()
    parts = run(*options, "--resume", out="parts")
    (first, _, _), (second, _, _) = read_folder(whole / "adapter"), read_folder(parts / "adapter")
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert scores(whole) == scores(parts)
    again = run(task, method, "--eval-only", "--adapter", str(whole / "adapter"), out="again")
    assert scores(again) == pytest.approx(scores(whole), rel=1e-5)


def test_a_run_that_starts_from_mnli_says_so_and_is_named_apart(run, capsys):
    mnli = run("mnli", "lora", "--max-steps", "3", out="mnli")
    started = run("mrpc", "lora", "--max-steps", "2", "--init-adapter", str(mnli / "adapter"), out="started")
    assert "its head has 3 labels, this task 2: dropped" in capsys.readouterr().out
    plain = run("mrpc", "lora", "--max-steps", "2", out="plain")
    assert re.fullmatch(r"lora_r3_alpha7_qv_init[0-9a-f]{5}_lr0.003_batch8_steps2.*", started.parent.name)
    assert plain.parent.name == re.sub("_init[^_]+", "", started.parent.name)
    config = json.loads((started / "config.json").read_text(encoding="utf-8"))
    assert config["init_adapter"] == str(mnli / "adapter")
    assert scores(started)["loss"] != scores(plain)["loss"]


def test_options_of_lora_reach_the_run(run):
    folder = run("mrpc", "lora", "--max-steps", "2", "--bias", "lora-only", "--targets", "q", "o")
    tensors, _, own = read_folder(folder / "adapter")
    assert own["bias"] == "lora-only" and own["targets"] == ["q", "o"] and "bias-lora-only" in folder.parent.name
    assert any(name.endswith("query.base_layer.bias") for name in tensors)


def test_a_refused_method_leaves_the_model_as_it_was():
    model = make_base("gpt2")
    with pytest.raises(ValueError, match="trains nothing"):
        B.apply_method(model, "head")
    assert model.method is None and all(parameter.requires_grad for parameter in model.parameters())
    B.apply_method(model, "bitfit")


def test_a_stored_alpha_is_not_replaced(tmp_path):
    trained = make_trained("roberta", "lora")
    B.save_trained(trained, tmp_path, "base", "mrpc")
    with pytest.raises(ValueError, match="holds alpha 7, 1 was given, which is for a file that holds none: leave it out"):
        B.load_trained(make_base("roberta"), tmp_path, alpha=1)
    assert B.load_trained(make_base("roberta"), tmp_path, alpha=7) == "lora"


def test_a_start_whose_alpha_nobody_knows_is_refused(repository, toy_data, tmp_path):
    """The paper and the scripts disagree on RoBERTa's, as for --adapter."""
    model = L.add_lora(M.load_pretrained(repository / "toy/roberta"), 3, 7)
    torch.save(loralib_tensors(adapter_of(model)), tmp_path / "mnli.bin")
    command = ["--model", str(repository / "toy/roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--max-steps", "1",
               "--rank", "3", "--limit-train", "8", "--limit-eval", "4", "--out-dir", str(tmp_path / "runs"),
               "--init-adapter", str(tmp_path / "mnli.bin")]
    with pytest.raises(ValueError, match="the file holds no alpha; the paper has 8, the authors' scripts 16: give --alpha"):
        train.main(command)
    assert not (tmp_path / "runs").exists()
    train.main([*command, "--alpha", "7"])
