"""Explorers: a figure with controls in JupyterLab and Colab, one line of text where nobody can move them.

Only what ipywidgets 7.7 and 8 both have is used, because Colab has 7.7. The cell before an explorer draws the same figure at the
default settings, so nothing is lost where the controls do not show.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping


def headless() -> bool:
    """Whether nobody will use controls: SSLCOURSE_HEADLESS is set (headless runs, tests), or kernel or ipywidgets is missing."""
    if os.environ.get("SSLCOURSE_HEADLESS", "") not in ("", "0"):
        return True
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return True
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return True
    return False


def defaults(controls: Mapping) -> dict:
    """The setting that each control starts with. Raises ValueError for a specification that is not one.

    (low, high, step, default) is a slider, of whole numbers if all four are; a list is a menu that starts with its first entry;
    True or False is a check box.
    """
    values = {}
    for name, spec in controls.items():
        if isinstance(spec, bool):
            values[name] = spec
        elif isinstance(spec, list) and spec:
            values[name] = spec[0]
        elif isinstance(spec, tuple) and len(spec) == 4 and all(type(number) in (int, float) for number in spec):
            low, high, step, default = spec
            if not (low < high and step > 0 and low <= default <= high):
                raise ValueError(f"the slider {name!r} needs low < high, a step above 0 and a default between them, not {spec}")
            values[name] = default
        else:
            raise ValueError(f"the control {name!r} is (low, high, step, default), a list of choices or a bool, not {spec!r}")
    return values


def explore(draw: Callable, **controls) -> None:
    """Show what draw(**settings) draws, with a control for each setting; see `defaults` for how controls are written.

    Without a live front end the controls are replaced by a line that says where they work; draw is still called once with the
    defaults, out of sight, so that an explorer that is broken fails in every run and not only in front of a reader.
    """
    values = defaults(controls)
    inspect.signature(draw).bind(**values)  # TypeError: the controls are not what draw takes
    if headless():
        _rehearse(draw, **values)
        names = ", ".join(controls)
        print(f"The controls of this explorer ({names}) work in JupyterLab and Colab; the figure above shows the default settings.")
        return
    import ipywidgets
    from IPython.display import display

    inputs = {name: _control(ipywidgets, name, spec) for name, spec in controls.items()}
    output = ipywidgets.interactive_output(_guarded(draw), inputs)
    display(ipywidgets.VBox([*inputs.values(), output]))


def switchboard(run: Callable[[str], object], faults: Mapping[str, str]) -> None:
    """A menu of faults (name -> description) and a button that calls run(name) and shows what it draws and prints.

    Without a live front end run is called once, out of sight, with the first fault.
    """
    if not faults:
        raise ValueError("a switchboard needs at least one fault")
    if headless():
        _rehearse(run, next(iter(faults)))
        name = getattr(run, "__name__", "run")
        print(f"This switchboard ({', '.join(faults)}) works in JupyterLab and Colab. In a cell of your own: {name}(fault).")
        return
    import ipywidgets
    from IPython.display import display

    menu = ipywidgets.Dropdown(options=[(description, name) for name, description in faults.items()], description="fault")
    button, output = ipywidgets.Button(description="Run"), ipywidgets.Output()

    def pressed(_):
        button.disabled = True  # a second press while it trains would queue a second run
        try:
            with output:
                output.clear_output(wait=True)
                _guarded(run)(menu.value)
        finally:
            button.disabled = False

    button.on_click(pressed)
    display(ipywidgets.VBox([ipywidgets.HBox([menu, button]), output]))


def _control(ipywidgets, name: str, spec):
    label = name.replace("_", " ")
    wide = {"description_width": "initial"}
    if isinstance(spec, bool):
        return ipywidgets.Checkbox(value=spec, description=label, style=wide)
    if isinstance(spec, list):
        return ipywidgets.Dropdown(options=spec, value=spec[0], description=label, style=wide)
    low, high, step, default = spec
    slider = ipywidgets.IntSlider if all(isinstance(number, int) for number in spec) else ipywidgets.FloatSlider
    # Drawing takes longer than moving the slider by a step, so only the place where it is let go counts.
    return slider(value=default, min=low, max=high, step=step, description=label, continuous_update=False, style=wide)


def _guarded(draw: Callable) -> Callable:
    """draw, with its figures shown inside the callback (later is too late for ipywidgets) and an error shown as a sentence."""

    def callback(*args, **settings):
        import matplotlib.pyplot as plt

        try:
            draw(*args, **settings)
            plt.show()
        except Exception as error:
            message = str(error).strip() or "no message"
            print(f"This setting cannot be shown: {type(error).__name__}: {message}")
        finally:
            plt.close("all")

    return callback


def _rehearse(draw: Callable, *args, **settings) -> None:
    import matplotlib.pyplot as plt
    from IPython.utils.capture import capture_output

    before = set(plt.get_fignums())
    try:
        with capture_output():
            draw(*args, **settings)
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
