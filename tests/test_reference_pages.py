"""The reference of the documentation site lists every public name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "throughtime"
PUBLIC = ["", "init", "optim", "convert", "sinks", "cuda", "torch", "jax"]
PUBLIC += ["callbacks.lightning", "callbacks.transformers", "callbacks.keras"]


def public_names(module):
    """`__all__` of a module, from its source: some need frameworks."""
    path = PACKAGE.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    (names,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    ]
    return {".".join(filter(None, ("throughtime", module, name))) for name in names}


def listed_names():
    """The names in the tables of the reference's pages."""
    found = []
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for table in re.findall(r"```\{eval-rst\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            (module,) = re.findall(r"currentmodule:: (\S+)", table)
            found += [f"{module}.{name}" for name in re.findall(r"^   ([\w.]+)$", table, re.MULTILINE)]
    return found


def test_every_public_name_is_listed_once():
    found = listed_names()
    modules = {f"throughtime.{module.partition('.')[0]}" for module in PUBLIC[1:]}
    public = set().union(*map(public_names, PUBLIC)) - modules
    assert public - set(found) == set()
    assert len(found) == len(set(found))


def test_every_listed_name_exists():
    """Those that are not public are results, which programs receive but do not import."""
    public = set().union(*map(public_names, PUBLIC))
    for name in set(listed_names()) - public:
        module, _, kind = name.rpartition(".")
        source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        assert re.search(rf"^class {kind}\b", source, re.MULTILINE), name
