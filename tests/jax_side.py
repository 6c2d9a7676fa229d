"""Shared code of the tests of throughtime.jax: its functions by the names of cells, and jax's settings."""

from __future__ import annotations

import pytest

pytest.importorskip("jax")
pytest.importorskip(
    "throughtime.jax", reason="throughtime was built without jax: see docs/jax.md", exc_type=ImportError
)

import jax
import jax.numpy as jnp
import jax.test_util

import throughtime as tt
import throughtime.jax
from problems import GATES, STATES


@pytest.fixture(autouse=True)
def settings():
    """Enables float64, and reduces the work of XLA's compiler, which takes most of these tests' time."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_disable_most_optimizations", False)


def function_of(kind):
    cell, *words = kind.split("_")
    function = {"rnn": tt.jax.rnn, "gru": tt.jax.gru, "lstm": tt.jax.lstm}[cell]
    options = {"nonlinearity": words[0]} if cell == "rnn" else {"reset_after": False} if words == ["original"] else {}
    return lambda params, x, state=None, **more: function(params, x, state, **options, **more)


def zeros_of(problem):
    """Perturbations for everything that has a gradient per timestep."""
    per_step = (problem.L * problem.D, problem.T, problem.B)
    widths = {"hidden": problem.width, "cell": problem.H, "gates": GATES[problem.kind] * problem.H}
    names = [name for name in widths if name != "cell" or STATES[problem.kind] == 2]
    return {name: jnp.zeros((*per_step, widths[name]), problem.dtype) for name in names}
