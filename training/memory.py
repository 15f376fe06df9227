"""How much memory a run takes: the peak of the process, and what autograd keeps for the backward pass.
Left out: swap, and what other processes of the same run take.
"""
import gc
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn


class Activations:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, parameters apart."""

    def __init__(self, model: nn.Module):
        self.seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.count, lambda tensor: tensor)

    def count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def forget_peak(device: str) -> None:
    """Let the peak count from now on: the next run of several in one process has its own."""
    if device.startswith("cuda"):
        gc.collect()                                                         # what is left of the run before
        torch.cuda.init()                                                    # without it, the next line fails in a new process
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):                                                  # where this is not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory since forget_peak: of the GPU where one is used, else resident; without Linux's /proc, since the start
    of the process; 0 where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:                                                      # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
