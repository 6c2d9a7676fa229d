"""Copies of optimisers, tapes, gradients and results of analyses, however made: they give the same and stand alone."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from copies import COPIES, LAYERS, F, numbers

OPTIMIZERS = {"SGD": lambda: tt.optim.SGD(0.1, momentum=0.9), "Adam": tt.optim.Adam, "AdamW": tt.optim.AdamW}
TAPES = {
    **{name: make for name, make in LAYERS.items() if name != "LSTM"},
    **{f"LSTM, {memory}": LAYERS["LSTM"] for memory in ("full", "states", "checkpoint")},
    "stacked GRU": lambda: tt.GRU(F, F, 2, batch_first=True, seed=0),
    "Embedding": lambda: tt.Embedding(F, F, seed=0),
    "BatchNorm": lambda: tt.BatchNorm(F),
    "GELU": lambda: tt.GELU(),
}


def by_mapped_file(value, folder):
    """joblib leaves the arrays in the file, read-only."""
    joblib = pytest.importorskip("joblib")
    joblib.dump(value, folder / "value")
    return joblib.load(folder / "value", mmap_mode="r")


WAYS = [*COPIES, "copy", "mapped file"]


@pytest.fixture(params=WAYS)
def copied(request, tmp_path):
    """A function that copies a value in one of all ways."""
    if request.param == "mapped file":
        return lambda value: by_mapped_file(value, tmp_path)
    return copy.copy if request.param == "copy" else COPIES[request.param]


def same(one, other):
    """Whether two values of the same structure hold the same numbers."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one) or hasattr(one, "__dict__"):
        return type(one) is type(other) and same(vars(one), vars(other))
    return one == other


def tape_of(name):
    layer, x = TAPES[name](), numbers(5, 2, F)
    memory = name.partition(", ")[2]
    return layer.forward(
        np.array([[0, 2], [1, 1]]) if name == "Embedding" else x, **({"memory": memory} if memory else {})
    )


@pytest.mark.parametrize("name", TAPES)
def test_a_copied_tape_gives_the_same_gradients(name, copied):
    tape = tape_of(name)
    other, d_output = copied(tape), numbers(*tape.output.shape, seed=1)
    assert_same_bits(other.output, tape.output)
    grads, expected = other.backward(d_output), tape.backward(d_output)
    assert same(grads, expected)
    assert same(copied(grads), expected)


def test_a_copied_tape_keeps_what_a_tape_has(copied):
    """With lengths, resets and masks, of two layers that share memory; and its size."""
    layer, lengths = tt.LSTM(F, F, 2, zoneout=0.5, seed=0), np.array([3, 5])
    tape = layer.forward(numbers(5, 2, F), lengths=lengths, resets=np.eye(5, 2, dtype=bool))
    other = copied(tape)
    for name in ("output", "final_state", "hidden", "cell", "gates", "masks", "nbytes"):
        assert same(getattr(other, name), getattr(tape, name)), name


def test_a_tape_of_inference_is_copied_too(copied):
    tape = tt.GRU(F, F, seed=0).forward(numbers(5, 2, F), output="last", training=False)
    assert_same_bits(copied(tape).output, tape.output)


def test_nothing_observes_the_backward_of_a_copy(copied):
    """The id of its layer may be another layer's in another process."""
    layer = tt.GRU(F, F, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        tape = layer.forward(numbers(5, 2, F))
        copied(tape).backward(np.ones_like(tape.output))
        assert len(monitor.history) == 0
        tape.backward(np.ones_like(tape.output))
        assert len(monitor.history) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copied_optimizer_continues(name, copied):
    """Alone: its state is no memory of the original's, except in a shallow copy."""
    layer, optimizer = tt.GRU(F, F, seed=0), OPTIMIZERS[name]()
    grads = {name: np.ones_like(array) for name, array in layer.parameters.items()}
    optimizer.step(layer.parameters, grads)
    own, shallow = copy.deepcopy(layer.parameters), copied is copy.copy
    before, other = optimizer.state_dict(), copied(optimizer)
    assert repr(other) == repr(optimizer)
    other.step(own, grads)
    if not shallow:
        assert_same_bits(optimizer.state_dict(), before)
        optimizer.step(layer.parameters, grads)
        assert_same_bits(own, layer.parameters)
        assert_same_bits(other.state_dict(), optimizer.state_dict())


def records():
    layer = tt.GRU(F, F, seed=0)
    with tt.FlowMonitor(layer, every=1) as monitor:
        tape = layer.forward(numbers(5, 2, F))
        tape.backward(np.ones_like(tape.output))
    return tuple(monitor.history)


RESULTS = {
    "flow": lambda: tt.gradient_flow(LAYERS["RNN"](), numbers(9, 2, F)),
    "flow of a stack": lambda: tt.gradient_flow(LAYERS["Sequential"](), numbers(9, 2, F)),
    "diagnosis": lambda: tt.diagnose(LAYERS["RNN"](), numbers(9, 2, F)),
    "fixed points": lambda: tt.fixed_points(LAYERS["RNN"](), numbers(F), numbers(3, F)),
    "spread": lambda: tt.lyapunov_spectrum(LAYERS["RNN"](), numbers(50, 1, F), return_spread=True)._asdict(),
    "record of a monitor": lambda: records()[0],
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_analyses_are_copied(name, copied):
    result = RESULTS[name]()
    assert same(copied(result), result)


def test_a_mapped_norm_learns_its_statistics(tmp_path):
    norm, x = tt.BatchNorm(F), numbers(5, 2, F)
    other = by_mapped_file(norm, tmp_path)
    norm.forward(x)
    other.forward(x)
    assert_same_bits(other.buffers, norm.buffers)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_monitor_is_not_copied(way):
    with (
        tt.FlowMonitor(tt.GRU(F, F), every=1) as monitor,
        pytest.raises(TypeError, match="a FlowMonitor cannot be copied or pickled; its history and losses can"),
    ):
        way(monitor)


def test_arrays_are_saved_by_name_without_pickle(tmp_path):
    """Parameters with running statistics, gradients, and what else is a dict of arrays."""
    stack = tt.Sequential(tt.GRU(F, F, seed=0), tt.BatchNorm(F))
    grads = stack.forward(numbers(5, 2, F)).backward(numbers(5, 2, F, seed=1))
    for arrays in ({**stack.parameters, **stack.buffers}, grads.parameters, stack.forward(numbers(5, 2, F)).masks):
        np.savez(tmp_path / "arrays.npz", **arrays)
        with np.load(tmp_path / "arrays.npz") as file:
            assert_same_bits(dict(file), arrays)
    np.savez(tmp_path / "arrays.npz", **stack.parameters, **stack.buffers)
    other = tt.Sequential(tt.GRU(F, F, seed=1), tt.BatchNorm(F))
    with np.load(tmp_path / "arrays.npz") as file:
        other.load_parameters(file)
    assert_same_bits({**other.parameters, **other.buffers}, {**stack.parameters, **stack.buffers})
