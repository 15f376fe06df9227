"""Whether an adapter is put onto the base it was trained on, as far as its file tells.

A file of this project names its base by hashes of the base's numbers, as they were and rounded to bf16 and fp16: so the same
base in a coarser format is known again. A file of PEFT has a name, which is compared in a line alone, since one base has many;
tensors of the base that PEFT saved along have to be its own. Left out: what a file does not tell; names and shapes of the
updates (adapter.py).
"""
import sys

import torch
from torch import Tensor, nn

from adapters.adapter import Adapter
from files.pretrained import short_name
from lora import base_fingerprints

COARSER = (torch.float32, torch.bfloat16, torch.float16)


def check_base(adapter: Adapter, model: nn.Module) -> None:
    """Raises ValueError if the adapter was trained on another base, or holds numbers of the base that differ from the model's.
    What cannot be decided by the file is said in a line on stderr."""
    check_saved_along(adapter, model)
    ours = base_fingerprints(model)
    if adapter.base_fingerprint is None:
        if adapter.base_name and model.known_as and short_name(adapter.base_name) not in model.known_as:
            print(f"{adapter.source}: was trained on a base named '{adapter.base_name}', this one is "
                  f"'{' or '.join(model.known_as)}'; loaded, because one base has many names", file=sys.stderr)
        return
    its = {"float32": adapter.base_fingerprint} | adapter.base_rounded
    if its["float32"] in ours.values() or ours["float32"] in its.values():
        return
    if not adapter.base_rounded and ours["float32"] == ours["bfloat16"]:     # a file of before there were those hashes
        print(f"{adapter.source}: has no hash of its base in bf16, in which this base is: not compared", file=sys.stderr)
        return
    raise ValueError(f"{adapter.source}: the adapter was trained on base {adapter.base_fingerprint}, this model is "
                     f"{ours['float32']}: load the weights that it was trained on")


def own_base(model: nn.Module) -> dict:
    """What an adapter's file says of the base of this model."""
    exact, *rounded = base_fingerprints(model).items()
    return {"base_fingerprint": exact[1], "base_rounded": dict(rounded)}


def check_saved_along(adapter: Adapter, model: nn.Module) -> None:
    """Tensors of the base in an adapter's file are the base's own, or the adapter computes something else than LoRA."""
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.saved_along.items():
        own = parameters[name] if name in parameters else next(iter(parameters.values()))    # the tied output layer
        if tensor.shape != own.shape:
            raise ValueError(f"{adapter.source}: holds '{name}' of shape {list(tensor.shape)}, the base's has "
                             f"{list(own.shape)}: the vocabulary was resized for this adapter; merge it with PEFT on the "
                             "resized base and load the merged model")
        if not same_numbers(tensor, own.detach().cpu()):
            raise ValueError(f"{adapter.source}: holds '{name}', and not as the base has it: it was trained along "
                             "(modules_to_save in PEFT) or is of another base; expected LoRA's matrices, a task head and "
                             "biases alone: load the base it is of, or train it without")


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, or one those of the other in a coarser format."""
    a, b = a.float(), b.float()
    return any(torch.equal(a.to(dtype).float(), b) or torch.equal(a, b.to(dtype).float()) for dtype in COARSER)
