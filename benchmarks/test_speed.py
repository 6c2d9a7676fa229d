"""Training steps of every problem and cell, for regressions: ``python -m pytest benchmarks --benchmark-only``.

Answers are checked against float64 before anything is timed. `throughtime bench` compares with other frameworks.
"""

import pytest

from throughtime.cli.bench.accuracy import bound, errors, reference, verdict
from throughtime.cli.bench.contenders import Ours
from throughtime.cli.bench.problems import PROBLEMS, Task

CASES = [(name, cell) for name, problem in PROBLEMS.items() if not problem.lean for cell in problem.cells]


@pytest.mark.parametrize(("name", "cell"), CASES)
def test_training_step(benchmark, name, cell):
    """Only the backward, if the loss is on the last step."""
    task = Task(PROBLEMS[name], cell)
    ours = Ours(task)
    ours.step()
    assert verdict(errors(ours.answers(), reference(task)), bound(task)) is None
    benchmark.group = name
    benchmark(ours.backward if task.problem.last else ours.step)
