"""throughtime.jax against the reference, against the layers' tapes, and under jax's transformations."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from comparison import assert_close, assert_same_bits, magnification, rounding_bound
from jax_side import function_of, jax, jnp, settings, tt, zeros_of  # noqa: F401
from problems import ALL_TIMESTEPS, KINDS, Problem, reference_forward, reference_results


def pulled(function, problem):
    """Results, and the gradients of all differentiable operands."""
    operands = (problem.parameters, problem.x, problem.state, zeros_of(problem))
    results, pull = jax.vjp(function, *operands)
    return results, pull((jnp.asarray(problem.d_output), jax.tree.map(jnp.asarray, problem.d_final_state)))


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(kind):
    """Output, state and every gradient, including those of timesteps, which are its derivatives with respect to an
    added number: tests/test_reference.py proves that with autograd."""
    problem = Problem(kind, L=2, D=2)
    function = function_of(kind)
    (output, state), (d_params, d_x, d_state, timesteps) = pulled(
        jax.jit(lambda *of: function(*of[:3], lengths=problem.lengths, perturbations=of[3])), problem
    )
    found = {"output": output, "final_state": state, "parameters": d_params, "input": d_x, "initial_state": d_state}
    record = reference_forward(problem, {"state": problem.state, "lengths": problem.lengths})
    loss = {"d_output": problem.d_output, "d_final_state": problem.d_final_state}
    expected = reference_results(problem, record, loss=loss)
    bound = rounding_bound(problem.dtype, problem.terms) * magnification(record)
    assert timesteps.keys() == expected.keys() & {*ALL_TIMESTEPS} - {"parameter_norms"}
    for name, array in (found | timesteps).items():
        assert_close(array, expected[name], bound, name)


@pytest.mark.parametrize(
    ("sizes", "jitted"),
    [
        ({"L": 2, "D": 2, "dtype": "float32"}, True),
        ({"L": 2, "D": 2, "bias": False}, False),
        ({"T": 1, "B": 1, "I": 1}, True),
    ],
)
def test_gives_the_tape_s_bits(kind, sizes, jitted):
    """The same kernels on the same numbers, with lengths too."""
    problem = Problem(kind, **sizes)
    function = function_of(kind)

    def run(params, x, state, perturbations):
        return function(params, x, state, lengths=problem.lengths, perturbations=perturbations)

    (output, state), gradients = pulled(jax.jit(run) if jitted else run, problem)
    tape = problem.layer().forward(problem.x, problem.state, problem.lengths)
    grads = tape.backward(problem.d_output, problem.d_final_state, timesteps=ALL_TIMESTEPS)
    timesteps = {name: getattr(grads, name) for name in zeros_of(problem)}
    ours = jax.tree.map(np.asarray, (output, state, *gradients))
    expected = (tape.output, tape.final_state, grads.parameters, grads.input, grads.initial_state, timesteps)
    assert_same_bits(ours, expected)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_finite_differences(kind):
    """jax's own check, with its tolerances: differences along a random direction, in float64."""
    problem = Problem(kind, T=4, D=2)
    function = function_of(kind)

    def loss(params, x, state):
        output, final = function(params, x, state)
        return output, final

    jax.test_util.check_grads(loss, (problem.parameters, problem.x, problem.state), order=1, modes=["rev"])


def loss_of(problem, **options):
    """A number that depends unevenly on every output and on the final state."""
    function = function_of(problem.kind)

    def loss(params, x, state):
        output, final = function(params, x, state, **options)
        return jnp.sum(output**2) + sum(jnp.sum(jnp.sin(one)) for one in jax.tree.leaves(final))

    return loss


def several(problem, what, count=3):
    """Several problems' attribute `what`, stacked, and one by one."""
    ones = [getattr(Problem(**{**vars_of(problem), "seed": seed}), what) for seed in range(count)]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *ones), ones


def vars_of(problem):
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


def loops(function, *operands):
    """Whether jax's program for the function has a loop."""
    return "scan[" in str(jax.make_jaxpr(function)(*operands))


@pytest.mark.parametrize(
    ("kind", "mapped"), [("gru_original", "x"), ("lstm_projected", "state"), ("lstm_projected", "parameters")]
)
def test_vmap_of_the_gradient(kind, mapped):
    """Gradients of each entry, including those of weights, equal those of successive calls."""
    problem = Problem(kind, L=2, D=2)
    names = ("parameters", "x", "state")
    operands = [several(problem, mapped)[0] if name == mapped else getattr(problem, name) for name in names]
    gradient = jax.jit(jax.grad(loss_of(problem, lengths=problem.lengths), argnums=(0, 1, 2)))
    found = jax.jit(jax.vmap(gradient, in_axes=[0 if name == mapped else None for name in names]))(*operands)
    for index, one in enumerate(several(problem, mapped)[1]):
        expected = gradient(*(one if name == mapped else getattr(problem, name) for name in names))
        assert_close(jax.tree.map(lambda a, i=index: a[i], found), expected, 2 * problem.bound)


@pytest.mark.parametrize("kind", ["gru", "lstm_peephole"])
def test_gradient_of_vmap_is_one_fused_call(kind):
    """If the mapped axis is summed over, it becomes part of the batch: no loop, and the same sum."""
    problem = Problem(kind, L=2)
    loss, (xs, ones) = loss_of(problem), several(problem, "x")

    def total(params):
        return jax.vmap(loss, in_axes=(None, 0, None))(params, xs, problem.state).sum()

    expected = [jax.grad(loss)(problem.parameters, x, problem.state) for x in ones]
    for function in (jax.grad(total), jax.grad(jax.jit(total)), jax.grad(jax.checkpoint(total))):
        assert not loops(function, problem.parameters)
        found = function(problem.parameters)
        assert_close(found, jax.tree.map(lambda *of: sum(of), *expected), 2 * 3 * problem.bound)


def test_vmap_of_the_gradient_loops_for_weights_alone():
    """With respect to x it is one call; each entry's own gradient of the weights takes one call per entry."""
    problem = Problem("lstm")
    xs, _ = several(problem, "x")
    for argnum, expected in [(0, True), (1, False), (2, False)]:
        function = jax.vmap(jax.grad(loss_of(problem), argnums=argnum), in_axes=(None, 0, None))
        assert loops(function, problem.parameters, xs, problem.state) == expected


def test_vmap_over_any_axis_twice_and_over_lengths():
    """Axes 2 and 0 of x, with lengths mapped too: equal to one call per entry."""
    problem = Problem("gru", T=5, B=2)
    x = problem.random("xs", (4, 5, 2, 3, problem.I))  # two axes to map, 0 and 3
    lengths = np.array([[5, 0], [2, 3], [1, 4], [5, 5]])

    def one(x, lengths):
        return tt.jax.gru(problem.parameters, x, problem.state, lengths=lengths)

    output, state = jax.vmap(jax.vmap(one, in_axes=(2, None), out_axes=2))(x, lengths)
    for i in range(4):
        for j in range(3):
            expected = one(x[i, :, :, j], lengths[i])
            assert_close((output[i, :, :, j], state[i, :, :, j]), expected, problem.bound)


def test_jacobian_by_vmap_of_the_pullback():
    """jacrev maps only over cotangents."""
    problem = Problem("lstm", T=3, B=1, H=2)

    def last(x):
        return tt.jax.lstm(problem.parameters, x, problem.state)[0][-1].ravel()

    rows = [jax.grad(lambda x, k=k: last(x)[k])(problem.x) for k in range(2)]
    assert_close(jax.jacrev(last)(problem.x), jnp.stack(rows), problem.bound)


def test_shared_perturbations_collect_the_sum():
    """Under vmap inside grad, unmapped perturbations have the summed gradient of all entries."""
    problem = Problem("lstm")
    xs, ones = several(problem, "x")

    def loss(x, perturbations):
        return jnp.sum(tt.jax.lstm(problem.parameters, x, perturbations=perturbations)[0] ** 2)

    zeros = zeros_of(problem)
    found = jax.grad(lambda of: jax.vmap(loss, in_axes=(0, None))(xs, of).sum())(zeros)
    expected = [jax.grad(loss, argnums=1)(x, zeros) for x in ones]
    assert_close(found, jax.tree.map(lambda *of: sum(of), *expected), 3 * problem.bound)


def test_nothing_is_computed_that_nobody_asked_for():
    """The outputs of the backward's call show it."""
    problem = Problem("lstm")
    asked = {0: ("d_input=False", "d_parameters=True"), 1: ("d_input=True", "d_parameters=False")}
    for argnum, expected in asked.items():
        jaxpr = str(
            jax.make_jaxpr(jax.grad(loss_of(problem), argnums=argnum))(problem.parameters, problem.x, problem.state)
        )
        text = jaxpr.replace("('", "").replace("', ", "=").replace("'", "")
        assert all(one in text for one in expected)


def test_two_calls_in_flight():
    """Jitted steps from two Python threads, dispatched without waiting: the same bits as a step alone."""
    problem = Problem("lstm", T=200, B=8, I=16, H=32, dtype="float32")
    step = jax.jit(jax.grad(loss_of(problem)))
    expected = jax.tree.map(np.asarray, step(problem.parameters, problem.x, problem.state))
    found = {}

    def work(name):
        found[name] = [step(problem.parameters, problem.x, problem.state) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps in found.values():
        for one in steps:
            assert_same_bits(jax.tree.map(np.asarray, one), expected)


def test_donated_buffers():
    """Parameters and state donated to the step that replaces them: the values of steps that keep theirs."""
    problem = Problem("gru", L=2, dtype="float32")

    def step(params, state):
        def loss(params):
            output, final = tt.jax.gru(params, problem.x, state)
            return jnp.sum(output**2), final

        gradients, final = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, gradients), final

    expected = ours = jax.tree.map(jnp.array, (dict(problem.parameters), problem.state))
    keep, give = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        expected = keep(*expected)
    ours = jax.tree.map(jnp.copy, ours)
    for _ in range(3):
        given, ours = ours, give(*ours)
        assert all(array.is_deleted() for array in jax.tree.leaves(given))
    assert_same_bits(jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, expected))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_an_empty_batch(kind):
    """Empty results, and zero gradients of the parameters."""
    problem = Problem(kind, B=0, L=2, D=2)
    (output, state), (d_params, d_x, d_state, d) = pulled(
        jax.jit(lambda *of: function_of(kind)(*of[:3], perturbations=of[3])), problem
    )
    assert output.shape == (problem.T, 0, 2 * problem.H)
    assert jax.tree.map(jnp.shape, (state, d_x, d_state, d)) == jax.tree.map(
        jnp.shape, (problem.state, problem.x, problem.state, zeros_of(problem))
    )
    assert_same_bits(jax.tree.map(np.asarray, d_params), jax.tree.map(np.zeros_like, problem.parameters))


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm"])
def test_without_a_batch_axis(kind):
    problem = Problem(kind, B=1, L=2)
    function, first = function_of(kind), jax.tree.map(lambda a: a[:, 0], (problem.x, problem.state))
    zeros = jax.tree.map(lambda a: a[:, :, 0], zeros_of(problem))
    batched = function(problem.parameters, problem.x, problem.state, lengths=[4])
    assert_same_bits(
        jax.tree.map(np.asarray, function(problem.parameters, *first, lengths=4, perturbations=zeros)),
        jax.tree.map(lambda a: np.asarray(a)[:, 0], batched),
    )


def test_a_gru_with_layer_normalisation_resets_after_the_product():
    problem = Problem("gru_layer_norm")
    with pytest.raises(ValueError, match=r"'weight_ln_ih_l0'.*reset_after=False.*expected reset_after=True"):
        tt.jax.gru(problem.parameters, problem.x, reset_after=False)


LSTM = Problem("lstm", L=2)
PARAMS = LSTM.parameters
PROJECTED = Problem("lstm_projected").parameters


def without(params, name):
    return {key: value for key, value in params.items() if key != name}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"params": list(PARAMS.values())}, TypeError, "params must be a dict of name to array, got list"),
        ({"params": without(PARAMS, "weight_hh_l0")}, ValueError, "params has no 'weight_hh_l0', but"),
        ({"params": without(PARAMS, "bias_hh_l1")}, ValueError, r"missing 'bias_hh_l1' \(24,\)"),
        ({"params": PARAMS | {"extra": np.zeros(2)}}, ValueError, r"unexpected 'extra' \(2,\)"),
        (
            {"params": PARAMS | {"weight_ih_l1": np.zeros((24, 5))}},
            ValueError,
            r"'weight_ih_l1' has shape \(24, 5\), expected \(24, 6\)",
        ),
        ({"params": PARAMS | {"weight_hh_l0": np.zeros(5)}}, ValueError, r"params\['weight_hh_l0'\] has shape \(5,\)"),
        ({"params": PARAMS | {"bias_ih_l0": [1.0]}}, TypeError, r"params\['bias_ih_l0'\] must be an array, got list"),
        (
            {"params": PARAMS | {"bias_ih_l0": np.zeros(24, np.float32)}},
            TypeError,
            r"params\['bias_ih_l0'\] has dtype float32, expected float64",
        ),
        ({"params": without(PROJECTED, "weight_hr_l0")}, ValueError, "'weight_hh_l0' has shape"),
        ({"params": {**PARAMS, 0: np.zeros(2)}}, TypeError, "params has the name 0, expected strings"),
        ({"x": [[1.0]]}, TypeError, "x must be an array, got list"),
        ({"x": np.zeros((7, 3, 5), np.int64)}, TypeError, "x has dtype int64, expected float32 or float64"),
        ({"x": np.zeros(5)}, ValueError, r"x has shape \(5,\), expected \(T, B, I\), or \(T, I\) unbatched"),
        ({"x": np.zeros((0, 3, 5))}, ValueError, "x has no timesteps"),
        (
            {"x": np.zeros((7, 3, 4))},
            ValueError,
            r"x has 4 features in its last axis, but params\['weight_ih_l0'\] has 5",
        ),
        ({"state": LSTM.state[0]}, TypeError, r"state must be a pair \(h_0, c_0\) for lstm, got ndarray"),
        ({"state": LSTM.state[:1]}, TypeError, r"state must be a pair \(h_0, c_0\) for lstm, got 1 entries"),
        (
            {"state": (LSTM.state[0], LSTM.state[1][:, :2])},
            ValueError,
            r"state\[1\] has shape \(2, 2, 6\), expected \(2, 3, 6\)",
        ),
        ({"lengths": [1, 2]}, ValueError, r"lengths has shape \(2,\), expected \(3,\)"),
        ({"lengths": [1, 2, 8]}, ValueError, r"lengths\[2\] is 8, expected 0 to T = 7"),
        ({"lengths": [1.0, 2, 3]}, TypeError, "lengths must be integers, got dtype float64"),
        ({"perturbations": 1}, TypeError, "perturbations must be a dict of name to array, got int"),
        (
            {"perturbations": {"output": 1}},
            ValueError,
            "perturbations has 'output', expected some of 'hidden', 'cell', 'gates'",
        ),
        (
            {"perturbations": {"cell": np.zeros((1, 7, 3, 6))}},
            ValueError,
            r"perturbations\['cell'\] has shape \(1, 7, 3, 6\), expected \(2, 7, 3, 6\)",
        ),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_errors_name_the_argument(arguments, error, message, jitted):
    """Also while jax traces; only the values of lengths are checked later."""

    def call():
        return tt.jax.lstm(**{"params": PARAMS, "x": LSTM.x, **arguments})

    with pytest.raises(error, match=message):
        jax.jit(call)() if jitted else call()


NO_ARRAYS = {
    "a string": lambda: "weights",
    "bytes": lambda: b"abc",
    "a class": lambda: np.float64,
    "a class of jax": lambda: jnp.float32,
    "the class of arrays": lambda: np.ndarray,
    "a dtype": lambda: np.dtype("float64"),
    "a shape": lambda: jax.ShapeDtypeStruct((7, 3, 5), np.float64),
    "a key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0), 3),
    "a ragged list": lambda: [[1, 2], [3]],
    "a list of keys": lambda: [jax.random.key(0)] * 3,
    "a dict": lambda: {"x": 1},
    "a function": lambda: len,
    "objects": lambda: np.array([None, "a", 2], object),
    "a masked array": lambda: np.ma.masked_array(np.zeros(3, int), mask=True),
}
PLACES = {  # arguments with the value in that place, and the beginning of its error
    "x": (lambda value: {"x": value}, "x "),
    "params": (lambda value: {"params": PARAMS | {"bias_hh_l1": value}}, r"params\['bias_hh_l1'\] "),
    "state": (lambda value: {"state": (LSTM.state[0], value)}, r"state\[1\] "),
    "lengths": (lambda value: {"lengths": value}, "lengths "),
    "perturbations": (lambda value: {"perturbations": {"cell": value}}, r"perturbations\['cell'\] "),
}


@pytest.mark.parametrize("what", NO_ARRAYS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("jitted", [False, True])
def test_what_is_no_array_is_a_type_error(what, place, jitted):
    """The error names the argument and the value."""
    arguments, begins = PLACES[place]

    def call():
        return tt.jax.lstm(**{"params": PARAMS, "x": LSTM.x, **arguments(NO_ARRAYS[what]())})

    with pytest.raises(TypeError, match=f"^{begins}(must be|has dtype).*(got|expected)"):
        jax.jit(call)() if jitted else call()


@pytest.mark.parametrize("place", PLACES)
def test_a_traced_key_is_a_type_error(place):
    arguments, begins = PLACES[place]

    def call(key):
        return tt.jax.lstm(**{"params": PARAMS, "x": LSTM.x, **arguments(key)})

    with pytest.raises(TypeError, match=f"^{begins}must be a NumPy or jax array of numbers, got .* of key<"):
        jax.jit(call)(jax.random.key(0))


@pytest.mark.parametrize("place", ["x", "params", "state"])
def test_none_is_a_type_error_where_it_is_no_default(place):
    arguments, begins = PLACES[place]
    with pytest.raises(TypeError, match=f"^{begins}must be an array, got NoneType"):
        tt.jax.lstm(**{"params": PARAMS, "x": LSTM.x, **arguments(None)})


@pytest.mark.parametrize("value", [None, "weights", [1, 2], np.float64, np.zeros(3)])
def test_params_that_are_no_dict(value):
    with pytest.raises(TypeError, match=r"^params must be a dict of name to array, got"):
        tt.jax.gru(value, LSTM.x)


def test_an_array_of_its_own_kind_converts_itself():
    """As flax's variables do."""

    class Variable:
        def __init__(self, value):
            self.value = value

        def __getattr__(self, name):
            return getattr(self.value, name)

        def __jax_array__(self):
            return jnp.asarray(self.value)

    wrapped = {name: Variable(value) for name, value in PARAMS.items()}
    expected = tt.jax.lstm(PARAMS, LSTM.x)
    assert_same_bits(*jax.tree.map(np.asarray, (tt.jax.lstm(wrapped, Variable(LSTM.x)), expected)))


def test_traced_lengths_are_checked_too():
    """Their shape and dtype during tracing, their values by the kernel."""
    run = jax.jit(lambda lengths: tt.jax.lstm(PARAMS, LSTM.x, lengths=lengths))
    with pytest.raises(ValueError, match=r"lengths has shape \(2,\), expected \(3,\)"):
        run(jnp.array([1, 2]))
    with pytest.raises(TypeError, match="lengths must be integers, got dtype float64"):
        run(jnp.array([1.0, 2, 3]))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"lengths\[1\] is 8, expected 0 to T = 7"):
        jax.block_until_ready(run(jnp.array([1, 8, 3])))


def test_float64_says_how():
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(TypeError, match=r"x has dtype float64.*jax.config.update\('jax_enable_x64', True\)"):
        tt.jax.lstm(PARAMS, LSTM.x)


def test_other_derivatives_say_that_they_are_not_there():
    def run(x):
        return tt.jax.lstm(PARAMS, x)[0].sum()

    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(run, (LSTM.x,), (LSTM.x,))
    with pytest.raises(NotImplementedError, match="first derivatives in reverse mode only"):
        jax.grad(lambda x: jnp.sum(jax.grad(run)(x) ** 2))(LSTM.x)


def test_an_environment_without_jax_says_how_to_install_it():
    code = "import sys; sys.modules['jax'] = None; import throughtime.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: throughtime.jax needs jax" in done.stderr
