"""`throughtime bench` on tiny layers: answers of all contenders, timing, and the complete command."""

from __future__ import annotations

import json
import sys
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

import throughtime as tt
from throughtime import _core
from throughtime.cli import app
from throughtime.cli.bench import accuracy, machine
from throughtime.cli.bench.layers import cpu, device, implementations
from throughtime.cli.bench.layers.dtypes import Numbers
from throughtime.cli.bench.layers.implementations import OURS, Ours, reference
from throughtime.cli.bench.layers.problems import BACKWARD, CELLS, CPU_PROBLEMS, STEP, Recurrence, host_data
from throughtime.cli.bench.process import Process

SMALL = Recurrence("GRU", 20, 3, 5, 6)
LAST = SMALL._replace(timed=(BACKWARD,))


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Short turns; one thread, because OpenMP threads wait for milliseconds if other programs occupy the cores."""
    for name, seconds in {"REST": 0.0, "WARM": 1e-9, "FILL": 1e-9}.items():
        monkeypatch.setattr(device, name, seconds)
    monkeypatch.setenv("NPROC", "1")
    threads = tt.get_num_threads()
    tt.set_num_threads(1)
    yield
    tt.set_num_threads(threads)


def each(problem):
    return tuple(problem._replace(cell=cell) for cell in CELLS)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on tiny problems; reports a quiet machine without measuring it."""
    lean = SMALL._replace(cell="LSTM", lean=True)
    here = {"stream": each(SMALL), "vanishing": each(LAST), "million": (lean,)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cpu, "CPU_PROBLEMS", here)
    monkeypatch.setattr(cpu, "CPU_DEFAULT", ("stream",))
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    monkeypatch.setattr(machine, "load", lambda: 0.0)

    def call(arguments, code=0):
        done = CliRunner().invoke(app, ["bench", "--threads", "1", "--json", "b.json", *arguments.split()])
        assert done.exit_code == code, done.output
        data = json.loads((tmp_path / "b.json").read_text())
        return done.output, data

    return call


# Answers


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("problem", [SMALL, LAST], ids=["all", "last"])
@pytest.mark.parametrize("name", ["torch", "torch-bfloat16", "torch-loop", "jax", OURS])
def test_contenders_agree_with_float64(name, problem, cell):
    pytest.importorskip(implementations.FRAMEWORKS.get(name, "numpy"))
    problem = problem._replace(cell=cell)
    layer, expected = implementations.load(name, 1)(problem), reference(problem)
    try:
        answers = layer.answers(problem.T)
    except RuntimeError as error:
        if name == "torch-bfloat16" and "primitive descriptor" in str(error):
            pytest.skip("torch has no bfloat16 LSTM on this processor")
        raise
    states = {"hidden", "cell"} if cell == "LSTM" else {"hidden"}
    parameters = host_data(problem).parameters
    assert set(answers) == {"output", "input", *parameters} | (states if name in (OURS, "torch-loop") else set())
    numbers = Numbers("float32", implementations.PRECISIONS.get(name, "highest"))
    allowed = accuracy.bound(problem.terms(problem.T), numbers.product_error(ours=True))
    assert accuracy.verdict(accuracy.errors(answers, expected), allowed) is None
    layer.forward()
    layer.backward()
    again = layer.answers(problem.T)
    assert all(np.array_equal(again[tensor], answers[tensor]) for tensor in answers)


def test_a_layer_has_the_same_data_in_every_process():
    one, other = (host_data.__wrapped__(SMALL) for _ in range(2))
    assert np.array_equal(one.x, other.x)
    assert np.array_equal(one.d_output, other.d_output)
    assert all(np.array_equal(one.parameters[name], other.parameters[name]) for name in one.parameters)
    last = host_data(LAST).d_output
    assert not last[:-1].any()
    assert last[-1].all()


@pytest.mark.parametrize("name", cpu.CPU_DEFAULT)
def test_the_bound_tells_bfloat16_from_float32(name):
    """bfloat16 products are off by at least 2^-9; the bound for float32 must reject that."""
    medium = Numbers("float32", "medium").product_error(ours=True)
    for problem in CPU_PROBLEMS[name]:
        terms = problem.terms(problem.T)
        assert 1e-6 < accuracy.bound(terms) < 2**-9 < accuracy.bound(terms, medium) < 0.05


# Times


def test_a_turn_leaves_out_its_first_step_and_fills_its_time(monkeypatch):
    monkeypatch.setattr(device, "FILL", 5.0)
    times = iter([100.0, 1.0, 3.0, 2.0, 100.0])
    assert device.turn(lambda: next(times)) == 2.0
    assert next(times) == 100.0


@pytest.mark.parametrize(("timed", "calls"), [(STEP, ["step"] * 2), (BACKWARD, ["forward", "backward"] * 2)])
def test_the_backward_alone_is_timed_after_a_forward(timed, calls):
    called = []

    class Layer:
        def __getattr__(self, name):
            return lambda: called.append(name)

    device.Cpu().turn(Layer(), timed)
    assert called == calls


def test_the_work_is_that_of_the_products():
    assert SMALL.work(STEP).operations == 6 * 20 * 3 * 3 * 6 * (5 + 6)
    assert SMALL.work(BACKWARD).operations * 3 == SMALL.work(STEP).operations * 2


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_of_a_step():
    """At least the size of the gradients of x and of the states, which the step returns."""
    problem = Recurrence("LSTM", 500, 16, 64, 64)
    data = host_data(problem)
    least = data.x.nbytes + 2 * data.d_output.nbytes
    with closing(Process(cpu.PeakMemory, OURS, problem, 1, "highest", "full")) as process:
        found = process.call("measure")
    assert found is None or least < found < 20 * least  # None if the kernel does not reset the peak


# The command


def test_everything_is_written(run):
    output, data = run("--problems stream vanishing --against torch torch-loop --rounds 3 --plot b.png")
    assert (data["device"], data["threads"], data["rounds"], data["skipped"]) == ("cpu", 1, 3, [])
    assert set(data["versions"]) == {"python", "throughtime", "numpy", "torch"}
    assert [(found["problem"], found["cell"]) for found in data["results"]] == [
        (name, cell) for name in ("stream", "vanishing") for cell in CELLS
    ]
    rows = [line.split() for line in output.splitlines()]
    for found in data["results"]:
        assert found["sizes"] == {"T": 20, "B": 3, "I": 5, "H": 6}
        vanishing = found["problem"] == "vanishing"
        assert list(found["contenders"]) == [OURS, "torch", "torch-loop", *([cpu.EVERY] if vanishing else [])]
        for name, outcome in found["contenders"].items():
            assert len(outcome["seconds"]) == 3
            assert outcome["flops"] > 0
            assert {"output", "input", "weight_ih_l0", "bias_hh_l0"} <= set(outcome["errors"])
            assert outcome["peak_memory_bytes"] is None or name != cpu.EVERY
        for name in ("torch", "torch-loop"):
            assert [found["problem"], found["cell"], name] in [row[:3] for row in rows]
        if vanishing:
            assert f"vanishing {found['cell']}: our backward takes" in output
    assert "load 0.00 before, 0.00 after, this command included" in output


def test_precisions_and_memory_modes_take_turns_in_one_case(run):
    output, data = run("--cells LSTM --against torch --precision highest medium --memory states --rounds 1 --no-memory")
    (found,) = data["results"]
    medium = "throughtime, medium"
    assert list(found["contenders"]) == [OURS, f"{OURS}, states", medium, f"{medium}, states", "torch"]
    assert {(ratio["of"], ratio["over"]) for ratio in found["ratios"].values()} == {
        *{("torch", OURS), ("torch", medium), (f"{OURS}, states", OURS), (f"{medium}, states", medium)},
    }
    tapes = {name: outcome.get("tape_bytes") for name, outcome in found["contenders"].items()}
    assert tapes[f"{OURS}, states"] < tapes[OURS] == tapes[medium]
    assert f"stream LSTM: tape of {OURS}, states: 0.0" in output
    assert ["stream", "LSTM,", "medium", "torch"] in [line.split()[:4] for line in output.splitlines()]
    assert tt.get_matmul_precision() == "highest"


def test_the_title_warns_of_a_busy_machine(run, monkeypatch):
    monkeypatch.setattr(machine, "load", lambda: 1.5)
    output, _ = run("--cells RNN --rounds 1 --no-memory")
    assert "BUSY MACHINE, do not rely on these times: load 1.50 at the start" in output.splitlines()[0]


def test_a_lean_problem_is_measured_alone(run, monkeypatch):
    monkeypatch.setattr(cpu.CpuCase, "memory", lambda *_: host_data(SMALL).x.nbytes + 2_500_000)
    output, data = run("--problems million --against torch --memory states --rounds 1")
    assert "million LSTM: 2.50 MB above the input and its gradient" in output
    (found,) = data["results"]
    assert list(found["contenders"]) == [OURS]
    assert {"hidden", "cell"}.isdisjoint(found["contenders"][OURS]["errors"])


class Wrong(Ours):
    """Ours, with one gradient off by 1 %."""

    def answers(self, compared):
        found = super().answers(compared)
        return found | {"weight_hh_l0": found["weight_hh_l0"] * np.float32(1.01)}


def test_a_wrong_answer_is_not_timed_and_fails_the_command(run, monkeypatch):
    load = implementations.load
    monkeypatch.setattr(cpu, "load", lambda name, threads: Wrong if name == "torch" else load(name, threads))
    output, data = run("--cells GRU --rounds 2 --no-memory", code=1)
    assert "wrong, not timed: torch on stream GRU: the gradient of weight_hh_l0 is off by 1.0e-02" in output
    (found,) = data["results"]
    assert [len(outcome["seconds"]) for outcome in found["contenders"].values()] == [2, 0]


def test_without_the_framework_it_says_what_to_install_and_measures_ours(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    output, data = run("--against torch jax --cells RNN --rounds 1 --no-memory --plot b.png")
    lines = output.splitlines()
    assert lines[0] == "torch is not installed: pip install torch --index-url https://download.pytorch.org/whl/cpu"
    assert lines[1] == "jax is not installed: pip install jax"
    assert "stream   RNN" in output
    assert lines[-1] == "no plot: there is no ratio without a contender"
    assert list(data["results"][0]["contenders"]) == [OURS]
