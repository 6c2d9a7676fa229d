"""Fused backpropagation through time for RNN, GRU and LSTM, with the gradient at every timestep."""

from . import convert, cuda, init, optim
from .activations import GELU, ReLU, Sigmoid, Tanh
from .attention import SelfAttention
from .batch_norm import BatchNorm
from .blocks import LayerNorm, ResidualBlock, Sequential
from .clipping import clip_grad_norm
from .config import (
    __version__,
    empty_cache,
    get_matmul_precision,
    get_num_threads,
    set_matmul_precision,
    set_num_threads,
    show_config,
)
from .flow import gradient_flow
from .flow_result import plot_flows
from .gradcheck import gradcheck
from .layer import load
from .layer_norm import add_layer_norm, add_layer_norm_backward
from .losses import cross_entropy, mse
from .lyapunov import jacobian_singular_values, lyapunov_spectrum
from .mlp import MLP
from .modules import Embedding, Linear
from .recurrent import GRU, LSTM, RNN, Gradients, Tape

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "BatchNorm",
    "Embedding",
    "Gradients",
    "LayerNorm",
    "Linear",
    "ReLU",
    "ResidualBlock",
    "SelfAttention",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "Tape",
    "__version__",
    "add_layer_norm",
    "add_layer_norm_backward",
    "clip_grad_norm",
    "convert",
    "cross_entropy",
    "cuda",
    "empty_cache",
    "get_matmul_precision",
    "get_num_threads",
    "gradcheck",
    "gradient_flow",
    "init",
    "jacobian_singular_values",
    "load",
    "lyapunov_spectrum",
    "mse",
    "optim",
    "plot_flows",
    "set_matmul_precision",
    "set_num_threads",
    "show_config",
]
