"""What the make targets cost: time, peak memory, disk, and what the quick ones print.

    python -m experiments.costs demo tour counts recipes lint          # into results/costs.json and results/output/*.txt
    python -m experiments.costs ablation-rank baselines report         # half an hour; earlier figures are kept
    python -m experiments.costs pretrain-mini DATA=DIR                 # variables go to make

A target is run once, after the install, as a user would type it. The peak is that of its largest process; the disk is what
the repository's folder has grown by. Where a target finds finished runs it has less to do: measure in a fresh clone. No torch
is imported here, because a process inherits the peak of the one that starts it.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from files import cli

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN = ("demo", "tour", "minilm", "counts", "recipes", "pretrain-mini", "pretrain-toy")    # what they print is kept


def disk_mib(folder: Path) -> float:
    """The sizes of all files below it, but for git's own and what Python compiles."""
    return sum(path.lstat().st_size for path in folder.rglob("*")
               if not {".git", "__pycache__"} & set(path.relative_to(folder).parts)) / 2**20


def cost(target: str, variables: list[str]) -> tuple[dict, str]:
    """Run `make target VARIABLE=VALUE ...`: seconds, processor seconds, peak MiB and the MiB that it leaves in the repository,
    and its standard output. Raises ValueError if it fails."""
    before, started = disk_mib(REPOSITORY), time.perf_counter()
    process = subprocess.Popen(["make", "--silent", target, *variables], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"make {target} ended with status {os.waitstatus_to_exitcode(status)}: see its output above")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"seconds": time.perf_counter() - started, "processor_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mib": peak, "disk_mib": max(0.0, disk_mib(REPOSITORY) - before), "variables": variables}, output


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.costs", description="Measure what make targets cost.")
    parser.add_argument("words", nargs="+", metavar="TARGET or VARIABLE=VALUE")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results")
    options = parser.parse_args(arguments)
    path = options.results / "costs.json"
    made = subprocess.run([sys.executable, "-c", "from experiments.sweep import machine; print(machine())"], cwd=REPOSITORY,
                          capture_output=True, text=True, check=True).stdout.strip()
    variables = [word for word in options.words if "=" in word]
    for target in (word for word in options.words if "=" not in word):
        figures, output = cost(target, variables)
        print(output, end="")
        print(f"make {target}: {figures['seconds']:.1f} s, {figures['processor_seconds']:.1f} s of processor time, "
              f"peak {figures['peak_mib']:,.0f} MiB, {figures['disk_mib']:,.1f} MiB left on disk", flush=True)
        (options.results / "output").mkdir(parents=True, exist_ok=True)
        if target in SHOWN:
            (options.results / "output" / f"{target}.txt").write_text(output, encoding="utf-8", newline="\n")
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(kept | {target: figures | {"made": made}}, indent=2) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
