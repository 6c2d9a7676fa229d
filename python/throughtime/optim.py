"""Optimisers that update arrays in place: ``step(parameters, grads)`` on dicts with the same names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ._arguments import Array, number
from ._backend import refuse_device_array

__all__ = ["SGD", "Adam"]

_BLOCK = 1 << 14  # values updated at a time, so that an update's dozen passes stay in the cache


class _Optimizer:
    """Checks of what `step` gets, and a state per parameter."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        parameters : dict of str to array
            Float arrays, such as ``layer.parameters``. What is remembered (momentum) goes by name.
        grads : dict of str to array
            Gradients of the same names, shapes and dtypes, such as ``grads.parameters``.

        Raises
        ------
        TypeError
            If an entry is no array, or its dtype does not fit.
        ValueError
            If names or shapes differ, or a parameter is read-only. Nothing is updated then.
        """
        grads = _checked(parameters, grads)
        for name, parameter in parameters.items():
            state = self._states.get(name)
            if state is not None and state["shape"] != parameter.shape:
                raise ValueError(
                    f"parameters[{name!r}] has shape {parameter.shape}, but had {state['shape']} in the "
                    "steps before; use one optimiser per model, or different names"
                )
        for name, parameter in parameters.items():
            state = self._states.setdefault(name, {"shape": parameter.shape})
            self._update(parameter, grads[name], state)

    def _update(self, parameter: Array, grad: Array, state: dict[str, Any]) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``: ``v = momentum v + g; p = p - lr v``.

    Parameters
    ----------
    lr : float
        Learning rate; the attribute may be changed between steps.
    momentum : float
        In [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> parameters = {"weight": np.ones(2)}
    >>> tt.optim.SGD(lr=0.5).step(parameters, {"weight": np.array([1.0, -1.0])})
    >>> parameters["weight"]
    array([0.5, 1.5])
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        super().__init__()
        self.lr = number("lr", lr, 0, math.inf)
        self.momentum = number("momentum", momentum, 0, 1)

    def __repr__(self) -> str:
        return f"SGD(lr={self.lr}, momentum={self.momentum})"

    def _update(self, parameter: Array, grad: Array, state: dict[str, Any]) -> None:
        if not self.momentum:
            for p, g in _blocks(parameter, grad):
                p -= self.lr * g
            return
        velocity = state.setdefault("velocity", np.zeros(parameter.shape, parameter.dtype))
        for p, g, v in _blocks(parameter, grad, velocity):
            v *= self.momentum
            v += g
            p -= self.lr * v


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015), as ``torch.optim.Adam``.

    At step t, with ``g = g + weight_decay p``::

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    lr : float
        Learning rate; the attribute may be changed between steps.
    betas : (float, float)
        b1 and b2, each in [0, 1).
    eps : float
        Added to the denominator.
    weight_decay : float
        L2 penalty, added to the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> parameters = {"weight": np.ones(2)}
    >>> tt.optim.Adam(lr=0.5).step(parameters, {"weight": np.array([1e-3, -1e3])})
    >>> parameters["weight"].round(4)
    array([0.5, 1.5])
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        below_one = math.nextafter(1, 0)
        self.lr = number("lr", lr, 0, math.inf)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {betas!r}")
        self.betas = number("betas[0]", betas[0], 0, below_one), number("betas[1]", betas[1], 0, below_one)
        self.eps = number("eps", eps, 0, math.inf)
        self.weight_decay = number("weight_decay", weight_decay, 0, math.inf)

    def __repr__(self) -> str:
        return f"Adam(lr={self.lr}, betas={self.betas}, eps={self.eps}, weight_decay={self.weight_decay})"

    def _update(self, parameter: Array, grad: Array, state: dict[str, Any]) -> None:
        b1, b2 = self.betas
        state["steps"] = steps = state.get("steps", 0) + 1
        for moment in ("mean", "square"):
            state.setdefault(moment, np.zeros(parameter.shape, parameter.dtype))
        step_size, root_correction = self.lr / (1 - b1**steps), math.sqrt(1 - b2**steps)
        for p, g, m, v in _blocks(parameter, grad, state["mean"], state["square"]):
            if self.weight_decay:
                g = g + self.weight_decay * p
            m += (1 - b1) * (g - m)
            v *= b2
            v += (1 - b2) * g * g
            denominator = np.sqrt(v)
            denominator /= root_correction
            denominator += self.eps
            p -= step_size * (m / denominator)


def _checked(parameters: Any, grads: Any) -> Mapping[str, Array]:
    """The gradients as a mapping, once names, shapes and dtypes are known to fit."""
    grads = getattr(grads, "parameters", grads)
    for label, mapping in (("parameters", parameters), ("grads", grads)):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{label} must be a dict of name to array, got {type(mapping).__name__}")
    faults = [f"no gradient for {name!r}" for name in parameters if name not in grads]
    faults += [f"no parameter for gradient {name!r}" for name in grads if name not in parameters]
    if faults:
        raise ValueError("grads do not fit parameters: " + "; ".join(faults))
    for name, parameter in parameters.items():
        _check_pair(name, parameter, grads[name])
    checked: Mapping[str, Array] = grads
    return checked


def _check_pair(name: str, parameter: Any, grad: Any) -> None:
    for label, array in (("parameters", parameter), ("grads", grad)):
        refuse_device_array("throughtime.optim", f"{label}[{name!r}]", array)
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{label}[{name!r}] must be an array of floating-point numbers, got {got}")
    if grad.dtype != parameter.dtype:
        raise TypeError(f"grads[{name!r}] has dtype {grad.dtype}, expected {parameter.dtype} as the parameter")
    if grad.shape != parameter.shape:
        raise ValueError(f"grads[{name!r}] has shape {grad.shape}, expected {parameter.shape} as the parameter")
    if not parameter.flags.writeable:
        raise ValueError(f"parameters[{name!r}] is read-only and cannot be updated in place")


def _blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same stretch of each array in turn; the arrays whole where one is not contiguous."""
    if not all(array.flags.c_contiguous for array in arrays):
        yield tuple(array[...] for array in arrays)
        return
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(array[start : start + _BLOCK] for array in flat)
