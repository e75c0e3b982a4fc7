"""The lessons as a site of static pages, made by Sphinx from the stored notebooks: nothing is executed, nothing is fetched.

The pages can be opened from disk without a network: formulas, fonts, search and the switch between dark and light come with them.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from sslcourse.course import selection
from sslcourse.course.pages import made_folders, page_links, site_pages
from sslcourse.errors import CourseError

_NEEDED = {"sphinx": "sphinx", "myst_nb": "myst-nb", "furo": "furo", "sphinx_design": "sphinx-design"}
_MATHJAX_PACKAGE = "sphinx-mathjax-offline"
_MATHJAX = "tex-svg-full.js"  # everything in one file, formulas as drawings: no fonts to load


@dataclass(frozen=True)
class Site:
    """What was made. warnings: what Sphinx had to say; links: what the pages link to."""

    folder: Path
    pages: int
    warnings: list[str] = field(default_factory=list)
    links: page_links.Links = field(default_factory=page_links.Links)


def build(out: str | Path, notebooks_dir: str | Path | None = None) -> Site:
    """Make the site in a folder, which is replaced if an earlier site lies there, and stays as it is if anything goes wrong.

    Raises CourseError without the packages of the extra `site`, for a folder that holds other things, and if Sphinx fails.
    """
    check_installed()
    notebooks = selection.find_notebooks(notebooks_dir)
    made_folders.check(out, "site")
    with tempfile.TemporaryDirectory(prefix="sslcourse-site-") as temporary:
        stage, made = Path(temporary) / "source", Path(temporary) / "pages"
        site_pages.write(notebooks, stage)
        _add_theme(stage)
        warnings = _sphinx(stage, made)
        for left in ("_sources", ".buildinfo", "objects.inv"):  # nobody reads them from disk
            path = made / left
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with made_folders.replacing(out, "site") as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
    folder = Path(out).expanduser().resolve()
    return Site(folder, len(list(folder.rglob("*.html"))), warnings, page_links.check(folder))


def check_installed() -> None:
    """Raise CourseError, with the way to get them, if packages are missing that the site needs."""
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    missing += [] if importlib.util.find_spec(_MATHJAX_PACKAGE) else [_MATHJAX_PACKAGE]
    if missing:
        raise CourseError(
            f'The site needs {", ".join(missing)}. Install that in the course\'s folder: python -m pip install --editable ".[site]"'
        )


def mathjax() -> Path:
    """The file that draws formulas in a browser. Raises CourseError if the package that carries it is not installed."""
    found = importlib.util.find_spec(_MATHJAX_PACKAGE)
    path = Path(found.origin).parent / "static" / "mathjax" / _MATHJAX if found and found.origin else None
    if path is None or not path.is_file():
        raise CourseError(
            f'Formulas need {_MATHJAX_PACKAGE}. Install it in the course\'s folder: python -m pip install --editable ".[site]"'
        )
    return path


def _add_theme(stage: Path) -> None:
    theme = Path(__file__).parent / "site_theme"
    shutil.copyfile(theme / "conf.py", stage / "conf.py")
    static = stage / "_static"
    static.mkdir(parents=True)
    for path in (theme / "site.css", theme / "site.js", mathjax()):
        shutil.copyfile(path, static / path.name)


def _sphinx(stage: Path, out: Path) -> list[str]:
    """Run Sphinx in a process of its own. -> its warnings, without the temporary folder's name."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-d", str(stage.parent / "doctrees"), str(stage), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    said = [re.sub(r"\x1b\[[0-9;]*m", "", line).replace(f"{stage}/", "") for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        raise CourseError("Sphinx could not make the site: " + (said[-1] if said else f"it ended with status {done.returncode}") + ".")
    return [line for line in said if not _is_known_anchor(line, stage)]


def _is_known_anchor(warning: str, stage: Path) -> bool:
    """Whether a warning is about an anchor that the text sets itself in HTML, such as <a id="view"></a>, which Sphinx does not see."""
    found = re.match(
        r"(.+?):\d+: WARNING: (?:local id not found in doc '(.+?)': '(.+?)'|'myst' cross-reference target not found: '(.+?)')", warning
    )
    if not found:
        return False
    page, anchor = (f"{found[2]}.md", found[3]) if found[2] else (found[1], found[4])
    path = stage / page
    return path.is_file() and f'id="{anchor}"' in path.read_text(encoding="utf-8")
