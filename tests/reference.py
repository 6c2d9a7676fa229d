"""The specification: RNN, GRU and LSTM over time and their gradients, in plain NumPy, step after step.

Equations, parameter names and gate order are torch's. Everything is float64, or complex128 for the complex
step: nothing that is to be differentiated takes an absolute value, a conjugate or a maximum. Arrays are
time-major and batched, sizes `T B I H G L D` as in the library; an axis L*D is in the order of torch's `h_n`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A cell is its equation and its derivative.
# forward: x = W_ih x + b_ih and r = W_hh h + b_hh, both (B, G*H); state (h,) or (h, c), each (B, H).
#   Gives the next state, and what to save.
# backward: d_next is the gradient arriving at the next state. Gives its total, d_x, d_r, and the gradient
#   that reaches the old state elementwise; what reaches it through W_hh is the loop's business.


def sigmoid(a):
    with np.errstate(over="ignore"):  # exp(-a) = inf gives 0, as it should
        return 1 / (1 + np.exp(-a))


def rnn_tanh(x, r, state):
    """h' = tanh(x + r)"""
    h = np.tanh(x + r)
    return (h,), h


def rnn_tanh_backward(h, state, d_next):
    (d_h,) = d_next
    d_a = d_h * (1 - h * h)
    return d_next, d_a, d_a, (0.0,)


def rnn_relu(x, r, state):
    """h' = relu(x + r), chosen by the real part"""
    positive = np.real(x + r) > 0
    return (np.where(positive, x + r, 0),), positive


def rnn_relu_backward(positive, state, d_next):
    (d_h,) = d_next
    d_a = np.where(positive, d_h, 0)
    return d_next, d_a, d_a, (0.0,)


def gru(x, r, state):
    """h' = (1 - z) n + z h, n = tanh(x_n + r r_n), reset and update gate r, z = sigmoid(x + r)"""
    (h,) = state
    x_r, x_z, x_n = np.split(x, 3, axis=1)
    r_r, r_z, r_n = np.split(r, 3, axis=1)
    reset, z = sigmoid(x_r + r_r), sigmoid(x_z + r_z)
    n = np.tanh(x_n + reset * r_n)
    return ((1 - z) * n + z * h,), (reset, z, n, r_n)


def gru_backward(saved, state, d_next):
    (d_h,), (h,), (reset, z, n, r_n) = d_next, state, saved
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * z * (1 - z)
    d_r = d_n * r_n * reset * (1 - reset)
    return d_next, np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, d_n * reset]), (d_h * z,)


def lstm(x, r, state):
    """c' = f c + i g, h' = o tanh(c'), i f o = sigmoid(x + r), g = tanh(x_g + r_g)"""
    _, c = state
    i, f, g, o = np.split(x + r, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    return (o * np.tanh(c), c), (i, f, g, o, np.tanh(c))


def lstm_backward(saved, state, d_next):
    (d_h, d_c), (_, c), (i, f, g, o, tanh_c) = d_next, state, saved
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i = d_c * g * i * (1 - i)
    d_f = d_c * c * f * (1 - f)
    d_g = d_c * i * (1 - g * g)
    d_o = d_h * tanh_c * o * (1 - o)
    d_a = np.hstack([d_i, d_f, d_g, d_o])
    return (d_h, d_c), d_a, d_a, (0.0, d_c * f)


@dataclass(frozen=True)
class Cell:
    states: int  # 1: h; 2: h and c
    forward: Callable
    backward: Callable


CELLS = {
    "rnn_tanh": Cell(1, rnn_tanh, rnn_tanh_backward),
    "rnn_relu": Cell(1, rnn_relu, rnn_relu_backward),
    "gru": Cell(1, gru, gru_backward),
    "lstm": Cell(2, lstm, lstm_backward),
}


@dataclass(frozen=True)
class Schedule:
    """The order of one direction, and what happens at input timestep t of sequence b; arrays (T, B) bool."""

    order: range
    active: np.ndarray  # t lies within the sequence's length
    fresh: np.ndarray  # the step starts from zero: an episode begins (reverse direction: ends) here
    last: np.ndarray  # the sequence's last step in this direction
    position: np.ndarray  # (T, B) int: how many steps of the sequence came before

    def stops(self, truncate):
        """Where no gradient goes back to the step before (position 0: to the initial state)."""
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
    previous: tuple  # the state it started from, each (B, H)
    state: tuple  # the state after it
    saved: object


@dataclass(frozen=True)
class Direction:
    suffix: str
    schedule: Schedule
    steps: list[Step]  # indexed by the input's t
    final: tuple


def select(condition, a, b):
    """`a` where the (B,) condition holds, else `b`: never a product, as 0 * NaN is NaN."""
    return np.where(condition[:, None], a, b)


def run(cell, parameters, suffix, x, initial, plan):
    weight_ih, weight_hh = parameters["weight_ih" + suffix], parameters["weight_hh" + suffix]
    bias_ih, bias_hh = parameters.get("bias_ih" + suffix, 0), parameters.get("bias_hh" + suffix, 0)
    steps, state = [None] * len(x), initial
    for t in plan.order:
        x_t = select(plan.active[t], x[t], 0)
        previous = tuple(select(plan.fresh[t], 0, s) for s in state)
        r_t = previous[0] @ weight_hh.T + bias_hh
        after, saved = cell.forward(x_t @ weight_ih.T + bias_ih, r_t, previous)
        state = tuple(select(plan.active[t], new, old) for new, old in zip(after, state, strict=True))
        steps[t] = Step(x_t, previous, state, saved)
    return Direction(suffix, plan, steps, state)


def run_backward(cell, parameters, direction, d_output, d_final, d_cell, truncate, clip):
    """Of the loss d_output, d_cell (T, B, H) and d_final (h and c, each (B, H)): by name, one array per t."""
    weight_ih = parameters["weight_ih" + direction.suffix]
    weight_hh = parameters["weight_hh" + direction.suffix]
    plan, stops = direction.schedule, direction.schedule.stops(truncate)
    found = {}
    carried = tuple(np.zeros_like(s) for s in d_final)
    for t in reversed(plan.order):
        step, active = direction.steps[t], plan.active[t]
        received, clipped = clip_jointly(carried, clip, active)
        loss = (d_output[t], d_cell[t])[: cell.states]
        arriving = tuple(
            select(active, a + b, 0) + select(plan.last[t], c, 0)
            for a, b, c in zip(received, loss, d_final, strict=True)
        )
        total, d_x, d_r, elementwise = cell.backward(step.saved, step.previous, arriving)
        leaving = (elementwise[0] + d_r @ weight_hh, *elementwise[1:])
        carried = tuple(
            select(active, select(stops[t], 0, new), old) for new, old in zip(leaving, carried, strict=True)
        )
        found[t] = {
            "hidden": total[0],
            "cell": total[-1],
            "gates": d_x,
            "clipped": clipped,
            "input": d_x @ weight_ih,
            "weight_ih": d_x.T @ step.x,
            "weight_hh": d_r.T @ step.previous[0],
            "bias_ih": d_x.sum(axis=0),
            "bias_hh": d_r.sum(axis=0),
        }
    empty = ~plan.active.any(axis=0)  # of no steps at all, the final state is the initial state
    initial = tuple(select(empty, f, c) for f, c in zip(d_final, carried, strict=True))
    by_name = {name: np.stack([found[t][name] for t in range(len(found))]) for name in found[0]}
    return by_name, initial


def clip_jointly(carried, clip, active):
    """Each sequence's carried h and c, jointly scaled down to norm `clip` where larger; where that was."""
    if clip is None:
        return carried, np.zeros_like(active)
    norm = np.array([frobenius(rows) for rows in np.hstack(carried)])
    clipped = active & (norm > clip)
    scale = np.where(clipped, clip / np.where(clipped, norm, 1), 1)
    return tuple(c * scale[:, None] for c in carried), clipped


def frobenius(a):
    """The Euclidean norm of all entries, right also where their squares would underflow."""
    largest = np.max(np.abs(a), initial=0)
    return largest * np.linalg.norm(a / largest) if largest > 0 else 0.0


@dataclass(frozen=True)
class Record:
    cell: Cell
    parameters: dict
    directions: list[Direction]  # L*D
    D: int
    masks: list  # after each layer but the last: (T, B, D*H), true where dropped; or None
    dropout: float
    output: np.ndarray  # (T, B, D*H)
    final_state: object  # as in torch: h_n, or (h_n, c_n); each (L*D, B, H)
    hidden: np.ndarray  # (L*D, T, B, H); beyond a length the state stands still
    cell_state: np.ndarray | None  # the same for c


@dataclass(frozen=True)
class Gradients:
    input: np.ndarray  # (T, B, I)
    parameters: dict
    initial_state: object  # as state
    hidden: np.ndarray  # (L*D, T, B, H) the total dL/dh_t
    cell: np.ndarray | None  # (L*D, T, B, H) the total dL/dc_t, the path through h_t included
    gates: np.ndarray  # (L*D, T, B, G*H) of W_ih x + b_ih
    clipped: np.ndarray  # (L*D, T, B)
    per_step: dict  # for each parameter (T, *shape): what timestep t adds to its gradient

    @property
    def parameter_norms(self):
        return {name: np.array([frobenius(step) for step in steps]) for name, steps in self.per_step.items()}


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def as_state(states):
    return states[0] if len(states) == 1 else tuple(states)


def forward(kind, parameters, x, state=None, lengths=None, resets=None, masks=None, dropout=0.0):
    """Run all layers of `kind`, a name in CELLS; how many there are, and directions, `parameters` shows."""
    cell = CELLS[kind]
    T, B, _ = x.shape
    H = parameters["weight_hh_l0"].shape[1]
    L = sum(name.startswith("weight_ih") and not name.endswith("_reverse") for name in parameters)
    suffixes = ["", "_reverse"] if "weight_ih_l0_reverse" in parameters else [""]
    D = len(suffixes)
    initial = as_tuple(state) if state is not None else (np.zeros((L * D, B, H)),) * cell.states
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    resets = np.zeros((T, B), bool) if resets is None else resets
    plans = [schedule(lengths, resets, reverse) for reverse in (False, True)]
    masks = [(masks or {}).get(f"dropout_l{layer}") for layer in range(L - 1)]

    directions, y = [], x
    for layer in range(L):
        if layer > 0 and masks[layer - 1] is not None:
            y = dropped(y, masks[layer - 1], dropout)
        for d, suffix in enumerate(suffixes):
            start = tuple(s[layer * D + d] for s in initial)
            directions.append(run(cell, parameters, f"_l{layer}{suffix}", y, start, plans[d]))
        hidden = [np.stack([step.state[0] for step in direction.steps]) for direction in directions[-D:]]
        y = np.where(plans[0].active[:, :, None], np.concatenate(hidden, axis=2), 0)

    final = [np.stack([direction.final[s] for direction in directions]) for s in range(cell.states)]
    hidden, *cells = (
        np.stack([[step.state[s] for step in direction.steps] for direction in directions]) for s in range(cell.states)
    )
    c = cells[0] if cells else None
    return Record(cell, parameters, directions, D, masks, dropout, y, as_state(final), hidden, c)


def dropped(y, mask, p):
    """Dropout, and its own derivative: zero where the mask is true, the rest scaled up."""
    return np.where(mask, 0, y / (1 - p) if p < 1 else 0)


def backward(record, d_output=None, d_final_state=None, d_cell=None, truncate=None, clip=None):
    """All gradients, of the loss whose gradients come in; these have the shapes of output, state and cell."""
    cell, D = record.cell, record.D
    LD, _, _, H = record.hidden.shape
    d_y = np.zeros(record.output.shape) if d_output is None else d_output
    d_cell = np.zeros(record.hidden.shape) if d_cell is None else d_cell
    d_final = as_tuple(d_final_state)
    if d_final_state is None:
        d_final = (np.zeros((LD, *record.hidden.shape[2:])),) * cell.states

    found, initial = [None] * LD, [None] * LD
    for layer in reversed(range(LD // D)):
        for d in range(D):
            ld = layer * D + d
            found[ld], initial[ld] = run_backward(
                cell,
                record.parameters,
                record.directions[ld],
                d_y[:, :, d * H : (d + 1) * H],
                tuple(s[ld] for s in d_final),
                d_cell[ld],
                truncate,
                clip,
            )
        d_y = sum(found[layer * D + d]["input"] for d in range(D))
        if layer > 0 and record.masks[layer - 1] is not None:
            d_y = dropped(d_y, record.masks[layer - 1], record.dropout)

    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names = {k + record.directions[ld].suffix: (ld, k) for ld in range(LD) for k in kinds}
    per_step = {name: found[names[name][0]][names[name][1]] for name in record.parameters}
    every = {name: np.stack([f[name] for f in found]) for name in ("hidden", "cell", "gates", "clipped")}
    return Gradients(
        input=d_y,
        parameters={name: steps.sum(axis=0) for name, steps in per_step.items()},
        initial_state=as_state([np.stack([i[s] for i in initial]) for s in range(cell.states)]),
        hidden=every["hidden"],
        cell=every["cell"] if cell.states == 2 else None,
        gates=every["gates"],
        clipped=every["clipped"],
        per_step=per_step,
    )


# Outside of time.


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
