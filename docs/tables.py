"""Put the tables of the committed records and costs into README.md, docs/RESULTS.md and notebooks/TEACHING.md.

python docs/tables.py

A table stands between two comments, which a reader of the page does not see: <!-- results:NAME --> and <!-- /results -->.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sslcourse import results
from sslcourse.course import comparison, photographs
from sslcourse.course.lesson import COURSE
from sslcourse.display import duration, memory
from sslcourse.errors import CourseError
from sslcourse.files import write_atomically

WORLDS = {  # name of the place -> data set, tier, numbers of labels
    "photographs": ("cifar10-jpeg", comparison.LONG, (50, 100, 500, 1000, 5000)), "toybox": ("toybox", "cpu", (20, 40, 100, 200, 500)),
}  # fmt: skip
# floors, shorter baselines and controls
_LEFT_OUT = r"untrained, .+|.+, untrained|random initialisation|supervised, .+|from scratch, .+|.+, weight 0"
FILES = ("README.md", "docs/RESULTS.md", "notebooks/TEACHING.md")
# Not a further comment inside: where an end is missing, everything up to the next table's end would be taken for the table.
_BLOCK = r"<!-- results:{} -->\n(?:(?!<!-- /?results).)*<!-- /results -->"


def tables(records: Iterable[Mapping]) -> dict[str, str]:
    """name of the place -> Markdown table. A table without any record is left out."""
    records = list(records)
    long = [record for found in photographs.long_runs(records).values() for record in found]
    made = {name: labels_table(long if name == "photographs" else records, *world) for name, world in WORLDS.items()}
    made["reference"] = results.overview(records)._repr_markdown_() if records else None
    made["originals"] = comparison.final_table(records)._repr_markdown_() if records else None
    return {name: table for name, table in made.items() if table}


def labels_table(records: Iterable[Mapping], dataset: str, tier: str, labels: Iterable[int]) -> str | None:
    """What lessons that train found on a data set at a tier: a row a method, a column a number of labels; None without any record."""
    chosen = [r for r in records if (r["dataset"], r["tier"]) == (dataset, tier) and r["lesson"] != COURSE and r["labels"] in labels]
    chosen = [r for r in chosen if "top1" in r["metrics"] and not re.fullmatch(_LEFT_OUT, r["method"])]
    table = comparison.by_labels(chosen)
    header = [f"{name} labels" if name[0].isdigit() else name for name in table.header[:-3]]  # without network, tier and origin
    return results.Table(header, [row[:-3] for row in table.rows])._repr_markdown_() if chosen else None


def with_tables(text: str, records: Iterable[Mapping]) -> str:
    """The text with the tables made anew that have a place in it. Raises CourseError for a place that has no end, or is there twice."""
    for name, table in tables(records).items():
        block = f"<!-- results:{name} -->\n\n{table}\n\n<!-- /results -->"  # some Markdown readers want the empty lines
        text, found = re.subn(_BLOCK.format(name), lambda _, block=block: block, text, flags=re.DOTALL)
        if found > 1 or found != text.count(f"<!-- results:{name} -->"):
            raise CourseError(f"The table {name!r} needs one place, between the lines <!-- results:{name} --> and <!-- /results -->.")
    return text


def with_costs(text: str) -> str:
    """The text with what each lesson took, at smoke and cpu, in its row: in the last column in README.md, the last two in TEACHING.md."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        lesson = re.match(r"\| \[\d [^|]*\((notebooks/)?(\d\d)_\w+\.ipynb\)", line)
        found = results.measured_costs(int(lesson[2])) if lesson else {}
        if {"smoke", "cpu"} <= set(found):
            told = [f"{duration(found[tier]['seconds'])}, {memory(found[tier]['peak_memory'])}" for tier in ("smoke", "cpu")]
            told = [" / ".join(told)] if lesson[1] else told
            lines[i] = f"{line.rstrip('| ').rsplit(' | ', len(told))[0]} | {' | '.join(told)} |"
    return "\n".join(lines)


def update(root: Path) -> list[str]:
    """Put tables and costs into the files of a checkout -> those changed."""
    records, changed = results.reference(), []
    for name in FILES:
        before = (root / name).read_text(encoding="utf-8")
        after = with_costs(with_tables(before, records))
        if after != before:
            write_atomically(root / name, after.encode())
            changed.append(name)
    return changed


if __name__ == "__main__":
    done = update(Path(__file__).resolve().parents[1])
    print(f"made anew: {', '.join(done)}" if done else "all tables are up to date")
