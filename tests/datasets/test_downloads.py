"""Downloads, against a server on this machine that can cut, refuse and change its mind."""

import hashlib
import socket
from unittest.mock import Mock

import pytest

from sslcourse.datasets import downloads
from sslcourse.errors import CourseError

CONTENT = bytes(range(256)) * 4000  # about 1 MB
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def content(server):
    server.content = CONTENT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_once_and_nothing_else(server, tmp_path):
    for _ in range(2):
        assert downloads.fetch(server.url, tmp_path / "a" / "f", MD5).read_bytes() == CONTENT
    assert names(tmp_path / "a") == ["f"] and server.asked == [None]
    (tmp_path / "a" / "f").write_bytes(b"something else")
    assert downloads.fetch(server.url, tmp_path / "a" / "f", MD5).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_the_next_call_continues_where_a_cut_one_stopped_if_the_server_can(server, tmp_path, ranges):
    server.cuts, server.ranges = [1000], ranges
    with pytest.raises(CourseError, match=r"cut .*1\.0 kB are kept"):
        downloads.fetch(server.url, tmp_path / "f", MD5)
    assert names(tmp_path) == ["f.part"]
    assert downloads.fetch(server.url, tmp_path / "f", MD5).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"] and names(tmp_path) == ["f"]


def test_an_interruption_keeps_what_came(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(downloads.tqdm, "update", Mock(side_effect=KeyboardInterrupt))
        downloads.fetch(server.url, tmp_path / "f", MD5)
    assert 0 < (tmp_path / "f.part").stat().st_size < len(CONTENT)
    assert downloads.fetch(server.url, tmp_path / "f", MD5).read_bytes() == CONTENT and server.asked[1]


def test_a_length_that_is_not_announced_and_a_part_that_is_whole_already(server, tmp_path):
    server.announce = False
    assert downloads.fetch(server.url, tmp_path / "f", MD5).read_bytes() == CONTENT
    (tmp_path / "g.part").write_bytes(CONTENT)
    assert downloads.fetch(server.url, tmp_path / "g", MD5).read_bytes() == CONTENT and server.asked[1] == f"bytes={len(CONTENT)}-"


@pytest.mark.parametrize("part", [b"", b"of another file", CONTENT + b"too long"])
def test_a_file_that_does_not_match_its_checksum_is_removed(server, tmp_path, part):
    (tmp_path / "f.part").write_bytes(part)
    with pytest.raises(CourseError, match="checksum.*removed"):
        downloads.fetch(server.url, tmp_path / "f", checksum="sha256:" + "0" * 64)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [200, 404, 503])
def test_what_is_not_the_file_is_refused_with_its_address(server, tmp_path, status):
    misbehaviour, match = ({"kind": "text/html; charset=utf-8"}, "web page") if status == 200 else ({"status": status}, str(status))
    vars(server).update(misbehaviour)
    with pytest.raises(CourseError, match=match) as error:
        downloads.fetch(server.url, tmp_path / "f")
    assert server.url in str(error.value) and names(tmp_path) == []


@pytest.mark.parametrize("fault", [socket.gaierror(-3, "Temporary failure in name resolution"), ConnectionRefusedError(111, "refused")])
def test_no_network_says_what_works_without_one(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(socket, "create_connection", Mock(side_effect=fault))
    with pytest.raises(CourseError, match="cannot be reached.*toybox"):
        downloads.fetch("http://example.invalid/x", tmp_path / "f")
    assert names(tmp_path) == []
