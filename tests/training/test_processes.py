"""processes.py with real processes: two of them give the losses of one, one writes, and an error in one ends both."""
import json
import os
import subprocess
import sys

import pytest

import train
from files import weights as W


def arguments(repository, toy_data, out, *options):
    """train.py's, for the toy RoBERTa in fp32, without dropout."""
    return ["--model", str(repository / "toy" / "roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir",
            str(out), "--limit-train", "61", "--limit-eval", "12", "--batch-size", "8", "--lr", "0.003", "--dropout", "0",
            "--model-dropout", "0", "--precision", "fp32", *options]


def run_two(repository, *given):
    """torchrun train.py in two processes; returns (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
                           "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "train.py",
                           *arguments(repository, *given)], cwd=repository, capture_output=True, text=True, timeout=170,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout, done.stderr


def result(out):
    (metrics,) = out.rglob("metrics.json")
    log = [json.loads(line) for line in (metrics.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return json.loads(metrics.read_text(encoding="utf-8")), log


def test_two_processes_give_the_losses_of_one(repository, toy_data, tmp_path):
    """Two epochs; the last batch of each has one sample, so that one process has none."""
    assert train.main(arguments(repository, toy_data, tmp_path / "one", "--epochs", "2", "--batch-size", "3")) == 0
    status, stdout, stderr = run_two(repository, toy_data, tmp_path / "two", "--epochs", "2", "--batch-size", "3")
    assert status == 0, stderr
    (one, one_log), (two, two_log) = result(tmp_path / "one"), result(tmp_path / "two")
    assert stdout.count("run folder: ") == 1 == stderr.count("loaded ")
    assert one["steps"] == two["steps"] == 42 and len(one_log) == len(two_log) == 5
    for mine, theirs in zip(one_log, two_log, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5) and mine["lr"] == theirs["lr"]
    for mine, theirs in zip(one["epochs"], two["epochs"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5) and mine["accuracy"] == theirs["accuracy"]
    ours, theirs = (W.read_safetensors(next(tmp_path.glob(f"{name}/**/adapter_model.safetensors"))) for name in ("one", "two"))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-4


def test_an_error_in_the_first_process_ends_both(repository, toy_data, tmp_path):
    """The run folder is taken: only the first process can know, and the second must not wait for it."""
    assert train.main(arguments(repository, toy_data, tmp_path, "--max-steps", "1")) == 0
    next(tmp_path.rglob("metrics.json")).unlink()                            # an unfinished one
    status, _, stderr = run_two(repository, toy_data, tmp_path, "--max-steps", "1")
    assert status != 0 and "error: " in stderr and "holds an unfinished run: give --resume" in stderr
