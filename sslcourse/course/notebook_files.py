"""Notebooks as files: what a stored notebook, with its outputs, has to look like, and how it gets that way."""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat

from sslcourse.errors import CourseError
from sslcourse.files import reason, write_atomically

LARGEST_FILE = 2_000_000  # bytes
LONGEST_CELL = 40  # lines
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "transient": {"remove_source": True}}  # JupyterLab, Colab, nbconvert
_WIDGET = "application/vnd.jupyter.widget-view+json"
_KEPT_METADATA = {"colab", "accelerator", "sslcourse", "title", "authors"}
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# The rest of language_info names the version of Python that ran it, which is another one on every machine.
_LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
_TIMING = ("execution", "ExecuteTime", "papermill", "executionInfo", "elapsed", "outputId")  # in cells' metadata
_OF_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


def load(path: Path | str) -> nbformat.NotebookNode:
    """Read a notebook as version 4, every cell with an id of its own. Raises CourseError, naming the file, when it is not one.

    What some tools leave out of a cell (outputs, the execution count, metadata, the id) is filled in.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if content.get("nbformat") == 4:
            cells = [{key: value for key, value in cell.items() if value is not None} for cell in content["cells"]]
            bare = {"code": {"metadata": {}, "source": "", "outputs": [], "execution_count": None}}
            cells = [bare.get(cell["cell_type"], {"metadata": {}, "source": ""}) | cell for cell in cells]
            content |= {"cells": cells, "nbformat_minor": 5, "metadata": content.get("metadata") or {}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ids that are missing or there twice: nbformat makes new ones
            return nbformat.reads(json.dumps(content), as_version=4)
    except FileNotFoundError:
        raise CourseError(f"There is no notebook {path}.") from None
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {reason(error)}.") from None
    except Exception as error:  # nbformat raises many kinds
        told = f"it lacks {error}" if isinstance(error, KeyError) else first_line(str(error)) or type(error).__name__
        raise CourseError(f"{path} cannot be read as a notebook: {told}.") from None


def save(notebook: nbformat.NotebookNode, path: Path | str) -> None:
    """Write a notebook with sorted keys, so that a reader sees the old file or the new one, never half of it."""
    write_atomically(path, _text(notebook).encode())


def _text(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True).rstrip("\n") + "\n"


def first_line(text: str) -> str:
    """The first line of a text that is not empty, without the space around it."""
    return text.strip().partition("\n")[0].rstrip()


def tags(cell) -> list[str]:
    return list(cell.metadata.get("tags", []))


def parameters(notebook: nbformat.NotebookNode) -> dict:
    """Name -> value of the cell tagged `parameters`; {} if there is none. Raises ValueError if anything but literals stands in it."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code" and "parameters" in tags(cell))
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"the parameters cell is not Python: {error.msg} in line {error.lineno}") from None
    found = {}
    for statement in statements:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        target = statement.target if isinstance(statement, ast.AnnAssign) else target
        try:
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError):
            raise ValueError(f"the parameters cell has more than names with literals: {ast.unparse(statement)}") from None
    return found


def problems(path: Path | str) -> list[str]:
    """What is wrong with a stored notebook, as sentences that name the cell; [] if it is in order."""
    path = Path(path)
    notebook, text = load(path), path.read_text(encoding="utf-8")
    cells = list(enumerate(notebook.cells))
    found = [f"Cell {i} ({first_line(cell.source)[:60]}): {problem}" for i, cell in cells for problem in _cell_problems(cell)]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"The execution counts are {counts}, not 1 to {len(counts)}: run the notebook from the top.")
    elif text != _text(normalise(notebook)):
        found.append("It is not in its stored form (widgets, timing, ids, order of keys): notebooks --clean does that.")
    if len(text.encode()) > LARGEST_FILE:
        found.append(f"The file has {len(text.encode()) / 1e6:.1f} MB; {LARGEST_FILE / 1e6:.1f} MB is the most.")
    tagged = sum("parameters" in tags(cell) for cell in notebook.cells)
    if tagged != 1:
        found.append(f"{tagged} cells are tagged 'parameters'; there has to be one.")
    try:
        parameters(notebook)
    except ValueError as error:
        found.append(f"{str(error)[0].upper()}{str(error)[1:]}.")
    return found


def _cell_problems(cell) -> Iterator[str]:
    if cell.cell_type == "markdown" and (re.search(r"!\[\s*\]\(", cell.source) or _without_alt(cell.source)):
        yield "an image in the text has no alt text."
    if cell.cell_type != "code":
        return
    lines = len(cell.source.splitlines())
    if lines > LONGEST_CELL:
        yield f"it has {lines} lines; {LONGEST_CELL} is the most."
    if "solution" in tags(cell) and not FOLDED.items() <= cell.metadata.items():
        yield f"a solution is folded, and left out of what nbconvert makes, by the metadata {FOLDED}."
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"it stopped with {output.ename}."
        data, about = output.get("data", {}), output.get("metadata", {})
        for kind in data:
            if kind.startswith("image/") and "text/html" not in data and not (about.get("alt") or about.get(kind, {}).get("alt")):
                yield "a figure has no alt text; show it with plots.show(figure, alt=...)."
        if _without_alt("".join(data.get("text/html", ""))):
            yield "an image in its output has no alt text."


def _without_alt(text: str) -> bool:
    return any(not re.search(r"""\balt\s*=\s*(["'])\s*[^"'\s]""", tag) for tag in re.findall(r"<img\b[^>]*>", text, flags=re.IGNORECASE))


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put a notebook into the form in which it is stored, in place: no widgets, timing or injected parameters."""
    kept = {key: value for key, value in notebook.metadata.items() if key in _KEPT_METADATA}
    notebook.metadata = nbformat.from_dict(kept | {"kernelspec": _KERNEL, "language_info": _LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = [cell for cell in notebook.cells if not _OF_PAPERMILL & set(tags(cell))]
    count = 0
    for cell in notebook.cells:
        for key in (*_TIMING, *(["tags"] if not tags(cell) else [])):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        if not cell.source.strip():
            cell.execution_count = None
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def clean(path: Path | str) -> bool:
    """Bring a stored notebook into its stored form, keeping the outputs. Returns whether the file changed."""
    notebook, before = load(path), Path(path).read_bytes()
    save(normalise(notebook), path)
    return Path(path).read_bytes() != before


def strip_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put a notebook into its stored form, in place, without outputs and execution counts: for a class to start from."""
    for cell in normalise(notebook).cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook
