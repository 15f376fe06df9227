"""AdamW (Loshchilov and Hutter 2019), the optimizer of both of the paper's training recipes, and its learning rate.

    m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
    p = p - lr wd p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

torch.optim.AdamW computes the same by the same fused kernel; but making one imports torch's compiler, two seconds and a
hundred megabytes that a short run on a CPU feels. State and names are torch's, so the files of either load into the other.

Left out: everything but fp32 parameters on one device, and options that no recipe here uses.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AdamW:
    """param_groups: dicts with "params" and "weight_decay", each with its own "lr", which the loop sets before a step."""

    def __init__(self, param_groups: Sequence[dict], lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999)):
        self.param_groups = [{"lr": lr, "eps": eps, "betas": betas, **group} for group in param_groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}               # moments exist from a parameter's first step

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if parameter not in self.state:
                    self.state[parameter] = {"step": torch.zeros((), device=parameter.device),
                                             "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            if parameters:
                averages, squares, steps = ([self.state[parameter][name] for parameter in parameters]
                                            for name in ("exp_avg", "exp_avg_sq", "step"))
                torch._foreach_add_(steps, 1)
                torch._fused_adamw_(parameters, [parameter.grad for parameter in parameters], averages, squares, [], steps,
                                    lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
                                    weight_decay=group["weight_decay"], amsgrad=False, maximize=False)

    def numbered(self) -> dict[nn.Parameter, int]:
        return {parameter: number for number, parameter in
                enumerate(parameter for group in self.param_groups for parameter in group["params"])}

    def state_dict(self) -> dict:
        """Moments by the parameters' numbers in the order of the groups, as torch's optimizers write them."""
        numbers = self.numbered()
        groups = [group | {"params": [numbers[parameter] for parameter in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[parameter]: dict(moments) for parameter, moments in self.state.items()},
                "param_groups": groups}

    def load_state_dict(self, state: dict) -> None:
        """Take the moments and settings of a state_dict. Raises ValueError if its parameters are not as many or as large."""
        numbers = self.numbered()
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != [len(group["params"]) for group in self.param_groups] or any(
                state["state"][number]["exp_avg"].shape != parameter.shape for parameter, number in numbers.items()
                if number in state["state"]):
            raise ValueError(f"the optimizer's state is of groups of {sizes} parameters, which are not this run's")
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group |= {name: value for name, value in saved.items() if name in group and name != "params"}
        self.state = {parameter: {name: state["state"][number][name].to(parameter.device, copy=True)
                                  for name in ("step", "exp_avg", "exp_avg_sq")}
                      for parameter, number in numbers.items() if number in state["state"]}


class Schedule:
    """Learning rate of every step: linear from 0 to `lr` over the warm-up, then linear to 0. A warm-up given in steps
    is cut to a tenth of a run that has fewer than ten times as many."""

    def __init__(self, settings: dict, steps_per_epoch: int):
        self.lr, warmup = settings["lr"], settings["warmup"]
        self.steps = settings["max_steps"] or settings["epochs"] * steps_per_epoch
        self.warmup = math.ceil(warmup * self.steps if warmup < 1 else min(warmup, 0.1 * self.steps))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * step / self.warmup
        return self.lr * max(0.0, (self.steps - step) / max(1, self.steps - self.warmup))


def make_optimizer(model: nn.Module, settings: dict) -> AdamW:
    """AdamW on what trains; no decay on biases and LayerNorms, as both of the authors' training scripts end up doing."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for _, parameter in trained if parameter.dim() > 1]
    others = [parameter for _, parameter in trained if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=settings["lr"], eps=settings["adam_epsilon"])
