"""`pip install sslcourse`, without extras, is enough for the library and README's script, and importing it stays light."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def brought(requirements) -> set[str]:
    """The distributions that these requirements bring, with those that they need in their turn."""
    found, waiting = set(), [*map(Requirement, requirements)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found.add(name)
            try:
                waiting += map(Requirement, metadata.requires(name) or [])
            except metadata.PackageNotFoundError:
                assert name not in map(canonicalize_name, requirements), f"{name} is not installed"
    return found


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run code in a process that can import what the base dependencies bring, and nothing else that is installed here."""
    alone = brought(DEPENDENCIES)
    others = {module for module, owners in metadata.packages_distributions().items() if not alone & {*map(canonicalize_name, owners)}}
    finder = f"""
import sys
from importlib.machinery import PathFinder
class Alone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {others - {"sslcourse"}!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Alone
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", finder + code], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_library_and_readmes_script_need_the_base_dependencies_alone(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(script.splitlines()) <= 12
    few = """
import importlib, pkgutil, sslcourse
for module in pkgutil.walk_packages(sslcourse.__path__, "sslcourse."):
    if not module.name.startswith(("sslcourse.course", "sslcourse.__main__")):
        importlib.import_module(module.name)  # as the first one
    for name in [name for name in sys.modules if name.partition(".")[0] == "sslcourse"]:
        del sys.modules[name]
from sslcourse.datasets import toybox
toybox.OPTIONS.update(unlabeled=64, train=200, validation=40, test=40)
"""
    done = python(few + re.sub(r"epochs=\d+", "epochs=1", script), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"top-1 \S+ ± \S+ %", done.stdout)) == script.count("print(") > 0


@pytest.mark.parametrize("command", [["run", "1", "--tier", "smoke"], ["notebooks"], ["handout", "--out", "class"]])
def test_a_command_that_needs_more_says_so_with_the_line_that_installs_it(tmp_path, command):
    done = python(f"from sslcourse.course.commands.main import main\nsys.exit(main({command}))", tmp_path)
    assert done.returncode == 1 and 'pip install "sslcourse[lab]"' in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_importing_the_training_part_imports_nothing_heavy(tmp_path):
    heavy = {"torchvision", "sklearn", "scipy.stats", "scipy.optimize", "scipy.linalg", "matplotlib", "pandas", "IPython", "jsonschema"}
    done = python("import torch\nbefore = set(sys.modules)\nimport sslcourse.training\nprint(*set(sys.modules) - before)", tmp_path)
    assert "sslcourse.training" in done.stdout.split() and not heavy & {*done.stdout.split()}, done.stdout + done.stderr
