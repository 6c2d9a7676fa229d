"""jax.lax.scan under jit. Imported on request only."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from .problems import Array, Recurrence, host_data


def set_threads(threads: int) -> None:
    """Bound XLA's thread pool, which has no other switch. XLA reads it once, when jax first computes."""
    os.environ["NPROC"] = str(threads)


class Jax:
    """The cell's equations in a scan, after one product for the inputs of all timesteps."""

    def __init__(self, problem: Recurrence) -> None:
        self._jax = jax = importlib.import_module("jax")
        cell, units = _CELLS[problem.cell], problem.H

        def layer(x: Any, p: dict[str, Any]) -> Any:
            def advance(state: Any, projected: Any) -> Any:
                state = cell(jax, projected, state[0] @ p["weight_hh_l0"].T + p["bias_hh_l0"], state)
                return state, state[0]

            zeros = (jax.numpy.zeros((x.shape[1], units), x.dtype),) * (2 if problem.cell == "LSTM" else 1)
            return jax.lax.scan(advance, zeros, x @ p["weight_ih_l0"].T + p["bias_ih_l0"])[1]

        def step(x: Any, p: dict[str, Any], d_output: Any) -> Any:
            output, pull = jax.vjp(layer, x, p)
            return output, pull(d_output)

        self._compiled_step = jax.jit(step)
        self._compiled_forward = jax.jit(lambda x, p: jax.vjp(layer, x, p))
        self._compiled_backward = jax.jit(lambda pull, d_output: pull(d_output))
        data = host_data(problem)
        self._x, self._parameters, self._d_output = jax.device_put((data.x, data.parameters, data.d_output))
        self._output = self._pull = self._gradients = None

    def step(self) -> None:
        self._output = self._pull = self._gradients = None
        found = self._compiled_step(self._x, self._parameters, self._d_output)
        self._output, self._gradients = self._jax.block_until_ready(found)

    def forward(self) -> None:
        self._output = self._pull = self._gradients = None
        found = self._compiled_forward(self._x, self._parameters)
        self._output, self._pull = self._jax.block_until_ready(found)

    def backward(self) -> None:
        self._gradients = None
        self._gradients = self._jax.block_until_ready(self._compiled_backward(self._pull, self._d_output))

    def answers(self, compared: int) -> dict[str, Array]:
        assert compared == len(self._x)
        self.step()
        assert self._gradients is not None
        d_x, d_parameters = self._gradients
        found = {"output": self._output, "input": d_x, **d_parameters}
        return {name: np.asarray(value) for name, value in found.items()}


def _lstm(jax: Any, x: Any, r: Any, state: Any) -> Any:
    i, f, g, o = jax.numpy.split(x + r, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    return jax.nn.sigmoid(o) * jax.numpy.tanh(c), c


def _gru(jax: Any, x: Any, r: Any, state: Any) -> Any:
    (x_r, x_z, x_n), (r_r, r_z, r_n) = (jax.numpy.split(part, 3, axis=-1) for part in (x, r))
    z = jax.nn.sigmoid(x_z + r_z)
    n = jax.numpy.tanh(x_n + jax.nn.sigmoid(x_r + r_r) * r_n)
    return ((1 - z) * n + z * state[0],)


def _rnn(jax: Any, x: Any, r: Any, state: Any) -> Any:
    return (jax.numpy.tanh(x + r),)


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
