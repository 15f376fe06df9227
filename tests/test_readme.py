"""README.md keeps its promises: links and lines, files, make targets, command lines, code blocks, and computed numbers."""
import argparse
import ast
import importlib
import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import published, readme
from files.pretrained import init_weights
from lora import add_lora, merge
from methods.counts import formula_counts
from model import GPT2Config, RobertaClassifier, RobertaConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
INDENTED = [line.strip() for line in PROSE.splitlines() if line.startswith("    ")]
INLINE = re.findall(r"`([^`]+)`", PROSE.replace("\n", " "))


NUMBER = r"\d[\d,]*\.?\d*"


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The cells of every row below a table's rule."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-|: ")]


def commands(first_word: str) -> list[str]:
    """Every command of the text that begins so, without its remark."""
    found = [re.split(r"\s#\s|\s{3,}", line)[0].strip() for line in INDENTED] + INLINE
    return sorted({command for command in found if command.startswith(first_word + " ")})


# ---------------------------------------------------------------- links and files

def test_links_point_to_the_lines_they_mean_and_the_minutes_are_right():
    assert readme.LINK.search(TEXT) and readme.ROW.search(TEXT)
    assert readme.refreshed(TEXT) == TEXT, "the code has moved: run python -m experiments.readme"


def test_a_link_to_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="which has it 0 times"):
        readme.refreshed("[`no_such_function`](lora.py#L1)")
    with pytest.raises(ValueError, match="expected a function or text that is there once"):
        readme.refreshed("[`import`](lora.py#L1)")
    assert readme.refreshed("[`merge`](lora.py#L0)") == f"[`merge`](lora.py#L{readme.line_of('merge', 'lora.py')})"
    line = (ROOT / "lora.py").read_text(encoding="utf-8").splitlines()[readme.line_of("LoRALinear.merge", "lora.py") - 1]
    assert line == "    def merge(self) -> None:"


def test_prose_is_wrapped():
    long = [line for line in PROSE.splitlines() if len(line) > 128 and not line.startswith(("|", "    python train.py"))]
    assert not long


def test_every_link_leads_somewhere():
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
             for heading in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(targets) > 20
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in slugs, target
        elif not target.startswith("https://"):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_every_file_that_is_named_exists():
    path = re.compile(r"[\w./-]+\.(py|md)|(toy|tests|results)/\S+")
    named = [word for text in INLINE for word in text.split() if path.fullmatch(word)]
    assert {"lora.py", "toy/README.md", "tests/test_architecture.py"} <= set(named)
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "toy" / name).exists() or "/data" in name, name


def test_the_reading_table_has_every_core_file_once():
    rows = [match[1] for match in readme.ROW.finditer(section("Read it in this order"))]
    assert sorted(rows) == sorted(path.name for path in ROOT.glob("*.py"))


# ---------------------------------------------------------------- commands

def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_make_targets_exist_and_each_stands_in_the_table_of_costs():
    for command in commands("make"):
        targets = [word for word in shlex.split(command)[1:] if "=" not in word and not word.startswith("-")]
        assert targets and set(targets) <= make_targets(), command
    costs = {re.fullmatch(r"`make ([\w-]+)`", row[0])[1] for row in table(section("What it takes"))[1:]}
    assert costs == make_targets()


class Parsed(Exception):
    """Thrown where a command would begin its work."""


@pytest.fixture()
def stop_after_parsing(monkeypatch):
    parse_args, parse_known_args, inside = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, []

    def parse(whole):
        def parse(self, args=None, namespace=None):
            if inside:                                                       # parse_args calls parse_known_args
                return parse_known_args(self, args, namespace)
            inside.append(True)
            whole(self, args, namespace)
            raise Parsed
        return parse
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse(parse_args))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse(parse_known_args))


PYTHON_COMMANDS = commands("python") + [re.sub(r"^torchrun .*?(?=\w+\.py)", "python ", line) for line in commands("torchrun")]


def test_python_commands_are_found():
    assert {"train.py", "decode.py", "eval_metrics.py", "predict.py", "export.py"} <= {c.split()[1] for c in PYTHON_COMMANDS}


@pytest.mark.parametrize("command", PYTHON_COMMANDS)
def test_python_commands_parse(command, stop_after_parsing, monkeypatch):
    words = shlex.split(command)[1:]
    assert "..." not in words, "write the command out"
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    module = importlib.import_module(name.replace("/", "."))
    monkeypatch.setattr(sys, "argv", [words[0], *arguments])
    with pytest.raises(Parsed):
        module.main()


# ---------------------------------------------------------------- code blocks

@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks_compile_and_their_imports_resolve(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_page_of_lora_computes_what_lora_py_computes():
    """On every query and value of a small RoBERTa, with B unlike zero, apart and merged."""
    torch.manual_seed(0)
    space = {}
    exec(next(block for block in PYTHON_BLOCKS if "class LowRank" in block), space)
    config = RobertaConfig(vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
                           max_position_embeddings=20, initializer_range=0.4)
    ours, plain = RobertaClassifier(config).eval(), RobertaClassifier(config).eval()
    init_weights(ours, seed=3)
    plain.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 31, (4, 9), generator=generator)
    start = plain(input_ids)
    add_lora(ours, rank=3, alpha=7)
    patched = []
    for layer, other in zip(plain.roberta.encoder.layer, ours.roberta.encoder.layer, strict=True):
        for name, target in (("query", "q"), ("value", "v")):
            holder, theirs = layer.attention["self"], getattr(other.attention["self"], name)
            setattr(holder, name, space["LowRank"](getattr(holder, name), rank=3, alpha=7))
            patched.append((getattr(holder, name), theirs, target))
    torch.testing.assert_close(plain(input_ids), start, atol=0, rtol=0)      # B is zero
    with torch.no_grad():
        for mine, theirs, target in patched:
            theirs.lora_A[target].copy_(mine.A)
            theirs.lora_B[target].copy_(mine.B.normal_(generator=generator))
    expected = ours(input_ids)
    assert (expected - start).abs().max() > 0.01
    torch.testing.assert_close(plain(input_ids), expected)
    assert all(isinstance(mine, nn.Module) and not mine.linear.weight.requires_grad for mine, _, _ in patched)
    for mine, _, _ in patched:
        mine.merge()
    torch.testing.assert_close(plain(input_ids), expected)
    torch.testing.assert_close(merge(ours)(input_ids), expected)


# ---------------------------------------------------------------- numbers that follow from the code

GPT2_MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)


def test_the_parameter_counts_are_the_formulas():
    rows = table(section("The methods LoRA is compared with"))[1:]
    assert len(rows) == 8
    for name, _, *cells in rows:
        for config, cell in zip((GPT2_MEDIUM, RobertaConfig()), cells, strict=True):
            if cell != "–":
                count, rank = re.fullmatch(r"([\d,]+)(?: \([rP] = (\d+)\))?", cell).groups()
                assert int(count.replace(",", "")) == formula_counts(config, name.strip("`"), int(rank or 0))["trainable"], cell
    assert f"{formula_counts(RobertaConfig(), 'lora', 8)['head']:,}" in section("The methods LoRA is compared with")


def test_the_runs_of_the_paper_are_computed_from_a_measured_step():
    shown = {row[0].strip("`"): row[2:] for row in table(section("What it takes"))[1:]}
    steps = {point["model"]: point for point in kept_json("bench/train.json")["points"] if point["way"] == "ours"}
    for target, name, count in (("mrpc-lora", "roberta-base", 6900), ("mnli-lora", "roberta-base", 736_320),
                                ("e2e-lora", "gpt2-medium", 26_290), ("e2e-lora-small", "gpt2", 26_290)):
        time, memory, disk, gpu = shown[f"make {target}"]
        hours = count * steps[name]["milliseconds"] / 3.6e6
        assert time.startswith(f"{count:,} steps of {steps[name]['milliseconds'] / 1e3:.1f} s, ")
        found = float(re.search(r"([\d.]+) (?:h|days) \(computed\)", time)[1]) * (24 if "days" in time else 1)
        assert found == pytest.approx(hours, rel=0.03) and memory == f"{steps[name]['peak_mib']:,.0f} MiB"
        assert "(computed)" in disk and "(computed)" in gpu
    assert shown["make e2e-lora"][2] == "1.3 GiB of weights (computed)"      # 354,823,168 x 4 bytes
    assert "(computed)" in shown["make pretrain-toy"][0] and shown["make demo"][3] == "–"


def test_the_whole_pretraining_is_computed_from_its_first_steps():
    printed = """gpt2: 100 documents, 9 tokens, 5 parameters, 300 of 9,000 steps
step 100/300 loss 5.1 7 s
step 300/300 loss 4.1 20 s
mean loss of this epoch 4.3
roberta: 100 documents, 9 tokens, 5 parameters, 300 of 6,000 steps
step 300/300 loss 6.1 40 s
"""
    assert readme.whole_seconds(printed) == 30 * 20 + 20 * 40
    with pytest.raises(ValueError, match="found 1 finished runs"):
        readme.whole_seconds(printed[:200])


def test_durations_and_sizes():
    assert [readme.duration(seconds) for seconds in (0.071, 109, 5068, 2e4, 2e6)] == ["0.1 s", "109 s", "84 min", "5.6 h",
                                                                                      "23 days"]
    assert [readme.size(mib) for mib in (0.2, 57.4, 1640)] == ["under 1 MiB", "57 MiB", "1.6 GiB"]


def test_the_tables_of_the_toy_tasks_stand_in_results():
    """Each row's numbers are those of one row of results/README.md, in the same order."""
    kept = [" ".join(re.findall(NUMBER, row)) for row in (ROOT / "results" / "README.md").read_text("utf-8").splitlines()]
    shown = table(TEXT.partition("### The toy tasks")[2].partition("\n### ")[0])
    rows = [cells for cells in shown if re.search(r"\d", "".join(cells[1:]))]
    assert len(rows) == 24
    for name, trained, *scores in rows:
        numbers = [re.findall(NUMBER, cell) for cell in (trained, *scores)]
        assert any(all(" ".join(cell) in row for cell in numbers) for row in kept), name


def test_every_spread_and_similarity_of_the_results_stands_there_too():
    kept = "".join((ROOT / "results" / name).read_text("utf-8") for name in ("README.md", "bench/bf16.md"))
    kept += " ".join(f"{cell[0]} ± {cell[1]}" for paper in (published.TABLE_2, published.TABLE_3) for row in paper.values()
                     for cell in row if isinstance(cell, tuple))
    text = section("Results")
    spreads = re.findall(r"\d+\.\d+ ± \d+\.\d+", text)
    assert len(spreads) > 60 and all(spread in kept for spread in spreads)
    q, v = re.search(r"φ = (\S+) for q, (\S+) for v", text).groups()
    assert f"φ(1, 1) of q {q}, φ(1, 1) of v {v}" in kept
    seconds = sum(kept_json("costs.json")[t]["seconds"] for t in (
        "ablation-rank", "ablation-targets", "ablation-lr", "baselines", "report"))
    assert f"takes {seconds / 60:.0f} minutes from an empty folder" in " ".join(text.split())


def test_the_scores_of_the_small_bases_stand_in_results():
    kept = (ROOT / "results" / "README.md").read_text("utf-8")
    text = section("Results").partition("### Real data on small bases\n")[2].partition("\n### ")[0]
    header, *rows = table(text)
    columns = {"E2E, BLEU": "BLEU", "MRPC, accuracy": "accuracy, best epoch", "RTE, accuracy": "accuracy, best epoch",
               "CoLA, Matthews": "matthews, best epoch", "STS-B, Pearson": "pearson, best epoch"}
    assert header[1::2] == list(columns) and set(header[2::2]) == {"paper"} and len(rows) == 10
    for column, (name, metric) in zip(range(1, 11, 2), columns.items(), strict=True):
        task = name.partition(",")[0].lower().replace("-", "")
        for method, *cells in rows:
            found = (published.TABLE_3.get(method, [None])[0] if task == "e2e" else dict(zip(
                published.GLUE_TASKS_OF_TABLE_2, published.TABLE_2.get(method, [None] * 8), strict=True))[task])
            found = found if isinstance(found, tuple) else (found,)
            assert cells[column] == ("–" if found == (None,) else " ± ".join(map(str, found))), (method, name)
        kept_header, *kept_rows = table(kept.partition(f"### mini, mini-{task}\n")[2].split("\n\n")[1])
        scores = {cells[0]: cells[kept_header.index(metric)] for cells in kept_rows}
        assert {row[0]: row[column] for row in rows} == {
            label.removesuffix(", head"): score for label, score in scores.items()}, name
    printed = (ROOT / "results" / "output" / "pretrain-mini.txt").read_text("utf-8")
    held_out = dict(re.findall(r"^(\w+): (\S+) nats per token on", printed, re.MULTILINE))
    text = " ".join(text.split())
    assert f"this GPT-2 loses {float(held_out['gpt2']):.2f} nats" in text
    assert f"The RoBERTa loses {float(held_out['roberta']):.2f} per" in text


def test_the_claims_stand_in_results():
    """Where each was seen; results/README.md has a row per claim and place."""
    places = {"toy-e2e": "toy text", "toy-mrpc": "toy pairs", "toy-mnli": "toy inference", "mini-e2e": "E2E",
              "toy-e2e_ranks": "toy text", "GPT-2 S": "random weights of GPT-2 small's size"}
    kept = table((ROOT / "results" / "README.md").read_text("utf-8").partition("## What the paper claims\n")[2].partition(
        "\n## ")[0])[1:]
    for claim, *shown in table(section("Results").partition("### The toy tasks")[0])[1:]:
        found = [(places[place], verdict) for name, place, verdict, *_ in kept if name == claim]
        assert found, claim
        for cell, wanted in zip(shown, ("seen", "not seen"), strict=True):
            assert set(filter(None, cell.split(", "))) == {place for place, verdict in found if verdict == wanted}, claim


def test_the_speed_of_a_step_stands_in_results():
    kept = (ROOT / "results" / "bench" / "train.md").read_text("utf-8")
    rows = [row for row in table(section("Results").partition("### Speed beside transformers")[2]) if "batch" in row[0]]
    assert len(rows) == 3
    for name, ours, theirs, ratio, limit, memory in rows:
        row, peer = (re.search(rf"\| {name}, {who}, fp32 \|.*", kept)[0] for who in ("ours", r"HF \+ PEFT"))
        assert ours.removesuffix(" ms") in row and f"{ratio}x" in row and theirs.removesuffix(" ms") in peer, name
        assert limit.partition(" %")[0] + "%" in row and memory.partition(" MiB")[0] in row, name
        assert re.search(r"\((\d+) %\)", limit)[1] + "%" in peer and re.search(r"\((.+)\)", memory)[1] in peer, name


def test_the_scores_in_bf16_stand_in_results():
    kept = [row[1:] for row in table((ROOT / "results" / "bench" / "bf16.md").read_text("utf-8"))[1:]]
    rows = [row[1:] for row in table(section("Results")) if row[0].startswith(("pairs, ", "text, "))]
    assert rows == kept and len(rows) == 3


def test_the_growth_of_a_step_stands_in_results():
    points = kept_json("bench/growth.json")["points"]
    shown = {name: [f"{point['milliseconds']:,.0f} ms" for point in found] for name, found in points.items()}
    text = " ".join(section("Results").split())
    assert f"{shown['batch'][0]} at batch 1 and {shown['batch'][-1]} at 32" in text
    assert f"{shown['length'][0]} at 32 tokens and {shown['length'][-1]} at 512" in text
    assert f"{shown['rank'][0]} at r = 1 and {shown['rank'][-1]} at r = 64" in text
    growth = points["length"][-1]["milliseconds"] / points["length"][-2]["milliseconds"]
    assert f"at 512 ({growth:.1f} times what 256 take" in text
    of_ranks = [point["milliseconds"] for point in points["rank"]]
    assert f"({min(of_ranks):,.0f} to {max(of_ranks):,.0f} ms over all seven ranks)" in text and len(of_ranks) == 7
    assert [found[-1][name] for name, found in points.items()] == [32, 512, 64]


def kept_json(name: str) -> dict:
    return json.loads((ROOT / "results" / name).read_text("utf-8"))


def test_the_mixed_batches_stand_in_results():
    text = section("Many tasks in one batch")
    points = {f"{point['model']}, {point['section']}, batch {point['batch']}, {point['population']}": point
              for point in kept_json("bench/mixed.json")["points"]}
    rows = table(text)[1:]
    assert {name for name, *_ in rows} <= set(points) and len(rows) == 6
    for name, merged, mixed, by_merged, peft, by_mixed, per_task in rows:
        point = points[name]
        times = {way: f"{milliseconds:,.0f} ms" for way, milliseconds in point["milliseconds"].items()}
        assert [merged, mixed, peft, per_task] == [times[way] for way in ("merged", "mixed", "peft", "per task")], name
        assert [by_merged, by_mixed] == [f"{point['mixed_by_merged'][0]:.3f}", f"{point['peft_by_mixed'][0]:.2f}"], name
    found, text = kept_json("bench/requests.json"), " ".join(text.split())
    assert f"{found['requests']:,} requests for {found['adapters']} toy adapters" in text
    assert f"take {found['seconds']:.0f} s in one process and {found['seconds_apart']:.0f} s in" in text
    assert found["different_answers"] == 0
    later = [memory for count, memory in found["memory"] if count >= 500]
    assert f"from the 500th answer on memory stays between {min(later):.0f} and {max(later):.0f} MiB" in text


def test_the_grid_of_mixed_batches_stands_in_results():
    """Points of equal rows are one measurement and count once."""
    ratios = {1: {}, 8: {}}
    for point in kept_json("bench/mixed-grid.json")["points"]:
        measured = point["model"], point["section"], point["milliseconds"]["mixed"]
        ratios[point["batch"]][measured] = point["mixed_by_merged"][0], point["peft_by_mixed"][0]
    (by_merged, by_mixed), (by_merged_8, by_mixed_8) = (zip(*found.values(), strict=True) for found in ratios.values())
    median, text = statistics.median, " ".join(section("Many tasks in one batch").split())
    assert f"median {median(by_merged):.3f} at batch 1 and {median(by_merged_8):.3f} at batch 8" in text
    assert f"PEFT by mixed {median(by_mixed):.2f} and {median(by_mixed_8):.2f}" in text
    assert f"from {min(by_merged_8):.2f} to {max(by_merged_8):.2f} at batch 8" in text


def test_what_a_target_takes_is_what_it_took():
    """One row written out; the others are rewritten by experiments.readme, which the first test of this file compares."""
    found = kept_json("costs.json")["demo"]
    assert f"| {found['seconds']:.0f} s | {found['peak_mib']:,.0f} MiB | {found['disk_mib']:.0f} MiB | – |" in TEXT


def test_what_demo_and_tour_print_is_what_they_printed():
    """Every line of the two blocks; one that ends in ... is the beginning of a longer one."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section("Two commands"), re.MULTILINE)
    shown = {"demo": next(block for block in blocks if "Pairs: do two" in block),
             "tour": next(block for block in blocks if "2. Two thin matrices" in block)}
    for name, block in shown.items():
        printed = [line.strip() for line in (ROOT / "results" / "output" / f"{name}.txt").read_text("utf-8").splitlines()]
        lines = [line.strip() for line in block.splitlines()]
        assert len(lines) > 10
        for line in lines:
            beginning = line.removesuffix("...") if line.endswith(" ...") else None
            assert line in printed or beginning and any(longer.startswith(beginning) for longer in printed), line


def test_the_waiting_times_stand_in_results():
    text, start, decode = " ".join(section("Results").split()), kept_json("bench/start.json"), kept_json("bench/decode.json")
    seconds = {name: f"{value:.1f} s" for name, value in start["seconds"].items()}
    cold, cached = (seconds[f"five scores, {state}"] for state in ("cold", "cached"))
    assert f"4,693 references): {cold} the first time, {cached} when the same references" in text
    peaks = [round(start["peak_mib"][f"five scores, {state}"]) for state in ("cold", "cached")]
    assert f"{peaks[0]} and {peaks[1]} MiB" in text
    cold, cached = (seconds[f"read and tokenise 42,061 E2E samples, {state}"] for state in ("cold", "cached"))
    assert f"42,061 training samples: {cold}, and {cached} when they were read before" in text
    assert f"first step on the toy GPT-2 comes after {seconds['first step on the toy GPT-2']}, of which" in text
    assert f"`import torch` takes {seconds['import torch']} on this" in text
    assert f"`train.py --help` takes {seconds['python train.py --help']} (medians" in text
    found = decode["seconds_per_prompt"]
    assert f"{found['hf']:.2f} s a prompt against {found['transformers']:.2f} s" in text
    assert f"{statistics.median(decode['ratios']):.2f} times as fast" in text and decode["differing"] == 0


def test_the_kills_stand_in_results():
    survived = re.findall(r"\| kill -9.*\| (\d+) \| (\d+) \|", (ROOT / "results" / "faults" / "faults.md").read_text("utf-8"))
    assert survived == re.findall(r"\| kill -9.*\| (\d+) \| (\d+) \|", TEXT) and len(survived) == 2
