"""The tables that README.md takes from the committed records."""

import stat

import pytest

from sslcourse import results
from sslcourse.course import comparison
from sslcourse.course.commands import readme
from sslcourse.course.lesson import TITLES
from sslcourse.errors import CourseError


def record(lesson, method, top1=(0.4, 0.5, 0.6), **changes):
    given = {"dataset": "toybox", "labels": 100, "seed": list(range(len(top1))), "tier": "cpu", "device": "cpu", "seconds": 60}
    return results.record(lesson, method, **(given | {"method": method, "metrics": {"top1": results.over_runs(top1)}} | changes))


def page(toybox="", reference="", originals=""):
    return (
        f"<!-- results:originals -->\n{originals}<!-- /results -->\n\n"
        f"# Title\n\n<!-- results:toybox -->\n{toybox}<!-- /results -->\n\nbetween\n\n"
        f"<details>\n\n<!-- results:reference -->\n{reference}<!-- /results -->\n\n</details>\n"
    )


def test_methods_of_one_kind_share_a_row_whatever_a_lesson_calls_them():
    records = [
        record(3, "random initialisation"),
        record(3, "SimCLR, frozen", (0.7,)),
        record(3, "SimCLR, fine-tuned"),
        record(2, "untrained, probe"),
        record(2, "rotation, probe"),
        record(1, "supervised"),
        record(6, "pseudo-labels", (0.8, 0.9)),
        record(6, "supervised"),
    ]
    assert readme.toybox_table(records).splitlines() == [
        "| 100 labels, toybox, test images | 1, supervised | 2, rotation | 3, SimCLR | 6, pseudo-labels |",
        "| --- | --- | --- | --- | --- |",
        "| probe on an untrained network | – | 50.0 ± 5.8 % | 50.0 ± 5.8 % | – |",
        "| supervised | 50.0 ± 5.8 % | – | – | 50.0 ± 5.8 % |",
        "| pretrained without labels, then a linear probe | – | 50.0 ± 5.8 % | 70.0 % | – |",
        "| pretrained without labels, then fine-tuned | – | – | 50.0 ± 5.8 % | – |",
        "| pseudo-labels | – | – | – | 85.0 ± 5.0 % |",
    ]


def test_two_methods_of_one_kind_in_a_lesson_have_a_row_each():
    lines = readme.toybox_table([record(6, f"{name}, frozen", (top1,)) for name, top1 in (("BYOL", 0.5), ("SimCLR", 0.6))]).splitlines()
    assert lines[2:] == ["| BYOL, frozen | 50.0 % |", "| SimCLR, frozen | 60.0 % |"]


def test_only_toybox_with_a_hundred_labels_at_tier_cpu_is_meant():
    others = [record(1, "supervised", dataset="flowers"), record(1, "supervised", labels=500), record(1, "supervised", labels=None)]
    others += [record(1, "supervised", tier="smoke"), record(1, "supervised", metrics={"loss": {"value": 2.0, "unit": "number"}})]
    assert readme.toybox_table(others) is None and readme.toybox_table([]) is None
    assert readme.toybox_table([*others, record(2, "supervised", (0.25,))]).splitlines()[2:] == ["| supervised | 25.0 % |"]


def test_of_two_records_of_one_method_the_one_with_more_runs_counts_and_then_the_newer():
    three, two = record(1, "supervised", (0.6, 0.6, 0.6)), record(1, "supervised", (0.2, 0.2))
    newer = record(1, "supervised", (0.7, 0.7, 0.7)) | {"date": "2100-01-01T00:00:00Z"}
    for records, found in (([three, two], "60.0"), ([two, three], "60.0"), ([newer, three, two], "70.0")):
        assert readme.toybox_table(records).splitlines()[2:] == [f"| supervised | {found} ± 0.0 % |"]


def test_the_tables_are_put_between_their_comments_and_nothing_else_changes():
    records = [record(1, "supervised", (0.5,)), record(1, "supervised", (0.5,), dataset="flowers")]
    toybox, everything = readme.toybox_table(records), results.readme_table(records)
    beside = comparison.final_table(records)._repr_markdown_()
    assert "| original project | SimCLR, frozen | 71.3 % | 5,000 |" in beside
    filled = page(*(f"\n{table}\n\n" for table in (toybox, everything, beside)))
    for old in (page(), page("\n| old |\n", "\n| older |\n\n| more |\n"), filled):
        assert readme.updated(old, records) == filled


def test_without_records_the_tables_stay_as_they_are():
    old = page("| measured before there were records |\n")
    assert readme.updated(old, []) == old
    kept = readme.updated(old, [record(1, "supervised", dataset="flowers")])
    assert "| measured before there were records |" in kept and "| 1 | supervised | flowers |" in kept


@pytest.mark.parametrize(
    ("broken", "places"),
    [
        (page().replace("<!-- results:toybox -->\n", ""), "no places for the table 'toybox'"),
        (page().replace("<!-- /results -->\n\nbetween", "\n\nbetween"), "no places for the table 'toybox'"),  # not up to the next end
        (page() + "<!-- results:toybox -->\n<!-- /results -->", "2 places for the table 'toybox'"),
    ],
)
def test_a_readme_without_one_place_for_each_table_is_refused(broken, places):
    with pytest.raises(CourseError, match=f"{places}; it needs one, between the lines <!-- results:toybox -->"):
        readme.updated(broken, [record(1, "supervised")])


def test_no_name_in_a_record_can_end_the_table():
    records = [record(1, "a | <!-- /results --> b\\1")]
    once = readme.updated(page(), records)
    assert "a \\| &lt;!-- /results --> b\\1" in once and readme.updated(once, records) == once


def test_update_keeps_the_file_s_permissions_and_says_whether_it_changed(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(page(), encoding="utf-8")
    path.chmod(0o664)
    assert readme.update(path) is True and readme.update(path) is False
    assert stat.S_IMODE(path.stat().st_mode) == 0o664 and list(tmp_path.iterdir()) == [path]
    teaching = tmp_path / "notebooks" / "TEACHING.md"
    teaching.parent.mkdir()
    teaching.write_text("| [3 SimCLR](03_simclr.ipynb) | to come | to come |\n")
    assert readme.update(path) is True and "to come" not in teaching.read_text() and readme.update(path) is False


def test_a_readme_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match="could not be rewritten: No such file"):
        readme.update(tmp_path / "README.md")
    monkeypatch.setattr(readme.results, "__file__", str(tmp_path / "site-packages" / "sslcourse" / "results.py"))
    with pytest.raises(CourseError, match="not in an installed package"):
        readme.path()


def test_every_lesson_but_the_last_which_measures_the_others_again_has_a_column():
    assert set(readme.SUBJECTS) == set(TITLES) - {max(TITLES)}
    records = [record(3, "SimCLR, frozen"), record(7, "SimCLR, probe")]
    assert readme.toybox_table(records) == readme.toybox_table(records[:1])


def test_costs_stand_in_the_last_column_of_a_lessons_row():
    row = (
        "| [3 SimCLR](notebooks/03_simclr.ipynb) <br> ![a | b](notebooks/pictures/lesson_3.png) | Can images teach? | 1 s, 2 MB / to come |"
    )
    text = f"# T\n\n{row}\n| [4 BYOL](notebooks/04_byol.ipynb) | Why? | to come |\n[3 SimCLR](notebooks/03_simclr.ipynb) in prose | x |\n"
    measured = {3: {"smoke": {"seconds": 21.04, "peak_memory": 1.2e9}, "cpu": {"seconds": 301, "peak_memory": 9e8}}}
    done = readme.with_costs(text, lambda lesson: measured.get(lesson, {}))
    assert done == text.replace("1 s, 2 MB / to come", "21.0 s, 1.2 GB / 5 min 01 s, 900 MB")
    assert readme.with_costs(done, lambda lesson: measured.get(lesson, {})) == done
    table = "| lesson | smoke | cpu |\n| [3 SimCLR](03_simclr.ipynb) | to come | to come |"  # as in TEACHING.md
    assert readme.with_costs(table, lambda lesson: measured.get(lesson, {})).endswith("| 21.0 s, 1.2 GB | 5 min 01 s, 900 MB |")
    only_smoke = {3: {"smoke": measured[3]["smoke"]}}
    assert readme.with_costs(text, lambda lesson: only_smoke.get(lesson, {})) == text
