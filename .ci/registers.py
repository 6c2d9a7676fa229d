"""Registers, stack frames and spills of the CUDA kernels, from the output of ``ptxas -v`` in a build's log.

    python3 .ci/registers.py LOG

Prints one line per kernel template and architecture. Fails if a kernel spills or if the log has no kernel.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """One instance of a template for one architecture. Sizes in bytes."""

    name: str
    architecture: str
    registers: int
    stack: int
    spilled: int


def kernels(log: str) -> list[Kernel]:
    """All compiled kernels."""
    found = [match.groupdict() for match in _ENTRY.finditer(log)]
    names = demangled([each["name"] for each in found])
    return [
        Kernel(
            name,
            each["architecture"],
            int(each["registers"]),
            int(each["stack"]),
            int(each["stores"]) + int(each["loads"]),
        )
        for name, each in zip(names, found, strict=True)
    ]


def demangled(names: list[str]) -> list[str]:
    """The names in C++."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def family(name: str) -> str:
    """The template's name: ``b`` in ``void a::b<c>(d)``."""
    plain = name.replace("(anonymous namespace)::", "").partition("(")[0].partition("<")[0]
    return plain.split("::")[-1].split()[-1]


def table(found: list[Kernel]) -> list[str]:
    """One line per family and architecture."""
    groups: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in found:
        groups[family(kernel.name), kernel.architecture].append(kernel)
    width = max(len(name) for name, _ in groups)
    lines = [f"{'kernel':{width}}  for      instances  registers  stack  spilled"]
    for (name, architecture), group in sorted(groups.items()):
        registers = [kernel.registers for kernel in group]
        lines.append(
            f"{name:{width}}  {architecture:7}  {len(group):9}  {min(registers):4}-{max(registers):<4}  "
            f"{max(kernel.stack for kernel in group):5}  {max(kernel.spilled for kernel in group):7}"
        )
    return lines


def main(path: str) -> int:
    found = kernels(Path(path).read_text(encoding="utf-8", errors="replace"))
    if not found:
        print(f"{path}: no kernel in it")
        return 1
    print(*table(found), sep="\n")
    spilling = [kernel for kernel in found if kernel.spilled]
    for kernel in spilling:
        print(f"spills {kernel.spilled} bytes for {kernel.architecture}: {kernel.name}")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
