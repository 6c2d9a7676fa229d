"""The base class of layers: named parameters in plain arrays, loading, saving, `repr`."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self
from weakref import WeakValueDictionary

import numpy as np

from .._arguments import (
    Array,
    as_array,
    check_dtype,
    check_shape,
    check_shapes,
    file_path,
    float_dtype,
    generator,
    is_floating,
    plain,
)
from .._files import replacing
from .._random import MaskStream
from .._saved import CONFIGURATION, RNG_STATE, claim, configuration_of
from ..backend.choose import backend_of, require_host
from ..backend.host import Host
from ..backend.protocol import Backend


class _Held:
    """Wraps an array that is being copied or pickled. Layers that share an array share one holder, so their copies
    share an array too, even with joblib, which writes an array once per reference.
    """

    _of: ClassVar[WeakValueDictionary[int, _Held]] = WeakValueDictionary()

    def __init__(self, array: Any) -> None:
        self.array = array

    @classmethod
    def of(cls, array: Any) -> _Held:
        return cls._of.setdefault(id(array), cls(array))  # the holder keeps the array alive, so its id stays unique

    def __setstate__(self, state: dict[str, Any]) -> None:
        array = state["array"]
        if isinstance(array, np.memmap):  # joblib's, on a file that should not be read completely
            array = plain(array)
        elif getattr(array, "base", None) is not None:  # a view of the bytes of its file
            array = array.copy()
        self.array = array


class Layer:
    """Base class of all layers.

    A subclass calls ``_set_up`` with its configuration (its constructor's arguments) and the shapes of its parameters,
    and fills the arrays with initial values drawn from the generator that it returns.
    """

    _kinds: ClassVar[dict[str, type[Layer]]] = {}
    _kind: ClassVar[str]

    parameters: dict[str, Array]
    """Name to array. Writing into an array changes the layer."""

    input_size: int | None = None
    """Features of the input's last axis; None where they are not known, or the input is integers."""

    output_size: int | None = None
    """Features of the output's last axis; None where they are not known."""

    dtype: Any
    """np.float32 or np.float64 as a NumPy dtype; on CUDA, the name of the dtype."""

    if TYPE_CHECKING:  # for a layer of unknown class, such as that of `load`: each class has its own arguments

        def __call__(self, x: Any, /, *args: Any, **options: Any) -> Any: ...

        def forward(self, x: Any, /, *args: Any, **options: Any) -> Any: ...

    _masks: MaskStream | None = None  # the random numbers of its masks, if it draws any
    _backend: Backend = Host
    _elementwise = False  # whether each output value depends only on the input value at the same position
    _rowwise = False  # whether the layer treats the rows of its input as a batch
    _any_dtype = False  # whether x may be float32 or float64, independent of `dtype`

    @property
    def buffers(self) -> dict[str, Array]:
        """Arrays by name that belong to the layer but are not trained, such as running statistics; usually empty."""
        return {}

    def __init_subclass__(cls, kind: str | None = None) -> None:
        """Register a class that `load` makes; a user's subclass is saved as its base class."""
        super().__init_subclass__()
        if kind:
            cls._kind = kind
            Layer._kinds[kind] = cls

    def _set_up(
        self, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: Any, seed: Any
    ) -> np.random.Generator:
        self.dtype = float_dtype(dtype)
        self._config = {**config, "dtype": str(self.dtype)}
        self._shapes_of_parameters = dict(shapes)
        check_shapes(type(self).__name__, shapes, self.dtype.itemsize)
        claim(shapes.values())
        self.parameters = {name: Host.zeros(shape, self.dtype) for name, shape in shapes.items()}
        return generator("seed", seed)

    def __repr__(self) -> str:
        constructor = self._kinds[self._kind].__init__  # a user's subclass may override it
        signature = constructor.__code__.co_varnames[1 : constructor.__code__.co_argcount]
        positional = dict(zip(signature[::-1], (constructor.__defaults__ or ())[::-1], strict=False))
        defaults = {"dtype": "float32", **positional, **(constructor.__kwdefaults__ or {})}
        shown = [
            f"{key}={value!r}" if key in defaults else repr(value)
            for key, value in self._config.items()
            if key not in defaults or defaults[key] != value
        ]
        placed = "" if self._backend is Host else f".to({self.device!r}, dtype={self.dtype!r})"
        return f"{type(self).__name__}({', '.join(shown)}){placed}"

    @property
    def device(self) -> str:
        """The device of the parameters: ``"cpu"`` or ``"cuda"``."""
        return self._backend.device

    def to(self, device: str, *, dtype: Any = None) -> Self:
        """Move the parameters to a device; only RNN, GRU and LSTM support devices other than the CPU.

        Parameters
        ----------
        device : {"cpu", "cuda"}
        dtype : optional
            The layer's own: `astype` converts.

        Returns
        -------
        layer
            The layer itself.

        Raises
        ------
        NotImplementedError
            If this layer does not run on the device, or `dtype` is another one.
        ValueError
            If the name of the device is unknown.
        RuntimeError
            If this build has no CUDA, or there is no CUDA device.
        """
        if backend_of(device) is not Host:
            raise NotImplementedError(
                f"{type(self).__name__} runs on the CPU only; RNN, GRU and LSTM run on {device!r}"
            )
        if dtype is not None and float_dtype(dtype) != self.dtype:
            raise NotImplementedError(f"{type(self).__name__}.to has no dtype; layer.astype({str(dtype)!r}) has")
        return self

    def astype(self, dtype: Any) -> Self:
        """Return a copy of this layer with parameters of another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}

        Returns
        -------
        layer
            The copy.

        Raises
        ------
        TypeError
            If the dtype is not one of these.
        """
        require_host("astype", self.device)
        other = copy.deepcopy(self)  # keeps the class, whose constructor may take any arguments
        other._cast(float_dtype(dtype))
        return other

    def _cast(self, dtype: np.dtype[Any]) -> None:
        """Convert the parameters to another dtype."""
        self._config["dtype"] = str(dtype)
        self.dtype = dtype
        self.parameters = {name: array.astype(dtype) for name, array in self.parameters.items()}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, copy and joblib."""
        held = {name: _Held.of(array) for name, array in self.parameters.items()}
        return {**vars(self), "parameters": held, "_config": dict(self._config)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {name: value for name, value in state.items() if name != "_rng"}  # which pickles before 0.1.0 have
        vars(self).update(own, parameters={name: held.array for name, held in state["parameters"].items()})

    def load_parameters(self, mapping: Mapping[str, Any]) -> None:
        """Copy values into the parameters, converting between float types.

        Parameters
        ----------
        mapping : mapping of str to array
            NumPy arrays, torch tensors (such as a ``state_dict()``), or anything with DLPack, in any float type:
            bfloat16 and float16 are read exactly. Entries of `buffers` may be included.

        Raises
        ------
        ValueError
            Names every missing, unexpected and misshapen entry; in that case nothing is changed.
        TypeError
            If an entry is not an array of floating-point numbers.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a dict of name to array, got {type(mapping).__name__}")
        arrays = {name: self._backend.on_host(f"parameters[{name!r}]", value) for name, value in mapping.items()}
        buffers = self.buffers
        own = {**self.parameters, **{name: buffer for name, buffer in buffers.items() if name in arrays}}
        faults = [f"missing {name!r} {array.shape}" for name, array in own.items() if name not in arrays]
        faults += [f"unexpected {name!r} {array.shape}" for name, array in arrays.items() if name not in own]
        faults += [
            f"{name!r} has shape {arrays[name].shape}, expected {array.shape}"
            for name, array in own.items()
            if name in arrays and arrays[name].shape != array.shape
        ]
        if faults:
            raise ValueError(f"parameters do not fit {self!r}: " + "; ".join(faults))
        for name, array in arrays.items():
            if not is_floating(array.dtype) and not np.issubdtype(own[name].dtype, np.integer):
                raise TypeError(f"parameters[{name!r}] has dtype {array.dtype}, expected a float type")
        for name, array in arrays.items():
            own[name][...] = array

    def get_rng_state(self) -> Array:
        """Return where the layer is in its random numbers, which are the masks of dropout, zoneout and weight dropout.

        With this state a layer of the same architecture draws the masks that this layer draws next, in any process, for
        any number of threads, on any device. ``save`` and pickles include it.

        Returns
        -------
        state : (N, 3) uint64 array
            For each of the N recurrent layers inside: a key of two numbers, and the number of forward passes that drew
            masks. N is 0 if there are no recurrent layers, and 1 for a recurrent layer itself.

        Examples
        --------
        >>> import numpy as np, throughtime as tt
        >>> lstm, x = tt.LSTM(2, 3, zoneout=0.5, seed=0), np.ones((4, 1, 2), np.float32)
        >>> before = lstm.get_rng_state()
        >>> first, second = lstm.forward(x), lstm.forward(x)
        >>> lstm.set_rng_state(before)
        >>> again = lstm.forward(x)
        >>> [bool(np.array_equal(other.output, first.output)) for other in (second, again)]
        [False, True]
        """
        return np.array([stream.row() for stream in self._mask_streams()], np.uint64).reshape(-1, 3)

    def set_rng_state(self, state: Array) -> None:
        """Continue from a state that `get_rng_state` returned.

        Parameters
        ----------
        state : (N, 3) uint64 array

        Raises
        ------
        TypeError
            If `state` is not an array of uint64.
        ValueError
            If N is not the number of recurrent layers; nothing is changed.
        """
        array, streams = as_array("state", state), self._mask_streams()
        check_dtype("state", array, np.dtype(np.uint64))
        check_shape("state", array, (len(streams), 3))
        for stream, row in zip(streams, array, strict=True):
            stream.set_row(row)

    def _mask_streams(self) -> list[MaskStream]:
        """The random numbers of the layers inside that draw masks."""
        return [leaf._masks for leaf in owners(self) if leaf._masks is not None]

    def _check_parameters(self) -> None:
        """Raise unless `parameters` still has the constructor's arrays: a user may have replaced an entry."""
        if self.parameters.keys() != self._shapes_of_parameters.keys():
            raise ValueError(f"parameters has {sorted(self.parameters)}, expected {sorted(self._shapes_of_parameters)}")
        self._backend.check_parameters(self.parameters, self.dtype, self._shapes_of_parameters)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration, parameters, buffers and the state of the random masks to `path`, for `throughtime.load`.

        The file is NumPy's ``.npz``, and names the version of throughtime that wrote it; later versions read it too.
        A temporary file in the same directory is written first, then replaces `path`: on failure, an existing file
        stays unchanged.

        Parameters
        ----------
        path : str or os.PathLike
            The file to write or replace; nothing is appended to its name.

        Raises
        ------
        TypeError
            If `path` is neither.
        OSError
            If the file cannot be written, for example because the disk is full.
        """
        with replacing(file_path("path", path)) as file:
            self._write(file)

    def _write(self, file: BinaryIO) -> None:
        """Write to an open file, as `save`."""
        configuration = configuration_of(self._about(), default=lambda inner: inner._about())
        values = {
            name: self._backend.on_host(name, array) for name, array in {**self.parameters, **self.buffers}.items()
        }
        own = {CONFIGURATION: np.array(configuration), RNG_STATE: self.get_rng_state()}
        entries: dict[str, Any] = {**own, **values}
        np.savez(file, **entries)

    def _about(self) -> dict[str, Any]:
        """The data from which `_rebuild` makes this layer, without the parameters' values."""
        return {"layer": self._kind, "config": self._config}

    @classmethod
    def _rebuild(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


class Composite(Layer):
    """A layer that consists of others. Its parameters are theirs, with their names as prefixes.

    A subclass calls ``_compose`` with its configuration and its inner layers by name.
    """

    def _compose(self, config: dict[str, Any], inner: dict[str, Layer], dtype: np.dtype[Any]) -> None:
        for layer in inner.values():
            require_host(type(self).__name__, layer.device)
        self.dtype = dtype
        self._config = config
        self._inner = inner
        places: dict[int, str] = {}
        for name, array in self.parameters.items():
            if id(array) in places:
                raise ValueError(
                    f"a layer, and an array of one, can stand in one place only, but {name!r} is {places[id(array)]!r}"
                )
            places[id(array)] = name

    @property
    def buffers(self) -> dict[str, Array]:
        """The buffers of the inner layers, with the layers' names as prefixes."""
        return self._named({name: layer.buffers for name, layer in self._inner.items()})

    @functools.cached_property
    def parameters(self) -> dict[str, Array]:  # type: ignore[override]
        """The parameters of the inner layers, by name. Writing into an array changes the layer."""
        return self._named({name: layer.parameters for name, layer in self._inner.items()})

    def _cast(self, dtype: np.dtype[Any]) -> None:
        if "dtype" in self._config:
            self._config["dtype"] = str(dtype)
        self.dtype, self._any_dtype = dtype, False
        for layer in self._inner.values():
            layer._cast(dtype)
        vars(self).pop("parameters", None)

    def __getstate__(self) -> dict[str, Any]:
        """The state without `parameters`, which a copy takes from the copies of the inner layers."""
        self._check_parameters()
        return {name: value for name, value in vars(self).items() if name != "parameters"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @staticmethod
    def _named(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The entries of all inner layers as one dict."""
        return {f"{name}.{key}": array for name, own in arrays.items() for key, array in own.items()}

    def _check_parameters(self) -> None:
        """Raise unless `parameters` still has the inner layers' arrays."""
        own = self._named({name: layer.parameters for name, layer in self._inner.items()})
        if self.parameters.keys() != own.keys():
            raise ValueError(f"parameters has {sorted(self.parameters)}, expected {sorted(own)}")
        for name, array in own.items():
            if self.parameters[name] is not array:
                raise ValueError(f"parameters[{name!r}] is not the inner layer's: write into it, do not replace it")
        for layer in self._inner.values():
            layer._check_parameters()


def owners(layer: Layer) -> Iterator[Layer]:
    """The innermost layers, which own the parameters."""
    if isinstance(layer, Composite):
        for inner in layer._inner.values():
            yield from owners(inner)
    else:
        yield layer


def check_parameters(layer: Layer) -> None:
    """Raise unless `parameters` still has the constructor's arrays."""
    layer._check_parameters()
