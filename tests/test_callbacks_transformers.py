"""The callback of transformers' Trainer: it measures and logs, and no bit of the training changes."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from throughtime import sinks

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers


@pytest.fixture(scope="module")
def side():
    import transformers_side  # not at the top: every process that collects tests would import transformers

    return transformers_side


@pytest.mark.parametrize("range", ["float", "full"])
def test_no_bit_of_twenty_steps_changes(side, tmp_path, range):
    plain = side.Model()
    side.trainer_of(plain, tmp_path).train()
    watched = side.Model()
    trainer = side.trainer_of(watched, tmp_path)
    callback = side.FlowMonitorCallback(
        every=7, sinks=[sinks.JsonLines(tmp_path / "flow.jsonl")], range=range, trainer=trainer
    )
    trainer.add_callback(callback)
    trainer.train()
    assert watched.seen == plain.seen
    assert len(plain.seen) == 20
    assert side.bits(watched) == side.bits(plain)
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


def test_without_a_trainer_nothing_is_logged(side, tmp_path):
    callback = side.FlowMonitorCallback(every=5)
    trainer = side.trainer_of(side.Model(), tmp_path, callback, gradient_accumulation_steps=2)
    trainer.train()
    assert [record.step for record in callback.monitor.history if record.layer == "encoder"] == [0, 5, 10, 15]
    assert not any(name.startswith("flow_") for row in trainer.state.log_history for name in row)
    assert len(callback.monitor.losses) == 10


def test_the_next_training_closes_the_monitor_that_an_exception_left(side, tmp_path):
    model, callback = side.Fails(), side.FlowMonitorCallback(every=1)
    trainer = side.trainer_of(model, tmp_path, callback)
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.train()
    first = callback.monitor
    assert len(first.history) == 6
    model.seen = []
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.train()
    assert callback.monitor is not first
    assert len(first.history) == 6


def test_errors(side, tmp_path):
    with pytest.raises(TypeError, match=r"trainer must be a transformers\.Trainer, got int"):
        side.FlowMonitorCallback(trainer=3)
    model, rnns = side.Model(), side.torch.nn
    model.encoder, model.decoder = rnns.LSTM(3, 5, batch_first=True), rnns.GRU(5, 5, batch_first=True)
    with pytest.raises(ValueError, match=r"throughtime\.torch\.replace converts encoder, decoder"):
        side.trainer_of(model, tmp_path, side.FlowMonitorCallback()).train()


def test_the_example_runs(side):
    found = doctest.testmod(side.module)
    assert (found.failed, found.attempted > 0) == (0, True)
