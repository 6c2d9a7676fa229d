"""LayerNorm, MLP, ResidualBlock, Sequential: agreement with torch, kernels shared across layers, routing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound
from throughtime.layers import add_layer_norm as layer_norm

DTYPES = ("float32", "float64")
ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid")
F = 6


def numbers(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def shake(layer):
    """Sets weights and biases of norms that are not ones and zeros."""
    for k, (name, array) in enumerate(layer.parameters.items()):
        if name.endswith(("norm.weight", "norm.bias")) or isinstance(layer, tt.LayerNorm):
            array += 0.3 * numbers(*array.shape, seed=k)
    return layer


def twin(layer):
    """The same model of torch's modules, with our parameter names."""
    torch = pytest.importorskip("torch")

    class MLP(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear1 = torch.nn.Linear(layer.input_size, layer.hidden_size)
            self.linear2 = torch.nn.Linear(layer.hidden_size, layer.output_size)

        def forward(self, x):
            function = getattr(torch.nn.functional, layer.activation, None) or getattr(torch, layer.activation)
            return self.linear2(function(self.linear1(x)))

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if layer.norm is not None:
                self.norm = twin(layer.norm)
            self.sublayer = twin(layer.sublayer)

        def forward(self, x):
            h = self.norm(x) if layer.norm_place == "pre" else x
            branch = layer.branch_scale * self.sublayer(h)
            y = x + branch if layer.residual else branch
            return self.norm(y) if layer.norm_place == "post" else y

    class Attention(torch.nn.MultiheadAttention):
        def forward(self, x):
            hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            return super().forward(x, x, x, attn_mask=hidden, need_weights=False)[0]

    class Recurrent(getattr(torch.nn, type(layer).__name__, object)):
        def forward(self, x):
            return super().forward(x)[0]

    made = {
        tt.Linear: lambda: torch.nn.Linear(layer.input_size, layer.output_size),
        tt.LayerNorm: lambda: torch.nn.LayerNorm(layer.input_size, layer.eps),
        tt.MLP: MLP,
        tt.SelfAttention: lambda: Attention(layer.size, layer.num_heads),
        tt.ResidualBlock: Block,
        tt.Sequential: lambda: torch.nn.Sequential(*map(twin, layer.layers)),
    }
    make = made.get(type(layer)) or (lambda: Recurrent(layer.input_size, layer.hidden_size, layer.num_layers))
    module = make().double()
    module.load_state_dict({name: torch.tensor(array, dtype=torch.float64) for name, array in layer.parameters.items()})
    return module


def check_against_torch(layer, x, bound=1e-10):
    torch = pytest.importorskip("torch")

    tape = layer.forward(x)
    d_output = numbers(*tape.output.shape, seed=9, dtype=x.dtype)
    grads = tape.backward(d_output)
    module, wide = twin(layer), torch.tensor(x, dtype=torch.float64, requires_grad=True)
    output = module(wide)
    output.backward(torch.tensor(d_output, dtype=torch.float64))
    assert_close(tape.output, output.detach().numpy(), bound)
    assert_close(grads.input, wide.grad.numpy(), bound)
    expected = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    assert_close(grads.parameters, expected, bound, floor=1e-3)
    assert {array.dtype for array in [tape.output, grads.input, *grads.parameters.values()]} == {x.dtype}
    assert_same_bits(output_of(layer(x)), tape.output)
    again = tape.backward(d_output)
    assert_same_bits((again.input, again.parameters), (grads.input, grads.parameters))
    return tape, grads


def output_of(result):
    return result[0] if isinstance(result, tuple) else result


def sublayers(dtype="float64"):
    return {
        "linear": tt.Linear(F, F, dtype=dtype, seed=0),
        "mlp": tt.MLP(F, 11, "gelu", dtype=dtype, seed=0),
        "lstm": tt.LSTM(F, F, 2, dtype=dtype, seed=0),
        "gru": tt.GRU(F, F, dtype=dtype, seed=0),
        "rnn": tt.RNN(F, F, dtype=dtype, seed=0),
        "attention": tt.SelfAttention(F, 2, dtype=dtype, seed=0),
        "block": tt.ResidualBlock(tt.MLP(F, 5, "tanh", dtype=dtype, seed=0), F, norm="post"),
        "stack": tt.Sequential(
            tt.ResidualBlock(tt.Linear(F, F, dtype=dtype, seed=0), F), tt.GRU(F, F, dtype=dtype, seed=1)
        ),
    }


# Against torch


@pytest.mark.per_level
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(leading=st.lists(st.integers(1, 5), max_size=3).map(tuple), size=st.integers(1, 20), hidden=st.integers(1, 40))
def test_mlp_agrees_with_torch(activation, leading, size, hidden):
    check_against_torch(tt.MLP(size, hidden, activation, dtype="float64", seed=0), numbers(*leading, size))


@given(leading=st.lists(st.integers(1, 5), max_size=3).map(tuple), size=st.integers(2, 40))
def test_layer_norm_agrees_with_torch(leading, size):
    check_against_torch(shake(tt.LayerNorm(size, dtype="float64")), numbers(*leading, size))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post", None])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", sublayers())
def test_blocks_agree_with_torch(name, norm, residual, scale):
    block = tt.ResidualBlock(sublayers()[name], F, norm=norm, residual=residual, branch_scale=scale)
    tape, grads = check_against_torch(shake(block), numbers(7, 3, F))
    if name in ("lstm", "gru", "rnn"):
        assert grads.sublayer.hidden.shape == tape.sublayer.hidden.shape


def stack(dtype="float64", scale=1.0):
    """A stack with every kind of border between layers."""
    return shake(
        tt.Sequential(
            tt.Linear(4, F, dtype=dtype, seed=0),
            tt.ResidualBlock(tt.LSTM(F, F, dtype=dtype, seed=1), F, branch_scale=scale),
            tt.ResidualBlock(tt.MLP(F, 11, dtype=dtype, seed=2), F, branch_scale=-scale),
            tt.LayerNorm(F, dtype=dtype),
            tt.ResidualBlock(tt.MLP(F, 11, "gelu", dtype=dtype, seed=3), F, norm=None, branch_scale=scale),
            tt.ResidualBlock(tt.GRU(F, F, dtype=dtype, seed=4), F, residual=False, branch_scale=scale),
            tt.ResidualBlock(tt.GRU(F, F, dtype=dtype, seed=5), F, norm="post", branch_scale=scale),
            tt.Sequential(tt.ResidualBlock(tt.MLP(F, 5, dtype=dtype, seed=6), F, branch_scale=scale)),
            tt.ResidualBlock(tt.RNN(F, F, dtype=dtype, seed=7), F, branch_scale=scale),
            tt.Linear(F, 3, dtype=dtype, seed=8),
        )
    )


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_stacks_agree_with_torch(scale):
    layers = stack(scale=scale)
    tape, grads = check_against_torch(layers, numbers(7, 3, 4))
    assert len(tape.layers) == len(grads.layers) == len(layers.layers)
    for i, (own, inner) in enumerate(zip(grads.layers, tape.layers, strict=True)):
        assert own.input.shape[:-1] == inner.output.shape[:-1] == (7, 3)
        assert_same_bits({f"{i}.{k}": v for k, v in own.parameters.items()}, of_layer(grads.parameters, i))


def of_layer(parameters, i):
    return {name: array for name, array in parameters.items() if name.startswith(f"{i}.")}


def test_float32_within_the_bound_of_its_roundings():
    """About 60 roundings per layer and timestep, and the sums over features. Layers do not amplify rounding errors more
    than the numbers themselves."""
    x = numbers(7, 3, 4, dtype="float32")
    terms = len(stack().layers) * 7 * (60 + 4 * 2 * F)
    check_against_torch(stack("float32"), x, bound=rounding_bound("float32", terms))


def test_a_state_dict_of_torchs_encoder_layer_fits():
    """Its linear1 and linear2 are ours, its norm2 is our norm."""
    torch = pytest.importorskip("torch")
    theirs = torch.nn.TransformerEncoderLayer(F, 2, 11, dropout=0.0, norm_first=True, dtype=torch.float64)
    state = {name: value for name, value in theirs.state_dict().items() if name.startswith("linear")}
    mlp = tt.MLP(F, 11, dtype="float64")
    mlp.load_parameters(state)
    assert all(np.array_equal(mlp.parameters[name], state[name].numpy()) for name in state)
    norm = tt.LayerNorm(F, dtype="float64")
    norm.load_parameters(theirs.norm2.state_dict())
    block = tt.ResidualBlock(mlp, F)
    x = torch.randn(5, 2, F, dtype=torch.float64)
    expected = x + theirs.linear2(torch.relu(theirs.linear1(theirs.norm2(x))))
    assert_close(block(x), expected.detach().numpy(), 1e-12)


# Activations


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_bits_for_any_number_of_threads(activation, dtype, threads, teams):
    layer = tt.Sequential(
        tt.ResidualBlock(tt.MLP(33, 70, activation, dtype=dtype, seed=0), 33), tt.LayerNorm(33, dtype=dtype)
    )
    x, d_output = numbers(900, 33, dtype=dtype), numbers(900, 33, seed=1, dtype=dtype)

    def run():
        layer.forward(x).backward(x)  # so that freed memory holds values other than the expected ones
        tape = layer.forward(x)
        grads = tape.backward(d_output)
        return tape.output, grads.input, grads.parameters

    threads(1)
    one = run()
    for team in teams():
        assert_same_bits(run(), one, team)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_keeps_its_digits_where_it_vanishes(dtype):
    """The frameworks' 1 + erf(x / sqrt 2) has no digits left at -9 in float64 or at -6 in float32. The bound is that of
    the distribution, 7 units, and two roundings; x W + b = x is exact."""
    mlp = tt.MLP(1, 1, "gelu", dtype=dtype)
    for name, array in mlp.parameters.items():
        array[...] = 1 if name.endswith("weight") else 0
    x = np.linspace(-12, 4, 999).astype(dtype)[:, None]
    true = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x[:, 0].tolist()])[:, None]
    # erfc itself is off by x^2 units of its argument's rounding
    unit = np.finfo(dtype).eps
    assert np.all(np.abs(mlp(x) - true) <= (9 * unit + (2 + 144) * 2.3e-16) * np.abs(true))


@pytest.mark.per_level
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_stay_in_their_row(activation):
    mlp = tt.MLP(5, 9, activation, seed=0)
    x = numbers(40, 5, dtype="float32")
    clean = mlp(x)
    for bad in (np.nan, np.inf, -np.inf):
        x[7, 2] = bad
        others = np.arange(40) != 7
        with np.errstate(invalid="ignore"):  # NumPy's own products warn
            tape = mlp.forward(x)
            d_input = tape.backward(np.ones_like(clean)).input
        assert_close(tape.output[others], clean[others], rounding_bound("float32", 20))
        assert np.all(np.isfinite(d_input[others]))
        if np.isnan(bad):
            assert np.all(np.isnan(tape.output[7]))


# Kernels across borders


@pytest.fixture
def kernels(monkeypatch):
    """Calls of the LayerNorm kernel, forward and backward: for each, whether it included an addition."""
    calls = {"forward": [], "backward": []}
    forward, backward = layer_norm.forward, layer_norm.backward

    def count_forward(x, branch, *others, **options):
        calls["forward"].append(branch is not None)
        return forward(x, branch, *others, **options)

    def count_backward(d_sum, d_normalised, saved):
        calls["backward"].append(d_sum is not None)
        return backward(d_sum, d_normalised, saved)

    monkeypatch.setattr(layer_norm, "forward", count_forward)
    monkeypatch.setattr(layer_norm, "backward", count_backward)
    return calls


def test_an_addition_and_the_norm_after_it_are_one_kernel(kernels):
    blocks = [tt.ResidualBlock(tt.MLP(F, 5, seed=i), F) for i in range(3)]
    layers = tt.Sequential(*blocks[:2], tt.Sequential(blocks[2], tt.LayerNorm(F)))
    x = numbers(5, 2, F, dtype="float32")
    tape = layers.forward(x)
    assert kernels["forward"] == [False, True, True, True]  # the first sum is x
    tape.backward(tape.output)
    assert kernels["backward"] == [False, True, True, True]  # from the last to the first; the last has no skip
    kernels["forward"].clear()
    layers(x)
    assert kernels["forward"] == [False, True, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_shared_kernels_give_what_the_layers_give_one_by_one(dtype, scale):
    """If the scale is 1, no rounding differs; otherwise the product is rounded."""
    layers, x = stack(dtype, scale), numbers(7, 3, 4, dtype=dtype)
    tape = layers.forward(x)
    d_output = numbers(7, 3, 3, seed=1, dtype=dtype)
    grads = tape.backward(d_output)
    tapes = []
    for layer in layers.layers:
        tapes.append(layer.forward(tapes[-1].output if tapes else x))
    single = []
    d = d_output
    for one in reversed(tapes):
        single.append(one.backward(d))
        d = single[-1].input
    terms = len(tapes) * 7 * (60 + 4 * 2 * F)
    bound = 0 if scale == 1 else rounding_bound(dtype, terms)
    for own, inner, other, alone in zip(tape.layers, grads.layers, tapes, reversed(single), strict=True):
        assert_close(own.output, other.output, bound)
        assert_close(inner.input, alone.input, bound)
        assert_close(inner.parameters, alone.parameters, bound, floor=1e-3)


def test_a_layer_of_the_users_own_is_called_as_it_is():
    class Doubled(tt.LayerNorm):
        def forward(self, x):
            return super().forward(2 * x + 1)

        def __call__(self, x):
            return super().__call__(2 * x + 1)

    norm, x = Doubled(F, dtype="float64"), numbers(4, F)
    norm.parameters["bias"][...] = np.arange(F)
    block = tt.ResidualBlock(tt.Linear(F, F, dtype="float64", seed=0), F)
    layers = tt.Sequential(block, norm)
    assert_same_bits(layers.forward(x).output, norm.forward(block.forward(x).output).output)


# Routing of arguments


@pytest.mark.parametrize("name", ["lstm", "batch_first", "attention"])
def test_lengths_whatever_the_padding_holds(name):
    """Results are those of each sequence alone; outputs and gradients beyond a length are zero."""
    mixes = {
        "lstm": lambda: tt.LSTM(F, F, dtype="float64", seed=0),
        "batch_first": lambda: tt.LSTM(F, F, batch_first=True, dtype="float64", seed=0),
        "attention": lambda: tt.SelfAttention(F, 2, causal=False, dtype="float64", seed=0),
    }[name]()
    layers = shake(
        tt.Sequential(
            tt.LayerNorm(F, dtype="float64"),
            tt.ResidualBlock(mixes, F),
            tt.ResidualBlock(tt.MLP(F, 8, dtype="float64", seed=1), F, norm="post"),
        )
    )
    batch_first = name == "batch_first"
    lengths = [7, 0, 3]
    x, d_output = numbers(7, 3, F), numbers(7, 3, F, seed=1)
    beyond = np.arange(7)[:, None] >= lengths
    x[beyond] = np.nan
    d_output[beyond] = np.nan

    def turn(array):
        return array.swapaxes(0, 1) if batch_first else array

    tape = layers.forward(turn(x), lengths)
    grads = tape.backward(turn(d_output))
    assert_same_bits(layers(turn(x), lengths=lengths), tape.output)
    assert not turn(tape.output)[beyond].any()
    assert not turn(grads.input)[beyond].any()
    total = dict.fromkeys(layers.parameters, 0)
    for b, length in enumerate(lengths):
        if length == 0:
            continue
        one = layers.forward(turn(x[:length, b : b + 1]))
        alone = one.backward(turn(d_output[:length, b : b + 1]))
        assert_close(turn(tape.output)[:length, b], turn(one.output)[:, 0], 1e-13)
        assert_close(turn(grads.input)[:length, b], turn(alone.input)[:, 0], 1e-13)
        total = {name: total[name] + alone.parameters[name] for name in total}
    assert_close(grads.parameters, total, 1e-12)


def test_lengths_of_integers_and_of_one_sequence():
    layers = tt.Sequential(tt.Embedding(5, F, seed=0), tt.ResidualBlock(tt.GRU(F, F, seed=1), F))
    x = np.random.default_rng(0).integers(0, 5, (7, 2))
    whole = layers.forward(x, [7, 3]).output
    x[3:, 1] = -1  # not a row of the embedding
    assert_same_bits(layers.forward(x, [7, 3]).output, whole)
    assert_close(layers.forward(x[:, 0], 7).output, whole[:, 0], rounding_bound("float32", 100))
    assert layers.forward(x[:, 0], 7).backward(whole[:, 0]).input is None


def test_options_reach_the_recurrent_layers():
    layers = tt.Sequential(
        tt.ResidualBlock(tt.LSTM(F, F, dtype="float64", seed=0), F),
        tt.ResidualBlock(tt.MLP(F, 8, dtype="float64", seed=1), F),
        tt.GRU(F, F, dtype="float64", seed=2),
    )
    x, d_output = numbers(9, 2, F), numbers(9, 2, F, seed=1)
    resets = np.zeros((9, 2), bool)
    resets[4] = True
    tape = layers.forward(x, resets=resets, memory="checkpoint")
    with pytest.raises(AttributeError, match="checkpoint"):
        _ = tape.layers[0].sublayer.hidden
    halves = [layers.forward(part) for part in (x[:4], x[4:])]
    assert_close(tape.output, np.concatenate([half.output for half in halves]), 1e-14)
    grads = tape.backward(d_output, timesteps=("hidden", "gates"), truncate=3, clip=1e-3)
    assert grads.layers[0].sublayer.gates.shape == (1, 9, 2, 4 * F)
    assert grads.layers[2].clipped.any()
    with pytest.raises(AttributeError, match="cell"):
        _ = grads.layers[0].sublayer.cell
    with pytest.raises(TypeError, match=r"backward got d_weight, expected one of .*clip"):
        tape.backward(d_output, d_weight=1)
    with pytest.raises(TypeError, match="backward got clip"):
        tt.Sequential(tt.Linear(2, 2)).forward(np.ones((1, 2), np.float32)).backward(
            np.ones((1, 2), np.float32), clip=1
        )
    d_output[5, 1] = np.inf
    with pytest.raises(FloatingPointError, match=r"^d_output is not finite at timestep 5, in sequence 1"):
        tape.backward(d_output, check_finite=True)


def test_dropout_masks_are_named_by_place():
    layers = tt.Sequential(
        tt.ResidualBlock(tt.LSTM(F, F, 2, dropout=0.5, dtype="float64", seed=0), F),
        tt.GRU(F, F, 2, dropout=0.5, dtype="float64", seed=1),
    )
    x = numbers(9, 2, F)
    tape = layers.forward(x)
    assert list(tape.masks) == ["0.sublayer.dropout_l0", "1.dropout_l0"]
    assert not np.array_equal(layers.forward(x).output, tape.output)
    again = layers.forward(x, masks=tape.masks)
    assert_same_bits((again.output, again.masks), (tape.output, tape.masks))
    assert_same_bits(layers.forward(x, training=False).output, layers(x))
    with pytest.raises(
        ValueError, match=r"masks has unexpected dropout_l0; expected 0.sublayer.dropout_l0, 1.dropout_l0"
    ):
        layers.forward(x, masks={"dropout_l0": tape.masks["1.dropout_l0"]})


@pytest.mark.parametrize("shape", [(7, 0, 4), (7, 4)])
def test_empty_batches_and_single_sequences(shape):
    layers = stack("float32")
    tape = layers.forward(numbers(*shape, dtype="float32"))
    grads = tape.backward(tape.output)
    assert tape.output.shape == (*shape[:-1], 3)
    assert grads.input.shape == shape
    assert all(array.any() == (0 not in shape) for array in grads.parameters.values())
    assert tape.nbytes > 0


def test_any_memory_order_is_taken_and_left_alone():
    layers, x = stack(), numbers(7, 3, 4)
    x.flags.writeable = False
    tape = layers.forward(x)
    d_output = numbers(7, 3, 3, seed=1)
    grads = tape.backward(d_output)
    for other in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
        strided = layers.forward(other(x))
        assert_close(strided.output, tape.output, 1e-13)
        assert_close(strided.backward(other(d_output)).input, grads.input, 1e-12)


# Parameters


def test_parameters_are_the_inner_layers_own():
    gru, mlp = tt.GRU(F, F, seed=0), tt.MLP(F, 8, seed=1)
    layers = tt.Sequential(tt.ResidualBlock(gru, F), tt.ResidualBlock(mlp, F, norm=None))
    assert list(layers.parameters) == [
        *("0.norm.weight", "0.norm.bias", "0.sublayer.weight_ih_l0", "0.sublayer.weight_hh_l0"),
        *("0.sublayer.bias_ih_l0", "0.sublayer.bias_hh_l0", "1.sublayer.linear1.weight", "1.sublayer.linear1.bias"),
        *("1.sublayer.linear2.weight", "1.sublayer.linear2.bias"),
    ]
    assert layers.parameters["0.sublayer.weight_hh_l0"] is gru.parameters["weight_hh_l0"]
    assert layers.parameters["1.sublayer.linear2.bias"] is mlp.parameters["linear2.bias"]


def test_an_optimiser_moves_the_stack_and_backward_uses_the_weights_of_the_forward():
    layers, x = stack(), numbers(7, 3, 4)
    optimiser = tt.optim.Adam(lr=0.01)
    first = None
    for _ in range(30):
        tape = layers.forward(x)
        loss, d_output = tt.mse(tape.output, np.ones_like(tape.output))
        first = first or loss
        before = tape.backward(d_output)
        tt.clip_grad_norm(before, 10.0)
        optimiser.step(layers.parameters, tape.backward(d_output).parameters)
    assert loss < first / 2
    assert_same_bits(tape.backward(d_output).input, before.input)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_and_loaded(dtype, tmp_path):
    layers = stack(dtype, 0.3)
    for layer in (layers, *layers.layers):
        layer.save(tmp_path / "layer")
        loaded = tt.load(tmp_path / "layer")
        assert type(loaded) is type(layer)
        assert repr(loaded) == repr(layer)
        assert_same_bits(loaded.parameters, layer.parameters)
        x = numbers(5, 2, layer.input_size, dtype=dtype)
        assert_same_bits(output_of(loaded(x)), output_of(layer(x)))


def test_repr_tells():
    layers = tt.Sequential(
        tt.ResidualBlock(tt.GRU(8, 8), 8),
        tt.ResidualBlock(tt.MLP(8, 32, "gelu"), 8, norm="post"),
        tt.LayerNorm(8, 1e-3),
    )
    assert repr(layers) == (
        "Sequential(ResidualBlock(GRU(8, 8), 8), ResidualBlock(MLP(8, 32, activation='gelu'), 8, norm='post'), "
        "LayerNorm(8, eps=0.001))"
    )


def test_seeds_and_initial_values():
    one, same, other = tt.MLP(9, 16, seed=1), tt.MLP(9, 16, seed=1), tt.MLP(9, 16, seed=2)
    assert_same_bits(one.parameters, same.parameters)
    assert not np.array_equal(one.parameters["linear2.weight"], other.parameters["linear2.weight"])
    assert np.abs(one.parameters["linear1.weight"]).max() <= 1 / 3  # torch's: U(-1/sqrt(I), 1/sqrt(I))
    assert np.abs(one.parameters["linear2.weight"]).max() <= 1 / 4
    norm = tt.LayerNorm(3).parameters
    assert norm["weight"].tolist() == [1, 1, 1]
    assert norm["bias"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradcheck(dtype):
    layers = tt.Sequential(
        tt.ResidualBlock(tt.LSTM(3, 3, 2, dropout=0.3, dtype=dtype, seed=0), 3, branch_scale=0.5),
        tt.ResidualBlock(tt.MLP(3, 5, "gelu", dtype=dtype, seed=1), 3, norm="post"),
        tt.LayerNorm(3, dtype=dtype),
    )
    errors = tt.gradcheck(layers, numbers(4, 2, 3), samples=8, lengths=[4, 2])
    assert list(errors) == ["input", *layers.parameters]
    assert max(errors.values()) <= 1e-7  # as in test_gradcheck.py
    assert layers.astype("float64").dtype == np.float64


# Bad input

X = np.zeros((5, 3, 7), np.float32)
LINEAR = tt.Linear(3, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.LayerNorm(0), ValueError, "size"),
        (lambda: tt.LayerNorm(3, 0), ValueError, "eps"),
        (lambda: tt.LayerNorm(3)(X), ValueError, r"x must have 3 features .* LayerNorm, got shape \(5, 3, 7\)"),
        (lambda: tt.LayerNorm(7)(X.astype(float)), TypeError, "x has dtype float64"),
        (lambda: tt.LayerNorm(7).forward(X).backward(X[0]), ValueError, "d_output"),
        (lambda: tt.MLP(3, 0), ValueError, "hidden_size"),
        (lambda: tt.MLP(3, 4, "selu"), ValueError, "activation must be one of 'relu', 'gelu'"),
        (lambda: tt.MLP(3, 4)(X), ValueError, r"x must have 3 features .* MLP, got shape \(5, 3, 7\)"),
        (lambda: tt.MLP(7, 4).forward(X).backward(X.astype(float)), TypeError, "d_output"),
        (lambda: tt.ResidualBlock(np.tanh, 3), TypeError, "sublayer must be a throughtime layer, got ufunc"),
        (
            lambda: tt.ResidualBlock(tt.Linear(3, 4), 3),
            ValueError,
            "sublayer has 3 inputs and 4 outputs, expected size=3",
        ),
        (lambda: tt.ResidualBlock(LINEAR, 3, norm="in"), ValueError, "norm must be one of 'pre', 'post'"),
        (lambda: tt.ResidualBlock(LINEAR, 3, residual=1), TypeError, "residual"),
        (lambda: tt.ResidualBlock(LINEAR, 3, branch_scale=np.inf), ValueError, "branch_scale"),
        (lambda: tt.ResidualBlock(LINEAR, 3, eps=-1), ValueError, "eps"),
        (
            lambda: tt.ResidualBlock(LINEAR, 3, dtype="float64"),
            TypeError,
            r"dtype is float64, .* float32: Linear\(3, 3\)",
        ),
        (lambda: tt.ResidualBlock(LINEAR, 3).forward(X), ValueError, "x must have 3 features .* ResidualBlock"),
        (lambda: tt.Sequential(), ValueError, "layers is empty"),
        (lambda: tt.Sequential(LINEAR, 3), TypeError, r"layers\[1\] must be a throughtime layer, got int"),
        (lambda: tt.Sequential(LINEAR, LINEAR), ValueError, "one place only, but '1.weight' is '0.weight'"),
        (
            lambda: tt.Sequential(tt.LSTM(3, 4, bidirectional=True), tt.GRU(4, 4)),
            ValueError,
            r"layers\[1\] \(GRU\(4, 4\)\) expects 4 features, but layers\[0\] \(LSTM\(3, 4, .* returns 8",
        ),
        (
            lambda: tt.Sequential(LINEAR, tt.Linear(3, 3, dtype="float64")),
            TypeError,
            r"layers\[1\] has dtype float64, expected float32, that of layers\[0\]",
        ),
        (lambda: tt.Sequential(LINEAR, dtype="float64"), TypeError, r"layers\[0\] has dtype float32, expected float64"),
        (
            lambda: tt.Sequential(tt.GRU(3, 3), tt.ResidualBlock(tt.GRU(3, 3, batch_first=True), 3)),
            ValueError,
            "batch_first differs",
        ),
        (
            lambda: tt.Sequential(tt.LSTM(4, 4, batch_first=True), tt.ResidualBlock(tt.SelfAttention(4, 2), 4)),
            ValueError,
            r"batch_first differs between LSTM\(.*\) and SelfAttention\(4, 2\)",
        ),
        (lambda: tt.ResidualBlock(tt.Embedding(5, 3), 3), ValueError, r"sublayer takes integers.*Embedding\(5, 3\)"),
        (lambda: tt.Sequential(tt.GRU(3, 3)).forward(X, masks={3: 1}), TypeError, r"masks must be a dict.*\{3: 1\}"),
        (
            lambda: tt.Sequential(tt.Linear(7, 3), tt.Embedding(3, 3))(X),
            TypeError,
            r"layers\[1\] \(Embedding\(3, 3\)\): x ",
        ),
        (
            lambda: tt.Sequential(LINEAR).forward(X),
            ValueError,
            r"layers\[0\] \(Linear\(3, 3\)\): x must have 3 features",
        ),
        (lambda: tt.Sequential(LINEAR).forward(X, memory="states"), ValueError, "memory was given, but no layer"),
        (lambda: tt.Sequential(tt.GRU(7, 3)).forward(X, masks=[]), TypeError, "masks"),
        (lambda: tt.Sequential(tt.GRU(7, 3)).forward(X, training=1), TypeError, "training"),
        (lambda: tt.Sequential(tt.GRU(7, 3)).forward(X, [1, 2]), ValueError, "lengths"),
        (lambda: tt.Sequential(tt.GRU(7, 3)).forward(X[None], [1]), ValueError, "x has shape"),
        (lambda: tt.Sequential(tt.GRU(7, 3)).forward(X).backward(X), ValueError, "d_output"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_sublayer_that_changes_the_shape_is_found_out():
    class Half(tt.Linear):
        def __call__(self, x):
            return super().__call__(x)[:1]

    layer = Half(4, 4, seed=0)
    with pytest.raises(ValueError, match=r"sublayer returned shape \(1, 4\), expected \(3, 4\)"):
        tt.ResidualBlock(layer, 4)(np.ones((3, 4), np.float32))


def test_a_parameter_that_was_replaced_is_found_out():
    layers = tt.Sequential(tt.Linear(3, 3, seed=0), tt.LayerNorm(3))
    layers.parameters["0.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"parameters\['0.weight'\] is not the inner layer's"):
        layers(np.ones((2, 3), np.float32))
    del layers.parameters["0.weight"]
    with pytest.raises(ValueError, match=r"expected .*0.weight"):
        layers(np.ones((2, 3), np.float32))


def test_a_broken_file_is_no_layer(tmp_path):
    tt.Sequential(LINEAR).save(tmp_path / "stack")
    with np.load(tmp_path / "stack") as file:
        entries = dict(file)
    entries["__throughtime__"] = np.array('{"layer": "Sequential", "config": {"layers": [{"a": 1}]}}')
    np.savez(tmp_path / "broken.npz", **entries)
    with pytest.raises(ValueError, match="not a layer saved by throughtime"):
        tt.load(tmp_path / "broken.npz")
    entries["__throughtime__"] = np.array('{"other": 1}')
    np.savez(tmp_path / "broken.npz", **entries)
    with pytest.raises(ValueError, match="not a layer saved by throughtime"):
        tt.load(tmp_path / "broken.npz")


# States


def stateful(dtype="float64", **options):
    """Recurrent layers at three depths, and layers without state between them."""
    return tt.Sequential(
        tt.LSTM(F, F, 2, dtype=dtype, seed=0, **options),
        tt.MLP(F, 5, dtype=dtype, seed=1),
        tt.ResidualBlock(tt.GRU(F, F, dtype=dtype, seed=2, **options), F, norm="post"),
        tt.Sequential(tt.Linear(F, F, dtype=dtype, seed=3), tt.RNN(F, F, dtype=dtype, seed=4, **options)),
    )


def shapes(state):
    if state is None:
        return None
    return tuple(map(shapes, state)) if isinstance(state, tuple) else state.shape


def test_states_have_the_form_of_the_layers():
    stack, x = stateful(), numbers(7, 3, F)
    tape = stack.forward(x)
    form = (((2, 3, F), (2, 3, F)), None, (1, 3, F), (None, (1, 3, F)))
    assert shapes(tape.final_state) == form
    assert shapes(tape.backward(tape.output).initial_state) == form
    assert shapes(stack(x, state=None)[1]) == form
    assert tape.final_state[2] is tape.layers[2].final_state
    assert shapes(stack.forward(x[:, 0]).final_state) == (((2, F), (2, F)), None, (1, F), (None, (1, F)))
    without = tt.Sequential(tt.Linear(F, F), tt.Sequential(tt.LayerNorm(F)))
    assert without.forward(numbers(2, F, dtype="float32")).final_state is None
    assert without(numbers(2, F, dtype="float32"), state=None)[1] is None


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_sequence_in_parts_is_the_whole(batch_first):
    stack, x = stateful(batch_first=batch_first), numbers(9, 3, F)
    turn = (lambda array: array.swapaxes(0, 1)) if batch_first else (lambda array: array)
    whole, state, steps, tapes = stack.forward(turn(x)), None, [], []
    for t in range(9):
        output, state = stack(turn(x[t : t + 1]), state=state)
        steps.append(turn(output)[0])
    assert_close(np.stack(steps), turn(whole.output), 1e-13)
    for mine, theirs in zip(arrays_of(state), arrays_of(whole.final_state), strict=True):
        assert_close(mine, theirs, 1e-13)
    state = None
    for part in (x[:4], x[4:5], x[5:]):
        tapes.append(stack.forward(turn(part), state=state))
        state = tapes[-1].final_state
    # The backward of the parts, passing the gradient by hand, equals that of the whole.
    d_output = numbers(9, 3, F, seed=1)
    expected, total, d_state = whole.backward(turn(d_output)), dict.fromkeys(stack.parameters, 0), None
    for tape, steps in zip(reversed(tapes), (slice(5, 9), slice(4, 5), slice(0, 4)), strict=True):
        grads = tape.backward(turn(d_output[steps]), d_state)
        d_state = grads.initial_state
        assert_close(turn(grads.input), turn(expected.input)[steps], 1e-12)
        total = {name: total[name] + grads.parameters[name] for name in total}
    assert_close(total, expected.parameters, 1e-12)
    for mine, theirs in zip(arrays_of(d_state), arrays_of(expected.initial_state), strict=True):
        assert_close(mine, theirs, 1e-12)


def arrays_of(state):
    if state is None:
        return []
    return [array for part in state for array in arrays_of(part)] if isinstance(state, tuple) else [state]


def test_the_gradient_of_states_is_their_derivative():
    stack, x = stateful(), numbers(4, 2, F)
    state = stack.forward(numbers(3, 2, F, seed=1)).final_state
    errors = tt.gradcheck(stack, x, state=state, lengths=[4, 2], samples=8)
    names = ["0.h_0", "0.c_0", "2.sublayer.h_0", "3.1.h_0"]
    assert list(errors) == ["input", *names, *stack.parameters]
    assert max(errors.values()) <= 1e-7  # as in test_gradcheck.py
    assert list(tt.gradcheck(stack, x, state=(None, None, state[2], None), samples=2))[1:5] == names
    block = stack.layers[2]
    assert max(tt.gradcheck(block, x, state=state[2], samples=8).values()) <= 1e-7


def test_a_gradient_of_the_final_state_alone_and_states_left_out():
    stack, x = stateful(), numbers(4, 2, F)
    tape = stack.forward(x, state=(None, None, np.ones((1, 2, F)), None))
    d = np.ones((1, 2, F))
    alone = tape.backward(d_final_state=(None, None, None, (None, d)))
    both = tape.backward(np.zeros_like(tape.output), (None, None, None, [None, d]))
    assert_same_bits((alone.input, alone.parameters), (both.input, both.parameters))
    assert alone.initial_state[2].any()


def test_gradient_flow_of_a_stack_starts_from_its_state():
    stack, x = stateful(), numbers(6, 2, F)
    state = stack.forward(100 * x).final_state
    ours, zeros = (tt.gradient_flow(stack, x, state=s).log10_norm for s in (state, None))
    d_output = np.zeros((6, 2, F))
    d_output[-1] = 1
    grads = stack.forward(x, state=state).backward(d_output)
    assert_close(10 ** ours[0], np.linalg.norm(grads.input, axis=(1, 2)), 1e-10)
    assert np.abs(ours[0] - zeros[0]).max() > 1e-6
    block, own = stack.layers[2], np.ones((1, 2, F))
    assert_same_bits(
        tt.gradient_flow(block, x, state=own).log10_norm,
        tt.gradient_flow(tt.Sequential(copy.deepcopy(block)), x, state=(own,)).log10_norm,
    )


def test_a_container_of_the_users_own_hands_its_state_on():
    class Scaled(tt.Sequential):
        def forward(self, x, state=None, **options):
            return super().forward(2 * x, state=state, **options)

        def __call__(self, x, state=None):
            return super().__call__(2 * x, state=state)

    inner = Scaled(tt.GRU(F, F, dtype="float64", seed=0))
    stack, x = tt.Sequential(inner, tt.Linear(F, F, dtype="float64", seed=1)), numbers(6, 2, F)
    whole, (first, state) = stack.forward(x), stack(x[:2], state=None)
    assert_close(first, whole.output[:2], 1e-13)
    assert_close(stack(x[2:], state=state)[0], whole.output[2:], 1e-13)
    assert_close(stack.forward(x[2:], state=state).output, whole.output[2:], 1e-13)
    assert_same_bits(stack(x), whole.output)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, x: s.forward(x, state=np.zeros((1, 2, F))), TypeError, "state must be a tuple .* got ndarray"),
        (lambda s, x: s(x, state=(None,) * 3), ValueError, "state has 3 entries, expected 4, one per layer"),
        (lambda s, x: s(x, state=(None, x, None, None)), ValueError, r"layers\[1\] \(MLP.*state was given"),
        (lambda s, x: s(x, state=(x, None, None, None)), TypeError, r"layers\[0\] \(LSTM.*state must be a pair"),
        (lambda s, x: s(x, state=(None, None, x, None)), ValueError, r"layers\[2\].*sublayer.*state has shape"),
        (lambda s, x: s(x, state=(None, None, None, (x, None))), ValueError, r"layers\[3\].*layers\[0\] \(Linear"),
        (lambda s, x: tt.Sequential(tt.LayerNorm(F))(x, state=(x,)), ValueError, "LayerNorm"),
        (lambda s, x: s.forward(x).backward(), ValueError, "at least one of d_output and d_final_state"),
        (lambda s, x: s.forward(x).backward(x, (None, x, None, None)), ValueError, r"layers\[1\].*d_final_state"),
        (lambda s, x: s.forward(x).backward(x, (None,)), ValueError, "d_final_state has 1 entries, expected 4"),
    ],
)
def test_states_that_do_not_fit_are_refused_with_their_place(call, error, words):
    with pytest.raises(error, match=words):
        call(stateful(), numbers(5, 2, F))


def test_timesteps_of_a_stack_may_be_an_iterator():
    stack = tt.Sequential(tt.GRU(3, 4, seed=0), tt.GRU(4, 4, seed=1))
    tape = stack.forward(numbers(5, 2, 3, dtype="float32"))
    grads = tape.backward(np.ones_like(tape.output), timesteps=iter(["gates"]))
    assert all(layer.gates.shape == (1, 5, 2, 12) for layer in grads.layers)
