"""The simulated device: what it refuses and counts; on it all of ours runs, gives the CPU's numbers, and starts few kernels.
Run by test_launches.py."""
import pytest
import torch
from torch.nn import functional as F

from adapters.answers import Predictor
from adapters.requests import Request
from experiments.device_checks import CHECKS, ENDS, SEQUENCES, TOLERANCE, bank_of, loss_of, small_gpt2, small_roberta
from experiments.simulated_device import SimulatedDevice
from generation import generate
from lora import add_lora
from speed.transfer import ALIGNED, to_device, to_host
from training.optimizer import make_optimizer
from training.options import Settings


@pytest.fixture(scope="module")
def device():
    with SimulatedDevice() as device:
        yield device


def test_it_refuses_two_devices_and_counts_kernels_waits_and_uploads(device):
    there = torch.arange(6.0).view(2, 3).to("simulated")
    assert there.device.type == "simulated" and there.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    for run, expected in ((lambda: there @ there.T, (1, 0, 0)), (lambda: there.T[1].view(2).add_(1), (1, 0, 0)),
                          (lambda: there[0, 1].item(), (0, 1, 0)), (lambda: there[there > 2], (2, 1, 0)),
                          (lambda: torch.ones(3).to("simulated"), (0, 1, 1)),
                          (lambda: torch.ones(3).to("simulated", non_blocking=True), (0, 0, 1)),
                          (lambda: there[torch.tensor([1])], (1, 0, 1)),
                          (lambda: torch.zeros(3, device="simulated"), (1, 0, 0))):
        with device.counted() as counts:
            run()
        assert (counts.kernels, counts.syncs, counts.uploads) == expected


def test_what_is_copied_together_begins_where_a_device_reads_at_once(device):
    """Between numbers of one, two, four and eight bytes and of odd counts, a scalar and nothing among them."""
    tensors = [torch.arange(3), torch.tensor(True), torch.rand(5, 3), torch.zeros(0), torch.rand(7).bfloat16(), torch.arange(5)]
    with device.counted() as counts:
        there = to_device("simulated", *tensors)
    assert (counts.kernels, counts.syncs, counts.uploads) == (0, 0, 1)
    for tensor, copied in zip(tensors, there, strict=True):
        assert copied.storage_offset() * copied.element_size() % ALIGNED == 0
        assert copied.dtype == tensor.dtype and torch.equal(copied.cpu(), tensor)
    for tensor, copied in zip(tensors, to_host(*there), strict=True):
        assert copied.dtype == tensor.dtype and torch.equal(copied, tensor)
    misaligned = torch.rand(1, 2, 4, 5).to("simulated").flatten()[1:33].view(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="misaligned"):
        F.scaled_dot_product_attention(misaligned, misaligned, misaligned)


@pytest.mark.parametrize("name", CHECKS)
def test_the_device_gives_the_cpus_numbers(device, name):
    assert CHECKS[name]("simulated") <= TOLERANCE


def counts_of_a_step(device, model):
    add_lora(model, rank=3, alpha=7, dropout=0.1).to("simulated").train()
    settings = dict.fromkeys(Settings.__dataclass_fields__) | {"weight_decay": 0.01, "lr": 1e-3, "adam_epsilon": 1e-8}
    optimizer = make_optimizer(model, Settings(**settings))
    for _ in range(2):                                                       # the first makes the optimizer's state
        with device.counted() as counts:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    return counts


@pytest.mark.parametrize("make, dropout, of_a_layer, beside", [
    (small_gpt2, {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}, 59, 40),
    (small_roberta, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}, 59, 45)], ids=["gpt2", "roberta"])
def test_a_training_step_is_one_upload_and_few_kernels(device, make, dropout, of_a_layer, beside):
    few, more = (counts_of_a_step(device, make(layers, **dropout)) for layers in (2, 3))
    assert (more.syncs, more.uploads) == (0, 1)
    assert more.kernels - few.kernels <= of_a_layer and few.kernels - 2 * (more.kernels - few.kernels) <= beside


@pytest.mark.parametrize("search", ["authors", "hf", "greedy", "sample"])
def test_a_token_step_is_read_back_once(device, search):
    model, runs = small_gpt2().eval().to("simulated"), []
    model.transformer.ln_f.register_forward_hook(lambda *_: runs.append(1))
    with device.counted() as counts:
        generate(model, SEQUENCES, beam_size=4, max_new_tokens=20, eos_ids=ENDS, search=search, batch_size=4)
    assert counts.syncs <= len(runs) + 1 and len(runs) > 4


def test_a_mixed_batch_costs_little_more_than_one_adapter_and_is_answered_by_one_copy(device):
    predictor = Predictor(bank_of(small_roberta(layers=8), 2, "simulated"), Tokenizer(), batch_size=4)
    kernels = []
    for names in ("0000", "0101"):
        with device.counted() as counts:
            predictor.answer([Request(name, ids, {}) for name, ids in zip(names, SEQUENCES, strict=True)])
        kernels.append(counts.kernels)
        assert counts.syncs == 1
    assert kernels[1] <= 1.3 * kernels[0]


class Tokenizer:
    vocab_size = 301
