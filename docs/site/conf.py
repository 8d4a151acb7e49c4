"""Configuration of the documentation site, which `make site` builds into build/site.

The source folder is the repository, so that the pages link as they do where a repository is read: README.md,
CHANGELOG.md and CONTRIBUTING.md are pages of the site, and what links to a source file leads to a page with its text.
Nothing is fetched while it is built or read.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for folder in (ROOT, ROOT / "passes", ROOT / "kernels", HERE.parent, HERE):
    sys.path.insert(0, str(folder))

project = "attnres_compile"
author = "attnres_compile contributors"
html_title = "attnres_compile"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "repository_files",
    "overhead_data",
]

root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = [
    "docs/*.md",
    "docs/tutorials/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "kernels/attnres_kernels/definition/README.md",
]
# Folders that hold no page are not walked through.
exclude_patterns = [".*", "build", "dist", "venv", "tests", "examples", "findings", "passes", "attnres_compile"]

myst_heading_anchors = 4  # the anchors that repositories give to headings, which the pages link to

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "to_docs.html"}
templates_path = ["templates"]
copybutton_prompt_text = "$ "
pygments_style = "friendly"
pygments_dark_style = "monokai"
