"""A LoRA training step against transformers + PEFT: time, tokens per second, memory, and how near the machine's limit.

    python -m experiments.bench train --data-dir DIR --tokenizers DIR            # 3 models, about ten minutes
    python -m experiments.bench train --data-dir DIR --tokenizers DIR --quick    # 2 models, two minutes

Models have the real configuration and random weights, written once to a folder that both sides load. The recipe is the
paper's, with the models' own dropout of 0.1 on both sides. The batches are the same random draws of the real data (E2E,
MRPC); the peer pads them to their longest and computes logits everywhere, as transformers does when it is given labels.
PEFT has no q and v of GPT-2's fused c_attn, so there it adapts all of c_attn with rank 4: as many parameters.

Every configuration lives in a fresh process of its own, which says how much memory it ever had. The processes take turns,
one step each per round; a ratio is the median over rounds of two steps' times in the same round. The limit is the rate of a
square matrix product, measured in the same rounds.
"""
import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

import train
from experiments.sweep import processor
from files.text import write_json
from files.weights import write_safetensors
from methods import apply_method
from model import GPT2, GPT2Config, RobertaClassifier, RobertaConfig
from toy.fresh import init_weights
from training import run_state
from training.memory import peak_bytes
from training.precision import choose_precision, hold_frozen_in
from training.processes import resolve_device

MODELS = {                                                                   # configuration, task, batch size of the paper
    "gpt2": (GPT2Config(), "e2e", 8),
    "gpt2-medium": (GPT2Config(n_embd=1024, n_layer=24, n_head=16), "e2e", 8),
    "roberta-base": (RobertaConfig(), "mrpc", 16),
    "roberta-large": (RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
                      "mrpc", 16),
}
BY_DEFAULT = ["gpt2", "gpt2-medium", "roberta-base"]
LIMIT_SIZE = 2048                                                            # of the square matrix product
WARM_UP = 2                                                                  # rounds that are not counted


# ---------------------------------------------------------------- models and batches

def write_model(name: str, tokenizers: Path, folder: Path, **narrower: int) -> None:
    """A Hugging Face folder with the model's real configuration, random weights, and its tokenizer. narrower: fields of the
    configuration in place of the real ones."""
    config, kind = replace(MODELS[name][0], **narrower), "gpt2" if name.startswith("gpt2") else "roberta"
    model = (GPT2 if kind == "gpt2" else RobertaClassifier)(config)
    init_weights(model, seed=0)
    folder.mkdir(parents=True)
    head = {"model_type": kind, "bos_token_id": 0, "eos_token_id": 2} if kind == "roberta" else {"model_type": kind}
    write_json(head | {key: value for key, value in asdict(config).items() if key != "num_labels"}, folder / "config.json")
    write_safetensors(model.state_dict(), folder / "model.safetensors")
    for file in ("vocab.json", "merges.txt"):
        (folder / file).symlink_to((tokenizers / ("gpt2" if kind == "gpt2" else "roberta-base") / file).resolve())


def draw_batches(lengths: list[int], size: int, count: int) -> list[list[int]]:
    """Indices of `count` random batches; the one with the longest sample comes first, so that later ones fit."""
    batches = [random.Random(f"batch {number}").sample(range(len(lengths)), size) for number in range(count)]
    return sorted(batches, key=lambda batch: -max(lengths[index] for index in batch))


def step_flop(config, lengths: list[int], targets: int) -> float:
    """Floating-point operations that a LoRA step on sequences of these lengths needs.

    Twice (forward, and backward to the activations) the products with the frozen matrices and the attention, the head
    once more at the targets; no weight gradient but those of LoRA, which are too small to count.
    """
    if isinstance(config, GPT2Config):
        width, layers, inner = config.n_embd, config.n_layer, config.n_inner or 4 * config.n_embd
        head, seen = config.vocab_size * width * targets, 0.5                # causal: half of the pairs
    else:
        width, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
        head, seen = len(lengths) * width * width, 1.0
    frozen = layers * (4 * width * width + 2 * width * inner) * sum(lengths)
    attention = layers * 2 * width * seen * sum(length * length for length in lengths)
    return 2 * 2 * (frozen + head) + 2 * 3 * attention                       # attention has two active inputs: 2 products back


# ---------------------------------------------------------------- the competitors, each alone in a process

class Ours:
    """The step of train.py."""

    def __init__(self, job: dict):
        options = train.parse_arguments(["--model", job["folder"], "--task", job["task"], "--data-dir", job["data_dir"],
                                         "--batch-size", str(job["batch"]), "--out-dir", job["scratch"], *job["options"]])
        options.device = resolve_device(options.device)
        model, task, settings, _ = train.prepare(options, seed=0)
        apply_method(model, settings.method, seed=0, **settings.of_method())
        hold_frozen_in(model, choose_precision(settings.precision, model, settings.device)[0])
        self.trainer = train.Trainer(model.to(job.get("device") or settings.device), task, settings, 0, Path(job["scratch"]),
                                     run_state.Interruptions())
        if "length" in job:                                                  # samples of one length instead of the real ones
            task.train = [(list(range(100, 100 + job["length"])), job["length"] // 2)] * job["batch"]
            task.train_lengths = [job["length"]] * job["batch"]
        self.batches = draw_batches(task.train_lengths, job["batch"], job["rounds"] + WARM_UP)

    def step(self, number: int) -> float:
        return self.trainer.update(self.batches[number], lr=1e-4)


class Peer:
    """The same with transformers' model, PEFT's LoRA and torch's AdamW; `precision` bf16 or fp16 is autocast."""

    def __init__(self, job: dict):
        import peft
        import transformers
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        self.device = job.get("device") or resolve_device("auto")
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(job["precision"])
        self.scaler = torch.amp.GradScaler(self.device, enabled=job["precision"] == "fp16")
        self.is_gpt2 = job["task"] == "e2e"
        if self.is_gpt2:
            model = transformers.AutoModelForCausalLM.from_pretrained(job["folder"])
            modules = job.get("modules", ["c_attn"])
            lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, lora_dropout=0.1, target_modules=modules,
                                   fan_in_fan_out=modules == ["c_attn"])
        else:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(job["folder"], num_labels=2)
            lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"])
        self.model = peft.get_peft_model(model, lora).to(self.device).train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.01)
        self.batches = [self.collate(samples) for samples in json.loads(Path(job["samples"]).read_text())]

    def collate(self, samples: list) -> dict[str, torch.Tensor]:
        """Padded to the longest. A sample is (ids, length of its context) or (ids, label)."""
        length = max(len(ids) for ids, _ in samples)
        pad = self.model.config.pad_token_id or 0
        batch = {"input_ids": torch.full((len(samples), length), pad),
                 "attention_mask": torch.zeros(len(samples), length, dtype=torch.long)}
        labels = torch.full((len(samples), length), -100)
        for row, (ids, context) in enumerate(samples):
            batch["input_ids"][row, :len(ids)] = torch.tensor(ids)
            batch["attention_mask"][row, :len(ids)] = 1
            labels[row, context:len(ids)] = torch.tensor(ids[context:])
        batch["labels"] = labels if self.is_gpt2 else torch.tensor([label for _, label in samples])
        return batch

    def step(self, number: int) -> float:
        self.optimizer.zero_grad()
        batch = {name: tensor.to(self.device) for name, tensor in self.batches[number].items()}
        with torch.autocast(torch.device(self.device).type, dtype=self.autocast) if self.autocast else nullcontext():
            loss = self.model(**batch).loss
        self.scaler.scale(loss).backward()                                   # does nothing but for fp16
        if not self.is_gpt2:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


class Limit:
    """The matrix product whose rate bounds every step."""

    def __init__(self, job: dict):
        dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
        self.matrices = [torch.randn(LIMIT_SIZE, LIMIT_SIZE, device=resolve_device("auto")).to(dtype) for _ in range(2)]

    def step(self, number: int) -> float:
        return torch.mm(*self.matrices)[0, 0].item()


def serve(job: dict) -> None:
    """The life of a worker: a line in is the number of a step, a line out what it took; an empty line ends it."""
    torch.set_num_threads(job["threads"])
    with torch.no_grad() if job["way"] == "limit" else torch.enable_grad():
        worker = {"ours": Ours, "peer": Peer, "limit": Limit}[job["way"]](job)
        print("ready", flush=True)
        for line in iter(sys.stdin.readline, "\n"):
            started, processor_started = time.perf_counter(), time.process_time()
            loss = worker.step(int(line))
            print(json.dumps({"seconds": time.perf_counter() - started, "loss": loss,
                              "peak_mib": peak_bytes(resolve_device("auto")) / 2**20,
                              "processor_seconds": time.process_time() - processor_started}), flush=True)


# ---------------------------------------------------------------- measuring

class Worker:
    """A process that runs `serve`, seen from the parent."""

    def __init__(self, job: dict):
        self.process = subprocess.Popen([sys.executable, "-m", "experiments.bench_train", json.dumps(job)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.rounds: list[dict] = []
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the process of {job['way']} ended at its start; run `{' '.join(self.process.args[:3])} "
                               f"'{self.process.args[3]}'` to see why")

    def step(self, number: int) -> None:
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        self.rounds.append(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.communicate("\n")

    def times(self, key: str = "seconds") -> list[float]:
        return [entry[key] for entry in self.rounds[WARM_UP:]]


def measure(name: str, precisions: list[str], options: argparse.Namespace, scratch: Path) -> list[dict]:
    """The points of one model: every way and precision, in turn."""
    config, task_name, batch = MODELS[name]
    folder = scratch / name
    write_model(name, options.tokenizers, folder)
    settings = train.parse_arguments(["--model", str(folder), "--task", task_name, "--data-dir", str(options.data_dir)])
    _, task, _, _ = train.prepare(settings, seed=0)
    batches = draw_batches(task.train_lengths, batch, options.rounds + WARM_UP)
    (scratch / "samples.json").write_text(json.dumps([[task.train[index] for index in batch] for batch in batches]))
    job = {"folder": str(folder), "task": task_name, "data_dir": str(options.data_dir), "batch": batch, "options": [],
           "rounds": options.rounds, "threads": options.threads, "samples": str(scratch / "samples.json"),
           "scratch": str(scratch)}
    workers = {(way, precision): Worker(job | {"way": way, "precision": precision, "options": ["--precision", precision]})
        for precision in precisions for way in ("limit", "ours", "peer")}
    for number in range(len(batches)):
        for worker in workers.values():
            worker.step(number)
    for worker in workers.values():
        worker.end()
    is_e2e = task_name == "e2e"
    samples = [[task.train[index] for index in batch] for batch in batches[WARM_UP:]]
    tokens = [sum(len(ids) for ids, _ in batch) for batch in samples]
    flop = [step_flop(config, [len(ids) - is_e2e for ids, _ in batch],
                      sum(len(ids) - context for ids, context in batch) if is_e2e else 0) for batch in samples]
    points = []
    for (way, precision), worker in workers.items():
        if way == "limit":
            continue
        limit = [2 * LIMIT_SIZE ** 3 / seconds for seconds in workers["limit", precision].times()]
        points.append({
            "model": name, "batch": batch, "way": way, "precision": precision,
            "milliseconds": 1e3 * statistics.median(worker.times()),
            "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, worker.times(), strict=True)),
            "limit_gflop_per_second": statistics.median(limit) / 1e9, "gflop": statistics.median(flop) / 1e9,
            "fraction_of_limit": statistics.median(f / s for f, s in zip(flop, worker.times(), strict=True))
            / statistics.median(limit),
            "peak_mib": worker.rounds[-1]["peak_mib"],
            "against_peer_fp32": ratio(workers.get(("peer", "fp32")), worker),
            "against_peer_same_precision": ratio(workers.get(("peer", precision)), worker),
            "rounds": worker.rounds})
    return points


def ratio(slow: Worker | None, fast: Worker) -> float | None:
    return slow and statistics.median(a / b for a, b in zip(slow.times(), fast.times(), strict=True))


def table(figures: dict) -> str:
    """The points as a Markdown table."""
    lines = ["| step | ms | tokens/s | of the limit | peak MiB | against HF + PEFT fp32 | memory |",
             "|---|---|---|---|---|---|---|"]
    peaks = {(point["model"], point["way"], point["precision"]): point["peak_mib"] for point in figures["points"]}
    for point in figures["points"]:
        who = "ours" if point["way"] == "ours" else "HF + PEFT"
        precision = point["precision"] + (" autocast" if (point["way"], point["precision"]) == ("peer", "bf16") else "")
        base = peaks.get((point["model"], "peer", "fp32"))
        memory = "" if base is None else f"{point['peak_mib'] / base:.0%}"
        speed = "" if point["against_peer_fp32"] is None else f"{point['against_peer_fp32']:.2f}x"
        lines.append(f"| {point['model']}, batch {point['batch']}, {who}, {precision} | {point['milliseconds']:,.0f} | "
                     f"{point['tokens_per_second']:,.0f} | {point['fraction_of_limit']:.0%} | {point['peak_mib']:,.0f} | "
                     f"{speed} | {memory} |")
    limits = dict.fromkeys(f"{point['precision']} {point['limit_gflop_per_second']:.0f} GFLOP/s ({point['model']})"
                           for point in figures["points"])
    machine = figures["machine"]
    return "\n".join([*lines, "", f"Matrix-product limit: {', '.join(limits)}. {machine['device']}, {machine['threads']} "
                      f"threads, torch {machine['torch']}, {machine['date']}, medians of {figures['rounds']} rounds."]) + "\n"


def machine(threads: int) -> dict:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"device": gpu or f"{processor()} ({torch.backends.cpu.get_cpu_capability()})",
            "threads": threads, "torch": torch.__version__, "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d")}


def bench_train(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    models = options.models or (["gpt2", "roberta-base"] if options.quick else BY_DEFAULT)
    options.rounds = options.rounds or (3 if options.quick else 7)
    figures = {"machine": machine(options.threads), "rounds": options.rounds, "points": []}
    for name in models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            figures["points"] += measure(name, options.precisions, options, Path(scratch))
        print(table(figures | {"points": [point for point in figures["points"] if point["model"] == name]}), flush=True)
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True, type=Path, help="folder with glue/MRPC and e2e/")
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder with roberta-base/ and gpt2/ tokenizer files")
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--rounds", type=int, help="default 7, with --quick 3")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder for the random weights (default: the system's temporary one)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
