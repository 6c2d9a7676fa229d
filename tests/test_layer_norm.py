"""Residual add and LayerNorm: agreement with torch and the reference, rows far from zero, threads, independent rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound, wide

pytestmark = pytest.mark.per_level

DTYPES = ("float32", "float64")
NAMES = ("d_x", "d_branch", "d_weight", "d_bias")
EPS = 1e-5

leading = st.lists(st.integers(0, 6), max_size=3).map(tuple)
features = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 64, 67, 128, 200]))
scales = st.sampled_from([1.0, 0.5, -1.3, 0.0])


def numbers(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arguments(shape, dtype="float64"):
    """x, branch, weight, bias"""
    rows, row = [numbers(shape, dtype, k) for k in (1, 2)], [numbers(shape[-1:], dtype, k) for k in (3, 4)]
    return [*rows, *row]


def gradients(shape, dtype="float64"):
    """d_sum, d_normalised"""
    return numbers(shape, dtype, 5), numbers(shape, dtype, 6)


def normalised_bound(n, weight, bias, dtype):
    """The rounding errors of n weight + bias for a given sum.

    The mean is off by the rounding of F differences, of size 1 in units of n, and the deviation by that of their
    squares, relatively; six roundings follow. The size of the mean itself has no effect.
    """
    return rounding_bound(dtype, n.shape[-1] + 6) * (np.abs(weight) * (1 + np.abs(n)) + np.abs(bias))


@given(leading=leading, F=features, scale=scales)
def test_agrees_with_torch(leading, F, scale):
    torch = pytest.importorskip("torch")
    shape = (*leading, F)
    x, branch, weight, bias = arguments(shape)
    total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias, scale=scale)
    given_ = [torch.tensor(array, requires_grad=True) for array in (x, branch, weight, bias)]
    s = given_[0] + scale * given_[1]
    y = torch.nn.functional.layer_norm(s, (F,), *given_[2:])
    assert_close(total, s.detach().numpy(), 1e-10)
    assert_close(normalised, y.detach().numpy(), 1e-10)
    d_sum, d_normalised = gradients(shape)
    torch.autograd.backward([s, y], [torch.tensor(d_sum), torch.tensor(d_normalised)])
    for name, ours, theirs in zip(NAMES, tt.add_layer_norm_backward(d_sum, d_normalised, saved), given_, strict=True):
        # With F = 1, torch's rounding errors leave a nonzero d_weight.
        assert_close(ours, theirs.grad.numpy(), 1e-10, name, floor=1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(leading=leading, F=features, scale=scales)
def test_agrees_with_the_reference(dtype, leading, F, scale):
    shape = (*leading, F)
    x, branch, weight, bias = arguments(shape, dtype)
    total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias, scale=scale)
    assert (total.dtype, normalised.dtype, total.shape, normalised.shape) == (dtype, dtype, shape, shape)
    unit = np.finfo(dtype).eps / 2
    exact, _, _ = reference.add_layer_norm(*wide((x, branch, weight, bias)), scale, EPS)
    # The scale, the product and the sum are rounded; in float64 the reference rounds too.
    roundings = np.abs(exact) + 2 * np.abs(scale * wide(branch))
    assert np.all(np.abs(total - exact) <= (2 if dtype == "float64" else 1) * unit * roundings)

    # From here on relative to the rounded sum: its rounding is not an error of LayerNorm.
    _, y, (n, rstd) = reference.add_layer_norm(*wide((total, np.zeros_like(total), weight, bias)), 1.0, EPS)
    bound = normalised_bound(n, wide(weight), wide(bias), dtype)
    assert np.all(np.abs(normalised - y) <= bound)

    d_sum, d_y = gradients(shape, dtype)
    d_x, d_branch, d_weight, d_bias = tt.add_layer_norm_backward(d_sum, d_y, saved)
    expected = reference.add_layer_norm_backward(wide(d_sum), wide(d_y), (n, rstd), wide(weight), scale)
    # dx = d_sum + rstd (g - <g> - n <g n>): each part has the rounding errors of F terms, relative to its largest.
    g = np.max(np.abs(wide(d_y) * wide(weight)), axis=-1, keepdims=True, initial=0)
    parts = rounding_bound(dtype, F + 12) * (np.abs(wide(d_sum)) + rstd * g * (2 + 2 * (1 + np.abs(n)) ** 2))
    assert np.all(np.abs(d_x - expected[0]) <= parts)
    assert np.all(np.abs(d_branch - expected[1]) <= np.abs(scale) * parts * (1 + unit) + unit * np.abs(expected[1]))
    # Sums over rows: at most 16 terms at a time in dtype, beyond that in float64.
    terms = tuple(range(len(shape) - 1))
    per_term = rounding_bound(dtype, F + 6 + 16)
    assert np.all(np.abs(d_weight - expected[2]) <= per_term * np.sum(np.abs(d_y) * (1 + np.abs(n)), axis=terms))
    assert np.all(np.abs(d_bias - expected[3]) <= per_term * np.sum(np.abs(wide(d_y)), axis=terms))


def test_the_references_backward_is_the_derivative_of_its_forward():
    """Complex step."""
    shape, scale = (2, 3, 5), 0.7
    given_, seeds = arguments(shape), gradients(shape)
    _, _, saved = reference.add_layer_norm(*given_, scale, EPS)
    found = reference.add_layer_norm_backward(*seeds, saved, given_[2], scale)
    for k, derivative in enumerate(found):
        for index in np.ndindex(given_[k].shape):
            moved = [array.astype(complex) for array in given_]
            moved[k][index] += 1e-30j
            s, y, _ = reference.add_layer_norm(*moved, scale, EPS)
            slope = (np.sum(s * seeds[0]) + np.sum(y * seeds[1])).imag / 1e-30
            assert abs(derivative[index] - slope) <= 1e-13 * max(1, abs(slope))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1e4, -3e5, 1e7])
@pytest.mark.parametrize("F", [7, 64, 513])
def test_rows_far_from_zero_keep_their_digits(dtype, offset, F):
    """The bound is independent of the offset: only the rounding of the sum itself loses digits. Offsets are whole
    numbers, so that they can be subtracted exactly."""
    noise, branch, weight, bias = arguments((50, F), dtype)
    x = (noise + np.asarray(offset, dtype)).astype(dtype)
    total, normalised, saved = tt.add_layer_norm(x, np.zeros_like(branch), weight, bias)
    near = wide(total) - offset
    _, y, of = reference.add_layer_norm(near, 0, wide(weight), wide(bias), 1.0, EPS)
    assert np.all(np.abs(normalised - y) <= normalised_bound(of[0], wide(weight), wide(bias), dtype))
    d_y = gradients((50, F), dtype)[1]
    ours = tt.add_layer_norm_backward(None, d_y, saved)
    expected = reference.add_layer_norm_backward(0, wide(d_y), of, wide(weight), 1.0)
    # If the noise is only a few ulps of the offset, n has the size of sqrt(F).
    bound = rounding_bound(dtype, F + 22) * (2 + 2 * (1 + np.max(np.abs(of[0]))) ** 2)
    for name, found, true in zip(NAMES, ours, expected, strict=True):
        assert_close(found, true, bound, name)


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.floats(-(2.0**99), 2.0**99, width=32), F=features)
def test_equal_numbers_give_the_bias(dtype, value, F):
    x = np.full((3, F), value, dtype)
    _, _, weight, bias = arguments((3, F), dtype)
    _, normalised, saved = tt.add_layer_norm(x, np.zeros_like(x), weight, bias)
    assert np.array_equal(normalised, np.broadcast_to(bias, x.shape))
    assert np.all(np.isfinite(tt.add_layer_norm_backward(x * 0, x * 0 + 1, saved)[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("F", [5, 64])
def test_nan_and_infinity_stay_in_their_row(bad, F):
    x, branch, weight, bias = arguments((40, F), "float32")
    clean = tt.add_layer_norm(x, branch, weight, bias)
    x[7, F // 2] = bad
    total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias)
    others = np.arange(40) != 7
    assert_same_bits(normalised[others], clean[1][others])
    assert np.all(np.isnan(normalised[7]))
    assert not np.isfinite(total[7, F // 2])
    d_sum, d_normalised = gradients((40, F), "float32")
    ours = tt.add_layer_norm_backward(d_sum, d_normalised, saved)
    true = tt.add_layer_norm_backward(d_sum, d_normalised, clean[2])
    assert_same_bits(ours[0][others], true[0][others])
    assert np.all(np.isnan(ours[0][7]))
    assert np.all(np.isnan(ours[2]))  # every weight affects that row
    assert_same_bits(ours[3], true[3])


# Powers of two that keep standard normal numbers normal, and their variance above the least possible eps; squares
# leave the range at both ends.
EXPONENTS = {"float32": [-100, -60, -10, 0, 10, 60, 64, 124], "float64": [-470, -10, 0, 10, 500, 520, 1020]}
LEAST_EPS = {"float32": 1e-300, "float64": np.finfo("float64").tiny}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("F", [1, 5, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_size_normalise_alike(dtype, F, scale):
    """LN(2^k s) = LN(s), to the last bit if eps is negligible relative to the variance, and d_x is 2^k times smaller; a
    factor 2^(k / 2) keeps d_x and the gradient in range. Rows of all sizes are adjacent."""
    given_, d_y = arguments((3, F), dtype), gradients((3, F), dtype)[1]
    options = {"scale": scale, "eps": LEAST_EPS[dtype]}
    total, normalised, saved = tt.add_layer_norm(*given_, **options)
    d_x, d_branch, _, _ = tt.add_layer_norm_backward(None, d_y, saved)

    def sized(array, share):
        return np.concatenate([np.ldexp(array, int(k * share)) for k in EXPONENTS[dtype]])

    rows = tt.add_layer_norm(*(sized(array, 1) for array in given_[:2]), *given_[2:], **options)
    assert_same_bits(rows[:2], (sized(total, 1), sized(normalised, 0)))
    found = tt.add_layer_norm_backward(None, sized(d_y, 0.5), rows[2])
    assert_same_bits(found[:2], (sized(d_x, -0.5), sized(d_branch, -0.5)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_at_the_ends_of_the_range(dtype):
    """Sums and differences of the largest numbers overflow, squares of the smallest vanish."""
    info, least = np.finfo(dtype), {"float32": 2.0**-124, "float64": 2.0**-480}[dtype]
    signs = np.where(np.arange(64) % 2, -1, 1).astype(dtype)
    ones = np.abs(signs)
    n = tt.LayerNorm(64, eps=LEAST_EPS[dtype], dtype=dtype)(
        np.stack([info.max * signs, info.max * ones, info.dtype.type(least) * signs, 0 * signs])
    )
    assert np.array_equal(n[[1, 3]], np.zeros((2, 64)))
    assert np.all(np.abs(n[[0, 2]] - signs) <= 4 * info.eps)


@pytest.mark.parametrize("eps", [1e-300, 1e-40, 1e-20, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_equal_numbers_give_the_bias_whatever_their_size_and_eps(dtype, eps):
    sizes = np.ldexp(np.asarray([[0]] + [[1.1]] * len(EXPONENTS[dtype]), dtype), np.c_[[0, *EXPONENTS[dtype]]])
    x = np.repeat(np.concatenate([-sizes, sizes]), 70, axis=1)
    weight, bias = (numbers(70, dtype, seed) for seed in (1, 2))
    _, normalised, saved = tt.add_layer_norm(x, 0 * x, weight, bias, eps=eps)
    assert np.array_equal(normalised, np.broadcast_to(bias, x.shape))
    assert not np.isnan(tt.add_layer_norm_backward(None, np.ones_like(x), saved)[0]).any()


def everything(shape, dtype, scale=0.5):
    total, normalised, saved = tt.add_layer_norm(*arguments(shape, dtype), scale=scale)
    return total, normalised, *tt.add_layer_norm_backward(*gradients(shape, dtype), saved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (999, 64), (17, 150, 33), (5000, 100)])
def test_same_bits_for_any_number_of_threads(dtype, shape, threads, teams):
    threads(1)
    one = everything(shape, dtype)
    for team in teams():
        everything(shape, dtype, scale=2.0)  # so that freed memory holds values other than the expected ones
        assert_same_bits(everything(shape, dtype), one, team)


def test_large_results_which_go_past_the_cache_are_those_of_small_ones():
    """Above 16 MB. Compares some rows, whose results do not depend on the other rows."""
    large, part = (33000, 128), slice(12345, 12400)
    x, branch, weight, bias = arguments(large, "float32")
    total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias, scale=0.5)
    small = tt.add_layer_norm(x[part], branch[part], weight, bias, scale=0.5)
    assert_same_bits((total[part], normalised[part]), small[:2])
    d_sum, d_y = gradients(large, "float32")
    d_x, d_branch, d_weight, d_bias = tt.add_layer_norm_backward(d_sum, d_y, saved)
    assert_same_bits((d_x[part], d_branch[part]), tt.add_layer_norm_backward(d_sum[part], d_y[part], small[2])[:2])
    _, _, (n, _) = reference.add_layer_norm(*wide((total, np.zeros_like(total), weight, bias)), 1.0, EPS)
    bound = rounding_bound("float32", 128 + 6 + 16)
    assert np.all(
        np.abs(d_weight - np.sum(wide(d_y) * n, axis=0)) <= bound * np.sum(np.abs(d_y) * (1 + np.abs(n)), axis=0)
    )
    assert np.all(np.abs(d_bias - d_y.sum(axis=0, dtype=float)) <= bound * np.sum(np.abs(wide(d_y)), axis=0))


def test_sums_of_whole_numbers_are_exact():
    """Rows 1, -1 have mean 0 and variance 1; with this eps, rstd is 1 / 2."""
    x = np.tile([1.0, -1.0], (4, 1))
    total, normalised, saved = tt.add_layer_norm(x, 2 * x, np.array([2.0, 4]), np.array([1.0, 1]), scale=0, eps=3)
    assert np.array_equal(total, x)
    assert normalised.tolist() == [[2, -1]] * 4
    d_x, d_branch, d_weight, d_bias = tt.add_layer_norm_backward(x, np.ones((4, 2)), saved)
    # g = (2, 4), <g> = 3, n = (1, -1) / 2, <g n> = -1 / 2: dx = x + (g - 3 + n / 2) / 2
    assert d_x.tolist() == [[0.625, -0.625]] * 4
    assert d_branch.tolist() == [[0, 0]] * 4
    assert d_weight.tolist() == [2, -2]
    assert d_bias.tolist() == [4, 4]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_either_gradient_may_be_missing(scale):
    shape = (4, 3, 5)
    _, _, saved = tt.add_layer_norm(*arguments(shape), scale=scale)
    d_sum, d_normalised = gradients(shape)
    zeros = np.zeros(shape)
    for given_, same in (((None, d_normalised), (zeros, d_normalised)), ((d_sum, None), (d_sum, zeros))):
        ours, full = tt.add_layer_norm_backward(*given_, saved), tt.add_layer_norm_backward(*same, saved)
        assert_close(ours, full, 0)
        assert (ours[1] is ours[0]) == (scale == 1)
    ours[0][...] = 0
    assert d_sum.any()  # no result aliases an argument


def test_backward_may_be_called_again_and_uses_the_weight_of_the_forward():
    given_ = arguments((6, 5))
    _, _, saved = tt.add_layer_norm(*given_)
    first = tt.add_layer_norm_backward(*gradients((6, 5)), saved)
    given_[2][...] = 0
    assert_same_bits(tt.add_layer_norm_backward(*gradients((6, 5)), saved), first)
    assert saved.nbytes > 0


def test_any_memory_order_is_taken_and_left_alone():
    shape = (6, 5, 8)
    given_ = arguments(shape)
    expected = tt.add_layer_norm(*given_)
    seeds = gradients(shape)
    true = tt.add_layer_norm_backward(*seeds, expected[2])
    for other in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a[::-1].copy()[::-1]):
        arrays = [other(array) for array in given_]
        for array in arrays:
            array.flags.writeable = False
        total, normalised, saved = tt.add_layer_norm(*arrays)
        assert_same_bits((total, normalised), expected[:2])
        assert_same_bits(tt.add_layer_norm_backward(*map(other, seeds), saved), true)


X = np.zeros((2, 3), np.float32)
ROW = np.zeros(3, np.float32)
SAVED = tt.add_layer_norm(X, X, ROW, ROW)[2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.add_layer_norm([1.0], X, ROW, ROW), TypeError, "x must be"),
        (lambda: tt.add_layer_norm(X.astype(int), X, ROW, ROW), TypeError, "x has dtype int64"),
        (lambda: tt.add_layer_norm(X.astype("f2"), X, ROW, ROW), TypeError, "x has dtype float16"),
        (lambda: tt.add_layer_norm(X, X.astype(float), ROW, ROW), TypeError, "branch .*float64.*float32"),
        (lambda: tt.add_layer_norm(X, X[:1], ROW, ROW), ValueError, r"branch .*\(1, 3\).*\(2, 3\)"),
        (lambda: tt.add_layer_norm(X, X, ROW[:2], ROW), ValueError, r"weight .*\(2,\).*\(3,\)"),
        (lambda: tt.add_layer_norm(X, X, ROW, ROW.astype(float)), TypeError, "bias"),
        (lambda: tt.add_layer_norm(np.float32(1), X, ROW, ROW), ValueError, "x has shape"),
        (lambda: tt.add_layer_norm(X[:, :0], X[:, :0], ROW[:0], ROW[:0]), ValueError, "x has shape .*F >= 1"),
        (lambda: tt.add_layer_norm(X, X, ROW, ROW, scale="1"), TypeError, "scale"),
        (lambda: tt.add_layer_norm(X, X, ROW, ROW, scale=np.nan), ValueError, "scale"),
        (lambda: tt.add_layer_norm(X, X, ROW, ROW, eps=0), ValueError, "eps"),
        (lambda: tt.add_layer_norm_backward(X, X, None), TypeError, "saved"),
        (lambda: tt.add_layer_norm_backward(None, None, SAVED), ValueError, "d_sum and d_normalised"),
        (lambda: tt.add_layer_norm_backward(X[:1], None, SAVED), ValueError, "d_sum .*shape"),
        (lambda: tt.add_layer_norm_backward(X, X.astype(float), SAVED), TypeError, "d_normalised"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
