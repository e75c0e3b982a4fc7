"""A virtual environment with Colab's versions, and a copy of this project for it to install from."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sslcourse.errors import CourseError

HERE = Path(__file__).resolve().parent
VERSIONS = HERE / "versions.txt"
STAND_IN = HERE / "stand_in"
MARKER = "colab-versions.json"  # in the environment: what it was made from, and what was installed then
_PYTHONS = ((3, 12), (3, 11), (3, 13))  # Colab's own first; there are wheels of every version in the list for these


class Environment:
    """An environment with the versions of versions.txt in a folder, and what has come on top since it was made."""

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve()
        self.python = self.folder / "bin" / "python"

    @classmethod
    def prepared(cls, folder: Path, python: str | None = None) -> "Environment":
        """The environment in this folder, made if it is not there, remade if it is not as it was made.

        python: the interpreter to make it with (default: see `find_python`). Raises CourseError for a folder that holds something else.
        """
        environment = cls(folder)
        if environment.folder.exists() and any(environment.folder.iterdir()) and not (environment.folder / MARKER).exists():
            raise CourseError(f"{folder} holds something else than an environment made here. Give a new folder, or delete that one.")
        if environment._usable():
            return environment
        shutil.rmtree(environment.folder, ignore_errors=True)
        try:
            environment._make(python or find_python())
        except BaseException:
            shutil.rmtree(environment.folder, ignore_errors=True)
            raise
        return environment

    def _marker(self) -> dict:
        try:
            return json.loads((self.folder / MARKER).read_text())
        except (OSError, ValueError):
            return {}

    def _usable(self) -> bool:
        marker = self._marker()
        if not marker or marker["made from"] != _digest() or subprocess.run([self.python, "-c", "import torch"]).returncode:
            return False
        self.restore(marker["installed"])
        return sorted(self.installed()) == marker["installed"]

    def _make(self, python: str) -> None:
        print(f"Making an environment with Colab's versions in {self.folder}, with {python} (gigabytes, most of them torch).", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MARKER).write_text("{}")
        subprocess.run([python, "-m", "venv", self.folder], check=True)
        self.pip("install", "--no-deps", "--requirement", str(VERSIONS))
        (self.site_packages / "colab_stand_in.pth").write_text(f"{STAND_IN}\n")
        marker = {"made from": _digest(), "installed": sorted(self.installed())}
        (self.folder / MARKER).write_text(json.dumps(marker, indent=1))

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python3.*/site-packages"))

    def pip(self, *arguments: str) -> None:
        """Run the environment's pip quietly. Raises CourseError with the end of what it said if it fails."""
        command = [self.python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CourseError(f"pip {' '.join(arguments)} failed: {done.stderr.strip()[-800:]}")

    def installed(self) -> dict[str, tuple[int, int]]:
        """name==version of every distribution -> what tells its files from those of another installation of the same version."""
        found = {}
        for folder in self.site_packages.glob("*.dist-info"):
            name, version = folder.name.removesuffix(".dist-info").rsplit("-", 1)
            status = (folder / "METADATA").stat()
            found[f"{name}=={version}"] = (status.st_ino, status.st_mtime_ns)
        return found

    def restore(self, base) -> None:
        """Take away what was not there in `base`, an iterable of name==version, and put back what is missing."""
        now = set(self.installed())
        if now - set(base):
            self.pip("uninstall", "--yes", *(pin.split("==")[0] for pin in now - set(base)))
        if set(base) - now:
            self.pip("install", "--no-deps", *(set(base) - now))


def changes(before: dict, after: dict) -> tuple[list[str], list[str]]:
    """What came on top between two listings of `installed`, and what is gone, of another version, or was installed once more."""
    return sorted(set(after) - set(before)), sorted(pin for pin, files in before.items() if after.get(pin) != files)


def find_python() -> str:
    """An interpreter of a version that Colab has, or near it: on the PATH, of pyenv, or this one. Raises CourseError if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for major, minor in _PYTHONS:
        named = shutil.which(f"python{major}.{minor}")
        candidates = [named] if named else []
        candidates += map(str, sorted(pyenv.glob(f"{major}.{minor}.*/bin/python")))
        candidates += [sys.executable] if sys.version_info[:2] == (major, minor) else []
        for candidate in candidates:
            works = subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
            if works:  # a shim of pyenv may stand for nothing, and Debian's Python comes without venv
                return candidate
    raise CourseError("There is no Python 3.11, 3.12 or 3.13 here that can make virtual environments; name one with --python.")


def copy_as_repository(root: Path, to: Path, branch: str) -> Path:
    """A git repository of one commit with the files of this checkout as they are now, committed or not, ignored ones left out."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise CourseError(
            f"{root} is no git checkout; the lessons install the package with git, so git and a checkout are needed."
        ) from None
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # a deleted file may still be listed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    nobody = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--initial-branch", branch], ["add", "--all"], [*nobody, "commit", "--message", "as it is now"]):
        subprocess.run(["git", *command, "--quiet"] if command[0] != "add" else ["git", *command], cwd=to, check=True)
    return to


def _digest() -> str:
    return hashlib.sha256(VERSIONS.read_bytes()).hexdigest()
