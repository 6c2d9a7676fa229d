"""What each timestep adds to the gradient of each parameter, as docs/quantities.md has it, for every cell.

With two layers and directions, lengths, resets, zoneout and dropout of weights. The pieces are those that the page
names: gradients per timestep, gates and states. All are float64 and compared within the bound of the problem.
"""

from __future__ import annotations

import numpy as np
import pytest

from comparison import assert_close
from problems import GATES, STATES, Problem
from reference import NORMALISED, as_tuple, schedule

WEIGHT_DROPOUT = 0.2


class Row:
    """One layer and direction: its parameters, the inputs and states of each step, and the returned gradients."""

    def __init__(self, problem, row, tape, grads):
        self.problem, self.kind = problem, problem.kind
        T, B, H = problem.T, problem.B, problem.H
        suffix = problem.suffixes[row]
        steps = schedule(problem.lengths, problem.resets, reverse=row % 2 == 1)
        own = {name.removesuffix(suffix): a for name, a in problem.parameters.items() if name.endswith(suffix)}
        self.scale = np.where(problem.masks["weight_hh" + suffix], 0, 1 / (1 - WEIGHT_DROPOUT))
        self.parameters = own | {"weight_hh": own["weight_hh"] * self.scale}
        below = problem.x if row < 2 else np.concatenate(tape.hidden[:2], axis=2)
        self.u = np.where(steps.active[..., None], below, 0)
        self.dx, self.d_product = grads.gates[row], grads.products[row]
        self.gates = tape.gates[row].reshape(T, B, GATES[self.kind], H)
        states = [tape.hidden, tape.cell] if STATES[self.kind] == 2 else [tape.hidden]
        self.h, *self.c = (
            before(every[row], initial[row], steps)
            for every, initial in zip(states, as_tuple(problem.state), strict=True)
        )
        kept = problem.masks.get("zoneout_h" + suffix, False)
        self.d_new = np.where(kept, 0, grads.hidden[row])  # of h before its zoneout

    def dr(self):
        """The gradient of the recurrent part of the pre-activations."""
        dr = self.dx.copy()
        if self.kind in ("gru", "gru_layer_norm"):
            dr[..., 2 * self.problem.H :] *= self.gates[:, :, 0]
        return dr

    def steps(self):
        """By parameter, what each timestep adds: (T, *shape)."""
        dr = self.dr()
        found = {
            "weight_ih": outer(self.d_product, self.u),
            "weight_hh": outer(dr, self.h) * self.scale,
            "bias_ih": self.dx.sum(axis=1),
            "bias_hh": dr.sum(axis=1),
        }
        if self.kind == "gru_original":  # the last rows multiply r h
            H, r_h = self.problem.H, self.gates[:, :, 0] * self.h
            found["weight_hh"][:, 2 * H :] = outer(dr[..., 2 * H :], r_h) * self.scale[2 * H :]
        if self.kind in NORMALISED:
            normal_x, _ = normalised(self.u @ self.parameters["weight_ih"].T)
            normal_h, inverse = normalised(self.h @ self.parameters["weight_hh"].T)
            d_product = through_norm(dr * self.parameters["weight_ln_hh"], normal_h, inverse)
            found["weight_hh"] = outer(d_product, self.h) * self.scale
            found["weight_ln_ih"] = (self.dx * normal_x).sum(axis=1)
            found["weight_ln_hh"] = (dr * normal_h).sum(axis=1)
        return found | (self.steps_of_c() if self.c else {})

    def steps_of_c(self):
        """Of the LSTM's variants."""
        (c,), (i, f, g, o) = self.c, np.moveaxis(self.gates, 2, 0)
        new = f * c + i * g
        if self.kind == "lstm_projected":
            return {"weight_hr": outer(self.d_new, o * np.tanh(new))}
        if self.kind == "lstm_peephole":
            d_i, d_f, _, d_o = np.split(self.dx, 4, axis=2)
            added = {"weight_ci": d_i * c, "weight_cf": d_f * c, "weight_co": d_o * new}
            return {name: each.sum(axis=1) for name, each in added.items()}
        if self.kind == "lstm_layer_norm":
            normal, _ = normalised(new)
            y = np.tanh(self.parameters["weight_ln_c"] * normal + self.parameters["bias_ln_c"])
            dy = self.d_new * o * (1 - y * y)
            return {"weight_ln_c": (dy * normal).sum(axis=1), "bias_ln_c": dy.sum(axis=1)}
        return {}


def before(states, initial, steps):
    """The state before each step, (T, B, width), zero where an episode starts."""
    last, found = initial, np.empty_like(states)
    for t in steps.order:
        found[t] = np.where(steps.fresh[t][:, None], 0, last)
        last = states[t]
    return found


def outer(d, values):
    """(T, m, n): the sum over the sequences of d (T, B, m) times values (T, B, n)."""
    return np.einsum("tbm,tbn->tmn", d, values)


def normalised(rows):
    """The rows without mean and with variance 1, and the reciprocal deviations."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
    return centred * inverse, inverse


def through_norm(d, normal, inverse):
    """The gradient of the rows, from that of the normalised ones."""
    along = (d * normal).mean(axis=-1, keepdims=True)
    return inverse * (d - d.mean(axis=-1, keepdims=True) - normal * along)


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_every_parameters_gradient_is_the_sum_that_the_page_names(kind, zoneout):
    """And each summand has the norm in `parameter_norms`; products of the layers below give dL/dx."""
    problem = Problem(kind, T=6, B=4, I=3, H=5, L=2, D=2, zoneout=zoneout, weight_dropout=WEIGHT_DROPOUT)
    options = {"resets": problem.resets, "masks": problem.masks}
    tape = problem.layer().forward(problem.x, problem.state, problem.lengths, **options)
    asked = ("hidden", "gates", "products", "parameter_norms")
    grads = tape.backward(**problem.loss, timesteps=asked)
    d_input = 0
    for row, suffix in enumerate(problem.suffixes):
        one = Row(problem, row, tape, grads)
        steps = {name + suffix: each for name, each in one.steps().items()}
        assert set(steps) == {name for name in problem.parameters if name.endswith(suffix)}
        for name, each in steps.items():
            floor = np.abs(grads.hidden).max()  # which layer normalisation may cancel
            assert_close(each.sum(axis=0), grads.parameters[name], problem.bound, name, floor)
            norms = np.sqrt((each.reshape(problem.T, -1) ** 2).sum(axis=1))
            assert_close(norms, grads.parameter_norms[name], problem.bound, name, floor)
        if row < 2:
            d_input = d_input + grads.products[row] @ one.parameters["weight_ih"]
    assert_close(d_input, grads.input, problem.bound, "input")
