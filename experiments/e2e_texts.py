"""What was read and judged by hand: LoRA's texts (e2e_small.py, seed 1) of 50 test records, and how long all of its texts are.
They are evenly spread, as the test set is in the order of names. Numbers stand for the records, since E2E is not ours to keep.

    python -m experiments.e2e_small texts        prints them beside their records, writes results/e2e-small/texts.json

`wrong` is what a text says otherwise than its record, `missing` what of the record it leaves out; null: not read yet.
They are filled in by hand, and kept as long as the text is the same. Left out: judging style.
"""
from pathlib import Path

from eval_metrics import evaluate
from experiments.kept_runs import finished
from experiments.tables import markdown, wrapped
from files.text import read_json, write_json
from metrics.texts import read_pair

READ, LABEL, SEED = 50, "LoRA", 1


def write_texts(plan: dict, records: list[str], out: Path, path: Path) -> None:
    """records: of the test set, in the order in which they were decoded. Raises FileNotFoundError where LoRA has not ended."""
    row = next(row for row in plan["rows"] if row["label"] == LABEL)
    metrics = finished(out, row, SEED)
    if metrics is None:
        raise FileNotFoundError(f"{out}: {LABEL}, seed {SEED}, has not ended here; run `python -m experiments.e2e_small "
                                "runs` first")
    references, texts = read_pair(metrics.parent / "references.txt", metrics.parent / "predictions.txt")
    before = {(entry["number"], entry["text"]): entry for entry in (read_json(path)["texts"] if path.exists() else [])}
    pairs, count, entries = list(zip(records, texts, strict=True)), min(READ, len(texts)), []
    for index in (step * len(pairs) // count for step in range(count)):
        record, text = pairs[index]
        entries.append(before.get((index + 1, text), {"number": index + 1, "text": text, "wrong": None, "missing": None}))
        print(f"{index + 1}: {record}\n    {text}")
    ratio = evaluate(references, texts, metrics=("BLEU",)).details["length_ratio"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"command": f"{row['command']} --seed {SEED}", "all_texts": len(texts), "length_ratio": ratio, "texts": entries},
               path)


def texts_section(path: Path) -> list[str]:
    """Of the page: how many texts are wrong, the length ratio, and the texts. Empty where there is no file."""
    if not path.exists():
        return []
    found = read_json(path)
    read = [entry for entry in found["texts"] if entry["wrong"] is not None]
    wrong, missing = (sum(bool(entry[what]) for entry in read) for what in ("wrong", "missing"))
    return ["## What it writes", "", *wrapped(
        f"{LABEL}, seed {SEED}. Of {len(found['texts'])} texts, evenly spread over the test set, "
        f"{len(read)} were judged by hand, by one reader: {wrong} say something that is not in the record "
        f"or contradicts it, {missing} leave something out. All {found['all_texts']} texts together have "
        f"{found['length_ratio']:.3f} times the words of the references that are nearest in length. "
        "Records are numbered in the order in which the test set has them first. "
        "`python -m experiments.e2e_small texts`"), "",
        *markdown(["record", "text", "wrong", "missing"], [
            [str(entry["number"]), entry["text"], entry["wrong"] or "", entry["missing"] or ""]
            for entry in found["texts"]]), ""]
