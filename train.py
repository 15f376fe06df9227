"""Fine-tune GPT-2 on E2E or RoBERTa on a GLUE task, or either on your files, by LoRA or a method it is compared with.

    python train.py --model gpt2-medium --task e2e --rank 4
    python train.py --model roberta-base --task mrpc --seed 0 1 2

One plain loop for both models (Hu et al. 2021, sections 5.2 to 5.4): AdamW, linear schedule with warm-up, evaluation before
the first step and after every epoch. What is not given on the command line comes from training/recipes.py. A run leaves a
folder (training/run_state.py): settings, log, adapter, state, predictions and metrics.json. Left out: hyperparameter search.
"""
import argparse
import contextlib
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

from torch import nn

from data import length_grouped_batches
from files import cli
from files.text import write_json
from lora import base_fingerprints
from methods import apply_method, reload_trained, save_trained, start_from
from training import processes, run_state
from training.command_line import parse_arguments
from training.memory import Activations, forget_peak
from training.optimizer import Schedule, make_optimizer
from training.options import Settings, without_meaning
from training.precision import choose_precision, hold_frozen_in
from training.report import report_changes, report_end, report_start, run_metrics
from training.run_log import RunLog, open_curves
from training.setup import evaluate_adapter, prepare


class Trainer:
    """A run: the loop that advances it, its best epoch, and its way to disk and back."""

    def __init__(self, model: nn.Module, task, settings: Settings, seed: int, folder: Path,
                 interruptions: run_state.Interruptions):
        self.model, self.task, self.settings, self.seed, self.folder = model, task, settings, seed, folder
        self.interruptions, self.progress, self.saved_step = interruptions, run_state.Progress(), None
        self.schedule = Schedule(settings, math.ceil(len(task.train_lengths) / settings.batch_size))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(model, settings)

    def train(self, save_every: int, log: RunLog) -> None:
        """Advance to the end of the schedule. Raises with a line that says which state is kept: cli.Interrupted for a
        signal, after saving; OSError for a full disk, MemoryError, and ValueError for a loss that is not finite."""
        self.log = log
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
            raise MemoryError(f"out of memory at step {self.progress.step + 1}; {self.kept()}; with --grad-accumulation "
                              f"{2 * self.settings.grad_accumulation} the same update needs less") from None

    def advance(self, save_every: int) -> None:
        """Evaluate before the first step, after every epoch and, if asked for, every few steps. Signals end the run between
        steps, or while it scores."""
        progress = self.progress
        while progress.step < self.schedule.steps or progress.batch:
            batches = length_grouped_batches(self.task.train_lengths, self.settings.batch_size, self.seed, progress.epoch)
            batches = batches[:progress.batch + self.schedule.steps - progress.step]
            with self.log.epoch(progress, len(batches)):
                for indices in batches[progress.batch:]:
                    if not progress.epochs or self.scores_are_due():
                        self.evaluate(epoch_ends=False)
                    with self.interruptions.held():
                        self.train_step(indices)
                        if progress.step % save_every == 0 and progress.batch < len(batches):
                            self.save()
            self.evaluate(epoch_ends=True)

    def scores_are_due(self) -> bool:
        """Whether --eval-every asks for scores of this step that are not there yet; a resumed run makes up for them."""
        every, progress = self.settings.eval_every, self.progress
        return bool(every) and progress.step % every == 0 and progress.epochs[-1]["step"] < progress.step

    def train_step(self, indices: list[int]) -> None:
        """One update, counted and logged."""
        progress, started, lr = self.progress, time.perf_counter(), self.schedule(self.progress.step)
        run_state.seed_step(self.seed, progress.step, processes.process_number())
        loss = self.update(indices, lr)
        seconds, n_tokens = time.perf_counter() - started, sum(self.task.train_lengths[index] for index in indices)
        progress.count(len(indices), n_tokens, seconds)
        self.log.step(progress, loss, lr, len(indices), n_tokens, seconds)

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
        """Forward and backward, in as many parts as --grad-accumulation says: the gradients of the parts, and of the processes,
        add up to the batch's. On the largest part so far, also count what autograd had to keep."""
        own, loss, n_parts = processes.share(indices), self.trained[0].new_zeros(()), self.settings.grad_accumulation
        for part in filter(None, (own[first::n_parts] for first in range(n_parts))):
            tokens = sum(self.task.train_lengths[index] for index in part)
            counted = Activations(self.model) if tokens > self.progress.largest_batch_tokens else None
            with counted.hooks if counted else contextlib.nullcontext():
                loss_of_part = self.task.loss(self.model, part) / self.task.terms(indices)
            loss_of_part.backward()
            loss += loss_of_part.detach()
            if counted:
                self.progress.largest_batch_tokens, self.progress.activation_bytes = tokens, counted.bytes
        return processes.sum_gradients(self.trained, loss).item()

    def evaluate(self, epoch_ends: bool) -> None:
        """Score the development set, before the first step, within an epoch, or at its end."""
        scores = self.task.evaluate(self.model.eval()) if processes.is_first() else {}
        with self.interruptions.held():
            self.close_evaluation(scores, epoch_ends)

    def close_evaluation(self, scores: dict[str, float], epoch_ends: bool) -> None:
        """Write the scores down, keep the adapter if they are those to choose, and save the state."""
        progress = self.progress
        if epoch_ends:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        share = round(progress.batch / self.schedule.steps_per_epoch, 4)     # of an epoch that runs
        progress.epochs.append({"epoch": progress.epoch + share if share else progress.epoch, "step": progress.step} | scores)
        if not processes.is_first():
            return
        self.log.scores(progress.epochs[-1])
        if progress.step > 0:                                                # the untrained start is never chosen
            progress.chosen_step = self.best_step()
            if progress.chosen_step == progress.step:
                run_state.check_trained(self.model, progress.step)           # a broken one must not replace a good one
                save_trained(self.model, self.folder / "adapter", self.settings.model, self.settings.task, self.task.saved_form)
            self.save()

    def best_step(self) -> int:
        """The last evaluation's, or that of the best score on the development set; the earlier of equals."""
        trained = self.progress.epochs[1:]
        if self.settings.select == "last":
            return trained[-1]["step"]
        sign = 1 if self.task.higher_is_better else -1
        return max(trained, key=lambda entry: (sign * entry[self.task.main_metric], -entry["step"]))["step"]

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
    """One run, from its start or its saved state to metrics.json; of a finished one, a line says where its results are."""
    forget_peak(options.device)
    model, task, settings, recipe = prepare(options, seed)
    folder = run_state.run_folder(settings, recipe, options.out_dir, seed)
    apply_method(model, settings.method, **settings.of_method(), seed=seed)
    if settings.init_adapter:
        print(start_from(model, settings.init_adapter))
    saved_format = None if options.overwrite else run_state.saved_format(folder)
    frozen_in, why = choose_precision(settings.precision, model, settings.device, saved_format)
    hold_frozen_in(model, frozen_in)
    config = {"seed": seed, **asdict(settings), "frozen_in": frozen_in, "base": base_fingerprints(model)["float32"],
              "data": task.fingerprints}
    report_changes(options.earlier, config)
    with contextlib.ExitStack() as held:
        if processes.is_first():
            held.enter_context(run_state.only_run_in(folder))
        interruptions = held.enter_context(run_state.Interruptions(processes.is_first()))
        found = processes.one_after_the_other(lambda: run_state.open_run(folder, config, options.resume, options.overwrite))
        if found == "finished":
            print(f"{folder} is finished: its results are in {folder / 'metrics.json'}; --overwrite trains it anew")
            return
        trainer = Trainer(model.to(settings.device), task, settings, seed, folder, interruptions)
        report_start(trainer, recipe, f"frozen weights in {frozen_in} ({why})")
        if found == "unfinished":
            processes.one_after_the_other(trainer.restore)
        curves = open_curves(options.tensorboard, folder, trainer.progress.step)
        with RunLog(folder, trainer.schedule.steps, options.log_every, curves) as log:
            trainer.train(options.save_every, log)
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
