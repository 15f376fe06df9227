"""data.py against transformers on every line of the real files, and on files that somebody broke."""
import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import data
from files.published import fetch_model
from files.text import read_json

ODD_TEXTS = ["", " ", "  ", "\t\n", "a", " a", "I'll we've they'RE 'twas it's", "naïve Café — „quoted“ 3½ ²", "汉字かな한국어",
             "👩‍👩‍👧‍👦 🇩🇪", "a\u0301 e\u0308",
             "x\u00a0y \u2028z\u2029", "line\x85next\x0bpage\x0c", "   three   spaces   ", "1234567890,5",
             "#hash ## # #", "ﬁ ǅ ſ", "\ufeffmark", "ends in space ", "\U0010ffff \ue000", "!" * 300, "word" * 200]


def hugging_face(directory: Path):
    transformers = pytest.importorskip("transformers")
    kind = transformers.RobertaTokenizerFast if "<s>" in (directory / "vocab.json").read_text(encoding="utf-8") \
        else transformers.GPT2TokenizerFast
    return kind.from_pretrained(str(directory))


def hugging_face_ids(tokenizer, texts, pairs=None, max_length=None) -> list[list[int]]:
    """What tokenizer(texts, pairs) gives, without the tables that transformers builds around the ids."""
    backend = tokenizer.backend_tokenizer
    if max_length:
        backend.enable_truncation(max_length, strategy="longest_first")
    else:
        backend.no_truncation()
    batch = texts if pairs is None else list(zip(texts, pairs, strict=True))
    return [encoding.ids for encoding in backend.encode_batch_fast(batch)]


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> Path:
    """A data directory with every real file under its official name, the partial ones too."""
    directory = tmp_path_factory.mktemp("data")
    shutil.copytree(shared / "data" / "glue", directory / "glue")
    (directory / "e2e").symlink_to(shared / "data" / "e2e")
    for path in (shared / "data" / "glue_partial").glob("*/*.partial.tsv"):
        target = directory / "glue" / path.parent.name / path.name.replace(".partial", "")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return directory


def real_glue(real: Path) -> list[data.PairExample]:
    return [example for task, glue in data.GLUE_TASKS.items() for split in glue.splits
            if (real / "glue" / glue.folder / f"{split}.tsv").exists() for example in data.read_glue(task, split, real)]


# ---------------------------------------------------------------- tokenizers

def with_new_words(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The lines that hold letters, digits or marks in a row which none before them holds, with or without a space in front:
    their tokens do not depend on their neighbours. The longest lines come first, as they hold most. And every fiftieth of the
    others, or all of them where the environment has LORA_EVERY_LINE."""
    known, chosen, every = set(), [], 1 if os.environ.get("LORA_EVERY_LINE") else 50
    for number, line in enumerate(sorted(lines, key=lambda line: sum(map(len, line)), reverse=True)):
        words = {word for text in line for word in re.findall(r" ?(?:[^\W\d_]+|\d+|[^\w\s]+|_+|\s+)", text)}
        if number % every == 0 or not words <= known:
            known |= words
            chosen.append(line)
    return chosen


@pytest.fixture(scope="module")
def real_lines(real) -> tuple[list[tuple[str]], list[tuple[str, str]]]:
    """Single texts and pairs of the real files, as few as have all of their words."""
    samples = [sample for split in data.E2E_FILES for text in ("pretokenised", "official")
               for sample in data.read_e2e(split, real, text)]
    singles = sorted({(text,) for mr, reference in samples for text in (mr, " " + reference)})
    examples = real_glue(real)
    singles += [(example.text,) for example in examples if example.pair is None]
    pairs = [(example.text, example.pair) for example in examples if example.pair is not None]
    assert len(singles) > 150_000 and len(pairs) > 80_000
    return with_new_words(singles), with_new_words(pairs)


@pytest.mark.parametrize("name", ["gpt2", "roberta-base"])
def test_every_word_of_the_real_files_is_tokenized_as_in_transformers(real_lines, shared, name):
    """Every line, in two minutes: LORA_EVERY_LINE=1 python -m pytest tests/test_data.py -k every_word"""
    directory = shared / "data" / "hub" / name
    ours, theirs = data.load_tokenizer(directory), hugging_face(directory)
    singles, pairs = real_lines
    assert len(singles) > 5_000 and len(pairs) > 5_000
    for (text,), expected in zip(singles, hugging_face_ids(theirs, [text for text, in singles]), strict=True):
        assert ours.encode(text) == expected
    long = []
    for pair, expected in zip(pairs, hugging_face_ids(theirs, *zip(*pairs, strict=True)), strict=True):
        found = ours.encode(*pair)
        assert found == expected
        long += [pair] * (len(found) > 64)
    assert len(long) > 1_000
    for pair, expected in zip(long, hugging_face_ids(theirs, *zip(*long, strict=True), max_length=64), strict=True):
        assert ours.encode(*pair, max_length=64) == expected


@pytest.mark.parametrize("name", ["gpt2", "roberta-base"])
def test_odd_texts_and_all_truncations_as_in_transformers(shared, name):
    directory = shared / "data" / "hub" / name
    ours, theirs = data.load_tokenizer(directory), hugging_face(directory)
    assert [ours.encode(text) for text in ODD_TEXTS] == hugging_face_ids(theirs, ODD_TEXTS)
    for max_length in range(5, 30):
        for first, second in [(3, 20), (20, 3), (9, 9), (10, 9), (9, 10), (12, 12), (0, 15), (15, 0)]:
            pair = " a" * first, " b" * second
            expected = hugging_face_ids(theirs, [pair[0]], [pair[1]], max_length=max_length)[0]
            assert ours.encode(*pair, max_length=max_length) == expected, (max_length, first, second)
            expected = hugging_face_ids(theirs, [pair[0]], max_length=max_length)[0]
            assert ours.encode(pair[0], max_length=max_length) == expected
    for text in ODD_TEXTS:
        assert ours.decode(ours.encode(text)) == text
        cut = ours.encode(text)[1:4]                                         # may end inside a character
        assert ours.decode(cut) == theirs.decode(cut, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_special_ids_framing_and_control_tokens_in_running_text(shared):
    gpt2 = data.load_tokenizer(shared / "data" / "hub" / "gpt2")
    roberta = data.load_tokenizer(shared / "data" / "hub" / "roberta-base")
    assert (gpt2.eos_id, gpt2.pad_id, gpt2.bos_id, gpt2.mask_id, gpt2.vocab_size) == (50256, 0, None, None, 50257)
    assert (roberta.bos_id, roberta.pad_id, roberta.eos_id, roberta.mask_id, roberta.vocab_size) == (0, 1, 2, 50264, 50265)
    assert roberta.encode("Hello world", "a b") == [0, 31414, 232, 2, 2, 102, 741, 2]
    assert gpt2.encode("Hello world", " a b") == [15496, 995, 257, 275]
    text = "<s> a </s> <mask><|endoftext|>"
    assert set(roberta.encode(text)[1:-1]).isdisjoint({0, 1, 2, 3, 50264, 50260})
    assert 50256 not in gpt2.encode(text)
    assert gpt2.decode(gpt2.encode(text) + [50256]) == roberta.decode(roberta.encode(text)) == text
    with pytest.raises(ValueError, match="token id 50257 is none of this tokenizer's ids 0 to 50256"):
        gpt2.decode([1, 50257])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        gpt2.encode("\ud800")


def test_truncation_is_counted_and_must_leave_room_for_the_framing(shared):
    tokenizer = data.load_tokenizer(shared / "data" / "hub" / "roberta-base")
    assert tokenizer.encode(" a b c", max_length=5) == tokenizer.encode(" a b c")
    assert tokenizer.truncated == 0
    assert len(tokenizer.encode(" a b c", max_length=4)) == 4
    assert len(tokenizer.encode(" a b c", " d", max_length=6)) == 6
    assert tokenizer.truncated == 2
    with pytest.raises(ValueError, match="max_length is 3, expected at least the 4 tokens"):
        tokenizer.encode("a", "b", max_length=3)


@pytest.fixture
def small_bpe(tmp_path) -> Path:
    """A GPT-2-style vocabulary of 500 tokens, learned from this file, its ids shuffled."""
    tokenizers = pytest.importorskip("tokenizers")
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train([__file__], vocab_size=499, min_frequency=2, show_progress=False)
    learned.save_model(str(tmp_path))
    tokens = sorted([*json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")), "<|endoftext|>"])
    random.Random(1).shuffle(tokens)
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    return tmp_path


def test_a_small_vocabulary_with_shuffled_ids(small_bpe):
    ours, theirs = data.load_tokenizer(small_bpe), hugging_face(small_bpe)
    lines = Path(__file__).read_text(encoding="utf-8").split("\n")
    texts = ODD_TEXTS + [line for line in lines if "<|endoftext|>" not in line]   # to transformers a control token
    assert [ours.encode(text) for text in texts] == hugging_face_ids(theirs, texts)
    assert [ours.decode(ours.encode(text)) for text in texts] == texts
    assert ours.vocab_size == 500 and ours.decode([ours.eos_id]) == ""


def edit_merges(change):
    def edit(directory: Path) -> None:
        path = directory / "merges.txt"
        lines = path.read_text(encoding="utf-8").split("\n")
        path.write_text("\n".join(change(lines)), encoding="utf-8")
    return edit


def edit_vocab(change):
    def edit(directory: Path) -> None:
        vocab = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
        (directory / "vocab.json").write_text(json.dumps(change(vocab)), encoding="utf-8")
    return edit


@pytest.mark.parametrize(("edit", "message"), [
    (edit_merges(lambda lines: lines[:3] + ["one"] + lines[3:]), r"merges.txt, line 4: found 'one', expected two tokens"),
    (edit_merges(lambda lines: lines[:3] + ["a  b"] + lines[3:]), r"merges.txt, line 4: found 'a  b', expected two tokens"),
    (edit_merges(lambda lines: lines[:3] + ["", *lines[3:]]), r"merges.txt, line 4: found '', expected two tokens"),
    (edit_merges(lambda lines: lines[:3] + ["qqq x"] + lines[3:]), r"line 4: 'qqq' is neither a byte nor formed by a line"),
    (edit_merges(lambda lines: lines[:3] + [lines[2]] + lines[3:]), r"merges.txt, line 4: '\S+' is formed a second time"),
    (edit_merges(lambda lines: lines[:3] + ["q ~"] + lines[3:]), r"merges.txt, line 4: 'q~' is missing in vocab.json"),
    (edit_merges(lambda lines: lines[:100]), r"no merge forms '\S+'; are the merges cut short"),
    (edit_merges(lambda lines: []), r"merges.txt: the file is empty"),
    (edit_vocab(lambda vocab: {**vocab, "q": vocab["a"]}), r"vocab.json: found an id twice, expected the ids 0 to 499"),
    (edit_vocab(lambda vocab: {**vocab, "a": 7000}), r"vocab.json: found 'a': 7000, expected the ids 0 to 499"),
    (edit_vocab(lambda vocab: {**vocab, "a": "1"}), r"vocab.json: found 'a': '1', expected the ids"),
    (edit_vocab(lambda vocab: {**vocab, "a": True}), r"vocab.json: found .*expected the ids"),
    (edit_vocab(lambda vocab: {}), r"vocab.json: found"),
    (edit_vocab(lambda vocab: list(vocab)), r"vocab.json: holds a JSON list, expected an object"),
    (edit_vocab(lambda vocab: {token.replace("~", "~~"): number for token, number in vocab.items()}), r"'~' is missing"),
    (edit_vocab(lambda vocab: {token.replace("<|endoftext|>", "<end>"): number for token, number in vocab.items()}),
     r"no <\|endoftext\|>, and no file says which token is eos_token: expected"),
    (lambda directory: (directory / "vocab.json").write_text('{"a": 1,'), r"vocab.json: not valid JSON"),
    (lambda directory: (directory / "merges.txt").write_bytes(b"#version: 0.2\n\xff a\n"), r"line 2: byte 0xff at column 1"),
])
def test_a_broken_vocabulary_is_one_clear_line(small_bpe, edit, message):
    edit(small_bpe)
    with pytest.raises(ValueError, match=message) as error:
        data.load_tokenizer(small_bpe)
    assert str(small_bpe) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_tokenizer_file_is_named(small_bpe):
    (small_bpe / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt is missing: put"):
        data.load_tokenizer(small_bpe)


# ---------------------------------------------------------------- GLUE

COUNTS = {"cola": (8551, 1043, 1063), "sst2": (67349, 872, 1821), "mrpc": (3668, 408, 1725), "stsb": (5749, 1500, 1379),
          "qqp": (11948, 7600), "mnli": (12925, 7469), "qnli": (9999, 5463, 5463), "rte": (2490, 277, 3000),
          "wnli": (635, 71, 146)}


@pytest.mark.parametrize("task", data.GLUE_TASKS)
def test_every_real_row_is_read(real, task):
    glue = data.GLUE_TASKS[task]
    for split, count in zip(glue.splits, COUNTS[task], strict=False):
        examples = data.read_glue(task, split, real)
        assert len(examples) == count
        assert all(isinstance(example.pair, str) == (len(glue.texts) == 2) for example in examples)
        labels = {example.label for example in examples}
        if split == "test" and task != "mrpc":
            assert labels == {None}
        elif glue.labels is None:
            assert min(labels) >= 0 and max(labels) == 5 and len(labels) > 50
        else:
            assert labels == set(range(len(glue.labels)))


def test_known_rows_have_their_published_labels(real):
    def named(task, split, row):
        example = data.read_glue(task, split, real)[row]
        labels = data.GLUE_TASKS[task].labels
        return example.text[:20], example.label if labels is None else labels[example.label]

    assert named("cola", "train", 0) == ("Our friends won't bu", "acceptable")
    assert named("sst2", "dev", 0) == ("it 's a charming and", "positive")
    assert named("mrpc", "dev", 0) == ("He said the foodserv", "equivalent")
    assert named("stsb", "dev", 0) == ("A man with a hard ha", 5.0)
    assert named("qqp", "dev", 0) == ("What are the best fr", "duplicate")
    assert named("mnli", "train", 0) == ("Our hearts are parti", "entailment")
    assert named("qnli", "dev", 0) == ("What came into force", "entailment")
    assert named("rte", "train", 0) == ("No Weapons of Mass D", "not_entailment")
    assert named("wnli", "dev", 0) == ("The drain is clogged", "not_entailment")
    quoted = data.read_glue("mrpc", "dev", real)[0].pair
    assert quoted == '" The foodservice pie business does not fit our long-term growth strategy .'


def test_label_ids_follow_the_authors_data_set():
    assert data.GLUE_TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert data.GLUE_TASKS["rte"].labels == data.GLUE_TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert data.GLUE_TASKS["wnli"].labels == ("not_entailment", "entailment")


@pytest.fixture
def write_glue(tmp_path):
    def write(task: str, split: str, *lines: str, end: str = "\n", content: bytes | None = None) -> Path:
        path = tmp_path / "glue" / data.GLUE_TASKS[task].folder / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + end for line in lines).encode() if content is None else content)
        return tmp_path
    return write


def test_columns_are_found_by_name_in_the_official_wide_files(write_glue):
    wide = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
            "sentence2_parse", "sentence1", "sentence2", "label1", "label2", "label3", "label4", "label5", "gold_label"]
    row = [str(n) for n in range(8)] + ["Premise.", "Hypothesis.", *["neutral"] * 5, "contradiction"]
    directory = write_glue("mnli", "dev_mismatched", "\t".join(wide), "\t".join(row))
    assert data.read_glue("mnli", "dev_mismatched", directory) == [data.PairExample("Premise.", "Hypothesis.", 2)]
    write_glue("mnli", "test_matched", "\t".join(wide[:10]), "\t".join(row[:10]))
    assert data.read_glue("mnli", "test_matched", directory) == [data.PairExample("Premise.", "Hypothesis.", None)]
    write_glue("qqp", "train", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "7\t8\t9\tWhy?\t\t1")
    assert data.read_glue("qqp", "train", directory) == [data.PairExample("Why?", "", 1)]
    write_glue("mrpc", "test", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", '0\t1\t2\t"a\tb"')
    assert data.read_glue("mrpc", "test", directory) == [data.PairExample('"a', 'b"', None)]


def test_lines_end_at_line_feeds_only(write_glue):
    texts = ["a\x85b\u2028c\u2029d", "e\x0bf\x0cg\x1ch\ri", ' "quoted" \\t ']
    directory = write_glue("sst2", "train", "sentence\tlabel", *(f"{text}\t1" for text in texts), end="\r\n")
    assert [example.text for example in data.read_glue("sst2", "train", directory)] == texts
    write_glue("sst2", "train", content=b"\xef\xbb\xbfsentence\tlabel\nlast line\t0")
    assert data.read_glue("sst2", "train", directory) == [data.PairExample("last line", None, 0)]


def in_hub_form(task, split, examples, form, named):
    """The file in which the Hub's data set would have these examples: form jsonl, tsv or csv; named: classes by their names."""
    glue = data.GLUE_TASKS[task]
    texts = {"mrpc": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis")}.get(task, glue.texts)
    rows = [dict(zip(texts, (example.text, example.pair), strict=False)) | {
        "label": -1 if example.label is None else glue.labels[example.label] if named and glue.labels else example.label,
        "idx": number} for number, example in enumerate(examples)]
    name = split.replace("dev", "validation") + "." + form
    if form == "jsonl":
        return name, "".join(json.dumps(row) + "\n" for row in rows)
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter="," if form == "csv" else "\t", quoting=csv.QUOTE_MINIMAL if form == "csv" else
                        csv.QUOTE_NONE, quotechar='"' if form == "csv" else None, lineterminator="\r\n")
    writer.writerows([rows[0].keys(), *(row.values() for row in rows)])
    return name, lines.getvalue()


@pytest.mark.parametrize("form, named", [("jsonl", False), ("jsonl", True), ("tsv", False), ("csv", False), ("csv", True)])
@pytest.mark.parametrize("task", data.GLUE_TASKS)
def test_glue_as_the_hub_has_it_is_glue(tmp_path, task, form, named):
    """Other file names, other columns, classes by number or name, a byte-order mark: the same examples."""
    glue = data.GLUE_TASKS[task]
    labels = [0.0, 2.6, 5.0] if glue.labels is None else [*range(len(glue.labels)), 0]
    texts = ['"She" said, so.', "It costs £5 \\t.", "No.", "Tea, 2 cups"]
    for split in glue.splits:
        examples = [data.PairExample(text, texts[number - 1] if len(glue.texts) == 2 else None,
                                     None if split.startswith("test") else label)
                    for number, (text, label) in enumerate(zip(texts, labels, strict=False))]
        name, content = in_hub_form(task, split, examples, form, named)
        (tmp_path / "glue" / glue.folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "glue" / glue.folder / name).write_bytes(content.encode("utf-8-sig"))
        assert data.read_glue(task, split, tmp_path) == examples
    assert data.fetch_task(task, tmp_path) == tmp_path


@pytest.mark.parametrize("name, content, message", [
    ("train.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 1}\n\n', "line 2: not JSON .*, expected an object on every"),
    ("train.jsonl", '{"sentence1": "a", "sentence2": ["b"], "label": 1}\n', "line 1: found .*, expected an object of texts"),
    ("train.jsonl", '{"sentence1": "a", "sentence2": "b", "label": true}\n', "line 1: found .*, expected an object of texts"),
    ("train.jsonl", '{"sentence1": "a", "label": 1, "label": 0}\n', "line 1: not JSON .the name 'label' stands twice"),
    ("train.jsonl", '{"sentence1": "a", "sentence2": "b", "label": 1}\n{"sentence1": "a", "label": 1}\n',
     "line 2: found the keys 'sentence1, label', expected sentence1, sentence2, label as in line 1"),
    ("train.jsonl", '{"text": "a", "label": 1}\n', "line 1: found the columns 'text, label', expected one '#1 String'"),
    ("train.jsonl", '{"sentence1": "a", "sentence2": "b", "label": -1}\n',
     r"line 1: found label '-1', expected one of 0, 1 \(not_equivalent, equivalent\)"),
    ("train.csv", 'sentence1,sentence2,label\n"a, b",c\n', "line 2: found 2 fields, expected 3 between commas"),
    ("train.jsonl", "", "the file is empty"),
    ("train-00000-of-00001.parquet", "PAR1", "make JSON lines of it, .*'train-00000-of-00001.parquet'..to_json"),
])
def test_a_broken_row_in_the_hubs_form_is_one_clear_line(tmp_path, name, content, message):
    path = tmp_path / "glue" / "MRPC" / name
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
        data.read_glue("mrpc", "train", tmp_path)


def test_two_forms_of_one_split_are_refused(write_glue):
    directory = write_glue("rte", "train", "sentence1\tsentence2\tlabel", "a\tb\t1")
    assert data.read_glue("rte", "train", directory) == [data.PairExample("a", "b", 1)]
    (directory / "glue" / "RTE" / "train.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds train.tsv and train.jsonl, which are the same split: move one away"):
        data.read_glue("rte", "train", directory)


@pytest.mark.parametrize("encoding, name", [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"),
                                            ("utf-32", "UTF-32"), ("utf-32-be", "UTF-32")])
def test_other_encodings_are_named(write_glue, encoding, name):
    content = "sentence\tlabel\nlast line\t0\n".encode(encoding)
    directory = write_glue("sst2", "train", content=content)
    with pytest.raises(ValueError, match=rf"train.tsv is {name}; save it as UTF-8"):
        data.read_glue("sst2", "train", directory)
    (directory / "config.json").write_bytes('{"a": 1}'.encode(encoding))
    with pytest.raises(ValueError, match=rf"config.json is {name}; save it as UTF-8"):
        read_json(directory / "config.json")


def test_json_may_have_a_byte_order_mark_and_must_have_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc2\xa3"}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": "£"}
    (tmp_path / "a.json").write_bytes(b"\r\n")
    with pytest.raises(ValueError, match="a.json: the file is empty, expected a JSON object"):
        read_json(tmp_path / "a.json")


HEADER = b"index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(("content", "message"), [
    (HEADER + b"0\ta\tb\tentailment\n1\ta\tentailment\n", r"line 3: found 3 fields in '1\\ta\\tentailment', expected 4"),
    (HEADER + b"0\ta\tb\tc\tentailment\n", r"line 2: found 5 fields .* \(index, sentence1, sentence2, label\)"),
    (HEADER + b"0\ta\tb\tentailment\n\n", r"line 3: found 1 fields in '', expected 4"),
    (HEADER + b"0\ta\tb\tneutral\n", r"line 2: found label 'neutral', expected one of entailment, not_entailment"),
    (HEADER + b"0\ta\tb\t\n", r"line 2: found label '', expected one of"),
    (HEADER + b"0\ta\tb\t1\n", r"line 2: found label '1', expected one of"),
    (HEADER + b"0\ta\xffc\tb\tentailment\n", r"line 2: byte 0xff at column 4 is not UTF-8"),
    (HEADER + b"0\ta\tb\tentailment\n0\ta\0\tb\tentailment\n", r"line 3: holds a NUL character"),
    (HEADER, r"found a header and no rows"),
    (b"", r"the file is empty"),
    (b"0\ta\tb\tentailment\n", r"line 1: found the columns '0, a, b, entailment', expected one 'sentence1'"),
    (b"index\tsentence1\tsentence2\n0\ta\tb\n", r"line 1: .* expected one 'label' among them"),
    (b"label" + HEADER[5:], r"line 1: .* expected one 'label' among them"),
    (b"<!DOCTYPE html>\n", r"line 1: found the columns '<!DOCTYPE html>'"),
])
def test_a_broken_row_is_one_clear_line(write_glue, content, message):
    directory = write_glue("rte", "train", content=content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_glue("rte", "train", directory)
    assert str(error.value).startswith(str(directory / "glue" / "RTE" / "train.tsv"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cell", ["-0.1", "5.01", "nan", "inf", "five", ""])
def test_scores_have_their_range(write_glue, cell):
    directory = write_glue("stsb", "dev", "sentence1\tsentence2\tscore", "a\tb\t0", "a\tb\t2.6", f"a\tb\t{cell}")
    with pytest.raises(ValueError, match=rf"line 4: found score '{cell}', expected a number from 0 to 5"):
        data.read_glue("stsb", "dev", directory)


def test_class_ids_in_files_are_explained(write_glue):
    directory = write_glue("cola", "dev", "gj04\t1\t\tFine.", "gj04\t2\t*\tFine not.")
    with pytest.raises(ValueError, match=r"line 2: found label '2', expected one of 0, 1 \(unacceptable, acceptable\)"):
        data.read_glue("cola", "dev", directory)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="found task 'glue', expected one of cola, sst2"):
        data.read_glue("glue", "train", tmp_path)
    with pytest.raises(ValueError, match="found split 'dev' for mnli, expected one of train, dev_matched, dev_mismatched"):
        data.read_glue("mnli", "dev", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"CoLA/train.tsv is missing: put the file there, .*`python data.py cola`"):
        data.read_glue("cola", "train", tmp_path)
    with pytest.raises(ValueError, match="found split 'dev' for e2e, expected one of train, valid, test"):
        data.read_e2e("dev", tmp_path)
    with pytest.raises(ValueError, match="found text 'raw', expected 'pretokenised' or 'official'"):
        data.read_e2e("train", tmp_path, "raw")
    with pytest.raises(FileNotFoundError, match=r"e2e/train.txt is missing: put the file there"):
        data.read_e2e("train", tmp_path)


# ---------------------------------------------------------------- E2E

@pytest.mark.parametrize(("split", "count", "mrs"), [("train", 42061, 4862), ("valid", 4672, 547), ("test", 4693, 630)])
def test_both_forms_of_e2e_are_read_and_agree(real, split, count, mrs):
    ours, official = data.read_e2e(split, real), data.read_e2e(split, real, "official")
    assert len(ours) == len(official) == count
    assert len({mr for mr, _ in official}) == mrs
    assert all("".join(a.split()) == "".join(b.split()) for (_, a), (_, b) in zip(ours, official, strict=True))
    assert all(" : " in mr and "||" not in mr + reference and reference == reference.strip() for mr, reference in ours)


@pytest.mark.parametrize(("text", "content", "message"), [
    ("pretokenised", "a : b||c\na : b|c\n", r"train.txt, line 2: found 'a : b\|c', expected two texts, .* \|\| between"),
    ("pretokenised", "a||b||c\n", r"train.txt, line 1: found 'a / b / c'"),
    ("pretokenised", "a||b\na||\n", r"train.txt, line 2: found 'a / '"),
    ("pretokenised", "a||b\n\n", r"train.txt, line 2: found ''"),
    ("pretokenised", "a||b\nb||one\u2028two\n", r"train.txt, line 2: found .* no line break inside"),
    ("pretokenised", "", r"train.txt: the file is empty"),
    ("official", "mr,ref\na,b\na\n", r"trainset.csv, line 3: found 'a', expected two texts, .* a comma between"),
    ("official", "MR,Ref\na,b\n", r"trainset.csv, line 1: found the columns 'MR, Ref', expected mr, ref"),
    ("official", 'mr,ref\na,"b\nc\n', r"trainset.csv, line 3: unexpected end of data, expected CSV"),
    ("official", "mr,ref\n", r"trainset.csv: found a header and no rows"),
    ("official", "", r"trainset.csv: the file is empty"),
])
def test_a_broken_e2e_row_is_one_clear_line(tmp_path, text, content, message):
    path = tmp_path / "e2e" / ("train.txt" if text == "pretokenised" else "official/trainset.csv")
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        data.read_e2e("train", tmp_path, text)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_official_reference_is_one_line(tmp_path):
    (tmp_path / "e2e" / "official").mkdir(parents=True)
    (tmp_path / "e2e" / "official" / "devset.csv").write_bytes(b'mr,ref\r\n"name[A], area[b]","One, ""two"".\r\n  Three."\r\n')
    assert data.read_e2e("valid", tmp_path, "official") == [("name[A], area[b]", 'One, "two". Three.')]


def test_a_sample_is_context_end_reference_end(real, shared):
    tokenizer = data.load_tokenizer(shared / "data" / "hub" / "gpt2")
    theirs = hugging_face(shared / "data" / "hub" / "gpt2")
    mr, reference = data.read_e2e("test", real)[7]
    ids, context_length = data.encode_e2e(tokenizer, mr, reference)
    assert ids[:context_length] == theirs(mr)["input_ids"] + [50256]
    assert ids[context_length:] == theirs(" " + reference)["input_ids"] + [50256]


# ---------------------------------------------------------------- batches

def test_targets_are_shifted_once_and_cover_the_reference_and_its_end():
    samples = [([11, 12, 99, 21, 22, 99], 3), ([13, 99, 23, 99], 2)]
    assert [data.targets_of(*sample).tolist() for sample in samples] == [[-100, -100, 21, 22, 99], [-100, 23, 99]]


def test_batches_hold_every_index_once_and_little_padding():
    lengths = [random.Random(n).randint(5, 120) for n in range(4001)]
    batches = data.length_grouped_batches(lengths, 8, seed=3, epoch=2)
    assert sorted(index for batch in batches for index in batch) == list(range(4001))
    assert sorted(map(len, batches)) == [1] + [8] * 500
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)                                      # random batches: about 1.7
    means = [sum(lengths[index] for index in batch) / len(batch) for batch in batches]
    thirds = [sum(means[start:start + 167]) / 167 for start in (0, 167, 333)]
    assert max(thirds) < 1.3 * min(thirds)                                   # no drift from short to long


def test_batches_depend_on_seed_and_epoch_alone():
    lengths = [n % 37 for n in range(1000)]
    first = data.length_grouped_batches(lengths, 16, seed=1, epoch=0)
    assert first == data.length_grouped_batches(lengths, 16, seed=1, epoch=0)
    others = [data.length_grouped_batches(lengths, 16, seed=seed, epoch=epoch) for seed, epoch in [(1, 1), (0, 1), (11, 0)]]
    assert all(other != first for other in others)
    assert data.length_grouped_batches([], 16, seed=1, epoch=0) == []
    with pytest.raises(ValueError, match="found batch size 0"):
        data.length_grouped_batches(lengths, 0, seed=1, epoch=0)


# ---------------------------------------------------------------- finding models and tasks

@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Empty places to look in, and an error for whoever wants to download."""
    for name in ("LORA_WEIGHTS", "LORA_DATA", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(url, path, *args, **options):
        raise OSError(f"would download {path}")
    monkeypatch.setattr("files.published.download", refuse)
    return tmp_path


def make_model(directory: Path, *without: str) -> Path:
    directory.mkdir(parents=True)
    for file in {"config.json", "vocab.json", "merges.txt", "model.safetensors"} - set(without):
        (directory / file).write_text("{}")
    return directory


def test_models_are_found_where_they_are(offline, monkeypatch):
    given = make_model(offline / "mine", "vocab.json", "merges.txt")
    assert fetch_model(str(given)) == given
    snapshot = make_model(offline / "hf" / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert fetch_model("gpt2") == snapshot
    cached = make_model(offline / "cache" / "lora" / "weights" / "gpt2")
    assert fetch_model("gpt2") == cached
    monkeypatch.setenv("LORA_WEIGHTS", str(offline / "weights"))
    assert fetch_model("gpt2") == snapshot
    from_env = make_model(offline / "weights" / "gpt2")
    assert fetch_model("gpt2") == from_env
    assert fetch_model("gpt2", offline / "cache" / "lora" / "weights") == cached


def test_incomplete_and_unknown_models(offline):
    make_model(offline / "weights" / "roberta-base", "model.safetensors")
    with pytest.raises(OSError, match="would download .*weights/roberta-base/model.safetensors"):
        fetch_model("roberta-base", offline / "weights")
    with pytest.raises(FileNotFoundError, match="gpt5 is no directory with a config.json and no model to download; expected"):
        fetch_model("gpt5")


def test_tasks_are_found_or_fetched_whole(offline, monkeypatch, write_glue):
    for split in ("train", "dev_matched", "dev_mismatched"):
        write_glue("mnli", split, "x")
    assert data.fetch_task("mnli", offline) == offline
    monkeypatch.setenv("LORA_DATA", str(offline))
    assert data.fetch_task("mnli") == offline
    with pytest.raises(OSError, match=r"would download .*glue/RTE"):
        data.fetch_task("rte", text="official")                              # a word about E2E
    write_glue("rte", "train", "x")
    with pytest.raises(FileNotFoundError, match=r"RTE/dev.tsv is missing: put the file there, or move away"):
        data.fetch_task("rte")
    with pytest.raises(FileNotFoundError, match=r"trainset.csv is missing: put the file there, from the challenge's release"):
        data.fetch_task("e2e", text="official")
    (offline / "e2e" / "official").mkdir(parents=True)
    for file in data.E2E_FILES.values():
        (offline / "e2e" / "official" / file).write_text("mr,ref\n", encoding="utf-8")
    assert data.fetch_task("e2e", text="official") == offline                # SPLIT.txt are not asked for
    with pytest.raises(OSError, match=r"would download .*cache/lora/data/e2e"):
        monkeypatch.delenv("LORA_DATA")
        data.fetch_task("e2e")
    with pytest.raises(ValueError, match="found task 'snli', expected one of e2e, cola"):
        data.fetch_task("snli")


def test_the_command_prints_places_and_one_line_errors(repository, tmp_path, monkeypatch, capsys):
    given = make_model(tmp_path / "mine")
    monkeypatch.setattr(sys, "argv", ["data.py", str(given)])
    data.main()
    assert capsys.readouterr().out == f"{given}\t{given}\n"
    failed = subprocess.run([sys.executable, "data.py", "gpt5"], cwd=repository, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: gpt5 is no directory")
    assert failed.stderr.count("\n") == 1
