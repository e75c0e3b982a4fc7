"""The repository's address in the course's files: its badges, its set-up cells and its links, all of which a fork has to change.

The address stands in pyproject.toml, as [project.urls] Repository; the branch in the lessons' Colab badges. In notebooks only the
sources of cells are read and changed, character by character: outputs, metadata and the file's form stay as they are.
"""

import contextlib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sslcourse.errors import CourseError
from sslcourse.files import stage_beside

_OWNER = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:_[A-Za-z0-9]+)?"  # the part after _ is that of a company's managed users
_NAME = r"[A-Za-z0-9._-]+"
_BRANCH = r"[A-Za-z0-9._/-]+"
# Where the address may stand, below the root: not in what is downloaded, drawn or built here.
_PLACES = ("*", ".ci/*", ".github/**/*", "docs/**/*", "notebooks/*", "sslcourse/**/*", "tests/**/*")
_TEXTS = {".cfg", ".cff", ".css", ".html", ".ipynb", ".j2", ".js", ".json", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ".yml", ""}
_LESSON = "[0-9][0-9]_*.ipynb"


@dataclass(frozen=True)
class Address:
    """A repository on GitHub, and the branch that the course is read and installed from."""

    owner: str
    name: str
    branch: str = "main"

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" + (f", branch {self.branch}" if self.branch != "main" else "")

    @property
    def url(self) -> str:
        """The address of the repository's page, which git takes, too."""
        return f"https://github.com/{self.owner}/{self.name}"

    @property
    def install(self) -> str:
        """What pip installs the package from."""
        return f"git+{self.url}" + (f"@{self.branch}" if self.branch != "main" else "")

    def page(self, path: str, folder: bool = False) -> str:
        """Where a file or folder of the repository is shown; path: from its root."""
        return f"{self.url}/{'tree' if folder else 'blob'}/{self.branch}/{path}"

    def colab(self, lesson: str) -> str:
        """What a lesson's badge opens; lesson: the name of its file."""
        return f"https://colab.research.google.com/github/{self.owner}/{self.name}/blob/{self.branch}/notebooks/{lesson}"


def parse(text: str, branch: str = "main") -> Address:
    """OWNER/REPO, or the address of a repository on GitHub, as an Address. Raises CourseError with what is wrong by GitHub's rules."""
    given = str(text).strip()
    short = re.sub(r"^(?:https?://(?:www\.)?github\.com/|git@github\.com:)", "", given)
    if short != given:
        short = short.rstrip("/").removesuffix(".git")
    owner, slash, name = short.partition("/")
    if not slash or "/" in name:
        raise CourseError(f"{given!r} is not a repository on GitHub; write it as OWNER/REPO, such as octocat/hello-world.")
    if not re.fullmatch(_OWNER, owner) or len(owner) > 39:
        rule = "at most 39 letters, digits and single hyphens, with no hyphen at either end"
        raise CourseError(f"{owner!r} cannot be the name of an owner on GitHub: {rule}.")
    if not re.fullmatch(_NAME, name) or len(name) > 100 or name in (".", "..") or name.lower().endswith((".git", ".wiki")):
        rule = "at most 100 letters, digits, hyphens, underscores and dots, more than just dots, and no .git or .wiki at the end"
        raise CourseError(f"{name!r} cannot be the name of a repository on GitHub: {rule}.")
    return Address(owner, name, _checked_branch(branch))


def _checked_branch(branch: str) -> str:
    parts = branch.split("/")
    wrong = any(not part or part.startswith(".") or part.endswith(".lock") for part in parts) or branch.endswith(".") or ".." in branch
    if not re.fullmatch(_BRANCH, branch) or branch.startswith("-") or wrong:
        rule = "letters, digits, dots, hyphens, underscores and single slashes, by git's rules"
        raise CourseError(f"{branch!r} cannot be the name of a branch in an address: it has {rule}, such as main or autumn-2025.")
    return branch


def current(root: Path) -> Address:
    """The address that the course in `root` has now: pyproject.toml's, with the branch of the first badge that names one.

    Raises CourseError if pyproject.toml has no address of a repository on GitHub.
    """
    url = _repository(root)
    branches = (re.search(_badge(r"[\w.-]+"), _sources(_read(path))) for path in _lessons(root))
    branch = next((found["branch"] for found in branches if found), "main")
    try:
        return parse(url, branch)
    except CourseError as error:
        raise CourseError(f"The Repository in pyproject.toml is {url!r}; it has to be https://github.com/OWNER/REPO. {error}") from None


def _repository(root: Path) -> str:
    """The Repository of pyproject.toml's [project.urls], whatever it is."""
    try:
        return str(tomllib.loads(_read(root / "pyproject.toml"))["project"]["urls"]["Repository"])
    except (ValueError, KeyError, TypeError) as error:
        reason = "has no Repository in [project.urls]" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise CourseError(f"{root / 'pyproject.toml'} {reason}.") from None


def _lessons(root: Path) -> list[Path]:
    return sorted((root / "notebooks").glob(_LESSON))


def stamped(text: str, name: str, old: Address, new: Address) -> tuple[str, int]:
    """The text of a file with the new address in the places of the old one, and how many places those are.

    name: the file's name. The lessons' badges, what they install, and pyproject.toml's Repository are known by their form, and need not
    have had the old address.
    """
    count = 0

    def change(piece: str) -> str:
        nonlocal count
        result, places = _changed(piece, old, new)
        count += places
        return result

    if name == "pyproject.toml":
        text, count = re.subn(rf'^(Repository[ \t]*=[ \t]*")(?!{re.escape(new.url)}")[^"]*"', rf'\g<1>{new.url}"', text, flags=re.MULTILINE)
    if not name.endswith(".ipynb"):
        return change(text), count
    pieces, end = [], 0
    for begin, stop in _source_spans(text):
        pieces += [text[end:begin], change(text[begin:stop])]
        end = stop
    return "".join([*pieces, text[end:]]), count


def _changed(text: str, old: Address, new: Address) -> tuple[str, int]:
    count = 0

    def put(replacement: Callable[[re.Match], str]) -> Callable[[re.Match], str]:
        def replace(match: re.Match) -> str:
            nonlocal count
            made = replacement(match)
            count += made != match[0]
            return made

        return replace

    # First what is known by its form, whoever's address it carries, ...
    text = re.sub(_badge(r"[0-9]{2}_\w+\.ipynb"), put(lambda m: new.colab(m["lesson"])), text)
    text = re.sub(_INSTALL, put(lambda m: f"{m['before']}{new.install}{m['after']}"), text)
    # ... then every other link to the old one: github.com/OWNER/REPO, git@github.com:OWNER/REPO, OWNER.github.io/REPO,
    # raw.githubusercontent.com/OWNER/REPO/BRANCH, and services whose addresses hold /github/OWNER/REPO or /gh/OWNER/REPO.
    end = r"(?=\.git\b|\.(?:\W|$)|[^\w.-]|$)"
    places = r"(?P<place>\bgithub\.com[/:]|/github/|/gh/)"
    raw = r"(?P<place>\braw\.githubusercontent\.com/)"
    repository, branch = rf"{re.escape(old.owner)}/{re.escape(old.name)}{end}", rf"{re.escape(old.branch)}(?![\w.-])"
    into = rf"(?P<into>(?:/(?:blob|tree|raw|edit|blame|commits)/|@)(?={branch}))?"

    def link(m: re.Match) -> str:
        return f"{m['place']}{new.owner}/{new.name}" + (f"{m['into']}{new.branch}" if m["into"] else "")

    text = re.sub(rf"{places}{repository}{into}(?(into){branch})", put(link), text)
    text = re.sub(rf"{raw}{repository}(?P<into>/(?={branch}))?(?(into){branch})", put(link), text)
    pages = rf"(?<![\w.-]){re.escape(old.owner)}\.github\.io/{re.escape(old.name)}{end}"
    return re.sub(pages, put(lambda m: f"{new.owner}.github.io/{new.name}"), text, flags=re.IGNORECASE), count


def _badge(lesson: str) -> str:
    """The pattern of a Colab address of one of the course's lessons, in anybody's fork; lesson: a pattern, or a file's name."""
    return rf"https://colab\.research\.google\.com/github/{_OWNER}/{_NAME}/blob/(?P<branch>{_BRANCH}?)/notebooks/(?P<lesson>{lesson})"


# The line of a set-up cell; in a notebook's file its quotation marks are escaped.
_INSTALL = rf'(?P<before>\bsource = \\?")(?P<source>git\+https://github\.com/{_OWNER}/{_NAME}(?:@{_BRANCH})?)(?P<after>\\?")'


def _sources(notebook: str) -> str:
    """The sources of a notebook's cells, as they stand in the file's text."""
    return "\n".join(notebook[begin:end] for begin, end in _source_spans(notebook))


def _source_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where in the text of a notebook the strings of its cells' sources stand, each as (begin, end) within its quotation marks."""
    path, key, expecting = [], None, False  # path: the container at each depth, as (its own key, whether it is an object)
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]', text):
        mark = token[0]
        if mark in "{[":
            path.append((key, mark == "{"))
            key, expecting = None, mark == "{"
        elif mark in "}]":
            path.pop()
            key, expecting = None, False
        elif mark == ",":
            key, expecting = None, bool(path) and path[-1][1]
        elif mark == ":":
            expecting = False
        elif expecting:
            key = mark[1:-1]
        else:
            keys = [of for of, _ in path]
            if (keys == [None, "cells", None] and key == "source") or keys == [None, "cells", None, "source"]:
                yield token.start() + 1, token.end() - 1


def files(root: Path) -> list[Path]:
    """The files of the course in which its address may stand."""
    found = {path for place in _PLACES for path in root.glob(place) if path.suffix in _TEXTS and path.is_file()}
    return sorted(path for path in found if not {"__pycache__", ".ipynb_checkpoints"} & set(path.relative_to(root).parts))


def _read(path: Path) -> str:
    """The file's text, its line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {error}.") from None


def stamp(root: Path, new: Address) -> dict[str, int]:
    """Put another address into all files of the course in `root`, or into none. Returns file -> places changed; {} if all had it already.

    Raises CourseError, with everything as it was, if a file cannot be read or written. What cannot be put right, such as a badge that a
    lesson does not have, stays as it is; see `disagreements`.
    """
    old = current(root)
    texts, counts = {}, {}
    for path in files(root):
        try:
            before = _read(path)
        except UnicodeDecodeError:  # no text after all
            continue
        after, places = stamped(before, path.name, old, new)
        if after != before:
            texts[path], counts[path.relative_to(root).as_posix()] = after, places
    # pyproject.toml last: if the machine stops in between, the same command still knows the old address and goes on
    _write_all({path: texts[path] for path in sorted(texts, key=lambda path: path.name == "pyproject.toml")})
    return counts


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write all of the files or none: everything beside its place first, then renamed, and renamed back if that fails midway."""
    ready, done, made = [], [], []
    try:
        for path, text in texts.items():
            path = path.resolve()  # a link stays one
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is write-protected")
            for content in (text.encode("utf-8"), path.read_bytes()):
                made.append(stage_beside(path, content))
            ready.append((path, *made[-2:]))
        for path, new, kept in ready:
            os.replace(new, path)
            done.append((path, kept))
    except BaseException as error:
        for path, kept in reversed(done):
            os.replace(kept, path)
        if isinstance(error, OSError):
            raise CourseError(f"Nothing was changed, because a file could not be written: {error}.") from error
        raise
    finally:
        for beside in made:
            beside.unlink(missing_ok=True)


def disagreements(root: Path, address: Address | None = None) -> list[str]:
    """What in the course does not carry the address, by default `current`, as sentences that say what it has instead; [] if all agree."""
    address = address or current(root)
    found = []
    url = _repository(root)
    if url != address.url:
        found.append(f"pyproject.toml: its Repository is {url}; it has to be {address.url}.")
    for path in _lessons(root):
        sources, where = _sources(_read(path)), f"notebooks/{path.name}"
        badges = [match[0] for match in re.finditer(_badge(r"[\w.-]+"), sources)]
        if badges != [address.colab(path.name)]:
            has = f"opens {' and '.join(badges)}" if badges else "is missing"
            found.append(f"{where}: its Colab badge {has}; it has to open {address.colab(path.name)}, once.")
        installs = [match["source"] for match in re.finditer(_INSTALL, sources)]
        if installs != [address.install]:
            has = f"installs {' and '.join(installs)}" if installs else "installs nothing from GitHub"
            found.append(f"{where}: its set-up cell {has}; it has to install {address.install}, once.")
    for path in files(root):
        if path.suffix != ".ipynb" and not path.is_relative_to(root / "tests"):
            with contextlib.suppress(UnicodeDecodeError):
                for match in re.finditer(_badge(r"[0-9]{2}_\w+\.ipynb"), _read(path)):
                    if match[0] != address.colab(match["lesson"]):
                        found.append(f"{path.relative_to(root).as_posix()}: a link opens {match[0]}, not {address.colab(match['lesson'])}.")
    return found
