"""weights.py: what is finite is found without float64, which Apple's GPUs do not have. Damaged files are in test_fuzz.py."""
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from files.weights import FLOATS, check_finite


class NoFloat64(TorchDispatchMode):
    """Every operation whose result is float64 fails, as on MPS."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
                raise TypeError(f"{function} made a float64 tensor")
        return results


def test_the_watch_sees_float64():
    with NoFloat64(), pytest.raises(TypeError, match="made a float64 tensor"):
        torch.ones(3).sum(dtype=torch.float64)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_wrong_number_is_found_wherever_it_is(dtype, wrong):
    for place in (0, 1, 511, 1000):
        tensor = torch.randn(1001, generator=torch.Generator().manual_seed(place)).to(dtype)
        tensor[place] = wrong
        with NoFloat64() if dtype in FLOATS else torch.no_grad(), \
                pytest.raises(ValueError, match="'b' holds 1 NaN or infinite numbers of 1001, expected finite ones; advice"):
            check_finite({"a": torch.ones(2), "b": tensor}, "file", "advice")


def test_infinities_that_cancel_are_found():
    with NoFloat64(), pytest.raises(ValueError, match="holds 2 NaN or infinite numbers of 3"):
        check_finite({"a": torch.tensor([math.inf, 1.0, -math.inf])}, "file")


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_finite_numbers_are_finite_however_large_their_sum(dtype):
    largest = torch.finfo(dtype).max
    tensors = {"sum": torch.full((70, 3), largest, dtype=dtype),
               "both": torch.tensor([largest, largest, -largest, -largest], dtype=dtype),
               "empty": torch.empty(0, 4, dtype=dtype), "one": torch.tensor(-largest, dtype=dtype)}
    with NoFloat64() if dtype in FLOATS else torch.no_grad():
        check_finite(tensors, "file")
        check_finite({"ids": torch.arange(5), "mask": torch.tensor([True])}, "file")
