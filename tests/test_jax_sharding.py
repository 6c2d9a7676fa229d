"""throughtime.jax over two devices: every way in which jax splits arrays gives the results of one device."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from comparison import assert_close
from jax_side import function_of, jax, jnp, settings, tt, zeros_of  # noqa: F401
from problems import Problem

P = jax.sharding.PartitionSpec
AXIS = "data"
SPLIT = {"x": P(None, AXIS), "state": P(None, AXIS), "perturbations": P(None, None, AXIS), "lengths": P(AXIS)}


@pytest.fixture
def mesh():
    if len(jax.devices("cpu")) < 2:
        pytest.skip("jax had started with one device")
    return jax.sharding.Mesh(np.array(jax.devices("cpu")[:2]), (AXIS,))


def operands_of(problem):
    return {
        "params": problem.parameters,
        "x": problem.x,
        "state": problem.state,
        "perturbations": zeros_of(problem),
        "lengths": problem.lengths,
    }


def loss_of(problem):
    """A function of operands by name: a sum over sequences that weights every output and final state unevenly."""
    function = function_of(problem.kind)

    def loss(operands):
        output, final = function(**operands)
        return jnp.sum(output**2) + sum(jnp.sum(jnp.sin(one)) for one in jax.tree.leaves(final))

    return loss


def value_and_grads(loss, operands):
    """Of all operands except lengths."""
    floats = {name: value for name, value in operands.items() if name != "lengths"}
    lengths = {name: value for name, value in operands.items() if name == "lengths"}
    value, grads = jax.value_and_grad(lambda of: loss(of | lengths))(floats)
    return {"value": value, **grads}


def specs_of(operands):
    return {name: SPLIT.get(name, P()) for name in operands}


def check(found, problem, loss, operands):
    """`found` is the result of one device, both within `bound` of the truth."""
    expected = value_and_grads(loss, jax.tree.map(jnp.asarray, operands))
    assert_close(*jax.tree.map(np.asarray, (found, expected)), 2 * problem.bound)


def gradients_in(operands):
    return {"value": P(), **{name: spec for name, spec in specs_of(operands).items() if name != "lengths"}}


def gradient_inside(loss, operands, mesh):
    """The gradient of a loss over all devices, computed by each device."""

    def inside(operands):
        return value_and_grads(lambda of: jax.lax.psum(loss(of), AXIS), operands)

    return jax.shard_map(inside, mesh=mesh, in_specs=(specs_of(operands),), out_specs=gradients_in(operands))


def gradient_outside(loss, operands, mesh, **options):
    total = jax.shard_map(
        lambda operands: jax.lax.psum(loss(operands), AXIS),
        mesh=mesh,
        in_specs=(specs_of(operands),),
        out_specs=P(),
        **options,
    )
    return partial(value_and_grads, total)


def test_gradient_inside_shard_map(kind, mesh):
    """For parameters that all devices have, the gradient is summed over devices exactly once."""
    problem = Problem(kind, B=4, L=2)
    loss, operands = loss_of(problem), operands_of(problem)
    check(jax.jit(gradient_inside(loss, operands, mesh))(operands), problem, loss, operands)


@pytest.mark.parametrize("kind", ["rnn_relu", "gru", "lstm_projected"])
@pytest.mark.parametrize("options", [{}, {"check_vma": False}], ids=str)
def test_gradient_of_shard_map(kind, options, mesh):
    problem = Problem(kind, B=4)
    loss, operands = loss_of(problem), operands_of(problem)
    check(jax.jit(gradient_outside(loss, operands, mesh, **options))(operands), problem, loss, operands)


def test_shard_map_without_jit(mesh):
    problem = Problem("rnn_tanh", T=2, B=2)
    loss, operands = loss_of(problem), {"params": problem.parameters, "x": problem.x}
    check(gradient_inside(loss, operands, mesh)(operands), problem, loss, operands)


@pytest.mark.parametrize("gradient", [gradient_inside, gradient_outside])
@pytest.mark.parametrize("transform", [jax.checkpoint, jax.jit])
def test_transformed_loss_under_shard_map(gradient, transform, mesh):
    problem = Problem("lstm", B=4)
    loss, operands = loss_of(problem), operands_of(problem)
    check(jax.jit(gradient(transform(loss), operands, mesh))(operands), problem, loss, operands)


def test_an_output_that_varies_says_so(mesh):
    """jax does not assume that it is equal on all devices."""
    problem = Problem("gru", B=4)
    run = jax.shard_map(lambda x: tt.jax.gru(problem.parameters, x)[0], mesh=mesh, in_specs=SPLIT["x"], out_specs=P())
    with pytest.raises(ValueError, match="could not infer replication over any axes"):
        jax.jit(run)(problem.x)


@pytest.mark.parametrize("gradient", [gradient_inside, gradient_outside])
def test_vmap_under_shard_map(gradient, mesh):
    """Each device maps over its own sequences."""
    problem = Problem("lstm", B=4)
    operands = {"params": problem.parameters, "x": problem.x, "state": problem.state}
    loss = loss_of(problem)

    def mapped(operands):
        def one(x, state):
            return loss({"params": operands["params"], "x": x, "state": state})

        return jnp.sum(jax.vmap(one, in_axes=(1, 1))(operands["x"], operands["state"]))

    check(jax.jit(gradient(mapped, operands, mesh))(operands), problem, loss, operands)


def test_vmap_of_the_gradient_under_shard_map(mesh):
    """Each sequence's own gradient of the weights needs a loop, which every device runs for its own sequences."""
    problem = Problem("gru", B=4)
    loss = loss_of(problem)

    def gradients(params, x):
        return jax.vmap(lambda params, x: jax.grad(lambda of: loss({"params": of, "x": x}))(params), (None, 1))(
            params, x
        )

    def inside(params, x):
        return gradients(jax.tree.map(lambda a: a + 0 * x[0, 0, 0], params), x)  # varies: not summed over devices

    run = jax.shard_map(inside, mesh=mesh, in_specs=(P(), SPLIT["x"]), out_specs=P(AXIS))
    assert_close(jax.jit(run)(problem.parameters, problem.x), gradients(problem.parameters, problem.x), problem.bound)


def test_shard_map_under_vmap(mesh):
    problem = Problem("lstm", B=4)
    loss, xs = loss_of(problem), jnp.stack([problem.x, 2 * problem.x])
    total = jax.shard_map(
        lambda params, x: jax.lax.psum(loss({"params": params, "x": x}), AXIS),
        mesh=mesh,
        in_specs=(P(), SPLIT["x"]),
        out_specs=P(),
    )
    found = jax.jit(jax.grad(lambda params: jnp.sum(jax.vmap(total, (None, 0))(params, xs))))(problem.parameters)
    expected = jax.grad(lambda params: sum(loss({"params": params, "x": x}) for x in xs))(problem.parameters)
    assert_close(found, expected, 3 * problem.bound)


def test_a_state_carried_by_scan_under_shard_map(mesh):
    """Successive windows of one step equal the whole sequence."""
    problem = Problem("lstm", B=4)
    operands = {"params": problem.parameters, "x": problem.x, "state": problem.state}

    def windows(operands):
        def step(state, x):
            output, state = tt.jax.lstm(operands["params"], x, state)
            return state, jnp.sum(output**2)

        state, losses = jax.lax.scan(step, operands["state"], operands["x"][:, None])
        return jnp.sum(losses) + sum(jnp.sum(jnp.sin(one)) for one in state)

    check(jax.jit(gradient_inside(windows, operands, mesh))(operands), problem, loss_of(problem), operands)


def test_each_device_has_weights_of_its_own(mesh):
    """x is on all devices then, and its gradient is the sum over them."""
    problems = [Problem("gru", seed=seed) for seed in range(2)]
    loss, x = loss_of(problems[0]), problems[0].x
    params = jax.tree.map(lambda *of: jnp.stack(of), *(problem.parameters for problem in problems))

    def local(params, x):
        return jax.lax.psum(loss({"params": jax.tree.map(lambda a: a[0], params), "x": x}), AXIS)

    run = jax.shard_map(local, mesh=mesh, in_specs=(P(AXIS), P()), out_specs=P())
    d_params, d_x = jax.jit(jax.grad(run, argnums=(0, 1)))(params, x)
    ones = [jax.grad(lambda of: loss(of))({"params": problem.parameters, "x": x}) for problem in problems]
    assert_close(d_x, ones[0]["x"] + ones[1]["x"], 3 * problems[0].bound)
    expected = jax.tree.map(lambda *of: jnp.stack(of), *(one["params"] for one in ones))
    assert_close(d_params, expected, 2 * problems[0].bound)


def test_no_sequence_on_any_device(mesh):
    """Zero gradients of the parameters."""
    problem = Problem("lstm", B=0)
    operands = {"params": problem.parameters, "x": problem.x}
    found = jax.jit(gradient_inside(loss_of(problem), operands, mesh))(operands)
    assert all(not np.any(one) for one in jax.tree.leaves(found["params"]))


def test_pmap(mesh):
    """Gradients computed by each device and summed; and the gradient of a pmap."""
    problem = Problem("gru", B=4)
    loss = loss_of(problem)
    parts = np.stack(np.split(problem.x, 2, axis=1))
    expected = value_and_grads(loss, {"params": problem.parameters, "x": problem.x})

    def local(params, x):
        grads = value_and_grads(loss, {"params": params, "x": x})
        return jax.lax.psum((grads["value"], grads["params"]), AXIS), grads["x"]

    (value, d_params), d_x = jax.pmap(local, axis_name=AXIS, in_axes=(None, 0))(problem.parameters, parts)
    found = {"value": value[0], "params": jax.tree.map(lambda a: a[1], d_params), "x": jnp.concatenate(d_x, axis=1)}
    assert_close(found, expected, 2 * problem.bound)

    def total(params):
        return jnp.sum(jax.pmap(lambda params, x: loss({"params": params, "x": x}), in_axes=(None, 0))(params, parts))

    assert_close(jax.grad(total)(problem.parameters), expected["params"], 2 * problem.bound)


PLACEMENTS = {  # layouts of arrays over devices under jit
    "batch": SPLIT,
    "batch of x alone": {"x": SPLIT["x"]},
    "timesteps": {"x": P(AXIS), "perturbations": P(None, AXIS)},
    "features": {"x": P(None, None, AXIS), "state": P(None, None, AXIS)},
    "parameters": {"params": P(AXIS), "x": SPLIT["x"]},
}


def placed(operands, mesh, specs):
    def place(array, name):
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, specs.get(name, P())))

    return {name: jax.tree.map(partial(place, name=name), operand) for name, operand in operands.items()}


@pytest.fixture
def explicit(mesh):
    """A mesh whose arrays have their split in their types."""
    if not hasattr(jax.sharding, "reshard"):
        pytest.skip("this jax cannot bring together what explicit axes split")
    return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=(jax.sharding.AxisType.Explicit,))


@pytest.mark.parametrize("specs", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("kind_of_mesh", ["mesh", "explicit"])
def test_arrays_that_are_split_under_jit(specs, kind_of_mesh, request):
    """Also if they must be gathered first."""
    problem = Problem("lstm", T=6, B=4, I=4)
    loss, operands = loss_of(problem), operands_of(problem)
    found = jax.jit(partial(value_and_grads, loss))(placed(operands, request.getfixturevalue(kind_of_mesh), specs))
    check(found, problem, loss, operands)


def test_explicit_axes_split_the_work(explicit):
    """Each device has its own sequences, and results are split like x, with jit and without."""
    problem = Problem("gru", B=4)
    loss, operands = loss_of(problem), operands_of(problem)
    given = placed(operands, explicit, SPLIT)
    with jax.set_mesh(explicit):
        run = jax.jit(lambda operands: function_of("gru")(**operands))
        calls = [line for line in run.lower(given).compile().as_text().splitlines() if "throughtime_forward" in line]
        assert calls
        assert all("f64[7,2,6]" in line for line in calls)
        assert run(given)[0].sharding.spec[:2] == (None, AXIS)
        check(value_and_grads(loss, given), problem, loss, operands)


def test_without_a_batch_axis_on_explicit_axes(explicit):
    problem = Problem("gru", T=6, B=1)
    operands = {"params": problem.parameters, "x": problem.x[:, 0]}
    given = placed(operands, explicit, {"x": P(AXIS), "params": P(AXIS)})
    check(jax.jit(partial(value_and_grads, loss_of(problem)))(given), problem, loss_of(problem), operands)
