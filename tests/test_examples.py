"""The examples on tiny settings: figures printed, plots drawn; and of what they claim, what holds at any size."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import characters
import deep_lstm
import depth
import residual_ablation

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--steps", "1", "--context", "32", "--batch", "4"]
RUNS = {  # options, and of every row of figures how it begins and how many there are
    "residual_ablation": (
        [*TINY, "--blocks", "1", "--blocks", "2"],
        {"bigram counts": 2, "1 block without residual": 5, "2 blocks with residual": 5},
    ),
    "depth": (["--max-depth", "4"], {"1": 5, "2": 5, "4": 5}),
    "deep_lstm": (
        [*TINY, "--layers", "3", "--hidden", "8"],
        {"3": 3, "first/last": 3, "bigram counts": 1, "plain": 3, "residual": 3, "residual, LayerNorm": 3},
    ),
    "language_model": (
        [*TINY[:2], "--context", "16", "--batch", "4", "--hidden", "8"],
        {"torch LSTM": 2, "throughtime LSTM": 2, "largest difference": 1},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_prints_its_figures_and_draws_them(name, tmp_path):
    if name == "language_model":
        pytest.importorskip("torch")
    options, rows = RUNS[name]
    plot = tmp_path / "plot.png"
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options, "--plot", str(plot)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # on a busy machine, small products wait
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    for start, count in rows.items():
        (row,) = re.findall(rf"^│ +{re.escape(start)} +│(.*)│$", done.stdout, re.MULTILINE)
        figures = [float(cell) for cell in row.split("│") if cell.strip()]
        assert len(figures) == count
        assert all(map(math.isfinite, figures))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_end_well_is_refused_before_the_work():
    with pytest.raises(SystemExit, match="--context 1000000: expected less than"):
        residual_ablation.main(context=1_000_000)


def test_plain_stacks_lose_the_gradient_and_residual_ones_keep_it():
    """Two Linear layers with variance 1/(3 inputs) and half of the units cut off: a factor of sqrt(1/18) per block."""
    ratios = {name: depth.measure(variant, 16, seed=0).log10_ratio for name, variant in depth.VARIANTS.items()}
    per_block = math.log10(1 / 18) / 2
    assert ratios["plain"] == pytest.approx(15 * per_block, rel=0.1)
    assert all(abs(ratios[name]) < 0.5 for name in ("residual only", "both", "residual/sqrt(L)"))


def test_what_float32_cannot_hold_is_measured_in_float64():
    plain, residual = (depth.measure(depth.VARIANTS[name], 64, seed=0) for name in ("plain", "residual only"))
    assert (plain.dtype, residual.dtype) == ("float64", "float32")
    assert 0 < plain.norms[0] < np.finfo(np.float32).tiny


def test_of_eight_lstm_layers_only_residual_ones_pass_the_gradient_down():
    ids = np.random.default_rng(0).integers(0, 10, (13, 4))
    ratios = {}
    for kind in deep_lstm.KINDS:
        norms = deep_lstm.DeepLSTM(kind, 10, 8, 16, seed=0).gradient_norms(ids[:-1], ids[1:])
        assert len(norms) == 8
        ratios[kind] = norms[0] / norms[-1]
    assert ratios["plain"] < 1e-3
    assert ratios["residual"] > 0.5
    assert ratios["residual, LayerNorm"] > 0.5


def test_positions_get_the_gradient_of_the_steps():
    """With another token at every step of a single sequence, tokens and positions have the same gradient."""
    model = residual_ablation.Transformer(12, context=9, blocks=1, seed=0, residual=True)
    _, grads = model.gradients(np.arange(9)[:, None], np.arange(1, 10)[:, None])
    np.testing.assert_array_equal(grads["positions.weight"], grads["tokens.weight"][:9])
    assert not grads["tokens.weight"][9:].any()


@pytest.mark.parametrize("residual", [False, True])
def test_training_learns_a_cycle(residual):
    ids = np.arange(600) % 5
    text = characters.Text(ids[:500], ids[500:], 5)
    model = residual_ablation.Transformer(5, context=8, blocks=1, seed=0, residual=residual)
    run = characters.train(model, text, "cycle", steps=100, window=8, batch=4, lr=0.01, seed=0)
    assert len(run.losses) == 100
    assert run.recent(1) == run.losses[0]
    assert run.final < characters.counted(text, 8)["unigram"] / 10


def test_counting_models_are_what_they_say():
    """Learnt from 0 0 1: two zeros and a one, the pairs 00 and 01. Held out, 0 follows 1 and 1 follows 0."""
    text = characters.Text(np.array([0, 0, 1]), np.array([1, 0, 1]), 2)
    counts = characters.counted(text, steps=2)
    assert counts["unigram"] == pytest.approx(-(math.log(3 / 5) + math.log(2 / 5)) / 2)
    assert counts["bigram"] == pytest.approx(-(math.log(1 / 2) + math.log(2 / 4)) / 2)


def test_the_held_out_loss_is_a_mean_over_all_windows():
    """Of a model that only ever repeats a character, 200 windows in two parts, the last one smaller."""
    ids = np.random.default_rng(0).integers(0, 3, 601)
    text = characters.Text(ids, ids, 3)
    inputs, targets = text.validation(3)
    assert inputs.shape == (3, 200)
    np.testing.assert_array_equal(inputs.T.ravel(), ids[:600])
    np.testing.assert_array_equal(targets.T.ravel(), ids[1:])
    right = (inputs == targets).mean()
    expected = math.log(2 + math.e) - right
    assert characters.validation_loss(lambda ids: np.eye(3)[ids], text, 3) == pytest.approx(expected)


def test_no_held_out_stretch_was_learnt_from():
    text = characters.python_help()
    known = bytes(text.training.astype(np.uint8))
    held_out = bytes(text.held_out.astype(np.uint8))
    assert not any(held_out[start : start + 64] in known for start in range(0, len(held_out) - 64, 64))
