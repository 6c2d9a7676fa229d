"""throughtime.jax beside a loop of jax's own operations, beside the layers' tapes, and under jax's transformations."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import throughtime as tt
from conftest import GATES, STATES, Problem, assert_close, assert_same_bits
from throughtime import _core

jax = pytest.importorskip("jax")
if not hasattr(_core, "jax_handlers"):
    pytest.skip("throughtime was built without jax's headers: see docs/jax.md", allow_module_level=True)

import jax.numpy as jnp
from jax.test_util import check_grads

import throughtime.jax

FUNCTIONS = {
    "rnn_relu": (tt.jax.rnn, {"nonlinearity": "relu"}),
    "rnn_tanh": (tt.jax.rnn, {}),
    "gru": (tt.jax.gru, {}),
    "gru_original": (tt.jax.gru, {"reset_after": False}),
}


@pytest.fixture(autouse=True)
def x64():
    """float64 exists in jax only so."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def function_of(kind):
    function, options = FUNCTIONS.get(kind, (tt.jax.lstm, {}))
    return lambda params, x, state=None, **more: function(params, x, state, **options, **more)


def zeros_of(problem):
    """Perturbations for all that has a gradient per timestep."""
    per_step = (problem.L * problem.D, problem.T, problem.B)
    widths = {"hidden": problem.width, "cell": problem.H, "gates": GATES[problem.kind] * problem.H}
    names = [name for name in widths if name != "cell" or STATES[problem.kind] == 2]
    return {name: jnp.zeros((*per_step, widths[name]), problem.dtype) for name in names}


# The cells again, in jax's own operations: from the products a = W_ih x + b_ih and r = W_hh h + b_hh, `tap` added to a, h and c.


def lstm_gates(a):
    i, f, g, o = jnp.split(a, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def layer_norm(a, gain):
    return gain * (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 1e-5)


def advance(kind, p, x, state, tap):
    """The state after one step, h first."""
    h, bias, hidden_bias = state[0], p.get("bias_ih", 0), p.get("bias_hh", 0)
    if kind == "lstm_layer_norm":
        a = layer_norm(x @ p["weight_ih"].T, p["weight_ln_ih"]) + bias + tap["gates"]
        r = layer_norm(h @ p["weight_hh"].T, p["weight_ln_hh"]) + hidden_bias
    else:
        a, r = x @ p["weight_ih"].T + bias + tap["gates"], h @ p["weight_hh"].T + hidden_bias
    if kind.startswith("rnn"):
        return ((jnp.tanh if kind == "rnn_tanh" else jax.nn.relu)(a + r) + tap["hidden"],)
    if kind.startswith("gru"):
        (a_r, a_z, a_n), (r_r, r_z, r_n) = jnp.split(a, 3, axis=-1), jnp.split(r, 3, axis=-1)
        reset, z = jax.nn.sigmoid(a_r + r_r), jax.nn.sigmoid(a_z + r_z)
        if kind == "gru":
            n = jnp.tanh(a_n + reset * r_n)
        else:
            units = h.shape[-1]
            n = jnp.tanh(a_n + (reset * h) @ p["weight_hh"][-units:].T + p.get("bias_hh", jnp.zeros(units))[-units:])
        return ((1 - z) * n + z * h + tap["hidden"],)
    a, c = a + r, state[1]
    if kind == "lstm_peephole":
        a_i, a_f, a_g, a_o = jnp.split(a, 4, axis=-1)
        i, f = jax.nn.sigmoid(a_i + p["weight_ci"] * c), jax.nn.sigmoid(a_f + p["weight_cf"] * c)
        c = f * c + i * jnp.tanh(a_g) + tap["cell"]
        return jax.nn.sigmoid(a_o + p["weight_co"] * c) * jnp.tanh(c) + tap["hidden"], c
    i, f, g, o = lstm_gates(a)
    c = f * c + i * g + tap["cell"]
    inner = layer_norm(c, p["weight_ln_c"]) + p["bias_ln_c"] if kind == "lstm_layer_norm" else c
    h = o * jnp.tanh(inner)
    return (h @ p["weight_hr"].T if kind == "lstm_projected" else h) + tap["hidden"], c


def scan(problem, params, x, state, lengths, perturbations):
    """Layers and directions of `advance` under jax.lax.scan."""
    active = jnp.arange(problem.T)[:, None] < lengths if lengths is not None else jnp.ones((problem.T, problem.B), bool)
    state = state if isinstance(state, tuple) else (state,)
    outputs, final = [], []
    for index, suffix in enumerate(problem.suffixes):
        if outputs and index % problem.D == 0:
            x, outputs = jnp.concatenate(outputs, -1), []
        p = {name.removesuffix(suffix): value for name, value in params.items() if name.endswith(suffix)}

        def step(old, now, p=p):
            x, active, tap = now
            new = advance(problem.kind, p, x, old, tap)
            new = tuple(jnp.where(active[:, None], a, b) for a, b in zip(new, old, strict=True))
            return new, jnp.where(active[:, None], new[0], 0)

        taps = {name: one[index] for name, one in perturbations.items()}
        start = tuple(one[index] for one in state)
        last, output = jax.lax.scan(step, start, (x, active, taps), reverse=suffix.endswith("_reverse"))
        outputs.append(output)
        final.append(last)
    final = tuple(jnp.stack(one) for one in zip(*final, strict=True))
    return jnp.concatenate(outputs, -1), final if len(final) == 2 else final[0]


def pulled(function, problem):
    """Results, and the gradients of all that is differentiable."""
    operands = (problem.parameters, problem.x, problem.state, zeros_of(problem))
    results, pull = jax.vjp(function, *operands)
    return results, pull((jnp.asarray(problem.d_output), jax.tree.map(jnp.asarray, problem.d_final_state)))


@pytest.mark.parametrize("sizes", [{"L": 2, "D": 2}, {"L": 3, "bias": False}, {"T": 1, "B": 1, "I": 1, "D": 2}], ids=str)
def test_agrees_with_a_scan(kind, sizes):
    """Output, state and every gradient, those of timesteps among them. Each side is within `bound` of the truth."""
    if kind == "lstm_layer_norm" and not sizes.get("bias", True):
        sizes = {**sizes, "bias": True}
    problem = Problem(kind, **sizes)
    lengths = problem.lengths if "L" in sizes else None
    function = function_of(kind)
    ours = pulled(jax.jit(lambda *of: function(*of[:3], lengths=lengths, perturbations=of[3])), problem)
    theirs = pulled(jax.jit(lambda *of: scan(problem, *of[:3], lengths, of[3])), problem)
    names = ("output and state", "gradients")
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert_close(a, b, 2 * problem.bound, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("jitted", [False, True])
def test_gives_the_tape_s_bits(kind, dtype, jitted):
    """The same kernels on the same numbers; lengths too."""
    problem = Problem(kind, L=2, D=2, dtype=dtype)
    function = function_of(kind)

    def run(params, x, state, perturbations):
        return function(params, x, state, lengths=problem.lengths, perturbations=perturbations)

    (output, state), gradients = pulled(jax.jit(run) if jitted else run, problem)
    tape = problem.layer().forward(problem.x, problem.state, problem.lengths)
    grads = tape.backward(problem.d_output, problem.d_final_state, timesteps=("hidden", "cell", "gates"))
    timesteps = {name: getattr(grads, name) for name in zeros_of(problem)}
    ours = jax.tree.map(np.asarray, (output, state, *gradients))
    expected = (tape.output, tape.final_state, grads.parameters, grads.input, grads.initial_state, timesteps)
    assert_same_bits(ours, expected)
