"""Answers, checked before anything is timed: the gradients of the first step and the losses of the first few."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..accuracy import bound, errors, verdict
from .problems import LEARNING_RATE, Array, Task
from .program import Program

STEPS = 5  # number of steps whose losses are compared


class Answers(NamedTuple):
    """Gradients, losses and norms of a program's first steps."""

    gradients: dict[str, Array]  # of the first step, clipped
    losses: list[float]
    norms: list[float]  # of all gradients, before they were clipped


def first_step(program: Program) -> Answers:
    """The answers of a new program's first step."""
    loss = program.step()
    return Answers({name: array.copy() for name, array in program.gradients.items()}, [loss], [program.norm])


def next_steps(program: Program, answers: Answers) -> Answers:
    """`answers` with the losses and norms of the steps after the first."""
    losses, norms = list(answers.losses), list(answers.norms)
    while len(losses) < STEPS:
        losses.append(program.step())
        norms.append(program.norm)
    return Answers(answers.gradients, losses, norms)


def gradient_errors(answers: Answers, expected: Answers) -> dict[str, float]:
    """Root mean square errors relative to float64; infinity for a missing gradient."""
    found = {name: answers.gradients.get(name, np.empty(0)) for name in expected.gradients}
    return errors(found, expected.gradients)


def loss_error(answers: Answers, expected: Answers) -> float:
    """The largest difference over the steps."""
    return max(abs(a - b) for a, b in zip(answers.losses, expected.losses, strict=True))


def loss_bound(task: Task, expected: Answers) -> float:
    """The difference above which a loss is wrong, not just rounded.

    Let r be the relative error of one step (`bound`). The loss itself is off by r loss. Adam's first updates are near
    lr g / |g|, entry by entry, so an error e in an entry of the gradient g changes its parameter by at most
    2 lr |e / g|, and the loss by 2 lr |e|. Summed over P entries, that is at most 2 lr sqrt(P) r norm(g) per step.
    """
    parameters = sum(array.size for array in task.parameters.values())
    step = 2 * LEARNING_RATE * math.sqrt(parameters) * max(expected.norms)
    return bound(task.terms) * (max(map(abs, expected.losses)) + STEPS * step)


def fault(task: Task, answers: Answers, expected: Answers) -> str | None:
    """Why these answers are wrong; None if they are right."""
    wrong = verdict(gradient_errors(answers, expected), bound(task.terms))
    if wrong:
        return wrong
    off, allowed = loss_error(answers, expected), loss_bound(task, expected)
    if off <= allowed:
        return None
    return f"the loss of the first {STEPS} steps is off by up to {off:.1e}, allowed are {allowed:.1e}"
