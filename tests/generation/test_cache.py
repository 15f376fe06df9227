"""The cache of decoding, against its plain form, and both against whole sequences without a cache."""
import copy

import pytest
import torch

from generation.cache import BeamCache, RowCache
from lora import add_lora, lora_layers, merge
from model import GPT2, GPT2Config, Padded
from speed.linear import lay_out_for_decoding
from toy.fresh import init_weights

B, K = 4, 3


def odd_model() -> GPT2:
    model = GPT2(GPT2Config(vocab_size=97, n_positions=40, n_embd=36, n_layer=3, n_head=3, n_inner=50, initializer_range=0.2))
    init_weights(model, seed=3)
    return model.eval()


def whole(model: GPT2, text: list[int]) -> torch.Tensor:
    ids = torch.tensor([text])
    return model.hidden_states(ids, Padded(ids, causal=True))[0, -1]


@torch.inference_mode()
def test_cache_with_a_mask_equals_the_whole_sequence():
    """A prompt in one call, then two tokens per row and call, as two beams of it: equal to each beam written out."""
    ours = odd_model()
    prompt, beams = torch.randint(5, 97, (3, 6)), torch.randint(5, 97, (3, 2, 2))                # (B, P), (B, K, steps)
    cache = BeamCache(torch.full((3,), 6), capacity=6 + 2 * 2)
    ours.hidden_states(prompt, cache)
    for step in range(2):
        cache.go_on(torch.tensor([[0, min(step, 1)]] * 3))                   # each beam goes on from itself
        hidden = ours.hidden_states(beams[:, :, step], cache)
    for beam in range(2):
        texts = torch.cat([prompt, beams[:, beam]], dim=1)
        expected = ours.hidden_states(texts, Padded(texts, causal=True))[:, -1]
        torch.testing.assert_close(hidden[:, beam], expected, atol=1e-5, rtol=1e-5)


def random_branching(model: GPT2, seed: int, steps: int = 12):
    """Beams of ragged prompts that branch at random, while prompts leave. Yields, of every step, the texts so far, and the
    hidden states of their last tokens by both caches: (rows, C) each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 2, 7, 1])
    prompts = torch.randint(97, (B, 7), generator=generator)
    texts = [[prompt[:length]] for prompt, length in zip(prompts.tolist(), lengths.tolist(), strict=True)]
    beams, rows, width = BeamCache(lengths, 7 + K * steps), RowCache(lengths), 1
    for cache in (beams, rows):
        model.hidden_states(prompts, cache)
    for step in range(steps):
        parents = torch.randint(width, (len(texts), K), generator=generator)
        of_rows = (parents + width * torch.arange(len(texts))[:, None]).flatten()
        if step in (4, 7, 8):                                                # a row in front leaves, the last, one between
            staying = [row for row in range(len(texts)) if row != {4: 0, 7: len(texts) - 1, 8: 1}[step]]
            texts, parents, of_rows = [texts[row] for row in staying], parents[staying], of_rows.view(-1, K)[staying].flatten()
            beams.keep(staying)
        tokens = torch.randint(97, parents.shape, generator=generator)
        texts = [[text[parent] + [token] for parent, token in zip(*chosen, strict=True)]
                 for text, *chosen in zip(texts, parents.tolist(), tokens.tolist(), strict=True)]
        beams.go_on(parents)
        rows.go_on(of_rows)
        width = K
        yield (sum(texts, []), model.hidden_states(tokens, beams).flatten(0, 1),
               model.hidden_states(tokens.flatten()[:, None], rows)[:, 0])


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_beams_that_share_a_row_equal_a_row_for_each(seed):
    model = odd_model()
    for texts, by_beams, by_rows in random_branching(model, seed):
        torch.testing.assert_close(by_beams, by_rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_rows, torch.stack([whole(model, text) for text in texts]), atol=1e-5, rtol=1e-5)
    assert len(texts) == K and len({tuple(text) for text in texts}) == K     # three prompts left, the beams differ


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_both_caches_hold_bf16_and_differ_by_rounding(seed):
    """Of the same rounded weights: both are as near to fp32 as two passes in bf16 are."""
    coarse = odd_model().bfloat16()
    exact = copy.deepcopy(coarse).float()
    for texts, by_beams, by_rows in random_branching(coarse, seed):
        expected = torch.stack([whole(exact, text) for text in texts])
        without_cache = torch.stack([whole(coarse, text) for text in texts])
        error = (without_cache - expected).square().mean().sqrt()
        for found in (by_beams, by_rows):
            assert found.dtype == torch.bfloat16
            assert (found - expected).square().mean().sqrt() < 1.5 * error + 0.01
    assert error > 1e-4                                                      # it was bf16 indeed


def test_a_slot_that_nobody_sees_is_used_again():
    """Where all beams descend from one, its siblings' slots take the next tokens: 12 more positions, not 8 K."""
    model, cache = odd_model(), BeamCache(torch.tensor([2, 8]), capacity=8 + 12)
    with torch.inference_mode():
        model.hidden_states(torch.randint(97, (2, 8)), cache)
        for _ in range(8):
            cache.go_on(torch.zeros(2, K, dtype=torch.long))
            model.hidden_states(torch.randint(97, (2, K)), cache)
    assert cache.visible.shape[2] == 8 + 12 and cache.positions.tolist() == [[9] * K, [15] * K]


@torch.no_grad()
def test_layers_with_lora_are_laid_out_like_the_others():
    model = add_lora(odd_model(), rank=2, alpha=3)
    ids, layers = torch.randint(97, (2, 6)), lora_layers(model)
    before = merge(model)(ids)
    lay_out_for_decoding(model)
    for block in model.transformer.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert layer.weight.T.is_contiguous()
    assert len(layers) == 3 and all(layer.weight.shape == (36, 108) for layer in layers.values())
    torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=1e-5)
