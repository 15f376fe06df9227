"""Pretrain the two toy base models on plain text of the toy world, and write them in the Hugging Face layout.

GPT-2 learns to predict the next token (Radford et al. 2019), RoBERTa the masked ones, drawn anew every epoch (Liu et
al. 2019). Both read only `world.pretraining_documents`, neither ever sees a task. The byte-level BPE is learned from the
same text. Left out: evaluation on the tasks (train.py), resuming, more than one device.

    python toy/pretrain.py                                    both models, into toy/gpt2 and toy/roberta
    python toy/pretrain.py --model gpt2 --genres prose --out runs/poor     a base that never learned to copy
    python toy/pretrain.py --max-steps 300 --out runs/bases/300            bases that were pretrained for less
"""
import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from files import cli
from files.weights import write_safetensors
from model import GPT2, GPT2Config, Padded, RobertaClassifier, RobertaConfig
from speed.attention import attention
from toy.fresh import init_weights
from toy.world import GENRES, pretraining_documents
from training.precision import multiplies_bf16_fast

VOCABULARY = 1024       # tokens that text is made of; the special ones come on top
CLOSING, CLOSING_SHARE = 9, 0.3
PACKED = 5              # documents in a packed row; one row in forty is packed, to reach the later positions


@dataclass(frozen=True)
class Recipe:
    """What differs between the two models; genres are drawn in turn, so a genre named twice has two shares."""

    genres: tuple[str, ...]
    learning_rate: float
    epochs: int


RECIPES = {
    "gpt2": Recipe(("lists", "lists", "lists", "prose", "witnesses"), 2e-3, 3),
    "roberta": Recipe(("lists", "prose", "retellings", "witnesses", "witnesses", "witnesses"), 1e-3, 3),
}


class MaskedLM(nn.Module):
    """RoBERTa with the head of masked language modelling; only the encoder is kept after pretraining."""

    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.config = config
        self.encoder = RobertaClassifier(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def features(self, hidden_states: Tensor) -> Tensor:
        return self.layer_norm(F.gelu(self.dense(hidden_states)))            # (..., C)

    def logits(self, hidden_states: Tensor) -> Tensor:
        embedding = self.encoder.roberta.embeddings.word_embeddings.weight
        return F.linear(self.features(hidden_states), embedding, self.bias)      # (..., C) -> (..., V)


# ---------------------------------------------------------------- tokenizer

def learn_bpe(documents: list[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens with GPT-2's way of splitting text into words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, kind: str, directory: Path) -> dict[str, int]:
    """vocab.json and merges.txt as GPT-2 or as RoBERTa numbers its tokens; returns the vocabulary, token -> id."""
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens = [*tokens, "<|endoftext|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    lines = ["#version: 0.2", *(" ".join(pair) if isinstance(pair, list) else pair for pair in merges)]
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8", newline="\n")
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return vocabulary


def encode_rows(tokenizer: Tokenizer, vocabulary: dict[str, int], documents: list[str], kind: str) -> list[list[int]]:
    """Token ids of rows to train on: mostly a document each, some packed from several, as in real pretraining."""
    shift = 4 if kind == "roberta" else 0                                    # RoBERTa's special tokens come first
    encoded = [[index + shift for index in encoding.ids] for encoding in tokenizer.encode_batch(documents)]
    start, end, between = ([0], [2], [2, 2]) if kind == "roberta" else ([], [vocabulary["<|endoftext|>"]], None)
    rows, index = [], 0
    while index < len(encoded):
        group = encoded[index:index + (PACKED if len(rows) % 40 == 39 else 1)]
        index += len(group)
        joined = group[0]
        for ids in group[1:]:
            joined = joined + (between or end) + ids
        rows.append((start + joined)[:511] + end)                            # the longest row that both models take
    return rows


# ---------------------------------------------------------------- training

def rounded(length: int) -> int:
    """The next multiple of eight: few different shapes, so that the kernels prepared for one are used again."""
    return -(-length // 8) * 8


def make_batches(rows: list[list[int]], batch_size: int, rng: random.Random) -> list[list[list[int]]]:
    """Batches of about `batch_size` documents' tokens; rows of similar length share one, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), rng.random()))
    budget = batch_size * sum(map(len, rows)) // len(rows)                   # tokens
    batches, batch = [], []
    for index in order:
        if batch and (len(batch) + 1) * rounded(len(rows[index])) > budget:
            batches.append(batch)
            batch = []
        batch.append(rows[index])
    batches.append(batch)
    rng.shuffle(batches)
    return batches


def pad(batch: list[list[int]], value: int) -> Tensor:
    width = rounded(max(map(len, batch)))
    return torch.tensor([row + [value] * (width - len(row)) for row in batch])       # (B, T)


def full_cross_entropy(model: nn.Module, hidden_states: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over the targets (N,) in nats, from logits of the whole vocabulary."""
    return F.cross_entropy(model.logits(hidden_states), targets)


def causal_loss(model: GPT2, batch: list[list[int]], generator: torch.Generator, cross_entropy=full_cross_entropy) -> Tensor:
    """Mean cross-entropy of every next token, in nats."""
    ids = pad(batch, -100)
    targets = ids[:, 1:]
    seen = ids[:, :-1].clamp(min=0)                                          # causal: what pads is seen by nobody
    hidden = model.hidden_states(seen, rows_of(seen, causal=True))           # (B, T - 1, C)
    return cross_entropy(model, hidden[targets >= 0], targets[targets >= 0], generator)


def masked_loss(model: MaskedLM, batch: list[list[int]], generator: torch.Generator, share: float = 0.2,
                closing_share: float = CLOSING_SHARE, cross_entropy=full_cross_entropy) -> Tensor:
    """Mean cross-entropy in nats of a share of the tokens, 80 % of them hidden, 10 % replaced, 10 % left as they are.

    In closing_share of the rows the last CLOSING tokens are chosen together: a closing sentence says what the text above
    it comes to, and with its other words in sight it could be guessed from them.
    """
    vocab_size, pad_id = model.config.vocab_size, model.config.pad_token_id
    ids = pad(batch, pad_id)
    chosen = torch.rand(ids.shape, generator=generator) < share
    to_the_end = (ids != pad_id).sum(dim=1, keepdim=True) - 1 - torch.arange(ids.shape[1])           # (B, T), 0 at </s>
    closing = (to_the_end <= CLOSING) & (torch.rand(len(ids), 1, generator=generator) < closing_share)
    chosen = (chosen | closing) & (ids > 3)                                  # never a special token
    dice = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(4, vocab_size - 1, ids.shape, generator=generator)
    seen = torch.where(chosen & (dice < 0.8), vocab_size - 1, ids)           # <mask> is the last token
    seen = torch.where(chosen & (dice >= 0.9), random_ids, seen)
    real = ids != pad_id
    hidden = model.encoder.hidden_states(seen, rows_of(seen, None if real.all() else real))
    return cross_entropy(model, hidden[chosen], ids[chosen], generator)


def fast_products() -> contextlib.AbstractContextManager:
    """On CPUs with units for it, matrix products in bfloat16, nearly twice as fast as fp32. Elsewhere fp32 throughout."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16_fast("cpu")[0])


def rows_of(ids: Tensor, real: Tensor | None = None, causal: bool = False) -> Padded:
    """The `attend` of rows (B, T), computed in fp32: in bfloat16 its backward pass is several times slower."""
    attend = Padded(ids, real, causal)
    attend.attention = attention_in_fp32
    return attend


def attention_in_fp32(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return attention(query.float(), key.float(), value.float(), mask, causal, p)


def steps_of(rows: list[list[int]], batch_size: int, epochs: int) -> int:
    return epochs * len(make_batches(rows, batch_size, random.Random(0)))


def pretrain(model: nn.Module, loss_of, rows: list[list[int]], learning_rate: float, batch_size: int, steps: int, seed: int,
             save) -> None:
    """AdamW with warm-up and linear decay to zero over `steps`; calls save(model) every 100 steps and at the end."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)                                                  # dropout
    warmup, losses, start = min(200, steps // 5), [], time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, warmup), max(0.0, (steps - step) / max(1, steps - warmup))))
    model.train()
    while len(losses) < steps:
        before = len(losses)
        for batch in make_batches(rows, batch_size, rng)[:steps - before]:
            with fast_products():
                loss = loss_of(model, batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 100 == 0 or len(losses) == steps:
                recent = losses[-100:]
                print(f"step {len(losses):,}/{steps:,} loss {sum(recent) / len(recent):.4f} "
                      f"{time.perf_counter() - start:.0f} s", flush=True)
                save(model)
        epoch = losses[before:]
        print(f"mean loss of this epoch {sum(epoch) / len(epoch):.4f}", flush=True)


def build(kind: str, vocab_size: int, width: int = 128, layers: int = 4, heads: int = 4) -> tuple[nn.Module, dict]:
    """The model to pretrain, with fresh weights still to come, and its config.json; without dropout: it underfits as it is."""
    if kind == "gpt2":
        config = GPT2Config(vocab_size=vocab_size, n_positions=512, n_embd=width, n_layer=layers, n_head=heads,
                            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        special = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1, "activation_function": "gelu_new"}
        return GPT2(config), {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **asdict(config), **special}
    config = RobertaConfig(vocab_size=vocab_size, max_position_embeddings=514, hidden_size=width, num_hidden_layers=layers,
                           num_attention_heads=heads, intermediate_size=4 * width,
                           hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    special = {"bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu"}
    fields = {key: value for key, value in asdict(config).items() if key != "num_labels"}
    return MaskedLM(config), {"architectures": ["RobertaModel"], "model_type": "roberta", **fields, **special}


def start_model(kind: str, vocab_size: int, directory: Path, seed: int, **sizes: int) -> tuple[nn.Module, Callable]:
    """The model with fresh weights, its config.json written, and the function that saves it in the Hugging Face layout,
    in fp16 and without the head of masked language modelling."""
    model, config = build(kind, vocab_size, **sizes)
    init_weights(model, seed)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")

    def save(model: nn.Module) -> None:
        tensors = model.state_dict() if kind == "gpt2" else model.encoder.state_dict()
        kept = {name: tensor.half() for name, tensor in tensors.items() if not name.startswith("classifier.")}
        write_safetensors(kept, directory / "model.safetensors", {"format": "pt"})

    return model, save


def make_base(kind: str, args: argparse.Namespace) -> None:
    """Learn the tokenizer, pretrain one model, write its directory."""
    directory, recipe = args.out / kind, RECIPES[kind]
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = learn_bpe(list(pretraining_documents(min(args.documents, 20_000), args.seed)), VOCABULARY)
    vocabulary = write_tokenizer(tokenizer, kind, directory)
    documents = list(pretraining_documents(args.documents, args.seed, tuple(args.genres or recipe.genres)))
    rows = encode_rows(tokenizer, vocabulary, documents, kind)
    model, save = start_model(kind, len(vocabulary), directory, args.seed)
    all_steps = steps_of(rows, args.batch_size, args.epochs or recipe.epochs)
    steps = args.max_steps or all_steps
    print(f"{kind}: {len(documents):,} documents, {sum(map(len, rows)):,} tokens, "
          f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {steps:,} of {all_steps:,} steps",
          flush=True)
    pretrain(model, causal_loss if kind == "gpt2" else masked_loss, rows, recipe.learning_rate, args.batch_size, steps,
             args.seed, save)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the toy base models on text of the toy world.")
    parser.add_argument("--model", choices=("gpt2", "roberta", "both"), default="both")
    parser.add_argument("--out", type=Path, default=Path("toy"), help="where the folders gpt2 and roberta go")
    parser.add_argument("--documents", type=int, default=100_000, help="fewer make a worse base")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--max-steps", type=int, help="end after this many updates; the schedule is fitted to it: a base "
                        "that was pretrained for less")
    parser.add_argument("--genres", nargs="+", choices=GENRES, help="default: the recipe's; 'prose' alone makes a poor base")
    parser.add_argument("--batch-size", type=int, default=32, help="documents of mean length per batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)                                           # embeddings that are never drawn fade out
    for kind in ("gpt2", "roberta") if args.model == "both" else (args.model,):
        make_base(kind, args)


if __name__ == "__main__":
    cli.run(main)
