"""`throughtime accuracy`: known errors are measured exactly, the truths are right, and the tables are complete."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from rich.console import Console
from typer.testing import CliRunner

import reference
from comparison import assert_close, magnification, rounding_bound
from problems import FORMS
from throughtime import _core
from throughtime.cli import app
from throughtime.cli.accuracy import command, functions, measure, options, report
from throughtime.cli.accuracy.findings import Findings
from throughtime.cli.accuracy.functions import FUNCTIONS, Exact, exact_values
from throughtime.cli.accuracy.grid import Grid
from throughtime.cli.accuracy.inputs import FULL, INPUTS, QUICK, Draw, arguments
from throughtime.cli.accuracy.kernels import KERNELS, Results
from throughtime.cli.accuracy.measure import Plan
from throughtime.cli.accuracy.options import TYPES
from throughtime.cli.accuracy.ulp import ulp_errors
from throughtime.cli.accuracy.worker import Worker, Workers
from throughtime.cli.bench.process import ProcessError

ROOT = Path(__file__).parent.parent
QUICKLY = ["--quick", "--points", "100", "--json", "a.json", "--force"]
LEVELS = [name for name, supported in _core.levels() if supported]


class Local(Worker):
    """A worker in this process."""

    def call(self, method, *arguments):
        return getattr(self, method)(*arguments)

    def close(self):
        pass


class Fixed(Local):
    """Returns the same results for every kernel, multiplied by `factor` if it is asked for this type."""

    def __init__(self, dtype="float32", factor=1.0):
        self.dtype, self.factor = dtype, factor

    def kernel(self, name, draw, precision="highest"):
        values = np.array([1.0, -2.0, 4.0]) * (self.factor if draw.dtype == self.dtype else 1.0)
        return Results({"output": values}, {"input": values[::-1]}, 100)


class Broken(Local):
    def call(self, method, *arguments):
        raise ProcessError("its process ended: exit code -4")


def plan(**changes):
    whole = Plan([], [], list(TYPES), ["highest"], ["uniform"], 100, QUICK, 0, exact=True)
    return whole._replace(**changes)


def findings_of(plan, **callers):
    found = Findings()
    with Workers(callers) as workers:
        found.failed = workers.failed
        measure.measure(plan, workers, found, lambda text: None)
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command; returns what it printed and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(arguments, code=0):
        done = CliRunner().invoke(app, ["accuracy", *QUICKLY, *arguments.split()])
        assert done.exit_code == code, done.output
        return done.output, json.loads((tmp_path / "a.json").read_text())

    return call


@pytest.fixture
def here(monkeypatch):
    """Replaces the processes by one worker in this process."""
    monkeypatch.setattr(Workers, "start", classmethod(lambda cls, levels: cls({"here": Local()})))


# Errors in ulp


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("steps", [0, 1, 3, -100])
def test_a_value_that_is_some_numbers_away_is_off_by_as_many_ulp(dtype, steps):
    """Next to 1.5, numbers are one ulp apart, in both directions."""
    x = np.array([0.25, 1.5, 3.0], dtype)
    got = x.copy()
    got[1] += steps * np.finfo(dtype).eps
    error = ulp_errors(x, got, Exact(x.astype(np.float64), np.zeros(3)))
    assert error.largest == abs(steps)
    assert error.mean == pytest.approx(abs(steps) / 3)
    assert error.points == 3
    assert steps == 0 or error.at == 1.5


def test_the_part_of_the_exact_value_below_float64_counts():
    one = np.ones(1)
    assert ulp_errors(one, one, Exact(one, one * 2.0**-54)).largest == 0.25
    assert ulp_errors(one, one + 2.0**-52, Exact(one, one * 2.0**-54)).largest == 0.75


@pytest.mark.parametrize("dtype", TYPES)
def test_flushed_values_are_left_out_but_nothing_else(dtype):
    tiny = float(np.finfo(dtype).tiny)
    x = np.arange(4.0).astype(dtype)
    exact = Exact(np.array([0.0, tiny / 4, tiny, 1.0]), np.zeros(4))
    flushed = ulp_errors(x, np.array([0, 0, 0, 1], dtype), exact)
    assert (flushed.largest, flushed.points) == (0, 1)
    for wrong in (np.nan, 1.0, -np.inf):
        error = ulp_errors(x, np.array([0, wrong, 0, 1], dtype), exact)
        assert not error.largest < 2.0**100
        assert (error.at, error.points) == (1.0, 2)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_wrong_function_has_the_error_that_it_must(monkeypatch, steps):
    """The identity, moved by some numbers: between powers of two, each is one ulp."""
    moved = FUNCTIONS["relu"]._replace(run=lambda x: x + steps * np.spacing(x), exact=lambda m, v: v, bound=3)
    monkeypatch.setitem(FUNCTIONS, "relu", moved)
    monkeypatch.setattr(measure, "arguments", lambda *_: np.linspace(1.1, 1.9, 50, dtype=np.float32))
    found = findings_of(plan(functions=["relu"], types=["float32"]), here=Local())
    (finding,) = found.functions
    assert finding.error.largest == finding.error.mean == steps
    if steps > finding.bound:
        assert found.excesses == [f"relu, float32, here, uniform: off by 5 ulp at {finding.error.at!r}, allowed are 3"]
    else:
        assert found.excesses == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_exact_values_are_those_of_the_function(name):
    """In another form, in float64: within its roundings, a few units of 2^-53 of the value or of the terms."""
    x = np.array([-3.0, -0.5, 0.0, 0.25, 2.0])
    other = {
        "sigmoid": lambda v: 0.5 * (1 + math.tanh(v / 2)),
        "tanh": lambda v: 2 / (1 + math.exp(-2 * v)) - 1,
        "gelu": lambda v: v / 2 * math.erfc(-v / math.sqrt(2)),
        "relu": lambda v: v if v > 0 else 0.0,
        "softmax": lambda v: math.exp(v) / (math.exp(v) + 1),
    }[name]
    exact = exact_values(FUNCTIONS[name], x)
    assert exact.high == pytest.approx([other(v) for v in x], rel=10 * 2.0**-53, abs=10 * 2.0**-53)
    assert np.all(np.abs(exact.low) <= 2.0**-53 * np.abs(exact.high))


def test_without_mpmath_float32_is_compared_with_float64(here, run, monkeypatch):
    """float64 is off by at most 8 of its ulp, 2^-26 of float32's. It is not measured itself, and the text says so."""
    names = "--functions sigmoid tanh gelu softmax"
    _, with_it = run(names)
    monkeypatch.setattr(functions, "mpmath_version", lambda: None)
    monkeypatch.setattr(options, "mpmath_version", lambda: None)
    monkeypatch.setattr(report, "mpmath_version", lambda: None)
    output, without = run(names)
    assert "pip install mpmath" in output
    assert "this library's float64" in output
    assert "mpmath" not in without["versions"]
    exact = {(f["function"], f["inputs"]): f for f in with_it["functions"] if f["type"] == "float32"}
    assert len(without["functions"]) == len(exact) == 12
    for found in without["functions"]:
        assert found["type"] == "float32"
        assert found["max_ulp"] == pytest.approx(exact[found["function"], found["inputs"]]["max_ulp"], abs=2.0**-26)


# Errors of kernels


def test_a_wrong_kernel_has_the_error_that_it_must():
    """A relative error of 2^-20 is 16 times 2^-24; the bound for sums of 100 terms is 100 u."""
    for factor, excess in ((1 + 2.0**-20, False), (1 + 2.0**-17, True)):
        found = findings_of(plan(kernels=["linear"], types=["float32"]), here=Fixed(factor=factor))
        (finding,) = found.kernels
        error = (factor - 1) * 2**24
        assert finding.values["output"] == pytest.approx((error, error))
        assert finding.gradients["input"] == pytest.approx((error, error))
        assert (finding.reference, finding.bound) == ("float64", pytest.approx(100))
        assert len(found.excesses) == excess
    assert found.excesses == ["linear, float32, highest, here, uniform: output is off by 128 u, allowed are 100"]


def test_a_result_that_is_not_finite_is_reported_without_a_bound_too():
    found = findings_of(plan(kernels=["linear"], types=["float32"], inputs=["Cauchy"]), here=Fixed(factor=np.nan))
    assert found.excesses == ["linear, float32, highest, here, Cauchy: output is not finite"]


def test_float64_is_compared_between_levels():
    """One has an error of 2^-50, 8 times 2^-53: it shows in both, and not in a level alone."""
    wrong = Fixed("float64", 1 + 2.0**-50)
    only64 = plan(kernels=["linear"], types=["float64"])
    found = findings_of(only64, v2=Fixed(), v3=wrong, v4=Fixed())
    assert [(f.level, f.reference) for f in found.kernels] == [("v2", "v3"), ("v3", "v2"), ("v4", "v2")]
    assert [f.values["output"].norm for f in found.kernels] == pytest.approx([8, 8, 0])
    assert findings_of(only64, v3=wrong).kernels == []
    notes = "\n".join(report.notes(only64, found))
    assert "not the error from a truth" in notes


@pytest.mark.parametrize(("inputs", "median"), [("uniform", 0.5), ("lognormal", 1.0), ("Cauchy", 1.0)])
def test_a_draw_has_the_same_numbers_in_both_types(inputs, median):
    """And the median of their sizes is that of the distribution: of 4000 numbers, the share of an event of probability
    1/2 is off by 5 standard deviations, 0.04, in one of a million draws."""
    draw = Draw(inputs, 3, FULL, "float32", "float32")
    narrow, wide = draw.numbers(500, 8), draw.widened().numbers(500, 8)
    assert (narrow.dtype, wide.dtype) == (np.float32, np.float64)
    assert np.array_equal(narrow, wide)
    for event in (np.abs(narrow) < median, narrow < 0):
        assert np.mean(event) == pytest.approx(0.5, abs=0.04)
    assert np.all(np.diff(arguments(inputs, "float64", 100, 0)) >= 0)


def test_every_form_of_cell_is_measured():
    assert set(FORMS) <= set(KERNELS)


class Recorded(Draw):
    """Keeps what it drew in a list outside."""

    def keep(self, drawn):
        self.__dict__["drawn"] = drawn
        return self

    def numbers(self, *shape):
        self.drawn.append(super().numbers(*shape))
        return self.drawn[-1]

    def layer(self, *arguments, **options):
        self.drawn.append(super().layer(*arguments, **options))
        return self.drawn[-1]


@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if kernel.recurrent])
def test_the_truth_of_recurrent_kernels_agrees_with_the_reference(name):
    """The reference is NumPy's float64. Roundings on the longest path: each step has its sums and 40 more."""
    drawn = []
    found = KERNELS[name].run(Recorded("uniform", 0, QUICK, "float32", "float64").keep(drawn))
    layer, x, d_output = drawn
    record = reference.forward(name, layer.parameters, x)
    grads = reference.backward(record, d_output=d_output)
    bound = rounding_bound("float64", QUICK.T * (found.terms + 40)) * magnification(record)
    assert_close(found.values["output"], record.output, bound)
    assert_close(found.gradients, {"input": grads.input, **grads.parameters}, bound)


def test_the_truth_of_attention_and_layer_norm_agrees_with_the_reference():
    drawn = []
    draw = Recorded("uniform", 0, QUICK, "float32", "float64").keep(drawn)
    bound = rounding_bound("float64", 10 * QUICK.H + QUICK.T * QUICK.B)
    found = KERNELS["self_attention"].run(draw)
    layer, x, d_output = drawn
    output, d_input, grads = reference.self_attention(layer.parameters, x, d_output, 2)
    assert_close(found.values["output"], output, bound)
    assert_close(found.gradients, {"input": d_input, **grads}, bound)
    drawn.clear()
    found = KERNELS["layer_norm"].run(draw)
    layer, x, d_output = drawn
    weight, bias = layer.parameters.values()
    _, output, saved = reference.add_layer_norm(x, 0, weight, bias, 1, 1e-5)
    d_x, _, d_weight, d_bias = reference.add_layer_norm_backward(0, d_output, saved, weight, 1)
    assert_close(found.values["output"], output, bound)
    assert_close(found.gradients, {"input": d_x, "weight": d_weight, "bias": d_bias}, bound)


# The command


def test_everything_is_measured_at_every_level(run):
    """In processes; no error exceeds its bound, or the command would fail."""
    output, data = run("")
    assert data["levels"] == LEVELS
    names = {(f["function"], f["type"], f["level"], f["inputs"]) for f in data["functions"]}
    assert names == {(f, t, level, i) for f in FUNCTIONS for t in TYPES for level in LEVELS for i in INPUTS}
    narrow = {(f["kernel"], f["level"], f["inputs"]) for f in data["kernels"] if f["type"] == "float32"}
    assert narrow == {(k, level, i) for k in KERNELS for level in LEVELS for i in INPUTS}
    wide = {f["level"] for f in data["kernels"] if f["type"] == "float64"}
    assert wide == (set(LEVELS) if len(LEVELS) > 1 else set())
    assert all(
        math.isfinite(e["norm"]) for f in data["kernels"] for e in (*f["values"].values(), *f["gradients"].values())
    )
    lines = output.splitlines()
    for level in LEVELS:
        assert any(line.startswith(f"| lstm | float32 | {level} | float64 |") for line in lines)
        assert any(line.startswith(f"| tanh | float64 | {level} |") for line in lines)
    assert lines[0].startswith(data["cpu"])
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    headings = [line for line in lines if line.startswith(("| function |", "| kernel |"))]
    assert len([line for line in headings if line in page]) == 2
    for words in ("mpmath with 50 digits", "uniform (functions", "lognormal with random signs", "standard Cauchy"):
        assert words in output
    assert ("kernels in float64: they are compared between levels" in output) == (len(LEVELS) == 1)


def test_each_precision_has_its_row(here, run):
    existing = Local().precisions()
    output, data = run("--kernels LSTM linear --inputs uniform --types float32")
    assert {(f["kernel"], f["precision"]) for f in data["kernels"]} == {
        *(("lstm", precision) for precision in existing),
        ("linear", "highest"),
    }
    assert data["functions"] == []
    for precision in {"high", "medium"} - set(existing):
        assert f"float32, {precision} at here: it has no such products" in output
    (finding,) = [f for f in data["kernels"] if f["kernel"] == "linear"]
    assert 0 < finding["gradients"]["weight"]["norm"] < 10  # u; sums of 24 terms, sqrt(24) u if all round alike


def test_an_error_above_its_bound_fails_the_command(here, run, monkeypatch):
    monkeypatch.setitem(FUNCTIONS, "tanh", FUNCTIONS["tanh"]._replace(bound=0.01))
    output, data = run("--functions tanh --types float32", code=1)
    assert "above the bound: tanh, float32, here, uniform: off by " in output
    assert "allowed are 0.01" in output
    assert data["kernels"] == []


def test_a_level_that_fails_takes_no_further_part(run, monkeypatch):
    callers = {"v2": Broken(), "v3": Local()}
    monkeypatch.setattr(Workers, "start", classmethod(lambda cls, levels: cls(callers)))
    output, data = run("--kernels gru --types float32 --inputs uniform", code=1)
    assert "failed: v2: its process ended: exit code -4" in output
    assert {f["level"] for f in data["kernels"]} == {"v3"}


def test_an_interrupt_keeps_the_findings(here, run, monkeypatch):
    def interrupted(plan, workers, findings, tick):
        measure.measure(plan._replace(functions=["tanh"]), workers, findings, tick)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    output, data = run("--functions tanh gelu --inputs uniform", code=130)
    assert data["interrupted"]
    assert {f["function"] for f in data["functions"]} == {"tanh"}
    assert output.splitlines()[-2:] == ["interrupted: findings are missing", "JSON: a.json"]


def test_a_seed_gives_the_same_findings(here, run):
    first, again, other = (
        run(f"--functions gelu --kernels gru --inputs Cauchy --seed {seed}")[1] for seed in (1, 1, 2)
    )
    assert first["functions"] == again["functions"] != other["functions"]
    assert first["kernels"] == again["kernels"] != other["kernels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--levels v9", "--levels v9: expected some of"),
        ("--kernels lst", "--kernels lst: expected some of rnn_tanh"),
        ("--inputs normal", "--inputs normal: expected some of uniform, lognormal, Cauchy"),
        ("--json old.json", "--json old.json: exists already"),
        ("--points 0", "--points"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("mine")
    monkeypatch.setattr(command, "run", lambda *_: pytest.fail("it was started"))
    done = CliRunner().invoke(app, ["accuracy", *arguments.split()])
    assert done.exit_code == 2
    assert message in done.stderr
    assert (tmp_path / "old.json").read_text() == "mine"


def test_a_terminal_shows_the_same_cells():
    grid = Grid("Errors", ["function", "uniform max", "uniform at"], 1, [["tanh", "1.6", "-0.23"]])
    console = Console(width=80, record=True)
    console.print(grid.table())
    assert ["tanh", "1.6", "-0.23"] in [line.split() for line in console.export_text().splitlines()]
    assert grid.markdown()[2:] == [
        "| function | uniform max | uniform at |",
        "| --- | ---: | ---: |",
        "| tanh | 1.6 | -0.23 |",
    ]
