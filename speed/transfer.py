"""Several tensors between the processor's memory and a device's in one copy, as every copy takes time of its own.

On a CPU nothing happens. Plain form: tensor.to(device), one by one. Left out: pinned memory.
"""
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNED = 16                                                                 # bytes, as of every tensor that torch allocates


def to_device(device: torch.device | str, *tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of the processor's memory, on the device. The processor does not wait for the copy. Each begins at a multiple of
    ALIGNED: torch's attention ended with "misaligned address" on an H200 for a mask that did not."""
    if torch.device(device).type == "cpu":
        return tensors
    filled = [F.pad(of_one, (0, -len(of_one) % ALIGNED)) for of_one in map(bytes_of, tensors)]
    return apart(torch.cat(filled).to(device, non_blocking=True), tensors, ALIGNED)


def to_host(*tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of one device in the processor's memory, which waits until the device has computed them."""
    if tensors[0].device.type == "cpu":
        return tensors
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())    # each then begins at its size
    in_order = [tensors[index] for index in order]
    copied = apart(torch.cat(list(map(bytes_of, in_order))).cpu(), in_order)
    return [copied[order.index(index)] for index in range(len(tensors))]


def bytes_of(tensor: Tensor) -> Tensor:
    """(N,), of any shape."""
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def apart(copied: Tensor, tensors: Sequence[Tensor], aligned: int = 1) -> list[Tensor]:
    """Bytes (N,), those of every tensor from a multiple of `aligned` on, as tensors of the same types and shapes."""
    found, start = [], 0
    for tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        found.append(copied[start:end].view(tensor.dtype).view(tensor.shape))
        start = end + -end % aligned
    return found
