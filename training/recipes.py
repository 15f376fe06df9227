"""Hyperparameters of every task, as the paper prints them and as the authors' scripts set them.

Hu et al. 2021: Table 9 (RoBERTa on GLUE) and Table 11 (GPT-2 on E2E) are the column `paper`; the scripts of
microsoft/LoRA are the column `repo`. What the paper leaves open (weight decay, clipping and epsilon of RoBERTa; epsilon
of GPT-2; sizes of the random start) is taken from the scripts in both columns. Whatever the command line does not give
comes from here, is printed, and is saved in the run's config.json; experiments/recipes.py prints all of it as a table.
Left out: recipes for the paper's other models and data (DeBERTa, GPT-3, WebNLG, DART).
"""
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from model import GPT2Config, RobertaConfig


@dataclass(frozen=True)
class Recipe:
    source: str                         # where the numbers stand
    lr: float
    batch_size: int
    epochs: int
    warmup: float                       # below 1 a share of all steps, from 1 on a number of steps
    weight_decay: float
    label_smoothing: float = 0.0        # in the training loss only
    rank: int = 8                       # also the size of an adapter's bottleneck and the length of a prefix
    alpha: float = 8.0
    dropout: float = 0.0                # on the input of A
    lora_init: str = "kaiming"          # start of A; the paper says gaussian
    model_dropout: float | None = None  # None: what config.json says
    warmup_from: int = 1                # the first rate is this many parts of the warm-up; transformers' schedule has 0
    max_length: int = 512               # tokens of a sentence pair; longer ones are cut, and counted
    adam_epsilon: float = 1e-8
    clip_norm: float = 0.0              # 0: no clipping
    select: str = "best"                # which epoch is scored and kept: best (by the development set) or last
    beam_size: int = 10
    length_penalty: float = 0.9


TABLE_9_TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
SIBLING = {"wnli": "rte", "pairs": "mrpc"}                                   # not in the paper: takes the row of its like
# RoBERTa, LoRA r = 8 on q and v; columns in the order of TABLE_9_TASKS
BASE = {"lr": (5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4), "epochs": (30, 60, 30, 80, 25, 25, 80, 40)}
BASE_BATCH = {"paper": (16, 16, 16, 32, 32, 16, 32, 16),
              "repo": (128, 128, 128, 64, 256, 128, 256, 128)}              # per device x GPUs of the scripts
LARGE = {
    "paper": {"batch_size": (4, 4, 4, 4, 4, 4, 8, 8), "epochs": (10, 10, 20, 20, 10, 20, 20, 30),
              "lr": (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4),
              "max_length": (128, 128, 512, 128, 512, 512, 512, 512)},
    "repo": {"batch_size": (4, 8, 4, 4, 4, 4, 8, 4), "epochs": (10, 10, 20, 20, 10, 20, 20, 10),
             "lr": (3e-4, 4e-4, 3e-4, 3e-4, 2e-4, 3e-4, 4e-4, 3e-4),
             "max_length": (128, 512, 512, 128, 512, 512, 512, 128)},
}
# The methods LoRA is compared with, where they differ. GPT-2: Li and Liang 2021, Table 5 (LL), from whom the paper has
# its numbers. RoBERTa, full: the middle of the search space of Liu et al. 2019, Table 10. What was published without
# hyperparameters has none of these sources: there the numbers are this project's choice.
LL, OWN = "Li and Liang 2021, Table 5", "this project's choice"
METHOD_CHANGES = {
    ("gpt2", "full"): {"source": LL, "lr": 5e-5, "batch_size": 10, "epochs": 5},
    ("gpt2", "last-layers"): {"source": LL, "lr": 5e-5, "batch_size": 10, "epochs": 5},
    ("gpt2", "prefix"): {"source": LL, "lr": 8e-5, "batch_size": 10, "epochs": 5, "rank": 5},
    ("gpt2", "adapter-l"): {"source": f"{LL}, adapter 0.1 %", "lr": 8e-5, "batch_size": 5, "epochs": 10, "rank": 6},
    ("gpt2", "adapter-l, large"): {"source": f"{LL}, adapter 3 %", "lr": 5e-5, "batch_size": 5, "epochs": 5, "rank": 224},
    ("gpt2", "adapter-h"): {"source": OWN, "lr": 5e-5, "batch_size": 5, "epochs": 5, "rank": 112},
    ("gpt2", "bitfit"): {"source": OWN, "lr": 1e-3},
    ("roberta", "full"): {"source": "Liu et al. 2019, Table 10", "lr": 2e-5, "batch_size": 16, "epochs": 10},
    ("roberta", "last-layers"): {"source": OWN, "lr": 2e-5, "batch_size": 16, "epochs": 10},
    ("roberta", "bitfit"): {"source": OWN, "lr": 4e-4},
    ("roberta", "adapter-h"): {"source": OWN, "lr": 4e-4, "rank": 24},
    ("roberta", "adapter-l"): {"source": OWN, "lr": 4e-4, "rank": 48},
    ("roberta", "prefix"): {"source": OWN, "lr": 1e-3, "rank": 16},
    ("roberta", "head"): {"source": OWN, "lr": 1e-3},
    # The paper has no BERT. One as wide as BERT base takes RoBERTa's numbers; narrower ones, such as minilm (384), learn at
    # higher rates, and these, LoRA's and on top of them the others', are for a few minutes on a CPU.
    ("small bert", "lora"): {"source": f"{OWN} for a small BERT", "lr": 2e-3, "batch_size": 16, "epochs": 3, "max_length": 128},
    ("small bert", "full"): {"source": OWN, "lr": 1e-4},
    ("small bert", "last-layers"): {"source": OWN, "lr": 3e-4},
    ("small bert", "bitfit"): {"source": OWN, "lr": 2e-3},
    ("small bert", "adapter-h"): {"source": OWN, "lr": 2e-3, "rank": 24},
    ("small bert", "adapter-l"): {"source": OWN, "lr": 2e-3, "rank": 48},
    ("small bert", "prefix"): {"source": OWN, "lr": 2e-3, "rank": 16},
    ("small bert", "head"): {"source": OWN, "lr": 2e-3},
}
BERT_BASE = 768                                                              # its width
LARGE_ADAPTER = 37                                                           # the middle of 6 and 224 on a logarithmic scale


def recipe_for(config: GPT2Config | RobertaConfig, task: str, method: str, column: str, rank: int | None = None) -> Recipe:
    """The recipe of a model, task and method in the column "paper" or "repo".

    rank: as given by the user; Lin adapters of GPT-2 have a recipe for small ones and one for large ones. A RoBERTa of 24
    layers or more takes the numbers of large, a smaller one those of base. Raises ValueError for a task that the model is
    not made for.
    """
    if config.causal:
        if task not in ("e2e", "text"):
            raise ValueError(f"task '{task}' on a GPT-2: this project trains GPT-2 on e2e and text; use a RoBERTa or BERT for "
                             "GLUE and pairs")
        recipe = Recipe("LoRA paper, Table 11", lr=2e-4, batch_size=8, epochs=5, warmup=500, weight_decay=0.01,
                        label_smoothing=0.1, rank=4, alpha=32, dropout=0.1, adam_epsilon=1e-6)
        if column == "repo":                                                 # no dropout but LoRA's, the last epoch, 0.8
            recipe = replace(recipe, source="microsoft/LoRA, examples/NLG", model_dropout=0.0, select="last",
                             length_penalty=0.8)
    else:
        if task in ("e2e", "text"):
            raise ValueError(f"task '{task}' on an encoder, which cannot generate text: use a GPT-2, or a GLUE task")
        recipe = roberta_recipe("large" if config.num_hidden_layers >= 24 else "base", task, column)
    recipe = replace(recipe, **({"lora_init": "gaussian"} if column == "paper" else {"warmup_from": 0}))      # section 4.1
    kind = "gpt2" if config.causal else "roberta"
    if config.family == "bert" and config.hidden_size < BERT_BASE:
        kind, recipe = "small bert", replace(recipe, **METHOD_CHANGES["small bert", "lora"])
    if (kind, method) == ("gpt2", "adapter-l") and (rank or 0) >= LARGE_ADAPTER:
        method = "adapter-l, large"
    changes = {} if method == "lora" else dict(METHOD_CHANGES.get((kind, method), {}))
    if changes:
        changes["source"] = f"{changes['source']}; the rest: {recipe.source}"
    return replace(recipe, **changes)


def roberta_recipe(size: str, task: str, column: str) -> Recipe:
    """LoRA on a GLUE task, size "base" or "large": a column of Table 9 or a script of the authors."""
    like = SIBLING.get(task, task)
    index = TABLE_9_TASKS.index(like)
    source = f"LoRA paper, Table 9, {size}" if column == "paper" else f"microsoft/LoRA, roberta_{size}_{like}.sh"
    source += f" ({task} as {like})" if like != task else ""
    if size == "large":
        row = {name: values[index] for name, values in LARGE[column].items()}
        alpha = 16.0
    else:
        row = {name: values[index] for name, values in BASE.items()} | {"batch_size": BASE_BATCH[column][index]}
        alpha = 8.0 if column == "paper" else 16.0
    return Recipe(source, warmup=0.06, weight_decay=0.1, clip_norm=1.0, alpha=alpha,
                  select="best" if column == "paper" else "last", **row)


def alpha_for_file(path: str | Path, config: GPT2Config | RobertaConfig, task: str, column: str | None = None
                   ) -> float | None:
    """The alpha for an adapter file that holds none (loralib's, the authors'), said on stderr; None for a folder.
    column: the recipe that the user named, if any. Without it paper and scripts must agree: the released RoBERTa weights
    are of the scripts' 16, and with the paper's 8 they lose 20 points of MNLI. Raises ValueError where they disagree."""
    if not lacks_alpha(path):
        return None
    found = {name: recipe_for(config, task, "lora", name) for name in ((column,) if column else ("paper", "repo"))}
    if len({recipe.alpha for recipe in found.values()}) > 1:
        raise ValueError(f"{path}: the file holds no alpha; the paper has {found['paper'].alpha:g}, the authors' scripts "
                         f"{found['repo'].alpha:g}: give --alpha (their released weights are of the scripts')")
    name, recipe = next(iter(found.items()))
    print(f"{path}: the file holds no alpha; {recipe.alpha:g} is taken from the recipe '{name}' ({recipe.source})",
          file=sys.stderr)
    return recipe.alpha


def lacks_alpha(path: str | Path) -> bool:
    """Whether it is a bare state dict, loralib's or the authors', and not a folder or the weights in one."""
    return Path(path).is_file() and not Path(path).name.startswith("adapter_model.")
