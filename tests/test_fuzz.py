"""The fuzz targets in tests/fuzz, on a few hundred inputs; and the inputs of faults that they have found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt

RUN = Path(__file__).parent / "fuzz" / "run.py"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("target", "inputs"), [("load", 100), ("convert", 1000), ("arguments", 300)])
def test_a_target_finds_nothing(target, inputs):
    pytest.importorskip("onnx")
    done = subprocess.run(
        [sys.executable, str(RUN), target, "--inputs", str(inputs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith(f"{inputs} inputs")


def test_a_memoryview_is_no_list_of_keras_weights():
    """It counts as a sequence, but one of several axes cannot be indexed."""
    with pytest.raises(TypeError, match="weights must be the list of arrays"):
        tt.convert.from_keras("LSTM", memoryview(np.zeros((2, 2))))


def test_a_memoryview_is_no_tuple_of_timesteps():
    tape = tt.GRU(2, 3, seed=0).forward(np.ones((2, 1, 2), np.float32))
    with pytest.raises(TypeError, match="timesteps must be a tuple"):
        tape.backward(np.ones_like(tape.output), timesteps=memoryview(np.zeros((2, 2))))
