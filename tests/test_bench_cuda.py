"""`throughtime bench --device cuda` with the CPU in its place: what is measured, what is right, what is written."""

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
from throughtime.cli.bench.contenders import OURS
from throughtime.cli.bench.cuda import accuracy, command, device, layers, measure, report, rows
from throughtime.cli.bench.cuda.contenders import maker
from throughtime.cli.bench.cuda.device import Device
from throughtime.cli.bench.cuda.measure import Outcome, Result
from throughtime.cli.bench.cuda.numbers import Numbers
from throughtime.cli.bench.cuda.plot import save_ratios
from throughtime.cli.bench.cuda.problems import BACKWARD, CELLS, FORWARD, PROBLEMS, STEP, AddNorm, Recurrence, Work

FLOAT32, BFLOAT16, FLOAT16 = Numbers("float32"), Numbers("bfloat16"), Numbers("float16")
SMALL, ROWS = Recurrence("LSTM", 12, 3, 8), AddNorm(40, 16)


def wall_seconds(run, repeats):
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - begin


CPU = Device("cpu", wall_seconds, matrix=32, copied=1 << 12)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Short turns, a slice that is shorter than the problems, and torch's switches as they were."""
    monkeypatch.setattr(device, "FILL", 1e-9)
    monkeypatch.setattr(accuracy, "STEPS", 5)
    monkeypatch.setattr(accuracy, "ROWS", 30)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(monkeypatch, folder):
    """The command with tiny problems in place of the real ones, on the CPU."""
    here = {
        "sizes": (SMALL, SMALL._replace(cell="GRU")),
        "long": (SMALL._replace(passes=(FORWARD,)),),
        "layer-norm": (ROWS,),
    }
    monkeypatch.setattr(command, "PROBLEMS", here)
    monkeypatch.setattr(command, "open_device", lambda: CPU)
    return folder


def call(*arguments):
    return CliRunner().invoke(app, ["bench", "--device", "cuda", *map(str, arguments)])


def result(problem, times):
    """Of made-up rounds of every pass."""
    return Result(
        problem,
        {
            key: Outcome({"output": 1e-3}, seconds=dict.fromkeys(problem.passes, rounds))
            for key, rounds in times.items()
        },
    )


# The command


def test_everything_is_written(tiny):
    done = call(
        "--types", "float32", "--against", "cudnn", "torch-loop", "--rounds", 3, "--json", "b.json", "--plot", "b.png"
    )
    assert done.exit_code == 0, done.output
    assert (tiny / "b.png").read_bytes().startswith(b"\x89PNG")
    for line in (
        "LSTM forward, float32, against cudnn float32: ",
        "LSTM forward + backward, float32, against torch-loop float32: ",
        "GRU forward + backward, float32, against cudnn float32: ",
        "AddLayerNorm backward, float32, against copy float32: ",
    ):
        assert any(said.startswith(line) for said in done.output.splitlines()), line
    data = json.loads((tiny / "b.json").read_text())
    assert set(data["device"]["ceilings"]) == {"bfloat16_flops", "copy_bytes_per_second"}
    assert all(value > 0 for value in data["device"]["ceilings"].values())
    assert [found["problem"] for found in data["results"]] == [
        "LSTM T=12 B=3 H=8",
        "GRU T=12 B=3 H=8",
        "LSTM T=12 B=3 H=8",
        "AddLayerNorm N=40 F=16",
    ]
    for found in data["results"]:
        ours, *others = found["contenders"]
        assert ours["name"] == OURS
        for ratio in found["ratios"]:
            theirs = next(other for other in others if ratio["against"] == f"{other['name']} {other['numbers']}")
            rounds = [contender["passes"][ratio["pass"]]["seconds"] for contender in (theirs, ours)]
            assert ratio["rounds"] == [a / b for a, b in zip(*rounds, strict=True)]
            assert ratio["median"] == sorted(ratio["rounds"])[1]
        for contender in found["contenders"]:
            for which in contender["passes"].values():
                assert which["median_seconds"] == sorted(which["seconds"])[1]
                if "T" in found:
                    assert which["microseconds_per_step"] == which["median_seconds"] * 1e6 / 12
    assert set(data["results"][2]["contenders"][0]["passes"]) == {FORWARD}


def test_a_wrong_answer_is_not_timed_and_fails_the_command(tiny, monkeypatch):
    class Wrong(layers.CuDNN):
        def answers(self, count):
            found = super().answers(count)
            return found | {"weight_hh_l0": found["weight_hh_l0"] * 1.01}

    monkeypatch.setattr(layers, "CuDNN", Wrong)
    done = call(
        "--problems",
        "sizes",
        "--cells",
        "GRU",
        "--types",
        "float32",
        "--rounds",
        2,
        "--json",
        "b.json",
        "--plot",
        "b.png",
    )
    assert done.exit_code == 1, done.output
    assert "wrong, not timed: cudnn float32 on GRU T=12 B=3 H=8: weight_hh_l0 is off by 1.0e-02" in done.output
    assert done.output.splitlines()[-1] == "no plot: there is no ratio"
    ours, theirs = json.loads((tiny / "b.json").read_text())["results"][0]["contenders"]
    assert all(len(which["seconds"]) == 2 for which in ours["passes"].values())
    assert all(which["seconds"] == [] for which in theirs["passes"].values())


@pytest.mark.parametrize(("name", "code"), [("Ours", 1), ("CuDNN", 0)])
def test_a_failure_is_a_line_and_the_others_go_on(tiny, monkeypatch, name, code):
    class Failing(getattr(layers, name)):
        def _call(self):
            raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(layers, name, Failing)
    done = call("--problems", "long", "--types", "float32", "--rounds", 1, "--json", "b.json")
    assert done.exit_code == code, done.output
    who = {"Ours": OURS, "CuDNN": "cudnn"}[name]
    assert f"failed: {who} float32 on LSTM T=12 B=3 H=8: RuntimeError: no kernel for this" in done.output
    timed = [
        found["passes"][FORWARD]["seconds"] != []
        for found in json.loads((tiny / "b.json").read_text())["results"][0]["contenders"]
    ]
    assert timed == [name != "Ours", name != "CuDNN"]


def test_a_failure_while_timed_leaves_no_time(monkeypatch):
    calls = []

    def fail_later(clock, run):
        calls.append(1)
        if len(calls) == 4:  # the second round of the second contender
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr(measure, "turn", fail_later)
    found = measure.measure(SMALL._replace(passes=(FORWARD,)), [OURS, "cudnn"], [FLOAT32], CPU, 3, lambda: None)
    assert found.outcomes[OURS, FLOAT32].seconds == {FORWARD: [1.0] * 3}
    assert found.outcomes["cudnn", FLOAT32].seconds == {}
    assert found.outcomes["cudnn", FLOAT32].failed == "RuntimeError: out of memory"


def test_ctrl_c_reports_what_there_is(tiny, interrupt_second_call):
    interrupt_second_call(measure, "measure")
    done = call("--types", "float32", "--rounds", 1, "--json", "b.json")
    assert done.exit_code == 130
    assert "interrupted after 1 of 4" in done.output
    data = json.loads((tiny / "b.json").read_text())
    assert data["interrupted"]
    assert len(data["results"]) == 1


def test_a_contender_that_is_absent_is_said(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    done = call("--problems", "long", "--against", "flashrnn", "--types", "float32", "--rounds", 1)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "flashrnn is not installed: pip install flashrnn"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("torch", "torch, which holds the tensors, is not installed: pip install torch"),
        ("_cuda", "built without CUDA: pip install . -Ccmake.define.THROUGHTIME_CUDA=ON"),
        ("torch's device", "finds no CUDA device"),
        ("device", "throughtime finds no CUDA device"),
    ],
)
def test_what_is_missing_is_one_line(folder, monkeypatch, missing, words):
    cuda = SimpleNamespace(device_count=lambda: 0)
    monkeypatch.setitem(sys.modules, "throughtime._cuda", None if missing == "_cuda" else cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: missing == "device")
    if missing == "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
    done = call()
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("throughtime: error: --device cuda: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "torch"], "--against torch: expected some of cudnn, flashrnn, torch-loop"),
        (["--problems", "train"], "--problems train: expected some of mark, sizes, long, layer-norm"),
        (["--types", "float64"], "--types float64: expected some of float16, bfloat16, float32"),
        (["--problems", "long", "--cells", "RNN"], "none of the problems long has such a cell"),
        (["--threads", "2"], "--threads: only with --device cpu"),
        (["--memory", "states"], "--memory: only with --device cpu"),
        (["--no-memory"], "--no-memory: only with --device cpu"),
        (["--json", "nowhere/b.json"], "nowhere does not exist"),
        (["--plot", "b.txt"], "must end in one of"),
        (["--device", "tpu"], "--device tpu: expected some of cpu, cuda"),
        (["--device", "cpu", "--types", "float32"], "--types: only with --device cuda"),
    ],
)
def test_refusals_are_one_line_and_come_before_the_device(folder, monkeypatch, arguments, words):
    monkeypatch.setattr(command, "open_device", lambda: pytest.fail("the device was opened"))
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_precisions_are_those_of_float32():
    assert [str(numbers) for numbers in command._numbers(["bfloat16", "float32"], ["highest", "medium"])] == [
        "bfloat16",
        "float32",
        "float32, medium",
    ]


# Contenders


def vanilla(projected, recurrent, bias, states=None, function="lstm", dtype="bfloat16"):
    """flashrnn's function by its shapes: (B, T, G, N, D), (G, N, D, P), (G, N, D); states (S, B, T, N, D)."""
    assert function == "lstm"
    h = c = projected.new_zeros(projected[:, 0, 0].shape)
    steps = []
    for x in projected.unbind(1):
        i, f, g, o = (x + torch.einsum("gndp,bnp->bgnd", recurrent, h) + bias).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(torch.stack([h, c]))
    states = torch.stack(steps, 2)
    return states, states[:, :, -1:]


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("name", [OURS, "cudnn", "torch-loop", "flashrnn"])
def test_layers_agree_with_float64(monkeypatch, name, cell):
    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=vanilla))
    problem = SMALL._replace(cell=cell)
    if name == "flashrnn" and cell != "LSTM":
        with pytest.raises(NotImplementedError, match=cell):
            maker(name, problem)(problem, FLOAT32, CPU)
        return
    contender = maker(name, problem)(problem, FLOAT32, CPU)
    found, expected = contender.answers(5), accuracy.reference(problem, FLOAT32, CPU)
    assert (
        set(found)
        == set(expected)
        == {"inference", "output", "input", *layers.data(problem, "float32", "cpu").parameters}
    )
    assert accuracy.verdict(accuracy.errors(found, expected), accuracy.bound(problem, FLOAT32, name)) is None
    assert len(found["input"]) == 12
    assert not found["input"][5:].any()  # the whole sequence ran, with a loss on the first steps alone
    for which in problem.passes:
        contender.run(which)()


@pytest.mark.parametrize("name", [OURS, "torch", "copy"])
def test_rows_agree_with_float64(name):
    contender = maker(name, ROWS)(ROWS, FLOAT32, CPU)
    found, expected = contender.answers(30), accuracy.reference(ROWS, FLOAT32, CPU)
    assert set(found) == (set() if name == "copy" else set(expected))
    assert accuracy.verdict(accuracy.errors(found, expected), accuracy.bound(ROWS, FLOAT32, name)) is None
    if name != "copy":
        assert len(found["x"]) == 40
        assert not found["x"][30:].any()
    for which in ROWS.passes:
        contender.run(which)()
        contender.run(which)()


def test_the_copy_moves_what_a_pass_must():
    copy = rows.Copy(ROWS, BFLOAT16, CPU)
    moved = 2 * copy._source.nbytes  # read and written
    assert {ROWS.work(which).numbers * BFLOAT16.bytes for which in (FORWARD, BACKWARD)} == {moved}


@pytest.mark.parametrize("type", ["bfloat16", "float16"])
def test_the_bound_lets_sixteen_bits_through_and_no_missing_bias(type):
    numbers, problem = Numbers(type), Recurrence("LSTM", 12, 3, 64)
    contender = maker("cudnn", problem)(problem, numbers, CPU)
    expected = accuracy.reference(problem, numbers, CPU)
    allowed = accuracy.bound(problem, numbers, "cudnn")
    assert accuracy.verdict(accuracy.errors(contender.answers(5), expected), allowed) is None
    torch.nn.init.zeros_(contender._module.bias_ih_l0)
    assert accuracy.verdict(accuracy.errors(contender.answers(5), expected), allowed) is not None


def test_all_data_are_rounded_to_the_type_once():
    wide = layers.data(SMALL, "float32", "cpu")
    narrow = layers.data(SMALL, "bfloat16", "cpu")
    assert torch.equal(wide.x.bfloat16(), narrow.x)
    assert all(torch.equal(wide.parameters[name].bfloat16(), narrow.parameters[name]) for name in wide.parameters)


# Accuracy


def test_errors_are_over_the_slice_and_infinite_where_the_rest_is_not_finite():
    expected = {"output": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    answer = torch.tensor([3.0, 4.5, 7.0])
    assert accuracy.errors({"output": answer}, expected) == {"output": pytest.approx(0.1)}
    answer[2] = torch.nan
    assert accuracy.errors({"output": answer}, expected) == {"output": np.inf}
    assert accuracy.errors({"output": torch.ones(1)}, expected) == {"output": np.inf}
    assert accuracy.verdict({"output": np.inf}, 1.0) is not None
    assert accuracy.verdict({}, 1.0) is None


def test_bounds_follow_the_numbers():
    """2^-9 and 2^-12 are the errors of single numbers, root mean square, that are rounded to those types."""
    problem = PROBLEMS["mark"][0]
    single, half, brain = (accuracy.bound(problem, numbers, OURS) for numbers in (FLOAT32, FLOAT16, BFLOAT16))
    assert single < 2**-12 < half < 2**-9 * 4 < brain < 0.05
    medium = Numbers("float32", "medium")
    assert single < accuracy.bound(problem, medium, "cudnn") < accuracy.bound(problem, medium, OURS)


# Times


def test_a_turn_leaves_out_its_first_run_and_fills_its_time(monkeypatch):
    monkeypatch.setattr(device, "FILL", 1.0)
    asked = []

    def clock(run, repeats):
        asked.append(repeats)
        return 0.25 if len(asked) == 1 else 0.8

    assert device.turn(clock, lambda: None) == 0.2
    assert asked == [1, 4]
    assert device.turn(lambda run, repeats: 5.0 * repeats, lambda: None) == 5.0


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
    assert device.event_seconds(lambda: seen.append("run"), 3) == 1.5
    assert seen[1:-1] == ["run"] * 3


def test_contenders_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(measure, "turn", lambda clock, run: turns.append(run.__self__) or float(len(turns)))
    found = measure.measure(SMALL._replace(passes=(FORWARD,)), [OURS, "cudnn"], [FLOAT32], CPU, 3, lambda: None)
    assert [type(who) for who in turns] == [layers.Ours, layers.CuDNN] * 3
    assert found.outcomes[OURS, FLOAT32].seconds == {FORWARD: [1.0, 3.0, 5.0]}


# Tables


def test_bfloat16_is_compared_with_the_persistent_float16_too():
    found = result(
        SMALL, {(name, numbers): [1.0] for numbers in (FLOAT16, BFLOAT16, FLOAT32) for name in (OURS, "cudnn")}
    )
    assert [(str(ours[1]), theirs) for ours, theirs in found.pairs()] == [
        ("float16", ("cudnn", FLOAT16)),
        ("bfloat16", ("cudnn", FLOAT16)),
        ("bfloat16", ("cudnn", BFLOAT16)),
        ("float32", ("cudnn", FLOAT32)),
    ]


def test_ratios_of_made_up_times():
    found = result(SMALL, {(OURS, BFLOAT16): [1.0, 2.0, 4.0], ("cudnn", BFLOAT16): [3.0, 4.0, 20.0]})
    assert found.ratio(STEP, ("cudnn", BFLOAT16), (OURS, BFLOAT16)) == 3.0  # of the rounds; that of the medians is 2
    ceilings = {"bfloat16_flops": 1e12, "copy_bytes_per_second": 1e12}
    (line, *_) = report.rows([found], ceilings)
    assert line[:9] == ["LSTM T=12 B=3 H=8", FORWARD, "bfloat16", "cudnn", "2000", "4000", "3.00", "166667", "333333"]
    assert (
        report.summary([found])[0] == "LSTM forward, bfloat16, against cudnn bfloat16: 3.00 to 3.00, median 3.00 of 1"
    )


def test_work_is_that_of_the_products_and_of_what_crosses_memory():
    T, B, H = 12, 3, 8
    forward, step = SMALL.work(FORWARD), SMALL.work(STEP)
    assert forward == Work(2 * T * B * 4 * H * 2 * H, T * B * 2 * H + 4 * H * 2 * H, T)
    assert step == Work(3 * forward.operations, 3 * forward.numbers, T)


@pytest.mark.parametrize(
    ("problem", "time", "expected"),
    [
        (Recurrence("LSTM", 100, 64, 512), 1.6e-2, (0.839, "products")),
        (Recurrence("LSTM", 100, 64, 512), 1.0, (0.0134, "latency")),
        (AddNorm(1000, 1000), 1e-2, (0.8, "memory")),
        (AddNorm(1000, 1000), 1e-1, (0.08, "memory")),
    ],
)
def test_what_binds(problem, time, expected):
    """At 2 TFLOP/s and 1 GB/s: 2 * 6400 * 2048 * 1024 operations are 13.4 ms, 4e6 numbers of two bytes 8 ms."""
    ceilings = {"bfloat16_flops": 2e12, "copy_bytes_per_second": 1e9 if isinstance(problem, AddNorm) else 1e12}
    share, binds = result(problem, {(OURS, BFLOAT16): [time]}).share(FORWARD, (OURS, BFLOAT16), ceilings)
    assert (share, binds) == (pytest.approx(expected[0], rel=2e-3), expected[1])


def test_the_plot_takes_every_kind_of_result(tmp_path):
    keys = {(name, numbers): [1.0] for numbers in (FLOAT16, BFLOAT16) for name in (OURS, "cudnn")}
    found = [result(problem, keys) for problem in (SMALL, SMALL._replace(B=4), SMALL._replace(cell="GRU"), ROWS)]
    found.append(result(ROWS, {(OURS, FLOAT32): [], ("copy", FLOAT32): [1.0]}))
    assert save_ratios(tmp_path / "b.png", found, "title")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert not save_ratios(tmp_path / "c.png", found[-1:], "title")
    assert not (tmp_path / "c.png").exists()


def test_the_lists_of_problems():
    """Those for which marks are set; every name and cell once."""
    sizes = {(problem.cell, problem.T, problem.B, problem.H) for problem in PROBLEMS["sizes"]}
    assert len(sizes) == len(PROBLEMS["sizes"]) == 2 * 4 * 3
    assert ("LSTM", 1024, 16, 768) in sizes
    assert all(problem.passes == (FORWARD,) and problem.T == 10000 for problem in PROBLEMS["long"])
    assert all(2**27 - problem.F < problem.N * problem.F <= 2**27 for problem in PROBLEMS["layer-norm"])
    assert {problem.cell for problems in PROBLEMS.values() for problem in problems} == set(CELLS)
