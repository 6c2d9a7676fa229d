"""Fused backpropagation through time for RNN, GRU and LSTM, with the gradient at every timestep."""

from . import convert, init, optim
from .attention import SelfAttention
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
from .gradcheck import gradcheck
from .layer import load
from .losses import cross_entropy, mse
from .modules import Embedding, Linear
from .recurrent import GRU, LSTM, RNN
from .tape import Gradients, Tape

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Embedding",
    "Gradients",
    "Linear",
    "SelfAttention",
    "Tape",
    "__version__",
    "clip_grad_norm",
    "convert",
    "cross_entropy",
    "empty_cache",
    "get_matmul_precision",
    "get_num_threads",
    "gradcheck",
    "init",
    "load",
    "mse",
    "optim",
    "set_matmul_precision",
    "set_num_threads",
    "show_config",
]
