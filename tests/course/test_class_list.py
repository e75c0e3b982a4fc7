"""Class lists: what is read from them, and the seeds of the students."""

import pytest

from sslcourse.course.handouts import class_list
from sslcourse.course.handouts.class_list import Student, read_students, seeds_for
from sslcourse.errors import CourseError


@pytest.fixture
def listed(tmp_path):
    """listed(text) -> the path of a class list."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "class.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_one_id_a_line(listed):
    students = read_students(listed("# group A\nann\n\n  bob.b@x.org \n2024_17\n"))
    assert students == [Student("ann", {}), Student("bob.b@x.org", {}), Student("2024_17", {})]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_with_a_header(listed, mark):
    text = 'id,first_name,last_name,email,group\nann,"Ann","Lee",a@x.org,1\nbob,,Ray,,2\n'.replace(",", mark)
    students = read_students(listed(text, "utf-8-sig"))
    assert students == [Student("ann", {"first_name": "Ann", "last_name": "Lee", "email": "a@x.org"}), Student("bob", {"last_name": "Ray"})]


def test_a_table_of_one_column(listed):
    assert [student.id for student in read_students(listed("ID\nann\nbob\n"))] == ["ann", "bob"]


@pytest.mark.parametrize(
    "id", ["../ann", "a/b", "a\\b", ".ann", "ann.", "-ann", "a b", "a+b", "a*b", "müller", "con", "LPT1.txt", "x" * 65]
)
def test_ids_that_are_no_safe_names_are_refused(listed, id):
    with pytest.raises(CourseError, match=r"Line 2 of .*class\.csv: .* cannot be a folder's name"):
        read_students(listed(f"bob\n{id}\n"))


def test_a_row_without_an_id_is_refused(listed):
    with pytest.raises(CourseError, match="Line 3 of .*: '' cannot be a folder's name"):
        read_students(listed("first_name,id\nAnn,ann\nBob,\n"))


def test_an_id_that_comes_twice_is_refused_whatever_its_case(listed):
    with pytest.raises(CourseError, match="Line 3 of .*: ANN is the id of line 1 too"):
        read_students(listed("ann\nbob\nANN\n"))


@pytest.mark.parametrize("text", ["", "\n# nobody\n", "id,email\n"])
def test_an_empty_list_is_refused(listed, text):
    with pytest.raises(CourseError, match="names no student"):
        read_students(listed(text))


def test_columns_without_an_id_are_refused(listed):
    with pytest.raises(CourseError, match="none is called id"):
        read_students(listed("name,email\nann,a@x.org\n"))


def test_files_that_cannot_be_read_are_named(tmp_path, listed):
    with pytest.raises(CourseError, match="nobody.txt cannot be read"):
        read_students(tmp_path / "nobody.txt")
    with pytest.raises(CourseError, match="it is not UTF-8 text"):
        read_students(listed("müller\n", "latin-1"))


def test_seeds_depend_on_id_and_salt_alone():
    seeds = seeds_for(["ann", "bob", "carol"])
    assert seeds == {"ann": 655887550, "bob": 727207370, "carol": seeds["carol"]}  # the same on every machine, in every version
    assert seeds_for(["carol", "ann"])["ann"] == seeds["ann"]
    assert not set(seeds.values()) & set(seeds_for(["ann", "bob", "carol"], salt="autumn").values())


def test_seeds_of_a_large_class_share_no_run():
    seeds = sorted(seeds_for(f"student-{k}" for k in range(2000)).values())
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) >= class_list.STEP
    assert class_list.STEP >= class_list.TAKEN == 5  # lesson 1 takes SEED to SEED + 4 at gpu
    assert 0 <= seeds[0] and seeds[-1] + class_list.STEP < 2**31  # of what NumPy and torch take


def test_two_ids_that_come_to_one_number_get_two(monkeypatch):
    monkeypatch.setattr(class_list, "_SEEDS", 8)
    seeds = seeds_for("abcdefgh")
    assert sorted(seeds.values()) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert seeds_for("hgfedcba") == seeds
    few = seeds_for("cdefgh")
    joined = seeds_for("abcdefgh", before=few)
    assert {id: joined[id] for id in few} == few  # whoever joins changes nobody's


@pytest.mark.parametrize("seeds", [[0, 4], [10, 0, 13], [5, 5]])
def test_chosen_seeds_that_share_runs_are_refused(seeds):
    with pytest.raises(CourseError, match="share runs"):
        class_list.check_seeds(seeds)
    assert class_list.check_seeds([10, 5, 0]) == [10, 5, 0]


def test_seeds_that_are_none_are_refused():
    with pytest.raises(CourseError, match="SEED is 4294967296"):
        class_list.check_seeds([2**32])


def test_the_list_of_seeds_can_be_read_again(tmp_path):
    path = tmp_path / "seeds.csv"
    assert class_list.read_seeds(path) == {}
    path.write_text(class_list.seeds_csv({"ann": 10, "bob": 20}))
    assert class_list.read_seeds(path) == {"ann": 10, "bob": 20}
    path.write_text("who,what\nann,x\n")
    assert class_list.read_seeds(path) == {}
