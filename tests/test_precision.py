"""The precision of matrix products: float32's own, and the guarantees of three, two and one bfloat16 terms."""

from __future__ import annotations

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits
from problems import ALL_TIMESTEPS, FORMS, Problem, results, run, run_reference
from test_exact import USES_AMX, SmallIntegers, check_equal
from test_process import run_python
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]

PRECISIONS = ("highest", "high", "medium")
HERE = tt.show_config("dicts")["matmul precisions"]
on_amx = pytest.mark.skipif(not USES_AMX, reason="the AMX kernels are not in use")
on_avx512_bf16 = pytest.mark.skipif(
    "avx512_bf16" not in _core.bfloat16_terms(), reason="no AVX512_BF16, or its kernels are not in use"
)

# The largest error of a product, relative to itself, in units of float32's roundoff 2^-24. Three terms represent a
# float, and the dropped products are below 3 * 2^-26. Of two terms the second is at most 2^-9 of the number and the
# rest at most 2^-18: dropped are the product of the second terms and both rests. With one term the rest is 2^-9, twice.
LOSS = {"highest": 1, "high": 3 * 2**6, "medium": 2 * 2**15}
# For "medium" such a worst-case bound per step exceeds 1 and is useless. Roundings behave as independent: the relative
# error of a sum is at most that of its terms, twice 2^-9; the bound is ten times that, for the constants left out.
ROUNDED = 10 * 2**-8


@pytest.fixture(params=PRECISIONS)
def precision(request):
    tt.set_matmul_precision(request.param)
    yield request.param
    tt.set_matmul_precision("highest")


@pytest.fixture
def medium():
    tt.set_matmul_precision("medium")
    yield
    tt.set_matmul_precision("highest")


def test_the_default_is_highest():
    assert tt.get_matmul_precision() == "highest"


def test_it_is_what_was_set(precision):
    assert tt.get_matmul_precision() == precision


@pytest.mark.parametrize("wrong", ["low", "HIGH", "", None, 3])
def test_another_word_is_an_error_that_names_those_there_are(wrong):
    with pytest.raises((TypeError, ValueError), match=r"precision.*'highest', 'high'.*'medium'"):
        tt.set_matmul_precision(wrong)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("B", [1, 9, 33])
def test_every_precision_is_within_its_bound(kind, B, precision):
    """Directions, layers, lengths, resets. A precision without products of its own is within float32's bound."""
    problem = Problem(kind, T=6, B=B, I=37, H=50, L=2, D=2, dtype="float32", seed=B)
    options = {"state": problem.state, "lengths": problem.lengths, "resets": problem.resets}
    ours = run(problem.layer(), problem.x, options, None, problem.loss)
    bound = problem.bound * LOSS[precision if precision in HERE else "highest"]
    if kind != "rnn_relu":  # its units near zero may change sides; integers below are exact
        bound = min(bound, ROUNDED)
    expected = run_reference(problem, options)
    for found in (ours, expected):
        del found["parameter_norms"]
    assert_close(ours, expected, bound)


@pytest.mark.parametrize("kind", FORMS)
def test_float64_has_one_precision(kind, precision):
    problem = Problem(kind, T=6, B=9, dtype="float64")
    tape = problem.layer().forward(problem.x)
    found = results(tape, tape.backward(problem.d_output, timesteps=ALL_TIMESTEPS))
    tt.set_matmul_precision("highest")
    tape = problem.layer().forward(problem.x)
    assert_same_bits(found, results(tape, tape.backward(problem.d_output, timesteps=ALL_TIMESTEPS)))


@on_amx
def test_three_terms_hold_every_bit_of_a_float():
    """Integers of 24 bits times powers of two, one per sum: exact for any terms."""
    rng = np.random.default_rng(0)
    layer = tt.RNN(40, 40, nonlinearity="relu", bias=False)
    layer.parameters["weight_ih_l0"][...] = np.diag(2.0 ** rng.integers(-20, 20, 40))
    layer.parameters["weight_hh_l0"][...] = 0
    x = rng.integers(0, 2**24, (3, 9, 40)).astype(np.float32)
    assert np.array_equal(layer.forward(x).output, x * np.diag(layer.parameters["weight_ih_l0"]))


@on_avx512_bf16
@pytest.mark.parametrize(("T", "B"), [(2, 2), (3, 1), (3, 13), (2, 7), (1, 1), (1, 2)])
@pytest.mark.parametrize(("I", "H"), [(5, 7), (9, 17), (33, 40), (65, 33), (97, 66)])
def test_small_integers_are_exact_in_pairs(T, B, I, H, medium):  # noqa: E741
    """If one bfloat16 number represents them: packing, tiles, tails and odd depths of all products."""
    problem = SmallIntegers(8, T=T, B=B, I=I, H=H, D=2)
    check_equal(problem)
    check_equal(problem, {"lengths": problem.lengths})


@on_avx512_bf16
@pytest.mark.parametrize("B", [1, 3, 33])
def test_the_fast_products_are_used(B, medium):
    """Forward and backward differ from those of "highest"."""
    problem = Problem("lstm", T=6, B=B, I=37, H=50, dtype="float32")
    output = problem.layer().forward(problem.x).output
    tt.set_matmul_precision("highest")
    tape = problem.layer().forward(problem.x)
    assert not np.array_equal(output, tape.output)
    expected = tape.backward(problem.d_output)
    tt.set_matmul_precision("medium")
    found = tape.backward(problem.d_output)
    assert not np.array_equal(found.input, expected.input)
    assert not np.array_equal(found.parameters["weight_hh_l0"], expected.parameters["weight_hh_l0"])


@on_avx512_bf16
@pytest.mark.skipif("amx" not in dict(_core.levels()), reason="the AMX kernels are not compiled in")
def test_one_sequence_has_the_same_bits_with_amx_as_without():
    """It uses no tiles; on a processor without AMX, the first one would end the process."""
    script = """
import numpy as np, throughtime as tt
from throughtime import _core
_core.assume_level({!r})
tt.set_matmul_precision("medium")
x = np.linspace(-1, 1, 5 * 33, dtype=np.float32).reshape(5, 1, 33)
grads = tt.LSTM(33, 50, seed=0).forward(x).backward(np.ones((5, 1, 50), np.float32))
print(grads.input.tobytes().hex(), grads.parameters["weight_hh_l0"].tobytes().hex())
"""
    without, with_amx = (run_python(script.format(level)) for level in ("v4", "amx"))
    assert without == with_amx


@on_avx512_bf16
def test_long_sums_are_cut(medium):
    """After 4096 products, with at most that many roundings; one sum of these 100,000 would be off by 7e-4."""
    B, number = 100_000, 1 + 13 * 2**-7
    layer = tt.RNN(1, 1, nonlinearity="relu", bias=False)
    for name in layer.parameters:
        layer.parameters[name][...] = 1
    numbers = np.full((1, B, 1), number, np.float32)
    gradient = layer.forward(numbers).backward(numbers).parameters["weight_ih_l0"].item()
    assert abs(gradient / (B * number**2) - 1) < 4096 * 2**-24


@pytest.mark.parametrize("precision", HERE, indirect=True)
def test_the_largest_floats_stay_finite(precision):
    layer = tt.RNN(3, 4, nonlinearity="relu", bias=False)
    layer.parameters["weight_ih_l0"][...] = 0.25
    layer.parameters["weight_hh_l0"][...] = 0
    x = np.full((2, 16, 3), np.finfo(np.float32).max)
    output = layer.forward(x).output
    assert np.allclose(output / x.max(), 0.75, rtol=2**-7)


@pytest.mark.parametrize("precision", HERE, indirect=True)
@pytest.mark.parametrize("bad", [np.inf, np.nan, *np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)])
def test_what_is_not_finite_stays_in_its_sequence_and_after_it(bad, precision):
    if bad == np.inf and (precision == "medium" or not USES_AMX):
        pytest.skip("one term of an infinity is that infinity, and its tanh is finite")
    layer = tt.GRU(4, 6, seed=0)
    x = np.random.default_rng(0).standard_normal((7, 16, 4), np.float32)
    x[3, 5, 1] = bad
    output = layer.forward(x).output
    good = np.isfinite(output).all(axis=2)
    assert not good[3:, 5].any()
    good[3:, 5] = True
    assert good.all()


@pytest.mark.parametrize("precision", HERE, indirect=True)
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("B", [1, 20, 70])
def test_a_precision_gives_the_same_bits_for_any_threads_and_split(kind, B, precision, threads, free):
    engine = "amx" if USES_AMX else ""
    problem = Problem(kind, T=9, B=B, I=21, H=70, dtype="float32")
    found = []
    for split, count in (("", 1), ("sequences", 2), ("sequences", 3), ("units", 2), ("units", 5)):
        _core.force(engine=engine, split=split, chunk=4)
        threads(count)
        found.append(run(problem.layer(), problem.x, {"state": problem.state}, None, problem.loss))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("engine", ["one_row", "many_rows"])
def test_every_engine_serves_every_number_of_sequences(kind, engine, free):
    for B in (1, 2, 13):
        problem = Problem(kind, T=7, B=B, H=40, dtype="float32")
        for chunk in (1, 3):
            _core.force(engine=engine, chunk=chunk)
            ours = run(problem.layer(), problem.x, {"state": problem.state}, None, problem.loss)
            expected = run_reference(problem, {"state": problem.state})
            for found in (ours, expected):
                del found["parameter_norms"]
            assert_close(ours, expected, problem.bound)


@on_amx
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("B", "memory"), [(1, "full"), (1, "states"), (3, "full"), (5, "states")])
def test_few_sequences_with_the_products_of_a_chunk_on_tiles(kind, B, memory, free):
    """The recurrence runs on vector registers; at least 64 rows and 256 gates."""
    _core.force(engine="one_row" if B == 1 else "many_rows", chunk=30)
    problem = Problem(kind, T=70, B=B, I=40, H=256 if kind.startswith("rnn") else 100, dtype="float32")
    options = {"state": problem.state, "lengths": problem.lengths}
    ours = run(problem.layer(), problem.x, options | {"memory": memory}, None, problem.loss)
    expected = run_reference(problem, options)
    for found in (ours, expected):
        del found["parameter_norms"]
    assert_close(ours, expected, problem.bound)
