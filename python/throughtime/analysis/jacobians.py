"""`jacobians`: the derivative of a recurrent layer's state by the state one step before, at every step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arguments import LARGEST_SIZE, Array
from .._memory import with_room
from .._torch_modules import from_torch
from ..recurrent import Recurrent
from .joint_state import Trajectory

__all__ = ["jacobians"]


@with_room
def jacobians(layer: Recurrent, x: Any, *, state: Any = None) -> Array:
    """Jacobians of a recurrent layer's state at every step, ``d state_t / d state_{t-1}``.

    The state is the joint state of all layers, N entries: h of all layers, from the first to the last, then, for the
    LSTM, c of all layers. The Jacobians are taken along the layer's own trajectory in inference mode (no dropout,
    zoneout's expectation), in float64 even if the layer is float32.

    The result takes ``8 T B N^2`` bytes: 84 MB for 10 steps of 1 sequence and N = 1024. In addition, the call needs the
    trajectory, ``8 (T + 1) B N`` bytes, and some 32 MB (more if a single step of all sequences needs more). Its time is
    that of a forward and a backward of ``T B N`` sequences of length 1. :func:`lyapunov_spectrum` and
    :func:`jacobian_singular_values` use the same Jacobians without storing all of them.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        One direction, forward in time; modules of ``torch.nn`` and ``throughtime.torch`` are accepted too.
    x : (T, B, I) array
        Input, as for ``layer.forward``.
    state : (L, B, H) array, or a pair of them for the LSTM, optional
        Initial state; zeros when None.

    Returns
    -------
    jacobians : (T, B, N, N) float64 array
        ``jacobians[t, b, i, j]`` is the derivative of entry i of the state after input t by entry j of the state before
        it. Time comes first with ``batch_first`` too. (T, N, N) for x without a batch axis.

    Raises
    ------
    TypeError
        If `layer` is not recurrent, or the dtype of an array differs from the layer's.
    ValueError
        If the layer is bidirectional or reversed, or a size does not fit.
    FloatingPointError
        If the state or a Jacobian is not finite; the message names the step and the sequence.
    MemoryError
        If the result does not fit in memory; nothing has been computed then.

    Examples
    --------
    For ``h' = tanh(w h)``, the Jacobian is ``(1 - h'^2) w``:

    >>> import numpy as np
    >>> import throughtime as tt
    >>> rnn = tt.RNN(3, 2, bias=False, dtype="float64", seed=0)
    >>> x = np.random.default_rng(0).standard_normal((4, 5, 3))
    >>> found = tt.jacobians(rnn, x)
    >>> found.shape
    (4, 5, 2, 2)
    >>> h = rnn.forward(x).output
    >>> np.allclose(found, (1 - h**2)[..., None] * rnn.parameters["weight_hh_l0"])
    True
    """
    layer, x, state = from_torch(layer, x, state)
    trajectory = Trajectory(layer, x, state)
    width = trajectory.step.width
    found = _allocated((trajectory.steps, trajectory.batch, width, width))
    for t, each in enumerate(trajectory.jacobians()):
        found[t] = each
    return found if trajectory.batched else found[:, 0]


def _allocated(shape: tuple[int, ...]) -> Array:
    size = 8 * math.prod(shape)
    try:
        if size > LARGEST_SIZE:
            raise MemoryError
        return np.empty(shape)
    except MemoryError:
        raise MemoryError(
            f"the Jacobians, of shape {shape}, need {size / 1e9:.3g} GB; pass fewer steps of x at a time, with the "
            "final state of one call as the initial state of the next"
        ) from None
