import json
import os
import signal
import sys
import time

import nbformat
import psutil
import pytest
from background import start_in_background, wait_for

from sslcourse.course import execution, runner, selection
from sslcourse.errors import CourseError

SUMMARY = """
from sslcourse.files import write_json
from pathlib import Path
write_json(Path(RESULTS_DIR) / "run-summary-01.json", {"headline": f"{TIER} {DATASET} {SEED}", "peak_memory": 123_000_000})
"""


pytestmark = pytest.mark.usefixtures("data_sets", "code_digest")


def statuses(runs):
    return {r.number: r.status for r in runs}


def test_lessons_run_in_order_and_a_failed_one_stops_only_those_that_need_it(go, write_notebook, tmp_path, capsys):
    write_notebook("01_first.ipynb", SUMMARY, "print('printed by the first')")
    write_notebook("02_second.ipynb", "1 + 1", "# a comment\nraise ValueError('no\\nsuch thing')", "print('never')")
    write_notebook("03_third.ipynb", "1", metadata={"sslcourse": {"requires": [2]}})
    write_notebook("04_fourth.ipynb", "import sys, os; print(sys.executable, os.environ['SSLCOURSE_HEADLESS'])", "assert TIER == 'smoke'")
    runs = go(parameters={"SEED": 4})
    assert statuses(runs) == {1: "done", 2: "failed", 3: "not run", 4: "done"}

    out = tmp_path / "out"
    visible = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert visible == ["01_first.ipynb", "02_second.failed.ipynb", "04_fourth.ipynb", "logs", "results", "run.json"]
    assert not list(out.glob("*.partial*")) and (out / "logs" / "01_first.log").read_text() == "printed by the first\n"
    assert sys.executable in (out / "logs" / "04_fourth.log").read_text()

    first, second, third, fourth = runs
    assert first.headline == "smoke toybox 4" and first.peak_memory == 123_000_000  # the lesson's own word for both
    assert fourth.peak_memory > 20_000_000 and fourth.headline == ""  # measured from outside
    assert second.error == "cell [4] (# a comment) stopped with ValueError: no" and third.error == "needs 02_second"
    said = capsys.readouterr().out
    assert "[1/4] 01_first: tier smoke, data set toybox" in said and "03_third: not run, because it needs 02_second" in said
    table = str(runner.summary_table(runs))
    assert "smoke toybox 4" in table and "123 MB" in table and "ValueError" in table
    assert "SSLCOURSE_HEADLESS" not in os.environ and "JUPYTER_PATH" not in os.environ

    # The second time only what did not finish runs; once repaired, all that needed it runs too.
    write_notebook("02_second.ipynb", "1 + 1")
    again = go(parameters={"SEED": 4})
    assert statuses(again) == {1: "done before", 2: "done", 3: "done", 4: "done before"}
    assert again[0].headline == "smoke toybox 4" and again[0].seconds == first.seconds
    assert not (out / "02_second.failed.ipynb").exists()


def test_what_makes_a_lesson_run_again(go, write_notebook, tmp_path, monkeypatch):
    write_notebook("01_first.ipynb", SUMMARY)
    assert statuses(go()) == {1: "done"}
    assert statuses(go()) == {1: "done before"}
    assert go(parameters={"SEED": "7"})[0].headline == "smoke toybox 7"
    assert statuses(go()) == {1: "done"}  # the parameters are others again
    assert statuses(go(resume=False)) == {1: "done"}
    (tmp_path / "out" / "01_first.ipynb").unlink()
    assert statuses(go()) == {1: "done"}
    monkeypatch.setattr(runner, "__version__", "99")
    assert statuses(go()) == {1: "done"}
    (tmp_path / "out" / "run.json").write_text('{"lessons": {"01_first"')
    assert statuses(go()) == {1: "done"}


def test_other_code_is_another_run(go, write_notebook, tmp_path, monkeypatch, code_digest):
    package = tmp_path / "package"
    package.mkdir()
    (package / "results.py").write_text("a = 1")
    monkeypatch.setattr(runner.results, "__file__", str(package / "results.py"))
    before = code_digest()
    assert code_digest() == before
    (package / "results.py").write_text("a = 2")
    changed = code_digest()
    (package / "new.py").write_text("")
    assert len({before, changed, code_digest()}) == 3
    notebook = selection.Notebook(tmp_path / "01_x.ipynb")
    assert len({runner._fingerprint(notebook, {}, "cpu", "toybox", code) for code in (before, changed)}) == 2


def test_a_dead_kernel_and_a_timeout_are_failures_with_their_cell(go, write_notebook):
    write_notebook("01_dies.ipynb", "import os\nos._exit(1)")
    write_notebook("02_waits.ipynb", "import time\ntime.sleep(60)")
    died, waited = go(timeout=3)
    assert died.status == waited.status == "failed"
    assert "the cell 'import os' stopped with DeadKernelError" in died.error
    assert "the cell 'import time' stopped with CellTimeoutError" in waited.error


def test_braces_and_spaces_in_folders_are_nothing_special(go, write_notebook, tmp_path):
    write_notebook("01_first.ipynb", "1")
    assert statuses(go(out=tmp_path / "a {b} c")) == {1: "done"} and (tmp_path / "a {b} c" / "01_first.ipynb").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "huge"}, "TIER is 'huge'"),
        ({"dataset": "imagenet"}, "no data set 'imagenet' in .* There are: toybox, stl10"),
        ({"dataset": "stl10"}, "'stl10' is not in .*python data_setup.py stl10"),
        ({"tier": "gpu"}, "'stl10' is not in"),
        ({"chosen": ["9"]}, "no lesson '9'. Choose .*01_first, 02_second"),
        ({"chosen": ["5-7"]}, "no lesson '5-7'"),
        ({"chosen": ["simclr"]}, "no lesson 'simclr'"),
        ({"parameters": {"SEDE": 1}}, "SEDE is not a parameter of 01_first, 02_second; what all of them take is SEED"),
        ({"parameters": {"EPOCHS": 1}}, "EPOCHS is not a parameter of 01_first;"),
        ({"parameters": {"SEED": "three"}}, "SEED of 01_first has to be a whole number, such as 0, not 'three'"),
        ({"parameters": {"SEED": True}}, "has to be a whole number"),
        ({"parameters": {"SEED": 1.5}}, "has to be a whole number"),
        ({"parameters": {"SEED": -1}}, "SEED is -1"),
        ({"chosen": ["2"], "parameters": {"FLIP": "yes"}}, "FLIP of 02_second has to be true or false"),
        ({"chosen": ["2"], "parameters": {"RATE": "nan"}}, "RATE is nan"),
        ({"chosen": ["2"], "parameters": {"NAMES": "[1, "}}, "has to be a list"),
        ({"parameters": {"TIER": "cpu"}}, "TIER is set with --tier"),
        ({"notebooks_dir": "/nowhere"}, "no lessons in /nowhere"),
    ],
)
def test_nothing_starts_when_something_is_wrong(options, message, go, write_notebook, tmp_path, monkeypatch):
    write_notebook("01_first.ipynb", "1")
    extra = 'EPOCHS: int = 3\nFLIP = True\nRATE = 0.1\nNAMES = ["a"]\nNOTHING = None\n'
    write_notebook("02_second.ipynb", "1", parameters='TIER = "auto"\nSEED = 0\n' + extra)
    monkeypatch.setattr(execution, "execute", lambda *a, **k: pytest.fail("a lesson was started"))
    options = dict(options)
    with pytest.raises(CourseError, match=message):
        go(options.pop("chosen", None), **options)
    assert not (tmp_path / "out").exists()


def test_text_is_read_as_the_type_of_the_parameters_cell(write_notebook, tmp_path, monkeypatch):
    cell = 'EPOCHS: int = 3\nFLIP = True\nRATE = 0.1\nNAMES = ["a"]\nNOTHING = None\nDATA_DIR = "default"\nWORD = "x"\n'
    write_notebook("02_second.ipynb", parameters=cell)
    chosen = selection.select(["second"], tmp_path / "notebooks")
    texts = {"EPOCHS": "5", "FLIP": "False", "RATE": "1e-3", "NAMES": "['b', 'c']", "NOTHING": "text", "WORD": "3"}
    assert selection.check_parameters(chosen, texts) == {"EPOCHS": 5, "FLIP": False, "RATE": 0.001, "NAMES": ["b", "c"]} | {
        "NOTHING": "text",
        "WORD": "3",
    }
    made = selection.check_parameters(chosen, {"RATE": 2, "NOTHING": 4})
    assert made == {"RATE": 2.0, "NOTHING": 4} and type(made["RATE"]) is float
    monkeypatch.chdir(tmp_path)
    assert selection.check_parameters(chosen, {"DATA_DIR": "mine"}) == {"DATA_DIR": str(tmp_path / "mine")}
    assert selection.check_parameters(chosen, {"DATA_DIR": "default"}) == {"DATA_DIR": "default"}


def test_a_parameters_cell_of_more_than_literals_is_refused(go, write_notebook):
    write_notebook("01_first.ipynb", parameters="import os\nSEED = 0")
    with pytest.raises(
        CourseError, match="01_first.ipynb cannot be run with parameters: the parameters cell has more than assignments: import os"
    ):
        go()


def test_lessons_are_chosen_by_number_range_name_and_file(write_notebook, tmp_path):
    for name in ("01_base", "02_rotation", "03_simclr", "04_byol"):
        write_notebook(f"{name}.ipynb")
    write_notebook("scratch.ipynb")

    def chosen(*selectors):
        return [notebook.number for notebook in selection.select(selectors, tmp_path / "notebooks")]

    assert chosen() == [1, 2, 3, 4] and chosen(3) == [3] and chosen("3-9", "1") == [1, 3, 4] and chosen("2,simclr") == [2, 3]
    assert chosen("SimCLR") == [3] and chosen("notebooks/04_byol.ipynb", "04_byol") == [4] and chosen("02") == [2]


def test_a_file_that_is_no_notebook_is_named(go, write_notebook, tmp_path):
    write_notebook("01_first.ipynb")
    (tmp_path / "notebooks" / "02_second.ipynb").write_text("{")
    with pytest.raises(CourseError, match="02_second.ipynb cannot be read as a notebook"):
        go()


def test_an_out_folder_that_cannot_be_written_gets_a_sentence(go, write_notebook, tmp_path, monkeypatch):
    write_notebook("01_first.ipynb", "1")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CourseError, match="cannot be written .* Choose another one with --out"):
            go(out=out)

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runner.tempfile, "TemporaryFile", read_only)
    with pytest.raises(CourseError, match="Read-only file system"):
        go()


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_resumes(go, write_notebook, tmp_path):
    started, kernel = tmp_path / "started", tmp_path / "kernel"
    write_notebook("01_first.ipynb", SUMMARY)
    slow = f"import os, pathlib, time\npathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))\npathlib.Path({str(started)!r}).touch()\n"
    write_notebook("02_second.ipynb", slow + f"if not pathlib.Path({str(tmp_path / 'quick')!r}).exists(): time.sleep(600)")
    write_notebook("03_third.ipynb", "1")
    process = start_in_background(tmp_path)
    wait_for(started, process)

    # A second run into the same folder is refused while the first is at it.
    with pytest.raises(CourseError, match=rf"Another run \(process {process.pid}\) is using .*out"):
        go()

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Interrupted in 02_second; 1 of 3 lessons are finished and kept" in said and "The same command again goes on" in said
    assert "Traceback" not in said
    out = tmp_path / "out"
    assert (out / "01_first.ipynb").exists() and not list(out.glob("*02_second*"))
    for _ in range(300):
        if not psutil.pid_exists(int(kernel.read_text())):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel is still running")

    (tmp_path / "quick").touch()
    assert statuses(go()) == {1: "done before", 2: "done", 3: "done"}


def test_a_run_that_was_killed_leaves_nothing_in_the_way(go, write_notebook, tmp_path):
    started = tmp_path / "started"
    write_notebook(
        "01_first.ipynb",
        f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\nwhile pathlib.Path({str(started)!r}).exists(): time.sleep(0.1)",
    )
    process = start_in_background(tmp_path)
    wait_for(started, process)
    process.kill()
    process.wait()
    started.unlink()
    write_notebook("01_first.ipynb", "1")
    assert statuses(go()) == {1: "done"}


def test_executed_notebooks_can_be_read_and_hold_the_parameters(go, write_notebook, tmp_path):
    write_notebook("01_first.ipynb", "print(TIER, SEED)")
    go(parameters={"SEED": 3})
    notebook = nbformat.read(tmp_path / "out" / "01_first.ipynb", as_version=4)
    assert notebook.cells[-1].outputs[0].text == "smoke 3\n"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["lessons"]["01_first"]["status"] == "done"


def test_what_a_lesson_prints_is_shown_while_it_runs_and_logged(write_notebook, go, tmp_path, capsys):
    write_notebook("01_first.ipynb", "print('half way'); print('there')")
    assert [run.status for run in go(progress=True)] == ["done"]
    shown = capsys.readouterr().err
    assert "    half way" in shown and "    there" in shown
    assert (tmp_path / "out" / "logs" / "01_first.log").read_text() == "half way\nthere\n"
    go(progress=False, resume=False)
    assert "half way" not in capsys.readouterr().err
