"""Checks of the caller's arguments during tracing, when shapes and dtypes are known but values are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import check_dtype, check_shape, sequence_lengths
from ..recurrent.architecture import Architecture, gates_of
from ..recurrent.arguments import NONLINEARITIES
from .kernels import timestep_widths

_LAYER_NORM = {"weight_ln_ih_l0": "_layer_norm"}
# For each cell that has variants, a parameter of each variant, and what it adds to the name of the cell.
_VARIANTS = {
    "lstm": {"weight_hr_l0": "_projected", "weight_ci_l0": "_peephole", **_LAYER_NORM},
    "gru": _LAYER_NORM,
    **{f"rnn_{nonlinearity}": _LAYER_NORM for nonlinearity in NONLINEARITIES},
}


def check_x(x: Any) -> Any:
    """Check `x`, (T, B, I) or (T, I)."""
    check_array("x", x)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x has dtype {x.dtype}, expected float32 or float64")
    if x.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise TypeError("x has dtype float64, which needs jax.config.update('jax_enable_x64', True)")
    if x.ndim not in (2, 3):
        raise ValueError(f"x has shape {x.shape}, expected (T, B, I), or (T, I) unbatched")
    if x.shape[0] == 0:
        raise ValueError(f"x has no timesteps (x.shape == {x.shape}), expected T >= 1")
    return jnp.asarray(x)


def check_params(params: Any, cell: str, x: Any) -> Architecture:
    """The architecture that `params` describe; raises unless they are complete and fit each other and `x`."""
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of name to array, got {type(params).__name__}")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in params:
            raise ValueError(f"params has no {name!r}, but {sorted(params, key=str)}")
    for name, array in params.items():
        if not isinstance(name, str):
            raise TypeError(f"params has the name {name!r}, expected strings")
        check_array(f"params[{name!r}]", array)
        check_dtype(f"params[{name!r}]", array, x.dtype)
    check_shape("params['weight_hh_l0']", params["weight_hh_l0"], (f"{len(gates_of(cell))}*H", "H"))
    described = _read(params, cell, x)
    _check_shapes(params, described, x)
    return described


def _read(params: Mapping[str, Any], cell: str, x: Any) -> Architecture:
    rows, width = params["weight_hh_l0"].shape
    variant = next((of for name, of in _VARIANTS.get(cell, {}).items() if name in params), "")
    if cell == "gru_original" and "weight_ln_ih_l0" in params:
        raise ValueError(
            "params has 'weight_ln_ih_l0', of a GRU with layer normalisation, but reset_after=False was given: "
            "expected reset_after=True, or params without it"
        )
    return Architecture(
        name=cell.partition("_")[0],
        cell=cell + variant,
        input_size=x.shape[-1],
        hidden_size=max(1, rows // len(gates_of(cell))),
        num_layers=sum(name.startswith("weight_ih_l") and not name.endswith("_reverse") for name in params),
        num_directions=2 if "weight_ih_l0_reverse" in params else 1,
        proj_size=width if variant == "_projected" else 0,
        bias="bias_ih_l0" in params,
    )


def _check_shapes(params: Mapping[str, Any], described: Architecture, x: Any) -> None:
    features = params["weight_ih_l0"].shape[-1:]
    if x.shape[-1:] != features and len(params["weight_ih_l0"].shape) == 2:
        raise ValueError(
            f"x has {x.shape[-1]} features in its last axis, but params['weight_ih_l0'] has {features[0]} columns "
            f"(x.shape == {x.shape})"
        )
    expected = described.parameter_shapes
    faults = [f"missing {name!r} {shape}" for name, shape in expected.items() if name not in params]
    faults += [f"unexpected {name!r} {array.shape}" for name, array in params.items() if name not in expected]
    faults += [
        f"{name!r} has shape {params[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in params and params[name].shape != shape
    ]
    if faults:
        raise ValueError(f"params do not fit together: {'; '.join(faults)}")


def check_state(state: Any, described: Architecture, x: Any) -> list[Any]:
    """The initial states (L*D, B, P), (L*D, B, H), without B if x has none; zeros for None."""
    shapes = [(described.count, *x.shape[1:-1], width) for width in described.widths]
    if state is None:
        return [jnp.zeros(shape, x.dtype) for shape in shapes]
    labels, given = ["state"], [state]
    if len(shapes) > 1:
        if not isinstance(state, tuple | list) or len(state) != len(shapes):
            got = f"{len(state)} entries" if isinstance(state, tuple | list) else type(state).__name__
            symbols = ", ".join(f"{name[0]}_0" for name in described.states)
            raise TypeError(f"state must be a pair ({symbols}) for {described.name}, got {got}")
        labels, given = [f"state[{i}]" for i in range(len(shapes))], list(state)
    return [_checked(label, one, x.dtype, shape) for label, one, shape in zip(labels, given, shapes, strict=True)]


def check_lengths(lengths: Any, x: Any) -> Any:
    """`lengths` (B,) as int32, (0,) for None. If they are traced, the kernel checks their values."""
    if lengths is None:
        return jnp.zeros((0,), np.int32)
    batched = x.ndim == 3
    if not isinstance(lengths, jax.core.Tracer):
        known = sequence_lengths(_known(lengths), x.shape[0], x.shape[1] if batched else 1, batched)
        return jnp.asarray(known, np.int32)
    check_array("lengths", lengths)
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths must be integers, got dtype {lengths.dtype}")
    check_shape("lengths", lengths, x.shape[1:2] if batched else ())
    return jnp.atleast_1d(lengths).astype(np.int32)


def _known(lengths: Any) -> Any:
    """`lengths` that are not traced, copied to the host if on a device, and as an array if they are a list."""
    if isinstance(lengths, jax.Array | np.ndarray):
        check_array("lengths", lengths)
        return np.asarray(lengths)
    if isinstance(lengths, str | bytes | type):
        raise TypeError(f"lengths must be integers, got {_kind(lengths)}")
    if isinstance(lengths, list | tuple):
        try:
            return np.asarray(lengths)
        except (TypeError, ValueError) as error:
            raise TypeError(f"lengths must be a flat list of integers, got {lengths!r}: {error}") from None
    return lengths


def check_perturbations(perturbations: Any, described: Architecture, x: Any) -> dict[str, Any]:
    """Arrays (L*D, T, B, ...) by name, in the order of the kernels' results."""
    if perturbations is None:
        return {}
    if not isinstance(perturbations, Mapping):
        raise TypeError(f"perturbations must be a dict of name to array, got {type(perturbations).__name__}")
    widths = timestep_widths(described)
    unknown = sorted(set(perturbations) - set(widths), key=str)
    if unknown:
        raise ValueError(f"perturbations has {unknown[0]!r}, expected some of {', '.join(map(repr, widths))}")
    return {
        name: _checked(
            f"perturbations[{name!r}]", perturbations[name], x.dtype, (described.count, *x.shape[:-1], width)
        )
        for name, width in widths.items()
        if name in perturbations
    }


def check_array(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an array of numbers from NumPy or jax, or converts itself to one."""
    converts = hasattr(value, "__jax_array__") or hasattr(value, "__array__")
    if isinstance(value, type) or not converts or not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be an array, got {_kind(value)}")
    if not isinstance(value.dtype, np.dtype):  # for example a key of jax.random or a tensor of torch
        raise TypeError(f"{name} must be a NumPy or jax array of numbers, got {_kind(value)} of {value.dtype}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, got MaskedArray (use {name}.filled(...))")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _checked(name: str, value: Any, dtype: Any, shape: Sequence[int]) -> Any:
    check_array(name, value)
    check_dtype(name, value, dtype)
    check_shape(name, value, shape)
    return jnp.asarray(value)
