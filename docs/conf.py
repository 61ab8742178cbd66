"""Sphinx configuration: ``tox -e docs``."""

from docutils import nodes
from docutils.parsers.rst import Directive

from packhorse import _config
from packhorse._version import __version__

project = "packhorse"
author = "the packhorse developers"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]  # the support matrix, a page of its own
html_title = "packhorse"
# Parts of the README are included: their links and heading levels are right there, not here.
suppress_warnings = ["myst.xref_missing", "myst.header"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Array": "numpy.ndarray", "DeviceLike": "str | Device | None"}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes that are properties too must not be described twice


class EnvironmentTable(Directive):
    """The table of environment variables, from ``packhorse._config.ENVIRONMENT``."""

    def run(self) -> list[nodes.Node]:
        group = nodes.tgroup("", cols=2)
        group += [nodes.colspec(colwidth=30), nodes.colspec(colwidth=70)]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(nodes.Text("variable"), nodes.Text("meaning"))
        for name, meaning in _config.ENVIRONMENT.items():
            body += _row(nodes.literal(text=name), nodes.Text(meaning))
        group += [head, body]
        table = nodes.table()
        table += group
        return [table]


def _row(*cells: nodes.Node) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        paragraph = nodes.paragraph()
        paragraph += cell
        entry = nodes.entry()
        entry += paragraph
        row += entry
    return row


def setup(app):
    app.add_directive("packhorse-environment", EnvironmentTable)
