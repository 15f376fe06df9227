"""Several tensors between the processor's memory and a device's in one copy, as every copy takes time of its own.

On a CPU nothing happens. Plain form: tensor.to(device), one by one. Left out: pinned memory.
"""
from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(device: torch.device | str, *tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of the processor's memory, on the device. The processor does not wait for the copy."""
    if torch.device(device).type == "cpu":
        return tensors
    return apart(together(tensors).to(device, non_blocking=True), tensors)


def to_host(*tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of one device in the processor's memory, which waits until the device has computed them."""
    if tensors[0].device.type == "cpu":
        return tensors
    return apart(together(tensors).cpu(), tensors)


def widest_first(tensors: Sequence[Tensor]) -> list[int]:
    """Their order in the copy, in which each begins at a multiple of its numbers' size."""
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())


def together(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all, (N,)."""
    in_order = [tensors[index].contiguous() for index in widest_first(tensors)]
    return torch.cat([tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8) for tensor in in_order])


def apart(copied: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bytes (N,) as what `together` was given."""
    found, start = list(tensors), 0
    for index in widest_first(tensors):
        tensor = tensors[index]
        end = start + tensor.numel() * tensor.element_size()
        found[index], start = copied[start:end].view(tensor.dtype).view(tensor.shape), end
    return found
