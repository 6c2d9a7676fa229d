"""`apply`, which sets the initial weights of a whole layer or stack in place."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import numpy as np

from .._arguments import Array, choice, generator, number
from ..backend.choose import require_host
from ..layers.batch_norm import BatchNorm
from ..layers.layer import Layer, check_parameters, owners
from ..layers.layer_norm import LayerNorm
from ..recurrent import Recurrent
from .arrays import LARGEST, gate_biases, identity, kaiming_uniform, orthogonal, xavier_uniform

_RECIPES = ("xavier", "kaiming", "orthogonal", "identity", "chrono", "good")
_LN_GAIN = 0.5  # with chrono biases gamma is 0.9988 to 1.0005: random input, 64 and 256 units, 1000 steps, two seeds

L = TypeVar("L", bound=Layer)


def apply(layer: L, recipe: str, *, max_steps: float | None = None, seed: Any = None) -> L:
    """Set the initial weights of a layer, and of every layer inside it, in place.

    Matrices are ``weight_ih``, ``weight_hh`` and ``weight_hr`` of recurrent layers, the weights of `Linear`, `MLP` and
    `SelfAttention`, and the table of an `Embedding`. Matrices of several gates are drawn gate by gate, with the fans of
    one gate; queries, keys and values likewise. Norms and peepholes stay unchanged.

    ==============  =======================================  ==========================================
    `recipe`        matrices                                 biases
    ==============  =======================================  ==========================================
    "xavier"        `xavier_uniform`                         zero
    "kaiming"       `kaiming_uniform`, the gain of a ReLU    zero
    "orthogonal"    `orthogonal`                             zero
    "identity"      `identity`, but weight_ih as "xavier"    zero
    "chrono"        unchanged                                gates of LSTM and GRU by `chrono`
    "good"          only weight_hh, orthogonal               of recurrent layers: `chrono`, the rest zero
    ==============  =======================================  ==========================================

    ``throughtime flow`` compares "good" with the default weights. "good" sets recurrent layers only; if they have
    LayerNorm, it sets the gain ``weight_ln_hh`` to 0.5. "chrono" and "good" write `chrono` into ``bias_ih`` and zeros
    into ``bias_hh``.

    Parameters
    ----------
    layer : Layer
        Any layer, block or stack.
    recipe : {"xavier", "kaiming", "orthogonal", "identity", "chrono", "good"}
        See the table.
    max_steps : float, optional
        The longest expected dependency, at least 2 steps, for the gate biases of "chrono" and "good"; the other recipes
        ignore it.
    seed : optional
        Anything that ``numpy.random.default_rng`` accepts.

    Returns
    -------
    layer
        The layer itself.

    Raises
    ------
    TypeError
        If `layer` is not a layer, or `seed` not a seed.
    ValueError
        If the recipe does not exist, sets nothing in this layer, or needs `max_steps`.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> stack = tt.Sequential(tt.Linear(3, 8), tt.ResidualBlock(tt.LSTM(8, 8), 8))
    >>> tt.init.apply(stack, "xavier", seed=0) is stack
    True
    >>> lstm = tt.init.apply(tt.LSTM(3, 8), "good", max_steps=100, seed=0)
    >>> weight = lstm.parameters["weight_hh_l0"][:8]
    >>> bool(np.allclose(weight @ weight.T, np.eye(8), atol=1e-6))
    True
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a throughtime layer, got {type(layer).__name__}")
    choice("recipe", recipe, _RECIPES)
    steps = None if max_steps is None else number("max_steps", max_steps, 2, LARGEST)
    rng = generator("seed", seed)
    leaves = list(owners(layer))
    for leaf in leaves:
        require_host("tt.init.apply", leaf.device)
        check_parameters(leaf)
    chosen = [leaf for leaf in leaves if _is_set(leaf, recipe)]
    if not chosen:
        what = {"chrono": "the gate biases of LSTM and GRU", "good": "recurrent layers"}.get(recipe, "matrices")
        raise ValueError(f"recipe {recipe!r} sets {what}, but there are none in {layer!r}")
    if recipe in ("chrono", "good") and steps is None and any(map(_has_gate_biases, chosen)):
        raise ValueError(f"max_steps must be given for recipe {recipe!r}: the longest dependency expected, in steps")
    for leaf in chosen:
        for name, array in leaf.parameters.items():
            new = _initial(leaf, name, array, recipe, steps, rng)
            if new is not None:
                array[...] = new
    return layer


def _is_set(leaf: Layer, recipe: str) -> bool:
    """Whether the recipe sets anything in a layer."""
    if recipe == "chrono":
        return _has_gate_biases(leaf)
    if recipe == "good":
        return isinstance(leaf, Recurrent)
    return any(array.ndim > 1 for array in leaf.parameters.values())


def _has_gate_biases(leaf: Layer) -> TypeGuard[Recurrent]:
    return isinstance(leaf, Recurrent) and leaf.architecture.gates > 1 and leaf.bias


def _initial(
    leaf: Layer, name: str, array: Array, recipe: str, max_steps: float | None, rng: np.random.Generator
) -> Array | float | None:
    """The new value of a parameter; None if the recipe does not change it."""
    if array.ndim > 1:
        return _matrix(leaf, name, array, recipe, rng)
    if recipe == "good" and name.startswith("weight_ln_hh"):
        return _LN_GAIN
    if "bias" not in name or name.startswith("bias_ln") or isinstance(leaf, LayerNorm | BatchNorm):
        return None
    if recipe in ("chrono", "good") and _has_gate_biases(leaf) and name.startswith("bias_ih"):
        assert max_steps is not None
        return gate_biases(leaf.architecture.gate_names, leaf.hidden_size, rng, max_steps, array.dtype)
    return 0


def _matrix(leaf: Layer, name: str, array: Array, recipe: str, rng: np.random.Generator) -> Array | None:
    blocks = _blocks(leaf, name)
    if recipe == "identity" and name.startswith("weight_ih"):
        recipe = "xavier"
    if recipe == "orthogonal" or (recipe == "good" and name.startswith("weight_hh")):
        return orthogonal(array.shape, rng, gates=blocks, dtype=array.dtype)
    if recipe == "identity":
        return identity(array.shape, gates=blocks, dtype=array.dtype)
    if recipe not in ("xavier", "kaiming"):
        return None
    shape = (len(array) // blocks, *array.shape[1:])
    if recipe == "xavier":
        return np.concatenate([xavier_uniform(shape, rng, dtype=array.dtype) for _ in range(blocks)])
    return np.concatenate([kaiming_uniform(shape, rng, nonlinearity="relu", dtype=array.dtype) for _ in range(blocks)])


def _blocks(leaf: Layer, name: str) -> int:
    """The number of matrices that are stacked in a parameter."""
    if isinstance(leaf, Recurrent) and name.startswith(("weight_ih", "weight_hh")):
        return leaf.architecture.gates
    return 3 if name == "in_proj_weight" else 1  # queries, keys and values
