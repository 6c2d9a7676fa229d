"""AddLayerNorm and ResidualBlock: the residual addition and the LayerNorm after it fused into one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import LayerNorm, Module, Parameter

from .._arguments import choice, flag, number
from .._arguments import size as positive_int
from ..layers.add_layer_norm import check_eps
from .add_layer_norm import add_layer_norm
from .base import Base, as_node, check_is_tensor, kind_of, plain

_LARGEST = torch.finfo(torch.float64).max


class AddLayerNorm(Base):
    """Add a scaled branch and normalise the sum over its last axis: ``sum = x + scale branch``, ``LN(sum)``.

    ``weight`` and ``bias`` are those of a ``torch.nn.LayerNorm``, whose state dict can be loaded.

    Parameters
    ----------
    size : int
        F.
    eps : float
        Added to the variance.
    scale : float
        Factor of the branch.
    device, dtype : optional
        As for ``torch.nn.LayerNorm``; float32, bfloat16 and float16, and float64 on the CPU.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type, `size` is below 1, `eps` is not above 0, or `scale` is not finite.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> norm = throughtime.torch.AddLayerNorm(64)
    >>> total, normalised = norm(torch.randn(100, 4, 64), torch.randn(100, 4, 64))
    """

    _plain = frozenset(["size", "eps", "scale"])

    def __init__(
        self, size: int, eps: float = 1e-5, scale: float = 1.0, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        size, eps, scale = plain((size, eps, scale))
        self.size: int = positive_int("size", size)
        self.eps: float = check_eps(eps)
        self.scale: float = number("scale", scale, -_LARGEST, _LARGEST)
        self.weight: Parameter = Parameter(torch.empty(self.size, device=device, dtype=dtype))
        self.bias: Parameter = Parameter(torch.empty(self.size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to 1 and the bias to 0."""
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and its normalisation, each (..., F) as `x` and `branch`."""
        if isinstance(x, Proxy) or isinstance(branch, Proxy):
            nodes: tuple[Tensor, Tensor] = as_node(self, x, branch)
            return nodes
        return add_layer_norm(x, branch, self.weight, self.bias, scale=self.scale, eps=self.eps)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.size}, eps={self.eps}" + (f", scale={self.scale}" if self.scale != 1 else "")


class ResidualBlock(Base):
    """A module with a skip connection: ``x + s f(LN(x))``, ``LN(x + s f(x))`` or ``x + s f(x)``.

    Parameters are the norm's, ``norm.weight`` and ``norm.bias``, and the sublayer's, with the prefix ``sublayer.``, as
    in :class:`throughtime.ResidualBlock`.

    Parameters
    ----------
    sublayer : torch.nn.Module
        f, with as many output as input features. If it returns a tuple, as recurrent modules do, the first is used.
    size : int
        Features of x and y.
    norm : {"pre", "post", None}
        Position of LN. After the addition, both are fused into one pass, as in :class:`AddLayerNorm`.
    residual : bool
        False omits the addition: ``s f(LN(x))``, ``LN(s f(x))`` or ``s f(x)``.
    branch_scale : float
        s.
    eps : float
        eps of the LayerNorm.
    device, dtype : optional
        Device and dtype of the LayerNorm.

    Raises
    ------
    TypeError
        If `sublayer` is not a module, or an argument has the wrong type.
    ValueError
        If an option is unknown or out of range.

    Examples
    --------
    >>> import torch, throughtime.torch
    >>> block = throughtime.torch.ResidualBlock(throughtime.torch.LSTM(64, 64), 64)
    >>> block(torch.randn(100, 4, 64)).shape
    torch.Size([100, 4, 64])
    """

    _plain = frozenset(["size", "norm_place", "residual", "branch_scale", "eps"])

    def __init__(
        self,
        sublayer: Module,
        size: int,
        *,
        norm: str | None = "pre",
        residual: bool = True,
        branch_scale: float = 1.0,
        eps: float = 1e-5,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sublayer, Module):
            raise TypeError(f"sublayer must be a torch.nn.Module, got {kind_of(sublayer)}")
        size, norm, residual, branch_scale, eps = plain((size, norm, residual, branch_scale, eps))
        self.size: int = positive_int("size", size)
        self.norm_place: str | None = None if norm is None else choice("norm", norm, ("pre", "post"))
        self.residual: bool = flag("residual", residual)
        self.branch_scale: float = number("branch_scale", branch_scale, -_LARGEST, _LARGEST)
        self.eps: float = check_eps(eps)
        self.norm: LayerNorm | None = (
            None if norm is None else LayerNorm(self.size, self.eps, device=device, dtype=dtype)
        )
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., F), as x."""
        if isinstance(x, Proxy):
            node: Tensor = as_node(self, x)
            return node
        check_is_tensor("x", x)
        inside = self.norm(x) if self.norm is not None and self.norm_place == "pre" else x
        branch = self.sublayer(inside)
        branch = branch[0] if isinstance(branch, tuple) else branch
        check_is_tensor("the output of sublayer", branch, "a tensor, or a tuple that begins with one")
        if branch.shape != x.shape:
            raise ValueError(f"sublayer gave shape {tuple(branch.shape)}, expected {tuple(x.shape)}, that of x")
        if self.norm is not None and self.norm_place == "post" and self.residual:
            weight, bias = self.norm.weight, self.norm.bias
            return add_layer_norm(x, branch, weight, bias, scale=self.branch_scale, eps=self.eps)[1]
        branch = branch if self.branch_scale == 1 else branch * self.branch_scale
        y: Tensor = x + branch if self.residual else branch
        return self.norm(y) if self.norm is not None and self.norm_place == "post" else y

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.size}, norm={self.norm_place!r}, residual={self.residual}, branch_scale={self.branch_scale}"
