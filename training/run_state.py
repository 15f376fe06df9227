"""The folder of a run and the state in it: where a run writes, what it must not overwrite, and how it goes on.

    runs/<task>/<model>/<method and its settings>/seed<k>/
      config.json      every setting, resolved, fingerprints of base and data, and the versions used
      log.jsonl        a line per logged step
      adapter/         what was trained, as it was in the chosen epoch
      last.pt          the exact state to resume from
      last.prev.pt     the state before it, until the run is finished
      .lock            the process that writes here, while it does

A state holds what trains, the optimizer, and the place in the data and in the log. The learning rate, the order of the
samples and what dropout draws follow from step, epoch and seed, so there is no random state to keep. A new state is
written under another name and flushed to the disk before it takes its own, so that whatever happens at any moment, a whole
one is there. Signals that end a run wait until the step is complete.
Left out: what the state means to the loop (train.py), and the results (metrics.json).
"""
import hashlib
import os
import platform
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zlib import crc32

import torch
from torch import nn

from files.cli import Interrupted
from files.text import read_json, write_json
from files.weights import check_finite, compare_checksums
from files.writing import fsync_folder, hold_lock, written_whole
from methods import trained_parameters
from training import processes
from training.options import Settings
from training.recipes import Recipe

MAY_CHANGE = ("precision", "device", "grad_accumulation")                    # frozen_in is what counts; a GPU may be another
STATES = ("last.pt", "last.prev.pt")                                         # the newest first
# settings as a folder's name calls them, where they are other than the recipe's; "" is said by the value alone
IN_THE_NAME = {"epochs": "epochs", "batch_size": "batch", "max_steps": "steps", "warmup": "warmup", "warmup_from": "from",
               "weight_decay": "decay", "label_smoothing": "smoothing", "dropout": "dropout", "model_dropout": "model-dropout",
               "lora_init": "", "max_length": "length", "select": "", "eval_every": "eval-every", "precision": "",
               "limit_train": "train", "limit_eval": "eval", "text": "", "beam_size": "beam", "length_penalty": "penalty",
               "labels": ""}
ELSE = {"precision": "auto", "text": "pretokenised"}                         # what they are in a recipe, which does not say


# ---------------------------------------------------------------- the folder

def run_folder(settings: Settings, recipe: Recipe, out_dir: str, seed: int) -> Path:
    """The folder of the drawing above: its name says the method's size, the learning rate, and what else is not the recipe's;
    all other settings are in config.json."""
    method = settings.method
    if settings.rank is not None:
        method += f"_r{settings.rank}"
    if settings.method == "lora":
        method += f"_alpha{settings.alpha:g}_{''.join(settings.targets)}"
        method += "" if settings.bias == "none" else f"_bias-{settings.bias}"
    if settings.init_adapter:                                                # another experiment than one without
        method += f"_init{crc32(Path(settings.init_adapter).as_posix().encode()):08x}"[:10]
    changed = "" if settings.recipe == "paper" else f"_{settings.recipe}"
    for name, called in IN_THE_NAME.items():
        value = getattr(settings, name)
        if value not in (None, getattr(recipe, name, ELSE.get(name))):
            changed += f"_{called}{f'{value:g}' if isinstance(value, float) else value}"
    if settings.train_file:                                                  # reviews-train of reviews/train.tsv
        changed += "_" + re.sub(r"[^\w-]+", "-", "-".join(Path(settings.train_file).with_suffix("").parts[-2:])).strip("-")
    return Path(out_dir) / settings.task / dashed(settings.model) / f"{method}_lr{settings.lr:g}{changed}" / f"seed{seed}"


def dashed(path: str | Path) -> str:
    """A path as the name of one folder."""
    return Path(path).as_posix().strip("./").replace("/", "-")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. Raises ValueError with the number of the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".lock", wait=False) as file:
        if file is None:
            holder = ""
            with suppress(OSError):                                          # it has just ended
                holder = (folder / ".lock").read_text(encoding="utf-8").strip()
            raise ValueError(f"{folder} is in use by another run (process {holder or 'unknown'}): wait until it ends, stop it, "
                             "or give another --out-dir")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def saved_format(folder: Path) -> str | None:
    """What the frozen weights of the run in this folder are held in, fp32 or bf16; None where there is no run."""
    path = folder / "config.json"
    return read_json(path).get("frozen_in") if path.is_file() else None


def open_run(folder: Path, config: dict, resume: bool, overwrite: bool) -> str:
    """Prepare the run's folder, which the first process holds; what stands there: "new", "unfinished" with a saved state to
    resume from, or "finished". config: the seed, every setting, the format of the frozen weights, and fingerprints of base and
    data. Raises ValueError for an unfinished run that is not to be resumed, and for one whose settings, base or data are
    others."""
    if processes.is_first():
        prepare_folder(folder, config, resume, overwrite)
    if (folder / "metrics.json").exists():
        return "finished"
    return "unfinished" if any((folder / name).exists() for name in STATES) else "new"


def prepare_folder(folder: Path, config: dict, resume: bool, overwrite: bool) -> None:
    """open_run of the first process: refuse what is to be refused, and make a folder for a new run."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
                "processes": processes.world_size()}
    if (folder / "config.json").exists() and not overwrite:
        earlier = read_json(folder / "config.json")
        for name, value in config.items():
            if earlier.get(name) != value and name not in MAY_CHANGE:
                raise ValueError(f"{folder} was started with {name} = {earlier.get(name)}, not {value}: resume with the "
                                 f"same settings, or {instead(folder, earlier, config)}")
        if (folder / "metrics.json").exists():
            forget_earlier_state(folder)                                     # of a run that was killed at its very end
            return
        if not resume:
            raise ValueError(f"{folder} holds an unfinished run: give --resume to go on with it, --overwrite to begin it anew, "
                             "or another --out-dir")
        before = earlier["versions"] | {"grad_accumulation": earlier.get("grad_accumulation")}
        for name, value in (versions | {"grad_accumulation": config.get("grad_accumulation")}).items():
            if before[name] != value:
                print(f"{folder} was started with {name} {before[name]}, goes on with {value}: the last digits may differ from "
                      "those of an uninterrupted run", file=sys.stderr)
        if any((folder / name).exists() for name in STATES):
            return
    if resume:
        print(f"{folder} holds no saved state: the run starts at its beginning{other_runs(folder)}", file=sys.stderr)
    for leftover in [*folder.glob("*.tmp"), *folder.glob("predictions*"), *folder.glob("references*"),
                     *(folder / name for name in (*STATES, "metrics.json", "log.jsonl"))]:
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    write_json(config | {"versions": versions}, folder / "config.json")


def other_runs(folder: Path) -> str:
    """For somebody who meant to go on with a run of other settings: that its adapter can be trained on."""
    others = sorted(path.parent for path in folder.parents[1].glob(f"*/{folder.name}/adapter") if path.parent != folder)
    return f"; to train one of other settings on, give --init-adapter {others[0] / 'adapter'}" if others else ""


def instead(folder: Path, earlier: dict, config: dict) -> str:
    """What helps where a run is not resumed because settings are others: to start from its adapter, if that fits."""
    fits = earlier.get("base") == config["base"] and earlier.get("init_adapter") == config["init_adapter"]
    if not fits or not (folder / "adapter").is_dir():
        return "give another --out-dir"
    return f"train its adapter on with these: give --init-adapter {folder / 'adapter'} and another --out-dir, without --resume"


# ---------------------------------------------------------------- the state

@dataclass
class Progress:
    """How far a run has come; saved with the state it resumes from."""
    step: int = 0                       # updates made
    epoch: int = 0                      # epochs closed
    batch: int = 0                      # updates made in the epoch that runs
    seconds: float = 0.0                # spent on updates, as are the examples and tokens
    examples: int = 0
    tokens: int = 0
    epochs: list[dict] = field(default_factory=list)     # number, step and scores of each evaluation; 0 is the start
    chosen_step: int | None = None      # of the evaluation whose adapter is kept
    activation_bytes: int = 0           # what autograd kept for the largest batch
    largest_batch_tokens: int = 0

    def count(self, n_examples: int, n_tokens: int, seconds: float) -> None:
        """One update more."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self.examples, self.tokens, self.seconds = self.examples + n_examples, self.tokens + n_tokens, self.seconds + seconds


def seed_step(seed: int, step: int, process: int = 0) -> None:
    """Let what a step draws (dropout) depend on nothing but the run's seed, the step's number and, of several processes
    that share a batch, which one this is."""
    text = f"seed {seed}, step {step}" + (f", process {process}" if process else "")
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def check_trained(model: nn.Module, step: int) -> None:
    """Raises ValueError, which names the tensor, if what trains is no longer finite."""
    check_finite(trained_parameters(model), f"step {step}", "the run diverged: lower --lr")


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write last.pt in one step, and keep the one before. Raises OSError for a full disk, and ValueError for numbers that
    are not finite; the states that were there are then still there."""
    check_trained(model, progress.step)
    log = folder / "log.jsonl"
    if log.exists():
        with open(log, "rb+") as file:                                       # lines before this state must not be lost
            os.fsync(file.fileno())
    state = {"trained": {name: parameter.detach() for name, parameter in trained_parameters(model).items()},
             "optimizer": optimizer.state_dict(), "progress": asdict(progress),
             "log_bytes": log.stat().st_size if log.exists() else 0}
    last, before = (folder / name for name in STATES)
    with written_whole(last, keep=before) as file:
        torch.save(state, file)


def read_state(path: Path) -> dict:
    """A saved state. Raises FileNotFoundError, or ValueError for a file that is damaged."""
    try:
        compare_checksums(path)
        state = torch.load(path, weights_only=True, map_location="cpu")
        return {name: state[name] for name in ("trained", "optimizer", "progress", "log_bytes")}
    except OSError:
        raise
    except Exception as error:                                               # each way to be damaged has its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ValueError(f"{path.name} is damaged ({reason})") from None


def newest_state(folder: Path) -> dict:
    """The last state that is whole; a line on stderr says if that is not the last that was saved."""
    faults = []
    for name in STATES:
        path = folder / name
        try:
            state = read_state(path)
        except FileNotFoundError:
            faults.append(f"{name} is missing")
        except ValueError as error:
            faults.append(str(error))
        else:
            for fault, newer in zip(faults, STATES, strict=False):
                print(f"{folder}: {fault}; going on from {name}, step {state['progress']['step']}", file=sys.stderr)
                (folder / newer).unlink(missing_ok=True)                     # else the next save would keep it as the older
            return state
    raise ValueError(f"{folder}: {' and '.join(faults)}, so there is nothing to resume from: start again with --overwrite")


def restore_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put the saved state into model and optimizer, drop the log of steps that will run again, and return the progress."""
    state = newest_state(folder)
    parameters = trained_parameters(model)
    shapes = {name: tensor.shape for name, tensor in parameters.items()}
    if {name: tensor.shape for name, tensor in state["trained"].items()} != shapes:
        raise ValueError(f"{folder}: the saved state is of another run, its tensors have other names or shapes: start again "
                         "with --overwrite")
    with torch.no_grad():
        for name, tensor in state["trained"].items():
            parameters[name].copy_(tensor)
    optimizer.load_state_dict(state["optimizer"])
    cut_log(folder / "log.jsonl", state["log_bytes"])
    return Progress(**state["progress"])


def cut_log(log: Path, size: int) -> None:
    """Drop what was logged after the state was saved, a torn last line among it."""
    content = log.read_bytes() if log.exists() else b""
    if len(content) < size:
        print(f"{log}: has {len(content)} bytes, had {size} when the state was saved: lines of it are lost", file=sys.stderr)
        size = content.rfind(b"\n") + 1
    if len(content) > size:
        os.truncate(log, size)


def forget_earlier_state(folder: Path) -> None:
    """A finished run keeps its last state only."""
    (folder / STATES[1]).unlink(missing_ok=True)
    fsync_folder(folder)


# ---------------------------------------------------------------- signals

class Interruptions:
    """Ctrl-C and SIGTERM while a run goes on. The first of them is raised as cli.Interrupted: at once, or, if it comes inside
    `held`, when that ends. Later ones change nothing, but for a second Ctrl-C: it is raised at once, as KeyboardInterrupt.

    first: this is the first of a run's processes. The others only take note, and end when it leaves them."""

    def __init__(self, first: bool = True):
        self.first, self.holding, self.received = first, False, 0

    def __enter__(self) -> "Interruptions":
        self.earlier = {}
        if threading.current_thread() is threading.main_thread():            # Python allows no other to set handlers
            self.earlier = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        before, self.received = self.received, self.received or number
        if self.first and not self.holding and not before:
            raise Interrupted(number)
        if before == number == signal.SIGINT:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """What happens inside is complete before a signal ends the run."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.first and self.received:
            raise Interrupted(self.received)
