"""RNN, LSTM and GRU as differentiable jax functions, on the CPU.

Each takes PyTorch's parameters by name in a dict, such as ``tt.LSTM(...).parameters``, and reads layers, directions,
biases and sizes from them. They work under ``jax.jit``, ``jax.grad``, ``jax.vmap`` and ``jax.checkpoint``, in float32
and, with ``jax_enable_x64``, in float64. There is no forward mode (``jax.jvp``) and no second derivative.
"""

from __future__ import annotations

from typing import Any

try:
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("throughtime.jax needs jax: pip install jax") from error

from .._arguments import choice, flag
from ..recurrent.arguments import NONLINEARITIES
from .layers import run

__all__ = ["gru", "lstm", "rnn"]


def lstm(
    params: Any, x: Any, state: Any = None, *, lengths: Any = None, perturbations: Any = None
) -> tuple[Any, tuple[Any, Any]]:
    """Long short-term memory, with the equations of :class:`throughtime.LSTM`.

    Parameters
    ----------
    params : dict of str to array
        ``weight_ih_l0 (4H, I)``, ``weight_hh_l0 (4H, H)``, ``bias_ih_l0``, ``bias_hh_l0 (4H,)`` or no biases at all;
        ``_l1`` for the next layer, ``_reverse`` for the second direction. With ``weight_hr_l0 (P, H)`` the cell is
        projected, with ``weight_ci_l0``, ``weight_cf_l0``, ``weight_co_l0 (H,)`` it has peepholes, with
        ``weight_ln_ih_l0``, ``weight_ln_hh_l0 (4H,)``, ``weight_ln_c_l0``, ``bias_ln_c_l0 (H,)`` it is
        layer-normalised.
    x : (T, B, I) array
        Input, float32 or float64; ``(T, I)`` unbatched drops B everywhere.
    state : pair of (L*D, B, H) arrays, optional
        Initial state ``(h_0, c_0)``; zeros when None.
    lengths : (B,) integers, optional
        Length of each sequence, in any order, 0 allowed. Beyond it the output is zero and the state stays unchanged.
    perturbations : dict of str to array, optional
        Zeros to differentiate with respect to. Their gradients are attributes of :class:`throughtime.Gradients`, with
        the same names and shapes: ``"hidden"`` and ``"cell"``, ``(L*D, T, B, H)``, or a gradient of the pre-activations
        at every timestep, such as ``"gates"``, ``(L*D, T, B, 4H)``. Values are not read: they stand for added terms.

    Returns
    -------
    output : (T, B, D*H) array
    state : pair of (L*D, B, H) arrays
        ``(h_n, c_n)``.

    Raises
    ------
    ValueError
        If a size does not fit; names every missing, unexpected and misshapen parameter.
    TypeError
        If the dtype of an array differs from that of `x`; nothing is cast.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, throughtime as tt, throughtime.jax
    >>> params = tt.LSTM(8, 16, seed=0).parameters
    >>> x = jax.random.normal(jax.random.key(0), (100, 4, 8))
    >>> def loss(params, perturbations):
    ...     output, state = tt.jax.lstm(params, x, perturbations=perturbations)
    ...     return output[-1].sum()
    >>> zeros = {"hidden": jnp.zeros((1, 100, 4, 16))}
    >>> d_params, d = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, zeros)
    >>> d_params["weight_hh_l0"].shape, d["hidden"].shape
    ((64, 16), (1, 100, 4, 16))
    """
    output, (h_n, c_n) = run(params, x, state, lengths, perturbations, cell="lstm")
    return output, (h_n, c_n)


def gru(
    params: Any,
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    reset_after: bool = True,
    perturbations: Any = None,
) -> tuple[Any, Any]:
    """Gated recurrent unit, with the equations of :class:`throughtime.GRU`.

    Parameters
    ----------
    params : dict of str to array
        ``weight_ih_l0 (3H, I)``, ``weight_hh_l0 (3H, H)``, ``bias_ih_l0``, ``bias_hh_l0 (3H,)`` or no biases at all;
        ``_l1`` for the next layer, ``_reverse`` for the second direction. With ``weight_ln_ih_l0``,
        ``weight_ln_hh_l0 (3H,)`` it is layer-normalised.
    x, lengths
        As for :func:`lstm`.
    state : (L*D, B, H) array, optional
        Initial state ``h_0``; zeros when None.
    reset_after : bool
        Whether r multiplies after the recurrent product, as in PyTorch; False is the original GRU, which has no layer
        normalisation.
    perturbations : dict of str to array, optional
        As for :func:`lstm`, with 3H instead of 4H, and without ``"cell"``.

    Returns
    -------
    output : (T, B, D*H) array
    state : (L*D, B, H) array
        ``h_n``.

    Raises
    ------
    ValueError, TypeError
        As for :func:`lstm`.

    Examples
    --------
    >>> import jax.numpy as jnp, throughtime as tt, throughtime.jax
    >>> output, h_n = tt.jax.gru(tt.GRU(8, 16, bidirectional=True).parameters, jnp.ones((10, 4, 8)))
    >>> output.shape, h_n.shape
    ((10, 4, 32), (2, 4, 16))
    """
    cell = "gru" if flag("reset_after", reset_after) else "gru_original"
    output, (h_n,) = run(params, x, state, lengths, perturbations, cell=cell)
    return output, h_n


def rnn(
    params: Any,
    x: Any,
    state: Any = None,
    *,
    lengths: Any = None,
    nonlinearity: str = "tanh",
    perturbations: Any = None,
) -> tuple[Any, Any]:
    """Elman network, with the equations of :class:`throughtime.RNN`.

    Parameters
    ----------
    params : dict of str to array
        ``weight_ih_l0 (H, I)``, ``weight_hh_l0 (H, H)``, ``bias_ih_l0``, ``bias_hh_l0 (H,)`` or no biases at all;
        ``_l1`` for the next layer, ``_reverse`` for the second direction. With ``weight_ln_ih_l0``,
        ``weight_ln_hh_l0 (H,)`` it is layer-normalised.
    x, state, lengths
        As for :func:`gru`.
    nonlinearity : {"tanh", "relu", "sigmoid"}
    perturbations : dict of str to array, optional
        As for :func:`lstm`, with H instead of 4H, and without ``"cell"``.

    Returns
    -------
    output : (T, B, D*H) array
    state : (L*D, B, H) array
        ``h_n``.

    Raises
    ------
    ValueError, TypeError
        As for :func:`lstm`.

    Examples
    --------
    >>> import jax.numpy as jnp, throughtime as tt, throughtime.jax
    >>> output, h_n = tt.jax.rnn(tt.RNN(8, 16).parameters, jnp.ones((10, 8)))
    >>> output.shape, h_n.shape
    ((10, 16), (1, 16))
    """
    cell = f"rnn_{choice('nonlinearity', nonlinearity, NONLINEARITIES)}"
    output, (h_n,) = run(params, x, state, lengths, perturbations, cell=cell)
    return output, h_n
