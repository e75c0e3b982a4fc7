"""A lesson's kernel with a person in front of it: runs the cells, and moves the controls by the messages that a front end sends."""

import json
import time
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

_OUTPUTS = ("display_data", "execute_result", "stream", "error")
_FAILED = "This setting cannot be shown"  # what sslcourse.course.widgets prints instead of a traceback
_CELL_SECONDS = 300


async def run(notebook, python: Path, folder: Path, environment: dict[str, str], specs: Path) -> tuple[list[str], int]:
    """Run all cells in place and move every control that a cell shows; a cell that fails ends the lesson.

    python, folder, environment: the kernel's interpreter, working directory and variables. specs: an empty folder for its description.
    -> problems as sentences, and how many controls were moved.
    """
    problems, controls = [], 0
    (specs / "colab").mkdir(parents=True)
    command = [str(python), "-m", "colab_kernel_launcher", "-f", "{connection_file}"]
    (specs / "colab" / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    described = KernelSpecManager(kernel_dirs=[str(specs)], ensure_native_kernel=False)
    manager = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=described)
    client = NotebookClient(notebook, km=manager, timeout=_CELL_SECONDS, store_widget_state=True)
    try:
        async with client.async_setup_kernel(env=environment, cwd=str(folder), cleanup_kc=True):
            for index, cell in enumerate(notebook.cells):
                before = set(client.widget_state)
                await client.async_execute_cell(cell, index)
                made = {model: state for model, state in client.widget_state.items() if model not in before}
                if any(state["_model_name"] == "OutputModel" for state in made.values()):
                    first = next(iter(cell.source.strip().splitlines()), "")[:60]
                    found, moved = await _play(client, made)
                    problems += [f"cell {index} ({first}): {problem}" for problem in found]
                    controls += moved
    except CellExecutionError as error:
        problems.append(f"it stopped with {error.ename}: {error.evalue}")
    except Exception as error:  # the kernel died, or a cell took too long
        problems.append(f"it stopped with {type(error).__name__}: {str(error).strip()[:300]}")
    return problems, controls


async def _play(client: NotebookClient, models: dict[str, dict]) -> tuple[list[str], int]:
    """Move each control away from its setting, and then press each button; -> problems, and how many controls there were."""
    buttons = [model for model, state in models.items() if state["_model_name"] == "ButtonModel"]
    moves = [(model, {"method": "update", "state": state, "buffer_paths": []}) for model in models if (state := _moved(models[model]))]
    problems = []
    for model, data in [*moves, *((model, {"method": "custom", "content": {"event": "click"}}) for model in buttons)]:
        shown = await _say(client, model, data)
        texts = [output if isinstance(output, str) else json.dumps(output) for output in shown]
        trouble = next((text.strip()[:300] for text in texts if _FAILED in text or "Error:" in text), "")
        if trouble or (not shown and (model in buttons or not buttons)):  # a menu beside a button shows nothing by itself
            name = models[model].get("description") or models[model]["_model_name"]
            problems.append(f"{name!r} was moved or pressed: {trouble or 'nothing was shown'}")
    return problems, len(moves) + len(buttons)


def _moved(state: dict) -> dict:
    """What a front end would change of a control to move it; nothing for what is no control."""
    kind = state["_model_name"]
    if kind == "CheckboxModel":
        return {"value": not state["value"]}
    if kind == "DropdownModel":
        return {"index": (state["index"] + 1) % len(state["_options_labels"])}
    if kind in ("IntSliderModel", "FloatSliderModel"):
        return {"value": state["max"] if state["value"] != state["max"] else state["min"]}
    return {}


async def _say(client: NotebookClient, model: str, data: dict) -> list:
    """Send a widget a front end's message and wait until it has been dealt with; -> what its output widget would now show."""
    message = client.kc.session.msg("comm_msg", {"comm_id": model, "data": data})
    client.kc.shell_channel.send(message)
    own, listening, shown, deadline = message["header"]["msg_id"], False, [], time.monotonic() + _CELL_SECONDS
    while True:
        answer = await client.kc.iopub_channel.get_msg(timeout=deadline - time.monotonic())
        if answer["parent_header"].get("msg_id") != own:
            continue
        kind, content = answer["msg_type"], answer["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return shown
        if kind == "comm_msg" and "state" in content["data"]:
            state = content["data"]["state"]
            client.widget_state.setdefault(content["comm_id"], {}).update(state)
            if "msg_id" in state:
                listening = state["msg_id"] == own
        elif kind == "error" or (kind in _OUTPUTS and listening):
            shown.append(content.get("data") or content.get("text") or f"{content.get('ename')}: {content.get('evalue')}")
