"""What the paper claims, held against what was run: each claim with "seen", "not seen" or "cannot be tested here", and the
figure. The command stands in the section of the page that has the experiment's table.

Two means count as equal if they differ by no more than the sum of their standard deviations over the seeds. A claim is
judged on each kept experiment that bears on it; with one seed nothing is judged, because there is no spread.
"""
import statistics
from pathlib import Path

from experiments.kept_runs import read_lines, runs_of
from experiments.tables import level_with, markdown, ranking, spread
from files.text import read_json


def mean_of(found: list[dict]) -> float:
    return statistics.mean(ranking(found)[1])


def shown(found: list[dict]) -> str:
    return spread(ranking(found)[1])


def not_below(one: list[dict], other: list[dict]) -> bool:
    return level_with(ranking(one)[1], ranking(other)[1])


def verdict(seen: bool) -> str:
    return "seen" if seen else "not seen"


# ---------------------------------------------------------------- one function per claim: plan, its runs -> verdict, figure

def against_full(runs: dict) -> tuple[str, str]:
    return verdict(not_below(runs["LoRA"], runs["full"])), f"LoRA {shown(runs['LoRA'])}, full {shown(runs['full'])}"


def few_parameters(runs: dict) -> tuple[str, str]:
    lora, full = (runs[label][0]["trainable_parameters"] for label in ("LoRA", "full"))
    return verdict(lora * 100 <= full and not_below(runs["LoRA"], runs["full"])), (
        f"{lora:,} of {full:,}, {lora / full:.2%}; scores as above")


def less_memory(runs: dict) -> tuple[str, str]:
    def without_activations(metrics: dict) -> int:
        return sum(size for part, size in metrics["memory_parts_bytes"].items() if part != "activations")
    sizes = {label: (without_activations(runs[label][0]), sum(runs[label][0]["memory_parts_bytes"].values()))
             for label in ("LoRA", "full")}
    part, whole = (sizes["LoRA"][index] / sizes["full"][index] for index in (0, 1))
    return verdict(whole < 1), (f"weights, gradients and optimizer {part:.0%} of full's (the paper: down to a third); with "
                                f"activations {whole:.0%}")


def saturates(runs: dict) -> tuple[str, str]:
    small = {label: found for label, found in runs.items() if label in ("r = 1", "r = 2", "r = 4", "r = 8")}
    best_small = max(small, key=lambda label: mean_of(small[label]))
    largest = max(runs, key=lambda label: int(label.split("= ")[1]))
    return verdict(not_below(small[best_small], runs[largest])), (
        ", ".join(f"{label}: {shown(found)}" for label, found in runs.items()))


def q_and_v(runs: dict) -> tuple[str, str]:
    attention = {label: found for label, found in runs.items() if "fc" not in label and "proj" not in label}
    best = max(attention, key=lambda label: mean_of(attention[label]))
    return verdict(not_below(runs["q v"], attention[best])), (
        ", ".join(f"{label}: {shown(found)}" for label, found in runs.items()))


CLAIMS = (  # claim, experiments, rows that it needs, judge
    ("LoRA is not below full fine-tuning (Tables 2, 3)", ("methods", "mini"), ("LoRA", "full"), against_full),
    ("with a hundredth of the trained parameters or less", ("methods", "mini"), ("LoRA", "full"), few_parameters),
    ("training takes less memory (section 4.2)", ("methods", "mini"), ("LoRA", "full"), less_memory),
    ("a small rank is enough: r up to 8 is not below the largest (Tables 6, 18)", ("rank",), ("r = 4", "r = 64"), saturates),
    ("q and v together are the best use of a budget among attention's matrices (Table 5)", ("targets",), ("q v", "q"), q_and_v),
)


def subspace_rows(subspaces: dict[str, dict]) -> list[list[str]]:
    """The top direction of r = 8 lies in r = 64's (Figure 3): phi(1, 1) over one half, in every target of the block."""
    claim, rows = "the top directions of r = 8 and r = 64 overlap (section 7.2)", []
    for place, found in subspaces.items():
        if place.endswith("/ranks"):
            tops = {target: phi[0][0] for target, phi in found["phi"].items()}
            figure = ", ".join(f"φ(1, 1) of {target} {value:.2f}" for target, value in tops.items())
            rows.append([claim, place.removesuffix("/ranks"), verdict(all(value > 0.5 for value in tops.values())),
                         f"{figure}; random {found['random'][0][0]:.2f}"])
    return rows or [[claim, "–", "cannot be tested here", "r = 8 and r = 64 with two seeds have not "
                      "been run: `make ablation-rank report`"]]


def latency_row(path: Path) -> list[str]:
    """Merged weights cost no more than the base's (Table 1), from latency.json."""
    claim = "merged, it adds no latency (Table 1)"
    if not path.exists():
        return [claim, "–", "cannot be tested here", "not measured: `python -m experiments.latency`"]
    found = read_json(path)
    figures = []
    for name in ("LoRA, merged", "LoRA, apart", "adapter-l", "adapter-h"):
        ratios = [case[name] / case["base"] for case in found["cases"]]
        figures.append(f"{name} {min(ratios):.2f} to {max(ratios):.2f}")
    merged = statistics.mean(case["LoRA, merged"] / case["base"] for case in found["cases"])
    return [claim, found["model"], verdict(merged <= 1 + found["noise"]), "a forward pass over the base's: "
            f"{', '.join(figures)}; the base against itself up to {1 + found['noise']:.2f}"]


def claims_table(plans: list[dict], kept: dict[str, dict], results: Path) -> list[str]:
    rows = []
    for claim, experiments, needed, judge in CLAIMS:
        tested = False
        for plan in plans:
            if plan["experiment"] not in experiments:
                continue
            runs = {label: found for label, found in runs_of(plan, kept).items()
                    if len(found) > 1 and "memory_parts_bytes" in found[0]}
            if all(label in runs for label in needed):
                tested = True
                rows.append([claim, plan["setting"], *judge(runs)])
        if not tested:
            rows.append([claim, "–", "cannot be tested here", "no experiment with two seeds or more is kept"])
    rows += [*subspace_rows(read_lines(results / "subspaces.jsonl")), latency_row(results / "latency.json")]
    return markdown(["claim", "on", "", "figure"], rows)
