"""The floor plan, kept: which file may import which, what the core may depend on, and how large a file may grow.

The core is the five files and three commands in the repository's root and the seven folders beside them; experiments/, toy/
and tests/ stand on top of it. All of this is read from the syntax trees, so that nothing runs and an import inside a function
counts like any other.
"""
import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIVE, COMMANDS = ("lora", "model", "data", "train", "eval_metrics"), ("decode", "predict", "export")
# from the ground up: a file imports what stands on its own floor or below
FLOORS = ({"files", "speed"}, {"metrics", "model"}, {"lora", "data", "eval_metrics", "more_models"}, {"generation"},
          {"adapters"}, {"methods"}, {"training"}, {"train", *COMMANDS})
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = ("files", "speed", "metrics", "more_models", "generation", "adapters", "methods", "training")
ABOVE = ("experiments", "toy", "tests")
LIBRARIES = {"torch", "numpy", "tiktoken", "tqdm"}
LONGEST_FILE, LONGEST_OF_THE_FIVE, THE_FIVE, LONGEST_FUNCTION = 400, 320, 1150, 70

# Exceptions, each with its reason; the tests refuse one that is no longer needed.
LONG_FUNCTIONS: dict[str, str] = {}
SAYS_NOT_WHAT_IS_LEFT_OUT: dict[str, str] = {}
SAID_ELSEWHERE: dict[str, str] = {}                                          # functions without a docstring
IMPORTS_BY_NAME = {"files.pretrained": "more_models/ holds a file for each further family, which config.json names"}


def core() -> dict[str, Path]:
    """Dotted name -> file; a folder's own name is its __init__.py."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            found[folder if path.stem == "__init__" else f"{folder}.{path.stem}"] = path
    return dict(sorted(found.items()))


CORE = core()


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(CORE[module].read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in the tree, with its dots; `from folder import file` is folder.file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{name.name}" for name in node.names} & CORE.keys()
            found |= inside or {"." * node.level + (node.module or "")}
    return found


def project_imports(module: str) -> set[str]:
    return imports_of(tree_of(module)) & CORE.keys()


def all_below(module: str) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    below, waiting = set(), [module]
    while waiting:
        for name in project_imports(waiting.pop()) - below:
            below.add(name)
            waiting.append(name)
    return below


def room(module: str) -> str:
    return module.partition(".")[0]


def lines_in(module: str) -> int:
    return len(CORE[module].read_text(encoding="utf-8").splitlines())


def public_functions(module: str) -> dict[str, ast.FunctionDef]:
    """module.function or module.Class.method -> its tree; names that begin with _ are private."""
    found = {}

    def look(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                look(child, f"{path}.{child.name}")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{path}.{child.name}"] = child
    look(tree_of(module), module)
    return found


def lines_of(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


# ---------------------------------------------------------------- rooms and arrows

def test_the_root_holds_the_five_files_and_the_commands_alone():
    assert {path.stem for path in ROOT.glob("*.py")} == {*FIVE, *COMMANDS}
    assert {room(module) for module in CORE} == FLOOR.keys()


def test_the_imports_are_found():
    assert {"model"} <= project_imports("lora") and {"training.processes", "methods"} <= project_imports("train")
    assert {"speed.packed", "generation", "lora"} <= project_imports("adapters.bank") and "model" in all_below("train")


@pytest.mark.parametrize("module", CORE)
def test_arrows_point_down_only(module):
    """To the same floor or a lower one, and never round in a circle."""
    above = {name for name in project_imports(module) if FLOOR[room(name)] > FLOOR[room(module)]}
    assert not above, f"{module} imports {above}, which stand above it: move what they share into a file below both"
    assert module not in all_below(module), f"{module} imports itself by way of others: move what they share below"


@pytest.mark.parametrize("module", [module for module in CORE if room(module) in ("files", "speed", "train", *COMMANDS)])
def test_the_ground_floor_stands_on_nothing_and_nothing_on_a_command(module):
    if FLOOR[room(module)] == 0:
        assert {room(name) for name in project_imports(module)} <= {room(module)}
    else:
        assert all(module not in project_imports(other) for other in CORE)


def test_lora_is_read_first():
    """It needs torch, the model's own names and one line's fast form, and no file format."""
    assert imports_of(tree_of("lora")) <= {"torch", "model", "speed.update", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", [module for module in CORE if room(module) in ("files", "metrics", "eval_metrics")])
def test_the_scores_and_the_files_need_no_torch(module):
    """A tokenizer, a download, a score are there without it; weights are tensors."""
    needs_torch = {name for name in {module, *all_below(module)} if "torch" in imports_of(tree_of(name))}
    assert needs_torch <= ({"files.weights", "files.pretrained"} if room(module) == "files" else set())


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_its_own_four_libraries_and_the_standard_library(module):
    for name in imports_of(tree_of(module)) - CORE.keys():
        assert name.split(".")[0] in LIBRARIES | sys.stdlib_module_names, (
            f"{module} imports {name}: what stands in {', '.join(ABOVE)} and other libraries stay out of the core")
    called = {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(tree_of(module))
              if isinstance(node, ast.Name | ast.Attribute)}
    by_name = called & {"__import__", "import_module"}
    assert bool(by_name) == (module in IMPORTS_BY_NAME), f"{module} imports by name, where no reader can see it"


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_not_know_the_toy_world(module):
    """A toy model is just a model folder and a toy task just a data folder."""
    for number, line in enumerate(CORE[module].read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search(r"\btoy\b", line, re.IGNORECASE), f"{CORE[module]}, line {number}: {line.strip()}"


@pytest.mark.parametrize("module", CORE)
def test_only_the_models_file_names_the_families(module):
    """A new family of models is one file: what differs between them, the model and its configuration say themselves."""
    switches = [line for line in CORE[module].read_text(encoding="utf-8").splitlines()
                if re.search(r"isinstance\([^)]*(GPT2|Roberta)|type\(.*config\)\]", line)]
    assert not switches or module == "model", switches


def test_experiments_and_toy_do_not_import_tests():
    for path in (*ROOT.glob("experiments/*.py"), *ROOT.glob("toy/*.py")):
        roots = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text(encoding="utf-8")))}
        assert "tests" not in roots, path


# ---------------------------------------------------------------- sizes

def test_no_file_is_too_long_to_be_read_in_one_go():
    lengths = {module: lines_in(module) for module in CORE}
    assert not {name: n for name, n in lengths.items() if n > (LONGEST_OF_THE_FIVE if name in FIVE else LONGEST_FILE)}
    assert sum(lengths[name] for name in FIVE) <= THE_FIVE


def test_no_core_function_is_too_long():
    lengths = {name: lines_of(node) for module in CORE for name, node in public_functions(module).items()}
    for module in CORE:                                                      # nested ones and private ones, too
        lengths |= {f"{module}.{node.name}": max(lines_of(node), lengths.get(f"{module}.{node.name}", 0))
                    for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef)}
    long = {name for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert long <= set(LONG_FUNCTIONS), f"more than {LONGEST_FUNCTION} lines: {[(name, lengths[name]) for name in long]}"
    assert long == set(LONG_FUNCTIONS), f"no longer an exception: {set(LONG_FUNCTIONS) - long}"


# ---------------------------------------------------------------- what a file says of itself

def test_every_module_says_what_it_is_and_what_it_leaves_out():
    silent = set()
    for module in CORE:
        text = ast.get_docstring(tree_of(module)) or ""
        if module in FOLDERS and not text:
            continue                                                         # an empty __init__.py
        assert text, f"{module} has no docstring"
        if not re.search(r"\b(left out|leaves out|leave out)\b", text, re.IGNORECASE):
            silent.add(module)
    assert silent <= set(SAYS_NOT_WHAT_IS_LEFT_OUT), f"no 'Left out: ...' in the docstring: {silent}"
    assert silent == set(SAYS_NOT_WHAT_IS_LEFT_OUT), f"no longer an exception: {set(SAYS_NOT_WHAT_IS_LEFT_OUT) - silent}"


def test_every_script_above_the_core_has_a_docstring():
    for path in (*ROOT.glob("experiments/*.py"), *ROOT.glob("toy/*.py"), *ROOT.glob("tests/**/test_*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


def test_public_functions_of_more_than_a_few_lines_have_a_docstring():
    """A function of up to five lines may be its own description; a parser's help texts describe main."""
    silent = {name for module in CORE for name, node in public_functions(module).items()
              if name.count(".") == module.count(".") + 1 and lines_of(node) > 5 and not ast.get_docstring(node)
              and name.rpartition(".")[2] not in ("main", "parse_arguments")}
    assert silent <= set(SAID_ELSEWHERE), f"no docstring: {sorted(silent - set(SAID_ELSEWHERE))}"
    assert silent == set(SAID_ELSEWHERE), f"no longer an exception: {set(SAID_ELSEWHERE) - silent}"
