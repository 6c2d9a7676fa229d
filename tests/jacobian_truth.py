"""Jacobians of the joint state from the reference: what `tt.jacobians` and all that builds on it are compared with."""

from __future__ import annotations

import numpy as np

import reference
from comparison import wide
from problems import STATES, reference_forward


def jacobians(problem, states):
    """d state_t / d state_{t-1} (T, B, N, N), by complex step through the reference, from `states`: h and c before each
    step, (T, L, B, H).
    """
    return np.array([[_of_step(problem, states, t, b) for b in range(problem.B)] for t in range(problem.T)])


def _of_step(problem, states, t, b):
    before = [array[t, :, b] for array in states]
    sizes = [array.size for array in before]
    rows = sum(sizes)
    unit = np.split(1e-30j * np.eye(rows), np.cumsum(sizes)[:-1], axis=1)
    start = tuple(
        array[:, None] + part.reshape(rows, *array.shape).swapaxes(0, 1)
        for array, part in zip(before, unit, strict=True)
    )
    x = np.repeat(wide(problem.x[t : t + 1, b : b + 1]), rows, axis=1)
    record = reference.forward(
        problem.kind, wide(problem.parameters), x, reference.as_state(start), zoneout=problem.zoneout
    )
    final = [array.swapaxes(0, 1).reshape(rows, -1).imag for array in reference.as_tuple(record.final_state)]
    return np.concatenate(final, axis=1).T / 1e-30


def reference_states(problem):
    """The states before each step, (T, L, B, H) for h and for c."""
    directions = reference_forward(problem, {"state": problem.state}).directions
    return [
        np.array([[direction.steps[t].previous[s] for direction in directions] for t in range(problem.T)])
        for s in range(STATES[problem.kind])
    ]


def own_states(problem, layer):
    """The states before each step of a layer's own run, as `reference_states`, in float64."""
    tape = layer.forward(problem.x, problem.state, training=False, memory="states")
    after = [tape.hidden, *([tape.cell] if STATES[problem.kind] == 2 else [])]  # (L, T, B, H)
    return [
        np.concatenate([start[:, None], array[:, :-1]], axis=1).swapaxes(0, 1).astype(np.float64)
        for start, array in zip(reference.as_tuple(problem.state), after, strict=True)
    ]
