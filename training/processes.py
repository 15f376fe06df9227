"""Data-parallel training: every process holds the model and takes its share of each batch.

    torchrun --nproc-per-node 2 train.py --model gpt2 --task e2e ...

The batch is the same as with one process. Each process computes the loss of its samples, divided by what the whole batch
is divided by, so that the sum of the processes' gradients is the gradient of the batch: one sum per step, over a few
hundred thousand numbers for LoRA. Without dropout the losses are those of one process up to rounding; with dropout each
process draws for its own samples. The first process evaluates, decodes and writes; an error in one ends all, by torchrun.
Left out: sharded weights or optimizer, and evaluation in parallel. nccl on GPUs where torch has it, else gloo. With one
process, none of this does anything.
"""
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from datetime import timedelta
from io import StringIO
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
DEVICE_HELP = "auto (default: the GPU if there is one), cpu, cuda, cuda:N or mps"
PATIENCE = timedelta(days=7)                                                 # the others wait while the first evaluates


def process_number() -> int:
    return int(os.environ.get("RANK", 0))                                    # torchrun's name for it


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    return process_number() == 0


def resolve_device(asked: str) -> str:
    """Where this process computes: auto, cpu, cuda, cuda:N or mps. auto: a GPU where there is one, each process of several
    its own (cuda, too); mps only if asked for. Raises ValueError for what this machine does not have."""
    rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if asked == "auto" and not torch.cuda.is_available():
        return "cpu"
    if asked == "auto" or asked == "cuda" and gpus and world_size() > 1:
        if rank >= gpus:
            raise ValueError(f"process {rank + 1} of torchrun on this machine, which has {gpus} GPU{'s' * (gpus != 1)}: lower "
                             f"--nproc-per-node to {gpus}, or give --device cpu")
        return f"cuda:{rank}"
    kind, _, index = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"--device is '{asked}', expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= gpus:
        raise ValueError(f"--device {asked}: torch finds {gpus or 'no'} CUDA device here; give --device "
                         "cpu or install a torch that was built for your GPU and driver")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch finds no Apple GPU here; give --device cpu")
    return asked


def start(device: str) -> None:
    """Join the processes that torchrun has started; only the first reports on stdout."""
    if world_size() > 1 and not torch.distributed.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        own_gpu = device.startswith("cuda") and torch.distributed.is_nccl_available()
        torch.distributed.init_process_group("nccl" if own_gpu else "gloo", timeout=PATIENCE,
                                             device_id=torch.device(device) if own_gpu else None)
        if not is_first():
            sys.stdout = open(os.devnull, "w")


def only_first_speaks() -> AbstractContextManager:
    """While it lasts, the lines on stderr of the other processes, which are the first's again, are dropped."""
    return nullcontext() if is_first() else redirect_stderr(StringIO())


def share(batch: Sequence[int]) -> Sequence[int]:
    """This process's samples of a batch, every n-th: some get none if a batch has fewer samples."""
    return batch[process_number()::world_size()]


def sum_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Add up gradients and losses over the processes; every one gets the sums. A process without samples adds zeros."""
    if world_size() == 1:
        return loss
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    numbers = torch.cat([loss.detach().reshape(1), *(parameter.grad.flatten() for parameter in parameters)])
    torch.distributed.all_reduce(numbers)
    sums = numbers[1:].split([parameter.numel() for parameter in parameters])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad.copy_(total.view_as(parameter))
    return numbers[0]


def one_after_the_other(do: Callable[[], T]) -> T:
    """do() in every process, in turn, the first first: for what reads files that the first prepares."""
    for turn in range(world_size()):
        if turn == process_number():
            result = do()
        if world_size() > 1:
            torch.distributed.barrier()
    return result
