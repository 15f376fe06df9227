"""download.py and published.py against a real HTTP server on loopback that misbehaves in every way the net has shown."""
import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data
from files import bases, download, published
from files.published import fetch_model

CONTENT = bytes(range(256)) * 4000                                           # 1,024,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Calls the answer that the test has put under the path; the test's list of answers is used up one by one, the
    last one stays."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        answers = server.answers.get(self.path, [refuse(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def reply(self, status: int, content: bytes = b"", promised: int | str | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if promised is None else promised))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *args):
        pass


def serve(content: bytes = CONTENT, **headers: str):
    """A good server: the file, or the range asked for."""
    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        if asked is None:
            return handler.reply(200, content, **headers)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return handler.reply(416, Content_Range=f"bytes */{len(content)}")
        handler.reply(206, content[start:], Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}", **headers)
    return answer


def break_off(after: int, content: bytes = CONTENT):
    return lambda handler: handler.reply(200, content[:after], promised=len(content))


def refuse(status: int):
    return lambda handler: handler.reply(status, b"<html>error page</html>", Content_Type="text/html; charset=utf-8")


def redirect(location: str, **headers: str):
    return lambda handler: handler.reply(302, Location=location, **headers)


def start_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.seen = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def stop(server) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01, 0.01))
    for name in ("HF_ENDPOINT", "HF_TOKEN", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = start_server()
    yield server
    stop(server)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def fails(server, path: Path, error, message: str, **options) -> None:
    """The download raises one line with this message and leaves nothing under the final name."""
    with pytest.raises(error, match=message) as caught:
        download.download(f"{server.url}/file", path, **options)
    assert not path.exists()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# ---------------------------------------------------------------- one file

def test_a_good_file_arrives_and_leaves_nothing_beside_it(server, tmp_path):
    server.answers["/file"] = [serve()]
    path = tmp_path / "new" / "folder" / "file.bin"
    download.download(f"{server.url}/file", path, SHA256)
    assert path.read_bytes() == CONTENT and files(tmp_path) == ["file.bin"]
    download.download(f"{server.url}/file", path, SHA256)                    # there already: no second request
    assert len(server.seen) == 1


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.answers["/file"] = [break_off(300_000), lambda handler: handler.connection.close(), refuse(503), serve()]
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.seen] == [None, *["bytes=300000-"] * 3]


def test_a_part_of_an_earlier_run_is_continued(server, tmp_path):
    server.answers["/file"] = [serve()]
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.seen[0][1]["Range"] == "bytes=1000-"


def test_a_complete_part_is_only_checked_and_renamed(server, tmp_path):
    server.answers["/file"] = [serve()]
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and len(server.seen) == 1


@pytest.mark.parametrize("part", [b"another version" * 100, CONTENT + b"longer", CONTENT[::-1]])
def test_a_part_of_another_version_is_thrown_away(server, tmp_path, part):
    server.answers["/file"] = [serve()]
    (tmp_path / "file.bin.part").write_bytes(part)
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.answers["/file"] = [lambda handler: handler.reply(200, CONTENT)]
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_answers_with_another_range_is_asked_from_the_start(server, tmp_path):
    wrong = lambda handler: handler.reply(206, CONTENT[5:], Content_Range=f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")  # noqa: E731
    server.answers["/file"] = [wrong, serve()]
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "Range" not in server.seen[1][1]


def test_a_server_that_always_stops_early_is_given_up(server, tmp_path):
    server.answers["/file"] = [lambda handler: handler.reply(200, CONTENT[:5000], promised=len(CONTENT))]
    fails(server, tmp_path / "file.bin", OSError, "broke off after 5000 of 1024000 bytes.*`make demo` needs neither")
    assert len(server.seen) == 4                                             # the gain of the first starts the count
    assert (tmp_path / "file.bin.part").stat().st_size == 5000


def test_a_wrong_hash_keeps_nothing(server, tmp_path):
    server.answers["/file"] = [serve(CONTENT[:-1] + b"!")]
    fails(server, tmp_path / "file.bin", ValueError, f"does not have the hash {SHA256} that was expected", sha256=SHA256)
    assert not (tmp_path / "file.bin.part").exists()


@pytest.mark.parametrize(("status", "error", "message"), [
    (404, FileNotFoundError, r"/file: the server has no such file \(HTTP 404\); check the name and HF_ENDPOINT, or put"),
    (401, PermissionError, r"/file: access refused \(HTTP 401\); set HF_TOKEN to a token that may read it, or put"),
    (403, PermissionError, r"access refused \(HTTP 403\)"),
    (500, OSError, r"HTTP 500"),
    (200, ValueError, r"/file: found a web page instead of file.bin; a login page or proxy may stand in between"),
])
def test_refusals_say_what_to_do(server, tmp_path, status, error, message):
    server.answers["/file"] = [refuse(status)]
    fails(server, tmp_path / "file.bin", error, message)
    assert len(server.seen) == (4 if status == 500 else 1)
    assert not (tmp_path / "file.bin.part").exists()


def test_without_network_the_error_comes_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (60,))
    stop(server)
    fails(server, tmp_path / "file.bin", OSError,
          r"file.bin is missing and cannot be fetched .*refused.*put the file there yourself; `make demo` needs neither")


def test_a_silent_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    enough = threading.Event()
    server.answers["/file"] = [lambda handler: enough.wait(5)]
    fails(server, tmp_path / "file.bin", OSError, "timed out")
    enough.set()


@pytest.mark.parametrize("start", [b"<!DOCTYPE html><title>Sign in</title>", b"\n  <HTML><body>blocked</body>"])
def test_a_web_page_under_another_type_is_told_by_its_first_bytes(server, tmp_path, start):
    server.answers["/file"] = [serve(start + CONTENT, Content_Type="application/octet-stream")]
    for sha256 in (None, SHA256):
        fails(server, tmp_path / "file.bin", ValueError, "/file: found a web page instead of file.bin", sha256=sha256)
    assert not (tmp_path / "file.bin.part").exists()


def without_length(content: bytes):
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True
    return answer


def chunked(content: bytes, whole: bool):
    def answer(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 100_000):
            piece = content[start:start + 100_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"")
        handler.close_connection = True
    return answer


def test_a_file_of_unknown_length_is_not_taken_for_whole(server, tmp_path):
    server.answers["/file"] = [without_length(CONTENT[:1000])]
    fails(server, tmp_path / "file.bin", OSError, "the server does not say how long file.bin is")
    fails(server, tmp_path / "file.bin", ValueError, "does not have the hash", sha256=SHA256)
    server.answers["/file"] = [without_length(CONTENT)]
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_pieces_that_break_off_are_not_taken_for_whole(server, tmp_path):
    server.answers["/file"] = [chunked(CONTENT[:300_000], whole=False)]
    fails(server, tmp_path / "file.bin", OSError, "file.bin is missing and cannot be fetched")
    server.answers["/file"] = [chunked(CONTENT, whole=True)]
    (tmp_path / "file.bin.part").unlink(missing_ok=True)
    download.download(f"{server.url}/file", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("promised", [len(CONTENT) + 7, len(CONTENT) - 7, -1, "many"])
def test_a_wrong_length_keeps_nothing_under_the_final_name(server, tmp_path, promised):
    server.answers["/file"] = [lambda handler: handler.reply(200, CONTENT, promised=promised)]
    path = tmp_path / "file.bin"
    if promised in (-1, "many"):                                             # as good as no length: the hash decides
        download.download(f"{server.url}/file", path, SHA256)
        assert path.read_bytes() == CONTENT
    elif promised > len(CONTENT):
        fails(server, path, OSError, f"broke off after {len(CONTENT)} of {promised} bytes")
    else:
        fails(server, path, ValueError, "does not have the hash", sha256=SHA256)


def test_an_answer_that_is_no_http_is_given_up(server, tmp_path):
    server.answers["/file"] = [lambda handler: handler.wfile.write(b"220 smtp ready\r\n")]
    fails(server, tmp_path / "file.bin", OSError, "file.bin is missing and cannot be fetched")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(server, tmp_path, status):
    server.answers["/file"] = [lambda handler: handler.reply(status, Location="/a/b")]
    server.answers["/a/b"] = [lambda handler: handler.reply(status, Location="../c?d=e")]
    server.answers["/c?d=e"] = [serve()]
    download.download(f"{server.url}/file", tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


FETCH = ("import sys, pathlib; from files.download import download; "
         "download(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])")


def slowly(handler: Handler) -> None:
    """The file, or the rest of it, in pieces."""
    start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(CONTENT) - start))
    handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
    handler.end_headers()
    try:
        for at in range(start, len(CONTENT), 64_000):
            handler.wfile.write(CONTENT[at:at + 64_000])
            threading.Event().wait(0.03)
    except OSError:                                                          # the other side was killed
        handler.close_connection = True


def test_a_killed_download_leaves_a_part_and_goes_on(server, repository, tmp_path):
    server.answers["/file"] = [slowly]
    path = tmp_path / "file.bin"
    part = tmp_path / "file.bin.part"
    process = subprocess.Popen([sys.executable, "-c", FETCH, f"{server.url}/file", path, SHA256], cwd=repository)
    while not part.exists() or part.stat().st_size < 100_000:
        assert process.poll() is None
        threading.Event().wait(0.005)
    process.kill()
    process.wait(60)
    half = part.stat().st_size
    assert not path.exists() and 100_000 <= half < len(CONTENT) and part.read_bytes() == CONTENT[:half]
    download.download(f"{server.url}/file", path, SHA256)                    # the lock of the dead does not hold
    assert path.read_bytes() == CONTENT and files(tmp_path) == ["file.bin"]
    assert server.seen[-1][1]["Range"] == f"bytes={half}-"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told(server, tmp_path):
    server.answers["/file"] = [serve()]
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    fails(server, tmp_path / "file.bin", OSError, r"file.bin.part: No space left on device; the download goes on")


def test_several_processes_fetch_one_file_once(server, repository, tmp_path):
    server.answers["/file"] = [slowly]
    path = tmp_path / "file.bin"
    command = [sys.executable, "-c", FETCH, f"{server.url}/file", path, SHA256]
    processes = [subprocess.Popen(command, cwd=repository) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert path.read_bytes() == CONTENT and len(server.seen) == 1


def test_addresses_and_redirects_are_http_only(server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    server.answers["/file"] = [redirect(secret.as_uri())]
    with pytest.raises(ValueError, match=r"file:///.*expected an address that starts with https://"):
        download.download(f"{server.url}/file", tmp_path / "file.bin")
    server.answers["/file"] = [redirect("/file")]
    with pytest.raises(OSError, match="redirected in a circle"):
        download.download(f"{server.url}/file", tmp_path / "file.bin")
    assert files(tmp_path) == ["secret"]


# ---------------------------------------------------------------- the hub

HUB_FILES = {"config.json": b"{}", "vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n", "model.safetensors": CONTENT}


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


@pytest.fixture
def hub(server, monkeypatch):
    """The hub in small: git hashes on small files, a large file behind a redirect to a content server."""
    content_server = start_server()
    prefix = "/openai-community/gpt2/resolve/main"
    for name, content in HUB_FILES.items():
        server.answers[f"{prefix}/{name}"] = [serve(content, ETag=f'"{git_sha1(content)}"')]
    server.answers[f"{prefix}/config.json"] = [redirect("/moved", ETag='"irrelevant"')]
    server.answers["/moved"] = [serve(HUB_FILES["config.json"], ETag=f'W/"{git_sha1(HUB_FILES["config.json"])}"')]
    server.answers[f"{prefix}/model.safetensors"] = [
        redirect(f"{content_server.url}/blob", X_Linked_Etag=f'"{SHA256}"', X_Linked_Size=str(len(CONTENT)))]
    content_server.answers["/blob"] = [break_off(500_000), serve(ETag='"0123456789abcdef0123456789abcdef"')]
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.prefix, server.content = prefix, content_server
    yield server
    stop(content_server)


def test_a_model_comes_from_the_endpoint_and_the_token_stays_there(hub, tmp_path):
    directory = fetch_model("gpt2", tmp_path)
    assert directory == tmp_path / "gpt2"
    assert {name: (directory / name).read_bytes() for name in files(tmp_path)} == HUB_FILES
    assert hub.seen[-2][0] == f"{hub.prefix}/config.json"                    # last, as the mark of a complete directory
    assert all(headers["Authorization"] == "Bearer hf_secret" for _, headers in hub.seen)
    assert len(hub.content.seen) == 2
    assert not any("Authorization" in headers for _, headers in hub.content.seen)
    requests = len(hub.seen)
    assert fetch_model("gpt2", tmp_path) == directory and len(hub.seen) == requests


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_the_hubs_own_hashes_are_checked(hub, tmp_path, name):
    hub.content.answers["/blob"] = [serve(CONTENT[:-1] + b"!")]
    if name == "vocab.json":
        hub.content.answers["/blob"] = [serve()]
        hub.answers[f"{hub.prefix}/vocab.json"] = [serve(b'{"b": 0}', ETag=f'"{git_sha1(HUB_FILES[name])}"')]
    with pytest.raises(ValueError, match=rf"{name}: the content does not have the hash [0-9a-f]+ that was expected"):
        fetch_model("gpt2", tmp_path)
    assert not (tmp_path / "gpt2" / name).exists() and not (tmp_path / "gpt2" / "config.json").exists()


def test_a_model_that_is_published_as_a_pickle_alone_is_fetched_so(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(bases.BASES, "gpt2", dataclasses.replace(bases.BASES["gpt2"], tokenizer=("vocab.json",)))
    hub.answers[f"{hub.prefix}/model.safetensors"] = [refuse(404)]
    hub.answers[f"{hub.prefix}/pytorch_model.bin"] = [serve(b"a pickle", ETag=f'"{git_sha1(b"a pickle")}"')]
    assert (fetch_model("gpt2", tmp_path) / "pytorch_model.bin").read_bytes() == b"a pickle"
    assert [path.rpartition("/")[2] for path, _ in hub.seen] == ["model.safetensors", "pytorch_model.bin", "vocab.json",
                                                                 "config.json", "moved"]


@pytest.mark.parametrize("known", [None, SHA256, "0" * 64])
def test_a_hash_that_is_known_here_is_compared_beside_the_hubs(hub, tmp_path, monkeypatch, known):
    monkeypatch.setitem(bases.BASES, "gpt2", dataclasses.replace(
        bases.BASES["gpt2"], sha256={"model.safetensors": known} if known else {}))
    if known == "0" * 64:
        with pytest.raises(ValueError, match="model.safetensors: the content does not have the hash 0{64} that was expected"):
            fetch_model("gpt2", tmp_path)
    else:
        assert (fetch_model("gpt2", tmp_path) / "model.safetensors").read_bytes() == CONTENT


def test_only_what_is_missing_is_fetched(hub, tmp_path):
    directory = tmp_path / "gpt2"
    directory.mkdir()
    for name in ("config.json", "vocab.json", "pytorch_model.bin"):
        (directory / name).write_text("mine")
    fetch_model("gpt2", tmp_path)
    assert [path for path, _ in hub.seen] == [f"{hub.prefix}/merges.txt"]
    assert (directory / "config.json").read_text() == "mine"


def test_a_private_repository_asks_for_a_token(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.answers[f"{hub.prefix}/model.safetensors"] = [refuse(401)]
    with pytest.raises(PermissionError, match=r"gpt2/resolve/main/model.safetensors: access refused .*set HF_TOKEN"):
        fetch_model("gpt2", tmp_path)
    assert "Authorization" not in hub.seen[0][1]


# ---------------------------------------------------------------- tasks

@pytest.fixture
def tasks(server, monkeypatch):
    for name in ("GLUE_SERVER", "MRPC_SERVER", "E2E_SERVER"):
        monkeypatch.setattr(published, name, server.url)
    return server


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def offer_zip(server, monkeypatch, content: bytes) -> None:
    server.answers["/RTE.zip"] = [serve(content)]
    monkeypatch.setitem(published.GLUE_ZIPS, "RTE", ("RTE.zip", hashlib.sha256(content).hexdigest()))


def test_a_glue_archive_is_unpacked_into_its_folder_only(tasks, tmp_path, monkeypatch):
    members = {f"RTE/{split}.tsv": split.encode() for split in ("train", "dev", "test")}
    evil = {"../../evil.tsv": b"evil", "/tmp/evil.tsv": b"evil", "RTE/../../../evil.tsv": b"evil", "RTE/more.tsv": b"more"}
    offer_zip(tasks, monkeypatch, make_zip(members | evil))
    assert data.fetch_task("rte", tmp_path / "data") == tmp_path / "data"
    folder = tmp_path / "data" / "glue" / "RTE"
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} \
        == {(folder / f"{split}.tsv").relative_to(tmp_path) for split in ("train", "dev", "test")}
    assert (folder / "dev.tsv").read_text() == "dev"


def test_a_download_that_fails_leaves_nothing_but_what_it_can_go_on_from(tasks, tmp_path, monkeypatch):
    """No lock, and no folder that was made for it; a folder of the user's stays."""
    content = make_zip({f"RTE/{split}.tsv": b"text" for split in ("train", "dev", "test")})
    offer_zip(tasks, monkeypatch, content)
    tasks.answers["/RTE.zip"] = [refuse(404)]
    (tmp_path / "mine" / "glue").mkdir(parents=True)
    for folder in (tmp_path / "new" / "data", tmp_path / "mine"):
        with pytest.raises(FileNotFoundError, match="the server has no such file"):
            data.fetch_task("rte", folder)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["mine", "mine/glue"]
    tasks.answers["/RTE.zip"] = [break_off(50, content)]
    with pytest.raises(OSError, match="cannot be fetched"):
        data.fetch_task("rte", tmp_path / "mine")
    assert files(tmp_path) == ["RTE.zip.part"]
    tasks.answers["/RTE.zip"] = [serve(content)]
    data.fetch_task("rte", tmp_path / "mine")
    assert files(tmp_path) == ["dev.tsv", "test.tsv", "train.tsv"]


@pytest.mark.parametrize("content", [
    b"PK no zip", make_zip({"other/train.tsv": b""}), make_zip({"RTE/train.tsv": b"text"})[:-9]])
def test_a_wrong_archive_leaves_no_task_folder(tasks, tmp_path, monkeypatch, content):
    offer_zip(tasks, monkeypatch, content)
    with pytest.raises(ValueError, match=r"RTE.zip: not the archive of RTE \(.*delete it and fetch it again"):
        data.fetch_task("rte", tmp_path)
    assert not (tmp_path / "glue" / "RTE").exists()


def test_mrpc_is_built_byte_for_byte(tasks, tmp_path, shared):
    source = shared / "data" / "glue" / "MRPC"
    for name, file in [*((name, name) for name in published.MRPC_SOURCES), (published.MRPC_DEV_IDS[0], "dev_ids.tsv")]:
        tasks.answers[f"/{name}"] = [serve((source / file).read_bytes())]
    data.fetch_task("mrpc", tmp_path)
    folder = tmp_path / "glue" / "MRPC"
    assert files(tmp_path) == ["dev.tsv", "test.tsv", "train.tsv"]
    for name in files(tmp_path):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_e2e_is_fetched_and_appears_at_once(tasks, tmp_path, shared):
    for name in ("train.txt", "valid.txt"):
        tasks.answers[f"/{name}"] = [serve((shared / "data" / "e2e" / name).read_bytes())]
    with pytest.raises(FileNotFoundError, match="test.txt: the server has no such file"):
        data.fetch_task("e2e", tmp_path)
    assert not (tmp_path / "e2e").exists()
    tasks.answers["/test.txt"] = [serve((shared / "data" / "e2e" / "test.txt").read_bytes())]
    data.fetch_task("e2e", tmp_path)
    assert files(tmp_path / "e2e") == ["test.txt", "train.txt", "valid.txt"]
    assert [path for path, _ in tasks.seen] == ["/train.txt", "/valid.txt", "/test.txt", "/test.txt"]


def test_known_hashes_are_those_of_the_reference_files(shared):
    sums = dict(reversed(line.split(None, 1)) for line in
                (shared / "data" / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    for file, sha256 in published.E2E_SHA256.items():
        assert sums[f"./e2e/{file}"] == sha256
    for file, sha256 in published.MRPC_SOURCES.items():
        assert sums[f"./glue/MRPC/{file}"] == sha256
    assert sums["./glue/MRPC/dev_ids.tsv"] == published.MRPC_DEV_IDS[1]
    assert set(published.GLUE_ZIPS) | {"MRPC"} == {glue.folder for glue in data.GLUE_TASKS.values()}


def test_the_command_without_network_prints_one_line(server, repository, tmp_path):
    stop(server)
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("LORA_WEIGHTS", None)
    done = subprocess.run([sys.executable, "data.py", "gpt2-medium"], cwd=repository, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/lora/weights/gpt2-medium/model.safetensors is missing and cannot")
