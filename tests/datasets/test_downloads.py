"""Downloads, against a server on this machine that can cut, refuse and change its mind."""

import hashlib
import shutil
import socket
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sslcourse.datasets import downloads
from sslcourse.errors import CourseError

CONTENT = bytes(range(256)) * 4000  # about 1 MB


class Server:
    """Serves `content` at every path. The attributes say how it misbehaves; `requests` records the headers of each request."""

    def __init__(self):
        self.content, self.etag, self.modified = CONTENT, '"one"', 1_700_000_000
        self.ranges, self.if_range, self.status, self.cuts, self.announce = True, True, None, [], True
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"
        self.http.handle_error = lambda *_: None  # a client that hangs up is part of these tests
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        self.requests.append(dict(handler.headers))
        if self.status:
            handler.send_error(self.status)
            return
        date = formatdate(self.modified, usegmt=True) if self.modified else None
        start, asked, condition = 0, handler.headers.get("Range"), handler.headers.get("If-Range")
        fits = condition in (None, self.etag, date) or not self.if_range
        if asked and self.ranges and fits:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.content)}")
                self.identify(handler, date)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        self.identify(handler, date)
        body = self.content[start:]
        if self.announce:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def identify(self, handler, date):
        if self.etag:
            handler.send_header("ETag", self.etag)
        if date:
            handler.send_header("Last-Modified", date)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def fetch(server, path, **options):
    return downloads.fetch(server.url, path, **{"progress": False, "pause": 0, "timeout": 10, "retries": 2, **options})


def md5(content):
    return "md5:" + hashlib.md5(content).hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_and_nothing_else(server, tmp_path):
    path = fetch(server, tmp_path / "a" / "file.bin", checksum=md5(CONTENT), size=len(CONTENT))
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file.bin"]
    assert "Range" not in server.requests[0]


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    fetch(server, tmp_path / "file.bin", checksum=md5(CONTENT))
    assert server.requests == []
    (tmp_path / "file.bin").write_bytes(b"something else")
    assert fetch(server, tmp_path / "file.bin", checksum=md5(CONTENT)).read_bytes() == CONTENT


def test_a_cut_is_resumed_within_one_call(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert server.requests[1]["If-Range"] == '"one"'


def test_the_next_call_continues_after_an_interruption(server, tmp_path, monkeypatch):
    class Impatient:
        def __init__(self, **_):
            self.seen = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.seen += count
            if self.seen > 400_000:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(downloads, "tqdm", Impatient)
        fetch(server, tmp_path / "f")
    assert names(tmp_path) == ["f.part"]
    have = (tmp_path / "f.part").stat().st_size
    assert 400_000 < have < len(CONTENT)
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={have}-" and names(tmp_path) == ["f"]


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changed_between_calls_starts_again(server, tmp_path, honours_if_range):
    server.cuts = [300_000, 0, 0, 0]
    with pytest.raises(CourseError, match="cut.*continues there"):
        fetch(server, tmp_path / "f")
    server.content, server.etag, server.modified, server.if_range = CONTENT[::-1], '"two"', 1_700_009_999, honours_if_range
    server.cuts = []
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT[::-1]


def test_without_any_date_or_checksum_nothing_is_mixed(server, tmp_path):
    server.etag = server.modified = None
    server.cuts = [300_000]
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT
    assert "Range" not in server.requests[1]
    server.cuts = [300_000]
    fetch(server, tmp_path / "g", checksum=md5(CONTENT))
    assert server.requests[3]["Range"] == "bytes=300000-"


def test_a_server_that_ignores_range(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT


def test_416_for_a_part_that_is_whole_and_for_one_that_is_not(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "f", checksum=md5(CONTENT)).read_bytes() == CONTENT
    (tmp_path / "g.part").write_bytes(CONTENT + b"too long")
    server.if_range = False
    assert fetch(server, tmp_path / "g", checksum=md5(CONTENT)).read_bytes() == CONTENT


def test_a_wrong_checksum_removes_the_file(server, tmp_path):
    with pytest.raises(CourseError, match="does not match its published sha256.*removed"):
        fetch(server, tmp_path / "f", checksum="sha256:" + "0" * 64)
    assert names(tmp_path) == []


def test_a_wrong_size_is_seen_before_the_download(server, tmp_path):
    with pytest.raises(CourseError, match="has 1,024,000 bytes and should have 5"):
        fetch(server, tmp_path / "f", size=5)
    assert names(tmp_path) == []


def test_without_an_announced_length_the_checksum_decides(server, tmp_path):
    server.announce = False
    assert fetch(server, tmp_path / "f", checksum=md5(CONTENT)).read_bytes() == CONTENT


def test_a_connection_that_stays_broken_ends_with_a_sentence(server, tmp_path):
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(CourseError, match=r"cut .*1\.0 kB are kept.*continues"):
        fetch(server, tmp_path / "f")
    assert names(tmp_path) == ["f.part"] and (tmp_path / "f.part").read_bytes() == CONTENT[:1000]
    assert len(server.requests) == 3  # the first one and two retries


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 3)])
def test_http_errors_name_status_and_address(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(CourseError, match=f"{status}") as error:
        fetch(server, tmp_path / "f")
    assert server.url in str(error.value) and names(tmp_path) == [] and len(server.requests) == requests


def test_no_network_says_what_works_without_one(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    calls = []

    def no_name(*_, **__):
        calls.append(1)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with pytest.raises(CourseError, match="cannot be reached.*toybox.*--from"):
        downloads.fetch("http://images.invalid/x", tmp_path / "x", progress=False, pause=0)
    assert names(tmp_path) == [] and len(calls) == 1


def test_a_closed_port_is_tried_again_and_then_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(CourseError, match="cannot be reached.*refused.*toybox"):
            downloads.fetch(address, tmp_path / "x", progress=False, pause=0, retries=1)
    assert names(tmp_path) == []


def test_too_small_a_disk_is_refused_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(CourseError, match=r"needs 1\.0 MB free, and .* has 1\.0 MB.*--data-dir"):
        fetch(server, tmp_path / "f")
    assert names(tmp_path) == []


def test_two_downloads_of_one_file_at_once(server, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(server, tmp_path / "f").read_bytes() == CONTENT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4 and names(tmp_path) == ["f"]


def test_other_addresses_and_checksums_are_refused(server, tmp_path):
    with pytest.raises(ValueError, match="http"):
        downloads.fetch("file:///etc/hostname", tmp_path / "f")
    with pytest.raises(ValueError, match="md5"):
        fetch(server, tmp_path / "f", checksum="crc:1")
