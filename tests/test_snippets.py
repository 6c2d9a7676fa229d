"""The Python code of the pages runs as pasted, and prints what the pages show below it."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest

from snippets import differences, indented_code, is_python, snippets

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
ELSEWHERE = {"index.md": "the README's code", "monitor-sinks.md": "test_monitor_page.py"}
FRAMEWORKS = {"jax", "keras", "onnx", "torch"}


def name(page):
    return str(page.relative_to(ROOT))


def text(page):
    return page.read_text(encoding="utf-8")


def missing(packages):
    """What this machine lacks to run code that imports these."""
    for package in sorted(packages & FRAMEWORKS):
        module = "throughtime.jax" if package == "jax" else package  # which explains what is missing
        try:
            __import__(module)
        except ImportError as error:
            return str(error)
    return None


def has_gpu():
    """Not by throughtime's word: tests of CUDA load a stand-in, which calls itself one."""
    torch = pytest.importorskip("torch")
    return torch.cuda.is_available()


def run(code, names):
    """Execute code as if it were pasted; returns what it prints. Warnings of other packages are theirs."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        if FRAMEWORKS & {package.partition(".")[0] for package in names}:
            warnings.simplefilter("ignore")
        exec(code, names)
    return printed.getvalue()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(text(page)) and page.name not in ELSEWHERE], ids=name
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """The blocks run in order, with the names of those before; the first one whose packages are missing ends it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    names = {"__name__": "example"}
    with np.printoptions():  # pages set their own
        for snippet in snippets(text(page)):
            if lacking := missing(snippet.packages):
                pytest.skip(lacking)
            if snippet.needs_gpu and not has_gpu():
                continue
            place = f"{name(page)}:{snippet.line}"
            printed = run(compile("\n" * (snippet.line - 1) + snippet.code, str(page), "exec"), names)
            if snippet.shown is not None:
                assert differences(printed, snippet.shown) == [], f"{place} prints\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_of_a_page_is_fenced(page):
    """Code in indented blocks would not run above."""
    assert [block for block in indented_code(text(page)) if is_python(block)] == []


def test_the_readme_has_ten_lines():
    (snippet,) = snippets(text(ROOT / "README.md"))
    assert len([line for line in snippet.code.splitlines() if line]) == 10
    (copy,) = snippets(text(ROOT / "docs" / "index.md"))
    assert (copy.code, copy.shown) == (snippet.code, snippet.shown)


def test_snippets_are_found_with_their_output():
    page = "a\n\n```python\nprint(1)\n```\n\n    1\n    2\n\ntext\n\n```python\nx = 1\n```\n\n```text\n3\n```\n"
    page += "\n<!-- needs a GPU -->\n```python\nimport throughtime.torch\n```\n\n    tt.load(path)\n"
    first, second, third = snippets(page)
    assert (first.line, first.code, first.shown) == (4, "print(1)\n", "    1\n    2\n")
    assert second.shown == "3\n"
    assert third.needs_gpu
    assert third.packages == {"throughtime", "torch"}
    assert not first.needs_gpu


def test_indented_python_is_found():
    assert [is_python(block) for block in indented_code("a\n\n    x = tt.load(path)\n\nb\n\n    y = A x\n\nc\n")] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("gamma 0.62, of 500", True),
        ("gamma  0.60,\n of 500", True),
        ("gamma 0.63, of 500", True),
        ("gamma 0.64, of 500", False),
        ("gamma 0.61, of 501", False),
        ("gamma -0.61, of 500", False),
        ("alpha 0.61, of 500", False),
        ("gamma 0.61, of 500 1", False),
    ],
)
def test_outputs_are_compared_up_to_the_last_digit(printed, same):
    assert (differences(printed, "gamma 0.61, of 500\n") == []) == same
