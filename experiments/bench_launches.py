"""How many kernels a step starts on a device, and how often the processor waits for it: ours beside transformers and PEFT.

    python -m experiments.bench launches --data-dir DIR --tokenizers DIR [--json FILE]

No device is needed: experiments/simulated_device.py counts, and says what. The models have their real depth and vocabulary and
are narrow, as the width changes no count; weights are random, the samples real. A training step is the mean of STEPS after a
first one, which makes the optimizer's state. A token step of beam search has 8 prompts and 10 beams, as a mean over the search.
A batch of the bank has 16 pairs for one adapter, two, or one for each pair. The peer's batches are those of
experiments/bench_train.py and bench_mixed.py. Left out: what a kernel takes.
"""
import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import train
from adapters import AdapterBank
from adapters.answers import Predictor
from adapters.requests import Request
from data import read_e2e, read_glue
from experiments.bench_mixed import collate_pairs
from experiments.bench_train import Ours, Peer, draw_batches, write_model
from experiments.simulated_device import NAME, Counts, SimulatedDevice
from experiments.tables import markdown
from files.tokenizer import load_tokenizer
from generation import generate
from generation.e2e import e2e_prompt
from lora import add_lora
from model import load_pretrained

STEPS = 3
NARROW = {"gpt2": {"n_embd": 48}, "gpt2-medium": {"n_embd": 64},
          "roberta-base": {"hidden_size": 48, "intermediate_size": 96}}
PER_STEP = {"gpt2": ("e2e", 8), "roberta-base": ("mrpc", 16)}                # task and batch of the paper


def per(counts: Counts, steps: int) -> dict[str, float]:
    return {kind: getattr(counts, kind) / steps for kind in ("kernels", "syncs", "uploads")}


def training(name: str, ways: list[tuple[str, str]], options: argparse.Namespace, scratch: Path, device: SimulatedDevice
             ) -> list[dict]:
    """The step of train.py and of the peer, on the same samples. ways: "ours" or "peer", and the precision."""
    task_name, batch = PER_STEP[name]
    folder, limit = scratch / name, 64 * batch
    job = {"folder": str(folder), "task": task_name, "data_dir": str(options.data_dir), "batch": batch, "rounds": STEPS,
           "scratch": str(scratch), "samples": str(scratch / "samples.json"), "device": NAME}
    few = ["--limit-train", str(limit), "--limit-eval", "1", "--device", "cpu"]
    _, task, _, _ = train.prepare(train.parse_arguments(["--model", str(folder), "--task", task_name, "--data-dir",
                                                         str(options.data_dir), *few]), seed=0)
    batches = draw_batches(task.train_lengths, batch, STEPS + 2)
    Path(job["samples"]).write_text(json.dumps([[task.train[index] for index in batch] for batch in batches]))
    points = []
    for way, precision in ways:
        stepping = {"ours": Ours, "peer": Peer}[way](job | {"precision": precision,
                                                            "options": ["--precision", precision, *few]})
        stepping.step(0)
        with device.counted() as counts:
            for number in range(1, STEPS + 1):
                stepping.step(number)
        points.append({"what": f"training step, {name}, batch {batch}, {precision}", "way": way} | per(counts, STEPS))
    return points


def searching(folder: Path, options: argparse.Namespace, device: SimulatedDevice) -> list[dict]:
    """A token step of each search, by how often the model has run."""
    tokenizer, model = load_tokenizer(folder), load_pretrained(folder)
    prompts = [e2e_prompt(tokenizer, mr) for mr in list(dict.fromkeys(mr for mr, _ in read_e2e("test", options.data_dir)))[:8]]
    peer, model = peer_of(folder), model.to(NAME)
    ways = {"ours, authors": lambda: generate(model, prompts, max_new_tokens=16, batch_size=8),
            "ours, hf": lambda: generate(model, prompts, max_new_tokens=16, batch_size=8, search="hf"),
            "peer": lambda: peer_generates(peer, prompts)}
    points = []
    for way, search in ways.items():
        runs = []
        layer = (peer if way == "peer" else model).transformer.ln_f
        hook = layer.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        with device.counted() as counts:
            search()
        hook.remove()
        points.append({"what": "token step, beam search, gpt2, 8 prompts, 10 beams", "way": way} | per(counts, len(runs)))
    return points


def peer_of(folder: Path) -> nn.Module:
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval().to(NAME)


def peer_generates(model: nn.Module, prompts: list[list[int]]) -> None:
    longest = max(map(len, prompts))
    model.generate(torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=NAME),
                   attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts],
                                               device=NAME),
                   num_beams=10, length_penalty=0.9, no_repeat_ngram_size=4, max_new_tokens=16, do_sample=False,
                   eos_token_id=50256, pad_token_id=0)


def adapted(folder: Path, out: Path, seed: int) -> Path:
    """A trained adapter, as far as its cost goes."""
    from adapters import save_adapter
    model = add_lora(load_pretrained(folder, seed=seed), rank=8, alpha=8, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    save_adapter(model, out, task="mrpc")
    return out


def answering(folder: Path, options: argparse.Namespace, scratch: Path, device: SimulatedDevice) -> list[dict]:
    """A batch of predict.py's answers, and of PEFT's with a name for each row."""
    tokenizer = load_tokenizer(folder)
    ids = [tokenizer.encode(pair.text, pair.pair) for pair in read_glue("mrpc", "dev", options.data_dir)[:16]]
    folders = [adapted(folder, scratch / f"adapter{number}", number) for number in range(16)]
    bank = AdapterBank(load_pretrained(folder).to(NAME))
    with device.counted() as counts:
        for number, path in enumerate(folders):
            bank.add(str(number), path)
    points = [{"what": "adding an adapter of roberta-base to the bank", "way": "ours"} | per(counts, len(folders))]
    predictor = Predictor(bank, tokenizer, batch_size=16)
    peer, batch = peer_with(folder, folders), collate_pairs(ids, tokenizer.pad_id)
    for kinds in (1, 2, 16):
        requests = [Request(str(row % kinds), row_ids, {}) for row, row_ids in enumerate(ids)]
        for way, answer in {"ours": lambda requests=requests: predictor.answer(requests),
                            "peer": lambda kinds=kinds: peer(*(tensor.to(NAME) for tensor in batch), adapter_names=[
                                f"a{row % kinds}" for row in range(16)]).logits.tolist()}.items():
            with device.counted() as counts, torch.inference_mode():
                answer()
            points.append({"what": f"batch of 16 pairs, roberta-base, {kinds} adapters", "way": way} | per(counts, 1))
    return points


def peer_with(folder: Path, folders: list[Path]) -> nn.Module:
    """PEFT's model with all adapters; its rows share the base's head."""
    import peft
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]), adapter_name="a0")
    for number in range(1, len(folders)):
        model.add_adapter(f"a{number}", peft.LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]))
    return model.eval().to(NAME)


def bench_launches(options: argparse.Namespace) -> dict:
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch, SimulatedDevice() as device:
        scratch, points = Path(scratch), []
        for name in PER_STEP:
            write_model(name, options.tokenizers, scratch / name, **NARROW[name])
            points += training(name, [("ours", "fp32"), ("ours", "bf16"), ("peer", "fp32")], options, scratch, device)
        points += searching(scratch / "gpt2", options, device)
        points += answering(scratch / "roberta-base", options, scratch, device)
    print(table({"points": points}), flush=True)
    return {"points": points, "torch": torch.__version__}


def table(figures: dict) -> str:
    rows = [(point["what"], point["way"],
             *(f"{point[kind]:,.1f}".removesuffix(".0") for kind in ("kernels", "syncs", "uploads")))
            for point in figures["points"]]
    return "\n".join(markdown(["", "", "kernels", "waits", "uploads"], rows)) + "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True, type=Path, help="folder with glue/MRPC and e2e/")
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder with roberta-base/ and gpt2/ tokenizer files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the table beside it as .md")
