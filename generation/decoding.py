"""From prompts to texts: checks, batches of prompts that fit into memory, and the best text of each.

Prompts are batched by length, and leave the batch when their search is over. Left out: prompts that join a batch under way.
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from tqdm import tqdm

from generation.search import GPT2_END_TOKENS, Hypothesis, Settings, search_class
from speed.linear import lay_out_for_decoding

CACHE_BYTES = 2**30                                                          # for keys, values and logits of a batch
CACHE_SHARE = 0.5                                                            # of a GPU's free memory, in its place


def generate(model: nn.Module, prompts: Sequence[Sequence[int]], beam_size: int = 10, length_penalty: float = 0.9,
             no_repeat_ngram_size: int = 4, max_new_tokens: int = 64, eos_ids: Sequence[int] = GPT2_END_TOKENS,
             search: str = "authors", temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
             banned_ids: Sequence[int] = (), batch_size: int | None = None,
             route: Callable[[list[int]], None] | None = None) -> list[list[int]]:
    """Token ids that continue each prompt, without the prompt and the end token.

    model: a causal one. eos_ids: any of them ends a text; one that the vocabulary lacks never occurs. search: see search.py;
    temperature, top_k, top_p and seed are for "sample". banned_ids: never chosen, for a model with more ids than its tokenizer
    has text for (e2e.search_ids). batch_size: prompts at a time, None as many as room_on has room for; it
    does not change the result. route: called with the indices of the prompts that are the batch's rows, before the model
    runs and whenever rows have left (the bank gives each row its adapter so).
    Raises ValueError for an empty or too long prompt, an unknown token id, and settings that make no sense.
    """
    settings = Settings(beam_size, (length_penalty,), no_repeat_ngram_size, max_new_tokens, tuple(eos_ids), tuple(banned_ids),
                        search, temperature, top_k, top_p, seed)
    return [best_text(hypotheses, length_penalty) for hypotheses in n_best(model, prompts, settings, batch_size, route)]


@torch.inference_mode()
def n_best(model: nn.Module, prompts: Sequence[Sequence[int]], settings: Settings, batch_size: int | None = None,
           route: Callable[[list[int]], None] | None = None) -> list[list[Hypothesis]]:
    """The hypotheses of each prompt, best first by settings.length_penalties[0].
    `authors` ranks beams without a length penalty, so one search serves several: for each of settings.length_penalties
    the best of the list is what a search with that penalty alone finds. `hf` keeps the best beam_size for the first."""
    check_prompts(model.config, prompts, settings)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    search = search_class(settings)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    was_training = model.training
    lay_out_for_decoding(model.eval())
    try:
        with tqdm(total=len(prompts), unit="prompt", desc="decoding", leave=False, disable=None) as bar:
            while longest_first:
                size = batch_size or fitting_batch(model, len(prompts[longest_first[0]]), settings)
                batch, longest_first = longest_first[:size], longest_first[size:]
                if route:
                    route(batch)
                search(model, {index: prompts[index] for index in batch}, settings).run(results, bar, route)
    finally:
        model.train(was_training)
    for index, hypotheses in enumerate(results):
        if not hypotheses or not math.isfinite(hypotheses[0].log_probability):
            raise ValueError(f"prompt {index}: no text has a finite probability; the model's weights are broken, or the "
                             f"ban of repeated {settings.no_repeat_ngram_size}-grams leaves no token")
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score(settings.length_penalties[0]))
    return results


def best_text(hypotheses: list[Hypothesis], length_penalty: float) -> list[int]:
    """The tokens of the hypothesis with the highest score; the first of equals."""
    return max(hypotheses, key=lambda hypothesis: hypothesis.score(length_penalty)).tokens


def check_prompts(config, prompts: Sequence[Sequence[int]], settings: Settings) -> None:
    """Raises ValueError for what the search could not begin or would not end with, before any prompt is read."""
    vocab_size, longest = config.vocab_size, config.longest_input
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty, expected at least one token (<|endoftext|> starts a free text)")
        if len(prompt) + settings.max_new_tokens > longest:
            raise ValueError(f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {settings.max_new_tokens}, but "
                             f"the model has {longest} positions: shorten one of them")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            outside = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ValueError(f"prompt {index} holds token id {outside}, but the model's ids are 0 to {vocab_size - 1}: use "
                             "the tokenizer of this model")
    # all beams come from one in the first step; in `hf` none of them may have ended
    needed = settings.beam_size + (len(set(settings.eos_ids)) if settings.search == "hf" else 0)
    allowed = vocab_size - len(set(settings.banned_ids))
    if settings.search in ("authors", "hf") and needed > allowed:
        raise ValueError(f"beam_size is {settings.beam_size}, too large for the model's {allowed} tokens: lower it")


def fitting_batch(model: nn.Module, prompt_length: int, settings: Settings) -> int:
    """How many prompts of at most this length a batch may hold: at least 1, and as many as room_on has room for."""
    config, itemsize = model.config, next(model.parameters()).element_size()
    positions = prompt_length + settings.width * settings.max_new_tokens
    logits = 3 * settings.width * config.vocab_size * 4                  # fp32, whatever the weights are
    room = room_on(next(model.parameters()).device)
    return max(1, room // (2 * config.num_layers * config.hidden_size * positions * itemsize + logits))


def room_on(device: torch.device) -> int:
    """Bytes for what a batch keeps: CACHE_BYTES, or on a GPU a share of what is free there."""
    if device.type != "cuda":
        return CACHE_BYTES
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)    # torch holds it, free for tensors
    return int(CACHE_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))
