"""Pretrain a small GPT-2 and a small RoBERTa with the real vocabularies on the English text of GLUE's training files.

    python -m experiments.pretrain_mini --data-dir DATA --tokenizers HUB --out runs/mini      (what `make pretrain-mini` runs)

For real tasks where the real weights are not at hand: 12 to 16 million parameters, most of them in the embedding of the
50k vocabulary, and two to four million tokens of text, where GPT-2 read some ten thousand million. What runs on them
shows the methods beside each other on real data, not the paper's numbers. Only texts are read, no label, and no
development or test file. The loop is toy/pretrain.py's.

Most of a step of GPT-2 would go into logits of 50k tokens, so the loss takes them of a sample of the vocabulary only
(sampled_cross_entropy): on two cores it reads 4 times as many tokens in an hour. What it comes to over the whole
vocabulary is measured at the end, on rows that were held out.

HUB holds gpt2/ and roberta-base/ with vocab.json and merges.txt, as on the Hugging Face hub. Left out: resuming.
"""
import argparse
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import GLUE_TASKS
from files import cli
from files.text import read_lines
from files.tokenizer import Tokenizer, load_tokenizer
from model import GPT2
from toy.pretrain import causal_loss, masked_loss, pretrain, start_model, steps_of

LENGTH = 128                                                                 # tokens of a packed row
HELD_OUT = 64                                                                # rows that are not trained on
FROM_TEXT, FROM_VOCABULARY = 4096, 2048                                      # tokens drawn for a sampled loss
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
        print(f"{task}: {len(found):,} rows", flush=True)
        rows += found
    return rows


def packed_rows(rows: list[tuple[str, ...]], tokenizer: Tokenizer, kind: str, seed: int) -> list[list[int]]:
    """All texts in a random order, the two of a pair one after the other, cut into rows of LENGTH tokens.

    GPT-2: an end token after every text. RoBERTa: <s> text </s></s> text </s></s> ... </s>, as its pairs stand.
    """
    random.Random(seed).shuffle(rows)
    between = [tokenizer.eos_id] * (2 if kind == "roberta" else 1)
    stream = [token for row in rows for text in row for token in (*tokenizer.pieces(text), *between)]
    start, end = ([tokenizer.bos_id], [tokenizer.eos_id]) if kind == "roberta" else ([], [])
    inner = LENGTH - len(start) - len(end)
    return [start + stream[at:at + inner] + end for at in range(0, len(stream) - inner + 1, inner)]


def token_shares(rows: list[list[int]], vocab_size: int) -> Tensor:
    """How often every token of the vocabulary (V,) occurs in the rows, as a share of all."""
    counts = torch.bincount(torch.tensor([token for row in rows for token in row]), minlength=vocab_size)
    return counts / counts.sum()


def sampled_cross_entropy(model: nn.Module, hidden_states: Tensor, targets: Tensor, generator: torch.Generator,
                          shares: Tensor) -> Tensor:
    """Mean cross-entropy of the targets (N,) in nats, its sum over the vocabulary estimated from a part of it.

    The part: FROM_TEXT tokens drawn as often as they occur (shares, of V) and FROM_VOCABULARY drawn evenly. One that is
    drawn with probability p stands for 1 / p, that is, log p is taken from its logit; the target itself is always there and
    counts once (importance sampling: Bengio & Senecal 2003, section 4; on a target's batch: Jean et al. 2015, section 3).
    """
    vocab_size = len(shares)
    drawn = torch.cat([torch.multinomial(shares, FROM_TEXT, replacement=True, generator=generator),
                       torch.randint(vocab_size, (FROM_VOCABULARY,), generator=generator)])
    tokens = torch.cat([targets, drawn]).unique()                            # (S,), in order
    expected_draws = FROM_TEXT * shares[tokens] + FROM_VOCABULARY / vocab_size
    log_probability = torch.log(-torch.expm1(-expected_draws))               # of at least one draw (Poisson)
    log_weight = torch.where(torch.isin(tokens, drawn), -log_probability, -torch.inf)
    if isinstance(model, GPT2):
        logits = F.linear(hidden_states, model.transformer.wte(tokens))      # (N, C) -> (N, S)
    else:
        embedding = model.encoder.roberta.embeddings.word_embeddings
        logits = F.linear(model.features(hidden_states), embedding(tokens), model.bias[tokens])
    column = torch.searchsorted(tokens, targets)                             # (N,)
    logits = logits.float()                                                  # bf16 under autocast (toy.pretrain)
    weighted = (logits + log_weight).scatter(1, column[:, None], logits.gather(1, column[:, None]))
    return F.cross_entropy(weighted, column)


@torch.no_grad()
def held_out_loss(model: nn.Module, loss_of, rows: list[list[int]], batch_size: int) -> float:
    """Mean loss over the whole vocabulary, in nats."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    losses = [loss_of(model, rows[at:at + batch_size], generator).item() for at in range(0, len(rows), batch_size)]
    return sum(losses) / len(losses)


def make_base(kind: str, args: argparse.Namespace) -> None:
    settings, directory = MODELS[kind], args.out / kind
    source = args.tokenizers / settings["tokenizer"]
    tokenizer = load_tokenizer(source)
    rows = packed_rows(corpus(args.data_dir, args.more), tokenizer, kind, args.seed)
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    if not rows:
        raise ValueError(f"{args.data_dir / 'glue'}: its texts fill {len(held_out)} rows of {LENGTH} tokens, expected more "
                         f"than the {HELD_OUT} that are held out")
    directory.mkdir(parents=True, exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        shutil.copyfile(source / file, directory / file)
    sizes = {name: settings[name] for name in ("width", "layers", "heads")}
    model, save = start_model(kind, tokenizer.vocab_size, directory, args.seed, **sizes)
    batch_size = settings["batch_size"]
    steps = min(args.max_steps, steps_of(rows, batch_size, args.epochs))
    print(f"{kind}: {sum(map(len, rows)):,} tokens, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{steps:,} steps of {batch_size * LENGTH:,} tokens", flush=True)
    loss = causal_loss if kind == "gpt2" else partial(masked_loss, closing_share=0.0)
    sampled = partial(sampled_cross_entropy, shares=token_shares(rows, tokenizer.vocab_size))
    pretrain(model, partial(loss, cross_entropy=sampled), rows, settings["lr"], batch_size, steps, args.seed, save)
    print(f"{kind}: {held_out_loss(model, loss, held_out, batch_size):.4f} nats per token on {len(held_out)} rows that were "
          "held out", flush=True)


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
