"""Sphinx's settings for the lessons as pages: the notebooks as they are stored, nothing executed, nothing fetched from elsewhere.

    sphinx-build -W --keep-going -c docs -d build/doctrees notebooks build/site

What a page folds stands in the notebooks, as tags of their cells. With -W a dead link between pages is an error.
"""

import importlib.util
import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms import SphinxTransform

project = html_title = "Self- and semi-supervised image learning"
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
root_doc = "index"

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_code_prompt_show = "Code of the set-up"  # solutions bring a title of their own
nb_code_prompt_hide = "Code of the set-up"
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
# Lessons may go from a heading to one two levels below, and show code in no language that is known.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
smartquotes = False

# One file that needs no others draws the formulas.
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = mathjax.name
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}

html_theme = "furo"
html_static_path = ["site.css", str(mathjax)]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # opened from disk, a page may not read another one
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}


class KnownAnchors(SphinxTransform):
    """Makes <a id="view"></a> in a text a target that Sphinx knows, so that links to it are checked."""

    default_priority = 500

    def apply(self):
        for opening in list(self.document.findall(nodes.raw)):
            anchor = re.fullmatch(r'<a id="([\w-]+)">', opening.astext())
            if anchor and anchor[1] not in self.document.ids:
                closing = opening.next_node(descend=False, siblings=True)
                closing.parent.remove(closing)
                target = nodes.target("", "", ids=[anchor[1]], names=[anchor[1]])
                opening.replace_self(target)
                self.document.note_explicit_target(target)


class NoPicturesFromElsewhere(SphinxTransform):
    """Puts its words in place of a picture that a page would have to fetch, such as Colab's badge."""

    default_priority = 500

    def apply(self):
        for image in list(self.document.findall(nodes.image)):
            if image["uri"].startswith("http"):
                image.replace_self(nodes.Text(image["alt"]))


def setup(app):
    app.add_transform(KnownAnchors)
    app.add_transform(NoPicturesFromElsewhere)
