"""Many tasks from the command line: requests for different adapters share batches.

    python predict.py --model roberta-base --adapter mrpc=DIR --adapter cola=DIR requests.jsonl --out answers.jsonl

A request is a JSON line, the texts as one string or as a list of one or two; further keys come back with the answer:

    {"adapter": "mrpc", "text": ["The cat sat.", "A cat was sitting."]}  ->  {"adapter": "mrpc", "label": "equivalent",
                                                                              "probability": 0.97}
    {"adapter": "stsb", "text": ["...", "..."]}                          ->  {"adapter": "stsb", "score": 3.81}
    {"adapter": "e2e", "text": "name : Aromi | ..."}    (GPT-2)          ->  {"adapter": "e2e", "text": "Aromi is ..."}
    a line that is no such request                                       ->  {"line": 3, "error": "..."}

An adapter's task says what form its texts and answers have. It is the one stored with the adapter; where none is, as in
PEFT's folders, the adapter has to be named after its task.

Answers stand in the order of the requests, one line each. Only a window of lines is held at a time, sorted by length
within to save padding; a batch size of 1 has nothing to sort, so every line is answered before the next is read.

Left out: a server, and requests that name several adapters at once.
"""
import argparse
import ctypes
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from tqdm import tqdm

from bank import BASE, AdapterBank
from data import GLUE_TASKS, collate_pairs
from decode import clean, e2e_prompt, end_tokens
from files import cli
from files.published import fetch_model
from files.text import shorten, unique_keys
from files.tokenizer import Tokenizer, load_tokenizer
from model import GPT2, GPT2Config, RobertaConfig, load_pretrained
from parallel import device
from recipes import alpha_for_file, lacks_alpha

WINDOW = 16                                                                  # batches that are read and sorted together
M_MMAP_THRESHOLD = -3                                                        # glibc's malloc.h
ANSWER_KEYS = ("label", "probability", "score", "line", "error")


@dataclass(frozen=True)
class Request:
    adapter: str
    ids: list[int]
    further: dict                                                            # what comes back with the answer


@dataclass(frozen=True)
class Refusal:
    line: int
    reason: str


class Predictor:
    """A bank, its tokenizer, and how requests become token ids and results become answers."""

    def __init__(self, bank: AdapterBank, tokenizer: Tokenizer, batch_size: int = 32, **generation):
        """generation: for GPT-2, the options of decode.generate.

        Raises ValueError for an adapter on RoBERTa whose task does not say what its labels mean, or has another number
        of them than its head.
        """
        if batch_size < 1:
            raise ValueError(f"batch size is {batch_size}, expected 1 or more")
        if tokenizer.vocab_size > bank.model.config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {bank.model.config.vocab_size}: "
                             "use the tokenizer of this model")
        self.bank, self.tokenizer, self.batch_size = bank, tokenizer, batch_size
        self.generates = isinstance(bank.model, GPT2)
        self.generation = {"max_new_tokens": 64} | generation
        self.tasks = {} if self.generates else {name: self.glue_task(name) for name in bank.adapters if name != BASE}

    def task_of(self, name: str) -> str:
        """The task that an adapter was trained for or, where its file does not say, the one it is called by."""
        return self.bank[name].task or name

    def glue_task(self, name: str) -> str:
        """The task of an adapter on RoBERTa, which has to be one of GLUE with as many labels as its head."""
        adapter, task = self.bank[name], self.task_of(name)
        if task not in GLUE_TASKS:
            raise ValueError(f"adapter '{name}': its task is {shorten(task)}, so its labels have no names; expected one of "
                             f"{', '.join(GLUE_TASKS)}: name an adapter that knows no task after it")
        labels, found = GLUE_TASKS[task].labels or ("score",), adapter.head.out_proj.out_features
        if len(labels) != found:
            raise ValueError(f"adapter '{name}': its head has {found} labels, {task} has {len(labels)} ({', '.join(labels)})")
        return task

    def read(self, line: bytes) -> Request:
        """The request on a line. Raises ValueError with what is wrong with it."""
        try:
            content = json.loads(line.decode("utf-8"), object_pairs_hook=unique_keys)
            as_json(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON in UTF-8 ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"found a JSON {type(content).__name__}, expected an object with adapter and text")
        further = {key: value for key, value in content.items() if key not in ("adapter", "text")}
        for key in ("adapter", "text"):
            if key not in content:
                raise ValueError(f"no '{key}'; expected an object with adapter and text")
        for key in further:
            if key in ANSWER_KEYS:
                raise ValueError(f"'{key}' is a key of the answers; give it another name")
        name, texts = content["adapter"], content["text"]
        if not isinstance(name, str):
            raise ValueError(f"the adapter is {shorten(json.dumps(name))}, expected its name")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the text is {shorten(json.dumps(content['text']))}, expected a string or a list of one or two")
        task = self.task_of(name)                                            # refuses a name that is not held
        ids = self.encode_prompt(task, texts) if self.generates else self.encode_pair(name, texts)
        return Request(name, ids, further)

    def encode_prompt(self, task: str, texts: list[str]) -> list[int]:
        """A meaning representation in the frame it was trained in (E2E), or plain text to go on with."""
        if len(texts) != 1:
            raise ValueError("two texts; GPT-2 continues one")
        ids = e2e_prompt(self.tokenizer, texts[0]) if task == "e2e" else self.tokenizer.encode(texts[0])
        room = self.bank.model.config.n_positions - self.generation["max_new_tokens"]
        if not 1 <= len(ids) <= room:
            raise ValueError(f"the text has {len(ids)} tokens, expected 1 to {room}, so that the answer fits")
        return ids

    def encode_pair(self, name: str, texts: list[str]) -> list[int]:
        if name == BASE:
            raise ValueError(f"the base has no head of a task ({self.bank.held()})")
        task, most = self.tasks[name], self.bank.model.roberta.embeddings.max_length
        expected = len(GLUE_TASKS[task].texts)
        if len(texts) != expected:
            raise ValueError(f"{len(texts)} texts; {task} takes {expected}")
        ids = self.tokenizer.encode(*texts)
        if len(ids) > most:
            raise ValueError(f"the text has {len(ids)} tokens, the model takes {most}: shorten it")
        return ids

    def answer(self, requests: list[Request]) -> list[dict]:
        """The answers to requests for any adapters, in their order."""
        if self.generates:
            texts = self.bank.generate([request.adapter for request in requests], [request.ids for request in requests],
                                       eos_ids=end_tokens(self.tokenizer), batch_size=self.batch_size, **self.generation)
            return [{"text": clean(self.tokenizer.decode(ids))} for ids in texts]
        answers: list[dict] = [{} for _ in requests]
        by_length = sorted(range(len(requests)), key=lambda index: len(requests[index].ids))
        for start in range(0, len(by_length), self.batch_size):
            indices = by_length[start:start + self.batch_size]
            batch, place = [requests[index] for index in indices], self.bank.model.classifier.dense.weight.device
            input_ids, mask = collate_pairs([request.ids for request in batch], self.tokenizer.pad_id)
            logits = self.bank.logits([request.adapter for request in batch], input_ids.to(place), mask.to(place))
            for index, request, values in zip(indices, batch, logits, strict=True):
                answers[index] = self.name(self.tasks[request.adapter], values)
        return answers

    def name(self, task: str, logits: torch.Tensor) -> dict:
        """(L,) -> the label with its probability, or the score of STS-B."""
        labels = GLUE_TASKS[task].labels
        if labels is None:
            return {"score": round(logits.item(), 4)}
        probability, label = logits.softmax(dim=0).max(dim=0)
        return {"label": labels[label], "probability": round(probability.item(), 4)}


def answer_lines(predictor: Predictor, lines: Iterator[bytes]) -> Iterator[tuple[bytes, dict | Refusal]]:
    """Every line with its answer, in order; at most a window of lines is read ahead of the answers."""
    number, window = 0, 1 if predictor.batch_size == 1 else WINDOW * predictor.batch_size
    while chunk := list(islice(lines, window)):
        read: list[Request | Refusal] = []
        for line in chunk:
            number += 1
            try:
                read.append(predictor.read(line))
            except ValueError as error:
                read.append(Refusal(number, " ".join(str(error).split())))
        requests = [request for request in read if isinstance(request, Request)]
        answers = iter(predictor.answer(requests) if requests else ())
        for line, item in zip(chunk, read, strict=True):
            yield line, item if isinstance(item, Refusal) else {**item.further, "adapter": item.adapter, **next(answers)}


def as_json(content) -> bytes:
    """Raises ValueError for what JSON in UTF-8 cannot hold, NaN and half a surrogate pair, though json.loads takes them."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")


def answer_file(predictor: Predictor, source: Iterable[bytes], size: int | None, name: str, out: BinaryIO,
                strict: bool) -> int:
    """Answer every line of `source`, say on stderr which were refused, and return how many. size: bytes, for the bar."""
    refused = 0
    with tqdm(total=size, unit="B", unit_scale=True, desc="answering", disable=None) as bar:
        for count, (line, answer) in enumerate(answer_lines(predictor, iter(source)), 1):
            if isinstance(answer, Refusal):
                if strict:
                    raise ValueError(f"{name}, line {answer.line}: {answer.reason}")
                tqdm.write(f"{name}, line {answer.line}: {answer.reason}", file=sys.stderr)
                refused += 1
                answer = {"line": answer.line, "error": answer.reason}
            out.write(as_json(answer) + b"\n")
            out.flush()
            bar.set_postfix_str(f"{count} answered", refresh=False)
            bar.update(len(line))
    return refused


def parse_adapters(pairs: list[str]) -> list[tuple[str, str]]:
    """NAME=DIR, any number -> (name, folder or file). Raises ValueError for one that lacks either."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise ValueError(f"--adapter {pair}: expected NAME=DIR")
    return [tuple(pair.split("=", 1)) for pair in pairs]


def alpha_of(name: str, path: str, config: GPT2Config | RobertaConfig, given: float | None) -> float | None:
    """The alpha for an adapter that stores none: the one given, or the recipe's for the task it is named after. None where
    the adapter's own counts, or where there is no such recipe. Raises ValueError like alpha_for_file."""
    if not lacks_alpha(path):
        return None
    tasks = ("e2e",) if isinstance(config, GPT2Config) else GLUE_TASKS
    return alpha_for_file(path, config, name) if given is None and name in tasks else given


def keep_memory_flat() -> None:
    """Let glibc give every large block back to the system: batches of ever other sizes would leave holes in its heap, which
    grew by a third over some thousand requests. With another C library nothing happens."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="predict.py", description="Answer requests for several adapters of one base, "
                                     "mixed in one batch.")
    parser.add_argument("--model", required=True, help="gpt2, roberta-base, ... or a model folder")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR",
                        help=f"a trained adapter, any number of times, named after its task if it stores none; '{BASE}' is "
                        "the bare GPT-2")
    parser.add_argument("--alpha", type=float, help="of LoRA adapters that store none, the authors' and loralib's files "
                        "(default: the recipe's)")
    parser.add_argument("requests", help="a file of JSON lines, or - for standard input")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of to standard output; FILE.tmp until all "
                        "is answered")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--strict", action="store_true", help="stop at the first line that is no request")
    parser.add_argument("--beam-size", type=int, default=10, help="this and the next two: for GPT-2")
    parser.add_argument("--length-penalty", type=float, default=0.9)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--weights-dir", help="folder of model folders (default: $LORA_WEIGHTS, else a cache folder)")
    options = parser.parse_args(arguments)

    keep_memory_flat()
    adapters = parse_adapters(options.adapter)
    directory = fetch_model(options.model, options.weights_dir)
    bank = AdapterBank(load_pretrained(directory).to(device()))
    for name, path in adapters:
        bank.add(name, path, alpha_of(name, path, bank.model.config, options.alpha))
    predictor = Predictor(bank, load_tokenizer(directory), options.batch_size, beam_size=options.beam_size,
                          length_penalty=options.length_penalty, max_new_tokens=options.max_new_tokens)
    temporary = options.out and options.out.with_name(options.out.name + ".tmp")
    source = nullcontext(sys.stdin.buffer) if options.requests == "-" else open(options.requests, "rb")
    with source as lines, open(temporary, "wb") if temporary else nullcontext(sys.stdout.buffer) as out:
        size = None if options.requests == "-" else os.fstat(lines.fileno()).st_size or None
        refused = answer_file(predictor, lines, size, options.requests, out, options.strict)
    if temporary:
        os.replace(temporary, options.out)
    if refused:
        print(f"error: lines refused: {refused}; all others are answered", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    cli.run(main)
