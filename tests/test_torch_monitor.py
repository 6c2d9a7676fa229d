"""`throughtime.torch.FlowMonitor`: no bit of a training changes, and the records are those of the NumPy interface."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt

torch = pytest.importorskip("torch")
import throughtime.torch as bridge  # noqa: E402


class Model(torch.nn.Module):
    """Embedding, two recurrent modules, Linear."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.encoder = bridge.LSTM(6, 7, num_layers=2, bidirectional=True, dropout=0.2)
        self.decoder = bridge.GRU(14, 5, batch_first=True)
        self.head = torch.nn.Linear(5, 11)

    def forward(self, ids):
        """Logits (B, T, 11)."""
        output, _ = self.encoder(self.embedding(ids))
        output, _ = self.decoder(output.swapaxes(0, 1))
        return self.head(output)


def train(steps, watch=None, prepare=lambda model: model):
    """Losses and weights; `watch` makes a monitor."""
    torch.manual_seed(0)
    model = Model()
    ids = torch.randint(0, 11, (40, 3))
    monitor = watch(model) if watch else None
    runs, optimiser, losses = prepare(model), torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(runs(ids[:-1]).flatten(0, 1), ids[1:].T.flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if monitor:
            monitor.add_loss(loss.detach())
    if monitor:
        monitor.close()
    return losses, list(model.state_dict().values()), monitor


@pytest.mark.parametrize("range", ["float", "full"])
def test_training_has_the_same_bits(range):
    losses, weights, _ = train(7)
    watched, watched_weights, monitor = train(7, lambda model: bridge.FlowMonitor(model, every=3, range=range))
    assert losses == watched == monitor.losses
    assert all(torch.equal(a, b) for a, b in zip(weights, watched_weights, strict=True))
    assert [(record.step, record.layer) for record in monitor.history] == [
        (step, layer) for step in (0, 3, 6) for layer in ("decoder", "encoder")
    ]
    assert monitor.history[1].rows == ("layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse")


def test_a_compiled_model_is_watched():
    losses, _, _ = train(3, prepare=lambda model: torch.compile(model, backend="aot_eager"))
    watched, _, monitor = train(
        3, lambda model: bridge.FlowMonitor(model, every=1), lambda model: torch.compile(model, backend="aot_eager")
    )
    assert losses == watched
    assert [record.step for record in monitor.history] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("range", ["float", "full"])
def test_the_records_are_those_of_the_numpy_interface(range):
    module = bridge.LSTM(4, 6, num_layers=2)
    layer = tt.LSTM(4, 6, num_layers=2)
    layer.load_parameters({name: value.detach().numpy() for name, value in module.named_parameters()})
    x = np.random.default_rng(0).standard_normal((50, 3, 4), dtype=np.float32)
    d = np.zeros((50, 3, 6), np.float32)
    d[-1] = 1
    with bridge.FlowMonitor(module, every=1, range=range) as monitor:
        module(torch.from_numpy(x))[0][-1].sum().backward()
    with tt.FlowMonitor(layer, every=1, range=range) as expected:
        layer.forward(x).backward(d)
    (found,), (record,) = monitor.history, expected.history
    for name in ("lags", "log10_norm", "gamma", "horizon", "zero_share"):
        np.testing.assert_array_equal(getattr(found, name), getattr(record, name), name)
    assert found.cancellation == record.cancellation


def test_it_watches_beside_record():
    module = bridge.GRU(4, 6)
    with bridge.FlowMonitor(module, every=1) as monitor, bridge.record(module, timesteps=("gates",)) as timesteps:
        module(torch.randn(9, 2, 4))[0].sum().backward()
    assert len(monitor.history) == 1
    assert vars(timesteps.backwards[0]).keys() == {"gates"}


def test_weights_without_gradients_and_half_precision_modules():
    module = bridge.LSTM(4, 6).bfloat16()
    for weight in module.parameters():
        weight.requires_grad_(False)
    x = torch.randn(9, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    with bridge.FlowMonitor(module, every=1, range="full") as monitor:
        module(x)[0].sum().backward()
    assert np.isfinite(monitor.history[0].log10_norm).all()
    assert all(weight.grad is None for weight in module.parameters())


def test_a_module_whose_weights_have_moved_is_still_watched():
    module = bridge.GRU(4, 6)
    with bridge.FlowMonitor(module, every=1) as monitor:
        module.double()
        module(torch.randn(9, 2, 4, dtype=torch.float64))[0].sum().backward()
        module.load_state_dict(bridge.GRU(4, 6).state_dict(), assign=True)
        module(torch.randn(9, 2, 4))[0].sum().backward()
    assert [record.step for record in monitor.history] == [0, 1]


def test_a_module_at_the_former_address_of_a_weight_is_not_watched():
    module, other = bridge.GRU(4, 6), bridge.GRU(4, 6)
    with bridge.FlowMonitor(module, every=1) as monitor:
        former = module.weight_ih_l0.data
        module.weight_ih_l0.data = former.clone()
        other.weight_ih_l0.data = former
        other(torch.randn(9, 2, 4))[0].sum().backward()
    assert monitor.history == []


def test_a_spectral_norm_beside_the_first_weight_keeps_its_bits():
    module = torch.nn.utils.parametrizations.spectral_norm(bridge.GRU(4, 6), "weight_hh_l0")
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    bridge.FlowMonitor(module).close()
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())


def test_first_weights_that_do_not_tell_modules_apart_are_errors():
    parametrized = torch.nn.utils.parametrizations.weight_norm(bridge.GRU(4, 6), "weight_ih_l0")
    with pytest.raises(ValueError, match="GRU cannot be watched: its weight_ih_l0 is parametrized"):
        bridge.FlowMonitor(parametrized)
    tied = torch.nn.ModuleList([bridge.GRU(4, 6), bridge.GRU(4, 6)])
    tied[1].weight_ih_l0 = tied[0].weight_ih_l0
    with pytest.raises(ValueError, match="0 and 1 share weight_ih_l0"):
        bridge.FlowMonitor(tied)


@pytest.mark.filterwarnings("error")
def test_a_loss_with_a_graph_is_added_without_a_warning():
    monitor = bridge.FlowMonitor(bridge.GRU(4, 6))
    monitor.add_loss(torch.ones(1, requires_grad=True) * 2)
    assert monitor.losses == [2.0]


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got GRU"):
        bridge.FlowMonitor(tt.GRU(2, 2))
    with pytest.raises(ValueError, match=r"no throughtime\.torch RNN, GRU or LSTM to watch$"):
        bridge.FlowMonitor(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"throughtime\.torch\.replace converts 0"):
        bridge.FlowMonitor(torch.nn.Sequential(torch.nn.LSTM(2, 2)))
