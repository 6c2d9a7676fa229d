"""The CUDA backend's recurrence as one persistent launch, in clusters and in cooperative grids."""

from __future__ import annotations

import numpy as np
import pytest

from comparison import assert_close, assert_same_bits, magnification
from cuda_side import BITS, KERNELS, run_cuda
from problems import GATES, Problem, reference_forward, reference_results, run_reference
from test_cuda_kernels import OfType, options_of, problem_of, ragged
from test_exact import SmallIntegers
from test_lengths import poisoned
from test_precision import LOSS, PRECISIONS

MODES = ("cluster", "grid")
# The cells with two matrices and two biases, except the one with a second product.
KINDS = [kind for kind in GATES if len(Problem(kind).shapes) == 4 and kind != "gru_original"]

pytestmark = pytest.mark.parametrize("mode", MODES)


def check(problem, mode, options=None, asked=None, loss=None, terms=3, type_="float32", **of_tape):
    """The backend and the reference agree in all results except norms, which are computed after the recurrence."""
    options = options_of(problem, options)
    found = run_cuda(problem, options, asked, loss, mode=mode, terms=terms, type_=type_, **of_tape)
    del found["parameter_norms"]
    record = reference_forward(problem, options)
    expected = reference_results(problem, record, asked)
    bound = bound_of(problem, terms, type_)
    assert bound < 0.3
    assert_close(found, {name: expected[name] for name in found}, bound * magnification(record))


def bound_of(problem, terms, type_):
    """If numbers or factors of products have few bits, their roundings dominate. With one bfloat16 number there are
    eight per step: both factors of x, h and two deltas. Those of weights are the same at every step, so they grow with
    T, not with its root."""
    if type_ != "float32":
        return problem.bound_of(KERNELS.saved_shape(problem.layer().architecture.cell, problem.H)[0])
    return problem.bound * LOSS[PRECISIONS[3 - terms]] if terms > 1 else 10 * np.sqrt(8) * problem.T * 2.0**-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_every_precision_is_within_its_bound(kind, terms, mode):
    """With units and sequences that do not fill a tile."""
    if (kind, terms) == ("rnn_relu", 1):
        pytest.skip("a derivative that jumps at zero has no bound where products are coarse")
    check(problem_of(kind, T=3, B=9, H=37, D=2), mode, terms=terms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["full", "states", 2])
def test_lengths_resets_and_nan_in_the_padding(kind, memory, mode):
    problem = problem_of(kind, D=2, T=7, B=4, H=18, seed=5)
    x, loss = poisoned(problem)
    check(problem, mode, ragged(problem), loss=loss, memory=memory, x=x, chunk=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncate", [1, 3])
def test_truncation(kind, truncate, mode):
    problem = problem_of(kind, D=2, T=7, H=18)
    check(problem, mode, ragged(problem), {"truncate": truncate}, chunk=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [{"multiprocessors": 3}, {"multiprocessors": 2, "type_": "bfloat16"}])
def test_more_sequences_than_blocks_for_them(kind, limits, mode):
    """Blocks then process several tiles of sequences, and in 16 bits two tiles of units as well."""
    type_ = limits.get("type_", "float32")
    problem = OfType(type_, kind, T=3, B=19, I=3, H=45, D=1)
    if type_ != "float32" and kind == "rnn_relu":
        pytest.skip("a derivative that jumps at zero has no bound where numbers are coarse")
    check(problem, mode, ragged(problem), **limits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared_bytes", [227 << 10, 130 << 10, 80 << 10])
def test_weights_in_registers_in_shared_memory_and_beyond(kind, shared_bytes, mode):
    """Wide enough that a warp has more rounds than fit in registers; a cluster of 16 blocks is not."""
    problem = problem_of(kind, T=2, B=2, I=2, H=250 if mode == "cluster" else 440)
    check(problem, mode, shared_bytes=shared_bytes)


@pytest.mark.parametrize("type_", BITS)
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(3, 2, 9, 17), (2, 9, 33, 40), (3, 3, 2, 5)])
def test_small_integers_are_exact(type_, terms, sizes, mode):
    T, B, I, H = sizes  # noqa: E741
    problem = SmallIntegers(8 if terms == 1 else BITS[type_], T=T, B=B, I=I, H=H, D=2)
    options = {"state": problem.state, "lengths": problem.lengths}
    expected = run_reference(problem, options)
    found = run_cuda(problem, options, type_=type_, terms=terms, mode=mode)
    del found["parameter_norms"]  # they are not integers
    assert_close(found, {name: expected[name] for name in found}, 0)


@pytest.mark.parametrize("type_", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rnn_relu"])
def test_sixteen_bits_agree_within_their_roundings(kind, type_, mode):
    problem = OfType(type_, kind, T=3, B=3, I=5, H=23, D=2)
    check(problem, mode, ragged(problem), type_=type_)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 3])
def test_every_run_gives_the_same_bits(kind, terms, mode):
    problem = problem_of(kind, T=3, B=9, H=40)
    options = options_of(problem, ragged(problem))
    first, *others = (run_cuda(problem, options, mode=mode, terms=terms) for _ in range(4))
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_", BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_goes_round(kind, type_, value, mode):
    """A NaN must not pass for an unwritten word (a deadlock), and the other sequence must not see it."""
    problem = problem_of(kind, T=4, B=2, H=37)
    d_output = problem.d_output.copy()
    d_output[-1, 0] = value
    found = run_cuda(problem, options_of(problem), loss=problem.loss | {"d_output": d_output}, type_=type_, mode=mode)
    assert not np.isfinite(found["hidden"][0, :, 0]).any()
    assert np.isfinite(found["hidden"][0, :, 1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_", BITS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_goes_round(kind, type_, value, mode):
    """A column of them reaches all h, and the gradient of the unit that it multiplies, even if deltas are zero."""
    problem = problem_of(kind, T=4, B=2, H=37)
    weight = problem.parameters["weight_hh_l0"].copy()
    weight[:, 5] = value
    object.__setattr__(problem, "parameters", problem.parameters | {"weight_hh_l0": weight})
    found = run_cuda(problem, options_of(problem), type_=type_, mode=mode)
    assert np.isinf(value) or np.isnan(found["output"]).all()
    assert not np.isfinite(found["hidden"][0, :-1, :, 5]).any()


@pytest.mark.parametrize(
    ("kind", "options", "asked"),
    [("lstm", {"zoneout": 0.2}, {}), ("gru", {}, {"clip": 1.0}), ("lstm_peephole", {}, {})],
)
def test_what_the_persistent_kernels_do_not_have_is_an_error(kind, options, asked, mode):
    with pytest.raises(ValueError, match=f"mode: no persistent kernel for {kind}"):
        run_cuda(problem_of(kind, **options), {}, asked, mode=mode)
