"""Notebooks as files: what a stored notebook has to look like, and how it gets that way.

`problems` lists what is wrong with a file, and `clean` puts right what can be put right without running it; `runner.store` runs it
and replaces it. The lessons are stored with their outputs, so that a reader on the web sees every figure.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from sslcourse.errors import CourseError
from sslcourse.files import write_atomically

LARGEST_FILE = 1_500_000  # bytes
LONGEST_CELL = 40  # lines
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/gif")
_TIMING = ("execution", "ExecuteTime", "papermill", "executionInfo", "elapsed", "outputId")
_KEPT_METADATA = {"kernelspec", "language_info", "colab", "accelerator", "sslcourse", "title", "authors"}
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_PROGRESS_LINE = re.compile(r"\d+%\|.*\||\d+it \[\d\d:\d\d|\d+(\.\d+)?(it/s|s/it)|\[\d\d:\d\d[<,]")


def load(path: Path | str) -> nbformat.NotebookNode:
    """Read a notebook as version 4, every cell with an id of its own. Raises CourseError, naming the file, when it is not one."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _give_ids(content.get("cells", []))
        return nbformat.reads(json.dumps(content), as_version=4)
    except FileNotFoundError:
        raise CourseError(f"There is no notebook {path}.") from None
    except Exception as error:  # nbformat raises many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CourseError(f"{path} cannot be read as a notebook: {reason}.") from None


def _give_ids(cells: list[dict]) -> int:
    """Give an id to every cell that has none of its own, the same one each time (nbformat would draw them), and count those cells."""
    seen, given = set(), 0
    for index, cell in enumerate(cells):
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", str(cell.get("id", ""))) or cell["id"] in seen:
            cell["id"] = hashlib.sha256(f"{index} {''.join(cell.get('source', ''))}".encode()).hexdigest()[:12]
            given += 1
        seen.add(cell["id"])
    return given


def save(notebook: nbformat.NotebookNode, path: Path | str) -> None:
    """Write a notebook with sorted keys, so that a reader sees the old file or the new one, never half of it."""
    text = nbformat.writes(notebook, version=4, indent=1, sort_keys=True)
    write_atomically(path, (text if text.endswith("\n") else text + "\n").encode())


def tags(cell) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def parameters(notebook: nbformat.NotebookNode) -> dict:
    """Name -> value of the cell tagged `parameters`; {} if there is none. Raises ValueError if anything but literals stands in it."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or "parameters" not in tags(cell):
            continue
        try:
            statements = ast.parse(cell.source).body
        except SyntaxError as error:
            raise ValueError(f"the parameters cell is not Python: {error.msg} in line {error.lineno}") from None
        for statement in statements:
            target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
            target = statement.target if isinstance(statement, ast.AnnAssign) else target
            if not isinstance(target, ast.Name) or statement.value is None:
                raise ValueError(f"the parameters cell has more than assignments: {ast.unparse(statement)}")
            try:
                found[target.id] = ast.literal_eval(statement.value)
            except ValueError:
                raise ValueError(f"the parameters cell has more than literals: {ast.unparse(statement)}") from None
    return found


def problems(path: Path | str) -> list[str]:
    """What is wrong with a stored notebook, as sentences that name the cell; [] if it is in order."""
    path = Path(path)
    notebook = load(path)
    found = []
    if path.stat().st_size > LARGEST_FILE:
        found.append(f"The file has {path.stat().st_size / 1e6:.1f} MB; {LARGEST_FILE / 1e6:.1f} MB is the most.")
    if "widgets" in notebook.metadata:
        found.append("metadata.widgets holds widget state; GitHub refuses to show such a notebook.")
    if "papermill" in notebook.metadata:
        found.append("The notebook's metadata hold papermill's timing.")
    tagged = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged 'parameters'; there has to be one.")
    try:
        parameters(notebook)
    except ValueError as error:
        found.append(f"{str(error)[0].upper()}{str(error)[1:]}.")
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code_cells]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"The execution counts are {counts}, not 1 to {len(counts)}: run the notebook from the top.")
    if _give_ids(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        found.append("Some cells have no id of their own.")
    for index, cell in enumerate(notebook.cells):
        first = next(iter(cell.source.strip().splitlines()), "")[:60]
        found += [f"Cell {index} ({first}): {problem}" for problem in _cell_problems(cell)]
    return found


def _cell_problems(cell) -> Iterator[str]:
    timing = sorted(set(cell.metadata) & set(_TIMING))
    if timing:
        yield f"its metadata hold timing ({', '.join(timing)})."
    if "injected-parameters" in tags(cell):
        yield "papermill's injected parameters were stored."
    if cell.cell_type == "markdown":
        if re.search(r"!\[\s*\]\(", cell.source) or _without_alt(cell.source):
            yield "an image in the text has no alt text."
        return
    if cell.cell_type != "code":
        return
    lines = len(cell.source.splitlines())
    if lines > LONGEST_CELL:
        yield f"it has {lines} lines; {LONGEST_CELL} is the most."
    if "solution" in tags(cell) and not (
        cell.metadata.get("jupyter", {}).get("source_hidden") is True and cell.metadata.get("cellView") == "form"
    ):
        yield "a solution has to be folded, with jupyter.source_hidden and cellView 'form'."
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"it stopped with {output.ename}."
        data = output.get("data", {})
        if WIDGET_VIEW in data or WIDGET_STATE in data:
            yield "an output is a widget, which nobody can see in a stored notebook."
        for kind in _IMAGES:
            described = output.get("metadata", {}).get("alt") or output.get("metadata", {}).get(kind, {}).get("alt")
            if kind in data and "text/html" not in data and not described:
                yield "a figure has no alt text; show it with plots.show(figure, alt=...)."
        if _without_alt("".join(data.get("text/html", ""))):
            yield "an image in its output has no alt text."


def _without_alt(text: str) -> bool:
    return any(not re.search(r"""\balt\s*=\s*(["'])\s*[^"'\s]""", tag) for tag in re.findall(r"<img\b[^>]*>", text, flags=re.IGNORECASE))


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Put a notebook into the form in which it is stored, in place: no widget state, timing, injected parameters or progress bars."""
    notebook.cells = [
        cell for cell in notebook.cells if "injected-parameters" not in tags(cell) and "papermill-error-cell-tag" not in tags(cell)
    ]
    for key in set(notebook.metadata) - _KEPT_METADATA:
        del notebook.metadata[key]
    notebook.metadata.kernelspec = nbformat.from_dict(_KERNEL)
    # The rest of language_info names the version of Python that ran it, which is another one on every machine.
    notebook.metadata.language_info = nbformat.from_dict({"name": "python", "file_extension": ".py", "mimetype": "text/x-python"})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    _give_ids(notebook.cells)
    count = 0
    for cell in notebook.cells:
        for key in _TIMING:
            cell.metadata.pop(key, None)
        if "tags" in cell.metadata and not cell.metadata["tags"]:
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in map(_normalised_output, cell.outputs) if output is not None]
        if not cell.source.strip():
            cell.execution_count = None
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def _normalised_output(output):
    """The output without what only made sense while it ran; None if nothing is left of it."""
    if WIDGET_VIEW in output.get("data", {}):
        return None
    if output.output_type == "stream" and output.name == "stderr":
        # A progress bar rewrites its line with carriage returns.
        lines = [line.rpartition("\r")[2] if "\r" in line.rstrip("\r") else line.rstrip("\r") for line in output.text.split("\n")]
        kept = [line for line in lines if not _PROGRESS_LINE.search(line)]
        if not "".join(kept).strip():
            return None
        output.text = "\n".join(kept)
    return output


def clean(path: Path | str) -> bool:
    """Bring a stored notebook into its stored form, keeping the outputs. Returns whether the file changed."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    save(normalise(load(path)), path)
    return path.read_bytes() != before


def without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take outputs and execution counts out of a notebook, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def strip_outputs(path: Path | str, out: Path | str) -> Path:
    """Write a copy without outputs and execution counts, for a class to start from."""
    notebook = without_outputs(normalise(load(path)))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(notebook, out)
    return out
