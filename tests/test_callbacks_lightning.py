"""The callback of Lightning: it measures and logs, and no bit of the training changes."""

from __future__ import annotations

import doctest

import pytest

from throughtime import sinks

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Lightning


@pytest.fixture(scope="module")
def side():
    import lightning_side  # not at the top: every process that collects tests would import lightning

    return lightning_side


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("range", ["float", "full"])
def test_no_bit_of_twenty_steps_changes(side, tmp_path, form, range):
    plain, logger = side.fit(side.Model(form), tmp_path), side.Logger()
    callback = side.FlowMonitorCallback(every=7, sinks=[sinks.JsonLines(tmp_path / "flow.jsonl")], range=range)
    assert isinstance(callback, side.lightning.Callback)
    watched = side.fit(side.Model(form), tmp_path, [callback], [logger], log_every_n_steps=1)
    assert watched.seen == plain.seen
    assert side.bits(watched) == side.bits(plain)
    history = callback.monitor.history
    assert [(record.step, record.layer) for record in history] == [(0, "encoder"), (7, "encoder"), (14, "encoder")]
    assert callback.monitor.losses == plain.seen
    assert len((tmp_path / "flow.jsonl").read_text().splitlines()) == 3
    flow = [(step, row) for step, row in logger.rows if any(name.startswith("flow_") for name in row)]
    assert flow == [(record.step, record.scalars()) for record in history]
    losses = {step: row["loss"] for step, row in logger.rows if "loss" in row}
    assert losses == dict(enumerate(plain.seen))  # at the steps that Lightning has for the same batches


def test_losses_of_accumulated_batches_are_those_of_the_module(side, tmp_path):
    callback = side.FlowMonitorCallback(every=1)
    model = side.fit(side.Model(), tmp_path, [callback], accumulate_grad_batches=4)
    assert callback.monitor.losses == model.seen  # divided and multiplied by a power of two
    assert len(callback.monitor.history) == 20


def test_an_exception_closes_the_monitor(side, tmp_path):
    sink = sinks.JsonLines(tmp_path / "flow.jsonl")
    callback = side.FlowMonitorCallback(every=1, sinks=[sink])
    model = side.Fails()
    with pytest.raises(RuntimeError, match="disk full"):
        side.fit(model, tmp_path, [callback])
    assert len(callback.monitor.history) == 3
    assert sink._file.closed
    model.encoder(side.torch.zeros(side.B, side.T, side.I))[0].sum().backward()
    assert len(callback.monitor.history) == 3


def test_a_module_without_our_layers_is_an_error(side, tmp_path):
    with pytest.raises(ValueError, match=r"throughtime\.torch\.replace converts encoder"):
        side.fit(side.Unwatchable(), tmp_path, [side.FlowMonitorCallback()])


def test_the_example_runs(side):
    found = doctest.testmod(side.module)
    assert (found.failed, found.attempted > 0) == (0, True)
