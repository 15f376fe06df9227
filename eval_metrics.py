"""The scores of the paper's tables: the five of the E2E NLG Challenge, and those of the GLUE tasks.

    python eval_metrics.py REFS HYPS                     # prints BLEU, NIST, METEOR, ROUGE-L, CIDEr
    python eval_metrics.py REFS HYPS --json FILE --per-segment FILE --variant perl

The five ask how much of a hypothesis (what the system wrote) is found in one or more references (what people wrote for
the same input). They differ in what they count and how they weigh it:

    BLEU     n-grams, all alike; precision of orders 1-4, punished when too short
    NIST     n-grams, rare ones weigh more; precision of orders 1-5, punished when too short
    METEOR   an alignment of words by form, stem, synonym and paraphrase; precision, recall and order
    ROUGE-L  the longest common subsequence; precision and recall
    CIDEr    n-grams as a TF-IDF vector; cosine with each reference's vector, orders 1-4

The LoRA paper (section 5.4, table 3) reports them as the challenge's scorer computes them, which deviates in details from
the papers it cites. So does metrics/, to be comparable, and names each deviation where it happens. BLEU and NIST find the
words themselves; the other three read what metrics/ptb_tokenizer.py makes of the texts. Left out: the files, which
metrics/texts.py reads and writes, and tests of significance.
"""
import gc
import json
import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from files import cli
from files.text import finite
from metrics import Scores
from metrics.bleu_nist import VARIANTS, bleu, nist, overlaps
from metrics.meteor import meteor
from metrics.meteor_resources import load_lexicon
from metrics.ptb_tokenizer import ptb_words, ptb_words_of_groups
from metrics.rouge_cider import cider, rouge_l
from metrics.texts import checked_texts, read_pair

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")

# ---------------------------------------------------------------- the five NLG scores

def score(references: list[list[str]], hypotheses: list[str], metrics: Sequence[str] | None = None,
          variant: str = "python") -> dict[str, float]:
    """The chosen metrics (None: all) of a set, at full precision: {"BLEU": .., "NIST": .., "METEOR": .., ...}.
    references[i] are those of hypotheses[i]. variant: whose BLEU and NIST, python or perl. Raises and warns like `evaluate`."""
    return evaluate(references, hypotheses, metrics, variant).system


@dataclass
class Evaluation:
    """A set's scores by name, a row of the same and more for every instance, BLEU's length ratio and brevity penalty."""
    rows: list[dict]
    system: dict[str, float] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, scores: Scores) -> None:
        self.system[name] = scores.system
        self.details |= scores.details
        self.add_columns({name: scores.segments, **scores.columns})

    def add_columns(self, columns: dict[str, Sequence]) -> None:
        for name, values in columns.items():
            for row, value in zip(self.rows, values, strict=True):
                row[name] = value


def evaluate(references: list[list[str]], hypotheses: list[str], metrics: Sequence[str] | None = None,
             variant: str = "python") -> Evaluation:
    """The chosen metrics of a set and of every instance alone.

    Raises ValueError for numbers that do not fit, an instance without references, a line break inside a text, an
    unknown name or a damaged paraphrase table. Where METEOR's word lists are missing it raises FileNotFoundError if
    METEOR was asked for; with metrics=None it warns, and METEOR is NaN. Empty and short hypotheses, for which the
    original divides by zero, have a score and a warning.
    """
    references, hypotheses = checked_texts(references, hypotheses)
    chosen = checked_names(metrics, variant)
    result = Evaluation(rows=[{"n_refs": len(texts)} for texts in references])
    with ThreadPoolExecutor(1) as background:                                # METEOR, which takes longest, beside the others
        if {"METEOR", "ROUGE_L", "CIDEr"} & chosen:
            reference_words, hypothesis_words = ptb_words_of_groups(references), ptb_words(hypotheses)
            result.add_columns({"ptb_hyp": hypothesis_words, "ptb_refs": reference_words})
        if "METEOR" in chosen:
            meteor_scores = background.submit(meteor, reference_words, hypothesis_words)
        if {"BLEU", "NIST"} & chosen:
            shared = overlaps(references, hypotheses, variant)
        if "BLEU" in chosen:
            result.add("BLEU", bleu(shared, variant))
        if "NIST" in chosen:
            result.add("NIST", nist(shared, variant))
        if "ROUGE_L" in chosen:
            result.add("ROUGE_L", rouge_l(reference_words, hypothesis_words))
        if "CIDEr" in chosen:
            result.add("CIDEr", cider(reference_words, hypothesis_words))
        if "METEOR" in chosen:
            result.add("METEOR", meteor_scores.result())
    result.system = {name: result.system.get(name, math.nan) for name in METRICS if metrics is None or name in chosen}
    return result


def checked_names(metrics: Sequence[str] | None, variant: str) -> set[str]:
    """The metrics to compute: those asked for, or all that this installation can."""
    for kind, names, known in (("metric", metrics or (), METRICS), ("variant", [variant], VARIANTS)):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}: choose from {' '.join(known)}")
    chosen = set(METRICS if metrics is None else metrics)
    if "METEOR" in chosen:
        try:
            load_lexicon()
        except FileNotFoundError as missing:
            if metrics is not None:
                raise
            warnings.warn(f"METEOR left out: {missing}", stacklevel=3)
            chosen.remove("METEOR")
    return chosen


# ---------------------------------------------------------------- the GLUE scores

def glue_scores(task: str, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """The scores of a GLUE task (Wang et al. 2019, table 1), from 0 to 1; the first is the one in the LoRA paper's table 2.

    predictions and labels are class ids, or numbers for "stsb". A correlation with a side that never varies is not
    defined; like the GLUE benchmark's own code for Matthews, it is 0 here: nothing was found out about the labels.
    Raises ValueError for numbers that do not fit.
    """
    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels: expected as many, and at least one")
    if task == "stsb":
        return {"pearson": pearson(predictions, labels), "spearman": pearson(ranks(predictions), ranks(labels))}
    if task == "cola":                                                       # for 0 and 1 the two correlations are one
        return {"matthews": pearson(predictions, labels)}
    scores = {"accuracy": sum(p == label for p, label in zip(predictions, labels, strict=True)) / len(labels)}
    if task in ("mrpc", "qqp"):                                              # F1 = 2 TP / (2 TP + FP + FN) of class 1
        both = sum(p == label == 1 for p, label in zip(predictions, labels, strict=True))
        positives = [*predictions, *labels].count(1)
        scores["f1"] = 2 * both / positives if positives else 0.0
    return scores


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Σ (x - mean)(y - mean) / sqrt( Σ (x - mean)² Σ (y - mean)² ); Matthews' correlation where x and y are 0 or 1."""
    return statistics.correlation(x, y) if min(x) < max(x) and min(y) < max(y) else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest value; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places].tolist()


# ---------------------------------------------------------------- the command

def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser("eval_metrics.py", "REFS HYPS [options]", "Score generated texts as the E2E NLG Challenge does.")
    parser.add_argument("references", metavar="REFS", help="references, an empty line after each instance's group")
    parser.add_argument("hypotheses", metavar="HYPS", help="one hypothesis per line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores at full precision")
    parser.add_argument("--per-segment", type=Path, metavar="FILE", help="write a JSON list with a row per instance")
    parser.add_argument("--variant", choices=VARIANTS, default="python",
                        help="whose BLEU and NIST: python, the scorer's -p, as in the LoRA paper (default), or perl, "
                             "mteval-v13a, as the challenge published")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=f"of {' '.join(METRICS)} (default: all)")
    options = parser.parse_args(arguments)
    gc.disable()                                             # there are no reference cycles; looking for them took a tenth
    references, hypotheses = read_pair(options.references, options.hypotheses)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate(references, hypotheses, options.metrics, options.variant)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print_scores(result, options.variant)
    reports = {}
    if options.json:
        report = {"system": result.system, "variant": options.variant, "instances": len(hypotheses),
                  "references": sum(map(len, references)), **result.details,
                  **({"segments": result.rows} if options.per_segment else {})}
        reports[options.json] = json.dumps(finite(report), ensure_ascii=False, indent=1)
    if options.per_segment:
        rows = (json.dumps(finite(row), ensure_ascii=False) for row in result.rows)
        reports[options.per_segment] = "[\n" + ",\n".join(rows) + "\n]"
    for path, text in reports.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    return 0


def print_scores(result: Evaluation, variant: str) -> None:
    """A line for each metric: its name, its score, and beside BLEU and NIST whose they are."""
    official = {"python": "python variant (the official scorer's -p)", "perl": "perl variant (mteval-v13a)"}[variant]
    remarks = {"NIST": official}
    if result.details:
        remarks["BLEU"] = (f"{official}; length ratio {result.details['length_ratio']:.4f}, "
                           f"brevity penalty {result.details['brevity_penalty']:.4f}")
    for name, value in result.system.items():
        figure = "missing" if math.isnan(value) else f"{value:.4f}"
        print(f"{name + ':':8} {figure}  {remarks.get(name, '')}".rstrip())


if __name__ == "__main__":
    cli.run(main)
