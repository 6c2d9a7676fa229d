"""Products of many matrices, of any range: their Lyapunov exponents and singular values, as logarithms."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .._arguments import Array

# Nats. A window's first singular value is exp(piece + margin) = 3e3 times the last that is taken from it, and so is its
# rounding error. Couplings c beyond the margin count for c^2 exp(-2 (sweeps + 1) margin) = 5e-25 c^2; with 3 sweeps,
# random products were off by up to 1e-10, with 6 or more by the same 2e-13.
_PIECE, _MARGIN, _SWEEPS = 4.0, 4.0, 6


def lyapunov_exponents(matrices: Iterable[Array], k: int, warmup: int = 0) -> Array:
    """The k largest exponents of the product of square `matrices`, the first factor first, by the QR method.

    k orthonormal columns are multiplied by one matrix after the other and made orthonormal again; the logarithms of the
    diagonals of R, summed from matrix number `warmup` on and divided by their number, are the exponents (Benettin et
    al. 1980, Shimada and Nagashima 1979). The columns start at random, the same for every k: a unit vector may be
    invariant, or die at once, and would show its own exponent instead of the largest.

    Returns
    -------
    exponents : (k,) float64 array
        Largest first; minus infinity for directions that died, be it in the warm-up.
    """
    sums, live, count = np.zeros(k), np.arange(k), -warmup
    q: Array | None = None
    for matrix in matrices:
        if q is None:
            q = np.linalg.qr(np.random.default_rng(0).standard_normal((k, len(matrix))).T)[0]
        q, r, order = _times(matrix, q)
        live = live[order[: len(r)]]
        if count >= 0:
            sums[live] += np.log(np.abs(np.diag(r)))
        count += 1
    exponents = np.full(k, -np.inf)
    exponents[live] = sums[live] / count
    return np.sort(exponents)[::-1]


def log_singular_values(matrices: Iterable[Array], size: int) -> Array:
    """Natural logarithms of the singular values of the product of (size, size) `matrices`, the first factor first.

    The product is kept as ``q @ diag(exp(scale)) @ t``, where the rows of t have norm 1 and are far from dependent
    (Loh et al. 1989; columns sorted beforehand instead of pivoting, Tomas et al. 2012): its range is all in `scale`.

    Returns
    -------
    logarithms : (size,) float64 array
        Largest first; minus infinity for directions that died.
    """
    q, scale, t = np.eye(size), np.zeros(size), np.eye(size)
    for matrix in matrices:
        q, r, order = _times(matrix, q, scale)
        scale, t = _unit_rows(r, scale[order], t[order])
    logarithms = np.full(size, -np.inf)
    logarithms[: len(scale)] = _graded_singular_values(scale, t)
    return logarithms


def _times(matrix: Array, q: Array, scale: Array | None = None) -> tuple[Array, Array, Array]:
    """QR factors of those columns of ``matrix @ q`` that are independent beyond rounding errors; with `scale`, the
    columns that are largest after multiplication by ``exp(scale)`` first.

    Rows may differ in size by orders of magnitude, as those of saturated units do. They are judged as rows of equal
    size, and factorised with the largest first, which keeps errors relative to each row (Cox and Higham 1998): of
    products of 20 such matrices over 8 decades, singular values are off by 6e-13 so, by 8e-8 in any order.

    Returns
    -------
    q : (N, rank) array
    r : (rank, k) array
        ``matrix @ q_before[:, order]`` is ``q @ r`` up to rounding.
    order : (k,) array
        The independent columns, then those in their span.
    """
    sizes = np.abs(matrix).sum(axis=1)
    z = (matrix / np.where(sizes, sizes, 1)[:, None]) @ q
    order = np.arange(z.shape[1])
    if scale is not None:
        order = np.argsort(-(scale + _log(np.abs(sizes[:, None] * z).max(axis=0, initial=0))), kind="stable")
    # Some N roundings meet in an entry; as good as independent, they are below 10 sqrt(N) u relative to the size of a
    # column (Higham and Mary 2019), and that is at most sqrt(N). Measured: 2 eps sqrt(N), N from 2 to 512.
    error = 5 * len(z) * np.finfo(np.float64).eps
    order, rank = _independent(z / error, order)
    rows = np.argsort(-sizes, kind="stable")
    sorted_q, r = np.linalg.qr(sizes[rows, None] * z[np.ix_(rows, order)])
    new = np.empty((len(z), rank))
    new[rows] = sorted_q[:, :rank]
    return new, r[:rank], order


def _independent(z: Array, order: Array) -> tuple[Array, int]:
    """`order` (k,) of the columns of z (N, k), changed so that those that are independent of the ones before them,
    beyond errors of norm 1, come first; and their number.
    """
    rank = len(order)
    while True:
        first, outside = _first_dependent(_triangle(z[:, order[:rank]]))
        if first == rank:
            return order, rank
        # A dead column leaves an arbitrary direction behind in QR; what comes after it is judged anew without.
        alive = first + int(np.argmax(outside)) if outside.any() else rank
        order = np.concatenate([order[:first], order[alive:rank], order[first:alive], order[rank:]])
        rank -= alive - first


def _first_dependent(r: Array) -> tuple[int, Array]:
    """Of columns with errors of norm 1, in triangular r: the first that lies in the span of those before it, and which
    from there on lie outside that span.

    Column j, ``r[:first, :first] @ c`` and a rest, is in the span if the rest is not larger than the error of that
    combination, ``1 + sum(|c|)``. Of column j = first the sum is ``|r[j, j]|`` times that of column j of r's inverse.
    """
    rank = len(r)
    diagonal = np.abs(np.diag(r))
    if np.all(diagonal > 1e6):  # spares the inverse: sum(|c|) is 1e3 at most where columns are not contrived
        return rank, np.zeros(0, bool)
    surely = int(np.argmax(diagonal <= 1)) if np.any(diagonal <= 1) else rank
    inverse = np.linalg.inv(r[:surely, :surely])
    dependent = np.abs(inverse).sum(axis=0) >= 1
    first = int(np.argmax(dependent)) if dependent.any() else surely
    error = 1 + np.abs(inverse[:first, :first] @ r[:first, first:]).sum(axis=0)
    outside = np.abs(r[first:, first:]).max(axis=0, initial=0) > error
    outside[:1] = False
    return first, outside


def _unit_rows(a: Array, scale: Array, b: Array) -> tuple[Array, Array]:
    """``a @ diag(exp(scale)) @ b`` as ``diag(exp(new)) @ rows``, rows of norm 1."""
    logarithms = _log(np.abs(a)) + scale
    largest = logarithms.max(axis=1, initial=-np.inf)
    rows = (np.sign(a) * np.exp(logarithms - largest[:, None])) @ b
    norms = np.linalg.norm(rows, axis=1)
    return largest + np.log(norms), rows / norms[:, None]


def _graded_singular_values(scale: Array, rows: Array) -> Array:
    """Logarithms of the singular values of ``diag(exp(scale)) @ rows``, largest first.

    Each sweep factorises the transposed matrix, graded along its columns, and leaves a triangular one whose couplings
    over a distance of g nats are smaller by exp(-g) (the unshifted QR iteration). Then a window shows its middle right.
    """
    for _ in range(_SWEEPS):
        order = np.argsort(-scale, kind="stable")
        scale, rows = _unit_rows(_triangle(rows[order].T), scale[order], np.eye(len(scale)))
    order = np.argsort(-scale, kind="stable")
    scale, rows = scale[order], rows[order]
    found = np.empty_like(scale)
    begin = 0
    while begin < len(scale):
        begins = np.searchsorted(-scale, -scale[begin] + np.array([-_MARGIN, _PIECE, _PIECE + _MARGIN]))
        low, end, high = map(int, begins)
        window = np.exp(scale[low:high] - scale[low])[:, None] * rows[low:high]
        values = np.linalg.svd(window, compute_uv=False)
        found[begin:end] = scale[low] + np.log(values[begin - low : end - low])
        begin = end
    return np.sort(found)[::-1]


def _triangle(a: Array) -> Array:
    """R of the QR factors."""
    return np.asarray(np.linalg.qr(a, mode="r"))


def _log(a: Array) -> Array:
    """Minus infinity for zero."""
    with np.errstate(divide="ignore"):
        logarithms: Array = np.log(a)
    return logarithms
