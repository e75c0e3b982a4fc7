"""Run the lessons as Colab would: its versions, one notebook in an empty folder, and a package that the set-up cell has to install.

    python tests/colab/run_lessons.py                                  # all lessons; the environment is made and deleted
    python tests/colab/run_lessons.py 3 --environment build/colab      # one lesson; the environment stays for the next time

Each lesson runs at tier smoke in a kernel in which google.colab has been imported, and its set-up cell runs unchanged: git finds the
repository's address in a copy of this checkout. What is checked: no cell fails; nothing that Colab brings is upgraded, removed or
installed once more; every control draws when it is moved; data and results lie in the working directory; no picture is a file beside
the notebook, and links lead to files that the repository has. The second lesson also runs once in the first one's runtime, where there
is nothing left to install. The exit status is 1 if anything of this fails.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import front_end
import nbformat
from colab_environment import Environment, changes, copy_as_repository

from sslcourse.course import selection
from sslcourse.course.lesson import duration, summary_name
from sslcourse.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Row:
    """What the table says of one lesson."""

    name: str
    session: front_end.Session
    added: list[str]

    @property
    def ok(self) -> bool:
        return not self.session.problems


def lesson_in_colab(environment: Environment, source: Path, content: Path, variables: dict[str, str], fresh: bool = True) -> Row:
    """Run one notebook in the folder `content`, which stands for Colab's /content.

    fresh: the package is to be installed by the set-up cell; otherwise it is there, and nothing may be installed.
    """
    before = environment.installed()
    shutil.copy2(source, content / source.name)
    notebook = nbformat.read(content / source.name, as_version=4)
    with tempfile.TemporaryDirectory() as specs:
        session = asyncio.run(front_end.run(notebook, environment.python, content, variables, Path(specs)))
    nbformat.write(notebook, content / source.name)
    session.problems += missing_files(notebook, source.parent)
    added, touched = changes(before, environment.installed())
    session.problems += [f"{pin} was replaced, removed or installed once more" for pin in touched]
    ours = [pin for pin in added if pin.startswith("sslcourse==")]
    if fresh and not ours:
        session.problems.append("the set-up cell did not install sslcourse")
    if not fresh and added:
        session.problems.append(f"sslcourse was there, and all the same there came {', '.join(added)}")
    for name in (f"results/{summary_name(int(source.name[:2]))}", "data"):
        if not (content / name).exists():
            session.problems.append(f"there is no {name} in the working directory")
    strange = sorted({path.name for path in content.iterdir()} - {"data", "results"} - {path.name for path in content.glob("*.ipynb")})
    session.problems += [f"it left {name} in the working directory" for name in strange]
    if not any("· Colab" in output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])):
        session.problems.append("it did not notice that it ran in Colab")
    return Row(source.stem, session, added)


def needed_files(notebook) -> tuple[list[str], list[str]]:
    """The files of the repository that a notebook's pictures show, and those that its links lead to, as they are written.

    Colab opens the notebook alone. It shows no picture from beside it; a link it looks up in the repository that the notebook came from.
    """
    texts = []
    for cell in notebook.cells:
        texts += [cell.source] if cell.cell_type == "markdown" else []
        for output in cell.get("outputs", []):
            texts += [output.get("data", {}).get(kind, "") for kind in ("text/markdown", "text/html")]
    prose = "\n\n".join(re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$", "", text, flags=re.DOTALL) for text in texts)
    pictures = re.findall(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)|<img\b[^>]*\bsrc\s*=\s*[\"']([^\"']+)", prose)
    links = re.findall(r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)|\bhref\s*=\s*[\"']([^\"']+)", prose)
    here = re.compile(r"(?!https?:|data:|mailto:|attachment:|#)")
    return tuple([target for pair in found for target in pair if target and here.match(target)] for found in (pictures, links))


def missing_files(notebook, folder: Path) -> list[str]:
    """What is wrong with a notebook's pictures and links in Colab, as sentences; folder: where the repository has the notebook."""
    pictures, links = needed_files(notebook)
    gone = [target for target in links if not (folder / target.partition("#")[0]).exists()]
    return [f"Colab does not show the picture {target}, a file beside the notebook" for target in pictures] + [
        f"a link leads to {target}, which the repository has not" for target in gone
    ]


def variables_of_kernel(environment: Environment, repository: Path, private: Path) -> dict[str, str]:
    """The environment variables of a lesson's kernel: this process's own, less those of the course, of Python and of Jupyter."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SSLCOURSE_", "JUPYTER", "IPYTHON", "PYTHON", "GIT_", "MPL", "VIRTUAL_ENV", "CONDA", "PYTEST"))
    }
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    found_in_copy = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": address}
    return (
        kept
        | found_in_copy
        | {
            "PATH": os.pathsep.join([str(environment.python.parent), os.environ.get("PATH", "")]),
            "IPYTHONDIR": str(private / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
            "GIT_TERMINAL_PROMPT": "0",  # an address that git does not find in the copy fails, instead of asking for a password
            "SSLCOURSE_TIER": "smoke",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
    )


def table(rows: list[Row]) -> str:
    """The rows as text, with the problems and the warnings below."""
    lines = [f"{'lesson':<32} {'set-up':>8} {'all':>8} {'controls':>8}  {'added':<5}  result"]
    for row in rows:
        times = f"{duration(row.session.setup_seconds):>8} {duration(row.session.seconds):>8}"
        lines.append(f"{row.name:<32} {times} {row.session.controls:>8}  {len(row.added):>5}  {'ok' if row.ok else 'FAILED'}")
    added = sorted({pin for row in rows for pin in row.added})
    lines.append(f"\nadded to Colab's packages: {', '.join(added) or 'nothing'}")
    for row in rows:
        lines += [f"{row.name}: {problem}" for problem in row.session.problems]
        lines += [f"{row.name} printed to stderr: {text[:400]}" for text in dict.fromkeys(row.session.warnings)]
    return "\n".join(lines)


def run_all(environment: Environment, sources: list[str], keep: Path | None) -> list[Row]:
    """Each lesson in a runtime of its own, and the second one in the first one's runtime, too; prints a line for each as it ends."""
    base, rows = environment.installed(), []
    with tempfile.TemporaryDirectory(prefix="colab-") as place:
        place = Path(place)
        repository = copy_as_repository(ROOT, place / "repository", "main")
        paths = selection.matching(sources, selection.find_notebooks(repository / "notebooks"))
        (place / "private").mkdir()
        variables = variables_of_kernel(environment, repository, place / "private")

        def one(path: Path, content: Path, fresh: bool, note: str = "") -> None:
            content.mkdir(exist_ok=True)
            row = lesson_in_colab(environment, path, content, variables, fresh)
            row.name += note
            rows.append(row)
            print(f"{row.name}: {'ok' if row.ok else 'FAILED: ' + row.session.problems[0]}", flush=True)
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy2(content / path.name, keep / f"{path.stem}{note.replace(' ', '-')}.ipynb")

        try:
            for index, path in enumerate(paths):
                one(path, place / path.stem, fresh=True)
                if index == 0 and len(paths) > 1:
                    one(paths[1], place / path.stem, fresh=False, note=" after it")
                environment.restore(base)
                shutil.rmtree(place / path.stem)
        finally:
            environment.restore(base)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="keep the environment in this folder for the next time")
    parser.add_argument("--python", help="the Python to make the environment with (default: 3.12, as Colab has it, or near it)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the executed notebooks in this folder, to look at")
    args = parser.parse_args()
    temporary = None if args.environment else Path(tempfile.mkdtemp(prefix="colab-environment-"))
    try:
        environment = Environment.prepared(args.environment or temporary, args.python)
        rows = run_all(environment, args.lessons, args.keep)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    print(f"\n{table(rows)}")
    return int(not all(row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())
