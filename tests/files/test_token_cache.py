"""Tokens in cache.py: found again by content, made again for other content or a damaged file, and written by many at once."""
import io
import multiprocessing
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

import data
from files import cache as kept
from training import sources, tasks

SAMPLES = [([5, 6, 7], 2), ([8], 0), ([9, 50256], 1)]


@pytest.fixture()
def cache(tmp_path, monkeypatch, repository):
    """ask(samples, settings, text) -> (what the cache gives, whether it had to build)"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer, built = data.load_tokenizer(repository / "toy" / "gpt2"), []

    def ask(samples=SAMPLES, settings=("train", None), text="file", count=3):
        (tmp_path / "train.txt").write_text(text, encoding="utf-8")
        before = len(built)
        got = kept.kept_samples(lambda: built.append(1) or (samples, count), [tmp_path / "train.txt"], tokenizer.fingerprint,
                                settings)
        return got, len(built) > before
    ask.folder, ask.tokenizer = tmp_path / "cache" / "lora" / "kept", tokenizer
    return ask


def test_the_second_time_it_is_read_and_the_same(cache):
    assert cache() == ((SAMPLES, 3), True) and cache() == ((SAMPLES, 3), False)
    scores = [([1, 2], 2.5), ([3], 0.0)]
    assert cache(scores, ("stsb",))[1] and cache(settings=("stsb",)) == ((scores, 3), False)
    assert {path.suffix for path in cache.folder.iterdir()} == {".z"}


def test_other_content_settings_or_tokenizer_are_other_entries(cache):
    cache()
    assert cache(text="file, changed")[1] and cache(settings=("valid", None))[1] and cache(settings=("train", 5))[1]
    cache.tokenizer.fingerprint = "of another"
    assert cache()[1]


@pytest.mark.parametrize("damage", [lambda raw: raw[:len(raw) // 2], lambda raw: b"", lambda raw: b"not a zip file" * 50,
                                    lambda raw: raw.replace(b"\x05\0\0\0\x06", b"\x04\0\0\0\x06")],
                         ids=["cut", "empty", "other", "changed"])
def test_a_damaged_entry_is_made_again(cache, damage):
    cache()
    (file,) = cache.folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cache() == ((SAMPLES, 3), True) and cache() == ((SAMPLES, 3), False)


def test_an_entry_whose_parts_do_not_fit_is_made_again(cache):
    cache()
    (file,) = cache.folder.iterdir()
    content = io.BytesIO()
    np.savez(content, ids=np.arange(4), ends=np.array([2, 9]), seconds=np.array([1, 1]), count=0)
    file.write_bytes(zlib.compress(content.getvalue()))
    assert cache() == ((SAMPLES, 3), True)


def test_a_folder_that_cannot_be_written_is_no_error(cache):
    cache.folder.parent.mkdir(parents=True)
    cache.folder.write_text("a file where the folder should be")
    assert cache() == ((SAMPLES, 3), True) == cache()


def write_often(file):
    for number in range(30):
        kept.store(kept.pack_samples([([number] * 500, 1)], 0), file)


def test_processes_that_write_the_same_entry_leave_a_whole_one(tmp_path):
    file = tmp_path / "entry.z"
    kept.store(kept.pack_samples(SAMPLES, 0), file)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        working = pool.map_async(write_often, [file] * 3)
        while not working.ready():
            ((ids, _), *_), _ = kept.unpack_samples(file.read_bytes())
            assert ids == SAMPLES[0][0] or len(set(ids)) == 1 and len(ids) == 500
        working.get()
    assert [path.name for path in tmp_path.iterdir()] == ["entry.z"]


@pytest.mark.parametrize("name, kind", [("e2e", "gpt2"), ("mrpc", "roberta")])
def test_a_task_from_the_cache_is_the_task(repository, toy_data, tmp_path, monkeypatch, name, kind):
    """Once read from the text, once from the cache, where no sample may be encoded."""
    import model as M
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = data.load_tokenizer(repository / "toy" / kind)
    config = M.load_pretrained(repository / "toy" / kind).config
    settings = SimpleNamespace(task=name, text="pretokenised", limit_train=50, limit_eval=9, max_length=30, beam_size=4)
    first = tasks.make_task(settings, tokenizer, config, sources.make_source(settings, toy_data))
    monkeypatch.setattr(*((data, "encode_e2e", None) if name == "e2e" else (type(tokenizer), "pieces", None)))
    again = tasks.make_task(settings, tokenizer, config, sources.make_source(settings, toy_data))
    assert again.train == first.train and again.summary == first.summary and len(first.train) == 50
