"""Lyapunov exponents and singular values of long matrix products of any range, as logarithms."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .._arguments import Array

# Nats. The first singular value of a window is exp(piece + margin) = 3e3 times the last one taken from it, and the
# rounding error scales with the first. Couplings c beyond the margin contribute c^2 exp(-2 (sweeps + 1) margin) =
# 5e-25 c^2. For random products the error was up to 1e-10 with 3 sweeps, and 2e-13 with 6 or more.
_PIECE, _MARGIN, _SWEEPS = 4.0, 4.0, 6

_INDEPENDENT = 1e-3  # least part of a column outside the span of those before it, relative to the column


class GrowthRates:
    """The k largest exponents of a product of square matrices, the first factor first, by the QR method.

    k orthonormal columns are multiplied by the matrices and orthonormalised again after every `every` of them. The
    exponents are the logarithms of the diagonals of R, averaged from matrix number `warmup` on (Benettin et al. 1980,
    Shimada and Nagashima 1979). The initial columns are random, from a fixed seed: a unit vector may be invariant or
    die at once, which would give its exponent instead of the largest.

    If columns become nearly dependent within a group of `every` matrices, or leave the range of floats, the group is
    halved until they do not; later groups keep the smaller size.
    """

    def __init__(self, k: int, warmup: int = 0, every: int = 1) -> None:
        self._sums, self._live = np.zeros(k), np.arange(k)
        self._warmup, self._every, self._count = warmup, every, 0
        self._group: list[Array] = []
        self._q: Array | None = None

    def add(self, matrix: Array) -> None:
        """Multiply by the next matrix, which must not change afterwards."""
        if self._q is None:
            k = len(self._sums)
            rng = np.random.Generator(np.random.PCG64(0))
            self._q = np.linalg.qr(rng.standard_normal((k, len(matrix))).T)[0]
        self._group.append(matrix)
        self._count += 1
        if len(self._group) >= self._every or self._count == self._warmup:
            self._finish_group()

    def exponents(self) -> Array:
        """(k,) float64: those of the columns in their order, then minus infinity for directions that died."""
        self._finish_group()
        exponents = np.full(len(self._sums), -np.inf)
        exponents[: len(self._live)] = self._sums[self._live] / (self._count - self._warmup)
        return exponents

    def _finish_group(self) -> None:
        if self._group:
            self._multiply(self._group)
            self._group = []

    def _multiply(self, matrices: list[Array]) -> None:
        q = self._q
        assert q is not None
        factors = _times(matrices[0], q) if len(matrices) == 1 else _times_all(matrices, q)
        if factors is None:
            half = self._every = len(matrices) // 2
            self._multiply(matrices[:half])
            self._multiply(matrices[half:])
            return
        self._q, r, order = factors
        self._live = self._live[order[: len(r)]]
        if self._count > self._warmup:
            self._sums[self._live] += np.log(np.abs(np.diag(r)))


def lyapunov_exponents(matrices: Iterable[Array], k: int, warmup: int = 0, every: int = 1) -> Array:
    """The k largest exponents of the product of `matrices`: see :class:`GrowthRates`.

    Returns
    -------
    exponents : (k,) float64 array
        Largest first; minus infinity for directions that died, even during the warm-up.
    """
    rates = GrowthRates(k, warmup, every)
    for matrix in matrices:
        rates.add(matrix)
    return np.sort(rates.exponents())[::-1]


def log_singular_values(matrices: Iterable[Array], size: int) -> Array:
    """Natural logarithms of the singular values of the product of (size, size) `matrices`, the first factor first.

    The product is stored as ``q @ diag(exp(scale)) @ t``, with well-conditioned rows of t of norm 1 (Loh et al. 1989;
    columns are sorted in advance instead of pivoted, Tomas et al. 2012), so `scale` holds its whole range.

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
    """QR factors of the columns of ``matrix @ q`` that are linearly independent beyond rounding errors. With `scale`,
    the columns are sorted by their size after multiplication by ``exp(scale)``, largest first.

    Rows may differ in size by orders of magnitude, for example if units are saturated. Independence is tested with rows
    scaled to equal size. QR takes the largest rows first, which keeps errors relative to each row (Cox and Higham
    1998): for products of 20 such matrices over 8 decades, singular values are off by 6e-13, unsorted by 8e-8.

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
    # About N rounding errors add up in an entry. Nearly independent, they stay below 10 sqrt(N) u relative to the norm
    # of a column (Higham and Mary 2019), which is at most sqrt(N). Measured: 2 eps sqrt(N), for N from 2 to 512.
    error = 5 * len(z) * np.finfo(np.float64).eps
    order, rank = _independent(z / error, order)
    rows = np.argsort(-sizes, kind="stable")
    sorted_q, r = np.linalg.qr(sizes[rows, None] * z[np.ix_(rows, order)])
    new = np.empty((len(z), rank))
    new[rows] = sorted_q[:, :rank]
    return new, r[:rank], order


def _times_all(matrices: list[Array], q: Array) -> tuple[Array, Array, Array] | None:
    """As `_times` for a product, without its care for rounding: None if the columns need that care.

    The rounding error of a column is relative to its norm, and that of its exponent to the part of it that is
    independent of the columns before it. If this part is above `_INDEPENDENT` of the norm, the logarithm is off by
    some N eps / `_INDEPENDENT` per group at most.
    """
    z = q
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for matrix in matrices:
            z = matrix @ z
    if not np.isfinite(z).all():
        return None
    new, r = np.linalg.qr(z)
    if np.any(np.abs(np.diag(r)) <= _INDEPENDENT * np.abs(r).max(axis=0, initial=0)):
        return None
    return new, r, np.arange(z.shape[1])


def _independent(z: Array, order: Array) -> tuple[Array, int]:
    """Reorder `order` (k,), an order of the columns of z (N, k), so that columns independent of those before them,
    beyond errors of norm 1, come first. Returns the order and the number of independent columns.
    """
    rank = len(order)
    while True:
        first, outside = _first_dependent(_triangle(z[:, order[:rank]]))
        if first == rank:
            return order, rank
        # QR gives a dependent column an arbitrary direction; the columns after it are tested again without it.
        alive = first + int(np.argmax(outside)) if outside.any() else rank
        order = np.concatenate([order[:first], order[alive:rank], order[first:alive], order[rank:]])
        rank -= alive - first


def _first_dependent(r: Array) -> tuple[int, Array]:
    """In triangular r, whose columns have errors of norm 1: the index of the first column in the span of those before
    it, and a mask of the columns from there on that lie outside that span.

    Column j, ``r[:first, :first] @ c`` plus a remainder, is in the span if the remainder does not exceed the error of
    that combination, ``1 + sum(|c|)``: for j = first, ``|r[j, j]|`` times the 1-norm of column j of r's inverse.
    """
    rank = len(r)
    diagonal = np.abs(np.diag(r))
    if np.all(diagonal > 1e6):  # skip the inverse: sum(|c|) is at most 1e3 unless the columns are contrived
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
    """``a @ diag(exp(scale)) @ b`` as ``diag(exp(new)) @ rows``, with rows of norm 1."""
    logarithms = _log(np.abs(a)) + scale
    largest = logarithms.max(axis=1, initial=-np.inf)
    rows = (np.sign(a) * np.exp(logarithms - largest[:, None])) @ b
    norms = np.linalg.norm(rows, axis=1)
    return largest + np.log(norms), rows / norms[:, None]


def _graded_singular_values(scale: Array, rows: Array) -> Array:
    """Logarithms of the singular values of ``diag(exp(scale)) @ rows``, largest first.

    Each sweep factorises the transposed matrix, graded along its columns, into a triangular one whose couplings over a
    distance of g nats are smaller by exp(-g) (unshifted QR iteration). After that, the middle of a window is accurate.
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
    """R of the QR factorisation."""
    return np.asarray(np.linalg.qr(a, mode="r"))


def _log(a: Array) -> Array:
    """log(a), without a warning for zeros, which give minus infinity."""
    with np.errstate(divide="ignore"):
        logarithms: Array = np.log(a)
    return logarithms
