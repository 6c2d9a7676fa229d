"""Modules of PyTorch as layers, without importing it: a program that has such a module has imported torch already."""

from __future__ import annotations

from typing import Any

from ._arguments import as_array, contiguous
from .layers.layer import Layer
from .layers.residual import ResidualBlock
from .recurrent import GRU, LSTM, RNN

_PUBLIC = {  # where classes are defined, and where users find them
    "torch.nn.modules.": "torch.nn",
    "throughtime.torch.": "throughtime.torch",
    "throughtime.": "throughtime",
}
_EXPECTED = "layer must be a throughtime layer, or an RNN, GRU or LSTM of torch.nn or throughtime.torch"
_HALVES = ("torch.bfloat16", "torch.float16")
_TORCHS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_SHARED = (*_TORCHS, "layer_norm", "zoneout", "weight_dropout")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "RNN": (*_SHARED, "nonlinearity"),
    "GRU": (*_SHARED, "reset_after"),
    "LSTM": (*_SHARED, "proj_size", "peephole"),
}


def full_name(kind: type) -> str:
    """The name of a class, with the package where its name is one of several packages'."""
    for inner, public in _PUBLIC.items():
        if kind.__module__.startswith(inner):
            return f"{public}.{kind.__name__}"
    return kind.__name__


def from_torch(layer: Any, *arrays: Any) -> tuple[Any, ...]:
    """The layer and the arrays as they are; of a torch module a layer on its weights, of tensors what that takes.

    A recurrent layer shares the weights' memory, but for those in half precision, on a device, or not contiguous.

    Raises
    ------
    TypeError
        If `layer` is a torch module that no layer stands for.
    """
    if not _is(type(layer), "torch.nn.modules.module", "Module"):
        return (layer, *arrays)
    return (_layer_of(layer), *map(_on_host, arrays))


def _inner(module: Any) -> str:
    """Where in a model there are modules that layers stand for."""
    names = [
        name
        for name, part in module.named_modules()
        if any(_is(type(part), "torch.nn.modules.rnn", kind) for kind in _OPTIONS)
    ]
    return f", which has one at {', '.join(map(repr, names))}" if names else ""


def _is(kind: type, module: str, name: str) -> bool:
    """Whether it is that class or derives from it."""
    return any(cls.__module__ == module and cls.__name__ == name for cls in kind.__mro__)


def _layer_of(module: Any) -> Layer:
    if full_name(type(module)) == "throughtime.torch.ResidualBlock":
        return _block_of(module)
    kind = next((kind for kind in _OPTIONS if _is(type(module), "torch.nn.modules.rnn", kind)), None)
    if kind is None:
        raise TypeError(f"{_EXPECTED}, got {full_name(type(module))}{_inner(module)}")
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    if full_name(owner).rpartition(".")[0] not in ("torch.nn", "throughtime.torch"):
        raise TypeError(f"{_EXPECTED}, got {full_name(type(module))}, whose forward is its own")
    return _recurrent_of(kind, module)


def _block_of(module: Any) -> ResidualBlock:
    options = {"norm": module.norm_place, "residual": module.residual, "branch_scale": module.branch_scale}
    block = ResidualBlock(_layer_of(module.sublayer), module.size, **options, eps=module.eps)
    if block.norm is not None:
        block.norm.load_parameters({name: _on_host(value) for name, value in module.norm.named_parameters()})
    return block


def _recurrent_of(kind: str, module: Any) -> Layer:
    options = {name: getattr(module, name) for name in _OPTIONS[kind] if hasattr(module, name)}
    dtype = str(module.weight_ih_l0.dtype)
    layer: Layer = _UNSET[kind](**options, dtype="float32" if dtype in _HALVES else dtype.removeprefix("torch."))
    for name in layer.parameters:  # by attribute: parametrizations compute what is there
        layer.parameters[name] = contiguous(as_array(name, _on_host(getattr(module, name))))
    return layer


def _on_host(value: Any) -> Any:
    """A tensor where NumPy can read it, in a type that it has; anything else as it is."""
    if isinstance(value, tuple | list):
        return tuple(_on_host(entry) for entry in value)
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return tensor.float() if str(tensor.dtype) in _HALVES else tensor


def _unset(layer: type[Layer]) -> type[Layer]:
    """The same layer without initial values: nothing is drawn, and NumPy's zeros touch no memory."""
    return type(layer.__name__, (layer,), {"_initialise": lambda self: None})


_UNSET: dict[str, Any] = {layer.__name__: _unset(layer) for layer in (RNN, GRU, LSTM)}
