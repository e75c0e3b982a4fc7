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


def test_controls_that_draw_does_not_take_are_refused():
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
    assert calls == [] and menu.layout.width == "max-content"  # at its own width a menu cuts long descriptions off
    menu.value = "nan"
    button.click()
    assert calls == ["nan"] and not button.disabled


PICTURES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
TRUTHS, RIVAL, CHOICES = torch.tensor([0, 1, 1]), [0, 0, 1], ["cat", "<dog>"]


def test_the_score_of_a_game():
    game = widgets.Game(TRUTHS, CHOICES, RIVAL)
    assert len(game) == 3 and game.scores == (0, 0)
    assert game.answer(0) == "Picture 1: you said cat, right; the network said cat, right. You have 1 of 1, the network 1."
    assert game.answer(0) == "Picture 2: you said cat, wrong: it is <dog>; the network said cat, wrong. You have 1 of 2, the network 1."
    assert not game.over
    game.answer(0)
    assert game.over and game.scores == (1, 2)
    text = game.verdict()
    assert text.startswith("The end: of 3 pictures you had 1 right and the network 2. The network is ahead by 1, a difference that luck")


@pytest.mark.parametrize(
    ("mine", "told"),
    [
        ([0] * 6 + [1] * 4, "You are ahead by 6, more than luck would easily give with 10 pictures."),
        ([0] * 5 + [1] * 5, "You are ahead by 5, a difference that luck alone could give with 10 pictures."),
        ([1] * 10, "Nobody won."),
    ],
)
def test_the_verdict_knows_what_luck_can_do(mine, told):
    game = widgets.Game([0] * 10, CHOICES, [1] * 10)
    for choice in mine:
        game.answer(choice)
    assert game.verdict().endswith(told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pictures": PICTURES.float()}, "uint8"),
        ({"pictures": PICTURES[0]}, "uint8"),
        ({"pictures": PICTURES[:2]}, r"\(3, 3, height"),
        ({"pictures": PICTURES[:0], "truths": [], "rival": []}, "0 and 0"),
        ({"rival": [0]}, "3 and 1"),
        ({"truths": [0, 1, 2]}, "indices into its 2 choices"),
        ({"rival": [0, 1, -1]}, "indices into its 2 choices"),
        ({"choices": ["cat"]}, "two or more"),
        ({"choices": ["cat", "cat"]}, "different choices"),
    ],
)
def test_games_that_cannot_be_played_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        widgets.guessing_game(**({"pictures": PICTURES, "truths": TRUTHS, "choices": CHOICES, "rival": RIVAL} | change))


def test_guessing_game_headless_rehearses_the_first_picture(capsys):
    drawn = []
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL, show=lambda picture, text: drawn.append(text))
    assert drawn == ["Picture 1 of 3"]
    out = capsys.readouterr().out
    assert "(3 pictures, 2 choices) works in JupyterLab and Colab" in out and "; the network has 2 of 3 right." in out
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL, "a cat")
    out = capsys.readouterr().out
    assert "a cat has 2 of 3 right" in out and out.count("\n") == 1 and plt.get_fignums() == []
    with pytest.raises(ZeroDivisionError):
        widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL, show=lambda picture, text: 1 / 0)


def test_guessing_game_live(live, capsys):
    drawn = []
    widgets.guessing_game(PICTURES, TRUTHS, CHOICES, RIVAL, show=lambda picture, text: drawn.append(text))
    output, row, said, again = live[0].children
    cat, dog = row.children
    assert (cat.description, dog.description) == tuple(CHOICES) and drawn == ["Picture 1 of 3"] * 2 and not cat.disabled
    assert again.layout.align_self == "flex-start"  # else a column stretches a button over the whole page
    cat.click()
    assert "Picture 1: you said cat, right" in said.value and drawn[-1] == "Picture 2 of 3"
    dog.click()
    assert "you said &lt;dog&gt;, right; the network said cat, wrong. You have 2 of 2, the network 1." in said.value
    dog.click()
    assert "You have 3 of 3, the network 2. The end: of 3 pictures you had 3 right" in said.value
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
    assert {figure["text/plain"] for figure in live[1:]} == {"[figure: Picture 1 of 3, to be named by one of the buttons.]"}


def test_headless_follows_the_environment_and_the_kernel(monkeypatch):
    assert widgets.headless()  # no kernel here

    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace(kernel=None))
    assert not widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "1")
    assert widgets.headless()
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "0")
    assert not widgets.headless()
