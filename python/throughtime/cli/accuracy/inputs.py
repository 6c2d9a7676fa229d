"""Random inputs: one bounded distribution, one of many magnitudes, one with infinite variance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Distribution = Callable[[np.random.Generator, tuple[int, ...]], Array]


def _uniform(most: float) -> Distribution:
    return lambda rng, shape: rng.uniform(-most, most, shape)


def _lognormal(sigma: float) -> Distribution:
    return lambda rng, shape: rng.lognormal(0.0, sigma, shape) * rng.choice([-1.0, 1.0], shape)


def _cauchy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_cauchy(shape)


INPUTS = ("uniform", "lognormal", "Cauchy")

# Arguments of functions reach from where a function is linear to where it is constant; inputs of kernels are of the
# usual size of features.
ARGUMENTS: dict[str, Distribution] = {"uniform": _uniform(20.0), "lognormal": _lognormal(3.0), "Cauchy": _cauchy}
FEATURES: dict[str, Distribution] = {"uniform": _uniform(1.0), "lognormal": _lognormal(1.0), "Cauchy": _cauchy}
DESCRIPTION = (
    "Inputs: uniform (functions: between -20 and 20; kernels: between -1 and 1), lognormal with random signs (standard "
    "deviation of the logarithm: functions 3, kernels 1), standard Cauchy."
)


def arguments(inputs: str, dtype: str, count: int, seed: int) -> Array:
    """`count` arguments of a function, in ascending order."""
    drawn = ARGUMENTS[inputs](np.random.default_rng([seed, INPUTS.index(inputs)]), (count,))
    return np.sort(drawn).astype(dtype)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a kernel's problem: timesteps, sequences, inputs, units (or features)."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int


FULL, QUICK = Sizes(50, 8, 32, 64), Sizes(8, 3, 9, 18)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one kernel: the same for every level.

    They are rounded to `rounded`, then converted to `dtype`. So a float32 kernel and its truth in float64 get the same
    numbers.
    """

    inputs: str
    seed: int
    sizes: Sizes
    rounded: str
    dtype: str

    @cached_property
    def rng(self) -> np.random.Generator:
        """The source of all numbers of this draw."""
        return np.random.default_rng([self.seed, INPUTS.index(self.inputs)])

    def widened(self) -> Draw:
        """The same numbers in float64."""
        return replace(self, dtype="float64")

    def numbers(self, *shape: int) -> Array:
        """Inputs or incoming gradients."""
        return FEATURES[self.inputs](self.rng, shape).astype(self.rounded).astype(self.dtype)

    def layer(self, kind: Callable[..., Any], *sizes: int, **options: Any) -> Any:
        """A layer with its default weights, drawn from the seed."""
        return kind(*sizes, dtype=self.rounded, seed=self.seed, **options).astype(self.dtype)
