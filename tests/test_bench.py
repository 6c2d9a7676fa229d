"""`throughtime bench`: the contenders, option combinations, output of results. No time is judged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager

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
from throughtime.cli.bench import accuracy, command, formatting, machine, plot, report
from throughtime.cli.bench.case import Case, NotMeasured
from throughtime.cli.bench.measure import measure
from throughtime.cli.bench.process import Process, ProcessError
from throughtime.cli.bench.suite import PAIR, Suite
from throughtime.cli.options import repeat_names

OURS = "throughtime"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Made:
    """A contender of a made-up case. Exceptions among its times are raised."""

    def __init__(self, name, log, times, wrong=None):
        self.name, self.log, self.times, self.wrong = name, log, iter(times), wrong

    def check(self, outcome):
        self.log.append(f"check {self.name}")
        outcome.first_call, outcome.errors, outcome.wrong = 0.1, {"output": 1e-7}, self.wrong

    def seconds(self, timed):
        self.log.append(self.name)
        found = next(self.times)
        if isinstance(found, Exception):
            raise found
        return found


class MadeCase(Case):
    """A case with made-up times; `wrong` names the contenders with wrong answers."""

    ratios = property(lambda self: {name: (name, OURS) for name in self._times if name != OURS})

    def __init__(self, times, wrong=(), problem="train", cell="GRU", timed=("step",), with_memory=False):
        self.problem, self.cell, self.sizes, self.timed = problem, cell, {"T": 2}, timed
        self._times, self._wrong, self.with_memory = times, wrong, with_memory
        self.log = []

    @contextmanager
    def contenders(self):
        yield {
            name: Made(name, self.log, times, "off" if name in self._wrong else None)
            for name, times in self._times.items()
        }

    def memory(self, name):
        if name == "torch":
            raise ProcessError("no memory")
        return 2_500_000


def made_up(times, **options):
    """The result of a case with given times, the same number for each contender."""
    (result,) = measure(MadeCase(times, **options), len(next(iter(times.values()))))
    return result


# Measuring


def test_answers_come_before_times_and_who_is_wrong_is_not_timed():
    case = MadeCase({OURS: [1.0] * 2, "torch": [1.0] * 2, "jax": [1.0] * 2}, wrong=("torch",))
    parts = []
    (result,) = measure(case, 2, lambda: parts.append(1))
    assert case.log == [f"check {OURS}", "check torch", "check jax", OURS, "jax", OURS, "jax"]
    assert result.outcomes["torch"].seconds == []
    assert len(parts) == case.parts(2) == 3


@pytest.mark.parametrize(("alternates", "order"), [(False, "ABCABCABC"), (True, "ABCCBAABC")])
def test_contenders_take_turns(alternates, order):
    case = MadeCase({name: [1.0] * 3 for name in "ABC"})
    case.alternates = alternates
    measure(case, 3)
    assert "".join(case.log[3:]) == order


def test_a_failure_while_timed_leaves_no_time_and_the_others_go_on():
    times = {OURS: [1.0] * 3, "torch": [1.0, RuntimeError("out of\nmemory")], "jax": [ProcessError("it ended")]}
    (result,) = measure(MadeCase(times), 3)
    assert result.outcomes[OURS].seconds == [1.0] * 3
    assert [result.outcomes[name].failed for name in times] == [None, "RuntimeError: out of memory", "it ended"]
    assert result.outcomes["torch"].seconds == []


def test_each_way_of_timing_has_rounds_of_its_own():
    first, second = measure(MadeCase({OURS: [1.0, 2.0, 3.0, 4.0]}, timed=("forward", "backward")), 2)
    assert (first.timed, first.outcomes[OURS].seconds) == ("forward", [1.0, 2.0])
    assert (second.timed, second.outcomes[OURS].seconds) == ("backward", [3.0, 4.0])


def test_peak_memory_is_that_of_who_was_timed():
    case = MadeCase({OURS: [1.0], "torch": [1.0], "jax": [1.0]}, wrong=("jax",), with_memory=True)
    (result,) = measure(case, 1)
    assert [outcome.memory for outcome in result.outcomes.values()] == [2_500_000, None, None]
    assert result.notes == ["peak memory of torch on train GRU: no memory"]


# Accuracy


def test_errors_are_relative_root_mean_squares():
    expected = {"output": np.array([3.0, 4.0]), "input": np.ones(2)}
    answers = {"output": np.array([3.0, 4.5], np.float32), "input": np.ones(3, np.float32)}
    assert accuracy.errors(answers, expected) == {"output": 0.1, "input": math.inf}


@pytest.mark.parametrize("error", [1e-2, math.nan, math.inf])
def test_a_verdict_names_the_worst(error):
    found = accuracy.verdict({"output": 1e-7, "input": error, "bias_ih_l0": 1e-3}, 1e-4)
    assert found == f"the gradient of input is off by {error:.1e} (relative, root mean square), allowed are 1.0e-04"
    assert accuracy.verdict({"output": 1e-3}, 1e-4).startswith("the output is off by 1.0e-03")
    assert accuracy.verdict({"output": 1e-7}, 1e-4) is None
    assert accuracy.verdict({}, 1e-4) is None


# Results


def test_ratios_are_those_of_the_rounds():
    found = made_up({OURS: [1.0, 2.0, 4.0], "torch": [3.0, 4.0, 20.0]})
    assert found.ratios("torch", OURS) == [3.0, 2.0, 5.0]
    assert found.ratio("torch", OURS) == 3.0  # the ratio of the medians is 2
    assert found.outcomes["torch"].median == 4.0
    assert made_up({OURS: [1.0], "torch": [1.0]}, wrong=(OURS,)).ratio("torch", OURS) is None


def test_errors_are_compared_over_the_tensors_of_both():
    found = made_up({OURS: [1.0], "torch": [1.0]})
    ours, theirs = found.outcomes.values()
    ours.errors["hidden"] = 1.0
    assert formatting.error(ours) == "1.0e+00"
    assert formatting.error(ours, beside=theirs) == "1.0e-07"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0.123, "0.12"), (9.994, "9.99"), (12.34, "12.3"), (123.4, "123"), (4000, "4000")]
)
def test_numbers_have_three_digits_or_more(value, shown):
    assert formatting.number(value) == shown


class MadeSuite(Suite):
    """Reports made-up results."""

    rounds = 1

    def __init__(self, cases=()):
        self.cases = cases

    def prepare(self, console):
        return {"name": "made up"}

    def versions(self):
        return {}

    def settings(self):
        return {"threads": 1}

    def title(self, about):
        return "title"

    def caption(self, about):
        return "caption"

    def columns(self, about):
        words = {"problem": lambda row: row.result.case.problem, "against": lambda row: row.theirs}
        return words, PAIR, {"error of gradients": lambda row: formatting.error(row.mine)}

    def may_fail(self, name):
        return name != OURS


def shown(results, width):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(*report.tables(MadeSuite(), results, {}, console))
    return [line.split() for line in capture.get().splitlines() if "train" in line]


def test_a_narrow_console_has_two_tables_and_every_number():
    found = made_up({OURS: [1e-3], "torch-loop": [4.0]})
    assert shown([found], 80) == [["train", "torch-loop", "1.00", "4000", "4000", "1.0e-07"]]
    assert shown([found], 50) == [["train", "torch-loop", "1.00", "4000", "4000"], ["train", "torch-loop", "1.0e-07"]]


def test_lines_say_who_was_not_timed_and_sum_up():
    failing = made_up({OURS: [1.0], "torch": [RuntimeError("no kernel")], "jax": [1.0]}, wrong=("jax",))
    fine = [made_up({OURS: [1.0], "torch": [ratio]}, problem=name) for name, ratio in (("a", 2.0), ("b", 4.0))]
    assert report.lines([failing, failing, *fine]) == [
        "failed: torch on train GRU: RuntimeError: no kernel",
        "wrong, not timed: jax on train GRU: off",
        "GRU step, torch: 2.00 to 4.00, median 3.00 of 2",
    ]
    assert report.first_calls(fine) == [f"longest first call: {name} 0.1 s (b GRU)" for name in (OURS, "torch")]


def test_json_has_every_number():
    found = made_up({OURS: [1.0, 2.0], "torch": [3.0, 2.0], "jax": [1.0, 1.0]}, wrong=("jax",))
    found.outcomes["torch"].errors = {"output": math.inf}
    data = report.document(MadeSuite(), [found], ["left out"], True, {"name": "made up"})
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {
        *("date", "versions", "machine", "threads", "rounds", "results", "skipped", "interrupted"),
    }
    (result,) = data["results"]
    assert [result[name] for name in ("problem", "cell", "sizes", "timed")] == ["train", "GRU", {"T": 2}, "step"]
    assert result["contenders"]["torch"] == {
        "seconds": [3.0, 2.0],
        "median_seconds": 2.5,
        "first_call_seconds": 0.1,
        "errors": {"output": None},
        "wrong": None,
        "failed": None,
        "peak_memory_bytes": None,
    }
    assert result["ratios"] == {
        "torch": {
            "of": "torch",
            "over": OURS,
            "rounds": [3.0, 1.0],
            "median": 2.0,
            "lowest": 1.0,
            "highest": 3.0,
        },
        "jax": {"of": "jax", "over": OURS, "rounds": [], "median": None, "lowest": None, "highest": None},
    }


def test_the_plot_takes_every_kind_of_result(tmp_path):
    """Ratios below one, several contenders, cells and ways of timing, and contenders that were not timed."""
    found = [
        made_up({OURS: [1.0], "torch": [0.7], "jax": [30.0]}),
        *(made_up({OURS: [1.0], "torch": [2.0]}, problem="wide", cell=cell) for cell in ("LSTM", "RNN", "MLP")),
        made_up({OURS: [1.0]}, problem="million"),
        made_up({OURS: [1.0], "torch": [1.0]}, problem="wider", wrong=("torch",)),
    ]
    panels = plot.ratio_panels(found)
    assert panels["GRU, step"] == {"train": {"torch": 0.7, "jax": 30.0}}
    assert list(panels) == ["GRU, step", "LSTM, step", "RNN, step", "MLP, step"]
    plot.save_ratio_figure(tmp_path / "b.png", panels, "title", "axis")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


# The command


@pytest.fixture
def made(monkeypatch, folder):
    """Runs the command on made-up cases."""

    def run(*arguments, cases=None):
        chosen = cases or [MadeCase({OURS: [1.0], "torch": [2.0]}, cell=cell) for cell in ("LSTM", "GRU", "RNN")]
        monkeypatch.setattr(command, "CpuSuite", lambda options: MadeSuite(chosen))
        return CliRunner().invoke(app, ["bench", *arguments])

    return run


def test_everything_is_written(made, folder):
    done = made("--json", "b.json", "--plot", "b.png")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-2:] == ["JSON: b.json", "plot: b.png"]
    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG")
    assert [result["cell"] for result in json.loads((folder / "b.json").read_text())["results"]] == [
        *("LSTM", "GRU", "RNN"),
    ]


def test_results_are_saved_before_they_are_shown(made, folder, monkeypatch):
    """They replace earlier results with --force."""

    def fail(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(command, "report", fail)
    (folder / "b.json").write_text("before")
    assert made("--json", "b.json", "--force").exit_code == 141
    assert len(json.loads((folder / "b.json").read_text())["results"]) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_results_that_cannot_be_saved_are_shown(made):
    done = made("--json", "/dev/full")
    assert done.exit_code == 1
    assert done.stderr == "throughtime: error: /dev/full: No space left on device\n"
    assert sum("train " in line and "2.00" in line for line in done.stdout.splitlines()) == 3


def test_ctrl_c_reports_what_there_is(made, folder, interrupt_second_call):
    interrupt_second_call(command, "measure")
    done = made("--json", "b.json")
    assert done.exit_code == 130
    assert "interrupted after 1 of 3" in done.output
    data = json.loads((folder / "b.json").read_text())
    assert (data["interrupted"], len(data["results"])) == (True, 1)


class Unmeasured(MadeCase):
    def contenders(self):
        raise NotMeasured("no reference")


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        (MadeCase({OURS: [1.0], "torch": [1.0]}, wrong=("torch",)), 1, "wrong, not timed: torch on train GRU: off"),
        (MadeCase({OURS: [RuntimeError("a")], "torch": [1.0]}), 1, f"failed: {OURS} on train GRU: RuntimeError: a"),
        (MadeCase({OURS: [1.0], "torch": [RuntimeError("a")]}), 0, "failed: torch on train GRU: RuntimeError: a"),
        (Unmeasured({}), 1, "not measured: train GRU: no reference"),
        (MadeCase({OURS: [1.0]}), 0, "no plot: there is no ratio without a contender"),
    ],
)
def test_what_fails_the_command(made, case, code, words):
    """Any wrong answer, a failure of ours, or a case that could not be measured; not a failure of other contenders."""
    done = made("--plot", "b.png", cases=[case])
    assert done.exit_code == code, done.output
    assert words in done.output.splitlines()


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--against torch keras", "--against keras: expected some of torch, torch-bfloat16, torch-loop, jax"),
        ("--problems huge", "--problems huge: expected some of stream, stream-wide, long, train"),
        ("--cells MLP", "--cells MLP: expected some of LSTM, GRU, RNN"),
        ("--precision low", "--precision low: expected some of highest, high, medium"),
        ("--memory none", "--memory none: expected some of full, states, checkpoint"),
        ("--problems wider --cells GRU", "none of the problems wider has such a cell"),
        ("--json nowhere/b.json", "nowhere does not exist"),
        ("--json .", "is a directory"),
        ("--plot b.txt", "must end in one of"),
        ("--json there.json", "--json there.json: exists already"),
        ("--plot there.png", "--plot there.png: exists already"),
        ("--types float32", "--types: only with --device cuda"),
        ("--beside 1", "--beside: only with --step"),
        ("--device tpu", "--device tpu: expected some of cpu, cuda"),
        ("--device cuda --against torch", "--against torch: expected some of cudnn, flashrnn, torch-loop"),
        ("--device cuda --problems train", "--problems train: expected some of mark, sizes, long, layer-norm"),
        ("--device cuda --types float64", "--types float64: expected some of float16, bfloat16, float32"),
        ("--device cuda --problems long --cells RNN", "none of the problems long has such a cell"),
        ("--device cuda --threads 2", "--threads: only with --device cpu"),
        ("--device cuda --memory states", "--memory: only with --device cpu"),
        ("--device cuda --no-memory", "--no-memory: only with --device cpu"),
        ("--device cuda --beside 1", "--beside: only with --step"),
        ("--device cuda --json nowhere/b.json", "nowhere does not exist"),
        ("--step --against jax", "--against jax: expected some of torch, torch-compile"),
        ("--step --problems train", "--problems train: expected some of language, language-wide, forecast"),
        ("--step --cells RNN", "--cells RNN: expected some of LSTM, GRU"),
        ("--step --problems policy --cells LSTM", "none of the problems policy has such a cell"),
        ("--step --precision medium", "--precision: only without --step"),
        ("--step --memory states", "--memory: only without --step"),
        ("--step --device cuda", "--device cuda: only without --step"),
        ("--step --types float16", "--types: only with --device cuda"),
        ("--step --threads 1 --beside 2", "--beside 2: compares several threads with one, got --threads 1"),
        ("--step --plot there.png", "--plot there.png: exists already"),
        ("--rounds 0", "--rounds"),
        ("--threads 0", "--threads"),
        ("stray", "unexpected extra argument"),
        ("--rounds 3 4", "unexpected extra argument"),
    ],
)
def test_refusals_are_one_line_and_come_before_the_work(folder, monkeypatch, arguments, words):
    for name in ("there.json", "there.png"):
        (folder / name).touch()
    for kind in (command.CpuSuite, command.CudaSuite, command.StepSuite):
        monkeypatch.setattr(kind, "prepare", lambda *_: pytest.fail("the work was started"))
    done = CliRunner().invoke(app, ["bench", *arguments.split()])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("throughtime: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


# Machine and processes


def test_the_machine_is_described_without_its_name(monkeypatch):
    monkeypatch.setattr(_core, "peak", lambda seconds: 1e11)
    found = machine.describe()
    machine.describe_after(found)
    assert set(found) == {
        *("cpu", "cores", "instruction_set", "peak_float32_flops"),
        *("load_before", "calibration_spread", "busy", "environment", "load_after"),
    }
    assert found["cpu"]
    assert found["instruction_set"] == _core.level()
    assert machine.versions(["no-such-package"])["no-such-package"] == "unknown"


@pytest.mark.parametrize(
    ("before", "spread", "reasons"),
    [
        (0.3, 0.1, []),
        (0.31, 0.0, ["load 0.31 at the start"]),
        (1.0, 0.25, ["load 1.00 at the start", "a calibration loop spreads by 25%"]),
    ],
)
def test_a_busy_machine(before, spread, reasons):
    assert machine.busy_reasons(before, spread) == reasons


def test_the_spread_leaves_a_tenth_out_at_either_end(monkeypatch):
    rates = iter([*[100.0] * 25, *[80.0] * 24, 1.0])
    monkeypatch.setattr(_core, "peak", lambda seconds: next(rates))
    assert machine.calibration_spread() == pytest.approx(0.25)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_peak_is_that_of_a_processor(threads):
    """Between a tenth of a multiply-add per cycle and twice the widest existing vectors, on both cores."""
    before = tt.get_num_threads()
    tt.set_num_threads(threads)
    assert 1e8 < _core.peak(0.02) < threads * 1e12
    tt.set_num_threads(before)


def test_a_process_answers_requests_until_it_is_closed():
    process = Process(dict, {"a": 1})
    assert process.call("get", "a") == 1
    with pytest.raises(ProcessError, match="TypeError"):
        process.call("get")
    assert process.call("get", "b") is None  # the process continues after a failure
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_the_last_words_of_a_process_are_its_failure(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    process = Process(dict)
    with pytest.raises(ProcessError, match="its process ended: exit code 1"):
        process.call("get", "a")
    process.close()


def test_the_library_and_the_command_import_no_framework():
    code = "import sys, throughtime.cli; print(sorted({'torch', 'jax', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
