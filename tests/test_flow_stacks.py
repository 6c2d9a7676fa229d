"""`gradient_flow` of a Sequential: the gradient of each layer's input, and the flow inside recurrent layers."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits, rounding_bound
from flow_truth import EPS, assert_flow_close, assert_logs_close, exact, log10_norm, log10_of_squares

DTYPES = ("float32", "float64")
F = 6


def numbers(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def stack(dtype="float64", dropout=0.0):
    """Every kind of layer that accepts floats, with recurrent layers inside and outside of blocks."""
    return tt.Sequential(
        tt.Linear(4, F, dtype=dtype, seed=0),
        tt.ResidualBlock(tt.LSTM(F, F, 2, dropout=dropout, dtype=dtype, seed=1), F),
        tt.ResidualBlock(tt.MLP(F, 11, "gelu", dtype=dtype, seed=2), F, branch_scale=0.5),
        tt.LayerNorm(F, dtype=dtype),
        tt.ResidualBlock(tt.SelfAttention(F, 2, dtype=dtype, seed=3), F),
        tt.GRU(F, F, zoneout=0.2 if dropout else 0.0, dtype=dtype, seed=4),
        tt.ResidualBlock(tt.RNN(F, F, dtype=dtype, seed=5), F, norm="post", residual=False),
        tt.MLP(F, 5, "tanh", dtype=dtype, seed=6),
        tt.Linear(F, 3, dtype=dtype, seed=7),
    )


RECURRENT = (1, 5, 6)  # among its layers
TERMS = 9 * 9 * (60 + 4 * 2 * F)  # layers, timesteps, and the roundings of one step of one layer


def last_of(output, lengths=None):
    """Ones on each sequence's last valid output (T, B, F)."""
    lengths = np.full(output.shape[1], len(output)) if lengths is None else np.asarray(lengths)
    last = (np.arange(len(output))[:, None] == lengths - 1)[:, :, None]
    return np.broadcast_to(last, output.shape).astype(output.dtype)


def entering(grads, d_output):
    """From tape.backward: the gradients of the input of each layer, and of the output."""
    return [*(layer.input for layer in grads.layers), d_output]


def own(grads, i):
    """The gradients of the recurrent layer that layer i is or contains."""
    return getattr(grads.layers[i], "sublayer", grads.layers[i])


def check_stack(layers, x, d_output="last", memory="full", lengths=None, recurrent=RECURRENT):
    """In float64, against `backward`: rows, the sum over timesteps, and inside. The error of a step's gradient in a
    layer is relative to the largest gradient in its row and the rows above."""
    tape = layers.forward(x, lengths, training=False)
    d = last_of(tape.output, lengths) if isinstance(d_output, str) else d_output
    grads = tape.backward(d, timesteps=("hidden",))
    flow = tt.gradient_flow(layers, x, d_output, lengths=lengths, memory=memory)
    expected = np.stack([log10_norm(row, (1, 2)) for row in entering(grads, d)])
    scale = np.maximum.accumulate(expected.max(axis=1)[::-1])[::-1]
    bound = rounding_bound("float64", TERMS)
    assert_logs_close(flow.log10_norm, expected, bound, np.broadcast_to(scale[:, None], expected.shape), "log10_norm")
    depth = log10_of_squares(expected, 1)
    assert_logs_close(flow.depth_log10_norm, depth, np.sqrt(len(x)) * bound, scale, "depth_log10_norm")
    assert len(flow.layers) == len(layers.layers)
    for i, inner in enumerate(flow.layers):
        if i not in recurrent:
            assert inner is None
            continue
        hidden = own(grads, i).hidden
        assert_flow_close(inner, hidden, bound * 10 ** (scale[i] - log10_norm(hidden, None)))
    return flow


def test_every_row_is_the_gradient_that_backward_gives():
    layers, x = stack(), numbers(9, 3, 4)
    for d_output in ("last", numbers(9, 3, 3, seed=1)):
        check_stack(layers, x, d_output)


def test_a_block_around_one_recurrent_layer():
    """A wrong sign of its gradient, which the norms inside do not show, changes the sum with the skip connection. Two
    layers, as in `stack`, would turn it twice."""
    block = tt.ResidualBlock(tt.GRU(F, F, dtype="float64", seed=1), F)
    check_stack(tt.Sequential(block), numbers(9, 3, F), numbers(9, 3, F, seed=1), recurrent=(0,))


@pytest.mark.parametrize("memory", ["states", "checkpoint", 2])
def test_every_memory_mode_gives_the_same_rows(memory):
    check_stack(stack(), numbers(9, 3, 4), memory=memory)


def test_lengths_and_nan_in_the_padding():
    lengths, x, d_output = [9, 0, 4, 1], numbers(9, 4, 4), numbers(9, 4, 3, seed=1)
    beyond = np.arange(9)[:, None] >= lengths
    x[beyond], d_output[beyond] = 0, 0
    flow = check_stack(stack(), x, "last", lengths=lengths)
    assert np.isneginf(flow.layers[1].log10_norm_per_sequence[:, beyond]).all()
    clean = check_stack(stack(), x, d_output, lengths=lengths)
    x[beyond], d_output[beyond] = np.nan, np.nan
    found = tt.gradient_flow(stack(), x, d_output, lengths=lengths)
    assert_same_bits(found.log10_norm, clean.log10_norm)
    assert_same_bits(found.layers[1].log10_unit, clean.layers[1].log10_unit)


def test_dropout_is_off_and_zoneout_its_expectation():
    check_stack(stack(dropout=0.9), numbers(9, 3, 4))


def test_float32_within_the_bound_of_its_roundings():
    """Against the same layers in float64, with gradients that neither vanish nor explode."""
    layers, x = stack("float32"), numbers(9, 3, 4, dtype="float32")
    found = tt.gradient_flow(layers, x)
    expected = check_stack(layers.astype("float64"), x.astype("float64"))
    bound = rounding_bound("float32", TERMS)
    scale = np.maximum.accumulate(expected.log10_norm.max(axis=1)[::-1])[::-1]
    whole = np.broadcast_to(scale[:, None], expected.log10_norm.shape)
    assert_logs_close(found.log10_norm, expected.log10_norm, bound, whole)
    assert_logs_close(found.depth_log10_norm, expected.depth_log10_norm, 3 * bound, scale)


def test_one_sequence_needs_no_batch_axis():
    layers, x = stack(), numbers(9, 1, 4)
    expected, found = tt.gradient_flow(layers, x), tt.gradient_flow(layers, x[:, 0])
    bound = rounding_bound("float64", TERMS)
    assert_logs_close(found.log10_norm, expected.log10_norm, bound, np.zeros((10, 9)))
    inner, outer = found.layers[5].log10_norm_per_sequence, expected.layers[5].log10_norm_per_sequence
    assert_logs_close(inner, outer[:, :, 0], bound, np.zeros((1, 9)))


def test_batch_first_turns_input_and_loss():
    def layers(batch_first):
        return tt.Sequential(
            tt.Linear(4, F, dtype="float64", seed=0),
            tt.GRU(F, F, batch_first=batch_first, dtype="float64", seed=1),
            tt.LayerNorm(F, dtype="float64"),
        )

    x, d_output, lengths = numbers(9, 3, 4), numbers(9, 3, F, seed=1), [5, 9, 0]
    for loss, turned in (("last", "last"), (d_output, d_output.swapaxes(0, 1))):
        expected = tt.gradient_flow(layers(False), x, loss, lengths=lengths)
        found = tt.gradient_flow(layers(True), x.swapaxes(0, 1), turned, lengths=lengths)
        assert found.log10_norm.shape == (4, 9)
        bound = rounding_bound("float64", TERMS)
        assert_logs_close(found.log10_norm, expected.log10_norm, bound, np.zeros((4, 9)))
        assert_logs_close(found.layers[1].log10_unit, expected.layers[1].log10_unit, bound, np.zeros((1, 9, F)))


def test_nothing_flows_into_integers():
    """The row of an embedding's input is -inf; the rows above are as without it."""
    embedding = tt.Embedding(7, F, dtype="float64", seed=0)
    above = tt.Sequential(
        tt.ResidualBlock(tt.LSTM(F, F, dtype="float64", seed=1), F), tt.Linear(F, 7, dtype="float64", seed=2)
    )
    x = np.random.default_rng(0).integers(0, 7, (9, 3))
    found = tt.gradient_flow(tt.Sequential(embedding, *above.layers), x)
    expected = tt.gradient_flow(above, embedding(x))
    assert_same_bits(found.log10_norm[0], np.full(9, -np.inf))
    assert_same_bits(found.log10_norm[1:], expected.log10_norm)
    assert_same_bits(found.depth_log10_norm, np.append(-np.inf, expected.depth_log10_norm))
    assert found.layers[0] is found.layers[2] is None
    assert_same_bits(found.layers[1].log10_unit, expected.layers[0].log10_unit)


def test_a_loss_on_the_last_step_only_reaches_no_other_without_recurrence():
    layers = tt.Sequential(tt.Linear(4, F, dtype="float64", seed=0), tt.MLP(F, 5, "tanh", dtype="float64", seed=1))
    flow = tt.gradient_flow(layers, numbers(9, 3, 4))
    assert np.isneginf(flow.log10_norm[:, :-1]).all()
    assert np.isfinite(flow.log10_norm[:, -1]).all()
    assert_logs_close(flow.depth_log10_norm, flow.log10_norm[:, -1], 5 * EPS)


def test_an_empty_batch_has_no_gradient():
    flow = tt.gradient_flow(stack(), numbers(9, 0, 4))
    assert_same_bits(flow.log10_norm, np.full((10, 9), -np.inf))
    assert_same_bits(flow.depth_log10_norm, np.full(10, -np.inf))


# Beyond the range of floats


def positive(layers):
    """The same layers with positive parameters, hence positive inputs and slopes: no sum of the backward cancels."""
    for array in layers.parameters.values():
        np.abs(array, out=array)
    return layers


def deep_bound(dtype, depth):
    """Each layer's sums of F or 2F terms, in the backward and, for the slopes, in the forward; a factor 2 for a slope
    of 1 - h^2 or h (1 - h), h up to 1/2, and 60 roundings of the activation and its slope."""
    return 2 * rounding_bound(dtype, depth * (60 + 8 * F))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "scale"), [(128, 0.02), (400, 0.002), (400, 20.0)])
def test_a_deep_stack_of_linear_layers_is_the_product_of_its_weights(depth, scale, dtype):
    """Down to 10^-1000 and up to 10^700, in mpmath's numbers."""
    layers = positive(tt.Sequential(*(tt.Linear(F, F, dtype=dtype, seed=i) for i in range(depth))))
    for name, array in layers.parameters.items():
        array *= np.asarray(scale if name.endswith("weight") else 0, dtype)
    flow = tt.gradient_flow(layers, np.zeros((4, 2, F), dtype), np.ones((4, 2, F), dtype))
    rows = [exact(np.ones((8, F)))]
    for layer in reversed(layers.layers):
        rows.insert(0, rows[0] @ exact(layer.parameters["weight"]))
    depth_norms = np.array([log10_norm(row, (0, 1)) for row in rows])
    assert abs(depth_norms[0]) > 200
    bound = rounding_bound(dtype, depth * F)
    assert_logs_close(flow.depth_log10_norm, depth_norms, bound, what="depth_log10_norm")
    per_step = np.repeat(depth_norms[:, None] - np.log10(2), 4, axis=1)  # 2 of 8 rows
    assert_logs_close(flow.log10_norm, per_step, bound, what="log10_norm")


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("depth", [64, 128])
def test_deep_stacks_whose_gradient_vanishes_are_right_in_float32(activation, depth):
    """Below 1e-80, against float64, which ends at 1e-308."""
    layers = positive(
        tt.Sequential(*(tt.MLP(F, 2 * F, activation, seed=i) for i in range(depth)), tt.Linear(F, 3, seed=depth))
    )
    for name, array in layers.parameters.items():
        array *= np.float32(0.1 if name.endswith("weight") else 0.5)
    x, d_output = np.abs(numbers(5, 3, F, dtype="float32")), np.abs(numbers(5, 3, 3, seed=1, dtype="float32"))
    found = tt.gradient_flow(layers, x, d_output)
    tape = layers.astype("float64").forward(x.astype("float64"))
    rows = entering(tape.backward(d_output.astype("float64")), d_output.astype("float64"))
    expected = np.stack([log10_norm(row, (1, 2)) for row in rows])
    assert -300 < expected[0].max() < -80
    assert_logs_close(found.log10_norm, expected, deep_bound("float32", depth))
    assert_logs_close(found.depth_log10_norm, log10_of_squares(expected, 1), deep_bound("float32", depth))


def test_steps_of_very_different_size_keep_their_own():
    """Losses of 1e-30 to 1e30 at different steps and in different sequences, through layers that mix neither."""
    layers = positive(tt.Sequential(*(tt.MLP(F, 2 * F, "tanh", seed=i) for i in range(40))))
    for name, array in layers.parameters.items():
        array *= np.float32(0.1 if name.endswith("weight") else 0.5)
    x = np.abs(numbers(13, 3, F, dtype="float32"))
    d_output = (
        np.ones((13, 3, F), np.float32) * np.float32(10) ** np.linspace(-30, 30, 13, dtype="float32")[:, None, None]
    )
    found = tt.gradient_flow(layers, x, d_output)
    tape = layers.astype("float64").forward(x.astype("float64"))
    rows = entering(tape.backward(d_output.astype("float64")), d_output.astype("float64"))
    expected = np.stack([log10_norm(row, (1, 2)) for row in rows])
    assert np.ptp(expected[0]) > 55
    assert_logs_close(found.log10_norm, expected, deep_bound("float32", 40))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recurrent_layer_below_a_deep_stack(dtype):
    """The gradients of its steps are already below 10^-300, and correct there."""
    deep = [tt.Linear(F, F, dtype=dtype, seed=i) for i in range(150)]
    layers = positive(tt.Sequential(tt.RNN(4, F, dtype=dtype, seed=200), *deep))
    for name, array in layers.parameters.items():
        array *= np.asarray(0.005 if name.endswith(".weight") else 0.1, dtype)
    x = np.abs(numbers(20, 2, 4, dtype=dtype))
    flow = tt.gradient_flow(layers, x)
    weight = exact(np.eye(F))
    for layer in layers.layers[1:]:
        weight = exact(layer.parameters["weight"]) @ weight
    above = exact(np.ones((2, F))) @ weight
    alone = layers.layers[0].astype("float64")
    size = np.abs(above).max()
    d_output = np.zeros((20, 2, F))
    d_output[-1] = (above / size).astype(np.float64)
    hidden = alone.forward(x.astype(np.float64)).backward(d_output).hidden
    expected = exact(hidden) * size
    assert log10_norm(expected, None) < -300
    bound = deep_bound(dtype, 150 + 20)
    assert_logs_close(flow.layers[0].log10_norm, log10_norm(expected, (2, 3)), bound)
    assert_logs_close(flow.layers[0].log10_unit, log10_norm(expected, 2), bound)
    assert_logs_close(flow.log10_norm[1], log10_norm(exact(d_output) * size, (1, 2)), bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype, threads):
    layers, x = stack(dtype), numbers(40, 33, 4, dtype=dtype)

    def run(n):
        threads(n)
        flow = tt.gradient_flow(layers, x)
        inner = {str(i): vars_of(flow.layers[i]) for i in RECURRENT}
        return {"rows": flow.log10_norm, "depth": flow.depth_log10_norm, **inner}

    expected = run(1)
    for n in (2, 3):
        assert_same_bits(run(n), expected, f"{n} threads")


def vars_of(flow):
    return {name: getattr(flow, name) for name in ("log10_norm", "log10_norm_per_sequence", "log10_unit")}


# Both directions, padding, and a forward with overflow


def test_last_of_a_stack_that_ends_in_two_directions():
    """Each direction's own last step if a recurrent layer is the last, also in nested stacks; else the last output."""
    below = tt.Linear(4, F, dtype="float64", seed=0)
    both = tt.GRU(F, F, bidirectional=True, dtype="float64", seed=1)
    above = tt.Linear(2 * F, 3, dtype="float64", seed=2)
    x, lengths = numbers(9, 3, 4), [9, 0, 4]
    expected = tt.gradient_flow(both, below(x), lengths=lengths)
    for layers in (tt.Sequential(below, both), tt.Sequential(below, tt.Sequential(both))):
        flow = tt.gradient_flow(layers, x, lengths=lengths)
        own = flow.layers[1] if flow.layers[1].reverse.any() else flow.layers[1].layers[0]
        assert_logs_close(own.log10_norm, expected.log10_norm, rounding_bound("float64", TERMS))
        assert np.isfinite(own.gamma).all()
        assert np.flatnonzero(np.isfinite(flow.log10_norm[2])).tolist() == [0, 3, 8]
    flow = tt.gradient_flow(tt.Sequential(below, both, above), x, lengths=lengths)
    assert np.flatnonzero(np.isfinite(flow.log10_norm[3])).tolist() == [3, 8]


def test_a_stack_padded_beyond_its_longest_sequence():
    layers, x = tt.Sequential(tt.Linear(4, F, seed=0), tt.GRU(F, F, bidirectional=True, seed=1)), numbers(9, 3, 4)
    x, lengths = x.astype("float32"), [4, 0, 2]
    flow, cut = (tt.gradient_flow(layers, part, lengths=lengths) for part in (x, x[:4]))
    for one, other in ((flow, cut), (flow.layers[1], cut.layers[1])):
        assert one.steps == 4
        for fraction in (0.5, 1e-6):
            assert np.array_equal(one.horizon(fraction), other.horizon(fraction))
        assert one.summary() == other.summary()


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stack_says_where_the_forward_stops_being_finite(batch_first):
    def layers():
        return tt.Sequential(
            tt.Linear(4, F, seed=0),
            tt.ResidualBlock(tt.MLP(F, 5, seed=1), F),
            tt.LSTM(F, F, 2, batch_first=batch_first, seed=2),
            tt.Linear(F, 2, seed=3),
        )

    def fault(stack, x):
        turned = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
        flow = tt.gradient_flow(stack, turned)
        tape = stack.forward(turned)
        with pytest.raises(FloatingPointError) as error:
            tape.backward(np.ones_like(tape.output), check_finite=True)
        assert str(error.value) == flow.fault
        assert flow.fault in flow.summary()
        assert np.isnan(flow.log10_norm[0]).any()
        return flow.fault

    x = numbers(7, 3, 4, dtype="float32")
    x[5, 2, 1], x[6, 1, 1] = np.nan, np.nan
    assert fault(layers(), x) == "x is not finite at timestep 5, in sequence 2"
    x = numbers(7, 3, 4, dtype="float32")
    for name, place in (
        ("0.weight", r"layers[0] (Linear(4, 6)): parameter weight is not finite, nor is the output at timestep 0, "),
        ("1.sublayer.linear1.weight", r"sublayer (MLP(6, 5)): parameter linear1.weight is not finite, "),
        ("2.weight_hh_l1", r"layers[2] (LSTM("),
        ("3.bias", r"layers[3] (Linear(6, 2)): parameter bias is not finite, "),
    ):
        stack = layers()
        stack.parameters[name][...] = np.nan
        assert place in fault(stack, x)
    stack = layers()
    stack.parameters["0.weight"][...], stack.parameters["0.bias"][...] = 1, 0
    x[:] = 0
    x[3, 1] = 3e38
    assert "layers[0] (Linear(4, 6)): the output overflows at timestep 3, in sequence 1" in fault(stack, x)


def test_check_finite_names_the_layer_that_a_gradient_overflows_in():
    layers = tt.Sequential(tt.Linear(4, F, seed=0), tt.LSTM(F, F, seed=1), tt.Linear(F, 2, bias=False, seed=2))
    layers.parameters["2.weight"][...] = 1e30
    tape = layers.forward(numbers(7, 3, 4, dtype="float32"))
    d_output = np.zeros_like(tape.output)
    d_output[4, 1] = 1e30
    with pytest.raises(FloatingPointError, match=r"layers\[2\].*input overflows at timestep 4, in sequence 1"):
        tape.backward(d_output, check_finite=True)
    d_output[4, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"^d_output is not finite at timestep 4, in sequence 1"):
        tape.backward(d_output, check_finite=True)


# Depth without time


def rows_only(dtype="float64"):
    return tt.Sequential(
        tt.Linear(4, F, dtype=dtype, seed=0),
        tt.ReLU(),
        tt.ResidualBlock(tt.Sequential(tt.MLP(F, 9, dtype=dtype, seed=1), tt.Tanh()), F),
        tt.BatchNorm(F, dtype=dtype),
        tt.Linear(F, 3, dtype=dtype, seed=2),
    )


@pytest.mark.parametrize("given", [False, True])
def test_rows_without_time_are_a_batch_of_one_step(given):
    """Every row has a loss, and the flow has only depth."""
    layers, x = rows_only(), numbers(20, 4)
    d_output = numbers(20, 3, seed=1) if given else np.ones((20, 3))
    flow = tt.gradient_flow(layers, x, d_output if given else "last")
    grads = layers.forward(x).backward(d_output)
    expected = np.stack([log10_norm(row, 1) for row in entering(grads, d_output)])
    assert flow.log10_norm_per_sequence.shape == (6, 1, 20)
    np.testing.assert_allclose(flow.log10_norm_per_sequence[:, 0], expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(flow.depth_log10_norm, log10_of_squares(expected, 1), rtol=0, atol=1e-11)
    same = tt.gradient_flow(layers, x[None], d_output[None])
    np.testing.assert_allclose(same.depth_log10_norm, flow.depth_log10_norm, rtol=0, atol=1e-11)


def test_the_summary_of_depth_alone_speaks_of_nothing_else():
    flow = tt.gradient_flow(rows_only(), numbers(20, 4), numbers(20, 3, seed=1))
    title, head, *rows, note = flow.summary().splitlines()
    assert title == "Gradient flow of a stack of 5 layers"
    assert head.split() == ["norm", "factor"]
    assert len(rows) == 6
    for row, norm, above in zip(rows, flow.depth_log10_norm, [*flow.depth_log10_norm[1:], None], strict=True):
        figures = [float(word) for word in row.replace(")", "").split()[-2:] if word[-1].isdigit()]
        assert abs(figures[0] - norm) <= 0.00501
        assert above is None or abs(figures[1] - 10 ** (norm - above)) <= 0.0000501
    assert not any(word in flow.summary() for word in ("gamma", "horizon", "step"))
    assert "mean" in note


def test_the_summary_of_a_stack_with_time_has_the_numbers_of_depth():
    flow = tt.gradient_flow(stack(), numbers(9, 3, 4))
    _, head, *rows, note = flow.summary().splitlines()
    assert "all steps" in head
    assert "all steps" in note
    start = head.index("all steps")
    for row, norm in zip(rows, flow.depth_log10_norm, strict=True):
        assert abs(float(row[start : start + len("all steps")]) - norm) <= 0.00501


def test_the_plot_of_depth_alone_has_one_panel_with_every_layer_named(tmp_path):
    pytest.importorskip("matplotlib")
    flow = tt.gradient_flow(rows_only(), numbers(20, 4))
    figure = flow.plot(tmp_path / "depth.png")
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), flow.depth_log10_norm)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(flow.names)
    assert "time" not in "".join([axes.get_xlabel(), axes.get_ylabel(), axes.get_title()])
    assert (tmp_path / "depth.png").exists()
    from matplotlib.figure import Figure

    deep = tt.Sequential(*(tt.ReLU() for _ in range(300)))
    assert 150 * tt.gradient_flow(deep, numbers(3, 4)).plot().get_figheight() <= 1600
    own = Figure().add_subplot()
    flow.plot(own)
    np.testing.assert_array_equal(own.lines[0].get_xdata(), flow.depth_log10_norm)


def test_several_flows_of_depth_alone_share_a_plot():
    pytest.importorskip("matplotlib")
    flows = {name: tt.gradient_flow(rows_only(), numbers(20, 4, seed=k)) for k, name in enumerate(("one", "two"))}
    (axes,) = tt.plot_flows(flows).axes
    for line, (name, flow) in zip(axes.lines, flows.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), flow.depth_log10_norm)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(flows)


def test_what_mixes_timesteps_or_is_given_lengths_keeps_its_time():
    x = numbers(9, 4)
    with_time = tt.Sequential(tt.Linear(4, F, dtype="float64", seed=0), tt.GRU(F, 3, dtype="float64", seed=1))
    assert tt.gradient_flow(with_time, x).log10_norm.shape == (3, 9)
    assert tt.gradient_flow(rows_only(), x, lengths=7).log10_norm.shape == (6, 9)
    assert tt.gradient_flow(rows_only(), numbers(9, 2, 4)).log10_norm.shape == (6, 9)
    assert "gamma" in tt.gradient_flow(with_time, x).summary()


def test_a_single_row_of_features():
    flow = tt.gradient_flow(tt.Sequential(tt.Linear(4, 3, seed=0), tt.Tanh()), numbers(4, dtype="float32"))
    assert flow.depth_log10_norm.shape == (3,)


def test_a_hundred_layers_past_the_range_of_floats():
    """Torch's weights have variance 1/(3 n): a Linear keeps a third of the squared norm, a ReLU half; in 200 layers
    10^-77.8, below float32. The sample's squared norm varies by about sqrt(5/64) per layer; 5 deviations of 200 layers
    are 8.6."""
    layers = (layer for k in range(200) for layer in (tt.Linear(64, 64, seed=k), tt.ReLU()))
    flow = tt.gradient_flow(tt.Sequential(*layers), numbers(30, 64, dtype="float32"))
    assert abs(flow.depth_log10_norm[0] - flow.depth_log10_norm[-1] - 200 * np.log10(1 / 6) / 2) < 8.6


def test_check_finite_in_a_stack_without_recurrent_layers():
    layers = tt.Sequential(tt.Linear(4, F, seed=0), tt.ReLU(), tt.Linear(F, 2, seed=1))
    tape = layers.forward(numbers(7, 3, 4, dtype="float32"))
    d_output = np.ones_like(tape.output)
    assert_same_bits(
        tape.backward(d_output, check_finite=True).parameters, tape.backward(d_output, check_finite=False).parameters
    )
    d_output[3, 2] = np.inf
    with pytest.raises(FloatingPointError, match=r"^d_output is not finite at timestep 3, in sequence 2"):
        tape.backward(d_output, check_finite=True)


@pytest.mark.parametrize("normalisation", ["layer", "batch"])
def test_check_finite_names_a_block_s_norm_and_where_d_output_is_not_finite(normalisation):
    x, options = numbers(7, 3, F, dtype="float32"), {"normalisation": normalisation}
    block = tt.ResidualBlock(tt.GRU(F, F, seed=0), F, norm="post", **options)
    tape = block.forward(x)
    d_output = np.ones_like(tape.output)
    d_output[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"^d_output is not finite at timestep 2, in sequence 1"):
        tape.backward(d_output, check_finite=True)
    block = tt.ResidualBlock(tt.GRU(F, F, seed=0), F, **options)
    block.parameters["norm.weight"][0] = np.inf
    assert "parameter weight is not finite" in tt.gradient_flow(tt.Sequential(block), x).fault


def test_a_statistic_that_is_not_finite_is_named():
    layers = tt.Sequential(tt.BatchNorm(4), tt.GRU(4, F, seed=0))
    layers.buffers["0.running_mean"][0] = np.nan
    tape = layers.forward(numbers(7, 3, 4, dtype="float32"), training=False)
    with pytest.raises(FloatingPointError, match="buffer running_mean is not finite"):
        tape.backward(np.ones_like(tape.output), check_finite=True)
