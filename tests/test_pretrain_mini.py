"""Small bases with a given vocabulary from GLUE's texts: what is read, how it is packed, and that the result loads."""
import pytest
import torch
from torch.nn import functional as F

from experiments import pretrain_mini
from experiments.pretrain_mini import LENGTH, corpus, main, packed_rows, sampled_cross_entropy, texts_of
from files.tokenizer import load_tokenizer
from model import load_pretrained
from toy.fresh import init_weights
from toy.pretrain import build, full_cross_entropy


def write_glue(data_dir):
    """A file with a header and two texts, and CoLA's, which has no header and one text."""
    for folder, lines in (("MRPC", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tA ship came in .\tIt came .",
                                    "0\t9\t10\tThe keeper slept .\tThe keeper ran ."]),
                          ("CoLA", ["gj04\t1\t\tThe light was lit .", "gj04\t0\t*\tLight the was lit ."])):
        (data_dir / "glue" / folder).mkdir(parents=True)
        (data_dir / "glue" / folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_texts_are_found_by_the_names_of_their_columns_and_nothing_else_is_read(tmp_path, capsys):
    write_glue(tmp_path)
    (tmp_path / "glue" / "MRPC" / "dev.tsv").write_text("not read", encoding="utf-8")
    assert sorted(corpus(tmp_path, [])) == [("A ship came in .", "It came ."), ("Light the was lit .",),
                                            ("The keeper slept .", "The keeper ran ."), ("The light was lit .",)]
    more = tmp_path / "part.tsv"
    more.write_text("index\tquestion\tsentence\tlabel\n0\tWho ?\tShe .\tentailment\n", encoding="utf-8")
    assert ("Who ?", "She .") in corpus(tmp_path, [f"qnli={more}"])


def test_a_file_of_another_task_a_short_row_and_a_missing_folder_are_said(tmp_path):
    write_glue(tmp_path)
    path = tmp_path / "glue" / "MRPC" / "train.tsv"
    with pytest.raises(ValueError, match="line 1: no column 'question'; expected a file of qnli"):
        list(texts_of(path, "qnli"))
    path.write_text(path.read_text(encoding="utf-8") + "1\t7\t8\tonly one\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 4: found 4 fields, expected 5"):
        list(texts_of(path, "mrpc"))
    with pytest.raises(ValueError, match="--more mrpc: expected TASK=FILE"):
        corpus(tmp_path, ["mrpc"])
    with pytest.raises(FileNotFoundError, match="no train.tsv of any GLUE task"):
        corpus(tmp_path / "nowhere", [])


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_packed_rows_hold_every_text_in_its_form_and_are_of_one_length(kind, repository):
    tokenizer = load_tokenizer(repository / "toy" / kind)
    rows = [(f"The ship {number} came in .", "It left again .") if number % 3 else (f"Keeper {number} slept .",)
            for number in range(60)]
    packed = packed_rows(list(rows), tokenizer, kind, seed=1)
    assert {len(row) for row in packed} == {LENGTH}
    if kind == "roberta":
        assert all(row[0] == tokenizer.bos_id and row[-1] == tokenizer.eos_id for row in packed)
        packed = [row[1:-1] for row in packed]
    stream = [token for row in packed for token in row]
    ends = [tokenizer.eos_id] * (2 if kind == "roberta" else 1)
    texts, start, at = [], 0, 0
    while at < len(stream):
        if stream[at:at + len(ends)] == ends:
            texts.append(tokenizer.decode(stream[start:at]))
            start = at = at + len(ends)
        else:
            at += 1
    single = [text for row in rows for text in row]
    assert len(texts) >= 90 and set(texts) <= set(single)                    # only the last row's rest is left out
    places = {text: index for index, text in enumerate(texts)}
    followers = [texts[index + 1] for text, index in places.items() if "ship" in text and index + 1 < len(texts)]
    assert set(followers) == {"It left again ."}                             # a pair stays together
    assert packed_rows(list(rows), tokenizer, kind, seed=2) != packed_rows(list(rows), tokenizer, kind, seed=1)


@pytest.mark.parametrize("units", [{}, {"amx_bf16": True}], ids=["fp32", "bf16"])
def test_the_command_makes_bases_that_load_with_the_vocabulary_given(tmp_path, repository, monkeypatch, capsys, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    write_glue(tmp_path)
    path = tmp_path / "glue" / "CoLA" / "train.tsv"
    path.write_text(path.read_text(encoding="utf-8") * 800, encoding="utf-8")
    for kind, settings in pretrain_mini.MODELS.items():
        monkeypatch.setitem(pretrain_mini.MODELS, kind, settings | {"tokenizer": kind, "width": 32, "layers": 2})
    arguments = ["--data-dir", str(tmp_path), "--tokenizers", str(repository / "toy"), "--max-steps", "2", "--threads", "1"]
    for out in ("one", "again"):
        monkeypatch.setattr("sys.argv", ["pretrain_mini", *arguments, "--out", str(tmp_path / out)])
        main()
    assert "mrpc: 2 rows" in capsys.readouterr().out
    for kind, labels in (("gpt2", None), ("roberta", 2)):
        model, again = (load_pretrained(tmp_path / out / kind, num_labels=labels) for out in ("one", "again"))
        assert load_tokenizer(tmp_path / "one" / kind).vocab_size == model.config.vocab_size
        logits = model(torch.tensor([[5, 6, 7]]))
        assert torch.equal(logits, again(torch.tensor([[5, 6, 7]])))
        assert logits.shape == ((1, 3, model.config.vocab_size) if kind == "gpt2" else (1, 2))


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_a_sample_of_the_vocabulary_estimates_the_sum_over_all_of_it(kind):
    """exp(loss) is that sum over exp(the target's logit): its mean over many samples is the full one, for common and rare
    targets; without the correction by log p it would be less than half."""
    model, _ = build(kind, vocab_size := 3000, width=24, layers=1, heads=2)
    init_weights(model, 0)
    torch.manual_seed(0)
    shares = torch.softmax(2 * torch.randn(vocab_size), dim=0)
    generator = torch.Generator().manual_seed(0)
    for target in (shares.argmax(), shares.argmin()):
        hidden, target = 10 * torch.randn(1, 24), target[None]
        with torch.no_grad():
            full = full_cross_entropy(model, hidden, target, generator).exp().item()
            sampled = torch.stack([sampled_cross_entropy(model, hidden, target, generator, shares) for _ in range(300)]).exp()
        assert sampled.std() > 0.01 * full
        assert sampled.mean().item() == pytest.approx(full, rel=0.01)


def test_a_sample_that_has_every_token_gives_the_full_loss_and_its_gradient(monkeypatch):
    monkeypatch.setattr(pretrain_mini, "FROM_VOCABULARY", 20_000)
    model, _ = build("gpt2", 60, width=24, layers=1, heads=2)
    init_weights(model, 0)
    hidden, targets = torch.randn(5, 24, requires_grad=True), torch.tensor([3, 59, 7, 7, 40])
    losses = [F.cross_entropy(model.logits(hidden), targets),
              sampled_cross_entropy(model, hidden, targets, torch.Generator().manual_seed(0), torch.full((60,), 1 / 60))]
    torch.testing.assert_close(losses[1], losses[0])
    of = [hidden, model.transformer.wte.weight]
    for sampled, full in zip(*(torch.autograd.grad(loss, of) for loss in losses[::-1]), strict=True):
        torch.testing.assert_close(sampled, full)


def test_too_little_text_to_hold_any_out_is_said(tmp_path, repository, monkeypatch):
    write_glue(tmp_path)
    monkeypatch.setitem(pretrain_mini.MODELS, "gpt2", pretrain_mini.MODELS["gpt2"] | {"tokenizer": "gpt2"})
    monkeypatch.setattr("sys.argv", ["pretrain_mini", "--data-dir", str(tmp_path), "--tokenizers", str(repository / "toy"),
                                     "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="fill 0 rows of 128 tokens, expected more than the 64"):
        main()
    assert not (tmp_path / "out").exists()
