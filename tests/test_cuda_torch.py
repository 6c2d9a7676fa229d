"""throughtime.torch on CUDA tensors: modules against torch.nn in float64, and against layers of the same device.

Without a GPU, CPU tensors take the place of CUDA tensors (see stand_in.py), through the one table of tensor places;
tests of CUDA's streams, graphs and autocast are then skipped.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import types

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close
from problems import ALL_TIMESTEPS, TORCH_KINDS, Problem
from stand_in import load_cuda
from test_cuda import assert_near, bound
from torch_side import EXTRAS, laid_out, module_of, together, torch

ours = pytest.importorskip("throughtime.torch")

from throughtime.backend.cuda import force  # noqa: E402
from throughtime.torch import places  # noqa: E402
from throughtime.torch.add_layer_norm import operator as add_layer_norm  # noqa: E402
from throughtime.torch.add_layer_norm import operator_backward as add_layer_norm_backward  # noqa: E402
from throughtime.torch.operators import recurrent, recurrent_backward  # noqa: E402
from throughtime.torch.places import tensor_of  # noqa: E402
from throughtime.torch.plan import call_text, plan_of  # noqa: E402

_cuda = load_cuda()
if not _cuda.is_stand_in and not torch.cuda.is_available():
    pytest.skip("this torch is without CUDA", allow_module_level=True)
DEVICE = "cpu" if _cuda.is_stand_in else "cuda"
on_a_gpu = pytest.mark.skipif(_cuda.is_stand_in, reason="there is no GPU")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("RNN", "GRU", "LSTM")


class StandIn(places.Cuda):
    """CUDA's entry in the table, for CPU tensors, which have no streams."""

    def current(self, device):
        return contextlib.nullcontext()


@pytest.fixture(autouse=True)
def played(monkeypatch):
    if _cuda.is_stand_in:
        monkeypatch.setitem(places.PLACES, "cpu", StandIn())
    torch._dynamo.reset()
    plan_of.cache_clear()
    yield
    plan_of.cache_clear()


def placed(values, dtype):
    """Leaves on the device, from arrays alone and in tuples."""
    if isinstance(values, tuple):
        return tuple(placed(value, dtype) for value in values)
    return torch.tensor(values, dtype=dtype, device=DEVICE).requires_grad_()


def exact(values):
    """The same numbers as float64 leaves on the CPU."""
    if isinstance(values, tuple):
        return tuple(exact(value) for value in values)
    return values.detach().cpu().double().requires_grad_()


def on_host(values):
    """NumPy arrays in float64, for comparison, from tensors and device arrays, alone, in tuples and dicts."""
    if isinstance(values, dict):
        return {name: on_host(value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(on_host(value) for value in values)
    if isinstance(values, tt.cuda.DeviceArray):
        return values.numpy().astype(np.float64)
    return values.detach().cpu().double().numpy()


def same(ours, theirs):
    assert_close(on_host(ours), on_host(theirs), 0.0)


def modules(problem, dtype, **options):
    """Ours on the device, and torch's in float64 with the same parameters."""
    mine = module_of(problem, dtype, ours, **options).to(DEVICE)
    theirs = module_of(problem, **options)
    theirs.load_state_dict({name: tensor.cpu().double() for name, tensor in mine.state_dict().items()})
    return mine, theirs


def run(module, x, state=None):
    """Results and every gradient, for a loss with small whole numbers as weights."""
    output, final = module(x, state)
    random = np.random.default_rng(0)
    results = (output, *together(final))
    weights = [torch.tensor(random.integers(-2, 3, r.shape), dtype=r.dtype, device=r.device) for r in results]
    torch.autograd.backward(results, weights)
    return {"output": output, "final_state": final, **gradients(module, x, *together(() if state is None else state))}


def gradients(module, *tensors):
    parameters = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"parameters": parameters, **{f"tensor {k}": t.grad for k, t in enumerate(tensors) if t.grad is not None}}


def watch(monkeypatch, look):
    """Calls `look` with the problems passed to the kernels."""
    for name in ("forward", "backward"):
        kernel = getattr(_cuda, name)

        def spy(cell, problem, *rest, kernel=kernel):
            look(problem)
            return kernel(cell, problem, *rest)

        monkeypatch.setattr(_cuda, name, spy)


# Against torch


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize(("layout", "with_state"), [("time first", True), ("batch first", False), ("unbatched", True)])
def test_float32(kind, layout, with_state):
    """Layers, directions and layouts."""
    problem = Problem(kind, B=1 if layout == "unbatched" else 3, L=2, D=2, dtype="float32")
    batched, batch_first = layout != "unbatched", layout == "batch first"
    x = placed(laid_out(problem.x, batched, batch_first), torch.float32)
    state = placed(laid_out(problem.state, batched), torch.float32) if with_state else None
    mine, theirs = modules(problem, torch.float32, batch_first=batch_first)
    expected = run(theirs, exact(x), exact(state) if with_state else None)
    assert_close(on_host(run(mine, x, state)), on_host(expected), bound(problem, "float32"))


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_half_precision(kind, dtype):
    problem = Problem(kind, L=2, D=2, dtype="float32")
    x, state = placed(problem.x, dtype), placed(problem.state, dtype)
    mine, theirs = modules(problem, dtype)
    found, expected = run(mine, x, state), run(theirs, exact(x), exact(state))
    assert {tensor.dtype for tensor in (found["output"], x.grad, *found["parameters"].values())} == {dtype}
    assert_near(on_host(found), on_host(expected), bound(problem, str(dtype)[6:]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_small_whole_numbers_are_exact(dtype):
    """A relu network whose sums every type represents: equality, for any order of sums."""
    random = np.random.default_rng(1)
    mine = ours.RNN(4, 5, nonlinearity="relu", dtype=dtype, device=DEVICE)
    theirs = torch.nn.RNN(4, 5, nonlinearity="relu", dtype=torch.float64)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        values = torch.tensor(random.integers(-1, 2, one.shape) * (random.random(one.shape) < 0.4))
        one.data.copy_(values)
        other.data.copy_(values)
    x = torch.tensor(random.integers(-2, 3, (4, 3, 4)), dtype=torch.float64, requires_grad=True)
    expected = run(theirs, x)
    values = np.concatenate([value.ravel() for value in _flat(on_host(expected))])
    assert 0 < np.max(np.abs(values)) < 2**8  # so that eight bits represent each
    x = x.detach().to(DEVICE, dtype).requires_grad_()
    same(run(mine, x), expected)


def _flat(values):
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else ():
        yield from _flat(value)
    if isinstance(values, np.ndarray):
        yield values


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_packed_sequences(kind, is_sorted):
    problem = Problem(kind, T=9, B=6, D=2, dtype="float32")
    lengths = torch.tensor([9, 7, 4, 4, 2, 1] if is_sorted else [4, 9, 1, 7, 4, 2])
    x, state = placed(problem.x, torch.float32), placed(problem.state, torch.float32)
    found = []
    for module, inputs in zip(modules(problem, torch.float32), ((x, state), (exact(x), exact(state))), strict=True):
        packed = torch.nn.utils.rnn.pack_padded_sequence(inputs[0], lengths, enforce_sorted=is_sorted)
        output, final = module(packed, inputs[1])
        d = torch.randn(output.data.shape, generator=torch.Generator().manual_seed(0)).to(output.data)
        (output.data * d).sum().backward()
        results = {"output": output.data, "final": final, "batch_sizes": output.batch_sizes}
        found.append(results | gradients(module, inputs[0], *together(inputs[1])))
        assert (output.sorted_indices is None) == is_sorted
    assert_close(*map(on_host, found), bound(problem, "float32"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_add_layer_norm(dtype, scale):
    """Results round once (the sum before it is normalised). Gradients sum rounded numbers: each term of the sum over
    rows is off by one rounding of its own and of the sum, so 8 sqrt(rows) of them bound both."""
    norm = ours.AddLayerNorm(24, scale=scale, dtype=dtype, device=DEVICE)
    theirs = torch.nn.LayerNorm(24, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    theirs.load_state_dict({name: tensor.cpu().double() for name, tensor in norm.state_dict().items()})
    x, branch = (placed(np.random.default_rng(seed).standard_normal((7, 3, 24)), dtype) for seed in (0, 1))
    d = placed(np.random.default_rng(2).standard_normal((2, 7, 3, 24)), dtype).detach()

    def found(x, branch, d, module, call):
        total, normalised = call(x, branch)
        wanted = (x, branch, *module.parameters())
        both = torch.autograd.grad((total, normalised), wanted, (d[0], d[1]), retain_graph=True)
        one = torch.autograd.grad(normalised, wanted, d[1], retain_graph=True)
        return on_host((total, normalised, *both, *one, *torch.autograd.grad(total, (x, branch), d[0])))

    def separately(x, branch):
        total = x + scale * branch
        return total, theirs(total)

    expected = found(exact(x), exact(branch), exact(d), theirs, separately)
    mine = found(x, branch, d, norm, norm)
    assert_close(mine, expected, 8 * np.sqrt(21) * torch.finfo(dtype).eps / 2)
    assert norm(x, branch)[1].dtype is dtype


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_residual_blocks(norm):
    """Gradients of one step of a recurrent layer, and of the block's LayerNorm."""
    torch.manual_seed(0)
    block = ours.ResidualBlock(ours.GRU(6, 6), 6, norm=norm).to(DEVICE)
    x = placed(np.random.default_rng(0).standard_normal((7, 3, 6)), torch.float32)
    weights = torch.tensor(np.random.default_rng(1).integers(-2, 3, x.shape), device=DEVICE)
    (block(x) * weights).sum().backward()
    theirs = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(6), "sublayer": torch.nn.GRU(6, 6)}).double()
    theirs.load_state_dict({name: tensor.cpu().double() for name, tensor in block.state_dict().items()})
    wide = exact(x)
    inside = theirs["norm"](wide) if norm == "pre" else wide
    y = wide + theirs["sublayer"](inside)[0]
    ((y if norm == "pre" else theirs["norm"](y)) * weights.cpu()).sum().backward()
    allowed = bound(Problem("gru", I=6, L=2, dtype="float32"), "float32")  # the norm counts as a layer
    assert_close(on_host(gradients(block, x)), on_host(gradients(theirs, wide)), allowed)


# Against the layers of the same device


@pytest.mark.parametrize(("name", "options"), EXTRAS)
@pytest.mark.parametrize(
    ("memory", "dtype"), [("full", FLOATS[0]), ("states", FLOATS[1]), ("checkpoint", FLOATS[0]), (3, FLOATS[2])]
)
def test_our_options_give_what_the_layer_gives(name, options, memory, dtype):
    """The same bits, with the masks that torch's generator drew, and with recorded timesteps."""
    torch.manual_seed(0)
    module = getattr(ours, name)(5, 6, **options, memory=memory, dtype=dtype, device=DEVICE)
    layer = getattr(tt, name)(5, 6, **options).to("cuda", dtype=dtype)
    layer.load_parameters(module.state_dict())
    x = torch.randn(9, 4, 5, dtype=dtype, device=DEVICE, requires_grad=True)
    torch.manual_seed(1)
    output, final = module(x)
    d = torch.randn_like(output)
    with ours.record(module) as timesteps:
        output.backward(d)
    torch.manual_seed(1)
    masks = dict(zip(layer.architecture.mask_shapes(9, 4), module._masks(x, False), strict=True))
    tape = layer.forward(x, masks=masks, memory=memory)
    grads = tape.backward(d, timesteps=ALL_TIMESTEPS)
    same({"output": output, "final": final}, {"output": tape.output, "final": tape.final_state})
    same(gradients(module, x), {"parameters": grads.parameters, "tensor 0": grads.input})
    for recorded in vars(timesteps.backwards[0]):
        same(getattr(timesteps, recorded), getattr(grads, recorded))
    recorded = {"hidden", "gates", "parameter_norms"} | ({"cell"} if name == "LSTM" else set())
    assert set(vars(timesteps.backwards[0])) == recorded
    module.eval()
    same(module(x)[0], layer(x)[0])


def test_replaced_modules_share_their_parameters():
    model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(4, 6, 2), "head": torch.nn.Linear(6, 2)}).to(DEVICE)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    x = torch.randn(5, 3, 4, device=DEVICE)
    expected = on_host(copy.deepcopy(model["rnn"]).cpu().double()(exact(x))[0])
    ours.replace(model)
    assert type(model["rnn"]) is ours.LSTM
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    allowed = bound(Problem("lstm", T=5, B=3, I=4, L=2, dtype="float32"), "float32")
    assert_close(on_host(model["rnn"](x)[0]), expected, allowed)


# Effects of a call on tensors


@pytest.mark.skipif(not _cuda.is_stand_in, reason="a GPU has streams of its own")
def test_kernels_are_given_torchs_current_stream(monkeypatch):
    """And the tensor's device is current during calls and when results are allocated."""
    devices, seen = [], []

    @contextlib.contextmanager
    def device(of_tensor):
        devices.append(of_tensor)
        yield
        devices.pop()

    monkeypatch.setitem(places.PLACES, "cpu", places.Cuda())
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of_tensor: types.SimpleNamespace(cuda_stream=256))
    watch(monkeypatch, lambda problem: seen.append((problem["stream"], *devices)))
    x = torch.randn(5, 2, 3, requires_grad=True)
    ours.GRU(3, 4)(x)[0].sum().backward()
    assert seen == [(256, torch.device("cpu"))] * 2
    assert tt.cuda.current_stream() == 0


def test_results_are_torchs_memory(monkeypatch):
    """No memory of the extension's pool remains in use after a call."""
    monkeypatch.setattr(_cuda, "empty", lambda *_: pytest.fail("memory that is not torch's"))
    module = ours.LSTM(3, 4, 2, bidirectional=True, dropout=0.5, zoneout=0.1, weight_dropout=0.2).to(DEVICE)
    x = torch.randn(5, 2, 3, device=DEVICE, requires_grad=True)
    for memory in ("full", "states", 2):
        module.memory = memory
        with ours.record(module):
            module(x)[0].sum().backward()


def test_arrays_and_tensors_are_views_of_one_memory():
    """A view of an array becomes a tensor with the same memory, but for autograd it is no view of the other."""
    tensor = torch.arange(20.0, device=DEVICE)[5:17].reshape(4, 3)
    array = places.PLACES[DEVICE].array_of(tensor)
    assert tensor_of(array) is tensor
    part, expected = tensor_of(array[1:, ::2].swapaxes(0, 1)), tensor[1:, ::2].t()
    assert torch.equal(part, expected)
    assert (part.data_ptr(), part.stride(), part._is_view()) == (expected.data_ptr(), expected.stride(), False)
    assert tensor_of(array[2:2]).shape == (0, 3)


def test_tensors_are_used_where_they_lie(monkeypatch):
    """x, weights and the values that the forward stores for the backward are not copied, in either layout."""
    seen = {"x": set(), "weight_hh": set(), "saved": set()}

    def look(problem):
        arrays = {**problem, **problem["parameters"]}
        for key, found in seen.items():
            found.add(arrays[key].__array_interface__["data"][0])

    watch(monkeypatch, look)
    for batch_first in (False, True):
        for found in seen.values():
            found.clear()
        module = ours.GRU(3, 4, batch_first=batch_first).to(DEVICE)
        x = torch.randn(5, 2, 3, device=DEVICE, requires_grad=True)
        module(x)[0].sum().backward()
        assert seen["x"] == {x.data_ptr()}
        assert seen["weight_hh"] == {module.weight_hh_l0.data_ptr()}
        assert len(seen["saved"]) == 1


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3)])
def test_the_output_is_the_callers_to_write(shape):
    torch.manual_seed(0)
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.randn(shape, device=DEVICE)
    found = []
    for inplace in (False, True):
        module.zero_grad()
        output, (h_n, _) = module(x)
        (output.mul_(2) if inplace else output * 2).sum().backward(retain_graph=True)
        (h_n.mul_(2) if inplace else h_n * 2).sum().backward()
        found.append(gradients(module)["parameters"])
    same(found[1], found[0])


def test_what_is_not_contiguous_or_negated_is_right_too():
    """A transposed weight, an expanded state, views of an input, the expanded gradient of a sum."""
    problem = Problem("gru", B=4, I=6, H=6, dtype="float32")
    x, state = placed(problem.x, torch.float32), placed(problem.state[:, :1], torch.float32)
    found = []
    for module, (x_, h) in zip(modules(problem, torch.float32), ((x, state), (exact(x), exact(state))), strict=True):
        with torch.no_grad():
            module.weight_hh_l0.set_(module.weight_hh_l0.t().contiguous().t())
        spread = x_.repeat(2, 1, 2)[::2, :, ::2]
        output, h_n = module(spread, h.expand(-1, 4, -1))
        other, _ = module(torch.complex(x_.detach(), x_.detach()).conj().imag)  # the negation is still pending
        (output.sum() + h_n.sum() + other.sum()).backward()
        found.append({"output": output, "other": other, **gradients(module, x_, h)})
    assert_close(*map(on_host, found), 2 * bound(problem, "float32"))  # twice, for two calls


def test_what_is_frozen_gets_no_gradient():
    problem = Problem("lstm", L=2, dtype="float32")
    x = placed(problem.x, torch.float32)
    found = []
    for module, x_ in zip(modules(problem, torch.float32), (x.detach(), exact(x).detach()), strict=True):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in ("weight_ih_l1", "bias_hh_l1"))
        module(x_)[0].square().sum().backward()
        found.append(gradients(module)["parameters"])
    assert set(found[0]) == {"weight_ih_l1", "bias_hh_l1"}
    assert_close(*map(on_host, found), 2 * bound(problem, "float32"))  # twice, for a square


def test_no_gradient_where_none_is_wanted():
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.randn(5, 2, 3, device=DEVICE)
    with torch.no_grad():
        assert module(x)[0].grad_fn is None
    with torch.inference_mode():
        assert module(x)[0].is_inference()
        assert module(x[:, 0])[0].is_inference()
    assert module(x)[0].grad_fn is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch(name):
    module = getattr(ours, name)(3, 4, 2, bidirectional=True).to(DEVICE)
    x = torch.zeros(5, 0, 3, device=DEVICE, requires_grad=True)
    output, final = module(x)
    assert (output.shape, together(final)[0].shape) == ((5, 0, 8), (4, 0, 4))
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_a_write_between_forward_and_backward_is_torchs_error():
    module, x = ours.GRU(3, 4).to(DEVICE), torch.randn(5, 2, 3, device=DEVICE)
    output, _ = module(x)
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_modules_run_in_several_threads():
    module, x = ours.LSTM(8, 16).to(DEVICE), torch.randn(9, 4, 8, device=DEVICE)
    weights, found = tuple(module.parameters()), []
    expected = torch.autograd.grad(module(x)[0].square().sum(), weights)

    def work():
        found.append(torch.autograd.grad(module(x)[0].square().sum(), weights))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        same(one, expected)


def test_modules_are_moved_and_converted():
    module = ours.GRU(3, 4, 2)
    x = torch.randn(5, 2, 3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        other = copy.deepcopy(module).to(DEVICE, dtype)
        assert other(x.to(DEVICE, dtype))[0].dtype is dtype
    assert other.flatten_parameters() is None


def test_autocast_is_medium_precision_for_the_call_and_its_backward(monkeypatch):
    seen = []
    watch(monkeypatch, lambda problem: seen.append(problem["terms"]))
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.randn(5, 2, 3, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output, _ = module(x.bfloat16())
    output.sum().backward()
    assert (seen, output.dtype) == ([1, 1], torch.float32)
    module(x)[0].sum().backward()
    assert seen[2:] == [3, 3]


# Graphs of torch.compile


@pytest.mark.parametrize("dtype", FLOATS[:2])
@pytest.mark.parametrize("memory", ["full", 2])
def test_opcheck_of_the_recurrent_operators(dtype, memory):
    """Shapes, types and strides of the fake kernels, and results that do not alias; by torch's own checks."""
    module = ours.LSTM(5, 7, 2, bidirectional=True, dropout=0.4, batch_first=True, dtype=dtype, device=DEVICE)
    x = torch.randn(3, 5, 5, dtype=dtype, device=DEVICE, requires_grad=True)
    lengths, masks = torch.tensor([5, 0, 3], device=DEVICE), module._masks(x, True)
    text = call_text(module._text, dtype, True, memory, DEVICE)
    arguments = x, [], list(module.parameters()), lengths, masks, text, False
    torch.library.opcheck(recurrent, arguments, test_utils=("test_schema", "test_faketensor"))
    with torch.no_grad():
        results = recurrent(*arguments)
    weights = [weight.detach() for weight in module.parameters()]
    wanted = [True, False, *(index % 3 > 0 for index in range(len(weights)))]
    given = ([torch.randn_like(results[0]), None, None], x.detach(), weights, lengths, masks, results[3:])
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(recurrent_backward, (*given, text, False, wanted), **checks)


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_opcheck_of_the_layer_norm_operators(dtype):
    x, branch = (torch.randn(3, 4, 5, dtype=dtype, device=DEVICE) for _ in range(2))
    weight, bias = (torch.randn(5, dtype=dtype, device=DEVICE) for _ in range(2))
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(add_layer_norm, (x, branch, weight, bias, 0.5, 1e-5), **checks)
    total, _, statistics = add_layer_norm(x, branch, weight, bias, 0.5, 1e-5)
    torch.library.opcheck(add_layer_norm_backward, (branch, x, total, statistics, weight), **checks)


class Stack(torch.nn.Module):
    """Our layers, and additions."""

    def __init__(self):
        super().__init__()
        self.lstm = ours.LSTM(8, 16, 2, dropout=0.5)
        self.block = ours.ResidualBlock(ours.GRU(16, 8, bidirectional=True), 16, norm="post")
        self.norm = ours.AddLayerNorm(16)

    def forward(self, x):
        output, _ = self.lstm(x)
        total, normalised = self.norm(output, self.block(output))
        return total + normalised


@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_a_model_is_one_graph_for_all_sizes(dtype):
    """fullgraph raises if a graph breaks. The operators call the same kernels and give the same bits."""
    model = Stack().to(DEVICE, dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((6, 4, 8), (5, 3, 8)):
        x, found = torch.randn(sizes, dtype=dtype, device=DEVICE, requires_grad=True), []
        for call in (compiled, model):
            torch.manual_seed(0)
            output = call(x)
            output.backward(torch.ones_like(output))
            found.append({"output": output, **copy.deepcopy(gradients(model, x))})
            model.zero_grad()
            x.grad = None
        same(*found)


def test_modules_are_exported():
    module = ours.LSTM(3, 4).to(DEVICE).eval()
    steps, batch = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    x = torch.randn(5, 2, 3, device=DEVICE)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: steps, 1: batch},))
    x = torch.randn(7, 3, 3, device=DEVICE)
    same(program.module()(x)[0], module(x)[0])


# Errors


def test_float64_is_refused():
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=DEVICE)
    message = r"weights of torch.float64 on CUDA, only torch.float32, torch.bfloat16, torch.float16"
    with pytest.raises(NotImplementedError, match=message):
        ours.GRU(3, 4, dtype=torch.float64, device=DEVICE)(x)
    with pytest.raises(NotImplementedError, match=message):
        ours.AddLayerNorm(3, dtype=torch.float64, device=DEVICE)(x, x)


def test_tensors_of_two_devices_are_refused(monkeypatch):
    """Meta tensors stand for those of another device that has kernels."""
    monkeypatch.setitem(places.PLACES, "meta", places.PLACES[DEVICE])
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.zeros(5, 2, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"input is on device 'meta', expected 'c\w+(:0)?', that of the weights; use"):
        module(x.to("meta"))
    h = torch.zeros(1, 2, 4, device="meta")
    with pytest.raises(ValueError, match="hx is on device 'meta'"):
        module(x, (h, h))
    with pytest.raises(ValueError, match="branch is on device 'meta'"):
        ours.AddLayerNorm(3, device=DEVICE)(x, x.to("meta"))
    module.bias_hh_l0 = torch.nn.Parameter(module.bias_hh_l0.to("meta"))
    with pytest.raises(ValueError, match="bias_hh_l0 is on device 'meta'"):
        module(x)


def test_types_are_not_mixed():
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.zeros(5, 2, 3, device=DEVICE)
    with pytest.raises(
        TypeError, match=r"input has dtype torch.float16, expected torch.float32.*\.to\(torch.float32\)"
    ):
        module(x.half())
    with pytest.raises(TypeError, match=r"hx has dtype torch.bfloat16, expected torch.float32"):
        module(x, (torch.zeros(1, 2, 4, dtype=torch.bfloat16, device=DEVICE),) * 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 2, 4), r"input has 4 features.*input_size=3"),
        ((0, 2, 3), r"input has no timesteps"),
        ((3,), r"input has shape \(3,\), expected \(T, B, 3\), or \(T, 3\) unbatched"),
    ],
)
def test_sizes_that_do_not_fit(shape, message):
    module = ours.GRU(3, 4).to(DEVICE)
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(shape, device=DEVICE))
    with pytest.raises(ValueError, match=r"hx has shape \(1, 3, 4\), expected \(1, 2, 4\)"):
        module(torch.zeros(5, 2, 3, device=DEVICE), torch.zeros(1, 3, 4, device=DEVICE))


def test_what_autograd_may_not_do():
    module, x = ours.LSTM(3, 4).to(DEVICE), torch.randn(5, 2, 3, device=DEVICE, requires_grad=True)
    (d_x,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        d_x.sum().backward()
    with pytest.raises(NotImplementedError, match=r"torch\.func transforms"):
        torch.func.grad(lambda x: module(x)[0].sum())(x.detach())
    with pytest.raises(NotImplementedError, match="without memory"):
        torch.autograd.grad(module(x)[0], x, torch.ones(2, 5, 2, 4, device=DEVICE), is_grads_batched=True)


# With a GPU


@on_a_gpu
def test_calls_go_on_the_current_stream():
    """On a stream behind a long delay, the result is right only if every kernel waited too."""
    module, x = ours.LSTM(64, 64, 2).cuda(), torch.zeros(50, 8, 64, device="cuda", requires_grad=True)
    real = torch.randn(50, 8, 64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            x.copy_(real)
        output, _ = module(x)
        output.square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    again = real.clone().requires_grad_()
    expected, _ = copy.deepcopy(module)(again)
    expected.square().sum().backward()
    same((output, x.grad), (expected, again.grad))


@on_a_gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk", [0, 6])
def test_a_training_step_is_captured_and_replayed(name, dtype, chunk):
    """Forward and backward in one CUDA graph: with other inputs, a replay gives the results of an eager call.

    Also in chunks, whose products run on a second stream.
    """
    with force(chunk=chunk):
        capture_and_replay(name, dtype)


def capture_and_replay(name, dtype):
    module = getattr(ours, name)(32, 64, 2, bidirectional=True, dtype=dtype, device="cuda")
    x = torch.randn(20, 4, 32, dtype=dtype, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        module(x)[0].square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    module.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, _ = module(x)
        output.square().sum().backward()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        eager, again = copy.deepcopy(module), x.detach().clone().requires_grad_()
        eager.zero_grad()
        expected, _ = eager(again)
        expected.square().sum().backward()
        same({"output": output, **gradients(module, x)}, {"output": expected, **gradients(eager, again)})


@on_a_gpu
def test_dropout_in_a_captured_graph_is_drawn_anew():
    module, x = ours.LSTM(8, 64, 2, dropout=0.5).cuda(), torch.randn(9, 4, 8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        module(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output, _ = module(x)
    graph.replay()
    first = output.clone()
    graph.replay()
    assert not torch.equal(first, output)


@on_a_gpu
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_training_under_cudas_autocast(dtype):
    """Tensors are float32 if the weights are; with a GradScaler, as usual for half precision."""
    module, linear = ours.LSTM(8, 16).cuda(), torch.nn.Linear(8, 8).cuda()
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.SGD([*module.parameters(), *linear.parameters()], lr=0.1)
    before = module.weight_hh_l0.detach().clone()
    with torch.autocast("cuda", dtype=dtype):
        output, _ = module(linear(torch.randn(9, 4, 8, device="cuda")))
        loss = output.square().mean()
    assert output.dtype is torch.float32
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert torch.isfinite(module.weight_hh_l0).all()
    assert not torch.equal(module.weight_hh_l0, before)


@on_a_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, or none")
def test_the_device_of_the_tensors_is_current_in_a_call():
    torch.manual_seed(0)
    module, x = ours.GRU(8, 16), torch.randn(9, 4, 8)
    found = []
    for device in ("cuda:0", "cuda:1"):
        there = copy.deepcopy(module).to(device)
        output, _ = there(x.to(device))
        output.square().sum().backward()
        found.append({"output": output, **gradients(there)["parameters"]})
        assert torch.cuda.current_device() == 0
    assert_close(*map(on_host, found), bound(Problem("gru", T=9, B=4, I=8, H=16, dtype="float32"), "float32"))
