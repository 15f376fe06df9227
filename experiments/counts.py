"""How many parameters each method trains: by the formulas of section 5.1, as Tables 2 and 3 print it, and as built.

    python -m experiments.counts        prints the table

Left out: counts of a model at hand (methods/apply.py, `parameter_counts`).
"""
import argparse

import torch

from files import cli
from methods.apply import LAST_LAYERS, apply_method, parameter_counts
from model import FAMILIES, GPT2Config, RobertaConfig

EMBEDDINGS = ("vocab_size", "n_positions", "max_position_embeddings", "type_vocab_size")         # rows, by the config's names


def formula_counts(config: GPT2Config | RobertaConfig, method: str, rank: int = 0,
                   targets: tuple[str, ...] = ("q", "v")) -> dict[str, int]:
    """"trainable" and "head" of parameter_counts from the configuration alone; |Theta| of section 5.1 where that has one.

    LoRA 2 L_LoRA d r for square matrices; adapters L_Adpt (2 d r + r + d) + 2 L_LN d; prefix L d P.
    """
    d, L, labels = config.hidden_size, config.num_layers, getattr(config, "num_labels", None)
    layers = {target.path: target.shape for target in config.targets.values()}.values()          # (d_out, d_in) of a block
    biases = sum(d_out for d_out, _ in layers) + 2 * d                       # and those of two LayerNorms
    block = sum(d_out * d_in for d_out, d_in in layers) + biases + 2 * d
    trainable = {
        "full": sum(getattr(config, name, 0) for name in EMBEDDINGS) * d + L * block + 2 * d,    # one LayerNorm more
        "last-layers": LAST_LAYERS * block,
        "bitfit": L * biases + d,
        "adapter-h": 2 * L * (2 * d * rank + rank + d),
        "adapter-l": L * (2 * d * rank + rank + d) + 2 * L * d,
        "prefix": L * d * rank,
        "head": 0,
    }
    if method == "lora":
        adapted = [config.targets[name] for name in targets]
        trainable["lora"] = L * rank * sum(d_in + len(range(d_out)[rows]) for _, (d_out, d_in), rows in adapted)
    return {"trainable": trainable[method], "head": 0 if labels is None else d * d + d + (d + 1) * labels}


SIZES = {"GPT-2 S": GPT2Config(), "GPT-2 M": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
         "GPT-2 L": GPT2Config(n_embd=1280, n_layer=36, n_head=20), "RoBERTa base": RobertaConfig(),
         "RoBERTa large": RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                                        intermediate_size=4096)}
PRINTED = [                                                                  # model, method, rank, what Tables 2 and 3 print
    ("GPT-2 S", "full", 0, "–"), ("GPT-2 S", "lora", 4, "–"),
    ("GPT-2 M", "full", 0, "354.92M"), ("GPT-2 M", "last-layers", 0, "25.19M"), ("GPT-2 M", "adapter-l", 6, "0.37M"),
    ("GPT-2 M", "adapter-l", 224, "11.09M"), ("GPT-2 M", "adapter-h", 112, "11.09M"), ("GPT-2 M", "prefix", 5, "0.35M"),
    ("GPT-2 M", "lora", 4, "0.35M"), ("GPT-2 L", "full", 0, "774.03M"), ("GPT-2 L", "adapter-l", 8, "0.88M"),
    ("GPT-2 L", "adapter-l", 248, "23.00M"), ("GPT-2 L", "prefix", 5, "0.77M"), ("GPT-2 L", "lora", 4, "0.77M"),
    ("RoBERTa base", "full", 0, "125.0M"), ("RoBERTa base", "bitfit", 0, "0.1M"), ("RoBERTa base", "lora", 8, "0.3M"),
    ("RoBERTa large", "full", 0, "355.0M"), ("RoBERTa large", "lora", 8, "0.8M")]


def counts_table() -> str:
    """The paper's counts beside the formulas' and those of the built models, in Markdown.

    What the paper prints for LoRA and PreLayer on GPT-2 is 0.1 % of the model, a label that Li and Liang 2021 gave their
    prefix of 5 tokens, not a count.
    """
    lines = ["| model | method | paper | formula | built | with the head |", "|---|---|---|---|---|---|"]
    for name, method, rank, printed in PRINTED:
        config = SIZES[name]
        with torch.device("meta"):                                           # shapes without memory
            model = next(family for family in FAMILIES.values() if isinstance(config, family.config_class))(config)
        apply_method(model, method, rank, alpha=1.0)
        formula, built = formula_counts(config, method, rank), parameter_counts(model)
        lines.append(f"| {name} | {method}{f' {rank}' if rank else ''} | {printed} | {formula['trainable']:,} | "
                     f"{built['trainable']:,} | {built['trainable'] + built['head']:,} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="experiments.counts", description="Print how many parameters each method trains: as the paper "
                            "prints it, by formula, and in the built model.").parse_args(arguments)
    print(counts_table())
    return 0


if __name__ == "__main__":
    cli.run(main)
