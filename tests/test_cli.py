"""The command line on tiny settings: files written, numbers printed, arguments refused before any work."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from typer import Exit
from typer.testing import CliRunner

import throughtime as tt
from comparison import rounding_bound
from throughtime.cli import app
from throughtime.cli import text as text_module
from throughtime.cli import train as train_module
from throughtime.cli.character_model import CharacterModel
from throughtime.cli.text import encode, stretches

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
    assert before == pytest.approx(math.log2(len(set(TEXT))), rel=0.15)  # all characters equally likely
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


@pytest.fixture
def saved(folder):
    """The files written by `--save model`, by name."""
    assert call("train", "text.txt", *TINY, "--save", "model").exit_code == 0
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def test_a_model_is_replaced_by_force_alone(folder, saved, monkeypatch):
    (folder / "model" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_train", lambda *_: pytest.fail("training was started"))
        refused = call("train", "text.txt", *TINY, "--save", "model", "--seed", 1)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("throughtime: error: --save model: holds embedding.npz, ")
    assert {name: (folder / "model" / name).read_bytes() for name in saved} == saved
    assert call("train", "text.txt", *TINY, "--save", "model", "--seed", 1, "--force").exit_code == 0
    assert (folder / "model" / "linear.npz").read_bytes() != saved["linear.npz"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == sorted([*saved, "notes.txt"])


def test_a_model_may_go_into_a_directory_of_other_things(folder):
    (folder / "runs").mkdir()
    (folder / "runs" / "notes.txt").write_text("mine")
    assert call("train", "text.txt", *TINY, "--save", "runs").exit_code == 0
    assert len(list((folder / "runs").iterdir())) == 5


@pytest.mark.parametrize("command", ["train", "flow"])
def test_a_plot_that_is_named_is_replaced_by_force_alone(folder, command):
    arguments = {"train": ["text.txt", *TINY], "flow": SMALL}[command]
    (folder / "mine.png").write_bytes(b"before")
    refused = call(command, *arguments, "--plot", "mine.png")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "--plot mine.png: exists already" in refused.stderr
    assert (folder / "mine.png").read_bytes() == b"before"
    assert call(command, *arguments, "--plot", "mine.png", "--force").exit_code == 0
    assert is_png(folder / "mine.png")


@pytest.mark.parametrize("fault", ["json.dumps", "throughtime.cli.character_model.sync"])
def test_a_model_that_cannot_be_written_whole_is_not_written_in_part(folder, saved, monkeypatch, fault):
    """Writing fails for the last file, or the disk is full."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    model = CharacterModel.load(folder / "model")
    model.linear.parameters["bias"][...] += 1
    if fault == "json.dumps":
        object.__setattr__(model, "vocabulary", object())
    else:
        monkeypatch.setattr(fault, fail)
    with pytest.raises((OSError, TypeError)):
        model.save(folder / "model")
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == saved


def test_lines_tell_how_training_goes_where_there_is_no_terminal(folder, monkeypatch):
    monkeypatch.setattr(train_module, "_REPORTS", 0.0)
    lines = call("train", "text.txt", *TINY).output.splitlines()
    assert [line.split(":")[0] for line in lines[1:4]] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert all("bits per character" in line for line in lines[1:4])


def test_the_end_of_the_text_is_held_out(folder):
    """A different end changes only the held-out loss."""
    (folder / "other.txt").write_text(TEXT[:-132] + TEXT[:132][::-1], encoding="utf-8")
    arguments = ["--hidden", 16, "--steps", 60, "--batch", 4, "--window", 16, "--lr", 0.02, "--sample-length", 0]
    ends = [call("train", text, *arguments).output.split("loss ")[1] for text in ("text.txt", "other.txt")]
    (learnt, held_out), (same, reversed_end) = (
        [part.split(", ")[0] for part in end.split("character, ")] for end in ends
    )
    assert learnt == same
    told, not_told = (float(part.split(" on the 5% held out")[0]) for part in (held_out, reversed_end))
    assert told < 2.5 < not_told


def test_the_held_out_loss_is_the_mean_over_its_characters(folder):
    """One stream, in pieces, gives the mean over the logits of all steps, within about a hundred roundings."""
    model = CharacterModel.new("abc", "gru", 1, 8, 0)
    ids = np.random.default_rng(0).integers(0, 3, 60)
    logits = model.linear(model.recurrent(model.embedding(ids[:-1, None]))[0])
    expected, _ = tt.cross_entropy(logits, ids[1:, None])
    assert model.loss(ids.astype(np.uint8), 1, 7, 1000) == pytest.approx(expected, rel=rounding_bound("float32", 200))
    assert train_module.held_out_bits(model, ids) == pytest.approx(expected / math.log(2), rel=1e-5)


def test_large_texts_are_held_out_in_part(folder):
    model = CharacterModel.new("abc", "gru", 1, 8, 0)
    ids = np.random.default_rng(0).integers(0, 3, 101)
    first, second = (model.loss(ids[start : start + 11], 1, 5, 99) for start in (0, 50))
    assert model.loss(ids, 2, 5, 10) == pytest.approx((first + second) / 2, rel=rounding_bound("float32", 200))


@pytest.mark.parametrize(("length", "held_out"), [(2640, 132), (65, 0), (66, 1), (70, 3), (20, 0)])
def test_how_much_is_held_out(length, held_out):
    """The last 5 %, if a window and its next character remain, including the character before."""
    training, rest = train_module.split(np.arange(length), 64)
    assert len(training) == length - held_out
    assert rest.tolist() == list(range(length - held_out - 1, length))


def test_a_sample_goes_on_from_the_prompt(folder, saved):
    """Character by character, as the model itself continues."""
    result = call("sample", "model", "--prompt", "the q", "--length", 30, "--seed", 3, "--temperature", 0.5)
    assert result.exit_code == 0, result.output
    model, rng = CharacterModel.load(folder / "model"), np.random.default_rng(3)
    text = "the q"
    for _ in range(30):
        ids = np.array([[model.vocabulary.index(character)] for character in text])
        logits = model.linear(model.recurrent(model.embedding(ids))[0])[-1, 0].astype(float)
        chances = np.exp(logits / 0.5)
        text += model.vocabulary[int((rng.random() > chances.cumsum() / chances.sum()).sum())]
    assert result.output == text + "\n"


def test_samples_are_the_same_for_a_seed_and_those_at_zero_for_any(folder, saved):
    def sample(*options):
        return call("sample", "model", "--length", 50, *options).stdout

    assert sample() == sample("--seed", 0) != sample("--seed", 1)
    assert sample("--temperature", 0, "--seed", 1) == sample("--temperature", 0)
    assert sample("--temperature", 1e-320) == sample("--temperature", 0)  # nothing overflows
    assert len(sample("--length", 7, "--prompt", "fox")) == 3 + 7 + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: embedding.npz: No such file"),
        (["text.txt"], "text.txt: embedding.npz: Not a directory"),
        (["model", "--prompt", "Fox!"], "--prompt: the model does not know '!', 'F'"),
        (["model", "--temperature", "inf"], "--temperature must be a finite number"),
    ],
)
def test_sample_refuses(folder, saved, arguments, words):
    result = call("sample", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("throughtime: error: ")
    assert words in result.stderr


def test_a_sample_keeps_tabs_and_ends_of_lines(folder):
    CharacterModel.new("\t\n", "gru", 1, 8, 0).save(folder / "model")
    result = call("sample", "model", "--prompt", "\t\n\t", "--length", 40, "--temperature", 9)
    assert len(result.stdout) == 44
    assert result.stdout.startswith("\t\n\t")
    assert set(result.stdout) == set("\t\n")


def test_a_model_that_says_no_numbers_writes_nothing(folder, saved):
    model = CharacterModel.load(folder / "model")
    model.linear.parameters["bias"][3] = np.nan
    model.save(folder / "model")
    result = call("sample", "model")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "are not finite" in result.stderr


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"throughtime {tt.__version__}\n")


def test_without_a_command_there_is_help():
    result = call()
    assert result.exit_code == 2
    assert "sample" in result.output


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
    vocabulary, ids = encode("aé😀a")
    assert vocabulary == "aé😀"
    assert ids.tolist() == [0, 1, 2, 0]


def test_a_text_in_pieces_is_the_text(tmp_path, monkeypatch):
    """Characters of one to four bytes and line ends, with pieces that end anywhere."""
    content = "\ufeffaé\r\n€\r😀\n\r\n\ufeff\r"
    path = tmp_path / "text"
    path.write_bytes(content.encode())
    expected = content[1:].replace("\r\n", "\n")
    for piece in range(4, len(content.encode()) + 2):
        monkeypatch.setattr(text_module, "_PIECE", piece)
        vocabulary, ids = text_module.read_ids(path)
        assert "".join(vocabulary[index] for index in ids) == expected
        assert vocabulary == "".join(sorted(set(expected)))
        assert ids.dtype == np.uint8
        assert text_module.counts(ids).tolist() == [expected.count(character) for character in vocabulary]


@pytest.mark.parametrize("place", range(12))
def test_the_first_byte_that_is_not_utf8_is_named(tmp_path, monkeypatch, place, capsys):
    monkeypatch.setattr(text_module, "_PIECE", 4)
    (tmp_path / "text").write_bytes("aé€b😀c".encode()[:place] + b"\xff" + b"abcdefgh")
    starts = [len("aé€b😀c"[:end].encode()) for end in range(7)]
    with pytest.raises(Exit):
        text_module.read_ids(tmp_path / "text")
    assert f"not UTF-8 (byte {max(start for start in starts if start <= place)})" in capsys.readouterr().err


def test_a_text_takes_few_bytes_of_memory(tmp_path):
    """Itself, an index per character and a constant: below 3 bytes per character of 8 MB; 8 are too many."""
    (tmp_path / "text").write_bytes(TEXT.encode() * 3200)
    tracemalloc.start()
    try:
        _, ids = text_module.read_ids(tmp_path / "text")
        streams = train_module._streams(train_module.split(ids, 64)[0], 32, 64, 28)
        next(streams.windows(64))
        train_module.unigram_bits(ids)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ids) == 3200 * len(TEXT)
    assert peak < 3 * len(ids) + 2**24


def test_unigram_bits():
    assert train_module.unigram_bits(np.array([0, 0, 1, 2])) == 1.5


def test_streams_follow_on_across_windows():
    """Within a stream each window begins at the end of the one before, and targets are one character ahead."""
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


def test_stretches_are_from_all_over_the_text():
    assert stretches(np.arange(10), 4, 3).T.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert stretches(np.arange(4), 4, 2).T.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


SMALL = ["--steps", 30, "--hidden", 8, "--layers", 2, "--batch", 2]
MODELS = ["RNN", "GRU", "LSTM", "LayerNorm LSTM", "plain stack", "residual stack"]


def table_rows(output, *names):
    """The cells of the rows that begin with these names, without the names."""
    begins = [line.split() for line in output.splitlines()]
    words = " ".join(names).split()
    return [line[len(words) :] for line in begins if line[: len(words)] == words]


def test_flow_shows_every_model_and_writes_a_plot(folder):
    """Ones for 2 sequences and 8 units have norm 4, which is dL/dh at the last step of a single cell."""
    result = call("flow", *SMALL, "--plot", "flow.png")
    assert result.exit_code == 0, result.output
    assert is_png(folder / "flow.png")
    for model in MODELS:
        for weights in ("default", "good"):
            ((start, *others),) = table_rows(result.output, model, weights)
            assert len(others) == 5
            assert "stack" in model or start == f"{np.log10(4):.2f}"
    for stack in ("plain stack", "residual stack"):
        assert [len(cells) for cells in table_rows(result.output, stack)] == [7, 7, 2]


def test_residual_additions_carry_the_gradient_through_the_stack(folder):
    """An LSTM with default weights passes about a quarter of the norm down: 6 layers leave 0.25^6 = 2e-4. With the
    addition, a layer multiplies by 1 and adds its quarter in any direction: 0.75^6 to 1.25^6."""
    result = call("flow", *SMALL, "--layers", 6)
    shown = [table_rows(result.output, f"{kind} stack")[-1][0] for kind in ("plain", "residual")]
    plain, residual = (10 ** float(text[3:]) if text.startswith("10^") else float(text) for text in shown)
    assert plain < 0.01
    assert 0.75**6 < residual < 1.25**6


def test_flow_is_what_a_backward_finds(folder):
    """The RNN's row equals the gradients in float64 of the same layer in float32, whose rounding affects only the last
    digit."""
    result = call("flow", *SMALL)
    ((start, middle, end, gamma, *_),) = table_rows(result.output, "RNN", "default")
    x = np.random.default_rng(0).standard_normal((30, 2, 32), dtype=np.float32).astype(np.float64)
    tape = tt.RNN(32, 8, seed=0).astype("float64").forward(x)
    d_output = np.zeros_like(tape.output)
    d_output[-1] = 1
    norms = np.linalg.norm(tape.backward(d_output).hidden[0], axis=(1, 2))
    shown = [np.log10(norms[t]) for t in (29, 14, 0)] + [(norms[0] / norms[29]) ** (1 / 29)]
    rounding = [0.0051, 0.0051, 0.0051, 0.000051]
    for text, value, error in zip((start, middle, end, gamma), shown, rounding, strict=True):
        assert abs(float(text) - value) <= error


def test_flow_on_a_text(folder):
    """It gives other numbers than random input, and the same ones in a second run."""
    first, again, other = (call("flow", *SMALL, *on).stdout for on in (["--text", "text.txt"],) * 2 + ([],))
    assert first == again
    assert [table_rows(output, "RNN", "default")[0][0] for output in (first, other)] == ["0.60", "0.60"]
    assert table_rows(first, "RNN", "default") != table_rows(other, "RNN", "default")


@pytest.fixture
def model(folder):
    """A character model of the text's characters, saved in `model`."""
    model = CharacterModel.new("".join(sorted(set(TEXT))), "gru", 2, 8, 0)
    model.save(folder / "model")
    return model


def test_flow_of_a_saved_model(folder, model):
    result = call("flow", "--model", "model", "--text", "text.txt", "--steps", 50, "--plot", "out.png")
    assert result.exit_code == 0, result.output
    assert is_png(folder / "out.png")
    first = "model: GRU(64, 8, num_layers=2) on text.txt, loss on the character after 50"
    assert result.output.splitlines()[0] == first
    assert [len(cells) for cells in table_rows(result.output, "layer")] == [6, 7, 7]
    assert "left out" not in result.output


def test_flow_of_a_saved_model_says_what_ails_it(folder, model):
    """The gradient at h of the model in the diagnosis is that of the table; a model with good weights is healthy."""
    result = call("flow", "--model", "model", "--text", "text.txt", "--steps", 200)
    lines = result.output.splitlines()
    title = "Sequential(Embedding(28, 64), GRU(64, 8, num_layers=2), Linear(8, 28)) on 200 steps of 4 sequences: "
    (at,) = (i for i, line in enumerate(lines) if line.startswith(title))
    assert lines[at] == f"{title}1 finding"
    _, *rows = table_rows(result.output, "layer")
    row, *_, gamma, _, horizon = min(rows, key=lambda cells: float(cells[-1]))
    words = lines[at + 1].split()
    assert lines[at + 1].startswith(f"  1, severe: layer {row}: contracting, gamma ")
    assert float(words[words.index("gamma") + 1].rstrip(":")) == pytest.approx(float(gamma), abs=6e-4)
    assert f"remembers {horizon} steps of 200; " in lines[at + 1]
    assert "Try tt.init.apply(layer, " in lines[at + 1]
    tt.init.apply(model.recurrent, "good", max_steps=200, seed=0)
    model.save(folder / "model")
    result = call("flow", "--model", "model", "--text", "text.txt", "--steps", 200, "--force")
    assert f"{title}healthy\n" in result.output


def test_flow_of_a_saved_model_leaves_out_what_it_does_not_know(folder, model):
    (folder / "other.txt").write_text("the\tquick\tgreen FOX \u00e9" * 9, encoding="utf-8")
    result = call("flow", "--model", "model", "--text", "other.txt", "--steps", 50)
    assert result.exit_code == 0, result.output
    first = "54 of 189 characters left out, unknown to the model: '\\t', 'F', 'O', 'X', '\u00e9'"
    assert result.output.splitlines()[0] == first


def test_flow_of_a_saved_model_without_a_text_reads_pythons_help(folder, model):
    result = call("flow", "--model", "model", "--steps", 20, "--batch", 1)
    assert result.exit_code == 0, result.output
    assert "unknown to the model: " in result.output
    assert "on Python help() topics" in result.output


def test_flow_of_a_model_that_is_not_finite_says_where(folder, model):
    recurrent = tt.load(folder / "model" / "recurrent.npz")
    recurrent.parameters["weight_hh_l0"][0, 0] = np.nan
    recurrent.save(folder / "model" / "recurrent.npz")
    result = call("flow", "--model", "model", "--text", "text.txt", "--steps", "20")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "The forward is not finite: parameter weight_hh_l0 is not finite, and so hidden at timestep 0 of" in said


def test_a_models_flow_is_what_a_backward_in_float64_finds(model):
    """20 steps forward and back through 8 units and 2 layers, each with about H roundings; log10 divides by ln 10."""
    ids = np.random.default_rng(0).integers(0, len(model.vocabulary), (21, 3))
    flow = model.flow(ids)
    embedding, recurrent, linear = (layer.astype("float64") for layer in model.parts.values())
    tape = recurrent.forward(embedding(ids[:-1]))
    last = linear.forward(tape.output[-1])
    d_output = np.zeros_like(tape.output)
    d_output[-1] = last.backward(tt.cross_entropy(last.output, ids[-1])[1]).input
    norms = np.linalg.norm(tape.backward(d_output).hidden, axis=3)
    bound = rounding_bound("float32", 2 * 20 * 2 * 8) / np.log(10)
    assert np.abs(flow.log10_norm_per_sequence - np.log10(norms)).max() <= bound


def test_a_saved_model_is_the_same_when_loaded(folder, model):
    loaded = CharacterModel.load(folder / "model")
    assert loaded.vocabulary == model.vocabulary
    assert loaded.parameters.keys() == model.parameters.keys()
    assert all(np.array_equal(loaded.parameters[name], array) for name, array in model.parameters.items())


@pytest.mark.parametrize("name", ["a $x$ b", "$", "$$", "\\$a_1$", "$\\frac{$", "[red]", ":smile:", "漢"])
def test_names_are_drawn_as_they_are(folder, model, name, monkeypatch):
    """Dollars start no mathematics, brackets no styles, and a character that the font lacks gives no warning."""
    titles, suptitle = [], Figure.suptitle

    def watched(figure, title, **options):
        drawn = suptitle(figure, title, **options)
        titles.append(drawn)
        return drawn

    monkeypatch.setattr(Figure, "suptitle", watched)
    os.rename("model", name)
    os.rename("text.txt", f"{name}.txt")
    result = call("flow", "--model", name, "--text", f"{name}.txt", "--steps", 5, "--plot", f"{name}.png")
    assert result.exit_code == 0, result.output
    assert is_png(folder / f"{name}.png")
    assert f"{name}: GRU(64, 8, num_layers=2) on {name}.txt, loss" in result.output
    text, is_math = titles[-1]._preprocess_math(titles[-1].get_text())
    assert not is_math
    assert text.startswith(f"{name}: GRU(64, 8, num_layers=2) on {name}.txt, loss")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "nowhere/flow.png"], "nowhere does not exist"),
        (["--text", "missing.txt"], "missing.txt: No such file"),
        (["--text", "short.txt"], "short.txt has 3 characters, --steps 1000 needs at least 1000"),
        (["--text", "empty.txt"], "empty.txt has 0 characters"),
        (["--model", "nowhere"], "--model nowhere: embedding.npz: No such file"),
        (["--model", "text.txt"], "--model text.txt: embedding.npz: Not a directory"),
        (["--model", "model", "--text", "short.txt"], "3 characters that the model knows, --steps 1000 needs 1001"),
        (["--model", "model", "--hidden", "8"], "--hidden: a saved model has its own units"),
        (["--model", "model", "--layers", "8"], "--layers: a saved model has its own layers"),
        (["--model", "model", "--seed", "0"], "--seed: a saved model has nothing random"),
    ],
)
def test_flow_refuses_before_it_computes(folder, model, monkeypatch, arguments, words):
    (folder / "short.txt").write_text("the", encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    monkeypatch.setattr(tt, "gradient_flow", lambda *_: pytest.fail("the flow was computed"))
    result = call("flow", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("throughtime: error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "linear.npz").unlink(), "linear.npz: No such file"),
        (lambda path: (path / "linear.npz").write_bytes(b"?"), "linear.npz: path is not a layer saved by throughtime"),
        (lambda path: tt.Linear(8, 28).save(path / "recurrent.npz"), "recurrent.npz holds Linear(8, 28), which is no"),
        (lambda path: tt.Linear(9, 28).save(path / "linear.npz"), "do not fit together"),
        (lambda path: tt.GRU(64, 8, batch_first=True).save(path / "recurrent.npz"), "do not fit together"),
        (lambda path: tt.GRU(64, 8, dtype="float64").save(path / "recurrent.npz"), "do not fit together"),
        (lambda path: (path / "vocabulary.json").unlink(), "vocabulary.json: No such file"),
        (lambda path: (path / "vocabulary.json").write_text("{"), "vocabulary.json is not JSON"),
        (lambda path: (path / "vocabulary.json").write_text("[1]"), "vocabulary.json holds no string"),
        (lambda path: (path / "vocabulary.json").write_text('"abc"'), "and 3 characters do not fit together"),
    ],
)
def test_a_spoilt_model_is_refused(folder, model, spoil, words):
    spoil(folder / "model")
    result = call("flow", "--model", "model", "--text", "text.txt")
    assert result.exit_code == 2
    assert result.stderr.startswith("throughtime: error: --model model: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize(("cell", "gates"), [(tt.RNN, 1), (tt.GRU, 3), (tt.LSTM, 4)])
def test_good_weights(cell, gates):
    layer = cell(3, 6, 2, dtype="float64", seed=0)
    tt.init.apply(layer, "good", max_steps=50, seed=0)
    for block in np.split(layer.parameters["weight_hh_l1"], gates):
        assert np.abs(block.T @ block - np.eye(6)).max() <= 8 * 6**1.5 * np.finfo(float).eps
    assert not layer.parameters["bias_hh_l1"].any()
    remembering = layer.parameters["bias_ih_l1"].reshape(gates, 6)
    assert gates == 1 or (remembering[1] > 0).all()


def test_good_weights_of_a_layer_norm_lstm():
    """Gains of the recurrent part are 1/2; those of the input and of c stay 1."""
    layer = tt.LSTM(3, 6, layer_norm=True, seed=0)
    tt.init.apply(layer, "good", max_steps=50, seed=0)
    gains = {name: set(array.tolist()) for name, array in layer.parameters.items() if "_ln_" in name}
    assert gains == {"weight_ln_ih_l0": {1}, "weight_ln_hh_l0": {0.5}, "weight_ln_c_l0": {1}, "bias_ln_c_l0": {0}}
    assert (layer.parameters["bias_ih_l0"][6:12] > 0).all()


def test_good_weights_reach_into_stacks():
    """Layers that are not recurrent keep their weights."""
    linear, inner, outer = tt.Linear(3, 6, seed=0), tt.LSTM(6, 6, seed=1), tt.GRU(6, 6, seed=2)
    before = linear.parameters["bias"].copy()
    stack = tt.Sequential(linear, tt.ResidualBlock(tt.Sequential(inner), 6), outer)
    tt.init.apply(stack, "good", max_steps=50, seed=0)
    assert np.array_equal(linear.parameters["bias"], before)
    assert not inner.parameters["bias_hh_l0"].any()
    assert not outer.parameters["bias_hh_l0"].any()


def test_info():
    result = call("info")
    assert result.exit_code == 0, result.output
    assert tt.__version__ in result.output


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["flow"], ["bench"], ["accuracy"], ["info"]])
def test_help(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_without_its_packages_the_command_says_what_to_install():
    """In a separate process, in which typer cannot be found; the library itself still works."""
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
