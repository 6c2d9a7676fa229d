"""`throughtime bench`: our layers on the CPU, and those of other frameworks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import throughtime as tt

from ...options import pick
from ...output import Output, say
from .. import accuracy, formatting, machine
from ..process import Process, added_memory
from ..report import first_calls
from ..result import Result, Row
from ..suite import PAIR, Columns, HostSuite, pick_problems
from .case import Entry, LayerCase
from .device import Cpu
from .dtypes import PRECISIONS, Numbers
from .implementations import FRAMEWORKS, INSTALL, MODES, OURS, Maker, Ours, load, reference
from .implementations import PRECISIONS as THEIR_PRECISIONS
from .problems import CELLS, CPU_DEFAULT, CPU_PROBLEMS, Recurrence, host_data

if TYPE_CHECKING:
    from ..options import Options

EVERY = "throughtime, loss on every step"


class CpuCase(LayerCase):
    """A problem of one cell; ours in several precisions and memory modes, interleaved with the others."""

    layer: Recurrence

    def __init__(self, name: str, problem: Recurrence, suite: CpuSuite) -> None:
        super().__init__(name, problem, Cpu())
        self._suite = suite
        self.with_memory = suite.with_memory
        modes = ["full"] if problem.last or problem.lean else list(dict.fromkeys(["full", *suite.modes]))
        self.ours = {_own_name(each, mode): (each, mode) for each in suite.precisions for mode in modes}
        self.full = {name: precision for name, (precision, mode) in self.ours.items() if mode == "full"}

    @property
    def others(self) -> list[str]:
        """The frameworks that take part."""
        return [] if self.layer.lean else [name for name in self._suite.makers if name != OURS]

    @property
    def ratios(self) -> dict[str, tuple[str, str]]:
        """Each framework over each of our precisions; each memory mode over `full`."""
        found = {
            f"{other} over {ours}" if ours != OURS else other: (other, ours)
            for ours in self.full
            for other in self.others
        }
        modes = {name: _own_name(precision) for name, (precision, mode) in self.ours.items() if mode != "full"}
        return found | {f"{name} over full": (name, full) for name, full in modes.items()}

    def rows(self, result: Result) -> list[Row]:
        """One row per ratio; only our own row if nothing is compared with it."""
        return super().rows(result) or [Row(result, ours, None) for ours in self.full]

    def entries(self) -> dict[str, Entry]:
        """Ours first. If the backward is timed alone, also with a loss on every step."""
        expected = functools.cache(lambda: reference(self.layer))
        entries = {
            name: self._entry(functools.partial(Ours, memory=mode), precision, expected)
            for name, (precision, mode) in self.ours.items()
        }
        for name in self.others:
            entries[name] = self._entry(self._suite.makers[name], THEIR_PRECISIONS.get(name, "highest"), expected)
        if self.layer.last:
            every = CpuCase(self.problem, self.layer._replace(timed=()), self._suite)
            entries[EVERY] = every.entries()[next(iter(every.full))]
        return entries

    def memory(self, name: str) -> int | None:
        """The peak of a step above its inputs, in a new process."""
        if name == EVERY:
            return None
        precision, mode = self.ours.get(name, ("highest", "full"))
        maker = OURS if name in self.ours else name
        with closing(Process(PeakMemory, maker, self.layer, self._suite.threads, precision, mode)) as process:
            found: int | None = process.call("measure")
        return found

    def _entry(self, maker: Maker, precision: str, expected: Any) -> Entry:
        numbers = Numbers("float32", precision)
        allowed = accuracy.bound(self.layer.terms(self.layer.T), numbers.product_error(ours=True))
        return Entry(functools.partial(maker, self.layer), numbers, expected, allowed)


class PeakMemory:
    """Measures the peak memory of a contender's step, in a separate process."""

    def __init__(self, name: str, problem: Recurrence, threads: int, precision: str, mode: str) -> None:
        self._problem = problem
        maker = load(name, threads)
        self._make = functools.partial(maker, memory=mode) if name == OURS else maker  # type: ignore[call-arg]
        tt.set_matmul_precision(precision)

    def measure(self) -> int | None:
        """Bytes above the inputs; None if the system does not report them."""
        small = Recurrence(self._problem.cell, 2, 2, 8, 8)
        self._make(small).step()  # so that starting the library does not count
        return added_memory(self._make(self._problem).step)


class CpuSuite(HostSuite):
    """Training steps of single layers on the CPU, compared with other frameworks."""

    what = "Training steps"
    cases: list[CpuCase]

    def __init__(self, options: Options) -> None:
        options.refuse("with --step", "beside")
        options.refuse("with --device cuda", "types")
        self._against = pick("--against", options.against, tuple(FRAMEWORKS), ("torch",))
        problems = pick_problems(options, CPU_PROBLEMS, CPU_DEFAULT, tuple(CELLS))
        self.precisions = pick("--precision", options.precision, PRECISIONS, ("highest",))
        self.modes = pick("--memory", options.memory, MODES, ("full",))
        self.threads = options.threads or tt.get_num_threads()
        self.rounds, self.with_memory = options.rounds, not options.no_memory
        self.makers: dict[str, Maker] = {}
        self.cases = [CpuCase(name, problem, self) for name, problem in problems]

    def prepare(self, console: Output) -> dict[str, Any]:
        """The machine, before this command does any work; then load the frameworks that are installed."""
        self.makers[OURS] = load(OURS, self.threads)
        about = super().prepare(console)
        for name in self._against:
            try:
                self.makers[name] = load(name, self.threads)
            except ImportError:
                package = FRAMEWORKS[name]
                say(console, f"{package} is not installed: {INSTALL[package]}")
        return about

    def versions(self) -> dict[str, str]:
        return machine.versions(dict.fromkeys(FRAMEWORKS[name] for name in self.makers if name != OURS))

    def caption(self, about: Mapping[str, Any]) -> str:
        parts = [
            f"ms: median of {self.rounds} rounds in turn; ratio: median of the rounds' theirs / ours; error: largest "
            "of the output and all gradients, relative to float64, root mean square; peak MB: of a step, above its "
            f"inputs; % of peak: ours, of the {about['peak_float32_flops'] / 1e9:.0f} GFLOP/s that multiply-adds in "
            "registers reach"
        ]
        if any(case.layer.last for case in self.cases):
            parts.append("vanishing: the backward alone, loss on the last step only")
        if "jax" in self.makers:
            parts.append("jax: XLA has no switch for threads, its pool is bounded by NPROC")
        return "; ".join(parts)

    def columns(self, about: Mapping[str, Any]) -> tuple[Columns, Columns, Columns]:
        """Rates of both, and our share of the peak."""
        peak = about["peak_float32_flops"]
        words: Columns = {
            "problem": lambda row: row.case.problem,
            "cell": lambda row: ", ".join([row.case.cell, *row.ours.split(", ")[1:]]),
            "against": lambda row: row.theirs or "",
        }
        rates: Columns = {
            "GFLOP/s\nours": lambda row: formatting.number(_rate(row.result, row.ours), 1e-9),
            "GFLOP/s\ntheirs": lambda row: formatting.number(_rate(row.result, row.theirs), 1e-9),
            "% of\npeak": lambda row: formatting.number(_rate(row.result, row.ours), 100 / peak),
        }
        rest: Columns = {
            "peak MB\nours": lambda row: formatting.memory(row.mine),
            "peak MB\ntheirs": lambda row: formatting.memory(row.other),
            "error\nours": lambda row: formatting.error(row.mine, beside=row.other),
            "error\ntheirs": lambda row: formatting.error(row.other),
        }
        return words, {**PAIR, **rates}, rest

    def details(self, result: Result, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """Floating-point operations per second."""
        return {"flops": _rate(result, name)}

    def remarks(self, results: Sequence[Result], about: Mapping[str, Any]) -> list[str]:
        """Remarks on the purpose of single problems, and on tapes."""
        said = [*first_calls(results), *super().remarks(results, about)]
        for result in results:
            case = result.case
            assert isinstance(case, CpuCase)
            ours = next(iter(case.full))
            if EVERY in result.outcomes and (ratio := result.ratio(ours, EVERY)):
                said.append(f"{case}: our backward takes {ratio:.2f} of its time with a loss on every step")
            memory = result.outcomes[ours].memory
            if case.layer.lean and memory is not None:
                rest = memory - host_data(case.layer).x.nbytes
                said.append(f"{case}: {formatting.megabytes(rest)} MB above the input and its gradient")
            tapes = {name: result.outcomes[name].details.get("tape_bytes") for name in case.ours}
            if len(case.ours) > len(case.full):
                said += [f"{case}: tape of {name}: {formatting.megabytes(size)} MB" for name, size in tapes.items()]
        return said

    def may_fail(self, name: str) -> bool:
        return name in self.makers and name != OURS


def _own_name(precision: str, mode: str = "full") -> str:
    said = [precision] * (precision != "highest") + [mode] * (mode != "full")
    return ", ".join([OURS, *said])


def _rate(result: Result, name: str | None) -> float | None:
    if name is None or (median := result.outcomes[name].median) is None:
        return None
    case = result.case
    assert isinstance(case, CpuCase)
    return case.layer.work(result.timed).operations / median
