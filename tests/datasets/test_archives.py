"""Unpacking, above all of what must not be unpacked."""

import io
import shutil
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from sslcourse.datasets import archives
from sslcourse.errors import CourseError

FILES = {"photos/cat/a.jpg": b"a" * 5000, "photos/dog/b.jpg": bytes(range(256)) * 40, "photos/empty.txt": b""}


def make_tar(path, files=FILES, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def make(folder, suffix, files=FILES):
    path = folder / f"x{suffix}"
    if suffix == ".zip":
        return make_zip(path, files)
    kind = suffix.rpartition(".")[2]
    return make_tar(path, files, {"tar": "w", "gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}[kind])


def refused(archive, folder, match, **limits):
    """Extraction raises a sentence with `match` and the archive's name, and leaves nothing but the archive."""
    with pytest.raises(CourseError, match=match) as error:
        archives.extract(archive, folder / "out", progress=False, **limits)
    assert archive.name in str(error.value)
    with pytest.raises(CourseError, match=match):
        archives.spool(archive, folder / "out", progress=False, **limits)
    assert [path.name for path in folder.iterdir()] == [archive.name]


SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_comes_out_as_it_went_in(tmp_path, suffix):
    archive = make(tmp_path, suffix)
    out = archives.extract(archive, tmp_path / "out", progress=False)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", archive.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_spooled_archive_reads_like_a_folder(tmp_path, suffix):
    archive = make(tmp_path, suffix)
    root = archives.spool(archive, tmp_path / "spool", progress=False)
    (photos,) = root.iterdir()
    assert photos.is_dir() and [member.name for member in photos.iterdir()] == ["cat", "dog", "empty.txt"]
    found = {}
    folders = [root]
    while folders:
        for member in folders.pop().iterdir():
            if member.is_dir():
                folders.append(member)
            else:
                with member.open("rb") as file:
                    found[str(member)] = file.read()
    assert found == FILES
    assert list(archives.first_names(archive, 2)) == ["a.jpg", "b.jpg"]


def test_many_entries_all_come_out(tmp_path):
    archive = make(tmp_path, ".tar.gz", {f"{i % 7}/{i}": b"%d" % i for i in range(500)})
    out = archives.extract(archive, tmp_path / "out", progress=False)
    assert sum(path.is_file() for path in out.rglob("*")) == 500 and (out / "2" / "499").read_bytes() == b"499"


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "C:evil", "..\\evil", "\\evil"])
def test_entries_outside_are_refused_by_name(tmp_path, suffix, name):
    archive = make(tmp_path, suffix, {"good.txt": b"x", name: b"evil"})
    refused(archive, tmp_path, "outside")
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize(
    ("kind", "match"),
    [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link"), (tarfile.CHRTYPE, "is a device"), (tarfile.FIFOTYPE, "is a device")],
)
def test_links_and_devices_in_a_tar(tmp_path, kind, match):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as file:
        file.addfile(tarfile.TarInfo("good"))
        info = tarfile.TarInfo("escape")
        info.type, info.linkname = kind, "/etc/hostname"
        file.addfile(info)
    refused(archive, tmp_path, f"'escape' that {match}")


def test_links_in_a_zip(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("escape")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/hostname")
    refused(archive, tmp_path, "'escape' that is a link")


@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_bombs(tmp_path, suffix):
    archive = make(tmp_path, suffix, {"zeros": bytes(120_000_000)})
    refused(archive, tmp_path, "holds 120.0 MB or more in a file of")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_limits_can_be_set(tmp_path, suffix):
    archive = make(tmp_path, suffix)
    refused(archive, tmp_path, "more than 2 entries", max_entries=2)
    refused(archive, tmp_path, r"more than 9\.0 kB", max_bytes=9000)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0.3, 0.7, 0.9])
def test_a_shortened_archive(tmp_path, suffix, part):
    noise = np.random.default_rng(0).bytes(60_000)
    archive = make(tmp_path, suffix, {"a": noise, "b": noise[::-1], "c": noise[:777]})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(part * len(content))])
    refused(archive, tmp_path, "broken or incomplete")


def test_a_tar_cut_between_two_entries(tmp_path):
    archive = make(tmp_path, ".tar", {"a": b"x" * 512, "b": b"y" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    refused(archive, tmp_path, "broken or incomplete")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_byte(tmp_path, suffix):
    noise = np.random.default_rng(0).bytes(50_000)
    archive = make(tmp_path, suffix, {"a": noise, "b": noise})
    content = bytearray(archive.read_bytes())
    place = 512 + 50_176 + 100 if suffix == ".tar" else len(content) // 3  # a plain .tar has sums for its headers only
    content[place] ^= 0xFF
    archive.write_bytes(content)
    refused(archive, tmp_path, "broken or incomplete")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_something_else_with_that_name(tmp_path, suffix):
    archive = tmp_path / f"x{suffix}"
    archive.write_bytes(b"<html>not found</html>" * 100)
    refused(archive, tmp_path, "broken or incomplete")
    archive.write_bytes(b"")
    refused(archive, tmp_path, "broken or incomplete")


def test_an_encrypted_zip(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": b"secret"})
    content = archive.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set the flag "encrypted" in both headers
        place = content.index(signature) + offset
        content = content[:place] + bytes([content[place] | 1]) + content[place + 1 :]
    archive.write_bytes(content)
    refused(archive, tmp_path, "encrypted.*give the folder")


def test_a_name_that_is_both_file_and_folder(tmp_path):
    refused(make(tmp_path, ".tar", {"a": b"x", "a/b": b"y"}), tmp_path, "cannot be written")
    refused(make(tmp_path, ".tar", {"a/b": b"x", "a": b"y"}), tmp_path, "cannot be written")


def test_a_full_disk_is_seen_before_a_zip_is_written(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "x.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    refused(archive, tmp_path, "needs 15.2 kB free.*100 bytes")


def test_wrong_arguments(tmp_path):
    with pytest.raises(CourseError, match="no file"):
        archives.extract(tmp_path / "missing.zip", tmp_path / "out")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(CourseError, match="x.rar is not an archive.*tar.xz"):
        archives.extract(tmp_path / "x.rar", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(CourseError, match="exists already"):
        archives.extract(make_zip(tmp_path / "x.zip"), tmp_path / "out")
