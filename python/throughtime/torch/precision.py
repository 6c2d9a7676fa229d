"""torch.autocast as the precision of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _has_operator(supported: str) -> bool:
    """Whether torch's oneDNN supports a type on this processor."""
    try:
        return bool(getattr(torch.ops.mkldnn, supported)())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False


_names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
_OPERATORS = {dtype for dtype, supported in _names.items() if _has_operator(supported)}  # torch has an LSTM operator


def is_medium(device: str) -> bool:
    """Whether autocast asks for products in bfloat16 on devices of this type."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16


def autocast_types(
    kind: str, weight: Tensor, x: Tensor, state: Sequence[Tensor], *, packed: bool, projected: bool
) -> list[torch.dtype]:
    """The types of output, h_n and c_n that torch's own modules return under autocast on the CPU.

    There, products have autocast's type, and adding them to the state promotes both types. An LSTM is one operator,
    with autocast's type throughout, if its input is float32 or the processor computes in autocast's type. A packed or
    projected LSTM goes step by step instead.
    """
    if weight.dtype is torch.float64:  # autocast does not convert it
        return [torch.float64] * 3
    low = torch.get_autocast_dtype("cpu")
    one_operator = kind == "LSTM" and (x.dtype is torch.float32 or low in _OPERATORS) and not (packed or projected)
    adds = kind != "RNN" and not one_operator
    carried = torch.promote_types(low, (state[-1] if state else x).dtype) if adds else low
    return [*([low if projected else carried] * 2), carried]
