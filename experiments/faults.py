"""Kill training runs at random moments, resume them, and compare with a run that nobody disturbed, bit for bit.

    python -m experiments.faults                                        # 20 kills, the tests of faults; into results/faults/
    python -m experiments.faults --kills 5 --processes 2 --skip-tests   # the same by torchrun; earlier results are kept

Toy runs of both tasks and two methods: `train.py` in processes that were forked after the import of torch, which saves its
seconds, or torchrun's. A kill is SIGKILL to all of a run's processes, at a seeded share of the time that the undisturbed run
took, or while a state is being written. After it the run is resumed to its end, and everything that it leaves must equal
the undisturbed run's: adapter, state, log, predictions and scores; only what was measured with a clock or is the machine's
own (memory) may differ. Then the tests of faults run, and their counts become rows of the same table.
"""
import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch

from files import cli
from files.text import write_json
from toy.world import write_tasks
from training.run_state import read_state

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = [("mrpc", "lora"), ("e2e", "full"), ("mrpc", "full"), ("e2e", "lora")]
DURING_SAVE = 0.3                                                            # share of the kills that wait for a save
CLOCK = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes"}
TIMEOUT = 300                                                                # seconds; a run takes a few


# ---------------------------------------------------------------- runs

def arguments_for(task: str, method: str, data_dir: Path, out: Path) -> list[str]:
    """train.py's arguments for a run of two epochs with a state every third step."""
    toy = "toy/gpt2" if task == "e2e" else "toy/roberta"
    return ["--model", toy, "--task", task, "--method", method, "--data-dir", str(data_dir), "--out-dir", str(out),
            "--limit-train", "60", "--limit-eval", "6", "--batch-size", "4", "--epochs", "2", "--lr", "0.002",
            "--save-every", "3", *(["--beam-size", "2"] if task == "e2e" else ["--select", "best"])]


def start_command(arguments: list[str], processes: int) -> subprocess.Popen:
    """The real command."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen([sys.executable, *launcher, "train.py", *arguments], cwd=REPOSITORY,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


class ForkedRun:
    """`train.py` in a process forked from one that has imported torch already; behaves like subprocess.Popen as far as this
    file needs it. limit_memory: bytes beyond what the imports take. errors: a file for stderr."""
    context = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else multiprocessing.get_context("spawn")

    def __init__(self, arguments: list[str], limit_memory: int | None = None, errors: Path | None = None):
        self.context.set_forkserver_preload(["train"])
        self.process = self.context.Process(target=run_train, args=(arguments, limit_memory, errors))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode


def run_train(arguments: list[str], limit_memory: int | None, errors: Path | None) -> None:
    """`python train.py ARGUMENTS` in this process, its stderr into the file `errors`."""
    import resource

    import train
    os.chdir(REPOSITORY)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = open(os.devnull, "w", encoding="utf-8"), open(errors or os.devnull, "w", encoding="utf-8")
    sys.argv = ["train.py", *arguments]
    if limit_memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + limit_memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    cli.run(train.main)


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> bool:
    """Wait until the condition holds; False if the process ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def run_folder_in(out: Path) -> Path | None:
    """The one run folder below `out`, once it is opened."""
    return next((path.parent for path in out.rglob("config.json")), None)


def finish(process: subprocess.Popen) -> int:
    """Wait for the process's end; return its status."""
    return process.wait(TIMEOUT)


def family(pid: int) -> list[int]:
    """The process and all that it started, the eldest first: torchrun's workers are no part of its process group."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):                                   # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def undisturbed(start: Callable[[list[str]], subprocess.Popen], arguments: list[str], out: Path) -> tuple[Path, float]:
    """Run once without a fault; returns the folder and the seconds from its opening to the end."""
    process = start(arguments)
    wait_for(lambda: run_folder_in(out), process)
    opened = time.monotonic()
    if finish(process) != 0:
        raise RuntimeError(f"the undisturbed run failed: train.py {' '.join(arguments)}")
    return run_folder_in(out), time.monotonic() - opened


@dataclass
class Kill:
    """What a kill hit."""
    task: str
    method: str
    processes: int
    seed: int
    moment: float | None                                                     # share of the run, or None: during a save
    hit: str                                                                 # what it interrupted
    differences: list[str]                                                   # from the undisturbed run, after the resume


def kill_once(start: Callable[[list[str]], subprocess.Popen], arguments: list[str], out: Path, moment: float | None,
              saves: int, duration: float) -> str | None:
    """Start the run and kill it: `moment` of its duration after its opening, or during its `saves`-th save or the next that
    can be caught. Returns what was hit, None if the run was quicker."""
    process = start(arguments)
    if not wait_for(lambda: run_folder_in(out), process):
        raise RuntimeError("the run ended before it opened its folder")
    folder = run_folder_in(out)
    temporary = folder / "last.pt.tmp"
    if moment is None:
        while saves > 0:
            if not wait_for(temporary.exists, process):
                return None
            send(process, signal.SIGSTOP)                                    # a save takes milliseconds: stop, look, kill
            saves -= 1
            if saves == 0 and not temporary.exists():
                saves = 1
            if saves > 0:
                send(process, signal.SIGCONT)
                wait_for(lambda: not temporary.exists(), process)
    else:
        time.sleep(moment * duration)
    if process.poll() is not None:
        return None
    send(process, signal.SIGKILL)
    finish(process)
    return describe(folder)


def send(process: subprocess.Popen, number: int) -> None:
    """Send a signal to the process and all that it started."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def describe(folder: Path) -> str:
    """What a killed run was doing, as its folder tells."""
    if list(folder.rglob("*.tmp")):
        return f"writing {next(folder.rglob('*.tmp')).name.removesuffix('.tmp')}"
    if not (folder / "last.pt").exists():
        return "between the renames of a save" if (folder / "last.prev.pt").exists() else "before the first save"
    progress = read_state(folder / "last.pt")["progress"]
    return "decoding and scoring" if len(progress["epochs"]) == 3 else "training"


# ---------------------------------------------------------------- comparing

def differences(left: Path, right: Path) -> list[str]:
    """What differs between two finished runs, but for clocks and memory; empty if nothing."""
    found = []
    for name in sorted({path.relative_to(folder).as_posix() for folder in (left, right) for path in folder.rglob("*")
                        if path.is_file()}):
        files = [folder / name for folder in (left, right)]
        if not all(file.exists() for file in files):
            found.append(f"{name} is missing in one")
        elif content(files[0]) != content(files[1]):
            found.append(name)
    return found


def content(file: Path) -> object:
    """What must be equal of a file: everything but clocks and memory."""
    if file.name == "last.pt":
        state = read_state(file)
        del state["log_bytes"]                                               # the log holds clock readings
        return comparable(state)
    if file.suffix == ".jsonl":
        return [comparable(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    if file.name == "metrics.json":
        return comparable(json.loads(file.read_text(encoding="utf-8")))
    return file.read_bytes()


def comparable(value: object) -> object:
    """The same value without clocks, tensors as bytes, so that == compares bit for bit."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in CLOCK}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return repr(value) if isinstance(value, float) else value                # NaN equals NaN


# ---------------------------------------------------------------- the kills

def kill_and_compare(task: str, method: str, data_dir: Path, moments: list[float | None], seed: int, folder: Path,
                     start: Callable[[list[str]], subprocess.Popen], processes: int = 1) -> Iterator[Kill]:
    """One undisturbed run, and for each moment a run that is killed there, resumed, and compared with it."""
    whole, duration = undisturbed(start, arguments_for(task, method, data_dir, folder / "whole"), folder / "whole")
    chance = random.Random(f"{seed} {task} {method}")
    for number, moment in enumerate(moments):
        out, hit = folder / f"killed{number}", None
        arguments, saves = arguments_for(task, method, data_dir, out), chance.randint(1, 8)
        while hit is None:
            shutil.rmtree(out, ignore_errors=True)
            hit = kill_once(start, arguments, out, moment, saves, duration)
            moment, saves = moment and 0.8 * moment, max(1, saves - 1)       # the run was quicker: aim earlier
        status = finish(start([*arguments, "--resume"]))
        found = differences(whole, run_folder_in(out)) if status == 0 else [f"the resumed run ended with status {status}"]
        yield Kill(task, method, processes, seed, moments[number], hit, found)
        shutil.rmtree(out)
    shutil.rmtree(folder / "whole")


def draw_moments(count: int, seed: str) -> list[float | None]:
    """Shares of a run's duration at which to kill it; None: during a save."""
    chance = random.Random(seed)
    return [None if number < round(DURING_SAVE * count) else chance.random() for number in range(count)]


def kill_many(count: int, processes: int, seed: int) -> Iterator[Kill]:
    """`count` kills, spread evenly over CASES, or over its first two for several processes."""
    cases = CASES if processes == 1 else CASES[:2]
    start = ForkedRun if processes == 1 else partial(start_command, processes=processes)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder) / "data")
        for index, (task, method) in enumerate(cases):
            moments = draw_moments(count // len(cases) + (index < count % len(cases)), f"{seed} {index}")
            if moments:
                yield from kill_and_compare(task, method, Path(folder) / "data", moments, seed,
                                            Path(folder) / f"{task}-{method}", start, processes)


# ---------------------------------------------------------------- the tests of faults

TESTS = {"test_faults.py": "runs", "test_fuzz.py": "damaged files", "test_download.py": "downloads", "test_data.py": "data",
         "test_model.py": "weights", "test_gguf.py": "weights", "test_adapter_files.py": "adapters"}
ABOUT_FAULTS = re.compile("broken|damaged|refused|refuse|pickle|outside|missing|unknown|range|truncation|fit|never_guessed")


def run_tests() -> list[dict]:
    """The tests of faults; one row per test function: its group, its name as a sentence, how often, and how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1",
                        *(str(next((REPOSITORY / "tests").rglob(name))) for name in TESTS)], cwd=REPOSITORY, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        rows: dict[tuple[str, str], dict] = {}
        for case in cases:
            file, name = Path(case.get("file", "")).name, case.get("name", "").partition("[")[0]
            if file not in ("test_faults.py", "test_fuzz.py", "test_download.py") and not ABOUT_FAULTS.search(name):
                continue
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}
            row = rows.setdefault((TESTS[file], name), {"group": TESTS[file], "times": 0, "failed": 0, "skipped": 0,
                                                        "what": name.removeprefix("test_").replace("_", " ")})
            row["times"] += int(properties.pop("times", 1))
            row["failed"] += any(case.find(tag) is not None for tag in ("failure", "error"))
            row["skipped"] += case.find("skipped") is not None
            if properties:
                row.setdefault("cases", []).append(properties)
        return list(rows.values())


# ---------------------------------------------------------------- the report

def summary(results: dict) -> str:
    """The table of faults in Markdown, from faults.json."""
    lines = ["| fault | tried | survived |", "|---|---|---|"]
    for processes in sorted({kill["processes"] for kill in results.get("kills", [])}):
        kills = [kill for kill in results["kills"] if kill["processes"] == processes]
        same = sum(not kill["differences"] for kill in kills)
        hits = Counter(kill["hit"] for kill in kills)
        where = ", ".join(f"{count} {hit}" for hit, count in hits.most_common())
        lines.append(f"| kill -9 of a run ({processes} process{'es' * (processes > 1)}), resumed, compared bit for "
                     f"bit ({where}) | {len(kills)} | {same} |")
    titles = {"runs": "runs: signals, full disk, too little memory, damaged states, NaN, two runs in one folder",
              "damaged files": "files damaged by the fuzzer", "downloads": "downloads from a real HTTP server on loopback",
              "data": "malformed data and tokenizer files", "weights": "malformed weights", "adapters": "malformed adapters"}
    for group, title in titles.items():
        rows = [row for row in results.get("tests", []) if row["group"] == group]
        if rows:
            tried = sum(row["times"] for row in rows)
            lines.append(f"| {title} | {tried:,} | {tried - sum(row['failed'] for row in rows):,} |")
    return "\n".join(lines)


def details(results: dict) -> str:
    """A row per kill, per kind of damaged file, and per test."""
    lines = ["| task | method | processes | killed while | after the resume |", "|---|---|---|---|---|"]
    lines += [f"| {kill['task']} | {kill['method']} | {kill['processes']} | {kill['hit']} | "
              f"{', '.join(kill['differences']) or 'bit-identical'} |" for kill in results.get("kills", [])]
    kinds = [case for row in results.get("tests", []) for case in row.get("cases", []) if "kind" in case]
    lines += ["", "| damaged file | refused in one line | loaded as the file says |", "|---|---|---|"]
    lines += [f"| {case['kind']} | {int(case['refused']):,} | {int(case['loaded']):,} |" for case in kinds]
    lines += ["", "| test | times | failed |", "|---|---|---|"]
    lines += [f"| {row['group']}: {row['what']} | {row['times']:,} | {row['failed']} |" for row in results.get("tests", [])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.faults", description="Kill runs, resume them, compare; then run the "
                                     "tests of faults. Earlier parts of the results are kept.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="2 or more: by torchrun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "faults")
    options = parser.parse_args(arguments)
    file = options.out / "faults.json"
    options.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results["machine"] = {"date": date.today().isoformat(), "torch": torch.__version__, "cores": os.cpu_count(),
                          "system": platform.platform()}
    results["kills"] = [kill for kill in results.get("kills", [])
                        if (kill["processes"], kill["seed"]) != (options.processes, options.seed) or not options.kills]
    for kill in kill_many(options.kills, options.processes, options.seed) if options.kills else ():
        print(f"{kill.task}, {kill.method}: killed while {kill.hit}; after --resume "
              + (f"DIFFERENT: {', '.join(kill.differences)}" if kill.differences else "bit-identical"), flush=True)
        results["kills"].append(asdict(kill))
        write_json(results, file)
    if not options.skip_tests:
        results["tests"] = run_tests()
    write_json(results, file)
    (options.out / "faults.md").write_text(f"{summary(results)}\n\n{details(results)}\n", encoding="utf-8", newline="\n")
    print(summary(results))
    failed = any(kill["differences"] for kill in results.get("kills", [])) or any(
        row["failed"] for row in results.get("tests", []))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
