"""Sphinx configuration: pages in Markdown (MyST), and the API from docstrings."""

import gn_det

project = "gn_det"
author = "The gn_det maintainers"
version = release = gn_det.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True

html_theme = "alabaster"
html_theme_options = {"description": "Group Normalization for detectron2", "page_width": "1100px"}
