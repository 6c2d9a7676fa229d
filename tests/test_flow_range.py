"""`gradient_flow` beyond the range of floats: to 10^-1000 and 10^1000, with extreme differences between neighbours."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits, magnification, rounding_bound
from flow_problems import CHAINS, Chain, Weak
from flow_truth import (
    EPS,
    along,
    assert_logs_close,
    errors_left,
    exact,
    gradients,
    log10_of_squares,
    norms,
    on_last,
)

NAMES = ("log10_norm", "log10_norm_per_sequence", "log10_unit")
PROMISED = 1e-4  # relative error of a norm, for any exponent
DTYPES = ("float32", "float64")


def chain_bound(problem):
    """Ten roundings per step and layer: the chain's one product, the cell's operations, the sums. Nothing cancels, so
    this is the relative error of every unit."""
    bound = rounding_bound(problem.dtype, 10 * problem.L * problem.T)
    assert bound < PROMISED
    return bound


def check_chain(problem, d_output, modes=("full",), **options):
    """Every unit of every sequence against the rule of a chain; returns the last mode's flow."""
    expected = norms(problem.hidden(d_output))
    for memory in modes:
        flow = tt.gradient_flow(problem.layer(), problem.x, d_output, state=problem.state, memory=memory, **options)
        for name in NAMES:
            what = f"{name} with memory={memory!r}"
            assert_logs_close(getattr(flow, name), getattr(expected, name), chain_bound(problem), what=what)
    return flow


# Against numbers without a range


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_weights_down_to_1e_minus_1000(kind, dtype):
    """The roundings of a step are an error of the size of its Jacobian, which later steps carry on; each is 12 units:
    of a shut gate's pre-activation, whose error is its sigmoid's relative error. Six units, because three normalised
    ones have only one direction left, and gradients that cancel."""
    problem = Weak(kind, T=220, B=1, I=2, H=6, dtype=dtype)
    layer = problem.layer()
    flow = tt.gradient_flow(layer, problem.x, state=problem.state)
    record = along(problem, layer, {"state": problem.state})
    expected = norms(gradients(record, exact(on_last(problem))).hidden)
    bound = rounding_bound(dtype, problem.terms / problem.T + 12**2) * magnification(record)
    bound = np.minimum(bound * errors_left(record) + bound, PROMISED)
    assert -np.inf < expected.log10_norm[0, 0] < -1000
    assert_logs_close(flow.log10_norm, expected.log10_norm, bound, what="log10_norm")
    assert_logs_close(flow.log10_norm_per_sequence[:, :, 0], expected.log10_norm, bound, what="log10_norm_per_sequence")
    whole = np.broadcast_to(expected.log10_norm[:, :, None], expected.log10_unit.shape)
    assert_logs_close(flow.log10_unit, expected.log10_unit, bound[:, None], whole, "log10_unit")


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_directions_bring_gradients_of_utterly_different_size_to_the_layer_below(kind, dtype):
    """Forward they fall by 10 per step from a loss of 1 at the end, in reverse by 2 from one of 1e-30 at the start,
    until one is 10^-150 of the other. All numbers are positive, so each unit's error is that of its roundings."""
    problem = Chain(kind, T=260, B=2, I=1, H=2, L=2, D=2, dtype=dtype, factors=(0.1,))
    for name, array in problem.parameters.items():
        if name in ("weight_hh_l1_reverse", "weight_hh_l0_reverse"):
            array[...] *= np.asarray(5, dtype)
    if kind == "rnn_relu":  # its bias keeps h at 1
        for layer in (0, 1):
            problem.parameters[f"bias_ih_l{layer}_reverse"] -= 4 * problem.weights[0]
    d_output = np.zeros((problem.T, problem.B, 2 * problem.width), dtype)
    d_output[-1, :, : problem.width] = 1
    d_output[0, :, problem.width :] = 1e-30
    options = {"state": problem.state}
    flow = tt.gradient_flow(problem.layer(), problem.x, d_output, **options)
    record = along(problem, problem.layer(), options)
    expected = norms(gradients(record, exact(d_output)).hidden)
    assert np.ptp(expected.log10_norm[2:, 1:-1], axis=0).max() > 150
    for name in NAMES:
        assert_logs_close(getattr(flow, name), getattr(expected, name), chain_bound(problem), what=name)


# Against the rule of a chain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("kind", CHAINS)
def test_down_to_1e_minus_1000_and_up_to_1e_1000(kind, factor, dtype):
    """In every memory mode, in adjacent sequences of 1004, 500, 3, 1 and 0 steps."""
    problem = Chain(kind, T=1004, B=5, I=1, H=2, dtype=dtype, factors=(factor,))
    lengths = np.array([500, 1004, 0, 3, 1])
    d_output = on_last(problem, lengths)
    flow = check_chain(problem, d_output, ("states", "checkpoint", 100, "full"), lengths=lengths)
    assert np.abs(flow.log10_norm_per_sequence[0, 0, 1]) > 1000
    for name in NAMES:
        last = tt.gradient_flow(problem.layer(), problem.x, state=problem.state, lengths=lengths)
        assert_same_bits(getattr(last, name), getattr(flow, name))


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype):
    """Halved and doubled at every step, for 3400 steps: only the logarithm rounds."""
    for factor in (0.5, 2.0):
        problem = Chain("rnn_tanh", T=3400, B=1, I=1, H=1, dtype=dtype, factors=(factor,))
        flow = tt.gradient_flow(problem.layer(), problem.x, state=problem.state)
        expected = np.arange(3399, -1, -1)[None] * np.log10(factor)
        assert_logs_close(flow.log10_norm, expected, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CHAINS)
def test_units_of_very_different_size_in_one_sequence(kind, dtype):
    """One unit grows by 10 per step, one stays, one falls by 10. Each is accurate as far below the largest as the
    type's range, with 2^8 to spare; smaller ones may be lost. Its logarithm is the sum of that of the sequence's power
    of two and that of the rest: as accurate as either."""
    problem = Chain(kind, T=301, B=2, I=1, H=8, dtype=dtype, factors=(10.0, 1.0, 0.1))
    d_output = on_last(problem)
    flow, expected = tt.gradient_flow(problem.layer(), problem.x, state=problem.state), norms(problem.hidden(d_output))
    for name in ("log10_norm", "log10_norm_per_sequence"):
        assert_logs_close(getattr(flow, name), getattr(expected, name), chain_bound(problem), what=name)
    smallest = np.log10(np.finfo(dtype).tiny * 256.0)
    floor = expected.log10_unit.max(axis=2, keepdims=True) + smallest
    lost = expected.log10_unit < floor
    assert 0.01 < lost.mean() < 0.9
    assert np.all((flow.log10_unit < floor)[lost])
    bound = chain_bound(problem) + 5 * EPS * np.max(np.abs(expected.log10_unit))
    assert_logs_close(flow.log10_unit[~lost], expected.log10_unit[~lost], bound, what="log10_unit")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CHAINS)
def test_units_of_utterly_different_size_in_different_sequences(kind, dtype):
    """Each sequence has its loss on a different unit, so that no sequence has both large and small ones."""
    problem = Chain(kind, T=301, B=3, I=1, H=6, dtype=dtype, factors=(10.0, 1.0, 0.1))
    d_output = np.zeros((problem.T, problem.B, problem.width), dtype)
    d_output[-1, range(3), range(3)] = 1
    flow = check_chain(problem, d_output)
    assert np.ptp(flow.log10_unit[0, 0, :3]) > 500


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("kind", CHAINS)
def test_a_loss_that_arrives_where_the_gradient_has_left_the_range(kind, factor, dtype):
    """It exceeds a vanished gradient, and is lost in an exploded one; then both continue together. From the largest
    float to the smallest normal one, and from there to zero."""
    problem = Chain(kind, T=500, B=4, I=1, H=2, dtype=dtype, factors=(factor,))
    tiny, huge = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    d_output = np.zeros((problem.T, problem.B, problem.width), dtype)
    for step, sizes in {499: (1, tiny, huge, huge), 350: (1, huge, tiny, 0), 349: (1, 1, 1, 0)}.items():
        d_output[step] = np.array(sizes, dtype)[:, None]
    d_output[100] = d_output[350]
    check_chain(problem, d_output)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("kind", CHAINS)
def test_losses_at_every_step_from_1e_minus_30_to_1e30(kind, factor, dtype):
    """In any order, so that a vanishing or exploding gradient meets one of any size; no loss at most steps."""
    problem = Chain(kind, T=200, B=5, I=1, H=4, dtype=dtype, factors=(factor,))
    rng = np.random.default_rng(0)
    sizes = 10 ** rng.uniform(-30, 30, (problem.T, problem.B, 1)) * (rng.random((problem.T, problem.B, 1)) < 0.3)
    check_chain(problem, (sizes * rng.uniform(0.5, 2, (problem.T, problem.B, problem.width))).astype(dtype))


def test_backward_itself_is_zero_where_the_flow_is_not():
    """The purpose of the flow: float32 ends at 1e-38."""
    problem = Chain("lstm", T=1004, B=1, I=1, H=3, dtype="float32")
    layer = problem.layer()
    hidden = layer.forward(problem.x).backward(on_last(problem), timesteps=("hidden",)).hidden
    assert not hidden[0, 0].any()
    assert tt.gradient_flow(layer, problem.x).log10_norm[0, 0] < -1000


@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_warnings_nor_nan(kind, dtype):
    """With vanishing and absent gradients in one batch; a warning would be an error here."""
    problem = Weak(kind, T=300, B=3, I=2, H=5, dtype=dtype)
    flow = tt.gradient_flow(problem.layer(), problem.x, lengths=[300, 0, 1])
    for name in NAMES:
        array = getattr(flow, name)
        assert not np.isnan(array).any()
        assert not np.isposinf(array).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_over_the_batch_are_those_of_its_sequences_and_units(kind, dtype):
    """All three add up squares of the same gradients; the batch's is at most sqrt(B) times its largest sequence's."""
    problem = Weak(kind, T=100, B=4, I=2, H=5, L=2, D=2, dtype=dtype)
    flow = tt.gradient_flow(problem.layer(), problem.x, lengths=[100, 60, 7, 0])
    bound = rounding_bound(dtype, problem.B * problem.H)
    assert_logs_close(flow.log10_norm, log10_of_squares(flow.log10_norm_per_sequence, 2), bound)
    assert_logs_close(flow.log10_norm, log10_of_squares(flow.log10_unit, 2), bound)
