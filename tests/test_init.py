"""Initial weights: the distributions of torch.nn.init, orthogonality, the IRNN's identity, chrono biases."""

from __future__ import annotations

import math

import numpy as np
import pytest

import throughtime as tt

MATRIX_DRAWS = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal")
SHAPES = [(30, 40), (40, 30), (8, 5, 3, 2)]


def draw(name, shape, seed=0, **options):
    return getattr(tt.init, name)(shape, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("name", MATRIX_DRAWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_dtype_and_seed(name, shape, dtype):
    ours = draw(name, shape, dtype=dtype)
    assert ours.shape == shape
    assert ours.dtype == dtype
    assert np.array_equal(ours, draw(name, shape, dtype=dtype))
    assert not np.array_equal(ours, draw(name, shape, seed=1, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("xavier", {}), ("xavier", {"gain": 5 / 3})]
    + [
        ("kaiming", {"mode": mode, "nonlinearity": nonlinearity, "a": 0.3})
        for mode in ("fan_in", "fan_out")
        for nonlinearity in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
    ],
)
def test_uniform_and_normal_have_torchs_deviation(name, options, shape):
    """Torch's bound is read off torch itself: its generator is replaced by one that returns the bounds."""
    torch = pytest.importorskip("torch")
    expected = torch_deviation(torch, name, shape, options)
    uniform = draw(name + "_uniform", shape, dtype="float64", **options)
    normal = draw(name + "_normal", shape, dtype="float64", **options)
    bound = math.sqrt(3) * expected
    # n draws leave (1/n of) the range's ends empty: all n stay below (1 - 30/n) bound with probability exp(-30).
    assert bound * (1 - 30 / uniform.size) <= np.abs(uniform).max() <= bound
    # The sample's mean square has relative deviation sqrt(2/n); 7 of them are passed with probability 3e-12.
    assert abs(np.mean(normal**2) / expected**2 - 1) <= 7 * math.sqrt(2 / normal.size)
    assert np.abs(normal).max() > bound  # 0.083 of a normal's draws lie beyond: none of 240 with probability 1e-9


def torch_deviation(torch, name, shape, options):
    if name == "xavier":
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
        return options.get("gain", 1.0) * math.sqrt(2 / (fan_in + fan_out))
    gain = torch.nn.init.calculate_gain(options["nonlinearity"], options["a"])
    return gain / math.sqrt(torch.nn.init._calculate_correct_fan(torch.empty(shape), options["mode"]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "gates"), [((7, 7), 1), ((28, 7), 4), ((20, 3), 2), ((6, 9), 2), ((4, 3, 2), 1)])
def test_orthogonal_blocks(shape, gates, dtype):
    weight = draw("orthogonal", shape, gain=2.0, gates=gates, dtype=dtype).reshape(shape[0], -1).astype(np.float64)
    for block in np.split(weight / 2.0, gates):
        gram = block @ block.T if len(block) < block.shape[1] else block.T @ block
        # Householder's Q is orthogonal to n^1.5 u (Higham 2002, 19.3) with a small constant; rounding to the dtype adds
        # n products with relative error 2u, of columns of norm 1.
        size = max(block.shape)
        assert np.abs(gram - np.eye(len(gram))).max() <= 8 * size**1.5 * np.finfo(dtype).eps


def test_orthogonal_has_no_preferred_sign():
    """The trace of a uniformly random rotation has mean 0 and variance 1; LAPACK's raw Q is far off that."""
    rng = np.random.default_rng(0)
    traces = [np.trace(tt.init.orthogonal((3, 3), rng)) for _ in range(400)]
    assert abs(np.mean(traces)) <= 5 / math.sqrt(400)


def test_identity():
    assert np.array_equal(tt.init.identity((3, 3)), np.eye(3, dtype=np.float32))
    stack = tt.init.identity((6, 3), None, 0.5, gates=2, dtype="float64")
    assert np.array_equal(stack, np.concatenate([np.eye(3), np.eye(3)]) * 0.5)
    assert np.array_equal(tt.init.identity((2, 3)), np.eye(2, 3, dtype=np.float32))


def test_chrono_lstm():
    bias = draw("chrono", (4 * 500,), max_steps=100.0, dtype="float64").reshape(4, 500)
    memory = np.exp(bias[1])
    assert np.array_equal(bias[0], -bias[1])
    assert not bias[2:].any()
    assert memory.min() * (1 + 1e-15) >= 1
    assert memory.max() <= 99 * (1 + 1e-15)
    # The mean of 500 draws of U(1, 99) has deviation 98 / sqrt(12 * 500) = 1.27; 7 of them.
    assert abs(memory.mean() - 50) <= 7 * 98 / math.sqrt(12 * 500)


def test_chrono_gru_sets_the_update_gate_alone():
    bias = draw("chrono", (3 * 5,), max_steps=10, cell="gru").reshape(3, 5)
    assert (bias[1] > 0).all()
    assert not bias[[0, 2]].any()


def test_chrono_of_two_steps_is_zero():
    assert not draw("chrono", (8,), max_steps=2).any()


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.init.xavier_uniform((3,), RNG), ValueError, "shape"),
        (lambda: tt.init.xavier_uniform((3, 0), RNG), ValueError, r"shape\[1\]"),
        (lambda: tt.init.xavier_uniform(3, RNG), TypeError, "shape"),
        (lambda: tt.init.xavier_uniform((3, 2.5), RNG), TypeError, r"shape\[1\]"),
        (lambda: tt.init.xavier_normal((3, 2), 0), TypeError, "rng"),
        (lambda: tt.init.xavier_normal((3, 2), RNG, -1), ValueError, "gain"),
        (lambda: tt.init.xavier_normal((3, 2), RNG, dtype="int32"), TypeError, "dtype"),
        (lambda: tt.init.kaiming_uniform((3, 2), RNG, mode="fan"), ValueError, "mode"),
        (lambda: tt.init.kaiming_uniform((3, 2), RNG, nonlinearity="gelu"), ValueError, "nonlinearity"),
        (lambda: tt.init.kaiming_normal((3, 2), RNG, a="x"), TypeError, "a "),
        (lambda: tt.init.orthogonal((7, 3), RNG, gates=2), ValueError, "gates"),
        (lambda: tt.init.orthogonal((7, 3), None), TypeError, "rng"),
        (lambda: tt.init.identity((3, 3, 3)), ValueError, "shape"),
        (lambda: tt.init.identity((3, 3), scale=math.inf), ValueError, "scale"),
        (lambda: tt.init.chrono((9,), RNG, 10), ValueError, "shape"),
        (lambda: tt.init.chrono((8,), RNG, 1.5), ValueError, "max_steps"),
        (lambda: tt.init.chrono((8,), RNG, 10, cell="rnn"), ValueError, "cell"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
