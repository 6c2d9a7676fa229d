"""Shared code of the tests of throughtime.jax: its functions by the names of cells, and jax's settings."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import jax.test_util

import throughtime as tt
import throughtime.jax
from problems import GATE_TIMESTEPS, GATES, OPTIONS, STATES


@pytest.fixture(autouse=True)
def settings():
    """Enables float64, and reduces the work of XLA's compiler, which takes most of these tests' time."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_disable_most_optimizations", False)


def function_of(kind):
    """The function of a cell; it reads from the parameters what it has no option for."""
    function = {"rnn": tt.jax.rnn, "gru": tt.jax.gru, "lstm": tt.jax.lstm}[kind.partition("_")[0]]
    known = inspect.signature(function).parameters
    options = {name: value for name, value in OPTIONS.get(kind, {}).items() if name in known}
    return lambda params, x, state=None, **more: function(params, x, state, **options, **more)


def zeros_of(problem):
    """Perturbations for everything that has a gradient per timestep."""
    per_step = (problem.L * problem.D, problem.T, problem.B)
    widths = dict.fromkeys(GATE_TIMESTEPS, GATES[problem.kind] * problem.H) | {"hidden": problem.width}
    if STATES[problem.kind] == 2:
        widths["cell"] = problem.H
    return {name: jnp.zeros((*per_step, width), problem.dtype) for name, width in widths.items()}
