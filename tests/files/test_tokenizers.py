"""Tokenizers as people's folders hold them, against transformers' AutoTokenizer; and what their files say of special tokens."""
import json
import re
import shutil
from pathlib import Path

import pytest

from data import load_tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["", " ", "a", " a", "  two  spaces ", "I'll we've they'RE", "naïve Café — „quoted“ 3½", "汉字かな", "👩‍👩‍👧 🇩🇪",
         "x\u00a0y\u2028z", "line\nbreak\n\nand more", "12345,6", "The schooner [MR] is near<name>Aromi.", "[MR][MR] <name>",
         "ends in a word [M", "!" * 90]
WORDS = {"[MR]": False, "<name>": True}                                      # added later: token -> whether special


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Path]:
    """Folders with config.json, vocab.json and merges.txt alone, of either kind."""
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train([__file__], vocab_size=420, min_frequency=2, show_progress=False)
    folders = {}
    for kind, control in (("gpt2", ["<|endoftext|>"]), ("roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])):
        folder = folders[kind] = tmp_path_factory.mktemp(kind)
        learned.save_model(str(folder))
        tokens = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        tokens = [*control[:-1], *tokens, control[-1]]
        write(folder, "vocab.json", {token: number for number, token in enumerate(tokens)})
        ids = {"bos": len(tokens) - 1, "eos": len(tokens) - 1} if kind == "gpt2" else {"bos": 0, "eos": 2, "pad": 1}
        write(folder, "config.json", {"model_type": kind, "vocab_size": len(tokens) + 8} | {
            f"{role}_token_id": number for role, number in ids.items()})
    return folders


def write(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def change(folder: Path, name: str, **changes) -> None:
    """Change some keys of a JSON file, or make it."""
    write(folder, name, (read(folder, name) if (folder / name).exists() else {}) | changes)


@pytest.fixture
def copy_of(plain, tmp_path):
    def copy(kind: str) -> Path:
        return shutil.copytree(plain[kind], tmp_path / kind)
    return copy


@pytest.fixture
def saved(copy_of, tmp_path):
    """A folder as transformers 5 saves it: tokenizer.json and tokenizer_config.json, with words added after training."""
    def save(kind: str, **options) -> Path:
        theirs = transformers.AutoTokenizer.from_pretrained(str(copy_of(kind)), **options)
        theirs.add_tokens([transformers.AddedToken(word, special=special, normalized=False) for word, special in WORDS.items()],
                          special_tokens=False)
        folder = tmp_path / f"saved-{kind}"
        theirs.save_pretrained(folder)
        shutil.copyfile(tmp_path / kind / "config.json", folder / "config.json")
        assert not (folder / "vocab.json").exists() and (folder / "tokenizer.json").exists()
        return folder
    return save


def compare_with_transformers(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text, " a word") == theirs(text, " a word")["input_ids"], text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True,
                                                               clean_up_tokenization_spaces=False), text


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_tokenizer_json_alone_gives_transformers_ids(saved, kind, prefix_space):
    folder = saved(kind, add_prefix_space=prefix_space)
    assert isinstance(read(folder, "tokenizer.json")["model"]["merges"][0], list)
    compare_with_transformers(folder)
    content = read(folder, "tokenizer.json")                                 # as tokenizers wrote merges before 0.20
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    write(folder, "tokenizer.json", content)
    compare_with_transformers(folder)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_older_folders_name_added_tokens_elsewhere(copy_of, kind):
    """added_tokens.json beside vocab.json; then added_tokens_decoder, which also says what is special."""
    folder = copy_of(kind)
    compare_with_transformers(folder)
    size = len(read(folder, "vocab.json"))
    write(folder, "added_tokens.json", {"[MR]": size, "schooner": size + 1})
    ours = load_tokenizer(folder)
    assert ours.pieces("a [MR]schooner") == [*ours.pieces("a "), size, size + 1]
    assert ours.decode([size + 1]) == "schooner" and ours.decode([size]) == ""       # by its form no word
    rules = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    entries = {str(size + number): {"content": token, "special": token == "schooner"} | rules
               for number, token in enumerate(("[MR]", "schooner"))}
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": entries, "tokenizer_class": transformers_class(kind)})
    ours = load_tokenizer(folder)
    assert ours.decode([size, size + 1]) == "[MR]"
    compare_with_transformers(folder)


def transformers_class(kind: str) -> str:
    return {"gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer"}[kind]


def test_files_of_one_tokenizer_in_both_forms_have_to_agree(saved, copy_of, plain):
    folder = saved("gpt2")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(plain["gpt2"] / name, folder / name)
    compare_with_transformers(folder)
    vocab = read(folder, "vocab.json")
    write(folder, "vocab.json", vocab | {"a": vocab["b"], "b": vocab["a"]})
    with pytest.raises(ValueError, match="vocab.json and merges.txt hold one tokenizer, tokenizer.json another"):
        load_tokenizer(folder)
    for name in ("vocab.json", "merges.txt"):                                # the advice
        (folder / name).unlink()
    load_tokenizer(folder)


OTHERS = [
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "holds a WordPiece, expected a byte-level BPE"),
    ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "holds a Unigram, expected"),
    ({"model": {"byte_fallback": True}}, "its BPE has byte_fallback True, which is not supported"),
    ({"model": {"ignore_merges": True}}, "its BPE has ignore_merges True"),
    ({"model": {"end_of_word_suffix": "</w>"}}, "its BPE has end_of_word_suffix '</w>'"),
    ({"normalizer": {"type": "NFC"}}, "its normalizer NFC may change texts"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}},
     "its normalizer Sequence of NFD, Lowercase may"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer is Whitespace, expected ByteLevel alone"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}},
     "its pre_tokenizer is Sequence of Digits, ByteLevel, expected"),
    ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "its pre_tokenizer is ByteLevel, expected"),
    ({"pre_tokenizer": None}, "its pre_tokenizer is missing"),
    ({"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}},
     "its post_processor BertProcessing frames"),
    ({"model": {"merges": None}}, "tokenizer.json: not as the tokenizers library writes it"),
    ({"added_tokens": [{"id": 424}]}, "tokenizer.json: names its added tokens in no known way"),
]


@pytest.mark.parametrize(("changes", "message"), OTHERS, ids=[message[:40] for _, message in OTHERS])
def test_another_kind_of_tokenizer_is_refused_by_its_name(saved, changes, message):
    folder = saved("gpt2")
    content = read(folder, "tokenizer.json")
    for key, value in changes.items():
        content[key] = content[key] | value if key == "model" and "type" not in value else value
    write(folder, "tokenizer.json", content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_tokenizer(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_rule_for_an_added_word_is_refused(saved):
    """But for the model's own control tokens, which are not looked for: RoBERTa's <mask> takes the space before it along."""
    folder = saved("roberta")
    for word, rule in (("<mask>", "lstrip"), ("[MR]", "single_word"), ("<name>", "lstrip")):
        content = read(folder, "tokenizer.json")
        next(entry for entry in content["added_tokens"] if entry["content"] == word)[rule] = True
        write(folder, "tokenizer.json", content)
        if word == "<mask>":
            load_tokenizer(folder)
            continue
        with pytest.raises(ValueError, match=rf"the added token '{re.escape(word)}' has {rule} true, which is not supported"):
            load_tokenizer(folder)
        change(folder, "tokenizer.json", added_tokens=[entry | {rule: False} for entry in content["added_tokens"]])


def test_a_space_that_tokenizer_json_alone_puts_before_texts_is_asked_about(saved):
    """transformers' own classes ask tokenizer_config.json, its class for any tokenizer asks tokenizer.json."""
    folder = saved("gpt2", add_prefix_space=True)
    settings = read(folder, "tokenizer_config.json")
    del settings["add_prefix_space"]
    write(folder, "tokenizer_config.json", settings)
    with pytest.raises(ValueError, match="tokenizer.json says add_prefix_space True, tokenizer_config.json nothing: make"):
        load_tokenizer(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    compare_with_transformers(folder)


# ---------------------------------------------------------------- special tokens

def test_a_gpt2_may_have_robertas_tokens_in_its_vocabulary(copy_of):
    """What it is stands in config.json, as the token that ends its texts: here the vocabulary's <s> decides nothing."""
    folder = copy_of("roberta")
    change(folder, "config.json", model_type="gpt2", bos_token_id=2, eos_token_id=2)
    ours = load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id, ours.eos_ids, ours.start) == (None, 2, (2,), ())
    assert ours.encode("a b") == ours.pieces("a b")
    last = len(read(folder, "vocab.json")) - 1
    change(folder, "config.json", bos_token_id=last, eos_token_id=last)      # <mask>, of all tokens
    assert load_tokenizer(folder).eos_ids == (last,)


def test_several_tokens_may_end_a_text(copy_of):
    folder = copy_of("gpt2")
    end = read(folder, "vocab.json")["<|endoftext|>"]
    change(folder, "config.json", eos_token_id=[7, end])
    assert load_tokenizer(folder).eos_ids == (7, end)
    write(folder, "special_tokens_map.json", {"eos_token": {"content": "<|endoftext|>", "lstrip": False}})
    assert load_tokenizer(folder).eos_ids == (end, 7)
    write(folder, "generation_config.json", {"eos_token_id": [end, 9], "pad_token_id": 3})
    assert load_tokenizer(folder).eos_ids == (end, 9)


CONTRADICTIONS = [
    ("gpt2", "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizerFast"},
     "config.json says model_type 'gpt2', tokenizer_config.json says tokenizer_class 'RobertaTokenizerFast'"),
    ("gpt2", "config.json", {"tokenizer_class": "BertTokenizer"},
     "config.json: tokenizer_class is 'BertTokenizer', expected one of"),
    ("gpt2", "config.json", {"model_type": "mamba"}, "model_type is 'mamba', expected one of gpt2, roberta"),
    ("gpt2", "tokenizer_config.json", {"eos_token": "a"},
     r"config.json says eos_token_id \d+ \('<\|endoftext\|>'\), tokenizer_config.json says eos_token 'a', id \d+: make the"),
    ("gpt2", "special_tokens_map.json", {"eos_token": {"content": "a"}},
     "special_tokens_map.json says eos_token 'a', id"),
    ("gpt2", "generation_config.json", {"eos_token_id": [3, 4]},
     r"generation_config.json says eos_token_id \[3, 4\] \("),
    ("gpt2", "config.json", {"eos_token_id": True}, "config.json says eos_token_id True, but"),
    ("gpt2", "tokenizer_config.json", {"eos_token": "[END]"},
     r"tokenizer_config.json says eos_token '\[END\]', but vocab.json has no"),
    ("gpt2", "tokenizer_config.json", {"add_bos_token": True}, "add_bos_token is true, which is not supported"),
    ("gpt2", "config.json", {"vocab_size": 300}, "tokens, config.json says vocab_size 300: use the tokenizer of this"),
    ("roberta", "tokenizer_config.json", {"pad_token": "</s>"},
     r"config.json says pad_token_id 1 \('<pad>'\), tokenizer_config.json"),
    ("roberta", "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"},
     "config.json says model_type 'roberta', tokenizer_con"),
    ("roberta", "added_tokens.json", {"<mask>": 3}, r"vocab.json gives '<mask>' the id \d+, added_tokens.json 3"),
    ("roberta", "added_tokens.json", {"x1": 2}, "found an id twice"),
]


def test_what_a_gpt2_does_not_use_may_be_said_in_any_way(copy_of, capsys):
    """As in folders of people who gave their GPT-2 a token for padding, and trained with the end token in its place."""
    folder = copy_of("gpt2")
    expected = load_tokenizer(folder).eos_ids
    change(folder, "config.json", pad_token_id=expected[0], bos_token_id=3)
    change(folder, "tokenizer_config.json", pad_token="a", unk_token="[UNK]", bos_token="<|endoftext|>")
    assert load_tokenizer(folder).eos_ids == expected and capsys.readouterr().err == ""


def test_an_id_beyond_the_vocabulary_says_nothing(copy_of, capsys):
    """transformers writes 50256 into the config.json of a GPT-2 whatever its vocabulary is."""
    folder = copy_of("gpt2")
    end = load_tokenizer(folder).eos_ids
    change(folder, "config.json", eos_token_id=50256, bos_token_id=50256)
    assert load_tokenizer(folder).eos_ids == end
    assert capsys.readouterr().err.endswith("config.json: eos_token_id 50256 is no id of the 429 there are: not used\n")
    change(folder, "tokenizer_config.json", eos_token="a")
    assert load_tokenizer(folder).eos_ids == (read(folder, "vocab.json")["a"],)


@pytest.mark.parametrize(("kind", "file", "content", "message"), CONTRADICTIONS,
                         ids=[message[:60] for *_, message in CONTRADICTIONS])
def test_a_contradiction_is_refused_with_what_each_file_says(copy_of, kind, file, content, message):
    folder = copy_of(kind)
    load_tokenizer(folder)
    change(folder, file, **content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_tokenizer(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


def test_tokenizer_json_has_to_have_the_models_frame(saved):
    folder = saved("roberta")
    change(folder, "tokenizer.json", post_processor=None)
    with pytest.raises(ValueError, match="by config.json says model_type 'roberta' it is .* frames texts with nothing"):
        load_tokenizer(folder)
    names = ("<s>", "A", "</s>"), ("<s>", "A", "</s>", "</s>", "B", "</s>")
    single, pair = ([{"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": 0}} for name in form]
                    for form in names)
    change(folder, "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": single, "pair": pair})
    ours = load_tokenizer(folder)
    assert ours.encode("a")[0] == 0 and ours.encode("a")[-1] == 2
    change(folder, "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(ValueError, match="tokenizer.json says add_prefix_space False, tokenizer_config.json True: make"):
        load_tokenizer(folder)


def test_ids_beyond_the_tokenizer_have_no_text(copy_of):
    folder = copy_of("gpt2")
    ours, size = load_tokenizer(folder), len(read(folder, "vocab.json"))
    assert ours.ids_without_text(size + 3) == [size, size + 1, size + 2]     # not the end token
    write(folder, "added_tokens.json", {"[PAD]": size, "word": size + 1})
    assert load_tokenizer(folder).ids_without_text(size + 3) == [size, size + 2]
