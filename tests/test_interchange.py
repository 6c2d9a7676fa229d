"""The NumPy interface accepts arrays of other libraries, and these accept its results, without copies."""

import re

import numpy as np
import pytest

import throughtime as tt

X = np.random.default_rng(0).standard_normal((5, 2, 3), dtype=np.float32)


def as_torch(array):
    return pytest.importorskip("torch").from_numpy(array)


def as_torch_that_learns(array):
    return as_torch(array).requires_grad_(array.dtype.kind == "f")


def as_jax(array):
    return pytest.importorskip("jax.numpy").asarray(array)


@pytest.mark.parametrize("view", [as_torch, as_torch_that_learns, as_jax, memoryview])
def test_arrays_of_others_are_taken(view):
    lstm, d_output = tt.LSTM(3, 4, seed=0), np.ones((5, 2, 4), np.float32)
    h = np.full((1, 2, 4), 0.5, np.float32)
    expected = lstm.forward(X, (h, h), [5, 3]).backward(d_output)
    found = lstm.forward(view(X), (view(h), view(h)), [5, 3]).backward(view(d_output))
    assert np.array_equal(found.input, expected.input)
    assert np.array_equal(found.hidden, expected.hidden)
    assert np.array_equal(tt.gradient_flow(lstm, view(X)).log10_norm, tt.gradient_flow(lstm, X).log10_norm)
    assert np.array_equal(tt.lyapunov_spectrum(lstm, view(X[:, :1].copy())), tt.lyapunov_spectrum(lstm, X[:, :1]))
    targets = np.array([[0, 1], [2, 3]])
    logits = X[:2, :, :2].repeat(2, axis=2)
    assert tt.cross_entropy(view(logits), view(targets))[0] == tt.cross_entropy(logits, targets)[0]
    total, _, _ = tt.add_layer_norm(view(X), view(X), view(X[0, 0]), view(X[0, 1]))
    assert np.array_equal(total, X + X)


def test_results_go_out_where_they_lie():
    tape = tt.GRU(3, 4, seed=0).forward(X)
    grads = tape.backward(np.ones_like(tape.output))
    torch = pytest.importorskip("torch")
    for array in (tape.output, grads.input, grads.hidden, grads.parameters["weight_hh_l0"]):
        assert torch.from_dlpack(array).data_ptr() == array.ctypes.data
        assert np.from_dlpack(array).ctypes.data == array.ctypes.data


class Own(np.ndarray):
    """A subclass with its own operators."""

    def __add__(self, other):
        raise AssertionError("the subclass's own operator was used")

    __mul__ = __sub__ = __iadd__ = __add__


def results(value):
    """The arrays in a function's result."""
    if isinstance(value, np.ndarray | float):
        return [np.asarray(value)]
    if isinstance(value, tuple | list):
        return [array for one in value for array in results(one)]
    return results(list(value.values())) if isinstance(value, dict) else []


def both_ways(layer):
    def call(x, **options):
        tape = layer.forward(x, **options)
        grads = tape.backward(tape.output)
        return tape.output, grads.input, grads.parameters

    return call


FLOATS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 3, 0, 1])
LSTM, LSTM_STATE = tt.LSTM(4, 4, seed=0), np.full((1, 4), 0.5, np.float32)
STACK = tt.Sequential(tt.ResidualBlock(tt.GRU(4, 4, seed=1), 4), tt.MLP(4, 8, seed=2), tt.LayerNorm(4))

# The argument's name in errors, an array for it, and a function of it.
TAKE_ARRAYS = [
    ("x", FLOATS, both_ways(LSTM)),
    ("x", FLOATS, both_ways(tt.Linear(4, 3, seed=0))),
    ("x", FLOATS, both_ways(tt.MLP(4, 3, seed=0))),
    ("x", FLOATS, both_ways(tt.LayerNorm(4))),
    ("x", FLOATS, both_ways(tt.SelfAttention(4, 2, seed=0))),
    ("x", FLOATS, both_ways(STACK)),
    ("x", CLASSES[:, None], lambda x: tt.Embedding(4, 3, seed=0)(x)),
    ("x", FLOATS, lambda x: tt.GRU(4, 4, seed=0)(x)),
    ("x", FLOATS, lambda x: STACK(x)),
    ("state[1]", LSTM_STATE, lambda a: LSTM(FLOATS, (LSTM_STATE, a))),
    ("lengths", np.array([6, 3]), lambda a: LSTM(np.stack([FLOATS, FLOATS], 1), None, a)),
    ("resets", np.ones((6, 1), bool), lambda a: LSTM.forward(FLOATS[:, None], resets=a).output),
    ("d_output", FLOATS, lambda a: LSTM.forward(FLOATS).backward(a).input),
    ("d_output", FLOATS, lambda a: STACK.forward(FLOATS).backward(a).input),
    ("d_final_state[0]", LSTM_STATE, lambda a: LSTM.forward(FLOATS).backward(d_final_state=(a, None)).input),
    ("x", FLOATS, lambda x: tt.gradient_flow(LSTM, x).log10_norm),
    ("d_output", FLOATS, lambda a: tt.gradient_flow(STACK, FLOATS, a).log10_norm),
    ("x", FLOATS, lambda x: tt.lyapunov_spectrum(LSTM, x)),
    ("x", FLOATS, lambda x: tt.jacobians(LSTM, x)),
    ("x", FLOATS, lambda x: tt.connectivity(LSTM, x, (5,))),
    ("x", FLOATS, lambda x: tt.truncation_error(LSTM, x, [2])),
    ("d_output", FLOATS, lambda a: tt.truncation_error(LSTM, FLOATS, 2, a)),
    ("starts", FLOATS.reshape(3, 8), lambda a: tt.fixed_points(LSTM, FLOATS[0], a).points),
    ("x", FLOATS[0], lambda x: tt.fixed_points(LSTM, x, FLOATS.reshape(3, 8)).points),
    ("x", FLOATS, lambda x: tt.gradcheck(LSTM, x, samples=3)),
    ("x", FLOATS, lambda x: tt.add_layer_norm(x, FLOATS, FLOATS[0], FLOATS[1])[:2]),
    ("branch", FLOATS, lambda x: tt.add_layer_norm(FLOATS, x, FLOATS[0], FLOATS[1])[:2]),
    ("logits", FLOATS, lambda a: tt.cross_entropy(a, CLASSES)),
    ("targets", CLASSES[:, None], lambda a: tt.cross_entropy(FLOATS[:, None], a)),
    ("prediction", FLOATS, lambda a: tt.mse(a, FLOATS[::-1])),
    ("target", FLOATS, lambda a: tt.mse(FLOATS[::-1], a)),
    ("parameters['weight']", FLOATS, lambda a: loaded(tt.Linear(4, 6, bias=False), {"weight": a})),
    ("weights[0]", FLOATS, lambda a: tt.convert.from_keras("RNN", [a, np.eye(4)])),
]


def loaded(layer, parameters):
    layer.load_parameters(parameters)
    return layer.parameters


@pytest.mark.parametrize(("name", "array", "call"), TAKE_ARRAYS)
def test_masked_arrays_are_refused_by_name(name, array, call):
    for mask in (np.ma.nomask, np.arange(array.size).reshape(array.shape) == 1):
        with pytest.raises(TypeError, match=re.escape(f"{name} is a masked array")):
            call(np.ma.masked_array(array, mask))


@pytest.mark.parametrize(("name", "array", "call"), TAKE_ARRAYS)
@pytest.mark.parametrize("subclass", [np.matrix, np.memmap, Own])
def test_other_subclasses_are_taken_as_the_arrays_they_hold(name, array, call, subclass, tmp_path):
    if subclass is np.matrix and array.ndim != 2:
        return  # a matrix has two axes
    if subclass is np.memmap:
        given = np.memmap(tmp_path / "file", array.dtype, "w+", shape=array.shape)
        given[...] = array
    else:
        given = array.view(subclass)
    expected, found = results(call(array)), results(call(given))
    assert expected
    for one, other in zip(found, expected, strict=True):
        assert type(one) is np.ndarray
        assert one.shape == other.shape
        assert np.array_equal(one, other)


def test_masked_arrays_are_not_copied_to_a_device():
    with pytest.raises(TypeError, match="array is a masked array"):
        tt.cuda.to_device(np.ma.masked_array(FLOATS, FLOATS > 0))
