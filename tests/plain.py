"""The training step as one would write it first, to compare the fast one with: padding, logits at every position, torch's
own cross-entropy, attention by its formula, LoRA's update as a whole matrix. Dropout has to be 0: the two draw differently.

    python -m tests.plain --model DIR --data-dir D --batch-size 4        # 50 steps of both on real data: losses side by side
"""
import argparse
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

import lora
import model as M
import train
from methods import apply_method
from training import run_state


def lora_forward(layer: lora.LoRALinear, x: Tensor) -> Tensor:
    """x (W + (alpha / r) B A)^T + b, the whole update built."""
    weight = (layer.weight.T if layer.stored_transposed else layer.weight).clone()
    for target, rows in layer.targets.items():
        weight[rows] += layer.scale * layer.lora_B[target] @ layer.lora_A[target]
    return F.linear(x, weight, layer.bias)


def plain_lora():
    return mock.patch.object(lora.LoRALinear, "forward", lora_forward)


def plain_loss(model: torch.nn.Module, task, indices: list[int]) -> Tensor:
    """Mean loss of training samples, in the order given, padded on the right to the longest."""
    samples = [task.train[index] for index in indices]
    length = max(len(ids) for ids, _ in samples)
    ids = torch.full((len(samples), length), task.tokenizer.pad_id)
    for row, (own, _) in enumerate(samples):
        ids[row, :len(own)] = torch.tensor(own)
    real = torch.arange(length) < torch.tensor([len(own) for own, _ in samples])[:, None]
    if isinstance(model, M.GPT2):
        targets = torch.where(real & (torch.arange(length) >= torch.tensor([context for _, context in samples])[:, None]),
                              ids, -100)
        logits = model(ids)[:, :-1]                                          # (B, T - 1, V)
        return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(),
                               label_smoothing=task.settings.label_smoothing)
    return F.cross_entropy(model(ids, real), torch.tensor([label for _, label in samples]))


def losses(arguments: list[str], steps: int, plain: bool, folder) -> list[float]:
    """The losses of `steps` updates by train.py's Trainer, on its own or with everything plain."""
    options = train.parse_arguments([*arguments, "--dropout", "0", "--model-dropout", "0", "--max-steps", str(steps),
                                     "--device", "cpu"])
    model, task, settings, _ = train.prepare(options, seed=1)
    torch.manual_seed(5)
    apply_method(model, "lora", rank=settings.rank, alpha=settings.alpha, targets=settings.targets, seed=1)
    trainer = train.Trainer(model, task, settings, 1, folder, run_state.Interruptions())
    batches = train.length_grouped_batches(task.train_lengths, settings.batch_size, 1, 0)[:steps]
    assert len(batches) == steps
    if plain:
        with plain_lora(), mock.patch.object(type(task), "loss", lambda self, model, indices: (
                plain_loss(model, self, indices) * self.terms(indices))):
            return [trainer.update(batch, trainer.schedule(step)) for step, batch in enumerate(batches)]
    return [trainer.update(batch, trainer.schedule(step)) for step, batch in enumerate(batches)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="e2e")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--batch-size", default="8")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    arguments = ["--model", options.model, "--task", options.task, "--data-dir", options.data_dir, "--batch-size",
                 options.batch_size, "--limit-train", str(options.steps * int(options.batch_size)), "--limit-eval", "1",
                 "--warmup", "0"]
    ours, theirs = (losses(arguments, options.steps, plain, None) for plain in (False, True))
    for step, pair in enumerate(zip(ours, theirs, strict=True)):
        if step % 5 == 0 or step == options.steps - 1:
            print(f"step {step + 1:3d}: {pair[0]:.6f} {pair[1]:.6f} plain", flush=True)
    print(f"largest difference over {options.steps} steps: {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.2e}")


if __name__ == "__main__":
    main()
