"""The command line in the background, for tests that interrupt it."""

import subprocess
import sys
import textwrap
import time

import psutil
import pytest


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
        runner._code_digest = lambda: "digest"
        folders = ["--out", {str(tmp_path / "out")!r}, "--notebooks", {str(tmp_path / "notebooks")!r}]
        sys.exit(main(["run", "--tier", "smoke", "--quiet", *folders, *{list(more)!r}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for(path, process):
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"{path.name} never came: {process.stdout.read()}")


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*pids):
    """Fails if one of these processes is still running after half a minute."""
    for _ in range(300):
        left = [pid for pid in pids if is_running(pid)]
        if not left:
            return
        time.sleep(0.1)
    for pid in left:
        psutil.Process(pid).kill()
    pytest.fail(f"{len(left)} processes were still running")
