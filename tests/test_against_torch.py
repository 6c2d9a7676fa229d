"""Agreement with torch.nn.RNN, GRU and LSTM, in float64 to 1e-10: outputs, states, every gradient."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound
from problems import TORCH_KINDS, Problem, problems
from throughtime._torch_modules import from_torch
from torch_side import BOUND, arrays, backward, gradient, laid_out, leaves, module_of, together, torch


@pytest.mark.parametrize("kind", TORCH_KINDS)
@given(data=st.data(), batch_first=st.booleans(), batched=st.booleans(), with_state=st.booleans())
def test_random_configurations(kind, data, batch_first, batched, with_state):
    """1 to 3 layers, one direction or both, both layouts, no batch axis, with and without bias, sizes of 1 and odd."""
    problem = data.draw(problems(kind) if batched else problems(kind, B=1))

    x, d_output = (laid_out(values, batched, batch_first) for values in (problem.x, problem.d_output))
    state, d_final = (laid_out(values, batched) for values in (problem.state, problem.d_final_state))
    module = module_of(problem, batch_first=batch_first)
    their_x, their_state = leaves(x), leaves(state)
    output, final = module(their_x, their_state) if with_state else module(their_x)
    torch.autograd.backward((output, *together(final)), tuple(torch.tensor(d) for d in (d_output, *together(d_final))))

    layer = problem.layer(batch_first=batch_first)
    tape = layer.forward(x, state if with_state else None)
    grads = tape.backward(d_output, d_final)
    assert_close(tape.output, arrays(output), BOUND, "output")
    assert_close(tape.final_state, arrays(final), BOUND, "final_state")
    assert_close(grads.input, arrays(their_x, gradient), BOUND, "input")
    if with_state:
        assert_close(grads.initial_state, arrays(their_state, gradient), BOUND, "initial_state")
    their_gradients = {name: arrays(p, gradient) for name, p in module.named_parameters()}
    assert_close(grads.parameters, their_gradients, BOUND, "parameters")


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("layers", [1, 3])
def test_packed_sequences(kind, layers):
    """`lengths` corresponds to a PackedSequence with enforce_sorted=False."""
    problem = Problem(kind, T=9, B=6, L=layers, D=2)
    lengths = np.array([4, 9, 1, 7, 4, 2])
    module, x, state = module_of(problem), leaves(problem.x), leaves(problem.state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    packed_output, final = module(packed, state)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_output)
    backward(problem, output, final, problem.d_output)

    tape = problem.layer().forward(problem.x, problem.state, lengths)
    grads = tape.backward(problem.d_output, problem.d_final_state)
    assert_close(tape.output, arrays(output), BOUND, "output")
    assert_close(tape.final_state, arrays(final), BOUND, "final_state")
    assert_close(grads.input, arrays(x, gradient), BOUND, "input")
    assert_close(grads.initial_state, arrays(state, gradient), BOUND, "initial_state")
    their_gradients = {name: arrays(p, gradient) for name, p in module.named_parameters()}
    assert_close(grads.parameters, their_gradients, BOUND, "parameters")


def test_hidden_and_cell_are_what_a_cell_loop_retains():
    """dL/dh_t and dL/dc_t of a loop over torch.nn.LSTMCell that retains the gradient of every state, with a loss on
    outputs, on cell states and on the final state."""
    problem = Problem("lstm", T=11, B=4, I=5, H=7)
    cell = torch.nn.LSTMCell(5, 7, dtype=torch.float64)
    cell.load_state_dict({name[: -len("_l0")]: torch.tensor(p) for name, p in problem.parameters.items()})
    h, c = (torch.tensor(s[0]) for s in problem.state)
    hidden, cells = [], []
    for x_t in torch.tensor(problem.x):
        h, c = cell(x_t, (h, c))
        for s, kept in ((h, hidden), (c, cells)):
            s.retain_grad()
            kept.append(s)
    loss = (torch.stack(hidden) * torch.tensor(problem.d_output)).sum()
    loss = loss + (torch.stack(cells) * torch.tensor(problem.d_cell[0])).sum()
    loss = loss + sum((s * torch.tensor(d[0])).sum() for s, d in zip((h, c), problem.d_final_state, strict=True))
    loss.backward()

    tape = problem.layer().forward(problem.x, problem.state)
    grads = tape.backward(**problem.loss)
    for ours, theirs in ((tape.hidden, hidden), (tape.cell, cells)):
        assert_close(ours[0], np.stack([arrays(s) for s in theirs]), BOUND)
    for ours, theirs in ((grads.hidden, hidden), (grads.cell, cells)):
        assert_close(ours[0], np.stack([arrays(s, gradient) for s in theirs]), BOUND)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch reports its choice of implementation
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_float32_is_as_near_to_torch_as_rounding_allows(kind):
    """Twice the bound, because torch rounds too."""
    problem = Problem(kind, T=40, B=8, I=20, H=33, L=2, D=2, dtype="float32")
    module, x, state = module_of(problem, torch.float32), leaves(problem.x), leaves(problem.state)
    output, final = module(x, state)
    backward(problem, output, final, problem.d_output)
    tape = problem.layer().forward(problem.x, problem.state)
    grads = tape.backward(problem.d_output, problem.d_final_state)
    assert_close(tape.output, arrays(output), 2 * problem.bound, "output")
    assert_close(grads.input, arrays(x, gradient), 2 * problem.bound, "input")
    their_gradients = {name: arrays(p, gradient) for name, p in module.named_parameters()}
    assert_close(grads.parameters, their_gradients, 2 * problem.bound, "parameters")


@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_dict_loads_as_it_is(kind, dtype):
    """Converted between float types and copied, so that later changes to torch's tensors have no effect."""
    problem = Problem(kind, L=2, D=2)
    module = module_of(problem)
    layer = Problem(kind, L=2, D=2, dtype=dtype, seed=1).layer()
    layer.load_parameters(module.state_dict())
    expected = {name: value.astype(dtype) for name, value in problem.parameters.items()}
    assert_same_bits(layer.parameters, expected)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert_same_bits(layer.parameters, expected)


def test_parameters_that_require_a_gradient_load_too():
    problem = Problem("gru")
    layer = problem.layer()
    layer.load_parameters(dict(module_of(problem).named_parameters()))
    assert_same_bits(layer.parameters, problem.parameters)


@pytest.mark.parametrize(
    ("kind", "library"),
    [
        *((kind, library) for kind in TORCH_KINDS for library in ("torch.nn", "throughtime.torch")),
        *((kind, "throughtime.torch") for kind in ("rnn_sigmoid", "rnn_tanh_layer_norm", "gru_layer_norm")),
    ],
)
def test_analyses_take_torchs_modules(kind, library):
    """They use the memory of its weights, and give the same bits as the layer with these parameters."""
    problem = Problem(kind, L=2)
    package = torch.nn if library == "torch.nn" else pytest.importorskip(library)
    module, layer = module_of(problem, library=package), problem.layer()
    x, state = torch.tensor(problem.x, requires_grad=True), leaves(problem.state)
    found = tt.gradient_flow(module, x, torch.tensor(problem.d_output), state=state)
    expected = tt.gradient_flow(layer, problem.x, problem.d_output, state=problem.state)
    assert_same_bits(found.log10_norm_per_sequence, expected.log10_norm_per_sequence)
    assert found.summary() == expected.summary()
    one, own = x[:, :1], together(problem.state)
    start = tuple(torch.tensor(part[:, :1]) for part in own)
    arguments = (tuple(part[:, :1] for part in own), start) if len(own) > 1 else (own[0][:, :1], start[0])
    for analysis, *rest in (
        (tt.lyapunov_spectrum,),
        (tt.jacobian_singular_values, 1, 4),
        (tt.jacobians,),
        (tt.connectivity, (2, 4)),
        (tt.truncation_error, (1, 3)),
    ):
        theirs = analysis(module, one, *rest, state=arguments[1])
        assert_same_bits(theirs, analysis(layer, problem.x[:, :1], *rest, state=arguments[0]))
    theirs, ours = (
        tt.fixed_points(module, x[0, 0], leaves(problem.state)),
        tt.fixed_points(layer, problem.x[0, 0], problem.state),
    )
    assert_same_bits(theirs.points, ours.points)


@pytest.mark.parametrize("norm", ["pre", "post", None])
def test_gradient_flow_takes_torch_blocks(norm):
    ours = pytest.importorskip("throughtime.torch")
    options = {"norm": norm, "residual": norm != "post", "branch_scale": 0.5, "eps": 1e-3}
    module = ours.ResidualBlock(ours.LSTM(4, 4, 2, batch_first=True), 4, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    layer = tt.ResidualBlock(tt.LSTM(4, 4, 2, batch_first=True), 4, **options)
    layer.load_parameters(module.state_dict())
    x = torch.randn(2, 5, 4)
    found, expected = tt.gradient_flow(module, x), tt.gradient_flow(layer, arrays(x))
    assert_same_bits(found.log10_norm, expected.log10_norm)
    assert_same_bits(found.layers[0].log10_norm, expected.layers[0].log10_norm)


def test_analyses_read_weights_where_they_lie():
    module = torch.nn.GRU(3, 4, 2)
    (layer,) = from_torch(module)
    for name, parameter in module.named_parameters():
        assert np.shares_memory(layer.parameters[name], arrays(parameter))
    before = tt.gradient_flow(module, x := torch.randn(5, 2, 3)).log10_norm
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")  # makes a new tensor of equal values
    assert_close(tt.gradient_flow(module, x).log10_norm, before, rounding_bound("float32", 100))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_analyses_of_modules_in_half_precision_are_in_float32(dtype):
    module, x = torch.nn.LSTM(3, 4, dtype=dtype), torch.randn(5, 1, 3).to(dtype)
    wide = torch.nn.LSTM(3, 4)
    wide.load_state_dict(module.state_dict())
    assert_same_bits(tt.gradient_flow(module, x).log10_norm, tt.gradient_flow(wide, x.float()).log10_norm)
    assert_same_bits(tt.lyapunov_spectrum(module, x), tt.lyapunov_spectrum(wide, x.float()))


class Other(torch.nn.GRU):
    def forward(self, x):
        return x


class Named(torch.nn.GRU):
    pass


def test_analyses_say_which_torch_module_they_cannot_take():
    x = np.zeros((5, 1, 3), np.float32)
    assert tt.gradient_flow(Named(3, 4), x).log10_norm.shape == (1, 5)
    for module, named in (
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4)), "torch.nn.Sequential, which has one at '1'"),
        (torch.nn.LSTMCell(3, 4), "torch.nn.LSTMCell"),
        (Other(3, 4), "Other, which overrides forward"),
    ):
        calls = (
            tt.gradient_flow,
            tt.lyapunov_spectrum,
            lambda *given: tt.jacobian_singular_values(*given, 0, 1),
            tt.jacobians,
            lambda *given: tt.connectivity(*given, (0,)),
            lambda *given: tt.truncation_error(*given, 1),
            lambda *given: tt.fixed_points(*given, x[0]),
        )
        for call in calls:
            with pytest.raises(TypeError, match=f"layer must be .*torch.nn or throughtime.torch, got {named}$"):
                call(module, x)


def test_the_core_imports_neither_torch_nor_the_bridge():
    """Nor for a torch module as an argument: the bridge would move the library's threads to torch's."""
    script = """
        import sys, throughtime as tt
        assert "torch" not in sys.modules
        import torch
        tt.gradient_flow(torch.nn.GRU(2, 2), torch.zeros(3, 1, 2))
        assert "throughtime.torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_parameters_and_inputs_whose_sign_torch_has_not_written_yet():
    module = torch.nn.RNN(3, 4)
    lazy = {name: torch.complex(p * 0, -p).detach().conj().imag for name, p in module.named_parameters()}
    assert all(part.is_neg() for part in lazy.values())
    layer = tt.RNN(3, 4)
    layer.load_parameters(lazy)
    assert_same_bits(layer.parameters, {name: arrays(p) for name, p in module.named_parameters()})
    x = torch.randn(5, 2, 3, dtype=torch.complex64).conj().imag
    assert_same_bits(layer(x)[0], layer(arrays(x.resolve_neg()))[0])
