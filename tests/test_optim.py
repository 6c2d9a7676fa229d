"""SGD and Adam: torch's steps, in place, on dicts that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

import throughtime as tt
from conftest import assert_close, rounding_bound

STEPS = 12
SHAPES = {"weight": (7, 5), "bias": (7,), "scalar": (), "none": (0, 3)}


def arrays(seed, dtype, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(scale * rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def run_ours(optimizer, dtype, wrap=lambda a: a):
    parameters = {name: wrap(array) for name, array in arrays(0, dtype).items()}
    for step in range(STEPS):
        optimizer.step(parameters, arrays(step + 1, dtype, scale=10.0 ** -(step % 4)))
    return parameters


def run_torch(torch, make, dtype):
    parameters = {name: torch.tensor(array.astype(np.float64)) for name, array in arrays(0, dtype).items()}
    optimizer = make(list(parameters.values()))
    for step in range(STEPS):
        for name, grad in arrays(step + 1, dtype, scale=10.0 ** -(step % 4)).items():
            parameters[name].grad = torch.tensor(grad.astype(np.float64))
        optimizer.step()
    return {name: tensor.numpy() for name, tensor in parameters.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adam", {}),
        ("Adam", {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3}),
        ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    ],
)
def test_steps_agree_with_torch_in_float64(name, options, dtype):
    torch = pytest.importorskip("torch")
    ours = run_ours(getattr(tt.optim, name)(**options), dtype)
    expected = run_torch(torch, lambda tensors: getattr(torch.optim, name)(tensors, **options), dtype)
    # About 20 roundings a step, added up over the steps.
    assert_close(ours, expected, rounding_bound(dtype, 20 * STEPS))
    assert all(array.dtype == dtype for array in ours.values())


def test_blocks_and_memory_order_make_no_difference(monkeypatch):
    whole = run_ours(tt.optim.Adam(lr=0.05), "float64")
    monkeypatch.setattr("throughtime.optim._BLOCK", 4)
    blocks = run_ours(tt.optim.Adam(lr=0.05), "float64")
    strided = run_ours(tt.optim.Adam(lr=0.05), "float64", lambda a: np.repeat(a[..., None], 2, -1)[..., 0])
    for name in SHAPES:
        assert np.array_equal(whole[name], blocks[name])
        assert np.array_equal(whole[name], strided[name])


@pytest.mark.parametrize("make", [lambda: tt.optim.SGD(0.1, 0.9), lambda: tt.optim.Adam(0.1)])
def test_in_place_and_gradients_untouched(make):
    layer = tt.Linear(3, 2, seed=0)
    array, before = layer.parameters["weight"], layer.parameters["weight"].copy()
    grads = {name: np.ones_like(parameter) for name, parameter in layer.parameters.items()}
    for grad in grads.values():
        grad.flags.writeable = False
    make().step(layer.parameters, grads)
    assert layer.parameters["weight"] is array
    assert (array != before).all()


def test_momentum_belongs_to_the_name():
    """A parameter that comes in later has its own first step, as in torch."""
    optimizer, late = tt.optim.Adam(lr=0.1), np.zeros(3)
    optimizer.step({"a": np.zeros(2)}, {"a": np.ones(2)})
    optimizer.step({"late": late}, {"late": np.full(3, 5.0)})
    assert_close(late, np.full(3, -0.1), 1e-7)  # a first step of Adam is lr, but for eps


def test_learning_rate_may_change():
    optimizer, p = tt.optim.SGD(lr=1.0), {"p": np.zeros(1)}
    optimizer.step(p, {"p": np.ones(1)})
    optimizer.lr = 0.5
    optimizer.step(p, {"p": np.ones(1)})
    assert p["p"][0] == -1.5


def test_adam_finds_a_minimum():
    p, optimizer = {"p": np.array([3.0, -2.0])}, tt.optim.Adam(lr=0.1)
    for _ in range(500):
        optimizer.step(p, {"p": 2 * p["p"]})
    assert np.abs(p["p"]).max() < 0.01


ADAM = tt.optim.Adam
W = {"w": np.zeros((2, 3))}


def frozen():
    array = np.zeros(2)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.optim.SGD(-1.0), ValueError, "lr"),
        (lambda: tt.optim.SGD("x"), TypeError, "lr"),
        (lambda: tt.optim.SGD(1.0, 1.5), ValueError, "momentum"),
        (lambda: ADAM(math.nan), ValueError, "lr"),
        (lambda: ADAM(betas=0.9), TypeError, "betas"),
        (lambda: ADAM(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda: ADAM(eps=-1), ValueError, "eps"),
        (lambda: ADAM(weight_decay=-1), ValueError, "weight_decay"),
        (lambda: ADAM().step([], {}), TypeError, "parameters"),
        (lambda: ADAM().step({}, []), TypeError, "grads"),
        (lambda: ADAM().step(W, {}), ValueError, "no gradient for 'w'"),
        (lambda: ADAM().step({}, W), ValueError, "no parameter for gradient 'w'"),
        (lambda: ADAM().step(W, {"w": np.zeros((3, 2))}), ValueError, r"grads\['w'\].*\(3, 2\).*\(2, 3\)"),
        (lambda: ADAM().step(W, {"w": np.zeros((2, 3), np.float32)}), TypeError, r"grads\['w'\].*float32"),
        (lambda: ADAM().step({"w": np.zeros(2, int)}, {"w": np.zeros(2, int)}), TypeError, r"parameters\['w'\]"),
        (lambda: ADAM().step({"w": [0.0]}, {"w": [0.0]}), TypeError, r"parameters\['w'\].*list"),
        (lambda: ADAM().step({"w": frozen()}, {"w": np.zeros(2)}), ValueError, "read-only"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_error_changes_nothing():
    parameters = {"a": np.ones(2), "b": np.ones(3)}
    with pytest.raises(ValueError, match="b"):
        tt.optim.SGD(1.0).step(parameters, {"a": np.ones(2), "b": np.ones(2)})
    assert (parameters["a"] == 1).all()


def test_another_parameter_under_the_same_name_is_an_error():
    optimizer = tt.optim.Adam()
    optimizer.step({"w": np.zeros(2)}, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="one optimiser per model"):
        optimizer.step({"w": np.zeros(3)}, {"w": np.ones(3)})


def test_repr():
    assert repr(tt.optim.SGD(0.1)) == "SGD(lr=0.1, momentum=0.0)"
    assert repr(tt.optim.Adam()) == "Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"
