"""Optimisers that update arrays in place: ``step(parameters, grads)`` on dicts with the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _core
from ._arguments import Array, as_array, float_array, is_layer_dtype, native_floats, number
from ._memory import with_room, writable
from ._ties import are_plain, by_memory, from_memory_order, in_memory_order, may_share
from .backend.choose import check_floats

__all__ = ["SGD", "Adam", "AdamW"]


class _Optimizer:
    """Checks of the arguments of `step`, and a state per parameter."""

    _settings: ClassVar[tuple[str, ...]]  # attributes that `state_dict` contains
    _parts: ClassVar[tuple[str, ...]]  # torch's names of the arrays of a parameter's state
    _linear = False  # whether two steps of one parameter equal one step with the sum of the gradients

    def __init__(self) -> None:
        self._states: dict[str, tuple[Array, ...]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(writable(state))

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        parameters : dict of str to array
            Float arrays, such as ``layer.parameters``. The state (momentum) belongs to the name. An array under two
            names, or two views of the whole of one (such as its transpose), is one parameter: it takes one step, with
            the sum of the gradients.
        grads : dict of str to array
            Gradients of the same names, shapes and dtypes, such as ``grads.parameters``.

        Raises
        ------
        TypeError
            If an entry is not an array, or its dtype does not fit.
        ValueError
            If names or shapes differ, a parameter is read-only, or (Adam and AdamW) two parameters overlap in part. In
            that case nothing is updated.
        MemoryError
            If there is no memory for the state of a new parameter. Nothing is updated.
        """
        grads = getattr(grads, "parameters", grads)
        _check_names(parameters, grads)
        plain = are_plain([*parameters.values(), *grads.values()])
        if may_share(parameters.values()):
            parameters, grads = self._untied(parameters, grads)
        states = self._states
        rows = [(array, grads[name], *states.get(name, ())) for name, array in parameters.items()]
        if not plain or not self._update(rows):
            self._step_converted(parameters, grads)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the settings and of every parameter's state, as arrays that ``np.savez`` can write.

        Returns
        -------
        state : dict of str to array
            The settings by name, such as ``lr``, and the states with torch's names after the parameter's:
            ``weight_ih_l0.exp_avg``, ``weight_ih_l0.exp_avg_sq`` and ``weight_ih_l0.step`` for Adam and AdamW,
            ``weight_ih_l0.momentum_buffer`` for SGD.

        Examples
        --------
        >>> import io, numpy as np, throughtime as tt
        >>> gru, optimizer = tt.GRU(2, 3, seed=0), tt.optim.Adam(0.01)
        >>> optimizer.step(gru.parameters, {name: np.ones_like(array) for name, array in gru.parameters.items()})
        >>> file = io.BytesIO()
        >>> np.savez(file, **optimizer.state_dict())
        >>> _ = file.seek(0)
        >>> other = tt.optim.Adam()
        >>> other.load_state_dict(np.load(file))
        >>> other.lr, int(other.state_dict()["weight_hh_l0.step"])
        (0.01, 1)
        """
        found = {name: np.array(getattr(self, name), np.float64) for name in self._settings}
        for parameter, state in self._states.items():
            found |= {f"{parameter}.{part}": array.copy() for part, array in zip(self._parts, state, strict=True)}
        return found

    @with_room
    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state_dict` of an optimiser of this class returned.

        Parameters
        ----------
        state : mapping of str to array
            Such as the file that ``np.load`` opens.

        Raises
        ------
        TypeError
            If `state` is not a mapping, or an entry not an array of the expected dtype.
        ValueError
            If an entry is missing, unexpected or has another shape. Nothing is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict of name to array, got {type(state).__name__}")
        arrays = {name: as_array(f"state[{name!r}]", value) for name, value in state.items()}
        texts = [name for name in arrays if isinstance(name, str) and name not in self._settings]
        names = dict.fromkeys(name.rpartition(".")[0] for name in texts)
        expected = [*self._settings, *(f"{name}.{part}" for name in names for part in self._parts)]
        faults = [f"missing {name!r}" for name in expected if name not in arrays]
        faults += [f"unexpected {name!r}" for name in arrays if name not in expected]
        if faults:
            raise ValueError(f"state does not fit {self!r}: " + "; ".join(faults))
        states = {name: self._checked_state(name, arrays) for name in names}
        self._configure(*(arrays[name].tolist() for name in self._settings))
        self._states = states

    def _checked_state(self, name: str, arrays: Mapping[str, Array]) -> tuple[Array, ...]:
        """Copies of the arrays of a parameter's state, which fit each other."""
        parts = {part: f"{name}.{part}" for part in self._parts}
        first, *_ = (arrays[full] for full in parts.values())
        if not is_layer_dtype(first.dtype):
            raise TypeError(f"state[{parts[self._parts[0]]!r}] has dtype {first.dtype}, expected float32 or float64")
        for full, fitting in zip(parts.values(), self._new_state(first), strict=True):
            float_array(f"state[{full!r}]", arrays[full], fitting.dtype, fitting.shape)
        return tuple(np.array(arrays[full], order="C") for full in parts.values())

    def _configure(self, *settings: Any) -> None:
        """Check and set the settings, in the order of `_settings`."""
        raise NotImplementedError

    def _untied(
        self, parameters: Mapping[str, Array], grads: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Merge parameters that are the same memory into one, with the sum of their gradients."""
        for name, parameter in parameters.items():
            _check_pair(name, parameter, grads[name])
        groups = by_memory("parameters", parameters, apart=not self._linear)
        groups = [sorted(names, key=lambda name: name not in self._states) for names in groups]  # in any order of names
        own = {first: parameters[first] for first, *_ in groups}
        return own, {names[0]: _sum_of(names, parameters, grads) for names in groups}

    def _step_converted(self, parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Check and allocate everything; then update, through copies of arrays that the kernels cannot use."""
        for name, parameter in parameters.items():
            _check_pair(name, parameter, grads[name])
            state = self._states.get(name)
            if state is not None and state[0].shape != parameter.shape:
                raise ValueError(
                    f"parameters[{name!r}] has shape {parameter.shape}, but had {state[0].shape} in "
                    "earlier steps; use one optimiser per model, or different names"
                )
        rows = []
        for name, parameter in parameters.items():
            copy, grad = native_floats(parameter), native_floats(grads[name])
            state = self._states.get(name) or self._new_state(copy)
            if state[0].dtype != copy.dtype:
                state = tuple(array.astype(copy.dtype) if array.dtype.kind == "f" else array for array in state)
            rows.append((copy, grad, *state))
        if not self._update(rows):  # all at once, so that no lack of memory leaves some of them as they were
            raise AssertionError("no kernel accepts the parameters")
        for (name, parameter), (copy, _, *new) in zip(parameters.items(), rows, strict=True):
            self._states[name] = tuple(new)
            if copy is not parameter:
                parameter[...] = copy

    def _new_state(self, parameter: Array) -> tuple[Array, ...]:
        """The initial state of a parameter; its first array has the parameter's shape and dtype."""
        raise NotImplementedError

    def _update(self, rows: list[tuple[Array, ...]]) -> bool:
        """Update parameters, given (parameter, gradient, *state) of each; False if the kernels cannot use an array."""
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``: ``v = momentum v + g; p = p - lr v``.

    Parameters
    ----------
    lr : float
        Learning rate, finite; the attribute may be changed between steps.
    momentum : float
        In [0, 1].

    Raises
    ------
    TypeError
        If an argument is not a number.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> parameters = {"weight": np.ones(2)}
    >>> tt.optim.SGD(lr=0.5).step(parameters, {"weight": np.array([1.0, -1.0])})
    >>> parameters["weight"]
    array([0.5, 1.5])
    """

    _linear = True
    lr: float
    momentum: float
    _settings = ("lr", "momentum")
    _parts = ("momentum_buffer",)

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        super().__init__()
        self._configure(lr, momentum)

    def _configure(self, lr: Any, momentum: Any) -> None:
        self.lr, self.momentum = _learning_rate(lr), number("momentum", momentum, 0, 1)

    def __repr__(self) -> str:
        return f"SGD(lr={self.lr}, momentum={self.momentum})"

    @with_room
    def _new_state(self, parameter: Array) -> tuple[Array, ...]:
        return (np.zeros(parameter.shape, parameter.dtype),)  # not written without momentum, so without pages

    def _update(self, rows: list[tuple[Array, ...]]) -> bool:
        return _core.sgd(rows, _learning_rate(self.lr), self.momentum)


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015), as ``torch.optim.Adam``.

    At step t, with ``g = g + weight_decay p``::

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    lr : float
        Learning rate, finite; the attribute may be changed between steps.
    betas : (float, float)
        b1 and b2, each in [0, 1).
    eps : float
        Added to the denominator.
    weight_decay : float
        L2 penalty, added to the gradient.

    Raises
    ------
    TypeError
        If an argument is not a number, or `betas` not two of them.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> parameters = {"weight": np.ones(2)}
    >>> tt.optim.Adam(lr=0.5).step(parameters, {"weight": np.array([1e-3, -1e3])})
    >>> parameters["weight"].round(4)
    array([0.5, 1.5])
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    _settings = ("lr", "betas", "eps", "weight_decay")
    _parts = ("exp_avg", "exp_avg_sq", "step")

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self._configure(lr, betas, eps, weight_decay)

    def _configure(self, lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
        below_one = math.nextafter(1, 0)
        lr = _learning_rate(lr)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be two numbers, got {betas!r}")
        checked = number("betas[0]", betas[0], 0, below_one), number("betas[1]", betas[1], 0, below_one)
        eps = number("eps", eps, 0, math.inf, open_high=True)
        weight_decay = number("weight_decay", weight_decay, 0, math.inf, open_high=True)
        self.lr, self.betas, self.eps, self.weight_decay = lr, checked, eps, weight_decay

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(lr={self.lr}, betas={self.betas}, eps={self.eps}, weight_decay={self.weight_decay})"
        )

    @with_room
    def _new_state(self, parameter: Array) -> tuple[Array, ...]:
        mean, square = (np.zeros(parameter.shape, parameter.dtype) for _ in range(2))
        return mean, square, np.zeros((), np.int64)  # the number of updates, counted by the kernel

    def _update(self, rows: list[tuple[Array, ...]]) -> bool:
        return _core.adam(rows, _learning_rate(self.lr), *self.betas, self.eps, self.weight_decay, 1.0)


class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019), as ``torch.optim.AdamW``: Adam with decoupled weight decay.

    At step t::

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        p = (1 - lr weight_decay) p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Parameters
    ----------
    lr : float
        Learning rate, finite; the attribute may be changed between steps.
    betas : (float, float)
        b1 and b2, each in [0, 1).
    eps : float
        Added to the denominator.
    weight_decay : float
        Each step subtracts ``lr * weight_decay`` times the parameter.

    Raises
    ------
    TypeError, ValueError
        As for :class:`Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> parameters = {"weight": np.ones(2)}
    >>> tt.optim.AdamW(lr=0.5, weight_decay=0.1).step(parameters, {"weight": np.array([0.0, 1e3])})
    >>> parameters["weight"].round(4)
    array([0.95, 0.45])

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def _update(self, rows: list[tuple[Array, ...]]) -> bool:
        lr = _learning_rate(self.lr)
        return _core.adam(rows, lr, *self.betas, self.eps, 0.0, 1 - lr * self.weight_decay)


def _learning_rate(lr: Any) -> float:
    return number("lr", lr, 0, math.inf, open_high=True)


def _sum_of(names: list[str], parameters: Mapping[str, Array], grads: Mapping[str, Array]) -> Array:
    """The sum of the gradients of parameters in the same memory, in the layout of the first."""
    if len(names) == 1:
        return grads[names[0]]
    total = in_memory_order(grads[names[0]], parameters[names[0]])
    for name in names[1:]:
        total = total + in_memory_order(grads[name], parameters[name])
    return from_memory_order(total, parameters[names[0]])


def _check_names(parameters: Any, grads: Any) -> None:
    for label, mapping in (("parameters", parameters), ("grads", grads)):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"{label} must be a dict of name to array, got {type(mapping).__name__}")
    if parameters.keys() == grads.keys():
        return
    faults = [f"no gradient for {name!r}" for name in parameters if name not in grads]
    faults += [f"no parameter for gradient {name!r}" for name in grads if name not in parameters]
    raise ValueError("grads do not fit parameters: " + "; ".join(faults))


def _check_pair(name: str, parameter: Any, grad: Any) -> None:
    for label, array in (("parameters", parameter), ("grads", grad)):
        check_floats("throughtime.optim", f"{label}[{name!r}]", array)
    if grad.dtype != parameter.dtype:
        raise TypeError(f"grads[{name!r}] has dtype {grad.dtype}, expected {parameter.dtype} as the parameter")
    if grad.shape != parameter.shape:
        raise ValueError(f"grads[{name!r}] has shape {grad.shape}, expected {parameter.shape} as the parameter")
    if not parameter.flags.writeable:
        raise ValueError(f"parameters[{name!r}] is read-only and cannot be updated in place")
