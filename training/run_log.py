"""What a run says while it trains: a line of log.jsonl every few steps, a bar on a terminal, lines elsewhere, and curves for
TensorBoard where these are asked for. Of several processes the first speaks. Left out: its start and end (report.py).
"""
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from training import processes

LOG_EVERY = 10                                                               # steps per line of log.jsonl
SAY_EVERY = 60                                                               # seconds between two lines on stderr


class RunLog:
    """Opened when a run starts or goes on; `with` closes it. every: steps per line, on stderr and in log.jsonl; None: as above.
    curves: what `open_curves` returned."""

    def __init__(self, folder: Path, steps: int, every: int | None, curves=None):
        self.steps, self.every, self.curves, self.said = steps, every, curves, time.monotonic()
        self.first = processes.is_first()
        self.file = open(folder / "log.jsonl" if self.first else os.devnull, "a", encoding="utf-8", newline="\n")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()
        if self.curves:
            self.curves.close()

    @contextmanager
    def epoch(self, progress, steps: int) -> Iterator[None]:
        """An epoch of `steps` steps: its bar stands while it lasts."""
        with tqdm(total=steps, initial=progress.batch, unit="step", desc=f"epoch {progress.epoch + 1}", leave=False,
                  disable=None if self.first else True) as self.bar:         # None: where somebody watches
            yield

    def step(self, progress, loss: float, lr: float, n_examples: int, n_tokens: int, seconds: float) -> None:
        """A step that `progress` counts already: its mean loss, and what it trained on in how many seconds."""
        step, every = progress.step, self.every or LOG_EVERY
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{n_tokens / seconds:,.0f}", refresh=False)
        if step % every and step != self.steps:
            return
        entry = {"step": step, "loss": loss, "lr": lr, "examples_per_second": n_examples / seconds,
                 "tokens_per_second": n_tokens / seconds}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        self.draw("train", entry)
        if self.first and self.bar.disable and (self.every or time.monotonic() - self.said >= SAY_EVERY):
            self.said = time.monotonic()
            left = (self.steps - step) * progress.seconds / step
            print(f"step {step:,} of {self.steps:,}: loss {loss:.4f}, learning rate {lr:.3g}, "
                  f"{progress.examples / progress.seconds:,.1f} examples/s, {duration(left)} left", file=sys.stderr)

    def scores(self, entry: dict) -> None:
        """The scores of an evaluation, with its epoch and step."""
        shown = ", ".join(f"{name} {value:.4f}" for name, value in entry.items() if name not in ("epoch", "step"))
        print(f"epoch {entry['epoch']:g} (step {entry['step']}): {shown}", file=sys.stderr)
        self.draw("dev", entry)

    def draw(self, group: str, entry: dict) -> None:
        """Add an entry to the curves, by its step."""
        for name, value in entry.items() if self.curves else ():
            if name not in ("epoch", "step"):
                self.curves.add_scalar(f"{group}/{name}", value, entry["step"])


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def curve_writer() -> type:
    """TensorBoard's writer. Raises ValueError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard: the library tensorboard is not installed: run pip install tensorboard, or leave the "
                         "option out") from None
    return SummaryWriter


def open_curves(directory: str | None, folder: Path, step: int):
    """A writer of TensorBoard's files, in a folder of the run below `directory`, to go on after `step`; or None."""
    if directory is None or not processes.is_first():
        return None
    return curve_writer()(str(Path(directory, *folder.parts[-4:])), purge_step=step + 1)
