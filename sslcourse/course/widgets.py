"""Explorers: a figure with controls in JupyterLab and Colab, a line of text where nobody can move them.

Only what ipywidgets 7.7 and 8 both have is used, because Colab has 7.7.
"""

import html
import importlib.util
import inspect
import operator
import os
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt

from sslcourse import display, evaluation, plots


def headless() -> bool:
    """Whether nobody will use controls: SSLCOURSE_HEADLESS is set (headless runs, tests), or kernel or ipywidgets is missing."""
    asked = os.environ.get("SSLCOURSE_HEADLESS", "") not in ("", "0")
    return asked or not display.in_notebook() or importlib.util.find_spec("ipywidgets") is None


def _control(name: str, spec) -> tuple[str, dict]:
    """The class of a control in ipywidgets, and its options, `value` among them. Raises ValueError for what is no specification."""
    if isinstance(spec, list) and spec:
        return "Dropdown", {"options": spec, "value": spec[0]}
    if not (isinstance(spec, tuple) and len(spec) == 4 and all(type(number) in (int, float) for number in spec)):
        raise ValueError(f"the control {name!r} is (low, high, step, default) or a list of choices, not {spec!r}")
    low, high, step, value = spec
    if not (low < high and step > 0 and low <= value <= high):
        raise ValueError(f"the slider {name!r} needs low < high, a step above 0 and a default between them, not {spec}")
    kind = "IntSlider" if all(type(number) is int for number in spec) else "FloatSlider"
    # Drawing takes longer than moving the slider by a step, so only the place where it is let go counts.
    return kind, {"min": low, "max": high, "step": step, "value": value, "continuous_update": False}


def explore(draw: Callable, **controls) -> None:
    """Show what draw(**settings) draws, with a slider for each setting, (low, high, step, default), or a menu of a list's entries.

    ValueError for any other control. Without a live front end a line says where the controls work, and draw is called once out of sight.
    """
    specified = {name: _control(name, spec) for name, spec in controls.items()}
    values = {name: options["value"] for name, (_, options) in specified.items()}
    inspect.signature(draw).bind(**values)  # TypeError: the controls are not what draw takes
    works = f"The controls of this explorer ({', '.join(controls)}) work in JupyterLab and Colab once this cell is run"
    works += "; the figure above shows the default settings."
    if headless():
        _rehearse(draw, **values)
        return print(works)
    import ipywidgets

    room, inputs = {"description_width": f"{max(map(len, controls), default=0) + 1}ch"}, {}  # so that sliders begin below each other
    for name, (kind, options) in specified.items():
        inputs[name] = getattr(ipywidgets, kind)(description=name.replace("_", " "), style=room, **options)
    drawn, output = _rehearse(_guarded, draw, **values), ipywidgets.Output()
    with output:
        drawn.show()
    for control in inputs.values():
        control.observe(lambda _: _redraw(output, draw, **{name: one.value for name, one in inputs.items()}), "value")
    _show(ipywidgets.VBox([*inputs.values(), output]), works, drawn.outputs)


def switchboard(run: Callable[[str], object], faults: Mapping[str, str]) -> None:
    """A menu of faults (name -> description) and a button that calls run(name) and shows what it draws and prints.

    Without a live front end run is called once, out of sight, with the first fault.
    """
    if not faults:
        raise ValueError("a switchboard needs at least one fault")
    works = f"This switchboard ({', '.join(faults)}) works in JupyterLab and Colab once this cell is run."
    works += f" In a cell of your own: {getattr(run, '__name__', 'run')}(fault)."
    if headless():
        _rehearse(run, next(iter(faults)))
        return print(works)
    import ipywidgets

    # as wide as its longest entry: descriptions are sentences, and a menu cuts them off without a sign
    layout = ipywidgets.Layout(width="max-content", max_width="100%")
    menu = ipywidgets.Dropdown(options=[(description, name) for name, description in faults.items()], description="fault", layout=layout)
    button, output = ipywidgets.Button(description="Run"), ipywidgets.Output()

    def pressed(_):
        button.disabled = True  # a second press while it trains would queue a second run
        try:
            _redraw(output, run, menu.value)
        finally:
            button.disabled = False

    button.on_click(pressed)
    _show(ipywidgets.VBox([ipywidgets.HBox([menu, button]), output]), works)


def told_of_a_game(answers: Sequence[int], truths: Sequence[int], choices: Sequence[str], rival: Sequence[int]) -> str:
    """What is to be said about the reader's last answer; after the last picture also whether chance could have made the difference."""
    played, n = len(answers), len(truths)
    said, truth, theirs = answers[-1], truths[played - 1], rival[played - 1]
    right = [[*map(operator.eq, side, truths)] for side in (answers, rival[:played])]
    mine, its = map(sum, right)
    you = f"you said {choices[said]}, {'right' if said == truth else f'wrong: it is {choices[truth]}'}"
    network = f"the network said {choices[theirs]}, {'right' if theirs == truth else 'wrong'}"
    text = f"Picture {played}: {you}; {network}. You have {mine} of {played}, the network {its}."
    if played == n:
        easily = evaluation.mcnemar(*right).p_value >= 0.05
        luck = "a difference that luck alone could give" if easily else "more than luck would easily give"
        winner = f"{'You are' if mine > its else 'The network is'} ahead by {abs(mine - its)}, {luck} with {n} pictures."
        text += f" The end. {winner if mine != its else 'Nobody won.'}"
    return text


def guessing_game(pictures, truths: Sequence[int], choices: Sequence[str], rival: Sequence[int]) -> None:
    """A game: the reader names what each picture shows, one button a choice, and is compared with a network's answers.

    pictures: n, as `plots.images` takes them. truths and rival: n indices into choices, of what is right and of what the network said.
    Without a live front end the first picture is drawn out of sight.
    """
    n, answers = len(truths), []
    if not n or n != len(rival) or not {*truths, *rival} <= set(range(len(choices))):
        told = f"{n} truths, {len(rival)} answers and {len(choices)} choices"
        raise ValueError(f"A guessing game needs a truth and the network's answer for each picture, as indices of choices, not {told}.")

    def draw():
        if len(answers) == n:
            return print("No pictures are left.")
        plots.images(pictures[len(answers)][None], [f"Picture {len(answers) + 1} of {n}"], zoom=2.2)

    works = f"This guessing game ({n} pictures, {len(choices)} choices) works in JupyterLab and Colab once this cell is run"
    drawn = _rehearse(draw)
    if headless():
        return print(f"{works}; the network has {sum(map(operator.eq, rival, truths))} of {n} right.")
    import ipywidgets

    wide = {"layout": ipywidgets.Layout(width="auto", align_self="flex-start")}  # as wide as its text, and not as the page
    buttons = [ipywidgets.Button(description=str(choice), **wide) for choice in choices]
    again, said, output = ipywidgets.Button(description="start again", **wide), ipywidgets.HTML(), ipywidgets.Output()

    def turn(text: str):
        for button in buttons:
            button.disabled = True  # a second press while the next picture is drawn would answer it unseen
        said.value = html.escape(text)
        _redraw(output, draw)
        for button in buttons:
            button.disabled = len(answers) == n

    def pressed(button):
        if len(answers) < n:
            answers.append(buttons.index(button))
            turn(told_of_a_game(answers, truths, choices, rival))

    def restarted(_):
        answers.clear()
        turn("What is it?")

    for button in buttons:
        button.on_click(pressed)
    again.on_click(restarted)
    row = ipywidgets.Box(buttons, layout=ipywidgets.Layout(display="flex", flex_flow="row wrap"))
    _show(ipywidgets.VBox([output, row, said, again]), f"{works}.", drawn.outputs)
    restarted(again)


def _guarded(draw: Callable, /, *args, **settings) -> None:
    """Draw, with the figures shown at once (after a callback is too late for ipywidgets) and an error shown as a sentence."""
    try:
        draw(*args, **settings)
        plt.show()
    except Exception as error:
        print(f"This setting cannot be shown: {type(error).__name__}: {error}")
    finally:
        plt.close("all")


def _redraw(output, draw: Callable, /, *args, **settings) -> None:
    with output:
        output.clear_output(wait=True)
        _guarded(draw, *args, **settings)


def _rehearse(draw: Callable, /, *args, **settings):
    """Draw out of sight; -> what was printed and shown, as IPython's CapturedIO."""
    from IPython.utils.capture import capture_output

    before = set(plt.get_fignums())
    try:
        with capture_output() as drawn:
            draw(*args, **settings)
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    return drawn


def _show(widget, works: str, drawn: Sequence = ()) -> None:
    """A widget under a sentence on where it works. In an export its first figure stands in its place, and it may not outlive its kernel."""
    dead = ".jp-OutputArea-output.jupyter-widgets:not(:has(*))"  # JupyterLab's "model not found" in a notebook that is opened again
    display.show(works, {"text/html": f"<p>{html.escape(works)}</p><style>{dead} {{ display: none; }}</style>"})
    figure = next((dict(output.data) for output in drawn if "image/png" in output.data), {"text/html": ""})
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display.show(figure.pop("text/plain", ""), figure | {"application/vnd.jupyter.widget-view+json": view})
