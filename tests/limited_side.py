"""Makes one call of the public interface after the other with less and less memory; for test_memory_limit.py.

Each call is a function without arguments that returns arrays. It first runs with no memory beyond that of the process
(``RLIMIT_AS``), then with more, until it succeeds. Until then it may only raise MemoryError. Afterwards it must return
the same bits as before. Prints one line per call: its name, how often it failed, and the megabytes that were enough.
"""

from __future__ import annotations

import ctypes
import pickle
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

import throughtime as tt

MIB = 1 << 20
T, B, F = 64, 16, 128  # an array of these sizes has half a MiB, some 20 of which a call may need
LIBC = ctypes.CDLL(None)
SCRATCH = Path(tempfile.mkdtemp())


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


X = numbers(T, B, F)
D = numbers(T, B, F, seed=1)
SHORT = numbers(12, 1, 8)


def recurrent_calls():
    layers = {
        "RNN": tt.RNN(F, F, seed=0),
        "GRU": tt.GRU(F, F, bidirectional=True, seed=0),
        "LSTM": tt.LSTM(F, F, num_layers=2, seed=0),
        "LSTM peephole": tt.LSTM(F, F, peephole=True, seed=0),
        "LSTM layer_norm": tt.LSTM(F, F, layer_norm=True, seed=0),
        "LSTM proj_size": tt.LSTM(F, 2 * F, proj_size=F, seed=0),
    }
    ones = dict.fromkeys(layers, D) | {"GRU": np.concatenate([D, D], axis=2)}
    for name, layer in layers.items():
        for memory in ("full", "states", "checkpoint"):

            def step(layer=layer, memory=memory, d_output=ones[name]):
                tape = layer.forward(X, lengths=[T] * (B - 1) + [3], memory=memory)
                grads = tape.backward(d_output, timesteps=("hidden", "cell", "gates", "parameter_norms"), clip=5.0)
                return [tape.output, grads.input, grads.gates, *grads.parameters.values()]

            yield f"{name} {memory}", step
        yield f"{name} call", lambda layer=layer: [layer(X)[0]]
    tape = layers["LSTM"].forward(X)
    yield "tape", lambda: [tape.gates, tape.hidden, tape.cell]
    turned = np.asfortranarray(X)
    yield "turned", lambda: [layers["LSTM"](turned)[0]]


def layer_calls():
    layers = {
        "Linear": tt.Linear(F, F, seed=0),
        "MLP": tt.MLP(F, 2 * F, "gelu", seed=0),
        "LayerNorm": tt.LayerNorm(F),
        "SelfAttention": tt.SelfAttention(F, 4, seed=0),
        "BatchNorm": tt.BatchNorm(F),
        "ReLU": tt.ReLU(),
        "GELU": tt.GELU(),
        "ResidualBlock": tt.ResidualBlock(tt.GRU(F, F, seed=0), F),
        "Sequential": tt.Sequential(
            tt.ResidualBlock(tt.MLP(F, F, seed=0), F, norm="post"), tt.Tanh(), tt.LSTM(F, F, seed=1)
        ),
    }
    for name, layer in layers.items():

        def step(layer=layer):
            training = {"training": False} if isinstance(layer, tt.BatchNorm) else {}
            tape = layer.forward(X, **training)
            grads = tape.backward(D)
            return [tape.output, grads.input, *grads.parameters.values()]

        yield name, step
    embedding, indices = tt.Embedding(1000, F, seed=0), np.arange(T * B).reshape(T, B) % 1000
    yield "Embedding", lambda: list(embedding.forward(indices).backward(D).parameters.values())

    def add_norm():
        weight, bias = np.ones(F, np.float32), np.zeros(F, np.float32)
        total, normalised, saved = tt.add_layer_norm(X, D, weight, bias)
        return [total, normalised, *tt.add_layer_norm_backward(D, X, saved)]

    yield "add_layer_norm", add_norm


def training_calls():
    logits, targets = numbers(T * B, 300), np.arange(T * B) % 300
    yield "cross_entropy", lambda: [tt.cross_entropy(logits, targets)[1]]
    yield "mse", lambda: [tt.mse(X, D)[1]]
    yield "clip_grad_norm", lambda: [tt.clip_grad_norm({"x": D}, 1e9)]
    for make in (tt.optim.SGD, tt.optim.Adam, tt.optim.AdamW):

        def update(make=make):
            parameters = {"x": X.copy(), "d": D.copy()}
            before = {name: array.copy() for name, array in parameters.items()}
            options = {"momentum": 0.9} if make is tt.optim.SGD else {}
            optimiser = make(0.1, **options)
            try:
                optimiser.step(parameters, {"x": D, "d": X})
            except MemoryError:  # all parameters were updated, or none
                changed = [not np.array_equal(array, before[name]) for name, array in parameters.items()]
                assert not any(changed), changed
                raise
            return list(parameters.values())

        yield make.__name__, update
    for name in ("xavier_uniform", "kaiming_normal", "orthogonal", "identity"):
        yield f"init.{name}", lambda name=name: [getattr(tt.init, name)((300, 300), np.random.default_rng(0))]
    layer = tt.LSTM(F, F, seed=0)
    yield "init.apply", lambda: list(tt.init.apply(layer, "good", max_steps=T, seed=0).parameters.values())
    yield "layer", lambda: list(tt.LSTM(F, 2 * F, seed=0).parameters.values())
    mapping = {name: array.astype(np.float64) for name, array in tt.LSTM(F, F, seed=1).parameters.items()}

    def load_parameters():
        layer.load_parameters(mapping)
        return list(layer.parameters.values())

    yield "load_parameters", load_parameters
    path = SCRATCH / "layer.npz"

    def save_and_load():
        layer.save(path)
        return list(tt.load(path).parameters.values())

    yield "save and load", save_and_load
    yield "pickle", lambda: list(pickle.loads(pickle.dumps(layer)).parameters.values())
    keras = [numbers(F, 4 * F), numbers(F, 4 * F), numbers(4 * F)]
    yield "from_keras", lambda: list(tt.convert.from_keras("LSTM", keras).values())


def analysis_calls():
    layer, small = tt.LSTM(F, F, seed=0), tt.LSTM(8, 8, seed=0)
    wide, x = tt.GRU(2, 3, seed=0, dtype="float64"), np.ones((3, 1, 2))
    stack = tt.Sequential(tt.ResidualBlock(tt.GRU(F, F, seed=0), F), tt.LayerNorm(F))
    for memory in ("full", "checkpoint"):
        yield f"gradient_flow {memory}", lambda memory=memory: [tt.gradient_flow(layer, X, memory=memory).log10_norm]
    yield "gradient_flow stack", lambda: [tt.gradient_flow(stack, X).log10_norm]
    yield "lyapunov_spectrum", lambda: [tt.lyapunov_spectrum(layer, X[:, :1], 32)]
    yield "jacobian_singular_values", lambda: [tt.jacobian_singular_values(layer, X[:, :1], 0, 8)]
    yield "jacobians", lambda: [tt.jacobians(small, numbers(T, B, 8))]
    yield "fixed_points", lambda: [tt.fixed_points(small, SHORT[0, 0], numbers(4, 16)).residuals]
    yield "connectivity", lambda: [tt.connectivity(layer, X, at=(T - 1,))]
    yield "truncation_error", lambda: [np.array(list(tt.truncation_error(layer, X, 8).values()))]
    yield "gradcheck", lambda: [np.array(list(tt.gradcheck(wide, x).values()))]
    yield "diagnose", lambda: [str(tt.diagnose(layer, X))]

    def monitor():
        with tt.FlowMonitor(layer, every=1) as monitor:
            layer.forward(X).backward(D)
        return [record.log10_norm for record in monitor.history]

    yield "FlowMonitor", monitor


def as_bytes(results):
    return [result.tobytes() if isinstance(result, np.ndarray | np.generic) else result for result in results]


def used():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10


def set_limit(beyond=None):
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard if beyond is None else used() + beyond, hard))


def with_limits(name, call):
    expected = as_bytes(call())
    room, failures = 0, 0
    while True:
        tt.empty_cache()
        LIBC.malloc_trim(0)
        set_limit(room)
        try:
            found = call()
            break
        except MemoryError:
            failures += 1
        finally:
            set_limit()
        room += max(MIB // 4, room // 3)
        assert room < 1 << 30, f"{name} needs more than a GiB"
    assert as_bytes(found) == expected, name
    assert as_bytes(call()) == expected, name
    print(name, failures, room // MIB, sep="\t", flush=True)


if __name__ == "__main__":
    tt.set_num_threads(2)
    for entry in globals()[f"{sys.argv[1]}_calls"]():
        with_limits(*entry)
