"""What predict.py is asked: a JSON line becomes token ids in the form in which its adapter's task was trained.

A line that cannot be answered is refused with a reason, which names what was expected. Left out: the answers (answers.py).
"""
import json
from dataclasses import dataclass

from adapters.bank import BASE, AdapterBank
from data import GLUE_TASKS, GlueTask
from files.text import check_encoding, shorten, unique_keys
from files.tokenizer import Tokenizer
from generation.e2e import e2e_prompt

ANSWER_KEYS = ("label", "probability", "score", "line", "error")


@dataclass(frozen=True)
class Request:
    adapter: str
    ids: list[int]
    further: dict                                                            # what comes back with the answer


class RequestReader:
    """How requests for the adapters of a bank are read. tasks, forms: of each adapter on RoBERTa."""

    def __init__(self, bank: AdapterBank, tokenizer: Tokenizer, room: int):
        """room: tokens that GPT-2 may generate after a text.
        Raises ValueError for another model's tokenizer, and for an adapter on RoBERTa whose task does not say what its labels
        mean, or has another number of them than its head."""
        if tokenizer.vocab_size > bank.model.config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {bank.model.config.vocab_size}: "
                             "use the tokenizer of this model")
        self.bank, self.tokenizer, self.room = bank, tokenizer, room
        self.forms = {name: self.form_of(name) for name in bank.adapters if bank.model.head and name != BASE}
        self.tasks = {name: self.task_of(name) for name in self.forms}

    def task_of(self, name: str) -> str:
        """The task that an adapter was trained for or, where its file does not say, the one it is called by."""
        return self.bank[name].task or name

    def form_of(self, name: str) -> GlueTask:
        """What an adapter on RoBERTa takes and answers: its own form, or that of a task of GLUE, with as many labels as its
        head."""
        adapter, task = self.bank[name], self.task_of(name)
        if adapter.form:
            texts, labels = adapter.form["texts"], adapter.form["labels"]
            form = GlueTask("", ("text",) * texts, "label", labels and tuple(labels), ())
        elif task in GLUE_TASKS:
            form = GLUE_TASKS[task]
        else:
            raise ValueError(f"adapter '{name}': its task is {shorten(task)}, so its labels have no names; expected one of "
                             f"{', '.join(GLUE_TASKS)}: name an adapter that knows no task after it")
        labels, found = form.labels or ("score",), adapter.head.out_proj.out_features
        if len(labels) != found:
            raise ValueError(f"adapter '{name}': its head has {found} labels, {task} has {len(labels)} ({', '.join(labels)})")
        return form

    def read(self, line: bytes) -> Request:
        """The request on a line, a byte-order mark before it dropped. Raises ValueError with what is wrong with it."""
        check_encoding(line, "the text")
        try:
            content = json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_keys)
            as_json(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON in UTF-8 ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"found a JSON {type(content).__name__}, expected an object with adapter and text")
        for key in ("adapter", "text"):
            if key not in content:
                raise ValueError(f"no '{key}'; expected an object with adapter and text")
        further = {key: value for key, value in content.items() if key not in ("adapter", "text")}
        for key in further:
            if key in ANSWER_KEYS:
                raise ValueError(f"'{key}' is a key of the answers; give it another name")
        name, texts = content["adapter"], content["text"]
        if not isinstance(name, str):
            raise ValueError(f"the adapter is {shorten(json.dumps(name))}, expected its name")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the text is {shorten(json.dumps(content['text']))}, expected a string or a list of one or two")
        return Request(name, self.encode(name, texts), further)

    def encode(self, name: str, texts: list[str]) -> list[int]:
        """The ids of one text or two, in the form that adapter `name` takes. Raises ValueError with what is wrong with them."""
        task = self.task_of(name)                                            # refuses a name that is not held
        return self.encode_pair(name, texts) if self.bank.model.head else self.encode_prompt(task, texts)

    def encode_prompt(self, task: str, texts: list[str]) -> list[int]:
        """A meaning representation in the frame it was trained in (E2E), or plain text to go on with."""
        if len(texts) != 1:
            raise ValueError(f"found {len(texts)} texts, expected one, which the model goes on with")
        ids = e2e_prompt(self.tokenizer, texts[0]) if task in ("e2e", "text") else self.tokenizer.encode(texts[0])
        most = self.bank.model.config.longest_input - self.room
        if not 1 <= len(ids) <= most:
            raise ValueError(f"the text has {len(ids)} tokens, expected 1 to {most}, so that the answer fits")
        return ids

    def encode_pair(self, name: str, texts: list[str]) -> list[int]:
        """A sentence or two, as RoBERTa's adapter `name` takes them."""
        if name == BASE:
            raise ValueError(f"the base has no head of a task ({self.bank.held()})")
        expected, most = len(self.forms[name].texts), self.bank.model.config.longest_input
        if len(texts) != expected:
            raise ValueError(f"found {len(texts)} text{'s' * (len(texts) > 1)}, expected {expected} for {self.tasks[name]}")
        ids = self.tokenizer.encode(*texts)
        if len(ids) > most:
            raise ValueError(f"the text has {len(ids)} tokens, the model takes {most}: shorten it")
        return ids


def as_json(content) -> bytes:
    """Raises ValueError for what JSON in UTF-8 cannot hold, NaN and half a surrogate pair, though json.loads takes them."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
