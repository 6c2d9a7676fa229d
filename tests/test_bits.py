"""Results keep their bits: bits.json holds hashes of outputs and all gradients, per compiler and instruction set.

A change that is meant to change bits records them anew, at all levels of the machine:

    python tests/test_bits.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt
from emulation import EMULATES_AMX
from problems import FORMS, Problem
from throughtime import _core

pytestmark = pytest.mark.per_level

RECORDED = Path(__file__).with_name("bits.json")
DTYPES = ("float32", "float64")
HASHED = ("hidden", "cell", "gates", "parameter_norms")  # a new name would change every hash


def noisy(kind, dtype, **sizes):
    """A problem with zoneout and weight dropout, and options with its masks."""
    problem = Problem(kind, dtype=dtype, zoneout=0.3, weight_dropout=0.2, **sizes)
    return problem, {"masks": problem.masks}


def recurrent_cases(kind, dtype):
    """Name, problem, options of forward, options of backward."""
    wide = Problem(kind, T=40, B=5, I=9, H=33, dtype=dtype)
    one = Problem(kind, T=40, B=1, I=9, H=33, dtype=dtype)
    deep = Problem(kind, T=9, B=4, I=5, H=17, L=2, D=2, dtype=dtype)
    held = {"state": wide.state, "lengths": wide.lengths, "resets": wide.resets}
    yield "plain", wide, {}, {}
    yield "one sequence", one, {"state": one.state}, {}
    yield "one sequence, options", one, {"state": one.state, "resets": one.resets}, {"truncate": 7, "clip": 0.5}
    yield "two layers, two directions", deep, {"state": deep.state, "lengths": deep.lengths}, {}
    yield "truncate, clip", wide, held, {"truncate": 7, "clip": 0.5}
    for memory in ("full", "states", "checkpoint"):
        yield f"lengths, resets, {memory}", wide, {**held, "memory": memory}, {}
        problem, masks = noisy(kind, dtype, T=20, B=3, I=5, H=17)
        yield f"noise, {memory}", problem, {**masks, "memory": memory}, {}


def of_tape(tape, grads):
    return [tape.output, grads.input, grads.parameters]


def other_results(dtype):
    """Name and results of all layers except the recurrent ones."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, d = array(13, 3, 24), array(13, 3, 24)
    layers = {
        "Linear": tt.Linear(24, 24, dtype=dtype, seed=0),
        "LayerNorm": tt.LayerNorm(24, dtype=dtype),
        "MLP": tt.MLP(24, 40, "gelu", dtype=dtype, seed=0),
        "SelfAttention": tt.SelfAttention(24, 3, causal=True, dtype=dtype, seed=0),
        "BatchNorm": tt.BatchNorm(24, dtype=dtype),
    }
    for name, layer in layers.items():
        tape = layer.forward(x)
        yield name, of_tape(tape, tape.backward(d))
    logits, targets = array(13, 3, 24), rng.integers(0, 24, (13, 3))
    yield "cross_entropy", list(tt.cross_entropy(logits, targets))
    stack = tt.Sequential(tt.LSTM(24, 17, dtype=dtype, seed=0), tt.Linear(17, 24, dtype=dtype, seed=1))
    tape = stack.forward(x)
    yield "Sequential", of_tape(tape, tape.backward(d))
    flow = tt.gradient_flow(tt.GRU(24, 17, dtype=dtype, seed=0), x)
    yield "gradient_flow", [flow.log10_norm_per_sequence]  # the kernels'; NumPy adds them up, with its own instructions


def digest(results):
    """A hash of arrays and of tuples, lists and dicts of them."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for name in sorted(value):
                found.update(name.encode())
                add(value[name])
        elif isinstance(value, tuple | list):
            for inner in value:
                add(inner)
        else:
            array = np.asarray(value)
            found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())

    add(results)
    return found.hexdigest()[:12]


def recurrent_digests(kind, dtype):
    digests = {}
    for name, problem, options, asked in recurrent_cases(kind, dtype):
        keeps_states = options.get("memory") != "checkpoint"
        tape = problem.layer().forward(problem.x, **options)
        grads = tape.backward(**problem.loss, timesteps=HASHED, **asked)
        states = [tape.hidden] if keeps_states else []
        digests[name] = digest([of_tape(tape, grads), tape.final_state, states, sorted(vars(grads)), vars(grads)])
    return digests


def digests():
    """Hashes of all results by name, at the level in use."""
    found = {f"{kind} {dtype}": recurrent_digests(kind, dtype) for kind in FORMS for dtype in DTYPES}
    return found | {dtype: {name: digest(results) for name, results in other_results(dtype)} for dtype in DTYPES}


def recorded(group):
    levels = json.loads(RECORDED.read_text()).get(_core.compiler, {})
    if EMULATES_AMX or group not in levels.get(_core.level(), {}):
        pytest.skip(f"no bits are recorded for {group} at level {_core.level()}, compiler {_core.compiler}")
    return levels[_core.level()][group]


@pytest.mark.parametrize("dtype", DTYPES)
def test_recurrent_layers(kind, dtype):
    assert recurrent_digests(kind, dtype) == recorded(f"{kind} {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_layers(dtype):
    expected = recorded(dtype)
    found = {name: digest(results) for name, results in other_results(dtype)}
    assert {name: found[name] for name in expected} == expected


def record():
    """Writes the hashes of every level of this machine."""
    known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for level in [name for name, supported in _core.levels() if supported]:
        command = [sys.executable, __file__, "--print"]
        printed = subprocess.run(
            command, env={**os.environ, "THROUGHTIME_ISA": level}, check=True, capture_output=True, text=True
        )
        known.setdefault(_core.compiler, {})[level] = json.loads(printed.stdout)
    RECORDED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(json.dumps(digests()))
    else:
        record()
