"""In place of `gradient_flow`: the same from a backward in float64, as far as its range goes."""

from __future__ import annotations

import numpy as np

import throughtime as tt
from throughtime.gradient_flow import GradientFlow, StackFlow


def gradient_flow(layer, x, d_output="last"):
    layer = layer.astype("float64")
    tape = layer.forward(x.astype(np.float64))
    d = np.zeros_like(tape.output)
    if isinstance(d_output, str):
        d[-1] = 1
    else:
        d[...] = d_output
    grads = tape.backward(d, timesteps=("hidden",))
    if not isinstance(layer, tt.Sequential):
        return _inside(layer, grads)
    norms = np.stack([*(_log10_norm(own.input, 2) for own in grads.layers), _log10_norm(d, 2)])
    names = [*(f"into layers[{i}] ({type(own).__name__})" for i, own in enumerate(layer.layers)), "output"]
    layers = [_inside(*pair) for pair in zip(layer.layers, grads.layers, strict=True)]
    return StackFlow(norms, names=names, layers=layers, title=repr(layer))


def _inside(layer, grads):
    if isinstance(layer, tt.ResidualBlock):
        return _inside(layer.sublayer, grads.sublayer)
    if not isinstance(layer, tt.RNN | tt.GRU | tt.LSTM):
        return None
    names = [f"layer {row}" for row in range(len(grads.hidden))]
    norms, units = (_log10_norm(grads.hidden, axis) for axis in (3, 2))
    return GradientFlow(norms, units, reverse=[False] * len(names), names=names, title=repr(layer))


def _log10_norm(array, axis):
    largest = np.abs(array).max(axis=axis, keepdims=True)
    norms = np.sqrt(np.square(array / np.where(largest > 0, largest, 1)).sum(axis=axis))
    with np.errstate(divide="ignore"):
        return np.log10(norms) + np.log10(np.where(largest > 0, largest, 1).squeeze(axis))
