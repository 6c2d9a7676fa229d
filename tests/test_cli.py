"""The command line on tiny settings: files written, numbers printed, refusals before any work."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

import throughtime as tt
from throughtime.cli import app
from throughtime.cli import train as train_module
from throughtime.cli.flow import gamma, norms_per_step, set_good_weights

TEXT = "the quick brown fox jumps over the lazy dog\n" * 60
TINY = ["--hidden", "8", "--steps", "3", "--batch", "4", "--window", "8", "--sample-length", "20"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_train_writes_plot_and_sample(folder, cell):
    result = call("train", "text.txt", *TINY, "--cell", cell, "--layers", 2, "--plot", "out.png")
    assert result.exit_code == 0, result.output
    assert is_png(folder / "out.png")
    lines = result.output.splitlines()
    assert lines[0].startswith(f"text.txt: {len(TEXT):,} characters, {len(set(TEXT))} distinct; {cell.upper()}(64, 8")
    assert lines[1].startswith("trained 3 steps in")
    assert "bits per character" in lines[1]
    assert lines[2] == "plot: out.png"
    sample = "\n".join(lines[3:])
    assert 0 < len(sample) <= 20
    assert set(sample) <= set(TEXT)


def test_train_without_a_file_reads_pythons_help(folder):
    result = call("train", *TINY)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Python help() topics: ")
    assert is_png(folder / "throughtime-train.png")


def test_training_learns_and_is_the_same_for_a_seed(folder):
    arguments = ["train", "text.txt", "--hidden", 16, "--steps", 60, "--batch", 4, "--window", 16, "--lr", 0.02]
    first, again, other = (call(*arguments, "--seed", seed).output for seed in (1, 1, 2))
    words = first.split("loss ")[1].split()
    before, after = float(words[0]), float(words[2])
    assert before == pytest.approx(math.log2(len(set(TEXT))), rel=0.15)  # nothing known: all characters alike
    assert after < 0.7 * before
    without_speed = [[line for line in output.splitlines() if "per second" not in line] for output in (first, again)]
    assert without_speed[0] == without_speed[1]
    assert first.split("loss ")[1] == again.split("loss ")[1] != other.split("loss ")[1]


def test_saved_model_can_be_loaded(folder):
    result = call("train", "text.txt", *TINY, "--save", "model")
    assert result.exit_code == 0, result.output
    vocabulary = json.loads((folder / "model" / "vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary == "".join(sorted(set(TEXT)))
    embedding, recurrent, linear = (
        tt.load(folder / "model" / f"{name}.npz") for name in ("embedding", "recurrent", "linear")
    )
    output, _ = recurrent(embedding(np.zeros((5, 1), int)))
    assert linear(output).shape == (5, 1, len(vocabulary))


def test_ctrl_c_reports_what_there_is(folder, monkeypatch):
    clip, calls = tt.clip_grad_norm, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return clip(*arguments)

    monkeypatch.setattr(tt, "clip_grad_norm", interrupt)
    result = call("train", "text.txt", *TINY)
    assert result.exit_code == 130
    assert "interrupted after 2 steps" in result.output
    assert is_png(folder / "throughtime-train.png")


def test_diverged_training_stops_with_an_error(folder, monkeypatch):
    monkeypatch.setattr(tt, "cross_entropy", lambda logits, targets: (math.nan, np.zeros_like(logits)))
    result = call("train", "text.txt", *TINY)
    assert result.exit_code == 1
    assert result.stderr == "throughtime: error: the loss is nan at step 1; a smaller --lr may help\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.txt"], "missing.txt: No such file"),
        (["."], ".: Is a directory"),
        (["empty.txt"], "the text is empty"),
        (["one.txt"], "at least 2 different characters"),
        (["short.txt"], "the text has 3 characters, --window 64 needs at least 65"),
        (["latin1.txt"], "latin1.txt: not UTF-8 (byte 3)"),
        (["text.txt", "--plot", "nowhere/plot.png"], "nowhere does not exist"),
        (["text.txt", "--plot", "plot.txt"], "must end in one of"),
        (["text.txt", "--plot", "folder.png"], "is a directory"),
        (["text.txt", "--save", "text.txt"], "is a file"),
        (["text.txt", "--save", "nowhere/model"], "nowhere does not exist"),
        (["text.txt", "--lr", "inf"], "--lr must be a finite number"),
    ],
)
def test_refusals_are_one_line_and_come_before_training(folder, monkeypatch, arguments, words):
    for name, content in {"empty": b"", "one": b"aaaa" * 99, "short": b"abc", "latin1": b"caf\xe9" * 99}.items():
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "folder.png").mkdir()
    monkeypatch.setattr(train_module, "_train", lambda *_: pytest.fail("training was started"))
    result = call("train", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("throughtime: error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize("option", [["--cell", "gated"], ["--steps", "0"], ["--hidden", "-3"], ["--wrong", "1"]])
def test_wrong_options(folder, option):
    result = call("train", "text.txt", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr


def test_text_with_windows_line_ends_and_byte_order_mark(folder):
    (folder / "dos.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} distinct" in call("train", "dos.txt", *TINY).output


def test_encode_handles_characters_beyond_16_bits():
    vocabulary, ids = train_module.encode("aé😀a")
    assert vocabulary == "aé😀"
    assert ids.tolist() == [0, 1, 2, 0]


def test_unigram_bits():
    assert train_module.unigram_bits(np.array([0, 0, 1, 2])) == 1.5


def test_streams_follow_on_across_windows():
    """Within a stream each window begins where the one before ended, and targets are one character ahead."""
    streams = train_module._streams(np.arange(50), 3, 5, 50)
    windows = streams.windows(5)
    (a, a_next, first), (b, _, second) = next(windows), next(windows)
    assert first
    assert not second
    assert a.shape == (5, 3)
    assert np.array_equal(a_next, a + 1)
    assert np.array_equal(b[0], a[-1] + 1)
    third, fourth = next(windows), next(windows)
    assert not third[2]
    assert fourth[2]
    assert np.array_equal(fourth[0], a)


def test_flow_shows_six_rows_and_writes_a_plot(folder):
    result = call("flow", "--steps", 30, "--hidden", 8, "--batch", 2, "--plot", "flow.png")
    assert result.exit_code == 0, result.output
    assert is_png(folder / "flow.png")
    for row in [(cell, weights) for cell in ("RNN", "GRU", "LSTM") for weights in ("default", "good")]:
        assert sum(all(f" {word} " in line for word in row) for line in result.output.splitlines()) == 1


def test_flow_refuses_a_bad_plot_path(folder):
    result = call("flow", "--plot", "nowhere/flow.png")
    assert result.exit_code == 2
    assert "nowhere does not exist" in result.stderr


def test_norms_survive_where_squares_underflow():
    hidden = np.full((1, 2, 2, 2), 1e-200)
    hidden[0, 1] = 0
    assert norms_per_step(hidden) == pytest.approx(np.array([[2e-200, 0.0]]), rel=1e-15, abs=0)


def test_gamma():
    assert gamma(np.array([0.125, 0.25, 0.5, 1.0])) == 0.5
    assert gamma(np.array([0.0, 0.0, 0.5, 1.0])) == 0.5
    assert math.isnan(gamma(np.array([0.0, 1.0])))


@pytest.mark.parametrize(("cell", "gates"), [(tt.RNN, 1), (tt.GRU, 3), (tt.LSTM, 4)])
def test_good_weights(cell, gates):
    layer = cell(3, 6, 2, dtype="float64", seed=0)
    set_good_weights(layer, np.random.default_rng(0), 50)
    for block in np.split(layer.parameters["weight_hh_l1"], gates):
        assert np.abs(block.T @ block - np.eye(6)).max() <= 8 * 6**1.5 * np.finfo(float).eps
    assert not layer.parameters["bias_hh_l1"].any()
    remembering = layer.parameters["bias_ih_l1"].reshape(gates, 6)
    assert gates == 1 or (remembering[1] > 0).all()


def test_info():
    result = call("info")
    assert result.exit_code == 0, result.output
    assert tt.__version__ in result.output


@pytest.mark.parametrize("command", [[], ["train"], ["flow"], ["info"]])
def test_help(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_without_its_packages_the_command_says_what_to_install():
    """In a process of its own, in which typer cannot be found; the library itself still works there."""
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'typer' else find(name, *a)\n"
        "from throughtime.cli import app\n"
        "app()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        'throughtime: error: the command line needs typer, which is not installed: pip install "throughtime[cli]"'
    ]


def test_import_of_the_library_does_not_import_the_commands():
    code = "import sys, throughtime; print(sorted({'typer', 'rich', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
