"""Problems on the device: the results of `problems.run`, from a device layer whose kernels run in a given way."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

import throughtime as tt
from problems import run
from stand_in import load_cuda
from throughtime import cuda
from throughtime.backend.cuda import force

KERNELS = load_cuda()

# significant bits
BITS = {"float32": 24, "bfloat16": 8, "float16": 11}
PRECISIONS = {3: "highest", 2: "high", 1: "medium"}  # by the bfloat16 terms of a float32


def each(function, value, kind):
    """A function applied to every array of that type, also in tuples and dicts; other values stay as they are."""
    if isinstance(value, dict):
        return {name: each(function, inner, kind) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(each(function, inner, kind) for inner in value)
    return function(value) if isinstance(value, kind) else value


def placed(value, dtype):
    """Arrays of floats, moved to the device."""
    return each(lambda array: cuda.to_device(array, dtype) if array.dtype.kind == "f" else array, value, np.ndarray)


def on_host(value):
    """Device arrays as NumPy arrays; 16-bit numbers become float32."""

    def copied(array):
        values = array.numpy()
        return values.astype(np.float32) if values.dtype == np.float16 else values

    return each(copied, value, cuda.DeviceArray)


def rounded(value, dtype):
    """float32 arrays, rounded to the values of a tensor type."""
    return on_host(placed(value, dtype))


@contextmanager
def way(terms=3, **forced):
    """Runs products with this many terms, and other choices with these arguments of `force`."""
    tt.set_matmul_precision(PRECISIONS[terms])
    try:
        with force(**forced):
            yield
    finally:
        tt.set_matmul_precision("highest")


def run_cuda(problem, options=None, asked=None, loss=None, *, x=None, type_="float32", memory="full", **how):
    """Forward and backward with everything that can be requested; `how`: `batch_first` and the arguments of `way`."""
    batch_first = how.pop("batch_first", False)

    def turned(array):
        return array.swapaxes(0, 1) if batch_first else array

    options, loss = {"memory": memory, **(options or {})}, dict(problem.loss if loss is None else loss)
    if options.get("masks") == {}:
        options |= {"masks": None, "training": False}
    loss["d_output"] = turned(loss["d_output"])
    layer = problem.layer(batch_first=batch_first).to("cuda", dtype=type_)
    x, options, loss = placed((turned(problem.x if x is None else x), options, loss), type_)
    with way(**how):
        found = on_host(run(layer, x, options, asked, loss))
    return found | {name: turned(found[name]) for name in ("output", "input")}


def calls_of(problem, options, monkeypatch):
    """The dicts passed to the kernels, by direction: those of forward, and the pairs of backward."""
    forward, backward = KERNELS.forward, KERNELS.backward
    forwards, backwards = [], []
    with monkeypatch.context() as patch:
        patch.setattr(KERNELS, "forward", lambda cell, p: (forwards.append(p), forward(cell, p)))
        patch.setattr(KERNELS, "backward", lambda cell, p, d: (backwards.append((p, d)), backward(cell, p, d)))
        run_cuda(problem, options, mode="stepwise")
    return forwards, backwards
