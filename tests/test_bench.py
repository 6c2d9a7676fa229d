"""`throughtime bench` on tiny problems: who is compared, what is right, what is written. No time is judged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from rich.console import Console
from typer.testing import CliRunner

import throughtime as tt
from throughtime import _core
from throughtime.cli import app
from throughtime.cli.bench import accuracy, command, contenders, machine, measure, problems, report, timing
from throughtime.cli.bench.contenders import OURS, Ours
from throughtime.cli.bench.memory import peak_memory
from throughtime.cli.bench.plot import ratio_panels, save_ratio_figure
from throughtime.cli.bench.problems import CELLS, PROBLEMS, Problem, Task
from throughtime.cli.options import repeat_names

SMALL = Problem(20, 3, 5, 6)
LAST = SMALL._replace(last=True)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Short turns; one thread, since those of OpenMP wait for milliseconds where other programs hold the cores."""
    for name, seconds in {"REST": 0.0, "WARM": 1e-9, "FILL": 1e-9}.items():
        monkeypatch.setattr(timing, name, seconds)
    monkeypatch.setenv("NPROC", "1")
    threads = tt.get_num_threads()
    tt.set_num_threads(1)
    yield
    tt.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(monkeypatch, folder):
    """The command with tiny problems in place of the real ones, and a machine that is not measured."""
    here = {"stream": SMALL, "vanishing": LAST, "wider": SMALL._replace(cells=("LSTM",))}
    monkeypatch.setattr(command, "PROBLEMS", here)
    monkeypatch.setattr(command, "DEFAULT", ("stream",))
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    return folder


def call(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def result(seconds, problem="train", task=None, errors=(1e-7, 2e-7)):
    outcomes = {
        name: measure.Outcome(0.1, {"output": error}, None, list(times))
        for (name, times), error in zip(seconds.items(), errors, strict=False)
    }
    return measure.Result(problem, task or Task(SMALL, "GRU"), "highest", outcomes)


class Wrong(Ours):
    """Ours, with a gradient that is off by a hundredth."""

    def answers(self):
        found = super().answers()
        return found | {"weight_hh_l0": found["weight_hh_l0"] * np.float32(1.01)}


# Options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--a x y --n 3 --b z", "--a x --a y --n 3 --b z"),
        ("--a x --a y", "--a x --a y"),
        ("--a=x y --flag --b z w", "--a=x --a y --flag --b z --b w"),
        ("--n 3 4", "--n 3 4"),
        ("--a", "--a"),
        ("", ""),
    ],
)
def test_names_of_lists_are_repeated(given, expected):
    assert repeat_names(given.split(), {"--a", "--b"}) == expected.split()


@pytest.mark.parametrize("form", [["--cells", "LSTM", "rnn"], ["--cells", "LSTM", "--cells", "rnn"]])
def test_both_forms_of_a_list(tiny, monkeypatch, form):
    plans = []
    monkeypatch.setattr(command, "run", lambda plan, console: plans.append(plan) or command.Findings())
    done = call("--against", "torch", "torch-loop", *form, "--rounds", 2, "--problems", "stream", "wider")
    assert done.exit_code == 0, done.output
    (plan,) = plans
    assert list(plan.makers) == [OURS, "torch", "torch-loop"]
    assert [(name, task.cell) for name, task, _ in plan.tasks()] == [
        ("stream", "LSTM"),
        ("stream", "RNN"),
        ("wider", "LSTM"),
    ]
    assert plan.rounds == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "torch", "keras"], "--against keras: expected some of torch, torch-bfloat16, torch-loop, jax"),
        (["--problems", "huge"], "--problems huge: expected some of stream, stream-wide, long, train"),
        (["--cells", "MLP"], "--cells MLP: expected some of LSTM, GRU, RNN"),
        (["--precision", "low"], "--precision low: expected some of highest, high, medium"),
        (["--memory", "none"], "--memory none: expected some of full, states, checkpoint"),
        (["--problems", "wider", "--cells", "GRU"], "none of the problems wider has such a cell"),
        (["--json", "nowhere/b.json"], "nowhere does not exist"),
        (["--json", "."], "is a directory"),
        (["--plot", "b.txt"], "must end in one of"),
        (["--json", "there.json"], "--json there.json: exists already"),
        (["--plot", "there.png"], "--plot there.png: exists already"),
    ],
)
def test_refusals_are_one_line_and_come_before_the_work(folder, monkeypatch, arguments, words):
    for name in ("there.json", "there.png"):
        (folder / name).touch()
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("measuring was started"))
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("throughtime: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "0"], ["stray"], ["--rounds", "3", "4"]])
def test_wrong_options(folder, arguments):
    assert call(*arguments).exit_code == 2


# The command


def test_everything_is_written(tiny):
    arguments = ["--problems", "stream", "vanishing", "--against", "torch", "torch-loop", "--rounds", 3, "--no-memory"]
    done = call(*arguments, "--threads", 1, "--json", "b.json", "--plot", "b.png")
    assert done.exit_code == 0, done.output
    assert (tiny / "b.png").read_bytes().startswith(b"\x89PNG")
    for cell in CELLS:
        assert sum(f"stream     {cell}" in line for line in done.output.splitlines()) == 2
        assert f"vanishing {cell}: our backward takes" in done.output
    data = json.loads((tiny / "b.json").read_text())
    assert set(data) == {
        *("date", "versions", "machine", "threads", "rounds", "results", "memory_modes", "skipped"),
    }
    assert set(data["versions"]) == {"python", "throughtime", "numpy", "torch"}
    assert data["machine"]["instruction_set"] == _core.level()
    assert (data["threads"], data["rounds"]) == (1, 3)
    assert [(r["problem"], r["cell"]) for r in data["results"]] == [
        (name, cell) for name in ("stream", "vanishing") for cell in CELLS
    ]
    for found in data["results"]:
        assert {name: found[name] for name in "TBIH"} == dict(zip("TBIH", SMALL, strict=False))
        for name, outcome in found["contenders"].items():
            assert len(outcome["seconds"]) == 3
            assert outcome["median_seconds"] == sorted(outcome["seconds"])[1]
            assert outcome["first_call_seconds"] > 0
            assert outcome["wrong"] is None
            assert {"output", "input", "weight_ih_l0", "bias_hh_l0"} <= set(outcome["errors"])
            if name != OURS:
                ratios = [a / b for a, b in zip(outcome["seconds"], found["contenders"][OURS]["seconds"], strict=True)]
                assert found["ratios"][name] == {"rounds": ratios, "median": sorted(ratios)[1]}


def test_figures_are_saved_before_they_are_shown(tiny, monkeypatch):
    """And replace others by force."""

    def fail(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(command, "report", fail)
    (tiny / "b.json").write_text("before")
    done = call("--against", "torch", "--rounds", 1, "--no-memory", "--json", "b.json", "--force")
    assert done.exit_code == 141
    assert len(json.loads((tiny / "b.json").read_text())["results"]) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_figures_that_cannot_be_saved_are_shown(tiny):
    done = call("--against", "torch", "--rounds", 1, "--no-memory", "--json", "/dev/full")
    assert done.exit_code == 1
    assert done.stderr == "throughtime: error: /dev/full: No space left on device\n"
    assert sum("stream  " in line for line in done.stdout.splitlines()) == 3


def test_without_the_framework_it_says_what_to_install_and_measures_ours(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    done = call("--against", "torch", "jax", "--cells", "RNN", "--rounds", 1, "--no-memory", "--plot", "b.png")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "torch is not installed: pip install torch --index-url https://download.pytorch.org/whl/cpu"
    assert lines[1] == "jax is not installed: pip install jax"
    assert "stream   RNN" in done.output
    assert lines[-1] == "no plot: there is no ratio without a contender"


def test_a_wrong_answer_is_not_timed_and_fails_the_command(tiny, monkeypatch):
    load = contenders.load
    monkeypatch.setattr(command, "load", lambda name, threads: Wrong if name == "torch" else load(name, threads))
    done = call("--cells", "GRU", "--rounds", 2, "--no-memory", "--json", "b.json")
    assert done.exit_code == 1, done.output
    assert "wrong, not timed: torch on stream GRU: the gradient of weight_hh_l0 is off by 1.0e-02" in done.output
    (found,) = json.loads((tiny / "b.json").read_text())["results"]
    assert found["contenders"]["torch"]["seconds"] == []
    assert found["ratios"]["torch"] == {"rounds": [], "median": None}
    assert len(found["contenders"][OURS]["seconds"]) == 2


def test_ctrl_c_reports_what_there_is(tiny, interrupt_second_call):
    interrupt_second_call(command, "measure")
    done = call("--rounds", 1, "--no-memory")
    assert done.exit_code == 130
    assert "interrupted after 1 of 3" in done.output


def test_memory_modes_are_relative_to_full(tiny):
    arguments = ["--problems", "stream", "vanishing", "--cells", "LSTM", "--no-memory", "--rounds", 1]
    done = call(*arguments, "--memory", "states", "checkpoint", "--json", "b.json")
    assert done.exit_code == 0, done.output
    assert "Memory modes, time and tape relative to full" in done.output
    (found,) = json.loads((tiny / "b.json").read_text())["memory_modes"]
    assert list(found["contenders"]) == ["full", "states", "checkpoint"]
    assert list(found["ratios"]) == ["states", "checkpoint"]
    assert all(outcome["tape_bytes"] > 0 for outcome in found["contenders"].values())


def test_a_lean_problem_is_measured_alone(tiny, monkeypatch):
    monkeypatch.setitem(command.PROBLEMS, "million", SMALL._replace(cells=("LSTM",), lean=True))
    monkeypatch.setattr(measure, "peak_memory", lambda *_: SMALL.T * SMALL.B * SMALL.I * 4 + 2_500_000)
    done = call("--problems", "million", "--against", "torch", "--rounds", 1, "--json", "b.json")
    assert done.exit_code == 0, done.output
    assert "million LSTM: 2.5 MB above the input and its gradient" in done.output
    (found,) = json.loads((tiny / "b.json").read_text())["results"]
    assert list(found["contenders"]) == [OURS]
    assert {"hidden", "cell"}.isdisjoint(found["contenders"][OURS]["errors"])


# Contenders


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("problem", [SMALL, LAST], ids=["all", "last"])
@pytest.mark.parametrize("name", ["torch", "torch-bfloat16", "torch-loop", "jax", OURS])
def test_contenders_agree_with_float64(name, problem, cell):
    pytest.importorskip(contenders.FRAMEWORKS.get(name, "numpy"))
    task = Task(problem, cell)
    contender = contenders.load(name, 1)(task)
    expected = accuracy.reference(task)
    try:
        contender.step()
    except RuntimeError as error:
        if name == "torch-bfloat16" and "primitive descriptor" in str(error):
            pytest.skip("torch has no bfloat16 LSTM on this processor")
        raise
    whole = contender.answers()
    contender.forward()
    contender.backward()
    states = {"hidden", "cell"} if cell == "LSTM" else {"hidden"}
    tensors = {"output", "input", *task.parameters} | (states if name in (OURS, "torch-loop") else set())
    for answers in (whole, contender.answers()):
        assert set(answers) == tensors
        allowed = accuracy.bound(task, contenders.PRECISIONS.get(name, "highest"))
        assert accuracy.verdict(accuracy.errors(answers, expected), allowed) is None


def test_a_layer_has_the_same_data_in_every_process():
    task, again = Task(SMALL, "LSTM"), Task(SMALL, "LSTM")
    assert np.array_equal(task.x, again.x)
    assert np.array_equal(task.d_output, again.d_output)
    assert all(np.array_equal(task.parameters[name], again.parameters[name]) for name in task.parameters)
    assert not Task(LAST, "LSTM").d_output[:-1].any()
    assert Task(LAST, "LSTM").d_output[-1].all()


# Accuracy


def test_errors_are_relative_root_mean_squares():
    expected = {"output": np.array([3.0, 4.0]), "input": np.ones(2)}
    answers = {"output": np.array([3.0, 4.5], np.float32), "input": np.ones(3, np.float32)}
    assert accuracy.errors(answers, expected) == {"output": 0.1, "input": math.inf}


@pytest.mark.parametrize("error", [1e-2, math.nan, math.inf])
def test_a_verdict_names_the_worst(error):
    found = accuracy.verdict({"output": 1e-7, "input": error, "bias_ih_l0": 1e-3}, 1e-4)
    assert found == f"the gradient of input is off by {error:.1e} (relative, root mean square), allowed are 1.0e-04"
    assert accuracy.verdict({"output": 1e-7}, 1e-4) is None


@pytest.mark.parametrize("name", problems.DEFAULT)
def test_the_bound_tells_bfloat16_from_float32(name):
    """A product of bfloat16 numbers is off by 2^-9 and more; for float32, the bound must not let it through."""
    for cell in PROBLEMS[name].cells:
        task = Task(PROBLEMS[name], cell)
        assert 1e-6 < accuracy.bound(task) < 2**-9 < accuracy.bound(task, "medium") < 0.05


# Times and tables


def test_ratios_of_made_up_times():
    found = result({OURS: [1.0, 2.0, 4.0], "torch": [3.0, 4.0, 20.0]})
    assert found.ratios("torch") == [3.0, 2.0, 5.0]
    assert found.ratio("torch") == 3.0  # of the rounds; that of the medians is 2
    assert found.outcomes["torch"].median == 4.0
    assert found.outcomes["torch"].rate(8.0) == 2.0
    assert result({OURS: [], "torch": [1.0]}).ratio("torch") is None


def test_errors_are_compared_over_the_tensors_of_both():
    found = result({OURS: [1.0], "torch": [1.0]})
    found.outcomes[OURS].errors["hidden"] = 1.0
    assert found.error(OURS) == 1.0
    assert found.error(OURS, beside="torch") == 1e-7


def test_a_turn_leaves_out_its_first_step_and_fills_its_time(monkeypatch):
    monkeypatch.setattr(timing, "FILL", 5.0)
    times = iter([100.0, 1.0, 3.0, 2.0, 100.0])
    assert timing.turn(lambda: next(times)) == 2.0
    assert next(times) == 100.0


def test_contenders_take_turns():
    turns = []

    class Silent:
        def __init__(self, name):
            self.name = name

        def step(self):
            turns.append(self.name)

    rounds = timing.interleave({name: Silent(name) for name in "AB"}, timing.step_seconds, 3, lambda: None)
    changes = [a for a, b in zip(turns, [*turns[1:], ""], strict=True) if a != b]
    assert changes == list("ABABAB")
    assert [len(times) for times in rounds.values()] == [3, 3]


def test_the_backward_alone_is_timed_without_its_forward():
    calls = []

    class Silent:
        def forward(self):
            calls.append("forward")

        def backward(self):
            calls.append("backward")

    timing.backward_seconds(Silent())
    assert calls == ["forward", "backward"]
    assert Task(LAST, "GRU").operations * 3 == Task(SMALL, "GRU").operations * 2
    assert Task(SMALL, "GRU").operations == 6 * 20 * 3 * 3 * 6 * (5 + 6)


def test_the_table_shows_rates_and_shares():
    task = Task(SMALL, "GRU")
    found = result({OURS: [1e-3], "torch": [4e-3]}, task=task)
    found.outcomes[OURS].memory = 2_500_000
    console = Console(width=140)
    with console.capture() as capture:
        console.print(*report.tables([found], task.operations * 1e3 * 4, "", "", console))
    (line,) = [line for line in capture.get().splitlines() if "torch" in line]
    rate = f"{task.operations / 1e-3 / 1e9:.2f}"
    assert line.split() == [
        *("train", "GRU", "torch", "1.00", "4.00", "4.00", rate),
        *(f"{task.operations / 4e-3 / 1e9:.2f}", "25.0", "2.50", "1.0e-07", "2.0e-07"),
    ]


def test_a_narrow_console_has_two_tables_and_every_number():
    found = result({OURS: [1e-3], "torch-loop": [4.0]}, "pytorch-case", errors=(1.23e-7, 4.56e-7))
    console = Console(width=80)
    speed, cost = report.tables([found], 1e9, "title", "caption", console)
    with console.capture() as capture:
        console.print(speed, cost)
    rows = [line.split() for line in capture.get().splitlines() if "torch-loop" in line]
    assert [row[:3] for row in rows] == [["pytorch-case", "GRU", "torch-loop"]] * 2
    assert rows[0][3:6] == ["1.00", "4000", "4000"]
    assert rows[1][3:] == ["1.2e-07", "4.6e-07"]


def test_the_plot_takes_ratios_below_one_and_several_contenders(tmp_path):
    found = [
        result({OURS: [1.0], "torch": [0.7], "jax": [30.0]}, "train", errors=(0, 0, 0)),
        result({OURS: [1.0]}, "million", Task(SMALL, "LSTM")),
        result({OURS: [1.0], "torch": []}, "wide", Task(SMALL, "RNN")),
    ]
    save_ratio_figure(tmp_path / "b.png", ratio_panels(found), "title")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


# Memory and machine


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_of_a_step():
    """At least the gradients of x and the states, which the step returns."""
    task = Task(Problem(500, 16, 64, 64), "LSTM")
    least = task.x.nbytes + 2 * task.d_output.nbytes
    found = peak_memory(OURS, task, 1, "highest")
    assert found is None or least < found < 20 * least  # None where the kernel does not reset the peak


@pytest.mark.parametrize("threads", [1, 2])
def test_the_peak_is_that_of_a_processor(threads):
    """Between a tenth of a multiply-add per cycle and twice the widest vectors there are, on both cores."""
    tt.set_num_threads(threads)
    assert 1e8 < _core.peak(0.02) < threads * 1e12


def test_a_failure_to_measure_memory_is_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    failed = measure.measure_memory(result({OURS: [1.0]}), 1)
    assert failed == ["throughtime on train GRU: the process that measures peak memory failed: exit code 1"]


def test_the_machine_is_described_without_its_name(monkeypatch):
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    found = machine.machine()
    assert set(found) == {"cpu", "cores", "instruction_set", "peak_float32_flops"}
    assert found["cpu"]
    assert machine.versions(["no-such-package"])["no-such-package"] == "unknown"


def test_the_library_and_the_command_import_no_framework():
    code = "import sys, throughtime.cli; print(sorted({'torch', 'jax', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
