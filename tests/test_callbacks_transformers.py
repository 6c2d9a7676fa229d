"""The callback of transformers' Trainer: it measures and logs, and no bit of the training changes."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest

from throughtime import sinks

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import throughtime.torch
    from throughtime.callbacks import transformers as module
    from throughtime.callbacks.transformers import FlowMonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers
T, B, I, H = 30, 4, 3, 5  # noqa: E741


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = throughtime.torch.LSTM(I, H, num_layers=2, batch_first=True, dropout=0.1)
        self.decoder = throughtime.torch.GRU(H, H, batch_first=True)
        self.head = torch.nn.Linear(H, 1)
        self.seen = []

    def forward(self, x, labels):
        logits = self.head(self.decoder(self.encoder(x)[0])[0][:, -1])
        loss = torch.nn.functional.mse_loss(logits, labels)
        if self.training:
            self.seen.append(loss.item())
        return {"loss": loss, "logits": logits}


class Fails(Model):
    def forward(self, x, labels):
        if len(self.seen) == 3:
            raise RuntimeError("disk full")
        return super().forward(x, labels)


def trainer_of(model, path, callback=None, **options):
    rng = np.random.default_rng(0)
    rows = [
        {"x": torch.tensor(x, dtype=torch.float32), "labels": torch.tensor(y, dtype=torch.float32)}
        for x, y in zip(rng.standard_normal((20 * B, T, I)), rng.standard_normal((20 * B, 1)), strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=B,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else None)


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("range", ["float", "full"])
def test_no_bit_of_twenty_steps_changes(tmp_path, range):
    plain = Model()
    trainer_of(plain, tmp_path).train()
    watched = Model()
    trainer = trainer_of(watched, tmp_path)
    callback = FlowMonitorCallback(
        every=7, sinks=[sinks.JsonLines(tmp_path / "flow.jsonl")], range=range, trainer=trainer
    )
    trainer.add_callback(callback)
    trainer.train()
    assert watched.seen == plain.seen
    assert len(plain.seen) == 20
    assert bits(watched) == bits(plain)
    history = callback.monitor.history
    assert [(record.step, record.layer) for record in history] == [
        (step, layer) for step in (0, 7, 14) for layer in ("decoder", "encoder")
    ]
    assert len((tmp_path / "flow.jsonl").read_text().splitlines()) == 6
    np.testing.assert_allclose(callback.monitor.losses, plain.seen, rtol=1e-4)  # the Trainer rounds what it logs
    logged = [row for row in trainer.state.log_history if any(name.startswith("flow_") for name in row)]
    for row, at in zip(logged, (0, 7, 14), strict=True):
        expected = {}
        for record in history:
            expected |= record.scalars() if record.step == at else {}
        assert {name: value for name, value in row.items() if name.startswith("flow_")} == expected
        assert row["step"] == at + 1  # the Trainer's step has ended


def test_without_a_trainer_nothing_is_logged(tmp_path):
    callback = FlowMonitorCallback(every=5)
    trainer = trainer_of(Model(), tmp_path, callback, gradient_accumulation_steps=2)
    trainer.train()
    assert [record.step for record in callback.monitor.history if record.layer == "encoder"] == [0, 5, 10, 15]
    assert not any(name.startswith("flow_") for row in trainer.state.log_history for name in row)
    assert len(callback.monitor.losses) == 10


def test_the_next_training_closes_the_monitor_that_an_exception_left(tmp_path):
    model, callback = Fails(), FlowMonitorCallback(every=1)
    trainer = trainer_of(model, tmp_path, callback)
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.train()
    first = callback.monitor
    assert len(first.history) == 6
    model.seen = []
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.train()
    assert callback.monitor is not first
    assert len(first.history) == 6


def test_errors(tmp_path):
    with pytest.raises(TypeError, match=r"trainer must be a transformers\.Trainer, got int"):
        FlowMonitorCallback(trainer=3)
    model = Model()
    model.encoder, model.decoder = torch.nn.LSTM(I, H, batch_first=True), torch.nn.GRU(H, H, batch_first=True)
    with pytest.raises(ValueError, match=r"throughtime\.torch\.replace converts encoder, decoder"):
        trainer_of(model, tmp_path, FlowMonitorCallback()).train()


def test_the_example_runs():
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)
