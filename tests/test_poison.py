"""Every element of every result is written, and nothing is read before it is: new memory is filled with NaN first."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits
from problems import ALL_TIMESTEPS, KINDS, Problem
from test_memory import everything
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]


@pytest.fixture
def poison(monkeypatch):
    """A function that turns poison on: memory of the pool, and arrays of `np.empty`, begin as bytes of 0xFF."""
    real = np.empty

    def empty(*arguments, **options):
        array = real(*arguments, **options)
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    def turn_on():
        _core.poison(True)
        monkeypatch.setattr(np, "empty", empty)

    yield turn_on
    _core.poison(False)


def unwritten(array):
    """The number of elements that are still poison: a NaN that no arithmetic makes, or an integer of -1."""
    elements = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize)
    return int((elements == 0xFF).all(axis=1).sum())


def assert_written(poison, call):
    """The results, a dict of arrays, are the same bits with poison as without, and none of it is left in them."""
    expected = call()
    poison()
    found = call()
    assert_same_bits(found, expected)
    left = {name: unwritten(array) for name, array in found.items()}
    assert not any(left.values()), {name: count for name, count in left.items() if count}


def test_poison_is_there(poison):
    """Else the tests below prove nothing."""
    poison()
    for shape in [(3,), (100_000,)]:
        for new in (_core.empty, np.empty):
            assert unwritten(new(shape, np.dtype(np.float32))) == shape[0]


@pytest.mark.parametrize("memory", ["full", "states", 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("B", "H"), [(1, 6), (3, 17), (9, 20)])
def test_recurrent_layers(kind, memory, B, H, poison, threads):
    """Two layers, both directions; lengths, one of them zero; resets, truncation and clipping."""
    threads(2)
    problem = Problem(kind, T=7, B=B, H=H, L=2, D=2, dtype="float32")
    lengths = problem.lengths.copy()
    lengths[-1] = 0
    layer = problem.layer()

    def call():
        tape = layer.forward(problem.x, problem.state, lengths=lengths, resets=problem.resets, memory=memory)
        grads = tape.backward(**problem.loss, timesteps=ALL_TIMESTEPS, truncate=4, clip=0.3)
        states = tape.final_state if isinstance(tape.final_state, tuple) else (tape.final_state,)
        found = {f"final state {i}": state for i, state in enumerate(states)}
        if memory != 3:
            found["tape.hidden"] = tape.hidden
        if memory == "full":
            found["tape.gates"] = tape.gates
        return found | everything(grads) | {"output": tape.output, "clipped": grads.clipped.view(np.uint8)}

    assert_written(poison, call)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_flow(kind, poison):
    problem = Problem(kind, T=9, B=3, H=9, L=2, D=2, dtype="float32")
    lengths = [9, 0, 4]
    layer = problem.layer()

    def call():
        flow = tt.gradient_flow(layer, problem.x, lengths=lengths)
        return {
            "norm": flow.log10_norm,
            "per sequence": flow.log10_norm_per_sequence,
            "unit": flow.log10_unit,
        }

    assert_written(poison, call)


@pytest.mark.parametrize("option", ["zoneout", "weight_dropout", "dropout"])
@pytest.mark.parametrize("memory", ["full", "checkpoint"])
def test_masks(option, memory, poison):
    layer = tt.LSTM(5, 9, num_layers=2, seed=0, **{option: 0.4})
    problem = Problem("lstm", T=7, B=3, H=9, L=2, dtype="float32")
    masks = layer.forward(problem.x).masks

    def call():
        tape = layer.forward(problem.x, lengths=[7, 0, 3], masks=masks, output="last", memory=memory)
        grads = tape.backward(np.ones_like(tape.output), timesteps=ALL_TIMESTEPS)
        return everything(grads) | {"output": tape.output}

    assert_written(poison, call)


LAYERS = {
    "Linear": lambda **dtype: tt.Linear(12, 12, seed=0, **dtype),
    "MLP": lambda **dtype: tt.MLP(12, 20, "gelu", seed=0, **dtype),
    "LayerNorm": lambda **dtype: tt.LayerNorm(12, **dtype),
    "BatchNorm": lambda **dtype: tt.BatchNorm(12, **dtype),
    "SelfAttention": lambda **dtype: tt.SelfAttention(12, 3, seed=0, **dtype),
    "SelfAttention window": lambda **dtype: tt.SelfAttention(12, 3, window=5, seed=0, **dtype),
    "ReLU": lambda **dtype: tt.ReLU(),
    "GELU": lambda **dtype: tt.GELU(),
    "ResidualBlock": lambda **dtype: tt.ResidualBlock(
        tt.GRU(12, 12, seed=0, **dtype), 12, norm="post", branch_scale=0.5
    ),
    "Sequential": lambda **dtype: tt.Sequential(
        tt.Tanh(), tt.ResidualBlock(tt.MLP(12, 8, seed=0, **dtype), 12), tt.Sigmoid()
    ),
}


@pytest.mark.parametrize("lengths", [None, [70, 0, 1]], ids=["whole", "ragged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_other_layers(name, dtype, lengths, poison, threads):
    """70 steps fill several blocks of attention and of LayerNorm's rows, and the last ones in part."""
    threads(2)
    layer = tt.Sequential(LAYERS[name](dtype=dtype))  # passes the lengths to the layers that heed them
    x = np.random.default_rng(0).standard_normal((70, 3, 12)).astype(dtype)

    def call():
        tape = layer.forward(x, lengths=lengths)
        grads = tape.backward(np.ones_like(tape.output))
        return {"output": tape.output, "input": grads.input, **grads.parameters}

    assert_written(poison, call)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows(dtype, poison):
    """Embedding, losses, and the residual add with LayerNorm."""
    rng = np.random.default_rng(0)
    x, branch, d = (rng.standard_normal((70, 3, 12)).astype(dtype) for _ in range(3))
    weight, bias = np.ones(12, dtype), np.zeros(12, dtype)
    embedding = tt.Embedding(9, 12, dtype=dtype, seed=0)
    indices = rng.integers(0, 5, (70, 3))  # rows 5 to 8 do not occur
    targets = rng.integers(0, 12, 210)
    targets[3] = -100

    def call():
        total, normalised, saved = tt.add_layer_norm(x, branch, weight, bias, scale=0.5)
        found = dict(enumerate(tt.add_layer_norm_backward(d, d, saved)))
        found |= {"sum": total, "normalised": normalised}
        tape = embedding.forward(indices)
        found |= {"embedded": tape.output, **tape.backward(d).parameters}
        found["cross_entropy"] = tt.cross_entropy(x.reshape(210, 12), targets)[1]
        found["mse"] = tt.mse(x, branch)[1]
        return {str(name): array for name, array in found.items()}

    assert_written(poison, call)
