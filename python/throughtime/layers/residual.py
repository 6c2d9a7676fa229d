"""ResidualBlock: a layer with a skip connection and a norm."""

from __future__ import annotations

import sys
from typing import Any

from .._arguments import Array, choice, flag, float_dtype, number
from .._arguments import size as positive_int
from .._scaled import Scaled, add, times
from .add_layer_norm import check_eps
from .batch_norm import BatchNorm
from .container import Container, ContainerTape, leaves
from .embedding import Embedding
from .layer import Composite, Layer
from .layer_norm import LayerNorm
from .rows import LayerGradients, check_features
from .scaled_backward import Way, scaled_backward
from .stream import Pass, PendingSum, StreamGradient, back, broken_array, fault_of, output_fault, placed

__all__ = ["ResidualBlock"]

_NORMS: dict[str, type[LayerNorm] | type[BatchNorm]] = {"layer": LayerNorm, "batch": BatchNorm}


class ResidualBlock(Container["BlockTape"], kind="ResidualBlock"):
    """A layer with a skip connection: ``x + s f(LN(x))``, ``LN(x + s f(x))`` or ``x + s f(x)``.

    Parameters are the norm's, ``norm.weight`` and ``norm.bias``, and the sublayer's, with the prefix ``sublayer.``.

    Parameters
    ----------
    sublayer : Layer
        f: any layer with as many output as input features, including recurrent layers, blocks and Sequentials.
    size : int
        Features of x and y.
    norm : {"pre", "post", None}
        Position of LN.
    residual : bool
        False omits the addition: ``s f(LN(x))``, ``LN(s f(x))`` or ``s f(x)``.
    branch_scale : float
        s.
    eps : float
        ``eps`` of the norm.
    normalisation : {"layer", "batch"}
        Whether the norm is a :class:`LayerNorm` or a :class:`BatchNorm`, whose statistics couple the rows of a batch.
    dtype : optional
        Must be the sublayer's, which is the default.
    seed : optional
        Accepted as for every layer, but unused.

    Raises
    ------
    TypeError
        If `sublayer` is not a layer, or `dtype` is not the sublayer's.
    ValueError
        If the sublayer does not map `size` features to `size`, or an option is unknown or out of range.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> block = tt.ResidualBlock(tt.LSTM(8, 8, seed=0), 8)
    >>> tape = block.forward(np.random.default_rng(0).standard_normal((100, 4, 8), dtype=np.float32))
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> grads.input.shape, grads.sublayer.hidden.shape
    ((100, 4, 8), (1, 100, 4, 8))
    >>> list(grads.parameters)[:3]
    ['norm.weight', 'norm.bias', 'sublayer.weight_ih_l0']
    """

    def __init__(
        self,
        sublayer: Layer,
        size: int,
        *,
        norm: str | None = "pre",
        residual: bool = True,
        branch_scale: float = 1.0,
        eps: float = 1e-5,
        normalisation: str = "layer",
        dtype: Any = None,
        seed: Any = None,
    ) -> None:
        if not isinstance(sublayer, Layer):
            raise TypeError(f"sublayer must be a throughtime layer, got {type(sublayer).__name__}")
        self.sublayer = sublayer
        self.input_size: int = positive_int("size", size)
        self.output_size: int = self.input_size
        takes, gives = sublayer.input_size, sublayer.output_size
        if isinstance(next(leaves([sublayer])), Embedding):
            raise ValueError(f"sublayer takes integers, so a skip connection is impossible: {sublayer!r}")
        if {takes, gives} - {None, self.input_size}:
            raise ValueError(f"sublayer has {takes} inputs and {gives} outputs, expected size={size}: {sublayer!r}")
        self.norm_place: str | None = None if norm is None else choice("norm", norm, ("pre", "post"))
        self.residual: bool = flag("residual", residual)
        finite = sys.float_info.max
        self.branch_scale: float = number("branch_scale", branch_scale, -finite, finite)
        self.eps: float = check_eps(eps)
        own = sublayer.dtype if dtype is None else float_dtype(dtype)
        if own != sublayer.dtype and not sublayer._any_dtype:
            raise TypeError(f"dtype is {own}, but the sublayer has {sublayer.dtype}: {sublayer!r}")
        self.normalisation: str = choice("normalisation", normalisation, tuple(_NORMS))
        kind = _NORMS[self.normalisation]
        self.norm: LayerNorm | BatchNorm | None = (
            None if norm is None else kind(self.input_size, self.eps, dtype=own, seed=seed)
        )
        config = {"sublayer": sublayer, "size": self.input_size, "norm": norm, "residual": self.residual}
        config |= {"branch_scale": self.branch_scale, "eps": self.eps, "normalisation": self.normalisation}
        if sublayer._any_dtype:
            config["dtype"] = str(own)
        inner: dict[str, Layer] = {} if self.norm is None else {"norm": self.norm}
        self._compose(config, {**inner, "sublayer": sublayer}, own)

    def _advance(self, stream: PendingSum, run: Pass) -> tuple[PendingSum, BlockTape | None]:
        check_features(self, stream.x)
        saved, tape = None, None
        if self.norm_place == "pre":
            assert self.norm is not None
            h, saved = self.norm._normalise_stream(stream, run, keep_sum=self.residual)
        else:
            h = stream.materialise()
        with placed("sublayer", self.sublayer):
            within = run.within("sublayer", run.state)
            inner, tape = within.through(self.sublayer, PendingSum(h))
            run.final_state = within.final_state
        branch = inner.materialise()
        if branch.shape != h.shape:
            raise ValueError(f"sublayer returned shape {branch.shape}, expected {h.shape} as x: {self.sublayer!r}")
        scale = self.branch_scale
        if self.residual:
            out = PendingSum(stream.materialise(), branch, scale)
        else:
            out = PendingSum(branch if scale == 1 else branch * branch.dtype.type(scale))
        if self.norm_place == "post":
            assert self.norm is not None
            y, saved = self.norm._normalise_stream(out, run, keep_sum=False)
            out = PendingSum(y)
        return out, BlockTape(self, out, saved, tape, run.final_state) if run.save else None


class BlockTape(ContainerTape["BlockGradients"]):
    """One forward pass of `ResidualBlock`: ``output``, and ``sublayer``, the tape of the inner layer."""

    def __init__(
        self,
        block: ResidualBlock,
        stream: PendingSum,
        saved: Any,
        sublayer: Any,
        final_state: Any,
    ) -> None:
        super().__init__(stream, {"sublayer": sublayer}, final_state)
        self._block, self._saved = block, saved
        self.sublayer = sublayer

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds, without x."""
        return super().nbytes + (self._saved.nbytes if self._saved else 0)

    def _batch_first(self) -> bool:
        return self._block._batch_first()

    def _inner_fault(self) -> str | None:
        norm = self._block.norm
        if norm is not None and self._block.norm_place == "pre" and (broken := broken_array(norm)) is not None:
            return f"norm ({norm!r}): {broken} is not finite"
        inner = fault_of("sublayer", self._block.sublayer, self.sublayer, self._batch_first())
        return inner or output_fault(self._block, self, self._batch_first())

    def _retreat(self, flow: StreamGradient, options: dict[str, Any]) -> tuple[BlockGradients, StreamGradient]:
        block = self._block
        norm: dict[str, Array] = {}
        if block.norm_place == "post":
            assert block.norm is not None
            flow, norm = block.norm._stream_backward(None, flow.total, self._saved)
        d_branch = flow.branch if block.residual else None
        if d_branch is None:
            scale = block.branch_scale
            d_branch = flow.total if scale == 1 else flow.total * flow.total.dtype.type(scale)
        with placed("sublayer", block.sublayer):
            sublayer, inner = back(
                self.sublayer, block.sublayer, StreamGradient(d_branch), options, options.get("d_final_state")
            )
        d_skip = flow.total if block.residual else None
        if block.norm_place == "pre":
            assert block.norm is not None
            below, norm = block.norm._stream_backward(d_skip, inner.total, self._saved)
        elif d_skip is not None:
            below = StreamGradient(d_skip + inner.total)
        else:
            below = inner
        parameters = Composite._named({"norm": norm, "sublayer": sublayer.parameters})
        return BlockGradients(below.total, parameters, sublayer), below

    def _scaled_backward(self, layer: object, d: Scaled, way: Way) -> tuple[Any, Scaled]:
        block = self._block
        if block.norm_place == "post":
            assert block.norm is not None
            d = block.norm._scaled_stream_backward(d, self._saved)
        found, below = scaled_backward(block.sublayer, self.sublayer, times(d, block.branch_scale), way)
        if block.norm_place == "pre":
            assert block.norm is not None
            below = block.norm._scaled_stream_backward(below, self._saved)
        return found, add(d, below) if block.residual else below


class BlockGradients(LayerGradients):
    """Gradients of a block: ``input``, ``parameters``, ``initial_state``, and ``sublayer``, those of the sublayer."""

    def __init__(self, d_input: Array, parameters: dict[str, Array], sublayer: Any) -> None:
        super().__init__(d_input, parameters)
        self.sublayer = sublayer
        self.initial_state: Any = getattr(sublayer, "initial_state", None)
