"""The verdicts on the paper's claims: intervals against scipy's, and that noise never makes a claim pass."""
import numpy as np
import pytest
import scipy.stats

from experiments import claims


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
    assert claims.first_not_below_second({"LoRA": one[:1], "full": other}, ("LoRA", "full"))[0].startswith("cannot be told")


def test_memory_with_activations_is_compared_at_the_same_batch_only():
    parts = {"weights": 100, "gradients": 1, "optimizer": 2, "activations": 500}
    lora = [{"memory_parts_bytes": parts, "config": {"batch_size": 8}}]
    full = [{"memory_parts_bytes": {"weights": 100, "gradients": 100, "optimizer": 200, "activations": 100},
             "config": {"batch_size": 8}}]
    assert claims.less_memory({"LoRA": lora, "full": full}, ("LoRA", "full"))[0] == "not seen"
    other_batch = [full[0] | {"config": {"batch_size": 10}}]
    verdict, figure = claims.less_memory({"LoRA": lora, "full": other_batch}, ("LoRA", "full"))
    assert verdict == "by construction" and "batches of 8 and 10" in figure


def test_a_hundredth_of_the_parameters():
    full = [{"trainable_parameters": 1000}]
    assert claims.few_parameters({"LoRA": [{"trainable_parameters": 10}], "full": full}, ("LoRA", "full")) == (
        "by construction", "10 of 1,000, 1.00%; scores as above")
    assert claims.few_parameters({"LoRA": [{"trainable_parameters": 11}], "full": full}, ("LoRA", "full"))[0] == "not seen"
