# SPDX-License-Identifier: LGPL-2.1-or-later

"""Configuration of the documentation site, for Sphinx."""

from pathlib import Path
import sys

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from drgn_hvo import __version__  # noqa: E402
from tools.site_pages import write_site_pages  # noqa: E402

project = "drgn-hvo"
copyright = "the authors of drgn-hvo, LGPL-2.1-or-later"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.extlinks",
    "sphinx.ext.intersphinx",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"drgn-hvo {__version__}"

# Anchors for links to headings, as forges make them.
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
# drgn's default argument is added by a decorator; its docstrings say so themselves.
autodoc_preserve_defaults = True

extlinks = {"linux": ("https://elixir.bootlin.com/linux/latest/source/%s", "%s")}
intersphinx_mapping = {
    "drgn": ("https://drgn.readthedocs.io/en/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3/", None),
}
# ``-t offline`` builds without a network.
if tags.has("offline"):  # type: ignore[name-defined]  # noqa: F821 (of Sphinx)
    intersphinx_mapping = {}

# What is made from the code is made anew with each build.
write_site_pages(DOCS / "generated")
