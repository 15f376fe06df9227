"""The settings of a run: what was given on the command line, and for the rest the recipe of the model, task and method
(recipes.py). Left out: the options themselves (command_line.py); what only the model can tell, such as ranks that its matrices
do not have.
"""
import argparse
from dataclasses import asdict, dataclass, fields

from methods import WITH_RANK
from training.recipes import Recipe

OWN_TASKS = ("pairs", "text")                                                # the user's own files
TEXT_TASKS = ("e2e", "text")                                                 # text from text, on GPT-2
LORA_ONLY = ("alpha", "targets", "dropout", "lora_init", "bias")
TEXT_ONLY = ("text", "beam_size", "length_penalty", "label_smoothing")
OWN_ONLY = ("train_file", "dev_file", "text_columns", "label_column", "labels")


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
    grad_accumulation: int              # parts in which a batch is computed
    max_steps: int | None
    eval_every: int | None              # steps
    text: str | None                    # E2E's form, pretokenised or official
    data_dir: str | None
    weights_dir: str | None
    train_file: str | None              # this and the next four: of the user's own files
    dev_file: str | None
    text_columns: list[str] | None
    label_column: str | None
    labels: str | None                  # classes or numbers; None: as the training file has it
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
    unused = ("max_length",) if options.task in TEXT_TASKS else TEXT_ONLY
    unused += OWN_ONLY if options.task not in OWN_TASKS else ("data_dir",)
    unused += {"text": ("text", "label_column", "labels")}.get(options.task, ())
    found = dict.fromkeys(unused, f"task {options.task}")
    if options.method != "lora":
        found |= dict.fromkeys(LORA_ONLY, f"method {options.method}")
    if options.method not in WITH_RANK:
        found["rank"] = f"method {options.method}"
    return found
