"""The CUDA backend's recurrence step by step, through its bindings; without a GPU, on the stand-in."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest

from comparison import assert_close, assert_norms_close, assert_same_bits, magnification, rounding_bound
from cuda_side import BITS, KERNELS, calls_of, each, on_host, placed, rounded, run_cuda, way
from problems import (
    GATE_TIMESTEPS,
    KINDS,
    RELUS,
    STATES,
    Problem,
    reference_forward,
    reference_results,
    run_reference,
)
from reference import NORMALISED
from test_exact import SmallIntegers
from test_lengths import poisoned

STEPWISE = {"mode": "stepwise"}


def problem_of(kind, **sizes):
    return Problem(kind, **{"T": 6, "B": 3, "I": 5, "H": 7, "dtype": "float32", **sizes})


def options_of(problem, options=None):
    return {"state": problem.state, **({"masks": problem.masks} if problem.masks else {}), **(options or {})}


def check(problem, options=None, asked=None, loss=None, **of_tape):
    """The backend and the reference agree in all results, in float32; only the backend gets `loss`."""
    options = options_of(problem, options)
    found = run_cuda(problem, options, asked, loss, **STEPWISE, **of_tape)
    record = reference_forward(problem, options)
    expected = reference_results(problem, record, asked)
    bound = rounding_bound("float32", problem.terms) * magnification(record)
    norms = expected.pop("parameter_norms")
    assert_norms_close(found.pop("parameter_norms"), norms, problem, expected, bound, record)
    for name in expected.keys() - found.keys():
        assert of_tape.get("memory", "full") not in ("full", "states")
        assert name.startswith("tape."), name
        del expected[name]
    assert_close(found, expected, bound, floor=np.max(np.abs(expected["hidden"]), initial=0))


def ragged(problem):
    return {"lengths": problem.lengths, "resets": problem.resets}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [{"D": 2}, {"T": 1, "B": 1, "I": 1, "H": 3}, {"T": 3, "B": 2, "H": 33, "bias": False}]
)
def test_every_cell_agrees_with_the_reference(kind, sizes):
    check(problem_of(kind, **sizes))


@pytest.mark.parametrize("kind", ["lstm", "lstm_layer_norm", "gru_layer_norm", "lstm_projected"])
def test_more_units_than_a_block_has_threads(kind):
    check(problem_of(kind, T=2, B=2, H=261))


@pytest.mark.parametrize("memory", ["full", "states", "checkpoint", 2])
@pytest.mark.parametrize("given", [("lengths",), ("resets",), ("lengths", "resets")])
def test_lengths_resets_and_nan_in_the_padding(kind, memory, given):
    problem = problem_of(kind, D=2, T=7, B=4, seed=5)
    x, loss = poisoned(problem) if "lengths" in given else (problem.x, problem.loss)
    options = {name: getattr(problem, name) for name in given}
    check(problem, options, loss=loss, memory=memory, x=x, chunk=3)


@pytest.mark.parametrize("memory", ["states", "checkpoint", 1, 4])
@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_every_memory_mode_agrees_with_the_reference(kind, memory, zoneout):
    """In one chunk, and in windows of several chunks."""
    check(problem_of(kind, D=2, T=9, zoneout=zoneout), memory=memory, chunk=0 if zoneout else 2)


def test_inference_gives_the_output_and_the_final_state(kind):
    problem = problem_of(kind, D=2, T=9)
    options = {"state": problem.state, "lengths": problem.lengths}
    layer = problem.layer().to("cuda")
    with way(chunk=4, **STEPWISE):
        output, final = on_host(layer(**placed({"x": problem.x, **options}, "float32")))
    expected = run_reference(problem, options)
    assert_close((output, final), (expected["output"], expected["final_state"]), problem.bound)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_of_any_length_give_the_same_bits(kind, chunk):
    """All results except sums over steps, whose order differs. On a GPU the order of every sum may differ, because
    cuBLAS chooses a kernel by the number of rows; there each chunk length agrees with the reference."""
    problem = problem_of(kind, D=2, T=11, B=2)
    options = options_of(problem, ragged(problem))
    for memory in ("full", "states"):
        if not KERNELS.is_stand_in:
            check(problem, ragged(problem), memory=memory, chunk=chunk)
            continue
        found, whole = (run_cuda(problem, options, memory=memory, chunk=n, **STEPWISE) for n in (chunk, 0))
        for results in (found, whole):
            results["sums"] = results.pop("parameters")
        assert_close(found.pop("sums"), whole.pop("sums"), problem.bound)
        assert_same_bits(found, whole)


@pytest.mark.parametrize("asked", [{"clip": 0.8}, {"truncate": 3}, {"clip": 1.5, "truncate": 2}])
def test_clip_and_truncate(kind, asked):
    problem = problem_of(kind, D=2, T=8)
    check(problem, ragged(problem), asked, chunk=3)
    clipped = run_cuda(problem, options_of(problem), asked, **STEPWISE).get("clipped")
    assert clipped is None or (clipped.any() and not clipped.all())


@pytest.mark.parametrize("expected", [False, True])
def test_zoneout_and_dropped_weights(kind, expected):
    """With masks, and as the expectation without them."""
    zoneout = (0.3, 0.2) if STATES[kind] == 2 else 0.3
    problem = problem_of(kind, D=2, zoneout=zoneout, weight_dropout=0.0 if expected else 0.2)
    check(problem, {**ragged(problem), **({"masks": {}} if expected else {})})


def test_arrays_whose_batch_comes_first(kind):
    problem = problem_of(kind, D=2)
    check(problem, batch_first=True, chunk=4)
    check(problem, ragged(problem), batch_first=True)


FILLED = {"d_input", "d_parameters", "norms", "d_initial_state", "d_states", *(f"d_{name}" for name in GATE_TIMESTEPS)}


@pytest.mark.parametrize("wanted", ["d_input", "d_parameters", "d_initial_state"])
def test_only_what_is_wanted(kind, wanted, monkeypatch):
    """With one incoming gradient at a time: the same bits as if all results are requested."""
    problem = problem_of(kind, D=2)
    _, calls = calls_of(problem, options_of(problem), monkeypatch)

    def backward(loss, unwanted):
        for given, gradients in calls:
            absent = dict.fromkeys((problem.loss.keys() - {loss}) | unwanted)
            KERNELS.backward(problem.layer().architecture.cell, given, gradients | absent)
        return [each(read, gradients[wanted], np.ndarray) for _, gradients in calls]

    for loss in problem.loss:
        for found, expected in zip(backward(loss, FILLED - {wanted}), backward(loss, set()), strict=True):
            assert_same_bits(found, expected)


def read(view):
    """A copy of a device array."""
    host = np.empty_like(view)
    KERNELS.copy_bytes(host, view, 0)
    KERNELS.synchronise(0)
    return host


def test_infinite_weights_reach_nothing_that_takes_no_part(kind):
    """0 * inf is NaN: rows to which no step contributes must keep their values."""
    problem = problem_of(kind, seed=1)
    weights = {
        name: np.full_like(w, np.inf)
        for name, w in problem.parameters.items()
        if name in ("weight_ih_l0", "weight_hh_l0")
    }
    object.__setattr__(problem, "parameters", problem.parameters | weights)
    lengths = np.array([0, 2, problem.T])
    found = run_cuda(problem, {"state": problem.state, "lengths": lengths}, **STEPWISE)
    for b, length in enumerate(lengths[:2]):
        assert not found["input"][length:, b].any()
        assert not found["hidden"][0, length:, b].any()
    initial, final = (
        value if isinstance(value, tuple) else (value,) for value in (found["initial_state"], problem.d_final_state)
    )
    for ours, given in zip(initial, final, strict=True):
        assert_same_bits(ours[:, 0], given[:, 0])


@pytest.mark.parametrize("type_", BITS)
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(2, 2, 5, 7), (3, 2, 9, 17), (2, 2, 33, 40), (3, 3, 2, 5)])
def test_small_integers_are_exact(type_, terms, sizes):
    """In every type; and in float32 with products of one bfloat16 number, which represents these integers."""
    T, B, I, H = sizes  # noqa: E741
    problem = SmallIntegers(8 if terms == 1 else BITS[type_], T=T, B=B, I=I, H=H, D=2)
    options = {"state": problem.state, "lengths": problem.lengths}
    expected = run_reference(problem, options)
    assert all(np.any(expected["parameters"][name]) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"))
    for memory in ("full", "states", 2):
        found = run_cuda(problem, options, type_=type_, terms=terms, memory=memory, **STEPWISE)
        del found["parameter_norms"]  # they are not integers
        assert_close(found, {name: expected[name] for name in found}, 0)


class Ones(Problem):
    """A relu RNN in which x, every h and every delta of a loss of ones are ones."""

    def random(self, what, shape):
        return np.ones(shape, self.dtype)

    @cached_property
    def parameters(self):
        return {name: np.full(shape, "bias_ih" in name, self.dtype) for name, shape in self.shapes.items()}


@pytest.mark.parametrize("sizes", [{"I": 3, "H": 33}, {"I": 16, "H": 64}])
@pytest.mark.parametrize(
    ("type_", "terms", "T", "B"),
    [
        ("float32", 3, 7, 589),
        ("float32", 2, 7, 589),
        ("float32", 1, 7, 589),
        ("bfloat16", 1, 17, 240),
        ("float16", 1, 23, 89),
    ],
)
def test_a_skinny_deep_product_counts_its_rows(type_, terms, T, B, sizes):
    """With thousands of rows, not a multiple of 32, and a count that the type represents."""
    problem = Ones("rnn_relu", T=T, B=B, dtype="float32", **sizes)
    layer = problem.layer().to("cuda", dtype=type_)
    x, state, d_output = placed((problem.x, problem.state, problem.d_output), type_)
    with way(terms, **STEPWISE):
        found = on_host(layer.forward(x, state).backward(d_output, timesteps=()).parameters)
    assert_close(found, {name: np.full(shape, np.float32(T * B)) for name, shape in problem.shapes.items()}, 0)


class BetweenOnes(Problem):
    """A relu RNN of one step whose numbers are all 1 + 2^-10; the weights are diagonal."""

    def random(self, what, shape):
        return np.full(shape, 1 + 2**-10, self.dtype)

    @cached_property
    def parameters(self):
        of = {name: np.zeros(shape, self.dtype) for name, shape in self.shapes.items()}
        return of | {"weight_ih_l0": self.random("weight_ih_l0", self.I) * np.eye(self.I, dtype=self.dtype)}


@pytest.mark.parametrize(("terms", "product"), [(3, 1 + 2**-9 + 2**-20), (2, 1 + 2**-9), (1, 1.0)])
def test_products_have_the_terms_of_their_precision(terms, product):
    """The input's product, dx, dW_ih and dW_hh: with two terms, exactly all except the product of the second terms."""
    problem = BetweenOnes("rnn_relu", T=1, B=1, I=5, H=5, dtype="float32")
    found = run_cuda(problem, {"state": problem.state}, loss={"d_output": problem.d_output}, terms=terms, **STEPWISE)
    assert_close(found["output"], np.full((1, 1, 5), product, np.float32), 0)
    assert_close(found["input"], np.full((1, 1, 5), product, np.float32), 0)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert_close(found["parameters"][name], np.full((5, 5), product, np.float32), 0)


class OfType(Problem):
    """A problem whose numbers are representable in a tensor type."""

    def __init__(self, type_, kind, **sizes):
        object.__setattr__(self, "type_", type_)
        super().__init__(kind, dtype="float32", **sizes)

    def random(self, what, shape):
        return rounded(super().random(what, shape), self.type_)

    @cached_property
    def parameters(self):
        return rounded(Problem.parameters.func(self), self.type_)

    def bound_of(self, saved):
        """Sums are float32, so only roundings of stored numbers matter: at each step and in each direction the states,
        the saved values, and two or three deltas; at the end the gradients of input and parameters."""
        terms = self.T * (STATES[self.kind] + saved + 3) + self.D + 1
        return 10 * np.sqrt(terms) * 2.0 ** -BITS[self.type_]


# Near zero a relu's derivative jumps; and layer normalisation magnifies bfloat16 roundings beyond a useful bound.
SIXTEEN_BITS = [
    (kind, type_)
    for kind in KINDS
    for type_ in ("bfloat16", "float16")
    if kind not in RELUS and not (kind in NORMALISED and type_ == "bfloat16")
]


@pytest.mark.parametrize(("kind", "type_"), SIXTEEN_BITS)
@pytest.mark.parametrize("memory", ["full", "states", 2])
def test_sixteen_bits_agree_within_their_roundings(kind, type_, memory):
    """With few steps, so that the bound is meaningful in bfloat16 too."""
    problem = OfType(type_, kind, T=3, B=3, I=5, H=7, D=2)
    options = options_of(problem, {"lengths": np.array([3, 1, 2])})
    found = run_cuda(problem, options, type_=type_, memory=memory, chunk=2, **STEPWISE)
    record = reference_forward(problem, options)
    expected = reference_results(problem, record)
    bound = problem.bound_of(KERNELS.saved_shape(problem.layer().architecture.cell, 7)[0]) * magnification(record)
    assert bound < 0.25
    assert_close(found, {name: expected[name] for name in found}, bound)


@pytest.mark.parametrize("mode", ["cluster", "grid"])
def test_a_mode_that_no_kernel_has_is_an_error(mode):
    problem = problem_of("lstm_layer_norm")
    layer, (x, d_output) = problem.layer().to("cuda"), placed((problem.x, problem.d_output), "float32")
    with way(mode=mode), pytest.raises(ValueError, match=NO_KERNEL):
        layer.forward(x)
    with way(**STEPWISE):
        tape = layer.forward(x)
    with way(mode=mode), pytest.raises(ValueError, match=NO_KERNEL):
        tape.backward(d_output)


NO_KERNEL = r"mode: no persistent kernel for lstm_layer_norm of B = 3, H = 7"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "float64"}, "type: expected float32, bfloat16 or float16, got float64"),
        ({"mode": "fast"}, "mode: expected free, stepwise, cluster or grid, got fast"),
        ({"terms": 4}, "terms: expected 1 to 3"),
        ({"chunk": -1}, "chunk: expected 0 or more"),
        ({"type": "bfloat16"}, "another dtype"),
        ({"lengths": np.zeros(4, np.int64)}, "lengths: expected another shape"),
        ({"x": np.zeros((6, 0, 5), np.float32)}, "x: expected at least one sequence and one feature"),
    ],
)
def test_wrong_entries_name_themselves(entry, words, monkeypatch):
    (given,), _ = calls_of(problem_of("gru"), {}, monkeypatch)
    with pytest.raises(ValueError, match=words):
        KERNELS.forward("gru", given | entry)


def test_the_gradients_flow_is_not_there(monkeypatch):
    _, ((given, gradients),) = calls_of(problem_of("gru"), {}, monkeypatch)
    with pytest.raises(ValueError, match="exponent: the flow of the gradient is not found on CUDA"):
        KERNELS.backward("gru", given, gradients | {"exponent": np.zeros((6, 3), np.int32)})


def test_an_unknown_cell_names_itself(monkeypatch):
    _, ((given, gradients),) = calls_of(problem_of("gru"), {}, monkeypatch)
    with pytest.raises(ValueError, match="no cell is named gru_2"):
        KERNELS.backward("gru_2", given, gradients)
