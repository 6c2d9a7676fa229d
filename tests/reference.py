"""The specification: the recurrent cells over time and their gradients, in plain NumPy, step by step.

Equations, parameter names and gate order are torch's if torch has the cell. All numbers are float64, or complex128 for
the complex step: no differentiated expression contains an absolute value, a conjugate or a maximum. Arrays are
time-major and batched, with the library's sizes `T B I H G L D P`; an axis L*D has the order of torch's `h_n`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

# A cell is its equation and its derivative; p holds the parameters of one layer and direction.
# forward(p, x, state): x (B, I); state (h,) or (h, c), h (B, H) or (B, P), c (B, H). Returns the next state and the
# values to save.
# backward(p, x, state, saved, d_next): d_next is the gradient of the next state. Returns the gradient of the old state
# and a dict: "gates", of the input part of the pre-activation; "input", of x; each parameter's; "cell", the total
# gradient of the next c, including the path through h.


def sigmoid(a):
    with np.errstate(over="ignore"):  # exp(-a) = inf gives 0, as required
        return 1 / (1 + np.exp(-a))


def input_part(p, x):
    return x @ p.weight_ih.T + p.bias_ih


def recurrent_part(p, h):
    return h @ p.weight_hh.T + p.bias_hh


def products_backward(p, x, h, d_x, d_r):
    """Of the two parts above, with gradients d_x and d_r: the gradient of h, and a dict of all others."""
    found = {
        "gates": d_x,
        "input": d_x @ p.weight_ih,
        "weight_ih": d_x.T @ x,
        "weight_hh": d_r.T @ h,
        "bias_ih": d_x.sum(axis=0),
        "bias_hh": d_r.sum(axis=0),
    }
    return d_r @ p.weight_hh, found


# Cells with only h and one product with it: the next h from both parts of the pre-activations, and the values to save;
# then the gradients of h, without those through its part, and of both parts.


def rnn_tanh(a_x, a_h, h):
    """h' = tanh(a_x + a_h)"""
    h = np.tanh(a_x + a_h)
    return h, h


def rnn_tanh_backward(h, h_next, d_h):
    d_a = d_h * (1 - h_next * h_next)
    return np.zeros_like(d_h), d_a, d_a


def rnn_relu(a_x, a_h, h):
    """h' = relu(a_x + a_h), selected by the real part"""
    a = a_x + a_h
    positive = np.real(a) > 0
    return np.where(positive, a, 0), positive


def rnn_relu_backward(h, positive, d_h):
    d_a = np.where(positive, d_h, 0)
    return np.zeros_like(d_h), d_a, d_a


def rnn_sigmoid(a_x, a_h, h):
    """h' = sigmoid(a_x + a_h)"""
    h = sigmoid(a_x + a_h)
    return h, h


def rnn_sigmoid_backward(h, h_next, d_h):
    d_a = d_h * h_next * (1 - h_next)
    return np.zeros_like(d_h), d_a, d_a


def gru(a_x, a_h, h):
    """h' = (1 - z) n + z h, n = tanh(x_n + r r_n), reset and update gate r, z = sigmoid(x + r)"""
    x_r, x_z, x_n = np.split(a_x, 3, axis=1)
    r_r, r_z, r_n = np.split(a_h, 3, axis=1)
    reset, z = sigmoid(x_r + r_r), sigmoid(x_z + r_z)
    n = np.tanh(x_n + reset * r_n)
    return (1 - z) * n + z * h, (reset, z, n, r_n)


def gru_backward(h, saved, d_h):
    reset, z, n, r_n = saved
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * z * (1 - z)
    d_r = d_n * r_n * reset * (1 - reset)
    return d_h * z, np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, d_n * reset])


def of_products(equation, derivative):
    """The cell with parts W_ih x + b_ih and W_hh h + b_hh."""

    def forward(p, x, state):
        (h,) = state
        h, saved = equation(input_part(p, x), recurrent_part(p, h), h)
        return (h,), saved

    def backward(p, x, state, saved, d_next):
        (d_h,), (h,) = d_next, state
        d_old, d_x, d_r = derivative(h, saved, d_h)
        through, found = products_backward(p, x, h, d_x, d_r)
        return (d_old + through,), found

    return forward, backward


def of_normalised_products(equation, derivative):
    """The cell with parts LN(W_ih x) + b_ih and LN(W_hh h) + b_hh, each LN over all gates."""

    def forward(p, x, state):
        (h,) = state
        normal_x, saved_x = layer_norm(x @ p.weight_ih.T, p.weight_ln_ih)
        normal_h, saved_h = layer_norm(h @ p.weight_hh.T, p.weight_ln_hh)
        h, saved = equation(normal_x + p.bias_ih, normal_h + p.bias_hh, h)
        return (h,), (saved, (saved_x, saved_h))

    def backward(p, x, state, saved, d_next):
        (d_h,), (h,), (saved, (saved_x, saved_h)) = d_next, state, saved
        d_old, d_a_x, d_a_h = derivative(h, saved, d_h)
        d_x, d_ln_ih = layer_norm_backward(d_a_x, p.weight_ln_ih, saved_x)
        d_r, d_ln_hh = layer_norm_backward(d_a_h, p.weight_ln_hh, saved_h)
        through, found = products_backward(p, x, h, d_x, d_r)
        found |= {
            "gates": d_a_x,
            "bias_ih": d_a_x.sum(axis=0),
            "bias_hh": d_a_h.sum(axis=0),
            "weight_ln_ih": d_ln_ih,
            "weight_ln_hh": d_ln_hh,
        }
        return (d_old + through,), found

    return forward, backward


def gru_original(p, x, state):
    """h' = (1 - z) n + z h, n = tanh(x_n + W_hn (r h) + b_hn), r, z = sigmoid(x + W_hh h + b_hh)"""
    (h,) = state
    x_r, x_z, x_n = np.split(input_part(p, x), 3, axis=1)
    r_r, r_z, _ = np.split(recurrent_part(p, h), 3, axis=1)
    reset, z = sigmoid(x_r + r_r), sigmoid(x_z + r_z)
    r_n = np.split(recurrent_part(p, reset * h), 3, axis=1)[2]
    n = np.tanh(x_n + r_n)
    return ((1 - z) * n + z * h,), (reset, z, n)


def gru_original_backward(p, x, state, saved, d_next):
    (d_h,), (h,), (reset, z, n) = d_next, state, saved
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * z * (1 - z)
    d_reset_h = d_n @ np.split(p.weight_hh, 3)[2]
    d_r = d_reset_h * h * reset * (1 - reset)
    d_old, found = products_backward(p, x, h, np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, np.zeros_like(d_n)]))
    found["weight_hh"] = np.vstack([np.hstack([d_r, d_z]).T @ h, d_n.T @ (reset * h)])
    found["bias_hh"] = found["bias_ih"]
    return (d_old + d_reset_h * reset + d_h * z,), found


def lstm_gates(a):
    """i, f, o = sigmoid(a), g = tanh(a), in the order i f g o"""
    i, f, g, o = np.split(a, 4, axis=1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def lstm_gates_backward(gates, c, d_c, d_o):
    """The gradient of a, from those of c' = f c + i g and of o."""
    i, f, g, o = gates
    return np.hstack([d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g * g), d_o * o * (1 - o)])


def lstm(p, x, state):
    """c' = f c + i g, h' = o tanh(c'), gates of a = W_ih x + b_ih + W_hh h + b_hh"""
    h, c = state
    i, f, g, o = gates = lstm_gates(input_part(p, x) + recurrent_part(p, h))
    c = f * c + i * g
    return (o * np.tanh(c), c), (gates, np.tanh(c))


def lstm_backward(p, x, state, saved, d_next):
    (d_h, d_c), (h, c), (gates, tanh_c) = d_next, state, saved
    _, f, _, o = gates
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_a = lstm_gates_backward(gates, c, d_c, d_h * tanh_c)
    d_old, found = products_backward(p, x, h, d_a, d_a)
    return (d_old, d_c * f), found | {"cell": d_c}


def lstm_projected(p, x, state):
    """The LSTM with h' = W_hr (o tanh(c'))"""
    (m, c), saved = lstm(p, x, state)
    return (m @ p.weight_hr.T, c), (m, saved)


def lstm_projected_backward(p, x, state, saved, d_next):
    (d_h, d_c), (m, saved) = d_next, saved
    d_old, found = lstm_backward(p, x, state, saved, (d_h @ p.weight_hr, d_c))
    return d_old, found | {"weight_hr": d_h.T @ m}


def lstm_peephole(p, x, state):
    """The LSTM with w_ci c added in i, w_cf c in f and w_co c' in o"""
    h, c = state
    a_i, a_f, a_g, a_o = np.split(input_part(p, x) + recurrent_part(p, h), 4, axis=1)
    i, f, g = sigmoid(a_i + p.weight_ci * c), sigmoid(a_f + p.weight_cf * c), np.tanh(a_g)
    c = f * c + i * g
    o = sigmoid(a_o + p.weight_co * c)
    return (o * np.tanh(c), c), ((i, f, g, o), np.tanh(c), c)


def lstm_peephole_backward(p, x, state, saved, d_next):
    (d_h, d_c), (h, c), (gates, tanh_c, c_next) = d_next, state, saved
    _, f, _, o = gates
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c) + d_h * tanh_c * o * (1 - o) * p.weight_co
    d_a = lstm_gates_backward(gates, c, d_c, d_h * tanh_c)
    d_i, d_f, _, d_o = np.split(d_a, 4, axis=1)
    d_old, found = products_backward(p, x, h, d_a, d_a)
    found |= {
        "cell": d_c,
        "weight_ci": (d_i * c).sum(axis=0),
        "weight_cf": (d_f * c).sum(axis=0),
        "weight_co": (d_o * c_next).sum(axis=0),
    }
    return (d_old, d_c * f + d_i * p.weight_ci + d_f * p.weight_cf), found


def layer_norm(a, gain):
    """gain (a - mean) / sqrt(variance + 1e-5) of each row"""
    centred = a - a.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)
    return gain * (centred * scale), (centred * scale, scale)


def layer_norm_backward(d, gain, saved):
    """The gradients of a and of the gain."""
    normal, scale = saved
    d_normal = d * gain
    along = (d_normal * normal).mean(axis=1, keepdims=True)
    return scale * (d_normal - d_normal.mean(axis=1, keepdims=True) - normal * along), (d * normal).sum(axis=0)


def lstm_layer_norm(p, x, state):
    """c' = f c + i g, h' = o tanh(LN(c') + b_c), gates of a = LN(W_ih x) + LN(W_hh h) + b_ih + b_hh"""
    h, c = state
    normal_x, saved_x = layer_norm(x @ p.weight_ih.T, p.weight_ln_ih)
    normal_h, saved_h = layer_norm(h @ p.weight_hh.T, p.weight_ln_hh)
    i, f, g, o = gates = lstm_gates(normal_x + normal_h + p.bias_ih + p.bias_hh)
    c = f * c + i * g
    normal_c, saved_c = layer_norm(c, p.weight_ln_c)
    tanh_c = np.tanh(normal_c + p.bias_ln_c)
    return (o * tanh_c, c), ((gates, tanh_c), (saved_x, saved_h, saved_c))


def lstm_layer_norm_backward(p, x, state, saved, d_next):
    (d_h, d_c), (h, c), ((gates, tanh_c), (saved_x, saved_h, saved_c)) = d_next, state, saved
    _, f, _, o = gates
    d_normal_c = d_h * o * (1 - tanh_c * tanh_c)
    through_h, d_ln_c = layer_norm_backward(d_normal_c, p.weight_ln_c, saved_c)
    d_c = d_c + through_h
    d_a = lstm_gates_backward(gates, c, d_c, d_h * tanh_c)
    d_x, d_ln_ih = layer_norm_backward(d_a, p.weight_ln_ih, saved_x)
    d_r, d_ln_hh = layer_norm_backward(d_a, p.weight_ln_hh, saved_h)
    d_old, found = products_backward(p, x, h, d_x, d_r)
    found |= {
        "cell": d_c,
        "gates": d_a,
        "bias_ih": d_a.sum(axis=0),
        "bias_hh": d_a.sum(axis=0),
        "weight_ln_ih": d_ln_ih,
        "weight_ln_hh": d_ln_hh,
        "weight_ln_c": d_ln_c,
        "bias_ln_c": d_normal_c.sum(axis=0),
    }
    return (d_old, d_c * f), found


@dataclass(frozen=True)
class Cell:
    gates: int
    states: int  # 1: h; 2: h and c
    forward: Callable
    backward: Callable


CELLS = {
    "rnn_tanh": Cell(1, 1, *of_products(rnn_tanh, rnn_tanh_backward)),
    "rnn_relu": Cell(1, 1, *of_products(rnn_relu, rnn_relu_backward)),
    "rnn_sigmoid": Cell(1, 1, *of_products(rnn_sigmoid, rnn_sigmoid_backward)),
    "gru": Cell(3, 1, *of_products(gru, gru_backward)),
    "lstm": Cell(4, 2, lstm, lstm_backward),
    "gru_original": Cell(3, 1, gru_original, gru_original_backward),
    "lstm_projected": Cell(4, 2, lstm_projected, lstm_projected_backward),
    "lstm_peephole": Cell(4, 2, lstm_peephole, lstm_peephole_backward),
    "lstm_layer_norm": Cell(4, 2, lstm_layer_norm, lstm_layer_norm_backward),
    "gru_layer_norm": Cell(3, 1, *of_normalised_products(gru, gru_backward)),
    "rnn_tanh_layer_norm": Cell(1, 1, *of_normalised_products(rnn_tanh, rnn_tanh_backward)),
    "rnn_relu_layer_norm": Cell(1, 1, *of_normalised_products(rnn_relu, rnn_relu_backward)),
    "rnn_sigmoid_layer_norm": Cell(1, 1, *of_normalised_products(rnn_sigmoid, rnn_sigmoid_backward)),
}


NORMALISED = tuple(kind for kind in CELLS if kind.endswith("layer_norm"))


@dataclass(frozen=True)
class Schedule:
    """The order of one direction, and the rules at input timestep t of sequence b; arrays (T, B) bool."""

    order: range
    active: np.ndarray  # t is within the sequence's length
    fresh: np.ndarray  # the step starts from zero: an episode begins (reverse direction: ends) here
    last: np.ndarray  # the sequence's last step in this direction
    position: np.ndarray  # (T, B) int: the number of earlier steps of the sequence

    def stops(self, truncate):
        """True if no gradient goes back to the step before (position 0: to the initial state)."""
        if truncate is None:
            return self.fresh
        return self.fresh | (self.position % truncate == 0) & (self.position > 0)


def schedule(lengths, resets, reverse):
    T = len(resets)
    t = np.arange(T)[:, None]
    active = t < lengths
    if not reverse:
        return Schedule(range(T), active, resets, t == lengths - 1, t + 0 * lengths)
    fresh = np.zeros_like(resets)
    fresh[:-1] = resets[1:] & active[1:]
    return Schedule(range(T - 1, -1, -1), active, fresh, (t == 0) & active, lengths - 1 - t)


@dataclass(frozen=True)
class Step:
    x: np.ndarray  # (B, I), zero in the padding
    previous: tuple  # the state before the step
    state: tuple  # the state after the step
    saved: object


@dataclass(frozen=True)
class Direction:
    parameters: SimpleNamespace  # names without the suffix; weight_hh after its dropout, zeros for absent biases
    schedule: Schedule
    kept: list  # for each state and t: the argument `kept` of `zone`
    steps: list[Step]  # indexed by the input's t
    final: tuple


def of_direction(parameters, suffix):
    """The parameters of one layer and direction."""
    own = {name.removesuffix(suffix): value for name, value in parameters.items() if name.endswith(suffix)}
    return SimpleNamespace(**{name: np.zeros(len(own["weight_ih"])) for name in ("bias_ih", "bias_hh")} | own)


def select(condition, a, b):
    """`a` if the (B,) condition holds, else `b`; selected, never multiplied, because 0 * NaN is NaN."""
    return np.where(condition[:, None], a, b)


def zone(kept, old, new):
    """Zoneout: a mask selects the old state, a probability gives the expectation, None leaves the new state."""
    if kept is None:
        return new
    return kept * old + (1 - kept) * new if isinstance(kept, float) else np.where(kept, old, new)


def run(cell, p, x, initial, plan, kept, stored):
    steps, state = [None] * len(x), initial
    for t in plan.order:
        x_t = select(plan.active[t], x[t], 0)
        previous = tuple(select(plan.fresh[t], 0, s) for s in state)
        after, saved = cell.forward(p, x_t, previous)
        after = tuple(zone(k[t], old, new) for k, old, new in zip(kept, previous, after, strict=True))
        if stored is not None:
            after = tuple(s[t] for s in stored)
        state = tuple(select(plan.active[t], new, old) for new, old in zip(after, state, strict=True))
        steps[t] = Step(x_t, previous, state, saved)
    return Direction(p, plan, kept, steps, state)


def run_backward(cell, direction, d_output, d_final, d_cell, truncate, clip):
    """Gradients of the loss d_output (T, B, H), d_cell (T, B, H) and d_final (h and c): by name, one array per t."""
    plan, stops = direction.schedule, direction.schedule.stops(truncate)
    found = {}
    carried = tuple(np.zeros_like(s) for s in d_final)
    for t in reversed(plan.order):
        step, active = direction.steps[t], plan.active[t]
        kept = [k[t] for k in direction.kept]
        received, clipped = clip_jointly(carried, clip, active)
        loss = (d_output[t], d_cell[t])[: cell.states]
        total = tuple(
            select(active, a + b, 0) + select(plan.last[t], c, 0)
            for a, b, c in zip(received, loss, d_final, strict=True)
        )
        to_new = tuple(zone(k, 0, d) for k, d in zip(kept, total, strict=True))
        leaving, found[t] = cell.backward(direction.parameters, step.x, step.previous, step.saved, to_new)
        leaving = tuple(new + zone(k, d, 0) for new, k, d in zip(leaving, kept, total, strict=True))
        carried = tuple(
            select(active, select(stops[t], 0, new), old) for new, old in zip(leaving, carried, strict=True)
        )
        found[t] |= {"hidden": total[0], "clipped": clipped}
        if cell.states == 2 and kept[1] is not None:  # h saw c before its zoneout, so nothing comes through h
            found[t]["cell"] = total[-1]
    empty = ~plan.active.any(axis=0)  # without any step the final state is the initial state
    initial = tuple(select(empty, f, c) for f, c in zip(d_final, carried, strict=True))
    by_name = {name: np.stack([found[t][name] for t in range(len(found))]) for name in found[0]}
    return by_name, initial


def clip_jointly(carried, clip, active):
    """Scales each sequence's carried h and c jointly down to norm `clip` if larger; returns also which were."""
    if clip is None:
        return carried, np.zeros_like(active)
    norm = np.array([frobenius(rows) for rows in np.hstack(carried)])
    clipped = active & (norm > clip)
    scale = np.where(clipped, clip / np.where(clipped, norm, 1), 1)
    return tuple(c * scale[:, None] for c in carried), clipped


def frobenius(a):
    """The Euclidean norm of all entries, correct even if their squares would underflow."""
    largest = np.max(np.abs(a), initial=0)
    return largest * np.linalg.norm(a / largest) if largest > 0 else 0.0


@dataclass(frozen=True)
class Record:
    cell: Cell
    parameters: dict
    suffixes: list  # of the parameters, L*D
    directions: list[Direction]  # L*D
    D: int
    dropping: Callable  # (name of a mask, array): the array after that dropout; its own derivative
    output: np.ndarray  # (T, B, D*H), with a projection (T, B, D*P)
    final_state: object  # as in torch: h_n, or (h_n, c_n); each (L*D, B, H), h_n of a projection (L*D, B, P)
    hidden: np.ndarray  # (L*D, T, B, H or P); beyond a length the state stays unchanged
    cell_state: np.ndarray | None  # the same for c, (L*D, T, B, H)


@dataclass(frozen=True)
class Gradients:
    input: np.ndarray  # (T, B, I)
    parameters: dict
    initial_state: object  # as state
    hidden: np.ndarray  # (L*D, T, B, H or P) the total dL/dh_t
    cell: np.ndarray | None  # (L*D, T, B, H) the total dL/dc_t, including the path through h_t if c has no zoneout
    gates: np.ndarray  # (L*D, T, B, G*H) of W_ih x + b_ih; with layer normalisation of LN(W_ih x) + b_ih
    clipped: np.ndarray  # (L*D, T, B)
    per_step: dict  # for each parameter (T, *shape): the contribution of timestep t to its gradient

    @property
    def parameter_norms(self):
        return {name: np.array([frobenius(step) for step in steps]) for name, steps in self.per_step.items()}


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def as_state(states):
    return states[0] if len(states) == 1 else tuple(states)


def forward(
    kind,
    parameters,
    x,
    state=None,
    lengths=None,
    resets=None,
    masks=None,
    dropout=0.0,
    zoneout=0.0,
    weight_dropout=0.0,
    stored=None,
):
    """Runs all layers of `kind`, a name in CELLS; `parameters` determines the numbers of layers and directions.

    Probabilities apply only with a mask in `masks`, except zoneout's, which then is an expectation. `stored`, an array
    (L*D, T, B, H) per state, replaces the computed states: each step and each layer above starts from it, so that the
    gradients are those along another computation's trajectory.
    """
    cell, masks = CELLS[kind], masks or {}
    T, B, _ = x.shape
    L = sum(name.startswith("weight_ih") and not name.endswith("_reverse") for name in parameters)
    sides = ["", "_reverse"] if "weight_ih_l0_reverse" in parameters else [""]
    suffixes = [f"_l{layer}{side}" for layer in range(L) for side in sides]
    D = len(sides)
    widths = (parameters["weight_hh_l0"].shape[1], len(parameters["weight_hh_l0"]) // cell.gates)  # of h and c
    initial = as_tuple(state) if state is not None else [np.zeros((L * D, B, w)) for w in widths[: cell.states]]
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    resets = np.zeros((T, B), bool) if resets is None else resets
    plans = [schedule(lengths, resets, reverse) for reverse in (False, True)]
    zoneouts = zoneout if isinstance(zoneout, tuple) else (zoneout,) * cell.states

    def dropping(name, values):
        p = dropout if name.startswith("dropout") else weight_dropout
        return dropped(values, masks[name], p) if name in masks else values

    directions, y = [], x
    for layer in range(L):
        if layer > 0:
            y = dropping(f"dropout_l{layer - 1}", y)
        for d in range(D):
            suffix = suffixes[layer * D + d]
            p = of_direction(parameters, suffix)
            p.weight_hh = dropping("weight_hh" + suffix, p.weight_hh)
            kept = [
                masks.get(f"zoneout_{s}{suffix}", [float(z) if z else None] * T)
                for s, z in zip("hc", zoneouts, strict=False)
            ]
            start = tuple(s[layer * D + d] for s in initial)
            of_side = None if stored is None else tuple(s[layer * D + d] for s in stored)
            directions.append(run(cell, p, y, start, plans[d], kept, of_side))
        hidden = [np.stack([step.state[0] for step in direction.steps]) for direction in directions[-D:]]
        y = np.where(plans[0].active[:, :, None], np.concatenate(hidden, axis=2), 0)

    final = [np.stack([direction.final[s] for direction in directions]) for s in range(cell.states)]
    hidden, *cells = (
        np.stack([[step.state[s] for step in direction.steps] for direction in directions]) for s in range(cell.states)
    )
    c = cells[0] if cells else None
    return Record(cell, parameters, suffixes, directions, D, dropping, y, as_state(final), hidden, c)


def dropped(y, mask, p):
    """Dropout, which is also its own derivative: zero if the mask is true, the rest scaled up."""
    return np.where(mask, 0, y / (1 - p) if p < 1 else 0)


def backward(record, d_output=None, d_final_state=None, d_cell=None, truncate=None, clip=None):
    """All gradients, from those of output, state and cell, which have the shapes of these.

    They may be object arrays of mpmath numbers, whose exponents are unbounded; then so are all gradients.
    """
    cell, D = record.cell, record.D
    LD, _, _, width = record.hidden.shape
    d_y = np.zeros(record.output.shape) if d_output is None else d_output
    d_cell = (
        np.zeros_like(record.hidden if record.cell_state is None else record.cell_state) if d_cell is None else d_cell
    )
    d_final = as_tuple(d_final_state)
    if d_final_state is None:
        d_final = tuple(np.zeros_like(s) for s in as_tuple(record.final_state))

    found, initial = [None] * LD, [None] * LD
    for layer in reversed(range(LD // D)):
        for d in range(D):
            ld = layer * D + d
            found[ld], initial[ld] = run_backward(
                cell,
                record.directions[ld],
                d_y[:, :, d * width : (d + 1) * width],
                tuple(s[ld] for s in d_final),
                d_cell[ld],
                truncate,
                clip,
            )
        d_y = sum(found[layer * D + d]["input"] for d in range(D))
        if layer > 0:
            d_y = record.dropping(f"dropout_l{layer - 1}", d_y)

    by_name = {
        name + suffix: steps for suffix, f in zip(record.suffixes, found, strict=True) for name, steps in f.items()
    }
    per_step = {name: record.dropping(name, by_name[name]) for name in record.parameters}
    every = {name: np.stack([f[name] for f in found]) for name in ("hidden", "gates", "clipped")}
    return Gradients(
        input=d_y,
        parameters={name: steps.sum(axis=0) for name, steps in per_step.items()},
        initial_state=as_state([np.stack([i[s] for i in initial]) for s in range(cell.states)]),
        hidden=every["hidden"],
        cell=np.stack([f["cell"] for f in found]) if cell.states == 2 else None,
        gates=every["gates"],
        clipped=every["clipped"],
        per_step=per_step,
    )


# Self-attention. Parameters are named as in torch.nn.MultiheadAttention; head h has the h-th part of the features.


def seen(steps, causal=True, window=None):
    """(T, T) bool: whether step t (a row) sees step s."""
    distance = np.arange(steps)[:, None] - np.arange(steps)
    mask = distance >= 0 if causal else np.full(distance.shape, True)
    return mask if window is None else mask & (np.abs(distance) < window)


def attend(q, k, v, mask):
    """softmax(q k^T / sqrt(E)) v under the mask, for one head and sequence; and the probabilities."""
    scores = np.where(mask, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ v, weights


def attend_backward(q, k, v, weights, d_y):
    d_weights = d_y @ v.T
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True)) / np.sqrt(q.shape[1])
    return d_scores @ k, d_scores.T @ q, weights.T @ d_y


def self_attention(parameters, x, d_output, num_heads, causal=True, window=None, lengths=None):
    """The output (T, B, F), zero beyond the lengths; and for d_output, the gradients of x and of each parameter."""
    w_in, b_in, w_out, b_out = parameters.values()
    grads = {name: np.zeros(array.shape) for name, array in parameters.items()}
    output, d_input = np.zeros(x.shape), np.zeros(x.shape)
    for b, steps in enumerate([x.shape[0]] * x.shape[1] if lengths is None else lengths):
        if steps == 0:
            continue
        own, d_y = x[:steps, b], d_output[:steps, b]
        qkv = np.split(own @ w_in.T + b_in, 3, axis=1)
        heads = list(zip(*(np.split(part, num_heads, axis=1) for part in qkv), strict=True))
        attended = [attend(*head, seen(steps, causal, window)) for head in heads]
        y = np.concatenate([values for values, _ in attended], axis=1)
        output[:steps, b] = y @ w_out.T + b_out
        d_values = np.split(d_y @ w_out, num_heads, axis=1)
        d_heads = [
            attend_backward(*head, weights, d) for head, (_, weights), d in zip(heads, attended, d_values, strict=True)
        ]
        d_qkv = np.concatenate([part for parts in zip(*d_heads, strict=True) for part in parts], axis=1)
        d_input[:steps, b] = d_qkv @ w_in
        for name, gradient in zip(grads, (d_qkv.T @ own, d_qkv.sum(0), d_y.T @ y, d_y.sum(0)), strict=True):
            grads[name] += gradient
    return output, d_input, grads


# Layers without time.


def add_layer_norm(x, branch, weight, bias, scale, eps):
    """s = x + scale branch; y = n weight + bias, n = (s - <s>) / sqrt(<(s - <s>)^2> + eps), <> the mean of a row"""
    s = x + scale * branch
    d = s - s.mean(axis=-1, keepdims=True)
    rstd = (np.mean(d * d, axis=-1, keepdims=True) + eps) ** -0.5
    return s, d * rstd * weight + bias, (d * rstd, rstd)


def add_layer_norm_backward(d_sum, d_y, saved, weight, scale):
    """d_x, d_branch, d_weight, d_bias"""
    (n, rstd), rows = saved, tuple(range(d_y.ndim - 1))
    g = d_y * weight
    d_x = d_sum + rstd * (g - g.mean(axis=-1, keepdims=True) - n * np.mean(g * n, axis=-1, keepdims=True))
    return d_x, scale * d_x, np.sum(d_y * n, axis=rows), np.sum(d_y, axis=rows)
