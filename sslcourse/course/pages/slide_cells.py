"""A lesson cut into slides: which cells are shown, what of them, and where a new slide begins. Nothing here changes the stored notebook.

A teacher speaks, so a slide holds headings, lists, tables, formulas, code and figures in full, and of a long paragraph the first
sentences; the whole paragraph is in the speaker's notes. Set-up, records, explorers and solutions are left out, hints become notes.
"""

import ast
import base64
import copy
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from sslcourse.course import notebook_files

LINES = 15  # lines of text that a slide holds below its heading, at the size that the style sheet gives
LINE = 88  # characters of a line of text
CODE_LINES = 20  # lines of code that a slide holds at full size
LONG = 260  # characters from which on a paragraph is shortened
KEPT = 190  # characters after which a shortened paragraph ends with its sentence
_RECORDS = re.compile(r"\blesson\.(keep|record|record_runs|finish)\(|^report\(\)", flags=re.MULTILINE)
_EXPLORERS = re.compile(r"^(explore|switchboard)\(", flags=re.MULTILINE)
_DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", flags=re.DOTALL)
_FIGURE, _TABLE = "<img", "<table"
OUTPUT_ONLY = "slides-output-only"  # tag of a cell whose source is not shown


@dataclass
class _Page:
    """One slide in the making."""

    kind: str  # "slide" or "subslide"
    cells: list[NotebookNode] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: float = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing but a repeated heading stands on it."""
        return all('<p class="again">' in cell.source for cell in self.cells)


class _Deck:
    """The slides so far, and the heading that they stand under."""

    def __init__(self):
        self.pages, self.heading = [], ""

    def turn(self, kind: str = "subslide", again: bool = True) -> None:
        """Begin a slide; a further one under the same heading says so in small type."""
        self.pages.append(_Page(kind if self.pages else "slide"))
        if again and self.heading:
            self._put(new_markdown_cell(f'<p class="again">{self.heading}</p>'), 0)

    def add(self, cell: NotebookNode, lines: float) -> None:
        """Put a cell on the slide, or on a new one where it does not fit."""
        if not self.pages or (self.page.lines and self.page.lines + lines > LINES):
            self.turn()
        self._put(cell, lines)

    def keep(self, lines: float) -> None:
        """Turn over now if what belongs together would otherwise be torn apart."""
        if self.pages and self.page.lines and self.page.lines + lines > LINES:
            self.turn()

    def _put(self, cell: NotebookNode, lines: float) -> None:
        self.page.cells.append(cell)
        self.page.lines += lines

    @property
    def page(self) -> _Page:
        return self.pages[-1]

    def note(self, text: str) -> None:
        """Put a text into the speaker's notes of the last slide that shows something."""
        shown = [page for page in self.pages if not page.is_empty]
        if not shown:
            self.turn()
        (shown or self.pages)[-1].notes.append(text)

    def cells(self) -> Iterator[NotebookNode]:
        for page in self.pages:
            for number, cell in enumerate(page.cells):
                cell.metadata["slideshow"] = {"slide_type": "-" if number else page.kind}
                yield cell
            if page.notes:
                yield new_markdown_cell("\n\n".join(page.notes), metadata={"slideshow": {"slide_type": "notes"}})


def deck(notebook: NotebookNode, addresses: dict[str, str] | None = None) -> NotebookNode:
    """A new notebook whose cells are slides. addresses: name of a lesson's file -> where its slides are, for links between lessons."""
    slides, is_setup, is_exercise = _Deck(), False, False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks = list(_blocks(_plain_links(cell.source, addresses or {})))
            for block, following in zip(blocks, [*blocks[1:], None], strict=True):
                if block.level:
                    is_setup = bool(re.match(r"set-?up\b", block.title, flags=re.IGNORECASE))
                    is_exercise = block.title.startswith("Exercise")
                if not is_setup:
                    if following and block.kind == "paragraph" and following.kind in ("html", "formula", "bullet_list", "ordered_list"):
                        slides.keep(min(block.lines, 4) + min(following.lines, 6))
                    _add_text(slides, block, is_exercise)
        elif cell.cell_type == "code" and not is_setup:
            _add_code(slides, cell)
            if is_exercise and "@exercise(" in cell.source:
                is_exercise = False
                slides.turn()
        if cell.cell_type == "code" and re.search(r"\bstart\(\d", cell.source):
            is_setup = False
    slides.pages = [page for page in slides.pages if not page.is_empty]
    made = nbformat.v4.new_notebook(cells=list(slides.cells()), metadata=copy.deepcopy(notebook.metadata))
    heading = next((block.title for cell in notebook.cells for block in _blocks(cell.source) if block.level == 1), "")
    made.metadata["title"] = heading or "Lesson"
    return made


@dataclass(frozen=True)
class _Block:
    """A heading, paragraph, list, table or other top-level piece of Markdown."""

    kind: str
    text: str
    level: int = 0  # of a heading
    title: str = ""

    @property
    def lines(self) -> float:
        """About how many lines of a slide it takes, the space below it included."""
        if self.kind == "heading":
            return 1.0  # the budget of a slide is what lies below its heading
        if self.kind == "formula":
            return 3.0
        if self.kind == "html":
            return 0.4 + len(_DETAILS.findall(self.text))
        rows = self.text.splitlines()
        if self.kind == "table":
            return 0.9 * sum(max(1, -(-max(len(part) for part in row.split("|")) // 40)) for row in rows)
        if self.kind == "fence":
            return 0.75 * len(rows)
        return 0.4 + sum(-(-len(re.sub(r"\]\([^)]*\)", "]", row)) // LINE) or 0.4 for row in rows)


def _blocks(text: str) -> Iterator[_Block]:
    """The top-level pieces of Markdown; one of folded texts, which may hold empty lines, for those that follow each other."""
    end = 0
    for folded in re.finditer(rf"(?:{_DETAILS.pattern}\s*)+", text, flags=re.DOTALL):
        yield from _open_blocks(text[end : folded.start()])
        yield _Block("html", folded[0])
        end = folded.end()
    yield from _open_blocks(text[end:])


def _open_blocks(text: str) -> Iterator[_Block]:
    from markdown_it import MarkdownIt

    rows = text.splitlines()
    tokens = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.level == 0 and token.map]
    for token in tokens:
        source = "\n".join(rows[slice(*token.map)])
        kind = token.type.removesuffix("_open").removesuffix("_block")
        if kind == "heading":
            yield _Block("heading", source, int(token.tag[1]), source.lstrip("# ").strip())
        elif kind == "paragraph" and "$$" in source:
            for part in re.split(r"(\$\$.*?\$\$)", source, flags=re.DOTALL):
                if part.strip(" .,;\n"):
                    yield _Block("formula" if part.startswith("$$") else "paragraph", part.strip())
        else:
            yield _Block(kind, source)


def _add_text(slides: _Deck, block: _Block, is_exercise: bool) -> None:
    if block.level:
        slides.heading = block.title
        slides.turn("slide" if block.level <= 2 else "subslide", again=False)
        slides.add(new_markdown_cell(block.text), 0)
    elif block.kind == "html":
        _add_details(slides, block.text)
    elif block.kind == "paragraph" and not is_exercise and len(block.text) > LONG:
        slides.add(new_markdown_cell(first_sentences(block.text)), _Block("paragraph", first_sentences(block.text)).lines)
        slides.note(block.text)
    else:
        slides.add(new_markdown_cell(block.text), block.lines)


def first_sentences(text: str) -> str:
    """The beginning of a paragraph up to the first end of a sentence after KEPT characters, never within a formula or a bold word."""
    text = " ".join(text.split())
    for end in re.finditer(r"[.?!][*_\"')]*(?= )", text):
        begun = text[: end.end()]
        closed = all(begun.count(mark) % 2 == 0 for mark in ("$", "`", "**"))
        abbreviated = re.search(r"\b(e\.g|i\.e|al|Fig|vs|cf)\.$", begun)
        if end.end() >= KEPT and closed and not abbreviated:
            return begun
    return text


def _add_details(slides: _Deck, html: str) -> None:
    """Hints go to the notes; the choices of a quiz stay, and what there is to say to each goes to the notes."""
    found = _DETAILS.findall(html)
    if not found and not html.lstrip().startswith("<!--"):
        slides.add(new_markdown_cell(html), 1)
    for summary, rest in found:
        slides.note(f"**{summary.strip()}** {rest.strip()}")
    choices = [summary.strip() for summary, _ in found if not re.match(r"hint|solution", summary.strip(), flags=re.IGNORECASE)]
    if choices:
        text = "\n".join(f"* {choice}" for choice in choices)
        slides.add(new_markdown_cell(text), len(choices) + 0.4)


def _add_code(slides: _Deck, cell: NotebookNode) -> None:
    labels = notebook_files.tags(cell)
    if {"parameters", "solution"} & set(labels) or re.match(r"report\(\)", cell.source):
        return
    outputs = [output for output in cell.outputs if output.output_type != "error" and _stream(output) != "stderr"]
    is_exercise = "@exercise(" in cell.source
    if is_exercise:
        outputs = []
    if _EXPLORERS.search(cell.source) and not any(_has(output, _FIGURE) for output in outputs):
        return
    if not _RECORDS.search(cell.source) and (is_exercise or _is_worth_reading(cell.source, outputs)):
        parts = list(_parts(cell.source))
        for number, part in enumerate(parts):
            lines = 0.72 * len(part.splitlines()) + 0.6
            last = number == len(parts) - 1
            shown = _copy(cell, part, [])
            slides.add(shown, lines)
            if last and outputs and all(_stream(output) for output in outputs):
                text = sum(len(output.text.splitlines()) for output in outputs)
                if slides.page.lines + 0.8 * text <= LINES:
                    shown.outputs, outputs = outputs, []
                    slides.page.lines += 0.8 * text
    for output in [] if _RECORDS.search(cell.source) and not any(_has(output, _TABLE) for output in outputs) else outputs:
        if _RECORDS.search(cell.source) and not _has(output, _TABLE):
            continue
        if _has(output, _FIGURE) or _has(output, _TABLE):
            slides.add(_copy(cell, "", [output]), _height(output))
        else:
            text = output.get("text") or "".join(
                output.get("data", {}).get("text/markdown", "") or output.get("data", {}).get("text/plain", "")
            )
            slides.add(_copy(cell, "", [output]), _Block("fence" if _stream(output) else "paragraph", text).lines)


def _is_worth_reading(source: str, outputs: list) -> bool:
    """Whether a class reads the code: it defines something, or its result is text. Code that only draws is not shown."""
    try:
        defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.parse(source).body)
    except SyntaxError:
        return True
    return (defines and not re.search(r"^def draw_", source, flags=re.MULTILINE)) or not any(
        _has(output, _FIGURE) or _has(output, _TABLE) for output in outputs
    )


def _parts(source: str) -> Iterator[str]:
    """The source without what only says or draws, which is in the output, cut between statements into pieces that a slide holds."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        yield source
        return
    rows = source.splitlines()
    starts = [min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1 for node in body]
    ends = [*starts[1:], len(rows)]
    pieces = []
    for index, node in enumerate(body):
        if not _is_shown_anyway(node):
            pieces.append("\n".join(rows[0 if index == 0 else starts[index] : ends[index]]))
    page = ""
    for piece in pieces:
        together = f"{page}\n{piece}" if page else piece
        if page and len(together.strip().splitlines()) > CODE_LINES:
            yield page.strip("\n")
            page = piece
        else:
            page = together
    if page.strip():
        yield page.strip("\n")


def _is_shown_anyway(node: ast.stmt) -> bool:
    """Whether a statement only says or draws what stands in the output: say(...), plots.lines(...), draw_views()."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    call = ast.unparse(node.value.func)
    return call == "say" or call.startswith("draw_") or bool(re.match(r"\w*plots\.", call))


def _copy(cell: NotebookNode, source: str, outputs: list) -> NotebookNode:
    tags = [] if source else [OUTPUT_ONLY]
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=cell.execution_count, metadata={"tags": tags})


def _has(output, what: str) -> bool:
    data = output.get("data", {})
    return what in "".join(data.get("text/html", "")) or (what == _FIGURE and any(kind.startswith("image/") for kind in data))


def _height(output) -> float:
    """How many lines of a slide a figure or a table takes. A figure may shrink to share the slide with a few lines, unless it is tall."""
    shown = "".join(output.get("data", {}).get("text/html", ""))
    if not _has(output, _FIGURE):
        return 1.1 * shown.count("<tr")
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/]{32})", shown)
    width, height = struct.unpack(">II", base64.b64decode(found[1])[16:24]) if found else (4, 3)
    return LINES - 1 if height > 0.7 * width else 11 if height > 0.45 * width else 9


def _stream(output) -> str:
    return output.get("name", "") if output.output_type == "stream" else ""


def _plain_links(text: str, addresses: dict[str, str]) -> str:
    """Links that lead to slides where there are some; other links within the course become their words, and badges are left out."""

    def link(found: re.Match) -> str:
        target = addresses.get(found[2].partition("#")[0], "")
        return found[0] if re.match(r"https?:", found[2]) else (f"[{found[1]}]({target})" if target else found[1])

    text = re.sub(r"\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)\n*", "", text)
    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(([^()\s]+)\)", link, text)
