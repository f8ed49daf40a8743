"""Configuration of Sphinx; see https://www.sphinx-doc.org."""

# SPDX-License-Identifier: BSD-3-Clause

import os
import subprocess
import sys
from datetime import date
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import sklearn_pk

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # gallery_order
# Examples and autodoc need no model hub and no window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

project = "sklearn_pk"
author = "The sklearn_pk developers"
copyright = f"2026-{date.today().year}, {author}" if date.today().year > 2026 else f"2026, {author}"
version = release = sklearn_pk.__version__

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "_templates",
    "examples",
    "whats_new/upcoming_changes",
    "whats_new/_upcoming.rst",
]
default_role = "py:obj"

templates_path = ["_templates"]
autosummary_generate = True
autodoc_default_options = {
    "members": True,
    # Made by scikit-learn, and documented there.
    "exclude-members": "set_fit_request, set_predict_request, set_score_request, set_split_request",
}
numpydoc_show_class_members = False
numpydoc_use_plots = False

# Links into other projects' documentation ask their sites, so a plain build does without.
intersphinx_mapping = {}
if os.environ.get("INTERSPHINX"):
    intersphinx_mapping = {
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "doc_module": ("sklearn_pk",),
    "reference_url": {"sklearn_pk": None},
    "backreferences_dir": None,
    "abort_on_example_error": True,
    "within_subsection_order": "gallery_order.GalleryOrder",
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_pk"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"install": [], "whats_new/index": []}


def write_upcoming_changes():
    """Collect the changelog fragments of the next version into one file."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", release]
    done = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True)
    (HERE / "whats_new" / "_upcoming.rst").write_text(done.stdout, encoding="utf-8")


def write_math(self, node, as_block):
    """Write a formula as MathML, which browsers draw without a network."""
    self.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise SkipNode


def setup(app):
    """Add what this project needs to Sphinx."""
    app.connect("builder-inited", lambda app: write_upcoming_changes())
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: write_math(self, node, False), None),
        (lambda self, node: write_math(self, node, True), None),
    )
