"""Advice that helps: for each error message that says what to do, its fault is made, the advice followed, and all is well.

A case (advice_files.py, advice_adapters.py, advice_commands.py) stands under the file and the words of its message. It makes
the fault and returns what fails with these words, and what the words tell to do, which may return what to try in place of the
first. docs/messages.md lists all of them:

    python -m tests.test_advice > docs/messages.md
"""
import ast
import contextlib
import importlib
import io
import re
import shutil
from pathlib import Path

import pytest
import torch

import model as M
from adapters import load_adapter, save_adapter
from files import text
from tests.advice import CASES, ROOT, TOY, World, adapted, base, edited_tensors
from tests.advice_adapters import MERGING

for cases in ("files", "adapters", "commands", "more_models"):
    importlib.import_module(f"tests.advice_{cases}")                         # registers them
FOLDERS = ("more_models", "training", "methods", "adapters", "generation", "metrics", "files", "speed")
ELSEWHERE = {                                                                # (file, words) -> where the fault is made
    ("files/cli.py", "lower the batch size or the beam size, or take a smaller model"): "tests/test_faults.py",
    ("metrics/meteor_resources.py", "pip install --force-reinstall --no-deps"): "tests/metrics/test_meteor.py",
}


def said(words: str) -> str:
    """The words as a pattern: what stands in braces is filled in when the message is made."""
    return ".*".join(re.escape(part) for part in re.split(r"\{[^}]*\}|.*'\}", words))


def follow(case, words, world):
    action, mend = case(world)
    with pytest.raises((ValueError, OSError, RuntimeError, SystemExit)) as error, contextlib.redirect_stderr(
            io.StringIO()) as stderr:
        action()
    found = stderr.getvalue() if error.type is SystemExit else str(error.value)      # argparse says it there
    assert re.search(said(words), found), found
    (mend() or action)()


TELLS = re.compile(r"[:;,(] (or )?(ask|call|check|choose|connect|convert|delete|fetch|get|give|leave|load|lower|make|mend|"
                   r"merge|move|name|open|put|remove|replace|run|save|set|shorten|start|take|train|try|unset|use|wait)\b")


def text_of(node: ast.AST) -> str:
    """A message as it stands in the source, what is filled in between braces."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (text_of(node.body), text_of(node.orelse))))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages_of_errors() -> list[tuple[str, str]]:
    """(file, message) of every error of the core."""
    found = []
    for path in sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py"))]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.search(r"Error$|\bparser\.error$", ast.unparse(node.func)):
                found.append((path.relative_to(ROOT).as_posix(), " ".join(text_of(argument) for argument in node.args)))
    return found


def messages_with_advice() -> list[tuple[str, str]]:
    """Those that tell what to do."""
    return [(file, message) for file, message in messages_of_errors() if TELLS.search(re.sub(r"\{[^}]*\}", "", message))]


def test_every_message_with_advice_has_a_case():
    missing = [(file, message) for file, message in messages_with_advice()
               if not any(file == other and words in message for other, words in [*CASES, *ELSEWHERE])]
    assert not missing, "\n".join(f"{file}: {message}" for file, message in missing)


def test_every_case_stands_under_the_file_of_its_message():
    for file, words in [*CASES, *ELSEWHERE]:
        source = re.sub(r'"\s*\n\s*f?"', "", (ROOT / file).read_text(encoding="utf-8").replace("!r}", "}"))
        assert words in source, f"{file} has no '{words}'"


def page() -> str:
    """docs/messages.md."""
    cases, messages = dict.fromkeys(CASES, "") | ELSEWHERE, messages_of_errors()
    rows = {(file, next((message for other, message in messages if other == file and words in message), words), where)
            for (file, words), where in cases.items()}
    table = "\n".join(f"| {file} | {' '.join(message.split()).replace('|', '/')} | {where} |"
                      for file, message, where in sorted(rows))
    return f"""# Messages that say what to do

Which error messages tell what to do, and where the telling is tested. ([README](../README.md))

By the file that a message comes from; what is filled in stands in braces, as in the source.
[tests/test_advice.py](../tests/test_advice.py) makes each fault, follows the advice and finds it mended;
where another test makes it, and nothing follows the advice, that is named. Run as a module, that file writes this page.

| file | message | made elsewhere |
|---|---|---|
{table}
"""


def test_the_page_lists_them():
    assert (ROOT / "docs" / "messages.md").read_text(encoding="utf-8") == page()
    assert all((ROOT / where).is_file() for where in ELSEWHERE.values())


@pytest.fixture
def world(tmp_path, toy_data, monkeypatch):
    return World(tmp_path, toy_data, monkeypatch)


@pytest.mark.parametrize("file, words", [key for key in CASES if CASES[key] is not MERGING[0]])
def test_following_the_advice_mends_the_fault(world, file, words):
    follow(CASES[file, words], words, world)


@pytest.mark.parametrize("case", MERGING)
def test_what_peft_merges_as_advised_loads(world, case):
    follow(case, "merge it with PEFT and load the merged", world)


# ---------------------------------------------------------------- where no advice helps

def test_what_is_no_full_disk_is_not_told_to_make_room(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="what stood there is kept$"):
        text.write_json({}, tmp_path / "a.json")


def test_weights_of_another_kind_are_called_so(tmp_path):
    """For which no config.json helps: the names that were found are said, and no advice is given."""
    folder = Path(shutil.copytree(TOY / "roberta", tmp_path / "roberta"))
    edited_tensors(folder / "model.safetensors", lambda found: found | {"qa_outputs.weight": torch.ones(2, 3)}, {"a": "b"})
    with pytest.raises(ValueError, match="1 unexpected .*qa_outputs.weight.*: these are weights of another kind"):
        M.load_pretrained(folder)


def test_a_file_that_is_no_adapter_is_told_by_its_keys(tmp_path):
    save_adapter(adapted(base()), tmp_path)
    edited_tensors(tmp_path / "adapter_model.safetensors", lambda found: {"prompt_embeddings": torch.ones(2, 3)}, {"a": "b"})
    with pytest.raises(ValueError, match="prompt_embeddings"):
        load_adapter(base(), tmp_path)


if __name__ == "__main__":
    print(page(), end="")
