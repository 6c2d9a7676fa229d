"""Stacks of layers and directions, built from single recurrences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..recurrent.architecture import Architecture
from .arguments import check_lengths, check_params, check_perturbations, check_state, check_x
from .kernels import Kind, timestep_widths
from .recurrence import recurrence
from .sharding import by_sequences


def run(params: Any, x: Any, state: Any, lengths: Any, perturbations: Any, *, cell: str) -> tuple[Any, tuple[Any, ...]]:
    """Output of the last layer, and the final states, in the layout of `x` and `state`."""
    x = check_x(x)
    described = check_params(params, cell, x)
    initial = check_state(state, described, x)
    lengths = check_lengths(lengths, x)
    taps = check_perturbations(perturbations, described, x)
    weights = {name: jnp.asarray(array) for name, array in params.items()}
    batched = x.ndim == 3
    if not batched:
        x, initial = x[:, None], [one[:, None] for one in initial]
        taps = {name: one[:, :, None] for name, one in taps.items()}
    operands = (weights, x, initial, lengths, taps)
    output, final = by_sequences(_stack, described, x, operands, axes=(None, 1, 1, 0, 2))
    return (output, final) if batched else (output[:, 0], tuple(one[:, 0] for one in final))


def _stack(
    described: Architecture, params: Mapping[str, Any], x: Any, initial: list[Any], lengths: Any, taps: dict[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    timesteps = tuple(name for name in timestep_widths(described) if name in taps)  # a pytree sorts its keys by name
    outputs: list[Any] = []
    final: list[Any] = []
    for index, names in enumerate(described.own_parameters):
        if index % described.num_directions == 0 and outputs:
            x, outputs = _side_by_side(outputs), []
        operands = [
            x,
            lengths,
            *(params[name] for name in names.values()),
            *(one[index] for one in initial),
            *(taps[name][index] for name in timesteps),
        ]
        kind = Kind(described, described.goes_back[index], timesteps)
        output, *last = recurrence(kind, operands)
        outputs.append(output)
        final.append(last)
    return _side_by_side(outputs), tuple(jnp.stack(one) for one in zip(*final, strict=True))


def _side_by_side(outputs: list[Any]) -> Any:
    return jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
