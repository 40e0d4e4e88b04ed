"""Settings of the documentation's build: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "kernels")]

import masksam_deploy  # noqa: E402  found through the line above

project = "masksam-deploy"
author = "the masksam-deploy authors"
version = release = masksam_deploy.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "docs.extensions.manifest_schema",
    "docs.extensions.not_run",
    "docs.extensions.public_api",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"masksam-deploy {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings write code in single backquotes.
default_role = "literal"
# They would make a dash of the two hyphens of an option.
smartquotes = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
napoleon_use_ivar = True

nitpicky = True
# Types of other libraries have pages elsewhere, and a build must not need the network.
# Those of ours that signatures name but that callers need not make: the manifest has a page of its own.
_INTERNAL = "LabelVolume|Manifest|Network|NiftiForms"
nitpick_ignore_regex = [("py:.*", r"(?!masksam_deploy\b).*"), ("py:class", rf"masksam_deploy\..*\.({_INTERNAL})")]
