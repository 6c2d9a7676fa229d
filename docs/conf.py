"""Sphinx's configuration of the documentation site.

python -m sphinx -W --keep-going -b html docs docs/_build/html
"""

import os
import sys
from pathlib import Path

import throughtime

os.environ.setdefault("KERAS_BACKEND", "torch")  # its default is tensorflow, which the extra `docs` does not install
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "throughtime"
author = copyright = "The throughtime authors"
version = release = throughtime.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "repository_pages",
    "command_line",
    "mathml",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "**/README.md"]
templates_path = ["_templates"]
nitpicky = True
smartquotes = False  # they would join the two dashes of a command's options
default_role = "literal"  # docstrings mark names with single backticks

# Pages: the same Markdown that a code host renders.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Tutorials: executed at each build; an exception in a cell fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds per cell, on a busy machine
nb_execution_in_temp = True
nb_merge_streams = True

# Reference: numpydoc's docstrings, a page for each name.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # docstrings have the types, with shapes
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module,RNNBase,RNN,LSTM,GRU,Callback,TrainerCallback,tuple",
    "exclude-members": ",".join(
        [
            "architecture,cells,take,wanted,without",  # read by other parts of the library
            "on_exception,on_log,on_step_end,on_train_begin,on_train_end,on_train_start",  # called by a trainer
            "on_train_batch_begin,on_train_batch_end,on_train_batch_start",
        ]
    ),
}
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_xref_param_type = False
viewcode_line_numbers = True

# Classes whose objects only the library creates: shown without the arguments of their constructors.
RESULTS = {"Tape", "Gradients", "Diagnosis", "Finding", "Remedy", "FixedPoints", "LyapunovSpread", "FlowRecord"}
RESULTS |= {"GradientFlow", "StackFlow", "Timesteps", "BackwardTimesteps", "DeviceArray"}

html_theme = "furo"
html_title = "throughtime"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    def without_arguments(app, what, name, obj, options, signature, returns):
        return ("", None) if what == "class" and name.rpartition(".")[2] in RESULTS else None

    app.connect("autodoc-process-signature", without_arguments)
