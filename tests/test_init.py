"""Initial weights: the distributions of torch.nn.init, orthogonality, the IRNN's identity, chrono biases."""

from __future__ import annotations

import math

import numpy as np
import pytest

import reference
import throughtime as tt
from problems import FORMS, GATES, STATES, Problem
from throughtime.recurrent import architecture

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
    """Reads torch's bound from torch itself: its generator is replaced by one that returns the bounds."""
    torch = pytest.importorskip("torch")
    expected = torch_deviation(torch, name, shape, options)
    uniform = draw(name + "_uniform", shape, dtype="float64", **options)
    normal = draw(name + "_normal", shape, dtype="float64", **options)
    bound = math.sqrt(3) * expected
    # all n draws stay below (1 - 30/n) bound with probability exp(-30)
    assert bound * (1 - 30 / uniform.size) <= np.abs(uniform).max() <= bound
    # The sample's mean square has relative deviation sqrt(2/n); 7 of them are exceeded with probability 3e-12.
    assert abs(np.mean(normal**2) / expected**2 - 1) <= 7 * math.sqrt(2 / normal.size)
    assert np.abs(normal).max() > bound  # 0.083 of a normal's draws are beyond: none of 240 with probability 1e-9


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
    """The trace of a uniformly random rotation has mean 0 and variance 1; that of LAPACK's raw Q is far off."""
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


# Whole layers

RECIPES = ("xavier", "kaiming", "orthogonal", "identity", "chrono", "good")


def whole(dtype="float32"):
    """Every kind of layer, in stacks and blocks."""
    return tt.Sequential(
        tt.Embedding(9, 6, dtype=dtype, seed=0),
        tt.BatchNorm(6, dtype=dtype),
        tt.ResidualBlock(tt.LSTM(6, 6, 2, dtype=dtype, seed=1), 6),
        tt.ResidualBlock(tt.Sequential(tt.MLP(6, 12, dtype=dtype, seed=2), tt.Tanh()), 6, norm="post"),
        tt.SelfAttention(6, 2, dtype=dtype, seed=3),
        tt.GRU(6, 6, bidirectional=True, dtype=dtype, seed=4),
        tt.Linear(12, 3, dtype=dtype, seed=5),
    )


def matrices(layer):
    """The matrices by name; stacked ones are separated."""
    blocks = {"weight_hh": {24: 4, 18: 3}, "weight_ih": {24: 4, 18: 3}, "in_proj_weight": {18: 3}}
    for name, array in layer.parameters.items():
        if array.ndim == 2:
            of = next((counts for part, counts in blocks.items() if part in name), {})
            for matrix in np.split(array, of.get(len(array), 1)):
                yield name, matrix


@pytest.mark.parametrize("recipe", RECIPES)
def test_apply_sets_in_place_and_repeats(recipe):
    layer = whole("float64")
    arrays = dict(layer.parameters)
    before = {name: array.copy() for name, array in arrays.items()}
    assert tt.init.apply(layer, recipe, max_steps=50, seed=3) is layer
    assert all(layer.parameters[name] is array for name, array in arrays.items())
    again = tt.init.apply(whole("float64"), recipe, max_steps=50, seed=3)
    other = tt.init.apply(whole("float64"), recipe, max_steps=50, seed=4)
    assert all(np.array_equal(again.parameters[name], array) for name, array in arrays.items())
    assert any(not np.array_equal(other.parameters[name], array) for name, array in arrays.items())
    assert any(not np.array_equal(before[name], array) for name, array in arrays.items())
    for name in arrays:
        if "norm." in name or name.startswith("1."):  # LayerNorm, BatchNorm
            assert np.array_equal(arrays[name], before[name])
    layer.forward(np.zeros((4, 2), int))


@pytest.mark.parametrize("recipe", ["xavier", "kaiming"])
def test_apply_draws_matrices_gate_by_gate(recipe):
    """Each within the bound of its own fans, and near it: all of n draws avoid the outermost 30/n with probability
    exp(-30)."""
    layer = tt.init.apply(whole(), recipe, seed=0)
    for name, matrix in matrices(layer):
        fan_out, fan_in = matrix.shape
        bound = math.sqrt(6 / (fan_in + fan_out) if recipe == "xavier" else 6 / fan_in)
        largest = np.abs(matrix).max()
        assert bound * max(0, 1 - 30 / matrix.size) <= largest <= bound * (1 + 1e-6), name
    large = tt.init.apply(tt.LSTM(50, 50), recipe, seed=0).parameters["weight_ih_l0"]
    for matrix in np.split(large, 4):
        assert np.abs(matrix).max() >= math.sqrt(6 / (100 if recipe == "xavier" else 50)) * (1 - 30 / 2500)


def test_apply_orthogonal():
    for name, matrix in matrices(tt.init.apply(whole(), "orthogonal", seed=0)):
        small = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        gram = small.astype(np.float64) @ small.T
        size = max(matrix.shape)
        assert np.abs(gram - np.eye(len(small))).max() <= 8 * size**1.5 * np.finfo(np.float32).eps, name


def test_apply_identity():
    for name, matrix in matrices(tt.init.apply(whole(), "identity", seed=0)):
        if "weight_ih" in name:
            assert 0 < np.abs(matrix).max() <= math.sqrt(6 / sum(matrix.shape)) * (1 + 1e-6)
        else:
            assert np.array_equal(matrix, np.eye(*matrix.shape, dtype=np.float32)), name


@pytest.mark.parametrize("recipe", ["xavier", "kaiming", "orthogonal", "identity"])
def test_apply_sets_biases_to_zero(recipe):
    layer = tt.init.apply(whole(), recipe, seed=0)
    assert not any(array.any() for name, array in layer.parameters.items() if "bias" in name)


def test_apply_chrono_sets_gate_biases_and_leaves_all_else():
    layer, before = tt.init.apply(whole(), "chrono", max_steps=50, seed=0), whole()
    for name, array in layer.parameters.items():
        if "bias_hh" in name:
            assert not array.any()
        elif "bias_ih" in name:
            gates = array.reshape(-1, 6)
            assert gates[1].min() >= 0
            assert math.log(2) < gates[1].max() <= math.log(49)  # of six draws all below 2 with (1/48)^6
            assert len(gates) == 3 or np.array_equal(gates[0], -gates[1])
            assert not gates[2:].any()
        else:
            assert np.array_equal(array, before.parameters[name]), name


@pytest.mark.parametrize("recipe", ["chrono", "good"])
@pytest.mark.parametrize("gated", [kind for kind in FORMS if GATES[kind] > 1])
def test_apply_makes_each_cell_remember(gated, recipe):
    """Without products, a step multiplies the state (h of a GRU, c of an LSTM) by 1 - 1/(1 + u), u from 1 to 49."""
    problem = Problem(gated, T=1, H=200)
    layer = tt.init.apply(problem.layer(), recipe, max_steps=50, seed=0)
    for name, array in layer.parameters.items():
        if "bias_ih" not in name:
            array[...] = 0
    ones = np.ones((1, problem.B, problem.H))
    state = (np.zeros((1, problem.B, problem.width)), ones) if STATES[gated] == 2 else ones
    kept = reference.as_tuple(layer.forward(0 * problem.x, state).final_state)[-1]
    u = kept / (1 - kept)
    assert u.min() * (1 + 1e-13) >= 1
    assert 45 < u.max() <= 49 * (1 + 1e-13)  # of 200 draws none above 45 with (44/48)^200 = 3e-8


def test_apply_to_gates_that_have_no_names_is_an_error(monkeypatch):
    monkeypatch.setitem(architecture._GATES, "lstm", "igo")
    with pytest.raises(NotImplementedError, match="the gates of lstm_peephole must have 4 names, got 'igo'"):
        tt.init.apply(tt.LSTM(3, 6, peephole=True), "chrono", max_steps=50)


def test_apply_good_is_what_the_command_line_compares():
    """Draws its three ingredients one by one, in the order of the parameters."""
    lstm, rng = tt.init.apply(tt.LSTM(3, 6, layer_norm=True), "good", max_steps=50, seed=1), np.random.default_rng(1)
    expected = {
        "weight_hh_l0": tt.init.orthogonal((24, 6), rng, gates=4),
        "bias_ih_l0": tt.init.chrono((24,), rng, 50),
        "bias_hh_l0": np.zeros(24),
        "weight_ln_hh_l0": np.full(24, 0.5),
    }
    for name, array in expected.items():
        assert np.array_equal(lstm.parameters[name], array), name
    rnn = tt.init.apply(tt.RNN(3, 6), "good", seed=1)  # no gates: needs no number of steps
    assert not rnn.parameters["bias_ih_l0"].any()
    for cell in (tt.GRU, tt.RNN):
        layer = tt.init.apply(cell(3, 6, layer_norm=True), "good", max_steps=50, seed=1)
        assert np.all(layer.parameters["weight_ln_hh_l0"] == 0.5)


def test_apply_leaves_peepholes_and_gains():
    normalised = (cell(3, 6, layer_norm=True, seed=0) for cell in (tt.RNN, tt.GRU, tt.LSTM))
    for layer in (tt.LSTM(3, 6, peephole=True, seed=0), *normalised):
        before = {name: array.copy() for name, array in layer.parameters.items()}
        tt.init.apply(layer, "xavier", seed=0)
        for name in before:
            if "weight_c" in name or "_ln_" in name:
                assert np.array_equal(layer.parameters[name], before[name]), name


def test_apply_of_a_projection_and_of_layers_without_biases():
    lstm = tt.init.apply(tt.LSTM(3, 6, bias=False, proj_size=2, dtype="float64"), "orthogonal", seed=0)
    weight = lstm.parameters["weight_hr_l0"]
    assert np.abs(weight @ weight.T - np.eye(2)).max() < 1e-14
    for block in np.split(lstm.parameters["weight_hh_l0"], 4):
        assert np.abs(block.T @ block - np.eye(2)).max() < 1e-14
    with pytest.raises(ValueError, match="recipe 'chrono' sets the gate biases"):
        tt.init.apply(lstm, "chrono", max_steps=9)


def test_kaiming_keeps_the_signal_through_a_hundred_rectifiers_and_xavier_halves_its_square():
    """The sample's squared norm varies by sqrt(5/256) per layer: 0.3 of its log10 over a hundred; 5 of these."""
    width, x = 256, np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    for recipe, expected in (("kaiming", 0.0), ("xavier", 100 * math.log10(0.5) / 2)):
        layers = (layer for k in range(100) for layer in (tt.Linear(width, width, seed=k), tt.ReLU()))
        y = tt.init.apply(tt.Sequential(*layers), recipe, seed=0)(x)
        # after the last rectifier, which halved the square, no Linear follows
        assert abs(math.log10(np.linalg.norm(y) / np.linalg.norm(x)) - expected) < 1.5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.init.apply(np.ones((3, 3)), "xavier"), TypeError, "layer must be a throughtime layer, got ndarray"),
        (lambda: tt.init.apply(tt.Linear(3, 3), "he"), ValueError, "recipe must be one of 'xavier'.*got 'he'"),
        (lambda: tt.init.apply(tt.Linear(3, 3), None), ValueError, "recipe"),
        (lambda: tt.init.apply(tt.LSTM(3, 3), "good"), ValueError, "max_steps must be given for recipe 'good'"),
        (lambda: tt.init.apply(tt.GRU(3, 3), "chrono"), ValueError, "max_steps must be given"),
        (lambda: tt.init.apply(tt.LSTM(3, 3), "chrono", max_steps=1), ValueError, "max_steps"),
        (lambda: tt.init.apply(tt.LSTM(3, 3), "xavier", max_steps="9"), TypeError, "max_steps"),
        (lambda: tt.init.apply(tt.RNN(3, 3), "chrono", max_steps=9), ValueError, r"gate biases.*none in RNN\(3, 3\)"),
        (lambda: tt.init.apply(tt.MLP(3, 3), "good", max_steps=9), ValueError, "'good' sets recurrent layers"),
        (lambda: tt.init.apply(tt.Sequential(tt.ReLU()), "xavier"), ValueError, "sets matrices"),
        (lambda: tt.init.apply(tt.Linear(3, 3), "xavier", seed="x"), TypeError, "seed"),
        (lambda: tt.init.apply(tt.Linear(3, 3), "xavier", seed=-1), ValueError, "seed"),
    ],
)
def test_errors_of_apply_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("name", [*MATRIX_DRAWS, "identity", "chrono"])
@pytest.mark.parametrize(
    "what",
    [tt.LSTM(3, 4), tt.LSTM(3, 4).parameters, tt.LSTM(3, 4).parameters["weight_hh_l0"], np.zeros(16)],
    ids=["layer", "parameters", "weight", "bias"],
)
@pytest.mark.parametrize("arguments", [(), (RNG,)])
def test_who_passes_a_layer_or_its_weights_is_told_what_comes_back(name, what, arguments):
    """Before the error about a missing argument."""
    recipe = name.partition("_")[0]
    with pytest.raises(TypeError, match=rf"^shape must be.*returns a new array.*apply\(layer, '{recipe}'\)"):
        getattr(tt.init, name)(what, *arguments)


def test_who_passes_a_torch_module_or_tensor_is_told_as_well():
    torch = pytest.importorskip("torch")
    for what in (torch.nn.Linear(3, 3), torch.zeros(3, 3)):
        with pytest.raises(TypeError, match=r"^shape must be a tuple of ints"):
            tt.init.xavier_uniform(what)


def test_a_shape_may_be_an_array_of_integers():
    assert tt.init.xavier_uniform(np.array([3, 4]), RNG).shape == (3, 4)
