"""The callback of Lightning: it measures and logs, and no bit of the training changes."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest

from throughtime import sinks

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import lightning.pytorch as lightning
    except ModuleNotFoundError:
        lightning = pytest.importorskip("pytorch_lightning")
    import throughtime.torch
    from throughtime.callbacks import lightning as module
    from throughtime.callbacks.lightning import FlowMonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Lightning
T, B, I, H = 30, 4, 3, 5  # noqa: E741


class Model(lightning.LightningModule):
    def __init__(self, form="tensor"):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = throughtime.torch.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = torch.nn.Linear(2 * H, 1)
        self.form, self.seen = form, []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.head(self.encoder(x)[0][:, -1]), y)
        self.seen.append(loss.item())
        self.log("loss", loss)
        return {"loss": loss} if self.form == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Fails(Model):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("disk full")
        return super().training_step(batch, batch_idx)


class Unwatchable(Model):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.LSTM(I, H, bidirectional=True, batch_first=True)


class Logger(lightning.loggers.logger.Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass


def fit(model, path, callbacks=(), logger=False, **options):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((20 * B, T, I)), dtype=torch.float32)
    y = torch.tensor(rng.standard_normal((20 * B, 1)), dtype=torch.float32)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=B)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        default_root_dir=path,
        **quiet,
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(model, batches)
    return model


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("range", ["float", "full"])
def test_no_bit_of_twenty_steps_changes(tmp_path, form, range):
    plain, logger = fit(Model(form), tmp_path), Logger()
    callback = FlowMonitorCallback(every=7, sinks=[sinks.JsonLines(tmp_path / "flow.jsonl")], range=range)
    watched = fit(Model(form), tmp_path, [callback], [logger], log_every_n_steps=1)
    assert watched.seen == plain.seen
    assert bits(watched) == bits(plain)
    history = callback.monitor.history
    assert [(record.step, record.layer) for record in history] == [(0, "encoder"), (7, "encoder"), (14, "encoder")]
    assert callback.monitor.losses == plain.seen
    assert len((tmp_path / "flow.jsonl").read_text().splitlines()) == 3
    flow = [(step, row) for step, row in logger.rows if any(name.startswith("flow_") for name in row)]
    assert flow == [(record.step, record.scalars()) for record in history]
    losses = {step: row["loss"] for step, row in logger.rows if "loss" in row}
    assert losses == dict(enumerate(plain.seen))  # at the steps that Lightning has for the same batches


def test_losses_of_accumulated_batches_are_those_of_the_module(tmp_path):
    callback = FlowMonitorCallback(every=1)
    model = fit(Model(), tmp_path, [callback], accumulate_grad_batches=4)
    assert callback.monitor.losses == model.seen  # divided and multiplied by a power of two
    assert len(callback.monitor.history) == 20


def test_an_exception_closes_the_monitor(tmp_path):
    sink = sinks.JsonLines(tmp_path / "flow.jsonl")
    callback = FlowMonitorCallback(every=1, sinks=[sink])
    model = Fails()
    with pytest.raises(RuntimeError, match="disk full"):
        fit(model, tmp_path, [callback])
    assert len(callback.monitor.history) == 3
    with pytest.raises(ValueError, match="is closed"):
        sink(callback.monitor.history[0])
    model.encoder(torch.zeros(B, T, I))[0].sum().backward()
    assert len(callback.monitor.history) == 3


def test_a_module_without_our_layers_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"throughtime\.torch\.replace converts encoder"):
        fit(Unwatchable(), tmp_path, [FlowMonitorCallback()])


def test_the_example_runs():
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)
