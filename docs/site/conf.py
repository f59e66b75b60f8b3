"""How Sphinx makes the site: `make docs`.

The pages are plain Markdown that reads as well on a code host. A list of links on an index page is
its table of contents, and a block `{api} MODULE` with names is their reference; both are put in
while a page is read (`pages.py`). Nothing is fetched and nothing is run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genprior import __version__

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
sys.path.insert(0, str(Path(__file__).parent))

project = "genprior"
release = version = __version__
project_copyright = "the genprior contributors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "pages",
    "docstrings",
]
exclude_patterns = ["site", "**/README.md", "**/sg_execution_times.rst", "sg_execution_times.rst"]
root_doc = "index"

myst_heading_anchors = 4
suppress_warnings = ["config.cache"]

# Google's sections; the text around them is Markdown, see docstrings.py.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Yields", "returns_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# What other libraries define has no page here, nor have type variables and private parts.
nitpick_ignore_regex = [("py:.*", r"(?!genprior\.).*|.*\.(_\w+|[A-Z])")]
nitpick_ignore = [
    ("py:class", f"genprior.{name}")
    for name in (
        "data.readers.File",
        "priors.gan.style.StyleGenerator",
        "priors.gaussian.low_rank.LowRankNormal",
        "priors.diffusion.foreign.DeepinvPrior",
        "priors.gaussian.empirical.EmpiricalPosterior",
        "priors.gaussian.mixture.MixturePosterior",
        "priors.gaussian.mixture.WeightedPosterior",
        "priors.gaussian.texture.torus.TorusNormal",
        "solvers.walk.krylov.Known",
    )
]

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples")],
    "gallery_dirs": ["examples"],
    "plot_gallery": False,
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": "nothing is run",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "genprior"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "logo": {"text": "genprior"},
}
html_sidebars = {"index": [], "gallery": [], "glossary": []}
copybutton_exclude = ".linenos, .gp"
