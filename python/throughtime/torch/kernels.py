"""Forward and backward of a recurrent layer on tensors: what operators and autograd share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor

from .._arguments import Array
from ..recurrent.tape import Gradients, Tape, Wanted, _Backward, kept_shapes
from . import precision
from .places import tensor_of
from .plan import Plan
from .recording import Timesteps


class Call(NamedTuple):
    """One call of a layer, apart from its input and states.

    `weights` are in the order of ``plan.names``, `masks` in that of ``plan.mask_names``; `lengths` (B,) int64 or None.
    """

    plan: Plan
    medium: bool
    weights: Sequence[Tensor]
    lengths: Tensor | None
    masks: Sequence[Tensor]

    def arrays(self) -> dict[str, Any]:
        """As `Tape` takes them."""
        names, place = self.plan.mask_names(len(self.masks)), self.plan.place
        weights = zip(self.plan.names, self.weights, strict=True)
        return {
            "lengths": None if self.lengths is None else place.array_of(self.lengths),
            "masks": {name: place.array_of(mask) for name, mask in zip(names, self.masks, strict=True)},
            "parameters": {name: place.contiguous_array_of(weight) for name, weight in weights},
            "memory": self.plan.memory,
        }

    def precision(self) -> AbstractContextManager[None]:
        """Of its products."""
        return precision.medium() if self.medium else nullcontext()


def forward(call: Call, x: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """Output, final states, and what the backward needs besides; `state` is empty for zeros."""
    layer, array_of = call.plan.layer, call.plan.place.array_of
    with call.plan.place.working(x), call.precision():
        array, batched = layer._check_x(array_of(x), "input")
        initial = layer._check_state("hx", _as_state([*map(array_of, state)]), array.shape[1], batched)
        tape = Tape(layer, array, batched=batched, state=initial, resets=None, last=False, **call.arrays())
        kept = [] if call.plan.memory is None else tape._kept()
        results = [tensor_of(array, x.dtype) for array in (tape.output, *_as_tuple(tape.final_state))]
        return [*results, *map(tensor_of, kept)]


def empty_forward(call: Call, x: Tensor) -> list[Tensor]:
    """What `forward` returns, in shape alone."""
    layer, memory = call.plan.layer, call.plan.memory
    *middle, steps = x.shape[:-1] if layer.batch_first else x.shape[-2::-1]  # the batch, where there is one
    batch = middle[0] if middle else 1
    count = layer.num_layers * layer.num_directions
    shapes = [(*x.shape[:-1], layer.output_size), *((count, *middle, width) for width in layer._state_widths)]
    results = [x.new_empty(shape) for shape in shapes]
    if memory is None:
        return results
    kept = kept_shapes(layer, steps, batch, call.plan.mask_names(len(call.masks)), memory)
    dtype = call.plan.place.computes_in(x.dtype)
    return [*results, *(x.new_empty(shape, dtype=dtype) for shape in kept)]


def backward(
    call: Call,
    x: Tensor,
    kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None],
    wanted: Sequence[bool],
    recorder: Timesteps | None,
) -> list[Tensor]:
    """Gradients, those that are wanted: of the input, of the initial states (all or none), of each weight.

    `d_results` are those of output and final states, None for zeros. The recorder, if any, is given those of timesteps.
    """
    needs_input, needs_state, *needs_weights = wanted
    named = [name for name, needs in zip(call.plan.names, needs_weights, strict=True) if needs]
    which = Wanted(input=needs_input, initial_state=needs_state, parameters=frozenset(named))
    with call.plan.place.working(x), call.precision():
        grads = _gradients(call, x, kept, d_results, which, recorder.asked if recorder else set())
        if recorder:
            recorder.add(grads)
        found = [grads.input] if needs_input else []
        found += _as_tuple(grads.initial_state) if needs_state else ()
        return [tensor_of(array, x.dtype) for array in (*found, *(grads.parameters[name] for name in named))]


def _gradients(
    call: Call,
    x: Tensor,
    kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None],
    wanted: Wanted,
    asked: set[str],
) -> Gradients:
    layer, array_of = call.plan.layer, call.plan.place.array_of
    array, batched = layer._check_x(array_of(x), "input")
    tape = Tape._restored(layer, array, [array_of(tensor) for tensor in kept], batched=batched, **call.arrays())
    d_output, *d_states = (None if tensor is None else array_of(tensor) for tensor in d_results)
    d_final = layer._check_state("d_final_state", _as_state(d_states), array.shape[1], batched, partial=True)
    if d_output is not None:
        d_output = layer._backend.features_together(layer._time_major(d_output, batched))
    return _Backward(tape, asked, None, d_final, {"truncate": None, "clip": None}, False, wanted).run(d_output)


def empty_backward(call: Call, x: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """What `backward` returns, in shape alone."""
    _, *states = empty_forward(call, x)[: 1 + call.plan.states]
    needs_input, needs_state, *needs_weights = wanted
    found = [*([x] if needs_input else []), *(states if needs_state else [])]
    found += [weight for weight, needs in zip(call.weights, needs_weights, strict=True) if needs]
    return [tensor.new_empty(tensor.shape) for tensor in found]


def _as_state(arrays: Sequence[Any]) -> Any:
    """One array, a pair, or None for none, as the NumPy interface takes states."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays) or None


def _as_tuple(state: Any) -> tuple[Array, ...]:
    return state if isinstance(state, tuple) else (state,)
