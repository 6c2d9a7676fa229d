"""The examples on tiny settings: printed figures and plots; and those of their claims that hold at any size."""

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

import adding_problem
import characters
import deep_lstm
import depth
import digits
import first_equals_last
import initial_weights
import residual_ablation
import sequences
import throughtime as tt

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--steps", "1", "--context", "32", "--batch", "4"]
SHORT = ["--steps", "2", "--batch", "4", "--hidden", "8"]
RUNS = {  # options, and for every row of figures its beginning and its count
    "residual_ablation": (
        [*TINY, "--blocks", "1", "2"],
        {"bigram counts": 2, "1 block without residual": 5, "2 blocks with residual": 5},
    ),
    "depth": (["--max-depth", "4"], {"1": 7, "2": 7, "4": 7, "LayerNorm only": 1, "both, BatchNorm": 1}),
    "initial_weights": (["--depth", "4"], dict.fromkeys(("default", "xavier", "kaiming", "orthogonal"), 4)),
    "deep_lstm": (
        [*TINY, "--layers", "3", "--hidden", "8"],
        {"3": 3, "first/last": 3, "bigram counts": 1, "plain": 3, "residual": 3, "residual, LayerNorm": 3},
    ),
    "first_equals_last": (
        [*SHORT, "--length", "5", "--length", "7"],
        {f"{length} │ {name}": 5 for length in (5, 7) for name in first_equals_last.CELLS},
    ),
    "adding_problem": (
        [*SHORT, "--length", "20", "100"],
        {"20 │ always 0.5": 3, "100 │ LSTM of 1997": 2}
        | {f"{length} │ {name}": 6 for length in (20, 100) for name in adding_problem.CELLS},
    ),
    "digits": (SHORT, {"linear, whole image": 1} | dict.fromkeys(digits.CELLS, 5)),
    "language_model": (
        [*TINY[:2], "--context", "16", "--batch", "4", "--hidden", "8"],
        {"torch LSTM": 2, "throughtime LSTM": 2, "largest difference": 1},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_prints_its_figures_and_draws_them(name, tmp_path):
    if name == "digits":
        pytest.importorskip("sklearn")  # part of the test extra
    if name == "language_model":
        pytest.importorskip("torch")
    options, rows = RUNS[name]
    plot = tmp_path / "plot.png"
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options, "--plot", str(plot)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # on a busy machine, small products would wait
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    for start, count in rows.items():
        (row,) = re.findall(rf"^│ +{re.escape(start)} +│(.*)│$", done.stdout, re.MULTILINE)
        figures = [float(cell) for cell in row.split("│") if cell.strip()]
        assert len(figures) == count
        assert all(map(math.isfinite, figures))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_monitor_changes_no_bit_of_the_language_model(tmp_path, capsys):
    """Two layers of 8 units, 3 updates; the windows carry states from one to the next."""
    pytest.importorskip("torch")
    import torch

    import language_model

    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (61, 4)))
    options = {"steps": 3, "window": 20, "lr": 0.01, "max_norm": 1.0}
    losses, weights = [], []
    for monitored in (None, tmp_path / "monitor.png"):
        torch.manual_seed(0)
        model = language_model.LanguageModel(language_model.Layers.THROUGHTIME, 9, 8, 2)
        losses.append(language_model.train(model, ids, **options, monitored=monitored).losses)
        weights.append([weight.detach().numpy().tobytes() for weight in model.parameters()])
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]
    assert (tmp_path / "monitor.png").read_bytes().startswith(b"\x89PNG")
    assert [line[:13] for line in capsys.readouterr().out.splitlines()] == ["step 0  lstm,"] * 2


def test_torchs_own_lstm_has_no_monitor(tmp_path):
    pytest.importorskip("torch")
    import language_model

    with pytest.raises(SystemExit, match="--monitor: expected --layers throughtime or both, got torch"):
        language_model.main(layers=language_model.Layers.TORCH, monitor=tmp_path / "monitor.png")


def test_what_cannot_end_well_is_refused_before_the_work():
    with pytest.raises(SystemExit, match="--context 1000000: expected less than"):
        residual_ablation.main(context=1_000_000)


def test_plain_stacks_lose_the_gradient_and_residual_ones_keep_it():
    """Two Linear layers with variance 1/(3 inputs) and half of the units off: a factor of sqrt(1/18) per block."""
    norms = {name: depth.measure(variant, 64, seed=0) for name, variant in depth.VARIANTS.items()}
    ratios = {name: log10_norms[0] - log10_norms[-1] for name, log10_norms in norms.items()}
    assert ratios["plain"] == pytest.approx(63 * math.log10(1 / 18) / 2, rel=0.1)  # below float32's range
    assert all(abs(ratios[name]) < 1 for name in ("residual only", "both", "residual/sqrt(L)"))


def test_batch_norm_alone_couples_the_rows_of_a_batch():
    """Without it, a row's output depends only on that row."""
    shares = {name: depth.coupling(variant, 8, seed=0) for name, variant in depth.VARIANTS.items()}
    batch = [name for name in shares if "BatchNorm" in name]
    assert len(batch) == 2
    assert all(share == 0 for name, share in shares.items() if name not in batch)
    assert all(0.01 < shares[name] < 1 for name in batch)


def test_a_plain_mlp_keeps_the_gradient_of_kaiming_alone():
    """A rectifier keeps half of the squared norm. A Linear changes it by a sum of squares, with expectation 1 for
    orthogonal weights and Xavier's, 2 for Kaiming's, 1/3 for torch's. Such sums of 128 numbers deviate by about sqrt(5
    / 128) per layer, those of 99 layers by 0.43 of the log10 of the norm; the bound is 5 deviations."""
    expected = {"default": 1 / 6, "xavier": 1 / 2, "kaiming": 1, "orthogonal": 1 / 2}
    for weights, factor in expected.items():
        found = initial_weights.measure("ReLU", weights, 100, seed=0)
        assert len(found.norms) == 100
        assert abs(found.gradient - 99 * math.log10(factor) / 2) < 2.2, weights


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
    """With a different token at every step of a single sequence, tokens and positions have the same gradient."""
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
    """Trained on 0 0 1: two zeros and a one, the pairs 00 and 01. In the held-out part, 0 follows 1 and 1 follows 0."""
    text = characters.Text(np.array([0, 0, 1]), np.array([1, 0, 1]), 2)
    counts = characters.counted(text, steps=2)
    assert counts["unigram"] == pytest.approx(-(math.log(3 / 5) + math.log(2 / 5)) / 2)
    assert counts["bigram"] == pytest.approx(-(math.log(1 / 2) + math.log(2 / 4)) / 2)


def test_the_held_out_loss_is_a_mean_over_all_windows():
    """For a model that only repeats a character: 200 windows in two parts, the second smaller."""
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


def test_labels_say_whether_first_and_last_symbol_are_equal():
    """Half of them are: of 4000, between 1800 and 2200, which is 6.3 standard deviations of sqrt(4000)/2 each way."""
    for symbols in (2, 5):
        batch = first_equals_last.FirstEqualsLast(7, symbols).batch(np.random.default_rng(0), 4000)
        assert batch.x.shape == (7, 4000, symbols)
        np.testing.assert_array_equal(batch.x.sum(axis=2), 1)
        sequences = batch.x.argmax(axis=2).T.tolist()
        assert batch.target.tolist() == [int(sequence[0] == sequence[-1]) for sequence in sequences]
        assert 1800 < batch.target.sum() < 2200
        assert {sequence[-1] for sequence in sequences if sequence[0] == 0} == set(range(symbols))


def test_targets_are_the_sums_of_what_is_marked():
    """By definition, sequence by sequence. float32 rounds each number and the target by at most 2^-25."""
    batch = adding_problem.Adding(40).batch(np.random.default_rng(0), 2000)
    one_mark = 0
    for sequence, length, target in zip(batch.x.swapaxes(0, 1), batch.lengths, batch.target[:, 0], strict=True):
        assert 40 <= length <= 44
        pairs = sequence[:length].tolist()
        assert all(-1 <= number <= 1 for number, _ in pairs)
        assert [step for step, (_, marker) in enumerate(pairs) if marker == -1] == [0, length - 1]
        marked = [step for step, (_, marker) in enumerate(pairs) if marker == 1]
        assert max(marked) < 40 // 2 - 1
        assert len(marked) == 1 or min(marked) < 10
        one_mark += len(marked) == 1
        assert abs(0.5 + sum(pairs[step][0] for step in marked) / 4 - target) <= 2**-24
    assert set(batch.lengths) == set(range(40, 45))
    # The first pair is the first mark with probability 1/10, else the second mark with 1/18: 300 of 2000 expected.
    assert 200 < one_mark < 400  # 6.3 standard deviations of 16 each way


def test_answers_are_right_within_four_hundredths():
    output = np.array([[0.5], [0.539], [0.541], [0.461], [0.459], [-0.5]])
    right = adding_problem.Adding(100).right(output, np.full_like(output, 0.5))
    assert right.tolist() == [True, True, False, True, False, False]


def test_what_always_saying_a_half_gets():
    """0.5 and 0.53 are right; the squared errors are 0, 0.0009, 0.01 and 0.04."""
    target = np.array([[0.5], [0.53], [0.4], [0.7]])
    share, error = adding_problem.constant(sequences.Batch(np.zeros((5, 4, 2)), target))
    assert share == 0.5
    assert error == pytest.approx((0.0009 + 0.01 + 0.04) / 4)


def test_the_gradient_by_step_is_the_product_of_the_slopes():
    """One tanh unit: dh_t/dh_{t-1} = w (1 - h_t^2). Two sequences, the second shorter.

    30 factors with an error of at most 8 units of float32's 2^-24 each are 6e-6 in log10.
    """
    layer = tt.RNN(1, 1, seed=0)
    layer.parameters["weight_hh_l0"][...] = -0.9
    x = np.random.default_rng(0).standard_normal((31, 2, 1)).astype(np.float32)
    w_x, w_h, b_x, b_h = (float(array.item()) for array in layer.parameters.values())
    squares, lengths = np.zeros(31), [31, 20]
    for sequence, length in enumerate(lengths):
        h, slopes = 0.0, []
        for step in range(length):
            h = math.tanh(w_x * float(x[step, sequence, 0]) + w_h * h + b_x + b_h)
            slopes.append(w_h * (1 - h * h))
        squares[:length] += [math.prod(slopes[step + 1 :]) ** 2 for step in range(length)]
    expected = np.log10(np.sqrt(squares / 2))
    batch = sequences.Batch(x, np.zeros(2), np.array(lengths))
    assert expected[0] < -3
    np.testing.assert_allclose(sequences.log10_gradient(layer, batch), expected, rtol=0, atol=1e-5)


def test_cells_start_as_they_say():
    def start(**options):
        cell = sequences.Cell(lr=1e-3, **options)
        layer = cell.layer(3, 8, 50, np.random.default_rng(0))
        gates = {name: np.split(array, len(array) // 8) for name, array in layer.parameters.items()}
        assert not layer.parameters["bias_hh_l0"].any()
        return gates["weight_hh_l0"], gates["bias_ih_l0"]

    weights, (i, f, g, o) = start(kind="LSTM", keep=1.0)
    assert f.tolist() == [1.0] * 8
    assert not np.concatenate([i, g, o]).any()
    for weight in weights:  # orthonormal columns, up to sums of 8 products in float32
        np.testing.assert_allclose(weight.T @ weight, np.eye(8), atol=8 * 2**-22)
    _, (i, f, _, _) = start(kind="LSTM", keep="chrono")
    assert (i == -f).all()
    assert 0 <= f.min() < f.max() <= math.log(49)
    _, (_, z, _) = start(kind="GRU", keep="chrono")
    assert 0 <= z.min() < z.max() <= math.log(49)
    (weight,), _ = start(kind="IRNN", weights="identity")
    np.testing.assert_array_equal(weight, np.eye(8))


class Settled(first_equals_last.FirstEqualsLast):
    """Counts any answer as right."""

    def right(self, output, target):
        return np.ones(len(target), bool)


def test_a_training_ends_when_enough_is_right_in_a_row():
    """10 right sequences are reached after three updates of 4."""
    task = Settled(5, 2)
    test = task.batch(np.random.default_rng(0), 3)
    options = {"hidden": 4, "steps": 5, "updates": 50, "size": 4, "seed": 0, "enough": 10}
    run = sequences.train(sequences.Cell("GRU", lr=1e-3), task, test, "settled", **options)
    assert (run.updates, run.sequences, run.right) == (3, 12, 1.0)


def test_training_learns_whether_three_symbols_begin_and_end_alike():
    """600 test sequences, answered in three parts, the last smaller."""
    task = first_equals_last.FirstEqualsLast(3, 2)
    test = task.batch(np.random.default_rng(1), 600)
    options = {"hidden": 16, "steps": 3, "updates": 300, "size": 32, "seed": 0}
    run = sequences.train(first_equals_last.CELLS["LSTM, bias 1"], task, test, "three", watch=True, **options)
    assert len(run.tests) == 10
    assert run.right == 1.0
    assert run.output.shape == (600, 2)
    assert ((run.output[:, 1] > run.output[:, 0]) == (test.x[0] == test.x[2]).all(axis=1)).all()


def test_held_out_digits_are_not_learnt_from():
    """The first pixel identifies each image and its digit."""
    images = np.zeros((50, 64), np.float32)
    images[:, 0] = np.arange(50)
    task, test = digits.split(images, np.arange(50) % 10, seed=0)
    assert (len(task.labels), len(test.target)) == (40, 10)
    assert test.x.shape == (64, 10, 1)
    assert sorted([*task.images[:, 0], *test.x[0, :, 0]]) == list(range(50))
    for first, labels in ((task.images[:, 0], task.labels), (test.x[0, :, 0], test.target)):
        np.testing.assert_array_equal(first.astype(int) % 10, labels)


def test_the_linear_classifier_learns_what_is_linear():
    """The digit is the position of the one bright pixel; the same images are held out."""
    labels = np.arange(10)
    images = np.eye(64, dtype=np.float32)[labels]
    assert digits.linear(digits.Digits(images, labels), digits.pixels(images, labels), seed=0) == 1.0


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        digits.load()
