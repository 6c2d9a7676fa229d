"""Number types, and precisions of float32 products."""

from __future__ import annotations

from typing import NamedTuple

TYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("highest", "high", "medium")

_PRODUCT = {"highest": 0.0, "high": 2.0**-16, "medium": 2.0**-8}  # relative error of a product, without the sum's
_TF32 = 2.0**-11  # the same, for numbers with ten bits after the point, rounded to nearest
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of a number that is stored


class Numbers(NamedTuple):
    """A type and, for float32, throughtime's name for the precision of its products."""

    type: str = "float32"
    precision: str = "highest"

    def __str__(self) -> str:
        return self.type if self.precision == "highest" else f"{self.type}, {self.precision}"

    @property
    def bytes(self) -> int:
        """The size of one number."""
        return 4 if self.type == "float32" else 2

    def product_error(self, ours: bool) -> float:
        """The relative error of one product and of a stored number, without that of a float32 sum."""
        if self.type != "float32":
            return _ROUNDING[self.type]
        return _PRODUCT[self.precision] if ours or self.precision == "highest" else _TF32


def all_numbers(types: list[str], precisions: list[str]) -> list[Numbers]:
    """Every type; float32 in every precision."""
    return [Numbers(type, each) for type in types for each in (precisions if type == "float32" else ["highest"])]
