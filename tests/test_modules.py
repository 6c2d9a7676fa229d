"""Linear and Embedding: agreement with torch, any leading axes, checked arguments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound

DTYPES = ("float32", "float64")
LEADING = st.lists(st.integers(1, 6), max_size=3).map(tuple)


def numbers(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(leading=LEADING, inputs=st.integers(1, 20), outputs=st.integers(1, 20), bias=st.booleans())
def test_linear_agrees_with_torch(dtype, leading, inputs, outputs, bias):
    torch = pytest.importorskip("torch")
    ours = tt.Linear(inputs, outputs, bias, dtype=dtype, seed=0)
    theirs = torch.nn.Linear(inputs, outputs, bias, dtype=torch.float64)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.parameters.items()})
    x, d_output = numbers((*leading, inputs), dtype), numbers((*leading, outputs), dtype, 1)
    tape = ours.forward(x)
    grads = tape.backward(d_output)
    wide = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = theirs(wide)
    expected.backward(torch.tensor(d_output.astype(np.float64)))
    # A sum of n products is off by at most the bound times the sum of their magnitudes (not times the result).
    rows = max(1, int(np.prod(leading)))
    for found, true, terms in (
        (tape.output, expected.detach(), inputs + 1),
        (grads.input, wide.grad, outputs),
        *((grads.parameters[name], p.grad, rows) for name, p in theirs.named_parameters()),
    ):
        assert found.shape == true.shape
        assert found.dtype == dtype
        magnitude = terms * 16  # of normal numbers, which are below 4 with these seeds
        assert np.abs(found - true.numpy()).max() <= rounding_bound(dtype, terms) * magnitude
    assert np.array_equal(ours(x), tape.output)


def test_linear_sums_of_integers_are_exact():
    linear = tt.Linear(3, 2, dtype="float64")
    linear.load_parameters({"weight": np.array([[1.0, 2, 3], [4, 5, 6]]), "bias": np.array([10.0, 20])})
    tape = linear.forward(np.array([[[1.0, 0, -1]], [[2, 2, 2]]]))
    assert tape.output.tolist() == [[[8, 18]], [[22, 50]]]
    grads = tape.backward(np.array([[[1.0, 0]], [[0, 2]]]))
    assert grads.input.tolist() == [[[1, 2, 3]], [[8, 10, 12]]]
    assert grads.parameters["weight"].tolist() == [[1, 0, -1], [4, 4, 4]]
    assert grads.parameters["bias"].tolist() == [1, 2]


def test_backward_uses_the_weights_of_the_forward_and_may_be_called_again():
    linear = tt.Linear(3, 2, seed=0)
    tape = linear.forward(numbers((5, 3), "float32"))
    first = tape.backward(tape.output)
    linear.parameters["weight"][...] = 0
    again = tape.backward(tape.output)
    assert np.array_equal(first.input, again.input)
    assert all(np.array_equal(first.parameters[name], again.parameters[name]) for name in first.parameters)
    assert tape.nbytes > 0


def test_linear_of_an_empty_batch():
    tape = tt.Linear(3, 2, seed=0).forward(np.zeros((5, 0, 3), np.float32))
    grads = tape.backward(tape.output)
    assert tape.output.shape == (5, 0, 2)
    assert grads.input.shape == (5, 0, 3)
    assert not grads.parameters["weight"].any()
    assert not grads.parameters["bias"].any()


def test_linear_takes_any_memory_order_and_leaves_it_alone():
    linear, x = tt.Linear(4, 2, dtype="float64", seed=0), numbers((6, 5, 4))
    expected = linear(x)
    x.flags.writeable = False
    for other in (np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x):
        assert_close(linear(other), expected, rounding_bound("float64", 5))


@pytest.mark.parametrize("make", [lambda s: tt.Linear(100, 50, seed=s), lambda s: tt.Embedding(100, 50, seed=s)])
def test_seeds(make):
    assert np.array_equal(make(1).parameters["weight"], make(1).parameters["weight"])
    assert not np.array_equal(make(1).parameters["weight"], make(2).parameters["weight"])


def test_initial_values_are_torchs():
    linear = tt.Linear(16, 500, seed=0).parameters
    embedding = tt.Embedding(100, 50, seed=0).parameters["weight"]
    for array in linear.values():  # U(-1/4, 1/4): all of n draws avoid the outermost 30/n with probability exp(-30)
        assert 0.25 * (1 - 30 / array.size) <= np.abs(array).max() <= 0.25
    # N(0, 1): the mean square of n draws has deviation sqrt(2 / n); the bound is 7 of them.
    assert abs(np.mean(embedding.astype(float) ** 2) - 1) <= 7 * np.sqrt(2 / embedding.size)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@given(leading=LEADING, count=st.integers(1, 9), size=st.integers(1, 9))
def test_embedding_agrees_with_torch(dtype, leading, count, size):
    torch = pytest.importorskip("torch")
    ours = tt.Embedding(count, size, dtype=dtype, seed=0)
    theirs = torch.nn.Embedding(count, size, dtype=torch.float64)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.parameters.items()})
    x, d_output = np.random.default_rng(0).integers(0, count, leading), numbers((*leading, size), dtype, 1)
    tape = ours.forward(x)
    expected = theirs(torch.tensor(x))
    expected.backward(torch.tensor(d_output.astype(np.float64)))
    assert np.array_equal(tape.output, expected.detach().numpy())
    assert np.array_equal(ours(x), tape.output)
    grads = tape.backward(d_output)
    found = grads.parameters["weight"]
    # Both sum up to 216 normal numbers in float64, and round once.
    magnitude = np.abs(d_output).sum()
    assert np.abs(found - theirs.weight.grad.numpy()).max() <= magnitude * (
        rounding_bound("float64", 216) + np.finfo(dtype).eps / 2
    )
    assert found.dtype == dtype
    assert grads.input is None


@pytest.mark.per_level
def test_embedding_gradient_of_integers_is_exact():
    tape = tt.Embedding(5, 2, seed=0).forward(np.array([[3, 0], [3, 4], [3, 3]]))
    d_output = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    weight = tape.backward(d_output).parameters["weight"]
    assert weight.tolist() == [[2, 3], [0, 0], [0, 0], [22, 26], [6, 7]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint64", ">i8"])
def test_embedding_of_any_integer_type(dtype):
    embedding, x = tt.Embedding(5, 2, seed=0), np.array([[3, 0], [3, 4]])
    assert np.array_equal(embedding(x.astype(dtype)), embedding(x))


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("count", "size", "leading"), [(1, 1, ()), (103, 128, (64, 32)), (300, 77, (999,)), (3, 130, (500,))]
)
def test_embedding_is_the_same_bits_for_any_number_of_threads(dtype, count, size, leading, threads, teams):
    """Equal to those of a sum in float64, row by row; half of all indices are the first."""
    embedding, rng = tt.Embedding(count, size, dtype=dtype, seed=0), np.random.default_rng(0)
    x = rng.integers(0, count, leading) * rng.integers(0, 2, leading)
    d_output = numbers((*leading, size), dtype)
    expected = np.zeros((count, size))
    np.add.at(expected, x.reshape(-1), d_output.reshape(-1, size).astype(np.float64))
    threads(1)
    for team in itertools.chain(["one thread"], teams()):
        tape = embedding.forward(x)
        assert_same_bits(tape.output, embedding.parameters["weight"][x], team)
        assert_same_bits(tape.backward(d_output).parameters["weight"], expected.astype(dtype), team)


def test_embedding_of_views_is_that_of_copies():
    embedding, x = tt.Embedding(9, 5, seed=0), np.random.default_rng(0).integers(0, 9, (12, 8))[::3, ::-2]
    tape, copied = embedding.forward(x), embedding.forward(x.copy())
    assert_same_bits(tape.output, copied.output)
    d_output = numbers((5, 4, 4), "float32").T
    assert_same_bits(tape.backward(d_output).parameters, copied.backward(d_output.copy()).parameters)


def test_integers_that_change_after_the_forward_are_looked_at_again():
    embedding, x = tt.Embedding(4, 2, seed=0), np.array([1, 2])
    tape = embedding.forward(x)
    x[0] = 4
    with pytest.raises(ValueError, match=r"x must hold integers in \[0, 4\).*changed"):
        tape.backward(tape.output)


def test_embedding_of_an_empty_batch():
    tape = tt.Embedding(5, 2, seed=0).forward(np.zeros((3, 0), int))
    assert tape.output.shape == (3, 0, 2)
    assert not tape.backward(tape.output).parameters["weight"].any()
    assert tape.nbytes == 0


@pytest.mark.parametrize("layer", [tt.Linear(3, 2, seed=0), tt.Embedding(4, 2, dtype="float64", seed=0)])
def test_saved_and_loaded(layer, tmp_path):
    layer.save(tmp_path / "layer")
    loaded = tt.load(tmp_path / "layer")
    assert repr(loaded) == repr(layer)
    assert all(np.array_equal(loaded.parameters[name], array) for name, array in layer.parameters.items())


def test_repr():
    assert repr(tt.Linear(3, 2)) == "Linear(3, 2)"
    assert repr(tt.Linear(3, 2, bias=False, dtype="float64")) == "Linear(3, 2, bias=False, dtype='float64')"
    assert repr(tt.Embedding(4, 2)) == "Embedding(4, 2)"


def test_astype():
    linear = tt.Linear(3, 2, seed=0)
    wide = linear.astype("float64")
    assert wide.dtype == np.float64
    assert linear.dtype == np.float32
    assert np.array_equal(wide.parameters["weight"], linear.parameters["weight"])
    with pytest.raises(TypeError, match="dtype"):
        linear.astype("int32")


X = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.Linear(0, 2), ValueError, "input_size"),
        (lambda: tt.Linear(3, 2.0), TypeError, "output_size"),
        (lambda: tt.Linear(3, 2, 1), TypeError, "bias"),
        (lambda: tt.Linear(3, 2, dtype="float16"), TypeError, "dtype"),
        (lambda: tt.Linear(3, 2)([[0.0]]), TypeError, "x "),
        (lambda: tt.Linear(3, 2)(X.astype(np.float64)), TypeError, "x .*float64.*float32"),
        (lambda: tt.Linear(3, 2)(X.astype(">f4")), TypeError, "x .*>f4"),
        (lambda: tt.Linear(4, 2).forward(X), ValueError, r"x .* 4 features.*\(4, 3\)"),
        (lambda: tt.Linear(4, 2).forward(np.zeros((), np.float32)), ValueError, "x "),
        (lambda: tt.Linear(3, 2).forward(X).backward(X), ValueError, r"d_output.*\(4, 3\).*\(4, 2\)"),
        (lambda: tt.Linear(3, 2).forward(X).backward(np.zeros((4, 2))), TypeError, "d_output"),
        (lambda: tt.Embedding(0, 2), ValueError, "count"),
        (lambda: tt.Embedding(3, True), TypeError, "size"),
        (lambda: tt.Embedding(3, 2)(X), TypeError, "x .*float32"),
        (lambda: tt.Embedding(3, 2)(np.array([True])), TypeError, "x .*bool"),
        (lambda: tt.Embedding(3, 2)(np.array([0, 3])), ValueError, "x .*3.*got 3"),
        (lambda: tt.Embedding(3, 2)(np.array([0, -1])), ValueError, "x .*got -1"),
        (lambda: tt.Embedding(3, 2)(np.array([0, 2**64 - 1], np.uint64)), ValueError, "x .*got 18446744073709551615"),
        (lambda: tt.Embedding(3, 2).forward(np.array([0])).backward(X), ValueError, "d_output"),
        (lambda: tt.Linear(3, 2).load_parameters({"weight": X}), ValueError, "missing 'bias'"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
