"""Bad arguments of `gradient_flow` raise an error that names the argument, the value and the expectation."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from problems import Problem
from test_arguments import LSTM_STATE, PROBLEM, X, cases, raises, zeros

D_OUTPUT = zeros(7, 3, 12)
WRONG = [
    # layer
    ({"layer": "lstm"}, TypeError, ["layer", "str"]),
    ({"layer": None}, TypeError, ["layer", "NoneType"]),
    ({"layer": tt.LSTM}, TypeError, ["layer", "type"]),
    # x
    ({"x": X.astype("int32")}, TypeError, ["x", "int32", "float32"]),
    ({"x": X.astype("float64")}, TypeError, ["x", "float64", "float32"]),
    ({"x": X.tolist()}, TypeError, ["x", "list"]),
    ({"x": zeros(7, 3, 4)}, ValueError, ["x", "(7, 3, 4)", "input_size=5"]),
    ({"x": zeros(0, 3, 5)}, ValueError, ["x", "(0, 3, 5)", "T"]),
    ({"x": zeros(5)}, ValueError, ["x", "(5,)", "(T, B, 5)"]),
    # d_output
    ({"d_output": "first"}, ValueError, ["d_output", "first", "last"]),
    ({"d_output": None}, TypeError, ["d_output", "NoneType"]),
    ({"d_output": 1.0}, TypeError, ["d_output", "float"]),
    ({"d_output": D_OUTPUT.tolist()}, TypeError, ["d_output", "list"]),
    ({"d_output": D_OUTPUT.astype("float64")}, TypeError, ["d_output", "float64", "float32"]),
    ({"d_output": D_OUTPUT.astype("int64")}, TypeError, ["d_output", "int64", "float32"]),
    ({"d_output": zeros(7, 3, 6)}, ValueError, ["d_output", "(7, 3, 6)", "(7, 3, 12)"]),
    ({"d_output": zeros(3, 7, 12)}, ValueError, ["d_output", "(3, 7, 12)", "(7, 3, 12)"]),
    ({"d_output": zeros(3, 12)}, ValueError, ["d_output", "(3, 12)", "(7, 3, 12)"]),
    # state, lengths, memory
    ({"state": LSTM_STATE[0]}, TypeError, ["state", "(h_0, c_0)"]),
    ({"state": (LSTM_STATE[0], zeros(4, 3, 7))}, ValueError, ["state", "(4, 3, 7)", "(4, 3, 6)"]),
    ({"lengths": np.array([7, 8, 3])}, ValueError, ["lengths", "8", "7"]),
    ({"lengths": np.array([7.0, 6.0, 3.0])}, TypeError, ["lengths", "float64", "int"]),
    ({"lengths": np.array([7, 7])}, ValueError, ["lengths", "(2,)", "(3,)"]),
    ({"memory": "little"}, ValueError, ["memory", "little", "full"]),
    ({"memory": 0}, ValueError, ["memory", "0"]),
    ({"memory": None}, TypeError, ["memory", "None"]),
]


@cases(WRONG)
def test_a_recurrent_layer(wrong, error, words):
    given = {"layer": PROBLEM.layer(), "x": X, **wrong}
    raises(error, words, tt.gradient_flow, given.pop("layer"), given.pop("x"), **given)


@cases([case for case in WRONG if not {"layer", "state"} & set(case[0]) and case[0] != {"memory": None}])
def test_a_stack(wrong, error, words):
    """Its first layer sees x, the loss belongs to the last layer's output, and its memory may be left open."""
    given = {"x": X, **wrong}
    raises(error, words, tt.gradient_flow, tt.Sequential(PROBLEM.layer()), given.pop("x"), **given)


def test_the_layers_of_a_stack_start_from_zeros():
    raises((TypeError, ValueError), ["state"], tt.gradient_flow, tt.Sequential(PROBLEM.layer()), X, state=LSTM_STATE)


def test_a_loss_has_the_layout_of_the_output():
    problem = Problem("gru", T=7, B=3, dtype="float32")
    layer = problem.layer(batch_first=True)
    turned = np.ascontiguousarray(problem.x.swapaxes(0, 1))
    raises(ValueError, ["d_output", "(7, 3, 6)", "(3, 7, 6)"], tt.gradient_flow, layer, turned, zeros(7, 3, 6))
    raises(ValueError, ["d_output", "(7, 1, 6)", "(7, 6)"], tt.gradient_flow, problem.layer(), X[:, 0], zeros(7, 1, 6))


def test_options_are_named():
    """Arguments after the loss are keyword-only."""
    with pytest.raises(TypeError):
        tt.gradient_flow(PROBLEM.layer(), X, D_OUTPUT, LSTM_STATE)
    with pytest.raises(TypeError, match="training"):
        tt.gradient_flow(PROBLEM.layer(), X, training=True)
