"""The forward pass: layer by layer from the lowest, with one call of the kernels per direction."""

from __future__ import annotations

from .._arguments import Array
from .._memory import with_room
from ..backend.protocol import Backend
from .architecture import Architecture
from .arguments import Inputs
from .record import Record


@with_room
def run_forward(
    architecture: Architecture,
    backend: Backend,
    inputs: Inputs,
    *,
    parameters: dict[str, Array],
    masks: dict[str, Array],
    memory: str | int | None,
    last: bool = False,
    terms: int | None = None,
) -> Record:
    """Run all layers over all timesteps. With `last`, the output is that of each direction's last step only."""
    record = Record.of(architecture, backend, inputs, parameters, masks, memory, terms)
    record.states = record.new_states(record.every, inputs.state)
    record.saved = record.new_saved()
    layers = _run_layers(record, inputs.x, architecture.num_layers, record.states, record.every, last=last)
    output = layers.pop()
    if memory is not None:
        record.inputs = layers[:1] if record.every else layers  # the others are recomputed
    record.final_state = [_final_state(record, states) for states in record.states]
    if last:
        top = record.final_state[0][-architecture.num_directions :]
        rows = backend.contiguous(top.swapaxes(0, 1)).reshape(record.sizes[1], architecture.output_size)
        record.output = record.unbatch(rows, 0)
    else:
        record.output = record.user_layout(output)
    return record


def upper_inputs(record: Record) -> list[Array]:
    """The input of every layer; those that were not stored are recomputed."""
    count = record.architecture.num_layers
    if len(record.inputs) == count:
        return list(record.inputs)
    steps, stack = record.sizes[0], record.backend.stack
    initial = [stack([array[i, record.initial_row(i)] for i in range(len(array))]) for array in record.states]
    return _run_layers(record, record.inputs[0], count - 1, record.new_states(steps, initial), steps)


def _run_layers(
    record: Record, x: Array, count: int, states: list[Array], every: int, *, last: bool = False
) -> list[Array]:
    """Run the lowest `count` layers. Returns the input of each, and the output of the last."""
    inputs = [x]
    for layer in range(count):
        inputs.append(_run_layer(record, layer, inputs[-1], states, every, last=last))
        if record.memory is None:
            del inputs[0]
    return inputs


def _run_layer(record: Record, layer: int, x: Array, states: list[Array], every: int, *, last: bool) -> Array:
    """Run both directions of one layer. Returns the output that the layer above reads, after dropout."""
    described, backend, directions = record.architecture, record.backend, record.architecture.num_directions
    units, is_top = described.width, layer == described.num_layers - 1
    # Below the top layer, the states of a single direction serve as the next layer's input: nothing reads padding.
    output: Array | None = None
    if is_top and not last:
        output = record.new_layout(described.output_size)
    elif not is_top and (directions > 1 or every):
        output = backend.empty((*record.sizes, described.output_size), record.dtype)
    for direction in range(directions):
        problem = record.problem(layer * directions + direction, x, states, every)
        if output is not None:
            problem["output"] = output if directions == 1 else output[:, :, direction * units : (direction + 1) * units]
        if record.sizes[1]:
            backend.forward(described.cell, problem)
    if is_top:
        return x if output is None else output
    return record.drop(layer, states[0][layer, 1:-1] if output is None else output)


def _final_state(record: Record, states: Array) -> Array:
    described = record.architecture
    if record.every:
        return states[:, -1].copy()
    if described.reverse:
        return states[:, 1].copy()
    final = states[:, record.sizes[0]].copy()
    if described.num_directions == 2:
        final[1::2] = states[1::2, 1]
    return final
