"""throughtime.torch against torch.nn: outputs, states and every gradient in float64, and the behaviour of modules."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import TORCH_KINDS, Problem, problems
from throughtime import _core
from torch_side import BOUND, EXTRAS, arrays, gradient, laid_out, leaves, module_of, together, torch

ours = pytest.importorskip("throughtime.torch")

NAMES = ("RNN", "GRU", "LSTM")


def both(problem, **options):
    """torch's module, and throughtime's with the same parameters."""
    return module_of(problem, **options), module_of(problem, library=ours, **options)


def run(module, x, state=None):
    """Output, final state and every gradient of one module, for a loss with random weights of all results."""
    x, state = leaves(x), None if state is None else leaves(state)
    output, final = module(x, state)
    d = torch.Generator().manual_seed(0)
    results = (output, *together(final))
    torch.autograd.backward(results, [torch.randn(result.shape, generator=d, dtype=result.dtype) for result in results])
    return {
        "output": arrays(output),
        "final_state": arrays(final),
        "input": arrays(x, gradient),
        "initial_state": () if state is None else arrays(state, gradient),
        "parameters": {name: arrays(p, gradient) for name, p in module.named_parameters()},
    }


@pytest.mark.parametrize("kind", TORCH_KINDS)
@given(data=st.data(), batch_first=st.booleans(), batched=st.booleans(), with_state=st.booleans())
def test_random_configurations(kind, data, batch_first, batched, with_state):
    """1 to 3 layers, one direction or both, both layouts, no batch axis, with and without bias, sizes of 1 and odd."""
    problem = data.draw(problems(kind) if batched else problems(kind, B=1))

    x, state = laid_out(problem.x, batched, batch_first), laid_out(problem.state, batched) if with_state else None
    theirs, mine = both(problem, batch_first=batch_first)
    assert_close(run(mine, x, state), run(theirs, x, state), BOUND)


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_packed_sequences(kind, is_sorted, with_state):
    """With lengths in any order: the same packed output, with indices; batch_first does not affect packed input."""
    problem = Problem(kind, T=9, B=6, L=2, D=2)
    lengths = torch.tensor([9, 7, 4, 4, 2, 1] if is_sorted else [4, 9, 1, 7, 4, 2])
    found = []
    for module in both(problem, batch_first=True):
        x, state = leaves(problem.x), leaves(problem.state)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
        output, final = module(packed, state if with_state else None)
        d = torch.randn(output.data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        d_final = [torch.tensor(part) for part in together(problem.d_final_state)]
        torch.autograd.backward((output.data, *together(final)), (d, *d_final))
        indices = [part for part in output[1:] if part is not None]
        found.append((arrays(output.data), arrays(final), arrays(x, gradient), arrays(state, gradient)))
        found[-1] += (
            tuple(arrays(part) for part in indices),
            {n: arrays(p.grad) for n, p in module.named_parameters()},
        )
        assert (output.sorted_indices is None) == is_sorted
    theirs, mine = found
    assert_close(mine, theirs, BOUND)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch reports its choice of implementation
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_float32_is_as_near_to_torch_as_rounding_allows(kind):
    """Twice the bound, because torch rounds too."""
    problem = Problem(kind, T=40, B=8, I=20, H=33, L=2, D=2, dtype="float32")
    theirs, mine = (run(module, problem.x, problem.state) for module in both(problem, dtype=torch.float32))
    assert_close(mine, theirs, 2 * problem.bound)


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_gradcheck(kind):
    """For the input, both kinds of initial state, and every weight, in float64 by torch's own check."""
    problem = Problem(kind, T=4, B=2, I=3, H=4, L=2, D=2)
    module = module_of(problem, library=ours)
    names = [name for name, _ in module.named_parameters()]

    def call(x, *rest):
        state, weights = rest[: len(together(problem.state))], rest[len(together(problem.state)) :]
        hx = state if len(state) > 1 else state[0]
        output, final = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, hx))
        return output, *together(final)

    assert torch.autograd.gradcheck(
        call, (leaves(problem.x), *together(leaves(problem.state)), *module.parameters()), fast_mode=True
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_torchs_initial_weights(name):
    for options in ({}, {"num_layers": 2, "bidirectional": True, "bias": False}):
        torch.manual_seed(3)
        theirs = getattr(torch.nn, name)(4, 6, **options)
        torch.manual_seed(3)
        mine = getattr(ours, name)(4, 6, **options)
        assert_same_bits(arrays(tuple(mine.parameters())), arrays(tuple(theirs.parameters())))
        assert repr(mine) == f"throughtime.torch.{theirs!r}"  # the repr names its package
        assert isinstance(mine, type(theirs))


def test_the_constructors_take_torchs_positions():
    """Also RNN's, in which nonlinearity comes between the others."""
    positional = {
        "RNN": (4, 6, 2, "relu", False, True, 0.5, True),
        "GRU": (4, 6, 2, False, True, 0.5, True),
        "LSTM": (4, 6, 2, False, True, 0.5, True, 3, "cpu", torch.float64),
    }
    for name, arguments in positional.items():
        theirs, mine = getattr(torch.nn, name)(*arguments), getattr(ours, name)(*arguments)
        assert repr(mine) == f"throughtime.torch.{theirs!r}"
        shapes = [(n, p.shape, p.dtype) for n, p in theirs.named_parameters()]
        assert [(n, p.shape, p.dtype) for n, p in mine.named_parameters()] == shapes


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_state_dicts_load_both_ways(kind):
    problem = Problem(kind, L=2, D=2)
    theirs, mine = both(problem)
    fresh = module_of(Problem(kind, L=2, D=2, seed=1))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    fresh.load_state_dict(mine.state_dict())
    assert_same_bits(arrays(tuple(fresh.parameters())), arrays(tuple(theirs.parameters())))


@pytest.mark.parametrize("train_input", [False, True])
@pytest.mark.parametrize("trained", [(), ("bias_hh_l1",), ("weight_ih_l0", "weight_hh_l1_reverse")])
def test_what_is_frozen_gets_no_gradient_and_costs_none(train_input, trained, monkeypatch):
    """The other gradients are unchanged. Products for weights and input are computed only if one of them is needed, and
    layers below the lowest trained one are skipped."""
    problem = Problem("lstm", L=2, D=2)
    theirs, mine = both(problem)
    asked = []
    kernel = _core.backward
    monkeypatch.setattr(_core, "backward", lambda cell, problem, d: (asked.append(d), kernel(cell, problem, d)))
    found = []
    for module in (theirs, mine):
        x = leaves(problem.x).requires_grad_(train_input)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained)
        output, _ = module(x)
        assert output.requires_grad == bool(train_input or trained)
        if output.requires_grad:
            (output * torch.tensor(problem.d_output)).sum().backward()
        found.append({n: p.grad.numpy() for n, p in (("x", x), *module.named_parameters()) if p.grad is not None})
    assert_close(found[1], found[0], BOUND)
    layers = 0 if not (train_input or trained) else 2 if train_input or "weight_ih_l0" in trained else 1
    assert len(asked) == 2 * layers  # directions
    assert sum(d.get("d_parameters") is not None for d in asked) == len({name.partition("_l")[2] for name in trained})
    assert sum(d["d_input"] is not None for d in asked) == 2 * (layers - (not train_input)) * bool(layers)


def test_only_the_initial_state_may_require_a_gradient():
    problem = Problem("lstm", L=2)
    found = []
    for module in both(problem):
        h, c = leaves(problem.state)
        module.requires_grad_(False)
        output, (_, c_n) = module(torch.tensor(problem.x), (h.detach(), c))
        (output.sum() + c_n.sum()).backward()
        found.append(arrays(c, gradient))
        assert h.grad is None
    assert_close(found[1], found[0], BOUND)


@pytest.mark.parametrize("used", ["output", "h_n", "c_n"])
def test_a_loss_on_one_result_alone(used):
    problem = Problem("lstm", L=2, D=2)
    found = []
    for module in both(problem):
        x = leaves(problem.x)
        output, (h_n, c_n) = module(x)
        {"output": output, "h_n": h_n, "c_n": c_n}[used].square().sum().backward()
        found.append((arrays(x, gradient), {n: arrays(p, gradient) for n, p in module.named_parameters()}))
    assert_close(found[1], found[0], BOUND)


def test_no_gradient_where_none_is_wanted():
    """Under no_grad, and if no tensor requires a gradient, it is inference: nothing is stored."""
    module, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    with torch.no_grad():
        assert module(x)[0].grad_fn is None
    with torch.inference_mode():
        assert module(x)[0].is_inference()
    module.requires_grad_(False)
    assert module(x)[0].grad_fn is None
    assert module(x.requires_grad_())[0].grad_fn is not None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch(name):
    module, x = getattr(ours, name)(3, 4, 2, bidirectional=True), torch.zeros(5, 0, 3, requires_grad=True)
    output, final = module(x)
    assert output.shape == (5, 0, 8)
    assert together(final)[0].shape == (4, 0, 4)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "options"), EXTRAS)
@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 3])
def test_our_options_give_what_the_numpy_layer_gives(name, options, memory):
    """The same bits, with the masks that torch's generator drew."""
    torch.manual_seed(0)
    module = getattr(ours, name)(5, 6, **options, memory=memory)
    layer = getattr(tt, name)(5, 6, **options)
    layer.load_parameters(module.state_dict())
    x = torch.randn(9, 4, 5, requires_grad=True)
    torch.manual_seed(1)
    output, final = module(x)
    output.backward(d := torch.randn_like(output))
    torch.manual_seed(1)
    names = layer.architecture.mask_shapes(9, 4)
    masks = dict(zip(names, arrays(tuple(module._masks(x, False))), strict=True))
    tape = layer.forward(x.detach().numpy(), masks=masks, memory=memory)
    grads = tape.backward(d.numpy(), timesteps=())
    assert_same_bits(arrays(output), tape.output)
    assert_same_bits(arrays(final), tape.final_state)
    assert_same_bits(arrays(x.grad), grads.input)
    assert_same_bits({n: arrays(p.grad) for n, p in module.named_parameters()}, grads.parameters)
    module.eval()
    assert_same_bits(arrays(module(x)[0]), layer(x.detach().numpy())[0])


@pytest.mark.parametrize("name", NAMES)
def test_dropout_follows_torchs_seed_and_the_mode(name):
    module = getattr(ours, name)(5, 50, 2, dropout=0.5)
    x = torch.randn(20, 10, 5)
    (first, again, other) = (torch.manual_seed(seed) and module(x)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    masks = module._masks(x, False)
    assert [mask.shape for mask in masks] == [(20, 10, 50)]
    # 10000 independent draws: five standard deviations of their mean, exceeded for one seed in two million
    assert abs(masks[0].double().mean() - 0.5) < 5 * 0.5 / 100
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])
    module.train().dropout = 0.0
    assert torch.equal(module(x)[0], module.eval()(x)[0])


SCALARS = [np.int64, np.uint8, np.array, torch.tensor]
FRACTIONS = [np.float64, np.float32, np.float16, np.longdouble, np.array, torch.tensor]


def same_numbers(name, given, plain):
    """Compares a training step of modules that differ only in the types of their options."""
    found = []
    for options in (given, plain):
        torch.manual_seed(0)
        module = getattr(ours, name)(**{"input_size": 3, "hidden_size": 5} | options)
        output, _ = module(torch.randn(5, 2, module.input_size))
        output.square().sum().backward()
        found.append((arrays(output), {n: arrays(p.grad) for n, p in module.named_parameters()}, repr(module)))
        loaded = pickle.loads(pickle.dumps(module))
        assert {type(getattr(loaded, option)) for option in options} <= {bool, int, float, str, tuple}
    assert found[0][2] == found[1][2]
    assert_same_bits(found[0][:2], found[1][:2])


@pytest.mark.parametrize("number", SCALARS)
@pytest.mark.parametrize("option", ["input_size", "hidden_size", "num_layers", "proj_size", "memory"])
def test_whole_numbers_may_be_numpys_or_torchs(option, number):
    """For example from a table of settings, or from a search over them."""
    same_numbers("LSTM", {option: number(3)}, {option: 3})


@pytest.mark.parametrize("number", FRACTIONS)
@pytest.mark.parametrize("option", ["dropout", "zoneout", "weight_dropout"])
def test_probabilities_may_be_numpys_or_torchs(option, number):
    same_numbers("GRU", {option: number(0.25), "num_layers": 2}, {option: 0.25, "num_layers": 2})


def test_words_and_flags_may_be_numpys():
    same_numbers("RNN", {"nonlinearity": np.str_("relu")}, {"nonlinearity": "relu"})
    same_numbers("LSTM", {"zoneout": [np.float32(0.25), np.array(0.5)]}, {"zoneout": (0.25, 0.5)})
    for option in ("bias", "batch_first", "bidirectional", "peephole", "layer_norm"):
        same_numbers("LSTM", {option: np.True_, "memory": np.str_("states")}, {option: True, "memory": "states"})
    same_numbers("GRU", {"reset_after": np.array(False)}, {"reset_after": False})


def test_numpys_scalars_set_later_or_in_a_replaced_module():
    module, x = ours.GRU(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)
    module.dropout = np.float64(0.0)
    assert torch.equal(module(x)[0], module.eval()(x)[0])
    theirs = torch.nn.LSTM(3, 4, num_layers=np.int64(2), bidirectional=np.True_, dtype=torch.float64)
    mine = ours.replace(theirs)
    assert (type(mine.num_layers), type(mine.bidirectional), type(theirs.num_layers)) == (int, bool, np.int64)
    plain = torch.nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)  # torch's fails to run with NumPy's
    plain.load_state_dict(theirs.state_dict())
    assert_close(arrays(mine(x.double())[0]), arrays(plain(x.double())[0]), BOUND)
    norm = ours.AddLayerNorm(np.int64(3), np.float32(1e-3), scale=np.array(0.5))
    norm.scale = np.float32(0.25)
    assert repr(norm) == f"throughtime.torch.AddLayerNorm(3, eps={float(np.float32(1e-3))}, scale=0.25)"
    options = {
        "norm": np.str_("post"),
        "residual": np.True_,
        "branch_scale": torch.tensor(0.5),
        "eps": np.float64(1e-3),
    }
    block = ours.ResidualBlock(ours.RNN(3, 3), np.array(3), **options)
    assert block(x).shape == x.shape


def negated(values):
    """The same values as tensors with a pending negation in torch: the imaginary part of a conjugate."""
    if isinstance(values, tuple):
        return tuple(negated(value) for value in values)
    lazy = torch.complex(torch.zeros(values.shape, dtype=torch.float64), -torch.tensor(values)).conj().imag
    assert lazy.is_neg()
    return lazy


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_signs_that_torch_has_not_written_yet(kind):
    """In input, states, weights and incoming gradients."""
    problem = Problem(kind, L=2)
    found = []
    for lazy in (False, True):
        module = module_of(problem, library=ours)
        given = (problem.x, *together(problem.state))
        given = negated(given) if lazy else tuple(map(torch.tensor, given))
        x, *state = (part.requires_grad_() for part in given)
        if lazy:
            for name, weight in list(module.named_parameters()):
                setattr(module, name, torch.nn.Parameter(negated(weight.detach().numpy())))
        output, final = module(x, tuple(state) if len(state) > 1 else state[0])
        d = (problem.d_output, *together(problem.d_final_state))
        d = negated(d) if lazy else tuple(map(torch.tensor, d))
        wanted = (x, *state, *module.parameters())
        gradients = torch.autograd.grad((output, *together(final)), wanted, d)
        found.append((arrays(output), arrays(final), arrays(gradients)))
    assert_same_bits(found[1], found[0])


def test_signs_not_written_yet_of_a_residual_addition():
    norm = ours.AddLayerNorm(5, dtype=torch.float64)
    values = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    found = []
    for x, branch, *d in (values.unbind(), negated(values.numpy()).unbind()):
        parts = (x.detach().requires_grad_(), branch.detach().requires_grad_())
        results = norm(*parts)
        found.append((arrays(results), arrays(torch.autograd.grad(results, (*parts, norm.weight), tuple(d)))))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), EXTRAS)
@pytest.mark.parametrize("memory", ["full", 2])
def test_half_precision_is_float32_inside(dtype, name, options, memory):
    """The results of a float32 module with the same weights, rounded once; gradients in the type of the weights."""
    module = getattr(ours, name)(5, 6, **options, memory=memory).to(dtype)
    wide = copy.deepcopy(module).float()
    x = torch.randn(9, 4, 5).to(dtype)
    found = []
    for one, inside in ((module, dtype), (wide, torch.float32)):
        leaf = x.detach().to(inside).requires_grad_()
        torch.manual_seed(1)
        output, final = one(leaf)
        assert {part.dtype for part in (output, *together(final))} == {inside}
        (output.sum() + sum(part.sum() for part in together(final))).backward()
        gradients = {n: p.grad for n, p in one.named_parameters()} | {"x": leaf.grad}
        assert {gradient.dtype for gradient in gradients.values()} == {inside}
        results = {"output": output.detach(), **{f"final {k}": part.detach() for k, part in enumerate(together(final))}}
        found.append({n: arrays(part.to(dtype).float()) for n, part in (results | gradients).items()})
    assert_same_bits(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_modules_keep_what_is_small(dtype):
    """Next to 1, this type cannot represent the terms, each of them 2**-13, but it represents their sum."""
    module, x = ours.RNN(1024, 1, nonlinearity="relu", bias=False, dtype=dtype), torch.full((2, 1, 1024), 2.0**-13)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1)
        module.weight_hh_l0.fill_(1)
    x[0, 0, 0] = 1
    assert module(x.to(dtype))[0].flatten().tolist() == [1.125, 1.25]


def test_half_precision_in_packed_sequences_graphs_and_recordings():
    module = ours.LSTM(3, 4, dtype=torch.bfloat16)
    wide = copy.deepcopy(module).float()
    sequences = [torch.randn(length, 3).bfloat16() for length in (4, 7, 1)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    assert torch.equal(module(packed)[0].data, wide(packed.to(torch.float32))[0].data.bfloat16())
    x = torch.randn(7, 2, 3).bfloat16()
    with ours.record(module) as timesteps:
        module(x)[0].float().sum().backward()
    with ours.record(wide) as expected:
        wide(x.float())[0].sum().backward()
    assert_same_bits(arrays(timesteps.hidden), arrays(expected.hidden))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], module(x)[0])


def test_a_pickled_module_is_loaded_as_weights_only():
    """Such files run no code: torch accepts these modules as safe."""
    modules = [getattr(ours, name)(5, 6, **options) for name, options in EXTRAS]
    modules += [ours.LSTM(np.int64(5), 6, num_layers=np.int64(2), dropout=np.float64(0.5)), ours.AddLayerNorm(5)]
    modules += [ours.ResidualBlock(ours.GRU(5, 5), 5), ours.replace(torch.nn.GRU(5, 6, num_layers=np.int64(2)))]
    x = torch.randn(4, 2, 5)
    for module in modules:
        file = io.BytesIO()
        torch.save(module.eval(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert type(loaded) is type(module)
        inputs = (x, x) if isinstance(module, ours.AddLayerNorm) else (x,)
        assert torch.equal(loaded(*inputs)[0], module(*inputs)[0])


def test_options_may_be_changed_later():
    """Like torch's modules, ours read batch_first at each call."""
    module, x = ours.GRU(3, 4), torch.randn(5, 2, 3)
    expected = module(x)[0]
    module.batch_first = True
    assert torch.equal(module(x.transpose(0, 1))[0].transpose(0, 1), expected)


@pytest.mark.parametrize(("name", "options"), EXTRAS)
def test_modules_are_copied_pickled_and_converted(name, options):
    module = getattr(ours, name)(5, 6, **options).eval()
    x = torch.randn(4, 2, 5)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(x)[0], module(x)[0])
        assert repr(other) == repr(module)
        other.load_state_dict(module.state_dict())
        assert not {id(p) for p in other.parameters()} & {id(p) for p in module.parameters()}
    wide = copy.deepcopy(module).double()
    assert wide(x.double())[0].dtype is torch.float64
    assert wide.to(torch.float32)(x)[0].dtype is torch.float32


def test_extra_parameters_are_named_as_in_numpy():
    for options in ({"peephole": True}, {"layer_norm": True}):
        options |= {"num_layers": 2, "bidirectional": True}
        module, layer = ours.LSTM(3, 4, **options), tt.LSTM(3, 4, **options)
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        assert shapes == {name: array.shape for name, array in layer.parameters.items()}
        layer.load_parameters(module.state_dict())
        for name in shapes:
            if "_ln_" in name:
                assert torch.all(module.state_dict()[name] == float(name.startswith("weight")))
            else:
                assert 0 < module.state_dict()[name].abs().max() <= 0.5  # 1 / sqrt(H)
        module.reset_parameters()
        assert "weight_ln_c_l0" not in shapes or torch.all(module.weight_ln_c_l0 == 1)


def test_tensors_are_used_where_they_lie(monkeypatch):
    """Input and weights by the kernels, output and gradients by torch, without copies."""
    module, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    seen = []
    kernel = _core.forward
    monkeypatch.setattr(_core, "forward", lambda cell, problem: (seen.append(problem), kernel(cell, problem)))
    output, _ = module(x)
    (problem,) = seen
    assert problem["x"].ctypes.data == x.data_ptr()
    assert problem["parameters"]["weight_hh"].ctypes.data == module.weight_hh_l0.data_ptr()
    assert problem["output"].ctypes.data == output.data_ptr()


def test_what_is_not_contiguous_is_right_too():
    """A transposed weight, an expanded state, a view of an input, the expanded gradient of a sum."""
    problem = Problem("gru", B=4, I=6, H=6)
    found = []
    for module in both(problem):
        with torch.no_grad():
            module.weight_hh_l0.set_(module.weight_hh_l0.t().contiguous().t())
        assert not module.weight_hh_l0.is_contiguous()
        x = torch.tensor(problem.x).repeat(2, 1, 2)[::2, :, ::2].requires_grad_()
        h = torch.tensor(problem.state[:, :1]).expand(-1, 4, -1)
        x.retain_grad()
        output, h_n = module(x, h)
        (output.sum() + h_n.sum()).backward()
        found.append(
            (arrays(output), arrays(x, gradient), {n: arrays(p, gradient) for n, p in module.named_parameters()})
        )
    assert_close(found[1], found[0], BOUND)


def test_a_write_between_forward_and_backward_is_torchs_error():
    for change in ("weight", "input"):
        module, x = ours.GRU(3, 4), torch.randn(5, 2, 3)
        output, _ = module(x)
        with torch.no_grad():
            (module.weight_hh_l0 if change == "weight" else x).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_the_output_is_the_callers_to_write():
    """The backward does not read it."""
    problem = Problem("lstm")
    found = []
    for inplace in (False, True):
        module = module_of(problem, library=ours)
        output, _ = module(leaves(problem.x))
        (output.mul_(2) if inplace else output * 2).sum().backward()
        found.append({name: arrays(p.grad) for name, p in module.named_parameters()})
    assert_same_bits(found[1], found[0])


def test_what_a_backward_read_is_freed_after_it_and_not_before():
    module, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    output, _ = module(x)
    output.sum().backward(retain_graph=True)
    once = {name: arrays(p.grad).copy() for name, p in module.named_parameters()}
    module.zero_grad()
    output.sum().backward()
    assert_same_bits({name: arrays(p.grad) for name, p in module.named_parameters()}, once)
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_checkpointing_computes_the_same_again():
    """Including dropout: torch's checkpoint restores its generator."""
    module = ours.LSTM(3, 4, 2, dropout=0.5)
    found = []
    for reentrant in (None, False, True):
        x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        torch.manual_seed(1)
        if reentrant is None:
            output, _ = module(x)
        else:
            output, _ = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=reentrant)
        output.square().sum().backward()
        found.append(arrays(x.grad))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_parametrized_weights_are_trained():
    problem = Problem("lstm")
    found = []
    for module in both(problem):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        output, _ = module(leaves(problem.x))
        output.square().sum().backward()
        found.append({name: arrays(p, gradient) for name, p in module.named_parameters()})
    assert len(found[0]) == 5
    assert_close(found[1], found[0], BOUND)


def test_a_weight_shared_by_layers_gets_both_gradients():
    problem = Problem("gru", I=6, H=6, L=2)
    found = []
    for module in both(problem):
        module.weight_hh_l1 = module.weight_hh_l0
        output, _ = module(leaves(problem.x))
        output.square().sum().backward()
        found.append({name: arrays(p, gradient) for name, p in module.named_parameters()})
    assert_close(found[1], found[0], BOUND)


def test_modules_run_in_several_threads():
    """One module of each library, forward and backward; every thread gets the results of a single one."""
    module = ours.LSTM(8, 16, 2)
    x = torch.randn(30, 4, 8)
    weights = tuple(module.parameters())
    expected = arrays(torch.autograd.grad(module(x)[0].square().sum(), weights))
    found = []

    def work():
        for _ in range(5):
            found.append(arrays(torch.autograd.grad(module(x)[0].square().sum(), weights)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for one in found:
        assert_same_bits(one, expected)


@pytest.fixture
def precisions(monkeypatch):
    """The number of terms passed to kernels, and the precision of the process; None: that of the process."""
    seen = []
    for name in ("forward", "backward"):
        kernel = getattr(_core, name)

        def spy(cell, problem, *others, kernel=kernel):
            seen.append((problem["terms"], tt.get_matmul_precision()))
            return kernel(cell, problem, *others)

        monkeypatch.setattr(_core, name, spy)
    return seen


def test_autocast_is_medium_precision_for_the_call_and_its_backward(precisions):
    """After a Linear, with states of two types; the results have torch's types. Other calls are unaffected."""
    module, linear, x = ours.LSTM(3, 4), torch.nn.Linear(3, 3), torch.randn(5, 2, 3)
    state = torch.zeros(1, 2, 4, dtype=torch.bfloat16), torch.zeros(1, 2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h_n, _) = module(linear(x), state)
        expected, (expected_h, _) = torch.nn.LSTM(3, 4)(linear(x), state)
    assert (output.dtype, h_n.dtype) == (expected.dtype, expected_h.dtype)
    output.sum().backward()
    assert linear.weight.grad.dtype is torch.float32
    assert precisions == [(1, "highest")] * 2
    module(x)[0].sum().backward()
    assert precisions[2:] == [(None, "highest")] * 2


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
def test_autocast_gives_results_of_the_types_that_torch_gives(name, low, packed):
    """For each type of input and of state, or none. Torch's LSTM lacks float32 on the CPU: then the low type counts."""
    for options in [{}, {"num_layers": 2, "bidirectional": True}] + [{"proj_size": 2}] * (name == "LSTM"):
        for entering, carried in itertools.product((torch.float32, low), (None, torch.float32, low)):
            x, found = torch.randn(5, 2, 3, dtype=entering), []
            x = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3]) if packed else x
            for library in (torch.nn, ours):
                module = getattr(library, name)(3, 4, **options)
                rows = module.num_layers * (1 + module.bidirectional)
                widths = (getattr(module, "proj_size", 0) or 4, 4)[: 1 + (name == "LSTM")]
                state = tuple(torch.zeros(rows, 2, width, dtype=carried) for width in widths)
                hx = None if carried is None else state if len(state) > 1 else state[0]
                try:
                    with torch.autocast("cpu", dtype=low):
                        output, final = module(x, hx)
                except RuntimeError:
                    assert (library, name, packed, entering) == (torch.nn, "LSTM", False, torch.float32)
                    found.append([low] * 3)
                    continue
                output = output.data if packed else output
                found.append([output.dtype, *(part.dtype for part in together(final))])
                output.sum().backward()
                assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
            assert found[1] == found[0]
