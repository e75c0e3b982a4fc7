"""Downloads, against a server on this machine that can cut, refuse and change its mind."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sslcourse.datasets import downloads
from sslcourse.errors import CourseError

CONTENT = bytes(range(256)) * 4000  # about 1 MB
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `content` at every path. The attributes say how it misbehaves; `asked` holds the Range of each request."""

    def __init__(self):
        self.content, self.ranges, self.status, self.cuts, self.announce, self.kind = CONTENT, True, None, [], True, "application/x-tar"
        self.asked = []
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
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        status = self.status or (416 if start >= len(self.content) else 206 if start else 200)
        if status >= 400:
            return handler.send_error(status)
        body = self.content[start:]
        handler.send_response(status)
        handler.send_header("Content-Type", self.kind)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.announce:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSE", 0)
    monkeypatch.setattr(downloads, "RETRIES", 2)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def fetch(server, path, checksum=MD5):
    return downloads.fetch(server.url, path, checksum, progress=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_once_and_nothing_else(server, tmp_path):
    for _ in range(2):
        assert fetch(server, tmp_path / "a" / "f").read_bytes() == CONTENT
    assert names(tmp_path / "a") == ["f"] and server.asked == [None]
    (tmp_path / "a" / "f").write_bytes(b"something else")
    assert fetch(server, tmp_path / "a" / "f").read_bytes() == CONTENT


def test_a_cut_is_resumed_within_one_call(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert fetch(server, tmp_path / "f", checksum=None).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_the_next_call_continues_where_a_broken_one_stopped(server, tmp_path):
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(CourseError, match=r"cut .*1\.0 kB are kept"):
        fetch(server, tmp_path / "f")
    assert names(tmp_path) == ["f.part"] and len(server.asked) == 3  # the first one and two retries
    server.cuts = []
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000-" and names(tmp_path) == ["f"]


def test_an_interruption_keeps_what_came(server, tmp_path, monkeypatch):
    class Impatient(downloads.tqdm):
        def update(self, count):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(downloads, "tqdm", Impatient)
        fetch(server, tmp_path / "f")
    assert 0 < (tmp_path / "f.part").stat().st_size < len(CONTENT)
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT and server.asked[1]


def test_servers_that_cannot_resume_or_announce_nothing(server, tmp_path):
    server.ranges, server.announce = False, True
    server.cuts = [300_000]
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT
    server.announce = False
    assert fetch(server, tmp_path / "g").read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "f").read_bytes() == CONTENT and server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("part", [b"", b"of another file", CONTENT + b"too long"])
def test_a_file_that_does_not_match_its_checksum_is_removed(server, tmp_path, part):
    (tmp_path / "f.part").write_bytes(part)
    with pytest.raises(CourseError, match="checksum.*removed"):
        fetch(server, tmp_path / "f", checksum="sha256:" + "0" * 64)
    assert names(tmp_path) == []


def test_a_web_page_in_place_of_the_file_is_refused(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(CourseError, match="web page"):
        fetch(server, tmp_path / "f", checksum=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 3)])
def test_http_errors_name_status_and_address(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(CourseError, match=f"{status}") as error:
        fetch(server, tmp_path / "f")
    assert server.url in str(error.value) and names(tmp_path) == [] and len(server.asked) == requests


def test_no_network_says_at_once_what_works_without_one(server, tmp_path, monkeypatch):
    def no_name(*_, **__):
        server.asked.append("name")
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with pytest.raises(CourseError, match="cannot be reached.*toybox"):
        fetch(server, tmp_path / "f")
    assert names(tmp_path) == [] and server.asked == ["name"]


def test_a_closed_port_is_explained(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(CourseError, match="cannot be reached.*toybox"):
            fetch(server, tmp_path / "f")
    assert names(tmp_path) == []
