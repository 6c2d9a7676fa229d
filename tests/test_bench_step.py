"""`throughtime bench --step` on tiny models: who is right, in which order, what is written. No time is judged."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import torch
from rich.console import Console
from typer.testing import CliRunner

import throughtime as tt
from throughtime import _core
from throughtime.cli import app
from throughtime.cli.bench.steps import answers, command, contenders, load, measure, remote, report, worker
from throughtime.cli.bench.steps.contenders import COMPILED, MODULES, NUMPY, TORCH
from throughtime.cli.bench.steps.measure import Outcome, Result, Settings
from throughtime.cli.bench.steps.problems import PROBLEMS, Problem, Task

SIZES = {"T": 6, "B": 3, "I": 5, "H": 4}
TINY = {
    name: problem._replace(**SIZES, shortest=None if problem.shortest is None else 2)
    for name, problem in PROBLEMS.items()
}
NAMES = [MODULES, NUMPY, TORCH]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No rests; one thread, since those of OpenMP wait for milliseconds where other programs hold the cores."""
    monkeypatch.setattr(worker, "REST", 0.0)
    before = tt.get_num_threads(), torch.get_num_threads()
    tt.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    tt.set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The command with tiny problems, in processes of its own, on a machine that is quiet and not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "PROBLEMS", TINY)
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    monkeypatch.setattr(command, "load", lambda: 0.0)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, ["bench", "--step", "--threads", "1", *map(str, arguments)])


class Off:
    """A program whose answers are off by a hundredth: `what` is a gradient's name or "loss"."""

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


@contextmanager
def hosts(task, names, threads, cache, host=worker.Host):
    """In this process, in place of workers."""
    started = host(task)
    yield {(name, count): started for name in names for count in threads}


def inject(monkeypatch, name, what):
    """Make this contender's programs wrong, in this process."""
    real = contenders.load
    monkeypatch.setattr(
        worker, "load", lambda wanted: (lambda task: Off(real(wanted)(task), what)) if wanted == name else real(wanted)
    )


def made_up(seconds, name="language", cell="LSTM", threads=2):
    outcomes = {who: Outcome(0.1, {"linear.weight": 1e-7}, seconds={threads: list(s)}) for who, s in seconds.items()}
    return Result(name, Task(TINY[name], cell), outcomes)


# Answers


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name in TINY for cell in TINY[name].cells])
def test_contenders_agree_with_torch_in_float64(name, cell):
    found = measure.measure(name, Task(TINY[name], cell), Settings(NAMES, [1], 1, with_memory=False), start=hosts)
    for outcome in found.outcomes.values():
        assert outcome.wrong is None
        assert outcome.failed is None
        assert len(outcome.losses) == answers.STEPS
        assert set(outcome.errors) == set(found.task.parameters)
        assert len(outcome.seconds[1]) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("recurrent.weight_hh_l0", "the gradient of recurrent.weight_hh_l0 is off by 1.0e-02"),
        ("loss", f"the loss of the first {answers.STEPS} steps is off by up to"),
    ],
)
def test_a_wrong_answer_is_found_and_not_timed(monkeypatch, name, what, words):
    inject(monkeypatch, name, what)
    task = Task(TINY["forecast"], "GRU")
    found = measure.measure("forecast", task, Settings(NAMES, [1], 2, with_memory=False), start=hosts)
    wrong = found.outcomes.pop(name)
    assert words in wrong.wrong
    assert wrong.seconds == {}
    assert found.failing is False  # the others
    assert all(len(outcome.seconds[1]) == 2 for outcome in found.outcomes.values())


def test_a_missing_gradient_and_a_missing_update_are_wrong():
    """Of a program whose optimiser does nothing the gradients are right, and the losses are not."""
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
        assert 1e-6 < answers.rounding(Task(PROBLEMS[name], cell).terms) < 2**-9


def test_a_task_is_the_same_in_every_process():
    task, again = Task(TINY["classify"], "LSTM"), Task(TINY["classify"], "LSTM")
    assert all(np.array_equal(task.parameters[name], again.parameters[name]) for name in task.parameters)
    for batch, other in zip(task.batches(), again.batches(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))
    assert {batch.lengths.max() for batch in task.batches()} == {SIZES["T"]}


# Order and load


def test_the_order_of_the_blocks_alternates():
    places = [(name, 1) for name in "ABC"]
    orders = ["".join(name for name, _ in measure.block_order(places, number)) for number in range(4)]
    assert orders == ["ABC", "CBA", "ABC", "CBA"]


def test_blocks_take_turns_after_two_steps_of_their_own(monkeypatch):
    """Steps of the timed part: each block is its own warm-up and its own steps, with nothing between."""
    steps = []

    class Silent:
        norm, gradients = 0.0, {}

        def __init__(self, name):
            self.name = name

        def step(self):
            steps.append(self.name)
            return 0.0

    host = worker.Host(Task(TINY["policy"], "GRU"))
    host._programs = {name: Silent(name) for name in "AB"}
    sides = {(name, 1): host for name in "AB"}
    outcomes = {name: Outcome() for name in "AB"}
    for number in range(2):
        measure._round(measure.block_order(list(sides), number), sides, outcomes)
    block = worker.WARM + worker.STEPS
    assert steps == [*"A" * block, *"B" * block, *"B" * block, *"A" * block]
    assert [len(outcome.seconds[1]) for outcome in outcomes.values()] == [2, 2]


@pytest.mark.parametrize(
    ("before", "spread", "reasons"),
    [
        (0.3, 0.1, []),
        (0.31, 0.0, ["load 0.31 at the start"]),
        (1.0, 0.25, ["load 1.00 at the start", "a calibration loop spreads by 25%"]),
    ],
)
def test_a_busy_machine(before, spread, reasons):
    assert load.busy_reasons(before, spread) == reasons


def test_the_spread_leaves_a_tenth_out_at_either_end(monkeypatch):
    rates = iter([*[100.0] * 25, *[80.0] * 24, 1.0])
    monkeypatch.setattr(_core, "peak", lambda seconds: next(rates))
    assert load.calibration_spread() == pytest.approx(0.25)


def test_busy_processes_run_and_are_ended():
    with load.busy_processes(2):
        before = os.times()
    after = os.times()
    assert after.children_user + after.children_system > before.children_user + before.children_system


def test_a_busy_process_that_ends_early_is_said(monkeypatch):
    monkeypatch.setattr(load, "_BUSY_LOOP", "print(flush=True)")
    with pytest.raises(load.BusyProcessEnded), load.busy_processes(1):
        time.sleep(2)


# The command


def test_everything_is_written(tiny):
    done = call("--problems", "policy", "--rounds", 2, "--json", "s.json", "--plot", "s.png")
    assert done.exit_code == 0, done.output
    assert (tiny / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "BUSY" not in done.output
    data = json.loads((tiny / "s.json").read_text())
    assert set(data) == {
        *("date", "versions", "machine", "threads", "rounds", "block", "beside", "results", "skipped", "interrupted"),
    }
    assert set(data["versions"]) == {"python", "throughtime", "numpy", "torch"}
    assert {"cpu", "cores", "load_before", "load_after", "calibration_spread", "busy"} <= set(data["machine"])
    assert (data["threads"], data["rounds"], data["block"]) == (1, 2, {"warm_up_steps": 2, "steps": 5})
    assert [(each["problem"], each["cell"]) for each in data["results"]] == [("policy", "GRU")]
    for found in data["results"]:
        assert {name: found["sizes"][name] for name in SIZES} == SIZES
        assert list(found["contenders"]) == NAMES
        theirs = found["contenders"][TORCH]["seconds"]["1"]
        for name, outcome in found["contenders"].items():
            own = outcome["seconds"]["1"]
            assert len(own) == 2
            assert outcome["median_seconds"] == pytest.approx(sum(own) / 2)
            assert outcome["samples_per_second"] == pytest.approx(3 * outcome["steps_per_second"])
            assert outcome["first_step_seconds"] > 0
            assert outcome["wrong"] is outcome["failed"] is None
            assert {"recurrent.weight_hh_l0", "linear.bias"} <= set(outcome["gradient_errors"])
            assert outcome["peak_memory_bytes"] is None or outcome["peak_memory_bytes"] >= 0
            if name != TORCH:
                rounds = [a / b for a, b in zip(theirs, own, strict=True)]
                assert found["ratios"][name]["rounds"] == rounds
                assert found["ratios"][name]["lowest"] == min(rounds)


def test_a_busy_machine_is_said_in_the_first_line(tiny, monkeypatch):
    monkeypatch.setattr(command, "load", lambda: 1.5)
    monkeypatch.setattr(
        command, "measure", lambda name, task, *_: made_up({MODULES: [1.0], NUMPY: [1.0], TORCH: [2.0]})
    )
    done = call("--problems", "policy")
    assert done.exit_code == 0, done.output
    assert "BUSY MACHINE, do not rely on these times: load 1.50 at the start" in done.output.splitlines()[0]


def test_a_wrong_answer_fails_the_command(tiny, monkeypatch):
    inject(monkeypatch, MODULES, "linear.weight")
    real = measure.measure
    monkeypatch.setattr(command, "measure", lambda *arguments: real(*arguments, start=hosts))
    done = call("--problems", "policy", "--rounds", 1, "--no-memory", "--json", "s.json")
    assert done.exit_code == 1, done.output
    assert f"wrong, not timed: {MODULES} on policy GRU: the gradient of linear.weight is off by" in done.output
    (found,) = json.loads((tiny / "s.json").read_text())["results"]
    assert found["contenders"][MODULES]["seconds"] == {}
    assert found["ratios"][MODULES]["median"] is None


class WithoutCompiler(worker.Host):
    """Where torch.compile fails, as it does without a C++ compiler."""

    def answers(self, name):
        if name == COMPILED:
            raise remote.WorkerError("InductorError: no compiler")
        return super().answers(name)


def test_a_compiler_that_fails_is_said_in_its_row_and_fails_nothing(tiny, monkeypatch):
    real = measure.measure
    start = functools.partial(hosts, host=WithoutCompiler)
    monkeypatch.setattr(command, "measure", lambda *arguments: real(*arguments, start=start))
    done = call("--problems", "policy", "--against", COMPILED, "--rounds", 1, "--no-memory", "--json", "s.json")
    assert done.exit_code == 0, done.output
    assert ["policy", "GRU", COMPILED, "failed"] in [line.split() for line in done.output.splitlines()]
    assert f"failed: {COMPILED} on policy GRU: InductorError: no compiler" in done.output
    (found,) = json.loads((tiny / "s.json").read_text())["results"]
    assert list(found["contenders"]) == [*NAMES, COMPILED]
    assert found["contenders"][COMPILED]["failed"] == "InductorError: no compiler"
    assert found["contenders"][TORCH]["median_seconds"] > 0


def test_a_failure_of_ours_fails_the_command():
    found = made_up({MODULES: [1.0], TORCH: [1.0], COMPILED: [1.0]})
    found.outcomes[COMPILED].fail("no compiler")
    assert not found.failing
    found.outcomes[MODULES].fail("no memory")
    assert found.failing


def test_a_problem_without_a_reference_is_left_out_and_fails_the_command(tiny, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    done = call("--problems", "policy", "--rounds", 1)
    assert done.exit_code == 1, done.output
    assert "not measured: policy GRU: its process ended: exit code 1" in done.output


def test_beside_busy_processes_all_threads_are_compared_with_one(tiny):
    arguments = ["--problems", "policy", "--beside", 1, "--threads", 2, "--rounds", 1, "--json", "s.json"]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert "2 threads, beside 1 busy process" in done.output
    data = json.loads((tiny / "s.json").read_text())
    assert data["beside"] == 1
    (found,) = data["results"]
    for name, outcome in found["contenders"].items():
        (one,), (two,) = outcome["seconds"]["1"], outcome["seconds"]["2"]
        assert found["scaling"][name]["rounds"] == [two / one]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "jax"], "--against jax: expected some of torch, torch-compile"),
        (["--problems", "train"], "--problems train: expected some of language, language-wide, forecast"),
        (["--cells", "RNN"], "--cells RNN: expected some of LSTM, GRU"),
        (["--problems", "policy", "--cells", "LSTM"], "none of the problems policy has such a cell"),
        (["--precision", "medium"], "--precision: only without --step"),
        (["--memory", "states"], "--memory: only without --step"),
        (["--device", "cuda"], "--device cuda: only without --step"),
        (["--types", "float16"], "--types: only with --device cuda"),
        (["--beside", 2], "--beside 2: compares several threads with one, got --threads 1"),
        (["--json", "there.json"], "--json there.json: exists already"),
        (["--plot", "there.png"], "--plot there.png: exists already"),
        (["--json", "nowhere/s.json"], "nowhere does not exist"),
    ],
)
def test_refusals_are_one_line_and_come_before_the_work(tiny, monkeypatch, arguments, words):
    (tiny / "there.json").touch()
    (tiny / "there.png").touch()
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("measuring was started"))
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("throughtime: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_beside_needs_step(tiny):
    done = CliRunner().invoke(app, ["bench", "--beside", "1"])
    assert done.exit_code == 2
    assert "--beside: only with --step" in done.stderr


def test_without_torch_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call()
    assert done.exit_code == 2
    assert "--step compares with torch, which is not installed: pip install torch" in done.stderr


def test_ctrl_c_reports_what_there_is(tiny, monkeypatch, interrupt_second_call):
    monkeypatch.setattr(command, "measure", lambda *_: made_up({MODULES: [1.0], NUMPY: [1.0], TORCH: [2.0]}))
    interrupt_second_call(command, "measure")
    done = call("--problems", "policy", "stream-train", "--rounds", 1, "--no-memory")
    assert done.exit_code == 130
    assert "interrupted after 1 problem" in done.output


# Table, and processes


def test_the_table_has_the_ratio_of_the_rounds_and_its_spread():
    found = made_up({MODULES: [1.0, 2.0, 4.0], NUMPY: [1.0, 1.0, 1.0], TORCH: [3.0, 4.0, 20.0]})
    console = Console(width=140)
    with console.capture() as capture:
        console.print(report.steps_table([found], Settings(NAMES, [2], 3), "", ""))
    rows = [line.split() for line in capture.get().splitlines() if "language" in line]
    assert rows[0][:7] == ["language", "LSTM", MODULES, "2000", "1.50", "3.00", "2.00,"]
    assert rows[0][7] == "5.00"
    assert rows[2][2:5] == ["torch.nn", "4000", "0.75"]


def test_the_numpy_program_runs_where_torch_is_not_imported(tmp_path):
    task = Task(TINY["language"], "LSTM")
    with remote.workers(task, [NUMPY, TORCH], [1], tmp_path) as sides:
        assert sides[NUMPY, 1] is not sides[TORCH, 1]
        sides[NUMPY, 1].answers(NUMPY)
        processes = {name: sides[name, 1]._process.pid for name in (NUMPY, TORCH)}
        if sys.platform == "linux":
            mapped = {name: Path(f"/proc/{pid}/maps").read_text() for name, pid in processes.items()}
            assert "libtorch" not in mapped[NUMPY]
        found, seconds = sides[TORCH, 1].answers(TORCH)
        assert math.isfinite(found.losses[-1])
        assert seconds > 0
        with pytest.raises(remote.WorkerError, match="KeyError"):
            sides[TORCH, 1].block(MODULES)  # it has not answered yet
    with pytest.raises(ProcessLookupError):
        os.kill(processes[NUMPY], 0)


def test_the_last_words_of_a_process_are_its_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "false")
    with (
        remote.workers(Task(Problem(2, 2, 2, 2, 2), "GRU"), [NUMPY], [1], tmp_path) as sides,
        pytest.raises(remote.WorkerError, match="its process ended: exit code 1"),
    ):
        sides[NUMPY, 1].answers(NUMPY)
