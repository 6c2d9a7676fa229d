"""Measure functions against exact values, and kernels against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..bench import accuracy
from ..bench.layers.dtypes import Numbers
from .findings import Error, Findings, FunctionFinding, KernelFinding
from .functions import FUNCTIONS, Exact, exact_values
from .inputs import Draw, Sizes, arguments
from .kernels import KERNELS, Results, Tensors
from .ulp import ulp_errors
from .worker import Workers

Tick = Callable[[str], None]


class Plan(NamedTuple):
    """What is measured. Without `exact`, float32 functions are compared with float64, float64 functions not at all."""

    functions: list[str]
    kernels: list[str]
    types: list[str]
    precisions: list[str]
    inputs: list[str]
    points: int
    sizes: Sizes
    seed: int
    exact: bool

    @property
    def parts(self) -> int:
        """Steps of the progress bar."""
        return len(self.inputs) * (len(self.functions) * len(self.function_types) + len(self.kernels))

    @property
    def function_types(self) -> list[str]:
        """The types in which functions are measured."""
        return self.types if self.exact else [name for name in self.types if name == "float32"]


def measure(plan: Plan, workers: Workers, findings: Findings, tick: Tick) -> None:
    """Add everything to `findings`; call `tick` after each part."""
    for name, type, inputs in itertools.product(plan.functions, plan.function_types, plan.inputs):
        findings.functions += _function(plan, workers, name, type, inputs)
        tick(f"{name} {type}")
    precisions = workers.ask("precisions")
    findings.missing += _missing_precisions(plan, precisions)
    for name, inputs in itertools.product(plan.kernels, plan.inputs):
        if "float32" in plan.types:
            findings.kernels += _kernel_float32(plan, workers, precisions, name, inputs)
        if "float64" in plan.types:
            findings.kernels += _kernel_float64(plan, workers, name, inputs)
        tick(name)


def _missing_precisions(plan: Plan, existing: dict[str, list[str]]) -> list[str]:
    if "float32" not in plan.types or not any(KERNELS[name].recurrent for name in plan.kernels):
        return []
    lacking = {wanted: [level for level in existing if wanted not in existing[level]] for wanted in plan.precisions}
    return [
        f"float32, {wanted} at {', '.join(levels)}: it has no such products and uses those of highest"
        for wanted, levels in lacking.items()
        if levels
    ]


def _function(plan: Plan, workers: Workers, name: str, type: str, inputs: str) -> list[FunctionFinding]:
    function, x = FUNCTIONS[name], arguments(inputs, type, plan.points, plan.seed)
    answers = workers.ask("function", name, x)
    if plan.exact:
        truths = dict.fromkeys(answers, exact_values(function, x))
    else:
        wide = workers.ask("function", name, x.astype(np.float64))
        truths = {level: Exact(values, np.zeros(len(x))) for level, values in wide.items()}
    return [
        FunctionFinding(name, type, level, inputs, ulp_errors(x, answers[level], truth), function.bound)
        for level, truth in truths.items()
    ]


def _kernel_float32(
    plan: Plan, workers: Workers, precisions: dict[str, list[str]], name: str, inputs: str
) -> list[KernelFinding]:
    """Against the same level's float64, in each precision that the level has."""
    draw = Draw(inputs, plan.seed, plan.sizes, rounded="float32", dtype="float32")
    truths = workers.ask("kernel", name, draw.widened())
    found = []
    for precision in plan.precisions if KERNELS[name].recurrent else ["highest"]:
        for level, truth in truths.items():
            if precision in precisions[level] and (got := workers.ask_one(level, "kernel", name, draw, precision)):
                found.append(_compare(name, Numbers("float32", precision), level, inputs, "float64", got, truth))
    return found


def _kernel_float64(plan: Plan, workers: Workers, name: str, inputs: str) -> list[KernelFinding]:
    """Against another level: the first one, or the second one for the first."""
    answers = workers.ask("kernel", name, Draw(inputs, plan.seed, plan.sizes, rounded="float64", dtype="float64"))
    found = []
    for level, got in answers.items():
        other = next((name for name in answers if name != level), None)
        if other is not None:
            found.append(_compare(name, Numbers("float64"), level, inputs, other, got, answers[other]))
    return found


def _compare(
    name: str, numbers: Numbers, level: str, inputs: str, reference: str, got: Results, truth: Results
) -> KernelFinding:
    roundoff = float(np.finfo(numbers.type).eps) / 2
    values, gradients = (
        _errors(a, b, roundoff) for a, b in ((got.values, truth.values), (got.gradients, truth.gradients))
    )
    bound = None
    if inputs == "uniform" and KERNELS[name].continuous:
        product = numbers.product_error(ours=True) if numbers.type == "float32" else 0.0
        bound = accuracy.bound(got.terms, product) / accuracy.ROUNDOFF
    return KernelFinding(name, numbers.type, numbers.precision, level, inputs, reference, values, gradients, bound)


def _errors(got: Tensors, truth: Tensors, roundoff: float) -> dict[str, Error]:
    norms = accuracy.errors(got, truth)
    return {
        name: Error(
            norm / roundoff, float(np.max(np.abs(got[name] - truth[name])) / np.max(np.abs(truth[name]))) / roundoff
        )
        for name, norm in norms.items()
    }
