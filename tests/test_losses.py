"""Cross entropy and mean squared error against torch and by differences, and clipping of gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound

DTYPES = ("float32", "float64")


def numbers(shape, dtype="float64", scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    shape=st.lists(st.integers(1, 7), max_size=3),
    classes=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_cross_entropy_agrees_with_torch(dtype, shape, classes, scale, seed):
    torch = pytest.importorskip("torch")
    logits = numbers((*shape, classes), dtype, scale, seed)
    targets = np.random.default_rng(seed).integers(0, classes, shape)
    targets[np.random.default_rng(seed + 1).random(shape) < 0.2] = -100
    if (targets == -100).all():
        targets[...] = 0
    loss, d_logits = tt.cross_entropy(logits, targets)
    wide = torch.tensor(logits.astype(np.float64).reshape(-1, classes), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(wide, torch.tensor(targets.reshape(-1)))
    expected.backward()
    # exp and log in float64 of differences of logits, each within 2 roundings of the largest; then sums of all.
    terms = 2 * classes + targets.size + 10
    magnitude = max(1.0, float(np.abs(logits).max()))
    assert isinstance(loss, float)
    assert abs(loss - expected.item()) <= rounding_bound("float64", terms) * magnitude
    assert d_logits.dtype == dtype
    # Entries of d_logits are of size 1 / count, an error in the exponent is relative; one rounding to the dtype.
    bound = rounding_bound("float64", terms) * magnitude + np.finfo(dtype).eps
    assert np.abs(d_logits - wide.grad.numpy().reshape(logits.shape)).max() * targets.size <= bound * targets.size


# Rows and classes below a register, of whole ones and a rest; few rows and many, in several blocks.
ODD_SIZES = [(1, 1), (3, 2), (50, 7), (37, 103), (2100, 33), (5, 2048)]


def cross_entropy_in_numpy(logits, targets):
    """The docstring's formulas, in float64."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    sums = np.exp(shifted).sum(axis=1, keepdims=True)
    d_logits = np.exp(shifted) / sums
    d_logits[rows, targets] -= 1
    return float(np.mean(np.log(sums[:, 0]) - shifted[rows, targets])), d_logits / len(logits)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ODD_SIZES)
def test_cross_entropy_agrees_with_numpy_for_any_number_of_threads(dtype, shape, threads, teams):
    logits, targets = numbers(shape, dtype, 3.0), np.random.default_rng(0).integers(0, shape[1], shape[0])
    threads(1)
    one = tt.cross_entropy(logits, targets)
    loss, d_logits = cross_entropy_in_numpy(logits, targets)
    assert abs(one[0] - loss) <= 1e-10
    # An entry is below 1 / N, and rounded once to its type.
    assert np.abs(one[1] - d_logits).max() <= (1e-10 if dtype == "float64" else 2 * np.finfo(dtype).eps) / shape[0]
    for team in teams():
        again = tt.cross_entropy(logits, targets)
        assert_same_bits(again[1], one[1], team)
        assert again[0] == one[0]


def test_cross_entropy_is_the_derivative_of_itself():
    logits, targets, step = numbers((4, 5)), np.array([0, 4, -100, 2]), 1e-6
    _, d_logits = tt.cross_entropy(logits, targets)
    for at in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[at] = step
        difference = tt.cross_entropy(logits + shift, targets)[0] - tt.cross_entropy(logits - shift, targets)[0]
        # Half the third derivative, below 1, times step^2; and the rounding of a loss of about 2 over the step.
        assert abs(difference / (2 * step) - d_logits[at]) <= step**2 + 4 * np.finfo(np.float64).eps / step


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_logits_of_1e30(dtype):
    logits = np.array([[1e30, 0, -1e30], [1e30, 1e30, 0]], dtype)
    loss, d_logits = tt.cross_entropy(logits, np.array([2, 1]))
    assert loss == (2 * float(logits[0, 0]) + math.log(2)) / 2
    assert np.array_equal(d_logits, [[0.5, 0, -0.5], [0.25, -0.25, 0]])


@pytest.mark.per_level
@pytest.mark.parametrize("row", [[-np.inf] * 3, [np.inf, 0.0, 1.0], [0.0, np.nan, -np.inf]])
def test_a_row_without_a_softmax_has_a_nan_loss_and_gradient_and_leaves_others_alone(row):
    logits = np.array([row, [1.0, 2.0, 3.0]])
    loss, d_logits = tt.cross_entropy(logits, np.array([0, 1]))
    assert math.isnan(loss)
    assert np.isnan(d_logits[0]).all()
    assert np.array_equal(d_logits[1], tt.cross_entropy(logits[1:], np.array([1]))[1][0] / 2)


def test_targets_past_the_range_of_int64_are_no_ignored_ones():
    """-100 as an unsigned integer is 2^64 - 100."""
    with pytest.raises(ValueError, match=r"targets\[1\] is 18446744073709551516"):
        tt.cross_entropy(np.zeros((2, 3)), np.array([0, 2**64 - 100], np.uint64))
    assert tt.cross_entropy(np.zeros((1, 3)), np.array([0]), ignore_index=2**70)[0] == pytest.approx(math.log(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_views_are_those_of_copies(dtype):
    logits, targets = numbers((6, 10, 14), dtype), np.random.default_rng(0).integers(0, 7, (12, 10))
    view, chosen = logits[::2, ::-1, ::2], targets[::4]
    ours, expected = tt.cross_entropy(view, chosen), tt.cross_entropy(view.copy(), chosen.copy())
    assert ours[0] == expected[0]
    assert_same_bits(ours[1], expected[1])
    ours, expected = tt.mse(view, view * 2), tt.mse(view.copy(), view.copy() * 2)
    assert ours[0] == expected[0]
    assert_same_bits(ours[1], expected[1])


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 33, 16384, 100_001])
def test_mse_agrees_with_numpy_for_any_number_of_threads(dtype, size, threads, teams):
    prediction, target = numbers(size, dtype), numbers(size, dtype, seed=1)
    threads(1)
    loss, d_prediction = tt.mse(prediction, target)
    difference = prediction.astype(np.float64) - target
    assert abs(loss - np.mean(difference**2)) <= 1e-10
    assert_close(d_prediction, 2 * difference / size, 2 * np.finfo(dtype).eps)
    for team in teams():
        again = tt.mse(prediction, target)
        assert again[0] == loss
        assert_same_bits(again[1], d_prediction, team)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_extreme_logits(dtype):
    """The largest logits of the type, whose exponentials and differences overflow or vanish."""
    huge = np.finfo(dtype).max / 4
    logits = np.array([[huge, -huge], [huge, -huge], [1e4, 1e4]], dtype)
    loss, d_logits = tt.cross_entropy(logits[:1], np.array([0]))
    assert loss == 0.0
    assert not d_logits.any()
    loss, d_logits = tt.cross_entropy(logits[1:2], np.array([1]))
    assert loss == 2 * float(logits[0, 0])
    assert np.array_equal(d_logits, [[1, -1]])
    loss, d_logits = tt.cross_entropy(logits[2:], np.array([0]))
    assert abs(loss - math.log(2)) <= np.finfo(np.float64).eps
    assert np.array_equal(d_logits, [[-0.5, 0.5]])


@pytest.mark.per_level
def test_cross_entropy_with_impossible_and_broken_logits():
    masked = np.array([[0.0, -np.inf], [0.0, 0.0]])
    loss, d_logits = tt.cross_entropy(masked, np.array([0, 1]))
    assert abs(loss - math.log(2) / 2) <= 1e-16
    assert np.array_equal(d_logits, [[0, 0], [0.25, -0.25]])
    assert tt.cross_entropy(masked, np.array([1, 1]))[0] == math.inf
    assert math.isnan(tt.cross_entropy(np.array([[np.nan, 0.0]]), np.array([1]))[0])


@pytest.mark.per_level
def test_ignored_targets_change_nothing_even_where_logits_are_nan():
    logits, targets = numbers((6, 4)), np.array([0, 1, 2, 3, 0, 1])
    loss, d_logits = tt.cross_entropy(logits[:4], targets[:4])
    logits[4:] = np.nan
    padded, d_padded = tt.cross_entropy(logits, np.array([0, 1, 2, 3, 7, 7]), ignore_index=7)
    assert padded == loss
    assert np.array_equal(d_padded[:4], d_logits)
    assert not d_padded[4:].any()


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_all_ignored_or_none_is_a_loss_of_zero(shape):
    loss, d_logits = tt.cross_entropy(numbers((*shape, 5)), np.full(shape, -100))
    assert loss == 0.0
    assert d_logits.shape == (*shape, 5)
    assert not d_logits.any()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint64", ">i4"])
def test_targets_of_any_integer_type_and_any_memory_order(dtype):
    logits, targets = numbers((4, 6, 5)), np.random.default_rng(0).integers(0, 5, (4, 6))
    expected = tt.cross_entropy(logits, targets)
    found = tt.cross_entropy(np.asfortranarray(logits), np.asfortranarray(targets.astype(dtype)))
    assert found[0] == expected[0]
    assert np.array_equal(found[1], expected[1])


def test_losses_leave_their_arguments_alone():
    logits, targets = numbers((4, 5)), np.array([0, 1, 2, -100])
    for array in (logits, targets):
        array.flags.writeable = False
    tt.cross_entropy(logits, targets)
    tt.mse(logits, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 2, 5)])
def test_mse_agrees_with_torch(dtype, shape):
    torch = pytest.importorskip("torch")
    prediction, target = numbers(shape, dtype), numbers(shape, dtype, seed=1)
    prediction, target = np.asarray(prediction), np.asarray(target)
    loss, d_prediction = tt.mse(prediction, target)
    wide = torch.tensor(prediction.astype(np.float64), requires_grad=True)
    expected = torch.nn.functional.mse_loss(wide, torch.tensor(target.astype(np.float64)))
    expected.backward()
    assert isinstance(loss, float)
    assert d_prediction.dtype == dtype
    assert abs(loss - expected.item()) <= rounding_bound("float64", prediction.size + 3) * loss
    assert_close(d_prediction, wide.grad.numpy(), 2 * np.finfo(dtype).eps)


@pytest.mark.per_level
def test_mse_of_large_and_of_no_values():
    big = np.full(2, 3e38, np.float32)
    loss, _ = tt.mse(big, -big)
    assert abs(loss / (2 * float(big[0])) ** 2 - 1) <= 4 * np.finfo(np.float64).eps
    loss, d_prediction = tt.mse(np.zeros((0, 3)), np.zeros((0, 3)))
    assert loss == 0.0
    assert d_prediction.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.cross_entropy([[0.0]], np.array([0])), TypeError, "logits"),
        (lambda: tt.cross_entropy(np.zeros((2, 3), np.float16), np.zeros(2, int)), TypeError, "logits.*float16"),
        (lambda: tt.cross_entropy(np.zeros((2, 3), complex), np.zeros(2, int)), TypeError, "logits.*complex"),
        (lambda: tt.cross_entropy(np.zeros((2, 0)), np.zeros(2, int)), ValueError, "logits"),
        (lambda: tt.cross_entropy(np.zeros(()), np.zeros((), int)), ValueError, "logits"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(2)), TypeError, "targets.*float64"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(2, bool)), TypeError, "targets.*bool"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(3, int)), ValueError, r"targets.*\(3,\).*\(2,\)"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.array([0, 3])), ValueError, r"targets\[1\] is 3"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.array([-1, 0])), ValueError, r"targets\[0\] is -1"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), 0.5), TypeError, "ignore_index"),
        (lambda: tt.mse(np.zeros(2), np.zeros(3)), ValueError, "target"),
        (lambda: tt.mse(np.zeros(2), np.zeros(2, np.float32)), TypeError, "target"),
        (lambda: tt.mse(np.zeros(2, int), np.zeros(2, int)), TypeError, "prediction"),
        (lambda: tt.clip_grad_norm({"w": np.zeros(2)}, -1), ValueError, "max_norm"),
        (lambda: tt.clip_grad_norm({"w": np.zeros(2)}, math.nan), ValueError, "max_norm"),
        (lambda: tt.clip_grad_norm([np.zeros(2)], 1), TypeError, "grads"),
        (lambda: tt.clip_grad_norm({"w": np.zeros(2, int)}, 1), TypeError, r"grads\['w'\]"),
        (lambda: tt.clip_grad_norm({"w": [1.0]}, 1), TypeError, r"grads\['w'\]"),
        (lambda: tt.clip_grad_norm({"w": np.broadcast_to(1.0, 3)}, 1), ValueError, r"grads\['w'\]"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e3, math.inf])
def test_clip_grad_norm_agrees_with_torch(dtype, max_norm):
    torch = pytest.importorskip("torch")
    grads = {"a": numbers((3, 4), dtype), "b": numbers((5,), dtype, seed=1), "none": numbers((0, 2), dtype)}
    tensors = [torch.zeros(grad.shape, dtype=torch.float64) for grad in grads.values()]
    for tensor, grad in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(grad.astype(np.float64))
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm).item()
    norm = tt.clip_grad_norm(grads, max_norm)
    assert abs(norm - expected) <= rounding_bound("float64", 20) * expected
    for tensor, grad in zip(tensors, grads.values(), strict=True):  # torch divides by norm + 1e-6
        assert_close(grad, tensor.grad.numpy(), 1e-6 / expected + 2 * np.finfo(dtype).eps)


@pytest.mark.per_level
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-44), ("float32", 3e38), ("float64", 1e-320), ("float64", 1e307)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_norm_neither_underflows_nor_overflows(dtype, size, sign):
    """Also if no entry is positive: sums are relative to the largest magnitude."""
    entry = float(np.array(size, dtype))
    grads = {"a": np.full((2, 2), sign * size, dtype), "b": np.full(5, -size, dtype)}
    assert tt.clip_grad_norm(grads, math.inf) == pytest.approx(3 * entry, rel=1e-15, abs=5e-324)
    assert tt.clip_grad_norm(grads, 1.5 * entry) == pytest.approx(3 * entry, rel=1e-15, abs=5e-324)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert np.abs(np.abs(grads["a"]).astype(float) - entry / 2).max() <= max(entry * np.finfo(dtype).eps, tiny)


@pytest.mark.per_level
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_non_finite_gradients_are_reported_and_left_alone(broken):
    grads = {"a": np.array([1.0, broken]), "b": np.array([2.0])}
    norm = tt.clip_grad_norm(grads, 1.0)
    assert math.isnan(norm) if math.isnan(broken) else norm == math.inf
    assert np.array_equal(grads["a"], [1.0, broken], equal_nan=True)
    assert grads["b"][0] == 2.0


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_clipping_is_the_same_bits_for_any_number_of_threads(dtype, size, threads, teams):
    """With sizes for which squares in float64 vanish or overflow."""
    if dtype == "float32":
        size = 1.0

    def run():
        grads = {str(n): numbers(n, dtype, size, seed=n) for n in (1, 7, 16384, 50_001, 0, 33)}
        return tt.clip_grad_norm(grads, 0.5 * size), grads

    threads(1)
    norm, clipped = run()
    flat = np.concatenate([numbers(n, dtype, size, seed=n) for n in (1, 7, 16384, 50_001, 0, 33)]) / size
    assert abs(norm / size - np.linalg.norm(flat.astype(np.float64))) <= 1e-10 * norm / size
    for name, array in clipped.items():
        expected = numbers(int(name), dtype, size, seed=int(name)) * (0.5 * size / norm)
        assert_close(array, expected.astype(dtype), np.finfo(dtype).eps)
    for team in teams():
        again, arrays = run()
        assert again == norm
        assert_same_bits(arrays, clipped, team)


@pytest.mark.per_level
def test_an_infinite_entry_beside_squares_that_overflow_is_an_infinite_norm():
    assert tt.clip_grad_norm({"a": np.array([1e200, -np.inf])}, 1.0) == math.inf
    assert math.isnan(tt.clip_grad_norm({"a": np.array([1e200, -np.inf]), "b": np.array([np.nan])}, 1.0))


def test_clip_takes_other_floats_in_any_byte_order():
    grads = {dtype: np.full(2, 2.0, dtype) for dtype in ("float16", "float32", "float64", ">f8")}
    assert tt.clip_grad_norm(grads, math.sqrt(8.0)) == math.sqrt(32.0)
    for dtype, array in grads.items():
        assert array.dtype == dtype
        assert array.tolist() == [1.0, 1.0]


def test_clip_takes_what_backward_returned():
    tape = tt.Linear(3, 2, seed=0).forward(np.ones((4, 3), np.float32))
    grads = tape.backward(np.ones_like(tape.output))
    before = tt.clip_grad_norm(grads, 0.5)
    assert before > 0.5
    assert tt.clip_grad_norm(grads.parameters, 1.0) == pytest.approx(0.5, rel=2.0**-23)


def test_clip_works_on_views_and_on_nothing():
    grads = np.ones((4, 6))
    assert tt.clip_grad_norm({"view": grads[::2, ::3]}, 1.0) == 2.0
    assert grads[0, 0] == 0.5
    assert grads[1, 1] == 1.0
    assert tt.clip_grad_norm({}, 1.0) == 0.0


@pytest.mark.parametrize("view", [lambda g: g, lambda g: g[:], lambda g: g.T, lambda g: g.view(np.matrix)])
def test_a_gradient_under_two_names_counts_and_is_scaled_once(view):
    grad = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert tt.clip_grad_norm({"a": grad, "b": view(grad)}, 2.5) == 5.0
    assert grad.tolist() == [[1.5, 0.0], [0.0, 2.0]]


def test_gradients_that_overlap_in_part_are_refused():
    grad = np.full((4, 3), 2.0)
    with pytest.raises(ValueError, match=r"grads\['b'\] overlaps grads\['a'\] in memory"):
        tt.clip_grad_norm({"a": grad, "b": grad[1:]}, 1.0)
    assert (grad == 2).all()
    assert tt.clip_grad_norm({"a": grad[::2], "b": grad[1::2]}, math.inf) == math.sqrt(48.0)


def test_clip_takes_a_matrix_and_refuses_a_mask():
    grads = {"a": np.full((2, 2), 2.0).view(np.matrix)}
    assert tt.clip_grad_norm(grads, 2.0) == 4.0
    assert (grads["a"] == 1).all()
    with pytest.raises(TypeError, match=r"grads\['a'\] is a masked array"):
        tt.clip_grad_norm({"a": np.ma.masked_array(np.ones(3), [0, 1, 0])}, 1.0)
