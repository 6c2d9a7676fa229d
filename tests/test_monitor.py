"""`FlowMonitor`: it changes no bit, and what it measures is right."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import threading
import weakref

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import ALL_TIMESTEPS, FORMS, Problem
from throughtime.recurrent.observers import observing

RANGES = ("float", "full")


def everything(grads):
    """The arrays that a backward returned, by name."""
    found = {}
    for name, value in vars(grads).items():
        parts = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, tuple)
            else [("", value)]
        )
        found |= {f"{name} {part}": array for part, array in parts}
    return found


# No bit changes


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("memory", ["full", "states", 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", FORMS)
def test_the_results_have_the_same_bits(kind, dtype, memory, range):
    """And the same names: the monitor asks for more than the caller does."""
    problem = Problem(kind, T=9, B=3, H=11, L=2, D=2, dtype=dtype)
    layer = problem.layer()

    def step(timesteps, **options):
        tape = layer.forward(problem.x, problem.state, problem.lengths, resets=problem.resets, memory=memory)
        return everything(tape.backward(**problem.loss, timesteps=timesteps, **options))

    cases = [((), {}), (("gates",), {"truncate": 4}), (ALL_TIMESTEPS, {"clip": 0.1})]
    alone = [step(timesteps, **options) for timesteps, options in cases]
    with tt.FlowMonitor(layer, every=1, range=range) as monitor:
        watched = [step(timesteps, **options) for timesteps, options in cases]
    assert len(monitor.history) == len(cases)
    for before, after in zip(alone, watched, strict=True):
        assert before.keys() == after.keys()
        for name, array in before.items():
            assert_same_bits(array, after[name], name)


def train(layer, steps, **options):
    """Losses and parameters of a short training."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4, 8), dtype=np.float32)
    optimiser, losses = tt.optim.Adam(), []
    for _ in range(steps):
        tape = layer.forward(x, **options)
        loss, d_output = tt.mse(tape.output, np.sin(x))
        grads = tape.backward(d_output)
        tt.clip_grad_norm(grads, 0.5)
        optimiser.step(layer.parameters, grads.parameters)
        losses.append(loss)
    return losses, {name: array.copy() for name, array in layer.parameters.items()}


@pytest.mark.parametrize("range", RANGES)
def test_training_a_stack_has_the_same_bits(range):
    def stack():
        inner = tt.ResidualBlock(tt.GRU(8, 8, seed=1), 8)
        return tt.Sequential(tt.LSTM(8, 8, seed=0), inner, tt.Linear(8, 8, seed=2))

    losses, parameters = train(stack(), 12)
    model = stack()
    with tt.FlowMonitor(model, every=5, range=range) as monitor:
        watched_losses, watched = train(model, 12)
    assert losses == watched_losses
    for name, array in parameters.items():
        assert_same_bits(array, watched[name], name)
    assert [(record.step, record.layer) for record in monitor.history] == [
        (step, layer) for step in (0, 5, 10) for layer in ("1.sublayer", "0")
    ]


# What is measured


def expected_curve(hidden, lengths, reverse, lags):
    """log10 of the norm by lag, straight from the definition; hidden is (T, B, H)."""
    curve = []
    for lag in lags:
        squares, some = 0.0, False
        for b, length in enumerate(lengths):
            if lag < length:
                some = True
                squares += np.sum(hidden[lag if reverse else length - 1 - lag, b].astype(np.float64) ** 2)
        curve.append(np.log10(squares) / 2 if some and squares else -math.inf if some else math.nan)
    return np.array(curve)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_projected"])
def test_the_lag_curve_is_that_of_the_backward(kind, batch_first):
    problem = Problem(kind, T=33, B=4, L=2, D=2, dtype="float32")
    layer, lengths = problem.layer(batch_first=batch_first), np.array([33, 1, 0, 20])
    x, d = problem.x, problem.d_output
    x, d = (x.swapaxes(0, 1), d.swapaxes(0, 1)) if batch_first else (x, d)
    with tt.FlowMonitor(layer, every=1) as monitor:
        grads = layer.forward(x, problem.state, lengths).backward(d)
    (record,) = monitor.history
    assert record.lags.tolist() == [0, 1, 2, 5, 10, 20, 32]
    assert record.rows == ("layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse")
    for row, reverse in enumerate([False, True, False, True]):
        expected = expected_curve(grads.hidden[row], lengths, reverse, record.lags)
        # Squares of float32 numbers are exact in float64; the sum of n of them is within n units in the last place.
        np.testing.assert_allclose(record.log10_norm[row], expected, rtol=0, atol=4 * problem.width * 2**-24)
    assert record.gamma.shape == record.horizon.shape == (4,)


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("gain", [0.9, 1.0, 1.1])
def test_an_orthogonal_network_gives_a_straight_line(gain, range):
    """Of slope log10(gain) per step, and gamma is the gain."""
    layer = tt.RNN(1, 8, nonlinearity="relu", dtype="float64", seed=0)
    layer.parameters["weight_hh_l0"][:] = gain * np.roll(np.eye(8), 1, axis=0)
    layer.parameters["weight_ih_l0"][:] = 0
    layer.parameters["bias_ih_l0"][:] = 1
    steps = 200
    d = np.zeros((steps, 2, 8))
    d[-1] = 1
    with tt.FlowMonitor(layer, every=1, range=range) as monitor:
        layer.forward(np.zeros((steps, 2, 1))).backward(d)
    (record,) = monitor.history
    line = np.log10(4) + record.lags * math.log10(gain)  # sqrt(2 sequences, 8 ones)
    np.testing.assert_allclose(record.log10_norm[0], line, rtol=0, atol=steps * 2**-50)
    assert record.gamma[0] == pytest.approx(gain, rel=1e-12)
    assert record.horizon[0] == (math.floor(-3 / math.log10(gain)) + 1 if gain < 1 else math.inf)


def test_full_range_goes_below_floats():
    """A contraction by 0.5 over 5000 steps: 1e-1505."""
    layer = tt.RNN(1, 4, nonlinearity="relu", seed=0)
    layer.parameters["weight_hh_l0"][:] = 0.5 * np.eye(4)
    layer.parameters["bias_ih_l0"][:] = 1
    with tt.FlowMonitor(layer, every=1, range="full") as monitor:
        tape = layer.forward(np.zeros((5000, 1, 1), np.float32))
        tape.backward(np.ones_like(tape.output))  # the loss at every step has no part in it
    (record,) = monitor.history
    np.testing.assert_allclose(record.log10_norm[0], np.log10(2) + record.lags * math.log10(0.5), rtol=1e-6)
    with tt.FlowMonitor(layer, every=1) as monitor:
        d = np.zeros_like(tape.output)
        d[-1] = 1
        tape.backward(d)
    assert monitor.history[0].log10_norm[0, -1] == -math.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cancellation_is_that_of_the_steps(dtype):
    problem = Problem("gru", T=17, B=3, L=2, dtype=dtype)
    layer = problem.layer()
    with tt.FlowMonitor(layer, every=1) as monitor:
        grads = layer.forward(problem.x).backward(problem.d_output, timesteps=("parameter_norms",))
    (record,) = monitor.history
    assert record.cancellation.keys() == grads.parameters.keys()
    for name, share in record.cancellation.items():
        whole = np.linalg.norm(grads.parameters[name].astype(np.float64))
        assert share == pytest.approx(
            whole / grads.parameter_norms[name].sum(), rel=1e-6 if dtype == "float32" else 1e-12
        )
        assert 0 < share <= 1 + 1e-6


def test_timesteps_that_cancel_and_timesteps_that_agree():
    """Two equal inputs without recurrence, and gradients of equal or opposite sign."""
    layer = tt.RNN(3, 4, dtype="float64", seed=0)
    layer.parameters["weight_hh_l0"][:] = 0
    x = np.repeat(np.random.default_rng(0).standard_normal((1, 2, 3)), 2, axis=0)
    for signs, expected in (((1, 1), 1.0), ((1, -1), 0.0)):
        with tt.FlowMonitor(layer, every=1) as monitor:
            layer.forward(x).backward(np.array(signs, float)[:, None, None] * np.ones((2, 2, 4)))
        assert monitor.history[0].cancellation["weight_ih_l0"] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("range", RANGES)
def test_units_without_a_gradient_are_counted(range):
    """ReLUs that are off for every input; the others are linear and fade to no zero in 150 steps."""
    layer = tt.RNN(2, 10, nonlinearity="relu", dtype="float64", seed=0)
    layer.parameters["weight_hh_l0"][:] = 0.9 * np.eye(10)
    layer.parameters["weight_ih_l0"][:] = 0
    layer.parameters["bias_ih_l0"][:] = np.where(np.arange(10) < 3, -1, 1)
    with tt.FlowMonitor(layer, every=1, range=range) as monitor:
        for steps in (150, 100):
            tape = layer.forward(np.zeros((steps, 3, 2)))
            d = np.zeros_like(tape.output)
            d[-1] = 1
            tape.backward(d)
    long, short = monitor.history
    assert long.zero_share.tolist() == [0.3]
    assert np.isnan(short.zero_share).all()  # there is no lag of 100


def test_clipped_steps_are_found():
    problem = Problem("lstm", T=40, B=3, D=2, L=1)
    layer, lengths = problem.layer(), np.array([40, 11, 25])
    with tt.FlowMonitor(layer, every=1) as monitor:
        for clip in (None, 1e-9, 1e9):
            options = {} if clip is None else {"clip": clip}
            grads = layer.forward(problem.x, lengths=lengths).backward(problem.d_output, **options)
            if clip == 1e-9:
                some = grads.clipped
    without, all_of_them, none = monitor.history
    assert without.clipped_share is None
    assert without.clipped_steps is None
    assert all_of_them.clipped_share == some.sum() / (2 * lengths.sum())
    times = np.flatnonzero(some.any(axis=(0, 2)))
    assert all_of_them.clipped_steps == (times[0], times[-1])
    assert (none.clipped_share, none.clipped_steps) == (0, None)


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_first_step_that_is_not_finite_is_named(reverse, range):
    layer = tt.GRU(3, 5, num_layers=2, bidirectional=reverse, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 3, 3), dtype=np.float32)
    x[7, 1, 2] = np.nan
    with tt.FlowMonitor(layer, every=1, range=range) as monitor:
        tape = layer.forward(x)
        tape.backward(np.ones_like(tape.output))
    (record,) = monitor.history
    assert record.not_finite == (0 if reverse else 7)  # the reverse direction of layer 0 carries it to timestep 0
    assert "x is not finite at timestep 7" in record.fault


def test_a_gradient_that_is_not_finite_is_named():
    layer = tt.RNN(3, 5, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 3, 3), dtype=np.float32)
    d = np.zeros((20, 3, 5), np.float32)
    d[12, 0, 0] = np.inf
    with tt.FlowMonitor(layer, every=1) as monitor:
        layer.forward(x).backward(d)
    assert monitor.history[0].not_finite == 12
    assert monitor.history[0].fault == "the gradient at timestep 12"


def test_one_step_no_batch_and_empty_sequences():
    layer = tt.LSTM(3, 5, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        layer.forward(np.ones((1, 3), np.float32)).backward(np.ones((1, 5), np.float32))
        layer.forward(np.ones((4, 2, 3), np.float32), lengths=np.array([0, 0])).backward(np.ones((4, 2, 5), np.float32))
        layer.forward(np.ones((4, 0, 3), np.float32)).backward(np.ones((4, 0, 5), np.float32))
    one, empty, no_batch = monitor.history
    assert one.lags.tolist() == [0]
    assert np.isfinite(one.log10_norm).all()
    assert empty.steps == 0
    assert empty.log10_norm.shape == (1, 0)
    assert "of 0 steps, log10 of the norm nan to nan" in str(empty)
    assert no_batch.log10_norm.shape[0] == 1


# Registering


def test_it_counts_each_layer_and_stops_when_it_is_closed():
    layer = tt.RNN(8, 8, seed=0)
    seen = []
    with tt.FlowMonitor(layer, every=3, sinks=[seen.append]) as monitor, tt.FlowMonitor(layer, every=2) as other:
        train(layer, 7)
    train(layer, 3)
    assert [record.step for record in monitor.history] == [0, 3, 6]
    assert [record.step for record in other.history] == [0, 2, 4, 6]
    assert seen == monitor.history
    monitor.close()
    assert "3 records of RNN" in repr(monitor)


def test_copies_and_pickles_of_a_watched_layer_are_not_watched():
    layer = tt.RNN(8, 8, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            train(other, 1)
        assert monitor.history == []
        train(layer, 1)
    assert len(monitor.history) == 1


def test_a_monitor_that_is_never_closed_does_not_keep_its_layer_alive():
    layer = tt.RNN(8, 8, seed=0)
    monitor = tt.FlowMonitor(layer, every=1)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    again = weakref.ref(monitor)
    del monitor
    tt.FlowMonitor(tt.RNN(8, 8), every=1)  # registering drops what is gone
    gc.collect()
    assert again() is None


def test_each_record_of_several_threads_has_its_own_step():
    layer, barrier = tt.RNN(8, 8, seed=0), threading.Barrier(2)
    x = np.ones((5, 2, 8), np.float32)

    class Slow:
        def wanted(self):
            barrier.wait()  # both backwards are counted before either is measured
            return frozenset()

        def take(self, record, loss, grads):
            pass

    def backward():
        tape = layer.forward(x)
        tape.backward(np.ones_like(tape.output))

    with tt.FlowMonitor(layer, every=1) as monitor, observing(lambda: id(layer), Slow()):
        threads = [threading.Thread(target=backward) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(record.step for record in monitor.history) == [0, 1]


def test_a_monitor_cannot_be_copied_but_its_history_can():
    layer = tt.RNN(8, 8, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        train(layer, 1)
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a FlowMonitor cannot be copied or pickled; its history"):
                copied(monitor)
    assert pickle.loads(pickle.dumps(monitor.history))[0].as_dict() == monitor.history[0].as_dict()


def test_closing_closes_every_sink_and_a_closed_monitor_is_not_entered():
    class Sink:
        closed = False

        def __call__(self, record):
            pass

        def close(self):
            self.closed = True
            raise OSError("disk full")

    sinks = [Sink(), Sink()]
    monitor = tt.FlowMonitor(tt.RNN(8, 8), sinks=sinks)
    with pytest.raises(OSError, match="disk full"):
        monitor.close()
    assert all(sink.closed for sink in sinks)
    with pytest.raises(ValueError, match="the monitor is closed; a new one is needed"), monitor:
        pass


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gamma_and_horizon_count_from_the_end_of_each_sequence(bidirectional, range):
    """A sequence of one step adds its loss at lag 0, and nothing at the other end of the long one."""
    layer = tt.LSTM(3, 6, bidirectional=bidirectional, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((60, 2, 3))
    d = np.zeros((60, 2, layer.output_size))
    d[59, 0, :6], d[0, 1, :6], d[0, :, 6:] = 1, 1, 1
    with tt.FlowMonitor(layer, every=1, range=range) as monitor:
        layer.forward(x, lengths=np.array([60, 1])).backward(d)
        layer.forward(x[:, :1].copy()).backward(d[:, :1].copy())
    both, alone = monitor.history
    # at lag 0 the norm is that of two equal losses, sqrt(2) of one; at lag 59 it is that of one
    np.testing.assert_allclose(both.gamma, alone.gamma * 2 ** (-1 / 118), rtol=1e-12)
    assert (np.abs(both.horizon - alone.horizon) <= 1).all()


def test_an_error_in_a_sink_reaches_the_caller():
    class Full(Exception):
        pass

    def sink(record):
        raise Full

    layer = tt.RNN(8, 8, seed=0)
    with tt.FlowMonitor(layer, sinks=[sink]), pytest.raises(Full):
        train(layer, 1)
    train(layer, 1)


def test_losses_are_kept():
    monitor = tt.FlowMonitor(tt.RNN(2, 2))
    for loss in (1, 0.5, np.float32(0.25), math.nan):
        monitor.add_loss(loss)
    assert monitor.losses[:3] == [1.0, 0.5, 0.25]
    assert math.isnan(monitor.losses[3])
    with pytest.raises(TypeError, match="loss must be a number, got str"):
        monitor.add_loss("one")
    monitor.close()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([3], {}, TypeError, "layer must be a throughtime layer, got int"),
        ([tt.Linear(2, 2)], {}, ValueError, "no recurrent layer to watch"),
        ([tt.RNN(2, 2)], {"every": 0}, ValueError, "every must be at least 1, got 0"),
        ([tt.RNN(2, 2)], {"every": 1.5}, TypeError, "every must be an int, got 1.5"),
        ([tt.RNN(2, 2)], {"range": "double"}, ValueError, "range must be one of 'float', 'full', got 'double'"),
        ([tt.RNN(2, 2)], {"sinks": [3]}, TypeError, r"sinks\[0\] must be callable with a record, got int"),
        ([tt.RNN(2, 2)], {"sinks": print}, TypeError, "sinks must be a sequence of functions, got builtin"),
    ],
)
def test_what_is_wrong_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        tt.FlowMonitor(*arguments, **options)


def test_a_torch_module_is_sent_to_its_own_monitor():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"throughtime\.torch\.FlowMonitor"):
        tt.FlowMonitor(torch.nn.LSTM(2, 2))


# Records


def test_a_record_is_strict_json():
    layer = tt.LSTM(2, 3, seed=0)
    x = np.full((5, 1, 2), np.nan, np.float32)
    with tt.FlowMonitor(layer, every=1) as monitor:
        layer.forward(x).backward(np.ones((5, 1, 3), np.float32), clip=1.0)
    (record,) = monitor.history
    read = json.loads(json.dumps(record.as_dict(), allow_nan=False))
    assert read["step"] == 0
    assert read["lags"] == [0, 1, 2, 4]
    assert read["gamma"] == ["nan"]
    assert set(read) == set(vars(record))
    assert all(math.isfinite(value) for value in record.scalars().values())
    assert "not finite" in str(record)


def test_scalars_name_quantity_layer_and_row():
    layer = tt.GRU(2, 3, num_layers=2, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        tape = layer.forward(np.ones((5, 1, 2), np.float32))
        tape.backward(np.ones_like(tape.output))
    (record,) = monitor.history
    scalars = record.scalars()
    assert scalars["flow_gamma/GRU.l1"] == record.gamma[1]
    assert scalars["flow_log10_norm/GRU.l0/lag_4"] == record.log10_norm[0, -1]
    assert scalars["flow_cancellation/GRU.weight_hh_l1"] == record.cancellation["weight_hh_l1"]
