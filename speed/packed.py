"""No padding: sequences of different lengths end to end in one tensor (N, ...), N their tokens together.

Only attention needs to know where a sequence ends. Ordered by length, the sequences form groups of equal ones, and attention
runs group by group; everything else sees N tokens. Plain form: model.Padded.

In bf16 N is rounded up to a multiple of TOKENS_AT_A_TIME by filling tokens, a sequence of their own that nobody looks at:
oneDNN compiles a kernel for every new N, in nearly every step, and keeps it in memory. At 32 the toy GPT-2 grew by 6.9 % from
step 100 to 1,000, at 64 by 3.1 %. Left out: padding to few lengths within attention, which was no faster (seven lengths in a
batch: 11 ms of processor time by groups, 13 padded).
"""
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from speed.attention import attention

TOKENS_AT_A_TIME = 64


class Packed:
    """The `attend` of sequences that stand end to end in the order of their lengths; see model.Padded."""

    def __init__(self, lengths: Sequence[int], causal: bool, device: torch.device | str = "cpu"):
        self.groups = [(len(list(run)), length) for length, run in groupby(lengths)]     # (n, t): n sequences of t tokens
        self.longest, self.causal, self.attention = max(lengths), causal, attention
        self.positions = torch.cat([torch.arange(t).repeat(n) for n, t in self.groups]).to(device)       # (N,)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
        """(N, H, D) each -> (N, H, D). bf16 is attended in fp32 on a CPU: the sizes differ in every batch, and oneDNN, which
        multiplies bf16, would compile a kernel for each."""
        dtype, sizes, contexts = query.dtype, [n * t for n, t in self.groups], []
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        for group, *parts in zip(self.groups, *(x.split(sizes) for x in (query, key, value)), strict=True):
            q, k, v = (x.unflatten(0, group).transpose(1, 2) for x in parts)             # (n t, H, D) -> (n, H, t, D)
            contexts.append(self.attention(q, k, v, None, self.causal, p).transpose(1, 2).flatten(0, 1))
        return torch.cat(contexts).to(dtype)


def pack(sequences: Sequence[list[int]], causal: bool, device: torch.device | str = "cpu", multiple: int = 1
         ) -> tuple[Tensor, Packed]:
    """Sequences in the order of their lengths -> their ids end to end, (N,), and their `attend`. multiple: N is filled up to
    a multiple of it, behind the sequences' own tokens."""
    ids = [token for sequence in sequences for token in sequence]
    lengths = list(map(len, sequences))
    if missing := -len(ids) % multiple:
        ids, lengths = ids + [0] * missing, [*lengths, missing]
    return torch.tensor(ids, device=device), Packed(lengths, causal, device)


def round_up(rows: Tensor, multiple: int) -> Tensor:
    """Indices (M,) -> as many as the next multiple, the last one repeated."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % multiple)])
