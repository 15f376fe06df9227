"""All that has to be measured on a GPU, in one command of ten minutes that ends with what it has.

    python -m experiments.gpu --data-dir DIR --tokenizers DIR                    # runs/gpu/gpu.json and runs/gpu/gpu.md
    python -m experiments.gpu --data-dir DIR --tokenizers DIR --pretrain-minutes 8       # and a small GPT-2, pretrained there
    python -m experiments.gpu --data-dir DIR --tokenizers DIR --quick --device cpu       # a little of each: how it is tested

It needs no network and no weights: models have their real size and random numbers, the data are real (E2E, MRPC; tokenizers of
gpt2 and roberta-base). The sections (gpu_sections.py, gpu_pretrain.py) run one after the other, each in a process of its own
with a share of the time: one that fails or hangs writes its error into the page, keeps what it had measured, and the rest go
on. The page is written anew after each. Left out: several GPUs.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from experiments import sweep
from experiments.tables import markdown
from files import cli
from files.text import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
SHARES = {"machine": 4, "checks": 10, "training": 38, "search": 14, "mixed": 18, "resume": 12}       # of the minutes
PRETRAIN = "pretrain"
RECIPES = {                                                                  # make target: model, steps of its run, texts
    "e2e-lora": ("gpt2-medium", 26_290, 630), "e2e-lora-small": ("gpt2", 26_290, 630), "mrpc-lora": ("roberta-base", 6_900, 0),
    "mnli-lora": ("roberta-base", 736_320, 0)}


def run_section(name: str, options: argparse.Namespace, seconds: float) -> dict:
    """What a section has measured, by the end of its process or of its time; with "error" if it did not end well."""
    file = options.out / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "experiments.gpu_sections", name, "--data-dir", str(options.data_dir.resolve()),
               "--tokenizers", str(options.tokenizers.resolve()), "--out", str(options.out.resolve()), "--device",
               options.device, "--seconds", f"{0.9 * seconds:.0f}", *["--quick"] * options.quick]
    started, error = time.perf_counter(), None
    log = options.out / f"{name}.log"
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if process.wait(seconds):
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                error = lines[-1] if lines else f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} s"
        finally:
            stop(process)
    points = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return {"points": points, "seconds": round(time.perf_counter() - started, 1), "error": error}


def stop(process: subprocess.Popen) -> None:
    """A section's process and those it has started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


def command_of(arguments: list[str]) -> str:
    """As anybody types it: D and T in place of folders of this machine."""
    shown = {"--data-dir": "D", "--tokenizers": "T", "--out": "OUT"}
    return " ".join(["python -m experiments.gpu", *(shown.get(before, argument) for before, argument in
                                                    zip(["", *arguments], arguments, strict=False))])


def recipe_times(figures: dict) -> list[dict]:
    """The recipes' whole time, computed: steps and texts by what one takes. Evaluation after each epoch is left out."""
    trained, searched = (figures.get(name, {"points": []})["points"] for name in ("training", "search"))
    rows = []
    for target, (model, steps, texts) in RECIPES.items():
        for point in trained:
            if (point.get("model"), point.get("way")) == (model, "ours"):
                a_text = [p["seconds_per_text"] for p in searched if p["model"] == model and p["way"].startswith("ours")]
                if texts and not a_text:
                    continue
                seconds = steps * point["milliseconds"] / 1e3 + (texts * min(a_text) if texts else 0)
                rows.append({"target": target, "precision": point["precision"], "steps": steps, "texts": texts,
                             "minutes, computed": seconds / 60})
    return rows


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "–" if value is None else str(value)


def table(points: list[dict]) -> list[str]:
    """The points as a table; a point of other columns begins another."""
    lines: list[str] = []
    while points:
        columns = list(points[0])
        alike = [point for point in points if list(point) == columns]
        lines += [*markdown(columns, [[shown(point[column]) for column in columns] for point in alike]), ""]
        points = [point for point in points if list(point) != columns]
    return lines


def page(figures: dict) -> str:
    """gpu.md."""
    lines = ["# On a GPU", "", f"`{figures['command']}` {figures['made']} Random weights of "
             f"{'toy' if '--quick' in figures['command'] else 'real'} size; medians.", ""]
    for name, section in figures.items():
        if isinstance(section, dict):
            lines += [f"## {name}", "", *table(section["points"])]
            lines += [f"**Not finished**: {section['error']}", ""] if section["error"] else []
            lines += [f"({section['seconds']:.0f} s)", ""]
    if times := recipe_times(figures):
        lines += ["## The recipes, computed", "", *table(times)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, type=Path, help="folder with e2e/ and glue/MRPC")
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder with gpt2/ and roberta-base/")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="auto", help="auto (default: the GPU if there is one), cuda, cuda:N or cpu")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all sections but the next (default 9.5)")
    parser.add_argument("--pretrain-minutes", type=float, default=0.0, help="pretrain a small GPT-2 for so long, then train it "
                        "on E2E by LoRA and in full (default 0: not)")
    parser.add_argument("--only", nargs="+", choices=[*SHARES, PRETRAIN], help="these sections alone")
    parser.add_argument("--quick", action="store_true", help="toy sizes, in a minute or two on a CPU")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {"command": command_of(arguments or sys.argv[1:]), "made": sweep.machine()}
    chosen = [name for name in SHARES if name in (options.only or SHARES)]
    end = time.perf_counter() + 60 * options.minutes
    for number, name in enumerate(chosen):                                   # what one leaves of its time, the next ones have
        left = end - time.perf_counter()
        figures[name] = run_section(name, options, left * SHARES[name] / sum(SHARES[later] for later in chosen[number:]))
        report(name, figures, options.out)
    if options.pretrain_minutes:
        figures[PRETRAIN] = run_section(PRETRAIN, options, 60 * options.pretrain_minutes)
        report(PRETRAIN, figures, options.out)
    return 1 if any(section["error"] for section in figures.values() if isinstance(section, dict)) else 0


def report(name: str, figures: dict, out: Path) -> None:
    """The files anew, and a line on how the section ended."""
    section = figures[name]
    write_json(figures | {"recipes": recipe_times(figures)}, out / "gpu.json")
    (out / "gpu.md").write_text(page(figures), encoding="utf-8", newline="\n")
    print(f"{name}: {len(section['points'])} points in {section['seconds']:.0f} s"
          + (f"; {section['error']}" if section["error"] else ""), flush=True)


if __name__ == "__main__":
    cli.run(main)
