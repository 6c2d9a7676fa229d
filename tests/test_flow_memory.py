"""The memory of `gradient_flow` in addition to its arguments and results, measured as the peak of a separate
process."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS, BATCH, H = 100_000, 4, 32
FLOW = f"""
import sys
import numpy as np
import throughtime as tt

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

memory = sys.argv[1]
x = np.ones(({STEPS}, {BATCH}, 8), np.float32)
layer = tt.LSTM(8, {H}, seed=0)
tt.gradient_flow(layer, x[:1000], memory=memory)
tt.empty_cache()
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = kilobytes("VmRSS")
flow = tt.gradient_flow(layer, x, memory=memory)
assert np.isfinite(flow.log10_norm).all()
print(1024 * (kilobytes("VmHWM") - before))
"""

OUTPUT = 4 * STEPS * BATCH * H  # bytes: 51 MB
STATES, GATES = 2 * OUTPUT, 4 * OUTPUT
RESULTS = 8 * STEPS * (1 + BATCH + H)  # log10_norm, also per sequence and per unit: 30 MB
ROWS = 6 * 8 * STEPS * BATCH  # exponents, logarithms and their squares, one per step and sequence: 19 MB
REST = 10_000_000  # sqrt(T) states, windows of 512 rows, weights and chunks


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("memory", "kept"),
    [
        ("checkpoint", 0),
        ("states", STATES + OUTPUT),
        ("full", STATES + GATES + OUTPUT),
    ],
)
def test_a_long_sequence_needs_its_results_and_what_its_mode_keeps(memory, kept):
    """If all states are stored, an output may be too. The loss and dL/dh exist only for a window, and with `checkpoint`
    there is nothing of size T times B times H."""
    done = subprocess.run([sys.executable, "-c", FLOW, memory], capture_output=True, text=True, check=True)
    assert int(done.stdout) < RESULTS + kept + ROWS + REST
