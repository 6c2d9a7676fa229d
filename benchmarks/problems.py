"""The problems that are measured: name to (T, B, I, H) and the cells that run it."""

from typing import NamedTuple


class Problem(NamedTuple):
    """Sizes: T timesteps, B sequences, I inputs, H units."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    cells: tuple[str, ...] = ("LSTM", "GRU", "RNN")


PROBLEMS = {
    "stream": Problem(1000, 1, 128, 128),  # batch 1: the latency of the recurrence
    "stream-wide": Problem(1000, 1, 256, 256),  # the weights just fit L2
    "long": Problem(10000, 8, 128, 128),
    "train": Problem(1000, 32, 256, 256),
    "wide": Problem(500, 32, 512, 512),  # the weights leave L2
    "wider": Problem(100, 32, 1024, 1024, ("LSTM",)),
    "deepspeech2": Problem(50, 32, 1760, 1760, ("RNN",)),
    "pytorch-case": Problem(50, 64, 500, 500, ("LSTM",)),  # sizes that are no power of two
    "paddle": Problem(629, 128, 128, 128, ("LSTM",)),
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def operations(problem: Problem, cell: str) -> float:
    """Floating-point operations of a training step."""
    return 6.0 * problem.T * problem.B * GATES[cell] * problem.H * (problem.I + problem.H)
