"""The runs that an experiment has made, from their folders or from the lines that are kept of them.

results/runs.jsonl holds a line per run, in the order of their places:

    place        <folder of the command>/seed<k>, or .../base for an evaluation of the base; the path that the run had
    metrics      its metrics.json as it is
    config       its config.json as it is; null for an evaluation of the base, which has none
    log          the training loss at every logged step: {"step": [...], "loss": [...]}, six digits of each loss

results/plans.jsonl (the experiments as they were run: sweep.make_plan) and results/subspaces.jsonl have the same form: a line
per thing, each with its place. Left out: the rest of a run's folder, above all its weights and texts; and of the log the
speed of every step, of which metrics.json holds the mean.
"""
import json
from pathlib import Path

from files.text import read_json, write_json
from files.writing import written_whole

ANALYSES = ("spectra", "forgetting")                                         # files of lines, of glue_analysis.py
DIVERGED = "lower --lr"                                                      # in the last line of what such a run prints


def is_single(row: dict) -> bool:
    """Whether a row has one run and no seeds: an evaluation of the base."""
    return "--eval-only" in row["command"]


def finished(runs_dir: Path, row: dict, seed: int) -> Path | None:
    """The metrics.json of a row's run, if it is there."""
    found = sorted((runs_dir / row["folder"]).rglob("metrics.json" if is_single(row) else f"seed{seed}/metrics.json"))
    return found[0] if found else None


def places(plan: dict, row: dict) -> dict[int, str]:
    """Seed -> the place of the row's run; an evaluation of the base has one, under the plan's first seed. A row may have seeds
    of its own in place of the plan's."""
    if is_single(row):
        return {plan["seeds"][0]: f"{row['folder']}/base"}
    return {seed: f"{row['folder']}/seed{seed}" for seed in row.get("seeds", plan["seeds"])}


def from_folders(plans: list[dict], runs_dir: Path) -> dict[str, dict]:
    """place -> line, of every finished run of these plans."""
    runs = {}
    for plan in plans:
        for row in plan["rows"]:
            for seed, place in places(plan, row).items():
                path = finished(runs_dir, row, seed)
                if path is not None and place not in runs:
                    config = path.parent / "config.json"
                    runs[place] = {"place": place, "metrics": read_json(path),
                                   "config": read_json(config) if config.exists() else None,
                                   "log": read_log(path.parent / "log.jsonl")}
    return runs


def to_folders(lines: dict[str, dict], runs_dir: Path) -> None:
    """The way back: where a kept run has no folder, write what is kept of it there, so that its experiment goes on from it on
    another machine. The run's weights and texts are not kept."""
    for place, line in lines.items():
        folder = runs_dir / place
        if not any(folder.parent.rglob(f"{folder.name}/metrics.json")):
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
                log.writelines(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in
                               zip(line["log"]["step"], line["log"]["loss"], strict=True))
            if line["config"] is not None:
                write_json(line["config"], folder / "config.json")
            write_json(line["metrics"], folder / "metrics.json")             # last: it says that the run is finished


def restore(family: str, runs_dir: Path, results: Path = Path("results")) -> None:
    """to_folders of the runs of every kept plan whose experiment's name begins with `family`, whatever their base; of a run
    that diverged, which left no line of its own, the log that says so; and what was read off trained weights."""
    plans = [plan for plan in read_lines(results / "plans.jsonl").values() if plan["experiment"].startswith(family)]
    wanted = {place for plan in plans for row in plan["rows"] for place in places(plan, row).values()}
    to_folders({place: line for place, line in read_lines(results / "runs.jsonl").items() if place in wanted}, runs_dir)
    for row in (row for plan in plans for row in plan["rows"] if row.get("diverged")):
        log = runs_dir / row["folder"] / "seed0.txt"
        if not log.exists():
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"it diverged, as {results / 'plans.jsonl'} says: {DIVERGED}\n", encoding="utf-8")
    for name in ANALYSES:
        if lines := read_lines(results / family / f"{name}.jsonl"):
            keep_lines(lines | read_lines(runs_dir / f"{name}.jsonl"), runs_dir / f"{name}.jsonl")


def has_diverged(row: dict, runs_dir: Path) -> bool:
    """Whether the row's run, a search's, ended with a line that says to lower the rate."""
    log = runs_dir / row["folder"] / "seed0.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return bool(lines) and DIVERGED in lines[-1]


def with_earlier_rows(plan: dict, kept: dict | None, has_new_runs: bool) -> dict:
    """A plan as it is kept where an earlier form of it is: no row of that is dropped (another machine may have made its runs),
    what diverged once stays so, and a machine is named where it has made a run of the plan and not where it only saw them."""
    if kept is None:
        return plan
    diverged = {row["folder"] for row in kept["rows"] if row.get("diverged")}
    rows = [row | ({"diverged": True} if row["folder"] in diverged else {}) for row in plan["rows"]]
    labels, made = {row["label"] for row in rows}, {}
    if "made" in kept and not has_new_runs:
        made = {"made": kept["made"]}
    elif "made" in kept and plan["made"] not in kept["made"]:
        made = {"made": f"{kept['made']} / {plan['made']}"}
    return plan | made | {"rows": rows + [row for row in kept["rows"] if row["label"] not in labels]}


def read_log(path: Path) -> dict[str, list]:
    """The loss at every logged step, as columns; empty ones where there is no log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return {"step": [entry["step"] for entry in entries], "loss": [float(f"{entry['loss']:.6g}") for entry in entries]}


def runs_of(plan: dict, runs: dict[str, dict]) -> dict[str, list[dict]]:
    """Label -> the metrics of its runs in the order of the seeds, each with its place, its config and its log."""
    found = {}
    for row in plan["rows"]:
        lines = [runs[place] for place in places(plan, row).values() if place in runs]
        found[row["label"]] = [line["metrics"] | {"place": line["place"], "config": line["config"] or {}, "log": line["log"]}
                               for line in lines]
    return found


# ---------------------------------------------------------------- files of a line per thing

def read_lines(path: Path) -> dict[str, dict]:
    """place -> line; empty where there is no file. Raises ValueError for a line that is none."""
    lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            lines[line["place"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object with its place, found {text[:40]!r} "
                             f"({error!r}); take back what was committed, git checkout {path}, or remove a "
                             "file that never was") from None
    return lines


def keep_lines(new: dict[str, dict], path: Path) -> dict[str, dict]:
    """Add lines to a file, or put them in place of those of the same place; returns what it then holds. Equal lines give
    equal bytes: they are in the order of their places, and a line that has not changed stays as it was."""
    lines = read_lines(path) | new
    lines = {place: lines[place] for place in sorted(lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        for line in lines.values():
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8"))
    return lines
