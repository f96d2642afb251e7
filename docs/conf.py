"""How Sphinx builds these pages ('make docs'): Markdown by MyST, the theme furo. No page imports sharpscope."""

import re
from pathlib import Path

project = "sharpscope"
release = re.search(  # read, not imported: the build needs neither torch nor the package
    r'^__version__: Final = "(.+)"', (Path(__file__).parents[1] / "sharpscope/vocabulary.py").read_text(), re.MULTILINE
)[1]
copyright = "the sharpscope developers, Apache-2.0"
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3  # so that a link to a heading that does not exist is a warning, and a warning fails the build
highlight_language = "none"  # of blocks that do not name one
html_theme = "furo"
html_title = f"sharpscope {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
html_use_index = False
