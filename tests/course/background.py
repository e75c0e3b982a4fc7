"""The command line in the background, for tests that interrupt it."""

import subprocess
import sys
import textwrap
import time

import psutil


def start_in_background(tmp_path, *more):
    """`run`, on the test's own notebooks, in a process of its own, which takes Ctrl-C even if these tests run where it is ignored."""
    code = f"""
        import signal, sys, types
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import sslcourse
        toybox = types.SimpleNamespace(name="toybox", prepared=True, needs_network=False)
        sslcourse.datasets = sys.modules["sslcourse.datasets"] = types.SimpleNamespace(available=lambda data_dir: [toybox])
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
