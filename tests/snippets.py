"""The Python code on a Markdown page, and the text that the page shows as its output."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_BLOCK = re.compile(
    r"(?P<gpu><!-- needs a GPU -->\n+)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n+(?P<indented>(?:^    [^\n]*\n|^\n(?=    ))+)|\n+```text\n(?P<fenced>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
_FENCED = re.compile(r"^(`{3,}).*?^\1\n", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python."""

    line: int  # of its first line on the page
    code: str
    shown: str | None  # the output that the page shows directly below it
    needs_gpu: bool

    @property
    def packages(self) -> set[str]:
        """Top-level packages that it imports; ``throughtime.torch`` and the like count as the framework."""
        names = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        ours = {name.split(".")[-1] for name in names if name.startswith("throughtime.")} & {"torch", "jax", "keras"}
        return {name.partition(".")[0] for name in names} | ours


def snippets(page: str) -> list[Snippet]:
    """The Python blocks of a page, in order."""
    return [
        Snippet(
            line=page.count("\n", 0, found.start("code")) + 1,
            code=found["code"],
            shown=found["indented"] or found["fenced"],
            needs_gpu=bool(found["gpu"]),
        )
        for found in _BLOCK.finditer(page)
    ]


def indented_code(page: str) -> list[str]:
    """The indented blocks of a page, which hold commands, output and formulas."""
    return _INDENTED.findall(_FENCED.sub("", page))


def is_python(block: str) -> bool:
    """Whether an indented block is Python that belongs into a fenced one, where it would run."""
    return bool(re.search(r"^ *(from|import) \w|\b(tt|np|torch|throughtime\.torch)\.\w+\(|\.backward\(", block, re.M))


def differences(printed: str, shown: str) -> list[tuple[str, str]]:
    """The parts in which two outputs differ.

    White space does not count. Integers must agree, and other numbers up to two units in the last digit that is shown,
    because kernels of different instruction sets round differently.
    """
    ours, theirs = (_NUMBER.split(" ".join(text.split())) for text in (printed, shown))
    if len(ours) != len(theirs):
        return [(printed, shown)]
    return [pair for pair in zip(ours, theirs, strict=True) if not _agree(*pair)]


def _agree(one: str, other: str) -> bool:
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return one.strip() == other.strip()
    if "." not in other:
        return one == other
    digits, _, power = other.partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(float(one) - float(other)) <= 2.0001 * unit
