"""A base's classification head, made to fit a task: its rows stand in the order of the task's classes, by their names.

config.json names the classes of a head in id2label and label2id. Names are compared without case, spaces and signs, so that
NOT-ENTAILMENT is not_entailment; LABEL_0 is no name. A head for another number of classes is left out.
Left out: heads of other forms than the model's.
"""
import re
from collections.abc import Sequence
from pathlib import Path

from files.text import read_json


def fit_head(tensors: dict, head: str, of_task: str, wanted: int | Sequence[str] | None, directory: Path) -> str:
    """Leave out of `tensors`, by name, a head that does not fit, or put its rows in order; returns what was done, for the line
    that says what was loaded. head: the prefix of its tensors. of_task: of those that go where it does not fit; a BERT's pooler
    stays. wanted: how many classes, or their names; None: as it is.
    Raises ValueError for names of other classes."""
    rows = tensors.get(f"{head}out_proj.weight")
    own = [name for name in tensors if name.startswith(of_task)]
    if wanted is None or not own or (rows is None and f"{head}dense.weight" in own):     # the last is a damaged one
        return ""
    count, said = (wanted, "") if isinstance(wanted, int) else (len(wanted), f" ({', '.join(wanted)})")
    if rows is None or rows.shape[:1] != (count,):
        for name in own:
            del tensors[name]
        found = f"is of another form ({own[0]})" if rows is None else f"has {rows.shape[0] if rows.dim() else 1} labels"
        return f"; its head {found}, expected {count}{said}, dropped"
    if isinstance(wanted, int):
        return ""
    names = class_names(directory / "config.json", count)
    if not names:
        return f"; config.json does not name its head's classes: they are taken for {', '.join(wanted)}, in this order"
    order = rows_in_order(names, wanted, directory / "config.json")
    if order == list(range(count)):
        return ""
    for name in (f"{head}out_proj.weight", f"{head}out_proj.bias"):
        if name in tensors:
            tensors[name] = tensors[name][order]
    return f"; its head's classes {', '.join(names)} put in the order {', '.join(wanted)}"


def class_names(config: Path, count: int) -> list[str]:
    """The names of a head's classes in the order of its rows, [] where they have none.
    Raises ValueError for names of another number of classes, of some of them alone, and where id2label and label2id differ."""
    content, names = read_json(config), {}
    for key in ("id2label", "label2id"):
        table = content.get(key) or {}
        if not isinstance(table, dict):
            raise ValueError(f"{config}: {key} is {str(table)[:60]!r}, expected a table of the head's classes")
        pairs = [(label, row) for row, label in table.items()] if key == "id2label" else table.items()
        for name, row in pairs:
            if not str(row).isdecimal() or int(row) >= count:
                raise ValueError(f"{config}: {key} has a class {row!r}, the head has {count} rows: use the config and the "
                                 "weights of one model")
            if not re.fullmatch(r"(LABEL_)?\d+", str(name)) and names.setdefault(int(row), name) != name:
                raise ValueError(f"{config}: id2label says that class {row} is {names[int(row)]!r}, label2id says {name!r}: "
                                 "make the two agree")
    if names and len(names) < count:
        raise ValueError(f"{config}: names {len(names)} of {count} classes ({', '.join(map(str, names.values()))}): name all "
                         "or none")
    return [str(names[row]) for row in sorted(names)]


def rows_in_order(names: Sequence[str], wanted: Sequence[str], config: Path) -> list[int]:
    """The row of each wanted class. Raises ValueError where the names are not those of the wanted classes."""
    places = {plain(name): row for row, name in enumerate(names)}
    for name in names:
        if plain(name) not in map(plain, wanted) or len(places) < len(names):
            raise ValueError(f"{config}: the head's classes are {', '.join(names)}, this task's are {', '.join(wanted)}: give "
                             "them these names in id2label and label2id if they mean the same, or take a base without a head")
    return [places[plain(name)] for name in wanted]


def plain(name: str) -> str:
    """A class name without case, spaces and signs; "non" is "not"."""
    return re.sub("^non", "not", re.sub(r"[^a-z0-9]", "", name.lower()))
