"""The floor plan, kept: which file may import which, what the core may depend on, and how large a file may grow.

The core is every module in the repository's root and in files/; experiments/, toy/ and tests/ stand on top of it. All of
this is read from the syntax trees, so that nothing runs and an import inside a function counts like any other.
"""
import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted([*(path.stem for path in ROOT.glob("*.py")), *(f"files.{path.stem}" for path in ROOT.glob("files/[!_]*.py"))])
ABOVE = ("experiments", "toy", "tests")
LIBRARIES = {"torch", "numpy", "tiktoken", "tqdm"}
COMMANDS = ("train", "predict", "export")                                    # nothing of the core stands on these
LONGEST_FILE, LONGEST_FUNCTION = 450, 70

# Exceptions, each with its reason; the tests refuse one that is no longer needed.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
SAYS_NOT_WHAT_IS_LEFT_OUT = {
    "fused": "has the operations that are worth it; all others are torch's",
    "files.cli": "is the whole of what it speaks of",
    "meteor_alignment": "a part of meteor.py, which says what of METEOR is left out",
    "meteor_resources": "reads files for meteor.py, which says what of METEOR is left out",
    "precision": "says which methods it does nothing for",
    "tasks": "gives train.py its losses and scores; train.py says what of training is left out",
}
SAID_ELSEWHERE = {                                                           # functions without a docstring
    "run_state.run_folder": "the module's docstring draws the folder",
    "train.report_end": "prints what metrics.json holds",
    "train.report_start": "prints what config.json holds",
    "train.run_metrics": "its keys say it, one a line",
}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in the tree, with its dots."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module == "files"                                 # from files import cli is files.cli
            found |= {f"files.{name.name}" for name in node.names} if package else {"." * node.level + (node.module or "")}
    return found


def project_imports(module: str) -> set[str]:
    return {name for name in imports_of(tree_of(module)) if name in CORE}


def all_below(module: str) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    below, waiting = set(), [module]
    while waiting:
        for name in project_imports(waiting.pop()) - below:
            below.add(name)
            waiting.append(name)
    return below


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


# ---------------------------------------------------------------- arrows

def test_the_floor_plan_is_found():
    assert {"model", "lora", "data", "decode", "baselines", "train", "predict", "eval_metrics"} <= set(CORE)
    assert {"adapter_files", "model"} <= project_imports("lora") and "model" in all_below("train")


def test_arrows_point_down_only():
    """No module reaches itself: then there is an order in which every import leads to an earlier file."""
    circles = [module for module in CORE if module in all_below(module)]
    assert not circles, f"{circles} import each other in a circle: move what they share into a file below them"


def test_model_stands_on_leaves():
    """The models lean on operations, on the cache of decoding and on files/; these lean on nothing."""
    below = project_imports("model")
    assert below == {"fused", "kv_cache", "files.published", "files.text", "files.weights"}
    for module in ("fused", "kv_cache"):
        assert not project_imports(module), f"{module}.py, below model.py, imports {sorted(project_imports(module))}"


@pytest.mark.parametrize("module", [name for name in CORE if name.startswith("files.")])
def test_files_know_nothing_of_what_stands_on_them(module):
    """And only the weights need torch: a tokenizer, a download, a score are there without it."""
    assert all(name.startswith("files.") for name in all_below(module))
    needs_torch = {name for name in {module, *all_below(module)} if "torch" in imports_of(tree_of(name))}
    assert needs_torch <= {"files.weights"} and (module == "files.weights") == bool(needs_torch)


@pytest.mark.parametrize("module", ["lora", "adapter_files", "baselines", "bank", "data", "decode", "eval_metrics"])
def test_the_rooms_know_nothing_of_the_commands_and_the_tasks(module):
    assert not all_below(module) & {*COMMANDS, "tasks", "run_state"}


def test_nothing_stands_on_a_command():
    for module in CORE:
        found = project_imports(module) & set(COMMANDS)
        assert not found, f"{module}.py imports the command {found}: move what it needs into a file below both"


@pytest.mark.parametrize("module", ["eval_metrics", *sorted(name for name in CORE if name.startswith("meteor")),
                                    "nlg_metrics", "ptb_tokenizer", "stemmer"])
def test_the_metrics_need_no_torch(module):
    for name in {module, *all_below(module)}:
        assert not any(found.split(".")[0] == "torch" for found in imports_of(tree_of(name))), name


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_its_own_four_libraries_and_the_standard_library(module):
    for name in imports_of(tree_of(module)):
        package = name.split(".")[0]
        assert package in LIBRARIES | sys.stdlib_module_names | set(CORE) or name in CORE, (
            f"{module}.py imports {name}: what stands in {', '.join(ABOVE)} and other libraries stay out of the core")
    called = {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(tree_of(module))
              if isinstance(node, ast.Name | ast.Attribute)}
    assert not called & {"__import__", "import_module"}, f"{module}.py imports by name, where no reader can see it"


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_not_know_the_toy_world(module):
    """A toy model is just a model folder and a toy task just a data folder."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search(r"\btoy\b", line, re.IGNORECASE), f"{path}, line {number}: {line.strip()}"


def test_experiments_and_toy_do_not_import_tests():
    for path in (*ROOT.glob("experiments/*.py"), *ROOT.glob("toy/*.py")):
        roots = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text(encoding="utf-8")))}
        assert "tests" not in roots, path


# ---------------------------------------------------------------- sizes

def test_no_core_file_is_too_long_to_be_read_in_one_go():
    lengths = {module: len((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines())
               for module in CORE}
    long = {module for module, length in lengths.items() if length > LONGEST_FILE}
    assert long <= set(LONG_FILES), f"more than {LONGEST_FILE} lines: {[(name, lengths[name]) for name in long]}"
    assert long == set(LONG_FILES), f"no longer an exception: {set(LONG_FILES) - long}"


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
        text = ast.get_docstring(tree_of(module))
        assert text, f"{module}.py has no docstring"
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
