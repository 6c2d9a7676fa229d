"""The sinks of `FlowMonitor` write what the records hold, and no bit of the training changes."""

from __future__ import annotations

import importlib
import json
import struct
import sys

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from throughtime.monitor.flow_record import FlowRecord

T, B, I, H = 120, 3, 4, 6  # noqa: E741


def train(sinks, log=None, every=7, dtype="float32"):
    """The losses and the parameters of 20 steps, and the records. `log` gets what a loop logs."""
    rng = np.random.default_rng(0)
    model = tt.Sequential(
        tt.LSTM(I, H, 2, bidirectional=True, dtype=dtype, seed=0), tt.GRU(2 * H, H, dtype=dtype, seed=1)
    )
    optimiser, losses = tt.optim.Adam(lr=1e-2), []
    with tt.FlowMonitor(model, every=every, sinks=sinks) as monitor:
        for _ in range(20):
            x = rng.standard_normal((T, B, I)).astype(dtype)
            tape = model.forward(x, lengths=np.array([T, 1, 0]))
            loss, d_output = tt.mse(tape.output, np.ones_like(tape.output))
            optimiser.step(model.parameters, tape.backward(d_output, clip=1e-3).parameters)
            losses.append(float(loss))
            if log is not None:
                log({"loss": losses[-1]})
    return np.array(losses), model.parameters, monitor.history


def assert_the_training_is_the_same(trained, plain):
    assert trained[0].tobytes() == plain[0].tobytes()
    assert_same_bits(trained[1], plain[1])
    assert [record.step for record in trained[2]] == [0, 0, 7, 7, 14, 14]


@pytest.fixture(scope="module")
def plain():
    return train([])


# Names of charts


def record_of(layer="encoder", rows=("layer 0",), **other):
    count = len(rows)
    values = {
        "step": 3,
        "layer": layer,
        "rows": rows,
        "steps": 200,
        "lags": np.array([0, 100, 199]),
        "log10_norm": np.array([[1.0, -np.inf, -320.5]] * count),
        "gamma": np.full(count, 0.5),
        "horizon": np.full(count, np.inf),
        "zero_share": np.full(count, np.nan),
        "cancellation": {"weight_hh_l0": 0.25, "bias_hh_l0": np.nan},
        "clipped_share": 0.125,
        "clipped_steps": (3, 9),
        "not_finite": None,
        "fault": None,
    }
    return FlowRecord(**(values | other))


def test_scalars_are_sorted_into_sections_by_what_they_measure():
    assert record_of().scalars() == {
        "flow_gamma/encoder": 0.5,
        "flow_log10_norm/encoder/lag_0": 1.0,
        "flow_log10_norm/encoder/lag_199": -320.5,
        "flow_cancellation/encoder.weight_hh_l0": 0.25,
        "flow_clipped_share/encoder": 0.125,
    }
    rows = ("layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse")
    names = record_of(rows=rows, zero_share=np.ones(4), horizon=np.arange(4.0)).scalars()
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        for quantity in ("gamma", "horizon", "zero_share"):
            assert f"flow_{quantity}/encoder.{suffix}" in names
    assert "flow_cancellation/encoder.weight_hh_l0" in names  # a parameter says its row itself


# JSON lines


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_json_lines_hold_every_record(tmp_path, dtype):
    path = tmp_path / "flow.jsonl"
    trained = train([tt.sinks.JsonLines(path)], dtype=dtype)
    assert_the_training_is_the_same(trained, train([], dtype=dtype))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines == [record.as_dict() for record in trained[2]]
    assert lines[1]["rows"] == ["layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse"]  # after the layer above
    assert np.array(lines[1]["log10_norm"], float).shape == (4, len(lines[1]["lags"]))


def test_a_line_is_in_the_file_at_once_and_infinities_are_strings(tmp_path):
    path = tmp_path / "flow.jsonl"
    with tt.sinks.JsonLines(str(path)) as sink:
        assert repr(sink) == f"JsonLines({str(path)!r})"
        for count in (1, 2):
            sink(record_of())
            lines = path.read_text().splitlines()
            assert len(lines) == count
    assert json.loads(lines[0])["log10_norm"] == [[1.0, "-inf", -320.5]]
    assert json.loads(lines[0])["horizon"] == ["inf"]
    assert json.loads(lines[0])["cancellation"]["bias_hh_l0"] == "nan"
    sink.close()
    sink(record_of())  # of a second training
    sink.close()
    assert len(path.read_text().splitlines()) == 3


def test_json_lines_replace_nothing_unless_forced(tmp_path):
    path = tmp_path / "flow.jsonl"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"path is '.*flow\.jsonl', which exists; force=True replaces it"):
        tt.sinks.JsonLines(path)
    assert path.read_text() == "precious"
    with tt.sinks.JsonLines(path, force=True) as sink:
        sink(record_of())
    assert json.loads(path.read_text())["step"] == 3
    with pytest.raises(TypeError, match=r"path must be a str or os\.PathLike, got 3"):
        tt.sinks.JsonLines(3)
    with pytest.raises(TypeError, match="force must be True or False, got 'yes'"):
        tt.sinks.JsonLines(path, force="yes")
    with pytest.raises(FileNotFoundError, match="missing"):
        tt.sinks.JsonLines(tmp_path / "missing" / "flow.jsonl")


# TensorBoard


def test_an_object_that_writes_no_scalars_is_no_writer():
    with pytest.raises(TypeError, match="writer must be a SummaryWriter, with add_scalar, got str"):
        tt.sinks.TensorBoard("runs")


@pytest.mark.filterwarnings("ignore")  # those of tensorboard
def test_tensorboard_reads_every_scalar(tmp_path, plain):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        trained = train([tt.sinks.TensorBoard(writer)])
        assert_the_training_is_the_same(trained, plain)
        writer.add_scalar("loss", 1.0, 0)  # it is still open
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected: dict[str, list[tuple[int, float]]] = {"loss": [(0, 1.0)]}
    for record in trained[2]:
        for name, value in record.scalars().items():
            expected.setdefault(name, []).append((record.step, float(np.float32(value))))
    found = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == expected


# Weights & Biases


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()


def start(wandb):
    return wandb.init(
        project="flow",
        settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, save_code=False),
    )


def rows_of(tmp_path):
    """The rows of an offline run, without the underscored columns of wandb's own: records in leveldb's log format."""
    from wandb.proto import wandb_internal_pb2

    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    data, at, part, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the end of a block, too short for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
                rows.append({name: json.loads(text) for name, text in items.items() if not name.startswith("_")})
    return rows


@pytest.mark.filterwarnings("ignore")  # those of wandb
def test_wandb_joins_the_rows_of_the_loop(wandb, tmp_path, plain):
    with start(wandb) as run:
        trained = train([tt.sinks.WandB()], run.log)
        assert run.step == 20  # as without the sink
    assert_the_training_is_the_same(trained, plain)
    wandb.teardown()  # its process has written everything when it ends
    rows = rows_of(tmp_path)
    assert [row["loss"] for row in rows] == trained[0].tolist()
    for step, row in enumerate(rows):
        records = [record for record in trained[2] if record.step == step]
        expected = {"loss": row["loss"]} | ({"flow_step": step} if records else {})
        for record in records:
            expected |= record.scalars()
        assert row == expected


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_a_row_for_every_step_if_the_loop_logs_none(wandb, tmp_path):
    with start(wandb) as run:
        _, _, history = train([tt.sinks.WandB(run)])
    wandb.teardown()  # its process has written everything when it ends
    rows = rows_of(tmp_path)
    assert [row["flow_step"] for row in rows] == [0, 7, 14]
    for row, two in zip(rows, zip(history[::2], history[1::2], strict=True), strict=True):
        assert row == {"flow_step": two[0].step} | two[0].scalars() | two[1].scalars()


def test_wandb_without_a_run(wandb):
    with pytest.raises(ValueError, match=r"there is no active run; call wandb\.init\(\) first"):
        tt.sinks.WandB()
    with pytest.raises(TypeError, match=r"run must be what wandb\.init returned, got str"):
        tt.sinks.WandB("run")


def test_without_wandb_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "throughtime\[wandb\]"'):
        tt.sinks.WandB()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lightning", "transformers", "keras"])
def test_without_its_framework_a_callback_names_the_extra(monkeypatch, name):
    pytest.importorskip("torch")
    for absent in (name, f"{name}.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.delitem(sys.modules, f"throughtime.callbacks.{name}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "throughtime\[{name}\]"'):
        importlib.import_module(f"throughtime.callbacks.{name}")
