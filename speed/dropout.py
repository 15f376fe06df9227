"""Dropout whose random bits are drawn four to a draw, and whose mask is kept as bytes.

On a CPU torch draws one number after the other: a step of gpt2 would spend X on it. Measured gain: docs/speed.md. Plain form: nn.Dropout. The
backward pass can be differentiated once.
"""
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Dropout(nn.Module):
    """nn.Dropout, by `dropout` below."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each number with probability p and scale the others by 1 / (1 - p). On a CPU p is rounded to a multiple of
    1 / 65536: four numbers come out of one draw of 64 bits."""
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
