"""SGD, Adam and AdamW: torch's steps, in place, on dicts that fit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound

STEPS = 12
SHAPES = {"weight": (7, 5), "bias": (7,), "scalar": (), "none": (0, 3)}


def arrays(seed, dtype, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(scale * rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def run_ours(optimizer, dtype, wrap=lambda a: a):
    parameters = {name: wrap(array) for name, array in arrays(0, dtype).items()}
    for step in range(STEPS):
        optimizer.step(parameters, arrays(step + 1, dtype, scale=10.0 ** -(step % 4)))
    return parameters


def run_torch(torch, make, dtype):
    parameters = {name: torch.tensor(array.astype(np.float64)) for name, array in arrays(0, dtype).items()}
    optimizer = make(list(parameters.values()))
    for step in range(STEPS):
        for name, grad in arrays(step + 1, dtype, scale=10.0 ** -(step % 4)).items():
            parameters[name].grad = torch.tensor(grad.astype(np.float64))
        optimizer.step()
    return {name: tensor.numpy() for name, tensor in parameters.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adam", {}),
        ("Adam", {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3}),
        ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
        ("AdamW", {}),
        ("AdamW", {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
        ("AdamW", {"lr": 0.05, "weight_decay": 0.0}),
    ],
)
def test_steps_agree_with_torch_in_float64(name, options, dtype):
    torch = pytest.importorskip("torch")
    ours = run_ours(getattr(tt.optim, name)(**options), dtype)
    expected = run_torch(torch, lambda tensors: getattr(torch.optim, name)(tensors, **options), dtype)
    # About 20 roundings per step, added up over the steps.
    assert_close(ours, expected, rounding_bound(dtype, 20 * STEPS))
    assert all(array.dtype == dtype for array in ours.values())


def test_memory_order_makes_no_difference():
    whole = run_ours(tt.optim.AdamW(lr=0.05), "float64")
    strided = run_ours(tt.optim.AdamW(lr=0.05), "float64", lambda a: np.repeat(a[..., None], 2, -1)[..., 0])
    turned = run_ours(tt.optim.AdamW(lr=0.05), "float64", lambda a: np.array(a, order="F"))
    assert_same_bits(strided, whole)
    for name in SHAPES:
        assert np.array_equal(whole[name], turned[name])


MAKERS = {
    "SGD": lambda: tt.optim.SGD(0.1),
    "momentum": lambda: tt.optim.SGD(0.1, 0.9),
    "Adam": lambda: tt.optim.Adam(0.1, weight_decay=0.1),
    "AdamW": lambda: tt.optim.AdamW(0.1),
}


def numpy_steps(name, parameters, grads, steps):
    """The formulas of the docstrings in NumPy, in the arrays' type, with each operation rounded."""
    lr, decay, b1, b2, eps = 0.1, {"Adam": 0.1, "AdamW": 0.01}.get(name, 0.0), 0.9, 0.999, 1e-8
    for key, p in parameters.items():
        m, v = np.zeros_like(p), np.zeros_like(p)
        for t in range(1, steps + 1):
            g = grads[key]
            if name in ("SGD", "momentum"):
                m = (0.9 if name == "momentum" else 0.0) * m + g
                p -= lr * m
                continue
            g = g + decay * p if name == "Adam" else g
            m = m + (1 - b1) * (g - m)
            v = b2 * v + (1 - b2) * g * g
            decayed = (1 - lr * decay) * p if name == "AdamW" else p
            p[...] = decayed - lr / (1 - b1**t) * (m / (np.sqrt(v) / math.sqrt(1 - b2**t) + eps))


# Sizes below a register, of whole ones and a rest, of several segments and a rest, and zero.
ODD_SIZES = [(1,), (7, 5), (0, 4), (33,), (3, 16411), (), (129, 1000)]


def odd_arrays(seed, dtype):
    rng = np.random.default_rng(seed)
    return {str(shape): np.asarray(rng.standard_normal(shape), dtype) for shape in ODD_SIZES}


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MAKERS)
def test_steps_agree_with_the_formulas(name, dtype):
    ours, expected, grads = odd_arrays(0, dtype), odd_arrays(0, dtype), odd_arrays(1, dtype)
    optimizer = MAKERS[name]()
    for _ in range(3):
        optimizer.step(ours, grads)
    numpy_steps(name, expected, grads, 3)
    # At most 20 roundings per step in both; Adam's root and quotient are of numbers of one sign, or only decay.
    assert_close(ours, expected, 2 * rounding_bound(dtype, 60))


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MAKERS)
def test_same_bits_for_any_number_of_threads_and_any_grouping(name, dtype, threads, teams):
    def run(apart=False):
        parameters, grads, optimizer = odd_arrays(0, dtype), odd_arrays(1, dtype), MAKERS[name]()
        for _ in range(3):
            for part in parameters if apart else [None]:
                keys = parameters if part is None else [part]
                optimizer.step({key: parameters[key] for key in keys}, {key: grads[key] for key in keys})
        return parameters

    threads(1)
    one = run()
    for team in teams():
        assert_same_bits(run(), one, team)
        assert_same_bits(run(apart=True), one, team)


def test_parameters_of_several_types_in_one_step():
    """float16 is processed in float64, and rounded once per step."""
    dtypes = ("float16", "float32", "float64", ">f4")
    parameters = {dtype: np.ones(3, dtype) for dtype in dtypes}
    optimizer = tt.optim.SGD(0.125, 0.5)
    for _ in range(2):
        optimizer.step(parameters, {dtype: np.full(3, 2.0, dtype) for dtype in dtypes})
    for dtype, array in parameters.items():
        assert array.dtype == dtype
        assert array.tolist() == [1 - 0.125 * (2 + 3)] * 3


def test_a_parameter_under_two_names_is_updated_twice(threads):
    threads(5)
    shared = np.zeros(100_001)
    tt.optim.SGD(1.0).step({"a": shared, "b": shared[:50_000]}, {"a": np.ones(100_001), "b": np.ones(50_000)})
    assert (shared[:50_000] == -2).all()
    assert (shared[50_000:] == -1).all()


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_moments_are_kept(dtype):
    """Adam divides by the root of a mean square: if that were zero, without eps, the result would be NaN."""
    smallest = np.finfo(dtype).smallest_normal
    p, g = {"p": np.zeros(9, dtype)}, {"p": np.full(9, math.sqrt(float(smallest)), dtype)}
    tt.optim.Adam(lr=0.5, eps=0.0).step(p, g)
    # v is 1e-3 of the smallest normal number, with 13 bits in float32: its root is off by a part of 2^-14.
    assert_close(p["p"], np.full(9, -0.5), 2.0**-13)


@pytest.mark.per_level
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", MAKERS)
def test_a_broken_gradient_breaks_its_own_entry_alone(name, broken):
    p, optimizer = {"p": np.ones(37), "q": np.ones(2)}, MAKERS[name]()
    grad = np.ones(37)
    grad[5] = broken
    optimizer.step(p, {"p": grad, "q": np.ones(2)})
    assert np.flatnonzero(~np.isfinite(p["p"])).tolist() == [5]
    assert np.isfinite(p["q"]).all()


def test_a_parameter_that_changes_its_type_keeps_its_moments():
    changing, whole = {"p": np.ones(3, "float32")}, {"p": np.ones(3)}
    optimizers = tt.optim.Adam(0.125), tt.optim.Adam(0.125)
    for _ in range(2):
        for optimizer, p in zip(optimizers, (changing, whole), strict=True):
            optimizer.step(p, {"p": np.full(3, 2.0, p["p"].dtype)})
        changing = {"p": changing["p"].astype("float64")}
    assert_close(changing["p"], whole["p"], rounding_bound("float32", 20))


def test_optimisers_can_be_copied():
    p, g, optimizer = {"p": np.ones(3)}, {"p": np.ones(3)}, tt.optim.AdamW(0.1)
    optimizer.step(p, g)
    again, q = copy.deepcopy(optimizer), copy.deepcopy(p)
    optimizer.step(p, g)
    again.step(q, g)
    assert_same_bits(p, q)


@pytest.mark.parametrize("make", [lambda: tt.optim.SGD(0.1, 0.9), lambda: tt.optim.AdamW(0.1)])
def test_in_place_and_gradients_untouched(make):
    layer = tt.Linear(3, 2, seed=0)
    array, before = layer.parameters["weight"], layer.parameters["weight"].copy()
    grads = {name: np.ones_like(parameter) for name, parameter in layer.parameters.items()}
    for grad in grads.values():
        grad.flags.writeable = False
    make().step(layer.parameters, grads)
    assert layer.parameters["weight"] is array
    assert (array != before).all()


def test_momentum_belongs_to_the_name():
    """A parameter that is added later has its own first step, as in torch."""
    optimizer, late = tt.optim.Adam(lr=0.1), np.zeros(3)
    optimizer.step({"a": np.zeros(2)}, {"a": np.ones(2)})
    optimizer.step({"late": late}, {"late": np.full(3, 5.0)})
    assert_close(late, np.full(3, -0.1), 1e-7)  # a first step of Adam is lr, up to eps


def test_learning_rate_may_change():
    optimizer, p = tt.optim.SGD(lr=1.0), {"p": np.zeros(1)}
    optimizer.step(p, {"p": np.ones(1)})
    optimizer.lr = 0.5
    optimizer.step(p, {"p": np.ones(1)})
    assert p["p"][0] == -1.5


def test_adam_finds_a_minimum():
    p, optimizer = {"p": np.array([3.0, -2.0])}, tt.optim.Adam(lr=0.1)
    for _ in range(500):
        optimizer.step(p, {"p": 2 * p["p"]})
    assert np.abs(p["p"]).max() < 0.01


ADAM = tt.optim.Adam
W = {"w": np.zeros((2, 3))}


def frozen():
    array = np.zeros(2)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.optim.SGD(-1.0), ValueError, "lr"),
        (lambda: tt.optim.SGD("x"), TypeError, "lr"),
        (lambda: tt.optim.SGD(1.0, 1.5), ValueError, "momentum"),
        (lambda: ADAM(math.nan), ValueError, "lr"),
        (lambda: ADAM(betas=0.9), TypeError, "betas"),
        (lambda: ADAM(betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda: ADAM(eps=-1), ValueError, "eps"),
        (lambda: ADAM(weight_decay=-1), ValueError, "weight_decay"),
        (lambda: tt.optim.AdamW(weight_decay=-1), ValueError, "weight_decay"),
        (lambda: ADAM().step([], {}), TypeError, "parameters"),
        (lambda: ADAM().step({}, []), TypeError, "grads"),
        (lambda: ADAM().step(W, {}), ValueError, "no gradient for 'w'"),
        (lambda: ADAM().step({}, W), ValueError, "no parameter for gradient 'w'"),
        (lambda: ADAM().step(W, {"w": np.zeros((3, 2))}), ValueError, r"grads\['w'\].*\(3, 2\).*\(2, 3\)"),
        (lambda: ADAM().step(W, {"w": np.zeros((2, 3), np.float32)}), TypeError, r"grads\['w'\].*float32"),
        (lambda: ADAM().step({"w": np.zeros(2, int)}, {"w": np.zeros(2, int)}), TypeError, r"parameters\['w'\]"),
        (lambda: ADAM().step({"w": [0.0]}, {"w": [0.0]}), TypeError, r"parameters\['w'\].*list"),
        (lambda: ADAM().step({"w": frozen()}, {"w": np.zeros(2)}), ValueError, "read-only"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_error_changes_nothing():
    parameters = {"a": np.ones(2), "b": np.ones(3)}
    with pytest.raises(ValueError, match="b"):
        tt.optim.SGD(1.0).step(parameters, {"a": np.ones(2), "b": np.ones(2)})
    assert (parameters["a"] == 1).all()


def test_another_parameter_under_the_same_name_is_an_error():
    optimizer = tt.optim.Adam()
    optimizer.step({"w": np.zeros(2)}, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="one optimiser per model"):
        optimizer.step({"w": np.zeros(3)}, {"w": np.ones(3)})


def test_repr():
    assert repr(tt.optim.SGD(0.1)) == "SGD(lr=0.1, momentum=0.0)"
    assert repr(tt.optim.Adam()) == "Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"
    assert repr(tt.optim.AdamW()) == "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)"


def as_array(a):
    return a


SAME_MEMORY = {
    "itself": as_array,
    "a view": lambda a: a[:],
    "transposed": lambda a: a.T,
    "flat": lambda a: a.reshape(-1),
    "another axis": lambda a: a[:, None, :, None],
    "np.matrix": lambda a: a.view(np.matrix),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("view", SAME_MEMORY)
@pytest.mark.parametrize("name", MAKERS)
def test_an_array_under_two_names_takes_one_step_by_the_sum_of_the_gradients(name, view, dtype):
    rng, shape = np.random.default_rng(0), (7, 4)
    start, first, second, third = rng.standard_normal((4, *shape)).astype(dtype)
    alone, tied, one, other = start.copy(), start.copy(), MAKERS[name](), MAKERS[name]()
    like = SAME_MEMORY[view]
    for _ in range(5):
        one.step({"w": alone, "x": alone[:0]}, {"w": first + second + third, "x": alone[:0]})
        parameters = {"in": tied, "out": like(tied), "again": tied}
        other.step(parameters, {"in": first, "out": like(second), "again": third})
    assert_same_bits(tied, alone)


@pytest.mark.parametrize("name", MAKERS)
def test_the_order_of_the_names_makes_no_difference(name):
    rng = np.random.default_rng(0)
    grads = {key: rng.standard_normal((7, 4) if key == "in" else (4, 7)) for key in ("in", "out")}
    found = []
    for turn in (False, True):
        optimizer, tied = MAKERS[name](), np.ones((7, 4))
        for step in range(4):
            names = list(grads)[:: -1 if turn and step % 2 else 1]
            views = {"in": tied, "out": tied.T}
            optimizer.step({key: views[key] for key in names}, {key: grads[key] for key in names})
        found.append(tied)
    assert_close(*found, 1e-14)


@pytest.mark.parametrize("name", MAKERS)
def test_a_view_with_gaps_under_two_names_leaves_the_gaps(name):
    whole = np.ones((5, 6))
    alone, optimizer = np.ones((5, 3)), MAKERS[name]()
    optimizer.step({"a": whole[:, ::2], "b": whole[:, ::2]}, {"a": np.ones((5, 3)), "b": np.ones((5, 3))})
    MAKERS[name]().step({"a": alone}, {"a": np.full((5, 3), 2.0)})
    assert np.array_equal(whole[:, ::2], alone)
    assert (whole[:, 1::2] == 1).all()


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("view", [lambda a: a[2:], lambda a: a[::-1], lambda a: a[:, 1:3]])
def test_a_part_of_a_parameter_under_another_name_is_refused_where_steps_do_not_add_up(name, view, dtype):
    whole = np.ones((5, 4), dtype)
    part = view(whole)
    apart = {"even": np.ones((3, 4))[::2], "p": whole, "q": part}
    with pytest.raises(ValueError, match=r"parameters\['[pq]'\] overlaps parameters\['[pq]'\] in memory"):
        MAKERS[name]().step(apart, {key: np.ones_like(array) for key, array in apart.items()})
    assert (whole == 1).all()
    rows = {"even": whole[::2], "odd": whole[1::2]}
    MAKERS[name]().step(rows, {key: np.ones_like(array) for key, array in rows.items()})
    assert (whole < 1).all()


@pytest.mark.parametrize("wrap", [np.ma.masked_array, lambda a: np.ma.masked_array(a, a > 0)])
@pytest.mark.parametrize("name", MAKERS)
def test_masked_arrays_are_refused(name, wrap):
    for p, g, words in ((wrap(np.ones(3)), np.ones(3), "parameters"), (np.ones(3), wrap(np.ones(3)), "grads")):
        with pytest.raises(TypeError, match=rf"{words}\['w'\] is a masked array"):
            MAKERS[name]().step({"w": p}, {"w": g})
        assert (np.asarray(p) == 1).all()


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_is_worked_on_in_float64_and_rounded_once_a_step(name):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    start, grad = (np.random.default_rng(k).standard_normal(33).astype(bfloat16) for k in range(2))
    narrow, wide = {"w": start.copy()}, {"w": start.astype(np.float64)}
    MAKERS[name]().step(narrow, {"w": grad})
    MAKERS[name]().step(wide, {"w": grad.astype(np.float64)})
    assert narrow["w"].dtype == bfloat16
    assert np.array_equal(narrow["w"], wide["w"].astype(bfloat16))
