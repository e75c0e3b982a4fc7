"""Sphinx's settings for the course's site: notebooks as stored, nothing fetched from elsewhere."""

project = "sslcourse"
html_title = "Self- and semi-supervised image learning"
language = "en"
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.mathjax"]

# Notebooks
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# Lessons may go from a heading to one two levels below; code blocks may be in no language that is known.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
smartquotes = False

# Pages
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_extra_path = ["extra"]
exclude_patterns = ["_static", "extra"]

# Formulas are drawn in the page, by one file that needs no others.
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}
