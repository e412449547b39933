"""Sphinx: `make docs`. The pages need no network: formulas are MathML, and nothing is loaded from elsewhere."""

import re

from docutils import nodes
from latex2mathml.converter import convert

import hemstitch

project = "Hemstitch"
author = "The Hemstitch authors"
project_copyright = "The Hemstitch authors, Apache-2.0"
release = version = hemstitch.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Hemstitch"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["hemstitch.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # the same attribute name in several classes


def setup(app):
    """Formulas as MathML, and docstrings read as they are written."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("autodoc-process-docstring", _tidy, priority=900)  # after napoleon


def _formula(writer, node):
    shown = "inline" if isinstance(node, nodes.math) else "block"
    upright = node.astext().replace(r"\mathrm", r"\text")  # browsers slant letters that stand alone
    writer.body.append(convert(upright, display=shown))
    raise nodes.SkipNode


def _tidy(app, what, name, obj, options, lines):
    """An indented paragraph (a formula, an example) is literal; elsewhere |g| is no substitution."""
    tidy, before, literal = [], "", None  # literal: the indentation of the line that opened the block
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and literal is not None and indent <= literal:
            literal = None
        if literal is None and indent == 4 and tidy and not tidy[-1] and re.match(r"[^\s:.*-]", before):
            tidy += ["::", ""]
            literal = 0
        plain = literal is not None or line.lstrip().startswith((">>>", "..."))
        tidy.append(line if plain else line.replace("|", r"\|"))
        if literal is None and re.match(r"\s*[^\s.].*::$", line):
            literal = indent
        before = line or before
    lines[:] = tidy
