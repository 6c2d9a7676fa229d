"""`throughtime bench --step`: whole training steps, in separate processes."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import throughtime as tt

from ...errors import fail
from ...options import pick
from .. import formatting, machine
from ..case import Case, Contender, NotMeasured
from ..layers.implementations import INSTALL
from ..process import Process, ProcessError
from ..result import Outcome, Result, Row
from ..suite import Columns, HostSuite, pick_problems
from . import host
from .answers import Answers, fault, gradient_errors, loss_error
from .busy import busy_processes
from .contenders import AGAINST, COMPILED, MODULES, NUMPY, PROCESSES, TORCH
from .problems import PROBLEMS, STEP_CELLS, Task

if TYPE_CHECKING:
    from ..options import Options


class Remote(Protocol):
    """Calls methods of a `Host`: a `Process`."""

    def call(self, method: str, *arguments: Any) -> Any: ...
    def close(self) -> None: ...


Start = Callable[[Task, str, int, Path], Remote]  # by the kind of process, its threads and the compiler's cache


def start_process(task: Task, kind: str, threads: int, cache: Path) -> Process:
    """A new process for programs of one kind."""
    # NumPy's BLAS takes its threads from the environment alone. torch's compiler starts with an empty cache.
    environment = {"OPENBLAS_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return Process(host.start, task.problem, task.cell, threads, kind, environment=environment)


class StepContender:
    """One program, in a process of some number of threads."""

    def __init__(self, name: str, remote: Remote, task: Task, expected: Answers) -> None:
        self._name, self._remote, self._task, self._expected = name, remote, task, expected

    def check(self, outcome: Outcome) -> None:
        answers, outcome.first_call = self._remote.call("answers", self._name)
        outcome.errors = gradient_errors(answers, self._expected)
        outcome.details = {
            "losses": [formatting.finite(loss) for loss in answers.losses],
            "loss_error": formatting.finite(loss_error(answers, self._expected)),
        }
        outcome.wrong = fault(self._task, answers, self._expected)

    def seconds(self, timed: str) -> float:
        seconds: float = self._remote.call("block", self._name)
        return seconds


class StepCase(Case):
    """A model with one kind of cell."""

    timed = ("step",)
    alternates = True

    def __init__(self, name: str, task: Task, suite: StepSuite, start: Start | None = None) -> None:
        self.problem, self.cell, self.sizes = name, task.cell, task.problem._asdict()
        self.task, self._suite, self._start = task, suite, start or start_process
        self.with_memory = suite.with_memory
        self._cache = Path()

    @property
    def ratios(self) -> dict[str, tuple[str, str]]:
        """torch.nn over each contender, with all threads; with `beside`, also all threads over one."""
        label, threads = self._suite.label, self._suite.threads
        found = {name: (label(TORCH, threads), label(name, threads)) for name in self._suite.names if name != TORCH}
        return found | {f"{theirs} over 1": (theirs, ours) for theirs, ours in self._scaling}

    @property
    def _scaling(self) -> list[tuple[str, str]]:
        label, (*one, most) = self._suite.label, self._suite.counts
        return [(label(name, most), label(name, one[0])) for name in self._suite.names] if one else []

    def rows(self, result: Result) -> list[Row]:
        """One row per contender, that of torch.nn without a ratio; with `beside`, all threads over one."""
        if self._scaling:
            return [Row(result, ours, theirs) for theirs, ours in self._scaling]
        return [Row(result, name, None if name == TORCH else TORCH) for name in self._suite.names]

    @contextmanager
    def session(self) -> Iterator[None]:
        """A cache for the compiler."""
        with tempfile.TemporaryDirectory() as cache:
            self._cache = Path(cache)
            yield

    @contextmanager
    def contenders(self) -> Iterator[Mapping[str, Contender]]:
        with ExitStack() as stack:
            remotes: dict[tuple[str, int], Remote] = {}
            for threads in self._suite.counts:
                for kind in dict.fromkeys(PROCESSES[name] for name in self._suite.names):
                    remote = self._start(self.task, kind, threads, self._cache)
                    remotes[kind, threads] = stack.enter_context(closing(remote))
            try:
                expected = remotes[PROCESSES[TORCH], self._suite.counts[0]].call("reference")
            except ProcessError as error:
                raise NotMeasured(str(error)) from None
            yield {
                self._suite.label(name, threads): StepContender(
                    name, remotes[PROCESSES[name], threads], self.task, expected
                )
                for name in self._suite.names
                for threads in self._suite.counts
            }

    def during_round(self) -> AbstractContextManager[None]:
        return busy_processes(self._suite.beside)

    def memory(self, name: str) -> int | None:
        """The peak of model, data and a few steps, alone in a new process."""
        with closing(self._start(self.task, PROCESSES[name], self._suite.threads, self._cache)) as remote:
            found: int | None = remote.call("memory", name)
        return found


class StepSuite(HostSuite):
    """Whole training steps compared with torch.nn, on the CPU."""

    what = "Whole training steps"
    no_plot = "no plot: there is no ratio to torch.nn"

    def __init__(self, options: Options) -> None:
        options.refuse("with --device cuda", "types")
        options.refuse("without --step", "precision", "memory")
        if options.on_gpu:
            fail("--device cuda: only without --step")
        all_tasks = {name: [Task(each, cell) for cell in each.cells] for name, each in PROBLEMS.items()}
        tasks = pick_problems(options, all_tasks, tuple(PROBLEMS), STEP_CELLS)
        against = pick("--against", options.against, AGAINST, (TORCH,))
        self.names = [MODULES, NUMPY, *(name for name in AGAINST if name in (TORCH, *against))]
        self.beside, self.rounds = options.beside or 0, options.rounds
        self.threads = options.threads or tt.get_num_threads()
        if self.beside and self.threads == 1:
            fail(f"--beside {self.beside}: compares several threads with one, got --threads 1")
        self.counts = [1, self.threads] if self.beside else [self.threads]
        self.with_memory = not (options.no_memory or self.beside)
        self.axis = "ratio of times" if self.beside else "time of torch.nn / time of the other"
        self.cases = [StepCase(name, task, self) for name, task in tasks]
        if importlib.util.find_spec("torch") is None:
            fail(f"--step compares with torch, which is not installed: {INSTALL['torch']}")

    def label(self, name: str, threads: int) -> str:
        """A contender's name, with its threads if their number varies."""
        return name if len(self.counts) == 1 else f"{name}, {threads} thread{'s' if threads > 1 else ''}"

    def versions(self) -> dict[str, str]:
        return machine.versions(["torch"])

    def settings(self) -> dict[str, Any]:
        block = {"warm_up_steps": host.WARM, "steps": host.STEPS}
        return super().settings() | {"block": block, "beside": self.beside}

    def title(self, about: Mapping[str, Any]) -> str:
        beside = f", beside {self.beside} busy process{'es' if self.beside > 1 else ''}" if self.beside else ""
        return super().title(about) + beside

    def caption(self, about: Mapping[str, Any]) -> str:
        blocks = (
            f"ms: median of {self.rounds} blocks of {host.STEPS} steps, in turn, each after {host.WARM} untimed steps "
            "of the same contender; ratio: median of the rounds', with the lowest and the highest"
        )
        if self.beside:
            return blocks
        return (
            f"{blocks}; peak MB: of model, data and steps, above the libraries; first step: with compiling, not in ms; "
            "error: the largest gradient's of the first step, relative to float64, root mean square"
        )

    def columns(self, about: Mapping[str, Any]) -> tuple[Columns, Columns, Columns]:
        """Times and ratios with their spread; with `beside`, those of one thread and of all."""
        words: Columns = {
            "problem": lambda row: row.case.problem,
            "cell": lambda row: row.case.cell,
            "contender": lambda row: "torch.nn" if (name := row.ours.split(", ")[0]) == TORCH else name,
        }
        most = self.threads
        ratio = f"time with {most}\nover 1" if self.beside else "times as fast\nas torch.nn"
        spread: Columns = {
            ratio: lambda row: formatting.median(row.ratios),
            "lowest,\nhighest": lambda row: formatting.spread(row.ratios),
        }
        if self.beside:
            one_and_most: Columns = {
                "ms\n1 thread": lambda row: formatting.milliseconds(row.mine),
                f"ms\n{most} threads": lambda row: formatting.milliseconds(row.other),
            }
            return words, {**one_and_most, **spread}, {}
        speed: Columns = {
            "ms\na step": lambda row: formatting.milliseconds(row.mine),
            "samples\n/ s": lambda row: formatting.number(_samples(row.result, row.ours)),
        }
        rest: Columns = {
            "peak\nMB": lambda row: formatting.memory(row.mine),
            "first\nstep s": lambda row: formatting.number(row.mine.first_call),
            "error of\ngradients": lambda row: formatting.error(row.mine),
        }
        return words, {**speed, **spread}, rest

    def details(self, result: Result, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        median = result.outcomes[name].median
        return {
            "steps_per_second": 1 / median if median else None,
            "samples_per_second": _samples(result, name),
        }

    def may_fail(self, name: str) -> bool:
        """Only torch.compile may fail, because it needs a C++ compiler."""
        return name.startswith(COMPILED)


def _samples(result: Result, name: str) -> float | None:
    """Samples (sequences) per second."""
    median = result.outcomes[name].median
    return result.case.sizes["B"] / median if median else None
