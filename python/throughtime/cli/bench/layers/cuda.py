"""`throughtime bench --device cuda`: our layers on a GPU, through torch, and cuDNN's and others'."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ...options import pick
from ...output import Output, say
from .. import accuracy, formatting
from ..result import Result, Row
from ..suite import PAIR, Columns, Suite, pick_problems
from .case import Entry, LayerCase
from .device import Cuda, open_device
from .dtypes import PRECISIONS, TYPES, Numbers, all_numbers
from .implementations import OURS, RECURRENT
from .problems import GPU_CELLS, GPU_DEFAULT, GPU_PROBLEMS, AddNorm, Problem

if TYPE_CHECKING:
    from ..options import Options

ROWS = ("torch", "copy")
NEEDS = {"flashrnn": "flashrnn"}  # package that a contender needs in addition to torch
COMPARED = {"recurrent": 64, "rows": 4096}  # number of first timesteps or rows that are compared


class Key(NamedTuple):
    """A contender in one type of numbers."""

    who: str
    numbers: Numbers

    def __str__(self) -> str:
        return f"{self.who} {self.numbers}"


_PERSISTENT = Key("cudnn", Numbers("float16"))


class CudaCase(LayerCase):
    """A problem on the device, in every type of numbers."""

    def __init__(self, problem: Problem, suite: CudaSuite, device: Cuda) -> None:
        rows = isinstance(problem, AddNorm)
        super().__init__(str(problem), problem, device, COMPARED["rows" if rows else "recurrent"])
        names = [OURS, *(ROWS if rows else suite.against)]
        keys = [Key(name, numbers) for numbers in suite.numbers for name in names]
        self.keys = {str(key): key for key in keys}

    @property
    def ratios(self) -> dict[str, tuple[str, str]]:
        """Contenders over ours in the same numbers; also cuDNN's float16 over our bfloat16, because cuDNN has a
        persistent kernel for float16 only."""
        ours = [key for key in self.keys.values() if key.who == OURS]
        others = [key for key in self.keys.values() if key.who != OURS]
        return {
            f"{our.numbers} against {their}": (str(their), str(our))
            for our in ours
            for their in others
            if their.numbers == our.numbers or (our.numbers.type, their) == ("bfloat16", _PERSISTENT)
        }

    def entries(self) -> dict[str, Entry]:
        """All contenders in all types. A reference has only the compared part, and is made once per type."""
        rows = isinstance(self.layer, AddNorm)
        module: Any = importlib.import_module(f"{__package__}.{'add_norm' if rows else 'torch_layers'}")

        @functools.cache
        def expected(type: str) -> Any:
            return module.reference(self.layer, type, self._device, self.compared)

        return {
            name: Entry(
                functools.partial(module.on_device, key.who, self.layer, key.numbers, self._device),
                key.numbers,
                functools.partial(expected, key.numbers.type),
                accuracy.bound(self.layer.terms(self.compared), key.numbers.product_error(ours=key.who == OURS)),
            )
            for name, key in self.keys.items()
        }

    def share(self, result: Result, name: str, ceilings: Mapping[str, float]) -> tuple[float | None, str | None]:
        """The share of a contender's time that the chip's ceilings explain, and the limit that binds: latency if the
        share is below a half and steps wait for each other."""
        median = result.outcomes[name].median
        if median is None:
            return None, None
        work = self.layer.work(result.timed)
        least = {
            "products": work.operations / ceilings["bfloat16_flops"],
            "memory": work.numbers * self.keys[name].numbers.bytes / ceilings["copy_bytes_per_second"],
        }
        longest = max(least, key=lambda which: least[which])
        share = least[longest] / median
        return share, "latency" if work.steps is not None and share < 0.5 else longest


class CudaSuite(Suite):
    """Passes of single layers on the current GPU."""

    width = 170

    def __init__(self, options: Options) -> None:
        options.refuse("with --step", "beside")
        options.refuse("with --device cpu", "threads", "memory", "no_memory")
        self._problems = pick_problems(options, GPU_PROBLEMS, GPU_DEFAULT, GPU_CELLS)
        self.against = pick("--against", options.against, RECURRENT, ("cudnn",))
        types = pick("--types", options.types, TYPES, TYPES)
        precisions = pick("--precision", options.precision, PRECISIONS, ("highest",))
        self.numbers, self.rounds = all_numbers(types, precisions), options.rounds

    def prepare(self, console: Output) -> dict[str, Any]:
        """Open the device and measure its ceilings."""
        device = open_device()
        for name in [name for name in self.against if not _available(name)]:
            say(console, f"{NEEDS[name]} is not installed: pip install {NEEDS[name]}")
            self.against.remove(name)
        self.cases = [CudaCase(problem, self, device) for _, problem in self._problems]
        return device.describe()

    def versions(self) -> dict[str, str]:
        return Cuda.versions()

    def settings(self) -> dict[str, Any]:
        return {"device": "cuda"}

    def title(self, about: Mapping[str, Any]) -> str:
        return f"{about['name']}, torch {self.versions()['torch']}"

    def caption(self, about: Mapping[str, Any]) -> str:
        ceilings = about["ceilings"]
        products = f"{ceilings['bfloat16_flops'] / 1e12:.0f} TFLOP/s that torch.matmul reaches in bfloat16"
        memory = f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s of a copy"
        return (
            f"ms: median of {self.rounds} rounds in turn; forward: inference; ratio: median of the rounds' theirs / "
            "ours; error: largest of all tensors, relative to float64, root mean square; % of ceiling: of our time, "
            f"the share that products take at the {products} or memory at the {memory}, whichever is longer and binds, "
            "unless the steps' latency does; cuDNN has a persistent kernel for the float16 LSTM, the rest is its "
            "standard path; the input's product of flashrnn and of the loop is torch's"
        )

    def columns(self, about: Mapping[str, Any]) -> tuple[Columns, Columns, Columns]:
        """Times of a step and of the whole run, and our share of the chip's ceilings."""
        ceilings = about["ceilings"]
        words: Columns = {
            "problem": lambda row: row.case.problem,
            "cell": lambda row: row.case.cell,
            "pass": lambda row: row.result.timed,
            "ours in": lambda row: str(row.case.keys[row.ours].numbers),
            "against": _against,
        }
        steps: Columns = {
            "us/step\nours": lambda row: formatting.number(_step(row.result, row.ours), 1e6),
            "us/step\ntheirs": lambda row: formatting.number(_step(row.result, row.theirs), 1e6),
        }
        rest: Columns = {
            "% of\nceiling": lambda row: formatting.number(row.case.share(row.result, row.ours, ceilings)[0], 100),
            "binds": lambda row: row.case.share(row.result, row.ours, ceilings)[1] or "",
            "error\nours": lambda row: formatting.error(row.mine),
            "error\ntheirs": lambda row: formatting.error(row.other),
        }
        return words, {**PAIR, **steps}, rest

    def details(self, result: Result, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
        assert isinstance(result.case, CudaCase)
        share, binds = result.case.share(result, name, about["ceilings"])
        step = _step(result, name)
        return {
            "microseconds_per_step": None if step is None else step * 1e6,
            "share_of_ceiling": share,
            "binds": binds,
        }

    def may_fail(self, name: str) -> bool:
        return not name.startswith(OURS)


def _available(name: str) -> bool:
    try:
        importlib.import_module(NEEDS.get(name, "torch"))
    except ImportError:
        return False
    return True


def _against(row: Row) -> str:
    """The other contender; its number type is named if it differs from ours."""
    if row.theirs is None:
        return ""
    ours, theirs = row.case.keys[row.ours], row.case.keys[row.theirs]
    return theirs.who if theirs.numbers == ours.numbers else str(theirs)


def _step(result: Result, name: str | None) -> float | None:
    """Seconds of one timestep."""
    assert isinstance(result.case, CudaCase)
    steps = result.case.layer.work(result.timed).steps
    if name is None or steps is None or (median := result.outcomes[name].median) is None:
        return None
    return median / steps
