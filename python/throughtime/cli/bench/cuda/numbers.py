"""The types of tensors that are measured, and how float32 is multiplied."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import throughtime as tt

from ..accuracy import PRODUCT

torch: Any = importlib.import_module("torch")  # by name: mypy need not have it
TF32 = 2.0**-11  # relative error of a product of numbers with ten bits after the point, rounded to nearest


class Numbers(NamedTuple):
    """A type, and of float32 a precision of products in throughtime's words."""

    type: str
    precision: str = "highest"

    def __str__(self) -> str:
        return self.type if self.precision == "highest" else f"{self.type}, {self.precision}"

    @property
    def dtype(self) -> Any:
        """Torch's."""
        return getattr(torch, self.type)

    @property
    def bytes(self) -> int:
        """Of one number."""
        return int(self.dtype.itemsize)

    def product_error(self, ours: bool) -> float:
        """Relative error of one product, and of a number that was kept, beside that of a float32 sum."""
        if self.type != "float32":
            return float(torch.finfo(self.dtype).eps) / 2
        return PRODUCT[self.precision] if ours or self.precision == "highest" else TF32

    def apply(self) -> None:
        """To this process: our precision, and TF32 in torch's products where it is not `highest`."""
        tt.set_matmul_precision(self.precision)
        for of in (torch.backends.cudnn, torch.backends.cuda.matmul):
            of.allow_tf32 = self.precision != "highest"
