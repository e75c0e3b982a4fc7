"""Lessons side by side: which wait for which, what a process may take, and that all of them end with the one that started them."""

import os
import signal

import psutil
import pytest
from background import start_in_background, wait_for, wait_until_gone

from sslcourse.course import parallel_runs, runner
from sslcourse.course.execution import LessonRun
from sslcourse.errors import CourseError

MEET = """
import os, pathlib, time
here, mine, other = pathlib.Path({folder!r}), {mine!r}, {other!r}
(here / mine).write_text(os.environ.get("OMP_NUM_THREADS", ""))
while not (here / other).exists(): time.sleep(0.05)
"""


def statuses(runs):
    return {r.number: r.status for r in runs}


def test_lessons_run_at_once_and_the_last_one_waits_for_all(go, write_notebook, tmp_path, capsys):
    folder, end = str(tmp_path), tmp_path / "first-ended"
    held = "big = b'x' * 400_000_000"
    ending = f"print('printed')\ntime.sleep(1)\npathlib.Path({str(end)!r}).touch()"
    write_notebook("01_first.ipynb", held, MEET.format(folder=folder, mine="one", other="two"), ending)
    write_notebook("02_second.ipynb", MEET.format(folder=folder, mine="two", other="one"), "raise ValueError('no')")
    write_notebook("03_third.ipynb", "1", metadata={"sslcourse": {"requires": [2]}})
    write_notebook("07_last.ipynb", f"import pathlib\nassert pathlib.Path({str(end)!r}).exists()\nassert TIER == 'smoke' and SEED == 4")
    runs = go(jobs=2, timeout=60, parameters={"SEED": 4})
    assert statuses(runs) == {1: "done", 2: "failed", 3: "not run", 7: "done"}
    first, second, third, last = runs
    assert second.error.endswith("stopped with ValueError: no") and third.error == "needs 02_second"
    assert first.peak_memory > 400_000_000 > last.peak_memory > 20_000_000  # each its own, whatever runs beside it
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == parallel_runs.share(0, 2)["OMP_NUM_THREADS"]

    out = tmp_path / "out"
    visible = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert visible == ["01_first.ipynb", "02_second.failed.ipynb", "07_last.ipynb", "logs", "results", "run.json"]
    assert not list(out.glob("*.partial*")) and (out / "logs" / "01_first.log").read_text() == "printed\n"
    told = capsys.readouterr()
    assert told.err == ""
    begun = [line for line in told.out.splitlines() if line.endswith("tier smoke, data set toybox")]
    assert [line.split(":")[0] for line in begun] == ["[1/4] 01_first", "[2/4] 02_second", "[4/4] 07_last"]
    ended = [line for line in told.out.splitlines() if line not in begun]
    assert sum(line.startswith("[1/4] 01_first: done in ") for line in ended) == 1
    assert "[2/4] 02_second: failed: cell [4] (raise ValueError('no')) stopped with ValueError: no" in ended
    assert "[3/4] 03_third: not run, because it needs 02_second" in ended and len(ended) == 4

    # What is finished is skipped, whether it was run alone or side by side.
    write_notebook("02_second.ipynb", "1")
    assert statuses(go(jobs=2, parameters={"SEED": 4})) == {1: "done before", 2: "done", 3: "done", 7: "done before"}
    assert statuses(go(parameters={"SEED": 4})) == dict.fromkeys((1, 2, 3, 7), "done before")


def waiting_notebooks(write_notebook, tmp_path, *names):
    for name in names:
        pid = str(tmp_path / f"{name}.pid")
        write_notebook(
            f"{name}.ipynb",
            f"import os, pathlib, time\npathlib.Path({pid!r} + '.part').write_text(f'{{os.getpid()}} {{os.getppid()}}')\n"
            f"os.rename({pid!r} + '.part', {pid!r})\ntime.sleep(600)",
        )


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_no_lesson_outlives_the_run(go, write_notebook, tmp_path, with_signal):
    names = ["01_first", "02_second"]
    waiting_notebooks(write_notebook, tmp_path, *names)
    write_notebook("07_last.ipynb", "1")
    process = start_in_background(tmp_path, "--jobs", "2")
    for name in names:
        wait_for(tmp_path / f"{name}.pid", process)
    pids = [int(pid) for name in names for pid in (tmp_path / f"{name}.pid").read_text().split()]
    assert len(set(pids)) == 4  # two kernels, and a process for each
    with pytest.raises(CourseError, match=rf"Another run \(process {process.pid}\)"):
        go(jobs=2)
    process.send_signal(with_signal)
    said, _ = process.communicate(timeout=60)
    if with_signal == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in said, said
        assert "Interrupted in 01_first, 02_second; 0 of 3 lessons are finished and kept in" in said
        assert not any(psutil.pid_exists(pid) for pid in pids)  # it waited for them
    wait_until_gone(*pids)
    out = tmp_path / "out"
    assert not list(out.glob("*.ipynb")) and not list(out.glob(".*.ipynb"))

    write_notebook("01_first.ipynb", "1")
    assert statuses(go(["1"], jobs=2)) == {1: "done"}  # nothing is in the way


def test_a_process_that_dies_is_a_failure_of_its_lesson_alone(go, write_notebook, tmp_path):
    write_notebook("01_first.ipynb", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    write_notebook("02_second.ipynb", "1")
    first, second = go(jobs=2)
    assert first.status == "failed" and first.error.startswith("its process ended with exit status -9") and second.ok
    assert not list((tmp_path / "out").glob(".*.ipynb"))


def test_a_process_that_cannot_start_says_why(tmp_path):
    (tmp_path / "logs").mkdir()
    lesson = {"number": 1, "name": "01_first", "target": tmp_path / "01_first.ipynb", "no": "such argument"}
    process = parallel_runs.LessonProcess(lesson)
    try:
        process._process.wait(60)
        done = process.finished()
    finally:
        parallel_runs.stop([process])
    assert done.status == "failed" and "exit status 1 and said: TypeError: run_one() got an unexpected keyword argument" in done.error


class Pretended:
    """Stands in for LessonProcess: ends when it has been asked a few times, and remembers what ran beside it."""

    log, running, together = [], set(), []

    def __init__(self, lesson, slot):
        self.lesson, self.slot, self.left = lesson, slot, 1 + lesson["number"] % 3
        self.log.append(("begun", lesson["target"].parent.name, lesson["number"]))
        assert slot not in self.running
        self.running.add(slot)
        self.together.append(len(self.running))

    def finished(self):
        self.left -= 1
        if self.left:
            return None
        self.running.remove(self.slot)
        self.log.append(("ended", self.lesson["target"].parent.name, self.lesson["number"]))
        return LessonRun(self.lesson["number"], self.lesson["name"], "failed" if self.lesson["number"] == 2 else "done", seconds=1.0)


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(runner, "LessonProcess", Pretended)
    monkeypatch.setattr(runner, "stop", lambda processes: None)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    for kept in (Pretended.log, Pretended.running, Pretended.together):
        kept.clear()
    return Pretended


def test_no_more_run_at_once_than_asked_for_and_the_order_is_kept_where_it_counts(go, write_notebook, pretended, tmp_path):
    for number in range(1, 8):
        write_notebook(f"{number:02d}_x.ipynb", metadata={"sslcourse": {"requires": [1]}} if number == 4 else {})
    runs = go(jobs=3)
    assert statuses(runs) == {1: "done", 2: "failed"} | dict.fromkeys(range(3, 8), "done")
    assert max(pretended.together) == 3
    at = {(what, number): place for place, (what, _, number) in enumerate(pretended.log)}
    assert at["ended", 1] < at["begun", 4]
    assert all(at["ended", number] < at["begun", 7] for number in range(1, 7))  # also after the one that failed
    asked = runner.check(["1", "4", "7"], "smoke", "default", {}, tmp_path / "notebooks")
    (one, four, seven), (elsewhere, *_) = asked.tasks(tmp_path / "a"), asked.tasks(tmp_path / "b")
    assert four.waits_for(one) and seven.waits_for(one) and seven.waits_for(four)
    assert not (seven.waits_for(elsewhere) or one.waits_for(seven) or one.waits_for(four) or seven.waits_for(seven))


def test_one_lesson_needs_no_process_of_its_own(go, write_notebook, monkeypatch):
    asked = []

    def run_one(**given):
        asked.append(given)
        return LessonRun(1, "01_first", "done", seconds=1.0)

    monkeypatch.setattr(runner, "run_one", run_one)
    monkeypatch.setattr(runner, "LessonProcess", lambda *given: pytest.fail("a process was started"))
    write_notebook("01_first.ipynb")
    assert statuses(go(jobs=4, progress=True)) == {1: "done"}
    assert asked[0]["progress"] is True and "OMP_NUM_THREADS" not in asked[0]["environment"]


@pytest.mark.parametrize("jobs", [0, -1, 1.0, True, "2"])
def test_jobs_is_a_whole_number_from_1(go, write_notebook, jobs, tmp_path):
    write_notebook("01_first.ipynb")
    with pytest.raises(CourseError, match="jobs is .* a whole number from 1"):
        go(jobs=jobs)
    assert not (tmp_path / "out").exists()


def test_each_gets_its_share_of_the_machine(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(parallel_runs, "cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert [parallel_runs.share(0, jobs) for jobs in (1, 3, 8, 20)] == [{"OMP_NUM_THREADS": n} for n in ("8", "2", "1", "1")]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [parallel_runs.share(0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 4)] == ["3", "2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert [parallel_runs.share(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [parallel_runs.share(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["5", "7"]


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4}, raising=False)
    assert parallel_runs.cores() == 3
