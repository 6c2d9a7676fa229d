"""The extension itself: its functions compute, or raise TypeError or ValueError; they never crash."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from problems import GATE_TIMESTEPS
from throughtime import _core

F32 = np.dtype(np.float32)
T, B, I, H = 5, 3, 4, 6  # noqa: E741


def array(*shape, dtype=np.float32):
    return np.full(shape, 0.5, dtype)


def recurrent():
    saved = array(T, *(B if size is None else size for size in saved_shape()))
    return {
        "x": array(T, B, I),
        "parameters": {
            "weight_ih": array(4 * H, I),
            "weight_hh": array(4 * H, H),
            "bias_ih": array(4 * H),
            "bias_hh": array(4 * H),
        },
        "states": {"hidden": array(T + 2, B, H), "cell": array(T + 2, B, H)},
        "lengths": np.array([5, 0, 3]),
        "resets": np.zeros((T, B), bool),
        "saved": saved,
        "every": 0,
        "reverse": False,
        "zoneout": {"hidden": np.zeros((T, B, H), bool), "cell": 0.0},
        "terms": 3,
    }


def saved_shape():
    units, *rest = _core.saved_shape("lstm", False, H)
    return (units, B, *rest)


def recurrent_gradients():
    parameters = {name: array(*values.shape) for name, values in recurrent()["parameters"].items()}
    return {
        "d_output": array(T, B, H),
        "d_input": array(T, B, I),
        "d_cell": array(T, B, H),
        "d_states": {"hidden": array(T, B, H), "cell": array(T, B, H)},
        **{f"d_{name}": array(T, B, 4 * H) for name in GATE_TIMESTEPS},
        "clipped": np.zeros((T, B), bool),
        "dropped": np.zeros((4 * H, H), bool),
        "d_final_state": {"hidden": array(B, H), "cell": array(B, H)},
        "d_initial_state": {"hidden": array(B, H), "cell": array(B, H)},
        "d_parameters": parameters,
        "norms": {name: array(T, dtype=np.float64) for name in parameters},
        "truncate": 2,
        "clip": 1.0,
        "add_to_input": False,
    }


def attention():
    names = {name: array(T, B, H) for name in ("q", "k", "v", "output")}
    lengths = np.array([5, 0, 3])
    return {**names, "saved": array(B, 2, 2, T), "lengths": lengths, "heads": 2, "back": T, "ahead": 0}


def rows(*names):
    return {name: array(7, H) for name in names}


CALLS = {
    "forward": lambda: ["lstm", recurrent() | {"output": array(T, B, H)}],
    "backward": lambda: ["lstm", recurrent(), recurrent_gradients()],
    "attention_forward": lambda: [attention()],
    "attention_backward": lambda: [attention(), {name: array(T, B, H) for name in ("d_output", "d_q", "d_k", "d_v")}],
    "layer_norm_forward": lambda: [
        {
            **rows("x", "branch", "sum", "normalised"),
            "weight": array(H),
            "bias": array(H),
            "statistics": array(7, 4),
            "scale": 1.0,
            "eps": 1e-5,
        }
    ],
    "layer_norm_backward": lambda: [
        {
            **rows("sum", "d_sum", "d_normalised", "d_x", "d_branch"),
            **{name: array(H) for name in ("weight", "d_weight", "d_bias")},
            "statistics": array(7, 4),
            "scale": 1.0,
        }
    ],
    "activation_forward": lambda: ["gelu", {**rows("x", "y"), "bias": array(H)}],
    "activation_backward": lambda: ["gelu", {**rows("saved", "d"), "d_bias": array(H)}],
    "linear_forward": lambda: [{"x": array(7, I), "weight": array(H, I), "bias": array(H), "y": array(7, H)}],
    "linear_backward": lambda: [
        {
            "x": array(7, I),
            "weight": array(H, I),
            "d_y": array(7, H),
            "d_x": array(7, I),
            "d_weight": array(H, I),
            "d_bias": array(H),
        }
    ],
    "embedding_forward": lambda: [{"indices": np.arange(7), "weight": array(8, H), "output": array(7, H)}],
    "embedding_backward": lambda: [{"indices": np.arange(7), "d_weight": array(8, H), "d_output": array(7, H)}],
    "cross_entropy": lambda: [
        {**rows("logits", "d_logits"), "targets": np.arange(7) % H, "ignore_index": -100},
    ],
    "squared_error": lambda: [{name: array(7) for name in ("prediction", "target", "d_prediction")}],
}


def places(value, path=()):
    """The positions of arrays and numbers in the arguments of a call."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
        if path:
            yield path
    elif not isinstance(value, str):
        yield path


def replaced(arguments, path, change):
    """The arguments with the value at this position replaced."""
    *outer, last = path
    holder = arguments
    for key in outer:
        holder = holder[key]
    holder[last] = change(holder[last])
    return arguments


def read_only(value):
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    return value


def misaligned(value):
    if not isinstance(value, np.ndarray) or value.itemsize == 1:
        return value
    memory = np.zeros(value.nbytes + 1, np.uint8)[1:]
    return memory.view(value.dtype).reshape(value.shape)


def as_array(change):
    return lambda value: change(value) if isinstance(value, np.ndarray) else value


CHANGES = {
    "None": lambda value: None,
    "list": lambda value: value.tolist() if isinstance(value, np.ndarray) else [value],
    "nothing": lambda value: [],
    "pairs": lambda value: iter(value.items()) if isinstance(value, dict) else value,
    "text": lambda value: "text",
    "bytes": lambda value: b"12345678",
    "huge": lambda value: 10**400,
    "negative": lambda value: -1,
    "far negative": lambda value: -(2**63),
    "large": lambda value: 2**62,
    "nan": lambda value: float("nan"),
    "complex": lambda value: 1j,
    "memoryview": as_array(lambda value: memoryview(value)),
    "objects": as_array(lambda value: value.astype(object)),
    "complex numbers": as_array(lambda value: value.astype(complex)),
    "other floats": as_array(lambda value: value.astype(np.float16)),
    "other bytes": as_array(lambda value: value.astype(value.dtype.newbyteorder())),
    "doubles": as_array(lambda value: value.astype(np.float64)),
    "times": as_array(lambda value: value.astype("m8[s]")),
    "shorter": as_array(lambda value: value[:-1]),
    "empty": as_array(lambda value: value[:0]),
    "no features": as_array(lambda value: value[..., :0]),
    "scalar": as_array(lambda value: value.reshape(-1)[0]),
    "one number": as_array(lambda value: value.reshape(-1)[0].reshape(())),
    "flat": as_array(lambda value: value.reshape(-1)),
    "one axis more": as_array(lambda value: value[None]),
    "turned": as_array(lambda value: np.asfortranarray(value)),
    "every second": as_array(lambda value: np.repeat(value, 2, axis=-1)[..., ::2]),
    "backwards": as_array(lambda value: value[::-1]),
    "repeated": as_array(lambda value: np.broadcast_to(value.reshape(-1)[:1], value.shape)),
    "read-only": read_only,
    "misaligned": misaligned,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right_as_they_stand(name):
    getattr(_core, name)(*CALLS[name]())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_errors(name, change):
    """Replaces one argument after the other. A call may accept the new value, for example of an option."""
    for path in places(CALLS[name]()):
        arguments = replaced(CALLS[name](), path, CHANGES[change])
        with suppress(TypeError, ValueError):
            getattr(_core, name)(*arguments)


def dicts(value):
    """All dicts in the arguments of a call."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict):
            yield inner
            yield from dicts(inner)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_entry_is_an_error(name):
    """In each dict of the arguments: a misspelt name must not count as a missing entry."""
    for i in range(len(list(dicts(CALLS[name]())))):
        arguments = CALLS[name]()
        list(dicts(arguments))[i]["resetz"] = 1
        with pytest.raises(ValueError, match="unknown entry 'resetz'"):
            getattr(_core, name)(*arguments)


def lists(value):
    if isinstance(value, dict):
        return {key: lists(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", CALLS)
def test_lists_are_no_arrays(name):
    """An array made from a list would be freed before a kernel reads it."""
    with pytest.raises(TypeError, match="NumPy array"):
        getattr(_core, name)(*map(lists, CALLS[name]()))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("zero", [T, B, I, H, 7])
def test_empty_axes(name, zero):
    """For each axis of this size, empty arrays either need no work or raise an error."""

    def without(value):
        if isinstance(value, dict):
            return {key: without(inner) for key, inner in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        return value[tuple(slice(0) if size == zero else slice(None) for size in value.shape)]

    with suppress(TypeError, ValueError):
        getattr(_core, name)(*map(without, CALLS[name]()))


@pytest.mark.parametrize("dtype", [object, "O,f4", "U3", "S4", "V8", "m8[s]", "M8[s]"])
def test_new_arrays_are_of_numbers(dtype):
    with pytest.raises(TypeError, match="dtype"):
        _core.empty((3,), np.dtype(dtype))


@pytest.mark.parametrize("shape", [(-1,), (2**62, 4), (2**40, 2**40), (3, -(2**63)), (2**62, 2**62, 0)])
def test_new_arrays_have_a_size(shape):
    with pytest.raises(ValueError, match="shape"):
        _core.empty(shape, F32)


@pytest.mark.parametrize("shape", [3, None, "3", (2.5,), (10**400,), ("a",)])
def test_shapes_are_integers(shape):
    with pytest.raises(TypeError):
        _core.empty(shape, F32)


def row(*arrays):
    return [tuple(arrays)]


def test_rows_of_optimisers():
    """If the kernels cannot process an array directly, the answer is False, and nothing is written."""
    values = [array(4) for _ in range(4)]
    counter = np.zeros((), np.int64)
    assert _core.adam(row(*values, counter), 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)
    assert counter == 1
    before = values[0].copy()
    wrong_counters = [0, None, [0], np.zeros((), np.int32), np.zeros(0, np.int64), np.zeros((), object), np.int64(0)]
    fixed = np.zeros((), np.int64)
    fixed.flags.writeable = False
    for wrong in [*wrong_counters, fixed]:
        assert not _core.adam(row(*values, wrong), 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)
    for wrong in (None, [0.5] * 4, array(3), array(4, dtype=np.float64), array(4).astype(object), array(8)[::2]):
        for i in range(4):
            given = [*values]
            given[i] = wrong
            assert not _core.adam(row(*given, counter), 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)
            assert i == 3 or not _core.sgd(row(*given[:3]), 0.1, 0.9)
    for wrong in ([()], [None], [values[:3]], [iter(values[:3])], ["text"]):
        assert not _core.sgd(wrong, 0.1, 0.9)
    assert _core.clip([array(4), None], 1.0) is None
    assert np.array_equal(values[0], before)


@pytest.mark.parametrize("call", [_core.sgd, _core.adam, _core.clip])
def test_rows_are_in_a_list(call):
    with pytest.raises(TypeError):
        call("rows", 0.1)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (_core.set_num_threads, [0]),
        (_core.set_num_threads, [-1]),
        (_core.set_num_threads, [100_000]),
        (_core.set_terms, [0]),
        (_core.force, ["family"]),
        (_core.force, ["", "split"]),
        (_core.force, ["", "", -1]),
        (_core.force, ["", "", 65_536]),
        (_core.peak, [float("inf")]),
        (_core.peak, [float("nan")]),
        (_core.peak, [-1.0]),
        (_core.borrow_threads, [{}]),
        (_core.borrow_threads, [{"omp_in_parallel": 1}]),
        (_core.forward, ["no such cell", {}]),
        (_core.saved_shape, ["no such cell", False, 3]),
        (_core.assume_level, ["no such level"]),
        (_core.activation_forward, ["no such activation", {"x": array(1, 1)}]),
    ],
)
def test_settings_are_in_range(call, arguments):
    with pytest.raises(ValueError, match=r"expected|named|no such"):
        call(*arguments)
