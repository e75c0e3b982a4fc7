import json
import subprocess
import sys
import types

import pytest

import sslcourse
from sslcourse import results
from sslcourse.course import runner
from sslcourse.course.commands import main as cli
from sslcourse.course.commands import readme
from sslcourse.course.runner import LessonRun
from sslcourse.errors import CourseError


@pytest.fixture
def fake_run(monkeypatch):
    """Stands in for runner.run: collects what it was asked for, and returns or raises what it is told to."""
    asked = []
    outcome = {"runs": [LessonRun(1, "01_first", "done", "x", 61.0, 5_000_000, "87 %")]}

    def run(chosen, **options):
        asked.append((chosen, options))
        if "error" in outcome:
            raise outcome["error"]
        return outcome["runs"]

    monkeypatch.setattr(runner, "run", run)
    return asked, outcome


def test_run_hands_over_what_was_typed_and_prints_the_table(fake_run, capsys):
    asked, _ = fake_run
    typed = ["run", "1", "3-5", "--tier", "cpu", "--dataset", "toybox", "--out", "o", "-p", "SEED", "3", "-p", "SIZE", "-1", "--fresh"]
    assert cli.main(typed) == 0
    chosen, options = asked[0]
    assert chosen == ["1", "3-5"] and options["parameters"] == {"SEED": "3", "SIZE": "-1"} and options["resume"] is False
    assert (options["tier"], options["dataset"], options["out"], options["timeout"]) == ("cpu", "toybox", "o", None)
    assert "01_first  done    1 min 01 s  5 MB         87 %" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("done before", 0), ("failed", 1), ("not run", 1)])
def test_the_exit_status_says_whether_all_went_well(fake_run, status, code):
    fake_run[1]["runs"] = [LessonRun(1, "a", "done"), LessonRun(2, "b", status)]
    assert cli.main(["run"]) == code


def test_what_can_be_put_right_is_a_sentence_without_a_traceback(fake_run, capsys):
    fake_run[1]["error"] = CourseError("There is no lesson '9'.")
    assert cli.main(["run", "9"]) == 1
    assert capsys.readouterr().err == "There is no lesson '9'.\n"
    assert cli.main(["run", "-p", "SEED", "1", "-p", "SEED", "2"]) == 1
    assert "SEED is given twice" in capsys.readouterr().err


def test_ctrl_c_is_130(fake_run):
    fake_run[1]["error"] = KeyboardInterrupt()
    assert cli.main(["run"]) == 130


@pytest.mark.parametrize(
    "typed",
    [[], ["dance"], ["run", "--timeout", "soon"], ["run", "--timeout", "-1"], ["run", "-p", "SEED"], ["notebooks", "--check", "--clean"]],
)
def test_a_wrong_command_line_is_2(typed, capsys):
    assert cli.main(typed) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_and_version_are_0(capsys):
    assert cli.main(["--help"]) == 0 and cli.main(["run", "--help"]) == 0 and cli.main(["--version"]) == 0
    assert sslcourse.__version__ in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json; from sslcourse.course import cli; cli.main(['run', '--help']);"
        "print(json.dumps([m for m in ('torch', 'numpy', 'papermill', 'matplotlib') if m in sys.modules]), file=sys.stderr)"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr) == []


def test_python_m_sslcourse_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "sslcourse", "results", "/nowhere/at/all"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("There is no folder /nowhere/at/all") and done.stdout == ""


def test_data_is_handed_on(monkeypatch):
    seen = []
    stand_in = types.ModuleType("sslcourse.course.data_command")
    stand_in.add_arguments = lambda parser: parser.add_argument("name")
    stand_in.run = lambda args: seen.append(args.name) or 7
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(sslcourse.course, "data_command", stand_in, raising=False)
    assert cli.main(["data", "stl10"]) == 7 and seen == ["stl10"]


def test_results_prints_the_table(tmp_path, capsys):
    made = results.record(
        1,
        "supervised",
        method="Supervised",
        dataset="toybox",
        labels=100,
        metrics={"top1": 0.5},
        seed=0,
        tier="cpu",
        device="cpu",
        seconds=1,
    )
    results.write(made, tmp_path / "runs" / "results")
    assert cli.main(["results", str(tmp_path / "runs")]) == 0  # the folder of a run
    assert "Supervised  ours    toybox   100     50.0 %" in capsys.readouterr().out
    assert cli.main(["results", str(tmp_path / "runs" / "results"), "--markdown"]) == 0
    assert "| 1 | Supervised | toybox | – | 100 | – | 50.0 % |" in capsys.readouterr().out
    assert cli.main(["results", str(tmp_path)]) == 1
    assert "no result records" in capsys.readouterr().err


def test_results_of_the_package_itself(capsys):
    assert cli.main(["results", "--reference"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == "lesson method dataset pixels labels network top1 top3 runs tier lesson took".split()
    assert len(printed.splitlines()) == 2 + len(results.reference()) > 2
    assert cli.main(["results", "--reference", "--markdown"]) == 0
    assert capsys.readouterr().out == results.readme_table(results.reference()) + "\n"


def test_results_asks_which_records_are_meant(tmp_path, capsys):
    assert cli.main(["results"]) == 1 and cli.main(["results", "--markdown"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == 2 * [said.err.splitlines()[0]] and "--reference" in said.err
    for two in (["--reference", "--update-readme"], [str(tmp_path), "--reference"], [str(tmp_path), "--update-readme"]):
        assert cli.main(["results", *two]) == 2
        assert "not allowed with" in capsys.readouterr().err


def test_results_puts_the_tables_into_the_readme(tmp_path, capsys, monkeypatch):
    text = "".join(f"<!-- results:{name} -->\n<!-- /results -->\n" for name in ("toybox", "reference", "originals"))
    (tmp_path / "README.md").write_text(text)
    monkeypatch.setattr(readme, "path", lambda: tmp_path / "README.md")
    assert cli.main(["results", "--update-readme"]) == 0 and capsys.readouterr().out == "README.md: tables made anew\n"
    assert results.readme_table(results.reference()) in (tmp_path / "README.md").read_text()
    assert cli.main(["results", "--update-readme"]) == 0 and capsys.readouterr().out == "README.md: up to date already\n"
    (tmp_path / "README.md").write_text("no place for a table")
    complaint = "README.md has no places for the table"
    assert cli.main(["results", "--update-readme"]) == 1 and complaint in capsys.readouterr().err


def test_notebooks_checks_cleans_and_strips(write_notebook, tmp_path, capsys):
    path = write_notebook("01_first.ipynb")
    folder = ["--notebooks", str(path.parent)]
    assert cli.main(["notebooks", *folder]) == 1
    assert "01_first.ipynb: The execution counts are [None]" in capsys.readouterr().out
    assert cli.main(["notebooks", "--clean", *folder]) == 1  # cleaning does not run it
    assert "01_first.ipynb: cleaned" in capsys.readouterr().out
    assert cli.main(["notebooks", "--strip", str(tmp_path / "copies"), "first", *folder]) == 0
    assert (tmp_path / "copies" / "01_first.ipynb").exists()
    before = path.read_bytes()
    assert cli.main(["notebooks", "--strip", str(path.parent), *folder]) == 1 and path.read_bytes() == before


def test_notebooks_execute_stores_and_then_checks(write_notebook, capsys):
    path = write_notebook("01_first.ipynb", "print(TIER)")
    assert cli.main(["notebooks", "--execute", "--tier", "smoke", "--notebooks", str(path.parent)]) == 0
    assert "01_first.ipynb: in order" in capsys.readouterr().out
