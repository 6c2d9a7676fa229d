"""Fused backpropagation through time for RNN, GRU and LSTM, with the gradient at every timestep."""

from . import _renamed, convert, cuda, init, optim, sinks
from .analysis.connectivity import connectivity, plot_connectivity
from .analysis.fixed_points import fixed_points
from .analysis.flow_result import plot_flows
from .analysis.gradient_flow import gradient_flow
from .analysis.jacobians import jacobians
from .analysis.lyapunov import jacobian_singular_values, lyapunov_spectrum
from .analysis.truncation import truncation_error
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
from .diagnosis.diagnose import diagnose
from .diagnosis.finding import Diagnosis, Finding, Remedy
from .gradcheck import gradcheck
from .layers.activations import GELU, ReLU, Sigmoid, Tanh
from .layers.add_layer_norm import add_layer_norm, add_layer_norm_backward
from .layers.attention import SelfAttention
from .layers.batch_norm import BatchNorm
from .layers.embedding import Embedding
from .layers.layer_norm import LayerNorm
from .layers.linear import Linear
from .layers.load import load
from .layers.mlp import MLP
from .layers.residual import ResidualBlock
from .layers.sequential import Sequential
from .losses import cross_entropy, mse
from .monitor.flow_monitor import FlowMonitor
from .recurrent import GRU, LSTM, RNN, Gradients, Tape

_renamed.remember()

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "BatchNorm",
    "Diagnosis",
    "Embedding",
    "Finding",
    "FlowMonitor",
    "Gradients",
    "LayerNorm",
    "Linear",
    "ReLU",
    "Remedy",
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
    "connectivity",
    "convert",
    "cross_entropy",
    "cuda",
    "diagnose",
    "empty_cache",
    "fixed_points",
    "get_matmul_precision",
    "get_num_threads",
    "gradcheck",
    "gradient_flow",
    "init",
    "jacobian_singular_values",
    "jacobians",
    "load",
    "lyapunov_spectrum",
    "mse",
    "optim",
    "plot_connectivity",
    "plot_flows",
    "set_matmul_precision",
    "set_num_threads",
    "show_config",
    "sinks",
    "truncation_error",
]
