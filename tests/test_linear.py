"""The products of Linear, MLP and SelfAttention: NumPy's results, exact integers, the same bits for any thread
count."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound, wide
from test_precision import HERE, LOSS, PRECISIONS
from throughtime import _core

pytestmark = [pytest.mark.per_level, pytest.mark.amx]

DTYPES = ("float32", "float64")

# (N, I, O) around tiles, panels and blocks of rows; then several chunks of rows; then several rounds of chunks.
SIZES = [(1, 1, 1), (1, 128, 103), (2, 3, 17), (5, 17, 1), (7, 16, 64), (33, 1, 40), (97, 15, 129), (200, 65, 66)]
SIZES += [(480, 9, 24), (481, 33, 17), (961, 7, 300), (1500, 70, 90), (2500, 40, 1100)]


@pytest.fixture(params=PRECISIONS)
def precision(request):
    tt.set_matmul_precision(request.param)
    yield request.param
    tt.set_matmul_precision("highest")


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def ones(rng, shape, dtype):
    """-1, 0 and 1, which every precision represents, and whose sums float32 represents."""
    return rng.integers(-1, 2, shape).astype(dtype)


def problem(draw, N, I, O, dtype, seed=0):  # noqa: E741
    """x, weight, bias and d_output."""
    rng = np.random.default_rng(seed)
    return tuple(draw(rng, shape, dtype) for shape in ((N, I), (O, I), (O,), (N, O)))


def run(x, weight, bias, d_output):
    """All results of a Linear with these parameters."""
    layer = tt.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=str(x.dtype))
    layer.load_parameters({"weight": weight} | ({} if bias is None else {"bias": bias}))
    tape = layer.forward(x)
    grads = tape.backward(d_output)
    assert_same_bits(layer(x), tape.output)
    return {"output": tape.output, "input": grads.input, **grads.parameters}


def numpys(x, weight, bias, d_output):
    """The same with NumPy's products."""
    output = x @ weight.T if bias is None else x @ weight.T + bias
    found = {"output": output, "input": d_output @ weight, "weight": d_output.T @ x, "bias": d_output.sum(axis=0)}
    if bias is None:
        del found["bias"]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "I", "O"), SIZES)
def test_small_integers_are_exact(N, I, O, dtype, precision):  # noqa: E741
    """Compares packing, tiles and tails of all three products."""
    given = problem(ones, N, I, O, dtype)
    assert_close(run(*given), numpys(*given), 0)


@pytest.mark.parametrize(("N", "I", "O"), SIZES)
def test_float64_agrees_with_numpy(N, I, O):  # noqa: E741
    given = problem(normal, N, I, O, "float64")
    assert_close(run(*given), numpys(*given), 1e-10)


@pytest.mark.parametrize(("N", "I", "O"), SIZES)
def test_float32_is_within_the_bound_of_its_precision(N, I, O, precision):  # noqa: E741
    """For every entry, relative to the sum of the magnitudes of its terms."""
    given = problem(normal, N, I, O, "float32")
    found, exact = run(*given), numpys(*map(wide, given))
    magnitudes = numpys(*(np.abs(wide(array)) for array in given))
    terms = {"output": I + 1, "input": O, "weight": N, "bias": N}
    loss = LOSS[precision if precision in HERE else "highest"]
    for name, array in found.items():
        bound = rounding_bound("float32", terms[name]) * (1 if name == "bias" else loss)
        assert (np.abs(array - exact[name]) <= bound * magnitudes[name]).all(), name


def test_the_gradient_of_the_bias_is_summed_in_float64():
    """And rounded once, up to the roundings of float64."""
    given = problem(normal, 5000, 3, 41, "float32")
    exact = wide(given[3]).sum(axis=0)
    assert_close(run(*given)["bias"], exact.astype(np.float32), np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "I", "O"), [*SIZES, (3000, 200, 30)])
def test_any_number_of_threads_gives_the_same_bits(N, I, O, dtype, precision, threads, teams):  # noqa: E741
    """Also more threads than cores."""
    given = problem(normal, N, I, O, dtype)
    threads(1)
    one = run(*given)
    for team in teams():
        assert_same_bits(run(*given), one, team)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ["one_row", "many_rows"])
def test_a_forced_engine_is_exact(engine, dtype, free):
    _core.force(engine=engine)
    given = problem(ones, 50, 40, 30, dtype)
    assert_close(run(*given), numpys(*given), 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "O"), [(3, 2), (40, 70)])
def test_without_bias_and_without_rows(I, O, dtype):  # noqa: E741
    for N in (0, 9):
        x, weight, _, d_output = problem(ones, N, I, O, dtype)
        assert_close(run(x, weight, None, d_output), numpys(x, weight, None, d_output), 0)
    given = problem(ones, 0, I, O, dtype)
    assert_close(run(*given), numpys(*given), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_memory_order_gives_the_same_bits(dtype):
    x, weight, bias, d_output = problem(normal, 60, 20, 30, dtype)
    expected = run(x, weight, bias, d_output)
    for order in (
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array[::-1].copy()[::-1],
    ):
        assert_same_bits(run(order(x), weight, bias, order(d_output)), expected)


def overlapping(dtype):
    """Windows of a series, (B, T, I) and (T, B, I), whose rows and features overlap."""
    windows = np.lib.stride_tricks.sliding_window_view
    series = np.random.default_rng(0).standard_normal(700).astype(dtype)
    return {
        "features": windows(series, 20)[:600:3],
        "steps": windows(series.reshape(-1, 20), 9, axis=0).transpose(0, 2, 1),
        "both": windows(windows(series, 20), 9, axis=0).transpose(0, 2, 1)[:30],
        "backward": windows(series, 20)[200:100:-2, ::-1],
        "the same row": np.broadcast_to(series[:20], (5, 30, 20)),
    }


LAYERS_OF_WINDOWS = {
    "Linear": lambda dtype: tt.Linear(20, 30, dtype=dtype, seed=0),
    "MLP": lambda dtype: tt.MLP(20, 30, dtype=dtype, seed=0),
    "batch_first": lambda dtype: tt.Sequential(
        tt.Linear(20, 16, dtype=dtype, seed=0),
        tt.GRU(16, 8, batch_first=True, dtype=dtype, seed=1),
        tt.Linear(8, 5, dtype=dtype, seed=2),
    ),
    "recurrent": lambda dtype: tt.LSTM(20, 8, 2, batch_first=True, bidirectional=True, dtype=dtype, seed=0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", ["features", "steps", "both", "backward", "the same row"])
@pytest.mark.parametrize("name", LAYERS_OF_WINDOWS)
def test_views_that_overlap_give_the_bits_of_their_copies(name, view, dtype):
    layer, x = LAYERS_OF_WINDOWS[name](dtype), overlapping(dtype)[view]
    found, tape = [], layer.forward(x)
    d_output = np.random.default_rng(1).standard_normal(tape.output.shape).astype(dtype)
    for array, d in ((x, d_output), (x.copy(order="C"), d_output), (x.copy(order="F"), d_output.copy(order="F"))):
        tape = layer.forward(array)
        grads = tape.backward(d)
        found.append((tape.output, grads.input, grads.parameters))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row(bad, dtype):
    x, weight, bias, d_output = problem(normal, 100, 21, 35, dtype)
    x[50, 20] = d_output[70, 34] = bad
    found = run(x, weight, bias, d_output)
    for name, row in (("output", 50), ("input", 70)):
        finite = np.isfinite(found[name]).all(axis=1)
        assert not finite[row]
        assert finite.sum() == 99
    finite = np.isfinite(found["weight"])
    assert not finite[:, 20].any()
    assert not finite[34].any()
    assert finite[:34, :20].all()


@pytest.mark.parametrize(
    "layer", [tt.Linear(7, 19, seed=0), tt.MLP(7, 19, "tanh", seed=0), tt.SelfAttention(8, 2, seed=0)]
)
def test_gradients_are_derivatives(layer):
    x = np.random.default_rng(0).standard_normal((9, 2, layer.input_size))
    assert max(tt.gradcheck(layer, x).values()) <= 1e-7


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("x", np.zeros((4, 3)), "x: expected another dtype|weight: expected another dtype"),
        ("x", np.zeros((4, 2), np.float32), "x: expected another shape"),
        ("x", np.zeros((3, 4), np.float32).T, "x: expected contiguous memory"),
        ("weight", np.zeros((0, 3), np.float32), "weight: expected 1 or more"),
        ("weight", None, "weight: expected an array"),
        ("bias", np.zeros(3, np.float32), "bias: expected another shape"),
        ("y", np.broadcast_to(np.float32(0), (4, 2)), "y: expected"),
    ],
)
def test_the_kernel_refuses_what_does_not_fit(name, array, words):
    fits = {"x": np.zeros((4, 3), np.float32), "weight": np.zeros((2, 3), np.float32)}
    fits |= {"bias": np.zeros(2, np.float32), "y": np.zeros((4, 2), np.float32)}
    with pytest.raises(ValueError, match=words):
        _core.linear_forward(fits | {name: array})


# No training step uses a product of NumPy: the idle threads of its BLAS would spin alongside ours.

PRODUCTS = {
    "matmul",
    "dot",
    "vdot",
    "inner",
    "einsum",
    "tensordot",
    "matvec",
    "vecmat",
    "vecdot",
    "linalg",
    "correlate",
    "convolve",
}
# Files that analyse a trained model, draw, or compute initial weights.
APART = {
    "analysis/products.py",
    "monitor/figures.py",
    "_scaled.py",
    "init/arrays.py",
    "analysis/fixed_points.py",
    "analysis/truncation.py",
}


def test_the_source_of_the_layers_has_no_product_of_numpys():
    package = Path(tt.__path__[0])
    rooms = ("analysis", "backend", "diagnosis", "init", "layers", "monitor", "recurrent")
    folders = [package, *(package / name for name in rooms)]
    apart = {package / name for name in APART}
    files = {path for folder in folders for path in folder.glob("*.py")} - apart
    assert {"linear.py", "mlp.py", "attention.py", "backward.py", "losses.py", "optim.py"} <= {p.name for p in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            product = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult)
            named = isinstance(node, ast.Attribute) and node.attr in PRODUCTS
            assert not product, f"{path.name}:{node.lineno}: @"
            assert not named, f"{path.name}:{node.lineno}: {node.attr}"


class Watched(np.ndarray):
    """An array whose products raise errors, as do those of every array made from it."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        assert ufunc.__name__ not in PRODUCTS, ufunc
        if out is not None:
            options["out"] = tuple(map(plain, out))
        made = getattr(ufunc, method)(*map(plain, inputs), **options)
        if out is not None:
            return out[0]
        return made.view(Watched) if isinstance(made, np.ndarray) else made

    def __array_function__(self, func, types, args, kwargs):
        assert func.__name__ not in PRODUCTS, func
        return super().__array_function__(func, types, args, kwargs)

    def dot(self, *_):
        raise AssertionError("dot")


def plain(value):
    return value.view(np.ndarray) if isinstance(value, Watched) else value


def test_what_is_watched_cannot_be_multiplied():
    a = np.ones((2, 2)).view(Watched)
    for product in (lambda: a @ a, lambda: np.dot(a, a), lambda: a.dot(a), lambda: (2 * a + 1).T @ np.ones(2)):
        with pytest.raises(AssertionError):
            product()


def test_a_training_step_calls_no_product_of_numpys(monkeypatch):
    empty = _core.empty
    watched = lambda shape, dtype: empty(shape, dtype).view(Watched)  # noqa: E731
    monkeypatch.setattr(_core, "empty", watched)
    monkeypatch.setattr(tt.backend.host.Host, "empty", staticmethod(watched))
    monkeypatch.setattr(tt._arguments, "plain", lambda array: array)  # it would end the watch
    embedding = tt.Embedding(11, 8, seed=0)
    stack = tt.Sequential(
        tt.LSTM(8, 8, seed=1),
        tt.ResidualBlock(tt.GRU(8, 8, seed=2), 8),
        tt.ResidualBlock(tt.MLP(8, 16, "gelu", seed=3), 8),
        tt.ResidualBlock(tt.SelfAttention(8, 2, seed=4), 8),
        tt.LayerNorm(8),
        tt.Linear(8, 11, seed=5),
    )
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 11, (2, 6, 3))
    optimizer = tt.optim.Adam()
    before = stack.parameters["5.weight"].copy()
    for _ in range(2):
        below = embedding.forward(x)
        tape = stack.forward(below.output.view(Watched), lengths=[6, 4, 1])
        _, d_output = tt.cross_entropy(tape.output, targets)
        grads = tape.backward(d_output.view(Watched))
        parameters = {f"stack.{name}": array for name, array in stack.parameters.items()} | {
            "w": embedding.parameters["weight"]
        }
        own = {f"stack.{name}": array for name, array in grads.parameters.items()}
        own["w"] = below.backward(grads.input).parameters["weight"]
        tt.clip_grad_norm(own, 0.1)
        optimizer.step(parameters, own)
    assert not np.array_equal(stack.parameters["5.weight"], before)
