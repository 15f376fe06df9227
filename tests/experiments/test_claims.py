"""The verdicts on the paper's claims: intervals against scipy's, and that noise never makes a claim pass."""
import numpy as np
import pytest
import scipy.stats

from data import GLUE_TASKS
from experiments import claims, glue_report, glue_small
from experiments.search import make_plan, make_row


def runs(scores: list[float]) -> list[dict]:
    """Runs of text, one per seed, with these scores of BLEU in percent."""
    return [{"task": "e2e", "seed": seed, "scores": {"BLEU": score / 100}} for seed, score in enumerate(scores)]


@pytest.mark.parametrize("count", range(2, 11))
def test_interval_is_that_of_the_paired_t_test(count):
    draw = np.random.default_rng(count)
    one, other = draw.normal(70, 2, count), draw.normal(69, 1, count)
    expected = scipy.stats.ttest_rel(one, other).confidence_interval(0.95)
    assert claims.interval(runs(one), runs(other)) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("lora, full, verdict", [
    ([70.2, 71.1, 69.8], [70.1, 71.0, 69.9], "seen"),                        # equal, seed by seed
    ([60.2, 61.1, 59.8], [70.1, 71.0, 69.9], "not seen"),                    # the claim reversed
    ([70.2, 64.0, 76.0], [70.1, 71.0, 69.9], "cannot be told with 3 seeds"),     # the same mean as in the first, noisy
    ([69.3, 70.2, 69.2], [70.1, 71.0, 69.9], "seen"),                        # below, by less than the margin
    ([66.0, 71.0, 64.0], [70.1, 71.0, 69.9], "cannot be told with 3 seeds"),     # three below: not enough to say so
])
def test_noise_leads_to_no_verdict(lora, full, verdict):
    assert claims.first_not_below_second({"LoRA": runs(lora), "full": runs(full)}, ("LoRA", "full"))[0] == verdict


def test_several_differences_need_all_of_them():
    level, below = runs([70.0, 71.0, 69.0]), runs([60.0, 61.1, 59.0])
    found = {"q v": level, "q": below, "v": level}
    assert claims.q_and_v(found, ("q v", "q"))[0] == "seen"
    assert claims.q_and_v(found | {"q v": below, "q": level}, ("q v", "q"))[0] == "not seen"


def test_only_seeds_that_both_have_are_paired():
    one, other = runs([70.0, 71.0, 69.5]), runs([68.0, 69.5, 67.0])
    assert claims.interval(one, other[:2]) == pytest.approx(claims.interval(one[:2], other[:2]))
    assert claims.first_not_below_second({"LoRA": one[:1], "full": other}, ("LoRA", "full"))[0] == "cannot be told with 1 seed"


def test_the_number_of_seeds_is_that_of_the_smallest_pair():
    """Five of LoRA and three of another method are three differences."""
    lora = runs([60.0, 72.0, 65.0, 70.0, 71.0])
    found = {"LoRA": lora, "BitFit": runs([70.0, 66.0, 69.0]), "full": runs([66.0, 70.0, 61.0, 75.0, 70.0])}
    assert claims.lora_and_the_others(found, ("LoRA", "BitFit", "full"))[0] == "cannot be told with 3 seeds"


def of_glue(means: dict[str, list[float]], without: str = "") -> tuple[list[dict], dict[str, dict]]:
    """Plans and kept lines of the comparison: a row's score of seed k lies above or below its mean by task, as 5 of noise; two
    tasks up, two down."""
    plans, kept = [], {}
    for task, noise in zip(glue_small.TASKS, (5, -5, 5, -5, 0), strict=True):
        rows = [make_row(label, f"--model m --task {task}", f"--method {number}", seeds=range(1, len(of) + 1))
                for number, (label, of) in enumerate(means.items())]
        plans.append(make_plan("glue-small", f"m-{task}", [1, 2, 3], rows if task != without else []))
        for row, (label, of) in zip(rows, means.items(), strict=True):
            for seed, mean in enumerate(of, 1):
                score = (mean + noise * (seed - 2) * (label == "LoRA")) / 100
                place = f"{row['folder']}/seed{seed}"
                kept[place] = {
                    "place": place, "config": {"lr": 1.0, "batch_size": 8}, "log": {},
                    "metrics": {"task": task, "seed": seed, "scores": {GLUE_TASKS[task].metrics[0]: score},
                                "chosen_by": "the last epoch", "base_fingerprint": "b", "trainable_parameters": 1,
                                "total_parameters": 2, "data_fingerprints": {"train": "t", "evaluated": task},
                                "memory_parts_bytes": dict.fromkeys(("weights", "activations"), 1)}}
    return plans, kept


def test_the_mean_of_the_tasks_is_judged_where_all_are_there(tmp_path):
    """Noise that no single task can be told for, and that the mean of the five does not have."""
    means = {"LoRA": [80.0, 81.0, 80.5, 82.0], "full": [80.2, 81.1, 80.4]}
    claim = "| LoRA is not below full fine-tuning (Tables 2, 3) |"
    for without, judged in (("", True), ("rte", False)):
        plans, kept = of_glue(means, without)
        rows = [line for line in claims.claims_table(plans, kept, tmp_path) if line.startswith(claim)]
        assert all("cannot be told with 3 seeds" in line for line in rows if "m-mrpc" in line or "m-stsb" in line)
        (mean, *others) = [line for line in rows if "mean of 5 tasks" in line] or [""]
        assert not others and (" | seen | mean, LoRA less full: " in mean) == judged
    of = glue_report.averaged(glue_report.runs_by_task(*of_glue(means)))
    assert [100 * run["scores"]["mean"] for run in of["LoRA"]] == pytest.approx([80, 81, 80.5, 82])


def test_memory_with_activations_is_compared_at_the_same_batch_only():
    parts = {"weights": 100, "gradients": 1, "optimizer": 2, "activations": 500}
    lora = [{"memory_parts_bytes": parts, "config": {"batch_size": 8}}]
    full = [{"memory_parts_bytes": {"weights": 100, "gradients": 100, "optimizer": 200, "activations": 100},
             "config": {"batch_size": 8}}]
    assert claims.less_memory({"LoRA": lora, "full": full}, ("LoRA", "full"))[0] == "not seen"
    other_batch = [full[0] | {"config": {"batch_size": 10}}]
    verdict, figure = claims.less_memory({"LoRA": lora, "full": other_batch}, ("LoRA", "full"))
    assert verdict == "by construction" and "batches of 8 and 10" in figure
    verdict, figure = claims.less_memory({"LoRA": [lora[0] | {"frozen_in": "bf16"}], "full": [full[0] | {"frozen_in": "fp32"}]},
                                         ("LoRA", "full"))
    assert verdict == "by construction" and figure.endswith("activations do not compare: weights in bf16 and fp32")


def test_a_hundredth_of_the_parameters():
    full = [{"trainable_parameters": 1000}]
    assert claims.few_parameters({"LoRA": [{"trainable_parameters": 10}], "full": full}, ("LoRA", "full")) == (
        "by construction", "10 of 1,000, 1.00%; scores as above")
    assert claims.few_parameters({"LoRA": [{"trainable_parameters": 11}], "full": full}, ("LoRA", "full"))[0] == "not seen"
