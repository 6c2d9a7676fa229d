"""Training steps of all cells on the problem `train`, for comparison: ``python -m pytest benchmarks``.

The answer is checked against float64 before anything is timed.
"""

import numpy as np
import pytest

import throughtime as tt

T, B, H = 1000, 32, 256
LAYERS = {
    "LSTM": lambda dtype: tt.LSTM(H, H, dtype=dtype, seed=0),
    "LSTM peephole": lambda dtype: tt.LSTM(H, H, peephole=True, dtype=dtype, seed=0),
    "LSTM projected to 128": lambda dtype: tt.LSTM(H, H, proj_size=128, dtype=dtype, seed=0),
    "LSTM layer-normalised": lambda dtype: tt.LSTM(H, H, layer_norm=True, dtype=dtype, seed=0),
    "GRU": lambda dtype: tt.GRU(H, H, dtype=dtype, seed=0),
    "GRU original": lambda dtype: tt.GRU(H, H, reset_after=False, dtype=dtype, seed=0),
    "GRU layer-normalised": lambda dtype: tt.GRU(H, H, layer_norm=True, dtype=dtype, seed=0),
    "RNN": lambda dtype: tt.RNN(H, H, dtype=dtype, seed=0),
    "RNN layer-normalised": lambda dtype: tt.RNN(H, H, layer_norm=True, dtype=dtype, seed=0),
}


def answers(layer, x, d_output):
    tape = layer.forward(x)
    grads = tape.backward(d_output)
    return tape.output, grads.input, *grads.parameters.values()


@pytest.mark.parametrize("name", LAYERS)
def test_training_step(benchmark, name):
    layer, exact = LAYERS[name]("float32"), LAYERS[name]("float64")
    if "weight_ln_hh_l0" in layer.parameters:  # with a gain of 1 it is chaotic: float32 and float64 diverge
        layer.parameters["weight_ln_hh_l0"][...] = 0.5
    exact.load_parameters(layer.parameters)
    random = np.random.default_rng(0)
    x = random.standard_normal((T, B, H), dtype=np.float32)
    d_output = random.standard_normal((T, B, layer.output_size), dtype=np.float32)
    truth = answers(exact, x.astype(np.float64), d_output.astype(np.float64))
    for found, true in zip(answers(layer, x, d_output), truth, strict=True):
        assert np.sqrt(np.mean((found - true) ** 2) / np.mean(true**2)) < 5e-6
    benchmark.group = name.partition(" ")[0]
    benchmark(lambda: layer.forward(x).backward(d_output))
