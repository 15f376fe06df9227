"""The folder of a run and the state in it: where a run writes, what it must not overwrite, and how it goes on.

    runs/<task>/<model>/<method and its settings>/seed<k>/
      config.json    every setting, resolved, and the versions used
      log.jsonl      a line per logged step
      adapter/       what was trained, as it was in the chosen epoch
      last.pt        the exact state to resume from

A state holds what trains, the optimizer, the place in the data, and the random state; the learning rate and the order of
the samples follow from the step, the epoch and the seed. It is replaced in one step, so that there is always a whole one.

Left out: what the state means to the loop (train.py), and the results (metrics.json).
"""
import json
import os
import platform
from pathlib import Path

import torch
from torch import nn

from model import write_json


def run_folder(settings: dict, out_dir: str, seed: int) -> Path:
    method = settings["method"]
    if "rank" in settings:
        method += f"_r{settings['rank']}"
    if method.startswith("lora"):
        method += f"_alpha{settings['alpha']:g}_{''.join(settings['targets'])}"
        method += "" if settings["bias"] == "none" else f"_bias-{settings['bias']}"
    method += "_init" if settings["init_adapter"] else ""                    # another experiment than one without
    model = Path(settings["model"]).as_posix().strip("./").replace("/", "-")
    return Path(out_dir) / settings["task"] / model / f"{method}_lr{settings['lr']:g}" / f"seed{seed}"


def open_run(folder: Path, config: dict, resume: bool, overwrite: bool) -> bool:
    """Prepare the run's folder; True if a saved state is to be resumed.

    config: the seed and every setting. Raises ValueError for a run that is there already, and for one to resume whose
    settings are others.
    """
    if (folder / "config.json").exists() and not overwrite:
        if not resume:
            raise ValueError(f"{folder} holds a run already: give --resume to go on with it, --overwrite to replace it, or "
                             "another --out-dir")
        earlier = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name, value in config.items():
            if earlier.get(name) != value:
                raise ValueError(f"{folder} was started with {name} = {earlier.get(name)}, not {value}: resume with the "
                                 "same settings, or give another --out-dir")
        return (folder / "last.pt").exists()
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in ("last.pt", "metrics.json", "log.jsonl"):
        (folder / leftover).unlink(missing_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    write_json(config | {"versions": versions}, folder / "config.json")
    return False


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Write last.pt in one step."""
    state = {"trained": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
             "optimizer": optimizer.state_dict(), "progress": progress, "rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    temporary = folder / "last.pt.tmp"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "last.pt")


def restore_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Put the saved state into model, optimizer and random generators, drop the log of steps that will run again, and
    return the progress."""
    state = torch.load(folder / "last.pt", weights_only=True)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state["trained"].items():
            parameters[name].copy_(tensor)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"].cpu())
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"].cpu())
    cut_log(folder / "log.jsonl", state["progress"]["step"])
    return state["progress"]


def cut_log(log: Path, step: int) -> None:
    """Drop the lines of later steps than `step`."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8", newline="\n")
