"""Fine-tune GPT-2 on E2E or RoBERTa on a GLUE task, by LoRA or one of the methods it is compared with.

    python train.py --model gpt2-medium --task e2e --rank 4
    python train.py --model roberta-base --task mrpc --seed 0 1 2

One plain loop for both models (Hu et al. 2021, sections 5.2 to 5.4): AdamW, linear schedule with warm-up, evaluation before
the first step and after every epoch. What is not given on the command line comes from training/recipes.py. A run leaves a
folder (training/run_state.py): settings, log, adapter, state, predictions and metrics.json. Left out: hyperparameter search.
"""
import argparse
import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from torch import nn
from tqdm import tqdm

from data import length_grouped_batches
from files import cli
from files.text import write_json
from lora import base_fingerprints
from methods import apply_method, reload_trained, save_trained, start_from
from training import processes, run_state
from training.memory import Activations, forget_peak
from training.optimizer import Schedule, make_optimizer
from training.options import Settings, parse_arguments, without_meaning
from training.precision import choose_precision, hold_frozen_in
from training.report import report_end, report_scores, report_start, run_metrics
from training.setup import evaluate_adapter, prepare

LOG_EVERY = 10                                                               # steps per line of log.jsonl


class Trainer:
    """A run: the loop that advances it, its best epoch, and its way to disk and back."""

    def __init__(self, model: nn.Module, task, settings: Settings, seed: int, folder: Path,
                 interruptions: run_state.Interruptions):
        self.model, self.task, self.settings, self.seed, self.folder = model, task, settings, seed, folder
        self.interruptions, self.progress, self.saved_step = interruptions, run_state.Progress(), None
        self.schedule = Schedule(settings, math.ceil(len(task.train_lengths) / settings.batch_size))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(model, settings)

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
            if self.interruptions.received and not processes.is_first():     # the first process has saved and gone
                raise cli.Interrupted(self.interruptions.received) from None
            if not cli.out_of_memory(error):
                raise
            raise MemoryError(f"out of memory at step {self.progress.step + 1}; {self.kept()}") from None

    def advance(self, save_every: int) -> None:
        """Evaluate before the first step and after every epoch. Signals end the run between steps, or while it scores."""
        progress = self.progress
        if not progress.epochs:
            self.evaluate()
        log_file = self.folder / "log.jsonl" if processes.is_first() else os.devnull
        with open(log_file, "a", encoding="utf-8", newline="\n") as log:
            while progress.step < self.schedule.steps or progress.batch:
                batches = length_grouped_batches(self.task.train_lengths, self.settings.batch_size, self.seed, progress.epoch)
                batches = batches[:progress.batch + self.schedule.steps - progress.step]
                with tqdm(total=len(batches), initial=progress.batch, unit="step", desc=f"epoch {progress.epoch + 1}",
                          leave=False, disable=None if processes.is_first() else True) as bar:      # None: if watched
                    for indices in batches[progress.batch:]:
                        with self.interruptions.held():
                            self.train_step(indices, bar, log)
                            if progress.step % save_every == 0 and progress.batch < len(batches):
                                self.save()
                self.evaluate()

    def train_step(self, indices: list[int], bar: tqdm, log) -> None:
        """One update, counted and logged."""
        progress, started = self.progress, time.perf_counter()
        lr = self.schedule(progress.step)
        run_state.seed_step(self.seed, progress.step, processes.process_number())
        loss = self.update(indices, lr)
        seconds, tokens = time.perf_counter() - started, sum(self.task.train_lengths[index] for index in indices)
        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        progress.examples, progress.tokens = progress.examples + len(indices), progress.tokens + tokens
        progress.seconds += seconds
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{tokens / seconds:,.0f}", refresh=False)
        if progress.step % LOG_EVERY == 0 or progress.step == self.schedule.steps:
            log.write(json.dumps({"step": progress.step, "loss": loss, "lr": lr,
                                  "examples_per_second": len(indices) / seconds, "tokens_per_second": tokens / seconds}) + "\n")
            log.flush()

    def update(self, indices: list[int], lr: float) -> float:
        """One update on the training samples `indices`; their mean loss. Raises ValueError for one that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss_and_gradients(indices)
        if not math.isfinite(loss):
            rows = ", ".join(str(index + 1) for index in indices[:8]) + (", ..." if len(indices) > 8 else "")
            raise ValueError(f"the loss is {loss} at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}, "
                             f"batch {self.progress.batch + 1}, training samples {rows}): lower --lr")
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        self.optimizer.step()
        return loss

    def loss_and_gradients(self, indices: list[int]) -> float:
        """Forward and backward; on the largest batch so far, also count what autograd had to keep."""
        own, loss = processes.share(indices), self.trained[0].new_zeros(())
        tokens = sum(self.task.train_lengths[index] for index in own)
        counted = Activations(self.model) if tokens > self.progress.largest_batch_tokens else None
        if own:
            with counted.hooks if counted else contextlib.nullcontext():
                loss = self.task.loss(self.model, own) / self.task.terms(indices)
            loss.backward()
        if counted:
            self.progress.largest_batch_tokens, self.progress.activation_bytes = tokens, counted.bytes
        return processes.sum_gradients(self.trained, loss).item()

    def evaluate(self) -> None:
        """Score the development set, after an epoch or before the first; keep the adapter if this is the epoch to choose."""
        scores = self.task.evaluate(self.model.eval()) if processes.is_first() else {}
        with self.interruptions.held():
            self.close_epoch(scores)

    def close_epoch(self, scores: dict[str, float]) -> None:
        progress = self.progress
        progress.epoch, progress.batch = progress.epoch + (progress.batch > 0), 0
        progress.epochs.append({"epoch": progress.epoch, "step": progress.step} | scores)
        if not processes.is_first():
            return
        report_scores(progress.epochs[-1])
        if progress.epoch > 0:                                               # the untrained start is never chosen
            progress.chosen_epoch = self.best_epoch()
            if progress.chosen_epoch == progress.epoch:
                run_state.check_trained(self.model, progress.step)           # a broken one must not replace a good one
                save_trained(self.model, self.folder / "adapter", self.settings.model, self.settings.task)
            self.save()

    def best_epoch(self) -> int:
        """The last one, or the one with the best score on the development set; the earlier of equals."""
        trained = self.progress.epochs[1:]
        if self.settings.select == "last":
            return trained[-1]["epoch"]
        sign = 1 if self.task.higher_is_better else -1
        return max(trained, key=lambda entry: (sign * entry[self.task.main_metric], -entry["epoch"]))["epoch"]

    def kept(self) -> str:
        """What an interrupted run can count on, for messages."""
        return "no state is saved yet" if self.saved_step is None else (
            f"the state of step {self.saved_step} is kept in {self.folder}: --resume goes on from there")

    def save(self) -> None:
        if processes.is_first():
            run_state.save_state(self.folder, self.model, self.optimizer, self.progress)
            self.saved_step = self.progress.step

    def restore(self) -> None:
        self.progress = run_state.restore_state(self.folder, self.model, self.optimizer)
        self.saved_step = self.progress.step
        print(f"resumed at step {self.progress.step} of {self.schedule.steps}", file=sys.stderr)


# ---------------------------------------------------------------- the command

def train_one_seed(options: argparse.Namespace, seed: int) -> None:
    """One run, from its start or its saved state to metrics.json."""
    forget_peak(options.device)
    model, task, settings, recipe = prepare(options, seed)
    folder = run_state.run_folder(settings, options.out_dir, seed)
    apply_method(model, settings.method, **settings.of_method(), seed=seed)
    if settings.init_adapter:
        print(start_from(model, settings.init_adapter))
    saved_format = run_state.saved_format(folder) if options.resume else None
    frozen_in, why = choose_precision(settings.precision, model, settings.device, saved_format)
    hold_frozen_in(model, frozen_in)
    config = {"seed": seed, **asdict(settings), "frozen_in": frozen_in, "base": base_fingerprints(model)["float32"],
              "data": task.fingerprints}
    with contextlib.ExitStack() as held:
        if processes.is_first():
            held.enter_context(run_state.only_run_in(folder))
        interruptions = held.enter_context(run_state.Interruptions(processes.is_first()))
        resuming = processes.one_after_the_other(
            lambda: run_state.open_run(folder, config, options.resume, options.overwrite) if processes.is_first() else
            any((folder / name).exists() for name in run_state.STATES))
        if resuming and (folder / "metrics.json").exists():
            print(f"{folder} is finished: nothing to resume")
            return
        trainer = Trainer(model.to(settings.device), task, settings, seed, folder, interruptions)
        report_start(trainer, recipe, f"frozen weights in {frozen_in} ({why})")
        if resuming:
            processes.one_after_the_other(trainer.restore)
        trainer.train(options.save_every)
        if not processes.is_first():
            return
        metrics = run_metrics(trainer, frozen_in)                            # before decoding, whose memory is not training's
        reload_trained(model, folder / "adapter")
        metrics["scores"] |= task.finish(model.eval(), folder)
        write_json(metrics, folder / "metrics.json")
        run_state.forget_earlier_state(folder)
    report_end(metrics, folder)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    options.device = processes.resolve_device(options.device)
    for name, what in without_meaning(options).items():
        if getattr(options, name) is not None and processes.is_first():
            print(f"--{name.replace('_', '-')} means nothing for {what}: it is not used", file=sys.stderr)
    if options.eval_only:
        if processes.is_first():
            evaluate_adapter(options)
        return 0
    processes.start(options.device)
    for seed in options.seed:
        train_one_seed(options, seed)
    return 0


if __name__ == "__main__":
    cli.run(main)
