"""What decoding keeps from step to step: keys and values of every layer, and weights that lie as its products read them.

Left out: caches that grow, as a search knows its longest text beforehand. Shapes: B rows, H heads, T new tokens, S cached
positions, D head size.
"""
import torch
from torch import Tensor, nn


def lay_out_for_decoding(model: nn.Module) -> None:
    """Store GPT-2's weights as (out, in) in memory, so that `linear` can use oneDNN; shapes and numbers stay."""
    with torch.inference_mode(False):                                        # else the weights could not be trained again
        for module in model.modules():
            if getattr(module, "stored_transposed", False) and module.weight.device.type == "cpu":
                module.weight.data = module.weight.data.T.contiguous().T


class KVCache:
    """Keys and values of every layer. New ones stand after the earlier, or in slots that nothing attends to any more;
    none is ever moved for the sake of an order. config: a GPT2Config."""

    def __init__(self, config, batch: int, capacity: int, device=None, dtype=torch.float32):
        shape = (config.n_layer, batch, config.n_head, capacity, config.n_embd // config.n_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length, self.slots = 0, None

    def reuse(self, slots: Tensor, length: int) -> None:
        """The next tokens take slots (B, T) among the first `length`, instead of places after the earlier ones."""
        begin = self.length
        for kept in (self.keys, self.values):                                # a row may leave new slots unused, and what is
            kept[:, :, :, begin:length] = 0                                  # masked must still be a number: 0 * NaN is NaN
        self.slots, self.length = slots, length - slots.shape[1]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) after what is there, or to `slots`; return all, (B, H, S, D). The model advances `length`."""
        end = self.length + keys.shape[2]
        if self.slots is None:
            self.keys[layer, :, :, self.length:end] = keys
            self.values[layer, :, :, self.length:end] = values
        else:
            index = self.slots[:, None, :, None].expand_as(keys)             # (B, T) -> (B, H, T, D)
            self.keys[layer].scatter_(2, index, keys)
            self.values[layer].scatter_(2, index, values)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: list[int]) -> None:
        """Keep these rows of the batch, in ascending order; they move up in place, so this takes no new memory."""
        for new, old in enumerate(rows):
            if new != old:
                self.keys[:, new, :, :self.length] = self.keys[:, old, :, :self.length]
                self.values[:, new, :, :self.length] = self.values[:, old, :, :self.length]
        self.keys, self.values = self.keys[:, :len(rows)], self.values[:, :len(rows)]
