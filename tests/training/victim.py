"""A training that is killed: forks for every line it reads, so that twenty deaths cost one start of Python.

Each line: a JSON object with out, and how the run is to end: {"after": seconds} or {"at": [function, call]} or {} for its own end.
Answers with a line when the child has gone: its exit status, negative for a signal.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tiny import image_set, simclr

from sslcourse import files, training

EPOCHS, BATCH = 6, 12  # 48 images: 4 steps an epoch, 24 in all


def train(out, at=None, every=1):
    """The run itself; a line in steps.txt for every step that is done."""
    if at is not None:
        _die_at(*at)
    method, steps = simclr(), out / "steps.txt"

    def after_step(step, steps_in_all):
        with open(steps, "a") as stream:
            stream.write(f"{step}\n")
        time.sleep(0.01)

    method.after_step = after_step
    hooks = training.Hooks(checkpoint_every=every)
    how = {"batch_size": BATCH, "precision": "fp32", "look_every": 3, "progress": False, "seed": 4, "hooks": hooks}
    history = training.pretrain(method, image_set(), EPOCHS, checkpoint=out / "checkpoint.pt", **how)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    torch.save({"weights": method.state_dict(), "rows": rows}, out / "end.pt")


def _die_at(function, call):
    """Kill this process at the so-manieth call of a function of the system by the writer of files."""
    real, count = getattr(files.os, function), iter(range(1, 10_000))

    def deadly(*args, **options):
        if next(count) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    files.os = type(sys)("os")  # a stand-in, so that torch's own files are let alone
    files.os.__dict__.update(os.__dict__)
    setattr(files.os, function, deadly)


def main():
    torch.set_num_threads(1)
    simclr()(image_set().unlabeled[:BATCH]).backward()  # what is loaded late is loaded now
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        out = Path(order["out"])
        child = os.fork()
        if child == 0:
            try:
                train(out, order.get("at"), order.get("every", 1))
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        timer = threading.Timer(order["after"], os.kill, (child, signal.SIGKILL)) if "after" in order else None
        if timer:
            timer.start()
        _, status = os.waitpid(child, 0)
        if timer:
            timer.cancel()
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
