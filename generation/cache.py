"""What decoding keeps from step to step: keys and values of every layer, inside the `attend` of model.py.

    RowCache     a beam is a row with its own copy of them, and to go on is cache[:, parents]: the plain form
    BeamCache    the beams of a prompt are tokens of one row, and a mask of each one's ancestors takes the place of copies

A text's next token asks only for attention over those before it, so their keys and values are all that has to stay. gpt2, 10
beams of a prompt of 40 tokens and a text of 64, needs 1,040 positions in rows and 680 as beams. The model calls an `attend`
once for each layer, in their order: what is at the front of `layers` belongs to the layer that calls.
Left out: caches that grow, as a search knows its longest text beforehand.
Shapes: B prompts, K beams, R rows, P prompt tokens, T tokens of a call, S cached positions, H heads, D head size.
"""
from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

from model import attention as plain_attention
from speed.attention import attention
from speed.packed import PADDED_TO
from speed.transfer import to_device


class RowCache:
    """One beam per row, (R, T): first the prompts, padded on the right, then after every go_on one token of each."""

    def __init__(self, lengths: Tensor):
        """lengths: (R,), tokens of every prompt."""
        self.longest, self.causal, self.attention, self.mask = int(lengths.max()), True, plain_attention, None
        self.positions = torch.arange(self.longest, device=lengths.device)[None]                 # (1, P)
        self.visible = self.positions < lengths[:, None]                     # (R, S): tokens, not padding
        self.layers: deque[Tensor] = deque()                                 # of each: keys and values, (2, R, H, S, D)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
        """(R, T, H, D) each, kept beside the earlier -> (R, T, H, D)."""
        kept = torch.stack([key, value]).transpose(2, 3)                     # (2, R, H, T, D)
        if self.mask is not None:
            kept = torch.cat([self.layers.popleft(), kept], dim=3)
        self.layers.append(kept)
        return self.attention(query.transpose(1, 2), *kept, self.mask, self.causal, p).transpose(1, 2)

    def go_on(self, parents: Tensor) -> None:
        """The next call has one token for each of R rows, row r after what row parents[r] has."""
        self.layers = deque(kept[:, parents] for kept in self.layers)
        self.visible = F.pad(self.visible[parents], (0, 1), value=True)
        self.positions = self.visible.sum(dim=1, keepdim=True) - 1           # (R, 1)
        self.mask, self.causal, self.longest = self.visible[:, None, None], False, self.longest + 1


class BeamCache:
    """K tokens per row, (B, K), one of each beam; before them the prompts, (B, P), padded on the right.
    A beam sees the slots of its ancestors, however these have branched. New keys and values go where no beam looks, into
    padding or what only ended beams have seen, else at the end; none is ever moved for the sake of an order. Which slot is
    whose is known to the processor, in whose memory `visible` stays; on another device it never waits for an answer."""

    def __init__(self, lengths: Tensor, capacity: int, device: torch.device | str = "cpu"):
        """lengths: (B,), tokens of every prompt. capacity: the most positions that a row will need."""
        self.device, self.longest, self.causal, self.attention = torch.device(device), int(lengths.max()), True, attention
        self.step = 1 if self.device.type == "cpu" else PADDED_TO            # S is a multiple of it
        self.capacity = -(-capacity // self.step) * self.step
        positions = torch.arange(self.longest)[None]                         # (1, P)
        self.visible = (positions < lengths[:, None])[:, None]               # (B, K, S): beam k's ancestors
        self.positions, self.slots, self.rows = to_device(
            self.device, positions, positions.expand(len(lengths), -1), torch.arange(len(lengths))[:, None])
        self.mask, self.layers = None, deque()       # (B, 1, K, S); of each layer keys and values, (2, B, H, capacity, D)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
        """(B, T, H, D) each, kept in `slots` (B, T) -> (B, T, H, D)."""
        kept = self.room_for(key) if self.causal else self.layers.popleft()
        for part, new in zip(kept, (key, value), strict=True):               # scatter_ would convert all of a bf16 cache
            part.transpose(1, 2)[self.rows, self.slots] = new                # (B, S, H, D)
        self.layers.append(kept)
        seen = kept[:, :, :, :self.longest if self.causal else self.mask.shape[-1]]              # (2, B, H, S, D)
        if self.mask is not None and self.device.type != "cpu":
            self.mask = self.to_add(query.dtype)
        return self.attention(query.transpose(1, 2), *seen, self.mask, self.causal, p).transpose(1, 2)

    def room_for(self, key: Tensor) -> Tensor:
        """What holds a layer's keys and values. A row may leave some unused, and 0 * NaN is NaN: on a CPU `go_on` zeroes those
        that come into sight, which is cheaper than all; elsewhere that would be a kernel for each layer and step."""
        B, _, H, D = key.shape
        make = key.new_empty if self.device.type == "cpu" else key.new_zeros
        return make(2, B, H, self.capacity, D)

    def to_add(self, dtype: torch.dtype) -> Tensor:
        """The mask as numbers to add to the scores, made for the first layer: a GPU would make it anew for each."""
        return self.mask if self.mask.dtype == dtype else torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask,
                                                                                                              -torch.inf)

    def go_on(self, parents: Tensor) -> None:
        """The next call has K tokens for each row, token k of row b after what beam parents[b, k] of it has; parents lie in
        the processor's memory."""
        B, K = parents.shape
        visible = self.visible[torch.arange(B)[:, None], parents]                                # (B, K, S)
        free = ~visible.any(dim=1)                                                               # (B, K, S) -> (B, S)
        if free.sum(dim=1).min() < K:
            visible, free = F.pad(visible, (0, K)), F.pad(free, (0, K), value=True)              # (.., S) -> (.., S + K)
            for kept in self.layers if self.device.type == "cpu" else ():
                kept[:, :, :, visible.shape[2] - K:visible.shape[2]] = 0
        slots = free.byte().argsort(dim=1, descending=True, stable=True)[:, :K]                  # (B, K): the first free ones
        self.visible = visible.scatter(2, slots[..., None], True)
        mask = F.pad(self.visible, (0, -self.visible.shape[2] % self.step))[:, None]
        self.positions, self.slots, self.mask = to_device(self.device, self.visible.sum(dim=2) - 1, slots, mask)
        self.causal, self.longest = False, self.longest + 1                  # positions: (B, K), behind all ancestors

    def keep(self, rows: list[int]) -> None:
        """Keep these rows, in ascending order; they move up in place, which takes the memory of one layer."""
        first = next((new for new, old in enumerate(rows) if new != old), len(rows))             # that moves
        S, (moving,) = self.visible.shape[2], to_device(self.device, torch.tensor(rows[first:], dtype=torch.long))
        for kept in self.layers:
            kept[:, first:len(rows), :, :S] = kept[:, moving, :, :S]
        self.layers, self.rows = deque(kept[:, :len(rows)] for kept in self.layers), self.rows[:len(rows)]
        self.visible = self.visible[rows]
