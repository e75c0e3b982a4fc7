"""Download one large file: resumable, verified, and in place only when it is whole."""

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from sslcourse.datasets import prepared
from sslcourse.errors import CourseError

TIMEOUT = 30  # seconds without any byte that count as a cut


def fetch(url: str, path: Path, checksum: str | None = None) -> Path:
    """Download `url` (http or https) to `path`, unless it is there, and return it. One process at a time: see `prepared.alone`.

    The next call continues `<path>.part` after a cut or Ctrl-C. checksum: "md5:..." or "sha256:..." of the whole file.
    CourseError for: no network, a cut, an HTTP error, a web page in place of the file, a wrong `checksum` (then the file is removed).
    """
    if path.exists() and _matches(path, checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _receive(url, part)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not _length(part):  # nothing follows what we have: whether that is right is for the checksum to say
            raise CourseError(f"The server answered {error.code} {error.reason} for {url}. Try later, or use --from.") from None
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        told = f"{url} cannot be reached ({reason}). Try later, or go on with toybox or images of your own (--from), which need no network."
        if have := _length(part):
            told = f"The download of {url} was cut ({reason}). {prepared.human(have)} are kept in {part}: run it again to continue there."
        raise CourseError(told) from None
    if not _matches(part, checksum):
        part.unlink()
        raise CourseError(f"{url} gave a file that does not match its published checksum, so it was removed. Try later, or use --from.")
    os.replace(part, path)
    return path


def _receive(url: str, part: Path) -> None:
    have = _length(part)
    headers = {"User-Agent": "sslcourse", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise CourseError(f"{url} gave a web page in place of the file. Does this network ask you to log in? Or use --from.")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1000, desc=part.stem)
        with bar, open(part, "ab" if have else "wb") as file:
            while data := response.read(1 << 18):
                file.write(data)
                bar.update(len(data))
    if total and _length(part) < total:
        raise ConnectionError("the connection closed early")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _matches(path: Path, checksum: str | None) -> bool:
    kind, _, wanted = (checksum or "").partition(":")
    with path.open("rb") as file:
        return not kind or hashlib.file_digest(file, kind).hexdigest() == wanted.lower()
