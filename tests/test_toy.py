"""The toy world and the shipped toy models: what the experiments on them rely on."""
import random
import re
from collections import Counter

import pytest
import torch

from data import read_e2e, read_glue
from files.tokenizer import load_tokenizer
from model import load_pretrained
from toy import world

PRETRAINING = list(world.pretraining_documents(2000))


def records_of(toy_data, split):
    return [mr for mr, _ in read_e2e(split, toy_data)]


# ---------------------------------------------------------------- the generator

def test_same_seed_gives_the_same_bytes_and_another_seed_other_ones(toy_data, tmp_path):
    world.write_tasks(tmp_path / "again")
    world.write_tasks(tmp_path / "other", seed=1)
    files = sorted(path.relative_to(toy_data) for path in toy_data.rglob("*.t*"))
    assert len(files) == 8
    for file in files:
        assert (toy_data / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
        assert (toy_data / file).read_bytes() != (tmp_path / "other" / file).read_bytes()
    assert list(world.pretraining_documents(300)) == PRETRAINING[:300]


def test_records_are_split_without_overlap_in_record_or_name(toy_data):
    records = {split: set(records_of(toy_data, split)) for split in ("train", "valid", "test")}
    assert {split: len(group) for split, group in records.items()} == {"train": 600, "valid": 100, "test": 100}
    names = {split: {world.record_values(mr)[0] for mr in group} for split, group in records.items()}
    for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not records[first] & records[second]
        assert not names[first] & names[second]


def test_most_test_values_were_never_seen_in_training(toy_data):
    """Otherwise values could be learned by heart, and the task would not be about copying."""
    def open_values(split):
        parts = [part.split(" : ") for mr in set(records_of(toy_data, split)) for part in mr.split(" | ")]
        return [value for key, value in parts if key in ("name", "town", "harbour", "near", "captain", "keeper", "master")]

    seen = set(open_values("train"))
    test = open_values("test")
    assert sum(value not in seen for value in test) > 0.7 * len(test)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_every_reference_holds_every_value_of_its_record(toy_data, split):
    pairs = read_e2e(split, toy_data)
    assert set(Counter(mr for mr, _ in pairs).values()) == {4}
    assert len(set(pairs)) == len(pairs)
    for mr, reference in pairs:
        assert world.value_share(mr, reference) == 1.0, (mr, reference)


def test_value_share_counts_values():
    record = "name : The Bold Hare | type : ferry | year : 1804"
    assert world.record_values(record) == ["The Bold Hare", "ferry", "1804"]
    assert world.value_share(record, "the bold hare sails since 1840.") == pytest.approx(1 / 3)


def test_pretraining_text_knows_nothing_of_the_tasks(toy_data):
    """No record in the task's notation, no list of facts told in the lively style, no text or label of a task."""
    text = "\n\n".join(PRETRAINING)
    assert not re.search(r"\w : [^\n]+ \| \w+ : ", text) and "||" not in text and "\t" not in text
    assert not re.search("entailment|neutral|contradiction|equivalent", text)
    wordings = {form for attribute in world.ATTRIBUTES.values() for form in (*attribute.lively, *attribute.lively_phrases)}
    known = {form for attribute in world.ATTRIBUTES.values() for form in (*attribute.plain, *attribute.plain_phrases)}
    assert not wordings & known
    lists = "\n\n".join(world.pretraining_documents(500, genres=("lists",)))
    for opening in ("Come and see", "Looking for", "on the isles", "a true"):
        assert opening in text and opening not in lists
    told = {line.partition(" says: ")[2] or line for line in text.splitlines()}
    assert not told & {reference for split in ("train", "valid", "test") for _, reference in read_e2e(split, toy_data)}
    assert not told & {side for example in read_glue("mrpc", "train", toy_data) for side in (example.text, example.pair)}


# ---------------------------------------------------------------- pairs

def test_paraphrase_labels_are_balanced_and_true(toy_data):
    """A pair says the same exactly if both texts hold the same values; wordings alone decide nothing."""
    for split, count in (("train", 3000), ("dev", 600)):
        examples = read_glue("mrpc", split, toy_data)
        assert Counter(example.label for example in examples) == {0: count // 2, 1: count // 2}
        assert all(example.text and example.pair for example in examples)
    rng = random.Random(0)
    kind, thing = world.make_thing(rng, world.MAIN_KINDS, 3)
    values = set(thing.values())
    for tell in (world.plain_text, world.lively_text):
        assert all(value in tell(rng, thing) for value in values)


def values_in(text):
    """Names, numbers, people and towns of a text: everything capitalised or written in digits, but for first words."""
    text = re.sub(r"(^|[.!?] )(Come and see|Looking for|No|It is not true|It|There|A|An)\b", r"\1", text)
    return set(re.findall(r"\d+|[A-Z]\w+", text)) - {"The", "Captain", "Among"}


def test_pairs_that_say_the_same_share_names_and_numbers(toy_data):
    examples = read_glue("mrpc", "dev", toy_data)
    lower = [({word.lower() for word in values_in(example.text)}, example) for example in examples if example.label == 1]
    for words, example in lower:
        strange = {word for word in words if word not in example.pair.lower()}
        assert len(strange) <= 2, (strange, example)           # a first word of a sentence ("Rising", "Over")


def test_inference_labels_are_balanced_and_genres_differ(toy_data):
    nouns = {split: {type_ for kind in kinds for type_ in kind.types}
             for split, kinds in (("dev_matched", world.MAIN_KINDS), ("dev_mismatched", world.OTHER_KINDS))}
    for split in ("train", "dev_matched", "dev_mismatched"):
        examples = read_glue("mnli", split, toy_data)
        assert len(set(Counter(example.label for example in examples).values())) == 1
        assert len({example.label for example in examples}) == 3
        if split != "train":
            other = nouns["dev_mismatched" if split == "dev_matched" else "dev_matched"]
            assert all(any(noun in example.text for noun in nouns[split]) for example in examples)
            assert not any(f" {noun} " in example.text for noun in other for example in examples)


def test_entailments_retell_contradictions_deny_and_neutral_claims_do_either_of_another_thing():
    rng, denials = random.Random(3), Counter()
    for _ in range(200):
        _, thing = world.make_thing(rng, world.MAIN_KINDS, 3)
        for label in ("entailment", "neutral", "contradiction"):
            claim = world.hypothesis(rng, world.MAIN_KINDS, thing, label)
            told = sum(bool(re.search(rf"\b{re.escape(value)}\b", claim)) for key, value in world.facts_of(thing))
            assert (thing["name"] in claim) == (label != "neutral"), (thing, label, claim)
            assert told == 2 or label == "neutral", (thing, label, claim)
            denials[label] += claim.startswith("It is not true")
    assert denials["entailment"] == 0 and 60 < denials["neutral"] < 140 and denials["contradiction"] == 200


# ---------------------------------------------------------------- the shipped models

def test_shipped_weights_are_small_and_load(repository):
    files = [repository / "toy" / name / "model.safetensors" for name in ("gpt2", "roberta")]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    gpt2, roberta = (load_pretrained(file.parent) for file in files)
    for model in (gpt2, roberta):
        assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6
    assert gpt2.config.n_positions == 512 and roberta.config.max_position_embeddings == 514


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_shipped_tokenizers_round_trip(repository, toy_data, name):
    tokenizer = load_tokenizer(repository / "toy" / name)
    texts = [text for _, text in read_e2e("test", toy_data)] + PRETRAINING[:200]
    for text in [*texts, "Ångström naïve 10 € 日本語 \U0001f980 || : ~"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert load_pretrained(repository / "toy" / name).config.vocab_size == tokenizer.vocab_size
    if name == "roberta":
        assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
        assert tokenizer.mask_id == tokenizer.vocab_size - 1
    else:
        assert tokenizer.eos_id == tokenizer.vocab_size - 1


def test_shipped_gpt2_has_learned_to_copy(repository):
    """The base gives a name that stands in a list of facts far more probability than another one."""
    model, tokenizer = load_pretrained(repository / "toy" / "gpt2"), load_tokenizer(repository / "toy" / "gpt2")

    def loss(name):
        prompt = tokenizer.encode("name: The Rusty Osprey; type: ferry; year: 1804\n")
        ids = torch.tensor([prompt + tokenizer.encode(f"{name} is a ferry.")])
        with torch.no_grad():
            scores = model(ids)[0].log_softmax(-1)                           # (T, V)
        return -sum(scores[position, ids[0, position + 1]].item() for position in range(len(prompt) - 1, ids.shape[1] - 1))

    assert loss("The Rusty Osprey") < loss("The Quiet Weasel") - 5


def test_real_text_fits_into_the_toy_models(repository, shared):
    """Real MRPC pairs and E2E samples, cut up by the toy vocabulary, are no longer than the models' positions."""
    gpt2, roberta = (load_tokenizer(repository / "toy" / name) for name in ("gpt2", "roberta"))
    longest = max(len(roberta.encode(example.text, example.pair)) for example in read_glue("mrpc", "train", shared / "data"))
    assert longest <= 512
    longest = max(len(gpt2.encode(mr)) + len(gpt2.encode(" " + reference)) + 2
                  for mr, reference in read_e2e("test", shared / "data"))
    assert longest <= 512
