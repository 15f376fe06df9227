"""Where the tests find their material: the repository itself and, beside it, the real data and reference scores.

`../shared` (or the folder named by LORA_SHARED) holds E2E, GLUE, tokenizer files and official scores that are not
ours to ship; a test that needs it skips where it does not exist.
"""
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LORA_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test writes to the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing: E2E, GLUE and the official scores are not ours to ship; name their folder in "
                    "LORA_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """The toy world's tasks, a --data-dir."""
    from toy.world import write_tasks
    folder = tmp_path_factory.mktemp("toy-data")
    write_tasks(folder)
    return folder


def pytest_sessionfinish(session):
    """Under LORA_NO_SKIPS (continuous integration), a skipped comparison is a failure."""
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    if os.environ.get("LORA_NO_SKIPS") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
