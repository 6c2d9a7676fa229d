"""Compare any layer's ``backward`` with central finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arguments import UNBOUNDED, Array, as_array, generator, is_layer_dtype, number, size
from .backend.choose import require_host
from .layers.layer import Layer
from .layers.residual import ResidualBlock
from .layers.sequential import Sequential
from .recurrent import Recurrent

__all__ = ["gradcheck"]


def gradcheck(
    layer: Layer,
    x: Any,
    *,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
    eps: float = 1e-6,
    samples: int | None = 32,
    seed: Any = 0,
) -> dict[str, float]:
    """Compare a layer's `backward` with central finite differences, in float64.

    The loss is a fixed random linear function of the output and the final state. The function checks the gradients of
    the input, of every parameter and of the initial state (zeros by default; for nested layers only if `state` is
    given). It works on a float64 copy and does not change the layer. Random masks, such as dropout's, are drawn once
    and reused.

    Parameters
    ----------
    layer : Layer
        Anything with ``forward(x) -> tape`` and ``tape.backward(d_output) -> grads``.
    x : array
        As for ``layer.forward``, in float32 or float64; integers if the layer takes integers.
    state : array or tuple of arrays, optional
        As for ``layer.forward``.
    lengths, resets : arrays, optional
        As for ``layer.forward``.
    eps : float
        Step of the differences; relative for entries larger than 1. A step may cross the kink of an activation (relu);
        the error is then that of the difference, not of the gradient.
    samples : int or None
        Number of randomly chosen entries to compare per tensor (each costs two forward passes); None compares all.
    seed : optional
        Seed of the random loss and the choice of entries: anything that ``numpy.random.default_rng`` accepts.

    Returns
    -------
    errors : dict of str to float
        For ``"input"`` (unless it is integer), ``"h_0"``, ``"c_0"`` (in a stack with the layer's position as prefix,
        like parameters) and every parameter: the largest difference, divided by the tensor's largest gradient if that
        is above 1. A correct gradient has an error of about 1e-9.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the layer's checks apply.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> errors = tt.gradcheck(tt.LSTM(3, 4, seed=0), np.random.default_rng(0).standard_normal((5, 2, 3)))
    >>> list(errors)
    ['input', 'h_0', 'c_0', 'weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    >>> max(errors.values()) < 1e-7
    True
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a throughtime layer, got {type(layer).__name__}")
    step = number("eps", eps, 0, 1, open_low=True)
    count = None if samples is None else size("samples", samples, most=UNBOUNDED)
    rng = generator("seed", seed)
    require_host("gradcheck", layer.device)
    wide: Any = layer.astype("float64")
    x = _copy_in_float64("x", x)
    arguments = {name: value for name, value in (("lengths", lengths), ("resets", resets)) if value is not None}
    if state is not None:
        arguments["state"] = _map(lambda array: _copy_in_float64("state", array), state)

    tape = wide.forward(x, **arguments)
    with_state = state is not None or isinstance(layer, Recurrent)
    seeds = [rng.standard_normal(array.shape) for array in _outputs(tape, with_state)]
    grads = _backward(tape, seeds)
    initial_state = grads.initial_state if with_state else None
    if with_state:
        arguments["state"] = _filled(arguments.get("state"), initial_state)
    if getattr(tape, "masks", None):
        arguments["masks"] = tape.masks

    def forward() -> list[Array]:
        return _outputs(wide.forward(x, **arguments), with_state)

    tensors = [] if grads.input is None else [("input", x, grads.input)]
    initial = zip(_named(wide, arguments.get("state")), _flat(initial_state), strict=True)
    tensors += [(name, array, gradient) for (name, array), gradient in initial]
    tensors += [(name, array, grads.parameters[name]) for name, array in wide.parameters.items()]
    return {
        name: _largest_error(array, gradient, forward, seeds, step, _entries(array, count, rng))
        for name, array, gradient in tensors
    }


def _copy_in_float64(name: str, value: Any) -> Array:
    array = as_array(name, value)
    if np.issubdtype(array.dtype, np.integer):
        return array
    if not is_layer_dtype(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    return array.astype(np.float64, order="C")


def _map(function: Callable[[Any], Any], state: Any) -> Any:
    """Apply `function` to every array in a state: an array, None, or a tuple of states."""
    if isinstance(state, tuple | list):
        return tuple(_map(function, part) for part in state)
    return None if state is None else function(state)


def _filled(state: Any, like: Any) -> Any:
    """The state with zeros in place of None."""
    if state is None:
        return _map(np.zeros_like, like)
    if isinstance(state, tuple | list):
        return tuple(_filled(part, other) for part, other in zip(state, like, strict=True))
    return state


def _flat(state: Any) -> list[Array]:
    """The arrays in a state."""
    found: list[Array] = []
    _map(found.append, state)
    return found


def _named(layer: Any, state: Any, prefix: str = "") -> list[tuple[str, Array]]:
    """The arrays in a layer's state, with their names."""
    if isinstance(layer, ResidualBlock):
        return _named(layer.sublayer, state, f"{prefix}sublayer.")
    if isinstance(layer, Sequential) and state is not None:
        parts = enumerate(zip(layer.layers, state, strict=True))
        return [named for i, (inner, part) in parts for named in _named(inner, part, f"{prefix}{i}.")]
    states = layer.architecture.states if isinstance(layer, Recurrent) else ("hidden", "cell")
    return [(f"{prefix}{name[0]}_0", array) for name, array in zip(states, _flat(state), strict=False)]


def _outputs(tape: Any, with_state: bool) -> list[Array]:
    """The output, and the final states if requested."""
    return [tape.output, *(_flat(tape.final_state) if with_state else ())]


def _backward(tape: Any, seeds: list[Array]) -> Any:
    d_output, *d_final_state = seeds
    if not d_final_state:
        return tape.backward(d_output)
    rest = iter(d_final_state)
    return tape.backward(d_output, _map(lambda _: next(rest), tape.final_state))


def _entries(array: Array, count: int | None, rng: np.random.Generator) -> Array:
    if count is None or count >= array.size:
        return np.arange(array.size)
    return rng.choice(array.size, count, replace=False)


def _largest_error(
    array: Array, gradient: Array, forward: Callable[[], list[Array]], seeds: list[Array], eps: float, entries: Array
) -> float:
    """Perturb the entries in place, one at a time, and restore each."""
    numeric = np.array(
        [_difference(array, np.unravel_index(entry, array.shape), forward, seeds, eps) for entry in entries]
    )
    analytic = gradient.reshape(-1)[entries]
    scale = max(1.0, float(np.abs(gradient).max(initial=0.0)))
    return float(np.abs(analytic - numeric).max(initial=0.0)) / scale


def _difference(
    array: Array, index: tuple[Any, ...], forward: Callable[[], list[Array]], seeds: list[Array], eps: float
) -> float:
    value = array[index]
    step = eps * max(1.0, abs(float(value)))
    try:
        array[index] = value + step
        above = forward()
        array[index] = value - step
        below = forward()
    finally:
        array[index] = value
    # Subtract before summing: the two sums would agree in most of their digits.
    change = sum(float(((high - low) * d).sum()) for high, low, d in zip(above, below, seeds, strict=True))
    return change / (2 * step)
