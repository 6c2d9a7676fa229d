"""`throughtime bench --step` on tiny models: answers of all programs, blocks, processes, and the complete command."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import torch
from typer.testing import CliRunner

import throughtime as tt
from throughtime import _core
from throughtime.cli import app
from throughtime.cli.bench import accuracy, machine
from throughtime.cli.bench.case import NotMeasured
from throughtime.cli.bench.measure import measure
from throughtime.cli.bench.options import Options
from throughtime.cli.bench.process import ProcessError
from throughtime.cli.bench.steps import answers, busy, contenders, host, suite
from throughtime.cli.bench.steps.contenders import COMPILED, MODULES, NUMPY, TORCH
from throughtime.cli.bench.steps.problems import PROBLEMS, Problem, Task

SIZES = {"T": 6, "B": 3, "I": 5, "H": 4}
TINY = {
    name: problem._replace(**SIZES, shortest=None if problem.shortest is None else 2)
    for name, problem in PROBLEMS.items()
}
NAMES = [MODULES, NUMPY, TORCH]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No rests; one thread, because OpenMP threads wait for milliseconds if other programs occupy the cores."""
    monkeypatch.setattr(host, "REST", 0.0)
    before = tt.get_num_threads(), torch.get_num_threads()
    tt.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    tt.set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on tiny problems; reports a quiet machine without measuring it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "PROBLEMS", TINY)
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    monkeypatch.setattr(machine, "load", lambda: 0.0)

    def call(arguments, code=0):
        arguments = ["bench", "--step", "--json", "s.json", "--threads", "1", *arguments.split()]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return done.output, json.loads((tmp_path / "s.json").read_text())

    return call


class Here:
    """The programs in this process instead of separate processes."""

    def __init__(self, task, kind, threads, cache):
        self._host = host.Host(task)

    def call(self, method, *arguments):
        return getattr(self._host, method)(*arguments)

    def close(self):
        pass


def measured(name, cell, start=Here, rounds=1, **options):
    """The result of a tiny problem, in this process."""
    steps = suite.StepSuite(Options(threads=1, no_memory=True, **options))
    (result,) = measure(suite.StepCase(name, Task(TINY[name], cell), steps, start), rounds)
    return result


class Off:
    """A program whose answers are off by 1 %: `what` is a gradient's name or "loss"."""

    def __init__(self, program, what):
        self._program, self._what = program, what

    @property
    def gradients(self):
        found = dict(self._program.gradients)
        if self._what in found:
            found[self._what] = found[self._what] * np.float32(1.01)
        return found

    @property
    def norm(self):
        return self._program.norm

    def step(self):
        return self._program.step() * (1.01 if self._what == "loss" else 1)


# Answers


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name in TINY for cell in TINY[name].cells])
def test_contenders_agree_with_torch_in_float64(name, cell):
    found = measured(name, cell)
    assert list(found.outcomes) == NAMES
    for outcome in found.outcomes.values():
        assert (outcome.wrong, outcome.failed) == (None, None)
        assert len(outcome.details["losses"]) == answers.STEPS
        assert set(outcome.errors) == set(found.case.task.parameters)
        assert len(outcome.seconds) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("recurrent.weight_hh_l0", "the gradient of recurrent.weight_hh_l0 is off by 1.0e-02"),
        ("loss", f"the loss of the first {answers.STEPS} steps is off by up to"),
    ],
)
def test_a_wrong_answer_is_found_and_not_timed(monkeypatch, name, what, words):
    def load(wanted):
        make = contenders.load(wanted)
        return (lambda task: Off(make(task), what)) if wanted == name else make

    monkeypatch.setattr(host, "load", load)
    found = measured("forecast", "GRU", rounds=2)
    assert words in found.outcomes[name].wrong
    assert {who: len(outcome.seconds) for who, outcome in found.outcomes.items()} == {
        who: 0 if who == name else 2 for who in NAMES
    }


def test_a_missing_gradient_and_a_missing_update_are_wrong():
    """If a program's optimiser does nothing, its gradients are right and its losses are not."""
    task = Task(TINY["language"], "LSTM")

    def run(make, idle=False):
        program = make(task)
        if idle:
            program._optimizer.step = lambda *_: None
        return answers.next_steps(program, answers.first_step(program))

    expected = run(contenders.load_reference())
    right, idle = run(contenders.load(NUMPY)), run(contenders.load(NUMPY), idle=True)
    assert answers.fault(task, right, expected) is None
    assert "the loss of the first" in answers.fault(task, idle, expected)
    del right.gradients["linear.bias"]
    assert "the gradient of linear.bias is off by inf" in answers.fault(task, right, expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_bound_tells_bfloat16_from_float32(name):
    for cell in PROBLEMS[name].cells:
        assert 1e-6 < accuracy.bound(Task(PROBLEMS[name], cell).terms) < 2**-9


def test_a_task_is_the_same_in_every_process():
    task, again = Task(TINY["classify"], "LSTM"), Task(TINY["classify"], "LSTM")
    assert all(np.array_equal(task.parameters[name], again.parameters[name]) for name in task.parameters)
    for batch, other in zip(task.batches(), again.batches(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))
    assert {batch.lengths.max() for batch in task.batches()} == {SIZES["T"]}


# Blocks and busy processes


def test_blocks_alternate_after_two_steps_of_their_own(monkeypatch):
    """After all have answered, a block is its own warm-up and its own steps, without interruption."""
    steps = []

    class Silent:
        norm, gradients = 0.0, {}

        def __init__(self, name):
            self.name = name

        def step(self):
            steps.append(self.name)
            return 0.0

    monkeypatch.setattr(host, "load", lambda name: lambda task: Silent(name))
    monkeypatch.setattr(suite, "fault", lambda *_: None)
    monkeypatch.setattr(suite, "gradient_errors", lambda *_: {})
    measured("policy", "GRU", rounds=2)
    block = [name for name in (*NAMES, *reversed(NAMES)) for _ in range(host.WARM + host.STEPS)]
    assert steps[len(NAMES) * answers.STEPS :] == block


def test_busy_processes_run_and_are_ended():
    with busy.busy_processes(2):
        before = os.times()
    after = os.times()
    assert after.children_user + after.children_system > before.children_user + before.children_system


def test_a_busy_process_that_ends_early_is_said(monkeypatch):
    monkeypatch.setattr(busy, "_BUSY_LOOP", "print(flush=True)")
    with pytest.raises(NotMeasured), busy.busy_processes(1):
        time.sleep(2)


# The command


def test_everything_is_written(run):
    output, data = run("--problems policy --rounds 2 --plot s.png")
    assert "BUSY" not in output
    assert (data["threads"], data["rounds"], data["block"]) == (1, 2, {"warm_up_steps": 2, "steps": 5})
    assert "torch" in data["versions"]
    (found,) = data["results"]
    assert (found["problem"], found["cell"]) == ("policy", "GRU")
    assert {name: found["sizes"][name] for name in SIZES} == SIZES
    rows = [line.split()[:3] for line in output.splitlines()]
    for name, outcome in found["contenders"].items():
        assert len(outcome["seconds"]) == 2
        assert outcome["samples_per_second"] == pytest.approx(3 * outcome["steps_per_second"])
        assert outcome["first_call_seconds"] > 0
        assert ["policy", "GRU", "torch.nn" if name == TORCH else name] in rows
        assert {"recurrent.weight_hh_l0", "linear.bias"} <= set(outcome["errors"])
        if name != TORCH:
            assert (found["ratios"][name]["of"], found["ratios"][name]["over"]) == (TORCH, name)
    assert list(found["ratios"]) == [MODULES, NUMPY]


def test_the_readme_table_is_made_of_it(run, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "start_process", Here)
    run("--problems policy forecast --rounds 1 --no-memory")
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import steps_tables

    monkeypatch.setattr(steps_tables, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(f"before\n{steps_tables.BEGIN}{steps_tables.END}after\n")
    steps_tables.main(tmp_path / "s.json")
    short, long = (tmp_path / name for name in ("README.md", "docs/performance.md"))
    assert sum(line.startswith(("| policy | 6 |", "| forecast | 6 |")) for line in short.read_text().splitlines()) == 2
    assert sum(" | GRU | " in line for line in long.read_text().splitlines()) == 2 * len(NAMES)


def test_a_compiler_that_fails_is_said_in_its_row_and_fails_nothing(run, monkeypatch):
    class WithoutCompiler(Here):
        def call(self, method, *arguments):
            if (method, *arguments) == ("answers", COMPILED):
                raise ProcessError("InductorError: no compiler")
            return super().call(method, *arguments)

    monkeypatch.setattr(suite, "start_process", WithoutCompiler)
    output, data = run(f"--problems policy --against {COMPILED} --rounds 1 --no-memory")
    assert ["policy", "GRU", COMPILED, "failed"] in [line.split() for line in output.splitlines()]
    assert f"failed: {COMPILED} on policy GRU: InductorError: no compiler" in output
    (found,) = data["results"]
    assert list(found["contenders"]) == [*NAMES, COMPILED]
    assert found["contenders"][TORCH]["median_seconds"] > 0


@pytest.mark.parametrize(("name", "may"), [(COMPILED, True), (TORCH, False), (MODULES, False), (NUMPY, False)])
def test_only_the_compiler_may_fail(name, may):
    assert suite.StepSuite(Options()).may_fail(name) == may


def test_a_problem_without_a_reference_is_left_out_and_fails_the_command(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    output, data = run("--problems policy --rounds 1", code=1)
    assert "not measured: policy GRU: its process ended: exit code 1" in output
    assert data["skipped"] == ["not measured: policy GRU: its process ended: exit code 1"]


def test_beside_busy_processes_all_threads_are_compared_with_one(run):
    output, data = run("--problems policy --beside 1 --threads 2 --rounds 1")
    assert "2 threads, beside 1 busy process" in output
    assert data["beside"] == 1
    (found,) = data["results"]
    for name in NAMES:
        (one,), (two,) = (found["contenders"][f"{name}, {count}"]["seconds"] for count in ("1 thread", "2 threads"))
        assert found["ratios"][f"{name}, 2 threads over 1"]["rounds"] == [two / one]
        shown = "torch.nn" if name == TORCH else name
        assert any(line.split()[:3] == ["policy", "GRU", shown] for line in output.splitlines())
    assert found["ratios"][NUMPY]["of"] == f"{TORCH}, 2 threads"


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["bench", "--step"])
    assert done.exit_code == 2
    assert "--step compares with torch, which is not installed: pip install torch" in done.stderr


# Processes


def test_the_numpy_program_runs_where_torch_is_not_imported():
    names = SimpleNamespace(names=[NUMPY, TORCH], counts=[1], label=lambda name, _: name, with_memory=False)
    started = {}

    def start(task, kind, threads, cache):
        started[kind] = suite.start_process(task, kind, threads, cache)
        return started[kind]

    case = suite.StepCase("language", Task(TINY["language"], "LSTM"), names, start)
    with case.session(), case.contenders() as found:
        assert list(found) == [NUMPY, TORCH]
        started["numpy"].call("answers", NUMPY)
        if sys.platform == "linux":
            assert "libtorch" not in Path(f"/proc/{started['numpy'].pid}/maps").read_text()
        answered, seconds = started["torch"].call("answers", TORCH)
        assert math.isfinite(answered.losses[-1])
        assert seconds > 0
        with pytest.raises(ProcessError, match="KeyError"):
            started["torch"].call("block", MODULES)  # it has not answered yet
    with pytest.raises(ProcessLookupError):
        os.kill(started["numpy"].pid, 0)


def test_peak_memory_is_that_of_a_new_process():
    found = host.start(Problem(2, 2, 2, 2, 2), "GRU", 1, "numpy").memory(NUMPY)
    assert found is None or found >= 0
