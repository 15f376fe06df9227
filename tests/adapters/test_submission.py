"""predict.py --submission: GLUE's test sets as they are published, answered in the form that gluebenchmark.com takes."""
import json
from types import SimpleNamespace

import pytest
import torch

import model as M
import predict
from adapters import load_adapter, save_adapter, submission
from data import GLUE_TASKS, load_tokenizer
from lora import add_lora

# task -> labels of its adapter's classes, as the leaderboard's instructions spell them
SPELLED = {"cola": ["0", "1"], "sst2": ["0", "1"], "mrpc": ["0", "1"], "qqp": ["0", "1"], "wnli": ["0", "1"], "stsb": None,
           "mnli": ["entailment", "neutral", "contradiction"], "qnli": ["entailment", "not_entailment"],
           "rte": ["entailment", "not_entailment"]}
# file of the answers -> task, test set, header as it is published, and the places of the texts
FILES = {
    "CoLA.tsv": ("cola", "CoLA/test.tsv", "index sentence", (1,)),
    "SST-2.tsv": ("sst2", "SST-2/test.tsv", "index sentence", (1,)),
    "MRPC.tsv": ("mrpc", "MRPC/test.tsv", "Quality,#1 ID,#2 ID,#1 String,#2 String", (3, 4)),    # as Microsoft has it: no index
    "STS-B.tsv": ("stsb", "STS-B/test.tsv", "index genre filename year old_index source1 source2 sentence1 sentence2", (7, 8)),
    "QQP.tsv": ("qqp", "QQP/test.tsv", "id question1 question2", (1, 2)),
    "MNLI-m.tsv": ("mnli", "MNLI/test_matched.tsv", "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                   "sentence1_parse sentence2_parse sentence1 sentence2", (8, 9)),
    "MNLI-mm.tsv": ("mnli", "MNLI/test_mismatched.tsv", "index promptID pairID genre sentence1_binary_parse "
                    "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2", (8, 9)),
    "AX.tsv": ("mnli", "diagnostic/diagnostic.tsv", "index sentence1 sentence2", (1, 2)),
    "QNLI.tsv": ("qnli", "QNLI/test.tsv", "index question sentence", (1, 2)),
    "RTE.tsv": ("rte", "RTE/test.tsv", "index sentence1 sentence2", (1, 2)),
    "WNLI.tsv": ("wnli", "WNLI/test.tsv", "index sentence1 sentence2", (1, 2)),
}
WORDS = ("The", "old", "ship", '"', "sails", "in", "rain", "Zoë", "of", "brass", "and", "never", "stops")


def rows_of(file, count):
    """Index and texts of the rows of a test set; their lengths go up and down."""
    task, _, header, places = FILES[file]
    draw = torch.Generator().manual_seed(len(file) + len(header))
    texts = [[" ".join(WORDS[i] for i in torch.randint(len(WORDS), (1 + (7 * row) % 23,), generator=draw))
              for _ in places] for row in range(count)]
    return [(str(row if task == "mrpc" else 3 * row + 5), texts[row]) for row in range(count)]


def write_tests(data_dir, count=11, files=tuple(FILES)):
    for file in files:
        _, path, header, places = FILES[file]
        columns = header.split("," if "," in header else " ")
        lines = ["\t".join(columns)]
        for index, texts in rows_of(file, count):
            cells = [index if column in ("index", "id") else "1" for column in columns]
            for place, text in zip(places, texts, strict=True):
                cells[place] = text
            lines.append("\t".join(cells))
        (data_dir / "glue" / path).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / "glue" / path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def adapters(repository, tmp_path_factory):
    """An adapter for each task, with numbers as if trained, so that every class is predicted, and scores beyond 0 and 5."""
    folder, tokenizer = tmp_path_factory.mktemp("adapters"), load_tokenizer(repository / "toy/roberta")
    for seed, (task, labels) in enumerate(SPELLED.items()):
        model = add_lora(M.load_pretrained(repository / "toy/roberta", num_labels=len(labels or "1")), 2, 7)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name or name.startswith("classifier."):
                    parameter.normal_(0, 0.1, generator=generator)
            model.classifier.out_proj.weight *= 100 if labels else 20
            file = next(file for file, (other, *_) in FILES.items() if other == task)
            logits = torch.cat([model(torch.tensor([tokenizer.encode(*texts)])) for _, texts in rows_of(file, 11)])
            model.classifier.out_proj.bias += (0 if labels else 2.5) - logits.mean(dim=0)
        save_adapter(model, folder / task, task=task)
    return folder


@pytest.fixture(scope="module")
def one_by_one(repository, adapters):
    """File -> its rows, answered one at a time by the model of its task alone."""
    tokenizer, expected = load_tokenizer(repository / "toy/roberta"), {}
    for file, (task, *_) in FILES.items():
        labels = SPELLED[task]
        model = load_adapter(M.load_pretrained(repository / "toy/roberta", num_labels=len(labels or "1")), adapters / task)
        expected[file] = ["index\tprediction"]
        for index, texts in rows_of(file, 11):
            with torch.inference_mode():
                logits = model(torch.tensor([tokenizer.encode(*texts)]))[0]
            expected[file].append(f"{index}\t{labels[logits.argmax()] if labels else min(max(logits.item(), 0), 5)}")
    return expected


def submit(repository, adapters, data_dir, out, tasks=tuple(SPELLED), kind="roberta", options=()):
    chosen = [part for task in tasks for part in ("--adapter", f"my-{task}={adapters / task}")]
    return predict.main(["--model", str(repository / "toy" / kind), *chosen, "--submission", str(out), "--data-dir",
                         str(data_dir), "--precision", "fp32", "--device", "cpu", *options])


@pytest.mark.parametrize("batch_size", ["3", "32"])
def test_every_row_has_the_answer_of_its_task_alone(repository, adapters, one_by_one, tmp_path, monkeypatch, batch_size):
    write_tests(tmp_path)
    monkeypatch.setattr(submission, "WINDOW", 2)                             # more rows than are answered at a time
    assert submit(repository, adapters, tmp_path, tmp_path / "out", options=("--batch-size", batch_size)) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES.keys()
    for file, expected in one_by_one.items():
        content = (tmp_path / "out" / file).read_bytes().decode("utf-8")
        lines = content.removesuffix("\n").split("\n")
        if file == "STS-B.tsv":
            scores = [line.split("\t") for line in lines[1:]]
            assert lines[0] == expected[0] and [[index, float(score)] for index, score in scores] == [
                [line.split("\t")[0], pytest.approx(float(line.split("\t")[1]), abs=2e-4)] for line in expected[1:]]
            assert {"0.0000", "5.0000"} < {score for _, score in scores}
        else:
            assert lines == expected and content.endswith("\n")
            found, labels = {line.split("\t")[1] for line in lines[1:]}, set(SPELLED[FILES[file][0]])
            assert found == labels if file != "AX.tsv" and file != "MNLI-mm.tsv" else len(found) > 1


def test_the_forms_of_mrpc_have_the_same_answers(repository, adapters, one_by_one, tmp_path):
    """Of GLUE's download script, with an index, and Microsoft's, with a byte-order mark and none."""
    write_tests(tmp_path, files=["MRPC.tsv"])
    path = tmp_path / "glue/MRPC/test.tsv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    for lines in ([f"\ufeff{header}", *rows], ["index" + header.removeprefix("Quality"), *(
            f"{number}{row[1:]}" for number, row in enumerate(rows))]):
        path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
        submit(repository, adapters, tmp_path, tmp_path / "out", ["mrpc"])
        assert (tmp_path / "out/MRPC.tsv").read_text(encoding="utf-8").splitlines() == one_by_one["MRPC.tsv"]


def test_without_the_diagnostic_set_a_line_says_where_to_put_it(repository, adapters, tmp_path, capsys):
    write_tests(tmp_path, 3, ["MNLI-m.tsv", "MNLI-mm.tsv"])
    submit(repository, adapters, tmp_path, tmp_path / "out", ["mnli"])
    said = next(line for line in capsys.readouterr().err.splitlines() if "AX.tsv" in line)
    assert "is missing: AX.tsv is not written; put https://" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    write_tests(tmp_path, 3, ["AX.tsv"])                                     # following the advice
    assert said.startswith(str(tmp_path / "glue/diagnostic/diagnostic.tsv"))
    submit(repository, adapters, tmp_path, tmp_path / "out", ["mnli"])
    assert (tmp_path / "out/AX.tsv").is_file() and "AX.tsv" not in capsys.readouterr().err


def test_a_row_too_long_for_the_model_is_cut_as_in_training_and_counted(repository, adapters, tmp_path, capsys):
    (tmp_path / "glue/RTE").mkdir(parents=True)
    texts = [("It is red.", "It is blue."), ("The old ship " * 300, "It is red."), ("It is red.", "rain " * 600)]
    (tmp_path / "glue/RTE/test.tsv").write_text("index\tsentence1\tsentence2\n" + "".join(
        f"{index}\t{text}\t{pair}\n" for index, (text, pair) in enumerate(texts)))
    submit(repository, adapters, tmp_path, tmp_path / "out", ["rte"])
    assert "RTE/test.tsv: 2 of 3 rows are longer than 512 tokens, cut there" in capsys.readouterr().err
    model = load_adapter(M.load_pretrained(repository / "toy/roberta", num_labels=2), adapters / "rte")
    tokenizer, lines = load_tokenizer(repository / "toy/roberta"), (tmp_path / "out/RTE.tsv").read_text().splitlines()
    for line, (text, pair) in zip(lines[1:], texts, strict=True):
        label = model(torch.tensor([tokenizer.encode(text, pair, 512)]))[0].argmax()
        assert line.split("\t")[1] == SPELLED["rte"][label]


@pytest.mark.parametrize("line, message", [
    ("5\tonly one", "test.tsv, line 3: found 2 fields"), ("7\ta\tb", "test.tsv, line 3: found the index '7', expected a"),
    ("x\ta\tb", "found the index 'x'"), ("\ta\tb", "found the index ''"),
    ("index\tsentence\tlabel", "line 1: found the columns 'index, sentence, label', expected one 'sentence1'")])
def test_a_malformed_row_is_named_before_anything_is_answered(repository, adapters, tmp_path, monkeypatch, line, message):
    write_tests(tmp_path, 3, ["CoLA.tsv"])
    monkeypatch.setattr(predict.Predictor, "answer", None)
    lines = ["index\tsentence1\tsentence2", "7\ta\tb", line]
    (tmp_path / "glue/RTE").mkdir()
    (tmp_path / "glue/RTE/test.tsv").write_text("\n".join([line, "1\t2\t3"] if line.startswith("index") else lines) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        submit(repository, adapters, tmp_path, tmp_path / "out", ["cola", "rte"])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_cannot_be_submitted_is_refused(repository, adapters, tmp_path, capsys):
    write_tests(tmp_path, 3, ["CoLA.tsv"])
    with pytest.raises(FileNotFoundError, match="RTE/test.tsv is missing: put the file there"):
        (tmp_path / "glue/RTE").mkdir()
        submit(repository, adapters, tmp_path, tmp_path / "out", ["cola", "rte"])
    with pytest.raises(ValueError, match="adapters 'my-cola' and 'again' are both of cola: leave one out"):
        submit(repository, adapters, tmp_path, tmp_path / "out", ["cola"], options=("--adapter", f"again={adapters / 'cola'}"))
    for kind in ("roberta", "gpt2"):
        with pytest.raises(ValueError, match="no adapter for a task of GLUE"):
            submit(repository, adapters, tmp_path, tmp_path / "out", [], kind)
    assert not (tmp_path / "out").exists()
    for options, message in ((("--out", "x"), "--out and --strict are for a file of requests"),
                             (("requests.jsonl",), "not allowed with argument"), (("--interactive",), "not allowed with")):
        with pytest.raises(SystemExit):
            submit(repository, adapters, tmp_path, tmp_path / "out", ["cola"], options=options)
        assert message in capsys.readouterr().err


def test_the_real_test_sets_are_read_to_the_last_row(shared):
    """As GLUE publishes them: the counts of its paper, indices from 0, and texts that fit into roberta-base."""
    tokenizer, published = load_tokenizer(shared / "data/hub/roberta-base"), {
        "cola": 1063, "sst2": 1821, "mrpc": 1725, "stsb": 1379, "qnli": 5463, "rte": 3000, "wnli": 146}
    predictor = SimpleNamespace(reader=SimpleNamespace(tasks={task: task for task in published}), tokenizer=tokenizer,
                                bank=SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(longest_input=512))))
    for task, count in published.items():
        for path, file in submission.test_files(task, str(shared / "data")).items():
            indices, requests = submission.read_requests(predictor, task, path)
            assert file == f"{GLUE_TASKS[task].folder}.tsv" and indices == [str(row) for row in range(count)]
            assert len(requests) == count and tokenizer.truncated == 0


def test_a_real_test_set_has_a_prediction_for_every_row(repository, adapters, shared, tmp_path):
    submit(repository, adapters, shared / "data", tmp_path, ["cola"])
    lines = (tmp_path / "CoLA.tsv").read_text(encoding="utf-8").splitlines()
    source = (shared / "data/glue/CoLA/test.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [line.split("\t")[0] for line in source]
    assert {line.split("\t")[1] for line in lines[1:]} == {"0", "1"}


def test_the_hubs_form_of_a_test_set_has_the_same_answers(repository, adapters, one_by_one, tmp_path):
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    lines = [json.dumps({"sentence1": texts[0], "sentence2": texts[1], "label": -1, "idx": int(index)})
             for index, texts in rows_of("MRPC.tsv", 11)]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert submit(repository, adapters, tmp_path, tmp_path / "out", ["mrpc"]) == 0
    assert (tmp_path / "out" / "MRPC.tsv").read_text(encoding="utf-8").splitlines() == one_by_one["MRPC.tsv"]
