"""The sections of experiments/gpu.py: each yields points, dicts of a table's cells, and ends when its seconds are over.

    python -m experiments.gpu_sections training --seconds 200 --device cuda --data-dir D --tokenizers T --out runs/gpu

writes runs/gpu/training.json anew after every point. Peers are transformers and PEFT, on the same samples and in turn with
ours; where they are not installed their rows are missing. Left out: the pretraining (gpu_pretrain.py).
"""
import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import train
from adapters import AdapterBank
from adapters.bank import BankAdapter
from data import read_e2e, read_glue
from experiments.bench_mixed import collate_pairs
from experiments.bench_train import MODELS, WARM_UP, Ours, Peer, draw_batches, step_flop, write_model
from experiments.device_checks import CHECKS, TOLERANCE
from experiments.faults import differences
from experiments.gpu_pretrain import pretrain
from files import cli
from files.text import write_json
from files.tokenizer import load_tokenizer
from generation import generate
from generation.e2e import e2e_prompt
from lora import add_lora, is_base, merge
from model import load_pretrained
from toy.world import write_tasks
from training.memory import bytes_of
from training.precision import hold_frozen_in
from training.processes import resolve_device

QUICK = {"n_embd": 48, "n_layer": 2, "n_head": 4}
QUICK_ROBERTA = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Context:
    """What a section is given: where it runs, how long, and on what files."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options, self.scratch, self.device, self.quick = options, scratch, resolve_device(options.device), options.quick
        self.is_gpu, self.end = self.device.startswith("cuda"), time.perf_counter() + options.seconds

    def left(self) -> float:
        return self.end - time.perf_counter()

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, run: Callable[[], object], repeats: int = 1) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        self.wait()
        return 1e3 * (time.perf_counter() - started) / repeats

    def model(self, name: str) -> Path:
        """A folder with a model of this name, made once."""
        folder = self.scratch / name
        if not folder.exists():
            write_model(name, self.options.tokenizers, folder,
                        **(QUICK if name.startswith("gpt2") else QUICK_ROBERTA) if self.quick else {})
        return folder

    def allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.is_gpu else 0

    def peak_since(self) -> int:
        """The most memory since the last call, then counted anew."""
        if not self.is_gpu:
            return 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def has_peers() -> bool:
    return all(importlib.util.find_spec(name) for name in ("transformers", "peft"))


# ---------------------------------------------------------------- the machine, and whether its numbers are right

def matrix_limit(context: Context, dtype: torch.dtype) -> float:
    """TFLOP/s of a square product."""
    size = 256 if context.quick else 8192
    a, b = (torch.randn(size, size, device=context.device).to(dtype) for _ in range(2))
    context.milliseconds(lambda: a @ b, 2)
    return 2 * size ** 3 / statistics.median(context.milliseconds(lambda: a @ b, 3) for _ in range(5)) / 1e9


def machine(context: Context) -> Iterator[dict]:
    yield {"": "device", "is": torch.cuda.get_device_name() if context.is_gpu else platform.processor() or "cpu"}
    yield {"": "torch, CUDA, python", "is": f"{torch.__version__}, {torch.version.cuda}, {platform.python_version()}"}
    if context.is_gpu:
        found = torch.cuda.get_device_properties(0)
        yield {"": "capability, multiprocessors", "is": f"{found.major}.{found.minor}, {found.multi_processor_count}"}
        yield {"": "memory, GiB", "is": found.total_memory / 2**30}
        yield {"": "bf16 without emulation", "is": str(torch.cuda.get_device_capability() >= (8, 0))}
    for name, precision, dtype in (("fp32", "highest", torch.float32), ("fp32 as TF32", "high", torch.float32),
                                   ("bf16", "high", torch.bfloat16), ("fp16", "high", torch.float16)):
        torch.set_float32_matmul_precision(precision)
        yield {"": f"product of {name}, TFLOP/s", "is": matrix_limit(context, dtype)}
    small = torch.zeros(8, device=context.device)
    yield {"": "a small kernel, microseconds", "is": context.milliseconds(lambda: small.add_(1), 2000) * 1e3}
    yield {"": "reading one number back, microseconds", "is": context.milliseconds(lambda: small[0].item(), 300) * 1e3}


def checks(context: Context) -> Iterator[dict]:
    """Exact fp32 first; TF32 may differ more, and says by how much."""
    for precision in ("highest", "high") if context.is_gpu else ("highest",):
        torch.set_float32_matmul_precision(precision)
        for name, check in CHECKS.items():
            if context.left() < 5:
                return
            try:
                found = check(context.device)
                holds = str(found <= TOLERANCE)
            except Exception as error:                                       # a check that fails is a row, not the end
                found, holds = None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            products = "exact" if precision == "highest" else "TF32"
            yield {"products": products, "check": name, "difference": found, "holds": holds}


# ---------------------------------------------------------------- a training step

class Halved(Ours):
    """Ours with the base in fp16 and a scaled loss, which train.py does not offer: what would come of it."""

    def __init__(self, job: dict):
        super().__init__(job | {"options": [*job["options"], "--precision", "fp32"]})
        model = self.trainer.model
        for name, parameter in model.named_parameters():
            if is_base(model, name) and not parameter.requires_grad:
                parameter.data = parameter.data.half()
        self.scaler = torch.amp.GradScaler(torch.device(job["device"]).type)

    def step(self, number: int) -> float:
        trainer, indices = self.trainer, self.batches[number]
        trainer.model.train()
        trainer.optimizer.zero_grad()
        loss = trainer.task.loss(trainer.model, indices) / trainer.task.terms(indices)
        self.scaler.scale(loss).backward()
        self.scaler.step(trainer.optimizer)
        self.scaler.update()
        return loss.item()


def training(context: Context) -> Iterator[dict]:
    """Ours and the peer in turn, the models that the recipes need first."""
    names = ["gpt2", "roberta-base", "gpt2-medium", "roberta-large"][:2 if context.quick else 4]
    for number, name in enumerate(names):
        share = context.left() / (len(names) - number)
        for precision in ("fp32", "bf16", "fp16"):
            if context.left() < 3 or precision == "fp16" and not context.is_gpu:
                continue
            yield from steps(context, name, precision, time.perf_counter() + share / 3)


def steps(context: Context, name: str, precision: str, end: float) -> Iterator[dict]:
    config, task_name, batch = MODELS[name]
    rounds = 3 if context.quick else 40
    job = {"folder": str(context.model(name)), "task": task_name, "data_dir": str(context.options.data_dir), "batch": batch,
           "rounds": rounds, "scratch": str(context.scratch), "samples": str(context.scratch / "samples.json"),
           "device": context.device, "precision": precision,
           "options": ["--device", context.device, "--limit-train", "2000", "--limit-eval", "1", "--precision",
                       "fp32" if precision == "fp16" else precision]}
    ways, memory = {}, {}
    for way, build in {"ours": Halved if precision == "fp16" else Ours, **({"peer": Peer} if has_peers() else {})}.items():
        before, _ = context.allocated(), context.peak_since()
        ways[way] = build(job)
        if way == "ours":
            task = ways[way].trainer.task
            batches = draw_batches(task.train_lengths, batch, rounds + WARM_UP)
            Path(job["samples"]).write_text(json.dumps([[task.train[index] for index in batch] for batch in batches]))
        for number in range(WARM_UP):
            ways[way].step(number)
        memory[way] = (context.peak_since() - before) / 2**20
    taken, losses = {way: [] for way in ways}, {way: [] for way in ways}
    for number in range(WARM_UP, len(batches)):
        for way, running in ways.items():
            taken[way].append(context.milliseconds(lambda running=running, way=way, number=number: losses[way].append(
                running.step(number))))
        if time.perf_counter() > end and number >= WARM_UP + 2:
            break
    is_e2e = task_name == "e2e"
    flop = [step_flop(ways["ours"].trainer.model.config, [task.train_lengths[index] - is_e2e for index in batch],
                      task.terms(batch) if is_e2e else 0) for batch in batches[WARM_UP:]]
    limit = matrix_limit(context, DTYPES[precision])
    for way, times in taken.items():
        yield {"model": name, "batch": batch, "precision": precision, "way": way, "milliseconds": statistics.median(times),
               "peer by it": statistics.median(a / b for a, b in zip(taken.get("peer", []) or times, times, strict=False)),
               "of the limit": statistics.median(f / t for f, t in zip(flop, times, strict=False)) / 1e9 / limit,
               "peak MiB": memory[way], "last losses": statistics.mean(losses[way][-10:]), "steps": len(times)}
    yield parts(ways["ours"].trainer, name, precision, memory["ours"])


def parts(trainer: train.Trainer, name: str, precision: str, peak: float) -> dict:
    """What of ours' peak is what."""
    frozen = bytes_of(parameter for parameter in trainer.model.parameters() if not parameter.requires_grad) / 2**20
    state = (value for of in trainer.optimizer.state.values() for value in of.values() if isinstance(value, torch.Tensor))
    trained = 2 * bytes_of(trainer.trained) / 2**20 + bytes_of(state) / 2**20            # with their gradients
    return {"memory of": f"{name}, {precision}", "frozen MiB": frozen, "trained, gradients, optimizer MiB": trained,
            "kept for backward MiB": trainer.progress.activation_bytes / 2**20, "peak MiB": peak}


# ---------------------------------------------------------------- beam search, and many adapters

def search(context: Context) -> Iterator[dict]:
    """Texts of E2E's test records, 10 beams, 64 tokens."""
    tokens, records = (8, 2) if context.quick else (64, 128)
    for name in ["gpt2", "gpt2-medium"][:1 if context.quick else 2]:
        folder, tokenizer = context.model(name), load_tokenizer(context.options.tokenizers / "gpt2")
        prompts = [e2e_prompt(tokenizer, mr) for mr in
                   list(dict.fromkeys(mr for mr, _ in read_e2e("test", context.options.data_dir)))[:records]]
        for precision in ("fp32", "bf16"):
            model = merge(add_lora(load_pretrained(folder), rank=4, alpha=32))
            hold_frozen_in(model, precision)
            model = model.to(context.device).eval()
            options = {"max_new_tokens": tokens}
            ways = {"ours, 8 at a time": lambda model=model, p=prompts[:16], o=options: generate(model, p, batch_size=8, **o),
                    "ours, as many as fit": lambda model=model, p=prompts, o=options: generate(model, p, **o),
                    "ours, hf, 8 at a time": lambda model=model, p=prompts[:16], o=options: generate(
                        model, p, batch_size=8, search="hf", **o)}
            if has_peers() and precision == "fp32":
                peer = peer_of(folder, context)
                ways["transformers, 8 at a time"] = lambda peer=peer, p=prompts[:16]: [
                    peer_generates(peer, p[at:at + 8], tokens, context.device) for at in (0, 8) if p[at:at + 8]]
            for way, run in ways.items():
                if context.left() < 5:
                    return
                run()                                                        # a GPU loads a kernel when it is first called
                context.peak_since()
                seconds = context.milliseconds(run) / 1e3
                count = records if way.endswith("fit") else min(16, records)
                yield {"model": name, "precision": precision, "way": way, "texts": count, "seconds_per_text": seconds / count,
                       "peak MiB": context.peak_since() / 2**20}


def peer_of(folder: Path, context: Context):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval().to(context.device)


def peer_generates(model, prompts: list[list[int]], tokens: int, device: str) -> None:
    longest = max(map(len, prompts))
    ids, mask = ([[fill] * (longest - len(prompt)) + (prompt if fill_is_pad else [1] * len(prompt)) for prompt in prompts]
                 for fill, fill_is_pad in ((0, True), (0, False)))
    model.generate(torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device), num_beams=10,
                   length_penalty=0.9, no_repeat_ngram_size=4, max_new_tokens=tokens, do_sample=False, eos_token_id=50256,
                   pad_token_id=0)


def mixed(context: Context) -> Iterator[dict]:
    """A batch of MRPC pairs for many adapters of roberta-base, beside the same batch for one that is merged, and PEFT's."""
    folder, tokenizer = context.model("roberta-base"), load_tokenizer(context.options.tokenizers / "roberta-base")
    ids = [tokenizer.encode(pair.text, pair.pair) for pair in read_glue("mrpc", "dev", context.options.data_dir)]
    most = 8 if context.quick else 128
    for precision in ("fp32", "bf16"):
        bank, merged = (AdapterBank(load_pretrained(folder, num_labels=2)) for _ in range(2))
        for each, count in ((bank, most), (merged, 1)):
            hold_frozen_in(each.model.requires_grad_(False), precision)
            each.model.to(context.device)
            for number in range(count):
                each.add(str(number), random_adapter(each.model, number, context.device))
        merged.merge("0")
        peer = peer_with(folder, most, context) if has_peers() and precision == "fp32" else None
        for size in (8, 32, 128):
            batch = collate_pairs(ids[:size], tokenizer.pad_id)
            for kinds in (1, 2, 8, 32, 128):
                if kinds > min(size, most) or context.left() < 3:
                    continue
                names = [str(row % kinds) for row in range(size)]
                ways = {"mixed": lambda bank=bank, names=names: bank.logits_of(names, ids[:len(names)]),
                        "merged": lambda merged=merged, names=names: merged.logits_of(["0"] * len(names), ids[:len(names)])}
                if peer is not None:
                    ways["peer"] = lambda peer=peer, names=names, batch=batch: peer(
                        *(tensor.to(context.device) for tensor in batch), adapter_names=[f"a{name}" for name in names])
                taken = {way: [] for way in ways}
                with torch.inference_mode():
                    for round_number in range(3 if context.quick else 12):
                        for way, run in ways.items():
                            milliseconds = context.milliseconds(run)
                            if round_number > 1:
                                taken[way].append(milliseconds)
                medians = {way: statistics.median(times) for way, times in taken.items()}
                yield {"precision": precision, "rows": size, "adapters": kinds, "mixed ms": medians["mixed"],
                       "merged ms": medians["merged"], "PEFT ms": medians.get("peer"),
                       "mixed by merged": medians["mixed"] / medians["merged"],
                       "PEFT by mixed": medians["peer"] / medians["mixed"] if "peer" in medians else None}


def random_adapter(model, number: int, device: str) -> BankAdapter:
    config, generator = model.config, torch.Generator().manual_seed(number)
    updates = {target: tuple(0.02 * torch.randn(config.num_layers, 8, config.hidden_size, generator=generator).to(device)
                             for _ in range(2)) for target in ("q", "v")}
    return BankAdapter("mrpc", updates, model.classifier)


def peer_with(folder: Path, count: int, context: Context):
    import peft
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    settings = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
    model = peft.get_peft_model(base, settings, adapter_name="a0")
    for number in range(1, count):
        model.add_adapter(f"a{number}", settings)
    return model.eval().to(context.device)


# ---------------------------------------------------------------- killed and resumed

def resume(context: Context) -> Iterator[dict]:
    """A toy run to its end, twice, and one that is killed and goes on: how far the adapters are apart, bit for bit."""
    root = Path(__file__).resolve().parents[1]
    write_tasks(context.scratch / "toy-data")
    steps = 30 if context.quick else 200

    def command(out: str, *more: str) -> list[str]:
        return [sys.executable, "train.py", "--model", "toy/roberta", "--task", "mrpc", "--data-dir",
                str(context.scratch / "toy-data"), "--device", context.device, "--max-steps", str(steps), "--save-every", "10",
                "--limit-eval", "32", "--out-dir", str(context.scratch / out), *more]
    for out in ("whole", "again"):
        subprocess.run(command(out), cwd=root, check=True, timeout=context.left())
    process = subprocess.Popen(command("killed"), cwd=root)
    while process.poll() is None and not list((context.scratch / "killed").rglob("last.pt")) and context.left() > 0:
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run(command("killed", "--resume"), cwd=root, check=True, timeout=context.left())
    whole, *others = (next((context.scratch / out).rglob("metrics.json")).parent for out in ("whole", "again", "killed"))
    for what, other in zip(("the same run again", "killed and resumed"), others, strict=True):
        found = differences(whole, other)
        yield {"run": what, "steps": steps, "bit for bit": str(not found), "differs": "; ".join(found)[:200] or None}


SECTIONS = {"machine": machine, "checks": checks, "training": training, "search": search, "mixed": mixed, "resume": resume,
            "pretrain": pretrain}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.gpu_sections", description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--tokenizers", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")                               # TF32, ours and the peers'
    points = []
    with tempfile.TemporaryDirectory() as scratch:
        for point in SECTIONS[options.section](Context(options, Path(scratch))):
            points.append(point)
            write_json(points, options.out / f"{options.section}.json")
            print(point, flush=True)
    return 0


if __name__ == "__main__":
    try:
        cli.run(main)
    except Exception as error:                                               # its last line is what the page says
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        sys.exit(1)
