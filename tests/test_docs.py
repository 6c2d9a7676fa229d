"""The docs: examples in docstrings run, and files and headings that pages name exist."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt

PACKAGE = Path(tt.__path__[0])
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
PAGES += [page for page in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in page.parts]
FOLDERS = ("benchmarks", "cpp", "docs", "examples", "python", "tests", ".ci")


def modules():
    """All modules, with subpackages. None is imported here: after torch's, all tests would run on torch's threads.

    The examples of the callbacks run in their own tests, which need the frameworks.
    """
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = sorted(".".join(file.parts).removesuffix("__init__").rstrip(".") for file in files)
    return [name for name in names if name and name.partition(".")[0] not in ("cli", "callbacks")]


def prose(page):
    """A page without its fenced code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def import_jax():
    pytest.importorskip(
        "throughtime.jax", reason="jax is absent, or was when throughtime was built", exc_type=ImportError
    )


@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings_run(name):
    package = name.partition(".")[0]
    if package == "jax":
        import_jax()
    if package == "torch":
        pytest.importorskip("torch")
    module = importlib.import_module(f"throughtime.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "tt": tt}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_that_exist(page):
    """Names in backticks: a path from the repository's root, possibly a pattern, or the bare name of a source file."""
    names = set(re.findall(r"`([\w.*/-]+)`", prose(page)))
    paths = {name for name in names if "/" in name and (name.split("/")[0] in FOLDERS or Path(name).suffix)}
    sources = {name for name in names if "/" not in name and Path(name).suffix in (".cpp", ".cu", ".hpp", ".py", ".sh")}
    missing = {path for path in paths if not any(ROOT.glob(path.rstrip("/")))}
    missing |= {name for name in sources if not any(file for folder in FOLDERS for file in (ROOT / folder).rglob(name))}
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    """Each leads to a file and, if it names one, to a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_the_page_of_the_gpu_says_of_every_file_where_it_ran():
    """The table at the end of the page names each file, directly or by a pattern, and its rows are complete."""
    root = Path(__file__).parent.parent
    _, _, table = (root / "docs" / "cuda.md").read_text(encoding="utf-8").partition("## What has run where")
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {path for row in rows for pattern in re.findall(r"`([^`]+)`", row[1]) for path in root.glob(pattern)}
    files = {path for folder in ("cpp/cuda", "cpp/bindings/cuda") for path in (root / folder).rglob("*.[hc][pu]*")}
    assert {str(path.relative_to(root)) for path in files - named} == set()
    assert all(len(row) == 7 for row in rows)
