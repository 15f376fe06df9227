"""Beam search for GPT-2, and the E2E task from meaning representation to text file.

Two procedures, because they give different text (Hu et al. 2021, appendix D.3 decodes with the first):

    python decode.py --model gpt2-medium --adapter DIR --task e2e --split test --out predictions.txt

    authors   The n-gram ban looks at generated text and acts on the logits, so what is left is renormalised. The best K
              continuations become the beams; one that ends is set aside, its slot counts as -inf and is refilled by the
              others in the next step. At the last step unfinished beams compete too.
    hf        As transformers' generate: the ban looks at prompt and generated text and acts on the log-probabilities.
              Of (1 + number of end tokens) K continuations the best K that go on become the beams; the K best finished
              ones are kept, and the search ends when the best beam scores below the worst of them. Greedy for K = 1.

Both score a text by sum log p / length ** length_penalty, end token included. `greedy` and `sample` take one path.

The K beams of a prompt are K tokens of one row: they share its keys and values, and a mask of each beam's ancestors
takes the place of copies of the cache. Prompts are batched by length, and leave the batch when their search is over.
Left out: diverse and constrained beams, prompts that join a batch under way.
Shapes: N prompts of a batch, K beams, P prompt tokens, L generated tokens, S cached positions, V vocabulary.
"""
import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import cli
from baselines import load_trained
from data import Tokenizer, encode_e2e, fetch_model, fetch_task, load_tokenizer, read_e2e
from eval_metrics import evaluate, write_hypotheses, write_references
from model import GPT2, KVCache, lay_out_for_decoding, load_pretrained, write_json
from recipes import alpha_for_file

SEARCHES = ("authors", "hf", "greedy", "sample")
GPT2_END_TOKENS = (50256, 628)                                               # <|endoftext|> and "\n\n"
CACHE_BYTES = 2**30                                                          # for keys, values and logits of a batch
NEVER = float("-inf")


@dataclass(frozen=True)
class Settings:
    """How to search. length_penalties: the first ranks; `authors` is exact for the others too (see n_best)."""
    beam_size: int = 10
    length_penalties: tuple[float, ...] = (0.9,)
    no_repeat_ngram_size: int = 4                                            # 0: no ban
    max_new_tokens: int = 64
    eos_ids: tuple[int, ...] = GPT2_END_TOKENS
    search: str = "authors"
    temperature: float = 1.0                                                 # this and the rest: for `sample`
    top_k: int = 0                                                           # 0: the whole vocabulary
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.search not in SEARCHES:
            raise ValueError(f"search is '{self.search}', expected one of {', '.join(SEARCHES)}")
        for name, lowest in (("beam_size", 1), ("max_new_tokens", 1), ("no_repeat_ngram_size", 0), ("top_k", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {lowest} or more")
        if not self.length_penalties or not all(map(math.isfinite, self.length_penalties)):
            raise ValueError(f"length penalties are {self.length_penalties}, expected at least one, all finite")
        if self.search == "hf" and len(self.length_penalties) > 1:
            raise ValueError("hf ranks by the length penalty while it searches: expected one, search again for another")
        if not (0 < self.temperature < math.inf and 0 < self.top_p <= 1):
            raise ValueError(f"temperature is {self.temperature} and top_p {self.top_p}, expected 0 < temperature and "
                             "0 < top_p <= 1")


@dataclass(frozen=True)
class Hypothesis:
    """A generated text. tokens: without prompt and end token. length: tokens with the end token, if it has one."""
    tokens: list[int]
    log_probability: float
    length: int

    def score(self, length_penalty: float) -> float:
        return self.log_probability / self.length ** length_penalty


# ---------------------------------------------------------------- what users call

def generate(model: GPT2, prompts: Sequence[Sequence[int]], beam_size: int = 10, length_penalty: float = 0.9,
             no_repeat_ngram_size: int = 4, max_new_tokens: int = 64, eos_ids: Sequence[int] = GPT2_END_TOKENS,
             search: str = "authors", temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0,
             batch_size: int | None = None, route: Callable[[list[int]], None] | None = None) -> list[list[int]]:
    """Token ids that continue each prompt, without the prompt and the end token.

    eos_ids: any of them ends a text; one that the vocabulary lacks never occurs. search: see above; temperature,
    top_k, top_p and seed are for "sample". batch_size: prompts at a time, None as many as CACHE_BYTES hold; it does
    not change the result. route: called with the indices of the prompts that are the batch's rows, before the model runs
    and whenever rows have left (bank.py gives each row its adapter so).
    Raises ValueError for an empty or too long prompt, an unknown token id, and settings that make no sense.
    """
    settings = Settings(beam_size, (length_penalty,), no_repeat_ngram_size, max_new_tokens, tuple(eos_ids), search,
                        temperature, top_k, top_p, seed)
    return [best_text(hypotheses, length_penalty) for hypotheses in n_best(model, prompts, settings, batch_size, route)]


@torch.inference_mode()
def n_best(model: GPT2, prompts: Sequence[Sequence[int]], settings: Settings, batch_size: int | None = None,
           route: Callable[[list[int]], None] | None = None) -> list[list[Hypothesis]]:
    """The hypotheses of each prompt, best first by settings.length_penalties[0].

    `authors` ranks beams without a length penalty, so one search serves several: for each of settings.length_penalties
    the best of the list is what a search with that penalty alone finds. `hf` keeps the best beam_size for the first.
    """
    check_prompts(model, prompts, settings)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    search_class = SEARCH_CLASSES[settings.search]
    if settings.search == "hf" and settings.beam_size == 1:
        search_class = OnePath
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
                search_class(model, {index: prompts[index] for index in batch}, settings).run(results, bar, route)
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


def check_prompts(model: GPT2, prompts: Sequence[Sequence[int]], settings: Settings) -> None:
    """Raises ValueError for what the search could not begin or would not end with, before any prompt is read."""
    vocab_size, n_positions = model.config.vocab_size, model.config.n_positions
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty, expected at least one token (<|endoftext|> starts a free text)")
        if len(prompt) + settings.max_new_tokens > n_positions:
            raise ValueError(f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {settings.max_new_tokens}, but "
                             f"the model has {n_positions} positions: shorten one of them")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            outside = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ValueError(f"prompt {index} holds token id {outside}, but the model's ids are 0 to {vocab_size - 1}: use "
                             "the tokenizer of this model")
    # all beams come from one in the first step; in `hf` none of them may have ended
    needed = settings.beam_size + (len(set(settings.eos_ids)) if settings.search == "hf" else 0)
    if settings.search in ("authors", "hf") and needed > vocab_size:
        raise ValueError(f"beam_size is {settings.beam_size}, too large for the model's {vocab_size} tokens: lower it")


def fitting_batch(model: GPT2, prompt_length: int, settings: Settings) -> int:
    """How many prompts of at most this length a batch may hold: at least 1, and as many as CACHE_BYTES have room for."""
    config, itemsize = model.config, model.transformer.wte.weight.element_size()
    positions = prompt_length + settings.beam_size * settings.max_new_tokens
    logits = 3 * settings.beam_size * config.vocab_size * itemsize
    return max(1, CACHE_BYTES // (2 * config.n_layer * config.n_embd * positions * itemsize + logits))


# ---------------------------------------------------------------- the beams of a batch

class Beams:
    """The running beams of N prompts: their tokens and log-probabilities, and what the model has computed for them."""

    def __init__(self, model: GPT2, prompts: list[Sequence[int]], width: int, max_new_tokens: int):
        """Reads the prompts, each once: one beam per prompt, with no token yet. Later there will be `width`."""
        device, lengths = model.transformer.wte.weight.device, [len(prompt) for prompt in prompts]
        longest = max(lengths)
        capacity = longest + width * (max_new_tokens - 1)                    # the last tokens are not read
        self.model, self.length = model, 0
        self.cache = KVCache(model.config, len(prompts), capacity, device, model.transformer.wte.weight.dtype)
        self.tokens = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)   # (N, K, L)
        self.log_probs = torch.zeros(len(prompts), 1, device=device)                     # (N, K)
        self.prompts = torch.tensor([[-1] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        input_ids = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        self.next_position = torch.tensor(lengths, device=device)[:, None]               # (N, 1)
        self.visible = torch.arange(longest, device=device) < self.next_position[..., None]      # (N, K, S)
        hidden_states = model.hidden_states(input_ids, cache=self.cache)                 # (N, P) -> (N, P, C)
        last = torch.arange(len(prompts), device=device)[:, None], self.next_position - 1
        self.logits = model.logits(hidden_states[last]).float()                          # (N, K, C) -> (N, K, V)

    def history(self) -> Tensor:
        """Prompt and generated tokens of every beam, (N, K, P + L), with -1 before shorter prompts."""
        return torch.cat([self.prompts[:, None].expand(-1, self.tokens.shape[1], -1), self.tokens], dim=-1)

    def branch(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """The next beams (N, K): the beam each comes from, the token it adds, and its log-probability."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        self.tokens = torch.cat([self.tokens[rows, parents], tokens[..., None]], dim=-1)  # (N, K, L) -> (N, K, L + 1)
        self.visible = self.visible[rows, parents]
        self.log_probs, self.length = log_probs, self.length + 1

    def keep(self, rows: list[int]) -> None:
        """Drop the prompts whose search is over."""
        for name in ("tokens", "log_probs", "prompts", "next_position", "visible"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep(rows)

    def read(self) -> None:
        """Run the model over the newest token of every beam, which sees its ancestors' slots and its own.

        Its keys and values go where no beam looks: into padding or what only ended beams have seen, else behind.
        """
        n, k = self.log_probs.shape
        free = ~self.visible.any(dim=1)                                                  # (N, K, S) -> (N, S)
        if free.sum(dim=1).min() < k:
            self.visible, free = F.pad(self.visible, (0, k)), F.pad(free, (0, k), value=True)    # (.., S) -> (.., S + K)
        slots = free.byte().argsort(dim=1, descending=True, stable=True)[:, :k]          # (N, K): the first that are free
        self.visible = self.visible.scatter(2, slots[..., None], True)
        self.cache.reuse(slots, length=self.visible.shape[2])
        hidden_states = self.model.hidden_states(self.tokens[..., -1], self.next_position.expand(n, k),
                                                 self.visible[:, None], self.cache)      # (N, K) -> (N, K, C)
        self.logits = self.model.logits(hidden_states).float()                           # (N, K, C) -> (N, K, V)
        self.next_position = self.next_position + 1


def ban_repeats(scores: Tensor, history: Tensor, n: int) -> None:
    """Set to -inf, in scores (N, K, V), each token that would repeat an n-gram of history (N, K, T); -1 is padding."""
    if n == 0 or history.shape[-1] < n:
        return
    windows = history.unfold(-1, n, 1)                                       # (N, K, T) -> (N, K, T - n + 1, n)
    suffix = history[..., history.shape[-1] - n + 1:]                        # (N, K, n - 1)
    repeats = (windows[..., :-1] == suffix[:, :, None]).all(dim=-1) & (windows[..., -1] >= 0)
    row, beam, start = repeats.nonzero(as_tuple=True)
    scores[row, beam, windows[row, beam, start, -1]] = NEVER


def best_continuations(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of scores (N, K, V), best first: their values, beams and tokens, each (N, count)."""
    values, flat = scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2]))
    return values, flat // scores.shape[2], flat % scores.shape[2]


# ---------------------------------------------------------------- the searches

class Search:
    """A search over a batch of prompts. The classes below add `step`: from logits (N, K, V) it sets aside the texts that
    end, chooses the next beams, and returns which rows are over."""

    def __init__(self, model: GPT2, prompts: dict[int, Sequence[int]], settings: Settings):
        """prompts: index in the caller's list -> token ids."""
        self.settings, self.indices = settings, list(prompts)
        width = settings.beam_size if settings.search in ("authors", "hf") else 1
        self.beams = Beams(model, list(prompts.values()), width, settings.max_new_tokens)
        self.eos_ids = torch.tensor(sorted(set(settings.eos_ids)), device=self.beams.tokens.device)
        self.finished: list[list[Hypothesis]] = [[] for _ in prompts]        # of each row

    def run(self, results: list[list[Hypothesis]], bar: tqdm, route: Callable[[list[int]], None] | None) -> None:
        """Search to the end; each prompt's hypotheses go to its place in `results`."""
        while self.indices:
            over = self.step(self.beams.logits)
            for row in (row for row, is_over in enumerate(over) if is_over):
                results[self.indices[row]] = self.finished[row]
                bar.update()
            if any(over):
                going_on = [row for row, is_over in enumerate(over) if not is_over]
                self.beams.keep(going_on)
                self.indices = [self.indices[row] for row in going_on]
                self.finished = [self.finished[row] for row in going_on]
                if route:
                    route(self.indices)
            if self.indices:
                self.beams.read()

    def ends(self, tokens: Tensor) -> Tensor:
        """Whether a text is over with each of tokens (N, K): an end token, or the last that it may have."""
        return torch.isin(tokens, self.eos_ids) | (self.beams.length + 1 == self.settings.max_new_tokens)

    def set_aside(self, chosen: Tensor, log_probs: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Note the chosen ones of the continuations (N, K) as texts; one at -inf descends from an ended beam."""
        for row, rank in (chosen & log_probs.isfinite()).nonzero().tolist():
            ids = [*self.beams.tokens[row, parents[row, rank]].tolist(), tokens[row, rank].item()]
            text = ids[:-1] if ids[-1] in self.settings.eos_ids else ids
            self.finished[row].append(Hypothesis(text, log_probs[row, rank].item(), len(ids)))


class AuthorsSearch(Search):
    def step(self, logits: Tensor) -> list[bool]:
        beams, settings = self.beams, self.settings
        ban_repeats(logits, beams.tokens, settings.no_repeat_ngram_size)
        scores = beams.log_probs[..., None] + F.log_softmax(logits, dim=-1)              # (N, K, V)
        log_probs, parents, tokens = best_continuations(scores, settings.beam_size)      # (N, K)
        ended = self.ends(tokens)
        self.set_aside(ended, log_probs, parents, tokens)
        beams.branch(parents, tokens, log_probs.masked_fill(ended, NEVER))
        return [self.is_decided(row, best) for row, best in enumerate(beams.log_probs.amax(dim=1).tolist())]

    def is_decided(self, row: int, best_running: float) -> bool:
        """Whether no running beam can still beat the best finished text, so that stopping changes nothing.

        A running beam has log-probability c <= best_running <= 0. Each further token adds log p <= 0, so it ends with
        c' <= c, and with a length of at most M = max_new_tokens. For a penalty a >= 0 its score is then
        c' / length ** a <= c' / M ** a <= best_running / M ** a, because dividing a negative number by more brings it
        nearer to 0. If a finished text reaches that bound, a later one could at most draw, and the first keeps its place.
        With a < 0 length lowers the score, the bound does not hold, and the search goes on until no beam runs.
        """
        if best_running == NEVER:
            return True
        return bool(self.finished[row]) and all(
            penalty >= 0 and max(text.score(penalty) for text in self.finished[row])
            >= best_running / self.settings.max_new_tokens ** penalty for penalty in self.settings.length_penalties)


class HfSearch(Search):
    def step(self, logits: Tensor) -> list[bool]:
        beams, settings, K = self.beams, self.settings, self.settings.beam_size
        scores = F.log_softmax(logits, dim=-1)                                           # (N, K, V)
        ban_repeats(scores, beams.history(), settings.no_repeat_ngram_size)
        scores += beams.log_probs[..., None]
        candidates = best_continuations(scores, max(2, 1 + len(self.eos_ids)) * K)
        log_probs, parents, tokens = candidates                              # (N, 2 K) or more
        ended = self.ends(tokens)
        self.set_aside(ended[:, :K], *(part[:, :K] for part in candidates))
        running, best = log_probs.masked_fill(ended, NEVER).topk(K)          # (N, K)
        beams.branch(parents.gather(1, best), tokens.gather(1, best), running)
        return [self.is_decided(row, best_running) for row, best_running in enumerate(running[:, 0].tolist())]

    def is_decided(self, row: int, best_running: float) -> bool:
        """Keep the best K texts; over when there are K and the best beam, ending now, would not be among them.

        That is transformers' rule for early_stopping=False: a longer text could still have a higher score.
        """
        penalty = self.settings.length_penalties[0]
        best = sorted(self.finished[row], key=lambda text: -text.score(penalty))[:self.settings.beam_size]
        self.finished[row] = best
        return best_running == NEVER or (len(best) == self.settings.beam_size and best_running
                                         / self.beams.length ** penalty <= best[-1].score(penalty))


class OnePath(Search):
    """Greedy search or sampling; the n-gram ban looks at prompt and generated text and acts on the logits."""

    def __init__(self, model: GPT2, prompts: dict[int, Sequence[int]], settings: Settings):
        super().__init__(model, prompts, settings)
        # a source of random numbers per prompt, so that batches do not matter
        self.random = {index: random.Random(f"seed {settings.seed}, prompt {index}") for index in prompts}

    def step(self, logits: Tensor) -> list[bool]:
        beams = self.beams
        ban_repeats(logits, beams.history(), self.settings.no_repeat_ngram_size)
        tokens = self.draw(logits[:, 0]) if self.settings.search == "sample" else logits.argmax(dim=-1)      # (N, 1)
        log_probs = beams.log_probs + F.log_softmax(logits, dim=-1)[:, 0].gather(-1, tokens)
        ended, parents = self.ends(tokens), torch.zeros_like(tokens)
        self.set_aside(ended, log_probs, parents, tokens)
        beams.branch(parents, tokens, log_probs)
        return ended[:, 0].tolist()

    def draw(self, logits: Tensor) -> Tensor:
        """A token of each row of logits (N, V): temperature, then the top_k best, then the fewest that hold top_p."""
        settings = self.settings
        probs, ids = F.softmax(logits / settings.temperature, dim=-1).sort(dim=-1, descending=True)
        if settings.top_k:
            probs[:, settings.top_k:] = 0
        probs /= probs.sum(dim=-1, keepdim=True)
        probs[probs.cumsum(dim=-1) - probs >= settings.top_p] = 0            # what comes before it holds top_p already
        cumulative = probs.cumsum(dim=-1)
        uniform = torch.tensor([[self.random[index].random()] for index in self.indices], device=logits.device)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        last = (probs > 0).sum(dim=-1, keepdim=True) - 1                     # rounding must not lead beyond it
        return ids.gather(-1, chosen.minimum(last))                          # (N, 1)


SEARCH_CLASSES = {"authors": AuthorsSearch, "hf": HfSearch, "greedy": OnePath, "sample": OnePath}


# ---------------------------------------------------------------- E2E

def end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """<|endoftext|> and, where the vocabulary has it as one token, the empty line: 50256 and 628 for GPT-2."""
    empty_line = tokenizer.pieces("\n\n")
    return (tokenizer.eos_id, *empty_line) if len(empty_line) == 1 else (tokenizer.eos_id,)


def clean(text: str) -> str:
    """The text as the authors write it: up to the first empty line, without white space at the ends.

    A line break left inside becomes a space, because the scorer's files hold one text per line.
    """
    return " ".join(text.split("\n\n")[0].strip().splitlines())


def decode_e2e(model: GPT2, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]],
               length_penalties: Sequence[float] = (0.9,), limit: int | None = None,
               **options) -> tuple[list[list[str]], dict[float, list[str]]]:
    """Decode each distinct MR of the (MR, reference) pairs once; limit: only the first so many MRs.

    options: further fields of Settings, such as beam_size and search. Returns the references of each MR, in the order
    in which the MRs first occur, and the hypotheses for every length penalty in the same order, all from one search.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit} meaning representations, expected 1 or more")
    references: dict[str, list[str]] = {}
    for mr, reference in pairs:
        references.setdefault(mr, []).append(reference)
    samples = [encode_e2e(tokenizer, mr, "") for mr in list(references)[:limit]]
    settings = Settings(length_penalties=tuple(length_penalties), eos_ids=end_tokens(tokenizer), **options)
    results = n_best(model, [ids[:context_length] for ids, context_length in samples], settings)
    return list(references.values())[:limit], {
        penalty: [clean(tokenizer.decode(best_text(texts, penalty))) for texts in results] for penalty in length_penalties}


def penalty_table(references: list[list[str]], hypotheses: dict[float, list[str]]) -> str:
    """BLEU, NIST and the length ratio to the closest references, a line per length penalty."""
    lines = ["length penalty    BLEU    NIST  length ratio"]
    for penalty in sorted(hypotheses):
        scores = evaluate(references, hypotheses[penalty], metrics=("BLEU", "NIST"))
        lines.append(f"{penalty:14g}  {scores.system['BLEU']:.4f}  {scores.system['NIST']:.4f}  "
                     f"{scores.details['length_ratio']:12.4f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="decode.py", description="Decode the meaning representations of an E2E split "
                                     "and write hypotheses and references in the scorer's file format.")
    parser.add_argument("--model", required=True, help="gpt2, gpt2-medium, ... or a model folder")
    parser.add_argument("--adapter", help="a trained adapter of any method; without it the base model decodes")
    parser.add_argument("--alpha", type=float, help="of a LoRA adapter; the authors' and loralib's files hold none "
                        "(default: the recipe's)")
    parser.add_argument("--task", default="e2e", choices=["e2e"])
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    parser.add_argument("--text", default="pretokenised", choices=["pretokenised", "official"],
                        help="the authors' form of the texts, or the challenge's own; scores of the two do not compare")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="hypotheses; references "
                        "and settings go beside it, into FILE.references and FILE.json")
    parser.add_argument("--search", default="authors", choices=SEARCHES)
    parser.add_argument("--beam-size", type=int, default=10)
    parser.add_argument("--length-penalty", type=float, default=0.9, help="the paper has 0.9, the authors' README 0.8")
    parser.add_argument("--no-repeat-ngram-size", type=int, default=4, help="0: no ban")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--compare-penalties", action="store_true",
                        help="print BLEU, NIST and length ratio for 0.8, 0.9 and 1.0 from the same search")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N meaning representations only")
    parser.add_argument("--data-dir", help="folder with e2e/ (default: $LORA_DATA, else a cache folder)")
    parser.add_argument("--weights-dir", help="folder of model folders (default: $LORA_WEIGHTS, else a cache folder)")
    options = parser.parse_args(arguments)

    directory = fetch_model(options.model, options.weights_dir)
    model = load_pretrained(directory)
    if not isinstance(model, GPT2):
        raise ValueError(f"{directory} is a RoBERTa, which generates no text: give a GPT-2")
    if options.adapter:
        alpha = options.alpha
        if alpha is None:
            alpha = alpha_for_file(options.adapter, model.config, options.task)
        load_trained(model, options.adapter, alpha, options.task)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    pairs = read_e2e(options.split, fetch_task("e2e", options.data_dir), options.text)
    settings = {name: getattr(options, name) for name in ("search", "beam_size", "no_repeat_ngram_size", "max_new_tokens")}
    penalties = dict.fromkeys((options.length_penalty, *((0.8, 0.9, 1.0) if options.compare_penalties else ())))
    references, hypotheses = decode_e2e(model, load_tokenizer(directory), pairs, tuple(penalties), options.limit, **settings)
    references_path = Path(f"{options.out}.references")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_hypotheses(hypotheses[options.length_penalty], options.out)
    write_references(references, references_path)
    write_json({"model": options.model, "adapter": options.adapter, "split": options.split, "text": options.text,
                "length_penalty": options.length_penalty, **settings}, Path(f"{options.out}.json"))
    if options.compare_penalties:
        print(penalty_table(references, hypotheses))
    print(f"wrote {options.out} and {references_path}: {len(references)} MRs of {options.split}, {options.text} text; score "
          f"them with\npython eval_metrics.py {references_path} {options.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
