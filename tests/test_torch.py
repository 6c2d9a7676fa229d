"""What torch.nn.RNN, GRU and LSTM give, in float64 to 1e-10: outputs, states, every gradient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TORCH_KINDS, Problem, assert_close, assert_same_bits, problems
from torch_side import BOUND, arrays, backward, gradient, laid_out, leaves, module_of, together, torch


@pytest.mark.parametrize("kind", TORCH_KINDS)
@given(data=st.data(), batch_first=st.booleans(), batched=st.booleans(), with_state=st.booleans())
def test_random_configurations(kind, data, batch_first, batched, with_state):
    """Layers 1 to 3, one direction or both, both layouts, no batch axis, bias or none, sizes of 1 and odd."""
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
    """`lengths` is what torch calls a PackedSequence that is not enforced to be sorted."""
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
    """dL/dh_t and dL/dc_t of a loop over torch.nn.LSTMCell, in which every state keeps its gradient; with a
    loss on outputs, on cell states and on the final state."""
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


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says which implementation it takes
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_float32_is_as_near_to_torch_as_rounding_allows(kind):
    """Twice the bound: torch rounds too."""
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
    """Converted between float types, and copied: what torch does with its tensors later is no matter."""
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
