"""Sphinx: `make docs`."""

import hemstitch

project = "Hemstitch"
author = "The Hemstitch authors"
project_copyright = "The Hemstitch authors, Apache-2.0"
release = version = hemstitch.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Hemstitch"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # the same attribute name in several classes


def setup(app):
    """Absolute values in docstrings, such as |g|, are no substitutions."""
    app.connect("autodoc-process-docstring", _escape_bars)


def _escape_bars(app, what, name, obj, options, lines):
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else line.replace("|", r"\|") for line in lines]
