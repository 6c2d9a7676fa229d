"""Figures as results of notebook cells: shown without pyplot, which registers the display of matplotlib's own."""

import numpy as np
import pytest

import throughtime as tt

pytest.importorskip("matplotlib")

LAYER = tt.LSTM(3, 4, seed=0)
X = np.random.default_rng(0).standard_normal((20, 2, 3), dtype=np.float32)


def of_a_monitor():
    with tt.FlowMonitor(LAYER, every=1) as monitor:
        tape = LAYER.forward(X)
        tape.backward(np.ones_like(tape.output))
    return monitor.plot()


def of_a_stack():
    return tt.gradient_flow(tt.Sequential(tt.Linear(3, 4, seed=0), tt.GRU(4, 4, seed=0)), X).plot()


FIGURES = {
    "flow": lambda: tt.gradient_flow(LAYER, X).plot(),
    "flows": lambda: tt.plot_flows({"LSTM": tt.gradient_flow(LAYER, X)}),
    "stack": of_a_stack,
    "depth": lambda: tt.gradient_flow(tt.Sequential(tt.Linear(3, 4, seed=0), tt.Tanh()), X[0]).plot(),
    "connectivity": lambda: tt.plot_connectivity(tt.connectivity(LAYER, X, (5, 19)), (5, 19)),
    "monitor": of_a_monitor,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_shows_the_figure(name):
    """A notebook calls this method of a cell's result; the bytes are a PNG."""
    assert FIGURES[name]()._repr_png_().startswith(b"\x89PNG\r\n")
