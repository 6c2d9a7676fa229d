"""Multi-head self-attention over time, causal or not, within a window or over the whole sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, init
from .._arguments import UNBOUNDED, Array, as_array, check_dtype, flag, float_array, sequence_lengths
from .._arguments import size as positive_int
from .._memory import with_room, writable
from .layer import Layer
from .rows import LayerGradients, affine, affine_backward

if TYPE_CHECKING:
    from .._core import AttentionGradients, AttentionProblem

__all__ = ["SelfAttention"]


class SelfAttention(Layer, kind="SelfAttention"):
    """``y_t = W_o concat_h(sum_s softmax_s(q_t k_s / sqrt(F/heads)) v_s) + b_o``, with ``(q, k, v) = W_in x + b_in``.

    Time grows with T times the window, memory with T: scores are computed in blocks, recomputed in the backward, and
    never stored. Parameters, their names and initial values are those of ``torch.nn.MultiheadAttention``:
    ``in_proj_weight (3F, F)``, ``in_proj_bias (3F,)``, ``out_proj.weight (F, F)``, ``out_proj.bias (F,)``.

    Parameters
    ----------
    size : int
        F, the features of input and output.
    num_heads : int
        Number of heads, each with ``size / num_heads`` features.
    causal : bool
        Whether later steps are hidden from step t.
    window : int, optional
        w: step t sees itself and the w - 1 steps before it; if not causal, also the w - 1 steps after it (all s with
        ``|t - s| < w``). None: all steps.
    dtype : {"float32", "float64"}
        Type of parameters, inputs and results.
    seed : optional
        Seed of the initial weights: anything that ``numpy.random.default_rng`` accepts.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the dtype is not one of these.
    ValueError
        If a number is below 1, or `num_heads` does not divide `size`.

    References
    ----------
    Vaswani et al. 2017, "Attention is all you need". Dao 2023, "FlashAttention-2", for the computation in blocks.

    Examples
    --------
    >>> import numpy as np
    >>> import throughtime as tt
    >>> attention = tt.SelfAttention(8, 2, window=16, seed=0)
    >>> tape = attention.forward(np.ones((100, 3, 8), np.float32), lengths=[100, 40, 0])
    >>> tape.output.shape, tape.output[40:, 1].any()
    ((100, 3, 8), np.False_)
    >>> grads = tape.backward(np.ones_like(tape.output))
    >>> grads.input.shape, grads.parameters["out_proj.bias"][0].item()
    ((100, 3, 8), 140.0)
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        *,
        causal: bool = True,
        window: int | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        self.size: int = positive_int("size", size)
        self.input_size: int = self.size
        self.output_size: int = self.size
        self.batch_first = False  # read by Sequential
        self.num_heads: int = positive_int("num_heads", num_heads)
        if self.size % self.num_heads:
            raise ValueError(f"num_heads must divide size = {self.size}, got {num_heads}")
        self.causal: bool = flag("causal", causal)
        self.window: int | None = None if window is None else positive_int("window", window, most=UNBOUNDED)
        config = {"size": self.size, "num_heads": self.num_heads, "causal": self.causal, "window": self.window}
        shapes: dict[str, tuple[int, ...]] = {
            "in_proj_weight": (3 * self.size, self.size),
            "in_proj_bias": (3 * self.size,),
            "out_proj.weight": (self.size, self.size),
            "out_proj.bias": (self.size,),
        }
        rng = self._set_up(config, shapes, dtype, seed)
        weight_in, weight_out = self.parameters["in_proj_weight"], self.parameters["out_proj.weight"]
        weight_in[...] = init.xavier_uniform(weight_in.shape, rng, dtype=self.dtype)
        weight_out[...] = init.kaiming_uniform(weight_out.shape, rng, a=5**0.5, dtype=self.dtype)

    @with_room
    def __call__(self, x: Any, lengths: Any = None) -> Array:
        """Return the output (T, B, F) for `x` (T, B, F) and `lengths` (B,), as `forward` does; nothing is saved."""
        return self._run(x, lengths, self.parameters).output

    @with_room
    def forward(self, x: Any, lengths: Any = None) -> SelfAttentionTape:
        """Compute the output and save the values that `SelfAttentionTape.backward` needs.

        Parameters
        ----------
        x : (T, B, F) array
            Input, in the layer's dtype; ``(T, F)`` unbatched. The tape keeps a reference: do not change it before the
            backward.
        lengths : (B,) integers, optional
            Each sequence's own length, in any order, 0 allowed. Steps beyond it are hidden; the output and all
            gradients are zero there, and `x` and ``d_output`` are ignored there, whatever they hold.

        Returns
        -------
        SelfAttentionTape
            With ``output`` (T, B, F).

        Raises
        ------
        TypeError
            If `x` is not an array of the layer's dtype, or `lengths` are not integers.
        ValueError
            If a shape does not fit, T is 0, or a length is not in 0 to T.

        Notes
        -----
        A hidden step cannot change a result, unless it is within the length and holds NaN or an infinity: these may
        reach up to five neighbours of the steps that see them, because a few queries share a product, in which zero
        times NaN is NaN.
        """
        return self._run(x, lengths, {name: array.copy() for name, array in self.parameters.items()})

    def _run(self, x: Any, lengths: Any, parameters: dict[str, Array]) -> SelfAttentionTape:
        x, batched = self._check_x(x)
        self._check_parameters()
        lengths = sequence_lengths(lengths, x.shape[0], x.shape[1], batched)
        return SelfAttentionTape(self, x, lengths, parameters, batched)

    def _check_x(self, x: Any) -> tuple[Array, bool]:
        """`x` as (T, B, F), and whether it had a batch axis."""
        x = as_array("x", x)
        check_dtype("x", x, self.dtype)
        if x.ndim not in (2, 3):
            raise ValueError(f"x has shape {x.shape}, expected (T, B, {self.size}), or (T, {self.size}) unbatched")
        if x.shape[-1] != self.size:
            raise ValueError(
                f"x has {x.shape[-1]} features in its last axis, but this SelfAttention was built with "
                f"size={self.size} (x.shape == {x.shape})"
            )
        if x.shape[0] == 0:
            raise ValueError(f"x has no timesteps (x.shape == {x.shape}), expected T >= 1")
        return (x, True) if x.ndim == 3 else (x[:, None], False)


class SelfAttentionTape:
    """One forward pass of `SelfAttention`: input, queries, keys, values, outputs of the heads, and the weights."""

    output: Array
    """(T, B, F); (T, F) unbatched."""

    def __init__(
        self, layer: SelfAttention, x: Array, lengths: Array | None, parameters: dict[str, Array], batched: bool
    ) -> None:
        steps, batch, size = x.shape
        self._parameters = parameters
        self._padding = None if lengths is None else np.arange(steps)[:, None] >= lengths
        self._rows = self._without_padding(x).reshape(-1, size)
        qkv = affine(self._rows, parameters["in_proj_weight"], parameters["in_proj_bias"])
        reach = steps if layer.window is None else min(layer.window - 1, steps)
        self._attended: Array = _core.empty(x.shape, x.dtype)
        q, k, v = np.split(qkv.reshape(steps, batch, 3 * size), 3, axis=2)
        self._problem: AttentionProblem = {
            "q": q,
            "k": k,
            "v": v,
            "heads": layer.num_heads,
            "back": reach,
            "ahead": 0 if layer.causal else reach,
            "lengths": lengths,
            "output": self._attended,
            "saved": _core.empty((batch, layer.num_heads, 2, steps), x.dtype),
        }
        _core.attention_forward(self._problem)
        output = affine(self._attended.reshape(-1, size), parameters["out_proj.weight"], parameters["out_proj.bias"])
        output = output.reshape(x.shape)
        if self._padding is not None:
            output[self._padding] = 0
        self.output = output if batched else output[:, 0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(writable(state))

    @property
    def nbytes(self) -> int:
        """Bytes that the tape holds."""
        kept = [self.output, self._rows, self._attended, *self._parameters.values()]
        kept += [self._problem["q"], self._problem["k"], self._problem["v"], self._problem["saved"]]
        return sum(array.nbytes for array in kept)

    @with_room
    def backward(self, d_output: Any) -> LayerGradients:
        """Backpropagate. May be called repeatedly.

        Parameters
        ----------
        d_output : (T, B, F) array
            dL/doutput, of the shape and dtype of ``output``; ignored beyond a sequence's length.

        Returns
        -------
        LayerGradients
            ``input`` (T, B, F) and ``parameters``, named as the layer's.

        Raises
        ------
        TypeError, ValueError
            If the dtype or shape of `d_output` does not fit.
        """
        d_output = float_array("d_output", d_output, self.output.dtype, self.output.shape)
        shape, size = self._attended.shape, self._attended.shape[2]
        weight_in, weight_out = self._parameters["in_proj_weight"], self._parameters["out_proj.weight"]
        d_rows = self._without_padding(d_output.reshape(shape)).reshape(-1, size)
        d_attended, d_out = affine_backward(d_rows, self._attended.reshape(-1, size), weight_out, True)
        d_qkv = _core.empty((*shape[:2], 3 * size), d_output.dtype)
        d_q, d_k, d_v = np.split(d_qkv, 3, axis=2)
        gradients: AttentionGradients = {"d_output": d_attended.reshape(shape), "d_q": d_q, "d_k": d_k, "d_v": d_v}
        _core.attention_backward(self._problem, gradients)
        d_input, d_in = affine_backward(d_qkv.reshape(-1, 3 * size), self._rows, weight_in, True)
        parameters = {
            "in_proj_weight": d_in["weight"],
            "in_proj_bias": d_in["bias"],
            "out_proj.weight": d_out["weight"],
            "out_proj.bias": d_out["bias"],
        }
        return LayerGradients(d_input.reshape(self.output.shape), parameters)

    def _without_padding(self, x: Array) -> Array:
        """`x` (T, B, F) with zeros beyond each length."""
        return x if self._padding is None else np.where(self._padding[:, :, None], x.dtype.type(0), x)
