"""The options of train.py. What is given as None here comes from the recipe of the model, task and method (recipes.py).

Left out: what an option means together with a recipe (train.resolve).
"""
import argparse
import math

from adapter_files import TARGETS
from baselines import METHODS
from data import TASKS


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of one command, checked as far as they can be without the model. argparse exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="train.py", description="Fine-tune by LoRA or a method it is compared with. "
                                     "Options without a default here come from the recipe of the model and task.")
    run = parser.add_argument_group("what to run")
    run.add_argument("--model", required=True, help="gpt2, gpt2-medium, roberta-base, ... or a model folder")
    run.add_argument("--task", required=True, choices=TASKS)
    run.add_argument("--method", default="lora", choices=METHODS)
    run.add_argument("--recipe", choices=["paper", "repo"], help="the paper's numbers (default) or the authors' scripts'")
    run.add_argument("--seed", type=int, nargs="+", default=[0], help="one run per seed")
    run.add_argument("--init-adapter", metavar="DIR", help="start from this adapter, for MRPC, RTE and STS-B from MNLI's "
                     "in the paper; a head for another number of labels is dropped")
    lora = parser.add_argument_group("LoRA; rank is also the size of an adapter's bottleneck and the length of a prefix")
    lora.add_argument("--rank", type=int)
    lora.add_argument("--alpha", type=float, help="the update is scaled by alpha / rank")
    lora.add_argument("--targets", nargs="+", metavar="T", help=f"any of {' '.join(TARGETS)} (default q v)")
    lora.add_argument("--dropout", type=float, help="on the input of A")
    lora.add_argument("--lora-init", choices=["gaussian", "kaiming"], help="start of A")
    lora.add_argument("--bias", choices=["none", "lora-only", "all"],
                      help="biases of the base that train too: none (default), those of the adapted layers, all")
    training = parser.add_argument_group("training")
    training.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"],
                          help="of the frozen weights; auto: bf16 where this machine multiplies it fast")
    training.add_argument("--lr", type=float)
    training.add_argument("--batch-size", type=int)
    training.add_argument("--epochs", type=int)
    training.add_argument("--max-steps", type=int, help="end after this many updates; the schedule is fitted to it")
    training.add_argument("--warmup", type=float, help="below 1 a share of all steps, from 1 on a number of steps, at "
                          "most a tenth of them")
    training.add_argument("--weight-decay", type=float)
    training.add_argument("--label-smoothing", type=float)
    training.add_argument("--model-dropout", type=float, help="in place of the model's own; the authors' GPT-2 has 0")
    training.add_argument("--max-length", type=int, help="tokens of a sentence pair")
    training.add_argument("--select", choices=["best", "last"], help="the epoch that is kept and scored")
    generation = parser.add_argument_group("E2E text")
    generation.add_argument("--text", choices=["pretokenised", "official"], help="of the authors (default), or as released")
    generation.add_argument("--beam-size", type=int)
    generation.add_argument("--length-penalty", type=float, help="the paper has 0.9, the authors' script 0.8")
    files = parser.add_argument_group("files and limits")
    files.add_argument("--data-dir", help="folder with e2e/ and glue/ (default: $LORA_DATA, else a cache folder)")
    files.add_argument("--weights-dir", help="folder of model folders (default: $LORA_WEIGHTS, else a cache folder)")
    files.add_argument("--out-dir", default="runs")
    files.add_argument("--eval-only", action="store_true", help="score the base or --adapter, without training")
    files.add_argument("--adapter", metavar="DIR", help="the trained adapter for --eval-only")
    earlier = files.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on where an interrupted run was last saved")
    earlier.add_argument("--overwrite", action="store_true", help="replace an earlier run with the same settings")
    files.add_argument("--save-every", type=int, default=500, metavar="N", help="save the state every N steps (default 500)")
    files.add_argument("--limit-train", type=int, metavar="N", help="the first N training samples only")
    files.add_argument("--limit-eval", type=int, metavar="N", help="the first N development samples, and test inputs, only")
    options = parser.parse_args(arguments)
    if options.adapter and not options.eval_only:
        parser.error("--adapter DIR is for --eval-only; to train from it on, give --init-adapter DIR")
    for names, fits, expected in (
            (("rank", "batch_size", "epochs", "max_steps", "save_every", "limit_train", "limit_eval", "max_length",
              "beam_size"), lambda value: value >= 1, "a number from 1"),
            (("alpha",), lambda value: 0 < value < math.inf, "a number above 0"),
            (("lr", "warmup", "weight_decay"), lambda value: 0 <= value < math.inf, "a number from 0"),
            (("length_penalty",), math.isfinite, "a finite number"),
            (("label_smoothing", "dropout", "model_dropout"), lambda value: 0 <= value < 1, "a number from 0 to below 1")):
        for name in names:
            value = getattr(options, name)
            if value is not None and not fits(value):
                parser.error(f"--{name.replace('_', '-')} is {value}; expected {expected}")
    return options
