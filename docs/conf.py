"""Sphinx configuration: pages in Markdown (MyST), the API from docstrings."""

import gn_det

project = "gn_det"
author = "The gn_det maintainers"
version = release = gn_det.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 2
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True

html_theme = "alabaster"
html_theme_options = {"description": "Group Normalization for detectron2", "page_width": "1100px"}
