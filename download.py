"""Fetch models and data over HTTP so that no half or wrong file ever stands under its final name.

A file arrives as NAME.part, is continued where it broke off, compared with the size and hash that the server or the
tables below promise, and only then renamed. Everything comes from its public home: base models from the Hugging Face
hub (or the mirror HF_ENDPOINT), GLUE from its own server, E2E in the authors' form from their repository.

Left out: parallel transfers, cookies, archives other than GLUE's zips. Imports nothing of the project.
"""
import errno
import hashlib
import http.client
import lzma
import os
import re
import shutil
import ssl
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

MODELS = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
          "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl",
          "roberta-base": "FacebookAI/roberta-base", "roberta-large": "FacebookAI/roberta-large"}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

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

TIMEOUT = 20                                                                 # seconds without a byte
PAUSES = (1, 2, 4, 8)                                                        # seconds before each retry without progress
BROKEN = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # worth another try


# ---------------------------------------------------------------- one file

class ShowRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args, **kwargs):
        return None                                                          # makes the redirect itself the answer


def request(url: str, headers: dict[str, str], token: str | None) -> tuple[http.client.HTTPResponse | HTTPError, str]:
    """The answer after all redirects, whatever its status, and the ETag that the first host gave for the file.

    Redirects are followed by hand: the hub names the hash of a large file only on its redirect to a content server,
    and the token is for the hub alone.
    """
    home, etag = urlsplit(url)[:2], ""
    for _ in range(8):
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url}: expected an address that starts with https:// (or http://)")
        at_home = urlsplit(url)[:2] == home                                  # scheme and host
        authorization = {"Authorization": f"Bearer {token}"} if token and at_home else {}
        try:
            response = build_opener(ShowRedirects).open(Request(url, headers=headers | authorization), timeout=TIMEOUT)
        except HTTPError as error:
            response = error
        if at_home:
            etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or etag
        if response.status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
            return response, etag.removeprefix("W/").strip('"')
        response.close()
        url = urljoin(url, response.headers["Location"])
    raise OSError(f"{url}: redirected in a circle; check the address and HF_ENDPOINT")


def check_answer(response: http.client.HTTPResponse | HTTPError, url: str, path: Path) -> None:
    """Raise what the user can act on, or ConnectionError where the same request may succeed later."""
    advice = f"or put the file at {path} yourself"
    if response.status in (401, 403):
        raise PermissionError(f"{url}: access refused (HTTP {response.status}); set HF_TOKEN to a token that may read "
                              f"it, {advice}")
    if response.status in (404, 410):
        raise FileNotFoundError(f"{url}: the server has no such file (HTTP {response.status}); check the name and "
                                f"HF_ENDPOINT, {advice}")
    if response.status not in (200, 206, 416):
        raise ConnectionError(f"HTTP {response.status}")
    if response.status != 416 and response.headers.get_content_type() == "text/html":
        raise web_page(url, path)


def web_page(url: str, path: Path) -> ValueError:
    return ValueError(f"{url}: found a web page instead of {path.name}; a login page or proxy may stand in between: open the "
                      f"address in a browser, or put the file at {path} yourself")


def transfer(url: str, part: Path, path: Path, token: str | None, hashed: bool) -> str:
    """Bring `part` up to its full length, going on from the bytes it has; return the server's ETag.

    hashed: a hash will tell whether it is whole; else the server must say how long it is.
    """
    have = part.stat().st_size if part.exists() else 0
    response, etag = request(url, {"Range": f"bytes={have}-"} if have else {}, token)
    with response:
        check_answer(response, url, path)
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 and content_range == f"bytes */{have}":
            return etag                                                      # nothing was missing but the renaming
        if response.status == 416 or (response.status == 206 and not content_range.startswith(f"bytes {have}-")):
            part.unlink()
            raise ConnectionError(f"the server cannot continue at byte {have}")
        start = have if response.status == 206 else 0
        total = None if response.length is None else start + response.length
        if total is None and not response.chunked and not hashed:
            raise OSError(f"{url}: the server does not say how long {path.name} is, so a part could pass for the whole; put "
                          f"the file at {path} yourself")
        with part.open("ab" if start else "wb") as file, tqdm(desc=path.name, total=total, initial=start, unit="B",
                                                              unit_scale=True, disable=None) as bar:
            while chunk := response.read1(1 << 18):
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise OSError(f"{part}: {error.strerror}; make room and run again, the download goes on where it "
                                  "stopped") from None
                bar.update(len(chunk))
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")
    return etag


def git_blob(size: int):
    """The hash by which git, and so the hub, names a small file: SHA-1 of a header and the content."""
    return hashlib.sha1(f"blob {size}\0".encode())


def check_hash(part: Path, expected: str) -> bool:
    """Whether the file has this SHA-256 (64 digits) or git blob SHA-1 (40 digits). Other tags say nothing: true."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return True
    digest = hashlib.sha256() if len(expected) == 64 else git_blob(part.stat().st_size)
    with part.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == expected


def starts_as_html(part: Path) -> bool:
    """Whether it is a web page, whatever type the server gave it."""
    with part.open("rb") as file:
        return file.read(200).lstrip().lower().startswith((b"<!doctype html", b"<html"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time produce `path`; the others wait here and find it done. The system frees the lock of a
    process that dies. Its file is removed once `path` is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w", encoding="utf-8") as file:
        lock_file(file, wait=True)
        yield
    if path.exists():
        lock.unlink(missing_ok=True)


def lock_file(file: IO, wait: bool) -> bool:
    """Lock an open file for this process until it is closed or the process ends; False if another has it and we do not
    wait."""
    try:
        if sys.platform == "win32":
            import msvcrt
            file.seek(1 << 30)                                               # nobody can read a byte that is locked there
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            raise
        return False
    return True


def download(url: str, path: Path, sha256: str | None = None, from_hub: bool = False) -> None:
    """Fetch url to path, unless it is there. Checked against sha256, or against the hub's ETag (from_hub).

    A connection that breaks is tried again after 1, 2, 4 and 8 seconds, and goes on where it broke; each gain starts
    the count anew. Raises OSError or ValueError that say what to do; `path` then does not exist.
    """
    token = os.environ.get("HF_TOKEN") if from_hub else None
    part = path.with_name(path.name + ".part")
    with locked(path):
        failures, reached = 0, False
        while not path.exists():
            before = part.stat().st_size if part.exists() else 0
            try:
                etag = transfer(url, part, path, token, hashed=sha256 is not None)
            except BROKEN as error:
                now = part.stat().st_size if part.exists() else 0
                reached = reached or not isinstance(error, URLError)
                failures = 1 if now > before else failures + 1
                if failures > len(PAUSES) or not reached:
                    reason = " ".join(str(getattr(error, "reason", error)).split())
                    raise OSError(f"{path} is missing and cannot be fetched from {url} ({reason}): connect to the "
                                  "network, or put the file there yourself; `make demo` needs neither") from None
                time.sleep(PAUSES[failures - 1])
                continue
            if starts_as_html(part):
                part.unlink()
                raise web_page(url, path)
            expected = sha256 or (etag if from_hub else "")
            if check_hash(part, expected):
                os.replace(part, path)
            else:
                part.unlink()
                if not before:                                               # else the old part was of another version
                    raise ValueError(f"{url}: the content does not have the hash {expected} that was expected; nothing "
                                     f"was kept: try again later, or put the file at {path} yourself")


# ---------------------------------------------------------------- models and tasks

def missing_model_files(directory: Path) -> list[str]:
    """What a model directory lacks; config.json comes last, so that a directory with one is complete."""
    weights = [] if any((directory / file).is_file() for file in WEIGHT_FILES) else ["model.safetensors"]
    return weights + [file for file in ("vocab.json", "merges.txt", "config.json") if not (directory / file).is_file()]


def fetch_model(name: str, directory: Path) -> None:
    """Fetch the missing files of one of MODELS from the hub, or from the mirror HF_ENDPOINT."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    for file in missing_model_files(directory):
        download(f"{endpoint}/{MODELS[name]}/resolve/main/{file}", directory / file, from_hub=True)


def fetch_task_folder(folder: Path, files: list[str]) -> None:
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
    is_dev = ["\t".join(pair.split("\t")[1:3]) + "\n" in dev_ids for pair in pairs]
    splits = {"train": [header] + [pair for pair, dev in zip(pairs, is_dev, strict=True) if not dev],
              "dev": [header] + [pair for pair, dev in zip(pairs, is_dev, strict=True) if dev],
              "test": rows("msr_paraphrase_test.txt")}
    for split, lines in splits.items():
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")
    for file in (*MRPC_SOURCES, MRPC_DEV_IDS[0]):
        (folder / file).unlink()


def extract(archive: Path, folder: str, files: list[str]) -> None:
    """Unpack FOLDER/FILE of a zip beside it. Only the names asked for are read, so no other path can be written."""
    try:
        with zipfile.ZipFile(archive) as members:
            for file in files:
                with members.open(f"{folder}/{file}") as source, (archive.parent / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, KeyError, RuntimeError, EOFError,
            OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):           # a full disk, not the archive
            raise OSError(f"{archive.parent}: {error.strerror}; make room and run again") from None
        raise ValueError(f"{archive}: not the archive of {folder} ({error}); delete it and fetch it again") from None
