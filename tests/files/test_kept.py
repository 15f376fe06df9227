"""cache.py: the second time nothing is computed, and no state of the disk changes a result."""
import pytest

from files import cache, writing
from files.text import read_json, write_json


@pytest.fixture
def counted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def upper(texts: list[str]) -> list[str]:
        calls.append(texts)
        return [text.upper() for text in texts]

    return calls, upper


TEXTS = ["the owl", "", "caf\u00e9 \u2028 x", "", "lone \ud800"]


def test_lines_are_computed_once(counted):
    calls, upper = counted
    first, second = (cache.kept_lines(TEXTS, [b"version 1"], upper) for _ in range(2))
    assert first == second == [text.upper() for text in TEXTS]
    assert len(calls) == 1


def test_other_texts_and_another_version_are_computed_anew(counted):
    calls, upper = counted
    for texts, depends_on in ((["a\nb", "c"], []), (["a", "b\nc"], []), (["a", "b"], [b"1"]),
                              (["a b"], [b"1"]), (["a", "b"], [b"2"]), (["a", "b"], [b"1", b""])):
        cache.kept_lines(texts, depends_on, upper)
        assert calls[-1] == texts
    assert len(calls) == 6


def test_another_python_computes_anew(counted, monkeypatch):
    calls, upper = counted
    for version in ("3.10", "3.14"):
        monkeypatch.setattr(cache.sys, "version", version)
        cache.kept_lines(TEXTS, [], upper)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [b"", b"no zlib", None])
def test_a_damaged_file_is_replaced(counted, damage):
    calls, upper = counted
    expected = cache.kept_lines(TEXTS, [], upper)
    file, = cache.folder().iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert cache.kept_lines(TEXTS, [], upper) == expected and len(calls) == 2
    assert file.read_bytes() == whole


def test_without_a_writable_folder_nothing_is_kept(counted, monkeypatch, tmp_path):
    calls, upper = counted
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert cache.kept_lines(["a"], [], upper) == ["A"]
    assert len(calls) == 2


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Another process ends between our opening and our looking."""
    original, removed = writing.lock_file, []

    def removes(file, wait):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        return original(file, wait)
    monkeypatch.setattr(writing, "lock_file", removes)
    with writing.hold_lock(tmp_path / ".lock", wait=False) as file:
        assert file is not None and (tmp_path / ".lock").exists()


def test_json_has_null_for_what_it_has_no_number_for(tmp_path):
    write_json({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (2, float("inf"))}}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1.5, None], "c": {"d": [2, None]}}
    assert "null" in (tmp_path / "a.json").read_text()
