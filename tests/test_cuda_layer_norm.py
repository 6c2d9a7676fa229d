"""Residual add and LayerNorm on the device: the reference's results for every way of spreading a row over threads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_same_bits, rounding_bound, wide
from stand_in import load_cuda
from test_layer_norm import EPS, NAMES, arguments, gradients, normalised_bound
from throughtime import cuda
from throughtime.backend.cuda import force
from throughtime.layers import add_layer_norm as layer_norm

load_cuda()
DTYPES = ("float32", "bfloat16", "float16")
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # relative error of a rounding
LEAST = {"float32": 0, "bfloat16": 0, "float16": 2.0**-25}  # its absolute error near zero
# Rows of one to four pieces per thread, on lanes and on warps; of single numbers; too long for registers.
WIDTHS = {
    "float32": [32, 64, 96, 128, 200, 512, 580, 640, 1536, 1, 5, 33, 501, 2049, 8196],
    "bfloat16": [64, 128, 320, 800, 1024, 1160, 1536, 4096, 1, 7, 67, 501, 2050, 16392],
    "float16": [64, 128, 320, 800, 1024, 1160, 1536, 4096, 1, 7, 67, 501, 2050, 16392],
}


def on_device(arrays, dtype):
    return [cuda.to_device(array, dtype) for array in arrays]


def numbers(arrays):
    return tuple(wide(array.numpy()) for array in arrays)


def stored(bound, true, dtype):
    """The bound of a float32 that is off by `bound`, after it is stored as `dtype`."""
    return bound if dtype == "float32" else bound + UNIT[dtype] * (np.abs(true) + bound) + LEAST[dtype]


def check(given_, scale, dtype, seeds=None):
    """Forward and backward of device arrays agree with the reference; returns the gradients."""
    x, branch, weight, bias = numbers(given_)
    total, normalised, saved = tt.add_layer_norm(*given_, scale=scale)
    assert (total.dtype, normalised.dtype, total.shape, normalised.shape) == (dtype, dtype, x.shape, x.shape)
    sums, results = numbers((total, normalised))
    exact, single = x + scale * branch, UNIT["float32"]
    # Roundings of the scale, of product and sum together, and of the stored sum.
    roundings = single * (np.abs(exact) + np.abs(scale * branch)) + UNIT[dtype] * np.abs(exact) * (1 + single)
    assert np.all(np.abs(sums - exact) <= roundings + LEAST[dtype])

    # From here on relative to the rounded sum: its rounding is not an error of LayerNorm.
    _, y, (n, rstd) = reference.add_layer_norm(sums, 0, weight, bias, 1.0, EPS)
    bound = stored(normalised_bound(n, weight, bias, "float32"), y, dtype)
    assert np.all(np.abs(results - y) <= bound)

    seeds = on_device(gradients(x.shape), dtype) if seeds is None else seeds
    found = tt.add_layer_norm_backward(*seeds, saved)
    d_sum, d_y = (0 if seed is None else wide(seed.numpy()) for seed in seeds)
    expected = reference.add_layer_norm_backward(d_sum, d_y, (n, rstd), weight, scale)
    compare_gradients(numbers(found), expected, (d_sum, d_y, n, rstd, weight, scale), dtype)
    return found


def compare_gradients(found, expected, of, dtype):
    d_sum, d_y, n, rstd, weight, scale = of
    F, rows = n.shape[-1], tuple(range(n.ndim - 1))
    # dx = d_sum + rstd (g - <g> - n <g n>): each part has the rounding errors of F terms, relative to its largest.
    g = np.max(np.abs(d_y * weight), axis=-1, keepdims=True, initial=0)
    parts = rounding_bound("float32", F + 12) * (np.abs(d_sum) + rstd * g * (2 + 2 * (1 + np.abs(n)) ** 2))
    # Sums over rows, with at most one addition per row.
    terms = rounding_bound("float32", F + 6 + n.size // F)
    scaled = np.abs(scale) * parts * (1 + UNIT["float32"]) + 2 * UNIT["float32"] * np.abs(expected[1])
    bounds = (
        parts,
        scaled,
        terms * np.sum(np.abs(d_y) * (1 + np.abs(n)), axis=rows),
        terms * np.sum(np.abs(d_y) + 0 * n, axis=rows),
    )
    for name, ours, true, bound in zip(NAMES, found, expected, bounds, strict=True):
        off = np.abs(ours - true) - stored(bound, true, dtype)
        assert np.all(off <= 0), f"{name}: past its bound by {np.max(off):.3g}"


@pytest.mark.parametrize(("dtype", "F"), [(dtype, F) for dtype in DTYPES for F in WIDTHS[dtype]])
def test_agrees_with_the_reference(dtype, F):
    check(on_device(arguments((5, F)), dtype), -1.3, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    F=st.integers(1, 20),
    scale=st.sampled_from([1.0, 0.5, 0.0]),
)
def test_any_shape(dtype, leading, F, scale):
    check(on_device(arguments((*leading, F)), dtype), scale, dtype)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "F"),
    [("float32", 64), ("float32", 512), ("float32", 700), ("bfloat16", 48), ("bfloat16", 520), ("float16", 19)],
)
def test_blocks_that_walk_over_many_rows(dtype, F, blocks):
    """More rows than a block processes and prefetches at once; the last step has fewer."""
    given_, seeds = on_device(arguments((149, F)), dtype), on_device(gradients((149, F)), dtype)
    with force(blocks=blocks):
        walked = check(given_, 0.5, dtype, seeds)
        alone = check(given_, 0.5, dtype, [None, seeds[1]])
    rows = check(given_, 0.5, dtype, seeds)  # one row per block
    assert_same_bits(numbers(walked[:2]), numbers(rows[:2]))
    assert_same_bits(numbers(walked[2:]), numbers(alone[2:]))


@pytest.mark.parametrize("F", [2051, 8200])
def test_sums_over_stretches_of_long_rows(F):
    with force(blocks=3):
        check(on_device(arguments((11, F)), "float32"), 1.0, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("F", [64, 1536])
def test_rows_that_begin_anywhere(dtype, F):
    def shifted(array):
        return cuda.to_device(np.append(0, array), dtype)[1:].reshape(array.shape)

    given_ = [shifted(array) for array in arguments((4, F))]
    assert given_[0]._view.ctypes.data % 16
    check(given_, 0.5, dtype, [shifted(array) for array in gradients((4, F))])


@pytest.mark.parametrize(
    ("dtype", "offset"), [("float32", 1e4), ("float32", -3e5), ("float32", 1e7), ("float16", 100), ("bfloat16", -768)]
)
@pytest.mark.parametrize("F", [7, 64, 513, 1536])
def test_rows_far_from_zero_keep_their_digits(dtype, offset, F):
    """The bound is independent of the offset: only the rounding of the sum itself loses digits. Offsets are whole
    numbers, so that they can be subtracted exactly."""
    noise, branch, weight, bias = arguments((9, F))
    given_ = on_device((noise + offset, np.zeros_like(branch), weight, bias), dtype)
    n = check_far(given_, offset, dtype)
    assert np.any(n)


def check_far(given_, offset, dtype):
    _, _, weight, bias = numbers(given_)
    total, normalised, saved = tt.add_layer_norm(*given_)
    _, y, (n, rstd) = reference.add_layer_norm(wide(total.numpy()) - offset, 0, weight, bias, 1.0, EPS)
    bound = stored(normalised_bound(n, weight, bias, "float32"), y, dtype)
    assert np.all(np.abs(wide(normalised.numpy()) - y) <= bound)
    d_y = cuda.to_device(gradients(n.shape)[1], dtype)
    found = numbers(tt.add_layer_norm_backward(None, d_y, saved))
    expected = reference.add_layer_norm_backward(0, wide(d_y.numpy()), (n, rstd), weight, 1.0)
    # If the noise is only a few ulps of the offset, n has the size of sqrt(F).
    relative = rounding_bound("float32", n.shape[-1] + 22) * (2 + 2 * (1 + np.max(np.abs(n))) ** 2)
    for name, ours, true in zip(NAMES, found, expected, strict=True):
        assert np.all(np.abs(ours - true) <= stored(relative * np.max(np.abs(true)), true, dtype)), name
    return n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.1, -37.3, 6e4, -(2.0**-20), 2.0**99])
@pytest.mark.parametrize("F", [1, 9, 96, 200, 1536])
def test_equal_numbers_give_the_bias(dtype, value, F):
    value = min(value, 6e4) if dtype == "float16" else value
    _, _, weight, bias = arguments((3, F))
    x, zeros, weight, bias = on_device((np.full((3, F), value), np.zeros((3, F)), weight, bias), dtype)
    _, normalised, saved = tt.add_layer_norm(x, zeros, weight, bias)
    assert np.array_equal(normalised.numpy(), np.broadcast_to(bias.numpy(), x.shape))
    ones = cuda.to_device(np.ones((3, F)), dtype)
    assert np.all(np.isfinite(tt.add_layer_norm_backward(None, ones, saved)[0].numpy()))


@pytest.mark.parametrize(
    ("dtype", "F"),
    [("float32", F) for F in (1, 5, 32, 200, 1536, 8196)] + [("bfloat16", F) for F in (7, 64, 1024)],
)
def test_rows_of_any_size_normalise_alike(dtype, F):
    """LN(2^k s) = LN(s) if eps is negligible relative to the variance, and d_x is 2^k times smaller; a factor 2^(k / 2)
    keeps d_x and the gradient in range. Rows of all sizes are adjacent, short ones within one warp."""
    arrays = numbers(on_device((*arguments((3, F)), gradients((3, F))[1]), dtype))
    exponents = (-100, -60, 0, 60, 64, 120)

    def run(exponents):
        x, branch, weight, bias, d_y = arrays
        sized = [np.concatenate([np.ldexp(array, k) for k in exponents]) for array in (x, branch)]
        d_y = np.concatenate([np.ldexp(d_y, k // 2) for k in exponents])
        total, normalised, saved = tt.add_layer_norm(*on_device((*sized, weight, bias), dtype), scale=0.5, eps=1e-300)
        return numbers((total, normalised, *tt.add_layer_norm_backward(None, cuda.to_device(d_y, dtype), saved)[:2]))

    total, normalised, d_x, d_branch = run((0,))
    found = run(exponents)
    assert_same_bits(found[0], np.concatenate([np.ldexp(total, k) for k in exponents]))
    assert_same_bits(found[1], np.concatenate([normalised for _ in exponents]))
    assert_same_bits(found[2], np.concatenate([np.ldexp(d_x, -k // 2) for k in exponents]))
    assert_same_bits(found[3], np.concatenate([np.ldexp(d_branch, -k // 2) for k in exponents]))


@pytest.mark.parametrize("F", [9, 64, 200, 1536])
def test_rows_at_the_ends_of_the_range(F):
    """Sums and differences of the largest numbers overflow; a row of equal numbers has no deviation, for any eps."""
    most = np.finfo("float32").max
    signs = np.where(np.arange(F) % 2, -1.0, 1.0)
    x = np.stack([most * signs, most * np.abs(signs), 2.0**-124 * signs, 0 * signs])
    given_ = on_device((x, 0 * x, np.ones(F), np.zeros(F)), "float32")
    n = tt.add_layer_norm(*given_, eps=1e-300)[1].numpy()
    _, exact, _ = reference.add_layer_norm(signs, 0, 1, 0, 1.0, 0)
    assert np.array_equal(n[[1, 3]], np.zeros((2, F)))
    assert np.all(np.abs(n[[0, 2]] - exact) <= rounding_bound("float32", F + 6) * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("dtype", "F"), [("float32", 5), ("float32", 64), ("bfloat16", 64), ("float32", 1536)])
def test_nan_and_infinity_stay_in_their_row(dtype, F, bad):
    x, *rest = arguments((40, F))
    rest, others = on_device(rest, dtype), np.arange(40) != 7
    clean = tt.add_layer_norm(cuda.to_device(x, dtype), *rest)
    x[7, F // 2] = bad
    total, normalised, saved = tt.add_layer_norm(cuda.to_device(x, dtype), *rest)
    assert_same_bits(normalised.numpy()[others], clean[1].numpy()[others])
    assert np.all(np.isnan(normalised.numpy()[7]))
    assert not np.isfinite(total.numpy()[7, F // 2])
    seeds = on_device(gradients((40, F)), dtype)
    ours = [array.numpy() for array in tt.add_layer_norm_backward(*seeds, saved)]
    true = [array.numpy() for array in tt.add_layer_norm_backward(*seeds, clean[2])]
    assert_same_bits(ours[0][others], true[0][others])
    assert np.all(np.isnan(ours[0][7]))
    assert np.all(np.isnan(ours[2]))  # every weight affects that row
    assert_same_bits(ours[3], true[3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_whole_numbers_are_exact(dtype):
    """Rows 1, -1 have mean 0 and variance 1; with this eps, rstd is 1 / 2."""
    x = np.tile([1.0, -1.0], (4, 1))
    given_ = on_device((x, 2 * x, np.array([2.0, 4]), np.array([1.0, 1])), dtype)
    total, normalised, saved = tt.add_layer_norm(*given_, scale=0, eps=3)
    assert np.array_equal(total.numpy(), x)
    assert normalised.numpy().tolist() == [[2, -1]] * 4
    found = tt.add_layer_norm_backward(*on_device((x, np.ones((4, 2))), dtype), saved)
    d_x, d_branch, d_weight, d_bias = (array.numpy().tolist() for array in found)
    # g = (2, 4), <g> = 3, n = (1, -1) / 2, <g n> = -1 / 2: dx = x + (g - 3 + n / 2) / 2
    assert d_x == [[0.625, -0.625]] * 4
    assert d_branch == [[0, 0]] * 4
    assert (d_weight, d_bias) == ([2, -2], [4, 4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_either_gradient_may_be_missing(dtype, scale):
    shape = (4, 3, 24)
    _, _, saved = tt.add_layer_norm(*on_device(arguments(shape), dtype), scale=scale)
    d_sum, d_normalised = on_device(gradients(shape), dtype)
    zeros = cuda.to_device(np.zeros(shape), dtype)
    for given_, same in (((None, d_normalised), (zeros, d_normalised)), ((d_sum, None), (d_sum, zeros))):
        ours, full = tt.add_layer_norm_backward(*given_, saved), tt.add_layer_norm_backward(*same, saved)
        assert all(np.array_equal(a, b) for a, b in zip(numbers(ours), numbers(full), strict=True))
        assert (ours[1] is ours[0]) == (scale == 1)
    ours[0][...] = 0
    assert d_sum.numpy().any()  # no result aliases an argument


@pytest.mark.parametrize("F", [24, 33, 1536, 2051])
def test_what_is_not_asked_for_changes_nothing(F):
    x, branch, weight, bias = on_device(arguments((3, F)), "bfloat16")
    total, normalised, saved = layer_norm.forward(x, branch, weight, bias, 0.5, EPS)
    _, alone, nothing = layer_norm.forward(x, branch, weight, bias, 0.5, EPS, keep_sum=False, save=False)
    of_sum, again, saved_again = layer_norm.forward(total, None, weight, bias, 0.5, EPS)
    assert nothing is None
    assert of_sum is total
    assert_same_bits(alone.numpy(), normalised.numpy())
    assert_same_bits(again.numpy(), normalised.numpy())
    assert_same_bits(saved_again.statistics.numpy(), saved.statistics.numpy())
    assert saved.statistics.dtype == "float32"


@pytest.mark.skipif(load_cuda().is_stand_in, reason="the stand-in has one order of everything")
def test_the_same_bits_in_ten_runs():
    def everything():
        total, normalised, saved = tt.add_layer_norm(*given_, scale=0.5)
        return numbers((total, normalised, *tt.add_layer_norm_backward(*seeds, saved)))

    shape = (4000, 768)
    given_, seeds = on_device(arguments(shape), "bfloat16"), on_device(gradients(shape), "bfloat16")
    first = everything()
    for _ in range(9):
        assert_same_bits(everything(), first)


def test_any_memory_order_is_taken_and_left_alone():
    given_ = on_device(arguments((6, 5, 8)), "float32")
    seeds = on_device(gradients((6, 5, 8)), "float32")
    total, normalised, saved = tt.add_layer_norm(*given_)
    expected = numbers((total, normalised, *tt.add_layer_norm_backward(*seeds, saved)))

    def spread(array):
        return cuda.to_device(np.repeat(array.numpy(), 2, axis=-1))[..., ::2]

    total, normalised, saved = tt.add_layer_norm(*map(spread, given_))
    found = numbers((total, normalised, *tt.add_layer_norm_backward(*map(spread, seeds), saved)))
    assert_same_bits(found, expected)


def test_arrays_of_other_libraries():
    given_ = on_device(arguments((4, 8)), "float32")
    expected = tt.add_layer_norm(*given_)[1]
    others = [SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__) for array in given_]
    found = tt.add_layer_norm(*others)[1]
    assert isinstance(found, cuda.DeviceArray)
    assert_same_bits(found.numpy(), expected.numpy())


HOST = np.zeros((2, 3), np.float32)
X, ROW = cuda.to_device(HOST), cuda.to_device(HOST[0])
SAVED = tt.add_layer_norm(X, X, ROW, ROW)[2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.add_layer_norm(X, HOST, ROW, ROW), TypeError, "branch is on the host"),
        (
            lambda: tt.add_layer_norm(cuda.to_device(HOST, "float64"), X, ROW, ROW),
            TypeError,
            "x has dtype float64, expected float32",
        ),
        (
            lambda: tt.add_layer_norm(X, cuda.to_device(HOST, "float16"), ROW, ROW),
            TypeError,
            "branch .*float16.*float32",
        ),
        (lambda: tt.add_layer_norm(X, X[:1], ROW, ROW), ValueError, r"branch .*\(1, 3\).*\(2, 3\)"),
        (lambda: tt.add_layer_norm(X, X, ROW[:2], ROW), ValueError, r"weight .*\(2,\).*\(3,\)"),
        (lambda: tt.add_layer_norm(X[:, :0], X[:, :0], ROW[:0], ROW[:0]), ValueError, "x has shape .*F >= 1"),
        (lambda: tt.add_layer_norm_backward(X[:1], None, SAVED), ValueError, "d_sum .*shape"),
        (lambda: tt.add_layer_norm_backward(X, HOST, SAVED), TypeError, "d_normalised is on the host"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
