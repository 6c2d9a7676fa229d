"""Residual add and LayerNorm, and back: ``python -m pytest benchmarks/test_layer_norm.py --benchmark-only -s``.

Print the time relative to a copy of as many bytes by as many threads, and torch's relative to ours, interleaved.
"""

import functools
import statistics
import threading

import numpy as np
import pytest

import throughtime as tt
from throughtime.cli.bench.layers.device import seconds, turn

torch = pytest.importorskip("torch")

ROUNDS = 9
ARRAYS = 4  # forward: x, branch; sum, normalised. backward: d_sum, d_normalised, sum; d_x


class Problem:
    def __init__(self, rows, features):
        random = np.random.default_rng(0)
        self.x, self.branch, self.d_sum, self.d_normalised = random.standard_normal((4, rows, features), np.float32)
        self.weight, self.bias = random.standard_normal((2, features), np.float32)
        self.source, self.target = np.ones((2, ARRAYS // 2, rows, features), np.float32)
        self.tensors = [torch.tensor(a, requires_grad=True) for a in (self.x, self.branch, self.weight, self.bias)]
        self.seeds = [torch.from_numpy(self.d_sum), torch.from_numpy(self.d_normalised)]
        self.saved = self.forward()[2]
        self.graph = self.torch_forward()

    def forward(self):
        return tt.add_layer_norm(self.x, self.branch, self.weight, self.bias)

    def backward(self):
        return tt.add_layer_norm_backward(self.d_sum, self.d_normalised, self.saved)

    def torch_forward(self):
        total = self.tensors[0] + self.tensors[1]
        return total, torch.nn.functional.layer_norm(total, total.shape[-1:], *self.tensors[2:])

    def torch_backward(self):
        return torch.autograd.grad(self.graph, self.tensors, self.seeds, retain_graph=True)

    def copy(self):
        """One part per thread."""
        count = tt.get_num_threads()
        parts = zip(*(np.array_split(a.reshape(-1), count) for a in (self.target, self.source)), strict=True)
        threads = [threading.Thread(target=np.copyto, args=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def torch_copy(self):
        torch.from_numpy(self.target).copy_(torch.from_numpy(self.source))

    def check(self):
        """Compare with float64, within the rounding of 32-bit sums of this length."""
        wide = [tensor.detach().double().requires_grad_() for tensor in self.tensors]
        total = wide[0] + wide[1]
        normalised = torch.nn.functional.layer_norm(total, total.shape[-1:], *wide[2:])
        true = torch.autograd.grad([total, normalised], wide, [seed.double() for seed in self.seeds])
        found = (*self.forward()[:2], *self.backward())
        for ours, theirs in zip(found, (total, normalised, *true), strict=True):
            theirs = theirs.detach().numpy()
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def median_ratio(theirs, ours):
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


@functools.cache
def make(rows, features):
    problem = Problem(rows, features)
    problem.check()
    return problem


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("rows", "features"), [(32000, 512), (16000, 512), (4000, 512), (500, 512)])
def test_add_layer_norm(benchmark, rows, features, direction):
    problem = make(rows, features)
    torch.set_num_threads(tt.get_num_threads())
    names = (direction, "torch_" + direction, "copy", "torch_copy")
    times = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            times[name].append(turn(functools.partial(seconds, getattr(problem, name))))
    ours = times[direction]
    copies = [min(pair) for pair in zip(times["copy"], times["torch_copy"], strict=True)]
    to_copy = median_ratio(ours, copies)
    to_torch = median_ratio(times["torch_" + direction], ours)
    rate = ARRAYS * problem.x.nbytes / statistics.median(copies) / 1e9
    milliseconds = 1e3 * statistics.median(ours)
    print(
        f"\n{rows} x {features} {direction}: {milliseconds:.3g} ms, {to_copy:.2f} of a copy ({rate:.0f} GB/s), "
        f"torch {to_torch:.1f}"
    )
    benchmark.extra_info |= {"of a copy": to_copy, "torch / ours": to_torch}
    benchmark(getattr(problem, direction))
