"""The checker accepts right gradients, rejects wrong ones, and leaves the layer unchanged."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt

# Central differences of step e = 1e-6: truncation e^2 / 6 times a third derivative, rounding u / e times the size of an
# output, both times the sum over the outputs (below 100 terms of size 1): 100 (2e-13 + 1e-10) = 1e-8. Ten times that.
BOUND = 1e-7
LAYERS = (tt.RNN, tt.GRU, tt.LSTM)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("layer", LAYERS)
def test_recurrent_layers_are_right(layer):
    errors = tt.gradcheck(layer(3, 4, 2, seed=0), numbers(5, 2, 3))
    states = ["h_0", "c_0"] if layer is tt.LSTM else ["h_0"]
    names = [f"{name}_l{k}" for k in range(2) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert list(errors) == ["input", *states, *names]
    assert max(errors.values()) <= BOUND


@pytest.mark.parametrize("layer", LAYERS)
def test_with_state_lengths_and_resets(layer):
    x = numbers(5, 3, 2)
    x[3:, 1] = np.nan  # padding
    h = numbers(2, 3, 4, seed=1)
    errors = tt.gradcheck(
        layer(2, 4, bidirectional=True, dtype="float64", seed=0),
        x,
        state=(h, 2 * h) if layer is tt.LSTM else h,
        lengths=np.array([5, 3, 0]),
        resets=np.random.default_rng(0).random((5, 3)) < 0.3,
    )
    assert max(errors.values()) <= BOUND


def test_dropout_masks_are_kept():
    errors = tt.gradcheck(tt.LSTM(3, 4, 2, dropout=0.5, seed=0), numbers(4, 2, 3))
    assert max(errors.values()) <= BOUND


def test_unbatched_and_batch_first():
    assert max(tt.gradcheck(tt.GRU(3, 4, seed=0), numbers(5, 3)).values()) <= BOUND
    assert max(tt.gradcheck(tt.GRU(3, 4, batch_first=True, seed=0), numbers(2, 5, 3)).values()) <= BOUND


def test_linear_and_embedding():
    errors = tt.gradcheck(tt.Linear(3, 2, seed=0), numbers(4, 5, 3).astype(np.float32), samples=None)
    assert list(errors) == ["input", "weight", "bias"]
    assert max(errors.values()) <= BOUND
    errors = tt.gradcheck(tt.Embedding(5, 3, seed=0), np.array([[0, 1], [1, 4]]), samples=None)
    assert list(errors) == ["weight"]  # integers have no gradient
    assert max(errors.values()) <= BOUND


class Wrong(tt.Linear):
    """A Linear whose gradient of one parameter is 1 % off."""

    def forward(self, x):
        tape = super().forward(x)
        right = tape.backward

        def backward(d_output):
            grads = right(d_output)
            grads.parameters["weight"] *= 1.01
            return grads

        tape.backward = backward
        return tape


@pytest.mark.parametrize("samples", [1, 3, None])
def test_a_wrong_gradient_is_found_and_only_there(samples):
    errors = tt.gradcheck(Wrong(3, 2, seed=0), np.full((4, 3), 2.0), samples=samples)
    assert errors["weight"] > 1e-4
    assert errors["input"] <= BOUND
    assert errors["bias"] <= BOUND


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_and_input_are_left_alone(dtype):
    layer, x = tt.Linear(3, 2, dtype=dtype, seed=0), numbers(4, 3)
    before, x_before = layer.parameters["weight"].copy(), x.copy()
    x.flags.writeable = False
    tt.gradcheck(layer, x)
    assert np.array_equal(layer.parameters["weight"], before)
    assert np.array_equal(x, x_before)
    assert layer.dtype == dtype


def test_same_seed_same_answer():
    layer, x = tt.Linear(3, 2, seed=0), numbers(4, 3)
    assert tt.gradcheck(layer, x, seed=3) == tt.gradcheck(layer, x, seed=3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.gradcheck(np.tanh, numbers(4, 3)), TypeError, "layer"),
        (lambda: tt.gradcheck(tt.Linear(3, 2), [1.0]), TypeError, "x "),
        (lambda: tt.gradcheck(tt.Linear(3, 2), numbers(4, 3).astype(complex)), TypeError, "x .*complex"),
        (lambda: tt.gradcheck(tt.Linear(3, 2), numbers(4, 2)), ValueError, "x "),
        (lambda: tt.gradcheck(tt.Linear(3, 2), numbers(4, 3), eps=0), ValueError, "eps"),
        (lambda: tt.gradcheck(tt.Linear(3, 2), numbers(4, 3), samples=0), ValueError, "samples"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
