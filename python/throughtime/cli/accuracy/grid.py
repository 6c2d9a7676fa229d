"""A table of text, for the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich import box
from rich.table import Table


class Grid(NamedTuple):
    """Rows under headings; the first `words` columns are aligned to the left, the others to the right."""

    title: str
    headings: list[str]
    words: int
    rows: list[list[str]]

    def table(self) -> Table:
        """For a terminal."""
        made = Table(title=self.title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column, heading in enumerate(self.headings):
            made.add_column(heading.replace(" ", "\n", 1), justify="left" if column < self.words else "right")
        for row in self.rows:
            made.add_row(*row)
        return made

    def markdown(self) -> list[str]:
        """The lines of a Markdown table, under its title."""
        rules = ["---" if column < self.words else "---:" for column in range(len(self.headings))]
        return [f"### {self.title}", "", *map(_line, (self.headings, rules, *self.rows))]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
