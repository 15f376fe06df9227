"""fused.py against the plain forms: same numbers, same gradients; packed batches against each sequence alone."""
import fused
import pytest
import torch
from torch.nn import functional as F

import data
import lora
import methods as baselines
import model as M
from tests.test_model import ODD_GPT2, ODD_ROBERTA

NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
NO_ROBERTA_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SEQUENCES = [[7, 8, 9], [11, 12, 13], [5, 6, 7, 8, 9, 10, 20], [30, 31, 32, 33, 34, 35, 36, 37, 38]]


def same(ours, plain, *inputs, tolerance=1e-5):
    """Both functions of `inputs`: equal values and equal gradients of a weighted sum."""
    results = []
    for function in (ours, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        y = function(*leaves)
        (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, atol=tolerance, rtol=tolerance)


def test_gelu_is_the_tanh_form():
    same(fused.gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), 4 * torch.randn(37, 29), tolerance=2e-6)


def test_gelu_far_from_zero_is_finite():
    x = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    y = fused.gelu_tanh(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 50, 1e4] and x.grad.tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_a_share_and_scales_the_rest_alike_in_both_directions(p):
    torch.manual_seed(0)
    x = torch.rand(301, 1003).add_(1).requires_grad_()
    y = fused.dropout(x, p)
    y.sum().backward()
    kept = y != 0
    assert (~kept).float().mean().item() == pytest.approx(p, abs=0.004)      # 7 standard deviations at p = 0.1
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept], rtol=2e-5, atol=0)
    torch.testing.assert_close(x.grad, kept / (1 - p), rtol=2e-5, atol=0)
    columns = (~kept).float().mean(0)                                        # four neighbours share a draw of 64 bits
    assert (columns - p).abs().max() < 0.16 and abs(torch.corrcoef(kept[:, :4].float().T) - torch.eye(4)).max() < 0.3


def test_dropout_just_below_1_keeps_numbers_finite():
    """0.999995 times 65,536 rounds to all of them."""
    kept = fused.dropout(torch.ones(400_000), 0.999995)
    assert kept.isfinite().all() and set(kept.unique().tolist()) <= {0.0, 65536.0}


def test_dropout_follows_the_seed_and_is_off_in_eval_mode():
    x, layer = torch.ones(9, 7), fused.Dropout(0.3)
    first, second = (torch.manual_seed(seed) and layer(x) for seed in (4, 4))
    assert torch.equal(first, second) and not torch.equal(first, layer(x))
    assert torch.equal(layer.eval()(x), x) and fused.dropout(x, 0.0) is x


@pytest.mark.parametrize("rows", [3, 128], ids=["in pieces", "at once"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_attention_is_its_formula(monkeypatch, mask, p, rows):
    query, key, value = (torch.randn(3, 2, 7, 5) for _ in range(3))
    seen = torch.rand(3, 1, 1, 7) < 0.7
    seen[..., 0] = True
    allowed = {None: torch.tensor(True), "causal": torch.ones(7, 7, dtype=torch.bool).tril(), "padding": seen}[mask]
    keep, drawn = torch.rand(3, 2, 7, 7) >= p, []

    def same_draw(shape, p):
        """The piece of `keep` that comes next."""
        drawn.append(shape)
        start = sum(piece[2] for piece in drawn[:-1])
        return keep[:, :, start:start + shape[2], :shape[3]].to(torch.int8), 1 / (1 - p)

    def formula(q, k, v):
        P = (q @ k.transpose(-1, -2) / 5 ** 0.5).masked_fill(~allowed, float("-inf")).softmax(-1)
        return (P * keep / (1 - p)) @ v
    monkeypatch.setattr(fused, "QUERY_ROWS", rows)
    monkeypatch.setattr(fused, "draw_mask", same_draw)
    same(lambda q, k, v: fused.attention(q, k, v, seen if mask == "padding" else None, mask == "causal", p), formula,
         query, key, value)
    assert len(drawn) == (0 if p == 0 else 3 if rows == 3 and mask != "padding" else 1)


@pytest.mark.parametrize("rows", [2, 128], ids=["in pieces", "at once"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_gradient_of_attention_is_that_of_its_numbers(monkeypatch, p, rows):
    """Against finite differences, dropout drawn alike every time."""
    def attend(*inputs):
        torch.manual_seed(1)
        return fused.attention(*inputs, None, True, p)
    monkeypatch.setattr(fused, "QUERY_ROWS", rows)
    inputs = [torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attend, inputs)
    assert (attend(*inputs) == attend(*inputs)).all() and (p == 0) == torch.equal(attend(*inputs), fused.attention(
        *inputs, None, True, 0.0))


def test_causal_attention_never_computes_the_future(monkeypatch):
    """Of 8 x 8 scores, in pieces of two queries, 2 x (2 + 4 + 6 + 8) are kept, and as many bytes of the mask."""
    monkeypatch.setattr(fused, "QUERY_ROWS", 2)
    query, key, value = (torch.randn(1, 1, 8, 3, requires_grad=True) for _ in range(3))
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or tensor, lambda tensor: tensor):
        fused.attention(query, key, value, None, True, 0.4)
    assert [sum(tensor.numel() for tensor in held if tensor.shape[2] == 2 and tensor.shape[3] != 3 and tensor.dtype == kind)
            for kind in (torch.float32, torch.int8)] == [40, 40]


def test_a_model_trains_under_autocast():
    model = odd_models()[0].train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.tensor([SEQUENCES[0]])).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_target_loss_is_cross_entropy_over_several_chunks(monkeypatch, smoothing):
    monkeypatch.setattr(fused, "LOGIT_ROWS", 4)
    targets = torch.randint(0, 23, (11,))
    same(lambda h, w: fused.target_loss(h, w, targets, smoothing),
         lambda h, w: F.cross_entropy(h @ w.T, targets, label_smoothing=smoothing, reduction="sum"),
         torch.randn(11, 6), torch.randn(23, 6))


def test_target_loss_of_a_hopeless_model_is_finite():
    hidden, weight = torch.tensor([[300.0, 0.0]], requires_grad=True), torch.eye(2)
    loss = fused.target_loss(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 300 and hidden.grad.tolist() == [[1, -1]]


def test_target_loss_keeps_one_chunk_of_logits(monkeypatch):
    """What autograd holds between the passes does not depend on the vocabulary."""
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor.numel()) or tensor, lambda tensor: tensor):
        fused.target_loss(torch.randn(300, 6, requires_grad=True), torch.randn(1000, 6), torch.zeros(300, dtype=torch.long))
    assert sum(held) == 300 * 6


def odd_models():
    gpt2 = M.GPT2(M.GPT2Config(**ODD_GPT2, **NO_DROPOUT))
    roberta = M.RobertaClassifier(M.RobertaConfig(**ODD_ROBERTA, **NO_ROBERTA_DROPOUT, num_labels=3))
    for seed, model in enumerate((gpt2, roberta)):
        M.init_weights(model, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return gpt2, roberta


@pytest.mark.parametrize("method", ["full", "lora", "adapter-h", "adapter-l", "prefix", "last-layers"])
@pytest.mark.parametrize("kind", [0, 1], ids=["gpt2", "roberta"])
def test_a_packed_batch_is_each_sequence_alone(kind, method):
    """Hidden states at the wanted rows, and every gradient, in training mode."""
    model = odd_models()[kind].train()
    torch.manual_seed(3)
    baselines.apply_method(model, method, rank=3, alpha=7, targets=("q", "v"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name or ".up." in name:
                parameter.normal_(0, 0.1)
    ids, groups = data.pack(SEQUENCES)
    assert groups == ((2, 3), (1, 7), (1, 9)) and ids.tolist() == sum(SEQUENCES, [])
    rows = torch.tensor([1, 2, 5, 6, 12, 13, 20])
    packed = model.hidden_states(ids, packing=fused.Packing(groups, rows))
    alone = torch.cat([model.hidden_states(torch.tensor([ids]))[0] for ids in SEQUENCES])
    every = model.hidden_states(ids, packing=fused.Packing(groups))
    torch.testing.assert_close(packed, alone[rows], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(every, alone, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.randn(packed.shape)
    gradients = [torch.autograd.grad((hidden * weights).sum(), trained, allow_unused=True)
                 for hidden in (packed, alone[rows])]
    for name, mine, plain in zip([n for n, p in model.named_parameters() if p.requires_grad], *gradients, strict=True):
        if plain is None:
            assert mine is None and name.startswith("classifier")
        else:
            torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-4)


def test_a_packed_classification_is_the_padded_one():
    model = odd_models()[1].eval()
    ids, groups = data.pack(SEQUENCES)
    padded, mask = data.collate_pairs(SEQUENCES, model.config.pad_token_id)
    with torch.inference_mode():
        packed = model(ids, packing=fused.Packing(groups, torch.tensor([0, 3, 6, 13])))
        torch.testing.assert_close(packed, model(padded, mask), atol=1e-5, rtol=1e-5)


def test_a_packed_sequence_that_is_too_long_is_refused():
    gpt2, roberta = odd_models()
    for model, limit in ((gpt2, 40), (roberta, 42)):
        with pytest.raises(ValueError, match=f"{limit + 1} tokens, but the model has {limit} positions"):
            model.hidden_states(torch.full((limit + 1,), 7), packing=fused.Packing(((1, limit + 1),)))


@torch.no_grad()
@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("q", "k", "o", "fc", "proj")])
def test_the_blocks_of_lora_are_its_slices(targets):
    """One product with the block matrix is the sum over the slices that the paper writes."""
    model = lora.add_lora(odd_models()[0], 3, 7, targets)
    for layer in lora.lora_layers(model).values():
        x = torch.randn(2, 5, layer.weight_out_in().shape[1])
        h = F.linear(x, layer.weight_out_in(), layer.bias)
        for target, rows in layer.slices.items():
            torch.nn.init.normal_(layer.lora_B[target])
            h[..., rows] += 7 / 3 * x @ layer.lora_A[target].T @ layer.lora_B[target].T
        torch.testing.assert_close(layer(x), h, atol=1e-5, rtol=1e-5)
