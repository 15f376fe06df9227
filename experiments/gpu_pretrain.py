"""A small GPT-2 pretrained on a GPU for a given time, and then E2E on it by LoRA and in full: the last section of gpu.py.

The texts (GLUE's training files) and the tokenizer are those of pretrain_mini.py; the loss is over the whole vocabulary,
which a GPU has time for, and the learning rate falls with the time that is left. The base stays in OUT/mini-gpt2, in fp16 and
in files of at most MOST_BYTES: the embedding alone fills one, hence the width. Left out: a RoBERTa.
"""
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.pretrain_mini import HELD_OUT, corpus, packed_rows
from files.text import read_json, write_json
from files.tokenizer import load_tokenizer
from files.weights import write_safetensors
from model import GPT2
from speed.loss import target_loss
from speed.packed import pack
from toy.pretrain import start_model
from training.precision import multiplies_bf16_fast

BATCH, LEARNING_RATE, WARM_UP = 64, 2e-3, 100                                # rows of a step; steps
MOST_BYTES = 14 * 2**20 - 2**16
SIZES = {"width": 144, "layers": 6, "heads": 4}
AFTER = 0.45                                                                 # of the time, for E2E


def pretrain(context) -> Iterator[dict]:
    """context: as of gpu_sections.py. Points: the loss while it trains, then the scores."""
    out, tokenizers = context.options.out / "mini-gpt2", context.options.tokenizers / "gpt2"
    tokenizer = load_tokenizer(tokenizers)
    rows = packed_rows(corpus(context.options.data_dir, []), tokenizer, "gpt2", seed=0)
    out.mkdir(parents=True, exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copyfile(tokenizers / file, out / file)
    sizes = {"width": 16, "layers": 1, "heads": 2} if context.quick else SIZES
    model, _ = start_model("gpt2", tokenizer.vocab_size, out, 0, **sizes)
    model = model.to(context.device)
    yield from train_for(model, rows, (1 - AFTER) * context.left(), context)
    save_in_parts(model, out)
    for method, more in (("lora", ["--rank", "4", "--alpha", "32", "--dropout", "0.1", "--lr", "5e-3"]),
                         ("full", ["--lr", "1e-3"])):
        yield score(context, out, method, more)


def train_for(model: GPT2, rows: list[list[int]], seconds: float, context) -> Iterator[dict]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    started, step, batch = time.perf_counter(), 0, 4 if context.quick else BATCH
    model.train()
    while (passed := (time.perf_counter() - started) / seconds) < 1 and not (context.quick and step >= 10):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARM_UP, 1 - passed)
        optimizer.zero_grad()
        loss = loss_of(model, random.Random(step).sample(rows, batch), context.device)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            yield {"steps": step, "tokens": step * batch * len(rows[0]), "loss": loss.item(), "of the time": passed}
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, held_out[at:at + batch], context.device).item() for at in range(0, len(held_out), batch)]
    yield {"steps": step, "tokens": step * batch * len(rows[0]), "loss": sum(losses) / len(losses), "of the time": 1.0}


def loss_of(model: GPT2, rows: list[list[int]], device: str) -> Tensor:
    """Mean cross-entropy of every next token, in nats."""
    ids, attend = pack([row[:-1] for row in rows], True, device)
    wanted = torch.cat([start + torch.arange(len(row) - 1) for start, row in zip(attend.starts, rows, strict=True)])
    targets = torch.tensor([token for row in rows for token in row[1:]])
    ids, wanted, targets = attend.send(device, ids, wanted, targets)
    is_fast = device.startswith("cuda") and multiplies_bf16_fast(device)[0]
    with torch.autocast("cuda", torch.bfloat16) if is_fast else nullcontext():
        hidden = model.hidden_states(ids, attend, wanted)
    return target_loss(hidden.float(), model.transformer.wte.weight, targets) / len(targets)


def save_in_parts(model: GPT2, folder: Path) -> None:
    """model-*.safetensors and the index that names them."""
    parts: list[dict[str, Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        tensor = tensor.half().cpu()
        if parts[-1] and sum(t.nbytes for t in parts[-1].values()) + tensor.nbytes > MOST_BYTES:
            parts.append({})
        parts[-1][name] = tensor
    files = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        write_safetensors(part, folder / file, {"format": "pt"})
    write_json({"metadata": {}, "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part}},
               folder / "model.safetensors.index.json")


def score(context, base: Path, method: str, more: list[str]) -> dict:
    """train.py on E2E, one epoch of what the time allows."""
    out, limits = context.scratch / method, ["4", "2"] if context.quick else ["8000", "100"]
    command = [sys.executable, "train.py", "--model", str(base), "--task", "e2e", "--method", method, "--data-dir",
               str(context.options.data_dir), "--device", context.device, "--epochs", "1", "--limit-train", limits[0],
               "--limit-eval", limits[1], "--beam-size", "4", "--out-dir", str(out), *more]
    started = time.perf_counter()
    subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=True, timeout=max(1.0, context.left()))
    scores = read_json(next(out.rglob("metrics.json")))["scores"]
    return {"method": method, **{name: value for name, value in scores.items() if isinstance(value, float)},
            "seconds": time.perf_counter() - started}
