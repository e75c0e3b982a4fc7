"""Download one file: resumable, verified, and in place only when it is whole."""

import errno
import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

from tqdm import tqdm

from sslcourse.datasets import prepared as storage
from sslcourse.errors import CourseError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at once are then not kept apart
    fcntl = None

CHUNK = 1 << 18
NO_NETWORK = (
    "toybox needs no network, nor does any folder or archive of your own (python data_setup.py --from photos.zip --name my-photos)."
)


class _Cut(Exception):
    """The connection failed in a way that may pass: try again from where it stopped."""


@dataclass
class _Part:
    """What is known of the unfinished file. `validator` is the ETag of the bytes in it, where this call has seen one."""

    file: object
    path: Path
    validator: str | None = None

    @property
    def length(self):
        return self.path.stat().st_size

    def start_again(self):
        self.file.truncate(0)
        self.validator = None

    def mark(self, modified):
        # The server's Last-Modified is kept as the file's own time. It survives a killed process, and a later call can ask for the rest
        # "if it is still the file of that date". 0 means that the server gave none.
        self.file.flush()
        os.utime(self.path, (modified, modified))

    @property
    def modified(self):
        return int(self.path.stat().st_mtime)


def fetch(url, path, *, checksum=None, size=None, progress=True, timeout=30, retries=4, pause=1.0):
    """Download `url` (http or https) to `path` and return the Path.

    The bytes go to `<path>.part`, which is renamed at the end. A connection that breaks is resumed, here up to `retries` times (after
    `pause`, 2 `pause`, ... seconds), and again by the next call: Ctrl-C leaves the .part and nothing else. If the file on the server has
    changed meanwhile, or the server cannot resume, the download starts again.
    checksum: "md5:..." or "sha256:..." of the whole file; size: its bytes, if known. A file that is there already is kept if it fits them.
    timeout: seconds without any byte that count as a cut.

    CourseError, with a sentence, for: no network; an HTTP error; a connection that stays broken; too small a disk (before the download); a
    file that does not match `checksum` or `size` (it is removed).
    """
    path = Path(path)
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an http or https address.")
    if path.exists():
        if _problem(path, checksum, size) is None:
            return path
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked_part(path) as part:
        if path.exists():  # another process has downloaded it while this one waited
            return path
        try:
            _complete(part, url, checksum, size, progress, timeout, retries, pause)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CourseError(f"The disk is full; {part.path} is kept. Free some space and run it again: it continues there.") from None
        if not fcntl:
            part.file.close()  # Windows renames and removes only closed files
        problem = _problem(part.path, checksum, size)
        if problem:
            part.path.unlink()
            raise CourseError(f"{url} gave a file that {problem}, so it was removed. Try later, or get it another way and use --from.")
        os.replace(part.path, path)
    os.utime(path)  # the time that it came, no longer the server's
    return path


@contextmanager
def _locked_part(path):
    # Two processes must not write one .part. The lock goes with the open file, so a killed process leaves none behind.
    name = path.with_name(path.name + ".part")
    while True:
        fresh = not name.exists()
        file = open(name, "ab")
        if fresh:
            os.utime(name, (0, 0))
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(name))
        except FileNotFoundError:
            same = path.exists()
        if same:
            break
        file.close()  # the file that was locked has been renamed or removed meanwhile
    try:
        yield _Part(file, name)
    finally:
        empty = not file.closed and os.fstat(file.fileno()).st_size == 0
        file.close()
        if empty:
            name.unlink(missing_ok=True)


def _complete(part, url, checksum, size, progress, timeout, retries, pause):
    # Fill the .part, resuming after cuts. New ground resets the count: only a connection that brings nothing more gives up.
    failures, furthest = 0, part.length
    while True:
        try:
            return _attempt(part, url, checksum, size, progress, timeout)
        except _Cut as cut:
            reason = cut
        failures = 1 if part.length > furthest else failures + 1
        furthest = max(furthest, part.length)
        if failures > retries:
            break
        time.sleep(pause * failures)
    if part.length:
        kept = f"{storage.human(part.length)} are kept in {part.path}"
        raise CourseError(f"The download of {url} was cut ({reason}). {kept}: run the same again, and it continues there.")
    raise CourseError(f"{url} cannot be reached ({reason}). Try later, or go on without it: {NO_NETWORK}")


def _attempt(part, url, checksum, size, progress, timeout):
    offset = part.length
    request = urllib.request.Request(url, headers={"User-Agent": "sslcourse", "Accept-Encoding": "identity"})
    if offset:
        condition = part.validator or (formatdate(part.modified, usegmt=True) if part.modified > 0 else None)
        if condition is None and checksum is None:
            part.start_again()  # nothing could tell whether the rest belongs to the same file
            offset = 0
        else:
            request.add_header("Range", f"bytes={offset}-")
            if condition:
                request.add_header("If-Range", condition)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(part, url, error, offset, checksum, size, progress, timeout)
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror) and not offset:  # no name server, so no network: waiting a few seconds brings none
            raise CourseError(f"{url} cannot be reached (no network, or no such server). {NO_NETWORK}") from None
        raise _Cut(error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(error or type(error).__name__) from None
    with response:
        _receive(part, response, url, offset, size, progress)


def _refused(part, url, error, offset, checksum, size, progress, timeout):
    if error.code == 416 and offset:  # there is nothing after what we have: it is complete, or the file on the server is another one now
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(offset) and _problem(part.path, checksum, size) is None and (checksum or _modified(error.headers) == part.modified):
            return None
        part.start_again()
        return _attempt(part, url, checksum, size, progress, timeout)
    if error.code >= 500 or error.code == 429:
        raise _Cut(f"the server answered {error.code} {error.reason}") from None
    raise CourseError(
        f"The server answered {error.code} {error.reason} for {url}. The file may have moved: get it another way and use --from. "
        f"Or go on without it: {NO_NETWORK}"
    ) from None


def _receive(part, response, url, offset, size, progress):
    modified, etag = _modified(response.headers), response.headers.get("ETag")
    etag = etag if etag and not etag.startswith("W/") else None  # a weak tag does not promise the same bytes
    whole = None
    if response.status == 206:
        span, _, whole = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        other = (part.modified > 0 and modified > 0 and modified != part.modified) or (part.validator and etag and etag != part.validator)
        if span.partition("-")[0].strip() != str(offset) or other:
            part.start_again()  # a server that ignored If-Range: this is a piece of another file
            raise _Cut("the file changed on the server")
    elif offset:
        part.start_again()
        offset = 0
    length = response.headers.get("Content-Length")
    total = int(whole) if whole and whole.isdigit() else offset + int(length) if length and length.isdigit() else None
    if size is not None and total is not None and total != size:
        part.start_again()
        raise CourseError(f"{url} has {total:,} bytes and should have {size:,}. The file has changed: get it another way and use --from.")
    if total is not None:
        storage.require_free(part.path.parent, total - offset, f"The download of {url}")
    part.validator = etag
    part.mark(modified)
    with tqdm(total=total, initial=offset, unit="B", unit_scale=True, unit_divisor=1000, desc=part.path.stem, disable=not progress) as bar:
        while True:
            try:
                data = response.read(CHUNK)
            except http.client.IncompleteRead as error:
                part.file.write(error.partial)
                part.mark(modified)
                raise _Cut("the connection closed early") from None
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(error or type(error).__name__) from None
            if not data:
                break
            part.file.write(data)
            part.mark(modified)
            bar.update(len(data))
    if total is not None and part.length < total:
        raise _Cut("the connection closed early")
    if total is not None and part.length > total:
        part.start_again()
        raise _Cut("the server sent more than it announced")


def _modified(headers):
    # Last-Modified in seconds, or 0.
    try:
        return max(0, int(parsedate_to_datetime(headers["Last-Modified"]).timestamp()))
    except (KeyError, TypeError, ValueError):
        return 0


def _problem(path, checksum, size):
    # What is wrong with a finished file, as the end of a sentence, or None.
    if size is not None and path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes instead of {size:,}"
    if checksum:
        kind, _, wanted = checksum.partition(":")
        if kind not in ("md5", "sha256"):
            raise ValueError(f"checksum is {checksum!r}; write it as 'md5:...' or 'sha256:...'.")
        digest = hashlib.new(kind, usedforsecurity=False)
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
        if digest.hexdigest() != wanted.lower():
            return f"does not match its published {kind} checksum"
    return None
