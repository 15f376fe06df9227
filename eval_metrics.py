"""The scores of the paper's tables: the five of the E2E NLG Challenge, and those of the GLUE tasks.

    python eval_metrics.py REFS HYPS                     # prints BLEU, NIST, METEOR, ROUGE-L, CIDEr
    python eval_metrics.py REFS HYPS --json FILE --per-segment FILE --variant perl

The files have the challenge's format. HYPS holds one hypothesis a line; an empty line is an empty hypothesis. REFS
holds the references of each hypothesis on consecutive lines and an empty line after each such group; a file without
any empty line holds one reference per hypothesis.

What the five measure and how is in nlg_metrics.py and meteor.py. Three of them read texts that the tokenizer in
ptb_tokenizer.py has been over; BLEU and NIST bring their own. Here stand the files, the command, `score`, which puts
it all together, and the GLUE scores (paper, table 2). Left out: the challenge's .tsv and .csv input.
"""
import argparse
import gc
import json
import math
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import meteor
import nlg_metrics
import ptb_tokenizer
from files import cli
from files.cache import kept_lines
from nlg_metrics import VARIANTS
from ptb_tokenizer import ptb_words

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")

# ---------------------------------------------------------------- the five NLG scores


@dataclass
class Evaluation:
    """`system`: metric -> score of the whole set; `rows`: the same and more for every instance; `details`: BLEU's
    length ratio and brevity penalty."""
    system: dict[str, float] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, scores: nlg_metrics.Scores | meteor.MeteorScores) -> None:
        self.system[name] = scores.system
        self.add_column(name, scores.segments)

    def add_column(self, name: str, values: Sequence) -> None:
        for row, value in zip(self.rows, values, strict=True):
            row[name] = value


def score(references: list[list[str]], hypotheses: list[str], metrics: Sequence[str] | None = None,
          variant: str = "python") -> dict[str, float]:
    """The chosen metrics (None: all) of a set, at full precision: {"BLEU": .., "NIST": .., "METEOR": .., ...}.

    references[i] are the references of hypotheses[i]. `variant` chooses between the two official BLEUs and NISTs. See
    `evaluate` for what is raised and what is warned of.
    """
    return evaluate(references, hypotheses, metrics, variant).system


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
    with ThreadPoolExecutor(1) as background:
        if {"METEOR", "ROUGE_L", "CIDEr"} & chosen:
            reference_words, hypothesis_words = ptb_words_of_set(references, hypotheses)
            result.add_column("ptb_hyp", hypothesis_words)
            result.add_column("ptb_refs", reference_words)
        if "METEOR" in chosen:
            finish_meteor = meteor.begin(reference_words, hypothesis_words, background)
        if {"BLEU", "NIST"} & chosen:
            add_bleu_and_nist(result, references, hypotheses, chosen, variant)
        if "ROUGE_L" in chosen:
            result.add("ROUGE_L", nlg_metrics.rouge_l(reference_words, hypothesis_words))
        if "CIDEr" in chosen:
            result.add("CIDEr", nlg_metrics.cider(reference_words, hypothesis_words))
        if "METEOR" in chosen:
            scores = finish_meteor()
            result.add("METEOR", scores)
            result.add_column("meteor_stats", scores.statistics)
    warn_of_degenerate_input(hypotheses, chosen)
    if metrics is None and "METEOR" not in chosen:
        result.system["METEOR"] = math.nan
    result.system = {name: result.system[name] for name in METRICS if name in result.system}
    return result


def checked_texts(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[str]], list[str]]:
    """The texts without white space at their ends, as the files are read."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses but references for {len(references)}: give one list of "
                         "references per hypothesis")
    if not hypotheses:
        raise ValueError("no hypotheses: there is nothing to score")
    for i, (texts, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        if not texts or isinstance(texts, str):
            raise ValueError(f"references[{i}] is {texts!r}: expected a list of at least one reference")
        for text in (hypothesis, *texts):
            if LINE_BREAK.search(text.strip()):
                raise ValueError(f"instance {i}: a line break inside {text!r}: give every text as one line")
    return [[text.strip() for text in texts] for texts in references], [text.strip() for text in hypotheses]


def checked_names(metrics: Sequence[str] | None, variant: str) -> set[str]:
    """The metrics to compute: those asked for, or all that this installation can."""
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}: choose from {' '.join(METRICS)}")
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose from {' '.join(VARIANTS)}")
    chosen = set(METRICS if metrics is None else metrics)
    if "METEOR" in chosen:
        try:
            meteor.load_lexicon()
        except FileNotFoundError as missing:
            if metrics is not None:
                raise
            warnings.warn(f"METEOR left out: {missing}", stacklevel=3)
            chosen.remove("METEOR")
    return chosen


def ptb_words_of_set(references: list[list[str]], hypotheses: list[str]) -> tuple[list[list[str]], list[str]]:
    """All references are tokenised as one text, and all hypotheses, since the tokenizer looks across line ends.

    The tokens of the references are kept on disk, since one test set scores many systems.
    """
    lines = iter(kept_lines([text for texts in references for text in texts],
                            [Path(ptb_tokenizer.__file__).read_bytes()], ptb_words))
    return [[next(lines) for _ in texts] for texts in references], ptb_words(hypotheses)


def add_bleu_and_nist(result: Evaluation, references: list[list[str]], hypotheses: list[str], chosen: set[str],
                      variant: str) -> None:
    """Both from the same counts, with a warning where the original has no NIST."""
    shared = nlg_metrics.overlaps(references, hypotheses, variant)
    if "BLEU" in chosen:
        scores = nlg_metrics.bleu(shared, variant)
        result.add("BLEU", scores)
        result.details = scores.details
        if variant == "python":
            result.add_column("sentBLEU", [nlg_metrics.sentence_bleu(overlap) for overlap in shared])
    if "NIST" in chosen:
        result.add("NIST", nlg_metrics.nist(shared, variant))
        empty_orders = nlg_metrics.orders_without_room(shared, variant)
        if empty_orders:
            orders = " and ".join(f"{n}-grams" for n in empty_orders)
            warnings.warn(f"NIST: the hypotheses have no room for {orders}, which add nothing to the score; the "
                          "original divides by zero here", stacklevel=3)


def warn_of_degenerate_input(hypotheses: list[str], chosen: set[str]) -> None:
    """Of what has a score that may surprise: empty hypotheses, and CIDEr of one instance."""
    empty = [i for i, text in enumerate(hypotheses) if not text]
    if empty:
        warnings.warn(f"{len(empty)} of {len(hypotheses)} hypotheses are empty, the first is number {empty[0] + 1}: "
                      "they are scored as such", stacklevel=3)
    if "CIDEr" in chosen and len(hypotheses) == 1:
        warnings.warn("CIDEr of a single instance is 0: its weights compare the instances of a set", stacklevel=3)


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
    if task in ("mrpc", "qqp"):
        scores["f1"] = f1_of_positives(predictions, labels)
    return scores


def f1_of_positives(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """2 TP / (2 TP + FP + FN) of class 1; 0 where class 1 is neither predicted nor there."""
    both = sum(p == label == 1 for p, label in zip(predictions, labels, strict=True))
    positives = sum(p == 1 for p in predictions) + sum(label == 1 for label in labels)
    return 2 * both / positives if positives else 0.0


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Σ (x - mean)(y - mean) / sqrt( Σ (x - mean)² Σ (y - mean)² ); Matthews' correlation where x and y are 0 or 1."""
    if min(x) == max(x) or min(y) == max(y):
        return 0.0
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    x_square, y_square = math.fsum((a - x_mean) ** 2 for a in x), math.fsum((b - y_mean) ** 2 for b in y)
    return covariance / (math.sqrt(x_square) * math.sqrt(y_square))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest value; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    for _, group in groupby(enumerate(order, start=1), key=lambda place: values[place[1]]):
        group = list(group)
        for _, index in group:
            result[index] = (group[0][0] + group[-1][0]) / 2
    return result


# ---------------------------------------------------------------- the files

LINE_END = re.compile("\r\n|\n|\r")
LINE_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")           # whatever str.splitlines breaks at


def read_pair(references_path: str | Path, hypotheses_path: str | Path) -> tuple[list[list[str]], list[str]]:
    """References and hypotheses that belong together, without white space at their ends.

    An empty line of the hypotheses is an empty hypothesis. Raises OSError, or ValueError that names file and line, such
    as the line on which one file lacks what the other has.
    """
    hypotheses = read_texts(Path(hypotheses_path))
    groups = read_groups(Path(references_path), len(hypotheses))
    if len(groups) > len(hypotheses):
        raise ValueError(f"{references_path}, line {groups[len(hypotheses)][0]}: here begin the references of instance "
                         f"{len(hypotheses) + 1} of {len(groups)}, but {hypotheses_path} has {len(hypotheses)} lines")
    if len(hypotheses) > len(groups):
        raise ValueError(f"{hypotheses_path}, line {len(groups) + 1}: no references for this hypothesis, {references_path} "
                         f"has {len(groups)} groups for {len(hypotheses)} lines")
    return [texts for _, texts in groups], hypotheses


def write_references(groups: list[list[str]], path: str | Path) -> None:
    """Write references in the scorer's format, an empty line after each group; ValueError for texts it cannot hold."""
    for i, texts in enumerate(groups):
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"instance {i + 1} has no reference or an empty one: an empty line ends a group")
    write_lines([line for texts in groups for line in (*texts, "")], path)


def write_hypotheses(lines: list[str], path: str | Path) -> None:
    """Write one hypothesis per line; ValueError if one contains a line break."""
    write_lines(lines, path)


def write_lines(lines: list[str], path: str | Path) -> None:
    """One text a line; ValueError for a text that contains a line break."""
    for line in lines:
        if LINE_BREAK.search(line):
            raise ValueError(f"a line break inside {line!r}: the scorer's format holds one text per line")
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def read_texts(path: Path) -> list[str]:
    """Every line without white space at its ends; a line break within one, as Python sees it, is an error."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[:error.start].decode("utf-8"))) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8") \
            from None
    if not text:
        raise ValueError(f"{path}, line 1: the file is empty, expected one text per line")
    lines = LINE_END.split(text)
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        strange = LINE_BREAK.search(line)
        if strange:
            raise ValueError(f"{path}, line {number}: contains U+{ord(strange[0]):04X}, which the official scorer takes "
                             "for a line end: replace it by a space")
    return [line.strip() for line in lines]


def read_groups(path: Path, instances: int) -> list[tuple[int, list[str]]]:
    """(line number of the first reference, references) of every instance.

    Empty lines separate the groups. A file of one group has one reference per instance, unless there is one instance
    only. A second empty line in a row would be an instance without references: an error.
    """
    lines = read_texts(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path}, line 1: the file holds empty lines only, expected references")
    groups: list[tuple[int, list[str]]] = [(1, [])]
    for number, line in enumerate(lines, start=1):
        if line:
            groups[-1][1].append(line)
        elif not groups[-1][1]:
            raise ValueError(f"{path}, line {number}: an instance without references, expected at least one reference "
                             "before the empty line that ends a group")
        else:
            groups.append((number + 1, []))
    if len(groups) == 1 and instances != 1:
        return [(number, [line]) for number, line in enumerate(lines, start=1)]
    return groups


# ---------------------------------------------------------------- the command

def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval_metrics.py", description="Score generated texts as the E2E NLG Challenge does.")
    parser.add_argument("references", metavar="REFS", help="references, an empty line after each instance's group")
    parser.add_argument("hypotheses", metavar="HYPS", help="one hypothesis per line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores at full precision")
    parser.add_argument("--per-segment", type=Path, metavar="FILE", help="write a JSON list with a row per instance")
    parser.add_argument("--variant", choices=VARIANTS, default="python",
                        help="whose BLEU and NIST: python, the scorer's -p, as in the LoRA paper (default), or perl, "
                             "mteval-v13a, as the challenge published")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="default: all")
    options = parser.parse_args(arguments)
    # a tenth of the time went into looking for reference cycles among a million objects, and there are none
    gc.disable()
    references, hypotheses = read_pair(options.references, options.hypotheses)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate(references, hypotheses, options.metrics, options.variant)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print_scores(result, options.variant)
    if options.json:
        report = {
            "system": {name: None if math.isnan(value) else value for name, value in result.system.items()},
            "variant": options.variant, "instances": len(hypotheses), "references": sum(map(len, references)),
            **result.details,
        }
        if options.per_segment:
            report["segments"] = result.rows
        write_report([json.dumps(report, ensure_ascii=False, indent=1)], options.json)
    if options.per_segment:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in result.rows)
        write_report(["[", rows, "]"], options.per_segment)
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


def write_report(lines: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    cli.run(main)
