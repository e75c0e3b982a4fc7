"""The pages that the site is made from: copies of the notebooks and texts, and the contents page.

Copies differ from what is stored in what only makes sense elsewhere: badges, links into the repository, folded cells.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import nbformat

from sslcourse.course import notebook_files
from sslcourse.course.handouts.handout import PUBLISHED

_TITLES = {"TEACHING": "For teachers", "GLOSSARY": "Glossary", "LICENSE": "Licence of the lessons"}  # in this order
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^()\s]+)((?:\s+\"[^\"]*\")?\))")
_RAW_LINK = re.compile(r"(<(?:a|img)\b[^>]*?\b(?:href|src)=[\"'])([^\"']+)([\"'])")
_FENCE = re.compile(r"^(?:```.*?^```|~~~.*?^~~~)[^\n]*$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Lesson:
    """What the contents page says of a lesson."""

    stem: str
    title: str
    question: str = ""
    picture: str = ""  # path from the root, "" if there is none
    alt: str = ""

    @property
    def name(self) -> str:
        return f"{int(self.stem[:2])} {self.title}"


def write(notebooks: list[Path], stage: Path) -> None:
    """Fill a folder with what Sphinx reads, for the notebooks and what lies beside and above them."""
    folder = notebooks[0].parent
    root = folder.parent
    order = list(_TITLES)
    beside = sorted(folder.glob("*.md"), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name))
    texts = beside + [root / name for name in ("README.md", "CONTRIBUTING.md") if (root / name).is_file()]
    pages = _Pages(root, folder, {*notebooks, *texts})
    for path in sorted(folder.glob("pictures/*")):
        if path.is_file():
            for place in (stage, stage / "extra"):  # for Markdown, and for <img> in it, which Sphinx leaves as it is
                _copy(path, place / "notebooks" / "pictures" / path.name)
    lessons = []
    readme = (root / "README.md").read_text(encoding="utf-8") if (root / "README.md").is_file() else ""
    for path in notebooks:
        notebook = notebook_files.load(path)
        lessons.append(about(notebook, path, readme))
        target = stage / "notebooks" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(_lesson_page(notebook, path, pages), target)
    for path in texts:
        target = stage / pages.place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(pages.text(path.read_text(encoding="utf-8"), path), encoding="utf-8")
    entries = [(_TITLES.get(path.stem, ""), pages.place(path)) for path in texts if path.parent == folder]
    entries += [({"README": "README: install, run, results"}.get(path.stem, ""), path.name) for path in texts if path.parent == root]
    front = pages.text(_front(readme), root / "README.md")
    (stage / "index.md").write_text(contents_page(front, lessons, entries), encoding="utf-8")


def about(notebook, path: Path, readme: str) -> Lesson:
    """A lesson's title from its first heading; its question, picture and alt text from the README's table, as far as they are there."""
    heading = next(re.finditer(r"^# +(.+)$", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"), re.M), None)
    title = re.sub(r"^Lesson \d+ of \d+: *", "", heading[1].strip()) if heading else path.stem[3:].replace("_", " ")
    title = title[:1].upper() + title[1:]
    picture = f"notebooks/pictures/lesson_{int(path.stem[:2])}.png"
    alt = re.search(rf"!\[([^\]]+)\]\({picture}\)|<img[^>]*{picture}[^>]*\balt=\"([^\"]+)\"", readme)
    has_picture = (path.parent / "pictures" / Path(picture).name).is_file()
    return Lesson(path.stem, title, _question(readme, path.name), picture if has_picture else "", (alt[1] or alt[2]) if alt else title)


def _question(readme: str, name: str) -> str:
    """What stands in the column "question" of the README's table, in the row that links to a notebook; "" if there is none."""
    header = []
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if "question" in cells:
            header = cells
        if header and len(cells) == len(header) and f"/{name})" in cells[0]:
            return cells[header.index("question")]
        if not cells:
            header = []
    return ""


def contents_page(front: str, lessons: list[Lesson], entries: list[tuple[str, str]]) -> str:
    """The contents page as Markdown. entries: (title or "", path) of the pages beside the lessons."""
    cards = []
    for lesson in lessons:
        options = [f":link: notebooks/{lesson.stem}", ":link-type: doc"]
        options += [f":img-top: {lesson.picture}", f":img-alt: {lesson.alt}"] if lesson.picture else []
        cards.append("\n".join(["```{grid-item-card} " + lesson.name, *options, "", lesson.question, "```"]))
    grid = "\n".join(["````{grid} 1 2 2 3", ":gutter: 3", ":class-container: lessons", "", *cards, "````"])
    listed = [_toctree("Lessons", [f"{lesson.name} <notebooks/{lesson.stem}>" for lesson in lessons])]
    names = [path.removesuffix(".md") for _, path in entries]
    beside = [f"{title} <{name}>" if title else name for (title, _), name in zip(entries, names, strict=True)]
    listed += [_toctree("Beside the lessons", beside)] if beside else []
    front = front.strip() or "# Self- and semi-supervised image learning"
    return "\n\n".join([front, "## Lessons", grid, *listed]) + "\n"


def _toctree(caption: str, names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"])


def _front(readme: str) -> str:
    """The README up to its first section."""
    return re.split(r"^## ", readme, maxsplit=1, flags=re.MULTILINE)[0]


def _lesson_page(notebook, path: Path, pages: "_Pages"):
    """The notebook as a page, in place: links, and what is folded."""
    section = ""
    notebook.metadata.setdefault("language_info", nbformat.from_dict({"name": "python"}))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = unfold_html(pages.text(cell.source, path))
            headings = re.findall(r"^#+ +(.+)$", cell.source, flags=re.MULTILINE)
            section = headings[-1] if headings else section
            continue
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = widen_long_cells(keep_together("".join(output.data["text/html"])))
        labels = notebook_files.tags(cell)
        if "solution" in labels:
            named = re.match(r"# *(Solution[^\n]*)", cell.source)
            _fold(cell, named[1].strip() if named else "Solution")
        elif re.match(r"set-?up", section, flags=re.IGNORECASE) and "parameters" not in labels:
            _fold(cell, "Code of the set-up")
    return notebook


def _fold(cell, summary: str) -> None:
    cell.metadata["tags"] = [*notebook_files.tags(cell), "hide-input"]
    cell.metadata["mystnb"] = {"code_prompt_show": summary, "code_prompt_hide": summary}


def keep_together(text: str) -> str:
    """The text or HTML, in which "51.6 ± 3.4 %" is not broken into two lines."""
    return re.sub(r"(?<=\d) (?=[±%])|(?<=±) (?=\d)", "\N{NO-BREAK SPACE}", text)


def widen_long_cells(html: str) -> str:
    """HTML whose table cells with a sentence in them carry the class "long", so that no column is a word wide."""
    return re.sub(r"<td([^>]*)>(?=[^<]{30,}</td>)", r'<td class="long"\1>', html)


def unfold_html(text: str) -> str:
    """The text with an empty line inside every one-line <details>, so that what it holds is read as Markdown, formulas included."""
    return re.sub(r"^(<details>)\s*(<summary>.*?</summary>)(?!\n\n)(.*?)(</details>)", r"\1\2\n\n\3\n\n\4\n", text, flags=re.M | re.S)


class _Pages:
    """Which files become pages, and how links to them and to other files have to read."""

    def __init__(self, root: Path, folder: Path, paths: set[Path]):
        self.root, self.folder, self.paths = root, folder, paths

    def place(self, path: Path) -> str:
        """Where a file lies in the site's sources."""
        return f"notebooks/{path.name}" if path.parent == self.folder else path.name

    def text(self, text: str, path: Path) -> str:
        """Markdown of a file, with links as the site needs them; code blocks stay as they are."""
        return "".join(part if is_code else self._text(part, path) for is_code, part in _outside_code(text))

    def _text(self, text: str, path: Path) -> str:
        text = re.sub(r"\[!\[([^\]]*)\]\(https?://[^)]*\)\]", r"[\1]", text)  # a badge becomes a plain link
        text = re.sub(r"!\[([^\]]*)\]\((https?://[^)]*)\)", r"[\1](\2)", text)  # and so does any other picture from elsewhere
        text = _LINK.sub(lambda found: found[1] + self._target(found[2], path) + found[3], text)
        text = _RAW_LINK.sub(lambda found: found[1] + _as_page(self._target(found[2], path)) + found[3], text)
        return keep_together(text)

    def _target(self, target: str, path: Path) -> str:
        if re.match(r"[a-z][a-z0-9+.-]*:", target, flags=re.IGNORECASE):
            return target
        name, mark, fragment = target.partition("#")
        found = (path.parent / unquote(name)).resolve() if name else path
        fragment = _anchor(fragment) if mark else ""
        if found in self.paths or (found.parent == self.folder / "pictures" and found.is_file()):
            return name + mark + fragment
        if found.exists() and found.is_relative_to(self.root):
            published = PUBLISHED.replace("/blob/", "/tree/") if found.is_dir() else PUBLISHED
            return f"{published}/{found.relative_to(self.root).as_posix()}{mark}{fragment}"
        return target


def _outside_code(text: str) -> Iterator[tuple[bool, str]]:
    end = 0
    for fence in _FENCE.finditer(text):
        yield False, text[end : fence.start()]
        yield True, fence[0]
        end = fence.end()
    yield False, text[end:]


def _anchor(fragment: str) -> str:
    """The anchor of a heading as the site writes it: JupyterLab keeps capitals and punctuation, the web's repositories do not."""
    return re.sub(r"[^\w\- ]", "", unquote(fragment)).lower().replace(" ", "-")


def _as_page(target: str) -> str:
    """HTML that stands in the text is not rewritten by Sphinx."""
    return re.sub(r"\.(ipynb|md)(?=#|$)", ".html", target) if "://" not in target else target


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
