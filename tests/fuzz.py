"""A seeded fuzzer for every kind of file that comes from elsewhere: it damages a good file and judges what the reader says.

A reader may refuse a file, by ValueError or OSError whose message is one line and names the file, or load it correctly.
Anything else is a finding: another exception, more than SECONDS or BYTES, or a load that is not what the file says. What
is correct is told by a reading of the file that shares no code with the project.

    python -m tests.fuzz --count 500 --seed 7      500 mutations of each kind
"""
import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import unittest.mock
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import adapters
import data
import lora
import methods as baselines
import model as M
from files import cache, published
from files import weights as W
from files.text import write_json
from files.vocabulary import byte_alphabet
from metrics.texts import LINE_END, read_pair
from toy.fresh import init_weights

SECONDS = 5                                                                  # a file of a few KB takes milliseconds
BYTES = 300 << 20                                                            # growth of the peak over a whole kind
WEIRD = (None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**30, -10**9, 0.5, 1e308, float("nan"), float("inf"), "", "x",
         "../x", "/etc/passwd", "\ud800", "é" * 50, [], [0], [[]], {}, {"a": 1}, "(a+)+$", ".*.*.*.*.*.*x")


# ---------------------------------------------------------------- damaging

def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """Bits turned, bytes replaced, a piece cut out, doubled, moved, or the end missing."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if not content:
            break
        at = chance.randrange(len(content))
        until = min(len(content), at + chance.choice((1, 2, 8, 64, 500)))
        action = chance.randrange(8)
        if action == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            content[at] = chance.choice(b"\0\n\r\t\"'\\|,[]{}019 \x80\xc3\xff")
        elif action == 2:
            del content[at:until]
        elif action == 3:
            content[at:at] = content[at:until]
        elif action == 4:
            piece = content[at:until]
            del content[at:until]
            to = chance.randrange(len(content) + 1)
            content[to:to] = piece
        elif action == 5:
            del content[at:]
        elif action == 6:
            content[at:at] = chance.choice((b"\0" * 9, b"\xff\xfe", b"[" * 5000, b"\t\t\t", b"9" * 50, b"\xef\xbb\xbf", b"||"))
        else:
            content += chance.randbytes(chance.choice((1, 8, 300)))
    return bytes(content)


def damage_json(value: object, chance: random.Random) -> object:
    """One place of a JSON value replaced by a weird one, removed, renamed or deeply nested."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        action = chance.randrange(6)
        if action == 0:
            return {key: item for key, item in value.items() if key != name}
        if action == 1:
            return {str(chance.choice(WEIRD)) if key == name else key: item for key, item in value.items()}
        return value | {name: damage_json(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], damage_json(value[at], chance), *value[at + 1:]]
    if type(value) is int and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 4, 8, 10**6))
    return chance.choice(WEIRD)


def as_bytes(value: object, chance: random.Random) -> bytes:
    """JSON text, now and then with a key that stands twice."""
    text = json.dumps(value)
    if chance.random() < 0.1 and text.startswith("{") and len(text) > 2:
        name = json.dumps(next(iter(value)))
        text = f"{{{name}: {json.dumps(chance.choice(WEIRD))}, {text[1:]}"
    return text.encode("utf-8")


def split_safetensors(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8:8 + length]), content[8 + length:]


def damage_safetensors(content: bytes, chance: random.Random) -> bytes:
    """The bytes, the length of the header, or a value in the header."""
    if chance.random() < 0.45:
        return damage_bytes(content, chance)
    header, payload = split_safetensors(content)
    if chance.random() < 0.15:
        length = chance.choice((0, 1, 7, len(content), 2**31, 2**63, 2**64 - 1, 10**8, chance.randrange(2 * len(content))))
        return length.to_bytes(8, "little") + content[8:]
    encoded = as_bytes(damage_json(header, chance), chance)
    return len(encoded).to_bytes(8, "little") + encoded + payload


def damage_either(content: bytes, chance: random.Random) -> bytes:
    """For JSON files: the text or a value in it."""
    if chance.random() < 0.4:
        return damage_bytes(content, chance)
    return as_bytes(damage_json(json.loads(content), chance), chance)


# ---------------------------------------------------------------- judging

class Wrong(AssertionError):
    """A load that is not what the file says."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


@dataclass
class Kind:
    """A kind of file: `files` that may be damaged, how, and `load`, which reads them and raises Wrong for a wrong load."""
    files: list[Path]
    damage: Callable[[bytes, random.Random], bytes]
    load: Callable[[], None]


@dataclass
class Report:
    refused: int = 0
    loaded: int = 0
    findings: list[str] = field(default_factory=list)


class TooLong(BaseException):
    pass


@contextlib.contextmanager
def time_limit():
    """Raises TooLong after SECONDS, where the system has timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number, frame):
        raise TooLong
    earlier = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def peak_bytes() -> int:
    try:
        import resource
    except ImportError:                                                      # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(kind: Kind, count: int, seed: int) -> Report:
    """Damage the kind's files `count` times, one at a time, and judge every load."""
    report, chance, before = Report(), random.Random(seed), peak_bytes()
    kind.load()                                                              # undamaged it must load
    for number in range(count):
        path = chance.choice(kind.files)
        good = path.read_bytes()
        bad = kind.damage(good, chance)
        path.write_bytes(bad)
        where = f"seed {seed}, mutation {number}, {path.name}"
        try:
            with time_limit(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                kind.load()
            report.loaded += 1
        except (ValueError, OSError) as error:
            report.refused += 1
            if "\n" in str(error) or path.parent.name not in str(error):
                report.findings.append(f"{where}: the message is not one line with the file: {error!r}")
        except TooLong:
            report.findings.append(f"{where}: takes more than {SECONDS} s")
        except Exception as error:
            report.findings.append(f"{where}: {type(error).__name__}: {error}")
        path.unlink()                                                        # a mapped file is never written over
        path.write_bytes(good)
    if peak_bytes() - before > BYTES:
        report.findings.append(f"seed {seed}: the memory grew by {(peak_bytes() - before) >> 20} MB")
    return report


def numbers(tensors: dict) -> dict:
    return {name: (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
            for name, tensor in tensors.items()}


TORCH_NAMES = {value: name for name, value in W.DTYPES.items()}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def in_format(tensors: dict) -> dict:
    """The same with the format's names of the types, as expected_safetensors gives them."""
    return {name: (TORCH_NAMES[tensors[name].dtype], *value[1:]) for name, value in numbers(tensors).items()}


def expected_safetensors(path: Path) -> dict:
    """What a safetensors file says by the format's own words: {name: (dtype, shape, bytes)}; Wrong for one that is none."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    require(len(content) >= 8 + length, "header longer than the file")
    pairs = json.loads(content[8:8 + length].decode("utf-8"), object_pairs_hook=lambda pairs: pairs)
    payload, found, covered = content[8 + length:], {}, []
    for name, entry in pairs:
        if name == "__metadata__":
            continue
        entry = dict(entry)
        begin, end = entry["data_offsets"]
        require(name not in found, "a name twice")
        require(0 <= begin <= end <= len(payload), "offsets outside the file")
        require(math.prod(entry["shape"]) * SIZES[entry["dtype"]] == end - begin, "shape and offsets disagree")
        covered += [(begin, end)] if end > begin else []
        found[name] = entry["dtype"], tuple(entry["shape"]), payload[begin:end]
    edges = sorted(covered)
    require([begin for begin, _ in edges] == [0, *(end for _, end in edges)][:len(edges)] and
            (edges[-1][1] if edges else 0) == len(payload), "gap or overlap")
    return found


# ---------------------------------------------------------------- the kinds

GPT2 = dict(vocab_size=11, n_positions=6, n_embd=4, n_layer=2, n_head=2)
ROBERTA = dict(vocab_size=9, max_position_embeddings=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=2,
               intermediate_size=6, pad_token_id=1, num_labels=3)


def safetensors_kind(folder: Path) -> Kind:
    path = folder / "some.safetensors"
    generator = torch.Generator().manual_seed(0)
    W.write_safetensors({"a": torch.randn(3, 5, generator=generator), "b": torch.arange(7), "empty": torch.zeros(0, 4),
                         "half": torch.randn(2, 3, generator=generator).bfloat16(), "flag": torch.tensor([True, False])}, path,
                        {"format": "pt"})

    def load() -> None:
        require(in_format(W.read_safetensors(path)) == expected_safetensors(path), "not the file's tensors")
    return Kind([path], damage_safetensors, load)


def write_model(folder: Path, kind: str) -> M.GPT2 | M.RobertaClassifier:
    folder.mkdir(parents=True, exist_ok=True)
    config = M.GPT2Config(**GPT2) if kind == "gpt2" else M.RobertaConfig(**ROBERTA)
    model = M.GPT2(config) if kind == "gpt2" else M.RobertaClassifier(config)
    init_weights(model, seed=0)
    write_json({"model_type": kind, **(GPT2 if kind == "gpt2" else ROBERTA)}, folder / "config.json")
    W.write_safetensors(model.state_dict(), folder / "model.safetensors")
    return model.eval()


def check_model(folder: Path) -> M.GPT2 | M.RobertaClassifier:
    """Load the model, and compare with what the files say."""
    model = M.load_pretrained(folder)
    expected = expected_safetensors(folder / "model.safetensors")
    found = in_format(model.state_dict())
    fresh = {name for name in found if name.startswith("classifier.")} - expected.keys()
    require({name: value for name, value in found.items() if name not in fresh} ==
            {name: value for name, value in expected.items() if name in found}, "not the file's weights")
    require(all(tensor.isfinite().all() for tensor in model.state_dict().values()), "weights that are not finite")
    logits = model(torch.tensor([[3, 5, 2], [4, 1, 1]]))
    require(logits.shape[0] == 2, "the model does not run")
    return model


def base_kind(folder: Path, kind: str) -> Kind:
    """A base model: its weights and its config.json."""
    write_model(folder, kind)

    def damage(content: bytes, chance: random.Random) -> bytes:
        return (damage_either if content[:1] == b"{" else damage_safetensors)(content, chance)
    return Kind([folder / "model.safetensors", folder / "config.json"], damage, lambda: check_model(folder))


def shards_kind(folder: Path) -> Kind:
    """A base in shards, and its index."""
    expected = numbers(write_model(folder, "gpt2").state_dict())
    tensors = W.read_safetensors(folder / "model.safetensors")
    names, index = sorted(tensors), {"metadata": {}, "weight_map": {}}
    for shard in range(2):
        file = f"model-{shard}.safetensors"
        W.write_safetensors({name: tensors[name] for name in names[shard::2]}, folder / file)
        index["weight_map"] |= dict.fromkeys(names[shard::2], file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    outside = folder.parent / "outside.safetensors"
    W.write_safetensors({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, outside)

    def damage(content: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.7:
            return damage_either(content, chance)
        changed = json.loads(content)
        changed["weight_map"][chance.choice(names)] = chance.choice(
            ("../outside.safetensors", str(outside), "./model-0.safetensors", "model-1.safetensors/../../outside.safetensors",
             "..\\outside.safetensors", "model-0.safetensors\0", "config.json", "missing.safetensors", ""))
        return json.dumps(changed).encode()
    return Kind([folder / "model.safetensors.index.json"], damage,
                lambda: require(numbers(M.load_pretrained(folder).state_dict()) == expected, "not the shards' weights"))


def pickle_kind(folder: Path) -> Kind:
    """A base as pytorch_model.bin: its checksums tell every change."""
    model = write_model(folder, "gpt2")
    expected = numbers(model.state_dict())
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return Kind([folder / "pytorch_model.bin"], damage_bytes,
                lambda: require(numbers(M.load_pretrained(folder).state_dict()) == expected, "not the file's weights"))


def legacy_pickle_kind(folder: Path) -> Kind:
    """The pickle of torch before 1.6: no checksums, so only what it may not do is judged."""
    path = folder / "old.bin"
    torch.save({"a": torch.arange(12.0).view(3, 4), "b": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)

    def load() -> None:
        total = sum(tensor.numel() * tensor.element_size() for tensor in W.read_pickle(path).values())
        require(total <= 10 * path.stat().st_size, "tensors larger than their file")
    return Kind([path], damage_bytes, load)


def tokenizer_kind(folder: Path, whole: bool = False) -> Kind:
    """vocab.json and merges.txt, or (whole) tokenizer.json with the files that say what its tokens are for."""
    letters = byte_alphabet()
    vocab = {char: number for number, char in enumerate(letters)}
    merges = [("a", "b"), ("Ġ", "ab"), ("ab", "c"), ("Ġab", "abc")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    end, files = len(vocab) - 1, {"vocab.json": json.dumps(vocab), "merges.txt": "#version: 0.2\n" + "".join(
        f"{left} {right}\n" for left, right in merges)}
    if whole:
        files = {name: json.dumps(content) for name, content in {
            "tokenizer.json": {"added_tokens": [{"id": end, "content": "<|endoftext|>", "special": True, "lstrip": False}],
                               "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
                               "post_processor": {"type": "ByteLevel"},
                               "model": {"type": "BPE", "vocab": vocab, "merges": merges}},
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "eos_token": {"content": "<|endoftext|>"},
                                      "added_tokens_decoder": {str(end): {"content": "<|endoftext|>", "special": True}}},
            "config.json": {"model_type": "gpt2", "eos_token_id": end, "vocab_size": end + 1},
            "added_tokens.json": {"<|endoftext|>": end}, "generation_config.json": {"eos_token_id": [end]}}.items()}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")

    def damage(content: bytes, chance: random.Random) -> bytes:
        return (damage_either if content[:1] == b"{" else damage_bytes)(content, chance)

    def load() -> None:
        tokenizer, text = data.load_tokenizer(folder), "abc ababc é\n ab \t0"
        require(tokenizer.decode(tokenizer.encode(text)) == text, "the text does not come back")
    return Kind([folder / name for name in files], damage, load)


def glue_kind(folder: Path) -> Kind:
    path = folder / "glue" / "MRPC" / "train.tsv"
    path.parent.mkdir(parents=True)
    rows = [f"{n % 2}\t{n}\t{n + 1}\tHe said \"so\", {n}.\tShe said 'no' – {n}." for n in range(12)]
    path.write_text("\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]) + "\n", encoding="utf-8")

    def load() -> None:
        found = [(example.text, example.pair, example.label) for example in data.read_glue("mrpc", "train", folder)]
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
        lines = [line.removesuffix("\r").split("\t") for line in text.removesuffix("\n").split("\n")]
        at = [lines[0].index(name) for name in ("#1 String", "#2 String", "Quality")]
        expected = [(*(row[column] for column in at[:2]), int(row[at[2]])) for row in lines[1:]]
        require(found == expected, "not the file's rows")
        require(all(len(row) == len(lines[0]) for row in lines) and "\0" not in text, "a malformed row was read")
    return Kind([path], damage_bytes, load)


def e2e_kind(folder: Path) -> Kind:
    (folder / "e2e" / "official").mkdir(parents=True)
    plain, official = folder / "e2e" / "train.txt", folder / "e2e" / "official" / "trainset.csv"
    plain.write_text("".join(f"name : A{n} | food : \"x\"||A{n} serves x , it 's good .\n" for n in range(12)),
                     encoding="utf-8")
    official.write_text("mr,ref\n" + "".join(f'"name[A{n}], food[x]","A{n} ""really"" serves x."\n' for n in range(12)),
                        encoding="utf-8")

    def load() -> None:
        found = data.read_e2e("train", folder)
        lines = plain.read_bytes().decode("utf-8").removeprefix("\ufeff").removesuffix("\n").split("\n")
        require(found == [tuple(line.strip().split("||")) for line in lines], "not the file's rows")
        pairs = data.read_e2e("train", folder, "official")
        require(pairs and all(mr.strip() and text.strip() and "\n" not in text for mr, text in pairs), "empty text")
    return Kind([plain, official], damage_bytes, load)


def scorer_kind(folder: Path) -> Kind:
    references, hypotheses = folder / "refs.txt", folder / "hyps.txt"
    references.write_text("".join(f"one {n}\ntwo {n}\n\n" for n in range(8)), encoding="utf-8")
    hypotheses.write_text("".join(f"one {n}\n" for n in range(8)), encoding="utf-8")

    def load() -> None:
        groups, texts = read_pair(references, hypotheses)
        require(len(groups) == len(texts) and all(groups), "references and hypotheses do not pair")
        require("\n".join(texts) == "\n".join(line.strip() for line in LINE_END.split(
            hypotheses.read_bytes().decode("utf-8").removeprefix("\ufeff")))[:len("\n".join(texts))], "not the file's lines")
    return Kind([references, hypotheses], damage_bytes, load)


def adapter_numbers(model) -> dict:
    return numbers({name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad})


def adapter_kind(folder: Path, method: str, own: bool = True, binary: bool = False) -> Kind:
    """An adapter folder of ours or (own=False) as PEFT writes it, on a small base."""
    kind = "roberta" if method == "lora" else "gpt2"
    write_model(folder / "base", kind)
    base = check_model(folder / "base")
    if method == "lora":
        baselines.apply_method(base, "lora", 2, alpha=5.0, targets=("q", "v"), dropout=0.0, lora_init="gaussian", bias="none",
                               seed=0)
    else:
        baselines.apply_method(base, method, 2, seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(baselines.trained_parameters(base).values()):
            parameter.add_(0.01 * (number + 1))
    adapter = folder / "adapter"
    baselines.save_trained(base, adapter, "base", "mrpc" if kind == "roberta" else "e2e")
    weights = adapter / "adapter_model.safetensors"
    if not own:
        tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(weights).items()}
        weights.unlink()
        if binary:
            weights = adapter / "adapter_model.bin"
            torch.save(tensors, weights)
        else:
            W.write_safetensors(tensors, weights, {"format": "pt"})
    good = numbers(torch.load(weights, weights_only=True) if binary else W.read_safetensors(weights))

    def damage(content: bytes, chance: random.Random) -> bytes:
        if content[:1] == b"{":
            return damage_either(content, chance)
        if not own or chance.random() < 0.6:
            return (damage_bytes if binary else damage_safetensors)(content, chance)
        header, payload = split_safetensors(content)
        section = json.loads(header["__metadata__"]["lora_from_scratch"])
        header["__metadata__"]["lora_from_scratch"] = as_bytes(damage_json(section, chance), chance).decode()
        encoded = json.dumps(header).encode()
        return len(encoded).to_bytes(8, "little") + encoded + payload

    whole = adapter_numbers(base)

    def load() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            fresh = M.load_pretrained(folder / "base")
        baselines.load_trained(fresh, adapter)
        found, stored = adapter_numbers(fresh), good if binary else expected_safetensors(weights)
        require({name: value[1] for name, value in found.items()} == {name: value[1] for name, value in whole.items()},
                "other names or shapes")
        if {name: value[2] for name, value in stored.items()} == {name: value[2] for name, value in good.items()}:
            require(found == whole, "not the file's numbers")
        require(fresh(torch.tensor([[3, 5, 2]])).isfinite().all(), "the model does not run")
    return Kind([weights, adapter / "adapter_config.json"], damage, load)


def loralib_kind(folder: Path) -> Kind:
    """A loralib state dict by torch.save."""
    write_model(folder / "base", "roberta")
    base = check_model(folder / "base")
    lora.add_lora(base, 2, 5.0, ("q", "v"))
    path = folder / "lora.pt"
    from export import export_loralib
    export_loralib(base, path)
    whole = adapter_numbers(base)

    def load() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            fresh = M.load_pretrained(folder / "base")
        adapters.load_adapter(fresh, path, alpha=5.0)
        require(adapter_numbers(fresh) == whole, "not the file's numbers")
    return Kind([path], damage_bytes, load)


def archive_kind(folder: Path) -> Kind:
    """A GLUE archive whose members try to leave the folder."""
    import zipfile
    archive = folder / "part" / "CoLA.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for name in ("CoLA/train.tsv", "CoLA/dev.tsv", "../escaped", "/tmp/escaped-absolute", "CoLA/../../escaped"):
            members.writestr(name, "text " * 100)
    content = b"text " * 100

    def load() -> None:
        published.extract(archive, "CoLA", ["train.tsv", "dev.tsv"])
        require(all((archive.parent / name).read_bytes() == content for name in ("train.tsv", "dev.tsv")), "other text")
        strange = {path.name for path in folder.rglob("*")} - {"part", "CoLA.zip", "train.tsv", "dev.tsv"}
        require(not strange and not Path("/tmp/escaped-absolute").exists(), f"written outside: {strange}")
    return Kind([archive], damage_bytes, load)


def token_cache_kind(folder: Path) -> Kind:
    """Tokenised data kept by content: one that is damaged is made again, so every load is right and none is refused."""
    source, expected = folder / "train.tsv", ([([5, 7, 9], 1), ([4], 0), ([], 2)], 3)
    source.write_text("text")

    def load() -> None:
        with unittest.mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder)}):
            found = cache.kept_samples(lambda: expected, [source], "x", ("train", None))
        require(found == expected, "other samples")
    load()
    return Kind(list(folder.rglob("*.z")), damage_bytes, load)


KINDS: dict[str, Callable[[Path], Kind]] = {
    "safetensors": safetensors_kind,
    "GPT-2 folder": lambda folder: base_kind(folder, "gpt2"),
    "RoBERTa folder": lambda folder: base_kind(folder, "roberta"),
    "shard index": shards_kind,
    "pytorch_model.bin": pickle_kind,
    "pickle before torch 1.6": legacy_pickle_kind,
    "tokenizer": tokenizer_kind,
    "tokenizer.json": lambda folder: tokenizer_kind(folder, whole=True),
    "GLUE TSV": glue_kind,
    "E2E text and CSV": e2e_kind,
    "scorer's text files": scorer_kind,
    "our LoRA adapter": lambda folder: adapter_kind(folder, "lora"),
    "our adapter-h": lambda folder: adapter_kind(folder, "adapter-h"),
    "our prefix": lambda folder: adapter_kind(folder, "prefix"),
    "PEFT adapter": lambda folder: adapter_kind(folder, "lora", own=False),
    "PEFT adapter .bin": lambda folder: adapter_kind(folder, "lora", own=False, binary=True),
    "loralib .pt": loralib_kind,
    "zip archive": archive_kind,
    "token cache": token_cache_kind,
}


def fuzz_kind(name: str, count: int, seed: int) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        return fuzz(KINDS[name](folder), count, seed)
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage files and judge what their readers say.")
    parser.add_argument("--count", type=int, default=500, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    findings = 0
    for name in options.kinds:
        started = time.monotonic()
        report = fuzz_kind(name, options.count, options.seed)
        print(f"{name}: {report.refused} refused, {report.loaded} loaded, {time.monotonic() - started:.1f} s", file=sys.stderr)
        findings += len(report.findings)
        for kind, times in Counter(line.partition(": ")[2][:90] for line in report.findings).most_common():
            print(f"    {times} x {kind}   e.g. {next(line for line in report.findings if kind in line)[:300]}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
