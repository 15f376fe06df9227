"""Fetch a file over HTTP so that no half or wrong file ever stands under its final name.

It arrives as NAME.part, is continued where it broke off, compared with the size and hash that the server or the caller
promises, and only then renamed. Left out: parallel transfers, cookies.
"""
import hashlib
import http.client
import os
import re
import ssl
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from files.writing import locked, room_advice

TIMEOUT = 20                                                                 # seconds without a byte
PAUSES = (1, 2, 4, 8)                                                        # seconds before each retry without progress
BROKEN = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # worth another try


class ShowRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args, **kwargs):
        return None                                                          # makes the redirect itself the answer


def request(url: str, headers: dict[str, str], token: str | None) -> tuple[http.client.HTTPResponse | HTTPError, str]:
    """The answer after all redirects, whatever its status, and the ETag that the first host gave for the file.
    Redirects are followed by hand: the hub names the hash of a large file only on its redirect to a content server,
    and the token is for the hub alone."""
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
    hashed: a hash will tell whether it is whole; else the server must say how long it is."""
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
                    raise OSError(f"{part}: {error.strerror}; the download goes on where it stopped{room_advice(error)}"
                                  ) from None
                bar.update(len(chunk))
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")
    return etag


def check_hash(part: Path, expected: str) -> bool:
    """Whether the file has this SHA-256 (64 digits) or git blob SHA-1 (40 digits). Other tags say nothing: true."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return True
    # the hub names a small file as git does: by SHA-1 of a header and the content
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(f"blob {part.stat().st_size}\0".encode())
    with part.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == expected


def starts_as_html(part: Path) -> bool:
    """Whether it is a web page, whatever type the server gave it."""
    with part.open("rb") as file:
        return file.read(200).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def download(url: str, path: Path, sha256: str | None = None, from_hub: bool = False) -> None:
    """Fetch url to path, unless it is there. Checked against sha256, or against the hub's ETag (from_hub).
    A connection that breaks is tried again after 1, 2, 4 and 8 seconds, and goes on where it broke; each gain starts
    the count anew. Raises OSError or ValueError that say what to do; `path` then does not exist."""
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
                    if not now:
                        part.unlink(missing_ok=True)                         # nothing to go on from
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
