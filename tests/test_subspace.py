"""experiments/subspace.py on matrices whose answers are known, and on adapters of every origin."""
import json
import math

import numpy as np
import pytest
import torch

from adapters import save_adapter
from adapters.saving import read_adapter
from experiments import subspace
from files import cli
from lora import add_lora, lora_layers
from model import load_pretrained


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


# ---------------------------------------------------------------- similarity

def test_phi_of_known_directions():
    """Input directions e0 > e1 against cos e1 + sin e2 > e0: the top ones are orthogonal, and one lies in the other's two."""
    angle = 0.4
    A_1 = torch.zeros(2, 5)
    A_1[0, 0], A_1[1, 1] = 3.0, 2.0
    A_2 = torch.zeros(3, 5)
    A_2[0, 1], A_2[0, 2] = 5 * math.cos(angle), 5 * math.sin(angle)
    A_2[1, 0], A_2[2, 4] = 4.0, 1.0
    c = math.cos(angle) ** 2
    expected = [[0, 1, 1], [c, (1 + c) / 2, (1 + c) / 2]]
    torch.testing.assert_close(subspace.similarity(A_1, A_2), torch.tensor(expected, dtype=torch.float64))


def test_phi_is_the_equation_for_every_i_and_j():
    rng = np.random.default_rng(0)
    A_1, A_2 = rng.normal(size=(3, 11)), rng.normal(size=(6, 11))
    V_1, V_2 = np.linalg.svd(A_1)[2].T, np.linalg.svd(A_2)[2].T
    expected = [[np.linalg.norm(V_1[:, :i].T @ V_2[:, :j]) ** 2 / min(i, j) for j in range(1, 7)] for i in range(1, 4)]
    found = subspace.similarity(torch.tensor(A_1), torch.tensor(A_2))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(subspace.similarity(torch.tensor(A_2), torch.tensor(A_1)).numpy().T, expected, atol=1e-12)
    assert found.min() >= 0 and found.max() <= 1 + 1e-12


def test_phi_sees_only_input_directions():
    """The same directions in other rows of A, and scaled: all ones. Orthogonal ones: zeros."""
    A = torch.diag(torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64)) @ orthonormal(9, 6, 1)[:, :3].T
    same = subspace.similarity(A, -0.1 * orthonormal(3, 3, 2) @ A)
    assert torch.allclose(same.diagonal(), torch.ones(3, dtype=torch.float64))
    other = orthonormal(9, 6, 1)[:, 3:].T
    assert subspace.similarity(A, other).abs().max() < 1e-20


# ---------------------------------------------------------------- amplification

def test_amplification_of_known_directions():
    """Delta W lies along W's singular directions 4 and 2, with W's own values 2 and 7 there."""
    U, V, S = orthonormal(13, 6, 3), orthonormal(8, 6, 4), torch.tensor([9.0, 8.0, 7.0, 5.0, 2.0, 1.0], dtype=torch.float64)
    W = U @ torch.diag(S) @ V.T
    B, A = U[:, [4, 2]] * torch.tensor([3.0, 1.0], dtype=torch.float64), V[:, [4, 2]].T
    mix = torch.tensor([[2.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    norms = subspace.amplification(torch.linalg.inv(mix) @ A, B @ mix, 0.5, W)               # the same product
    assert norms["update"] == pytest.approx(math.hypot(2, 7)) and norms["weight"] == pytest.approx(math.hypot(9, 8))
    assert norms["norm_of_update"] == pytest.approx(0.5 * math.hypot(3, 1))
    assert norms["norm_of_weight"] == pytest.approx(torch.linalg.norm(S).item())
    assert norms["factor"] == pytest.approx(0.5 * math.hypot(3, 1) / math.hypot(2, 7))
    assert 0 < norms["random"] < norms["weight"]


def test_random_directions_see_their_share_of_the_weight():
    """On average || W ||_F sqrt(r^2 / (d_out d_in)) for any W."""
    W, A, B = torch.randn(40, 30, generator=torch.Generator().manual_seed(5)), torch.eye(3, 30), torch.eye(40, 3)
    squares = [subspace.amplification(A, B, 1.0, W, seed)["random"] ** 2 for seed in range(200)]
    expected = torch.linalg.norm(W).item() ** 2 * 9 / (40 * 30)
    assert np.mean(squares) == pytest.approx(expected, rel=4 * np.std(squares) / expected / 200 ** 0.5)


# ---------------------------------------------------------------- adapters and bases

@pytest.fixture
def two_adapters(tmp_path, repository):
    """Adapters of rank 3 and 5 on the toy GPT-2, B at random; the models they came from."""
    models = []
    for rank in (3, 5):
        model = load_pretrained(repository / "toy" / "gpt2")
        add_lora(model, rank, alpha=12, targets=("q", "k", "v", "fc"), seed=rank)
        for layer in lora_layers(model).values():
            for target in layer.targets:
                torch.nn.init.normal_(layer.lora_B[target], generator=torch.Generator().manual_seed(rank))
        save_adapter(model, tmp_path / f"r{rank}")
        models.append(model)
    return models


def test_every_target_meets_its_own_slice_of_the_base(two_adapters, tmp_path, repository):
    model = load_pretrained(repository / "toy" / "gpt2")
    found = subspace.amplify(read_adapter(tmp_path / "r3", model.config), model)
    d = model.config.n_embd
    for index, target in enumerate("qkv"):
        layer = lora_layers(two_adapters[0])["transformer.h.2.attn.c_attn"]
        W = model.transformer.h[2].attn.c_attn.weight.T[index * d:(index + 1) * d].double()
        U, _, Vh = torch.linalg.svd(4 * layer.lora_B[target].double() @ layer.lora_A[target].double())
        expected = torch.linalg.norm(U[:, :3].T @ W @ Vh[:3].T).item()
        assert found[target][2]["update"] == pytest.approx(expected, rel=1e-5)
    assert [len(found[target]) for target in ("q", "k", "v", "fc")] == [model.config.n_layer] * 4


def test_the_commands(two_adapters, tmp_path, repository, capsys, monkeypatch):
    monkeypatch.chdir(repository)
    paths = [str(tmp_path / name) for name in ("r3", "r5")]
    out = tmp_path / "kept" / "phi.json"
    assert subspace.main(["similarity", *paths, "--model", "toy/gpt2", "--layer", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    layers = [lora_layers(model)["transformer.h.1.mlp.c_fc"].lora_A["fc"] for model in two_adapters]
    np.testing.assert_allclose(found["phi"]["fc"], subspace.similarity(*layers).detach().numpy(), atol=1e-6)
    assert found["layer"] == 1 and len(found["top_direction"]["q"]) == 4
    first = out.with_suffix(".png").read_bytes()
    assert subspace.main(["similarity", *paths, "--model", "toy/gpt2", "--layer", "1", "--out", str(out)]) == 0
    assert out.with_suffix(".png").read_bytes() == first
    capsys.readouterr()
    assert subspace.main(["amplification", *paths, "--model", "toy/gpt2"]) == 0
    assert capsys.readouterr().out.count("| fc |") == 2


def test_what_cannot_be_analysed_is_refused_in_a_line(two_adapters, tmp_path, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    adapter = str(tmp_path / "r3")

    def refusal(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.run(lambda: subspace.main(list(arguments)))
        assert exit.value.code == 1
        return capsys.readouterr().err

    monkeypatch.setenv("LORA_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    assert "expected a folder with config.json" in refusal("similarity", adapter, adapter, "--model", "gpt5")
    assert "found 1" in refusal("similarity", adapter, "--model", "toy/gpt2")
    assert "no block 4; expected 0 to 3" in refusal("similarity", adapter, adapter, "--model", "toy/gpt2", "--layer", "4")
    assert "no linear layer" in refusal("amplification", adapter, "--model", "toy/roberta")
    other = load_pretrained(repository / "toy" / "gpt2")
    other.transformer.wte.weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="was trained on base"):
        subspace.amplify(read_adapter(adapter, other.config), other)


def test_released_adapters(shared, monkeypatch, capsys, tmp_path):
    """A and B alone suffice for phi; without the base's weights, amplification says that it needs them."""
    monkeypatch.setenv("LORA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    names = [str(shared / "data" / "checkpoints" / f"roberta_base_lora_{task}.bin") for task in ("mnli", "mrpc")]
    out = tmp_path / "phi.json"
    assert subspace.main(["similarity", *names, "--model", "roberta-base", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["ranks"] == [8, 8] and found["phi"].keys() == {"q", "v"} and len(found["top_direction"]["v"]) == 12
    assert all(0 <= value <= 1 for row in found["phi"]["q"] for value in row)
    medium = str(shared / "data" / "checkpoints" / "gpt2_md_lora_e2e.pt")
    assert subspace.main(["similarity", medium, medium, "--model", "gpt2-medium"]) == 0
    assert "  v      1.000 1.000 1.000" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="amplification needs W"):
        subspace.main(["amplification", medium, "--model", "gpt2-medium"])
