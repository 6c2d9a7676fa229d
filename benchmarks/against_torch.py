"""Training steps, throughtime against torch.nn, in turn in one process: medians, and the median of the rounds' ratios.

A step is forward, then backward of a random d_output, with gradients of the input and all parameters on both sides, and
for throughtime dL/dh_t and dL/dc_t as well. Every answer is checked before anything is timed.

    python benchmarks/against_torch.py --problems stream train --cells LSTM GRU --threads 2 --rounds 9
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from problems import PROBLEMS, Problem, operations

import throughtime as tt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--cells", nargs="+", default=["LSTM", "GRU", "RNN"], choices=["LSTM", "GRU", "RNN"])
    parser.add_argument("--threads", type=int, default=tt.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--last-step", action="store_true", help="loss on the last step only: gradients vanish")
    options = parser.parse_args()
    tt.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    level = (tt.show_config("dicts") or {})["instruction set in use"]
    print(f"threads {options.threads}, instruction set {level}, torch {torch.__version__}, rounds {options.rounds}")
    print(f"{'problem':14}{'cell':6}{'ours ms':>9}{'torch ms':>10}{'ratio':>7}{'GFLOP/s':>9}{'torch':>8}")
    for name in options.problems:
        for cell in PROBLEMS[name].cells:
            if cell in options.cells:
                ours, theirs, ratio = compare(PROBLEMS[name], cell, options.rounds, options.last_step)
                work = operations(PROBLEMS[name], cell) / 1e9
                rates = f"{work / ours:9.1f}{work / theirs:8.1f}"
                print(f"{name:14}{cell:6}{ours * 1e3:9.1f}{theirs * 1e3:10.1f}{ratio:7.2f}{rates}", flush=True)


def compare(problem: Problem, cell: str, rounds: int, last_step: bool) -> tuple[float, float, float]:
    """Median seconds of throughtime and torch, and the median ratio."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((problem.T, problem.B, problem.I), dtype=np.float32)
    d_output = rng.standard_normal((problem.T, problem.B, problem.H), dtype=np.float32)
    if last_step:
        d_output[:-1] = 0
    layer = getattr(tt, cell)(problem.I, problem.H, seed=0)
    module = getattr(torch.nn, cell)(problem.I, problem.H)
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in layer.parameters.items()})
    x_torch, d_torch = torch.from_numpy(x).requires_grad_(), torch.from_numpy(d_output)

    def ours() -> tt.Gradients:
        return layer.forward(x).backward(d_output)

    def theirs() -> None:
        module.zero_grad()
        x_torch.grad = None
        module(x_torch)[0].backward(d_torch)

    check(ours, theirs, x_torch, module)
    times = np.array([(settled_seconds(ours), settled_seconds(theirs)) for _ in range(rounds)])
    return (*np.median(times, axis=0), float(np.median(times[:, 1] / times[:, 0])))


def check(
    ours: Callable[[], tt.Gradients], theirs: Callable[[], None], x: torch.Tensor, module: torch.nn.Module
) -> None:
    """Both give the same gradients, to 1e-4 of the largest: two float32 computations of up to 1e7 roundings."""
    grads = ours()
    theirs()
    pairs = {"input": (grads.input, x.grad)}
    pairs |= {name: (grads.parameters[name], value.grad) for name, value in module.named_parameters()}
    for name, (mine, other) in pairs.items():
        expected = other.numpy()
        error = np.max(np.abs(mine - expected)) / np.max(np.abs(expected))
        if not error < 1e-4:
            raise SystemExit(f"the gradients of {name} differ by {error:.1e} of the largest: nothing is timed")


def settled_seconds(step: Callable[[], object]) -> float:
    """Seconds of a step after one untimed: the idle threads of the contender before it spin for milliseconds."""
    step()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
