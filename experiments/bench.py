"""Speed against peers, measured side by side: each round runs both, in turn, and the medians of the rounds are compared.

    python -m experiments.bench all --data-dir DIR --tokenizers DIR --quick        # a little of each of the next four
    python -m experiments.bench decode --data-dir DIR --tokenizer DIR     # beam search on gpt2, against transformers
    python -m experiments.bench mixed --data-dir DIR --tokenizers DIR     # many adapters in one batch (bench_mixed.py)
    python -m experiments.bench train --data-dir DIR --tokenizers DIR     # a training step, against transformers + PEFT
    python -m experiments.bench start --data-dir DIR --tokenizers DIR     # help text, first step, reading (bench_start.py)
    python -m experiments.bench growth --data-dir DIR --tokenizers DIR    # over batch, length, rank (bench_growth.py)
    python -m experiments.bench bf16                                      # the toy tasks' scores in fp32 and bf16
    python -m experiments.bench formats                                   # from which hidden size on bf16 is faster
    python -m experiments.bench flat --data-dir toy/data                  # the memory of 1,000 steps, both formats
    python -m experiments.bench launches --data-dir DIR --tokenizers DIR  # kernels and waits on a device (bench_launches.py)
    python -m experiments.bench requests                                  # predict.py, 100 adapters, 10,000 requests

Weights are random with the real configuration, which costs the same as trained ones; the texts are real. Needs the
libraries of requirements-dev.txt.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from data import encode_e2e, read_e2e
from experiments import (
    bench_bf16,
    bench_formats,
    bench_growth,
    bench_launches,
    bench_mixed,
    bench_requests,
    bench_start,
    bench_train,
)
from experiments.tables import markdown
from files import cli
from files.tokenizer import load_tokenizer
from generation import GPT2_END_TOKENS, generate
from model import GPT2, GPT2Config
from toy.fresh import init_weights

PAD = 628                                                                    # an end token that no E2E prompt contains


def transformers_copy(model: GPT2):
    """The same weights in transformers' GPT-2."""
    import transformers
    transformers.utils.logging.set_verbosity_error()
    copy = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    copy.load_state_dict(model.state_dict() | {"lm_head.weight": model.transformer.wte.weight})
    return copy.eval()


def transformers_generate(reference, prompts: list[list[int]], beam_size: int, max_new_tokens: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    output = reference.generate(
        torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        num_beams=beam_size, length_penalty=0.9, no_repeat_ngram_size=4, max_new_tokens=max_new_tokens, do_sample=False,
        early_stopping=False, eos_token_id=list(GPT2_END_TOKENS), pad_token_id=PAD)
    texts = []
    for ids in output[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in GPT2_END_TOKENS), len(ids))
        texts.append(ids[:end])
    return texts


def bench_decode(options: argparse.Namespace) -> dict:
    """Seconds per prompt of generate(search="hf") and of transformers' generate: same prompts, batch, beams, output."""
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.tokenizer)
    records = list(dict.fromkeys(mr for mr, _ in read_e2e("test", options.data_dir)))
    step = len(records) // options.prompts
    contexts = [encode_e2e(tokenizer, mr, "") for mr in records[::step][:options.prompts]]
    prompts = [ids[:length] for ids, length in contexts]
    model = GPT2(GPT2Config()).eval()
    init_weights(model, seed=0)
    reference = transformers_copy(model)
    ways = {
        "transformers": lambda: transformers_generate(reference, prompts, options.beam_size, options.max_new_tokens),
        "hf": lambda: generate(model, prompts, options.beam_size, max_new_tokens=options.max_new_tokens, search="hf",
                               batch_size=len(prompts)),
        "authors": lambda: generate(model, prompts, options.beam_size, max_new_tokens=options.max_new_tokens,
                                    batch_size=len(prompts)),
    }
    transformers_generate(reference, prompts[:1], 2, 2)                      # first calls are slow
    generate(model, prompts[:1], 2, max_new_tokens=2)
    seconds, cpu_seconds, texts = {name: [] for name in ways}, {name: [] for name in ways}, {}
    for round_number in range(1, options.rounds + 1):
        for name, way in ways.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            texts[name] = way()
            seconds[name].append((time.perf_counter() - started) / len(prompts))
            cpu_seconds[name].append((time.process_time() - cpu_started) / len(prompts))
        print(f"round {round_number}, s/prompt (processor s): " + ", ".join(
            f"{name} {seconds[name][-1]:.2f} ({cpu_seconds[name][-1]:.2f})" for name in ways), flush=True)
    differing = sum(ours != theirs for ours, theirs in zip(texts["hf"], texts["transformers"], strict=True))
    figures = {"seconds_per_prompt": {name: statistics.median(times) for name, times in seconds.items()},
               "ratios": [slow / fast for slow, fast in zip(seconds["transformers"], seconds["hf"], strict=True)],
               "processor_time_ratios": [slow / fast for slow, fast in
                                         zip(cpu_seconds["transformers"], cpu_seconds["hf"], strict=True)]}
    print("medians: " + ", ".join(f"{name} {value:.2f} s/prompt" for name, value in figures["seconds_per_prompt"].items()))
    print(f"hf is {statistics.median(figures['ratios']):.2f} times as fast as transformers (processor time: "
          f"{statistics.median(figures['processor_time_ratios']):.2f} times); {differing} of {len(prompts)} texts differ")
    return figures | {"differing": differing, "prompts": len(prompts), "beam_size": options.beam_size,
                      "max_new_tokens": options.max_new_tokens, "threads": options.threads, "torch": torch.__version__}


# ---------------------------------------------------------------- one command for all

FULL = {"train": [], "decode": [], "start": [],
        "mixed": "--batches 8 --adapters 32 --populations distinct skewed --rounds 3".split()}
QUICK = {"train": "--models gpt2 --rounds 3".split(), "decode": "--prompts 4 --max-new-tokens 16 --rounds 1".split(),
         "start": ["--rounds", "1"],
         "mixed": "--models gpt2 --batches 8 --adapters 8 --populations distinct --rounds 1 --ways merged mixed peft".split()}


def bench_all(options: argparse.Namespace) -> dict:
    """The sections train, decode, mixed and start, one after the other in this run, and what they come to."""
    figures = {}
    for section, settings in (QUICK if options.quick else FULL).items():
        tokenizers = ["--tokenizer", str(options.tokenizers / "gpt2")] if section == "decode" else [
            "--tokenizers", str(options.tokenizers)]
        scored = ["--score", *map(str, options.score)] if section == "start" and options.score else []
        figures[section] = run(parse_arguments([section, "--data-dir", str(options.data_dir), *tokenizers, *scored, *settings]))
    print(table_of_all(figures))
    return figures


def table_of_all(figures: dict) -> str:
    """What, ours, the peer's, and how many times as fast: medians, as the sections have them."""
    rows = []
    trained = {(point["model"], point["precision"], point["way"]): point for point in figures["train"]["points"]}
    for (model, precision, way), point in trained.items():
        if way == "ours":
            rows.append((f"LoRA step, {model}, {precision}", f"{point['milliseconds']:,.0f} ms",
                         f"{trained[model, precision, 'peer']['milliseconds']:,.0f} ms",
                         f"{point['against_peer_same_precision']:.2f}"))
    seconds = figures["decode"]["seconds_per_prompt"]
    rows.append(("beam search, a prompt", f"{seconds['hf']:.2f} s", f"{seconds['transformers']:.2f} s",
                 f"{statistics.median(figures['decode']['ratios']):.2f}"))
    for point in figures["mixed"]["points"]:
        times = point["milliseconds"]
        rows.append((f"adapters by row, {point['model']}, {point['section']}, batch {point['batch']}, {point['population']}",
                     f"{times['mixed']:,.0f} ms", f"{times['peft']:,.0f} ms", f"{point['peft_by_mixed'][0]:.2f}"))
    for what, taken in figures["start"]["seconds"].items():
        is_peer = what.startswith("import transformers")
        rows.append((what, "–" if is_peer else f"{taken:.2f} s", f"{taken:.2f} s" if is_peer else "–", "–"))
    return "\n".join(markdown(["", "ours", "transformers, PEFT", "times as fast"], rows)) + "\n"


TABLES = {"train": bench_train.table, "start": bench_start.table, "bf16": bench_bf16.table, "formats": bench_formats.table,
          "launches": bench_launches.table, "all": table_of_all}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments.bench", description=__doc__.splitlines()[0])
    sections = parser.add_subparsers(dest="section", required=True)
    everything = sections.add_parser("all", help="train, decode, mixed and start, one after the other")
    everything.add_argument("--data-dir", required=True, type=Path, help="folder with glue/MRPC and e2e/")
    everything.add_argument("--tokenizers", required=True, type=Path, help="folder with roberta-base/ and gpt2/")
    everything.add_argument("--score", nargs=2, type=Path, metavar=("REFS", "HYPS"), help="files for eval_metrics.py")
    everything.add_argument("--quick", action="store_true", help="a few rounds of gpt2 alone, in about two minutes")
    everything.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")
    decode = sections.add_parser("decode", help="beam search on gpt2 with E2E prompts, against transformers' generate")
    decode.add_argument("--data-dir", required=True, help="folder with e2e/")
    decode.add_argument("--tokenizer", required=True, help="folder with gpt2's vocab.json and merges.txt")
    decode.add_argument("--prompts", type=int, default=8)
    decode.add_argument("--beam-size", type=int, default=10)
    decode.add_argument("--max-new-tokens", type=int, default=64)
    decode.add_argument("--rounds", type=int, default=3)
    decode.add_argument("--threads", type=int, default=2)
    decode.add_argument("--json", type=Path, help="write the figures to this file")
    bench_mixed.add_options(sections.add_parser("mixed", help="rows of a batch with different adapters, against merged "
                                                "weights, PEFT, and one batch per task"))
    bench_requests.add_options(sections.add_parser("requests", help="many toy adapters answer a long file of requests: "
                                                   "order, memory, and the answers of one process per adapter"))
    bench_train.add_options(sections.add_parser("train", help="a LoRA training step, against transformers + PEFT"))
    bench_launches.add_options(sections.add_parser("launches", help="kernels and waits of a step, on a simulated device"))
    bench_start.add_options(sections.add_parser("start", help="help text, first step, reading of the data"))
    bench_growth.add_options(sections.add_parser("growth", help="a step's time and memory over batch, length and rank"),
                             sections.add_parser("flat", help="the memory of a long run"))
    bench_formats.add_options(sections.add_parser("formats", help="fp32 and bf16 over the hidden size"))
    bench_bf16.add_options(sections.add_parser("bf16", help="the toy tasks in fp32 and bf16, several seeds"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict:
    """One section: its figures, written where the options say."""
    sections = {"all": bench_all, "decode": bench_decode, "mixed": bench_mixed.bench_mixed,
                "requests": bench_requests.bench_requests, "launches": bench_launches.bench_launches,
                "train": bench_train.bench_train, "start": bench_start.bench_start, "growth": bench_growth.bench_growth,
                "flat": bench_growth.bench_flat, "bf16": bench_bf16.bench_bf16, "formats": bench_formats.bench_formats}
    figures = sections[options.section](options)
    figures = {"machine": bench_train.machine(torch.get_num_threads())} | figures        # with a section's own, if it has one
    if options.section == "mixed" and options.plot:
        bench_mixed.plot(figures, options.plot)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if options.section in TABLES:
            options.json.with_suffix(".md").write_text(TABLES[options.section](figures), encoding="utf-8")
        if options.section == "growth":
            bench_growth.plot(figures, options.json.with_suffix(".png"))
    return figures


def main(arguments: list[str] | None = None) -> int:
    run(parse_arguments(arguments))
    return 0


if __name__ == "__main__":
    cli.run(main)
