"""What the docs show runs: the examples of every docstring, and the README's ten lines."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt

MODULES = [module.name for module in pkgutil.iter_modules(tt.__path__) if module.name not in ("_core", "cli", "torch")]
TORCH = ["torch", *(f"torch.{path.stem}" for path in Path(tt.__path__[0], "torch").glob("[a-z]*.py"))]


def import_jax():
    pytest.importorskip(
        "throughtime.jax", reason="jax is absent, or was when throughtime was built", exc_type=ImportError
    )


@pytest.mark.parametrize("name", MODULES + TORCH)
def test_examples_of_docstrings_run(name):
    if name == "jax":
        import_jax()
    if name in TORCH:
        pytest.importorskip("torch")
    module = importlib.import_module(f"throughtime.{name}")
    found = doctest.testmod(module, extraglobs={"np": np, "tt": tt}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_the_example_of_the_blocks_runs(capsys):
    """It prints the size of the loss's gradient before every layer, and whether a step made the loss smaller."""
    page = (Path(__file__).parent.parent / "docs" / "blocks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "blocks.md", "exec"), {})
    *sizes, smaller = capsys.readouterr().out.splitlines()
    assert len(sizes) == 5
    assert all(float(line.split()[-1]) > 0 for line in sizes)
    assert smaller == "True"


def test_the_example_of_gradient_flow_runs(capsys, tmp_path, monkeypatch):
    """It prints a row that falls below the range of floats, the one that the page shows, and draws it."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "gradient_flow.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "gradient_flow.md", "exec"), {})
    title, _, row, _ = capsys.readouterr().out.splitlines()
    shown = page[page.index(f"    {title}") :].splitlines()[2]
    for ours, theirs in zip(row.split()[2:], shown.split()[2:], strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=0.011)  # the last digit, where kernels round differently
    assert float(row.split()[4]) < -308
    assert (tmp_path / "flow.png").exists()


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


def test_the_lines_of_the_readme_run(capsys):
    """They print three norms, which fall towards the beginning, and a timestep."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    norms, step = capsys.readouterr().out.splitlines()
    last, middle, first = map(float, norms.strip("[]").split())
    assert last > middle > first >= 0
    assert 0 <= int(step) < 1000


def test_the_page_of_the_gpu_says_of_every_file_where_it_ran():
    """Each is named, itself or by a pattern, in the table that ends the page, whose rows are whole."""
    root = Path(__file__).parent.parent
    _, _, table = (root / "docs" / "cuda.md").read_text(encoding="utf-8").partition("## What has run where")
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {path for row in rows for pattern in re.findall(r"`([^`]+)`", row[1]) for path in root.glob(pattern)}
    files = {path for folder in ("cpp/cuda", "cpp/bindings/cuda") for path in (root / folder).iterdir()}
    assert {str(path.relative_to(root)) for path in files - named} == set()
    assert all(len(row) == 7 for row in rows)
