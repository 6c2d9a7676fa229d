"""Bad arguments raise an error that names the argument, the value and the expectation."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import KINDS, Problem, layer_class

F32 = np.float32
PROBLEM = Problem("lstm", T=7, B=3, I=5, H=6, L=2, D=2, dtype="float32")
STATE_SHAPE = (4, 3, 6)
X = PROBLEM.x


def raises(error, words, call, *args, **kwargs):
    """`call` raises this error; its message contains all the words, the first one, a name, as a separate word."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert re.search(rf"\b{re.escape(words[0])}\b", str(caught.value)), f"no {words[0]} in: {caught.value}"
    for word in words[1:]:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def cases(table):
    """A test for each (wrong arguments, error, words in the message)."""
    return pytest.mark.parametrize(("wrong", "error", "words"), table, ids=[" ".join(words) for _, _, words in table])


def zeros(*shape, dtype=F32):
    return np.zeros(shape, dtype)


@pytest.fixture(scope="module")
def layer():
    return PROBLEM.layer()


@pytest.fixture(scope="module")
def tape(layer):
    return layer.forward(X)


CONSTRUCTOR = [
    ({"input_size": 0}, ValueError, ["input_size", "0"]),
    ({"input_size": -3}, ValueError, ["input_size", "-3"]),
    ({"input_size": 2.5}, TypeError, ["input_size", "2.5"]),
    ({"input_size": "5"}, TypeError, ["input_size", "'5'"]),
    ({"hidden_size": 0}, ValueError, ["hidden_size", "0"]),
    ({"hidden_size": None}, TypeError, ["hidden_size", "None"]),
    ({"num_layers": 0}, ValueError, ["num_layers", "0"]),
    ({"num_layers": 1.0}, TypeError, ["num_layers", "1.0"]),
    ({"dropout": -0.1}, ValueError, ["dropout", "-0.1"]),
    ({"dropout": 1.5}, ValueError, ["dropout", "1.5"]),
    ({"dropout": "half"}, TypeError, ["dropout", "half"]),
    ({"dtype": "float16"}, TypeError, ["dtype", "float16", "float32", "float64"]),
    ({"dtype": "int32"}, TypeError, ["dtype", "int32", "float32", "float64"]),
    ({"dtype": ">f4"}, TypeError, ["dtype", ">f4", "float32", "float64"]),
    ({"dtype": "no such type"}, TypeError, ["dtype", "no such type", "float32", "float64"]),
]


@cases(CONSTRUCTOR)
def test_constructor(kind, wrong, error, words):
    raises(error, words, layer_class(kind), **{"input_size": 5, "hidden_size": 6, **wrong})


def test_nonlinearity():
    raises(ValueError, ["nonlinearity", "gelu", "tanh", "relu", "sigmoid"], tt.RNN, 5, 6, nonlinearity="gelu")


def test_a_gru_with_layer_normalisation_resets_after_the_product():
    words = ["layer_norm=True", "reset_after=False", "expected reset_after=True or layer_norm=False"]
    raises(ValueError, words, tt.GRU, 5, 6, layer_norm=True, reset_after=False)


@pytest.mark.parametrize("layer", [tt.RNN, tt.GRU, tt.LSTM])
def test_layer_norm_is_true_or_false(layer):
    raises(TypeError, ["layer_norm must be True or False", "'yes'"], layer, 5, 6, layer_norm="yes")


VARIANTS = [Problem(kind, H=6).options for kind in KINDS if kind.startswith("lstm_")]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(VARIANTS, 2)))
def test_an_lstm_is_of_one_kind(one, other):
    """The error names all the options, and those that were given."""
    names = [name for variant in VARIANTS for name in variant]
    given = [f"{name}={value!r}" for name, value in (one | other).items()]
    raises(ValueError, ["LSTM", "at most one of", *names, *given], tt.LSTM, 5, 6, **one, **other)


LSTM_STATE = (zeros(*STATE_SHAPE), zeros(*STATE_SHAPE))
FORWARD = [
    # x
    ({"x": zeros(5)}, ValueError, ["x", "(5,)", "(T, B, 5)"]),
    ({"x": zeros(7, 3, 5, 1)}, ValueError, ["x", "(7, 3, 5, 1)", "(T, B, 5)"]),
    ({"x": zeros(7, 3, 4)}, ValueError, ["x", "(7, 3, 4)", "input_size=5"]),
    ({"x": zeros(0, 3, 5)}, ValueError, ["x", "(0, 3, 5)", "T"]),
    ({"x": zeros(0, 5)}, ValueError, ["x", "(0, 5)", "T"]),
    ({"x": X.astype("float64")}, TypeError, ["x", "float64", "float32"]),
    ({"x": X.astype("float16")}, TypeError, ["x", "float16", "float32"]),
    ({"x": X.astype("complex64")}, TypeError, ["x", "complex64", "float32"]),
    ({"x": X.astype(object)}, TypeError, ["x", "object", "float32"]),
    ({"x": X.astype("int32")}, TypeError, ["x", "int32", "float32"]),
    ({"x": X > 0}, TypeError, ["x", "bool", "float32"]),
    ({"x": X.astype(">f4")}, TypeError, ["x", ">f4", "float32"]),
    ({"x": X.tolist()}, TypeError, ["x", "list"]),
    ({"x": None}, TypeError, ["x", "NoneType"]),
    # state
    ({"state": LSTM_STATE[0]}, TypeError, ["state", "(h_0, c_0)"]),
    ({"state": LSTM_STATE[:1]}, ValueError, ["state", "1", "(h_0, c_0)"]),
    ({"state": (*LSTM_STATE, LSTM_STATE[0])}, ValueError, ["state", "3", "(h_0, c_0)"]),
    ({"state": (zeros(4, 6), LSTM_STATE[1])}, ValueError, ["state", "(4, 6)", "(4, 3, 6)"]),
    ({"state": (zeros(2, 3, 6), LSTM_STATE[1])}, ValueError, ["state", "(2, 3, 6)", "(4, 3, 6)"]),
    ({"state": (LSTM_STATE[0], zeros(4, 1, 6))}, ValueError, ["state", "(4, 1, 6)", "(4, 3, 6)"]),
    ({"state": (LSTM_STATE[0], zeros(4, 3, 7))}, ValueError, ["state", "(4, 3, 7)", "(4, 3, 6)"]),
    ({"state": (LSTM_STATE[0], LSTM_STATE[1].astype("f8"))}, TypeError, ["state", "float64", "float32"]),
    ({"state": (LSTM_STATE[0].astype("c8"), LSTM_STATE[1])}, TypeError, ["state", "complex64", "float32"]),
    # lengths
    ({"lengths": np.array([7, 7])}, ValueError, ["lengths", "(2,)", "(3,)"]),
    ({"lengths": np.array(7)}, ValueError, ["lengths", "()", "(3,)"]),
    ({"lengths": np.array([[7, 7, 7]])}, ValueError, ["lengths", "(1, 3)", "(3,)"]),
    ({"lengths": np.array([7, -1, 3])}, ValueError, ["lengths", "-1", "0", "7"]),
    ({"lengths": np.array([7, 8, 3])}, ValueError, ["lengths", "8", "7"]),
    ({"lengths": np.array([7, 2**40, 3])}, ValueError, ["lengths", str(2**40), "7"]),
    ({"lengths": np.array([2**64 - 1, 1, 3], np.uint64)}, ValueError, ["lengths", "7"]),
    ({"lengths": np.array([7.0, 6.0, 3.0])}, TypeError, ["lengths", "float64", "int"]),
    ({"lengths": np.array([True, True, False])}, TypeError, ["lengths", "bool", "int"]),
    # resets
    ({"resets": np.zeros((3, 7), bool)}, ValueError, ["resets", "(3, 7)", "(7, 3)"]),
    ({"resets": np.zeros(7, bool)}, ValueError, ["resets", "(7,)", "(7, 3)"]),
    ({"resets": np.zeros((7, 3), int)}, TypeError, ["resets", "int64", "bool"]),
    # masks
    ({"masks": {"dropout_l1": np.zeros((7, 3, 12), bool)}}, ValueError, ["masks", "dropout_l1"]),
    ({"masks": {"zoneout_h_l0": np.zeros((7, 3, 6), bool)}}, ValueError, ["masks", "zoneout_h_l0"]),
    (
        {"masks": {"dropout_l0": np.zeros((7, 3, 6), bool)}},
        ValueError,
        ["dropout_l0", "(7, 3, 6)", "(7, 3, 12)"],
    ),
    ({"masks": {"dropout_l0": zeros(7, 3, 12)}}, TypeError, ["dropout_l0", "float32", "bool"]),
    ({"masks": np.zeros((7, 3, 12), bool)}, TypeError, ["masks", "dict"]),
    # words
    ({"output": "first"}, ValueError, ["output", "first", "all", "last"]),
    ({"memory": "little"}, ValueError, ["memory", "little", "full"]),
    ({"memory": 0}, ValueError, ["memory", "0"]),
]


@cases(FORWARD)
def test_forward(layer, wrong, error, words):
    raises(error, words, layer_that_drops() if "masks" in wrong else layer.forward, **{"x": X, **wrong})


def layer_that_drops():
    return PROBLEM.layer(dropout=0.5).forward


@cases([case for case in FORWARD if set(case[0]) <= {"x", "state", "lengths"}])
def test_inference_checks_the_same(layer, wrong, error, words):
    raises(error, words, layer, **{"x": X, **wrong})


@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru"])
def test_a_state_is_one_array_where_there_is_no_c(kind):
    problem = Problem(kind)
    raises(TypeError, ["state", "tuple"], problem.layer().forward, problem.x, (problem.state, problem.state))


def test_features_are_named_with_what_the_layer_was_built_for():
    raises(
        ValueError,
        ["x", "7 features", "LSTM", "input_size=8", "(5, 3, 7)"],
        tt.LSTM(8, 4),
        zeros(5, 3, 7),
    )


def test_batch_first_and_unbatched_shapes_are_named_as_such():
    raises(ValueError, ["x", "(B, T, 5)"], tt.GRU(5, 4, batch_first=True), zeros(5))
    raises(ValueError, ["state", "(1, 3, 4)", "(1, 4)"], tt.GRU(5, 4), zeros(7, 5), zeros(1, 3, 4))
    raises(ValueError, ["x", "(3, 0, 5)", "T"], tt.GRU(5, 4, batch_first=True), zeros(3, 0, 5))


D_OUTPUT = zeros(7, 3, 12)
BACKWARD = [
    ({"d_output": None}, ValueError, ["d_output", "d_final_state", "d_cell"]),
    ({"d_output": zeros(7, 3, 6)}, ValueError, ["d_output", "(7, 3, 6)", "(7, 3, 12)"]),
    ({"d_output": zeros(3, 7, 12)}, ValueError, ["d_output", "(3, 7, 12)", "(7, 3, 12)"]),
    ({"d_output": zeros(3, 12)}, ValueError, ["d_output", "(3, 12)", "(7, 3, 12)"]),
    ({"d_output": D_OUTPUT.astype("float64")}, TypeError, ["d_output", "float64", "float32"]),
    ({"d_output": D_OUTPUT.astype("complex64")}, TypeError, ["d_output", "complex64", "float32"]),
    ({"d_output": D_OUTPUT.astype(object)}, TypeError, ["d_output", "object", "float32"]),
    ({"d_output": D_OUTPUT.astype(">f4")}, TypeError, ["d_output", ">f4", "float32"]),
    ({"d_output": 1.0}, TypeError, ["d_output", "float"]),
    ({"d_final_state": LSTM_STATE[0]}, TypeError, ["d_final_state"]),
    (
        {"d_final_state": (LSTM_STATE[0], zeros(4, 3, 5))},
        ValueError,
        ["d_final_state", "(4, 3, 5)", "(4, 3, 6)"],
    ),
    ({"d_final_state": (zeros(4, 6), LSTM_STATE[1])}, ValueError, ["d_final_state", "(4, 6)", "(4, 3, 6)"]),
    (
        {"d_final_state": (LSTM_STATE[0].astype("f8"), LSTM_STATE[1])},
        TypeError,
        ["d_final_state", "float64", "float32"],
    ),
    ({"d_cell": zeros(7, 3, 6)}, ValueError, ["d_cell", "(7, 3, 6)", "(4, 7, 3, 6)"]),
    ({"d_cell": zeros(4, 7, 3, 6, dtype="float64")}, TypeError, ["d_cell", "float64", "float32"]),
    ({"timesteps": ("hidden", "weights")}, ValueError, ["timesteps", "weights", "parameter_norms"]),
    ({"truncate": 0}, ValueError, ["truncate", "0", "1"]),
    ({"truncate": -2}, ValueError, ["truncate", "-2", "1"]),
    ({"truncate": 2.0}, TypeError, ["truncate", "2.0"]),
    ({"clip": 0.0}, ValueError, ["clip", "0"]),
    ({"clip": -1.0}, ValueError, ["clip", "-1"]),
    ({"clip": float("nan")}, ValueError, ["clip", "nan"]),
    ({"clip": "one"}, TypeError, ["clip", "one"]),
]


@cases(BACKWARD)
def test_backward(tape, wrong, error, words):
    raises(error, words, tape.backward, **{"d_output": D_OUTPUT, **wrong})


def test_the_gradient_of_a_last_output_has_its_shape(layer):
    tape = layer.forward(X, output="last")
    raises(ValueError, ["d_output", "(7, 3, 12)", "(3, 12)"], tape.backward, D_OUTPUT)


def test_foreign_parameters_are_all_named_at_once_and_none_is_loaded():
    """One error lists missing, unexpected and misshapen ones."""
    layer = PROBLEM.layer()
    before = {name: array.copy() for name, array in layer.parameters.items()}
    wrong = {name: array + 1 for name, array in before.items()}
    del wrong["weight_ih_l1_reverse"], wrong["bias_hh_l0"]
    wrong |= {"weight_ih_l7": zeros(2), "decoder": zeros(3), "weight_hh_l0": zeros(24, 5)}
    words = [
        "weight_ih_l1_reverse",
        "bias_hh_l0",
        "weight_ih_l7",
        "decoder",
        "weight_hh_l0",
        "(24, 5)",
        "(24, 6)",
    ]
    raises(ValueError, words, layer.load_parameters, wrong)
    assert_same_bits(layer.parameters, before)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool", "object"])
def test_parameters_are_floats(dtype):
    layer = PROBLEM.layer()
    wrong = layer.parameters | {"weight_hh_l0": np.zeros((24, 6), dtype)}
    raises(TypeError, ["weight_hh_l0", dtype, "float"], layer.load_parameters, wrong)


@pytest.mark.parametrize("replacement", [zeros(24, 5), zeros(24, 6, dtype="float64"), None])
def test_a_parameter_replaced_by_what_does_not_fit_is_named(replacement):
    """Users may write into the dict; entries are checked before use."""
    layer = PROBLEM.layer()
    layer.parameters["weight_hh_l0"] = replacement
    raises((TypeError, ValueError), ["weight_hh_l0"], layer.forward, X)


def test_a_parameter_that_was_removed_is_named():
    layer = PROBLEM.layer()
    del layer.parameters["weight_hh_l0"]
    raises((KeyError, ValueError), ["weight_hh_l0"], layer.forward, X)


@pytest.mark.parametrize("n", [0, -1])
def test_threads_are_at_least_one(n):
    raises(ValueError, ["n", str(n)], tt.set_num_threads, n)


def test_threads_are_counted_in_integers():
    raises(TypeError, ["n", "1.5"], tt.set_num_threads, 1.5)


def test_a_file_that_is_no_layer_is_named(tmp_path):
    path = tmp_path / "not-a-layer"
    path.write_bytes(b"something else")
    raises(ValueError, ["not-a-layer"], tt.load, path)
