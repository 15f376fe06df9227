"""No padding: sequences of different lengths end to end in one tensor (N, ...), N their tokens together.

Only attention needs to know where a sequence ends. Ordered by length, the sequences form groups of equal ones, and attention
runs group by group; everything else sees N tokens. Plain form: model.Padded.

In bf16 N is rounded up to a multiple of TOKENS_AT_A_TIME by filling tokens, a sequence of their own that nobody looks at:
oneDNN compiles a kernel for every new N, in nearly every step, and keeps it in memory. At 32 a process with a small GPT-2 grew
by 6.9 % from step 100 to 1,000, at 64 by 3.1 %. Left out: padding to few lengths within attention, which was no faster (seven
lengths in a batch: 11 ms of processor time by groups, 13 padded).

That is the CPU's way. A GPU computes padding faster than it starts the kernels of another group, so there all sequences are
padded to one length and are one group; the rest stays as it is.
"""
from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from speed.attention import attention
from speed.transfer import to_device

TOKENS_AT_A_TIME = 64
PADDED_TO = 8                                                                # to a multiple of it: a GPU has fast kernels for t


class Packed:
    """The `attend` of sequences that stand end to end in the order of their lengths; see model.Padded."""

    def __init__(self, lengths: Sequence[int], causal: bool, padded_to: int | None = None):
        """lengths: of every sequence; padded_to: the tokens that each takes, with padding behind it, else its own."""
        self.lengths = [padded_to] * len(lengths) if padded_to else list(lengths)        # as they stand in N
        self.starts = torch.tensor([0, *accumulate(self.lengths)][:-1])                  # (B,): where each begins in N
        self.groups = [(len(list(run)), length) for length, run in groupby(self.lengths)]        # (n, t): n sequences of t
        self.longest, self.causal, self.attention, self.mask = max(lengths), causal, attention, None
        self.positions = torch.cat([torch.arange(t).repeat(n) for n, t in self.groups])  # (N,)
        if padded_to:
            real = torch.arange(padded_to) < torch.tensor(lengths)[:, None]              # (B, T): tokens, not padding
            self.positions = self.positions * real.flatten()                             # 0 at padding: the model has it
            if not causal:                                                   # to be added to the scores; (B, 1, 1, T)
                self.mask = torch.zeros(real.shape).masked_fill_(~real, -torch.inf)[:, None, None]

    def send(self, device: torch.device | str, *tensors: Tensor) -> Sequence[Tensor]:
        """Move to a device, together with other tensors of the batch: their copies there."""
        own = [self.positions] if self.mask is None else [self.positions, self.mask]
        self.positions, *rest = to_device(device, *own, *tensors)
        if self.mask is not None:
            self.mask, *rest = rest
        return rest

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
        """(N, H, D) each -> (N, H, D). bf16 is attended in fp32 on a CPU: the sizes differ in every batch, and oneDNN, which
        multiplies bf16, would compile a kernel for each."""
        dtype, sizes, contexts = query.dtype, [n * t for n, t in self.groups], []
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        if self.mask is not None:
            self.mask = self.mask.to(query.dtype)                            # of every layer, so once
        whole = [(query, key, value)] if len(sizes) == 1 else zip(*(x.split(sizes) for x in (query, key, value)), strict=True)
        for group, parts in zip(self.groups, whole, strict=True):
            q, k, v = (x.unflatten(0, group).transpose(1, 2) for x in parts)             # (n t, H, D) -> (n, H, t, D)
            contexts.append(self.attention(q, k, v, self.mask, self.causal, p).transpose(1, 2).flatten(0, 1))
        return (torch.cat(contexts) if len(contexts) > 1 else contexts[0]).to(dtype)


def pack(sequences: Sequence[list[int]], causal: bool, device: torch.device | str = "cpu", multiple: int = 1
         ) -> tuple[Tensor, Packed]:
    """Sequences in the order of their lengths -> their ids, (N,), and their `attend`, both in the processor's memory
    (Packed.send moves them), as `device` takes them: end to end on a CPU, padded elsewhere. multiple: on a CPU, N is filled up
    to a multiple of it, behind the sequences' own tokens."""
    lengths = list(map(len, sequences))
    if torch.device(device).type != "cpu":
        width = -(-max(lengths) // PADDED_TO) * PADDED_TO
        return (torch.tensor([token for ids in sequences for token in [*ids, *[0] * (width - len(ids))]]),
                Packed(lengths, causal, padded_to=width))
    ids = [token for sequence in sequences for token in sequence]
    if missing := -len(ids) % multiple:
        ids, lengths = ids + [0] * missing, [*lengths, missing]
    return torch.tensor(ids), Packed(lengths, causal)


def round_up(rows: Tensor, multiple: int) -> Tensor:
    """Indices (M,) -> as many as the next multiple, the last one repeated."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % multiple)])
