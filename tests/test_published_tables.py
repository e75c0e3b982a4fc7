"""The tables that README.md, docs/RESULTS.md and TEACHING.md take from the committed records."""

import stat

import pytest
import tables as published_tables

from sslcourse import results
from sslcourse.course import comparison
from sslcourse.course.lesson import COURSE
from sslcourse.errors import CourseError


def record(lesson, method, top1=(0.4, 0.5, 0.6), **changes):
    given = {"dataset": "toybox", "labels": 100, "seed": list(range(len(top1))), "tier": "cpu", "device": "cpu", "seconds": 60}
    return results.record(lesson, method, **(given | {"method": method, "metrics": {"top1": results.over_runs(top1)}} | changes))


def page(toybox="", reference="", originals=""):
    return (
        f"<!-- results:originals -->\n{originals}<!-- /results -->\n\n"
        f"# Title\n\n<!-- results:toybox -->\n{toybox}<!-- /results -->\n\nbetween\n\n"
        f"<!-- results:reference -->\n{reference}<!-- /results -->\n"
    )


def test_methods_are_rows_and_numbers_of_labels_are_columns():
    records = [record(1, "supervised", labels=40), record(1, "supervised"), record(3, "SimCLR, frozen", (0.7,), labels=40)]
    others = [record(1, "supervised", **one) for one in ({"dataset": "flowers"}, {"labels": 5000}, {"labels": None}, {"tier": "smoke"})]
    others += [record(1, "supervised", metrics={"loss": {"value": 2.0, "unit": "number"}}), record(COURSE, "SimCLR, probe")]
    others += [record(2, "untrained, probe"), record(1, "supervised, 300 steps"), record(6, "FixMatch, weight 0")]
    toybox = published_tables.WORLDS["toybox"]
    assert published_tables.labels_table([*others, *records], *toybox).splitlines() == [
        "| lesson | method | 40 labels | 100 labels |",
        "| --- | --- | --- | --- |",
        "| 1 | supervised | 50.0 ± 5.8 % | 50.0 ± 5.8 % |",
        "| 3 | SimCLR, frozen | 70.0 % | – |",
    ]
    assert published_tables.labels_table(others, *toybox) is None and published_tables.labels_table([], *toybox) is None


def test_the_tables_are_put_between_their_comments_and_nothing_else_changes():
    records = [record(1, "supervised", (0.5,)), record(1, "supervised", (0.5,), dataset="flowers")]
    toybox = published_tables.labels_table(records, *published_tables.WORLDS["toybox"])
    everything = results.overview(records)._repr_markdown_()
    beside = comparison.final_table(records)._repr_markdown_()
    filled = page(*(f"\n{table}\n\n" for table in (toybox, everything, beside)))
    for old in (page(), page("\n| old |\n", "\n| older |\n\n| more |\n"), filled):
        assert published_tables.with_tables(old, records) == filled
    assert published_tables.with_tables(filled, []) == filled
    named = [record(1, "a | <!-- /results --> b\\1")]  # no name in a record can end the table
    once = published_tables.with_tables(page(), named)
    assert "a \\| &lt;!-- /results --> b\\1" in once and published_tables.with_tables(once, named) == once


def test_a_place_without_an_end_or_twice_is_refused():
    for broken in (page().replace("<!-- /results -->\n\nbetween", "between"), page() + "<!-- results:toybox -->\n<!-- /results -->"):
        with pytest.raises(CourseError, match="toybox"):
            published_tables.with_tables(broken, [record(1, "supervised")])


def test_update_keeps_the_files_permissions_and_says_what_changed(tmp_path):
    readme, teaching, long = tmp_path / "README.md", tmp_path / "notebooks" / "TEACHING.md", tmp_path / "docs" / "RESULTS.md"
    for path, text in ((readme, page()), (teaching, "| [3 SimCLR](03_simclr.ipynb) | to come | to come |\n"), (long, page())):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    readme.chmod(0o664)
    assert published_tables.update(tmp_path) == ["README.md", "docs/RESULTS.md", "notebooks/TEACHING.md"]
    assert published_tables.update(tmp_path) == []
    assert stat.S_IMODE(readme.stat().st_mode) == 0o664 and "to come" not in teaching.read_text()
    assert results.overview(results.reference())._repr_markdown_() in long.read_text()


def test_costs_stand_in_the_last_column_of_a_lessons_row(monkeypatch):
    row = "| [3 SimCLR](notebooks/03_simclr.ipynb) <br> ![a | b](notebooks/pictures/lesson_3.png) | Why? | 1 s, 2 MB / to come |"
    text = f"# T\n\n{row}\n| [4 BYOL](notebooks/04_byol.ipynb) | Why? | to come |\n[3 SimCLR](notebooks/03_simclr.ipynb) in prose | x |\n"
    measured = {"smoke": {"seconds": 21.04, "peak_memory": 1.2e9}, "cpu": {"seconds": 301, "peak_memory": 9e8}}
    monkeypatch.setattr(results, "measured_costs", lambda lesson: measured if lesson == 3 else {"smoke": measured["smoke"]})
    done = published_tables.with_costs(text)
    assert done == text.replace("1 s, 2 MB / to come", "21.0 s, 1.2 GB / 5 min 01 s, 900 MB") and published_tables.with_costs(done) == done
    table = "| lesson | smoke | cpu |\n| [3 SimCLR](03_simclr.ipynb) | to come | to come |"  # as in TEACHING.md
    assert published_tables.with_costs(table).endswith("| 21.0 s, 1.2 GB | 5 min 01 s, 900 MB |")
