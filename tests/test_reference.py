"""The reference itself is right: against complex step, torch's modules, and autograd over torch's cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from conftest import GATES, KINDS, Problem, assert_close, problems, run_reference, wide

BOUND = 1e-11  # float64 on both sides: rounding takes 1e-13, and no error in a formula hides below this


def loss_of(problem, parameters, x, state, **options):
    """The scalar whose gradient `backward` is."""
    record = reference.forward(problem.kind, parameters, x, state, **options)
    loss = np.sum(record.output * problem.d_output)
    finals, d_finals = reference.as_tuple(record.final_state), reference.as_tuple(problem.d_final_state)
    for s, d in zip(finals, d_finals, strict=True):
        loss = loss + np.sum(s * d)
    if problem.d_cell is not None:
        active = np.arange(problem.T)[:, None] < options.get("lengths", np.full(problem.B, problem.T))
        loss = loss + np.sum(record.cell_state * problem.d_cell * active[:, :, None])
    return loss


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), ragged=st.booleans())
def test_every_gradient_is_the_complex_step(kind, data, ragged):
    """x, each parameter and the initial state, each moved in a random direction by i 1e-30."""
    problem = data.draw(problems(kind))
    options = {"lengths": problem.lengths, "resets": problem.resets} if ragged else {}
    record = reference.forward(kind, problem.parameters, problem.x, problem.state, **options)
    grads = reference.backward(record, **problem.loss)
    inputs = {"x": problem.x, "h": reference.as_tuple(problem.state)[0], **problem.parameters}
    found = {"x": grads.input, "h": reference.as_tuple(grads.initial_state)[0], **grads.parameters}
    if kind == "lstm":
        inputs["c"], found["c"] = problem.state[1], grads.initial_state[1]
    for name, values in inputs.items():
        direction = problem.random("direction of " + name, values.shape)
        moved = inputs | {name: values + 1e-30j * direction}
        state = (moved["h"], moved["c"]) if kind == "lstm" else moved["h"]
        parameters = {name: moved[name] for name in problem.parameters}
        slope = loss_of(problem, parameters, moved["x"], state, **options).imag / 1e-30
        products = found[name] * direction
        assert abs(slope - products.sum()) <= BOUND * np.abs(products).sum(), name


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_whole_module_of_torch(kind, data):
    """Outputs, final states and all gradients of torch.nn.RNN, GRU and LSTM."""
    torch = pytest.importorskip("torch")
    problem = data.draw(problems(kind))
    module = torch_module(torch, problem)
    x, state = tensors(torch, problem.x), tensors(torch, problem.state)
    output, final = module(x, state)
    finals, d_finals = reference.as_tuple(final), reference.as_tuple(problem.d_final_state)
    torch.autograd.backward((output, *finals), tuple(torch.tensor(d) for d in (problem.d_output, *d_finals)))
    loss = {"d_output": problem.d_output, "d_final_state": problem.d_final_state}
    ours = run_reference(problem, {"state": problem.state}, loss=loss)
    expected = {
        "output": output.detach().numpy(),
        "final_state": reference.as_state([s.detach().numpy() for s in finals]),
        "input": x.grad.numpy(),
        "initial_state": reference.as_state([s.grad.numpy() for s in reference.as_tuple(state)]),
        "parameters": {name: p.grad.numpy() for name, p in module.named_parameters()},
    }
    assert_close({name: ours[name] for name in expected}, expected, BOUND)


def torch_module(torch, problem):
    module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}.get(problem.kind, torch.nn.RNN)(
        problem.I,
        problem.H,
        problem.L,
        bias=problem.bias,
        bidirectional=problem.D == 2,
        dtype=torch.float64,
        **({"nonlinearity": "relu"} if problem.kind == "rnn_relu" else {}),
    )
    module.load_state_dict({name: torch.tensor(value) for name, value in problem.parameters.items()})
    return module


def tensors(torch, values):
    """Leaves that collect a gradient."""
    if isinstance(values, tuple):
        return tuple(tensors(torch, value) for value in values)
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(
    data=st.data(),
    ragged=st.booleans(),
    episodes=st.booleans(),
    truncate=st.sampled_from([None, 1, 2, 3]),
    clip=st.sampled_from([None, 0.3, 2.0]),
)
def test_everything_against_autograd_sequence_by_sequence(kind, data, ragged, episodes, truncate, clip):
    """Lengths, resets, truncation, clipping, all gradients per timestep, and no mask anywhere: each sequence
    has a loop of its own over torch's cell, each step a copy of the parameters; autograd does the rest."""
    torch = pytest.importorskip("torch")
    problem = data.draw(problems(kind, most_layers=2))
    lengths = problem.lengths if ragged else np.full(problem.B, problem.T)
    resets = problem.resets & episodes
    options = {"state": problem.state, "lengths": lengths, "resets": resets}
    ours = run_reference(problem, options, {"truncate": truncate, "clip": clip})
    assert_close(ours, Twin(torch, problem, lengths, resets, truncate, clip).results(), BOUND)


class Twin:
    """A second implementation that shares nothing with the reference: the tests' test."""

    def __init__(self, torch, problem, lengths, resets, truncate, clip):
        self.torch, self.problem, self.lengths, self.resets = torch, problem, lengths, resets
        self.truncate, self.clip = truncate, clip
        # [t] of these is what timestep t uses, so that .grad[t] is what it adds.
        self.parameters = {
            name: tensors(torch, np.stack([value] * problem.T)) for name, value in problem.parameters.items()
        }
        self.x = tensors(torch, problem.x)
        self.state = tensors(torch, reference.as_tuple(problem.state))
        self.every = {}  # (name, ld, t, b): the tensor of one step, from which to read the value or gradient
        self.clipped = np.zeros((problem.L * problem.D, problem.T, problem.B), bool)
        y, self.finals = self.x, []
        for layer in range(problem.L):
            sides = [self.run_layer(y, layer, d) for d in range(problem.D)]
            y = torch.cat(sides, dim=2)
        self.output = y

    def run_layer(self, y, layer, d):
        torch, problem, ld = self.torch, self.problem, layer * self.problem.D + d
        rows = []
        for b in range(problem.B):
            h_by_t = {}
            state = [s[ld, b] for s in self.state]
            n = self.lengths[b]
            for p in range(n):
                t = n - 1 - p if d else p
                state = self.step(y[t, b], self.carry(state, ld, t, b, p, n), layer, d, t, b)
                h_by_t[t] = state[0]
            self.finals.append(state)
            zero = torch.zeros(problem.H, dtype=torch.float64)
            rows.append(torch.stack([h_by_t.get(t, zero) for t in range(problem.T)]))
        return torch.stack(rows, dim=1)

    def carry(self, state, ld, t, b, p, n):
        """What step p starts from, given what the one before left."""
        reverse = ld % self.problem.D
        if self.resets[t, b] if not reverse else p > 0 and self.resets[t + 1, b]:
            return [0 * s.detach() for s in state]
        if p == 0:
            return state
        if self.truncate and p % self.truncate == 0:
            return [s.detach() for s in state]
        if self.clip is None:
            return state
        before = (ld, t + 1 if reverse else t - 1, b)
        return clipping(self.torch, self.clip, self.clipped, before)(*state)

    def step(self, x, state, layer, d, t, b):
        torch, problem = self.torch, self.problem
        suffix = f"_l{layer}" + ("_reverse" if d else "")
        use = {name[: -len(suffix)]: w[t] for name, w in self.parameters.items() if name.endswith(suffix)}
        a = use["weight_ih"] @ x + use.get("bias_ih", 0)
        cell = {
            "rnn_tanh": torch.rnn_tanh_cell,
            "rnn_relu": torch.rnn_relu_cell,
            "gru": torch.gru_cell,
            "lstm": torch.lstm_cell,
        }[problem.kind]
        rows = [s[None] for s in state]
        # torch's cell with the identity for W_ih, as what it multiplies is wanted by itself
        identity, none = torch.eye(len(a), dtype=torch.float64), torch.zeros(len(a), dtype=torch.float64)
        after = cell(
            a[None],
            rows if problem.kind == "lstm" else rows[0],
            identity,
            use["weight_hh"],
            none,
            use.get("bias_hh", none),
        )
        after = reference.as_tuple(after)
        for name, tensor in zip(("gates", "hidden", "cell"), (a, *after), strict=False):
            tensor.retain_grad()
            self.every[name, layer * problem.D + d, t, b] = tensor
        return [s[0] for s in after]

    def results(self):
        torch, problem = self.torch, self.problem
        loss = (self.output * torch.tensor(problem.d_output)).sum()
        finals = [
            torch.stack([state[s] for state in self.finals]).reshape(self.state[0].shape)
            for s in range(len(self.state))
        ]
        for s, d in zip(finals, reference.as_tuple(problem.d_final_state), strict=True):
            loss = loss + (s * torch.tensor(d)).sum()
        for (name, ld, t, b), tensor in self.every.items():
            if name == "cell":
                loss = loss + (tensor[0] * torch.tensor(problem.d_cell[ld, t, b])).sum()
        loss.backward()
        per_step = {name: gradient(w) for name, w in self.parameters.items()}
        found = {
            "output": self.output.detach().numpy(),
            "final_state": reference.as_state([s.detach().numpy() for s in finals]),
            "tape.hidden": self.standing("hidden", 0),
            "input": gradient(self.x),
            "parameters": {name: steps.sum(axis=0) for name, steps in per_step.items()},
            "initial_state": reference.as_state([gradient(s) for s in self.state]),
            "hidden": self.per_timestep("hidden", problem.H),
            "gates": self.per_timestep("gates", GATES[problem.kind] * problem.H),
            "parameter_norms": {
                name: np.array([np.linalg.norm(step) for step in steps]) for name, steps in per_step.items()
            },
        }
        if problem.kind == "lstm":
            found["tape.cell"] = self.standing("cell", 1)
            found["cell"] = self.per_timestep("cell", problem.H)
        return found | ({"clipped": self.clipped} if self.clip is not None else {})

    def per_timestep(self, name, width):
        """The gradients of every step, zero beyond the lengths."""
        problem = self.problem
        found = np.zeros((problem.L * problem.D, problem.T, problem.B, width))
        for (which, ld, t, b), tensor in self.every.items():
            if which == name:
                found[ld, t, b] = gradient(tensor)
        return found

    def standing(self, name, s):
        """The states of all steps; beyond a length the last one, in the reverse direction the initial one."""
        problem = self.problem
        found = np.zeros((problem.L * problem.D, problem.T, problem.B, problem.H))
        initial = reference.as_tuple(problem.state)[s]
        for ld, t, b in np.ndindex(found.shape[:3]):
            n = self.lengths[b]
            last = None if ld % problem.D or n == 0 else self.every[name, ld, n - 1, b]
            step = self.every.get((name, ld, t, b), last)
            found[ld, t, b] = initial[ld, b] if step is None else step.detach().numpy()
        return found


def gradient(tensor):
    return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()


def clipping(torch, clip, clipped, where):
    """The identity, whose derivative is scaled down to norm `clip`, which `clipped[where]` then tells."""

    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *state):
            return tuple(s.clone() for s in state)

        @staticmethod
        def backward(ctx, *carried):
            norm = torch.cat(carried).norm()
            clipped[where] = norm > clip
            return tuple(d * min(1.0, clip / norm) for d in carried)

    return Clip.apply


def test_norms_do_not_underflow():
    """1e-200 squared is 0 in float64."""
    assert reference.frobenius(np.array([3e-200, 4e-200])) == pytest.approx(5e-200, rel=1e-15)
    assert reference.frobenius(np.zeros((2, 0))) == 0


def test_padding_may_hold_nan(kind):
    """Nothing beyond a length is ever multiplied."""
    problem = Problem(kind, T=5, B=4, L=2, D=2)
    beyond = np.arange(problem.T)[:, None] >= problem.lengths
    options = {"state": problem.state, "lengths": problem.lengths}
    clean = run_reference(problem, options)
    x = np.where(beyond[:, :, None], np.nan, problem.x)
    loss = problem.loss | {
        name: np.where(beyond[:, :, None], np.nan, problem.loss[name])
        for name in {"d_output", "d_cell"} & set(problem.loss)
    }
    record = reference.forward(kind, wide(problem.parameters), x, **options)
    grads = reference.backward(record, **loss)
    assert np.array_equal(record.output, clean["output"])
    assert np.array_equal(grads.input, clean["input"])
    assert all(np.array_equal(grads.parameters[name], clean["parameters"][name]) for name in grads.parameters)


def test_an_empty_batch_gives_empty_arrays_and_zero_gradients(kind):
    problem = Problem(kind, B=0, L=2, D=2)
    found = run_reference(problem, {"state": problem.state})
    assert found["output"].shape == (problem.T, 0, 2 * problem.H)
    for name, value in found["parameters"].items():
        assert value.shape == problem.shapes[name]
        assert not value.any()
