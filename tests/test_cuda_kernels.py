"""The CUDA backend's recurrence step by step, through its bindings; where there is no GPU, the CPU plays one."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import (
    KINDS,
    STATES,
    Problem,
    assert_close,
    assert_norms_close,
    assert_same_bits,
    magnification,
    reference_forward,
    reference_results,
    rounding_bound,
)
from cuda_side import ROUNDING, Tape, rounded, run_cuda


def check(problem, options=None, asked=None, loss=None, **of_tape):
    """The backend and the reference agree in everything, in float32."""
    options = {"state": problem.state, **({"masks": problem.masks} if problem.masks else {}), **(options or {})}
    found = run_cuda(problem, options, asked, loss, **{"mode": "stepwise", **of_tape})
    record = reference_forward(problem, options)
    expected = reference_results(problem, record, asked, None if "x" in of_tape else loss)
    bound = rounding_bound("float32", problem.terms) * magnification(record)
    norms = expected.pop("parameter_norms")
    assert_norms_close(found.pop("parameter_norms"), norms, problem, expected, bound, record)
    expected = {name: value for name, value in expected.items() if name in found}
    assert_close(found, expected, bound, floor=np.max(np.abs(expected["hidden"]), initial=0))


def problem_of(kind, **sizes):
    return Problem(kind, **{"T": 6, "B": 3, "I": 5, "H": 7, "dtype": "float32", **sizes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [{"D": 2}, {"T": 1, "B": 1, "I": 1, "H": 3}, {"T": 3, "B": 2, "H": 33, "bias": False}]
)
def test_every_cell_agrees_with_the_reference(kind, sizes):
    check(problem_of(kind, **sizes))
