"""The core idea of LoRA with real tensors, in about half a minute (Hu et al. 2021, section 4).

    python -m experiments.tour              (what `make tour` runs)
    python -m experiments.tour --rank 1     its second half: the reader's own change; also --targets, --lr, several at a time

Eight short sections on the toy GPT-2 and the toy record-to-text task: a frozen weight, A and B beside it, what trains,
one step, more steps, merging and back, the adapter as a file, and the same prompts before and after. Every number is
computed where it is printed, with the functions that train.py and decode.py use.

Left out: evaluation, label smoothing, dropout, warm-up and beam search, which a run has and the idea does not need.
"""
import argparse
import io
import math
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from adapters import load_adapter, save_adapter
from data import encode_e2e, length_grouped_batches, read_e2e
from files import cli
from files.tokenizer import Tokenizer, load_tokenizer
from generation import generate
from lora import TARGETS, LoRALinear, add_lora, lora_layers, merge, unmerge
from model import GPT2, load_pretrained
from toy import world

BASE, DATA = Path("toy/gpt2"), Path("toy/data")                              # run from the repository's root
RANK, ALPHA = 4, 32
LR, BATCH_SIZE, STEPS = 5e-3, 8, 200
WIDTH = 78
SHOWN, COUNTED = 2, 40                                                       # test records: with their text, in the share


def heading(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n{'-' * (len(text) + 3)}")


def tell(text: str) -> None:
    """Print a paragraph, wrapped."""
    print(textwrap.fill(" ".join(text.split()), WIDTH))


def show(name: str, value: str, meaning: str = "") -> None:
    """Print a line of figures: what it is, the number, and what the number says."""
    print(f"    {name:<20}{value:<22}{meaning}".rstrip())


# ---------------------------------------------------------------- what the tour looks at

def first_layer(model: GPT2) -> LoRALinear:
    """The layer of the first block that makes q, k and v."""
    return model.transformer.h[0].attn.c_attn


def delta(layer: LoRALinear, target: str = "q") -> Tensor:
    """The whole update (alpha / r) B A, (d_out, d_in). Only the tour and merge() ever build it."""
    return (layer.scale * layer.lora_B[target] @ layer.lora_A[target]).detach()


def rank_of(matrix: Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix))


@torch.no_grad()
def logits_of(model: GPT2, prompts: list[list[int]]) -> Tensor:
    """(N, V): what the model says of the token after each prompt."""
    return torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])


def texts_of(model: GPT2, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[str]:
    """What the model writes after each prompt, greedily."""
    found = generate(model, prompts, search="greedy", no_repeat_ngram_size=0, max_new_tokens=80, eos_ids=(tokenizer.eos_id,))
    return [tokenizer.decode(ids).strip() for ids in found]


def loss_of(model: GPT2, samples: list[tuple[list[int], int]]) -> Tensor:
    """Mean loss per token of the references, given their records; tasks.py has the same for less memory."""
    input_ids = pad_sequence([torch.tensor(ids[:-1]) for ids, _ in samples], batch_first=True)              # (B, T)
    targets = pad_sequence([torch.tensor([-100] * (context_length - 1) + ids[context_length:])
                            for ids, context_length in samples], batch_first=True, padding_value=-100)      # (B, T)
    return F.cross_entropy(model(input_ids).flatten(0, 1), targets.flatten())  # -100: nothing is asked there


def train(model: GPT2, optimizer: torch.optim.Optimizer, samples: list[tuple[list[int], int]], steps: int) -> Iterator[float]:
    """The loss of each of `steps` steps, at a learning rate that falls from the optimizer's to 0."""
    batches = length_grouped_batches([len(ids) for ids, _ in samples], BATCH_SIZE, seed=0, epoch=0)
    lr = optimizer.param_groups[0]["lr"]
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - (step - 1) / steps)
        loss = loss_of(model, [samples[index] for index in batches[step % len(batches)]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def optimizer_of(model: GPT2, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)


# ---------------------------------------------------------------- the sections

def a_frozen_weight(model: GPT2) -> None:
    heading(1, "A frozen weight")
    weight = first_layer(model).weight.detach().T                            # (3 C, C): GPT-2's files hold it transposed
    W_q = weight[:weight.shape[1]]
    tell("A pretrained model is a pile of matrices. Here is the one that makes the queries of the first block; in GPT-2 "
         "it is the first third of c_attn, which makes q, k and v in one product.")
    show("W_q", f"{W_q.shape[0]} x {W_q.shape[1]}", f"{W_q.numel():,} numbers")
    show("its corner", " ".join(f"{number:+.2f}" for number in W_q[0, :3]) + " ...")
    show("its rank", str(rank_of(W_q)), "full: no row is a mix of others")
    tell("Fine-tuning would change every one of these numbers. LoRA changes none.")


def two_thin_matrices(model: GPT2, prompts: list[list[int]]) -> None:
    heading(2, "Two thin matrices beside it:  h = W x + (alpha / r) B A x")
    before = logits_of(model, prompts)
    add_lora(model, RANK, ALPHA, targets=("q", "v"), init="gaussian", seed=0)
    layer = first_layer(model)
    A, B = layer.lora_A["q"].detach(), layer.lora_B["q"].detach()
    show("A", f"{A.shape[0]} x {A.shape[1]}", f"random, of size {A.std():.2f}")
    show("B", f"{B.shape[0]} x {B.shape[1]}", f"zero: {int(B.count_nonzero())} of {B.numel()} are not 0")
    show("alpha / r", f"{ALPHA} / {RANK} = {layer.scale:g}", "the scale of the update")
    show("(alpha / r) B A", f"{B.shape[0]} x {A.shape[1]}", f"of rank {rank_of(delta(layer))}, because B is zero")
    show("numbers in A and B", f"{A.numel() + B.numel():,}", f"instead of {delta(layer).numel():,}")
    difference = (logits_of(model, prompts) - before).abs().max().item()
    show("logits moved by", f"{difference:g}", "so it starts as the base, exactly")


def what_trains(model: GPT2) -> None:
    heading(3, "What trains")
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    layers = lora_layers(model)
    updates = sum(len(layer.targets) for layer in layers.values())
    width = model.config.n_embd
    show("frozen", f"{frozen:,}", "the whole base")
    show("trained", f"{trained:,}", f"{trained / (trained + frozen):.2%} of all")
    show("= updates x 2 r d", f"{updates} x 2 x {RANK} x {width}", f"q and v in {len(layers)} blocks")
    tell("Adam keeps two more numbers for each trained one, so the optimizer shrinks with them. Activations shrink less: the "
         "input of a frozen layer need not be kept, but the gradient still travels through the whole model.")


def one_step(model: GPT2, optimizer: torch.optim.Optimizer, samples: list[tuple[list[int], int]]) -> None:
    heading(4, "One step of training")
    layer = first_layer(model)
    loss = loss_of(model, samples)
    loss.backward()
    A, B = layer.lora_A["q"], layer.lora_B["q"]
    show("loss", f"{loss.item():.3f}", f"on {len(samples)} samples, the mean of -ln p")
    show("typical p", f"{math.exp(-loss.item()):.0%}", "for the token that really follows")
    show("gradient of W", str(layer.weight.grad), "it is frozen")
    show("gradient of A", f"{A.grad.norm():g}", "it comes through B, which is 0")
    show("gradient of B", f"{B.grad.norm():.4f}", "so B moves first")
    optimizer.step()
    optimizer.zero_grad()
    show("rank of the update", str(rank_of(delta(layer))), f"r: B has {RANK} columns")
    show("loss now", f"{loss_of(model, samples).item():.3f}", "on the same samples")


def more_steps(model: GPT2, optimizer: torch.optim.Optimizer, samples: list[tuple[list[int], int]], steps: int) -> list[float]:
    """Train for `steps` steps; the losses, one per step."""
    heading(5, f"{steps} steps more")
    layer, started, losses = first_layer(model), time.perf_counter(), []
    W_q = layer.rows_of_weight("q").detach()
    every = max(1, steps // 5)
    print("    step    loss, mean of the last    |update| / |W_q|    seconds")
    for step, loss in enumerate(train(model, optimizer, samples, steps), 1):
        losses.append(loss)
        if step % every == 0:
            print(f"    {step:4d}    {sum(losses[-every:]) / every:<25.3f} {delta(layer).norm() / W_q.norm():<19.3f} "
                  f"{time.perf_counter() - started:.0f}", flush=True)
    tell("|update| / |W_q| says how large (alpha / r) B A has grown beside the weight that it corrects, both as the root "
         "of the sum of squares.")
    show("rank of the update", str(rank_of(delta(layer))), "it cannot have more than r")
    return losses


def merge_and_back(model: GPT2, prompts: list[list[int]]) -> None:
    heading(6, "Merge, and back")
    layer = first_layer(model)
    apart, weight = logits_of(model, prompts), layer.weight.detach().clone()
    merge(model)
    merged = logits_of(model, prompts)
    tell("merge() adds every update to its weight, W + (alpha / r) B A. The model then has the base's shape and speed; "
         "sums in another order differ in the last digits.")
    show("W moved by", f"{(layer.weight - weight).abs().max():.2f}", f"at most; its numbers go up to {weight.abs().max():.1f}")
    show("logits moved by", f"{(merged - apart).abs().max():.0e}", f"at most, of {apart.abs().max():.0f}: rounding")
    unmerge(model)
    same = torch.equal(layer.weight, weight) and torch.equal(logits_of(model, prompts), apart)
    show("after unmerge()", "the same bits" if same else "OTHER BITS", "in the weight and the logits")


def as_a_file(model: GPT2, prompts: list[list[int]]) -> None:
    heading(7, "The adapter as a file")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, str(BASE), "e2e")
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        with redirect_stderr(io.StringIO()):
            fresh = load_adapter(load_pretrained(BASE), folder)
    whole = 4 * sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" not in name)
    show("the base, fp32", f"{whole / 1024:,.0f} KiB", "once, for all tasks")
    show("the adapter", f"{size / 1024:,.0f} KiB", "for each task")
    difference = (logits_of(fresh, prompts) - logits_of(model, prompts)).abs().max().item()
    show("on a fresh base", f"{difference:.0e}", "the largest difference of a logit")


def before_and_after(records: list[str], before: list[str], after: list[str]) -> None:
    heading(8, "The same prompts, before and after")
    for record, *texts in list(zip(records, before, after, strict=True))[:SHOWN]:
        for name, text in zip(("record", "before", "after"), (record, *texts), strict=True):
            print(textwrap.fill(f"{name}: {text}", WIDTH, initial_indent=" " * (4 + len("record") - len(name)),
                                subsequent_indent=" " * 12))
        print()
    shares = [100 * sum(map(world.value_share, records, texts)) / len(records) for texts in (before, after)]
    show("values in the text", f"{shares[0]:.0f} % -> {shares[1]:.0f} %", f"of {len(records)} records not in training")


# ---------------------------------------------------------------- the second half: a change of the reader's own

LOOK_AT = {
    "rank": "Look at the trained numbers beside the values in the text: how much of the score is lost with most of the numbers "
            "gone? And at the scale: alpha stayed, so another rank makes the update weigh more or less, too.",
    "targets": "Look at the loss beside the trained numbers: is it their number that counts, or which they are? q and k only "
               "choose where attention looks; v and o, fc and proj change what it brings and what becomes of it.",
    "lr": "Look at |update| / |W|. Near 0, B has hardly left its zeros, and the text is still the base's; as large as the "
          "weight or larger, the update has drowned it. The first steps' loss shows a bad rate long before the last does."}


def changed(samples: list[tuple[list[int], int]], tokenizer: Tokenizer, records: list[str], steps: int, rank: int,
            targets: list[str], lr: float) -> tuple[dict[str, str], str]:
    """Train a fresh base with these settings: what there is to look at, by name, and what it then writes for a record."""
    with redirect_stderr(io.StringIO()):
        model = load_pretrained(BASE)
    add_lora(model, rank, ALPHA, targets=targets, init="gaussian", seed=0)
    losses = list(train(model, optimizer_of(model, lr), samples, steps))
    name, layer = next(iter(lora_layers(model).items()))
    target, tenth = next(iter(layer.targets)), max(1, steps // 10)
    weight = layer.rows_of_weight(target).detach()
    texts = texts_of(model, tokenizer, [tokenizer.encode(record) + [tokenizer.eos_id] for record in records])
    share = sum(map(world.value_share, records, texts)) / len(records)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"settings": f"rank {rank}, {' '.join(targets)}, {lr:g}", "trained": f"{trained:,}",
            "alpha / r": f"{layer.scale:g}", "loss, first tenth": f"{sum(losses[:tenth]) / tenth:.3f}",
            "loss, last tenth": f"{sum(losses[-tenth:]) / tenth:.3f}",
            "|update| / |W|": f"{delta(layer, target).norm() / weight.norm():.3f}",
            "values in the text": f"{100 * share:.0f} %"}, texts[0]


def your_change(samples: list[tuple[list[int], int]], tokenizer: Tokenizer, records: list[str], steps: int,
                change: dict) -> None:
    heading(9, f"Your change: {', '.join(change)}")
    tell(f"Twice {steps} steps from the same base on the same samples: once as in section 5, once with what you gave.")
    given = {"rank": RANK, "targets": ["q", "v"], "lr": LR}
    (before, old), (after, new) = (changed(samples, tokenizer, records, steps, **settings)
                                   for settings in (given, given | change))
    print(f"    {'':<20}{'as above':<22}yours")
    for name in before:
        show(name, before[name], after[name])
    print()
    for name, text in (("record", records[0]), ("above", old), ("yours", new)):
        print(textwrap.fill(f"{name}: {text}", WIDTH, initial_indent=" " * (4 + len("record") - len(name)),
                            subsequent_indent=" " * 12))
    print()
    for name in change:
        tell(LOOK_AT[name])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.tour", description="LoRA with real tensors, in half a minute.")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training in section 5 (default {STEPS})")
    parser.add_argument("--rank", type=int, help="this and the next two: run the second half, with a change of yours")
    parser.add_argument("--targets", nargs="+", help=f"any of {' '.join(TARGETS[:6])}")
    parser.add_argument("--lr", type=float)
    options, started = parser.parse_args(arguments), time.perf_counter()
    change = {name: value for name, value in vars(options).items() if name != "steps" and value is not None}
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):     # their reports are not part of the lesson
        world.write_tasks(DATA)
        model, tokenizer = load_pretrained(BASE), load_tokenizer(BASE)
    samples = [encode_e2e(tokenizer, record, text) for record, text in read_e2e("train", DATA)]
    records = list(dict.fromkeys(record for record, _ in read_e2e("test", DATA)))[:COUNTED]
    if change:
        your_change(samples, tokenizer, records, options.steps, change)
        print(f"\nThat took {time.perf_counter() - started:.0f} s.")
        return 0
    prompts = [tokenizer.encode(record) + [tokenizer.eos_id] for record in records]

    print("LoRA in half a minute, on a GPT-2 small enough for it\n")
    tell(f"The model knows the language of a small made-up world ({sum(p.numel() for p in model.parameters()):,} "
         "parameters, toy/README.md). The task: turn a record into a sentence or two that invite. It has never seen one.")
    before = texts_of(model, tokenizer, prompts)
    a_frozen_weight(model)
    two_thin_matrices(model, prompts)
    what_trains(model)
    optimizer = optimizer_of(model, LR)
    one_step(model, optimizer, samples[:BATCH_SIZE])
    more_steps(model, optimizer, samples, options.steps)
    merge_and_back(model, prompts)
    as_a_file(model, prompts)
    before_and_after(records, before, texts_of(model, tokenizer, prompts))
    print(f"\nThat was all of lora.py, in {time.perf_counter() - started:.0f} s. Its second half is a change of yours:\n")
    for change, why in (("--rank 1", "the smallest update there is"), ("--targets k", "another matrix"),
                        ("--lr 0.5", "a rate that is too high; 1e-5 is too low")):
        print(f"    {f'make tour ARGS={change!r}':<32}{why}")
    print("\nThen: make demo, and README.md.")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)                                                 # more gain nothing for so small a model
    cli.run(main)
