"""Beam search against transformers' generate, against a slow search written from the description, and on bad input."""
import copy
import json
import math
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch

import generation.decoding as decoding
import generation.e2e as e2e
import generation.sampling as sampling
from adapters.bank import AdapterBank
from adapters.saving import save_adapter
from data import encode_e2e, read_e2e
from decode import main
from files.tokenizer import load_tokenizer
from generation import SEARCHES, Settings, best_text, generate, n_best
from generation.e2e import clean, decode_e2e, e2e_prompt, end_tokens, penalty_table
from lora import add_lora, lora_layers, merge, unmerge
from metrics.texts import read_pair
from model import GPT2, GPT2Config, load_pretrained
from predict import Predictor
from toy.fresh import init_weights


@cache
def small_model() -> GPT2:
    """61 tokens; weights so large that every context has a distribution of its own."""
    model = GPT2(GPT2Config(vocab_size=61, n_positions=64, n_embd=48, n_layer=3, n_head=4, initializer_range=0.3))
    init_weights(model, seed=5)
    return model.eval()


@cache
def real_configuration() -> GPT2:
    """GPT-2 with its real width and vocabulary, and 3 of its 12 blocks: a search sees the logits and the cache alone."""
    model = GPT2(GPT2Config(n_layer=3))
    init_weights(model, seed=1)
    return model.eval()


def ragged_prompts(count: int, vocab_size: int, seed: int, longest: int = 12) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(source.randint(1, longest))] for _ in range(count)]


def without(token: int, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts with its neighbour in place of a token. transformers' n-gram ban takes padding for text, which has no
    effect only if the padding is an end token, so that no beam goes on from it, and no prompt contains it."""
    return [[token + 1 if other == token else other for other in prompt] for prompt in prompts]


def frequent_tokens(model: GPT2, prompts: list[list[int]], max_new_tokens: int) -> tuple[int, ...]:
    """Two tokens that the model often writes after the first place, so that as end tokens they stop beams at all lengths."""
    settings = Settings(4, max_new_tokens=max_new_tokens, no_repeat_ngram_size=2, eos_ids=())
    counts = Counter(token for texts in n_best(model, prompts, settings) for text in texts for token in set(text.tokens[1:]))
    return tuple(token for token, _ in counts.most_common(2))


# ---------------------------------------------------------------- transformers

def transformers_copy(model: GPT2):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    config = {name: getattr(model.config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    copy = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    missing, unexpected = copy.load_state_dict(model.state_dict(), strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    copy.tie_weights()
    return copy.eval()


def transformers_generate(reference, prompts, beam_size, length_penalty, ngram, max_new_tokens, eos_ids):
    longest, pad = max(map(len, prompts)), eos_ids[-1]
    output = reference.generate(
        torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        num_beams=beam_size, no_repeat_ngram_size=ngram, max_new_tokens=max_new_tokens, do_sample=False,
        eos_token_id=list(eos_ids), pad_token_id=pad,
        **({"length_penalty": length_penalty, "early_stopping": False} if beam_size > 1 else {}))
    texts = []
    for ids in output[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in eos_ids), len(ids))
        texts.append(ids[:end])
    return texts


@pytest.fixture(scope="module")
def small_reference():
    return transformers_copy(small_model())


@pytest.mark.parametrize("length_penalty", [0.9, 1.4, 0.3])
@pytest.mark.parametrize("ngram", [0, 2, 4])
@pytest.mark.parametrize("beam_size", [1, 4, 10])
def test_hf_equals_transformers(small_reference, beam_size, ngram, length_penalty):
    lengths = set()
    for seed, eos_ids in enumerate([(59, 3), (7, 8, 9)]):
        prompts = without(eos_ids[-1], ragged_prompts(5, 61, seed))
        expected = transformers_generate(small_reference, prompts, beam_size, length_penalty, ngram, 16, eos_ids)
        assert generate(small_model(), prompts, beam_size, length_penalty, ngram, 16, eos_ids, search="hf") == expected
        lengths.update(map(len, expected))
    if length_penalty < 1:                                                   # above, the longest texts win
        assert len(lengths) >= 3                                             # end tokens did occur, early and late


@pytest.mark.parametrize("beam_size, ngram, count", [(1, 0, 9), (1, 4, 9), (4, 4, 12), (4, 0, 6), (10, 0, 6), (10, 4, 12)])
def test_hf_equals_transformers_on_the_real_configuration(real_reference, beam_size, ngram, count):
    prompts = ragged_prompts(count, 50257, seed=10 * beam_size + ngram, longest=7)
    eos_ids = frequent_tokens(real_configuration(), prompts[:3], 5)
    prompts = without(eos_ids[-1], prompts)
    expected = transformers_generate(real_reference, prompts, beam_size, 0.9, ngram, 6, eos_ids)
    assert generate(real_configuration(), prompts, beam_size, 0.9, ngram, 6, eos_ids, search="hf") == expected


@pytest.fixture(scope="module")
def real_reference():
    return transformers_copy(real_configuration())


@pytest.mark.parametrize("beam_size, ngram", [(1, 4), (4, 0), (4, 4), (10, 0), (10, 4)])
def test_hf_equals_transformers_on_the_toy_model(toy_model, beam_size, ngram):
    model, tokenizer, prompts, _ = toy_model
    eos_ids = (tokenizer.eos_id, *frequent_tokens(model, prompts[:4], 12))
    prompts = without(eos_ids[-1], prompts)
    expected = transformers_generate(transformers_copy(model), prompts, beam_size, 0.9, ngram, 24, eos_ids)
    assert len(set(map(len, expected))) > 1
    assert generate(model, prompts, beam_size, 0.9, ngram, 24, eos_ids, search="hf") == expected


@pytest.fixture(scope="module")
def toy_model(repository, toy_data):
    """The toy GPT-2, its tokenizer, ten prompts of its record-to-text task, and the rows they come from."""
    directory = repository / "toy" / "gpt2"
    tokenizer, pairs = load_tokenizer(directory), read_e2e("test", toy_data)
    records = list(dict.fromkeys(mr for mr, _ in pairs))[:10]
    prompts = [[*tokenizer.encode(mr), tokenizer.eos_id] for mr in records]
    return load_pretrained(directory), tokenizer, prompts, [pair for pair in pairs if pair[0] in records]


# ---------------------------------------------------------------- the authors' search, slowly

@torch.no_grad()
def slow_authors(model, prompt, beam_size, ngram, max_new_tokens, eos_ids):
    """All (log-probability, tokens with the end token) that the search sets aside, in order: no cache, no batch, no stop,
    and in fp64, so that what differs by rounding is the other search's rounding alone."""
    model, running, set_aside = copy.deepcopy(model).double(), [(0.0, [])], []
    for _ in range(max_new_tokens):
        if not running:
            break
        logits = model(torch.tensor([prompt + tokens for _, tokens in running]))[:, -1]
        continuations = []
        for (total, tokens), row in zip(running, logits, strict=True):
            for start in range(len(tokens) - ngram + 1 if ngram else 0):
                if tokens[start:start + ngram - 1] == tokens[len(tokens) - ngram + 1:]:
                    row[tokens[start + ngram - 1]] = -math.inf
            probabilities = torch.softmax(row, dim=-1).tolist()
            continuations += [(total + math.log(p), [*tokens, token]) for token, p in enumerate(probabilities) if p > 0]
        best = sorted(continuations, key=lambda continuation: -continuation[0])[:beam_size]
        set_aside += [beam for beam in best if beam[1][-1] in eos_ids]
        running = [beam for beam in best if beam[1][-1] not in eos_ids]
    return set_aside + running


@pytest.mark.parametrize("beam_size, ngram, eos_ids", [
    (1, 0, (60, 3)), (4, 2, (60, 3)), (4, 0, (7, 8, 9)), (10, 1, (11,)), (10, 3, (7, 8, 9)), (10, 4, tuple(range(0, 61, 2)))])
def test_authors_equals_a_slow_search(beam_size, ngram, eos_ids):
    """Same tokens and scores for all penalties from one search, though the slow one never stops early."""
    model, penalties, prompts = small_model(), (0.9, 0.8, 1.0, 0.0, 1.7, -0.5), ragged_prompts(6, 61, seed=beam_size)
    settings = Settings(beam_size, penalties, ngram, 14, eos_ids)
    for prompt, hypotheses in zip(prompts, n_best(model, prompts, settings), strict=True):
        expected = slow_authors(model, prompt, beam_size, ngram, 14, eos_ids)
        for penalty in penalties:
            total, tokens = max(expected, key=lambda beam: beam[0] / len(beam[1]) ** penalty)
            found = max(hypotheses, key=lambda text: text.score(penalty))
            assert found.tokens == (tokens[:-1] if tokens[-1] in eos_ids else tokens)
            assert found.length == len(tokens)
            assert found.log_probability == pytest.approx(total, rel=1e-6)   # a sum in fp32: 8 units in the last place
            assert found.score(penalty) == found.log_probability / len(tokens) ** penalty
            assert generate(model, [prompt], beam_size, penalty, ngram, 14, eos_ids) == [best_text(hypotheses, penalty)]


def test_n_best_holds_what_the_search_set_aside():
    """Where nothing can be decided before the last step (negative penalty), the whole list is the slow search's."""
    model, prompt = small_model(), [9, 30, 2]
    hypotheses, = n_best(model, [prompt], Settings(4, (-1.0,), 3, 9, (7, 8, 9)))
    expected = slow_authors(model, prompt, 4, 3, 9, (7, 8, 9))
    assert len(hypotheses) == len(expected) > 4
    assert [text.score(-1.0) for text in hypotheses] == sorted((text.score(-1.0) for text in hypotheses), reverse=True)
    for text, (total, tokens) in zip(hypotheses, sorted(expected, key=lambda beam: -beam[0] * len(beam[1])), strict=True):
        assert text.tokens == [token for token in tokens if token not in (7, 8, 9)]
        assert text.log_probability == pytest.approx(total, rel=1e-6)


def test_decided_prompts_leave_the_batch():
    """The search stops before max_new_tokens, prompt by prompt, with the result of the slow search that goes on."""
    model, prompts, eos_ids, rows = small_model(), ragged_prompts(8, 61, seed=3), tuple(range(40)), []
    handle = model.transformer.wte.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    try:
        texts = generate(model, prompts, 4, 0.9, 0, 30, eos_ids)
    finally:
        handle.remove()
    assert rows == sorted(rows, reverse=True) and rows[0] == 8 and len(rows) < 30 and len(set(rows)) > 2
    for prompt, text in zip(prompts, texts, strict=True):
        _, tokens = max(slow_authors(model, prompt, 4, 0, 30, eos_ids), key=lambda beam: beam[0] / len(beam[1]) ** 0.9)
        assert text == [token for token in tokens if token not in eos_ids]


# ---------------------------------------------------------------- whatever the batch

@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("beam_size", [1, 5])
def test_batches_do_not_matter(search, beam_size):
    model, prompts = small_model(), ragged_prompts(11, 61, seed=21)
    options = dict(beam_size=beam_size, max_new_tokens=15, eos_ids=(7, 8, 9), search=search)
    together = generate(model, prompts, **options)
    assert generate(model, prompts, **options) == together
    assert generate(model, prompts, batch_size=3, **options) == together
    assert generate(model, prompts, batch_size=1, **options) == together
    if search != "sample":                                                   # whose random numbers go by place in the list
        assert generate(model, prompts[::-1], **options) == together[::-1]
        assert [generate(model, [prompt], **options)[0] for prompt in prompts] == together
    assert len(set(map(len, together))) > 2


def test_batches_keep_to_the_memory_limit(monkeypatch):
    model, prompts = small_model(), ragged_prompts(6, 61, seed=2)
    rows = []
    handle = model.transformer.wte.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    try:
        per_prompt = 2 * 3 * 48 * (12 + 4 * 8) * 4 + 3 * 4 * 61 * 4
        monkeypatch.setattr(decoding, "CACHE_BYTES", 2 * per_prompt)
        pairs = generate(model, prompts, 4, max_new_tokens=8)
        monkeypatch.setattr(decoding, "CACHE_BYTES", 1)
        assert max(rows) in (2, 3)                                           # shorter prompts may go three at a time
        rows.clear()
        assert generate(model, prompts, 4, max_new_tokens=8) == pairs and set(rows) == {1}
    finally:
        handle.remove()


def test_merged_equals_unmerged():
    model = GPT2(GPT2Config(vocab_size=61, n_positions=64, n_embd=48, n_layer=3, n_head=4, initializer_range=0.3))
    init_weights(model, seed=5)
    prompts, options = ragged_prompts(6, 61, seed=4), dict(beam_size=4, max_new_tokens=12, eos_ids=(7, 8, 9))
    before = generate(model, prompts, **options)
    add_lora(model, rank=3, alpha=7)
    for layer in lora_layers(model).values():
        for B in layer.lora_B.values():
            torch.nn.init.normal_(B, std=0.2, generator=torch.Generator().manual_seed(B.shape[0]))
    for search in ("authors", "hf"):
        apart = generate(model, prompts, search=search, **options)
        assert apart != before
        assert generate(merge(model), prompts, search=search, **options) == apart
        unmerge(model)


def test_mode_of_the_model_is_kept():
    model = GPT2(GPT2Config(vocab_size=61, n_positions=64, n_embd=48, n_layer=1, n_head=4, initializer_range=0.3))
    init_weights(model, seed=0)
    model.train()
    texts = generate(model, [[1, 2, 3]], 3, max_new_tokens=9)
    assert model.training and generate(model.eval(), [[1, 2, 3]], 3, max_new_tokens=9) == texts and not model.training


# ---------------------------------------------------------------- one path

def test_greedy_and_narrow_sampling_agree():
    model, prompts = small_model(), ragged_prompts(7, 61, seed=8)
    options = dict(no_repeat_ngram_size=3, max_new_tokens=14, eos_ids=(7, 8, 9))
    greedy = generate(model, prompts, search="greedy", **options)
    assert generate(model, prompts, beam_size=1, search="hf", **options) == greedy
    assert generate(model, prompts, search="sample", top_k=1, seed=3, **options) == greedy
    assert generate(model, prompts, search="sample", top_p=1e-6, seed=4, **options) == greedy
    assert generate(model, prompts, search="sample", temperature=1e-4, seed=5, **options) == greedy


@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, 0, 1.0), (2.5, 0, 1.0), (1.5, 4, 1.0), (2.0, 0, 0.7), (2.0, 6, 0.8)])
def test_samples_follow_the_distribution(temperature, top_k, top_p):
    model, prompt, draws = small_model(), [4, 17, 33], 4000
    logits = model(torch.tensor([prompt]))[0, -1].detach() / temperature
    ranked = sorted(enumerate(torch.softmax(logits, dim=-1).tolist()), key=lambda entry: -entry[1])[:top_k or None]
    total, kept, mass = sum(p for _, p in ranked), {}, 0.0
    for token, p in ranked:
        if mass < top_p:
            kept[token] = p / total
            mass += p / total
    settings = Settings(no_repeat_ngram_size=0, max_new_tokens=1, eos_ids=(), search="sample", temperature=temperature,
                        top_k=top_k, top_p=top_p, seed=1)
    counts = Counter(texts[0].tokens[0] for texts in n_best(model, [prompt] * draws, settings))
    assert set(counts) <= set(kept)
    for token, p in kept.items():
        p /= sum(kept.values())
        assert abs(counts[token] - draws * p) < 5 * math.sqrt(draws * p * (1 - p)) + 1

@pytest.mark.parametrize("temperature, top_k, top_p", [
    (1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 5, 1.0), (1.0, 0, 0.8), (2.0, 30, 0.9), (0.5, 3, 0.4), (1.3, 1000, 0.999),
    (1.0, 1, 0.5)])
def test_the_distribution_is_that_of_transformers_warpers(temperature, top_k, top_p):
    """In generate's order, on flat and on steep rows, some of whose tokens the ban has taken."""
    processors = pytest.importorskip("transformers").generation.logits_process
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 61, generator=generator) * torch.linspace(0.1, 12, 40)[:, None]
    logits[::3, :7] = -math.inf
    expected = processors.TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        expected = processors.TopKLogitsWarper(top_k)(None, expected)
    expected = torch.softmax(processors.TopPLogitsWarper(top_p)(None, expected), dim=-1)
    probs, ids = sampling.narrow(logits, temperature, top_k, top_p)
    ours = torch.zeros_like(probs).scatter(1, ids, probs)
    torch.testing.assert_close(ours, expected)
    assert torch.equal(ours > 0, expected > 0) and (probs.diff(dim=-1) <= 0).all()


def test_a_number_from_0_to_1_draws_the_token_in_whose_share_it_lies():
    """At the borders, too, where rounding could lead to a token that is cut off or to none."""
    probs, ids = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).expand(7, -1), torch.tensor([[9, 4, 7, 1]]).expand(7, -1)
    uniform = torch.tensor([[0.0], [0.49], [0.5], [0.74], [0.75], [0.99], [1.0]])
    assert sampling.draw(probs, ids, uniform).squeeze(1).tolist() == [9, 9, 4, 4, 7, 7, 7]


def test_the_seed_decides_samples():
    prompts, options = ragged_prompts(5, 61, seed=8), dict(max_new_tokens=10, eos_ids=(), search="sample", temperature=2.0)
    first = generate(small_model(), prompts, seed=1, **options)
    assert generate(small_model(), prompts, seed=1, **options) == first
    assert generate(small_model(), prompts, seed=2, **options) != first


# ---------------------------------------------------------------- the ban

@pytest.mark.parametrize("search, sees_prompt", [("authors", False), ("hf", True), ("greedy", True)])
def test_no_ngram_is_repeated(search, sees_prompt):
    """A model that repeats itself without the ban writes no n-gram twice with it, and `authors` may repeat the prompt's."""
    model, prompts, repeats_prompt = small_model(), [[5, 6, 7] * 3, [11, 40] * 4, [1], [33, 2]], False
    for n in (1, 2, 3):
        banned = generate(model, prompts, 4, 0.9, n, 20, (), search=search)
        free = generate(model, prompts, 4, 0.9, 0, 20, (), search=search)
        assert banned != free
        for prompt, text in zip(prompts, banned, strict=True):
            grams = list(zip(*(text[start:] for start in range(n)), strict=False))
            assert len(set(grams)) == len(grams)
            whole = (prompt + text)[max(0, len(prompt) - n + 1):]
            new = list(zip(*(whole[start:] for start in range(n)), strict=False))
            old = set(zip(*(prompt[start:] for start in range(n)), strict=False))
            repeats_prompt |= bool(old & set(new))
            assert not (sees_prompt and old & set(new))
    assert repeats_prompt != sees_prompt


# ---------------------------------------------------------------- ids without text

def with_further_rows(model: GPT2, count: int) -> GPT2:
    """A copy with more tokens, which always win: both models' last LayerNorm adds to the one number that they look at."""
    larger = GPT2(replace(model.config, vocab_size=model.config.vocab_size + count)).eval()
    own = model.transformer.wte.weight
    rows = torch.cat([own, own.new_zeros(count, own.shape[1])])
    larger.load_state_dict(model.state_dict() | {"transformer.wte.weight": rows})
    with torch.no_grad():
        for either in (model, larger):
            either.transformer.ln_f.bias[0] += 30.0
        larger.transformer.wte.weight[-count:, 0] = 50.0
    return larger


@pytest.mark.parametrize("search, beam_size", [("authors", 4), ("hf", 4), ("greedy", 1), ("sample", 1)])
def test_banned_ids_are_as_if_the_model_had_no_such_rows(search, beam_size):
    model = copy.deepcopy(small_model())
    larger, banned = with_further_rows(model, 3), (61, 62, 63)
    options = dict(search=search, beam_size=beam_size, max_new_tokens=9, eos_ids=(7, 8))
    prompts = ragged_prompts(5, 61, seed=12)
    expected = generate(model, prompts, **options)
    assert generate(larger, prompts, **options, banned_ids=banned) == expected
    assert {token for text in generate(larger, prompts, **options) for token in text} & {61, 62, 63}
    with pytest.raises(ValueError, match="beam_size is 62, too large for the model's 61 tokens"):
        generate(larger, prompts, beam_size=62, max_new_tokens=9, banned_ids=banned)


def test_a_model_with_more_tokens_than_its_tokenizer_writes_the_same_texts(toy_model, toy_data):
    model, tokenizer = copy.deepcopy(toy_model[0]), toy_model[1]
    larger = with_further_rows(model, 2)
    pairs = read_e2e("test", toy_data)
    texts = [decode_e2e(either, tokenizer, pairs, limit=2, beam_size=3, max_new_tokens=10) for either in (model, larger)]
    assert texts[0] == texts[1] and all(texts[0][1][0.9])
    answers = []
    for either in (model, larger):
        predictor = Predictor(AdapterBank(either), tokenizer, beam_size=3, max_new_tokens=10)
        answers.append(predictor.answer([predictor.reader.read(b'{"adapter": "base", "text": "The Winter Otter"}')]))
    assert answers[0] == answers[1] and answers[0][0]["text"]


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize("prompts, options, message", [
    ([[1], []], {}, "prompt 1 is empty"),
    ([[1] * 55], {}, "prompt 0 has 55 tokens and max_new_tokens is 10, but the model has 64 positions"),
    ([[1], [2, 61]], {}, "prompt 1 holds token id 61, but the model's ids are 0 to 60"),
    ([[-1, 2]], {}, "token id -1"),
    ([[1]], {"beam_size": 62}, "beam_size is 62, too large for the model's 61 tokens"),
    ([[1]], {"beam_size": 60, "search": "hf"}, "beam_size is 60, too large"),
    ([[1]], {"beam_size": 0}, "beam_size is 0"),
    ([[1]], {"batch_size": 0}, "batch_size is 0"),
    ([[1]], {"no_repeat_ngram_size": 1, "max_new_tokens": 62, "eos_ids": ()}, "prompt 0: no text has a finite probability"),
    ([[1]], {"search": "sample", "no_repeat_ngram_size": 1, "max_new_tokens": 62, "eos_ids": ()}, "no text has a finite"),
    ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ([[1]], {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
    ([[1]], {"length_penalty": math.nan}, "length penalties are"),
    ([[1]], {"search": "beam"}, "search is 'beam', expected one of authors, hf, greedy, sample"),
    ([[1]], {"search": "sample", "temperature": 0.0}, "temperature is 0.0 and"),
    ([[1]], {"search": "sample", "top_p": 0.0}, "top_p 0.0"),
])
def test_bad_input_is_named(prompts, options, message):
    with pytest.raises(ValueError, match=message) as error:
        generate(small_model(), prompts, **{"max_new_tokens": 10} | options)
    assert "\n" not in str(error.value)


def test_limits_are_allowed():
    """All positions used, all tokens as beams, no prompt at all, and end tokens that the vocabulary does not have."""
    model = small_model()
    assert len(generate(model, [[1] * 54], 61, max_new_tokens=10)[0]) == 10
    assert generate(model, []) == []


# ---------------------------------------------------------------- E2E

def test_text_is_cut_and_stripped():
    assert clean(" Aromi is nice . \n\n It is") == "Aromi is nice ."
    assert clean("\nOne line\nand another\u2028one \n") == "One line and another one"
    assert clean("\n\nnothing before") == ""


def test_end_tokens_of_gpt2(shared):
    assert set(end_tokens(load_tokenizer(shared / "data" / "hub" / "gpt2"))) == {50256, 628}


def test_the_prompt_ends_where_the_text_begins(toy_model):
    _, tokenizer, prompts, pairs = toy_model
    records = list(dict.fromkeys(mr for mr, _ in pairs))
    assert [e2e_prompt(tokenizer, mr) for mr in records] == prompts
    for mr, reference in pairs:
        sample, context_length = encode_e2e(tokenizer, mr, reference)
        assert e2e_prompt(tokenizer, mr) == sample[:context_length]


def test_every_record_is_decoded_once(toy_model, monkeypatch):
    model, tokenizer, prompts, pairs = toy_model
    decoded = []
    original = e2e.n_best
    monkeypatch.setattr(e2e, "n_best", lambda *arguments: decoded.extend(arguments[1]) or original(*arguments))
    references, hypotheses = decode_e2e(model, tokenizer, pairs, (0.9, 0.8), beam_size=3, max_new_tokens=12)
    assert decoded == prompts and len(pairs) > len(prompts)
    assert len(references) == len(prompts) and sum(map(len, references)) == len(pairs)
    for penalty in (0.9, 0.8):
        settings = dict(beam_size=3, length_penalty=penalty, max_new_tokens=12, eos_ids=end_tokens(tokenizer))
        assert hypotheses[penalty] == [clean(tokenizer.decode(ids)) for ids in generate(model, prompts, **settings)]
    table = penalty_table(references, hypotheses).splitlines()
    rows = [[float(cell) for cell in line.split()] for line in table[1:]]
    assert [row[0] for row in rows] == [0.8, 0.9] and all(row[3] > 0 for row in rows)


def test_the_command_writes_the_scorers_files(toy_model, toy_data, repository, tmp_path, capsys):
    model, tokenizer, prompts, pairs = toy_model
    torch.manual_seed(0)
    adapted = add_lora(load_pretrained(repository / "toy" / "gpt2"), rank=2, alpha=6)
    for layer in lora_layers(adapted).values():
        for B in layer.lora_B.values():
            torch.nn.init.normal_(B, std=0.3)
    save_adapter(adapted, tmp_path / "adapter")
    out = tmp_path / "new" / "predictions.txt"
    options = ["--model", str(repository / "toy" / "gpt2"), "--task", "e2e", "--split", "test", "--data-dir", str(toy_data),
               "--precision", "fp32", "--beam-size", "3", "--max-new-tokens", "10", "--limit", str(len(prompts))]
    assert main([*options, "--out", str(out), "--adapter", str(tmp_path / "adapter"), "--compare-penalties"]) == 0
    assert "length ratio" in capsys.readouterr().out
    references, hypotheses = read_pair(f"{out}.references", out)
    assert references == decode_e2e(adapted, tokenizer, pairs, beam_size=3, max_new_tokens=10)[0]
    assert hypotheses == decode_e2e(adapted, tokenizer, pairs, beam_size=3, max_new_tokens=10)[1][0.9]
    assert hypotheses != decode_e2e(model, tokenizer, pairs, beam_size=3, max_new_tokens=10)[1][0.9]
    assert '"text": "pretokenised"' in (tmp_path / "new" / "predictions.txt.json").read_text(encoding="utf-8")


def test_the_format_is_that_of_the_adapters_run_unless_another_is_asked_for(toy_data, repository, tmp_path, capsys):
    """The line on stderr says which and why, and that LoRA was merged; FILE.json keeps it."""
    base = repository / "toy" / "gpt2"
    adapter = tmp_path / "seed0" / "adapter"
    save_adapter(add_lora(load_pretrained(base), rank=2, alpha=6), adapter)
    command = ["--model", str(base), "--data-dir", str(toy_data), "--beam-size", "2", "--max-new-tokens", "4", "--limit", "2",
               "--out", str(tmp_path / "out.txt"), "--device", "cpu"]

    def said(*options):
        assert main([*command, *options]) == 0
        line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("precision: "))
        kept = json.loads((tmp_path / "out.txt.json").read_text(encoding="utf-8"))
        assert kept["precision"] == line.split()[4]
        return line
    (tmp_path / "seed0" / "config.json").write_text('{"frozen_in": "bf16"}', encoding="utf-8")
    assert said("--adapter", str(adapter)) == (
        "precision: the weights in bf16 (as the run that trained it), LoRA merged")
    assert said("--adapter", str(adapter), "--precision", "fp32") == (
        "precision: the weights in fp32 (asked for), LoRA merged")
    (tmp_path / "seed0" / "config.json").unlink()
    assert "as the run" not in said("--adapter", str(adapter))            # no run's folder: the rule of auto
    assert said("--precision", "bf16").startswith("precision: the weights in bf16 (asked for")
    with pytest.raises(ValueError, match="--device") as error:
        main([*command, "--device", "tpu"])
    assert "\n" not in str(error.value)


def test_an_encoder_generates_no_text(toy_data, repository, tmp_path):
    with pytest.raises(ValueError, match="is an encoder, which generates no text: give a GPT-2"):
        main(["--model", str(repository / "toy" / "roberta"), "--data-dir", str(toy_data), "--out", str(tmp_path / "out.txt")])


def test_the_command_samples_what_generate_samples(toy_model, toy_data, repository, tmp_path):
    """The same texts for the same seed, whatever the limit; and FILE.json says how they were drawn."""
    model, tokenizer, prompts, _ = toy_model
    how = ["--temperature", "0.8", "--top-k", "40", "--top-p", "0.95", "--seed", "5"]

    def texts(*options):
        out = tmp_path / "out.txt"
        assert main(["--model", str(repository / "toy" / "gpt2"), "--data-dir", str(toy_data), "--precision", "fp32",
                     "--device", "cpu", "--max-new-tokens", "12", "--out", str(out), *options]) == 0
        return out.read_text(encoding="utf-8").splitlines(), json.loads((tmp_path / "out.txt.json").read_text(encoding="utf-8"))
    limit = ["--limit", str(len(prompts))]
    drawn, settings = texts("--sample", *how, *limit)
    options = dict(search="sample", temperature=0.8, top_k=40, top_p=0.95, seed=5, max_new_tokens=12)
    assert drawn == [clean(tokenizer.decode(ids)) for ids in generate(model, prompts, eos_ids=end_tokens(tokenizer),
                                                                      batch_size=2, **options)]
    assert options.items() <= settings.items() and "beam_size" not in settings and "length_penalty" not in settings
    assert texts("--search", "sample", *how, "--limit", "2")[0] == drawn[:2]
    assert texts("--sample", *how[:-1], "6", *limit)[0] != drawn
    _, settings = texts("--limit", "1")
    assert settings["beam_size"] == 10 and settings["length_penalty"] == 0.9 and "seed" not in settings


@pytest.mark.parametrize("options, message", [
    (["--temperature", "0.7"], "--temperature means nothing for --search authors: leave it out, or search by sample"),
    (["--seed", "0"], "--seed means nothing for --search authors"), (["--search", "greedy", "--top-k", "0"], "--top-k means"),
    (["--search", "hf", "--top-p", "1"], "--top-p means nothing for --search hf"),
    (["--sample", "--beam-size", "4"], "--beam-size means nothing for --search sample: leave it out, or search by authors"),
    (["--search", "greedy", "--length-penalty", "1"], "--length-penalty means nothing for --search greedy"),
    (["--search", "hf", "--compare-penalties"], "--compare-penalties means nothing for --search hf"),
    (["--sample", "--search", "hf"], "not allowed with argument --sample")])
def test_options_that_mean_nothing_together_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "gpt2", "--out", "x", *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_search_of_one_path_fits_more_prompts_than_beams(monkeypatch):
    """As many as the beams take places of each."""
    model = GPT2(GPT2Config(vocab_size=60, n_positions=200, n_embd=24, n_layer=2, n_head=3))
    monkeypatch.setattr(decoding, "CACHE_BYTES", 2**22)
    beams, greedy, sample = (decoding.fitting_batch(model, 1, Settings(beam_size=10, max_new_tokens=64, search=search))
                             for search in ("authors", "greedy", "sample"))
    assert greedy == sample and 9 < greedy / beams < 11
