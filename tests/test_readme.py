"""README.md and docs/ keep their promises: length, links, files, make targets, command lines and code blocks; their numbers are
test_readme_numbers.py's."""
import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import readme
from lora import add_lora, merge
from model import RobertaClassifier, RobertaConfig
from toy.fresh import init_weights

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in readme.PAGES}
README = PAGES["README.md"]
LINKED = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("toy/README.md", "results/README.md")}
PROSE = re.sub(r"```.*?```", "", "\n".join(PAGES.values()), flags=re.DOTALL)
PYTHON_BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
INDENTED = [line.strip() for line in PROSE.splitlines() if line.startswith("    ")]
INLINE = re.findall(r"`([^`]+)`", PROSE.replace("\n", " "))


# ---------------------------------------------------------------- length, links and files

def test_the_pages_are_short_and_lead_to_each_other():
    assert len(README.splitlines()) <= 230 and len(PAGES) > 8
    for name, page in PAGES.items():
        assert not [line for line in page.splitlines() if len(line) > 128 and not line.startswith(("|", "    "))], name
        if name != "README.md":
            longest = 250 if name == "docs/messages.md" else 200             # a list, a line for each message
            assert len(page.splitlines()) <= longest and f"]({name}" in README, name
            first = page.split("\n\n")[1]                                    # one sentence that says what the page answers
            assert first.endswith("([README](../README.md))") and first.count(". ") + first.count(".\n") == 1, name


def test_links_point_to_the_lines_they_mean_and_the_minutes_and_costs_are_right():
    assert readme.LINK.search(PAGES["docs/paper-and-code.md"]) and readme.BRANCH.search(README)
    for name, page in PAGES.items():
        assert readme.refreshed(page) == page, f"{name}: the code has moved: run python -m experiments.readme"


def test_a_link_to_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="which has it 0 times"):
        readme.refreshed("[`no_such_function`](lora.py#L1)")
    with pytest.raises(ValueError, match="expected a function or text that is there once"):
        readme.refreshed("[`import`](../lora.py#L1)")
    assert readme.refreshed("[`merge`](../lora.py#L0)") == f"[`merge`](../lora.py#L{readme.line_of('merge', 'lora.py')})"
    line = (ROOT / "lora.py").read_text(encoding="utf-8").splitlines()[readme.line_of("LoRALinear.merge", "lora.py") - 1]
    assert line == "    def merge(self) -> None:"


@pytest.mark.parametrize("name", LINKED)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", LINKED[name]):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), target
            if anchor and path.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_every_file_that_is_named_exists():
    names = set(re.findall(r"(?<![\w/.<-])(?:toy|tests|results|docs|experiments)/[\w./-]*\w/?", PROSE))
    names |= {word for text in INLINE for word in text.split() if re.fullmatch(r"[\w/]+\.py", word)}
    assert {"lora.py", "tests/test_architecture.py", "results/bench/train.md"} <= names
    for name in names - {"toy/data"}:                                        # made by make demo, not in git
        assert (ROOT / name).exists(), name


def test_the_tree_has_every_file_and_folder_of_the_root():
    named = re.findall(r"^    ([a-z_]+(?:\.py|/))\s", README.partition("## What is where")[2], re.MULTILINE)
    there = [path.name for path in ROOT.glob("*.py")] + [
        f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "shared")
        and not path.name.startswith((".", "_"))]
    assert sorted(named) == sorted(there)
    assert named[:5] == ["lora.py", "model.py", "data.py", "train.py", "eval_metrics.py"]


# ---------------------------------------------------------------- commands

def commands(first_word: str) -> list[str]:
    """Every command of the text that begins so, without its remark."""
    found = [re.split(r"\s#\s|\s{3,}", line)[0].strip() for line in INDENTED] + INLINE
    return sorted({command for command in found if command.startswith(first_word + " ")})


def test_make_targets_exist_and_each_stands_in_the_table_of_costs():
    there = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands("make"):
        targets = [word for word in shlex.split(command)[1:] if "=" not in word and not word.startswith("-")]
        assert targets and set(targets) <= there, command
    assert set(re.findall(r"^\| `make ([\w-]+)` \|", PAGES["docs/costs.md"], re.MULTILINE)) == there


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


@pytest.mark.parametrize("command", [command for command in PYTHON_COMMANDS
                                     if not command.startswith(("python -m pytest", "python -m tests."))])
def test_python_commands_parse(command, stop_after_parsing, monkeypatch):
    words = shlex.split(command)[1:]
    assert "..." not in words, "write the command out"
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    if name == "experiments.picture":                                        # which draws: a library of make dev
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", [words[0], *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(name.replace("/", "."), run_name="__main__")


# ---------------------------------------------------------------- code blocks

@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    (tmp_path / "toy").symlink_to(ROOT / "toy")                              # what they write lands beside it
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "a page", "exec"), {})


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
