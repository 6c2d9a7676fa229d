"""The results of a gradient flow, computed from logarithms of norms: numbers derived by hand, tables, and figures."""

import subprocess
import sys

import numpy as np
import pytest

import throughtime as tt
from throughtime.analysis.flow_result import GradientFlow, StackFlow

EPS = np.finfo(np.float64).eps
ZERO = -np.inf


def flow_of(*rows, reverse=None, **options):
    """Rows of logarithms over time, for one sequence."""
    names = [f"layer {row}" for row in range(len(rows))]
    norms = np.array(rows, np.float64)[:, :, None]
    return GradientFlow(norms, reverse=reverse or [False] * len(rows), names=names, title="flow", **options)


def stack_of(*rows, layers=None):
    names = [*(f"into layers[{i}]" for i in range(len(rows) - 1)), "output"]
    norms = np.array(rows, np.float64)[:, :, None]
    return StackFlow(norms, names=names, layers=layers or [None] * (len(rows) - 1), title="stack")


def batch_of(*sequences):
    """One row; sequences of logarithms over time."""
    norms = np.array(sequences, np.float64).T[None]
    return GradientFlow(norms, reverse=[False], names=["layer 0"], title="flow")


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("exponent", [0, -1500, 1500])
def test_norm_over_the_batch(exponent):
    """||(3, 4)|| = 5, also beyond the range of floats. The largest is factored out of the root and back in: the
    logarithms of 3 and 4 are rounded to half an ulp of the exponent each, and so is the sum."""
    norm = batch_of([exponent + np.log10(3)], [exponent + np.log10(4)]).log10_norm
    assert norm.shape == (1, 1)
    assert abs(norm[0, 0] - (exponent + np.log10(5))) <= 2 * EPS * max(1, abs(exponent))


def test_norm_over_the_batch_of_zeros_and_what_is_not_finite():
    every = [ZERO, -2000.0, np.inf, np.nan]
    norm = batch_of(every, [ZERO] * 4, [ZERO, ZERO, -5.0, np.inf]).log10_norm
    assert norm[0].tolist()[:3] == [ZERO, -2000, np.inf]
    assert np.isnan(norm[0, 3])


def test_without_a_batch_axis():
    norms = np.array([[-2.0, -1.0, 0.0]])
    flow = GradientFlow(norms, reverse=[False], names=["layer 0"], title="flow")
    assert flow.log10_norm.tolist() == norms.tolist()
    assert flow.gamma[0] == pytest.approx(0.1, rel=4 * EPS)


def test_an_empty_batch_has_no_gradient():
    flow = GradientFlow(np.empty((2, 3, 0)), reverse=[False, True], names=["a", "b"], title="flow")
    assert np.all(flow.log10_norm == ZERO)
    assert np.isnan(flow.gamma).all()
    assert np.isnan(flow.horizon(0.5)).all()
    assert flow.summary().count("zero") == 6
    flow.plot().draw_without_rendering()


@pytest.mark.parametrize(
    ("norms", "exponent"),
    [
        ([-3, -2, -1, 0], -1),
        ([0, 0.5, 0.75, 1], -1 / 3),  # over all steps; only the ends count
        ([ZERO, ZERO, -0.5, 0], -0.5),  # up to the last step that the gradient reaches
        ([-4, ZERO, 0, ZERO, ZERO], -2),  # from the first step with a gradient, across a gap
        ([-1500, -1000, -500, 0], -500),  # below the smallest float
        ([600, 400, 200, 0], 200),
    ],
)
def test_gamma(norms, exponent):
    """Exponents are exact except for a division; the power then has a relative error of ln(10) |exponent| eps / 2 from
    its argument, and one ulp of its own."""
    forward, backward = flow_of(norms, norms[::-1], reverse=[False, True]).gamma
    assert forward == backward
    with np.errstate(under="ignore"):
        expected = np.power(10.0, exponent)
    assert abs(forward - expected) <= (abs(exponent) * 2.4 + 1) * EPS * expected


def test_gamma_leaves_the_range_of_floats_only_with_the_factor_itself():
    assert flow_of([-800, -400, 0], [800, 400, 0]).gamma.tolist() == [0, np.inf]
    assert flow_of([-400, -200, 0], [400, 200, 0]).gamma == pytest.approx([1e-200, 1e200], rel=500 * EPS)


@pytest.mark.parametrize("norms", [[1], [ZERO], [ZERO, 0], [ZERO, 0, ZERO], [np.inf, np.inf], [np.nan, 0, 0]])
def test_gamma_needs_two_steps_and_finite_norms(norms):
    assert np.isnan(flow_of(norms).gamma[0])


@pytest.mark.parametrize(
    ("norms", "steps"),
    [
        ([-4, -3, -2, -1, 0], 4),  # 1e-3 is not below 1e-3
        ([5, 4, 3, 1.5, 5], 1),
        ([0, 0, -3.5, 1, 0], 2),  # the first time, although it returns
        ([-2, -1, 0], np.inf),
        ([9, 0], np.inf),
        ([0], np.inf),
        ([0, ZERO, 0, ZERO], 1),  # a zero is below; counted from the start of the gradient
        ([ZERO], np.nan),
        ([np.nan, -4, 0], 1),
        ([-4, np.nan, 0], np.nan),
        ([0, np.inf], np.nan),
        ([ZERO, np.inf, 0], 2),  # infinity is not below
    ],
)
def test_horizon(norms, steps):
    forward, backward = flow_of(norms, norms[::-1], reverse=[False, True]).horizon(1e-3)
    assert forward == steps or (np.isnan(forward) and np.isnan(steps))
    assert backward == steps or (np.isnan(backward) and np.isnan(steps))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, np.nan])
def test_horizon_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got"):
        flow_of([0, 0]).horizon(fraction)


def test_horizon_refuses_what_is_no_number():
    with pytest.raises(TypeError, match="fraction must be a number"):
        flow_of([0, 0]).horizon("half")


def test_summary():
    """Eight steps back, by 10^-50 each; in the other row by 10^-0.5, after two steps without gradient."""
    falling = [-400, -350, -300, -250, -200, -150, -100, -50, 0]
    gently = [ZERO, ZERO, 0, -0.5, -1, -1.5, -2, -2.5, -3]
    title, head, first, second, note = flow_of(falling, gently, reverse=[False, True]).summary().splitlines()
    assert title == "flow"
    assert head.split() == ["start", "middle", "end", "gamma", "horizon(1e-3)", "horizon(1e-6)"]
    assert first.split() == ["layer", "0", "0.00", "-200.00", "-400.00", "10^-50.0", "1", "1"]
    assert second.split() == ["layer", "1", "0.00", "-1.50", "-3.00", "0.3162", "never", "never"]
    assert len({len(line) for line in (head, first, second)}) == 1
    assert "log10 of the norm of dL/dh_t" in note


@pytest.mark.parametrize(
    ("norms", "cells"),
    [
        ([ZERO, 0.3], ["0.30", "zero", "zero", "nan", "1", "1"]),
        ([ZERO, ZERO], ["zero", "zero", "zero", "nan", "nan", "nan"]),
        ([-0.001, 0], ["0.00", "0.00", "0.00", "0.9977", "never", "never"]),
        ([700, 0], ["0.00", "700.00", "700.00", "10^700.0", "never", "never"]),
        ([np.nan, 0], ["0.00", "nan", "nan", "nan", "nan", "nan"]),
        ([np.inf, 0], ["0.00", "inf", "inf", "10^inf", "never", "never"]),
    ],
)
def test_summary_shows_zero_only_where_it_is(norms, cells):
    assert flow_of(norms).summary().splitlines()[2].split() == ["layer", "0", *cells]


def test_one_sequence_that_ends_early_does_not_move_the_start():
    """The row starts at any sequence's first step: at t = 3, with norm 1; the other's 10 is one step back."""
    flow = batch_of([-1, 0, 1, ZERO], [-20, -20, -20, 0])
    assert flow.horizon(0.5) == [3]
    assert flow.cells(0)[:3] == ("0.00", "0.00", "-1.00")


def test_what_does_not_fit_is_named():
    norms = np.zeros((2, 3, 1))
    options = {"reverse": [False, True], "names": ["a", "b"], "title": ""}
    with pytest.raises(ValueError, match=r"log10_norm_per_sequence has shape \(1, 3, 1\), expected \(2, T, B\)"):
        GradientFlow(norms[:1], **options)
    with pytest.raises(ValueError, match=r"log10_unit has shape \(2, 4, 1\), expected \(2, 3, H\)"):
        GradientFlow(norms, np.zeros((2, 4, 1)), **options)
    with pytest.raises(ValueError, match=r"reverse has shape \(1,\), expected \(2,\)"):
        GradientFlow(norms, **{**options, "reverse": [False]})
    with pytest.raises(ValueError, match="layers has 2 entries, expected 1"):
        StackFlow(norms, names=["a", "b"], layers=[None, None], title="")


def padded(*sequences, lengths, reverse=False):
    """One row; sequences of logarithms over time with their lengths."""
    norms = np.array(sequences, np.float64).T[None]
    return GradientFlow(norms, reverse=[reverse], names=["layer 0"], title="flow", lengths=lengths)


def test_padding_counts_for_nothing():
    """Beyond the longest sequence, in either direction: horizon, gamma and the table equal those without it."""
    way = [0, -1, -2, -2.5]
    for reverse in (False, True):
        norms = way if reverse else way[::-1]
        cut = flow_of(norms, reverse=[reverse])
        for beyond in (0, 3):
            flow = padded(norms + [ZERO] * beyond, [ZERO] * (4 + beyond), lengths=[4, 0], reverse=reverse)
            assert flow.steps == 4
            for fraction in (0.5, 1e-2, 1e-3):
                assert flow.horizon(fraction) == cut.horizon(fraction)
            assert flow.gamma == cut.gamma
            assert flow.cells(0) == cut.cells(0)


def test_of_padding_alone_there_is_no_way():
    flow = padded([ZERO, ZERO], lengths=[0], reverse=True)
    assert np.isnan(flow.horizon(0.5)).all()
    assert np.isnan(flow.gamma).all()
    assert flow.cells(0)[:3] == ("zero", "zero", "zero")


def test_lengths_must_fit_the_batch():
    with pytest.raises(ValueError, match=r"lengths has shape \(2,\), expected \(1,\)"):
        padded([0, 0], lengths=[1, 2])
    alone = GradientFlow(np.zeros((1, 3)), reverse=[True], names=["a"], title="", lengths=2)
    assert alone.steps == 2


def test_a_forward_that_was_not_finite_is_told():
    flow = flow_of([np.nan, 0], fault="hidden overflows at timestep 1 of layer 0")
    assert "hidden overflows at timestep 1" in repr(flow)
    title, fault, *_ = flow.summary().splitlines()
    assert title == "flow"
    assert "not finite: hidden overflows at timestep 1 of layer 0." in fault


def test_a_figure_tells_a_forward_that_was_not_finite():
    pytest.importorskip("matplotlib")
    assert "hidden overflows" in flow_of([np.nan, 0], fault="hidden overflows at timestep 1").plot().get_suptitle()


def test_repr():
    assert repr(flow_of([0, 0, 0])) == "GradientFlow('flow', 1 rows, 3 timesteps)"


def test_units():
    units = np.zeros((1, 2, 5))
    assert flow_of([0, 0], log10_unit=units).log10_unit is units
    with pytest.raises(AttributeError, match="none was given to the constructor"):
        _ = flow_of([0, 0]).log10_unit


def test_depth():
    """Over timesteps: ||(3, 4)|| = 5 at depth 0, only 1e-400 at depth 1, zero at the output."""
    stack = stack_of([np.log10(3), np.log10(4)], [ZERO, -400], [ZERO, ZERO])
    assert stack.depth_log10_norm == pytest.approx([np.log10(5), -400, ZERO], rel=4 * EPS)
    assert "dL/dx_t" in stack.summary()


def test_a_stack_says_where_units_are():
    inner = flow_of([0, 0], log10_unit=np.zeros((1, 2, 5)))
    stack = stack_of([0, 0], [0, 0], [0, 0], layers=[None, inner])
    assert stack.layers == (None, inner)
    with pytest.raises(AttributeError, match=r"flow.layers\[i\].log10_unit, i among \[1\]"):
        _ = stack.log10_unit
    with pytest.raises(AttributeError, match="no layer here is recurrent"):
        _ = stack_of([0], [0]).log10_unit


def test_limits_of_floats_are_not_named_where_their_names_would_cover_each_other():
    """float32 and float64 end 270 powers of ten apart: a twentieth of an axis of 5400."""
    pytest.importorskip("matplotlib")
    for lowest, count in ((-4000, 2), (-200_000, 0)):
        norms = np.linspace(lowest, 0, 50)[None, :]
        (axes,) = GradientFlow(norms, reverse=[False], names=["layer 0"], title="LSTM").plot().axes
        assert len(axes.texts) == count


def test_figure_of_a_layer():
    """Curves, two heat maps and their colours; norms beyond the range of floats are shown on every axis."""
    pytest.importorskip("matplotlib")
    falling = np.linspace(-1500, 0, 50)
    norms = np.stack([falling[:, None] + [0, 1], np.zeros((50, 2))])
    units = np.repeat(norms[:, :, :1], 3, axis=2)
    flow = GradientFlow(norms, units, reverse=[False, True], names=["layer 0", "layer 0, reverse"], title="LSTM")
    figure = flow.plot()
    figure.draw_without_rendering()
    curves, first, second, colours = figure.axes
    assert figure.get_suptitle() == "LSTM"
    assert curves.get_xlabel() == second.get_xlabel() == "timestep t"
    assert curves.get_ylabel() == "norm of dL/dh$_t$ (log scale)"
    assert labels(curves) == ["layer 0", "layer 0, reverse", "line: median of the\nsequences, band: range"]
    assert curves.lines[0].get_ydata()[0] == -1499.5
    assert "$10^{-1000}$" in [tick.get_text() for tick in curves.get_yticklabels()]
    assert {text.get_text() for text in curves.texts} == {"smallest float32", "smallest float64"}
    assert {line.get_linestyle() for line in curves.lines[:2]} == {"-", "--"}
    assert len({line.get_marker() for line in curves.lines[:2]}) == 2
    assert first.get_title("left") == "layer 0, each unit over the batch"
    assert first.get_ylabel() == "unit"
    assert colours.get_ylabel() == "log10 of norm of dL/dh$_t$ per unit"
    assert {image.norm.vmin for axes in (first, second) for image in axes.images} == {-1500}


def test_the_band_leaves_zeros_out():
    """Steps 1 to 3 have sequences at 10^-2 and 10^2, the second at step 1 none: the band starts at its smallest."""
    pytest.importorskip("matplotlib")
    axes = batch_of([ZERO, -2, -2, -2], [ZERO, ZERO, 2, 2]).plot().axes[0]
    (band,) = [part for part in axes.collections if len(part.get_paths())]
    heights = {tuple(point) for path in band.get_paths() for point in path.vertices.round(9).tolist()}
    assert {(1, -2), (2, -2), (2, 2), (3, -2), (3, 2)} <= heights
    assert {y for x, y in heights if x < 2} == {-2}


def test_zeros_and_what_is_not_finite_are_marked():
    pytest.importorskip("matplotlib")
    norms = [np.nan, np.inf, 2, 1, 0, ZERO]
    flow = flow_of(norms, log10_unit=np.array(norms)[None, :, None])
    curves, heat, _ = flow.plot().axes
    assert labels(curves) == ["layer 0", "layer 0: exactly zero", "layer 0: not finite"]
    zero, broken = curves.lines[1:]
    assert zero.get_xdata().tolist() == [5]
    assert broken.get_xdata().tolist() == [0, 1]
    assert labels(heat) == ["exactly zero", "not finite"]
    assert np.ma.getmaskarray(heat.images[0].get_array())[0].tolist() == [True, True, False, False, False, True]


def test_a_step_that_stands_alone_is_marked():
    """A line through one point is invisible; of 40 steps every fourth has a marker anyway."""
    pytest.importorskip("matplotlib")
    norms = np.full(40, ZERO)
    norms[[10, 30, 31, 39]] = 0
    (line, _) = flow_of(norms).plot().axes[0].lines
    assert sorted({*range(0, 40, 4), 10, 39}) == line.get_markevery()


def test_a_long_flow_is_drawn_by_the_largest_of_neighbours():
    """20001 steps in bins of 11: 1819 points, each in the middle of its bin; the last bin has 3 steps."""
    pytest.importorskip("matplotlib")
    norms = np.linspace(-20, 0, 20001)
    norms[12] = 5
    flow = flow_of(norms, log10_unit=norms[None, :, None])
    curves, heat, _ = flow.plot().axes
    x, y = curves.lines[0].get_data()
    assert len(x) == heat.images[0].get_array().shape[1] == 1819
    assert (x[0], x[1], x[-1]) == (5, 16, 19999)
    assert (y[0], y[1], y[2]) == (norms[10], 5, norms[32])
    assert curves.get_xlabel() == "timestep t (the largest of every 11 is drawn)"
    assert heat.get_xlim() == (-0.5, 20000.5)


def test_many_rows_are_drawn_in_part():
    """Draws as many curves and heat maps as fit, including the first and the last, and reports the rest."""
    pytest.importorskip("matplotlib")
    rows = np.tile(np.linspace(-30, 0, 9), (25, 1))
    curves, *heats, _ = flow_of(*rows, log10_unit=rows[:, :, None]).plot().axes
    assert labels(curves)[0] == "layer 0"
    assert labels(curves)[-2:] == ["layer 24", "12 of 25 rows"]
    assert [axes.get_title("left").split(",")[0] for axes in heats][::7] == ["layer 0", "layer 24"]
    assert "8 of 25 rows" in heats[-1].get_xlabel()


def test_every_row_of_two_layers_in_two_directions_has_a_heat_map():
    pytest.importorskip("matplotlib")
    rows = np.tile(np.linspace(-30, 0, 9), (4, 1))
    _, *heats, _ = flow_of(*rows, log10_unit=rows[:, :, None]).plot().axes
    assert [axes.get_title("left").split(",")[0] for axes in heats] == [f"layer {i}" for i in range(4)]
    assert " of " not in heats[-1].get_xlabel()


def test_figure_of_a_stack():
    pytest.importorskip("matplotlib")
    stack = stack_of([ZERO, ZERO], [-700, -600], [ZERO, 0])
    figure = stack.plot()
    figure.draw_without_rendering()
    curves, heat, depth, colours = sorted(figure.axes, key=lambda axes: axes.get_label() == "<colorbar>")
    assert curves.get_ylabel() == "norm of dL/dx$_t$ (log scale)"
    zero = ["into layers[0]: exactly zero", "output: exactly zero"]
    assert labels(curves) == ["into layers[0]", zero[0], "into layers[1]", "output", zero[1]]
    assert [tick.get_text() for tick in heat.get_yticklabels()] == ["into layers[0]", "into layers[1]", "output"]
    assert heat.get_ylim() == depth.get_ylim() == (2.5, -0.5)
    assert labels(heat) == ["exactly zero"]
    norms, missing = depth.lines
    assert norms.get_xdata()[1:].tolist() == stack.depth_log10_norm[1:].tolist() == [-600, 0]
    assert missing.get_ydata().tolist() == [0]
    assert depth.get_xlabel() == "norm over all timesteps (log scale)"
    assert labels(depth) == ["norm", "norm: exactly zero"]
    assert colours.get_ylabel() == "log10 of norm of dL/dx$_t$"


@pytest.mark.parametrize("sequences", [2, 3, 8])
def test_the_band_contains_its_line(sequences):
    """At each step, the median of the sequences with a gradient, despite zeros, ends and padding."""
    pytest.importorskip("matplotlib")
    norms = np.random.default_rng(0).normal(0, 30, (30, sequences))
    norms[np.random.default_rng(1).random(norms.shape) < 0.3] = ZERO
    norms[20:, 0] = norms[12] = ZERO
    flow = batch_of(*norms.T)
    axes = flow.plot().axes[0]
    line = axes.lines[0].get_ydata()
    for t, row in enumerate(norms):
        carrying = row[row > ZERO]
        if carrying.size:
            assert line[t] == pytest.approx(np.median(carrying), rel=4 * EPS)
            assert carrying.min() <= line[t] <= carrying.max()
        else:
            assert np.isnan(line[t])


def test_padding_is_not_drawn():
    pytest.importorskip("matplotlib")
    flow = padded([0, -1, ZERO, ZERO], [0, ZERO, ZERO, ZERO], lengths=[2, 1], reverse=True)
    axes = flow.plot().axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1]
    assert labels(axes)[0] == "layer 0"
    assert not any("exactly zero" in label for label in labels(axes))
    assert axes.get_xlabel() == "timestep t, padding from 2 on left out"
    padded([ZERO, ZERO], lengths=[0]).plot().draw_without_rendering()


def overlaps(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def test_legends_cover_nothing():
    """In figures made by `plot` they stand outside the axes; in given axes, above all points of all curves."""
    figures = pytest.importorskip("matplotlib.figure")
    up, down = np.linspace(-40, 0, 30), np.linspace(0, -40, 30)
    stack = stack_of(up, down, np.full(30, ZERO))
    for figure in (flow_of(up, down, log10_unit=np.full((2, 30, 3), ZERO)).plot(), stack.plot()):
        figure.draw_without_rendering()
        for axes in figure.axes:
            if axes.get_legend():
                assert not overlaps(axes.get_legend().get_window_extent(), axes.bbox)
    figure = figures.Figure(figsize=(9, 4))
    for axes in figure.subplots(1, 2):
        for label, norms in (("a", up), ("b", down), ("c", np.zeros(30))):
            flow_of(norms).plot(axes, label=label)
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
        assert points[:, 1].max() < legend.y0
        assert axes.bbox.x0 <= legend.x0 < legend.x1 <= axes.bbox.x1
        assert labels(axes) == ["a", "b", "c"]
        assert len({line.get_linestyle() for line in axes.lines}) == 3


@pytest.mark.parametrize("rows", [4, 40])
def test_no_figure_is_higher_than_1600_pixels(tmp_path, rows):
    image = pytest.importorskip("matplotlib.image")
    norms = np.zeros((rows, 3))
    for number, flow in enumerate((flow_of(*norms, log10_unit=norms[:, :, None]), stack_of(*norms, norms[0]))):
        flow.plot(tmp_path / f"{number}.png")
        assert image.imread(tmp_path / f"{number}.png").shape[0] <= 1600


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (-1500, 0, ["$10^{-1400}$", "$10^{-1200}$", "$10^{0}$"]),
        (-4.2, 0.1, ["$10^{-4}$", "$10^{-3}$", "$10^{-2}$", "$10^{-1}$", "$10^{0}$"]),
        (-1.05, 0.05, ["0.1", "0.2", "0.5", "1"]),
        (0.29, 0.49, ["2", "2.2", "2.4", "2.6", "2.8", "3"]),
        (-1000.01, -999.99, [r"$9.8 \times 10^{-1001}$", r"$1.02 \times 10^{-1000}$"]),
    ],
)
def test_ticks_of_a_narrow_range_are_numbers(low, high, texts):
    figures = pytest.importorskip("matplotlib.figure")
    from throughtime.analysis.power_axis import label_powers

    axes = figures.Figure().add_subplot()
    axes.set_ylim(low, high)
    label_powers(axes.yaxis)
    axes.figure.draw_without_rendering()
    shown = [
        label.get_text()
        for label, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        if low <= place <= high
    ]
    assert set(texts) <= set(shown), shown
    assert len(set(shown)) == len(shown)


def test_several_flows_on_one_axes(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    flows = {"RNN": flow_of([-9, -5, 0]), "LSTM $x$": flow_of([-2, -1, 0], [-3, -1, 0])}
    axes = tt.plot_flows(flows, tmp_path / "flows.png").axes[0]
    assert labels(axes) == ["RNN", "LSTM $x$: layer 0", "LSTM $x$: layer 1"]
    assert axes.get_title()
    assert axes.get_ylabel() == "norm of dL/dh$_t$ (log scale)"
    assert (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")
    figure = figures.Figure()
    given = figure.add_subplot()
    assert tt.plot_flows(flows, given) is figure
    assert labels(given) == labels(axes)
    assert flow_of([-1, 0]).plot(label="GRU").axes[0].get_legend().get_texts()[0].get_text() == "GRU"


@pytest.mark.parametrize(
    ("flows", "error", "words"),
    [
        ({}, ValueError, "flows is empty"),
        ([1], TypeError, "flows must be a dict of name to flow, got list"),
        ({"a": 1}, TypeError, "got 'a': int"),
        ({1: stack_of([0], [0])}, TypeError, "got 1: StackFlow"),
    ],
)
def test_what_is_no_flow_is_refused(flows, error, words):
    with pytest.raises(error, match=words):
        tt.plot_flows(flows)
    with pytest.raises(TypeError, match="label must be a str, got int"):
        flow_of([0]).plot(label=3)


@pytest.mark.parametrize("norms", [[0], [ZERO], [np.nan], [ZERO, ZERO], [1, 1], [ZERO] * 50])
def test_what_little_there_is_can_be_drawn(norms):
    pytest.importorskip("matplotlib")
    flow_of(norms, log10_unit=np.array(norms, float)[None, :, None]).plot().draw_without_rendering()
    stack_of(norms, norms).plot().draw_without_rendering()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_a_file(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"flow.{suffix}"
    figure = flow_of([-1, 0], log10_unit=np.zeros((1, 2, 3))).plot(path)
    assert figure.axes
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


def test_plot_into_axes():
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    left, right = figure.subplots(1, 2)
    assert flow_of([-1, 0], log10_unit=np.zeros((1, 2, 3))).plot(right) is figure
    assert figure.axes == [left, right]
    assert right.get_title() == "flow"
    assert len(right.lines) == 1
    assert not left.lines


def test_plot_refuses_what_is_no_path():
    pytest.importorskip("matplotlib")
    with pytest.raises(TypeError, match="path_or_axes must be a path or matplotlib Axes, got int"):
        flow_of([0]).plot(3)


def test_without_matplotlib_a_plot_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import numpy as np\n"
        "from throughtime.analysis.flow_result import GradientFlow\n"
        "flow = GradientFlow(np.zeros((1, 2, 1)), reverse=[False], names=['a'], title='')\n"
        "flow.summary()\n"
        "flow.plot()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: a plot needs matplotlib")
    assert 'pip install "throughtime[cli]"' in done.stderr


@pytest.mark.parametrize("reverse", [False, True])
def test_gamma_and_horizon_count_from_each_sequence_s_own_end(reverse):
    """Two sequences that fade by 0.8 per step from 1 at their ends: the short one is no growth."""
    steps, lengths = 50, np.array([50, 7, 0])
    lags = np.arange(steps)[:, None] if reverse else lengths - 1 - np.arange(steps)[:, None]
    valid = np.arange(steps)[:, None] < lengths
    norms = np.where(valid, lags * np.log10(0.8), -np.inf)
    flow = GradientFlow(norms[None], reverse=[reverse], names=["layer 0"], title="two", lengths=lengths)
    expected = np.arange(steps) * np.log10(0.8) + np.log10(2) / 2 * (np.arange(steps) < 7)
    np.testing.assert_allclose(flow.by_lag[0], expected, rtol=1e-13)
    start = np.log10(2) / 2
    assert flow.gamma[0] == pytest.approx(10 ** ((49 * np.log10(0.8) - start) / 49), rel=1e-12)
    assert flow.horizon(1e-3)[0] == np.flatnonzero(expected < start - 3)[0]
