"""training/optimizer.py: what decays, and states that earlier runs saved."""
import torch

import lora
import model as M
from methods import apply_method
from tests.test_model import ODD_GPT2
from toy.fresh import init_weights
from training.command_line import parse_arguments
from training.optimizer import make_optimizer
from training.options import resolve
from training.recipes import recipe_for


def settings(*more):
    options = parse_arguments(["--model", "M", "--task", "e2e", "--method", "full", "--weight-decay", "0.3", *more])
    return resolve(options, recipe_for(M.GPT2Config(), "e2e", "full", "paper"))


def small_gpt2(seed=0):
    model = M.GPT2(M.GPT2Config(**ODD_GPT2))
    init_weights(model, seed)
    return model


def test_matrices_decay_and_biases_and_layer_norms_do_not():
    model = small_gpt2()
    apply_method(model, "full")
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, settings()).param_groups
    assert decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0 and len(names) == len(
        decayed["params"] + others["params"])
    assert all(names[parameter].endswith(".bias") or ".ln_" in names[parameter] for parameter in others["params"])
    assert {"transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"} <= {names[p] for p in decayed["params"]}


def test_only_what_trains_is_optimized():
    model = lora.add_lora(small_gpt2(), 3, 7)
    (group,) = make_optimizer(model, settings()).param_groups                # A and B, all of them matrices
    assert len(group["params"]) == 3 * 2 * 2 and all(parameter.requires_grad for parameter in group["params"])


def test_a_state_of_an_earlier_version_goes_on():
    """Until now the project wrote AdamW out, with fewer keys in its groups; the moments are torch's."""
    model = lora.add_lora(small_gpt2(), 3, 7)
    optimizer = make_optimizer(model, settings())
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    saved = optimizer.state_dict()
    old_keys = ("params", "lr", "eps", "betas", "weight_decay")
    old = {"state": saved["state"], "param_groups": [{key: group[key] for key in old_keys} for group in saved["param_groups"]]}
    again = make_optimizer(model, settings())
    again.load_state_dict(old)
    assert all(torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
               for parameter in optimizer.param_groups[0]["params"])
    again.step()
