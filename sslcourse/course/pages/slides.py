"""The lessons as reveal.js slides, through nbconvert: what is stored is shown, nothing is executed and no notebook is changed."""

import html
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslcourse.course import notebook_files, selection
from sslcourse.course.pages import made_folders, site, slide_cells
from sslcourse.errors import CourseError

_TEMPLATE = Path(__file__).parent / "slides_template"
_NOTES = ("plugin/notes/notes.js", "dist/plugin/notes.js")  # reveal.js 4 and 5; 6
HOW_TO_GET_REVEAL = "npm pack reveal.js@5, then tar xzf reveal.js-5*.tgz, then --reveal package"


@dataclass(frozen=True)
class Slides:
    """What was made: the folder, the lessons' files in it, and whether they need a network to be shown."""

    folder: Path
    files: list[Path]
    needs_network: bool


def export(
    chosen: Sequence[str | int] | None, out: str | Path, notebooks_dir: str | Path | None = None, reveal: str | Path | None = None
) -> Slides:
    """Write slides of the chosen lessons (all for None or []) and a page that lists them into a folder, which earlier slides give way to.

    reveal: a folder with reveal.js 4, 5 or 6, copied beside the slides; without it, they load reveal.js from the network when shown.
    Raises CourseError for lessons that are not there, without the packages of the extra `site`, for a folder that is not reveal.js, and
    for an output folder that holds other things.
    """
    if importlib.util.find_spec("nbconvert") is None or importlib.util.find_spec("markdown_it") is None:
        raise CourseError(
            'Slides need nbconvert and markdown-it-py. Install them in the course\'s folder: python -m pip install --editable ".[site]"'
        )
    mathjax = site.mathjax()
    paths = selection.matching(chosen, selection.find_notebooks(notebooks_dir))
    notes = find_notes(reveal) if reveal is not None else ""
    addresses = {path.name: f"{path.stem}.slides.html" for path in paths}
    with made_folders.replacing(out, "slides") as folder:
        shutil.copyfile(mathjax, folder / mathjax.name)
        if reveal is not None:
            _copy_reveal(Path(reveal).expanduser(), folder / "reveal.js", notes)
        titles = {}
        for path in paths:
            slides = slide_cells.deck(notebook_files.load(path), addresses)
            titles[addresses[path.name]] = slides.metadata["title"]
            text = _render(slides, path, mathjax.name, notes)
            (folder / addresses[path.name]).write_text(text, encoding="utf-8")
        (folder / "index.html").write_text(_contents(titles), encoding="utf-8")
    folder = Path(out).expanduser().resolve()
    return Slides(folder, [folder / name for name in titles], reveal is None)


def find_notes(reveal: str | Path) -> str:
    """Where in a copy of reveal.js the speaker's notes are. Raises CourseError if the folder is no copy of reveal.js that can be used."""
    folder = Path(reveal).expanduser()
    needed = ["dist/reveal.js", "dist/reveal.css", "dist/theme/white.css"]
    missing = [name for name in needed if not (folder / name).is_file()]
    found = [name for name in _NOTES if (folder / name).is_file()]
    if missing or not found:
        what = missing[0] if missing else _NOTES[0]
        raise CourseError(f"{reveal} is no copy of reveal.js 4, 5 or 6: {what} is not there. Get one with: {HOW_TO_GET_REVEAL}")
    return found[0]


def _copy_reveal(reveal: Path, target: Path, notes: str) -> None:
    """What slides need of reveal.js, with its licence."""
    ignored = shutil.ignore_patterns("*.map", "*.mjs", "*.esm.js", "*.d.ts")
    shutil.copytree(reveal / "dist", target / "dist", ignore=ignored)
    if not notes.startswith("dist/"):
        shutil.copytree((reveal / notes).parent, (target / notes).parent, ignore=ignored)
    for name in ("LICENSE", "package.json"):
        if (reveal / name).is_file():
            shutil.copyfile(reveal / name, target / name)


def _render(slides, path: Path, mathjax: str, notes: str) -> str:
    """The page of one lesson. notes: path of the notes in the local copy of reveal.js; "" to load reveal.js from the network."""
    from nbconvert.exporters import SlidesExporter
    from nbconvert.preprocessors import TagRemovePreprocessor
    from traitlets.config import Config

    config = Config()
    config.SlidesExporter.preprocessors = [TagRemovePreprocessor]
    config.TagRemovePreprocessor.remove_input_tags = {slide_cells.OUTPUT_ONLY}
    exporter = SlidesExporter(config=config, extra_template_basedirs=[str(_TEMPLATE.parent)], template_name=_TEMPLATE.name)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    exporter.embed_images = True
    exporter.reveal_theme = "white"
    if notes:
        exporter.reveal_url_prefix = "reveal.js"
    course = {name: (_TEMPLATE / f"slides.{suffix}").read_text(encoding="utf-8") for name, suffix in (("style", "css"), ("script", "js"))}
    course |= {"mathjax": mathjax, "notes": f"{exporter.reveal_url_prefix}/{notes or _NOTES[0]}"}
    resources = {"metadata": {"name": path.stem, "path": str(path.parent)}, "course": course}
    return exporter.from_notebook_node(slides, resources=resources)[0]


def _contents(titles: dict[str, str]) -> str:
    """A page that lists the lessons. titles: address -> title."""
    rows = "\n".join(f'<li><a href="{html.escape(name)}">{html.escape(title)}</a></li>' for name, title in titles.items())
    keys = "Keys: Space for the next slide, Esc for an overview, S for the speaker's notes, F for the whole screen."
    style = "body{font:1.2em/1.6 sans-serif;max-width:40em;margin:3em auto;padding:0 1em;color-scheme:light dark}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Slides</title><style>{style}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>Slides</h1>\n<ol>\n{rows}\n</ol>\n<p>{keys}</p></body></html>\n'
    )
