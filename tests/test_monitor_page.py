"""The examples of the page on the sinks of the monitor run, each with the real package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "monitor-sinks.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", PAGE, re.DOTALL))
NEEDS = {
    "JSON lines": [],
    "TensorBoard": ["torch", "tensorboard"],
    "Weights & Biases": ["wandb"],
    "Lightning": ["torch", "pytorch_lightning"],
    "Hugging Face transformers": ["torch", "transformers", "accelerate"],
    "Keras": ["torch", "keras"],
}


def test_every_example_is_run():
    assert EXAMPLES.keys() == NEEDS.keys()
    assert PAGE.count("```python") == len(NEEDS)


@pytest.mark.filterwarnings("ignore")  # those of the packages
@pytest.mark.parametrize("name", NEEDS)
def test_the_example_runs(name, tmp_path, monkeypatch, capsys):
    for variable in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "KERAS_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.chdir(tmp_path)
    for package in NEEDS[name]:
        pytest.importorskip(package)
    exec(compile(EXAMPLES[name], "monitor-sinks.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    if name == "JSON lines":
        assert re.match(r"\{0: [\d.-]+, 1: .*, 99: -\d", printed)
    elif name in ("Lightning", "Hugging Face transformers", "Keras"):
        assert "gamma 0." in printed
    else:
        assert list(tmp_path.rglob("*tfevents*" if name == "TensorBoard" else "*.wandb"))
    if name == "Weights & Biases":
        sys.modules["wandb"].teardown()  # its process
