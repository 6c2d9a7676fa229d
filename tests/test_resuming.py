"""A training run that is saved and continued by other objects, or another process, has the bits of one that is not."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import throughtime as tt
from comparison import assert_same_bits

T, B, F = 6, 3, 4
X = np.random.default_rng(0).standard_normal((8, T, B, F), dtype=np.float32)


def new_model(seed=0):
    """Everything that has a state of its own: random masks, running statistics, hidden states."""
    return tt.Sequential(
        tt.LSTM(F, F, 2, dropout=0.25, zoneout=(0.1, 0.2), weight_dropout=0.25, seed=[seed, 0]),
        tt.BatchNorm(F),
        tt.ResidualBlock(tt.GRU(F, F, zoneout=0.25, seed=[seed, 1]), F),
        tt.Linear(F, F, seed=[seed, 2]),
    )


OPTIMIZERS = {
    "SGD": lambda: tt.optim.SGD(0.1, momentum=0.9),
    "Adam": lambda: tt.optim.Adam(0.01, (0.8, 0.9), weight_decay=0.01),
    "AdamW": lambda: tt.optim.AdamW(0.01, weight_decay=0.1),
}


def train(model, optimizer, state, batches):
    """Steps with carried state; returns the final state and the loss of each step."""
    losses = []
    for x in batches:
        tape = model.forward(x, state=state)
        loss, d_output = tt.mse(tape.output, x)
        optimizer.step(model.parameters, tape.backward(d_output).parameters)
        optimizer.lr *= 0.9
        state = tape.final_state
        losses.append(loss)
    return state, losses


def by_files(model, optimizer, folder):
    model.save(folder / "model.npz")
    np.savez(folder / "optimizer.npz", **optimizer.state_dict())
    other = getattr(tt.optim, type(optimizer).__name__)(1.0)
    with np.load(folder / "optimizer.npz") as file:
        other.load_state_dict(file)
    return tt.load(folder / "model.npz"), other


def by_arrays(model, optimizer, folder):
    """The arrays of a model that has the same code: parameters, running statistics, random state."""
    arrays = {**model.parameters, **model.buffers, "rng": model.get_rng_state()}
    np.savez(folder / "arrays.npz", **arrays)
    other = new_model(seed=1)
    with np.load(folder / "arrays.npz") as file:
        read = dict(file)
    other.set_rng_state(read.pop("rng"))
    other.load_parameters(read)
    return other, by_files(model, optimizer, folder)[1]


def by_pickle(model, optimizer, folder):
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_deepcopy(model, optimizer, folder):
    return copy.deepcopy((model, optimizer))


WAYS = {"files": by_files, "arrays": by_arrays, "pickle": by_pickle, "deepcopy": by_deepcopy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_has_the_same_bits(name, way, tmp_path):
    model, optimizer = new_model(), OPTIMIZERS[name]()
    state, _ = train(model, optimizer, None, X[:4])
    other, resumed = WAYS[way](model, optimizer, tmp_path)
    assert repr(resumed) == repr(optimizer)
    _, expected = train(model, optimizer, state, X[4:])
    _, losses = train(other, resumed, state, X[4:])
    assert losses == expected
    for found, wanted in ((other.parameters, model.parameters), (other.buffers, model.buffers)):
        assert_same_bits(found, wanted)
    assert_same_bits(resumed.state_dict(), optimizer.state_dict())
    assert_same_bits(other.get_rng_state(), model.get_rng_state())


RESUME = """
import pickle, sys
import test_resuming as run
model, optimizer, state = pickle.loads(sys.stdin.buffer.read())
_, losses = run.train(model, optimizer, state, run.X[4:])
sys.stdout.buffer.write(pickle.dumps((losses, model)))
"""


def test_another_process_resumes_with_the_same_bits():
    model, optimizer = new_model(), OPTIMIZERS["Adam"]()
    state, _ = train(model, optimizer, None, X[:4])
    message = pickle.dumps((model, optimizer, state))
    _, expected = train(model, optimizer, state, X[4:])
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}\n{RESUME}"]
    losses, other = pickle.loads(subprocess.run(command, input=message, stdout=subprocess.PIPE, check=True).stdout)
    assert losses == expected
    assert_same_bits(other.parameters, model.parameters)


@pytest.mark.parametrize("page", ["random.md", "saving.md"])
def test_the_example_of_a_page_prints_what_stands_below_it(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    ((code, printed),) = re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]+\n)+)", text, re.DOTALL)
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.splitlines() == [line.strip() for line in printed.splitlines()]


# State dicts of optimisers


def stepped(name):
    optimizer = OPTIMIZERS[name]()
    optimizer.step({"a.b": np.ones((2, 3))}, {"a.b": np.ones((2, 3))})
    return optimizer


def test_the_entries_are_named_as_in_torch():
    assert stepped("SGD").state_dict().keys() == {"lr", "momentum", "a.b.momentum_buffer"}
    found = stepped("Adam").state_dict()
    assert found.keys() == {"lr", "betas", "eps", "weight_decay", "a.b.exp_avg", "a.b.exp_avg_sq", "a.b.step"}
    assert (found["a.b.exp_avg"].dtype, found["a.b.exp_avg"].shape, found["a.b.step"]) == (np.float64, (2, 3), 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_dict_is_a_copy_both_ways(name):
    optimizer, other = stepped(name), OPTIMIZERS[name]()
    given = optimizer.state_dict()
    other.load_state_dict(given)
    for array in given.values():
        array[...] = 7
    assert_same_bits(other.state_dict(), optimizer.state_dict())
    assert not any((array == 7).all() for array in optimizer.state_dict().values())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lr": None}, ValueError, "state does not fit Adam.*: missing 'lr'"),
        ({3: np.ones(2)}, ValueError, "state does not fit Adam.*: unexpected 3"),
        ({"a.b.step": None}, ValueError, "missing 'a.b.step'"),
        ({"a.b.momentum_buffer": np.zeros((2, 3))}, ValueError, "unexpected 'a.b.momentum_buffer'"),
        ({"momentum": np.zeros(())}, ValueError, "unexpected 'momentum'"),
        ({"a.b.exp_avg_sq": np.zeros(2)}, ValueError, r"state\['a.b.exp_avg_sq'\] has shape \(2,\), expected \(2, 3\)"),
        ({"a.b.exp_avg": np.zeros((2, 3), int)}, TypeError, r"state\['a.b.exp_avg'\] has dtype int64, expected float"),
        ({"a.b.step": np.zeros(())}, TypeError, r"state\['a.b.step'\] has dtype float64, expected int64"),
        ({"lr": np.array(-1.0)}, ValueError, "lr must be in"),
        ({"betas": np.zeros(3)}, TypeError, "betas must be two numbers"),
        ({"a.b.exp_avg": [0.0]}, TypeError, r"state\['a.b.exp_avg'\] must be a NumPy array, got list"),
    ],
)
def test_wrong_state_dicts_change_nothing(change, error, words):
    optimizer = stepped("Adam")
    before = optimizer.state_dict()
    given = {name: array for name, array in {**before, **change}.items() if array is not None}
    with pytest.raises(error, match=words):
        optimizer.load_state_dict(given)
    assert_same_bits(optimizer.state_dict(), before)


def test_a_state_dict_is_a_mapping():
    with pytest.raises(TypeError, match="state must be a dict of name to array, got list"):
        tt.optim.Adam().load_state_dict([])
