"""Pretrain a small GPT-2 and a small RoBERTa with the real vocabularies on the English text of GLUE's training files.

    python -m experiments.pretrain_mini --data-dir DATA --tokenizers HUB --out runs/mini      (what `make pretrain-mini` runs)

For real tasks where the real weights are not at hand: 12 to 16 million parameters, most of them in the embedding of the
50k vocabulary, and two to four million tokens of text, where GPT-2 read some ten thousand million. What runs on them
shows the methods beside each other on real data, not the paper's numbers. Only texts are read, no label, and no
development or test file. The loop is toy/pretrain.py's.

HUB holds gpt2/ and roberta-base/ with vocab.json and merges.txt, as on the Hugging Face hub. Left out: resuming.
"""
import argparse
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import cli
from data import GLUE_TASKS
from tokenizer import Tokenizer, load_tokenizer, read_lines
from toy.pretrain import causal_loss, masked_loss, pretrain, start_model, steps_of

LENGTH = 128                                                                 # tokens of a packed row
MODELS = {                                                                   # folder of the tokenizer, sizes, recipe
    "gpt2": {"tokenizer": "gpt2", "width": 192, "layers": 4, "heads": 4, "lr": 2e-3, "batch_size": 8},
    "roberta": {"tokenizer": "roberta-base", "width": 256, "layers": 4, "heads": 4, "lr": 1e-3, "batch_size": 16},
}


def texts_of(path: Path, task: str) -> Iterator[tuple[str, ...]]:
    """The one or two texts of every row of a GLUE file, by the names of their columns."""
    glue, lines = GLUE_TASKS[task], read_lines(path)
    columns = list(glue.bare_columns) or next(lines)[1].split("\t")
    missing = [name for name in glue.texts if name not in columns]
    if missing:
        raise ValueError(f"{path}, line 1: no column '{missing[0]}'; expected a file of {task}")
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: found {len(cells)} fields, expected {len(columns)} between tabs")
        yield tuple(cells[columns.index(name)] for name in glue.texts)


def corpus(data_dir: Path, more: list[str]) -> list[tuple[str, ...]]:
    """The rows of every training file of GLUE below data_dir, and of the files in `more` (TASK=FILE)."""
    paths = {task: data_dir / "glue" / glue.folder / "train.tsv" for task, glue in GLUE_TASKS.items()}
    files = [(task, path) for task, path in paths.items() if path.exists()]
    for given in more:
        task, _, path = given.partition("=")
        if task not in GLUE_TASKS or not path:
            raise ValueError(f"--more {given}: expected TASK=FILE with a task of {' '.join(GLUE_TASKS)}")
        files.append((task, Path(path)))
    if not files:
        raise FileNotFoundError(f"{data_dir / 'glue'}: no train.tsv of any GLUE task; expected folders such as MRPC/")
    rows = []
    for task, path in files:
        found = list(texts_of(path, task))
        print(f"{path}: {len(found):,} rows", flush=True)
        rows += found
    return rows


def packed_rows(rows: list[tuple[str, ...]], tokenizer: Tokenizer, kind: str, seed: int) -> list[list[int]]:
    """All texts in a random order, the two of a pair one after the other, cut into rows of LENGTH tokens.

    GPT-2: an end token behind every text. RoBERTa: <s> text </s></s> text </s></s> ... </s>, as its pairs stand.
    """
    random.Random(seed).shuffle(rows)
    between = [tokenizer.eos_id] * (2 if kind == "roberta" else 1)
    stream = [token for row in rows for text in row for token in (*tokenizer.pieces(text), *between)]
    start, end = ([tokenizer.bos_id], [tokenizer.eos_id]) if kind == "roberta" else ([], [])
    inner = LENGTH - len(start) - len(end)
    return [start + stream[at:at + inner] + end for at in range(0, len(stream) - inner + 1, inner)]


def make_base(kind: str, args: argparse.Namespace) -> None:
    settings, directory = MODELS[kind], args.out / kind
    source = args.tokenizers / settings["tokenizer"]
    tokenizer = load_tokenizer(source)
    rows = packed_rows(corpus(args.data_dir, args.more), tokenizer, kind, args.seed)
    directory.mkdir(parents=True, exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copyfile(source / file, directory / file)
    sizes = {name: settings[name] for name in ("width", "layers", "heads")}
    model, save = start_model(kind, tokenizer.vocab_size, directory, args.seed, **sizes)
    steps = min(args.max_steps, steps_of(rows, settings["batch_size"], args.epochs))
    print(f"{kind}: {sum(map(len, rows)):,} tokens, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{steps:,} steps of {settings['batch_size'] * LENGTH:,} tokens", flush=True)
    loss = causal_loss if kind == "gpt2" else partial(masked_loss, closing_share=0.0)
    pretrain(model, loss, rows, settings["lr"], settings["batch_size"], steps, args.seed, save)


def main() -> None:
    parser = argparse.ArgumentParser(prog="experiments.pretrain_mini", description="Pretrain a small GPT-2 and RoBERTa on "
                                     "the text of GLUE's training files.")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with glue/MRPC/train.tsv and so on")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder with gpt2/ and roberta-base/")
    parser.add_argument("--more", nargs="+", default=[], metavar="TASK=FILE", help="further files in a GLUE task's form")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=10**9, help="end after this many updates")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    for kind in MODELS if args.model == "both" else (args.model,):
        make_base(kind, args)


if __name__ == "__main__":
    cli.run(main)
