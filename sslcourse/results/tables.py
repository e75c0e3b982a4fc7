"""Tables of result records, beside numbers from elsewhere: HTML in a notebook, Markdown on a page, aligned text in a terminal."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from sslcourse.results.records import metric

SOURCES = ("ours", "original project", "published")


def percent(value: float, standard_error: float | None = None) -> str:
    """A fraction as text: 0.873 and 0.004 give '87.3 ± 0.4 %'."""
    return f"{100 * value:.1f} %" if standard_error is None else f"{100 * value:.1f} ± {100 * standard_error:.1f} %"


class Table:
    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = ""):
        self.header = [str(cell) for cell in header]
        self.rows = [[str(cell) for cell in row] for row in rows]
        self.caption = caption

    def _repr_html_(self) -> str:
        def shown(cell):
            # on a narrow page a percent sign keeps its number, and a long name of code may break
            text = html.escape(cell).replace(" %", "&nbsp;%")
            return re.sub(r"[A-Za-z][\w.]{11,}", lambda name: re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[._])(?=[a-z])", "<wbr>", name[0]), text)

        def line(cells, tag):
            return "<tr>" + "".join(f'<{tag} style="text-align:left">{shown(cell)}</{tag}>' for cell in cells) + "</tr>"

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(line(row, "td") for row in self.rows)
        return f"<table>{caption}<thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"

    def _repr_markdown_(self) -> str:
        def line(cells):
            # an < of its own would begin a tag: Markdown takes HTML as it is
            return "| " + " | ".join(" ".join(cell.splitlines()).replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"

        return "\n".join([line(self.header), "|" + " --- |" * len(self.header), *map(line, self.rows)])

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rows = [self.header, ["-" * width for width in widths], *self.rows]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(([self.caption] if self.caption else []) + lines)

    __repr__ = __str__


def table(rows: Iterable[Mapping], columns: Sequence[str] | None = None, caption: str = "") -> Table:
    """Lay out records and plain rows, in the order given; what a row lacks is shown as '–'.

    A plain row: {"source": "published", "method": "SimCLR", "dataset": "CIFAR-10", "metrics": {"top1": 0.906}, "differs": "ResNet-50"};
    source is 'ours' (if left out), 'original project' or 'published'. columns: names of fields and of metrics, and "runs", how many seeds;
    by default method, source, dataset, labels, every metric that occurs, and differs if any row has it.
    """
    rows = list(rows)
    if wrong := [row["source"] for row in rows if row.get("source", "ours") not in SOURCES]:
        raise ValueError(f"the source of a row is one of {', '.join(SOURCES)}, not {wrong[0]!r}")
    if columns is None:
        columns = ["method", "source", "dataset", "labels", *dict.fromkeys(name for row in rows for name in row.get("metrics", {}))]
        columns += ["differs"] if any(row.get("differs") for row in rows) else []
    return Table(columns, [[_cell(row, column) for column in columns] for row in rows], caption)


def overview(records: Iterable[Mapping]) -> Table:
    """Records of many lessons, sorted: what was found, with how many labels and runs, at which tier and in what time."""
    order = sorted(records, key=lambda r: (r["lesson"], r["dataset"], r["labels"] or math.inf, r["method"]))
    rows = [r | {"pixels": r["image_size"], "lesson took": f"{r['seconds'] / 60:.1f} min"} for r in order]
    return table(rows, ["lesson", "method", "dataset", "pixels", "labels", "network", "top1", "top3", "runs", "tier", "lesson took"])


def _cell(row: Mapping, column: str) -> str:
    if column in row.get("metrics", {}):
        found = metric(row["metrics"][column])
        value, error = found["value"], found["standard_error"]
        if found["unit"] == "number":
            return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
        return percent(value, error)
    if column == "source":
        return row.get("source", "ours")
    if column == "labels" and "kind" in row and row["labels"] is None:
        return "all"
    value = len(row["seeds"]) if column == "runs" and "runs" not in row and row.get("seeds") else row.get(column)
    if value is None or value == "":
        return "–"
    if type(value) is int:
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
