"""The E2E task, from meaning representation to text: what the model is shown, where a text ends, and what is kept of it.
Left out: reading the data and the form in which it is shown (data.py), the scores (eval_metrics.py).
"""
import itertools
from collections.abc import Sequence

from torch import nn

from data import encode_e2e
from eval_metrics import evaluate
from files.tokenizer import Tokenizer
from generation.decoding import best_text, check_prompts, n_best
from generation.search import Settings


def end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """<|endoftext|>, or what else the model's files name, and, where the vocabulary has it as one token, the empty line: 50256
    and 628 for GPT-2."""
    empty_line = tokenizer.pieces("\n\n")
    return (*tokenizer.eos_ids, *empty_line) if len(empty_line) == 1 else tokenizer.eos_ids


def search_ids(config, tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """What generate and Settings have to know of a tokenizer: eos_ids, and banned_ids, those of the model without a text."""
    return {"eos_ids": end_tokens(tokenizer), "banned_ids": tuple(tokenizer.ids_without_text(config.vocab_size))}


def e2e_prompt(tokenizer: Tokenizer, mr: str) -> list[int]:
    """A meaning representation in the frame in which training shows it, up to where its text would begin."""
    ids, context_length = encode_e2e(tokenizer, mr, "")
    return ids[:context_length]


def clean(text: str) -> str:
    """The text as the authors write it: up to the first empty line, without white space at the ends.
    A line break left inside becomes a space, because the scorer's files hold one text per line."""
    return " ".join(text.split("\n\n")[0].strip().splitlines())


def records(pairs: Sequence[tuple[str, str]], limit: int | None = None) -> dict[str, list[str]]:
    """MR -> its references, of (MR, reference) pairs, in the order in which the MRs first occur; limit: the first so many.
    Raises ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit} meaning representations, expected 1 or more")
    references: dict[str, list[str]] = {}
    for mr, reference in pairs:
        references.setdefault(mr, []).append(reference)
    return dict(itertools.islice(references.items(), limit))


def check_e2e(config, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], limit: int | None, **options) -> None:
    """Raise what decode_e2e would before it searches, as ValueError; config: the model's."""
    check_prompts(config, [e2e_prompt(tokenizer, mr) for mr in records(pairs, limit)],
                  Settings(**search_ids(config, tokenizer), **options))


def decode_e2e(model: nn.Module, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]],
               length_penalties: Sequence[float] = (0.9,), limit: int | None = None,
               **options) -> tuple[list[list[str]], dict[float, list[str]]]:
    """Decode each MR of `records` once. options: further fields of Settings, such as beam_size and search. Returns the
    references of each MR, and the hypotheses for every length penalty in the same order, all from one search."""
    references = records(pairs, limit)
    settings = Settings(length_penalties=tuple(length_penalties), **search_ids(model.config, tokenizer), **options)
    results = n_best(model, [e2e_prompt(tokenizer, mr) for mr in references], settings)
    return list(references.values()), {
        penalty: [clean(tokenizer.decode(best_text(texts, penalty))) for texts in results] for penalty in length_penalties}


def penalty_table(references: list[list[str]], hypotheses: dict[float, list[str]]) -> str:
    """BLEU, NIST and the length ratio to the closest references, a line per length penalty."""
    lines = ["length penalty    BLEU    NIST  length ratio"]
    for penalty in sorted(hypotheses):
        scores = evaluate(references, hypotheses[penalty], metrics=("BLEU", "NIST"))
        lines.append(f"{penalty:14g}  {scores.system['BLEU']:.4f}  {scores.system['NIST']:.4f}  "
                     f"{scores.details['length_ratio']:12.4f}")
    return "\n".join(lines)
