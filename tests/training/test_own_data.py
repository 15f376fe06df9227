"""The user's own files: pairs with labels of any names or numbers, and text from text; from a file to predict.py's answers."""
import io
import json

import pytest

import export
import predict
import train
from adapters.folder import read_folder
from files.text import read_json
from metrics.classes import macro_f1
from training import sources
from training.command_line import parse_arguments

ROWS = [("It floats, it rows.", "boat"), ("A house of brick", "building"), ('She said "oars", twice', "boat"),
        ("It burns", "lamp"), ("A wall, a roof", "building"), ("The sail is up", "boat")]
WRITERS = {"tsv": lambda rows: ["\t".join(row) for row in rows],
           "csv": lambda rows: [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows],
           "jsonl": lambda rows: [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]}


def write(folder, rows, form="tsv", columns=("note", "kind"), name="own"):
    path = folder / f"{name}.{form}"
    path.write_text("\n".join(WRITERS[form]([columns, *rows])) + "\n", encoding="utf-8")
    return path


def run(repository, path, out, *options, kind="roberta", task="pairs"):
    train.main(["--model", str(repository / "toy" / kind), "--task", task, "--train-file", str(path), "--dev-file", str(path),
                "--out-dir", str(out), "--max-steps", "2", "--batch-size", "3", "--rank", "3", "--alpha", "7", *options])
    return max(out.rglob("metrics.json"), key=lambda path: path.stat().st_mtime).parent


LABELLED = ("--text-columns", "note", "--label-column", "kind")


def own_pairs(path, *options):
    return sources.OwnPairs(parse_arguments(["--model", "M", "--task", "pairs", "--train-file", str(path), "--dev-file", "D",
                                             *LABELLED, *options]))


@pytest.mark.parametrize("form", WRITERS)
def test_rows_are_the_same_in_every_form_of_file(tmp_path, form):
    source = own_pairs(write(tmp_path, ROWS, form))
    assert source.form.labels == ("boat", "building", "lamp") and "3 classes: boat, building, lamp" in source.note
    assert [(row.text, row.pair, row.label) for row in source.rows("train")] == [
        (text, None, ("boat", "building", "lamp").index(label)) for text, label in ROWS]


def test_predictions_carry_the_users_labels(repository, tmp_path, capsys):
    folder = run(repository, write(tmp_path / "", ROWS), tmp_path / "runs", *LABELLED)
    assert "own" in folder.parent.name and "labels are 3 classes: boat, building, lamp" in capsys.readouterr().out
    scores = read_json(folder / "metrics.json")["scores"]
    assert scores.keys() == {"accuracy", "macro_f1", "loss"}
    assert read_folder(folder / "adapter")[2]["form"] == {"texts": 1, "labels": ["boat", "building", "lamp"]}
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps({"adapter": "mine", "text": text}) + "\n" for text, _ in ROWS), encoding="utf-8")
    model = str(repository / "toy/roberta")
    assert predict.main(["--model", model, "--adapter", f"mine={folder / 'adapter'}", "--out", str(tmp_path / "answers"),
                         str(requests)]) == 0
    answers = [json.loads(line)["label"] for line in (tmp_path / "answers").read_text(encoding="utf-8").splitlines()]
    predicted = (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert answers == [line.split("\t")[1] for line in predicted] and set(answers) <= {"boat", "building", "lamp"}
    export.main(["--model", model, "--adapter", str(folder / "adapter"), "--out", str(tmp_path / "merged")])
    assert read_json(tmp_path / "merged/config.json")["id2label"] == {"0": "boat", "1": "building", "2": "lamp"}


@pytest.mark.parametrize("labels, given, expected", [
    (("1", "2", "5"), (), "3 classes: 1, 2, 5 (else: --labels numbers)"), (("0.5", "2", "5"), (), "numbers, 0.5 to 5 (else"),
    (("1", "2", "5"), ("--labels", "numbers"), "numbers, 1 to 5"), (("0.5", "2", "5"), ("--labels", "classes"), "3 classes"),
    (("0.5", "2", "five"), (), "3 classes: 0.5, 2, five")])
def test_what_labels_are_is_said(tmp_path, labels, given, expected):
    path = write(tmp_path, [("a", label) for label in labels])
    assert expected in own_pairs(path, *given).note


def test_numbers_are_learned_and_answered_as_numbers(repository, tmp_path, monkeypatch):
    rows = [(text, other, f"{0.5 + index}") for index, (text, other) in enumerate(ROWS)]
    path = write(tmp_path, rows, "csv", ("first", "second", "how much"))
    folder = run(repository, path, tmp_path / "runs", "--text-columns", "first", "second", "--label-column", "how much")
    assert read_json(folder / "metrics.json")["scores"].keys() == {"pearson", "spearman", "loss"}
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdin", type("Input", (), {"buffer": io.BytesIO(f"{rows[0][0]}\t{rows[0][1]}\n".encode())}))
    monkeypatch.setattr("sys.stdout", type("Output", (), {"buffer": out, "write": print, "flush": print}))
    predict.main(["--model", str(repository / "toy/roberta"), "--adapter", f"mine={folder / 'adapter'}", "--interactive"])
    predicted = float((folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[1])
    assert float(out.getvalue()) == pytest.approx(predicted, abs=1e-3)


def test_text_comes_from_text_of_any_columns(repository, tmp_path):
    rows = [(f"name : {name}", f'The "{name}",\nwhich floats.') for name in ("Otter", "Heron", "Otter")]
    path = write(tmp_path, rows, "jsonl", ("in", "out"))
    columns = ("--text-columns", "in", "out", "--beam-size", "2")
    folder = run(repository, path, tmp_path / "runs", *columns, kind="gpt2", task="text")
    scores = read_json(folder / "metrics.json")["scores"]
    assert scores.keys() >= {"loss", "BLEU", "CIDEr"} and scores["reference_text"] == "own"
    assert (folder / "references.txt").read_text(encoding="utf-8") == (
        'The "Otter", which floats.\nThe "Otter", which floats.\n\nThe "Heron", which floats.\n\n')
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"adapter": "mine", "text": "name : Otter"}\n', encoding="utf-8")
    assert predict.main(["--model", str(repository / "toy/gpt2"), "--adapter", f"mine={folder / 'adapter'}", "--beam-size", "2",
                         "--out", str(tmp_path / "answers"), str(requests)]) == 0
    answer = json.loads((tmp_path / "answers").read_text(encoding="utf-8"))["text"]
    assert answer == (folder / "predictions.txt").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize("rows, message", [
    ([("a", "boat"), ("b", "lamp"), ("c",)], "own.tsv, line 4: found 1 fields in 'c', expected 2 between tabs"),
    ([("a", "boat"), ("b", "lamp"), ("c", "")], "own.tsv, line 4: found the label '', expected one of the training file's"),
    ([("a", "boat"), ("b", "boat")], "every label is 'boat', expected two classes or more")])
def test_a_malformed_row_is_named(repository, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        run(repository, write(tmp_path, rows), tmp_path / "runs", *LABELLED)
    assert not list((tmp_path / "runs").rglob("config.json"))


@pytest.mark.parametrize("options, message", [
    (("--task", "pairs"), "trains on files of yours: give --train-file --dev-file --text-columns --label-column as well"),
    (("--task", "text", "--train-file", "a", "--dev-file", "b", "--text-columns", "c"), "expected two, the input and the out")])
def test_what_is_lacking_is_said(capsys, options, message):
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "M", *options])
    assert message in capsys.readouterr().err


def test_macro_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    predictions, labels = [0, 1, 1, 3, 0, 2, 0], [0, 1, 2, 2, 1, 2, 0]
    theirs = metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, labels) == pytest.approx(theirs)


def test_a_long_output_is_decoded_whole_and_what_leaves_it_no_room_is_refused_at_once(repository, tmp_path):
    long, columns = " ".join(["ship"] * 90), ("--text-columns", "in", "out", "--beam-size", "2")
    path = write(tmp_path, [("name : Otter", long), ("name : Heron", "A boat.")], "jsonl", ("in", "out"))
    source = ["--model", str(repository / "toy/gpt2"), "--task", "text", "--train-file", str(path), "--dev-file", str(path)]
    _, task, _, _ = train.prepare(parse_arguments([*source, *columns]), seed=0)
    (longest,) = {len(ids) - start for ids, start in task.train if len(ids) > 80}
    assert task.search["max_new_tokens"] == longest > 90
    path = write(tmp_path, [("name : Otter", "A boat."), ("rope " * 230, "A boat.")], "jsonl", ("in", "out"), "wide")
    with pytest.raises(ValueError, match="prompt 1 has .* tokens and max_new_tokens is 64, but the model has 512 positions"):
        run(repository, path, tmp_path / "runs", *columns, kind="gpt2", task="text")
    assert not list((tmp_path / "runs").rglob("config.json"))
    path = write(tmp_path, [("name : Otter", "A boat."), ("name : Heron", "A boat.")], "jsonl", ("in", "out"), "beams")
    with pytest.raises(ValueError, match="beam_size is 9999, too large"):
        run(repository, path, tmp_path / "runs", "--text-columns", "in", "out", "--beam-size", "9999", kind="gpt2", task="text")
