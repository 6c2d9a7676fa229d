"""Findings as tables with notes, and as plain data for JSON."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from throughtime import _core

from ..bench.formatting import finite
from ..bench.layers.dtypes import Numbers
from ..bench.machine import cpu_model, versions
from .findings import Error, Findings, FunctionFinding, KernelFinding
from .functions import DIGITS, mpmath_version
from .grid import Grid
from .inputs import DESCRIPTION
from .measure import Plan


def about(levels: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions of all that takes part."""
    packages = ["mpmath"] if mpmath_version() else []
    return {"cpu": cpu_model(), "levels": list(levels), "compiler": _core.compiler, "versions": versions(packages)}


def header(machine: Mapping[str, Any], plan: Plan) -> str:
    """One line on the machine and the versions."""
    names = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}; {', '.join(machine['levels'])}; {names}; compiler {machine['compiler']}; seed {plan.seed}"
    )


def grids(plan: Plan, findings: Findings) -> list[Grid]:
    """One table of functions and one of kernels, as far as there are any."""
    found = []
    if findings.functions:
        found.append(_function_grid(plan, findings.functions))
    if findings.kernels:
        found.append(_kernel_grid(plan, findings.kernels))
    return found


def _function_grid(plan: Plan, findings: Iterable[FunctionFinding]) -> Grid:
    rows: dict[tuple[str, ...], dict[str, FunctionFinding]] = {}
    for finding in findings:
        rows.setdefault((finding.function, finding.type, finding.level), {})[finding.inputs] = finding
    headings = [f"{inputs} {figure}" for inputs in plan.inputs for figure in ("max", "at", "mean")]
    return Grid(
        "Functions: errors in ulp",
        ["function", "type", "level", *headings, "bound"],
        3,
        [
            [
                *words,
                *(figure for inputs in plan.inputs for figure in _ulp_figures(row.get(inputs))),
                f"{next(iter(row.values())).bound:g}",
            ]
            for words, row in rows.items()
        ],
    )


def _ulp_figures(finding: FunctionFinding | None) -> list[str]:
    if finding is None:
        return ["", "", ""]
    error = finding.error
    return [_number(error.largest), f"{error.at:.4g}" if error.largest else "", _number(error.mean)]


def _kernel_grid(plan: Plan, findings: Iterable[KernelFinding]) -> Grid:
    rows: dict[tuple[str, ...], dict[str, KernelFinding]] = {}
    for finding in findings:
        words = (finding.kernel, str(Numbers(finding.type, finding.precision)), finding.level, finding.reference)
        rows.setdefault(words, {})[finding.inputs] = finding
    headings = [f"{inputs} {part}" for inputs in plan.inputs for part in ("values", "gradients")]
    return Grid(
        "Kernels: errors in units of the roundoff",
        ["kernel", "type", "level", "against", *headings, "bound"],
        4,
        [
            [
                *words,
                *(figure for inputs in plan.inputs for figure in _kernel_figures(row.get(inputs))),
                _bound(row.values()),
            ]
            for words, row in rows.items()
        ],
    )


def _kernel_figures(finding: KernelFinding | None) -> list[str]:
    return ["", ""] if finding is None else [_worst(finding.values), _worst(finding.gradients)]


def _worst(errors: dict[str, Error]) -> str:
    if not errors:
        return ""
    norms, largest = zip(*errors.values(), strict=True)
    return f"{_number(np.max(norms))} ({_number(np.max(largest))})"


def _bound(findings: Iterable[KernelFinding]) -> str:
    return next((_number(finding.bound) for finding in findings if finding.bound is not None), "")


def _number(value: float) -> str:
    """Two significant digits; three for numbers from 100 to 999."""
    if 100 <= value < 1000:
        return f"{value:.0f}"
    digits, exponent, power = f"{value:.2g}".partition("e")
    return f"{digits}{exponent}{int(power)}" if exponent else digits


def notes(plan: Plan, findings: Findings) -> list[str]:
    """The meaning of the tables, then what is missing, has failed, or exceeds its bound."""
    said = [DESCRIPTION]
    if findings.functions:
        said.append(_function_note(plan))
    if any(finding.function == "softmax" for finding in findings.functions):
        said.append(
            "softmax: the probability of the first of two classes with logits x and 0, from the gradient of "
            "cross_entropy. If x is far below zero, it is exp(x), which cannot be called alone."
        )
    if findings.kernels:
        said += _kernel_notes(findings)
    said += [f"not measured: {text}" for text in findings.missing]
    said += [f"failed: {level}: {reason}" for level, reason in findings.failed.items()]
    said += [f"above the bound: {excess}" for excess in findings.excesses]
    return said


def _function_note(plan: Plan) -> str:
    truth = (
        f"the exact value, computed by mpmath with {DIGITS} digits"
        if plan.exact
        else "this library's float64 at the same level (whose own error is below 1e-7 of such a unit)"
    )
    return (
        f"Functions: the distance from {truth}, in units in the last place (ulp) of that value: the largest, the "
        "argument where it is, and the mean. Results that are nearly subnormal are left out, because kernels flush "
        "subnormals to zero."
    )


def _kernel_notes(findings: Findings) -> list[str]:
    said = [
        "Kernels: the largest ||a - b|| / ||b|| of all tensors and, in brackets, the largest max |a - b| / max |b|, in "
        "units of the roundoff u (float32: 2^-24; float64: 2^-53). Values are outputs, losses, and parameters after "
        "five steps of an optimiser; gradients are those of inputs and parameters. Weights are random, with the "
        "default distribution; in the cells with LayerNorm the recurrent gain is 0.25."
    ]
    references = {finding.reference for finding in findings.kernels}
    if "float64" in references:
        said.append(
            "Against float64: the truth is this library's float64 on the same numbers at the same level, which the "
            "project's tests compare with a separate reference. Losses and the norm of clip_grad_norm are float64 "
            "sums in both, so their error is not seen."
        )
    if references - {"float64"}:
        said.append(
            "Against a level: the difference between the float64 results of two levels, which add in other orders. It "
            "shows rounding, not the error from a truth; what is wrong at both levels is not seen."
        )
    if any(finding.bound is not None for finding in findings.kernels):
        said.append(
            "bound: on ||a - b|| / ||b|| for uniform inputs: ten times the sum of sqrt(n) u, the error of n "
            "independent roundings in the longest sum, and the error of a product of lower precision. There is none "
            "for the other inputs, whose sums may cancel, and none for rnn_relu, where a rounding may switch a unit on "
            "or off."
        )
    return said


def document(plan: Plan, findings: Findings, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as plain data. Errors that are not finite are null."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **machine,
        "seed": plan.seed,
        "points": plan.points,
        "sizes": vars(plan.sizes),
        "functions": [_function_data(finding) for finding in findings.functions],
        "kernels": [_kernel_data(finding) for finding in findings.kernels],
        "notes": notes(plan, findings),
        "interrupted": findings.interrupted,
    }


def _function_data(finding: FunctionFinding) -> dict[str, Any]:
    largest, at, mean, points = finding.error
    return {
        **{name: getattr(finding, name) for name in ("function", "type", "level", "inputs", "bound")},
        "max_ulp": finite(largest),
        "at": finite(at),
        "mean_ulp": finite(mean),
        "points": points,
    }


def _kernel_data(finding: KernelFinding) -> dict[str, Any]:
    plain = ("kernel", "type", "precision", "level", "inputs", "reference", "bound")
    return {
        **{name: getattr(finding, name) for name in plain},
        "values": _errors_data(finding.values),
        "gradients": _errors_data(finding.gradients),
    }


def _errors_data(errors: Mapping[str, Error]) -> dict[str, Any]:
    return {name: {"norm": finite(error.norm), "max": finite(error.largest)} for name, error in errors.items()}
