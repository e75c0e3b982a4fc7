"""Run the lessons as Colab would: its versions, one notebook in an empty folder, and a package that the set-up cell has to install.

    python tests/colab/run_lessons.py                                  # all lessons; the environment is made and deleted
    python tests/colab/run_lessons.py 3 --environment build/colab      # one lesson; the environment stays for the next time

Each lesson runs at tier smoke, and its set-up cell runs unchanged: git finds the repository's address in a copy of this checkout. No cell
may fail, nothing that Colab brings may be installed once more, every control has to draw when it is moved, data and results have to lie in
the working directory. The second lesson runs in the first one's runtime, where nothing is left to install. Exit status 1 if any fails.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import colab_environment
import front_end
import nbformat

from sslcourse.course import selection

ROOT = Path(__file__).resolve().parents[2]
_NOT_PASSED_ON = ("SSLCOURSE_", "JUPYTER", "IPYTHON", "PYTHON", "GIT_", "MPL", "VIRTUAL_ENV", "CONDA", "PYTEST")


def lesson_in_colab(path: Path, python: Path, content: Path, variables: dict[str, str]) -> tuple[list[str], int]:
    """Run one notebook in the folder `content`, which stands for Colab's /content; -> problems, and how many controls were moved."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as specs:
        problems, controls = asyncio.run(front_end.run(notebook, python, content, variables, Path(specs)))
    problems += missing_files(notebook, path.parent)
    left = sorted(path.name for path in content.iterdir())
    if left != ["data", "results"]:
        problems.append(f"it left {left} in the working directory, and not data and results")
    if not any("· Colab" in output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])):
        problems.append("it did not notice that it ran in Colab")
    return problems, controls


def missing_files(notebook, folder: Path) -> list[str]:
    """What is wrong with a notebook's pictures and links in Colab, as sentences; folder: where the repository has the notebook.

    Colab opens the notebook alone: it shows no picture from beside it, and looks a link up in the repository that it came from.
    """
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        texts += [output.get("data", {}).get(kind, "") for kind in ("text/markdown", "text/html")]
    prose = "\n\n".join(re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$", "", text, flags=re.DOTALL) for text in texts)
    elsewhere = r"(?!https?:|data:|mailto:|attachment:|#)"
    pictures = re.findall(rf"(?:!\[[^\]]*\]\(|<img\b[^>]*\bsrc=[\"']){elsewhere}([^)\s\"']+)", prose)
    targets = re.findall(rf"(?:\]\(|\bhref=[\"']){elsewhere}([^)\s\"']+)", prose)
    gone = [target for target in targets if target not in pictures and not (folder / target.partition("#")[0]).exists()]
    return [f"the picture {target} is a file beside the notebook" for target in pictures] + [f"a link leads to {t}" for t in gone]


def run_all(base: Path, chosen: list[str], place: Path) -> bool:
    """Each lesson in a runtime of its own, but the second in the first one's; prints what became of each. -> whether all went well."""
    repository = colab_environment.copy_as_repository(ROOT, place / "repository")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
    variables |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": address}
    variables |= {"GIT_TERMINAL_PROMPT": "0", "SSLCOURSE_TIER": "smoke", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    variables |= {"IPYTHONDIR": str(place / "ipython"), "JUPYTER_RUNTIME_DIR": str(place / "runtime")}
    all_well, colab = True, colab_environment.installed(base)
    for index, path in enumerate(selection.select(chosen, repository / "notebooks")):
        if index != 1:
            content, runtime = place / path.stem, place / f"runtime of {path.stem}"
            content.mkdir()
            python = colab_environment.layer(base, runtime)
        before = colab_environment.installed(colab_environment.site_packages(runtime))
        here = variables | {"PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])}
        problems, controls = lesson_in_colab(path, python, content, here)
        now = colab_environment.installed(colab_environment.site_packages(runtime))
        added = sorted(set(now) - set(before))
        problems += [f"{name}, which Colab has, was installed as {now[name]}" for name in added if name in colab]
        if ("sslcourse" in added) == (index == 1):
            problems.append("the set-up cell had to install the package just where it was not there, and did otherwise")
        print(f"{path.stem}: {'FAILED' if problems else 'ok'}, {controls} controls, added {', '.join(added) or '-'}")
        print("".join(f"  {problem}\n" for problem in problems), end="", flush=True)
        all_well &= not problems
    return all_well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="keep the environment in this folder for the next time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="colab-") as place:
        base = colab_environment.prepared(args.environment or Path(place) / "environment")
        return int(not run_all(base, args.lessons, Path(place)))


if __name__ == "__main__":
    sys.exit(main())
