"""ReLU, Tanh, Sigmoid and GELU as layers: torch's results, any shape, stacks of any dtype, saved and copied."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits

KINDS = {"ReLU": tt.ReLU, "Tanh": tt.Tanh, "Sigmoid": tt.Sigmoid, "GELU": tt.GELU}
DTYPES = ("float32", "float64")
BOUND = 16  # ulps of the largest result: about 5 for a function, 10 more for the few operations of its derivative


def numbers(*shape, seed=0, dtype="float64"):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def torch_of(layer):
    torch = pytest.importorskip("torch")
    return getattr(torch.nn, type(layer).__name__)()


@pytest.mark.per_level
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=st.lists(st.integers(0, 9), max_size=4).map(tuple))
def test_activations_agree_with_torch(name, dtype, shape):
    torch = pytest.importorskip("torch")
    layer, x = KINDS[name](), numbers(*shape, dtype=dtype)
    before, d_output = x.copy(), numbers(*shape, seed=1, dtype=dtype)
    tape = layer.forward(x)
    grads = tape.backward(d_output)
    wide = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = torch_of(layer)(wide)
    expected.backward(torch.tensor(d_output.astype(np.float64)))
    bound = BOUND * np.finfo(dtype).eps
    assert_close(tape.output, expected.detach().numpy(), bound, floor=1)
    assert_close(grads.input, wide.grad.numpy(), bound, floor=1)
    assert grads.parameters == {}
    assert {tape.output.dtype, grads.input.dtype} == {np.dtype(dtype)}
    assert_same_bits(layer(x), tape.output)
    assert_same_bits(tape.backward(d_output).input, grads.input)
    assert_same_bits(x, before)


def test_inputs_may_be_views_that_nobody_may_write(kind):
    x = numbers(6, 5, 4, dtype="float32")
    x.flags.writeable = False
    for view in (x[::2, :, ::-1], x.T, np.asfortranarray(x)):
        tape, copied = kind().forward(view), kind().forward(view.copy())
        assert_same_bits(tape.output, copied.output)
        d = np.ones(view.shape, np.float32)
        assert_same_bits(tape.backward(d).input, copied.backward(d).input)


@pytest.mark.per_level
@pytest.mark.parametrize("name", ["Tanh", "GELU"])
def test_a_negative_zero_stays_one(name):
    assert np.signbit(KINDS[name]()(np.array([-0.0])))[0]


def test_a_hundred_layers_in_one_line(kind):
    """With orthogonal weights and d_output of norm 1: no slope is above 1.13, the largest of GELU."""
    layers = (layer for k in range(100) for layer in (tt.Linear(8, 8, dtype="float64", seed=k), kind()))
    stack = tt.init.apply(tt.Sequential(*layers), "orthogonal", seed=0)
    tape = stack.forward(numbers(5, 8))
    grads = tape.backward(np.ones_like(tape.output))
    assert len(tape.layers) == 200
    assert np.isfinite(grads.input).all()
    assert np.linalg.norm(grads.input) <= 1.13**100 * math.sqrt(40)
    assert set(grads.parameters) == set(stack.parameters)
    assert stack.input_size == stack.output_size == 8
    tt.optim.SGD(lr=0.1).step(stack.parameters, grads.parameters)


def test_gradcheck_of_a_stack():
    for kind in (tt.Tanh, tt.Sigmoid, tt.GELU):
        stack = tt.Sequential(
            tt.Linear(3, 5, seed=0), kind(), tt.ResidualBlock(kind(), 5), tt.LSTM(5, 2, seed=1), kind()
        )
        assert max(tt.gradcheck(stack, numbers(4, 2, 3)).values()) < 1e-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_dtype_an_activation_goes_into_any_stack(kind, dtype):
    linear = tt.Linear(3, 5, dtype=dtype, seed=0)
    for stack in (
        tt.Sequential(kind(), linear, kind()),
        tt.Sequential(tt.Sequential(kind(), kind()), linear),
        tt.Sequential(linear, tt.ResidualBlock(tt.Sequential(kind()), 5, dtype=dtype)),
    ):
        assert stack.dtype == dtype
        assert stack(numbers(4, 3, dtype=dtype)).dtype == dtype
        assert tt.gradient_flow(stack, numbers(4, 3, dtype=dtype)).depth_log10_norm.shape == (len(stack.layers) + 1,)
        wide = stack.astype("float64")
        assert wide(numbers(4, 3)).dtype == np.float64
    both = tt.Sequential(kind(), kind())
    assert both(numbers(4, 3, dtype=dtype)).dtype == dtype
    assert tt.gradient_flow(both, numbers(4, 3, dtype=dtype)).depth_log10_norm.shape == (3,)


def test_a_dtype_that_is_given_is_held_to(kind):
    layer = kind(dtype="float64")
    with pytest.raises(TypeError, match=r"x has dtype float32, expected float64"):
        layer(numbers(3, dtype="float32"))
    with pytest.raises(TypeError, match=r"layers\[1\] has dtype float64, expected float32"):
        tt.Sequential(tt.Linear(3, 3), layer)


def test_saved_copied_and_shown(kind, tmp_path):
    name = kind.__name__
    assert repr(kind()) == f"{name}()"
    assert repr(kind(dtype="float64")) == f"{name}(dtype='float64')"
    stack = tt.Sequential(tt.Linear(3, 5, seed=0), kind(), tt.Linear(5, 3, seed=1))
    assert repr(stack) == f"Sequential(Linear(3, 5), {name}(), Linear(5, 3))"
    stack.save(tmp_path / "stack")
    x = numbers(4, 3, dtype="float32")
    for other in (tt.load(tmp_path / "stack"), copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert repr(other) == repr(stack)
        assert_same_bits(other(x), stack(x))


def test_lengths_reach_through_an_activation():
    """sigmoid(0) is 1/2, which must not appear in the padding."""
    stack = tt.Sequential(tt.Linear(3, 4, seed=0), tt.Sigmoid(), tt.GRU(4, 2, seed=1), tt.Sigmoid())
    x = numbers(5, 2, 3, dtype="float32")
    x[2:, 1] = np.nan
    tape = stack.forward(x, [5, 2])
    assert not tape.output[2:, 1].any()
    grads = tape.backward(np.ones_like(tape.output))
    assert all(np.isfinite(array).all() for array in grads.parameters.values())
    assert not grads.input[2:, 1].any()


def test_features_are_checked_across_an_activation():
    with pytest.raises(ValueError, match=r"layers\[3\].*expects 7 features, but layers\[0\].*returns 5"):
        tt.Sequential(tt.Linear(3, 5), tt.ReLU(), tt.Tanh(), tt.Linear(7, 2))


@pytest.mark.parametrize("x", [np.zeros(3, int), np.zeros(3, np.float16), np.zeros(3, ">f4"), [1.0, 2.0], "x"])
def test_what_is_no_array_of_floats_is_refused(x):
    with pytest.raises(TypeError, match=r"^x "):
        tt.ReLU()(x)


def test_d_output_must_fit():
    tape = tt.ReLU().forward(numbers(4, 3))
    with pytest.raises(ValueError, match=r"d_output has shape \(3,\)"):
        tape.backward(numbers(3))
    with pytest.raises(TypeError, match="d_output has dtype float32"):
        tape.backward(numbers(4, 3, dtype="float32"))


@pytest.mark.per_level
def test_the_same_bits_for_any_number_of_threads(kind, threads):
    x, d_output = numbers(999, 37, dtype="float32"), numbers(999, 37, seed=1, dtype="float32")
    found = []
    for count in (1, 2, 3):
        threads(count)
        tape = kind().forward(x)
        found.append((tape.output, tape.backward(d_output).input))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: tt.ResidualBlock(tt.Tanh(), 4, dtype="float64"),
        lambda: tt.Sequential(tt.ReLU(), dtype="float64"),
        lambda: tt.Sequential(
            tt.ResidualBlock(tt.GELU(), 4, dtype="float64"), tt.Linear(4, 2, dtype="float64", seed=0)
        ),
    ],
)
def test_the_dtype_of_layers_around_activations_is_saved(make, tmp_path):
    layer = make()
    for array in layer.parameters.values():
        array += 1e-12  # lost in float32
    layer.save(tmp_path / "layer")
    loaded, x = tt.load(tmp_path / "layer"), np.linspace(-1, 1, 12).reshape(3, 4)
    assert loaded.dtype == np.float64
    assert_same_bits(loaded(x), layer(x))


def test_a_stack_of_activations_that_was_cast_has_that_dtype():
    stack = tt.Sequential(tt.ReLU()).astype("float64")
    with pytest.raises(TypeError, match=r"layers\[1\] has dtype float64, expected float32"):
        tt.Sequential(tt.Linear(4, 4), stack)
