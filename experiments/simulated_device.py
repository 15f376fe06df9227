"""A second device that is not there: tensors that live on "simulated", in the processor's memory, and count what they cost.

    with SimulatedDevice() as device:
        model.to("simulated")
        with device.counted() as counts:
            model(input_ids.to("simulated"))
        print(counts)                                                        # kernels, syncs, uploads

Code runs on it as on any device that is not the CPU: tensors say `device.type == "simulated"`, an operation on tensors of two
devices is refused, and the numbers are right. So where code would fail or wait on a GPU is found without one. Counted are

    kernels    operations that torch dispatches below autograd, but for views and allocations. One that starts several kernels
               on a GPU (the backward pass of a LayerNorm, a list of tensors in torch._foreach_*) is one; so is
               F.scaled_dot_product_attention, one more back, and three for turning a mask of truth values into one of numbers
    syncs      where the processor waits for the device: a number or tensor read back, results whose size depends on numbers
               (nonzero, indexing with truth values), and uploads that are not `non_blocking`
    uploads    copies from the processor's memory to the device's, those of indices included

Left out: time, memory, autocast.
"""
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
ATEN = torch.ops.aten
FREE = {ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.new_empty_strided, ATEN.lift_fresh,
        ATEN._unsafe_view, ATEN.detach, ATEN.set_, ATEN.resize_, ATEN._local_scalar_dense}
READ_BACK = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN._unique2, ATEN.bincount}
ALIGNED = 16                                                                 # bytes: a GPU's attention reads so many at once
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}          # by indices that may lie on the CPU
COPIES = {ATEN._to_copy, ATEN.copy_, ATEN._copy_from}


@dataclass
class Counts:
    kernels: int = 0
    syncs: int = 0
    uploads: int = 0
    of: Counter = field(default_factory=Counter, repr=False)                 # (kind, operation) -> how many

    def add(self, kind: str, operation, number: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + number)
        self.of[kind, str(operation)] += number


class SimulatedTensor(Tensor):
    """A tensor of the simulated device around one in the processor's memory, `inner`."""
    counts = Counts()                                                        # of what runs now

    @staticmethod
    def __new__(cls, inner: Tensor):
        tensor = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=f"{NAME}:0",
                                               storage_offset=inner.storage_offset())
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.scaled_dot_product_attention:
                return attention(*args, **(kwargs or {}))
            if function is Tensor.tolist:
                return args[0].cpu().tolist()
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if is_composed(function):
            return function.decompose(*args, **(kwargs or {}))
        return dispatch(function, args, kwargs or {})

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __repr__(self):
        return f"{NAME} {self.inner!r}"


class SimulatedDevice(TorchDispatchMode):
    """Inside of it tensors can be made on the device."""

    def __init__(self):
        super().__init__()
        register()
        self.lifted = []                                                     # what was set outside

    def __enter__(self):
        self.lifted.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)                            # torch.tensor makes one here, then moves it
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.lifted.pop())
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if is_composed(function):                                            # in inference mode torch leaves that to us
            with self:
                return function.decompose(*args, **(kwargs or {}))
        return dispatch(function, args, kwargs or {})

    @contextmanager
    def counted(self) -> Iterator[Counts]:
        """What the device does inside, counted."""
        outside, SimulatedTensor.counts = SimulatedTensor.counts, Counts()
        try:
            yield SimulatedTensor.counts
        finally:
            SimulatedTensor.counts = outside


@cache
def register() -> None:
    """Tell torch that there is such a device, and that lists of its tensors are computed with as those of a GPU."""
    _setup_privateuseone_for_python_backend(NAME)
    _foreach_utils._foreach_supported_types.append(SimulatedTensor)


def inner(values):
    return tree_map_only(SimulatedTensor, lambda tensor: tensor.inner, values)


def dispatch(function, args: tuple, kwargs: dict):
    """Run an operation on the tensors inside, count it, and wrap what it makes on the device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here, asked = any(isinstance(tensor, SimulatedTensor) for tensor in tensors), kwargs.get("device")
    to = torch.device(asked).type if asked is not None else NAME if here else "cpu"
    if not here and to != NAME:
        return function(*args, **kwargs)
    packet = function.overloadpacket
    if packet not in COPIES and asked is None:                               # else the tensors are only what it is like
        refuse_mixture(packet, args, tensors)
    count(function, args, kwargs, to)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    with torch.inference_mode(args[0].is_inference()) if is_view(function) and here else nullcontext():      # as what it shows
        out = function(*inner(args), **inner(kwargs))
        wrapped = out if to != NAME else tree_map_only(Tensor, SimulatedTensor, out)
    if to != NAME or packet is ATEN.copy_ and not isinstance(args[0], SimulatedTensor):
        return out
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def refuse_mixture(packet, args: tuple, tensors: list[Tensor]) -> None:
    """As CUDA does: a single number may come from the processor's memory, and an index; RuntimeError for other tensors."""
    indices = [index for index in args[1] if index is not None] if packet in INDEXING else []
    strangers = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor) and tensor.dim() > 0
                 and not any(tensor is index for index in indices)]
    if strangers:
        raise RuntimeError(f"{packet} on tensors of two devices: one of shape {list(strangers[0].shape)} is on the CPU, others "
                           f"on {NAME}")


def count(function, args: tuple, kwargs: dict, to: str) -> None:
    packet, counts = function.overloadpacket, SimulatedTensor.counts
    if packet in COPIES:
        target = args[0] if packet is ATEN.copy_ else None
        source = args[1] if packet is ATEN.copy_ else args[0]
        to = to if target is None else target.device.type
        kind = "uploads" if source.device.type != NAME else "syncs" if to != NAME else "kernels"
        counts.add(kind, packet)
        waits = not (kwargs.get("non_blocking") or packet is ATEN.copy_ and args[2:] == (True,))
        if kind == "uploads" and waits:
            counts.add("syncs", "upload that is waited for")
        return
    if packet in INDEXING:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                counts.add("syncs", packet)
            elif index is not None and not isinstance(index, SimulatedTensor):
                counts.add("uploads", packet)
    if packet in READ_BACK:
        counts.add("syncs", packet)
    if packet not in FREE and not is_view(function):
        counts.add("kernels", packet)


@cache
def is_composed(function) -> bool:
    """Whether an operation is made of others, which are what a device computes."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


@cache
def is_view(function) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False, **options) -> Tensor:
    """F.scaled_dot_product_attention, (B, H, T, D) over (B, H, S, D), as a GPU has it: one kernel each way."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        SimulatedTensor.counts.add("kernels", "mask of truth values", 3)
    taken = [tensor for tensor in (query, key, value, attn_mask) if tensor is not None]
    refuse_mixture("attention", (), taken)
    if any(tensor.storage_offset() * tensor.element_size() % ALIGNED for tensor in taken):
        raise RuntimeError(f"attention: misaligned address; expected every tensor from a multiple of {ALIGNED} bytes on")
    SimulatedTensor.counts.add("kernels", "attention")
    options |= {"dropout_p": dropout_p, "is_causal": is_causal}
    if torch.is_grad_enabled():
        return Attention.apply(query, key, value, attn_mask, options)
    return SimulatedTensor(forward(*inner((query, key, value, attn_mask)), options))


def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict) -> Tensor:
    """In memory (B, T, H, D), as a GPU has it."""
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict) -> Tensor:
        with torch.enable_grad():
            ctx.leaves = [tensor.inner.detach().requires_grad_() for tensor in (query, key, value)]
            ctx.out = forward(*ctx.leaves, inner(mask), options)
        return SimulatedTensor(ctx.out.detach())

    @staticmethod
    def backward(ctx, gradient: Tensor):
        SimulatedTensor.counts.add("kernels", "attention, backward")
        gradients = torch.autograd.grad(ctx.out, ctx.leaves, gradient.inner)
        like = [torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype).copy_(taken)
                for leaf, taken in zip(ctx.leaves, gradients, strict=True)]
        return *map(SimulatedTensor, like), None, None
