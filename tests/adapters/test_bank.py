"""adapters/bank.py: mixed batches against each row alone with load_adapter's model, every population, both models, beams."""
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import export
import lora as L
import model as M
from adapters import bank as K
from adapters import base as B
from adapters.saving import adapter_of, read_adapter, save_adapter
from files import weights as W
from generation import Settings, generate, n_best
from methods import apply_method
from training.precision import hold_frozen_in

BASES = {"gpt2": M.GPT2Config(vocab_size=97, n_positions=40, n_embd=72, n_layer=3, n_head=3, n_inner=80),
         "roberta": M.RobertaConfig(vocab_size=97, max_position_embeddings=34, hidden_size=68, num_hidden_layers=3,
                                    num_attention_heads=2, intermediate_size=76),
         "bert": M.BertConfig(vocab_size=97, max_position_embeddings=32, hidden_size=68, num_hidden_layers=3,
                              num_attention_heads=2, intermediate_size=76, sep_token_id=23)}
ADAPTERS = {                                                                 # name: rank, alpha, targets, labels
    "one": (1, 5, ("q", "v"), 2), "three": (3, 7, ("k",), 3), "eight": (8, 3, ("q", "k", "v", "o", "fc", "proj"), 1),
    "sixteen": (16, 9, ("o", "fc"), 5), "most": (64, 20, ("q", "v", "proj"), 3), "four": (4, 32, ("v",), 2)}
POPULATIONS = {
    "distinct": ["most", "one", "eight", "base", "three", "sixteen", "four"],
    "uniform": ["one", "three", "eight", "one", "eight", "three", "base", "base"],
    "skewed": ["one", "one", "one", "most", "one", "one", "three"],
    "identical": ["eight"] * 5,
    "bare": ["base"] * 3,
    "alone": ["sixteen"],
}
BOTH = pytest.mark.parametrize("kind", ["gpt2", "roberta"])                  # of which there are toy bases
EVERY = pytest.mark.parametrize("kind", list(BASES))


def make_base(kind, labels=2, seed=0):
    config = BASES[kind] if kind == "gpt2" else replace(BASES[kind], num_labels=labels)
    model = M.FAMILIES[kind](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("classifier."):                           # a head is drawn by the adapter
                parameter.normal_(1.0 if "ln_" in name or "LayerNorm" in name else 0.0, 0.1, generator=generator)
    if kind != "gpt2":
        nn.init.constant_(model.classifier.dense.bias, 0.0)
    return model.eval()


def make_adapted(kind, name):
    """The model that serves one row alone: load_adapter's kind, unmerged."""
    rank, alpha, targets, labels = ADAPTERS[name]
    model = L.add_lora(make_base(kind, labels), rank, alpha, targets)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".lora_B" in parameter_name or parameter_name.startswith("classifier."):
                parameter.normal_(0, 0.2, generator=generator)
    return model


def serve(kind, folder):
    """kind, a bank that read every adapter from its folder, and the model of each name."""
    base = make_base(kind)
    models, bank = {"base": base}, K.AdapterBank(make_base(kind))
    bank.model.load_state_dict(base.state_dict())
    for name in ADAPTERS:
        models[name] = make_adapted(kind, name)
        save_adapter(models[name], folder / name, task="mrpc")
        bank.add(name, folder / name)
    return kind, bank, models


@pytest.fixture(scope="module", params=list(BASES))
def served(request, tmp_path_factory):
    return serve(request.param, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def served_gpt2(tmp_path_factory):
    return serve("gpt2", tmp_path_factory.mktemp("adapters"))


def rows(count, length=11, seed=3):
    """Right-padded ids and mask, rows of different lengths."""
    ids = torch.randint(5, 97, (count, length), generator=torch.Generator().manual_seed(seed))
    ids[::2, 2] = BASES["bert"].sep_token_id                                 # every second row is a pair
    lengths = torch.tensor([length - 2 * (row % 4) for row in range(count)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return ids.where(mask.bool(), 1), mask


@pytest.mark.parametrize("population", POPULATIONS)
def test_every_row_is_as_its_adapter_alone(served, population):
    kind, bank, models = served
    names = POPULATIONS[population]
    ids, mask = rows(len(names))
    mixed = bank.logits(names, ids, mask)
    assert len(mixed) == len(names)
    bare = models["base"]
    with torch.inference_mode():
        for row, name in enumerate(names):
            n = int(mask[row].sum())
            alone = models[name](ids[row:row + 1, :n])[0]                    # (n, V) or (L,)
            found = mixed[row][:n] if kind == "gpt2" else mixed[row]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
            if name != "base" and kind == "gpt2":
                assert (alone - bare(ids[row:row + 1, :n])[0]).abs().max() > 1e-2        # the update does something
            if kind == "gpt2":
                assert not mixed[row][n:].any()                              # nothing is said of padding
    if population == "bare" and kind == "gpt2":
        assert torch.equal(mixed, K.AdapterBank(make_base(kind)).logits(names, ids, mask))


@pytest.mark.parametrize("population", POPULATIONS)
def test_lists_of_tokens_are_rows_without_their_padding(served, population):
    kind, bank, _ = served
    names = POPULATIONS[population]
    ids, mask = rows(len(names))
    sequences = [row[:n].tolist() for row, n in zip(ids, mask.sum(dim=1), strict=True)]
    found, padded = bank.logits_of(names, sequences), bank.logits(names, ids, mask)
    for sequence, values, row in zip(sequences, found, padded, strict=True):
        assert torch.equal(values, row[:len(sequence)] if kind == "gpt2" else row)
    with pytest.raises(ValueError, match="a sequence has no token"):
        bank.logits_of(["base", "one"], [[5, 6], []])
    with pytest.raises(ValueError, match="1 adapter names for a batch of 2 rows"):
        bank.logits_of(["base"], [[5, 6], [7]])


@BOTH
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_base_held_in_bf16(repository, tmp_path, kind, when):
    """The toy models, rounded before or after adapters of ranks 3 and 5 come: each row as its adapter alone, near fp32."""
    def toy():
        return M.load_pretrained(repository / "toy" / kind).requires_grad_(False)
    whole, rounded = K.AdapterBank(toy()), K.AdapterBank(toy())
    if when == "before":
        hold_frozen_in(rounded.model, "bf16")
    for rank, targets in ((3, ("q", "v")), (5, ("k", "fc", "o"))):
        model, generator = L.add_lora(toy(), rank, 7, targets), torch.Generator().manual_seed(rank)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name or name.startswith("classifier."):
                    parameter.normal_(0, 0.1, generator=generator)
        save_adapter(model, tmp_path / str(rank))
        for bank in (whole, rounded):                                        # of the base before it was rounded
            bank.add(str(rank), tmp_path / str(rank))
    hold_frozen_in(rounded.model, "bf16")
    names, draw = ["3", "5", "base", "3", "5"], torch.Generator().manual_seed(1)
    sequences = [torch.randint(5, 400, (length,), generator=draw).tolist() for length in (9, 17, 4, 9, 12)]
    mixed, exact = rounded.logits_of(names, sequences), whole.logits_of(names, sequences)
    alone = [rounded.logits_of([name], [sequence])[0] for name, sequence in zip(names, sequences, strict=True)]
    bare = whole.logits_of(["base"] * 5, sequences)
    assert {row.dtype for row in mixed} == {torch.bfloat16 if kind == "gpt2" else torch.float32}
    scale = torch.cat([row.flatten() for row in exact]).std()
    for name, *found in zip(names, mixed, alone, exact, bare, strict=True):
        row, by_itself, true, base = (values.float() for values in found)
        assert (row - by_itself).abs().mean() < 0.03 * scale
        assert 1e-5 < (row - true).abs().mean() / scale < 0.03               # one rounding to bf16 is up to 0.004
        assert name == "base" or (true - base).abs().mean() > 0.06 * scale   # the update does more than that
    if kind == "gpt2":
        assert len(rounded.generate(names, sequences, beam_size=3, max_new_tokens=6)) == 5


def test_a_merged_adapter_answers_as_before_and_makes_room_for_others(served):
    kind, bank, models = served
    ids, mask = rows(4)
    before = {name: parameter.clone() for name, parameter in bank.model.named_parameters()}
    alone, mixed = bank.logits(["eight"] * 4, ids, mask), bank.logits(["eight", "base", "one", "eight"], ids, mask)
    bank.merge("eight")
    hooks = []
    for _ in range(2):
        merged = bank.logits(["eight"] * 4, ids, mask)
        hooks += bank.hooks
        for found, expected in zip(merged, alone, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not hooks and bank.merged is bank["eight"]
    again = bank.logits(["eight", "base", "one", "eight"], ids, mask)        # puts the old weights back
    assert all(torch.equal(found, expected) for found, expected in zip(again, mixed, strict=True)) and bank.merged is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in bank.model.named_parameters())
    bank.merge("one")
    bank.add("late", adapter_of(make_adapted(kind, "three")))                # which names the base as it was before
    bank.merge("late")
    with pytest.raises(ValueError, match="no adapter 'lat'"):
        bank.merge("lat")
    bank.remove("late")
    assert bank.merged is None
    assert all(torch.equal(parameter, before[name]) for name, parameter in bank.model.named_parameters())


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("search", ["authors", "hf", "greedy"])
def test_beams_share_the_adapter_of_their_row(served_gpt2, population, search):
    """Prompts of different lengths, whose rows leave the batch at different steps."""
    _, bank, models = served_gpt2
    names = POPULATIONS[population]
    prompts = [[5 + row, 11, 7 * row + 3][:1 + row % 3] for row in range(len(names))]
    options = {"beam_size": 4, "max_new_tokens": 9, "eos_ids": (63, 78, 33), "search": search}
    mixed = bank.generate(names, prompts, **options)
    assert mixed == [generate(models[name], [prompt], **options)[0] for name, prompt in zip(names, prompts, strict=True)]
    assert mixed == bank.generate(names, prompts, batch_size=3, **options)
    if population == "distinct":
        assert len(set(map(len, mixed))) > 1                                 # rows did leave one by one


def test_all_beam_scores_are_those_of_the_row_alone(served_gpt2):
    """The text may hide a small error; the log-probabilities of all hypotheses do not."""
    _, bank, models = served_gpt2
    names = POPULATIONS["distinct"]
    prompts = [[5 + row, 11] for row in range(len(names))]
    settings = Settings(beam_size=10, max_new_tokens=8, eos_ids=(3, 8))
    adapters = [bank[name] for name in names]
    mixed = n_best(bank.model, prompts, settings, route=lambda indices: bank.route([adapters[i] for i in indices]))
    bank.route([])
    for row, name in enumerate(names):
        alone = n_best(models[name], [prompts[row]], settings)[0]
        assert [text.tokens for text in mixed[row][:5]] == [text.tokens for text in alone[:5]]
        assert [text.log_probability for text in mixed[row][:5]] == pytest.approx(
            [text.log_probability for text in alone[:5]], abs=1e-5)


def test_other_adapters_change_nothing_bit_for_bit(served):
    kind, bank, models = served
    names, (ids, mask) = POPULATIONS["uniform"], rows(8)
    before = bank.logits(names, ids, mask)
    bank.add("late", adapter_of(make_adapted(kind, "most")))
    with_late = bank.logits(names, ids, mask)
    used = bank.logits(["late", *names[1:]], ids, mask)
    bank.remove("late")
    after = bank.logits(names, ids, mask)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(before, with_late, after, strict=True))
    assert used[0].shape != before[0].shape or not torch.allclose(used[0], before[0], atol=1e-3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before[1:], used[1:], strict=True))


def test_the_model_is_left_as_it_was(served):
    kind, bank, models = served
    ids, mask = rows(3)
    bank.logits(["one", "most", "base"], ids, mask)
    with pytest.raises(ValueError):
        bank.logits(["one", "most", "eight"], ids.repeat(1, 9), mask.repeat(1, 9))       # longer than the model takes
    with torch.inference_mode():
        reference = make_base(kind)
        reference.load_state_dict(models["base"].state_dict())
        assert torch.equal(bank.model(ids, mask), reference(ids, mask))
    assert not bank.hooks and all(not module._forward_hooks for module in bank.model.modules())
    assert bank.model.state_dict().keys() == reference.state_dict().keys()


def test_an_adapter_removed_while_rows_decode_serves_them_to_the_end(served_gpt2):
    _, bank, _ = served_gpt2
    bank.add("brief", adapter_of(make_adapted("gpt2", "eight")))
    prompts, names, options = [[5], [9, 4]], ["brief", "one"], {"beam_size": 3, "max_new_tokens": 9, "eos_ids": (63, 78)}
    expected, calls = bank.generate(names, prompts, **options), []

    def remove_at_first_step(*_):
        if not calls:
            bank.remove("brief")
        calls.append(1)
    hook = bank.model.transformer.ln_f.register_forward_hook(remove_at_first_step)
    assert bank.generate(names, prompts, **options) == expected and len(calls) > 1
    hook.remove()
    with pytest.raises(ValueError, match="no adapter 'brief'"):
        bank.generate(names, prompts, **options)


def test_a_batch_costs_by_its_own_adapters_not_by_the_bank(served):
    """What is gathered for a batch: the highest rank of each target in it, GPT-2's q, k and v side by side, and one copy where
    all rows agree."""
    kind, bank, _ = served
    gathered = bank.gather([bank["one"], bank["base"], bank["three"]])
    assert Counter(name.rpartition(".")[2] for name in gathered) == (
        {"c_attn": 3} if kind == "gpt2" else {"query": 3, "key": 3, "value": 3})
    rows, A, B = gathered["transformer.h.1.attn.c_attn" if kind == "gpt2" else f"{kind}.encoder.layer.1.attention.self.key"]
    assert (rows, A.shape) == (slice(None), (3, 5, 72) if kind == "gpt2" else (3, 3, 68))        # ranks 1, 3 and 1
    assert B.shape == ((3, 5, 3 * 72) if kind == "gpt2" else (3, 3, 68))
    assert all(A.shape[0] == 1 for _, A, _ in bank.gather([bank["most"]] * 9).values())
    assert bank.gather([bank["base"]] * 4) == {}


@EVERY
def test_memory_grows_by_the_adapters_alone(kind):
    """No tensor of a read adapter shares or copies the base; 300 of them are held by name."""
    bank = K.AdapterBank(make_base(kind))
    adapter = K.bank_adapter_of(bank.model, adapter_of(make_adapted(kind, "three")))
    for index in range(300):
        bank.add(f"a{index}", adapter)
    own = {tensor.untyped_storage().data_ptr() for pair in adapter.updates.values() for tensor in pair}
    base = {parameter.untyped_storage().data_ptr() for parameter in bank.model.parameters()}
    assert len(bank.adapters) == 301 and not own & base
    numbers = sum(tensor.numel() for pair in adapter.updates.values() for tensor in pair)
    width = 72 if kind == "gpt2" else 68
    assert numbers == 3 * 3 * (width + width)                                # layers * rank * (d_in + d_out)


@EVERY
def test_reading_an_adapter_builds_no_base_and_fingerprints_it_once(kind, tmp_path, monkeypatch):
    save_adapter(make_adapted(kind, "three"), tmp_path)
    bank, taken = K.AdapterBank(make_base(kind)), []
    L.base_fingerprints(bank.model)                                          # is_base builds a model without memory, once
    monkeypatch.setattr(B, "base_fingerprints",
                        lambda model: taken.append(model) or L.base_fingerprints(model))
    monkeypatch.setattr(type(bank.model), "__init__", lambda *_: pytest.fail("built a second base"))
    bank.add("three", tmp_path)
    assert taken == [bank.model]


@EVERY
def test_refusals_name_what_there_is(kind, tmp_path):
    bank = K.AdapterBank(make_base(kind))
    save_adapter(make_adapted(kind, "three"), tmp_path / "three")
    bank.add("three", tmp_path / "three")
    ids, mask = rows(2)
    ran = []
    hook = bank.model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match="no adapter 'thre' .the bank holds base, three."):
        bank.logits(["three", "thre"], ids, mask)
    with pytest.raises(ValueError, match="no adapter 'thre'"):
        bank.remove("thre")
    with pytest.raises(ValueError, match="bare base model, which stays"):
        bank.remove("base")
    for name in ("three", "base"):
        with pytest.raises(ValueError, match=f"an adapter '{name}' already.*holds base, three"):
            bank.add(name, tmp_path / "three")
    with pytest.raises(ValueError, match="1 adapter names for a batch of 2 rows"):
        bank.logits(["three"], ids, mask)
    save_adapter(L.add_lora(make_base(kind, seed=1), 2, 3), tmp_path / "foreign")
    with pytest.raises(ValueError, match="adapter 'new': .*trained on base.*holds base, three"):
        bank.add("new", tmp_path / "foreign")
    broken = make_adapted(kind, "three")
    with torch.no_grad():
        next(iter(L.lora_layers(broken).values())).lora_B["k"][0, 0] = float("nan")
    save_adapter(broken, tmp_path / "nan")
    with pytest.raises(ValueError, match="adapter 'new': .*NaN"):
        bank.add("new", tmp_path / "nan")
    if kind != "gpt2":
        with pytest.raises(ValueError, match="an encoder, which generates no text"):
            bank.generate(["three"], [[1, 2]])
    with pytest.raises(RuntimeError, match="the model has LoRA"):
        K.AdapterBank(broken)
    hook.remove()
    assert list(bank.adapters) == ["base", "three"] and not ran


@EVERY
@pytest.mark.parametrize("alpha", [5, 12])
def test_a_file_without_alpha_takes_the_one_given(kind, tmp_path, alpha):
    """loralib's state dict of the same matrices and head: the folder's logits with the folder's alpha, others with another."""
    model, bank, (ids, mask) = make_adapted(kind, "one"), K.AdapterBank(make_base(kind)), rows(2)
    save_adapter(model, tmp_path / "folder")
    export.export_loralib(model, tmp_path / "one.pt")
    with pytest.raises(ValueError, match=r"adapter 'file': .*one.pt: the file holds no alpha.*\(the bank holds base\)"):
        bank.add("file", tmp_path / "one.pt")
    bank.add("file", tmp_path / "one.pt", alpha=alpha)
    bank.add("folder", tmp_path / "folder")
    bank.add("scaled", tmp_path / "folder", alpha=alpha)                     # in place of the stored one
    file, folder, scaled = (bank.logits([name] * 2, ids, mask) for name in ("file", "folder", "scaled"))
    assert all(torch.equal(a, b) for a, b in zip(file, scaled, strict=True))
    assert all(torch.equal(a, b) == (alpha == 5) for a, b in zip(file, folder, strict=True))


@EVERY
@pytest.mark.parametrize("mask, message", [
    ([[1, 1, 1, 1], [0, 0, 1, 1]], "attention_mask has a 0 before a 1: a bank takes padding on the right only"),
    ([[1, 1, 0, 1], [1, 1, 1, 1]], "attention_mask has a 0 before a 1"),
    ([[1, 1, 1, 1], [0, 0, 0, 0]], "row 1 of the batch has no token, expected a 1 in every row of attention_mask")])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_a_mask_that_would_misplace_logits_is_refused(kind, mask, message, dtype):
    bank, ids = K.AdapterBank(make_base(kind)), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with pytest.raises(ValueError, match=message) as refusal:
        bank.logits(["base", "base"], ids, torch.tensor(mask, dtype=dtype))
    assert "\n" not in str(refusal.value) and not bank.hooks


def test_a_missing_head_is_refused(tmp_path):
    save_adapter(make_adapted("roberta", "three"), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(path).items() if "classifier" not in name}
    W.write_safetensors(tensors, path)
    with pytest.raises(ValueError, match="adapter 'mrpc': .*no task head.*holds base") as refusal:
        K.AdapterBank(make_base("roberta")).add("mrpc", tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_mixed_batch_equals_peft(tmp_path):
    """The other implementation of mixed batches, on GPT-2: adapter_names per row, same files."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    bank = K.AdapterBank(make_base("gpt2"))
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**vars(BASES["gpt2"])))
    reference.load_state_dict(make_base("gpt2").state_dict(), strict=False)
    for name in ("one", "three", "most"):
        save_adapter(make_adapted("gpt2", name), tmp_path / name)
        bank.add(name, tmp_path / name)
        if isinstance(reference, peft.PeftModel):
            reference.load_adapter(tmp_path / name, name)
        else:
            reference = peft.PeftModel.from_pretrained(reference, tmp_path / name, adapter_name=name)
    names = ["most", "base", "one", "three", "one"]
    ids = torch.randint(0, 97, (5, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = reference.eval()(ids, adapter_names=[name.replace("base", "__base__") for name in names]).logits
    torch.testing.assert_close(bank.logits(names, ids), theirs, atol=1e-5, rtol=1e-5)


def test_trained_biases_are_refused_and_leave_the_base_alone(tmp_path):
    model = L.add_lora(make_base("gpt2"), 2, 5, bias="all")
    with torch.no_grad():
        model.transformer.ln_f.bias.add_(1.0)
    save_adapter(model, tmp_path)
    bank = K.AdapterBank(make_base("gpt2"))
    with pytest.raises(ValueError, match="adapter 'new': .*trains biases beside the update"):
        bank.add("new", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(bank.model.parameters(), make_base("gpt2").parameters(), strict=True))


def test_the_scale_is_folded_into_B(tmp_path):
    """alpha is not the rank in any adapter here; with twice the alpha, the update is twice as large."""
    updates = []
    for alpha in (7, 14):
        model = L.add_lora(make_base("gpt2"), 3, alpha, ("k",))
        with torch.no_grad():
            for layer in L.lora_layers(model).values():
                layer.lora_B["k"].normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        save_adapter(model, tmp_path / str(alpha))
        base = make_base("gpt2")
        updates += K.bank_adapter_of(base, read_adapter(tmp_path / str(alpha), base.config)).updates.values()
    (A, B), (other_A, other_B) = updates
    torch.testing.assert_close(other_B, 2 * B)
    torch.testing.assert_close(B[2], 7 / 3 * L.lora_layers(model)["transformer.h.2.attn.c_attn"].lora_B["k"].detach().T)
    assert torch.equal(A, other_A)


@pytest.mark.parametrize("method", ["lora", "adapter-h", "bitfit"])
def test_a_bank_needs_the_bare_base(method):
    model = make_base("gpt2")
    apply_method(model, method, rank=2)
    with pytest.raises(RuntimeError, match="a bank needs the bare base"):
        K.AdapterBank(model)
