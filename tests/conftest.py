"""Random problems, the library's answer beside the reference's, and the bound within which they agree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import reference
from throughtime import _core

if os.environ.get("THROUGHTIME_EMULATE_AMX"):
    from emulation import emulate_amx

    emulate_amx()

# The same examples on every run: a failure in CI is a failure here, and no run is longer than another.
settings.register_profile("stable", derandomize=True, deadline=None, database=None, max_examples=20)
settings.load_profile("stable")

KINDS = tuple(reference.CELLS)
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
ALL_TIMESTEPS = ("hidden", "cell", "gates", "parameter_norms")


@dataclass(frozen=True)
class Problem:
    """Sizes; the arrays follow from them and the seed, are of type `dtype`, and never change."""

    kind: str
    T: int = 7
    B: int = 3
    I: int = 5  # noqa: E741
    H: int = 6
    L: int = 1
    D: int = 1
    bias: bool = True
    dtype: str = "float64"
    seed: int = 0

    def random(self, what, shape):
        """Standard normal numbers of their own for every name."""
        values = np.random.default_rng([self.seed, *what.encode()]).standard_normal(shape).astype(self.dtype)
        values.flags.writeable = False
        return values

    def states(self, what):
        """What h_0 and final states look like; for LSTM a pair."""
        h = self.random(what + "h", (self.L * self.D, self.B, self.H))
        return (h, self.random(what + "c", h.shape)) if self.kind == "lstm" else h

    @property
    def shapes(self):
        G, H = GATES[self.kind], self.H
        shapes = {}
        for layer in range(self.L):
            for suffix in ("", "_reverse")[: self.D]:
                name = f"_l{layer}{suffix}"
                shapes["weight_ih" + name] = (G * H, self.D * H if layer else self.I)
                shapes["weight_hh" + name] = (G * H, H)
                if self.bias:
                    shapes["bias_ih" + name] = shapes["bias_hh" + name] = (G * H,)
        return shapes

    @cached_property
    def parameters(self):
        # Of this size a recurrent matrix has a spectral norm around 1: gradients neither vanish nor explode.
        scale = np.asarray(0.6 / np.sqrt(self.H), self.dtype)
        return {name: self.random(name, shape) * scale for name, shape in self.shapes.items()}

    @cached_property
    def x(self):
        return self.random("x", (self.T, self.B, self.I))

    @cached_property
    def state(self):
        return self.states("state")

    @cached_property
    def d_output(self):
        return self.random("d_output", (self.T, self.B, self.D * self.H))

    @cached_property
    def d_final_state(self):
        return self.states("d_final_state")

    @cached_property
    def d_cell(self):
        shape = (self.L * self.D, self.T, self.B, self.H)
        return self.random("d_cell", shape) if self.kind == "lstm" else None

    @cached_property
    def lengths(self):
        """From 0 to T, both among them where B allows."""
        lengths = np.random.default_rng([self.seed, 1]).integers(0, self.T + 1, self.B)
        lengths[-1] = 0
        lengths[0] = self.T
        return lengths

    @cached_property
    def resets(self):
        return np.random.default_rng([self.seed, 2]).random((self.T, self.B)) < 0.25

    @property
    def loss(self):
        """Every incoming gradient, by the name of `backward`'s argument."""
        loss = {"d_output": self.d_output, "d_final_state": self.d_final_state}
        return loss if self.d_cell is None else loss | {"d_cell": self.d_cell}

    @property
    def terms(self):
        """Roundings on the longest way from an input to a gradient: forward, back, the sum over T and B."""
        sums = self.I + (1 + self.D + 2 * GATES[self.kind]) * self.H
        pointwise = 40  # of one cell, forward and backward, three to a sigmoid or tanh
        return self.L * self.T * (sums + pointwise) + self.T * self.B

    @property
    def bound(self):
        return rounding_bound(self.dtype, self.terms)

    def layer(self, **options):
        """The library's layer with these parameters."""
        layer = layer_class(self.kind)(
            self.I,
            self.H,
            num_layers=self.L,
            bias=self.bias,
            bidirectional=self.D == 2,
            dtype=self.dtype,
            **({"nonlinearity": "relu"} if self.kind == "rnn_relu" else {}),
            **options,
        )
        layer.load_parameters(self.parameters)
        return layer


def layer_class(kind):
    import throughtime as tt  # here, so that the reference can be tested where the library is not built

    return {"rnn_tanh": tt.RNN, "rnn_relu": tt.RNN, "gru": tt.GRU, "lstm": tt.LSTM}[kind]


def problems(kind, most_layers=3, **fixed):
    """Problems of one kind, many of them with a size of 1 or just beside a multiple of the vector lengths."""
    sizes = {
        "T": st.one_of(st.just(1), st.integers(2, 12)),
        "B": st.one_of(st.just(1), st.integers(2, 9)),
        "I": st.one_of(st.just(1), st.integers(2, 9), st.sampled_from([15, 17])),
        "H": st.one_of(st.just(1), st.integers(2, 9), st.sampled_from([15, 16, 17, 33])),
        "L": st.integers(1, most_layers),
        "D": st.integers(1, 2),
        "bias": st.booleans(),
        "seed": st.integers(0, 99),
    }
    free = {name: values for name, values in sizes.items() if name not in fixed}
    return st.builds(Problem, st.just(kind), **free, **{name: st.just(value) for name, value in fixed.items()})


def rounding_bound(dtype, terms):
    """The relative error that `terms` roundings in a row leave.

    Roundings are as good as independent, so their sum grows with the square root of their number: it is
    below lambda sqrt(terms) u, u = eps / 2, but for a probability of 2 exp(-lambda^2 / 2) (Higham and Mary
    2019), which lambda = 10 makes 4e-22. What a step receives it hands on no larger (spectral norm around 1),
    so that there is no other factor.
    """
    return 10 * np.sqrt(terms) * np.finfo(dtype).eps / 2


def wide(values):
    """The same values in float64; of arrays alone, in tuples and in dicts."""
    if isinstance(values, dict):
        return {name: wide(value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(wide(value) for value in values)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return values.astype(np.float64)
    return values


def assert_close(ours, expected, bound, what="", floor=0):
    """Shapes are equal, and no entry is off by more than `bound` times the largest of its tensor, or `floor`."""
    if isinstance(expected, tuple):
        assert isinstance(ours, tuple), f"{what}: {type(ours)} where a tuple is expected"
        for k, (a, b) in enumerate(zip(ours, expected, strict=True)):
            assert_close(a, b, bound, f"{what}[{k}]", floor)
        return
    if isinstance(expected, dict):
        assert set(ours) == set(expected), what
        for name in expected:
            assert_close(ours[name], expected[name], bound, f"{what}[{name!r}]", floor)
        return
    assert ours.shape == expected.shape, f"{what}: shape {ours.shape}, expected {expected.shape}"
    if expected.dtype == bool:
        assert np.array_equal(ours, expected), what
        return
    largest = np.max(np.abs(expected), initial=floor)
    error = np.max(np.abs(ours - expected), initial=0)
    assert error <= bound * largest, f"{what}: off by {error:.3g}, allowed {bound:.3g} times {largest:.3g}"


def assert_norms_close(ours, expected, problem, found, bound):
    """Norms from Gram matrices: <d d^T, x x^T> may cancel, so the error of the square, summed in float64, is relative
    to |d|^2 |x|^2 (Frobenius norms of the step), and that of its root the same over the root.
    """
    initial = problem.state[0] if problem.kind == "lstm" else problem.state
    rows = [problem.x, initial, *np.moveaxis(found["tape.hidden"], 1, 0)]
    operand = max(np.linalg.norm(row) for row in rows) * problem.D + np.sqrt(problem.B)
    squares = (np.linalg.norm(found["gates"]) * operand) ** 2
    exact = rounding_bound("float64", problem.terms) * squares
    assert set(ours) == set(expected)
    for name, norms in expected.items():
        allowed = bound * np.max(norms) + np.minimum(exact / np.maximum(norms, 1e-300), np.sqrt(exact))
        assert np.all(np.abs(ours[name] - norms) <= allowed), f"parameter_norms[{name!r}]"


def assert_same_bits(a, b, what=""):
    if isinstance(a, (tuple, dict)):
        pairs = a.items() if isinstance(a, dict) else enumerate(a)
        assert len(a) == len(b), what
        for key, value in pairs:
            assert_same_bits(value, b[key], f"{what}[{key!r}]")
        return
    assert (a.dtype, a.shape) == (b.dtype, b.shape), what
    assert a.tobytes() == b.tobytes(), f"{what}: other bits in {np.sum(a != b)} of {a.size} places"


def results(tape, grads):
    """Everything that a forward and a backward with timesteps=ALL_TIMESTEPS gave, by name."""
    found = {
        "output": tape.output,
        "final_state": tape.final_state,
        "tape.hidden": tape.hidden,
        "input": grads.input,
        "parameters": grads.parameters,
        "initial_state": grads.initial_state,
        "hidden": grads.hidden,
        "gates": grads.gates,
        "parameter_norms": grads.parameter_norms,
    }
    return found | ({"tape.cell": tape.cell, "cell": grads.cell} if isinstance(tape.final_state, tuple) else {})


def run(layer, x, options=None, asked=None, loss=None):
    """The library, forward with `options`, backward of `loss` with the options `asked`: all by name."""
    tape = layer.forward(x, **(options or {}))
    grads = tape.backward(**loss, **{"timesteps": ALL_TIMESTEPS, **(asked or {})})
    found = results(tape, grads)
    return found | ({"clipped": grads.clipped} if asked and asked.get("clip") is not None else {})


def run_reference(problem, options=None, asked=None, loss=None, dropout=0.0):
    """The same of the reference."""
    record = reference.forward(
        problem.kind, wide(problem.parameters), wide(problem.x), **wide(options or {}), dropout=dropout
    )
    grads = reference.backward(record, **wide(loss or problem.loss), **(asked or {}))
    found = {
        "output": record.output,
        "final_state": record.final_state,
        "tape.hidden": record.hidden,
        "input": grads.input,
        "parameters": grads.parameters,
        "initial_state": grads.initial_state,
        "hidden": grads.hidden,
        "gates": grads.gates,
        "parameter_norms": grads.parameter_norms,
    }
    if problem.kind == "lstm":
        found |= {"tape.cell": record.cell_state, "cell": grads.cell}
    return found | ({"clipped": grads.clipped} if asked and asked.get("clip") is not None else {})


def check(problem, options=None, asked=None, loss=None, bound=None):
    """The library and the reference agree in everything they return."""
    loss = loss or problem.loss
    ours = run(problem.layer(), problem.x, options, asked, loss)
    expected = run_reference(problem, options, asked, loss)
    bound = bound or problem.bound
    norms = expected.pop("parameter_norms")
    assert_norms_close(ours.pop("parameter_norms"), norms, problem, expected, bound)
    # Where every unit saturates, 1 - y^2 cancels: what is left of a gradient keeps the error of what came in.
    incoming = np.max(np.abs(expected["hidden"]), initial=0)
    assert_close(ours, expected, bound, floor=incoming)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def free():
    """The library's own choices again after a test that forces some."""
    family = "amx" if _core.level() == "amx" else ""  # which the emulated tests force everywhere
    yield
    _core.force(family=family)
