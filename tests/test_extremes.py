"""Edge cases: infinities, arrays changed after a forward, empty batches, norms out of range, odd files."""

import threading

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import FORMS, Problem, layer_class
from throughtime import _core


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])  # a relu passes an infinity on
@pytest.mark.parametrize("hidden", [3, 6, 8, 31])
def test_an_infinite_input_does_not_leak_through_padded_lanes(kind, hidden):
    """tanh and sigmoid of an infinity are finite, and so is every gradient except that of the step's own weights. On
    AMX a float32 infinity is split into a sum, and becomes NaN."""
    dtype = "float64" if "amx" in _core.bfloat16_terms() else "float32"
    layer = layer_class(kind)(4, hidden, dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((9, 2, 4)).astype(dtype)
    x[4, 0, 1] = np.inf
    tape = layer.forward(x)
    grads = tape.backward(np.ones_like(tape.output))
    assert np.isfinite(tape.output).all()
    assert np.isfinite(grads.input).all()
    assert np.isfinite(grads.hidden).all()


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_padding_is_zero_whatever_the_weights_hold(kind, name):
    layer = layer_class(kind)(4, 6, bidirectional=True, seed=0)
    layer.parameters[name][0, 0] = np.inf
    tape = layer.forward(np.ones((5, 3, 4), np.float32), lengths=[5, 0, 2])
    with np.errstate(invalid="ignore"):
        grads = tape.backward(np.ones_like(tape.output))
    assert np.all(grads.input[:, 1] == 0)
    assert np.all(grads.input[2:, 2] == 0)
    assert np.all(grads.hidden[:, 2:, 2] == 0)
    states = grads.initial_state if isinstance(grads.initial_state, tuple) else (grads.initial_state,)
    assert all(np.all(state[:, 1] == 0) for state in states)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "state", "d_output"])
def test_what_is_not_finite_stays_in_its_sequence(kind, where, value):
    """The other sequences' outputs and gradients have the same bits as without it."""
    problem = Problem(kind, T=6, B=5, H=9, L=2, D=2, dtype="float32")
    layer = problem.layer()

    def step(x, state, d_output):
        tape = layer.forward(x, state)
        grads = tape.backward(d_output, timesteps=("hidden", "cell", "gates"))
        per_step = {name: getattr(grads, name) for name in ("hidden", "cell", "gates") if hasattr(grads, name)}
        batch_second = {
            "output": tape.output,
            "input": grads.input,
            **{k: v.swapaxes(0, 1) for k, v in per_step.items()},
        }
        return {name: np.moveaxis(array, -2, 0)[[0, 1, 2, 4]] for name, array in batch_second.items()}

    def spoilt(name, given):
        if name != where:
            return given
        arrays = [array.copy() for array in given] if isinstance(given, tuple) else [given.copy()]
        for array in arrays:
            array[array.shape[0] // 2, 3, 1] = value
        return tuple(arrays) if isinstance(given, tuple) else arrays[0]

    given = {"x": problem.x, "state": problem.state, "d_output": problem.d_output}
    with np.errstate(invalid="ignore"):
        found = step(**{name: spoilt(name, argument) for name, argument in given.items()})
    assert_same_bits(found, step(**given))


def test_a_tape_does_not_see_later_changes_of_its_arguments():
    problem = Problem("lstm", D=2, L=2, dtype="float32")
    lengths, resets = problem.lengths.copy(), problem.resets.copy()
    mask = np.zeros((problem.T, problem.B, 2 * problem.H), bool)
    tape = problem.layer(dropout=0.5).forward(problem.x, lengths=lengths, resets=resets, masks={"dropout_l0": mask})
    before = tape.backward(**problem.loss).input
    lengths[:], resets[:], mask[:] = 10**6, ~resets, True
    assert np.array_equal(tape.backward(**problem.loss).input, before)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("output", ["all", "last"])
def test_an_empty_batch_gives_empty_results_and_zero_gradients(kind, output):
    layer = layer_class(kind)(4, 6, num_layers=2, bidirectional=True)
    tape = layer.forward(np.zeros((5, 0, 4), np.float32), output=output)
    grads = tape.backward(np.zeros_like(tape.output), timesteps=("hidden", "gates", "parameter_norms"))
    assert tape.output.shape == ((5, 0, 12) if output == "all" else (0, 12))
    assert grads.input.shape == (5, 0, 4)
    assert all(np.all(array == 0) for array in grads.parameters.values())


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize(("dtype", "size"), [("float64", 1e200), ("float64", 1e-200), ("float32", 1e30)])
def test_clipping_where_squares_leave_the_range(kind, dtype, size):
    """The carried gradient is scaled to norm `clip`, even if its square is infinite or zero."""
    problem = Problem(kind, dtype=dtype)
    tape = problem.layer().forward(problem.x)
    d_output = np.zeros_like(problem.d_output)
    d_output[-1] = problem.d_output[-1] * size
    grads = tape.backward(d_output, clip=size * 1e-3)
    assert grads.clipped[0, -2].all()
    norms = np.linalg.norm(grads.hidden[0, -2] / (size * 1e-3), axis=1)
    assert np.all(norms <= 1 + 100 * np.finfo(dtype).eps if kind != "lstm" else norms > 0)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize(("dtype", "exponent"), [("float32", 70), ("float64", 800)])
@pytest.mark.parametrize("name", ["x", "weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("B", [1, 9])
@pytest.mark.parametrize("kind", ["lstm_layer_norm", "gru_layer_norm", "rnn_tanh_layer_norm"])
def test_layer_normalised_products_of_any_size_are_alike(kind, dtype, exponent, name, B):
    """LN(2^k v) = LN(v), to the last bit if 1e-5 is negligible next to the variance; the gradient is 2^k smaller."""
    problem = Problem(kind, B=B, H=20, dtype=dtype)

    def at(exponent):
        layer = problem.layer()
        sized = {"x": problem.x, **layer.parameters}
        sized[name] = np.ldexp(sized[name], exponent)
        layer.load_parameters({key: sized[key] for key in layer.parameters})
        tape = layer.forward(sized["x"])  # h_0 = 0: its product has variance 0 in both cases
        grads = tape.backward(problem.d_output)
        gradients = {"x": grads.input, **grads.parameters}
        gradients[name] = np.ldexp(gradients[name], exponent)
        return tape.output, gradients

    (small, d_small), (large, d_large) = at(40), at(exponent)
    assert np.array_equal(large, small)
    for key, gradient in d_small.items():
        np.testing.assert_array_equal(d_large[key], gradient, err_msg=key)


@pytest.mark.per_level
@pytest.mark.amx
def test_clip_below_the_smallest_float32_still_clips():
    problem = Problem("gru", dtype="float32")
    tape = problem.layer().forward(problem.x)
    grads = tape.backward(problem.d_output, clip=1e-50)
    assert grads.clipped[:, :-1].all()


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unaligned_arrays_are_as_good_as_others(dtype):
    problem = Problem("lstm", dtype=dtype)

    def unaligned(array):
        moved = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    layer = problem.layer()
    expected = layer.forward(problem.x, problem.state).backward(**problem.loss)
    state = tuple(map(unaligned, problem.state))
    loss = {"d_output": unaligned(problem.d_output), "d_cell": unaligned(problem.d_cell)}
    found = layer.forward(unaligned(problem.x), state).backward(**{**problem.loss, **loss})
    assert np.array_equal(found.input, expected.input)


@pytest.mark.per_level
@pytest.mark.amx
@pytest.mark.parametrize("kind", FORMS)
def test_large_batches_have_the_norms_of_small_ones(kind):
    """Gram matrices and the gradient row by row give the same norm: 40 times the batch is 40 times the norm."""
    problem = Problem(kind, T=3, B=9, I=4, H=5, dtype="float64")
    asked = {"timesteps": ("parameter_norms",)}
    small = problem.layer().forward(problem.x).backward(problem.d_output, **asked).parameter_norms
    x, d_output = np.tile(problem.x, (1, 40, 1)), np.tile(problem.d_output, (1, 40, 1))
    large = problem.layer().forward(x).backward(d_output, **asked).parameter_norms
    for name, norms in small.items():
        np.testing.assert_allclose(large[name], 40 * norms, rtol=1e-9)


def test_a_subclass_runs_and_is_saved_as_what_it_derives_from(tmp_path):
    class Mine(tt.LSTM):
        pass

    layer = Mine(np.int64(4), 6, dropout=np.float32(0.5), num_layers=2, seed=0)
    layer.save(tmp_path / "layer.npz")
    loaded = tt.load(tmp_path / "layer.npz")
    assert type(loaded) is tt.LSTM
    assert repr(loaded) == "LSTM(4, 6, num_layers=2, dropout=0.5)"
    x = np.ones((3, 2, 4), np.float32)
    assert np.array_equal(loaded(x)[0], layer(x)[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x93NUMPY", b"text"])
def test_load_says_when_a_file_is_not_its_own(tmp_path, content):
    path = tmp_path / "layer.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path is not a layer saved by throughtime"):
        tt.load(path)


def test_a_daemon_thread_in_a_kernel_does_not_abort_the_exit():
    from test_process import run_python

    script = """
        import threading, time, numpy as np, throughtime as tt
        x = np.broadcast_to(np.zeros((1, 1, 1), np.float32), (1_000_000, 1, 1))
        layer = tt.LSTM(1, 256)
        threading.Thread(target=lambda: layer(x), daemon=True).start()
        time.sleep(0.5)
        print("end")
    """
    assert run_python(script) == "end"


def test_calls_from_many_threads_at_once_are_right():
    layer = tt.GRU(8, 32, seed=0)
    x = np.random.default_rng(0).standard_normal((50, 4, 8), dtype=np.float32)
    expected = layer(x)[0]
    found = []
    threads = [threading.Thread(target=lambda: found.append(layer(x)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(array, expected) for array in found)


def test_threads_may_share_a_tape():
    """They call backward at the same time, and read the values of the forward pass."""
    problem = Problem("lstm", T=30, B=4, H=20, L=2, dtype="float32")
    tape = problem.layer().forward(problem.x, memory="states")
    expected, found = tape.backward(problem.d_output).input, []

    def work():
        for _ in range(3):
            found.append(np.array_equal(tape.backward(problem.d_output).input, expected) and tape.hidden.shape[0] == 2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12
