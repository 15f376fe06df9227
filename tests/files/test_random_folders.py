"""Model folders drawn at random, as transformers writes them and as others have changed them: each loads with transformers'
logits and ids, or is refused with a line that names the one thing that is not supported.

    python -m tests.files.test_random_folders --count 200 --seed 0       # all of them; the suite takes COUNT

Drawn are the family, the file's form and format, shards, a wrapper's prefix, tied heads, the tokenizer's form, tokens added and
rows padded, the head, its classes and their order; of a BERT the old names of its LayerNorms, a config.json that says as little
as the first ones did, case and accents. Left out: adapters.
"""
import argparse
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

import data
import model as M
from files.weights import read_safetensors, write_safetensors

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

COUNT, SEED = 60, 0
# What is not supported, and what its refusal says. A form of this table that loads fails: it then has to leave the table.
REFUSED: dict[str, str] = {
    "untied": "tie_word_embeddings is False|lm_head.weight differs",
    "other classes": "the head's classes are",
}
TEXTS = ["", " ", "The ferry, 12 m long!", "naïve – 汉字 👩‍👩‍👧", "  it's  ", "a [MR] b", "x\n\ny"]
CLASSES = ("entailment", "neutral", "contradiction")
SPELLINGS = (str, str.upper, str.title)


def draw(chance: random.Random) -> dict:
    """A configuration."""
    kind = chance.choice(("gpt2", "roberta", "bert"))
    form = {"kind": kind, "file": chance.choice(("safetensors", "safetensors", "bin")), "shards": chance.choice((1, 1, 3)),
            "prefix": chance.choice(("", "", "", "module.", "_orig_mod.", "no base prefix")),
            "dtype": chance.choice(("float32", "float16", "bfloat16")),
            "tokenizer": chance.choice(("vocab.json", "tokenizer.json", "tokenizer.json, merges as text", "both")),
            "added": chance.choice((0, 0, 2)), "padding": chance.choice((0, 0, 5)), "seed": chance.randrange(10**6),
            "prefix_space": chance.random() < 0.2, "width": chance.choice((12, 20))}
    if kind == "gpt2":
        return form | {"head": chance.choice(("tied", "tied", "without", "lm_head alone", "untied"))}
    heads = ("none", "masked", "named", "named", "named", "LABEL", "two", "other names")
    if kind == "bert":
        form |= {"tokenizer": chance.choice(("vocab.txt", "tokenizer.json", "both")), "lower": chance.random() < 0.6,
                 "accents": chance.choice((None, None, True, False)), "gamma": chance.random() < 0.3,
                 "bare": chance.random() < 0.3}
        heads += ("pretraining",)
    return form | {"head": chance.choice(heads), "order": chance.sample(range(3), 3), "spelling": chance.randrange(3)}


def expected_refusals(form: dict) -> list[str]:
    """The names in REFUSED of what this form has that does not load."""
    return [name for name, there in {
        "untied": form["head"] == "untied", "other classes": form["head"] == "other names"}.items() if there]


# ---------------------------------------------------------------- writing a folder

def write_tokenizer(form: dict, folder: Path, learned: Path) -> object:
    """The tokenizer's files, and transformers' tokenizer of them."""
    if form["kind"] == "bert":
        return write_wordpiece(form, folder, learned)
    control = ["<|endoftext|>"] if form["kind"] == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = [*control[:-1], *json.loads((learned / "vocab.json").read_text(encoding="utf-8")), control[-1]]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    shutil.copyfile(learned / "merges.txt", folder / "merges.txt")
    kind = transformers.GPT2Tokenizer if form["kind"] == "gpt2" else transformers.RobertaTokenizer
    theirs = kind.from_pretrained(str(folder), add_prefix_space=form["prefix_space"])
    if form["added"]:
        theirs.add_tokens([transformers.AddedToken(word, normalized=False) for word in ("[MR]", "ferry")])
    theirs.save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if form["tokenizer"] == "vocab.json":
        without_tokenizer_json(folder)
    elif form["tokenizer"] != "both":
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        if form["tokenizer"] == "tokenizer.json, merges as text":
            whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
            (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    return theirs


def without_tokenizer_json(folder: Path) -> None:
    """Added tokens stand in tokenizer_config.json instead, as transformers 4 wrote them."""
    path, whole = folder / "tokenizer_config.json", json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {entry.pop("id"): entry for entry in whole["added_tokens"]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def write_wordpiece(form: dict, folder: Path, learned: Path) -> object:
    shutil.copyfile(learned / "vocab.txt", folder / "vocab.txt")
    theirs = transformers.BertTokenizer.from_pretrained(str(folder), do_lower_case=form["lower"], strip_accents=form["accents"])
    if form["added"]:
        theirs.add_tokens([transformers.AddedToken(word, normalized=False) for word in ("[MR]", "ferry")])
    theirs.save_pretrained(folder)
    if form["tokenizer"] == "vocab.txt":
        without_tokenizer_json(folder)
    elif form["tokenizer"] == "tokenizer.json":
        (folder / "vocab.txt").unlink()
    return theirs


def make_model(form: dict, vocab_size: int) -> object:
    """transformers' model with random weights in the drawn format's precision, in fp32."""
    torch.manual_seed(form["seed"])
    width = form["width"]
    if form["kind"] == "gpt2":
        last = vocab_size - form["padding"] - form["added"] - 1
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=32, n_embd=width, n_layer=2, n_head=4, initializer_range=0.3, bos_token_id=last,
            eos_token_id=last, tie_word_embeddings=form["head"] != "untied"))
    else:
        spelled = [SPELLINGS[form["spelling"]](CLASSES[row]) for row in form["order"]]
        names = {"LABEL": ["LABEL_0", "LABEL_1", "LABEL_2"], "two": ["no", "yes"], "other names": ["joy", "anger", "fear"]}.get(
            form["head"], spelled)
        sizes = {"vocab_size": vocab_size, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 28, "initializer_range": 0.3, "id2label": dict(enumerate(names)),
                 "label2id": {name: row for row, name in enumerate(names)}}
        config = transformers.BertConfig(max_position_embeddings=32, **sizes) if form["kind"] == "bert" else (
            transformers.RobertaConfig(max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
                                       bos_token_id=0, eos_token_id=2, **sizes))
        kind = {"none": "Model", "masked": "ForMaskedLM", "pretraining": "ForPreTraining"}.get(
            form["head"], "ForSequenceClassification")
        theirs = getattr(transformers, {"bert": "Bert", "roberta": "Roberta"}[form["kind"]] + kind)(config)
    return theirs.eval().to(getattr(torch, form["dtype"])).float()


def write_model(form: dict, folder: Path, theirs: object) -> None:
    """The weights as they were drawn; what transformers 5 no longer writes is written from what it wrote."""
    size = "100GB" if form["shards"] == 1 else "8KB"
    theirs.to(getattr(torch, form["dtype"])).save_pretrained(folder, max_shard_size=size)
    theirs.float()
    files = sorted(folder.glob("*.safetensors"))
    base = {"gpt2": "transformer."}.get(form["kind"], f"{form['kind']}.")
    index = folder / "model.safetensors.index.json"
    renamed = {}
    for path in files:
        tensors = {name: tensor.clone() for name, tensor in read_safetensors(path).items()}
        if form["head"] == "lm_head alone" and base + "wte.weight" in tensors:
            tensors["lm_head.weight"] = tensors.pop(base + "wte.weight")
        if form["head"] == "tied" and base + "wte.weight" in tensors:
            tensors["lm_head.weight"] = tensors[base + "wte.weight"].clone()
        if form.get("gamma"):
            tensors = {re.sub(r"LayerNorm\.(weight|bias)", lambda found: "LayerNorm." + {"weight": "gamma", "bias": "beta"}[
                found[1]], name): tensor for name, tensor in tensors.items()}
        if form["prefix"] == "no base prefix":
            tensors = {name.removeprefix(base): tensor for name, tensor in tensors.items()}
        elif form["prefix"]:
            tensors = {form["prefix"] + name: tensor for name, tensor in tensors.items()}
        path.unlink()
        new = path.name if form["file"] == "safetensors" else f"pytorch_{path.stem}.bin"
        (write_safetensors if form["file"] == "safetensors" else torch.save)(tensors, folder / new)
        renamed |= dict.fromkeys(tensors, new)
    if form.get("bare"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({name: config[name] for name in (
            "vocab_size", "type_vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "id2label", "label2id") if name in config}))
    if index.exists():
        index.unlink()
        target = index if form["file"] == "safetensors" else folder / "pytorch_model.bin.index.json"
        target.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": renamed}))


# ---------------------------------------------------------------- checking it

def check_folder(form: dict, folder: Path, learned: Path) -> str:
    """Write the folder and load it; what came of it. Raises AssertionError where it differs from transformers."""
    theirs = write_tokenizer(form, folder, learned)
    reference = make_model(form, len(theirs) + form["padding"])
    write_model(form, folder, reference)
    ours = data.load_tokenizer(folder)
    again = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        assert ours.encode(text, " more") == again(text, " more")["input_ids"], text
    classes = None if form["kind"] == "gpt2" else CLASSES
    refusals = expected_refusals(form)
    try:
        model = M.load_pretrained(folder, classes=classes, seed=4)
    except (ValueError, FileNotFoundError) as error:
        assert any(re.search(REFUSED[name], str(error)) for name in refusals), error
        assert "\n" not in str(error)
        return "refused: " + ", ".join(refusals)
    assert not refusals, f"loads, so that {refusals} can leave REFUSED"
    ids = torch.randint(5, len(theirs), (3, 9), generator=torch.Generator().manual_seed(form["seed"]))
    inputs = {"input_ids": ids}
    if form["kind"] == "bert":                                               # pairs, whose second texts have another type
        inputs = dict(theirs(["a text", "the, of"], ["more", "a whole more of it"], padding=True, return_tensors="pt"))
        assert inputs["token_type_ids"].any() and not inputs["attention_mask"].all()
    mask = inputs.get("attention_mask")
    with torch.no_grad():
        if form["kind"] == "gpt2":
            found, expected = model(ids), reference(ids).logits
        elif form["head"] in ("named", "LABEL"):
            order = [form["order"].index(row) for row in range(3)] if form["head"] == "named" else [0, 1, 2]
            found, expected = model(inputs["input_ids"], mask), reference(**inputs).logits[:, order]
        else:                                                                # a fresh head: what stands below it is compared
            body = reference if form["head"] == "none" else getattr(reference, form["kind"])
            ids = inputs["input_ids"]
            found, expected = model.hidden_states(ids, M.Padded(ids, mask)), body(**inputs).last_hidden_state
            if mask is not None:                                             # padding's states mean nothing
                found, expected = found[mask == 1], expected[mask == 1]
            assert model.classifier.out_proj.weight.shape == (3, form["width"])
    assert found.shape == expected.shape and expected.std() > 1e-2
    assert (found - expected).abs().max() < 1e-4, (found - expected).abs().max()
    return "loaded"


def learn(folder: Path) -> Path:
    """Both kinds of vocabularies, of this file's text."""
    folder.mkdir()
    for learned in (tokenizers.ByteLevelBPETokenizer(), tokenizers.BertWordPieceTokenizer(lowercase=False)):
        learned.train([__file__], vocab_size=330, min_frequency=2, show_progress=False)
        learned.save_model(str(folder))
    return folder


def check(count: int, seed: int, folder: Path) -> Counter:
    """How many of `count` folders came to what. Raises AssertionError with the configuration of the first that differs."""
    learned, outcomes, chance = learn(folder / "learned"), Counter(), random.Random(seed)
    for number in range(count):
        form, target = draw(chance), folder / str(number)
        target.mkdir()
        try:
            outcomes[check_folder(form, target, learned)] += 1
        except Exception as error:
            raise AssertionError(f"folder {number} of seed {seed}: {form}: {error}") from error
        shutil.rmtree(target)
    return outcomes


def test_every_folder_loads_as_in_transformers_or_is_refused_for_what_it_has(tmp_path):
    outcomes = check(COUNT, SEED, tmp_path)
    assert outcomes["loaded"] >= COUNT / 4, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = check(options.count, options.seed, Path(folder))
    print(f"seed {options.seed}, {options.count} folders: " + "; ".join(f"{n} {name}" for name, n in outcomes.most_common()))


if __name__ == "__main__":
    main()
