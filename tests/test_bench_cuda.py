"""`throughtime bench --device cuda` with the CPU in place of the device: answers, times, comparisons, output."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

import torch
from typer.testing import CliRunner

from throughtime.cli import app
from throughtime.cli.bench import accuracy
from throughtime.cli.bench.layers import add_norm, cuda, device, torch_layers
from throughtime.cli.bench.layers.dtypes import Numbers, all_numbers
from throughtime.cli.bench.layers.implementations import OURS
from throughtime.cli.bench.layers.problems import (
    BACKWARD,
    FORWARD,
    GPU_CELLS,
    GPU_PROBLEMS,
    STEP,
    AddNorm,
    Recurrence,
    Work,
)
from throughtime.cli.bench.result import Outcome, Result, Row

FLOAT32, BFLOAT16, FLOAT16 = Numbers("float32"), Numbers("bfloat16"), Numbers("float16")
SMALL, ROWS = Recurrence("LSTM", 12, 3, 8, 8, (FORWARD, STEP)), AddNorm(40, 16)
COMPARED = 5, 30  # steps, rows


class InPlace(device.Cuda):
    """The CPU in place of a GPU."""

    place, matrix, copied = "cpu", 32, 1 << 12

    def synchronize(self):
        pass

    def clock(self, work, repeats):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        return time.perf_counter() - begin

    def describe(self):
        return {"name": "CPU", "ceilings": self.ceilings()}


CPU = InPlace()


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Short turns, compared parts shorter than the problems, and torch's switches restored."""
    monkeypatch.setattr(device, "GPU_FILL", 1e-9)
    monkeypatch.setattr(cuda, "COMPARED", dict(zip(("recurrent", "rows"), COMPARED, strict=True)))
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on tiny problems, on the CPU."""
    here = {
        "sizes": (SMALL, SMALL._replace(cell="GRU")),
        "long": (SMALL._replace(timed=(FORWARD,)),),
        "layer-norm": (ROWS,),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda, "GPU_PROBLEMS", here)
    monkeypatch.setattr(cuda, "open_device", lambda: CPU)

    def call(arguments, code=0):
        done = CliRunner().invoke(app, ["bench", "--device", "cuda", "--json", "b.json", *arguments.split()])
        assert done.exit_code == code, done.output
        return done.output, json.loads((tmp_path / "b.json").read_text())

    return call


def case(problem, numbers=(FLOAT16, BFLOAT16, FLOAT32), against=("cudnn",)):
    return cuda.CudaCase(problem, SimpleNamespace(against=list(against), numbers=list(numbers)), CPU)


def result(problem, timed, times):
    """A result of made-up rounds, in bfloat16."""
    outcomes = {f"{who} bfloat16": Outcome(seconds=rounds) for who, rounds in times.items()}
    return Result(case(problem, [BFLOAT16]), timed, outcomes)


# The command


def test_everything_is_written(run):
    output, data = run("--types float32 --against cudnn torch-loop --rounds 3 --plot b.png")
    assert set(data["machine"]["ceilings"]) == {"bfloat16_flops", "copy_bytes_per_second"}
    assert all(value > 0 for value in data["machine"]["ceilings"].values())
    assert {"torch", "cuda", "cudnn"} <= set(data["versions"])
    layer, rows = ("T=12 B=3 H=8", "forward"), ("N=40 F=16", "AddLayerNorm")
    assert [(found["problem"], found["cell"], found["timed"]) for found in data["results"]] == [
        *((layer[0], cell, timed) for cell in ("LSTM", "GRU") for timed in (FORWARD, STEP)),
        (layer[0], "LSTM", FORWARD),
        *((*rows, timed) for timed in (FORWARD, BACKWARD)),
    ]
    shown = [" ".join(line.split()) for line in output.splitlines()]
    for found in data["results"]:
        words = f"{found['problem']} {found['cell']} {found['timed']} float32"
        for name, ratio in found["ratios"].items():
            assert name == f"float32 against {ratio['of']}"
            assert ratio["over"] == f"{OURS} float32"
            assert len(ratio["rounds"]) == 3
            assert any(line.startswith(f"{words} {ratio['of'].split()[0]} ") for line in shown), words
        for outcome in found["contenders"].values():
            if "T" in found["sizes"]:
                assert outcome["microseconds_per_step"] == pytest.approx(outcome["median_seconds"] * 1e6 / 12)
            assert outcome["share_of_ceiling"] > 0
    assert any(line.startswith("LSTM forward, float32 against cudnn float32: ") for line in shown)


def test_a_wrong_answer_is_not_timed_and_fails_the_command(run, monkeypatch):
    class Wrong(torch_layers.Layer):
        def answers(self, compared):
            found = super().answers(compared)
            return found | {"weight_hh_l0": found["weight_hh_l0"] * 1.01}

    monkeypatch.setitem(torch_layers.ON_DEVICE, "cudnn", Wrong)
    output, data = run("--problems sizes --cells GRU --types float32 --rounds 2 --plot b.png", code=1)
    words = "wrong, not timed: cudnn float32 on T=12 B=3 H=8 GRU: the gradient of weight_hh_l0 is off by 1.0e-02"
    assert output.count(words) == 1
    assert output.splitlines()[-1] == "no plot: there is no ratio without a contender"
    for found in data["results"]:
        assert [len(outcome["seconds"]) for outcome in found["contenders"].values()] == [2, 0]


@pytest.mark.parametrize(("name", "code"), [(OURS, 1), ("cudnn", 0)])
def test_a_failure_is_a_line_and_the_others_go_on(run, monkeypatch, name, code):
    class Failing(torch_layers.ON_DEVICE[name]):
        def _call(self):
            raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(torch_layers.ON_DEVICE, name, Failing)
    output, data = run("--problems long --types float32 --rounds 1", code)
    assert f"failed: {name} float32 on T=12 B=3 H=8 LSTM: RuntimeError: no kernel for this" in output
    timed = {who: outcome["seconds"] != [] for who, outcome in data["results"][0]["contenders"].items()}
    assert timed == {f"{who} float32": who != name for who in (OURS, "cudnn")}


def test_a_contender_that_is_absent_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    output, _ = run("--problems long --against flashrnn --types float32 --rounds 1")
    assert output.splitlines()[0] == "flashrnn is not installed: pip install flashrnn"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("torch", "torch, which holds the tensors, is not installed: pip install torch"),
        ("_cuda", "built without CUDA: pip install . -Ccmake.define.THROUGHTIME_CUDA=ON"),
        ("torch's device", "finds no CUDA device"),
        ("device", "throughtime finds no CUDA device"),
    ],
)
def test_a_missing_device_is_one_line(monkeypatch, missing, words):
    found = SimpleNamespace(device_count=lambda: 0)
    monkeypatch.setitem(sys.modules, "throughtime._cuda", None if missing == "_cuda" else found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: missing == "device")
    if missing == "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("throughtime: error: --device cuda: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


# Answers


def vanilla(projected, recurrent, bias, states=None, function="lstm", dtype="bfloat16"):
    """A function with the shapes of flashrnn's: (B, T, G, N, D), (G, N, D, P), (G, N, D); states (S, B, T, N, D)."""
    assert (function, dtype) == ("lstm", "float32")
    h = c = projected.new_zeros(projected[:, 0, 0].shape)
    steps = []
    for x in projected.unbind(1):
        i, f, g, o = (x + torch.einsum("gndp,bnp->bgnd", recurrent, h) + bias).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(torch.stack([h, c]))
    states = torch.stack(steps, 2)
    return states, states[:, :, -1:]


def wrong(found, problem, numbers=FLOAT32, ours=False):
    """The verdict on the answers of the first steps or rows."""
    rows = isinstance(problem, AddNorm)
    compared = COMPARED[rows]
    expected = (add_norm if rows else torch_layers).reference(problem, numbers.type, CPU, compared)
    assert set(found) in (set(), set(expected))
    allowed = accuracy.bound(problem.terms(compared), numbers.product_error(ours))
    return accuracy.verdict(accuracy.errors(found, expected), allowed)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", torch_layers.ON_DEVICE)
def test_layers_agree_with_float64(monkeypatch, name, cell):
    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=vanilla))
    problem = SMALL._replace(cell=cell)
    if name == "flashrnn" and cell != "LSTM":
        with pytest.raises(NotImplementedError, match=cell):
            torch_layers.on_device(name, problem, FLOAT32, CPU)
        return
    layer = torch_layers.on_device(name, problem, FLOAT32, CPU)
    found = layer.answers(5)
    assert {"inference", "output", "input"} < set(found)
    assert wrong(found, problem) is None
    assert len(found["input"]) == 12
    assert not found["input"][5:].any()  # ran the whole sequence, with a loss on the first steps only
    assert all(CPU.turn(layer, timed) > 0 for timed in problem.timed)


@pytest.mark.parametrize("name", [OURS, "torch", "copy"])
def test_rows_agree_with_float64(name):
    block = add_norm.on_device(name, ROWS, FLOAT32, CPU)
    found = block.answers(30)
    assert (found == {}) == (name == "copy")
    assert wrong(found, ROWS) is None
    if found:
        assert len(found["x"]) == 40
        assert not found["x"][30:].any()
    assert all(CPU.turn(block, timed) > 0 for timed in ROWS.timed)


def test_the_copy_moves_as_many_bytes_as_a_pass():
    moved = 2 * add_norm.on_device("copy", ROWS, BFLOAT16, CPU).source.nbytes  # read and written
    assert {ROWS.work(timed).numbers * BFLOAT16.bytes for timed in (FORWARD, BACKWARD)} == {moved}


@pytest.mark.parametrize("numbers", [BFLOAT16, FLOAT16], ids=str)
def test_the_bound_lets_sixteen_bits_through_and_no_missing_bias(numbers):
    problem = SMALL._replace(I=64, H=64)
    layer = torch_layers.on_device("cudnn", problem, numbers, CPU)
    assert wrong(layer.answers(5), problem, numbers) is None
    torch.nn.init.zeros_(layer._module.bias_ih_l0)
    assert wrong(layer.answers(5), problem, numbers) is not None


def test_all_data_are_rounded_to_the_type_once():
    wide, narrow = (torch_layers.device_data(SMALL, type, "cpu") for type in ("float32", "bfloat16"))
    assert torch.equal(wide.x.bfloat16(), narrow.x)
    assert all(torch.equal(wide.parameters[name].bfloat16(), narrow.parameters[name]) for name in wide.parameters)


def test_errors_are_over_the_beginning_and_infinite_if_the_rest_is_not_finite():
    expected = {"output": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    answer = torch.tensor([3.0, 4.5, 7.0])
    assert accuracy.errors({"output": answer}, expected) == {"output": pytest.approx(0.1)}
    answer[2] = torch.nan
    assert accuracy.errors({"output": answer}, expected) == {"output": np.inf}
    assert accuracy.errors({"output": torch.ones(1)}, expected) == {"output": np.inf}


def test_bounds_follow_the_numbers():
    """2^-9 and 2^-12 are the root-mean-square errors of single numbers that are rounded to these types."""

    def bound(numbers, ours=True):
        return accuracy.bound(GPU_PROBLEMS["mark"][0].terms(64), numbers.product_error(ours))

    assert bound(FLOAT32) < 2**-12 < bound(FLOAT16) < 2**-9 * 4 < bound(BFLOAT16) < 0.05
    medium = Numbers("float32", "medium")
    assert bound(FLOAT32) < bound(medium, ours=False) < bound(medium)
    for numbers in (FLOAT16, BFLOAT16):
        assert numbers.product_error(ours=True) == torch.finfo(getattr(torch, numbers.type)).eps / 2


# Times


def test_a_turn_leaves_out_its_first_run_and_fills_its_time(monkeypatch):
    monkeypatch.setattr(device, "GPU_FILL", 1.0)
    asked = []

    class Clock(InPlace):
        def clock(self, work, repeats):
            asked.append((work, repeats))
            return 5.0 if work == "slow" else 0.25 if len(asked) == 1 else 0.8

    assert Clock().turn(SimpleNamespace(inference="fast"), FORWARD) == 0.2
    assert asked == [("fast", 1), ("fast", 4)]
    assert Clock().turn(SimpleNamespace(step="slow"), STEP) == 5.0


def test_all_runs_lie_between_two_events(monkeypatch):
    seen = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seen.append(self)

        def synchronize(self):
            assert seen[-1] is self

        def elapsed_time(self, end):
            assert (seen[0], seen[-1]) == (self, end)
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert device.Cuda().clock(lambda: seen.append("run"), 3) == 1.5
    assert seen[1:-1] == ["run"] * 3


# Comparisons


def test_precisions_are_those_of_float32():
    assert [str(numbers) for numbers in all_numbers(["bfloat16", "float32"], ["highest", "medium"])] == [
        *("bfloat16", "float32", "float32, medium"),
    ]


def test_bfloat16_is_compared_with_the_persistent_float16_too():
    assert list(case(SMALL).ratios) == [
        "float16 against cudnn float16",
        "bfloat16 against cudnn float16",
        "bfloat16 against cudnn bfloat16",
        "float32 against cudnn float32",
    ]


def test_the_table_has_times_of_steps_and_names_other_numbers():
    words, speed, _ = cuda.CudaSuite.columns(None, {"ceilings": {}})
    found = result(SMALL, FORWARD, {OURS: [1.0, 2.0, 4.0], "cudnn": [3.0, 4.0, 20.0]})
    (row,) = found.case.rows(found)
    assert [contents(row) for contents in (*words.values(), *speed.values())] == [
        *("T=12 B=3 H=8", "LSTM", FORWARD, "bfloat16", "cudnn"),
        *("2000", "4000", "3.00", "166667", "333333"),
    ]
    both = Result(case(SMALL), FORWARD, {})
    assert words["against"](Row(both, f"{OURS} bfloat16", "cudnn float16")) == "cudnn float16"


def test_the_work_is_that_of_the_products_and_of_what_crosses_memory():
    T, B, H = 12, 3, 8
    forward, step = SMALL.work(FORWARD), SMALL.work(STEP)
    assert forward == Work(2 * T * B * 4 * H * 2 * H, T * B * 2 * H + 4 * H * 2 * H, T)
    assert step == Work(3 * forward.operations, 3 * forward.numbers, T)


@pytest.mark.parametrize(
    ("problem", "time", "expected"),
    [
        (Recurrence("LSTM", 100, 64, 512, 512), 1.6e-2, (0.839, "products")),
        (Recurrence("LSTM", 100, 64, 512, 512), 1.0, (0.0134, "latency")),
        (AddNorm(1000, 1000), 1e-2, (0.8, "memory")),
        (AddNorm(1000, 1000), 1e-1, (0.08, "memory")),
    ],
)
def test_the_share_of_the_ceiling_and_its_name(problem, time, expected):
    """At 2 TFLOP/s and 1 GB/s: 2 * 6400 * 2048 * 1024 operations are 13.4 ms, 4e6 numbers of two bytes 8 ms."""
    ceilings = {"bfloat16_flops": 2e12, "copy_bytes_per_second": 1e9 if isinstance(problem, AddNorm) else 1e12}
    found = result(problem, FORWARD, {OURS: [time]})
    share, binds = found.case.share(found, f"{OURS} bfloat16", ceilings)
    assert (share, binds) == (pytest.approx(expected[0], rel=2e-3), expected[1])


def test_the_lists_of_problems():
    """The problems with marks; every name and cell occurs once."""
    sizes = {(problem.cell, problem.T, problem.B, problem.H) for problem in GPU_PROBLEMS["sizes"]}
    assert len(sizes) == len(GPU_PROBLEMS["sizes"]) == 2 * 4 * 3
    assert ("LSTM", 1024, 16, 768) in sizes
    assert all(problem.timed == (FORWARD,) and problem.T == 10000 for problem in GPU_PROBLEMS["long"])
    assert all(2**27 - problem.F < problem.N * problem.F <= 2**27 for problem in GPU_PROBLEMS["layer-norm"])
    assert {problem.cell for problems in GPU_PROBLEMS.values() for problem in problems} == set(GPU_CELLS)
