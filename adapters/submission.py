"""The answers to GLUE's test sets, whose labels are hidden, in the form that gluebenchmark.com takes: one file per test set.

    index<TAB>prediction      a header, then a row for every row of the test set, in its order and with its index

A prediction is spelled as the task's own files spell labels: by name in MNLI, AX, QNLI and RTE, by number in the others; a
score of STS-B is brought into 0 to 5. AX, the diagnostic set, is answered by the adapter of MNLI.
Left out: packing the files into the zip that is uploaded; a submission wants all eleven.
"""
import sys
from pathlib import Path

from tqdm import tqdm

from adapters.answers import WINDOW, Predictor
from adapters.requests import Request
from data import GLUE_TASKS, GlueTask, fetch_task
from files.glue_forms import read_table
from files.published import GLUE_SERVER, place, require_file
from files.text import shorten
from files.writing import written_whole

DIAGNOSTIC = "diagnostic/diagnostic.tsv"                                     # where GLUE's own download script puts AX.tsv
MNLI_FILES = {"MNLI/test_matched.tsv": "MNLI-m.tsv", "MNLI/test_mismatched.tsv": "MNLI-mm.tsv", DIAGNOSTIC: "AX.tsv"}


def write_submission(predictor: Predictor, data_dir: str | None, directory: Path) -> list[Path]:
    """Answer the test sets of all tasks that the bank's adapters have, each with its adapter, and write their files into
    `directory`, which are returned. All test sets are read before the first is answered. data_dir: as for data.fetch_task.
    Raises ValueError for no adapter or two of one task, for a base that is a GPT-2, and like read_test."""
    adapter_of: dict[str, str] = {}
    for name, task in predictor.reader.tasks.items():
        if task not in GLUE_TASKS:
            raise ValueError(f"the adapter '{name}' is of {task}, which is no task of GLUE: leave it out")
        if task in adapter_of:
            raise ValueError(f"the adapters '{adapter_of[task]}' and '{name}' are both of {task}: leave one out")
        adapter_of[task] = name
    if not adapter_of:
        raise ValueError("no adapter for a task of GLUE; expected --model with a RoBERTa or BERT and --adapter NAME=DIR")
    sets = [(task, file, read_requests(predictor, adapter_of[task], path))
            for task in adapter_of for path, file in test_files(task, data_dir).items()]
    directory.mkdir(parents=True, exist_ok=True)
    written, size = [], WINDOW * predictor.batch_size
    for task, file, (indices, requests) in sets:
        answers = []
        for start in tqdm(range(0, len(requests), size), desc=file, leave=False, disable=None):
            answers += predictor.answer(requests[start:start + size])
        rows = [f"{index}\t{spelled(GLUE_TASKS[task], answer)}\n" for index, answer in zip(indices, answers, strict=True)]
        with written_whole(directory / file) as out:
            out.write(("index\tprediction\n" + "".join(rows)).encode())
        written.append(directory / file)
    return written


def test_files(task: str, data_dir: str | None) -> dict[Path, str]:
    """The task's test sets, fetched if its folder does not exist -> the files of their answers. Raises FileNotFoundError for
    one that is missing; of the diagnostic set, which comes apart from MNLI, a line on stderr says so."""
    glue = place(data_dir, "data") / "glue"
    if not (glue / GLUE_TASKS[task].folder).is_dir():
        fetch_task(task, data_dir)
    folder = GLUE_TASKS[task].folder
    files = MNLI_FILES if task == "mnli" else {f"{folder}/test.tsv": f"{folder}.tsv"}
    found = {glue / path: file for path, file in files.items() if path != DIAGNOSTIC or (glue / path).is_file()}
    if len(found) < len(files):
        print(f"{glue / DIAGNOSTIC} is missing: AX.tsv is not written; put {GLUE_SERVER}/AX.tsv there for it", file=sys.stderr)
    return {require_file(path, task): file for path, file in found.items()}


def read_requests(predictor: Predictor, name: str, path: Path) -> tuple[list[str], list[Request]]:
    """The index of every row of a test set, and what it asks adapter `name`. The index is the column of this name, QQP's `id`,
    the Hub's `idx` or, as in MRPC's original file, which has none, the number of the row from 0. Labels, where there are any,
    are not read. What is longer than the model's input is cut as in training, for every row needs an answer, and a line on
    stderr counts it. Raises ValueError with file and line for a malformed row and an index that stands twice."""
    glue = GLUE_TASKS[predictor.reader.tasks[name]]
    texts, (columns, rows) = glue.texts, read_table(path, glue.texts, glue.label, ())
    tokenizer, longest = predictor.tokenizer, predictor.bank.model.config.longest_input
    for column in texts:
        if columns.count(column) != 1:
            raise ValueError(f"{path}, line 1: found the columns {shorten(', '.join(columns))}, expected one '{column}' among "
                             "them; is this GLUE's file?")
    index_column = next((column for column in ("index", "id", "idx") if column in columns), None)
    cut_before, requests = tokenizer.truncated, {}
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        index = row[index_column] if index_column else str(len(requests))
        if not (index.isascii() and index.isdigit()) or index in requests:
            raise ValueError(f"{path}, line {number}: found the {index_column} {shorten(index)}, expected a number of its own "
                             "for each row; fetch the file again")
        requests[index] = Request(name, tokenizer.encode(*(row[column] for column in texts), max_length=longest), {})
    if cut := tokenizer.truncated - cut_before:
        print(f"{path}: {cut:,} of {len(requests):,} rows are longer than {longest} tokens, cut there", file=sys.stderr)
    return list(requests), list(requests.values())


def spelled(glue: GlueTask, answer: dict) -> str:
    """An answer of Predictor as the leaderboard wants it."""
    if glue.labels is None:
        return f"{min(max(answer['score'], 0.0), 5.0):.4f}"
    return answer["label"] if glue.spelled_out else str(glue.labels.index(answer["label"]))
