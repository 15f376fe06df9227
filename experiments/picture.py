"""The picture of the README: one adapted weight of the toy GPT-2, drawn to scale from its real numbers.

    python -m experiments.picture --out results/lora.svg

It trains the toy GPT-2 for a moment, as the tour does, and shows W, B, A and their product as maps of numbers.
Left out: all other layers; they look alike.
"""
import argparse
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from data import encode_e2e, read_e2e
from experiments import tour
from files import cli
from files.tokenizer import load_tokenizer
from lora import add_lora
from model import load_pretrained
from toy import world

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

STEPS = 60
# nine colours from one sign to the other: few, because the file is to be small
FROZEN, TRAINED = (matplotlib.colormaps[name].resampled(9) for name in ("PuOr", "RdBu"))
PER_NUMBER = 2.0 / 128                                                       # inches: every matrix has this scale
STYLE = {"font.family": "DejaVu Sans", "font.size": 10, "mathtext.fontset": "dejavusans", "svg.hashsalt": "picture"}


def trained_matrices(steps: int) -> dict[str, Tensor]:
    """W, A, B and (alpha / r) B A of the first block's queries, after some steps on the toy task."""
    world.write_tasks(tour.DATA)
    model, tokenizer = load_pretrained(tour.BASE), load_tokenizer(tour.BASE)
    add_lora(model, tour.RANK, tour.ALPHA, init="gaussian")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=tour.LR)
    samples = [encode_e2e(tokenizer, record, text) for record, text in read_e2e("train", tour.DATA)]
    tour.more_steps(model, optimizer, samples, steps)
    layer = tour.first_layer(model)
    return {"W": layer.weight_out_in()[layer.slices["q"]].detach(), "B": layer.lora_B["q"].detach(),
            "A": layer.lora_A["q"].detach(), "BA": tour.delta(layer)}


def draw(matrices: dict[str, Tensor], scale: float, path: Path) -> None:
    """Matrices side by side, W + scale B A, each number a dot of the same size, its colour the sign and the size."""
    titles = {"W": "W, frozen", "B": "B", "A": "A", "BA": "the whole update"}
    notes = {name: f"{matrix.shape[0]} × {matrix.shape[1]}" for name, matrix in matrices.items()}
    notes |= {"W": f"{notes['W']} = {matrices['W'].numel():,} numbers", "BA": f"{notes['BA']}, of rank {len(matrices['A'])}",
              "A": f"{notes['A']}; A and B are trained:\n{matrices['A'].numel() + matrices['B'].numel():,} numbers"}
    size = 8.7, 2.75                                                         # inches, as all lengths here
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=size)
        left, middle = 0.15, 1.4
        behind = {"W": (f"+ {scale:g} ·", 0.85), "B": ("·", 0.3), "A": (f"where\n{scale:g} B A =", 1.2), "BA": ("", 0.0)}
        for name, (sign, gap) in behind.items():
            matrix = matrices[name]
            height, width = (PER_NUMBER * size for size in matrix.shape)
            axes = figure.add_axes((left / size[0], (middle - height / 2) / size[1], width / size[0], height / size[1]))
            reach = 3 * matrix.std().item()
            axes.imshow(matrix.numpy(), cmap=FROZEN if name == "W" else TRAINED, vmin=-reach, vmax=reach, interpolation="none",
                        aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(titles[name], fontsize=11)
            axes.set_xlabel(notes[name])
            figure.text((left + width + gap / 2) / size[0], middle / size[1], sign, ha="center", va="center", fontsize=14)
            left += width + gap
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)
        pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.picture", description="Draw the README's picture.")
    parser.add_argument("--out", type=Path, default=Path("results/lora.svg"), help="a .svg or .png file")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(trained_matrices(options.steps), tour.ALPHA / tour.RANK, options.out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
