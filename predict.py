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
within; a batch size of 1 has nothing to sort, so every line is answered before the next is read. A single adapter is merged
into the weights. In place of a file of requests:

    --submission DIR     GLUE's test sets of all the adapters' tasks, answered as gluebenchmark.com takes them
    --interactive        a line in, an answer out, with one adapter

Left out: a server, and requests that name several adapters at once.
"""
import argparse
import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from tqdm import tqdm

from adapters.answers import WINDOW, Predictor
from adapters.bank import BASE, AdapterBank
from adapters.requests import Request, as_json
from adapters.submission import write_submission
from data import GLUE_TASKS
from files import cli
from files.published import fetch_model
from files.tokenizer import load_tokenizer
from lora import base_fingerprints
from model import load_pretrained
from training.precision import choose_precision, format_of_run, hold_frozen_in, named_precision
from training.processes import DEVICE_HELP, resolve_device
from training.recipes import alpha_for_file, lacks_alpha

M_MMAP_THRESHOLD = -3                                                        # glibc's malloc.h


def answer_lines(predictor: Predictor, lines: Iterator[bytes]) -> Iterator[tuple[bytes, dict]]:
    """Every line with its answer, in order; at most a window of lines is read ahead of the answers. A line that is refused
    is answered with "line", its number, and "error"."""
    number, window = 0, 1 if predictor.batch_size == 1 else WINDOW * predictor.batch_size
    while chunk := list(islice(lines, window)):
        read: list[Request | dict] = []
        for line in chunk:
            number += 1
            try:
                read.append(predictor.reader.read(line))
            except ValueError as error:
                read.append({"line": number, "error": " ".join(str(error).split())})
        requests = [item for item in read if isinstance(item, Request)]
        answers = iter(predictor.answer(requests) if requests else ())
        for line, item in zip(chunk, read, strict=True):
            yield line, item if isinstance(item, dict) else {**item.further, "adapter": item.adapter, **next(answers)}


def answer_file(predictor: Predictor, source: Iterable[bytes], size: int | None, name: str, out: BinaryIO,
                strict: bool) -> int:
    """Answer every line of `source`, say on stderr which were refused, and return how many. size: bytes, for the bar."""
    refused = 0
    with tqdm(total=size, unit="B", unit_scale=True, desc="answering", disable=None) as bar:
        for count, (line, answer) in enumerate(answer_lines(predictor, iter(source)), 1):
            if "error" in answer:
                reason = f"{name}, line {answer['line']}: {answer['error']}"
                if strict:
                    raise ValueError(reason)
                tqdm.write(reason, file=sys.stderr)
                refused += 1
            out.write(as_json(answer) + b"\n")
            out.flush()
            bar.set_postfix_str(f"{count} answered", refresh=False)
            bar.update(len(line))
    return refused


def answer_requests(predictor: Predictor, requests: str, out: Path | None, strict: bool) -> int:
    """Answer a file of requests, or standard input for -, into `out`, or standard output for None; the exit status."""
    temporary = out and out.with_name(out.name + ".tmp")
    source = nullcontext(sys.stdin.buffer) if requests == "-" else open(requests, "rb")
    with source as lines, open(temporary, "wb") if temporary else nullcontext(sys.stdout.buffer) as target:
        size = None if requests == "-" else os.fstat(lines.fileno()).st_size or None
        refused = answer_file(predictor, lines, size, requests, target, strict)
    if temporary:
        os.replace(temporary, out)
    if refused:
        print(f"error: lines refused: {refused}; all others are answered", file=sys.stderr)
    return 1 if refused else 0


def converse(predictor: Predictor, name: str, lines: BinaryIO, out: BinaryIO) -> None:
    """Answer each line as it comes, with adapter `name`: GPT-2 goes on with the text, for RoBERTa it is a text, or two with a
    tab between. What is wrong with a line is said on stderr. The end of the input or Ctrl-C ends it."""
    form, prompt = predictor.reader.forms.get(name), "> " if lines.isatty() else ""
    expected = "two texts with a tab between" if form and len(form.texts) == 2 else "a text"
    print(f"{name}: type {expected}; Ctrl-D or Ctrl-C ends", file=sys.stderr)

    def next_line() -> bytes:
        print(prompt, end="", file=sys.stderr, flush=True)
        return lines.readline()
    with suppress(KeyboardInterrupt):
        for line in iter(next_line, b""):
            try:
                text = line.decode("utf-8-sig").rstrip("\r\n")
                ids = predictor.reader.encode(name, text.split("\t") if form else [text])
                answer, = predictor.answer([Request(name, ids, {})])
            except ValueError as error:
                print(f"refused: {error}", file=sys.stderr)
                continue
            out.write("\t".join(map(str, answer.values())).encode("utf-8") + b"\n")
            out.flush()
    if prompt:
        print(file=sys.stderr)


def parse_adapters(pairs: list[str]) -> list[tuple[str, str]]:
    """NAME=DIR, any number -> (name, folder or file). Raises ValueError for one that lacks either."""
    for pair in pairs:
        if not all(pair.partition("=")):
            raise ValueError(f"--adapter {pair}: expected NAME=DIR")
    return [tuple(pair.split("=", 1)) for pair in pairs]


def alpha_of(name: str, path: str, model: torch.nn.Module, given: float | None) -> float | None:
    """The alpha for an adapter that stores none: the one given, or the recipe's for the task it is named after. None where
    the adapter's own counts, or where there is no such recipe. Raises ValueError like alpha_for_file."""
    if not lacks_alpha(path):
        return None
    tasks = ("e2e",) if model.head is None else GLUE_TASKS
    return alpha_for_file(path, model.config, name) if given is None and name in tasks else given


def load_bank(directory: Path, adapters: list[tuple[str, str]], alpha: float | None, device: str,
              precision: str) -> AdapterBank:
    """The base on its device, with its adapters, in the format asked for, which is said on stderr."""
    model = load_pretrained(directory).requires_grad_(False)
    model.fingerprints = base_fingerprints(model)                            # before its numbers are on another device
    model.to(device)
    formats = {format_of_run(path) for _, path in adapters} - {None}
    precision, why = choose_precision(precision, model, device, formats.pop() if len(formats) == 1 else None)
    bank = AdapterBank(model)
    for name, path in adapters:
        bank.add(name, path, alpha_of(name, path, model, alpha))
    if len(adapters) == 1:
        bank.merge(adapters[0][0])
    hold_frozen_in(model, precision)
    print(f"precision: the base in {precision} ({why})", file=sys.stderr)
    return bank


def keep_memory_flat() -> None:
    """Let glibc give every large block back to the system: batches of ever other sizes would leave holes in its heap, which
    grew by a third over some thousand requests. With another C library nothing happens."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser("predict.py", "--model M --adapter NAME=DIR ... REQUESTS [options]", "Answer requests for several "
                        "adapters of one base, mixed in one batch.")
    group = parser.add_argument_group("what is asked, one of three")
    asked = group.add_mutually_exclusive_group(required=True)
    asked.add_argument("requests", nargs="?", metavar="REQUESTS", help="a file of JSON lines, or - for standard input")
    asked.add_argument("--submission", type=Path, metavar="DIR", help="answer GLUE's test sets of the adapters' tasks into "
                       "DIR, as gluebenchmark.com takes them")
    asked.add_argument("--interactive", action="store_true", help="a line in, an answer out, with one adapter")
    held = parser.add_argument_group("what answers")
    held.add_argument("--model", required=True, metavar="M", help="gpt2, roberta-base, ... or a model folder")
    held.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help="a trained adapter, any number of "
                      f"times, named after its task if it stores none; '{BASE}' is the bare GPT-2")
    held.add_argument("--alpha", type=float, metavar="X", help="of LoRA files that hold none (default: the recipe's)")
    held.add_argument("--precision", type=named_precision, default="auto", metavar="{auto,fp32,bf16}",
                      help="of the base (default: as in the adapters' runs)")
    held.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    held.add_argument("--batch-size", type=int, default=32, metavar="N", help="default 32")
    held.add_argument("--beam-size", type=int, default=10, metavar="N", help="this and the next two: for GPT-2 (default 10)")
    held.add_argument("--length-penalty", type=float, default=0.9, metavar="X", help="default 0.9")
    held.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="FILE", help="write here; FILE.tmp until all is answered")
    files.add_argument("--strict", action="store_true", help="stop at the first line that is no request")
    files.add_argument("--data-dir", metavar="DIR", help="for --submission: has glue/ (default: $LORA_DATA, else a cache)")
    files.add_argument("--weights-dir", metavar="DIR", help="has model folders (default: $LORA_WEIGHTS, else a cache)")
    options = parser.parse_args(arguments)
    if options.data_dir and not options.submission:
        parser.error("--data-dir is for --submission: leave it out")
    if (options.out or options.strict) and options.requests is None:
        parser.error("--out and --strict are for a file of requests: leave them out")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    keep_memory_flat()
    adapters, device = parse_adapters(options.adapter), resolve_device(options.device)
    if options.interactive and len(adapters) > 1:
        raise ValueError(f"--interactive speaks to one adapter, found {len(adapters)}: give --adapter once")
    directory = fetch_model(options.model, options.weights_dir)
    bank = load_bank(directory, adapters, options.alpha, device, options.precision)
    if options.interactive and bank.model.head and not adapters:
        raise ValueError("--interactive with an encoder needs an adapter, as the base has no head of a task: give --adapter")
    predictor = Predictor(bank, load_tokenizer(directory), options.batch_size, beam_size=options.beam_size,
                          length_penalty=options.length_penalty, max_new_tokens=options.max_new_tokens)
    if options.submission:
        for path in write_submission(predictor, options.data_dir, options.submission):
            print(f"wrote {path}")
        return 0
    if options.interactive:
        converse(predictor, adapters[0][0] if adapters else BASE, sys.stdin.buffer, sys.stdout.buffer)
        return 0
    return answer_requests(predictor, options.requests, options.out, options.strict)


if __name__ == "__main__":
    cli.run(main)
