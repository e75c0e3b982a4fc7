"""What a figure function shows."""

import base64
import html
import re
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

from sslcourse.plots import style


@pytest.fixture
def shown(monkeypatch):
    """The figures that were shown, in order, each with its alternative text as a reader hears it; afterwards none is left open."""
    drawn, figures, png = [], [], style.png
    monkeypatch.setattr(style, "png", lambda figure: (figures.append(figure), png(figure))[1])

    def display(data, raw):
        found = re.fullmatch(r'<img alt="([^"]*)" style="[^"]*" src="data:image/png;base64,([^"]*)">', data["text/html"])
        assert found and found[2] == data["image/png"] and base64.b64decode(found[2]).startswith(b"\x89PNG")
        alt = html.unescape(found[1])
        assert raw and data["text/plain"] == f"[figure: {alt}]"
        drawn.append(SimpleNamespace(figure=figures[-1], axes=figures[-1].axes, alt=alt))

    monkeypatch.setattr(style.display, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    plt.close("all")
    yield drawn
    assert plt.get_fignums() == []
