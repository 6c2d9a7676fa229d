"""The figure of a monitor, its terminal line and what notebooks show: what they say about known records."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import throughtime as tt
from monitor_records import falling, monitor_of, record_of
from throughtime.monitor.series import series_of

ZERO = -np.inf


def mesh_of(axes):
    (mesh,) = [part for part in axes.collections if part.get_array() is not None]
    return mesh


def ticks(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


@pytest.fixture(autouse=True)
def _matplotlib(request):
    if "terminal" not in request.node.name:
        pytest.importorskip("matplotlib")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_lag_curve_of_a_contracting_network_is_a_line_below_the_range_of_floats(dtype, batch_first):
    """A linear recurrence with W = 0.5 Q, Q orthogonal: each step back multiplies the norm by a half. The line's value
    at lag 1500 is 1500 log10(2) below its start; a rounding of each product is eps times its 16 terms.
    """
    layer = tt.RNN(4, 16, nonlinearity="relu", dtype=dtype, batch_first=batch_first, seed=0)
    rotated = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    permuted = np.eye(16)[np.abs(rotated).argmax(axis=1).argsort()]  # a permutation keeps relu in its linear part
    layer.parameters["weight_ih_l0"][...] = 1
    layer.parameters["weight_hh_l0"][...] = 0.5 * permuted
    for name in ("bias_ih_l0", "bias_hh_l0"):
        layer.parameters[name][...] = 1
    shape = (2, 1501, 4) if batch_first else (1501, 2, 4)
    x = np.random.default_rng(0).random(shape).astype(dtype)
    state = np.ones((1, 2, 16), dtype)
    with tt.FlowMonitor(layer, every=2, range="full") as monitor:
        for _ in range(3):
            tape = layer.forward(x, state)
            tape.backward(np.ones_like(tape.output))
    assert [record.step for record in monitor.history] == [0, 2]
    for record in monitor.history:
        assert record.lags[-1] == 1500
        assert record.log10_norm[0, -1] < -450
        expected = np.log10(np.sqrt(32)) - record.lags * np.log10(2)
        assert np.abs(record.log10_norm[0] - expected).max() <= 1501 * 16 * np.finfo(dtype).eps / np.log(10)
        assert record.gamma[0] == pytest.approx(0.5, rel=float(16 * np.finfo(dtype).eps))
    axes = monitor.plot().axes[0]
    assert mesh_of(axes).get_array().min() < -450
    assert ticks(axes.yaxis)[-1] == "1500"


def test_the_figure_shows_every_record_and_lag():
    records = [record_of(step, *falling(2, -1 - step)) for step in (0, 50, 100)]
    figure = monitor_of(*records, losses=np.linspace(3, 1, 150)).plot()
    figure.draw_without_rendering()
    (loss,) = [axes for axes in figure.axes if axes.get_title("left") == "loss"]
    heats = [axes for axes in figure.axes if axes.get_title("left").startswith("LSTM/")]
    assert [axes.get_title("left") for axes in heats] == ["LSTM/layer 0", "LSTM/layer 1"]
    values = mesh_of(heats[0]).get_array()
    expected = np.array([record.log10_norm[0] for record in records]).T
    assert np.array_equal(np.ma.filled(values), expected)
    assert heats[0].get_ylabel() == "lag (steps back)"
    assert heats[1].get_xlabel() == "step (backward passes)"
    assert ticks(heats[0].yaxis) == ["0", "1", "2", "5", "9"]
    assert mesh_of(heats[0]).get_coordinates()[0, :, 0].tolist() == [-25, 25, 75, 125]
    assert mesh_of(heats[0]).norm.vmin == -9 * 101
    assert [line.get_label() for line in loss.lines] == ["each loss", "mean of 3 losses"]
    assert loss.lines[0].get_xdata()[[0, -1]].tolist() == [1, 150]
    titles = {axes.get_title("left") for axes in figure.axes}
    assert {"gamma", "horizon(1e-3)"} <= titles
    (bar,) = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert bar.get_ylabel() == "norm of dL/dh$_t$ (log scale)"
    assert "$10^{-800}$" in ticks(bar.yaxis)
    assert "a loss on the last step" in figure.get_suptitle()


def test_without_losses_there_is_no_panel_for_them():
    figure = monitor_of(record_of(0, *falling(1)), range="float").plot()
    assert "loss" not in {axes.get_title("left") for axes in figure.axes}
    assert figure.get_suptitle() == "Gradient through time during training, for the loss of the training"


def test_one_record_and_one_loss_are_seen_at_whole_steps():
    figure = monitor_of(record_of(0, *falling(1)), losses=[2.5]).plot()
    panels = {axes.get_title("left"): axes for axes in figure.axes if axes.get_title("left")}
    assert panels.keys() == {"LSTM", "gamma", "horizon(1e-3)", "loss"}
    for title, axes in panels.items():
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1 if title == "loss" else 0]
    assert panels["loss"].lines[0].get_marker() == "o"


def test_a_loss_between_others_that_are_not_finite_is_seen():
    figure = monitor_of(record_of(0, *falling(1)), losses=[np.nan, 2.5, np.inf]).plot()
    (loss,) = [axes for axes in figure.axes if axes.get_ylabel() == "loss"]
    assert loss.lines[0].get_marker() == "o"


def test_zeros_and_what_is_not_finite_are_hatched():
    records = [record_of(0, [0, -1, ZERO, ZERO, ZERO]), record_of(1, [0, -1, -2, ZERO, np.nan])]
    records += [record_of(2, [0, np.inf, -2, -3, -4], gamma=[np.nan], horizon=[np.inf])]
    figure = monitor_of(*records).plot()
    heat = figure.axes[0]
    masked = np.ma.getmaskarray(mesh_of(heat).get_array())
    assert masked.tolist() == [
        [False, False, False],
        [False, False, True],
        [True, False, False],
        [True, True, False],
        [True, True, False],
    ]
    bars = [part for part in heat.collections if part.get_array() is None]
    hatched = [(bar.get_hatch(), path.get_extents().bounds) for bar in bars for path in bar.get_paths()]
    assert hatched == [
        ("////", (-0.5, 1.5, 1, 1)),
        ("////", (-0.5, 2.5, 2, 1)),
        ("////", (-0.5, 3.5, 1, 1)),
        ("xxxx", (1.5, 0.5, 1, 1)),
        ("xxxx", (0.5, 3.5, 1, 1)),
    ]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[:2] == ["exactly zero", "not finite"]
    assert said[2:] == ["not defined: no gradient, or not finite", "gradient never below 1e-3 of its start"]


def test_records_of_different_lengths_share_their_lags():
    """Lags that a record does not have stay white; the last ones, which differ, are a row of their own."""
    records = [record_of(0, *falling(1, lags=(0, 1, 2, 3)), lags=(0, 1, 2, 3))]
    records += [record_of(1, *falling(1)), record_of(2, [-7.0], lags=(0,))]
    (series,) = series_of(records)
    names, values, exists = series.by_lag()
    assert names == ["0", "1", "2", "5", "last: 0 to 9"]
    assert exists.tolist() == [
        [True, True, True],
        [True, True, False],
        [True, True, False],
        [False, True, False],
        [True, True, True],
    ]
    assert values[-1].tolist() == [-3, -9, -7]
    figure = monitor_of(*records).plot()
    assert ticks(figure.axes[0].yaxis) == names
    assert [bar for bar in figure.axes[0].collections if bar.get_array() is None] == []


@pytest.mark.parametrize("lengths", [[0], [1], [0, 1]])
def test_sequences_of_no_step_or_one(lengths):
    layer = tt.GRU(2, 3, seed=0)
    with tt.FlowMonitor(layer, every=1, range="full") as monitor:
        for steps in lengths:
            tape = layer.forward(np.ones((1, 2, 2), np.float32), lengths=[steps, 0])
            tape.backward(np.ones_like(tape.output))
    figure = monitor.plot()
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].texts] == ([] if 1 in lengths else ["no timesteps"])


def test_at_most_six_rows_are_drawn_and_it_says_so(tmp_path):
    from matplotlib.image import imread

    monitor = monitor_of(*(record_of(step, *falling(9)) for step in range(3)))
    figure = monitor.plot(tmp_path / "monitor.png")
    heats = [axes.get_title("left") for axes in figure.axes if axes.get_title("left").startswith("LSTM/")]
    assert heats == [f"LSTM/layer {row}" for row in (0, 2, 3, 5, 6, 8)]
    assert "6 of 9 rows" in figure.get_suptitle()
    assert imread(tmp_path / "monitor.png").shape[0] <= 1600
    one = monitor.plot(layer="LSTM/layer 1")
    assert [axes.get_title("left") for axes in one.axes if "LSTM" in axes.get_title("left")] == ["LSTM/layer 1"]


def test_a_long_training_is_drawn_by_the_largest_of_neighbours():
    """20001 records in bins of 11."""
    records = [record_of(50 * i, [0.0, -1.0], lags=(0, 1)) for i in range(20001)]
    records[12] = record_of(600, [0.0, 5.0], lags=(0, 1))
    mesh = mesh_of(monitor_of(*records).plot().axes[0])
    assert mesh.get_array().shape == (2, 1819)
    assert mesh.get_array()[1, :3].tolist() == [-1, 5, -1]


def test_a_heat_map_goes_into_given_axes():
    from matplotlib.figure import Figure

    monitor = monitor_of(record_of(0, *falling(2)), record_of(50, *falling(2)))
    axes = Figure().subplots()
    figure = monitor.plot(axes, layer="LSTM/layer 1")
    assert figure is axes.figure
    assert axes.get_title("left") == "LSTM/layer 1"
    with pytest.raises(ValueError, match=r"axes show one layer and direction; .* 'LSTM/layer 0', 'LSTM/layer 1'"):
        monitor.plot(Figure().subplots())


@pytest.mark.parametrize("name", ["a $x$ b", "$", "\\frac{$", "<b>", "a\x1b[0m", "n" * 99])
def test_names_are_drawn_as_they_are(name):
    figure = monitor_of(record_of(0, *falling(1), layer=name)).plot()
    title = next(axes._left_title for axes in figure.axes if axes._left_title.get_text())
    assert not title.get_parse_math()
    assert "\x1b" not in title.get_text()
    assert name.startswith("n") or title.get_text() == name.replace("\x1b", "\\x1b")


def test_plot_refuses():
    monitor = monitor_of(record_of(0, *falling(1)))
    with pytest.raises(ValueError, match="the history is empty"):
        monitor_of().plot()
    with pytest.raises(ValueError, match="layer must be one of 'LSTM', got 'GRU'"):
        monitor.plot(layer="GRU")
    with pytest.raises(TypeError, match="path_or_axes must be a path or matplotlib Axes, got int"):
        monitor.plot(3)


def test_notebooks_show_a_small_picture_and_the_text():
    from matplotlib.image import imread

    flow = tt.gradient_flow(tt.LSTM(2, 3, seed=0), np.ones((9, 1, 2), np.float32))
    stack = tt.gradient_flow(tt.Sequential(tt.LSTM(2, 3, seed=0), tt.ReLU()), np.ones((9, 1, 2), np.float32))
    monitor = monitor_of(record_of(0, *falling(1), layer="<b>"))
    for shown in (flow, stack, monitor):
        picture = imread(io.BytesIO(shown._repr_png_()), format="png")
        assert abs(picture.shape[1] - 900) <= 1
        assert np.ptp(picture) > 0.5
    pages = {type(shown).__name__: shown._repr_html_() for shown in (flow, monitor)}
    assert all(page.startswith('<img src="data:image/png;base64,iVBOR') for page in pages.values())
    assert "horizon(1e-3)" in pages["GradientFlow"]
    assert "&lt;b&gt;" in pages["FlowMonitor"]
    assert "<b>" not in pages["FlowMonitor"]


def test_notebooks_fall_back_to_the_repr(monkeypatch):
    flow = tt.gradient_flow(tt.LSTM(2, 3, seed=0), np.ones((9, 1, 2), np.float32))
    monitor = monitor_of(record_of(0, *falling(1)))
    assert monitor_of()._repr_png_() is monitor_of()._repr_html_() is None
    for module in ("throughtime.analysis.flow_figures", "throughtime.monitor.figures"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr("throughtime.analysis.flow_figures", raising=False)
    monkeypatch.delattr("throughtime.monitor.figures", raising=False)
    for shown in (flow, monitor):
        assert shown._repr_png_() is shown._repr_html_() is None
    with pytest.raises(ImportError, match=r'pip install "throughtime\[cli\]"'):
        monitor.plot()


def lines_of(*records, encoding="utf-8"):
    console = pytest.importorskip("rich.console")
    from throughtime.monitor.terminal import TerminalLine

    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    sink = TerminalLine(console.Console(file=file, width=20))
    for record in records:
        sink(record)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def test_the_terminal_line():
    first = record_of(150, [0, -0.4, -1.6, -5, -90], gamma=[0.941], horizon=[34.0])
    second = record_of(200, [ZERO, ZERO, -1.6, -3, np.nan], [5, 5, 4, np.inf, ZERO], horizon=[np.nan, np.inf])
    assert lines_of(first, second) == [
        "step 150  LSTM  lag 0 ██▆▃▁ 9  gamma 0.941  horizon 34",
        "step 200  LSTM/layer 0  lag 0 ..█▇! 9  gamma 0.5  horizon nan",
        "step 200  LSTM/layer 1  lag 0 ██▇!. 9  gamma 0.5  horizon never",
    ]
    assert lines_of(first, encoding="ascii") == ["step 150  LSTM  lag 0 88631 9  gamma 0.941  horizon 34"]
    assert "no timesteps" in lines_of(record_of(0, [], lags=()))[0]


def test_the_terminal_line_prints_names_as_they_are():
    name = "[red]a[/red] :smile: \x1b[31m\r"
    (line,) = lines_of(record_of(0, *falling(1), layer=name, fault="a\nb"))
    assert line.startswith("step 0  [red]a[/red] :smile: \\x1b[31m\\r  lag 0 ")
    assert line.endswith("not finite: a\\nb")


def test_the_terminal_line_needs_rich(monkeypatch):
    from throughtime.monitor.terminal import TerminalLine

    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r'pip install "throughtime\[cli\]"'):
        TerminalLine()
