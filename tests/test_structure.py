"""How the files hang together: no circles of imports, and no file that grows beyond what one reads at a sitting."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "throughtime"
LONGEST = 450  # lines

# Files that are longer still. The list may only shrink.
LONGER = {
    "python/throughtime/analysis/flow_figures.py",
    "python/throughtime/init.py",
}

# Imports that close a circle still. The list may only shrink.
CLOSING = {
    ("throughtime.cli.bench.result", "throughtime.cli.bench.case"),
    ("throughtime.cli.bench.options", "throughtime.cli.bench.layers.cpu"),
    ("throughtime.cli.bench.layers.cuda", "throughtime.cli.bench.options"),
    ("throughtime.cli.bench.suite", "throughtime.cli.bench.options"),
    ("throughtime.cli.bench.steps.torch_program", "throughtime.cli.bench.steps.contenders"),
}


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(name, path):
    """The files of the package that one imports, wherever the statement stands; the extensions are none."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:  # `from . import x` imports the file x, not what the package's own file has
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in FILES or alias.name in ("_core", "_cuda") else module)
    return {module for module in found if module in FILES} - {name}


def circle(graph):
    """Names of which each imports the next, and the last the first; none where there is no circle."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        found = next(filter(None, map(visit, sorted(graph.get(name, ())))), [])
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_each_other():
    """Not even inside a function, or for types alone."""
    graph = {name: imports(name, path) for name, path in FILES.items()}
    for name, imported in CLOSING:
        graph[name].remove(imported)
    assert {"throughtime.recurrent.record", "throughtime.layers.layer"} <= graph["throughtime.recurrent.layers"]
    assert circle(graph) == []
    for name, imported in CLOSING:
        assert circle({**graph, name: {*graph[name], imported}}), f"{name} may leave the list"


def test_files_are_short():
    files = [path for pattern in ("cpp/**/*.[hc]*", "python/**/*.py*") for path in ROOT.glob(pattern)]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in (".hpp", ".cpp", ".cu", ".py", ".pyi")
    }
    assert len(lengths) > 100
    assert {name for name, length in lengths.items() if length > LONGEST} == LONGER
