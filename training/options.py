"""The options of train.py, and the settings of a run: what was given, and for the rest the recipe of the model, task and
method (recipes.py). Left out: what only the model can tell, such as ranks that its matrices do not have.
"""
import argparse
import math
from dataclasses import asdict, dataclass, fields

from data import TASKS
from lora import TARGETS
from methods import METHODS, WITH_RANK
from training.processes import DEVICE_HELP
from training.recipes import Recipe

LORA_ONLY = ("alpha", "targets", "dropout", "lora_init", "bias")
E2E_ONLY = ("text", "beam_size", "length_penalty", "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class Settings(Recipe):
    """Every setting of a run, resolved: the hyperparameters of its recipe and what they are used on. None: the model's own, no
    limit, or a setting that means nothing for this task or method."""
    model: str
    task: str
    method: str
    recipe: str                         # paper or repo
    precision: str                      # auto, fp32 or bf16: of the frozen weights
    device: str
    init_adapter: str | None
    targets: list[str] | None
    bias: str | None
    max_steps: int | None
    text: str | None                    # E2E's form, pretokenised or official
    data_dir: str | None
    weights_dir: str | None
    limit_train: int | None
    limit_eval: int | None

    def of_method(self) -> dict:
        """The settings that apply_method takes, as far as they mean something."""
        return {name: getattr(self, name) for name in ("rank", *LORA_ONLY) if getattr(self, name) is not None}


def resolve(options: argparse.Namespace, recipe: Recipe) -> Settings:
    """Every setting of the run: what was given, and the recipe for the rest."""
    defaults = asdict(recipe) | {"recipe": "paper", "targets": ["q", "v"], "bias": "none", "text": "pretokenised"}
    given = {name: value for name, value in vars(options).items() if value is not None}
    values = defaults | given | dict.fromkeys(without_meaning(options))
    return Settings(**{field.name: values.get(field.name) for field in fields(Settings)})


def without_meaning(options: argparse.Namespace) -> dict[str, str]:
    """The options that mean nothing for this task or method: name -> which of the two."""
    found = dict.fromkeys(("max_length",) if options.task == "e2e" else E2E_ONLY, f"task {options.task}")
    if options.method != "lora":
        found |= dict.fromkeys(LORA_ONLY, f"method {options.method}")
    if options.method not in WITH_RANK:
        found["rank"] = f"method {options.method}"
    return found


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
    lora.add_argument("--targets", nargs="+", metavar="T", help=f"{' '.join(TARGETS)}, or a family's own (default q v)")
    lora.add_argument("--dropout", type=float, help="on the input of A")
    lora.add_argument("--lora-init", choices=["gaussian", "kaiming"], help="start of A")
    lora.add_argument("--bias", choices=["none", "lora-only", "all"],
                      help="biases of the base that train too: none (default), those of the adapted layers, all")
    training = parser.add_argument_group("training")
    training.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"],
                          help="of the frozen weights; auto: bf16 where this machine multiplies it fast and the model is wide "
                          "enough to gain")
    training.add_argument("--device", default="auto", help=DEVICE_HELP)
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
