"""Bottleneck adapters: small trained layers inside the blocks of a frozen model (Houlsby et al. 2019; Lin et al. 2020).

A hook of the module that they stand behind lets its output pass through them. Left out: the retraining of the base's
LayerNorms, which Houlsby et al. add; the paper's counts are without.
Shapes: ... the tokens of a batch, C hidden size, r rank, the bottleneck's width.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BottleneckAdapter(nn.Module):
    """x + W_up f(W_down x), both with biases. W_up starts at zero, so training starts from the base exactly."""

    def __init__(self, width: int, rank: int, norm: nn.Module, activation: Callable[[Tensor], Tensor],
                 generator: torch.Generator):
        super().__init__()
        self.rank, self.norm, self.activation = rank, norm, activation
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        with torch.no_grad():
            self.down.weight.uniform_(-width ** -0.5, width ** -0.5, generator=generator)
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        low = self.activation(self.down(self.norm(x.to(self.down.weight.dtype))))        # (..., C) -> (..., r)
        return x + self.up(low).to(x.dtype)                                  # (..., r) -> (..., C)


def add_adapter_h(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Two adapters per block, on what attention and MLP return; GELU, as in Houlsby et al.'s code."""
    width = model.config.hidden_size
    for block in model.get_submodule(model.config.blocks):
        for path in model.config.sublayers:                                  # a residual and RoBERTa's LayerNorm follow
            put_after(block.get_submodule(path), BottleneckAdapter(width, rank, nn.Identity(), F.gelu, generator), model)


def add_adapter_l(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """One adapter per block, on what the block returns, after a LayerNorm that trains too; ReLU."""
    width = model.config.hidden_size
    for block in model.get_submodule(model.config.blocks):
        put_after(block, BottleneckAdapter(width, rank, nn.LayerNorm(width, eps=1e-5), F.relu, generator), model)


def put_after(module: nn.Module, adapter: BottleneckAdapter, model: nn.Module) -> None:
    """Let what a module returns go through an adapter, which is its own from now on."""
    module.adapter = adapter.to(next(model.parameters()).device)
    if not isinstance(module, nn.Sequential):                                # which goes through a new child by itself
        module.register_forward_hook(lambda module, inputs, output: module.adapter(output))
