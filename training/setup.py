"""What stands before the loop: the model, the task and the settings of a command; and --eval-only, which needs no loop.
Left out: which options there are (options.py).
"""
import argparse
from pathlib import Path

from torch import nn

from data import fetch_task, load_tokenizer
from files.pretrained import read_config
from files.published import fetch_model
from files.text import write_json
from lora import base_fingerprints
from methods import load_trained, read_trained
from model import FAMILIES, load_pretrained
from training.options import OWN_TASKS, TEXT_TASKS, Settings, resolve
from training.precision import choose_precision, format_of_run, hold_frozen_in
from training.processes import only_first_speaks
from training.recipes import Recipe, alpha_for_file, recipe_for
from training.run_state import dashed
from training.sources import make_source
from training.tasks import make_task


def prepare(options: argparse.Namespace, seed: int) -> tuple[nn.Module, object, Settings, Recipe]:
    """The base model, the task with its samples, the resolved settings, and the recipe they come from. Raises ValueError,
    too, for an --init-adapter whose alpha nobody can know (alpha_for_file)."""
    directory = fetch_model(options.model, options.weights_dir)
    _, config = read_config(directory, FAMILIES)
    recipe = recipe_for(config, options.task, options.method, options.recipe or "paper", options.rank)   # or a refusal
    settings = resolve(options, recipe)
    if options.init_adapter and options.method == "lora" and options.alpha is None:
        alpha_for_file(options.init_adapter, config, options.task, options.recipe)       # this recipe's, or a refusal
    data_dir = None if options.task in OWN_TASKS else fetch_task(options.task, options.data_dir, options.text)
    source = make_source(settings, data_dir)
    classes = None if options.task in TEXT_TASKS else source.form.labels
    with only_first_speaks():
        model = load_pretrained(directory, None if classes else 1, settings.model_dropout, seed, classes)    # 1: a score
    return model, make_task(settings, load_tokenizer(directory), model.config, source), settings, recipe


def evaluate_adapter(options: argparse.Namespace) -> None:
    """Score the base or a saved adapter of any method on the development set and, for E2E, on the decoded test set."""
    model, task, settings, _ = prepare(options, options.seed[0])
    fingerprint, source, format_of_adapter = base_fingerprints(model)["float32"], "the-base", None
    if options.adapter:
        alpha = options.alpha or alpha_for_file(options.adapter, model.config, options.task, options.recipe)
        form = read_trained(options.adapter, model.config)[0].form
        if form and form != task.saved_form:
            raise ValueError(f"{options.adapter}: was trained for {form}, the files given are for {task.saved_form}: give "
                             "those that it was trained on")
        load_trained(model, options.adapter, alpha, options.task)
        source = dashed(Path(options.adapter).resolve())[-150:]              # a name of a folder takes 255 bytes
        format_of_adapter = format_of_run(options.adapter)
    else:
        model.requires_grad_(False)
    frozen_in, why = choose_precision(options.precision, model, options.device, format_of_adapter)
    print(f"precision: frozen weights in {frozen_in} ({why})")
    hold_frozen_in(model, frozen_in)
    folder = Path(options.out_dir) / settings.task / dashed(settings.model) / "eval" / source
    folder.mkdir(parents=True, exist_ok=True)
    model.to(options.device).eval()
    loss = task.evaluate(model) if options.task in TEXT_TASKS else {}        # as in a run, before decoding lays out weights
    scores = loss | task.finish(model, folder)
    write_json({"task": options.task, "model": options.model, "adapter": options.adapter, "frozen_in": frozen_in,
                "scores": scores, "base_fingerprint": fingerprint, "data_fingerprints": task.fingerprints},
               folder / "metrics.json")
    print("scores: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float)))
    print(f"wrote {folder / 'metrics.json'}")
