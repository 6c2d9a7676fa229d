# The compiled extension. Its functions read dicts of arrays. An absent array is None, or its key is missing where it
# is not required. Any other value under an unknown key is an error.
# Sizes: T timesteps, B sequences, I inputs, H units, P features of the hidden state, G gates, N rows, F features.
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

class RecurrentProblem(TypedDict):
    """One layer and direction."""

    x: Array  # (T, B, I)
    parameters: Mapping[str, Array]  # as `parameter_shapes` names them
    states: Mapping[
        str, Array
    ]  # (T + 2, B, P or H), or the state of every k-th step: see cpp/cpu/recurrent/history.hpp
    every: int  # k, or 0
    reverse: bool
    lengths: Array | None  # (B,)
    resets: Array | None  # (T, B)
    saved: Array | None  # (T, *saved_shape)
    zoneout: Mapping[str, Array | float]  # for each state, a mask (T, B, P or H) or a probability
    terms: int | None  # number of terms that a product splits a float32 into: 3, 2 or 1; None: set by `set_terms`
    output: NotRequired[Array]  # (T, B, P), filled by the forward

class RecurrentGradients(TypedDict, total=False):
    """Gradients of that layer and direction: the given ones, then those that the backward fills."""

    d_output: Array | None  # (T, B, P)
    d_cell: Array | None  # (T, B, H)
    d_final_state: Mapping[str, Array | None]  # (B, P or H)
    truncate: int | None
    clip: float | None
    dropped: Array | None  # (G H, P): the mask of weight dropout
    d_output_exponent: Array  # (T, B); if given, the backward is the scaled one and fills the last three entries below

    d_input: Array | None  # (T, B, I)
    add_to_input: bool
    d_initial_state: Mapping[str, Array | None]
    d_states: Mapping[str, Array | None]  # (T, B, P or H)
    d_gates: Array | None  # (T, B, G H)
    d_parameters: Mapping[str, Array] | None
    norms: Mapping[str, Array] | None  # (T,) for each parameter
    clipped: Array | None  # (T, B)
    exponent: Array  # (T, B)
    log10_sequence: Array  # (T, B)
    log10_unit: Array  # (T, P)

class AttentionProblem(TypedDict):
    q: Array  # (T, B, F), and so k, v and output
    k: Array
    v: Array
    output: Array
    heads: int
    back: int
    ahead: int
    lengths: Array | None  # (B,)
    saved: Array  # (B, heads, 2, T)

class AttentionGradients(TypedDict):
    d_output: Array
    d_q: Array
    d_k: Array
    d_v: Array

class LayerNormForward(TypedDict):
    x: Array  # (N, F)
    branch: Array | None
    weight: Array  # (F,)
    bias: Array
    scale: float
    eps: float
    sum: Array | None
    normalised: Array
    statistics: Array | None  # (N, 4)

class LayerNormBackward(TypedDict):
    sum: Array  # (N, F)
    statistics: Array  # (N, 4)
    weight: Array  # (F,)
    scale: float
    d_sum: Array | None
    d_normalised: Array
    d_x: Array
    d_branch: Array | None
    d_weight: Array
    d_bias: Array

class ActivationForward(TypedDict):
    x: Array  # (N, F)
    bias: Array  # (F,)
    y: Array

class ActivationBackward(TypedDict):
    saved: Array  # (N, F)
    d: Array
    d_bias: Array  # (F,)

class LinearForward(TypedDict):
    x: Array  # (N, I)
    weight: Array  # (O, I)
    bias: Array | None  # (O,)
    y: Array  # (N, O)

class LinearBackward(TypedDict):
    x: Array  # (N, I)
    weight: Array  # (O, I)
    d_y: Array  # (N, O)
    d_x: Array
    d_weight: Array
    d_bias: Array | None

class EmbeddingForward(TypedDict):
    indices: Array  # (N,)
    weight: Array  # (count, F)
    output: Array  # (N, F)

class EmbeddingBackward(TypedDict):
    indices: Array  # (N,)
    d_output: Array  # (N, F)
    d_weight: Array  # (count, F)

class CrossEntropy(TypedDict):
    logits: Array  # (N, C)
    targets: Array  # (N,)
    ignore_index: int
    d_logits: Array

class SquaredError(TypedDict):
    prediction: Array  # (N,)
    target: Array
    d_prediction: Array

def forward(cell: str, problem: RecurrentProblem) -> None: ...
def backward(cell: str, problem: RecurrentProblem, gradients: RecurrentGradients) -> None: ...
def attention_forward(problem: AttentionProblem) -> None: ...
def attention_backward(problem: AttentionProblem, gradients: AttentionGradients) -> None: ...
def parameter_shapes(cell: str, input_size: int, hidden_size: int, width: int) -> dict[str, tuple[int, ...]]: ...
def saved_shape(cell: str, float64: bool, hidden_size: int) -> tuple[int, int, int]: ...
def sees_whole_rows(cell: str) -> bool: ...
def layer_norm_forward(problem: LayerNormForward) -> None: ...
def layer_norm_backward(problem: LayerNormBackward) -> None: ...
def activation_forward(name: str, problem: ActivationForward) -> None: ...
def activation_backward(name: str, problem: ActivationBackward) -> None: ...
def activation_of_argument(name: str) -> bool: ...
def embedding_forward(problem: EmbeddingForward) -> bool: ...
def embedding_backward(problem: EmbeddingBackward) -> bool: ...
def cross_entropy(problem: CrossEntropy) -> tuple[float, int, int]: ...
def squared_error(problem: SquaredError) -> float: ...
def sgd(rows: list[tuple[Any, ...]], lr: float, momentum: float) -> bool: ...
def adam(
    rows: list[tuple[Any, ...]], lr: float, beta1: float, beta2: float, eps: float, penalty: float, decay: float
) -> bool: ...
def clip(arrays: list[Array], largest: float) -> float | None: ...
def linear_forward(problem: LinearForward) -> None: ...
def linear_backward(problem: LinearBackward) -> None: ...

compiler: str

version: str

def levels() -> list[tuple[str, bool]]: ...
def level() -> str: ...
def bfloat16_terms() -> dict[str, int]: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def usable_cores() -> int: ...
def get_terms() -> int: ...
def set_terms(count: int) -> None: ...
def assume_level(name: str) -> None: ...
def force(
    engine: str = "", split: str = "", chunk: int = 0, rest: int = 0, polls_often: bool = False, interrupt: int = 0
) -> None: ...
def poison(on: bool) -> None: ...
def borrow_threads(functions: dict[str, int]) -> None: ...
def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array: ...
def empty_cache() -> None: ...
def peak(seconds: float) -> float: ...
def jax_handlers() -> dict[str, Any]: ...
