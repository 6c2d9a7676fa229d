"""Bounds on rounding errors, and comparisons within them."""

from __future__ import annotations

import numpy as np

import reference


def rounding_bound(dtype, terms):
    """The relative error that `terms` successive roundings leave.

    Roundings behave as independent, so their sum grows with the square root of their number: it is below lambda
    sqrt(terms) u, u = eps / 2, except with probability 2 exp(-lambda^2 / 2) (Higham and Mary 2019), which is 4e-22 for
    lambda = 10. A step does not amplify incoming errors (spectral norm around 1), so there is no other factor.
    """
    return 10 * np.sqrt(terms) * np.finfo(dtype).eps / 2


def scales(record):
    """The largest 1/std by which a layer-normalised cell multiplied W_ih x, W_hh h and, in an LSTM, c.

    Padding does not count: its zeros have a 1/std of 316.
    """
    norms = [
        [scale[active] for _, scale in step.saved[1]]
        for direction in record.directions
        for step, active in zip(direction.steps, direction.schedule.active, strict=True)
    ]
    return [np.max([np.max(scale, initial=0) for scale in of]) for of in zip(*norms, strict=True)]


def magnification(record):
    """The factor by which layer normalisation magnifies an error: the largest 1/std of values that may be nearly equal
    in all units, so that the error is large relative to their differences. This concerns c; the size of the 4H values
    of W_ih x and W_hh h in an LSTM cancels, but an RNN has only H of them, and a GRU 3H."""
    kind = next(kind for kind, cell in reference.CELLS.items() if cell is record.cell)
    if kind not in reference.NORMALISED:
        return 1
    return max(1, *(scales(record)[2:] if kind.startswith("lstm") else scales(record)))


def wide(values):
    """The same values in float64, for arrays, tuples and dicts."""
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


def assert_norms_close(ours, expected, problem, found, bound, record):
    """Checks norms from Gram matrices. <d d^T, x x^T> may cancel, so the error of the square, summed in float64, is
    relative to |d|^2 |x|^2 (Frobenius norms of the step), and that of its root is this error over the root. If layer
    normalisation cancels a gradient, the rounding errors of the incoming one remain."""
    initial, *_ = reference.as_tuple(problem.state)
    rows = [problem.x, initial, *np.moveaxis(found["tape.hidden"], 1, 0)]
    delta, ones = np.linalg.norm(found["gates"]), problem.B
    if problem.kind == "lstm_peephole":
        rows += [problem.state[1], *np.moveaxis(found["tape.cell"], 1, 0)]
    if problem.kind == "lstm_projected":
        delta, ones = max(delta, np.linalg.norm(found["hidden"])), problem.B * problem.H  # o tanh(c) is below 1
    normalised = problem.kind in reference.NORMALISED
    if normalised:  # a normalised row has norm sqrt(G H)
        delta, ones = delta * max(1, *scales(record)), problem.B * record.cell.gates * problem.H
    operand = max(np.linalg.norm(row) for row in rows) * problem.D + np.sqrt(ones)
    exact = rounding_bound("float64", problem.terms) * (delta * operand) ** 2
    left = bound * np.max(np.abs(found["hidden"]), initial=0) * operand if normalised else 0
    assert set(ours) == set(expected)
    for name, norms in expected.items():
        allowed = bound * np.max(norms) + left + np.minimum(exact / np.maximum(norms, 1e-300), np.sqrt(exact))
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
