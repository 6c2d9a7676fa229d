"""`diagnose`: the rules, applied to a model on some data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arguments import as_array, size
from .._memory import with_room
from .._text import counted
from .._torch_modules import from_torch
from ..analysis.flow_result import GradientFlow
from ..backend.choose import require_host
from ..layers.layer import Layer
from ..layers.sequential import Sequential
from .depth import depth
from .examination import Examination, Part, examine
from .finding import Diagnosis, Finding
from .finite import not_finite
from .remedies import Remedies
from .through_time import exploding, vanishing
from .units import dead, saturated, worst_dead, worst_saturated
from .zero import zero_gradient

__all__ = ["diagnose"]

_RULES = (zero_gradient, vanishing, exploding, depth, dead, saturated)


@with_room
def diagnose(
    layer: Layer,
    x: Any,
    d_output: Any = "last",
    *,
    state: Any = None,
    lengths: Any = None,
    max_steps: int | None = None,
) -> Diagnosis:
    """Say in words what keeps a network from learning, with the measured figures and a remedy that measures better.

    Runs the model forward and backward once, as :func:`gradient_flow` does, and applies these rules:

    ========================  ==================================================================================
    disease                   rule
    ========================  ==================================================================================
    "not finite"              x, a parameter, a state or a gradient is NaN or infinite; no other rule is applied
    "zero gradient"           the gradient of the loss, of what enters a layer of a stack, or of h from some step
                              back on is exactly zero
    "vanishing"               within `max_steps`, ||dL/dh|| falls below 1e-6 of its value at the loss; severe if
                              nothing is learnt from more than half of the steps
    "exploding"               the largest ||dL/dh|| in the farther half of the way back is 10^1.5 times that in the
                              nearer half, and that of the loss; severe from a total growth of 10^6 on
    "vanishing over depth",   between the output and the input of a stack, or the top and the bottom layer of a
    "exploding over depth"    recurrent layer, the gradient changes by 10^3 or more; severe from 10^6 on
    "dead units"              a quarter of the ReLUs of a layer are zero for every input (at least 32 of them); severe
                              from a half on
    "saturated"               half of the values of a gate, tanh or sigmoid are within 0.01 of an end of its range;
                              severe above 0.9. Values that hold a memory do not count: forget gates and update
                              gates near 1, and input gates near 0 beside them
    ========================  ==================================================================================

    A remedy is tried on a copy of the model, with a fixed seed, on the same data, and proposed only if it measures
    better: initial weights of `tt.init.apply`, residual additions, an LSTM in place of an RNN, a smaller x. The model
    stays unchanged. Initial weights are for a new training: they replace what a model has learnt.

    Parameters
    ----------
    layer : RNN, GRU, LSTM, Sequential or another layer
        As for :func:`gradient_flow`: ``torch.nn.RNN``, ``GRU`` and ``LSTM``, the modules and blocks of
        ``throughtime.torch``, and tensors are accepted too.
    x : (T, B, I) array
        As for :func:`gradient_flow`. Take data of the task: the states depend on it.
    d_output : "last" or array
        As for :func:`gradient_flow`. ``"last"`` asks how far back a loss on the last step reaches; losses on all steps
        hide a gradient that vanishes. If the last layer of a stack is a norm, whose outputs have a constant sum, fixed
        random signs replace the ones.
    state, lengths : optional
        As for :func:`gradient_flow`.
    max_steps : int, optional
        The longest dependency that the task has, in steps, at least 2. By default, the length of the longest sequence.

    Returns
    -------
    Diagnosis
        ``print`` it, or read `findings`.

    Raises
    ------
    TypeError
        If `layer` is not a layer (for a torch model, the message names its recurrent modules), or the dtype of an array
        differs from the layer's.
    ValueError
        If a size does not fit, `d_output` is another string, or `max_steps` is below 2.

    Examples
    --------
    >>> import numpy as np, throughtime as tt
    >>> x = np.random.default_rng(0).standard_normal((1000, 4, 32), dtype=np.float32)
    >>> diagnosis = tt.diagnose(tt.LSTM(32, 64, seed=0), x)
    >>> (finding,) = diagnosis.findings
    >>> finding.disease, finding.severity, round(finding.figures["gamma"], 2), finding.figures["horizon"]
    ('vanishing', 'severe', 0.6, 24.0)
    >>> finding.remedy.text
    "tt.init.apply(layer, 'chrono', max_steps=1000, seed=0)"
    """
    steps = None if max_steps is None else size("max_steps", max_steps, least=2)
    given = layer
    layer, x, d_output, state = from_torch(layer, x, d_output, state)
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a throughtime layer, got {type(layer).__name__}")
    require_host("diagnose", layer.device)
    if isinstance(d_output, str) and d_output != "last":
        raise ValueError(f"d_output must be 'last' or an array, got {d_output!r}")
    x = as_array("x", x)
    found = examine(layer, x, d_output, state, lengths)
    remedies = Remedies(found, x, d_output, state, lengths, steps)
    with np.errstate(all="ignore"):
        findings = list(not_finite(found, remedies))
        if not findings:
            findings = [finding for rule in _RULES for finding in rule(found, remedies)]
    if layer is not given:
        findings = [_for_module(finding, layer) for finding in findings]
    findings.sort(key=lambda finding: finding.severity != "severe")
    return Diagnosis(findings, _figures(found), found.flow, _title(layer, found.flow))


def _for_module(finding: Finding, layer: Layer) -> Finding:
    """The finding with a remedy in terms of a torch module, whose parameters a layer takes and returns."""
    remedy = finding.remedy
    if remedy is None or "(layer, " not in remedy.text:
        return finding
    text = f"{remedy.text} on layer = tt.{layer!r} with the module's parameters"
    return replace(finding, remedy=replace(remedy, text=text))


def _figures(found: Examination) -> dict[str, dict[str, float]]:
    """The figures by layer, of the worst row of each; those of depth under "stack"."""
    figures = {part.place: _of_part(part) for part in found.parts}
    if len(found.log10_boundaries) > 2:
        figures["stack"] = {"log10_depth": found.log10_depth}
    return figures


def _of_part(part: Part) -> dict[str, float]:
    figures: dict[str, float] = {}
    if part.courses:
        worst = min(part.courses, key=lambda course: course.horizon)
        figures |= {"gamma": worst.gamma, "horizon": worst.horizon, "steps": float(worst.steps)}
    if part.dead:
        figures["dead"] = worst_dead(part)
    if part.saturated:
        figures["saturated"] = worst_saturated(part)
    return figures


def _title(layer: Layer, flow: GradientFlow) -> str:
    name = repr(layer)
    if isinstance(layer, Sequential) and len(name) > 80:
        name = f"{type(layer).__name__} of {len(layer.layers)} layers"
    each = flow.log10_norm_per_sequence
    batch = each.shape[2] if each.ndim == 3 else 1
    return f"{name} on {counted(flow.steps, 'step')} of {counted(batch, 'sequence')}"
