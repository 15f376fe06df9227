"""precision.py: what bf16 holds and what it does not, for every method; and training in it on the toy models."""
import json
import os
import subprocess
import sys

import pytest
import torch

import decode
import methods
import model as M
import predict
import train
from files.weights import write_safetensors
from toy.fresh import init_weights
from training import memory, precision

FROZEN_BASE = ("lora", "adapter-h", "adapter-l", "prefix", "head")


def with_method(repository, kind, method, **options):
    model = M.load_pretrained(repository / "toy" / kind, num_labels=3 if kind == "roberta" else None)
    methods.apply_method(model, method, rank=3, alpha=7, **options)
    return model


@pytest.mark.parametrize("method", FROZEN_BASE)
def test_the_frozen_base_turns_bf16_and_the_rest_stays_fp32(repository, method):
    model = with_method(repository, "roberta", method)
    precision.hold_frozen_in(model, "bf16")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 11, 12, 13, 2]])
    logits = model.train()(ids)
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", FROZEN_BASE[:-1])
def test_bf16_is_near_fp32(repository, method):
    ids = torch.randint(5, 400, (3, 12))
    logits, states = [], {}
    for dtype in ("fp32", "bf16"):
        model = with_method(repository, "gpt2", method)
        if states:
            model.load_state_dict(states)
        else:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".lora_B" in name or ".up." in name:
                        parameter.normal_(0, 0.05)
            states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        precision.hold_frozen_in(model, dtype)
        with torch.inference_mode():
            logits.append(model(ids).float())
    spread, difference = logits[0].std(dim=-1).mean(), (logits[0] - logits[1]).abs().mean()
    assert 1e-4 < difference / spread < 0.03                                 # one rounding to bf16 is up to 0.004


@pytest.mark.parametrize("method, options", [("full", {}), ("last-layers", {}), ("bitfit", {}), ("lora", {"bias": "all"})])
def test_bf16_is_refused_where_the_base_trains_and_auto_takes_fp32(repository, method, options):
    model = with_method(repository, "gpt2", method, **options)
    with pytest.raises(ValueError, match="--precision bf16, but this method trains .* of the base"):
        precision.choose_precision("bf16", model, "cpu")
    assert precision.choose_precision("auto", model, "cpu") == ("fp32", "weights of the base train")


def wide_gpt2():
    model = M.GPT2(M.GPT2Config(vocab_size=50, n_positions=8, n_embd=precision.LEAST_WIDTH, n_layer=1, n_head=4))
    methods.apply_method(model, "lora", rank=3, alpha=7)
    return model


@pytest.mark.parametrize("found, expected, why", [({"amx_bf16": True}, "bf16", "has AMX"),
                                                  ({"avx512_bf16": True}, "fp32", "has no AMX"),
                                                  ({"avx2": True, "amx_bf16": False}, "fp32", "has no AMX")])
def test_auto_follows_the_processor(monkeypatch, found, expected, why):
    monkeypatch.delenv("LORA_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    chosen, reason = precision.choose_precision("auto", wide_gpt2(), "cpu")
    assert chosen == expected and why in reason
    assert precision.choose_precision("fp32", wide_gpt2(), "cpu") == ("fp32", "asked for")
    asked, reason = precision.choose_precision("bf16", wide_gpt2(), "cpu")
    assert asked == "bf16" and ("fp32 would be faster" in reason) == (expected == "fp32")


def test_auto_leaves_a_narrow_model_in_fp32_on_every_processor(repository, monkeypatch):
    monkeypatch.delenv("LORA_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    chosen, reason = precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")
    assert chosen == "fp32" and f"below a hidden size of {precision.LEAST_WIDTH}, this model has 128" in reason


def test_the_environment_may_name_the_format_of_auto(repository, monkeypatch):
    monkeypatch.setenv("LORA_PRECISION", "bf16")
    assert precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")[0] == "bf16"
    assert precision.choose_precision("fp32", with_method(repository, "gpt2", "lora"), "cpu")[0] == "fp32"
    assert precision.choose_precision("auto", with_method(repository, "gpt2", "full"), "cpu")[0] == "fp32"
    monkeypatch.setenv("LORA_PRECISION", "fp8")
    with pytest.raises(ValueError, match=r"\$LORA_PRECISION is 'fp8', expected fp32 or bf16"):
        precision.choose_precision("auto", with_method(repository, "gpt2", "lora"), "cpu")


@pytest.mark.parametrize("task, kind", [("mrpc", "roberta"), ("e2e", "gpt2")])
def test_a_run_in_bf16_says_so_follows_fp32_and_is_scored(repository, toy_data, tmp_path, capsys, monkeypatch, task, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})       # else the line advises fp32
    losses = {}
    for asked in ("fp32", "bf16"):
        train.main(["--model", str(repository / "toy" / kind), "--task", task, "--data-dir", str(toy_data), "--out-dir",
                    str(tmp_path / asked), "--limit-train", "80", "--limit-eval", "4", "--batch-size", "8", "--max-steps",
                    "20", "--lr", "0.005", "--rank", "3", "--dropout", "0", "--model-dropout", "0", "--precision", asked,
                    *(["--beam-size", "2"] if task == "e2e" else [])])
        assert f"precision: frozen weights in {asked} (asked for), what trains in fp32" in capsys.readouterr().out
        (metrics,) = (tmp_path / asked).rglob("metrics.json")
        losses[asked] = [entry["loss"] for entry in json.loads(metrics.read_text(encoding="utf-8"))["epochs"]]
        assert json.loads(metrics.read_text(encoding="utf-8"))["scores"].keys() >= {"accuracy" if task == "mrpc" else "BLEU"}
    assert losses["fp32"][-1] < losses["fp32"][0] or task == "mrpc"
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03) and losses["bf16"] != losses["fp32"]


# ---------------------------------------------------------------- a run keeps its format

def run_toy(repository, toy_data, out, *options):
    train.main(["--model", str(repository / "toy/roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir",
                str(out), "--limit-train", "60", "--limit-eval", "12", "--batch-size", "8", "--epochs", "2", "--lr", "0.003",
                "--rank", "3", "--save-every", "3", *options])
    return next(out.rglob("config.json")).parent


@pytest.mark.parametrize("started, goes_on", [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_run_is_resumed_in_its_format(repository, toy_data, tmp_path, monkeypatch, capsys, started, goes_on):
    """As on another kind of processor, which auto would give the other format: bit for bit what one machine would have done."""
    monkeypatch.setenv("LORA_PRECISION", started)
    whole = run_toy(repository, toy_data, tmp_path / "whole")
    original, calls = train.Trainer.train_step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 8:                                                  # two steps after a save
            raise KeyboardInterrupt
        original(self, *arguments)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "train_step", interrupted)
        run_toy(repository, toy_data, tmp_path / "parts")
    monkeypatch.setenv("LORA_PRECISION", goes_on)
    capsys.readouterr()
    parts = run_toy(repository, toy_data, tmp_path / "parts", "--resume")
    assert f"precision: frozen weights in {started} (as the run that trained it)" in capsys.readouterr().out
    ours, theirs = ((folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (parts, whole))
    metrics = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (parts, whole)]
    assert ours == theirs and metrics[0]["epochs"] == metrics[1]["epochs"] and metrics[0]["frozen_in"] == started


def test_a_format_that_is_asked_for_by_name_is_another_run(repository, toy_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_PRECISION", "fp32")
    for options in ((), ("--precision", "bf16")):
        run_toy(repository, toy_data, tmp_path, "--max-steps", "2", *options)
    formats = {path.parents[1].name: json.loads(path.read_text(encoding="utf-8"))["frozen_in"]
               for path in tmp_path.rglob("metrics.json")}
    assert sorted(formats.values()) == ["bf16", "fp32"] and all(name.endswith("_bf16_train60_eval12") == (found == "bf16")
                                                                for name, found in formats.items())


def test_fp16_is_refused_with_the_reason(capsys):
    for command in (train.parse_arguments, decode.parse_arguments, predict.parse_arguments):
        with pytest.raises(SystemExit):
            command(["--model", "M", "--precision", "fp16"])
        assert "fp16 is not trained here: its range loses small gradients unless they are scaled" in capsys.readouterr().err


@pytest.mark.parametrize("precision_of_run", ["fp32", "bf16"])
def test_an_adapter_is_scored_in_the_format_of_its_run(repository, toy_data, tmp_path, monkeypatch, precision_of_run):
    folder = run_toy(repository, toy_data, tmp_path / "run", "--precision", precision_of_run)
    monkeypatch.setenv("LORA_PRECISION", {"fp32": "bf16", "bf16": "fp32"}[precision_of_run])
    assert precision.format_of_run(folder / "adapter") == precision_of_run
    train.main(["--model", str(repository / "toy/roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir",
                str(tmp_path / "again"), "--limit-train", "60", "--limit-eval", "12", "--eval-only", "--adapter",
                str(folder / "adapter")])
    again = json.loads(next((tmp_path / "again").rglob("metrics.json")).read_text(encoding="utf-8"))
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["scores"]
    assert again["frozen_in"] == precision_of_run and again["scores"] == scores


# ---------------------------------------------------------------- memory and kernels

def test_nothing_keeps_the_mapped_file_alive_once_the_base_is_rounded(repository, tmp_path):
    """A view of it would keep the whole file in memory: what stays fp32 is copied."""
    base = M.GPT2(M.GPT2Config(vocab_size=3000, n_positions=16, n_embd=64, n_layer=2, n_head=4))
    init_weights(base, 0)
    write_safetensors(base.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 3000, "n_positions": 16, "n_embd": 64,
                                                      "n_layer": 2, "n_head": 4}), encoding="utf-8")
    model = M.load_pretrained(tmp_path)
    methods.apply_method(model, "adapter-l", rank=3)
    whole_file = (tmp_path / "model.safetensors").stat().st_size
    assert max(p.untyped_storage().nbytes() for p in model.parameters()) >= 0.9 * whole_file     # views of one mapping
    precision.hold_frozen_in(model, "bf16")
    assert max(p.untyped_storage().nbytes() for p in model.parameters()) == 3000 * 64 * 2


def test_a_gpu_is_awake_before_its_peak_is_forgotten(monkeypatch):
    """torch refuses the second in a process that has used no GPU yet: "Invalid device argument", on the first GPU it met."""
    done = []
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append(device))
    memory.forget_peak("cuda:1")
    assert done == ["init", "cuda:1"]


def test_the_peak_of_a_run_is_its_own():
    memory.forget_peak("cpu")
    before = memory.peak_bytes("cpu")
    block = torch.ones(64 * 2**20 // 4)
    with_block = memory.peak_bytes("cpu")
    del block
    assert with_block >= before + 50 * 2**20
    memory.forget_peak("cpu")
    assert memory.peak_bytes("cpu") < with_block - 50 * 2**20 or sys.platform != "linux"


COUNT_KERNELS = """
import sys
import pathlib, train
from lora import add_lora
from training import run_state
from training.precision import hold_frozen_in
options = train.parse_arguments(["--model", "toy/gpt2", "--task", "e2e", "--data-dir", sys.argv[1], "--batch-size", "8",
                                 "--limit-eval", "4", "--device", "cpu"])
model, task, settings = train.prepare(options, seed=0)[:3]
hold_frozen_in(add_lora(model, 4, 32), "bf16")
trainer = train.Trainer(model, task, settings, 0, pathlib.Path("."), run_state.Interruptions())
for number, batch in enumerate(train.length_grouped_batches(task.train_lengths, 8, 0, 0)[:140]):
    print(f"step {number}", flush=True)
    trainer.update(batch, lr=1e-4)
"""


def test_few_kernels_are_compiled_once_the_run_is_under_way(repository, toy_data):
    """oneDNN compiles one for every new shape of a bf16 product and keeps it: 26 to 46 a step where N is what it is."""
    done = subprocess.run([sys.executable, "-c", COUNT_KERNELS, str(toy_data)], cwd=repository, capture_output=True, text=True,
                          check=True, env=os.environ | {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"})
    steps = done.stdout.split("step ")[1:]
    compiled = [step.count("create:cache_miss") for step in steps]
    assert len(steps) == 140                                                 # without AVX512 products are not oneDNN's
    assert (compiled[0] > 0) == torch.ops.mkldnn._is_mkldnn_bf16_supported()         # it does count
    assert sum(compiled[40:]) / 100 <= 2


def test_a_config_of_another_program_beside_an_adapter_says_nothing(tmp_path):
    (tmp_path / "adapter").mkdir()
    assert precision.format_of_run(tmp_path / "adapter") is None
    for content, expected in (('{"frozen_in": "bf16"}', "bf16"), ("// a remark", None), ('{"frozen_in": 3}', None)):
        (tmp_path / "config.json").write_text(content)
        assert precision.format_of_run(tmp_path / "adapter") == expected
