"""Which folder an option means, and whether it can be written to."""

import errno
import os
from unittest.mock import Mock

import pytest

from sslcourse import files
from sslcourse.errors import CourseError


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sslcourse"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_the_default_folder_is_the_same_from_everywhere_in_the_repository_and_a_home_is_expanded(course, monkeypatch):
    assert files.folder_of("default", "DATA_DIR", "data") == files.folder_of("default", "--data-dir", "data") == course / "data"
    for variable in (str(course / "elsewhere"), "elsewhere"):
        monkeypatch.setenv("SSLCOURSE_DATA_DIR", variable)
        assert files.folder_of("default", "--data-dir", "data") == course / "elsewhere"
    assert files.folder_of("data", "--data-dir", "data") == course / "notebooks" / "data"
    assert files.folder_of("data", "DATA_DIR", "data", course) == course / "data"
    (course / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    assert files.folder_of("default", "RESULTS_DIR", "results") == course / "notebooks" / "results"
    monkeypatch.setenv("HOME", str(course / "home"))
    assert files.folder_of("~/data", "--data-dir", "data") == course / "home" / "data"


WRONG = ["", "  ", None, 3, "s3://bucket/data", "gs:/bucket", "file:///data", "~nobody-has-this-name/x", "a\0b", "file"]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_folder_is_refused_by_the_name_of_the_option(wrong, course):
    (course / "notebooks" / "file").touch()
    with pytest.raises(CourseError, match="--data-dir"):
        files.folder_of(wrong, "--data-dir", "data")
    assert files.folder_of("c:/data", "--data-dir", "data").name == "data", "a drive of Windows is no address"


def test_a_folder_is_tried_before_work_is_done_and_nothing_stays(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new" / "inner", "--out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="--out"):
        files.check_writable(tmp_path / "file" / "inner", "--out")
    for code, told in ((errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")):
        monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", Mock(side_effect=OSError(code, os.strerror(code))))
        with pytest.raises(CourseError, match=told):
            files.check_writable(tmp_path, "--out")
