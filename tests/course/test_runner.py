"""Headless runs: what is refused before anything starts, what runs, waits, fails, resumes and ends; lessons side by side included."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import nbformat
import psutil
import pytest
import torch

from sslcourse.course import runner, selection
from sslcourse.errors import CourseError

SUMMARY = """
from sslcourse.files import write_json
from pathlib import Path
write_json(Path(RESULTS_DIR) / "run-summary-01.json", {"headline": f"{TIER} {DATASET} {SEED}", "peak_memory": 123_000_000})
"""
MORE = 'EPOCHS: int = 3\nFLIP = True\nRATE = 0.1\nNAMES = ["a"]\nNOTHING = None\nDATA_DIR = "default"\nWORD = "x"\n'


def statuses(runs):
    return {run.number: run.status for run in runs}


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_lessons_run_in_order_and_a_failed_one_does_not_stop_the_others(go, write_notebook, tmp_path, capsys):
    write_notebook("01_first.ipynb", SUMMARY, "print('printed by the first')")
    write_notebook("02_second.ipynb", "1 + 1", "# a comment\nraise ValueError('no\\nsuch thing')", "print('never')")
    third = "import sys, os; print(sys.executable, os.environ['SSLCOURSE_HEADLESS'])"
    path = write_notebook("03_third.ipynb", third, "assert TIER == 'smoke'")
    bare = json.loads(path.read_text())
    for cell in bare["cells"]:
        for key in ("outputs", "execution_count", "id", *([] if cell["metadata"] else ["metadata"])):
            cell.pop(key, None)
    path.write_text(json.dumps(bare))
    out = tmp_path / "a {b} $HOME c"  # nothing special
    first, second, third = go(parameters={"SEED": 4}, out=out, progress=True)
    assert (first.status, second.status, third.status) == ("done", "failed", "done")
    assert visible(out) == ["01_first.ipynb", "02_second.failed.ipynb", "03_third.ipynb", "logs", "results", "run.json"]
    assert not list(out.glob(".*.ipynb")) and (out / "logs" / "01_first.log").read_text() == "printed by the first\n"
    python, headless = nbformat.read(out / "03_third.ipynb", as_version=4).cells[-2].outputs[0].text.split()
    assert os.path.samefile(python, psutil.Process().exe()) and headless == "1"
    assert (first.headline, first.peak_memory) == ("smoke toybox 4", 123_000_000)
    assert second.error == "cell [4] (# a comment) stopped with ValueError: no"
    told = capsys.readouterr()
    assert "[1/3] 01_first: tier smoke, data set toybox" in told.out and "[2/3] 02_second: failed" in told.out
    assert "    printed by the first" in told.err  # shown while it runs
    assert "SSLCOURSE_HEADLESS" not in os.environ
    # The second time only what did not finish runs.
    write_notebook("02_second.ipynb", "1 + 1")
    again = go(parameters={"SEED": 4}, out=out)
    assert statuses(again) == {1: "done before", 2: "done", 3: "done before"}
    assert (again[0].headline, again[0].seconds) == (first.headline, first.seconds)
    assert not (out / "02_second.failed.ipynb").exists()


@pytest.fixture
def at_once(monkeypatch):
    """Lessons end at once; gives the list of (folder, lesson) that ran."""
    ran = []

    def execute(source, target, parameters, *rest):
        ran.append((target.parent.name, source.stem))
        target.write_text("{}")

    monkeypatch.setattr(runner, "execute", execute)
    return ran


def test_what_makes_a_lesson_run_again(go, write_notebook, tmp_path, monkeypatch, at_once):
    write_notebook("01_first.ipynb", SUMMARY)
    assert statuses(go()) == {1: "done"} and statuses(go()) == {1: "done before"}
    assert statuses(go(parameters={"SEED": "7"})) == {1: "done"}
    state = tmp_path / "out" / "run.json"
    assert json.loads(state.read_text())["lessons"]["01_first"]["parameters"]["SEED"] == 7
    changes = [
        lambda: None,  # the parameters are others again
        (tmp_path / "out" / "01_first.ipynb").unlink, lambda: write_notebook("01_first.ipynb", SUMMARY, "2"),
        lambda: monkeypatch.setattr(runner, "code_digest", lambda: "other code"), lambda: state.write_text('{"lessons": {"01_first"'),
        lambda: monkeypatch.setenv("SSLCOURSE_DATA_DIR", str(tmp_path / "elsewhere")),
        lambda: monkeypatch.setattr(runner.lessons, "find_data", lambda *given: "other images"),
        lambda: monkeypatch.setattr(runner.lessons, "resolve_device", lambda *given: torch.device("meta")),
    ]
    for change in changes:
        change()
        assert statuses(go()) == {1: "done"} and statuses(go()) == {1: "done before"}
    assert statuses(go(resume=False)) == {1: "done"}


def test_the_last_lesson_runs_again_after_one_that_it_reads(go, write_notebook, at_once):
    for name in ("01_first", "07_last"):
        write_notebook(f"{name}.ipynb")
    assert statuses(go()) == {1: "done", 7: "done"} and statuses(go(["1"], resume=False)) == {1: "done"}
    assert statuses(go()) == {1: "done before", 7: "done"}


def test_a_disk_that_fills_up_is_a_sentence_and_the_other_lessons_go_on(go, write_notebook, monkeypatch, capsys):
    for name in ("01_first", "02_second"):
        write_notebook(f"{name}.ipynb")

    def execute(source, target, *rest):
        target.write_text("{}")
        if source.stem == "01_first":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "execute", execute)
    first, second = go()
    assert (first.status, second.status) == ("failed", "done") and first.error.endswith("cannot be written: the disk is full")
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.EDQUOT, "Disk quota exceeded")))
    assert statuses(go()) == {1: "failed", 2: "done before"}
    assert "run.json could not be written: your quota on this disk is used up." in capsys.readouterr().err


def test_executed_copies_never_come_to_lie_among_lessons(go, write_notebook, tmp_path, at_once):
    path = write_notebook("01_first.ipynb")
    shutil.copytree(path.parent, tmp_path / "others" / "seed-0")
    for out, more in (("notebooks", {}), ("notebooks/runs", {}), ("others/seed-0", {}), ("others", {"seeds": [0]})):
        with pytest.raises(CourseError, match="--out is .*, where the lessons are kept"):
            go(out=tmp_path / out, **more)
    assert not at_once and list(path.parent.iterdir()) == [path]


def test_the_digest_of_the_code_changes_with_any_line(tmp_path, code_digest):
    found = set()
    for name, text in (("a.py", "a = 1"), ("a.py", "a = 2"), ("new.py", "")):
        (tmp_path / name).write_text(text)
        found.add(code_digest(tmp_path))
    assert len(found) == 3 and code_digest(tmp_path) in found


def test_a_dead_kernel_and_a_timeout_are_failures_with_their_cell(go, write_notebook):
    write_notebook("01_dies.ipynb", "import os\nos._exit(1)")
    write_notebook("02_waits.ipynb", "import time\ntime.sleep(600)")
    died, waited = go(timeout=2.5)
    assert died.status == waited.status == "failed"
    assert "'import os' stopped with DeadKernelError" in died.error and "'import time' stopped with CellTimeoutError" in waited.error


REFUSED = [
    *[({name: "?"}, f"--{name} is '\\?'") for name in ("tier", "device")],
    *[({name: ""}, f"--{name} is ''") for name in ("dataset", "out")], ({"dataset": "imagenet"}, "'imagenet' .* toybox, stl10.* DATA_DIR"),
    ({"dataset": "stl10"}, "'stl10' .*/notebooks/data.*python data_setup.py stl10.* DATA_DIR"),
    ({"chosen": ["2"], "parameters": {"DATA_DIR": ""}}, "DATA_DIR is ''"), ({"chosen": ["5-7"]}, "'5-7'. .*01_first, 02_second"),
    ({"parameters": {"SEDE": 1}}, "SEDE is not a parameter .* SEED"),
    ({"parameters": {"EPOCHS": 1}}, "EPOCHS is not a parameter of 01_first;"),
    ({"parameters": {"SEED": "three"}}, "SEED of 01_first has to be a whole number, .*'three'"),
    ({"chosen": ["2"], "parameters": {"FLIP": "yes"}}, "FLIP of 02_second"),
    ({"chosen": ["2"], "parameters": {"RATE": "-1e999"}}, "RATE is -inf"), ({"chosen": ["2"], "parameters": {"NAMES": "[1, "}}, "a list"),
    ({"parameters": {"TIER": "cpu"}}, "--tier"), ({"notebooks_dir": "/nowhere"}, "/nowhere"),
    *[({"seeds": seeds}, "at least one, and each only once") for seeds in ([], [0, 3, 3])], ({"seeds": [0, -1]}, "SEED is -1"),
    ({"seeds": [0, 10], "parameters": {"SEED": 1}}, "not both"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_nothing_starts_when_something_is_wrong(options, message, go, write_notebook, tmp_path, at_once):
    write_notebook("01_first.ipynb")
    write_notebook("02_second.ipynb", parameters='TIER = "auto"\nSEED = 0\n' + MORE)
    with pytest.raises(CourseError, match=message):
        go(**options)
    assert not at_once and not (tmp_path / "out").exists()


def test_text_is_read_as_the_type_of_the_parameters_cell(write_notebook, tmp_path, monkeypatch):
    write_notebook("02_second.ipynb", parameters=MORE)
    chosen = [selection.read_notebook(path) for path in selection.select(["second"], tmp_path / "notebooks")]
    texts = {"EPOCHS": "5", "FLIP": "False", "RATE": "1e-3", "NAMES": "['b', 'c']", "NOTHING": "text", "WORD": "3"}
    right = {"EPOCHS": 5, "FLIP": False, "RATE": 0.001, "NAMES": ["b", "c"], "NOTHING": "text", "WORD": "3"}
    assert selection.check_parameters(chosen, texts) == right == selection.check_parameters(chosen, right)
    assert type(selection.check_parameters(chosen, {"RATE": 2})["RATE"]) is float
    monkeypatch.chdir(tmp_path)
    assert selection.check_parameters(chosen, {"DATA_DIR": "mine"}) == {"DATA_DIR": str(tmp_path / "mine")}
    assert selection.check_parameters(chosen, {"DATA_DIR": "default"}) == {"DATA_DIR": "default"}


def test_lessons_are_chosen_by_number_range_name_and_file(write_notebook, tmp_path):
    for name in ("01_base", "02_rotation", "03_simclr", "04_byol"):
        write_notebook(f"{name}.ipynb")
    write_notebook("scratch.ipynb")

    def chosen(*selectors):
        return [int(path.name[:2]) for path in selection.select(selectors, tmp_path / "notebooks")]

    assert chosen() == [1, 2, 3, 4] and chosen(3) == [3] and chosen("3-9", "1") == [1, 3, 4] and chosen("2,simclr") == [2, 3]
    assert chosen("SimCLR") == [3] and chosen("notebooks/04_byol.ipynb", "04_byol") == [4] and chosen("02") == [2]


def test_notebooks_and_folders_that_cannot_be_used_are_named(go, write_notebook, tmp_path):
    path = write_notebook("01_first.ipynb")
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="Nothing can be written .* --out"):
        go(out=tmp_path / "file" / "below")
    write_notebook("01_first.ipynb", parameters="import os\nSEED = 0")
    with pytest.raises(CourseError, match="01_first.ipynb .* import os"):
        go()
    path.write_text("{")
    with pytest.raises(CourseError, match="01_first.ipynb cannot be read as a notebook"):
        go()


def start_in_background(tmp_path, *more):
    """`run`, on the test's own notebooks, in a process of its own, which takes Ctrl-C even if these tests run where it is ignored."""
    code = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from sslcourse.course import runner
        from sslcourse.course.commands.main import main
        runner.code_digest = lambda: "digest"
        folders = ["--out", {str(tmp_path / "out")!r}, "--notebooks", {str(tmp_path / "notebooks")!r}]
        sys.exit(main(["run", "--tier", "smoke", "--quiet", *folders, *{list(more)!r}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_until(condition, process=None):
    """Wait for something to become true, while the process that brings it about is running."""
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def wait_until_gone(*pids):
    def running(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    wait_until(lambda: not any(map(running, pids)))


def waiting(tmp_path, name):
    """A cell that says which kernel runs it, below which process, and then waits until a file is there."""
    pid = str(tmp_path / f"{name}.pid")
    return (
        f"import os, pathlib, time\npathlib.Path({pid!r} + '.part').write_text(f'{{os.getpid()}} {{os.getppid()}}')\n"
        f"os.rename({pid!r} + '.part', {pid!r})\nwhile not pathlib.Path({str(tmp_path / 'go-on')!r}).exists(): time.sleep(0.1)"
    )


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_no_lesson_outlives_the_run_and_the_next_one_goes_on_from_there(go, write_notebook, tmp_path, with_signal):
    names = ["01_first", "02_second"]
    for name in names:
        write_notebook(f"{name}.ipynb", waiting(tmp_path, name))
    process = start_in_background(tmp_path, "--jobs", "2")
    files = [tmp_path / f"{name}.pid" for name in names]
    wait_until(lambda: all(file.exists() for file in files), process)
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    assert len(pids) == 4 and process.pid not in pids  # each kernel has a process of its own above it
    with pytest.raises(CourseError, match="Another run is using"):
        go()
    process.send_signal(with_signal)
    said, _ = process.communicate()
    if with_signal == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in said, said
        assert f"Interrupted in {', '.join(names)}; 0 of 2" in said
        assert not any(psutil.pid_exists(pid) for pid in pids)  # it waited for them
    wait_until_gone(*pids)
    assert not list((tmp_path / "out").glob("*.ipynb")) + list((tmp_path / "out").glob(".*.ipynb"))
    (tmp_path / "go-on").touch()
    assert statuses(go(["1"])) == {1: "done"}


MEET = """
import os, pathlib, time
here, mine, other = pathlib.Path({folder!r}), {mine!r}, {other!r}
(here / mine).write_text(os.environ["OMP_NUM_THREADS"])
while not (here / other).exists(): time.sleep(0.05)
"""


def test_lessons_run_side_by_side_and_a_process_that_dies_is_a_failure_of_its_lesson_alone(go, write_notebook, tmp_path, capfd):
    write_notebook("01_first.ipynb", MEET.format(folder=str(tmp_path), mine="one", other="two"), "print('printed')", "assert SEED == 4")
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    write_notebook("02_second.ipynb", MEET.format(folder=str(tmp_path), mine="two", other="one"), kill)
    runs = go(jobs=2, parameters={"SEED": 4})
    assert statuses(runs) == {1: "done", 2: "failed"} and "its process ended" in runs[1].error
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == runner.share(0, 2)["OMP_NUM_THREADS"]
    out = tmp_path / "out"
    assert visible(out) == ["01_first.ipynb", "logs", "results", "run.json"] and not list(out.glob(".*.ipynb"))
    assert (out / "logs" / "01_first.log").read_text() == "printed\n"
    told = capfd.readouterr()
    assert told.err == "" and "[1/2] 01_first: done in " in told.out and "[2/2] 02_second: failed: " in told.out
    assert statuses(go(["1"], parameters={"SEED": 4})) == {1: "done before"}  # whether it was run alone or side by side


def test_the_last_lesson_waits_for_all_others_of_its_seed(go, write_notebook, monkeypatch):
    for number in range(1, 8):
        write_notebook(f"{number:02d}_x.ipynb")
    log, shares = [], []

    def lesson(task, share):
        log.append((task.out.name, task.notebook.number))
        return task.went("failed" if task.notebook.number == 2 else "done", seconds=1.0)

    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(runner, "share", lambda slot, jobs, device: shares.append((slot, jobs)) or {})
        monkeypatch.setattr(runner, "_begin", lambda task, share, timeout, alive: pool.submit(lesson, task, share))
        runs = go(jobs=3, seeds=[0, 10])
    assert [run.status for run in runs] == ["done", "failed", *["done"] * 5] * 2
    assert [run.name for run in runs[6:8]] == ["07_x, seed 0", "01_x, seed 10"]
    assert {jobs for _, jobs in shares} == {3} and {slot for slot, _ in shares} <= {0, 1, 2}
    for folder in ("seed-0", "seed-10"):
        assert [number for where, number in log if where == folder][-1] == 7  # it waits, also for the one that failed


def test_each_gets_its_share_of_the_machine(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert [runner.share(0, jobs) for jobs in (1, 3, 8, 20)] == [{"OMP_NUM_THREADS": n} for n in ("8", "2", "1", "1")]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [runner.share(0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 4)] == ["3", "2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [runner.share(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    assert [runner.share(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["5", "7"]


def test_a_seed_has_a_folder_of_its_own_and_is_a_plain_run(go, write_notebook, tmp_path, at_once, capsys):
    write_notebook("01_first.ipynb")
    assert len(go(seeds=[0])) == 1 and [run.status for run in go(seeds=[0, 10])] == ["done before", "done"]
    assert at_once == [("seed-0", "01_first"), ("seed-10", "01_first")] and visible(tmp_path / "out") == ["seed-0", "seed-10"]
    assert statuses(go(out=tmp_path / "out" / "seed-10", parameters={"SEED": 10})) == {1: "done before"}
    assert capsys.readouterr().err == ""
    go(seeds=[0, 1])
    assert "SEED + 1" in capsys.readouterr().err
    go(seeds=[0, 5], tier="cpu")
    assert capsys.readouterr().err == ""
