"""toy/demo.py, what `make demo` runs, on a part of its data."""
import re

from toy import demo


def test_the_demo_runs_to_its_end_and_prints_both_tables(repository, toy_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repository)                                            # the bases are given as paths from here
    monkeypatch.setattr(demo, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(demo, "DATA", toy_data)
    monkeypatch.setattr(demo.world, "write_tasks", lambda folder: None)
    monkeypatch.setattr(demo, "PAIRS", [*demo.PAIRS, "--limit-train", "32", "--limit-eval", "8"])
    monkeypatch.setattr(demo, "TEXT", [*demo.TEXT, "--limit-train", "32", "--limit-eval", "4", "--beam-size", "2"])
    assert demo.main() == 0
    text = capsys.readouterr().out
    for label in ("frozen base + head", "LoRA + head"):
        assert re.search(rf"^  {re.escape(label)} +0\.\d{{3}} +0\.\d{{3}} +[\d,]+ \(\d\.\d\d%\) +\d+ s +\d+ MiB$", text,
                         re.MULTILINE)
    for label in ("frozen base", "LoRA"):
        assert re.search(rf"^  {label}(?: +\d+\.\d{{4}}){{5}} ", text, re.MULTILINE)
    assert len(re.findall("^      before: ", text, re.MULTILINE)) == 3 == len(re.findall("^      after:  ", text, re.MULTILINE))
