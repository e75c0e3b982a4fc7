"""A virtual environment with Colab's versions, a fresh layer over it for each lesson, and a copy of this project to install from."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSIONS = HERE / "versions.txt"
MADE_FROM = "made-from.txt"  # in an environment: the versions that it was made with, written last


def prepared(folder: Path) -> Path:
    """The site-packages of the environment in this folder, which is made anew unless it was made from this versions.txt.

    Made with Python 3.12, as Colab has it, or with this one where there is none. Raises SystemExit for a folder of something else.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder} holds something else than an environment. Give a new folder, or delete that one.")
    made_from = folder / MADE_FROM
    if not made_from.exists() or made_from.read_bytes() != VERSIONS.read_bytes():
        python = shutil.which("python3.12") or sys.executable
        print(f"Making an environment with Colab's versions in {folder}, with {python} (gigabytes, most of them torch).", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", VERSIONS]
        subprocess.run(install, check=True)
        shutil.copyfile(VERSIONS, made_from)
    return site_packages(folder)


def site_packages(folder: Path) -> Path:
    """Where the packages of an environment lie."""
    return next(folder.glob("lib/python3.*/site-packages"))


def layer(base: Path, folder: Path) -> Path:
    """An environment over another one's site-packages, in which google.colab can be imported; -> its interpreter."""
    python = base.parents[2] / "bin" / "python"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages(folder) / "below.pth").write_text(f"{base}\n{HERE / 'stand_in'}\n")
    return folder / "bin" / "python"


def installed(site: Path) -> dict[str, str]:
    """name -> version of the packages in a folder."""
    return dict(path.name.removesuffix(".dist-info").rsplit("-", 1) for path in site.glob("*.dist-info"))


def copy_as_repository(root: Path, to: Path) -> Path:
    """A git repository of one commit with the files of this checkout as they are now, committed or not, ignored ones left out."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=root, capture_output=True, check=True, text=True).stdout
    for name in listed.split("\0"):
        if name and (root / name).is_file():  # a deleted file may still be listed
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    nobody = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q", "--initial-branch", "main"], ["add", "--all"], [*nobody, "commit", "-q", "-m", "as it is now"]):
        subprocess.run(["git", *command], cwd=to, check=True)
    return to
