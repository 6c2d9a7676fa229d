"""Copies of layers, however made: the same results, arrays shared as before, subclasses with other constructors."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from copies import COPIES, LAYERS, F, numbers


def output_of(layer, x):
    return layer.forward(x).output


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_gives_the_same_and_learns_by_itself(name, way):
    layer, x = LAYERS[name](), numbers(5, 2, F)
    made = COPIES[way](layer)
    assert type(made) is type(layer)
    assert repr(made) == repr(layer)
    assert_same_bits(made.parameters, layer.parameters)
    before, kept = output_of(layer, x), {name: array.copy() for name, array in layer.parameters.items()}
    tape = made.forward(x)  # the copies draw the same random masks
    assert_same_bits(tape.output, before)
    tt.optim.Adam(0.1).step(made.parameters, tape.backward(np.ones_like(tape.output)).parameters)
    assert not np.array_equal(output_of(made, x), before)
    assert_same_bits(layer.parameters, kept)


@pytest.mark.parametrize("name", LAYERS)
def test_a_shallow_copy_has_the_same_arrays(name):
    layer = LAYERS[name]()
    made = copy.copy(layer)
    assert all(made.parameters[key] is array for key, array in layer.parameters.items())
    assert made.parameters is not layer.parameters
    assert_same_bits(made(numbers(5, 2, F)), layer(numbers(5, 2, F)))


def test_a_shallow_copy_that_changes_its_type_leaves_the_layer_alone():
    layer = LAYERS["LSTM"]()
    before = repr(layer)
    assert copy.copy(layer).to("cpu", dtype="float64").dtype == np.float64
    assert repr(layer) == before
    assert layer.dtype == np.float32
    assert all(array.dtype == np.float32 for array in layer.parameters.values())


@pytest.mark.parametrize("way", COPIES)
def test_layers_and_arrays_in_two_places_stay_one(way):
    encoder, embedding, head = tt.LSTM(F, F, seed=0), tt.Embedding(9, F, seed=1), tt.Linear(F, 9, seed=2)
    head.parameters["weight"] = embedding.parameters["weight"]
    models = {
        "one": tt.Sequential(embedding, encoder),
        "other": tt.Sequential(tt.LayerNorm(F), encoder, head),
    }
    made = COPIES[way](models)
    one, other = made["one"], made["other"]
    assert one.layers[1] is other.layers[1]
    assert one.parameters["1.weight_hh_l0"] is other.parameters["1.weight_hh_l0"]
    assert one.parameters["0.weight"] is other.parameters["2.weight"]
    one.parameters["0.weight"][...] = 0
    assert models["one"].parameters["0.weight"].any()
    assert (other(numbers(3, 1, F)) == head.parameters["bias"]).all()


def test_copies_own_their_memory_or_leave_it_in_the_file(tmp_path):
    joblib = pytest.importorskip("joblib")
    layer, x = LAYERS["Sequential"](), numbers(5, 2, F)
    for way in COPIES.values():
        assert all(array.flags.owndata and array.flags.writeable for array in way(layer).parameters.values())
    joblib.dump(layer, tmp_path / "layer")
    mapped = joblib.load(tmp_path / "layer", mmap_mode="r")
    assert not any(array.flags.owndata or array.flags.writeable for array in mapped.parameters.values())
    assert_same_bits(output_of(mapped, x), output_of(layer, x))
    assert_same_bits(mapped(x), layer(x))


def test_a_stack_whose_parameter_was_replaced_is_not_copied():
    stack = LAYERS["Sequential"]()
    stack.parameters["0.weight"] = np.zeros((F, F), np.float32)
    with pytest.raises(ValueError, match=r"parameters\['0.weight'\] is not the inner layer's"):
        copy.deepcopy(stack)


# Subclasses


class Encoder(tt.LSTM):
    """A constructor with arguments other than an LSTM's."""

    def __init__(self, features, *, name, seed=None):
        super().__init__(features, features // 2, zoneout=(0.1, 0.2), seed=seed)
        self.name = name


class Net(tt.Sequential):
    def __init__(self, features):
        self.encoder = Encoder(features, name="inner", seed=0)
        super().__init__(self.encoder, tt.Linear(features // 2, 3, seed=1))


class Block(tt.ResidualBlock):
    def __init__(self, features):
        super().__init__(tt.MLP(features, 5, "tanh", seed=0), features, norm="post")


class Narrow(tt.MLP):
    def __init__(self, features):
        super().__init__(features, features // 2, "gelu", seed=0)


SUBCLASSES = {
    "Encoder": lambda: Encoder(6, name="alone", seed=0),
    "Net": lambda: Net(6),
    "Block": lambda: Block(6),
    "Narrow": lambda: Narrow(6),
    "inside": lambda: tt.Sequential(tt.ResidualBlock(Narrow(6), 6), Net(6)),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_with_its_own_constructor_is_taken_as_what_it_derives_from(name, tmp_path):
    layer, x = SUBCLASSES[name](), numbers(7, 1, 6)
    assert max(tt.gradcheck(layer, x, samples=8).values()) <= 1e-7  # as in test_gradcheck.py
    wide = layer.astype("float64")
    assert type(wide) is type(layer)
    assert wide.dtype == np.float64
    assert_same_bits(wide.parameters, {name: array.astype("float64") for name, array in layer.parameters.items()})
    assert wide.forward(x.astype("float64")).output.dtype == np.float64
    assert layer.dtype == np.float32
    assert all(array.dtype == np.float32 for array in layer.parameters.values())
    assert_same_bits(wide.astype("float32").parameters, layer.parameters)
    for save in (layer, wide):
        save.save(tmp_path / "layer.npz")
        loaded = tt.load(tmp_path / "layer.npz")
        assert_same_bits(loaded.parameters, save.parameters)
        y = x.astype(save.dtype)
        assert_same_bits(loaded.forward(y, **quiet(loaded)).output, save.forward(y, **quiet(save)).output)
    assert tt.gradient_flow(layer, x).log10_norm.shape[-1] == 7
    for way in COPIES.values():
        assert_same_bits(way(layer).parameters, layer.parameters)


def quiet(layer):
    return {} if isinstance(layer, tt.MLP) else {"training": False}


def test_a_subclass_keeps_what_is_its_own():
    net = Net(6).astype("float64")
    assert net.encoder is net.layers[0]
    assert net.encoder.name == "inner"
    assert net.parameters["0.weight_hh_l0"] is net.encoder.parameters["weight_hh_l0"]
    assert repr(net) == ("Net(Encoder(6, 3, zoneout=(0.1, 0.2), dtype='float64'), Linear(3, 3, dtype='float64'))")


def test_dynamics_of_a_subclass():
    encoder, x = SUBCLASSES["Encoder"](), numbers(7, 1, 6)
    plain = tt.LSTM(6, 3, zoneout=(0.1, 0.2))
    plain.load_parameters(encoder.parameters)
    assert_same_bits(tt.lyapunov_spectrum(encoder, x), tt.lyapunov_spectrum(plain, x))
    assert_same_bits(tt.jacobian_singular_values(encoder, x, 1, 6), tt.jacobian_singular_values(plain, x, 1, 6))
