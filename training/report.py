"""What a run says at its start and end, and metrics.json.
Left out: what it says in between (run_log.py), and tables over several runs (experiments/).
"""
import sys
from dataclasses import asdict
from pathlib import Path

from files.text import read_json
from lora import base_fingerprints
from methods import parameter_counts
from training import processes
from training.command_line import config_file
from training.memory import bytes_of, peak_bytes
from training.recipes import Recipe


def run_metrics(trainer, frozen_in: str) -> dict:
    """The content of metrics.json, as far as it is known when training ends. Its keys say it, one a line."""
    model, settings, progress, task = trainer.model, trainer.settings, trainer.progress, trainer.task
    counts = parameter_counts(model)
    optimizer = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    chosen = next(entry for entry in progress.epochs if entry["step"] == progress.chosen_step)
    rule = "the last epoch" if settings.select == "last" else (
        f"the {'highest' if task.higher_is_better else 'lowest'} {task.main_metric} on the development set, "
        "the earlier of equals")
    return {"task": settings.task, "model": settings.model, "method": settings.method, "seed": trainer.seed,
            "recipe": settings.source, "base_fingerprint": base_fingerprints(model)["float32"],
            "data_fingerprints": task.fingerprints,
            "scores": {name: value for name, value in chosen.items() if name not in ("epoch", "step")},
            "epochs": progress.epochs, "chosen_epoch": chosen["epoch"], "chosen_step": chosen["step"], "chosen_by": rule,
            "trainable_parameters": counts["trainable"], "head_parameters": counts["head"],
            "total_parameters": counts["total"], "frozen_in": frozen_in,
            "adapter_bytes": (trainer.folder / "adapter" / "adapter_model.safetensors").stat().st_size,
            "peak_memory_bytes": peak_bytes(settings.device),
            "memory_parts_bytes": {"weights": bytes_of(model.parameters()), "gradients": bytes_of(trainer.trained),
                                   "optimizer": bytes_of(optimizer), "activations": progress.activation_bytes},
            "steps": progress.step, "seconds": progress.seconds,
            "examples_per_second": progress.examples / progress.seconds,
            "tokens_per_second": progress.tokens / progress.seconds}


def report_changes(earlier: str | None, config: dict) -> None:
    """A line on stderr where base or data are not those of the run that --from names, though their names may be the same."""
    if earlier is None or not processes.is_first():
        return
    path = config_file(Path(earlier))
    before = read_json(path)
    changed = [what for what in ("base", "data") if before.get(what, config[what]) != config[what]]
    if changed:
        print(f"{path}: its {' and '.join(changed)} were others than this run's: scores may differ for that alone",
              file=sys.stderr)


def report_start(trainer, recipe: Recipe, precision: str) -> None:
    """Print what a person wants to check; config.json holds all of it. A line on stderr says so if nothing can be trained."""
    settings, schedule, counts = trainer.settings, trainer.schedule, parameter_counts(trainer.model)
    changed = [f"{name} {getattr(settings, name)}" for name, value in asdict(recipe).items()
               if getattr(settings, name) not in (None, value)]
    size = ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in
                     settings.of_method().items() if name in ("rank", "alpha", "targets"))
    print(f"model      {settings.model} on {settings.task}, seed {trainer.seed}; recipe: {recipe.source}"
          + (f"; changed: {', '.join(changed)}" if changed else ""))
    print(f"method     {settings.method}{f' ({size})' if size else ''} trains {counts['trainable']:,} of {counts['total']:,} "
          f"parameters ({counts['trainable'] / counts['total']:.2%}) and {counts['head']:,} of the task head")
    print(f"schedule   {schedule.steps:,} steps of {settings.batch_size} samples, {schedule.steps_per_epoch:,} an epoch; "
          f"learning rate rising to {schedule.lr:g} over {schedule.warmup:,} and falling to 0")
    print(f"data       {trainer.task.summary}")
    print(f"run folder: {trainer.folder}")
    print(f"precision: {precision}, what trains in fp32", flush=True)
    if not any(map(schedule, range(schedule.steps))) and processes.is_first():
        print("warning: no step of this run has a learning rate above 0, so it trains nothing: raise --lr or --max-steps, or "
              "give --warmup-from 1", file=sys.stderr)


def report_end(metrics: dict, folder: Path) -> None:
    """Print the lines of metrics.json that a person looks for."""
    print(f"chosen: epoch {metrics['chosen_epoch']:g} (step {metrics['chosen_step']}), {metrics['chosen_by']}")
    print("scores: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics["scores"].items()
                                 if isinstance(value, float)))
    print(f"training took {metrics['seconds']:.0f} s ({metrics['tokens_per_second']:,.0f} tokens/s), peak memory "
          f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB, adapter {metrics['adapter_bytes'] / 1024:,.0f} KiB")
    print(f"wrote {folder / 'metrics.json'}", flush=True)
