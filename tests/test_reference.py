"""The reference is right: against complex step, torch's modules, and autograd over torch's cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from comparison import assert_close, assert_same_bits, wide
from problems import GATES, KINDS, STATES, TORCH_KINDS, Problem, problems, reference_forward, run_reference
from reference import NORMALISED

BOUND = 1e-11  # float64 on both sides: rounding errors are 1e-13, and no error in a formula is below this

PLAIN_KINDS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # torch has a single step of these


def loss_of(problem, parameters, x, state, **options):
    """The scalar whose gradient `backward` computes."""
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
@given(data=st.data(), ragged=st.booleans(), masked=st.booleans())
def test_every_gradient_is_the_complex_step(kind, data, ragged, masked):
    """x, each parameter and the initial state, each moved in a random direction by 1e-30 i. Zoneout and dropout of
    weights with masks, and without them the expectation of zoneout."""
    problem = data.draw(problems(kind, noise=True))
    options = {"lengths": problem.lengths, "resets": problem.resets} if ragged else {}
    options |= {"zoneout": problem.zoneout, "weight_dropout": problem.weight_dropout}
    options |= {"masks": problem.masks} if masked else {}
    record = reference.forward(kind, problem.parameters, problem.x, problem.state, **options)
    grads = reference.backward(record, **problem.loss)
    inputs, found = {"x": problem.x, **problem.parameters}, {"x": grads.input, **grads.parameters}
    states, d_states = reference.as_tuple(problem.state), reference.as_tuple(grads.initial_state)
    for name, s, d in zip("hc", states, d_states, strict=False):
        inputs[name], found[name] = s, d
    for name, values in inputs.items():
        direction = problem.random("direction of " + name, values.shape)
        moved = inputs | {name: values + 1e-30j * direction}
        state = reference.as_state([moved[s] for s in "hc"[: len(states)]])
        parameters = {name: moved[name] for name in problem.parameters}
        slope = loss_of(problem, parameters, moved["x"], state, **options).imag / 1e-30
        products = found[name] * direction
        assert abs(slope - products.sum()) <= BOUND * max(np.abs(products).sum(), cancelling(kind, grads.hidden)), name


def cancelling(kind, d_h):
    """Layer normalisation cancels scaling and shifts of a row; if d_h is nothing else, rounding errors remain."""
    return np.max(np.abs(d_h), initial=0) if kind in NORMALISED else 0


@pytest.mark.parametrize("kind", TORCH_KINDS)
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
    module = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[problem.kind.partition("_")[0]](
        problem.I,
        problem.H,
        problem.L,
        bias=problem.bias,
        bidirectional=problem.D == 2,
        dtype=torch.float64,
        **problem.options,
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
    masked=st.booleans(),
    truncate=st.sampled_from([None, 1, 2, 3]),
    clip=st.sampled_from([None, 0.3, 2.0]),
)
def test_everything_against_autograd_sequence_by_sequence(kind, data, ragged, episodes, masked, truncate, clip):
    """Lengths, resets, truncation, clipping, noise, all gradients per timestep, and no padding: a separate loop over
    torch's cell for each sequence, with a copy of the parameters for each step; autograd computes the gradients."""
    torch = pytest.importorskip("torch")
    problem = data.draw(problems(kind, most_layers=2, noise=True))
    lengths = problem.lengths if ragged else np.full(problem.B, problem.T)
    resets = problem.resets & episodes
    masks = problem.masks if masked else {}
    options = {"state": problem.state, "lengths": lengths, "resets": resets, "masks": masks}
    ours = run_reference(problem, options, {"truncate": truncate, "clip": clip})
    expected = Twin(torch, problem, lengths, resets, masks, truncate, clip).results()
    assert_close(ours, expected, BOUND, floor=cancelling(kind, expected["hidden"]))


class Twin:
    """A second implementation that shares no code with the reference: the test of the tests."""

    def __init__(self, torch, problem, lengths, resets, masks, truncate, clip):
        self.torch, self.problem, self.lengths, self.resets, self.masks = torch, problem, lengths, resets, masks
        self.truncate, self.clip = truncate, clip
        # Timestep t uses entry [t], so that .grad[t] is its contribution.
        self.parameters = {
            name: tensors(torch, np.stack([value] * problem.T)) for name, value in problem.parameters.items()
        }
        self.x = tensors(torch, problem.x)
        self.state = tensors(torch, reference.as_tuple(problem.state))
        self.every = {}  # (name, ld, t, b): the tensor of one step, to read its value or gradient
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
            zero = torch.zeros(problem.width, dtype=torch.float64)
            rows.append(torch.stack([h_by_t.get(t, zero) for t in range(problem.T)]))
        return torch.stack(rows, dim=1)

    def carry(self, state, ld, t, b, p, n):
        """The state from which step p starts, given the one after the step before."""
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
        if "weight_hh" + suffix in self.masks:
            kept = torch.tensor(~self.masks["weight_hh" + suffix])
            use["weight_hh"] = use["weight_hh"] * kept / (1 - problem.weight_dropout)
        if problem.kind in NORMALISED:
            a = use["weight_ih"] @ x
            a = torch.layer_norm(a, a.shape, use["weight_ln_ih"]) + use.get("bias_ih", 0)
        else:
            a = use["weight_ih"] @ x + use.get("bias_ih", 0)
        cell = (torch_cell if problem.kind in PLAIN_KINDS else new_cell)(torch, problem.kind)
        zeros = torch.zeros(len(a), dtype=torch.float64)
        rows = [s[None] for s in state]
        new = cell(a[None], rows, {"bias_hh": zeros, **use})
        zoneouts = problem.zoneout if isinstance(problem.zoneout, tuple) else (problem.zoneout,) * 2
        after = [
            self.zone(f"zoneout_{name}{suffix}", p, t, b, was, now)
            for name, p, was, now in zip("hc", zoneouts, rows, new, strict=False)
        ]
        for name, tensor in zip(("gates", "hidden", "cell"), (a, *after), strict=False):
            tensor.retain_grad()
            self.every[name, layer * problem.D + d, t, b] = tensor
        return [s[0] for s in after]

    def zone(self, name, p, t, b, was, now):
        if name in self.masks:
            return self.torch.where(self.torch.tensor(self.masks[name][t, b]), was, now)
        return p * was + (1 - p) * now if p else now

    def results(self):
        torch, problem = self.torch, self.problem
        loss = (self.output * torch.tensor(problem.d_output)).sum()
        finals = [
            torch.stack([state[s] for state in self.finals]).reshape(self.state[s].shape)
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
            "hidden": self.per_timestep("hidden", problem.width),
            "gates": self.per_timestep("gates", GATES[problem.kind] * problem.H),
            "parameter_norms": {
                name: np.array([np.linalg.norm(step) for step in steps]) for name, steps in per_step.items()
            },
        }
        if STATES[problem.kind] == 2:
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
        """The states of all steps; beyond a length the last one, or in the reverse direction the initial one."""
        problem = self.problem
        initial = reference.as_tuple(problem.state)[s]
        found = np.zeros((problem.L * problem.D, problem.T, problem.B, initial.shape[-1]))
        for ld, t, b in np.ndindex(found.shape[:3]):
            n = self.lengths[b]
            last = None if ld % problem.D or n == 0 else self.every[name, ld, n - 1, b]
            step = self.every.get((name, ld, t, b), last)
            found[ld, t, b] = initial[ld, b] if step is None else step.detach().numpy()
        return found


def torch_cell(torch, kind):
    """torch's cell with the identity as W_ih, because the product with W_ih is needed separately."""
    cell = {
        "rnn_tanh": torch.rnn_tanh_cell,
        "rnn_relu": torch.rnn_relu_cell,
        "gru": torch.gru_cell,
        "lstm": torch.lstm_cell,
    }[kind]

    def step(a, state, use):
        identity, none = torch.eye(a.shape[1], dtype=torch.float64), torch.zeros(a.shape[1], dtype=torch.float64)
        h = state if kind == "lstm" else state[0]
        return reference.as_tuple(cell(a, h, identity, use["weight_hh"], none, use["bias_hh"]))

    return step


def new_cell(torch, kind):
    """The cells that torch lacks, gate by gate as in the papers."""

    def recurrent(h, use):
        r = h @ use["weight_hh"].T
        return torch.layer_norm(r, r.shape[1:], use["weight_ln_hh"]) if kind in NORMALISED else r

    def rnn(a, state, use):
        activation = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}[kind.split("_")[1]]
        return [activation(a + recurrent(state[0], use) + use["bias_hh"])]

    def gru(a, state, use):
        (h,) = state
        x, r = a.chunk(3, dim=1), (recurrent(h, use) + use["bias_hh"]).chunk(3, dim=1)
        z = torch.sigmoid(x[1] + r[1])
        return [z * h + (1 - z) * torch.tanh(x[2] + torch.sigmoid(x[0] + r[0]) * r[2])]

    def gru_original(a, state, use):
        (h,) = state
        x, w, b = a.chunk(3, dim=1), use["weight_hh"].chunk(3), use["bias_hh"].chunk(3)
        r, z = (torch.sigmoid(x[k] + h @ w[k].T + b[k]) for k in range(2))
        n = torch.tanh(x[2] + (r * h) @ w[2].T + b[2])
        return [z * h + (1 - z) * n]

    def lstm(a, state, use):
        h, c = state
        i, f, g, o = (a + recurrent(h, use) + use["bias_hh"]).chunk(4, dim=1)
        if kind == "lstm_peephole":
            i, f = i + use["weight_ci"] * c, f + use["weight_cf"] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if kind == "lstm_peephole":
            o = o + use["weight_co"] * c
        seen = c
        if kind == "lstm_layer_norm":
            seen = torch.layer_norm(c, c.shape[1:], use["weight_ln_c"], use["bias_ln_c"])
        h = torch.sigmoid(o) * torch.tanh(seen)
        return [h @ use["weight_hr"].T if kind == "lstm_projected" else h, c]

    return gru_original if kind == "gru_original" else {"rnn": rnn, "gru": gru, "lstm": lstm}[kind.partition("_")[0]]


def gradient(tensor):
    return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()


def clipping(torch, clip, clipped, where):
    """The identity, with its derivative scaled down to norm `clip`; `clipped[where]` records whether it was."""

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


@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_hold_nan(kind):
    """No padding is ever multiplied."""
    problem = Problem(kind, T=5, B=4, L=2, D=2, zoneout=0.3)
    beyond = np.arange(problem.T)[:, None] >= problem.lengths
    options = {"state": problem.state, "lengths": problem.lengths, "masks": problem.masks}
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


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_empty_arrays_and_zero_gradients(kind):
    problem = Problem(kind, B=0, L=2, D=2)
    found = run_reference(problem, {"state": problem.state})
    assert found["output"].shape == (problem.T, 0, 2 * problem.width)
    for name, value in found["parameters"].items():
        assert value.shape == problem.shapes[name]
        assert not value.any()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_nothing_change_nothing_and_zoneout_of_everything_stands_still(kind):
    problem = Problem(kind, L=2, D=2, zoneout=0.3, weight_dropout=0.0)
    none = {name: np.zeros_like(mask) for name, mask in problem.masks.items()}
    plain = run_reference(Problem(kind, L=2, D=2), {"state": problem.state})
    found = run_reference(problem, {"state": problem.state, "masks": none})
    found.pop("cell", None), plain.pop("cell", None)  # of the carried c, which does not include h's path
    assert_same_bits(found, plain)
    every = {name: ~mask for name, mask in none.items()}
    still = run_reference(problem, {"state": problem.state, "masks": every})
    assert_same_bits(still["final_state"], wide(problem.state))
    assert not any(value.any() for value in still["parameters"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_weights_have_no_gradient(kind):
    problem = Problem(kind, L=2, D=2, weight_dropout=0.5)
    found = run_reference(problem, {"state": problem.state, "masks": problem.masks})["parameters"]
    for name, mask in problem.masks.items():
        assert mask.any()
        assert not found[name][mask].any()
        assert found[name][~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_derived_bound_holds_for_the_reference_in_float32(kind):
    """The equations in the other precision, within the predicted rounding; absent biases would otherwise be float64."""
    for seed in range(40):
        H = (2, 3, 5, 9, 17)[seed % 5]
        problem = Problem(kind, T=1 + seed % 11, B=1 + seed % 8, H=H, L=1 + seed % 3, D=2, dtype="float32", seed=seed)
        exact = reference_forward(problem, {"state": problem.state})
        record = reference.forward(kind, problem.parameters, problem.x, problem.state)
        assert record.output.dtype == np.float32
        ours, expected = reference.backward(record, **problem.loss), reference.backward(exact, **wide(problem.loss))
        assert_close(record.output, exact.output, problem.bound, "output")
        for name in ("input", "parameters", "hidden", "gates", "initial_state"):
            a, b = getattr(ours, name), getattr(expected, name)
            assert_close(a, b, problem.bound, name, floor=np.max(np.abs(expected.hidden)))
