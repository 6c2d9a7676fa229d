"""`record`, `replace`, `AddLayerNorm` and `ResidualBlock` of throughtime.torch."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import ALL_TIMESTEPS, TORCH_KINDS, Problem
from torch_side import BOUND, arrays, leaves, module_of, torch

ours = pytest.importorskip("throughtime.torch")


# record


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_what_is_recorded_is_what_a_tape_gives(kind):
    """The same bits, for both directions and all layers."""
    problem = Problem(kind, L=2, D=2)
    module = module_of(problem, library=ours)
    with ours.record(module) as timesteps:
        output, _ = module(leaves(problem.x))
        output.backward(torch.tensor(problem.d_output))
    grads = problem.layer().forward(problem.x).backward(problem.d_output, timesteps=ALL_TIMESTEPS)
    for name in ("hidden", "gates", *(["cell"] if kind.startswith("lstm") else [])):
        assert_same_bits(arrays(getattr(timesteps, name)), getattr(grads, name))
    norms = {name: arrays(norm) for name, norm in timesteps.parameter_norms.items()}
    assert_same_bits(norms, grads.parameter_norms)


def test_recording_leaves_gradients_as_they_are():
    """Also those of frozen parameters, whose norms are recorded too."""
    problem = Problem("gru", L=2)
    found = []
    for recorded in (False, True):
        module = module_of(problem, library=ours)
        module.weight_hh_l0.requires_grad_(False)
        x = leaves(problem.x)
        output, _ = module(x)
        if recorded:
            with ours.record(module) as timesteps:
                output.sum().backward()
            assert timesteps.parameter_norms["weight_hh_l0"].max() > 0
        else:
            output.sum().backward()
        assert module.weight_hh_l0.grad is None
        found.append({n: arrays(p.grad) for n, p in (("x", x), *module.named_parameters()) if p.grad is not None})
    assert_same_bits(found[1], found[0])


def test_every_backward_pass_inside_is_recorded():
    """A loss of two windows: the last call comes first, and the attributes are those of the pass that ran last."""
    module = ours.LSTM(3, 4)
    first, state = module(torch.randn(5, 2, 3))
    second, _ = module(torch.randn(7, 2, 3), state)
    with ours.record(module, timesteps=("hidden",)) as timesteps:
        with pytest.raises(AttributeError, match="no backward pass of this module has run yet"):
            _ = timesteps.hidden
        (first.sum() + second.sum()).backward()
    assert [one.hidden.shape[1] for one in timesteps.backwards] == [7, 5]
    assert timesteps.hidden is timesteps.backwards[1].hidden
    with pytest.raises(AttributeError, match=r"record\(module, timesteps=\('gates', \.\.\.\)\)"):
        _ = timesteps.gates
    with pytest.raises(AttributeError, match="have no 'weights'"):
        _ = timesteps.weights


def test_of_a_packed_sequence_the_batch_is_in_the_callers_order():
    sequences = [torch.randn(length, 3) for length in (4, 7, 1)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    module = ours.GRU(3, 4)
    with ours.record(module) as timesteps:
        module(packed)[0].data.sum().backward()
    reached = timesteps.hidden[0].abs().sum(2) > 0  # (T, B)
    assert reached.sum(0).tolist() == [4, 7, 1]


def test_unbatched_input_is_recorded_without_a_batch():
    module = ours.LSTM(3, 4)
    with ours.record(module) as timesteps:
        module(torch.randn(5, 3))[0].sum().backward()
    assert timesteps.hidden.shape == timesteps.cell.shape == (1, 5, 4)


def test_only_the_module_itself_is_recorded():
    lower, upper = ours.RNN(3, 3), ours.RNN(3, 3)
    output = upper(lower(torch.randn(5, 2, 3))[0])[0]
    with ours.record(lower) as one, ours.record(upper) as other:
        output.sum().backward()
    assert len(one.backwards) == len(other.backwards) == 1
    assert not torch.equal(one.hidden, other.hidden)


def test_hooks_on_saved_tensors_leave_gradients_and_recordings_as_they_are(tmp_path):
    """They pass copies to the backward, also of the weights: in memory, in files, on the CPU, recomputed."""
    module, x = ours.LSTM(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)

    def to_file(tensor):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save(tensor.detach(), path)
        return path

    hooks = torch.autograd.graph.saved_tensors_hooks
    contexts = [
        contextlib.nullcontext(),
        hooks(lambda tensor: tensor.detach().clone(), lambda tensor: tensor),
        hooks(to_file, torch.load),
        torch.autograd.graph.save_on_cpu(),
    ]
    found = []
    for context in contexts:
        module.zero_grad()
        with context:
            output, _ = module(x)
        with ours.record(module) as timesteps:
            output.square().sum().backward()
        recorded = arrays((timesteps.hidden, timesteps.cell, timesteps.gates))
        found.append((recorded, {name: arrays(p.grad).copy() for name, p in module.named_parameters()}))
    for one in found[1:]:
        assert_same_bits(one, found[0])


def test_what_cannot_be_recorded():
    module = ours.GRU(3, 4)
    with (
        pytest.raises(TypeError, match=r"got torch.nn.Sequential, which has one at '1'"),
        ours.record(torch.nn.Sequential(torch.nn.Linear(3, 3), module)),
    ):
        pass
    for other, named in (
        (torch.nn.GRU(3, 4), r"got torch.nn.GRU; throughtime.torch.replace converts torch"),
        (torch.nn.LSTM, "got the class torch.nn.LSTM"),
        (ours.LSTM, "got the class throughtime.torch.LSTM"),
        (tt.LSTM(3, 4), "got throughtime.LSTM"),
        (Own(3, 4), "got Own; "),
    ):
        with pytest.raises(TypeError, match=rf"module must be a throughtime.torch.RNN, .*{named}"), ours.record(other):
            pass
    with pytest.raises(ValueError, match="timesteps has 'states'"), ours.record(module, timesteps=("states",)):
        pass
    with (
        pytest.raises(ValueError, match="module is being recorded already"),
        ours.record(module),
        ours.record(module),
    ):
        pass
    with pytest.raises(RuntimeError, match="no backward pass of this module ran inside"), ours.record(module):
        module(torch.randn(5, 2, 3))


# replace


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.LSTM(4, 6, num_layers=2, dropout=0.1, batch_first=True)
        self.again = self.encoder
        self.decoders = torch.nn.ModuleList([torch.nn.GRU(6, 6), torch.nn.RNN(6, 6, nonlinearity="relu")])
        self.head = torch.nn.Linear(6, 2)

    def forward(self, x):
        output, _ = self.encoder(x)
        for decoder in self.decoders:
            output, _ = decoder(output)
        return self.head(output)


class Own(torch.nn.LSTM):
    def forward(self, x):
        return x


def test_replaced_modules_have_the_very_same_parameters():
    model = Net().double().eval()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = arrays(model(x))
    parameters = dict(model.named_parameters())
    encoder = model.encoder
    assert ours.replace(model) is model
    assert type(model.encoder) is ours.LSTM
    assert [type(module) for module in model.decoders] == [ours.GRU, ours.RNN]
    assert model.again is model.encoder
    assert not model.encoder.training
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert type(encoder) is torch.nn.LSTM
    assert_close(arrays(model(x)), expected, BOUND)
    assert repr(model.encoder) == f"throughtime.torch.{encoder!r}"
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    assert not np.array_equal(arrays(model(x)), expected)


def test_replacing_twice_is_replacing_once():
    model = ours.replace(Net())
    encoder = model.encoder
    assert ours.replace(model).encoder is encoder


def messages(caplog, model):
    """The level and the text of the message of `replace`."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "throughtime.torch"):
        ours.replace(model)
    (record,) = caplog.records
    return record.levelno, record.getMessage()


def test_replacing_says_what_it_did_and_what_it_left(caplog):
    assert messages(caplog, Net()) == (
        logging.INFO,
        "replace: 3 modules replaced ('encoder', 'decoders.0', 'decoders.1')",
    )
    assert messages(caplog, torch.nn.GRU(3, 4)) == (logging.INFO, "replace: 1 module replaced (the model itself)")
    assert messages(caplog, ours.replace(Net())) == (logging.INFO, "replace: 0 modules replaced")
    level, text = messages(caplog, torch.nn.Linear(3, 4))
    assert level == logging.WARNING
    assert text == "replace: 0 modules replaced: the model has no torch.nn.RNN, LSTM or GRU among its modules"
    strange = torch.nn.LSTM(3, 4)
    strange.bidirectional = "yes"
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.RNN(3, 4), "weight_hh_l0")
    parts = {"rnn": torch.nn.RNN(3, 4), "own": Own(3, 4), "cell": torch.nn.LSTMCell(3, 4), "normed": normed}
    model = torch.nn.ModuleDict(parts | {"strange": strange})
    level, text = messages(caplog, model)
    assert level == logging.WARNING
    assert text.startswith("replace: 1 module replaced ('rnn'), 4 left: 'own' (Own: a subclass")
    assert "'cell' (torch.nn.LSTMCell: it is called for one step at a time" in text
    assert "'normed' (ParametrizedRNN: it is parametrized; replace it first" in text
    assert "'strange' (torch.nn.LSTM: bidirectional must be True or False, got 'yes')" in text
    assert {name: type(part) for name, part in model.items()} == {
        **{name: type(part) for name, part in parts.items()},
        "rnn": ours.RNN,
        "strange": torch.nn.LSTM,
    }


def test_a_module_itself_is_replaced():
    theirs = torch.nn.GRU(3, 4, bidirectional=True)
    mine = ours.replace(theirs)
    assert type(mine) is ours.GRU
    assert type(theirs) is torch.nn.GRU
    assert mine.weight_ih_l0 is theirs.weight_ih_l0
    mine.half()  # in place, as torch does, on the shared parameters
    assert theirs.weight_ih_l0.dtype is torch.float16


def test_hooks_go_along_and_subclasses_stay():
    model = torch.nn.ModuleDict({"rnn": torch.nn.RNN(3, 4), "own": Own(3, 4)})
    seen = []
    handle = model["rnn"].register_forward_hook(lambda module, *_: seen.append(type(module)))
    ours.replace(model)
    assert type(model["own"]) is Own
    model["rnn"](torch.randn(5, 2, 3))
    handle.remove()
    model["rnn"](torch.randn(5, 2, 3))
    assert seen == [ours.RNN]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        ours.replace("model")


# blocks


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_add_layer_norm_is_torchs_layer_norm_of_the_sum(scale):
    norm = ours.AddLayerNorm(5, scale=scale, dtype=torch.float64)
    theirs = torch.nn.LayerNorm(5, dtype=torch.float64)
    torch.nn.init.normal_(theirs.weight)
    norm.load_state_dict(theirs.state_dict())
    x, branch = (torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    d = torch.randn(2, 4, 3, 5, dtype=torch.float64)

    def gradients(total, normalised, module):
        wanted = (x, branch, *module.parameters())
        both = torch.autograd.grad((total, normalised), wanted, (d[0], d[1]), retain_graph=True)
        one = torch.autograd.grad(normalised, wanted, d[1], retain_graph=True)
        return arrays((total, normalised, *both, *one, *torch.autograd.grad(total, (x, branch), d[0])))

    total = x + scale * branch
    assert_close(gradients(*norm(x, branch), norm), gradients(total, theirs(total), theirs), BOUND)
    assert torch.autograd.gradcheck(lambda x, branch: norm(x, branch), (x, branch))


@pytest.mark.parametrize("norm", ["pre", "post", None])
@pytest.mark.parametrize("residual", [True, False])
def test_residual_blocks_are_those_of_the_numpy_interface(norm, residual):
    """The same parameter names and, in float64, the same numbers."""
    options = {"norm": norm, "residual": residual, "branch_scale": 0.7}
    layer = tt.ResidualBlock(tt.GRU(6, 6, dtype="float64", seed=0), 6, **options)
    block = ours.ResidualBlock(ours.GRU(6, 6, dtype=torch.float64), 6, dtype=torch.float64, **options)
    block.load_state_dict({name: torch.tensor(array) for name, array in layer.parameters.items()})
    x = torch.randn(7, 3, 6, dtype=torch.float64, requires_grad=True)
    d = torch.randn_like(x)
    y = block(x)
    y.backward(d)
    tape = layer.forward(x.detach().numpy())
    grads = tape.backward(d.numpy())
    assert_close(arrays(y), tape.output, BOUND)
    assert_close(arrays(x.grad), grads.input, BOUND)
    assert_close({name: arrays(p.grad) for name, p in block.named_parameters()}, grads.parameters, BOUND)


def test_a_block_takes_any_module():
    """Under autocast, linear layers return bfloat16, which float32 sums represent exactly."""
    mlp = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 6))
    block = ours.ResidualBlock(mlp, 6, norm="post")
    x = torch.randn(7, 3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(x).dtype is torch.float32
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
