"""BatchNorm: torch's results in training and at inference, lengths, running statistics, blocks, saved and loaded."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound

DTYPES = ("float32", "float64")
F = 6


def numbers(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def made(size=F, dtype="float64", **options):
    """Sets weights, biases and running statistics that are not ones and zeros."""
    norm = tt.BatchNorm(size, dtype=dtype, **options)
    for k, array in enumerate([*norm.parameters.values(), norm.buffers["running_mean"]]):
        array += 0.3 * numbers(size, seed=k)
    norm.buffers["running_var"] *= 1 + np.abs(numbers(size, seed=5))
    return norm


def torchs(norm):
    """torch's layer in float64, with our state as its state dict."""
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(norm.input_size, norm.eps, norm.momentum, dtype=torch.float64)
    state = {name: torch.tensor(array) for name, array in {**norm.parameters, **norm.buffers}.items()}
    module.load_state_dict(state)
    return module


def bound_of(rows, dtype):
    """Sums over rows in float64, whose error a small deviation magnifies, and one rounding to the layer's type."""
    deviation = np.sqrt(rows.astype(np.float64).var(axis=0).min(initial=1.0) + 1e-5)
    return rounding_bound("float64", 4 * len(rows) + 40) / min(1, deviation) + np.finfo(dtype).eps / 2


def check_against_torch(norm, x, training=True, steps=2):
    """Compares outputs, gradients and running statistics over several forwards."""
    torch = pytest.importorskip("torch")

    module = torchs(norm).train(training)
    for step in range(steps):
        x_now = x + x.dtype.type(step)
        d_output = numbers(*x.shape, seed=9 + step, dtype=x.dtype)
        tape = norm.forward(x_now, training=training)
        grads = tape.backward(d_output)
        rows = x_now.reshape(-1, x.shape[-1])
        wide = torch.tensor(rows.astype(np.float64), requires_grad=True)
        expected = module(wide)
        expected.backward(torch.tensor(d_output.reshape(rows.shape).astype(np.float64)))
        bound = bound_of(rows, x.dtype)
        assert_close(tape.output.reshape(rows.shape), expected.detach().numpy(), bound, floor=1)
        assert_close(grads.input.reshape(rows.shape), wide.grad.numpy(), bound, floor=1)
        sums = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
        assert_close(grads.parameters, sums, bound, floor=4 * len(rows))
        module.zero_grad()
        running = {name: buffer.numpy() for name, buffer in module.named_buffers()}
        assert_close(norm.buffers, running, (step + 2) * bound, floor=1)
        assert {array.dtype for array in [tape.output, grads.input, *grads.parameters.values()]} == {x.dtype}
        again = tape.backward(d_output)
        assert_same_bits((again.input, again.parameters), (grads.input, grads.parameters))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@given(
    leading=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple).filter(lambda shape: math.prod(shape) > 1),
    size=st.integers(1, 20),
    momentum=st.sampled_from([0.1, 0.0, 1.0, None]),
)
def test_agrees_with_torch(training, dtype, leading, size, momentum):
    check_against_torch(made(size, dtype, momentum=momentum), numbers(*leading, size, dtype=dtype), training)


def test_more_rows_than_are_in_float64_at_a_time():
    check_against_torch(made(300), numbers(500, 3, 300), steps=1)


def test_inference_takes_the_running_statistics():
    norm, x = made(), numbers(7, 3, F)
    before = copy.deepcopy(norm.buffers)
    output = norm(x)
    mean, var = before["running_mean"], before["running_var"]
    weight, bias = norm.parameters.values()
    assert_close(output, (x - mean) / np.sqrt(var + 1e-5) * weight + bias, rounding_bound("float64", 10))
    assert_same_bits(norm.forward(x, training=False).output, output)
    assert_same_bits(norm.buffers, before)


def test_after_many_forwards_of_a_batch_inference_is_what_training_gives():
    """The start has decayed to 0.9^400 = 5e-19; a factor n / (n - 1) of the variance remains."""
    norm, x = tt.BatchNorm(F, dtype="float64"), 2 * numbers(7, 3, F) + 5
    for _ in range(400):
        tape = norm.forward(x)
    assert norm.buffers["num_batches_tracked"] == 400
    rows = x.reshape(-1, F)
    expected = (x - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0, ddof=1) + 1e-5)
    assert_close(norm(x), expected, rounding_bound("float64", 500))
    np.testing.assert_allclose(norm(x), tape.output, rtol=0.03)  # sqrt(20/21)


# Lengths


@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf, 1e300])
def test_padding_is_neither_counted_nor_written(padding):
    """A padded batch gives the same results as a batch of only the valid steps."""
    lengths, x, d_output = [7, 0, 3, 1], numbers(7, 4, F), numbers(7, 4, F, seed=1)
    valid = np.arange(7)[:, None] < lengths
    norm, alone = made(), made()
    rows = alone.forward(x[valid])
    d_rows = rows.backward(d_output[valid])
    x[~valid], d_output[~valid] = padding, padding
    before = x.copy()
    tape = norm.forward(x, lengths)
    grads = tape.backward(d_output)
    assert_same_bits(tape.output[valid], rows.output)
    assert_same_bits(grads.input[valid], d_rows.input)
    assert_same_bits(grads.parameters, d_rows.parameters)
    assert_same_bits(norm.buffers, alone.buffers)
    assert not tape.output[~valid].any()
    assert not grads.input[~valid].any()
    assert_same_bits(x, before)
    assert not norm(x, lengths)[~valid].any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_reach_it_in_a_stack(batch_first):
    def stack():
        inside = tt.ResidualBlock(
            tt.GRU(F, F, batch_first=batch_first, dtype="float64", seed=1), F, normalisation="batch"
        )
        return tt.Sequential(tt.Linear(3, F, dtype="float64", seed=0), tt.BatchNorm(F, dtype="float64"), inside)

    lengths, x = [7, 2, 4], numbers(7, 3, 3)
    cut = x.copy()
    cut[np.arange(7)[:, None] >= lengths] = np.nan

    def layout(array):
        return array.swapaxes(0, 1) if batch_first else array

    full, short = stack(), stack()
    tape = full.forward(layout(cut), lengths)
    lower = short.layers[1].forward(short.layers[0](x), lengths)
    assert_close(layout(tape.layers[1].output), lower.output, rounding_bound("float64", 100))
    assert_close(full.layers[1].buffers, short.layers[1].buffers, rounding_bound("float64", 100))
    grads = tape.backward(np.ones_like(tape.output))
    assert all(np.isfinite(array).all() for array in grads.parameters.values())
    assert np.isfinite(full.layers[2].norm.buffers["running_var"]).all()


def test_one_row_has_no_variance_and_none_changes_nothing():
    norm = made()
    before = copy.deepcopy(norm.buffers)
    with pytest.raises(ValueError, match=r"x has one row.*training=False"):
        norm.forward(numbers(1, F))
    with pytest.raises(ValueError, match="x has one row"):
        norm.forward(numbers(5, 2, F), lengths=[1, 0])
    for tape in (norm.forward(numbers(5, 0, F)), norm.forward(numbers(5, 2, F), lengths=[0, 0])):
        grads = tape.backward(np.ones_like(tape.output))
        assert not tape.output.any()
        assert not any(array.any() for array in [grads.input, *grads.parameters.values()])
    assert_same_bits(norm.buffers, before)
    assert norm.forward(numbers(1, F), training=False).output.shape == (1, F)


# Numbers


@pytest.mark.parametrize(("dtype", "offset"), [("float32", 1e6), ("float64", 1e15)])
def test_equal_rows_give_the_bias_and_offsets_keep_their_digits(dtype, offset):
    """Integers near the offset are exact, and so are their differences."""
    norm = made(1, dtype)
    bias = norm.parameters["bias"][0]
    assert (norm.forward(np.full((1000, 1), 1.1 * offset, dtype)).output == bias).all()
    x = np.random.default_rng(0).integers(-9, 10, (1000, 1)).astype(dtype)
    near, far = norm.forward(x).output, norm.forward(x + norm.dtype.type(offset)).output
    assert_close(far, near, rounding_bound("float64", 4000) + np.finfo(dtype).eps, floor=1)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e37), ("float64", 1e307), ("float64", 1e160)])
def test_large_numbers_are_normalised_as_small_ones_are(dtype, size):
    """A power of two changes no digit; 1e-5 is negligible relative to either variance."""
    factor = np.ldexp(1.0, int(math.log2(size)))
    x, d_output = 1e3 * numbers(50, F, dtype=dtype), numbers(50, F, seed=1, dtype=dtype)
    small, large = made(dtype=dtype).forward(x), made(dtype=dtype).forward(x * x.dtype.type(factor / 1e4))
    bound = 1e-10 if dtype == "float64" else np.finfo(dtype).eps
    assert_close(large.output, small.output, bound)
    d_small, d_large = small.backward(d_output), large.backward(d_output)
    assert_close(d_large.parameters, d_small.parameters, bound, floor=50)
    assert np.isfinite(d_large.input).all()


def test_what_is_not_finite_stays_in_its_feature():
    x = numbers(9, F)
    clean = made().forward(x).output
    x[3, 2], x[4, 4] = np.nan, np.inf
    output = made().forward(x).output
    spoilt = [2, 4]
    assert np.isnan(output[:, spoilt]).all()
    assert_same_bits(np.delete(output, spoilt, axis=1), np.delete(clean, spoilt, axis=1))


def test_the_same_bits_for_any_number_of_threads_and_in_any_memory_order(threads):
    x, d_output, found = numbers(400, 5, 70), numbers(400, 5, 70, seed=1), []
    for count, order in ((1, "C"), (2, "C"), (2, "F")):
        threads(count)
        tape = made(70).forward(np.asarray(x, order=order))
        grads = tape.backward(np.asarray(d_output, order=order))
        found.append((tape.output, grads.input, grads.parameters))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# In stacks and blocks


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("residual", [True, False])
def test_blocks_agree_with_torch(norm, residual):
    torch = pytest.importorskip("torch")
    mlp = tt.MLP(F, 9, "tanh", dtype="float64", seed=0)
    block = tt.ResidualBlock(mlp, F, norm=norm, residual=residual, branch_scale=0.5, normalisation="batch")
    block.norm.parameters["weight"] += 0.3 * numbers(F)
    module, x, d_output = torchs(block.norm), numbers(7, 3, F), numbers(7, 3, F, seed=1)
    tape = block.forward(x)
    grads = tape.backward(d_output)
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in mlp.parameters.items()}
    wide = torch.tensor(x.reshape(-1, F), requires_grad=True)

    def branch(h):
        hidden = torch.tanh(h @ weights["linear1.weight"].T + weights["linear1.bias"])
        return 0.5 * (hidden @ weights["linear2.weight"].T + weights["linear2.bias"])

    y = branch(module(wide) if norm == "pre" else wide) + (wide if residual else 0)
    y = module(y) if norm == "post" else y
    y.backward(torch.tensor(d_output.reshape(-1, F)))
    bound = rounding_bound("float64", 21 * 40 + 200)
    assert_close(tape.output.reshape(-1, F), y.detach().numpy(), bound)
    assert_close(grads.input.reshape(-1, F), wide.grad.numpy(), bound, floor=1)
    expected = {f"sublayer.{name}": weight.grad.numpy() for name, weight in weights.items()}
    expected |= {f"norm.{name}": parameter.grad.numpy() for name, parameter in module.named_parameters()}
    assert_close(grads.parameters, expected, bound, floor=21)
    running = {f"norm.{name}": buffer.numpy() for name, buffer in module.named_buffers()}
    assert_close(block.buffers, running, bound)


def stack(dtype="float64"):
    return tt.Sequential(
        tt.Linear(3, F, dtype=dtype, seed=0),
        tt.BatchNorm(F, dtype=dtype),
        tt.Tanh(),
        tt.ResidualBlock(tt.LSTM(F, F, dtype=dtype, seed=1), F, normalisation="batch"),
        tt.ResidualBlock(tt.MLP(F, 9, "gelu", dtype=dtype, seed=2), F, norm="post", normalisation="batch"),
    )


@pytest.mark.parametrize("lengths", [None, [5, 2, 4]])
def test_gradcheck(lengths):
    layers, x = stack(), numbers(5, 3, 3)
    before = copy.deepcopy(layers.buffers)
    assert max(tt.gradcheck(layers, x, lengths=lengths).values()) < 1e-7
    assert max(tt.gradcheck(tt.BatchNorm(3), x, lengths=lengths).values()) < 1e-7
    assert_same_bits(layers.buffers, before)


def test_saved_loaded_copied_and_widened_with_its_statistics(tmp_path):
    layers, x = stack("float32"), numbers(5, 3, 3, dtype="float32")
    for _ in range(3):
        layers.forward(x)
    assert layers.buffers["1.num_batches_tracked"] == 3
    layers.save(tmp_path / "stack")
    for other in (tt.load(tmp_path / "stack"), copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert repr(other) == repr(layers)
        assert_same_bits(other.buffers, layers.buffers)
        assert_same_bits(other(x), layers(x))
        other.forward(x)
        assert layers.buffers["1.num_batches_tracked"] == 3
    wide = layers.astype("float64")
    assert wide.buffers["1.running_var"].dtype == np.float64
    assert_same_bits(wide.buffers["1.running_var"].astype("float32"), layers.buffers["1.running_var"])
    assert_close(wide(x.astype(np.float64)), layers(x), rounding_bound("float32", 500), floor=1)


def test_torchs_state_dict_loads_as_it_is_and_parameters_alone_too():
    torch = pytest.importorskip("torch")
    module, norm = torch.nn.BatchNorm1d(F), tt.BatchNorm(F)
    module(torch.tensor(numbers(9, F, dtype="float32")))
    norm.load_parameters(module.state_dict())
    assert norm.buffers["num_batches_tracked"] == 1
    assert_same_bits(norm.buffers["running_mean"], module.running_mean.numpy())
    other = tt.BatchNorm(F)
    other.load_parameters(norm.parameters)
    assert not other.buffers["running_mean"].any()
    with pytest.raises(ValueError, match=r"'running_var' has shape \(2,\), expected \(6,\)"):
        norm.load_parameters({**norm.parameters, "running_var": np.ones(2)})


def test_running_statistics_are_not_trained():
    layers = stack()
    tape = layers.forward(numbers(5, 3, 3))
    grads = tape.backward(np.ones_like(tape.output))
    assert set(grads.parameters) == set(layers.parameters)
    assert not any("running" in name for name in layers.parameters)
    tt.optim.Adam().step(layers.parameters, grads.parameters)


def test_repr():
    assert repr(tt.BatchNorm(3)) == "BatchNorm(3)"
    assert repr(tt.BatchNorm(3, 1e-3, None, dtype="float64")) == (
        "BatchNorm(3, eps=0.001, momentum=None, dtype='float64')"
    )
    block = tt.ResidualBlock(tt.Linear(3, 3), 3, normalisation="batch")
    assert repr(block) == "ResidualBlock(Linear(3, 3), 3, normalisation='batch')"


# Gradient flow


def test_gradient_flow_sees_the_statistics_of_the_batch_as_training_does():
    """It leaves the running statistics unchanged. With lengths too."""
    layers, x = stack(), numbers(5, 3, 3)
    d_output = numbers(5, 3, F, seed=1)
    for lengths in (None, [5, 2, 4]):
        before = copy.deepcopy(layers.buffers)
        flow = tt.gradient_flow(layers, x, d_output, lengths=lengths)
        assert_same_bits(layers.buffers, before)
        grads = layers.forward(x, lengths).backward(d_output)
        with np.errstate(divide="ignore"):
            expected = [np.log10(np.linalg.norm(own.input, axis=(1, 2))) for own in grads.layers]
        np.testing.assert_allclose(flow.log10_norm[:-1], expected, rtol=0, atol=1e-11)


def test_gradient_flow_past_the_range_of_floats():
    """An RNN after the norm whose gradient is about 1e-500 at the first of 2000 steps; the norm mixes all steps.

    Truth: its backward over 400 steps, whose gradients are within float64's range, for as many steps.
    """

    def layers():
        rnn = tt.RNN(F, F, dtype="float64", seed=1)
        rnn.parameters["weight_hh_l0"] *= 0.5
        return tt.Sequential(tt.BatchNorm(F, dtype="float64"), rnn)

    long = tt.gradient_flow(layers(), numbers(2000, 2, F))
    assert long.layers[1].log10_norm[0, 0] < -400
    assert np.isfinite(long.log10_norm[:2]).all()
    x = numbers(400, 2, F)
    flow, d_output = tt.gradient_flow(layers(), x), np.zeros((400, 2, F))
    d_output[-1] = 1
    own = layers().forward(x).backward(d_output).layers[0].input
    np.testing.assert_allclose(flow.log10_norm[0], np.log10(np.linalg.norm(own, axis=(1, 2))), rtol=0, atol=1e-9)


X = numbers(4, F)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.BatchNorm(0), ValueError, "size"),
        (lambda: tt.BatchNorm(3, eps=0.0), ValueError, "eps"),
        (lambda: tt.BatchNorm(3, momentum=1.5), ValueError, "momentum"),
        (lambda: tt.BatchNorm(3, momentum="0.1"), TypeError, "momentum"),
        (lambda: made().forward(X[:, :5]), ValueError, "x must have 6 features"),
        (lambda: made().forward(X.astype("float32")), TypeError, "x has dtype float32"),
        (lambda: made().forward(X, training=1), TypeError, "training"),
        (lambda: made().forward(numbers(5, 2, F), lengths=[5]), ValueError, "lengths has shape"),
        (lambda: made().forward(X).backward(X[:2]), ValueError, "d_output"),
        (lambda: tt.ResidualBlock(tt.Linear(3, 3), 3, normalisation="group"), ValueError, "normalisation must be"),
        (lambda: tt.Sequential(made(5), made(6)), ValueError, r"layers\[1\].*expects 6"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_forward_that_finds_no_memory_leaves_the_statistics_alone(monkeypatch):
    norm = tt.BatchNorm(3)
    before = {name: array.copy() for name, array in norm.buffers.items()}

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("throughtime.layers.batch_norm.Saved.placed", fails)
    with pytest.raises(MemoryError):
        norm.forward(np.ones((4, 2, 3), np.float32))
    assert_same_bits(norm.buffers, before)
