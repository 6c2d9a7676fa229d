"""Recurrent layers on the device: placement, and every option against the CPU's layer in float64."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import throughtime as tt
from comparison import assert_close, assert_norms_close, assert_same_bits, rounding_bound
from comparison import wide as in_float64
from cuda_side import KERNELS, on_host, placed
from problems import ALL_TIMESTEPS, FORMS, KINDS, Problem, reference_forward, results
from throughtime import cuda
from throughtime.backend.cuda import force

DEVICE = "cpu" if KERNELS.is_stand_in else "cuda"
FLOATS = ("float32", "bfloat16", "float16")
HALVES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # unit roundoffs


def wide(value):
    """Device arrays as the input of the CPU's layer in float64."""
    return in_float64(on_host(value))


def layers(problem, dtype, **options):
    """The device's layer, and the CPU's layer in float64 with the same parameters."""
    ours = problem.layer(seed=1, **options).to("cuda", dtype=dtype)
    truth = dataclasses.replace(problem, dtype="float64").layer(**options)
    truth.load_parameters(ours.parameters)
    return ours, truth


def bound(problem, dtype):
    """For float32, the bound of the largest error, as on the CPU.

    For 16-bit numbers, the bound of the error's root mean square. On any path, a step rounds at most 8 numbers that it
    reads, saves and passes on, forward and again backward; sums are float32. The squares of independent roundings, each
    u^2 / 3 in the mean, add up; this is the root of twelve times their sum.
    """
    exact = dataclasses.replace(problem, dtype="float32")
    if dtype == "float32":
        return exact.bound
    magnified = exact.bound / rounding_bound("float32", exact.terms)
    return 2 * np.sqrt(16 * problem.L * problem.T) * HALVES[dtype] * magnified


def assert_near(ours, expected, bound, what="", floor=0):
    """The root mean square of the error is at most `bound` times that of the tensor, or `floor`."""
    if isinstance(expected, tuple | dict):
        for key in range(len(expected)) if isinstance(expected, tuple) else expected:
            assert_near(ours[key], expected[key], bound, f"{what}[{key!r}]", floor)
        assert len(ours) == len(expected)
        return
    assert ours.shape == expected.shape, f"{what}: shape {ours.shape}, expected {expected.shape}"
    error, allowed = root_mean_square(ours - expected), bound * max(root_mean_square(expected), floor)
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


def root_mean_square(array):
    return np.sqrt(np.mean(np.square(array, dtype=np.float64)))


def run(layer, x, options, loss, asked):
    tape = layer.forward(x, **options)
    grads = tape.backward(**loss, **{"timesteps": ALL_TIMESTEPS, **asked})
    return tape, on_host(results(tape, grads) | ({"clipped": grads.clipped} if "clip" in asked else {}))


def check(problem, dtype="float32", options=None, asked=None, loss=None, x=None, **of_layer):
    """All results of the device's layer agree with the CPU's, which uses the masks that the device drew."""
    options, asked = options or {}, asked or {}
    ours, truth = layers(problem, dtype, **of_layer)
    x = placed(problem.x if x is None else x, dtype)
    options, loss = placed(options, dtype), placed(loss or problem.loss, dtype)
    tape, found = run(ours, x, options, loss, asked)
    _, expected = run(truth, wide(x), wide(options) | {"masks": wide(tape.masks)}, wide(loss), asked)
    norms = found.pop("parameter_norms"), expected.pop("parameter_norms")
    if "tape.hidden" in expected and expected["gates"].ndim == 4:
        record = reference_forward(problem, {"masks": problem.masks})
        assert_norms_close(*norms, problem, expected, bound(problem, dtype), record)
    if dtype == "float32":
        assert_close(found, expected, bound(problem, dtype), floor=np.max(np.abs(expected["hidden"]), initial=0))
    else:
        assert_near(found, expected, bound(problem, dtype), floor=root_mean_square(expected["hidden"]))


# Placement


def test_a_layer_moves_and_comes_back():
    layer = tt.LSTM(5, 6, num_layers=2, seed=0)
    before = {name: array.copy() for name, array in layer.parameters.items()}
    own = layer.parameters
    assert (layer.device, layer.to("cpu") is layer) == ("cpu", True)
    assert layer.to("cuda") is layer
    assert layer.parameters is own
    assert (layer.device, layer.dtype) == ("cuda", "float32")
    assert all(isinstance(array, cuda.DeviceArray) for array in layer.parameters.values())
    assert repr(layer) == "LSTM(5, 6, num_layers=2).to('cuda', dtype='float32')"
    layer.to("cpu")
    assert (layer.device, layer.dtype, repr(layer)) == ("cpu", np.float32, "LSTM(5, 6, num_layers=2)")
    assert_same_bits(layer.parameters, before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, np.float16])
def test_placement_rounds_to_the_dtype_asked_for_and_is_exact_from_there(dtype):
    layer = tt.GRU(5, 6, seed=0)
    name = str(dtype).removeprefix("torch.") if not isinstance(dtype, type) else "float16"
    expected = {key: torch.tensor(array).to(getattr(torch, name)) for key, array in layer.parameters.items()}
    layer.to("cuda", dtype=dtype)
    assert layer.dtype == name
    for key, array in layer.parameters.items():
        assert torch.equal(torch.from_dlpack(array).cpu(), expected[key])
    layer.to("cpu")
    assert layer.dtype == np.float32
    for key, array in layer.parameters.items():
        assert np.array_equal(array, expected[key].float().numpy())


def test_float64_is_not_on_the_device_unless_another_dtype_is_asked_for():
    layer = tt.RNN(2, 3, dtype="float64", seed=0)
    with pytest.raises(TypeError, match=r"'float32', 'bfloat16', 'float16' on CUDA, got 'float64'"):
        layer.to("cuda")
    assert (layer.device, layer.dtype) == ("cpu", np.float64)
    assert layer.to("cuda", dtype="float32").to("cpu", dtype="float64").dtype == np.float64


def test_saving_and_loading(tmp_path):
    layer = tt.LSTM(5, 6, proj_size=2, seed=0).to("cuda", dtype="bfloat16")
    layer.save(tmp_path / "layer.npz")
    loaded = tt.load(tmp_path / "layer.npz")
    assert repr(loaded) == "LSTM(5, 6, proj_size=2)"
    for name, array in layer.parameters.items():
        assert np.array_equal(loaded.parameters[name], array.numpy())


def test_parameters_load_from_host_and_device():
    source = tt.LSTM(5, 6, seed=1)
    module = torch.nn.LSTM(5, 6)
    on_device = {name: tensor.to(DEVICE) for name, tensor in module.state_dict().items()}
    layer = tt.LSTM(5, 6, seed=0).to("cuda")
    halves = copy.deepcopy(source).to("cuda", dtype="float16").parameters
    for given in (source.parameters, module.state_dict(), on_device, halves):
        layer.load_parameters(given)
        for name, array in layer.parameters.items():
            value = given[name].cpu() if isinstance(given[name], torch.Tensor) else given[name]
            expected = value if isinstance(value, np.ndarray) else value.numpy()
            assert np.array_equal(array.numpy(), expected.astype(np.float32))
    with pytest.raises(ValueError, match="missing 'weight_ih_l0'"):
        layer.load_parameters({})
    host = tt.LSTM(5, 6)
    host.load_parameters(layer.parameters)
    assert np.array_equal(host.parameters["bias_ih_l0"], layer.parameters["bias_ih_l0"].numpy())


def test_a_copy_is_its_own():
    layer = tt.RNN(2, 3, seed=0).to("cuda")
    other = copy.deepcopy(layer)
    other.parameters["bias_ih_l0"][...] = 7
    assert other.device == "cuda"
    assert not (layer.parameters["bias_ih_l0"].numpy() == 7).any()


def _misplaced(kind):
    layer = tt.RNN(2, 3).to("cuda")
    layer.parameters["bias_ih_l0"] = {
        "host": np.zeros(3, np.float32),
        "dtype": cuda.to_device(np.zeros(3), "float16"),
        "shape": cuda.to_device(np.zeros(4), "float32"),
        "gaps": cuda.to_device(np.zeros(6), "float32")[::2],
    }[kind]
    return layer(cuda.to_device(np.zeros((2, 1, 2)), "float32"))


def _on_device(dtype="float32"):
    return tt.LSTM(2, 3).to("cuda", dtype=dtype)


X = np.zeros((4, 2, 2), np.float32)
REFUSED = [
    (lambda: _on_device().forward(X), TypeError, r"x is on the host \(ndarray\): throughtime.cuda.to_device\(x\)"),
    (lambda: _on_device("float16")(cuda.to_device(X)), TypeError, "x has dtype float32, expected float16"),
    (lambda: _on_device()(cuda.to_device(X[..., :1])), ValueError, "1 features in its last axis.*input_size=2"),
    (lambda: _on_device()(cuda.to_device(X), lengths=[1, 5]), ValueError, r"lengths\[1\] is 5, expected 0 to T = 4"),
    (lambda: _on_device()(cuda.to_device(X), state=(X, X)), TypeError, r"state\[0\] is on the host"),
    (lambda: _on_device().forward(cuda.to_device(X), resets=X[..., 0]), TypeError, "resets has dtype float32"),
    (lambda: _misplaced("host"), TypeError, "must be a DeviceArray, got ndarray"),
    (lambda: _misplaced("dtype"), TypeError, "has dtype float16, expected float32"),
    (lambda: _misplaced("shape"), ValueError, r"has shape \(4,\), expected \(3,\)"),
    (lambda: _misplaced("gaps"), ValueError, "must be contiguous"),
    (lambda: tt.RNN(2, 3).to("gpu"), ValueError, "device must be 'cpu' or 'cuda', got 'gpu'"),
    (lambda: _on_device().astype("float32"), NotImplementedError, "astype is for layers on the CPU"),
    (lambda: tt.Linear(2, 3).to("cuda"), NotImplementedError, "Linear runs on the CPU only; RNN, GRU and LSTM run"),
    (lambda: tt.Sequential(_on_device()), NotImplementedError, "Sequential is for layers on the CPU"),
    (lambda: tt.ResidualBlock(tt.RNN(3, 3).to("cuda"), 3), NotImplementedError, "ResidualBlock is for layers"),
    (lambda: tt.gradient_flow(_on_device(), X), NotImplementedError, "gradient_flow is for layers on the CPU"),
    (lambda: tt.gradcheck(_on_device(), X), NotImplementedError, "gradcheck is for layers on the CPU"),
    (lambda: tt.lyapunov_spectrum(_on_device(), X), NotImplementedError, "is for layers on the CPU"),
    (lambda: tt.jacobians(_on_device(), X), NotImplementedError, "is for layers on the CPU"),
    (lambda: tt.fixed_points(_on_device(), X[0, 0], X[0]), NotImplementedError, "is for layers on the CPU"),
    (lambda: tt.connectivity(_on_device(), X, (0,)), NotImplementedError, "connectivity is for layers on the CPU"),
    (lambda: tt.truncation_error(_on_device(), X, 1), NotImplementedError, "truncation_error is for layers on the CPU"),
    (lambda: tt.clip_grad_norm(_on_device().parameters, 1.0), NotImplementedError, "on 'cuda'; torch's functions"),
    (
        lambda: tt.optim.SGD(0.1).step(_on_device().parameters, _on_device().parameters),
        NotImplementedError,
        "throughtime.optim works on arrays of the host, but parameters",
    ),
]


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED)
def test_what_does_not_fit_is_an_error_that_says_so(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_the_cpu_s_layers_say_where_an_array_of_the_device_belongs():
    class OnDevice:
        device = "cuda:0"

        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, **_):
            raise BufferError("not here")

    with pytest.raises(TypeError, match=r"x cannot be read as a NumPy array: .*on cuda:0: layer.to\('cuda'\)"):
        tt.RNN(2, 3)(OnDevice())


# Against the CPU


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_in_every_dtype(kind, dtype):
    """Two layers, two directions, states, lengths of 0 to T, resets, padding of NaN."""
    problem = Problem(kind, T=5, B=3, I=5, H=6, L=2, D=2, seed=3)
    x = problem.x.copy()
    for b, length in enumerate(problem.lengths):
        x[length:, b] = np.nan
    check(problem, dtype, {"state": problem.state, "lengths": problem.lengths, "resets": problem.resets}, x=x)


OPTIONS = {
    "plain": {},
    "one sequence of one step": {"of": {"T": 1, "B": 1}},
    "no bias": {"of": {"bias": False}},
    "a wider layer": {"of": {"H": 33, "I": 17, "B": 2}},
    "batch first": {"layer": {"batch_first": True}},
    "zoneout": {"of": {"zoneout": 0.3}},
    "zoneout in inference": {"of": {"zoneout": 0.3}, "options": {"training": False}},
    "weight dropout": {"of": {"weight_dropout": 0.4}},
    "dropout": {"of": {"L": 3, "D": 2}, "layer": {"dropout": 0.4}},
    "checkpoints": {"of": {"L": 2, "D": 2}, "options": {"memory": "checkpoint"}},
    "checkpoints of dropout": {"of": {"L": 2}, "layer": {"dropout": 0.4}, "options": {"memory": 2}},
    "states": {"of": {"L": 2, "D": 2}, "options": {"memory": "states"}},
    "truncated": {"of": {"L": 2, "D": 2}, "asked": {"truncate": 3}},
    "clipped": {"of": {"L": 2, "D": 2}, "asked": {"clip": 1.5}},
    "checked": {"of": {"L": 2}, "asked": {"check_finite": True}},
}


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, kind):
    case = OPTIONS[name]
    problem = Problem(kind, **{"T": 6, "B": 3, "I": 4, "H": 5, "seed": 5, **case.get("of", {})})
    loss, x = problem.loss, problem.x
    if name == "batch first":
        x, loss = x.swapaxes(0, 1), loss | {"d_output": loss["d_output"].swapaxes(0, 1)}
    check(problem, "float32", case.get("options"), case.get("asked"), loss, x, **case.get("layer", {}))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_unbatched(kind):
    problem = Problem(kind, B=1, L=2, D=2)
    loss = {
        name: tuple(part[:, 0] for part in value) if isinstance(value, tuple) else np.take(value, 0, -2)
        for name, value in problem.loss.items()
    }
    options = {"lengths": 5, "resets": problem.resets[:, 0]}
    check(problem, options=options, loss=loss, x=problem.x[:, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_last_output_alone(dtype):
    problem = Problem("lstm", L=2, D=2)
    loss = problem.loss | {"d_output": problem.d_output[0]}
    check(problem, dtype, {"output": "last", "lengths": problem.lengths}, loss=loss)
    check(problem, dtype, {"output": "last"}, loss={"d_output": problem.d_output[0]})


@pytest.mark.parametrize("dtype", FLOATS)
def test_dropped_units_have_numpy_s_bits(dtype):
    """The input of the layer above, and the dropped weights."""
    layer = tt.LSTM(4, 5, num_layers=2, dropout=0.3, weight_dropout=0.2, seed=0).to("cuda", dtype=dtype)
    tape = layer.forward(placed(Problem("lstm", I=4).x, dtype))
    mask, name = tape.masks["dropout_l0"].numpy(), "weight_hh_l1"
    assert tape.masks["dropout_l0"].dtype == "bool"
    below = tape.hidden[0].numpy().astype(np.float32)
    scaled = np.where(mask, np.float32(0), below) * (np.float32(1) / np.float32(0.7))
    assert_same_bits(tape.record.inputs[1].numpy(), cuda.to_device(scaled, dtype).numpy())
    weight = layer.parameters[name].numpy().astype(np.float32)
    scaled = np.where(tape.masks[name].numpy(), np.float32(0), weight) * (np.float32(1) / np.float32(0.8))
    assert_same_bits(tape.record.parameters[name].numpy(), cuda.to_device(scaled, dtype).numpy())


@pytest.mark.parametrize("dtype", FLOATS)
def test_inference_gives_what_forward_gives(dtype):
    problem = Problem("lstm", L=2, D=2)
    layer, _ = layers(problem, dtype)
    x, state = placed((problem.x, problem.state), dtype)
    output, final = layer(x, state, problem.lengths)
    tape = layer.forward(x, state, problem.lengths)
    assert_same_bits((output.numpy(), *on_host(final)), (tape.output.numpy(), *on_host(tape.final_state)))
    assert tape.nbytes > layer(x)[0].nbytes


def test_backward_again_has_the_same_bits_and_the_weights_of_the_forward():
    problem = Problem("gru", L=2)
    layer, _ = layers(problem, "float32")
    x, loss = placed((problem.x, problem.loss), "float32")
    tape = layer.forward(x)
    first = on_host(results(tape, tape.backward(**loss, timesteps=ALL_TIMESTEPS)))
    layer.parameters["weight_hh_l0"][...] = 0
    assert_same_bits(on_host(results(tape, tape.backward(**loss, timesteps=ALL_TIMESTEPS))), first)


@pytest.mark.parametrize("kind", FORMS)
def test_no_sequences(kind):
    problem = Problem(kind, B=0, L=2, D=2)
    layer, _ = layers(problem, "bfloat16")
    x, loss = placed((problem.x, problem.loss), "bfloat16")
    tape = layer.forward(x, lengths=np.zeros(0, np.int64))
    grads = tape.backward(**loss, timesteps=ALL_TIMESTEPS)
    assert (tape.output.shape, grads.input.shape) == ((7, 0, 2 * problem.width), (7, 0, 5))
    for array in (*grads.parameters.values(), *grads.parameter_norms.values()):
        assert not array.numpy().any()


def test_arrays_come_and_go_by_dlpack():
    """torch tensors as inputs, including lengths and resets; torch sees the memory of the results."""
    problem = Problem("lstm", dtype="float32")
    layer, truth = layers(problem, "float32")
    x = torch.tensor(problem.x, device=DEVICE, requires_grad=True)
    lengths, resets = torch.tensor(problem.lengths, device=DEVICE), torch.tensor(problem.resets, device=DEVICE)
    tape = layer.forward(x, lengths=lengths, resets=resets)
    output = torch.from_dlpack(tape.output)
    assert output.data_ptr() == tape.output._view.ctypes.data
    expected = truth.forward(problem.x.astype(np.float64), lengths=problem.lengths, resets=problem.resets)
    assert_close(output.cpu().numpy(), expected.output, problem.bound)
    grads = tape.backward(torch.ones_like(output))
    expected = expected.backward(np.ones_like(expected.output))
    assert_close(torch.from_dlpack(grads.input).cpu().numpy(), expected.input, problem.bound)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_matmul_precision_is_the_process_s(precision):
    problem = Problem("lstm", H=16, I=9)
    ours, truth = layers(problem, "float32")
    x = placed(problem.x, "float32")
    before, expected = ours(x)[0].numpy(), truth(wide(x))[0]
    tt.set_matmul_precision(precision)
    try:
        found = ours(x)[0].numpy()
    finally:
        tt.set_matmul_precision("highest")
    loss = {"highest": 1, "high": 3 * 2**6, "medium": 2 * 2**15}[precision]  # see test_precision.py
    assert_close(found, expected, bound(problem, "float32") * loss)
    assert np.array_equal(found, before) == (precision == "highest")


def test_the_kernels_are_told_stream_and_way(monkeypatch):
    told, module = [], cuda.extension.extension()
    forward, backward = module.forward, module.backward
    monkeypatch.setattr(module, "forward", lambda cell, p: (told.append(p), forward(cell, p))[1])
    monkeypatch.setattr(module, "backward", lambda cell, p, d: (told.append(p), backward(cell, p, d))[1])
    layer, x = tt.GRU(5, 6, seed=0).to("cuda"), placed(Problem("gru").x, "float32")
    layer.forward(x).backward(cuda.to_device(np.ones((7, 3, 6)), "float32"))
    with force(mode="stepwise", chunk=2):
        layer(x)
    assert [(p["type"], p["stream"], p["terms"], p["mode"], p["chunk"]) for p in told] == [
        ("float32", 0, 3, "free", 0),
        ("float32", 0, 3, "free", 0),
        ("float32", 0, 3, "stepwise", 2),
    ]
    with force(mode="by hand"), pytest.raises(ValueError, match="mode"):
        layer(x)


@pytest.mark.parametrize("where", ["d_output", "d_final_state", "weight"])
@pytest.mark.parametrize("D", [1, 2])
def test_check_finite_names_what_the_cpu_names(where, D):
    problem = Problem("lstm", L=2, D=D, dtype="float32")
    ours, truth = layers(problem, "float32")
    d_output, (d_h, d_c) = problem.d_output.copy(), map(np.copy, problem.d_final_state)
    if where == "d_output":
        d_output[3, 1, 2] = np.nan
    elif where == "d_final_state":
        d_c[1, 0, 0] = np.inf
    else:
        ours.parameters["weight_ih_l0"][0, 0] = truth.parameters["weight_ih_l0"][0, 0] = np.nan
    said = []
    for layer, put in ((ours, lambda array: cuda.to_device(array, "float32")), (truth, wide)):
        tape = layer.forward(put(problem.x.astype(layer.dtype)))
        loss = put(d_output.astype(layer.dtype)), tuple(put(d.astype(layer.dtype)) for d in (d_h, d_c))
        with pytest.raises(FloatingPointError) as error:
            tape.backward(*loss, check_finite=True)
        said.append(str(error.value))
    assert said[0] == said[1]
