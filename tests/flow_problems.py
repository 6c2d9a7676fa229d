"""Problems whose gradients leave the range of floats, by orders of magnitude per step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flow_truth import exact
from problems import FORMS, GATES, RELUS, STATES, Problem
from reference import NORMALISED
from throughtime.recurrent.architecture import gates_of

CHAINS = tuple(kind for kind in FORMS if kind not in NORMALISED)  # normalised kinds turn ones into zeros


@dataclass(frozen=True)
class Weak(Problem):
    """Random states and inputs; gradients fall by about five orders of magnitude per step.

    The recurrent weights, including a peephole's, are 1e-5 times a problem's. The forget or update gate is shut to
    sigmoid(-12) = 6e-6. Layer normalisation undoes the size of weights, but not of a gain. A relu stays on.
    """

    @cached_property
    def parameters(self):
        values = {name: array.copy() for name, array in super().parameters.items()}
        shrunk = "weight_ln_hh" if self.kind in NORMALISED else "weight_hh"
        for name, array in values.items():
            if name.startswith((shrunk, "weight_c")):
                array *= np.asarray(1e-5, self.dtype)
            if name.startswith("bias_ih") and GATES[self.kind] > 1:
                self.keep(array, -12)
            if name.startswith("bias_ih") and self.kind in RELUS:
                array[:] = 8
        return values


@dataclass(frozen=True)
class Chain(Problem):
    """Independent units at a state that no step changes; each step back multiplies a unit's gradient by its factor.

    The state is zero, so that a tanh has slope 1 and a sigmoid is 1/2; x is zero; and a bias of -100 shuts the forget
    or update gate: dh_t = w / 2 dh_{t+1} for the GRU, whose r is 1/2, and w / 4 for the LSTM, whose i and o are 1/2. A
    relu needs h > 0: there h is 1 = w 1 + b. In higher layers every unit reads every unit below. All numbers of the
    backward are positive, so nothing cancels, and relative errors only add up.
    """

    factors: tuple[float, ...] = (0.1,)  # of each unit of h; the last one repeats

    @property
    def gain(self):
        """1/2 for each sigmoid between h and h' that is not shut."""
        return 0.5 ** len(set(gates_of(self.kind)) & set("iro") - {self.keeps})

    @cached_property
    def weights(self):
        """w of each unit, in this dtype."""
        factors = np.array(self.factors + self.factors[-1:] * (self.width - len(self.factors)))
        return (factors / self.gain).astype(self.dtype)

    @cached_property
    def parameters(self):
        values = {name: np.zeros(shape, self.dtype) for name, shape in self.shapes.items()}
        units = np.arange(self.width)
        own = self.rows(self.candidate)
        for name, array in values.items():
            if name.startswith("weight_hh"):
                array[own][units, units] = self.weights
            elif name.startswith("weight_ih") and "_l0" not in name:
                array[own][: self.width] = 0.5
            elif name.startswith("weight_hr"):
                array[units, units] = 1
            elif name.startswith("bias_ih") and GATES[self.kind] > 1:
                self.keep(array, -100)
            elif name.startswith("bias_ih") and self.kind == "rnn_relu":
                array[:] = 1 - self.weights - (0 if "_l0" in name else 0.5 * self.D * self.width)
        return values

    @cached_property
    def x(self):
        return np.zeros((self.T, self.B, self.I), self.dtype)

    @cached_property
    def state(self):
        size = 1 if self.kind == "rnn_relu" else 0
        h, c = (np.full((self.L * self.D, self.B, width), size, self.dtype) for width in (self.width, self.H))
        return (h, c) if STATES[self.kind] == 2 else h

    def hidden(self, d_output):
        """dL/dh (1, T, B, H) of one layer and direction in mpmath's numbers, by the rule above."""
        rows, factors = exact(d_output), exact(self.weights) * self.gain
        for t in reversed(range(self.T - 1)):
            rows[t] = rows[t] + rows[t + 1] * factors
        return rows[None]
