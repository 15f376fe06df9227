"""What predict.py answers: requests for any adapters of a bank, batched by length, become labels, scores or texts.

Left out: how a request is read (requests.py), where the answers go (predict.py, submission.py).
"""
import torch

from adapters.bank import AdapterBank
from adapters.requests import Request, RequestReader
from data import GlueTask
from files.tokenizer import Tokenizer
from generation.e2e import clean, search_ids

WINDOW = 16                                                                  # batches that are read and sorted together

class Predictor:
    """A bank with its tokenizer: requests in, answers out."""

    def __init__(self, bank: AdapterBank, tokenizer: Tokenizer, batch_size: int = 32, **generation):
        """generation: for GPT-2, the options of generation.generate. Raises ValueError like RequestReader."""
        if batch_size < 1:
            raise ValueError(f"batch size is {batch_size}, expected 1 or more")
        self.bank, self.tokenizer, self.batch_size = bank, tokenizer, batch_size
        self.generation = {"max_new_tokens": 64} | generation
        self.reader = RequestReader(bank, tokenizer, room=self.generation["max_new_tokens"])

    def answer(self, requests: list[Request]) -> list[dict]:
        """The answers to requests for any adapters, in their order."""
        if self.bank.model.head is None:
            texts = self.bank.generate([request.adapter for request in requests], [request.ids for request in requests],
                                       batch_size=self.batch_size, **search_ids(self.bank.model.config, self.tokenizer),
                                       **self.generation)
            return [{"text": clean(self.tokenizer.decode(ids))} for ids in texts]
        answers: dict[int, dict] = {}
        by_length = sorted(range(len(requests)), key=lambda index: len(requests[index].ids))
        for start in range(0, len(by_length), self.batch_size):
            indices = by_length[start:start + self.batch_size]
            batch = [requests[index] for index in indices]
            logits = self.bank.logits_of([request.adapter for request in batch], [request.ids for request in batch])
            logits = torch.cat(logits).cpu().split([len(values) for values in logits])   # one copy for all answers
            for index, request, values in zip(indices, batch, logits, strict=True):
                answers[index] = named(self.reader.forms[request.adapter], values)
        return [answers[index] for index in range(len(requests))]


def named(form: GlueTask, logits: torch.Tensor) -> dict:
    """(L,) -> the label with its probability, or the score, as of STS-B."""
    if form.labels is None:
        return {"score": round(logits.item(), 4)}
    probability, label = logits.softmax(dim=0).max(dim=0)
    return {"label": form.labels[label], "probability": round(probability.item(), 4)}
