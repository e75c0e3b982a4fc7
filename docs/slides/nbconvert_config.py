"""nbconvert's settings for the lessons as slides. What a slide shows and where it begins stands in the notebooks' cells.

    jupyter nbconvert --to slides --config docs/slides/nbconvert_config.py --output-dir build/slides notebooks/03_simclr.ipynb

Slides load reveal.js from the network when they are shown. For a room without one, put a copy beside them
(npm pack reveal.js@5, tar xzf reveal.js-5*.tgz, mv package build/slides/reveal.js) and add --reveal-prefix reveal.js.
"""

import importlib.util
from pathlib import Path

c = get_config()  # noqa: F821
here = Path(__file__).resolve().parent
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"

c.TemplateExporter.extra_template_basedirs = [str(here.parent)]
c.TemplateExporter.extra_template_paths = [str(mathjax)]
c.TemplateExporter.exclude_input_prompt = c.TemplateExporter.exclude_output_prompt = True
c.HTMLExporter.exclude_anchor_links = c.HTMLExporter.embed_images = True
c.SlidesExporter.template_name = here.name
c.SlidesExporter.reveal_theme = "white"
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_input_tags = {"slides-hide-input"}
c.TagRemovePreprocessor.remove_all_outputs_tags = {"slides-hide-output"}
