"""Download one large file: resumable, verified, and in place only when it is whole."""

import errno
import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from sslcourse.datasets import prepared
from sslcourse.errors import CourseError

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without any byte that count as a cut
RETRIES = 4  # in a row, without any new byte
PAUSE = 1.0  # seconds before the first retry; the next ones wait longer
NO_NETWORK = "toybox needs no network, nor does any folder or archive of your own (python data_setup.py --from photos.zip --name mine)."


class _Cut(Exception):
    """The connection failed in a way that may pass: try again from where it stopped."""


def fetch(url: str, path: Path, checksum: str | None = None, progress: bool = True) -> Path:
    """Download `url` (http or https) to `path`, and return it. One process at a time: see `prepared.alone`.

    The bytes go to `<path>.part`, which is renamed at the end. A connection that breaks is resumed, here and by the next call: Ctrl-C
    leaves the .part. checksum: "md5:..." or "sha256:..." of the whole file; a file that is there already is kept if it fits.

    CourseError for: no network, an HTTP error, a web page in place of the file, a connection that stays broken, a file that does not match
    `checksum` (it is removed).
    """
    if path.exists() and _matches(path, checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures, furthest, whole = 0, _length(part), False
    while not whole:
        try:
            _receive(url, part, progress)
            whole = True
        except _Cut as cut:
            failures = failures + 1 if _length(part) <= furthest else 1
            furthest = max(furthest, _length(part))
            if failures > RETRIES and furthest:
                kept = f"{prepared.human(furthest)} are kept in {part}"
                raise CourseError(f"The download of {url} was cut ({cut}). {kept}: run the same again, and it continues there.") from None
            if failures > RETRIES:
                raise CourseError(f"{url} cannot be reached ({cut}). Try later, or go on without it: {NO_NETWORK}") from None
            time.sleep(PAUSE * failures)
    if not _matches(part, checksum):
        part.unlink()
        raise CourseError(f"{url} gave a file that does not match its published checksum, so it was removed. Try later, or use --from.")
    os.replace(part, path)
    return path


def _receive(url: str, part: Path, progress: bool) -> None:
    have = _length(part)
    headers = {"User-Agent": "sslcourse", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            if response.headers.get_content_type() == "text/html":
                raise CourseError(f"{url} gave a web page in place of the file. Does this network ask you to log in? Or use --from.")
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # the server sends all of it again
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1000, desc=part.stem, disable=not progress)
            with bar, open(part, "ab" if have else "wb") as file:
                while data := response.read(CHUNK):
                    file.write(data)
                    bar.update(len(data))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # there is nothing after what we have: whether it is right is for the checksum to say
        if error.code < 500 and error.code != 429:
            raise CourseError(f"The server answered {error.code} {error.reason} for {url}. Get it another way and use --from.") from None
        raise _Cut(f"the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        if isinstance(getattr(error, "reason", None), socket.gaierror) and not have:  # waiting a few seconds brings no network
            raise CourseError(f"{url} cannot be reached (no network, or no such server). {NO_NETWORK}") from None
        raise _Cut(getattr(error, "reason", None) or str(error) or type(error).__name__) from None
    if total and _length(part) < total:
        raise _Cut("the connection closed early")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _matches(path: Path, checksum: str | None) -> bool:
    if checksum is None:
        return True
    kind, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest() == wanted.lower()
