"""optimizer.py against torch.optim.AdamW: the same numbers, step by step, and the same files."""
import subprocess
import sys

import pytest
import torch
from optimizer import AdamW


def both(seed=0):
    """Equal parameters under both optimizers, in two groups; the last parameter gets no gradient before the third step."""
    made = []
    for build in (AdamW, torch.optim.AdamW):
        generator = torch.Generator().manual_seed(seed)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,), (2, 2))]
        groups = [{"params": parameters[:2], "weight_decay": 0.3}, {"params": parameters[2:], "weight_decay": 0.0}]
        made.append((parameters, build(groups, lr=0.1, eps=1e-6, betas=(0.8, 0.99))))
    return made


def advance(parameters, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        for number, parameter in enumerate(parameters):
            if number < 2 or step > 2:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / step
        optimizer.step()


def test_the_numbers_are_torchs():
    (mine, ours), (theirs, reference) = both()
    start = [parameter.detach().clone() for parameter in mine]
    for steps in (range(1, 3), range(3, 8)):
        advance(mine, ours, steps)
        advance(theirs, reference, steps)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(mine, start, strict=True))


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0), (0, 0)], ids=["ours to torch", "torch to ours", "ours"])
def test_a_state_goes_on_in_the_other(first, second, tmp_path):
    whole, optimizer = both()[1]
    advance(whole, optimizer, range(1, 8))
    begun, optimizer = both()[first]
    advance(begun, optimizer, range(1, 5))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    ended, optimizer = both(seed=9)[second]
    with torch.no_grad():
        for parameter, earlier in zip(ended, begun, strict=True):
            parameter.copy_(earlier)
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(ended, optimizer, range(5, 8))
    for a, b in zip(ended, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_state_of_other_parameters_is_refused():
    parameters, optimizer = both()[0]
    advance(parameters, optimizer, [1])
    other = AdamW([{"params": [torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(7))], "weight_decay": 0.0},
                   {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "weight_decay": 0.0}], lr=0.1, eps=1e-8)
    with pytest.raises(ValueError, match=r"groups of \[2, 1\] parameters, which are not this run's"):
        other.load_state_dict(optimizer.state_dict())


def test_training_does_not_import_torchs_compiler(repository):
    code = ("import sys, torch, train, model, lora, optimizer\n"
            "gpt2 = lora.add_lora(model.load_pretrained('toy/gpt2'), 3, 7).train()\n"
            "optimizer = train.make_optimizer(gpt2, {'weight_decay': 0.1, 'lr': 0.1, 'adam_epsilon': 1e-8})\n"
            "gpt2(torch.tensor([[5, 6, 7]])).sum().backward()\n"
            "optimizer.step()\n"
            "print('torch._dynamo' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
