"""The F1 of classes, averaged: what is reported of labels that are not GLUE's.
Left out: GLUE's own scores (eval_metrics.py).
"""
from collections.abc import Sequence


def macro_f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """The mean of every class's F1 = 2 TP / (2 TP + FP + FN), over the classes that are predicted or stand in `labels`."""
    classes, pairs = sorted({*predictions, *labels}), list(zip(predictions, labels, strict=True))
    hits = {name: sum(p == label == name for p, label in pairs) for name in classes}
    return sum(2 * hits[name] / (list(predictions).count(name) + list(labels).count(name)) for name in classes) / len(classes)
