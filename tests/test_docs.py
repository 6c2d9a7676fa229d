"""The docs: examples in docstrings and pages run, and files named on pages exist."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt

PACKAGE = Path(tt.__path__[0])
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "examples" / "README.md"]
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


def test_the_example_of_the_blocks_runs(capsys):
    """It prints the size of the loss's gradient before every layer, and whether a step reduced the loss."""
    page = (Path(__file__).parent.parent / "docs" / "blocks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "blocks.md", "exec"), {})
    *sizes, smaller = capsys.readouterr().out.splitlines()
    assert len(sizes) == 5
    assert all(float(line.split()[-1]) > 0 for line in sizes)
    assert smaller == "True"


def test_the_example_of_gradient_flow_runs(capsys, tmp_path, monkeypatch):
    """It prints the row of the page, which falls below the range of floats, and draws it."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "gradient_flow.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "gradient_flow.md", "exec"), {})
    title, _, row, _ = capsys.readouterr().out.splitlines()
    shown = page[page.index(f"    {title}") :].splitlines()[2]
    for ours, theirs in zip(row.split()[2:], shown.split()[2:], strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=0.011)  # the last digit: kernels round differently
    assert float(row.split()[4]) < -308
    assert (tmp_path / "flow.png").exists()


def test_the_examples_of_the_monitor_run(capsys, tmp_path, monkeypatch):
    """The first prints two lines that agree with the page's but for the last digit, where kernels round differently."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(code, "monitor.md", "exec"), {})
    shown = re.findall(r"^    (step \d+  LSTM, .*)$", page, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(shown) == 2
    for ours, theirs in zip(printed, shown, strict=True):
        numbers = [[float(number) for number in re.findall(r"-?\d+\.\d+", line)] for line in (ours, theirs)]
        assert len(numbers[0]) == 3
        assert numbers[0] == pytest.approx(numbers[1], abs=0.02, rel=1e-3)
    assert (tmp_path / "monitor.png").exists()


def test_the_example_of_the_exponents_prints_what_stands_below_it(capsys):
    page = (Path(__file__).parent.parent / "docs" / "lyapunov.md").read_text()
    ((code, printed),) = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]+\n)+)", page, re.DOTALL)
    exec(compile(code, "lyapunov.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [line.strip() for line in printed.splitlines()]


def test_the_examples_of_the_torch_page_run(capsys):
    """They print two norms, which fall towards the beginning, and a timestep."""
    pytest.importorskip("torch")
    page = (Path(__file__).parent.parent / "docs" / "torch.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "torch.md", "exec"), {})
    last, before, step = capsys.readouterr().out.splitlines()
    assert 0 < float(before.split()[-1]) < float(last.split()[-1])
    assert 0 <= int(step.split()[-1]) < 200


def test_the_examples_of_jax_run(capsys):
    """They print three steps of a falling loss, and norms that fall towards the beginning."""
    import_jax()
    page = (Path(__file__).parent.parent / "docs" / "jax.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(code, "jax.md", "exec"), {})
    steps = [
        [float(number) for number in re.findall(r"\d\.\d+e[+-]\d+", line)]
        for line in capsys.readouterr().out.splitlines()
    ]
    losses = [loss for loss, *_ in steps]
    assert losses == sorted(losses, reverse=True)
    assert all(last > before > long_before > 0 for _, last, before, long_before in steps)


def test_the_lines_of_the_readme_print_what_stands_below_them(capsys):
    """Up to the last digit, because kernels round differently."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]+\n)+)", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 10
    with np.printoptions():  # the lines set their own
        exec(compile(code, "README.md", "exec"), {})
    for ours, theirs in zip(capsys.readouterr().out.splitlines(), shown.splitlines(), strict=True):
        numbers = [[float(number) for number in line.strip(" []").split()] for line in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02)


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
