"""Analyses of layers: `gradient_flow` with its results and figures, and `lyapunov`."""
