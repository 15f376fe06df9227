"""speed/ against the plain forms: same numbers, same gradients; packed batches against each sequence alone."""
import pytest
import torch
from torch.nn import functional as F

import methods
import model as M
import speed.attention as attention_by_hand
import speed.loss as loss_in_blocks
from speed.dropout import Dropout, dropout
from speed.loss import target_loss
from speed.packed import pack, round_up
from tests.test_model import ODD_BERT, ODD_GPT2, ODD_ROBERTA
from toy.fresh import init_weights

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


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_a_share_and_scales_the_rest_alike_in_both_directions(p):
    torch.manual_seed(0)
    x = torch.rand(301, 1003).add_(1).requires_grad_()
    y = dropout(x, p)
    y.sum().backward()
    kept = y != 0
    assert (~kept).float().mean().item() == pytest.approx(p, abs=0.004)      # 7 standard deviations at p = 0.1
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept], rtol=2e-5, atol=0)
    torch.testing.assert_close(x.grad, kept / (1 - p), rtol=2e-5, atol=0)
    columns = (~kept).float().mean(0)                                        # four neighbours share a draw of 64 bits
    assert (columns - p).abs().max() < 0.16 and abs(torch.corrcoef(kept[:, :4].float().T) - torch.eye(4)).max() < 0.3


def test_dropout_just_below_1_keeps_numbers_finite():
    """0.999995 times 65,536 rounds to all of them."""
    kept = dropout(torch.ones(400_000), 0.999995)
    assert kept.isfinite().all() and set(kept.unique().tolist()) <= {0.0, 65536.0}


def test_dropout_follows_the_seed_and_is_off_in_eval_mode():
    x, layer = torch.ones(9, 7), Dropout(0.3)
    first, second = (torch.manual_seed(seed) and layer(x) for seed in (4, 4))
    assert torch.equal(first, second) and not torch.equal(first, layer(x))
    assert torch.equal(layer.eval()(x), x) and dropout(x, 0.0) is x


@pytest.mark.parametrize("rows", [3, 128], ids=["in pieces", "at once"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_attention_is_its_formula(monkeypatch, mask, p, rows):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, 7, 5) for _ in range(3))
    seen = torch.rand(3, 1, 1, 7) < 0.7
    seen[..., 0] = True
    allowed = {None: torch.tensor(True), "causal": torch.ones(7, 7, dtype=torch.bool).tril(), "padding": seen}[mask]
    keep, drawn = torch.rand(3, 2, 7, 7) >= p, []

    def same_draw(P, p):
        """The piece of `keep` that comes next."""
        drawn.append(P.shape)
        start = sum(piece[2] for piece in drawn[:-1])
        return keep[:, :, start:start + P.shape[2], :P.shape[3]].to(P.dtype), 1 / (1 - p)

    def formula(q, k, v):
        P = (q @ k.transpose(-1, -2) / 5 ** 0.5).masked_fill(~allowed, float("-inf")).softmax(-1)
        return (P * keep / (1 - p)) @ v
    monkeypatch.setattr(attention_by_hand, "QUERY_ROWS", rows)
    monkeypatch.setattr(attention_by_hand, "draw_mask", same_draw)
    given = seen if mask == "padding" else None
    same(lambda q, k, v: attention_by_hand.attention(q, k, v, given, mask == "causal", p), formula, query, key, value)
    assert len(drawn) == (0 if p == 0 else 3 if rows == 3 and mask != "padding" else 1)


@pytest.mark.parametrize("rows", [2, 128], ids=["in pieces", "at once"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_gradient_of_attention_is_that_of_its_numbers(monkeypatch, p, rows):
    """Against finite differences, dropout drawn alike every time."""
    def attend(*inputs):
        torch.manual_seed(1)
        return attention_by_hand.attention(*inputs, None, True, p)
    monkeypatch.setattr(attention_by_hand, "QUERY_ROWS", rows)
    inputs = [torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attend, inputs)
    assert (attend(*inputs) == attend(*inputs)).all() and (p == 0) == torch.equal(attend(*inputs), attention_by_hand.attention(
        *inputs, None, True, 0.0))


def test_causal_attention_never_computes_the_future(monkeypatch):
    """Of 8 x 8 scores, in pieces of two queries, 2 x (2 + 4 + 6 + 8) are kept, and as many bytes of the mask."""
    monkeypatch.setattr(attention_by_hand, "QUERY_ROWS", 2)
    query, key, value = (torch.randn(1, 1, 8, 3, requires_grad=True) for _ in range(3))
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or tensor, lambda tensor: tensor):
        attention_by_hand.attention(query, key, value, None, True, 0.4)
    assert [sum(tensor.numel() for tensor in held if tensor.shape[2] == 2 and tensor.shape[3] != 3 and tensor.dtype == kind)
            for kind in (torch.float32, torch.int8)] == [40, 40]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_target_loss_is_cross_entropy_over_several_chunks(monkeypatch, smoothing):
    monkeypatch.setattr(loss_in_blocks, "LOGIT_ROWS", 4)
    targets = torch.randint(0, 23, (11,))
    same(lambda h, w: target_loss(h, w, targets, smoothing),
         lambda h, w: F.cross_entropy(h @ w.T, targets, label_smoothing=smoothing, reduction="sum"),
         torch.randn(11, 6), torch.randn(23, 6))


def test_target_loss_of_a_hopeless_model_is_finite():
    hidden, weight = torch.tensor([[300.0, 0.0]], requires_grad=True), torch.eye(2)
    loss = target_loss(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 300 and hidden.grad.tolist() == [[1, -1]]


def test_target_loss_keeps_one_chunk_of_logits(monkeypatch):
    """What autograd holds between the passes does not depend on the vocabulary."""
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor.numel()) or tensor, lambda tensor: tensor):
        target_loss(torch.randn(300, 6, requires_grad=True), torch.randn(1000, 6), torch.zeros(300, dtype=torch.long))
    assert sum(held) == 300 * 6


def test_rows_behind_the_targets_count_for_nothing():
    """They fill a bf16 batch up: they have no loss and no gradient."""
    weight, targets = torch.randn(23, 6), torch.randint(0, 23, (11,))
    hidden = torch.randn(16, 6, requires_grad=True)
    loss = target_loss(hidden, weight, targets, 0.1)
    loss.backward()
    plain = F.cross_entropy(hidden[:11] @ weight.T, targets, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss, plain)
    assert (hidden.grad[11:] == 0).all() and (hidden.grad[:11] != 0).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_of_the_loss_is_taken_where_none_is_wanted(mode, monkeypatch):
    """A fully fine-tuned GPT-2 is scored with a weight that has requires_grad: the (V, C) gradient would be most of it."""
    hidden, weight = (torch.randn(7, 6, requires_grad=True), torch.randn(23, 6, requires_grad=True))
    made, zeros_like = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda tensor: made.append(tensor.shape) or zeros_like(tensor))
    with mode():
        target_loss(hidden, weight, torch.zeros(7, dtype=torch.long))
    assert not made


def odd_models():
    gpt2 = M.GPT2(M.GPT2Config(**ODD_GPT2, **NO_DROPOUT))
    roberta = M.RobertaClassifier(M.RobertaConfig(**ODD_ROBERTA, **NO_ROBERTA_DROPOUT, num_labels=3))
    bert = M.BertClassifier(M.BertConfig(**ODD_BERT | {"sep_token_id": 9}, **NO_ROBERTA_DROPOUT, num_labels=3))
    for seed, model in enumerate((gpt2, roberta, bert)):
        init_weights(model, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return gpt2, roberta, bert


def hidden_alone(model, sequences):
    """Every sequence by itself, through the plain `attend`."""
    return torch.cat([model.hidden_states(ids, M.Padded(ids, causal=model.causal))[0]
                      for ids in (torch.tensor([sequence]) for sequence in sequences)])


@pytest.mark.parametrize("method", ["full", "lora", "adapter-h", "adapter-l", "prefix", "last-layers"])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["gpt2", "roberta", "bert"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_packed_batch_is_each_sequence_alone(kind, method, multiple):
    """Hidden states at the wanted rows, and every gradient, in training mode; filled up behind to 24 tokens or not."""
    model = odd_models()[kind].train()
    torch.manual_seed(3)
    methods.apply_method(model, method, rank=3, alpha=7, targets=("q", "v"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name or ".up." in name:
                parameter.normal_(0, 0.1)
    ids, attend = pack(SEQUENCES, model.causal, multiple=multiple)
    assert attend.groups[:3] == [(2, 3), (1, 7), (1, 9)] and ids.tolist()[:22] == sum(SEQUENCES, [])
    assert len(ids) == (22 if multiple == 1 else 24)
    wanted = torch.tensor([1, 2, 5, 6, 12, 13, 20])
    packed = model.hidden_states(ids, attend, wanted)
    alone = hidden_alone(model, SEQUENCES)
    every = model.hidden_states(ids, attend)[:22]
    torch.testing.assert_close(packed, alone[wanted], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(every, alone, atol=1e-5, rtol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.randn(packed.shape)
    gradients = [torch.autograd.grad((hidden * weights).sum(), trained, allow_unused=True)
                 for hidden in (packed, alone[wanted])]
    for name, mine, plain in zip([n for n, p in model.named_parameters() if p.requires_grad], *gradients, strict=True):
        if plain is None:
            assert mine is None and name.startswith("classifier")
        else:
            torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [1, 2], ids=["roberta", "bert"])
def test_a_packed_classification_is_the_padded_one(kind):
    model = odd_models()[kind].eval()
    ids, attend = pack(SEQUENCES, causal=False, multiple=8)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in SEQUENCES], True, model.config.pad_token_id)
    with torch.inference_mode():
        packed = model.classifier(model.hidden_states(ids, attend, torch.tensor([0, 3, 6, 13])))
        torch.testing.assert_close(packed, model(padded, padded != model.config.pad_token_id), atol=1e-5, rtol=1e-5)


def test_a_packed_sequence_that_is_too_long_is_refused():
    gpt2, roberta, _ = odd_models()
    for model, limit in ((gpt2, 40), (roberta, 42)):
        with pytest.raises(ValueError, match=f"{limit + 1} tokens, but the model takes {limit}"):
            model.hidden_states(*pack([[7] * (limit + 1)], model.causal))


@pytest.mark.parametrize("count, expected", [(1, 4), (4, 4), (5, 8), (7, 8)])
def test_rounding_up_repeats_the_last_row(count, expected):
    rows = round_up(torch.arange(10, 10 + count), 4)
    assert len(rows) == expected and rows[:count].tolist() == list(range(10, 10 + count))
    assert set(rows[count:].tolist()) <= {9 + count}


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_the_plain_attention_is_torchs(causal):
    query, key, value = (torch.randn(3, 2, 7, 5) for _ in range(3))
    seen = None if causal else (torch.rand(3, 1, 1, 7) < 0.7) | (torch.arange(7) == 0)
    torch.testing.assert_close(M.attention(query, key, value, seen, causal, 0.0),
                               F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal),
                               atol=1e-6, rtol=1e-5)
