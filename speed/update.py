"""h[:, rows] += scale * update, with the gradient passed on as it comes.

Plain form: h[:, rows].add_(scale * update), for which autograd copies the gradient of all of h, and that of its rows twice, as
it cannot know that adding changes neither: 704 kernels a step of gpt2, where this starts 609 (experiments/bench_launches.py).
Left out: other operations in place.
"""
import torch
from torch import Tensor


def add_to(h: Tensor, rows: slice, update: Tensor, scale: float) -> Tensor:
    """h (N, d_out) with scale times update (N, n) added to its columns `rows`, in place."""
    if torch.is_grad_enabled():
        return AddTo.apply(h, rows, update, scale)
    h[:, rows].add_(update, alpha=scale)
    return h


class AddTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, rows: slice, update: Tensor, scale: float) -> Tensor:
        ctx.rows, ctx.scale = rows, scale
        ctx.mark_dirty(h)
        h[:, rows].add_(update, alpha=scale)
        return h

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None, gradient[:, ctx.rows] * ctx.scale, None
