# The compiled extension. Its functions read dicts of arrays. An absent array is None, or its key is missing where it
# is not required. Any other value under an unknown key is an error.
# Sizes: T timesteps, B sequences, I inputs, H units, P features of the hidden state, G gates, N rows, F features.
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict, type_check_only

import numpy as np
from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]

@type_check_only
class RecurrentProblem(TypedDict):
    """One layer and direction."""

    x: _Array  # (T, B, I)
    parameters: Mapping[str, _Array]  # as `parameter_shapes` names them
    states: Mapping[str, _Array]  # (T + 2, B, P or H), or every k-th state: see cpp/cpu/recurrent/history.hpp
    every: int  # k, or 0
    reverse: bool
    lengths: _Array | None  # (B,)
    resets: _Array | None  # (T, B)
    saved: _Array | None  # (T, *saved_shape)
    zoneout: Mapping[str, _Array | float]  # for each state, a mask (T, B, P or H) or a probability
    terms: int | None  # number of terms that a product splits a float32 into: 3, 2 or 1; None: set by `set_terms`
    output: NotRequired[_Array]  # (T, B, P), filled by the forward

@type_check_only
class RecurrentGradients(TypedDict, total=False):
    """Gradients of that layer and direction: the given ones, then those that the backward fills."""

    d_output: _Array | None  # (T, B, P)
    d_cell: _Array | None  # (T, B, H)
    d_final_state: Mapping[str, _Array | None]  # (B, P or H)
    truncate: int | None
    clip: float | None
    dropped: _Array | None  # (G H, P): the mask of weight dropout
    d_output_exponent: _Array  # (T, B); if given, the backward is the scaled one and fills the last three entries below

    d_input: _Array | None  # (T, B, I)
    add_to_input: bool
    d_initial_state: Mapping[str, _Array | None]
    d_states: Mapping[str, _Array | None]  # (T, B, P or H)
    d_gates: _Array | None  # (T, B, G H)
    d_parameters: Mapping[str, _Array] | None
    norms: Mapping[str, _Array] | None  # (T,) for each parameter
    clipped: _Array | None  # (T, B)
    exponent: _Array  # (T, B)
    log10_sequence: _Array  # (T, B)
    log10_unit: _Array  # (T, P)

@type_check_only
class AttentionProblem(TypedDict):
    q: _Array  # (T, B, F), and so k, v and output
    k: _Array
    v: _Array
    output: _Array
    heads: int
    back: int
    ahead: int
    lengths: _Array | None  # (B,)
    saved: _Array  # (B, heads, 2, T)

@type_check_only
class AttentionGradients(TypedDict):
    d_output: _Array
    d_q: _Array
    d_k: _Array
    d_v: _Array

@type_check_only
class LayerNormForward(TypedDict):
    x: _Array  # (N, F)
    branch: _Array | None
    weight: _Array  # (F,)
    bias: _Array
    scale: float
    eps: float
    sum: _Array | None
    normalised: _Array
    statistics: _Array | None  # (N, 4)

@type_check_only
class LayerNormBackward(TypedDict):
    sum: _Array  # (N, F)
    statistics: _Array  # (N, 4)
    weight: _Array  # (F,)
    scale: float
    d_sum: _Array | None
    d_normalised: _Array
    d_x: _Array
    d_branch: _Array | None
    d_weight: _Array
    d_bias: _Array

@type_check_only
class ActivationForward(TypedDict):
    x: _Array  # (N, F)
    bias: _Array  # (F,)
    y: _Array

@type_check_only
class ActivationBackward(TypedDict):
    saved: _Array  # (N, F)
    d: _Array
    d_bias: _Array  # (F,)

@type_check_only
class LinearForward(TypedDict):
    x: _Array  # (N, I)
    weight: _Array  # (O, I)
    bias: _Array | None  # (O,)
    y: _Array  # (N, O)

@type_check_only
class LinearBackward(TypedDict):
    x: _Array  # (N, I)
    weight: _Array  # (O, I)
    d_y: _Array  # (N, O)
    d_x: _Array
    d_weight: _Array
    d_bias: _Array | None

@type_check_only
class EmbeddingForward(TypedDict):
    indices: _Array  # (N,)
    weight: _Array  # (count, F)
    output: _Array  # (N, F)

@type_check_only
class EmbeddingBackward(TypedDict):
    indices: _Array  # (N,)
    d_output: _Array  # (N, F)
    d_weight: _Array  # (count, F)

@type_check_only
class CrossEntropy(TypedDict):
    logits: _Array  # (N, C)
    targets: _Array  # (N,)
    ignore_index: int
    d_logits: _Array

@type_check_only
class SquaredError(TypedDict):
    prediction: _Array  # (N,)
    target: _Array
    d_prediction: _Array

def forward(cell: str, problem: RecurrentProblem, /) -> None: ...
def backward(cell: str, problem: RecurrentProblem, gradients: RecurrentGradients, /) -> None: ...
def attention_forward(problem: AttentionProblem, /) -> None: ...
def attention_backward(problem: AttentionProblem, gradients: AttentionGradients, /) -> None: ...
def parameter_shapes(cell: str, input_size: int, hidden_size: int, width: int, /) -> dict[str, tuple[int, ...]]: ...
def saved_shape(cell: str, float64: bool, hidden_size: int, /) -> tuple[int, int, int]: ...
def sees_whole_rows(cell: str, /) -> bool: ...
def layer_norm_forward(problem: LayerNormForward, /) -> None: ...
def layer_norm_backward(problem: LayerNormBackward, /) -> None: ...
def activation_forward(name: str, problem: ActivationForward, /) -> None: ...
def activation_backward(name: str, problem: ActivationBackward, /) -> None: ...
def activation_of_argument(name: str, /) -> bool: ...
def embedding_forward(problem: EmbeddingForward, /) -> bool: ...
def embedding_backward(problem: EmbeddingBackward, /) -> bool: ...
def cross_entropy(problem: CrossEntropy, /) -> tuple[float, int, int]: ...
def squared_error(problem: SquaredError, /) -> float: ...
def sgd(rows: list[tuple[Any, ...]], lr: float, momentum: float, /) -> bool: ...
def adam(
    rows: list[tuple[Any, ...]], lr: float, beta1: float, beta2: float, eps: float, penalty: float, decay: float, /
) -> bool: ...
def clip(arrays: list[_Array], largest: float, /) -> float | None: ...
def linear_forward(problem: LinearForward, /) -> None: ...
def linear_backward(problem: LinearBackward, /) -> None: ...

compiler: str

version: str

def levels() -> list[tuple[str, bool]]: ...
def level() -> str: ...
def bfloat16_terms() -> dict[str, int]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int, /) -> None: ...
def usable_cores() -> int: ...
def get_terms() -> int: ...
def set_terms(count: int, /) -> None: ...
def assume_level(name: str, /) -> None: ...
def force(
    engine: str = "", split: str = "", chunk: int = 0, rest: int = 0, polls_often: bool = False, interrupt: int = 0
) -> None: ...
def poison(on: bool, /) -> None: ...
def borrow_threads(functions: dict[str, int], /) -> None: ...
def empty(shape: Sequence[int], dtype: np.dtype[Any], /) -> _Array: ...
def empty_cache() -> None: ...
def peak(seconds: float, /) -> float: ...
def jax_handlers() -> dict[str, Any]: ...
