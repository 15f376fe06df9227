"""Sampling: the next token is drawn at random, from all that the model expects or from the likelier part of it.

    temperature    the logits are divided by it: below 1 likely tokens gain, above 1 unlikely ones do
    top_k          only the k likeliest tokens stay
    top_p          only the fewest tokens stay that hold this share of the probability (Holtzman et al. 2020)

They act in this order, each on what the one before has left, as in transformers' generate. A prompt has a source of random
numbers of its own, made from the seed and its place in the caller's list, and each of its tokens takes one: so neither batches
nor other prompts change a text (but for the last digit of a logit, which may depend on the batch). Left out: other ways to
narrow the choice, such as min-p and typical sampling.
Shapes: B prompts, V vocabulary.
"""
import random

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.beams import NEVER


def random_source(seed: int, prompt: int) -> random.Random:
    """The random numbers for the prompt of this index."""
    return random.Random(f"seed {seed}, prompt {prompt}")


def narrow(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The distribution to draw from, of logits (B, V): probabilities, highest first, 0 for what is cut off, and the ids they
    are of, both (B, V). top_k 0 and top_p 1 cut nothing off."""
    scores, ids = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k:
        scores[:, top_k:] = NEVER
    probs = F.softmax(scores, dim=-1)
    if top_p < 1:
        probs[probs.cumsum(dim=-1) - probs >= top_p] = 0                     # what comes before it holds top_p already
        probs /= probs.sum(dim=-1, keepdim=True)
    return probs, ids


def draw(probs: Tensor, ids: Tensor, uniform: Tensor) -> Tensor:
    """The token (B, 1) at which the sum of the probabilities, from the first on, exceeds the row's number of `uniform` (B, 1),
    which is from 0 to 1."""
    cumulative = probs.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    last = ((probs > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)          # rounding must not lead beyond it
    return ids.gather(-1, chosen.minimum(last))
