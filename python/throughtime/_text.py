"""Pieces of text: numbers of things, and text that others chose, made safe for a terminal."""

from __future__ import annotations

import unicodedata

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of controls, lone surrogates, separators of lines
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # they reorder the text around them


def counted(number: int, what: str) -> str:
    """The number and the noun, in the plural unless the number is 1."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def visible(text: str, keep: str = "") -> str:
    """`text` with Python's escapes for characters that control a terminal, except those in `keep`."""
    return "".join(
        repr(character)[1:-1] if character not in keep and _acts(character) else character for character in text
    )


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or unicodedata.bidirectional(character) in _DIRECTIONS
