"""The repository's address: by GitHub's rules, in every file that has it, all of them or none, and nothing else."""

import json
import os
from pathlib import Path

import pytest

from sslcourse.course import stamp
from sslcourse.course.commands import main as cli
from sslcourse.course.stamp import Address
from sslcourse.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = Address("first-owner", "course"), Address("octocat", "Hello-World.2")


def test_the_committed_files_agree():
    assert stamp.disagreements(ROOT) == []
    assert stamp.current(ROOT).url == stamp._repository(ROOT)


@pytest.mark.parametrize("text", ["octocat/hello-world", "a/b", "A1-b2/_.x-", "octo_company/repo", "a" * 39 + "/" + "b" * 100])
def test_names_that_github_allows(text):
    address = stamp.parse(text)
    assert f"{address.owner}/{address.name}" == text and address.branch == "main"


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/octocat/x",
        "https://github.com/octocat/x.git",
        "http://www.github.com/octocat/x/",
        "git@github.com:octocat/x.git",
    ],
)
def test_a_whole_address_is_understood(text):
    assert stamp.parse(text) == Address("octocat", "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("octocat", "OWNER/REPO"),
        ("", "OWNER/REPO"),
        ("a/b/c", "OWNER/REPO"),
        ("https://example.org/a/b", "OWNER/REPO"),
        ("-a/b", "'-a'"),
        ("a-/b", "'a-'"),
        ("a--b/c", "'a--b'"),
        ("a.b/c", "'a.b'"),
        ("a" * 40 + "/b", "owner"),
        ("/b", "''"),
        ("a/", "''"),
        ("a/..", "'..'"),
        ("a/b c", "'b c'"),
        ("a/b.git", "'b.git'"),
        ("a/b.wiki", "'b.wiki'"),
        ("a/" + "b" * 101, "repository"),
        ('a/b"', "repository"),
        ("ä/b", "'ä'"),
    ],
)
def test_names_that_github_does_not_allow_get_one_sentence(text, says):
    with pytest.raises(CourseError, match="GitHub") as caught:
        stamp.parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("branch", ["", "a..b", "/a", "a/", "a//b", ".a", "a/.b", "-a", "a b", "a.lock", "a.", "a~1", "a:b", "a(b)"])
def test_branches_that_git_does_not_allow(branch):
    with pytest.raises(CourseError, match="branch"):
        stamp.parse("a/b", branch)


def lesson(name, address=OLD, extra="", output="an output"):
    """A notebook's text as JupyterLab writes it."""
    cells = [
        {
            "cell_type": "markdown",
            "id": "a",
            "metadata": {"from": address.url},
            "source": ["# One\n", f"[![C](c.svg)]({address.colab(name)})\n", extra],
        },
        {
            "cell_type": "code",
            "execution_count": 1,
            "id": "b",
            "metadata": {"source": address.url},
            "outputs": [{"name": "stdout", "output_type": "stream", "text": [f"{output} {address.install}\n"], "source": [address.url]}],
            "source": f'if True:\n    source = "{address.install}"\n    # größer\n',
        },
    ]
    return (
        json.dumps({"cells": cells, "metadata": {"seen": address.url}, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False)
        + "\n"
    )


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A small course of another address, which the command finds."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())

    write("pyproject.toml", f'[project]\nname = "sslcourse"\n[project.urls]\nRepository = "{OLD.url}"\n')
    for name in ("01_one.ipynb", "02_two.ipynb"):
        write(f"notebooks/{name}", lesson(name))
    write("README.md", f"See {OLD.url}.\r\nBadge: {OLD.url}/actions/workflows/test.yml/badge.svg\r\n")
    write("sslcourse/course/links.py", f'PUBLISHED = "{OLD.url}/blob/main"\n')
    write("notes.md", "Nothing of it here: https://github.com/somebody/else\n")
    write("data/x/page.md", OLD.url)  # not the course's
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_place_gets_the_new_address_and_nothing_else_changes(fork):
    before = contents(fork)
    changed = stamp.stamp(fork, NEW)
    assert changed == {
        "README.md": 2,
        "notebooks/01_one.ipynb": 2,
        "notebooks/02_two.ipynb": 2,
        "pyproject.toml": 1,
        "sslcourse/course/links.py": 1,
    }
    assert stamp.current(fork) == NEW and stamp.disagreements(fork) == []
    after = contents(fork)
    assert {path for path in before if before[path] != after[path]} == {fork / name for name in changed} and set(before) == set(after)
    # in a notebook only the sources: outputs and metadata keep the old address, and no character of the file's form changes
    name = "01_one.ipynb"
    old, new = json.loads(before[fork / "notebooks" / name]), json.loads(after[fork / "notebooks" / name])
    assert NEW.colab(name) in "".join(new["cells"][0]["source"]) and f'"{NEW.install}"' in new["cells"][1]["source"]
    for cells in (old["cells"], new["cells"]):
        for cell in cells:
            del cell["source"]
    assert old == new
    back = after[fork / "notebooks" / name].decode()
    assert (
        back.replace(NEW.colab(name), OLD.colab(name)).replace(f'source = \\"{NEW.install}', f'source = \\"{OLD.install}').encode()
        == (before[fork / "notebooks" / name])
    )
    assert after[fork / "README.md"] == f"See {NEW.url}.\r\nBadge: {NEW.url}/actions/workflows/test.yml/badge.svg\r\n".encode()


def test_a_second_time_changes_nothing_and_back_again_gives_the_old_files(fork):
    before = contents(fork)
    stamp.stamp(fork, NEW)
    once = {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in contents(fork)}
    assert stamp.stamp(fork, NEW) == {}
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in contents(fork)} == once
    stamp.stamp(fork, OLD)
    assert contents(fork) == before


def test_a_branch_is_what_badges_open_and_set_up_cells_install(fork):
    there = Address("octocat", "x", "autumn/2025")
    stamp.stamp(fork, there)
    text = (fork / "notebooks/02_two.ipynb").read_text()
    assert "/github/octocat/x/blob/autumn/2025/notebooks/02_two.ipynb" in text and 'git+https://github.com/octocat/x@autumn/2025\\"' in text
    assert stamp.current(fork) == there and "/octocat/x/blob/autumn/2025" in (fork / "sslcourse/course/links.py").read_text()
    stamp.stamp(fork, Address("octocat", "x"))
    assert stamp.current(fork).branch == "main" and "autumn" not in "".join(map(str, contents(fork).values()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://github.com/first-owner/course.", "https://github.com/octocat/Hello-World.2."),
        ("(https://github.com/first-owner/course)", "(https://github.com/octocat/Hello-World.2)"),
        ("https://github.com/first-owner/course.git", "https://github.com/octocat/Hello-World.2.git"),
        ("git@github.com:first-owner/course.git", "git@github.com:octocat/Hello-World.2.git"),
        ("https://github.com/first-owner/course/tree/main/x", "https://github.com/octocat/Hello-World.2/tree/dev/x"),
        ("https://github.com/first-owner/course/tree/mainly/x", "https://github.com/octocat/Hello-World.2/tree/mainly/x"),
        ("pip install git+https://github.com/first-owner/course@main", "pip install git+https://github.com/octocat/Hello-World.2@dev"),
        ("https://raw.githubusercontent.com/first-owner/course/main/a", "https://raw.githubusercontent.com/octocat/Hello-World.2/dev/a"),
        ("https://first-owner.github.io/course/", "https://octocat.github.io/Hello-World.2/"),
        ("https://mybinder.org/v2/gh/first-owner/course/x", "https://mybinder.org/v2/gh/octocat/Hello-World.2/x"),
        ("https://img.shields.io/github/stars/x", None),
        ("https://github.com/first-owner/course-data", None),
        ("https://github.com/first-owner/course.data", None),
        ("https://github.com/first-owner/courses", None),
        ("https://github.com/other/course", None),
        ("https://example.org/first-owner/course", None),
        ("git+https://github.com/other/tool", None),
    ],
)
def test_links_of_all_kinds(text, expected):
    new = Address(NEW.owner, NEW.name, "dev")
    assert stamp.stamped(text, "README.md", OLD, new) == (expected or text, int(expected is not None))


def test_badges_and_set_up_cells_are_known_by_their_form(fork):
    (fork / "notebooks/01_one.ipynb").write_text(lesson("01_one.ipynb", Address("third", "party")))
    found = stamp.disagreements(fork)
    # the branch is that of the first badge; the address is pyproject.toml's
    assert len(found) == 2 and all(where.startswith("notebooks/01_one.ipynb") and "third/party" in where for where in found)
    stamp.stamp(fork, NEW)
    assert stamp.disagreements(fork) == []


def test_what_cannot_be_put_right_is_said(fork, capsys):
    (fork / "notebooks/01_one.ipynb").write_text(lesson("02_two.ipynb"))  # opens the other lesson
    (fork / "notebooks/02_two.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    assert cli.main(["stamp", "octocat/x"]) == 1
    out = capsys.readouterr().out
    assert "01_one.ipynb: its Colab badge opens" in out and "02_two.ipynb: its Colab badge is missing" in out
    assert "02_two.ipynb: its set-up cell installs nothing from GitHub" in out
    assert stamp.current(fork).owner == "octocat"


@pytest.mark.parametrize("fails_at", [1, 2, 4])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_all_or_nothing(fork, monkeypatch, fails_at, step):
    before, calls, real = contents(fork), [], getattr(os, step)

    def refuse(*args, **kwargs):
        calls.append(args)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(CourseError, match="Nothing was changed.*No space left"):
        stamp.stamp(fork, NEW)
    assert len(calls) >= fails_at and contents(fork) == before


def test_a_write_protected_file_stops_it_before_anything_changes(fork, monkeypatch):
    before, real = contents(fork), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "02_two.ipynb" and real(path, mode))
    with pytest.raises(CourseError, match="02_two.ipynb is write-protected"):
        stamp.stamp(fork, NEW)
    assert contents(fork) == before


def test_stopped_in_between_the_same_command_goes_on(fork, monkeypatch):
    """As if the machine stopped after two files, with nobody to rename them back: pyproject.toml, which knows the old one, is last."""
    before, order, real = contents(fork), [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target), real(source, target)))
    changed = stamp.stamp(fork, NEW)
    assert len(order) == len(changed) and order[-1].name == "pyproject.toml"
    for path in order[2:]:
        path.write_bytes(before[path])
    assert set(stamp.stamp(fork, NEW)) == {path.relative_to(fork).as_posix() for path in order[2:]}
    assert stamp.disagreements(fork) == [] and OLD.url not in (fork / "README.md").read_text()


def test_the_command(fork, capsys):
    assert cli.main(["stamp", "--check"]) == 0 and "All files agree: first-owner/course." in capsys.readouterr().out
    assert cli.main(["stamp", "--check", "octocat/x"]) == 1 and "first-owner" in capsys.readouterr().out
    before = contents(fork)
    for wrong in (["stamp"], ["stamp", "octocat"], ["stamp", "a/b", "--branch", "a b"]):
        assert cli.main(wrong) == 1 and capsys.readouterr().err.count("\n") == 1
    assert contents(fork) == before
    assert cli.main(["stamp", "octocat/x", "--branch", "dev"]) == 0
    out = capsys.readouterr().out
    assert "notebooks/01_one.ipynb: 2 places" in out and "pyproject.toml: 1 place\n" in out and "octocat/x, branch dev" in out
    assert cli.main(["stamp", "--check"]) == 0 and "branch dev" in capsys.readouterr().out
    assert cli.main(["stamp", "--branch", "main"]) == 0 and stamp.current(fork) == Address("octocat", "x")


@pytest.mark.parametrize(("line", "says"), [("", "no Repository"), ('Repository = "https://example.org/x"', "OWNER/REPO")])
def test_a_pyproject_without_an_address_gets_one_sentence(fork, capsys, line, says):
    (fork / "pyproject.toml").write_text(f'[project]\nname = "sslcourse"\n[project.urls]\n{line}\n')
    assert cli.main(["stamp", "octocat/x"]) == 1
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
