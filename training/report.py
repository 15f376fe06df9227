"""What a run says: the lines at its start and end, and metrics.json. Left out: tables over several runs (experiments/)."""
import sys
from dataclasses import asdict
from pathlib import Path

from lora import base_fingerprints
from methods import parameter_counts
from training.memory import bytes_of, peak_bytes
from training.recipes import Recipe


def run_metrics(trainer, frozen_in: str) -> dict:
    """The content of metrics.json, as far as it is known when training ends. Its keys say it, one a line."""
    model, settings, progress, task = trainer.model, trainer.settings, trainer.progress, trainer.task
    counts = parameter_counts(model)
    optimizer = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    chosen = next(entry for entry in progress.epochs if entry["epoch"] == progress.chosen_epoch)
    rule = "the last epoch" if settings.select == "last" else (
        f"the {'highest' if task.higher_is_better else 'lowest'} {task.main_metric} on the development set, "
        "the earlier of equals")
    return {"task": settings.task, "model": settings.model, "method": settings.method, "seed": trainer.seed,
            "recipe": settings.source, "base_fingerprint": base_fingerprints(model)["float32"],
            "data_fingerprints": task.fingerprints,
            "scores": {name: value for name, value in chosen.items() if name not in ("epoch", "step")},
            "epochs": progress.epochs, "chosen_epoch": progress.chosen_epoch, "chosen_by": rule,
            "trainable_parameters": counts["trainable"], "head_parameters": counts["head"],
            "total_parameters": counts["total"], "frozen_in": frozen_in,
            "adapter_bytes": (trainer.folder / "adapter" / "adapter_model.safetensors").stat().st_size,
            "peak_memory_bytes": peak_bytes(settings.device),
            "memory_parts_bytes": {"weights": bytes_of(model.parameters()), "gradients": bytes_of(trainer.trained),
                                   "optimizer": bytes_of(optimizer), "activations": progress.activation_bytes},
            "steps": progress.step, "seconds": progress.seconds,
            "examples_per_second": progress.examples / progress.seconds,
            "tokens_per_second": progress.tokens / progress.seconds}


def report_start(trainer, recipe: Recipe, precision: str) -> None:
    """Print what config.json holds, and what follows from it."""
    settings, schedule, counts = asdict(trainer.settings), trainer.schedule, parameter_counts(trainer.model)
    given = [f"{name} {settings[name]}" for name, value in asdict(recipe).items()
             if settings[name] is not None and settings[name] != value]
    print(f"recipe: {recipe.source}" + (f"; changed: {', '.join(given)}" if given else ""))
    print("settings: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None))
    print(f"data: {trainer.task.summary}")
    print(f"schedule: {schedule.steps:,} steps, learning rate rising to {schedule.lr:g} over {schedule.warmup:,} and "
          "falling to 0")
    print(f"trainable: {counts['trainable']:,} of {counts['total']:,} parameters "
          f"({counts['trainable'] / counts['total']:.2%}) and {counts['head']:,} of the task head")
    print(f"run folder: {trainer.folder}")
    print(f"precision: {precision}, what trains in fp32", flush=True)


def report_scores(entry: dict) -> None:
    """One line for an epoch and its scores."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in entry.items() if name not in ("epoch", "step"))
    print(f"epoch {entry['epoch']} (step {entry['step']}): {scores}", file=sys.stderr)


def report_end(metrics: dict, folder: Path) -> None:
    """Print the lines of metrics.json that a person looks for."""
    print(f"chosen: epoch {metrics['chosen_epoch']}, {metrics['chosen_by']}")
    print("scores: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics["scores"].items()
                                 if isinstance(value, float)))
    print(f"training took {metrics['seconds']:.0f} s ({metrics['tokens_per_second']:,.0f} tokens/s), peak memory "
          f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB, adapter {metrics['adapter_bytes'] / 1024:,.0f} KiB")
    print(f"wrote {folder / 'metrics.json'}", flush=True)
