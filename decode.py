"""The command that writes the texts of an E2E split: beam search or sampling with a trained, official or PEFT adapter.

    python decode.py --model gpt2-medium --adapter DIR --task e2e --split test --out predictions.txt
    python decode.py --model gpt2-medium --adapter DIR --out FILE --sample --temperature 0.7 --top-p 0.9 --seed 1

A LoRA adapter is merged into the weights (Hu et al. 2021, section 4.1), in fp32, before these are held in the run's format.
The searches are in generation/search.py, sampling in sampling.py; a record's random numbers come from the seed and its place
in the split, so that neither --limit nor batches change its text. Left out: scores (eval_metrics.py), many adapters at a time
(predict.py).
"""
import argparse
import sys
from pathlib import Path

from torch import nn

from data import fetch_task, read_e2e
from files import cli
from files.published import fetch_model
from files.text import write_json
from files.tokenizer import load_tokenizer
from generation import SEARCHES
from generation.e2e import decode_e2e, penalty_table
from lora import merge
from methods import load_trained
from metrics.texts import write_hypotheses, write_references
from model import load_pretrained
from training.precision import choose_precision, format_of_run, hold_frozen_in, named_precision
from training.processes import DEVICE_HELP, resolve_device
from training.recipes import alpha_for_file

BEAMS, SAMPLE = ("authors", "hf"), ("sample",)
# the options that not every search has: the searches that have it, and its default there
OPTIONS_OF = {"beam_size": (BEAMS, 10), "length_penalty": (BEAMS, 0.9), "compare_penalties": (("authors",), False),
              "temperature": (SAMPLE, 1.0), "top_k": (SAMPLE, 0), "top_p": (SAMPLE, 1.0), "seed": (SAMPLE, 0)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser("decode.py", "--model M --out FILE [options]", "Decode the meaning representations of an E2E split and "
                        "write hypotheses and references in the scorer's file format.")
    what = parser.add_argument_group("what to decode")
    what.add_argument("--model", required=True, metavar="M", help="gpt2, gpt2-medium, ... or a model folder")
    what.add_argument("--adapter", metavar="A", help="a trained adapter of any method; without it the base decodes")
    what.add_argument("--alpha", type=float, metavar="X", help="of a LoRA file that holds none (default: the recipe's)")
    what.add_argument("--task", default="e2e", choices=["e2e"])
    what.add_argument("--split", default="test", choices=["train", "valid", "test"])
    what.add_argument("--text", default="pretokenised", choices=["pretokenised", "official"],
                      help="the authors' form or the challenge's; their scores do not compare")
    what.add_argument("--limit", type=int, metavar="N", help="the first N meaning representations only")
    beams = parser.add_argument_group("search")
    search = beams.add_mutually_exclusive_group()
    search.add_argument("--search", default="authors", choices=SEARCHES)
    search.add_argument("--sample", dest="search", action="store_const", const="sample", help="as --search sample")
    beams.add_argument("--beam-size", type=int, metavar="N", help="default 10")
    beams.add_argument("--length-penalty", type=float, metavar="X", help="the paper's 0.9 (default), the authors' 0.8")
    beams.add_argument("--compare-penalties", action="store_true", default=None,
                       help="print BLEU, NIST and length ratio for 0.8, 0.9, 1.0")
    beams.add_argument("--no-repeat-ngram-size", type=int, default=4, metavar="N", help="default 4; 0: no ban")
    beams.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, metavar="X", help="default 1")
    sampling.add_argument("--top-k", type=int, metavar="K", help="of the K likeliest tokens (default 0: of all)")
    sampling.add_argument("--top-p", type=float, metavar="P", help="of the fewest that hold this probability (default 1)")
    sampling.add_argument("--seed", type=int, metavar="N", help="default 0")
    files = parser.add_argument_group("machine and files")
    files.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)
    files.add_argument("--precision", type=named_precision, default="auto", metavar="{auto,fp32,bf16}",
                       help="auto: as the adapter's run, else the faster")
    files.add_argument("--out", required=True, type=Path, metavar="FILE", help="the texts; FILE.references and FILE.json "
                       "go beside it")
    files.add_argument("--data-dir", metavar="DIR", help="has e2e/ (default: $LORA_DATA, else a cache)")
    files.add_argument("--weights-dir", metavar="DIR", help="has model folders (default: $LORA_WEIGHTS, else a cache)")
    options = parser.parse_args(arguments)
    for name, (searches, default) in OPTIONS_OF.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.search not in searches:
            parser.error(f"--{name.replace('_', '-')} means nothing for --search {options.search}: leave it out, or search by "
                         f"{' or '.join(searches)}")
    return options


def load_model(options: argparse.Namespace, directory: Path, device: str) -> tuple[nn.Module, str]:
    """The model as it decodes, adapter merged, on its device; and the format of its weights, said with its reason on stderr.
    Raises ValueError for a model that generates no text."""
    model = load_pretrained(directory)
    if not model.causal:
        raise ValueError(f"{directory} is an encoder, which generates no text: give a GPT-2")
    run_format, merged = None, ""
    if options.adapter:
        alpha = alpha_for_file(options.adapter, model.config, options.task) if options.alpha is None else options.alpha
        if load_trained(model, options.adapter, alpha, options.task) == "lora":
            merge(model)
            merged = ", LoRA merged"
        run_format = format_of_run(options.adapter)
    if options.precision != "auto" or not options.adapter:
        model.requires_grad_(False)                                          # else what was trained would ask for fp32
    precision, why = choose_precision(options.precision, model, device, run_format)
    hold_frozen_in(model, precision)
    print(f"precision: the weights in {precision} ({why}){merged}", file=sys.stderr)
    return model.to(device), precision


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    device, directory = resolve_device(options.device), fetch_model(options.model, options.weights_dir)
    model, precision = load_model(options, directory, device)
    pairs = read_e2e(options.split, fetch_task("e2e", options.data_dir, options.text), options.text)
    settings = {name: getattr(options, name) for name in ("search", "beam_size", "no_repeat_ngram_size", "max_new_tokens",
                                                          "temperature", "top_k", "top_p", "seed")
                if name not in OPTIONS_OF or options.search in OPTIONS_OF[name][0]}
    penalties = dict.fromkeys((options.length_penalty, *((0.8, 0.9, 1.0) if options.compare_penalties else ())))
    references, hypotheses = decode_e2e(model, load_tokenizer(directory), pairs, tuple(penalties), options.limit, **settings)
    references_path = Path(f"{options.out}.references")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_hypotheses(hypotheses[options.length_penalty], options.out)
    write_references(references, references_path)
    penalty = {"length_penalty": options.length_penalty} if options.search in BEAMS else {}
    write_json({"model": options.model, "adapter": options.adapter, "split": options.split, "text": options.text,
                "precision": precision, **penalty, **settings}, Path(f"{options.out}.json"))
    if options.compare_penalties:
        print(penalty_table(references, hypotheses))
    print(f"wrote {options.out} and {references_path}: {len(references)} MRs of {options.split}, {options.text} text; score "
          f"them with\npython eval_metrics.py {references_path} {options.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
