"""The structure of the files: no import cycles, and no file too long to read at a sitting."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "throughtime"
LONGEST = 450  # lines


# The rooms that a room of cpp/ may include, apart from itself and the headers at the top of cpp/.
MAY_INCLUDE = {
    "cells": set(),
    "step": {"cells"},
    "cpu/system": set(),
    "cpu/engine": {"cpu/system"},
    "cpu/rowwise": {"cpu/engine", "cpu/system"},
    "cpu": {"cpu/engine", "cpu/system"},
    "cpu/recurrent": {"cells", "step", "cpu/engine", "cpu/system"},
    "cuda/system": set(),
    "cuda/arrays": {"cuda/system"},
    "cuda/rowwise": {"cuda/system"},
    "cuda/step": {"cells", "step", "cuda/system"},
    "cuda/stepwise": {"cells", "step", "cuda/system", "cuda/step"},
    "cuda/persistent": {"cells", "step", "cuda/system", "cuda/step"},
    "cuda/recurrent": {"cells", "step", "cuda/system", "cuda/step", "cuda/stepwise", "cuda/persistent"},
    "bindings": {"cpu/system"},
    "bindings/cuda": {"bindings", "cuda/system", "cuda/arrays", "cuda/rowwise", "cuda/recurrent"},
    ".": set(),
}


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(name, path):
    """The files of the package that one file imports, anywhere in it; extension modules do not count."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:  # `from . import x` imports the file x, not a name of the package's own file
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in FILES or alias.name in ("_core", "_cuda") else module)
    return {module for module in found if module in FILES} - {name}


def circle(graph):
    """Names of which each imports the next, and the last the first; empty if there is no cycle."""
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
    """Not even inside a function, or only for types."""
    graph = {name: imports(name, path) for name, path in FILES.items()}
    assert {"throughtime.recurrent.record", "throughtime.layers.layer"} <= graph["throughtime.recurrent.layers"]
    assert circle(graph) == []


def test_files_are_short():
    files = [path for pattern in ("cpp/**/*.[hc]*", "python/**/*.py*") for path in ROOT.glob(pattern)]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in (".hpp", ".cpp", ".cu", ".py", ".pyi")
    }
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_rooms_include_what_they_may_know():
    """And each has a README with its rules, of 8 to 25 lines."""
    cpp = ROOT / "cpp"
    known = {room: set() for room in MAY_INCLUDE}
    for path in cpp.rglob("*.[hc][pu]*"):
        here = path.parent.relative_to(cpp).as_posix()
        for name in re.findall(r'^#include "(.*)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            if (path.parent / name).exists():
                known[here].add((path.parent / name).resolve().parent.relative_to(cpp).as_posix())
    strays = {room: rooms - MAY_INCLUDE[room] - {room, "."} for room, rooms in known.items()}
    assert {room: rooms for room, rooms in strays.items() if rooms} == {}
    assert circle({room: rooms - {room, "."} for room, rooms in known.items()}) == []
    for room in MAY_INCLUDE.keys() - {".", "cpu", "bindings/cuda"}:
        assert 8 <= len((cpp / room / "README.md").read_text(encoding="utf-8").splitlines()) <= 25, room
