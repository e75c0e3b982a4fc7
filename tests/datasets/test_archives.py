"""Unpacking, above all of what must not be unpacked."""

import io
import shutil
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from sslcourse.datasets import archives, image_folders
from sslcourse.errors import CourseError

NOISE = np.random.default_rng(0).bytes(50_000)
FILES = {"photos/cat/a.jpg": NOISE, "photos/dog/b.jpg": NOISE[::-1], "photos/empty.txt": b""}
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"]


def make(folder, suffix, files=FILES):
    path = folder / f"x{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
        return path
    kind = suffix.rpartition(".")[2]
    with tarfile.open(path, "w:" + {"tar": "", "tgz": "gz"}.get(kind, kind)) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def unpack(archive):
    return archives.spool(archive, archive.parent / "spool")


def patched(archive, local, central, value):
    """The same .zip with one more bit set in both headers of its entry, at these offsets."""
    content = bytearray(archive.read_bytes())
    for place in (content.index(b"PK\x03\x04") + local, content.index(b"PK\x01\x02") + central):
        content[place] |= value
    archive.write_bytes(content)
    return archive


def refused(archive, match):
    with pytest.raises(CourseError, match=match) as error:
        unpack(archive)
    assert archive.name in str(error.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_comes_out_as_it_went_in(tmp_path, suffix):
    found = unpack(make(tmp_path, suffix))
    assert {path: file.open().read() for path, file in found.items()} == FILES
    assert found["photos/dog/b.jpg"].mapped().tobytes() == NOISE[::-1]


def test_backslashes_make_folders(tmp_path):
    found = unpack(make(tmp_path, ".zip", {"photos\\": b"", "photos\\cat\\": b"", "photos\\cat\\a.jpg": b"x"}))
    assert list(found) == ["photos/", "photos/cat/", "photos/cat/a.jpg"] and found["photos/cat/a.jpg"].open().read() == b"x"


@pytest.mark.parametrize("raw", ["Löwe".encode(), "Löwe".encode("latin-1"), "Löwe".encode("cp437")])
@pytest.mark.parametrize("kind", ["tar", "zip", "flagged"])
def test_names_that_are_not_utf8(tmp_path, raw, kind):
    if kind == "tar":
        archive, info = tmp_path / "x.tar", tarfile.TarInfo((raw + b"/a.jpg").decode("utf-8", "surrogateescape"))
        with tarfile.open(archive, "w", encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT) as file:
            file.addfile(info, io.BytesIO())
    else:
        archive = patched(make(tmp_path, ".zip", {"#" * len(raw) + "/a.jpg": b""}), 7, 9, 8 * (kind == "flagged"))  # the flag for UTF-8
        archive.write_bytes(archive.read_bytes().replace(b"#" * len(raw), raw))
    if kind == "flagged" and raw != "Löwe".encode():
        return refused(archive, "not the UTF-8.*Unpack it yourself")
    (name,) = unpack(archive)
    assert image_folders.spelled(name) == "Löwe/a.jpg"


def test_what_is_another_kind_of_file_is_not_called_damaged(tmp_path):
    refused(patched(make(tmp_path, ".zip", {"a.jpg": b"x"}), 8, 10, 9), "compression.*Unpack it yourself")  # Deflate64
    refused(patched(make(tmp_path, ".zip", {"a": b"secret"}), 6, 8, 1), "encrypted")
    (tmp_path / "x.zip").write_bytes(b"Rar!")
    refused(tmp_path / "x.zip", "Unpack it yourself")
    other = make(tmp_path, ".tar.gz", {"a.jpg": b"x"}).rename(tmp_path / "y.zip")  # only the ending is wrong
    assert unpack(other)["a.jpg"].open().read() == b"x"


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("name", ["a/../../evil", "/tmp/evil", "C:evil", "..\\evil"])
def test_entries_outside_are_refused_by_name(tmp_path, suffix, name):
    refused(make(tmp_path, suffix, {"good.txt": b"x", name: b"evil"}), "evil.*outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, stat.S_IFLNK])
def test_links_and_devices_are_refused_by_name(tmp_path, kind):
    if kind == stat.S_IFLNK:
        archive, info = tmp_path / "x.zip", zipfile.ZipInfo("escape")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(info, "/etc/hostname")
    else:
        archive, info = tmp_path / "x.tar", tarfile.TarInfo("escape")
        info.type, info.linkname = kind, "/etc/hostname"
        with tarfile.open(archive, "w") as file:
            file.addfile(info)
    refused(archive, "'escape' that is a link or device")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("limit", ["MAX_ENTRIES", "MAX_BYTES", "RATIO_FLOOR"])
def test_bombs(tmp_path, monkeypatch, suffix, limit):
    archive = make(tmp_path, suffix, {"a": b"", "b": b"", "zeros": bytes(300_000)})
    assert len(unpack(archive)) == 3
    monkeypatch.setattr(archives, limit, 2)
    refused(archive, "holds more than")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("harm", ["a third", "nine tenths", "a byte", "a web page", "nothing"])
def test_damage_is_found(tmp_path, suffix, harm):
    archive = make(tmp_path, suffix)
    whole = archive.read_bytes()
    place = len(whole) // 3 if suffix != ".tar" else 512 + 50_176 + 100  # a plain .tar has sums for its headers only
    flipped = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    cut = {"a third": whole[: len(whole) // 3], "nine tenths": whole[: len(whole) * 9 // 10]}
    archive.write_bytes({**cut, "a byte": flipped, "a web page": b" <!DOCTYPE html><html>" * 100, "nothing": b""}[harm])
    refused(archive, "broken or incomplete")


def test_a_tar_cut_between_two_entries(tmp_path):
    archive = make(tmp_path, ".tar", {"a": b"x" * 512, "b": b"y" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    refused(archive, "broken or incomplete")


def test_a_full_disk_and_another_format_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    archive = make(tmp_path, ".zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    refused(archive, "needs 100.0 kB free")
    refused(archive.rename(tmp_path / "x.rar"), "not an archive.*tar.xz")
