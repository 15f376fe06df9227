"""The running beams of a batch of prompts, and the two operations on them that every search has in common.
Left out: which of them go on (search.py), and where their keys and values lie (cache.py).
Shapes: B prompts, K beams, P prompt tokens, G generated tokens, T tokens, V vocabulary.
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from generation.cache import BeamCache
from speed.transfer import to_device, to_host

NEVER = float("-inf")


class Beams:
    """The beams of B prompts: their tokens and log-probabilities, in the processor's memory, and the model's logits of what may
    come next, where the model is."""

    def __init__(self, model: nn.Module, prompts: list[Sequence[int]], width: int, max_new_tokens: int):
        """Reads the prompts, each once: one beam per prompt, with no token yet. Later there will be `width`."""
        self.device = next(model.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        self.model, self.length = model, 0
        self.cache = BeamCache(lengths, longest + width * (max_new_tokens - 1), self.device)     # the last are not read
        self.tokens = torch.empty(len(prompts), 1, 0, dtype=torch.long)                  # (B, K, G)
        self.log_probs = torch.zeros(len(prompts), 1)                                    # (B, K)
        self.parents = torch.zeros_like(self.log_probs, dtype=torch.long)                # (B, K): of the newest tokens
        self.prompts = torch.tensor([[-1] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        input_ids = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
        input_ids, rows, ends = to_device(self.device, input_ids, torch.arange(len(prompts)), lengths - 1)
        hidden_states = model.hidden_states(input_ids, self.cache)                       # (B, P) -> (B, P, C)
        self.logits = model.logits(hidden_states[rows, ends]).float()[:, None]           # (B, C) -> (B, K, V)

    def history(self) -> Tensor:
        """Prompt and generated tokens of every beam, (B, K, P + G), with -1 before shorter prompts."""
        return torch.cat([self.prompts[:, None].expand(-1, self.tokens.shape[1], -1), self.tokens], dim=-1)

    def log_probs_there(self) -> Tensor:
        """log_probs, (B, K), where the logits are."""
        return to_device(self.device, self.log_probs)[0]

    def branch(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """The next beams (B, K): the beam each comes from, the token it adds, and its log-probability."""
        rows = torch.arange(len(parents))[:, None]
        self.tokens = torch.cat([self.tokens[rows, parents], tokens[..., None]], dim=-1)  # (B, K, G) -> (B, K, G + 1)
        self.parents, self.log_probs, self.length = parents, log_probs, self.length + 1

    def keep(self, rows: list[int]) -> None:
        """Drop the prompts whose search is over."""
        for name in ("tokens", "log_probs", "parents", "prompts"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep(rows)

    def read(self) -> None:
        """Run the model over the newest token of every beam."""
        self.cache.go_on(self.parents)
        (newest,) = to_device(self.device, self.tokens[..., -1])
        hidden_states = self.model.hidden_states(newest, self.cache)                     # (B, K) -> (B, K, C)
        self.logits = self.model.logits(hidden_states).float()                           # (B, K, C) -> (B, K, V)


def ban_repeats(scores: Tensor, history: Tensor, n: int) -> None:
    """Set to -inf, in scores (B, K, V), each token that would repeat an n-gram of history (B, K, T); -1 is padding. history
    lies in the processor's memory."""
    if n == 0 or history.shape[-1] < n:
        return
    windows = history.unfold(-1, n, 1)                                       # (B, K, T) -> (B, K, T - n + 1, n)
    suffix = history[..., history.shape[-1] - n + 1:]                        # (B, K, n - 1)
    repeats = (windows[..., :-1] == suffix[:, :, None]).all(dim=-1) & (windows[..., -1] >= 0)
    row, beam, start = repeats.nonzero(as_tuple=True)
    if len(row):
        scores[tuple(to_device(scores.device, row, beam, windows[row, beam, start, -1]))] = NEVER


def best_continuations(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of scores (B, K, V), best first: their values, beams and tokens, each (B, count), in the processor's
    memory: what a step of a search reads back."""
    values, flat = to_host(*scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2])))
    return values, flat // scores.shape[2], flat % scores.shape[2]
