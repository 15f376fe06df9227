"""Drawn LoraConfigs of PEFT, B and what else trains at random, saved by PEFT: loaded here, the logits are PEFT's, or a line
names the setting that is not computed. Drawn from a seed; more of them:

    LORA_DRAWN_CONFIGS=200 python -m pytest tests/adapters/test_drawn_configs.py -s          # prints what became of them
"""
import os
import random
import warnings
from collections import Counter

import pytest
import torch
from conftest import REPOSITORY
from test_lora import as_theirs, make_base, theirs, tokens

from adapters import load_adapter

peft = pytest.importorskip("peft")

SEED, COUNT = 19, int(os.environ.get("LORA_DRAWN_CONFIGS", 40))
ENCODER = {"layers": ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                      "intermediate.dense", "output.dense"],
           "ends": ["query", "key", "value", "dense"], "saved": ["word_embeddings", "position_embeddings", "LayerNorm"],
           "outside": ["word_embeddings"]}
NAMES = {"gpt2": {"blocks": "transformer.h", "layers": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
                  "ends": ["c_attn", "c_proj", "c_fc"], "saved": ["wte", "lm_head", "ln_f", "ln_1", "wpe"],
                  "outside": ["wte", "lm_head"]},
         "roberta": {"blocks": "roberta.encoder.layer"} | ENCODER, "bert": {"blocks": "bert.encoder.layer"} | ENCODER}


def draw(rng: random.Random) -> tuple[str, dict, list[str]]:
    """A family, options of LoraConfig, and the names of those that may be refused."""
    kind, refusable = rng.choice(("gpt2", "roberta", "bert")), []
    blocks, layers, ends, saved, outer = (NAMES[kind][part] for part in ("blocks", "layers", "ends", "saved", "outside"))
    options = {"r": rng.choice((2, 4, 6)), "lora_alpha": rng.choice((1, 3, 8.5, 16)), "fan_in_fan_out": kind == "gpt2",
               "task_type": "CAUSAL_LM" if kind == "gpt2" else "SEQ_CLS", "lora_dropout": rng.choice((0.0, 0.1)),
               "use_rslora": rng.random() < 0.3, "bias": rng.choice(("none", "none", "lora_only", "all")),
               "init_lora_weights": rng.choice((True, True, True, False, "gaussian", "orthogonal", "mica"))}

    def names(some: list[str], most: int) -> list[str]:
        return rng.sample(some, rng.randint(1, min(most, len(some))))

    form = rng.choice(("ends", "ends", "paths", "names", "regex", "all-linear"))
    options["target_modules"] = {
        "ends": names(ends, 3), "paths": names(layers, 4), "all-linear": "all-linear",
        "names": names([f"{blocks}.{index}.{layer}" for index in (0, 1) for layer in layers], 5),
        "regex": rf".*\.[{rng.choice(('0', '1', '01'))}]\.({'|'.join(names(layers, 3))})"}[form]
    if form in ("ends", "paths") and rng.random() < 0.4:
        options["layers_to_transform"] = rng.choice(([0], [1], [0, 1], 1, 0))
        options["layers_pattern"] = rng.choice((None, blocks.rpartition(".")[2]))
    if rng.random() < 0.3:
        options["exclude_modules"] = rng.choice((names(layers, 2), names(ends, 1), rf".*\.{rng.choice('01')}\..*"))
    for pattern, values in (("rank_pattern", (1, 3, 5, 8)), ("alpha_pattern", (2, 5.5, 12))):
        if rng.random() < 0.4:
            keys = [*ends, *layers, *(f"{blocks}.1.{layer}" for layer in layers),
                    rf"^{blocks}.0.{layers[0]}", rf".*\.[01]\.{layers[-1]}", rf"(?:{layers[0]}|{layers[1]})"]
            options[pattern] = {key: rng.choice(values) for key in names(keys, 3)}
    if rng.random() < 0.2:
        options["modules_to_save"] = names(saved, 2)
        refusable.append("modules_to_save")
    variant = rng.choice((("use_dora", True), ("lora_bias", True), ("trainable_token_indices", [3, 5]),
                          ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("target_modules", None)))
    if rng.random() < 0.15:
        refusable.append(variant[0])
        outside = names(outer, 2)
        if variant[0] != "target_modules":
            options |= dict([variant])
        elif isinstance(options["target_modules"], list):
            options["target_modules"] = options["target_modules"] + outside
    return kind, options, refusable


def trained_by_peft(kind: str, options: dict, seed: int, changes_saved: bool):
    """A PEFT model in which B, biases and head are not as they started; modules_to_save only where changes_saved."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(theirs(kind), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            of_head = "classifier." in name
            if "lora_A" not in name and parameter.requires_grad and (of_head or changes_saved or "modules_to_save" not in name):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif "lora_A" in name and options.get("init_lora_weights") == "mica":
                parameter.normal_(0, 0.1)
    return model.eval()


@pytest.mark.filterwarnings("ignore")
def test_drawn_adapters_of_peft_equal_peft_or_name_the_setting(tmp_path, capsys):
    rng, became, number = random.Random(SEED), Counter(), 0
    while number < COUNT:
        kind, options, refusable = draw(rng)
        changes_saved = rng.random() < 0.5
        folder = tmp_path / str(number)
        try:
            other = trained_by_peft(kind, options, number, changes_saved)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other.save_pretrained(folder)
        except (ValueError, TypeError):                                      # PEFT itself refuses: nothing is left to adapt
            became["drawn again, refused by PEFT"] += 1
            continue
        number += 1
        if any("pooler" in name and "lora_" in name for name, _ in other.named_parameters()):
            refusable.append("target_modules")                               # a BERT's pooler is of the head here
        try:
            other = peft.PeftModel.from_pretrained(theirs(kind), folder).eval()
        except RuntimeError:                                                 # PEFT sorts patterns, the first to fit counts
            refusable.append("rank_pattern")
        except KeyError:                                                     # nor does it read embeddings that it saved twice
            assert {"modules_to_save", "trainable_token_indices"} <= {*refusable}
        try:
            ours = load_adapter(make_base(kind), folder)
        except ValueError as error:
            named = [name for name in refusable if name in str(error)]
            assert named and "\n" not in str(error), f"{number} {kind} {error} {options}"
            became[f"refused: {named[0]}"] += 1
            continue
        with torch.inference_mode():
            expected, found = other(**as_theirs(kind, tokens(kind))).logits, ours(tokens(kind))
        assert "rank_pattern" not in refusable, f"{number} {kind} {options}"
        difference = (found - expected).abs().max().item()
        assert difference < 1e-5, f"{number} {kind} {difference} {options}"
        assert (expected - make_base(kind)(tokens(kind))).abs().max() > 1e-3, f"{number} {kind} {options}"
        became["equal"] += 1
    with capsys.disabled():
        print(f"\nseed {SEED}, {COUNT} drawn: {', '.join(f'{what} {count}' for what, count in sorted(became.items()))}")
    assert became["equal"] > COUNT / 2
    if (SEED, COUNT) == (19, 200):
        page = " ".join((REPOSITORY / "docs" / "adapters.md").read_text(encoding="utf-8").split())
        assert f"{became['equal']} gave PEFT's logits" in page and f"{COUNT - became['equal']} were refused" in page
