"""Every numeric option of every public function: values that are not numbers in its range raise an error with its
name."""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest

import throughtime as tt

X = np.zeros((5, 1, 3), np.float32)
RNG = np.random.default_rng(0)
GRADS = {"weight": np.ones(3)}


def lstm(**options):
    return tt.LSTM(3, 4, seed=0, **options)


def backward(**options):
    return lstm().forward(X).backward(np.zeros((5, 1, 4), np.float32), **options)


def block(**options):
    return tt.ResidualBlock(tt.Linear(3, 3, seed=0), 3, **options)


def fixed_points(**options):
    return tt.fixed_points(lstm(), X[0, 0], np.zeros((1, 8), np.float32), **options)


def add_layer_norm(**options):
    return tt.add_layer_norm(np.eye(3), np.eye(3), np.ones(3), np.zeros(3), **options)


def step(make, **attributes):
    """A step of an optimiser whose attributes were changed after its construction."""
    optimiser = make(0.1)
    for name, value in attributes.items():
        setattr(optimiser, name, value)
    optimiser.step({"weight": np.ones(3)}, GRADS)


SIZES = {
    "RNN input_size": lambda value: tt.RNN(value, 4),
    "GRU hidden_size": lambda value: tt.GRU(3, value),
    "LSTM num_layers": lambda value: tt.LSTM(3, 4, num_layers=value),
    "LSTM proj_size": lambda value: tt.LSTM(3, 4, proj_size=value),
    "Linear input_size": lambda value: tt.Linear(value, 2),
    "Linear output_size": lambda value: tt.Linear(2, value),
    "Embedding count": lambda value: tt.Embedding(value, 2),
    "Embedding size": lambda value: tt.Embedding(2, value),
    "LayerNorm size": lambda value: tt.LayerNorm(value),
    "MLP size": lambda value: tt.MLP(value, 4),
    "MLP hidden_size": lambda value: tt.MLP(3, value),
    "SelfAttention size": lambda value: tt.SelfAttention(value, 1),
    "SelfAttention num_heads": lambda value: tt.SelfAttention(4, value),
    "SelfAttention window": lambda value: tt.SelfAttention(4, 2, window=value),
    "ResidualBlock size": lambda value: tt.ResidualBlock(tt.Linear(3, 3), value),
    "forward memory": lambda value: lstm().forward(X, memory=value),
    "backward truncate": lambda value: backward(truncate=value),
    "gradient_flow memory": lambda value: tt.gradient_flow(lstm(), X, memory=value),
    "gradcheck samples": lambda value: tt.gradcheck(lstm(), X, samples=value),
    "lyapunov_spectrum k": lambda value: tt.lyapunov_spectrum(lstm(), X, value),
    "lyapunov_spectrum warmup": lambda value: tt.lyapunov_spectrum(lstm(), X, warmup=value),
    "lyapunov_spectrum windows": lambda value: tt.lyapunov_spectrum(lstm(), X, windows=value),
    "lyapunov_spectrum every": lambda value: tt.lyapunov_spectrum(lstm(), X, every=value),
    "connectivity at": lambda value: tt.connectivity(lstm(), X, (0, value)),
    "truncation_error k": lambda value: tt.truncation_error(lstm(), X, (1, value)),
    "fixed_points max_iterations": lambda value: fixed_points(max_iterations=value),
    "jacobian_singular_values start": lambda value: tt.jacobian_singular_values(lstm(), X, value, 5),
    "jacobian_singular_values stop": lambda value: tt.jacobian_singular_values(lstm(), X, 0, value),
    "orthogonal gates": lambda value: tt.init.orthogonal((4, 2), RNG, gates=value),
    "identity gates": lambda value: tt.init.identity((4, 2), gates=value),
    "xavier_uniform shape": lambda value: tt.init.xavier_uniform((value, 2), RNG),
    "kaiming_normal shape": lambda value: tt.init.kaiming_normal((2, value), RNG),
    "set_num_threads n": lambda value: tt.set_num_threads(value),
}
NUMBERS = {
    "LSTM dropout": lambda value: tt.LSTM(3, 4, dropout=value),
    "GRU weight_dropout": lambda value: tt.GRU(3, 4, weight_dropout=value),
    "RNN zoneout": lambda value: tt.RNN(3, 4, zoneout=value),
    "LSTM zoneout": lambda value: tt.LSTM(3, 4, zoneout=(0.1, value)),
    "LayerNorm eps": lambda value: tt.LayerNorm(3, eps=value),
    "ResidualBlock eps": lambda value: block(eps=value),
    "ResidualBlock branch_scale": lambda value: block(branch_scale=value),
    "add_layer_norm scale": lambda value: add_layer_norm(scale=value),
    "add_layer_norm eps": lambda value: add_layer_norm(eps=value),
    "backward clip": lambda value: backward(clip=value),
    "gradcheck eps": lambda value: tt.gradcheck(lstm(), X, eps=value),
    "horizon fraction": lambda value: tt.gradient_flow(lstm(), X).horizon(value),
    "truncation_error tolerance": lambda value: tt.truncation_error(lstm(), X, 1, tolerance=value),
    "fixed_points tolerance": lambda value: fixed_points(tolerance=value),
    "clip_grad_norm max_norm": lambda value: tt.clip_grad_norm({"weight": np.ones(3)}, value),
    "SGD lr": lambda value: tt.optim.SGD(lr=value),
    "SGD momentum": lambda value: tt.optim.SGD(0.1, momentum=value),
    "Adam lr": lambda value: tt.optim.Adam(lr=value),
    "Adam betas": lambda value: tt.optim.Adam(betas=(0.9, value)),
    "Adam eps": lambda value: tt.optim.Adam(eps=value),
    "AdamW weight_decay": lambda value: tt.optim.AdamW(weight_decay=value),
    "SGD later lr": lambda value: step(tt.optim.SGD, lr=value),
    "Adam later lr": lambda value: step(tt.optim.Adam, lr=value),
    "AdamW later lr": lambda value: step(tt.optim.AdamW, lr=value),
    "xavier_normal gain": lambda value: tt.init.xavier_normal((4, 2), RNG, value),
    "orthogonal gain": lambda value: tt.init.orthogonal((4, 2), RNG, value),
    "kaiming_uniform a": lambda value: tt.init.kaiming_uniform((4, 2), RNG, value),
    "identity scale": lambda value: tt.init.identity((2, 2), scale=value),
    "chrono max_steps": lambda value: tt.init.chrono((8,), RNG, value),
}
OF_ANY_SIGN = {"ResidualBlock branch_scale", "add_layer_norm scale", "kaiming_uniform a", "identity scale"}
UP_TO_INFINITY = {"backward clip", "clip_grad_norm max_norm"}  # infinity: no rescaling
WITH_WORDS = {"forward memory", "gradient_flow memory"}

NOT_NUMBERS = [
    True,
    np.True_,
    "1",
    b"1",
    1j,
    np.complex64(1),
    [1],
    (1, 2, 3),
    {},
    np.timedelta64(1, "s"),
    np.datetime64("2001-01-01"),
    np.array([1], "m8[s]"),
    object(),
    float,
]
SEEDED = {
    "LSTM": lambda value: tt.LSTM(3, 4, seed=value),
    "Linear": lambda value: tt.Linear(3, 4, seed=value),
    "LayerNorm": lambda value: tt.LayerNorm(3, seed=value),
    "gradcheck": lambda value: tt.gradcheck(lstm(), X, seed=value),
}


def refused(option, call, value, error):
    """The message has the option's name as a separate word."""
    with pytest.raises(error) as caught:
        call(value)
    name = option.split()[-1]
    assert re.search(rf"\b{name}\b", str(caught.value)), f"no {name} in: {caught.value}"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: repr(value).partition(" at 0x")[0])
@pytest.mark.parametrize("option", [*SIZES, *NUMBERS])
def test_what_is_no_number(option, value):
    if option in WITH_WORDS and value == "1":
        return refused(option, SIZES[option], value, ValueError)
    if option == "RNN zoneout" and isinstance(value, list | tuple):  # one per state
        return None if len(value) == 1 else refused(option, NUMBERS[option], value, ValueError)
    return refused(option, (SIZES | NUMBERS)[option], value, TypeError)


@pytest.mark.parametrize("option", SIZES)
def test_sizes_are_integers_in_range(option):
    for value in (1.0, math.nan, math.inf, np.float32(2)):
        refused(option, SIZES[option], value, TypeError)
    for value in (-1, -(10**400), np.int64(-5)):
        refused(option, SIZES[option], value, ValueError)


# Without an effect beyond the number of steps, or of entries.
UNBOUNDED = {
    "SelfAttention window",
    "forward memory",
    "gradient_flow memory",
    "backward truncate",
    "gradcheck samples",
    "lyapunov_spectrum every",
    "truncation_error k",
    "fixed_points max_iterations",
}


@pytest.mark.parametrize("option", SIZES)
@pytest.mark.parametrize("value", [2**62, 10**20, 10**400, 10**5000], ids=["2^62", "1e20", "1e400", "1e5000"])
def test_sizes_that_no_memory_has(option, value):
    if option in UNBOUNDED and value == 2**62:
        SIZES[option](value)
    else:
        refused(option, SIZES[option], value, ValueError)


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_in_range(option):
    for value in (math.nan, np.float32("nan"), 10**400, 10**5000):
        refused(option, NUMBERS[option], value, ValueError)
    if option not in UP_TO_INFINITY:
        refused(option, NUMBERS[option], math.inf, ValueError)
    for value in (-math.inf, -(10**400), *(() if option in OF_ANY_SIGN else (-1, -0.5, np.float64(-1e-3)))):
        refused(option, NUMBERS[option], value, ValueError)


@pytest.mark.parametrize("option", NUMBERS)
def test_the_largest_and_the_smallest_number(option):
    """In range and computed without warning, or out of range with an error that names the option."""
    for value in (np.finfo(np.float64).max, 1e200, 1e39, np.nextafter(0, 1), 0.0):
        try:
            NUMBERS[option](value)
        except ValueError as error:
            assert re.search(rf"\b{option.split()[-1]}\b", str(error)), error  # noqa: PT017


@pytest.mark.parametrize("value", [True, np.False_, -1, 1.5, math.nan, "seed", 1j, np.timedelta64(1, "s")], ids=repr)
@pytest.mark.parametrize("make", SEEDED)
def test_seeds(make, value):
    with pytest.raises((TypeError, ValueError), match="seed must be"):
        SEEDED[make](value)


def test_more_layers_than_anybody_means():
    """As if sizes came in the wrong order. A constructor makes as many layers as are allowed within a second."""
    refused("num_layers", lambda value: tt.GRU(1, 1, value), 10**6, ValueError)


@pytest.mark.parametrize("dtype", ["m8[s]", "M8[s]"])
def test_times_are_neither_integers_nor_floats(dtype):
    times = np.zeros((5, 1, 3), dtype)
    for call, name in (
        (lambda: tt.Embedding(3, 2)(times), "x"),
        (lambda: tt.Linear(3, 2)(times), "x"),
        (lambda: lstm()(times), "x"),
        (lambda: tt.SelfAttention(3, 1)(times), "x"),
        (lambda: tt.LayerNorm(3)(times), "x"),
        (lambda: lstm()(X, lengths=np.zeros(1, dtype)), "lengths"),
        (lambda: lstm().forward(X, resets=times[..., 0]), "resets"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(2, dtype)), "targets"),
        (lambda: tt.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), np.timedelta64(3, "s")), "ignore_index"),
        (lambda: tt.mse(np.zeros(3), np.zeros(3, dtype)), "target"),
        (lambda: tt.clip_grad_norm({"weight": np.zeros(3, dtype)}, 1.0), "weight"),
        (lambda: tt.optim.SGD(0.1).step({"weight": np.zeros(3, dtype)}, {"weight": np.zeros(3, dtype)}), "weight"),
        (lambda: tt.Linear(3, 2, bias=False).load_parameters({"weight": np.zeros((2, 3), dtype)}), "weight"),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert re.search(rf"\b{name}\b", str(caught.value)), caught.value


def test_options_may_be_changed_between_calls():
    """The next forward and copies of the layer have the new values."""
    layer, x = tt.LSTM(2, 3, num_layers=2, zoneout=0.5, seed=0), np.ones((4, 1, 2), np.float32)
    assert not any(name.startswith("dropout") for name in layer.forward(x).masks)
    layer.dropout, layer.zoneout = 0.5, 0.0
    copied = pickle.loads(pickle.dumps(layer))
    for one in (layer, copied):
        assert set(one.forward(x).masks) == {"dropout_l0"}
        assert one.architecture == layer.architecture
    layer.batch_first = True
    assert layer.forward(x.swapaxes(0, 1)).output.shape == (1, 4, 3)
    layer.dropout = 2
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\], got 2"):
        layer.forward(x)
