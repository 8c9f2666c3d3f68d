"""Settings of the documentation site; `make docs` builds it."""

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs._generate.tutorials import environment  # noqa: E402

project = "Consilium"
author = "the authors of Consilium"
project_copyright = "the authors of Consilium; Apache-2.0"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "docs._generate.directive",
    "docs._generate.docstrings",
]
exclude_patterns = ["_build", "_generate", "jupyter_execute"]  # what MyST-NB writes when it runs tutorials
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries have no pages here

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # as on the repository's own pages: docs/hospital/site.md#when-something-fails

# Tutorials: run when they are built, once for each change of their text. A cell that fails is an error.
os.environ.update(environment())
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

# Python. Reading docstrings needs none of these, and they take half a minute to import.
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports = [
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "flwr",
    "sklearn",
    "skops",
    "peft",
    "transformers",
]

# The site
html_theme = "pydata_sphinx_theme"
html_title = f"Consilium {release}"
html_static_path = ["_static"]
html_css_files = ["consilium.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"index": [], "glossary": []}
html_theme_options = {
    "logo": {"text": "Consilium"},
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_center": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
