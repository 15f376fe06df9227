"""What has to hold on every device: the same losses, gradients, texts and answers as on the CPU. Small models, random weights.

    for name, check in CHECKS.items():
        print(name, check("cuda"))                                           # how far the device is from the CPU, or an error

experiments/gpu.py runs them on a GPU, the tests on experiments/simulated_device.py. Left out: speed.
"""
import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from adapters import AdapterBank
from adapters.bank import BankAdapter
from generation import generate
from lora import add_lora
from methods import apply_method
from model import GPT2, GPT2Config, RobertaClassifier, RobertaConfig
from speed.loss import target_loss
from speed.packed import pack
from toy.fresh import init_weights

SEQUENCES = [[7, 8, 9], [11, 12, 13], [5, 6, 7, 8, 9, 10, 20], [30, 31, 32, 33, 34, 35, 36, 37, 38]]
ENDS = (1, 7, 99, 200)
TOLERANCE = 2e-4                                                             # of fp32 numbers about as large as 1


def small_gpt2(layers: int = 3, **dropout: float) -> GPT2:
    off = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0) | dropout
    model = GPT2(GPT2Config(vocab_size=301, n_positions=128, n_embd=48, n_layer=layers, n_head=4, n_inner=72,
                            initializer_range=0.2, **off))
    init_weights(model, seed=1)
    return model


def small_roberta(layers: int = 3, **dropout: float) -> RobertaClassifier:
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0) | dropout
    model = RobertaClassifier(RobertaConfig(vocab_size=301, max_position_embeddings=130, hidden_size=48, num_labels=3,
                                            num_hidden_layers=layers, num_attention_heads=4, intermediate_size=72, **off))
    init_weights(model, seed=2)
    return model


def with_numbers_in_B(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def loss_of(model: nn.Module, sequences: Sequence[list[int]] = SEQUENCES) -> torch.Tensor:
    """A batch as training/tasks.py lays it out: the next tokens of a GPT-2, classes of a RoBERTa; summed."""
    device = next(model.parameters()).device
    ids, attend = pack(sequences, model.causal, device)
    starts = attend.starts[:len(sequences)].tolist()
    if model.head:
        labels = torch.arange(len(sequences)) % 3
        ids, firsts, labels = attend.send(device, ids, torch.tensor(starts), labels)
        return F.cross_entropy(model.classifier(model.hidden_states(ids, attend, firsts)), labels, reduction="sum")
    wanted = torch.cat([torch.arange(start, start + len(own) - 1) for start, own in zip(starts, sequences, strict=True)])
    targets = torch.tensor([token for own in sequences for token in own[1:]])
    ids, wanted, targets = attend.send(device, ids, wanted, targets)
    return target_loss(model.hidden_states(ids, attend, wanted), model.transformer.wte.weight, targets, 0.1)


def training(device: str, make: Callable[[], nn.Module], method: str) -> float:
    """Loss and gradients of one batch: the largest difference, as a share of the largest number."""
    model = make()
    apply_method(model, method, rank=3, alpha=7)
    there = copy.deepcopy(with_numbers_in_B(model).train()).to(device)
    found = []
    for each in (model, there):
        loss = loss_of(each)
        loss.backward()
        found.append([loss.detach().cpu(), *(parameter.grad.cpu() for parameter in each.parameters()
                                             if parameter.grad is not None)])
    return largest_difference(*found)


def odd_batch(device: str) -> float:
    """Three texts with a number each to be told, as STS-B's: how far their logits are from the CPU's. Behind three indices of
    eight bytes and before three numbers of four the mask begins where nothing is aligned by itself."""
    model = small_roberta().train()
    found = []
    for there in ("cpu", device):
        ids, attend = pack(SEQUENCES[:3], False, there)
        ids, firsts, _ = attend.send(there, ids, attend.starts[:3], torch.rand(3))
        each = copy.deepcopy(model).to(there)
        found.append([each.classifier(each.hidden_states(ids, attend, firsts)).detach().cpu()])
    return largest_difference(*found)


def largest_difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-3)).item() for a, b in zip(ours, theirs, strict=True))


def texts(device: str, search: str) -> float:
    """The share of texts that differ."""
    model = small_gpt2().eval()
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(301, (length,), generator=generator).tolist() for length in (20, 31, 25, 27, 40, 38)]
    options = {"beam_size": 5, "max_new_tokens": 24, "eos_ids": ENDS, "search": search, "seed": 1, "batch_size": 4}
    here = generate(model, prompts, **options)
    there = generate(copy.deepcopy(model).to(device), prompts, **options)
    return sum(a != b for a, b in zip(here, there, strict=True)) / len(prompts)


def bank_of(model: nn.Module, count: int, device: str) -> AdapterBank:
    """`count` adapters of ranks 2, 3, 2, 3, ... with heads of their own."""
    bank = AdapterBank(model.to(device))
    for number in range(count):
        generator, rank = torch.Generator().manual_seed(number), 2 + number % 2
        updates = {target: tuple(0.2 * torch.randn(model.config.num_layers, rank, size, generator=generator).to(device)
                                 for size in (48, 48)) for target in ("q", "v")}
        head = copy.deepcopy(small_roberta().classifier).to(device).eval() if model.head else None
        bank.add(str(number), BankAdapter("mnli", updates, head))
    return bank


def mixed(device: str, make: Callable[[], nn.Module]) -> float:
    """Logits of rows with different adapters, the base among them where it has an answer."""
    names = ["0", "1", "0", "2" if make().head else "base"]
    found = [bank_of(make(), 3, where).logits_of(names, SEQUENCES) for where in ("cpu", device)]
    return largest_difference(found[0], [logits.cpu() for logits in found[1]])


def bank_texts(device: str) -> float:
    prompts = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]
    found = [bank_of(small_gpt2(), 3, where).generate(["0", "1", "2"], prompts, beam_size=4, max_new_tokens=12, eos_ids=ENDS)
             for where in ("cpu", device)]
    return sum(a != b for a, b in zip(*found, strict=True)) / len(prompts)


def repeats(device: str) -> float:
    """The same step twice, with dropout: how far the gradients are apart. A CPU promises 0."""
    found = []
    for _ in range(2):
        model = with_numbers_in_B(add_lora(small_gpt2(resid_pdrop=0.1), rank=3, alpha=7)).to(device).train()
        torch.manual_seed(0)
        loss_of(model).backward()
        found.append([parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None])
    return largest_difference(*found)


CHECKS: dict[str, Callable[[str], float]] = {
    **{f"training, {family}, {method}": lambda device, make=make, method=method: training(device, make, method)
       for family, make in (("gpt2", small_gpt2), ("roberta", small_roberta))
       for method in ("lora", "full", "prefix", "adapter-h")},
    "training, an odd batch with numbers to tell": odd_batch,
    **{f"texts that differ, {search}": lambda device, search=search: texts(device, search)
       for search in ("authors", "hf", "greedy", "sample")},
    "mixed adapters, gpt2": lambda device: mixed(device, small_gpt2),
    "mixed adapters, roberta": lambda device: mixed(device, small_roberta),
    "texts that differ, mixed adapters": bank_texts,
    "the same step twice": repeats,
}
