"""PyTorch modules as layers, without importing torch: a program with such a module has already imported it."""

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
    """The name of a class, with its package if classes of several packages have that name."""
    for inner, public in _PUBLIC.items():
        if kind.__module__.startswith(inner):
            return f"{public}.{kind.__name__}"
    return kind.__name__


def from_torch(layer: Any, *arrays: Any) -> tuple[Any, ...]:
    """The layer and the arrays, unchanged unless they are torch's: a module becomes a layer, tensors become its inputs.

    A recurrent layer shares the memory of the module's weights, except those in half precision, on a device, or not
    contiguous.

    Raises
    ------
    TypeError
        If `layer` is a torch module without a corresponding layer.
    """
    if not _is(type(layer), "torch.nn.modules.module", "Module"):
        return (layer, *arrays)
    return (_layer_of(layer), *map(_on_host, arrays))


def _inner(module: Any) -> str:
    """The places of a model's modules that have a corresponding layer, for an error message."""
    names = [
        name
        for name, part in module.named_modules()
        if any(_is(type(part), "torch.nn.modules.rnn", kind) for kind in _OPTIONS)
    ]
    return f", which has one at {', '.join(map(repr, names))}" if names else ""


def _is(kind: type, module: str, name: str) -> bool:
    """Whether `kind` is that class or a subclass of it."""
    return any(cls.__module__ == module and cls.__name__ == name for cls in kind.__mro__)


def _layer_of(module: Any) -> Layer:
    if full_name(type(module)) == "throughtime.torch.ResidualBlock":
        return _block_of(module)
    kind = next((kind for kind in _OPTIONS if _is(type(module), "torch.nn.modules.rnn", kind)), None)
    if kind is None:
        raise TypeError(f"{_EXPECTED}, got {full_name(type(module))}{_inner(module)}")
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    if full_name(owner).rpartition(".")[0] not in ("torch.nn", "throughtime.torch"):
        raise TypeError(f"{_EXPECTED}, got {full_name(type(module))}, which overrides forward")
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
    for name in layer.parameters:  # as attributes, which parametrizations compute
        layer.parameters[name] = contiguous(as_array(name, _on_host(getattr(module, name))))
    return layer


def _on_host(value: Any) -> Any:
    """A tensor on the CPU, in a type that NumPy has; any other value unchanged."""
    if isinstance(value, tuple | list):
        return tuple(_on_host(entry) for entry in value)
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return tensor.float() if str(tensor.dtype) in _HALVES else tensor


def _unset(layer: type[Layer]) -> type[Layer]:
    """The layer class without initial values: nothing is drawn, and NumPy's zeros touch no memory."""
    return type(layer.__name__, (layer,), {"_initialise": lambda self, rng: None})


_UNSET: dict[str, Any] = {layer.__name__: _unset(layer) for layer in (RNN, GRU, LSTM)}
