"""experiments/bench.py: the one command for all sections gives each what it takes, and its table has every figure once."""
import argparse
from pathlib import Path

import pytest

from experiments import bench


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
