"""experiments/bench.py: the one command for all sections gives each what it takes, and its table has every figure once; the
grid of mixed batches is measured at every point, in portions if need be."""
import argparse
from pathlib import Path

import pytest

from experiments import bench, bench_mixed
from files.text import read_json
from model import GPT2, GPT2Config


@pytest.mark.parametrize("is_quick", [True, False])
@pytest.mark.parametrize("score", [None, [Path("refs"), Path("hyps")]])
def test_all_runs_the_four_sections_with_the_users_files(monkeypatch, is_quick, score):
    ran = {}
    monkeypatch.setattr(bench, "run", lambda options: ran.setdefault(options.section, options))
    monkeypatch.setattr(bench, "table_of_all", lambda figures: "")
    bench.bench_all(argparse.Namespace(data_dir=Path("D"), tokenizers=Path("T"), quick=is_quick, score=score))
    assert set(ran) == {"train", "decode", "mixed", "start"}
    assert all(str(options.data_dir) == "D" for options in ran.values())
    assert Path(ran["decode"].tokenizer) == Path("T/gpt2") and ran["mixed"].tokenizers == ran["train"].tokenizers == Path("T")
    assert ran["start"].score == score and (ran["train"].models == ["gpt2"]) == is_quick


def test_the_table_of_all_pairs_ours_with_the_peer():
    step = {"model": "gpt2", "precision": "fp32"}
    figures = {
        "train": {"points": [step | {"way": "ours", "milliseconds": 1000.0, "against_peer_same_precision": 1.7},
                             step | {"way": "peer", "milliseconds": 1800.0, "against_peer_same_precision": 1.0}]},
        "decode": {"seconds_per_prompt": {"hf": 1.0, "transformers": 2.2}, "ratios": [2.0, 2.4, 2.1]},
        "mixed": {"points": [{"model": "gpt2", "section": "forward", "batch": 8, "population": "distinct",
                              "milliseconds": {"mixed": 600.0, "peft": 1000.0}, "peft_by_mixed": [1.6, 1.5]}]},
        "start": {"seconds": {"import torch": 2.0, "import transformers, peft, with what training needs of them": 7.0}}}
    assert bench.table_of_all(figures).splitlines()[2:] == [
        "| LoRA step, gpt2, fp32 | 1,000 ms | 1,800 ms | 1.70 |",
        "| beam search, a prompt | 1.00 s | 2.20 s | 2.10 |",
        "| adapters by row, gpt2, forward, batch 8, distinct | 600 ms | 1,000 ms | 1.60 |",
        "| import torch | 2.00 s | – | – |",
        "| import transformers, peft, with what training needs of them | – | 7.00 s | – |"]


def test_the_mixed_grid_goes_on_where_it_stopped_and_every_point_has_a_bank_of_its_size(monkeypatch, toy_data, repository,
                                                                                       tmp_path):
    """Points of equal rows, too, are measured anew: "distinct" has the rows 0 1 2 with 4 and with 8 adapters in the bank."""
    monkeypatch.setattr(bench_mixed, "MODELS", {"gpt2": (GPT2, lambda: GPT2Config(1536, 128, 32, 1, 2), 4)})
    ways_of, banks, stop_at = bench_mixed.Competitors.ways, [], 7

    def ways(self, *arguments):
        if len(banks) == stop_at:
            raise KeyboardInterrupt
        banks.append(len(self.bank.adapters) - 1)                            # the base stands among them
        return ways_of(self, *arguments)
    monkeypatch.setattr(bench_mixed.Competitors, "ways", ways)
    command = ["mixed", "--data-dir", str(toy_data), "--tokenizers", str(repository / "toy"), "--json",
               str(tmp_path / "m.json"), "--adapters", "8", "2", "4", "--batches", "3", "--ways", "merged", "mixed", "--rounds",
               "2", "--seconds", "0"]
    with pytest.raises(KeyboardInterrupt):
        bench.main(command)
    first = read_json(tmp_path / "m.json")["points"]
    assert len(first) == 7
    stop_at = None
    bench.main(command)
    points = read_json(tmp_path / "m.json")["points"]
    assert points[:7] == first and len({bench_mixed.place(point) for point in points}) == len(points) == 24    # 2 sections
    assert [point["adapters"] for point in points] == banks
    assert len({point["milliseconds"]["mixed"] for point in points}) == 24   # no copy among them
    with pytest.raises(ValueError, match="m.json: its points have rounds 2, not 3; name another --json file"):
        bench.main([*command[:-3], "3", *command[-2:]])
