"""A training script written for torch.nn.LSTM with one import changed, and processes that run alongside one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torch_side import torch

ours = pytest.importorskip("throughtime.torch")

for extra in ("typer", "rich", "matplotlib"):
    pytest.importorskip(extra)

import language_model  # noqa: E402
from characters import python_help  # noqa: E402


@pytest.fixture
def one_thread():
    """For torch's operations in between: they are tiny, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_language_model_learns_the_same(one_thread):
    """Truncated BPTT, tied weights, clipping, Adam, two layers, in float32: 200 steps. Rounding differs at 6e-8;
    training was measured to increase that to 7e-6, a thirteenth of the bound."""
    text = python_help()
    ids = language_model.streams(text, 8)
    curves = []
    for source in (language_model.Layers.TORCH, language_model.Layers.THROUGHTIME):
        torch.manual_seed(0)
        model = language_model.LanguageModel(source, text.characters, hidden=48, depth=2)
        run = language_model.train(model, ids, steps=200, window=24, lr=4e-3, max_norm=1.0)
        curves.append(np.array(run.losses))
    assert type(model.lstm) is ours.LSTM
    assert curves[1][-1] < curves[1][0] - 0.5  # it does learn
    assert np.max(np.abs(curves[1] - curves[0])) < 1e-4


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_run_modules_beside_training(start):
    """Processes started while the kernels' threads exist must not wait for threads that only the parent has."""
    script = Path(__file__).with_name("data_loader.py")
    subprocess.run([sys.executable, str(script), start], check=True, timeout=120)
