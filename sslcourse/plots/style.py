"""How figures look: colours, markers, type, level lines; and how one is shown together with its alternative text."""

import base64
import html
import io
import warnings

import matplotlib
import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sslcourse import display

# Okabe and Ito's eight colours. In grey some of them look alike, so lines have styles and markers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def look(i: int) -> dict[str, str]:
    """Colour and marker of the i-th of many: ten have ten colours, also for the colour-blind, and ten markers; a hundred, other pairs."""
    return {"color": (*COLOURS, "#CCCCCC", "#882255")[i % 10], "marker": (*MARKERS, "<", ">")[(i + i // 10) % 10]}


def use_style() -> None:
    """The course's look, set once in a lesson's set-up cell. Dollars are dollars: names of classes are no formulas."""
    matplotlib.rcParams.update({
        "text.parse_math": False,
        "figure.dpi": 90, "savefig.dpi": 90, "figure.facecolor": "white", "axes.facecolor": "white", "font.size": 10.5,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
        "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.framealpha": 0.8,
        "legend.edgecolor": "none", "lines.markersize": 5, "axes.prop_cycle": matplotlib.cycler(color=COLOURS, marker=MARKERS),
    })  # fmt: skip


def fonts_for(text: str) -> str:
    """Let fonts that are installed write what the first one, DejaVu Sans, has no letters for; returns the letters that none of them has.

    Figures show these as boxes, and Matplotlib, which would say so for each of them in each figure, is asked to be quiet about them.
    """
    def lacking(path: str) -> set[str]:
        return {letter for letter in missing if not font_manager.get_font(path).get_char_index(ord(letter))}

    missing = set(filter(str.isprintable, text))
    missing = lacking(font_manager.findfont(font_manager.FontProperties()))
    for font in font_manager.fontManager.ttflist if missing else ():
        unfit = "Last Resort" in font.name or "Emoji" in font.name  # boxes only, and pictures that Matplotlib cannot draw
        if missing and not unfit and (left := lacking(font.fname)) < missing:
            matplotlib.rcParams["font.family"], missing = [*matplotlib.rcParams["font.family"], font.name], left
    if missing:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
    return "".join(sorted(missing))


def show(figure: Figure, alt: str) -> None:
    """Show a figure with its alternative text, then close it; outside a notebook the text is printed.

    In a notebook it is an <img alt=...> for whatever shows pages, and image/png for LaTeX and others that know no HTML.
    """
    for axis in figure.axes:
        if axis.get_yscale() == "log":  # whose own labels are formulas, and no formulas are written here
            axis.yaxis.set_major_formatter("{x:g}")
    encoded = base64.b64encode(png(figure)).decode()
    plt.close(figure)
    style = "max-width:100%;height:auto;background:white"
    image = f'<img alt="{html.escape(alt)}" style="{style}" src="data:image/png;base64,{encoded}">'
    display.show(f"[figure: {alt}]", {"text/html": image, "image/png": encoded})


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, cut to what is drawn, with at most 256 colours where that is smaller: a third to a half of the size."""
    full, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    image = Image.open(full).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return min(smaller.getvalue(), full.getvalue(), key=len)


def heading(figure: Figure, title: str) -> None:
    """A title above all panels."""
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)


def reference_line(axis: Axes, level: float, name: str) -> None:
    """A dotted line across a panel at a level, with its name at the right end, readable where a curve passes."""
    axis.axhline(level, color="black", linestyle=":", linewidth=1.2)
    behind = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6}
    place = {"xycoords": axis.get_yaxis_transform(), "xytext": (0, 1.5), "textcoords": "offset points"}
    axis.annotate(name, (0.99, level), **place, ha="right", va="bottom", fontsize=8.5, bbox=behind)
