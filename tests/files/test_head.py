"""A base's head and a task's classes: mapped by name, dropped where it does not fit, against transformers' own logits."""
import json

import pytest
import torch

import data
import model as M
import train
from files.weights import read_safetensors, write_safetensors

transformers = pytest.importorskip("transformers")

MNLI = data.GLUE_TASKS["mnli"].labels
SIZES = dict(vocab_size=71, max_position_embeddings=20, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
             intermediate_size=40, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
IDS = torch.tensor([[0, 5, 9, 44, 2], [0, 70, 8, 17, 2]])


def save_base(folder, names, kind="RobertaForSequenceClassification"):
    """A random RoBERTa with a head for classes of these names; returns transformers' logits, (2, number of classes)."""
    torch.manual_seed(3)
    config = transformers.RobertaConfig(**SIZES, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    base = getattr(transformers, kind)(config).eval()
    for name, parameter in base.named_parameters():
        if name.startswith("classifier"):
            torch.nn.init.normal_(parameter)
    base.save_pretrained(folder)
    with torch.no_grad():
        return base(IDS).logits


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(("task", "names", "order"), [
    ("mnli", ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), (2, 1, 0)),
    ("mnli", ("neutral", "Contradiction", "entailment"), (2, 0, 1)),
    ("rte", ("NOT-ENTAILMENT", "entailment"), (1, 0)),
    ("wnli", ("Entailment", "not entailment"), (1, 0)),
    ("qnli", ("non_entailment", "ENTAILMENT"), (1, 0)),
    ("mrpc", ("Equivalent", "NotEquivalent"), (1, 0)),
    ("sst2", ("NEGATIVE", "POSITIVE"), (0, 1)),
])
def test_classes_are_mapped_by_name(tmp_path, capsys, task, names, order):
    """The order of two classes cannot show a permutation that is the wrong way round; that of three can."""
    theirs = save_base(tmp_path, names)
    with torch.no_grad():
        ours = M.load_pretrained(tmp_path, classes=data.GLUE_TASKS[task].labels)(IDS)
    assert torch.allclose(ours, theirs[:, list(order)], atol=1e-5) and not torch.allclose(ours, ours.flip(1), atol=1e-2)
    assert ("put in the order" in capsys.readouterr().err) == (order != tuple(range(len(order))))


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
def test_classes_without_names_keep_their_numbers_and_it_is_said(tmp_path, capsys, names):
    theirs = save_base(tmp_path, names)
    with torch.no_grad():
        assert torch.allclose(M.load_pretrained(tmp_path, classes=MNLI)(IDS), theirs, atol=1e-5)
    said = capsys.readouterr().err
    assert "config.json does not name its head's classes: they are taken for entailment, neutral, contradiction, in" in said
    edit_config(tmp_path, id2label={str(row): name for row, name in enumerate(("neutral", "contradiction", "entailment"))})
    with torch.no_grad():                                                    # names in one of the two tables are enough
        assert torch.allclose(M.load_pretrained(tmp_path, classes=MNLI)(IDS), theirs[:, [2, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"id2label": {"0": "joy", "1": "anger", "2": "fear"}, "label2id": None},
     "the head's classes are joy, anger, fear, this task's are entailment, neutral, contradiction: give them these"),
    ({"id2label": {"0": "neutral", "1": "NEUTRAL", "2": "entailment"}, "label2id": None}, "are neutral, NEUTRAL, entail"),
    ({"id2label": {"0": "neutral", "1": "LABEL_1", "2": "entailment"}, "label2id": None}, "names 2 of 3 classes"),
    ({"label2id": {"neutral": 0, "contradiction": 1, "entailment": 2}},
     "id2label says that class 0 is 'contradiction', label2id says 'neutral': make the two agree"),
    ({"id2label": ["neutral"]}, r"id2label is .*neutral.*, expected a table of the head's classes"),
    ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "id2label has a class '3', the head has 3 rows"),
])
def test_other_names_are_refused(tmp_path, changes, message):
    save_base(tmp_path, ("contradiction", "neutral", "entailment"))
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        M.load_pretrained(tmp_path, classes=MNLI)
    assert "config.json" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("kind", "names", "said"), [
    ("RobertaForSequenceClassification", MNLI, "its head has 3 labels, expected 2 (not_equivalent, equivalent), dropped"),
    ("RobertaForTokenClassification", ("O", "B", "I"), "its head is of another form (classifier.bias), expected 2"),
])
def test_a_head_that_does_not_fit_is_dropped_with_a_line(tmp_path, capsys, kind, names, said):
    save_base(tmp_path, names, kind)
    capsys.readouterr()
    model = M.load_pretrained(tmp_path, classes=data.GLUE_TASKS["mrpc"].labels, seed=4)
    line = capsys.readouterr().err
    assert said in line and "dropped: fresh head for 2 labels, seed 4" in line and line.count("\n") == 1
    assert model.classifier.out_proj.weight.shape == (2, 24) and model.classifier.dense.weight.std() < 0.03
    assert M.load_pretrained(tmp_path, num_labels=1, seed=4).classifier.out_proj.weight.shape == (1, 24)     # STS-B


def test_a_damaged_head_is_refused(tmp_path):
    save_base(tmp_path, MNLI)
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "model.safetensors").items()}
    del tensors["classifier.out_proj.weight"]
    write_safetensors(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors missing .first: 'classifier.out_proj.weight'"):
        M.load_pretrained(tmp_path, classes=data.GLUE_TASKS["mrpc"].labels)


def test_the_command_scores_a_base_in_the_tasks_order(repository, toy_data, tmp_path, capsys):
    """A base whose class 0 is CONTRADICTION, and always chosen, is said to answer contradiction."""
    folder = tmp_path / "base"
    model = M.load_pretrained(repository / "toy" / "roberta", num_labels=3)
    with torch.no_grad():
        model.classifier.out_proj.weight.zero_()
        model.classifier.out_proj.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    folder.mkdir()
    write_safetensors(dict(model.state_dict()), folder / "model.safetensors")
    for name in ("config.json", "vocab.json", "merges.txt"):
        (folder / name).write_bytes((repository / "toy" / "roberta" / name).read_bytes())
    edit_config(folder, id2label={"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"})
    train.main(["--model", str(folder), "--task", "mnli", "--data-dir", str(toy_data), "--eval-only", "--limit-eval", "8",
                "--out-dir", str(tmp_path), "--device", "cpu"])
    assert "put in the order entailment, neutral, contradiction" in capsys.readouterr().err
    rows = next(tmp_path.rglob("eval/the-base/predictions_dev_matched.tsv")).read_text().splitlines()[1:]
    assert {row.split("\t")[1] for row in rows} == {"contradiction"} and len(rows) == 8
