"""experiments/tour.py: what it says is so, and every line fits into 80 columns."""
import re
from xml.etree import ElementTree

import pytest
import torch

from data import encode_e2e, read_e2e
from experiments import tour
from files.tokenizer import load_tokenizer
from lora import lora_layers
from model import load_pretrained


@pytest.fixture()
def at_the_toy(repository, toy_data, monkeypatch):
    """The tour reads paths from the repository's root; its data come from a temporary folder."""
    monkeypatch.chdir(repository)
    monkeypatch.setattr(tour, "DATA", toy_data)
    monkeypatch.setattr(tour.world, "write_tasks", lambda folder: None)


def figure(text: str, name: str) -> list[str]:
    """The values of all lines that begin with this name."""
    return [match.strip() for match in re.findall(rf"^    {re.escape(name)}(?: +)(\S+(?: \S+)*)", text, re.MULTILINE)]


def test_the_tour_says_what_is_so(at_the_toy, repository, monkeypatch, capsys):
    monkeypatch.setattr(tour, "COUNTED", 4)
    assert tour.main(["--steps", "5"]) == 0
    text, errors = capsys.readouterr()
    assert not errors and max(map(len, text.splitlines())) <= 80
    assert [int(number) for number in re.findall(r"^(\d)\. ", text, re.MULTILINE)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert figure(text, "W_q") == ["128 x 128"] and figure(text, "its rank") == ["128"]
    assert figure(text, "A") == ["4 x 128"] and figure(text, "B") == ["128 x 4"]
    assert "of rank 0, because B is zero" in text and "zero: 0 of 512 are not 0" in text
    assert figure(text, "rank of the update") == ["4", "4"]
    assert figure(text, "logits moved by")[0] == "0" and float(figure(text, "logits moved by")[1]) < 1e-3
    assert figure(text, "frozen") == ["990,080"] and figure(text, "trained") == ["8,192"]
    assert figure(text, "gradient of W") == ["None"] and figure(text, "gradient of A") == ["0"]
    assert float(figure(text, "gradient of B")[0]) > 0
    assert float(figure(text, "loss now")[0]) < float(figure(text, "loss")[0])
    assert figure(text, "after unmerge()") == ["the same bits"]
    assert float(figure(text, "on a fresh base")[0]) < 1e-3
    page = (repository / "README.md").read_text(encoding="utf-8")
    shown = page.partition("    2. Two thin matrices")[2].partition("\n\n(")[0].splitlines()[1:]
    assert len(shown) > 12 and {line.removeprefix("    ") for line in shown} <= set(text.splitlines())
    assert re.search(r"values in the text +\d+ % -> \d+ % +of 4 records", text)


def test_the_second_half_runs_a_change_of_the_readers_own(at_the_toy, monkeypatch, capsys):
    monkeypatch.setattr(tour, "COUNTED", 2)
    assert tour.main(["--steps", "10", "--rank", "1", "--targets", "k", "fc", "--lr", "1e-9"]) == 0
    text, errors = capsys.readouterr()
    assert not errors and max(map(len, text.splitlines())) <= 80 and "9. Your change: rank, targets, lr" in text
    rows = {line[4:24].strip(): line[24:].split() for line in text.splitlines() if line.startswith("    ")}
    assert rows["trained"] == ["8,192", f"{4 * (2 * 128 + 5 * 128):,}"] and rows["alpha / r"] == ["8", "32"]
    assert float(rows["|update| / |W|"][0]) > 0.05 and rows["|update| / |W|"][1] == "0.000"
    assert float(rows["loss, last tenth"][0]) < float(rows["loss, last tenth"][1])
    assert all(advice[:30] in text for advice in tour.LOOK_AT.values())


def test_its_training_lowers_the_loss_and_leaves_the_base_alone(at_the_toy, toy_data, repository, capsys):
    model, tokenizer = load_pretrained(tour.BASE), load_tokenizer(tour.BASE)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = [encode_e2e(tokenizer, record, text) for record, text in read_e2e("train", toy_data)[:80]]
    tour.two_thin_matrices(model, [samples[0][0][:samples[0][1]]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=tour.LR)
    losses = tour.more_steps(model, optimizer, samples, steps=20)
    assert sum(losses[-4:]) < sum(losses[:4]) * 0.8
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items() if ".lora_" not in name)
    assert all(layer.lora_B["q"].count_nonzero() for layer in lora_layers(model).values())


def test_the_rank_is_that_of_the_product():
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(9, 3, generator=generator), torch.randn(3, 7, generator=generator)
    assert tour.rank_of(B @ A) == 3 and tour.rank_of(0 * B @ A) == 0 and tour.rank_of(B[:, :1] @ A[:1]) == 1


def test_the_picture_is_drawn_to_scale_and_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    from experiments import picture
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    matrices = {"W": torch.randn(40, 30, generator=generator), "B": B, "A": A, "BA": 2.5 * B @ A}
    for name in ("first.svg", "second.svg"):
        picture.draw(matrices, 2.5, tmp_path / name)
    drawn = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "second.svg").read_text(encoding="utf-8")
    images = [node for node in ElementTree.fromstring(drawn).iter() if node.tag.endswith("}image")]
    scales = [float(image.get(side)) / count for image, name in zip(images, ("W", "B", "A", "BA"), strict=True)
              for side, count in zip(("height", "width"), matrices[name].shape, strict=True)]
    assert scales == pytest.approx([scales[0]] * 8, rel=0.03)
