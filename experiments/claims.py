"""What the paper claims, held against what was run: "seen", "not seen", "cannot be told", "cannot be tested here", "by
construction" for what could not be otherwise or, where the two sides had rates that nobody searched or there is one pair of
runs, no verdict at all, with the figure. The command stands in the section of the page that has the experiment's table.

A claim that one way of training is not below another is one about a difference of means, and is judged by its confidence
interval: 95 %, Student's, of the differences of the same seeds. It is seen where the whole interval lies above -MARGIN, not
seen where all of it lies below, and cannot be told where it reaches across: noise and few seeds widen the interval, and so
lead to no verdict. MARGIN was fixed before the intervals were computed: one point of the score that the runs are ranked by,
about what the paper calls on par. Where a claim is one of several differences, it is seen if each of them is, not seen if one
is not.
"""
import math
import statistics
from pathlib import Path

from scipy.stats import t as student

from experiments import glue_report
from experiments.kept_runs import read_lines, runs_of
from experiments.tables import markdown, ranking, spread
from files.text import read_json

MARGIN = 1.0                                                                 # points of BLEU, accuracy, ...


def shown(label: str, found: list[dict]) -> str:
    return f"{label} {spread(ranking(found)[1])}"


def differences_of(one: list[dict], other: list[dict]) -> list[float]:
    """one - other in points of the ranking score, for each seed that both have."""
    scores = [dict(zip((metrics["seed"] for metrics in found), ranking(found)[1], strict=True)) for found in (one, other)]
    return [scores[0][seed] - scores[1][seed] for seed in scores[0].keys() & scores[1].keys()]


def interval(one: list[dict], other: list[dict]) -> tuple[float, float]:
    """The 95 % interval of the mean of differences_of; the whole line where these are fewer than two."""
    differences = differences_of(one, other)
    if len(differences) < 2:
        return -math.inf, math.inf
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    half = student.ppf(0.975, len(differences) - 1) * error
    return mean - half, mean + half


def not_below(pairs: dict[str, tuple[list[dict], list[dict]]]) -> tuple[str, str]:
    """Name of a difference -> the runs said not to be below, and the others; returns the verdict and the intervals."""
    intervals = {name: interval(*pair) for name, pair in pairs.items()}
    n, score = min(len(differences_of(*pair)) for pair in pairs.values()), ranking(next(iter(pairs.values()))[0])[0]
    if any(high < -MARGIN for _, high in intervals.values()):
        verdict = "not seen"
    elif all(low >= -MARGIN for low, _ in intervals.values()):
        verdict = "seen"
    else:
        verdict = f"cannot be told with {n} seed{'s' * (n != 1)}"
    return verdict, f"{score}, " + ", ".join(f"{name}: {low:+.1f} to {high:+.1f}" for name, (low, high) in intervals.items())


# ---------------------------------------------------------------- a function per kind of claim: runs, labels -> verdict, figure

def first_not_below_second(runs: dict, labels: tuple[str, ...]) -> tuple[str, str]:
    one, other = labels
    verdict, figure = not_below({f"{one} less {other}": (runs[one], runs[other])})
    return verdict, f"{figure} ({'; '.join(shown(label, runs[label]) for label in labels)})"


def few_parameters(runs: dict, labels: tuple[str, ...]) -> tuple[str, str]:
    lora, full = (runs[label][0]["trainable_parameters"] for label in labels)
    return "by construction" if lora * 100 <= full else "not seen", f"{lora:,} of {full:,}, {lora / full:.2%}; scores as above"


def memory_share(one: dict, other: dict, *left_out: str) -> float:
    """The parts of memory of one run, but for those left out, over the other's."""
    sizes = [sum(size for part, size in metrics["memory_parts_bytes"].items() if part not in left_out)
             for metrics in (one, other)]
    return sizes[0] / sizes[1]


def less_memory(runs: dict, labels: tuple[str, ...]) -> tuple[str, str]:
    """Activations compare where batches and formats are the same; without them LoRA's 4 or 2 bytes a weight stand beside 16."""
    lora, full = (runs[label][0] for label in labels)
    fixed, whole = memory_share(lora, full, "activations"), memory_share(lora, full)
    batches = [metrics["config"]["batch_size"] for metrics in (lora, full)]
    formats = [metrics.get("frozen_in", "fp32") for metrics in (lora, full)]
    unlike = [f"{what} {one} and {other}" for what, (one, other) in (("batches of", batches), ("weights in", formats))
              if one != other]
    compared, verdict = (fixed, "by construction") if unlike else (whole, "seen")
    return verdict if compared < 1 else "not seen", (
        f"weights, gradients and optimizer {fixed:.0%} of full's (the paper: down to a third); " + (
            f"activations do not compare: {', '.join(unlike)}" if unlike else
            f"with activations {whole:.0%}, batches of {batches[0]}"))


def q_and_v(runs: dict, labels: tuple[str, ...]) -> tuple[str, str]:
    attention = [label for label in runs if not {"fc", "proj"} & set(label.split()) and label != "q v"]
    return not_below({f"q v less {label}": (runs["q v"], runs[label]) for label in attention})


def lora_and_the_others(runs: dict, labels: tuple[str, ...]) -> tuple[str, str]:
    lora, *others = labels
    return not_below({f"{lora} less {label}": (runs[lora], runs[label]) for label in others})


OF_SCORES = (first_not_below_second, lora_and_the_others)
RATES_BY_HAND = {"methods", "mini"}                                          # no method is judged by another's scores there
NO_VERDICT = "no verdict: learning rates by hand"
WITH_FULL = dict.fromkeys(("methods", "mini", "glue-small", "e2e-small"), ("LoRA", "full"))
MEAN = "glue-small, mean"                                                    # of which scores alone are judged
CLAIMS = (  # claim, experiment -> the rows that it needs, judge
    ("LoRA is not below full fine-tuning (Tables 2, 3)", WITH_FULL | {MEAN: ("LoRA", "full")}, first_not_below_second),
    ("LoRA is not below the other methods that train few (Tables 2, 3)",
     dict.fromkeys((*WITH_FULL, MEAN), ("LoRA", "BitFit", "adapter-h", "adapter-l", "prefix")), lora_and_the_others),
    ("with a hundredth of the trained parameters or less", WITH_FULL, few_parameters),
    ("training takes less memory (section 4.2)", WITH_FULL, less_memory),
    ("r = 4 is not below the largest rank (Tables 6, 18)", {"rank": ("r = 4", "r = 64"), "mini": ("LoRA", "LoRA, r = 16")},
     first_not_below_second),
    ("r = 1 suffices for q and v (section 7.2)", {"rank": ("r = 1", "r = 64"), "mini": ("LoRA, r = 1", "LoRA, r = 16")},
     first_not_below_second),
    ("no other choice of attention's matrices is above q and v at the same budget (Table 5)", {"targets": ("q v", "q")},
     q_and_v),
    ("q and v are not below all six matrices at about the same budget (the paper leaves the MLP out)",
     dict.fromkeys(("glue-small", MEAN), ("LoRA", "LoRA, all six")), first_not_below_second),
)


def subspace_rows(subspaces: dict[str, dict]) -> list[list[str]]:
    """phi(1, 1) of r = 8 in r = 64 (Figure 3), and of all of r = 8's directions: one pair of runs, so without a verdict."""
    claim, rows = "the top directions of r = 8 and r = 64 overlap, the others do not (section 7.2)", []
    for place, found in subspaces.items():
        if place.endswith("/ranks"):
            shown = [", ".join(f"φ({n}, {n}) of {target} {phi[n - 1][n - 1]:.2f}" for target, phi in found["phi"].items()) +
                     f"; random {found['random'][n - 1][n - 1]:.2f}" for n in (1, len(found["random"]))]
            rows.append([claim, place.removesuffix("/ranks"), "no verdict: one pair of runs",
                         f"block {found['layer'] + 1}: {'; '.join(shown)}"])
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
    return [claim, found["model"], "seen" if merged <= 1 + found["noise"] else "not seen", "a forward pass over the base's: "
            f"{', '.join(figures)}; the base against itself up to {1 + found['noise']:.2f}"]


def with_averages(plans: list[dict], kept: dict[str, dict]) -> list[tuple[str, str, dict[str, list[dict]]]]:
    """Experiment, setting and runs of every plan; and of glue_small.py's tasks one more, their mean, as an experiment of its
    own: five tests on few seeds each tell less than one on all."""
    found = [(plan["experiment"], plan["setting"], runs_of(plan, kept)) for plan in plans]
    compared = glue_report.named(plans, "glue-small")
    means = glue_report.averaged(glue_report.runs_by_task(compared, kept))
    setting = compared[0]["setting"].rpartition("-")[0] if compared else ""
    return [*found, (MEAN, f"{setting}, mean of {len(compared)} tasks", means)]


def claims_table(plans: list[dict], kept: dict[str, dict], results: Path) -> list[str]:
    rows = []
    for claim, needed, judge in CLAIMS:
        tested = False
        for experiment, setting, of_setting in with_averages(plans, kept):
            labels = needed.get(experiment)
            if labels is None:
                continue
            runs = {label: found for label, found in of_setting.items() if len(found) > 1 and "memory_parts_bytes" in found[0]}
            if all(label in runs for label in labels):
                tested = True
                verdict, figure = judge(runs, labels)
                across_methods = not all(label.startswith("LoRA") for label in labels)
                if judge in OF_SCORES and across_methods and experiment in RATES_BY_HAND:
                    verdict = NO_VERDICT
                rows.append([claim, setting, verdict, figure])
        if not tested:
            rows.append([claim, "–", "cannot be tested here", "no experiment with two seeds or more is kept"])
    rows += [*subspace_rows(read_lines(results / "subspaces.jsonl")), latency_row(results / "latency.json")]
    return markdown(["claim", "on", "", "figure"], rows)
