"""Run layers on a GPU repeatedly: the bits must be the same. ``--small`` has sizes that suit compute-sanitizer.

    python benchmarks/cuda_same_bits.py --runs 10
    compute-sanitizer --tool racecheck python benchmarks/cuda_same_bits.py --small --runs 1

It prints one line of JSON for each problem and number type; the exit code is 1 if runs differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys

import typer

from throughtime.cli.bench.layers import add_norm, torch_layers
from throughtime.cli.bench.layers.device import Device, open_device
from throughtime.cli.bench.layers.dtypes import Numbers
from throughtime.cli.bench.layers.implementations import OURS
from throughtime.cli.bench.layers.problems import FORWARD, STEP, AddNorm, Problem, Recurrence
from throughtime.cli.bench.layers.torch_layers import torch

TYPES = ("float32", "bfloat16", "float16")
CELLS = ("LSTM", "GRU", "RNN")


def recurrence(cell: str, T: int, B: int, H: int) -> Recurrence:
    return Recurrence(cell, T, B, H, H, (FORWARD, STEP))


# A few steps of sizes that select each kernel: tiny and odd, one cluster, the whole chip.
SMALL: tuple[Problem, ...] = (
    *(recurrence(cell, 5, 3, 20) for cell in CELLS),
    *(recurrence(cell, 4, 16, 256) for cell in CELLS),
    recurrence("LSTM", 3, 16, 1024),
    AddNorm(37, 48),
    AddNorm(64, 1024),
)
LARGE: tuple[Problem, ...] = (
    *(recurrence(cell, 512, B, H) for cell in CELLS for B, H in ((16, 256), (16, 768), (64, 1024))),
    AddNorm(20000, 768),
    AddNorm(999, 8191),
)


def digest(answers: dict[str, torch.Tensor]) -> str:
    """A hash of the bits of all tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(answers.items()):
        found.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare on the device: hashing every run on the host takes longer than the runs."""
    bits = [[run[name].detach().contiguous().view(torch.uint8) for name in one] for run in (one, other)]
    return all(map(torch.equal, *bits))


def repeat(problem: Problem, numbers: Numbers, device: Device, runs: int) -> dict[str, object]:
    """Run one layer forward and backward `runs` times."""
    device.apply(numbers)
    if isinstance(problem, AddNorm):
        layer = add_norm.on_device(OURS, problem, numbers, device)
    else:
        layer = torch_layers.on_device(OURS, problem, numbers, device)
    first = layer.answers(sys.maxsize)
    same = [same_bits(first, layer.answers(sys.maxsize)) for _ in range(runs - 1)]
    return {"same": all(same), "differing": same.count(False), "digest": digest(first)}


def main(device: Device, problems: tuple[Problem, ...], runs: int) -> int:
    differing = 0
    for problem in problems:
        for numbers in (*map(Numbers, TYPES), Numbers("float32", "high")):
            line: dict[str, object] = {"problem": f"{problem.cell} {problem}", "numbers": str(numbers), "runs": runs}
            try:
                line |= repeat(problem, numbers, device, runs)
            except Exception as error:  # continue with the other problems
                line |= {"same": False, "failed": repr(error)}
            differing += not line["same"]
            print(json.dumps(line), flush=True)
    return 1 if differing else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="a few steps of each kind of kernel")
    given = parser.parse_args()
    try:
        device = open_device()
    except typer.Exit as refused:  # the reason is already printed
        sys.exit(refused.exit_code)
    sys.exit(main(device, SMALL if given.small else LARGE, given.runs))
