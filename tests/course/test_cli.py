import errno
import io
import subprocess
import sys

import pytest

import sslcourse
from sslcourse import results
from sslcourse.course import runner
from sslcourse.course.commands.main import COMMANDS, main
from sslcourse.course.runner import LessonRun
from sslcourse.errors import CourseError


@pytest.fixture
def fake_run(monkeypatch):
    """Stands in for runner.run: collects what it was asked for, and returns or raises what it is told to."""
    asked, outcome = [], {"runs": [LessonRun(1, "01_first", "done", 61.0, 5_000_000, "87 %")]}

    def run(chosen, **options):
        asked.append(options | {"chosen": chosen})
        if "error" in outcome:
            raise outcome["error"]
        return outcome["runs"]

    monkeypatch.setattr(runner, "run", run)
    return asked, outcome


def test_run_hands_over_what_was_typed_and_prints_the_table(fake_run, capsys):
    asked, outcome = fake_run
    typed = ["run", "1", "3-5", "--tier", "cpu", "--dataset", "toybox", "--out", "o", "-p", "SEED", "3", "-p", "SIZE", "-1", "--fresh"]
    outcome["runs"].append(LessonRun(3, "03_third", "failed", error="ValueError"))
    assert main([*typed, "--jobs", "2"]) == 1
    right = {"chosen": ["1", "3-5"], "parameters": {"SEED": "3", "SIZE": "-1"}, "resume": False, "tier": "cpu", "dataset": "toybox"}
    assert asked[0].items() >= (right | {"out": "o", "timeout": None, "jobs": 2, "seeds": None, "device": "auto"}).items()
    assert asked[0]["progress"] is False  # what is written is no terminal
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == ["01_first done 1 min 01 s 5 MB 87 %".split(), "03_third failed – – ValueError".split()]


def test_what_can_be_put_right_is_a_sentence_without_a_traceback_and_ctrl_c_is_130(fake_run, capsys):
    fake_run[1]["runs"].append(LessonRun(2, "b", "done before"))
    assert main(["run"]) == 0
    fake_run[1]["error"] = CourseError("There is no lesson '9'.")
    assert main(["run", "9"]) == 1
    assert capsys.readouterr().err == "There is no lesson '9'.\n"
    assert main(["run", "-p", "SEED", "1", "-p", "SEED", "2"]) == 1 and "SEED" in capsys.readouterr().err
    assert main(["run", "--record-costs", "--jobs", "2"]) == 1 and "--jobs" in capsys.readouterr().err
    fake_run[1]["error"] = OSError(errno.ENOSPC, "No space left on device")
    assert main(["run"]) == 1 and capsys.readouterr().err == "The output cannot be used: the disk is full.\n"
    fake_run[1]["error"] = KeyboardInterrupt()
    assert main(["run"]) == 130


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp932"])
def test_a_terminal_gets_what_it_can_show(encoding, monkeypatch, fake_run):
    fake_run[1]["runs"] = [LessonRun(1, "01_first", "done", 61.0, 5_000_000, "é 87 ± 2 – of 猫 \udcff")]
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(["run"]) == 0
    sys.stdout.flush()
    shown = sys.stdout.buffer.getvalue().decode(encoding).splitlines()[-1]
    assert "87" in shown and shown.endswith("?") and ("+/- 2 - of ? ?" in shown or encoding != "ascii")


def test_costs_of_finished_lessons_are_recorded(fake_run, monkeypatch):
    recorded = []
    monkeypatch.setattr(results, "record_costs", lambda *given: recorded.append(given))
    fake_run[1]["runs"].append(LessonRun(2, "b", "failed", seconds=1.0))
    assert main(["run", "--record-costs", "--tier", "cpu", "--device", "cpu"]) == 1
    assert recorded == [(1, "cpu", 61.0, 5_000_000, "cpu")]


WRONG = [
    [], ["dance"], ["run", "--timeout", "soon"], ["run", "--timeout", "-1"], ["run", "-p", "SEED"], ["notebooks", "--check", "--clean"],
    ["run", "--jobs", "0"], ["run", "--jobs", "many"], ["run", "--seeds"], ["run", "--seeds", "0", "simclr"], ["run", "--seeds", "0.5"],
    ["results"], ["results", "here", "--reference"], ["evaluate", "x", "--block", "1", "--like-lessons"],
]  # fmt: skip


@pytest.mark.parametrize("typed", WRONG, ids=" ".join)
def test_a_wrong_command_line_is_2(typed, capsys):
    assert main(typed) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from sslcourse.course.commands.main import main; main(['--help']); main(['run', '--help']); main(['--version']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'papermill', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sslcourse.__version__ in done.stdout and all(f"\n    {name}" in done.stdout for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0


def test_results_prints_the_table_of_a_folder_and_of_the_package(tmp_path, capsys, monkeypatch):
    given = {"method": "Supervised", "dataset": "toybox", "labels": 100, "tier": "cpu", "device": "cpu", "seconds": 1, "seed": 0}
    results.write(results.record(1, "supervised", metrics={"top1": 0.5}, **given), tmp_path / "runs" / "results")
    assert main(["results", str(tmp_path / "runs")]) == 0  # the folder of a run
    assert "Supervised  ours    toybox   100     50.0 %" in capsys.readouterr().out
    assert main(["results", str(tmp_path / "runs" / "results"), "--markdown"]) == 0
    assert "| 1 | Supervised | toybox | – | 100 | – | 50.0 % |" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["results", str(tmp_path / "empty")]) == 1
    assert "no result records" in capsys.readouterr().err
    assert main(["results", "--reference"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 + len(results.reference()) > 2
    assert main(["results", "--reference", "--markdown"]) == 0
    assert capsys.readouterr().out == results.overview(results.reference())._repr_markdown_() + "\n"


def test_notebooks_checks_cleans_strips_and_executes(write_notebook, tmp_path, capsys):
    path = write_notebook("01_first.ipynb", "print(TIER)")
    folder = ["--notebooks", str(path.parent)]
    assert main(["notebooks", *folder]) == 1
    assert "01_first.ipynb: The execution counts are [None, None]" in capsys.readouterr().out
    assert main(["notebooks", "--clean", *folder]) == 1  # cleaning does not run it
    assert "01_first.ipynb: cleaned" in capsys.readouterr().out
    assert main(["notebooks", "--strip", str(tmp_path / "copies"), "first", *folder]) == 0
    assert (tmp_path / "copies" / "01_first.ipynb").exists()
    before = path.read_bytes()
    assert main(["notebooks", "--strip", str(path.parent), *folder]) == 1 and path.read_bytes() == before
    assert main(["notebooks", "--execute", "--tier", "smoke", *folder]) == 0
    assert "01_first.ipynb: in order" in capsys.readouterr().out
