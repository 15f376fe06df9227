"""The command that writes the texts of an E2E split: beam search with a trained, official or PEFT adapter.

    python decode.py --model gpt2-medium --adapter DIR --task e2e --split test --out predictions.txt

A LoRA adapter is merged into the weights (Hu et al. 2021, section 4.1), in fp32, before these are held in the run's format.
The searches are in generation/search.py. Left out: scores (eval_metrics.py), many adapters at a time (predict.py).
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
from training.precision import choose_precision, format_of_run, hold_frozen_in
from training.processes import DEVICE_HELP, resolve_device
from training.recipes import alpha_for_file


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="auto: that of the adapter's "
                        "run, else bf16 where this device is faster with it")
    parser.add_argument("--data-dir", help="folder with e2e/ (default: $LORA_DATA, else a cache folder)")
    parser.add_argument("--weights-dir", help="folder of model folders (default: $LORA_WEIGHTS, else a cache folder)")
    return parser.parse_args(arguments)


def load_model(options: argparse.Namespace, directory: Path, device: str) -> tuple[nn.Module, str]:
    """The model as it decodes, adapter merged, on its device; and the format of its weights, said with its reason on stderr.
    Raises ValueError for a model that generates no text."""
    model = load_pretrained(directory)
    if not model.causal:
        raise ValueError(f"{directory} is a RoBERTa, which generates no text: give a GPT-2")
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
    settings = {name: getattr(options, name) for name in ("search", "beam_size", "no_repeat_ngram_size", "max_new_tokens")}
    penalties = dict.fromkeys((options.length_penalty, *((0.8, 0.9, 1.0) if options.compare_penalties else ())))
    references, hypotheses = decode_e2e(model, load_tokenizer(directory), pairs, tuple(penalties), options.limit, **settings)
    references_path = Path(f"{options.out}.references")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_hypotheses(hypotheses[options.length_penalty], options.out)
    write_references(references, references_path)
    write_json({"model": options.model, "adapter": options.adapter, "split": options.split, "text": options.text,
                "precision": precision, "length_penalty": options.length_penalty, **settings}, Path(f"{options.out}.json"))
    if options.compare_penalties:
        print(penalty_table(references, hypotheses))
    print(f"wrote {options.out} and {references_path}: {len(references)} MRs of {options.split}, {options.text} text; score "
          f"them with\npython eval_metrics.py {references_path} {options.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
