"""Beam search for GPT-2, and the E2E task from meaning representation to text file.

    python decode.py --model gpt2-medium --adapter DIR --task e2e --split test --out predictions.txt

The searches themselves are in beam_search.py, which says how they choose:

    authors           the beam search of the authors' code, with which the paper decodes (Hu et al. 2021, appendix D.3)
    hf                that of transformers' generate, for comparison: it gives different text
    greedy, sample    one path

Prompts are batched by length, and leave the batch when their search is over. Left out: prompts that join a batch under way.
"""
import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from baselines import load_trained
from beam_search import GPT2_END_TOKENS, SEARCHES, AuthorsSearch, HfSearch, Hypothesis, OnePath, Settings
from data import encode_e2e, fetch_task, read_e2e
from eval_metrics import evaluate
from files import cli
from files.published import fetch_model
from files.text import write_json
from files.tokenizer import Tokenizer, load_tokenizer
from kv_cache import lay_out_for_decoding
from metrics.texts import write_hypotheses, write_references
from model import GPT2, load_pretrained
from parallel import device
from recipes import alpha_for_file

CACHE_BYTES = 2**30                                                          # for keys, values and logits of a batch


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


SEARCH_CLASSES = {"authors": AuthorsSearch, "hf": HfSearch, "greedy": OnePath, "sample": OnePath}


# ---------------------------------------------------------------- E2E

def end_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """<|endoftext|> and, where the vocabulary has it as one token, the empty line: 50256 and 628 for GPT-2."""
    empty_line = tokenizer.pieces("\n\n")
    return (tokenizer.eos_id, *empty_line) if len(empty_line) == 1 else (tokenizer.eos_id,)


def e2e_prompt(tokenizer: Tokenizer, mr: str) -> list[int]:
    """A meaning representation in the frame in which training shows it, up to where its text would begin."""
    ids, context_length = encode_e2e(tokenizer, mr, "")
    return ids[:context_length]


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
    prompts = [e2e_prompt(tokenizer, mr) for mr in list(references)[:limit]]
    settings = Settings(length_penalties=tuple(length_penalties), eos_ids=end_tokens(tokenizer), **options)
    results = n_best(model, prompts, settings)
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
    model.to(device())
    pairs = read_e2e(options.split, fetch_task("e2e", options.data_dir, options.text), options.text)
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
