"""Weights of Keras and nodes of ONNX: our cells agree with their documented equations and with their results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound
from problems import KINDS, Problem
from reference import sigmoid
from throughtime import convert

T, B, I, H = 6, 4, 5, 3  # noqa: E741
# For each of our cells: its name in Keras and ONNX, and the options that select it
KERAS = {
    "rnn_tanh": ("SimpleRNN", {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}),
    "rnn_sigmoid": ("SimpleRNN", {"activation": "sigmoid"}),
    "gru": ("GRU", {"reset_after": True}),
    "gru_original": ("GRU", {"reset_after": False}),
    "lstm": ("LSTM", {}),
}
ONNX = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
    "rnn_sigmoid": ("RNN", {"activations": ["Sigmoid"]}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_original": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {}),
}
ACTIVATIONS = {"rnn_tanh": np.tanh, "rnn_relu": lambda a: np.maximum(a, 0), "rnn_sigmoid": sigmoid}
KERAS_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
EXACT = 1e-13  # float64 on both sides, short sums in different orders


def random(*shape, dtype="float64", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def compare(kind, parameters, x, expected, bound, layer=None):
    """`expected` (T, B, D*H) is the output of the reference, and of the library if it has the cell."""
    assert_close(reference.forward(kind, parameters, x.astype("float64")).output, expected, bound, kind)
    if kind in KINDS:
        layer = layer or our_layer(kind, parameters, x.dtype)
        x, order = (x.swapaxes(0, 1), (1, 0, 2)) if layer.batch_first else (x, (0, 1, 2))
        assert_close(layer(x)[0].transpose(order), expected, bound, repr(layer))


def twice_the_bound(kind):
    return 2 * rounding_bound("float32", Problem(kind, T=T, B=B, I=I, H=H).terms)


def our_layer(kind, parameters, dtype):
    problem = Problem(
        kind, I=I, H=H, D=2 if "weight_ih_l0_reverse" in parameters else 1, bias="bias_ih_l0" in parameters, dtype=dtype
    )
    layer = problem.layer()
    layer.load_parameters(parameters)
    return layer


# Keras


def keras_weights(kind, use_bias, directions, dtype="float64"):
    word, options = KERAS[kind]
    rows = KERAS_GATES[word] * H
    weights = []
    for d in range(directions):
        weights += [random(I, rows, dtype=dtype, seed=d), 0.5 * random(H, rows, dtype=dtype, seed=d)]
        if use_bias:
            weights.append(random(*((2, rows) if options.get("reset_after") else (rows,)), dtype=dtype, seed=d))
    return weights


def keras_output(kind, x, weights):
    """(T, B, H) of one direction, from the documentation of the Keras layers, in Keras's order of gates."""
    kernel, recurrent, *bias = weights
    bias = bias[0] if bias else np.zeros((2, kernel.shape[1]) if kind == "gru" else kernel.shape[1])
    h, c, rows = np.zeros((B, H)), np.zeros((B, H)), []
    for x_t in x:
        if kind in ACTIVATIONS:
            h = ACTIVATIONS[kind](x_t @ kernel + bias + h @ recurrent)
        elif kind == "gru":
            x_z, x_r, x_h = np.split(x_t @ kernel + bias[0], 3, axis=1)
            h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
            z = sigmoid(x_z + h_z)
            h = z * h + (1 - z) * np.tanh(x_h + sigmoid(x_r + h_r) * h_h)
        elif kind == "gru_original":
            x_z, x_r, x_h = np.split(x_t @ kernel + bias, 3, axis=1)
            u_z, u_r, u_h = np.split(recurrent, 3, axis=1)
            z, r = sigmoid(x_z + h @ u_z), sigmoid(x_r + h @ u_r)
            h = z * h + (1 - z) * np.tanh(x_h + (r * h) @ u_h)
        else:
            i, f, g, o = np.split(x_t @ kernel + bias + h @ recurrent, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    return np.stack(rows)


@pytest.mark.parametrize("kind", KERAS)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_the_equations_of_keras(kind, use_bias, directions):
    weights, x = keras_weights(kind, use_bias, directions), random(T, B, I)
    each = len(weights) // directions
    expected = keras_output(kind, x, weights[:each])
    if directions == 2:
        backward = keras_output(kind, x[::-1], weights[each:])[::-1]
        expected = np.concatenate([expected, backward], axis=2)
    compare(kind, tt.convert.from_keras(KERAS[kind][0], weights), x, expected, EXACT)


@pytest.mark.parametrize("kind", KERAS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_our_parameters_in_the_order_of_keras_come_back(kind, bias, directions):
    """If Keras has one bias, it is the sum of our two, and comes back as the first."""
    problem = Problem(kind, I=I, H=H, D=directions, bias=bias)
    ours, weights = dict(problem.parameters), []
    for suffix in problem.suffixes:
        weights += [keras_order(kind, ours[name + suffix]).T for name in ("weight_ih", "weight_hh")]
        if bias and kind == "gru":
            weights.append(np.stack([keras_order(kind, ours[name + suffix]) for name in ("bias_ih", "bias_hh")]))
        elif bias:
            ours["bias_ih" + suffix] = ours["bias_ih" + suffix] + ours["bias_hh" + suffix]
            ours["bias_hh" + suffix] = np.zeros_like(ours["bias_hh" + suffix])
            weights.append(keras_order(kind, ours["bias_ih" + suffix]))
    assert_same_bits(tt.convert.from_keras(KERAS[kind][0], weights), ours)


def keras_order(kind, rows):
    """Reorders our gates into Keras's order, which differs only for the GRU: r z n becomes z r h."""
    if not kind.startswith("gru"):
        return rows
    r, z, n = np.split(rows, 3)
    return np.concatenate([z, r, n])


def test_rnn_is_another_word_for_simple_rnn():
    weights = keras_weights("rnn_tanh", True, 1)
    assert_same_bits(tt.convert.from_keras("RNN", weights), tt.convert.from_keras("SimpleRNN", weights))


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # the directory for its configuration
        yield pytest.importorskip("keras")


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("kind", KERAS)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_keras_itself(keras, kind, use_bias, directions):
    """float32, because some parts of Keras always are; twice the bound, because both sides round."""
    word, options = KERAS[kind]
    layer = getattr(keras.layers, word)(H, use_bias=use_bias, return_sequences=True, **options)
    layer = keras.layers.Bidirectional(layer) if directions == 2 else layer
    layer.build((B, T, I))
    layer.set_weights(keras_weights(kind, use_bias, directions, dtype="float32"))
    x = random(T, B, I, dtype="float32")
    expected = layer(x.swapaxes(0, 1)).detach().numpy().swapaxes(0, 1)
    compare(kind, tt.convert.from_keras(word, layer.get_weights()), x, expected, twice_the_bound(kind))


def bad(k, array):
    """Weights of an LSTM with the k-th array replaced."""
    weights = keras_weights("lstm", True, 1)
    weights[k] = array
    return weights


@pytest.mark.parametrize(
    ("kind", "weights", "error", "words"),
    [
        ("Conv", keras_weights("lstm", True, 1), ValueError, ["kind", "'Conv'", "'LSTM'"]),
        ("LSTM", None, TypeError, ["weights", "get_weights", "NoneType"]),
        ("LSTM", [None, None], TypeError, ["weights[0]", "NoneType"]),
        ("LSTM", keras_weights("lstm", True, 1)[:1], ValueError, ["weights", "2, 3, 4 or 6", "got 1"]),
        ("LSTM", bad(0, np.zeros((I, 7))), ValueError, ["weights[0] (kernel)", f"({I}, 7)", f"(I, {4 * H})"]),
        ("LSTM", bad(1, np.zeros(3)), ValueError, ["weights[1] (recurrent_kernel)", "(3,)"]),
        ("LSTM", bad(2, np.zeros((2, 4 * H))), ValueError, ["weights[2] (bias)", f"({4 * H},)"]),
        ("GRU", keras_weights("lstm", True, 1), ValueError, ["weights[1] (recurrent_kernel)", f"(H, {3 * H})"]),
        ("SimpleRNN", keras_weights("gru", True, 2), ValueError, ["weights[1] (recurrent_kernel)", f"(H, {H})"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(kind, weights, error, words):
    with pytest.raises(error) as caught:
        tt.convert.from_keras(kind, weights)
    assert all(word in str(caught.value) for word in words), caught.value


# ONNX


def onnx_node(kind, directions=1, bias=True, dtype="float64", **attributes):
    """A stand-in for onnx.NodeProto, and its initializers of random numbers."""
    op_type, own = ONNX[kind]
    rows = {"RNN": 1, "GRU": 3, "LSTM": 4}[op_type] * H
    arrays = {"w": random(directions, rows, I, dtype=dtype), "r": random(directions, rows, H, dtype=dtype)}
    inputs = ["x", "w", "r", *(["b"] if bias else [])]
    if bias:
        arrays["b"] = random(directions, 2 * rows, dtype=dtype)
    if kind == "lstm_peephole":
        inputs = ["x", "w", "r", "b" if bias else "", "", "", "", "p"]
        arrays["p"] = random(directions, 3 * H, dtype=dtype)
    own = own | ({"direction": "bidirectional"} if directions == 2 else {}) | attributes
    if "activations" in own:
        own["activations"] = own["activations"] * directions
    return make_node(op_type, inputs, hidden_size=H, **own), arrays


def make_node(op_type, inputs, **attributes):
    return SimpleNamespace(op_type=op_type, input=inputs, attribute=[attribute(*item) for item in attributes.items()])


def attribute(name, value):
    """A stand-in for onnx.AttributeProto: every field exists, and strings are bytes."""
    fields = {"i": 0, "f": 0.0, "s": b"", "ints": [], "floats": [], "strings": []}
    if isinstance(value, str):
        fields["s"] = value.encode()
    elif isinstance(value, list):
        fields["strings"] = [word.encode() for word in value]
    else:
        fields["f" if isinstance(value, float) else "i"] = value
    return SimpleNamespace(name=name, **fields)


def onnx_output(kind, x, w, r, b, p):
    """(T, B, H) of one direction, from the operators' specification, in ONNX's order of gates."""
    h, c, rows = np.zeros((B, H)), np.zeros((B, H)), []
    w_b, r_b = np.split(b, 2)
    for x_t in x:
        if kind in ACTIVATIONS:
            h = ACTIVATIONS[kind](x_t @ w.T + h @ r.T + w_b + r_b)
        elif kind.startswith("gru"):
            (w_z, w_r, w_h), (r_z, r_r, r_h) = np.split(w, 3), np.split(r, 3)
            (w_bz, w_br, w_bh), (r_bz, r_br, r_bh) = np.split(w_b, 3), np.split(r_b, 3)
            z = sigmoid(x_t @ w_z.T + h @ r_z.T + w_bz + r_bz)
            reset = sigmoid(x_t @ w_r.T + h @ r_r.T + w_br + r_br)
            if kind == "gru":
                new = np.tanh(x_t @ w_h.T + reset * (h @ r_h.T + r_bh) + w_bh)
            else:
                new = np.tanh(x_t @ w_h.T + (reset * h) @ r_h.T + r_bh + w_bh)
            h = (1 - z) * new + z * h
        else:
            i, o, f, g = np.split(x_t @ w.T + h @ r.T + w_b + r_b, 4, axis=1)
            p_i, p_o, p_f = np.split(p, 3)
            i, f = sigmoid(i + p_i * c), sigmoid(f + p_f * c)
            c = f * c + i * np.tanh(g)
            h = sigmoid(o + p_o * c) * np.tanh(c)
        rows.append(h)
    return np.stack(rows)


def onnx_expected(kind, x, arrays):
    sides = []
    for d in range(len(arrays["w"])):
        w, r = arrays["w"][d], arrays["r"][d]
        b = arrays["b"][d] if "b" in arrays else np.zeros(2 * len(w))
        p = arrays["p"][d] if "p" in arrays else np.zeros(3 * H)
        step = -1 if d else 1
        sides.append(onnx_output(kind, x[::step], w, r, b, p)[::step])
    return np.concatenate(sides, axis=2)


def compare_node(kind, node, arrays, x, expected, bound):
    """Compares the constructor's arguments and the parameters, and the layer itself if the library has the cell."""
    layer_class, options, parameters = convert._read_node(node, arrays)
    ours = {"gru_original": {"reset_after": False}, "lstm_peephole": {"peephole": True}}.get(kind, {})
    assert ours.items() <= options.items()
    assert (layer_class.__name__, options["bias"]) == (ONNX[kind][0], "b" in arrays)
    layer = tt.convert.from_onnx(node, arrays) if kind in KINDS else None
    compare(kind, parameters, x, expected, bound, layer)


@pytest.mark.parametrize("kind", ONNX)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
def test_the_equations_of_onnx(kind, directions, bias, layout):
    node, arrays = onnx_node(kind, directions, bias, layout=layout)
    x = random(T, B, I)
    assert convert._read_node(node, arrays)[1]["batch_first"] == bool(layout)
    compare_node(kind, node, arrays, x, onnx_expected(kind, x, arrays), EXACT)


@pytest.mark.parametrize("kind", ONNX)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_onnxruntime_itself(kind, directions, bias):
    """float32, the only type that all its operators support; twice the bound, because both sides round."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    node, arrays = onnx_node(kind, directions, bias, dtype="float32")
    real = onnx.helper.make_node(
        node.op_type,
        node.input,
        ["y"],
        hidden_size=H,
        **{key: value * directions if key == "activations" else value for key, value in ONNX[kind][1].items()},
        **({"direction": "bidirectional"} if directions == 2 else {}),
    )
    graph = onnx.helper.make_graph(
        [real],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [T, B, I])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [T, directions, B, H])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = random(T, B, I, dtype="float32")
    (y,) = session.run(["y"], {"x": x})
    expected = y.transpose(0, 2, 1, 3).reshape(T, B, directions * H)
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    compare_node(kind, model.graph.node[0], initializers, x, expected, twice_the_bound(kind))


def in_own_length(x, lengths, function):
    """Applies `function` to each sequence (t, 1, I) alone; zero in the padding."""
    found = np.zeros((*x.shape[:2], H), x.dtype)
    for b, length in enumerate(lengths):
        if length:
            found[:length, b] = function(x[:length, b : b + 1])[:, 0]
    return found


@pytest.mark.parametrize("kind", ONNX)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
def test_a_reverse_node_is_a_layer_that_runs_backward_within_each_length(kind, bias, layout):
    node, arrays = onnx_node(kind, 1, bias, layout=layout, direction="reverse")
    layer, x, lengths = tt.convert.from_onnx(node, arrays), random(T, B, I), np.array([T, 2, 0, 1, T - 1][:B])
    assert "reverse=True" in repr(layer)
    expected = in_own_length(x, lengths, lambda one: onnx_expected(kind, one[::-1], arrays)[::-1])
    x[np.arange(T)[:, None] >= lengths] = np.nan
    turn = (lambda array: array.swapaxes(0, 1)) if layout else (lambda array: array)
    output, state = layer(turn(x), lengths=lengths)
    assert_close(turn(output), expected, EXACT)
    h_n = state[0] if isinstance(state, tuple) else state
    assert_close(h_n[0], expected[0], EXACT)  # zero: the initial state of the empty sequence


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_onnxruntime_reverses_within_lengths_as_we_do(kind):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    rows = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind] * H
    shapes = {"W": (1, rows, I), "R": (1, rows, H), "B": (1, 2 * rows)}
    arrays = {name: random(*shape, dtype="float32") for name, shape in shapes.items()}
    node = onnx.helper.make_node(
        kind, ["X", "W", "R", "B", "lengths"], ["Y", "Y_h"], hidden_size=H, direction="reverse"
    )
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, [T, B, I]),
            onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, [B]),
        ],
        [
            onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [T, 1, B, H]),
            onnx.helper.make_tensor_value_info("Y_h", onnx.TensorProto.FLOAT, [1, B, H]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, lengths = random(T, B, I, dtype="float32"), np.array([T, 1, 2, 3, 1][:B], np.int32)
    y, y_h = session.run(["Y", "Y_h"], {"X": x, "lengths": lengths})
    output, state = tt.convert.from_onnx(node, arrays)(x, lengths=lengths)
    valid = np.arange(T)[:, None] < lengths
    bound = twice_the_bound(kind.lower() if kind != "RNN" else "rnn_tanh")
    assert_close(output[valid], y[:, 0][valid], bound)
    assert_close((state[0] if kind == "LSTM" else state)[0], y_h[0], bound)


def test_the_dtype_is_that_of_w():
    for dtype, expected in {"float16": "float32", "float32": "float32", "float64": "float64"}.items():
        assert tt.convert.from_onnx(*onnx_node("lstm", dtype=dtype)).dtype == expected


def test_activations_may_be_named_though_they_are_the_default():
    for kind, words in {"rnn_tanh": ["Tanh"], "gru": ["Sigmoid", "Tanh"], "lstm": ["Sigmoid", "Tanh", "Tanh"]}.items():
        for directions in (1, 2):
            plain = tt.convert.from_onnx(*onnx_node(kind, directions))
            named = tt.convert.from_onnx(*onnx_node(kind, directions, activations=words))
            assert repr(named) == repr(plain)


@pytest.mark.parametrize(
    ("kind", "attributes", "words"),
    [
        ("lstm", {"direction": "up"}, ["direction", "'up'"]),
        ("lstm", {"clip": 0.5}, ["clip", "0.5"]),
        ("lstm", {"input_forget": 1}, ["input_forget", "1"]),
        ("lstm", {"layout": 2}, ["layout", "2"]),
        ("gru", {"linear_before_reset": 3}, ["linear_before_reset", "3"]),
        ("lstm", {"hidden_size": 7}, ["hidden_size", "7", "'r'] (R)", f"(1, {4 * H}, {H})"]),
        ("lstm", {"activations": ["Sigmoid", "Tanh", "Relu"]}, ["activations", "Relu", "tanh"]),
        ("gru", {"activations": ["HardSigmoid", "Tanh"]}, ["activations", "HardSigmoid"]),
        ("rnn_tanh", {"activations": ["Affine"]}, ["activations", "Affine", "['tanh'] or ['relu'] or ['sigmoid']"]),
        ("lstm", {"direction": "bidirectional"}, ["'w'] (W)", f"(1, {4 * H}, {I})", f"(2, {4 * H}, I)"]),
        ("lstm", {"colour": 3}, ["attribute", "'colour'", "'clip'"]),
    ],
)
def test_attributes_that_no_layer_has_are_refused(kind, attributes, words):
    node, arrays = onnx_node(kind)
    node.attribute = [a for a in node.attribute if a.name not in attributes]
    node.attribute += [attribute(*item) for item in attributes.items()]
    with pytest.raises(ValueError) as caught:
        tt.convert.from_onnx(node, arrays)
    assert all(word in str(caught.value) for word in words), caught.value


def test_both_directions_of_an_rnn_have_one_nonlinearity():
    node, arrays = onnx_node("rnn_tanh", 2)
    node.attribute.append(attribute("activations", ["Tanh", "Relu"]))
    with pytest.raises(ValueError, match=r"activations is \['Tanh', 'Relu'\]"):
        tt.convert.from_onnx(node, arrays)


def test_nodes_and_initializers_that_do_not_fit_are_refused():
    node, arrays = onnx_node("lstm")
    cases = [
        (make_node("Conv", node.input), arrays, ValueError, "node.op_type .*'Conv'"),
        (node, None, TypeError, "initializers .*NoneType"),
        (node, {"w": arrays["w"], "r": arrays["r"]}, ValueError, r"node.input\[3\] \(B\) is 'b'.*'w', 'r'"),
        (make_node("LSTM", ["x", "", "r"]), arrays, ValueError, r"node.input\[1\] \(W\) is missing"),
        (make_node("LSTM", ["x", "w"]), arrays, ValueError, r"node.input\[2\] \(R\) is missing"),
        (node, arrays | {"b": np.zeros((1, 5))}, ValueError, r"'b'\] \(B\) has shape \(1, 5\), expected \(1, 24\)"),
        (node, arrays | {"r": np.float64(3)}, ValueError, r"'r'\] \(R\) has shape \(\)"),
        (node, arrays | {"w": [1.0]}, TypeError, r"'w'\] \(W\) must be a NumPy array"),
        (node, arrays | {"w": np.zeros((1, 4 * H, I), int)}, TypeError, "weight_ih_l0.*int64"),
    ]
    for bad_node, initializers, error, message in cases:
        with pytest.raises(error, match=message):
            tt.convert.from_onnx(bad_node, initializers)


def test_hidden_size_may_be_left_out():
    node, arrays = onnx_node("lstm")
    node.attribute = []
    assert repr(tt.convert.from_onnx(node, arrays)) == f"LSTM({I}, {H}, dtype='float64')"


def test_what_is_no_node_is_an_error_that_says_so():
    with pytest.raises(TypeError, match=r"node must be an ONNX node.*got dict"):
        tt.convert.from_onnx({}, {})


@pytest.mark.parametrize("shape", [(3,), (0, 0)])
def test_the_first_array_that_is_no_kernel_is_named(shape):
    with pytest.raises(ValueError, match=r"weights\[0\] \(kernel\) has shape .*, expected a matrix of 4 H columns"):
        tt.convert.from_keras("LSTM", [np.zeros(shape)] * 3)


# Types that NumPy lacks

NARROW = ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"]


def narrow(shape, dtype, seed=0):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.random.default_rng(seed).standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype))


def exactly(found, expected):
    """Every number of these types is exact in float32."""
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", NARROW)
def test_keras_weights_of_narrow_types_are_exact(dtype):
    kernel, recurrent, bias = narrow((I, 3 * H), dtype), narrow((H, 3 * H), dtype, 1), narrow((2, 3 * H), dtype, 2)
    gru = tt.GRU(I, H)
    gru.load_parameters(tt.convert.from_keras("GRU", [kernel, recurrent, bias]))
    z, r, n = np.split(kernel.T, 3)
    exactly(gru.parameters["weight_ih_l0"], np.concatenate([r, z, n]))
    exactly(gru.parameters["bias_hh_l0"][2 * H :], bias[1, 2 * H :])


@pytest.mark.parametrize("dtype", NARROW)
def test_onnx_initializers_of_narrow_types_are_exact(dtype):
    node, arrays = onnx_node("lstm_peephole")
    arrays = {name: narrow(array.shape, dtype) for name, array in arrays.items()}
    lstm = tt.convert.from_onnx(node, arrays)
    exactly(lstm.parameters["weight_co_l0"], arrays["p"][0, H : 2 * H])
    i, o, f, c = np.split(arrays["r"][0], 4)
    exactly(lstm.parameters["weight_hh_l0"], np.concatenate([i, f, c, o]))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("into", ["float32", "float64"])
def test_parameters_of_narrow_types_load_exactly(dtype, into):
    layer, array = tt.Linear(3, 5, bias=False, dtype=into), narrow((5, 3), dtype)
    layer.load_parameters({"weight": array})
    assert np.array_equal(layer.parameters["weight"], array.astype(into))


@pytest.mark.parametrize("dtype", NARROW)
def test_tensors_of_narrow_types_load_exactly(dtype):
    torch = pytest.importorskip("torch")
    weight = torch.randn(5, 3).to(getattr(torch, dtype)).requires_grad_()
    layer = tt.Linear(3, 5, bias=False)
    layer.load_parameters({"weight": weight})
    exactly(layer.parameters["weight"], weight.detach().float().numpy())


@pytest.mark.parametrize("dtype", NARROW)
def test_jax_arrays_of_narrow_types_load_exactly(dtype):
    jnp = pytest.importorskip("jax.numpy")
    weight = jnp.asarray(narrow((5, 3), dtype))
    layer = tt.Linear(3, 5, bias=False)
    layer.load_parameters({"weight": weight})
    exactly(layer.parameters["weight"], np.asarray(weight))


def test_what_is_no_float_is_refused_also_where_numpy_has_it_not():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for array in (np.ones((5, 3), ml_dtypes.int4), np.ones((5, 3), "V2"), np.ones((5, 3), complex)):
        with pytest.raises(TypeError, match=r"parameters\['weight'\] has dtype .*, expected a float type"):
            tt.Linear(3, 5, bias=False).load_parameters({"weight": array})


def test_inputs_of_narrow_types_are_not_cast():
    torch = pytest.importorskip("torch")
    for x in (narrow((4, 3), "bfloat16"), torch.ones(4, 3, dtype=torch.bfloat16), torch.ones(4, 3, dtype=torch.half)):
        with pytest.raises(TypeError, match=r"^x "):
            tt.Linear(3, 5)(x)
