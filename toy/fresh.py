"""The weights of a model that nothing has trained: where pretraining starts, and what benchmarks and tests compute with.

Left out: a fresh task head on a pretrained model (files/pretrained.py).
"""
import torch
from torch import nn


def init_weights(model: nn.Module, seed: int) -> None:
    """Fresh weights: N(0, initializer_range), biases 0, LayerNorm 1 and 0; GPT-2's residual projections are smaller by
    sqrt(2 * layers) (Radford et al. 2019, section 2.3)."""
    generator, std = torch.Generator().manual_seed(seed), model.config.initializer_range
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            elif getattr(module, "weight", None) is not None:
                residual = (2 * model.config.num_layers) ** 0.5 if name.endswith("c_proj") else 1.0
                module.weight.normal_(0.0, std / residual, generator=generator)
                if getattr(module, "padding_idx", None) is not None:
                    module.weight[module.padding_idx].zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
