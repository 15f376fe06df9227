"""The searches for a text: beams that share their prompt, and the rules by which the best of them go on.

    AuthorsSearch    the beam search of the authors' code, with which the paper decodes
    HfSearch         the beam search of transformers, which gives different text
    OnePath          greedy and sampling

Both beam searches score a text by sum log p / length ** length_penalty, end token included. The K beams of a prompt are
K tokens of one row: they share its keys and values, and a mask of each beam's ancestors takes the place of copies of the
cache. Left out: diverse and constrained beams.
Shapes: B prompts of a batch, K beams, P prompt tokens, G generated tokens, T tokens, S cached positions, C hidden size,
V vocabulary.
"""
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from kv_cache import KVCache
from model import GPT2

SEARCHES = ("authors", "hf", "greedy", "sample")
GPT2_END_TOKENS = (50256, 628)                                               # <|endoftext|> and "\n\n"
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


class Beams:
    """The running beams of B prompts: their tokens and log-probabilities, and what the model has computed for them."""

    def __init__(self, model: GPT2, prompts: list[Sequence[int]], width: int, max_new_tokens: int):
        """Reads the prompts, each once: one beam per prompt, with no token yet. Later there will be `width`."""
        device, lengths = model.transformer.wte.weight.device, [len(prompt) for prompt in prompts]
        longest = max(lengths)
        capacity = longest + width * (max_new_tokens - 1)                    # the last tokens are not read
        self.model, self.length = model, 0
        self.cache = KVCache(model.config, len(prompts), capacity, device, model.transformer.wte.weight.dtype)
        self.tokens = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)   # (B, K, G)
        self.log_probs = torch.zeros(len(prompts), 1, device=device)                     # (B, K)
        self.prompts = torch.tensor([[-1] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        input_ids = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        self.next_position = torch.tensor(lengths, device=device)[:, None]               # (B, 1)
        self.visible = torch.arange(longest, device=device) < self.next_position[..., None]      # (B, K, S)
        hidden_states = model.hidden_states(input_ids, cache=self.cache)                 # (B, P) -> (B, P, C)
        last = torch.arange(len(prompts), device=device)[:, None], self.next_position - 1
        self.logits = model.logits(hidden_states[last]).float()                          # (B, K, C) -> (B, K, V)

    def history(self) -> Tensor:
        """Prompt and generated tokens of every beam, (B, K, P + G), with -1 before shorter prompts."""
        return torch.cat([self.prompts[:, None].expand(-1, self.tokens.shape[1], -1), self.tokens], dim=-1)

    def branch(self, parents: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """The next beams (B, K): the beam each comes from, the token it adds, and its log-probability."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        self.tokens = torch.cat([self.tokens[rows, parents], tokens[..., None]], dim=-1)  # (B, K, G) -> (B, K, G + 1)
        self.visible = self.visible[rows, parents]
        self.log_probs, self.length = log_probs, self.length + 1

    def keep(self, rows: list[int]) -> None:
        """Drop the prompts whose search is over."""
        for name in ("tokens", "log_probs", "prompts", "next_position", "visible"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep(rows)

    def read(self) -> None:
        """Run the model over the newest token of every beam, which sees its ancestors' slots and its own.

        Its keys and values go where no beam looks: into padding or what only ended beams have seen, else at the end.
        """
        B, K = self.log_probs.shape
        free = ~self.visible.any(dim=1)                                                  # (B, K, S) -> (B, S)
        if free.sum(dim=1).min() < K:
            self.visible, free = F.pad(self.visible, (0, K)), F.pad(free, (0, K), value=True)    # (.., S) -> (.., S + K)
        slots = free.byte().argsort(dim=1, descending=True, stable=True)[:, :K]          # (B, K): the first that are free
        self.visible = self.visible.scatter(2, slots[..., None], True)
        self.cache.reuse(slots, length=self.visible.shape[2])
        hidden_states = self.model.hidden_states(self.tokens[..., -1], self.next_position.expand(B, K),
                                                 self.visible[:, None], self.cache)      # (B, K) -> (B, K, C)
        self.logits = self.model.logits(hidden_states).float()                           # (B, K, C) -> (B, K, V)
        self.next_position = self.next_position + 1


def ban_repeats(scores: Tensor, history: Tensor, n: int) -> None:
    """Set to -inf, in scores (B, K, V), each token that would repeat an n-gram of history (B, K, T); -1 is padding."""
    if n == 0 or history.shape[-1] < n:
        return
    windows = history.unfold(-1, n, 1)                                       # (B, K, T) -> (B, K, T - n + 1, n)
    suffix = history[..., history.shape[-1] - n + 1:]                        # (B, K, n - 1)
    repeats = (windows[..., :-1] == suffix[:, :, None]).all(dim=-1) & (windows[..., -1] >= 0)
    row, beam, start = repeats.nonzero(as_tuple=True)
    scores[row, beam, windows[row, beam, start, -1]] = NEVER


def best_continuations(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of scores (B, K, V), best first: their values, beams and tokens, each (B, count)."""
    values, flat = scores.flatten(1).topk(min(count, scores.shape[1] * scores.shape[2]))
    return values, flat // scores.shape[2], flat % scores.shape[2]


class Search:
    """A search over a batch of prompts. The classes below add `step`: from logits (B, K, V) it sets aside the texts that
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
        """Whether a text is over with each of tokens (B, K): an end token, or the last that it may have."""
        return torch.isin(tokens, self.eos_ids) | (self.beams.length + 1 == self.settings.max_new_tokens)

    def set_aside(self, chosen: Tensor, log_probs: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Note the chosen ones of the continuations (B, K) as texts; one at -inf descends from an ended beam."""
        for row, rank in (chosen & log_probs.isfinite()).nonzero().tolist():
            ids = [*self.beams.tokens[row, parents[row, rank]].tolist(), tokens[row, rank].item()]
            text = ids[:-1] if ids[-1] in self.settings.eos_ids else ids
            self.finished[row].append(Hypothesis(text, log_probs[row, rank].item(), len(ids)))


class AuthorsSearch(Search):
    """Beam search as in the authors' code (Hu et al. 2021, appendix D.3).

    The n-gram ban looks at generated text and acts on the logits, so what is left is renormalised. The best K
    continuations become the beams; one that ends is set aside, its slot counts as -inf and is refilled by the others in
    the next step. At the last step unfinished beams compete too.
    """

    def step(self, logits: Tensor) -> list[bool]:
        beams, settings = self.beams, self.settings
        ban_repeats(logits, beams.tokens, settings.no_repeat_ngram_size)
        scores = beams.log_probs[..., None] + F.log_softmax(logits, dim=-1)              # (B, K, V)
        log_probs, parents, tokens = best_continuations(scores, settings.beam_size)      # (B, K)
        ended = self.ends(tokens)
        self.set_aside(ended, log_probs, parents, tokens)
        beams.branch(parents, tokens, log_probs.masked_fill(ended, NEVER))
        return [self.is_decided(row, best) for row, best in enumerate(beams.log_probs.amax(dim=1).tolist())]

    def is_decided(self, row: int, best_running: float) -> bool:
        """Whether no running beam can still beat the best finished text, so that stopping changes nothing.

        A running beam has log-probability c <= best_running <= 0. Each further token adds log p <= 0, so it ends with
        c' <= c, and with a length of at most m = max_new_tokens. For a penalty a >= 0 its score is then
        c' / length ** a <= c' / m ** a <= best_running / m ** a, because dividing a negative number by more brings it
        nearer to 0. If a finished text reaches that bound, a later one could at most draw, and the first keeps its place.
        With a < 0 length lowers the score, the bound does not hold, and the search goes on until no beam runs.
        """
        if best_running == NEVER:
            return True
        return bool(self.finished[row]) and all(
            penalty >= 0 and max(text.score(penalty) for text in self.finished[row])
            >= best_running / self.settings.max_new_tokens ** penalty for penalty in self.settings.length_penalties)


class HfSearch(Search):
    """Beam search as in transformers' generate; K = 1 is greedy and goes to OnePath.

    The n-gram ban looks at prompt and generated text and acts on the log-probabilities. Of (1 + number of end tokens) K
    continuations the best K that go on become the beams; the K best finished ones are kept, and the search ends when the
    best beam scores below the worst of them.
    """

    def step(self, logits: Tensor) -> list[bool]:
        beams, settings, K = self.beams, self.settings, self.settings.beam_size
        scores = F.log_softmax(logits, dim=-1)                                           # (B, K, V)
        ban_repeats(scores, beams.history(), settings.no_repeat_ngram_size)
        scores += beams.log_probs[..., None]
        candidates = best_continuations(scores, max(2, 1 + len(self.eos_ids)) * K)
        log_probs, parents, tokens = candidates                              # (B, 2 K) or more
        ended = self.ends(tokens)
        self.set_aside(ended[:, :K], *(part[:, :K] for part in candidates))
        running, best = log_probs.masked_fill(ended, NEVER).topk(K)          # (B, K)
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
        tokens = self.draw(logits[:, 0]) if self.settings.search == "sample" else logits.argmax(dim=-1)      # (B, 1)
        log_probs = beams.log_probs + F.log_softmax(logits, dim=-1)[:, 0].gather(-1, tokens)
        ended, parents = self.ends(tokens), torch.zeros_like(tokens)
        self.set_aside(ended, log_probs, parents, tokens)
        beams.branch(parents, tokens, log_probs)
        return ended[:, 0].tolist()

    def draw(self, logits: Tensor) -> Tensor:
        """A token of each row of logits (B, V): temperature, then the top_k best, then the fewest that hold top_p."""
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
        return ids.gather(-1, chosen.minimum(last))                          # (B, 1)
