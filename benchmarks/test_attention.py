"""Self-attention with and without windows, for regressions: ``python -m pytest benchmarks --benchmark-only``.

The answer is checked against float64 before anything is timed.
"""

import numpy as np
import pytest

import throughtime as tt

SIZE, HEADS = 512, 8


def answers(layer, x, d_output):
    tape = layer.forward(x)
    grads = tape.backward(d_output)
    return tape.output, grads.input, *grads.parameters.values()


@pytest.mark.parametrize("window", [128, 256, 512, None])
@pytest.mark.parametrize("steps", [2048, 4096, 8192])
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_attention(benchmark, part, steps, window):
    layer = tt.SelfAttention(SIZE, HEADS, window=window, seed=0)
    random = np.random.default_rng(0)
    x, d_output = (random.standard_normal((steps, 1, SIZE), dtype=np.float32) for _ in range(2))
    exact = answers(layer.astype("float64"), x.astype(np.float64), d_output.astype(np.float64))
    for found, true in zip(answers(layer, x, d_output), exact, strict=True):
        assert np.sqrt(np.mean((found - true) ** 2) / np.mean(true**2)) < 2e-6
    tape = layer.forward(x)
    benchmark.group = f"{part}, window {window}"
    if part == "forward":
        benchmark(layer, x)
    else:
        benchmark(tape.backward, d_output)
