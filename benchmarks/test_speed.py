"""Training steps of every problem and cell, for regressions: ``python -m pytest benchmarks --benchmark-only``.

Answers are checked against float64 before anything is timed. `throughtime bench` compares with other frameworks.
"""

import pytest

from throughtime.cli.bench.accuracy import bound, errors, verdict
from throughtime.cli.bench.layers.implementations import Ours, reference
from throughtime.cli.bench.layers.problems import CPU_PROBLEMS

CASES = [
    pytest.param(problem, id=f"{name}-{problem.cell}")
    for name, problems in CPU_PROBLEMS.items()
    for problem in problems
    if not problem.lean
]


@pytest.mark.parametrize("problem", CASES)
def test_training_step(benchmark, problem):
    """Only the backward, if the loss is on the last step."""
    ours = Ours(problem)
    assert verdict(errors(ours.answers(problem.T), reference(problem)), bound(problem.terms(problem.T))) is None
    benchmark.group = str(problem)
    benchmark(ours.backward if problem.last else ours.step)
