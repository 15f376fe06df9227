"""files/wordpiece.py against transformers' BertTokenizerFast: the same files, ids and token types; and what it refuses."""
import itertools
import json
import random
import unicodedata

import pytest
import torch

import model as M
from data import GLUE_TASKS, load_tokenizer, read_glue
from files.framing import Tokenizer
from files.text import write_json

transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = (*"the ferry ##man ##s un ##able ##aff a b c ##a ##b ##c 12 ##3 - , . ! $ ^ cafe café Café naive i ##i ss ß".split(),
          *"汉 字 ##字 日 Ω ω σ ς ##σ ##ς 🚢 é e ##\u0301 – — “ 한 국 ᄒ ##ᅡ ##ᆫ ﬁ fi ² ½ \u0130 x ##x [ ] sep ¿".split())
ODD = ["", " ", "The Ferrymans, 123 $a^b!", "unaffable UNAFFABLE",
       "\t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\u180e",
       "café Cafe\u0301 CAFÉ naïve", "\u0130i\u0307I", "Σίσυφος ΣΊΣΥΦΟΣ ως Ω", "汉字a日本x", "한국 ᄒ",
       "ﬁ²½ß", "a\0b\ufffdc\x07\x1b[a\u200da\u00ad", "🚢👩\u200d👩\u200d👧 🇩🇪", "x" * 100, "x" * 101, "a\u0301" * 60,
       "a" + "\u0301" * 150, "“a–b—c”¿", "[SEP] a [MASK]b[UNK] [sep] [CLS][PAD]", "[ SEP ] [SEPa]",
       "\ue000\ufdd0\U000e0001\U0001f6a2", "क्‍ष नि", "e\u0328\u0301 \u0301e", "\U00020000\U0002b820\U0002b920\uf900",
       "a\u302eb\u0345", "don't it's  'a' (b)", "\uff21\uff0c\uff10 \u3002"]
SETTINGS = [dict(zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), values, strict=True))
            for values in itertools.product((True, False), (None, True, False), (True, False))]


def write_folder(folder, tokens=(*SPECIAL, *PIECES), **settings):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="")
    write_json({"model_type": "bert", "vocab_size": len(tokens) + 4}, folder / "config.json")
    write_json({"tokenizer_class": "BertTokenizer"} | settings, folder / "tokenizer_config.json")
    return folder


def theirs_of(folder):
    return transformers.BertTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_ids_of_odd_texts_equal_transformers(tmp_path, settings):
    folder = write_folder(tmp_path, **settings)
    ours, theirs, chance = load_tokenizer(folder), theirs_of(folder), random.Random(3)
    texts = [*ODD, *("".join(chance.choices("".join(ODD), k=12)) for _ in range(200))]
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
    known = sum(number != ours.unk_id for text in texts for number in ours.pieces(text))
    assert known > 500 and (ours.bos_id, ours.eos_id, ours.pad_id, ours.mask_id, ours.unk_id) == (2, 3, 0, 4, 1)


def test_every_kind_of_character_is_treated_as_in_the_library(tmp_path):
    """All of the first 12,288 and every 41st other. The library's tables of marks and punctuation are Unicode 8's, of 2015:
    what came later differs."""
    ours = load_tokenizer(write_folder(tmp_path))
    normalizer, cutter = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    codes = [code for code in (*range(0x3000), *range(0x3000, 0x110000, 41)) if not 0xD800 <= code < 0xE000]
    different = [code for code in codes if ours.words(f"x{chr(code)}y") != [
        word for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(f"x{chr(code)}y"))]]
    assert not [hex(code) for code in different if code < 0x600]
    assert len(different) <= 200 and len(codes) > 30_000, list(map(hex, different))
    assert all(unicodedata.category(chr(code))[0] in "MPCS" for code in different), list(map(hex, different))


@pytest.mark.parametrize("max_length", [None, 40, 9, 4, 3])
def test_pairs_and_cuts_equal_transformers(tmp_path, max_length):
    folder = write_folder(tmp_path)
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    backend = theirs.backend_tokenizer
    if max_length:
        backend.enable_truncation(max_length, strategy="longest_first")
    for first, second in itertools.product(("", "a", "the ferryman, a b c " * 3, "cafe unaffable"), repeat=2):
        assert ours.encode(first, second, max_length) == backend.encode(first, second).ids, (first, second)
        assert ours.encode(first, None, max_length) == backend.encode(first).ids
    assert bool(ours.truncated) == (max_length is not None)
    with pytest.raises(ValueError, match="max_length is 2, expected at least the 3 tokens around the texts"):
        ours.encode("a", "b", 2)


def test_token_types_come_out_of_the_ids(tmp_path):
    """The model's are the tokenizer's, for pairs and texts alone, in padded rows, and end to end."""
    folder = write_folder(tmp_path, hidden_size=8)
    theirs, ours = theirs_of(folder), load_tokenizer(folder)
    assert isinstance(ours, Tokenizer)
    embeddings = M.BertEmbeddings(M.BertConfig(vocab_size=90, hidden_size=2, sep_token_id=ours.eos_id)).eval()
    with torch.no_grad():
        embeddings.token_type_embeddings.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    pairs = [("a b", "the ferry, c"), ("a", None), ("", ""), ("the the the", ""), ("c", "c b a - c")]
    batch = [theirs.backend_tokenizer.encode(*pair) for pair in pairs]
    for row, pair in zip(batch, pairs, strict=True):
        assert row.ids == ours.encode(*pair)
    ids, types = (torch.nn.utils.rnn.pad_sequence([torch.tensor(getattr(row, name)) for row in batch], True, -1)
                  for name in ("ids", "type_ids"))
    padded, real = embeddings.token_types(ids, torch.arange(ids.shape[1])[None])[..., 0].long(), ids >= 0
    assert torch.equal(padded[real], types[real]) and types[real].any() and not types[real].all() and not real.all()
    packed, positions = ids[real], torch.cat([torch.arange(len(row.ids)) for row in batch])
    assert embeddings.token_types(packed, positions)[:, 0].long().tolist() == types[real].tolist()


def test_real_texts_equal_transformers(shared, tmp_path):
    """A sample of GLUE, with a vocabulary learned from a part of it."""
    mrpc = read_glue("mrpc", "dev", shared / "data")
    learned = tokenizers.BertWordPieceTokenizer()
    learned.train_from_iterator([example.text for example in mrpc], vocab_size=1500, show_progress=False)
    learned.save_model(str(tmp_path))
    write_json({"model_type": "bert"}, tmp_path / "config.json")
    ours, theirs, count = load_tokenizer(tmp_path), theirs_of(tmp_path), 0
    for task in ("mrpc", "rte", "cola", "stsb"):
        for example in read_glue(task, "train", shared / "data")[:500 if task in GLUE_TASKS else 0]:
            assert ours.encode(example.text, example.pair) == theirs(example.text, example.pair)["input_ids"], example
            count += 1
    assert count == 2000 and theirs.vocab_size == ours.vocab_size


def test_ids_become_words_again(tmp_path):
    ours = load_tokenizer(write_folder(tmp_path))
    assert ours.decode(ours.encode("The ferrymans!", "a-c")) == "the ferrymans! a - c"
    for text in (*ODD, "the, ferry. a !c"):
        ids = ours.encode(text, "unaffable!")
        assert ours.decode(ids) == theirs_of(tmp_path).decode(ids, skip_special_tokens=True), text
    with pytest.raises(ValueError, match="token id 99 is none of this tokenizer's ids"):
        ours.decode([99])


# ---------------------------------------------------------------- other files

def test_tokenizer_json_alone_is_the_same(tmp_path):
    folder = write_folder(tmp_path / "a", do_lower_case=False, tokenize_chinese_chars=False)
    theirs, before = theirs_of(folder), load_tokenizer(folder)
    other = tmp_path / "b"
    other.mkdir()
    theirs.backend_tokenizer.save(str(other / "tokenizer.json"))
    write_json({"model_type": "bert"}, other / "config.json")
    after = load_tokenizer(other)
    assert [after.encode(text) for text in ODD] == [before.encode(text) for text in ODD]
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))            # both together agree
    assert load_tokenizer(folder).fingerprint == before.fingerprint


def test_added_tokens_are_found_as_they_stand(tmp_path):
    folder = write_folder(tmp_path)
    theirs = theirs_of(folder)
    theirs.add_tokens([transformers.AddedToken("[MR]", normalized=False), transformers.AddedToken("[MRs]", normalized=False)])
    theirs.save_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in ("a[MR]b", "[MRs] [mr] [MR", "[MR][MR] the"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.vocab_size == len(theirs)


def test_a_folder_without_config_is_told_by_its_vocabulary(tmp_path):
    folder = write_folder(tmp_path)
    expected = load_tokenizer(folder).encode("the ferry")
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert load_tokenizer(folder).encode("the ferry") == expected == [2, 5, 6, 3]


@pytest.mark.parametrize("change, message", [
    (lambda folder: write_json({"tokenizer_class": "XLNetTokenizer"}, folder / "tokenizer_config.json"),
     "tokenizer_class is 'XLNetTokenizer', expected BertTokenizer"),
    (lambda folder: write_json({"do_lower_case": "no"}, folder / "tokenizer_config.json"),
     "do_lower_case is 'no', expected true or false"),
    (lambda folder: write_json({"added_tokens_decoder": {len(PIECES) + 5: {"content": "word", "normalized": True}}},
                               folder / "tokenizer_config.json"), "added token 'word' has normalized true, which is not supp"),
    (lambda folder: (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}})),
     "found type 'BPE', expected 'WordPiece', as a BERT's tokenizer has it")])
def test_what_computes_otherwise_is_refused(tmp_path, change, message):
    folder = write_folder(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
