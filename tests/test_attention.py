"""SelfAttention: agreement with torch and the reference, windows, lengths, memory, any number of threads."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import throughtime as tt
from comparison import assert_close, assert_same_bits, rounding_bound, wide

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Problem:
    """Sizes; the arrays follow from them and the seed."""

    T: int = 9
    B: int = 2
    heads: int = 2
    E: int = 5  # features per head
    causal: bool = True
    window: int | None = None
    dtype: str = "float64"
    seed: int = 0

    @property
    def options(self):
        return {"num_heads": self.heads, "causal": self.causal, "window": self.window}

    def numbers(self, what):
        random = np.random.default_rng([self.seed, *what.encode()])
        return random.standard_normal((self.T, self.B, self.heads * self.E)).astype(self.dtype)

    @property
    def x(self):
        return self.numbers("x")

    @property
    def d_output(self):
        return self.numbers("d_output")

    def layer(self):
        layer = tt.SelfAttention(self.heads * self.E, **self.options, dtype=self.dtype, seed=self.seed)
        for array in (layer.parameters["in_proj_bias"], layer.parameters["out_proj.bias"]):  # they start as zeros
            array[...] = np.random.default_rng(self.seed).standard_normal(array.shape)
        return layer

    def bound(self, layer):
        """Relative to the largest entry of each tensor. A score is a sum of E products of sums of F, so its error is
        relative to |q| |k| / sqrt(E), and equals the relative error of its exponential; sums over keys, queries,
        features and the batch follow."""
        F, keys = self.heads * self.E, min(self.T, (self.window or self.T) * (1 if self.causal else 2))
        q, k, _ = np.split(self.x @ layer.parameters["in_proj_weight"].T + layer.parameters["in_proj_bias"], 3, axis=2)
        by_head = (*self.x.shape[:2], self.heads, self.E)
        largest_q, largest_k = (np.linalg.norm(a.reshape(by_head), axis=3).max(initial=0) for a in (q, k))
        terms = 2 * (F + self.E) + 4 * keys + 3 * F + self.T * self.B
        return rounding_bound(self.dtype, terms) * (1 + 2 * largest_q * largest_k / np.sqrt(self.E))


def run(layer, x, d_output, lengths=None):
    """Output, gradient of the input, gradients of the parameters."""
    tape = layer.forward(x, lengths)
    grads = tape.backward(d_output)
    return tape.output, grads.input, grads.parameters


def check(problem, lengths=None):
    layer = problem.layer()
    ours = run(layer, problem.x, problem.d_output, lengths)
    assert all(array.dtype == problem.dtype for array in (*ours[:2], *ours[2].values()))
    arrays = (wide(array) for array in (layer.parameters, problem.x, problem.d_output))
    expected = reference.self_attention(*arrays, **problem.options, lengths=lengths)
    # If a query sees only itself, the gradient of its score is a difference of equals: zero up to rounding.
    floor = np.abs(expected[1]).max(initial=0)
    assert_close(ours, expected, problem.bound(layer), floor=floor)
    return ours


SIZES = [
    (1, 1, 1, 1),
    (1, 3, 2, 4),
    (7, 2, 3, 5),
    (63, 1, 2, 16),
    (65, 2, 2, 33),
    (200, 1, 1, 64),
    (130, 1, 2, 17),
    (1100, 1, 1, 8),  # three segments
]


@pytest.mark.parametrize("window", [None, 1, 3, 64, 100])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_torch(sizes, causal, window):
    """Output and every gradient, in float64 to 1e-10."""
    torch = pytest.importorskip("torch")
    problem = Problem(*sizes, causal=causal, window=window)
    layer = problem.layer()
    ours = run(layer, problem.x, problem.d_output)
    theirs = torch.nn.MultiheadAttention(layer.size, problem.heads, dtype=torch.float64)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in layer.parameters.items()})
    x = torch.tensor(problem.x, requires_grad=True)
    hidden = torch.tensor(~reference.seen(problem.T, causal, window))
    output, _ = theirs(x, x, x, attn_mask=hidden, need_weights=False)
    output.backward(torch.tensor(problem.d_output))
    parameters = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert_close(ours, (output.detach().numpy(), x.grad.numpy(), parameters), 1e-10)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    st.builds(
        Problem,
        T=st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 129, 150])),
        B=st.integers(0, 3),
        heads=st.integers(1, 3),
        E=st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33, 64, 70])),
        causal=st.booleans(),
        window=st.one_of(st.none(), st.integers(1, 70), st.just(2**40)),
        seed=st.integers(0, 99),
    ),
    st.booleans(),
)
def test_agrees_with_the_reference(dtype, problem, some_lengths):
    problem = Problem(**{**problem.__dict__, "dtype": dtype})
    lengths = np.random.default_rng(problem.seed).integers(0, problem.T + 1, problem.B) if some_lengths else None
    check(problem, lengths)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 300), (False, 77)])
def test_several_segments_agree_with_the_reference(dtype, causal, window):
    """A task has 512 steps; the gradient of a query is the sum over the tasks that contain its keys."""
    problem = Problem(T=1300, B=2, heads=1, E=12, causal=causal, window=window, dtype=dtype)
    check(problem)
    check(problem, np.array([700, 513]))


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, 5)])
def test_padding_is_not_seen_whatever_it_holds(dtype, causal, window):
    problem = Problem(T=70, B=5, causal=causal, window=window, dtype=dtype)
    lengths = [70, 65, 33, 1, 0]
    expected = check(problem, lengths)
    x, d_output = problem.x, problem.d_output
    for b, length in enumerate(lengths):
        x[length:, b], d_output[length:, b] = np.nan, np.inf
    found = run(problem.layer(), x, d_output, lengths)
    assert_same_bits(found, expected)
    for b, length in enumerate(lengths):
        assert not found[0][length:, b].any()
        assert not found[1][length:, b].any()
    assert_same_bits(problem.layer()(x, lengths), expected[0])


@pytest.mark.per_level
def test_a_sequence_is_what_it_is_alone():
    problem = Problem(T=70, B=3)
    lengths = [70, 20, 65]
    output, d_input, _ = run(problem.layer(), problem.x, problem.d_output, lengths)
    for b, length in enumerate(lengths):
        alone = run(problem.layer(), problem.x[:length, b], problem.d_output[:length, b])
        assert_close((output[:length, b], d_input[:length, b]), alone[:2], problem.bound(problem.layer()))


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 100)])
def test_same_bits_for_any_number_of_threads(dtype, causal, window, threads, teams):
    problem = Problem(T=2100, B=2, heads=1, E=8, causal=causal, window=window, dtype=dtype)
    layer = problem.layer()
    threads(1)
    one = run(layer, problem.x, problem.d_output, [2100, 1500])
    for team in teams():
        assert_same_bits(run(layer, problem.x, problem.d_output, [2100, 1500]), one, team)


def kernel(x, layer):
    """The output of the heads, before the last projection."""
    return layer.forward(x)._attended


@pytest.mark.per_level
def test_the_future_and_what_left_the_window_change_no_bit():
    problem = Problem(T=300, B=1, window=40, dtype="float32")
    layer, x = problem.layer(), problem.x
    before = kernel(x, layer)
    x[200:] += 1
    x[:100] *= 1000
    after = kernel(x, layer)
    assert np.array_equal(after[139:200], before[139:200])
    assert not np.array_equal(after[138], before[138])
    assert not np.array_equal(after[200], before[200])


@pytest.mark.per_level
def test_a_window_of_one_passes_its_value_on():
    """Its one probability is exactly 1."""
    problem = Problem(T=70, window=1, dtype="float32")
    layer = problem.layer()
    projection = tt.Linear(layer.size, 3 * layer.size)
    projection.load_parameters({name: layer.parameters[f"in_proj_{name}"] for name in ("weight", "bias")})
    assert np.array_equal(kernel(problem.x, layer), projection(problem.x)[..., 2 * layer.size :])


@pytest.mark.per_level
def test_equal_scores_give_the_mean():
    """Exact for small integers with a power of two of keys. The window in both directions has 2w - 1 steps."""
    layer = tt.SelfAttention(1, 1, causal=False, window=3, dtype="float64")
    layer.parameters["in_proj_weight"][...] = [[0], [0], [1]]
    x = np.arange(8.0)[:, None]
    expected = [np.mean(x[max(0, t - 2) : t + 3]) for t in range(8)]
    assert kernel(x, layer)[:, 0, 0] == pytest.approx(expected, rel=1e-15)


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scores_do_not_overflow(dtype):
    """With scores of 1e8 and more, each query attends to its best key alone, and gradients are finite."""
    problem = Problem(T=200, B=1, heads=1, E=8, dtype=dtype)
    layer = problem.layer()
    layer.parameters["in_proj_weight"][:8] *= 1e8
    qkv = problem.x[:, 0] @ layer.parameters["in_proj_weight"].T + layer.parameters["in_proj_bias"]
    q, k, v = np.split(qkv, 3, axis=1)
    scores = np.where(reference.seen(200), wide(q) @ wide(k).T, -np.inf)
    assert np.abs(scores[np.isfinite(scores)]).max() > 1e8
    expected = v[scores.argmax(axis=1)]
    assert_close(kernel(problem.x, layer)[:, 0], expected, rounding_bound(dtype, 32))
    _, d_input, parameters = run(layer, problem.x, problem.d_output)
    assert np.isfinite(d_input).all()
    assert all(np.isfinite(array).all() for array in parameters.values())


@pytest.mark.per_level
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_input_gives_nan_where_it_is_seen(dtype):
    problem = Problem(T=200, B=2, window=20, dtype=dtype)
    x = problem.x
    x[100, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        output = problem.layer()(x)
    assert np.isnan(output[100:120, 0]).any(axis=1).all()
    assert np.isfinite(output[:, 1]).all()
    assert np.isfinite(output[:30, 0]).all()


def test_backward_uses_the_forwards_weights_and_may_be_called_again():
    problem = Problem(T=70)
    layer = problem.layer()
    tape = layer.forward(problem.x)
    first = tape.backward(problem.d_output)
    for array in layer.parameters.values():
        array[...] = 0
    again = tape.backward(problem.d_output)
    assert_same_bits((first.input, first.parameters), (again.input, again.parameters))


def test_any_memory_order_and_no_batch():
    problem = Problem(T=33, B=3, dtype="float32")
    layer = problem.layer()
    expected = run(layer, problem.x, problem.d_output)
    turned = (np.asfortranarray(array) for array in (problem.x, problem.d_output))
    assert_same_bits(run(layer, *turned), expected)
    steps = (np.repeat(array, 2, axis=0)[::2] for array in (problem.x, problem.d_output))
    assert_same_bits(run(layer, *steps), expected)
    alone = Problem(T=33, B=1)
    one = run(alone.layer(), alone.x, alone.d_output, [20])
    unbatched = run(alone.layer(), alone.x[:, 0], alone.d_output[:, 0], 20)
    assert_same_bits(unbatched, (one[0][:, 0], one[1][:, 0], one[2]))


def test_an_empty_batch():
    output, d_input, parameters = run(tt.SelfAttention(6, 2, seed=0), *(np.zeros((5, 0, 6), np.float32),) * 2)
    assert output.shape == d_input.shape == (5, 0, 6)
    assert not any(array.any() for array in parameters.values())


def test_initial_values_are_torchs():
    layer = tt.SelfAttention(64, 4, seed=0)
    assert 0.98 * np.sqrt(6 / 256) < np.abs(layer.parameters["in_proj_weight"]).max() <= np.sqrt(6 / 256)
    assert 0.98 / 8 < np.abs(layer.parameters["out_proj.weight"]).max() <= 1 / 8
    assert not layer.parameters["in_proj_bias"].any()
    assert not layer.parameters["out_proj.bias"].any()
    other = tt.SelfAttention(64, 4, seed=0)
    assert_same_bits(other.parameters, layer.parameters)


def test_a_layer_comes_back_from_its_file(tmp_path):
    layer = tt.SelfAttention(6, 2, causal=False, window=4, dtype="float64", seed=1)
    layer.save(tmp_path / "layer.npz")
    found = tt.load(tmp_path / "layer.npz")
    assert repr(found) == repr(layer) == "SelfAttention(6, 2, causal=False, window=4, dtype='float64')"
    x = np.ones((9, 2, 6))
    assert np.array_equal(found(x), layer(x))


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 2}])
def test_gradcheck(options):
    x = np.random.default_rng(0).standard_normal((5, 3, 6))
    errors = tt.gradcheck(tt.SelfAttention(6, 2, **options, seed=0), x, lengths=[5, 2, 0])
    assert list(errors) == ["input", "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    assert max(errors.values()) < 1e-7


def test_the_tape_holds_what_it_says():
    """x, queries, keys, values, the heads' output, the output, two numbers per query and head, and the weights."""
    T, B, F, heads = 100, 3, 16, 4
    layer = tt.SelfAttention(F, heads, seed=0)
    parameters = sum(array.nbytes for array in layer.parameters.values())
    tape = layer.forward(np.ones((T, B, F), np.float32))
    assert tape.nbytes == parameters + 4 * T * B * (6 * F + 2 * heads)


LONG = """
import numpy as np
import throughtime as tt

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

x = np.zeros((8192, 1, 128), np.float32)
layer = tt.SelfAttention(128, 2, window=256, seed=0)
def step(x):
    return layer.forward(x).backward(x)
step(x[:512])
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = kilobytes("VmRSS")
grads = step(x)
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_long_sequence_needs_memory_for_its_steps_alone():
    """Tape and gradients are 13 arrays of T F floats, 55 MB; the scores of all steps would be 537 MB."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80_000


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_stops_a_long_call(count, threads):
    """Long before its end, while one thread waits for another; the next call is correct."""
    threads(count)
    layer = tt.SelfAttention(64, 1, causal=False, seed=0)
    x = np.ones((24_000, 1, 64), np.float32)  # at least a second of work, and more than twice that in the backward
    short = run(layer, x[:3], x[:3])
    tape = layer.forward(x)
    for call in (lambda: layer.forward(x), lambda: tape.backward(x)):
        interrupt = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        interrupt.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                call()
        finally:
            interrupt.join()
        assert_same_bits(run(layer, x[:3], x[:3]), short)


X = np.zeros((5, 3, 6), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tt.SelfAttention(6, 4), ValueError, "num_heads must divide size = 6, got 4"),
        (lambda: tt.SelfAttention(6, 0), ValueError, "num_heads must be at least 1"),
        (lambda: tt.SelfAttention(0, 1), ValueError, "size must be at least 1"),
        (lambda: tt.SelfAttention(6, 2.0), TypeError, "num_heads must be an int"),
        (lambda: tt.SelfAttention(6, 2, window=0), ValueError, "window must be at least 1, got 0"),
        (lambda: tt.SelfAttention(6, 2, window=2.5), TypeError, "window must be an int, got 2.5"),
        (lambda: tt.SelfAttention(6, 2, causal=1), TypeError, "causal must be True or False"),
        (lambda: tt.SelfAttention(6, 2, dtype="int32"), TypeError, "dtype"),
        (lambda: tt.SelfAttention(6, 2)(X.astype(np.float64)), TypeError, "x has dtype float64, expected float32"),
        (lambda: tt.SelfAttention(8, 2)(X), ValueError, r"x has 6 features.*size=8 \(x.shape == \(5, 3, 6\)\)"),
        (lambda: tt.SelfAttention(6, 2)(X[0, 0]), ValueError, r"x has shape \(6,\), expected \(T, B, 6\)"),
        (lambda: tt.SelfAttention(6, 2)(X[:0]), ValueError, "no timesteps.*expected T >= 1"),
        (lambda: tt.SelfAttention(6, 2)([1.0]), TypeError, "x must be a NumPy array"),
        (lambda: tt.SelfAttention(6, 2)(X, [1, 2, 6]), ValueError, r"lengths\[2\] is 6, expected 0 to T = 5"),
        (lambda: tt.SelfAttention(6, 2)(X, [1, 2]), ValueError, r"lengths has shape \(2,\), expected \(3,\)"),
        (lambda: tt.SelfAttention(6, 2)(X, [1.0, 2, 3]), TypeError, "lengths must be integers"),
        (lambda: tt.SelfAttention(6, 2).forward(X).backward(X[:4]), ValueError, r"d_output.*expected \(5, 3, 6\)"),
        (lambda: tt.SelfAttention(6, 2).forward(X).backward(X.astype("f8")), TypeError, "d_output has dtype float64"),
        (lambda: tt.SelfAttention(6, 2).load_parameters({"in_proj_weight": X}), ValueError, "missing 'in_proj_bias'"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_state_dict_of_torch_loads():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.MultiheadAttention(6, 2, dtype=torch.float64)
    layer = tt.SelfAttention(6, 2, dtype="float64")
    layer.load_parameters(theirs.state_dict())
    assert np.array_equal(layer.parameters["out_proj.weight"], theirs.out_proj.weight.detach().numpy())
