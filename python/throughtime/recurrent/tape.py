"""The tape of one forward pass through a recurrent layer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from .._arguments import UNBOUNDED, Array, ArrayLike, check_timesteps, flag, number, size
from .._finite import raise_fault
from .._memory import with_room
from .._scaled import Scaled
from ..backend.choose import require_host
from ..layers.scaled_backward import Way
from .arguments import Checks, time_major
from .backward import Asked, Gradients, Loss
from .faults import forward_fault, incoming_fault
from .gates import gate_values
from .observers import observed_backward
from .record import Record, State
from .scaled_backward import ScaledPass


class Tape:
    """One forward pass. Made by ``layer.forward``; ``backward`` may be called more than once."""

    record: Record
    key: int

    def __init__(self, record: Record, key: int) -> None:
        """Take what the forward kept, and the layer's id, by which observers of its backward passes are registered."""
        self.record, self.key = record, key

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy. The copy belongs to no layer: another one may have its id, so nothing observes it."""
        return {"record": self.record, "key": 0}

    @property
    def output(self) -> Array:
        """(T, B, D*H), in the layout of x; ``(B, D*H)`` with ``output="last"``."""
        assert self.record.output is not None
        return self.record.output

    @cached_property
    def final_state(self) -> State:
        """(L*D, B, H); for the LSTM, a pair of them."""
        return self.record.as_state(self.record.final_state)

    @cached_property
    def masks(self) -> dict[str, Array]:
        """The masks of dropout, zoneout and weight dropout that were used, by name."""
        unbatch = self.record.unbatch
        return {name: unbatch(mask, 1) if mask.ndim == 3 else mask for name, mask in self.record.masks.items()}

    @property
    def hidden(self) -> Array:
        """Every hidden state h_t, (L*D, T, B, H); index t is the input's timestep. A view: do not write into it."""
        return self._every_state("hidden")

    @property
    def cell(self) -> Array:
        """Every cell state c_t, (L*D, T, B, H); only the LSTM has it."""
        return self._every_state("cell")

    def _every_state(self, name: str) -> Array:
        record = self.record
        if name not in record.architecture.states:
            raise AttributeError(f"{record.architecture.name} has no {name} state")
        if record.every:
            raise AttributeError(
                f"tape.{name} was not kept: this tape was {self._made}; "
                "memory='full' and memory='states' keep every state"
            )
        return record.unbatch(record.states[record.architecture.states.index(name)][:, 1:-1], 2)

    @property
    def gates(self) -> Array:
        """Every gate after its activation, (L*D, T, B, G*H), in the order of the weights; zero beyond a length.

        i f g o for the LSTM, r z n for the GRU; for the RNN the only activation, h_t before any zoneout. Index t is the
        input's timestep. Each access makes a new copy, which needs ``memory="full"``. ``grads.gates`` has the gradients
        of the same pre-activations.
        """
        require_host("tape.gates", self.record.backend.device)
        if self.record.memory != "full":
            raise AttributeError(f"tape.gates was not kept: this tape was {self._made}; memory='full' keeps the gates")
        return self.record.unbatch(gate_values(self.record), 2)

    @property
    def _made(self) -> str:
        memory = self.record.memory
        return "made for inference" if memory is None else f"made with memory={memory!r}"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this tape holds, without x and the output."""
        kept = self.record
        arrays = [*kept.states, *kept.saved, *kept.inputs[1:], *kept.masks.values(), *kept.parameters.values()]
        owner_of = kept.backend.owner
        owners = {id(owner): owner.nbytes for array in arrays if array is not None for owner in [owner_of(array)]}
        return sum(owners.values())

    def _fault(self) -> str | None:
        """Where the forward stopped being finite; None if it did not."""
        return forward_fault(self.record)

    def _scaled_backward(self, layer: object, d: Scaled, way: Way) -> tuple[ScaledPass, Scaled]:
        """See layers/scaled_backward.py."""
        pass_ = ScaledPass(repr(layer), self.record)
        return pass_, pass_.run(pass_.halves(d), asks_input=True)

    @with_room
    def backward(
        self,
        d_output: ArrayLike | None = None,
        d_final_state: Any = None,
        *,
        d_cell: ArrayLike | None = None,
        timesteps: Iterable[str] = ("hidden", "cell"),
        truncate: int | None = None,
        clip: float | None = None,
        check_finite: bool = False,
    ) -> Gradients:
        """Backpropagate through every timestep. At least one of the gradients must be given.

        Parameters
        ----------
        d_output : array, optional
            Gradient of the loss with respect to ``output``, in its shape.
        d_final_state : (L*D, B, H) array, or a pair of them for the LSTM, optional
            Gradient with respect to ``final_state``; one of a pair may be None.
        d_cell : (L*D, T, B, H) array, optional
            Gradient with respect to every c_t.
        timesteps : iterable of str
            The attributes to return of those that :class:`Gradients` has only if asked for, such as ``"gates"``.
            ``"cell"`` is ignored by cells without c.
        truncate : int, optional
            Truncated BPTT: the gradient is cut every `truncate` steps, counted from each direction's first step.
        clip : float, optional
            Largest norm, per sequence, of the gradient that a step receives from the step after it.
        check_finite : bool
            Raise FloatingPointError for the first NaN or infinity, naming tensor, timestep, layer and sequence. The
            forward is checked first, from the lowest layer up, in the order of each direction: x, the initial state,
            parameters, overflow. Then the backward, from the highest layer down, in its order: incoming gradients,
            overflow.

        Returns
        -------
        Gradients

        Raises
        ------
        ValueError
            If no gradient is given, or a size does not fit.
        TypeError
            If the dtype of an array differs from the layer's.
        FloatingPointError
            If ``check_finite`` finds a NaN or infinity.

        Examples
        --------
        >>> import numpy as np, throughtime as tt
        >>> x = np.random.default_rng(0).standard_normal((1000, 4, 8), dtype=np.float32)
        >>> tape = tt.LSTM(8, 16, seed=0).forward(x)
        >>> grads = tape.backward(np.ones_like(tape.output))
        >>> grads.input.shape, grads.hidden.shape, grads.parameters["weight_hh_l0"].shape
        ((1000, 4, 8), (1, 1000, 4, 16), (64, 16))
        """
        record = self.record
        if not record.inputs:
            raise RuntimeError("this tape was made for inference and stores nothing for a backward")
        asked = Asked(
            timesteps=check_timesteps(timesteps),
            truncate=None if truncate is None else min(size("truncate", truncate, most=UNBOUNDED), record.sizes[0]),
            clip=None if clip is None else number("clip", clip, 0, float("inf"), open_low=True),
            check_finite=flag("check_finite", check_finite),
        )
        loss = self._loss(d_output, d_final_state, d_cell, check_finite=asked.check_finite)
        return observed_backward(self.key, record, loss, asked)

    def _loss(self, d_output: Any, d_final_state: Any, d_cell: Any, *, check_finite: bool) -> Loss:
        """Check the incoming gradients. That of ``output="last"`` is added to the final state's."""
        record = self.record
        checks = Checks(record.architecture, record.backend, record.dtype)
        d_final = checks.state("d_final_state", d_final_state, record.sizes[1], record.batched, partial=True)
        if d_output is None and d_cell is None and all(part is None for part in d_final):
            raise ValueError("backward needs at least one of d_output, d_final_state and d_cell, got None for each")
        d_cell = None if d_cell is None else self._check_d_cell(d_cell)
        if d_output is not None:
            given = record.backend.float_array("d_output", d_output, record.dtype, self.output.shape)
            d_output = self._rows_of_last(given) if self._is_last else self._time_major(given)
        if check_finite:
            raise_fault(forward_fault(record) or incoming_fault(record, d_output, d_final, d_cell))
        if not self._is_last or d_output is None:
            return Loss(d_output, d_final, d_cell)
        return Loss(None, [self._with_last(d_output, d_final[0]), *d_final[1:]], d_cell)

    @property
    def _is_last(self) -> bool:
        """Whether the output is that of each direction's last step only."""
        return self.output.ndim < (3 if self.record.batched else 2)

    def _time_major(self, given: Array) -> Array:
        record = self.record
        major = time_major(given, record.batched, record.architecture.batch_first)
        return record.backend.features_together(major)

    def _rows_of_last(self, given: Array) -> Array:
        """The gradient of the last outputs as (B, D*H)."""
        return given.reshape(self.record.sizes[1], self.record.architecture.output_size)

    def _with_last(self, rows: Array, d_hidden: Array | None) -> Array:
        """The gradient of the final h, (L*D, B, H), plus that of each direction's last output, `rows`."""
        record, described = self.record, self.record.architecture
        shape = (described.count, record.sizes[1], described.width)
        total = record.backend.zeros(shape, record.dtype) if d_hidden is None else d_hidden.copy()
        of_top = total[-described.num_directions :]
        of_top += rows.reshape(-1, described.num_directions, described.width).swapaxes(0, 1)
        return total

    def _check_d_cell(self, d_cell: Any) -> Array:
        record, described = self.record, self.record.architecture
        if "cell" not in described.states:
            raise ValueError(f"d_cell was given, but {described.name} has no cell state")
        shape = (described.count, *record.sizes, described.hidden_size)
        own_shape = shape if record.batched else (shape[0], shape[1], shape[3])
        given = record.backend.float_array("d_cell", d_cell, record.dtype, own_shape)
        return record.backend.contiguous(given).reshape(shape)
