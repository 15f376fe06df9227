"""Nothing lost: runs that are killed, stopped, torn, starved of disk or memory, or started twice.

The kills are real ones (SIGKILL to a process that trains), a handful here; `python -m experiments.faults` makes the full
number with the real commands.
"""
import errno
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from experiments.faults import ForkedRun, arguments_for, differences, kill_and_compare, run_folder_in, undisturbed, wait_for
from files import cli, writing
from files import weights as W
from files.text import write_json
from files.writing import fsync_folder
from training import run_state, tasks

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups of POSIX")


# ---------------------------------------------------------------- killed processes

@posix
@pytest.mark.parametrize("task, method", [("mrpc", "lora"), ("e2e", "full")])
def test_a_killed_run_resumes_to_the_same_bits(toy_data, tmp_path, task, method, record_property):
    kills = list(kill_and_compare(task, method, toy_data, [None, 0.6], seed=3, folder=tmp_path, start=ForkedRun))
    record_property("times", len(kills))
    assert [kill.differences for kill in kills] == [[], []], kills
    assert kills[0].hit == "writing last.pt"


@posix
@pytest.mark.parametrize("number, status, task, method", [(signal.SIGTERM, 143, "e2e", "lora"),
                                                          (signal.SIGINT, 130, "mrpc", "full")])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(toy_data, tmp_path, number, status, task, method):
    whole, _ = undisturbed(ForkedRun, arguments_for(task, method, toy_data, tmp_path / "whole"), tmp_path / "whole")
    arguments = arguments_for(task, method, toy_data, tmp_path / "parts")
    arguments[arguments.index("--save-every") + 1] = "1000"                  # only the signal saves, and the epochs' ends
    process = ForkedRun(arguments, errors=tmp_path / "errors")
    assert wait_for(lambda: list((tmp_path / "parts").rglob("log.jsonl")), process)
    time.sleep(0.1)
    os.kill(process.pid, number)
    assert process.wait(60) == status
    folder = run_folder_in(tmp_path / "parts")
    step = run_state.read_state(folder / "last.pt")["progress"]["step"]
    error = (tmp_path / "errors").read_text(encoding="utf-8").splitlines()[-1]
    assert error == f"error: interrupted; the state of step {step} is kept in {folder}: --resume goes on from there"
    assert ForkedRun([*arguments, "--resume"]).wait(60) == 0
    assert differences(whole, folder) == []


@posix
def test_a_second_run_in_the_same_folder_is_refused(toy_data, tmp_path):
    arguments = arguments_for("mrpc", "lora", toy_data, tmp_path / "out")
    first = ForkedRun([*arguments, "--epochs", "200"])
    assert wait_for(lambda: run_folder_in(tmp_path / "out"), first)
    for option in ("--resume", "--overwrite"):
        assert ForkedRun([*arguments, "--epochs", "200", option], errors=tmp_path / "errors").wait(60) == 1
        lines = [line for line in (tmp_path / "errors").read_text(encoding="utf-8").splitlines() if "loaded" not in line]
        assert lines == [f"error: {run_folder_in(tmp_path / 'out')} is in use by another run (process {first.pid}): wait until "
                         "it ends, stop it, or give another --out-dir"]
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    with run_state.only_run_in(run_folder_in(tmp_path / "out")):             # the lock died with its process
        pass
    assert not (run_folder_in(tmp_path / "out") / ".lock").exists()


@posix
def test_too_little_memory_says_what_to_lower(toy_data, tmp_path):
    arguments = [*arguments_for("e2e", "full", toy_data, tmp_path / "out"), "--limit-train", "2000", "--batch-size", "2000"]
    process = ForkedRun(arguments, limit_memory=400 << 20, errors=tmp_path / "errors")
    assert process.wait(120) == 1
    assert (tmp_path / "errors").read_text(encoding="utf-8").splitlines()[-1].startswith(
        "error: out of memory at step 1; no state is saved yet; with --grad-accumulation 2 the same update needs less: lower ")


# ---------------------------------------------------------------- the state on disk

class Crash(BaseException):
    """The process ends here."""


def small_run():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def advance(model, optimizer, step):
    """One step and its state's progress."""
    model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return run_state.Progress(step=step)


def restored(folder):
    model, optimizer = small_run()
    progress = run_state.restore_state(folder, model, optimizer)
    return progress.step, model.weight.detach().clone()


def test_a_crash_at_any_moment_of_a_save_leaves_a_whole_state(tmp_path, monkeypatch, capsys, record_property):
    """The process ends at the k-th call of the system, for every k, with what was written torn or whole."""
    calls = {"os.replace": os.replace, "os.fsync": os.fsync, "fsync_folder": fsync_folder, "torch.save": torch.save}
    moments = 0
    for crash_at in range(1, 100):
        folder = tmp_path / str(crash_at)
        folder.mkdir()
        model, optimizer = small_run()
        weights = {}
        for step in (1, 2):
            progress = advance(model, optimizer, step)
            run_state.save_state(folder, model, optimizer, progress)
            weights[step] = model.weight.detach().clone()
        progress = advance(model, optimizer, 3)
        weights[3] = model.weight.detach().clone()
        countdown = iter(range(crash_at - 1, -2000, -1))

        def crashing(original, torn=lambda *arguments: None, countdown=countdown):
            def call(*arguments, **options):
                if next(countdown) == 0:
                    torn(*arguments)
                    raise Crash
                return original(*arguments, **options)
            return call
        monkeypatch.setattr(os, "replace", crashing(calls["os.replace"]))
        monkeypatch.setattr(os, "fsync", crashing(calls["os.fsync"]))
        monkeypatch.setattr(writing, "fsync_folder", crashing(calls["fsync_folder"]))
        monkeypatch.setattr(torch, "save", crashing(calls["torch.save"], lambda state, file: file.write(b"half a state")))
        monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)     # a dead process tidies nothing up
        crashed = False
        try:
            run_state.save_state(folder, model, optimizer, progress)
        except Crash:
            crashed = True
        monkeypatch.undo()
        step, weight = restored(folder)
        assert step in ((2, 3) if crashed else (3,)) and torch.equal(weight, weights[step])
        said = capsys.readouterr().err
        assert ("last.pt is missing; going on from last.prev.pt, step 2" in said) == (not (folder / "last.pt").exists())
        if not crashed:
            break
        moments += 1
    assert moments >= 5
    record_property("times", moments)


def saved_twice(folder):
    model, optimizer = small_run()
    for step in (1, 2):
        run_state.save_state(folder, model, optimizer, advance(model, optimizer, step))
    return folder


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys, record_property):
    """Cut short, or any bit turned: torch.load alone would load most of these as other numbers."""
    whole = (saved_twice(tmp_path) / "last.pt").read_bytes()
    expected, before = restored(tmp_path)[1], (tmp_path / "last.prev.pt").read_bytes()
    chance, outcomes = random.Random(1), []
    for number in range(150):
        damaged = bytearray(whole)
        if number % 3 == 0:
            del damaged[chance.randrange(len(damaged)):]
        else:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (tmp_path / "last.pt").write_bytes(damaged)
        (tmp_path / "last.prev.pt").write_bytes(before)
        step, weight = restored(tmp_path)
        said = capsys.readouterr().err
        if step == 2:                                                        # the bit meant nothing, such as a date
            assert torch.equal(weight, expected) and not said
        else:
            assert step == 1 and re.search(r"last.pt is damaged \(.+\); going on from last.prev.pt, step 1\n$", said), said
            assert not (tmp_path / "last.pt").exists()
        outcomes.append(step)
    assert outcomes.count(1) > 100
    record_property("times", len(outcomes))


def test_two_damaged_states_are_a_clear_error(tmp_path):
    saved_twice(tmp_path)
    for name in run_state.STATES:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last.pt is damaged \(.*\) and last.prev.pt is damaged \(.*\), so there is nothing "
                                         "to resume from: start again with --overwrite"):
        restored(tmp_path)


def test_a_state_runs_no_code(tmp_path):
    class Dangerous:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))
    torch.save({"trained": Dangerous()}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is damaged"):
        restored(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_keeps_the_state_that_was_there(tmp_path):
    saved_twice(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in run_state.STATES}
    (tmp_path / "last.pt.tmp").symlink_to("/dev/full")
    model, optimizer = small_run()
    with pytest.raises(OSError, match=r"last.pt: No space left on device; what stood there is kept: make room"):
        run_state.save_state(tmp_path, model, optimizer, advance(model, optimizer, 3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(OSError, match=r"x.json: No space left on device"):
        (tmp_path / "x.json.tmp").symlink_to("/dev/full")
        write_json({"a": 1}, tmp_path / "x.json")


def test_numbers_that_are_not_finite_are_never_saved(tmp_path):
    saved_twice(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in run_state.STATES}
    model, optimizer = small_run()
    model.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match="step 3: tensor 'bias' holds 1 NaN or infinite numbers of 3.*lower --lr"):
        run_state.save_state(tmp_path, model, optimizer, run_state.Progress(step=3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_state_of_another_run_is_refused(tmp_path):
    saved_twice(tmp_path)
    model = torch.nn.Linear(5, 4)
    with pytest.raises(ValueError, match="the saved state is of another run"):
        run_state.restore_state(tmp_path, model, torch.optim.AdamW(model.parameters()))


def test_the_log_is_cut_where_the_state_was_saved(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 10}\n{"step": 20}\n{"st', encoding="utf-8")
    run_state.cut_log(log, 13)
    assert log.read_text(encoding="utf-8") == '{"step": 10}\n'
    run_state.cut_log(log, 26)
    assert log.read_text(encoding="utf-8") == '{"step": 10}\n' and "lines of it are lost" in capsys.readouterr().err
    run_state.cut_log(tmp_path / "none", 0)


# ---------------------------------------------------------------- the loop

@pytest.fixture()
def run(toy_data, tmp_path):
    """Run train.py in this process on a toy; returns the run's folder."""
    def run(task, *options, method="lora", out="runs"):
        train.main([*arguments_for(task, method, toy_data, tmp_path / out), *options])
        return run_folder_in(tmp_path / out)
    return run


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory):
    """The folder of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    train.main(arguments_for("mrpc", "lora", toy_data, out))
    return run_folder_in(out)


def stop_before_step(monkeypatch, number, action):
    """Call `action(trainer)` in place of the number-th training step, counted from 1."""
    original, calls = train.Trainer.train_step, []

    def step(self, *arguments):
        calls.append(1)
        if len(calls) == number:
            action(self)
        return original(self, *arguments)
    monkeypatch.setattr(train.Trainer, "train_step", step)


def test_a_run_that_ended_before_its_first_save_starts_afresh(run, whole, monkeypatch, tmp_path, capsys):
    def stop(trainer):
        raise Crash
    stop_before_step(monkeypatch, 12, stop)
    with pytest.raises(Crash):
        run("mrpc", "--save-every", "100")
    monkeypatch.undo()
    folder = run_folder_in(tmp_path / "runs")
    assert (folder / "log.jsonl").read_text(encoding="utf-8").count("\n") == 1
    assert differences(whole, run("mrpc", "--resume")) == []
    assert "holds no saved state: the run starts at its beginning" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_ends_the_run_with_the_older_state(run, whole, monkeypatch, tmp_path):
    stop_before_step(monkeypatch, 8, lambda trainer: (trainer.folder / "last.pt.tmp").symlink_to("/dev/full"))
    with pytest.raises(OSError, match=r"last.pt: No space left on device; what stood there is kept: make room and try "
                                      r"again; the state of step 6 is kept in .*: --resume goes on from there"):
        run("mrpc")
    monkeypatch.undo()
    assert differences(whole, run("mrpc", "--resume")) == []


def test_a_full_disk_under_the_log_is_told_too(run, whole, monkeypatch, tmp_path):
    def full(trainer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    stop_before_step(monkeypatch, 11, full)
    with pytest.raises(OSError, match=r"No space left on device; the state of step 9 is kept"):
        run("mrpc")
    monkeypatch.undo()
    with open(run_folder_in(tmp_path / "runs") / "log.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 1')                                              # what a full disk leaves of a line
    assert differences(whole, run("mrpc", "--resume")) == []


def test_a_loss_that_is_not_finite_names_step_batch_and_state(run, whole, monkeypatch, tmp_path):
    original = tasks.PairTask.loss

    def broken(self, model, indices):
        return original(self, model, indices) * float("nan")
    stop_before_step(monkeypatch, 20, lambda trainer: monkeypatch.setattr(tasks.PairTask, "loss", broken))
    with pytest.raises(ValueError, match=r"the loss is nan at step 20 \(epoch 2, batch 5, training samples \d+, \d+, \d+, "
                                         r"\d+\): lower --lr; the state of step 18 is kept"):
        run("mrpc")
    monkeypatch.undo()
    assert differences(whole, run("mrpc", "--resume")) == []


def test_weights_that_are_not_finite_replace_no_adapter(run, monkeypatch, tmp_path):
    def spoil(trainer):
        next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(float("inf"))
    original = train.Trainer.close_evaluation

    def close_evaluation(self, scores, epoch_ends):
        if self.progress.epoch == 1:
            spoil(self)
        return original(self, scores, epoch_ends)
    monkeypatch.setattr(train.Trainer, "close_evaluation", close_evaluation)
    with pytest.raises(ValueError, match=r"step 30: tensor '.*lora_A.*' holds \d+ NaN or infinite numbers"):
        run("mrpc", "--select", "last")
    W.check_finite(W.read_safetensors(run_folder_in(tmp_path / "runs") / "adapter" / "adapter_model.safetensors"), "adapter")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate "
                                                "memory: you tried to allocate 8 bytes.")], ids=["python", "cuda", "cpu"])
def test_memory_that_runs_out_says_what_to_lower(run, monkeypatch, error):
    def fail(trainer):
        raise error
    stop_before_step(monkeypatch, 5, fail)
    with pytest.raises(MemoryError, match="out of memory at step 5; the state of step 3 is kept"):
        run("mrpc")


def test_another_error_is_not_taken_for_too_little_memory(run, monkeypatch):
    def fail(trainer):
        raise RuntimeError("shapes do not fit")
    stop_before_step(monkeypatch, 5, fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run("mrpc")


def test_constant_predictions_are_warned_about(run, monkeypatch, capsys):
    monkeypatch.setattr(tasks.PairTask, "predict", lambda self, model, samples: ([1] * len(samples), 0.7))
    run("mrpc", "--max-steps", "2")
    assert "warning: every prediction on dev is the same: this run has collapsed" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["data", "base"])
def test_a_run_is_not_resumed_on_other_data_or_another_base(run, repository, tmp_path, toy_data, change):
    import shutil
    shutil.copytree(toy_data, tmp_path / "data")
    shutil.copytree(repository / "toy" / "roberta", tmp_path / "model")
    options = ("--data-dir", str(tmp_path / "data"), "--model", str(tmp_path / "model"), "--max-steps", "4")
    run("mrpc", *options)
    if change == "data":
        path = tmp_path / "data" / "glue" / "MRPC" / "train.tsv"
        lines = path.read_text(encoding="utf-8").split("\n")
        lines[3], lines[4] = lines[4], lines[3]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path = tmp_path / "model" / "model.safetensors"
        tensors = {name: tensor * 1.01 for name, tensor in W.read_safetensors(path).items()}
        W.write_safetensors(tensors, path)
    with pytest.raises(ValueError, match=f"was started with {change} = .*[0-9a-f]{{16}}.*, not .*[0-9a-f]{{16}}") as refusal:
        run("mrpc", *options, "--resume")
    assert ("--init-adapter" in str(refusal.value)) == (change == "data")    # an adapter of another base would be refused


def test_a_finished_run_is_left_as_it_is(run, capsys):
    folder = run("mrpc")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    for options in ((), ("--resume",)):                                      # the same command again, too
        run("mrpc", *options)
        assert f"{folder} is finished: its results are in {folder / 'metrics.json'}; --overwrite" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()} == before


def test_overwriting_leaves_nothing_of_the_run_before(run, monkeypatch, tmp_path):
    folder = run("mrpc")

    def stop(trainer):
        raise Crash
    stop_before_step(monkeypatch, 1, stop)
    with pytest.raises(Crash):
        run("mrpc", "--overwrite")
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl"}
    assert (folder / "log.jsonl").read_bytes() == b""


# ---------------------------------------------------------------- one error style

@pytest.mark.parametrize("error, status, line", [
    (ValueError("found\n  this"), 1, "error: found this"),
    (FileNotFoundError("x is missing"), 1, "error: x is missing"),
    (MemoryError(), 1, "error: out of memory: lower the batch size or the beam size, or take a smaller model"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "error: CUDA out of memory. Tried: lower the batch size or"),
    (KeyboardInterrupt(), 130, "error: interrupted"),
    (cli.Interrupted(signal.SIGTERM, "interrupted; kept"), 143, "error: interrupted; kept"),
    (cli.Interrupted(signal.SIGINT), 130, "error: interrupted"),
], ids=lambda value: type(value).__name__)
def test_every_error_is_one_line_with_its_status(monkeypatch, capsys, error, status, line):
    def main():
        raise error
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    said = capsys.readouterr().err.strip()
    assert exit.value.code == status and said.startswith(line) and "\n" not in said


def test_debug_shows_the_traceback_and_bugs_keep_theirs(monkeypatch):
    def main():
        assert "--debug" not in sys.argv
        raise ValueError("bad input")
    monkeypatch.setattr(sys, "argv", ["command", "--debug"])
    with pytest.raises(ValueError, match="bad input"):
        cli.run(main)
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_signals_wait_for_the_end_of_what_is_held(monkeypatch):
    with run_state.Interruptions() as interruptions:
        done = []
        with pytest.raises(cli.Interrupted) as caught:
            with interruptions.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("whole")
        assert done == ["whole"] and caught.value.signum == signal.SIGTERM
    with run_state.Interruptions() as interruptions:
        with pytest.raises(cli.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    with run_state.Interruptions() as interruptions, pytest.raises(KeyboardInterrupt) as caught:
        with interruptions.held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)                              # whoever presses twice is not kept waiting
            time.sleep(1)
    assert not isinstance(caught.value, cli.Interrupted)
    with run_state.Interruptions() as interruptions, pytest.raises(cli.Interrupted):
        with interruptions.held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)                             # torchrun passes Ctrl-C on as this
            done.append("whole")
    assert done == ["whole", "whole"]
