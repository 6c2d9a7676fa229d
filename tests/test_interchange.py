"""Arrays of other libraries go into the NumPy interface as they are, and its results go out to them, without copies."""

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
