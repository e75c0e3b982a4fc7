import matplotlib

matplotlib.use("Agg")

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from sslcourse.course import widgets


@pytest.fixture
def live(monkeypatch):
    """As in a live front end: what is displayed is collected."""
    shown = []
    monkeypatch.setattr(widgets, "headless", lambda: False)
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


CONTROLS = {"strength": (0.0, 2.0, 0.1, 1.0), "views": (1, 8, 1, 4), "kind": ["simclr", "byol"], "grey": False}
DEFAULTS = {"strength": 1.0, "views": 4, "kind": "simclr", "grey": False}


def test_headless_draws_once_with_the_defaults_and_out_of_sight(capsys):
    calls = []
    kept = plt.figure()

    def draw(**settings):
        calls.append(settings)
        plt.figure()
        print("noise")

    widgets.explore(draw, **CONTROLS)
    assert calls == [DEFAULTS] and plt.get_fignums() == [kept.number]
    plt.close(kept)
    out = capsys.readouterr().out
    assert "(strength, views, kind, grey) work in JupyterLab and Colab" in out and "noise" not in out and out.count("\n") == 1


def test_headless_errors_surface_and_leave_no_figure():
    def draw(x):
        plt.figure()
        raise RuntimeError("broken explorer")

    with pytest.raises(RuntimeError, match="broken explorer"):
        widgets.explore(draw, x=True)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("environment", [True, False])
def test_controls_that_draw_does_not_take_are_refused(environment, live, monkeypatch):
    monkeypatch.setattr(widgets, "headless", lambda: environment)
    with pytest.raises(TypeError, match="temperature"):
        widgets.explore(lambda strength: None, strength=True, temperature=(0, 1, 1, 0))
    with pytest.raises(TypeError, match="strength"):
        widgets.explore(lambda strength: None)


@pytest.mark.parametrize("spec", [(0, 1), (1, 0, 1, 1), (0, 1, 0, 0), (0, 1, 1, 2), [], "text", 3, (0, 1, 1, "a"), (False, True, 1, True)])
def test_controls_that_are_no_specification_are_refused(spec):
    with pytest.raises(ValueError, match="'x'"):
        widgets.explore(lambda x: None, x=spec)


def test_a_live_front_end_gets_controls_and_callbacks(live):
    calls = []
    widgets.explore(lambda **settings: calls.append(settings), **CONTROLS)
    strength, views, kind, grey, output = live[0].children
    kinds = [type(w) for w in (strength, views, kind, grey)]
    assert kinds == [ipywidgets.FloatSlider, ipywidgets.IntSlider, ipywidgets.Dropdown, ipywidgets.Checkbox]
    assert not strength.continuous_update and not views.continuous_update and isinstance(output, ipywidgets.Output)
    assert calls == [DEFAULTS]
    views.value = 6
    kind.value = "byol"
    assert calls[-1] == DEFAULTS | {"views": 6, "kind": "byol"} and len(calls) == 3


def test_a_live_error_is_a_sentence_and_the_figure_is_shown_inside(live, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))

    def draw(x):
        plt.figure()
        if x:
            raise ValueError("too strong")

    callback = widgets._guarded(draw)
    callback(x=False)
    assert len(shown) == 1 and len(shown[0]) == 1
    callback(x=True)
    assert "This setting cannot be shown: ValueError: too strong" in capsys.readouterr().out and plt.get_fignums() == []


def test_switchboard_headless_rehearses_the_first_fault(capsys):
    calls = []
    widgets.switchboard(calls.append, {"none": "nothing is broken", "nan": "a NaN in the input"})
    assert calls == ["none"] and "(none, nan) works in JupyterLab and Colab" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        widgets.switchboard(lambda fault: 1 / 0, {"none": "x"})
    with pytest.raises(ValueError, match="at least one fault"):
        widgets.switchboard(print, {})


def test_switchboard_live_runs_the_chosen_fault(live):
    calls = []
    widgets.switchboard(calls.append, {"none": "nothing is broken", "nan": "a NaN in the input"})
    menu, button = live[0].children[0].children
    assert calls == []
    menu.value = "nan"
    button.click()
    assert calls == ["nan"] and not button.disabled


def test_headless_follows_the_environment_and_the_kernel(monkeypatch):
    assert widgets.headless()  # no kernel here

    class Shell:
        kernel = object()

    monkeypatch.setattr("IPython.get_ipython", Shell)
    assert not widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "1")
    assert widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "0")
    assert not widgets.headless()
