"""Problems as torch's modules and tensors, and their results as arrays."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

BOUND = 1e-10  # in float64, for the roundings of both torch and throughtime


def module_of(problem, dtype=torch.float64, library=torch.nn, **options):
    """A module of torch, or of another library, with the problem's parameters."""
    module = getattr(library, problem.kind.partition("_")[0].upper())(
        problem.I,
        problem.H,
        problem.L,
        bias=problem.bias,
        bidirectional=problem.D == 2,
        dtype=dtype,
        **problem.options,
        **options,
    )
    module.load_state_dict({name: torch.tensor(value) for name, value in problem.parameters.items()})
    return module


def laid_out(values, batched, batch_first=False):
    """An array, or a tuple of arrays, in the caller's layout; states have the batch second in either layout."""
    if isinstance(values, tuple):
        return tuple(laid_out(value, batched, batch_first) for value in values)
    if not batched:
        return values[:, 0]
    return values.swapaxes(0, 1) if batch_first else values


def leaves(values):
    """Tensors that collect gradients, from an array or a tuple."""
    if isinstance(values, tuple):
        return tuple(leaves(value) for value in values)
    return torch.tensor(values, requires_grad=True)


def arrays(values, of=lambda tensor: tensor.detach()):
    if isinstance(values, tuple):
        return tuple(arrays(value, of) for value in values)
    return of(values).numpy()


def gradient(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def together(values):
    return values if isinstance(values, tuple) else (values,)


def backward(problem, output, final, d_output):
    d_final = together(problem.d_final_state)
    torch.autograd.backward((output, *together(final)), (torch.tensor(d_output), *(torch.tensor(d) for d in d_final)))


# Layers with options that torch lacks or names differently.
EXTRAS = [
    ("LSTM", {"peephole": True}),
    ("LSTM", {"layer_norm": True, "bidirectional": True}),
    ("LSTM", {"zoneout": (0.2, 0.1), "weight_dropout": 0.3}),
    ("LSTM", {"proj_size": 3, "num_layers": 3, "dropout": 0.4, "bidirectional": True}),
    ("GRU", {"reset_after": False, "num_layers": 2, "dropout": 0.4}),
    ("GRU", {"layer_norm": True, "num_layers": 2}),
    ("RNN", {"zoneout": 0.2, "nonlinearity": "relu"}),
    ("RNN", {"nonlinearity": "sigmoid", "layer_norm": True, "bidirectional": True}),
]
