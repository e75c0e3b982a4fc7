"""The line that CONTRIBUTING.md gives for a fork puts another address into all files that have the old one, and changes nothing else."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEW = "/".join(["octocat", "Hello-World.2"])  # nowhere in the files, this one included


def test_the_documented_line_changes_every_address_and_nothing_else(tmp_path):
    if not (ROOT / ".git").exists() or not shutil.which("perl"):
        pytest.skip("needs a git checkout, and perl")
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path], check=True)
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## A fork\n")[1].split("\n## ")[0]
    (line,) = re.findall(r"```\n(.*)\n```", section)
    old = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"].removeprefix("https://github.com/")

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and ".git" not in path.parts}
    subprocess.run(["sh", "-c", line.replace("OWNER/REPO", NEW)], cwd=tmp_path, check=True)
    changed = {path.relative_to(tmp_path).as_posix() for path, content in before.items() if path.read_bytes() != content}
    lessons = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert lessons | {"README.md", "pyproject.toml"} <= changed
    for path, content in before.items():
        after = path.read_bytes()
        assert old.encode() not in after, path
        assert after.replace(NEW.encode(), old.encode()) == content, path
