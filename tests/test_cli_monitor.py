"""``throughtime train --monitor``: lines, picture, page, refusals; and that the training stays as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

import throughtime as tt
from throughtime.cli import app, monitoring
from throughtime.cli import train as train_module
from throughtime.cli.output import Output

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60
TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--sample-length", "20"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def train(*arguments):
    return CliRunner().invoke(app, ["train", "text.txt", *TINY, *map(str, arguments)])


def test_a_monitored_training_shows_lines_and_writes_picture_and_page(folder):
    """27 updates: a record of both layers every second one. Losses, sample and model are those without a monitor."""
    options = ["--steps", 27, "--layers", 2, "--plot", "out.pdf", "--force"]
    plain, watched = train(*options, "--save", "plain"), train(*options, "--save", "watched", "--monitor")
    assert watched.exit_code == 0, watched.output
    lines = watched.output.splitlines()
    records = [line for line in lines if line.startswith("step ")]
    places = [f"step {step}  LSTM/layer {row}" for step in range(0, 27, 2) for row in (0, 1)]
    assert [line.partition("  lag 0 ")[0] for line in records] == places
    assert all(line.split("  ")[2].endswith(" 7") for line in records)
    assert "monitor: out-monitor.png, out-monitor.html" in lines
    assert (folder / "out-monitor.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out-monitor.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert plain.output.split("loss ")[1].split("\n")[0] == watched.output.split("loss ")[1].split("\n")[0]
    assert plain.output.splitlines()[-1] == lines[-1]
    for name in ("embedding", "recurrent", "linear"):
        ours, theirs = (tt.load(folder / kind / f"{name}.npz").parameters for kind in ("plain", "watched"))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (27, 2), (499, 49), (500, 50), (9999, 50)])
def test_short_trainings_have_ten_records_too(steps, every):
    """If they have ten updates."""
    with monitoring.new_monitor(tt.GRU(1, 1), steps, Output()) as monitor:
        assert monitor.every == every
        assert monitor.range == "full"


def test_files_of_a_monitor_are_replaced_by_force_alone(folder, monkeypatch):
    for ending in ("html", "png"):
        mine = folder / f"throughtime-train-monitor.{ending}"
        mine.write_text("mine")
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "_train", lambda *_: pytest.fail("training was started"))
            refused = train("--steps", 2, "--monitor")
        assert refused.exit_code == 2
        assert refused.stdout == ""
        assert f"--monitor {mine.name}: exists already" in refused.stderr
        assert mine.read_text() == "mine"
    assert train("--steps", 2, "--monitor", "--force").exit_code == 0
    assert all(path.read_bytes() != b"mine" for path in folder.glob("throughtime-train-monitor.*"))


def test_a_training_that_diverges_still_writes_what_the_monitor_saw(folder, monkeypatch):
    cross_entropy, calls = tt.cross_entropy, []

    def diverging(logits, targets):
        calls.append(1)
        loss, gradient = cross_entropy(logits, targets)
        return (math.nan if len(calls) == 3 else loss), gradient

    monkeypatch.setattr(tt, "cross_entropy", diverging)
    result = train("--steps", 5, "--monitor")
    assert result.exit_code == 1
    assert "the loss is nan at step 3" in result.stderr
    assert "monitor: throughtime-train-monitor.png, throughtime-train-monitor.html" in result.output
    assert (folder / "throughtime-train-monitor.html").exists()
    assert not (folder / "throughtime-train.png").exists()
