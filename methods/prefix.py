"""Prefix tuning: a few trained tokens in front of the input, in every layer (Li and Liang 2021; section 5.1, "PreLayer").

A hook hands each attention an `attend` whose softmax sees the prefix's keys and values in front of all others, however
these lie: padded, packed or cached. Left out: the network that Li and Liang train in place of the prefix.
Shapes: B rows, H heads, T queries, S keys, D head size, P prefix tokens, C hidden size.
"""
import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import Padded


class Prefix(nn.Module):
    """Trained inputs of P extra tokens to one attention layer; frozen, the layer makes its keys and values of them.

    As the paper describes PreLayer, activations are trained, L d P numbers, not keys and values, which would be twice as
    many. They stand where the attention reads, in GPT-2 after ln_1. The input's own positions do not move, so a prefix
    takes nothing from the model's length.

    No prefix leaves the base's output as it is: the softmax gives P more tokens a share of the attention, whatever they
    are. The start here is a base that reads: the activations that P random tokens of the vocabulary have in it. So the
    method starts, exactly, at what the base says with these tokens in front (which see one another, not the input).
    """

    def __init__(self, activations: Tensor):
        super().__init__()
        self.rank = len(activations)
        self.activations = nn.Parameter(activations.clone())                 # (P, C)


def put_prefix_in_front(attention_layer: nn.Module, inputs: tuple) -> tuple:
    """A forward pre-hook of an attention layer: its `attend` sees the prefix, too."""
    x, attend = inputs
    _, key, value = attention_layer.qkv(attention_layer.prefix.activations.to(x.dtype))          # (P, C) -> (P, H, D)
    attend = copy.copy(attend)                                               # the next layer has another prefix
    attend.attention = partial(attention_with_prefix, attend.attention, key.transpose(0, 1), value.transpose(0, 1))
    return x, attend


def attention_with_prefix(attention, prefix_key: Tensor, prefix_value: Tensor, query: Tensor, key: Tensor, value: Tensor,
                          mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """`attention` of model.py or speed/, over (B, H, P + S, D). prefix_key, prefix_value: (H, P, D), for every row."""
    key, value = (torch.cat([own.expand(len(rest), -1, -1, -1), rest], dim=2)
                  for own, rest in ((prefix_key, key), (prefix_value, value)))
    if causal and mask is None:
        mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()      # S = T
    if mask is not None:
        seen = float(mask.dtype == torch.bool)                               # True, or 0 where it is added to the scores
        mask = F.pad(mask, (prefix_key.shape[1], 0), value=seen)             # (.., S) -> (.., P + S): all see the prefix
    return attention(query, key, value, mask, False, p)


@torch.no_grad()
def add_prefix(model: nn.Module, rank: int, generator: torch.Generator) -> None:
    """`rank` prefix tokens in every layer, started at the activations of as many random tokens. Raises ValueError for more
    than the model has positions."""
    config = model.config
    if rank > config.longest_input:
        raise ValueError(f"a prefix of {rank} tokens, but the model has {config.longest_input} positions; expected at most as "
                         "many")
    tokens = torch.randint(5, config.vocab_size, (1, rank), generator=generator)         # RoBERTa's first are special
    layers = [block.get_submodule(config.attention) for block in model.get_submodule(config.blocks)]
    seen, was_training = [], model.training
    hooks = [layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0])) for layer in layers]
    tokens = tokens.to(next(model.parameters()).device)
    model.eval().hidden_states(tokens, Padded(tokens, causal=model.causal))
    model.train(was_training)
    for layer, hook, activations in zip(layers, hooks, seen, strict=True):
        hook.remove()
        layer.prefix = Prefix(activations)
        layer.register_forward_pre_hook(put_prefix_in_front)
