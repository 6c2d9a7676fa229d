"""RNN, GRU and LSTM as layers: against the reference, and all forms of input against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import KINDS, RELUS, STATES, Problem, check, layer_class, problems, run, run_reference

DTYPES = ("float32", "float64")


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_agrees_with_the_reference(kind, dtype, data):
    """Outputs, states, and every gradient, total and per timestep, within the bound of rounding errors."""
    problem = data.draw(problems(kind, dtype=dtype))
    check(problem, {"state": problem.state})


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize(("kind", "dtype"), [(k, d) for k in KINDS for d in DTYPES if k not in RELUS or d != "float32"])
def test_agrees_on_a_long_sequence(kind, dtype):
    """Many chunks of time, and a batch and sizes of many tiles with tails.

    The relu not in float32: one of its many pre-activations is within rounding of zero and takes the other side, which
    is not an error of the backward. Its products are compared by equality in test_exact.py.
    """
    problem = Problem(kind, T=100, B=19, I=21, H=45, D=2, dtype=dtype)
    check(problem, {"state": problem.state})


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("loss", ["d_output", "d_final_state", "d_cell"])
def test_each_incoming_gradient_alone(kind, loss):
    problem = Problem(kind, L=2, D=2)
    if loss in problem.loss:
        check(problem, loss={loss: problem.loss[loss]})
    else:
        tape = problem.layer().forward(problem.x)
        with pytest.raises((TypeError, ValueError), match="d_cell"):
            tape.backward(d_cell=tape.hidden)


def test_parameters_have_the_names_shapes_and_type_of_torch(kind):
    for problem in (Problem(kind, L=2, D=2, dtype="float32"), Problem(kind, bias=False)):
        parameters = problem.layer().parameters
        assert list(parameters) == list(problem.shapes)
        for name, array in parameters.items():
            assert array.shape == problem.shapes[name]
            assert array.dtype == problem.dtype


def test_a_seed_decides_the_initial_weights(kind):
    """Uniform up to 1 / sqrt(H), as in torch."""
    one, same, other = (layer_class(kind)(5, 16, num_layers=2, seed=seed).parameters for seed in (1, 1, 2))
    assert_same_bits(one, same)
    for name, array in one.items():
        assert np.abs(array).max() <= 0.25
        assert np.abs(array).max() > 0.2
        assert not np.array_equal(array, other[name])


def test_writing_into_a_parameter_changes_the_layer_and_no_earlier_tape(kind):
    problem = Problem(kind, L=2)
    layer = problem.layer()
    before = run(layer, problem.x, loss=problem.loss)
    tape = layer.forward(problem.x)
    layer.parameters["weight_hh_l0"] *= 1.5
    layer.parameters["weight_ih_l1"][0] = 0
    grads = tape.backward(**problem.loss)
    assert_same_bits(grads.parameters, before["parameters"])
    assert_same_bits(grads.input, before["input"])
    changed = Problem(kind, L=2)
    changed.parameters.update({name: array.copy() for name, array in layer.parameters.items()})
    assert_close(run(layer, problem.x, loss=problem.loss), run_reference(changed), problem.bound)


@pytest.mark.per_level
@pytest.mark.amx
def test_backward_again_gives_the_same_bits(kind):
    """Also after a backward with other options."""
    problem = Problem(kind, T=20, B=9, H=24, L=2, D=2, dtype="float32")
    tape = problem.layer().forward(problem.x)
    first = tape.backward(**problem.loss)
    tape.backward(problem.d_output * np.float32(3), timesteps=("gates",), truncate=3, clip=0.1)
    again = tape.backward(**problem.loss)
    for name in ("input", "parameters", "initial_state", "hidden"):
        assert_same_bits(getattr(again, name), getattr(first, name), name)


def test_no_state_is_zeros(kind):
    problem = Problem(kind, L=2, D=2, dtype="float32")
    state = tuple(np.zeros_like(s) for s in problem.state) if STATES[kind] == 2 else np.zeros_like(problem.state)
    layer = problem.layer()
    assert_same_bits(
        run(layer, problem.x, loss=problem.loss), run(layer, problem.x, {"state": state}, loss=problem.loss)
    )


def test_inference_is_the_forward_without_training(kind):
    problem = Problem(kind, T=20, H=24, L=3, D=2, dtype="float32")
    layer = problem.layer(dropout=0.5)
    for options in ({}, {"state": problem.state, "lengths": problem.lengths}):
        output, state = layer(problem.x, **options)
        tape = layer.forward(problem.x, training=False, **options)
        assert_same_bits(output, tape.output)
        assert_same_bits(state, tape.final_state)


def test_the_state_carries_on(kind):
    """Two halves, the second starting from the final state of the first, equal the whole."""
    problem = Problem(kind, T=12, L=2)
    layer = problem.layer()
    whole, final = layer(problem.x, problem.state)
    first, between = layer(problem.x[:5], problem.state)
    second, end = layer(problem.x[5:], between)
    assert_close(np.concatenate([first, second]), whole, problem.bound)
    assert_close(end, final, problem.bound)


def test_batch_first_turns_input_output_and_their_gradients_and_nothing_else(kind):
    problem = Problem(kind, T=6, B=4, L=2, D=2)
    options = {"state": problem.state, "lengths": problem.lengths, "resets": problem.resets}
    expected = run(problem.layer(), problem.x, options, loss=problem.loss)
    loss = problem.loss | {"d_output": problem.d_output.swapaxes(0, 1)}
    found = run(problem.layer(batch_first=True), problem.x.swapaxes(0, 1), options, loss=loss)
    for name in ("output", "input"):
        found[name] = found[name].swapaxes(0, 1)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_drops_the_batch_everywhere(kind, batch_first):
    problem = Problem(kind, B=1, L=2, D=2)
    layer = problem.layer(batch_first=batch_first)

    def squeezed(values):
        if isinstance(values, tuple):
            return tuple(squeezed(value) for value in values)
        return np.squeeze(values, axis=-2)

    options = {"state": problem.state, "resets": problem.resets}
    expected = run(problem.layer(), problem.x, options, {"clip": 0.5}, problem.loss)
    found = run(
        layer,
        problem.x[:, 0],
        {"state": squeezed(problem.state), "resets": problem.resets[:, 0]},
        {"clip": 0.5},
        {name: squeezed(value) for name, value in problem.loss.items()},
    )
    unchanged = ("parameters", "parameter_norms")
    for name, value in expected.items():
        without_batch = value if name in unchanged else value[..., 0] if name == "clipped" else squeezed(value)
        assert_same_bits(found[name], without_batch, name)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("directions", [1, 2])
def test_last_output_is_the_last_layers_final_state(kind, directions, dtype):
    """And its gradient is a gradient of the final state, also for sequences that end early or are empty."""
    problem = Problem(kind, B=4, L=2, D=directions, dtype=dtype)
    options = {"state": problem.state, "lengths": problem.lengths}
    tape = problem.layer().forward(problem.x, output="last", **options)
    h = tape.final_state[0] if STATES[kind] == 2 else tape.final_state
    assert_same_bits(tape.output, np.concatenate(list(h[-directions:]), axis=1))

    d_last = problem.d_output[0]
    d_h = np.zeros_like(h)
    d_h[-directions:] = np.split(d_last, directions, axis=1)
    d_final = (d_h, np.zeros_like(tape.final_state[1])) if STATES[kind] == 2 else d_h
    expected = run_reference(problem, options, loss={"d_final_state": d_final})
    grads = tape.backward(d_last)
    for name in ("input", "parameters", "initial_state", "hidden"):
        assert_close(getattr(grads, name), expected[name], problem.bound, name)


def test_last_output_takes_a_gradient_of_the_final_state_too(kind):
    problem = Problem(kind, L=2, D=2)
    tape = problem.layer().forward(problem.x, output="last")
    both = tape.backward(problem.d_output[0], problem.d_final_state)
    first, second = tape.backward(problem.d_output[0]), tape.backward(d_final_state=problem.d_final_state)
    assert_close(both.input, first.input + second.input, problem.bound)


@pytest.mark.parametrize("directions", [1, 2])
def test_dropout_is_what_its_masks_say(kind, directions):
    """Only between layers, scaled by 1 / (1 - p), and the same in the backward."""
    problem = Problem(kind, T=9, B=4, L=3, D=directions)
    tape = problem.layer(dropout=0.25).forward(problem.x)
    assert set(tape.masks) == {"dropout_l0", "dropout_l1"}
    for mask in tape.masks.values():
        assert mask.shape == (9, 4, directions * problem.width)
        assert mask.dtype == bool
    expected = run_reference(problem, {"masks": tape.masks}, dropout=0.25)
    grads = tape.backward(**problem.loss)
    assert_close(tape.output, expected["output"], problem.bound)
    for name in ("input", "parameters", "hidden"):
        assert_close(getattr(grads, name), expected[name], problem.bound, name)


def test_masks_of_one_tape_make_another_the_same(kind):
    problem = Problem(kind, L=2, D=2, dtype="float32")
    layer = problem.layer(dropout=0.5)
    tape = layer.forward(problem.x)
    again = layer.forward(problem.x, masks=tape.masks)
    assert_same_bits(again.output, tape.output)
    assert_same_bits(again.masks, tape.masks)
    assert_same_bits(again.backward(problem.d_output).parameters, tape.backward(problem.d_output).parameters)


def test_dropout_drops_at_its_rate_and_anew_each_time(kind):
    """Within six standard deviations of the binomial distribution; different in every forward."""
    layer = layer_class(kind)(2, 32, num_layers=2, dropout=0.3)
    x = np.zeros((50, 20, 2), np.float32)
    first, second = (layer.forward(x).masks["dropout_l0"] for _ in range(2))
    assert abs(first.mean() - 0.3) < 6 * np.sqrt(0.3 * 0.7 / first.size)
    assert abs((first & second).mean() - 0.09) < 6 * np.sqrt(0.09 * 0.91 / first.size)


def test_without_training_nothing_is_dropped(kind):
    problem = Problem(kind, L=2)
    dropping = problem.layer(dropout=0.9).forward(problem.x, training=False)
    assert_same_bits(dropping.output, problem.layer().forward(problem.x).output)
    assert_same_bits(
        dropping.backward(problem.d_output).input,
        problem.layer().forward(problem.x).backward(problem.d_output).input,
    )


@pytest.mark.per_level
@pytest.mark.amx
def test_dropping_everything_leaves_zeros_and_no_nan(kind):
    """p = 1, which torch allows, would scale by 1 / 0."""
    problem = Problem(kind, L=2)
    found = run(problem.layer(dropout=1.0), problem.x, loss=problem.loss)
    everything = {"dropout_l0": np.ones((problem.T, problem.B, problem.width), bool)}
    assert_close(found, run_reference(problem, {"masks": everything}, dropout=1.0), problem.bound)


def ways_of_storing(array):
    """The same values in different layouts."""
    yield np.asfortranarray(array)
    yield array[::-1].copy()[::-1]  # a negative stride
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    yield wide[..., ::2]
    padded = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    padded[..., 1:-2] = array
    yield padded[..., 1:-2]  # rows further apart than they are long
    unaligned = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    yield unaligned


def test_memory_layout_makes_no_difference(kind):
    """Strided, Fortran, reversed and unaligned arrays give the same bits. (Read-only ones: in every test.)"""
    problem = Problem(kind, B=4, L=2, D=2, dtype="float32")
    layer = problem.layer()
    options = {"state": problem.state, "lengths": problem.lengths, "resets": problem.resets}
    expected = run(layer, problem.x, options, loss=problem.loss)

    def stored(values, way):
        if isinstance(values, tuple):
            return tuple(stored(value, way) for value in values)
        return list(ways_of_storing(values))[way]

    for way in range(5):
        other = {name: stored(value, way) for name, value in options.items()}
        loss = {name: stored(value, way) for name, value in problem.loss.items()}
        assert_same_bits(run(layer, stored(problem.x, way), other, loss=loss), expected, f"way {way}")


def test_inputs_are_never_modified(kind):
    """And no result is a view of an argument."""
    problem = Problem(kind, B=4, L=2, D=2, dtype="float32")
    parameters = {name: array.copy() for name, array in problem.parameters.items()}
    x, d_output = problem.x.copy(), problem.d_output.copy()
    lengths, resets = problem.lengths.copy(), problem.resets.copy()
    state = tuple(s.copy() for s in problem.state) if STATES[kind] == 2 else problem.state.copy()
    layer = problem.layer()
    found = run(
        layer,
        x,
        {"state": state, "lengths": lengths, "resets": resets},
        {"clip": 0.3, "truncate": 2},
        {"d_output": d_output, "d_final_state": state},
    )
    assert_same_bits((x, d_output, state), (problem.x, problem.d_output, problem.state))
    assert_same_bits((lengths, resets), (problem.lengths, problem.resets))
    assert_same_bits(layer.parameters, parameters)
    for name in ("output", "input", "hidden"):
        assert not any(np.shares_memory(found[name], a) for a in (x, d_output))


@pytest.mark.per_level
@pytest.mark.amx
def test_an_empty_batch_gives_empty_results_and_zero_gradients(kind):
    problem = Problem(kind, B=0, L=2, D=2, dtype="float32")
    found = run(problem.layer(), problem.x, {"state": problem.state}, {"clip": 1.0}, problem.loss)
    expected = run_reference(problem, {"state": problem.state}, {"clip": 1.0})
    assert_close(found, expected, 0)
    output, _ = problem.layer()(problem.x)
    assert output.shape == (problem.T, 0, 2 * problem.width)


def test_results_have_the_layers_type(kind):
    for dtype in DTYPES:
        problem = Problem(kind, dtype=dtype)
        found = run(problem.layer(), problem.x, {"state": problem.state}, loss=problem.loss)
        for name in ("output", "tape.hidden", "input", "hidden", "gates"):
            assert found[name].dtype == dtype, name
        for norms in found["parameter_norms"].values():
            assert norms.dtype == np.float64


def test_a_tape_says_what_it_holds():
    """At least the size of the gates and states of every step."""
    problem = Problem("lstm", T=40, B=8, H=32, dtype="float32")
    held = problem.layer().forward(problem.x).nbytes
    assert 40 * 8 * 32 * 4 * (4 + 2) <= held <= 2 * 40 * 8 * 32 * 4 * (4 + 2)


def test_save_and_load_give_the_same_layer(kind, tmp_path):
    problem = Problem(kind, L=2, D=2, bias=False, dtype="float32")
    layer = problem.layer(batch_first=True)
    layer.save(tmp_path / "layer")
    loaded = tt.load(tmp_path / "layer")
    assert type(loaded) is type(layer)
    assert repr(loaded) == repr(layer)
    assert_same_bits(loaded.parameters, layer.parameters)
    x = problem.x.swapaxes(0, 1)
    assert_same_bits(loaded(x), layer(x))


def test_repr_tells_what_the_layer_is():
    shown = repr(tt.RNN(5, 7, num_layers=2, nonlinearity="relu", bidirectional=True, dropout=0.25))
    assert shown.startswith("RNN(5, 7")
    for word in ("num_layers=2", "nonlinearity='relu'", "bidirectional=True", "dropout=0.25"):
        assert word in shown
    assert eval("tt." + shown).parameters.keys() == tt.RNN(5, 7, 2, bidirectional=True).parameters.keys()


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates_are_exactly_0_and_1(dtype):
    """With pre-activations of +-1e4 an LSTM counts: c' = f c + i g, with i and f 0 or 1, and g -1 or 1; no gradient
    flows through the gates."""
    T, B, H = 12, 3, 5
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (4, H))
    problem = Problem("lstm", T=T, B=B, I=4, H=H, dtype=dtype)
    layer = problem.layer()
    for array in layer.parameters.values():
        array[...] = 0
    # x_t has a 1 for each of the four gates whose sign is flipped
    layer.parameters["weight_ih_l0"][...] = np.repeat(np.eye(4), H, axis=0) * signs.reshape(-1, 1) * 1e4
    x = np.random.default_rng(1).choice([-1.0, 1.0], (T, B, 4)).astype(dtype)
    tape = layer.forward(x)
    c = np.zeros((B, H))
    for t in range(T):
        i, f, g, o = x[t].T[:, :, None] * signs[:, None, :]
        c = (f > 0) * c + (i > 0) * g
        # below sigmoid(-87) a float32 exp may saturate at its smallest number instead of 0
        assert np.allclose(tape.cell[0, t], c, rtol=0, atol=1e-35)
        assert np.allclose(tape.hidden[0, t], (o > 0) * np.tanh(c), rtol=0, atol=4 * np.finfo(dtype).eps)
    grads = tape.backward(problem.d_output, timesteps=("gates",))
    assert np.abs(grads.gates).max() < 1e-30


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])  # relu does not saturate
def test_extreme_inputs_saturate_and_give_no_nan(kind):
    """Pre-activations whose exponentials overflow by far."""
    problem = Problem(kind, dtype="float32")
    x = problem.x * np.float32(1e30)
    found = run(problem.layer(), x, loss=problem.loss)
    for name in ("output", "hidden", "gates"):
        assert np.isfinite(found[name]).all(), name
