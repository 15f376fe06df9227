"""Fine-tune GPT-2 on E2E or RoBERTa on a GLUE task, by LoRA or one of the methods it is compared with.

    python train.py --model gpt2-medium --task e2e --rank 4
    python train.py --model roberta-base --task mrpc --seed 0 1 2

One plain loop for both models (Hu et al. 2021, sections 5.2 to 5.4): AdamW, linear schedule with warm-up, evaluation
before the first step and after every epoch. What is not given on the command line comes from recipes.py. A run leaves
a folder (run_state.py) with its settings, log, adapter and state to resume from, and with predictions and metrics.json.

Left out: hyperparameter search.
"""
import argparse
import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import parallel
import run_state
from baselines import WITH_RANK, apply_method, load_trained, parameter_counts, reload_trained, save_trained, start_from
from data import GLUE_TASKS, fetch_task, length_grouped_batches
from files import cli
from files.published import fetch_model
from files.text import write_json
from files.tokenizer import load_tokenizer
from lora import base_fingerprint
from model import load_pretrained
from optimizer import Schedule, make_optimizer
from precision import choose_precision, hold_frozen_in
from recipes import Recipe, alpha_for_file, recipe_for
from tasks import make_task
from train_options import parse_arguments

LOG_EVERY = 10                                                               # steps per line of log.jsonl
LORA_ONLY = ("alpha", "targets", "dropout", "lora_init", "bias")
E2E_ONLY = ("text", "beam_size", "length_penalty", "label_smoothing")


# ---------------------------------------------------------------- what to run

def resolve(options: argparse.Namespace, recipe: Recipe) -> dict:
    """Every setting of the run: what was given, and the recipe for the rest."""
    settings = vars(options) | {"recipe": options.recipe or "paper", "targets": options.targets or ["q", "v"],
                                "bias": options.bias or "none", "text": options.text or "pretokenised"}
    for field in fields(Recipe):
        if settings.get(field.name) is None:
            settings[field.name] = getattr(recipe, field.name)
    left_out = {"seed", "out_dir", "resume", "overwrite", "save_every", "eval_only", "adapter", *without_meaning(options)}
    return {name: value for name, value in settings.items() if name not in left_out}


def without_meaning(options: argparse.Namespace) -> dict[str, str]:
    """The options that mean nothing for this task or method: name -> which of the two."""
    found = dict.fromkeys(("max_length",) if options.task == "e2e" else E2E_ONLY, f"task {options.task}")
    if options.method != "lora":
        found |= dict.fromkeys(LORA_ONLY, f"method {options.method}")
    if options.method not in WITH_RANK:
        found["rank"] = f"method {options.method}"
    return found


# ---------------------------------------------------------------- the loop


class Activations:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, parameters apart."""

    def __init__(self, model: nn.Module):
        self.seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.count, lambda tensor: tensor)

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


class Trainer:
    """The state of a run, the loop that advances it, and its way to disk and back."""

    def __init__(self, model: nn.Module, task, settings: dict, seed: int, folder: Path, interruptions: run_state.Interruptions):
        self.model, self.task, self.settings, self.seed, self.folder = model, task, settings, seed, folder
        self.interruptions, self.saved_step = interruptions, None
        steps_per_epoch = math.ceil(len(task.train_lengths) / settings["batch_size"])
        self.schedule = Schedule(settings, steps_per_epoch)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(model, settings)
        self.progress = {"step": 0, "epoch": 0, "batch": 0, "seconds": 0.0, "examples": 0, "tokens": 0,
                         "epochs": [], "chosen_epoch": None, "activation_bytes": 0, "largest_batch_tokens": 0}

    def train(self, save_every: int) -> None:
        """Advance to the end of the schedule. Raises with a line that says which state is kept: cli.Interrupted for a
        signal, after saving; OSError for a full disk, MemoryError, and ValueError for a loss that is not finite."""
        try:
            self.advance(save_every)
        except cli.Interrupted as error:
            self.save()
            raise cli.Interrupted(error.signum, f"interrupted; {self.kept()}") from None
        except (ValueError, OSError) as error:
            raise (OSError if isinstance(error, OSError) else ValueError)(f"{error}; {self.kept()}") from error
        except (MemoryError, RuntimeError) as error:
            if self.interruptions.received and not parallel.is_first():      # the first process has saved and gone
                raise cli.Interrupted(self.interruptions.received) from None
            if not cli.out_of_memory(error):
                raise
            raise MemoryError(f"out of memory at step {self.progress['step'] + 1}; {self.kept()}") from None

    def kept(self) -> str:
        """What an interrupted run can count on, for messages."""
        if self.saved_step is None:
            return "no state is saved yet"
        return f"the state of step {self.saved_step} is kept in {self.folder}: --resume goes on from there"

    def advance(self, save_every: int) -> None:
        """Evaluate before the first step and after every epoch. Signals end the run between steps, or while it scores."""
        progress, seed = self.progress, self.seed
        if not progress["epochs"]:
            self.evaluate()
        log_file = self.folder / "log.jsonl" if parallel.is_first() else os.devnull
        with open(log_file, "a", encoding="utf-8", newline="\n") as log:
            while progress["step"] < self.schedule.steps or progress["batch"]:
                batches = length_grouped_batches(self.task.train_lengths, self.settings["batch_size"], seed, progress["epoch"])
                batches = batches[:progress["batch"] + self.schedule.steps - progress["step"]]
                with tqdm(total=len(batches), initial=progress["batch"], unit="step", desc=f"epoch {progress['epoch'] + 1}",
                          leave=False, disable=None if parallel.is_first() else True) as bar:       # None: if watched
                    for indices in batches[progress["batch"]:]:
                        with self.interruptions.held():
                            self.train_step(indices, bar, log)
                            if progress["step"] % save_every == 0 and progress["batch"] < len(batches):
                                self.save()
                self.evaluate()

    def train_step(self, indices: list[int], bar: tqdm, log) -> None:
        progress, started = self.progress, time.perf_counter()
        lr = self.schedule(progress["step"])
        run_state.seed_step(self.seed, progress["step"], parallel.rank())
        loss = self.update(indices, lr)
        seconds, tokens = time.perf_counter() - started, sum(self.task.train_lengths[index] for index in indices)
        for name, amount in (("step", 1), ("batch", 1), ("examples", len(indices)), ("tokens", tokens), ("seconds", seconds)):
            progress[name] += amount
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{tokens / seconds:,.0f}", refresh=False)
        if progress["step"] % LOG_EVERY == 0 or progress["step"] == self.schedule.steps:
            log.write(json.dumps({"step": progress["step"], "loss": loss, "lr": lr,
                                  "examples_per_second": len(indices) / seconds, "tokens_per_second": tokens / seconds}) + "\n")
            log.flush()

    def update(self, indices: list[int], lr: float) -> float:
        """One update on the training samples `indices`; their mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss_and_gradients(indices)
        if not math.isfinite(loss):
            rows = ", ".join(str(index + 1) for index in indices[:8]) + (", ..." if len(indices) > 8 else "")
            raise ValueError(f"the loss is {loss} at step {self.progress['step'] + 1} (epoch {self.progress['epoch'] + 1}, "
                             f"batch {self.progress['batch'] + 1}, training samples {rows}): lower --lr")
        if self.settings["clip_norm"]:
            nn.utils.clip_grad_norm_(self.trained, self.settings["clip_norm"])
        self.optimizer.step()
        return loss

    def loss_and_gradients(self, indices: list[int]) -> float:
        """Forward and backward; on the largest batch so far, also count what autograd had to keep."""
        own, loss = parallel.share(indices), self.trained[0].new_zeros(())
        tokens = sum(self.task.train_lengths[index] for index in own)
        counted = Activations(self.model) if tokens > self.progress["largest_batch_tokens"] else None
        if own:
            with counted.hooks if counted else contextlib.nullcontext():
                loss = self.task.loss(self.model, own) / self.task.terms(indices)
            loss.backward()
        if counted:
            self.progress |= {"largest_batch_tokens": tokens, "activation_bytes": counted.bytes}
        return parallel.sum_gradients(self.trained, loss).item()

    def evaluate(self) -> None:
        """Score the development set after an epoch, or before the first; then keep what is to be kept."""
        scores = self.task.evaluate(self.model.eval()) if parallel.is_first() else {}
        with self.interruptions.held():
            self.close_epoch(scores)

    def close_epoch(self, scores: dict[str, float]) -> None:
        """Note the scores, keep the adapter if this is the epoch to choose, and save. Epoch 0 is the start."""
        progress, metric = self.progress, self.task.main_metric
        progress["epoch"], progress["batch"] = progress["epoch"] + (progress["batch"] > 0), 0
        entry = {"epoch": progress["epoch"], "step": progress["step"]} | scores
        progress["epochs"].append(entry)
        if not parallel.is_first():
            return
        print(f"epoch {entry['epoch']} (step {entry['step']}): " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()),
              file=sys.stderr)
        trained = progress["epochs"][1:]
        if not trained:
            return
        sign = 1 if self.task.higher_is_better else -1
        best = max(trained, key=lambda e: (sign * e[metric], -e["epoch"]))
        chosen = trained[-1] if self.settings["select"] == "last" else best
        if chosen is trained[-1]:
            run_state.check_trained(self.model, progress["step"])            # a broken adapter must not replace a good one
            save_trained(self.model, self.settings["method"], self.folder / "adapter", self.settings["model"],
                         self.settings["task"])
        progress["chosen_epoch"] = chosen["epoch"]
        self.save()

    def save(self) -> None:
        if not parallel.is_first():
            return
        run_state.save_state(self.folder, self.model, self.optimizer, self.progress)
        self.saved_step = self.progress["step"]

    def restore(self) -> None:
        self.progress = run_state.restore_state(self.folder, self.model, self.optimizer)
        self.saved_step = self.progress["step"]
        print(f"resumed at step {self.progress['step']} of {self.schedule.steps}", file=sys.stderr)


# ---------------------------------------------------------------- what a run leaves

def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory_bytes() -> int:
    """Peak of this process so far: of the GPU's memory where one is used, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:                                                      # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_metrics(trainer: Trainer, final: dict) -> dict:
    model, settings, progress = trainer.model, trainer.settings, trainer.progress
    counts, trained = parameter_counts(model), [p for p in model.parameters() if p.requires_grad]
    optimizer = [t for state in trainer.optimizer.state.values() for t in state.values()]
    chosen = next(entry for entry in progress["epochs"] if entry["epoch"] == progress["chosen_epoch"])
    rule = "the last epoch" if settings["select"] == "last" else (
        f"the {'highest' if trainer.task.higher_is_better else 'lowest'} {trainer.task.main_metric} on the development set, "
        "the earlier of equals")
    return {"task": settings["task"], "model": settings["model"], "method": settings["method"], "seed": trainer.seed,
            "recipe": settings["source"], "base_fingerprint": model.fingerprint, "data_fingerprints": trainer.task.fingerprints,
            "scores": {k: v for k, v in chosen.items() if k not in ("epoch", "step")} | final,
            "epochs": progress["epochs"], "chosen_epoch": progress["chosen_epoch"], "chosen_by": rule,
            "trainable_parameters": counts["trainable"], "head_parameters": counts["head"],
            "total_parameters": counts["total"],
            "adapter_bytes": (trainer.folder / "adapter" / "adapter_model.safetensors").stat().st_size,
            "peak_memory_bytes": peak_memory_bytes(),
            "memory_parts_bytes": {"weights": bytes_of(model.parameters()), "gradients": bytes_of(trained),
                                   "optimizer": bytes_of(optimizer), "activations": progress["activation_bytes"]},
            "steps": progress["step"], "seconds": progress["seconds"],
            "examples_per_second": progress["examples"] / progress["seconds"],
            "tokens_per_second": progress["tokens"] / progress["seconds"]}


def prepare(options: argparse.Namespace, seed: int) -> tuple[nn.Module, object, dict, Recipe]:
    """The base model, the task with its samples, the resolved settings, and the recipe they come from."""
    directory = fetch_model(options.model, options.weights_dir)
    data_dir = fetch_task(options.task, options.data_dir, options.text)
    labels = None if options.task == "e2e" else len(GLUE_TASKS[options.task].labels or ("score",))
    model = load_pretrained(directory, num_labels=labels, dropout=options.model_dropout, seed=seed)
    recipe = recipe_for(model.config, options.task, options.method, options.recipe or "paper", options.rank)
    settings = resolve(options, recipe)
    if settings["model_dropout"] != options.model_dropout:
        model = load_pretrained(directory, num_labels=labels, dropout=settings["model_dropout"], seed=seed)
    return model, make_task(settings, load_tokenizer(directory), model.config, data_dir), settings, recipe


def train_one_seed(options: argparse.Namespace, seed: int) -> None:
    """One run, from its start or its saved state to metrics.json."""
    model, task, settings, recipe = prepare(options, seed)
    folder = run_state.run_folder(settings, options.out_dir, seed)
    apply_method(model, settings["method"], **{name: settings[name] for name in ("rank", *LORA_ONLY) if name in settings},
                 seed=seed)
    if settings["init_adapter"]:
        print(start_from(model, settings["method"], settings["init_adapter"]))
    dtype, why = choose_precision(settings["precision"], model, parallel.device())
    hold_frozen_in(model, dtype)
    config = {"seed": seed, **settings, "frozen_in": shown(dtype), "base": model.fingerprint, "data": task.fingerprints}
    with contextlib.ExitStack() as held:
        if parallel.is_first():
            held.enter_context(run_state.only_run_in(folder))
        interruptions = held.enter_context(run_state.Interruptions(parallel.is_first()))
        resuming = parallel.one_after_the_other(
            lambda: run_state.open_run(folder, config, options.resume, options.overwrite) if parallel.is_first() else
            any((folder / name).exists() for name in run_state.STATES))
        if resuming and (folder / "metrics.json").exists():
            print(f"{folder} is finished: nothing to resume")
            return
        trainer = Trainer(model.to(parallel.device()), task, settings, seed, folder, interruptions)
        report_start(trainer, recipe)
        print(f"precision: frozen weights in {shown(dtype)} ({why}), what trains in fp32", flush=True)
        if resuming:
            parallel.one_after_the_other(trainer.restore)
        trainer.train(options.save_every)
        if not parallel.is_first():
            return
        reload_trained(model, settings["method"], folder / "adapter")
        metrics = run_metrics(trainer, task.finish(model.eval(), folder))
        write_json(metrics, folder / "metrics.json")
        run_state.forget_earlier_state(folder)
    report_end(metrics, folder)


def evaluate_adapter(options: argparse.Namespace) -> None:
    """Score the base or a saved adapter of any method on the development set and, for E2E, on the decoded test set."""
    model, task, settings, _ = prepare(options, seed=0)
    base, source = base_fingerprint(model), "the-base"
    if options.adapter:
        alpha = options.alpha
        if alpha is None:
            alpha = alpha_for_file(options.adapter, model.config, options.task, options.recipe)
        load_trained(model, options.adapter, alpha, options.task)
        source = Path(options.adapter).resolve().as_posix().strip("/").replace("/", "-")
    else:
        model.requires_grad_(False)
    hold_frozen_in(model, choose_precision(options.precision, model, parallel.device())[0])
    folder = Path(options.out_dir) / settings["task"] / "eval" / source
    folder.mkdir(parents=True, exist_ok=True)
    scores = task.evaluate(model.to(parallel.device()).eval())
    scores |= task.finish(model, folder)
    write_json({"task": options.task, "model": options.model, "adapter": options.adapter, "scores": scores,
                "base_fingerprint": base, "data_fingerprints": task.fingerprints}, folder / "metrics.json")
    print("scores: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if isinstance(value, float)))
    print(f"wrote {folder / 'metrics.json'}")


def shown(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def report_start(trainer: Trainer, recipe: Recipe) -> None:
    settings, schedule, counts = trainer.settings, trainer.schedule, parameter_counts(trainer.model)
    given = [f"{name} {settings[name]}" for name, value in asdict(recipe).items() if settings.get(name, value) != value]
    print(f"recipe: {recipe.source}" + (f"; changed: {', '.join(given)}" if given else ""))
    print("settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None))
    print(f"data: {trainer.task.summary}")
    print(f"schedule: {schedule.steps:,} steps, learning rate rising to {schedule.lr:g} over {schedule.warmup:,} and "
          "falling to 0")
    print(f"trainable: {counts['trainable']:,} of {counts['total']:,} parameters "
          f"({counts['trainable'] / counts['total']:.2%}) and {counts['head']:,} of the task head")
    print(f"run folder: {trainer.folder}", flush=True)


def report_end(metrics: dict, folder: Path) -> None:
    print(f"chosen: epoch {metrics['chosen_epoch']}, {metrics['chosen_by']}")
    print("scores: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics["scores"].items()
                                 if isinstance(value, float)))
    print(f"training took {metrics['seconds']:.0f} s ({metrics['tokens_per_second']:,.0f} tokens/s), peak memory "
          f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB, adapter {metrics['adapter_bytes'] / 1024:,.0f} KiB")
    print(f"wrote {folder / 'metrics.json'}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for name, what in without_meaning(options).items():
        if getattr(options, name) is not None and parallel.is_first():
            print(f"--{name.replace('_', '-')} means nothing for {what}: it is not used", file=sys.stderr)
    if options.eval_only:
        if parallel.is_first():
            evaluate_adapter(options)
        return 0
    parallel.start()
    for seed in options.seed:
        train_one_seed(options, seed)
    return 0


if __name__ == "__main__":
    cli.run(main)
