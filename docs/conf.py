"""Builds the pages: `sphinx-build -W docs build/docs`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "tljax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["example-report/*.md"]
html_theme = "furo"
html_title = "tljax"
html_static_path = ["page.css"]
html_css_files = ["page.css"]
html_show_copyright = False
html_show_sphinx = False
maximum_signature_line_length = 88
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/docs/test_notebooks.py runs them
default_role = "code"
napoleon_use_ivar = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
