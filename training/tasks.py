"""What a task is to the training loop: its samples, its loss, its scores, and the files that a finished run leaves.

PairTask: a GLUE task or own pairs on RoBERTa, cross-entropy over the labels, or squared error for scores (STS-B).
GenerationTask: E2E or own text on GPT-2, cross-entropy on the reference and its end token, given the meaning representation
(MR).

Both offer the same few names to train.py: train_lengths, loss, terms, evaluate, main_metric, higher_is_better, summary,
finish, saved_form, which an adapter keeps of own labels, and fingerprints, hashes of the samples that it trains on and is
scored on. Batches stand end to end (speed/packed.py). Left out: the rows (sources.py), and what of a batch an optimizer makes
(train.py).
"""
import hashlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import data
from eval_metrics import glue_scores, score
from files.cache import kept_samples
from files.tokenizer import Tokenizer
from generation.e2e import check_e2e, decode_e2e
from metrics.classes import macro_f1
from metrics.texts import write_hypotheses, write_references
from model import GPT2, GPT2Config, RobertaClassifier, RobertaConfig
from speed.loss import target_loss
from speed.packed import TOKENS_AT_A_TIME, pack, round_up
from training import sources
from training.options import TEXT_TASKS, Settings

EVAL_BATCH_SIZE = 32
TEXT_TOKENS = 64                                                             # that a decoded text may have


def make_task(settings: Settings, tokenizer: Tokenizer, config: GPT2Config | RobertaConfig, source):
    """The task object for the settings of a run; reads and tokenises the rows of its source."""
    kind = GenerationTask if settings.task in TEXT_TASKS else PairTask
    return kind(settings, tokenizer, config, source)


def fingerprint(*content) -> str:
    """A hash that tells one set of samples from another."""
    return hashlib.sha256(repr(content).encode("utf-8")).hexdigest()[:16]


def in_length_order(lengths: list[int]) -> list[list[int]]:
    """Evaluation batches: every index once, longest first, so that too large a batch fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start:start + EVAL_BATCH_SIZE] for start in range(0, len(order), EVAL_BATCH_SIZE)]


def watched(batches: list[list[int]]) -> tqdm:
    return tqdm(batches, desc="evaluating", leave=False, disable=None)


def length_of(sample: tuple[list[int], float]) -> int:
    return len(sample[0])


def tokens_at_a_time(model: nn.Module) -> int:
    """To what multiple a batch's tokens are filled up: bf16 products are compiled for every number of rows anew."""
    return TOKENS_AT_A_TIME if next(model.parameters()).dtype == torch.bfloat16 else 1


# ---------------------------------------------------------------- pairs

class PairTask:
    """A GLUE task, or own pairs: one sentence or two, and a label or a score."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, config: RobertaConfig, source):
        self.name, self.glue, self.tokenizer, self.source = settings.task, source.form, tokenizer, source
        self.saved_form = source.saved_form
        self.max_length = min(settings.max_length, config.longest_input)
        self.main_metric, self.higher_is_better = self.glue.metrics[0], True
        self.dev_splits = [split for split in self.glue.splits if split.startswith("dev")]
        self.cut, self.predictions = 0, {}                                   # predictions: of the last evaluation, by split
        self.train = self.encode("train", settings.limit_train)
        self.dev = {split: self.encode(split, settings.limit_eval) for split in self.dev_splits}
        self.fingerprints = {"train": fingerprint(self.train), "evaluated": fingerprint(self.dev)}
        self.train_lengths = [len(ids) for ids, _ in self.train]
        sizes = ", ".join(f"{len(samples):,} {split}" for split, samples in self.dev.items())
        self.summary = (f"{len(self.train):,} train, {sizes}, {sum(self.train_lengths) / len(self.train):.1f} tokens per "
                        f"sample; {self.cut:,} longer than {self.max_length} tokens, cut there")
        self.summary += source.note and f"; {source.note}"

    def encode(self, split: str, limit: int | None) -> list[tuple[list[int], float]]:
        """(token ids, label) per row; what is longer than max_length loses tokens of its longer sentence."""
        def build():
            examples = self.source.rows(split)[:limit]
            before = self.tokenizer.truncated
            samples = [(self.tokenizer.encode(example.text, example.pair, self.max_length), example.label)
                       for example in examples]
            return samples, self.tokenizer.truncated - before
        depends_on = (self.source.file(split), data.__file__, sources.__file__, __file__)
        samples, cut = kept_samples(build, depends_on, self.tokenizer.fingerprint,
                                    (self.name, *self.source.settings, split, limit, self.max_length))
        self.cut += cut
        return samples

    def logits_and_labels(self, model: RobertaClassifier, samples: list) -> tuple[Tensor, Tensor]:
        """Logits (B, L) and labels (B,) of samples in the order of their lengths."""
        device, sequences = next(model.parameters()).device, [ids for ids, _ in samples]
        input_ids, attend = pack(sequences, model.causal, device, tokens_at_a_time(model))               # (N,)
        firsts = attend.starts[:len(samples)]                                # (B,), of <s>
        labels = torch.tensor([label for _, label in samples], dtype=torch.float if self.glue.labels is None else torch.long)
        input_ids, firsts, labels = attend.send(device, input_ids, firsts, labels)
        return model.classifier(model.hidden_states(input_ids, attend, wanted=firsts)), labels

    def loss(self, model: RobertaClassifier, indices: Sequence[int]) -> Tensor:
        """Summed loss of the training samples `indices`."""
        samples = sorted((self.train[index] for index in indices), key=length_of)
        return self.loss_of(*self.logits_and_labels(model, samples)) * len(samples)

    def terms(self, indices: Sequence[int]) -> int:
        """How many numbers the loss of these samples is the sum of."""
        return len(indices)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.glue.labels is None:
            return F.mse_loss(logits.squeeze(-1), labels)                    # (B, 1) -> (B,)
        return F.cross_entropy(logits, labels)

    @torch.inference_mode()
    def predict(self, model: RobertaClassifier, samples: list) -> tuple[list, float]:
        """The class (or score) of every sample in order, and the mean loss."""
        batches = in_length_order([len(ids) for ids, _ in samples])
        values, losses = [], []
        for indices in watched(batches):
            logits, labels = self.logits_and_labels(model, [samples[index] for index in indices])
            values.append(logits.squeeze(-1) if self.glue.labels is None else logits.argmax(dim=-1))
            losses.append(self.loss_of(logits, labels))
        in_order = dict(zip(itertools.chain(*batches), torch.cat(values).tolist(), strict=True))         # read once, at the end
        loss = sum(loss * len(indices) for loss, indices in zip(torch.stack(losses).tolist(), batches, strict=True))
        return [in_order[index] for index in range(len(samples))], loss / len(samples)

    def evaluate(self, model: RobertaClassifier) -> dict[str, float]:
        """The task's scores on the development set; MNLI's mismatched part apart, with its own names."""
        scores = {}
        for split in self.dev_splits:
            suffix = "_mismatched" if split == "dev_mismatched" else ""
            predictions, loss = self.predict(model, self.dev[split])
            self.predictions[split] = predictions
            labels = [label for _, label in self.dev[split]]
            scores |= {name + suffix: value for name, value in self.scores(predictions, labels).items()}
            scores["loss" + suffix] = loss
        return scores

    def scores(self, predictions: list, labels: list) -> dict[str, float]:
        """GLUE's of its tasks; of own labels accuracy and the classes' mean F1, or of numbers those of STS-B."""
        if self.saved_form is None:
            return glue_scores(self.name, predictions, labels)
        if self.glue.labels is None:
            return glue_scores("stsb", predictions, labels)
        return glue_scores("sst2", predictions, labels) | {"macro_f1": macro_f1(predictions, labels)}

    def finish(self, model: RobertaClassifier, folder: Path) -> dict[str, float]:
        """Evaluate once more and write the predictions on the development set."""
        scores = self.evaluate(model)
        for split, predictions in self.predictions.items():
            lines = ["index\tprediction\tlabel"]
            for index, (prediction, (_, label)) in enumerate(zip(predictions, self.dev[split], strict=True)):
                shown = [f"{value:.4f}" if self.glue.labels is None else self.glue.labels[value]
                         for value in (prediction, label)]
                lines.append(f"{index}\t{shown[0]}\t{shown[1]}")
            name = "predictions.tsv" if split == "dev" else f"predictions_{split}.tsv"
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            if len(set(predictions)) == 1 and len(predictions) > 1:
                print(f"warning: every prediction on {split} is the same: this run has collapsed; try a lower --lr or "
                      "another --seed", file=sys.stderr)
        return scores


# ---------------------------------------------------------------- text

class GenerationTask:
    """E2E: from a meaning representation to a sentence; or own text. A sample is MR, end token, reference, end token."""
    saved_form = None

    def __init__(self, settings: Settings, tokenizer: Tokenizer, config: GPT2Config, source):
        self.settings, self.tokenizer, self.config, self.source = settings, tokenizer, config, source
        self.main_metric, self.higher_is_better = "loss", False
        limit_eval = settings.limit_eval
        self.train, self.valid = self.encode("train", settings.limit_train), self.encode("valid", limit_eval)
        self.test = source.rows("test")
        self.search = {"beam_size": settings.beam_size, "max_new_tokens": self.longest_text()}
        check_e2e(config, tokenizer, self.test, settings.limit_eval, **self.search)      # now, not after the training
        self.fingerprints = {"train": fingerprint(self.train), "evaluated": fingerprint(self.valid, self.test, limit_eval)}
        self.train_lengths = [len(ids) for ids, _ in self.train]
        self.summary = (f"{len(self.train):,} train, {len(self.valid):,} valid, {len(self.test):,} test references of "
                        f"{len({mr for mr, _ in self.test}):,} MRs, {sum(self.train_lengths) / len(self.train):.1f} tokens per "
                        f"sample; {source.note}")

    def encode(self, split: str, limit: int | None) -> list[tuple[list[int], int]]:
        """(token ids, length of the context) per row. Raises ValueError for one that is longer than the model's input."""
        def build():
            pairs = self.source.rows(split)[:limit]
            return [data.encode_e2e(self.tokenizer, mr, reference) for mr, reference in pairs], 0
        depends_on = (self.source.file(split), data.__file__, sources.__file__, __file__)
        samples, _ = kept_samples(build, depends_on, self.tokenizer.fingerprint, (*self.source.settings, split, limit))
        for row, (ids, _) in enumerate(samples):
            if len(ids) > self.config.longest_input:
                raise ValueError(f"{self.settings.task} {split} sample {row + 1} has {len(ids)} tokens, the model takes "
                                 f"{self.config.longest_input}: shorten its text or take a model with more positions")
        return samples

    def longest_text(self) -> int:
        """Tokens that a decoded text may have: TEXT_TOKENS, or more where an output of the user's own files has more."""
        lengths = [len(ids) - context_length for ids, context_length in (*self.train, *self.valid)]
        return TEXT_TOKENS if self.settings.text else max(TEXT_TOKENS, *lengths)

    def summed_loss(self, model: GPT2, samples: list, smoothing: float) -> tuple[Tensor, int]:
        """Loss of samples in the order of their lengths, summed over their target tokens, and the number of these."""
        device, multiple = next(model.parameters()).device, tokens_at_a_time(model)
        input_ids, attend = pack([ids[:-1] for ids, _ in samples], model.causal, device, multiple)       # (N,)
        targets = [data.targets_of(*sample) for sample in samples]           # -100 where there is none
        wanted = torch.cat([start + (own >= 0).nonzero().squeeze(1) for start, own in
                            zip(attend.starts, targets, strict=False)])              # (M,): where they stand in N
        targets = torch.cat([own[own >= 0] for own in targets])              # (M,)
        input_ids, wanted, targets = attend.send(device, input_ids, round_up(wanted, multiple), targets)
        hidden_states = model.hidden_states(input_ids, attend, wanted)       # (M, C), or a few rows more
        output = model.lm_head.weight if hasattr(model, "lm_head") else next(model.parameters())      # tied: the embedding
        return target_loss(hidden_states, output, targets, smoothing), len(targets)

    def loss(self, model: GPT2, indices: Sequence[int]) -> Tensor:
        """Smoothed loss of the training samples `indices`, summed over their target tokens."""
        samples = sorted((self.train[index] for index in indices), key=length_of)
        return self.summed_loss(model, samples, self.settings.label_smoothing)[0]

    def terms(self, indices: Sequence[int]) -> int:
        """The number of target tokens of these samples."""
        return sum(len(ids) - context_length for ids, context_length in (self.train[index] for index in indices))

    @torch.inference_mode()
    def evaluate(self, model: GPT2) -> dict[str, float]:
        """Loss per target token on the validation set, in nats, without label smoothing."""
        losses, count = [], 0
        for indices in watched(in_length_order([len(ids) for ids, _ in self.valid])):
            loss, targets = self.summed_loss(model, [self.valid[index] for index in indices], smoothing=0.0)
            losses.append(loss)
            count += targets
        return {"loss": sum(torch.stack(losses).tolist()) / count}           # read once, at the end

    def finish(self, model: GPT2, folder: Path) -> dict:
        """Decode each MR of the test set, or the first limit_eval, once; write predictions.txt and references.txt in the
        scorer's format; return the five scores and which reference text they stand on."""
        penalty = self.settings.length_penalty
        references, hypotheses = decode_e2e(model, self.tokenizer, self.test, (penalty,), self.settings.limit_eval,
                                            **self.search)
        write_hypotheses(hypotheses[penalty], folder / "predictions.txt")
        write_references(references, folder / "references.txt")
        return score(references, hypotheses[penalty]) | {"reference_text": self.settings.text or "own"}
