"""Builds the pages: `sphinx-build -W docs build/docs`."""

project = "tljax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["example-report/*.md"]
html_theme = "furo"
html_title = "tljax"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
# Links to files of the checkout beside docs/ are for readers of the repository.
suppress_warnings = ["myst.xref_missing"]
