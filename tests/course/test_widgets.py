import matplotlib

matplotlib.use("Agg")

import types

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch
from nbconvert.exporters import HTMLExporter, LatexExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

from sslcourse.course import widgets


@pytest.fixture
def live(monkeypatch):
    """As in a live front end: what is displayed is collected, the widget first."""
    shown = []
    monkeypatch.setattr(widgets, "headless", lambda: False)
    monkeypatch.setattr("sslcourse.display.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw=False: shown.append(data))
    monkeypatch.setattr(widgets, "_show", lambda widget, *_: shown.insert(0, widget))
    return shown


CONTROLS = {"strength": (0.0, 2.0, 0.1, 1.0), "views": (1, 8, 1, 4), "kind": ["simclr", "byol"]}
DEFAULTS = {"strength": 1.0, "views": 4, "kind": "simclr"}


def test_headless_draws_once_with_the_defaults_and_out_of_sight(capsys):
    calls = []
    kept = plt.figure()

    def draw(**settings):
        calls.append(settings)
        plt.figure()
        print("noise")
        1 / (settings["views"] - 5)

    widgets.explore(draw, **CONTROLS)
    assert calls == [DEFAULTS] and plt.get_fignums() == [kept.number]
    out = capsys.readouterr().out
    assert "(strength, views, kind) work in JupyterLab and Colab" in out and "noise" not in out and out.count("\n") == 1
    with pytest.raises(ZeroDivisionError):  # a broken explorer is no secret, and leaves no figure
        widgets.explore(draw, views=(1, 8, 1, 5))
    assert plt.get_fignums() == [kept.number]
    plt.close(kept)


@pytest.mark.parametrize("spec", [(0, 1), (1, 0, 1, 1), (0, 1, 0, 0), (0, 1, 1, 2), [], True, "text", 3, (0, 1, 1, "a"), (0, True, 1, 1)])
def test_controls_that_are_no_specification_or_that_draw_does_not_take_are_refused(spec):
    with pytest.raises(ValueError, match="'x'"):
        widgets.explore(lambda x: None, x=spec)
    for controls, named in (({"x": (0, 1, 1, 0), "temperature": (0, 1, 1, 0)}, "temperature"), ({}, "x")):
        with pytest.raises(TypeError, match=named):
            widgets.explore(lambda x: None, **controls)


def test_a_live_front_end_gets_controls_and_callbacks(live):
    calls = []
    widgets.explore(lambda **settings: calls.append(settings), **CONTROLS)
    strength, views, kind, output = live[0].children
    assert [type(w) for w in (strength, views, kind)] == [ipywidgets.FloatSlider, ipywidgets.IntSlider, ipywidgets.Dropdown]
    assert not strength.continuous_update and not views.continuous_update and isinstance(output, ipywidgets.Output)
    assert calls == [DEFAULTS]
    views.value = 6
    kind.value = "byol"
    assert calls[-1] == DEFAULTS | {"views": 6, "kind": "byol"} and len(calls) == 3


FIGURE = {"image/png": "iVBORw0KGgo=", "text/html": "<img alt='a line'>", "text/plain": "[figure: a line]"}


@pytest.mark.parametrize("figure", [FIGURE, None])
def test_an_export_has_the_sentence_and_the_first_figure_in_place_of_a_widget(figure, monkeypatch):
    outputs = []
    show = lambda plain, formats: outputs.append(new_output("display_data", data=formats | {"text/plain": plain}))  # noqa: E731
    monkeypatch.setattr(widgets.display, "show", show)
    drawn = [types.SimpleNamespace(data=data) for data in (figure, {"text/plain": "a later text"}) if data]
    widgets._show(ipywidgets.VBox(), "It works <elsewhere>.", drawn)
    assert "application/vnd.jupyter.widget-view+json" in outputs[-1].data
    page, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[new_code_cell(outputs=outputs)]))
    assert "It works &lt;elsewhere&gt;." in page and page.count('alt="a line"') == (figure is not None) and "VBox" not in page
    text, files = LatexExporter().from_notebook_node(new_notebook(cells=[new_code_cell(outputs=outputs)]))
    assert "It works" in text and text.count("adjustimage{max size") == len(files.get("outputs", {})) == (figure is not None)


def test_a_live_error_is_a_sentence_and_the_figure_is_shown_inside(live, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))

    def draw(x):
        plt.figure()
        if x:
            raise ValueError("too strong")

    widgets.explore(draw, x=(0, 1, 1, 0))
    live[0].children[0].value = 1
    assert shown == [1] and plt.get_fignums() == []
    assert "This setting cannot be shown: ValueError: too strong" in capsys.readouterr().out


FAULTS = {"none": "nothing is broken", "nan": "a NaN in the input"}


def test_switchboard_headless_rehearses_the_first_fault(capsys):
    calls = []
    widgets.switchboard(calls.append, FAULTS)
    assert calls == ["none"] and "(none, nan) works in JupyterLab and Colab" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        widgets.switchboard(lambda fault: 1 / 0, FAULTS)
    with pytest.raises(ValueError, match="at least one fault"):
        widgets.switchboard(print, {})


def test_switchboard_live_runs_the_chosen_fault(live):
    calls = []
    widgets.switchboard(calls.append, FAULTS)
    menu, button = live[0].children[0].children
    assert calls == [] and menu.layout.width == "max-content"  # at its own width a menu cuts long descriptions off
    menu.value = "nan"
    button.click()
    assert calls == ["nan"] and not button.disabled


PICTURES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
TRUTHS, RIVAL, CHOICES = [0, 1, 1], [0, 0, 1], ["cat", "<dog>"]


WON = "ahead by 6, more than luck would easily give with 10 pictures."
LUCK = "ahead by 5, a difference that luck alone could give with 10 pictures."


@pytest.mark.parametrize("right, told", [(6, f"You are {WON}"), (5, f"You are {LUCK}"), (0, "Nobody won."), (-5, f"The network is {LUCK}")])
def test_the_verdict_knows_what_luck_can_do(right, told):
    mine, its = ([0] * n + [1] * (10 - n) for n in (max(right, 0), max(-right, 0)))
    assert widgets.told_of_a_game(mine, [0] * 10, CHOICES, its).endswith(told)


@pytest.mark.parametrize("truths, rival", [([], []), *[(TRUTHS, rival) for rival in ([0], [0, 1, -1], [0, 1, 2])]])
def test_games_that_cannot_be_played_are_refused(truths, rival):
    with pytest.raises(ValueError, match=f"{len(truths)} truths, {len(rival)} answers and 2 choices"):
        widgets.guessing_game(PICTURES, truths, CHOICES, rival)


@pytest.fixture
def drawn(monkeypatch):
    """What is written over the pictures that are drawn."""
    captions = []
    monkeypatch.setattr(widgets.plots, "images", lambda pictures, titles, zoom: captions.extend(titles))
    return captions


def test_guessing_game_headless_rehearses_the_first_picture(drawn, capsys):
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL)
    assert drawn == ["Picture 1 of 3"]
    out = capsys.readouterr().out
    assert "(3 pictures, 2 choices) works in JupyterLab and Colab" in out and "; the network has 2 of 3 right." in out
    with pytest.raises(IndexError):
        widgets.guessing_game(PICTURES[:0], TRUTHS, CHOICES, RIVAL)


def test_guessing_game_live(live, drawn, capsys):
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL)
    output, row, said, again = live[0].children
    cat, dog = row.children
    assert (cat.description, dog.description) == tuple(CHOICES) and drawn == ["Picture 1 of 3"] * 2 and not cat.disabled
    assert again.layout.align_self == "flex-start"  # else a column stretches a button over the whole page
    cat.click()
    assert "Picture 1: you said cat, right" in said.value and drawn[-1] == "Picture 2 of 3"
    dog.click()
    assert "you said &lt;dog&gt;, right; the network said cat, wrong. You have 2 of 2, the network 1." in said.value
    dog.click()
    assert "You have 3 of 3, the network 2. The end. You are ahead by 1, a difference that luck" in said.value
    assert cat.disabled and dog.disabled and drawn[-1] == "Picture 3 of 3" and "No pictures are left." in capsys.readouterr().out
    dog.click()  # a press that was on its way
    assert len(drawn) == 4
    again.click()
    assert not cat.disabled and drawn[-1] == "Picture 1 of 3" and said.value == "What is it?"
    dog.click()
    assert "wrong: it is cat" in said.value and "You have 0 of 1" in said.value


def test_the_picture_of_a_guessing_game_does_not_tell_what_it_is(live):
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL)
    assert len(live) == 3 and plt.get_fignums() == []
    assert {figure["text/plain"] for figure in live[1:]} == {"[figure: 1 image in 1 row of 1: Picture 1 of 3.]"}


def test_headless_follows_the_environment_and_the_kernel(monkeypatch):
    assert widgets.headless()  # no kernel here

    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace(kernel=None))
    assert not widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "1")
    assert widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "0")
    assert not widgets.headless()
