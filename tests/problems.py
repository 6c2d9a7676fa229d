"""Random problems, and the results of the library and of the reference on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_close, assert_norms_close, magnification, rounding_bound, wide
from reference import NORMALISED
from throughtime._arguments import TIMESTEPS
from throughtime.recurrent.architecture import gates_of

KINDS = tuple(reference.CELLS)
# Cells that differ from another one only in their activation. Tests of equations use all KINDS, others one of each
# form.
VARIANTS = ("rnn_sigmoid", "rnn_tanh_layer_norm", "rnn_relu_layer_norm", "rnn_sigmoid_layer_norm")
FORMS = tuple(kind for kind in KINDS if kind not in VARIANTS)
RELUS = tuple(kind for kind in KINDS if kind.startswith("rnn_relu"))  # their derivative jumps
TORCH_KINDS = ("rnn_tanh", "rnn_relu", "gru", "lstm", "lstm_projected")
GATES = {kind: cell.gates for kind, cell in reference.CELLS.items()}
STATES = {kind: cell.states for kind, cell in reference.CELLS.items()}
ALL_TIMESTEPS = tuple(name for name in TIMESTEPS if name != "products")  # these the reference has too
GATE_TIMESTEPS = tuple(name for name in ALL_TIMESTEPS if name not in ("hidden", "cell", "parameter_norms"))  # of G*H
# The constructor's options that choose a cell, apart from proj_size, which depends on the sizes.
OPTIONS = {"gru_original": {"reset_after": False}, "lstm_peephole": {"peephole": True}}
OPTIONS |= {kind: {"nonlinearity": kind.split("_")[1]} for kind in KINDS if kind.startswith("rnn")}
OPTIONS |= {kind: {**OPTIONS.get(kind, {}), "layer_norm": True} for kind in NORMALISED}


@dataclass(frozen=True)
class Problem:
    """Sizes. The arrays follow from them and the seed, have type `dtype`, and never change."""

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
    P: int = 0  # of the projected LSTM; 0: half of H
    zoneout: float | tuple[float, float] = 0.0
    weight_dropout: float = 0.0

    def random(self, what, shape):
        """Standard normal numbers, different for every name."""
        values = np.random.default_rng([self.seed, *what.encode()]).standard_normal(shape).astype(self.dtype)
        values.flags.writeable = False
        return values

    @property
    def width(self):
        """The width of h: P with a projection, else H."""
        return (self.P or (self.H + 1) // 2) if self.kind == "lstm_projected" else self.H

    def states(self, what):
        """h_0 or final states in the layer's form; for LSTM a pair."""
        LD, B = self.L * self.D, self.B
        h = self.random(what + "h", (LD, B, self.width))
        return (h, self.random(what + "c", (LD, B, self.H))) if STATES[self.kind] == 2 else h

    @property
    def suffixes(self):
        return [f"_l{layer}{side}" for layer in range(self.L) for side in ("", "_reverse")[: self.D]]

    def rows(self, gate):
        """The rows of a gate, a letter of `gates_of`, in weights and biases."""
        start = gates_of(self.kind).index(gate) * self.H
        return slice(start, start + self.H)

    @property
    def keeps(self):
        """The gate by which a cell keeps its old state: f or z, or i if f = 1 - i; None in an RNN."""
        return next((gate for gate in "fzi" if gate in gates_of(self.kind)), None)

    @property
    def candidate(self):
        """The letter of the tanh, or of the RNN's activation, that makes the new state."""
        return next(gate for gate in "gnh" if gate in gates_of(self.kind))

    def keep(self, bias, size):
        """Set the bias of f or z, or of 1 - i, to `size`: the old state is kept if large, forgotten if negative."""
        bias[self.rows(self.keeps)] = -size if self.keeps == "i" else size

    @property
    def options(self):
        """The constructor's options that choose this cell."""
        found = dict(OPTIONS.get(self.kind, {}))
        if self.kind == "lstm_projected":
            found["proj_size"] = self.width
        return found

    @property
    def shapes(self):
        rows, H = GATES[self.kind] * self.H, self.H
        own = {
            "lstm_projected": {"weight_hr": (self.width, H)},
            "lstm_peephole": {"weight_ci": (H,), "weight_cf": (H,), "weight_co": (H,)},
            "lstm_layer_norm": {"weight_ln_c": (H,), "bias_ln_c": (H,)},
        }.get(self.kind, {})
        if self.kind in NORMALISED:
            own = {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,), **own}
        biases = {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else {}
        shapes = {}
        for index, suffix in enumerate(self.suffixes):
            below = self.I if index < self.D else self.D * self.width
            layer = {"weight_ih": (rows, below), "weight_hh": (rows, self.width), **biases, **own}
            shapes |= {name + suffix: shape for name, shape in layer.items()}
        return shapes

    @cached_property
    def parameters(self):
        # At this size a recurrent matrix has a spectral norm around 1: gradients neither vanish nor explode. Layer
        # normalisation undoes the size of its input: gains limit the contribution of h to a third of the others.
        scale = np.asarray(0.6 / np.sqrt(self.H), self.dtype)
        values = {name: self.random(name, shape) * scale for name, shape in self.shapes.items()}
        for name in values:
            if name.startswith("weight_ln"):
                values[name] = (1 + values[name]) * np.asarray(0.3 if "_hh" in name else 1, self.dtype)
        return values

    @cached_property
    def masks(self):
        """The masks of zoneout and weight dropout, if any: random, at their rates."""
        pair = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * STATES[self.kind]
        wanted = {}
        for suffix in self.suffixes:
            for s, width, p in zip("hc", (self.width, self.H), pair, strict=False):
                wanted[f"zoneout_{s}{suffix}"] = ((self.T, self.B, width), p)
            wanted["weight_hh" + suffix] = (self.shapes["weight_hh" + suffix], self.weight_dropout)
        rng = np.random.default_rng([self.seed, 3])
        return {name: rng.random(shape) < p for name, (shape, p) in wanted.items() if p}

    @cached_property
    def x(self):
        return self.random("x", (self.T, self.B, self.I))

    @cached_property
    def state(self):
        return self.states("state")

    @cached_property
    def d_output(self):
        return self.random("d_output", (self.T, self.B, self.D * self.width))

    @cached_property
    def d_final_state(self):
        return self.states("d_final_state")

    @cached_property
    def d_cell(self):
        shape = (self.L * self.D, self.T, self.B, self.H)
        return self.random("d_cell", shape) if STATES[self.kind] == 2 else None

    @cached_property
    def lengths(self):
        """From 0 to T, including both if B allows."""
        lengths = np.random.default_rng([self.seed, 1]).integers(0, self.T + 1, self.B)
        lengths[-1] = 0
        lengths[0] = self.T
        return lengths

    @cached_property
    def resets(self):
        return np.random.default_rng([self.seed, 2]).random((self.T, self.B)) < 0.25

    @property
    def loss(self):
        """All incoming gradients, by the names of `backward`'s arguments."""
        loss = {"d_output": self.d_output, "d_final_state": self.d_final_state}
        return loss if self.d_cell is None else loss | {"d_cell": self.d_cell}

    @property
    def terms(self):
        """Roundings on the longest path from an input to a gradient: forward, backward, the sum over T and B."""
        sums = self.I + (1 + self.D) * self.width + 2 * GATES[self.kind] * self.H
        pointwise = 40  # per cell, forward and backward; three per sigmoid or tanh
        more = {
            "gru_original": self.H,  # the second product
            "lstm_projected": self.H + self.width,  # the projection, forward and backward
            "lstm_peephole": 10,
        }.get(self.kind, 0)
        if self.kind in NORMALISED:  # means and variances of gates and of c, forward and backward: 20 per unit
            more = 2 * 2 * (GATES[self.kind] + STATES[self.kind] - 1) * self.H + 2 * 20
        noise = 8 if self.zoneout or self.weight_dropout else 0
        return self.L * self.T * (sums + pointwise + more + noise) + self.T * self.B

    @property
    def bound(self):
        """For a run from `state`; for other runs of layer-normalised cells, `check` computes it."""
        bound = rounding_bound(self.dtype, self.terms)
        if self.kind in NORMALISED:
            bound *= magnification(reference_forward(self, {"state": self.state, "masks": self.masks}))
        return bound

    def layer(self, **options):
        """The library's layer with these parameters."""
        layer = layer_class(self.kind)(
            self.I,
            self.H,
            num_layers=self.L,
            bias=self.bias,
            bidirectional=self.D == 2,
            zoneout=self.zoneout,
            weight_dropout=self.weight_dropout,
            dtype=self.dtype,
            **self.options,
            **options,
        )
        layer.load_parameters(self.parameters)
        return layer


def layer_class(kind):
    return {"rnn": tt.RNN, "gru": tt.GRU, "lstm": tt.LSTM}[kind.partition("_")[0]]


def problems(kind, most_layers=3, noise=False, **fixed):
    """Problems of one kind, many with a size of 1 or next to a multiple of the vector lengths.

    With `noise`, some have zoneout or dropout of weights, and their `masks`.
    """
    narrowest = 2 if kind == "lstm_projected" else 1  # P must be less than H
    sizes = {
        "T": st.one_of(st.just(1), st.integers(2, 12)),
        "B": st.one_of(st.just(1), st.integers(2, 9)),
        "I": st.one_of(st.just(1), st.integers(2, 9), st.sampled_from([15, 17])),
        "H": st.one_of(st.just(narrowest), st.integers(2, 9), st.sampled_from([15, 16, 17, 33])),
        "L": st.integers(1, most_layers),
        "D": st.integers(1, 2),
        "bias": st.booleans(),
        "seed": st.integers(0, 99),
    }
    if kind == "lstm_projected":
        sizes["P"] = st.sampled_from([0, 1])
    if noise:
        pairs = [(0.0, 0.4), (0.3, 0.0), (0.2, 0.1)] if STATES[kind] == 2 else []
        sizes["zoneout"] = st.sampled_from([0.0, 0.3, *pairs])
        sizes["weight_dropout"] = st.sampled_from([0.0, 0.2])
    free = {name: values for name, values in sizes.items() if name not in fixed}
    return st.builds(Problem, st.just(kind), **free, **{name: st.just(value) for name, value in fixed.items()})


def results(tape, grads):
    """All results of a forward and a backward with timesteps=ALL_TIMESTEPS, by name; states only if stored."""
    found = {
        "output": tape.output,
        "final_state": tape.final_state,
        "input": grads.input,
        "parameters": grads.parameters,
        "initial_state": grads.initial_state,
    }
    found |= {f"tape.{name}": getattr(tape, name) for name in ("hidden", "cell") if hasattr(tape, name)}
    has_cell = isinstance(tape.final_state, tuple)
    return found | {name: getattr(grads, name) for name in ALL_TIMESTEPS if name != "cell" or has_cell}


def run(layer, x, options=None, asked=None, loss=None):
    """Runs the library, forward with `options`, backward of `loss` with the options `asked`; results by name."""
    tape = layer.forward(x, **(options or {}))
    grads = tape.backward(**loss, **{"timesteps": ALL_TIMESTEPS, **(asked or {})})
    found = results(tape, grads)
    return found | ({"clipped": grads.clipped} if asked and asked.get("clip") is not None else {})


def reference_forward(problem, options=None, dropout=0.0):
    """The reference's record. Without masks among the options it is inference, and zoneout is its expectation."""
    return reference.forward(
        problem.kind,
        wide(problem.parameters),
        wide(problem.x),
        **wide(options or {}),
        dropout=dropout,
        zoneout=problem.zoneout,
        weight_dropout=problem.weight_dropout,
    )


def reference_results(problem, record, asked=None, loss=None):
    """The results of `run`, from a record of the reference."""
    grads = reference.backward(record, **wide(loss or problem.loss), **(asked or {}))
    found = {
        "output": record.output,
        "final_state": record.final_state,
        "tape.hidden": record.hidden,
        "input": grads.input,
        "parameters": grads.parameters,
        "initial_state": grads.initial_state,
        **{name: getattr(grads, name) for name in ALL_TIMESTEPS if name != "cell"},
    }
    if STATES[problem.kind] == 2:
        found |= {"tape.cell": record.cell_state, "cell": grads.cell}
    return found | ({"clipped": grads.clipped} if asked and asked.get("clip") is not None else {})


def run_reference(problem, options=None, asked=None, loss=None, dropout=0.0):
    """The results of `run`, from the reference."""
    return reference_results(problem, reference_forward(problem, options, dropout), asked, loss)


def check(problem, options=None, asked=None, loss=None, bound=None):
    """Checks that library and reference agree in all results; passes a problem's masks along."""
    loss = loss or problem.loss
    if problem.masks:
        options = {"masks": problem.masks, **(options or {})}
    ours = run(problem.layer(), problem.x, options, asked, loss)
    record = reference_forward(problem, options)
    expected = reference_results(problem, record, asked, loss)
    bound = bound or rounding_bound(problem.dtype, problem.terms) * magnification(record)
    norms = expected.pop("parameter_norms")
    assert_norms_close(ours.pop("parameter_norms"), norms, problem, expected, bound, record)
    # If every unit saturates, 1 - y^2 cancels: the remaining gradient keeps the error of the incoming one.
    incoming = np.max(np.abs(expected["hidden"]), initial=0)
    assert_close(ours, expected, bound, floor=incoming)
