"""AdamW (Loshchilov and Hutter 2019), the optimizer of both of the paper's training recipes, and its learning rate.

    m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
    p = p - lr wd p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Left out: other optimizers and schedules, which no recipe here uses.
"""
import math

from torch import nn, optim

from training.options import Settings


class Schedule:
    """Learning rate of every step: linear to `lr` over the warm-up, then linear to 0. The first rate is lr / warmup or, as in
    transformers and so in the authors' scripts, 0 (warmup_from). A warm-up given in steps is cut to a tenth of a run that has
    fewer than ten times as many."""

    def __init__(self, settings: Settings, steps_per_epoch: int):
        self.lr, warmup, self.warmup_from = settings.lr, settings.warmup, settings.warmup_from
        self.steps_per_epoch = steps_per_epoch
        self.steps = settings.max_steps or settings.epochs * steps_per_epoch
        self.warmup = math.ceil(warmup * self.steps if warmup < 1 else min(warmup, 0.1 * self.steps))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + self.warmup_from) / self.warmup
        return self.lr * max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))


def make_optimizer(model: nn.Module, settings: Settings) -> optim.AdamW:
    """AdamW on what trains; no decay on biases and LayerNorms, as both of the authors' training scripts end up doing."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for _, parameter in trained if parameter.dim() > 1]
    others = [parameter for _, parameter in trained if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, eps=settings.adam_epsilon, fused=True)
