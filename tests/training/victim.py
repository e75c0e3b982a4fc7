"""A training that is killed: forks for every line it reads, so that all deaths cost one start of Python.

Each line: a JSON object with out and perhaps kill, the number of the call of os.replace at which it dies. Answers with the child's exit
status, negative for a signal.
"""

import json
import os
import signal
import sys
import types
from pathlib import Path

import torch
from tiny import image_set, simclr

from sslcourse import files, training

EPOCHS, BATCH = 6, 12  # 48 images: 4 steps an epoch, 24 in all


def train(out, kill=0):
    """The run itself; a line in steps.txt for every step that is done."""
    files.os = types.SimpleNamespace(**vars(os))  # a stand-in, so that torch's own files are let alone
    calls = iter(range(1, 10_000))

    def replace(*names):
        if next(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(*names)

    def after_step(step, steps):
        with open(out / "steps.txt", "a") as stream:
            stream.write(f"{step}\n")

    files.os.replace, method = replace, simclr()
    method.after_step = after_step
    how = {"batch_size": BATCH, "precision": "fp32", "look_every": 3, "progress": False, "seed": 4, "checkpoint_every": 1}
    history = training.pretrain(method, image_set(), EPOCHS, checkpoint=out / "checkpoint.pt", **how)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    torch.save({"weights": method.state_dict(), "rows": rows}, out / "end.pt")


def main():
    torch.set_num_threads(1)
    simclr()(image_set().unlabeled[:BATCH]).backward()  # what is loaded late is loaded now
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                train(Path(order.pop("out")), **order)
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
