"""The command line of train.py: its options in groups, checked as far as they can be without the model; and --from, which
puts the settings of an earlier run in front of what is given. Left out: what a run makes of them (options.py).
"""
import argparse
import math
import sys
from dataclasses import fields
from pathlib import Path

from data import TASKS
from files import cli
from files.text import read_json
from lora import TARGETS
from methods import METHODS
from training.options import OWN_TASKS, Settings, without_meaning
from training.precision import named_precision
from training.processes import DEVICE_HELP
from training.run_log import curve_writer

NOT_TAKEN_OVER = ("source", "adam_epsilon", "clip_norm", "device")           # by --from: no options, and the machine's own


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of one command. It ends with status 2 if they are wrong; raises ValueError for --from with a wrong file."""
    parser = cli.Parser("train.py", "--model M --task T [options]", "Fine-tune by LoRA or a method that it is compared with. "
                        "What is not given comes from the recipe of the model and task.")
    for add in (add_run, add_own_data, add_lora, add_training, add_text, add_files):
        add(parser)
    typed = sys.argv[1:] if arguments is None else arguments
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--from", dest="earlier", nargs="?")                  # without its file: the parser below says so
    earlier = first.parse_known_args(typed)[0].earlier
    options = parser.parse_args([*(options_of_run(Path(earlier)) if earlier else []), *typed])
    if earlier:
        leave_out(parser, options, typed)
    check(parser, options)
    return options


def leave_out(parser: argparse.ArgumentParser, options: argparse.Namespace, typed: list[str]) -> None:
    """Of what --from took over, what means nothing for another method or task; another recipe would be half of each."""
    names = {word.partition("=")[0] for word in typed}
    if "--recipe" in names:
        parser.error("--from takes over every setting of its run, --recipe would name others: leave one out, or give the "
                     "options that are to change")
    for name in without_meaning(options):
        if f"--{name.replace('_', '-')}" not in names:
            setattr(options, name, None)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Which model and task, by which method."""
    group = parser.add_argument_group("what to run")
    group.add_argument("--model", required=True, metavar="M", help="gpt2, gpt2-medium, roberta-base, ... or a folder")
    group.add_argument("--task", required=True, choices=(*TASKS, *OWN_TASKS), metavar="T",
                       help=f"{', '.join(TASKS)}; pairs, text: your own files")
    group.add_argument("--method", default="lora", choices=METHODS, metavar="M", help=", ".join(METHODS))
    group.add_argument("--recipe", choices=["paper", "repo"], help="the paper's (default) or the authors' scripts'")
    group.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N", help="one run per seed")
    group.add_argument("--init-adapter", metavar="DIR", help="start from this adapter; a head for others is dropped")
    group.add_argument("--from", dest="earlier", metavar="FILE", help="all settings of an earlier run's config.json, "
                       "but for what is given beside it")
    group.add_argument("--eval-only", action="store_true", help="score the base or --adapter, without training")
    group.add_argument("--adapter", metavar="DIR", help="the trained adapter for --eval-only")


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """Files of the user's own, for the tasks pairs and text."""
    group = parser.add_argument_group("your own files: .tsv, .csv or .jsonl, with names of columns")
    group.add_argument("--train-file", metavar="FILE")
    group.add_argument("--dev-file", metavar="FILE", help="what the run is scored on")
    group.add_argument("--text-columns", nargs="+", metavar="C", help="pairs: of one text or two; text: input and output")
    group.add_argument("--label-column", metavar="C", help="pairs: of the label, any names, or a number")
    group.add_argument("--labels", choices=["classes", "numbers"], help="what labels are (default: numbers, if all are and "
                       "one is not whole)")


def add_lora(parser: argparse.ArgumentParser) -> None:
    """LoRA's settings; the rank is other methods' size, too."""
    group = parser.add_argument_group("LoRA; rank is also an adapter's bottleneck, a prefix's length")
    group.add_argument("--rank", type=int, metavar="R")
    group.add_argument("--alpha", type=float, metavar="X", help="the update is scaled by alpha / rank")
    group.add_argument("--targets", nargs="+", metavar="T", help=f"{' '.join(TARGETS)}, or a family's own (default q v)")
    group.add_argument("--dropout", type=float, metavar="P", help="on the input of A")
    group.add_argument("--lora-init", choices=["gaussian", "kaiming"], help="start of A")
    group.add_argument("--bias", choices=["none", "lora-only", "all"], help="biases that train too (default none)")


def add_training(parser: argparse.ArgumentParser) -> None:
    """The optimizer's settings, and how the loop goes."""
    group = parser.add_argument_group("training")
    group.add_argument("--lr", type=float, metavar="X")
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--grad-accumulation", type=int, default=1, metavar="N", help="the same batch in N parts: less memory")
    group.add_argument("--epochs", type=int, metavar="N")
    group.add_argument("--max-steps", type=int, metavar="N", help="end after N updates; the schedule is fitted to it")
    group.add_argument("--warmup", type=float, metavar="X", help="below 1 a share of all steps, else a number of steps, "
                       "cut to a tenth of all")
    group.add_argument("--warmup-from", type=int, choices=[0, 1], help="the first rate is this many parts of the warm-up")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument("--model-dropout", type=float, metavar="P", help="in place of the model's own")
    group.add_argument("--max-length", type=int, metavar="N", help="tokens of a sentence pair")
    group.add_argument("--eval-every", type=int, metavar="N", help="score every N steps, too, beside every epoch")
    group.add_argument("--select", choices=["best", "last"], help="the evaluation that is kept and scored")
    group.add_argument("--precision", type=named_precision, default="auto", metavar="{auto,fp32,bf16}",
                       help="of the frozen weights; auto: bf16 where that is faster")
    group.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)


def add_text(parser: argparse.ArgumentParser) -> None:
    """What only the tasks with a decoded text have."""
    group = parser.add_argument_group("tasks e2e and text")
    group.add_argument("--text", choices=["pretokenised", "official"], help="E2E's form: the authors' (default), or released")
    group.add_argument("--label-smoothing", type=float, metavar="X")
    group.add_argument("--beam-size", type=int, metavar="N")
    group.add_argument("--length-penalty", type=float, metavar="X", help="the paper has 0.9, the authors' script 0.8")


def add_files(parser: argparse.ArgumentParser) -> None:
    """Where files are, and what is kept of a run."""
    group = parser.add_argument_group("files and limits")
    group.add_argument("--data-dir", metavar="DIR", help="has e2e/ and glue/ (default: $LORA_DATA, else a cache)")
    group.add_argument("--weights-dir", metavar="DIR", help="has model folders (default: $LORA_WEIGHTS, else a cache)")
    group.add_argument("--out-dir", default="runs", metavar="DIR", help="default: runs")
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished run of these settings")
    again.add_argument("--overwrite", action="store_true", help="begin a run of these settings anew")
    group.add_argument("--save-every", type=int, default=500, metavar="N", help="save the state every N steps (default 500)")
    group.add_argument("--log-every", type=int, metavar="N", help="say and log every Nth step (default: a line a minute, "
                       "and log.jsonl every 10)")
    group.add_argument("--tensorboard", metavar="DIR", help="curves for TensorBoard, where that is installed")
    group.add_argument("--limit-train", type=int, metavar="N", help="the first N training samples only")
    group.add_argument("--limit-eval", type=int, metavar="N", help="the first N to score, and N test inputs, only")


def config_file(path: Path) -> Path:
    """The config.json of a run, which --from may name by its folder, too."""
    return path / "config.json" if path.is_dir() else path


def options_of_run(path: Path) -> list[str]:
    """The settings in a run's config.json as options. A run of before there was --warmup-from began at a rate of 0.
    Raises ValueError for a file that is no run's."""
    config = {"warmup_from": 0} | read_json(config_file(path))
    if "model" not in config or "task" not in config:
        raise ValueError(f"{path}: names no model and task, so it is no run's: give the config.json of a run's folder")
    found = [f"--seed={config['seed']}"] if "seed" in config else []
    for name in (field.name for field in fields(Settings) if field.name not in NOT_TAKEN_OVER):
        option, value = f"--{name.replace('_', '-')}", config.get(name)
        if value is not None:
            found += [option, *map(str, value)] if isinstance(value, list) else [f"{option}={value}"]
    return found


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the command where options lack each other or numbers are out of range. Raises ValueError for a missing library."""
    if options.tensorboard:
        curve_writer()
    if options.adapter and not options.eval_only:
        parser.error("--adapter DIR is for --eval-only; to train from it on, give --init-adapter DIR")
    if options.init_adapter and options.eval_only:
        parser.error("--init-adapter DIR is to train from; to score it with --eval-only, give --adapter DIR")
    if options.task in OWN_TASKS:
        needed = ("train_file", "dev_file", "text_columns") + ("label_column",) * (options.task == "pairs")
        lacking = [f"--{name.replace('_', '-')}" for name in needed if getattr(options, name) is None]
        if lacking:
            parser.error(f"--task {options.task} trains on files of yours: give {' '.join(lacking)} as well")
        if len(options.text_columns) not in ((1, 2) if options.task == "pairs" else (2,)):
            parser.error(f"--text-columns names {len(options.text_columns)} columns; expected "
                         f"{'one text or two' if options.task == 'pairs' else 'two, the input and the output'}")
    for names, fits, expected in (
            (("rank", "batch_size", "grad_accumulation", "epochs", "max_steps", "eval_every", "save_every", "log_every",
              "limit_train", "limit_eval", "max_length", "beam_size"), lambda value: value >= 1, "a number from 1"),
            (("alpha",), lambda value: 0 < value < math.inf, "a number above 0"),
            (("lr", "warmup", "weight_decay"), lambda value: 0 <= value < math.inf, "a number from 0"),
            (("length_penalty",), math.isfinite, "a finite number"),
            (("label_smoothing", "dropout", "model_dropout"), lambda value: 0 <= value < 1, "a number from 0 to below 1")):
        for name in names:
            value = getattr(options, name)
            if value is not None and not fits(value):
                parser.error(f"--{name.replace('_', '-')} is {value}; expected {expected}")
