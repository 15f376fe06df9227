"""The recipes of training/recipes.py as a table, to be read beside the paper's Tables 9 and 11 and the authors' scripts.

    python -m experiments.recipes          prints it

Left out: what a run that was given options used; its config.json says that.
"""
import argparse
from dataclasses import asdict, replace

from files import cli
from model import GPT2Config, RobertaConfig
from training.recipes import METHOD_CHANGES, TABLE_9_TASKS, recipe_for

MNLI_START = ("mrpc", "rte", "stsb")                                        # appendix D.1: started from MNLI's adapter


def recipe_table() -> str:
    """Every recipe in Markdown: LoRA's of each task, paper / scripts where they disagree, then the other methods'."""
    base = RobertaConfig()
    large = replace(base, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    lines = ["LoRA, paper / authors' scripts where they disagree (`--recipe paper` or `repo`; each number is an option, or "
             "a field of training/recipes.py)."]
    models = {"GPT-2": (GPT2Config(), ("e2e",)), "RoBERTa base": (base, TABLE_9_TASKS), "RoBERTa large": (large, TABLE_9_TASKS)}
    for model, (config, tasks) in models.items():
        columns = {task: lora_cells(config, task) for task in tasks}
        fixed = [name for name, shown in columns[tasks[0]].items() if all(cells[name] == shown for cells in columns.values())]
        varied = [name for name in columns[tasks[0]] if name not in fixed]
        lines += [f"\n**{model}**, {', '.join(tasks)}: "
                  + "; ".join(f"{name} {columns[tasks[0]][name]}" for name in fixed)]
        if varied:
            lines += [f"\n| task | {' | '.join(varied)} |", "|" + "---|" * (len(varied) + 1)]
            lines += [f"| {task} | {' | '.join(columns[task][name] for name in varied)} |" for task in tasks]
    lines += ["\n**The other methods**: what differs from LoRA's recipe.\n",
              "| model | method | lr | batch_size | epochs | rank | source |", "|" + "---|" * 7]
    for (kind, method), row in METHOD_CHANGES.items():
        cells = [f"{row[key]:g}" if key in row else "–" for key in ("lr", "batch_size", "epochs", "rank")]
        lines.append(f"| {kind} | {method} | {' | '.join(cells)} | {row['source']} |")
    return "\n".join(lines)


def lora_cells(config: GPT2Config | RobertaConfig, task: str) -> dict[str, str]:
    """Name -> shown value of every setting that the task has, both columns in one where they disagree."""
    without = ("source", "max_length") if task == "e2e" else ("source", "label_smoothing", "beam_size", "length_penalty")
    paper, repo = (asdict(recipe_for(config, task, "lora", column)) for column in ("paper", "repo"))
    cells = {}
    for name in paper:
        shown = [f"{value:g}" if isinstance(value, float) else "the model's" if value is None else str(value)
                 for value in (paper[name], repo[name])]
        if name not in without:
            cells[name] = " / ".join(dict.fromkeys(shown))
    return cells | {"start": "`--init-adapter` of MNLI" if task in MNLI_START else "the base"}


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="experiments.recipes", description="Print every recipe as a Markdown table."
                            ).parse_args(arguments)
    print(recipe_table())
    return 0


if __name__ == "__main__":
    cli.run(main)
