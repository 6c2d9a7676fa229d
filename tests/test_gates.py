"""`tape.gates`: every cell's gates after their activations, in the order of the weights, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, magnification, rounding_bound
from problems import KINDS, Problem, problems, reference_forward
from reference import NORMALISED


def gates_of(kind, direction, step):
    """(B, G*H) by the reference; the RNN's one gate is the result of its equation, before any zoneout."""
    if kind.startswith("rnn"):
        (h,), _ = reference.CELLS[kind].forward(direction.parameters, step.x, step.previous)
        return h
    saved = step.saved[1] if kind == "lstm_projected" else step.saved[0] if kind in NORMALISED else step.saved
    return np.concatenate(saved[:3] if kind.startswith("gru") else saved[0], axis=1)


def expected(problem, options=None):
    record = reference_forward(problem, {"masks": problem.masks, **(options or {})})
    gates = [
        [
            np.where(direction.schedule.active[t][:, None], gates_of(problem.kind, direction, step), 0)
            for t, step in enumerate(direction.steps)
        ]
        for direction in record.directions
    ]
    return np.array(gates), rounding_bound(problem.dtype, problem.terms) * magnification(record)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), padded=st.booleans())
def test_gates_are_those_of_the_reference(kind, data, padded):
    problem = data.draw(problems(kind, noise=True))
    options = {"lengths": problem.lengths} if padded else {}
    tape = problem.layer().forward(problem.x, masks=problem.masks, **options)
    gates, bound = expected(problem, options)
    assert_close(tape.gates, gates, bound, floor=1)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_in_float32_from_a_state_with_resets(kind):
    problem = Problem(kind, T=5, H=9, L=2, D=2, dtype="float32")
    options = {"state": problem.state, "resets": problem.resets}
    tape = problem.layer().forward(problem.x, **options)
    gates, bound = expected(problem, options)
    assert tape.gates.dtype == np.float32
    assert_close(tape.gates, gates, bound, floor=1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_sequences_there_are_no_gates(kind):
    problem = Problem(kind, T=5, B=1)
    gates = problem.layer().forward(problem.x[:, :0]).gates
    assert gates.shape == (1, 5, 0, problem.layer().architecture.gate_rows)


def test_a_gru_whose_z_is_open_says_so():
    """With a bias of 100 on z, sigmoid is 1 to the last bit; r and n stay between their limits."""
    gru = tt.GRU(3, 4, seed=0)
    gru.parameters["bias_ih_l0"][4:8] = 100
    r, z, n = np.split(gru.forward(np.ones((6, 2, 3), np.float32)).gates[0], 3, axis=-1)
    assert (z == 1).all()
    assert ((r > 0) & (r < 1)).all()
    assert (abs(n) < 1).all()


def test_gates_of_one_sequence_and_of_batch_first():
    """Time first in both, as for every array per timestep."""
    x = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    gates = tt.LSTM(3, 4, seed=0).forward(x).gates
    assert gates.shape == (1, 7, 2, 16)
    alone = tt.LSTM(3, 4, seed=0).forward(x[:, 0]).gates
    assert alone.shape == (1, 7, 16)
    assert_close(alone, gates[:, :, 0], rounding_bound("float32", 7 * 60))
    assert_same_bits(tt.LSTM(3, 4, batch_first=True, seed=0).forward(x.swapaxes(0, 1)).gates, gates)


def test_gates_are_a_copy():
    tape = tt.RNN(3, 4, seed=0).forward(np.ones((5, 2, 3), np.float32))
    before = tape.gates
    tape.gates[...] = 7
    assert_same_bits(tape.gates, before)
    assert_same_bits(tape.gates, tape.hidden)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 3e38])
def test_padding_has_no_gates(padding):
    x = np.full((5, 2, 3), 0.5, np.float32)
    x[2:, 1] = padding
    gates = tt.LSTM(3, 4, layer_norm=True, seed=0).forward(x, lengths=[5, 2]).gates
    assert np.isfinite(gates).all()
    assert not gates[:, 2:, 1].any()


@pytest.mark.parametrize("memory", ["states", "checkpoint", 2])
def test_other_memory_modes_say_that_gates_are_not_kept(memory):
    tape = tt.LSTM(3, 4, seed=0).forward(np.ones((5, 2, 3), np.float32), memory=memory)
    with pytest.raises(AttributeError, match=rf"tape\.gates was not kept.*memory={memory!r}.*memory='full'"):
        _ = tape.gates


def test_the_tape_of_a_layer_in_a_stack_has_gates():
    stack = tt.Sequential(tt.Linear(3, 4, seed=0), tt.ResidualBlock(tt.GRU(4, 4, seed=1), 4))
    tape = stack.forward(np.ones((5, 2, 3), np.float32))
    assert tape.layers[1].sublayer.gates.shape == (1, 5, 2, 12)


@pytest.mark.parametrize("cell", [tt.LSTM, tt.GRU, tt.RNN])
def test_gates_whose_normalised_products_squared_overflow(cell):
    """n = v / sqrt(var + eps) is at most the root of the number of values, and differs from that of a large v by n eps
    / (2 var); a gate of the first step differs no more."""
    layer = cell(8, 6, layer_norm=True, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((5, 3, 8)) * 1e3
    product = x[0] @ layer.parameters["weight_ih_l0"].T
    bound = 1e-5 / product.var(axis=1).min() / 2 * np.sqrt(product.shape[1])
    assert bound < 1e-9
    assert_close(layer.forward(x * 2.0**600).gates[:, 0], layer.forward(x).gates[:, 0], bound, floor=1)
