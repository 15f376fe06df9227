"""What was measured beside the runs, a row each, for results/README.md: what it is, what came out, and the command. A file that
is not there has no row. Left out: the tables, which stand in results/bench/*.md and results/faults/faults.md.
"""
import statistics
from collections.abc import Callable
from pathlib import Path

from experiments.tables import markdown, spread
from files.text import read_json


def step(found: dict) -> str:
    ours = {point["model"]: point for point in found["points"] if (point["way"], point["precision"]) == ("ours", "fp32")}
    peers = {point["model"]: point for point in found["points"] if (point["way"], point["precision"]) == ("peer", "fp32")}
    return "times as fast, and share of the memory: " + ", ".join(
        f"{model} {point['against_peer_same_precision']:.2f} ({point['peak_mib'] / peers[model]['peak_mib']:.0%})"
        for model, point in ours.items() if model in peers)


def precisions(found: dict) -> str:
    differences = {name: [b - a for a, b in zip(of["fp32"], of["bf16"], strict=True)] for name, of in found["scores"].items()}
    return "bf16 less fp32, seed by seed: " + "; ".join(f"{name} {spread(values, 4)}" for name, values in differences.items())


def search(found: dict) -> str:
    seconds = found["seconds_per_prompt"]
    return (f"{seconds['hf']:.2f} s a prompt, {seconds['transformers']:.2f} s by transformers: "
            f"{statistics.median(found['ratios']):.2f} times as fast; {found['differing']} of {found['prompts']} texts differ")


def mixed(found: dict) -> str:
    def of(key: str) -> str:
        values = [point[key][0] for point in found["points"] if point[key][0] is not None]
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    return f"mixed / merged weights {of('mixed_by_merged')}, PEFT / mixed {of('peft_by_mixed')}; medians and range"


def requests(found: dict) -> str:
    return (f"{found['requests']:,} requests for {found['adapters']} adapters: {found['seconds']:.0f} s in one process, "
            f"{found['seconds_apart']:.0f} s in one per adapter; {found['different_answers']} answers differ")


def growth(found: dict) -> str:
    return "; ".join(
        f"{name} {points[0][name]} to {points[-1][name]}: {points[0]['milliseconds']:,.0f} to "
        f"{points[-1]['milliseconds']:,.0f} ms" for name, points in found["points"].items())


def flat(found: dict) -> str:
    """Of each toy model and format."""
    steps = list(next(iter(found["resident_mib"].values())))
    return f"step {steps[0]} to step {steps[-1]}, at most: " + "; ".join(
        f"{name} {growth:+.1%}" for name, growth in found["growth"].items())


def launches(found: dict) -> str:
    """Of a training step, ours and the peer's."""
    of = {(point["what"], point["way"]): point for point in found["points"]}
    return "kernels and waits of a training step, on a simulated device: " + "; ".join(
        f"{what.split(', ')[1]} {point['kernels']:,.0f} and {point['syncs']:.0f}, by transformers and PEFT "
        f"{of[what, 'peer']['kernels']:,.0f} and {of[what, 'peer']['syncs']:.0f}"
        for (what, way), point in of.items() if way == "ours" and what.startswith("training") and (what, "peer") in of)


def gpu(found: dict) -> str:
    """Of a training step, ours and the peer's, and whether the numbers are right."""
    steps = [point for point in found["training"]["points"] if (point.get("way"), point.get("precision")) == ("ours", "fp32")]
    exact = [check for check in found["checks"]["points"] if check["products"] == "exact"]
    return (f"{sum(check['holds'] == 'True' for check in exact)} of {len(exact)} checks hold; a LoRA step in fp32, and "
            "transformers and PEFT by it: " + ", ".join(
                f"{step['model']} {step['milliseconds']:.0f} ms, {step['peer by it']:.2f}" for step in steps))


def waiting(found: dict) -> str:
    return "; ".join(f"{name} {seconds:.1f} s" for name, seconds in found["seconds"].items())


def faults(found: dict) -> str:
    kills = found.get("kills", [])
    same = sum(not kill["differences"] for kill in kills)
    tests = found.get("tests", [])
    return (f"{same} of {len(kills)} killed runs end bit-identical; {sum(row['times'] for row in tests):,} other faults in "
            f"{len(tests)} tests, {sum(row['failed'] for row in tests)} failed")


def targets(found: dict) -> str:
    chosen = [name for name in ("tour", "demo", "test", "baselines") if name in found]
    return ", ".join(f"make {name} {found[name]['seconds']:,.0f} s, {found[name]['peak_mib']:,.0f} MiB" for name in chosen)


def where(found: dict) -> str:
    """Machine and date, as the file says them; a dash where it does not."""
    if "made" in found:
        return found["made"].removeprefix("Run on ").removesuffix(".")
    if "machine" in found:
        machine = found["machine"]
        return f"{machine.get('device') or str(machine['cores']) + ' cores'}, {machine['date']}"
    made = next((entry["made"] for entry in found.values() if isinstance(entry, dict) and "made" in entry), "–")
    return made.removeprefix("Run on ").removesuffix(".")


MEASURED: tuple[tuple[str, str, Callable[[dict], str], str], ...] = (         # what, file, its sentence, command
    ("a LoRA step beside transformers + PEFT", "bench/train.json", step, "make bench"),
    ("beam search beside transformers", "bench/decode.json", search, "python -m experiments.bench decode"),
    ("rows with different adapters", "bench/mixed.json", mixed, "python -m experiments.bench mixed"),
    ("the same, all populations", "bench/mixed-grid.json", mixed, "python -m experiments.bench mixed"),
    ("a long file of requests", "bench/requests.json", requests, "python -m experiments.bench requests"),
    ("a LoRA step over the work", "bench/growth.json", growth, "python -m experiments.bench growth"),
    ("memory of a long run", "bench/flat.json", flat, "python -m experiments.bench flat"),
    ("what a GPU would be asked", "bench/launches.json", launches, "python -m experiments.bench launches"),
    ("on a GPU", "bench/gpu.json", gpu, "python -m experiments.gpu"),
    ("waiting", "bench/start.json", waiting, "python -m experiments.bench start"),
    ("bf16 beside fp32", "bench/bf16.json", precisions, "python -m experiments.bench bf16"),
    ("faults", "faults/faults.json", faults, "make faults"),
    ("what make targets take", "costs.json", targets, "python -m experiments.costs TARGET"),
)


def measured_table(results: Path) -> list[str]:
    rows = []
    for what, file, sentence, command in MEASURED:
        if (results / file).exists():
            found = read_json(results / file)
            rows.append([f"[{what}]({file})", sentence(found), f"`{command}`", where(found)])
    return markdown(["", "", "command", "run on"], rows) if rows else []
