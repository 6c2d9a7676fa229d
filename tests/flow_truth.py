"""The expected values of `gradient_flow`: log norms of the reference's gradients, along the library's trajectory.

If gradients leave the range of floats, the reference's backward gets mpmath numbers: the same equations with unbounded
exponents.
"""

from __future__ import annotations

from types import SimpleNamespace

import mpmath
import numpy as np

import reference
import throughtime as tt
from comparison import magnification, rounding_bound, wide
from problems import STATES

DIGITS = 30  # of mpmath's numbers: 14 more than float64, so that their rounding is negligible
LEAST = -(2**40)  # below every exponent
EPS = np.finfo(np.float64).eps


def exact(values):
    """The same numbers in mpmath's type, as an object array."""
    return np.frompyfunc(mpmath.mpf, 1, 1)(wide(values))


def along(problem, layer, options=None, x=None):
    """The reference's record in inference, with every step at the states that the library's forward computed."""
    x = problem.x if x is None else x
    tape = layer.forward(x, **(options or {}), training=False)
    stored = (tape.hidden, tape.cell) if STATES[problem.kind] == 2 else (tape.hidden,)
    given = {**(options or {}), "stored": stored}
    return reference.forward(
        problem.kind, wide(dict(layer.parameters)), wide(x), **wide(given), zoneout=problem.zoneout
    )


def on_last(problem, lengths=None):
    """The gradient meant by `d_output="last"`: ones on the last step that each direction takes in each sequence."""
    lengths = np.full(problem.B, problem.T) if lengths is None else np.asarray(lengths)
    t = np.arange(problem.T)[:, None]
    last = [t == lengths - 1, (t == 0) & (lengths > 0)][: problem.D]
    return np.repeat(np.stack(last, axis=2), problem.width, axis=2).astype(problem.dtype)


def gradients(record, d_output):
    """The reference's backward of this d_output alone, in floats or mpmath's numbers."""
    with mpmath.workdps(DIGITS):
        return reference.backward(record, d_output)


def parts(values):
    """Mantissas in [1/2, 1), float64, and exponents, int64, of floats or mpmath's numbers."""
    values = np.asarray(values)
    mantissas, exponents = (np.frompyfunc(mpmath.frexp, 1, 2) if values.dtype == object else np.frexp)(values)
    return np.asarray(mantissas, np.float64), np.asarray(exponents, np.int64)


def norm_of_parts(mantissas, exponents, axis):
    """log10 of the Euclidean norm over these axes; -inf of zeros."""
    top = np.max(np.where(mantissas == 0, LEAST, exponents), axis=axis, keepdims=True, initial=LEAST)
    scaled = np.ldexp(mantissas, np.maximum(np.where(mantissas == 0, 0, exponents - top), -2000))
    with np.errstate(divide="ignore"):
        return np.log10((scaled * scaled).sum(axis=axis)) / 2 + np.squeeze(top, axis) * np.log10(2)


def log10_norm(values, axis):
    """log10 of the Euclidean norm over these axes."""
    return norm_of_parts(*parts(values), axis)


def log10_of_squares(logs, axis):
    """log10 of the Euclidean norm over these axes of numbers given by their log10."""
    largest = np.max(logs, axis=axis, keepdims=True, initial=-np.inf)
    ratio = 10 ** (logs - np.where(np.isneginf(largest), 0, largest))
    with np.errstate(divide="ignore"):
        return largest.squeeze(axis) + np.log10((ratio * ratio).sum(axis=axis)) / 2


def norms(hidden):
    """The norms in a flow, from dL/dh (L*D, T, B, H)."""
    numbers = parts(hidden)
    return SimpleNamespace(
        log10_norm=norm_of_parts(*numbers, (2, 3)),
        log10_norm_per_sequence=norm_of_parts(*numbers, 3),
        log10_unit=norm_of_parts(*numbers, 2),
    )


def reach(logs, D):
    """From norms (L*D, T, B): for each entry, the largest among the norms that its gradient passed through.

    These are at later steps of its own layer and direction, and at the same steps of the layer above. A step does not
    amplify (spectral norm around 1), so the error of an entry is relative to this.
    """
    largest = logs.copy()
    for ld in reversed(range(len(logs))):
        above = ld // D * D + D
        if above < len(logs):
            largest[ld] = np.maximum(largest[ld], largest[above : above + D].max(axis=0))
        back = largest[ld] if ld % D else largest[ld][::-1]
        np.maximum.accumulate(back, axis=0, out=back)
    return largest


def assert_logs_close(ours, expected, bound, scale=None, what=""):
    """Numbers given by log10 differ by at most `bound` times those of `scale` (None: `expected` itself).

    Without an incoming gradient both are -inf. A logarithm e is the sum of that of a power of two and that of the rest,
    each rounded by up to |e| eps / 2, as is the sum, and so is the expected one: times ln 10, this is below 5 |e| eps.
    """
    assert ours.dtype == np.float64, what
    assert ours.shape == expected.shape, f"{what}: shape {ours.shape}, expected {expected.shape}"
    nothing = np.isneginf(expected)
    assert np.all(np.isneginf(ours[nothing])), f"{what}: not -inf where no gradient arrives"
    scale = np.where(nothing, 0, expected if scale is None else scale)
    with np.errstate(over="ignore"):
        error = np.where(nothing, 0, np.abs(10 ** (ours - scale) - 10 ** (expected - scale)))
    allowed = bound + 5 * EPS * (1 + np.abs(np.where(nothing, 0, expected)))
    if not np.all(error <= allowed):
        where = np.unravel_index(np.argmax(np.nan_to_num(error / allowed, nan=np.inf)), error.shape)
        raise AssertionError(
            f"{what}{[int(i) for i in where]} is {ours[where]}, expected {expected[where]}: off by {error[where]:.3g}, "
            f"allowed {np.broadcast_to(allowed, error.shape)[where]:.3g} times 10^{scale[where]:.6g}"
        )


def assert_flow_close(flow, hidden, bound, D=1):
    """All three norms are off by at most `bound` times the gradients that their sequences' gradients passed through."""
    expected = norms(hidden)
    through = reach(expected.log10_norm_per_sequence, D)
    whole = log10_of_squares(through, 2)
    scales = {"log10_norm": whole, "log10_norm_per_sequence": through, "log10_unit": whole[:, :, None]}
    for name, scale in scales.items():
        own = getattr(expected, name)
        assert_logs_close(getattr(flow, name), own, bound, np.broadcast_to(scale, own.shape), name)


def check_flow(problem, d_output="last", memory="full", windows=1, **options):
    """The library's flow is that of the reference, whose gradients stay within float64's range here.

    A window of recomputed states is rounded twice: `windows=2` doubles the bound.
    """
    layer = problem.layer()
    flow = tt.gradient_flow(layer, problem.x, d_output, memory=memory, **options)
    record = along(problem, layer, options)
    incoming = on_last(problem, options.get("lengths")) if isinstance(d_output, str) else d_output
    bound = windows * rounding_bound(problem.dtype, problem.terms) * magnification(record)
    assert_flow_close(flow, gradients(record, wide(incoming)).hidden, bound, problem.D)
    return flow


# for one layer, direction and sequence


def jacobians(record):
    """d state_t / d state_{t-1} for every step, (T, N, N), one row per unit of state_t; a state is h, or h and c."""
    (direction,) = record.directions
    widths = [s.shape[1] for s in direction.final]
    N = sum(widths)
    ones = np.split(np.eye(N), np.cumsum(widths)[:-1], axis=1)

    def of(step):
        x, *previous = (np.repeat(rows, N, axis=0) for rows in (step.x, *step.previous))
        _, saved = record.cell.forward(direction.parameters, x, tuple(previous))
        rows, _ = record.cell.backward(direction.parameters, x, tuple(previous), saved, tuple(ones))
        return np.hstack(rows)

    return np.stack([of(step) for step in direction.steps])


def errors_left(record):
    """(T,): for a loss of ones on the last h, the error at t relative to dL/dh_t, if every step on the way makes an
    error as large as its Jacobian times the incoming gradient, in a random direction.

    The error of step s arrives at t through the Jacobians between, whose product P grows or vanishes as the gradient
    does. It keeps |P_h|_F / sqrt(N) of a random vector of N components, and the squares of all steps' errors add up.
    """
    steps, width = jacobians(record), record.hidden.shape[3]
    T, N, _ = steps.shape
    gradient, size = np.repeat([1.0, 0.0], [width, N - width]) / np.sqrt(width), 0.0  # times 10^size
    products, logs, left = np.empty((0, N, N)), np.empty(0), np.zeros(T)
    for t in reversed(range(T - 1)):
        back = steps[t + 1].T
        made = size + np.log10(np.linalg.norm(back, 2)) - np.log10(N) / 2
        products = np.concatenate([back @ products, np.eye(N)[None]])
        sizes = np.linalg.norm(products, axis=(1, 2))
        products, logs = products / sizes[:, None, None], np.append(logs, made) + np.log10(sizes)
        gradient = back @ gradient
        size += np.log10(np.linalg.norm(gradient))
        gradient = gradient / np.linalg.norm(gradient)
        errors = logs + np.log10(np.linalg.norm(products[:, :width], axis=(1, 2)))
        left[t] = 10 ** (log10_of_squares(errors, 0) - size) / np.linalg.norm(gradient[:width])
    return left
