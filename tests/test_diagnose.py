"""`tt.diagnose`: each disease in a network built to have it, with known figures, and not in a healthy one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

import throughtime as tt
from flow_problems import CHAINS, Chain
from test_arguments import raises

T, B, H = 60, 3, 8
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, B, H), dtype=np.float32)
ROWS = RNG.standard_normal((64, H), dtype=np.float32)
HORIZON = 20  # the first k with 0.5^k < 1e-6


def found(layer, x=X, *arguments, **options):
    """The findings by disease and place."""
    return {(one.disease, one.layer): one for one in tt.diagnose(layer, x, *arguments, **options).findings}


def diseases(layer, x=X, *arguments, **options):
    return {disease for disease, _ in found(layer, x, *arguments, **options)}


def linear(matrix, bias=0.0):
    layer = tt.Linear(*matrix.shape[::-1])
    layer.parameters["weight"][...] = matrix
    layer.parameters["bias"][...] = bias
    return layer


def chain(factor, kind="rnn_tanh", **sizes):
    """A layer whose every step back multiplies the gradient by the factor, and its input and state."""
    problem = Chain(kind, **{"T": T, "B": 2, "factors": (factor,), **sizes})
    return problem.layer(), problem.x, problem.state


def healthy_lstm(seed=0):
    return tt.init.apply(tt.LSTM(H, H, seed=seed), "good", max_steps=T, seed=seed)


# through time


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", CHAINS)
def test_a_contracting_layer_vanishes(kind, dtype):
    layer, x, state = chain(0.5, kind, dtype=dtype)
    finding = found(layer, x, state=state)["vanishing", type(layer).__name__]
    assert finding.figures == {"gamma": pytest.approx(0.5, rel=1e-5), "horizon": HORIZON, "steps": T}
    assert finding.severity == "severe"
    assert finding.text == f"contracting, gamma 0.500: remembers 20 steps of {T}; nothing is learnt from the other 40"


@pytest.mark.parametrize("kind", CHAINS)
def test_a_layer_that_keeps_the_gradient_is_healthy(kind):
    layer, x, state = chain(0.999, kind)
    assert not diseases(layer, x, state=state) & {"vanishing", "exploding", "zero gradient", "not finite"}


@pytest.mark.parametrize("kind", CHAINS)
def test_an_expanding_layer_explodes(kind):
    """At the end the loss is 1.3^59 as large: 10^6.7. The relu would leave its fixed point, as its rounding grows."""
    layer, x, state = chain(1.3, kind)
    finding = found(layer, x, state=state)["exploding", type(layer).__name__]
    assert finding.figures["gamma"] == pytest.approx(1.3, rel=1e-5)
    assert finding.figures["log10_growth"] == pytest.approx((T - 1) * math.log10(1.3), rel=1e-5)
    assert finding.severity == "severe"
    assert ("vanishing", finding.layer) not in found(layer, x, state=state)


def test_growth_that_ends_is_no_explosion():
    """Half of the way must still grow: of 1.1^59 = 10^2.4, the farther half has 10^1.2."""
    layer, x, state = chain(1.1)
    assert diseases(layer, x, state=state) == set()


def test_a_short_sequence_shows_no_disease():
    layer, x, state = chain(0.5, T=HORIZON)
    assert diseases(layer, x, state=state) == set()
    layer, x, state = chain(0.5, T=HORIZON + 1)
    finding = found(layer, x, state=state)["vanishing", "RNN"]
    assert (finding.figures["steps"], finding.severity) == (HORIZON + 1, "mild")


def test_max_steps_says_how_long_a_memory_should_be():
    layer, x, state = chain(0.5)
    assert diseases(layer, x, state=state, max_steps=HORIZON) == set()
    finding = found(layer, x, state=state, max_steps=HORIZON + 5)["vanishing", "RNN"]
    assert finding.text.endswith("remembers 20 steps of 25; nothing is learnt from the other 5")
    assert finding.severity == "mild"
    finding = found(layer, x, state=state, max_steps=10 * T)["vanishing", "RNN"]
    assert finding.text.endswith(f"remembers 20 steps of {T}; nothing is learnt from the other 40")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [[T, 0, 1, 25], [1, 40, T, T]])
def test_lengths_do_not_blur_the_rate(reverse, lengths):
    """The loss of a short sequence, met late on the way back, is no growth of the long one's gradient.

    A sequence that ends on the way takes its part of the norm with it: of four equal ones at most a half.
    """
    layer = tt.RNN(H, H, reverse=reverse)
    for array in layer.parameters.values():
        array[...] = 0
    layer.parameters["weight_hh_l0"][...] = 0.5 * np.eye(H, dtype=np.float32)
    x = np.zeros((T, 4, H), np.float32)
    finding = found(layer, x, lengths=np.array(lengths))["vanishing", "RNN"]
    assert finding.figures["gamma"] == pytest.approx(0.5, rel=math.log(2) / (T - 1))
    assert HORIZON - 1 <= finding.figures["horizon"] <= HORIZON


def test_layouts_agree():
    layer = tt.GRU(H, H, seed=0)
    turned = tt.GRU(H, H, batch_first=True)
    turned.load_parameters(layer.parameters)
    first = found(layer)["vanishing", "GRU"].figures
    assert found(turned, np.ascontiguousarray(X.swapaxes(0, 1)))["vanishing", "GRU"].figures == first
    single = found(layer, X[:, 0])["vanishing", "GRU"].figures
    assert found(layer, np.ascontiguousarray(X[:, :1]))["vanishing", "GRU"].figures == single


def test_the_worst_row_is_named():
    """Of two directions, the one that forgets."""
    layer = tt.RNN(H, H, bidirectional=True)
    for array in layer.parameters.values():
        array[...] = 0
    layer.parameters["weight_hh_l0"][...] = np.eye(H)
    layer.parameters["weight_hh_l0_reverse"][...] = 0.5 * np.eye(H)
    finding = found(layer, np.zeros_like(X))["vanishing", "RNN"]
    assert finding.text.startswith("layer 0, reverse: contracting, gamma 0.500: remembers 20 steps")


def test_a_direction_that_has_read_one_step_is_not_judged():
    """Above it, a Linear reads the last output only."""
    stack = tt.Sequential(tt.LSTM(H, H, 2, bidirectional=True, seed=0), tt.Linear(2 * H, 3, seed=0))
    assert diseases(tt.init.apply(stack, "good", max_steps=T, seed=0)) == set()
    assert diseases(tt.Sequential(tt.LSTM(H, H, reverse=True, seed=0), tt.Linear(H, 3, seed=0)), X) == set()


@pytest.mark.parametrize("last", ["norm", "post", "batch"])
def test_a_norm_at_the_end_is_no_disease(last):
    """Ones are orthogonal to all that a norm lets through, and would show its rounding only."""
    layers = [tt.ResidualBlock(tt.MLP(H, 4 * H, seed=k), H) for k in range(4)]
    if last == "post":
        layers.append(tt.ResidualBlock(tt.MLP(H, H, seed=9), H, norm="post"))
    else:
        layers.append(tt.LayerNorm(H) if last == "norm" else tt.BatchNorm(H))
    stack = tt.Sequential(*layers)
    assert tt.gradient_flow(stack, ROWS).depth_log10_norm[0] < -4
    for x, lengths in ((ROWS, None), (X, None), (X, np.array([T, 0, 7]))):
        diagnosis = tt.diagnose(stack, x, lengths=lengths)
        assert diagnosis.findings == []
        valid = np.ones(x.shape[:-1]) if x is ROWS else np.zeros((T, B))
        for sequence, length in enumerate([T] * B if lengths is None else lengths):
            if x is X and length:
                valid[length - 1, sequence] = 1
        assert diagnosis.flow.depth_log10_norm[-1] == pytest.approx(math.log10(H * valid.sum()) / 2)


def test_losses_on_all_steps_hide_what_vanishes():
    layer, x, state = chain(0.5)
    assert diseases(layer, x, np.ones_like(x, shape=(T, 2, layer.hidden_size)), state=state) == set()


# exactly zero


def test_a_relu_that_goes_out_cuts_the_gradient():
    """x switches all units off at step 40: h there is 0, its gradient goes no further back."""
    layer = tt.RNN(1, H, nonlinearity="relu")
    for name, array in layer.parameters.items():
        array[...] = np.eye(H) if name == "weight_hh_l0" else 1 if name == "weight_ih_l0" else 0
    x = np.full((T, B, 1), 0.01, np.float32)
    assert diseases(layer, x) == set()
    x[40] = -1e3
    finding = found(layer, x)["zero gradient", "RNN"]
    assert finding.figures == {"lag": T - 40, "steps": T}
    assert finding.text == f"the gradient is exactly zero from 20 steps back on; nothing is learnt from 40 of {T} steps"
    assert diseases(layer, x) == {"zero gradient"}
    x[:] = -1e3
    text = found(layer, x)["zero gradient", "RNN"].text
    assert text == f"the gradient is exactly zero from 1 step back on; nothing is learnt from {T - 1} of {T} steps"


def test_a_layer_of_zeros_stops_the_gradient():
    stack = tt.Sequential(tt.Linear(H, H, seed=0), linear(np.zeros((H, H))), tt.Linear(H, H, seed=1))
    finding = found(stack, ROWS)["zero gradient", "1"]
    assert finding.severity == "severe"
    assert finding.remedy.figures["log10_factor"] > -3
    assert diseases(tt.Sequential(*(tt.Linear(H, H, seed=k) for k in range(3))), ROWS) == set()


def test_below_an_embedding_there_is_no_gradient_to_miss():
    stack = tt.Sequential(tt.Embedding(5, H, seed=0), healthy_lstm(), tt.Linear(H, 5, seed=0))
    ids = RNG.integers(0, 5, (T, B))
    assert diseases(stack, ids) == set()
    stack.layers[1].parameters["weight_ih_l0"][...] = 0
    assert ("zero gradient", "1") in found(stack, ids)


@pytest.mark.parametrize(
    "model", [tt.LSTM(H, H, seed=0), tt.Sequential(tt.Linear(H, H, seed=0), tt.LSTM(H, H, seed=0))]
)
def test_a_loss_without_gradient(model):
    (finding,) = tt.diagnose(model, X, np.zeros_like(X)).findings
    assert (finding.disease, finding.layer) == ("zero gradient", "output")
    assert diseases(model, X, lengths=np.zeros(B, np.int64)) == {"zero gradient"}


def test_no_sequences():
    for kind in (tt.RNN, tt.GRU, tt.LSTM):
        (finding,) = tt.diagnose(kind(H, H, seed=0), X[:, :0]).findings
        assert (finding.disease, finding.layer) == ("zero gradient", "output")


# NaN and infinity


def test_nan_in_x_has_its_step():
    x = X.copy()
    x[17, 1, 2] = np.nan
    for model in (tt.GRU(H, H, seed=0), tt.Sequential(tt.Linear(H, H, seed=0), tt.GRU(H, H, seed=0))):
        (finding,) = tt.diagnose(model, x).findings
        assert (finding.disease, finding.layer, finding.severity) == ("not finite", "input", "severe")
        assert finding.figures == {"timestep": 17}
        assert finding.remedy is None
    assert diseases(healthy_lstm()) == set()


def test_a_state_that_overflows_has_its_step():
    """h_t = 16^t passes 2^128 at t = 32; weights that keep the norm do not."""
    layer = tt.RNN(1, 1, nonlinearity="relu", dtype="float32")
    for name, array in layer.parameters.items():
        array[...] = 16 if name == "weight_hh_l0" else 0
    finding = found(layer, np.zeros((T, 2, 1), np.float32), state=np.ones((1, 2, 1), np.float32))["not finite", "RNN"]
    assert finding.figures == {"timestep": 31}  # index 31 holds the 32nd state after the initial one
    assert "tt.init.apply(layer, " in finding.remedy.text


def test_a_parameter_of_an_inner_layer():
    stack = tt.Sequential(tt.Linear(H, H, seed=0), tt.ResidualBlock(tt.GRU(H, H, seed=0), H))
    stack.parameters["1.sublayer.weight_hh_l0"][0, 0] = np.nan
    (finding,) = tt.diagnose(stack, X).findings
    assert (finding.disease, finding.layer) == ("not finite", "1.sublayer")
    assert "parameter weight_hh_l0 is not finite" in finding.text


def test_a_loss_that_is_not_finite():
    d_output = np.ones_like(X)
    d_output[5, 0, 0] = np.nan
    (finding,) = tt.diagnose(tt.LSTM(H, H, seed=0), X, d_output).findings
    assert (finding.disease, finding.layer, finding.figures) == ("not finite", "output", {"timestep": 5})


# units


def test_dead_units_are_counted():
    stack = tt.Sequential(tt.Linear(H, H, seed=0), tt.ReLU(), tt.Linear(H, H, seed=1))
    assert diseases(stack, ROWS) == set()
    stack.parameters["0.bias"][:3] = -100
    finding = found(stack, ROWS)["dead units", "1"]
    assert finding.figures == {"share": 3 / 8, "units": 8, "rows": 64}
    assert finding.severity == "mild"
    assert finding.remedy.figures == {"share": 0}
    stack.parameters["0.bias"][:5] = -100
    assert found(stack, ROWS)["dead units", "1"].severity == "severe"
    assert diseases(stack, ROWS[:31]) == set()  # too few rows to tell


def test_dead_units_of_an_mlp_and_of_a_recurrent_layer():
    mlp = tt.MLP(H, 16, seed=0)
    assert diseases(mlp, ROWS) == set()
    mlp.parameters["linear1.bias"][:8] = -100
    assert found(mlp, ROWS)["dead units", "MLP"].figures["share"] == 0.5
    rnn = tt.init.apply(tt.RNN(H, H, 2, "relu", seed=0), "identity", seed=0)
    assert "dead units" not in diseases(rnn)
    rnn.parameters["bias_ih_l1"][:4] = -1e4
    assert found(rnn)["dead units", "RNN"].text == f"layer 1: dead units: 4 of 8 ReLUs are zero for all {T * B} inputs"


def test_padding_neither_revives_nor_kills():
    """A bias makes the ReLU of zeros positive, and it is on there only."""
    stack = tt.Sequential(linear(-np.eye(H), 1.0), tt.ReLU())
    x, lengths = np.full((40, 2, H), 2, np.float32), np.array([40, 10])
    finding = found(stack, x, lengths=lengths)["dead units", "1"]
    assert finding.figures == {"share": 1, "units": 8, "rows": 50}
    mlp = tt.MLP(H, H, seed=0)
    mlp.parameters["linear1.weight"][...], mlp.parameters["linear1.bias"][...] = -np.eye(H), 1
    assert found(tt.Sequential(mlp), x, lengths=lengths)["dead units", "0"].figures["rows"] == 50


@pytest.mark.parametrize(
    ("kind", "gate", "bias", "counts"),
    [
        (tt.LSTM, 0, 9, True),
        (tt.LSTM, 0, -9, True),  # an input gate that is shut
        (tt.LSTM, 1, 9, False),  # a memory
        (tt.LSTM, 1, -9, True),
        (tt.LSTM, 2, 9, True),
        (tt.LSTM, 3, -9, True),
        (tt.GRU, 0, 9, True),
        (tt.GRU, 1, 9, False),
        (tt.GRU, 1, -9, True),
        (tt.GRU, 2, -9, True),
        (tt.RNN, 0, 9, True),
    ],
)
def test_saturated_gates(kind, gate, bias, counts):
    """A bias of 9 leaves 1e-4 of a sigmoid, while x and h move it by less than 4: weights are below 1/sqrt(8)."""
    layer = kind(H, H, seed=0)
    assert "saturated" not in diseases(layer)
    for name, array in layer.parameters.items():
        array *= np.float32(0.5 if "weight" in name else 0)
    layer.parameters["bias_ih_l0"][gate * H : (gate + 1) * H] = bias
    findings = found(layer)
    assert (("saturated", kind.__name__) in findings) == counts
    if counts:
        finding = findings["saturated", kind.__name__]
        assert finding.figures["share"] > 0.95
        assert finding.severity == "severe"
        assert finding.remedy.figures["share"] < 0.5
        if kind is not tt.RNN:
            assert f"gate {('rzn' if kind is tt.GRU else 'ifgo')[gate]} are" in finding.text


def test_an_input_gate_beside_an_open_forget_gate_holds_a_memory():
    layer = tt.LSTM(H, H, seed=0)
    layer.parameters["bias_ih_l0"][:H], layer.parameters["bias_ih_l0"][H : 2 * H] = -9, 9
    assert "saturated" not in diseases(layer)


def test_large_inputs_saturate_and_division_helps():
    finding = found(tt.LSTM(H, H, seed=0), 100 * X)["saturated", "LSTM"]
    assert finding.remedy.text.startswith("x / ")
    divisor = float(finding.remedy.text.split()[2].rstrip(","))
    assert divisor == pytest.approx(100 * X.std(), rel=0.01)
    assert "saturated" in diseases(tt.Sequential(tt.Tanh()), 100 * X)
    assert "saturated" not in diseases(tt.Sequential(tt.Tanh()), X)
    assert "saturated" in diseases(tt.MLP(H, H, "sigmoid", seed=0), 100 * X)


# depth


@pytest.mark.parametrize(
    ("size", "disease", "severity"),
    [
        (0.1, "vanishing over depth", "mild"),
        (0.01, "vanishing over depth", "severe"),
        (10, "exploding over depth", "mild"),
        (0.5, None, None),
    ],
)
def test_plain_depth(size, disease, severity):
    stack = tt.Sequential(*(linear(size * np.eye(H)) for _ in range(4)))
    findings = found(stack, ROWS)
    if disease is None:
        assert findings == {}
        return
    finding = findings[disease, "stack"]
    factor = 4 * math.log10(size)
    assert finding.figures == {
        "log10_factor": pytest.approx(factor, abs=1e-6),
        "layers": 4,
        "each": pytest.approx(size, rel=1e-6),
    }
    assert finding.severity == severity
    assert abs(finding.remedy.figures["log10_factor"]) < abs(factor)


def test_residual_additions_cure_depth():
    plain = [tt.MLP(H, 4 * H, "gelu", seed=k) for k in range(10)]
    finding = found(tt.Sequential(*plain), ROWS)["vanishing over depth", "stack"]
    assert "tt.ResidualBlock" in finding.remedy.text
    cured = tt.Sequential(*(tt.ResidualBlock(layer, H) for layer in plain))
    assert found(cured, ROWS) == {}
    expected = tt.gradient_flow(cured, ROWS).depth_log10_norm
    assert finding.remedy.figures["log10_factor"] == pytest.approx(expected[0] - expected[-1])


def test_a_deep_stack_of_relus():
    """With gains for ReLUs (kaiming) it is not plain depth that hurts."""
    stack = tt.Sequential(*(layer for k in range(15) for layer in (tt.Linear(32, 32, seed=k), tt.ReLU())))
    x = RNG.standard_normal((64, 32), dtype=np.float32)
    finding = found(stack, x)["vanishing over depth", "stack"]
    assert abs(finding.remedy.figures["log10_factor"]) < 1
    assert diseases(tt.init.apply(stack, "kaiming", seed=0), x) <= {"dead units"}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_depth_inside_a_recurrent_layer(bidirectional):
    """Its remedy is measured on single layers in residual blocks, which have its parameters."""
    width = 2 * H if bidirectional else H
    layer = tt.LSTM(H, H, 8, bidirectional=bidirectional, seed=0)
    finding = found(layer)["vanishing over depth", "LSTM"]
    assert finding.figures["layers"] == 7
    singles = []
    for i in range(8):
        own = tt.LSTM(width if i else H, H, bidirectional=bidirectional)
        own.load_parameters(
            {n: layer.parameters[n.replace("_l0", f"_l{i}")] for n in own.parameters},
        )
        singles.append(own if own.input_size != width else tt.ResidualBlock(own, width))
    norms = tt.gradient_flow(tt.Sequential(*singles), X).depth_log10_norm
    assert finding.remedy.figures["log10_factor"] == pytest.approx(norms[1] - norms[-1], abs=1e-6)
    assert "over depth" not in " ".join(diseases(tt.LSTM(H, H, 2, bidirectional=bidirectional, seed=0)))


# remedies


MODELS = [
    tt.LSTM(H, H, seed=0),
    tt.GRU(H, H, 2, bidirectional=True, seed=0),
    tt.RNN(H, H, seed=0),
    tt.Sequential(tt.Linear(H, H, seed=0), tt.ResidualBlock(tt.GRU(H, H, seed=0), H), tt.Linear(H, 3, seed=0)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_the_remedy_measures_what_it_says(model):
    """Its text runs as it stands."""
    for finding in tt.diagnose(model, X).findings:
        if finding.disease != "vanishing" or "ResidualBlock" in finding.remedy.text:
            continue
        cured = eval(finding.remedy.text, {"tt": tt, "layer": copy.deepcopy(model)})
        flow = tt.gradient_flow(cured, X)
        for part in finding.layer.split("."):
            flow = flow.layers[int(part)] if part.isdigit() else flow
        assert finding.remedy.figures["gamma"] in flow.gamma
        assert finding.remedy.figures["horizon"] == flow.horizon(1e-6).min()
        assert finding.remedy.figures["horizon"] > finding.figures["horizon"]
        assert abs(math.log(finding.remedy.figures["gamma"])) < abs(math.log(finding.figures["gamma"]))


def test_nothing_else_changes():
    """Neither the model, nor x, nor the random numbers of the program."""
    stack = tt.Sequential(tt.RNN(H, H, seed=0), tt.BatchNorm(H), tt.LSTM(H, H, seed=1))
    before = {name: array.copy() for name, array in {**stack.parameters, **stack.buffers}.items()}
    x, drawn = X.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (str(tt.diagnose(stack, x)) for _ in range(2))
    assert "vanishing" in diseases(stack, x)
    assert first == again
    assert all(np.array_equal(array, before[name]) for name, array in {**stack.parameters, **stack.buffers}.items())
    assert np.array_equal(x, X)
    assert np.array_equal(drawn, np.random.get_state()[1])  # noqa: NPY002


def test_no_remedy_that_measures_worse():
    """Chrono costs a plain stack gradient over depth, so residual additions come with it."""
    stack = tt.Sequential(*(tt.LSTM(H, H, seed=k) for k in range(8)))
    assert "tt.ResidualBlock" in found(stack)["vanishing", "7"].remedy.text
    for kind in (tt.RNN, tt.GRU, tt.LSTM):
        for seed in range(3):
            for finding in tt.diagnose(kind(H, H, seed=seed), X).findings:
                if finding.remedy is not None:
                    assert finding.remedy.figures["horizon"] >= finding.figures["horizon"]


def test_a_gamma_nearer_to_1_is_no_remedy_without_a_longer_memory():
    """Inputs this large saturate the gates, whatever the initial weights are; a smaller x helps."""
    x = 1e4 * np.random.default_rng(0).standard_normal((100, 2, 3))
    layer = tt.GRU(3, 4, dtype="float64", seed=0)
    findings = found(layer, x)
    assert findings["vanishing", "GRU"].remedy is None
    assert findings["saturated", "GRU"].remedy.text.startswith("x / ")


def test_a_gradient_that_vanishes_before_it_is_zero_has_both_diseases():
    layer, x, state = chain(0.1)
    layer.parameters["weight_ih_l0"][...] = 1e3
    x[5] = -1
    findings = found(layer, x, state=state)
    assert findings["zero gradient", "RNN"].figures["lag"] == T - 5
    assert findings["vanishing", "RNN"].figures["horizon"] < 10


def test_a_state_is_kept_by_remedies():
    layer = tt.RNN(H, H, seed=0)
    finding = found(layer, state=np.ones((1, B, H), np.float32))["vanishing", "RNN"]
    assert finding.remedy is None or "LSTM" not in finding.remedy.text
    stack = tt.Sequential(tt.GRU(H, H, seed=0), tt.Linear(H, H, seed=0))
    assert found(stack, state=(np.ones((1, B, H), np.float32), None))["vanishing", "0"].remedy is not None
    block = tt.ResidualBlock(tt.GRU(H, H, seed=0), H)
    assert found(block, state=np.ones((1, B, H), np.float32))["vanishing", "sublayer"].remedy is not None


# text, torch, arguments


def test_the_text():
    """One line for a disease that several layers have, if they have one remedy."""
    diagnosis = tt.diagnose(tt.GRU(H, H, seed=0), X)
    title, line = str(diagnosis).splitlines()
    (finding,) = diagnosis.findings
    assert title == f"GRU({H}, {H}) on {T} steps of {B} sequences: 1 finding"
    assert line == f"  {finding}"
    assert str(finding) == f"GRU, {finding.severity}: {finding.text}. {finding.remedy}"
    assert str(finding.remedy) == f"Try {finding.remedy.text}: {finding.remedy.result}."
    assert f"gamma {finding.figures['gamma']:.3f}" in finding.text
    assert f"gamma {finding.remedy.figures['gamma']:.3f}" in finding.remedy.result
    alike = [replace(finding, layer=str(i), remedy=finding.remedy if i != 1 else None) for i in range(4)]
    _, first, second = str(replace(diagnosis, findings=alike)).splitlines()
    assert first == f"  {alike[0]} Likewise in 2, 3."
    assert second == f"  {alike[1]}"


def test_a_healthy_text_has_numbers():
    diagnosis = tt.diagnose(healthy_lstm(), X)
    assert diagnosis.findings == []
    gamma = tt.gradient_flow(healthy_lstm(), X).gamma[0]
    title, line = str(diagnosis).splitlines()
    assert title.endswith(": healthy")
    assert line == f"  LSTM: gamma {gamma:.3f}, remembers {T} of {T} steps, 0% of the values saturated"
    assert diagnosis.figures["LSTM"]["gamma"] == gamma
    assert np.array_equal(diagnosis.flow.log10_norm, tt.gradient_flow(healthy_lstm(), X).log10_norm)
    assert "over depth" in str(tt.diagnose(tt.Sequential(tt.Linear(H, H, seed=0), tt.MLP(H, H, seed=0)), ROWS))


def test_severe_findings_come_first():
    stack = tt.Sequential(*(linear(0.1 * np.eye(H)) for _ in range(4)), tt.Linear(H, H, seed=0), tt.ReLU())
    stack.parameters["4.bias"][:5] = -100
    assert [finding.severity for finding in tt.diagnose(stack, ROWS).findings] == ["severe", "mild"]


def test_torch_modules():
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(H, H)
    layer = tt.LSTM(H, H)
    layer.load_parameters(module.state_dict())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    theirs, ours = (found(own, x)["vanishing", "LSTM"] for own, x in ((module, torch.from_numpy(X)), (layer, X)))
    assert theirs.figures == ours.figures
    assert theirs.remedy.figures == ours.remedy.figures
    assert theirs.remedy.text == f"{ours.remedy.text} on layer = tt.LSTM({H}, {H}) with the module's parameters"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_torch_model_with_more_than_a_recurrent_module():
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(H, H), "head": torch.nn.Linear(H, H)})
    raises(TypeError, ["layer", "ModuleDict", "'encoder'"], tt.diagnose, model, torch.from_numpy(X))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"layer": "lstm"}, TypeError, ["layer", "str"]),
        ({"x": X.tolist()}, TypeError, ["x", "list"]),
        ({"x": X.astype("float64")}, TypeError, ["x", "float64", "float32"]),
        ({"x": X[..., :5]}, ValueError, ["x", "(60, 3, 5)", "input_size=8"]),
        ({"d_output": "first"}, ValueError, ["d_output", "'first'", "'last'"]),
        ({"d_output": X[:5]}, ValueError, ["d_output", "(5, 3, 8)", "(60, 3, 8)"]),
        ({"lengths": np.array([T + 1, 1, 1])}, ValueError, ["lengths", "61", "60"]),
        ({"state": X}, TypeError, ["state", "(h_0, c_0)"]),
        ({"max_steps": 1}, ValueError, ["max_steps", "1", "2"]),
        ({"max_steps": 2.5}, TypeError, ["max_steps", "2.5", "int"]),
    ],
)
def test_wrong_arguments(wrong, error, words):
    given = {"layer": tt.LSTM(H, H, seed=0), "x": X, **wrong}
    raises(error, words, tt.diagnose, given.pop("layer"), given.pop("x"), **given)


def test_options_are_named():
    with pytest.raises(TypeError):
        tt.diagnose(tt.LSTM(H, H, seed=0), X, "last", None)
