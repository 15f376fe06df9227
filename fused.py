"""The few operations of a training step that cost time or memory in the form that autograd gives them, written out.

    Packing        sequences end to end, attention per length: no padding anywhere
    linear         x W^T + b, by the library that is faster
    dropout        random bits four to a draw, the mask kept as bytes
    gelu_tanh      by the sigmoid, which is cheaper than tanh; the derivative is kept in place of the input
    attention      by hand where there is a backward pass on a CPU, scaled_dot_product_attention elsewhere
    target_loss    cross-entropy whose gradient is taken in the forward pass, so that few logits exist at a time

Each equals the plain form, which the tests compare it with. Nothing here belongs to one model: model.py, lora.py and
tasks.py use it. Shapes: B batch, T tokens, N tokens of all sequences, C hidden size, H heads, D head size, S attended
positions, M targets, V vocabulary.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOGIT_ROWS = 128                                                             # targets whose logits exist at the same time
QUERY_ROWS = 128                                                             # queries whose scores exist at the same time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., d_in) -> (..., d_out). For the few rows of a decoding step it is oneDNN that multiplies: on a CPU
    with AVX2 up to three times as fast as MKL, torch's default. Inference in fp32 only, and W must lie as (out, in)."""
    if (x.device.type == "cpu" and x.dtype == torch.float32 and x[..., 0].numel() < 256 and weight.is_contiguous()
            and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()):
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


# ---------------------------------------------------------------- no padding

@dataclass(frozen=True)
class Packing:
    """How sequences of different lengths stand end to end in one tensor (N, C), N their tokens together, without padding.

    Ordered by length, they form groups: `groups` counts the sequences of each length, (n, t). Only attention needs to know
    where a sequence ends, and runs group by group. rows: the tokens (M,) whose hidden states are wanted; after its
    attention the last layer computes nothing for others. None: all are.
    """
    groups: tuple[tuple[int, int], ...]
    rows: Tensor | None = None

    def positions(self, limit: int, device: torch.device) -> Tensor:
        """0, 1, 2, ... in every sequence, (N,). Raises ValueError for one that is longer than `limit`."""
        longest = max(length for _, length in self.groups)
        if longest > limit:
            raise ValueError(f"{longest} tokens, but the model has {limit} positions: shorten the input")
        return torch.cat([torch.arange(length, device=device).repeat(count) for count, length in self.groups])


def per_group(attend: Callable[..., Tensor], packing: Packing | None, *parts: Tensor) -> Tensor:
    """attend(query, key, value), (B, T, C) each; of a packed batch (N, C) once per group, as n sequences of t tokens."""
    if packing is None:
        return attend(*parts)
    pieces = zip(*(part.split([count * length for count, length in packing.groups]) for part in parts), strict=True)
    return torch.cat([attend(*(piece.unflatten(0, group) for piece in group_pieces)).flatten(0, 1)
                      for group, group_pieces in zip(packing.groups, pieces, strict=True)])


def rows_of(packing: Packing | None, is_last_layer: bool) -> Tensor | None:
    return packing.rows if packing is not None and is_last_layer else None


def take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)                    # (N, C) -> (M, C)


# ---------------------------------------------------------------- dropout

class Dropout(nn.Module):
    """nn.Dropout, by `dropout` below."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each number with probability p and scale the others by 1 / (1 - p). On a CPU, where torch draws the numbers one
    after the other, p is rounded to a multiple of 1 / 65536: four of them come out of one draw of 64 bits."""
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return Masked.apply(x, *draw_mask(x.shape, p))


def draw_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Bytes, 0 with probability p and else 1, and the scale of what is kept."""
    dropped, count = min(round(p * 65536), 65535), shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-2 ** 63, None)
    keep = bits.view(torch.int16)[:count].view(shape) >= dropped - 32768
    return keep.view(torch.int8), 65536 / (65536 - dropped)


class Masked(torch.autograd.Function):
    """x * keep * scale, for a mask of bytes: a quarter of what autograd would keep."""

    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None, None


# ---------------------------------------------------------------- GELU

def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's GELU, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if x.requires_grad and x.device.type == "cpu" and x.dtype == torch.float32:
        return TanhGELU.apply(x)
    return F.gelu(x, approximate="tanh")


class TanhGELU(torch.autograd.Function):
    """0.5 (1 + tanh(u)) = sigmoid(2u), so y = x s(v), v = a x + b x^3, and dy/dx = s + y (1 - s) (a + 3 b x^2)."""
    A = 2 * (2 / torch.pi) ** 0.5
    B = A * 0.044715

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        w = (x * x).mul_(TanhGELU.B).add_(TanhGELU.A)                        # v = w x, and a + 3 b x^2 = 3 w - 2 a
        s = (w * x).sigmoid_()
        y = x * s
        slope = w.mul_(3).sub_(2 * TanhGELU.A).mul_(y)
        ctx.save_for_backward(slope.sub_(slope * s).add_(s))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return gradient * slope


# ---------------------------------------------------------------- attention

def split_heads(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)                     # (B, T, C) -> (B, H, T, D)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)                                      # (B, H, T, D) -> (B, T, C)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """Softmax attention, (B, H, T, D) over (B, H, S, D). mask: True where a query may attend, or None; causal: without a
    mask, the past only. p: dropout on the probabilities.

    torch's own is best on a GPU and without gradients, and it knows autocast. On a CPU with gradients and dropout it keeps all
    (T, S) scores and draws slowly; here QUERY_ROWS queries at a time see, if causal, only their past, which is as fast as
    torch's without dropout, too. With a mask all queries go at once."""
    causal = causal and mask is None
    if query.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=p)
    if mask is not None:
        return Attention.apply(query, key, value, mask, p)
    outputs = []
    for start in range(0, query.shape[2], QUERY_ROWS):
        rows = query[:, :, start:start + QUERY_ROWS]                         # (B, H, t, D)
        seen = start + rows.shape[2] if causal else key.shape[2]
        past = torch.ones(rows.shape[2], seen, dtype=torch.bool).tril(start) if causal else None
        outputs.append(Attention.apply(rows, key[:, :, :seen], value[:, :, :seen], past, p))
    return torch.cat(outputs, dim=2)


class Attention(torch.autograd.Function):
    """Z = Q K^T / sqrt(D), P = softmax(Z), O = M(P) V, where M is dropout. Of the (T, S) matrices P and M are kept."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
        ctx.scale = query.shape[-1] ** -0.5
        scores = (query @ key.transpose(-1, -2)).mul_(ctx.scale)             # (B, H, T, S)
        if mask is not None:
            scores.masked_fill_(~mask, float("-inf"))
        P = scores.softmax(dim=-1)
        keep, ctx.kept_scale = draw_mask(P.shape, p) if p else (None, 1.0)
        ctx.save_for_backward(query, key, value, P, keep)
        return Attention.drop(P, keep, ctx.kept_scale) @ value

    @staticmethod
    def drop(P: Tensor, keep: Tensor | None, scale: float) -> Tensor:
        return P if keep is None else (P * keep).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):
        query, key, value, P, keep = ctx.saved_tensors
        d_value = Attention.drop(P, keep, ctx.kept_scale).transpose(-1, -2) @ d_out
        d_P = Attention.drop(d_out @ value.transpose(-1, -2), keep, ctx.kept_scale)
        d_scores = (d_P - (d_P * P).sum(-1, keepdim=True)).mul_(P).mul_(ctx.scale)
        return d_scores @ key, d_scores.transpose(-1, -2) @ query, d_value, None, None


# ---------------------------------------------------------------- the language model's loss

def target_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over the M targets of the cross-entropy of logits = hidden W^T, in nats: hidden (M, C), weight (V, C), targets
    (M,). smoothing: the share e of the target that goes to all V tokens alike, as in F.cross_entropy.

    Of the (M, V) logits at most LOGIT_ROWS rows exist at a time: the gradient is taken while they are there.
    """
    return TargetLoss.apply(hidden, weight, targets, smoothing)


class TargetLoss(torch.autograd.Function):
    """Per row: loss = log Z - (1 - e) z_target - e mean(z), dloss/dz = softmax(z) - (1 - e) onehot(target) - e / V."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        wanted = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(weight) if wanted[1] else None
        vocabulary, total = weight.shape[0], hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            target = targets[rows, None]                                     # (m, 1)
            z = (hidden[rows] @ weight.T).float()                            # (m, C) -> (m, V)
            largest, at_target, mean = z.amax(1, keepdim=True), z.gather(1, target), z.mean(1, keepdim=True)
            Z = z.sub_(largest).exp_().sum(1, keepdim=True)
            total += (largest + Z.log() - (1 - smoothing) * at_target - smoothing * mean).sum()
            if any(wanted):
                z.div_(Z).sub_(smoothing / vocabulary).scatter_add_(1, target, torch.full_like(at_target, smoothing - 1))
                z = z.to(weight.dtype)
            if wanted[0]:
                torch.mm(z, weight, out=d_hidden[rows])
            if wanted[1]:
                d_weight.addmm_(z.T, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return *(None if taken is None else taken * gradient for taken in ctx.saved_tensors), None, None
