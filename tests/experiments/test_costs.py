"""The costs of make targets: what is measured is the target's own, earlier figures stay, a failure is said."""
import json

import pytest

from experiments import costs

MAKEFILE = """demo:
\t@echo $(WORD) from the demo
heavy:
\t@python3 -c "x = bytearray(200 << 20)"
writer:
\t@mkdir -p new/__pycache__ .git && head -c 3145728 /dev/zero | tee new/__pycache__/a.pyc .git/b > new/file && rm -f old
broken:
\t@exit 3
"""


@pytest.fixture()
def results(monkeypatch, tmp_path):
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    ask = costs.subprocess.run                                               # the machine is asked for in the repository
    monkeypatch.setattr(costs.subprocess, "run", lambda command, cwd, **options: ask(command, **options))
    monkeypatch.setattr(costs, "REPOSITORY", tmp_path)
    monkeypatch.chdir(costs.Path(costs.__file__).parents[1])
    return tmp_path / "results"


def test_output_time_and_the_peak_of_the_largest_process_are_kept(results, capsys):
    assert costs.main(["demo", "WORD=greetings", "--results", str(results)]) == 0
    assert (results / "output" / "demo.txt").read_text(encoding="utf-8") == "greetings from the demo\n"
    assert costs.main(["heavy", "--results", str(results)]) == 0
    kept = json.loads((results / "costs.json").read_text(encoding="utf-8"))
    assert list(kept) == ["demo", "heavy"] and not (results / "output" / "heavy.txt").exists()
    assert kept["heavy"]["peak_mib"] > 200 and kept["demo"]["seconds"] > 0
    assert kept["demo"]["made"].startswith("Run on ") and "make heavy: " in capsys.readouterr().out


def test_disk_is_what_the_folder_has_grown_by(results):
    (results.parent / "old").write_bytes(bytes(1 << 20))
    for expected in (2.0, 0.0):                                              # 3 MiB written, 1 deleted; then nothing new
        costs.main(["writer", "--results", str(results)])
        kept = json.loads((results / "costs.json").read_text(encoding="utf-8"))
        assert kept["writer"]["disk_mib"] == pytest.approx(expected, abs=0.01)


def test_a_target_that_fails_is_an_error_and_leaves_the_figures(results):
    costs.main(["demo", "--results", str(results)])
    before = (results / "costs.json").read_bytes()
    with pytest.raises(ValueError, match="make broken ended with status 2"):
        costs.main(["broken", "--results", str(results)])
    assert (results / "costs.json").read_bytes() == before
