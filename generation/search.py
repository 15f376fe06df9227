"""The searches for a text, and the rules by which the best of its beginnings go on.

    AuthorsSearch    the beam search of the authors' code, with which the paper decodes (Hu et al. 2021, appendix D.3)
    HfSearch         the beam search of transformers' generate, for comparison: it gives different text
    OnePath          greedy and sampling (sampling.py)

Both beam searches score a text by sum log p / length ** length_penalty, end token included. Left out: diverse and
constrained beams. Shapes: B prompts of a batch, K beams, V vocabulary.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from generation.beams import NEVER, Beams, ban_repeats, best_continuations
from generation.sampling import draw, narrow, random_source
from speed.transfer import to_device, to_host

SEARCHES = ("authors", "hf", "greedy", "sample")
GPT2_END_TOKENS = (50256, 628)                                               # <|endoftext|> and "\n\n"


@dataclass(frozen=True)
class Settings:
    """How to search. length_penalties: the first ranks; `authors` is exact for the others too (see n_best)."""
    beam_size: int = 10
    length_penalties: tuple[float, ...] = (0.9,)
    no_repeat_ngram_size: int = 4                                            # 0: no ban
    max_new_tokens: int = 64
    eos_ids: tuple[int, ...] = GPT2_END_TOKENS
    banned_ids: tuple[int, ...] = ()                                         # never chosen, as if the model had no such rows
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

    @property
    def width(self) -> int:
        """Texts that a prompt has at the same time."""
        return self.beam_size if self.search in ("authors", "hf") else 1


@dataclass(frozen=True)
class Hypothesis:
    """A generated text. tokens: without prompt and end token. length: tokens with the end token, if it has one."""
    tokens: list[int]
    log_probability: float
    length: int

    def score(self, length_penalty: float) -> float:
        return self.log_probability / self.length ** length_penalty


class Search:
    """A search over a batch of prompts. The classes below add `step`: from logits (B, K, V) it sets aside the texts that
    end, chooses the next beams, and returns which rows are over."""

    def __init__(self, model: nn.Module, prompts: dict[int, Sequence[int]], settings: Settings):
        """prompts: index in the caller's list -> token ids."""
        self.settings, self.indices = settings, list(prompts)
        self.beams = Beams(model, list(prompts.values()), settings.width, settings.max_new_tokens)
        self.eos_ids = torch.tensor(sorted(set(settings.eos_ids)))
        (self.banned_ids,) = to_device(self.beams.device, torch.tensor(settings.banned_ids, dtype=torch.long))
        self.finished: list[list[Hypothesis]] = [[] for _ in prompts]        # of each row

    def run(self, results: list[list[Hypothesis]], bar: tqdm, route: Callable[[list[int]], None] | None) -> None:
        """Search to the end; each prompt's hypotheses go to its place in `results`."""
        while self.indices:
            over = self.step(self.beams.logits.index_fill_(-1, self.banned_ids, NEVER))
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
        scores = beams.log_probs_there()[..., None] + F.log_softmax(logits, dim=-1)      # (B, K, V)
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
        scores += beams.log_probs_there()[..., None]
        candidates = best_continuations(scores, max(2, 1 + len(self.eos_ids)) * K)
        log_probs, parents, tokens = candidates                              # (B, 2 K) or more
        ended = self.ends(tokens)
        self.set_aside(ended[:, :K], *(part[:, :K] for part in candidates))
        running, best = log_probs.masked_fill(ended, NEVER).topk(K)          # (B, K)
        beams.branch(parents.gather(1, best), tokens.gather(1, best), running)
        return [self.is_decided(row, best_running) for row, best_running in enumerate(running[:, 0].tolist())]

    def is_decided(self, row: int, best_running: float) -> bool:
        """Keep the best K texts; over when there are K and the best beam, ending now, would not be among them.
        That is transformers' rule for early_stopping=False: a longer text could still have a higher score."""
        penalty = self.settings.length_penalties[0]
        best = sorted(self.finished[row], key=lambda text: -text.score(penalty))[:self.settings.beam_size]
        self.finished[row] = best
        return best_running == NEVER or (len(best) == self.settings.beam_size and best_running
                                         / self.beams.length ** penalty <= best[-1].score(penalty))


class OnePath(Search):
    """Greedy search or sampling; the n-gram ban looks at prompt and generated text and acts on the logits."""

    def __init__(self, model: nn.Module, prompts: dict[int, Sequence[int]], settings: Settings):
        super().__init__(model, prompts, settings)
        self.random = {index: random_source(settings.seed, index) for index in prompts}

    def step(self, logits: Tensor) -> list[bool]:
        beams = self.beams
        ban_repeats(logits, beams.history(), self.settings.no_repeat_ngram_size)
        tokens = self.draw(logits[:, 0]) if self.settings.search == "sample" else logits.argmax(dim=-1)      # (B, 1)
        tokens, of_tokens = to_host(tokens, F.log_softmax(logits, dim=-1)[:, 0].gather(-1, tokens))
        log_probs = beams.log_probs + of_tokens
        ended, parents = self.ends(tokens), torch.zeros_like(tokens)
        self.set_aside(ended, log_probs, parents, tokens)
        beams.branch(parents, tokens, log_probs)
        return ended[:, 0].tolist()

    def draw(self, logits: Tensor) -> Tensor:
        """A token (B, 1) for each row of logits (B, V), at random."""
        settings = self.settings
        (uniform,) = to_device(logits.device, torch.tensor([[self.random[index].random()] for index in self.indices]))
        return draw(*narrow(logits, settings.temperature, settings.top_k, settings.top_p), uniform)


def search_class(settings: Settings) -> type[Search]:
    if settings.search == "authors":
        return AuthorsSearch
    return HfSearch if settings.search == "hf" and settings.beam_size > 1 else OnePath
