"""Forward and backward of a recurrent layer on tensors, shared by operators and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._arguments import Array
from ..recurrent.arguments import Inputs, time_major
from ..recurrent.backward import Asked, Gradients, Loss
from ..recurrent.forward import run_forward
from ..recurrent.observers import observed_backward
from ..recurrent.record import Record, kept_shapes
from .places import tensor_of
from .plan import Plan


class Call(NamedTuple):
    """One call of a layer, apart from its input and states.

    `weights` are in the order of ``plan.names``, `masks` in that of ``plan.mask_names``; `lengths` (B,) int64 or None.
    """

    plan: Plan
    medium: bool
    weights: Sequence[Tensor]
    lengths: Tensor | None
    masks: Sequence[Tensor]

    def inputs(self, x: Tensor, state: Any = None) -> Inputs:
        """The inputs of a forward; `state` as the NumPy interface takes it."""
        checks, array_of = self.plan.checks, self.plan.place.array_of
        array, batched = checks.x(array_of(x), "input")
        initial = checks.state("hx", state, array.shape[1], batched)
        return Inputs(array, batched, initial, None if self.lengths is None else array_of(self.lengths))

    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as the kernels take them."""
        contiguous = self.plan.place.contiguous_array_of
        return {name: contiguous(weight) for name, weight in zip(self.plan.names, self.weights, strict=True)}

    def named_masks(self) -> dict[str, Any]:
        """The masks by name."""
        names, array_of = self.plan.mask_names(len(self.masks)), self.plan.place.array_of
        return {name: array_of(mask) for name, mask in zip(names, self.masks, strict=True)}

    @property
    def terms(self) -> int | None:
        """The precision of its products: see `Record`."""
        return 1 if self.medium else None


def forward(call: Call, x: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """Output, final states, and the other arrays that the backward needs; `state` is empty for zeros."""
    plan = call.plan
    with plan.place.working(x):
        record = run_forward(
            plan.architecture,
            plan.checks.backend,
            call.inputs(x, _as_state([*map(plan.place.array_of, state)])),
            parameters=call.parameters(),
            masks=call.named_masks(),
            memory=plan.memory,
            terms=call.terms,
        )
        kept = [] if plan.memory is None else record.kept()
        results = [record.output, *_as_tuple(record.as_state(record.final_state))]
        return [*(tensor_of(array, x.dtype) for array in results), *map(tensor_of, kept)]


def empty_forward(call: Call, x: Tensor) -> list[Tensor]:
    """Empty tensors with the shapes and dtypes of the results of `forward`."""
    described, memory = call.plan.architecture, call.plan.memory
    *middle, steps = x.shape[:-1] if described.batch_first else x.shape[-2::-1]  # middle: the batch, if there is one
    batch = middle[0] if middle else 1
    shapes = [(*x.shape[:-1], described.output_size)]
    shapes += [(described.count, *middle, width) for width in described.widths]
    results = [x.new_empty(shape) for shape in shapes]
    if memory is None:
        return results
    _, backend, own_dtype = call.plan.checks
    names = call.plan.mask_names(len(call.masks))
    kept = kept_shapes(described, backend, own_dtype, (steps, batch), names, memory)
    dtype = call.plan.place.computes_in(x.dtype)
    return [*results, *(x.new_empty(shape, dtype=dtype) for shape in kept)]


def backward(
    call: Call,
    x: Tensor,
    kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None],
    wanted: Sequence[bool],
    key: int,
) -> list[Tensor]:
    """The wanted gradients: of the input, of the initial states (all or none), of each weight.

    `d_results` are those of output and final states, None for zeros. Observers of the module with this key see them.
    """
    needs_input, needs_state, *needs_weights = wanted
    named = [name for name, needs in zip(call.plan.names, needs_weights, strict=True) if needs]
    asked = Asked(
        input=needs_input,
        initial_state=needs_state,
        parameters=frozenset(named),
    )
    with call.plan.place.working(x):
        grads = _gradients(call, x, kept, d_results, asked, key)
        found = [grads.input] if needs_input else []
        found += _as_tuple(grads.initial_state) if needs_state else ()
        return [tensor_of(array, x.dtype) for array in (*found, *(grads.parameters[name] for name in named))]


def _gradients(
    call: Call, x: Tensor, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], asked: Asked, key: int
) -> Gradients:
    plan, array_of = call.plan, call.plan.place.array_of
    inputs, backend = call.inputs(x), plan.checks.backend
    parameters, masks = call.parameters(), call.named_masks()
    record = Record.of(plan.architecture, backend, inputs, parameters, masks, plan.memory, call.terms)
    record.restore(inputs.x, map(array_of, kept))
    d_output, *d_states = (None if tensor is None else array_of(tensor) for tensor in d_results)
    d_final = plan.checks.state("d_final_state", _as_state(d_states), record.sizes[1], record.batched, partial=True)
    if d_output is not None:
        major = time_major(d_output, record.batched, plan.architecture.batch_first)
        d_output = backend.features_together(major)
    return observed_backward(key, record, Loss(d_output, d_final), asked)


def empty_backward(call: Call, x: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """Empty tensors with the shapes and dtypes of the results of `backward`."""
    _, *states = empty_forward(call, x)[: 1 + len(call.plan.architecture.states)]
    needs_input, needs_state, *needs_weights = wanted
    found = [*([x] if needs_input else []), *(states if needs_state else [])]
    found += [weight for weight, needs in zip(call.weights, needs_weights, strict=True) if needs]
    return [tensor.new_empty(tensor.shape) for tensor in found]


def _as_state(arrays: Sequence[Any]) -> Any:
    """One array, a pair, or None for no arrays, as the NumPy interface takes states."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays) or None


def _as_tuple(state: Any) -> tuple[Array, ...]:
    return state if isinstance(state, tuple) else (state,)
