"""more_models/gguf.py against the gguf package and transformers' own reader; and what it says of damaged files."""
import json
import random
import re
import struct

import numpy as np
import pytest
import torch

import data
import model as M
from files.vocabulary import byte_alphabet
from files.weights import read_safetensors
from more_models.gguf import convert, dequantise, read_header
from tests.fuzz import Kind, damage_bytes, fuzz, require

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

RARE = [char for char, byte in byte_alphabet().items() if byte in (4, 6, 0xC0, 0xFF)]     # that SmolLM2's vocabulary lacks
MERGES = ["a b", "Ġ ab", "ab c", "1 2", "t h", "Ġ Ġ"]
TOKENS = ["<|endoftext|>", "<|im_end|>", *(char for char in byte_alphabet() if char not in RARE), *(
    merge.replace(" ", "") for merge in MERGES), "[MR]"]
C, HEADS, SHARED, INNER, BLOCKS = 64, 4, 2, 96, 2
SHAPES = {"attn_norm": (C,), "ffn_norm": (C,), "attn_q": (C, C), "attn_k": (C // 2, C), "attn_v": (C // 2, C),
          "attn_output": (C, C), "ffn_gate": (INNER, C), "ffn_up": (INNER, C), "ffn_down": (C, INNER)}
FORMATS = ("F32", "F16", "Q8_0", "Q4_1")
METADATA = {"block_count": BLOCKS, "context_length": 32, "embedding_length": C, "feed_forward_length": INNER,
            "attention.head_count": HEADS, "attention.head_count_kv": SHARED, "rope.dimension_count": C // HEADS}


def write_gguf(path, tied=True, change=lambda writer: None, **formats):
    """A small Llama whose matrices are stored in turn in the four formats, as llama.cpp has them."""
    writer, generator = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    for key, value in METADATA.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 100000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 3), 4])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(0)
    writer.add_array("general.languages", ["en"])
    change(writer)
    shapes = {"token_embd": (len(TOKENS), C), "output_norm": (C,)} | ({} if tied else {"output": (len(TOKENS), C)}) | {
        f"blk.{block}.{name}": shape for block in range(BLOCKS) for name, shape in SHAPES.items()}
    for number, (name, shape) in enumerate(shapes.items()):
        in_turn = "F32" if len(shape) == 1 else FORMATS[number % 4]
        kind = gguf.GGMLQuantizationType[formats.get(name.rpartition(".")[2], in_turn)]
        tensor = generator.normal(0, 0.2, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_their_reader(path):
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
            for tensor in gguf.GGUFReader(path).tensors}


def read(path):
    _, stored, content = read_header(path)
    return {name: dequantise(tensor, content).numpy() for name, tensor in stored.items()}


# ---------------------------------------------------------------- against other readers

def test_every_format_is_read_as_by_the_gguf_package(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    found, expected = read(path), by_their_reader(path)
    assert found.keys() == expected.keys() and {tensor.format for tensor in read_header(path)[1].values()} == {0, 1, 3, 8}
    for name in expected:
        assert found[name].dtype == np.float32 and np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_computes_what_transformers_reads_from_the_file(tmp_path, tied):
    path = write_gguf(tmp_path / "a.gguf", tied)
    convert(path, tmp_path / "out")
    ours, ids = M.load_pretrained(tmp_path / "out"), torch.randint(5, len(TOKENS), (2, 11))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    of_folder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert ours.config.tie_word_embeddings == tied and ours.config.rope_theta == 100_000
    with torch.inference_mode():
        for other in (theirs, of_folder):
            torch.testing.assert_close(ours(ids), other(ids).logits, atol=1e-4, rtol=1e-4)


ODD = ["", "ab 12 abc", "12", " 1", "1  2 ", "  \t 9\n\n3", "the th 12ab", "½ ²³ Ⅷ 5", "x\u00a07", "日本 2024年 😀",
       "don't 1's", "\r\n 1"]


def test_texts_are_cut_as_by_transformers(tmp_path):
    """By the tokenizer of the file, which sets digits apart: "12" is two tokens though there is a merge for them."""
    convert(write_gguf(tmp_path / "a.gguf"), tmp_path / "out")
    ours, theirs = data.load_tokenizer(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chance = random.Random(0)
    for text in [*ODD, *("".join(chance.choices("ab c12½\n\t'st.é", k=12)) for _ in range(300))]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text
    assert (ours.eos_ids, ours.eos_id, len(ours.encode("[MR]"))) == ((1,), 1, 1)
    assert ours.ids_without_text(len(TOKENS)) == [0]                         # control tokens; 1 ends a text
    with pytest.raises(ValueError, match=r"text 'a\\x04b' holds '\\x04', which this tokenizer has no token for: take it out"):
        ours.encode("a\x04b")


def test_e2es_texts_are_cut_as_by_transformers(tmp_path, shared):
    convert(write_gguf(tmp_path / "a.gguf"), tmp_path / "out")
    ours, theirs = data.load_tokenizer(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = sorted({text for pair in data.read_e2e("test", shared / "data") for text in pair})
    assert [ours.encode(text) for text in texts] == theirs(texts)["input_ids"]


def test_a_folder_is_complete_when_it_has_a_config(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    assert re.fullmatch(r"wrote \S+out: 20 tensors \(F16, F32, Q4_1, Q8_0\) as fp32, [\d,]+ parameters, 261 tokens",
                        convert(path, tmp_path / "out"))
    with pytest.raises(ValueError, match="holds a model already: give another folder"):
        convert(path, tmp_path / "out")
    assert read_safetensors(tmp_path / "out" / "model.safetensors").keys() == {
        name for name, _ in M.load_pretrained(tmp_path / "out").named_parameters()}


# ---------------------------------------------------------------- what is refused

def put(key, value):
    """Another value under a key of the metadata."""
    return lambda writer: setattr(writer.kv_data[0][key], "value", value)


CHANGES = {
    "architecture": (put("general.architecture", "qwen2"), "architecture is 'qwen2'"),
    "scaled positions": (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), "scaling.type is 'yarn', this model"),
    "partial positions": (put("llama.rope.dimension_count", 8), "count is 8, expected 16"),
    "sentence pieces": (put("tokenizer.ggml.model", "llama"), "tokenizer is 'llama'"),
    "another cut": (put("tokenizer.ggml.pre", "llama-bpe"), "texts as 'llama-bpe'"),
    "a first token": (lambda w: w.add_bool("tokenizer.ggml.add_bos_token", True), "add_bos_token is true, which is not"),
    "no such end": (put("tokenizer.ggml.eos_token_id", 999), "is '999', expected an id"),
    "a string": (lambda w: w.add_string("general.alignment", "32"), "general.alignment is '32', expected a value of type int"),
    "merges": (put("tokenizer.ggml.merges", [*MERGES, "x yz"]), "merge 7: 'yz' is neither"),
    "shapes": (put("llama.feed_forward_length", 64), r"\(64, 96\), the metadata ask for"),
    "blocks": (put("llama.block_count", 3), "layers.2.*has shape None, the metadata ask"),
    "heads": (put("llama.attention.head_count_kv", 3), "3 key-value heads cannot serve 4"),
    "other tensors": (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "'rope_freqs.weight' is none of"),
    "not finite": (lambda w: w.add_tensor("output.weight", np.full((len(TOKENS), C), np.nan, np.float32)),
                   "'lm_head.weight' holds")}


@pytest.mark.parametrize("fault", CHANGES)
def test_another_model_is_refused_by_what_it_has(tmp_path, fault):
    change, message = CHANGES[fault]
    path = write_gguf(tmp_path / "a.gguf", change=change)
    with pytest.raises(ValueError, match=message) as refusal:
        convert(path, tmp_path / "out")
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_other_formats_are_refused_by_their_names(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", attn_q="Q5_0")
    with pytest.raises(ValueError, match="'blk.0.attn_q.weight' is stored as Q5_0, this reader knows F32, F16, Q4_1, Q8_0: t"):
        read_header(path)


def at(number, code, value):
    """The header's number at this place, changed."""
    return lambda content: content[:number] + struct.pack(code, value) + content[number + struct.calcsize(code):]


DAMAGED = {"empty": (lambda content: b"", "0 bytes, not a GGUF file"),
           "magic": (lambda content: b"GGJT" + content[4:], "not a GGUF"),
           "version": (at(4, "<I", 1), "version 1, expected 2 or 3"), "big-endian": (at(4, ">I", 3), "little-endian"),
           "many tensors": (at(8, "<Q", 2**60), "tensors and .* values in its header"),
           "many values": (at(16, "<Q", 2**40), "values in its header"),
           "one value more": (lambda content: at(16, "<Q", content[16] + 1)(content), "truncated or damaged"),
           "long key": (at(24, "<Q", 2**62), f"a key of the metadata needs {2**62} bytes"),
           "cut": (lambda content: content[:-40], "but its header describes"),
           "longer": (lambda content: content + bytes(64), "but its header describes"),
           "header cut": (lambda content: content[:2000], "truncated or damaged"),
           "pointer": (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS's pointer")}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, fault):
    path, (damage, message) = write_gguf(tmp_path / "a.gguf"), DAMAGED[fault]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as refusal:
        read_header(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def gguf_kind(folder):
    """Damaged by bytes, or at the header's counts, types and offsets; what loads has to be what the gguf package reads."""
    path = write_gguf(folder / "a.gguf")
    header = path.read_bytes().index(b"output_norm.weight") + 1500           # counts, metadata, table of tensors

    def damage(content, chance):
        if chance.random() < 0.4:
            return damage_bytes(content, chance)
        place, size = chance.randrange(header), chance.choice((1, 4, 8))
        value = chance.choice((0, 1, 2, 2**31, 2**63, 2**64 - 1, chance.randrange(300))) % 2 ** (8 * size)
        return content[:place] + value.to_bytes(size, "little") + content[place + size:]

    def load():
        out = folder / f"out{len(list(folder.iterdir()))}"
        convert(path, out)
        tokenizer = data.load_tokenizer(out)
        require(tokenizer.decode(tokenizer.encode("ab 12")) == "ab 12", "the text does not come back")
        found, expected = read(path), by_their_reader(path)
        require(found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found),
                "other numbers")
        require(json.loads((out / "config.json").read_text())["vocab_size"] == len(TOKENS), "another vocabulary")
    return Kind([path], damage, load)


def test_damaged_gguf_files_are_refused_or_load_as_they_say(tmp_path, record_property):
    report = fuzz(gguf_kind(tmp_path), 60, seed=20)
    assert not report.findings, "\n".join(report.findings[:5])
    assert report.refused > 10 and report.loaded > 0
    for name, value in {"kind": "GGUF", "times": 60, "refused": report.refused, "loaded": report.loaded}.items():
        record_property(name, value)
