"""Class lists: what is read from them, and the seeds of the students."""

import pytest

from sslcourse.course.handouts.class_list import as_csv, read_students, seed_of
from sslcourse.errors import CourseError


@pytest.fixture
def read(tmp_path):
    """read(text) -> the students of a class list."""

    def read(text, encoding="utf-8"):
        (tmp_path / "class.csv").write_bytes(text.encode(encoding))
        return read_students(tmp_path / "class.csv")

    return read


def test_one_id_a_line_and_files_that_cannot_be_read_are_named(read):
    assert [student["id"] for student in read("# group A\nann\n\n  bob.b@x.org \n2024_17\n")] == ["ann", "bob.b@x.org", "2024_17"]
    with pytest.raises(CourseError, match="class.csv.*utf-8"):
        read("müller\n", "latin-1")


@pytest.mark.parametrize("heading", ["email", "E-Mail", '"Email address"', "USERNAME", "Student ID", "\ufeffid"])
def test_a_heading_is_no_student(read, heading):
    assert [student["id"] for student in read(f"{heading}\n\nann@x.org\nbob@x.org\n\n")] == ["ann@x.org", "bob@x.org"]


def test_a_table_without_ids_takes_the_addresses_and_quoted_marks_part_no_columns(read):
    students = read('"Name, given";"First Name";E-Mail\n"Lee; Ann";Ann;ann@x.org\n;;\n"Ray, ""Bob""";Bob;bob@x.org\n')
    assert [(student["id"], student["email"], student["first_name"]) for student in students] == [
        ("ann@x.org", "ann@x.org", "Ann"), ("bob@x.org", "bob@x.org", "Bob"),
    ]  # fmt: skip


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_with_a_header(read, mark):
    text = 'ID,first_name,last_name,email,group\nann,"Ann","Lee",a@x.org,1\nbob,,Ray\n'.replace(",", mark)
    header, ann, bob = as_csv(read(text, "utf-8-sig")).splitlines()
    assert header == "id,first_name,last_name,email,seed"
    assert ann == f"ann,Ann,Lee,a@x.org,{seed_of('ann')}" and bob == f"bob,,Ray,,{seed_of('bob')}"


BAD = {f"bob\n{id}\n": "folder's name" for id in ("../ann", "a\\b", ".ann", "ann.", "-ann", "a b", "müller", "LPT1.txt", "x" * 65)}
BAD |= {"first_name,id\nAnn,ann\nBob,\n": "''", "ann\nANN\n": "ANN", "# nobody\n": "no student"}
BAD |= {"name,group\nann,1\n": "name, group, .* called id", "Name\nann\n": "id"}


@pytest.mark.parametrize("text", BAD)
def test_lists_that_are_not_right_are_refused(read, text):
    with pytest.raises(CourseError, match=BAD[text]):
        read(text)


def test_seeds_depend_on_the_id_alone_and_share_no_run():
    assert seed_of("ann") == 776633470  # the same on every machine, in every version
    seeds = sorted(seed_of(f"student-{k}") for k in range(500))
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) >= 10 and 0 <= seeds[0] and seeds[-1] < 2**31
