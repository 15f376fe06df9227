"""What an adapter's updates are made of (Hu et al. 2021, section 7, appendices G and H), for any adapter and base.

Similarity. V_1 and V_2 hold the right singular vectors of two adapters' A: directions of the layer's input, the strongest
first. How much of the top i directions of one lies in the top j of the other:

    phi(A_1, A_2, i, j) = || V_1[:, :i]^T V_2[:, :j] ||_F^2 / min(i, j)          0: none, 1: one contains the other

Amplification. U and V are the left and right singular vectors of Delta W = (alpha / r) B A. U^T W V^T is what the frozen
weight does with the directions of the update; against it stand W's own top directions and random ones (Table 7), and the
factor || Delta W ||_F / || U^T W V^T ||_F says how much the update amplifies them.

    python -m experiments.subspace similarity ADAPTER ADAPTER --model M --out FILE.json      also draws FILE.png
    python -m experiments.subspace amplification ADAPTER ... --model M [--alpha X] [--out FILE.json]

Adapters are read by adapters/: this project's, PEFT's, loralib's, the authors'. `similarity` needs of the model no
more than its config.json or a name of those below; `amplification` needs its weights. Left out: the left singular vectors
of B, which appendix G also names.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor

from adapters.adapter import Adapter
from adapters.saving import check_adapter, read_adapter
from experiments.counts import SIZES
from files import cli
from files.pretrained import read_config
from files.published import find_model
from files.text import write_json
from model import FAMILIES, GPT2Config, RobertaConfig, load_pretrained

NAMES = {"gpt2": "GPT-2 S", "gpt2-medium": "GPT-2 M", "gpt2-large": "GPT-2 L", "roberta-base": "RoBERTa base",
         "roberta-large": "RoBERTa large"}                                   # without a folder: sizes alone


# ---------------------------------------------------------------- the mathematics

def directions(A: Tensor) -> Tensor:
    """The right singular vectors of A (r, d_in) as columns (d_in, r), by falling singular value."""
    return torch.linalg.svd(A.double(), full_matrices=False).Vh.T            # (r, d_in) -> (r, d_in) -> (d_in, r)


def similarity(A_1: Tensor, A_2: Tensor) -> Tensor:
    """phi(A_1, A_2, i, j) for all i and j, (r_1, r_2) -> entry [i - 1, j - 1], from 0 to 1.

    Equation 4 of the paper. Symmetric: similarity(A_2, A_1) is the transpose.
    """
    squares = (directions(A_1).T @ directions(A_2)) ** 2                     # (r_1, d) x (d, r_2) -> (r_1, r_2)
    sums = squares.cumsum(dim=0).cumsum(dim=1)                               # over the first i and the first j
    i, j = torch.arange(1, sums.shape[0] + 1)[:, None], torch.arange(1, sums.shape[1] + 1)
    return sums / torch.minimum(i, j)


def amplification(A: Tensor, B: Tensor, scale: float, W: Tensor, seed: int = 0) -> dict[str, float]:
    """The norms of Table 7 and the factor, for one weight W (d_out, d_in) and its update scale * B A.

    "update", "weight", "random": || U^T W V^T ||_F with the top r directions of Delta W, of W, and of random matrices.
    "factor" is infinite where W does nothing with the update's directions.
    """
    rank = A.shape[0]
    A, B, W = A.double(), B.double(), W.double()
    Q_out, R_out = torch.linalg.qr(B)                                        # (d_out, r), (r, r)
    Q_in, R_in = torch.linalg.qr(A.T)                                        # (d_in, r), (r, r)
    U, S, Vh = torch.linalg.svd(scale * R_out @ R_in.T)                      # the SVD of Delta W without building it
    within = torch.linalg.norm((Q_out @ U).T @ W @ (Q_in @ Vh.T))
    generator = torch.Generator().manual_seed(seed)
    out, into = (torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64)).Q for d in W.shape)
    norm = torch.linalg.norm(S)
    return {"update": within.item(), "weight": torch.linalg.norm(torch.linalg.svdvals(W)[:rank]).item(),
            "random": torch.linalg.norm(out.T @ W @ into).item(), "norm_of_update": norm.item(),
            "norm_of_weight": torch.linalg.norm(W).item(), "factor": (norm / within).item()}


# ---------------------------------------------------------------- adapters and bases

def config_of(name: str) -> GPT2Config | RobertaConfig:
    """The configuration of a model folder, or of a name of the paper's models without one."""
    directory = find_model(name)
    if directory is not None:
        return read_config(directory, FAMILIES)[1]
    if name in NAMES:
        return SIZES[NAMES[name]]
    raise FileNotFoundError(f"no model '{name}': expected a folder with config.json, or one of {' '.join(NAMES)}")


def each_update(adapter: Adapter) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """(block, target) -> A, B."""
    found = {}
    for layer, updates in adapter.updates.items():
        block = int(next(part for part in layer.split(".") if part.isdigit()))
        found |= {(block, target): matrices for target, matrices in updates.items()}
    return dict(sorted(found.items()))


def compare(first: Adapter, second: Adapter, layer: int | None = None) -> dict:
    """phi between two adapters, per target, in block `layer` (default: the middle one, as in the paper), the top
    directions' phi(1, 1) in every block, and both for random matrices of the same shapes.

    Raises ValueError where they have no target in common or the block does not exist.
    """
    one, two = each_update(first), each_update(second)
    targets = [target for target in first.targets if target in second.targets]
    blocks = sorted({block for block, _ in one})
    layer = len(blocks) // 2 if layer is None else layer
    if not targets or layer not in blocks:
        raise ValueError(f"{first.source} and {second.source}: " + (
            f"no block {layer}; expected 0 to {blocks[-1]}" if targets else "have no target in common"))
    generator = torch.Generator().manual_seed(0)
    found = {"adapters": [first.source, second.source], "ranks": [first.rank, second.rank], "layer": layer, "phi": {},
             "top_direction": {}, "random": None}
    for target in targets:
        found["phi"][target] = rounded(similarity(one[layer, target][0], two[layer, target][0]))
        found["top_direction"][target] = [similarity(one[block, target][0], two[block, target][0])[0, 0].item()
                                          for block in blocks]
    width = one[layer, targets[0]][0].shape[1]
    found["random"] = rounded(similarity(*(torch.randn(rank, width, generator=generator) for rank in found["ranks"])))
    return found


def rounded(phi: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in phi.tolist()]


def amplify(adapter: Adapter, model, alpha: float | None = None) -> dict[str, list[dict[str, float]]]:
    """Target -> the norms of `amplification` in every block. Raises ValueError for an adapter of another base, or one
    without alpha where none is given."""
    if adapter.base_fingerprint is not None:
        check_adapter(model, adapter, None)
    alpha = adapter.alpha if alpha is None else alpha
    if alpha is None:
        raise ValueError(f"{adapter.source}: the file holds no alpha, and Delta W is (alpha / r) B A: give --alpha")
    found = {target: [] for target in adapter.targets}
    for (block, target), (A, B) in each_update(adapter).items():
        found[target].append(amplification(A, B, alpha / adapter.rank, base_weight(model, block, target)))
    return found


def base_weight(model, block: int, target: str) -> Tensor:
    """The frozen weight (d_out, d_in) that an update belongs to: of GPT-2's c_attn only its third."""
    where = model.config.targets[target]
    layer = model.get_submodule(f"{model.config.blocks}.{block}.{where.path}")
    weight = layer.weight.T if getattr(layer, "stored_transposed", False) else layer.weight
    return weight.detach()[where.rows]


# ---------------------------------------------------------------- output

def similarity_lines(found: dict) -> list[str]:
    lines = [f"phi between {found['adapters'][0]} (r = {found['ranks'][0]}) and {found['adapters'][1]} "
             f"(r = {found['ranks'][1]})", f"block {found['layer']}: phi(1, 1), phi(2, 2), phi(4, 4), ... on the diagonal"]
    for name, phi in (found["phi"] | {"random": found["random"]}).items():
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= min(len(phi), len(phi[0]))]
        lines.append(f"  {name:7s}" + " ".join(f"{phi[size - 1][size - 1]:.3f}" for size in sizes))
    for name, values in found["top_direction"].items():
        lines.append(f"phi(1, 1) of {name} in every block: " + " ".join(f"{value:.3f}" for value in values))
    return lines


def amplification_table(found: dict[str, dict[str, list[dict[str, float]]]], layer: int) -> list[str]:
    """In the shape of Table 7, for one block: source -> target -> norms of every block."""
    lines = ["| adapter | target | ‖UᵀWVᵀ‖, ΔW's directions | W's own | random | ‖ΔW‖ | ‖W‖ | factor |", "|" + "---|" * 8]
    for source, targets in found.items():
        for target, blocks in targets.items():
            norms = [blocks[layer][name] for name in ("update", "weight", "random", "norm_of_update", "norm_of_weight",
                                                      "factor")]
            lines.append(f"| {source} | {target} | " + " | ".join(f"{norm:.2f}" for norm in norms) + " |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.subspace", description="Similarity of adapters' subspaces, and how much "
                                     "an update amplifies directions of its weight.")
    parser.add_argument("what", choices=["similarity", "amplification"])
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="a folder or a file; similarity takes two")
    parser.add_argument("--model", required=True, help=f"a model folder, or one of {' '.join(NAMES)}")
    parser.add_argument("--alpha", type=float, help="of a file that holds none")
    parser.add_argument("--layer", type=int, help="the block, from 0 (default: the middle one)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the numbers, and the heat maps beside them")
    options = parser.parse_args(arguments)
    config = config_of(options.model)
    adapters = [read_adapter(path, config) for path in options.adapters]
    if options.what == "similarity":
        if len(adapters) != 2:
            raise ValueError(f"similarity compares two adapters, found {len(adapters)}")
        found = compare(*adapters, options.layer)
        print("\n".join(similarity_lines(found)))
    else:
        if find_model(options.model) is None:
            raise FileNotFoundError(f"'{options.model}' is a name without weights here, and amplification needs W: give a "
                                    "model folder, or fetch it with `python data.py " + options.model + "`")
        labels = {adapter.num_labels for adapter in adapters} - {None}
        model = load_pretrained(options.model, num_labels=labels.pop() if labels else None)
        found = {adapter.source: amplify(adapter, model, options.alpha) for adapter in adapters}
        blocks = len(next(iter(found[adapters[0].source].values())))
        print("\n".join(amplification_table(found, blocks // 2 if options.layer is None else options.layer)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(found, options.out)
        if options.what == "similarity":
            from experiments.plots import heat_maps  # matplotlib: only where a picture is asked for
            heat_maps([found], options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    cli.run(main)
